//! What one tunnel's streams hold for slow readers, and the flow-control windows that follow from it.
//!
//! Two rules keep one slow reader from harming others. What is held for stalled streams does not count against the
//! tunnel's connection window: the window grows by as much, or four stalled streams would stop the other ninety-six.
//! And once half of the pod's share is held, every stream's window shrinks, so that no further stream can hold
//! much. Knows no socket; the tunnel's driver applies what this says.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};

use super::protocol::{CONNECTION_WINDOW, STREAM_WINDOW, STREAM_WINDOW_UNDER_PRESSURE, STREAMS_MAX};
use super::share::Share;

/// By how much what is held must change before a tunnel's window follows: each change costs a WINDOW_UPDATE.
const STEP: usize = 2 * 1024 * 1024;
/// The largest connection window: all streams stalled with full windows, and the usual window beside them (416 MiB,
/// of which the budget lets only a part ever be held).
const CONNECTION_WINDOW_MAX: u32 = CONNECTION_WINDOW + STREAMS_MAX * STREAM_WINDOW;

/// The windows that a tunnel should offer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Windows {
    /// Of the whole tunnel.
    pub(super) connection: u32,
    /// Of each of its streams.
    pub(super) stream: u32,
}

impl Windows {
    /// Of a tunnel that holds nothing.
    pub(super) const USUAL: Self = Self { connection: CONNECTION_WINDOW, stream: STREAM_WINDOW };
}

/// One tunnel's account of held bytes. Shared by its streams and its driver.
#[derive(Debug)]
pub(super) struct Account {
    share: Rc<Share>,
    held: Cell<usize>,
    /// What was held when the windows were last set.
    followed: Cell<usize>,
    driver: RefCell<Option<Waker>>,
}

impl Account {
    /// An account within its pod's share.
    pub(super) fn new(share: Rc<Share>) -> Rc<Self> {
        Rc::new(Self { share, held: Cell::new(0), followed: Cell::new(0), driver: RefCell::new(None) })
    }

    /// The pod's share of the worker's buffers.
    pub(super) fn share(&self) -> &Rc<Share> {
        &self.share
    }

    /// Counts bytes taken over for a stalled stream; every call has its [`Account::release`].
    pub(super) fn hold(&self, len: usize) {
        self.share.hold(len);
        self.held.set(self.held.get() + len);
        self.follow();
    }

    /// Ends what [`Account::hold`] counted.
    pub(super) fn release(&self, len: usize) {
        self.share.release(len);
        self.held.set(self.held.get().saturating_sub(len));
        self.follow();
    }

    /// The windows to offer now. The driver is woken when they change by more than a step.
    pub(super) fn windows(&self, cx: &Context<'_>) -> Windows {
        let held = self.held.get();
        if held.abs_diff(self.followed.get()) >= STEP || held == 0 {
            self.followed.set(held);
        }
        let mut driver = self.driver.borrow_mut();
        if !driver.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            *driver = Some(cx.waker().clone());
        }
        let extra = u32::try_from(self.followed.get()).unwrap_or(u32::MAX);
        Windows {
            connection: CONNECTION_WINDOW.saturating_add(extra).min(CONNECTION_WINDOW_MAX),
            stream: if self.share.is_pressed() { STREAM_WINDOW_UNDER_PRESSURE } else { STREAM_WINDOW },
        }
    }

    /// Lets the driver have a turn.
    pub(super) fn wake_driver(&self) {
        if let Some(driver) = &*self.driver.borrow() {
            driver.wake_by_ref();
        }
    }

    fn follow(&self) {
        if self.held.get().abs_diff(self.followed.get()) >= STEP {
            self.wake_driver();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::buffers::Buffers;
    use super::*;

    #[test]
    fn what_is_held_widens_the_tunnel_and_half_the_share_narrows_its_streams() {
        let mib = 1024 * 1024;
        let account = Account::new(Share::new(Rc::new(Buffers::new(16 * mib))));
        let cx = Context::from_waker(Waker::noop());
        assert_eq!(account.windows(&cx), Windows::USUAL);
        account.hold(mib);
        assert_eq!(account.windows(&cx), Windows::USUAL, "less than a step");
        account.hold(8 * mib);
        let windows = account.windows(&cx);
        assert_eq!(windows.connection, CONNECTION_WINDOW + 9 * 1024 * 1024);
        assert_eq!(windows.stream, STREAM_WINDOW_UNDER_PRESSURE);
        account.release(9 * mib);
        assert_eq!(account.windows(&cx), Windows::USUAL);
    }
}
