//! The delta files and chains that a manifest names.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::message::Action;
use crate::chain::Chain;
use crate::delta::{Delta, ReadGuard};
use crate::repo::Repository;
use crate::repo::manifest::{self, Manifest, Snapshot};
use std::sync::Arc;
use uuid::Uuid;

/// Opens the chain of a snapshot and checks its links (FORMAT.md section 5).
///
/// # Errors
/// `Corrupt` if a file is damaged, missing, or not the one that the manifest or its child
/// names.
pub(crate) fn open_chain(repository: &Repository, manifest: &Manifest, id: Uuid) -> Result<Chain> {
    open_guarded(repository, manifest, id, None)
}

/// The same with what holds its files back, as long as one of them is open.
pub(crate) fn open_guarded(
    repository: &Repository,
    manifest: &Manifest,
    id: Uuid,
    guard: Option<ReadGuard>,
) -> Result<Chain> {
    let guard = guard.map(Arc::new);
    let mut layers = Vec::new();
    for snapshot in manifest.lineage(id)? {
        let mut delta = open_delta(repository, manifest, snapshot)?;
        if let Some(guard) = &guard {
            delta.set_guard(guard.clone());
        }
        layers.push(Arc::new(delta));
    }
    Chain::link(layers)
}

/// False if an object is named no more: who reads without a lock may be late (C8).
pub(crate) fn is_named_now(repository: &Repository, manifest: &Manifest, object: &str) -> bool {
    let now = manifest::load_last(repository.store.as_ref(), &manifest.name);
    now.is_ok_and(|now| !is_dropped_by(&now, manifest, object))
}

/// True if a manifest came after another one, and names an object no more.
fn is_dropped_by(now: &Manifest, manifest: &Manifest, object: &str) -> bool {
    now.sequence > manifest.sequence && now.objects().all(|named| named != object)
}

/// What to say of a missing file: it is damage only if what rules now names it. Who reads without a lock may
/// be late (C8).
fn missing_file(repository: &Repository, manifest: &Manifest, snapshot: &Snapshot) -> Error {
    let place = manifest.place_of(snapshot);
    match manifest::load_last(repository.store.as_ref(), &manifest.name) {
        Ok(now) if is_dropped_by(&now, manifest, &snapshot.file) => {
            let what = format!("{place} was dropped, or merged, while it was read");
            Error::new(ErrorKind::NotFound, what).hint(Action::Retry)
        }
        Err(e) if !e.is_damage() && e.kind() != ErrorKind::NotFound => e.at(place),
        _ => {
            let file = repository.store.location(&format!("{}/{}", manifest.name, snapshot.file));
            let what = format!("{place}: its file {file} is missing");
            Error::corrupt(what).hint("put the file back, or restore another snapshot")
        }
    }
}

/// Opens the delta file of a snapshot and checks that it is the one that the manifest names.
pub(crate) fn open_delta(
    repository: &Repository,
    manifest: &Manifest,
    snapshot: &Snapshot,
) -> Result<Delta> {
    let place = manifest.place_of(snapshot);
    let file = format!("{}/{}", manifest.name, snapshot.file);
    let store = &repository.store;
    let mut delta =
        Delta::open(store.clone(), &file, &repository.caches).map_err(|e| match e.kind() {
            ErrorKind::NotFound => missing_file(repository, manifest, snapshot),
            _ => e.at(&place),
        })?;
    delta.set_base_image(&place, snapshot.base_image.clone());
    let footer = delta.footer();
    let same = delta.footer_digest() == snapshot.footer_digest
        && footer.file_bytes == snapshot.file_bytes
        && footer.snapshot_id == snapshot.id
        && footer.parent.map(|p| p.parent_id) == snapshot.parent
        && footer.image_digest == snapshot.image_digest
        && delta.header().image_id == manifest.image_id;
    if !same {
        let what = format!("{place}: {} is not the file of this snapshot", delta.location());
        return Err(
            Error::corrupt(what).hint("the file was renamed or replaced; put the right one back")
        );
    }
    Ok(delta)
}
