//! The bytes that a worker holds: its scratch, the blocks of those who read or write, and what waits to be sent.
//!
//! No buffer belongs to an idle connection. Everything is counted against the worker's share of the agent's budget.
//! Belongs to one worker thread; knows no socket.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Buf;

use super::records::{ALERT_LEN, CONTENT_LEN_MAX, KEY_UPDATE_LEN, RECORD_LEN_MAX};

/// What is read of an app at once. Smaller batches cost 25 % more CPU per byte, larger ones gain nothing.
pub(super) const BATCH_LEN: usize = 256 * 1024;
/// Length of a block: a batch as it is in a tunnel, in 16 full records and one for what else HTTP/2 sends with it, a
/// KeyUpdate and an alert.
pub(super) const BLOCK_LEN: usize =
    (BATCH_LEN / CONTENT_LEN_MAX + 1) * RECORD_LEN_MAX + KEY_UPDATE_LEN + ALERT_LEN;
/// Blocks kept for the next who reads or writes: 64 × 273 KiB = 17 MiB per worker, for eight streams in bulk. Fewer, and
/// under bulk the allocator is asked for new memory all the time, at 10 % more CPU per byte. Those that nobody needed
/// for a while go back ([`Buffers::let_unused_go`]).
const SPARE_BLOCKS_MAX: usize = 64;
/// From this size on, what was read of an app goes into the tunnel in the block into which it was read. Below it is
/// copied: a block that holds little would hold memory for nothing.
const HANDED_ON_MIN: usize = 64 * 1024;

/// What one worker buffers.
#[derive(Debug)]
pub(super) struct Buffers {
    scratch: RefCell<Box<[u8]>>,
    spare: RefCell<Vec<Box<[u8]>>>,
    /// Spare blocks that nobody has needed since [`Buffers::let_unused_go`].
    unused: Cell<usize>,
    /// On its way into tunnels.
    queued: Cell<usize>,
    /// Waiting for readers that stall.
    held: Cell<usize>,
    limit: usize,
    waiting: RefCell<Vec<Waker>>,
    round: Cell<u32>,
}

/// Which wait for room a task is enlisted in, so that it is enlisted once however often it is polled.
#[derive(Debug, Default)]
pub(super) struct Enlisted(Option<u32>);

impl Buffers {
    /// `limit`: this worker's share of the agent's budget, in bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            scratch: RefCell::new(vec![0; BATCH_LEN].into()),
            spare: RefCell::default(),
            unused: Cell::new(0),
            queued: Cell::new(0),
            held: Cell::new(0),
            limit,
            waiting: RefCell::default(),
            round: Cell::new(0),
        }
    }

    /// Bytes that wait for readers that stall.
    pub(super) fn held(&self) -> usize {
        self.held.get()
    }

    /// All that is buffered.
    pub(super) fn used(&self) -> usize {
        self.held.get() + self.queued.get()
    }

    /// Whether stalled readers alone use the share up: no new connection is taken on. What is queued for tunnels drains
    /// by itself, and only makes apps wait ([`Buffers::poll_room`]).
    pub(super) fn is_full(&self) -> bool {
        self.held.get() >= self.limit
    }

    /// Whether half of the share is used up: streams get smaller windows.
    pub(super) fn is_pressed(&self) -> bool {
        self.held.get() >= self.limit / 2
    }

    /// Ready while the share is not used up; otherwise wakes the task once it is not any more.
    pub(super) fn poll_room(&self, cx: &mut Context<'_>, enlisted: &mut Enlisted) -> Poll<()> {
        if self.used() < self.limit {
            return Poll::Ready(());
        }
        if enlisted.0 != Some(self.round.get()) {
            enlisted.0 = Some(self.round.get());
            self.waiting.borrow_mut().push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Lends the worker's scratch for one synchronous read.
    pub(super) fn with_scratch<T>(&self, read: impl FnOnce(&mut [u8]) -> T) -> T {
        read(&mut self.scratch.borrow_mut())
    }

    /// What `read` reads into at most `room` bytes, on its way into a tunnel; counted until it is dropped. `None`: nothing.
    pub(super) fn chunk<E>(
        self: &Rc<Self>,
        room: usize,
        read: impl FnOnce(&mut [u8]) -> Poll<Result<usize, E>>,
    ) -> Poll<Result<Option<Chunk>, E>> {
        let mut block = self.take_block();
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
        self.give_back(block);
        result.map_ok(|_| chunk)
    }

    /// A chunk without bytes.
    pub(super) fn no_bytes(self: &Rc<Self>) -> Chunk {
        self.count(Box::default(), 0)
    }

    fn count(self: &Rc<Self>, bytes: Box<[u8]>, len: usize) -> Chunk {
        self.queued.set(self.queued.get() + bytes.len());
        Chunk { bytes, at: 0, len, buffers: Rc::clone(self) }
    }

    /// Counts bytes that are held elsewhere; every call has its [`Buffers::release`].
    pub(super) fn hold(&self, len: usize) {
        self.held.set(self.held.get() + len);
    }

    /// Ends what [`Buffers::hold`] counted.
    pub(super) fn release(&self, len: usize) {
        self.held.set(self.held.get().saturating_sub(len));
        self.wake();
    }

    /// Wakes those who wait for room, once there is some.
    fn wake(&self) {
        if self.used() < self.limit && !self.waiting.borrow().is_empty() {
            self.round.set(self.round.get().wrapping_add(1));
            let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
            waiting.into_iter().for_each(Waker::wake);
        }
    }

    /// A block, with whatever was in it before.
    pub(super) fn take_block(&self) -> Box<[u8]> {
        let mut spare = self.spare.borrow_mut();
        let taken = spare.pop();
        self.unused.set(self.unused.get().min(spare.len()));
        taken.unwrap_or_else(block)
    }

    /// Gives back to the allocator the blocks that nobody has needed since this was called last.
    pub(super) fn let_unused_go(&self) {
        let mut spare = self.spare.borrow_mut();
        let needed = spare.len().saturating_sub(self.unused.get());
        spare.truncate(needed);
        spare.shrink_to_fit();
        self.unused.set(needed);
    }

    /// Takes a block back, once nothing in it is unread.
    pub(super) fn give_back(&self, block: Box<[u8]>) {
        debug_assert_eq!(block.len(), BLOCK_LEN, "only blocks are given back");
        let mut spare = self.spare.borrow_mut();
        if spare.len() < SPARE_BLOCKS_MAX {
            spare.push(block);
        }
    }
}

fn block() -> Box<[u8]> {
    vec![0; BLOCK_LEN].into()
}

/// Bytes on their way into a tunnel; counted in the worker's budget until h2 has written them.
#[derive(Debug)]
pub(super) struct Chunk {
    /// Exactly its bytes, or a block that begins with them.
    bytes: Box<[u8]>,
    at: usize,
    len: usize,
    buffers: Rc<Buffers>,
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
        let (buffers, bytes) = (&self.buffers, std::mem::take(&mut self.bytes));
        buffers.queued.set(buffers.queued.get().saturating_sub(bytes.len()));
        buffers.wake();
        if bytes.len() == BLOCK_LEN {
            buffers.give_back(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A chunk of what a read of `len` bytes left, each 7.
    fn chunk(buffers: &Rc<Buffers>, len: usize) -> Chunk {
        let read = |into: &mut [u8]| {
            into[..len].fill(7);
            Poll::Ready(Ok::<_, ()>(len))
        };
        let Poll::Ready(Ok(Some(chunk))) = buffers.chunk(usize::MAX, read) else { panic!("no chunk") };
        chunk
    }

    #[test]
    fn a_chunk_counts_until_it_is_dropped_and_makes_only_readers_of_apps_wait() {
        let buffers = Rc::new(Buffers::new(4));
        let mut cx = Context::from_waker(Waker::noop());
        let mut enlisted = Enlisted::default();
        let mut chunk = chunk(&buffers, 4);
        chunk.advance(3);
        assert_eq!((chunk.chunk(), buffers.used(), buffers.is_full()), (&[7][..], 4, false));
        assert!(buffers.poll_room(&mut cx, &mut enlisted).is_pending());
        assert!(buffers.poll_room(&mut cx, &mut enlisted).is_pending());
        assert_eq!(buffers.waiting.borrow().len(), 1, "enlisted once");
        drop(chunk);
        assert!(buffers.waiting.borrow().is_empty(), "woken");
        assert!(buffers.poll_room(&mut cx, &mut enlisted).is_ready());
    }

    #[test]
    fn much_is_handed_on_in_its_block_which_then_comes_back() {
        let buffers = Rc::new(Buffers::new(usize::MAX));
        let chunk = chunk(&buffers, HANDED_ON_MIN);
        assert_eq!((chunk.remaining(), buffers.used()), (HANDED_ON_MIN, BLOCK_LEN), "it holds all of it");
        assert!(chunk.chunk().iter().all(|&byte| byte == 7));
        assert_eq!(buffers.spare.borrow().len(), 0);
        drop(chunk);
        assert_eq!((buffers.spare.borrow().len(), buffers.used()), (1, 0));
        let read = |into: &mut [u8]| Poll::Ready(Ok::<_, ()>(into.len()));
        let Poll::Ready(Ok(Some(little))) = buffers.chunk(5, read) else { panic!("no chunk") };
        assert_eq!((little.remaining(), buffers.used(), buffers.spare.borrow().len()), (5, 5, 1));
        assert!(buffers.chunk(5, |_| Poll::<Result<_, ()>>::Pending).is_pending());
        assert!(matches!(buffers.chunk(5, |_| Poll::Ready(Ok::<_, ()>(0))), Poll::Ready(Ok(None))));
        assert_eq!(buffers.spare.borrow().len(), 1);
    }

    #[test]
    fn stalled_readers_fill_the_budget() {
        let buffers = Buffers::new(4);
        buffers.hold(2);
        assert!(buffers.is_pressed() && !buffers.is_full());
        buffers.hold(2);
        assert!(buffers.is_full());
        buffers.release(4);
        assert!(!buffers.is_pressed());
    }

    #[test]
    fn blocks_that_nobody_needs_for_a_while_are_let_go() {
        let buffers = Buffers::new(0);
        let blocks: Vec<_> = (0..5).map(|_| buffers.take_block()).collect();
        blocks.into_iter().for_each(|block| buffers.give_back(block));
        let spare = || buffers.spare.borrow().len();
        buffers.let_unused_go();
        assert_eq!(spare(), 5, "all were needed just now");
        let two = [buffers.take_block(), buffers.take_block()];
        two.into_iter().for_each(|block| buffers.give_back(block));
        buffers.let_unused_go();
        assert_eq!(spare(), 2);
        buffers.let_unused_go();
        assert_eq!(spare(), 0);
    }

    #[test]
    fn only_so_many_blocks_are_kept() {
        let buffers = Buffers::new(0);
        let blocks: Vec<_> = (0..SPARE_BLOCKS_MAX + 3).map(|_| buffers.take_block()).collect();
        blocks.into_iter().for_each(|block| buffers.give_back(block));
        assert_eq!(buffers.spare.borrow().len(), SPARE_BLOCKS_MAX);
    }
}
