//! The streams of a tunnel that wait for bytes, to be woken where their windows became smaller (see [`super::offer`]).

use std::cell::{Cell, RefCell};
use std::task::{Context, Waker};

/// The tasks of a tunnel's streams that wait for bytes.
#[derive(Debug, Default)]
pub(super) struct Streams {
    /// One for each place; none at those that are free.
    tasks: RefCell<Vec<Option<Waker>>>,
    free: RefCell<Vec<u32>>,
    round: Cell<u32>,
}

/// A stream's place among those of its tunnel, to be given back by [`Streams::leave`].
#[derive(Debug)]
pub(super) struct Place {
    at: u32,
    round: u32,
}

impl Streams {
    /// Takes the calling task in.
    pub(super) fn enter(&self, cx: &Context<'_>) -> Place {
        let mut tasks = self.tasks.borrow_mut();
        let task = Some(cx.waker().clone());
        let at = match self.free.borrow_mut().pop() {
            Some(at) => {
                tasks[at as usize] = task;
                at
            }
            None => {
                tasks.push(task);
                u32::try_from(tasks.len() - 1).expect("a tunnel has at most a hundred streams at a time")
            }
        };
        Place { at, round: self.round.get() }
    }

    /// Gives a place back.
    pub(super) fn leave(&self, place: &Place) {
        self.tasks.borrow_mut()[place.at as usize] = None;
        self.free.borrow_mut().push(place.at);
    }

    /// Whether windows became smaller since this stream was asked last, or entered.
    pub(super) fn must_look(&self, place: &mut Place) -> bool {
        std::mem::replace(&mut place.round, self.round.get()) != self.round.get()
    }

    /// Has every stream look at its window.
    pub(super) fn wake(&self) {
        self.round.set(self.round.get().wrapping_add(1));
        self.tasks.borrow().iter().flatten().for_each(Waker::wake_by_ref);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stream_looks_once_after_each_time_and_places_are_used_again() {
        let streams = Streams::default();
        let cx = Context::from_waker(Waker::noop());
        let (mut one, two) = (streams.enter(&cx), streams.enter(&cx));
        assert!(!streams.must_look(&mut one));
        streams.wake();
        assert!(streams.must_look(&mut one));
        assert!(!streams.must_look(&mut one));
        streams.leave(&two);
        let mut three = streams.enter(&cx);
        assert_eq!((three.at, streams.tasks.borrow().len()), (1, 2));
        assert!(!streams.must_look(&mut three), "it began with what is offered now");
        streams.wake();
        assert!(streams.must_look(&mut three));
    }
}
