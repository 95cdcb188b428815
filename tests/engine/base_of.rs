//! Chains that begin from another image's snapshot (FORMAT.md N1, J18, J22): the pin that keeps it, who takes it
//! away, what a repair makes of lost manifests, and a repository that both readers read for ever.

use crate::support::{fixtures, is_blessing, naive_reader, text};
use imgsnap::image::write::Stream;
use imgsnap::repo::host::HostState;
use imgsnap::repo::manifest::{self, Manifest, Pin};
use imgsnap::store::{LocalStore, LockKind, OsDisk, Store};
use imgsnap::{
    At, Context, Defaults, ErrorKind, ParentChoice, Reference, Repository, RestoreRequest,
    RestoreTarget, Result, SnapshotRequest, VerifyScope,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;

fn context() -> Context {
    Context::silent()
}

/// `template` with three snapshots, `clone` with two, the first of which begins from `template@2`, and `clone2`,
/// whose only one begins from `clone@1`.
struct Lab {
    _folder: Option<tempfile::TempDir>,
    repo: PathBuf,
}

fn state(name: &str, number: u64) -> Vec<u8> {
    let mut bytes = text(50_000, 1);
    let changes: &[u64] = match (name, number) {
        ("template" | "template2", 1) => &[],
        ("template", 2) => &[1],
        ("template", 3) => &[1, 2],
        ("template", 4) => &[1, 3, 5, 6],
        ("clone", 1) => &[1, 3],
        ("clone", 2) => &[1, 3, 4],
        ("clone2", 1) => &[1, 3, 5],
        other => panic!("{other:?}"),
    };
    for change in changes {
        let at = *change as usize * 8192;
        bytes[at..at + 100].fill(*change as u8);
    }
    bytes
}

impl Lab {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let repo = folder.path().join("repo");
        std::fs::create_dir(&repo).unwrap();
        let lab = Self { _folder: Some(folder), repo };
        lab.fill();
        lab
    }

    fn fill(&self) {
        Repository::init_in(self.store(), Defaults::default(), self.host()).unwrap();
        for number in 1..=3 {
            self.take("template", number, None).unwrap();
        }
        self.take("clone", 1, Some(("template", 2))).unwrap();
        self.take("clone", 2, None).unwrap();
        self.take("clone2", 1, Some(("clone", 1))).unwrap();
    }

    fn host(&self) -> HostState {
        HostState::in_folder(&self.repo.with_file_name("state"))
    }

    fn store(&self) -> Arc<LocalStore> {
        Arc::new(LocalStore::new(Arc::new(OsDisk::new(self.repo.clone()))))
    }

    fn open(&self) -> Repository {
        Repository::open_in(self.store(), self.host()).unwrap()
    }

    fn take(&self, name: &str, number: u64, of: Option<(&str, u64)>) -> Result<()> {
        let live = self.repo.with_file_name(format!("{name}.img"));
        std::fs::write(&live, state(name, number)).unwrap();
        let of = of.map(|(name, at)| Reference { name: name.into(), at: At::Number(at) });
        self.open().snapshot(&SnapshotRequest::new(live).base_of(of), &context()).map(drop)
    }

    fn take_full(&self, name: &str, number: u64, of: (&str, u64)) {
        let live = self.repo.with_file_name(format!("{name}.img"));
        std::fs::write(&live, state(name, number)).unwrap();
        let of = Reference { name: of.0.into(), at: At::Number(of.1) };
        let request = SnapshotRequest::new(live).parent(ParentChoice::Full).base_of(Some(of));
        self.open().snapshot(&request, &context()).unwrap();
    }

    fn manifest(&self, name: &str) -> Manifest {
        manifest::load(self.store().as_ref(), name).unwrap()
    }

    fn pins(&self, name: &str) -> Vec<(u64, String)> {
        let manifest = self.manifest(name);
        let pins = |s: &manifest::Snapshot| {
            s.pins.iter().map(|pin| (s.number, pin.name.clone())).collect::<Vec<_>>()
        };
        manifest.snapshots.iter().flat_map(pins).collect()
    }

    fn delete(&self, name: &str, number: u64) -> Result<()> {
        self.open().delete(name, &At::Number(number), true, &context()).map(drop)
    }

    fn refuses_to_delete(&self, name: &str, number: u64, by: &str) {
        let refused = self.delete(name, number).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Mismatch, "{refused}");
        let why = format!("{name}@{number} is needed by \"{by}\"; ");
        assert!(refused.to_string().starts_with(&why), "{refused}");
    }

    fn edit(&self, name: &str, edit: impl FnOnce(&mut Manifest)) {
        let mut next = self.manifest(name);
        edit(&mut next);
        manifest::commit(self.store().as_ref(), &mut next).unwrap();
    }

    fn lose_manifests(&self, name: &str) {
        for entry in std::fs::read_dir(self.repo.join(name)).unwrap().flatten() {
            if entry.file_name().to_str().unwrap().starts_with("manifest.") {
                std::fs::remove_file(entry.path()).unwrap();
            }
        }
    }

    /// Every snapshot that is listed restores by both readers, and nothing is damaged.
    fn check(&self, expected: &[(&str, &[u64])]) {
        let repository = self.open();
        for (name, numbers) in expected {
            let listed: Vec<u64> = self.manifest(name).snapshots.iter().map(|s| s.number).collect();
            assert_eq!(listed, *numbers, "{name}");
            for number in *numbers {
                let mut bytes = Vec::new();
                let mut stream = Stream::new(&mut bytes, "memory");
                let request = RestoreRequest::new(*name).at(At::Number(*number));
                repository
                    .restore(&request, RestoreTarget::Target(&mut stream), &context())
                    .unwrap();
                assert!(bytes == state(name, *number), "{name}@{number}");
                let second = naive_reader::restore_from(&self.repo.join(name), *number).unwrap();
                assert!(second == bytes, "{name}@{number}");
            }
            let image = VerifyScope::Image((*name).into());
            let verified = repository.verify(&image, false, &context()).unwrap();
            assert!(verified.damaged.is_empty() && verified.lost.is_empty(), "{verified:?}");
        }
        let verified = repository.verify(&VerifyScope::All, false, &context()).unwrap();
        assert!(verified.damaged.is_empty() && verified.unchecked.is_empty(), "{verified:?}");
        let all: usize = expected.iter().map(|(_, numbers)| numbers.len()).sum();
        assert_eq!(verified.snapshots, all as u64);
    }
}

const ALL: [(&str, &[u64]); 3] = [("template", &[1, 2, 3]), ("clone", &[1, 2]), ("clone2", &[1])];

/// J18, J22: the manifest says it, and an older program refuses it.
#[test]
fn a_chain_begins_from_another_image() {
    let lab = Lab::new();
    lab.check(&ALL);
    let (template, clone) = (lab.manifest("template"), lab.manifest("clone"));
    assert_eq!(clone.needs, ["pins", "base_of"]);
    assert_eq!(template.needs, ["pins"]);
    let of = clone.snapshots[0].base_of.clone().unwrap();
    assert_eq!((clone.snapshots[0].parent, of.place().as_str()), (None, "template@2"));
    assert_eq!((of.image, of.snapshot), (template.image_id, template.snapshots[1].id));
    let pin = &template.snapshots[1].pins[0];
    assert_eq!((pin.id, pin.image, pin.name.as_str()), (of.pin, clone.image_id, "clone"));
    assert_eq!(clone.snapshots[1].base_of, None);
}

/// J18: nothing drops what others depend on, and what is below it may be merged all the same.
#[test]
fn what_is_needed_elsewhere_is_kept_until_it_is_not() {
    let lab = Lab::new();
    lab.refuses_to_delete("template", 2, "clone");
    lab.refuses_to_delete("clone", 1, "clone2");
    let refused = lab.open().remove("template", &context()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Mismatch, "{refused}");
    lab.delete("template", 1).unwrap();
    lab.delete("template", 3).unwrap();
    assert!(lab.manifest("template").dropped.is_empty());
    lab.check(&[("template", &[2]), ("clone", &[1, 2]), ("clone2", &[1])]);
    // Of its own from now on; who is based on it is not moved.
    lab.open().flatten("clone", &At::Number(1), &context()).unwrap();
    assert_eq!(lab.pins("template"), []);
    assert_eq!(lab.manifest("clone").needs, ["pins"]);
    lab.open().remove("template", &context()).unwrap();
    lab.open().remove("clone2", &context()).unwrap();
    assert_eq!(lab.pins("clone"), []);
    lab.check(&[("clone", &[1, 2])]);
}

/// The first snapshot of the chain is dropped, and merged into the one that depends on it.
#[test]
fn what_takes_the_place_of_the_first_depends_on_the_same() {
    let lab = Lab::new();
    lab.open().remove("clone2", &context()).unwrap();
    lab.delete("clone", 1).unwrap();
    let clone = lab.manifest("clone");
    assert!(clone.dropped.is_empty());
    assert_eq!(clone.snapshots[0].base_of.as_ref().unwrap().place(), "template@2");
    lab.check(&[("template", &[1, 2, 3]), ("clone", &[2])]);
    lab.refuses_to_delete("template", 2, "clone");
    lab.take("clone", 1, None).unwrap();
    lab.delete("clone", 3).unwrap();
    lab.open().remove("clone", &context()).unwrap();
    assert_eq!(lab.pins("template"), []);
    lab.delete("template", 2).unwrap();
}

/// C9: whoever died after the pin has left one that nobody names.
#[test]
fn a_pin_that_nobody_names_is_taken_away() {
    let lab = Lab::new();
    let clone = lab.manifest("clone");
    let pin = |image, name: &str| Pin { id: Uuid::new_v4(), image, name: name.into(), since: 1 };
    let add = |pin: Pin| lab.edit("template", |next| next.snapshots[2].pins.push(pin));
    add(pin(clone.image_id, "clone"));
    assert_eq!(lab.pins("template").len(), 2);
    // Whatever it was opened for.
    lab.delete("template", 9).unwrap_err();
    assert_eq!(lab.pins("template"), [(2, "clone".to_owned())]);
    // An image that is not there, or another one that has its name, says nothing: it may be back in a moment.
    for (image, name) in [(Uuid::new_v4(), "nobody"), (Uuid::new_v4(), "clone")] {
        add(pin(image, name));
        lab.refuses_to_delete("template", 3, name);
        lab.open().repair("template", &context()).unwrap();
        assert_eq!(lab.pins("template"), [(2, "clone".to_owned())]);
    }
    // While somebody changes that image, it may be about to name it; and while it cannot be read, it may name it.
    add(pin(clone.image_id, "clone"));
    let lock = lab.store().lock("clone/write.lock", LockKind::Exclusive).unwrap().unwrap();
    lab.refuses_to_delete("template", 3, "clone");
    drop(lock);
    let file = lab.repo.join("clone").join(manifest::file_name(lab.manifest("clone").sequence));
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..100]).unwrap();
    lab.refuses_to_delete("template", 3, "clone");
    std::fs::write(&file, bytes).unwrap();
    lab.delete("template", 3).unwrap();
}

/// A snapshot that fails leaves no pin behind, nor does one that is only tried.
#[test]
fn a_snapshot_that_fails_pins_nothing() {
    let lab = Lab::new();
    let live = lab.repo.with_file_name("clone.img");
    let of = |name: &str, at| Some(Reference { name: name.into(), at: At::Number(at) });
    let request = SnapshotRequest::new(live);
    let try_it = |request: &SnapshotRequest| lab.open().snapshot(request, &context());
    for (request, kind) in [
        (request.clone().base_of(of("template", 3)), ErrorKind::InvalidInput),
        (request.clone().base_of(of("template", 9)), ErrorKind::NotFound),
        (request.clone().base_of(of("nobody", 1)), ErrorKind::NotFound),
        (request.clone().base_of(of("clone", 1)), ErrorKind::InvalidInput),
    ] {
        assert_eq!(try_it(&request).unwrap_err().kind(), kind);
    }
    let full = request.clone().parent(ParentChoice::Full).base_of(of("template", 3));
    let tried = try_it(&full.clone().dry_run(true)).unwrap();
    assert_eq!(tried.snapshot.base_of.unwrap().place(), "template@3");
    // It cannot be opened any more once the pin is there.
    let file = lab.repo.join("template").join(&lab.manifest("template").snapshots[0].file);
    let bytes = std::fs::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    try_it(&full).unwrap_err();
    std::fs::write(&file, bytes).unwrap();
    assert_eq!(lab.pins("template"), [(2, "clone".to_owned())]);
    try_it(&full).unwrap();
    assert_eq!(lab.pins("template"), [(2, "clone".to_owned()), (3, "clone".to_owned())]);
}

/// What is found again when manifests are lost.
#[test]
fn lost_manifests_are_rebuilt_with_what_they_depend_on() {
    for lost in [&["clone"][..], &["template"], &["clone2"], &["template", "clone", "clone2"]] {
        let lab = Lab::new();
        lost.iter().for_each(|name| lab.lose_manifests(name));
        // What others depend on first; again where that was not known yet.
        for name in lost.iter().chain(lost) {
            let repaired = lab.open().repair(name, &context()).unwrap();
            assert!(repaired.missing.is_empty(), "{lost:?}: {:?}", repaired.missing);
        }
        lab.check(&ALL);
        lab.refuses_to_delete("template", 2, "clone");
        lab.refuses_to_delete("clone", 1, "clone2");
        assert_eq!(lab.pins("template").len(), 1, "{lost:?}");
    }
    // The other way round the files are kept until what they depend on is there.
    let lab = Lab::new();
    for name in ["template", "clone2"] {
        lab.lose_manifests(name);
    }
    for name in ["clone2", "template", "clone2"] {
        lab.open().repair(name, &context()).unwrap();
    }
    lab.check(&ALL);
    let lab = Lab::new();
    for name in ["template", "clone"] {
        lab.lose_manifests(name);
    }
    assert!(lab.open().repair("clone", &context()).unwrap().rebuilt.unwrap().unused.len() == 2);
    lab.open().repair("template", &context()).unwrap();
    assert!(lab.open().repair("clone", &context()).unwrap().rebuilt.unwrap().unused.is_empty());
    lab.check(&ALL);
}

/// J18: what the files depend on that a repair could not use stays pinned, also by what was condemned before.
#[test]
fn a_repair_that_leaves_files_out_gives_no_pin_up() {
    for is_older_there in [false, true] {
        let lab = Lab::new();
        let file = lab.repo.join("template").join(&lab.manifest("template").snapshots[0].file);
        let hidden = lab.repo.with_file_name("hidden");
        std::fs::rename(&file, &hidden).unwrap();
        match is_older_there {
            false => lab.lose_manifests("clone"),
            true => {
                let next = manifest::file_name(lab.manifest("clone").sequence + 1);
                std::fs::write(lab.repo.join("clone").join(next), "damaged").unwrap();
            }
        }
        let repaired = lab.open().repair("clone", &context()).unwrap();
        assert_eq!(repaired.rebuilt.unwrap().unused.len(), 2, "{is_older_there}");
        std::fs::rename(&hidden, &file).unwrap();
        for _ in 0..2 {
            lab.refuses_to_delete("template", 2, "clone");
            lab.delete("template", 3).unwrap_or(());
        }
        lab.open().repair("clone", &context()).unwrap();
        lab.check(&[("template", &[1, 2]), ("clone", &[1, 2]), ("clone2", &[1])]);
    }
}

/// What leads through another image back to the same one is found once that can be opened.
#[test]
fn a_chain_that_comes_back_is_rebuilt_at_once() {
    let lab = Lab::new();
    lab.take_full("template", 4, ("clone2", 1));
    let all: [(&str, &[u64]); 3] =
        [("template", &[1, 2, 3, 4]), ("clone", &[1, 2]), ("clone2", &[1])];
    lab.check(&all);
    lab.lose_manifests("template");
    let rebuilt = lab.open().repair("template", &context()).unwrap().rebuilt.unwrap();
    assert!(rebuilt.snapshots == 4 && rebuilt.unused.is_empty(), "{rebuilt:?}");
    lab.check(&all);
}

/// An old copy of a manifest has no pins: what others name is pinned before anything is dropped.
#[test]
fn what_others_name_is_pinned_again_before_anything_is_dropped() {
    let lab = Lab::new();
    let unpin = |next: &mut Manifest| next.snapshots.iter_mut().for_each(|s| s.pins.clear());
    lab.edit("template", unpin);
    let verified = lab.open().verify(&VerifyScope::All, false, &context()).unwrap();
    let told: Vec<_> = verified.damaged.iter().map(|d| (&d.snapshot[..], &d.affects[..])).collect();
    assert_eq!(told, [("template@2", &["clone@1".to_owned()][..])], "{verified:?}");
    assert!(verified.damaged[0].message.to_string().contains("repair(template)"), "{verified:?}");
    lab.refuses_to_delete("template", 2, "clone");
    lab.check(&ALL);
    // If it has been dropped already, and its file is there, it is listed again.
    let dropped = |next: &mut Manifest| {
        unpin(next);
        next.dropped.push(next.snapshots.remove(1));
    };
    lab.edit("template", dropped);
    lab.delete("template", 3).unwrap();
    let left: [(&str, &[u64]); 3] = [("template", &[1, 2]), ("clone", &[1, 2]), ("clone2", &[1])];
    lab.check(&left);
    let lab = Lab::new();
    lab.edit("template", dropped);
    lab.lose_manifests("clone");
    let rebuilt = lab.open().repair("clone", &context()).unwrap().rebuilt.unwrap();
    assert!(rebuilt.unused.is_empty(), "{rebuilt:?}");
    lab.check(&ALL);
}

/// J18: an image that is not there for a moment may need what is pinned for it.
#[test]
fn an_image_that_is_away_keeps_its_pins() {
    let lab = Lab::new();
    let (folder, away) = (lab.repo.join("clone"), lab.repo.with_file_name("away"));
    std::fs::rename(&folder, &away).unwrap();
    let refused = lab.delete("template", 2).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Mismatch, "{refused}");
    assert!(refused.to_string().contains("\"clone\" is missing"), "{refused}");
    assert!(refused.to_string().contains("repair(template)"), "{refused}");
    std::fs::rename(&away, &folder).unwrap();
    lab.check(&ALL);
    std::fs::rename(&folder, &away).unwrap();
    lab.open().repair("template", &context()).unwrap();
    assert_eq!(lab.pins("template"), []);
    lab.delete("template", 2).unwrap();
}

/// J18: a pin is not named again that the image has condemned.
#[test]
fn a_condemned_pin_is_not_taken_again() {
    let lab = Lab::new();
    let old = lab.manifest("clone").snapshots[0].base_of.clone().unwrap().pin;
    let before = lab.manifest("clone");
    let files: Vec<String> = before.snapshots.iter().map(|s| s.file.clone()).collect();
    lab.edit("clone", |next| (next.snapshots, next.kept) = (Vec::new(), files.clone()));
    assert!(lab.manifest("clone").condemned.iter().any(|c| c.object == format!("{old}.pin")));
    lab.edit("clone", |next| next.unused = files);
    lab.open().repair("clone", &context()).unwrap();
    let of = lab.manifest("clone").snapshots[0].base_of.clone().unwrap();
    assert_ne!(of.pin, old);
    assert!(lab.pins("template").contains(&(2, "clone".to_owned())));
}

/// Somebody else works on the template for longer than a moment.
#[test]
fn who_is_to_depend_on_an_image_waits_for_it() {
    let lab = Lab::new();
    let lock = lab.store().lock("template/write.lock", LockKind::Exclusive).unwrap().unwrap();
    let works = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_secs(5));
        drop(lock);
    });
    lab.take_full("template2", 1, ("template", 3));
    works.join().unwrap();
    assert!(lab.pins("template").contains(&(3, "template2".to_owned())));
}

/// What nothing could open is refused before anything is pinned.
#[test]
fn a_chain_leads_through_so_many_images() {
    let lab = Lab::new();
    let mut below = "template".to_owned();
    let live = |name: &str| lab.repo.with_file_name(format!("{name}.img"));
    let take = |name: &str, below: &str| {
        std::fs::write(live(name), state("template", 1)).unwrap();
        let of = Reference { name: below.into(), at: At::Number(1) };
        lab.open().snapshot(&SnapshotRequest::new(live(name)).base_of(Some(of)), &context())
    };
    for number in 2..=100 {
        let name = format!("vm{number}");
        take(&name, &below).unwrap();
        below = name;
    }
    let refused = take("vm101", &below).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::LimitExceeded, "{refused}");
    assert!(refused.to_string().len() < 200, "{refused}");
    assert_eq!(lab.pins(&below), []);
    assert!(!lab.repo.join("vm101").exists());
    let scope = VerifyScope::Image(below.clone());
    let verified = lab.open().verify(&scope, false, &context()).unwrap();
    assert!(verified.damaged.is_empty() && verified.unchecked.is_empty(), "{verified:?}");
    assert_eq!(
        naive_reader::restore_from(&lab.repo.join(&below), 1).unwrap(),
        state("template", 1)
    );
    // Whatever is wrong at the end of it is told in a line.
    std::fs::remove_dir_all(lab.repo.join("template")).unwrap();
    let reader = lab.open().read(&below, &context()).unwrap();
    let id = reader.manifest().snapshots[0].id;
    let error = lab.open().chain(&reader, id).unwrap_err();
    assert!(error.kind() == ErrorKind::Corrupt && error.to_string().len() < 200, "{error}");
}

/// Damage there is damage here, and is told once.
#[test]
fn damage_of_the_other_image_is_told() {
    let lab = Lab::new();
    let template = lab.manifest("template");
    let path = lab.repo.join("template").join(&template.snapshots[0].file);
    let bytes = std::fs::read(&path).unwrap();
    let mut damaged = bytes.clone();
    damaged[300] ^= 1;
    std::fs::write(&path, &damaged).unwrap();
    let verify = |scope: VerifyScope| lab.open().verify(&scope, false, &context()).unwrap();
    for scope in [VerifyScope::All, VerifyScope::Image("clone".into())] {
        let verified = verify(scope);
        assert_eq!(verified.damaged.len(), 1, "{verified:?}");
        assert_eq!(verified.damaged[0].snapshot, "template@1");
        assert!(verified.damaged[0].affects.contains(&"clone".into()), "{verified:?}");
        let lost: Vec<&str> = verified.lost.iter().map(|loss| loss.snapshot.as_str()).collect();
        assert!(lost.contains(&"clone@1") && lost.contains(&"clone@2"), "{lost:?}");
    }
    std::fs::remove_file(&path).unwrap();
    assert_eq!(verify(VerifyScope::Image("clone".into())).damaged[0].snapshot, "template@1");
    std::fs::write(&path, bytes).unwrap();
    lab.lose_manifests("template");
    let verified = verify(VerifyScope::Image("clone".into()));
    let told: Vec<&str> = verified.damaged.iter().map(|d| d.snapshot.as_str()).collect();
    assert_eq!(told, ["template"], "{verified:?}");
    std::fs::remove_dir_all(lab.repo.join("template")).unwrap();
    for scope in [VerifyScope::All, VerifyScope::Image("clone2".into())] {
        for quick in [false, true] {
            let verified = lab.open().verify(&scope, quick, &context()).unwrap();
            let told: Vec<_> =
                verified.damaged.iter().map(|d| (&d.snapshot[..], &d.affects[..])).collect();
            assert_eq!(told, [("template", &["clone".to_owned()][..])], "{verified:?}");
            assert!(verified.unchecked.is_empty(), "{verified:?}");
            let lost = verified.lost.iter().any(|loss| loss.snapshot == "clone2@1");
            assert!(lost || quick, "{verified:?}");
        }
    }
}

/// J5, J11, J22: what cannot be is refused by both readers.
#[test]
fn a_chain_that_cannot_begin_there_is_refused() {
    let lab = Lab::new();
    let clone = lab.manifest("clone");
    let folder = lab.repo.join("clone");
    let path = folder.join(manifest::file_name(clone.sequence));
    let text = std::fs::read_to_string(&path).unwrap();
    let body = text.split_once('\n').unwrap().1;
    let of = clone.snapshots[0].base_of.clone().unwrap();
    let id = clone.snapshots[0].id;
    let parent = "\"parent\": null";
    let condemned = format!(
        "\"condemned\": [{{\"object\": \"{}.pin\", \"sequence\": 1}}],\n  \"snapshots\"",
        of.pin
    );
    for (what, forged) in [
        ("of itself", body.replace(&of.image.to_string(), &clone.image_id.to_string())),
        ("with a parent", body.replacen(parent, &format!("\"parent\": \"{id}\""), 1)),
        ("a name that is none", body.replace("\"template\"", "\"../template\"")),
        ("condemned", body.replacen("\"snapshots\"", &condemned, 1)),
    ] {
        assert_ne!(forged, body, "{what}");
        let digest = xxhash_rust::xxh3::xxh3_128(forged.as_bytes());
        std::fs::write(&path, format!("imgsnap-manifest 3 {digest:032x}\n{forged}")).unwrap();
        assert!(manifest::load(lab.store().as_ref(), "clone").is_err(), "{what}");
        assert!(naive_reader::read_manifest(&folder).is_err(), "{what}");
    }
}

/// Images that depend on each other in a circle have no end, and are damage.
#[test]
fn a_circle_is_damage() {
    let lab = Lab::new();
    let (first, second) = (lab.manifest("clone"), lab.manifest("clone2"));
    let mut of = second.snapshots[0].base_of.clone().unwrap();
    (of.image, of.name, of.snapshot) = (second.image_id, "clone2".into(), second.snapshots[0].id);
    lab.edit("clone", |next| next.snapshots[0].base_of = Some(of));
    let reader = lab.open().read("clone", &context()).unwrap();
    let error = lab.open().chain(&reader, first.snapshots[0].id).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    let verified = lab.open().verify(&VerifyScope::All, false, &context()).unwrap();
    assert!(!verified.damaged.is_empty());
    assert!(naive_reader::restore_from(&lab.repo.join("clone"), 2).is_err());
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

#[test]
fn the_golden_repository_reads_as_ever() {
    let golden = fixtures().join("base-of/1");
    if is_blessing() && !golden.exists() {
        let lab = Lab::new();
        // What is kept for a full disk is no part of it.
        std::fs::remove_file(lab.repo.join(".reserve")).unwrap();
        copy(&lab.repo, &golden);
    }
    let folder = tempfile::tempdir().unwrap();
    let repo = folder.path().join("repo");
    copy(&golden, &repo);
    let lab = Lab { _folder: None, repo };
    lab.check(&ALL);
    lab.refuses_to_delete("template", 2, "clone");
}
