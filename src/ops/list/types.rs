//! What is listed.

use crate::repo::head::Head;
use crate::repo::manifest::Manifest;
use crate::tracking::Clones;
use serde::Serialize;

/// An image and what is known of its live file.
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct Listing {
    /// Its snapshots.
    pub manifest: Manifest,
    /// The head state.
    pub head: Head,
    /// The clones beside its live file.
    pub clones: Clones,
}
