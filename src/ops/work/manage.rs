//! Which plans there are, how far they are, and giving them up.

use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::events::{Context, WarningId};
use crate::ops::work::snapshots::part::{is_it, parts_of, refuse_over};
use crate::ops::work::snapshots::source::remove_clone;
use crate::ops::work::types::{PlanJoined, PlanProgress, PlanState, TaskDone, TaskFailure};
use crate::ops::work::{restore, snapshots, verify};
use crate::repo::Repository;
use crate::repo::attempts::{Attempt, Outcome};
use crate::repo::garbage::collect_garbage;
use crate::repo::manifest::Manifest;
use crate::repo::pending::let_go_of_plan;
use crate::repo::session::{read, write};
use crate::repo::work::{PlannedImage, PlannedRestore, Work, WorkPlan};
use std::collections::{BTreeMap, HashSet};
use uuid::Uuid;

/// Does a task. That it failed is told to whoever asks how far the plan is.
///
/// # Errors
/// `NotFound` if there is no such task, or the plan is over; those of the kind of work.
pub fn part(
    repository: &Repository,
    plan: &WorkPlan,
    number: u32,
    context: &Context,
) -> Result<TaskDone> {
    plan.refuse_expired()?;
    let done = match &plan.work {
        Work::Images(_) => {
            snapshots::part::run(repository, plan, number, context).map(TaskDone::Part)
        }
        Work::Restore(of) => {
            restore::part(repository, plan, of, number, context).map(TaskDone::Range)
        }
        Work::Verify(of) => {
            verify::part(repository, plan, of, number, context).map(TaskDone::Files)
        }
    };
    done.inspect_err(|error| {
        // Whoever was asked to stop, or comes late, has not failed.
        let is_news = !matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::NotFound);
        if is_news && plan.tasks().contains(&number) {
            tell_failure(repository, plan, number, error);
        }
    })
}

/// For people: without it, only the worker itself has told.
fn tell_failure(repository: &Repository, plan: &WorkPlan, number: u32, error: &Error) {
    let host = &repository.host.host().name;
    let attempt = Attempt::new(number, host, Outcome::Failed(error.to_string()));
    best_effort(attempt.put(repository.store.as_ref(), plan.plan));
}

/// Makes a whole of what is done; of snapshots, only that of the image `only` if one is named.
///
/// # Errors
/// Those of the kind of work.
pub fn join(
    repository: &Repository,
    plan: &WorkPlan,
    only: Option<&str>,
    context: &Context,
) -> Result<PlanJoined> {
    plan.refuse_expired()?;
    if let (Some(only), false) = (only, matches!(plan.work, Work::Images(_))) {
        let what = format!("the plan takes no snapshots, and has no image \"{only}\"");
        return Err(Error::new(ErrorKind::InvalidInput, what));
    }
    Ok(match &plan.work {
        Work::Images(_) => {
            PlanJoined::Snapshots(snapshots::join::run(repository, plan, only, context)?)
        }
        Work::Restore(of) => {
            PlanJoined::Restore(of.clone(), restore::join(repository, plan, of, context)?)
        }
        Work::Verify(of) => PlanJoined::Verify(verify::join(repository, plan, of, context)?),
    })
}

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
            Err(e) if e.is_damage() => context.warn(WarningId::PlanUnreadable, e),
            Err(e) => return Err(e),
        }
    }
    plans.sort_by_key(|plan| plan.time);
    let mut all = Vec::new();
    for plan in plans {
        match progress(repository, plan, context) {
            Err(e) if e.is_damage() => context.warn(WarningId::PlanUnreadable, e),
            other => all.push(other?),
        }
    }
    Ok(all)
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
    let (mut states, mut done) = (Vec::new(), HashSet::new());
    match &plan.work {
        Work::Images(images) => {
            for planned in images {
                states.push(match read(repository, &planned.name, context) {
                    Err(e) if e.kind() == ErrorKind::NotFound => PlanState::Dropped,
                    Err(e) => return Err(e),
                    Ok(reader) => {
                        let manifest = reader.manifest();
                        image_progress(repository, manifest, planned, &plan, &mut done, context)?
                    }
                });
            }
        }
        Work::Restore(of) => {
            done.extend(restore::done(repository, plan.plan)?);
            states.push(restore_state(repository, of, &plan, context)?);
        }
        Work::Verify(_) => {
            done.extend(verify::done(repository, plan.plan)?);
            states.push(PlanState::Pending);
        }
    }
    let failures = failures(repository, &plan, &done)?;
    Ok(PlanProgress { plan, done, states, failures })
}

/// What went wrong last, of each task that is not done.
fn failures(
    repository: &Repository,
    plan: &WorkPlan,
    done: &HashSet<u32>,
) -> Result<Vec<TaskFailure>> {
    let mut last = BTreeMap::new();
    for attempt in Attempt::all(repository.store.as_ref(), plan.plan)? {
        let Attempt { task, time, host, outcome } = attempt;
        if let Outcome::Failed(message) = outcome {
            last.insert(task, TaskFailure { task, host, time, message });
        }
    }
    Ok(last.into_values().filter(|failure| !done.contains(&failure.task)).collect())
}

fn restore_state(
    repository: &Repository,
    planned: &PlannedRestore,
    plan: &WorkPlan,
    context: &Context,
) -> Result<PlanState> {
    match read(repository, &planned.image, context) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(PlanState::Dropped),
        Err(e) => Err(e),
        Ok(reader) if restore::is_kept(reader.manifest(), planned, plan.plan) => {
            Ok(PlanState::Pending)
        }
        Ok(_) => Ok(PlanState::Dropped),
    }
}

fn image_progress(
    repository: &Repository,
    manifest: &Manifest,
    planned: &PlannedImage,
    plan: &WorkPlan,
    done: &mut HashSet<u32>,
    context: &Context,
) -> Result<PlanState> {
    if manifest.stored().iter().any(|s| s.id == planned.snapshot) {
        done.extend(planned.tasks.iter().map(|task| task.task));
        return Ok(PlanState::Joined);
    }
    if refuse_over(manifest, planned, plan.plan).is_err() {
        return Ok(PlanState::Dropped);
    }
    let found = parts_of(repository, planned, plan.plan, context)?;
    let is_made = |task: &&crate::repo::work::PlannedTask| match found.get(&task.first_block) {
        Some(part) => is_it(part, **task),
        None => false,
    };
    done.extend(planned.tasks.iter().filter(is_made).map(|task| task.task));
    Ok(PlanState::Pending)
}

/// Gives a plan up: what was made of it is garbage.
///
/// # Errors
/// Of the store; `Busy` while a worker writes a file that is to be restored.
pub fn drop_plan(repository: &Repository, plan: &WorkPlan, context: &Context) -> Result<()> {
    match &plan.work {
        Work::Images(_) => give_up(repository, plan, context)?,
        Work::Restore(of) => restore::give_up(repository, plan, of, context)?,
        Work::Verify(_) => {}
    }
    WorkPlan::remove(repository.store.as_ref(), plan.plan)
}

/// Lets go of all that is pending for a plan that cannot be read, or was never put, and removes what there is
/// of it. False if there is nothing.
///
/// # Errors
/// Of the store.
pub fn drop_unknown(repository: &Repository, plan: Uuid, context: &Context) -> Result<bool> {
    let store = repository.store.as_ref();
    let mut is_any = WorkPlan::list(store)?.contains(&plan);
    for name in repository.names()? {
        let mut writer = match write(repository, &name, context) {
            Err(e) if e.kind() == ErrorKind::NotFound || e.is_damage() => continue,
            other => other?,
        };
        if writer.manifest.pending.iter().any(|pending| pending.plan == Some(plan)) {
            let_go_of_plan(repository, &mut writer, plan)?;
            is_any = true;
        }
    }
    WorkPlan::remove(store, plan)?;
    Ok(is_any)
}

pub(super) fn give_up(repository: &Repository, plan: &WorkPlan, context: &Context) -> Result<()> {
    for planned in plan.images() {
        let mut writer = match write(repository, &planned.name, context) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                remove_clone(planned);
                continue;
            }
            other => other?,
        };
        if refuse_over(&writer.manifest, planned, plan.plan).is_err() {
            remove_clone(planned);
            continue;
        }
        let_go_of_plan(repository, &mut writer, plan.plan)?;
        remove_clone(planned);
        writer.release_reader_lock();
        collect_garbage(repository, &mut writer.manifest, context)?;
    }
    Ok(())
}
