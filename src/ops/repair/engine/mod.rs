//! The verb *mend*: writes a file of a snapshot anew in which blocks are damaged; they are taken from
//! wherever blocks of equal digest were found.
//!
//! ```text
//! table of the file -> runs -> its own block if that is sound, else one that was found -> Segmenter -> ...
//! ```
//!
//! Every block that goes in is what its digest says; the table is the old one.

mod search;

pub use search::{Found, Wanted};

use crate::base::digest::Digest;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::{Context, Phase};
use crate::base::pipeline::ordered_map;
use crate::base::units::{BlockRange, Geometry};
use crate::chain::{IndexChunk, Span, State};
use crate::codec::Compression;
use crate::delta::{
    BASE_FRAME_BYTES, DELTA_FRAME_BYTES, Delta, Identity, LayerOutput, PieceSender, Segmenter,
    TableCursor, Written, write_produced,
};
use crate::format::{Features, FrameLayout, Header, Run, RunKind};
use crate::view::{BATCH_BYTES, BatchBuilder, Order, decode_batch};
use std::sync::Arc;
use uuid::Uuid;

/// A file that is to be written anew.
pub struct Plan<'a> {
    /// The damaged one. Its table is sound.
    pub delta: Arc<Delta>,
    /// Where the damaged blocks are.
    pub found: &'a Found,
    /// Identity of the new file.
    pub file_id: Uuid,
    /// How to compress.
    pub compression: Compression,
}

/// Writes the file to `out`.
///
/// # Errors
/// `Corrupt` if a damaged block was not found, or a page is damaged; `Unsupported` if the blocks are in a
/// base image.
pub fn mend(plan: &Plan<'_>, context: &Context, out: &mut dyn LayerOutput) -> Result<Written> {
    let (old, footer) = (plan.delta.header(), plan.delta.footer());
    if old.layout() == FrameLayout::Absent {
        let what = "its blocks are in a base image, and are repaired there";
        return Err(Error::new(ErrorKind::Unsupported, what));
    }
    let frame_bytes = if footer.parent.is_none() { BASE_FRAME_BYTES } else { DELTA_FRAME_BYTES };
    let header = Header {
        features: Features::incompatible(0),
        file_id: plan.file_id,
        frame_blocks: Header::frame_blocks_for(old.block_size, frame_bytes),
        ..old.clone()
    };
    let bytes = footer.counts.data_blocks.saturating_mul(u64::from(old.block_size.bytes()));
    let phase = context.begin(Phase::Mend, bytes);
    let produce = |pieces: &mut PieceSender| read_into(plan, &header, context, pieces);
    let outcome = write_produced(&header, plan.compression, context, out, &mut |_| {}, produce);
    drop(phase);
    let identity = Identity::of(footer);
    let (writer, ()) = outcome?;
    writer.finish(&identity, footer.parent, footer.image_bytes, footer.image_digest)
}

/// One run, or a part of one.
enum Entry {
    Data(IndexChunk, Span),
    Other(Run),
}

/// Reads the file run by run, cuts it into pieces, and sends them.
fn read_into(
    plan: &Plan<'_>,
    header: &Header,
    context: &Context,
    pieces: &mut PieceSender,
) -> Result<()> {
    let delta = &plan.delta;
    let geometry = Geometry::new(header.block_size, delta.footer().image_bytes)?;
    let most = (BATCH_BYTES / u64::from(header.block_size.bytes())).max(1);
    let mut segmenter = Segmenter::new(header.block_size, header.frame_blocks);
    let mut cursor = TableCursor::new(delta.clone());
    cursor.seek(0)?;
    // As far as the run was handed out that the cursor is at.
    let mut position = 0;
    ordered_map(
        context.threads(),
        context.in_flight(BATCH_BYTES),
        || {
            context.check()?;
            let Some((_, run)) = cursor.run() else { return Ok(None) };
            if run.kind != RunKind::Data {
                let other = Entry::Other(run);
                cursor.advance()?;
                return Ok(Some(other));
            }
            let first = run.blocks.first.max(position);
            let blocks = BlockRange { first, count: most.min(run.blocks.end() - first) };
            let mut chunk = IndexChunk::new(Arc::new([delta.clone()]));
            let page = chunk.add_page_at(0, &cursor);
            let ordinal = run.ordinal + (first - run.blocks.first) as u32;
            position = blocks.end();
            if position == run.blocks.end() {
                cursor.advance()?;
            }
            let span = Span { blocks, state: State::Data { page, ordinal } };
            Ok(Some(Entry::Data(chunk, span)))
        },
        |entry| match entry {
            Entry::Other(run) => Ok((Entry::Other(run), Vec::new())),
            Entry::Data(chunk, span) => {
                let bytes = plan.blocks(geometry, &chunk, span)?;
                context.advance(bytes.len() as u64);
                Ok((Entry::Data(chunk, span), bytes))
            }
        },
        |(entry, bytes)| {
            match entry {
                Entry::Other(run) => segmenter.run(run.kind, run.blocks),
                Entry::Data(chunk, span) => {
                    let blocks = bytes.chunks(geometry.block_size.in_memory());
                    let digests = chunk.digests(span).iter();
                    for ((block, digest), content) in (span.blocks.first..).zip(digests).zip(blocks)
                    {
                        segmenter.data(block, *digest, content);
                    }
                }
            }
            pieces.send(segmenter.pieces())
        },
    )?;
    pieces.send(segmenter.finish())
}

impl Plan<'_> {
    /// The blocks of a span, from the file where they are sound, otherwise from where they were found.
    fn blocks(&self, geometry: Geometry, chunk: &IndexChunk, span: Span) -> Result<Vec<u8>> {
        if let Ok(bytes) = stored(geometry, chunk, span) {
            return Ok(bytes);
        }
        let mut bytes = Vec::new();
        let digests: &[Digest] = chunk.digests(span);
        for (first, digest) in (span.blocks.first..).zip(digests) {
            let one = span.within(BlockRange { first, count: 1 });
            match one.map(|one| stored(geometry, chunk, one)) {
                Some(Ok(block)) => bytes.extend_from_slice(&block),
                _ => bytes.extend_from_slice(&self.found.block(digest, self.delta.hasher())?),
            }
        }
        Ok(bytes)
    }
}

/// The blocks of a span as they are stored, proved.
fn stored(geometry: Geometry, chunk: &IndexChunk, span: Span) -> Result<Vec<u8>> {
    let mut builder = BatchBuilder::new(geometry, chunk.layers(), Order::Ascending);
    builder.add(chunk, span)?;
    builder.finish();
    let mut bytes = Vec::new();
    while let Some(batch) = builder.next_batch() {
        bytes.extend(decode_batch(geometry, batch, None)?.bytes);
    }
    Ok(bytes)
}
