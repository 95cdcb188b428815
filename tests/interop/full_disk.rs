//! A disk that is full: one clear line, nothing lost, nothing left behind.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;
use crate::no_free_space::fill;

const FULL: &str = "No space left on device";

#[test]
fn snapshot_into_a_full_repository_fails_and_loses_nothing() {
    let mut lab = Lab::new();
    let _mount = need!(Mount::tmpfs(&lab.path("mnt"), "size=8m"));
    lab.repo = lab.path("mnt/repo");
    let image = lab.path("vm.img");
    make(&image, 16 * MIB);
    put(&image, MIB, &noise(1, 4 * MIB));
    assert_eq!(lab.snapshot(&image), 1);
    let first = lab.path("first");
    keep(&image, &first);

    // The delta does not fit.
    put(&image, 0, &noise(2, 6 * MIB));
    for _ in 0..2 {
        lab.run(&["snapshot", &image]).fails(1).says(FULL).says("free some space");
        assert_eq!(lab.numbers("vm"), [1]);
        lab.is_tidy("vm");
    }
    // A base of another image does not fit either: the image is not there afterwards.
    lab.run(&["snapshot", &image, "--name", "other"]).fails(1).says(FULL);
    assert_eq!(lab.run(&["list", "--json"]).done().json().as_array().unwrap().len(), 1);
    assert_eq!(lab.run(&["rollback", &image, "--to", "@1"]).fails(1).says(FULL).code(), Some(1));
    lab.verify(1);

    // Each number of pages left: the delta, the manifest, the head state do not fit in turn.
    let small = noise(3, 20_000);
    for pages in 0..12 {
        put(&image, 0, &get(&first, 0, 6 * MIB));
        put(&image, 100_000, &small);
        let filler = fill(&lab.path("mnt"), pages * 4096);
        let run = lab.run(&["snapshot", &image, "--json"]);
        let numbers = lab.numbers("vm");
        match run.code() {
            Some(0) => {
                same(&lab.restore("vm@latest"), &image);
                assert_eq!(numbers.len(), 2);
            }
            _ => {
                run.fails(1).says(FULL);
                assert_eq!(numbers, [1], "{pages} pages");
            }
        }
        lab.verify(numbers.len());
        std::fs::remove_file(filler).unwrap();
        if numbers.len() == 2 {
            lab.run(&["delete", "vm@latest"]).done();
        } else {
            lab.run(&["label", "vm@1", &format!("pages-{pages}")]).done();
        }
        lab.is_tidy("vm");
    }
    assert!(!lab.numbers("vm").contains(&2), "numbers are not used again");
    let number = lab.snapshot(&image);
    assert!(number > 2, "some of the {number} fitted");
    same(&lab.restore("vm@1"), &first);
    same(&lab.restore("vm@latest"), &image);
}

#[test]
fn restore_to_a_full_disk_leaves_nothing_behind() {
    let lab = Lab::new();
    let _mount = need!(Mount::tmpfs(&lab.path("mnt"), "size=4m"));
    let image = lab.path("vm.img");
    make(&image, 16 * MIB);
    put(&image, MIB, &noise(1, 5 * MIB));
    lab.snapshot(&image);
    let out = lab.path("mnt/out");
    let said = "has 4 MiB of free space; the restore needs 5 MiB";
    lab.run(&["restore", "vm@1", "-o", &out]).fails(1).says(said).says(&out);
    assert!(names_in(&lab.path("mnt")).is_empty(), "{:?}", names_in(&lab.path("mnt")));
    // What was to be replaced is still there.
    make(&out, 0);
    put(&out, 0, b"precious");
    lab.run(&["restore", "vm@1", "-o", &out, "--force"]).fails(1).says(said);
    assert_eq!(names_in(&lab.path("mnt")), ["out"]);
    assert_eq!(std::fs::read(&out).unwrap(), b"precious");
    // Sparse, the first part fits.
    lab.run(&["restore", "vm@1", "-o", &out, "--force", "--range", "0+4M"]).done();
    same_start(&out, &image, 4 * MIB);
    lab.verify(1);
}

/// An image on a full tmpfs that a rollback could bring to its first snapshot only in part.
fn interrupted(lab: &Lab) -> String {
    let image = lab.path("mnt/vm.img");
    make(&image, 16 * MIB);
    put(&image, 0, &noise(1, 3 * MIB));
    assert_eq!(lab.snapshot(&image), 1);
    keep(&image, &lab.path("first"));
    make(&image, 16 * MIB);
    put(&image, 10 * MIB, &noise(2, MIB));
    assert_eq!(lab.snapshot(&image), 2);
    keep(&image, &lab.path("second"));
    let filler = fill(&lab.path("mnt"), MIB);
    lab.run(&["rollback", &image, "--to", "@1"]).fails(1).says(FULL).says("rollback vm --to vm@1");
    std::fs::remove_file(filler).unwrap();
    image
}

/// Nobody saves a mixture by mistake.
#[track_caller]
fn is_known_as_a_mixture(lab: &Lab, image: &str) {
    let numbers = lab.numbers("vm");
    lab.run(&["snapshot", image]).fails(1).says("was interrupted");
    assert_eq!(lab.numbers("vm"), numbers);
    lab.run(&["list"]).done().says("was interrupted");
}

#[test]
fn rollback_that_a_full_disk_interrupted_is_finished_by_running_it_again() {
    let lab = Lab::new();
    let _mount = need!(Mount::tmpfs(&lab.path("mnt"), "size=6m"));
    let image = interrupted(&lab);
    is_known_as_a_mixture(&lab, &image);
    let done = lab.run(&["rollback", &image, "--to", "@1", "--json"]).done().json();
    assert_eq!((&done["scanned"], &done["saved"]), (&true.into(), &"vm@2".into()));
    same(&image, &lab.path("first"));
    assert_eq!(lab.run(&["list"]).done().err, "");
    lab.run(&["rollback", &image, "--to", "@2"]).done();
    same(&image, &lab.path("second"));
    assert_eq!(lab.numbers("vm"), [1, 2]);
    lab.verify(2);
}

#[test]
fn rollback_that_was_interrupted_may_be_taken_back() {
    let lab = Lab::new();
    let _mount = need!(Mount::tmpfs(&lab.path("mnt"), "size=6m"));
    let image = interrupted(&lab);
    let done = lab.run(&["rollback", &image, "--to", "@2", "--json"]).done().json();
    assert_eq!((&done["scanned"], &done["resumed"]), (&true.into(), &true.into()));
    same(&image, &lab.path("second"));
    assert_eq!((lab.numbers("vm"), lab.run(&["list"]).done().err), (vec![1, 2], String::new()));
}

#[test]
fn interrupted_rollback_is_not_forgotten_when_its_beginning_is_deleted() {
    let lab = Lab::new();
    let _mount = need!(Mount::tmpfs(&lab.path("mnt"), "size=6m"));
    let image = interrupted(&lab);
    // It is the head: what the image equalled before the rollback began.
    let deleted = lab.run(&["delete", "vm@2"]);
    assert!(matches!(deleted.code(), Some(0 | 1)), "{}", deleted.err);
    is_known_as_a_mixture(&lab, &image);
    lab.run(&["rollback", &image, "--to", "@1"]).done();
    same(&image, &lab.path("first"));
    assert_eq!(lab.run(&["list"]).done().err, "");
}

#[test]
fn interrupted_rollback_is_not_forgotten_when_its_end_is_deleted() {
    let lab = Lab::new();
    let _mount = need!(Mount::tmpfs(&lab.path("mnt"), "size=6m"));
    let image = interrupted(&lab);
    lab.run(&["rollback", &image, "--to", "@1"]).done();
    // The same the other way round: nothing rests on @3, to which it is going.
    put(&image, 8 * MIB, &noise(3, 2 * MIB));
    assert_eq!(lab.snapshot(&image), 3);
    lab.run(&["rollback", &image, "--to", "@1"]).done();
    let filler = fill(&lab.path("mnt"), MIB);
    lab.run(&["rollback", &image, "--to", "@3"]).fails(1).says(FULL);
    std::fs::remove_file(filler).unwrap();
    let deleted = lab.run(&["delete", "vm@3"]);
    assert!(matches!(deleted.code(), Some(0 | 1)), "{}", deleted.err);
    is_known_as_a_mixture(&lab, &image);
    let hint = lab.run(&["list"]).done();
    assert!(!hint.err.contains("@?"), "{}", hint.err);
    lab.run(&["rollback", &image, "--to", "@1"]).done();
    same(&image, &lab.path("first"));
    assert_eq!(lab.run(&["list"]).done().err, "");
}
