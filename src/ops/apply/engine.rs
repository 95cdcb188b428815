//! Delta files, and the image that they begin from, to the image that they give.
//!
//! ```text
//! base image    AAAABBBBCCCC      read once: is it what the first delta begins from?
//! runs          ..DD....Z..E      of the delta files, the newest first
//! result        AADDBBBB.CCE      proved by its image digest before it gets a name, or is touched
//! ```

use crate::base::digest::ImageDigest;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::{Context, Phase};
use crate::base::free_space::check_free_space;
use crate::base::message::{Action, Setting, Verb, message};
use crate::base::pipeline::ordered_map;
use crate::base::units::{BlockRange, ByteRange, Geometry};
use crate::base::uri::Shown;
use crate::chain::{Chain, ChainCursor, IndexChunk, State, check_links};
use crate::delta::{Caches, Delta};
use crate::format::Lineage;
use crate::format::header::refuse_foreign;
use crate::image::write::{InPlace, RawInPlace, Target};
use crate::image::{Intent, RawFile, Source};
use crate::ops::apply::types::Applied;
use crate::scan::{BadMedium, Change, Changes, Index, Scope, scan};
use crate::store::{LocalStore, OsDisk, Store};
use crate::view::restore;
use crate::view::{BATCH_BYTES, BatchBuilder, Decoded, Order, decode_batch, write_decoded};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Spans that are examined in one go.
const SPANS_PER_CHUNK: usize = 4096;

/// Delta files that follow each other.
pub struct Patch {
    /// Newest first; never empty.
    layers: Arc<[Arc<Delta>]>,
    newest: Arc<Delta>,
    geometry: Geometry,
    /// What the oldest one begins from; none if that is a full one.
    from: Option<Lineage>,
}

/// Opens a delta file that lies anywhere.
pub fn open_file(path: &Path, caches: &Caches) -> Result<Delta> {
    let absolute = std::path::absolute(path).map_err(|e| Error::os("open", path.shown(), e))?;
    let folder = absolute.parent().unwrap_or(Path::new("/")).to_owned();
    let name = absolute.file_name().ok_or_else(|| {
        Error::new(ErrorKind::InvalidInput, format!("{} is not a file name", path.shown()))
    })?;
    // Whatever else it is, whoever opens it says.
    if absolute.is_file() {
        let mut first = Vec::new();
        let read = File::open(&absolute).and_then(|file| file.take(8).read_to_end(&mut first));
        read.map_err(|e| Error::os("open", path.shown(), e))?;
        refuse_foreign(&first, &path.shown())?;
    }
    // Each has a disk of its own, and all of them share what may be open.
    let store: Arc<dyn Store> =
        Arc::new(LocalStore::new(Arc::new(OsDisk::of_file(folder, name.into()))));
    let delta = Delta::open(store, OsDisk::ONLY, caches)?;
    match delta.base_image() {
        None => Ok(delta),
        Some(_) => Err(Error::new(
            ErrorKind::Unsupported,
            format!("{}: its blocks are in a base image", path.shown()),
        )
        .hint(message![
            "use ",
            Verb::Export.call(),
            " to create a file that contains them"
        ])),
    }
}

impl Patch {
    /// Opens delta files, the oldest first, and checks that each begins where the one before it ends.
    ///
    /// # Errors
    /// `Mismatch` if one does not, with the image digests.
    pub fn open(paths: &[PathBuf], context: &Context) -> Result<Self> {
        let caches = Caches::default().reading_within(context.read_limits().clone());
        let mut layers = Vec::new();
        for path in paths {
            layers.insert(0, Arc::new(open_file(path, &caches)?));
        }
        for pair in layers.windows(2) {
            if let [child, parent] = pair {
                check_follows(child, parent)?;
            }
        }
        check_links(&layers)?;
        let (Some(newest), Some(oldest)) = (layers.first().cloned(), layers.last()) else {
            return Err(Error::new(ErrorKind::InvalidInput, "no delta file was given"));
        };
        let from = oldest.footer().parent;
        let geometry = newest.geometry()?;
        Ok(Self { layers: layers.into(), newest, geometry, from })
    }

    /// Length of the image that it gives.
    pub fn image_bytes(&self) -> u64 {
        self.geometry.image_bytes
    }

    /// Fails unless what [`Patch::write`] will write fits into `free_bytes` bytes, if that is known.
    ///
    /// # Errors
    /// `LimitExceeded` if not, with `place`.
    pub fn check_free_space(
        &self,
        base_bytes: u64,
        free_bytes: Option<u64>,
        place: &str,
    ) -> Result<()> {
        let needed = base_bytes.saturating_add(self.data_bytes()).min(self.image_bytes());
        check_free_space(free_bytes, needed, place, "the image")
    }

    /// True if it is complete by itself and begins from no image.
    pub fn is_full(&self) -> bool {
        self.from.is_none()
    }

    /// Number of the snapshot that it gives.
    pub fn number(&self) -> u64 {
        self.newest.footer().number
    }

    /// Writes the image that it gives to a target that is all zeros.
    ///
    /// # Errors
    /// `Mismatch` if `base` is not what it begins from, or is missing, or not needed. Then the target is
    /// not finished.
    pub fn write(
        &self,
        base: Option<&RawFile>,
        target: &mut dyn Target,
        context: &Context,
    ) -> Result<Applied> {
        let (image_bytes, image_digest) = (self.image_bytes(), self.newest.footer().image_digest);
        let base = match (base, self.from) {
            (Some(base), Some(_)) => base,
            (None, None) => {
                let chain = Chain::link(self.layers.to_vec())?;
                let restored = restore(&chain, None, target, context)?;
                let written_bytes = restored.data_bytes;
                return Ok(Applied {
                    number: self.number(),
                    image_bytes,
                    written_bytes,
                    image_digest,
                });
            }
            (None, Some(from)) => {
                return Err(Error::new(ErrorKind::Mismatch, self.begins_from(from))
                    .hint(message!["give that image with ", Setting::Base]));
            }
            (Some(_), None) => {
                let what = "the first delta file is a full one and needs no base image";
                return Err(Error::new(ErrorKind::Mismatch, what)
                    .hint(message!["leave out ", Setting::Base]));
            }
        };
        if target.is_sequential() {
            let what = "an image built on a base image cannot be written to a pipe";
            return Err(Error::new(ErrorKind::InvalidInput, what)
                .hint(message!["give a file with ", Setting::Output]));
        }
        let mut written_bytes = 0;
        self.check_base(base, context, &mut |range, bytes| {
            let inside = self.geometry.bytes_in(range) as usize;
            written_bytes += inside as u64;
            let offset = self.geometry.offset(range.first);
            target.write(offset, bytes.get(..inside).unwrap_or_default())
        })?;
        written_bytes +=
            self.write_runs(context, &mut |decoded| self.write_decoded(&decoded, target))?;
        target.finish()?;
        Ok(Applied { number: self.number(), image_bytes, written_bytes, image_digest })
    }

    /// Brings an image, where it lies, to what this gives, writing only what the delta files have.
    /// Run again after it was interrupted, it completes the work.
    ///
    /// # Errors
    /// `Mismatch` if the image is not what it begins from; `Corrupt` if a delta file is damaged. Then
    /// nothing was written.
    pub fn write_in_place(&self, image: &RawFile, context: &Context) -> Result<Applied> {
        if self.from.is_none() {
            let what = "the first delta file is a full one: there is nothing to apply it to";
            return Err(Error::new(ErrorKind::Mismatch, what)
                .hint(message!["write a new image with ", Setting::Output]));
        }
        let (image_bytes, image_digest) = (self.image_bytes(), self.newest.footer().image_digest);
        let mut disk = RawInPlace::new(image);
        disk.check_free_space(image_bytes)?;
        self.check_base(image, context, &mut |_, _| Ok(()))?;
        // Every block is decoded and proved while the image is still whole.
        self.write_runs(context, &mut |_| Ok(0))?;
        let written = self.change(image, &mut disk, context);
        if let Err(error) = written {
            let what = format!("{} is only partly written", image.name());
            let hint = message![Action::Retry, " to complete it"];
            return Err(if disk.is_begun() { error.at(what).hint(hint) } else { error });
        }
        Ok(Applied {
            number: self.number(),
            image_bytes,
            written_bytes: disk.written_bytes(),
            image_digest,
        })
    }

    fn change(&self, image: &RawFile, disk: &mut dyn InPlace, context: &Context) -> Result<()> {
        let image_bytes = self.image_bytes();
        if !image.is_device() && image.image_bytes() < image_bytes {
            disk.set_length(image_bytes)?;
        }
        self.write_runs(context, &mut |decoded| {
            image.check()?;
            self.write_decoded(&decoded, disk)
        })?;
        if !image.is_device() && image.image_bytes() > image_bytes {
            disk.set_length(image_bytes)?;
        }
        disk.finish()?;
        image.check_alone(Intent::Read)
    }

    fn begins_from(&self, from: Lineage) -> String {
        let oldest = self.layers.last().map(|delta| delta.location()).unwrap_or_default();
        let (bytes, digest) = (from.image_bytes, from.image_digest.to_hex());
        format!("{oldest} starts from an image of {bytes} bytes with the image digest {digest}")
    }

    /// Reads the base image and gives `kept` what of it stays, runs of blocks in ascending order. Fails
    /// at the end unless that and the runs of the delta files make the image: so it is if the base is
    /// what the first one begins from, and also if some or all of their runs are written already.
    fn check_base(
        &self,
        base: &RawFile,
        context: &Context,
        kept: &mut dyn FnMut(BlockRange, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let Some(from) = self.from else { return Ok(()) };
        let hasher = self.newest.hasher();
        let size = self.geometry.block_size.in_memory();
        let mut runs = Runs::new(&self.layers, self.geometry.block_count());
        let mut terms = 0u128;
        let phase = context.begin(Phase::Check, base.image_bytes());
        let index = Index::Nothing(hasher, self.geometry.block_size);
        let scanned =
            scan(base, &index, Scope::Whole, BadMedium::Fail, context, |changes: &Changes| {
                let mut blocks = changes.bytes.chunks_exact(size);
                let mut open: Option<(BlockRange, Vec<u8>)> = None;
                for change in &changes.list {
                    let Change::Data(block, digest) = *change else { continue };
                    let bytes = blocks.next().unwrap_or_default();
                    if block >= self.geometry.block_count() || runs.has(block)? {
                        continue;
                    }
                    terms = terms.wrapping_add(hasher.term(block, digest));
                    match &mut open {
                        Some((range, so_far)) if range.end() == block => {
                            range.count += 1;
                            so_far.extend_from_slice(bytes);
                        }
                        _ => {
                            if let Some((range, bytes)) = open
                                .replace((BlockRange { first: block, count: 1 }, bytes.to_vec()))
                            {
                                kept(range, &bytes)?;
                            }
                        }
                    }
                }
                open.map_or(Ok(()), |(range, bytes)| kept(range, &bytes))
            });
        drop(phase);
        let scanned = scanned?;
        runs.finish()?;
        let image_bytes = self.geometry.image_bytes;
        // An interrupted work has given a file its new length or not; a device has one of its own.
        let lengths = [from.image_bytes, image_bytes];
        let fits = lengths.contains(&base.image_bytes())
            || (base.is_device() && lengths.iter().all(|bytes| *bytes <= base.image_bytes()));
        let digest = hasher.empty_image(image_bytes).plus(terms).plus(runs.terms);
        if digest != self.newest.footer().image_digest || !fits {
            let (have, bytes) = (scanned.image_digest.to_hex(), base.image_bytes());
            let what =
                format!("{}; {} has {bytes} bytes and {have}", self.begins_from(from), base.name());
            return Err(Error::new(ErrorKind::Mismatch, what)
                .hint("use the image that the delta was exported against"));
        }
        Ok(())
    }

    /// Decodes and proves the runs of the delta files and hands them to `each`, which gives how many
    /// bytes it wrote. Returns the sum.
    fn write_runs(
        &self,
        context: &Context,
        each: &mut dyn FnMut(Decoded) -> Result<u64>,
    ) -> Result<u64> {
        let end = self.geometry.block_count();
        let mut cursor = ChainCursor::with_gaps(&self.layers);
        let mut builder = BatchBuilder::new(self.geometry, &self.layers, Order::ByFrame);
        let mut written = 0;
        let phase = context.begin(Phase::Apply, self.data_bytes());
        let outcome = ordered_map(
            context.threads(),
            context.in_flight(BATCH_BYTES),
            || {
                builder.next_fed(|builder| {
                    context.check()?;
                    let chunk = cursor.chunk(end, SPANS_PER_CHUNK)?;
                    chunk.spans.iter().try_for_each(|span| builder.add(&chunk, *span))?;
                    Ok(cursor.position() < end)
                })
            },
            |batch| decode_batch(self.geometry, batch, None),
            |decoded| {
                context.advance(decoded.bytes.len() as u64);
                written += each(decoded)?;
                Ok(())
            },
        );
        drop(phase);
        outcome.map(|()| written)
    }

    fn write_decoded(&self, decoded: &Decoded, target: &mut dyn Target) -> Result<u64> {
        let whole = ByteRange { offset: 0, bytes: self.geometry.image_bytes };
        write_decoded(decoded, self.geometry, whole, target)
    }

    fn data_bytes(&self) -> u64 {
        let blocks = self.layers.iter().map(|d| d.footer().counts.data_blocks);
        let blocks = blocks.fold(0, u64::saturating_add);
        blocks.saturating_mul(self.geometry.block_size.bytes().into())
    }
}

/// The blocks that delta files have, asked for in ascending order.
struct Runs {
    cursor: ChainCursor,
    end: u64,
    chunk: IndexChunk,
    index: usize,
    /// Sum of the terms of those that were passed.
    terms: u128,
}

impl Runs {
    fn new(layers: &Arc<[Arc<Delta>]>, end: u64) -> Self {
        let chunk = IndexChunk::new(layers.clone());
        Self { cursor: ChainCursor::with_gaps(layers), end, chunk, index: 0, terms: 0 }
    }

    /// True if a block is in a run.
    fn has(&mut self, block: u64) -> Result<bool> {
        loop {
            while let Some(span) = self.chunk.spans.get(self.index) {
                if span.blocks.end() > block {
                    return Ok(span.blocks.first <= block);
                }
                self.index += 1;
            }
            if !self.fetch()? {
                return Ok(false);
            }
        }
    }

    /// The next spans; false at the end.
    fn fetch(&mut self) -> Result<bool> {
        if self.cursor.position() >= self.end {
            return Ok(false);
        }
        self.chunk = self.cursor.chunk(self.end, SPANS_PER_CHUNK)?;
        self.index = 0;
        let Some(hasher) = self.chunk.layers().first().map(|d| d.hasher().clone()) else {
            return Ok(false);
        };
        for span in &self.chunk.spans {
            if span.state == State::Unread {
                let (first, count) = (span.blocks.first, span.blocks.count);
                let what =
                    format!("{count} blocks from {first} on could not be read at the source");
                return Err(Error::corrupt(what).at("the delta is incomplete"));
            }
            self.terms = self.terms.wrapping_add(self.chunk.terms(*span, &hasher));
        }
        Ok(true)
    }

    /// Passes the rest.
    fn finish(&mut self) -> Result<()> {
        while self.fetch()? {}
        Ok(())
    }
}

/// Fails if `child` does not begin where `parent` ends.
fn check_follows(child: &Delta, parent: &Delta) -> Result<()> {
    let ends = parent.footer();
    let says = |bytes: u64, digest: ImageDigest| format!("{bytes} bytes and {}", digest.to_hex());
    let begins = match child.footer().parent {
        Some(from) if from.image_digest == ends.image_digest => return Ok(()),
        Some(from) => format!("starts from {}", says(from.image_bytes, from.image_digest)),
        None => "is a full one, which starts from no image".to_owned(),
    };
    let what = format!(
        "{} {begins}, but {} before it ends at {}",
        child.location(),
        parent.location(),
        says(ends.image_bytes, ends.image_digest)
    );
    Err(Error::new(ErrorKind::Mismatch, what).hint("give the delta files in order, oldest first"))
}
