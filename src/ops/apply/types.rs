//! What is to be made of delta files, and what was.

use crate::base::digest::ImageDigest;
use crate::base::setters::setters;
use crate::image::write::Target;
use serde::Serialize;
use std::fmt;
use std::path::{Path, PathBuf};

/// Delta files that are to be made an image.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ApplyRequest {
    /// The files, the oldest first.
    pub deltas: Vec<PathBuf>,
    /// The image that they begin from; none if the first one is a full one.
    pub base: Option<PathBuf>,
    /// Replace a file that is there.
    pub force: bool,
}

impl ApplyRequest {
    /// Of delta files, the oldest first.
    pub fn new(deltas: Vec<PathBuf>) -> Self {
        Self { deltas, ..Self::default() }
    }

    setters! {
        /// The image that they begin from; none if the first one is a full one.
        base: Option<PathBuf>,
        /// Replace a file that is there.
        force: bool,
    }
}

/// Where the image goes.
pub enum ApplyTarget<'a> {
    /// The image that the deltas begin from is changed where it lies.
    InPlace,
    /// A new file.
    Path(&'a Path),
    /// Somewhere else.
    Target(&'a mut dyn Target),
}

impl fmt::Debug for ApplyTarget<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InPlace => f.write_str("InPlace"),
            Self::Path(path) => f.debug_tuple("Path").field(path).finish(),
            Self::Target(_) => f.write_str("Target"),
        }
    }
}

/// What was made of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Applied {
    /// Number of the snapshot that the image is.
    pub number: u64,
    /// Length of the image.
    pub image_bytes: u64,
    /// Bytes written: all that is data in a new file, what the deltas have in place.
    pub written_bytes: u64,
    /// Digest of the image, which was proved.
    pub image_digest: ImageDigest,
}
