//! A snapshot as a readable disk: each block from its newest owner, checked against its digest
//! before anybody sees it.
//!
//! ```text
//! ChainCursor -> Batch (spans of up to 1 MiB of data) -> frames from the cache -> checked blocks
//! ```
//!
//! Batches are in block order, and so are the frames of each file: a walk over the disk decodes
//! each live frame once, as long as the frames that it is in fit the cache.

use crate::chain::{Chain, ChainCursor, Span, State};
use crate::digest::is_zero;
use crate::error::{Error, ErrorKind, Result};
use crate::source::{Source, Window};
use crate::units::{BlockRange, Extent, ExtentKind, Geometry};
use std::sync::{Arc, Mutex};

/// Data blocks of a batch, in bytes: the unit of work of one thread.
pub const BATCH_BYTES: u64 = 1 << 20;
/// Spans of a batch, so that zeros and scattered blocks do not fill the memory.
const BATCH_SPANS: usize = 512;

/// A snapshot that can be read.
pub struct SnapshotView {
    chain: Chain,
    /// For the extents: they are asked for in ascending order, mostly.
    walk: Mutex<Option<ChainCursor>>,
}

/// Spans in ascending order that are decoded in one go.
#[derive(Default)]
pub struct Batch {
    /// The spans, contiguous.
    pub spans: Vec<Span>,
    data_blocks: u64,
}

impl Batch {
    /// Adds a span.
    pub fn push(&mut self, span: Span) {
        if matches!(span.state, State::Data { .. }) {
            self.data_blocks += span.blocks.count;
        }
        self.spans.push(span);
    }

    /// Adds as much of a span as fits, and gives back the rest.
    pub fn push_fitting(&mut self, span: Span, geometry: Geometry) -> Option<Span> {
        let first = span.blocks.first;
        let room = match span.state {
            State::Data { .. } => Self::limit(geometry).saturating_sub(self.data_blocks).max(1),
            _ => u64::MAX,
        };
        let cut = first.saturating_add(room);
        span.within(BlockRange::between(first, cut)).into_iter().for_each(|part| self.push(part));
        span.within(BlockRange::between(cut, u64::MAX))
    }

    /// True if it should be decoded before more is added.
    pub fn is_full(&self, geometry: Geometry) -> bool {
        self.spans.len() >= BATCH_SPANS || self.data_blocks >= Self::limit(geometry)
    }

    /// True if it has no spans.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    fn limit(geometry: Geometry) -> u64 {
        (BATCH_BYTES / u64::from(geometry.block_size.bytes())).max(1)
    }
}

/// The next batch of a walk up to `end`; none at the end.
pub fn next_batch(cursor: &mut ChainCursor, end: u64, geometry: Geometry) -> Result<Option<Batch>> {
    let mut batch = Batch::default();
    while !batch.is_full(geometry)
        && let Some(span) = cursor.next(end)?
    {
        // Too much for this batch: come back for the rest.
        if let Some(rest) = batch.push_fitting(span, geometry) {
            cursor.rewind(rest.blocks.first);
        }
    }
    Ok((!batch.is_empty()).then_some(batch))
}

/// A batch, decoded and checked.
pub struct Decoded {
    /// Its spans.
    pub spans: Vec<Span>,
    /// The whole blocks of its data spans, one after the other.
    pub bytes: Vec<u8>,
    /// The sum of the terms of these blocks.
    pub terms: u128,
}

/// Decodes the data blocks of a batch and checks each against its digest.
///
/// # Errors
/// `Corrupt` if a block is not what its digest says, or was never read from the image.
pub fn decode_batch(geometry: Geometry, batch: Batch) -> Result<Decoded> {
    let size = geometry.block_size.in_memory();
    let mut bytes = Vec::with_capacity(batch.data_blocks as usize * size);
    let mut terms = 0u128;
    for span in &batch.spans {
        match &span.state {
            State::Zero => {}
            State::Unread => return Err(unread(geometry, span.blocks)),
            State::Data { .. } => decode_span(geometry, span, &mut bytes, &mut terms)?,
        }
    }
    Ok(Decoded { spans: batch.spans, bytes, terms })
}

fn unread(geometry: Geometry, blocks: BlockRange) -> Error {
    let (offset, bytes) = (geometry.offset(blocks.first), geometry.bytes_in(blocks));
    let what = format!("{bytes} bytes at {offset} could not be read when the snapshot was taken");
    Error::corrupt(what)
}

fn decode_span(
    geometry: Geometry,
    span: &Span,
    bytes: &mut Vec<u8>,
    terms: &mut u128,
) -> Result<()> {
    let State::Data { delta, page, ordinal } = &span.state else { return Ok(()) };
    let size = geometry.block_size.in_memory();
    let per_frame = delta.header().frame_blocks;
    let mut current: Option<(u32, Arc<Vec<u8>>)> = None;
    let blocks = (span.blocks.first..).zip(*ordinal..).zip(span.digests());
    for ((block, ordinal), digest) in blocks {
        let wanted = ordinal / per_frame;
        let frame = match current.take() {
            Some((index, frame)) if index == wanted => frame,
            _ => {
                let place = page.frames.get(wanted as usize).copied();
                let place = place.ok_or_else(|| Error::corrupt("a block without a frame"))?;
                delta.frame(place, page.blocks_in_frame(wanted, per_frame))?
            }
        };
        let start = (ordinal % per_frame) as usize * size;
        let content = frame.get(start..start + size);
        let content = content.ok_or_else(|| Error::corrupt("a frame without its block"))?;
        // The one place where a stored block is proved before anybody uses it.
        if delta.hasher().digest(content) != *digest {
            let offset = geometry.offset(block);
            let what = format!("block {block} (byte {offset} of the image) is damaged");
            return Err(Error::corrupt(what).at(delta.location()));
        }
        // FORMAT.md C4: what lies beyond the end of the image must not come back when it grows.
        let inside = geometry.bytes_in(BlockRange { first: block, count: 1 }) as usize;
        if !content.get(inside..).is_none_or(is_zero) {
            let what = format!("block {block} has bytes beyond the end of the image");
            return Err(Error::corrupt(what).at(delta.location()));
        }
        *terms = terms.wrapping_add(delta.hasher().term(block, *digest));
        bytes.extend_from_slice(content);
        current = Some((wanted, frame));
    }
    Ok(())
}

impl SnapshotView {
    /// The snapshot at the tip of `chain`.
    pub fn new(chain: Chain) -> Self {
        Self { chain, walk: Mutex::new(None) }
    }

    /// Its chain.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// Takes the cursor of the last call if it is not beyond `block`: a walk does not begin anew
    /// each time.
    fn cursor_at(&self, block: u64) -> Result<ChainCursor> {
        let mut kept = self.walk.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut cursor = match kept.take() {
            Some(cursor) if cursor.position() <= block => cursor,
            _ => self.chain.cursor()?,
        };
        cursor.seek(block);
        Ok(cursor)
    }

    fn keep(&self, cursor: ChainCursor) {
        *self.walk.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(cursor);
    }
}

impl Source for SnapshotView {
    fn image_bytes(&self) -> u64 {
        self.chain.geometry().image_bytes
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let geometry = self.chain.geometry();
        let first = offset / u64::from(geometry.block_size.bytes());
        let count = geometry.block_count();
        let mut cursor = self.cursor_at(first)?;
        let mut kind = None;
        let mut end = first;
        while let Some(span) = cursor.next(count)? {
            let is = match span.state {
                State::Zero => ExtentKind::Hole,
                _ => ExtentKind::Data,
            };
            if *kind.get_or_insert(is) != is {
                break;
            }
            end = span.blocks.end();
        }
        cursor.rewind(end);
        self.keep(cursor);
        let end = geometry.offset(end).min(geometry.image_bytes);
        let kind = kind.unwrap_or(ExtentKind::Hole);
        Ok(Extent { offset, bytes: end.saturating_sub(offset), kind })
    }

    fn read<'a>(
        &'a self,
        offset: u64,
        bytes: usize,
        buffer: &'a mut Vec<u8>,
    ) -> Result<Window<'a>> {
        let geometry = self.chain.geometry();
        let size = u64::from(geometry.block_size.bytes());
        let end = offset.saturating_add(bytes as u64);
        if end > geometry.image_bytes {
            let what = format!("byte {end} is beyond the end of the snapshot");
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        let first = offset / size;
        let mut cursor = self.chain.cursor()?;
        cursor.seek(first);
        buffer.clear();
        while let Some(batch) = next_batch(&mut cursor, end.div_ceil(size), geometry)? {
            let decoded = decode_batch(geometry, batch).map_err(|e| e.at(self.name()))?;
            let mut data = decoded.bytes.as_slice();
            for span in &decoded.spans {
                let length = span.blocks.count as usize * size as usize;
                if matches!(span.state, State::Data { .. }) {
                    let (now, rest) = data.split_at(length.min(data.len()));
                    buffer.extend_from_slice(now);
                    data = rest;
                } else {
                    buffer.resize(buffer.len() + length, 0);
                }
            }
        }
        let start = (offset - geometry.offset(first)) as usize;
        let short = || Error::corrupt("fewer bytes were decoded than the blocks have");
        Ok(Window::Copied(buffer.get(start..start + bytes).ok_or_else(short)?))
    }

    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn name(&self) -> String {
        self.chain.tip().location()
    }
}
