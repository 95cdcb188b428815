//! Space that is kept for those who free space: that takes a commit, for which a full disk has no space.

use crate::base::error::{Result, best_effort};
use crate::repo::manifest::Manifest;
use crate::store::{ReserveKept, Store};

/// Also for the markers, locks and folders that a commit may need.
const MIN_BYTES: u64 = 1 << 20;

/// Keeps as much as twice the manifest: one is written before the one that it follows is removed.
pub(crate) fn keep_reserve(store: &dyn Store, manifest: &Manifest, of: ReserveKept) {
    let bytes = manifest.read.as_ref().map_or(0, |read| read.bytes);
    // Without it all else works; the next commit tries again.
    best_effort(store.keep_reserve((2 * bytes.max(1)).next_multiple_of(MIN_BYTES), of));
}

/// Does something that frees space, or is needed before that; where the disk is full, once more with what is
/// kept for that.
pub(crate) fn with_reserve<T>(store: &dyn Store, mut work: impl FnMut() -> Result<T>) -> Result<T> {
    match work() {
        Err(e) if e.is_storage_full() && is_released(store) => work(),
        other => other,
    }
}

/// Gives back what is kept; false if nothing is.
pub(crate) fn is_released(store: &dyn Store) -> bool {
    // Whatever is wrong with it, the disk is full.
    store.release_reserve().unwrap_or(false)
}
