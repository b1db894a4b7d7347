//! Why rules, routes or sysctls could not be read or written.

use std::io;
use std::time::Duration;

use adit_core::redirect::{Drift, Family};

use crate::netns::NetnsError;

/// Why rules could not be read, written or taken out.
#[derive(Debug, thiserror::Error)]
pub enum RedirectError {
    /// The namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// Neither back end of iptables works here: no program, or no kernel support.
    #[error("neither iptables-nft nor iptables-legacy works here")]
    NoBackend {
        /// What iptables-legacy, tried last, said.
        #[source]
        source: Box<Self>,
    },
    /// A program cannot be started.
    #[error("cannot run {program}")]
    Program {
        /// Its name.
        program: &'static str,
        /// NotFound: it is not installed.
        #[source]
        source: io::Error,
    },
    /// A program failed.
    #[error("{program} failed: {stderr}")]
    Refused {
        /// Its name.
        program: &'static str,
        /// The end of what it said, on one line.
        stderr: String,
    },
    /// A program did not end in time, and was killed.
    #[error("{program} did not end within {} s", within.as_secs())]
    Slow {
        /// Its name.
        program: &'static str,
        /// The time that it had.
        within: Duration,
    },
    /// A program printed more than is read.
    #[error("{program} printed more than {limit} bytes")]
    TooLong {
        /// Its name.
        program: &'static str,
        /// What is read at most.
        limit: u64,
    },
    /// The policy rule or its route could not be read, set or taken out.
    #[error("cannot {step} the {family} policy route")]
    Route {
        /// Of the route.
        family: Family,
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// iptables took the rules, but prints other ones: they do not mean what was wanted.
    #[error("iptables does not hold what it was given: {}", list(.0))]
    NotAsWritten(Vec<Drift>),
    /// No thread can be started.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// A socket for the kernel's announcements or questions could not be opened or read.
    #[error("netlink")]
    Netlink(#[source] io::Error),
}

impl RedirectError {
    /// Whether a program of a back end said, or its absence says, that the back end does not work here.
    pub(super) fn means_no_backend(&self) -> bool {
        match self {
            Self::Refused { .. } => true,
            Self::Program { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::Netns(_)
            | Self::NoBackend { .. }
            | Self::Slow { .. }
            | Self::TooLong { .. }
            | Self::Route { .. }
            | Self::NotAsWritten(_)
            | Self::Thread(_)
            | Self::Netlink(_) => false,
        }
    }
}

fn list(drift: &[Drift]) -> String {
    let words: Vec<String> = drift.iter().map(ToString::to_string).collect();
    words.join(", ")
}
