//! What is believed without reading, and how a belief that was wrong is found out: lists and times
//! that lie, the share that is looked at all the same, and what the configuration says of both.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::changed::{self, alter};
use crate::support::{
    BLOCK, FAILED, Lab, Run, integer, no_fork, noise, same, skipped, string, trusts_times,
};
use serde_json::{Value, json};
use std::fs::File;

/// Blocks of the image.
const COUNT: usize = 1024;

/// `disk.img` of 4 MiB, one snapshot of it, and an empty list.
fn lab() -> (Lab, Vec<u8>) {
    let (lab, bytes) = changed::lab();
    lab.write("empty", b"[]");
    (lab, bytes)
}

/// A snapshot by a list that names nothing.
fn trusting(lab: &Lab, more: &[&str]) -> Run {
    let args = ["snapshot", "disk.img", "--json", "--changed", "empty", "--since", "@latest"];
    lab.run(&[&args, more].concat()).done()
}

fn missed(taken: &Value) -> u64 {
    integer(&taken["hint"], "missed_blocks")
}

/// True if clones cannot be made where the lab is; otherwise the test says that it is skipped.
fn cannot_clone(lab: &Lab, test: &str) -> bool {
    lab.write("a", b"x");
    let _calm = no_fork();
    let from = File::open(lab.path("a")).unwrap();
    let to = File::create(lab.path("b")).unwrap();
    let cannot = imgsnap::tracking::clone_into(&from, &to).is_err();
    if !cannot {
        skipped(test, "the file system of the temporary folder can clone");
    }
    std::fs::remove_file(lab.path("a")).unwrap();
    std::fs::remove_file(lab.path("b")).unwrap();
    cannot
}

#[test]
fn a_change_that_a_list_does_not_name_is_found_within_the_cycle_and_told() {
    let (lab, mut bytes) = lab();
    let first = bytes.clone();
    alter(&lab, &mut bytes, &[100, 102], 2);
    // A quarter at a time: the second, third and fourth look at the third, fourth and first part.
    for number in [2, 3] {
        let run = trusting(&lab, &["--recheck", "25%"]);
        let taken = run.json();
        assert_eq!((run.err.as_str(), missed(&taken)), ("", 0), "{taken}");
        assert_eq!(integer(&taken["hint"], "recheck_cycle"), 4, "{taken}");
        assert_eq!(integer(&taken, "read_bytes"), bytes.len() as u64 / 4, "{taken}");
        lab.restores(&format!("disk@{number}"), &first);
    }
    let run = trusting(&lab, &["--recheck", "25%"]);
    let taken = run.json();
    assert_eq!((integer(&taken, "number"), missed(&taken)), (4, 2), "{taken}");
    assert_eq!(integer(&taken, "changed_blocks"), 2, "{taken}");
    let warning = "imgsnap: warning: disk@4: 2 blocks that should have been unchanged had changed (first \
                   at byte 409600); stored nevertheless; the next snapshot reads the whole image\n";
    assert_eq!(run.err, warning);
    lab.restores("disk@4", &bytes);
    let shown = lab.done(&["show", "disk@4"]);
    let found = "  found      by a list of changes since disk@3: 0 B may have changed\n  \
                 verified   1.00 MiB of what was reported unchanged, all of it within 4 \
                 snapshots; 2 blocks had changed nevertheless\n";
    assert!(shown.contains(found), "{shown}");
    assert_eq!(lab.json(&["verify"])["damaged"], json!([]));
}

#[test]
fn after_a_miss_the_next_snapshot_reads_all_and_says_why() {
    let reason = "the hint of disk@2 had missed changes";
    for more in [&[][..], &["--changed", "empty", "--since", "@2"], &["--recheck", "0"]] {
        let (lab, mut bytes) = lab();
        // More is missed than the share finds.
        alter(&lab, &mut bytes, &[520, 900], 2);
        let taken = trusting(&lab, &["--recheck", "25%"]).json();
        assert_eq!((missed(&taken), integer(&taken, "changed_blocks")), (1, 1), "{taken}");
        let args = [&["snapshot", "disk.img"], more].concat();
        let told = lab.json(&[&args[..], &["--dry-run"]].concat());
        let taken = lab.json(&args);
        for taken in [told, taken] {
            assert_eq!(
                (string(&taken, "full_scan_reason"), &taken["hint"]),
                (reason, &Value::Null)
            );
            assert_eq!(integer(&taken, "read_bytes"), bytes.len() as u64, "{taken}");
            assert_eq!(integer(&taken, "changed_blocks"), 1, "{taken}");
        }
        lab.restores("disk@3", &bytes);
        // From then on it is believed again.
        let taken = trusting(&lab, &["--recheck", "0"]).json();
        assert_eq!((string(&taken["hint"], "kind"), integer(&taken, "read_bytes")), ("list", 0));
        assert_eq!(taken["full_scan_reason"], Value::Null);
    }
}

#[test]
fn people_read_why_all_was_read() {
    let (lab, mut bytes) = lab();
    alter(&lab, &mut bytes, &[520], 2);
    trusting(&lab, &["--recheck", "25%"]);
    let text = lab.done(&["snapshot", "disk.img"]);
    let want =
        "  tracked         no   the whole image was read: the hint of disk@2 had missed changes";
    assert_eq!(text.lines().last(), Some(want), "{text}");
    let shown = lab.done(&["show", "disk@3"]);
    assert!(shown.contains("\n  found      by reading the whole image\n"), "{shown}");
}

#[test]
fn after_a_miss_the_proof_that_all_is_well_is_a_snapshot_though_nothing_changed() {
    let (lab, mut bytes) = lab();
    alter(&lab, &mut bytes, &[520], 2);
    assert_eq!(missed(&trusting(&lab, &["--recheck", "25%", "--skip-unchanged"]).json()), 1);
    let taken = lab.json(&["snapshot", "disk.img", "--skip-unchanged"]);
    assert_eq!((integer(&taken, "number"), &taken["skipped"]), (3, &json!(false)), "{taken}");
    assert_eq!(integer(&taken, "changed_blocks"), 0, "{taken}");
    assert_eq!(integer(&taken, "read_bytes"), bytes.len() as u64, "{taken}");
    // Once is enough.
    let taken = lab.json(&["snapshot", "disk.img", "--skip-unchanged"]);
    assert_eq!((integer(&taken, "number"), &taken["skipped"]), (3, &json!(true)), "{taken}");
    lab.holds("disk", &[(1, &noise(1, COUNT * BLOCK)), (2, &bytes), (3, &bytes)]);
}

#[test]
fn without_a_recheck_a_list_is_believed_for_ever() {
    let (lab, mut bytes) = lab();
    let first = bytes.clone();
    alter(&lab, &mut bytes, &[100], 2);
    for _ in 0..5 {
        let run = trusting(&lab, &["--recheck", "0"]);
        let taken = run.json();
        let hint = &taken["hint"];
        assert_eq!((run.err.as_str(), missed(&taken), integer(&taken, "read_bytes")), ("", 0, 0));
        assert_eq!((integer(hint, "recheck_blocks"), &hint["recheck_cycle"]), (0, &Value::Null));
    }
    lab.restores("disk@6", &first);
    // Whoever reads all of it finds it, and it is no miss of a hint.
    let taken = lab.json(&["snapshot", "disk.img", "--full-scan"]);
    assert_eq!((integer(&taken, "changed_blocks"), &taken["hint"]), (1, &Value::Null));
    lab.restores("disk@7", &bytes);
}

#[test]
fn a_recheck_of_all_finds_every_miss_at_once() {
    let (lab, mut bytes) = lab();
    alter(&lab, &mut bytes, &[0, 300, 301, COUNT - 1], 2);
    // A block that becomes zero, and one that the list does name.
    bytes[500 * BLOCK..][..BLOCK].fill(0);
    lab.write("disk.img", &bytes);
    lab.write("empty", format!("{} 1\n", 300 * BLOCK).as_bytes());
    let run = trusting(&lab, &["--recheck", "100%"]);
    let taken = run.json();
    assert_eq!((missed(&taken), integer(&taken, "changed_blocks")), (4, 5), "{taken}");
    assert_eq!(integer(&taken, "read_bytes"), bytes.len() as u64, "{taken}");
    assert_eq!(integer(&taken["hint"], "recheck_cycle"), 1, "{taken}");
    assert!(run.err.contains("4 blocks that should have been unchanged"), "{}", run.err);
    assert!(run.err.contains("(first at byte 0)"), "{}", run.err);
    lab.restores("disk@2", &bytes);
}

#[test]
fn what_lies_between_two_named_blocks_is_read_with_them_and_what_changed_there_is_a_miss() {
    let (lab, mut bytes) = lab();
    alter(&lab, &mut bytes, &[300, 302, 303], 2);
    let list = format!("{} 1\n{} 1", 300 * BLOCK, 303 * BLOCK);
    lab.write("empty", format!("{list}\n").as_bytes());
    let taken = trusting(&lab, &["--recheck", "0"]).json();
    assert_eq!(integer(&taken["hint"], "named_bytes"), 2 * BLOCK as u64, "{taken}");
    assert_eq!(integer(&taken, "read_bytes"), 4 * BLOCK as u64, "{taken}");
    assert_eq!((missed(&taken), integer(&taken, "changed_blocks")), (1, 3), "{taken}");
    lab.restores("disk@2", &bytes);
}

#[test]
fn what_is_skipped_as_unchanged_looks_at_another_part_each_time() {
    let (lab, mut bytes) = lab();
    alter(&lab, &mut bytes, &[100], 2);
    lab.write("list", b"[]");
    let args = ["snapshot", "disk.img", "--changed", "list", "--since", "@1"];
    let args = [&args[..], &["--recheck", "25%", "--skip-unchanged", "--json"]].concat();
    let found = (0..4).find_map(|_| {
        let taken = lab.run(&args).done().json();
        (taken["skipped"] == json!(false)).then_some(taken)
    });
    let taken = found.expect("after four parts all of it was looked at");
    assert_eq!(missed(&taken), 1, "{taken}");
    lab.restores("disk@2", &bytes);
}

#[test]
fn a_miss_is_not_forgotten_with_its_snapshot() {
    let (lab, mut bytes) = lab();
    alter(&lab, &mut bytes, &[100, 900], 2);
    lab.write("list", b"[]");
    let list = ["snapshot", "disk.img", "--changed", "list", "--since"];
    let taken = lab.json(&[&list[..], &["@1", "--recheck", "100%"]].concat());
    assert_eq!(missed(&taken), 2, "{taken}");
    lab.done(&["delete", "disk@2"]);
    let taken = lab.json(&[&list[..], &["@1", "--recheck", "0"]].concat());
    let why = "disk@2 is gone, and with it what its recheck found";
    assert_eq!(string(&taken, "full_scan_reason"), why);
    lab.restores("disk@3", &bytes);
    // Unchanged or not, it is known again afterwards: not all is read each time.
    lab.done(&["delete", "disk@3"]);
    let skipping = ["snapshot", "disk.img", "--skip-unchanged"];
    let why = "disk@3 is gone, and with it what its recheck found";
    assert_eq!(string(&lab.json(&skipping), "full_scan_reason"), why);
    let taken = lab.json(&skipping);
    assert_eq!((&taken["full_scan_reason"], &taken["skipped"]), (&Value::Null, &json!(true)));
}

#[test]
fn times_that_lie_are_found_out_by_the_recheck_too() {
    let (lab, mut bytes) = lab();
    if !trusts_times(&lab.path("disk.img")) {
        let why = "times are not believed on this file system";
        return skipped("tracking::times_that_lie_are_found_out", why);
    }
    alter(&lab, &mut bytes, &[100], 2);
    // What the image is called now is noted as what it was at the first snapshot.
    let first = string(&lab.json(&["show", "disk@1"]), "id").to_owned();
    let second = string(&lab.json(&["snapshot", "disk.img"]), "id").to_owned();
    let head = String::from_utf8(lab.read(&lab.known_of("disk"))).unwrap();
    assert!(head.contains(&second), "{head}");
    lab.write(&lab.known_of("disk"), head.replace(&second, &first).as_bytes());
    // The third looks at the fourth quarter, the fourth at the first.
    let run = lab.run(&["snapshot", "disk.img", "--recheck", "25%", "--json"]).done();
    let taken = run.json();
    assert_eq!((&taken["believed"], missed(&taken)), (&json!(true), 0), "{taken}");
    assert_eq!(integer(&taken, "changed_blocks"), 0, "{taken}");
    assert_eq!(integer(&taken, "read_bytes"), bytes.len() as u64 / 4, "{taken}");
    let shown = lab.done(&["show", "disk@3"]);
    assert!(shown.contains("\n  found      its file was not written to since disk@1\n"), "{shown}");
    let run = lab.run(&["snapshot", "disk.img", "--recheck", "25%", "--json"]).done();
    let taken = run.json();
    assert_eq!((string(&taken["hint"], "kind"), missed(&taken)), ("times", 1), "{taken}");
    assert!(
        run.err.starts_with("imgsnap: warning: disk@4: 1 block that should have"),
        "{}",
        run.err
    );
    lab.restores("disk@4", &bytes);
    let taken = lab.json(&["snapshot", "disk.img"]);
    assert_eq!(string(&taken, "full_scan_reason"), "the hint of disk@4 had missed changes");
}

#[test]
fn an_image_that_is_not_read_says_so() {
    let (lab, _) = lab();
    if !trusts_times(&lab.path("disk.img")) {
        let why = "times are not believed on this file system";
        return skipped("tracking::an_image_that_is_not_read_says_so", why);
    }
    let text = lab.done(&["snapshot", "disk.img"]);
    let want = "  tracked        0 B   the file was not written to since the parent; 44.0 KiB of the rest \
                was also read";
    assert_eq!(text.lines().last(), Some(want), "{text}");
    let text = lab.done(&["snapshot", "disk.img", "--recheck", "0"]);
    let want = "  tracked        0 B   the file was not written to since the parent";
    assert_eq!(text.lines().last(), Some(want), "{text}");
    assert!(text.contains("\n  image     4.00 MiB   not read\n"), "{text}");
}

#[test]
fn reflink_tracking_is_refused_where_nothing_can_be_cloned_and_the_others_go_on() {
    let (lab, mut bytes) = lab();
    if !cannot_clone(&lab, "tracking::reflink_tracking_is_refused") {
        return;
    }
    alter(&lab, &mut bytes, &[100], 2);
    lab.write("new.img", &bytes);
    for (image, more) in [
        ("disk.img", &[][..]),
        ("disk.img", &["--dry-run"]),
        ("disk.img", &["--full"]),
        ("disk.img", &["--full-scan"]),
        ("new.img", &[]),
    ] {
        let line = lab.fails(FAILED, &[&["snapshot", image, "--track", "reflink"], more].concat());
        assert!(line.contains(image) && line.contains("clone"), "{line}");
        assert!(line.ends_with("keep the image on XFS or btrfs, or use --track auto"), "{line}");
    }
    assert!(!lab.exists("repo/new"), "an image without snapshots stayed behind");
    for how in ["auto", "none"] {
        let run = lab.run(&["snapshot", "disk.img", "--track", how, "--json"]).done();
        let taken = run.json();
        assert_eq!((run.err.as_str(), &taken["clone_seconds"]), ("", &Value::Null), "{taken}");
        assert_eq!((&taken["in_use"], &taken["in_use_by"]), (&json!(false), &Value::Null));
        lab.restores(string(&taken, "ref"), &bytes);
    }
    assert!(!lab.exists(".imgsnap"), "clones beside the image");
}

#[test]
fn what_cannot_be_tracked_is_noted_for_who_wants_to_know() {
    let (lab, mut bytes) = lab();
    if !cannot_clone(&lab, "tracking::what_cannot_be_tracked_is_noted") {
        return;
    }
    alter(&lab, &mut bytes, &[100], 2);
    let run = lab.run(&["snapshot", "disk.img", "--verbose"]).done();
    assert_eq!(run.err.matches("imgsnap: not tracked: ").count(), 1, "{}", run.err);
    let run = lab.run(&["snapshot", "disk.img", "--verbose", "--track", "none"]).done();
    assert!(!run.err.contains("not tracked"), "{}", run.err);
}

/// How many blocks are looked at, by a list that names nothing.
fn share(lab: &Lab, more: &[&str]) -> u64 {
    let run = trusting(lab, &[&["--dry-run"], more].concat());
    assert_eq!(run.err, "");
    integer(&run.json()["hint"], "recheck_blocks")
}

#[test]
fn how_much_is_looked_at_is_what_was_typed_else_of_the_image_else_of_all() {
    let (lab, _) = lab();
    assert_eq!(share(&lab, &[]), 11);
    lab.configure("[snapshot]\nrecheck = 50\n");
    assert_eq!(share(&lab, &[]), 512);
    lab.configure("[images.other.snapshot]\nrecheck = 75\n");
    assert_eq!(share(&lab, &[]), 512);
    // The table of an image says one thing, the one for all still says the other.
    lab.configure("[images.disk.snapshot]\nmax_stall = \"2s\"\n");
    assert_eq!(share(&lab, &[]), 512);
    lab.configure("recheck = 2.5\n");
    assert_eq!(share(&lab, &[]), 26);
    for (typed, blocks) in [("10%", 103), ("10", 103), ("0.05 %", 1), ("0", 0), ("100", 1024)] {
        assert_eq!(share(&lab, &["--recheck", typed]), blocks, "{typed}");
    }
}

#[test]
fn how_an_image_is_tracked_is_what_was_typed_else_of_the_image_else_of_all() {
    let (lab, mut bytes) = lab();
    if !cannot_clone(&lab, "tracking::how_an_image_is_tracked") {
        return;
    }
    alter(&lab, &mut bytes, &[100], 2);
    lab.copy("disk.img", "web.img");
    lab.configure("[snapshot]\ntrack = \"reflink\"\n[images.web.snapshot]\nrecheck = 0\n");
    for image in ["disk.img", "web.img"] {
        let line = lab.fails(FAILED, &["snapshot", image]);
        assert!(line.contains("clone"), "{line}");
        lab.done(&["snapshot", image, "--dry-run", "--track", "none"]);
    }
    lab.configure("track = \"auto\"\n");
    lab.done(&["snapshot", "web.img"]);
    lab.fails(FAILED, &["snapshot", "disk.img"]);
    let line = lab.fails(FAILED, &["snapshot", "web.img", "--track", "reflink"]);
    assert!(line.contains("web.img"), "{line}");
}

#[test]
fn a_slip_in_how_snapshots_are_taken_is_warned_of_once_and_costs_no_snapshot() {
    for (text, why) in [
        ("[snapshot]\ntrak = \"auto\"\n", "[snapshot]: trak: unknown key"),
        ("[snapshot]\ntrack = \"on\"\n", "[snapshot]: track: unknown tracking method \"on\""),
        (
            "[snapshot]\nrecheck = \"1%\"\n",
            "[snapshot]: recheck: invalid percentage: expected 0 to 100",
        ),
        (
            "[snapshot]\nrecheck = 101\n",
            "[snapshot]: recheck: invalid percentage: expected 0 to 100",
        ),
        ("[snapshot]\nmax_stall = 3\n", "[snapshot]: max_stall: expected a string"),
        (
            "[images.disk.snapshot]\nmax_stall = \"soon\"\n",
            "[images.\"disk\".snapshot]: max_stall: invalid duration \"soon\"",
        ),
        ("[images.disk]\nsnapshot = 7\n", "[images.\"disk\".snapshot]: expected a table"),
        ("[images.disk]\nsnapshots = 7\n", "images.\"disk\": snapshots: unknown key"),
    ] {
        let (lab, mut bytes) = lab();
        alter(&lab, &mut bytes, &[100], 2);
        let place = lab.configure(text);
        for more in [&["--dry-run"][..], &[]] {
            let run = lab.run(&[&["snapshot", "disk.img"], more].concat()).done();
            let warning = format!("imgsnap: warning: {place}: {why}");
            assert!(run.err.starts_with(&warning), "{text}: {}", run.err);
            assert!(run.err.ends_with("; until then, the default settings apply\n"), "{}", run.err);
            assert_eq!(run.err.lines().count(), 1, "{text}: {}", run.err);
        }
        lab.restores("disk@2", &bytes);
        // What is typed needs no table.
        let taken = trusting(&lab, &["--recheck", "50%"]).json();
        assert_eq!(integer(&taken["hint"], "recheck_blocks"), 512);
        // Rules of `prune` hold, unless the slip is in the table of the image itself.
        let is_of_prune = text.contains("snapshots");
        let code = if is_of_prune { FAILED } else { 0 };
        assert_eq!(lab.run(&["prune", "disk", "--keep-last", "1"]).code, Some(code), "{text}");
    }
}

#[test]
fn a_rollback_goes_on_whatever_the_configuration_says_of_snapshots() {
    for (text, warnings) in [("track = \"reflink\"", 0), ("trak = \"auto\"", 1), ("recheck = 0", 0)]
    {
        for more in
            [&["--dry-run"][..], &["--no-save", "--dry-run"], &[], &["--no-save"], &["--prove"]]
        {
            let (lab, mut bytes) = lab();
            let first = bytes.clone();
            alter(&lab, &mut bytes, &[100], 2);
            lab.configure(&format!("[snapshot]\n{text}\n"));
            let run = lab.run(&[&["rollback", "disk", "--to", "@1"], more].concat()).done();
            let said: Vec<&str> = run.err.lines().collect();
            assert_eq!(said.len(), warnings, "{text} {more:?}: {said:?}");
            let is_dry = more.contains(&"--dry-run");
            same(&lab.read("disk.img"), if is_dry { &bytes } else { &first }, "the image");
        }
    }
}

#[test]
fn a_slip_in_the_rules_of_prune_is_none_of_snapshots() {
    let (lab, _) = lab();
    lab.configure("[prune]\nkeep_lats = 7\n[snapshot]\nrecheck = 50\n");
    assert_eq!(share(&lab, &[]), 512);
    let line = lab.fails(FAILED, &["prune", "disk"]);
    assert!(line.contains("keep_lats: unknown key"), "{line}");
}

#[test]
fn what_cannot_be_typed_says_what_can() {
    let (lab, _) = lab();
    let before = lab.everything();
    for (option, typed, named) in [
        ("--track", "on", "use auto, reflink or none"),
        ("--track", "", "use auto, reflink or none"),
        ("--recheck", "101", "write it like 1% or 0.5%"),
        ("--recheck", "-1", "-1"),
        ("--recheck", "1 MiB", "write it like 1% or 0.5%"),
        ("--recheck", "nan", "write it like 1% or 0.5%"),
        ("--max-stall", "3", "write it like 500ms, 30s, 5min"),
        ("--max-stall", "soon", "write it like 500ms, 30s, 5min"),
    ] {
        for verb in [&["snapshot", "disk.img"][..], &["watch", "disk.img", "--every", "1h"]] {
            let said = lab.run(&[verb, &[option, typed]].concat()).misused();
            assert!(said.contains(named), "{option} {typed}: {said}");
        }
    }
    lab.ensure_untouched(&before, "wrong usage");
}

#[test]
fn untrack_of_an_image_without_clones_says_so() {
    let (lab, bytes) = lab();
    if !cannot_clone(&lab, "tracking::untrack_of_an_image_without_clones") {
        return;
    }
    assert_eq!(lab.done(&["untrack", "disk"]), "\"disk\" has no clones\n");
    let removed = lab.json(&["untrack", "disk"]);
    assert_eq!(removed, json!({"name": "disk", "clones": 0, "freed_bytes": 0}));
    let stats = lab.done(&["stats", "disk"]);
    assert!(stats.lines().any(|line| line == "  clone       none"), "{stats}");
    let stats = &lab.json(&["stats", "disk"])[0];
    assert_eq!(integer(stats, "clone_bytes"), 0, "{stats}");
    assert_eq!((&stats["orphaned_clones"], &stats["foreign_clones"]), (&json!([]), &json!([])));
    assert_eq!(integer(&lab.json(&["list"])[0], "clone_bytes"), 0);
    assert!(!lab.done(&["list"]).contains("clone"), "nothing is said of what does not exist");
    lab.holds("disk", &[(1, &bytes)]);
}
