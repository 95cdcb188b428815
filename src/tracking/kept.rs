//! The clones beside a live image: which are of use, which are left over, what they take.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::{Context, WarningId};
use crate::base::message::message;
use crate::base::uri::{Shown, shown_path};
use crate::tracking::{CloneFolder, CloneStat, FoundClone, NewClone, Owner};
use serde::{Deserialize, Serialize};
use std::cell::OnceCell;
use std::fs::File;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// A clone beside the image, called by the id of the snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeptClone {
    /// By what it is recognised.
    pub stat: CloneStat,
    /// How long making it took: so long writers of the image waited.
    pub seconds: f64,
    /// How many extents it has: the next one of them costs as much for each, about.
    pub extents: u64,
}

/// What clones beside an image take.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CloneUse {
    /// Number of its snapshot; none if no snapshot names it.
    pub number: Option<u64>,
    /// Where it is.
    #[serde(serialize_with = "shown_path")]
    pub path: PathBuf,
    /// Bytes that would be free without it.
    pub own_bytes: u64,
}

/// Lists all images of a repository; none if one of them cannot be read.
type ListImages<'a> = Box<dyn Fn() -> Option<Vec<Uuid>> + 'a>;

/// The clones of one image of a repository, and of images that the repository had and has no more.
pub struct KeptClones<'a> {
    /// None of an image that is no file here.
    folder: Option<CloneFolder>,
    owner: Owner,
    /// Snapshots that are planned, and of which workers read the clones.
    planned: Vec<Uuid>,
    list_images: ListImages<'a>,
    images: OnceCell<Option<Vec<Uuid>>>,
}

impl<'a> KeptClones<'a> {
    /// Those beside a live image; none if it is no file here.
    pub fn beside(
        image: Option<&Path>,
        owner: Owner,
        list_images: impl Fn() -> Option<Vec<Uuid>> + 'a,
    ) -> Self {
        let folder = image.map(CloneFolder::beside);
        let (planned, list_images) = (Vec::new(), Box::new(list_images));
        Self { folder, owner, planned, list_images, images: OnceCell::new() }
    }

    /// The same, with clones that are read by others meanwhile.
    #[must_use]
    pub fn with_planned(mut self, planned: Vec<Uuid>) -> Self {
        self.planned = planned;
        self
    }

    /// Clones an image that is open and has so many extents, about.
    ///
    /// # Errors
    /// As [`NewClone::make`].
    pub fn make(&self, image: &File, path: &Path, extents: u64) -> Result<NewClone> {
        NewClone::make(image, path, extents, self.owner)
    }

    /// Gives the clone of a snapshot its name, durably.
    ///
    /// # Errors
    /// As [`CloneFolder::keep`].
    pub fn keep(&self, clone: &NewClone, id: Uuid) -> Result<KeptClone> {
        let nowhere = || Error::new(ErrorKind::Unsupported, "no folder for a clone");
        let stat = self.folder.as_ref().ok_or_else(nowhere)?.keep(clone, id)?;
        Ok(KeptClone { stat, seconds: clone.seconds, extents: clone.extents })
    }

    /// Opens the clone of a snapshot if it is the one that was made; otherwise says what is wrong.
    pub fn open(&self, id: Uuid, made: &KeptClone) -> Result<File, String> {
        let nowhere = || "is beside another image".to_owned();
        self.folder.as_ref().ok_or_else(nowhere)?.open(id, &made.stat)
    }

    /// What there is, and what it takes. `newest`: the id and number of the newest snapshot with a clone.
    pub fn list(&self, newest: Option<(Uuid, u64)>) -> Result<Clones> {
        let mut clones = Clones::default();
        let Some(folder) = &self.folder else { return Ok(clones) };
        for found in folder.list()?.into_iter().filter(|found| !self.planned.contains(&found.id)) {
            let own_bytes = folder.own_bytes(&found)?;
            let number = newest.filter(|(id, _)| *id == found.id).map(|(_, number)| number);
            let (is_left_over, is_ours) = (self.is_left_over(&found), self.is_ours(&found));
            let clone = CloneUse { number, path: found.path, own_bytes };
            if is_ours && number.is_some() {
                clones.reference = Some(clone);
            } else if is_left_over || is_ours {
                clones.orphans.push(clone);
            } else if found.owner.is_none_or(|owner| owner.repository != self.owner.repository) {
                clones.foreign.push(clone);
            }
        }
        Ok(clones)
    }

    /// Removes all clones of the image but `needed`, and those of images that are gone. Returns what was
    /// removed.
    ///
    /// # Errors
    /// Of the first one that cannot be removed.
    pub fn remove_but(&self, needed: Option<Uuid>, context: &Context) -> Result<Vec<FoundClone>> {
        let mut removed = Vec::new();
        let Some(folder) = &self.folder else { return Ok(removed) };
        for found in folder.list()? {
            let is_needed = Some(found.id) == needed || self.planned.contains(&found.id);
            let is_unneeded = self.is_ours(&found) && !is_needed;
            if !is_unneeded && !self.is_left_over(&found) {
                continue;
            }
            context.note(format!("removing the clone {}", found.path.shown()));
            folder.remove(found.id)?;
            removed.push(found);
        }
        Ok(removed)
    }

    /// Like `remove_but`, but only warns of a failure; the next snapshot tries again.
    pub fn tidy(&self, needed: Option<Uuid>, context: &Context) {
        if let Err(e) = self.remove_but(needed, context) {
            context.warn(WarningId::CloneStays, message![e, "; the next snapshot tries again"]);
        }
    }

    fn is_ours(&self, found: &FoundClone) -> bool {
        found.owner == Some(self.owner)
    }

    /// True for the clone of an image that the repository had, and has no more.
    fn is_left_over(&self, found: &FoundClone) -> bool {
        let Some(owner) = found.owner else { return false };
        if owner.repository != self.owner.repository || owner.image == self.owner.image {
            return false;
        }
        let images = self.images.get_or_init(|| (self.list_images)());
        images.as_ref().is_some_and(|images| !images.contains(&owner.image))
    }
}
