//! The live image, open: held, or in use by others.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::Context;
use crate::image::disk::ReadBy;
use crate::image::nbd::{NbdDisk, NbdOptions};
use crate::image::{Disk, FileStat, ImageFormat, ImageUri, RawFile, RemoteImage};

/// An image that a snapshot is to be taken of.
pub struct LiveImage {
    /// The image.
    pub disk: Disk,
    /// Who has it open for writing. Then it is not held, and must not be read.
    pub user: Option<String>,
}

impl LiveImage {
    /// Opens an image as it is, whatever is in it; one that is in use only if it may be cloned. An export is
    /// opened with the dirty bitmap of that name.
    ///
    /// # Errors
    /// `Busy` for an image that is in use and may not be cloned.
    pub fn open(
        image: &ImageUri,
        may_clone: bool,
        bitmap: Option<&str>,
        context: &Context,
    ) -> Result<Self> {
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
            ImageUri::Nbd(uri) => {
                let bitmap = bitmap.map(str::to_owned);
                let options = NbdOptions { bitmap, ..NbdOptions::default() };
                Ok(Self { disk: Disk::Nbd(NbdDisk::open(uri, options, context)?), user: None })
            }
            ImageUri::Remote(url) => {
                Ok(Self::held(Disk::Remote(RemoteImage::open(url, context.transfer())?)))
            }
            ImageUri::Machine(uri) => {
                let what = format!("{uri} cannot be read directly, only by taking a snapshot");
                Err(Error::new(ErrorKind::Unsupported, what))
            }
        }
    }

    /// An image that is open and held.
    pub fn held(disk: impl Into<Disk>) -> Self {
        Self { disk: disk.into(), user: None }
    }

    /// The disk that lies in it in that format.
    ///
    /// # Errors
    /// `Busy` for one that is not raw and in use: its clone may be none that can be read; as of
    /// [`Disk::within`].
    pub fn in_format(self, format: ImageFormat, by: ReadBy, context: &Context) -> Result<Self> {
        let place = self.disk.name();
        match (self.disk, self.user) {
            (disk, user) if format.is_raw() => Ok(Self { disk, user }),
            (_, Some(user)) => {
                let what = format!("{place} is a {format} image in use by {user}");
                Err(Error::new(ErrorKind::Busy, what)
                    .hint("shut it down, or take it through QEMU, libvirt or an NBD export"))
            }
            (Disk::Raw(file), None) => Ok(Self::held(Disk::within(file, format, by, context)?)),
            (_, None) => {
                let what = format!("{place} is not a file, so it cannot contain a {format} image");
                Err(Error::new(ErrorKind::Unsupported, what)
                    .hint("have the server export the disk itself"))
            }
        }
    }

    /// What identifies its content; none while others write, or if it was written to a moment ago.
    pub fn stable_stat(&self) -> Option<FileStat> {
        if self.user.is_none() { self.disk.stable_stat() } else { None }
    }
}
