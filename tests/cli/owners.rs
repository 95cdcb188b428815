//! Whose the files of a repository are (FORMAT.md P9): its folder says so, whoever works in it.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use crate::support::{KIB, Lab, Run, disk, skipped};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;

/// Nobody has these numbers.
const USER: u32 = 54_321;
const COLLEAGUE: u32 = 54_322;
const GROUP: u32 = 54_323;

/// Everything in the repository but its folder itself: path, mode, owner and group.
fn contents(lab: &Lab) -> Vec<(PathBuf, bool, [u32; 3])> {
    let (mut found, mut folders) = (Vec::new(), vec![lab.path("repo")]);
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            let meta = path.symlink_metadata().unwrap();
            let whose = [meta.mode() & 0o7777, meta.uid(), meta.gid()];
            found.push((path.clone(), meta.is_dir(), whose));
            folders.extend(meta.is_dir().then_some(path));
        }
    }
    found
}

#[test]
fn who_works_in_a_repository_of_others_does_not_lock_them_out() {
    // Mode of the repository, of its files, of its folders; who works in it beside its owner.
    for (mode, file_mode, folder_mode, other) in [
        (0o700, 0o600, 0o700, None),
        (0o755, 0o600, 0o700, None),
        (0o770, 0o660, 0o770, Some(COLLEAGUE)),
        (0o2770, 0o660, 0o2770, Some(COLLEAGUE)),
    ] {
        let lab = Lab::bare();
        let (repo, image) = (lab.path("repo"), lab.path("disk.img"));
        std::fs::create_dir(&repo).unwrap();
        lab.write("disk.img", &disk(1, 64 * KIB));
        if chown(&repo, Some(USER), Some(GROUP)).is_err() {
            return skipped(
                "who_works_in_a_repository_of_others_does_not_lock_them_out",
                "a folder can only be given away by root",
            );
        }
        std::fs::set_permissions(&repo, PermissionsExt::from_mode(mode)).unwrap();
        chown(&image, Some(USER), Some(GROUP)).unwrap();
        std::fs::set_permissions(&image, PermissionsExt::from_mode(0o660)).unwrap();
        let mut number = 0;
        // Root first, so that every folder, lock and file is first made by somebody else.
        for user in [Some(0), Some(USER), other, Some(0), Some(USER)].into_iter().flatten() {
            number += 1;
            lab.write("disk.img", &disk(number, 64 * KIB));
            let (label, snapshot) = (format!("label-{number}"), format!("disk@{number}"));
            for args in [
                &["snapshot", "disk.img", "--track", "none"][..],
                &["label", &snapshot, &label],
                &["prune", "disk", "--keep-last", "2", "--compact"],
                &["verify"],
            ] {
                let what = format!("{mode:o}: user {user}: {args:?}");
                let group = if user == 0 { 0 } else { GROUP };
                println!("{what}");
                Run::of(&mut lab.command_as(user, group, args)).done();
                for (path, is_folder, [found, owner, group]) in contents(&lab) {
                    let what = format!("{what}: {}", path.display());
                    let wanted = if is_folder { folder_mode } else { file_mode };
                    assert_eq!(format!("{found:o}"), format!("{wanted:o}"), "{what}");
                    let is_of = |who: u32| owner == who || Some(owner) == other;
                    assert!(is_of(USER) && group == GROUP, "{what}: of {owner}:{group}");
                }
            }
        }
        assert!(contents(&lab).len() > 5);
    }
}

#[test]
fn a_group_that_cannot_be_given_gets_nothing() {
    const TEST: &str = "a_group_that_cannot_be_given_gets_nothing";
    let lab = Lab::bare();
    let (repo, image) = (lab.path("repo"), lab.path("disk.img"));
    std::fs::create_dir(&repo).unwrap();
    lab.write("disk.img", &disk(1, 64 * KIB));
    // The user is no member of the folder's group.
    if chown(&repo, Some(USER), Some(GROUP)).is_err() {
        return skipped(TEST, "a folder can only be given away by root");
    }
    std::fs::set_permissions(&repo, PermissionsExt::from_mode(0o770)).unwrap();
    chown(&image, Some(USER), None).unwrap();
    let args = ["snapshot", "disk.img", "--track", "none"];
    Run::of(&mut lab.command_as(USER, COLLEAGUE, &args)).done();
    for (path, is_folder, whose) in contents(&lab) {
        let mode = if is_folder { 0o700 } else { 0o600 };
        assert_eq!(whose, [mode, USER, COLLEAGUE], "{}", path.display());
    }
}
