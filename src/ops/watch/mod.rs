//! Snapshots on an interval: how far back the newest one lies is what a disaster would cost.
//!
//! A few threads take the image that is due first. One that fails is tried again, later and later, and
//! keeps none of the others waiting.

pub mod types;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::Context;
use crate::base::pipeline::spawn;
use crate::ops::prune;
use crate::ops::prune::types::{PruneRequest, Pruned};
use crate::ops::snapshot;
use crate::ops::snapshot::several::{at_once, check_distinct};
use crate::ops::snapshot::types::{Outcome, SnapshotOutcome, SnapshotRequest};
use crate::ops::watch::types::{WatchRequest, Watched};
use crate::repo::Repository;
use crate::repo::retention::Rules;
use crate::repo::session::read;
use jiff::Timestamp;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// After the first failure; after each other one twice as long, up to the interval.
const FIRST_RETRY: Duration = Duration::from_secs(5);

/// How often the stop flag is polled.
const TICK: Duration = Duration::from_millis(100);

/// What is known of an image from turn to turn.
struct Turn {
    due: Instant,
    is_running: bool,
    failures: u32,
    /// The newest moment that can be restored.
    point: Option<Timestamp>,
}

/// Takes snapshots until the context says to stop, and tells `each` of every turn.
///
/// # Errors
/// `InvalidInput` if two requests are of the same image or name. Nothing else ends it.
pub fn run(
    repository: &Repository,
    request: &WatchRequest,
    context: &Context,
    each: impl Fn(Watched) + Sync,
) -> Result<()> {
    check_distinct(&request.images)?;
    // It would never work.
    request.images.iter().try_for_each(|of| of.image_name().map(drop))?;
    if request.every.is_zero() {
        let what = "snapshots cannot be taken without a pause";
        return Err(Error::new(ErrorKind::InvalidInput, what));
    }
    let now = Instant::now();
    let turn = |of: &SnapshotRequest| {
        let point = newest_point(repository, of, context);
        Turn { due: now, is_running: false, failures: 0, point }
    };
    let turns: Mutex<Vec<Turn>> = Mutex::new(request.images.iter().map(turn).collect());
    // Each turn opens it anew.
    repository.release_root();
    let at_once = at_once(repository, &request.images, context);
    // One bar of progress would be of no use, so each is a part of nothing.
    let context = context.clone().shared_among(at_once, at_once).part_of_phase(0);
    std::thread::scope(|threads| {
        for index in 0..at_once {
            match spawn(threads, || take_turns(repository, request, &turns, &context, &each)) {
                Err(error) if index == 0 => return Err(error),
                // Fewer take the same turns.
                Err(_) => break,
                Ok(_) => {}
            }
        }
        Ok(())
    })
}

fn newest_point(
    repository: &Repository,
    of: &SnapshotRequest,
    context: &Context,
) -> Option<Timestamp> {
    let reader = read(repository, &name_in(of), context).ok()?;
    reader.manifest().snapshots.iter().map(|s| s.time).max()
}

fn take_turns(
    repository: &Repository,
    request: &WatchRequest,
    turns: &Mutex<Vec<Turn>>,
    context: &Context,
    each: &(impl Fn(Watched) + Sync),
) {
    while context.check().is_ok() {
        let Some(index) = next_due(turns) else {
            std::thread::sleep(TICK);
            continue;
        };
        let Some(of) = request.images.get(index) else { return };
        let begun = Instant::now();
        let started = Timestamp::now();
        // As it is now: its settings may have changed, or its disk may be away.
        let (result, now, pruned) =
            match Repository::open_in(repository.store.clone(), repository.host.clone())
                .map(|opened| opened.reading_within(context))
            {
                Ok(repository) => take_turn(&repository, of, request.rules.as_ref(), context),
                Err(e) => (Err(e), Timestamp::now(), None),
            };
        if result.as_ref().is_err_and(|e| e.kind() == ErrorKind::Interrupted) {
            return;
        }
        let since = |point: Timestamp| (now.duration_since(point)).as_secs_f64().max(0.0);
        let mut all = lock(turns);
        let Some(turn) = all.get_mut(index) else { return };
        let rpo_seconds = turn.point.map(since);
        match &result {
            Ok(done) => {
                // What is found unchanged is a state that can be restored, too.
                let is_new = done.outcome == Outcome::Taken;
                turn.point = Some(if is_new { done.snapshot.time } else { started });
                turn.failures = 0;
                // Turns that were missed are left out.
                while turn.due <= Instant::now() {
                    turn.due += request.every;
                }
            }
            Err(_) => {
                turn.failures = turn.failures.saturating_add(1);
                let factor = 1u32 << (turn.failures - 1).min(16);
                turn.due = Instant::now() + (FIRST_RETRY * factor).min(request.every);
            }
        }
        turn.is_running = false;
        let watched = Watched {
            image: of.image.clone(),
            name: name_in(of),
            result,
            pruned,
            seconds: begun.elapsed().as_secs_f64(),
            age_seconds: turn.point.map(since),
            rpo_seconds,
            failures: turn.failures,
            next_in: turn.due.saturating_duration_since(Instant::now()),
        };
        drop(all);
        each(watched);
    }
}

/// A snapshot, the moment from which on it stands, and what is pruned after it, or before it on a full disk.
fn take_turn(
    repository: &Repository,
    of: &SnapshotRequest,
    rules: Option<&Rules>,
    context: &Context,
) -> (Result<SnapshotOutcome>, Timestamp, Option<Result<Pruned>>) {
    let mut result = snapshot::run(repository, of, context);
    let mut pruned = None;
    if result.as_ref().is_err_and(Error::is_storage_full) {
        let is_new = |pruned: &Result<Pruned>| {
            pruned.as_ref().is_err_and(|e| e.kind() == ErrorKind::NotFound)
        };
        // Of an image without snapshots there is nothing to prune.
        pruned = prune_by(repository, rules, &name_in(of), context).filter(|p| !is_new(p));
        let is_freed = |pruned: &Pruned| pruned.compaction.freed_bytes > 0;
        if pruned.as_ref().is_some_and(|pruned| pruned.as_ref().is_ok_and(is_freed)) {
            result = snapshot::run(repository, of, context);
        }
    }
    let now = Timestamp::now();
    if let Some(done) = result.as_ref().ok().filter(|done| done.outcome == Outcome::Taken) {
        // What was dropped before it is told as well.
        pruned = pruned.or_else(|| prune_by(repository, rules, &done.name, context));
    }
    (result, now, pruned)
}

/// Prunes an image if anything says what to keep.
fn prune_by(
    repository: &Repository,
    rules: Option<&Rules>,
    name: &str,
    context: &Context,
) -> Option<Result<Pruned>> {
    let rules = match rules {
        Some(rules) => rules.clone(),
        None => match repository.policy(name) {
            Ok(policy) => policy.rules?,
            Err(e) => return Some(Err(e)),
        },
    };
    let request = PruneRequest { rules: Some(rules), ..PruneRequest::default() };
    let pruned = prune::run(repository, name, &request, context);
    // The next watch goes on with that.
    Some(pruned).filter(|p| !p.as_ref().is_err_and(|e| e.kind() == ErrorKind::Interrupted))
}

fn name_in(of: &SnapshotRequest) -> String {
    of.image_name().unwrap_or_else(|_| of.image.to_string())
}

/// The image that is due and has waited longest; it is taken.
fn next_due(turns: &Mutex<Vec<Turn>>) -> Option<usize> {
    let now = Instant::now();
    let mut turns = lock(turns);
    let due = turns.iter_mut().enumerate().filter(|(_, t)| !t.is_running && t.due <= now);
    let (index, turn) = due.min_by_key(|(_, turn)| turn.due)?;
    turn.is_running = true;
    Some(index)
}

fn lock(turns: &Mutex<Vec<Turn>>) -> MutexGuard<'_, Vec<Turn>> {
    turns.lock().unwrap_or_else(PoisonError::into_inner)
}
