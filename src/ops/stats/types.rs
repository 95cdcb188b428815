//! What the snapshots of an image cost, and where it changes.

use crate::repo::manifest::{Manifest, Snapshot};
use crate::tracking::Clones;
use jiff::civil::Date;
use serde::Serialize;

/// What is known of an image.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// Its snapshots.
    pub manifest: Manifest,
    /// What each of them costs, ascending by number.
    pub costs: Vec<Cost>,
    /// What was added on each day that has snapshots, in local time.
    pub days: Vec<Day>,
    /// Bytes of files of dropped snapshots.
    pub dropped_bytes: u64,
    /// Bytes that nobody needs but that are not freed yet; about.
    pub garbage_bytes: u64,
    /// Bytes of files that are dropped, and wait until nobody can be reading them.
    pub condemned_bytes: u64,
    /// Bytes that the deltas changed in each part of the image.
    pub heat: Vec<u64>,
    /// Length of a part.
    pub cell_bytes: u64,
    /// The clones beside its live file.
    pub clones: Clones,
}

/// What one snapshot costs.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Cost {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// Bytes that would be free without it; about. Nothing if several snapshots depend on it.
    pub frees_bytes: u64,
}

/// What was added on a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Day {
    /// Which.
    pub date: Date,
    /// Snapshots.
    pub snapshots: u64,
    /// Bytes of the image that they changed.
    pub changed_bytes: u64,
    /// Bytes of their files.
    pub stored_bytes: u64,
}

impl Stats {
    /// Bytes of all files.
    pub fn stored_bytes(&self) -> u64 {
        self.manifest.stored().iter().map(|s| s.file_bytes).sum()
    }

    /// Bytes of the blocks in them before compression.
    pub fn raw_bytes(&self) -> u64 {
        let stored = self.manifest.stored();
        let here = stored.iter().filter(|s| !s.is_by_reference());
        here.map(|s| s.data_blocks * u64::from(s.block_bytes)).sum()
    }

    /// Bytes of the frames with these blocks.
    pub fn frame_bytes(&self) -> u64 {
        self.manifest.stored().iter().map(|s| s.frame_bytes).sum()
    }
}
