//! Which plans there are, how far they are, and giving them up.

use crate::base::error::{ErrorKind, Result};
use crate::base::events::Context;
use crate::ops::work::part::{is_it, parts_of, refuse_over};
use crate::ops::work::types::{ImageProgress, PlanProgress, PlanState};
use crate::repo::Repository;
use crate::repo::change::commit_change;
use crate::repo::garbage::collect_garbage;
use crate::repo::manifest::Manifest;
use crate::repo::session::{read, write};
use crate::repo::work::{PlannedImage, WorkPlan};

/// All plans, the oldest first.
///
/// # Errors
/// If one cannot be read.
pub fn list(repository: &Repository, context: &Context) -> Result<Vec<PlanProgress>> {
    let mut plans = Vec::new();
    for id in WorkPlan::list(repository.store.as_ref())? {
        match WorkPlan::load(repository.store.as_ref(), id) {
            Ok(plan) => plans.push(plan),
            // It has just been joined.
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    plans.sort_by_key(|plan| plan.time);
    plans.into_iter().map(|plan| progress(repository, plan, context)).collect()
}

/// How far a plan is.
///
/// # Errors
/// If that cannot be found out.
pub fn progress(
    repository: &Repository,
    plan: WorkPlan,
    context: &Context,
) -> Result<PlanProgress> {
    let mut images = Vec::new();
    for planned in &plan.images {
        images.push(match read(repository, &planned.name, context) {
            Err(e) if e.kind() == ErrorKind::NotFound => dropped(),
            Err(e) => return Err(e),
            Ok(reader) => image_progress(repository, reader.manifest(), planned, &plan)?,
        });
    }
    Ok(PlanProgress { plan, images })
}

fn dropped() -> ImageProgress {
    ImageProgress { done: Vec::new(), state: PlanState::Dropped }
}

fn image_progress(
    repository: &Repository,
    manifest: &Manifest,
    planned: &PlannedImage,
    plan: &WorkPlan,
) -> Result<ImageProgress> {
    if manifest.stored().iter().any(|s| s.id == planned.snapshot) {
        let done = planned.tasks.iter().map(|task| task.task).collect();
        return Ok(ImageProgress { done, state: PlanState::Joined });
    }
    if refuse_over(manifest, planned, plan.plan).is_err() {
        return Ok(dropped());
    }
    let found = parts_of(repository, planned, plan.plan)?;
    let tasks = planned.tasks.iter();
    let done = tasks.filter(|task| found.get(&task.first_block).is_some_and(|p| is_it(p, **task)));
    Ok(ImageProgress { done: done.map(|task| task.task).collect(), state: PlanState::Pending })
}

/// Gives a plan up: what was made of it is garbage.
///
/// # Errors
/// Of the store.
pub fn drop_plan(repository: &Repository, plan: &WorkPlan, context: &Context) -> Result<()> {
    give_up(repository, plan, context)?;
    WorkPlan::remove(repository.store.as_ref(), plan.plan)
}

pub(super) fn give_up(repository: &Repository, plan: &WorkPlan, context: &Context) -> Result<()> {
    for planned in &plan.images {
        let mut writer = match write(repository, &planned.name, context) {
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            other => other?,
        };
        if refuse_over(&writer.manifest, planned, plan.plan).is_err() {
            continue;
        }
        writer.frees = true;
        commit_change(repository, &mut writer, &[], |next| {
            next.pending.retain(|pending| pending.plan != Some(plan.plan));
            Ok(())
        })?;
        writer.release_reader_lock();
        collect_garbage(repository, &mut writer.manifest, context)?;
    }
    Ok(())
}
