//! The verb *delete*: drops one snapshot, or all of a group. What depends on them stays as it is.

pub mod types;

use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::events::Context;
use crate::base::message::message;
use crate::ops::delete::types::Deleted;
use crate::repo::Repository;
use crate::repo::change::refuse_kept;
use crate::repo::compact::{compact, drop_snapshots, or_warn};
use crate::repo::compaction::{CompactWhen, Compaction};
use crate::repo::group::{half_done, named_last, targets};
use crate::repo::head::Head;
use crate::repo::manifest::{Manifest, Snapshot, changed_meanwhile};
use crate::repo::pins::{Below, write_to_drop};
use crate::repo::reference::{self, At};
use crate::repo::requests::leave;
use crate::repo::session::{Writer, read, refuse_damaged_head};
use std::collections::HashSet;
use uuid::Uuid;

/// Deletes a snapshot, whatever was taken with it. What depends on it stays as it is.
pub fn run(
    repository: &Repository,
    name: &str,
    at: &At,
    is_compact: bool,
    context: &Context,
) -> Result<Deleted> {
    if !repository.may_drop() {
        let reader = read(repository, name, context)?;
        let id = reader.find(at)?.id;
        return ask(repository, reader.manifest(), id);
    }
    let writer = write_to_drop(repository, name, context)?;
    refuse_damaged_head(name, writer.head_was_damaged)?;
    let snapshot = reference::find(&writer.manifest, &writer.head, at)?.clone();
    let mut open = Open::of(name, writer, snapshot, true)?;
    let unneeded = open.drop_it(repository)?;
    let compaction = open.compact(repository, &unneeded, is_compact, context)?;
    Ok(open.end(repository, compaction, context))
}

/// Deletes a snapshot, and the others of its group: nothing is dropped before it is known that all may be.
/// The one that is named goes last. Gives them in the order in which they went.
pub fn run_group(
    repository: &Repository,
    name: &str,
    at: &At,
    is_compact: bool,
    context: &Context,
) -> Result<Vec<Deleted>> {
    let mut opened = Vec::new();
    if !repository.may_drop() {
        let targets = targets(repository, name, at, context)?;
        let mut asked = Vec::new();
        for target in targets.into_iter().filter(|target| target.is_listed) {
            let reader = read(repository, &target.name, context)?;
            asked.push(ask(repository, reader.manifest(), target.id)?);
        }
        return Ok(asked);
    }
    let targets = match targets(repository, name, at, context) {
        Ok(targets) => targets,
        Err(error) => {
            // It may have been deleted by a run that was killed: what that left is removed.
            write_to_drop(repository, name, context)?;
            return Err(error);
        }
    };
    for target in targets {
        let (name, is_named) = (target.name.as_str(), target.is_named);
        if !target.is_listed {
            // It went with a run that was killed: what that left is removed.
            best_effort(write_to_drop(repository, name, context));
            continue;
        }
        let writer = match write_to_drop(repository, name, context) {
            // It has just been removed.
            Err(e) if !is_named && e.kind() == ErrorKind::NotFound => continue,
            other => other?,
        };
        refuse_damaged_head(name, writer.head_was_damaged)?;
        match writer.manifest.by_id(target.id).cloned() {
            Some(snapshot) => opened.push(Open::of(name, writer, snapshot, is_named)?),
            None if is_named => return Err(changed_meanwhile(name)),
            None => {}
        }
    }
    opened.iter().try_for_each(|open| open.check(repository, opened.len() > 1))?;
    context.check()?;
    let (mut places, mut done) = (Vec::new(), Vec::new());
    // Each is compacted before the next is dropped: as long as the one that is named is there, the same
    // command finds the others, and what is left of them.
    for mut open in named_last(opened, |open| open.is_named) {
        let dropped = open.drop_it(repository).map_err(|e| half_done(e, &places, "deleted"))?;
        places.push(open.place());
        let is_last = open.is_named;
        let compacted = open.compact(repository, &dropped, is_compact, context);
        let compaction =
            compacted.map_err(|e| if is_last { e } else { half_done(e, &places, "deleted") })?;
        done.push((open.name, open.snapshot, open.below, open.writer.manifest, compaction));
    }
    // Where the chains of one begin in another, both are let go of by now.
    let end = |(name, snapshot, below, now, compaction): (_, _, Below, _, _)| {
        below.release(repository, Some(&now), context);
        Deleted { name, snapshot, compaction, requested: None }
    };
    Ok(done.into_iter().map(end).collect())
}

/// Asks the owner to drop a snapshot.
fn ask(repository: &Repository, manifest: &Manifest, id: Uuid) -> Result<Deleted> {
    refuse_kept(repository.store.as_ref(), manifest, |s| s.id == id)?;
    let snapshot = manifest.by_id(id).cloned().ok_or_else(|| changed_meanwhile(&manifest.name))?;
    let requested = Some(leave(repository, manifest, Some(&HashSet::from([id])))?);
    let (name, compaction) = (manifest.name.clone(), Compaction::default());
    Ok(Deleted { name, snapshot, compaction, requested })
}

/// An image of which a snapshot is to go.
struct Open {
    name: String,
    writer: Writer,
    snapshot: Snapshot,
    below: Below,
    is_named: bool,
}

impl Open {
    fn of(name: &str, writer: Writer, snapshot: Snapshot, is_named: bool) -> Result<Self> {
        refuse_target(&writer.head, &snapshot, name)?;
        let below = Below::of(&writer.manifest);
        Ok(Self { name: name.to_owned(), writer, snapshot, below, is_named })
    }

    fn place(&self) -> String {
        format!("{}@{}", self.name, self.snapshot.number)
    }

    fn check(&self, repository: &Repository, has_others: bool) -> Result<()> {
        let is_meant = |s: &Snapshot| s.id == self.snapshot.id;
        refuse_kept(repository.store.as_ref(), &self.writer.manifest, is_meant)
            .map_err(|e| if has_others { e.at("nothing of the group was deleted") } else { e })
    }

    fn drop_it(&mut self, repository: &Repository) -> Result<Vec<Snapshot>> {
        let Self { name, writer, snapshot, .. } = self;
        let (head, ids): (_, HashSet<Uuid>) = (writer.head.clone(), HashSet::from([snapshot.id]));
        drop_snapshots(repository, writer, &ids, |next| {
            refuse_target(&head.in_view_of(next), snapshot, name)?;
            Ok(ids.clone())
        })
    }

    fn compact(
        &mut self,
        repository: &Repository,
        unneeded: &[Snapshot],
        is_compact: bool,
        context: &Context,
    ) -> Result<Compaction> {
        // A policy that cannot be read is no reason to keep what somebody wants to be gone.
        let garbage = repository.policy(&self.name).unwrap_or_default().garbage;
        let when = CompactWhen::of(is_compact, garbage);
        let compacted = compact(repository, &mut self.writer, unneeded, when, context)?;
        Ok(or_warn(compacted, context))
    }

    fn end(self, repository: &Repository, compaction: Compaction, context: &Context) -> Deleted {
        let now = self.writer.manifest.clone();
        drop(self.writer);
        self.below.release(repository, Some(&now), context);
        Deleted { name: self.name, snapshot: self.snapshot, compaction, requested: None }
    }
}

/// Fails if a rollback to a snapshot was interrupted.
fn refuse_target(head: &Head, snapshot: &Snapshot, name: &str) -> Result<()> {
    if head.intent.is_none_or(|intent| intent.target != snapshot.id) {
        return Ok(());
    }
    let place = format!("{name}@{}", snapshot.number);
    let what = format!("a rollback of \"{name}\" to {place} was interrupted");
    Err(Error::new(ErrorKind::Mismatch, what).hint(message![
        "finish it with ",
        head.finishing(name, &place),
        ", or roll back to another snapshot, before this one is deleted",
    ]))
}
