//! What the other agents say of themselves, and the CA's trust bundle: the files that are not the user's.
//!
//! Pure: is told what was read, says what changed. A file that cannot be read leaves things as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use adit_core::net::{NodeName, PodUid};
use adit_core::world::Change;
use adit_objects::trust::{self, ConfigMap};
use adit_objects::yaml::{self, Position};
use adit_proto::TrustDomain;
use adit_proto::status::NodeStatus;

use super::files::Reading;
use super::trouble::{Trouble, Wrong};

/// The other agents' status files.
#[derive(Debug)]
pub(super) struct Statuses {
    /// Whose own file is not read: what it says is known first hand. None while another agent writes it.
    own: Option<NodeName>,
    known: BTreeMap<PathBuf, Status>,
}

#[derive(Debug, Default)]
struct Status {
    captured: BTreeSet<PodUid>,
    /// Its file is gone, by an accident as likely as not: its agent writes it again. Until then what it said last stays
    /// in force, or its pods would be dialled in clear.
    is_gone: bool,
    trouble: Option<Trouble>,
}

impl Statuses {
    pub(super) fn new(own: NodeName) -> Self {
        Self { own: Some(own), known: BTreeMap::new() }
    }

    /// Reads every file from now on, or, with `own`, all but that node's.
    pub(super) fn set_own(&mut self, own: Option<NodeName>) {
        if let Some(own) = &own {
            let is_own = |path: &Path| path.file_stem().is_some_and(|stem| stem == &*own.0);
            self.known.retain(|path, _| !is_own(path));
        }
        self.own = own;
    }

    /// Takes what was read of one file. Returns what the World should be told.
    pub(super) fn update(&mut self, path: &Path, reading: &Reading) -> Option<Change> {
        let node = NodeName(path.file_stem()?.to_str()?.into());
        if self.own.as_ref() == Some(&node) {
            return None;
        }
        let wrong = match reading {
            Reading::Gone => {
                let known = self.known.get_mut(path)?;
                if known.captured.is_empty() {
                    self.known.remove(path);
                    return None;
                }
                known.is_gone = true;
                fault(None, Wrong::Status("is gone; its pods are taken for captured still".into()))
            }
            Reading::Unreadable(message) => fault(None, Wrong::Unreadable(message.clone())),
            Reading::Text(text) => match parse(text, &node) {
                Err(wrong) => wrong,
                Ok(pods) => {
                    let known = self.known.entry(path.to_path_buf()).or_default();
                    known.trouble = None;
                    known.is_gone = false;
                    if known.captured == pods {
                        return None;
                    }
                    known.captured.clone_from(&pods);
                    return Some(Change::Captured { node, pods });
                }
            },
        };
        let (at, what) = *wrong;
        let known = self.known.entry(path.to_path_buf()).or_default();
        known.trouble = Some(Trouble { file: path.to_path_buf(), at, what });
        None
    }

    /// Forgets nodes whose file is gone and of whose captured pods none is left. Returns what the World should be told,
    /// by file.
    pub(super) fn forget_gone(&mut self, is_there: impl Fn(&PodUid) -> bool) -> Vec<(PathBuf, Change)> {
        let over =
            self.known.extract_if(.., |_, known| known.is_gone && !known.captured.iter().any(&is_there));
        let released = |path: &Path| {
            let node = NodeName(path.file_stem()?.to_str()?.into());
            Some(Change::Captured { node, pods: BTreeSet::new() })
        };
        over.filter_map(|(path, _)| released(&path).map(|change| (path, change))).collect()
    }

    /// Whether the file of some node is gone.
    pub(super) fn has_gone(&self) -> bool {
        self.known.values().any(|known| known.is_gone)
    }

    /// Every file that is known.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.known.keys().map(PathBuf::as_path)
    }

    /// Everything that is wrong, by file.
    pub(super) fn troubles(&self) -> impl Iterator<Item = Trouble> {
        self.known.values().filter_map(|known| known.trouble.clone())
    }
}

/// What is wrong with a file, and where. Boxed: a result that is nearly always good should not carry its size.
pub(super) type Fault = Box<(Option<Position>, Wrong)>;

fn fault(at: impl Into<Option<Position>>, what: Wrong) -> Fault {
    Box::new((at.into(), what))
}

/// Reads a status file, and its captured pods.
fn parse(text: &str, node: &NodeName) -> Result<BTreeSet<PodUid>, Fault> {
    let status = read_status(text)?;
    if status.node != *node.0 {
        return Err(fault(None, Wrong::Status(format!("says that it is node {:?}'s", status.node))));
    }
    Ok(status.captured.into_iter().map(|uid| PodUid(uid.into())).collect())
}

/// Reads a status file.
pub(super) fn read_status(text: &str) -> Result<NodeStatus, Fault> {
    let mut documents = yaml::read(text).map_err(|error| fault(error.at, Wrong::Yaml(error.message)))?;
    let document = documents.pop().ok_or_else(|| fault(None, Wrong::Status("is empty".into())))?;
    serde_json::from_value(document.value)
        .map_err(|error| fault(document.at, Wrong::Status(error.to_string())))
}

/// The trust bundle's file.
#[derive(Debug, Default)]
pub(super) struct Bundle {
    /// The `spiffe_sequence` of the one that handshakes use: one with a root or a list that cannot be read is handed on
    /// from here, and refused by who uses it.
    in_force: u64,
    troubles: Vec<Trouble>,
}

impl Bundle {
    /// Is told which bundle is in force.
    pub(super) fn acknowledge(&mut self, generation: u64) {
        self.in_force = generation;
    }

    /// Takes what was read of the file. A bundle that is gone is one that cannot be read: nobody is untrusted for it. An
    /// older one than that in force is not taken: a backup, or a roll-back that brings a revoked peer back.
    pub(super) fn update(&mut self, path: &Path, reading: Reading, own: &TrustDomain) -> Option<Change> {
        let trouble = |at, what| Trouble { file: path.to_path_buf(), at, what };
        let read = match reading {
            Reading::Gone => {
                self.troubles.clear();
                return None;
            }
            Reading::Unreadable(message) => Err(fault(None, Wrong::Unreadable(message))),
            Reading::Text(text) => parse_bundle(&text, own),
        };
        match read {
            Ok((at, read)) if read.bundle.generation < self.in_force => {
                let what = Wrong::OlderTrust { found: read.bundle.generation, newest: self.in_force };
                self.troubles = vec![trouble(Some(at), what)];
                None
            }
            Ok((at, read)) => {
                let bad = read.problems.into_iter().map(|bad| trouble(Some(at), Wrong::Revocation(bad)));
                self.troubles = bad.collect();
                Some(Change::TrustBundle(read.bundle))
            }
            Err(fault) => {
                let (at, what) = *fault;
                self.troubles = vec![trouble(at, what)];
                None
            }
        }
    }

    /// Everything that is wrong with it.
    pub(super) fn troubles(&self) -> impl Iterator<Item = Trouble> {
        self.troubles.iter().cloned()
    }
}

fn parse_bundle(text: &str, own: &TrustDomain) -> Result<(Position, trust::Read), Fault> {
    let documents = yaml::read(text).map_err(|error| fault(error.at, Wrong::Yaml(error.message)))?;
    let is_config_map = |kind: &serde_json::Value| kind.get("kind").is_some_and(|kind| kind == "ConfigMap");
    let document = documents.into_iter().find(|document| is_config_map(&document.value));
    let document = document.ok_or_else(|| fault(None, Wrong::NoConfigMap))?;
    let at = document.at;
    let config_map: ConfigMap =
        serde_json::from_value(document.value).map_err(|error| fault(at, Wrong::Yaml(error.to_string())))?;
    let read = trust::translate(&config_map, own).map_err(|error| fault(at, Wrong::Trust(error)))?;
    Ok((at, read))
}
