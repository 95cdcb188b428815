//! Every system call of every verb of the real binary fails, once in each way that it may, and is the last
//! one before a SIGKILL, once: nothing that is listed is lost, no wrong byte is given back, nothing is left
//! behind. What that means in particular stands in `judge.rs`.
//!
//! Two tools make the faults. **strace** at the border to the kernel: it counts the calls of each thread by
//! itself, so the N-th call of every thread is hit, and what a second thread would have done after the
//! first one was hit is not reached. A **shim** before the C library (`shim.c`): it counts over all
//! threads, so it reaches every call that goes through the library, and can read or write less than it was
//! asked for.
//!
//! What is fair: errors that a disk, a full disk, a file system without a feature, or a limit of the
//! process can give; a read that finds the end; less than was asked for; EINTR; the end of the process.
//! What is not: a call that says it has written, and has not. No program can know that; the digests find it
//! afterwards, which is what `tests/corruption.rs` is for. Nor memory that is not to be had: that ends the
//! process, as SIGKILL does.
//!
//! By default as many as take a minute are drawn, evenly from all; `IMGSNAP_FAULTS=all` (`just faults`)
//! makes all of them, also on an XFS with tracked images (root), `IMGSNAP_FAULTS=N` N for each verb. A line
//! that a failure prints says which: `IMGSNAP_FAULT_VERB=TEXT` takes only verbs that contain it.
//! `IMGSNAP_FAULT_ERRORS=FILE` writes down the error lines, each once.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod fault;
#[path = "../support/inside.rs"]
mod inside;
mod judge;
mod lab;
#[path = "../support/random.rs"]
mod random;
mod tally;
mod verbs;
mod world;
mod xfs;

use fault::{Fault, Tools};
use judge::{Done, judge};
use lab::Lab;
use random::Random;
use std::collections::VecDeque;
use std::io::Write;
use std::sync::Mutex;
use tally::Tally;
use verbs::{Place, Verb};

/// Draws what is tried of all faults.
const SEED: u64 = 20_261_121;
/// How many for each verb, if nothing is said.
const SAMPLE: usize = 12;
const WORKERS: usize = 2;

/// How many faults of each verb are tried; none: all.
fn sample() -> Option<usize> {
    match std::env::var("IMGSNAP_FAULTS").as_deref() {
        Ok("all") => None,
        Ok(text) => Some(text.parse().expect("IMGSNAP_FAULTS is \"all\" or a number")),
        Err(_) => Some(SAMPLE),
    }
}

fn say(text: &str) {
    // Not by a macro: those are captured, and nobody would see it.
    writeln!(std::io::stderr().lock(), "{text}").ok();
}

/// As many as are wanted, one from each stretch of them.
fn drawn(faults: Vec<Fault>, sample: Option<usize>) -> Vec<Fault> {
    let Some(count) = sample.filter(|count| *count < faults.len()) else { return faults };
    let mut random = Random(SEED + faults.len() as u64);
    let at = |index: usize| index * faults.len() / count;
    let one = |index| {
        let (first, end) = (at(index), at(index + 1));
        faults.get(first + random.below((end - first) as u64) as usize).cloned()
    };
    (0..count).filter_map(one).collect()
}

/// All that is tried of one verb.
fn try_verb(lab: &Lab, verb: &Verb, tools: &Tools, sample: Option<usize>) -> Tally {
    let begin = |by| verb.command(lab, by);
    verb.save(lab);
    let done = Done::of(lab, verb);
    let mut faults = Vec::new();
    if tools.has_strace {
        verb.begin(lab);
        faults.extend(tools.of_strace(lab, &begin));
    }
    if tools.has_shim {
        verb.begin(lab);
        faults.extend(tools.of_shim(lab, &begin));
    }
    let mut tally = Tally::new(verb);
    for fault in drawn(faults, sample) {
        verb.begin(lab);
        match tools.inject(lab, &begin, &fault) {
            None => tally.missed(),
            Some(hit) => tally.add(lab, &fault, &hit, judge(lab, verb, &done, &fault, &hit)),
        }
    }
    tally
}

fn try_all(verbs: Vec<Verb>, labs: &(dyn Fn(Place) -> Lab + Sync), workers: usize) {
    let folder = tempfile::tempdir().unwrap();
    let (tools, missing) = Tools::new(folder.path());
    missing.iter().for_each(|what| say(&format!("skipped: faults_syscalls: {what}")));
    if !tools.has_strace && !tools.has_shim {
        return;
    }
    let only = std::env::var("IMGSNAP_FAULT_VERB").unwrap_or_default();
    let verbs: VecDeque<Verb> = verbs.into_iter().filter(|v| v.args.contains(&only)).collect();
    let (queue, tallies) = (Mutex::new(verbs), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                let mut own: Vec<(Place, Lab)> = Vec::new();
                while let Some(verb) = { queue.lock().unwrap().pop_front() } {
                    let place = verb.place;
                    if !own.iter().any(|(other, _)| *other == place) {
                        own.push((place, labs(place)));
                    }
                    let (_, lab) = own.iter().find(|(other, _)| *other == place).unwrap();
                    let tally = try_verb(lab, &verb, &tools, sample());
                    say(&tally.line());
                    tallies.lock().unwrap().push(tally);
                }
            });
        }
    });
    tally::conclude(tallies.into_inner().unwrap(), sample().is_none(), SEED);
}

/// Root only, and only on demand: each try begins with clones that are made anew.
#[test]
fn no_fault_of_a_system_call_loses_anything_of_tracked_images() {
    if std::env::var_os("IMGSNAP_FAULTS").is_none() {
        return say("skipped: faults_syscalls: tracked images: only with IMGSNAP_FAULTS");
    }
    match xfs::mounted() {
        Err(why) => say(&format!("skipped: faults_syscalls: tracked images: {why}")),
        Ok(xfs) => try_all(verbs::tracked_ones(), &|_| Lab::below(xfs.folder()), WORKERS),
    }
}

#[test]
fn no_fault_of_a_system_call_loses_anything() {
    let lab = |place| match place {
        Place::Disk => Lab::on_disk(),
        _ => Lab::in_memory(),
    };
    try_all(verbs::all(), &lab, WORKERS);
}
