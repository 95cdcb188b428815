//! The verb *list*: an image, its snapshots, and what is known of its live file.

pub mod domains;
pub mod types;

use crate::base::error::Result;
use crate::base::events::Context;
use crate::ops::list::types::Listing;
use crate::repo::Repository;
use crate::repo::clones::clones_or_warn;
use crate::repo::group::Images;
use crate::repo::session::look;

/// An image with its snapshots.
pub fn run(repository: &Repository, name: &str, context: &Context) -> Result<Listing> {
    let (manifest, head) = look(repository, name, context)?;
    let clones = clones_or_warn(repository, &manifest, &head, context);
    let mut images = Images::of(repository, context);
    let groups = manifest.snapshots.iter().map(|s| images.members_of(&manifest, s)).collect();
    Ok(Listing { manifest, groups, head, clones })
}
