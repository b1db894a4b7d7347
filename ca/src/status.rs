//! How the CA stands, for people and programs: `status.json` in the store, and what `adit-ca status` prints.
//!
//! Holds no secret. The running CA writes it; everything in it follows from its state and from what it counts.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::counts::Counted;
use crate::lifecycle::Agents;
use crate::root::{Broken, Certificate, Facts};
use crate::stamp::Stamp;
use crate::state::{Rotation, State};

/// How the CA stands.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Progress {
    /// Whose identities are issued.
    pub trust_domain: adit_proto::TrustDomain,
    /// `spiffe_sequence` of the bundle.
    pub generation: u64,
    /// The generation that lies published; none if nothing could be, or there is nowhere to.
    pub published: Option<u64>,
    /// The root that signs now.
    pub root: Shown,
    /// The certificate that signs leaves.
    pub issuing: Shown,
    /// Whether they were given by hand.
    pub given_by_hand: bool,
    /// Where a change of root stands.
    pub rotation: Step,
    /// Entries on the kill list.
    pub revoked: usize,
    /// What was done since the start.
    pub counted: Counted,
    /// The last requests that were taken up.
    pub outcomes: Vec<Outcome>,
}

/// A certificate, in short.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Shown {
    /// Its subject.
    pub subject: String,
    /// Its serial.
    pub serial: String,
    /// When it ends.
    pub not_after: Stamp,
}

/// Where a change of root stands.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case", tag = "step")]
pub enum Step {
    /// No change is going on.
    Steady,
    /// Old and new root are published; the old one signs.
    Announced {
        /// Since when.
        since: Stamp,
        /// The new root.
        next: Shown,
        /// What agents must have acknowledged.
        generation: u64,
        /// Who has not; none if that cannot be known.
        waiting_for: Option<Vec<String>>,
        /// How many agents there are, as far as that is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        agents: Option<usize>,
    },
    /// Old and new root are published; the new one signs.
    Overlap {
        /// Since when.
        since: Stamp,
        /// The old root.
        previous: Shown,
        /// When the old one is dropped.
        until: Stamp,
    },
}

/// What became of a request.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Outcome {
    /// The name of its file.
    pub request: String,
    /// When it was taken up.
    pub at: Stamp,
    /// Why it was refused; none if it was done.
    pub refused: Option<String>,
}

impl Progress {
    /// How `state` stands.
    pub fn of(
        state: &State,
        agents: &Agents,
        published: Option<u64>,
        counted: Counted,
        outcomes: &[Outcome],
    ) -> Result<Self, Broken> {
        let rotation = match &state.rotation {
            Rotation::Steady => Step::Steady,
            Rotation::Announced { next, generation, since, .. } => Step::Announced {
                since: *since,
                next: Shown::of(next.root()?)?,
                generation: *generation,
                waiting_for: agents
                    .behind(*generation)
                    .map(|nodes| nodes.into_iter().map(str::to_owned).collect()),
                agents: agents.count(),
            },
            Rotation::Overlap { previous, since, until } => {
                Step::Overlap { since: *since, previous: Shown::of(previous.root()?)?, until: *until }
            }
        };
        Ok(Self {
            trust_domain: state.trust_domain.clone(),
            generation: state.generation,
            published,
            root: Shown::of(state.authority.root()?)?,
            issuing: Shown::of(state.authority.issuing()?)?,
            given_by_hand: state.authority.root_key.is_none(),
            rotation,
            revoked: state.revoked.len(),
            counted,
            outcomes: outcomes.to_vec(),
        })
    }
}

impl Shown {
    fn of(certificate: &Certificate) -> Result<Self, Broken> {
        let Facts { not_after, serial, subject, .. } = Facts::read(certificate)?;
        Ok(Self { subject, serial: serial.to_string(), not_after })
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (serial {}, until {})", self.subject, self.serial, self.not_after)
    }
}

impl Step {
    /// Where the change stands, in one line: what is done, and for whom or what it waits.
    pub fn in_short(&self) -> String {
        match self {
            Self::Steady => "steady".to_owned(),
            Self::Announced { waiting_for: None, .. } => {
                "published; agents cannot be asked, only the time bound counts".to_owned()
            }
            Self::Announced { waiting_for: Some(nodes), agents, .. } => match nodes.as_slice() {
                [] => "published; all agents have it".to_owned(),
                nodes => {
                    let of = agents.map_or_else(String::new, |agents| format!(" of {agents}"));
                    format!("published; waiting for {}{of} agents: {}", nodes.len(), nodes.join(", "))
                }
            },
            Self::Overlap { until, .. } => {
                format!("signing with the new root; the old one is dropped after {until}")
            }
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { request, at, refused } = self;
        match refused {
            None => write!(f, "{at} {request}: done"),
            Some(why) => write!(f, "{at} {request}: refused: {why}"),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Steady => f.write_str("steady: one root"),
            Self::Announced { since, next, generation, waiting_for, agents: _ } => {
                write!(
                    f,
                    "1 of 3, announced {since}: old and new root are published, the old one signs\n  new root      {next}\n  waiting       until every agent has acknowledged generation {generation}"
                )?;
                match waiting_for {
                    None => f.write_str(" (agents cannot be asked: only the time bound counts)"),
                    Some(nodes) if nodes.is_empty() => f.write_str(": all have"),
                    Some(nodes) => write!(f, ": {} to go: {}", nodes.len(), nodes.join(", ")),
                }
            }
            Self::Overlap { since, previous, until } => write!(
                f,
                "2 of 3, since {since}: the new root signs, the old one is still trusted\n  old root      {previous}\n  waiting       for its last leaf to expire, at {until}; then it is dropped"
            ),
        }
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "trust domain    {}", self.trust_domain)?;
        writeln!(
            f,
            "root            {}{}",
            self.root,
            if self.given_by_hand { ", given by hand" } else { "" }
        )?;
        writeln!(f, "issuing         {}", self.issuing)?;
        match self.published {
            Some(published) => {
                writeln!(f, "bundle          generation {}, published {published}", self.generation)?
            }
            None => writeln!(f, "bundle          generation {}, not published", self.generation)?,
        }
        writeln!(f, "rotation        {}", self.rotation)?;
        writeln!(f, "revoked         {}", self.revoked)?;
        let refused: u64 = self.counted.refused.values().sum();
        writeln!(f, "since start     {} issued, {refused} refused", self.counted.issued)?;
        for (word, count) in &self.counted.refused {
            writeln!(f, "  refused       {count} {word}")?;
        }
        for outcome in &self.outcomes {
            let result = outcome.refused.as_deref().unwrap_or("done");
            writeln!(f, "request         {} {}: {result}", outcome.at, outcome.request)?;
        }
        Ok(())
    }
}
