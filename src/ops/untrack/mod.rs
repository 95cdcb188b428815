//! The verb *untrack*: removes the clones of an image.

use crate::base::error::Result;
use crate::base::events::Context;
use crate::repo::Repository;
use crate::repo::clones::{clones_beside, list_clones};
use crate::repo::session::write_to_free;
use crate::tracking::CloneUse;

/// Removes all clones of an image: its next snapshot reads all of it. Returns what was removed.
pub fn run(repository: &Repository, name: &str, context: &Context) -> Result<Vec<CloneUse>> {
    let writer = write_to_free(repository, name, context)?;
    let clones = list_clones(repository, &writer.manifest, &writer.head)?;
    let Some(source) = &writer.head.source else { return Ok(Vec::new()) };
    let removed =
        clones_beside(repository, &writer.manifest, Some(source)).remove_but(None, context)?;
    let is_removed = |clone: &CloneUse| removed.iter().any(|found| found.path == clone.path);
    Ok(clones.reference.into_iter().chain(clones.orphans).filter(is_removed).collect())
}
