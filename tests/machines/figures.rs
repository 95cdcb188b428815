//! Figures: an increment with a bitmap beside a full read, and what the guest's writes wait for.

use crate::Played;
use crate::guest::Guest;
use crate::rig::{Rig, Site, milliseconds, whole_because};
use serde_json::Value;
use std::process::Command;
use std::time::{Duration, Instant};

/// How often each is timed; the one in the middle counts.
const TIMES: usize = 3;
/// What the guest writes to while its writes are timed.
const LATENCY_BYTES: u64 = 64 << 20;

pub fn run(rig: &Rig) -> Played {
    let mut site = rig.site();
    let bytes = rig.gib << 30;
    let disk = site.lab.path("machine/vd1");
    dense(&disk, bytes)?;
    site.machine = site.machine.disk(&disk, "raw").new_disk(LATENCY_BYTES, "raw");
    let mut guest = site.machine.boot();
    let from = guest.console.count();
    guest.console.run(&format!("work fill /dev/vdc {LATENCY_BYTES} 7"));
    guest.console.waits_for("FILLED", from);

    let base = timed(&site, &[]);
    println!("  a disk of {} GiB, all of it data, of a running guest", rig.gib);
    println!("  what                                   seconds   read       stored");
    line("base", &base);
    // The same bytes, in runs of the size that a bitmap knows, and in pages.
    let mut seed = rig.seed;
    let mut change = |guest: &mut Guest, run: u64| {
        seed += 1;
        let from = guest.console.count();
        let count = bytes / 100 / run;
        guest.console.run(&format!("work scatter /dev/vdb {run} {count} {seed}"));
        guest.console.waits_for("SCATTERED", from);
    };
    let mut full = Vec::new();
    let mut by_bitmap = Vec::new();
    for _ in 0..TIMES {
        change(&mut guest, 65536);
        by_bitmap.push(timed(&site, &[]));
        change(&mut guest, 65536);
        full.push(timed(&site, &["--full-scan"]));
    }
    let mut scattered = Vec::new();
    for _ in 0..TIMES {
        change(&mut guest, 4096);
        scattered.push(timed(&site, &[]));
    }
    let [full, by_bitmap, scattered] = [full, by_bitmap, scattered].map(middle);
    line("1 % in runs of 64 KiB, full read", &full);
    line("1 % in runs of 64 KiB, bitmap", &by_bitmap);
    line("1 % in pages of 4 KiB, bitmap", &scattered);
    let ratio = |of: &Timed| of.time.as_secs_f64() / full.time.as_secs_f64();
    println!("  bitmap / full read: {:.3}; scattered: {:.3}", ratio(&by_bitmap), ratio(&scattered));
    assert!(whole_because(&full.of).is_some(), "it was no full read");
    for timed in [&by_bitmap, &scattered] {
        assert_eq!(whole_because(&timed.of), None);
    }

    println!(
        "  the guest's slowest write of 4 KiB, synced     without   with a snapshot   stopped"
    );
    guest.measures("/dev/vdc", LATENCY_BYTES);
    for (name, more) in [("crash", &[][..]), ("frozen", &["--freeze", "agent"])] {
        let (mut without, mut with, mut stopped) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..TIMES {
            change(&mut guest, 65536);
            guest.ticks.reset();
            let begun = Instant::now();
            guest.qmp.events();
            let taken = site.snapshot(more);
            let took = begun.elapsed();
            with.push(guest.ticks.slowest().0);
            stopped.extend(guest.qmp.stops());
            assert_eq!(whole_because(&taken[1]), None);
            // As long, without one.
            guest.ticks.reset();
            std::thread::sleep(took);
            without.push(guest.ticks.slowest().0);
        }
        println!(
            "  {name:<45} {:>9} {:>13}     {}",
            milliseconds(*without.iter().max().unwrap()),
            milliseconds(*with.iter().max().unwrap()),
            milliseconds(stopped.iter().max().copied().unwrap_or_default()),
        );
    }
    guest.is_well();
    Ok(())
}

/// A raw disk without a hole.
fn dense(path: &str, bytes: u64) -> Played {
    let command = format!("head -c {bytes} /dev/urandom >'{path}'");
    let made = crate::kit::output(Command::new("sh").args(["-c", &command]));
    match made.map_err(|e| e.to_string())?.status.success() {
        true => Ok(()),
        false => Err(format!("no room for {} GiB and as much again", bytes >> 30)),
    }
}

/// A snapshot of all disks: how long it took, and what it says of the disk that is meant.
struct Timed {
    time: Duration,
    of: Value,
}

fn timed(site: &Site, more: &[&str]) -> Timed {
    let begun = Instant::now();
    let mut taken = site.snapshot(more);
    Timed { time: begun.elapsed(), of: taken.swap_remove(1) }
}

fn middle(mut all: Vec<Timed>) -> Timed {
    all.sort_by_key(|timed| timed.time);
    all.swap_remove(all.len() / 2)
}

fn line(what: &str, Timed { time, of }: &Timed) {
    let mib = |key: &str| of[key].as_u64().unwrap() >> 20;
    let (read, stored) = (mib("read_bytes"), mib("stored_bytes"));
    println!("  {what:<38} {:>7.2} {read:>6} MiB {stored:>6} MiB", time.as_secs_f64());
}
