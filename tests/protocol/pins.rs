//! C9 with the real code: an image that is based on a snapshot of another one, while each request of it is held,
//! lost or the last one of its host, and others drop what it is based on, at every point.

use crate::desk::{Desk, context, keep, restored};
use crate::faulty::{Plan, Wrong};
use imgsnap::repo::manifest::Manifest;
use imgsnap::store::{Act, Fault, Host, MemoryStore, Sharing, World};
use imgsnap::{
    At, Defaults, ErrorKind, ParentChoice, Reference, Repository, Result, SnapshotRequest, Track,
};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

type Meanwhile = Box<dyn FnOnce() + Send>;

/// Does something before one of its requests, counted from 0, or dies there.
struct Counted {
    next: AtomicUsize,
    at: usize,
    dies: bool,
    meanwhile: Mutex<Option<Meanwhile>>,
    /// Which of them commit or remove something.
    changes: Mutex<Vec<usize>>,
}

impl Host for Counted {
    fn ask(&self, act: Act, name: &str) -> Fault {
        let number = self.next.fetch_add(1, Relaxed);
        if act == Act::Remove || act == Act::Put && name.contains("/manifest.") {
            self.changes.lock().unwrap().push(number);
        }
        if number == self.at
            && let Some(meanwhile) = self.meanwhile.lock().unwrap().take()
        {
            meanwhile();
        }
        if self.dies && number >= self.at { Fault::Lost } else { Fault::None }
    }
}

/// `template` with three snapshots, and `a` with one.
#[derive(Clone)]
struct Lab {
    world: World,
    states: World,
    folder: Arc<tempfile::TempDir>,
}

impl Lab {
    fn new() -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let lab = Self { world: World::default(), states: World::default(), folder };
        let desk = lab.desk();
        Repository::init_in(desk.store.clone(), Defaults::default(), desk.host.clone()).unwrap();
        for (name, last) in [("template", 3), ("a", 1)] {
            for number in 1..=last {
                std::fs::write(lab.path(name), content(name, number)).unwrap();
                lab.open().snapshot(&lab.request(name), &context()).unwrap();
            }
        }
        std::fs::write(lab.path("a"), content("a", 2)).unwrap();
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Of a host to which nothing happens.
    fn desk(&self) -> Desk {
        Desk::sound(self.folder.path(), &self.world, &self.states)
    }

    fn open(&self) -> Repository {
        self.desk().open().unwrap()
    }

    fn host(&self, host: Arc<Counted>) -> Result<Repository> {
        let store = MemoryStore::new(self.world.clone(), host, Sharing::SHARED);
        let plan = Plan::new(0, Wrong::Nothing);
        let state = Desk::new(self.folder.path(), self.world.clone(), self.states.clone(), &plan);
        Repository::open_in(Arc::new(store), state.host)
    }

    fn request(&self, name: &str) -> SnapshotRequest {
        let path = self.path(name);
        SnapshotRequest::new(path.as_path())
            .track(Some(Track::None))
            .format(Some(imgsnap::image::ImageFormat::RAW))
            .full_scan(true)
    }

    /// Begins `a` anew from `template@2`.
    fn base(&self, repository: &Repository) -> Result<()> {
        let of = Reference { name: "template".into(), at: At::Number(2) };
        let request = self.request("a").parent(ParentChoice::Full).base_of(Some(of));
        repository.snapshot(&request, &context()).map(drop)
    }

    fn manifests(&self) -> BTreeMap<String, Manifest> {
        let repository = self.open();
        let names = repository.names().unwrap().into_iter();
        names
            .map(|name| (name.clone(), repository.list(&name, &context()).unwrap().manifest))
            .collect()
    }

    /// What is named is pinned, and what is listed restores.
    fn check(&self, what: &str) {
        let (repository, manifests) = (self.open(), self.manifests());
        for (name, manifest) in &manifests {
            for of in manifest.bases_elsewhere() {
                let pinned = manifests[&of.name].by_id(of.snapshot);
                let is_pinned = pinned.is_some_and(|s| s.pins.iter().any(|pin| pin.id == of.pin));
                assert!(is_pinned, "{what}: {name} depends on {}", of.place());
            }
            for snapshot in &manifest.snapshots {
                let bytes = restored(&repository, name, snapshot.number);
                let bytes = bytes.unwrap_or_else(|e| panic!("{what}: {e}"));
                assert!(bytes == content(name, snapshot.number), "{what}: {name}");
            }
        }
    }

    /// After weeks, in which somebody drops something now and then, nothing is pinned but what is named.
    fn check_pins(&self, what: &str) {
        (0..3).for_each(|_| self.desk().wait_and_collect());
        self.check(what);
        let manifests = self.manifests();
        let pins = manifests["template"].snapshots.iter().flat_map(|s| &s.pins).count();
        assert_eq!(pins, manifests["a"].bases_elsewhere().count(), "{what}");
        let left = self.world.names().into_iter().filter(|name| name.ends_with(".delta")).count();
        let named = manifests.values().map(|m| m.snapshots.len() + m.dropped.len()).sum::<usize>();
        assert_eq!(left, named, "{what}");
    }

    fn delete(&self, name: &str, number: u64) -> Result<()> {
        self.open().delete(name, &At::Number(number), false, &context()).map(drop)
    }
}

fn content(name: &str, number: u64) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..8u8).flat_map(|block| [block + 1; 4096]).collect();
    // Of the live image of `a` there are no more.
    bytes[0] = if name == "a" { number.min(2) as u8 } else { number as u8 };
    bytes[5 * 4096] = name.len() as u8;
    bytes
}

fn counted(at: usize, dies: bool, meanwhile: Option<Meanwhile>) -> Arc<Counted> {
    let (next, meanwhile) = (AtomicUsize::new(0), Mutex::new(meanwhile));
    Arc::new(Counted { next, at, dies, meanwhile, changes: Mutex::default() })
}

/// At which of its requests a verb is disturbed: around each that changes something, and now and then in between; at
/// each of them with `IMGSNAP_FAULTS=all`.
fn points(act: &dyn Fn(&Lab, &Repository) -> Result<()>, setup: &dyn Fn(&Lab)) -> Vec<usize> {
    let is_all = std::env::var("IMGSNAP_FAULTS").is_ok_and(|faults| faults == "all");
    let lab = Lab::new();
    setup(&lab);
    let host = counted(usize::MAX, false, None);
    lab.host(host.clone()).and_then(|repository| act(&lab, &repository)).unwrap();
    let changes = host.changes.lock().unwrap().clone();
    let is_near = |at: usize| changes.contains(&at) || at > 0 && changes.contains(&(at - 1));
    let all = 0..host.next.load(Relaxed);
    all.filter(|at| is_all || at.is_multiple_of(8) || is_near(*at)).collect()
}

/// C9: a drop of what it is based on, with days or without, at every point.
#[test]
fn what_is_dropped_at_any_point_is_never_depended_on() {
    let (mut based, mut dropped) = (0, 0);
    for at in points(&Lab::base, &|_| ()) {
        for weeks in [false, true] {
            let lab = Lab::new();
            let other = lab.clone();
            let outcome = Arc::new(Mutex::new(None));
            let said = outcome.clone();
            let meanwhile: Meanwhile = Box::new(move || {
                if weeks {
                    other.desk().wait_and_collect();
                }
                *said.lock().unwrap() = Some(other.delete("template", 2));
            });
            let host = lab.host(counted(at, false, Some(meanwhile)));
            let taken = host.and_then(|repository| lab.base(&repository));
            let what = format!("{at}, {weeks}: {taken:?}");
            lab.check(&what);
            let deleted = outcome.lock().unwrap().take().unwrap();
            match (&deleted, &taken) {
                (Ok(()), Ok(())) => panic!("{what}"),
                (Ok(()), Err(e)) => {
                    let is_usual = matches!(e.kind(), ErrorKind::Busy | ErrorKind::NotFound);
                    assert!(is_usual, "{what}");
                    dropped += 1;
                }
                (Err(e), _) => {
                    assert!(e.to_string().contains("needed by \"a\""), "{what}: {e}");
                    based += usize::from(taken.is_ok());
                }
            }
            lab.check_pins(&what);
        }
    }
    assert!(based > 0 && dropped > 0, "{based} {dropped}");
}

/// C9: its host dies at every point; what it left does not stay, and nobody waits for it for ever.
#[test]
fn whoever_dies_at_any_point_leaves_no_pin() {
    for at in points(&Lab::base, &|_| ()) {
        let lab = Lab::new();
        let host = lab.host(counted(at, true, None));
        let taken = host.and_then(|repository| lab.base(&repository));
        let what = format!("{at}: {taken:?}");
        lab.check(&what);
        lab.check_pins(&what);
        let is_based = lab.manifests()["a"].bases_elsewhere().count() == 1;
        assert_eq!(lab.delete("template", 2).is_ok(), !is_based, "{what}");
        lab.base(&lab.open()).map_or_else(|e| assert_eq!(e.kind(), ErrorKind::NotFound), |()| ());
        lab.check_pins(&what);
    }
}

/// C9, in the reverse order: what depends on it is dropped, and its host dies, or others drop what it depends on.
#[test]
fn a_dependence_that_ends_at_any_point_is_over_before_its_pin_is() {
    let drop_it = |_: &Lab, repository: &Repository| -> Result<()> {
        repository.delete("a", &At::Number(2), false, &context()).map(drop)
    };
    let setup = |lab: &Lab| lab.base(&lab.open()).unwrap();
    for at in points(&drop_it, &setup) {
        for dies in [false, true] {
            let lab = Lab::new();
            setup(&lab);
            let other = lab.clone();
            let meanwhile: Meanwhile = Box::new(move || drop(other.delete("template", 2)));
            let meanwhile = (!dies).then_some(meanwhile);
            let host = lab.host(counted(at, dies, meanwhile));
            let dropped = host.and_then(|repository| drop_it(&lab, &repository));
            let what = format!("{at}, {dies}: {dropped:?}");
            lab.check(&what);
            lab.check_pins(&what);
            let is_based = lab.manifests()["a"].bases_elsewhere().count() == 1;
            assert!(dies || !is_based, "{what}");
        }
    }
}

/// A template that is merged away below a clone that is read.
#[test]
fn a_view_stays_while_the_other_image_is_merged() {
    let lab = Lab::new();
    lab.base(&lab.open()).unwrap();
    let view = lab.open().view("a", &At::Number(2), &context()).unwrap();
    for number in [1, 3] {
        lab.open().delete("template", &At::Number(number), true, &context()).unwrap();
    }
    lab.world.pass(std::time::Duration::from_secs(10 * 24 * 3600));
    lab.open().prune("template", &keep(100), &context()).unwrap();
    let mut buffer = Vec::new();
    let window = imgsnap::image::Source::read(&view, 0, 8 * 4096, &mut buffer).unwrap();
    assert!(window.bytes() == content("a", 2));
    drop(window);
    drop(view);
    lab.check_pins("afterwards");
}
