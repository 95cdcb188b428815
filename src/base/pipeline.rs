//! An ordered parallel map with bounded memory: the one shape of concurrency in this program.
//!
//! ```text
//! produce (one at a time, in order) -> work (many threads) -> consume (the caller's thread, in order)
//! ```
//!
//! At most `in_flight` items exist between `produce` and the end of `consume`. The result does not
//! depend on the number of threads: `consume` sees items in the order in which they were produced,
//! and the first error in that order ends the work.

use crate::base::error::{Error, ErrorKind, Result};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, Scope, ScopedJoinHandle};

/// Starts a thread.
///
/// # Errors
/// If the system has no more of them.
pub fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>> {
    Builder::new().spawn_scoped(scope, work).map_err(|e| {
        Error::io("cannot start a thread", e)
            .hint("stop other programs, or raise the limits on processes and memory")
    })
}

struct State<P, T> {
    produce: P,
    next: u64,
    consumed: u64,
    /// No more is to be produced: the end, an error, or the consumer is gone.
    ended: bool,
    done: BTreeMap<u64, Result<T>>,
}

struct Shared<P, T> {
    state: Mutex<State<P, T>>,
    changed: Condvar,
}

impl<P, T> Shared<P, T> {
    fn lock(&self) -> MutexGuard<'_, State<P, T>> {
        // A worker that panicked took its item with it; `PanicGuard` reports that, so the lock stays
        // usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, guard: MutexGuard<'a, State<P, T>>) -> MutexGuard<'a, State<P, T>> {
        self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a panic becomes.
fn fault() -> Error {
    Error::new(ErrorKind::Internal, "a worker thread failed; this is a bug in imgsnap")
}

/// Delivers an error for the item of a worker that panics, so that nobody waits for it for ever.
struct PanicGuard<'a, P, T> {
    shared: &'a Shared<P, T>,
    sequence: u64,
    delivered: bool,
}

impl<P, T> Drop for PanicGuard<'_, P, T> {
    fn drop(&mut self) {
        if !self.delivered {
            let mut state = self.shared.lock();
            state.ended = true;
            let lost = fault();
            state.done.insert(self.sequence, Err(lost));
            self.shared.changed.notify_all();
        }
    }
}

/// Ends the work when the consumer goes away, by an error or a panic.
struct StopOnDrop<'a, P, T>(&'a Shared<P, T>);

impl<P, T> Drop for StopOnDrop<'_, P, T> {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.changed.notify_all();
    }
}

/// How much a map may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// Threads that work.
    pub threads: usize,
    /// Items between `produce` and the end of `consume`, at least 2.
    pub in_flight: usize,
}

/// Maps what `produce` gives through `work` on `threads` threads and gives the results to
/// `consume`, in order.
///
/// # Errors
/// The first error in the order of the items, of whichever of the three.
pub fn ordered_map<J: Send, T: Send>(
    threads: usize,
    in_flight: usize,
    produce: impl FnMut() -> Result<Option<J>> + Send,
    work: impl Fn(J) -> Result<T> + Sync,
    consume: impl FnMut(T) -> Result<()>,
) -> Result<()> {
    growing_map(|| Allowance { threads, in_flight }, produce, work, consume)
}

/// The same with an allowance that may become larger meanwhile, and never smaller: it is asked for
/// with each item.
///
/// # Errors
/// The first error in the order of the items, of whichever of the three.
pub fn growing_map<J: Send, T: Send>(
    allowed: impl Fn() -> Allowance + Sync,
    produce: impl FnMut() -> Result<Option<J>> + Send,
    work: impl Fn(J) -> Result<T> + Sync,
    mut consume: impl FnMut(T) -> Result<()>,
) -> Result<()> {
    let state = State { produce, next: 0, consumed: 0, ended: false, done: BTreeMap::new() };
    let shared = Shared { state: Mutex::new(state), changed: Condvar::new() };
    std::thread::scope(|scope| {
        let stop = StopOnDrop(&shared);
        let mut threads = 0;
        loop {
            while threads < allowed().threads.max(1) {
                match spawn(scope, || run_worker(&shared, &allowed, &work)) {
                    Ok(_) => threads += 1,
                    Err(error) if threads == 0 => return Err(error),
                    // Fewer do the same, and take longer.
                    Err(_) => break,
                }
            }
            let mut state = shared.lock();
            let result = loop {
                let wanted = state.consumed;
                if let Some(result) = state.done.remove(&wanted) {
                    break result;
                }
                if state.ended && wanted == state.next {
                    drop(state);
                    drop(stop);
                    return Ok(());
                }
                state = shared.wait(state);
            };
            drop(state);
            consume(result?)?;
            shared.lock().consumed += 1;
            shared.changed.notify_all();
        }
    })
}

fn run_worker<J, T, P: FnMut() -> Result<Option<J>>>(
    shared: &Shared<P, T>,
    allowed: &impl Fn() -> Allowance,
    work: &impl Fn(J) -> Result<T>,
) {
    loop {
        let mut state = shared.lock();
        while !state.ended && state.next - state.consumed >= allowed().in_flight.max(2) as u64 {
            state = shared.wait(state);
        }
        if state.ended {
            return;
        }
        let sequence = state.next;
        let produced = catch_unwind(AssertUnwindSafe(&mut state.produce));
        let job = match produced.unwrap_or_else(|_| Err(fault())) {
            Ok(Some(job)) => job,
            Ok(None) => {
                state.ended = true;
                shared.changed.notify_all();
                return;
            }
            Err(error) => {
                state.ended = true;
                state.next += 1;
                state.done.insert(sequence, Err(error));
                shared.changed.notify_all();
                return;
            }
        };
        state.next += 1;
        drop(state);
        let mut guard = PanicGuard { shared, sequence, delivered: false };
        let result = work(job);
        let mut state = shared.lock();
        state.done.insert(sequence, result);
        guard.delivered = true;
        drop(state);
        shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn counter(end: u32) -> impl FnMut() -> Result<Option<u32>> + Send {
        let mut next = 0;
        move || {
            next += 1;
            Ok((next <= end).then_some(next - 1))
        }
    }

    #[test]
    fn results_come_in_order_whatever_the_threads() {
        for threads in [1, 2, 7] {
            let mut seen = Vec::new();
            ordered_map(
                threads,
                8,
                counter(1000),
                |i| Ok(i * 2),
                |i| {
                    seen.push(i);
                    Ok(())
                },
            )
            .unwrap();
            assert_eq!(seen, (0..1000).map(|i| i * 2).collect::<Vec<_>>());
        }
    }

    #[test]
    fn no_more_than_the_limit_is_in_flight() {
        let (made, eaten) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let mut source = counter(500);
        ordered_map(
            3,
            5,
            || {
                let ahead = made.load(Ordering::SeqCst) - eaten.load(Ordering::SeqCst);
                assert!(ahead < 6, "{ahead}");
                made.fetch_add(1, Ordering::SeqCst);
                source()
            },
            Ok,
            |_| {
                eaten.fetch_add(1, Ordering::SeqCst);
                Ok(())
            },
        )
        .unwrap();
        assert_eq!(eaten.load(Ordering::SeqCst), 500);
    }

    #[test]
    fn an_allowance_that_grows_is_taken() {
        let consumed = AtomicUsize::new(0);
        let (at_work, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let grown = || consumed.load(Ordering::SeqCst) >= 50;
        let mut before = 0;
        growing_map(
            || Allowance {
                threads: if grown() { 4 } else { 1 },
                in_flight: if grown() { 8 } else { 2 },
            },
            counter(200),
            |i| {
                let now = at_work.fetch_add(1, Ordering::SeqCst) + 1;
                most.fetch_max(now, Ordering::SeqCst);
                std::thread::sleep(std::time::Duration::from_millis(1));
                at_work.fetch_sub(1, Ordering::SeqCst);
                Ok(i)
            },
            |_| {
                if consumed.fetch_add(1, Ordering::SeqCst) == 48 {
                    before = most.load(Ordering::SeqCst);
                }
                Ok(())
            },
        )
        .unwrap();
        let most = most.into_inner();
        assert_eq!(before, 1);
        assert!((2..=4).contains(&most), "{most}");
    }

    #[test]
    fn first_error_in_order_ends_the_work() {
        let fail = |what: u32| Error::new(ErrorKind::Io, format!("{what}"));
        let mut seen = 0;
        let work = |i| if i >= 40 { Err(fail(i)) } else { Ok(i) };
        let error = ordered_map(4, 8, counter(100), work, |_| {
            seen += 1;
            Ok(())
        });
        assert_eq!((error.unwrap_err().to_string().as_str(), seen), ("40", 40));
        let error =
            ordered_map(4, 8, counter(100), Ok, |i| if i == 7 { Err(fail(7)) } else { Ok(()) });
        assert_eq!(error.unwrap_err().to_string(), "7");
    }

    #[test]
    fn a_panicking_worker_does_not_hang_the_caller() {
        let produce = || -> Result<Option<u32>> { panic!("on purpose") };
        assert!(ordered_map(1, 4, produce, Ok, |_| Ok(())).is_err());
        let outcome = std::panic::catch_unwind(|| {
            ordered_map(
                2,
                4,
                counter(10),
                |i| if i == 3 { panic!("on purpose") } else { Ok(i) },
                |_| Ok(()),
            )
        });
        assert!(outcome.is_err() || outcome.unwrap().is_err());
    }
}
