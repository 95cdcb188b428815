//! Snapshots on an interval: how far back the newest one lies is what a disaster would cost.
//!
//! A few threads take the image that is due first. One that fails is tried again, later and later, and
//! keeps none of the others waiting.

pub mod types;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::Context;
use crate::base::pipeline::spawn;
use crate::image::ImageUri;
use crate::ops::prune;
use crate::ops::prune::types::{PruneRequest, Pruned};
use crate::ops::snapshot::distinct::check_distinct;
use crate::ops::snapshot::jobs::all_of;
use crate::ops::snapshot::several::at_once;
use crate::ops::snapshot::types::{Outcome, SnapshotOutcome, SnapshotRequest};
use crate::ops::watch::types::{WatchRequest, Watched};
use crate::repo::Repository;
use crate::repo::retention::Rules;
use crate::repo::session::read;
use jiff::Timestamp;
use jiff::tz::TimeZone;
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
        let what = "the interval between snapshots must not be zero";
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
    let newest = |name: &String| {
        let reader = read(repository, name, context).ok()?;
        reader.manifest().snapshots.iter().map(|s| s.time).max()
    };
    // Of a machine, the disk that lies back farthest.
    let points: Option<Vec<_>> = names_in(repository, of, context).iter().map(newest).collect();
    points?.into_iter().min()
}

/// The images that a request is of: of a machine, those that are known.
fn names_in(repository: &Repository, of: &SnapshotRequest, context: &Context) -> Vec<String> {
    let Some(machine) = of.image.machine().filter(|machine| machine.disk.is_none()) else {
        return vec![name_in(of)];
    };
    let machine = machine.absolute().unwrap_or_else(|_| machine.clone());
    let is_of = |name: &String| {
        read(repository, name, context).is_ok_and(|reader| {
            let source = reader.head().source.as_ref().and_then(ImageUri::machine);
            source.is_some_and(|source| source.place == machine.place)
        })
    };
    repository.names().unwrap_or_default().into_iter().filter(is_of).collect()
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
        let Done { result, at: now, pruned } =
            match Repository::open_in(repository.store.clone(), repository.host.clone())
                .map(|opened| opened.reading_within(context))
            {
                Ok(repository) => {
                    let of = &labelled(of, started);
                    take_turn(&repository, of, request.rules.as_ref(), context)
                }
                Err(e) => Done { result: Err(e), at: Timestamp::now(), pruned: Vec::new() },
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
                let is_new = |done: &&SnapshotOutcome| done.outcome == Outcome::Taken;
                let taken = done.iter().filter(is_new).map(|done| done.snapshot.time).min();
                turn.point = Some(taken.unwrap_or(started));
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
        let (age_seconds, failures) = (turn.point.map(since), turn.failures);
        let next_in = turn.due.saturating_duration_since(Instant::now());
        drop(all);
        let watched = |name, result, pruned| Watched {
            image: of.image.clone(),
            name,
            result,
            pruned,
            seconds: begun.elapsed().as_secs_f64(),
            age_seconds,
            rpo_seconds,
            failures,
            next_in,
        };
        let mut pruned = pruned.into_iter();
        match result {
            Err(error) => each(watched(name_in(of), Err(error), pruned.next().flatten())),
            // Of a machine, one for each of its disks.
            Ok(done) => done.into_iter().for_each(|done| {
                each(watched(done.name.clone(), Ok(done), pruned.next().flatten()));
            }),
        }
    }
}

/// No two snapshots have one label, so that of each turn has its time in it.
fn labelled(of: &SnapshotRequest, time: Timestamp) -> SnapshotRequest {
    let time = time.to_zoned(TimeZone::system()).strftime("%Y%m%d-%H%M%S");
    let label = of.label.as_ref().map(|label| format!("{label}-{time}"));
    of.clone().label(label)
}

/// What a turn did.
struct Done {
    result: Result<Vec<SnapshotOutcome>>,
    /// From when on the snapshots stand.
    at: Timestamp,
    /// What was pruned of each after it, or before it on a full disk.
    pruned: Vec<Option<Result<Pruned>>>,
}

fn take_turn(
    repository: &Repository,
    of: &SnapshotRequest,
    rules: Option<&Rules>,
    context: &Context,
) -> Done {
    let mut result = all_of(repository, of, context);
    let mut pruned = Vec::new();
    if result.as_ref().is_err_and(Error::is_storage_full) {
        let is_new = |pruned: &Result<Pruned>| {
            pruned.as_ref().is_err_and(|e| e.kind() == ErrorKind::NotFound)
        };
        // Of an image without snapshots there is nothing to prune.
        let names = names_in(repository, of, context);
        let before = names.iter().filter_map(|name| prune_by(repository, rules, name, context));
        pruned.extend(before.filter(|p| !is_new(p)).map(Some));
        let is_freed = |pruned: &Pruned| pruned.compaction.freed_bytes > 0;
        if pruned.iter().flatten().any(|pruned| pruned.as_ref().is_ok_and(is_freed)) {
            result = all_of(repository, of, context);
        }
    }
    let now = Timestamp::now();
    // What was dropped before is told as well.
    if pruned.is_empty()
        && let Ok(done) = &result
    {
        pruned.extend(done.iter().map(|done| match done.outcome {
            Outcome::Taken => prune_by(repository, rules, &done.name, context),
            _ => None,
        }));
    }
    Done { result, at: now, pruned }
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
