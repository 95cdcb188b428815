//! Images that are not raw, or only look so, and numbers, times and limits that lead nowhere.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::support::{DONE, FAILED, KIB, Lab, Run, disk, forge, integer, noise};
use serde_json::{Value, json};

/// Format, where its magic is, and what that is.
const MAGICS: [(&str, usize, &[u8]); 5] = [
    ("VMDK", 0, b"KDMV\x01\0\0\0"),
    ("VHDX", 0, b"vhdxfile"),
    ("VDI", 64, &[0x7f, 0x10, 0xda, 0xbe]),
    ("VHD", 0, b"conectix"),
    // A fixed one: its footer is the last sector.
    ("VHD", 64 * KIB - 512, b"conectix"),
];

fn looking_like(at: usize, magic: &[u8]) -> Vec<u8> {
    let mut bytes = disk(3, 64 * KIB);
    bytes[at..][..magic.len()].copy_from_slice(magic);
    bytes
}

#[test]
fn an_image_in_another_format_is_no_first_snapshot_unless_somebody_says_that_it_is_raw() {
    for (format, at, magic) in MAGICS {
        let lab = Lab::bare();
        let bytes = looking_like(at, magic);
        lab.write("disk.img", &bytes);
        // Nothing is made for it, neither a repository nor a folder in one.
        let line = lab.fails(FAILED, &["snapshot", "disk.img"]);
        assert!(line.contains(&format!(" looks like a {format} image")), "{line}");
        assert!(line.contains("qemu-img convert -f ") && line.contains("--format raw"), "{line}");
        lab.done(&["init"]);
        for more in [&["--dry-run"][..], &["--full"], &["--name", "other"]] {
            lab.fails(FAILED, &[&["snapshot", "disk.img"], more].concat());
        }
        lab.done(&["snapshot", "disk.img", "--format", "raw"]);
        lab.restores("disk@1", &bytes);
        // Nor can it be a base image.
        lab.write("clone.img", &disk(3, 64 * KIB));
        let args = ["snapshot", "clone.img", "--base-image", "disk.img"];
        let line = lab.fails(FAILED, &args);
        assert!(line.contains(format), "{line}");
        lab.done(&[&args[..], &["--format", "raw"]].concat());
    }
}

#[test]
fn a_guest_that_writes_a_header_into_its_raw_disk_changes_nothing_but_a_warning() {
    let (lab, _) = Lab::with_snapshots(1);
    let bytes = looking_like(0, b"QFI\xfb\0\0\0\x03");
    lab.write("disk.img", &bytes);
    for (number, more) in [(2, &[][..]), (3, &["--full"])] {
        let run = lab.run(&[&["snapshot", "disk.img"], more].concat()).done();
        assert!(run.err.contains("now looks like a qcow2 image; it is read as raw"), "{}", run.err);
        lab.restores(&format!("disk@{number}"), &bytes);
    }
    lab.done(&["rollback", "disk", "--to", "@1"]);
    // Also when what told so is lost.
    let lab_known = lab.known_of("disk");
    lab.lose_manifests("disk");
    lab.remove(&lab_known);
    lab.write("disk.img", &bytes);
    lab.done(&["repair", "disk"]);
    let line = lab.fails(FAILED, &["relink", "disk", "disk.img"]);
    assert!(line.contains("looks like a qcow2 image"), "which file it was is lost, too: {line}");
    lab.done(&["relink", "disk", "disk.img", "--format", "raw"]);
    lab.done(&["snapshot", "disk.img"]);
}

/// Rule J17: what a later version says more is none of ours, and promises nothing; what an earlier one said is
/// understood.
#[test]
fn what_an_image_was_and_who_tracked_it_is_read_as_every_version_writes_it() {
    let (lab, _) = Lab::with_snapshots(1);
    for (key, value, is_in_use, consistency) in [
        ("consistency", json!("stopped"), false, "stopped"),
        ("consistency", json!("crash"), true, "crash"),
        ("consistency", json!("frozen"), true, "frozen"),
        ("consistency", json!("blessed"), true, "crash"),
        ("in_use", json!(true), true, "crash"),
        ("in_use", json!(false), false, "stopped"),
    ] {
        forge(&lab, "disk", |manifest| {
            let snapshot = manifest["snapshots"][0].as_object_mut().unwrap();
            snapshot.retain(|key, _| key != "in_use" && key != "consistency");
            snapshot.insert(key.into(), value.clone());
            snapshot.insert("tracker".into(), json!({"kind": "bitmap", "name": "x"}));
        });
        let shown = lab.json(&["show", "disk@1"]);
        assert_eq!(shown["in_use"], is_in_use, "{key}: {value}");
        assert_eq!(shown["consistency"], consistency, "{key}: {value}");
        assert!(shown["clone_seconds"].is_null());
    }
    lab.done(&["snapshot", "disk.img"]);
}

/// Rule J8.
#[test]
fn an_image_that_a_later_version_reads_in_another_way_is_not_taken_as_raw() {
    let (lab, _) = Lab::with_snapshots(1);
    forge(&lab, "disk", |manifest| manifest["format"] = "later".into());
    let line = lab.fails(FAILED, &["snapshot", "disk.img"]);
    assert!(
        line.contains("\"disk\" is read as a later image; it was written by a later imgsnap"),
        "{line}"
    );
}

/// A delta whose number leaves none for those after it, as a full one of an image that is not here.
fn with_number(lab: &Lab, number: u64) -> Vec<u8> {
    lab.done(&["export", "disk@1", "-o", "one.delta", "--force"]);
    let mut bytes = lab.read("one.delta");
    let footer = bytes.len() - 512;
    bytes[footer + 48..][..8].copy_from_slice(&number.to_le_bytes());
    let checksum = crc32fast::hash(&bytes[footer..footer + 508]);
    bytes[footer + 508..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

#[test]
fn an_import_with_a_number_that_leaves_none_is_refused() {
    let (lab, states) = Lab::with_snapshots(1);
    for number in [1 << 32, (1 << 48) - 1] {
        lab.write("high.delta", &with_number(&lab, number));
        let elsewhere = ["--repo", "other", "import", "high.delta", "--name", "x"];
        lab.done(&["--repo", "other", "init"]);
        let line = lab.fails(FAILED, &elsewhere);
        assert!(line.contains("is too high"), "{line}");
        std::fs::remove_dir_all(lab.path("other")).unwrap();
    }
    lab.write("high.delta", &with_number(&lab, (1 << 32) - 1));
    lab.done(&["--repo", "other", "init"]);
    lab.done(&["--repo", "other", "import", "high.delta", "--name", "x"]);
    let taken = lab.json(&["--repo", "other", "snapshot", "disk.img", "--name", "y"]);
    assert_eq!(integer(&taken, "number"), 1);
    lab.restores("disk@1", &states[0]);
}

/// What an earlier program took in.
#[test]
fn a_repository_with_such_a_number_is_given_lower_ones_by_repair() {
    let last = (1u64 << 48) - 1;
    for (numbers, is_deleted) in
        [(vec![last], false), (vec![last - 1, last], false), (vec![last], true)]
    {
        let (lab, states) = Lab::with_snapshots(3);
        let first = 4 - numbers.len() as u64;
        let deltas: Vec<String> = (first..=3).map(|number| lab.delta("disk", number)).collect();
        for (delta, number) in deltas.iter().zip(&numbers) {
            let mut bytes = lab.read(delta);
            let footer = bytes.len() - 512;
            bytes[footer + 48..][..8].copy_from_slice(&number.to_le_bytes());
            let checksum = crc32fast::hash(&bytes[footer..footer + 508]);
            bytes[footer + 508..].copy_from_slice(&checksum.to_le_bytes());
            lab.write(delta, &bytes);
        }
        // As if they had been imported: the digest of a footer needs the key of its chain, so what names them
        // is left to the repair.
        lab.lose_manifests("disk");
        let want: Vec<u64> = if is_deleted { vec![1, 2] } else { vec![1, 2, 3] };
        if is_deleted {
            lab.done(&["repair", "disk"]);
            lab.done(&["relink", "disk", "disk.img"]);
            // The number is used, and none is left.
            forge(&lab, "disk", |manifest| {
                manifest["snapshots"].as_array_mut().unwrap().truncate(2);
                manifest["next_number"] = (last + 1).into();
            });
            let line = lab.run(&["snapshot", "disk.img"]).failed(FAILED);
            assert!(
                line.contains("no number is left") && line.contains("imgsnap repair disk"),
                "{line}"
            );
        }
        let run = lab.run(&["repair", "disk"]);
        assert_eq!(run.code, Some(DONE), "{}", run.err);
        assert_eq!(lab.numbers("disk"), want);
        for number in want {
            lab.restores(&format!("disk@{number}"), &states[number as usize - 1]);
        }
        lab.write("disk.img", &noise(9, 512 * KIB));
        lab.done(&["relink", "disk", "disk.img"]);
        let taken = lab.json(&["snapshot", "disk.img"]);
        assert!(integer(&taken, "number") <= 5, "{taken}");
        assert_eq!(lab.json(&["verify"])["damaged"], json!([]));
    }
}

/// Rule J9.
#[test]
fn a_clock_that_was_ahead_costs_no_true_snapshot() {
    let (lab, states) = Lab::with_snapshots(5);
    let at = |number: usize, time: &str| {
        forge(&lab, "disk", |m| m["snapshots"][number - 1]["time"] = time.into());
    };
    at(2, "2055-01-01T00:00:00Z");
    let plan =
        lab.run(&["prune", "disk", "--keep-last", "2", "--keep-daily", "7", "--dry-run"]).done();
    let told = "disk@2 has a time that does not fit its number";
    assert!(plan.err.contains(told), "{}", plan.err);
    let found = lab.json(&["show", "disk@2054-06-01"]);
    assert_eq!(integer(&found, "number"), 5, "the newest is not later than now");
    lab.done(&["prune", "disk", "--keep-last", "2"]);
    lab.holds("disk", &[(4, &states[3]), (5, &states[4])]);
}

#[test]
fn while_the_clock_is_behind_rules_by_time_drop_nothing_and_say_so() {
    let (lab, states) = Lab::with_snapshots(3);
    for number in 0..3 {
        let time = format!("2055-01-01T00:0{number}:00Z");
        forge(&lab, "disk", |m| m["snapshots"][number]["time"] = time.into());
    }
    let args = ["prune", "disk", "--keep-daily", "1"];
    let run = lab.run(&args).done();
    assert!(run.err.contains("disk: the clock is or was wrong"), "{}", run.err);
    let json: Value = lab.json(&args);
    assert_eq!((&json[0]["clock_in_doubt"], &json[0]["dropped"]), (&json!(true), &json!(0)));
    assert_eq!(lab.numbers("disk"), [1, 2, 3]);
    lab.done(&["prune", "disk", "--keep-last", "1"]);
    lab.holds("disk", &[(3, &states[2])]);
}

#[test]
fn a_file_that_may_not_be_that_long_is_an_error_like_a_full_disk() {
    let (lab, states) = Lab::with_snapshots(2);
    lab.done(&["export", "disk@1", "--since", "@2", "-o", "back.delta"]);
    let before = lab.everything();
    for args in [
        &["rollback", "disk", "--to", "@1"][..],
        &["restore", "disk@1", "-o", "new.img"],
        &["restore", "disk@1", "-o", "disk.img", "--force"],
        &["apply", "back.delta", "--base", "disk.img", "--in-place"],
        &["apply", "back.delta", "--base", "disk.img", "-o", "new.img"],
    ] {
        let line = lab.limited("-f 64", args).failed(FAILED);
        assert!(line.contains("ulimit -f"), "{args:?}: {line}");
        lab.ensure_untouched(&before, &line);
    }
    lab.write("disk.img", &noise(5, 512 * KIB));
    let before = lab.everything();
    let line = lab.limited("-f 64", &["snapshot", "disk.img"]).failed(FAILED);
    assert!(line.contains("ulimit -f"), "{line}");
    lab.ensure_untouched(&before, &line);
    lab.write("disk.img", &states[1]);
    lab.done(&["rollback", "disk", "--to", "@1"]);
    assert!(lab.read("disk.img") == states[0]);
}

#[test]
fn a_path_that_is_no_text_is_a_uri_in_json_and_panics_nowhere() {
    use std::os::unix::ffi::OsStrExt;
    let (lab, states) = Lab::with_snapshots(2);
    lab.done(&["export", "disk@2", "--since", "@1", "-o", "two.delta"]);
    let odd = std::ffi::OsStr::from_bytes(b"odd-\xff.img");
    let run = |args: &[&str]| {
        let mut command = lab.command(args);
        Run::of(command.args(["--json", "-o"]).arg(odd)).done().json()
    };
    let want = format!("file://{}/odd-%FF.img", lab.at("").trim_end_matches('/'));
    for args in [
        &["restore", "disk@1"][..],
        &["export", "disk@2", "--force"],
        &["restore", "disk@1", "--force"],
        &["apply", "two.delta", "--base", "disk.img", "--force"],
    ] {
        // What apply begins from.
        lab.write("disk.img", &states[0]);
        assert_eq!(run(args)["output"], want, "{args:?}");
    }
    // An image is known by its path, whatever that is (C6).
    let odd_image = lab.path("").join(odd);
    Run::of(lab.command(&["snapshot", "--name", "odd", "--json"]).arg(&odd_image)).done();
    let text = String::from_utf8(lab.read(&lab.manifest("odd"))).unwrap();
    assert!(text.contains(&format!("\"{want}\"")), "{text}");
    let before = std::fs::read(&odd_image).unwrap();
    std::fs::write(&odd_image, vec![8; 50_000]).unwrap();
    lab.done(&["rollback", "odd", "--to", "@1"]);
    assert!(std::fs::read(&odd_image).unwrap() == before);
    Run::of(lab.command(&["relink", "disk"]).arg(&odd_image)).failed(FAILED);
}
