//! Damage is what was read and does not match. Whatever else keeps a file from being read says nothing of it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::support::{FAILED, KIB, Lab, NOBODY, Run, change, disk, skipped, spawn};
use serde_json::json;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

#[test]
fn few_descriptors_are_no_damage_and_keep_nobody_from_anything() {
    const COUNT: usize = 120;
    let lab = Lab::new();
    let mut bytes = disk(1, 256 * KIB);
    lab.write("disk.img", &bytes);
    lab.write("first.img", &bytes);
    lab.done(&["snapshot", "disk.img"]);
    let mut deltas = Vec::new();
    for number in 2..=COUNT {
        change(&mut bytes, number as u64, 2);
        lab.write("disk.img", &bytes);
        lab.done(&["snapshot", "disk.img"]);
        let delta = format!("{number:03}.delta");
        let since = format!("@{}", number - 1);
        lab.done(&["export", &format!("disk@{number}"), "--since", &since, "-o", &delta]);
        deltas.push(delta);
    }
    let verified = lab.limited("-n 32", &["verify", "--json"]).done().json();
    assert_eq!((&verified["damaged"], &verified["unchecked"]), (&json!([]), &json!([])));
    assert_eq!(verified["snapshots"], COUNT);
    let mut args = vec!["apply", "--base", "first.img", "-o", "last.img"];
    args.extend(deltas.iter().map(String::as_str));
    lab.limited("-n 32", &args).done();
    assert!(lab.read("last.img") == bytes);
    lab.limited("-n 32", &["restore", "disk@latest", "-o", "again.img"]).done();
    assert!(lab.read("again.img") == bytes);
}

/// Gives a folder and all in it to nobody.
fn give_away(path: &Path) -> std::io::Result<()> {
    chown(path, Some(NOBODY), Some(NOBODY))?;
    if path.is_dir() {
        for entry in std::fs::read_dir(path)? {
            give_away(&entry?.path())?;
        }
    }
    Ok(())
}

#[test]
fn a_file_that_may_not_be_read_is_no_damage_and_a_repair_changes_nothing() {
    let (lab, states) = Lab::with_snapshots(3);
    let test = "a_file_that_may_not_be_read_is_no_damage_and_a_repair_changes_nothing";
    lab.done(&["verify"]);
    std::fs::create_dir(lab.path("copy")).unwrap();
    let mut copy = Command::new("cp");
    copy.args(["-r", "repo/.", "copy"]).current_dir(lab.path("."));
    assert!(spawn(&mut copy).wait().unwrap().success());
    let (Some(_), true) = (
        lab.command_of_nobody(&["verify"]),
        give_away(&lab.path("repo")).and(give_away(&lab.path("copy"))).is_ok(),
    ) else {
        return skipped(test, "no other user can be had");
    };
    let locked = lab.path(&lab.delta("disk", 2));
    chown(&locked, Some(0), Some(0)).unwrap();
    std::fs::set_permissions(&locked, PermissionsExt::from_mode(0o600)).unwrap();
    let before = lab.everything();
    let nobody = |args: &[&str]| Run::of(&mut lab.command_of_nobody(args).unwrap());
    let run = nobody(&["verify"]);
    assert_eq!(run.code, Some(FAILED), "{}", run.err);
    let text = run.text();
    assert!(text.contains("UNKNOWN  disk@2  could not be checked: "), "{text}");
    assert!(text.contains("Permission denied") && text.contains("NOT CHECKED"), "{text}");
    for word in ["DAMAGED", "LOST", "repair", "sound"] {
        assert!(!text.contains(word), "{word}: {text}");
    }
    assert!(run.err.starts_with("imgsnap: error: disk@2 could not be checked: "), "{}", run.err);
    // What is gone is gone, whatever is not known.
    let third = lab.delta("disk", 3);
    lab.rename(&third, "third");
    let run = nobody(&["verify"]);
    assert_eq!(run.code, Some(crate::support::DAMAGE), "{}", run.err);
    assert!(run.text().contains("LOST     disk@3  nothing of it"), "{}", run.text());
    assert!(!run.text().contains("LOST     disk@2"), "{}", run.text());
    lab.rename("third", &third);
    let run = nobody(&["verify", "--json"]);
    let value = run.json();
    assert_eq!(
        (run.code, &value["damaged"], &value["lost"]),
        (Some(FAILED), &json!([]), &json!([]))
    );
    assert_eq!(value["unchecked"][0]["snapshot"], "disk@2");
    for args in [&["repair", "disk"][..], &["repair", "disk", "--from", "copy"]] {
        let line = nobody(args).failed(FAILED);
        assert!(line.contains("Permission denied"), "{line}");
        assert!(line.contains(&locked.display().to_string()), "{line}");
    }
    // What is damaged is told all the same, and is damage.
    lab.ensure_untouched(&before, "verify and repair");
    chown(&locked, Some(NOBODY), Some(NOBODY)).unwrap();
    let run = nobody(&["verify"]);
    assert_eq!(run.code, Some(0), "{}", run.err);
    lab.restores("disk@3", &states[2]);
}
