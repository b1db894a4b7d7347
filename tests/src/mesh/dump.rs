//! What a mesh has to say when a test fails: agents, rules, sockets, logs.

use crate::netns::Netns;
use crate::process::Process;

use super::Mesh;

/// How many lines of each log are shown.
const LOG_LINES: usize = 80;

/// Prints it all on standard error, where libtest keeps it with the failed test.
pub(super) fn print(mesh: &Mesh) {
    eprintln!("==== the mesh in {}", mesh.folder().display());
    for (node, agent) in &mesh.agents {
        for path in ["/status", "/edges", "/flows"] {
            let said = agent.admin(path).unwrap_or_else(|error| format!("{error:#}"));
            eprintln!("---- agent of {node}: {path}\n{said}");
        }
        print_log(&format!("agent of {node}"), agent.process());
    }
    if let Some(ca) = &mesh.ca {
        print_log("CA", ca.process());
    }
    for pod in mesh.pods.values() {
        print_netns(&format!("pod {} ({})", pod.host.name, pod.uid), &pod.host.netns);
    }
    eprintln!("==== end of the mesh");
}

fn print_log(of: &str, process: &Process) {
    let log = process.log();
    eprintln!("---- log of the {of}, {} lines, the last:", log.len());
    for line in log.iter().skip(log.len().saturating_sub(LOG_LINES)) {
        eprintln!("{line}");
    }
}

fn print_netns(what: &str, netns: &Netns) {
    let commands: [&[&str]; 4] =
        [&["iptables-save"], &["ip6tables-save"], &["ss", "-tanpHO"], &["ip", "rule"]];
    for command in commands {
        let (program, args) = command.split_first().expect("every command has a program");
        let said = netns.command(program).args(args).output();
        let said = said.map_or_else(|error| format!("{error:#}"), |output| output.stdout + &output.stderr);
        eprintln!("---- {what}: {}\n{said}", command.join(" "));
    }
}
