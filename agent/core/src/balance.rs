//! Picks one of several candidates: power of two choices, near ones first.
//!
//! Keeps nothing: loads and what may be used are asked of the caller, chance comes in as a [`Seed`].

use std::cmp::Ordering;

use crate::draw::Seed;
use crate::resolve::Candidate;

/// How busy an endpoint is, as this worker sees it. Fewer connections are better; at equal numbers, lower latency.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Load {
    /// Open connections and attempts under way.
    pub active: u32,
    /// Smoothed time of a connect, in microseconds; 0 where nothing is known yet.
    pub latency_us: u32,
}

/// Picks a candidate and returns its index: of two drawn at random from the lowest tier that has any that is usable,
/// the less loaded one. `None` where none is usable.
///
/// `usable` is asked up to twice for a candidate and must answer alike. Does not allocate.
/// Source: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", IEEE TPDS 12(10), 2001.
pub fn pick(
    candidates: &[Candidate],
    usable: impl Fn(&Candidate) -> bool,
    load: impl Fn(&Candidate) -> Load,
    seed: &mut Seed,
) -> Option<usize> {
    let (tier, count) = nearest(candidates, &usable)?;
    let nth = |n: u64| {
        let mut among = candidates
            .iter()
            .enumerate()
            .filter(|(_, candidate)| candidate.tier == tier && usable(candidate));
        among.nth(usize::try_from(n).ok()?).map(|(at, _)| at)
    };
    let first = seed.below(count);
    if count == 1 {
        return nth(first);
    }
    // Distinct from the first, and uniform among the rest.
    let second = (first + 1 + seed.below(count - 1)) % count;
    let (first, second) = (nth(first)?, nth(second)?);
    match load(&candidates[first]).cmp(&load(&candidates[second])) {
        Ordering::Less | Ordering::Equal => Some(first),
        Ordering::Greater => Some(second),
    }
}

/// The lowest tier that has a usable candidate, and how many it has.
fn nearest(candidates: &[Candidate], usable: impl Fn(&Candidate) -> bool) -> Option<(u8, u64)> {
    let tiers = candidates
        .iter()
        .filter(|candidate| usable(candidate))
        .map(|candidate| candidate.tier);
    tiers.fold(None, |nearest, tier| match nearest {
        Some((held, count)) if held == tier => Some((held, count + 1)),
        Some((held, count)) if held < tier => Some((held, count)),
        Some(_) | None => Some((tier, 1)),
    })
}
