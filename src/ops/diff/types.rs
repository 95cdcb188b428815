//! What is to be compared.

use crate::base::setters::setters;
use crate::image::{ImageFormat, ImageUri, ReadBy};
use crate::repo::reference::Reference;

/// One of the two disks that are compared.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiffSide {
    /// A snapshot.
    Snapshot(Reference),
    /// An image.
    Image(DiffImage),
}

/// An image that is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiffImage {
    /// The image.
    pub image: ImageUri,
    /// How the disk lies in it. Otherwise as is recorded of a live image that is compared with a snapshot of
    /// it, and of others as their magic says.
    pub format: Option<ImageFormat>,
    /// How the disk may be read.
    pub by: ReadBy,
}

impl DiffImage {
    /// A raw or qcow2 image that refers to no other files.
    pub fn new(image: impl Into<ImageUri>) -> Self {
        Self { image: image.into(), format: None, by: ReadBy::default() }
    }

    setters! {
        /// How the disk lies in it.
        format: Option<ImageFormat>,
        /// How the disk may be read.
        by: ReadBy,
    }
}
