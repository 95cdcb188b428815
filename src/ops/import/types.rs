//! What was imported.

use crate::repo::manifest::Snapshot;
use serde::Serialize;

/// A snapshot that was taken in.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Imported {
    /// Name of the image.
    pub name: String,
    /// The snapshot.
    pub snapshot: Snapshot,
    /// False if it was there already.
    pub is_new: bool,
    /// True if the image is new, too.
    pub is_new_image: bool,
}
