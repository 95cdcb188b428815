//! Span by span through an index.

use super::cursor::ChainCursor;
use super::index_chunk::{IndexChunk, Span};
use crate::base::error::Result;
use crate::base::units::BlockRange;
use std::sync::Arc;

/// Spans that are fetched at a time.
const SPANS_PER_CHUNK: usize = 512;

/// A walk that can be cut anywhere, span by span.
pub struct SpanWalk {
    cursor: ChainCursor,
    chunk: Arc<IndexChunk>,
    /// The next one of its spans.
    index: usize,
    position: u64,
    /// As far as it is fetched ahead.
    end: u64,
}

impl SpanWalk {
    pub(super) fn new(cursor: ChainCursor, end: u64, empty: IndexChunk) -> Self {
        Self { cursor, chunk: Arc::new(empty), index: 0, position: 0, end }
    }

    /// Where it is.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Goes on at `block`, which is not before where it is.
    pub fn seek(&mut self, block: u64) {
        self.position = self.position.max(block);
    }

    /// Goes back to `block`, which is in the span that was given last.
    pub fn rewind(&mut self, block: u64) {
        self.position = self.position.min(block);
    }

    /// The chunk that the span which was given last belongs to.
    pub fn chunk(&self) -> &Arc<IndexChunk> {
        &self.chunk
    }

    /// The next span, cut at `end`; none if it is there already. Spans follow each other without a
    /// gap. Beyond the end of the image is nothing but zeros, and what a child has zeroed there.
    pub fn next(&mut self, end: u64) -> Result<Option<Span>> {
        if self.position >= end {
            return Ok(None);
        }
        loop {
            let range = BlockRange::between(self.position, end);
            while let Some(span) = self.chunk.spans.get(self.index) {
                if let Some(part) = span.within(range) {
                    self.position = part.blocks.end();
                    return Ok(Some(part));
                }
                self.index += 1;
            }
            self.cursor.seek(self.position);
            let end = self.end.max(end);
            self.chunk = Arc::new(self.cursor.chunk(end, SPANS_PER_CHUNK)?);
            self.index = 0;
        }
    }
}
