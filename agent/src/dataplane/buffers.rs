//! The bytes that a worker holds: its scratch, the read-ahead blocks of its readable tunnels, and what waits to be sent.
//!
//! No buffer belongs to an idle connection. Everything is counted against the worker's share of the agent's budget.
//! Belongs to one worker thread; knows no socket.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Buf;

/// Length of the scratch and of a read-ahead block: one read of a full socket, 16 TLS records. Smaller batches cost
/// 25 % more CPU per byte, larger ones gain nothing.
pub(super) const BLOCK_LEN: usize = 256 * 1024;
/// Read-ahead blocks kept for the next readable tunnel: 4 × 256 KiB = 1 MiB per worker. In a burst more are made, and
/// given back to the allocator afterwards.
const SPARE_BLOCKS_MAX: usize = 4;

/// What one worker buffers.
#[derive(Debug)]
pub(super) struct Buffers {
    scratch: RefCell<Box<[u8]>>,
    spare: RefCell<Vec<Box<[u8]>>>,
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
            scratch: RefCell::new(block()),
            spare: RefCell::default(),
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

    /// A copy of exactly `bytes`, counted until it is dropped.
    pub(super) fn chunk(self: &Rc<Self>, bytes: &[u8]) -> Chunk {
        self.queued.set(self.queued.get() + bytes.len());
        Chunk { bytes: bytes.into(), at: 0, buffers: Rc::clone(self) }
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

    /// A block for a readable tunnel.
    pub(super) fn take_block(&self) -> Box<[u8]> {
        self.spare.borrow_mut().pop().unwrap_or_else(block)
    }

    /// Takes a block back, once nothing in it is unread.
    pub(super) fn give_back(&self, block: Box<[u8]>) {
        let mut spare = self.spare.borrow_mut();
        if spare.len() < SPARE_BLOCKS_MAX {
            spare.push(block);
        }
    }
}

fn block() -> Box<[u8]> {
    vec![0; BLOCK_LEN].into_boxed_slice()
}

/// Bytes on their way into a tunnel; counted in the worker's budget until h2 has written them.
#[derive(Debug)]
pub(super) struct Chunk {
    bytes: Box<[u8]>,
    at: usize,
    buffers: Rc<Buffers>,
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes[self.at..]
    }

    fn advance(&mut self, count: usize) {
        assert!(count <= self.remaining(), "cannot advance past the end of a chunk");
        self.at += count;
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let buffers = &self.buffers;
        buffers.queued.set(buffers.queued.get().saturating_sub(self.bytes.len()));
        buffers.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_counts_until_it_is_dropped_and_makes_only_readers_of_apps_wait() {
        let buffers = Rc::new(Buffers::new(4));
        let mut cx = Context::from_waker(Waker::noop());
        let mut enlisted = Enlisted::default();
        let mut chunk = buffers.chunk(b"abcd");
        chunk.advance(3);
        assert_eq!((chunk.chunk(), buffers.used(), buffers.is_full()), (&b"d"[..], 4, false));
        assert!(buffers.poll_room(&mut cx, &mut enlisted).is_pending());
        assert!(buffers.poll_room(&mut cx, &mut enlisted).is_pending());
        assert_eq!(buffers.waiting.borrow().len(), 1, "enlisted once");
        drop(chunk);
        assert!(buffers.waiting.borrow().is_empty(), "woken");
        assert!(buffers.poll_room(&mut cx, &mut enlisted).is_ready());
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
    fn only_so_many_blocks_are_kept() {
        let buffers = Buffers::new(0);
        let blocks: Vec<_> = (0..SPARE_BLOCKS_MAX + 3).map(|_| buffers.take_block()).collect();
        blocks.into_iter().for_each(|block| buffers.give_back(block));
        assert_eq!(buffers.spare.borrow().len(), SPARE_BLOCKS_MAX);
    }
}
