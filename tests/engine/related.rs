//! What a manifest says of a snapshot besides the image: what depends on it, its group, its attachments, and
//! snapshots that are not finished (FORMAT.md J18 to J22). What begins from another image is in `base_of.rs`; the
//! rest no verb of this version writes, and each keeps it.

use crate::support::{fixtures, is_blessing, naive_reader, text};
use imgsnap::ops::verify::types::DamageKind;
use imgsnap::repo::manifest::{
    self, Attachment, Group, Manifest, ManifestDigest, Pending, Pin, SnapshotPlace,
};
use imgsnap::repo::retention::{Count, Rules};
use imgsnap::store::{LocalStore, OsDisk, Store};
use imgsnap::{
    At, Context, Defaults, ErrorKind, PruneRequest, Repository, SnapshotRequest, VerifyScope,
};
use jiff::{SignedDuration, Timestamp};
use std::path::PathBuf;
use uuid::Uuid;

struct Lab {
    folder: tempfile::TempDir,
}

impl Lab {
    /// An image with three snapshots, and what a later version adds to its manifest.
    fn new(add: impl FnOnce(&Lab, &mut Manifest)) -> Self {
        let lab = Self { folder: tempfile::tempdir().unwrap() };
        Repository::init(lab.repo(), Defaults::default()).unwrap();
        assert_eq!([1, 2, 3].map(|seed| lab.take(seed)), [1, 2, 3]);
        let mut next = lab.manifest();
        add(&lab, &mut next);
        manifest::commit(&lab.store(), &mut next).unwrap();
        lab
    }

    fn repo(&self) -> PathBuf {
        self.folder.path().join("repo")
    }

    fn store(&self) -> LocalStore {
        LocalStore::new(std::sync::Arc::new(OsDisk::new(self.repo())))
    }

    fn open(&self) -> Repository {
        Repository::open(self.repo()).unwrap()
    }

    fn manifest(&self) -> Manifest {
        let manifest = manifest::load(&self.store(), "vm").unwrap();
        let read = naive_reader::read_manifest(&self.repo().join("vm")).unwrap();
        assert_eq!(read.snapshots.len(), manifest.snapshots.len());
        manifest
    }

    fn take(&self, seed: u64) -> u64 {
        let live = self.folder.path().join("vm.img");
        std::fs::write(&live, text(50_000, seed)).unwrap();
        let request = SnapshotRequest::new(live);
        self.open().snapshot(&request, &Context::silent()).unwrap().snapshot.number
    }

    fn prune(&self) -> Vec<u64> {
        let rules = Rules { last: Some(Count::Most(1)), ..Rules::default() };
        let request = PruneRequest::new().rules(Some(rules)).compact(true);
        self.open().prune("vm", &request, &Context::silent()).unwrap();
        self.manifest().snapshots.iter().map(|s| s.number).collect()
    }

    fn refusal(&self, number: u64) -> String {
        let deleted = self.open().delete("vm", &At::Number(number), true, &Context::silent());
        let refused = deleted.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Mismatch, "{refused}");
        refused.to_string()
    }

    fn has(&self, object: &str) -> bool {
        self.repo().join("vm").join(object).exists()
    }

    /// Puts an object that a manifest will name.
    fn put(&self, kind: &str, bytes: &[u8]) -> String {
        let object = format!("{}.{kind}", Uuid::new_v4());
        self.store().put_if_absent(&format!("vm/{object}"), bytes).unwrap();
        object
    }

    fn attach(&self, name: &str, bytes: &[u8]) -> Attachment {
        let object = self.put("attachment", bytes);
        let digest = ManifestDigest::of(bytes);
        Attachment { name: name.into(), object, bytes: bytes.len() as u64, digest }
    }
}

fn pin() -> Pin {
    Pin { id: Uuid::new_v4(), image: Uuid::new_v4(), name: "clone7".into(), since: 0 }
}

fn pending(number: u64, parent: Option<Uuid>, object: &str, hours: i64) -> Pending {
    let expires = Timestamp::now() + SignedDuration::from_hours(hours);
    Pending {
        id: Uuid::new_v4(),
        number,
        parent,
        objects: vec![object.into()],
        expires,
        plan: None,
    }
}

/// J19.
#[test]
fn every_verb_keeps_the_group_of_a_snapshot() {
    let id = Uuid::new_v4();
    let lab = Lab::new(|_, next| {
        let (image, name) = (next.image_id, next.name.clone());
        let snapshot = &mut next.snapshots[2];
        let members = vec![SnapshotPlace { image, name, snapshot: snapshot.id }];
        snapshot.group = Some(Group { id, name: Some("nightly".into()), members, is_apart: false });
    });
    let context = Context::silent();
    lab.open().label("vm", &At::Number(3), Some("x"), &context).unwrap();
    assert_eq!(lab.prune(), [3]);
    lab.open().flatten("vm", &At::Number(3), &context).unwrap();
    let manifest = lab.manifest();
    assert_eq!(manifest.snapshots[0].group.as_ref().map(|group| group.id), Some(id));
    assert!(manifest.needs.is_empty());
}

/// J20.
#[test]
fn attachments_stay_as_long_as_their_snapshot_and_are_verified() {
    let lab = Lab::new(|lab, next| {
        next.snapshots[0].attachments = vec![lab.attach("disk.xml", b"<a/>")];
        let both = vec![lab.attach("machine.xml", b"<machine/>"), lab.attach("tpm", b"")];
        next.snapshots[2].attachments = both;
    });
    assert_eq!(lab.manifest().needs, ["attachments"]);
    let stray = lab.put("attachment", b"nobody's");
    let first = lab.manifest().snapshots[0].attachments[0].clone();
    assert_eq!(lab.prune(), [3]);
    assert!(!lab.has(&first.object) && !lab.has(&stray));
    let attachment = lab.manifest().snapshots[0].attachments[0].clone();
    assert_eq!(attachment.read(&lab.store(), "vm").unwrap(), b"<machine/>");
    let context = Context::silent();
    let damaged = || lab.open().verify(&VerifyScope::All, true, &context).unwrap().damaged;
    assert_eq!(damaged(), []);
    let path = lab.repo().join("vm").join(&attachment.object);
    for content in [Some(&b"<machine />"[..]), Some(b"<Machine/>"), None] {
        match content {
            Some(content) => std::fs::write(&path, content).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
        let damaged = damaged();
        assert_eq!(damaged.len(), 1, "{content:?}");
        assert_eq!(damaged[0].kind, DamageKind::Attachment);
        assert_eq!(damaged[0].affects, ["vm@3"]);
    }
    // What is lost of it hinders nothing else.
    assert_eq!(lab.take(4), 4);
    assert_eq!(lab.prune(), [4]);
    assert!(lab.manifest().needs.is_empty());
}

/// J21.
#[test]
fn a_snapshot_that_is_not_finished_keeps_its_number_its_parent_and_its_objects_until_it_is_given_up()
 {
    let set_hours = |lab: &Lab, hours: i64| {
        let mut next = lab.manifest();
        next.pending[0].expires = Timestamp::now() + SignedDuration::from_hours(hours);
        manifest::commit(&lab.store(), &mut next).unwrap();
    };
    let lab = Lab::new(|lab, next| {
        next.next_number = 5;
        let object = lab.put("delta", b"a part");
        next.pending = vec![pending(4, Some(next.snapshots[0].id), &object, 24)];
    });
    let object = lab.manifest().pending[0].objects[0].clone();
    assert_eq!(lab.manifest().needs, ["pending"]);
    assert_eq!(lab.refusal(1), "vm@1 is needed by number 4, which is being taken");
    assert_eq!((lab.take(5), lab.prune()), (5, vec![1, 5]));
    assert!(lab.has(&object));
    set_hours(&lab, -1);
    // The one that gives it up is the next commit; the one after that may remove what it was.
    lab.take(6);
    assert!(lab.manifest().pending.is_empty());
    assert_eq!(lab.prune(), [6]);
    assert!(!lab.has(&object));
    assert_eq!(lab.take(7), 7, "its number is not given again");
}

/// J3 (kept), J20, J21: a repair takes no part for a snapshot, and removes nothing that it cannot tell.
#[test]
fn a_repair_keeps_attachments_and_parts() {
    for is_lost in [false, true] {
        let lab = Lab::new(|lab, next| {
            next.snapshots[2].attachments = vec![lab.attach("machine.xml", b"<machine/>")];
            next.next_number = 9;
            // A whole file, so that it could be taken for a snapshot.
            let file = lab.repo().join("vm").join(&next.snapshots[2].file);
            let part = lab.put("delta", &std::fs::read(file).unwrap());
            next.pending = vec![pending(7, None, &part, if is_lost { 24 } else { -1 })];
        });
        let before = lab.manifest();
        let (attachment, part) =
            (&before.snapshots[2].attachments[0].object, &before.pending[0].objects[0]);
        let ruling = lab.repo().join("vm").join(manifest::file_name(before.sequence));
        if is_lost {
            // One that is older, and knows as much, is there.
            let mut next = before.clone();
            manifest::commit(&lab.store(), &mut next).unwrap();
            std::fs::remove_file(lab.repo().join("vm").join(manifest::file_name(next.sequence)))
                .unwrap();
            let bytes = std::fs::read(&ruling).unwrap();
            std::fs::write(lab.repo().join("vm/manifest.000099"), &bytes[..99]).unwrap();
        }
        lab.open().repair("vm", &Context::silent()).unwrap();
        let mended = lab.open().mend("vm", &[], &Context::silent());
        assert!(mended.is_ok(), "{mended:?}");
        let now = lab.manifest();
        assert_eq!(now.snapshots.len(), 3);
        assert!(lab.has(attachment) && lab.has(part), "{is_lost}");
        assert_eq!(now.pending, before.pending, "{is_lost}");
        assert_eq!(now.snapshots[2].attachments, before.snapshots[2].attachments);
    }
}

/// J4, J5, J18, J20 to J22: what cannot be is refused by both readers.
#[test]
fn a_manifest_that_contradicts_itself_is_refused() {
    let lab = Lab::new(|lab, next| {
        next.snapshots[0].attachments = vec![lab.attach("a", b"a")];
        next.next_number = 9;
        next.pending = vec![pending(7, None, &lab.put("delta", b""), 1)];
    });
    let sound = lab.manifest();
    assert_eq!(sound.needs, ["pending", "attachments"]);
    let (id, file) = (sound.snapshots[0].id, sound.snapshots[0].file.clone());
    let path = lab.repo().join("vm").join(manifest::file_name(sound.sequence));
    let text = std::fs::read_to_string(&path).unwrap();
    let body = text.split_once('\n').unwrap().1;
    let (object, pending) = (&sound.snapshots[0].attachments[0].object, &sound.pending[0]);
    let (other, of_pending) = (Uuid::new_v4(), &pending.objects[0]);
    let no_pending = body.replace("\"pending\",", "").replace("\n    \n", "\n");
    for (what, forged, by_us) in [
        ("a need that nobody knows", body.replace("\"attachments\"\n", "\"tomorrow\"\n"), true),
        ("a need that is not told", no_pending, false),
        ("a name with a slash", body.replace("\"name\": \"a\"", "\"name\": \"a/b\""), true),
        ("no name", body.replace("\"name\": \"a\"", "\"name\": \"\""), true),
        ("an object that is none", body.replace(object, "machine.xml"), true),
        ("a part that is an object elsewhere", body.replace(of_pending, &file), true),
        ("a part that is none", body.replace(of_pending, object), true),
        ("a number twice", body.replace("\"number\": 7", "\"number\": 3"), true),
        ("a number to come", body.replace("\"number\": 7", "\"number\": 9"), true),
        ("an id twice", body.replace(&pending.id.to_string(), &id.to_string()), true),
        (
            "no parent",
            body.replace(
                "\"parent\": null,\n      \"objects\"",
                &format!("\"parent\": \"{other}\",\n      \"objects\""),
            ),
            true,
        ),
    ] {
        assert_ne!(forged, body, "{what}");
        let digest = xxhash_rust::xxh3::xxh3_128(forged.as_bytes());
        std::fs::write(&path, format!("imgsnap-manifest 3 {digest:032x}\n{forged}")).unwrap();
        let ours = manifest::load(&lab.store(), "vm");
        assert_eq!(ours.is_err(), by_us, "{what}: {ours:?}");
        // The second reader does not compare ids of what is not there yet.
        if what != "an id twice" {
            assert!(naive_reader::read_manifest(&lab.repo().join("vm")).is_err(), "{what}");
        }
    }
}

/// Every key that a manifest of version 3 can have.
#[test]
fn the_golden_manifest_reads_as_ever() {
    let golden = fixtures().join("manifests/3");
    if is_blessing() && !golden.exists() {
        let lab = Lab::new(|lab, next| {
            next.snapshots[0].pins = vec![pin()];
            next.snapshots[0].protected = true;
            let (image, name) = (next.image_id, next.name.clone());
            let members = vec![SnapshotPlace { image, name, snapshot: next.snapshots[2].id }];
            next.snapshots[2].group = Some(Group {
                id: Uuid::new_v4(),
                name: Some("nightly".into()),
                members,
                is_apart: false,
            });
            next.snapshots[2].attachments = vec![lab.attach("machine.xml", b"<machine/>")];
            next.next_number = 5;
            next.pending = vec![pending(4, Some(next.snapshots[2].id), &lab.put("delta", b""), 24)];
        });
        lab.open().delete("vm", &At::Number(2), true, &Context::silent()).unwrap();
        lab.manifest();
        let file = manifest::file_name(lab.manifest().sequence);
        std::fs::create_dir_all(golden.parent().unwrap()).unwrap();
        std::fs::copy(lab.repo().join("vm").join(file), &golden).unwrap();
    }
    let bytes = std::fs::read(golden).unwrap();
    let manifest = Manifest::decode(&bytes).unwrap();
    assert_eq!(manifest.encode().unwrap(), bytes);
    let (first, last) = (&manifest.snapshots[0], &manifest.snapshots[1]);
    assert_eq!((first.number, first.pins[0].name.as_str(), first.protected), (1, "clone7", true));
    let group = last.group.as_ref().unwrap();
    assert_eq!((group.name.as_deref(), group.members[0].snapshot), (Some("nightly"), last.id));
    let attachment = &last.attachments[0];
    assert_eq!((attachment.name.as_str(), attachment.bytes), ("machine.xml", 10));
    assert_eq!((manifest.pending[0].number, manifest.pending[0].parent), (4, Some(last.id)));
    assert_eq!(manifest.needs, ["protected", "pins", "pending", "attachments"]);
    assert!(!manifest.condemned.is_empty());
    let second = naive_reader::parse_manifest(&bytes).unwrap();
    assert_eq!(
        (second.snapshots.len(), second.json["pending"][0]["number"].as_u64()),
        (2, Some(4))
    );
}
