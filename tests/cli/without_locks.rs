//! A repository that is used without locks (FORMAT.md P10): as on a network file system, on which `.shared` is put
//! first.

use crate::support::{FAILED, Lab, Run, build_shim, has_cc, integer, noise, spawn};
use std::process::{Command, Stdio};

/// A repository on which nobody relies on locks.
fn lab(snapshots: usize) -> (Lab, Vec<Vec<u8>>) {
    let (lab, states) = Lab::with_snapshots(snapshots);
    lab.write("repo/.shared", b"");
    (lab, states)
}

#[test]
fn what_is_dropped_stays_for_the_grace_period_and_that_is_said() {
    let (lab, states) = lab(4);
    let before = lab.deltas("disk");
    let line = lab.done(&["delete", "disk@2"]);
    assert!(line.contains("deleted disk@2: to free") && line.contains("after 3 days"), "{line}");
    let pruned = lab.json(&["prune", "disk", "--keep-last", "1", "--compact"]);
    let compaction = &pruned[0];
    assert_eq!(integer(compaction, "freed_bytes"), 0, "{pruned}");
    assert!(integer(compaction, "to_free_bytes") > 0, "{pruned}");
    assert_eq!(integer(compaction, "grace_seconds"), 3 * 24 * 3600, "{pruned}");
    assert!(integer(&lab.json(&["stats", "disk"])[0], "condemned_bytes") > 0);
    let after = lab.deltas("disk");
    assert!(before.iter().all(|file| after.contains(file)), "{before:?}, {after:?}");
    assert_eq!(lab.numbers("disk"), [4]);
    lab.restores("disk@4", &states[3]);
    lab.done(&["verify"]);
    assert!(lab.stored("disk").iter().all(|file| !file.starts_with("marker.")), "nobody is left");
}

/// Rule J16.
#[test]
fn an_image_that_was_removed_leaves_its_last_manifest_and_its_number() {
    let (lab, _) = lab(2);
    let line = lab.done(&["remove", "disk", "--yes"]);
    assert!(line.starts_with("removed \"disk\": 2 snapshots, to free"), "{line}");
    assert_eq!(lab.json(&["list"]), serde_json::json!([]));
    for args in [&["show", "disk@1"][..], &["restore", "disk@1", "-o", "out"], &["repair", "disk"]]
    {
        let line = lab.fails(FAILED, args);
        assert!(line.contains("no image \"disk\""), "{args:?}: {line}");
    }
    let last = lab.manifest("disk");
    // Another one of its name: its own numbers, and those of the manifests go on.
    let bytes = noise(9, 100_000);
    lab.write("disk.img", &bytes);
    assert_eq!(integer(&lab.json(&["snapshot", "disk.img"]), "number"), 1);
    assert!(lab.manifest("disk") > last, "{last}");
    assert_eq!(lab.numbers("disk"), [1]);
    lab.restores("disk@1", &bytes);
}

#[test]
fn a_reader_that_was_killed_leaves_a_marker_that_holds_what_is_dropped_later() {
    let (lab, states) = lab(3);
    // As a reader that read the first manifest, and is gone.
    lab.write("repo/disk/marker.000001.0123456789ab", b"");
    lab.done(&["delete", "disk@3"]);
    lab.done(&["delete", "disk@2"]);
    assert!(lab.stored("disk").contains(&"marker.000001.0123456789ab".to_owned()));
    assert_eq!(lab.numbers("disk"), [1]);
    lab.restores("disk@1", &states[0]);
}

#[test]
fn a_repository_with_nothing_but_that_file_can_be_made() {
    let lab = Lab::new();
    std::fs::create_dir(lab.path("new")).unwrap();
    lab.write("new/.shared", b"");
    lab.done(&["--repo", "new", "init"]);
    lab.write("disk.img", &noise(3, 50_000));
    lab.done(&["--repo", "new", "snapshot", "disk.img"]);
    lab.done(&["--repo", "new", "verify"]);
}

/// Locks that fail so, as file systems, and what stands before them (sandboxes, FUSE), answer.
const ERRNOS: [i32; 3] = [libc::ENOLCK, libc::ENOSYS, libc::EOPNOTSUPP];

/// Runs imgsnap where some kinds of locks fail; none if that cannot be had here.
fn without(lab: &Lab, kinds: &str, errno: i32, args: &[&str]) -> Option<Run> {
    Some(Run::of(&mut command_without(lab, kinds, errno, args)?))
}

fn command_without(lab: &Lab, kinds: &str, errno: i32, args: &[&str]) -> Option<Command> {
    let shim = lab.path("no_locks.so");
    if !shim.exists() {
        build_shim("no_locks.c", &shim).then_some(())?;
    }
    let mut command = lab.command(args);
    command.env("LD_PRELOAD", &shim).env("IMGSNAP_NO_LOCKS", format!("{errno} {kinds}"));
    Some(command)
}

#[test]
fn where_nothing_can_be_locked_readers_go_on_with_a_warning_and_writers_refuse() {
    if !has_cc("without_locks") {
        return;
    }
    let (lab, states) = Lab::with_snapshots(2);
    // Not part of what is compared.
    without(&lab, "", 0, &["list"]).unwrap().done();
    for errno in ERRNOS {
        let before = lab.everything();
        let why = std::io::Error::from_raw_os_error(errno).to_string();
        let why = format!("/reap.lock: {}", why.split(" (os").next().unwrap());
        for args in [
            &["list"][..],
            &["show", "disk@1"],
            &["verify"],
            &["stats"],
            &["diff", "disk@1", "disk@2"],
            &["restore", "disk@1", "-o", "out.img"],
            &["export", "disk@1", "-o", "out.delta"],
            &["snapshot", "disk.img", "--dry-run"],
        ] {
            let run = without(&lab, "flock bytes leases", errno, args).unwrap().done();
            let is_warning = |line: &&str| {
                line.starts_with("imgsnap: warning: cannot lock ")
                    && line.contains(&why)
                    && line.ends_with("; reading without a lock")
            };
            assert!(run.err.lines().any(|line| is_warning(&line)), "{args:?}: {}", run.err);
        }
        assert_eq!(lab.read("out.img"), states[0]);
        for file in ["out.img", "out.delta"] {
            lab.remove(file);
        }
        for args in [
            &["snapshot", "disk.img"][..],
            &["rollback", "disk", "--to", "@1"],
            &["prune", "disk", "--keep-last", "1"],
            &["delete", "disk@1"],
            &["label", "disk@1", "x"],
            &["remove", "disk", "--yes"],
            &["repair"],
        ] {
            let run = without(&lab, "flock bytes leases", errno, args).unwrap();
            assert_eq!(run.code, Some(FAILED), "{args:?}: {}", run.err);
            let line = run.err.lines().last().unwrap_or_default();
            assert!(line.contains("cannot lock ") && line.contains("write.lock"), "{line}");
            assert!(line.contains("writing requires locks, unless an empty file .shared"));
        }
        lab.ensure_untouched(&before, &why);
    }
    // Said to be a shared one, it needs none.
    lab.write("repo/.shared", b"");
    lab.write("disk.img", &states[0]);
    without(&lab, "flock bytes leases", libc::ENOLCK, &["snapshot", "disk.img"]).unwrap().done();
    without(&lab, "flock bytes", libc::ENOSYS, &["delete", "disk@2"]).unwrap().done();
    lab.restores("disk@3", &states[0]);
}

#[test]
fn where_only_bytes_or_leases_cannot_be_locked_all_goes_on() {
    if !has_cc("without_locks") {
        return;
    }
    for errno in ERRNOS {
        let (lab, states) = Lab::with_snapshots(2);
        // The whole lock file takes the place of its bytes, and times that of the lease.
        without(&lab, "bytes", errno, &["restore", "disk@1", "-o", "out.img"]).unwrap().done();
        assert_eq!(lab.read("out.img"), states[0]);
        for (kinds, is_warned) in [("bytes", false), ("leases", true), ("bytes leases", true)] {
            let args = ["snapshot", "disk.img", "--track", "none"];
            let run = without(&lab, kinds, errno, &args).unwrap().done();
            assert_eq!(run.err.contains("cannot get a lease"), is_warned, "{}", run.err);
        }
        let rollback = ["rollback", "disk", "--to", "@1"];
        without(&lab, "bytes leases", errno, &rollback).unwrap().done();
        assert_eq!(lab.read("disk.img"), states[0]);
        without(&lab, "bytes", errno, &["delete", "disk@2"]).unwrap().done();
        lab.done(&["verify"]);
    }
}

/// A first use knows of no lock either: what is put decides.
#[test]
fn a_repository_is_made_where_nothing_can_be_locked_if_it_is_said_to_be_shared() {
    if !has_cc("without_locks") {
        return;
    }
    let lab = Lab::bare();
    lab.write("disk.img", &noise(3, 50_000));
    let snapshot = ["snapshot", "disk.img", "--track", "none"];
    let run = without(&lab, "flock bytes", libc::ENOLCK, &snapshot).unwrap();
    assert_eq!(run.code, Some(FAILED), "{}", run.err);
    assert!(run.err.contains("writing requires locks"), "{}", run.err);
    lab.write("repo/.shared", b"");
    without(&lab, "flock bytes", libc::ENOLCK, &snapshot).unwrap().done();
    lab.done(&["verify"]);
}

/// The locks of a host say nothing of another one: who loses the race takes nothing of the winner's back.
#[test]
fn first_uses_by_several_hosts_at_once_all_find_what_the_first_has_made() {
    if !has_cc("without_locks") {
        return;
    }
    let lab = Lab::new();
    let hosts = ["a", "b", "c"];
    for host in hosts {
        lab.write(&format!("{host}.img"), &noise(3, 50_000));
    }
    for round in 0..12 {
        let repo = format!("repo-{round}");
        std::fs::create_dir(lab.path(&repo)).unwrap();
        lab.write(&format!("{repo}/.shared"), b"");
        let running: Vec<_> = hosts
            .iter()
            .map(|host| {
                let image = format!("{host}.img");
                let args = ["--repo", &repo, "snapshot", &image];
                let mut command = command_without(&lab, "flock", 0, &args).unwrap();
                let state = lab.path(&format!("state-{host}-{round}"));
                command.env("IMGSNAP_MACHINE_ID", host).env("IMGSNAP_STATE", state);
                command.stdout(Stdio::null()).stderr(Stdio::piped());
                spawn(&mut command)
            })
            .collect();
        for host in running {
            let ended = host.wait_with_output().unwrap();
            assert!(ended.status.success(), "{round}: {}", String::from_utf8_lossy(&ended.stderr));
        }
        let verified = lab.json(&["--repo", &repo, "verify"]);
        assert_eq!(integer(&verified, "snapshots"), 3, "{round}: {verified}");
    }
}
