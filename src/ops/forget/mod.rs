//! The verb *forget*: removes an image with all its snapshots.

use crate::base::error::Result;
use crate::base::events::{Context, WarningId};
use crate::repo::Repository;
use crate::repo::clones::remove_all_clones;
use crate::repo::session::{remove_image, write};

/// Removes an image with all its snapshots. Gives their number and the bytes of their files.
pub fn run(repository: &Repository, name: &str, context: &Context) -> Result<(u64, u64)> {
    let writer = write(repository, name, context)?;
    let snapshots = &writer.manifest.snapshots;
    let freed = (snapshots.len() as u64, snapshots.iter().map(|s| s.file_bytes).sum());
    // First: of an image that is gone, nobody would know them.
    remove_all_clones(repository, &writer.manifest, context);
    if !remove_image(repository, writer)? {
        let place = repository.store.location(name);
        let what = format!(
            "{place} stays: there is something in it, or mounted on it, that imgsnap has not put there"
        );
        context.warn(WarningId::FolderStays, what);
    }
    Ok(freed)
}
