//! The single operations by which an image is changed where it lies: the seam for tests of power
//! loss, as [`crate::store::Disk`] is that of the repository.
//!
//! Only what is synced is durable. Of everything else any part may be lost, in any order.

use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// How an open image is changed. What stands here is what the operating system does.
pub trait Medium: Sync {
    /// Writes bytes at an offset.
    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    /// Makes a range read as zeros without writing them.
    fn punch(&self, file: &File, offset: u64, bytes: u64) -> io::Result<()> {
        let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        Ok(fallocate(file, mode, offset as i64, bytes as i64)?)
    }

    /// Gives a file its length.
    fn set_length(&self, file: &File, bytes: u64) -> io::Result<()> {
        file.set_len(bytes)
    }

    /// Makes everything durable.
    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    /// Leaves nothing of the file in the page cache: what is read next comes from the device.
    fn forget(&self, file: &File) {
        // Only advice: a file system that does not take it does as it likes.
        posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap_or_default();
    }
}

/// The operating system.
pub struct OsMedium;

impl Medium for OsMedium {}
