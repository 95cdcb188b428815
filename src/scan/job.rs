//! What one worker does at a time, and where the source has data.

use crate::base::error::Result;
use crate::base::units::{BlockRange, ExtentKind, Geometry};
use crate::chain::IndexChunk;
use crate::image::Source;
use std::sync::Arc;

/// A piece of the image to look at.
pub(super) struct Job {
    /// What is done with when it is done: for the progress.
    pub blocks: BlockRange,
    /// Ascending. What lies in no part is not examined, and is as the index has it.
    pub parts: Vec<Part>,
    /// The index over all parts, if there is one.
    pub index: Option<Arc<IndexChunk>>,
}

/// Blocks that are examined in one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub blocks: BlockRange,
    /// Zeros, known without reading.
    pub is_hole: bool,
    /// A change here is no surprise.
    pub may_differ: bool,
}

/// The extents of a source in whole blocks.
pub(crate) struct Extents<'a> {
    source: &'a dyn Source,
    geometry: Geometry,
    /// The last one that was asked for.
    last: Option<(BlockRange, ExtentKind)>,
}

impl<'a> Extents<'a> {
    pub fn new(source: &'a dyn Source, geometry: Geometry) -> Self {
        Self { source, geometry, last: None }
    }

    /// The extent in which a block is: a block with any data is data.
    pub fn at(&mut self, block: u64) -> Result<(BlockRange, ExtentKind)> {
        if let Some((range, kind)) = self.last
            && (range.first..range.end()).contains(&block)
        {
            return Ok((range, kind));
        }
        let size = u64::from(self.geometry.block_size.bytes());
        let count = self.geometry.block_count();
        let extent = self.source.extent_at(self.geometry.offset(block))?;
        let extent_end = extent.offset + extent.bytes;
        let is_last = extent_end >= self.geometry.image_bytes;
        let whole = if is_last { count } else { extent_end / size };
        let (end, kind) = match extent.kind {
            ExtentKind::Hole if whole > block => (whole, ExtentKind::Hole),
            // The hole ends within its first block: there is data in it.
            ExtentKind::Hole => (block + 1, ExtentKind::Data),
            ExtentKind::Data => (extent_end.div_ceil(size).min(count), ExtentKind::Data),
        };
        let range = BlockRange::between(block, end);
        self.last = Some((range, kind));
        Ok((range, kind))
    }
}
