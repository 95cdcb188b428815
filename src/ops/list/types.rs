//! What is listed.

use crate::repo::group::Members;
use crate::repo::head::Head;
use crate::repo::manifest::{Manifest, Snapshot};
use crate::tracking::Clones;
use serde::Serialize;

/// An image and what is known of its live file.
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct Listing {
    /// Its snapshots.
    pub manifest: Manifest,
    /// Of each snapshot, in their order, what became of its group, if it has one.
    pub groups: Vec<Option<Members>>,
    /// The head state.
    pub head: Head,
    /// The clones beside its live file.
    pub clones: Clones,
}

impl Listing {
    /// What became of the group of a snapshot; none if it has none.
    pub fn group_of(&self, snapshot: &Snapshot) -> Option<&Members> {
        let mut both = self.manifest.snapshots.iter().zip(&self.groups);
        both.find(|(s, _)| s.id == snapshot.id).and_then(|(_, group)| group.as_ref())
    }
}
