//! What is to be restored, to where, and what was.

use crate::base::setters::setters;
use crate::base::units::{ByteRange, NamedBlocks};
use crate::image::write::Target;
use crate::repo::manifest::Snapshot;
use crate::repo::reference::At;
use crate::view::Restored;
use serde::Serialize;
use std::fmt;
use std::path::Path;

/// A restore that a user wants.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct RestoreRequest {
    /// Name of the image.
    pub name: String,
    /// Which snapshot.
    pub at: At,
    /// A part of the image; otherwise all of it.
    pub range: Option<ByteRange>,
    /// Write over a file or a device that is there.
    pub force: bool,
    /// Zeros where the image could not be read when the snapshot was taken; otherwise that is an error.
    pub accept_unread: bool,
}

impl RestoreRequest {
    /// Of the newest snapshot of the image `name`, all of it.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    setters! {
        /// Which snapshot.
        at: At,
        /// A part of the image; otherwise all of it.
        range: Option<ByteRange>,
        /// Write over a file or a device that is there.
        force: bool,
        /// Zeros where the image could not be read when the snapshot was taken; otherwise that is an error.
        accept_unread: bool,
    }
}

/// Where to.
pub enum RestoreTarget<'a> {
    /// A new file, which appears whole or not at all; or a device. If all of the image is restored, a new
    /// file gets the owner, mode and extended attributes of the image file as far as the caller may set
    /// them; otherwise mode 0600. One that is replaced keeps its own.
    Path(&'a Path),
    /// Something else that takes bytes.
    Target(&'a mut dyn Target),
}

impl fmt::Debug for RestoreTarget<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => f.debug_tuple("Path").field(path).finish(),
            Self::Target(_) => f.write_str("Target"),
        }
    }
}

/// What became of a restore.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct RestoreOutcome {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// What was copied.
    pub restored: Restored,
    /// Blocks that are zeros because they were never read.
    pub unread: NamedBlocks,
    /// Bytes at the end of a device that is longer, which were not touched.
    pub untouched_bytes: u64,
}
