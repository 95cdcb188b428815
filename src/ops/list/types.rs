//! What is listed.

use crate::libvirt::{CheckpointState, DomainState};
use crate::repo::group::Members;
use crate::repo::head::Head;
use crate::repo::manifest::{Manifest, Snapshot};
use crate::tracking::Clones;
use jiff::Timestamp;
use serde::Serialize;

/// A domain of libvirt, and what a repository has of it.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct DomainListing {
    /// Its name.
    pub name: String,
    /// What it does.
    pub state: DomainState,
    /// Its disks.
    pub disks: Vec<ListedDisk>,
    /// What else keeps data that no snapshot has.
    pub uncovered: Vec<String>,
}

/// A disk of a domain, and what a repository has of it.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ListedDisk {
    /// Its target.
    pub target: String,
    /// The format of its image.
    pub format: String,
    /// Its name in the repository, if it has one.
    pub image: Option<String>,
    /// How many snapshots of it there are.
    pub snapshots: usize,
    /// Number and time of the newest.
    pub newest: Option<(u64, Timestamp)>,
    /// How the next snapshot will find what changed.
    pub checkpoint: CheckpointState,
}

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
