//! Plans snapshots: which ranges there are to do, the largest first.

use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::events::Context;
use crate::base::message::{Setting, message};
use crate::base::units::{BlockRange, ExtentKind, Geometry};
use crate::format::MAX_BLOCKS;
use crate::image::{Fingerprint, LiveImage, Source};
use crate::ops::snapshot::engine::{ChainParameters, Parent};
use crate::ops::snapshot::planned_snapshot;
use crate::ops::snapshot::types::SnapshotRequest;
use crate::ops::work::source::{open_held, pin_of};
use crate::ops::work::types::{PlanRequest, Planned};
use crate::repo::Repository;
use crate::repo::change::commit_change;
use crate::repo::manifest::{self, Pending};
use crate::repo::work::{PlannedImage, PlannedTask, WorkPlan, to_hex};
use jiff::{SignedDuration, Timestamp};
use std::cmp::Reverse;
use uuid::Uuid;

/// So long a plan may take: then its parts are garbage.
const LIFE: SignedDuration = SignedDuration::from_hours(7 * 24);
/// The most tasks of an image: of a larger one several cells are one.
const MOST_TASKS: u64 = 4096;

/// Plans a snapshot of each image. One that cannot be planned holds up no other.
///
/// # Errors
/// If the plan cannot be put into the repository.
pub fn run(repository: &Repository, request: &PlanRequest, context: &Context) -> Result<Planned> {
    let (plan, time) = (Uuid::new_v4(), Timestamp::now());
    let expires = time.saturating_add(LIFE).unwrap_or(Timestamp::MAX);
    let mut made = WorkPlan { plan, time, expires, images: Vec::new() };
    let mut failed = Vec::new();
    for image in &request.images {
        context.check()?;
        let planned = plan_image(repository, image, request, &made, context);
        match planned {
            Ok(planned) => made.images.push(planned),
            Err(e) if e.kind() == ErrorKind::Interrupted => return Err(e),
            Err(e) => failed.push((image.image.to_string(), e)),
        }
    }
    number_tasks(&mut made.images);
    if made.images.is_empty() {
        return Ok(Planned { plan: None, failed });
    }
    if let Err(error) = made.put(repository.store.as_ref()) {
        best_effort(super::manage::give_up(repository, &made, context));
        return Err(error);
    }
    Ok(Planned { plan: Some(made), failed })
}

/// Numbers all tasks, the largest of all images first.
fn number_tasks(images: &mut [PlannedImage]) {
    let mut all: Vec<&mut PlannedTask> = images.iter_mut().flat_map(|i| &mut i.tasks).collect();
    all.sort_by_key(|task| Reverse(task.data_bytes));
    for (task, number) in all.into_iter().zip(1..) {
        task.task = number;
    }
}

fn plan_image(
    repository: &Repository,
    request: &SnapshotRequest,
    whole: &PlanRequest,
    plan: &WorkPlan,
    context: &Context,
) -> Result<PlannedImage> {
    let held = whole.source_held.clone();
    let opened = |image: &crate::image::ImageUri| match (image.file(), &held) {
        (Some(path), Some(_)) => open_held(path).map(LiveImage::held),
        _ => LiveImage::open(image, false, None, context),
    };
    planned_snapshot(repository, request, opened, context, |writer, live, prepared, image| {
        let name = writer.manifest.name.clone();
        let pinned = pin_of(&live.disk);
        if pinned.is_none() && held.is_none() {
            let what =
                format!("nothing keeps {} as it is while it is read in parts", live.disk.name());
            return Err(Error::new(ErrorKind::InvalidInput, what).hint(message![
                "take it from a read-only snapshot of its file system, or say why nobody writes to it with ",
                Setting::SourceHeld,
            ]));
        }
        let engine = &prepared.plan;
        let (parent, before) = match &engine.parent {
            Parent::None(_) => (None, 0),
            Parent::Tip(chain) => (prepared.parent_id, chain.geometry().block_count()),
        };
        let ChainParameters { block_size, algorithm, key } = engine.parent.parameters();
        let source = live.disk.source();
        let geometry = Geometry::new(block_size, source.image_bytes())?;
        let cell_blocks = engine.cell_blocks.unwrap_or(u64::MAX);
        let planned = PlannedImage {
            name,
            image_id: writer.manifest.image_id,
            snapshot: engine.identity.snapshot_id,
            number: engine.identity.number,
            parent,
            label: engine.identity.label.clone(),
            source: Some(image.clone()),
            format: live.disk.format().qemu().to_owned(),
            backing_ok: request.backing_ok,
            fingerprint: Fingerprint::of(&live.disk)?,
            pinned,
            held: held.clone(),
            block_bytes: block_size.bytes(),
            digest: algorithm.to_string(),
            key: to_hex(&key.0),
            compression: engine.compression.to_string(),
            part_bytes: prepared.part_size()?,
            tasks: tasks(source, geometry, cell_blocks, before)?,
        };
        let pending = Pending {
            id: planned.snapshot,
            number: planned.number,
            parent,
            objects: Vec::new(),
            expires: plan.expires,
            plan: Some(plan.plan),
        };
        let committed = commit_change(repository, writer, &[], |next| {
            let is_there = |id| next.snapshots.iter().any(|s| s.id == id);
            if next.next_number > pending.number || !parent.is_none_or(is_there) {
                return Err(manifest::changed_meanwhile(&next.name));
            }
            next.next_number = pending.number.saturating_add(1);
            next.pending.push(pending.clone());
            Ok(())
        });
        committed.map(|()| planned)
    })
}

/// The ranges in which something may have changed: those with data, and those that the parent has. The last
/// one has whatever lies beyond the end.
fn tasks(
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
    tasks.sort_by_key(|task| Reverse(task.data_bytes));
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
