//! What was removed with an image.

use serde::Serialize;

/// An image that was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Forgotten {
    /// How many snapshots it had.
    pub snapshots: u64,
    /// Bytes of their files.
    pub freed_bytes: u64,
}
