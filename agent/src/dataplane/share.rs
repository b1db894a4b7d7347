//! What one pod has of a worker's buffers, so that one pod cannot starve another.
//!
//! A pod may use as much as is left for the others: alone half of the budget, and of several greedy ones each the same
//! part, with such a part left over. Beyond it none of its connections begin, and its apps are read only as fast as
//! tunnels take what they say. Not more slowly: an app that is not heard may not listen either, and what is held for it
//! would never be let go of. What peers send all the same, by windows that they have, is held for a while; then their
//! streams are cut.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Buf;

use super::buffers::{BATCH_LEN, BLOCK_LEN, Buffers, Waiting};

/// What a pod may hold whatever the others do, and queue whatever it holds: their streams' windows are granted before the
/// bytes are there, so that together they can hold more than the budget. One batch, and where it is queued the one that
/// exceeds it; 110 pods, the kubelet's default, are 28 MiB a worker held, and 58 MiB queued.
const SHARE_MIN: usize = BATCH_LEN;
/// From this size on, what was read of an app goes into the tunnel in the block into which it was read. Below it is
/// copied: a block that holds little would hold memory for nothing.
const HANDED_ON_MIN: usize = 64 * 1024;

/// One pod's part of a worker's buffers.
#[derive(Debug)]
pub(super) struct Share {
    buffers: Rc<Buffers>,
    /// On its way into tunnels.
    queued: Cell<usize>,
    /// Waiting for readers that stall.
    held: Cell<usize>,
    /// For room.
    waiting: Line,
    /// Until it is not full any more.
    narrowed: Line,
}

/// Tasks that wait for the same.
#[derive(Debug, Default)]
struct Line {
    tasks: RefCell<Vec<Waker>>,
    round: Cell<u32>,
}

/// Which wait of a line a task is enlisted in, so that it is enlisted once however often it is polled.
#[derive(Debug, Default)]
pub(super) struct Enlisted(Option<u32>);

impl Share {
    /// A pod's part of these, of which nothing is used.
    pub(super) fn new(buffers: Rc<Buffers>) -> Rc<Self> {
        Rc::new(Self {
            buffers,
            queued: Cell::new(0),
            held: Cell::new(0),
            waiting: Line::default(),
            narrowed: Line::default(),
        })
    }

    /// The worker's buffers.
    pub(super) fn buffers(&self) -> &Rc<Buffers> {
        &self.buffers
    }

    /// Bytes of the pod that wait for readers that stall.
    pub(super) fn held(&self) -> usize {
        self.held.get()
    }

    /// Whether all of it is used: what need not be held is not.
    pub(super) fn is_used_up(&self) -> bool {
        self.held.get() + self.queued.get() >= self.buffers.not_used().max(SHARE_MIN)
    }

    /// Whether stalled readers alone use it up: the pod takes on no new connection. What is queued for tunnels drains by
    /// itself, and only makes apps wait ([`Share::poll_room`]).
    pub(super) fn is_full(&self) -> bool {
        self.held.get() >= self.buffers.not_held().max(SHARE_MIN)
    }

    /// Ready while it is not full; otherwise wakes the task once something was let go of and it is not any more.
    pub(super) fn poll_not_full(&self, cx: &Context<'_>, enlisted: &mut Enlisted) -> Poll<()> {
        if !self.is_full() {
            return Poll::Ready(());
        }
        self.narrowed.enlist(cx, enlisted);
        Poll::Pending
    }

    /// Whether so much is held that what comes for stalled readers is cut. A pod alone may have as much as the budget, or
    /// a tunnel's whole window more than its share, whichever is more: default 256 MiB, 128 MiB beyond its share. What
    /// peers send in the round trip until they hear of smaller windows is far less; then each stream that stalls has 128
    /// KiB, so that 1,300 fit between the half of the share where that begins, 85 MiB, and this. Of several pods each may
    /// have the same part, so that together they stay below twice the budget.
    pub(super) fn is_overdrawn(&self) -> bool {
        self.held.get() > self.buffers.not_overdrawn().max(SHARE_MIN)
    }

    /// Whether half of it is held for stalled readers: the pod's streams get smaller windows. Not at a worker's bound:
    /// what other pods hold makes the share smaller, and is no other reason to slow this one down.
    pub(super) fn is_pressed(&self) -> bool {
        self.held.get() >= self.buffers.not_held().max(SHARE_MIN) / 2
    }

    /// Ready while more may be queued for tunnels; otherwise wakes the task once it may.
    pub(super) fn poll_room(self: &Rc<Self>, cx: &mut Context<'_>, enlisted: &mut Enlisted) -> Poll<()> {
        if self.has_room() {
            return Poll::Ready(());
        }
        if self.waiting.enlist(cx, enlisted) == Place::First {
            self.buffers.await_room(Rc::<Self>::clone(self));
        }
        Poll::Pending
    }

    /// Counts bytes that are held elsewhere; every call has its [`Share::release`].
    pub(super) fn hold(&self, len: usize) {
        self.held.set(self.held.get() + len);
        self.buffers.hold(len);
    }

    /// Ends what [`Share::hold`] counted.
    pub(super) fn release(&self, len: usize) {
        self.held.set(self.held.get().saturating_sub(len));
        self.buffers.release(len);
        if !self.narrowed.is_empty() && !self.is_full() {
            self.narrowed.wake();
        }
    }

    /// What `read` reads into at most `room` bytes, on its way into a tunnel; counted until it is dropped. `None`: nothing.
    pub(super) fn chunk<E>(
        self: &Rc<Self>,
        room: usize,
        read: impl FnOnce(&mut [u8]) -> Poll<Result<usize, E>>,
    ) -> Poll<Result<Option<Chunk>, E>> {
        let mut block = self.buffers.take_block();
        let most = room.min(BATCH_LEN);
        let result = read(&mut block[..most]);
        let len = match &result {
            Poll::Ready(Ok(len)) => *len,
            Poll::Ready(Err(_)) | Poll::Pending => 0,
        };
        if len >= HANDED_ON_MIN {
            return Poll::Ready(Ok(Some(self.count(block, len))));
        }
        let chunk = (len > 0).then(|| self.count(block[..len].into(), len));
        self.buffers.give_back(block);
        result.map_ok(|_| chunk)
    }

    /// A chunk without bytes.
    pub(super) fn no_bytes(self: &Rc<Self>) -> Chunk {
        self.count(Box::default(), 0)
    }

    fn count(self: &Rc<Self>, bytes: Box<[u8]>, len: usize) -> Chunk {
        self.queued.set(self.queued.get() + bytes.len());
        self.buffers.queue(bytes.len());
        Chunk { bytes, at: 0, len, share: Rc::clone(self) }
    }
}

impl Waiting for Share {
    /// Whether more may be queued for tunnels. A little always may, whatever is held: no direction waits for the other.
    fn has_room(&self) -> bool {
        self.queued.get() < SHARE_MIN || !self.is_used_up()
    }

    fn wake(&self) {
        self.waiting.wake();
    }
}

/// Where in a line a task found itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Place {
    First,
    Behind,
}

impl Line {
    fn is_empty(&self) -> bool {
        self.tasks.borrow().is_empty()
    }

    fn enlist(&self, cx: &Context<'_>, enlisted: &mut Enlisted) -> Place {
        if enlisted.0 == Some(self.round.get()) {
            return Place::Behind;
        }
        enlisted.0 = Some(self.round.get());
        let mut tasks = self.tasks.borrow_mut();
        tasks.push(cx.waker().clone());
        if tasks.len() == 1 { Place::First } else { Place::Behind }
    }

    fn wake(&self) {
        self.round.set(self.round.get().wrapping_add(1));
        let tasks = std::mem::take(&mut *self.tasks.borrow_mut());
        tasks.into_iter().for_each(Waker::wake);
    }
}

/// Bytes on their way into a tunnel; counted in the pod's share until h2 has written them.
#[derive(Debug)]
pub(super) struct Chunk {
    /// Exactly its bytes, or a block that begins with them.
    bytes: Box<[u8]>,
    at: usize,
    len: usize,
    share: Rc<Share>,
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        self.len - self.at
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes[self.at..self.len]
    }

    fn advance(&mut self, count: usize) {
        assert!(count <= self.remaining(), "cannot advance past the end of a chunk");
        self.at += count;
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let (share, bytes) = (&self.share, std::mem::take(&mut self.bytes));
        share.queued.set(share.queued.get().saturating_sub(bytes.len()));
        share.buffers.unqueue(bytes.len());
        if bytes.len() == BLOCK_LEN {
            share.buffers.give_back(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    fn share(limit: usize) -> Rc<Share> {
        Share::new(Rc::new(Buffers::new(limit)))
    }

    /// A chunk of what a read of `len` bytes left, each 7.
    fn chunk(share: &Rc<Share>, len: usize) -> Chunk {
        let read = |into: &mut [u8]| {
            into[..len].fill(7);
            Poll::Ready(Ok::<_, ()>(len))
        };
        let Poll::Ready(Ok(Some(chunk))) = share.chunk(usize::MAX, read) else { panic!("no chunk") };
        chunk
    }

    #[test]
    fn a_chunk_counts_until_it_is_dropped_and_makes_only_readers_of_apps_wait() {
        let share = share(0);
        let mut cx = Context::from_waker(Waker::noop());
        let mut enlisted = Enlisted::default();
        let mut chunk = chunk(&share, SHARE_MIN);
        chunk.advance(SHARE_MIN - 1);
        assert_eq!((chunk.chunk(), share.buffers.used(), share.is_full()), (&[7][..], BLOCK_LEN, false));
        assert!(share.poll_room(&mut cx, &mut enlisted).is_pending());
        assert!(share.poll_room(&mut cx, &mut enlisted).is_pending());
        assert_eq!(share.waiting.tasks.borrow().len(), 1, "enlisted once");
        drop(chunk);
        assert!(share.waiting.is_empty(), "woken");
        assert!(share.poll_room(&mut cx, &mut enlisted).is_ready());
        assert_eq!(Rc::strong_count(&share), 1, "the buffers have let go of it");
    }

    #[test]
    fn much_is_handed_on_in_its_block_which_then_comes_back() {
        let share = share(usize::MAX);
        let buffers = Rc::clone(&share.buffers);
        let chunk = chunk(&share, HANDED_ON_MIN);
        assert_eq!((chunk.remaining(), buffers.used()), (HANDED_ON_MIN, BLOCK_LEN), "it holds all of it");
        assert!(chunk.chunk().iter().all(|&byte| byte == 7));
        assert_eq!(buffers.spare(), 0);
        drop(chunk);
        assert_eq!((buffers.spare(), buffers.used()), (1, 0));
        let read = |into: &mut [u8]| Poll::Ready(Ok::<_, ()>(into.len()));
        let Poll::Ready(Ok(Some(little))) = share.chunk(5, read) else { panic!("no chunk") };
        assert_eq!((little.remaining(), buffers.used(), buffers.spare()), (5, 5, 1));
        assert!(share.chunk(5, |_| Poll::<Result<_, ()>>::Pending).is_pending());
        assert!(matches!(share.chunk(5, |_| Poll::Ready(Ok::<_, ()>(0))), Poll::Ready(Ok(None))));
        assert_eq!(buffers.spare(), 1);
    }

    #[test]
    fn a_pod_alone_has_half_and_two_greedy_ones_a_third_each() {
        let one = share(12 * MIB);
        let two = Share::new(Rc::clone(&one.buffers));
        one.hold(4 * MIB);
        assert!(one.is_pressed() && !one.is_full() && !one.is_used_up());
        assert!(!two.is_pressed() && !two.is_used_up());
        one.hold(2 * MIB);
        assert!(one.is_full() && one.is_used_up(), "half");
        assert!(!two.is_full() && !two.is_used_up());
        assert!(one.is_pressed() && !two.is_pressed(), "only its own streams get smaller windows");
        one.release(2 * MIB);
        two.hold(4 * MIB);
        assert!([&one, &two].iter().all(|share| share.is_full() && share.is_used_up()), "a third each");
        one.release(MIB);
        assert!([&one, &two].iter().all(|share| !share.is_full() && !share.is_used_up()));
    }

    #[test]
    fn a_pod_goes_on_a_little_where_others_hold_all() {
        let one = share(12 * MIB);
        let two = Share::new(Rc::clone(&one.buffers));
        one.hold(13 * MIB);
        assert!(!two.is_full() && !two.is_used_up() && !two.is_pressed());
        two.hold(SHARE_MIN / 2);
        assert!(!two.is_full() && !two.is_used_up() && two.is_pressed());
        two.hold(SHARE_MIN / 2);
        assert!(two.is_full() && two.is_used_up());
    }

    #[test]
    fn what_a_pod_alone_holds_is_bounded_by_the_budget_and_what_all_hold_by_twice_it() {
        for (budget, alone) in [(256 * MIB, 256 * MIB), (16 * MIB, (8 + 16) * MIB)] {
            let one = share(budget);
            one.hold(alone);
            assert!(!one.is_overdrawn());
            one.hold(1);
            assert!(one.is_overdrawn());
            let others: Vec<_> = (0..20).map(|_| Share::new(Rc::clone(&one.buffers))).collect();
            for other in &others {
                while !other.is_overdrawn() {
                    other.hold(SHARE_MIN);
                }
            }
            let least = others.iter().map(|other| other.held()).min().unwrap();
            let bound = budget + budget.max(32 * MIB);
            assert!(one.buffers.held() <= bound + others.len() * 2 * SHARE_MIN, "{}", one.buffers.held());
            assert!(least >= SHARE_MIN);
        }
    }

    #[test]
    fn apps_are_read_whatever_is_held_and_wait_only_for_what_is_queued() {
        let share = share(12 * MIB);
        let mut cx = Context::from_waker(Waker::noop());
        let mut enlisted = Enlisted::default();
        share.hold(12 * MIB);
        let little = chunk(&share, HANDED_ON_MIN - 1);
        assert!(share.poll_room(&mut cx, &mut enlisted).is_ready());
        let more = chunk(&share, SHARE_MIN);
        assert!(share.poll_room(&mut cx, &mut enlisted).is_pending());
        drop(more);
        assert!(share.waiting.is_empty() && share.poll_room(&mut cx, &mut enlisted).is_ready());
        drop(little);
    }

    #[test]
    fn those_who_wait_are_woken_by_what_another_pod_lets_go_of() {
        let one = share(12 * MIB);
        let two = Share::new(Rc::clone(&one.buffers));
        let mut cx = Context::from_waker(Waker::noop());
        let mut enlisted = Enlisted::default();
        let queued = chunk(&two, SHARE_MIN);
        one.hold(4 * MIB);
        two.hold(5 * MIB);
        assert!(two.poll_room(&mut cx, &mut enlisted).is_pending());
        one.release(MIB);
        assert_eq!(two.waiting.tasks.borrow().len(), 1, "still more than the others' part");
        one.release(2 * MIB);
        assert!(two.waiting.is_empty() && two.poll_room(&mut cx, &mut enlisted).is_ready());
        drop(queued);
    }
}
