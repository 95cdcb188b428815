//! The live image, open: held, or in use by others.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::Context;
use crate::image::{Disk, FileStat, ImageUri, RawFile};

/// An image that a snapshot is to be taken of.
pub struct LiveImage {
    /// The image.
    pub disk: Disk,
    /// Who has it open for writing. Then it is not held, and must not be read.
    pub user: Option<String>,
}

impl LiveImage {
    /// Opens an image; one that is in use only if it may be cloned.
    ///
    /// # Errors
    /// `Busy` for an image that is in use and may not be cloned.
    pub fn open(image: &ImageUri, may_clone: bool, _context: &Context) -> Result<Self> {
        match image {
            ImageUri::File(path) => {
                let busy = match RawFile::open_real(path) {
                    Err(e) if e.kind() == ErrorKind::Busy && may_clone => e,
                    other => return other.map(Self::held),
                };
                let Ok(image) = RawFile::open_in_use(path) else { return Err(busy) };
                let user = image.user().unwrap_or_else(|| "another program".into());
                Ok(Self { disk: image.into(), user: Some(user) })
            }
            ImageUri::Nbd(_) => {
                let what = format!("{image}: NBD exports are not read yet");
                Err(Error::new(ErrorKind::Unsupported, what))
            }
        }
    }

    /// An image that is open and held.
    pub fn held(disk: impl Into<Disk>) -> Self {
        Self { disk: disk.into(), user: None }
    }

    /// What identifies its content; none while others write, or if it was written to a moment ago.
    pub fn stable_stat(&self) -> Option<FileStat> {
        if self.user.is_none() { self.disk.stable_stat() } else { None }
    }
}
