//! What a manifest says of a delta file that was opened.

use crate::base::error::Result;
use crate::base::units::{BlockRange, Geometry, PartSize};
use crate::delta::Delta;
use crate::format::{PartEntry, PartTable};
use crate::repo::manifest::Snapshot;
use crate::repo::reference::check_label;
use crate::tracking::Consistency;
use jiff::Timestamp;
use std::sync::Arc;

pub(crate) fn entry(delta: &Arc<Delta>, file: String, layers: &[Arc<Delta>]) -> Result<Snapshot> {
    let footer = delta.footer();
    let geometry = delta.geometry()?;
    let (changed_blocks, changed_bytes) = changed(delta, geometry)?;
    let nanoseconds = i32::try_from(footer.time_nanoseconds).unwrap_or(0);
    let cell_blocks = delta.table().filter(|_| footer.parent.is_none()).map(|t| t.cell_blocks);
    let cell_bytes =
        cell_blocks.map(|blocks| blocks.saturating_mul(geometry.block_size.bytes().into()));
    let part_size = cell_bytes.and_then(|bytes| PartSize::new(bytes).ok());
    Ok(Snapshot {
        number: footer.number,
        id: footer.snapshot_id,
        parent: layers.get(1).map(|parent| parent.footer().snapshot_id),
        base_of: None,
        // One that a user could not type is of another program.
        label: footer.label.clone().filter(|label| check_label(label).is_ok()),
        time: Timestamp::new(footer.time_seconds, nanoseconds).unwrap_or_default(),
        file,
        parts: part_names(delta.table()),
        part_size: part_size.filter(|size| *size != PartSize::USUAL),
        file_bytes: delta.stored_bytes(),
        footer_digest: delta.footer_digest(),
        block_bytes: geometry.block_size.bytes(),
        image_bytes: footer.image_bytes,
        image_digest: footer.image_digest,
        data_blocks: footer.counts.data_blocks,
        zero_blocks: footer.counts.zero_blocks,
        unread_blocks: footer.counts.unread_blocks,
        changed_blocks,
        changed_bytes,
        frame_bytes: footer.counts.frame_bytes,
        read_bytes: None,
        seconds: None,
        base_image: None,
        format: None,
        held: None,
        source_version: None,
        before_rollback: None,
        protected: false,
        pins: Vec::new(),
        group: None,
        attachments: Vec::new(),
        consistency: Consistency::Stopped,
        attributes: None,
        hint: None,
        tracker: None,
        timings: None,
    })
}

/// What its parts are called, in their order.
pub(crate) fn part_names(table: Option<&PartTable>) -> Vec<String> {
    table.iter().flat_map(|table| &table.parts).map(PartEntry::object_name).collect()
}

/// Blocks within the image that have a run, and their bytes. A damaged table is found by `verify`.
fn changed(delta: &Arc<Delta>, geometry: Geometry) -> Result<(u64, u64)> {
    let mut cursor = crate::delta::TableCursor::new(delta.clone());
    let (mut blocks, mut bytes) = (0, 0);
    let inside = BlockRange::between(0, geometry.block_count());
    if cursor.seek(0).is_err() {
        return Ok((0, 0));
    }
    while let Some((_, run)) = cursor.run() {
        let end = run.blocks.end().min(inside.end());
        blocks += end.saturating_sub(run.blocks.first);
        bytes += geometry.bytes_in(run.blocks);
        if cursor.advance().is_err() {
            break;
        }
    }
    Ok((blocks, bytes))
}
