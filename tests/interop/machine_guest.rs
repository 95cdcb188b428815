//! A guest that writes, under a real QEMU: one look at what `just machines` looks at for longer.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::guest::{self, Machine, judge};
use crate::kit::*;
use serde_json::Value;
use std::time::Duration;

/// So many files it keeps.
const KEEP: u64 = 1200;

#[test]
fn a_guest_that_writes_is_taken_as_it_was_and_frozen_without_a_journal_to_replay() {
    let lab = Lab::new();
    let disk = need!(guest::built());
    need!(guest::version());
    std::fs::create_dir(lab.path("machine")).unwrap();
    let machine = Machine::of_guest(&lab.path("machine"), "vm", &disk).new_disk(8 * MIB, "qcow2");
    let mut guest = machine.boot();
    guest.writes_files(KEEP, Duration::from_millis(50));
    for (frozen, more) in [(false, &[][..]), (true, &["--freeze", "agent"])] {
        let before = guest.written();
        let uri = machine.uri();
        let args = [&["snapshot", &uri, "--max-stall", "60s", "--json"], more].concat();
        let run = lab.run(&args).done();
        let after = guest.written();
        let lines = String::from_utf8(run.out).unwrap();
        let taken: Vec<Value> =
            lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(taken.len(), 2, "{taken:#?}");
        assert_eq!(taken[0]["consistency"], if frozen { "frozen" } else { "crash" });
        assert_eq!(taken[0]["hint"]["kind"] == "bitmap", frozen, "{taken:#?}");
        guest.goes_on(Duration::from_secs(60)).unwrap();
        let restored = lab.restore(taken[0]["ref"].as_str().unwrap());
        let held = judge::system(&restored, KEEP).unwrap_or_else(|why| panic!("{why}"));
        assert_eq!(held.was_replayed, !frozen);
        assert!((before..=after + 1).contains(&held.last), "{held:?}, {before} to {after}");
    }
    guest.is_well();
}
