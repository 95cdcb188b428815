//! Tracked images that are written to while snapshots are taken, and snapshots and rollbacks of them that
//! are killed.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;
use nix::sys::signal::Signal;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const BLOCK: usize = 4096;
const XFS: (&str, &[&str]) = ("mkfs.xfs", &["-q", "-m", "reflink=1"]);
const BTRFS: (&str, &[&str]) = ("mkfs.btrfs", &["-q"]);

/// The blocks that the writer goes round in.
const SLOTS: u64 = 512;
const LIVE_BYTES: u64 = 32 * MIB;

/// Where the slots are: with a block between them, at the end of the image.
fn place_of(slot: u64) -> u64 {
    LIVE_BYTES - (2 * slot + 2) * BLOCK as u64
}

/// The slot of a write.
fn slot_of(number: u64) -> usize {
    usize::try_from(Random(number).below(SLOTS)).unwrap()
}

/// What a write puts there: its number, and bytes that belong to it.
fn block_of(number: u64) -> Vec<u8> {
    let words = (0..BLOCK as u64 / 8).map(|i| number.wrapping_mul(1 + 0x9e37_79b9 * i));
    words.flat_map(u64::to_le_bytes).collect()
}

/// Writes as a machine does, in order, until it is told to stop. `done` is the last one that is written.
fn write_on(path: &str, flags: i32, done: &AtomicU64, stop: &AtomicBool) {
    let file = File::options().write(true).custom_flags(flags).open(path).unwrap();
    let mut buffer = vec![0; 2 * BLOCK];
    let start = buffer.as_ptr().align_offset(BLOCK);
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let block = &mut buffer[start..start + BLOCK];
        block.copy_from_slice(&block_of(number));
        file.write_all_at(block, place_of(slot_of(number) as u64)).unwrap();
        done.store(number, Ordering::Relaxed);
    }
}

/// Fails unless the image is what it was after the writes 1 to n, for some n, which it gives.
#[track_caller]
fn is_prefix(restored: &str) -> u64 {
    let found: Vec<Vec<u8>> =
        (0..SLOTS).map(|slot| get(restored, place_of(slot), BLOCK as u64)).collect();
    let number = |block: &[u8]| u64::from_le_bytes(block[..8].try_into().unwrap());
    let newest = found.iter().map(|block| number(block)).max().unwrap();
    let mut last = vec![0; found.len()];
    for write in 1..=newest {
        last[slot_of(write)] = write;
    }
    for (slot, (block, last)) in found.iter().zip(last).enumerate() {
        let has = number(block);
        assert_eq!(has, last, "slot {slot} has another write than it had after write {newest}");
        assert!(*block == block_of(last), "slot {slot} is torn");
    }
    newest
}

fn take(lab: &Lab, image: &str) -> Value {
    let args = ["snapshot", image, "--track", "reflink", "--recheck", "0", "--json"];
    lab.run(&args).done().json()
}

/// Stops the writer, also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn written_to_meanwhile(system: (&str, &[&str]), flags: i32) -> Result<(), String> {
    let lab = Lab::new();
    let _guards = mounted(&lab, system.0, system.1, 500)?;
    let image = lab.path("mnt/vm.img");
    make(&image, LIVE_BYTES);
    put(&image, 0, &noise(1, LIVE_BYTES / 2));
    let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut before = 0;
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_on(&image, flags, &done, &stop));
        let _stop = Stop(&stop);
        for round in 0..6 {
            let has_moved = || done.load(Ordering::Relaxed) > before + 300;
            assert!(wait_until(has_moved) && !writer.is_finished(), "the writer stands still");
            let at_least = done.load(Ordering::Relaxed);
            let taken = take(&lab, &image);
            let at_most = done.load(Ordering::Relaxed) + 1;
            assert_eq!(taken["in_use"], true, "{taken}");
            assert!(taken["in_use_by"].is_string() && taken["clone_seconds"].is_f64(), "{taken}");
            let restored = lab.restore(taken["ref"].as_str().unwrap());
            same_start(&restored, &image, LIVE_BYTES / 2);
            let newest = is_prefix(&restored);
            assert!((at_least..=at_most).contains(&newest), "{at_least} {newest} {at_most}");
            before = newest;
            if round > 0 {
                assert_eq!(taken["hint"]["kind"], "extents", "{taken}");
                assert!(taken["read_bytes"].as_u64().unwrap() < LIVE_BYTES / 2, "{taken}");
            }
        }
    });
    // And when it is over, the last state.
    let taken = take(&lab, &image);
    assert_eq!((&taken["in_use"], &taken["hint"]["kind"]), (&false.into(), &"extents".into()));
    let restored = lab.restore(taken["ref"].as_str().unwrap());
    same(&image, &restored);
    assert_eq!(is_prefix(&restored), done.load(Ordering::Relaxed));
    assert_eq!(names_in(&lab.path("mnt/.imgsnap")).len(), 1);
    lab.verify(7);
    Ok(())
}

#[test]
fn snapshots_of_an_image_that_is_written_to_on_xfs_are_each_of_one_moment() {
    need!(written_to_meanwhile(XFS, 0));
}

#[test]
fn snapshots_of_an_image_that_is_written_to_directly_on_xfs_are_each_of_one_moment() {
    need!(written_to_meanwhile(XFS, libc::O_DIRECT));
}

#[test]
fn snapshots_of_an_image_that_is_written_to_on_btrfs_are_each_of_one_moment() {
    need!(written_to_meanwhile(BTRFS, 0));
}

#[test]
fn snapshots_of_an_image_that_is_written_to_directly_on_btrfs_are_each_of_one_moment() {
    need!(written_to_meanwhile(BTRFS, libc::O_DIRECT));
}

/// True if a process holds a lease on a file that somebody wants broken.
fn is_asked_to_let_go(process: u32) -> bool {
    let folder = format!("/proc/{process}/fdinfo");
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let texts = entries.filter_map(|entry| std::fs::read_to_string(entry.path()).ok());
    texts.into_iter().any(|text| text.contains("LEASE") && text.contains("BREAKING"))
}

/// How much of a delta is written so far.
fn written_so_far(lab: &Lab) -> u64 {
    let folder = format!("{}/vm", lab.repo);
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let new = entries.filter(|entry| entry.file_name().to_string_lossy().ends_with(".tmp"));
    new.filter_map(|entry| entry.metadata().ok()).map(|meta| meta.len()).max().unwrap_or(0)
}

/// Somebody who writes that many blocks of zeros.
fn open_and_write(image: &str, blocks: u64) -> Started {
    let (of, count) = (format!("of={image}"), format!("count={blocks}"));
    let args = ["if=/dev/zero", &of, "bs=4096", "seek=3", &count, "conv=notrunc,fsync"];
    Started::spawn(tool_command("dd", &args).unwrap())
}

/// Somebody opens the image while a snapshot reads it: he gets it, and the snapshot goes on with the clone.
/// `tracked`: the second snapshot, by extents; otherwise the first. `in_the_middle`: some of it is stored.
fn opened_meanwhile(
    system: (&str, &[&str]),
    tracked: bool,
    in_the_middle: bool,
) -> Result<(), String> {
    let lab = Lab::new();
    let _guards = mounted(&lab, system.0, system.1, 400)?;
    let image = lab.path("mnt/vm.img");
    make(&image, 24 * MIB + 5000);
    put(&image, 0, &text(1, 10 * MIB));
    if tracked {
        take(&lab, &image);
        put(&image, 0, &text(2, 10 * MIB));
    }
    let before = lab.path("before");
    keep(&image, &before);
    if !tracked {
        lab.run(&["init"]).done();
    }
    let slow = ["snapshot", &image, "--compression", "zstd:15", "--threads", "1", "--json"];
    let held = lab.start_held(&slow, "lock 1", &image).unwrap();
    let mut snapshot = held.ok_or("it does not hold the image")?;
    if in_the_middle {
        snapshot.signal(Signal::SIGCONT);
        assert!(wait_until(|| written_so_far(&lab) >= 2 * MIB || snapshot.is_over()));
        snapshot.signal(Signal::SIGSTOP);
    }
    let mut opener = open_and_write(&image, 700);
    let id = snapshot.id();
    assert!(wait_until(|| is_asked_to_let_go(id)), "nobody wants the image");
    assert!(!opener.is_over());
    snapshot.signal(Signal::SIGCONT);
    // The kernel takes it away by force only after 45 seconds: until then it was given up.
    assert!(wait_until(|| opener.is_over()), "the opener has to wait");
    assert_eq!(opener.wait().code(), Some(0));
    let taken = snapshot.wait().done().json();
    assert_eq!(taken["hint"].is_object(), tracked, "{taken}");
    same(&before, &lab.restore(taken["ref"].as_str().unwrap()));
    lab.is_tidy("vm");
    let taken = take(&lab, &image);
    assert_eq!(taken["hint"]["kind"], "extents", "what was written meanwhile is not believed");
    assert_eq!(taken["changed_blocks"], 700, "{taken}");
    same(&image, &lab.restore(taken["ref"].as_str().unwrap()));
    assert_eq!(names_in(&lab.path("mnt/.imgsnap")).len(), 1);
    Ok(())
}

#[test]
fn who_opens_the_image_before_it_is_read_gets_it_and_the_clone_is_read() {
    need!(opened_meanwhile(XFS, false, false));
    need!(opened_meanwhile(BTRFS, true, false));
}

#[test]
fn who_opens_the_image_while_it_is_read_gets_it_and_the_clone_is_read() {
    need!(opened_meanwhile(XFS, true, true));
    need!(opened_meanwhile(BTRFS, false, true));
}

/// No clone is made of an image that is as it was: then it is the last one that is read.
#[test]
fn who_opens_the_image_while_an_unchanged_one_is_read_again_gets_it_too() {
    let lab = Lab::new();
    let _guards = need!(mounted(&lab, XFS.0, XFS.1, 400));
    let image = lab.path("mnt/vm.img");
    make(&image, 96 * MIB);
    put(&image, 0, &noise(1, 96 * MIB));
    take(&lab, &image);
    let before = lab.path("before");
    keep(&image, &before);
    let args = ["-v", "snapshot", &image, "--recheck", "100%", "--threads", "1", "--json"];
    let mut snapshot = lab.start(&args);
    let says = "vm@2: its file is unchanged since the head was noted";
    assert!(snapshot.stop_when_it_says(says), "it does not say so");
    let mut opener = open_and_write(&image, 50);
    let id = snapshot.id();
    assert!(wait_until(|| is_asked_to_let_go(id)), "nobody wants the image");
    snapshot.signal(Signal::SIGCONT);
    assert!(wait_until(|| opener.is_over()), "the opener has to wait");
    assert_eq!(opener.wait().code(), Some(0));
    let taken = snapshot.wait().done().json();
    assert_eq!(taken["changed_blocks"], 0, "{taken}");
    same(&before, &lab.restore("vm@2"));
    let taken = take(&lab, &image);
    assert_eq!((&taken["hint"]["kind"], &taken["changed_blocks"]), (&"extents".into(), &50.into()));
    same(&image, &lab.restore("vm@3"));
}

/// How often snapshots and rollbacks are killed; `IMGSNAP_KILLS` says otherwise.
fn kills() -> u64 {
    std::env::var("IMGSNAP_KILLS").map_or(10, |text| text.parse().unwrap())
}

struct Trial {
    // Undone in this order.
    _guards: (Loop, Mount),
    lab: Lab,
    image: String,
    random: Random,
    known: BTreeMap<u64, Vec<u8>>,
    slowest: BTreeMap<String, Duration>,
    kills: u64,
    /// Kills that left a clone which no snapshot needs, or two of them.
    leftovers: u64,
}

impl Trial {
    fn bytes(&self) -> Vec<u8> {
        get(&self.image, 0, length(&self.image))
    }

    fn change(&mut self) {
        for _ in 0..1 + self.random.below(30) {
            let at = self.random.below(7 * MIB);
            let bytes = 1 + self.random.below(60_000);
            put(&self.image, at, &noise(self.random.next(), bytes));
        }
        if self.random.below(4) == 0 {
            set_length(&self.image, 7 * MIB + self.random.below(2 * MIB));
        }
    }

    /// Runs a command and kills it at a random moment, if it takes that long. None if it was.
    fn run(&mut self, args: &[&str]) -> Option<Run> {
        let slowest = self.slowest.get(args[0]).copied().unwrap_or(Duration::from_millis(50));
        let micros = u64::try_from(slowest.as_micros()).unwrap();
        let moment = Duration::from_micros(self.random.below(micros * 5 / 4));
        let begun = Instant::now();
        let mut run = self.lab.start(args);
        while begun.elapsed() < moment && !run.is_over() {
            std::thread::sleep(Duration::from_micros(100));
        }
        if !run.is_over() {
            run.signal(Signal::SIGKILL);
        }
        let run = run.wait();
        if run.is_killed() {
            self.kills += 1;
            return None;
        }
        let slowest = slowest.max(begun.elapsed().min(slowest * 2));
        self.slowest.insert(args[0].into(), slowest);
        Some(run.done())
    }

    fn listed(&self) -> Vec<u64> {
        self.lab.numbers("vm")
    }

    /// A snapshot that a killed command made after all is what the image was then.
    #[track_caller]
    fn learn(&mut self, was: &[u8]) {
        let listed = self.listed();
        assert!(self.known.keys().all(|number| listed.contains(number)), "something is lost");
        for number in listed {
            if !self.known.contains_key(&number) {
                self.restores(number, was);
                self.known.insert(number, was.to_vec());
            }
        }
    }

    #[track_caller]
    fn restores(&self, number: u64, bytes: &[u8]) {
        let restored = self.lab.run(&["restore", &format!("vm@{number}"), "-o", "-"]).done();
        assert!(restored.out == bytes, "vm@{number} is not what it was");
    }

    fn clones(&self) -> usize {
        names_in(&self.lab.path("mnt/.imgsnap")).len()
    }

    /// To another snapshot, once or twice killed on its way.
    fn rollback(&mut self) {
        let before = self.bytes();
        let number = pick(&mut self.random, &self.known.keys().copied().collect::<Vec<_>>());
        let to = format!("vm@{number}");
        let mut args = vec!["rollback", "vm", "--to", &to];
        args.extend((self.random.below(3) == 0).then_some("--no-save"));
        let mut attempts = 0;
        while self.run(&args).is_none() {
            self.learn(&before);
            let is_mixture = self.lab.run(&["list"]).done().err.contains("was interrupted");
            let now = self.bytes();
            assert!(is_mixture || now == before || now == self.known[&number], "a mixture unknown");
            attempts += 1;
            if attempts == 3 {
                self.lab.run(&args).done();
                break;
            }
        }
        self.learn(&before);
        assert!(self.bytes() == self.known[&number], "the image is not {to}");
    }

    fn round(&mut self) {
        self.change();
        let image = self.image.clone();
        let snapshot = ["snapshot", &image, "--track", "reflink", "--recheck", "0"];
        let was = self.bytes();
        match self.random.below(3) {
            0 => self.rollback(),
            _ => {
                self.run(&snapshot);
                self.learn(&was);
            }
        }
        let is_left =
            !std::fs::exists(self.lab.path("mnt/.imgsnap")).unwrap() || self.clones() != 1;
        self.leftovers += u64::from(is_left);
        if self.random.below(2) == 0 {
            self.change();
        }
        let taken = take(&self.lab, &image);
        let bytes = self.bytes();
        self.learn(&bytes);
        let number = taken["number"].as_u64().unwrap();
        self.restores(number, &bytes);
        assert_eq!(self.clones(), 1, "{:?}", names_in(&self.lab.path("mnt/.imgsnap")));
        self.lab.is_tidy("vm");
        // Not more than the comparison of a few takes.
        if self.known.len() > 6 {
            let last = ["prune", "vm", "--keep-last", "3", "--compact"];
            self.lab.run(&last).done();
            let listed = self.listed();
            self.known.retain(|number, _| listed.contains(number));
        }
    }
}

#[test]
fn killed_at_random_moments_tracked_snapshots_and_rollbacks_leave_no_clones_behind() {
    let lab = Lab::new();
    let guards = need!(mounted(&lab, XFS.0, XFS.1, 400));
    let image = lab.path("mnt/vm.img");
    make(&image, 8 * MIB + 1000);
    put(&image, 0, &noise(1, 5 * MIB));
    let mut trial = Trial {
        lab,
        _guards: guards,
        image,
        random: Random(20_261_121),
        known: BTreeMap::new(),
        slowest: BTreeMap::new(),
        kills: 0,
        leftovers: 0,
    };
    trial.known.insert(trial.lab.snapshot(&trial.image), trial.bytes());
    let (kills, mut rounds) = (kills(), 0);
    while trial.kills < kills {
        rounds += 1;
        assert!(rounds < 20 * kills, "only {} of {rounds} were killed", trial.kills);
        trial.round();
    }
    let (number, bytes) = trial.known.last_key_value().unwrap();
    trial.restores(*number, bytes);
    trial.lab.verify(trial.known.len());
    // With many kills some must have come between the clone and the commit.
    assert!(kills < 200 || trial.leftovers > 0, "no kill left a clone behind");
}

/// Two images that others write to have no common point in time unless they are frozen; with one of them, the
/// other is the same at every moment.
#[test]
fn a_group_of_images_that_are_written_to_is_said_to_be_taken_apart() {
    let (lab, _guards, image) = need!(crate::tracked::xfs());
    let other = lab.path("mnt/other.img");
    std::fs::copy(&image, &other).unwrap();
    let open = |path: &str| File::options().write(true).open(path).unwrap();
    let writer = open(&image);
    let group = ["snapshot", &image, &other, "--group", "g"];
    let run = lab.run(&group).done();
    assert!(!run.err.contains("one after another"), "{}", run.err);
    let second = open(&other);
    lab.run(&group)
        .done()
        .says("were written to, but taken one after another; freeze them with --freeze");
    let apart = |number: u64| {
        let shown = lab.run(&["show", &format!("vm@{number}"), "--json"]).done().json();
        shown["group"]["apart"] == true
    };
    assert_eq!((apart(1), apart(2)), (false, true));
    drop((writer, second));
}
