//! What was removed with an image.

use crate::repo::group::Members;
use serde::Serialize;
use uuid::Uuid;

/// An image that was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Removed {
    /// How many snapshots it had.
    pub snapshots: u64,
    /// Bytes of their files.
    pub freed_bytes: u64,
    /// How long they stay at least, in seconds, where other hosts may read them.
    pub grace_seconds: Option<u64>,
    /// The groups that are incomplete without it: of each, others are still there.
    pub incomplete: Vec<Members>,
    /// It is still there: the owner was asked to remove it, with that request.
    pub requested: Option<Uuid>,
}
