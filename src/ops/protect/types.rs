//! What was protected.

use crate::repo::manifest::Snapshot;
use serde::Serialize;

/// A snapshot that is protected now, or is not any more.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Protected {
    /// Name of its image.
    pub name: String,
    /// What the manifest says of it now.
    pub snapshot: Snapshot,
}
