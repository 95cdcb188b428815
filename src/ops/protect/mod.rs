//! The verb *protect*: keeps a snapshot from being dropped, whatever asks for it, or all of a group.

pub mod types;

use crate::base::error::{ErrorKind, Result};
use crate::base::events::Context;
use crate::ops::protect::types::Protected;
use crate::repo::Repository;
use crate::repo::change::change_snapshot;
use crate::repo::group::{half_done, named_last, targets};
use crate::repo::manifest::{Snapshot, changed_meanwhile};
use crate::repo::reference::{self, At};
use crate::repo::reserve::keep_reserve;
use crate::repo::session::{Writer, write, write_to_free};
use crate::store::ReserveKept;

/// Protects a snapshot, whatever was taken with it, or takes that back.
pub fn run(
    repository: &Repository,
    name: &str,
    at: &At,
    protect: bool,
    context: &Context,
) -> Result<Snapshot> {
    let mut writer = open(repository, name, protect, context)?;
    let snapshot = reference::find(&writer.manifest, &writer.head, at)?.clone();
    change(repository, &mut writer, snapshot, protect)
}

/// Protects a snapshot and the others of its group, or takes that back; nothing is changed before all images
/// are open. Gives them by the names of their images, but the one that is named last.
pub fn run_group(
    repository: &Repository,
    name: &str,
    at: &At,
    protect: bool,
    context: &Context,
) -> Result<Vec<Protected>> {
    let mut opened = Vec::new();
    let targets = targets(repository, name, at, context)?;
    for target in targets.into_iter().filter(|target| target.is_listed) {
        let writer = match open(repository, &target.name, protect, context) {
            // It has just been removed.
            Err(e) if !target.is_named && e.kind() == ErrorKind::NotFound => continue,
            other => other?,
        };
        match writer.manifest.by_id(target.id).cloned() {
            Some(snapshot) => opened.push((target, writer, snapshot)),
            None if target.is_named => return Err(changed_meanwhile(&target.name)),
            None => {}
        }
    }
    context.check()?;
    let mut done: Vec<Protected> = Vec::new();
    for (target, mut writer, snapshot) in named_last(opened, |(target, ..)| target.is_named) {
        match change(repository, &mut writer, snapshot, protect) {
            Ok(snapshot) => done.push(Protected { name: target.name, snapshot }),
            Err(e) => {
                let place = |done: &Protected| format!("{}@{}", done.name, done.snapshot.number);
                let places: Vec<String> = done.iter().map(place).collect();
                let what = if protect { "protected" } else { "no longer protected" };
                return Err(half_done(e, &places, what));
            }
        }
    }
    Ok(done)
}

fn open(repository: &Repository, name: &str, protect: bool, context: &Context) -> Result<Writer> {
    // What is protected must be released before it can be dropped.
    let open = if protect { write } else { write_to_free };
    open(repository, name, context)
}

fn change(
    repository: &Repository,
    writer: &mut Writer,
    snapshot: Snapshot,
    protect: bool,
) -> Result<Snapshot> {
    if snapshot.protected == protect {
        return Ok(snapshot);
    }
    let changed = change_snapshot(repository, writer, snapshot.id, |snapshot| {
        snapshot.protected = protect;
    })?;
    if !protect {
        keep_reserve(repository.store.as_ref(), &writer.manifest, ReserveKept::OfTheRest);
    }
    Ok(changed)
}
