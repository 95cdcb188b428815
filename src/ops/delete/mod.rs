//! The verb *delete*: drops one snapshot. What depends on it stays as it is.

pub mod types;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::Context;
use crate::base::message::{Setting, Verb, message};
use crate::ops::delete::types::Deleted;
use crate::repo::Repository;
use crate::repo::compact::{compact, drop_snapshots, or_warn};
use crate::repo::compaction::CompactWhen;
use crate::repo::head::Head;
use crate::repo::manifest::Snapshot;
use crate::repo::pins::{Below, write_to_drop};
use crate::repo::reference::{self, At};
use crate::repo::session::refuse_damaged_head;
use std::collections::HashSet;

/// Deletes a snapshot. What depends on it stays as it is.
pub fn run(
    repository: &Repository,
    name: &str,
    at: &At,
    is_compact: bool,
    context: &Context,
) -> Result<Deleted> {
    let mut writer = write_to_drop(repository, name, context)?;
    refuse_damaged_head(name, writer.head_was_damaged)?;
    let snapshot = reference::find(&writer.manifest, &writer.head, at)?.clone();
    refuse_target(&writer.head, &snapshot, name)?;
    // A policy that cannot be read is no reason to keep what somebody wants to be gone.
    let garbage = repository.policy(name).unwrap_or_default().garbage;
    let below = Below::of(&writer.manifest);
    let (head, ids) = (writer.head.clone(), HashSet::from([snapshot.id]));
    let unneeded = drop_snapshots(repository, &mut writer, &ids, |next| {
        refuse_target(&head.in_view_of(next), &snapshot, name)?;
        Ok(ids.clone())
    })?;
    let when = CompactWhen::of(is_compact, garbage);
    let compacted = compact(repository, &mut writer, &unneeded, when, context)?;
    let compaction = or_warn(compacted, context);
    let now = writer.manifest.clone();
    drop(writer);
    below.release(repository, Some(&now), context);
    Ok(Deleted { snapshot, compaction })
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
        Verb::Rollback.of(name).with(Setting::To, place),
        ", or roll back to another snapshot, before this one is deleted",
    ]))
}
