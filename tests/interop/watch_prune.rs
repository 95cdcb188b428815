//! A watch whose prune takes long, or is interrupted.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;
use imgsnap::base::events::{Context, Event, Observer};
use imgsnap::repo::host::HostState;
use imgsnap::repo::retention::{Count, Rules};
use imgsnap::store::{Disk, DiskFile, Listed, LocalStore, LockGuard, LockKind, OsDisk};
use imgsnap::{Repository, SnapshotRequest, WatchRequest, Watched};
use jiff::Timestamp;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long the prune takes, at least.
const PRUNE: Duration = Duration::from_millis(700);
/// Clocks may be set meanwhile, by a little.
const SLACK_SECONDS: f64 = 0.2;

type Action = Box<dyn Fn() + Send + Sync>;

/// A disk on which something happens as soon as the prune after the snapshot begins: the lock to write is
/// taken the second time.
struct Meddling {
    disk: OsDisk,
    locks: AtomicU64,
    action: Action,
}

impl Disk for Meddling {
    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        self.disk.list(folder)
    }

    fn list_timed(&self, folder: &str) -> io::Result<Vec<Listed>> {
        self.disk.list_timed(folder)
    }

    fn size(&self, path: &str) -> io::Result<u64> {
        self.disk.size(path)
    }

    fn read_at(&self, path: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.disk.read_at(path, offset, buffer)
    }

    fn create(&self, path: &str) -> io::Result<Box<dyn DiskFile>> {
        self.disk.create(path)
    }

    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename_new(from, to)
    }

    fn rename_over(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename_over(from, to)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn create_folder(&self, folder: &str) -> io::Result<()> {
        self.disk.create_folder(folder)
    }

    fn remove_folder(&self, folder: &str) -> io::Result<()> {
        self.disk.remove_folder(folder)
    }

    fn sync_folder(&self, folder: &str) -> io::Result<()> {
        self.disk.sync_folder(folder)
    }

    fn share_bytes(&self, path: &str, bytes: &[i64]) -> io::Result<Option<LockGuard>> {
        self.disk.share_bytes(path, bytes)
    }

    fn is_shared(&self, path: &str, byte: i64, count: i64) -> io::Result<bool> {
        self.disk.is_shared(path, byte, count)
    }

    fn lock(&self, path: &str, kind: LockKind) -> io::Result<Option<LockGuard>> {
        let is_to_write = path == "vm/write.lock" && kind == LockKind::Exclusive;
        if is_to_write && self.locks.fetch_add(1, Ordering::SeqCst) == 1 {
            (self.action)();
        }
        self.disk.lock(path, kind)
    }

    fn location(&self, path: &str) -> String {
        self.disk.location(path)
    }
}

/// Keeps what is warned of.
#[derive(Default)]
struct Warnings(Mutex<Vec<String>>);

impl Observer for Warnings {
    fn observe(&self, event: Event) {
        if let Event::Warning { message, .. } = event {
            self.0.lock().unwrap().push(message.to_string());
        }
    }
}

/// What came of the one turn of a watch of an image with two snapshots, of which one is kept.
struct Ended {
    turns: Vec<Watched>,
    /// When the turn was told of.
    ended: Timestamp,
    /// When the newest snapshot before it was taken.
    before: Timestamp,
    warnings: Vec<String>,
    left: Vec<u64>,
}

fn watch_once(lab: &Lab, action: impl Fn(&AtomicBool) + Send + Sync + 'static) -> Ended {
    let image = lab.path("vm.img");
    make(&image, MIB);
    lab.run(&["init"]).done();
    for number in 1..=2 {
        put(&image, 0, &noise(number, 4096));
        lab.snapshot(&image);
    }
    let listed = lab.run(&["list", "--json"]).done().json();
    let before = listed[1]["time"].as_str().unwrap().parse().unwrap();
    put(&image, 0, &noise(3, 4096));

    // From here on this process has the image open.
    let _calm = no_fork();
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    let disk = Meddling {
        disk: OsDisk::new(PathBuf::from(&lab.repo)),
        locks: AtomicU64::new(0),
        action: Box::new(move || action(&flag)),
    };
    let host = HostState::in_folder(lab.path("state").as_ref());
    let repository = Repository::open_in(Arc::new(LocalStore::new(Arc::new(disk))), host).unwrap();
    let warnings = Arc::new(Warnings::default());
    let context = Context::new(warnings.clone(), stop.clone()).with_threads(1);
    let request =
        WatchRequest::new(vec![SnapshotRequest::new(Path::new(&image))], Duration::from_secs(3600))
            .rules(Some(Rules { last: Some(Count::Most(1)), ..Rules::default() }));
    let turns = Mutex::new(Vec::new());
    let ended = Mutex::new(None);
    let each = |watched| {
        *ended.lock().unwrap() = Some(Timestamp::now());
        turns.lock().unwrap().push(watched);
        stop.store(true, Ordering::SeqCst);
    };
    repository.watch(&request, &context, each).unwrap();
    let silent = Context::silent();
    let left = repository.list("vm", &silent).unwrap().manifest.snapshots;
    Ended {
        turns: turns.into_inner().unwrap(),
        ended: ended.into_inner().unwrap().unwrap(),
        before,
        warnings: std::mem::take(&mut *warnings.0.lock().unwrap()),
        left: left.iter().map(|s| s.number).collect(),
    }
}

#[test]
fn what_a_watch_would_lose_is_measured_when_the_snapshot_stands_and_not_after_the_prune() {
    let lab = Lab::new();
    // A prune that takes long.
    let ended = watch_once(&lab, |_| std::thread::sleep(PRUNE));
    assert_eq!((ended.turns.len(), ended.left.as_slice()), (1, &[3][..]), "{:?}", ended.warnings);
    let turn = &ended.turns[0];
    assert!(turn.pruned.as_ref().is_some_and(Result::is_ok), "nothing was pruned");
    assert!(turn.seconds >= PRUNE.as_secs_f64(), "the prune took no time: {}", turn.seconds);
    let taken = turn.result.as_ref().unwrap().snapshot.time;
    for (told, from) in
        [(turn.age_seconds.unwrap(), taken), (turn.rpo_seconds.unwrap(), ended.before)]
    {
        // With the prune it would be all of that.
        let with_prune = ended.ended.duration_since(from).as_secs_f64();
        let most = with_prune - PRUNE.as_secs_f64() + SLACK_SECONDS;
        assert!((0.0..=most).contains(&told), "{told} {with_prune}");
    }
}

#[test]
fn a_watch_that_is_stopped_during_a_prune_does_not_call_that_a_failure() {
    let lab = Lab::new();
    let ended = watch_once(&lab, |stop| stop.store(true, Ordering::SeqCst));
    assert_eq!(ended.turns.len(), 1, "the snapshot stands, and is told of");
    let turn = &ended.turns[0];
    assert_eq!(turn.result.as_ref().unwrap().snapshot.number, 3);
    // What the command line warns of is a failure that stands here.
    assert!(turn.pruned.is_none(), "it was pruned, or failed");
    assert_eq!((ended.warnings, ended.left), (vec![], vec![1, 2, 3]));
    // The next one goes on with that.
    lab.run(&["prune", "vm", "--keep-last", "1"]).done();
    assert_eq!(lab.numbers("vm"), [3]);
}
