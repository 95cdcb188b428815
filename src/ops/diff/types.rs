//! What is to be compared.

use crate::image::ImageUri;
use crate::repo::reference::Reference;

/// One of the two disks that are compared.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiffSide {
    /// A snapshot.
    Snapshot(Reference),
    /// An image.
    Image(ImageUri),
}
