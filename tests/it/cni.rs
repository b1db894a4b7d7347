//! `adit-cni` as a runtime calls it, with the real agent behind its socket, and with none.

use std::time::{Duration, Instant};

use adit_tests::apps::{Behaviour, Server, connect};
use adit_tests::mesh::{Agent, CniAnswer, Enrolment, Mesh, Pod, PodSpec, with_mesh};
use adit_tests::process::Run;
use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::state::{assert_captured, assert_untouched, own_listeners};
use crate::until::{until, until_unenrolled};

const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// One node with CA and agent, an enrolled namespace and one that is not.
fn node(mesh: &mut Mesh) -> Result<()> {
    mesh.namespace("shop", Enrolment::Enabled)?;
    mesh.namespace("plain", Enrolment::Unsaid)?;
    mesh.start()
}

/// An error as the specification wants it: exit 1, and on stdout version, code, message.
fn assert_error(answer: &CniAnswer, version: &str, code: u32) -> String {
    assert_eq!(answer.code, Some(1), "{answer:?}");
    assert_eq!(answer.printed["cniVersion"], version, "{answer:?}");
    assert_eq!(answer.printed["code"], code, "{answer:?}");
    let message = answer.printed["msg"].as_str().unwrap_or_default();
    assert!(!message.is_empty(), "{answer:?}");
    format!("{message}; {}", answer.printed["details"].as_str().unwrap_or_default())
}

/// Whether an agent's status file names a pod as captured.
fn is_captured(mesh: &Mesh, pod: &Pod) -> Result<bool> {
    let file = mesh.directory().join("status").join(format!("{}.yaml", pod.spec.node));
    Ok(std::fs::read_to_string(&file).context("the agent's status file")?.contains(&pod.uid))
}

/// The pods of which a node's agent knows a sandbox, by its own word. Others are looked for as long as their objects
/// are there.
fn known(mesh: &Mesh, node: &str) -> Result<Vec<String>> {
    known_to(mesh.agent(node)?)
}

/// As [`known`], for an agent that was taken out of the mesh.
fn known_to(agent: &Agent) -> Result<Vec<String>> {
    let pods = agent.status()?.pods.into_iter();
    Ok(pods.filter(|pod| !pod.sandbox.is_empty()).map(|pod| pod.uid).collect())
}

/// Waits until a node's agent knows this pod alone: a GC is answered when all else is gone, or after 2 s.
fn until_alone(mesh: &Mesh, node: &str, uid: &str) -> Result<()> {
    until("that only one pod is known", || Ok((known(mesh, node)? == [uid]).then_some(())))
}

#[test]
fn each_verb_of_each_version_answers_as_the_specification_says() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        node(mesh)?;
        let pod = mesh.add_pod(PodSpec::new("n1", "shop", "web"))?;
        for version in VERSIONS {
            let mut cni = mesh.cni(&pod)?;
            cni.config["cniVersion"] = version.into();
            cni.config["prevResult"]["cniVersion"] = version.into();
            if version < "1.0.0" {
                cni.config["prevResult"]["ips"][0]["version"] = "4".into();
                cni.config["prevResult"]["ips"][1]["version"] = "6".into();
            }
            // A chained plugin that adds nothing passes on what was there.
            assert_eq!(cni.add()?.ok()?, cni.config["prevResult"], "ADD of {version}");
            let answer = cni.check()?;
            if version == "0.3.1" {
                assert_error(&answer, version, 1);
            } else {
                assert_eq!(answer.ok()?, Value::Null, "CHECK of {version}");
            }
            cni.config["cni.dev/valid-attachments"] =
                json!([{ "containerID": pod.sandbox, "ifname": "eth0" }]);
            for verb in ["STATUS", "GC"] {
                let answer = cni.call(verb)?;
                if version == "1.1.0" {
                    assert_eq!(answer.ok()?, Value::Null, "{verb} of {version}");
                } else {
                    assert_error(&answer, version, 1);
                }
            }
            assert_captured(&pod)?;
            assert_eq!(cni.del()?.ok()?, Value::Null, "DEL of {version}");
            let said = cni.call("VERSION")?.ok()?;
            assert_eq!(said, json!({ "cniVersion": version, "supportedVersions": VERSIONS }));
        }
        let mut cni = mesh.cni(&pod)?;
        cni.config["cniVersion"] = "2.0.0".into();
        let said = assert_error(&cni.add()?, "1.1.0", 1);
        assert!(said.contains("2.0.0") && said.contains("0.3.1"), "{said}");
        let said = assert_error(&mesh.cni(&pod)?.call("MAKE")?, "1.0.0", 4);
        assert!(said.contains("CNI_COMMAND"), "{said}");
        Ok(())
    })
}

#[test]
fn add_of_an_enrolled_pod_is_answered_only_when_it_is_captured() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        node(mesh)?;
        // Out of the harness's sight, so that it does not call ADD.
        let agent = mesh.take_agent("n1")?;
        for name in ["a", "b", "c", "d", "e"] {
            let pod = mesh.add_pod(PodSpec::new("n1", "shop", name))?;
            assert_untouched(&pod)?;
            assert!(!is_captured(mesh, &pod)?);
            mesh.cni(&pod)?.add()?.ok()?;
            // No wait: this is the instant of the answer.
            assert!(is_captured(mesh, &pod)?);
            assert_captured(&pod)?;
            let status = agent.status()?;
            let shown = status.pods.iter().find(|shown| shown.uid == pod.uid).context("the new pod")?;
            assert_eq!((&*shown.pod, &*shown.state), (&*format!("shop/{name}"), "live"));
            assert!(shown.enrolled && shown.captured && shown.conditions.is_empty(), "{shown:?}");
            assert_eq!(shown.identity.as_deref(), Some(&*pod.identity()));
        }
        Ok(())
    })
}

#[test]
fn pods_that_are_not_enrolled_pass_and_are_not_touched() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        node(mesh)?;
        mesh.namespace("kube-system", Enrolment::Enabled)?;
        let plain = mesh.add_pod(PodSpec::new("n1", "plain", "web"))?;
        let out = mesh.add_pod(PodSpec::new("n1", "shop", "out").label("adit.dev/mesh", "disabled"))?;
        let excluded = mesh.add_pod(PodSpec::new("n1", "kube-system", "dns"))?;
        let by_pod = mesh.add_pod(PodSpec::new("n1", "plain", "in").label("adit.dev/mesh", "enabled"))?;
        for pod in [&plain, &out, &excluded] {
            assert_untouched(pod)?;
            assert!(!is_captured(mesh, pod)?, "{}", pod.spec.name);
            mesh.cni(pod)?.check()?.ok()?;
        }
        assert_captured(&by_pod)?;
        // A container that is no pod of Kubernetes is none of our business either.
        let mut cni = mesh.cni(&plain)?;
        cni.environment.retain(|(name, _)| name != "CNI_ARGS");
        assert_eq!(cni.add()?.ok()?, cni.config["prevResult"]);
        Ok(())
    })
}

#[test]
fn garbage_on_standard_input_and_missing_variables_are_named_and_change_nothing() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        node(mesh)?;
        let pod = mesh.add_pod(PodSpec::new("n1", "shop", "web"))?;
        let cni = mesh.cni(&pod)?;
        let whole = cni.config.to_string();
        let cut = &whole.as_bytes()[..whole.len() / 2];
        for garbage in [b"".as_slice(), b"\xff\xfe\x00", b"[]", b"null", b"17", cut] {
            for verb in ["ADD", "DEL", "CHECK"] {
                assert_error(&cni.call_with(verb, garbage)?, "1.1.0", 6);
            }
        }
        for (key, value) in [
            ("prevResult", Value::Null),
            ("name", json!("")),
            ("timeout", json!("soon")),
            ("socket", json!("relative")),
            ("unreachable", json!("refuse-some")),
        ] {
            let mut cni = cni.clone();
            cni.config[key] = value;
            let said = assert_error(&cni.add()?, "1.0.0", 7);
            assert!(said.contains(key), "{key}: {said}");
        }
        for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
            let mut cni = cni.clone();
            cni.environment.retain(|(known, _)| known != name);
            let said = assert_error(&cni.add()?, "1.0.0", 4);
            assert!(said.contains(name), "{name}: {said}");
        }
        for (name, value) in [
            ("CNI_CONTAINERID", "../../etc/passwd"),
            ("CNI_IFNAME", "an interface name that is too long"),
            ("CNI_ARGS", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web"),
            ("CNI_NETNS", "/run/netns/that-never-was"),
            ("CNI_NETNS", "/etc/hostname"),
        ] {
            let mut cni = cni.clone();
            for (known, old) in &mut cni.environment {
                if known == name {
                    value.clone_into(old);
                }
            }
            let said = assert_error(&cni.add()?, "1.0.0", 4);
            assert!(said.contains(name), "{name}={value}: {said}");
        }
        assert_eq!(known(mesh, "n1")?, std::slice::from_ref(&pod.uid));
        assert!(is_captured(mesh, &pod)?);
        assert_captured(&pod)
    })
}

#[test]
fn del_succeeds_twice_for_unknown_sandboxes_and_without_their_namespace() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        node(mesh)?;
        let first = mesh.add_pod(PodSpec::new("n1", "shop", "first"))?;
        let second = mesh.add_pod(PodSpec::new("n1", "shop", "second"))?;
        // Another interface of the same sandbox.
        let mut other = mesh.cni(&first)?;
        for (name, value) in &mut other.environment {
            if name == "CNI_IFNAME" {
                "net1".clone_into(value);
            }
        }
        other.del()?.ok()?;
        assert!(is_captured(mesh, &first)?);

        for _ in 0..2 {
            assert_eq!(mesh.cni(&first)?.del()?.ok()?, Value::Null);
        }
        assert_eq!(known(mesh, "n1")?, std::slice::from_ref(&second.uid));

        let mut unknown = mesh.cni(&first)?;
        for (name, value) in &mut unknown.environment {
            if name == "CNI_CONTAINERID" {
                "f".repeat(64).clone_into(value);
            }
        }
        assert_eq!(unknown.del()?.ok()?, Value::Null);

        // After a reboot, or where the runtime lost it: no CNI_NETNS, no prevResult, and the namespace gone.
        let mut bare = mesh.cni(&second)?;
        bare.environment.retain(|(name, _)| name != "CNI_NETNS" && name != "CNI_ARGS");
        bare.config.as_object_mut().context("a map")?.remove("prevResult");
        Run::here("ip").args(["netns", "del", second.host.netns.name()]).ok()?;
        assert_eq!(bare.del()?.ok()?, Value::Null);
        assert_eq!(known(mesh, "n1")?, [""; 0]);
        let journal = mesh.folder().join("agents/n1/run/journal");
        assert_eq!(std::fs::read_dir(journal)?.count(), 0, "and nothing of them is kept");
        Ok(())
    })
}

#[test]
fn check_is_good_while_capture_holds_and_names_what_does_not() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        node(mesh)?;
        let pod = mesh.add_pod(PodSpec::new("n1", "shop", "web"))?;
        let cni = mesh.cni(&pod)?;
        cni.check()?.ok()?;
        // Nothing of ours is gone, but packets no longer reach the agent: only a probe can find that.
        let dropping = |verb: &str| {
            let rule = ["-p", "tcp", "-m", "tcp", "--tcp-flags", "FIN,SYN,RST,ACK", "SYN", "-j", "DROP"];
            let run =
                pod.host.netns.command("iptables").args(["-w", "5", "-t", "raw", verb, "OUTPUT"]).args(rule);
            run.ok().map(drop)
        };
        dropping("-A")?;
        mesh.wait_released(&pod)?;
        let said = assert_error(&cni.check()?, "1.0.0", 11);
        assert!(said.contains("shop/web") && said.contains("rules"), "{said}");
        dropping("-D")?;
        mesh.wait_captured(&pod)?;
        cni.check()?.ok().map(drop)
    })
}

#[test]
fn adds_and_dels_of_many_pods_at_once_are_all_answered_and_nothing_is_mixed_up() -> Result<()> {
    const PODS: usize = 16;
    with_mesh(&["n1"], |mesh| {
        node(mesh)?;
        // Out of the harness's sight, so that it does not call ADD.
        let agent = mesh.take_agent("n1")?;
        let names = (0..PODS).map(|number| format!("web-{number}"));
        let pods = names
            .map(|name| mesh.add_pod(PodSpec::new("n1", "shop", &name).account("web")))
            .collect::<Result<Vec<_>>>()?;
        let (go, stay) = pods.split_at(PODS / 2);
        let calls = |pod: &Pod, verbs: &[&str]| -> Result<()> {
            let cni = mesh.cni(pod)?;
            verbs.iter().try_for_each(|verb| {
                let answer = cni.call(verb)?.ok().with_context(|| format!("{verb} of {}", pod.spec.name))?;
                let wanted = if *verb == "ADD" { &cni.config["prevResult"] } else { &Value::Null };
                assert_eq!(answer, *wanted, "{verb} of {}", pod.spec.name);
                Ok(())
            })
        };
        std::thread::scope(|scope| {
            let going = go.iter().map(|pod| (pod, ["ADD", "DEL", "ADD", "DEL"].as_slice()));
            let staying = stay.iter().map(|pod| (pod, ["ADD", "CHECK", "ADD", "CHECK"].as_slice()));
            let calling: Vec<_> =
                going.chain(staying).map(|(pod, verbs)| scope.spawn(move || calls(pod, verbs))).collect();
            calling
                .into_iter()
                .try_for_each(|call| call.join().map_err(|_| anyhow::anyhow!("a caller panicked"))?)
        })?;
        let mut known = known_to(&agent)?;
        known.sort_unstable();
        assert_eq!(known, stay.iter().map(|pod| pod.uid.clone()).collect::<Vec<_>>());
        let mut journal = std::fs::read_dir(mesh.folder().join("agents/n1/run/journal"))?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<Vec<_>>>()?;
        journal.sort_unstable();
        assert_eq!(journal, stay.iter().map(|pod| format!("{}.json", pod.sandbox)).collect::<Vec<_>>());
        for pod in stay {
            assert!(is_captured(mesh, pod)?);
            assert_captured(pod)?;
        }
        for pod in go {
            assert_eq!(own_listeners(pod)?.len(), 0);
        }
        Ok(())
    })
}

#[test]
fn check_of_a_pod_whose_namespace_is_gone_fails() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        node(mesh)?;
        let pod = mesh.add_pod(PodSpec::new("n1", "shop", "web"))?;
        let stays = mesh.add_pod(PodSpec::new("n1", "shop", "stays"))?;
        let cni = mesh.cni(&pod)?;
        cni.check()?.ok()?;
        Run::here("ip").args(["netns", "del", pod.host.netns.name()]).ok()?;
        let said = assert_error(&cni.check()?, "1.0.0", 4);
        assert!(said.contains("CNI_NETNS"), "{said}");
        mesh.cni(&stays)?.check()?.ok().map(drop)
    })
}

#[test]
fn gc_goes_on_past_a_pod_that_cannot_be_cleared_away() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        node(mesh)?;
        let stays = mesh.add_pod(PodSpec::new("n1", "shop", "a-stays"))?;
        let goes = ["broken", "gone", "whole"].map(|name| PodSpec::new("n1", "shop", name));
        let [broken, gone, whole] = goes.map(|spec| mesh.add_pod(spec));
        let (broken, gone, whole) = (broken?, gone?, whole?);
        // One whose listeners the agent cannot reach any more, and one that is no namespace by now.
        broken.host.netns.ip("link set lo down")?;
        Run::here("ip").args(["netns", "del", gone.host.netns.name()]).ok()?;
        let mut cni = mesh.cni(&stays)?;
        cni.config["cniVersion"] = "1.1.0".into();
        cni.config["cni.dev/valid-attachments"] = json!([{ "containerID": stays.sandbox, "ifname": "eth0" }]);
        assert_eq!(cni.call("GC")?.ok()?, Value::Null);
        until_alone(mesh, "n1", &stays.uid)?;
        assert_captured(&stays)?;
        assert_eq!(own_listeners(&whole)?.len(), 0);
        assert_eq!(own_listeners(&broken)?.len(), 0);
        Ok(())
    })
}

#[test]
fn gc_drops_what_is_not_listed_and_nothing_else() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        node(mesh)?;
        let stays = mesh.add_pod(PodSpec::new("n1", "shop", "stays"))?;
        let goes = mesh.add_pod(PodSpec::new("n1", "shop", "goes"))?;
        let mut cni = mesh.cni(&stays)?;
        cni.config["cniVersion"] = "1.1.0".into();
        cni.config.as_object_mut().context("a map")?.remove("prevResult");
        cni.environment.clear();
        // No list is a runtime that does not know the key, not one without pods.
        assert_error(&cni.call("GC")?, "1.1.0", 7);
        assert_captured(&goes)?;
        cni.config["cni.dev/valid-attachments"] = json!([{ "containerID": stays.sandbox, "ifname": "eth0" }]);
        assert_eq!(cni.call("GC")?.ok()?, Value::Null);
        assert_captured(&stays)?;
        assert_eq!(known(mesh, "n1")?, std::slice::from_ref(&stays.uid), "answered when it is done");
        assert_eq!(own_listeners(&goes)?.len(), 0);
        until("that no certificate is kept for it any more", || {
            let status = mesh.agent("n1")?.status()?;
            let held: Vec<String> = status.certificates.into_iter().map(|held| held.identity).collect();
            Ok((held == [stays.identity()]).then_some(()))
        })?;
        mesh.cni(&stays)?.check()?.ok().map(drop)
    })
}

#[test]
fn while_the_agent_is_away_only_pods_that_may_be_enrolled_wait_and_are_refused() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        node(mesh)?;
        let enrolled = mesh.add_pod(PodSpec::new("n1", "shop", "web"))?;
        let plain = mesh.add_pod(PodSpec::new("n1", "plain", "web"))?;
        until_unenrolled(mesh, "n1", "plain")?;
        mesh.take_agent("n1")?.kill()?;
        let unknown = mesh.add_pod(PodSpec::new("n1", "unknown", "web"))?;
        let system = mesh.add_pod(PodSpec::new("n1", "adit-system", "agent"))?;
        let excluded = mesh.add_pod(PodSpec::new("n1", "kube-system", "dns"))?;
        let configured = mesh.add_pod(PodSpec::new("n1", "ours", "web"))?;

        for pod in [&enrolled, &unknown] {
            let mut cni = mesh.cni(pod)?;
            cni.config["timeout"] = 1.into();
            let asked = Instant::now();
            let said = assert_error(&cni.add()?, "1.0.0", 11);
            assert!(asked.elapsed() >= Duration::from_secs(1), "it waits for the agent to come back");
            assert!(said.contains("not reachable") && said.contains("adit-agent"), "{said}");
            assert_error(&cni.check()?, "1.0.0", 11);
        }
        for pod in [&plain, &system, &excluded, &configured] {
            let mut cni = mesh.cni(pod)?;
            cni.config["timeout"] = 60.into();
            cni.config["excludeNamespaces"] = json!(["kube-system", "ours"]);
            // Within the bound of a call, which is the timeout: it did not wait.
            assert_eq!(cni.add()?.ok()?, cni.config["prevResult"], "{}", pod.spec.namespace);
            cni.check()?.ok()?;
        }
        let mut cni = mesh.cni(&plain)?;
        cni.config["timeout"] = 0.into();
        cni.config["unreachable"] = "refuse-all".into();
        assert_error(&cni.add()?, "1.0.0", 11);
        let mut cni = mesh.cni(&enrolled)?;
        cni.del()?.ok()?;
        cni.config["cniVersion"] = "1.1.0".into();
        assert_eq!(
            cni.call("STATUS")?.ok()?,
            Value::Null,
            "the node stays Ready, or the agent could not start"
        );
        cni.config["timeout"] = (-1).into();
        assert_error(&cni.call("STATUS")?, "1.1.0", 50);
        Ok(())
    })
}

#[test]
fn an_add_that_finds_no_agent_succeeds_once_there_is_one() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        mesh.namespace("shop", Enrolment::Enabled)?;
        mesh.start_ca(&Value::Null)?;
        let pod = mesh.add_pod(PodSpec::new("n1", "shop", "web"))?;
        let cni = mesh.cni(&pod)?;
        let answer = std::thread::scope(|scope| {
            let asking = scope.spawn(|| cni.add());
            mesh.start_agent("n1", &Value::Null)?;
            asking.join().map_err(|_| anyhow::anyhow!("the caller panicked"))?
        })?;
        answer.ok()?;
        assert!(is_captured(mesh, &pod)?);
        assert_captured(&pod)
    })
}

#[test]
fn without_the_ca_an_add_is_refused_with_a_hint_and_succeeds_when_it_is_back() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        mesh.namespace("shop", Enrolment::Enabled)?;
        mesh.start_ca(&Value::Null)?;
        mesh.start_agent("n1", &json!({ "pods": { "add-deadline": "5s" } }))?;
        let with = mesh.add_pod(PodSpec::new("n1", "shop", "with"))?;
        let pod = mesh.add_pod(PodSpec::new("n1", "shop", "without"))?;
        mesh.cni(&pod)?.del()?.ok()?;
        mesh.kill_ca()?;
        // A sandbox that is made anew finds the certificate of the one before it, for half a minute.
        mesh.cni(&pod)?.add()?.ok()?;
        mesh.cni(&pod)?.del()?.ok()?;
        until("that its certificate is forgotten", || {
            let held = mesh.agent("n1")?.status()?.certificates;
            Ok((!held.iter().any(|held| held.identity == pod.identity())).then_some(()))
        })?;
        let said = assert_error(&mesh.cni(&pod)?.add()?, "1.0.0", 11);
        assert!(said.contains(&format!("no certificate for {}", pod.identity())), "{said}");
        assert!(said.contains("is adit-ca running"), "{said}");
        mesh.wait_released(&pod)?;
        // Its neighbour goes on, and a pod of an account whose certificate is there can start.
        mesh.cni(&with)?.check()?.ok()?;
        let again = mesh.add_pod(PodSpec::new("n1", "shop", "again").account("with"))?;
        assert_captured(&again)?;
        mesh.start_ca(&Value::Null)?;
        // As the kubelet does: again and again.
        until("that it starts, as the CA is back", || {
            Ok((mesh.cni(&pod)?.add()?.code == Some(0)).then_some(()))
        })?;
        assert_captured(&pod)
    })
}

#[test]
fn a_pod_that_is_being_deleted_does_not_start_and_does_not_wait() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        node(mesh)?;
        let pod = mesh.add_pod(PodSpec::new("n1", "shop", "web"))?;
        mesh.cni(&pod)?.del()?.ok()?;
        let pod = mesh.change_pod(&pod, |spec| spec.terminating = true)?;
        mesh.settle()?;
        let said = assert_error(&mesh.cni(&pod)?.add()?, "1.0.0", 11);
        assert!(said.contains("being deleted"), "{said}");
        Ok(())
    })
}

#[test]
fn a_sandbox_made_again_is_captured_in_its_new_namespace() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        node(mesh)?;
        let pod = mesh.add_pod(PodSpec::new("n1", "shop", "web"))?;
        // The runtime loses the sandbox, makes another with another id, namespace and address, and deletes the first later.
        let host = mesh.topology.add_pod("n1", "shop.web-again")?;
        let again = Pod { sandbox: "e".repeat(64), host, ..pod.clone() };
        mesh.cni(&again)?.add()?.ok()?;
        assert_captured(&again)?;
        mesh.cni(&pod)?.del()?.ok()?;
        assert!(is_captured(mesh, &again)?, "the DEL of the first takes nothing from the second");
        assert_captured(&again)?;
        mesh.cni(&again)?.check()?.ok()?;
        let _serving = Server::start(&again.host.netns, 8080, Behaviour::Echo)?;
        let node = mesh.topology.node("n1")?;
        connect(&node.netns, again.at(8080)).context("its new address is served")?;
        Ok(())
    })
}
