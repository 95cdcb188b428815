//! Two snapshots, and in what the one differs from the other, found from the tables of the files that
//! only one of them depends on.
//!
//! ```text
//! tip      t3 - t2 \
//!                    common - common - base
//! parent        p1 /
//! touched  runs of t3, t2 and p1: nothing else can differ
//! ```
//!
//! What lies beside these runs is not examined: to compare two snapshots of a large disk costs what
//! was changed between them.

use super::Chain;
use super::compare::differences;
use super::cursor::ChainCursor;
use super::index_chunk::{IndexChunk, Span, State};
use super::walk::SpanWalk;
use crate::base::digest::ImageDigest;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::units::BlockRange;
use crate::delta::Delta;
use std::collections::VecDeque;
use std::sync::Arc;

/// Spans that are examined in one go.
const SPANS_PER_CHUNK: usize = 4096;

/// A snapshot, and another one that it is held against.
pub struct Fork {
    tip: Chain,
    parent: Option<Chain>,
    /// Files that only the tip depends on, newest first.
    own: Arc<[Arc<Delta>]>,
    /// Files that only the parent depends on.
    other: Arc<[Arc<Delta>]>,
}

impl Fork {
    /// Of the snapshot at the tip of `tip` against that of `parent`, or against nothing.
    ///
    /// # Errors
    /// `InvalidInput` if digests of the one say nothing of the other ([`Chain::is_comparable`]).
    pub fn new(tip: Chain, parent: Option<Chain>) -> Result<Self> {
        if parent.as_ref().is_some_and(|parent| !parent.is_comparable(&tip)) {
            let what = "the snapshots belong to chains whose digests cannot be compared";
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        let ids = |chain: &Chain| -> Vec<_> {
            chain.layers().iter().map(|delta| delta.header().file_id).collect()
        };
        let below = parent.as_ref().map(ids).unwrap_or_default();
        let common =
            ids(&tip).iter().rev().zip(below.iter().rev()).take_while(|(a, b)| a == b).count();
        let own = |chain: &Chain| -> Arc<[Arc<Delta>]> {
            let count = chain.layers().len() - common;
            chain.layers().iter().take(count).cloned().collect()
        };
        let other = parent.as_ref().map_or(Arc::from([]), own);
        Ok(Self { own: own(&tip), other, tip, parent })
    }

    /// The snapshot.
    pub fn tip(&self) -> &Chain {
        &self.tip
    }

    /// The other one.
    pub fn parent(&self) -> Option<&Chain> {
        self.parent.as_ref()
    }

    /// The files that the content of blocks which differ is in, newest first: layers of the chunks
    /// of [`Fork::differences`].
    pub fn sources(&self) -> &Arc<[Arc<Delta>]> {
        // What only the parent's files have is as the common ones have it.
        if self.other.is_empty() { &self.own } else { self.tip.layers() }
    }

    /// Where they may differ: what the files have that only one of them depends on.
    pub fn touched(&self) -> Touched {
        let both: Arc<[Arc<Delta>]> = self.own.iter().chain(&*self.other).cloned().collect();
        Touched { cursor: ChainCursor::with_gaps(&both), ranges: VecDeque::new() }
    }

    /// The files that only the snapshot depends on, newest first.
    pub fn own(&self) -> &Arc<[Arc<Delta>]> {
        &self.own
    }

    /// The image digest of the snapshot as it follows from the parent's, and from what the sum of the terms
    /// changes by.
    pub fn digest_after(&self, difference: u128) -> ImageDigest {
        digest_after(&self.tip, self.parent.as_ref(), difference)
    }

    /// In what they differ, from block 0 on.
    pub fn differences(&self) -> Differences {
        self.differences_in(BlockRange::between(0, u64::MAX))
    }

    /// The same of some blocks alone.
    pub fn differences_in(&self, blocks: BlockRange) -> Differences {
        let sources = self.sources();
        // Not beyond what is asked for: the next place that is touched may be far away.
        let narrow = |cursor| SpanWalk::new(cursor, 0, IndexChunk::new(sources.clone()));
        let count = self.tip.geometry().block_count();
        let end = count.min(blocks.end());
        let touched = self.parent.as_ref().map(|_| {
            let mut touched = self.touched();
            touched.cursor.seek(blocks.first);
            touched
        });
        let longer = self.parent.as_ref().map_or(0, |parent| parent.geometry().block_count());
        let mut differences = Differences {
            tip: self.tip.clone(),
            parent: self.parent.clone(),
            end,
            // Against nothing, all of it may differ.
            range: BlockRange::between(blocks.first, if touched.is_some() { 0 } else { end }),
            touched,
            content: narrow(ChainCursor::new(sources)),
            before: self.parent.as_ref().map(|parent| narrow(parent.cursor())),
            current: None,
            found: VecDeque::new(),
            step: 0,
            tail: BlockRange::between(count.max(blocks.first), longer.min(blocks.end())),
        };
        differences.content.seek(blocks.first);
        differences
    }
}

fn digest_after(tip: &Chain, parent: Option<&Chain>, difference: u128) -> ImageDigest {
    let hasher = tip.hasher();
    let before = parent.map_or(ImageDigest(0), |parent| {
        parent.image_digest().minus(hasher.size_term(parent.geometry().image_bytes))
    });
    before.plus(difference).plus(hasher.size_term(tip.geometry().image_bytes))
}

/// Blocks that some files have, whatever they have there.
pub struct Touched {
    cursor: ChainCursor,
    ranges: VecDeque<BlockRange>,
}

impl Touched {
    /// The next of them before `end`, in ascending order.
    ///
    /// # Errors
    /// `Corrupt` if a table is damaged.
    pub fn next_range(&mut self, end: u64) -> Result<Option<BlockRange>> {
        while self.ranges.is_empty() && self.cursor.position() < end {
            for span in self.cursor.chunk(end, SPANS_PER_CHUNK)?.spans {
                match self.ranges.back_mut() {
                    Some(last) if last.end() == span.blocks.first => {
                        last.count += span.blocks.count;
                    }
                    _ => self.ranges.push_back(span.blocks),
                }
            }
        }
        Ok(self.ranges.pop_front())
    }
}

/// Blocks that are not what they were.
#[derive(Clone)]
pub struct Difference {
    /// What they are now.
    pub span: Span,
    /// Where the pages of the span are.
    pub chunk: Arc<IndexChunk>,
}

/// In what a snapshot differs from its parent, in ascending order. Zeros beyond the end of the
/// snapshot, where the parent was longer, come last (FORMAT.md M5).
pub struct Differences {
    tip: Chain,
    parent: Option<Chain>,
    /// As far as they are asked for within the snapshot.
    end: u64,
    /// Where they may differ; none if that is everywhere.
    touched: Option<Touched>,
    range: BlockRange,
    content: SpanWalk,
    before: Option<SpanWalk>,
    /// What is being held against the parent.
    current: Option<Difference>,
    found: VecDeque<Difference>,
    /// Sum of the terms of what there is, less those of what there was.
    step: u128,
    /// What is left of the blocks beyond the end of the snapshot.
    tail: BlockRange,
}

impl Differences {
    /// The next blocks that differ.
    ///
    /// # Errors
    /// `Corrupt` if a table is damaged.
    pub fn next_difference(&mut self) -> Result<Option<Difference>> {
        self.next_before(u64::MAX)
    }

    /// The next blocks that differ before the block `line`, which is not before one that was given earlier;
    /// none if there are none. What goes beyond it is cut there.
    ///
    /// # Errors
    /// `Corrupt` if a table is damaged.
    pub fn next_before(&mut self, line: u64) -> Result<Option<Difference>> {
        loop {
            if let Some(found) = self.found.pop_front() {
                return Ok(Some(found));
            }
            if let Some(current) = self.current.take() {
                self.hold_against_parent(current)?;
            } else if let Some(span) = self.content.next(self.range.end().min(line))? {
                self.current = Some(Difference { span, chunk: self.content.chunk().clone() });
            } else if self.range.end() > line {
                return Ok(None);
            } else if let Some(range) = self.next_range()? {
                self.range = range;
                self.content.seek(range.first);
            } else if let Some(tail) = self.tail(line)? {
                return Ok(Some(tail));
            } else {
                return Ok(None);
            }
        }
    }

    /// Where the next ones may be, once [`Differences::next_before`] has given none; none at the end.
    ///
    /// # Errors
    /// `Corrupt` if a table is damaged.
    pub fn next_place(&mut self) -> Result<Option<u64>> {
        if self.content.position() >= self.range.end()
            && let Some(range) = self.next_range()?
        {
            self.range = range;
            self.content.seek(range.first);
        }
        let at = self.content.position();
        let is_inside = at < self.range.end();
        Ok(if is_inside { Some(at) } else { (self.tail.count > 0).then_some(self.tail.first) })
    }

    /// The sum of the terms of all blocks that were given, less those of what there was.
    pub fn step(&self) -> u128 {
        self.step
    }

    /// The image digest of the snapshot as it follows from the parent's and from all differences, which
    /// were asked for: it proves the tables that were passed.
    pub fn image_digest(&self) -> ImageDigest {
        digest_after(&self.tip, self.parent.as_ref(), self.step)
    }

    fn next_range(&mut self) -> Result<Option<BlockRange>> {
        let end = self.end;
        self.touched.as_mut().map_or(Ok(None), |touched| touched.next_range(end))
    }

    /// Takes the part of `now` for which the parent has one span.
    fn hold_against_parent(&mut self, now: Difference) -> Result<()> {
        let old = match &mut self.before {
            None => Span { blocks: now.span.blocks, state: State::Zero },
            Some(before) => {
                before.seek(now.span.blocks.first);
                match before.next(now.span.blocks.end())? {
                    Some(old) => old,
                    None => {
                        return Err(Error::corrupt("the index ends before the end of the image"));
                    }
                }
            }
        };
        let rest = BlockRange::between(old.blocks.end(), now.span.blocks.end());
        if let Some(span) = now.span.within(rest) {
            self.current = Some(Difference { span, chunk: now.chunk.clone() });
        }
        let Some(span) = now.span.within(old.blocks) else { return Ok(()) };
        let empty = IndexChunk::new(Arc::from([]));
        let before = self.before.as_ref().map_or(&empty, |before| before.chunk());
        let mut different = Vec::new();
        differences(before, old, &now.chunk, span, &mut different);
        let hasher = self.tip.hasher();
        for span in different {
            let terms = now.chunk.terms(span, hasher);
            let old_terms = old.within(span.blocks).map_or(0, |old| before.terms(old, hasher));
            self.step = self.step.wrapping_add(terms).wrapping_sub(old_terms);
            self.found.push_back(Difference { span, chunk: now.chunk.clone() });
        }
        Ok(())
    }

    /// Zeros before `line` where the parent was longer.
    fn tail(&mut self, line: u64) -> Result<Option<Difference>> {
        let blocks = BlockRange::between(self.tail.first, self.tail.end().min(line));
        if blocks.count == 0 {
            return Ok(None);
        }
        self.tail = BlockRange::between(blocks.end(), self.tail.end());
        if let Some(before) = &mut self.before {
            before.seek(blocks.first);
            while let Some(old) = before.next(blocks.end())? {
                let terms = before.chunk().terms(old, self.tip.hasher());
                self.step = self.step.wrapping_sub(terms);
            }
        }
        let span = Span { blocks, state: State::Zero };
        Ok(Some(Difference { span, chunk: self.content.chunk().clone() }))
    }
}
