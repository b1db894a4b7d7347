//! What a mesh has to say when a test fails: rules, sockets, agents, flows, logs.

use serde_json::Value;

use crate::netns::Netns;
use crate::process::Process;

use super::{Agent, Mesh};

/// How many lines of each log are shown.
const LOG_LINES: usize = 80;
/// How many flows of each agent are shown, a line each.
const FLOWS: usize = 40;
/// How much of one page, command or log is shown, its end: 80 lines of an access log are 32 KiB.
const SECTION_LEN_MAX: usize = 32 << 10;
/// How much of the error is said again at the end: enough for what was waited for.
const LAST_WORD_LEN_MAX: usize = 1000;

/// Prints it all on standard error, where libtest keeps it with the failed test.
///
/// Of a long output only the end may be kept: what tells most comes last, and `why` first and again at the very end.
pub(super) fn print(mesh: &Mesh, why: &str) {
    eprintln!("==== the mesh in {}, of which: {why}", mesh.folder().display());
    for pod in mesh.pods.values() {
        print_netns(&format!("pod {} ({})", pod.host.name, pod.uid), &pod.host.netns);
    }
    if let Some(ca) = &mesh.ca {
        print_log("the CA", ca.process());
    }
    for (node, agent) in &mesh.agents {
        print_pages(node, agent);
    }
    for (node, agent) in &mesh.agents {
        print_log(&format!("the agent of {node}"), agent.process());
    }
    let first_line = why.lines().next().unwrap_or_default();
    let word: String = first_line.chars().take(LAST_WORD_LEN_MAX).collect();
    eprintln!("==== end of the mesh in {}, of which: {word}", mesh.folder().display());
}

/// What an agent answers; one that does not answer is not asked again.
fn print_pages(node: &str, agent: &Agent) {
    for path in ["/status", "/edges", "/flows"] {
        match agent.admin(path) {
            Ok(said) if path == "/flows" => section(&format!("agent of {node}: {path}"), &flows(&said)),
            Ok(said) => section(&format!("agent of {node}: {path}"), &said),
            Err(error) => return section(&format!("agent of {node}: {path}"), &format!("{error:#}")),
        }
    }
}

/// The latest flows, a line each.
fn flows(page: &str) -> String {
    let Ok(read) = serde_json::from_str::<Value>(page) else { return page.to_owned() };
    let Some(all) = read["flows"].as_array() else { return page.to_owned() };
    let latest = all.iter().skip(all.len().saturating_sub(FLOWS));
    latest.map(|flow| format!("{flow}\n")).collect()
}

fn print_log(of: &str, process: &Process) {
    let log = process.log();
    let latest = log.iter().skip(log.len().saturating_sub(LOG_LINES));
    let text: String = latest.map(|line| format!("{line}\n")).collect();
    section(&format!("log of {of}, {} lines, the last", log.len()), &text);
}

fn print_netns(what: &str, netns: &Netns) {
    let commands: [&[&str]; 4] =
        [&["iptables-save"], &["ip6tables-save"], &["ip", "rule"], &["ss", "-tanpHO"]];
    for command in commands {
        let (program, args) = command.split_first().expect("every command has a program");
        let said = netns.command(program).args(args).output();
        let said = said.map_or_else(|error| format!("{error:#}"), |output| output.stdout + &output.stderr);
        section(&format!("{what}: {}", command.join(" ")), &said);
    }
}

fn section(title: &str, text: &str) {
    let shown = end_of(text, SECTION_LEN_MAX);
    match text.len() - shown.len() {
        0 => eprintln!("---- {title}\n{shown}"),
        left_out => eprintln!("---- {title} ({left_out} bytes are left out)\n{shown}"),
    }
}

/// The last `len` bytes of a text, or a few less: characters stay whole.
fn end_of(text: &str, len: usize) -> &str {
    let from = text.len().saturating_sub(len);
    let from = (from..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    &text[from..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_section_keeps_its_end_and_whole_characters() {
        assert_eq!(end_of("short", 10), "short");
        assert_eq!(end_of("äöü", 3), "ü");
        assert_eq!(end_of("", 3), "");
    }

    #[test]
    fn flows_are_shown_a_line_each_the_latest_last() {
        let page = serde_json::json!({ "flows": (0..FLOWS + 2).collect::<Vec<_>>() }).to_string();
        let shown = flows(&page);
        assert_eq!((shown.lines().count(), shown.lines().next()), (FLOWS, Some("2")));
        assert_eq!(flows("no JSON"), "no JSON");
    }
}
