//! Whatever a verb reads of an image or of delta files, it reads within the limit: the bytes that the limit has
//! granted are those that were read.

use crate::support::Random;
use crate::support::random::wait_until;
use imgsnap::base::digest::DigestAlgorithm;
use imgsnap::base::error::{ErrorKind, Result};
use imgsnap::base::events::{Context, Event, Observer};
use imgsnap::base::read_limit::ReadRate;
use imgsnap::image::{RawFile, Source};
use imgsnap::repo::host::HostState;
use imgsnap::repo::retention::{Count, Rules};
use imgsnap::store::{Disk, DiskFile, Listed, LocalStore, LockGuard, LockKind, OsDisk, Store};
use imgsnap::{
    ApplyRequest, ApplyTarget, At, Defaults, DiffImage, DiffSide, ExportRequest, MendSource,
    ParentChoice, PruneRequest, Repository, RestoreRequest, RestoreTarget, RollbackRequest,
    SnapshotRequest, Track, VerifyScope, WatchRequest, ops,
};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Larger than a window, and a piece.
const BYTES: u64 = 3 << 20;
const BLOCK: usize = 4096;

/// A folder of which it is counted how much of delta files is read.
struct Counting {
    disk: OsDisk,
    read: Arc<AtomicU64>,
}

impl Disk for Counting {
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
        let is_delta = path.ends_with(".delta");
        self.read.fetch_add(if is_delta { buffer.len() as u64 } else { 0 }, Ordering::Relaxed);
        self.disk.read_at(path, offset, buffer)
    }

    fn prefetch(&self, path: &str, _: u64, _: u64) {
        panic!("{path} is read before that is granted");
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
        self.disk.lock(path, kind)
    }

    fn location(&self, path: &str) -> String {
        self.disk.location(path)
    }

    fn local_path(&self) -> Option<&Path> {
        self.disk.local_path()
    }
}

struct Lab {
    folder: tempfile::TempDir,
    read: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Lab {
    fn new() -> Self {
        let lab = Self {
            folder: tempfile::tempdir().unwrap(),
            read: Arc::default(),
            stop: Arc::default(),
        };
        for name in ["vm", "moved", "golden"] {
            std::fs::write(lab.path(name), Random(7).bytes(BYTES as usize)).unwrap();
        }
        for name in ["repo", "other"] {
            std::fs::create_dir(lab.path(name)).unwrap();
            let defaults = Defaults { digest: DigestAlgorithm::Blake3, ..Defaults::default() };
            Repository::init_in(lab.store(name), defaults, lab.host()).unwrap();
        }
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn store(&self, name: &str) -> Arc<dyn Store> {
        let disk = Counting { disk: OsDisk::new(self.path(name)), read: self.read.clone() };
        Arc::new(LocalStore::new(Arc::new(disk)))
    }

    fn host(&self) -> HostState {
        HostState::in_folder(&self.path("state"))
    }

    fn open(&self, name: &str, context: &Context) -> Repository {
        Repository::open_in(self.store(name), self.host()).unwrap().reading_within(context)
    }

    fn change(&self, seed: u64) {
        let mut image = std::fs::read(self.path("vm")).unwrap();
        let mut random = Random(seed);
        for _ in 0..20 {
            let at = random.below(BYTES / BLOCK as u64) as usize * BLOCK;
            image[at..at + BLOCK].copy_from_slice(&random.bytes(BLOCK));
        }
        std::fs::write(self.path("vm"), image).unwrap();
    }

    fn request(&self) -> SnapshotRequest {
        let image = self.path("vm");
        SnapshotRequest::new(image.as_path())
            .track(Some(Track::None))
            .full_scan(true)
            .format(Some(imgsnap::image::ImageFormat::RAW))
    }

    /// Damages a frame of the newest snapshot of `vm`.
    fn damage(&self) {
        let silent = Context::silent();
        let manifest = self.open("repo", &silent).list("vm", &silent).unwrap().manifest;
        let file = self.path("repo").join("vm").join(&manifest.snapshots.last().unwrap().file);
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[5000] ^= 1;
        std::fs::write(&file, bytes).unwrap();
    }
}

fn restored(lab: &Lab, repository: &Repository, name: &str, context: &Context) -> Result<u64> {
    let request = RestoreRequest::new(name).at(At::Latest).force(true);
    let target = lab.path("restored");
    repository.restore(&request, RestoreTarget::Path(&target), context)?;
    Ok(0)
}

/// Reads besides delta files of the repository, as it tells or is known: so many bytes.
type Verb = fn(&Lab, &Repository, &Context) -> Result<u64>;

/// One after the other.
const VERBS: &[(&str, Verb)] = &[
    ("snapshot, the first", |lab, repository, context| {
        let taken = repository.snapshot(&lab.request(), context)?;
        assert_eq!(taken.snapshot.read_bytes, Some(BYTES));
        Ok(BYTES)
    }),
    ("snapshot, a dry run", |lab, repository, context| {
        lab.change(1);
        let taken = repository.snapshot(&lab.request().dry_run(true), context)?;
        Ok(taken.snapshot.read_bytes.unwrap())
    }),
    ("snapshot, incremental", |lab, repository, context| {
        Ok(repository.snapshot(&lab.request(), context)?.snapshot.read_bytes.unwrap())
    }),
    ("snapshot, of what is rechecked alone", |lab, repository, context| {
        let taken = repository.snapshot(&lab.request().full_scan(false), context)?;
        Ok(taken.snapshot.read_bytes.unwrap())
    }),
    ("snapshot, of a bad disk", |lab, repository, context| {
        lab.change(2);
        let request = lab.request().skip_bad(true);
        Ok(repository.snapshot(&request, context)?.snapshot.read_bytes.unwrap())
    }),
    ("watch", |lab, repository, context| {
        lab.change(3);
        let request = WatchRequest::new(vec![lab.request()], Duration::from_secs(3600));
        let taken = AtomicU64::new(0);
        repository.watch(&request, context, |watched| {
            let read = watched.result.unwrap().snapshot.read_bytes.unwrap();
            taken.store(read, Ordering::Relaxed);
            lab.stop.store(true, Ordering::Relaxed);
        })?;
        lab.stop.store(false, Ordering::Relaxed);
        Ok(taken.into_inner())
    }),
    ("rollback", |_, repository, context| {
        let request = RollbackRequest::new("vm", At::Number(1));
        repository.rollback(&request, context)?;
        Ok(0)
    }),
    ("rollback, proved", |lab, repository, context| {
        lab.change(4);
        let request = RollbackRequest::new("vm", At::Number(1)).prove(true);
        let done = repository.rollback(&request, context)?;
        assert!(done.scanned && done.proved);
        // What is saved first is found by a scan; the proof is the second.
        Ok(2 * BYTES)
    }),
    ("restore", |lab, repository, context| restored(lab, repository, "vm", context)),
    ("restore, onto what is there", |lab, repository, context| {
        let request = RestoreRequest::new("vm").at(At::Number(1)).update(true);
        let target = lab.path("restored");
        let done = repository.restore(&request, RestoreTarget::Path(&target), context)?;
        let update = done.update.unwrap();
        Ok(update.read_bytes + update.samples.unwrap().compared * BLOCK as u64)
    }),
    ("restore, with a seed", |lab, repository, context| {
        let request = RestoreRequest::new("vm").force(true).seed(Some(lab.path("moved")));
        let target = lab.path("restored");
        let done = repository.restore(&request, RestoreTarget::Path(&target), context)?;
        assert!(done.restored.seed_bytes > 0);
        Ok(BYTES)
    }),
    ("verify", |_, repository, context| {
        assert_eq!(repository.verify(&VerifyScope::All, false, context)?.damaged, []);
        Ok(0)
    }),
    ("stats", |_, repository, context| repository.stats("vm", context).map(|_| 0)),
    ("view", |_, repository, context| {
        let view = repository.view("vm", &At::Number(2), context)?;
        view.read(0, BYTES as usize, &mut Vec::new())?;
        Ok(0)
    }),
    ("diff of a snapshot and an image", |lab, repository, context| {
        let before = DiffSide::Snapshot("vm@2".parse()?);
        repository.diff(&before, &DiffSide::Image(DiffImage::new(lab.path("vm"))), context)?;
        Ok(BYTES)
    }),
    ("diff of images", |lab, _, context| {
        let [one, other] =
            ["vm", "moved"].map(|name| DiffSide::Image(DiffImage::new(lab.path(name))));
        ops::diff::run(None, &one, &other, context)?;
        Ok(2 * BYTES)
    }),
    ("snapshot, a new base", |lab, repository, context| {
        let request = lab.request().parent(ParentChoice::Full);
        Ok(repository.snapshot(&request, context)?.snapshot.read_bytes.unwrap())
    }),
    ("diff of two bases", |_, repository, context| {
        let [one, other] = ["vm@2", "vm@latest"].map(|at| DiffSide::Snapshot(at.parse().unwrap()));
        assert!(!repository.diff(&one, &other, context)?.from_tables);
        Ok(0)
    }),
    ("export", |lab, repository, context| {
        for (at, since, name) in [(1, None, "full"), (2, Some(At::Number(1)), "day")] {
            let request = ExportRequest::new("vm", At::Number(at)).since(since);
            let mut file = Vec::new();
            let mut write = |bytes: &[u8]| {
                file.extend_from_slice(bytes);
                Ok(())
            };
            repository.export(&request, context, &mut write)?;
            std::fs::write(lab.path(name), file).unwrap();
        }
        Ok(0)
    }),
    ("import", |lab, _, context| {
        let other = lab.open("other", context);
        let files = ["full", "day"].map(|name| std::fs::read(lab.path(name)).unwrap());
        for file in &files {
            other.import(&mut file.as_slice(), "a file", Some("vm"), context)?;
        }
        // Their headers come before anything is known of them.
        Ok(files.iter().map(|file| file.len() as u64 - 256).sum())
    }),
    ("delete, merging", |_, repository, context| {
        repository.delete("vm", &At::Number(2), true, context).map(|_| 0)
    }),
    ("flatten", |_, repository, context| {
        repository.flatten("vm", &At::Number(3), context).map(|_| 0)
    }),
    ("prune, merging", |lab, repository, context| {
        lab.change(5);
        repository.snapshot(&lab.request(), context)?;
        lab.change(6);
        repository.snapshot(&lab.request(), context)?;
        let mut request = PruneRequest::default();
        request.rules = Some(Rules { last: Some(Count::Most(1)), ..Rules::default() });
        request.compact = true;
        repository.prune("vm", &request, context)?;
        Ok(2 * BYTES)
    }),
    ("snapshot, on a base image", |lab, repository, context| {
        let image = lab.path("moved");
        let request = SnapshotRequest::new(image.as_path()).track(Some(Track::None));
        let request = request
            .format(Some(imgsnap::image::ImageFormat::RAW))
            .base_image(Some(lab.path("golden")));
        repository.snapshot(&request.name(Some("clone".into())), context)?;
        Ok(2 * BYTES)
    }),
    ("restore, of a base image", |lab, repository, context| {
        restored(lab, repository, "clone", context)?;
        Ok(BYTES)
    }),
    ("relink, to a base image", |lab, repository, context| {
        repository.relink_base_image("clone", &lab.path("golden"), context)?;
        Ok(BYTES)
    }),
    ("verify, of a base image", |_, repository, context| {
        repository.verify(&VerifyScope::Image("clone".into()), false, context)?;
        Ok(BYTES)
    }),
];

/// `limits` grants so many bytes a second that nobody ever waits.
fn context(stop: &Arc<AtomicBool>) -> Context {
    let rate = ReadRate::new(1 << 60).unwrap();
    Context::new(Arc::new(Nobody), stop.clone()).with_threads(2).with_read_limit(Some(rate))
}

struct Nobody;

impl Observer for Nobody {
    fn observe(&self, _: Event) {}
}

#[test]
fn what_each_verb_reads_the_limit_has_granted() {
    let lab = Lab::new();
    let mut wrong = Vec::new();
    for (name, verb) in VERBS {
        let context = context(&lab.stop);
        let repository = lab.open("repo", &context);
        lab.read.store(0, Ordering::Relaxed);
        let more = verb(&lab, &repository, &context).unwrap_or_else(|e| panic!("{name}: {e}"));
        let (granted, read) =
            (context.read_limits().granted(), lab.read.load(Ordering::Relaxed) + more);
        assert!(read > 0, "{name} reads nothing");
        if granted != read {
            wrong.push(format!("{name}: {granted} granted, {read} read ({more} of images)"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Files that are not of a repository are not counted: what they have is a part of what is granted.
#[test]
fn so_it_is_of_delta_files_anywhere_and_of_what_is_mended() {
    let lab = Lab::new();
    let first = context(&lab.stop);
    for (_, verb) in VERBS.iter().take_while(|(name, _)| *name != "delete, merging") {
        verb(&lab, &lab.open("repo", &first), &first).unwrap();
    }
    let limited = context(&lab.stop);
    let request = ApplyRequest::new(["full", "day"].map(|name| lab.path(name)).to_vec());
    let target = lab.path("applied");
    ops::apply::run(None, &request, ApplyTarget::Path(&target), &limited).unwrap();
    let granted = limited.read_limits().granted();
    let files = ["full", "day"].map(|name| lab.path(name).metadata().unwrap().len());
    assert!(granted > BYTES && granted < 2 * files.iter().sum::<u64>(), "{granted} {files:?}");
    // The image that is changed where it lies is proved first.
    let limited = context(&lab.stop);
    std::fs::write(lab.path("base"), Random(7).bytes(BYTES as usize)).unwrap();
    let request = ApplyRequest::new(vec![lab.path("day")]).base(Some(lab.path("base")));
    ops::apply::run(None, &request, ApplyTarget::InPlace, &limited).unwrap();
    assert!(limited.read_limits().granted() > BYTES);
    // What only the image has, and the newest snapshot.
    lab.change(9);
    lab.open("repo", &first).snapshot(&lab.request(), &first).unwrap();
    // A damaged file from a copy of the repository, and from the image.
    let mut copy = std::process::Command::new("cp");
    assert!(
        copy.arg("-r")
            .args(["repo", "copy"].map(|name| lab.path(name)))
            .status()
            .unwrap()
            .success()
    );
    for is_copy in [true, false] {
        lab.damage();
        let limited = context(&lab.stop);
        let image = RawFile::open(&lab.path("vm")).unwrap();
        let source = match is_copy {
            true => MendSource::Repository(Arc::new(lab.open("copy", &limited))),
            false => MendSource::Image(Arc::new(image)),
        };
        let repository = lab.open("repo", &limited);
        lab.read.store(0, Ordering::Relaxed);
        assert_eq!(repository.mend("vm", &[source], &limited).unwrap().len(), 1);
        let (granted, read) = (limited.read_limits().granted(), lab.read.load(Ordering::Relaxed));
        match is_copy {
            true => assert_eq!(granted, read),
            // Until all is found.
            false => assert!(granted > read && granted <= read + BYTES + BLOCK as u64 * 64),
        }
    }
}

#[test]
fn a_wait_ends_when_the_user_wants_to_stop() {
    let lab = Lab::new();
    let slow = ReadRate::new(1 << 20).unwrap();
    let context = Context::new(Arc::new(Nobody), lab.stop.clone()).with_read_limit(Some(slow));
    let repository = lab.open("repo", &context);
    std::thread::scope(|scope| {
        let work = scope.spawn(|| repository.snapshot(&lab.request(), &context));
        // The first piece is granted, and the second has to be waited for.
        assert!(wait_until(|| context.read_limits().granted() > 1 << 20));
        lab.stop.store(true, Ordering::Relaxed);
        assert_eq!(work.join().unwrap().unwrap_err().kind(), ErrorKind::Interrupted);
    });
}
