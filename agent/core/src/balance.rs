//! Picks one of several candidates: power of two choices, near ones first.
//!
//! Keeps nothing: loads and what may be used are asked of the caller, chance comes in as a [`Seed`].

use std::cmp::Ordering;

use crate::draw::Seed;
use crate::resolve::Candidate;

/// A connect that takes no longer, in microseconds, is a good one: between the nodes of a data centre it takes less
/// than a tenth, and the rest is scheduling. Who wants the nearest says so in `trafficDistribution`.
const NEAR_US: u32 = 5_000;

/// How busy an endpoint is, as this worker sees it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Load {
    /// Open connections and attempts under way.
    pub active: u32,
    /// Smoothed time of a connect, in microseconds; 0 where nothing is known yet.
    pub latency_us: u32,
}

impl Load {
    /// Whether another is to be preferred: fewer connections are better; at equal numbers, less than half the latency,
    /// where that is more than [`NEAR_US`].
    ///
    /// A smaller difference is no reason: with one connection after another, the nearest of several good endpoints
    /// would get every one of them.
    fn is_worse_than(self, other: Self) -> bool {
        match self.active.cmp(&other.active) {
            Ordering::Greater => true,
            Ordering::Less => false,
            Ordering::Equal => self.latency_us / 2 > other.latency_us.max(NEAR_US),
        }
    }
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
    let worse = load(&candidates[first]).is_worse_than(load(&candidates[second]));
    Some(if worse { second } else { first })
}

/// The lowest tier that has a usable candidate, and how many it has.
fn nearest(candidates: &[Candidate], usable: impl Fn(&Candidate) -> bool) -> Option<(u8, u64)> {
    let tiers = candidates.iter().filter(|candidate| usable(candidate)).map(|candidate| candidate.tier);
    tiers.fold(None, |nearest, tier| match nearest {
        Some((held, count)) if held == tier => Some((held, count + 1)),
        Some((held, count)) if held < tier => Some((held, count)),
        Some(_) | None => Some((tier, 1)),
    })
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::resolve::{PlaintextCause, Via};

    fn candidates(tiers: &[u8]) -> Vec<Candidate> {
        let numbered = (0_u16..).zip(tiers);
        let candidate = |(port, tier): (u16, &u8)| Candidate {
            addr: SocketAddr::from(([10, 0, 0, 1], port)),
            workload: None,
            via: Via::Plaintext(PlaintextCause::Outside),
            tier: *tier,
        };
        numbered.map(candidate).collect()
    }

    fn at(candidate: &Candidate) -> usize {
        usize::from(candidate.addr.port())
    }

    fn idle(_: &Candidate) -> Load {
        Load::default()
    }

    fn busy(active: u32) -> Load {
        Load { active, latency_us: 0 }
    }

    proptest! {
        #[test]
        fn the_pick_is_usable_and_of_the_lowest_tier_that_has_any(
            all in prop::collection::vec((0_u8..3, any::<bool>(), 0_u32..4), 0..20),
            seed: u64,
        ) {
            let tiers: Vec<_> = all.iter().map(|(tier, ..)| *tier).collect();
            let picked = pick(
                &candidates(&tiers),
                |candidate| all[at(candidate)].1,
                |candidate| busy(all[at(candidate)].2),
                &mut Seed(seed),
            );
            let lowest = all.iter().filter(|(_, usable, _)| *usable).map(|(tier, ..)| *tier).min();
            prop_assert_eq!(picked.map(|picked| all[picked].0), lowest);
            prop_assert!(picked.is_none_or(|picked| all[picked].1));
        }

        #[test]
        fn of_two_the_less_loaded_is_picked_always(left in 0_u32..5, right in 0_u32..5, fast: bool, seed: u64) {
            let loads = [
                Load { active: left, latency_us: if fast { 100 } else { 10_002 } },
                Load { active: right, latency_us: if fast { 10_002 } else { 100 } },
            ];
            let picked = pick(&candidates(&[0, 0]), |_| true, |candidate| loads[at(candidate)], &mut Seed(seed));
            prop_assert_eq!(picked, Some(usize::from(right < left || (right == left && !fast))));
        }

        #[test]
        fn of_two_good_ones_the_nearer_is_not_the_only_one_picked(
            latencies in (0..=NEAR_US, 0..=NEAR_US),
            seed: u64,
        ) {
            let mut seed = Seed(seed);
            let load = |candidate: &Candidate| Load {
                active: 0,
                latency_us: if at(candidate) == 0 { latencies.0 } else { latencies.1 },
            };
            let all = candidates(&[0, 0]);
            let second = (0..100).filter(|_| pick(&all, |_| true, load, &mut seed) == Some(1)).count();
            prop_assert!((20..80).contains(&second), "{second} of 100");
        }
    }

    #[test]
    fn equals_are_picked_evenly() {
        for count in [1_usize, 2, 3, 7] {
            // Those of another tier and those that are not usable are in between, and shift nobody's chance.
            let tiers: Vec<u8> = (0..count).flat_map(|_| [0, 1, 0]).collect();
            let all = candidates(&tiers);
            let mut seed = Seed(1);
            let mut picked = vec![0_u32; tiers.len()];
            for _ in 0..count * 3000 {
                let index = pick(&all, |candidate| at(candidate) % 3 != 2, idle, &mut seed).unwrap();
                picked[index] += 1;
            }
            for (index, times) in picked.into_iter().enumerate() {
                let fair = if index % 3 == 0 { 2700..3300 } else { 0..1 };
                assert!(fair.contains(&times), "{count}: {index} was picked {times} times");
            }
        }
    }

    #[test]
    fn the_busiest_of_many_is_never_picked() {
        let all = candidates(&[0; 5]);
        let mut seed = Seed(9);
        for _ in 0..1000 {
            let load = |candidate: &Candidate| busy(u32::from(at(candidate) == 3));
            assert_ne!(pick(&all, |_| true, load, &mut seed), Some(3));
        }
    }
}
