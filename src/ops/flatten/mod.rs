//! The verb *flatten*: makes a snapshot a base, from the repository alone.

pub mod types;

use crate::base::error::Result;
use crate::base::events::{Context, WarningId};
use crate::base::free_space::check_free_space;
use crate::base::message::message;
use crate::ops::flatten::types::Flattened;
use crate::repo::Repository;
use crate::repo::compact::rewrite;
use crate::repo::files::open_chain;
use crate::repo::garbage::collect_garbage;
use crate::repo::pins::Below;
use crate::repo::reference::{self, At};
use crate::repo::session::write;
use std::collections::HashSet;

/// Makes a snapshot a base: a synthetic full, made from the repository without a look at the image.
/// Its ancestors stay as they are.
pub fn run(repository: &Repository, name: &str, at: &At, context: &Context) -> Result<Flattened> {
    let mut writer = write(repository, name, context)?;
    let before = reference::find(&writer.manifest, &writer.head, at)?.clone();
    if before.is_base() && !before.is_by_reference() {
        return Ok(Flattened { after: before.clone(), before, freed_bytes: 0 });
    }
    let chain = open_chain(repository, &writer.manifest, before.id)?;
    let (layers, block_size) = (chain.layers().clone(), chain.geometry().block_size);
    drop(chain);
    // Not more than all that it depends on, and what is in a base image.
    let elsewhere = layers.iter().filter(|delta| delta.base_image().is_some());
    let blocks = elsewhere.map(|delta| delta.footer().counts.data_blocks).sum::<u64>();
    let elsewhere = blocks.saturating_mul(block_size.bytes().into());
    let most = layers.iter().map(|d| d.stored_bytes()).sum::<u64>() + elsewhere;
    if repository.store.free_space().is_some_and(|free_bytes| free_bytes < most) {
        let needed = crate::merge::layer_use(&layers, context)?;
        let needed = needed.iter().map(|of| of.live_bytes).sum::<u64>() + elsewhere + (1 << 20);
        check_free_space(
            repository.store.free_space(),
            needed,
            &repository.location(),
            "flattening",
        )?;
    }
    drop(layers);
    let below = Below::of(&writer.manifest);
    let (after, unneeded) =
        rewrite(repository, &mut writer, before.id, None, &HashSet::new(), context)?;
    writer.release_reader_lock();
    if let Err(error) = collect_garbage(repository, &mut writer.manifest, context) {
        context.warn(WarningId::CleanupDelayed, message![error, "; the next snapshot tries again"]);
    }
    let now = writer.manifest.clone();
    drop(writer);
    below.release(repository, Some(&now), context);
    let freed_bytes = unneeded.iter().map(|s| s.file_bytes).sum::<u64>() + before.file_bytes;
    Ok(Flattened { before, after, freed_bytes })
}
