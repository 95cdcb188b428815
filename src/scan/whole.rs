//! All of an image, window by window.

use super::changes::{Index, window_bytes};
use super::job::{Extents, Job, Part};
use crate::base::error::Result;
use crate::base::events::Context;
use crate::base::units::{BlockRange, ExtentKind, Geometry};
use crate::chain::{ChainCursor, IndexChunk};
use crate::image::Source;
use std::sync::Arc;

/// Holes smaller than this within a window are read with it: a mapping costs more than zeros.
const SMALL_HOLE_BYTES: u64 = 64 << 10;
/// Windows over which the index is merged at once.
const WINDOWS_AHEAD: u64 = 8;
/// Spans of the index that one job takes, where there is nothing to read.
const SPANS_PER_JOB: usize = 256;
/// Windows between two checks whether another process wants the image.
const CHECK_EVERY: u64 = 4;

/// Cuts the image into jobs, in order.
pub(super) struct WholePlan<'a> {
    source: &'a dyn Source,
    context: &'a Context,
    geometry: Geometry,
    extents: Extents<'a>,
    cursor: Option<ChainCursor>,
    /// The index merged ahead, and where that ends, so that a long chain is not searched for each
    /// window.
    ahead: Option<Arc<IndexChunk>>,
    ahead_end: u64,
    /// The longer of image and index, in blocks, or the end of the range.
    end: u64,
    cell_blocks: Option<u64>,
    position: u64,
    jobs: u64,
}

impl<'a> WholePlan<'a> {
    pub fn new(
        source: &'a dyn Source,
        index: &Index<'_>,
        geometry: Geometry,
        range: Option<BlockRange>,
        cell_blocks: Option<u64>,
        context: &'a Context,
    ) -> Self {
        let cursor = match index {
            Index::Parent(chain) => Some(chain.cursor()),
            Index::Nothing(..) => None,
        };
        let old_count = geometry.block_size.count(index.image_bytes());
        let end = geometry.block_count().max(old_count);
        let (first, end) = range.map_or((0, end), |range| (range.first, range.end().min(end)));
        let cursor = cursor.map(|mut cursor| {
            cursor.seek(first);
            cursor
        });
        Self {
            source,
            context,
            geometry,
            extents: Extents::new(source, geometry),
            cursor,
            ahead: None,
            ahead_end: 0,
            end,
            cell_blocks,
            position: first,
            jobs: 0,
        }
    }

    pub fn next(&mut self) -> Result<Option<Job>> {
        if self.position >= self.end {
            return Ok(None);
        }
        if self.jobs.is_multiple_of(CHECK_EVERY) {
            self.source.check()?;
        }
        self.jobs += 1;
        let first = self.position;
        if first >= self.geometry.block_count() {
            return self.idle_job(self.end).map(Some);
        }
        let (extent, kind) = self.extents.at(first)?;
        if kind == ExtentKind::Hole {
            return self.idle_job(extent.end()).map(Some);
        }
        // Not more than is read at once: whoever waits for the image does not wait for a window.
        let window = self.context.read_limits().most(window_bytes(self.context.all_threads()));
        let block_bytes = u64::from(self.geometry.block_size.bytes());
        let window = (window / block_bytes).max(1);
        let best = (self.source.best_read_bytes() / block_bytes).max(1);
        // The index is merged by whole windows.
        let step = if window.is_multiple_of(best) { best } else { window };
        let end = ((first / step + 1) * step).min(self.geometry.block_count());
        let end = end.min(self.line_after(first)).min(self.end);
        let parts = self.parts_until(end)?;
        let index = self.index_over(window)?;
        self.position = end;
        Ok(Some(Job { blocks: BlockRange::between(first, end), parts, index }))
    }

    /// The next line of the grid.
    fn line_after(&self, block: u64) -> u64 {
        let cell = self.cell_blocks.filter(|cell| *cell > 0);
        cell.map_or(u64::MAX, |cell| (block / cell).saturating_add(1).saturating_mul(cell))
    }

    /// The index over the window at the position, and some more.
    fn index_over(&mut self, window: u64) -> Result<Option<Arc<IndexChunk>>> {
        if self.position >= self.ahead_end
            && let Some(cursor) = &mut self.cursor
        {
            // Ends where a window does.
            let ahead = window * WINDOWS_AHEAD;
            self.ahead_end = ((self.position / ahead + 1) * ahead).min(self.end);
            self.ahead = Some(Arc::new(cursor.chunk(self.ahead_end, usize::MAX)?));
        }
        Ok(self.ahead.clone())
    }

    /// A job with nothing to read, up to `end` or until it has enough spans.
    fn idle_job(&mut self, end: u64) -> Result<Job> {
        let first = self.position;
        // From a line on it may pass many cells: they are of one part.
        let is_on_line = self.cell_blocks.is_none_or(|cell| first.is_multiple_of(cell.max(1)));
        let line = if is_on_line { u64::MAX } else { self.line_after(first) };
        let end = end.min(line).min(self.end);
        let (end, index) = if first < self.ahead_end {
            (end.min(self.ahead_end), self.ahead.clone())
        } else if let Some(cursor) = &mut self.cursor {
            let index = cursor.chunk(end, SPANS_PER_JOB)?;
            (cursor.position(), Some(Arc::new(index)))
        } else {
            (end, None)
        };
        self.position = end;
        let blocks = BlockRange::between(first, end);
        Ok(Job { blocks, parts: vec![Part { blocks, is_hole: true, may_differ: true }], index })
    }

    /// Data and holes from the position up to `end`; small holes are taken along with data.
    fn parts_until(&mut self, end: u64) -> Result<Vec<Part>> {
        let small = SMALL_HOLE_BYTES / u64::from(self.geometry.block_size.bytes());
        let mut parts: Vec<Part> = Vec::new();
        let mut at = self.position;
        while at < end {
            let (extent, kind) = self.extents.at(at)?;
            let blocks = BlockRange::between(at, extent.end().min(end));
            at = blocks.end();
            let part = Part { blocks, is_hole: kind == ExtentKind::Hole, may_differ: true };
            if !part.is_hole
                && let [.., data, hole] = parts.as_mut_slice()
                && !data.is_hole
                && hole.is_hole
                && hole.blocks.count <= small
            {
                data.blocks = BlockRange::between(data.blocks.first, at);
                parts.pop();
                continue;
            }
            parts.push(part);
        }
        Ok(parts)
    }
}
