//! Bounds what there is at once of one thing, in all and from one source, on one worker: handshakes, or a pod's tunnels.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;

/// Handshakes at once on one worker. Each costs some 12 KiB and 0.3 ms of CPU: 6 MiB, and 150 ms until the last one of
/// a full gate is through.
pub(super) const HANDSHAKES_MAX: usize = 512;
/// Of these, from one address. A peer pod opens one tunnel per 100 connections and worker, so this is a burst of
/// thousands of connections from one pod.
pub(super) const HANDSHAKES_PER_SOURCE_MAX: usize = 64;

/// What is inside, and how much may be.
#[derive(Debug)]
pub(super) struct Gate {
    inside: Rc<RefCell<Inside>>,
    all_max: usize,
    per_source_max: usize,
}

#[derive(Debug, Default)]
struct Inside {
    all: usize,
    by_source: HashMap<IpAddr, usize>,
}

/// A place inside; given back when dropped.
#[derive(Debug)]
pub(super) struct Entered {
    inside: Rc<RefCell<Inside>>,
    source: IpAddr,
}

impl Gate {
    /// Nothing is inside.
    pub(super) fn new(all_max: usize, per_source_max: usize) -> Self {
        Self { inside: Rc::default(), all_max, per_source_max }
    }

    /// How many are inside.
    pub(super) fn count(&self) -> usize {
        self.inside.borrow().all
    }

    /// Lets one more in; `None` beyond a bound.
    pub(super) fn enter(&self, source: IpAddr) -> Option<Entered> {
        let mut inside = self.inside.borrow_mut();
        let from_source = inside.by_source.get(&source).copied().unwrap_or_default();
        if inside.all >= self.all_max || from_source >= self.per_source_max {
            return None;
        }
        inside.all += 1;
        inside.by_source.insert(source, from_source + 1);
        Some(Entered { inside: Rc::clone(&self.inside), source })
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut inside = self.inside.borrow_mut();
        inside.all -= 1;
        if let Some(count) = inside.by_source.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                inside.by_source.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_cannot_fill_the_gate() {
        let gate = Gate::new(HANDSHAKES_MAX, HANDSHAKES_PER_SOURCE_MAX);
        let greedy: IpAddr = "10.0.0.1".parse().unwrap();
        let mut inside: Vec<_> =
            (0..HANDSHAKES_PER_SOURCE_MAX).map(|_| gate.enter(greedy).unwrap()).collect();
        assert!(gate.enter(greedy).is_none());
        inside.push(gate.enter("10.0.0.2".parse().unwrap()).unwrap());
        inside.clear();
        assert!(gate.inside.borrow().by_source.is_empty());
        assert!(gate.enter(greedy).is_some());
    }

    #[test]
    fn all_sources_together_are_bounded_too() {
        let gate = Gate::new(HANDSHAKES_MAX, HANDSHAKES_PER_SOURCE_MAX);
        let sources = (0..=u8::MAX).flat_map(|last| [last; 4]).map(|last| IpAddr::from([10, 0, 0, last]));
        let inside: Vec<_> = sources.filter_map(|source| gate.enter(source)).collect();
        assert_eq!(inside.len(), HANDSHAKES_MAX);
    }
}
