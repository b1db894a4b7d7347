//! What the container runtime keeps of its CNI results: libcni's cache, a file for each network and sandbox.
//!
//! `/var/lib/cni/results/NETWORK-CONTAINER-IFNAME`. Entries stay behind after failed ADDs and crashes, so that one alone
//! proves little.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use adit_core::net::{PodUid, SandboxId};
use adit_proto::cni::ContainerId;
use serde::Deserialize;

use crate::pods::sandbox::IFNAME;

/// Files that are read, at most: one a network and sandbox, and those that were left.
const FILES_MAX: usize = 16_384;
/// The longest file, in bytes: it holds the network's configuration and the result of its plugins, some KiB.
const FILE_LEN_MAX: u64 = 256 * 1024;

/// One sandbox's.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Record {
    pub(super) sandbox: SandboxId,
    /// Of its namespace; older libcni does not write it down.
    pub(super) netns: Option<PathBuf>,
    pub(super) ips: Vec<IpAddr>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kept {
    container_id: String,
    if_name: String,
    #[serde(default)]
    netns: Option<String>,
    #[serde(default)]
    cni_args: Option<Vec<(String, String)>>,
    #[serde(default)]
    result: Option<Outcome>,
}

#[derive(Deserialize)]
struct Outcome {
    #[serde(default)]
    ips: Vec<Address>,
}

#[derive(Deserialize)]
struct Address {
    address: String,
}

/// The records of these pods, in all folders that are there. What cannot be read is none.
pub(super) fn of_pods(
    folders: &[PathBuf],
    wanted: impl Fn(&PodUid) -> bool,
) -> BTreeMap<PodUid, Vec<Record>> {
    let mut found: BTreeMap<PodUid, Vec<Record>> = BTreeMap::new();
    let files = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
    let ours = files.filter(|file| file.file_name().to_string_lossy().ends_with(IFNAME));
    for file in ours.take(FILES_MAX) {
        let Some((uid, record)) = read(&file.path()).filter(|(uid, _)| wanted(uid)) else { continue };
        let known = found.entry(uid).or_default();
        // A plugin that calls others keeps its own beside theirs.
        if !known.contains(&record) {
            known.push(record);
        }
    }
    found
}

fn read(path: &Path) -> Option<(PodUid, Record)> {
    let mut text = Vec::new();
    File::open(path).ok()?.take(FILE_LEN_MAX).read_to_end(&mut text).ok()?;
    parse(&text)
}

fn parse(text: &[u8]) -> Option<(PodUid, Record)> {
    let kept: Kept = serde_json::from_slice(text).ok()?;
    if kept.if_name != IFNAME {
        return None;
    }
    // Names a file of the journal.
    let sandbox = ContainerId::try_from(kept.container_id).ok()?;
    let args = kept.cni_args?;
    let (_, uid) = args.into_iter().find(|(key, _)| key == "K8S_POD_UID")?;
    let addresses = kept.result.into_iter().flat_map(|outcome| outcome.ips);
    let ips = addresses.filter_map(|ip| ip.address.split('/').next()?.parse().ok());
    let record = Record {
        sandbox: SandboxId(sandbox.as_str().into()),
        netns: kept.netns.filter(|path| path.starts_with('/')).map(PathBuf::from),
        ips: ips.collect(),
    };
    Some((PodUid(uid.into()), record))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As libcni 1.3 wrote it, the configuration cut.
    const KEPT: &str = r#"{"kind":"cniCacheV1","containerId":"c0ffee","config":"e30=","ifName":"eth0","networkName":"bridge",
        "netns":"/var/run/netns/cni-1","cniArgs":[["IgnoreUnknown","1"],["K8S_POD_NAMESPACE","shop"],["K8S_POD_NAME","web"],
        ["K8S_POD_INFRA_CONTAINER_ID","c0ffee"],["K8S_POD_UID","u1"]],"capabilityArgs":{"portMappings":[]},
        "result":{"cniVersion":"1.0.0","dns":{},"interfaces":[{"name":"cni0"}],
        "ips":[{"address":"10.1.0.7/24","gateway":"10.1.0.1","interface":2},{"address":"fd00::7/64"}],"routes":[]}}"#;

    fn record(netns: Option<&str>) -> (PodUid, Record) {
        let ips = vec!["10.1.0.7".parse().unwrap(), "fd00::7".parse().unwrap()];
        (
            PodUid("u1".into()),
            Record { sandbox: SandboxId("c0ffee".into()), netns: netns.map(Into::into), ips },
        )
    }

    #[test]
    fn a_record_names_pod_sandbox_namespace_and_addresses() {
        assert_eq!(parse(KEPT.as_bytes()), Some(record(Some("/var/run/netns/cni-1"))));
        let unsaid = KEPT.replace(r#""netns":"/var/run/netns/cni-1","#, "");
        assert_eq!(parse(unsaid.as_bytes()), Some(record(None)));
    }

    #[test]
    fn what_is_no_pod_s_eth0_is_no_record() {
        for (from, to) in [
            ("\"eth0\"", "\"net1\""),
            ("K8S_POD_UID", "K8S_POD_NUMBER"),
            ("\"c0ffee\",\"config\"", "\"../../etc\",\"config\""),
            (r#""containerId""#, r#""containerID""#),
            ("{", "["),
        ] {
            let other = KEPT.replacen(from, to, 1);
            assert_ne!(other, KEPT, "{from}");
            assert_eq!(parse(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn the_same_record_of_two_networks_is_one_and_damaged_files_are_none() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["bridge-c0ffee-eth0", "multus-c0ffee-eth0", "bridge-c0ffee-lo"] {
            fs::write(dir.path().join(name), KEPT).unwrap();
        }
        fs::write(dir.path().join("bridge-90e-eth0"), &KEPT[..60]).unwrap();
        fs::write(dir.path().join("bridge-b0b-eth0"), KEPT.replace("\"u1\"", "\"u2\"")).unwrap();
        let folders = [dir.path().join("none"), dir.path().to_owned()];
        let found = of_pods(&folders, |uid| &*uid.0 == "u1");
        let (uid, only) = record(Some("/var/run/netns/cni-1"));
        assert_eq!(found, [(uid, vec![only])].into());
    }
}
