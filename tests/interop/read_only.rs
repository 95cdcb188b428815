//! A repository on media that cannot be written.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;

#[test]
fn read_only_repository_is_read_with_a_warning_and_not_written() {
    let mut lab = Lab::new();
    let mount = need!(Mount::tmpfs(&lab.path("mnt"), "size=16m"));
    lab.repo = lab.path("mnt/repo");
    let image = lab.path("vm.img");
    make(&image, 2 * MIB);
    put(&image, 5000, &noise(1, MIB));
    lab.snapshot(&image);
    put(&image, 0, &noise(2, 9000));
    lab.snapshot(&image);
    let kept = lab.path("kept");
    keep(&image, &kept);
    let stored = lab.stored("vm");

    mount.remount("ro");
    let out = lab.path("out");
    for args in [
        &["list"][..],
        &["list", "vm", "--json"],
        &["show", "vm@2"],
        &["diff", "vm@1", "vm@2"],
        &["verify"],
        &["verify", "vm@1", "--quick"],
        &["restore", "vm@2", "-o", &out],
        &["restore", "vm@2", "-o", "-", "--range", "4K+4K"],
    ] {
        let run = lab.run(args).done().says("imgsnap: warning: ").says("reading without a lock");
        assert!(!run.out.is_empty());
    }
    same(&out, &kept);
    put(&image, 70_000, b"changed");
    let changed = lab.path("changed");
    keep(&image, &changed);
    for args in [
        &["snapshot", &image][..],
        &["snapshot", &image, "--name", "other"],
        &["rollback", &image, "--to", "@1"],
        &["rollback", &image, "--to", "@1", "--no-save"],
        &["delete", "vm@2"],
        &["label", "vm@2", "label"],
        &["remove", "vm", "--yes"],
        &["relink", "vm", &kept],
    ] {
        lab.run(args).fails(1).says(&lab.repo);
    }
    same(&image, &changed);

    mount.remount("rw");
    assert_eq!(lab.stored("vm"), stored);
    let quiet = lab.run(&["verify"]).done();
    assert_eq!(quiet.err, "");
    assert_eq!(lab.snapshot(&image), 3);
    same(&lab.restore("vm@3"), &changed);
}

/// Somebody may read a repository that he may not write to.
#[test]
fn repository_of_somebody_else_is_read_with_a_warning() {
    let lab = need!(Lab::of_nobody());
    let image = lab.path("vm.img");
    make(&image, MIB);
    put(&image, 5000, &noise(1, 9000));
    lab.snapshot(&image);
    tool("chown", &["-R", "root", &lab.repo]);
    tool("chmod", &["-R", "a+rX", &lab.repo]);
    let run = lab.run(&["restore", "vm@1", "-o", "-"]).done().says("reading without a lock");
    assert!(run.out == std::fs::read(&image).unwrap());
    lab.run(&["verify"]).done().says("reading without a lock");
    lab.run(&["snapshot", &image]).fails(1).says(&lab.repo);
}
