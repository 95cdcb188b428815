//! Snapshots of a guest that writes: each is one moment of all of its disks, and the frozen ones a clean one.

use crate::Played;
use crate::guest::judge;
use crate::rig::{Rig, number, whole_because};
use serde_json::Value;
use std::time::Duration;

const SNAPSHOTS: usize = 20;
/// More than it writes.
const KEEP: u64 = 1200;

/// What the guest had written before a snapshot was asked for, and when it stood.
struct Moment {
    taken: Vec<Value>,
    files: (u64, u64),
    counted: (u64, u64),
    is_frozen: bool,
}

pub fn run(rig: &Rig) -> Played {
    let site = rig.site().with_counter();
    let mut guest = site.machine.boot();
    guest.writes_files(KEEP, Duration::from_millis(50));
    guest.counts(Duration::from_millis(5));
    let mut moments = Vec::new();
    for round in 0..SNAPSHOTS {
        let is_frozen = round % 2 == 1;
        let written = || (guest.written(), guest.console.last("COUNTED "));
        let before = written();
        let taken = site.snapshot(if is_frozen { &["--freeze", "agent"] } else { &[] });
        let after = written();
        for taken in &taken {
            let consistency = if is_frozen { "frozen" } else { "crash" };
            assert_eq!(taken["consistency"], consistency, "{taken}");
            assert_eq!(whole_because(taken).is_none(), round > 0, "{taken}");
        }
        site.is_tidy(&mut guest, &taken);
        guest.goes_on(Duration::from_secs(60)).unwrap();
        let (files, counted) = ((before.0, after.0), (before.1, after.1));
        moments.push(Moment { taken, files, counted, is_frozen });
    }
    guest.is_well();
    assert!(guest.written() < KEEP, "it went round");
    drop(guest);

    println!("  snapshot  consistency   stopped   read     stored   files   counters   journal");
    for Moment { taken, files, counted, is_frozen } in &moments {
        let at = number(&taken[0]);
        let [system, one, other] = [0, 1, 2].map(|disk| site.restore(disk, number(&taken[disk])));
        let held = judge::system(&system, KEEP).unwrap_or_else(|why| panic!("@{at}: {why}"));
        assert_eq!((held.first, held.was_replayed), (1, !is_frozen), "@{at}");
        assert!((files.0..=files.1 + 1).contains(&held.last), "@{at}: {held:?}, {files:?}");
        let (one, other) = (judge::counter(&one).unwrap(), judge::counter(&other).unwrap());
        assert!((other..=other + 1).contains(&one), "@{at}: {one}, and then {other}");
        assert!((counted.0..=counted.1 + 1).contains(&one), "@{at}: {one}, {counted:?}");
        judge::boots(&system);
        let sum = |of: &str| taken.iter().map(|taken| taken[of].as_u64().unwrap()).sum::<u64>();
        println!(
            "  @{at:<8} {:<12} {:>5.0} ms {:>7} K {:>7} K   1-{:<5} {one}/{other}   {}",
            taken[0]["consistency"].as_str().unwrap(),
            taken[0]["stopped_seconds"].as_f64().unwrap_or(0.0) * 1e3,
            sum("read_bytes") >> 10,
            sum("stored_bytes") >> 10,
            held.last,
            if held.was_replayed { "replayed" } else { "clean" },
        );
        for disk in 0..3 {
            std::fs::remove_file(
                site.lab.path(&format!("{}@{at}.restored", site.machine.image(disk))),
            )
            .ok();
        }
    }
    site.lab.verify(3 * SNAPSHOTS);
    Ok(())
}
