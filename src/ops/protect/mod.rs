//! The verb *protect*: keeps a snapshot from being dropped, whatever asks for it.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::Context;
use crate::repo::Repository;
use crate::repo::manifest::{self, Snapshot};
use crate::repo::reference::{self, At};
use crate::repo::session::write;

/// Protects a snapshot, or takes that back.
pub fn run(
    repository: &Repository,
    name: &str,
    at: &At,
    protect: bool,
    context: &Context,
) -> Result<Snapshot> {
    let writer = write(repository, name, context)?;
    let id = reference::find(&writer.manifest, &writer.head, at)?.id;
    let mut next = writer.manifest.clone();
    for snapshot in next.snapshots.iter_mut().filter(|s| s.id == id) {
        snapshot.protected = protect;
    }
    if next != writer.manifest {
        manifest::commit(repository.store.as_ref(), &mut next)?;
    }
    let changed = next.by_id(id).cloned();
    changed.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("{name}: the snapshot is gone")))
}
