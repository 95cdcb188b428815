//! What a verification has found out: chains go from one image to another.

use crate::base::error::Result;
use crate::chain::Chain;
use crate::delta::Delta;
use crate::ops::verify::engine::LostBlocks;
use crate::repo::manifest::Manifest;
use crate::repo::session::Reader;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use uuid::Uuid;

/// What cannot be restored from a file.
#[derive(Debug, Clone)]
pub(super) enum Lost {
    All,
    Some(LostBlocks),
}

/// What was found out so far: chains go from one image to another.
#[derive(Default, Clone)]
pub(super) struct Known {
    /// Snapshots that were checked, and what each was taken against.
    pub parents: HashMap<Uuid, Option<Uuid>>,
    /// Files that could be opened.
    pub open: HashMap<Uuid, Arc<Delta>>,
    /// What is lost of the file of each snapshot whose own file is damaged.
    pub damaged: HashMap<Uuid, Lost>,
    /// Snapshots of whose own file not all could be checked.
    pub unchecked: HashSet<Uuid>,
    /// What is lost of each snapshot, and of which nothing can be said.
    pub losses: HashMap<Uuid, Lost>,
    pub unknown: HashSet<Uuid>,
    /// What holds these files.
    pub readers: Vec<Arc<Reader>>,
}

impl Known {
    /// Nothing else depends on these.
    pub fn forget(&mut self, manifest: &Manifest) {
        for snapshot in manifest.stored() {
            self.parents.remove(&snapshot.id);
            self.open.remove(&snapshot.id);
            self.damaged.remove(&snapshot.id);
            self.unchecked.remove(&snapshot.id);
            self.losses.remove(&snapshot.id);
            self.unknown.remove(&snapshot.id);
        }
    }

    /// A snapshot and what it depends on, as far as that was checked, newest first.
    pub fn lineage(&self, id: Uuid) -> Vec<Uuid> {
        let mut lineage = Vec::new();
        let mut next = Some(id);
        while let Some(id) = next.filter(|_| lineage.len() <= self.parents.len()) {
            lineage.push(id);
            next = self.parents.get(&id).copied().flatten();
        }
        lineage
    }
}

/// A chain from files that may be of several images, newest first.
pub(super) fn linked(layers: Vec<Arc<Delta>>) -> Result<Chain> {
    let mut below: Option<Chain> = None;
    for of_one in layers.chunk_by(|a, b| a.header().image_id == b.header().image_id).rev() {
        below = Some(Chain::link_onto(of_one.to_vec(), below.as_ref())?);
    }
    below.map_or_else(|| Chain::link(Vec::new()), Ok)
}
