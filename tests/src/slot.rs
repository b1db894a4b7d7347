//! One exclusive slot for tests that measure time or load; the others share.
//!
//! Fair: whoever waits for the exclusive slot is served before sharers that come later, and the other way round, so
//! that neither starves.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard};

/// Holds the slot until it is dropped.
#[derive(Debug)]
pub struct Slot {
    kind: Kind,
    of: &'static Slots,
}

impl Slot {
    /// Whether it is held alone.
    pub const fn is_exclusive(&self) -> bool {
        matches!(self.kind, Kind::Exclusive)
    }
}

/// Waits for the slot, beside others that share it.
pub fn shared() -> Slot {
    SLOTS.take(Kind::Shared)
}

/// Waits for the slot alone.
pub fn exclusive() -> Slot {
    SLOTS.take(Kind::Exclusive)
}

static SLOTS: Slots = Slots::new();

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Shared,
    Exclusive,
}

#[derive(Debug)]
struct Slots {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    sharing: usize,
    exclusive: bool,
    /// Tickets in the order in which they came; the first is served next.
    waiting: VecDeque<u64>,
    tickets: u64,
}

impl Slots {
    const fn new() -> Self {
        let state = State { sharing: 0, exclusive: false, waiting: VecDeque::new(), tickets: 0 };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn take(&'static self, kind: Kind) -> Slot {
        let mut state = self.lock();
        state.tickets += 1;
        let ticket = state.tickets;
        state.waiting.push_back(ticket);
        while state.waiting.front() != Some(&ticket) || !state.has_room(kind) {
            state = self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        state.waiting.pop_front();
        match kind {
            Kind::Shared => state.sharing += 1,
            Kind::Exclusive => state.exclusive = true,
        }
        // The next one may share with this one.
        self.changed.notify_all();
        Slot { kind, of: self }
    }

    /// A test that panics while it holds the slot leaves the state whole: every change is one assignment.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl State {
    const fn has_room(&self, kind: Kind) -> bool {
        match kind {
            Kind::Shared => !self.exclusive,
            Kind::Exclusive => !self.exclusive && self.sharing == 0,
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.of.lock();
        match self.kind {
            Kind::Shared => state.sharing -= 1,
            Kind::Exclusive => state.exclusive = false,
        }
        drop(state);
        self.of.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_sharer_that_comes_after_an_exclusive_waiter_is_served_after_it() {
        static OWN: Slots = Slots::new();
        let first = OWN.take(Kind::Shared);
        let (order, seen) = mpsc::channel();
        std::thread::scope(|scope| {
            let waiter = |kind, name, order: mpsc::Sender<&'static str>| {
                move || {
                    let slot = OWN.take(kind);
                    order.send(name).unwrap();
                    drop(slot);
                }
            };
            scope.spawn(waiter(Kind::Exclusive, "exclusive", order.clone()));
            wait_for_waiters(&OWN, 1);
            scope.spawn(waiter(Kind::Shared, "shared", order.clone()));
            wait_for_waiters(&OWN, 2);
            assert!(seen.try_recv().is_err(), "the slot is shared: nobody has it alone, nobody overtakes");
            drop(first);
            assert_eq!((seen.recv().unwrap(), seen.recv().unwrap()), ("exclusive", "shared"));
        });
    }

    fn wait_for_waiters(slots: &Slots, count: usize) {
        while slots.lock().waiting.len() < count {
            std::thread::yield_now();
        }
    }
}
