//! A repository on a disk that is mounted, and then not, or another one: on real mounts.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;

fn lab() -> (Lab, String) {
    let mut lab = Lab::new();
    lab.repo = lab.path("mnt/vm");
    let image = lab.path("vm.img");
    make(&image, 2 * MIB);
    put(&image, 5000, &noise(1, MIB));
    (lab, image)
}

fn below(lab: &Lab) -> usize {
    std::fs::read_dir(lab.path("mnt")).unwrap().count()
}

/// FORMAT.md S6.
#[test]
fn below_the_mount_point_of_a_disk_that_is_away_no_repository_is_made() {
    let (lab, image) = lab();
    let (device, mount) = need!(mounted(&lab, "mkfs.ext4", &["-q"], 32));
    lab.snapshot(&image);
    // Its disk can go between two turns of a watch that has taken nothing yet, and come back.
    let missing = lab.path("missing.img");
    std::os::unix::fs::symlink(lab.path("nowhere.img"), &missing).unwrap();
    let mut watch = lab.start(&["watch", &missing, "--every", "1h"]);
    assert!(watch.waits_for("retrying in"), "it watches");
    mount.unmount();
    assert_eq!(below(&lab), 0);
    for args in [&["snapshot", &image, "-q"][..], &["list"], &["verify"]] {
        let run = lab.run(args).fails(1);
        run.says("that this host has used there is missing").says("check that the disk is mounted");
    }
    assert_eq!(below(&lab), 0);
    // Another disk, which is empty; and on purpose.
    let other = need!(Mount::tmpfs(&lab.path("mnt"), "size=16m"));
    lab.run(&["snapshot", &image]).fails(1).says("is missing");
    lab.run(&["init"]).done();
    lab.snapshot(&image);
    other.unmount();
    let mount = need!(Mount::new(&[&device.device], &lab.path("mnt")));
    lab.run(&["snapshot", &image]).fails(1).says("init --accept");
    lab.run(&["init", "--accept"]).done();
    assert_eq!(lab.snapshot(&image), 2);
    drop(watch);
    drop(mount);
}

/// A disk that is full at first use holds nothing afterwards.
#[test]
fn on_a_disk_that_is_too_small_a_first_use_leaves_nothing() {
    let (lab, image) = lab();
    let mount = need!(Mount::tmpfs(&lab.path("mnt"), "size=512k"));
    lab.run(&["snapshot", &image]).fails(1).says("No space left").says("removed the repository");
    assert_eq!(below(&lab), 0);
    mount.remount("size=16m");
    assert_eq!(lab.snapshot(&image), 1);
}

/// What a host knows is a hint: that it cannot be kept stops nothing.
#[test]
fn with_a_host_state_that_cannot_be_written_all_goes_on() {
    let (mut lab, image) = lab();
    lab.repo = lab.path("repo");
    let state = need!(Mount::tmpfs(&lab.path("state"), "size=16m"));
    state.remount("ro");
    assert_eq!(lab.snapshot(&image), 1);
    lab.run(&["label", "vm@1", "first"]).done();
    lab.run(&["verify"]).done();
    state.remount("rw");
    lab.run(&["label", "vm@1", "second"]).done();
    std::fs::remove_dir_all(&lab.repo).unwrap();
    lab.run(&["snapshot", &image]).fails(1).says("is missing");
}
