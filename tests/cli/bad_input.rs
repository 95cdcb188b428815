//! Input that cannot be used: one clear line, an exit code that says what kind, and everything as
//! it was.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::support::{
    BUSY, DAMAGE, FAILED, KIB, Lab, Started, disk, integer, no_fork, skipped, spawn, string,
    wait_until,
};
use std::fs::File;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;

/// A process that has a file open for writing, for as long as it is held.
pub fn hold_open(lab: &Lab, file: &str) -> Started {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("exec sleep 60 >>'{}'", lab.at(file))]);
    let user = Started::new(&mut shell);
    let comm = format!("/proc/{}/comm", user.child.id());
    let sleeps = || std::fs::read_to_string(&comm).is_ok_and(|name| name == "sleep\n");
    assert!(wait_until(sleeps), "sleep was not started");
    user
}

#[test]
fn what_is_no_image_is_not_snapshotted() {
    let (lab, _) = Lab::with_snapshots(1);
    std::fs::create_dir(lab.path("folder.img")).unwrap();
    lab.write("empty.img", b"");
    lab.write("disk.txt", b"");
    std::os::unix::fs::symlink("nowhere", lab.path("dangling.img")).unwrap();
    std::os::unix::fs::symlink("loop.img", lab.path("loop.img")).unwrap();
    let fifo = spawn(Command::new("mkfifo").arg(lab.path("pipe.img"))).wait().unwrap();
    assert!(fifo.success());
    for (image, said) in [
        ("nowhere.img", "cannot open image nowhere.img: No such file or directory"),
        ("dangling.img", "cannot open image dangling.img: No such file or directory"),
        ("loop.img", "cannot open image loop.img: Too many levels of symbolic links"),
        ("folder.img", "folder.img is a folder; name a raw disk image or a block device"),
        ("empty.img", "empty.img is empty (0 bytes); name a raw disk image"),
        ("disk.txt", "disk.txt is empty (0 bytes)"),
        ("pipe.img", "pipe.img is neither a file nor a block device"),
        ("/dev/null", "/dev/null is neither a file nor a block device"),
        ("disk.img/x", "cannot open image disk.img/x: Not a directory"),
    ] {
        for more in [&[][..], &["--dry-run"], &["--full", "--label", "x"]] {
            let line = lab.fails(FAILED, &[&["snapshot", image], more].concat());
            assert!(line.contains(said), "{image} {more:?}: {line}");
        }
    }
}

#[test]
fn an_image_is_named_by_a_path_or_a_uri() {
    let (lab, _) = Lab::with_snapshots(1);
    for verb in [&["snapshot"][..], &["watch", "--every", "1s"], &["relink", "disk"]] {
        for uri in ["xen:///vm", "ftp://b/vm"] {
            let line = lab.run(&[verb, &[uri]].concat()).misused();
            let scheme = uri.split(':').next().unwrap();
            let said = format!("this build does not support {scheme} images: {uri}");
            assert!(line.contains(&said), "{verb:?}: {line}");
        }
    }
    lab.rename("disk.img", "a b.img");
    let uri = format!("file://{}", lab.at("a b.img").replace(' ', "%20"));
    lab.done(&["relink", "disk", &uri]);
    assert!(lab.done(&["snapshot", &uri, "--name", "disk"]).contains("disk@2"));
}

#[test]
fn a_first_snapshot_that_fails_makes_no_repository() {
    let lab = Lab::bare();
    let line = lab.fails(FAILED, &["snapshot", "nowhere.img"]);
    assert!(line.contains("nowhere.img"), "{line}");
}

#[test]
fn an_unreadable_image_is_refused_and_a_readable_one_is_not() {
    let lab = Lab::bare();
    lab.write("disk.img", &disk(1, 64 * KIB));
    let Some(command) = lab.command_of_nobody(&["--repo", "mine/repo", "snapshot", "disk.img"])
    else {
        return skipped("bad_input::an_unreadable_image_is_refused", "no setpriv, or not root");
    };
    std::fs::create_dir(lab.path("mine")).unwrap();
    chown(lab.path("mine"), Some(crate::support::NOBODY), None).unwrap();
    let mut init = lab.command_of_nobody(&["--repo", "mine/repo", "init"]).unwrap();
    crate::support::Run::of(&mut init).done();
    let mode = |mode| {
        std::fs::set_permissions(lab.path("disk.img"), PermissionsExt::from_mode(mode)).unwrap()
    };
    mode(0o600);
    let mut command = command;
    let line = lab.fails_as(FAILED, &mut command);
    assert!(line.contains("disk.img: Permission denied; check its owner and mode"), "{line}");
    mode(0o644);
    crate::support::Run::of(&mut command).done();
    // May be read, but not be written to.
    let mut rollback =
        lab.command_of_nobody(&["--repo", "mine/repo", "rollback", "disk", "--to", "@1"]).unwrap();
    let line = lab.fails_as(FAILED, &mut rollback);
    assert!(line.contains("disk.img: Permission denied"), "{line}");
    // Nor is the repository of somebody else read.
    lab.done(&["init"]);
    let mut list = lab.command_of_nobody(&["list"]).unwrap();
    let line = lab.fails_as(FAILED, &mut list);
    assert!(line.contains("Permission denied"), "{line}");
}

/// Damages the delta file of a snapshot in each way; gives a name, and what the error says.
fn damages(sound: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for at in [0, 60, 150, 300, sound.len() / 2, sound.len() - 500, sound.len() - 4] {
        let mut bytes = sound.to_vec();
        bytes[at] ^= 0x10;
        all.push((format!("bit flipped at {at}"), bytes));
    }
    for length in [0, 1, 255, 256, 767, sound.len() / 2, sound.len() - 512, sound.len() - 1] {
        all.push((format!("truncated to {length}"), sound[..length].to_vec()));
    }
    all.push(("longer by a byte".into(), [sound, &[0]].concat()));
    all.push(("all zeros".into(), vec![0; sound.len()]));
    all
}

#[test]
fn a_damaged_delta_file_is_named_and_nothing_is_made_of_it() {
    let (lab, states) = Lab::with_snapshots(2);
    lab.write("out.img", b"mine");
    let delta = lab.delta("disk", 1);
    let sound = lab.read(&delta);
    let file = delta.rsplit('/').next().unwrap();
    for (what, bytes) in damages(&sound) {
        lab.write(&delta, &bytes);
        for args in [
            &["restore", "disk@1", "-o", "new.img"][..],
            &["restore", "disk@2", "-o", "out.img", "--force"],
        ] {
            let line = lab.fails(DAMAGE, args);
            assert!(line.contains(file), "{what}: {line}");
        }
        let run = lab.run(&["verify", "disk@2"]);
        assert_eq!(run.code, Some(DAMAGE), "{what}");
        assert!(run.text().contains(file), "{what}: {}", run.text());
        lab.write(&delta, &sound);
    }
    lab.restores("disk@2", &states[1]);
}

#[test]
fn a_snapshot_on_a_damaged_parent_is_refused() {
    let (lab, states) = Lab::with_snapshots(1);
    let delta = lab.delta("disk", 1);
    let sound = lab.read(&delta);
    // Changed, so that the tables of the parent are needed.
    let mut bytes = states[0].clone();
    bytes[0] ^= 1;
    lab.write("disk.img", &bytes);
    for at in [40, sound.len() - 520, sound.len() - 100] {
        lab.flip(&delta, at);
        let line = lab.fails(DAMAGE, &["snapshot", "disk.img"]);
        assert!(line.contains(".delta"), "byte {at}: {line}");
        lab.write(&delta, &sound);
    }
    // The way out is a base.
    lab.flip(&delta, 40);
    lab.done(&["snapshot", "disk.img", "--full"]);
    lab.restores("disk@2", &bytes);
}

#[test]
fn swapped_delta_files_are_not_taken_for_each_other() {
    let (lab, _) = Lab::with_snapshots(2);
    let (one, two) = (lab.delta("disk", 1), lab.delta("disk", 2));
    lab.rename(&one, "aside");
    lab.rename(&two, &one);
    lab.rename("aside", &two);
    for reference in ["disk@1", "disk@2"] {
        let line = lab.fails(DAMAGE, &["restore", reference, "-o", "out"]);
        assert!(line.contains(".delta"), "{line}");
        assert!(
            line.contains("the file was renamed or replaced; put the right one back"),
            "{line}"
        );
    }
    assert_eq!(lab.run(&["verify"]).code, Some(DAMAGE));
}

#[test]
fn a_delta_file_of_another_image_is_not_taken_for_ones_own() {
    let lab = Lab::new();
    lab.grow_history("db.img", 2);
    lab.grow_history("web.img", 2);
    for number in [1, 2] {
        let (ours, theirs) = (lab.delta("db", number), lab.delta("web", number));
        let sound = lab.read(&ours);
        lab.copy(&theirs, &ours);
        let line = lab.fails(DAMAGE, &["restore", "db@2", "-o", "out"]);
        assert!(line.starts_with(&format!("db@{number}: ")), "{line}");
        assert!(line.contains("is not the file of this snapshot"), "{line}");
        lab.write(&ours, &sound);
    }
}

#[test]
fn a_missing_delta_file_is_named_with_its_snapshot() {
    let (lab, states) = Lab::with_snapshots(3);
    // The parent of what is wanted, and the base.
    for number in [2, 1] {
        let delta = lab.delta("disk", number);
        lab.rename(&delta, "aside.delta");
        for args in [
            &["restore", "disk@3", "-o", "out"][..],
            &["show", "disk@3"],
            &["diff", "disk@3", "disk.img"],
            &["snapshot", "disk.img", "--parent", "@3", "--dry-run"],
            &["rollback", "disk", "--to", "@2", "--dry-run"],
        ] {
            let line = lab.fails(DAMAGE, args);
            assert!(line.starts_with(&format!("disk@{number}: its file ")), "{args:?}: {line}");
            assert!(line.contains(" is missing; put the file back"), "{line}");
        }
        let run = lab.run(&["verify", "--json"]);
        assert_eq!(run.code, Some(DAMAGE));
        let damaged = run.json()["damaged"].clone();
        assert_eq!(damaged.as_array().unwrap().len(), 1, "{damaged}");
        assert_eq!(string(&damaged[0], "snapshot"), format!("disk@{number}"));
        assert_eq!(damaged[0]["affects"].as_array().unwrap().len() as u64, 4 - number);
        lab.rename("aside.delta", &delta);
    }
    lab.restores("disk@3", &states[2]);
}

/// The name that a delta file has no longer.
const RENAMED: &str = "repo/disk/00000000-0000-4000-8000-000000000000.delta";

#[test]
fn a_renamed_delta_file_is_not_found_under_its_new_name() {
    let (lab, states) = Lab::with_snapshots(2);
    let delta = lab.delta("disk", 2);
    lab.rename(&delta, RENAMED);
    for args in [&["restore", "disk@2", "-o", "out"][..], &["show", "disk@2"]] {
        let line = lab.fails(DAMAGE, args);
        assert!(
            line.starts_with("disk@2: its file ")
                && line.contains(" is missing; put the file back"),
            "{line}"
        );
    }
    assert_eq!(lab.run(&["verify"]).code, Some(DAMAGE));
    lab.rename(RENAMED, &delta);
    lab.restores("disk@2", &states[1]);
}

#[test]
fn a_renamed_delta_file_is_not_removed_by_a_writer() {
    let (lab, states) = Lab::with_snapshots(2);
    let delta = lab.delta("disk", 2);
    lab.rename(&delta, RENAMED);
    lab.fails(DAMAGE, &["rollback", "disk", "--to", "@2", "--dry-run"]);
    lab.rename(RENAMED, &delta);
    lab.restores("disk@2", &states[1]);
}

/// Sets a feature bit in the header of a delta file, and its checksum right.
fn set_feature(lab: &Lab, delta: &str, at: usize) {
    let mut bytes = lab.read(delta);
    bytes[at] |= 0x80;
    let checksum = crc32fast::hash(&bytes[..252]);
    bytes[252..256].copy_from_slice(&checksum.to_le_bytes());
    lab.write(delta, &bytes);
}

#[test]
fn a_feature_that_is_not_known_is_refused_as_of_a_later_version() {
    let (lab, _) = Lab::with_snapshots(2);
    set_feature(&lab, &lab.delta("disk", 1), 16);
    for args in [
        &["restore", "disk@1", "-o", "out"][..],
        &["restore", "disk@2", "-o", "out"],
        &["show", "disk@2"],
        &["snapshot", "disk.img", "--full-scan"],
        &["rollback", "disk", "--to", "@1"],
    ] {
        let line = lab.fails(FAILED, args);
        assert!(line.contains("feature") && line.contains("later imgsnap"), "{args:?}: {line}");
        assert!(line.contains(".delta"), "{args:?}: {line}");
    }
}

#[test]
fn a_feature_that_only_forbids_to_build_on_it_lets_itself_be_read() {
    let (lab, states) = Lab::with_snapshots(2);
    let delta = lab.delta("disk", 1);
    set_feature(&lab, &delta, 24);
    lab.restores("disk@2", &states[1]);
    let line = lab.fails(FAILED, &["snapshot", "disk.img", "--full-scan"]);
    assert!(line.contains("unknown feature bits; it was written by a later imgsnap"), "{line}");
    assert!(line.ends_with("or take a --full snapshot"), "{line}");
    lab.done(&["snapshot", "disk.img", "--full"]);
}

#[test]
fn an_image_that_another_program_writes_to_is_left_alone() {
    let (lab, states) = Lab::with_snapshots(1);
    lab.write("new.img", &disk(2, 64 * KIB));
    let user = hold_open(&lab, "disk.img");
    let other = hold_open(&lab, "new.img");
    let who = format!("by sleep (process {})", user.child.id());
    for args in [
        &["snapshot", "disk.img"][..],
        &["snapshot", "disk.img", "--full-scan", "--full"],
        &["snapshot", "disk.img", "--dry-run"],
        &["snapshot", "new.img"],
        &["diff", "disk@1", "disk.img"],
        &["relink", "disk", "new.img"],
    ] {
        let line = lab.fails(BUSY, args);
        assert!(line.contains(&who) || args.contains(&"new.img"), "{args:?}: {line}");
        assert!(line.contains("down"), "{line}");
    }
    let who = format!("in use by sleep (process {})", user.child.id());
    for more in [&[][..], &["--no-save"], &["--prove"], &["--dry-run"]] {
        let line = lab.fails(BUSY, &[&["rollback", "disk", "--to", "@1"], more].concat());
        assert!(line.contains(&who), "{more:?}: {line}");
    }
    // What does not need the image goes on.
    lab.restores("disk@1", &states[0]);
    drop((user, other));
    lab.done(&["snapshot", "disk.img"]);
    lab.done(&["rollback", "disk", "--to", "@1"]);
}

#[test]
fn a_second_writer_is_told_that_the_first_is_busy() {
    let lab = Lab::new();
    let states = lab.grow_history("disk.img", 2);
    lab.grow_history("web.img", 1);
    lab.copy("disk.img", "copy.img");
    let lock = {
        let _calm = no_fork();
        File::options().write(true).open(lab.path("repo/disk/write.lock")).unwrap()
    };
    lock.lock().unwrap();
    for args in [
        &["snapshot", "disk.img"][..],
        &["rollback", "disk", "--to", "@1"],
        &["rollback", "disk", "--to", "@1", "--dry-run"],
        &["delete", "disk@2"],
        &["label", "disk@1", "new"],
        &["remove", "disk", "--yes"],
        &["repair", "disk"],
        &["relink", "disk", "copy.img"],
    ] {
        let line = lab.fails(BUSY, args);
        assert!(
            line.starts_with("another imgsnap is working on \"disk\"; run the command again when"),
            "{args:?}: {line}"
        );
    }
    // Readers, and writers of other images, are not held up.
    lab.done(&["list"]);
    lab.done(&["verify"]);
    lab.restores("disk@1", &states[0]);
    lab.done(&["snapshot", "web.img"]);
    lock.unlock().unwrap();
    assert_eq!(integer(&lab.json(&["snapshot", "disk.img"]), "number"), 3);
}

#[test]
fn an_image_that_is_read_is_not_removed() {
    let (lab, _) = Lab::with_snapshots(2);
    let lock = {
        let _calm = no_fork();
        File::options().write(true).open(lab.path("repo/disk/reap.lock")).unwrap()
    };
    lock.lock_shared().unwrap();
    let line = lab.fails(BUSY, &["remove", "disk", "--yes"]);
    assert!(line.starts_with("another process is reading \"disk\"; "), "{line}");
    // A deleted snapshot stays for whoever reads it, and goes with the next writer.
    let delta = lab.delta("disk", 2);
    lab.done(&["delete", "disk@2"]);
    assert!(lab.exists(&delta));
    lock.unlock().unwrap();
    lab.done(&["snapshot", "disk.img"]);
    assert!(!lab.exists(&delta));
}

#[test]
fn a_label_that_looks_like_something_else_is_refused() {
    let (lab, _) = Lab::with_snapshots(1);
    let long = "x".repeat(129);
    for (label, said) in [
        ("12", "it would be read as a number, a time or a keyword"),
        ("0", "it would be read as a number, a time or a keyword"),
        ("latest", "it would be read as a number, a time or a keyword"),
        ("head", "it would be read as a number, a time or a keyword"),
        ("2026-11-20", "it would be read as a number, a time or a keyword"),
        ("2026-11-20T10:30", "it would be read as a number, a time or a keyword"),
        ("2026-xx", "it would be read as a number, a time or a keyword"),
        ("", "it is empty"),
        ("two words", "white space, control characters and @ are not allowed"),
        ("tab\there", "white space, control characters and @ are not allowed"),
        ("line\nfeed", "white space, control characters and @ are not allowed"),
        ("a@b", "white space, control characters and @ are not allowed"),
        (&long, "it is longer than 128 bytes"),
    ] {
        let line = lab.fails(FAILED, &["label", "disk@1", label]);
        assert!(line.starts_with("invalid label \"") && line.contains(said), "{label}: {line}");
        let line = lab.fails(FAILED, &["snapshot", "disk.img", &format!("--label={label}")]);
        assert!(line.contains(said), "{label}: {line}");
        lab.fails(FAILED, &["snapshot", "disk.img", "--dry-run", &format!("--label={label}")]);
    }
    let longest = "ü".repeat(64);
    for label in ["20x", "v1.2", "pre-upgrade", "-minus", "größe", "Latest", &longest] {
        lab.done(&["label", "disk@1", "--", label]);
        assert_eq!(string(&lab.json(&["show", &format!("disk@{label}")]), "label"), label);
    }
}

#[test]
fn a_second_file_that_claims_a_taken_name_is_told_the_way_out() {
    let (lab, _) = Lab::with_snapshots(1);
    std::fs::create_dir(lab.path("other")).unwrap();
    lab.write("other/disk.img", &disk(5, 64 * KIB));
    lab.write("disk.raw", &disk(6, 64 * KIB));
    for file in ["other/disk.img", "disk.raw"] {
        let line = lab.fails(FAILED, &["snapshot", file]);
        assert!(
            line.starts_with(&format!("\"disk\" is already the name of {}", lab.at("disk.img"))),
            "{line}"
        );
        assert!(line.contains("give this image another name with --name"), "{line}");
        assert!(line.ends_with(&format!("run \"imgsnap relink disk {}\"", lab.at(file))), "{line}");
        lab.fails(FAILED, &["snapshot", file, "--name", "disk", "--full"]);
    }
    lab.done(&["snapshot", "disk.raw", "--name", "disk2"]);
    assert_eq!(lab.json(&["list"]).as_array().unwrap().len(), 2);
}

#[test]
fn a_manifest_of_another_image_is_not_taken() {
    let lab = Lab::new();
    lab.grow_history("db.img", 1);
    lab.grow_history("web.img", 1);
    let theirs = lab.manifest("web");
    let ours = lab.manifest("db");
    lab.copy(&theirs, &ours);
    let line = lab.fails(DAMAGE, &["list", "db"]);
    assert!(
        line.contains("this manifest belongs to another image; the file was renamed or copied"),
        "{line}"
    );
}

#[test]
fn a_manifest_of_a_later_version_is_not_taken_for_damage() {
    let (lab, _) = Lab::with_snapshots(1);
    let manifest = lab.manifest("disk");
    let text = String::from_utf8(lab.read(&manifest)).unwrap();
    lab.write(&manifest, text.replacen("imgsnap-manifest 3 ", "imgsnap-manifest 5 ", 1).as_bytes());
    for args in [&["list", "disk"][..], &["repair", "disk"], &["snapshot", "disk.img"]] {
        let line = lab.fails(FAILED, args);
        assert!(
            line.contains(
                "manifest version 5 (this program supports 4); it was written by a later imgsnap"
            ),
            "{line}"
        );
        assert!(!line.contains("repair"), "{line}");
    }
}

#[test]
fn a_damaged_head_state_costs_a_scan_and_nothing_else() {
    let (lab, states) = Lab::with_snapshots(2);
    lab.as_of_before("disk", b"{ \"snapshot\": ");
    assert_eq!(lab.json(&["list"]).as_array().unwrap().len(), 2);
    let run = lab.run(&["rollback", "disk", "--to", "@1", "--json"]).done();
    assert_eq!(run.json()["scanned"], serde_json::json!(true));
    assert!(run.err.starts_with("imgsnap: warning: the head state was damaged"), "{}", run.err);
    assert_eq!(lab.read("disk.img"), states[0]);
}

#[test]
fn a_clone_is_no_image() {
    let (lab, states) = Lab::with_snapshots(1);
    std::fs::create_dir(lab.path(".imgsnap")).unwrap();
    lab.write(".imgsnap/disk.img", &states[0]);
    let line = lab.fails(FAILED, &["snapshot", ".imgsnap/disk.img", "--name", "other"]);
    assert!(
        line.ends_with("is a clone that is kept to find changes; use the image itself"),
        "{line}"
    );
    assert!(!lab.path("repo/other").exists(), "something was made for it");
}
