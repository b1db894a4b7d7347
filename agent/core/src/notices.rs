//! What is said of a pod's capture on the pod itself: its Events.
//!
//! Decides from how a pod stands, as the admin API shows it too, what is news to whoever reads `kubectl describe pod`: that it
//! was captured or released, and why it is not captured though the labels want it. A restart of the agent is no news.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::discover;
use crate::net::{PodKey, PodUid};
use crate::pods::State;
use crate::time::Mono;

/// How long a pod may lack something, a certificate for one, before that is said.
pub const LACKING_FOR: Duration = Duration::from_secs(10);
/// How many looks for a running pod's sandbox may be in vain before that is said: within 3 s. Both the runtime and the API
/// server need a moment where a sandbox is re-made.
const LOOKS_IN_VAIN: u32 = 3;

/// The reason of an Event.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Word {
    /// It is captured.
    Captured,
    /// It is to be captured and is not.
    CaptureFailed,
    /// It is not captured any more, as the labels want it.
    Released,
    /// A skip annotation cannot be understood: nothing is skipped.
    SkipAnnotationInvalid,
    /// A port is open in clear to everybody by a skip annotation, though PeerAuthentication says STRICT.
    SkippedInboundPortUnderStrict,
    /// It started while no agent could capture it.
    StartedBeforeCaptured,
}

impl Word {
    /// As it stands in the Event.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Captured => "Captured",
            Self::CaptureFailed => "CaptureFailed",
            Self::Released => "Released",
            Self::SkipAnnotationInvalid => "SkipAnnotationInvalid",
            Self::SkippedInboundPortUnderStrict => "SkippedInboundPortUnderStrict",
            Self::StartedBeforeCaptured => "StartedBeforeCaptured",
        }
    }

    /// Whether the Event is of type `Warning`, rather than `Normal`.
    pub fn is_warning(self) -> bool {
        match self {
            Self::Captured | Self::Released => false,
            Self::CaptureFailed
            | Self::SkipAnnotationInvalid
            | Self::SkippedInboundPortUnderStrict
            | Self::StartedBeforeCaptured => true,
        }
    }
}

/// One Event on a pod.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Notice {
    /// What it is about.
    pub word: Word,
    /// In words.
    pub note: String,
}

/// How a sandbox stands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Standing {
    /// In its life.
    pub state: State,
    /// The labels want it captured.
    pub enrolled: bool,
    /// As whom.
    pub identity: Option<String>,
    /// What it lacks.
    pub lacking: Option<String>,
    /// What went wrong last, and is not right again.
    pub trouble: Option<Arc<str>>,
    /// Connections that are older than its capture.
    pub older: usize,
    /// Ports that are open though they should not be, one sentence each.
    pub open: Vec<String>,
    /// What of its skip annotations, or its namespace's, cannot be understood.
    pub invalid_skip: Option<Arc<str>>,
    /// It started while no agent could capture it.
    pub late: bool,
}

/// What has been said.
#[derive(Debug, Default)]
pub struct Notices {
    sandboxes: BTreeMap<PodKey, Said>,
    sought: BTreeMap<PodUid, String>,
}

#[derive(Debug, Default)]
struct Said {
    captured: bool,
    late: bool,
    failed: Option<String>,
    lacking: Option<(String, Mono)>,
    open: BTreeSet<String>,
    invalid_skip: Option<Arc<str>>,
}

impl Notices {
    /// What is news of a sandbox at `now`. To be asked at every change, and every few seconds.
    pub fn of(&mut self, now: Mono, key: &PodKey, standing: &Standing) -> Vec<Notice> {
        let said = self.sandboxes.entry(key.clone()).or_insert_with(|| Said {
            // Of before a restart, when it was said.
            captured: standing.state == State::Adopted,
            ..Said::default()
        });
        said.update(now, standing)
    }

    /// What is news of a pod whose sandbox is looked for.
    pub fn of_sought(&mut self, seen: &discover::Seen<'_>) -> Option<Notice> {
        let why = seen.why.filter(|_| seen.looks >= LOOKS_IN_VAIN)?.to_string();
        if self.sought.get(&seen.sought.uid).is_some_and(|said| *said == why) {
            return None;
        }
        self.sought.insert(seen.sought.uid.clone(), why.clone());
        Some(failed(&why))
    }

    /// Forgets what was said of others than these.
    pub fn keep(&mut self, sandbox: impl Fn(&PodKey) -> bool, sought: impl Fn(&PodUid) -> bool) {
        self.sandboxes.retain(|key, _| sandbox(key));
        self.sought.retain(|uid, _| sought(uid));
    }
}

impl Said {
    fn update(&mut self, now: Mono, standing: &Standing) -> Vec<Notice> {
        let mut news = Vec::new();
        if standing.state == State::Live {
            if !self.captured {
                self.captured = true;
                news.push(captured(standing));
            }
            if standing.late && !std::mem::replace(&mut self.late, true) {
                news.push(Notice { word: Word::StartedBeforeCaptured, note: LATE.to_owned() });
            }
            (self.failed, self.lacking) = (None, None);
        } else if standing.enrolled {
            news.extend(self.failure(now, standing));
        } else if standing.state == State::Added {
            (self.failed, self.lacking) = (None, None);
            if std::mem::take(&mut self.captured) {
                let note =
                    "The pod has left the mesh: its connections go unencrypted, as its labels want it.";
                news.push(Notice { word: Word::Released, note: note.to_owned() });
            }
        }
        let open: BTreeSet<String> = standing.open.iter().cloned().collect();
        news.extend(
            open.difference(&self.open)
                .map(|port| Notice { word: Word::SkippedInboundPortUnderStrict, note: port.clone() }),
        );
        self.open = open;
        // Of a pod that is not to be captured it means nothing.
        let invalid = standing.invalid_skip.clone().filter(|_| standing.enrolled);
        if invalid != self.invalid_skip {
            news.extend(invalid.as_ref().map(|invalid| Notice {
                word: Word::SkipAnnotationInvalid,
                note: format!("{invalid}; nothing is skipped by it"),
            }));
            self.invalid_skip = invalid;
        }
        news
    }

    fn failure(&mut self, now: Mono, standing: &Standing) -> Option<Notice> {
        match (&self.lacking, &standing.lacking) {
            (Some((said, _)), Some(lacking)) if said == lacking => {}
            (_, lacking) => self.lacking = lacking.clone().map(|lacking| (lacking, now)),
        }
        let long = self.lacking.as_ref().filter(|(_, from)| now.since(*from) >= LACKING_FOR);
        let why = match (&standing.trouble, long) {
            (Some(trouble), _) => trouble.to_string(),
            (None, Some((lacking, _))) => lacking.clone(),
            (None, None) => return None,
        };
        if self.failed.as_ref() == Some(&why) {
            return None;
        }
        // Said of one that was captured: then it is news when it is again.
        self.captured = false;
        self.failed = Some(why.clone());
        Some(failed(&why))
    }
}

const LATE: &str = "The pod started while the agent of its node could not capture it: until now its connections went unencrypted.";

fn captured(standing: &Standing) -> Notice {
    let identity = standing.identity.as_ref().map(|id| format!(" as {id}")).unwrap_or_default();
    let older = match standing.older {
        0 => String::new(),
        1 => "; 1 connection that was open before goes on unencrypted until it ends".to_owned(),
        more => format!("; {more} connections that were open before go on unencrypted until they end"),
    };
    Notice { word: Word::Captured, note: format!("The pod is in the mesh{identity}{older}.") }
}

fn failed(why: &str) -> Notice {
    Notice {
        word: Word::CaptureFailed,
        note: format!("The pod is to be in the mesh and is not captured: {why}"),
    }
}

#[cfg(test)]
mod tests;
