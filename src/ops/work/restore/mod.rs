//! A snapshot that several workers restore, a range each.
//!
//! ```text
//!        to a file                                    to an object on a server
//! plan   pins the snapshot, and makes a file under    pins the snapshot, and begins an upload
//!        a temporary name
//! part   writes its range of it, each block proved,   sends its range as pieces, the same way
//!        and tells what the range adds to the image digest
//! join   adds that up, proves that it is the image,   and puts the object together
//!        and gives the file its name
//! ```

mod object;

use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::events::{Context, WarningId};
use crate::base::folder::resolve_new;
use crate::base::free_space::free_space_at;
use crate::base::message::{Setting, Verb, message};
use crate::base::units::PartSize;
use crate::base::uri::Shown;
use crate::chain::Chain;
use crate::image::FileAttributes;
use crate::image::write::Place;
use crate::ops::work::tasks::{cut, new_plan, number_tasks};
use crate::ops::work::types::{PlanRestoreRequest, RangeRestored, RestoreJoined, RestorePlace};
use crate::repo::Repository;
use crate::repo::attempts::{Attempt, Outcome, SentRange};
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

/// Plans to restore a snapshot to a new file, or a new object on a server.
///
/// # Errors
/// `AlreadyExists` if there is such a one; `Unsupported` where its file system has no locks, or its server
/// takes the pieces of an object from one host only; of the store.
pub fn plan(
    repository: &Repository,
    request: &PlanRestoreRequest,
    context: &Context,
) -> Result<WorkPlan> {
    let mut writer = write(repository, &request.name, context)?;
    let manifest = &writer.manifest;
    let snapshot = reference::find(manifest, &writer.head, &request.at)?.clone();
    let chain = open_chain(repository, manifest, snapshot.id)?;
    let geometry = chain.geometry();
    let unread = chain.unread(geometry.blocks(), context)?;
    if !unread.is_empty() {
        let what = unread.describe(geometry);
        let place = manifest.place_of(&snapshot);
        let what = format!("{place}: {what} could not be read when it was taken");
        return Err(Error::corrupt(what).hint(message![
            "restore it with ",
            Verb::Restore.of(place),
            " with ",
            Setting::AcceptUnread
        ]));
    }
    let made = new_plan(Work::Images(Vec::new()));
    let mut planned = PlannedRestore {
        image: request.name.clone(),
        image_id: writer.manifest.image_id,
        snapshot: snapshot.id,
        number: snapshot.number,
        pin: Uuid::nil(),
        target: None,
        temporary: temporary_of_restore(made.plan),
        made: None,
        object: None,
        image_bytes: geometry.image_bytes,
        block_bytes: geometry.block_size.bytes(),
        tasks: Vec::new(),
    };
    let size = request.part_size.unwrap_or(PartSize::USUAL).blocks(geometry.block_size);
    let piece = object::piece_blocks(geometry, size);
    let view = SnapshotView::new(chain.clone());
    planned.tasks = match &request.target {
        RestorePlace::File(_) => cut(&view, geometry, size, 0)?,
        // There is no object with holes in it: all of it is sent.
        RestorePlace::Object(_) => {
            let cell = piece.saturating_mul((size / piece).max(1));
            cut(&view, geometry, cell, geometry.block_count())?
        }
    };
    number_tasks(planned.tasks.iter_mut());
    planned.tasks.sort_by_key(|task| task.task);
    match &request.target {
        RestorePlace::File(path) => {
            let target = resolve_new(path)?;
            refuse_target(repository, &target)?;
            let place = target.shown().to_string();
            check_free_space_for(&chain, None, free_space_at(&target), &place)?;
            planned.made = Some(place_of(&planned, &target).create()?);
            planned.target = Some(target);
        }
        RestorePlace::Object(url) => {
            planned.object = Some(object::begin(url, geometry, piece, context)?);
        }
    }
    let kept = keep_for_plan(repository, &mut writer, snapshot.id, made.plan, made.expires);
    let put = kept.and_then(|pin| {
        planned.pin = pin;
        let made = WorkPlan { work: Work::Restore(Box::new(planned.clone())), ..made.clone() };
        made.put(repository.store.as_ref()).map(|()| made)
    });
    put.inspect_err(|_| {
        best_effort(remove_unfinished(&planned, context));
        best_effort(let_go_of_plan(repository, &mut writer, made.plan));
    })
}

/// Removes what has neither its name nor all of its content yet.
fn remove_unfinished(planned: &PlannedRestore, context: &Context) -> Result<()> {
    match &planned.object {
        Some(object) => object::give_up(object, context),
        None => place_of(planned, target_of(planned)?).remove(),
    }
}

fn place_of<'a>(planned: &'a PlannedRestore, target: &'a Path) -> Place<'a> {
    let (temporary, made) = (planned.temporary.as_str(), planned.made.as_ref());
    Place { target, temporary, bytes: planned.image_bytes, made }
}

fn target_of(planned: &PlannedRestore) -> Result<&Path> {
    planned.target.as_deref().ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, "the plan does not say where to write the file")
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
    let reader = read(repository, &planned.image, context)?;
    refuse_over(reader.manifest(), planned, plan.plan)?;
    if restored(repository, plan.plan)?.contains_key(&number) {
        return Ok(made(None));
    }
    let chain = reader.chain(repository, planned.snapshot)?;
    refuse_other(&chain, planned)?;
    let (outcome, data_bytes) = match &planned.object {
        Some(object) => object::send(&chain, object, &task, context)?,
        None => {
            let offset = planned.geometry()?.offset(task.first_block);
            let mut file = place_of(planned, target_of(planned)?).open_range(offset)?;
            let (terms, bytes) = restore_blocks(&chain, task.blocks(), &mut file, context)?;
            (Outcome::Restored(terms), bytes)
        }
    };
    let host = &repository.host.host().name;
    Attempt::new(number, host, outcome).put(repository.store.as_ref(), plan.plan)?;
    Ok(made(Some(data_bytes)))
}

/// Fails for a plan of an image of another shape.
fn refuse_other(chain: &Chain, planned: &PlannedRestore) -> Result<()> {
    match chain.geometry() == planned.geometry()? {
        true => Ok(()),
        false => Err(Error::corrupt("the plan and the snapshot belong to different images")),
    }
}

/// What each task that is done adds to the image digest, and which pieces it has sent. Of two attempts the
/// last one counts, whose pieces have taken the place of the others on the server.
fn restored(repository: &Repository, plan: Uuid) -> Result<BTreeMap<u32, SentRange>> {
    let attempts = Attempt::all(repository.store.as_ref(), plan)?;
    let of = |attempt: Attempt| match attempt.outcome {
        Outcome::Restored(terms) => Some((attempt.task, SentRange { terms, pieces: Vec::new() })),
        Outcome::Sent(range) => Some((attempt.task, range)),
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

/// Gives the file its name, or puts the object together, if all tasks are done. Then the plan is over.
///
/// # Errors
/// `Corrupt` if the ranges are not the image; `Busy` while a worker writes; `AlreadyExists` if there is a
/// file or an object of that name by now.
pub fn join(
    repository: &Repository,
    plan: &WorkPlan,
    planned: &PlannedRestore,
    context: &Context,
) -> Result<RestoreJoined> {
    let restored = restored(repository, plan.plan)?;
    let is_missing = |task: &&PlannedTask| !restored.contains_key(&task.task);
    let missing: Vec<PlannedTask> = planned.tasks.iter().filter(is_missing).copied().collect();
    if !missing.is_empty() {
        refuse_over(read(repository, &planned.image, context)?.manifest(), planned, plan.plan)?;
        return Ok(RestoreJoined::Unfinished(missing));
    }
    let was_told_before = planned.object.is_some() && was_told(repository, plan)?;
    match &planned.object {
        // A join was killed between the last request and the end of the plan.
        Some(object)
            if was_told_before
                && !is_kept_still(repository, plan, planned, context)?
                && object::is_there(object, planned.image_bytes, context)? => {}
        Some(object) => {
            let pieces = object::all_pieces(planned, &restored)?;
            prove_ranges(repository, plan, planned, &restored, context)?;
            tell_named(repository, plan)?;
            object::complete(object, &pieces, planned.image_bytes, was_told_before, context)?;
        }
        None => name_file(repository, plan, planned, &restored, context)?,
    }
    end(repository, plan, planned, context)?;
    Ok(RestoreJoined::Done)
}

/// Fails unless the plan is not over, and what was written adds up to the image. Returns what the file had.
fn prove_ranges(
    repository: &Repository,
    plan: &WorkPlan,
    planned: &PlannedRestore,
    restored: &BTreeMap<u32, SentRange>,
    context: &Context,
) -> Result<Option<FileAttributes>> {
    let reader = read(repository, &planned.image, context)?;
    refuse_over(reader.manifest(), planned, plan.plan)?;
    let chain = reader.chain(repository, planned.snapshot)?;
    refuse_other(&chain, planned)?;
    let of = |task: &PlannedTask| restored.get(&task.task).map_or(0, |range| range.terms.0);
    prove(&chain, planned.tasks.iter().map(of).fold(0, u128::wrapping_add))?;
    Ok(reader.manifest().by_id(planned.snapshot).and_then(|snapshot| snapshot.attributes.clone()))
}

fn is_kept_still(
    repository: &Repository,
    plan: &WorkPlan,
    planned: &PlannedRestore,
    context: &Context,
) -> Result<bool> {
    Ok(is_kept(read(repository, &planned.image, context)?.manifest(), planned, plan.plan))
}

/// Tells that the file is about to get its name.
fn tell_named(repository: &Repository, plan: &WorkPlan) -> Result<()> {
    let host = &repository.host.host().name;
    Attempt::new(0, host, Outcome::Named).put(repository.store.as_ref(), plan.plan)
}

fn was_told(repository: &Repository, plan: &WorkPlan) -> Result<bool> {
    let attempts = Attempt::all(repository.store.as_ref(), plan.plan)?;
    Ok(attempts.iter().any(|attempt| attempt.outcome == Outcome::Named))
}

fn name_file(
    repository: &Repository,
    plan: &WorkPlan,
    planned: &PlannedRestore,
    restored: &BTreeMap<u32, SentRange>,
    context: &Context,
) -> Result<()> {
    let target = target_of(planned)?;
    let place = place_of(planned, target);
    let file = match place.open_whole() {
        // A join was killed between the name and the end of the plan.
        Err(e) if e.kind() == ErrorKind::NotFound && has_its_name(repository, plan, &place)? => {
            return Ok(());
        }
        other => other?,
    };
    let attributes = prove_ranges(repository, plan, planned, restored, context)?;
    tell_named(repository, plan)?;
    if let Some(missing) = file.give_name(attributes.as_ref())? {
        let what = format!("{} could not be given {missing}", target.shown());
        context.warn(WarningId::AttributesNotRestored, what);
    }
    Ok(())
}

/// True if a join has given the file its name.
fn has_its_name(repository: &Repository, plan: &WorkPlan, place: &Place<'_>) -> Result<bool> {
    let named = place.named().zip(place.made);
    Ok(was_told(repository, plan)? && named.is_some_and(|(named, made)| made.is(&named)))
}

/// It is there: what is left is to let go of the snapshot.
fn end(
    repository: &Repository,
    plan: &WorkPlan,
    planned: &PlannedRestore,
    context: &Context,
) -> Result<()> {
    if let Some(target) = &planned.target
        && let Err(e) = record_restored_file(repository, &planned.image, target, context)
    {
        let relink = Verb::Relink.of(&planned.image).with(Setting::Image, target.shown());
        let what = message![e, "; before a rollback, run ", relink];
        context.warn(WarningId::LiveFileNotNoted, what);
    }
    let_go(repository, plan, planned, context)?;
    WorkPlan::remove(repository.store.as_ref(), plan.plan)
}

/// Gives a restore up: its file, or what was sent of its object, is removed.
///
/// # Errors
/// `Busy` while a worker writes; of the store.
pub(super) fn give_up(
    repository: &Repository,
    plan: &WorkPlan,
    planned: &PlannedRestore,
    context: &Context,
) -> Result<()> {
    match remove_unfinished(planned, context) {
        Err(e) if e.kind() == ErrorKind::Busy => return Err(e),
        // It is no reason to keep the snapshot.
        Err(e) => {
            let left = match (&planned.object, &planned.target) {
                (Some(object), _) => format!("; abort the upload {} by hand", object.upload),
                (None, target) => {
                    let target = target.clone().unwrap_or_default();
                    let place = target.with_file_name(&planned.temporary);
                    format!("; remove {} by hand if it is there", place.shown())
                }
            };
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
