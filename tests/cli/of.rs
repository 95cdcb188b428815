//! Snapshots that are read from one file or device and recorded of another.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::support::{FAILED, KIB, Lab, MIB, disk, integer, noise};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

/// An origin, and a file that was copied from it.
fn lab() -> (Lab, Vec<u8>) {
    let lab = Lab::bare();
    let bytes = disk(3, MIB);
    lab.write("vm.img", &bytes);
    lab.write("vm-snap.img", &bytes);
    (lab, bytes)
}

const OF: [&str; 4] = ["snapshot", "vm-snap.img", "--of", "vm.img"];

#[test]
fn a_snapshot_device_stands_for_its_origin() {
    let (lab, first) = lab();
    lab.done(&OF);
    lab.restores("vm@1", &first);
    let listed = lab.done(&["list", "vm"]);
    assert!(listed.contains(&lab.at("vm.img")), "{listed}");
    // The origin goes on, and so does what is taken of it.
    let mut second = first.clone();
    second[300 * KIB..][..KIB].copy_from_slice(&noise(7, KIB));
    lab.write("vm.img", &second);
    lab.write("vm-snap.img", &second);
    let taken = lab.json(&OF);
    assert_eq!((integer(&taken, "parent_number"), integer(&taken, "number")), (1, 2), "{taken}");
    assert!(integer(&taken, "changed_bytes") <= 8 * KIB as u64, "{taken}");
    // Nothing is known of the origin but its name: it has changed since.
    let listed = lab.json(&["list", "vm"]);
    assert!(listed.as_array().unwrap().iter().all(|s| s["head"] == false), "{listed}");
    lab.write("vm.img", &noise(9, MIB));
    lab.done(&["rollback", "vm", "--to", "@1"]);
    assert!(lab.read("vm.img") == first);
    assert!(lab.read("vm-snap.img") == second, "it is only read");
    // Directly, it is the same image.
    let taken = lab.json(&["snapshot", "vm.img"]);
    assert_eq!(integer(&taken, "changed_bytes"), 0, "{taken}");
}

#[test]
fn what_nothing_tells_to_be_a_snapshot_of_it_needs_force() {
    let (lab, first) = lab();
    lab.done(&OF);
    for (what, bytes, is_taken) in [
        ("a third is other", [&first[..2 * MIB / 3], &noise(4, MIB / 3)].concat(), true),
        ("all is other", noise(5, MIB), false),
        ("all is zeros", vec![0; MIB], false),
    ] {
        lab.write("vm-snap.img", &bytes);
        let before = lab.everything();
        if is_taken {
            lab.done(&[&OF[..], &["--dry-run"]].concat());
        } else {
            let line = lab.fails(FAILED, &OF);
            assert!(line.contains("nothing shows that"), "{what}: {line}");
            assert!(line.contains("use --force"), "{what}: {line}");
            lab.done(&[&OF[..], &["--dry-run", "--force"]].concat());
        }
        lab.ensure_untouched(&before, what);
    }
    let line = lab.fails(FAILED, &["snapshot", "vm.img", "--of", "vm.img"]);
    assert!(line.contains("is") && line.contains("itself"), "{line}");
    let line = lab.fails(FAILED, &["snapshot", "vm.img", "--of", "nbd://host/vm"]);
    assert!(line.contains("must be a file or a device"), "{line}");
    let line = lab.fails(FAILED, &["snapshot", "vm-snap.img", "--of", "gone.img"]);
    assert!(line.contains("gone.img"), "{line}");
}

#[test]
fn a_hard_link_that_a_stranger_may_have_made_is_not_the_origin() {
    let (lab, first) = lab();
    let shared = lab.path("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::set_permissions(&shared, Permissions::from_mode(0o777)).unwrap();
    lab.copy("vm.img", "shared/vm.img");
    let of = ["snapshot", "vm-snap.img", "--of", "shared/vm.img", "--force"];
    lab.done(&of);
    let victim = noise(8, MIB);
    lab.write("victim", &victim);
    lab.remove("shared/vm.img");
    std::fs::hard_link(lab.path("victim"), lab.path("shared/vm.img")).unwrap();
    let run = lab.run(&of).done();
    assert!(run.err.contains("it was replaced by another file"), "{}", run.err);
    assert!(run.err.contains("rollbacks are refused until you run"), "{}", run.err);
    lab.run(&["rollback", "vm", "--to", "@1"]).failed(FAILED);
    assert!(lab.read("victim") == victim);
    // Another file in its place is the live file from now on.
    lab.remove("shared/vm.img");
    lab.write("shared/vm.img", &victim);
    let run = lab.run(&of).done();
    assert!(!run.err.contains("replaced"), "{}", run.err);
    lab.done(&["rollback", "vm", "--to", "@1"]);
    assert!(lab.read("shared/vm.img") == first);
}
