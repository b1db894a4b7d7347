//! The lines of a watch, put together of the pieces in which they come. Holds bytes only; reads from nobody.

use bytes::{Bytes, BytesMut};

/// The longest line of a watch, in bytes: etcd holds objects of up to 1.5 MiB, and JSON writes a byte such as `<` in six;
/// so 9 MiB, and the names of the fields.
pub const LINE_LEN_MAX: usize = 16 * 1024 * 1024;

/// A line is longer than [`LINE_LEN_MAX`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a line of a watch is longer than {LINE_LEN_MAX} bytes")]
pub struct TooLong;

/// What has come and was not taken yet.
#[derive(Debug, Default)]
pub struct Lines {
    unread: BytesMut,
    /// How much of `unread` is known to have no end of a line.
    searched: usize,
}

impl Lines {
    /// Adds the next piece. What has come before it is to be taken first: no more than a line and a piece is held.
    pub fn add(&mut self, piece: &[u8]) -> Result<(), TooLong> {
        if self.unread.len() + piece.len() > LINE_LEN_MAX {
            return Err(TooLong);
        }
        self.unread.extend_from_slice(piece);
        Ok(())
    }

    /// Takes the next whole line, without its end; none: another piece is needed. A line that never ends is none.
    pub fn take(&mut self) -> Option<Bytes> {
        let Some(at) = self.unread[self.searched..].iter().position(|byte| *byte == b'\n') else {
            self.searched = self.unread.len();
            return None;
        };
        let line = self.unread.split_to(self.searched + at + 1).freeze();
        self.searched = 0;
        Some(line.slice(..line.len() - 1))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(lines: &mut Lines) -> Vec<Bytes> {
        std::iter::from_fn(|| lines.take()).collect()
    }

    proptest! {
        #[test]
        fn lines_are_the_same_however_they_are_cut(said in "[a\n]{0,40}", cuts in prop::collection::vec(0_usize..6, 0..20)) {
            let (mut lines, mut rest, mut taken) = (Lines::default(), said.as_bytes(), Vec::new());
            for cut in cuts {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                rest = after;
                lines.add(piece).unwrap();
                taken.extend(all(&mut lines));
            }
            lines.add(rest).unwrap();
            taken.extend(all(&mut lines));
            let mut expected: Vec<&str> = said.split('\n').collect();
            expected.pop();
            prop_assert_eq!(taken, expected);
        }
    }

    #[test]
    fn no_more_is_held_than_the_longest_line() {
        let mut lines = Lines::default();
        let half = vec![b'x'; LINE_LEN_MAX / 2];
        lines.add(&half).unwrap();
        assert_eq!(lines.take(), None);
        lines.add(&half[1..]).unwrap();
        lines.add(b"\n").unwrap();
        assert_eq!(lines.take().map(|line| line.len()), Some(LINE_LEN_MAX - 1));
        lines.add(&half).unwrap();
        lines.add(&half).unwrap();
        assert_eq!(lines.add(b"\n"), Err(TooLong));
    }
}
