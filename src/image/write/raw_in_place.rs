//! A disk that exists: a block device, or the live image of a rollback. Nothing is assumed of what
//! is on it.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::free_space::check_file_limit;
use crate::base::uri::Shown;
use crate::base::writeback::Writeback;
use crate::image::write::{InPlace, Medium, OsMedium, Target, ZEROS};
use crate::image::{RawFile, Source};
use std::io;

/// A raw image file or device that is changed where it lies.
pub struct RawInPlace<'a> {
    image: &'a RawFile,
    medium: &'a dyn Medium,
    can_punch: bool,
    is_begun: bool,
    written_bytes: u64,
    writeback: Writeback,
}

/// The largest sector in use.
const SECTOR_BYTES: u64 = 4096;

impl<'a> RawInPlace<'a> {
    /// Writes to an image that was opened to be written.
    pub fn new(image: &'a RawFile) -> Self {
        Self::through(image, &OsMedium)
    }

    /// The same by other means than the operating system's own.
    pub fn through(image: &'a RawFile, medium: &'a dyn Medium) -> Self {
        let writeback =
            if image.is_device() { Writeback::default() } else { Writeback::keeping_cache() };
        Self { image, medium, can_punch: true, is_begun: false, written_bytes: 0, writeback }
    }

    /// Before the first change: is the image still what it was?
    fn begin(&mut self) -> Result<()> {
        if !self.is_begun {
            self.image.begin_writing()?;
            self.is_begun = true;
        }
        Ok(())
    }

    /// True if the range reads as zeros now; false if the file system or device cannot punch holes.
    fn punch(&mut self, offset: u64, bytes: u64) -> Result<bool> {
        if !self.can_punch {
            return Ok(false);
        }
        let refusals = [libc::EOPNOTSUPP, libc::ENOSYS, libc::ENODEV, libc::EINVAL];
        match self.medium.punch(self.image.file(), offset, bytes) {
            Ok(()) => Ok(true),
            Err(e) if e.raw_os_error().is_some_and(|code| refusals.contains(&code)) => {
                self.can_punch = false;
                Ok(false)
            }
            Err(e) => Err(self.failed("punch a hole into", e)),
        }
    }

    fn write_zeros(&self, offset: u64, bytes: u64) -> Result<()> {
        let mut done = 0;
        while done < bytes {
            let now = (bytes - done).min(ZEROS.len() as u64);
            let zeros = ZEROS.get(..now as usize).unwrap_or_default();
            let written = self.medium.write(self.image.file(), zeros, offset + done);
            written.map_err(|e| self.failed("write", e))?;
            done += now;
        }
        Ok(())
    }

    fn failed(&self, what: &str, error: io::Error) -> Error {
        Error::os(what, self.image.path().shown(), error)
    }
}

impl Target for RawInPlace<'_> {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.begin()?;
        self.written_bytes += bytes.len() as u64;
        self.medium.write(self.image.file(), bytes, offset).map_err(|e| self.failed("write", e))
    }

    fn zero(&mut self, offset: u64, bytes: u64) -> Result<()> {
        self.begin()?;
        self.written_bytes += bytes;
        // A device punches whole sectors; what is ragged at the ends is written.
        let align = if self.image.is_device() { SECTOR_BYTES } else { 1 };
        let end = offset + bytes;
        let first = offset.next_multiple_of(align).min(end);
        let last = (end / align * align).max(first);
        if last > first && self.punch(first, last - first)? {
            self.write_zeros(offset, first - offset)?;
            return self.write_zeros(last, end - last);
        }
        self.write_zeros(offset, bytes)
    }

    fn advance_watermark(&mut self, offset: u64) -> Result<()> {
        let advanced = self.writeback.advance(self.image.file(), offset);
        advanced.map_err(|e| self.failed("write", e))
    }

    fn finish(&mut self) -> Result<()> {
        self.medium.sync(self.image.file()).map_err(|e| self.failed("sync", e))
    }

    fn name(&self) -> String {
        self.image.path().shown().to_string()
    }
}

impl InPlace for RawInPlace<'_> {
    fn has_fixed_length(&self) -> bool {
        self.image.is_device()
    }

    fn check_free_space(&self, bytes: u64) -> Result<()> {
        if !self.image.is_device() {
            check_file_limit(bytes, &self.image.name())?;
        }
        if self.image.is_device() && self.image.image_bytes() < bytes {
            let what = format!(
                "{} has {} bytes, but the image has {bytes}",
                self.image.path().shown(),
                self.image.image_bytes()
            );
            return Err(Error::new(ErrorKind::InvalidInput, what).hint("use a larger device"));
        }
        Ok(())
    }

    fn set_length(&mut self, bytes: u64) -> Result<()> {
        self.begin()?;
        let set = self.medium.set_length(self.image.file(), bytes);
        set.map_err(|e| self.failed("set the length of", e))
    }

    fn is_begun(&self) -> bool {
        self.is_begun
    }

    fn written_bytes(&self) -> u64 {
        self.written_bytes
    }
}
