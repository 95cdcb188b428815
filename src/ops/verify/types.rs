//! What is to be verified, and what was found.

use crate::base::message::Message;
use crate::base::named::named;
use crate::base::units::{Geometry, NamedBlocks};
use crate::repo::reference::At;
use serde::Serialize;

/// What is to be verified.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum VerifyScope {
    /// All images.
    All,
    /// One image.
    Image(String),
    /// One snapshot, with all that it depends on.
    Snapshot(String, At),
}

named! {
    /// Which part of a repository is damaged.
    pub enum DamageKind {
        /// The manifest of an image.
        Manifest = "manifest",
        /// A delta file as a whole: it is missing, or another one, or its header or footer is damaged.
        File = "file",
        /// Stored bytes that no block needs.
        Record = "record",
        /// A page of the table of a delta file.
        Table = "table",
        /// Blocks in a delta file.
        Blocks = "blocks",
        /// What belongs to a snapshot and is not of the image.
        Attachment = "attachment",
        /// Blocks in a base image.
        BaseImage = "base-image",
        /// All bytes are what was written, but they are not the image that was taken.
        ImageDigest = "image-digest",
    }
}

/// Something that is damaged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Damage {
    /// What it is.
    pub kind: DamageKind,
    /// The snapshot whose file it is: `NAME@N`.
    pub snapshot: String,
    /// What is wrong, and where.
    pub message: Message,
    /// The snapshots that depend on this file, and may need what is damaged: `NAME@N`, this one first.
    pub affects: Vec<String>,
}

/// What a snapshot has lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Loss {
    /// `NAME@N`.
    pub snapshot: String,
    /// Block size, and length of the image.
    pub geometry: Geometry,
    /// Blocks that cannot be restored; none if nothing of it can.
    pub blocks: Option<NamedBlocks>,
}

/// A snapshot of which not all could be checked: it may be sound.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Unchecked {
    /// `NAME@N`; of a manifest, the name of its image.
    pub snapshot: String,
    /// Why.
    pub message: Message,
}

/// The outcome of a verification.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Verified {
    /// Snapshots checked.
    pub snapshots: u64,
    /// Blocks decoded and compared with their digest; none in a quick verification.
    pub blocks: u64,
    /// Bytes of delta files read.
    pub stored_bytes: u64,
    /// What is damaged: it was read, and is not what was written.
    pub damaged: Vec<Damage>,
    /// What could not be checked. Nothing is said of it, nor of what depends on it.
    pub unchecked: Vec<Unchecked>,
    /// What that means for each snapshot that has lost something; not known after a quick verification.
    pub lost: Vec<Loss>,
    /// The other snapshots of the images that have damage: nothing is lost of them.
    pub whole: Vec<String>,
}
