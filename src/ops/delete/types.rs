//! What was deleted.

use crate::repo::compaction::Compaction;
use crate::repo::manifest::Snapshot;
use serde::Serialize;
use uuid::Uuid;

/// A snapshot that was deleted.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Deleted {
    /// Name of its image.
    pub name: String,
    /// The snapshot, as it was.
    pub snapshot: Snapshot,
    /// What became of its space.
    pub compaction: Compaction,
    /// It is still there: the owner was asked to drop it, with that request.
    pub requested: Option<Uuid>,
}
