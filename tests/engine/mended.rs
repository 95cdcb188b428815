//! `repair --from` under faults: at every operation of it the disk fails, the process ends, or the power
//! goes. Then a damaged file is as damaged as it was or put right, everything else restores, and the next
//! run puts it right and leaves nothing behind. (FORMAT.md P3, P4)

use crate::support::crash_disk::CrashDisk;
use crate::support::power::Survival;
use crate::support::{MemorySource, text};
use imgsnap::base::error::Result;
use imgsnap::base::events::Context;
use imgsnap::image::Source;
use imgsnap::image::write::Stream;
use imgsnap::repo::host::HostState;
use imgsnap::store::{Disk, LocalStore};
use imgsnap::view::restore;
use imgsnap::{At, Defaults, MendSource, MendedBy, Repository, SnapshotRequest, VerifyScope};
use std::collections::BTreeMap;
use std::sync::Arc;

fn context() -> Context {
    Context::silent().with_threads(1)
}

fn open(disk: &CrashDisk) -> Repository {
    let store = Arc::new(LocalStore::new(Arc::new(disk.clone())));
    Repository::open_in(store.clone(), HostState::in_store(store, "host")).unwrap()
}

/// What each snapshot restores to; none if it does not.
fn restored(disk: &CrashDisk) -> BTreeMap<u64, Option<Vec<u8>>> {
    let repository = open(disk);
    let reader = repository.read("vm", &context()).unwrap();
    let of = |id| {
        let chain = repository.chain(&reader, id).ok()?;
        let mut bytes = Vec::new();
        restore(&chain, None, &mut Stream::new(&mut bytes, "memory"), &context()).ok()?;
        Some(bytes)
    };
    reader.manifest().snapshots.iter().map(|s| (s.number, of(s.id))).collect()
}

fn file_of(disk: &CrashDisk, number: u64) -> String {
    let manifest = open(disk).list("vm", &context()).unwrap().manifest;
    let snapshot = manifest.snapshots.iter().find(|s| s.number == number).unwrap();
    format!("vm/{}", snapshot.file)
}

/// A repository with three snapshots, one of which is damaged.
struct Scene {
    disk: CrashDisk,
    sound: BTreeMap<u64, Option<Vec<u8>>>,
    before: BTreeMap<u64, Option<Vec<u8>>>,
}

impl Scene {
    fn new(damage: &dyn Fn(&CrashDisk)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let disk = CrashDisk::default();
        let store = Arc::new(LocalStore::new(Arc::new(disk.clone())));
        let host = HostState::in_store(store.clone(), "host");
        Repository::init_in(store, Defaults::default(), host).unwrap();
        let image = folder.path().join("vm.img");
        let mut bytes = text(70_000, 1);
        for day in 0..3 {
            bytes[day * 9000..][..5000].copy_from_slice(&text(5000, 50 + day as u64));
            std::fs::write(&image, &bytes).unwrap();
            let image = image.clone();
            let request = SnapshotRequest::new(image).full_scan(true);
            open(&disk).snapshot(&request, &context()).unwrap();
        }
        let sound = restored(&disk);
        damage(&disk);
        let before = restored(&disk);
        assert!(before.values().any(Option::is_none), "nothing is damaged");
        Self { disk, sound, before }
    }

    /// Every fault of a repair, and what it would do without.
    fn survive(&self, sources: &[MendSource], how: MendedBy) {
        let mend = |disk: &CrashDisk| -> Result<()> {
            let mended = open(disk).mend("vm", sources, &context())?;
            mended.into_iter().try_for_each(|file| file.outcome.map(|_| ()))
        };
        let done = self.disk.survivor();
        let mended = open(&done).mend("vm", sources, &context()).unwrap();
        let by: Vec<MendedBy> = mended.into_iter().map(|file| file.outcome.unwrap()).collect();
        // With a fault on the way it may be another way.
        assert_eq!(by, [how]);
        self.check_done(&done, "without a fault");
        let count = done.operations();
        assert!(count > 4, "a repair of {count} operations");
        for operation in 1..=count {
            let failing = self.disk.survivor();
            failing.fail_at(operation);
            let is_done = mend(&failing).is_ok();
            let place = format!("{:?}", failing.log().last());
            self.check(&failing.survivor(), is_done, &mend, &format!("failed at {place}"));

            let crashing = self.disk.survivor();
            crashing.crash_at(operation);
            let is_done = mend(&crashing).is_ok();
            let place = format!("{:?}", crashing.log().get(operation as usize - 1));
            self.check(&crashing.survivor(), is_done, &mend, &format!("killed at {place}"));
            let any = (0..4).map(|seed| Survival::Any(u64::from(operation as u32) << 8 | seed));
            for survival in [Survival::Nothing, Survival::Everything].into_iter().chain(any) {
                let lost = crashing.after_power_loss(survival);
                let what = format!("power lost at {place}, {survival:?}");
                self.check(&lost, is_done, &mend, &what);
            }
        }
        let lost = done.after_power_loss(Survival::Nothing);
        assert!(restored(&lost) == self.sound, "power lost after the end");
    }

    fn check(
        &self,
        disk: &CrashDisk,
        is_done: bool,
        mend: &dyn Fn(&CrashDisk) -> Result<()>,
        what: &str,
    ) {
        let now = restored(disk);
        assert!(now == self.sound || (!is_done && now == self.before), "{what}: something else");
        mend(disk).unwrap_or_else(|e| panic!("{what}, again: {e}"));
        self.check_done(disk, what);
    }

    fn check_done(&self, disk: &CrashDisk, what: &str) {
        assert!(restored(disk) == self.sound, "{what}: not put right");
        let verified = open(disk).verify(&VerifyScope::All, false, &context()).unwrap();
        assert_eq!(verified.damaged, [], "{what}");
        let manifest = open(disk).list("vm", &context()).unwrap().manifest;
        let named: Vec<String> =
            manifest.stored().iter().map(|s| format!("vm/{}", s.file)).collect();
        for file in disk.files().iter().filter(|f| f.starts_with("vm/")) {
            let is_garbage =
                file.ends_with(".tmp") || (file.ends_with(".delta") && !named.contains(file));
            assert!(!is_garbage, "{what}: left behind: {file}");
        }
    }
}

fn flip(disk: &CrashDisk, file: &str, at: usize) {
    let mut bytes = disk.get(file).unwrap();
    bytes[at] ^= 1;
    disk.put(file, &bytes);
}

/// Another repository with the same files, from before they were damaged.
fn copy_of(disk: &CrashDisk) -> MendSource {
    MendSource::Repository(Arc::new(open(&disk.survivor())))
}

#[test]
fn a_repair_from_an_image_survives_every_fault() {
    let scene = Scene::new(&|disk| flip(disk, &file_of(disk, 1), 700));
    let image: Arc<dyn Source + Send> = Arc::new(MemorySource(scene.sound[&1].clone().unwrap()));
    scene.survive(&[MendSource::Image(image)], MendedBy::Blocks(16));
}

#[test]
fn a_repair_from_a_copy_of_the_file_survives_every_fault() {
    // Its page; then all of it.
    for is_gone in [false, true] {
        let copy = std::cell::RefCell::new(None);
        let scene = Scene::new(&|disk| {
            *copy.borrow_mut() = Some(copy_of(disk));
            let file = file_of(disk, 2);
            if is_gone {
                disk.remove(&file).unwrap();
            } else {
                flip(disk, &file, disk.get(&file).unwrap().len() - 600);
            }
        });
        scene.survive(&[copy.into_inner().unwrap()], MendedBy::Copy);
    }
}

#[test]
fn a_repair_from_the_same_snapshot_survives_every_fault() {
    let copy = std::cell::RefCell::new(None);
    let scene = Scene::new(&|disk| {
        let other = disk.survivor();
        open(&other).flatten("vm", &At::Number(3), &context()).unwrap();
        *copy.borrow_mut() = Some(MendSource::Repository(Arc::new(open(&other))));
        let file = file_of(disk, 3);
        flip(disk, &file, disk.get(&file).unwrap().len() - 600);
    });
    scene.survive(&[copy.into_inner().unwrap()], MendedBy::Snapshot);
}
