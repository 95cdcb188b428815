//! `imgsnap list` and `imgsnap show`, and how snapshots are named

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::snapshot::NAMES;
use crate::support::{DAMAGE, FAILED, Lab, Run, integer, string};
use jiff::tz::{Offset, TimeZone};
use jiff::{Span, Timestamp};
use serde_json::{Value, json};

#[test]
fn json_is_an_array_of_what_snapshot_printed() {
    let lab = Lab::new();
    let mut taken = Vec::new();
    for number in 1..4u8 {
        lab.write("disk.img", &[number; 9000]);
        taken.push(lab.json(&["snapshot", "disk.img"]));
    }
    let list = lab.json(&["list"]);
    let list = list.as_array().unwrap();
    assert_eq!(list.len(), 3);
    for (listed, taken) in list.iter().zip(&taken) {
        for name in NAMES.into_iter().chain(["ref", "parent_number", "label", "time"]) {
            assert!(listed.get(name).is_some(), "{name} is missing: {listed}");
            assert_eq!(listed[name], taken[name], "{name}");
        }
        for name in [
            "number",
            "image_bytes",
            "read_bytes",
            "changed_blocks",
            "changed_bytes",
            "stored_bytes",
        ] {
            integer(listed, name);
        }
    }
    let heads: Vec<&Value> = list.iter().map(|s| &s["head"]).collect();
    assert_eq!(heads, [&json!(false), &json!(false), &json!(true)]);
}

#[test]
fn people_see_an_aligned_table() {
    let (lab, _) = Lab::with_snapshots(2);
    lab.done(&["label", "disk@1", "first"]);
    let text = lab.done(&["list"]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert!(
        lines[0].starts_with(&format!("disk  {}  2 snapshots, ", lab.at("disk.img"))),
        "{text}"
    );
    assert!(lines[0].ends_with(" KiB stored"), "{text}");
    let words: Vec<&str> = lines[1].split_whitespace().collect();
    assert_eq!(words, ["#", "TIME", "AGE", "FROM", "IMAGE", "CHANGED", "STORED", "RATIO", "LABEL"]);
    for (line, from, last) in [(lines[2], "base", "first"), (lines[3], "@1", "(head)")] {
        for (heading, cell) in [("FROM", from), ("LABEL", last)] {
            let at = lines[1].find(heading).unwrap();
            assert!(line[at..].starts_with(cell), "{heading} is not over {cell}:\n{text}");
        }
        // A column of numbers ends where its heading ends.
        let end = lines[1].find("IMAGE").unwrap() + "IMAGE".len();
        assert!(line[..end].ends_with("512 KiB"), "{text}");
        assert!(line.contains(" s ago  "), "{text}");
    }
}

#[test]
fn all_images_are_listed_by_name_or_one() {
    let lab = Lab::new();
    lab.grow_history("web.img", 1);
    lab.grow_history("db.img", 2);
    let names = |list: &Value| -> Vec<String> {
        list.as_array().unwrap().iter().map(|s| string(s, "ref").to_owned()).collect()
    };
    assert_eq!(names(&lab.json(&["list"])), ["db@1", "db@2", "web@1"]);
    assert_eq!(names(&lab.json(&["list", "web"])), ["web@1"]);
    let text = lab.done(&["list"]);
    let db = text.find("db  ").unwrap();
    assert!(text.find("\n\nweb  ").unwrap() > db, "{text}");
}

#[test]
fn a_damaged_image_does_not_hide_the_others() {
    let lab = Lab::new();
    lab.grow_history("db.img", 1);
    lab.grow_history("web.img", 1);
    lab.flip(&lab.manifest("db"), 300);
    let run = lab.run(&["list", "--json"]);
    assert_eq!(run.code, Some(DAMAGE), "{}", run.err);
    assert_eq!(run.json().as_array().unwrap().len(), 1);
    assert_eq!(string(&run.json()[0], "ref"), "web@1");
    assert!(
        run.err.starts_with("imgsnap: error: ") && run.err.contains("imgsnap repair db"),
        "{}",
        run.err
    );
    // Alone it is an error.
    let line = lab.fails(DAMAGE, &["list", "db"]);
    assert!(line.contains("the manifest is damaged; run \"imgsnap repair db\""), "{line}");
}

#[test]
fn a_damaged_image_that_is_the_only_one_is_no_empty_repository() {
    let (lab, _) = Lab::with_snapshots(1);
    lab.flip(&lab.manifest("disk"), 300);
    let line = lab.fails(DAMAGE, &["list"]);
    assert!(line.contains("imgsnap repair disk"), "{line}");
}

#[test]
fn show_tells_all_that_is_known() {
    let (lab, _) = Lab::with_snapshots(3);
    lab.done(&["label", "disk@2", "middle"]);
    let shown = lab.json(&["show", "disk@2"]);
    let listed = &lab.json(&["list"])[1];
    for (name, value) in listed.as_object().unwrap() {
        assert_eq!(&shown[name], value, "{name}");
    }
    assert_eq!(shown["chain"], json!([2, 1]));
    assert_eq!(shown["children"], json!([3]));
    assert_eq!(string(&shown, "digest"), "xxh3");
    let sizes: u64 = [1, 2].iter().map(|n| lab.read(&lab.delta("disk", *n)).len() as u64).sum();
    assert_eq!(integer(&shown, "chain_bytes"), sizes);
    assert!(
        integer(&shown, "frames") >= 1 && integer(&shown, "frame_bytes") >= 3 * 4096,
        "{shown}"
    );
    let text = lab.done(&["show", "disk@2"]);
    assert!(text.starts_with("disk@2\n  label      middle\n  time       "), "{text}");
    for line in [
        "  parent     disk@1",
        "  children   disk@3",
        "  head       no",
        "  image      512 KiB (524,288 bytes)",
        "  changed    12.0 KiB in 3 blocks of 4.00 KiB (3 stored, 0 became zero)",
    ] {
        assert!(text.lines().any(|l| l == line), "no \"{line}\" in:\n{text}");
    }
    let id = format!("  id         {}", string(&shown, "id"));
    assert!(text.lines().any(|l| l == id), "{text}");
}

#[test]
fn show_of_a_base_says_that_it_is_one() {
    let (lab, _) = Lab::with_snapshots(1);
    let text = lab.done(&["show", "disk@1"]);
    for line in [
        "  label      none",
        "  parent     none: this is a base",
        "  children   none",
        "  head       yes: the live image last equalled this snapshot",
    ] {
        assert!(text.lines().any(|l| l == line), "no \"{line}\" in:\n{text}");
    }
}

/// Which snapshot a reference means.
#[track_caller]
fn meant(lab: &Lab, reference: &str) -> u64 {
    integer(&lab.json(&["show", reference]), "number")
}

#[test]
fn a_number_latest_head_and_a_label_name_a_snapshot() {
    let (lab, _) = Lab::with_snapshots(3);
    lab.done(&["label", "disk@2", "pre-upgrade"]);
    lab.done(&["rollback", "disk", "--to", "disk@1"]);
    for (reference, number) in [
        ("disk@1", 1),
        ("disk@3", 3),
        ("disk@latest", 3),
        ("disk@head", 1),
        ("disk@pre-upgrade", 2),
        ("disk@0002", 2),
    ] {
        assert_eq!(meant(&lab, reference), number, "{reference}");
    }
    for (reference, said) in [
        ("disk@0", "there is no snapshot disk@0"),
        ("disk@4", "there is no snapshot disk@4"),
        ("disk@pre", "no snapshot of \"disk\" has the label \"pre\""),
        ("disk@Latest", "no snapshot of \"disk\" has the label \"Latest\""),
    ] {
        let line = lab.fails(FAILED, &["show", reference]);
        assert!(line.starts_with(said), "{reference}: {line}");
        assert!(line.ends_with("\"imgsnap list disk\" lists its snapshots"), "{line}");
    }
}

#[test]
fn head_is_unknown_once_its_snapshot_is_deleted() {
    let (lab, _) = Lab::with_snapshots(2);
    assert_eq!(meant(&lab, "disk@head"), 2);
    lab.done(&["delete", "disk@2"]);
    let line = lab.fails(FAILED, &["show", "disk@head"]);
    assert!(
        line.starts_with("it is not known which snapshot the live image of \"disk\" equals"),
        "{line}"
    );
}

#[test]
fn a_time_names_the_newest_snapshot_at_or_before_it() {
    let (lab, _) = Lab::with_snapshots(3);
    let list = lab.json(&["list"]);
    let times: Vec<Timestamp> = (0..3).map(|n| string(&list[n], "time").parse().unwrap()).collect();
    for (number, time) in (1..).zip(&times) {
        assert_eq!(meant(&lab, &format!("disk@{time}")), number, "{time}");
        let later = *time + Span::new().nanoseconds(1);
        assert_eq!(meant(&lab, &format!("disk@{later}")), number, "{later}");
    }
    let earlier = times[1] - Span::new().nanoseconds(1);
    assert_eq!(meant(&lab, &format!("disk@{earlier}")), 1);
    let before_all = times[0] - Span::new().nanoseconds(1);
    let line = lab.fails(FAILED, &["show", &format!("disk@{before_all}")]);
    assert!(line.contains("\"disk\" has no snapshot at or before"), "{line}");
    assert_eq!(meant(&lab, "disk@2999-01-01"), 3);
    lab.fails(FAILED, &["show", "disk@1999-12-31"]);
}

#[test]
fn what_list_shows_can_be_typed() {
    let (lab, _) = Lab::with_snapshots(1);
    let text = lab.done(&["list"]);
    let row = text.lines().nth(2).unwrap();
    let mut words = row.split_whitespace().skip(1);
    let (day, time) = (words.next().unwrap(), words.next().unwrap());
    assert_eq!(time.len(), 8, "{row}");
    for reference in [
        format!("disk@{day}"),
        format!("disk@{day} {time}"),
        format!("disk@{day}T{time}"),
        format!("disk@{day}T{time}Z"),
        format!("disk@{day}T{time}+00:00"),
        format!("disk@{day}T{}", &time[..5]),
        format!("disk@{day} {}", &time[..5]),
    ] {
        assert_eq!(meant(&lab, &reference), 1, "{reference}");
    }
}

#[test]
fn a_time_without_offset_is_local() {
    let (lab, _) = Lab::with_snapshots(1);
    let taken: Timestamp = string(&lab.json(&["list"])[0], "time").parse().unwrap();
    let east = TimeZone::fixed(Offset::constant(5));
    let show = |time: String| {
        let mut command = lab.command(&["show", &format!("disk@{time}")]);
        Run::of(command.env("TZ", "EAST-5"))
    };
    let civil = |zone: &TimeZone, seconds: i64| {
        let at = taken + Span::new().seconds(seconds);
        at.to_zoned(zone.clone()).strftime("%Y-%m-%dT%H:%M:%S").to_string()
    };
    show(civil(&east, 0)).done();
    show(civil(&east, -1)).failed(FAILED);
    show(civil(&TimeZone::UTC, 0)).failed(FAILED);
    show(format!("{}Z", civil(&TimeZone::UTC, 0))).done();
    show(format!("{}+05:00", civil(&east, 0))).done();
    // The day is the local one.
    let day = |days| (taken.to_zoned(east.clone()).date() + Span::new().days(days)).to_string();
    show(day(0)).done();
    show(day(-1)).failed(FAILED);
}

#[test]
fn the_live_file_may_be_gone() {
    let (lab, states) = Lab::with_snapshots(2);
    lab.remove("disk.img");
    assert_eq!(lab.json(&["list"]).as_array().unwrap().len(), 2);
    lab.restores("disk@1", &states[0]);
}

#[test]
fn reading_changes_nothing() {
    let (lab, _) = Lab::with_snapshots(2);
    let before = lab.everything();
    for args in [
        &["list"][..],
        &["list", "disk", "--json"],
        &["show", "disk@1"],
        &["diff", "disk@1", "disk@2"],
        &["diff", "disk@1", "disk.img"],
        &["verify"],
        &["verify", "--quick"],
        &["restore", "disk@2", "-o", "-"],
    ] {
        lab.run(args).done();
        lab.ensure_untouched(&before, &args.join(" "));
    }
}
