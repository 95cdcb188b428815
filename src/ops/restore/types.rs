//! What is to be restored, to where, and what was.

use crate::base::setters::setters;
use crate::base::units::{ByteRange, NamedBlocks};
use crate::image::ImageFormat;
use crate::image::nbd::NbdUri;
use crate::image::write::{ClusterCompression, Target};
use crate::repo::group::Members;
use crate::repo::manifest::Snapshot;
use crate::repo::reference::At;
use crate::view::{Restored, Samples};
use serde::Serialize;
use std::fmt;
use std::path::{Path, PathBuf};
use uuid::Uuid;

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
    /// The target is there, and only what differs is written to it, where it lies. Half of what is sampled
    /// must be the same already, unless `force` is set.
    pub update: bool,
    /// Do not read the target of an update if this host has restored it and it is unchanged since.
    pub trust_target: bool,
    /// A raw file or device whose blocks are taken where they are the same, which may change meanwhile.
    pub seed: Option<PathBuf>,
    /// How the disk is to lie in the file: raw or qcow2. Otherwise as the name of a new file ends (`.qcow2`),
    /// or as a file is that is to be updated.
    pub format: Option<ImageFormat>,
    /// Compress the clusters of a new qcow2.
    pub cluster_compression: Option<ClusterCompression>,
    /// Read the files that a qcow2 is based on which is to be updated: who wrote its header chose them.
    pub backing_ok: bool,
    /// A commit that the image has, or follows; otherwise nothing is restored.
    pub at_least: Option<Uuid>,
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
        /// Write only what differs to a target that is there.
        update: bool,
        /// Do not read a target that this host has restored and that is unchanged since.
        trust_target: bool,
        /// A raw file or device whose blocks are taken where they are the same.
        seed: Option<PathBuf>,
        /// How the disk is to lie in the file: raw or qcow2.
        format: Option<ImageFormat>,
        /// Compress the clusters of a new qcow2.
        cluster_compression: Option<ClusterCompression>,
        /// Read the files that a qcow2 is based on which is to be updated.
        backing_ok: bool,
        /// A commit that the image has, or follows; otherwise nothing is restored.
        at_least: Option<Uuid>,
    }
}

/// Where to.
pub enum RestoreTarget<'a> {
    /// A new file, which appears whole or not at all; or a device. If all of the image is restored, a new
    /// file gets the owner, mode and extended attributes of the image file as far as the caller may set
    /// them; otherwise mode 0600. One that is replaced keeps its own.
    Path(&'a Path),
    /// An export of an NBD server, which keeps its length.
    Nbd(&'a NbdUri),
    /// Something else that takes bytes.
    Target(&'a mut dyn Target),
}

impl fmt::Debug for RestoreTarget<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => f.debug_tuple("Path").field(path).finish(),
            Self::Nbd(uri) => f.debug_tuple("Nbd").field(uri).finish(),
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
    /// How a target that was there was updated; none of one that was written as a whole.
    pub update: Option<UpdateOutcome>,
    /// What became of the group of the snapshot, if it has one.
    pub group: Option<Members>,
}

/// What became of a restore of a group.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct RestoredGroup {
    /// What was restored, by the names of the images.
    pub members: Vec<RestoredMember>,
    /// What became of the group of the snapshot, if it has one: what is missing is not restored.
    pub group: Option<Members>,
}

/// A snapshot of a group that was restored.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct RestoredMember {
    /// Name of its image.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// What became of it.
    pub outcome: RestoreOutcome,
}

/// How a target that was there became the snapshot.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct UpdateOutcome {
    /// Bytes that differed and were written or zeroed.
    pub written_bytes: u64,
    /// Bytes of the image that did not differ.
    pub matched_bytes: u64,
    /// Bytes read from the target to find what differs; holes are not read.
    pub read_bytes: u64,
    /// What was compared before the first write; none with `force`, and where the target was trusted.
    pub samples: Option<Samples>,
    /// The snapshot that the target was known to be, so that it was not read.
    pub trusted: Option<u64>,
    /// Why the target was read although it was to be trusted.
    pub not_trusted: Option<String>,
}
