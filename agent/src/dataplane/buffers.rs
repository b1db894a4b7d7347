//! The bytes that a worker holds: its scratch, the blocks of those who read or write, and what waits to be sent.
//!
//! No buffer belongs to an idle connection. Everything is counted against the worker's part of the agent's budget, and
//! within it against its pod's [`super::share`]. Belongs to one worker thread; knows no socket.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::protocol::CONNECTION_WINDOW;
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
/// What may be held beyond the budget before streams are cut: as much again, and this at least. A pod alone may have half
/// of it beyond its share, which is what one tunnel can still bring once its window is not widened any more.
const OVERDRAFT_MIN: usize = 2 * CONNECTION_WINDOW as usize;

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
    waiting: RefCell<Vec<Rc<dyn Waiting>>>,
}

/// Tasks that wait for room together.
pub(super) trait Waiting: std::fmt::Debug {
    /// Whether there is some for them by now.
    fn has_room(&self) -> bool;
    /// Wakes them.
    fn wake(&self);
}

impl Buffers {
    /// `limit`: this worker's part of the agent's budget, in bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            scratch: RefCell::new(vec![0; BATCH_LEN].into()),
            spare: RefCell::default(),
            unused: Cell::new(0),
            queued: Cell::new(0),
            held: Cell::new(0),
            limit,
            waiting: RefCell::default(),
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

    /// What is not yet held for stalled readers.
    pub(super) fn not_held(&self) -> usize {
        self.limit.saturating_sub(self.held())
    }

    /// What is not yet held for stalled readers of the budget and the overdraft: nearly all of what comes by windows that
    /// were granted before the budget was used up.
    pub(super) fn not_overdrawn(&self) -> usize {
        let overdraft = self.limit.max(OVERDRAFT_MIN);
        self.limit.saturating_add(overdraft).saturating_sub(self.held())
    }

    /// What is not yet used.
    pub(super) fn not_used(&self) -> usize {
        self.limit.saturating_sub(self.used())
    }

    /// Lends the worker's scratch for one synchronous read.
    pub(super) fn with_scratch<T>(&self, read: impl FnOnce(&mut [u8]) -> T) -> T {
        read(&mut self.scratch.borrow_mut())
    }

    /// Counts what is on its way into a tunnel; every call has its [`Buffers::unqueue`].
    pub(super) fn queue(&self, len: usize) {
        self.queued.set(self.queued.get() + len);
    }

    /// Ends what [`Buffers::queue`] counted.
    pub(super) fn unqueue(&self, len: usize) {
        self.queued.set(self.queued.get().saturating_sub(len));
        self.wake();
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

    /// Has tasks woken once there is room for them.
    pub(super) fn await_room(&self, tasks: Rc<dyn Waiting>) {
        self.waiting.borrow_mut().push(tasks);
    }

    /// Wakes those who wait for room, where there is some by now.
    fn wake(&self) {
        if self.waiting.borrow().is_empty() {
            return;
        }
        let roomy: Vec<_> = self.waiting.borrow_mut().extract_if(.., |tasks| tasks.has_room()).collect();
        roomy.iter().for_each(|tasks| tasks.wake());
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

#[cfg(test)]
impl Buffers {
    /// Blocks that wait for the next who reads or writes.
    pub(super) fn spare(&self) -> usize {
        self.spare.borrow().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
