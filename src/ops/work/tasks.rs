//! What plans are made of: ranges with something to do, the largest first.

use crate::base::error::Result;
use crate::base::units::{BlockRange, ExtentKind, Geometry};
use crate::format::MAX_BLOCKS;
use crate::image::Source;
use crate::repo::work::{PlannedTask, Work, WorkPlan};
use jiff::{SignedDuration, Timestamp};
use std::cmp::Reverse;
use uuid::Uuid;

/// So long a plan may take: then what was made of it is garbage.
const LIFE: SignedDuration = SignedDuration::from_hours(7 * 24);
/// The most tasks of an image: of a larger one several cells are one.
const MOST_TASKS: u64 = 4096;

/// A plan that is made now.
pub(super) fn new_plan(work: Work) -> WorkPlan {
    let (plan, time) = (Uuid::new_v4(), Timestamp::now());
    WorkPlan { plan, time, expires: time.saturating_add(LIFE).unwrap_or(Timestamp::MAX), work }
}

/// Numbers tasks from 1, the largest first.
pub(super) fn number_tasks<'a>(tasks: impl Iterator<Item = &'a mut PlannedTask>) {
    let mut all: Vec<&mut PlannedTask> = tasks.collect();
    all.sort_by_key(|task| Reverse(task.data_bytes));
    for (task, number) in all.into_iter().zip(1..) {
        task.task = number;
    }
}

/// The ranges in which something may have changed: those with data, and those that the parent has. The last
/// one has whatever lies beyond the end. They are not numbered yet.
///
/// # Errors
/// Of the source.
pub(super) fn cut(
    source: &dyn Source,
    geometry: Geometry,
    cell_blocks: u64,
    before: u64,
) -> Result<Vec<PlannedTask>> {
    let end = geometry.block_count().max(before);
    let cells = end.div_ceil(cell_blocks).max(1);
    let step = cell_blocks.saturating_mul(cells.div_ceil(MOST_TASKS));
    let mut tasks: Vec<PlannedTask> = Vec::new();
    let mut at = 0;
    while at < end {
        let next = at.saturating_add(step);
        let blocks = BlockRange::between(at, next.min(end));
        let data_bytes = data_in(source, geometry, blocks)?;
        if data_bytes > 0 || at < before {
            let end_block = if next >= end { MAX_BLOCKS } else { next };
            tasks.push(PlannedTask { task: 0, first_block: at, end_block, data_bytes });
        }
        at = next;
    }
    Ok(tasks)
}

fn data_in(source: &dyn Source, geometry: Geometry, blocks: BlockRange) -> Result<u64> {
    let end = geometry.offset(blocks.end()).min(geometry.image_bytes);
    let (mut at, mut data) = (geometry.offset(blocks.first), 0);
    while at < end {
        let extent = source.extent_at(at)?;
        let until = (extent.offset + extent.bytes).min(end);
        if extent.kind == ExtentKind::Data {
            data += until - at;
        }
        at = until;
    }
    Ok(data)
}
