//! Brings a disk, where it lies, to a snapshot, writing only the blocks that differ: what a rollback and an
//! update of a target have in common.
//!
//! A rollback goes over the differences twice: the first time it decodes and proves every block that will be
//! written and writes nothing ([`dry_run`]), so that damage in the repository is found while the image is
//! still whole; the second time it writes ([`execute`]). Running it again after it was interrupted at any
//! point completes it: what is written is what the snapshot has, whatever was there.

use crate::base::error::{Error, Result};
use crate::base::events::{Context, Phase};
use crate::base::pipeline::ordered_map;
use crate::base::units::{BlockRange, ByteRange};
use crate::chain::{Chain, Fork, State};
use crate::image::write::InPlace;
use crate::image::{Prefix, Source};
use crate::scan::{BadMedium, Change, Index, Missed, Scope, scan};
use crate::view::{BATCH_BYTES, BatchBuilder, Decoded, Order, Seed, decode_batch, write_decoded};
use serde::Serialize;

/// How the blocks that differ are found.
pub enum DiffSource<'a> {
    /// From the tables: the image is known to equal the tip of this comparable chain.
    Tables(&'a Chain),
    /// By reading what the scope covers of the image; called twice, for the dry run and for the write.
    Scan(&'a dyn Fn() -> Result<Scope>),
}

/// The scope of a scan that trusts nothing.
pub fn whole() -> Result<Scope> {
    Ok(Scope::Whole)
}

/// What was written to a disk, or would be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Updated {
    /// Bytes written or zeroed.
    pub written_bytes: u64,
    /// Bytes read from the disk to find them.
    pub read_bytes: u64,
    /// Blocks among them that no hint had named.
    pub missed: Missed,
    /// Bytes written that are no zeros.
    pub data_bytes: u64,
    /// Bytes among these that were taken from a seed.
    pub seed_bytes: u64,
}

/// Decodes and proves every block that would be written, and counts them. Writes nothing.
///
/// # Errors
/// `Corrupt` if one of them is damaged.
pub fn dry_run(
    image: &dyn Source,
    target: &Chain,
    source: &DiffSource<'_>,
    context: &Context,
) -> Result<Updated> {
    let geometry = target.geometry();
    let update = Update { image, target, source, seed: None, phase: Phase::Check };
    let (mut written_bytes, mut data_bytes) = (0, 0);
    let (read_bytes, missed) = update.differences(context, &mut |decoded| {
        for part in &decoded.parts {
            let bytes = geometry.bytes_in(part.blocks);
            written_bytes += bytes;
            data_bytes += if part.is_data() { bytes } else { 0 };
        }
        Ok(())
    })?;
    Ok(Updated { written_bytes, read_bytes, missed, data_bytes, seed_bytes: 0 })
}

/// Brings the image under `disk` to the tip of `target`, durably.
///
/// # Errors
/// `Busy` if somebody else wanted the image meanwhile: then it is half written, and more than that.
pub fn execute(
    image: &dyn Source,
    disk: &mut dyn InPlace,
    target: &Chain,
    source: &DiffSource<'_>,
    context: &Context,
) -> Result<Updated> {
    Update { image, target, source, seed: None, phase: Phase::RollBack }.execute(disk, context)
}

/// Reads all of `image` and fails unless it is the tip of `target`.
pub fn prove(image: &dyn Source, target: &Chain, context: &Context) -> Result<()> {
    let found = dry_run(image, target, &DiffSource::Scan(&whole), context)?;
    let lengths = (image.image_bytes(), target.geometry().image_bytes);
    if found.written_bytes > 0 || lengths.0 != lengths.1 {
        let bytes = found.written_bytes;
        let what = format!("{}: {bytes} bytes differ from what was written", image.name());
        return Err(
            Error::corrupt(what).hint("check the disk that it lies on, and roll back again")
        );
    }
    Ok(())
}

/// A disk and what it is to be.
pub struct Update<'a> {
    /// The disk as it is.
    pub image: &'a dyn Source,
    /// What it is to be: the tip of this chain.
    pub target: &'a Chain,
    /// How the blocks that differ are found.
    pub source: &'a DiffSource<'a>,
    /// What has blocks that need not be decoded.
    pub seed: Option<&'a Seed<'a>>,
    /// What it is called while it goes on.
    pub phase: Phase,
}

impl Update<'_> {
    /// Writes what differs to `disk`, which is under the image, durably. A disk that can change its length
    /// gets that of the snapshot; of a longer one the rest is neither read nor written.
    ///
    /// A scan of everything proves the whole: each digest of the index is passed, and their sum is the image
    /// digest.
    ///
    /// # Errors
    /// `Busy` if somebody else wanted the disk meanwhile; `Corrupt` if a block is not what its digest says.
    /// Then, if `disk` is begun, it is half written.
    pub fn execute(&self, disk: &mut dyn InPlace, context: &Context) -> Result<Updated> {
        let (image, geometry) = (self.image, self.target.geometry());
        let whole = ByteRange { offset: 0, bytes: geometry.image_bytes };
        disk.check_free_space(geometry.image_bytes)?;
        if !disk.has_fixed_length() && image.image_bytes() < geometry.image_bytes {
            disk.set_length(geometry.image_bytes)?;
        }
        let (mut data_bytes, mut seed_bytes) = (0, 0);
        let (read_bytes, missed) = self.differences(context, &mut |decoded| {
            image.check()?;
            seed_bytes += decoded.seed_bytes;
            data_bytes += write_decoded(&decoded, geometry, whole, disk)?;
            disk.advance_watermark(geometry.offset(decoded.watermark))
        })?;
        if !disk.has_fixed_length() && image.image_bytes() > geometry.image_bytes {
            disk.set_length(geometry.image_bytes)?;
        }
        disk.finish()?;
        image.check()?;
        let written_bytes = disk.written_bytes();
        Ok(Updated { written_bytes, read_bytes, missed, data_bytes, seed_bytes })
    }

    /// Passes to `each` what `target` has where the image differs from it, within its length, in order,
    /// decoded and proved; and tells how much was read to find it.
    fn differences(
        &self,
        context: &Context,
        each: &mut dyn FnMut(Decoded) -> Result<()>,
    ) -> Result<(u64, Missed)> {
        let phase = context.begin(self.phase, self.target.geometry().image_bytes);
        let outcome = match self.source {
            DiffSource::Tables(current) => {
                self.by_tables(current, context, each).map(|()| (0, Missed::default()))
            }
            DiffSource::Scan(scope) => self.by_scan(scope()?, context, each),
        };
        drop(phase);
        outcome
    }

    fn by_tables(
        &self,
        current: &Chain,
        context: &Context,
        each: &mut dyn FnMut(Decoded) -> Result<()>,
    ) -> Result<()> {
        let (target, geometry, seed) = (self.target, self.target.geometry(), self.seed);
        // What a longer image has beyond the end of the target is cut off, not written.
        let inside = BlockRange::between(0, geometry.block_count());
        let fork = Fork::new(target.clone(), Some(current.clone()))?;
        let mut different = fork.differences();
        let mut builder = BatchBuilder::new(geometry, fork.sources(), Order::ByFrame)
            .with_unread_as_zeros(target.has_unread_as_zeros());
        let mut covered = 0;
        ordered_map(
            context.threads(),
            context.in_flight(BATCH_BYTES),
            || {
                builder.next_fed(|builder| {
                    context.check()?;
                    let Some(found) = different.next_difference()? else { return Ok(false) };
                    if let Some(span) = found.span.within(inside) {
                        builder.add(&found.chunk, span)?;
                    }
                    let so_far = geometry.bytes_in(BlockRange::between(0, found.span.blocks.end()));
                    context.advance(so_far - covered);
                    covered = so_far;
                    Ok(true)
                })
            },
            |batch| decode_batch(geometry, batch, seed),
            each,
        )
    }

    fn by_scan(
        &self,
        scope: Scope,
        context: &Context,
        each: &mut dyn FnMut(Decoded) -> Result<()>,
    ) -> Result<(u64, Missed)> {
        let (target, geometry) = (self.target, self.target.geometry());
        let inside = BlockRange::between(0, geometry.block_count());
        // What a longer disk has beyond the end of the target is of no interest.
        let prefix = Prefix::new(self.image, geometry.image_bytes);
        let image: &dyn Source = if matches!(scope, Scope::Whole) { &prefix } else { self.image };
        let image_end = geometry.block_size.count(image.image_bytes());
        let mut walk = target.walk();
        let mut builder = BatchBuilder::of(target, Order::ByFrame);
        // What cannot be read differs, too: to be written is what makes a bad sector good again.
        let bad_medium = BadMedium::SkipIfAny;
        let scanned = scan(image, &Index::Parent(target), scope, bad_medium, context, |changes| {
            for change in &changes.list {
                let range = change.blocks();
                walk.seek(range.first);
                while let Some(span) = walk.next(range.end())? {
                    let is_there = match span.state {
                        // Where the file is made longer, zeros are there already.
                        State::Zero => span.blocks.first >= image_end,
                        // It is to be zero, and is.
                        State::Unread => matches!(change, Change::Zero(_)),
                        State::Data { .. } => false,
                    };
                    if let Some(span) = span.within(inside).filter(|_| !is_there) {
                        builder.add(walk.chunk(), span)?;
                    }
                }
                if builder.is_ready() {
                    self.decode_ready(&mut builder, context, each)?;
                }
            }
            Ok(())
        })?;
        builder.finish();
        self.decode_ready(&mut builder, context, each)?;
        Ok((scanned.read_bytes, scanned.missed))
    }

    /// Decodes what is ready, by all threads: it is much at a time, and meanwhile the scan waits.
    fn decode_ready(
        &self,
        builder: &mut BatchBuilder,
        context: &Context,
        each: &mut dyn FnMut(Decoded) -> Result<()>,
    ) -> Result<()> {
        let (geometry, seed) = (self.target.geometry(), self.seed);
        ordered_map(
            context.threads(),
            context.in_flight(BATCH_BYTES),
            || {
                context.check()?;
                Ok(builder.next_batch())
            },
            |batch| decode_batch(geometry, batch, seed),
            each,
        )
    }
}
