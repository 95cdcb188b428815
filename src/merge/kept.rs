//! Which parts of the files that are merged go on as they are: those over ranges in which no other of the
//! files has anything.
//!
//! ```text
//! @9        ..|..|D.|..|..      runs in one cell
//! base      AA|BB|CC|DD|EE      five parts
//! merged    AA|BB|xx|DD|EE      one part is written, four are kept
//! ```

use crate::base::error::Result;
use crate::base::events::Context;
use crate::delta::{Delta, TableCursor};
use crate::format::PartEntry;
use std::sync::Arc;

/// What is merged, and what it becomes.
pub struct KeptOf<'a> {
    /// The layers that are replaced, newest first.
    pub layers: &'a [Arc<Delta>],
    /// They become a base.
    pub becomes_base: bool,
    /// Blocks of the image at the newest.
    pub block_count: u64,
}

impl KeptOf<'_> {
    /// The parts that go on, ascending, each with the number of its layer. `may_move` says of which layers
    /// the parts are not needed any more otherwise.
    ///
    /// # Errors
    /// `Corrupt` if a table is damaged.
    pub fn parts(
        &self,
        may_move: impl Fn(&Delta) -> bool,
        context: &Context,
    ) -> Result<Vec<(usize, PartEntry)>> {
        let grid = grid_of(self.layers);
        let mut kept = Vec::new();
        let layers = self.layers.iter().enumerate();
        for (index, layer) in layers.filter(|(_, layer)| may_move(layer)) {
            let Some(table) = layer.table().filter(|table| Some(table.cell_blocks) == grid) else {
                continue;
            };
            let others = self.layers.iter().enumerate().filter(|(other, _)| *other != index);
            let mut others: Vec<TableCursor> =
                others.map(|(_, other)| TableCursor::new(other.clone())).collect();
            for part in &table.parts {
                context.check()?;
                // A base has no runs of zeros (FORMAT.md M2), and none are beyond both ends (M5).
                let may_have_zeros = !self.becomes_base && part.blocks.end() <= self.block_count;
                let may_stay = may_have_zeros || part.counts.zero_blocks == 0;
                if may_stay && !is_touched(&mut others, part)? {
                    kept.push((index, part.clone()));
                }
            }
        }
        kept.sort_by_key(|(_, part)| part.blocks.first);
        Ok(kept)
    }
}

/// True if one of the others, which are not beyond the part, has something in its range.
fn is_touched(others: &mut [TableCursor], part: &PartEntry) -> Result<bool> {
    for other in others {
        other.seek(part.blocks.first)?;
        if other.run().is_some_and(|(_, run)| run.blocks.first < part.blocks.end()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The grid of the files that are merged; none if each is one file.
pub fn grid_of(layers: &[Arc<Delta>]) -> Option<u64> {
    layers.iter().find_map(|layer| Some(layer.table()?.cell_blocks))
}
