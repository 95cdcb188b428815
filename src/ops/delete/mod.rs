//! The verb *delete*: drops one snapshot. What depends on it stays as it is.

pub mod types;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::{Context, WarningId};
use crate::base::message::{Setting, Verb, message};
use crate::ops::delete::types::Deleted;
use crate::repo::Repository;
use crate::repo::compact::{CompactWhen, Compaction, compact, drop_snapshots};
use crate::repo::manifest::Snapshot;
use crate::repo::reference::{self, At};
use crate::repo::session::{Writer, refuse_damaged_head, write};
use std::collections::HashSet;

/// Deletes a snapshot. What depends on it stays as it is.
pub fn run(
    repository: &Repository,
    name: &str,
    at: &At,
    compact: bool,
    context: &Context,
) -> Result<Deleted> {
    let mut writer = write(repository, name, context)?;
    refuse_damaged_head(name, writer.head_was_damaged)?;
    let snapshot = reference::find(&writer.manifest, &writer.head, at)?.clone();
    if writer.head.intent.is_some_and(|intent| intent.target == snapshot.id) {
        let place = format!("{name}@{}", snapshot.number);
        let what = format!("a rollback of \"{name}\" to {place} was interrupted");
        return Err(Error::new(ErrorKind::Mismatch, what).hint(message![
            "finish it with ",
            Verb::Rollback.of(name).with(Setting::To, place),
            ", or roll back to another snapshot, before this one is deleted",
        ]));
    }
    // A policy that cannot be read is no reason to keep what somebody wants to be gone.
    let garbage = repository.policy(name).unwrap_or_default().garbage;
    let unneeded = drop_snapshots(repository, &mut writer, &HashSet::from([snapshot.id]))?;
    let compaction = compact_or_warn(
        repository,
        &mut writer,
        &unneeded,
        CompactWhen::of(compact, garbage),
        context,
    )?;
    Ok(Deleted { snapshot, compaction })
}

/// Compacts after a commit that stands: what fails now only leaves something for the next writer.
fn compact_or_warn(
    repository: &Repository,
    writer: &mut Writer,
    unneeded: &[Snapshot],
    when: CompactWhen,
    context: &Context,
) -> Result<Compaction> {
    match compact(repository, writer, unneeded, when, context) {
        Err(e) if e.kind() != ErrorKind::Interrupted => {
            context.warn(WarningId::CleanupDelayed, message![e, "; the next prune tries again"]);
            Ok(Compaction::default())
        }
        other => other,
    }
}
