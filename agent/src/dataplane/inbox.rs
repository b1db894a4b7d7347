//! What has come on a tunnel and was not yet taken: read in large pieces, opened in place.
//!
//! There is a block only while something in it is unread; of a record that has come in part, exactly that part is kept.

use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::ReadBuf;

use super::buffers::Buffers;
use super::records::{Opened, Opener, whole};
use super::wire::Wire;

/// Bytes read in one poll before the other tasks of the worker get their turn: about 0.5 ms.
const READ_QUOTA: usize = 1024 * 1024;

/// What came behind a handshake.
#[derive(Debug, Default)]
pub(super) struct Early {
    /// Opened by the handshake already.
    pub(super) plain: Vec<u8>,
    /// Not opened.
    pub(super) sealed: Vec<u8>,
}

/// The receiving half of a tunnel.
pub(super) struct Inbox {
    opener: Opener,
    buffers: Rc<Buffers>,
    block: Option<Box<[u8]>>,
    /// This part of the block is opened and not yet taken.
    plain: Range<usize>,
    /// This part, behind it, is not yet opened.
    sealed: Range<usize>,
    /// What is unread while there is no block.
    kept: Early,
    read_since_pending: usize,
}

impl Inbox {
    /// Begins with what came behind the handshake.
    pub(super) fn new(opener: Opener, buffers: Rc<Buffers>, early: Early) -> Self {
        Self { opener, buffers, block: None, plain: 0..0, sealed: 0..0, kept: early, read_since_pending: 0 }
    }

    /// Moves what is opened into `buf`, as far as it takes it; whether there was any.
    pub(super) fn take(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        if !self.kept.plain.is_empty() {
            let count = buf.remaining().min(self.kept.plain.len());
            buf.put_slice(&self.kept.plain[..count]);
            drop(self.kept.plain.drain(..count));
            if self.kept.plain.is_empty() {
                self.kept.plain = Vec::new();
            }
            return true;
        }
        let Some(block) = self.block.as_deref().filter(|_| !self.plain.is_empty()) else { return false };
        let count = buf.remaining().min(self.plain.len());
        buf.put_slice(&block[self.plain.start..self.plain.start + count]);
        self.plain.start += count;
        self.let_go();
        true
    }

    /// Opens the next record, what was opened before being taken; `None` while it has not come whole.
    pub(super) fn open_next(&mut self) -> io::Result<Option<Opened>> {
        if self.block.is_none() && whole(&self.kept.sealed)?.is_none() {
            return Ok(None);
        }
        self.take_up();
        let Some(block) = self.block.as_deref_mut() else { return Ok(None) };
        let Some(len) = whole(&block[self.sealed.clone()])? else { return Ok(None) };
        let start = self.sealed.start;
        self.sealed.start += len;
        let opened = self.opener.open(&mut block[start..start + len])?;
        if let Opened::Data(data) = &opened {
            self.plain = start + data.start..start + data.end;
        }
        self.let_go();
        Ok(Some(opened))
    }

    /// Reads more; an error at the end, which is not the peer's word but TCP's.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>, wire: &Wire) -> Poll<io::Result<()>> {
        if self.read_since_pending >= READ_QUOTA {
            self.read_since_pending = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        // Asked first, so that a socket with nothing to read costs no block.
        if wire.poll_readable(cx)?.is_pending() {
            self.put_by();
            return Poll::Pending;
        }
        self.take_up();
        let buffers = &self.buffers;
        let block = self.block.get_or_insert_with(|| buffers.take_block());
        block.copy_within(self.sealed.clone(), 0);
        self.sealed = 0..self.sealed.len();
        let Poll::Ready(read) = wire.poll_read(cx, &mut block[self.sealed.end..]) else {
            self.put_by();
            return Poll::Pending;
        };
        match read? {
            0 => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            count => {
                self.read_since_pending += count;
                self.sealed.end += count;
                Poll::Ready(Ok(()))
            }
        }
    }

    #[cfg(test)]
    pub(super) fn holds_a_block(&self) -> bool {
        self.block.is_some()
    }

    #[cfg(test)]
    pub(super) fn keeps(&self) -> usize {
        self.kept.plain.len() + self.kept.sealed.len()
    }

    /// Nothing more comes for now: what is there of a record is kept without a block.
    fn put_by(&mut self) {
        self.read_since_pending = 0;
        if let Some(block) = &self.block {
            self.kept.sealed = block[self.sealed.clone()].to_vec();
            self.sealed = 0..0;
        }
        self.let_go();
    }

    /// Puts what was kept at the start of a block.
    fn take_up(&mut self) {
        if !self.kept.sealed.is_empty() {
            let kept = std::mem::take(&mut self.kept.sealed);
            let buffers = &self.buffers;
            let block = self.block.get_or_insert_with(|| buffers.take_block());
            block[..kept.len()].copy_from_slice(&kept);
            self.sealed = 0..kept.len();
        }
    }

    /// Gives the block back once nothing in it is unread.
    fn let_go(&mut self) {
        if self.plain.is_empty()
            && self.sealed.is_empty()
            && let Some(block) = self.block.take()
        {
            self.buffers.give_back(block);
            self.sealed = 0..0;
        }
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            self.buffers.give_back(block);
        }
    }
}
