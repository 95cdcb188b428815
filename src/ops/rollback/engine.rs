//! The verb *rollback*: bring an image, where it lies, to a snapshot, writing only the blocks that
//! differ.
//!
//! Two passes over the differences: the first decodes and proves every block that will be written
//! and writes nothing ([`dry_run`]), so that damage in the repository is found while the image is
//! still whole; the second writes ([`execute`]). Running it again after it was interrupted at any
//! point completes it: what is written is what the snapshot has, whatever was there.

use crate::base::error::{Error, Result};
use crate::base::events::{Context, Phase};
use crate::base::pipeline::ordered_map;
use crate::base::units::{BlockRange, ByteRange};
use crate::chain::{Chain, Fork, State};
use crate::image::Source;
use crate::image::write::InPlace;
use crate::scan::{BadMedium, Index, Missed, Scope, scan};
use crate::view::{BATCH_BYTES, BatchBuilder, Decoded, Order, decode_batch, write_decoded};
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

/// What a rollback did, or would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct RolledBack {
    /// Bytes written or zeroed.
    pub written_bytes: u64,
    /// Bytes read from the image to find them.
    pub read_bytes: u64,
    /// Blocks among them that no hint had named.
    pub missed: Missed,
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
) -> Result<RolledBack> {
    let mut written_bytes = 0;
    let geometry = target.geometry();
    let (read_bytes, missed) =
        differences(image, target, source, context, Phase::Check, &mut |decoded| {
            written_bytes += decoded.parts.iter().map(|p| geometry.bytes_in(p.blocks)).sum::<u64>();
            Ok(())
        })?;
    Ok(RolledBack { written_bytes, read_bytes, missed })
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
) -> Result<RolledBack> {
    let geometry = target.geometry();
    let whole = ByteRange { offset: 0, bytes: geometry.image_bytes };
    disk.check_free_space(geometry.image_bytes)?;
    if !disk.has_fixed_length() && image.image_bytes() < geometry.image_bytes {
        disk.set_length(geometry.image_bytes)?;
    }
    let mut write = |decoded: Decoded| {
        image.check()?;
        write_decoded(&decoded, geometry, whole, disk)?;
        disk.advance_watermark(geometry.offset(decoded.watermark))
    };
    let (read_bytes, missed) =
        differences(image, target, source, context, Phase::RollBack, &mut write)?;
    if !disk.has_fixed_length() && image.image_bytes() > geometry.image_bytes {
        disk.set_length(geometry.image_bytes)?;
    }
    disk.finish()?;
    image.check()?;
    Ok(RolledBack { written_bytes: disk.written_bytes(), read_bytes, missed })
}

/// Reads all of `image` and fails unless it is the tip of `target`.
pub fn prove(image: &dyn Source, target: &Chain, context: &Context) -> Result<()> {
    let found = dry_run(image, target, &DiffSource::Scan(&whole), context)?;
    let lengths = (image.image_bytes(), target.geometry().image_bytes);
    if found.written_bytes > 0 || lengths.0 != lengths.1 {
        let bytes = found.written_bytes;
        let what = format!("{}: {bytes} bytes are not what was written", image.name());
        return Err(
            Error::corrupt(what).hint("check the disk that it lies on, and roll back again")
        );
    }
    Ok(())
}

/// Passes to `each` what `target` has where the image differs from it, within its length, in order,
/// decoded and proved; and tells how much was read to find it.
fn differences(
    image: &dyn Source,
    target: &Chain,
    source: &DiffSource<'_>,
    context: &Context,
    phase: Phase,
    each: &mut dyn FnMut(Decoded) -> Result<()>,
) -> Result<(u64, Missed)> {
    let phase = context.begin(phase, target.geometry().image_bytes);
    let outcome = match source {
        DiffSource::Tables(current) => {
            by_tables(current, target, context, each).map(|()| (0, Missed::default()))
        }
        DiffSource::Scan(scope) => by_scan(image, target, scope()?, context, each),
    };
    drop(phase);
    outcome
}

fn by_tables(
    current: &Chain,
    target: &Chain,
    context: &Context,
    each: &mut dyn FnMut(Decoded) -> Result<()>,
) -> Result<()> {
    let geometry = target.geometry();
    // What a longer image has beyond the end of the target is cut off, not written.
    let inside = BlockRange::between(0, geometry.block_count());
    let fork = Fork::new(target.clone(), Some(current.clone()))?;
    let mut different = fork.differences();
    let mut builder = BatchBuilder::new(geometry, fork.sources(), Order::ByFrame);
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
        |batch| decode_batch(geometry, batch),
        each,
    )
}

fn by_scan(
    image: &dyn Source,
    target: &Chain,
    scope: Scope,
    context: &Context,
    each: &mut dyn FnMut(Decoded) -> Result<()>,
) -> Result<(u64, Missed)> {
    let geometry = target.geometry();
    let inside = BlockRange::between(0, geometry.block_count());
    let image_end = geometry.block_size.count(image.image_bytes());
    let mut walk = target.walk();
    let mut builder = BatchBuilder::new(geometry, target.layers(), Order::ByFrame);
    let mut write = |builder: &mut BatchBuilder| {
        std::iter::from_fn(|| builder.next_batch())
            .try_for_each(|b| each(decode_batch(geometry, b)?))
    };
    // What cannot be read differs, too: to be written is what makes a bad sector good again.
    let bad_medium = BadMedium::Skip;
    let scanned = scan(image, &Index::Parent(target), scope, bad_medium, context, |changes| {
        for change in &changes.list {
            let range = change.blocks();
            walk.seek(range.first);
            while let Some(span) = walk.next(range.end())? {
                // Where the file is made longer, zeros are there already.
                let is_there = span.blocks.first >= image_end && span.state == State::Zero;
                if let Some(span) = span.within(inside).filter(|_| !is_there) {
                    builder.add(walk.chunk(), span)?;
                }
            }
            write(&mut builder)?;
        }
        Ok(())
    })?;
    builder.finish();
    write(&mut builder)?;
    Ok((scanned.read_bytes, scanned.missed))
}
