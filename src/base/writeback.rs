//! Writing to the device while more is made: what is written to a large new file goes to the page
//! cache, and without a push the device stands idle until the sync at the end.
//!
//! ```text
//!   ... on the device, not cached | being written, 32 MiB at most | dirty, 8 MiB |
//! ```
//!
//! So the two overlap, dirty memory is bounded, and others' pages are not thrown out of the cache.

use crate::base::error::best_effort;
use crate::base::sys;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use std::fs::File;
use std::io;

/// How far a file that is written front to back has gone to its device.
#[derive(Debug, Default)]
pub struct Writeback {
    /// Up to here it was begun.
    begun: u64,
    /// Up to here it was waited for.
    ended: u64,
    /// What is on the device stays in the page cache.
    keeps_cache: bool,
}

const STEP_BYTES: u64 = 8 << 20;
const LAG_BYTES: u64 = 32 << 20;

impl Writeback {
    /// For a file that others may have had in the page cache before.
    pub fn keeping_cache() -> Self {
        Self { keeps_cache: true, ..Self::default() }
    }

    /// For a file of which others write what is before `offset`.
    pub fn beginning_at(offset: u64) -> Self {
        Self { begun: offset, ended: offset, ..Self::default() }
    }

    /// All before `end` is written to `file`, and will not be written again.
    ///
    /// # Errors
    /// Of the device; the sync at the end would not report them again.
    pub fn advance(&mut self, file: &File, end: u64) -> io::Result<()> {
        let end = end / STEP_BYTES * STEP_BYTES;
        if end <= self.begun {
            return Ok(());
        }
        sys::begin_writeback(file, self.begun, end - self.begun)?;
        self.begun = end;
        let done = self.begun.saturating_sub(LAG_BYTES);
        if done > self.ended {
            sys::await_writeback(file, self.ended, done - self.ended)?;
            let (offset, bytes) = (self.ended as i64, (done - self.ended) as i64);
            let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
            if !self.keeps_cache {
                // Only advice.
                best_effort(posix_fadvise(file, offset, bytes, advice));
            }
            self.ended = done;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};

    #[test]
    fn bytes_are_all_there_and_the_cache_is_not_filled() {
        const BYTES: usize = 72 << 20;
        let mut file = tempfile::tempfile().unwrap();
        let piece: Vec<u8> =
            (0..1 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 9) as u8).collect();
        let mut writeback = Writeback::default();
        for index in 1..=BYTES >> 20 {
            file.write_all(&piece).unwrap();
            writeback.advance(&file, (index << 20) as u64).unwrap();
        }
        file.sync_all().unwrap();
        assert_eq!((writeback.begun, writeback.ended), (72 << 20, 40 << 20));
        if let Some(pages @ 1..) = sys::cached_pages(&file, 0, BYTES as u64) {
            assert!(pages * 4096 <= 41 << 20, "{pages} pages are cached");
        }
        file.rewind().unwrap();
        let mut back = vec![0; 1 << 20];
        for _ in 0..BYTES >> 20 {
            file.read_exact(&mut back).unwrap();
            assert!(back == piece);
        }
    }
}
