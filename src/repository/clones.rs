//! The clones beside an image: which are of use, which are left over, what they take.

use super::Repository;
use super::tracking::newest_clone;
use crate::error::Result;
use crate::hints::{CloneFolder, FoundClone, Owner};
use crate::manifest::Manifest;
use crate::progress::Context;
use std::path::PathBuf;
use uuid::Uuid;

/// What clones beside an image take.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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
pub struct CloneUse {
    /// Number of its snapshot; none if no snapshot names it.
    pub number: Option<u64>,
    /// Where it is.
    pub path: PathBuf,
    /// Bytes that would be free without it.
    pub own_bytes: u64,
}

impl Clones {
    /// What all clones of this repository take.
    pub fn own_bytes(&self) -> u64 {
        self.reference.iter().chain(&self.orphans).map(|clone| clone.own_bytes).sum()
    }
}

impl Repository {
    fn owner(&self, manifest: &Manifest) -> Owner {
        Owner { repository: self.id(), image: manifest.image_id }
    }

    /// The clones beside the live file of an image.
    pub fn clones(&self, manifest: &Manifest) -> Result<Clones> {
        let mut clones = Clones::default();
        let Some(source) = &manifest.source else { return Ok(clones) };
        let newest = newest_clone(manifest).map(|(s, _)| s);
        let mut others = None;
        for found in CloneFolder::beside(source).list()? {
            let own_bytes = found.own_bytes()?;
            let is_newest = newest.filter(|s| s.id == found.id);
            let number = is_newest.map(|s| s.number);
            let clone = CloneUse { number, path: found.path, own_bytes };
            match found.owner {
                Some(owner) if owner == self.owner(manifest) => match number {
                    Some(_) => clones.reference = Some(clone),
                    None => clones.orphans.push(clone),
                },
                Some(owner) if owner.repository == self.id() => {
                    // Of an image that was forgotten, or of another one, which tells of it itself.
                    let others = others.get_or_insert_with(|| self.image_ids());
                    if !others.contains(&owner.image) {
                        clones.orphans.push(clone);
                    }
                }
                _ => clones.foreign.push(clone),
            }
        }
        Ok(clones)
    }

    /// The same; what cannot be looked at is told, and is no reason to tell nothing.
    pub(super) fn clones_or_warn(&self, manifest: &Manifest, context: &Context) -> Clones {
        self.clones(manifest).unwrap_or_else(|e| {
            context.progress().warn(&format!("{}: its clones are not known: {e}", manifest.name));
            Clones::default()
        })
    }

    /// The identities of all images that can be read.
    fn image_ids(&self) -> Vec<Uuid> {
        let names = self.names().unwrap_or_default();
        let load = |name: &String| crate::manifest::load(self.store.as_ref(), name).ok();
        names.iter().filter_map(load).map(|manifest| manifest.image_id).collect()
    }

    /// Removes the clones of an image that no snapshot needs; of all those that one does, only the newest
    /// is. What fails is told, and left to the next snapshot.
    pub(super) fn clean_clones(&self, manifest: &Manifest, context: &Context) {
        let newest = newest_clone(manifest).map(|(s, _)| s.id);
        let removed = self.remove_clones(manifest, |found| Some(found.id) != newest, context);
        if let Err(e) = removed {
            context.progress().warn(&format!("{e}; the next snapshot tries again"));
        }
    }

    fn remove_clones(
        &self,
        manifest: &Manifest,
        is_unneeded: impl Fn(&FoundClone) -> bool,
        context: &Context,
    ) -> Result<Vec<FoundClone>> {
        let Some(source) = &manifest.source else { return Ok(Vec::new()) };
        let folder = CloneFolder::beside(source);
        let mut removed = Vec::new();
        for found in folder.list()? {
            if found.owner != Some(self.owner(manifest)) || !is_unneeded(&found) {
                continue;
            }
            context.progress().note(&format!("removing the clone {}", found.path.display()));
            folder.remove(found.id)?;
            removed.push(found);
        }
        Ok(removed)
    }

    /// Removes all clones of an image that is not there, or not where it was, any more.
    pub(super) fn forget_clones(&self, manifest: &Manifest, context: &Context) {
        if let Err(e) = self.remove_clones(manifest, |_| true, context) {
            context.progress().warn(&format!("{e}; remove it by hand"));
        }
    }

    /// Removes all clones of an image: its next snapshot reads all of it. Gives what was removed.
    pub fn untrack(&self, name: &str, context: &Context) -> Result<Vec<CloneUse>> {
        let writer = self.write(name, context)?;
        let clones = self.clones(&writer.manifest)?;
        let removed = self.remove_clones(&writer.manifest, |_| true, context)?;
        let is_removed = |clone: &CloneUse| removed.iter().any(|found| found.path == clone.path);
        Ok(clones.reference.into_iter().chain(clones.orphans).filter(is_removed).collect())
    }
}
