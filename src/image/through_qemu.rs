//! A disk in a file that QEMU reads or writes for us: a server of our own, and its export.

use crate::base::error::{Error, Result};
use crate::base::events::Context;
use crate::base::units::Extent;
use crate::base::uri::Shown;
use crate::image::nbd::{NbdDisk, NbdOptions};
use crate::image::qcow2::{BackingChain, ChainFile};
use crate::image::qemu::{QemuExport, QemuImage};
use crate::image::{ImageFormat, RawFile, Source, Window};
use std::sync::Arc;

/// A disk behind a server that ends with it.
pub struct ThroughQemu {
    // Before the server, which its connections are of.
    disk: NbdDisk,
    export: QemuExport,
    /// Held while it is read; of one that is written to QEMU holds it.
    file: RawFile,
    writable: bool,
    format: ImageFormat,
}

impl ThroughQemu {
    /// Reads a file that is neither raw nor qcow2. Other files that it names are read with `backing_ok`.
    ///
    /// # Errors
    /// As of [`QemuExport::read`].
    pub fn read(
        file: RawFile,
        format: ImageFormat,
        backing_ok: bool,
        context: &Context,
    ) -> Result<Self> {
        let image = QemuImage::new(file.path(), format).backing_ok(backing_ok);
        Self::start(QemuExport::read(&image, context)?, file, format, false, context)
    }

    /// Writes to a qcow2 that was opened to be written. The files that it is based on are only read.
    ///
    /// # Errors
    /// `Unsupported` for one that names other files without `backing_ok`; `Busy` if one of them is in use.
    pub fn write(file: RawFile, backing_ok: bool, context: &Context) -> Result<Self> {
        let chain = BackingChain::follow(file, backing_ok)?;
        let image = described(&chain)?;
        let ChainFile { file, data_file, .. } = chain.top;
        // QEMU takes its own locks, of what is open here.
        file.release();
        data_file.iter().for_each(RawFile::release);
        let export = QemuExport::write(&image, context)?;
        Self::start(export, file, ImageFormat::QCOW2, true, context)
    }

    fn start(
        export: QemuExport,
        file: RawFile,
        format: ImageFormat,
        writable: bool,
        context: &Context,
    ) -> Result<Self> {
        let name = Some(export.image().to_owned());
        let options = NbdOptions { writable, name, ..NbdOptions::default() };
        let disk = NbdDisk::open(export.uri(), options, context);
        let disk = disk.map_err(|e| export.failure().unwrap_or(e))?;
        Ok(Self { disk, export, file, format, writable })
    }

    /// The export, to be written to.
    pub fn disk(&self) -> &NbdDisk {
        &self.disk
    }

    /// The file that was named.
    pub fn container(&self) -> &RawFile {
        &self.file
    }

    /// Ends the server in good order: what was written to is closed by it.
    ///
    /// # Errors
    /// `Unavailable` if it does not, or with an error.
    pub fn close(self) -> Result<()> {
        let Self { disk, export, .. } = self;
        drop(disk);
        export.finish()
    }

    /// How the disk lies in its file.
    pub fn format(&self) -> ImageFormat {
        self.format
    }

    /// That the server has ended says more than that a connection is lost.
    fn explained<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|e| if e.is_bad_medium() { e } else { self.export.failure().unwrap_or(e) })
    }
}

/// What QEMU is told of a chain: the files that are open, and no names.
fn described(chain: &BackingChain) -> Result<QemuImage> {
    let opened = |file: &RawFile, format: ImageFormat| {
        let opened = file.file().try_clone();
        let opened = opened.map_err(|e| Error::os("open", file.path().shown(), e))?;
        Ok::<_, Error>(QemuImage::new(file.path(), format).opened(Some(Arc::new(opened))))
    };
    let of = |file: &ChainFile, below: Option<QemuImage>| {
        let format = if file.header.is_some() { ImageFormat::QCOW2 } else { ImageFormat::RAW };
        let data =
            file.data_file.as_ref().map(|data| opened(data, ImageFormat::RAW)).transpose()?;
        let image = opened(&file.file, format)?;
        Ok::<_, Error>(image.data_file(data.map(Box::new)).backing(below.map(Box::new)))
    };
    let mut below = None;
    for file in chain.below.iter().rev() {
        below = Some(of(file, below)?);
    }
    of(&chain.top, below)
}

impl Source for ThroughQemu {
    fn image_bytes(&self) -> u64 {
        self.disk.image_bytes()
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        self.explained(self.disk.extent_at(offset))
    }

    fn read<'a>(
        &'a self,
        offset: u64,
        bytes: usize,
        buffer: &'a mut Vec<u8>,
    ) -> Result<Window<'a>> {
        self.explained(self.disk.read(offset, bytes, buffer))
    }

    fn read_until_bad(
        &self,
        offset: u64,
        bytes: usize,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<Error>> {
        self.explained(self.disk.read_until_bad(offset, bytes, buffer))
    }

    fn check(&self) -> Result<()> {
        if self.writable { Ok(()) } else { self.file.check() }
    }

    fn check_at_end(&self) -> Result<()> {
        if self.writable { Ok(()) } else { self.file.check_at_end() }
    }

    fn name(&self) -> String {
        self.disk.name()
    }
}
