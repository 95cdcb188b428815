//! Gets the blocks that are packed again: a window of them at a time, each frame that they are in
//! decoded once.

use super::pages::{FramePlan, PagePlan};
use crate::base::error::{Error, Result};
use crate::base::events::Context;
use crate::base::pipeline::ordered_map;
use crate::base::units::{BlockRange, Geometry};
use crate::chain::Difference;
use crate::delta::{Piece, PieceSender};
use crate::view::{BATCH_BYTES, BatchBuilder, Decoded, Order, decode_batch};
use std::collections::VecDeque;

/// Pieces in a row, and where the blocks of those that are packed come from.
pub(super) struct Window {
    geometry: Geometry,
    /// Bytes of blocks, after which it is full.
    most_bytes: u64,
    pieces: Vec<Piece>,
    places: Vec<Place>,
    bytes: u64,
}

/// Where blocks go.
struct Place {
    from: Difference,
    /// Which piece, and the offset in its bytes.
    piece: usize,
    offset: usize,
}

impl Window {
    /// For so many bytes of blocks, about.
    pub(super) fn new(geometry: Geometry, most_bytes: u64) -> Self {
        Self { geometry, most_bytes, pieces: Vec::new(), places: Vec::new(), bytes: 0 }
    }

    /// Adds a page. Whenever the window is full, its pieces are handed to `out`.
    pub(super) fn add(
        &mut self,
        page: PagePlan,
        context: &Context,
        out: &mut PieceSender,
    ) -> Result<()> {
        let mut loose = VecDeque::from(page.loose);
        for frame in page.frames {
            match frame {
                FramePlan::Copy { part, place, block_count } => {
                    self.bytes += u64::from(place.record_bytes) + size_of::<Piece>() as u64;
                    self.pieces.push(Piece::Copy { part, place, block_count });
                }
                FramePlan::Pack(block_count) => self.pack(block_count, &mut loose)?,
            }
            if self.bytes >= self.most_bytes {
                self.flush(context, out)?;
            }
        }
        self.bytes += page.table.memory_bytes();
        self.pieces.push(Piece::Table(page.table));
        // There may be pages without frames.
        if self.bytes >= self.most_bytes { self.flush(context, out) } else { Ok(()) }
    }

    /// Adds a piece that has no blocks.
    pub(super) fn piece(&mut self, piece: Piece) {
        self.pieces.push(piece);
    }

    fn pack(&mut self, block_count: u16, loose: &mut VecDeque<Difference>) -> Result<()> {
        let size = self.geometry.block_size.in_memory();
        let piece = self.pieces.len();
        let mut have = 0;
        while have < u64::from(block_count) {
            let missing = || Error::corrupt("a frame without blocks");
            let from = loose.pop_front().ok_or_else(missing)?;
            let blocks = from.span.blocks;
            let count = blocks.count.min(u64::from(block_count) - have);
            let part = BlockRange { first: blocks.first, count };
            if let Some(span) = from.span.within(BlockRange::between(part.end(), blocks.end())) {
                loose.push_front(Difference { span, chunk: from.chunk.clone() });
            }
            let span = from.span.within(part).ok_or_else(missing)?;
            let from = Difference { span, chunk: from.chunk };
            self.places.push(Place { from, piece, offset: have as usize * size });
            have += count;
        }
        let raw = vec![0; usize::from(block_count) * size];
        self.bytes += raw.len() as u64;
        self.pieces.push(Piece::Frame { raw, block_count });
        Ok(())
    }

    /// Gets the blocks and hands the pieces to `out`.
    pub(super) fn flush(&mut self, context: &Context, out: &mut PieceSender) -> Result<()> {
        self.fill(context)?;
        self.places.clear();
        self.bytes = 0;
        out.send(self.pieces.drain(..))
    }

    fn fill(&mut self, context: &Context) -> Result<()> {
        let Some(first) = self.places.first() else { return Ok(()) };
        let layers = first.from.chunk.layers().clone();
        let mut builder = BatchBuilder::new(self.geometry, &layers, Order::ByFrame);
        for place in &self.places {
            builder.add(&place.from.chunk, place.from.span)?;
        }
        builder.finish();
        let (geometry, places, pieces) = (self.geometry, &self.places, &mut self.pieces);
        ordered_map(
            context.threads(),
            context.in_flight(BATCH_BYTES),
            || {
                context.check()?;
                Ok(builder.next_batch())
            },
            |batch| decode_batch(geometry, batch, None),
            |decoded| put(&decoded, geometry, places, pieces),
        )
    }
}

/// Puts decoded blocks where they go.
fn put(
    decoded: &Decoded,
    geometry: Geometry,
    places: &[Place],
    pieces: &mut [Piece],
) -> Result<()> {
    let size = geometry.block_size.in_memory();
    let lost = || Error::corrupt("blocks that nobody asked for");
    let mut data = decoded.bytes.as_slice();
    for part in &decoded.parts {
        let index = places.partition_point(|p| p.from.span.blocks.end() <= part.blocks.first);
        let place = places.get(index).ok_or_else(lost)?;
        let (now, rest) =
            data.split_at_checked(part.blocks.count as usize * size).ok_or_else(lost)?;
        data = rest;
        let skip = part.blocks.first.checked_sub(place.from.span.blocks.first).ok_or_else(lost)?;
        let start = place.offset + skip as usize * size;
        let Some(Piece::Frame { raw, .. }) = pieces.get_mut(place.piece) else {
            return Err(lost());
        };
        raw.get_mut(start..start + now.len()).ok_or_else(lost)?.copy_from_slice(now);
    }
    Ok(())
}
