//! Interleavings that a random schedule hardly meets, one by one: a host is held at one request, what others do
//! meanwhile is done, and then it goes on.

use crate::desk::restored;
use imgsnap::image::write::Medium;
use imgsnap::repo::host::HostState;
use imgsnap::repo::retention::{Count, Rules};
use imgsnap::store::{Act, Fault, Host, MemoryStore, Sharing, World};
use imgsnap::{
    At, Context, Defaults, ErrorKind, ExportRequest, ParentChoice, PruneRequest, Repository,
    Result, RollbackRequest, SnapshotOutcome, SnapshotRequest, Track,
};
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 3600);

type Meanwhile = Box<dyn FnOnce() + Send>;

/// Does something before the first request of a kind is carried out.
struct Held {
    act: Act,
    part: &'static str,
    meanwhile: Mutex<Option<Meanwhile>>,
}

impl Host for Held {
    fn ask(&self, act: Act, name: &str) -> Fault {
        let is_it = act == self.act && name.contains(self.part);
        let meanwhile = if is_it { self.meanwhile.lock().unwrap().take() } else { None };
        if let Some(meanwhile) = meanwhile {
            meanwhile();
        }
        Fault::None
    }
}

/// A disk that writes nothing.
struct NoMedium;

impl Medium for NoMedium {
    fn write(&self, _file: &File, _bytes: &[u8], _offset: u64) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Other.into())
    }
}

/// A repository with an image of three snapshots.
#[derive(Clone)]
struct Lab {
    world: World,
    states: World,
    image: PathBuf,
    _folder: Arc<tempfile::TempDir>,
}

impl Lab {
    fn new() -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let image = folder.path().join("a");
        let lab =
            Self { world: World::default(), states: World::default(), image, _folder: folder };
        Repository::init_in(lab.store(lab.alone()), Defaults::default(), lab.host()).unwrap();
        for number in 1..=3 {
            assert_eq!(lab.take(&lab.repository()).unwrap().snapshot.number, number);
        }
        lab
    }

    fn alone(&self) -> Arc<dyn Host> {
        Arc::new(Held { act: Act::Pause, part: "", meanwhile: Mutex::new(None) })
    }

    fn store(&self, host: Arc<dyn Host>) -> Arc<MemoryStore> {
        Arc::new(MemoryStore::new(self.world.clone(), host, Sharing::SHARED))
    }

    fn host(&self) -> HostState {
        let store = MemoryStore::new(self.states.clone(), self.alone(), Sharing::SHARED);
        HostState::in_store(Arc::new(store), "host")
    }

    fn repository(&self) -> Repository {
        Repository::open_in(self.store(self.alone()), self.host()).unwrap()
    }

    /// One whose host is held at a request until `meanwhile` is done.
    fn held(
        &self,
        act: Act,
        part: &'static str,
        meanwhile: impl FnOnce(&Self) + Send + 'static,
    ) -> Repository {
        let lab = self.clone();
        let meanwhile: Meanwhile = Box::new(move || meanwhile(&lab));
        let host = Arc::new(Held { act, part, meanwhile: Mutex::new(Some(meanwhile)) });
        Repository::open_in(self.store(host), self.host()).unwrap()
    }

    fn take(&self, repository: &Repository) -> Result<SnapshotOutcome> {
        let bytes: Vec<u8> = uuid::Uuid::new_v4().as_bytes().repeat(1000);
        std::fs::write(&self.image, bytes).unwrap();
        self.take_as_it_is(repository)
    }

    /// While somebody else reads it nobody writes to it.
    fn take_as_it_is(&self, repository: &Repository) -> Result<SnapshotOutcome> {
        let request = SnapshotRequest::new(self.image.as_path()).track(Some(Track::None));
        repository
            .snapshot(&request.format(Some(imgsnap::image::ImageFormat::RAW)), &Context::silent())
    }

    fn restore(&self, repository: &Repository, number: u64) -> Result<Vec<u8>> {
        restored(repository, "a", number)
    }

    fn delete(&self, number: u64) {
        let at = At::Number(number);
        self.repository().delete("a", &at, false, &Context::silent()).unwrap();
    }

    fn prune(&self, repository: &Repository, last: u64, labels: &[&str]) -> Result<()> {
        let labels = labels.iter().map(|label| label.parse().unwrap()).collect();
        let rules = Rules { last: Some(Count::Most(last)), labels, ..Rules::default() };
        repository.prune("a", &PruneRequest::new().rules(Some(rules)), &Context::silent()).map(drop)
    }

    /// Rolls back to the first snapshot, and fails before the first byte is written.
    fn roll_back_halfway(&self) {
        let request = RollbackRequest::new("a", At::Number(1));
        let context = Context::silent();
        self.repository().rollback_through(&NoMedium, &request, &context).unwrap_err();
    }

    /// Days pass, and somebody collects what is garbage by then.
    fn collect(&self, days: u32) {
        self.world.pass(DAY * days);
        self.prune(&self.repository(), 100, &[]).unwrap();
    }

    /// The snapshots, each of which restores.
    fn numbers(&self) -> Vec<u64> {
        let repository = self.repository();
        let listed = repository.list("a", &Context::silent()).unwrap().manifest.snapshots;
        let numbers: Vec<u64> = listed.iter().map(|s| s.number).collect();
        numbers.iter().for_each(|number| drop(self.restore(&repository, *number).unwrap()));
        numbers
    }
}

/// C5 and C6: the marker of who sleeps for weeks before his commit has expired, and his upload was condemned, or
/// deleted and removed.
#[test]
fn an_upload_that_was_condemned_meanwhile_is_not_named() {
    for rounds in 1..=3 {
        let lab = Lab::new();
        let sleeper = lab.held(Act::Put, "a/manifest.", move |lab| {
            lab.collect(20);
            for _ in 1..rounds {
                lab.collect(20);
                let at = At::Number(1);
                lab.repository().label("a", &at, Some("x"), &Context::silent()).unwrap();
                lab.repository().label("a", &at, None, &Context::silent()).unwrap();
            }
        });
        let refused = lab.take(&sleeper).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Busy, "{rounds}: {refused}");
        assert_eq!(lab.numbers(), [1, 2, 3], "{rounds}");
        lab.take(&lab.repository()).unwrap();
        assert_eq!(lab.numbers(), [1, 2, 3, 4], "{rounds}");
    }
}

/// What was committed meanwhile, and leaves the upload alone, does not cost a snapshot.
#[test]
fn a_snapshot_is_committed_on_top_of_what_others_did() {
    let lab = Lab::new();
    let slow = lab.held(Act::Put, "a/manifest.", |lab| {
        lab.delete(1);
        let at = At::Number(2);
        lab.repository().label("a", &at, Some("x"), &Context::silent()).unwrap();
    });
    assert_eq!(lab.take(&slow).unwrap().snapshot.number, 4);
    assert_eq!(lab.numbers(), [2, 3, 4]);
}

/// C7: before the marker is there nothing is held, so what rules is read once more.
#[test]
fn a_reader_looks_again_after_its_marker() {
    let lab = Lab::new();
    let slow = lab.held(Act::Put, "a/marker.", |lab| {
        lab.delete(3);
        lab.collect(4);
        lab.collect(4);
    });
    let error = lab.restore(&slow, 3).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(error.to_string().contains("no snapshot"), "it is not read: {error}");
    assert_eq!(lab.numbers(), [1, 2]);
}

/// The image was removed meanwhile, and there is another one of its name, with as many snapshots.
#[test]
fn a_snapshot_of_an_image_that_was_removed_is_none_of_its_successor() {
    let lab = Lab::new();
    let sleeper = lab.held(Act::Put, "a/manifest.", |lab| {
        lab.repository().remove("a", &Context::silent()).unwrap();
        for _ in 0..3 {
            lab.take_as_it_is(&lab.repository()).unwrap();
        }
    });
    // One that depends on nothing.
    let request = SnapshotRequest::new(lab.image.as_path()).parent(ParentChoice::Full);
    let request = request.track(Some(Track::None)).format(Some(imgsnap::image::ImageFormat::RAW));
    let refused = sleeper.snapshot(&request, &Context::silent()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Busy, "{refused}");
    assert_eq!(lab.numbers(), [1, 2, 3]);
}

/// ... nor is what is imported.
#[test]
fn an_import_of_an_image_that_was_removed_is_none_of_its_successor() {
    let lab = Lab::new();
    let mut file = Vec::new();
    let mut write = |bytes: &[u8]| {
        file.extend_from_slice(bytes);
        Ok(())
    };
    let request = ExportRequest::new("a", At::Number(3));
    lab.repository().export(&request, &Context::silent(), &mut write).unwrap();
    let slow = lab.held(Act::Remove, "a/marker.", |lab| {
        lab.repository().remove("a", &Context::silent()).unwrap();
        lab.take_as_it_is(&lab.repository()).unwrap();
    });
    let imported = slow.import(&mut &file[..], "a file", None, &Context::silent());
    assert_eq!(imported.unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(lab.numbers(), [1]);
}

/// What the rules keep is decided by what is there when it is committed.
#[test]
fn a_prune_decides_again() {
    let lab = Lab::new();
    let slow = lab.held(Act::Put, "a/manifest.", |lab| lab.delete(3));
    lab.prune(&slow, 1, &[]).unwrap();
    assert_eq!(lab.numbers(), [2], "the last one is another one now");
    let lab = Lab::new();
    let slow = lab.held(Act::Put, "a/manifest.", |lab| {
        let at = At::Number(1);
        lab.repository().label("a", &at, Some("keep"), &Context::silent()).unwrap();
    });
    lab.prune(&slow, 1, &["keep"]).unwrap();
    assert_eq!(lab.numbers(), [1, 3]);
}

/// A first snapshot that fails takes no image along of which others have taken one.
#[test]
fn two_hosts_begin_an_image_at_once() {
    let lab = Lab::new();
    lab.repository().remove("a", &Context::silent()).unwrap();
    let slow = lab.held(Act::Put, "a/marker.", |lab| {
        lab.take_as_it_is(&lab.repository()).unwrap();
    });
    let second = lab.take(&slow);
    assert!(second.is_ok_and(|taken| taken.snapshot.number == 2));
    assert_eq!(lab.numbers(), [1, 2]);
}

/// A rollback that another host began is seen by a snapshot that began before.
#[test]
fn nobody_takes_a_snapshot_of_what_is_half_written_since() {
    let lab = Lab::new();
    let slow = lab.held(Act::Put, "a/manifest.", |lab| {
        let store = lab.store(lab.alone());
        let mut next = imgsnap::repo::manifest::load(store.as_ref(), "a").unwrap();
        next.rollback = Some(imgsnap::repo::manifest::Rollback {
            id: None,
            host: lab.host().host().clone(),
            target: next.snapshots[0].id,
            saved: None,
            live: None,
        });
        imgsnap::repo::manifest::commit(store.as_ref(), &mut next).unwrap();
    });
    let refused = lab.take(&slow).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Busy, "{refused}");
    let refused = lab.take(&lab.repository()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Mismatch, "{refused}");
}

/// Puts of manifests land when all is over, and are not answered.
struct Deaf;

impl Host for Deaf {
    fn ask(&self, act: Act, name: &str) -> Fault {
        let is_commit = act == Act::Put && name.contains("/manifest.");
        if is_commit { Fault::Late } else { Fault::None }
    }
}

/// The rollback was told to have failed, and its intent lands days later: what was written to the image meanwhile
/// is saved as ever. (FORMAT.md S5)
#[test]
fn an_intent_that_lands_late_is_none_of_an_image_that_is_half_written() {
    let lab = Lab::new();
    let back = |repository: &Repository| {
        let request = RollbackRequest::new("a", At::Number(1));
        repository.rollback(&request, &Context::silent())
    };
    let deaf = Repository::open_in(lab.store(Arc::new(Deaf)), lab.host()).unwrap();
    let failed = back(&deaf).unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Unavailable, "{failed}");
    assert!(lab.world.late_requests() > 0);
    while lab.world.late_requests() > 0 {
        lab.world.land(0);
    }
    std::fs::write(&lab.image, [7; 5000]).unwrap();
    let refused = lab.take_as_it_is(&lab.repository()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Mismatch, "{refused}");
    let done = back(&lab.repository()).unwrap();
    assert!(!done.resumed);
    assert_eq!(lab.restore(&lab.repository(), done.saved.unwrap()).unwrap(), [7; 5000]);
    let first = lab.restore(&lab.repository(), 1).unwrap();
    assert_eq!(std::fs::read(&lab.image).unwrap(), first);
}

/// Nor do a relink and a removal pass over a rollback that began meanwhile.
#[test]
fn a_rollback_that_began_meanwhile_is_passed_over_by_nothing() {
    for removes in [false, true] {
        let lab = Lab::new();
        let slow = lab.held(Act::Put, "a/manifest.", Lab::roll_back_halfway);
        let refused = match removes {
            false => slow
                .relink("a", &lab.image, Some(imgsnap::image::ImageFormat::RAW), &Context::silent())
                .map(drop),
            true => slow.remove("a", &Context::silent()).map(drop),
        };
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Busy, "{removes}");
        let refused = lab.take_as_it_is(&lab.repository()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Mismatch, "{refused}");
    }
}

/// Where a rollback leads to may be dropped before others see that it has begun.
#[test]
fn a_rollback_to_what_was_dropped_meanwhile_does_not_begin() {
    let lab = Lab::new();
    // What the image is now is saved already.
    let slow = lab.held(Act::Put, "a/manifest.", |lab| lab.delete(1));
    let request = RollbackRequest::new("a", At::Number(1)).save(false);
    let refused = slow.rollback(&request, &Context::silent()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Busy, "{refused}");
    lab.take(&lab.repository()).unwrap();
    assert_eq!(lab.numbers(), [2, 3, 4]);
}

/// Nor does one over what was saved, if that was dropped meanwhile.
#[test]
fn a_rollback_over_what_is_in_no_snapshot_any_more_does_not_begin() {
    let lab = Lab::new();
    let now = std::fs::read(&lab.image).unwrap();
    let slow = lab.held(Act::Put, "a/manifest.", |lab| lab.delete(3));
    let request = RollbackRequest::new("a", At::Number(1));
    let refused = slow.rollback(&request, &Context::silent()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Busy, "{refused}");
    assert_eq!(std::fs::read(&lab.image).unwrap(), now);
    let saved = lab.repository().rollback(&request, &Context::silent()).unwrap().saved.unwrap();
    assert_eq!(lab.restore(&lab.repository(), saved).unwrap(), now);
}

/// What another machine was told to have is no longer this one's.
#[test]
fn a_live_file_that_was_linked_elsewhere_is_left_alone() {
    let lab = Lab::new();
    let store = MemoryStore::new(lab.states.clone(), lab.alone(), Sharing::SHARED);
    let other = HostState::in_store(Arc::new(store), "another");
    let other = Repository::open_in(lab.store(lab.alone()), other).unwrap();
    let copy = lab.image.with_extension("copy");
    std::fs::copy(&lab.image, &copy).unwrap();
    other.relink("a", &copy, Some(imgsnap::image::ImageFormat::RAW), &Context::silent()).unwrap();
    let request = RollbackRequest::new("a", At::Number(1));
    let refused = lab.repository().rollback(&request, &Context::silent()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotFound, "{refused}");
    let refused = lab.take_as_it_is(&lab.repository()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::AlreadyExists, "{refused}");
    other.rollback(&request, &Context::silent()).unwrap();
}

/// A rollback of what is half written, which is killed before its own first byte, does not make it whole.
#[test]
fn what_is_half_written_stays_so_whatever_the_next_rollback_comes_to() {
    let lab = Lab::new();
    lab.roll_back_halfway();
    let store = lab.store(lab.alone());
    let mut next = imgsnap::repo::manifest::load(store.as_ref(), "a").unwrap();
    let begun = next.rollback.clone().unwrap();
    next.rollback =
        Some(imgsnap::repo::manifest::Rollback { target: next.snapshots[1].id, ..begun });
    imgsnap::repo::manifest::commit(store.as_ref(), &mut next).unwrap();
    let request = RollbackRequest::new("a", At::Number(3));
    let done = lab.repository().rollback(&request, &Context::silent()).unwrap();
    assert!(done.resumed);
    assert_eq!(lab.numbers(), [1, 2, 3]);
}

/// ... nor is what it took before a snapshot of the other's image.
#[test]
fn a_snapshot_of_a_file_that_is_linked_elsewhere_since_is_none() {
    let lab = Lab::new();
    let slow = lab.held(Act::Put, "a/manifest.", |lab| {
        let copy = lab.image.with_extension("copy");
        std::fs::copy(&lab.image, &copy).unwrap();
        lab.repository()
            .relink("a", &copy, Some(imgsnap::image::ImageFormat::RAW), &Context::silent())
            .unwrap();
    });
    let refused = lab.take(&slow).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Busy, "{refused}");
    assert_eq!(lab.numbers(), [1, 2, 3]);
}
