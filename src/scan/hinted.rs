//! What may have changed, and a share of the rest; what lies between is not examined.
//!
//! ```text
//! hints      ....CC.......C...............   since an earlier snapshot
//! touched    ..C..........................   between that one and the parent
//! recheck    ...............RRRR..........   a share of what is assumed to be unchanged
//! examined   ..C.CC.......C.RRRR..........
//! ```

use super::candidates::Candidates;
use super::changes::window_bytes;
use super::job::{Extents, Job, Part};
use crate::base::error::Result;
use crate::base::events::Context;
use crate::base::units::{BlockRange, ExtentKind, Geometry};
use crate::chain::{Chain, ChainCursor, TablePrefetchers, Touched};
use crate::image::Source;
use crate::tracking::ChangeHints;
use std::collections::VecDeque;

/// Unchanged blocks between two candidates are read with them if they are not more: one request
/// instead of two.
const SMALL_GAP_BYTES: u64 = 16 << 10;
/// Ranges that one job takes: each may be a request of its own to the disk, all are asked for ahead.
const PARTS_PER_JOB: usize = 512;
/// And as far as they may lie apart, in blocks: for each thousand of them a table is held in memory.
const SPAN_PER_JOB: u64 = 64 << 10;
/// Longer ranges are read in one request as it is.
const SCATTERED_BYTES: u64 = 1 << 20;
/// Jobs whose ranges and tables are asked for before they are needed.
const JOBS_AHEAD: usize = 16;
/// Longer runs of zeros have a job of their own.
const SMALL_ZEROS: u64 = 256;
/// Zeros that one job takes, in blocks.
const ZEROS_PER_JOB: u64 = 16 << 10;
/// Spans of the index that one job takes beyond the end of the image.
const SPANS_PER_JOB: usize = 256;

/// The part of an image to examine.
pub struct Hinted {
    /// What may have changed since an earlier snapshot; without, nothing has.
    pub hints: Option<Box<dyn ChangeHints>>,
    /// Where that snapshot and the parent differ; without, they are the same.
    pub touched: Option<Touched>,
    /// Blocks that are examined in any case.
    pub recheck: BlockRange,
}

/// Cuts what is to be examined into jobs, in order.
pub(super) struct HintedPlan<'a> {
    source: &'a dyn Source,
    geometry: Geometry,
    extents: Extents<'a>,
    candidates: Candidates,
    recheck: BlockRange,
    cursor: ChainCursor,
    prefetchers: TablePrefetchers,
    /// Blocks of the parent.
    old_count: u64,
    /// Blocks that one job reads.
    window: u64,
    /// Ranges to examine, and whether a hint named them (otherwise a change there counts as missed).
    ahead: VecDeque<(BlockRange, bool)>,
    /// Jobs whose bytes and tables are on their way.
    asked_for: VecDeque<Vec<Part>>,
    /// As far as candidates were asked for; none if there was none yet.
    asked: Option<u64>,
    are_all_asked: bool,
    /// As far as jobs were made.
    position: u64,
    /// No job has a line of this grid within it.
    cell_blocks: u64,
    named_bytes: u64,
}

impl<'a> HintedPlan<'a> {
    pub fn new(
        source: &'a dyn Source,
        chain: &Chain,
        hinted: Hinted,
        geometry: Geometry,
        cell_blocks: Option<u64>,
        context: &Context,
    ) -> Self {
        let block_bytes = u64::from(geometry.block_size.bytes());
        Self {
            source,
            geometry,
            extents: Extents::new(source, geometry),
            candidates: Candidates::new(hinted.hints, hinted.touched, geometry),
            recheck: hinted.recheck,
            cursor: chain.cursor().scattered(),
            prefetchers: chain.prefetchers(),
            old_count: chain.geometry().block_count(),
            window: (context.read_limits().most(window_bytes(context.all_threads())) / block_bytes)
                .max(1),
            ahead: VecDeque::new(),
            asked_for: VecDeque::new(),
            asked: None,
            are_all_asked: false,
            position: 0,
            cell_blocks: cell_blocks.unwrap_or(u64::MAX).max(1),
            named_bytes: 0,
        }
    }

    /// Bytes of the image that were named so far.
    pub fn named_bytes(&self) -> u64 {
        self.named_bytes
    }

    pub fn next(&mut self) -> Result<Option<Job>> {
        self.source.check()?;
        while self.asked_for.len() < JOBS_AHEAD {
            let parts = self.parts()?;
            if parts.is_empty() {
                break;
            }
            self.ask_for(&parts)?;
            self.asked_for.push_back(parts);
        }
        let Some(parts) = self.asked_for.pop_front() else { return self.tail() };
        let end = parts.last().map_or(self.position, |part| part.blocks.end());
        let blocks = BlockRange::between(self.position, end);
        self.position = end;
        let index = self.cursor.index_chunk_over(parts.iter().map(|part| part.blocks))?;
        Ok(Some(Job { blocks, parts, index: Some(index.into()) }))
    }

    /// What the next job examines; nothing at the end.
    fn parts(&mut self) -> Result<Vec<Part>> {
        let mut parts: Vec<Part> = Vec::new();
        let mut budget = self.window;
        while budget > 0 && parts.len() < PARTS_PER_JOB {
            let Some((range, may_differ)) = self.take()? else { break };
            let (extent, kind) = self.extents.at(range.first)?;
            let is_hole = kind == ExtentKind::Hole;
            let cell = range.first / self.cell_blocks;
            let is_far = parts.first().is_some_and(|first| {
                let first = first.blocks.first;
                range.first - first >= SPAN_PER_JOB || cell != first / self.cell_blocks
            });
            if is_far || (is_hole && !parts.is_empty() && range.count > SMALL_ZEROS) {
                // A job of its own: it costs no reading, so it may be large.
                self.ahead.push_front((range, may_differ));
                break;
            }
            let is_own_job = is_hole && parts.is_empty();
            let most = if is_own_job { ZEROS_PER_JOB } else { budget };
            let blocks = BlockRange { first: range.first, count: range.count.min(most) };
            let line = (cell + 1).saturating_mul(self.cell_blocks);
            let end = blocks.end().min(extent.end()).min(line);
            let blocks = BlockRange::between(blocks.first, end);
            if blocks.end() < range.end() {
                self.ahead.push_front((BlockRange::between(blocks.end(), range.end()), may_differ));
            }
            parts.push(Part { blocks, is_hole, may_differ });
            budget = budget.saturating_sub(blocks.count);
        }
        Ok(parts)
    }

    /// The next range to look at.
    fn take(&mut self) -> Result<Option<(BlockRange, bool)>> {
        while self.ahead.is_empty() && !self.are_all_asked {
            let candidate = self.candidates.next()?;
            let end = candidate.map_or(self.geometry.block_count(), |range| range.first);
            let gap = BlockRange::between(self.asked.unwrap_or(0), end);
            let small = SMALL_GAP_BYTES / u64::from(self.geometry.block_size.bytes());
            let is_between = self.asked.is_some() && candidate.is_some();
            let range = match is_between && gap.count <= small {
                true => gap,
                false => BlockRange::between(
                    gap.first.max(self.recheck.first),
                    gap.end().min(self.recheck.end()),
                ),
            };
            if range.count > 0 {
                self.ahead.push_back((range, false));
            }
            match candidate {
                None => self.are_all_asked = true,
                Some(range) => {
                    self.named_bytes += self.geometry.bytes_in(range);
                    self.asked = Some(range.end());
                    self.ahead.push_back((range, true));
                }
            }
        }
        Ok(self.ahead.pop_front())
    }

    /// Lets the disk work on all ranges of some jobs at once.
    fn ask_for(&mut self, parts: &[Part]) -> Result<()> {
        for part in parts {
            self.prefetchers.prefetch(part.blocks)?;
            let bytes = self.geometry.bytes_in(part.blocks);
            if !part.is_hole && bytes <= SCATTERED_BYTES {
                self.source.prefetch(self.geometry.offset(part.blocks.first), bytes);
            }
        }
        Ok(())
    }

    /// What the parent had beyond the end of the image.
    fn tail(&mut self) -> Result<Option<Job>> {
        let first = self.position.max(self.geometry.block_count());
        if first >= self.old_count {
            return Ok(None);
        }
        self.cursor.seek(first);
        let index = self.cursor.chunk(self.old_count, SPANS_PER_JOB)?;
        self.position = self.cursor.position();
        let blocks = BlockRange::between(first, self.position);
        let parts = vec![Part { blocks, is_hole: true, may_differ: true }];
        Ok(Some(Job { blocks, parts, index: Some(index.into()) }))
    }
}
