//! Plans snapshots: which ranges there are to do, the largest first.

use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::events::Context;
use crate::base::message::{Setting, message};
use crate::base::units::Geometry;
use crate::image::{Fingerprint, LiveImage};
use crate::ops::snapshot::engine::{ChainParameters, Parent};
use crate::ops::snapshot::planned_snapshot;
use crate::ops::snapshot::types::SnapshotRequest;
use crate::ops::work::snapshots::source::{open_held, pin_of};
use crate::ops::work::tasks::{cut, new_plan, number_tasks};
use crate::ops::work::types::{PlanRequest, Planned};
use crate::repo::Repository;
use crate::repo::change::commit_change;
use crate::repo::manifest::{self, Pending};
use crate::repo::work::{PlannedImage, Work, WorkPlan, to_hex};

/// Plans a snapshot of each image. One that cannot be planned holds up no other.
///
/// # Errors
/// If the plan cannot be put into the repository.
pub fn run(repository: &Repository, request: &PlanRequest, context: &Context) -> Result<Planned> {
    let (mut made, mut images, mut failed) =
        (new_plan(Work::Images(Vec::new())), Vec::new(), Vec::new());
    for image in &request.images {
        context.check()?;
        let planned = plan_image(repository, image, request, &made, context);
        match planned {
            Ok(planned) => images.push(planned),
            Err(e) if e.kind() == ErrorKind::Interrupted => return Err(e),
            Err(e) => failed.push((image.image.to_string(), e)),
        }
    }
    number_tasks(images.iter_mut().flat_map(|image| &mut image.tasks));
    if images.is_empty() {
        return Ok(Planned { plan: None, failed });
    }
    made.work = Work::Images(images);
    if let Err(error) = made.put(repository.store.as_ref()) {
        best_effort(crate::ops::work::manage::give_up(repository, &made, context));
        return Err(error);
    }
    Ok(Planned { plan: Some(made), failed })
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
            tasks: cut(source, geometry, cell_blocks, before)?,
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
