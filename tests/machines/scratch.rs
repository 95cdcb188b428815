//! The scratch file is full, or slow, or the server of the disks goes: that costs the snapshot, never the guest.

use crate::Played;
use crate::guest::Guest;
use crate::kit::{Loop, MIB, Mount, make, root, tool, tools, try_tool};
use crate::random::wait_until;
use crate::rig::{Rig, Site, end, ended_well, milliseconds, whole_because};
use serde_json::json;
use std::time::Duration;

/// A write may wait until the filter gives up, which is after 2 s, and a second more.
const LONGEST: Duration = Duration::from_secs(3);
/// The disk that is read slowly, and written to meanwhile.
const BYTES: u64 = 64 * MIB;
/// So slowly that there is time to do something.
const SLOWLY: [&str; 2] = ["--limit-read", "4M"];

pub fn run(rig: &Rig) -> Played {
    root()?;
    tools(&["fsfreeze", "mkfs.ext4", "mount"])?;
    let mut site = rig.site();
    site.machine = site.machine.new_disk(BYTES, "raw");
    let mut guest = boot(&site);
    site.snapshot(&[]);
    println!("  what                     the guest's slowest write   the snapshot");
    let before = slowest_in(&guest, Duration::from_secs(10));
    println!("  nothing                  {:>9}", milliseconds(before));

    too_small(&site);
    full(&site, &mut guest);
    slow(&site, &mut guest);
    server_stopped(&site, &mut guest);

    guest.is_well();
    let qemu_killed = site.start(&site.snapshot_args(&[&SLOWLY[..], &["--full"]].concat()));
    is_read(&mut guest);
    guest.kill();
    report("QEMU killed", None, end(qemu_killed));
    let mut guest = boot(&site);
    goes_on(&site, &mut guest, false);
    Ok(())
}

fn boot(site: &Site) -> Guest {
    let mut guest = site.machine.boot();
    let from = guest.console.count();
    guest.console.run(&format!("work fill /dev/vdb {BYTES} 7"));
    guest.console.waits_for("FILLED", from);
    guest.measures("/dev/vdb", BYTES);
    guest
}

fn slowest_in(guest: &Guest, time: Duration) -> Duration {
    guest.ticks.reset();
    std::thread::sleep(time);
    guest.ticks.slowest().0
}

/// Waits until disks are served, and read.
#[track_caller]
fn is_read(guest: &mut Guest) {
    let served = |guest: &mut Guest| {
        let exports = guest.qmp.execute("query-block-exports", json!({}));
        exports.as_array().unwrap().len() >= 2
    };
    assert!(wait_until(|| served(guest)), "no disk is served");
    std::thread::sleep(Duration::from_millis(500));
}

#[track_caller]
fn report(what: &str, slowest: Option<Duration>, run: crate::kit::Run) {
    ended_well(&run);
    assert_ne!(run.code(), Some(0), "{what}: it is a snapshot all the same");
    let slowest_ms = slowest.map_or("-".to_owned(), milliseconds);
    println!("  {what:<24} {slowest_ms:>9}                   {}", run.err.trim());
    assert!(slowest.is_none_or(|slowest| slowest < LONGEST), "{what}: {slowest:?}");
}

/// The next snapshot is one, by what the bitmaps know, and nothing is left.
#[track_caller]
fn goes_on(site: &Site, guest: &mut Guest, by_bitmaps: bool) {
    let taken = site.snapshot(&[]);
    for taken in &taken {
        assert_eq!(whole_because(taken).is_none(), by_bitmaps, "{taken}");
    }
    site.is_tidy(guest, &taken);
    guest.is_well();
}

/// With hardly any free space nothing is begun.
fn too_small(site: &Site) {
    let _mount = Mount::tmpfs(&site.lab.path("scratch"), "size=8M").unwrap();
    report("8 MiB of scratch", None, site.run(&site.snapshot_args(&[])));
}

fn full(site: &Site, guest: &mut Guest) {
    let mount = Mount::tmpfs(&site.lab.path("scratch"), "size=20M").unwrap();
    guest.ticks.reset();
    let run = site.run(&site.snapshot_args(&[&SLOWLY[..], &["--full"]].concat()));
    report("scratch full", Some(guest.ticks.slowest().0), run);
    mount.unmount();
    goes_on(site, guest, true);
}

/// A file system that takes no write for a while.
struct Frozen<'a>(&'a str);

impl<'a> Frozen<'a> {
    fn new(at: &'a str) -> Self {
        tool("fsfreeze", &["-f", at]);
        Self(at)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        try_tool("fsfreeze", &["-u", self.0]).ok();
    }
}

fn slow(site: &Site, guest: &mut Guest) {
    let file = site.lab.path("scratch.fs");
    make(&file, 256 * MIB);
    tool("mkfs.ext4", &["-q", &file]);
    let device = Loop::new(&[], &file).unwrap();
    let at = site.lab.path("scratch");
    let mount = Mount::new(&[&device.device], &at).unwrap();
    let started = site.start(&site.snapshot_args(&[&SLOWLY[..], &["--full"]].concat()));
    is_read(guest);
    guest.ticks.reset();
    let frozen = Frozen::new(&at);
    std::thread::sleep(Duration::from_secs(10));
    let slowest = guest.ticks.slowest().0;
    drop(frozen);
    report("scratch takes no write", Some(slowest), end(started));
    // What had to wait for it was in QEMU: that must not have held it up.
    mount.unmount();
    goes_on(site, guest, true);
}

fn server_stopped(site: &Site, guest: &mut Guest) {
    guest.ticks.reset();
    let started = site.start(&site.snapshot_args(&[&SLOWLY[..], &["--full"]].concat()));
    is_read(guest);
    guest.qmp.execute("nbd-server-stop", json!({}));
    let run = end(started);
    report("NBD server stopped", Some(guest.ticks.slowest().0), run);
    goes_on(site, guest, true);
}
