//! Where images are read from. One trait; an implementation per file.
//!
//! A source is a flat run of bytes with a map of extents (data or hole, ascending, contiguous) and
//! reads that may be made from many threads. What a source promises about holes it promises for
//! ever: a hole is zeros.

mod attributes;
mod base_image;
mod device;
mod disk;
mod fingerprint;
mod format;
mod guard;
mod identity;
mod limited;
mod live;
mod machine_uri;
pub mod nbd;
mod pinned;
mod prefix;
pub mod qcow2;
pub mod qemu;
mod raw;
mod remote;
mod through_qemu;
mod unguarded;
mod uri;
mod users;
pub mod write;

pub use attributes::{FileAttributes, NotGiven};
pub use base_image::BaseImage;
pub(crate) use device::loop_file;
pub use disk::{Disk, ReadBy};
pub use fingerprint::{Fingerprint, ImageSample};
pub use format::{ImageFormat, refuse_foreign};
pub use guard::{FileStat, ImageGuard};
pub use identity::{DeviceIdentity, LiveIdentity, LoopFile};
pub use limited::Limited;
pub use live::LiveImage;
pub use machine_uri::{DomainName, MachinePlace, MachineUri};
pub use pinned::pinned_by;
pub use prefix::Prefix;
pub use raw::{DropFromCache, RawFile};
pub use remote::RemoteImage;
pub use unguarded::Unguarded;
pub use uri::{ImageUri, parse_image};
pub use users::Intent;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::message::{Action, message};
use crate::base::sys::MappedWindow;
use crate::base::units::Extent;

/// A readable disk: an image file, a block device, or a snapshot.
pub trait Source: Sync {
    /// Length in bytes.
    fn image_bytes(&self) -> u64;

    /// The rest, from `offset` on, of the extent that `offset` is in. `offset` is within the image.
    fn extent_at(&self, offset: u64) -> Result<Extent>;

    /// Reads `bytes` bytes from `offset` on, all within the image. `buffer` is used if they have to
    /// be copied.
    ///
    /// # Errors
    /// With the offset of the first byte that could not be read.
    fn read<'a>(&'a self, offset: u64, bytes: usize, buffer: &'a mut Vec<u8>)
    -> Result<Window<'a>>;

    /// Reads as much of it as can be read, into `buffer`. If its medium does not give all of it, gives the
    /// error of the first byte that is missing.
    ///
    /// # Errors
    /// Whatever is no fault of the medium.
    fn read_until_bad(
        &self,
        offset: u64,
        bytes: usize,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<Error>> {
        let mut own = Vec::new();
        let window = self.read(offset, bytes, &mut own)?;
        buffer.clear();
        buffer.extend_from_slice(window.bytes());
        Ok(None)
    }

    /// Reads as [`Source::read_until_bad`], and fails if not all of it can be read.
    ///
    /// # Errors
    /// As of [`Source::read`].
    fn read_copied<'a>(
        &'a self,
        offset: u64,
        bytes: usize,
        buffer: &'a mut Vec<u8>,
    ) -> Result<Window<'a>> {
        match self.read_until_bad(offset, bytes, buffer)? {
            Some(error) => Err(error),
            None => Ok(Window::Copied(buffer)),
        }
    }

    /// As many bytes as it is best read at once.
    fn best_read_bytes(&self) -> u64 {
        u64::MAX
    }

    /// Says that so many bytes from `offset` on will be read soon.
    fn prefetch(&self, _offset: u64, _bytes: u64) {}

    /// Fails if the source is no longer what it was when it was opened, as far as a quick look tells.
    fn check(&self) -> Result<()>;

    /// The same, once, when all of it has been read: as far as can be found out.
    fn check_at_end(&self) -> Result<()> {
        self.check()
    }

    /// True if what it reads keeps to the limits already: it is made of files that do.
    fn is_limited(&self) -> bool {
        false
    }

    /// What to call it in a message.
    fn name(&self) -> String;
}

/// Bytes that were read. Call [`Window::check`] after the last access to them.
pub enum Window<'a> {
    /// Mapped from a file, and what to let go of when it is unmapped.
    Mapped(MappedWindow, Option<DropFromCache<'a>>),
    /// Copied.
    Copied(&'a [u8]),
}

impl Window<'_> {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Mapped(window, _) => window.bytes(),
            Self::Copied(bytes) => bytes,
        }
    }

    /// To be asked after the last look at the bytes.
    ///
    /// # Errors
    /// `Busy` if they were no bytes of the source: it was truncated meanwhile, or could not be read.
    pub fn check(&self, source: &dyn Source) -> Result<()> {
        match self {
            Self::Mapped(window, _) if window.is_poisoned() => {
                let what = format!(
                    "{} became shorter or unreadable while it was being read",
                    source.name()
                );
                Err(Error::new(ErrorKind::Busy, what)
                    .hint(message![Action::Retry, " when nobody changes it, and check its disk"]))
            }
            _ => Ok(()),
        }
    }
}
