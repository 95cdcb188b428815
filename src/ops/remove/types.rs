//! What was removed with an image.

use serde::Serialize;

/// An image that was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Removed {
    /// How many snapshots it had.
    pub snapshots: u64,
    /// Bytes of their files.
    pub freed_bytes: u64,
    /// How long they stay at least, in seconds, where other hosts may read them.
    pub grace_seconds: Option<u64>,
}
