//! Where two snapshots of one chain, or of two branches of it, differ: from their tables alone.

use super::{Chain, ChainCursor, Span, State};
use crate::error::Result;
use crate::units::BlockRange;
use std::sync::Arc;

/// Walks two indexes side by side.
pub struct Comparison {
    before: ChainCursor,
    after: ChainCursor,
    end: u64,
}

impl Comparison {
    /// Of two comparable chains ([`Chain::is_comparable`]), over the longer of the two images.
    pub fn new(before: &Chain, after: &Chain) -> Result<Self> {
        let end = before.geometry().block_count().max(after.geometry().block_count());
        Ok(Self { before: before.cursor()?, after: after.cursor()?, end })
    }

    /// The next part of the walk: how far it got, and what `after` has where the two differ. None
    /// at the end.
    ///
    /// Unread blocks differ from everything.
    pub fn step(&mut self) -> Result<Option<(u64, Vec<Span>)>> {
        let Some(before) = self.before.next(self.end)? else { return Ok(None) };
        let mut different = Vec::new();
        while let Some(after) = self.after.next(before.blocks.end())? {
            if let Some(before) = before.within(after.blocks) {
                differences(&before, after, &mut different);
            }
        }
        Ok(Some((before.blocks.end(), different)))
    }
}

/// Adds the parts of `after` that differ from `before`, which covers the same blocks.
fn differences(before: &Span, after: Span, different: &mut Vec<Span>) {
    match (&before.state, &after.state) {
        (State::Zero, State::Zero) => {}
        (
            State::Data { delta: a, ordinal: i, page: p },
            State::Data { delta: b, ordinal: j, page: q },
        ) => {
            if Arc::ptr_eq(a, b) && Arc::ptr_eq(p, q) && i == j {
                return;
            }
            let pairs = before.digests().iter().zip(after.digests());
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
