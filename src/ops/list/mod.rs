//! The verb *list*: an image, its snapshots, and what is known of its live file.

use crate::base::error::Result;
use crate::base::events::Context;
use crate::repo::Repository;
use crate::repo::clones::clones_or_warn;
use crate::repo::head::Head;
use crate::repo::manifest::Manifest;
use crate::repo::session::read;
use crate::tracking::Clones;
use serde::Serialize;

/// An image and what is known of its live file.
#[derive(Serialize)]
#[non_exhaustive]
pub struct Listing {
    /// Its snapshots.
    pub manifest: Manifest,
    /// The head state.
    pub head: Head,
    /// The clones beside its live file.
    pub clones: Clones,
}

/// An image with its snapshots.
pub fn run(repository: &Repository, name: &str, context: &Context) -> Result<Listing> {
    let reader = read(repository, name, context)?;
    let head = reader.head().clone();
    let clones = clones_or_warn(repository, reader.manifest(), context);
    Ok(Listing { manifest: reader.manifest().clone(), head, clones })
}
