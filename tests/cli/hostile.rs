//! What others may have put there: links and pipes in the place of files, manifests that lie, names that a terminal
//! would obey, and folders that everybody can write to.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::support::{DAMAGE, DONE, FAILED, Lab, Run, alone_to_fork, forge, skipped};
use serde_json::{Value, json};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

#[track_caller]
fn is_harmless(run: &Run) {
    let all = [run.out.as_slice(), run.err.as_bytes()].concat();
    let text = String::from_utf8(all).unwrap();
    let bad = text.chars().find(|c| c.is_control() && *c != '\n');
    assert_eq!(bad, None, "{text:?}");
}

#[test]
fn who_else_can_change_a_repository_is_told_in_one_line() {
    let (lab, _) = Lab::with_snapshots(1);
    let (repo, above) = (lab.path("repo"), lab.path("repo").parent().unwrap().to_owned());
    let warnings = || -> Vec<String> {
        let run = lab.run(&["list", "--json"]).done();
        assert_eq!(run.json().as_array().unwrap().len(), 1);
        run.err.lines().map(str::to_owned).collect()
    };
    assert!(warnings().is_empty(), "{:?}", warnings());
    // A group of one's own is common, and a sticky folder is one like /tmp.
    for (path, mode) in [(&repo, 0o770), (&repo, 0o755), (&above, 0o1777), (&above, 0o775)] {
        set_mode(path, mode);
        assert!(warnings().is_empty(), "{mode:o}: {:?}", warnings());
    }
    for (path, mode) in [(&repo, 0o777), (&repo, 0o1777), (&above, 0o777)] {
        set_mode(path, mode);
        let told = warnings();
        let line = format!("imgsnap: warning: {} can be changed by every user", path.display());
        assert!(told.len() == 1 && told[0].starts_with(&line), "{mode:o}: {told:?}");
        set_mode(path, 0o700);
    }
    assert!(warnings().is_empty(), "{:?}", warnings());
}

#[test]
fn a_repository_of_another_user_is_told() {
    let (lab, _) = Lab::with_snapshots(1);
    // No user has this number, so nobody is root here if it can be given away.
    if chown(lab.path("repo"), Some(54_321), None).is_err() {
        return skipped(
            "a_repository_of_another_user_is_told",
            "a file can only be given away by root",
        );
    }
    let run = lab.run(&["verify"]).done();
    let line = format!("{} can be changed by its owner, 54321;", lab.at("repo"));
    assert!(run.err.lines().count() == 1 && run.err.contains(&line), "{}", run.err);
    // Who called root by sudo is no stranger.
    let run = Run::of(lab.command(&["verify"]).env("SUDO_UID", "54321")).done();
    assert_eq!(run.err, "");
}

#[test]
fn everything_that_is_made_is_for_its_owner_alone() {
    let lab = Lab::bare();
    let states = {
        let mut states = vec![crate::support::disk(1, 64 * 1024)];
        states.push([states[0].as_slice(), &[7; 4096]].concat());
        states
    };
    let open = |args: &[&str]| {
        let command = lab.command(args);
        let mut shell = Command::new("sh");
        shell.args(["-c", "umask 000; exec \"$@\"", "sh"]).arg(command.get_program()).args(args);
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(key, value),
                None => shell.env_remove(key),
            };
        }
        shell.current_dir(lab.path("."));
        Run::of(&mut shell).done()
    };
    for state in &states {
        lab.write("disk.img", state);
        // What a restore gives back.
        set_mode(&lab.path("disk.img"), 0o600);
        open(&["snapshot", "disk.img"]);
    }
    open(&["label", "disk@1", "first"]);
    open(&["rollback", "disk", "--to", "disk@1"]);
    open(&["export", "disk@1", "-o", "one.delta"]);
    open(&["restore", "disk@2", "-o", "two.img"]);
    open(&["remove", "disk", "--yes"]);
    open(&["import", "one.delta", "--name", "copy"]);
    let manifest = lab.manifest("copy");
    lab.write(&manifest, b"damaged");
    open(&["repair", "copy"]);
    let mut looked_at = 0;
    let mut folders: Vec<PathBuf> = vec![lab.path("repo")];
    while let Some(folder) = folders.pop() {
        assert_eq!(folder.metadata().unwrap().mode() & 0o7777, 0o700, "{}", folder.display());
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o600, "{}", path.display());
            looked_at += 1;
        }
    }
    for made in ["one.delta", "two.img"] {
        assert_eq!(lab.path(made).metadata().unwrap().mode() & 0o7777, 0o600, "{made}");
    }
    assert!(looked_at >= 5, "{looked_at} files");
}

#[test]
fn no_lock_is_made_where_a_link_leads() {
    let (lab, _) = Lab::with_snapshots(1);
    for lock in ["write.lock", "reap.lock"] {
        let path = lab.path("repo/disk").join(lock);
        std::fs::remove_file(&path).unwrap();
        symlink(lab.path("victim"), &path).unwrap();
        let line = lab.fails(FAILED, &["snapshot", "disk.img", "--full"]);
        assert!(line.contains(&format!("cannot lock {}", path.display())), "{line}");
        assert!(!lab.exists("victim"));
        // Nor where there is a file already.
        lab.write("victim", b"mine");
        lab.fails(FAILED, &["snapshot", "disk.img", "--full"]);
        assert_eq!(lab.read("victim"), b"mine");
        std::fs::remove_file(&path).unwrap();
        lab.remove("victim");
    }
}

#[test]
fn a_pipe_in_the_place_of_a_file_holds_nobody_up() {
    let (lab, states) = Lab::with_snapshots(2);
    let made = |name: &str| {
        let _alone = alone_to_fork();
        Command::new("mkfifo").arg(lab.path(name)).status()
    };
    if !made("try").is_ok_and(|status| status.success()) {
        return skipped("a_pipe_in_the_place_of_a_file_holds_nobody_up", "there is no mkfifo");
    }
    let delta = lab.delta("disk", 1);
    let manifest = lab.manifest("disk");
    let newer = "repo/disk/manifest.000099".to_owned();
    let more = ["repo/disk/reap.lock", "repo/config.000001", "repo/config.000002"];
    for name in [delta, manifest, newer].into_iter().chain(more.map(str::to_owned)) {
        let kept = lab.exists(&name).then(|| lab.rename(&name, "kept"));
        assert!(made(&name).unwrap().success());
        for args in [&["list"][..], &["restore", "disk@2", "-o", "x"], &["verify"]] {
            let run = lab.run(args);
            let is_told = matches!(run.code, Some(code) if code != DONE);
            // Whoever only looks at the manifest need not see what is wrong with a delta.
            assert!(is_told || args == ["list"], "{name}: {args:?}: {}", run.err);
        }
        lab.remove(&name);
        kept.inspect(|()| lab.rename("kept", &name));
    }
    lab.restores("disk@2", &states[1]);
}

#[test]
fn what_a_terminal_would_obey_is_shown_instead() {
    let (lab, _) = Lab::with_snapshots(1);
    let evil = "/tmp/\u{1b}]0;owned\u{7}\u{9b}2J\r/disk.img";
    forge(&lab, "disk", |manifest| {
        manifest["source"] = evil.into();
        manifest["kept"] = json!(["\u{1b}[2J.delta"]);
    });
    for args in
        [&["list"][..], &["show", "disk@1"], &["stats"], &["rollback", "disk", "--to", "@1"]]
    {
        is_harmless(&lab.run(args));
    }
    // What a manifest says of another host is shown.
    let run = Run::of(lab.command(&["list"]).env("IMGSNAP_MACHINE_ID", "another")).done();
    assert!(run.text().contains(r"\u{1b}]0;owned\u{7}\u{9b}2J\r/disk.img"));
    let run = lab.run(&["restore", "disk@\u{1b}[2J", "-o", "x"]);
    is_harmless(&run);
    assert!(run.err.contains(r"\u{1b}[2J"), "{}", run.err);
}

#[test]
fn a_manifest_that_lies_is_refused() {
    let (lab, states) = Lab::with_snapshots(2);
    let good = lab.read(&lab.manifest("disk"));
    type Lie = fn(&mut Value);
    let lies: [(&str, Lie); 14] = [
        ("a path", |m| m["snapshots"][0]["file"] = "../../x.delta".into()),
        ("a name with escapes", |m| m["snapshots"][0]["file"] = "\u{1b}[2J.delta".into()),
        ("one file twice", |m| m["snapshots"][1]["file"] = m["snapshots"][0]["file"].clone()),
        ("a label with escapes", |m| m["snapshots"][0]["label"] = "\u{1b}[2J".into()),
        ("an empty label", |m| m["snapshots"][0]["label"] = "".into()),
        ("a long label", |m| m["snapshots"][0]["label"] = "x".repeat(129).into()),
        ("a relative source", |m| m["source"] = "disk.img".into()),
        ("a relative base image", |m| m["snapshots"][0]["base_image"] = "x".into()),
        ("no source", |m| drop(m.as_object_mut().unwrap().remove("source"))),
        ("odd blocks", |m| m["snapshots"][0]["block_bytes"] = 0.into()),
        ("an endless image", |m| m["snapshots"][0]["image_bytes"] = u64::MAX.into()),
        ("an endless file", |m| m["snapshots"][0]["file_bytes"] = u64::MAX.into()),
        ("endless data", |m| m["snapshots"][0]["data_blocks"] = (1u64 << 60).into()),
        ("a signed digest", |m| {
            m["snapshots"][0]["image_digest"] = "+f".repeat(16).into();
        }),
    ];
    for (what, lie) in lies {
        forge(&lab, "disk", lie);
        for args in [&["list", "disk"][..], &["restore", "disk@1", "-o", "x"], &["stats", "disk"]] {
            let line = lab.fails(DAMAGE, args);
            assert!(line.contains("the manifest is not valid"), "{what}: {line}");
        }
        lab.write(&lab.manifest("disk"), &good);
    }
    lab.holds("disk", &[(1, &states[0]), (2, &states[1])]);
}

#[test]
fn after_the_last_commit_that_can_be_counted_there_is_no_other() {
    let (lab, states) = Lab::with_snapshots(1);
    forge(&lab, "disk", |manifest| manifest["sequence"] = u64::MAX.into());
    lab.rename(&lab.manifest("disk"), &format!("repo/disk/manifest.{}", u64::MAX));
    let line = lab.run(&["label", "disk@1", "x"]).failed(DAMAGE);
    assert!(line.contains("no number is left for another commit"), "{line}");
    lab.restores("disk@1", &states[0]);
}
