//! The judges themselves: they find right what is, and notice what is not.

use crate::Played;
use crate::guest::judge;
use crate::kit::{MIB, get, make, put};
use crate::rig::Rig;
use serde_json::json;
use std::time::Duration;

const KEEP: u64 = 200;

pub fn run(rig: &Rig) -> Played {
    let site = rig.site();
    let (lab, machine) = (&site.lab, &site.machine);
    let mut guest = machine.boot();
    guest.writes_files(KEEP, Duration::from_millis(20));
    let mut copies = Vec::new();
    for number in 0..3 {
        let from = guest.console.count();
        guest.console.waits_for("WROTE ", from + 12);
        let before = guest.written();
        guest.qmp.execute("stop", json!({}));
        let copy = lab.path(&format!("copy{number}"));
        machine.read_disk(0, &copy);
        let after = guest.written();
        guest.qmp.execute("cont", json!({}));
        let held = judge::system(&copy, KEEP).unwrap();
        assert!(held.was_replayed && held.first == 1, "{held:?}");
        assert!((before..=after + 1).contains(&held.last), "{held:?}, {before} to {after}");
        println!("  stopped at file {}", held.last);
        copies.push((copy, held));
    }
    guest.is_well();
    drop(guest);
    judge::boots(&copies[2].0);

    let wrong = lab.path("wrong");
    let refused = |what: &str| {
        let why = judge::system(&wrong, KEEP).expect_err(what);
        println!("  {what}: {}", why.lines().next().unwrap());
    };
    // The disk at two moments, as if it had been read without a point in time.
    let (older, newer) = (get(&copies[0].0, 0, 96 * MIB), get(&copies[2].0, 0, 96 * MIB));
    let differs = |at: &usize| older[*at..][..4096] != newer[*at..][..4096];
    let differing: Vec<usize> = (0..older.len()).step_by(4096).filter(differs).collect();
    let middle = differing[differing.len() / 2];
    put_new(&wrong, &[&newer[..middle], &older[middle..]].concat());
    refused("the second half is older");
    // The other way round it has older files and what is to come, in blocks that are free.
    put_new(&wrong, &[&older[..middle], &newer[middle..]].concat());
    assert!(judge::system(&wrong, KEEP).map_or(true, |held| held != copies[2].1));
    for number in [1, copies[2].1.last] {
        let content = judge::content(number);
        // Of a file that has several extents the beginning is whole.
        let at = newer.chunks(4096).position(|window| window == &content[..4096]);
        let at = at.unwrap() as u64 * 4096;
        put_new(&wrong, &newer);
        put(&wrong, at + 4095, &[content[4095] ^ 1]);
        refused("one byte of a file");
        put(&wrong, at, &[0; 4096]);
        refused("a block of a file is zeros");
    }
    Ok(())
}

fn put_new(path: &str, bytes: &[u8]) {
    make(path, 0);
    put(path, 0, bytes);
}
