//! Cuts a stream of windows into parts.

use crate::base::units::BlockRange;
use crate::format::{MAX_BLOCKS, PartTerms};
use crate::scan::{Change, Changes};

/// Says where a stream of windows is cut into parts: at a line of the grid, once there are enough data blocks
/// for a part of their own.
pub(super) struct Cutter {
    cell_blocks: u64,
    /// Of the part that is open.
    first: u64,
    data_blocks: u64,
    terms: PartTerms,
    has_cut: bool,
}

impl Cutter {
    pub(super) fn new(cell_blocks: u64) -> Self {
        let terms = PartTerms { difference: 0, before: Some(0) };
        Self { cell_blocks, first: 0, data_blocks: 0, terms, has_cut: false }
    }

    /// Takes the next window. The part that ended before it, if one did.
    pub(super) fn window(&mut self, changes: &Changes) -> Option<(BlockRange, PartTerms)> {
        let at = changes.blocks.first;
        let is_enough = self.data_blocks >= self.cell_blocks / 2;
        let ended =
            (is_enough && at > self.first && at.is_multiple_of(self.cell_blocks)).then(|| {
                let part = (BlockRange::between(self.first, at), self.terms);
                *self = Self { first: at, has_cut: true, ..Self::new(self.cell_blocks) };
                part
            });
        let (new, old) = changes.terms();
        let PartTerms { difference, before } = &mut self.terms;
        *difference = difference.wrapping_add(new).wrapping_sub(old);
        *before = before.map(|before| before.wrapping_add(old));
        let data = changes.list.iter().filter(|change| matches!(change, Change::Data(..)));
        self.data_blocks += data.count() as u64;
        ended
    }

    /// The last part, if there was one before it. It has whatever lies beyond the end of the image.
    pub(super) fn finish(self) -> Option<(BlockRange, PartTerms)> {
        self.has_cut.then(|| (BlockRange::between(self.first, MAX_BLOCKS), self.terms))
    }
}
