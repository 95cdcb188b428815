//! What a point in time is asked for with, and what comes of it.

use super::disks::MachineDisk;
use super::session::RunState;
use crate::base::error::Result;
use crate::image::nbd::NbdUri;
use std::path::PathBuf;
use std::time::Duration;
use uuid::Uuid;

/// A disk of which a snapshot is taken.
#[derive(Debug, Clone)]
pub struct Member {
    /// The disk, as [`Machine::disks`](super::Machine::disks) has it.
    pub disk: MachineDisk,
    /// The image that it is in the repository.
    pub image: Uuid,
    /// The snapshots of that image which can be relied on, the newest first.
    pub known: Vec<Uuid>,
    /// The snapshot that is taken.
    pub snapshot: Uuid,
    /// Bitmaps are used, and one is begun for the next snapshot. Otherwise none is touched.
    pub wants_bitmap: bool,
}

/// How it is done.
#[derive(Debug, Clone)]
pub struct FleeceOptions {
    /// Where what the machine overwrites is kept meanwhile: a folder.
    pub scratch_dir: PathBuf,
    /// How long a write of the machine may wait for that; then the snapshot is given up.
    pub cbw_timeout: Duration,
    /// How long the machine may stand still.
    pub max_stall: Duration,
    /// It may be stopped for a moment, for one point in time of several disks.
    pub may_stop: bool,
}

/// The point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inserted {
    /// How long the machine stood still for it; none at all if it was not stopped.
    pub stall: Duration,
    /// What the machine did before, and does again.
    pub state: RunState,
    /// It is one point in time for all disks.
    pub at_one_time: bool,
}

/// A disk as it was at the point in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleecedDisk {
    /// Where it is read.
    pub uri: NbdUri,
    /// The snapshot since which a dirty bitmap tells what was written, and its name; otherwise why there is
    /// none, if that is worth a word.
    pub since: Result<(Uuid, String), Option<String>>,
}
