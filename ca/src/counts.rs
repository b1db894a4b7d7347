//! What the CA has done since it started: issued, refused by word, connections dropped by cause.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::refusal::Refusal;

/// Counters; all only grow.
#[derive(Debug, Default)]
pub struct Counts {
    issued: AtomicU64,
    refused: [AtomicU64; Refusal::WORDS.len()],
    dropped: [AtomicU64; Dropped::ALL.len()],
}

/// Why a connection was dropped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Dropped {
    /// As many as there may be are open.
    TooMany,
    /// As many as there may be from one address are open.
    TooManyOfOne,
    /// The TLS handshake did not finish in time.
    HandshakeTimeout,
    /// The TLS handshake failed.
    Handshake,
    /// No known caller asked for anything in time.
    Unknown,
    /// A known caller's did not end in time when it was told to.
    Stuck,
}

impl Dropped {
    const ALL: [Self; 6] = [
        Self::TooMany,
        Self::TooManyOfOne,
        Self::HandshakeTimeout,
        Self::Handshake,
        Self::Unknown,
        Self::Stuck,
    ];

    /// One word for log and status.
    pub fn word(self) -> &'static str {
        match self {
            Self::TooMany => "too_many",
            Self::TooManyOfOne => "too_many_of_one",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::Handshake => "handshake",
            Self::Unknown => "unknown",
            Self::Stuck => "stuck",
        }
    }
}

/// The counters at one moment; what is zero is left out.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Counted {
    /// Certificates issued.
    pub issued: u64,
    /// Requests refused, by word.
    pub refused: BTreeMap<String, u64>,
    /// Connections dropped, by cause.
    pub dropped: BTreeMap<String, u64>,
}

impl Counts {
    /// Counts a request's result.
    pub(crate) fn request<T>(&self, result: &Result<T, Refusal>) {
        match result {
            Ok(_) => {
                self.issued.fetch_add(1, Ordering::Relaxed);
            }
            Err(refusal) => {
                let at = Refusal::WORDS.iter().position(|word| *word == refusal.word());
                if let Some(count) = at.and_then(|at| self.refused.get(at)) {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    /// Counts a dropped connection.
    pub(crate) fn dropped(&self, why: Dropped) {
        let at = Dropped::ALL.iter().position(|other| *other == why);
        if let Some(count) = at.and_then(|at| self.dropped.get(at)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Requests by result: `issued`, and every word of a refusal.
    pub(crate) fn requests(&self) -> impl Iterator<Item = (&'static str, u64)> {
        std::iter::once(("issued", self.issued.load(Ordering::Relaxed))).chain(self.refusals())
    }

    /// Dropped connections by every cause.
    pub(crate) fn drops(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let drops = Dropped::ALL.iter().zip(&self.dropped);
        drops.map(|(why, count)| (why.word(), count.load(Ordering::Relaxed)))
    }

    fn refusals(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let refusals = Refusal::WORDS.iter().zip(&self.refused);
        refusals.map(|(word, count)| (*word, count.load(Ordering::Relaxed)))
    }

    /// All counters now.
    pub fn now(&self) -> Counted {
        let some = |(word, count): (&str, u64)| (count > 0).then(|| (word.to_owned(), count));
        Counted {
            issued: self.issued.load(Ordering::Relaxed),
            refused: self.refusals().filter_map(some).collect(),
            dropped: self.drops().filter_map(some).collect(),
        }
    }
}
