//! A machine that is watched, and starts anew in the middle.

use crate::Played;
use crate::guest::{Guest, judge};
use crate::random::wait_until;
use crate::rig::{PATIENT, Rig, Site, end, ended_well, members, number};
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

const KEEP: u64 = 1200;

pub fn run(rig: &Rig) -> Played {
    let site = rig.site().with_counter();
    let mut guest = boot(&site);
    let uri = site.machine.uri();
    let args = [&["watch", &uri, "--every", "5s", "--json"], &PATIENT[..]].concat();
    let watched = site.start(&args.into_iter().map(str::to_owned).collect::<Vec<_>>());
    let count = |least| {
        let has = || site.lab.has_repository() && site.lab.numbers("vm-vd0").len() >= least;
        assert!(wait_until(has), "there are not {least} snapshots");
    };
    let begun = Instant::now();
    count(1);
    std::thread::sleep(Duration::from_secs(30).saturating_sub(begun.elapsed()));
    let before = site.lab.numbers("vm-vd0").len();
    guest.is_well();
    let last = guest.written();
    guest.kill();
    // Long enough to be missed.
    std::thread::sleep(Duration::from_secs(6));
    guest = boot(&site);
    assert!(guest.written() >= last);
    count(before + 4);
    watched.signal(Signal::SIGINT);
    let run = end(watched);
    guest.is_well();

    let failed = |line: &&serde_json::Value| line["event"] == "failed";
    let lines = members(&run);
    println!("  {} snapshots before QEMU was killed", before);
    for line in &lines {
        let what = match line["error"].as_str() {
            Some(error) => error.to_owned(),
            None => format!(
                "{} read {} K, {}",
                line["snapshot"]["ref"].as_str().unwrap_or_default(),
                line["snapshot"]["read_bytes"].as_u64().unwrap_or(0) >> 10,
                line["snapshot"]["hint"]["kind"].as_str().unwrap_or("all of it"),
            ),
        };
        let rpo = line["rpo_seconds"].as_f64().map_or("-".into(), |s| format!("{s:.1} s"));
        println!("  {:<10} rpo {rpo:<8} {what}", line["event"].as_str().unwrap_or("?"));
    }
    assert!(lines.iter().filter(failed).count() > 0, "nobody has said that it was gone");
    assert!(matches!(run.code(), Some(0 | 130)), "{}", run.err);
    if run.code() == Some(0) {
        ended_well(&run);
    }
    let numbers = site.lab.numbers("vm-vd0");
    let mut last = 0;
    for number in &numbers {
        let held = judge::system(&site.restore(0, *number), KEEP).unwrap();
        assert!(held.last >= last, "@{number} is older than the one before it");
        last = held.last;
    }
    println!("  {} snapshots, all of them right; the last has file {last}", numbers.len());
    let taken = site.snapshot(&[]);
    site.is_tidy(&mut guest, &taken);
    assert_eq!(number(&taken[0]), numbers.last().unwrap() + 1);
    Ok(())
}

fn boot(site: &Site) -> Guest {
    let mut guest = site.machine.boot();
    guest.writes_files(KEEP, Duration::from_millis(50));
    guest.counts(Duration::from_millis(5));
    guest
}
