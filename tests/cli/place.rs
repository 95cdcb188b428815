//! Where a repository is, or was: a disk that is not mounted, another one in its place, first use, and what is
//! left of a repository that nothing came into.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::support::{
    FAILED, INTERRUPTED, KIB, Lab, Run, Started, disk, noise, skipped, spawn, string, wait_until,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::process::Stdio;

const ABSENT: &str = "absent";

/// With an image, two snapshots of it, and an export.
fn lab() -> (Lab, Vec<Vec<u8>>) {
    let (lab, states) = Lab::with_snapshots(2);
    lab.done(&["export", "disk@1", "-o", "disk.delta"]);
    (lab, states)
}

/// The identity of the repository that is there.
fn id(lab: &Lab) -> String {
    let config: toml::Table = lab.configuration().parse().unwrap();
    config["id"].as_str().unwrap().to_owned()
}

/// Verbs that only read.
const READING: &[&[&str]] = &[
    &["list"],
    &["show", "disk@1"],
    &["diff", "disk@1", "disk@2"],
    &["restore", "disk@1", "-o", "out.img"],
    &["verify"],
    &["stats"],
    &["export", "disk@1", "-o", "out.delta"],
    &["prune", "disk", "--keep-last", "1", "--dry-run"],
    &["snapshot", "disk.img", "--dry-run"],
];

/// Verbs that write.
const WRITING: &[&[&str]] = &[
    &["snapshot", "disk.img"],
    &["snapshot", "disk.img", "--quiet"],
    &["watch", "disk.img", "--every", "1h"],
    &["import", "disk.delta"],
    &["rollback", "disk", "--to", "@1"],
    &["prune", "disk", "--keep-last", "1"],
    &["prune", "--all", "--keep-last", "1"],
    &["delete", "disk@1"],
    &["flatten", "disk@2"],
    &["label", "disk@1", "first"],
    &["protect", "disk@1"],
    &["untrack", "disk"],
    &["relink", "disk", "disk.img"],
    &["repair"],
    &["config", "set", "store.grace", "7d"],
    &["remove", "disk", "--yes"],
];

/// Rule S6.
#[test]
fn a_repository_whose_disk_is_not_mounted_is_missing_to_every_verb() {
    let (lab, states) = lab();
    let id = id(&lab);
    lab.rename("repo", ABSENT);
    for has_mount_point in [false, true] {
        if has_mount_point {
            std::fs::create_dir(lab.path("repo")).unwrap();
        }
        for args in READING.iter().chain(WRITING).chain(&[&["config", "show"][..]]) {
            let line = lab.fails(FAILED, args);
            let what =
                format!("repo: the repository {id} that this host has used there is missing");
            assert!(line.contains(&what), "{args:?}: {line}");
            assert!(line.contains("; check that the disk is mounted"), "{args:?}: {line}");
            assert!(line.ends_with("run \"imgsnap init\""), "{args:?}: {line}");
        }
    }
    // What needs none goes on without it.
    lab.done(&["diff", "disk.img", "disk.img"]);
    lab.done(&["apply", "disk.delta", "-o", "applied.img"]);
    std::fs::remove_dir(lab.path("repo")).unwrap();
    lab.rename(ABSENT, "repo");
    lab.holds("disk", &[(1, &states[0]), (2, &states[1])]);
}

/// Rule S6.
#[test]
fn another_repository_in_its_place_is_read_with_a_warning_and_written_to_once_it_is_accepted() {
    let (lab, states) = lab();
    let one = id(&lab);
    // As on another host: this one has never seen it.
    let mut command = lab.command(&["--repo", "second", "init"]);
    Run::of(command.env("IMGSNAP_STATE", lab.path("elsewhere"))).done();
    for args in [&["snapshot", "disk.img"][..], &["snapshot", "disk.img"]] {
        let mut command = lab.command(&[&["--repo", "second"], args].concat());
        Run::of(command.env("IMGSNAP_STATE", lab.path("elsewhere"))).done();
    }
    lab.rename("repo", "first");
    lab.rename("second", "repo");
    let other = id(&lab);
    let what = format!("this host has used the repository {one} there, and not {other}");
    for args in WRITING {
        let line = lab.fails(FAILED, args);
        assert!(line.contains(&what), "{args:?}: {line}");
        assert!(line.ends_with("run \"imgsnap init --accept\""), "{args:?}: {line}");
    }
    for args in READING.iter().filter(|args| args[0] != "snapshot") {
        let run = lab.run(args).done();
        let lines: Vec<_> = run.err.lines().filter(|line| line.contains(&what)).collect();
        assert_eq!(lines.len(), 1, "{args:?}: {}", run.err);
        assert!(lines[0].starts_with("imgsnap: warning: "), "{args:?}: {}", run.err);
        for file in ["out.img", "out.delta"] {
            std::fs::remove_file(lab.path(file)).ok();
        }
    }
    assert!(lab.run(&["config", "show"]).done().err.contains(&what));
    let said = lab.done(&["init", "--accept"]);
    assert!(said.contains(&format!("also uses the repository {other}")), "{said}");
    assert_eq!(lab.json(&["init", "--accept"])["id"], json!(other), "it is no error twice");
    lab.done(&["label", "disk@1", "first"]);
    // Two disks in turn at one place.
    for (from, to) in [("repo", "second"), ("first", "repo")] {
        lab.rename(from, to);
    }
    let run = lab.run(&["label", "disk@1", "again"]).done();
    assert_eq!(run.err, "");
    for (from, to) in [("repo", "first"), ("second", "repo")] {
        lab.rename(from, to);
    }
    assert_eq!(lab.run(&["label", "disk@2", "again"]).done().err, "");
    assert!(lab.run(&["list"]).done().err.is_empty());
    // The one that was used last is the one that is missed.
    lab.rename("repo", "second");
    assert!(lab.fails(FAILED, &["list"]).contains(&other));
    lab.rename("first", "repo");
    lab.restores("disk@2", &states[1]);
}

/// Rule S6.
#[test]
fn init_is_consent_to_a_new_repository() {
    let (lab, _) = lab();
    let before = id(&lab);
    lab.rename("repo", ABSENT);
    lab.done(&["init"]);
    lab.done(&["snapshot", "disk.img"]);
    let now = id(&lab);
    lab.rename("repo", "new");
    assert!(lab.fails(FAILED, &["snapshot", "disk.img"]).contains(&now));
    // The old one is another one by now.
    lab.rename(ABSENT, "repo");
    let line = lab.fails(FAILED, &["label", "disk@1", "x"]);
    assert!(line.contains(&format!("{now} there, and not {before}")), "{line}");
    let line = lab.fails(FAILED, &["--repo", "nowhere", "init", "--accept"]);
    assert!(line.contains("nowhere is not a repository"), "{line}");
    let said = lab.run(&["init", "--accept", "--digest", "blake3"]).misused();
    assert!(said.contains("--accept"), "{said}");
}

/// Rule S6.
#[test]
fn a_place_is_the_same_by_every_path_also_while_its_disk_is_away() {
    let (lab, _) = lab();
    std::fs::create_dir_all(lab.path("media/disk")).unwrap();
    std::os::unix::fs::symlink("media/disk", lab.path("backup")).unwrap();
    lab.done(&["--repo", "backup/vm", "snapshot", "disk.img"]);
    std::fs::remove_dir_all(lab.path("media/disk")).unwrap();
    for place in ["backup/vm", "media/disk/vm", "./media/../media/disk/vm"] {
        let line = lab.fails(FAILED, &["--repo", place, "snapshot", "disk.img"]);
        assert!(line.contains("has used there is missing"), "{place}: {line}");
    }
}

/// Rule S6: what is not known is as on a host that was never there, and nothing is stopped by it.
#[test]
fn a_record_that_is_damaged_of_another_machine_or_cannot_be_kept_is_none() {
    let (lab, states) = lab();
    let records = || -> Vec<_> {
        let places = std::fs::read_dir(lab.path("state/places")).unwrap();
        places.map(|entry| entry.unwrap().path()).collect()
    };
    let [record] = &records()[..] else { panic!("{:?}", records()) };
    let sound = std::fs::read(record).unwrap();
    let value: serde_json::Value = serde_json::from_slice(&sound).unwrap();
    assert_eq!(value["path"], json!(format!("file://{}", lab.at("repo"))), "{value}");
    assert_eq!(value["repositories"], json!([id(&lab)]), "{value}");
    let damaged: [&[u8]; 4] = [b"", b"{}", b"{\"machine\": 1", &sound[..sound.len() / 2]];
    for bytes in damaged {
        std::fs::write(record, bytes).unwrap();
        let run = lab.run(&["list", "disk"]).done();
        let is_told = run.err.contains("warning") && run.err.contains("it is unknown which");
        assert!(is_told, "{}", run.err);
        assert_eq!(run.err.lines().count(), 1, "{}", run.err);
        lab.done(&["label", "disk@1", "x"]);
        assert_eq!(std::fs::read(record).unwrap(), sound, "it is put right by who writes");
    }
    // A process that was killed has left something.
    std::fs::write(record.with_extension("json.0123456789ab.tmp"), b"").unwrap();
    assert_eq!(lab.run(&["snapshot", "disk.img"]).done().err, "");
    // Of a host of which this one is a copy.
    let mut command = lab.command(&["snapshot", "disk.img", "--name", "copy"]);
    let run = Run::of(command.env("IMGSNAP_MACHINE_ID", "another")).done();
    assert_eq!(run.err, "");
    // No place for a record.
    for state in ["/proc/imgsnap", "/sys/imgsnap"] {
        for args in [&["label", "disk@1", "x"][..], &["restore", "disk@1", "-o", "out.img"]] {
            let mut command = lab.command(args);
            Run::of(command.env("IMGSNAP_STATE", state)).done();
        }
        assert_eq!(lab.read("out.img"), states[0]);
        lab.remove("out.img");
    }
}

#[test]
fn with_must_exist_no_repository_is_made() {
    let (lab, _) = lab();
    for args in [
        &["snapshot", "disk.img", "--must-exist"][..],
        &["watch", "disk.img", "--every", "1h", "--must-exist"],
        &["import", "disk.delta", "--name", "disk", "--must-exist"],
    ] {
        let line = lab.fails(FAILED, &[&["--repo", "new"], args].concat());
        assert!(line.contains("new is not a repository"), "{args:?}: {line}");
    }
    lab.done(&["snapshot", "disk.img", "--must-exist"]);
}

#[test]
fn folders_above_a_repository_are_not_made() {
    let (lab, _) = lab();
    for args in
        [&["snapshot", "disk.img"][..], &["import", "disk.delta", "--name", "disk"], &["init"]]
    {
        let line = lab.fails(FAILED, &[&["--repo", "typo/deep/repo"], args].concat());
        let what =
            format!("cannot create the repository {0}/repo: {0} is missing", lab.at("typo/deep"));
        assert!(line.starts_with(&what), "{args:?}: {line}");
        assert!(line.contains("check that the disk is mounted"), "{args:?}: {line}");
    }
}

/// The data folder of a user need not be there.
#[test]
fn the_usual_place_is_made_whole_at_first_use() {
    let lab = Lab::bare();
    lab.write("disk.img", &disk(1, 64 * KIB));
    std::fs::create_dir(lab.path("home")).unwrap();
    std::os::unix::fs::chown(lab.path("home"), Some(crate::support::NOBODY), None).ok();
    let args = ["snapshot", "disk.img", "--track", "none"];
    let Some(mut command) = lab.command_of_nobody(&args) else {
        return skipped("place::the_usual_place_is_made_whole", "no setpriv, or not root");
    };
    let run = Run::of(command.env_remove("IMGSNAP_REPO")).done();
    assert!(run.err.contains("created a repository in "), "{}", run.err);
    assert!(lab.exists("home/.local/share/imgsnap/config.000001"));
}

/// Each of several that come at the same time has what one of them makes.
#[test]
fn first_snapshots_and_imports_at_once_make_one_repository() {
    let (lab, _) = lab();
    let images: Vec<String> = (0..5).map(|n| format!("{n}.img")).collect();
    for (seed, image) in images.iter().enumerate() {
        lab.write(image, &noise(seed as u64, 64 * KIB));
    }
    for round in 0..8 {
        let place = format!("new-{round}");
        let quiet = ["--repo", &place, "--quiet"];
        let mut commands: Vec<_> = images
            .iter()
            .map(|image| lab.command(&[&quiet[..], &["snapshot", image]].concat()))
            .collect();
        let import = ["import", "disk.delta", "--name", "imported"];
        commands.push(lab.command(&[&quiet[..], &import].concat()));
        let started: Vec<_> = commands
            .iter_mut()
            .map(|command| {
                command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
                spawn(command)
            })
            .collect();
        let mut made = 0;
        for (child, command) in started.into_iter().zip(&commands) {
            let run = Run::ended(command, child.wait_with_output().unwrap()).done();
            made += run.err.lines().filter(|line| line.contains("created a repository")).count();
        }
        assert_eq!(made, 1, "round {round}");
        let listed = lab.json(&["--repo", &place, "list"]);
        assert_eq!(listed.as_array().unwrap().len(), 6, "round {round}");
        assert_eq!(lab.json(&["--repo", &place, "verify"])["damaged"], json!([]));
        // All of them have remembered it.
        std::fs::remove_dir_all(lab.path(&place)).unwrap();
        lab.fails(FAILED, &["--repo", &place, "snapshot", "0.img"]);
    }
}

#[test]
fn a_first_use_that_fails_leaves_no_repository() {
    let (lab, _) = lab();
    let whole = lab.read("disk.delta");
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    lab.write("flipped.delta", &flipped);
    lab.write("short.delta", &whole[..whole.len() - 1]);
    lab.write("long.img", &noise(7, 512 * KIB));
    std::fs::create_dir(lab.path("there")).unwrap();
    let before = lab.everything();
    for place in ["new", "there"] {
        let to = |args: &[&'static str]| [&["--repo", place], args].concat();
        let runs = [
            (3, lab.run(&to(&["import", "flipped.delta", "--name", "disk"]))),
            (3, lab.run_with_input(&to(&["import", "-", "--name", "disk"]), &whole[..9000])),
            (3, lab.run_with_input(&to(&["import", "-", "--name", "disk"]), b"")),
            (3, lab.run_with_input(&to(&["import", "-", "--name", "disk"]), &flipped)),
            (FAILED, lab.run(&to(&["import", "disk.delta"]))),
            (FAILED, lab.run(&to(&["import", "disk.delta", "--name", "no/name"]))),
            // As on a full disk: in the middle of a file, and before anything is written.
            (FAILED, lab.limited("-f 64", &to(&["import", "disk.delta", "--name", "disk"]))),
            (FAILED, lab.limited("-f 64", &to(&["snapshot", "long.img"]))),
            (FAILED, lab.limited("-f 0", &to(&["snapshot", "long.img"]))),
            (FAILED, lab.limited("-f 0", &to(&["init"]))),
        ];
        for (number, (code, run)) in runs.into_iter().enumerate() {
            let what = format!("{place}, run {number}: {}", run.err);
            assert_eq!(run.code, Some(code), "{what}");
            let errors = run.err.lines().filter(|line| line.starts_with("imgsnap: error: "));
            assert_eq!(errors.count(), 1, "{what}");
            let is_made = run.err.contains("created a repository");
            assert_eq!(is_made, run.err.contains("removed the repository"), "{what}");
        }
        lab.ensure_untouched(&before, place);
    }
    // Nothing is remembered of them.
    lab.done(&["--repo", "new", "import", "disk.delta", "--name", "disk"]);
    lab.done(&["--repo", "there", "snapshot", "long.img"]);
}

/// A repository that was made before, and is still empty, stays.
#[test]
fn a_first_use_that_fails_takes_nothing_back_that_it_has_not_made() {
    let (lab, _) = lab();
    lab.write("short.delta", &lab.read("disk.delta")[..9000]);
    lab.done(&["--repo", "new", "init"]);
    let before = lab.everything();
    let to = |args: &[&'static str]| [&["--repo", "new"], args].concat();
    assert_eq!(lab.run(&to(&["import", "short.delta", "--name", "disk"])).code, Some(3));
    assert_eq!(lab.run_with_input(&to(&["import", "-", "--name", "x"]), b"").code, Some(3));
    assert_eq!(lab.run(&to(&["init"])).code, Some(FAILED));
    lab.ensure_untouched(&before, "what failed");
    lab.done(&to(&["import", "disk.delta", "--name", "disk"]));
}

#[test]
fn a_first_use_that_is_interrupted_leaves_no_repository() {
    let (lab, _) = lab();
    let whole = lab.read("disk.delta");
    let before = lab.everything();
    let mut command = lab.command(&["--repo", "new", "import", "-", "--name", "disk"]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = spawn(&mut command);
    let mut stdin = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, &whole[..20_000]).unwrap();
    assert!(wait_until(|| lab.exists("new/disk/write.lock")), "the upload begins");
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    // It looks after the next piece.
    std::io::Write::write_all(&mut stdin, &whole[20_000..whole.len() - 1]).ok();
    drop(stdin);
    assert_eq!(child.wait().unwrap().code(), Some(INTERRUPTED));
    lab.ensure_untouched(&before, "an interrupted import");
    // The same of a watch that has taken nothing.
    // A link that leads nowhere yet.
    std::os::unix::fs::symlink("nowhere.img", lab.path("missing.img")).unwrap();
    let before = lab.everything();
    let mut command =
        lab.command(&["--repo", "new", "watch", "missing.img", "--every", "1h", "--json"]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut watch = Started::new(&mut command);
    assert!(wait_until(|| lab.exists("new/config.000001")), "it is made");
    kill(Pid::from_raw(watch.child.id() as i32), Signal::SIGTERM).unwrap();
    assert!(watch.child.wait().unwrap().success());
    lab.ensure_untouched(&before, "a watch that took nothing");
}

#[test]
fn a_watch_does_not_hold_the_folder_of_a_repository_open() {
    let (lab, _) = lab();
    for place in ["repo", "new"] {
        let mut command = lab.command(&["--repo", place, "watch", "disk.img", "--every", "1h"]);
        let out = lab.path("watched");
        command.stdout(std::fs::File::create(&out).unwrap()).stderr(Stdio::null());
        let watch = Started::new(&mut command);
        assert!(wait_until(|| !lab.read("watched").is_empty()), "a turn ends");
        let open = std::fs::read_dir(format!("/proc/{}/fd", watch.child.id())).unwrap();
        let open = open.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
        let held: Vec<_> = open.filter(|path| *path == lab.path(place)).collect();
        assert!(held.is_empty(), "{held:?}");
    }
}

#[test]
fn that_a_repository_was_made_is_said_in_any_case_and_on_stderr() {
    let (lab, _) = lab();
    for (number, option) in ["--quiet", "--json", "--verbose"].into_iter().enumerate() {
        let place = format!("new-{number}");
        let run = lab.run(&["--repo", &place, option, "snapshot", "disk.img"]).done();
        let line = format!("imgsnap: created a repository in {} (", lab.at(&place));
        assert!(run.err.lines().any(|l| l.starts_with(&line)), "{option}: {}", run.err);
        if option == "--json" {
            assert_eq!(string(&run.json(), "ref"), "disk@1");
        }
    }
}
