//! A machine goes back to an earlier group, by its own QEMU; also if that is killed.

use crate::Played;
use crate::guest::{Guest, judge};
use crate::kit::Random;
use crate::rig::{Rig, Site, end, number};
use nix::sys::signal::Signal;
use serde_json::json;
use std::time::{Duration, Instant};

const KEEP: u64 = 1200;

/// What the machine held at a snapshot.
#[derive(Debug, PartialEq)]
struct State {
    files: u64,
    counters: (u64, u64),
}

pub fn run(rig: &Rig) -> Played {
    let mut site = rig.site().with_counter();
    // By its own disk, which must be one that boots.
    site.machine = site.machine.own_boot();
    let mut guest = site.machine.boot();
    work(&mut guest);
    let taken = site.snapshot(&["--freeze", "agent"]);
    let target = number(&taken[0]);
    let then = state(&site, target);
    println!("  the machine at @{target}: {then:?}");
    guest.goes_on(Duration::from_secs(60)).unwrap();

    let back = args(&site, target);
    let begun = Instant::now();
    site.run(&back).done();
    let took = begun.elapsed();
    is_then(&site, &mut guest, &then);
    println!(
        "  rolled back in {:.1} s, up again after {:.1} s",
        took.as_secs_f64(),
        begun.elapsed().as_secs_f64()
    );

    let mut random = Random(rig.seed);
    let mut stopped = 0;
    let rounds = rig.count.div_ceil(5);
    for round in 0..rounds {
        work(&mut guest);
        let from = guest.console.count();
        let started = site.start(&back);
        let moment = Duration::from_micros(random.below(took.as_micros() as u64));
        std::thread::sleep(moment);
        started.signal(Signal::SIGKILL);
        let run = end(started);
        assert!(run.is_killed() || run.code() == Some(0), "{}", run.err);
        // What the guard has to do is done by then.
        std::thread::sleep(Duration::from_secs(2));
        let what = format!("round {round}, killed after {moment:?}");
        if guest.qmp.status() == "running" {
            // Then it is as it was, or wholly as it was then.
            let goes_on = guest.goes_on(Duration::from_secs(15));
            let is_up = || guest.console.find("GUEST-UP", from, Duration::from_secs(60));
            assert!(goes_on.is_ok() || is_up().is_ok(), "{what}: it runs, but does nothing");
        } else {
            stopped += 1;
        }
        site.run(&back).done();
        is_then(&site, &mut guest, &then);
    }
    println!(
        "  killed {rounds} times; {stopped} times the machine was stopped then, and the next run ended it"
    );
    let taken = site.snapshot(&[]);
    site.is_tidy(&mut guest, &taken);
    guest.is_well();
    Ok(())
}

fn args(site: &Site, to: u64) -> Vec<String> {
    let uri = site.machine.uri();
    ["rollback", &uri, "--reset", "--to", &format!("@{to}")].map(str::to_owned).to_vec()
}

fn work(guest: &mut Guest) {
    guest.writes_files(KEEP, Duration::from_millis(20));
    guest.counts(Duration::from_millis(5));
}

fn state(site: &Site, at: u64) -> State {
    let [system, one, other] = [0, 1, 2].map(|disk| site.restore(disk, at));
    read(&system, &one, &other)
}

#[track_caller]
fn read(system: &str, one: &str, other: &str) -> State {
    let held = judge::system(system, KEEP).unwrap();
    assert!(held.first <= 1, "{held:?}");
    let counters = (judge::counter(one).unwrap(), judge::counter(other).unwrap());
    State { files: held.last, counters }
}

/// The guest boots, which it has hardly begun, and has what it had then.
#[track_caller]
fn is_then(site: &Site, guest: &mut Guest, then: &State) {
    let from = guest.console.count();
    guest.console.waits_for("GUEST-UP", from);
    assert_eq!(guest.qmp.status(), "running");
    guest.qmp.execute("stop", json!({}));
    let disks = [0, 1, 2].map(|disk| {
        let path = site.lab.path(&format!("now{disk}"));
        site.machine.read_disk(disk, &path);
        path
    });
    guest.qmp.execute("cont", json!({}));
    assert_eq!(read(&disks[0], &disks[1], &disks[2]), *then);
    assert_eq!(guest.qmp.left_over(), Vec::<String>::new());
    guest.is_well();
}
