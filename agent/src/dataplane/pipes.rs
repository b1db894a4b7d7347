//! The pipes through which the kernel moves bytes from one socket to another without copying them to the agent.
//!
//! A pipe is lent only while bytes keep coming, so idle connections hold none. Belongs to one worker thread.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;

/// Bytes a pipe takes: what the scratch takes, so that both ways of carrying move alike.
const PIPE_LEN: usize = 256 * 1024;
/// Pipes of one worker: 64 × 256 KiB = 16 MiB of kernel memory if all are full, 128 descriptors. Further connections
/// are copied until one comes back.
const PIPES_MAX: usize = 64;

/// One worker's pipes.
#[derive(Debug, Default)]
pub(super) struct Pipes {
    spare: RefCell<Vec<Ends>>,
    made: Cell<usize>,
}

#[derive(Debug)]
struct Ends {
    out: OwnedFd,
    into: OwnedFd,
}

/// A pipe on loan, and how many bytes are in it.
#[derive(Debug)]
pub(super) struct Pipe {
    ends: Option<Ends>,
    filled: usize,
    home: Rc<Pipes>,
}

impl Pipes {
    /// Lends a pipe; `None` when all are lent, or the kernel gives none.
    pub(super) fn lend(self: &Rc<Self>) -> Option<Pipe> {
        let spare = self.spare.borrow_mut().pop();
        let ends = match spare {
            Some(ends) => ends,
            None if self.made.get() < PIPES_MAX => {
                let (out, into) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).ok()?;
                let len = i32::try_from(PIPE_LEN).ok()?;
                // Refused beyond the user's share of pipe memory: then it moves 64 KiB at a time.
                let _ = fcntl(&into, FcntlArg::F_SETPIPE_SZ(len));
                self.made.set(self.made.get() + 1);
                Ends { out, into }
            }
            None => return None,
        };
        Some(Pipe { ends: Some(ends), filled: 0, home: Rc::clone(self) })
    }
}

impl Pipe {
    /// Whether nothing is in it.
    pub(super) fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Fills it from a socket; the pipe must be empty, or "would block" could mean that it is full. 0: the end.
    pub(super) fn fill(&mut self, from: impl AsFd) -> io::Result<usize> {
        debug_assert!(self.is_empty(), "only an empty pipe is filled");
        let Some(ends) = &self.ends else { return Ok(0) };
        let moved = retried(|| splice(&from, None, &ends.into, None, PIPE_LEN, flags()))?;
        self.filled += moved;
        Ok(moved)
    }

    /// Empties it into a socket, as far as that takes it.
    pub(super) fn drain(&mut self, into: impl AsFd) -> io::Result<usize> {
        let Some(ends) = &self.ends else { return Ok(0) };
        let moved = retried(|| splice(&ends.out, None, &into, None, self.filled, flags()))?;
        self.filled -= moved.min(self.filled);
        Ok(moved)
    }
}

fn flags() -> SpliceFFlags {
    SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE
}

fn retried(mut call: impl FnMut() -> nix::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result.map_err(io::Error::from),
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        match self.ends.take() {
            Some(ends) if self.filled == 0 => self.home.spare.borrow_mut().push(ends),
            // What is in it belongs to a connection that is gone; nobody else may get it.
            Some(_) => self.home.made.set(self.home.made.get() - 1),
            None => {}
        }
    }
}
