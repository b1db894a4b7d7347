//! What one tunnel's streams hold for slow readers, and the flow-control windows that follow from it.
//!
//! Two rules keep one slow reader from harming others. What is held for stalled streams does not count against the
//! tunnel's connection window: the window grows by as much, or four stalled streams would stop the other ninety-six.
//! And once half of the pod's share is held, every stream's window shrinks, so that no further stream can hold much: of
//! a peer that acknowledges it. Others are bounded by the tunnel's window, which no peer can choose to ignore, and which
//! grows no more once the share is full; and many tunnels together by the cut ([`Share::is_overdrawn`]). Knows no socket;
//! the tunnel's driver applies what this says.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};

use super::protocol::{CONNECTION_WINDOW, STREAM_WINDOW, STREAM_WINDOW_UNDER_PRESSURE, STREAMS_MAX};
use super::share::{Enlisted, Share};
use super::streams::Streams;

/// By how much what is held must change before a tunnel's window follows: each change costs a WINDOW_UPDATE.
const STEP: usize = 2 * 1024 * 1024;
/// The largest connection window: all streams stalled with full windows, and the usual window beside them (416 MiB, which
/// only a pod's share above 400 MiB lets a tunnel reach).
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
    /// By how much the window was last set to be wider than usual.
    widened: Cell<usize>,
    enlisted: RefCell<Enlisted>,
    driver: RefCell<Option<Waker>>,
    streams: Streams,
}

impl Account {
    /// An account within its pod's share.
    pub(super) fn new(share: Rc<Share>) -> Rc<Self> {
        Rc::new(Self {
            share,
            held: Cell::new(0),
            widened: Cell::new(0),
            enlisted: RefCell::default(),
            driver: RefCell::new(None),
            streams: Streams::default(),
        })
    }

    /// The pod's share of the worker's buffers.
    pub(super) fn share(&self) -> &Rc<Share> {
        &self.share
    }

    /// The tunnel's streams.
    pub(super) fn streams(&self) -> &Streams {
        &self.streams
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
        let widening = self.widening();
        if widening.abs_diff(self.widened.get()) >= STEP || widening == 0 {
            self.widened.set(widening);
        }
        if widening < self.held.get() {
            // Woken where it waits; where it need not, its next turn does it.
            let _ = self.share.poll_not_full(cx, &mut self.enlisted.borrow_mut());
        }
        let mut driver = self.driver.borrow_mut();
        if !driver.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            *driver = Some(cx.waker().clone());
        }
        let extra = u32::try_from(self.widened.get()).unwrap_or(u32::MAX);
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

    /// By how much the window should be wider than usual: by what is held, but no wider than it is while the share is
    /// full. A tunnel alone then brings its pod at most its usual window beyond the share.
    fn widening(&self) -> usize {
        let held = self.held.get();
        if self.share.is_full() { held.min(self.widened.get()) } else { held }
    }

    fn follow(&self) {
        if self.widening().abs_diff(self.widened.get()) >= STEP {
            self.wake_driver();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::super::buffers::Buffers;
    use super::*;

    const MIB: usize = 1024 * 1024;

    /// How often a driver was woken.
    #[derive(Default)]
    struct Turns(AtomicUsize);

    impl Wake for Turns {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_full_share_widens_no_tunnel_until_it_is_not_full_any_more() {
        let share = Share::new(Rc::new(Buffers::new(16 * MIB)));
        let (one, two) = (Account::new(Rc::clone(&share)), Account::new(Rc::clone(&share)));
        let turns = Arc::new(Turns::default());
        let waker = Arc::clone(&turns).into();
        let cx = Context::from_waker(&waker);
        let turns = || turns.0.swap(0, Ordering::Relaxed);
        let widened = || (one.windows(&cx).connection - CONNECTION_WINDOW) as usize;
        assert_eq!(widened(), 0);
        one.hold(3 * MIB);
        assert_eq!((turns(), widened()), (1, 3 * MIB));
        two.hold(5 * MIB);
        assert!(share.is_full());
        one.hold(8 * MIB);
        assert_eq!((turns(), widened()), (0, 3 * MIB), "nobody is woken for what may not be");
        one.release(3 * MIB);
        assert_eq!((turns(), widened()), (0, 3 * MIB));
        two.release(5 * MIB);
        assert!(share.is_full());
        assert_eq!((turns(), widened()), (0, 3 * MIB));
        two.hold(3 * MIB);
        one.release(MIB);
        two.release(3 * MIB);
        assert!(!share.is_full());
        assert_eq!((turns(), widened()), (1, 7 * MIB));
        one.release(7 * MIB);
        assert_eq!(one.windows(&cx), Windows::USUAL);
    }

    #[test]
    fn what_is_held_widens_the_tunnel_and_half_the_share_narrows_its_streams() {
        let account = Account::new(Share::new(Rc::new(Buffers::new(16 * MIB))));
        let cx = Context::from_waker(Waker::noop());
        assert_eq!(account.windows(&cx), Windows::USUAL);
        account.hold(MIB);
        assert_eq!(account.windows(&cx), Windows::USUAL, "less than a step");
        account.hold(6 * MIB);
        let windows = account.windows(&cx);
        assert_eq!(windows.connection, CONNECTION_WINDOW + 7 * 1024 * 1024);
        assert_eq!(windows.stream, STREAM_WINDOW_UNDER_PRESSURE);
        account.release(7 * MIB);
        assert_eq!(account.windows(&cx), Windows::USUAL);
    }
}
