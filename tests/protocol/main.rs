//! The commit protocol as a model, explored to its end: hosts that take snapshots, drop, read, collect, base one
//! image on another and take that back, over a store that promises little (`store.rs`), while requests are lost,
//! delayed and duplicated, hosts die, and days pass between any two steps. Each mistake that the protocol avoids
//! is planted, and found. (DESIGN.md, "One commit for every store")
//!
//! `IMGSNAP_MODEL=deep` explores with more faults, deaths and days.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
#![allow(clippy::print_stdout)]

mod desk;
mod directed;
mod each_request;
mod each_verb;
mod explore;
mod faulty;
mod hosts;
mod known;
mod live;
mod owned;
mod pins;
#[path = "../support/random.rs"]
mod random;
mod scenario;
mod schedules;
mod store;
mod travel;
mod turns;
mod verbs;
mod watch;

use explore::explore;
use scenario::{Bounds, Mistake, Scenario, Task, Task::*};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Who does what, host by host, with an image that has so many snapshots. The last one is for `deep` alone.
const SCENARIOS: [(&str, u8, &[&[Task]]); 13] = [
    ("two writers", 0, &[&[Snapshot(0), Snapshot(0)], &[Snapshot(0)]]),
    ("a writer and a collector", 0, &[&[Snapshot(0), Snapshot(0)], &[Collect(0, 4)]]),
    ("a writer, a drop and a collector", 1, &[&[Snapshot(0)], &[Drop(0)], &[Collect(0, 4)]]),
    (
        "two collectors and a writer",
        1,
        &[&[Collect(0, 2)], &[Drop(0), Collect(0, 2)], &[Snapshot(0)]],
    ),
    (
        "a drop, a reader and a collector",
        2,
        &[&[Drop(0)], &[Read(0, false)], &[Drop(0), Collect(0, 3)]],
    ),
    (
        "a drop, a marker and a collector",
        2,
        &[&[Drop(0)], &[Read(0, true)], &[Drop(0), Collect(0, 3)]],
    ),
    ("based on another, dropped", 1, &[&[Base], &[Drop(0)], &[Collect(1, 2), Collect(0, 3)]]),
    ("based on another, removed", 1, &[&[Base, Remove], &[Drop(0)], &[Collect(0, 2)]]),
    ("a writer, and an image forgotten", 1, &[&[Forget(0), Snapshot(0)], &[Snapshot(0)]]),
    ("a plan, a straggler and a collector", 0, &[&[Plan, Part, Join], &[Part], &[Collect(0, 3)]]),
    ("a plan, its parent dropped", 1, &[&[Plan, Part, Join], &[Drop(0)], &[Collect(0, 3)]]),
    ("a plan given up", 0, &[&[Plan, Part], &[Join], &[GiveUp, Collect(0, 3)]]),
    ("two writers and a collector", 0, &[&[Snapshot(0)], &[Snapshot(0)], &[Collect(0, 3)]]),
];

/// How much may go wrong at once.
const QUICK: [Bounds; 2] =
    [Bounds { days: 1, faults: 1, deaths: 0 }, Bounds { days: 2, faults: 0, deaths: 1 }];
const DEEP: [Bounds; 3] = [
    Bounds { days: 2, faults: 1, deaths: 0 },
    Bounds { days: 1, faults: 1, deaths: 1 },
    Bounds { days: 3, faults: 0, deaths: 2 },
];
/// More than that do not fit into the memory of an ordinary machine.
const MAX_STATES: usize = 150_000_000;

fn scenario(index: usize, bounds: Bounds, mistake: Option<Mistake>) -> Scenario {
    let (name, snapshots, tasks) = SCENARIOS[index];
    let tasks = tasks.iter().map(|tasks| tasks.to_vec()).collect();
    Scenario { name, tasks, snapshots, bounds, mistake }
}

#[test]
fn nothing_is_lost_or_left_whatever_happens() {
    let is_deep = std::env::var("IMGSNAP_MODEL").is_ok_and(|depth| depth == "deep");
    let (bounds, scenarios, threads) = match is_deep {
        // One at a time: each may need all the memory that there is.
        true => (&DEEP[..], 0..SCENARIOS.len(), 1),
        false => (
            &QUICK[..],
            0..SCENARIOS.len() - 1,
            std::thread::available_parallelism().unwrap().get(),
        ),
    };
    let all: Vec<Scenario> = bounds
        .iter()
        .flat_map(|bounds| scenarios.clone().map(|index| scenario(index, *bounds, None)))
        .collect();
    let (next, states) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(scenario) = all.get(next.fetch_add(1, Relaxed)) {
                    let Scenario { name, bounds, .. } = scenario;
                    let explored = explore(scenario, MAX_STATES)
                        .unwrap_or_else(|violation| panic!("{name}, {bounds:?}: {violation:#?}"));
                    println!("{name}, {bounds:?}: {explored:?}");
                    assert!(explored.ends > 0);
                    states.fetch_add(explored.states, Relaxed);
                }
            });
        }
    });
    println!("{} states", states.into_inner());
}

#[test]
fn each_planted_mistake_is_found() {
    let (lost, gone) = ("a commit was acknowledged, and is lost", "what is named is gone");
    let disturbed = "a reader is disturbed";
    // Where it is found first.
    let mistakes = [
        (Mistake::NumbersReused, 2, lost),
        (Mistake::NamesReused, 2, gone),
        (Mistake::GraceFromCreation, 4, disturbed),
        (Mistake::UndecidedDeleted, 2, gone),
        (Mistake::MissingIsDamage, 4, "what was dropped is called damaged"),
        (Mistake::MarkerTrusted, 5, disturbed),
        (Mistake::CondemnedNamedAgain, 1, gone),
        (Mistake::SweptForgotten, 1, gone),
        (Mistake::SlowUploadDeleted, 1, gone),
        (Mistake::PinLate, 6, gone),
        (Mistake::ClockOfHost, 4, disturbed),
        (Mistake::ForgottenWhole, 8, lost),
        (Mistake::PartsCondemned, 9, gone),
        (Mistake::ParentDropped, 10, gone),
        (Mistake::JoinedBlindly, 11, gone),
    ];
    for (mistake, index, what) in mistakes {
        let all = QUICK.map(|bounds| scenario(index, bounds, Some(mistake)));
        let found = all.iter().find_map(|s| explore(s, MAX_STATES).err().map(|found| (s, found)));
        let (Scenario { name, bounds, .. }, violation) =
            found.unwrap_or_else(|| panic!("{mistake:?} is not found"));
        println!("{mistake:?}: {name}, {bounds:?}: {} steps", violation.trace.len());
        assert!(violation.what.starts_with(what), "{mistake:?}: {violation:#?}");
    }
}
