//! MACHINE: who is looked for, and when again.

use std::collections::BTreeMap;
use std::time::Duration;

use super::judge::{NotFound, Sought};
use crate::net::PodUid;
use crate::time::Mono;

/// The spans between looks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// After the first look in vain; doubled each time. The runtime may have made the namespace and not yet the first
    /// process, or the API server not know a new address yet: both are over within two seconds.
    pub first: Duration,
    /// The longest.
    pub max: Duration,
    /// Looks fall on multiples of this (of the span, where that is shorter), so that a hundred pods that cannot be found
    /// cost one look together: 50 µs a process of the node.
    pub together: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { first: Duration::from_secs(1), max: Duration::from_secs(60), together: Duration::from_secs(8) }
    }
}

/// A pod that is looked for, for those who look on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Seen<'s> {
    /// Which.
    pub sought: &'s Sought,
    /// How many looks were in vain.
    pub looks: u32,
    /// Why the last one was; none before its first end.
    pub why: Option<&'s NotFound>,
}

#[derive(Debug)]
struct Search {
    sought: Sought,
    looks: u32,
    /// When to look; none while somebody does.
    at: Option<Mono>,
    why: Option<NotFound>,
}

/// Everybody who is looked for.
#[derive(Debug)]
pub struct Searches {
    limits: Limits,
    all: BTreeMap<PodUid, Search>,
}

impl Searches {
    /// Nobody.
    pub fn new(limits: Limits) -> Self {
        Self { limits, all: BTreeMap::new() }
    }

    /// From now on these are looked for, and nobody else; who is new, or has other addresses, at once. Returns whether
    /// anything changed.
    pub fn seek(&mut self, now: Mono, these: Vec<Sought>) -> bool {
        let mut before = std::mem::take(&mut self.all);
        let known = before.len();
        let mut changed = false;
        for sought in these {
            let search = match before.remove(&sought.uid) {
                Some(search) if search.sought == sought => search,
                Some(_) | None => {
                    changed = true;
                    Search { sought, looks: 0, at: Some(now), why: None }
                }
            };
            self.all.insert(search.sought.uid.clone(), search);
        }
        changed || self.all.len() != known
    }

    /// Those to look for now. Each must be answered by [`Self::missed`], unless it is not sought any more.
    pub fn due(&mut self, now: Mono) -> Vec<Sought> {
        let due = self.all.values_mut().filter(|search| search.at.is_some_and(|at| at <= now));
        due.map(|search| {
            search.at = None;
            search.sought.clone()
        })
        .collect()
    }

    /// A look for this pod, with these addresses, was in vain.
    pub fn missed(&mut self, now: Mono, sought: &Sought, why: NotFound) {
        // Its addresses may have changed meanwhile: then it is due already.
        let Some(search) = self.all.get_mut(&sought.uid).filter(|search| search.sought == *sought) else {
            return;
        };
        let span = self.limits.first.saturating_mul(1 << search.looks.min(16)).min(self.limits.max);
        search.looks = search.looks.saturating_add(1);
        search.at = Some(next_multiple(now + span, span.min(self.limits.together)));
        search.why = Some(why);
    }

    /// When somebody is to be looked for next; none: nobody, or all are being looked for.
    pub fn deadline(&self) -> Option<Mono> {
        self.all.values().filter_map(|search| search.at).min()
    }

    /// Whether this pod is looked for.
    pub fn knows(&self, uid: &PodUid) -> bool {
        self.all.contains_key(uid)
    }

    /// Everybody who is looked for.
    pub fn seen(&self) -> impl Iterator<Item = Seen<'_>> {
        self.all.values().map(|search| Seen {
            sought: &search.sought,
            looks: search.looks,
            why: search.why.as_ref(),
        })
    }
}

/// The first multiple of `of` that is not before `at`.
fn next_multiple(at: Mono, of: Duration) -> Mono {
    let over = at.0.as_nanos().checked_rem(of.as_nanos()).filter(|over| *over > 0);
    let Some(over) = over else { return at };
    // Less than `of`, which is some seconds.
    let rest = of.saturating_sub(Duration::from_nanos(u64::try_from(over).unwrap_or(0)));
    at + rest
}
