//! A disk that others may be writing to. What is read of it need not be a state that it ever had as a whole,
//! and must be proved.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::units::{Extent, ExtentKind};
use crate::base::uri::Shown;
use crate::image::{Source, Window};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind as IoKind, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A raw file or device that is read without holding anybody off.
pub struct Unguarded {
    file: File,
    path: PathBuf,
    image_bytes: u64,
}

impl Unguarded {
    /// Opens it, whoever uses it.
    ///
    /// # Errors
    /// `InvalidInput` for anything but a file or a block device.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |e| Error::os("open", path.shown(), e);
        let mut options = OpenOptions::new();
        let opened = options.read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let mut file = opened.map_err(failed)?;
        let kind = file.metadata().map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let what = format!("{} is neither a file nor a block device", path.shown());
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        let image_bytes = file.seek(SeekFrom::End(0)).map_err(failed)?;
        Ok(Self { file, path: path.into(), image_bytes })
    }
}

impl Source for Unguarded {
    fn image_bytes(&self) -> u64 {
        self.image_bytes
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let bytes = self.image_bytes - offset;
        Ok(Extent { offset, bytes, kind: ExtentKind::Data })
    }

    fn read<'a>(
        &'a self,
        offset: u64,
        bytes: usize,
        buffer: &'a mut Vec<u8>,
    ) -> Result<Window<'a>> {
        // Never mapped: what was proved must stay what it is.
        self.read_copied(offset, bytes, buffer)
    }

    fn read_until_bad(
        &self,
        offset: u64,
        bytes: usize,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<Error>> {
        buffer.resize(bytes, 0);
        let mut have = 0;
        while let Some(rest) = buffer.get_mut(have..).filter(|rest| !rest.is_empty()) {
            let at = offset + have as u64;
            let error = match self.file.read_at(rest, at) {
                Ok(n) if n > 0 => {
                    have += n;
                    continue;
                }
                Err(e) if e.kind() == IoKind::Interrupted => continue,
                Err(e) => Error::os_at("read", self.path.shown(), at, e),
                Ok(_) => {
                    let what = format!("{} became shorter (no byte at {at})", self.path.shown());
                    Error::new(ErrorKind::Busy, what)
                }
            };
            buffer.truncate(have);
            return Ok(Some(error));
        }
        Ok(None)
    }

    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn name(&self) -> String {
        self.path.shown().to_string()
    }
}
