//! What is to be exported, and what was.

use crate::base::setters::setters;
use crate::repo::manifest::Snapshot;
use crate::repo::reference::At;
use serde::Serialize;

/// A delta file that a user wants.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ExportRequest {
    /// Name of the image.
    pub name: String,
    /// The snapshot.
    pub at: At,
    /// The snapshot that the file is against; otherwise it is a full one.
    pub since: Option<At>,
}

impl ExportRequest {
    /// Of a snapshot of an image, as a full one.
    pub fn new(name: impl Into<String>, at: At) -> Self {
        Self { name: name.into(), at, since: None }
    }

    setters! {
        /// The snapshot that the file is against; otherwise it is a full one.
        since: Option<At>,
    }
}

/// A delta file that was written.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct ExportOutcome {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// The one that the file is against.
    pub since: Option<Snapshot>,
    /// Length of the file.
    pub file_bytes: u64,
}
