//! The live image, open: held, or in use by others.

use crate::base::error::{ErrorKind, Result};
use crate::image::{FileStat, RawFile};
use std::path::Path;

/// An image that a snapshot is to be taken of.
pub struct LiveImage {
    /// The image.
    pub image: RawFile,
    /// Who has it open for writing. Then it is not held, and must not be read.
    pub user: Option<String>,
}

impl LiveImage {
    /// Opens an image; one that is in use only if it may be cloned.
    ///
    /// # Errors
    /// `Busy` for an image that is in use and may not be cloned.
    pub fn open(path: &Path, may_clone: bool) -> Result<Self> {
        let busy = match RawFile::open_real(path) {
            Err(e) if e.kind() == ErrorKind::Busy && may_clone => e,
            other => return other.map(Self::held),
        };
        let Ok(image) = RawFile::open_in_use(path) else { return Err(busy) };
        let user = image.user().unwrap_or_else(|| "another program".into());
        Ok(Self { image, user: Some(user) })
    }

    /// An image that is open and held.
    pub fn held(image: RawFile) -> Self {
        Self { image, user: None }
    }

    /// What identifies its content; none while others write, or if it was written to a moment ago.
    pub fn stable_stat(&self) -> Option<FileStat> {
        if self.user.is_none() { self.image.stable_stat() } else { None }
    }
}
