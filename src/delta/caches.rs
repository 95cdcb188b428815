//! What is kept in memory of open files: decoded frames and pages, each within a fixed budget.

use crate::base::read_limit::ReadLimits;
use crate::format::{ChildRef, IndexPage, TablePage};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use uuid::Uuid;

/// Decoded frames and pages, each within a fixed budget, shared by all files that are open.
#[derive(Clone)]
pub struct Caches {
    pub(super) pages: Arc<WeighedCache<Page>>,
    pub(super) frames: Arc<WeighedCache<Arc<Vec<u8>>>>,
    traffic: Arc<Counters>,
    pub(super) limits: ReadLimits,
}

/// What went through open files so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Bytes read from files.
    pub read_bytes: u64,
    /// Bytes that frames were decoded to.
    pub decoded_bytes: u64,
}

#[derive(Default)]
struct Counters {
    read_bytes: AtomicU64,
    decoded_bytes: AtomicU64,
}

impl Caches {
    /// The same for files that are read no faster than that.
    #[must_use]
    pub fn reading_within(mut self, limits: ReadLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Lets go of what is known of a file, which was damaged and is not any more.
    pub fn forget(&self, file_id: Uuid) {
        self.pages.retain(|(id, _), _| *id != file_id);
        self.frames.retain(|(id, _), _| *id != file_id);
    }

    pub(super) fn count_read(&self, bytes: usize) {
        self.traffic.read_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn count_decoded(&self, bytes: usize) {
        self.traffic.decoded_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// What went through the files that share these caches.
    pub fn traffic(&self) -> Traffic {
        Traffic {
            read_bytes: self.traffic.read_bytes.load(Ordering::Relaxed),
            decoded_bytes: self.traffic.decoded_bytes.load(Ordering::Relaxed),
        }
    }
}

/// By file and offset.
pub(super) type WeighedCache<T> = Cache<(Uuid, u64), T, Weigh>;

const PAGE_BUDGET_BYTES: u64 = 8 << 20;
const FRAME_BUDGET_BYTES: u64 = 16 << 20;

impl Default for Caches {
    fn default() -> Self {
        Self {
            pages: Arc::new(Cache::with_weighter(500, PAGE_BUDGET_BYTES, Weigh)),
            frames: Arc::new(Cache::with_weighter(200, FRAME_BUDGET_BYTES, Weigh)),
            traffic: Arc::default(),
            limits: ReadLimits::default(),
        }
    }
}

/// A page of the tree.
#[derive(Clone)]
pub(super) enum Page {
    Table(Arc<TablePage>),
    Index(Arc<IndexPage>, u32),
}

#[derive(Clone)]
pub(super) struct Weigh;

impl Weighter<(Uuid, u64), Page> for Weigh {
    fn weight(&self, _: &(Uuid, u64), page: &Page) -> u64 {
        match page {
            Page::Table(page) => page.memory_bytes(),
            Page::Index(page, _) => (page.children.len() * size_of::<ChildRef>()) as u64,
        }
    }
}

impl Weighter<(Uuid, u64), Arc<Vec<u8>>> for Weigh {
    fn weight(&self, _: &(Uuid, u64), frame: &Arc<Vec<u8>>) -> u64 {
        frame.len() as u64
    }
}
