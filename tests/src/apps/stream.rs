//! A byte stream that both ends can compute, so that a receiver knows the first byte that is wrong.

use std::io::{self, Read, Write};

use anyhow::{Context, Result, bail};

/// How much is written and read at once.
const CHUNK_LEN: usize = 64 << 10;

/// A pseudo-random stream, determined by its seed (splitmix64 of the word's index).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Pattern {
    /// What determines it.
    pub seed: u64,
}

/// How much of a pattern arrived whole.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Tally {
    /// Bytes, all of them right.
    pub bytes: u64,
}

impl Pattern {
    /// Writes the first `len` bytes of it.
    pub fn write(self, to: &mut impl Write, len: u64) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK_LEN];
        let mut at = 0;
        while at < len {
            self.fill(at, &mut chunk);
            let part = usize::try_from(len - at).unwrap_or(usize::MAX).min(CHUNK_LEN);
            to.write_all(&chunk[..part])?;
            at += part as u64;
        }
        to.flush()
    }

    /// Reads to the end and compares; an error names the first byte that differs.
    pub fn check(self, from: &mut impl Read) -> Result<Tally> {
        self.check_up_to(from, u64::MAX)
    }

    /// Reads `len` bytes, or to the end if that comes first, and compares.
    pub fn check_up_to(self, from: &mut impl Read, len: u64) -> Result<Tally> {
        let (mut got, mut right) = (vec![0; CHUNK_LEN], vec![0; CHUNK_LEN]);
        let mut at = 0;
        while at < len {
            // Up to the next whole chunk, so that `fill` begins at a word.
            let room = CHUNK_LEN - usize::try_from(at % CHUNK_LEN as u64).unwrap_or(0);
            let room = room.min(usize::try_from(len - at).unwrap_or(usize::MAX));
            let read = match from.read(&mut got[..room]) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).with_context(|| format!("after {at} right bytes")),
            };
            let begin = usize::try_from(at % CHUNK_LEN as u64).unwrap_or(0);
            if begin == 0 {
                self.fill(at, &mut right);
            }
            if let Some(wrong) = (0..read).find(|index| got[*index] != right[begin + index]) {
                bail!("byte {} of the stream is wrong", at + wrong as u64);
            }
            at += read as u64;
        }
        Ok(Tally { bytes: at })
    }

    /// Fills `chunk` with the bytes from `at` on, which is a multiple of 8.
    fn fill(self, at: u64, chunk: &mut [u8]) {
        for (index, word) in chunk.chunks_mut(8).enumerate() {
            let random =
                mix(self.seed.wrapping_add((at / 8 + index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
            word.copy_from_slice(&random.to_le_bytes()[..word.len()]);
        }
    }
}

/// splitmix64's output function (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
const fn mix(seed: u64) -> u64 {
    let seed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let seed = (seed ^ (seed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    seed ^ (seed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_checked_whatever_the_pieces_and_the_first_wrong_byte_is_named() {
        let pattern = Pattern { seed: 7 };
        let mut bytes = Vec::new();
        pattern.write(&mut bytes, 200_003).unwrap();
        assert_eq!(bytes.len(), 200_003);
        struct Pieces<'b>(&'b [u8]);
        impl Read for Pieces<'_> {
            fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                let len = into.len().min(self.0.len()).min(1 + self.0.len() % 777);
                into[..len].copy_from_slice(&self.0[..len]);
                self.0 = &self.0[len..];
                Ok(len)
            }
        }
        assert_eq!(pattern.check(&mut Pieces(&bytes)).unwrap(), Tally { bytes: 200_003 });
        bytes[131_073] ^= 1;
        let error = pattern.check(&mut Pieces(&bytes)).unwrap_err();
        assert_eq!(error.to_string(), "byte 131073 of the stream is wrong");
    }
}
