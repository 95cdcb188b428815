//! kill -9 of imgsnap, of its guard, of the guest agent and of QEMU, at random moments: the guest goes on
//! without another run, and the next run leaves nothing behind and is right.

use crate::Played;
use crate::guest::{Guest, judge};
use crate::kit::{Random, Started, names_in, pick};
use crate::rig::{Rig, Site, end, ended_well, milliseconds, number, whole_because};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::time::{Duration, Instant};

/// By then nobody may be stopped or frozen by us.
const LIMIT: Duration = Duration::from_secs(15);
/// Of the numbered files, before the first ones go.
const KEEP: u64 = 400;
const BETWEEN: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Victim {
    Imgsnap,
    Guard,
    Agent,
    Qemu,
}

/// How it went, for the table.
#[derive(Default)]
struct Tally {
    kills: u64,
    /// It ended before it was killed, or there was nothing to kill.
    missed: u64,
    /// The snapshot stood all the same.
    stood: u64,
    slowest: Duration,
}

pub fn run(rig: &Rig) -> Played {
    let site = rig.site().with_counter();
    let mut random = Random(rig.seed);
    let mut guest = boot(&site);
    site.snapshot(&[]);
    // How long one takes, the shortest of late.
    let mut pace = Duration::from_secs(1);
    let victims = [Victim::Imgsnap, Victim::Guard, Victim::Agent, Victim::Qemu];
    let mut tallies = victims.map(|_| Tally::default());
    for round in 0..rig.count {
        let at = usize::try_from(round % 4).unwrap();
        let (victim, tally) = (victims[at], &mut tallies[at]);
        let is_frozen = victim == Victim::Agent || random.below(3) > 0;
        let freeze: &[&str] = if is_frozen { &["--freeze", "agent"] } else { &[] };
        let mut started = site.start(&site.snapshot_args(freeze));
        // In the window, in which it is stopped or frozen, as often as anywhere else.
        let is_in_window = victim == Victim::Guard || random.below(2) == 0;
        if is_in_window {
            while guard_of(&started).is_none() && !started.is_over() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let most = if is_in_window { pace / 8 } else { pace };
        let moment = Duration::from_micros(random.below(most.as_micros() as u64));
        std::thread::sleep(moment);
        let begun = Instant::now();
        let is_hit = match victim {
            Victim::Imgsnap => {
                let is_hit = !started.is_over();
                if is_hit {
                    started.signal(Signal::SIGKILL);
                }
                is_hit
            }
            Victim::Guard => guard_of(&started).is_some_and(|id| kill(id, Signal::SIGKILL).is_ok()),
            Victim::Agent => {
                guest.console.run("kill_agent");
                !started.is_over()
            }
            Victim::Qemu => {
                let is_hit = !started.is_over();
                guest.is_well();
                guest.kill();
                let run = end(started);
                ended_well(&run);
                (tally.kills, tally.missed) = (tally.kills + 1, tally.missed + u64::from(!is_hit));
                tally.stood += u64::from(run.code() == Some(0));
                guest = boot(&site);
                next_run(&site, &mut guest, Some(victim), &mut pace, round);
                continue;
            }
        };
        (tally.kills, tally.missed) = (tally.kills + 1, tally.missed + u64::from(!is_hit));
        let what =
            format!("round {round}: {victim:?} killed after {moment:?}, in window {is_in_window}");
        while guest.qmp.status() != "running" {
            assert!(begun.elapsed() < LIMIT, "{what}: it is stopped");
            std::thread::sleep(Duration::from_millis(20));
        }
        let left = LIMIT.saturating_sub(begun.elapsed());
        guest.goes_on(left).unwrap_or_else(|why| panic!("{what}: it is frozen: {why}"));
        tally.slowest = tally.slowest.max(begun.elapsed());
        let run = end(started);
        if victim == Victim::Imgsnap {
            assert!(run.is_killed() || run.code() == Some(0), "{what}: {}", run.err);
        } else {
            ended_well(&run);
        }
        tally.stood += u64::from(run.code() == Some(0));
        // Also when it had gone on: it may have frozen it only then.
        guest.goes_on(LIMIT).unwrap_or_else(|why| panic!("{what}: frozen at the end: {why}"));
        assert_eq!(guest.qmp.status(), "running", "{what}");
        next_run(&site, &mut guest, None, &mut pace, round);
    }
    guest.is_well();
    drop(guest);
    println!("  victim    kills   too late   snapshot stood   guest went on after, at the most");
    for (victim, tally) in victims.iter().zip(&tallies) {
        println!(
            "  {:<9} {:>5} {:>10} {:>16}   {}",
            format!("{victim:?}").to_lowercase(),
            tally.kills,
            tally.missed,
            tally.stood,
            if *victim == Victim::Qemu { "-".into() } else { milliseconds(tally.slowest) },
        );
    }
    Ok(())
}

fn boot(site: &Site) -> Guest {
    let mut guest = site.machine.boot();
    guest.writes_files(KEEP, BETWEEN);
    guest.counts(Duration::from_millis(5));
    guest
}

/// The next run succeeds, reads only what changed if it can, and leaves nothing behind; and a snapshot of the
/// machine at rest is what its disks hold, by whatever increments it came to be.
fn next_run(
    site: &Site,
    guest: &mut Guest,
    victim: Option<Victim>,
    pace: &mut Duration,
    round: u64,
) {
    let mut random = Random(round);
    let freezes: [&[&str]; 2] = [&[], &["--freeze", "agent"]];
    let begun = Instant::now();
    let taken = site.snapshot(pick(&mut random, &freezes));
    *pace = begun.elapsed();
    for taken in &taken {
        let why = whole_because(taken);
        assert_eq!(why.is_some(), victim == Some(Victim::Qemu), "round {round}: {why:?}: {taken}");
    }
    site.is_tidy(guest, &taken);

    guest.qmp.execute("stop", json!({}));
    let taken = site.snapshot(&[]);
    assert_eq!(guest.qmp.status(), "paused", "it was stopped by somebody else");
    for (disk, taken) in taken.iter().enumerate() {
        assert_eq!(whole_because(taken), None, "round {round}: {taken}");
        let whole = site.lab.path("whole");
        site.machine.read_disk(disk, &whole);
        let restored = site.restore(disk, number(taken));
        assert!(judge::is_same(&whole, &restored), "round {round}: {taken}");
        if disk == 0 {
            judge::system(&restored, KEEP).unwrap_or_else(|why| panic!("round {round}: {why}"));
        }
        std::fs::remove_file(&restored).unwrap();
        std::fs::remove_file(&whole).unwrap();
    }
    site.is_tidy(guest, &taken);
    guest.qmp.execute("cont", json!({}));
    guest.is_well();
}

/// The guard of a run: a child of it, as long as it lives.
pub fn guard_of(started: &Started) -> Option<Pid> {
    let parent = started.id().to_string();
    let of = |name: &String| {
        let stat = std::fs::read_to_string(format!("/proc/{name}/stat")).ok()?;
        let (comm, rest) = stat.split_once(" (")?.1.rsplit_once(") ")?;
        let is_it = comm == "imgsnap-guard" && rest.split(' ').nth(1) == Some(&parent);
        is_it.then(|| Pid::from_raw(name.parse().unwrap()))
    };
    let is_process = |name: &&String| name.bytes().all(|byte| byte.is_ascii_digit());
    names_in("/proc").iter().filter(is_process).find_map(of)
}
