//! Where sound blocks come from, and what was repaired with them.

use crate::base::error::Result;
use crate::base::message::Message;
use crate::image::{ImageUri, Source};
use crate::repo::Repository;
use crate::repo::config::Defaults;
use crate::repo::manifest::Manifest;
use serde::Serialize;
use std::fmt;
use std::sync::Arc;

/// What a repair did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Repaired {
    /// The manifest was rebuilt; none if it was sound.
    pub rebuilt: Option<Rebuilt>,
    /// Snapshots that were given another number, because none was left for those after them: the old one and
    /// the new one.
    pub renumbered: Vec<(u64, u64)>,
    /// Snapshots that the manifest names and whose files are not there, or are others: `NAME@N`, and why.
    pub missing: Vec<(String, Message)>,
    /// Bases whose base image is missing: `NAME@N`, and why.
    pub base_images: Vec<(String, Message)>,
    /// Files that an earlier repair could not use, and that are of no use yet.
    pub unused: Vec<String>,
}

/// A configuration that was rebuilt.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RestoredConfig {
    /// The number that it was given.
    pub number: u64,
    /// What it was rebuilt from.
    pub origin: ConfigOrigin,
    /// With what new bases are made now.
    pub defaults: Defaults,
}

/// What a configuration was rebuilt from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigOrigin {
    /// The one with that number: whatever was changed after it is lost.
    Earlier(u64),
    /// What an older program wrote.
    OlderProgram,
    /// The delta files: the rules of `prune`, and the other settings, are lost.
    DeltaFiles,
}

/// A manifest that was rebuilt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Rebuilt {
    /// How many snapshots it names.
    pub snapshots: u64,
    /// Files that could not be used, and why. They are kept.
    pub unused: Vec<(String, Message)>,
    /// Numbers of snapshots without the label that they were taken with, because a later one has it.
    pub unlabelled: Vec<(u64, String)>,
    /// Where the live file is, if that was still to be found.
    #[serde(with = "crate::repo::manifest::image_uri")]
    pub source: Option<ImageUri>,
}

impl Rebuilt {
    pub(crate) fn of(
        manifest: &Manifest,
        unused: Vec<(String, Message)>,
        taken: Vec<(u64, String)>,
    ) -> Self {
        let is_listed =
            |(number, _): &(u64, String)| manifest.snapshots.iter().any(|s| s.number == *number);
        Self {
            snapshots: manifest.snapshots.len() as u64,
            unused,
            unlabelled: taken.into_iter().filter(is_listed).collect(),
            source: manifest.source.clone(),
        }
    }
}

/// Where to look for what is damaged.
#[derive(Clone)]
pub enum MendSource {
    /// Another repository.
    Repository(Arc<Repository>),
    /// An image.
    Image(Arc<dyn Source + Send>),
}

impl fmt::Debug for MendSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Repository(repository) => f.debug_tuple("Repository").field(repository).finish(),
            Self::Image(image) => f.debug_tuple("Image").field(&image.name()).finish(),
        }
    }
}

/// How a damaged file was put right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MendedBy {
    /// The same file was there.
    Copy,
    /// The same snapshot was there; its file was written anew.
    Snapshot,
    /// So many different blocks were found; the file was written anew.
    Blocks(u64),
}

/// What became of a damaged file.
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct Mended {
    /// `NAME@N`.
    pub snapshot: String,
    /// How it was put right; or why it was not.
    pub outcome: Result<MendedBy>,
}
