//! A disk that is open, whatever it lies in.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::Context;
use crate::base::units::ByteRange;
use crate::base::uri::Shown;
use crate::image::write::{InPlace, Medium, RawInPlace};
use crate::image::{FileStat, ImageFormat, ImageUri, LiveIdentity, RawFile, Source};

/// A disk that is open.
pub enum Disk {
    /// A raw file, or a device.
    Raw(RawFile),
}

impl From<RawFile> for Disk {
    fn from(image: RawFile) -> Self {
        Self::Raw(image)
    }
}

impl Disk {
    /// Opens a disk to change it in place.
    ///
    /// # Errors
    /// `NotFound`; `Busy` if it is in use; `Unsupported` for a format that is not written.
    pub fn open_to_write(image: &ImageUri, format: &str, _context: &Context) -> Result<Self> {
        match image {
            ImageUri::File(path) if format == ImageFormat::RAW.qemu() => {
                RawFile::open_to_write(path).map(Self::Raw)
            }
            ImageUri::File(_) => {
                let what = format!("{image} is a {format} image, which cannot be changed in place");
                Err(Error::new(ErrorKind::Unsupported, what))
            }
            ImageUri::Nbd(_) => {
                let what = format!("{image}: NBD exports are not read yet");
                Err(Error::new(ErrorKind::Unsupported, what))
            }
        }
    }

    /// The disk, to be changed in place: of one that was opened for that.
    pub fn in_place<'a>(&'a self, medium: &'a dyn Medium) -> Box<dyn InPlace + 'a> {
        match self {
            Self::Raw(image) => Box::new(RawInPlace::through(image, medium)),
        }
    }

    /// The disk, to be read.
    pub fn source(&self) -> &dyn Source {
        match self {
            Self::Raw(image) => image,
        }
    }

    /// The same, owned.
    pub fn into_source(self) -> Box<dyn Source + Send> {
        match self {
            Self::Raw(image) => Box::new(image),
        }
    }

    /// The disk, if it is a raw file or a device: then it can be cloned, mapped, and written to.
    pub fn raw(&self) -> Option<&RawFile> {
        match self {
            Self::Raw(image) => Some(image),
        }
    }

    /// The file or device that it lies in; none if it does not lie here.
    pub fn container(&self) -> Option<&RawFile> {
        self.raw()
    }

    /// How it lies in that.
    pub fn format(&self) -> ImageFormat {
        match self {
            Self::Raw(_) => ImageFormat::RAW,
        }
    }

    /// What a dirty bitmap of that name says that may have changed.
    ///
    /// # Errors
    /// `NotFound` if there is none; `Unsupported` if nothing of the kind is kept for such a disk.
    pub fn bitmap(&self, name: &str) -> Result<Vec<ByteRange>> {
        match self {
            Self::Raw(image) => {
                let place = image.path().shown();
                let what = format!("{place} is a raw image, which has no bitmap \"{name}\"");
                Err(Error::new(ErrorKind::Unsupported, what))
            }
        }
    }

    /// What identifies its present content, if that can be trusted.
    pub fn stable_stat(&self) -> Option<FileStat> {
        self.container()?.stable_stat()
    }

    /// What tells the file or device that it lies in from others that its path may lead to.
    pub fn identity(&self) -> Option<LiveIdentity> {
        self.container()?.identity()
    }

    /// Fails if it is no longer what it was when it was opened.
    ///
    /// # Errors
    /// `Busy`.
    pub fn check(&self) -> Result<()> {
        self.source().check()
    }

    /// What to call it in a message.
    pub fn name(&self) -> String {
        self.source().name()
    }
}
