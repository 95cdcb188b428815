//! `imgsnap rollback`

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::support::{
    BLOCK, DAMAGE, FAILED, Lab, change, disk, integer, same, string, trusts_times,
};
use serde_json::{Value, json};
use std::os::unix::fs::MetadataExt;

const NAMES: [&str; 4] = ["written_bytes", "scanned", "proved", "saved"];

#[test]
fn back_and_forth_ends_identical_to_each_snapshot() {
    let (lab, states) = Lab::with_snapshots(4);
    let inode = lab.path("disk.img").metadata().unwrap().ino();
    for number in [1, 4, 2, 3, 1, 1, 4] {
        let done = lab.json(&["rollback", "disk", "--to", &format!("disk@{number}")]);
        same(&lab.read("disk.img"), &states[number - 1], &format!("disk@{number}"));
        assert_eq!(integer(&done, "number"), number as u64);
        for name in NAMES {
            assert!(done.get(name).is_some(), "{name} is missing: {done}");
        }
    }
    assert_eq!(lab.path("disk.img").metadata().unwrap().ino(), inode, "in place");
    assert_eq!(lab.json(&["list"]).as_array().unwrap().len(), 4, "nothing had to be saved");
}

#[test]
fn the_image_is_named_by_name_or_by_path() {
    let (lab, states) = Lab::with_snapshots(3);
    std::os::unix::fs::symlink("disk.img", lab.path("link")).unwrap();
    let absolute = lab.at("disk.img");
    for (image, number) in
        [("disk", 1), ("disk.img", 2), ("./disk.img", 3), (absolute.as_str(), 1), ("link", 2)]
    {
        let done = lab.json(&["rollback", image, "--to", &format!("@{number}")]);
        same(&lab.read("disk.img"), &states[number - 1], image);
        assert_eq!((string(&done, "name"), string(&done, "image")), ("disk", absolute.as_str()));
    }
}

#[test]
fn a_reference_alone_says_what_and_where_to() {
    let (lab, states) = Lab::with_snapshots(2);
    lab.done(&["rollback", "disk@1"]);
    same(&lab.read("disk.img"), &states[0], "disk@1");
    assert!(lab.run(&["rollback", "disk"]).misused().contains("missing snapshot"));
    // A file of that name is meant as a file.
    lab.write("disk@2", &states[1]);
    let line = lab.fails(FAILED, &["rollback", "disk@2"]);
    assert!(line.contains("disk@2 is a file: give the snapshot with --to"), "{line}");
    let line = lab.fails(FAILED, &["rollback", "disk@2026-13-45"]);
    assert!(line.contains("invalid time"), "{line}");
}

#[test]
fn every_reference_is_taken() {
    let (lab, states) = Lab::with_snapshots(3);
    lab.done(&["label", "disk@2", "good"]);
    for (to, number) in [
        ("@good", 2),
        ("disk@latest", 3),
        ("@1", 1),
        ("@head", 1),
        ("@2999-01-01", 3),
        ("disk@good", 2),
    ] {
        let done = lab.json(&["rollback", "disk", "--to", to]);
        assert_eq!(integer(&done, "number"), number, "{to}");
        same(&lab.read("disk.img"), &states[number as usize - 1], to);
    }
}

#[test]
fn only_what_differs_is_written() {
    let (lab, _) = Lab::with_snapshots(3);
    let write = |to: &str| integer(&lab.json(&["rollback", "disk", "--to", to]), "written_bytes");
    assert_eq!(write("@2"), 3 * BLOCK as u64);
    assert_eq!(write("@2"), 0);
    assert_eq!(write("@1"), 3 * BLOCK as u64);
    assert_eq!(write("@3"), 6 * BLOCK as u64);
}

#[test]
fn what_was_not_yet_saved_is_saved_first() {
    let (lab, states) = Lab::with_snapshots(2);
    let mut bytes = states[1].clone();
    change(&mut bytes, 40, 5);
    lab.write("disk.img", &bytes);
    let done = lab.json(&["rollback", "disk", "--to", "@1"]);
    assert_eq!(string(&done, "saved"), "disk@3");
    assert_eq!((&done["scanned"], &done["proved"]), (&json!(true), &json!(true)));
    same(&lab.read("disk.img"), &states[0], "disk@1");
    lab.restores("disk@3", &bytes);
    lab.done(&["rollback", "disk", "--to", "@3"]);
    same(&lab.read("disk.img"), &bytes, "back to what was saved");
    // J23: it is marked, and stays so while its target is there, and when manifests are rebuilt.
    let marks = |lab: &Lab| {
        let listed = lab.json(&["list", "disk"]);
        let of = |s: &Value| s["before_rollback"].as_str().map(str::to_owned);
        listed.as_array().unwrap().iter().map(of).collect::<Vec<_>>()
    };
    let target = string(&lab.json(&["show", "disk@1"]), "id").to_owned();
    let target = [None, None, Some(target)];
    assert_eq!(marks(&lab), target);
    lab.done(&["repair", "disk"]);
    assert_eq!(marks(&lab), target);
    let mark = |what: &str, text: String| {
        assert!(text.contains(what), "{what}: {text}");
    };
    mark("(before rollback to @1)", lab.done(&["list", "disk"]));
    mark("the state before a rollback to disk@1", lab.done(&["show", "disk@3"]));
    lab.done(&["delete", "disk@1"]);
    mark("(before rollback)", lab.done(&["list", "disk"]));
    mark("the state before a rollback to a snapshot that is gone", lab.done(&["show", "disk@3"]));
}

#[test]
fn what_a_snapshot_holds_already_is_not_saved_again_but_named() {
    let (lab, states) = Lab::with_snapshots(2);
    // The same bytes, but the times say nothing any more.
    lab.write("disk.img", &states[1]);
    let done = lab.json(&["rollback", "disk", "--to", "@1"]);
    assert_eq!(string(&done, "saved"), "disk@2");
    assert_eq!(lab.json(&["list"]).as_array().unwrap().len(), 2);
}

#[test]
fn no_save_saves_nothing() {
    let (lab, states) = Lab::with_snapshots(2);
    let mut bytes = states[1].clone();
    change(&mut bytes, 40, 5);
    lab.write("disk.img", &bytes);
    let done = lab.json(&["rollback", "disk", "--to", "@1", "--no-save"]);
    assert_eq!(done["saved"], Value::Null);
    assert_eq!(done["scanned"], json!(true), "nothing else knows what differs");
    same(&lab.read("disk.img"), &states[0], "disk@1");
    assert_eq!(lab.json(&["list"]).as_array().unwrap().len(), 2);
    let text = lab.done(&["rollback", "disk", "--to", "@2", "--no-save"]);
    assert!(text.contains("  saved     nothing (--no-save)\n"), "{text}");
}

#[test]
fn a_dry_run_tells_and_changes_nothing() {
    let (lab, states) = Lab::with_snapshots(3);
    let mut bytes = states[2].clone();
    change(&mut bytes, 60, 2);
    for image in [&states[2], &bytes] {
        lab.write("disk.img", image);
        let before = lab.everything();
        let told = lab.json(&["rollback", "disk", "--to", "@1", "--dry-run"]);
        let text = lab.done(&["rollback", "disk", "--to", "@1", "--dry-run"]);
        lab.ensure_untouched(&before, "a dry run");
        assert_eq!((&told["dry_run"], &told["saved"]), (&json!(true), &Value::Null));
        assert_eq!(told["proved"], json!(false));
        let differing = image.chunks(BLOCK).zip(states[0].chunks(BLOCK)).filter(|(a, b)| a != b);
        assert_eq!(integer(&told, "written_bytes"), (differing.count() * BLOCK) as u64);
        assert!(
            text.contains("would be rolled back to disk@1  (dry run: nothing was changed)"),
            "{text}"
        );
    }
    let told = lab.json(&["rollback", "disk", "--to", "@1", "--dry-run"]);
    let done = lab.json(&["rollback", "disk", "--to", "@1"]);
    assert_eq!(told["written_bytes"], done["written_bytes"]);
}

#[test]
fn a_believed_image_is_rolled_back_without_a_scan_and_prove_scans() {
    let (lab, states) = Lab::with_snapshots(3);
    // Where the times of files are believed; elsewhere each rollback scans.
    let scans = !trusts_times(&lab.path("disk.img"));
    let done = lab.json(&["rollback", "disk", "--to", "@2"]);
    assert_eq!((&done["scanned"], &done["proved"]), (&json!(scans), &json!(scans)), "{done}");
    assert_eq!(integer(&done, "read_bytes") > 0, scans, "{done}");
    assert_eq!(string(&done, "saved"), "disk@3");
    let text = lab.done(&["rollback", "disk", "--to", "@1"]);
    assert!(
        text.starts_with(&format!(
            "rolled back {} to disk@1\n  written   12.0 KiB in ",
            lab.at("disk.img")
        )),
        "{text}"
    );
    if !scans {
        assert!(text.contains("  found     from the tables alone: "), "{text}");
        assert!(text.ends_with("  verified  not by a full scan (use --prove)\n"), "{text}");
    }
    let done = lab.json(&["rollback", "disk", "--to", "@3", "--prove"]);
    assert_eq!((&done["scanned"], &done["proved"]), (&json!(true), &json!(true)), "{done}");
    assert!(integer(&done, "read_bytes") > 0, "{done}");
    same(&lab.read("disk.img"), &states[2], "disk@3");
    let text = lab.done(&["rollback", "disk", "--to", "@1", "--prove"]);
    assert!(text.contains("  found     by a scan of the image ("), "{text}");
    assert!(text.ends_with("  verified  yes, by a full scan\n"), "{text}");
}

#[test]
fn lengths_follow_the_snapshot() {
    let lab = Lab::new();
    let long = disk(4, 400_001);
    let states =
        [long.clone(), long[..100_003].to_vec(), vec![7; 1], [long, vec![9; 5000]].concat()];
    for state in &states {
        lab.write("disk.img", state);
        lab.done(&["snapshot", "disk.img"]);
    }
    for prove in [false, true] {
        for number in [1, 2, 4, 3, 1, 4, 2, 3, 4] {
            let to = format!("@{number}");
            let args = ["rollback", "disk", "--to", &to, "--prove"];
            lab.done(&args[..if prove { 5 } else { 4 }]);
            same(&lab.read("disk.img"), &states[number - 1], &to);
        }
    }
}

#[test]
fn a_rollback_goes_across_bases() {
    let (lab, states) = Lab::with_snapshots(2);
    let mut bytes = states[1].clone();
    change(&mut bytes, 21, 4);
    lab.write("disk.img", &bytes);
    lab.done(&["snapshot", "disk.img", "--full"]);
    for (number, state) in [(1, &states[0]), (3, &bytes), (2, &states[1]), (3, &bytes)] {
        let done = lab.json(&["rollback", "disk", "--to", &format!("@{number}")]);
        same(&lab.read("disk.img"), state, &format!("disk@{number}"));
        let differs = integer(&done, "written_bytes");
        assert!(differs <= 10 * BLOCK as u64, "{done}");
    }
}

#[test]
fn the_head_goes_where_the_rollback_went() {
    let (lab, _) = Lab::with_snapshots(3);
    for number in [2, 1, 3] {
        lab.done(&["rollback", "disk", "--to", &format!("@{number}")]);
        let heads = lab.json(&["list"]);
        let heads = heads.as_array().unwrap().iter().filter(|s| s["head"] == json!(true));
        assert_eq!(heads.map(|s| integer(s, "number")).collect::<Vec<_>>(), [number]);
    }
}

#[test]
fn what_cannot_be_rolled_back_is_said() {
    let (lab, _) = Lab::with_snapshots(2);
    lab.write("other.img", &disk(1, 10 * BLOCK));
    for (image, to, said) in [
        ("disk", "@9", "there is no snapshot disk@9"),
        ("disk", "web@1", "web@1 is a snapshot of another image than \"disk\""),
        ("disk", "1", "\"1\" does not name a snapshot"),
        ("disk", "@", "missing snapshot after '@'"),
        ("web", "@1", "\"web\" is neither an image in the repository nor a file"),
        ("other.img", "@1", "other.img is not the live file of an image in the repository"),
    ] {
        let line = lab.fails(FAILED, &["rollback", image, "--to", to]);
        assert!(line.starts_with(said), "{image} {to}: {line}");
    }
}

#[test]
fn a_live_file_that_is_gone_is_to_be_restored() {
    let (lab, states) = Lab::with_snapshots(1);
    lab.remove("disk.img");
    let line = lab.fails(FAILED, &["rollback", "disk", "--to", "@1"]);
    let way_out =
        format!("run \"imgsnap restore disk@1 -o {}\" to create it again", lab.at("disk.img"));
    assert!(line.ends_with(&way_out), "{line}");
    lab.done(&["restore", "disk@1", "-o", "disk.img"]);
    lab.done(&["rollback", "disk", "--to", "@1"]);
    same(&lab.read("disk.img"), &states[0], "disk@1");
}

#[test]
fn a_damaged_target_is_never_written_to_the_image() {
    // The base of all: each of its frames, the index, the footer.
    let (lab, _) = Lab::with_snapshots(2);
    let delta = lab.delta("disk", 2);
    let sound = lab.read(&delta);
    lab.done(&["rollback", "disk", "--to", "@1"]);
    for at in [300, sound.len() / 2, sound.len() - 600, sound.len() - 100] {
        lab.flip(&delta, at);
        let before = lab.read("disk.img");
        let run = lab.run(&["rollback", "disk", "--to", "@2"]);
        assert_eq!(run.code, Some(DAMAGE), "byte {at}: {}", run.err);
        same(&lab.read("disk.img"), &before, &format!("after byte {at}"));
        lab.write(&delta, &sound);
    }
}
