//! The guest's disk, put together from the files of a chain.

use super::backing::BackingChain;
use super::bitmaps::{Bitmap, Bitmaps};
use super::header::Header;
use super::layer::Layer;
use super::tables::Run;
use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::units::{ByteRange, Extent, ExtentKind};
use crate::image::{RawFile, Source, Window};

/// A disk in a qcow2 file, with all that is below it, held against writers for as long as it is open.
pub struct Qcow2Image {
    header: Header,
    /// The file that was named.
    top: Layer,
    /// What is below it, the newest first.
    below: Vec<Layer>,
    /// Looked at in one step, where the end of an extent is looked for.
    step_bytes: u64,
}

/// What a run of the disk is.
enum Content<'a> {
    Zeros,
    /// From that byte of the file on.
    Stored(&'a Layer, u64),
    /// A cluster, in so many bytes from that byte of the file on.
    Compressed(&'a Layer, u64, u64),
}

/// Clusters of one step, and as many steps are made: an extent may be given in pieces.
const STEP_CLUSTERS: u64 = 64;
const MAX_STEPS: u32 = 1024;

impl Qcow2Image {
    /// The disk of a qcow2 file. Files that its header names are opened with `backing_ok`.
    ///
    /// # Errors
    /// As of [`BackingChain::follow`] and [`Qcow2Image::of`].
    pub fn open(file: RawFile, backing_ok: bool) -> Result<Self> {
        Self::of(BackingChain::follow(file, backing_ok)?)
    }

    /// The disk of a chain.
    ///
    /// # Errors
    /// `InvalidInput` for a disk of 0 bytes; `Corrupt` if tables are not all in their file.
    pub fn of(chain: BackingChain) -> Result<Self> {
        let BackingChain { header, top, below } = chain;
        let count = below.len() + 1;
        let below = below.into_iter().map(|file| Layer::new(file, count));
        let image = Self {
            step_bytes: STEP_CLUSTERS * header.cluster_bytes(),
            header,
            top: Layer::new(top, count)?,
            below: below.collect::<Result<_>>()?,
        };
        if image.image_bytes() == 0 {
            let what = format!("{} has a disk of 0 bytes", image.name());
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        Ok(image)
    }

    /// The file that was named.
    pub fn container(&self) -> &RawFile {
        &self.top.file
    }

    fn layers(&self) -> impl Iterator<Item = &Layer> {
        std::iter::once(&self.top).chain(&self.below)
    }

    /// True if some of the disk is in other files.
    pub fn has_backing(&self) -> bool {
        self.files().count() > 1
    }

    /// All files that it is made of, the newest first.
    pub fn files(&self) -> impl Iterator<Item = &RawFile> {
        self.layers().flat_map(|layer| [&layer.file].into_iter().chain(&layer.data_file))
    }

    /// Its persistent bitmaps; none if the file was not closed cleanly, or was written by a program that does
    /// not know them.
    ///
    /// # Errors
    /// `Corrupt` for a malformed directory.
    pub fn bitmaps(&self) -> Result<Vec<Bitmap>> {
        Ok(self.read_bitmaps()?.list())
    }

    /// What a bitmap says was written to, ascending and apart, within the disk. It may name too much, and
    /// covers the disk as it was closed.
    ///
    /// # Errors
    /// `NotFound` if there is no bitmap of that name; `Unsupported` for one that cannot be relied on;
    /// `Corrupt` for a malformed one.
    pub fn dirty_ranges(&self, name: &str) -> Result<Vec<ByteRange>> {
        self.read_bitmaps()?.dirty_ranges(name)
    }

    fn read_bitmaps(&self) -> Result<Bitmaps<'_>> {
        Bitmaps::read(self.container(), &self.header)
    }

    /// What there is at `offset`, and for how many of at most `most` bytes.
    fn content_at(&self, offset: u64, most: u64) -> Result<(Content<'_>, u64)> {
        let mut bytes = most.min(self.image_bytes().saturating_sub(offset)).max(1);
        for layer in self.layers() {
            // What is beyond the end of a file is zero, whatever is below it.
            let rest = layer.disk_bytes.saturating_sub(offset);
            if rest == 0 {
                break;
            }
            let (run, length) = layer.run_at(offset, bytes.min(rest))?;
            bytes = length;
            match run {
                Run::Below => {}
                Run::Zeros => return Ok((Content::Zeros, bytes)),
                Run::Stored(at) => return Ok((Content::Stored(layer, at), bytes)),
                Run::Compressed(at, packed) => {
                    return Ok((Content::Compressed(layer, at, packed), bytes));
                }
            }
        }
        Ok((Content::Zeros, bytes))
    }

    fn kind_at(&self, offset: u64, most: u64) -> Result<(ExtentKind, u64)> {
        Ok(match self.content_at(offset, most)? {
            (Content::Zeros, bytes) => (ExtentKind::Hole, bytes),
            (Content::Compressed(..), bytes) => (ExtentKind::Data, bytes),
            (Content::Stored(layer, at), bytes) => {
                let extent = layer.data_extent_at(at)?;
                (extent.kind, bytes.min(extent.bytes))
            }
        })
    }

    /// Calls `visit` with each piece of a range: what it is, where in the range it begins, and how long it
    /// is.
    fn for_each_content<'a>(
        &'a self,
        offset: u64,
        bytes: u64,
        mut visit: impl FnMut(Content<'a>, usize, usize) -> Result<Option<Error>>,
    ) -> Result<Option<Error>> {
        let mut done = 0;
        while done < bytes {
            let (content, length) = self.content_at(offset + done, bytes - done)?;
            if let Some(bad) = visit(content, done as usize, length as usize)? {
                return Ok(Some(bad));
            }
            done += length;
        }
        Ok(None)
    }
}

impl Source for Qcow2Image {
    fn image_bytes(&self) -> u64 {
        self.header.disk_bytes
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let (kind, mut bytes) = self.kind_at(offset, self.step_bytes)?;
        let mut step = self.step_bytes;
        for _ in 0..MAX_STEPS {
            let at = offset + bytes;
            if at >= self.image_bytes() {
                break;
            }
            let (next, length) = self.kind_at(at, step)?;
            if next != kind {
                break;
            }
            bytes += length;
            // Far where there is one long run, near where there are many: each step looks as far in each
            // file.
            step = if length == step { step.saturating_mul(2) } else { self.step_bytes };
        }
        Ok(Extent { offset, bytes, kind })
    }

    fn read<'a>(
        &'a self,
        offset: u64,
        bytes: usize,
        buffer: &'a mut Vec<u8>,
    ) -> Result<Window<'a>> {
        match self.content_at(offset, bytes as u64)? {
            (Content::Stored(layer, at), length) if length == bytes as u64 => {
                layer.data().read(at, bytes, buffer)
            }
            _ => self.read_copied(offset, bytes, buffer),
        }
    }

    fn read_until_bad(
        &self,
        offset: u64,
        bytes: usize,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<Error>> {
        buffer.resize(bytes, 0);
        let mut have = 0;
        let bad = self.for_each_content(offset, bytes as u64, |content, start, length| {
            let into = buffer.get_mut(start..start + length).unwrap_or_default();
            let at = offset + start as u64;
            let bad = match content {
                Content::Zeros => {
                    into.fill(0);
                    None
                }
                Content::Compressed(layer, from, packed) => {
                    match layer.unpack(from, packed, at, into) {
                        Err(e) if e.is_bad_medium() => Some(e),
                        other => other.map(|()| None)?,
                    }
                }
                Content::Stored(layer, at) => {
                    let (read, bad) = layer.data().read_into(at, into)?;
                    have = start + read;
                    return Ok(bad);
                }
            };
            have = start + if bad.is_some() { 0 } else { length };
            Ok(bad)
        })?;
        buffer.truncate(have);
        Ok(bad)
    }

    fn prefetch(&self, offset: u64, bytes: u64) {
        let within = bytes.min(self.image_bytes().saturating_sub(offset));
        let told = self.for_each_content(offset, within, |content, _, length| {
            if let Content::Stored(layer, at) = content {
                layer.data().prefetch(at, length as u64);
            }
            Ok(None)
        });
        // Only advice: what cannot be read is said when it is read.
        best_effort(told);
    }

    fn check(&self) -> Result<()> {
        self.files().try_for_each(Source::check)
    }

    fn check_at_end(&self) -> Result<()> {
        self.files().try_for_each(Source::check_at_end)
    }

    fn name(&self) -> String {
        self.container().name()
    }
}
