//! What is kept of the objects of a sealed store while a program runs.

use super::object::Object;
use quick_cache::sync::Cache;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is kept of its objects.
pub(super) struct Kept {
    pub objects: Cache<String, Arc<Opened>>,
    /// Chunks that were opened for somebody who needed a part of them.
    pub chunks: Cache<(u64, u64), Arc<Vec<u8>>>,
    /// Sealed lengths of delta files that were listed: on a server it takes a request to ask for one.
    sizes: Mutex<HashMap<String, u64>>,
}

/// An object that is never another one under its name, but for one that is mended.
pub(super) struct Opened {
    pub object: Object,
    /// Under which its chunks are kept.
    pub number: u64,
}

/// How many keys of objects are kept: as many as a long chain has files.
const OBJECTS: usize = 4096;
/// How many chunks are: 4 MiB.
const CHUNKS: usize = 64;

impl Kept {
    pub fn new() -> Self {
        let (objects, chunks) = (Cache::new(OBJECTS), Cache::new(CHUNKS));
        Self { objects, chunks, sizes: Mutex::default() }
    }

    pub fn sizes(&self) -> MutexGuard<'_, HashMap<String, u64>> {
        self.sizes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn forget(&self, name: &str) {
        self.objects.remove(name);
        self.sizes().remove(name);
    }
}
