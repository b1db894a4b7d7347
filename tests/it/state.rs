//! What a pod's namespace holds, as others' programs see it: rules, listeners, routes, sysctls.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use adit_tests::mesh::Pod;
use anyhow::{Context, Result};

/// The ports of the agent in a pod.
pub(crate) const OWN_PORTS: [u16; 3] = [15001, 15006, 15008];
/// The sysctls that capture sets.
pub(crate) const SYSCTLS: [&str; 4] = [
    "net/ipv4/tcp_migrate_req",
    "net/ipv4/tcp_fwmark_accept",
    "net/netfilter/nf_conntrack_tcp_be_liberal",
    "net/netfilter/nf_conntrack_tcp_timeout_time_wait",
];

/// All rules of both families by one back end, without comments and counters.
pub(crate) fn rules_of(pod: &Pod, backend: &str) -> Result<String> {
    let mut text = String::new();
    for family in ["iptables", "ip6tables"] {
        let saved = pod.host.netns.command(format!("{family}-{backend}-save")).ok()?;
        for line in saved.lines().filter(|line| !line.starts_with('#')) {
            let line = line.split(" [").next().unwrap_or(line);
            text.push_str(&format!("{family} {line}\n"));
        }
    }
    Ok(text)
}

/// The rules of the default back end.
pub(crate) fn rules(pod: &Pod) -> Result<String> {
    rules_of(pod, "nft")
}

/// The listening sockets at the agent's ports, by family and port, with their number.
pub(crate) fn own_listeners(pod: &Pod) -> Result<BTreeMap<(char, u16), usize>> {
    let mut found = BTreeMap::new();
    for family in ['4', '6'] {
        let listed = pod.host.netns.command("ss").args([format!("-tlnH{family}")]).ok()?;
        for line in listed.lines() {
            let local = line.split_whitespace().nth(3).context("a line of ss names the local address")?;
            let port = local.rsplit(':').next().and_then(|port| port.parse().ok());
            if let Some(port) = port.filter(|port| OWN_PORTS.contains(port)) {
                *found.entry((family, port)).or_insert(0) += 1;
            }
        }
    }
    Ok(found)
}

/// The policy rules and their table, of both families.
pub(crate) fn routes(pod: &Pod) -> Result<String> {
    let netns = &pod.host.netns;
    let mut text = String::new();
    for family in ["-4", "-6"] {
        text.push_str(&netns.command("ip").args([family, "rule"]).ok()?);
        // A table that nothing was ever put in does not exist, which is an error to `ip`.
        text.push_str(&netns.command("ip").args([family, "route", "show", "table", "100"]).output()?.stdout);
    }
    Ok(text)
}

/// The values of the sysctls that this kernel has.
pub(crate) fn sysctls(pod: &Pod) -> Result<BTreeMap<&'static str, String>> {
    let read = || {
        let value = |key: &&'static str| fs::read_to_string(Path::new("/proc/sys").join(key));
        SYSCTLS.into_iter().filter_map(|key| Some((key, value(&key).ok()?.trim().to_owned()))).collect()
    };
    pod.host.netns.run(read)
}

/// Rules, routes and sysctls, without the built-in chains' policies and the tables' frames: a table that was empty may be
/// there now.
pub(crate) fn everything(pod: &Pod) -> Result<String> {
    let mut text = String::new();
    for rules in ["nft", "legacy"].map(|backend| rules_of(pod, backend)) {
        let rules = rules?;
        let is_frame = |line: &str| line.contains(" *") || line.contains(" :") || line.ends_with("COMMIT");
        rules.lines().filter(|line| !is_frame(line)).for_each(|line| text.push_str(&format!("{line}\n")));
    }
    Ok(format!("{text}{}{:?}", routes(pod)?, sysctls(pod)?))
}

/// Fails unless everything that captures a pod stands in its namespace.
pub(crate) fn assert_captured(pod: &Pod) -> Result<()> {
    let rules = rules(pod)?;
    for family in ["iptables", "ip6tables"] {
        for rule in [
            "--to-ports 15001",
            "--to-ports 15006",
            "--reject-with",
            "-j CT --zone",
            "--restore-mark",
            "-j MARK",
        ] {
            let there = rules.lines().any(|line| line.starts_with(family) && line.contains(rule));
            assert!(there, "{family} has no {rule}:\n{rules}");
        }
    }
    let listening: BTreeSet<(char, u16)> = own_listeners(pod)?.into_keys().collect();
    let all: BTreeSet<(char, u16)> =
        ['4', '6'].into_iter().flat_map(|family| OWN_PORTS.map(|port| (family, port))).collect();
    assert_eq!(listening, all, "of {}", pod.spec.name);
    let routes = routes(pod)?;
    assert_eq!(routes.matches("lookup 100").count(), 2, "{routes}");
    assert_eq!(routes.matches("dev lo").count(), 2, "{routes}");
    Ok(())
}

/// Fails if anything of ours is in a pod's namespace.
pub(crate) fn assert_untouched(pod: &Pod) -> Result<()> {
    for backend in ["nft", "legacy"] {
        let rules = rules_of(pod, backend)?;
        assert!(!rules.contains("ADIT"), "{rules}");
    }
    assert_eq!(own_listeners(pod)?, BTreeMap::new());
    let routes = routes(pod)?;
    assert!(!routes.contains("lookup 100") && !routes.contains("dev lo"), "{routes}");
    Ok(())
}
