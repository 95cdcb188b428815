//! That these histories would notice: each sync that does nothing, though it is reported as done, is found
//! out. So each of them is needed, and none is missed.

use super::{Count, Line, VERBS};
use crate::power_loss::world::World;
use crate::support::power::Lie;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What is left out: a sync, by its line in the log and the one before it.
const LIES: [(&str, Lie); 14] = [
    ("of a delta file", |sync, _| is_of(sync, ".delta.")),
    ("of a manifest", |sync, _| is_of(sync, "/.manifest.")),
    ("of the configuration", |sync, _| is_of(sync, ".config.")),
    ("of the marker", |sync, _| is_of(sync, ".repository.toml.")),
    ("of the name of a delta file", |sync, before| names(sync, before, "rename ", ".delta")),
    ("of the name of a manifest", |sync, before| names(sync, before, "rename ", "/manifest.")),
    ("of the name of the configuration", |sync, before| names(sync, before, "rename ", "config.")),
    ("of the name of the marker", |sync, before| names(sync, before, "rename ", "repository.toml")),
    ("of the name of a folder", |sync, before| names(sync, before, "create folder", "")),
    ("of the end of a folder", |sync, before| names(sync, before, "remove folder", "")),
    ("before garbage is removed", |sync, before| {
        sync.starts_with("sync folder ") && before.is_empty()
    }),
    ("before the last manifest of an image goes", |sync, before| {
        names(sync, before, "remove ", "/") && !before.ends_with(".tmp")
    }),
    ("of all folders", |sync, _| sync.starts_with("sync folder")),
    ("of the live image", |sync, _| sync == "sync the image"),
];

fn is_of(sync: &str, what: &str) -> bool {
    sync.starts_with("sync ") && !sync.starts_with("sync folder") && sync.contains(what)
}

fn names(sync: &str, before: &str, operation: &str, what: &str) -> bool {
    sync.starts_with("sync folder") && before.starts_with(operation) && before.contains(what)
}

/// Lines until something is noticed; none if nothing is.
fn noticed(world: &World, lie: Lie) -> Option<u64> {
    (1..80).find(|seed| {
        let history = || {
            let mut line = Line::new(world, *seed, Some(lie));
            let mut count = Count::default();
            for _ in 0..VERBS {
                line.step(&mut count);
            }
        };
        catch_unwind(AssertUnwindSafe(history)).is_err()
    })
}

#[test]
fn a_sync_that_is_left_out_is_noticed() {
    let world = World::new();
    let found: Vec<_> = LIES.iter().map(|(what, lie)| (*what, noticed(&world, *lie))).collect();
    println!("{found:#?}");
    let missed: Vec<_> = found.iter().filter(|(_, line)| line.is_none()).collect();
    assert!(missed.is_empty(), "nobody notices {missed:?}");
}
