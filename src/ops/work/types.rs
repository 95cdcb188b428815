//! What a caller asks of several workers, and what becomes of it.

use crate::base::error::Error;
use crate::base::setters::setters;
use crate::ops::snapshot::types::SnapshotRequest;
use crate::repo::manifest::Snapshot;
use crate::repo::work::{PlannedImage, PlannedTask, WorkPlan};
use uuid::Uuid;

/// Snapshots that are to be planned: one of each image.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct PlanRequest {
    /// Each as if it were taken at once.
    pub images: Vec<SnapshotRequest>,
    /// Why the images stay as they are until they are joined; otherwise their file systems have to see to it.
    pub source_held: Option<String>,
}

impl PlanRequest {
    setters! {
        /// Each as if it were taken at once.
        images: Vec<SnapshotRequest>,
        /// Why the images stay as they are until they are joined; otherwise their file systems have to see to
        /// it.
        source_held: Option<String>,
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
    /// Data blocks in it.
    pub data_blocks: u64,
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

/// A plan, and how far it is.
#[derive(Debug)]
#[non_exhaustive]
pub struct PlanProgress {
    /// The plan.
    pub plan: WorkPlan,
    /// Of each image, in the order of the plan.
    pub images: Vec<ImageProgress>,
}

/// How far a snapshot is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageProgress {
    /// Tasks that are done.
    pub done: Vec<u32>,
    /// What became of it.
    pub state: PlanState,
}

/// What became of a planned snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlanState {
    /// Parts are being made.
    Pending,
    /// It was joined.
    Joined,
    /// It was given up.
    Dropped,
}

impl PlanProgress {
    /// The images with what became of each.
    pub fn each(&self) -> impl Iterator<Item = (&PlannedImage, &ImageProgress)> {
        self.plan.images.iter().zip(&self.images)
    }

    /// The plan's id.
    pub fn id(&self) -> Uuid {
        self.plan.plan
    }
}
