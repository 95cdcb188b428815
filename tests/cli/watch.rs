//! `imgsnap watch`: snapshots on an interval, and what it says of each turn.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::support::{
    BLOCK, DONE, FAILED, Lab, MIB, Started, USAGE, change, disk, integer, no_fork, noise, same,
    string, wait_until,
};
use crate::watcher::{Watcher, after_time, is_of};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs::File;
use std::process::Stdio;

#[test]
fn the_first_snapshot_is_taken_at_once_and_each_turn_has_its_line() {
    let lab = Lab::bare();
    let mut bytes = disk(1, MIB);
    lab.write("disk.img", &bytes);
    let watch = Watcher::start(&lab, &["disk.img", "--every", "1s"]);
    let first = watch.line(0, |line| line.contains("disk@1 "));
    let text = after_time(&first);
    assert!(text.starts_with("disk@1  ") && text.contains(" data, "), "{first}");
    assert!(text.contains(" stored in ") && text.contains("; next in "), "{first}");
    assert!(!text.contains("after the previous one"), "{first}");
    let unchanged = watch.line(1, |line| line.contains("unchanged"));
    assert!(after_time(&unchanged).starts_with("disk@1  unchanged, checked in "), "{unchanged}");
    assert!(unchanged.contains("; next in "), "{unchanged}");
    assert_eq!(lab.deltas("disk").len(), 1, "what is unchanged is not stored");
    change(&mut bytes, 2, 3);
    lab.write("disk.img", &bytes);
    let second = watch.line(2, |line| line.contains("disk@2 "));
    assert!(after_time(&second).starts_with("disk@2  12.0 KiB changed, "), "{second}");
    assert!(second.contains(" after the previous one; next in "), "{second}");
    lab.restores("disk@2", &bytes);
    let ended = watch.stop(Signal::SIGTERM);
    assert_eq!(ended.code, Some(DONE), "{:?}", ended.err);
    let said: Vec<&str> = ended.err.iter().map(String::as_str).collect();
    assert!(said[0].starts_with("imgsnap: created a repository in "), "{said:?}");
    assert_eq!(said[1], "imgsnap: watching 1 image, every 1s");
    assert_eq!(*said.last().unwrap(), "imgsnap: stopped");
    lab.holds("disk", &[(1, &disk(1, MIB)), (2, &bytes)]);
}

#[test]
fn of_an_image_that_has_snapshots_the_first_turn_goes_on_from_them() {
    let (lab, states) = Lab::with_snapshots(2);
    let watch = Watcher::start(&lab, &["disk.img", "--every", "1h", "--json", "--quiet"]);
    let (_, event) = watch.event(0, |_| true);
    assert!(is_of(&event, "disk", "unchanged"), "{event}");
    assert_eq!(integer(&event["snapshot"], "number"), 2);
    // The state that could be restored before was that of the second snapshot.
    assert!(event["rpo_seconds"].as_f64().unwrap() > 0.0, "{event}");
    assert!(event["next_in_seconds"].as_f64().unwrap() > 3000.0, "{event}");
    let ended = watch.stop(Signal::SIGINT);
    assert_eq!((ended.code, ended.out.len(), ended.err), (Some(DONE), 1, vec![]));
    lab.holds("disk", &[(1, &states[0]), (2, &states[1])]);
}

/// The names that programs rely on.
const KEYS: [&str; 16] = [
    "age_seconds",
    "clone_seconds",
    "dropped",
    "error",
    "event",
    "failures",
    "full_scan_reason",
    "image",
    "in_use_by",
    "name",
    "next_in_seconds",
    "post_error",
    "rpo_seconds",
    "seconds",
    "snapshot",
    "time",
];

/// An image that is away for now: a link that leads nowhere yet.
fn absent(lab: &Lab, name: &str) {
    std::os::unix::fs::symlink(format!("target-of-{name}"), lab.path(name)).unwrap();
}

#[test]
fn each_turn_is_one_object_whose_names_are_these_and_whose_numbers_make_sense() {
    let lab = Lab::new();
    let mut bytes = disk(1, MIB);
    lab.write("disk.img", &bytes);
    let missing = lab.run(&["watch", "missing.img", "--every", "1h"]).failed(FAILED);
    assert_eq!(missing, "cannot open missing.img: No such file or directory");
    absent(&lab, "missing.img");
    let args = ["disk.img", "missing.img", "--every", "1s", "--json"];
    let watch = Watcher::start(&lab, &args);
    let (at, first) = watch.event(0, |e| is_of(e, "disk", "snapshot"));
    let (at, same) = watch.event(at, |e| is_of(e, "disk", "unchanged"));
    change(&mut bytes, 2, 3);
    lab.write("disk.img", &bytes);
    let (_, second) = watch.event(at, |e| is_of(e, "disk", "snapshot"));
    watch.event(0, |e| is_of(e, "missing", "failed") && integer(e, "failures") == 2);
    let events = watch.events();
    let ended = watch.stop(Signal::SIGTERM);
    assert_eq!(ended.code, Some(DONE));
    for event in &events {
        let mut keys: Vec<&str> = event.as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        assert_eq!(keys, KEYS, "{event}");
        assert!(string(event, "time").parse::<jiff::Timestamp>().is_ok(), "{event}");
        let [seconds, next] = ["seconds", "next_in_seconds"].map(|n| event[n].as_f64().unwrap());
        assert!(seconds >= 0.0 && (0.0..=1.0).contains(&next), "{event}");
        let is_failure = event["event"] == "failed";
        assert_eq!(integer(event, "failures") > 0, is_failure, "{event}");
        assert_eq!(
            (event["error"].is_string(), event["snapshot"].is_null()),
            (is_failure, is_failure)
        );
        assert_eq!(event["dropped"], Value::Null, "there are no rules: {event}");
        assert_eq!(event["in_use_by"], Value::Null, "{event}");
        if event["name"] == "missing" {
            assert_eq!(string(event, "image"), "missing.img");
            assert_eq!(
                (&event["age_seconds"], &event["rpo_seconds"]),
                (&Value::Null, &Value::Null)
            );
        } else if !is_failure {
            // What can be restored is no older than the turn that just ended.
            let age = event["age_seconds"].as_f64().unwrap();
            assert!((0.0..=seconds + 0.5).contains(&age), "{event}");
        }
    }
    assert_eq!(first["rpo_seconds"], Value::Null, "{first}");
    for later in [&same, &second] {
        let [age, rpo] = ["age_seconds", "rpo_seconds"].map(|name| later[name].as_f64().unwrap());
        assert!(rpo > age, "{later}");
    }
    let failures = events.iter().filter(|e| e["name"] == "missing");
    let failures: Vec<u64> = failures.map(|e| integer(e, "failures")).collect();
    assert_eq!(failures, (1..=failures.len() as u64).collect::<Vec<_>>());
    // A snapshot is what it is everywhere.
    let shown = lab.json(&["show", "disk@2"]);
    for (name, value) in second["snapshot"].as_object().unwrap() {
        assert_eq!(&shown[name], value, "{name}");
    }
    lab.holds("disk", &[(1, &disk(1, MIB)), (2, &bytes)]);
    assert!(!lab.exists("repo/missing"), "a folder for what could not be opened");
}

#[test]
fn an_image_that_is_not_there_is_tried_again_later_and_later_and_stops_nobody() {
    let lab = Lab::new();
    let bytes = disk(1, MIB);
    lab.write("disk.img", &bytes);
    absent(&lab, "gone.img");
    let watch = Watcher::start(&lab, &["gone.img", "disk.img", "--every", "1h", "--json"]);
    watch.event(0, |e| is_of(e, "disk", "snapshot"));
    for (failures, least, most) in [(1, 4.0, 5.0), (2, 9.0, 10.0)] {
        let is_it = |e: &Value| is_of(e, "gone", "failed") && integer(e, "failures") == failures;
        let (_, event) = watch.event(0, is_it);
        let next = event["next_in_seconds"].as_f64().unwrap();
        assert!(least < next && next <= most, "{event}");
        let error = string(&event, "error");
        assert_eq!(error, "cannot open image gone.img: No such file or directory");
    }
    assert_eq!(watch.stop(Signal::SIGTERM).code, Some(DONE));
    lab.holds("disk", &[(1, &bytes)]);
}

#[test]
fn an_image_that_appears_is_taken_and_each_failure_was_told_in_one_line() {
    let lab = Lab::new();
    let bytes = disk(1, MIB);
    lab.write("disk.img", &bytes);
    absent(&lab, "late.img");
    let watch = Watcher::start(&lab, &["late.img", "disk.img", "--every", "1s"]);
    let line = watch.complaint(|line| line.contains("late: "));
    let want = "  late: cannot open image late.img: No such file or directory; retrying in ";
    assert!(line.starts_with("imgsnap: error: 20") && line.contains(want), "{line}");
    let line = watch.complaint(|line| line.contains("late (failed 2 times in a row): "));
    // Not later than the interval.
    let again = line.rsplit_once("; retrying in ").unwrap().1;
    assert!(again == "1.00 s" || again.starts_with("0.") || again.ends_with(" ms"), "{line}");
    // The other one had its turns.
    watch.line(0, |line| line.contains("disk@1  unchanged"));
    lab.write("late.tmp", &bytes);
    lab.rename("late.tmp", "late.img");
    let taken = watch.line(0, |line| line.contains("late@1"));
    assert!(after_time(&taken).starts_with("late@1  "), "{taken}");
    assert_eq!(watch.stop(Signal::SIGTERM).code, Some(DONE));
    lab.holds("late", &[(1, &bytes)]);
    lab.holds("disk", &[(1, &bytes)]);
}

#[test]
fn a_repository_that_another_writer_holds_is_tried_again() {
    let (lab, states) = Lab::with_snapshots(1);
    let mut bytes = states[0].clone();
    change(&mut bytes, 5, 3);
    lab.write("disk.img", &bytes);
    let lock = {
        let _calm = no_fork();
        File::options().write(true).open(lab.path("repo/disk/write.lock")).unwrap()
    };
    lock.lock().unwrap();
    let watch = Watcher::start(&lab, &["disk.img", "--every", "1s", "--json"]);
    let (_, event) = watch.event(0, |e| is_of(e, "disk", "failed"));
    assert!(
        string(&event, "error").starts_with("another imgsnap is working on \"disk\""),
        "{event}"
    );
    watch.event(0, |e| is_of(e, "disk", "failed") && integer(e, "failures") == 2);
    lock.unlock().unwrap();
    let (_, event) = watch.event(0, |e| is_of(e, "disk", "snapshot"));
    assert_eq!((integer(&event["snapshot"], "number"), integer(&event, "failures")), (2, 0));
    assert_eq!(watch.stop(Signal::SIGINT).code, Some(DONE));
    lab.holds("disk", &[(1, &states[0]), (2, &bytes)]);
}

#[test]
fn a_signal_during_a_snapshot_leaves_nothing_half_done() {
    let lab = Lab::new();
    let small = disk(1, MIB);
    lab.write("disk.img", &small);
    lab.done(&["snapshot", "disk.img"]);
    // Takes long enough to be met at work; the other one has no snapshot yet.
    let large = noise(2, 32 * MIB);
    lab.write("disk.img", &large);
    lab.write("new.img", &large);
    let before = lab.everything();
    for (signal, threads) in [(Signal::SIGTERM, "2"), (Signal::SIGINT, "1")] {
        let args = ["disk.img", "new.img", "--every", "1h", "--json"];
        let slow = ["--compression", "zstd:19", "--threads", threads];
        let watch = Watcher::start(&lab, &[&args[..], &slow].concat());
        let has_begun = |name: &str| {
            let is_temporary = |file: &String| file.ends_with(".tmp");
            lab.exists(&format!("repo/{name}")) && lab.stored(name).iter().any(is_temporary)
        };
        let names = &["disk", "new"][..threads.parse().unwrap()];
        assert!(wait_until(|| names.iter().all(|name| has_begun(name))), "not all have begun");
        let ended = watch.stop(signal);
        assert_eq!((ended.code, ended.out), (Some(DONE), vec![]), "{:?}", ended.err);
        let said = ["imgsnap: watching 2 images, every 1h", "imgsnap: stopped"];
        assert_eq!(ended.err, said);
        lab.ensure_untouched(&before, "a watch that was stopped");
    }
    lab.holds("disk", &[(1, &small)]);
    assert!(!lab.exists("repo/new"), "an image without snapshots stayed behind");
}

/// Changes the image and waits for the snapshot of it, that many times. A change may meet a turn at
/// work: then that one fails, and the next one takes it.
fn grow(
    lab: &Lab,
    watch: &Watcher,
    bytes: &mut [u8],
    numbers: std::ops::RangeInclusive<u64>,
) -> Value {
    let mut last = Value::Null;
    for number in numbers {
        change(bytes, number, 3);
        lab.write("disk.img", bytes);
        let is_it =
            |e: &Value| is_of(e, "disk", "snapshot") && integer(&e["snapshot"], "number") == number;
        (_, last) = watch.event(0, is_it);
        // The state, not an earlier one that was met on the way.
        same(&restored(lab, number), bytes, "what was watched");
    }
    last
}

fn restored(lab: &Lab, number: u64) -> Vec<u8> {
    lab.run(&["restore", &format!("disk@{number}"), "-o", "-"]).done().out
}

#[test]
fn what_no_rule_that_was_typed_keeps_is_dropped_after_each_snapshot() {
    let lab = Lab::new();
    let mut bytes = disk(1, MIB);
    lab.configure("[prune]\nkeep_last = 1\n");
    let args = ["disk.img", "--every", "1s", "--json", "--keep-last", "2"];
    lab.write("disk.img", &bytes);
    let watch = Watcher::start(&lab, &args);
    let (_, first) = watch.event(0, |e| is_of(e, "disk", "snapshot"));
    assert_eq!(first["dropped"], json!(0), "{first}");
    let last = grow(&lab, &watch, &mut bytes, 2..=4);
    assert_eq!(last["dropped"], json!(1), "{last}");
    let (_, same) = watch.event(0, |e| is_of(e, "disk", "unchanged"));
    assert_eq!(same["dropped"], Value::Null, "without a new snapshot nothing is dropped: {same}");
    let ended = watch.stop(Signal::SIGTERM);
    assert_eq!(ended.code, Some(DONE));
    assert_eq!(lab.numbers("disk"), [3, 4]);
    lab.restores("disk@4", &bytes);
    assert_eq!(lab.json(&["verify"])["damaged"], json!([]));
    lab.is_tidy("disk");
}

#[test]
fn without_typed_rules_those_in_the_configuration_hold_for_each_image() {
    let lab = Lab::new();
    let mut bytes = disk(1, MIB);
    lab.configure("[images.disk.prune]\nkeep_last = 2\n");
    lab.write("disk.img", &bytes);
    lab.write("web.img", &bytes);
    let watch = Watcher::start(&lab, &["disk.img", "web.img", "--every", "1s", "--json"]);
    let (_, web) = watch.event(0, |e| is_of(e, "web", "snapshot"));
    assert_eq!(web["dropped"], Value::Null, "{web}");
    watch.event(0, |e| is_of(e, "disk", "snapshot"));
    grow(&lab, &watch, &mut bytes, 2..=3);
    assert_eq!(watch.stop(Signal::SIGTERM).code, Some(DONE));
    assert_eq!((lab.numbers("disk"), lab.numbers("web")), (vec![2, 3], vec![1]));
    lab.restores("disk@3", &bytes);
    assert_eq!(lab.json(&["verify"])["damaged"], json!([]));
}

#[test]
fn a_slip_in_the_rules_drops_nothing_and_costs_no_snapshot() {
    let lab = Lab::new();
    let bytes = disk(1, MIB);
    lab.configure("[prune]\nkeep_lats = 1\n");
    lab.write("disk.img", &bytes);
    let watch = Watcher::start(&lab, &["disk.img", "--every", "1h", "--json"]);
    let (_, event) = watch.event(0, |e| is_of(e, "disk", "snapshot"));
    assert_eq!((&event["dropped"], &event["error"]), (&Value::Null, &Value::Null), "{event}");
    let ended = watch.stop(Signal::SIGTERM);
    let warnings = ended.err.iter().filter(|line| line.starts_with("imgsnap: warning: "));
    let warnings: Vec<&String> = warnings.collect();
    assert_eq!((ended.code, warnings.len()), (Some(DONE), 1), "{:?}", ended.err);
    assert!(warnings[0].starts_with("imgsnap: warning: disk: cannot prune: "), "{warnings:?}");
    assert!(warnings[0].contains("keep_lats: unknown key"), "{warnings:?}");
    lab.holds("disk", &[(1, &bytes)]);
}

#[test]
fn how_snapshots_are_taken_is_as_it_was_typed() {
    let (lab, states) = Lab::with_snapshots(1);
    let mut bytes = states[0].clone();
    bytes.truncate(100 * BLOCK);
    lab.write("disk.img", &bytes);
    lab.done(&["snapshot", "disk.img", "--compression", "none"]);
    bytes.fill(b'x');
    lab.write("disk.img", &bytes);
    let args =
        ["disk.img", "--every", "1h", "--json", "--compression", "zstd:3", "--track", "none"];
    let watch = Watcher::start(&lab, &args);
    let (_, event) = watch.event(0, |e| is_of(e, "disk", "snapshot"));
    assert_eq!(watch.stop(Signal::SIGTERM).code, Some(DONE));
    let snapshot = &event["snapshot"];
    assert_eq!(integer(snapshot, "changed_blocks"), 100, "{event}");
    assert!(integer(snapshot, "stored_bytes") < 20_000, "it was not compressed: {event}");
    lab.restores("disk@3", &bytes);
}

#[test]
fn that_nobody_reads_what_is_printed_does_not_stop_the_snapshots() {
    let lab = Lab::new();
    let bytes = disk(1, MIB);
    lab.write("disk.img", &bytes);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = lab.command(&["watch", "disk.img", "--every", "1s", "--quiet"]);
    let mut started = Started::new(command.stdout(writer).stderr(Stdio::null()));
    let count = || if lab.exists("repo/disk") { lab.deltas("disk").len() } else { 0 };
    assert!(wait_until(|| count() == 1), "no first snapshot");
    let mut later = bytes.clone();
    change(&mut later, 2, 3);
    lab.write("disk.img", &later);
    assert!(wait_until(|| count() == 2), "no second snapshot");
    kill(Pid::from_raw(started.child.id() as i32), Signal::SIGTERM).unwrap();
    let has_ended = || started.child.try_wait().unwrap().is_some();
    assert!(wait_until(has_ended), "it goes on");
    lab.holds("disk", &[(1, &bytes), (2, &later)]);
}

#[test]
fn what_cannot_be_watched_is_refused_and_makes_no_repository() {
    let lab = Lab::bare();
    lab.write("disk.img", &disk(1, MIB));
    lab.write("web.img", &disk(2, MIB));
    std::fs::create_dir(lab.path("more")).unwrap();
    lab.write("more/disk.raw", &disk(3, MIB));
    let before = lab.everything();
    for (args, named) in [
        (&["watch"][..], "<IMAGE>"),
        (&["watch", "--every", "1h"], "<IMAGE>"),
        (&["watch", "disk.img"], "--every"),
        (&["watch", "disk.img", "--every", "0s"], "at least one second"),
        (&["watch", "disk.img", "--every", "999ms"], "at least one second"),
        (&["watch", "disk.img", "--every", "x"], "write it like 500ms, 30s, 5min"),
        (&["watch", "disk.img", "--every", "5"], "write it like 500ms, 30s, 5min"),
        (&["watch", "disk.img", "--every", "-5m"], "-5"),
        (&["watch", "disk.img", "--every", "1h", "--keep-last", "0"], "keeps nothing"),
        (&["watch", "disk.img", "disk.img", "--every", "1h"], "disk.img is given twice"),
        (&["watch", "disk.img", "./disk.img", "--every", "1h"], "are the same image"),
        (&["watch", "disk.img", "more/disk.raw", "--every", "1h"], "would be \"disk\""),
    ] {
        let run = lab.run(args);
        assert_eq!(run.code, Some(USAGE), "{args:?}: {}", run.err);
        let said = run.misused();
        assert!(said.contains(named), "{args:?}: \"{named}\" is not in: {said}");
        lab.ensure_untouched(&before, &args.join(" "));
    }
    // What is no repository is not made one.
    let line = lab.fails(FAILED, &["--repo", "more", "watch", "disk.img", "--every", "1h"]);
    assert!(line.contains("more is not a repository"), "{line}");
}
