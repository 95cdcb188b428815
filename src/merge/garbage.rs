//! How much of what files hold is still of use to the newest of them.

use crate::base::error::Result;
use crate::base::events::Context;
use crate::chain::{ChainCursor, IndexChunk, Span, State};
use crate::delta::Delta;
use std::sync::Arc;

/// Spans that are examined in one go.
const SPANS_PER_CHUNK: usize = 4096;
/// What a block takes in a table page, about: its digest and a run.
const ENTRY_BYTES: u64 = 20;

/// What one of several files gives to the snapshot of the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LayerUse {
    /// Data blocks that no newer file has.
    pub live_blocks: u64,
    /// Bytes of the file that they take: their share of their frames, and their entries.
    pub live_bytes: u64,
}

impl LayerUse {
    fn whole(delta: &Delta) -> Self {
        let counts = delta.footer().counts;
        let live_bytes = counts.frame_bytes + counts.data_blocks * ENTRY_BYTES;
        Self { live_blocks: counts.data_blocks, live_bytes }
    }

    /// Adds the blocks of a span.
    fn add(&mut self, chunk: &IndexChunk, span: Span) {
        let State::Data { page, ordinal } = span.state else { return };
        let Some(of) = chunk.page(page) else { return };
        let (mut ordinal, end) = (ordinal, ordinal + span.blocks.count as u32);
        self.live_blocks += span.blocks.count;
        self.live_bytes += span.blocks.count * ENTRY_BYTES;
        while ordinal < end {
            let (frame, ordinals) = of.page.frame_of(ordinal);
            let next = ordinals.end.clamp(ordinal + 1, end);
            let record_bytes = of.page.frames.get(frame as usize).map_or(0, |f| f.record_bytes);
            let share = u64::from(record_bytes) * u64::from(next - ordinal);
            self.live_bytes += share / (ordinals.len() as u64).max(1);
            ordinal = next;
        }
    }
}

/// For each of `layers`, newest first, what no newer one of them supersedes. Of the oldest, which may be
/// a large base, only the tables where the others have something are read.
pub fn layer_use(layers: &[Arc<Delta>], context: &Context) -> Result<Vec<LayerUse>> {
    let Some((oldest, newer)) = layers.split_last() else { return Ok(Vec::new()) };
    let mut uses = vec![LayerUse::default(); newer.len()];
    let mut superseded = LayerUse::default();
    let mut cursor = ChainCursor::with_gaps(&newer.iter().cloned().collect());
    let mut below = ChainCursor::with_gaps(&Arc::from([oldest.clone()]));
    loop {
        context.check()?;
        let chunk = cursor.chunk(u64::MAX, SPANS_PER_CHUNK)?;
        if chunk.spans.is_empty() {
            break;
        }
        for span in &chunk.spans {
            if let State::Data { page, .. } = span.state
                && let Some(of) = chunk.page(page)
                && let Some(layer) = uses.get_mut(of.layer as usize)
            {
                layer.add(&chunk, *span);
            }
            below.seek(span.blocks.first);
            while below.position() < span.blocks.end() {
                let hidden = below.chunk(span.blocks.end(), SPANS_PER_CHUNK)?;
                hidden.spans.iter().for_each(|span| superseded.add(&hidden, *span));
            }
        }
    }
    let whole = LayerUse::whole(oldest);
    uses.push(LayerUse {
        live_blocks: whole.live_blocks.saturating_sub(superseded.live_blocks),
        live_bytes: whole.live_bytes.saturating_sub(superseded.live_bytes),
    });
    Ok(uses)
}
