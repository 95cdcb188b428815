//! What a caller asks of several workers, and what becomes of it.

use crate::base::digest::Digest;
use crate::base::error::Error;
use crate::base::setters::setters;
use crate::base::units::PartSize;
use crate::ops::snapshot::types::SnapshotRequest;
use crate::ops::verify::types::Verified;
use crate::repo::manifest::Snapshot;
use crate::repo::reference::{At, Reference};
use crate::repo::work::{PlannedImage, PlannedRestore, PlannedTask, VerifyTask, WorkPlan};
use crate::store::RemoteUrl;
use jiff::Timestamp;
use std::collections::HashSet;
use std::path::PathBuf;
use uuid::Uuid;

/// Snapshots that are to be planned: one of each image.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct PlanRequest {
    /// Each as if it were taken at once.
    pub images: Vec<SnapshotRequest>,
    /// Why the images stay as they are until they are joined; otherwise their file systems have to see to it.
    pub source_held: Option<String>,
    /// The address of WebHDFS, which tells on which hosts images in HDFS lie.
    pub webhdfs: Option<String>,
}

impl PlanRequest {
    setters! {
        /// Each as if it were taken at once.
        images: Vec<SnapshotRequest>,
        /// Why the images stay as they are until they are joined; otherwise their file systems have to see to
        /// it.
        source_held: Option<String>,
        /// The address of WebHDFS, which tells on which hosts images in HDFS lie.
        webhdfs: Option<String>,
    }

    /// Of no image yet.
    pub fn new() -> Self {
        Self::default()
    }
}

/// What was planned.
#[derive(Debug)]
#[non_exhaustive]
pub struct Planned {
    /// The plan; none if no image could be planned.
    pub plan: Option<WorkPlan>,
    /// Images of which nothing was planned, since they are what a snapshot has: its name and number.
    pub unchanged: Vec<(String, u64)>,
    /// Images that could not, and why.
    pub failed: Vec<(String, Error)>,
}

/// A part that a worker was to make.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct PartMade {
    /// The image.
    pub name: String,
    /// The task.
    pub task: PlannedTask,
    /// Its file in the folder of the image.
    pub object: String,
    /// Length of that.
    pub file_bytes: u64,
    /// Digest of its footer, by which the snapshot will name it.
    pub footer_digest: Digest,
    /// Data blocks in it.
    pub data_blocks: u64,
    /// Bytes of the image of which it says something.
    pub changed_bytes: u64,
    /// Bytes that were read of the image; none if another worker had made it before.
    pub read_bytes: Option<u64>,
}

/// What became of an image when a plan was joined.
#[derive(Debug)]
#[non_exhaustive]
pub enum Joined {
    /// Its snapshot stands.
    Committed(Box<Snapshot>),
    /// It stood before.
    AlreadyThere(Box<Snapshot>),
    /// These tasks are not done.
    Unfinished(Vec<PlannedTask>),
    /// It cannot be joined.
    Failed(Error),
}

/// What became of a plan when it was joined.
#[derive(Debug)]
#[non_exhaustive]
pub enum PlanJoined {
    /// Of each image.
    Snapshots(Vec<(String, Joined)>),
    /// Of a restore.
    Restore(Box<PlannedRestore>, RestoreJoined),
    /// Of a verification.
    Verify(VerifyJoined),
}

/// What became of a restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RestoreJoined {
    /// The file has its name.
    Done,
    /// These tasks are not done.
    Unfinished(Vec<PlannedTask>),
}

/// What became of a verification.
#[derive(Debug)]
pub enum VerifyJoined {
    /// What was found; files that workers have proved, since that time, were not read again.
    Done(Box<Verified>, Timestamp),
    /// These tasks are not done.
    Unfinished(Vec<VerifyTask>),
}

/// Where several workers restore a snapshot to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RestorePlace {
    /// A file that does not exist, in a folder that all workers see under this name.
    File(PathBuf),
    /// An object that does not exist, on a server that takes its pieces from several hosts: S3.
    Object(RemoteUrl),
}

/// A snapshot that is to be restored by several workers.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PlanRestoreRequest {
    /// The name of the image.
    pub name: String,
    /// The snapshot.
    pub at: At,
    /// Where to.
    pub target: RestorePlace,
    /// How much of the image a task is; otherwise the usual size of a part.
    pub part_size: Option<PartSize>,
}

impl PlanRestoreRequest {
    setters! {
        /// How much of the image a task is; otherwise the usual size of a part.
        part_size: Option<PartSize>,
    }

    /// A snapshot, and where it goes.
    pub fn new(reference: Reference, target: RestorePlace) -> Self {
        Self { name: reference.name, at: reference.at, target, part_size: None }
    }
}

/// What was done.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum TaskDone {
    /// A part was made.
    Part(PartMade),
    /// A range was restored.
    Range(RangeRestored),
    /// Files were verified.
    Files(FilesVerified),
}

/// A range of a file that was to be restored.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RangeRestored {
    /// The image.
    pub name: String,
    /// The task.
    pub task: PlannedTask,
    /// Bytes of data that were written; none if another worker had done it before.
    pub data_bytes: Option<u64>,
}

/// Files that were to be verified.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FilesVerified {
    /// The task.
    pub task: VerifyTask,
    /// How many of its files are sound: of others `join` tells what is wrong. None if another worker had done
    /// it before.
    pub sound: Option<usize>,
}

/// A plan, and how far it is.
#[derive(Debug)]
#[non_exhaustive]
pub struct PlanProgress {
    /// The plan.
    pub plan: WorkPlan,
    /// Tasks that are done.
    pub done: HashSet<u32>,
    /// What became of it, of each image if it is of several.
    pub states: Vec<PlanState>,
    /// Of tasks that are not done, what went wrong last.
    pub failures: Vec<TaskFailure>,
}

/// An attempt that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TaskFailure {
    /// The task.
    pub task: u32,
    /// The host that tried.
    pub host: String,
    /// When.
    pub time: Timestamp,
    /// Why.
    pub message: String,
}

/// What became of planned work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlanState {
    /// Tasks are being done.
    Pending,
    /// It was joined.
    Joined,
    /// It was given up.
    Dropped,
}

impl PlanProgress {
    /// The images of which snapshots are taken, with what became of each.
    pub fn each(&self) -> impl Iterator<Item = (&PlannedImage, PlanState)> {
        self.plan.images().iter().zip(self.states.iter().copied())
    }

    /// The plan's id.
    pub fn id(&self) -> Uuid {
        self.plan.plan
    }
}
