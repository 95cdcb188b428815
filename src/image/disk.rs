//! A disk that is open, whatever it lies in.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::Context;
use crate::base::units::ByteRange;
use crate::base::uri::Shown;
use crate::image::nbd::{NbdDisk, NbdOptions};
use crate::image::qcow2::Qcow2Image;
use crate::image::through_qemu::ThroughQemu;
use crate::image::write::{InPlace, Medium, NbdInPlace, RawInPlace};
use crate::image::{FileStat, ImageFormat, ImageUri, LiveIdentity, RawFile, RemoteImage, Source};

/// A disk that is open.
pub enum Disk {
    /// A raw file, or a device.
    Raw(RawFile),
    /// The disk in a qcow2 file.
    Qcow2(Qcow2Image),
    /// An export of an NBD server.
    Nbd(NbdDisk),
    /// An object on a server.
    Remote(RemoteImage),
    /// The disk in a file that QEMU reads or writes for us.
    ThroughQemu(ThroughQemu),
}

/// What may be done to read a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReadBy {
    /// Start QEMU for a format that is not read natively.
    pub via_qemu: bool,
    /// Read the files that an image refers to.
    pub backing_ok: bool,
}

impl From<RawFile> for Disk {
    fn from(image: RawFile) -> Self {
        Self::Raw(image)
    }
}

impl Disk {
    /// The disk that lies in a file in that format.
    ///
    /// # Errors
    /// `Unsupported` for a format that is not read, or for files that it names and that may not be read;
    /// `Corrupt` for a damaged one.
    pub fn within(
        file: RawFile,
        format: ImageFormat,
        by: ReadBy,
        context: &Context,
    ) -> Result<Self> {
        if format.is_raw() {
            return Ok(Self::Raw(file));
        }
        if format == ImageFormat::QCOW2 {
            return Qcow2Image::open(file, by.backing_ok).map(Self::Qcow2);
        }
        if !by.via_qemu || !format.is_read_through_qemu() {
            return Err(format.refusal(&file.path().shown()));
        }
        ThroughQemu::read(file, format, by.backing_ok, context).map(Self::ThroughQemu)
    }

    /// Opens a disk to change it in place.
    ///
    /// # Errors
    /// `NotFound`; `Busy` if it is in use; `Unsupported` for a format that is not written.
    pub fn open_to_write(
        image: &ImageUri,
        format: ImageFormat,
        by: ReadBy,
        context: &Context,
    ) -> Result<Self> {
        match image {
            ImageUri::File(path) => {
                Self::within_to_write(RawFile::open_to_write(path)?, format, by, context)
            }
            ImageUri::Nbd(uri) => {
                let options = NbdOptions { writable: true, ..NbdOptions::default() };
                NbdDisk::open(uri, options, context).map(Self::Nbd)
            }
            ImageUri::Remote(url) => {
                let what = format!("{url} cannot be changed in place");
                Err(Error::new(ErrorKind::Unsupported, what)
                    .hint("restore to another object, or to a file"))
            }
            ImageUri::Machine(uri) => {
                let what = format!("{uri} is in use by its machine");
                Err(Error::new(ErrorKind::Busy, what).hint("shut the machine down"))
            }
        }
    }

    /// The disk in a file in that format, which was opened to be written. A qcow2 is written by QEMU.
    ///
    /// # Errors
    /// `Unsupported` for a format that is not written.
    pub fn within_to_write(
        file: RawFile,
        format: ImageFormat,
        by: ReadBy,
        context: &Context,
    ) -> Result<Self> {
        if format.is_raw() {
            return Ok(Self::Raw(file));
        }
        if format == ImageFormat::QCOW2 {
            return ThroughQemu::write(file, by.backing_ok, context).map(Self::ThroughQemu);
        }
        let what = format!(
            "{} is a {format} image, which cannot be changed in place",
            file.path().shown()
        );
        Err(Error::new(ErrorKind::Unsupported, what)
            .hint("restore to a new file, and convert that"))
    }

    /// Ends what was started for it.
    ///
    /// # Errors
    /// `Unavailable` if QEMU does not end in good order.
    pub fn close(self) -> Result<()> {
        match self {
            Self::ThroughQemu(disk) => disk.close(),
            Self::Raw(_) | Self::Qcow2(_) | Self::Nbd(_) | Self::Remote(_) => Ok(()),
        }
    }

    /// The disk, to be changed in place: of one that was opened for that.
    pub fn in_place<'a>(&'a self, medium: &'a dyn Medium) -> Result<Box<dyn InPlace + 'a>> {
        match self {
            Self::Raw(image) => Ok(Box::new(RawInPlace::through(image, medium))),
            Self::Nbd(disk) => Ok(Box::new(NbdInPlace::new(disk))),
            Self::ThroughQemu(disk) => Ok(Box::new(NbdInPlace::of_image(disk.disk()))),
            Self::Qcow2(_) | Self::Remote(_) => {
                let what = format!("{} was opened read-only", self.name());
                Err(Error::new(ErrorKind::Internal, what))
            }
        }
    }

    /// True if what is written can be made durable: not behind an NBD server that cannot flush.
    pub fn can_flush(&self) -> bool {
        !matches!(self, Self::Nbd(disk) if !disk.can_flush())
    }

    /// The disk, to be read.
    pub fn source(&self) -> &dyn Source {
        match self {
            Self::Raw(image) => image,
            Self::Qcow2(image) => image,
            Self::Nbd(disk) => disk,
            Self::Remote(image) => image,
            Self::ThroughQemu(disk) => disk,
        }
    }

    /// The same, owned.
    pub fn into_source(self) -> Box<dyn Source + Send> {
        match self {
            Self::Raw(image) => Box::new(image),
            Self::Qcow2(image) => Box::new(image),
            Self::Nbd(disk) => Box::new(disk),
            Self::Remote(image) => Box::new(image),
            Self::ThroughQemu(disk) => Box::new(disk),
        }
    }

    /// The disk, if it is a raw file or a device: then it can be cloned, mapped, and written to.
    pub fn raw(&self) -> Option<&RawFile> {
        match self {
            Self::Raw(image) => Some(image),
            _ => None,
        }
    }

    /// The file or device that it lies in; none if it does not lie here.
    pub fn container(&self) -> Option<&RawFile> {
        match self {
            Self::Raw(image) => Some(image),
            Self::Qcow2(image) => Some(image.container()),
            Self::Nbd(_) | Self::Remote(_) => None,
            Self::ThroughQemu(disk) => Some(disk.container()),
        }
    }

    /// How it lies in that.
    pub fn format(&self) -> ImageFormat {
        match self {
            Self::Raw(_) | Self::Nbd(_) | Self::Remote(_) => ImageFormat::RAW,
            Self::Qcow2(_) => ImageFormat::QCOW2,
            Self::ThroughQemu(disk) => disk.format(),
        }
    }

    /// What a dirty bitmap of that name says that may have changed. Of an export, it is the one that it was
    /// opened with.
    ///
    /// # Errors
    /// `NotFound` if there is none; `Unsupported` if nothing of the kind is kept for such a disk.
    pub fn bitmap(&self, name: &str) -> Result<Vec<ByteRange>> {
        match self {
            Self::Qcow2(image) => image.dirty_ranges(name),
            Self::Nbd(disk) => disk.bitmap_ranges(),
            Self::Raw(_) | Self::Remote(_) | Self::ThroughQemu(_) => {
                let what =
                    format!("cannot read a bitmap \"{}\" of {}", name.escape_debug(), self.name());
                Err(Error::new(ErrorKind::Unsupported, what)
                    .hint("only qcow2 files and NBD exports have bitmaps"))
            }
        }
    }

    /// What identifies its present content, if that can be trusted, and is all in one file.
    pub fn stable_stat(&self) -> Option<FileStat> {
        if let Self::Remote(image) = self {
            return image.stat();
        }
        let is_one = match self {
            Self::Qcow2(image) => !image.has_backing(),
            // Of its extents nothing is known here.
            Self::ThroughQemu(disk) => disk.format().is_one_file(),
            Self::Raw(_) | Self::Nbd(_) | Self::Remote(_) => true,
        };
        self.container().filter(|_| is_one)?.stable_stat()
    }

    /// What identifies its content now that it has been read; of an object on a server, what was read.
    pub fn stat_now(&self) -> Option<FileStat> {
        match self {
            // It was looked at again in the end.
            Self::Remote(image) => image.stat(),
            _ => FileStat::of(self.container()?.file()),
        }
    }

    /// What tells the file or device that it lies in from others that its path may lead to.
    pub fn identity(&self) -> Option<LiveIdentity> {
        self.container()?.identity()
    }

    /// What to call it in a message.
    pub fn name(&self) -> String {
        self.source().name()
    }
}
