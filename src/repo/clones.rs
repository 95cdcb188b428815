//! The clones beside an image: which are of use, which are left over, what they take.

use crate::base::error::Result;
use crate::base::progress::Context;
use crate::repo::Repository;
use crate::repo::manifest::{self, Manifest};
use crate::repo::session::write_lock;
use crate::store::LockKind;
use crate::tracking::{CloneFolder, FoundClone, Owner};
use std::path::PathBuf;
use uuid::Uuid;

/// What clones beside an image take.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Clones {
    /// The one that the next snapshot is compared with.
    pub reference: Option<CloneUse>,
    /// Those of this repository that no snapshot needs.
    pub orphans: Vec<CloneUse>,
    /// Those that other repositories made, or nobody knows.
    pub foreign: Vec<CloneUse>,
}

/// A clone, and what it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CloneUse {
    /// Number of its snapshot; none if no snapshot names it.
    pub number: Option<u64>,
    /// Where it is.
    pub path: PathBuf,
    /// Bytes that would be free without it.
    pub own_bytes: u64,
}

/// To whom clones beside an image belong.
struct Whose<'a> {
    repository: &'a Repository,
    /// The image.
    owner: Owner,
    /// All images of the repository, once they are asked for; none if one cannot be read.
    images: Option<Option<Vec<Uuid>>>,
}

impl<'a> Whose<'a> {
    fn new(repository: &'a Repository, manifest: &Manifest) -> Self {
        let owner = Owner { repository: repository.id(), image: manifest.image_id };
        Self { repository, owner, images: None }
    }

    /// True for the clone of an image that the repository had, and has no more.
    fn is_left_over(&mut self, found: &FoundClone) -> bool {
        let Some(owner) = found.owner else { return false };
        if owner.repository != self.owner.repository || owner.image == self.owner.image {
            return false;
        }
        let images = self.images.get_or_insert_with(|| {
            let store = self.repository.store.as_ref();
            let names = self.repository.names().ok()?;
            let load = |name: &String| manifest::load(store, name).map(|m| m.image_id).ok();
            names.iter().map(load).collect()
        });
        images.as_ref().is_some_and(|images| !images.contains(&owner.image))
    }
}

/// The clones beside the live file of an image.
pub fn clones(repository: &Repository, manifest: &Manifest) -> Result<Clones> {
    let mut clones = list_clones(repository, manifest)?;
    if !clones.orphans.is_empty() {
        // One that a snapshot is just about to name is none.
        let lock = repository.store.lock(&write_lock(&manifest.name), LockKind::Shared);
        match lock {
            Ok(None) => clones.orphans.clear(),
            Ok(Some(_alone)) => {
                let manifest = manifest::load(repository.store.as_ref(), &manifest.name)?;
                clones = list_clones(repository, &manifest)?;
            }
            // Where nothing can be locked nobody writes.
            Err(_) => {}
        }
    }
    Ok(clones)
}

pub(crate) fn list_clones(repository: &Repository, manifest: &Manifest) -> Result<Clones> {
    let mut clones = Clones::default();
    let Some(source) = &manifest.source else { return Ok(clones) };
    let newest = manifest.newest_clone().map(|(s, _)| s);
    let mut whose = Whose::new(repository, manifest);
    let folder = CloneFolder::beside(source);
    for found in folder.list()? {
        let own_bytes = folder.own_bytes(&found)?;
        let is_newest = newest.filter(|s| s.id == found.id);
        let number = is_newest.map(|s| s.number);
        let is_left_over = whose.is_left_over(&found);
        let clone = CloneUse { number, path: found.path, own_bytes };
        if found.owner == Some(whose.owner) && number.is_some() {
            clones.reference = Some(clone);
        } else if is_left_over || found.owner == Some(whose.owner) {
            clones.orphans.push(clone);
        } else if found.owner.is_none_or(|owner| owner.repository != repository.id()) {
            clones.foreign.push(clone);
        }
    }
    Ok(clones)
}

/// The same; what cannot be looked at is told, and is no reason to tell nothing.
pub(crate) fn clones_or_warn(
    repository: &Repository,
    manifest: &Manifest,
    context: &Context,
) -> Clones {
    clones(repository, manifest).unwrap_or_else(|e| {
        context.progress().warn(&format!("{}: its clones are not known: {e}", manifest.name));
        Clones::default()
    })
}

/// Removes the clones of an image that no snapshot needs; of all those that one does, only the newest
/// is, and none if the image is not tracked. What fails is told, and left to the next snapshot.
pub(crate) fn remove_unneeded_clones(
    repository: &Repository,
    manifest: &Manifest,
    is_tracked: bool,
    context: &Context,
) {
    let newest = manifest.newest_clone().map(|(s, _)| s.id).filter(|_| is_tracked);
    let removed = remove_clones(repository, manifest, |found| Some(found.id) != newest, context);
    if let Err(e) = removed {
        context.progress().warn(&format!("{e}; the next snapshot tries again"));
    }
}

pub(crate) fn remove_clones(
    repository: &Repository,
    manifest: &Manifest,
    is_unneeded: impl Fn(&FoundClone) -> bool,
    context: &Context,
) -> Result<Vec<FoundClone>> {
    let Some(source) = &manifest.source else { return Ok(Vec::new()) };
    let folder = CloneFolder::beside(source);
    let mut whose = Whose::new(repository, manifest);
    let mut removed = Vec::new();
    for found in folder.list()? {
        let is_ours = found.owner == Some(whose.owner) && is_unneeded(&found);
        if !is_ours && !whose.is_left_over(&found) {
            continue;
        }
        context.progress().note(&format!("removing the clone {}", found.path.display()));
        folder.remove(found.id)?;
        removed.push(found);
    }
    Ok(removed)
}

/// Removes all clones of an image that is not there, or not where it was, any more.
pub(crate) fn remove_all_clones(repository: &Repository, manifest: &Manifest, context: &Context) {
    if let Err(e) = remove_clones(repository, manifest, |_| true, context) {
        context.progress().warn(&format!("{e}; remove it by hand"));
    }
}
