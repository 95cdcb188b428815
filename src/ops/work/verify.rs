//! A verification that several workers do: each proves files, and whoever joins them does the rest: what
//! connects the files, and those that nobody has proved.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::{Context, Phase};
use crate::base::units::PartSize;
use crate::delta::{Delta, Depth, scrub_part};
use crate::ops::verify::proved::Proved;
use crate::ops::verify::types::{Verified, VerifyScope};
use crate::ops::work::tasks::new_plan;
use crate::ops::work::types::{FilesVerified, VerifyJoined};
use crate::repo::Repository;
use crate::repo::attempts::{Attempt, Outcome, SoundFile};
use crate::repo::files::open_delta;
use crate::repo::manifest::Snapshot;
use crate::repo::session::read;
use crate::repo::work::{PlannedFile, PlannedVerify, VerifyTask, Work, WorkPlan};
use std::cmp::Reverse;
use std::collections::HashSet;
use uuid::Uuid;

/// The most files of a task: a report on all of them has to be read.
const MOST_FILES: usize = 4096;

/// Plans to verify an image, or all of the repository: files together, up to `part_size` stored bytes.
///
/// # Errors
/// Of the store; if a manifest cannot be read.
pub fn plan(
    repository: &Repository,
    image: Option<&str>,
    part_size: Option<PartSize>,
    context: &Context,
) -> Result<WorkPlan> {
    let names = match image {
        Some(name) => vec![name.to_owned()],
        None => repository.names()?,
    };
    let (mut files, mut known) = (Vec::new(), HashSet::new());
    for name in names {
        context.check()?;
        let reader = match read(repository, &name, context) {
            // It was removed just now; one that is damaged is for whoever joins to tell.
            Err(e) if image.is_none() && (e.is_damage() || e.kind() == ErrorKind::NotFound) => {
                continue;
            }
            other => other?,
        };
        for snapshot in reader.manifest().stored() {
            // The file that names parts is proved by being opened; blocks in a base image are not stored.
            let of = match snapshot.parts.as_slice() {
                [] if snapshot.is_by_reference() => continue,
                [] => std::slice::from_ref(&snapshot.file),
                parts => parts,
            };
            for file in of.iter().filter(|file| known.insert((name.clone(), (*file).clone()))) {
                // One that is missing is for whoever joins to tell.
                let bytes = match repository.store.size(&format!("{name}/{file}")) {
                    Err(e) if e.kind() == ErrorKind::NotFound => continue,
                    other => other?,
                };
                let file =
                    PlannedFile { image: name.clone(), snapshot: snapshot.id, file: file.clone() };
                files.push((bytes, file));
            }
        }
    }
    let tasks = packed(files, part_size.unwrap_or(PartSize::USUAL).bytes());
    let plan = new_plan(Work::Verify(PlannedVerify { image: image.map(str::to_owned), tasks }));
    plan.put(repository.store.as_ref())?;
    Ok(plan)
}

/// Files together, the largest first, as long as they have no more than that.
fn packed(mut files: Vec<(u64, PlannedFile)>, most: u64) -> Vec<VerifyTask> {
    files.sort_by(|(a, _), (b, _)| b.cmp(a));
    let mut tasks: Vec<VerifyTask> = Vec::new();
    for (bytes, file) in files {
        let has_place = |task: &&mut VerifyTask| {
            task.files.len() < MOST_FILES && task.stored_bytes.saturating_add(bytes) <= most
        };
        match tasks.last_mut().filter(has_place) {
            Some(task) => {
                task.stored_bytes += bytes;
                task.files.push(file);
            }
            None => tasks.push(VerifyTask { task: 0, files: vec![file], stored_bytes: bytes }),
        }
    }
    tasks.sort_by_key(|task| Reverse(task.stored_bytes));
    for (task, number) in tasks.iter_mut().zip(1..) {
        task.task = number;
        // Those of a snapshot are opened together.
        task.files.sort_by(|a, b| (&a.image, a.snapshot).cmp(&(&b.image, b.snapshot)));
    }
    tasks
}

/// Proves the files of a task, unless that is done. One that is not sound is not named: who joins looks at
/// it.
///
/// # Errors
/// `Interrupted`; of the store.
pub fn part(
    repository: &Repository,
    plan: &WorkPlan,
    planned: &PlannedVerify,
    number: u32,
    context: &Context,
) -> Result<FilesVerified> {
    let of = planned.tasks.iter().find(|task| task.task == number);
    let task = of.ok_or_else(|| plan.no_task(number))?;
    if done(repository, plan.plan)?.contains(&number) {
        return Ok(FilesVerified { task: task.clone(), sound: None });
    }
    let phase = context.begin(Phase::Verify, task.stored_bytes);
    let mut sound = Vec::new();
    for files in task.files.chunk_by(|a, b| (&a.image, a.snapshot) == (&b.image, b.snapshot)) {
        let Some(first) = files.first() else { continue };
        match prove(repository, first, files, context) {
            Err(e) if e.kind() == ErrorKind::Interrupted || e.is_unread() => return Err(e),
            Err(e) => context.note(format!("{}: {e}", first.image)),
            Ok(proved) => sound.extend(proved),
        }
    }
    drop(phase);
    let host = &repository.host.host().name;
    let found = sound.len();
    Attempt::new(number, host, Outcome::Verified(sound))
        .put(repository.store.as_ref(), plan.plan)?;
    Ok(FilesVerified { task: task.clone(), sound: Some(found) })
}

/// Those of the files of a snapshot that are sound. What it needs is held meanwhile.
fn prove(
    repository: &Repository,
    of: &PlannedFile,
    files: &[PlannedFile],
    context: &Context,
) -> Result<Vec<SoundFile>> {
    let reader = read(repository, &of.image, context)?;
    let gone = || {
        let what = format!("a snapshot of \"{}\" was dropped since it was planned", of.image);
        Error::new(ErrorKind::NotFound, what)
    };
    let stored = reader.manifest().stored();
    let snapshot = stored.into_iter().find(|s| s.id == of.snapshot).ok_or_else(gone)?;
    let delta = open_delta(repository, reader.manifest(), snapshot)?;
    let mut sound = Vec::new();
    for PlannedFile { image, file, .. } in files {
        context.check()?;
        match scrubbed(&delta, snapshot, file, context) {
            Err(e) if e.kind() == ErrorKind::Interrupted || e.is_unread() => return Err(e),
            Err(e) => context.note(format!("{image}/{file}: {e}")),
            Ok(blocks) => {
                let (image, file) = (image.clone(), file.clone());
                sound.push(SoundFile { image, file, blocks });
            }
        }
    }
    Ok(sound)
}

/// Reads a file from front to back; how many blocks are in it.
fn scrubbed(delta: &Delta, snapshot: &Snapshot, file: &String, context: &Context) -> Result<u64> {
    if !snapshot.files().any(|own| own == file) {
        let what = format!("{file} was merged since it was planned");
        return Err(Error::new(ErrorKind::NotFound, what));
    }
    let index = snapshot.parts.iter().position(|part| part == file).unwrap_or(0);
    scrub_part(delta.part(index)?, delta.geometry()?, Depth::Blocks, context)
}

/// The numbers of the tasks that are done.
///
/// # Errors
/// Of the store.
pub(super) fn done(repository: &Repository, plan: Uuid) -> Result<Vec<u32>> {
    let attempts = Attempt::all(repository.store.as_ref(), plan)?;
    let is_done = |a: &Attempt| matches!(a.outcome, Outcome::Verified(_));
    Ok(attempts.into_iter().filter(is_done).map(|a| a.task).collect())
}

/// The rest of the verification, if all tasks are done. Then the plan is over.
///
/// # Errors
/// Of the store; damage is in the outcome.
pub fn join(
    repository: &Repository,
    plan: &WorkPlan,
    planned: &PlannedVerify,
    context: &Context,
) -> Result<VerifyJoined> {
    let attempts = Attempt::all(repository.store.as_ref(), plan.plan)?;
    let (mut proved, mut done) = (Proved::default(), HashSet::new());
    for attempt in attempts {
        if let Outcome::Verified(sound) = attempt.outcome {
            done.insert(attempt.task);
            sound.into_iter().for_each(|of| proved.add(of.image, of.file, of.blocks));
        }
    }
    let is_missing = |task: &&VerifyTask| !done.contains(&task.task);
    let missing: Vec<VerifyTask> = planned.tasks.iter().filter(is_missing).cloned().collect();
    if !missing.is_empty() {
        return Ok(VerifyJoined::Unfinished(missing));
    }
    let scope = planned.image.clone().map_or(VerifyScope::All, VerifyScope::Image);
    let verified: Verified = crate::ops::verify::run_beyond(repository, &scope, &proved, context)?;
    WorkPlan::remove(repository.store.as_ref(), plan.plan)?;
    Ok(VerifyJoined::Done(Box::new(verified), plan.time))
}
