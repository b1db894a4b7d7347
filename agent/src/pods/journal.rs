//! What a restarted agent must know of the sandboxes before it: one file each, on tmpfs.
//!
//! Written whole and renamed into place, so a kill at any point leaves the file of before or of after. An entry of another
//! boot is dropped, whatever version wrote it: its namespace is gone. Nothing else is: what cannot be read, another
//! version's entry first of all, stays until its sandbox goes and is counted, and what is named otherwise than an entry
//! belongs to somebody else.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use adit_core::net::SandboxId;
use adit_proto::SpiffeId;
use adit_proto::cni::{ContainerId, IfName, PodRef};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::redirect::Backend;

/// Raised when an older agent would misread a file. Every version's file has `version` and `boot`.
const VERSION: u16 = 1;
/// The longest file, in bytes: ten times what a pod with 100 skipped ranges needs.
const ENTRY_LEN_MAX: u64 = 64 * 1024;
const SUFFIX: &str = ".json";
/// Before the name of an entry that is being written: the name of an entry begins with a letter or digit.
const TEMP_PREFIX: char = '.';

/// The folder of entries.
#[derive(Clone, Debug)]
pub(super) struct Journal {
    dir: PathBuf,
    boot: String,
}

/// One sandbox, as it is kept.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Entry {
    /// Which of the sandboxes of this boot it is, by arrival: of two of one pod the later one is the pod's.
    #[serde(default)]
    pub(super) arrival: u64,
    pub(super) container_id: ContainerId,
    pub(super) ifname: IfName,
    pub(super) pod: PodRef,
    pub(super) netns: PathBuf,
    /// Of `netns`: a path may be used again.
    pub(super) inode: u64,
    pub(super) ips: Vec<IpAddr>,
    /// What the agent's dials in the pod are marked with; the rules that stand name it.
    pub(super) mark: u32,
    /// As what it is, or is about to be, captured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) captured: Option<Captured>,
    /// Which iptables holds its rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) backend: Option<Backend>,
    /// Settings of its namespace as they were: path below /proc/sys, value.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) sysctls_before: Vec<(String, String)>,
}

/// How a sandbox is captured.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Captured {
    pub(super) identity: SpiffeId,
    #[serde(default)]
    pub(super) skip_outbound_ports: Vec<(u16, u16)>,
    #[serde(default)]
    pub(super) skip_outbound_cidrs: Vec<IpNet>,
    #[serde(default)]
    pub(super) skip_inbound_ports: Vec<(u16, u16)>,
}

/// A file.
#[derive(Serialize)]
struct Kept<E> {
    version: u16,
    boot: String,
    #[serde(flatten)]
    entry: E,
}

/// What every version's file says.
#[derive(Deserialize)]
struct Head {
    version: u16,
    boot: String,
}

/// What a file of another version may say, as far as one can tell.
#[derive(Deserialize)]
struct Interface {
    ifname: IfName,
}

/// What the journal holds at a start.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    /// Every entry of this boot, in order of arrival.
    pub(super) entries: Vec<Entry>,
    /// What is named as an entry and cannot be used, by sandbox: of which interface it is, where that can be read.
    pub(super) unread: BTreeMap<SandboxId, Option<IfName>>,
}

/// What a file of the folder is.
enum Found {
    /// An entry of this boot, last written then.
    Entry(SystemTime, Box<Entry>),
    /// What is of no use to anybody any more, by its name and its text.
    Old,
    /// Named as an entry, and none that can be used.
    Unread(Unread),
    /// None of ours.
    Other,
}

/// Why an entry cannot be used, and of which interface it seems to be.
struct Unread {
    why: String,
    ifname: Option<IfName>,
}

impl Journal {
    /// The journal in `dir`, which is made if need be (0700). `boot` names the kernel's present boot.
    pub(super) fn open(dir: &Path, boot: &str) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        Ok(Self { dir: dir.to_owned(), boot: boot.to_owned() })
    }

    /// What there is of this boot; drops what is of another. What cannot be used stays and is said: it must not keep the
    /// other pods from being taken up.
    pub(super) fn load(&self) -> io::Result<Loaded> {
        let mut entries = Vec::new();
        let mut unread = BTreeMap::new();
        for file in fs::read_dir(&self.dir)? {
            let path = file?.path();
            let found = self.look_at(&path).unwrap_or_else(|error| Unread::because(error.to_string()));
            match found {
                Found::Entry(modified, entry) => entries.push((modified, *entry)),
                Found::Old => {
                    tracing::info!(file = %path.display(), "dropping what is no journal entry of this boot");
                    if let Err(error) = remove(&path) {
                        tracing::error!(file = %path.display(), %error, "cannot drop a file of the journal");
                    }
                }
                Found::Unread(Unread { why, ifname }) => {
                    let name = path.file_stem().unwrap_or_default().to_string_lossy();
                    unread.insert(SandboxId((*name).into()), ifname);
                    tracing::error!(
                        file = %path.display(),
                        why,
                        "cannot use an entry of the journal: its pod is not served, and the entry stays"
                    );
                }
                Found::Other => {}
            }
        }
        // An agent before this one may have written entries without their order.
        entries.sort_by_key(|(modified, entry)| (entry.arrival, *modified));
        Ok(Loaded { entries: entries.into_iter().map(|(_, entry)| entry).collect(), unread })
    }

    fn look_at(&self, path: &Path) -> io::Result<Found> {
        let Some(name) = path.file_name().and_then(OsStr::to_str).and_then(|name| name.strip_suffix(SUFFIX))
        else {
            return Ok(Found::Other);
        };
        let meta = fs::symlink_metadata(path)?;
        let id = name.strip_prefix(TEMP_PREFIX).unwrap_or(name);
        if !meta.is_file() || ContainerId::try_from(id.to_owned()).is_err() {
            return Ok(Found::Other);
        }
        if id != name {
            // Of an agent that was killed while it wrote.
            return Ok(Found::Old);
        }
        if meta.len() > ENTRY_LEN_MAX {
            return Ok(Unread::because(format!("it is longer than {ENTRY_LEN_MAX} bytes")));
        }
        let text = fs::read(path)?;
        let head: Head = serde_json::from_slice(&text)?;
        // Before the version: what no version can use any more needs none to be dropped, where the folder is on disk.
        if head.boot != self.boot {
            return Ok(Found::Old);
        }
        if head.version != VERSION {
            let said = serde_json::from_slice(&text).ok();
            return Ok(Found::Unread(Unread {
                why: format!("it is of version {}, not {VERSION}", head.version),
                ifname: said.map(|Interface { ifname }| ifname),
            }));
        }
        let entry: Entry = serde_json::from_slice(&text)?;
        if entry.container_id.as_str() != name {
            return Ok(Unread::because(format!("it is about {}", entry.container_id)));
        }
        Ok(Found::Entry(meta.modified()?, Box::new(entry)))
    }

    /// Keeps `entry` in place of what was kept of its sandbox.
    pub(super) fn write(&self, entry: &Entry) -> io::Result<()> {
        let text = serde_json::to_vec(&Kept { version: VERSION, boot: self.boot.clone(), entry })?;
        let name = entry.container_id.as_str();
        let temp = self.dir.join(format!("{TEMP_PREFIX}{name}{SUFFIX}"));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temp)?;
        file.write_all(&text)?;
        // No sync: what survives the process is in the page cache, and a reboot makes every entry void.
        fs::rename(&temp, self.dir.join(format!("{name}{SUFFIX}")))
    }

    /// Drops what is kept of a sandbox; succeeds if nothing is.
    pub(super) fn remove(&self, sandbox: &SandboxId) -> io::Result<()> {
        remove(&self.dir.join(format!("{sandbox}{SUFFIX}")))
    }
}

impl Unread {
    fn because(why: String) -> Found {
        Found::Unread(Self { why, ifname: None })
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    pub(super) fn entry(container: &str) -> Entry {
        Entry {
            arrival: 0,
            container_id: ContainerId::try_from(container.to_owned()).unwrap(),
            ifname: IfName::try_from("eth0".to_owned()).unwrap(),
            pod: PodRef { namespace: "shop".into(), name: "web".into(), uid: "u1".into() },
            netns: "/run/netns/x".into(),
            inode: 4_026_531_840,
            ips: vec!["10.0.0.7".parse().unwrap()],
            mark: 7,
            captured: Some(Captured {
                identity: "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap(),
                skip_outbound_ports: vec![(80, 80), (9000, 9100)],
                skip_outbound_cidrs: vec!["10.0.0.0/8".parse().unwrap()],
                skip_inbound_ports: vec![],
            }),
            backend: Some(Backend::Nft),
            sysctls_before: vec![("net/ipv4/tcp_migrate_req".into(), "0".into())],
        }
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_written_is_read_back_by_the_next_agent_of_the_same_boot() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(&dir.path().join("journal"), "boot-1").unwrap();
        journal.write(&entry("a")).unwrap();
        let changed = Entry { mark: 8, ..entry("a") };
        journal.write(&changed).unwrap();
        let next = Journal::open(&dir.path().join("journal"), "boot-1").unwrap();
        assert_eq!(next.load().unwrap().entries, [changed]);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&dir.path().join("journal")), 0o700);
        assert_eq!(mode(&dir.path().join("journal/a.json")), 0o600);
    }

    #[test]
    fn an_entry_of_another_boot_is_dropped_whatever_version_wrote_it() {
        let dir = tempfile::tempdir().unwrap();
        Journal::open(dir.path(), "boot-1").unwrap().write(&entry("a")).unwrap();
        let newer = format!(r#"{{"version":{},"boot":"boot-1","all":"is otherwise"}}"#, VERSION + 1);
        fs::write(dir.path().join("b.json"), newer).unwrap();
        let journal = Journal::open(dir.path(), "boot-2").unwrap();
        let loaded = journal.load().unwrap();
        assert_eq!((loaded.entries, loaded.unread), (vec![], BTreeMap::new()));
        assert_eq!(names(dir.path()), [""; 0]);
    }

    #[test]
    fn what_a_kill_or_damage_leaves_keeps_no_other_pod_from_being_taken_up() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path(), "boot-1").unwrap();
        journal.write(&entry("a")).unwrap();
        let whole = fs::read(dir.path().join("a.json")).unwrap();
        fs::write(dir.path().join(".b.json"), &whole[..whole.len() / 2]).unwrap();
        fs::write(dir.path().join("c.json"), &whole[..whole.len() / 2]).unwrap();
        // A file under another sandbox's name, and one beyond the bound.
        fs::write(dir.path().join("d.json"), &whole).unwrap();
        fs::write(dir.path().join("e.json"), vec![b' '; 70_000]).unwrap();
        let loaded = journal.load().unwrap();
        assert_eq!(loaded.entries, [entry("a")]);
        assert_eq!(loaded.unread, ["c", "d", "e"].map(|name| (SandboxId(name.into()), None)).into());
        assert_eq!(
            names(dir.path()),
            ["a.json", "c.json", "d.json", "e.json"],
            "only what is half written goes"
        );
    }

    #[test]
    fn what_is_somebody_else_s_stays() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path(), "boot-1").unwrap();
        journal.write(&entry("a")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("admin.sock")).unwrap();
        let _named_so = std::os::unix::net::UnixListener::bind(dir.path().join("s.json")).unwrap();
        fs::create_dir(dir.path().join("b.json")).unwrap();
        std::os::unix::fs::symlink("c.json", dir.path().join("c.json")).unwrap();
        fs::write(dir.path().join("namespaces.json"), r#"{"version":1,"namespaces":{}}"#).unwrap();
        fs::write(dir.path().join(".profile"), "").unwrap();
        let before = names(dir.path());
        assert_eq!(journal.load().unwrap().entries, [entry("a")]);
        assert_eq!(names(dir.path()), before);
    }

    #[test]
    fn an_entry_of_another_version_stays_for_the_agent_that_wrote_it() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path(), "boot-1").unwrap();
        journal.write(&entry("a")).unwrap();
        let newer = format!(r#"{{"version":{},"boot":"boot-1","all":"is otherwise"}}"#, VERSION + 1);
        fs::write(dir.path().join("b.json"), &newer).unwrap();
        let loaded = journal.load().unwrap();
        assert_eq!(loaded.entries, [entry("a")], "nothing is made of it");
        assert_eq!(loaded.unread, [(SandboxId("b".into()), None)].into());
        assert_eq!(fs::read_to_string(dir.path().join("b.json")).unwrap(), newer);
    }

    #[test]
    fn entries_come_in_the_order_of_their_sandboxes_not_of_their_last_change() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path(), "boot-1").unwrap();
        let [first, second] =
            [("b", 1), ("a", 2)].map(|(container, arrival)| Entry { arrival, ..entry(container) });
        for entry in [&first, &second, &first] {
            journal.write(entry).unwrap();
        }
        assert_eq!(journal.load().unwrap().entries, [first, second]);
    }

    #[test]
    fn removing_twice_succeeds() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path(), "boot-1").unwrap();
        journal.write(&entry("a")).unwrap();
        for _ in 0..2 {
            journal.remove(&SandboxId("a".into())).unwrap();
        }
        assert_eq!(names(dir.path()), [""; 0]);
    }
}
