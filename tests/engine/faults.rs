//! A store that fails, then one that crashes, at every operation N of every verb: afterwards the
//! repository is in the state before or in the state after, every listed snapshot restores, and a
//! second run succeeds.
//!
//! (FORMAT.md P3, P4, P5, S1, S2, J1)

use crate::support::crash_disk::CrashDisk;
use crate::support::power::Survival;
use crate::support::{Random, config, text};
use imgsnap::base::error::{Error, ErrorKind, Result};
use imgsnap::base::events::{Context, Event, Observer};
use imgsnap::image::write::Stream;
use imgsnap::repo::host::HostState;
use imgsnap::repo::retention::{Count, Rules};
use imgsnap::store::{Disk, LocalStore};
use imgsnap::view::restore;
use imgsnap::{
    At, Defaults, ExportRequest, Outcome, ParentChoice, PruneRequest, Rebuilt, Repository,
    RollbackRequest, SnapshotRequest, VerifyScope,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

/// What a repository holds, as a user sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Visible {
    /// Label and content of each snapshot.
    snapshots: BTreeMap<u64, (Option<String>, Vec<u8>)>,
}

fn open(disk: &CrashDisk) -> Result<Repository> {
    let store = Arc::new(LocalStore::new(Arc::new(disk.clone())));
    Repository::open_in(store.clone(), HostState::in_store(store, "host"))
}

fn init(disk: &CrashDisk) -> Result<Repository> {
    let store = Arc::new(LocalStore::new(Arc::new(disk.clone())));
    Repository::init_in(store.clone(), Defaults::default(), HostState::in_store(store, "host"))
}

fn context() -> Context {
    Context::silent().with_threads(1)
}

fn visible(disk: &CrashDisk) -> Result<Visible> {
    let repository = open(disk)?;
    let mut snapshots = BTreeMap::new();
    for name in repository.names()? {
        let reader = repository.read(&name, &context())?;
        for s in &reader.manifest().snapshots {
            let chain = repository.chain(&reader, s.id)?;
            let mut bytes = Vec::new();
            restore(&chain, None, &mut Stream::new(&mut bytes, "memory"), &context())?;
            snapshots.insert(s.number, (s.label.clone(), bytes));
        }
    }
    let verified = repository.verify(&VerifyScope::All, false, &context())?;
    match verified.damaged.first() {
        None => Ok(Visible { snapshots }),
        Some(damage) => Err(Error::corrupt(damage.message.to_string())),
    }
}

/// An image with three snapshots, the second of them labelled; the live image is what `live` gives.
struct Scene {
    folder: tempfile::TempDir,
    disk: CrashDisk,
}

fn image_of(day: u64) -> Vec<u8> {
    let mut image = text(70_000, 1);
    for change in 0..day {
        image[change as usize * 9000..][..5000].copy_from_slice(&text(5000, 50 + change));
    }
    image.truncate(70_000 - day as usize * 1000);
    image
}

impl Scene {
    fn empty() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let disk = CrashDisk::default();
        init(&disk).unwrap();
        let scene = Self { folder, disk };
        scene.write_live(0);
        scene
    }

    fn new() -> Self {
        let scene = Self::empty();
        for day in 0..3 {
            scene.write_live(day);
            take(&scene.disk, &scene.image()).unwrap();
        }
        open(&scene.disk).unwrap().label("vm", &At::Number(2), Some("two"), &context()).unwrap();
        scene.write_live(3);
        scene
    }

    /// Another snapshot of the state of a day.
    fn take(&self, day: u64, parent: ParentChoice) {
        self.write_live(day);
        let image = self.image();
        let request = SnapshotRequest::new(image).parent(parent).full_scan(true);
        open(&self.disk).unwrap().snapshot(&request, &context()).unwrap();
    }

    /// Drops snapshots whose files stay, because nothing is worth a merge.
    fn drop_only(&self, numbers: &[u64]) {
        let added = merge_nothing(&self.disk);
        for number in numbers {
            delete(&self.disk, *number, false).unwrap();
        }
        let manifest = open(&self.disk).unwrap().list("vm", &context()).unwrap().manifest;
        assert_eq!(manifest.dropped.len(), numbers.len());
        self.disk.remove(&added).unwrap();
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("vm.img")
    }

    fn write_live(&self, day: u64) {
        std::fs::write(self.image(), image_of(day)).unwrap();
    }
}

/// Files of dropped snapshots stay as they are. Returns the name of the configuration that says so.
fn merge_nothing(disk: &CrashDisk) -> String {
    let get = |name: &str| disk.get(name).unwrap();
    let (name, bytes) = config::extended(&disk.files(), get, "[prune]\ngarbage = 100\n");
    disk.put(&name, &bytes);
    name
}

fn take(disk: &CrashDisk, image: &Path) -> Result<()> {
    let request = SnapshotRequest::new(image).full_scan(true);
    open(disk)?.snapshot(&request, &context()).map(|_| ())
}

type Verb<'a> = &'a dyn Fn(&CrashDisk) -> Result<()>;

/// Runs a verb with a fault at each of its operations, in every way, and holds the outcome against
/// the states before and after. `may_differ`: the verb cannot be run twice (a snapshot twice is two
/// snapshots).
fn survive(scene: &Scene, verb: Verb<'_>) {
    let before = visible(&scene.disk).unwrap();
    let done = scene.disk.survivor();
    verb(&done).unwrap();
    let after = visible(&done).unwrap();
    let count = done.operations();
    assert!(count > 2, "a verb with {count} operations");
    let mut numbers = Random(7);
    for operation in 1..=count {
        let failing = scene.disk.survivor();
        failing.fail_at(operation);
        let outcome = verb(&failing);
        let place = format!("{:?}", failing.log().last());
        check(&failing.survivor(), &before, &after, outcome.is_ok(), &format!("failed at {place}"));
        run_again(&failing.survivor(), verb, &format!("failed at {place}"));

        let crashing = scene.disk.survivor();
        crashing.crash_at(operation);
        let outcome = verb(&crashing);
        let is_done = outcome.is_ok();
        let place = format!("{:?}", crashing.log().get(operation as usize - 1));
        check(&crashing.survivor(), &before, &after, is_done, &format!("killed at {place}"));
        run_again(&crashing.survivor(), verb, &format!("killed at {place}"));
        for round in 0..6 {
            let lost = crashing.after_power_loss(match round {
                0 => Survival::Nothing,
                1 => Survival::Everything,
                _ => Survival::Any(numbers.next()),
            });
            let what = format!("power lost at {place}, round {round}");
            check(&lost, &before, &after, is_done, &what);
            run_again(&lost, verb, &what);
        }
    }
    // What was reported as done stays, whatever is lost.
    let lost = done.after_power_loss(Survival::Nothing);
    assert_eq!(visible(&lost).unwrap(), after, "power lost after the end");
}

fn check(disk: &CrashDisk, before: &Visible, after: &Visible, is_done: bool, what: &str) {
    match visible(disk) {
        Ok(now) => {
            let expected = now == *after || (!is_done && now == *before);
            assert!(
                expected,
                "{what}: neither the state before nor the one after (done: {is_done})"
            );
        }
        Err(e) => panic!("{what}: {e}"),
    }
}

/// The verb succeeds the next time, or says that it was done; and leaves nothing behind, neither of
/// its own nor of the run before.
fn run_again(disk: &CrashDisk, verb: Verb<'_>, what: &str) {
    if let Err(e) = verb(disk) {
        assert_eq!(e.kind(), ErrorKind::NotFound, "{what}, again: {e}");
    }
    let named: Vec<String> = match open(disk).unwrap().list("vm", &context()) {
        Ok(listing) => listing.manifest.stored().into_iter().map(|s| s.file.clone()).collect(),
        Err(e) => {
            assert_eq!(e.kind(), ErrorKind::NotFound, "{what}, again: {e}");
            Vec::new()
        }
    };
    let (mut manifests, mut deltas) = (0, 0);
    for file in disk.files().iter().filter_map(|file| file.strip_prefix("vm/")) {
        manifests += usize::from(file.starts_with("manifest."));
        deltas += usize::from(file.ends_with(".delta"));
        let is_garbage = file.ends_with(".tmp")
            || (file.ends_with(".delta") && !named.iter().any(|name| name == file));
        assert!(!is_garbage, "{what}: left behind: {file}");
    }
    assert_eq!(deltas, named.len(), "{what}: a file is missing");
    // The one that ruled before this run goes with the next one.
    assert!(manifests <= 2, "{what}: {manifests} manifests");
    visible(disk).unwrap_or_else(|e| panic!("{what}, after the second run: {e}"));
}

#[test]
fn first_snapshot_survives_every_fault() {
    let scene = Scene::empty();
    let image = scene.image();
    survive(&scene, &|disk| take(disk, &image));
}

#[test]
fn snapshot_survives_every_fault() {
    let scene = Scene::new();
    let image = scene.image();
    survive(&scene, &|disk| take(disk, &image));
}

#[test]
fn delete_survives_every_fault() {
    survive(&Scene::new(), &|disk| delete(disk, 3, false));
}

fn delete(disk: &CrashDisk, number: u64, compact: bool) -> Result<()> {
    open(disk)?.delete("vm", &At::Number(number), compact, &context()).map(|_| ())
}

fn prune(disk: &CrashDisk, last: u64, compact: bool) -> Result<()> {
    let rules = Rules { last: Some(Count::Most(last)), ..Rules::default() };
    let request = PruneRequest::new().rules(Some(rules)).compact(compact);
    open(disk)?.prune("vm", &request, &context()).map(|_| ())
}

/// How many files the chain of a snapshot has.
fn depth(disk: &CrashDisk, number: u64) -> usize {
    let repository = open(disk).unwrap();
    let reader = repository.read("vm", &context()).unwrap();
    let id = reader.find(&At::Number(number)).unwrap().id;
    repository.chain(&reader, id).unwrap().layers().len()
}

/// In the middle, and at the base of the chain: what rests on it is merged with it.
#[test]
fn delete_with_a_merge_survives_every_fault() {
    for number in [1, 2] {
        let scene = Scene::new();
        survive(&scene, &|disk| delete(disk, number, true));
        delete(&scene.disk, number, true).unwrap();
        assert_eq!(depth(&scene.disk, 3), 2, "{number}");
    }
}

/// P4: the file stays, because another one rests on it, and the manifest knows that.
#[test]
fn delete_without_a_merge_survives_every_fault() {
    let scene = Scene::new();
    merge_nothing(&scene.disk);
    survive(&scene, &|disk| delete(disk, 2, false));
    delete(&scene.disk, 2, false).unwrap();
    assert_eq!(depth(&scene.disk, 3), 3);
    // And what nothing rests on any more goes.
    survive(&scene, &|disk| delete(disk, 3, false));
}

/// Two snapshots rest on the second one, which is dropped: below it is merged into it, then one more
/// into each of the two others.
#[test]
fn prune_with_merges_survives_every_fault() {
    let scene = Scene::new();
    scene.take(4, ParentChoice::Of(At::Number(2)));
    scene.take(5, ParentChoice::Incremental);
    scene.take(6, ParentChoice::Of(At::Number(3)));
    let keep = |disk: &CrashDisk| prune(disk, 2, true);
    survive(&scene, &keep);
    keep(&scene.disk).unwrap();
    let manifest = open(&scene.disk).unwrap().list("vm", &context()).unwrap().manifest;
    let numbers = |snapshots: &[imgsnap::repo::manifest::Snapshot]| -> Vec<u64> {
        snapshots.iter().map(|s| s.number).collect()
    };
    assert_eq!((numbers(&manifest.snapshots), numbers(&manifest.dropped)), (vec![5, 6], vec![2]));
    assert_eq!((depth(&scene.disk, 5), depth(&scene.disk, 6)), (2, 2));
}

/// Old and new files of one snapshot lie side by side, and nothing but the files tells what is what.
#[test]
fn a_repair_after_an_interrupted_prune_finds_every_snapshot_that_is_kept() {
    let scene = Scene::new();
    scene.take(4, ParentChoice::Of(At::Number(2)));
    scene.take(5, ParentChoice::Incremental);
    let want = visible(&scene.disk).unwrap().snapshots;
    let counting = scene.disk.survivor();
    prune(&counting, 2, true).unwrap();
    for operation in 1..=counting.operations() {
        let crashing = scene.disk.survivor();
        crashing.crash_at(operation);
        drop(prune(&crashing, 2, true));
        for forget_all in [false, true] {
            let disk = crashing.survivor();
            let manifest = newest_manifest(&disk);
            let mut bytes = disk.get(&manifest).unwrap();
            bytes[100] ^= 1;
            disk.put(&manifest, &bytes);
            let manifests = disk.files().into_iter().filter(|file| file.contains("/manifest."));
            if forget_all {
                manifests.for_each(|file| disk.remove(&file).unwrap());
            }
            let what = format!("{:?} {forget_all}", crashing.log().get(operation as usize - 1));
            let repaired = open(&disk).unwrap().repair("vm", &context());
            repaired.unwrap_or_else(|e| panic!("{what}: {e}"));
            let now = visible(&disk).unwrap_or_else(|e| panic!("{what}: {e}"));
            for number in [4, 5] {
                let found = now.snapshots.get(&number).map(|(_, bytes)| bytes);
                assert!(found == Some(&want[&number].1), "{what}: {number}");
            }
            let is_right = |(n, (_, bytes)): (&u64, &(_, Vec<u8>))| want[n].1 == *bytes;
            assert!(now.snapshots.iter().all(is_right), "{what}");
            // And the work goes on.
            prune(&disk, 2, true).unwrap_or_else(|e| panic!("{what}: {e}"));
            let now = visible(&disk).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(now.snapshots.len(), 2, "{what}");
        }
    }
}

/// What was dropped long ago is merged by a prune that drops nothing more.
#[test]
fn a_prune_that_only_merges_survives_every_fault() {
    let scene = Scene::new();
    scene.drop_only(&[1, 2]);
    assert_eq!(depth(&scene.disk, 3), 3);
    let keep = |disk: &CrashDisk| prune(disk, 1, true);
    survive(&scene, &keep);
    keep(&scene.disk).unwrap();
    assert_eq!(depth(&scene.disk, 3), 1);
}

/// Also where its ancestors are dropped, so that they go with it.
#[test]
fn flatten_survives_every_fault() {
    let flatten = |disk: &CrashDisk| {
        open(disk)?.flatten("vm", &At::Number(3), &context())?;
        assert_eq!(depth(disk, 3), 1);
        Ok(())
    };
    survive(&Scene::new(), &flatten);
    let scene = Scene::new();
    scene.drop_only(&[1, 2]);
    survive(&scene, &flatten);
}

/// Both snapshots are there, or none of them.
#[test]
fn snapshot_with_a_base_image_survives_every_fault() {
    for scene in [Scene::empty(), Scene::new()] {
        let base_image = scene.folder.path().join("template.img");
        std::fs::write(&base_image, image_of(1)).unwrap();
        scene.write_live(4);
        let with_base = |disk: &CrashDisk| {
            let request = SnapshotRequest::new(scene.image())
                .parent(ParentChoice::Full)
                .base_image(Some(base_image.clone()))
                .full_scan(true);
            open(disk)?.snapshot(&request, &context()).map(|_| ())
        };
        survive(&scene, &with_base);
        let before = visible(&scene.disk).unwrap().snapshots.len();
        with_base(&scene.disk).unwrap();
        let after = visible(&scene.disk).unwrap().snapshots;
        assert_eq!(after.len(), before + 2);
        let images: Vec<_> = after.into_values().map(|(_, bytes)| bytes).skip(before).collect();
        assert!(images == [image_of(1), image_of(4)]);
        // Its own base: the blocks come from the base image, which can then go.
        let number = before as u64 + 2;
        let flatten = |disk: &CrashDisk| {
            open(disk)?.flatten("vm", &At::Number(number), &context())?;
            assert_eq!(depth(disk, number), 1);
            Ok(())
        };
        if before > 0 {
            survive(&scene, &flatten);
        }
        flatten(&scene.disk).unwrap();
        delete(&scene.disk, number - 1, false).unwrap();
        std::fs::remove_file(&base_image).unwrap();
        assert!(visible(&scene.disk).unwrap().snapshots[&number].1 == image_of(4));
    }
}

fn exported(disk: &CrashDisk, number: u64, since: Option<u64>) -> Vec<u8> {
    let repository = open(disk).unwrap();
    let request = ExportRequest::new("vm", At::Number(number)).since(since.map(At::Number));
    let mut bytes = Vec::new();
    let done = repository.export(&request, &context(), &mut |piece: &[u8]| {
        bytes.extend_from_slice(piece);
        Ok(())
    });
    assert_eq!(done.unwrap().file_bytes, bytes.len() as u64);
    bytes
}

fn import(disk: &CrashDisk, bytes: &[u8]) -> Result<()> {
    open(disk)?.import(&mut &bytes[..], "a file", Some("vm"), &context()).map(|_| ())
}

/// A full one that makes the image, a delta on top of it, and one whose parent is what a merge made of
/// it.
#[test]
fn import_survives_every_fault() {
    let origin = Scene::new();
    let full = exported(&origin.disk, 1, None);
    let delta = exported(&origin.disk, 3, Some(1));
    let scene = Scene::empty();
    survive(&scene, &|disk| import(disk, &full));
    import(&scene.disk, &full).unwrap();
    survive(&scene, &|disk| import(disk, &delta));
    import(&scene.disk, &delta).unwrap();
    let now = visible(&scene.disk).unwrap();
    assert_eq!(now.snapshots.keys().copied().collect::<Vec<_>>(), [1, 3]);
    assert_eq!(now.snapshots[&3], visible(&origin.disk).unwrap().snapshots[&3]);

    origin.take(4, ParentChoice::Incremental);
    let newest = exported(&origin.disk, 4, Some(3));
    delete(&scene.disk, 1, true).unwrap();
    survive(&scene, &|disk| import(disk, &newest));
}

#[test]
fn label_survives_every_fault() {
    survive(&Scene::new(), &|disk| {
        open(disk)?.label("vm", &At::Number(1), Some("one"), &context()).map(|_| ())
    });
}

#[test]
fn remove_survives_every_fault() {
    survive(&Scene::new(), &|disk| open(disk)?.remove("vm", &context()).map(|_| ()));
}

#[test]
fn relink_survives_every_fault() {
    let scene = Scene::new();
    let other = scene.folder.path().join("moved.img");
    std::fs::copy(scene.image(), &other).unwrap();
    survive(&scene, &|disk| open(disk)?.relink("vm", &other, None, &context()).map(|_| ()));
}

/// A repair that fails leaves the image refused, as it was, and can be run again.
#[test]
fn repair_survives_every_fault() {
    let scene = Scene::new();
    let want = visible(&scene.disk).unwrap();
    let damaged = scene.disk.survivor();
    let manifest = newest_manifest(&damaged);
    let mut bytes = damaged.get(&manifest).unwrap();
    bytes[100] ^= 1;
    damaged.put(&manifest, &bytes);
    assert_eq!(visible(&damaged).unwrap_err().kind(), ErrorKind::Corrupt);
    let counting = damaged.survivor();
    let repaired = open(&counting).unwrap().repair("vm", &context()).unwrap();
    assert_eq!(repaired.rebuilt.as_ref().map(|of| of.snapshots), Some(3), "{repaired:?}");
    for operation in 1..=counting.operations() {
        let crashing = damaged.survivor();
        crashing.crash_at(operation);
        drop(open(&crashing).unwrap().repair("vm", &context()));
        for survival in [Survival::Nothing, Survival::Everything, Survival::Any(operation)] {
            let lost = crashing.after_power_loss(survival);
            match visible(&lost) {
                Ok(now) => assert_eq!(numbers_of(&now), numbers_of(&want)),
                Err(e) => assert_eq!(e.kind(), ErrorKind::Corrupt),
            }
            open(&lost).unwrap().repair("vm", &context()).unwrap();
            assert_eq!(numbers_of(&visible(&lost).unwrap()), numbers_of(&want));
        }
    }
}

fn numbers_of(visible: &Visible) -> BTreeMap<u64, Vec<u8>> {
    visible.snapshots.iter().map(|(number, (_, bytes))| (*number, bytes.clone())).collect()
}

fn newest_manifest(disk: &CrashDisk) -> String {
    disk.files().into_iter().rfind(|file| file.starts_with("vm/manifest.")).unwrap()
}

fn roll(disk: &CrashDisk, number: u64, context: &Context) -> Result<()> {
    let request = RollbackRequest::new("vm", At::Number(number)).save(true);
    open(disk)?.rollback(&request, context).map(|_| ())
}

#[test]
fn rollback_survives_every_fault_of_the_store() {
    let scene = Scene::new();
    let before = visible(&scene.disk).unwrap();
    let counting = scene.disk.survivor();
    roll(&counting, 1, &context()).unwrap();
    for operation in 1..=counting.operations() {
        for power in [false, true] {
            scene.write_live(3);
            let disk = scene.disk.survivor();
            disk.crash_at(operation);
            let outcome = roll(&disk, 1, &context());
            let later =
                if power { disk.after_power_loss(Survival::Nothing) } else { disk.survivor() };
            let what = format!("{:?}, power lost: {power}", disk.log().get(operation as usize - 1));
            let now = visible(&later).unwrap_or_else(|e| panic!("{what}: {e}"));
            for (number, snapshot) in &before.snapshots {
                assert_eq!(now.snapshots.get(number), Some(snapshot), "{what}");
            }
            let live = std::fs::read(scene.image()).unwrap();
            let is_saved = now.snapshots.values().any(|(_, bytes)| *bytes == image_of(3));
            assert!(is_saved || live == image_of(3), "{what}: the state before is lost");
            assert!(outcome.is_err() || live == image_of(0), "{what}");
            roll(&later, 1, &context()).unwrap_or_else(|e| panic!("{what}, again: {e}"));
            assert!(std::fs::read(scene.image()).unwrap() == image_of(0), "{what}, again");
            let now = visible(&later).unwrap();
            assert!(
                now.snapshots.values().any(|(_, bytes)| *bytes == image_of(3)),
                "{what}, again"
            );
        }
    }
}

/// Asks to stop after so many reports of progress: an interruption between two writes to the image.
struct StopAfter {
    left: AtomicI64,
    stop: Arc<AtomicBool>,
}

impl Observer for StopAfter {
    fn observe(&self, event: Event) {
        let is_advance = matches!(event, Event::Advanced { .. });
        if is_advance && self.left.fetch_sub(1, Ordering::SeqCst) <= 1 {
            self.stop.store(true, Ordering::SeqCst);
        }
    }
}

#[test]
fn interrupted_rollback_is_known_refuses_snapshots_and_completes_when_run_again() {
    let scene = Scene::new();
    let mut mixtures = 0;
    for after in 1..40 {
        scene.write_live(3);
        let disk = scene.disk.survivor();
        let stop = Arc::new(AtomicBool::new(false));
        let progress = StopAfter { left: AtomicI64::new(after), stop: stop.clone() };
        let interrupted = Context::new(Arc::new(progress), stop).with_threads(1);
        let outcome = roll(&disk, 1, &interrupted);
        if outcome.is_ok() {
            break;
        }
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Interrupted);
        let listing = open(&disk).unwrap().list("vm", &context()).unwrap();
        if listing.head.intent.is_some() {
            mixtures += 1;
            let refused = take(&disk, &scene.image()).unwrap_err();
            assert!(refused.to_string().contains("rollback(vm, to=vm@1)"), "{refused}");
        }
        let count = listing.manifest.snapshots.len();
        roll(&disk, 1, &context()).unwrap();
        assert!(std::fs::read(scene.image()).unwrap() == image_of(0));
        let listing = open(&disk).unwrap().list("vm", &context()).unwrap();
        assert_eq!(listing.head.intent, None);
        // The mixture was not saved; the state before was.
        assert!(listing.manifest.snapshots.len() <= count.max(4));
        assert!(visible(&disk).unwrap().snapshots[&4].1 == image_of(3));
    }
    assert!(mixtures > 0, "no interruption came between intent and end");
}

/// P4 and J1: a damaged ruling manifest is an error that names the way out, never a step back.
#[test]
fn damaged_manifest_is_never_a_silent_step_back() {
    let scene = Scene::new();
    let manifest = newest_manifest(&scene.disk);
    let good = scene.disk.get(&manifest).unwrap();
    scene.disk.put("vm/manifest.000001", &good);
    for at in [0, 20, 60, 200, good.len() - 1] {
        let disk = scene.disk.survivor();
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        disk.put(&manifest, &bytes);
        let error = visible(&disk).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert!(error.to_string().contains("repair(vm)"), "{error}");
        assert!(take(&disk, &scene.image()).is_err());
    }
    let disk = scene.disk.survivor();
    let lost: Vec<_> = disk.files().into_iter().filter(|f| f.contains("manifest")).collect();
    lost.iter().for_each(|file| disk.remove(file).unwrap());
    let error = visible(&disk).unwrap_err();
    assert!(error.to_string().contains("repair(vm)"), "{error}");
    open(&disk).unwrap().repair("vm", &context()).unwrap();
    assert_eq!(numbers_of(&visible(&disk).unwrap()), numbers_of(&visible(&scene.disk).unwrap()));
}

/// P5: one writer at a time, readers beside it; files that are read are not unlinked.
#[test]
fn locks_keep_writers_apart_and_files_for_readers() {
    for has_byte_locks in [true, false] {
        let scene = Scene::new();
        if !has_byte_locks {
            scene.disk.refuse_byte_locks();
        }
        let repository = open(&scene.disk).unwrap();
        let write = scene.disk.lock("vm/write.lock", imgsnap::store::LockKind::Exclusive).unwrap();
        let busy = take(&scene.disk, &scene.image()).unwrap_err();
        assert_eq!(busy.kind(), ErrorKind::Busy);
        drop(write);
        let reader = repository.read("vm", &context()).unwrap();
        let last = reader.manifest().latest().unwrap().clone();
        repository.delete("vm", &At::Latest, false, &context()).unwrap();
        let chain = repository.chain(&reader, last.id).unwrap();
        let mut bytes = Vec::new();
        restore(&chain, None, &mut Stream::new(&mut bytes, "memory"), &context()).unwrap();
        assert!(bytes == image_of(2), "a reader keeps what it reads");
        drop(reader);
        take(&scene.disk, &scene.image()).unwrap();
        let is_there = || scene.disk.get(&format!("vm/{}", last.file)).is_some();
        assert!(is_there(), "a chain keeps what it reads");
        drop(chain);
        take(&scene.disk, &scene.image()).unwrap();
        assert!(!is_there(), "the next writer removes it");
    }
}

/// Where what is known of the live image is.
fn known_of(disk: &CrashDisk) -> String {
    disk.files().into_iter().find(|file| file.ends_with(".json")).unwrap()
}

/// S2: without the head state, and with a damaged one, everything is found by a scan.
#[test]
fn head_state_is_only_a_hint() {
    let scene = Scene::new();
    for damage in [None, Some(&b"{\"snapshot\": 7"[..])] {
        scene.write_live(3);
        let disk = scene.disk.survivor();
        match damage {
            None => disk.remove(&known_of(&disk)).unwrap(),
            Some(bytes) => disk.put(&known_of(&disk), bytes),
        }
        roll(&disk, 2, &context()).unwrap();
        assert!(std::fs::read(scene.image()).unwrap() == image_of(1));
        let request = SnapshotRequest::new(scene.image()).skip_unchanged(true);
        let taken = open(&disk).unwrap().snapshot(&request, &context()).unwrap();
        assert_eq!((taken.outcome, taken.snapshot.number), (Outcome::Skipped, 2));
    }
}

/// What a repair could not use stays, whatever fails afterwards.
#[test]
fn files_that_a_repair_keeps_survive_a_failing_snapshot() {
    let scene = Scene::new();
    let disk = &scene.disk;
    let files = disk.files();
    let base = open(disk).unwrap().read("vm", &context()).unwrap().manifest().snapshots[0].clone();
    disk.remove(&format!("vm/{}", base.file)).unwrap();
    files.iter().filter(|f| f.contains("manifest.")).for_each(|f| disk.remove(f).unwrap());
    let repaired = open(disk).unwrap().repair("vm", &context()).unwrap();
    let Some(Rebuilt { snapshots: 0, unused, .. }) = repaired.rebuilt else {
        panic!("{repaired:?}")
    };
    assert_eq!(unused.len(), 2);
    let kept = || disk.files().into_iter().filter(|f| f.ends_with(".delta")).count();
    assert_eq!(kept(), 2);
    // Refused because of a bad parent.
    let parent = imgsnap::ParentChoice::Of(At::Number(7));
    let request = SnapshotRequest::new(scene.image()).parent(parent);
    assert!(open(disk).unwrap().snapshot(&request, &context()).is_err());
    assert_eq!(kept(), 2);
    take(disk, &scene.image()).unwrap();
    assert_eq!(kept(), 3);
}

/// A delta under another name may be the only copy of a snapshot: it is no garbage.
#[test]
fn a_renamed_delta_file_is_never_removed() {
    let scene = Scene::new();
    let disk = &scene.disk;
    let base = open(disk).unwrap().read("vm", &context()).unwrap().manifest().snapshots[0].clone();
    let other = format!("vm/{}.delta", uuid::Uuid::from_bytes([7; 16]));
    disk.rename_new(&format!("vm/{}", base.file), &other).unwrap();
    open(disk).unwrap().label("vm", &At::Number(3), Some("x"), &context()).unwrap();
    assert!(disk.get(&other).is_some());
}

/// An open repository sees what other processes note.
#[test]
fn an_open_repository_sees_the_head_state_of_other_processes() {
    let folder = tempfile::tempdir().unwrap();
    let store = || {
        let disk = imgsnap::store::OsDisk::new(folder.path().join("repo"));
        Arc::new(LocalStore::new(Arc::new(disk)))
    };
    std::fs::create_dir(folder.path().join("repo")).unwrap();
    let image = folder.path().join("vm.img");
    std::fs::write(&image, image_of(0)).unwrap();
    let host = || HostState::in_folder(&folder.path().join("state"));
    let ours = Repository::init_in(store(), Defaults::default(), host()).unwrap();
    let theirs = Repository::open_in(store(), host()).unwrap();
    let request = SnapshotRequest::new(image.clone()).full_scan(true);
    for _ in 0..3 {
        let taken = theirs.snapshot(&request, &context()).unwrap();
        assert_eq!(ours.list("vm", &context()).unwrap().head.snapshot, Some(taken.snapshot.id));
    }
}

/// Damage in the repository is found while the image is still whole.
#[test]
fn a_rollback_to_a_damaged_snapshot_leaves_the_image_alone() {
    let scene = Scene::new();
    let manifest = open(&scene.disk).unwrap().read("vm", &context()).unwrap().manifest().clone();
    let file = format!("vm/{}", manifest.snapshots[0].file);
    let good = scene.disk.get(&file).unwrap();
    let live = std::fs::read(scene.image()).unwrap();
    let mut refused = 0;
    for at in (256..good.len() - 512).step_by(997) {
        for save in [false, true] {
            let disk = scene.disk.survivor();
            let mut bad = good.clone();
            bad[at] ^= 1;
            disk.put(&file, &bad);
            let to = At::Number(1);
            let request = RollbackRequest::new("vm", to).save(save);
            match open(&disk).unwrap().rollback(&request, &context()) {
                Err(e) => {
                    refused += 1;
                    assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}");
                    assert!(!e.to_string().contains("partly rolled back"), "{e}");
                    let head = open(&disk).unwrap().list("vm", &context()).unwrap().head;
                    assert_eq!(head.intent, None, "byte {at}");
                    assert!(std::fs::read(scene.image()).unwrap() == live, "byte {at}");
                }
                Ok(_) => assert!(std::fs::read(scene.image()).unwrap() == image_of(0), "byte {at}"),
            }
            scene.write_live(3);
        }
    }
    assert!(refused > 10, "{refused}");
}
