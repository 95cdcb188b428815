//! Where two snapshots of one chain, or of two branches of it, differ: from their tables alone.

use super::{Chain, ChainCursor, IndexChunk, Span, SpanWalk, State};
use crate::base::error::Result;
use crate::base::units::BlockRange;
use std::sync::Arc;

/// Spans that are compared in a step, about.
const STEP_SPANS: usize = 512;

/// Walks two indexes side by side.
pub struct Comparison {
    before: SpanWalk,
    after: ChainCursor,
    end: u64,
}

impl Comparison {
    /// Of two comparable chains ([`Chain::is_comparable`]), over the longer of the two images.
    pub fn new(before: &Chain, after: &Chain) -> Self {
        let end = before.geometry().block_count().max(after.geometry().block_count());
        Self { before: before.walk(), after: after.cursor(), end }
    }

    /// The next part of the walk: how far it got, and what `after` has where the two differ. None
    /// at the end.
    ///
    /// Unread blocks differ from everything.
    pub fn step(&mut self) -> Result<Option<(u64, IndexChunk)>> {
        let mut after = self.after.chunk(self.end, STEP_SPANS)?;
        if after.spans.is_empty() {
            return Ok(None);
        }
        let spans = std::mem::take(&mut after.spans);
        let mut different = Vec::new();
        for span in spans {
            while let Some(before) = self.before.next(span.blocks.end())? {
                if let Some(part) = span.within(before.blocks) {
                    differences(self.before.chunk(), before, &after, part, &mut different);
                }
            }
        }
        after.spans = different;
        Ok(Some((self.after.position(), after)))
    }
}

/// Adds the parts of `after` that differ from `before`, which covers the same blocks.
pub(super) fn differences(
    old: &IndexChunk,
    before: Span,
    new: &IndexChunk,
    after: Span,
    different: &mut Vec<Span>,
) {
    match (before.state, after.state) {
        (State::Zero, State::Zero) => {}
        (State::Data { page: p, ordinal: i }, State::Data { page: q, ordinal: j }) => {
            let is_same = |p, q| match (old.page(p), new.page(q)) {
                (Some(p), Some(q)) => Arc::ptr_eq(&p.page, &q.page),
                _ => false,
            };
            if i == j && is_same(p, q) {
                return;
            }
            let pairs = old.digests(before).iter().zip(new.digests(after));
            let mut run: Option<BlockRange> = None;
            for (block, (one, other)) in (after.blocks.first..).zip(pairs) {
                match &mut run {
                    Some(range) if one != other => range.count += 1,
                    None if one != other => run = Some(BlockRange { first: block, count: 1 }),
                    _ => different.extend(run.take().and_then(|range| after.within(range))),
                }
            }
            different.extend(run.and_then(|range| after.within(range)));
        }
        _ => different.push(after),
    }
}
