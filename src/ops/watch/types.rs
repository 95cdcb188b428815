//! What is to be watched, and what became of each turn.

use crate::base::error::Result;
use crate::base::setters::setters;
use crate::image::ImageUri;
use crate::ops::prune::types::Pruned;
use crate::ops::snapshot::types::{SnapshotOutcome, SnapshotRequest};
use crate::repo::retention::Rules;
use serde::Serialize;
use std::time::Duration;

/// What is to be watched.
#[non_exhaustive]
#[derive(Debug)]
pub struct WatchRequest {
    /// The images, each with how its snapshots are taken.
    pub images: Vec<SnapshotRequest>,
    /// From one snapshot to the next.
    pub every: Duration,
    /// What is kept; otherwise what the configuration says, and all if it says nothing.
    pub rules: Option<Rules>,
}

impl WatchRequest {
    /// Of these images, so often.
    pub fn new(images: Vec<SnapshotRequest>, every: Duration) -> Self {
        Self { images, every, rules: None }
    }

    setters! {
        /// What is kept; otherwise what the configuration says, and all if it says nothing.
        rules: Option<Rules>,
    }
}

/// What became of one turn of an image.
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct Watched {
    /// The image.
    pub image: ImageUri,
    /// Its name.
    pub name: String,
    /// The snapshot.
    pub result: Result<SnapshotOutcome>,
    /// What was dropped, if there are rules: after a new snapshot, or before it on a full disk.
    pub pruned: Option<Result<Pruned>>,
    /// How long the turn took.
    pub seconds: f64,
    /// How old the newest state is that can be restored now.
    pub age_seconds: Option<f64>,
    /// How old the newest one was just before: the most that would have been lost since the last turn.
    /// None if there was none.
    pub rpo_seconds: Option<f64>,
    /// Failures in a row, this one included.
    pub failures: u32,
    /// When its next turn is.
    pub next_in: Duration,
}
