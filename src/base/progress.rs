//! How long work tells how far it is, and how it is told to stop.

use crate::base::error::{Error, ErrorKind, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

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
    sharing: Arc<Sharing>,
}

/// Works that go on at once and share the threads and the memory.
struct Sharing {
    /// Works that have not ended yet, those that have not begun included.
    left: AtomicUsize,
    at_once: usize,
}

impl Sharing {
    fn new(works: usize, at_once: usize) -> Arc<Self> {
        Arc::new(Self { left: AtomicUsize::new(works), at_once })
    }
}

/// More threads than this add memory and no speed: two to four saturate a memory channel.
const MAX_THREADS: usize = 16;

impl Context {
    /// `stop` may be set at any time, also by a signal handler.
    pub fn new(progress: Arc<dyn Progress>, stop: Arc<AtomicBool>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { progress, stop, threads: cores.min(MAX_THREADS), sharing: Sharing::new(1, 1) }
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

    /// The same for `works` works of which `at_once` go on at the same time: each has a part of the
    /// threads and of the memory. When fewer are left the parts become larger, and never smaller.
    #[must_use]
    pub fn shared_among(mut self, works: usize, at_once: usize) -> Self {
        self.sharing = Sharing::new(works, at_once);
        self
    }

    /// One of the works that share has ended: the others have its part.
    pub fn leave(&self) {
        self.sharing.left.fetch_sub(1, Ordering::Relaxed);
    }

    /// The same for a work that is `bytes` bytes of the phase that has begun, and begins none itself.
    #[must_use]
    pub fn part_of_phase(mut self, bytes: u64) -> Self {
        self.progress = Arc::new(Part { whole: self.progress, rest: AtomicU64::new(bytes) });
        self
    }

    /// The part that this work has of something there is only once, at least 1. With time it may
    /// become more.
    pub fn share_of(&self, whole: u64) -> u64 {
        let left = self.sharing.left.load(Ordering::Relaxed);
        (whole / left.clamp(1, self.sharing.at_once.max(1)) as u64).max(1)
    }

    /// How many threads this work has: its share of them all.
    pub fn threads(&self) -> usize {
        self.share_of(self.threads as u64) as usize
    }

    /// How many threads all works that share have together.
    pub fn all_threads(&self) -> usize {
        self.threads
    }

    /// How many items of up to `item_bytes` bytes may be under way at once: enough for the threads,
    /// within a budget, so that memory does not grow with them.
    pub fn in_flight(&self, item_bytes: u64) -> usize {
        const BUDGET_BYTES: u64 = 14 << 20;
        self.in_flight_of(BUDGET_BYTES, item_bytes)
    }

    /// The same with another budget, of which this work has its share.
    pub fn in_flight_of(&self, budget_bytes: u64, item_bytes: u64) -> usize {
        let fit = self.share_of(budget_bytes) / item_bytes.max(1);
        (fit.max(2) as usize).min(self.threads() + 2)
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

/// A part of a phase. What a work did not cover, because it failed or had nothing to do, counts as
/// covered when it is over: otherwise the whole would never be.
struct Part {
    whole: Arc<dyn Progress>,
    rest: AtomicU64,
}

impl Progress for Part {
    fn begin(&self, _: &str, _: u64) {}

    fn advance(&self, bytes: u64) {
        let less = |rest: u64| Some(rest.saturating_sub(bytes));
        let order = Ordering::Relaxed;
        let rest = self.rest.fetch_update(order, order, less).unwrap_or_default();
        self.whole.advance(bytes.min(rest));
    }

    fn end(&self) {}

    fn warn(&self, message: &str) {
        self.whole.warn(message);
    }

    fn note(&self, message: &str) {
        self.whole.note(message);
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.whole.advance(*self.rest.get_mut());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_and_memory_are_divided_among_those_that_are_left() {
        let alone = Context::silent().with_threads(16);
        assert_eq!((alone.threads(), alone.in_flight(1 << 20)), (16, 14));
        let shared = alone.clone().shared_among(6, 4);
        let mut parts = Vec::new();
        for left in (0..=6).rev() {
            assert_eq!(shared.all_threads(), 16);
            parts.push((left, shared.threads(), shared.in_flight(1 << 20)));
            if left > 0 {
                shared.clone().leave();
            }
        }
        let wanted =
            [(6, 4, 3), (5, 4, 3), (4, 4, 3), (3, 5, 4), (2, 8, 7), (1, 16, 14), (0, 16, 14)];
        assert_eq!(parts, wanted);
        assert_eq!(alone.threads(), 16, "who shares takes nothing from who does not");
    }

    #[test]
    fn all_shares_together_are_not_more_than_there_is() {
        for threads in 1..=16 {
            for at_once in 1..=threads.min(4) {
                let shared = Context::silent().with_threads(threads).shared_among(9, at_once);
                assert!(shared.threads() * at_once <= threads, "{threads} {at_once}");
                assert!(shared.share_of(24 << 20) * at_once as u64 <= 24 << 20);
                // Two at least: with one, nothing would be made while it is used up.
                assert_eq!(shared.in_flight(u64::MAX), 2);
            }
        }
    }

    #[derive(Default)]
    struct Count(AtomicU64);

    impl Progress for Count {
        fn begin(&self, _: &str, _: u64) {
            panic!("a part begins nothing");
        }
        fn advance(&self, bytes: u64) {
            self.0.fetch_add(bytes, Ordering::Relaxed);
        }
        fn end(&self) {
            panic!("a part ends nothing");
        }
        fn warn(&self, _: &str) {}
        fn note(&self, _: &str) {}
    }

    #[test]
    fn parts_of_a_phase_cover_it_whatever_becomes_of_them() {
        let count = Arc::new(Count::default());
        let whole = Context::new(count.clone(), Arc::default());
        for advances in [&[][..], &[30], &[30, 70], &[30, 70, 10], &[200]] {
            count.0.store(0, Ordering::Relaxed);
            let part = whole.clone().part_of_phase(100);
            part.progress().begin("scan", 100);
            advances.iter().for_each(|bytes| part.progress().advance(*bytes));
            part.progress().end();
            drop(part);
            assert_eq!(count.0.load(Ordering::Relaxed), 100, "{advances:?}");
        }
    }
}
