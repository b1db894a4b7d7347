//! Configuration, access log and objects: taken anew, and what is said of a mistake in them.

use super::metrics::page;
use super::*;

#[test]
fn sighup_takes_the_log_level_and_names_what_needs_a_restart() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        mesh.start_ca(&Value::Null)?;
        mesh.start_agent("n1", &json!({ "telemetry": { "log-level": "info" } }))?;
        let file = mesh.folder().join("agents/n1/config.yaml");
        let text = std::fs::read_to_string(&file)?;
        let agent = mesh.agent("n1")?;
        let reload = |text: &str, says: &str| -> Result<()> {
            let first = agent.process().next_line();
            std::fs::write(&file, text)?;
            agent.process().signal(Signal::SIGHUP)?;
            agent.process().wait_for_line_after(first, says, |line| line.contains(says)).map(drop)
        };
        let changed = text.replace("log-level: info", "log-level: adit_agent=debug");
        assert_ne!(changed, text);
        reload(&changed, "the log level is reloaded")?;
        reload(
            &format!("{changed}health: {{ address: '[::]:15099' }}\n"),
            "health differs from what the agent was started with",
        )?;
        reload("node: [", "not reloaded")?;
        reload(&text.replace("log-level: info", "log-level: '=='"), "telemetry.log-level: is no filter")?;
        reload(&text, "the log level is reloaded")?;
        assert!(agent.status()?.ready);
        Ok(())
    })
}

#[test]
fn a_change_of_the_file_is_taken_without_a_signal() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        mesh.start_ca(&Value::Null)?;
        mesh.start_agent("n1", &json!({ "telemetry": { "log-level": "info" } }))?;
        let file = mesh.folder().join("agents/n1/config.yaml");
        let text = std::fs::read_to_string(&file)?;
        let process = mesh.agent("n1")?.process();
        let first = process.next_line();
        // As an editor, or a ConfigMap, does it: another file by that name.
        let fresh = file.with_extension("new");
        std::fs::write(&fresh, text.replace("log-level: info", "log-level: adit_agent=debug"))?;
        std::fs::rename(&fresh, &file)?;
        process
            .wait_for_line_after(first, "the reload", |line| line.contains("the log level is reloaded"))?;
        Ok(())
    })
}

#[test]
fn a_renamed_access_log_is_opened_anew_at_sighup() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        mesh.start_ca(&Value::Null)?;
        let log = mesh.folder().join("access.log");
        let old = mesh.folder().join("access.log.1");
        mesh.start_agent("n1", &json!({ "telemetry": { "access-log": { "path": log } } }))?;
        std::fs::rename(&log, &old)?;
        let process = mesh.agent("n1")?.process();
        let first = process.next_line();
        process.signal(Signal::SIGHUP)?;
        process.wait_for_line_after(first, "the new file", |line| line.contains("is opened anew"))?;
        assert!(log.exists() && old.exists());
        Ok(())
    })
}

#[test]
fn all_mistakes_of_a_configuration_come_in_one_report_with_their_lines() -> Result<()> {
    with_mesh(&["n1"], |mesh| {
        let file = mesh.folder().join("bad.yaml");
        let text = "node: n1\nrun-dirs: /run\ncluster:\n  directory: /mesh\n  source: kube\npods:\n  add-deadline: soon\ntelemetry:\n  access-log:\n    sample: often\n";
        std::fs::write(&file, text)?;
        let node = mesh.topology.node("n1")?.netns.clone();
        let run = |args: &[&str]| node.command(program("adit-agent")?).args(args).output();
        let path = file.display().to_string();
        let output = run(&["--config", &path])?;
        assert_eq!(output.status.code(), Some(64), "{output:?}");
        for (line, field) in [
            (2, "run-dirs"),
            (5, "cluster.source"),
            (7, "pods.add-deadline"),
            (10, "telemetry.access-log.sample"),
        ] {
            let found = output
                .stderr
                .lines()
                .any(|said| said.contains(&format!("{path}:{line}:")) && said.contains(field));
            assert!(found, "{field} at line {line}:\n{}", output.stderr);
        }
        for args in [&[][..], &["--conf", &path], &["--config", "/nowhere.yaml"]] {
            assert_eq!(run(args)?.status.code(), Some(64), "{args:?}");
        }
        for name in ["adit-agent", "adit-ca", "adit-cni", "adit"] {
            let said = node.command(program(name)?).args(["--version"]).output()?;
            assert_eq!(said.status.code(), Some(0), "{said:?}");
            // `name 0.1.0 (1f2e3d4c5b6a)`
            let rest = said.stdout.trim_end().strip_prefix(name).context("its name")?;
            let commit =
                rest.split_once(" (").and_then(|(_, rest)| rest.strip_suffix(')')).context("a commit")?;
            let is_hex = commit.len() == 12 && commit.bytes().all(|digit| digit.is_ascii_hexdigit());
            assert!(is_hex || commit == "unknown", "{said:?}");
        }
        // Good, but what it needs is taken: that is no usage error.
        let taken = Server::start(&node, 15021, Behaviour::Hold)?;
        mesh.start_ca(&Value::Null)?;
        let error = mesh.start_agent("n1", &Value::Null).expect_err("its port is taken");
        assert!(format!("{error:#}").contains("cannot answer health probes on [::]:15021"), "{error:#}");
        drop(taken);
        Ok(())
    })
}

#[test]
fn a_broken_file_keeps_its_last_good_version_and_is_named_until_it_is_mended() -> Result<()> {
    with_mesh(&["n1", "n2"], |mesh| {
        let (client, server, _serving) = pair(mesh, &Value::Null)?;
        let denies = "apiVersion: policy.adit.dev/v1alpha1\nkind: AuthorizationPolicy\n\
                      metadata: { name: nobody, namespace: shop }\nspec:\n  selector: { matchLabels: { app: server } }\n";
        mesh.apply("policies", denies)?;
        mesh.wait_for_status("n2", "the policy", |text| text.contains("nobody"))?;
        // The reset may come at any of the three.
        let refused = || -> Result<bool> {
            let talk =
                |mut stream: TcpStream| stream.write_all(b"x").and_then(|()| stream.read_exact(&mut [0]));
            Ok(connect(&client.host.netns, server.at(8080)).and_then(talk).is_err())
        };
        assert!(refused()?);
        let problems = |mesh: &Mesh, node: &str| Ok(mesh.agent(node)?.status()?.problems);
        // A bracket that is not closed, in line 5.
        let first = mesh.agent("n2")?.process().next_line();
        mesh.apply("policies", &denies.replace("{ app: server } }", "{ app: server }"))?;
        let named =
            |problems: &Vec<String>| problems.iter().any(|problem| problem.contains("policies.yaml:"));
        for node in ["n1", "n2"] {
            let said = wait("the broken file", || problems(mesh, node), named)?;
            let problem = said.iter().find(|problem| problem.contains("policies.yaml:")).context("it")?;
            let place = problem.split("policies.yaml:").nth(1).context("a place")?;
            let numbers: Vec<&str> = place.split(':').take(2).collect();
            let line: u32 = numbers[0].parse().with_context(|| problem.clone())?;
            numbers[1].trim().parse::<u32>().with_context(|| problem.clone())?;
            assert!((5..=6).contains(&line), "{problem}");
        }
        let said_once = |line: &str| line.contains("policies.yaml:") && line.contains("WARN");
        mesh.agent("n2")?.process().wait_for_line_after(first, "its line in the log", said_once)?;
        assert!(refused()?, "it is in force as it last was");
        // The others go on.
        let other = mesh.add_pod(PodSpec::new("n2", "shop", "other"))?;
        let _other = Server::start(&other.host.netns, 8080, Behaviour::Echo)?;
        mesh.settle()?;
        exchange(&client, other.at(8080), 5)?;
        let said = mesh.agent("n2")?.process().log().iter().filter(|line| said_once(line)).count();
        assert_eq!(said, 1, "not again at each change");
        let page = page(mesh, "n2", "text/plain")?;
        assert!(page.sum("adit_object_errors_total", &[]) >= 1.0, "{page:?}");

        mesh.apply("policies", denies)?;
        wait("it is mended", || problems(mesh, "n2"), |problems| problems.is_empty())?;
        mesh.remove_object("policies")?;
        wait("the policy is gone", refused, |refused| !refused).map(drop)
    })
}
