//! The verb *rollback*: bring an image, where it lies, to a snapshot, writing only the blocks that
//! differ.
//!
//! Running it again after it was interrupted at any point completes it: what is written is what the
//! snapshot has, whatever was there.

use crate::chain::{Chain, ChainCursor, Comparison, Span, State};
use crate::error::{Error, Result};
use crate::progress::Context;
use crate::restore::{ByteRange, write_decoded};
use crate::scan::{Change, Index, scan};
use crate::source::{RawFile, Source};
use crate::target::{InPlace, Target};
use crate::units::{BlockRange, Geometry};
use crate::view::{Batch, decode_batch};

/// How the blocks that differ are found.
pub enum Basis<'a> {
    /// From the tables: the image is known to equal the tip of this comparable chain.
    Tables(&'a Chain),
    /// By reading all of the image.
    Scan,
}

/// What a rollback did, or would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RolledBack {
    /// Bytes written or zeroed.
    pub written_bytes: u64,
    /// Bytes read from the image to find them.
    pub read_bytes: u64,
}

/// True if `image` is already what `target` is, by the tables or a scan; otherwise bytes that
/// differ are counted.
pub fn plan(
    image: &RawFile,
    target: &Chain,
    basis: &Basis<'_>,
    context: &Context,
) -> Result<RolledBack> {
    let mut counted = RolledBack::default();
    let geometry = target.geometry();
    let read = differences(image, target, basis, context, "compare", &mut |span| {
        counted.written_bytes += geometry.bytes_in(span.blocks);
        Ok(())
    })?;
    counted.read_bytes = read;
    Ok(counted)
}

/// Brings `image` to the tip of `target`, durably.
pub fn execute(
    image: &RawFile,
    target: &Chain,
    basis: &Basis<'_>,
    context: &Context,
) -> Result<RolledBack> {
    let geometry = target.geometry();
    let mut disk = InPlace::new(image);
    disk.check_room(geometry.image_bytes)?;
    if !image.is_device() && image.image_bytes() < geometry.image_bytes {
        disk.set_length(geometry.image_bytes)?;
    }
    let mut batch = Batch::default();
    let read_bytes = differences(image, target, basis, context, "roll back", &mut |span| {
        let mut rest = Some(span);
        while let Some(span) = rest.take() {
            let room = batch.room_from(span.blocks.first, geometry);
            rest = span.within(BlockRange::between(room, u64::MAX));
            if let Some(part) = span.within(BlockRange::between(0, room)) {
                batch.push(part);
            }
            if batch.is_full(geometry) {
                flush(&mut batch, geometry, &mut disk)?;
            }
        }
        Ok(())
    })?;
    flush(&mut batch, geometry, &mut disk)?;
    if !image.is_device() {
        disk.set_length(geometry.image_bytes)?;
    }
    disk.finish()?;
    Ok(RolledBack { written_bytes: disk.written_bytes(), read_bytes })
}

/// Reads all of `image` and fails unless it is the tip of `target`.
pub fn prove(image: &RawFile, target: &Chain, context: &Context) -> Result<()> {
    let mut different = 0;
    differences(image, target, &Basis::Scan, context, "prove", &mut |span| {
        different += span.blocks.count;
        Ok(())
    })?;
    if different > 0 {
        let what = format!("{}: {different} blocks are not what was written", image.name());
        return Err(
            Error::corrupt(what).hint("check the disk that it lies on, and roll back again")
        );
    }
    Ok(())
}

fn flush(batch: &mut Batch, geometry: Geometry, disk: &mut InPlace<'_>) -> Result<()> {
    let whole = ByteRange { offset: 0, bytes: geometry.image_bytes };
    let decoded = decode_batch(geometry, std::mem::take(batch))?;
    write_decoded(&decoded, geometry, whole, disk).map(|_| ())
}

/// Gives `each` the spans of `target`, within its image, that the image differs from, in order; and
/// how much was read to find them.
fn differences(
    image: &RawFile,
    target: &Chain,
    basis: &Basis<'_>,
    context: &Context,
    phase: &str,
    each: &mut dyn FnMut(Span) -> Result<()>,
) -> Result<u64> {
    let geometry = target.geometry();
    let end = geometry.block_count();
    // What a longer image has beyond the end is cut off, not written.
    let inside = BlockRange::between(0, end);
    context.progress().begin(phase, geometry.image_bytes);
    let outcome = match basis {
        Basis::Tables(current) => by_tables(current, target, context, |span| {
            span.within(inside).map_or(Ok(()), &mut *each)
        }),
        Basis::Scan => {
            by_scan(image, target, context, |span| span.within(inside).map_or(Ok(()), &mut *each))
        }
    };
    context.progress().end();
    outcome
}

fn by_tables(
    current: &Chain,
    target: &Chain,
    context: &Context,
    mut each: impl FnMut(Span) -> Result<()>,
) -> Result<u64> {
    let mut comparison = Comparison::new(current, target)?;
    let mut covered = 0;
    while let Some((position, spans)) = comparison.step()? {
        context.check()?;
        spans.into_iter().try_for_each(&mut each)?;
        let so_far = target.geometry().bytes_in(BlockRange::between(0, position));
        context.progress().advance(so_far - covered);
        covered = so_far;
    }
    Ok(0)
}

fn by_scan(
    image: &RawFile,
    target: &Chain,
    context: &Context,
    mut each: impl FnMut(Span) -> Result<()>,
) -> Result<u64> {
    let mut cursor = target.cursor()?;
    let image_end = target.geometry().block_size.count(image.image_bytes());
    let scanned = scan(image, &Index::Parent(target), context, |changes| {
        for change in &changes.list {
            let range = match *change {
                Change::Data(block, _) => BlockRange { first: block, count: 1 },
                Change::Zero(range) => range,
            };
            spans_of(&mut cursor, range, &mut |span| {
                // Where the file was longer made, zeros are there already.
                let is_new = span.blocks.first >= image_end;
                if is_new && matches!(span.state, State::Zero) { Ok(()) } else { each(span) }
            })?;
        }
        Ok(())
    })?;
    Ok(scanned.read_bytes)
}

fn spans_of(
    cursor: &mut ChainCursor,
    range: BlockRange,
    each: &mut dyn FnMut(Span) -> Result<()>,
) -> Result<()> {
    cursor.seek(range.first);
    while let Some(span) = cursor.next(range.end())? {
        each(span)?;
    }
    Ok(())
}
