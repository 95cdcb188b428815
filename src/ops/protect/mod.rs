//! The verb *protect*: keeps a snapshot from being dropped, whatever asks for it.

use crate::base::error::Result;
use crate::base::events::Context;
use crate::repo::Repository;
use crate::repo::change::change_snapshot;
use crate::repo::manifest::Snapshot;
use crate::repo::reference::{self, At};
use crate::repo::reserve::keep_reserve;
use crate::repo::session::{write, write_to_free};
use crate::store::ReserveKept;

/// Protects a snapshot, or takes that back.
pub fn run(
    repository: &Repository,
    name: &str,
    at: &At,
    protect: bool,
    context: &Context,
) -> Result<Snapshot> {
    // What is protected must be released before it can be dropped.
    let open = if protect { write } else { write_to_free };
    let mut writer = open(repository, name, context)?;
    let snapshot = reference::find(&writer.manifest, &writer.head, at)?.clone();
    if snapshot.protected == protect {
        return Ok(snapshot.clone());
    }
    let changed = change_snapshot(repository, &mut writer, snapshot.id, |snapshot| {
        snapshot.protected = protect;
    })?;
    if !protect {
        keep_reserve(repository.store.as_ref(), &writer.manifest, ReserveKept::OfTheRest);
    }
    Ok(changed)
}
