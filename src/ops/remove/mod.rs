//! The verb *remove*: removes an image with all its snapshots.

pub mod types;

use crate::base::error::Result;
use crate::base::events::{Context, WarningId};
use crate::ops::remove::types::Removed;
use crate::repo::Repository;
use crate::repo::change::{refuse_kept, remove_image};
use crate::repo::clones::remove_all_clones;
use crate::repo::group::{Images, Members};
use crate::repo::manifest::{self, Manifest};
use crate::repo::names::is_guarded;
use crate::repo::pins::{Below, PinnedFor, write_to_drop};
use crate::repo::requests::leave;
use crate::repo::session::read;
use uuid::Uuid;

/// Removes an image with all its snapshots.
pub fn run(repository: &Repository, name: &str, context: &Context) -> Result<Removed> {
    if !repository.may_drop() {
        return ask(repository, name, context);
    }
    let writer = write_to_drop(repository, name, context)?;
    refuse_kept(repository.store.as_ref(), &writer.manifest, |_| true)?;
    let below = Below::of(&writer.manifest);
    // Once its folder is gone, nothing tells that nobody needs what is pinned for it.
    let pinned = PinnedFor::of(repository, &writer.manifest, context)?;
    let stored = writer.manifest.stored();
    let freed_bytes = writer.freed_bytes + stored.iter().map(|s| s.file_bytes).sum::<u64>();
    let grace_seconds = repository.sharing()?.grace().map(|grace| grace.as_secs());
    let snapshots = writer.manifest.snapshots.len() as u64;
    let incomplete = left_of_groups(repository, &writer.manifest, context);
    let removed = Removed { snapshots, freed_bytes, grace_seconds, incomplete, requested: None };
    // Of an image that is gone, nobody would know its clones.
    let head = writer.head.clone();
    let image_id = writer.manifest.image_id;
    let first = |manifest: &Manifest| remove_all_clones(repository, manifest, &head, context);
    let emptied = |manifest: &Manifest| pinned.release(repository, manifest, context);
    if !remove_image(repository, writer, first, emptied)? {
        let place = repository.store.location(name);
        let what =
            format!("{place} is kept: something not created by imgsnap is in it or mounted on it");
        context.warn(WarningId::FolderStays, what);
    }
    below.release(repository, None, context);
    if !is_shared(repository, image_id)
        && let Err(e) = repository.host.forget(repository.id(), image_id)
    {
        context.note(e);
    }
    Ok(removed)
}

/// True if somebody gave its identity to another image as well, where not everybody is believed.
fn is_shared(repository: &Repository, image_id: Uuid) -> bool {
    let store = repository.store.as_ref();
    let is_it = |name: &String| manifest::load(store, name).is_ok_and(|m| m.image_id == image_id);
    is_guarded(store) && repository.names().is_ok_and(|names| names.iter().any(is_it))
}

/// Asks the owner to remove it.
fn ask(repository: &Repository, name: &str, context: &Context) -> Result<Removed> {
    let reader = read(repository, name, context)?;
    let manifest = reader.manifest();
    refuse_kept(repository.store.as_ref(), manifest, |_| true)?;
    Ok(Removed {
        snapshots: manifest.snapshots.len() as u64,
        freed_bytes: 0,
        grace_seconds: None,
        incomplete: left_of_groups(repository, manifest, context),
        requested: Some(leave(repository, manifest, None)?),
    })
}

/// The groups of its snapshots of which others are there.
fn left_of_groups(repository: &Repository, image: &Manifest, context: &Context) -> Vec<Members> {
    let mut images = Images::of(repository, context);
    let groups = image.snapshots.iter().filter_map(|s| images.members_of(image, s));
    let left = groups.filter(|group| group.others(image.image_id).next().is_some());
    left.map(|group| group.without(image.image_id)).collect()
}
