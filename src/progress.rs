//! How long work tells how far it is, and how it is told to stop.

use crate::error::{Error, ErrorKind, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Sees how far a piece of work is. Called from several threads.
pub trait Progress: Send + Sync {
    /// A phase begins; `total_bytes` are to be covered.
    fn begin(&self, phase: &str, total_bytes: u64);
    /// So many more bytes are covered.
    fn advance(&self, bytes: u64);
    /// The phase is over.
    fn end(&self);
    /// Something that the user should know, though the work goes on.
    fn warn(&self, message: &str);
    /// A step worth a line to somebody who wants to see what happens.
    fn note(&self, message: &str);
}

/// What every verb is given: whom to tell, when to stop, how many threads.
#[derive(Clone)]
pub struct Context {
    progress: Arc<dyn Progress>,
    stop: Arc<AtomicBool>,
    threads: usize,
}

/// More threads than this add memory and no speed: two to four saturate a memory channel.
const MAX_THREADS: usize = 16;

impl Context {
    /// `stop` may be set at any time, also by a signal handler.
    pub fn new(progress: Arc<dyn Progress>, stop: Arc<AtomicBool>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { progress, stop, threads: cores.min(MAX_THREADS) }
    }

    /// Tells nobody and never stops.
    pub fn silent() -> Self {
        Self::new(Arc::new(Silent), Arc::new(AtomicBool::new(false)))
    }

    /// The same with another number of threads, 1 to 16.
    #[must_use]
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads.clamp(1, MAX_THREADS);
        self
    }

    /// How many threads work.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// How many items of up to `item_bytes` bytes may be under way at once: enough for the threads,
    /// within a budget, so that memory does not grow with them.
    pub fn in_flight(&self, item_bytes: u64) -> usize {
        const BUDGET_BYTES: u64 = 14 << 20;
        let fit = BUDGET_BYTES / item_bytes.max(1);
        (fit.max(2) as usize).min(self.threads + 2)
    }

    /// Whom to tell.
    pub fn progress(&self) -> &dyn Progress {
        self.progress.as_ref()
    }

    /// An error of kind `Interrupted` once the user asked to stop.
    pub fn check(&self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Interrupted, "interrupted"));
        }
        Ok(())
    }
}

struct Silent;

impl Progress for Silent {
    fn begin(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64) {}
    fn end(&self) {}
    fn warn(&self, _: &str) {}
    fn note(&self, _: &str) {}
}
