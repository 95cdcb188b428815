//! A snapshot that several workers restore, a range each.
//!
//! ```text
//! plan   pins the snapshot, and makes a file under a temporary name
//! part   writes its range of the file, each block proved, and tells what the range adds to the image digest
//! join   adds that up, proves that it is the image, and gives the file its name
//! ```

use crate::base::digest::ImageDigest;
use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::events::{Context, WarningId};
use crate::base::folder::resolve_new;
use crate::base::free_space::free_space_at;
use crate::base::message::{Setting, Verb, message};
use crate::base::units::{Geometry, PartSize};
use crate::base::uri::Shown;
use crate::chain::Chain;
use crate::image::FileAttributes;
use crate::image::write::Place;
use crate::ops::work::tasks::{cut, new_plan, number_tasks};
use crate::ops::work::types::{PlanRestoreRequest, RangeRestored, RestoreJoined};
use crate::repo::Repository;
use crate::repo::attempts::{Attempt, Outcome};
use crate::repo::files::open_chain;
use crate::repo::inside::refuse_target;
use crate::repo::live_file::record_restored_file;
use crate::repo::manifest::Manifest;
use crate::repo::pending::{keep_for_plan, let_go_of_plan};
use crate::repo::reference;
use crate::repo::session::{read, write};
use crate::repo::work::{PlannedRestore, PlannedTask, Work, WorkPlan, temporary_of_restore};
use crate::view::{SnapshotView, check_free_space_for, prove, restore_blocks};
use std::collections::BTreeMap;
use std::path::Path;
use uuid::Uuid;

/// Plans to restore a snapshot to a new file.
///
/// # Errors
/// `AlreadyExists` if there is such a file; `Unsupported` where its file system has no locks; of the store.
pub fn plan(
    repository: &Repository,
    request: &PlanRestoreRequest,
    context: &Context,
) -> Result<WorkPlan> {
    let mut writer = write(repository, &request.name, context)?;
    let manifest = &writer.manifest;
    let snapshot = reference::find(manifest, &writer.head, &request.at)?.clone();
    let target = resolve_new(&request.target)?;
    refuse_target(repository, &target)?;
    let chain = open_chain(repository, manifest, snapshot.id)?;
    let geometry = chain.geometry();
    let unread = chain.unread(geometry.blocks(), context)?;
    if !unread.is_empty() {
        let what = unread.describe(geometry);
        let place = manifest.place_of(&snapshot);
        let what = format!("{place}: {what} could not be read when it was taken");
        return Err(Error::corrupt(what).hint(message![
            "restore it by ",
            Verb::Restore.of(place),
            " with ",
            Setting::AcceptUnread
        ]));
    }
    let place = target.shown().to_string();
    check_free_space_for(&chain, None, free_space_at(&target), &place)?;
    let size = request.part_size.unwrap_or(PartSize::USUAL);
    let mut tasks = cut(&SnapshotView::new(chain), geometry, size.blocks(geometry.block_size), 0)?;
    number_tasks(tasks.iter_mut());
    tasks.sort_by_key(|task| task.task);

    let made = new_plan(Work::Images(Vec::new()));
    let mut planned = PlannedRestore {
        image: request.name.clone(),
        image_id: writer.manifest.image_id,
        snapshot: snapshot.id,
        number: snapshot.number,
        pin: Uuid::nil(),
        target: Some(target.clone()),
        temporary: temporary_of_restore(made.plan),
        made: None,
        image_bytes: geometry.image_bytes,
        block_bytes: geometry.block_size.bytes(),
        tasks,
    };
    planned.made = Some(place_of(&planned, &target).create()?);
    let kept = keep_for_plan(repository, &mut writer, snapshot.id, made.plan, made.expires);
    let put = kept.and_then(|pin| {
        planned.pin = pin;
        let made = WorkPlan { work: Work::Restore(Box::new(planned.clone())), ..made.clone() };
        made.put(repository.store.as_ref()).map(|()| made)
    });
    put.inspect_err(|_| {
        best_effort(place_of(&planned, &target).remove());
        best_effort(let_go_of_plan(repository, &mut writer, made.plan));
    })
}

fn place_of<'a>(planned: &'a PlannedRestore, target: &'a Path) -> Place<'a> {
    let (temporary, made) = (planned.temporary.as_str(), planned.made.as_ref());
    Place { target, temporary, bytes: planned.image_bytes, made }
}

fn target_of(planned: &PlannedRestore) -> Result<&Path> {
    planned.target.as_deref().ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, "the plan says not where the file is to be")
    })
}

/// Restores the range of a task, unless that is done.
///
/// # Errors
/// `NotFound` if the plan is over; `Corrupt` if a block is not what its digest says; of the file and the
/// store.
pub fn part(
    repository: &Repository,
    plan: &WorkPlan,
    planned: &PlannedRestore,
    number: u32,
    context: &Context,
) -> Result<RangeRestored> {
    let of = planned.tasks.iter().find(|task| task.task == number).copied();
    let task = of.ok_or_else(|| plan.no_task(number))?;
    let made = |data_bytes| RangeRestored { name: planned.image.clone(), task, data_bytes };
    let target = target_of(planned)?;
    let reader = read(repository, &planned.image, context)?;
    refuse_over(reader.manifest(), planned, plan.plan)?;
    if restored(repository, plan.plan)?.contains_key(&number) {
        return Ok(made(None));
    }
    let chain = reader.chain(repository, planned.snapshot)?;
    refuse_other(&chain, planned)?;
    let offset = geometry_of(planned)?.offset(task.first_block);
    let mut file = place_of(planned, target).open_range(offset)?;
    let (terms, data_bytes) = restore_blocks(&chain, task.blocks(), &mut file, context)?;
    drop(file);
    let host = &repository.host.host().name;
    Attempt::new(number, host, Outcome::Restored(terms))
        .put(repository.store.as_ref(), plan.plan)?;
    Ok(made(Some(data_bytes)))
}

/// Fails for a plan of an image of another shape.
fn refuse_other(chain: &Chain, planned: &PlannedRestore) -> Result<()> {
    match chain.geometry() == geometry_of(planned)? {
        true => Ok(()),
        false => Err(Error::corrupt("the plan is of another image than the snapshot")),
    }
}

fn geometry_of(planned: &PlannedRestore) -> Result<Geometry> {
    let block_size = crate::base::units::BlockSize::new(planned.block_bytes)?;
    Geometry::new(block_size, planned.image_bytes)
}

/// What each task that is done adds to the image digest.
fn restored(repository: &Repository, plan: Uuid) -> Result<BTreeMap<u32, ImageDigest>> {
    let attempts = Attempt::all(repository.store.as_ref(), plan)?;
    let of = |attempt: Attempt| match attempt.outcome {
        Outcome::Restored(terms) => Some((attempt.task, terms)),
        _ => None,
    };
    Ok(attempts.into_iter().filter_map(of).collect())
}

/// The numbers of the tasks that are done.
///
/// # Errors
/// Of the store.
pub(super) fn done(repository: &Repository, plan: Uuid) -> Result<Vec<u32>> {
    restored(repository, plan).map(|restored| restored.into_keys().collect())
}

/// True if the snapshot is still kept for the plan.
pub(super) fn is_kept(manifest: &Manifest, planned: &PlannedRestore, plan: Uuid) -> bool {
    let is_pin = |p: &crate::repo::manifest::Pending| p.id == planned.pin && p.plan == Some(plan);
    manifest.image_id == planned.image_id && manifest.pending.iter().any(is_pin)
}

fn refuse_over(manifest: &Manifest, planned: &PlannedRestore, plan: Uuid) -> Result<()> {
    if is_kept(manifest, planned, plan) {
        return Ok(());
    }
    let what = format!("plan {plan} is over: it was joined, dropped, or has expired");
    Err(Error::new(ErrorKind::NotFound, what))
}

/// Gives the file its name if all tasks are done. Then the plan is over.
///
/// # Errors
/// `Corrupt` if the ranges are not the image; `Busy` while a worker writes; `AlreadyExists` if there is a
/// file of that name by now.
pub fn join(
    repository: &Repository,
    plan: &WorkPlan,
    planned: &PlannedRestore,
    context: &Context,
) -> Result<RestoreJoined> {
    let target = target_of(planned)?;
    let place = place_of(planned, target);
    let store = repository.store.as_ref();
    let reader = read(repository, &planned.image, context)?;
    let snapshot = reader.manifest().by_id(planned.snapshot).cloned();
    let restored = restored(repository, plan.plan)?;
    let is_missing = |task: &&PlannedTask| !restored.contains_key(&task.task);
    let missing: Vec<PlannedTask> = planned.tasks.iter().filter(is_missing).copied().collect();
    if !missing.is_empty() {
        refuse_over(reader.manifest(), planned, plan.plan)?;
        return Ok(RestoreJoined::Unfinished(missing));
    }
    let file = match place.open_whole() {
        // A join was killed between the name and the end of the plan.
        Err(e) if e.kind() == ErrorKind::NotFound && has_its_name(repository, plan, &place)? => {
            drop(reader);
            end(repository, plan, planned, context)?;
            return Ok(RestoreJoined::Done);
        }
        other => other?,
    };
    refuse_over(reader.manifest(), planned, plan.plan)?;
    let chain = reader.chain(repository, planned.snapshot)?;
    refuse_other(&chain, planned)?;
    let of = |task: &PlannedTask| restored.get(&task.task).map_or(0, |terms| terms.0);
    prove(&chain, planned.tasks.iter().map(of).fold(0, u128::wrapping_add))?;
    drop(reader);
    Attempt::new(0, &repository.host.host().name, Outcome::Named).put(store, plan.plan)?;
    let attributes: Option<FileAttributes> = snapshot.and_then(|snapshot| snapshot.attributes);
    if let Some(missing) = file.give_name(attributes.as_ref())? {
        let what = format!("{} could not be given {missing}", target.shown());
        context.warn(WarningId::AttributesNotRestored, what);
    }
    end(repository, plan, planned, context)?;
    Ok(RestoreJoined::Done)
}

/// True if a join has given the file its name.
fn has_its_name(repository: &Repository, plan: &WorkPlan, place: &Place<'_>) -> Result<bool> {
    let attempts = Attempt::all(repository.store.as_ref(), plan.plan)?;
    let was_told = attempts.iter().any(|attempt| attempt.outcome == Outcome::Named);
    let named = place.named().zip(place.made);
    Ok(was_told && named.is_some_and(|(named, made)| made.is(&named)))
}

/// The file is there: what is left is to let go of the snapshot.
fn end(
    repository: &Repository,
    plan: &WorkPlan,
    planned: &PlannedRestore,
    context: &Context,
) -> Result<()> {
    let target = target_of(planned)?;
    if let Err(e) = record_restored_file(repository, &planned.image, target, context) {
        let relink = Verb::Relink.of(&planned.image).with(Setting::Image, target.shown());
        let what = message![e, "; before a rollback, run ", relink];
        context.warn(WarningId::LiveFileNotNoted, what);
    }
    let_go(repository, plan, planned, context)?;
    WorkPlan::remove(repository.store.as_ref(), plan.plan)
}

/// Gives a restore up: its file is removed.
///
/// # Errors
/// `Busy` while a worker writes; of the store.
pub(super) fn give_up(
    repository: &Repository,
    plan: &WorkPlan,
    planned: &PlannedRestore,
    context: &Context,
) -> Result<()> {
    let place = place_of(planned, target_of(planned)?);
    match place.remove() {
        Err(e) if e.kind() == ErrorKind::Busy => return Err(e),
        // It is no reason to keep the snapshot.
        Err(e) => {
            let left = format!("; remove {} by hand if it is there", place.path().shown());
            context.warn(WarningId::CleanupDelayed, message![e, left]);
        }
        Ok(()) => {}
    }
    let_go(repository, plan, planned, context)
}

fn let_go(
    repository: &Repository,
    plan: &WorkPlan,
    planned: &PlannedRestore,
    context: &Context,
) -> Result<()> {
    match write(repository, &planned.image, context) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
        Ok(mut writer) => let_go_of_plan(repository, &mut writer, plan.plan),
    }
}
