//! The verb *stats*: what the files of an image hold, and where it changes.

use crate::base::error::Result;
use crate::base::events::Context;
use crate::delta::{Delta, TableCursor};
use crate::merge::layer_use;
use std::sync::Arc;

/// Bytes of `parent`'s file that nothing needs any more once it is dropped, if `child` is the only one
/// that depends on it; about.
pub fn superseded_bytes(child: &Arc<Delta>, parent: &Arc<Delta>, context: &Context) -> Result<u64> {
    let uses = layer_use(&[child.clone(), parent.clone()], context)?;
    let live = uses.last().map_or(0, |of| of.live_bytes);
    Ok(parent.stored_bytes().saturating_sub(live))
}

/// Adds the bytes that a delta changed, a count for each of `cells`, which share the image among them. A base
/// is no change.
pub fn add_heat(
    delta: &Arc<Delta>,
    cells: &mut [u64],
    cell_bytes: u64,
    context: &Context,
) -> Result<()> {
    if delta.footer().parent.is_none() {
        return Ok(());
    }
    context.check()?;
    let geometry = delta.geometry()?;
    let mut cursor = TableCursor::new(delta.clone());
    cursor.seek(0)?;
    while let Some((_, run)) = cursor.run() {
        let mut offset = geometry.offset(run.blocks.first).min(geometry.image_bytes);
        let end = geometry.offset(run.blocks.end()).min(geometry.image_bytes);
        while offset < end {
            let index = offset / cell_bytes.max(1);
            let until = ((index + 1) * cell_bytes).min(end);
            if let Some(cell) = cells.get_mut(index as usize) {
                *cell = cell.saturating_add(until - offset);
            }
            offset = until;
        }
        cursor.advance()?;
    }
    Ok(())
}
