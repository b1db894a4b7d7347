//! The parts of a mesh that need no agent: the CA on its host, the objects' files, service addresses in clear.

use std::net::SocketAddr;

use adit_objects::Object;
use adit_tests::apps::{Behaviour, Server, connect, read_all};
use adit_tests::mesh::{Enrolment, Mesh, PodSpec, ServiceSpec, with_mesh};
use anyhow::{Context, Result};
use serde_json::Value;

/// Two pods of `web`, one of them not ready, and one of `client`.
fn shop(mesh: &mut Mesh) -> Result<()> {
    mesh.namespace("shop", Enrolment::Unsaid)?;
    mesh.service(ServiceSpec::new("shop", "web", 1, 80, 8080))?;
    mesh.add_pod(PodSpec::new("n1", "shop", "client"))?;
    for (node, name) in [("n1", "web-1"), ("n2", "web-2"), ("n2", "web-3")] {
        let mut spec = PodSpec::new(node, "shop", name).label("app", "web");
        spec.ready = name != "web-3";
        mesh.add_pod(spec)?;
    }
    Ok(())
}

#[test]
fn without_agents_a_service_address_reaches_every_ready_pod_in_clear() -> Result<()> {
    with_mesh(&["n1", "n2"], |mesh| {
        shop(mesh)?;
        mesh.kube_proxy()?;
        let serving = ["shop.web-1", "shop.web-2", "shop.web-3"]
            .into_iter()
            .map(|name| Server::start(&mesh.topology.host(name)?.netns, 8080, Behaviour::WhoAmI))
            .collect::<Result<Vec<_>>>()?;
        let client = mesh.topology.host("shop.client")?;
        for vip in ["10.96.0.1:80", "[fd96::1]:80"] {
            let vip: SocketAddr = vip.parse()?;
            // Both are hit but with a chance of 2^-39.
            for _ in 0..40 {
                read_all(&mut connect(&client.netns, vip)?)?;
            }
        }
        let counts: Vec<usize> = serving.iter().map(|server| server.accepted().len()).collect();
        assert!(counts[0] > 0 && counts[1] > 0 && counts[2] == 0, "{counts:?}");
        assert_eq!(counts.iter().sum::<usize>(), 80);
        Ok(())
    })
}

#[test]
fn every_object_in_the_directory_is_understood_without_a_problem() -> Result<()> {
    with_mesh(&["n1", "n2"], |mesh| {
        shop(mesh)?;
        let mut changes = 0;
        for file in std::fs::read_dir(mesh.directory().join("objects"))? {
            let file = file?.path();
            let text = std::fs::read_to_string(&file)?;
            for document in adit_objects::yaml::read(&text)? {
                let (_, object) =
                    Object::read(&document.value)?.context("an object of a kind that is read")?;
                let translated = object.translate("adit-system")?;
                assert!(translated.problems.is_empty(), "{:?} in\n{text}", translated.problems);
                changes += usize::from(translated.change.is_some());
            }
        }
        // The namespace, the service and its two slices, four pods.
        assert_eq!(changes, 8);
        Ok(())
    })
}

#[test]
fn the_ca_starts_publishes_its_bundle_and_obeys_its_tool() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        let ca = mesh.start_ca(&serde_json::json!({ "leaf-life": "30s" }))?;
        ca.add_node("n1")?;
        let status: Value = serde_json::from_str(&ca.command("status", &["--json"])?)?;
        assert_eq!(status["trust-domain"], "cluster.local");
        let bundle =
            std::fs::read_to_string(mesh.directory().join("trust-bundle.yaml")).context("its bundle")?;
        assert!(bundle.contains("kind: ConfigMap"), "{bundle}");
        let node = mesh.topology.node("n1")?;
        let hello = node.netns.command("openssl").args([
            "s_client",
            "-brief",
            "-alpn",
            "h2",
            "-connect",
            &mesh.ca()?.address().to_string(),
        ]);
        let hello = hello.output()?;
        assert!(hello.stderr.contains("Protocol version: TLSv1.3"), "{}", hello.stderr);
        Ok(())
    })
}

#[test]
fn a_killed_ca_comes_back_with_the_same_root() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        mesh.start_ca(&Value::Null)?;
        let root = |mesh: &Mesh| -> Result<Value> {
            let status: Value = serde_json::from_str(&mesh.ca()?.command("status", &["--json"])?)?;
            Ok(status["root"]["serial"].clone())
        };
        let before = root(mesh)?;
        mesh.kill_ca()?;
        mesh.start_ca(&Value::Null)?;
        assert_eq!(root(mesh)?, before);
        Ok(())
    })
}

#[test]
fn without_an_agent_a_pod_of_an_unknown_namespace_does_not_start_and_a_del_succeeds() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        let pod = mesh.add_pod(PodSpec::new("n1", "shop", "web"))?;
        let mut cni = mesh.cni(&pod)?;
        cni.config["timeout"] = 0.into();
        let answer = cni.add()?;
        assert_eq!((answer.code, &answer.printed["code"]), (Some(1), &Value::from(11)), "{answer:?}");
        assert_eq!(cni.del()?.code, Some(0));
        let version = cni.call("VERSION")?.ok()?;
        assert!(
            version["supportedVersions"]
                .as_array()
                .is_some_and(|versions| versions.contains(&"1.1.0".into()))
        );
        Ok(())
    })
}
