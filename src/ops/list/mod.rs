//! The verb *list*: an image, its snapshots, and what is known of its live file.

pub mod types;

use crate::base::error::Result;
use crate::base::events::Context;
use crate::ops::list::types::Listing;
use crate::repo::Repository;
use crate::repo::clones::clones_or_warn;
use crate::repo::session::read;

/// An image with its snapshots.
pub fn run(repository: &Repository, name: &str, context: &Context) -> Result<Listing> {
    let reader = read(repository, name, context)?;
    let head = reader.head().clone();
    let clones = clones_or_warn(repository, reader.manifest(), &head, context);
    Ok(Listing { manifest: reader.manifest().clone(), head, clones })
}
