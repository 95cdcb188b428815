//! What was flattened.

use crate::repo::manifest::Snapshot;
use serde::Serialize;

/// A snapshot that was made a base.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Flattened {
    /// What it was.
    pub before: Snapshot,
    /// And is now: the same, if it was a base already.
    pub after: Snapshot,
    /// Bytes of dropped ancestors that nothing depends on any more.
    pub freed_bytes: u64,
}
