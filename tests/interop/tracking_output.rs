//! What the command line says of clones and of images that are in use, on XFS.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStdout, Command};

const BUSY: i32 = 4;

const XFS: (&str, &[&str]) = ("mkfs.xfs", &["-q", "-m", "reflink=1"]);

/// `mnt/disk.img` of 8 MiB, and one snapshot of it.
fn begin(lab: &Lab) -> String {
    let image = lab.path("mnt/disk.img");
    make(&image, 8 * MIB);
    put(&image, 0, &noise(1, 8 * MIB));
    assert_eq!(lab.snapshot(&image), 1);
    image
}

fn json(lab: &Lab, args: &[&str]) -> Value {
    lab.run(&[args, &["--json"]].concat()).done().json()
}

#[track_caller]
fn text(lab: &Lab, args: &[&str]) -> String {
    String::from_utf8(lab.run(args).done().out).unwrap()
}

/// The row of a verb's answer that begins with a word.
#[track_caller]
fn row(text: &str, noun: &str) -> String {
    let row = text.lines().find(|line| line.starts_with(&format!("  {noun} ")));
    let row = row.unwrap_or_else(|| panic!("no {noun} in {text}"));
    row.trim_start().trim_start_matches(noun).trim_start().to_owned()
}

fn clones(lab: &Lab) -> Vec<String> {
    let folder = lab.path("mnt/.imgsnap");
    if std::fs::metadata(&folder).is_ok() { names_in(&folder) } else { Vec::new() }
}

/// Waits until the clone alone has that many bytes: XFS takes a while to let go of those of the clone
/// that was removed before it.
#[track_caller]
fn settle(lab: &Lab, own_bytes: u64) {
    let settled = || json(lab, &["stats", "disk"])[0]["clone_bytes"] == json!(own_bytes);
    assert!(wait_until(settled), "{}", text(lab, &["stats", "disk"]));
}

/// A process that has a file open for writing.
pub fn hold_open(file: &str) -> Started {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("exec sleep 600 >>'{file}'")]);
    let user = Started::spawn(shell);
    let comm = format!("/proc/{}/comm", user.id());
    let sleeps = || std::fs::read_to_string(&comm).is_ok_and(|name| name == "sleep\n");
    assert!(wait_until(sleeps), "sleep was not started");
    user
}

#[test]
fn a_snapshot_list_show_and_stats_tell_of_the_clone() {
    let lab = Lab::new();
    let (_device, _mount) = need!(mounted(&lab, XFS.0, XFS.1, 400));
    let image = begin(&lab);
    put(&image, 2 * MIB, &noise(2, MIB));
    let told = text(&lab, &["snapshot", &image]);
    let tracked = row(&told, "tracked");
    assert!(tracked.starts_with("1.00 MiB   may have changed, according to two clones"), "{told}");
    let shown = json(&lab, &["show", "disk@2"]);
    let hint = &shown["hint"];
    assert_eq!((&hint["kind"], &hint["named_bytes"]), (&json!("extents"), &json!(MIB)), "{shown}");
    assert_eq!(hint["since"], json(&lab, &["show", "disk@1"])["id"]);
    assert!(shown["clone_seconds"].as_f64().unwrap() > 0.0, "{shown}");
    assert_eq!(shown["clone_bytes"], json!(0), "it shares all with the image: {shown}");
    let found = row(&text(&lab, &["show", "disk@2"]), "found");
    assert_eq!(found, "by comparing clones of it and of disk@1: 1.00 MiB may have changed");
    let proved = row(&text(&lab, &["show", "disk@2"]), "verified");
    assert!(
        proved.ends_with(" of what was reported unchanged, all of it within 98 snapshots"),
        "{proved}"
    );
    // What is written to from now on, the clone alone has.
    put(&image, 4 * MIB, &noise(3, 2 * MIB));
    settle(&lab, 2 * MIB);
    let listed = json(&lab, &["list", "disk"]);
    let of_clones: Vec<&Value> =
        listed.as_array().unwrap().iter().map(|s| &s["clone_bytes"]).collect();
    assert_eq!(of_clones, [&json!(0), &json!(2 * MIB)], "only the newest has a clone: {listed}");
    let list = text(&lab, &["list"]);
    assert!(
        list.lines().next().unwrap().ends_with(" stored, 2.00 MiB used by its clone"),
        "{list}"
    );
    let shown = text(&lab, &["show", "disk@2"]);
    assert_eq!(row(&shown, "clone"), "2.00 MiB beside the image, used to find changes");
    assert!(!text(&lab, &["show", "disk@1"]).contains("\n  clone "));
    let stats = text(&lab, &["stats", "disk"]);
    assert_eq!(row(&stats, "clone"), "2.00 MiB beside the image, used to find changes");
    let stats = &json(&lab, &["stats", "disk"])[0];
    assert_eq!(stats["clone_bytes"], json!(2 * MIB), "{stats}");
    assert_eq!((&stats["orphaned_clones"], &stats["foreign_clones"]), (&json!([]), &json!([])));
    assert_eq!(clones(&lab), [json(&lab, &["show", "disk@2"])["id"].as_str().unwrap()]);
}

#[test]
fn untrack_removes_the_clone_and_the_next_snapshot_reads_all_and_says_why() {
    let lab = Lab::new();
    let (_device, _mount) = need!(mounted(&lab, XFS.0, XFS.1, 400));
    let image = begin(&lab);
    for number in [1, 3] {
        put(&image, MIB, &noise(number, MIB));
        settle(&lab, MIB);
        if number == 1 {
            let told = text(&lab, &["untrack", "disk"]);
            let want = "removed 1 clone of \"disk\", 1.00 MiB freed; the next snapshot reads \
                        the whole image\n";
            assert_eq!(told, want);
        } else {
            let removed = json(&lab, &["untrack", "disk"]);
            assert_eq!(removed, json!({"name": "disk", "clones": 1, "freed_bytes": MIB}));
        }
        assert_eq!(clones(&lab), [""; 0]);
        assert!(std::fs::metadata(lab.path("mnt/.imgsnap")).is_err(), "an empty folder stayed");
        let taken = json(&lab, &["snapshot", &image]);
        let before = taken["number"].as_u64().unwrap() - 1;
        assert_eq!(taken["full_scan_reason"], format!("the clone of disk@{before} is missing"));
        assert_eq!(
            (&taken["read_bytes"], &taken["changed_blocks"]),
            (&json!(8 * MIB), &json!(256))
        );
        assert_eq!(clones(&lab).len(), 1, "it is tracked again");
        let told = text(&lab, &["snapshot", &image, "--full-scan"]);
        assert_eq!(row(&told, "tracked"), "no   the whole image was read: as requested");
    }
    same(&image, &lab.restore("disk@latest"));
    lab.verify(5);
}

#[test]
fn an_image_that_is_in_use_is_taken_as_it_is_and_that_is_told() {
    let lab = Lab::new();
    let (_device, _mount) = need!(mounted(&lab, XFS.0, XFS.1, 400));
    let image = begin(&lab);
    put(&image, MIB, &noise(2, MIB));
    let user = hold_open(&image);
    let who = format!("sleep (process {})", user.id());
    let taken = json(&lab, &["snapshot", &image]);
    assert_eq!((&taken["in_use"], &taken["in_use_by"]), (&json!(true), &json!(who)), "{taken}");
    assert!(taken["clone_seconds"].as_f64().unwrap() > 0.0, "{taken}");
    assert_eq!((&taken["believed"], &taken["hint"]["kind"]), (&json!(false), &json!("extents")));
    same(&image, &lab.restore("disk@2"));
    let told = text(&lab, &["snapshot", &image]);
    let in_use = row(&told, "in use");
    assert!(in_use.starts_with(&format!("by {who}, whose writes were held up for ")), "{told}");
    assert!(in_use.ends_with("; crash-consistent"), "{told}");
    let state = row(&text(&lab, &["show", "disk@3"]), "state");
    assert_eq!(state, "taken while in use: crash-consistent, as after a power failure");
    assert!(!text(&lab, &["show", "disk@1"]).contains("\n  state "), "it was not in use");
    // Without clones it cannot be taken.
    lab.run(&["snapshot", &image, "--track", "none"]).fails(BUSY).says(&who);
    drop(user);
    let taken = json(&lab, &["snapshot", &image]);
    assert_eq!((&taken["in_use"], &taken["in_use_by"]), (&json!(false), &Value::Null), "{taken}");
    lab.verify(4);
}

#[test]
fn nobody_is_held_up_longer_than_was_typed_else_than_the_configuration_says() {
    let lab = Lab::new();
    let (_device, _mount) = need!(mounted(&lab, XFS.0, XFS.1, 400));
    let image = begin(&lab);
    let user = hold_open(&image);
    let refused = |args: &[&str]| {
        let run = lab.run(&[&["snapshot", &image], args].concat()).fails(BUSY);
        let who = format!("is in use by sleep (process {}) and has ", user.id());
        run.says(&who).says(", or shut the virtual machine down");
        assert_eq!(lab.numbers("disk").len(), 1, "it was stored");
        assert_eq!(clones(&lab).len(), 1, "a clone stayed behind");
    };
    refused(&["--max-stall", "0s"]);
    refused(&["--max-stall", "0s", "--dry-run"]);
    let plain = crate::config::text_in(&lab.repo);
    let configure = |more: &str| {
        let text = format!("{plain}\n[snapshot]\nmax_stall = \"0s\"\n{more}");
        crate::config::change(&lab.repo, |_| text);
    };
    configure("");
    refused(&[]);
    lab.run(&["snapshot", &image, "--max-stall", "10s"]).done();
    let own = "[images.disk.snapshot]\nmax_stall = \"5s\"\n";
    configure(own);
    lab.run(&["snapshot", &image]).done();
    // Whom nobody uses, nobody has to wait for.
    configure("");
    drop(user);
    lab.run(&["snapshot", &image]).done();
    lab.verify(4);
}

#[test]
fn clones_that_nobody_needs_and_those_of_others_are_told_apart() {
    let lab = Lab::new();
    let (_device, _mount) = need!(mounted(&lab, XFS.0, XFS.1, 400));
    let image = begin(&lab);
    // Another repository, and a copy of our clone that no snapshot names.
    let other = lab.path("other");
    lab.run(&["--repo", &other, "snapshot", &image]).done();
    let ours = json(&lab, &["show", "disk@1"])["id"].as_str().unwrap().to_owned();
    let folder = lab.path("mnt/.imgsnap");
    let orphan = format!("{folder}/00000000-0000-4000-8000-000000000000");
    let args = ["--reflink=always", "--preserve=xattr,mode", &format!("{folder}/{ours}"), &orphan];
    need!(try_tool("cp", &args));
    assert_eq!(clones(&lab).len(), 3);
    let run = lab.run(&["list", "--verbose"]).done();
    let warning = format!(
        "imgsnap: warning: {orphan} is a clone that no snapshot needs and occupies 0 B; the next snapshot of \
         \"disk\" or \"imgsnap untrack disk\" removes it\n"
    );
    assert!(run.err.contains(&warning), "{}", run.err);
    assert!(
        run.err.contains("imgsnap: 1 clone of other repositories beside \"disk\", "),
        "{}",
        run.err
    );
    let stats = &json(&lab, &["stats", "disk"])[0];
    assert_eq!(stats["orphaned_clones"], json!([{"path": orphan, "bytes": 0}]), "{stats}");
    assert_eq!(stats["foreign_clones"].as_array().unwrap().len(), 1, "{stats}");
    let others = row(&text(&lab, &["stats", "disk"]), "others");
    assert!(others.starts_with("1 clone of other repositories beside it, "), "{others}");
    // The next snapshot clears away what is ours, and nothing else.
    put(&image, MIB, &noise(2, MIB));
    let run = lab.run(&["snapshot", &image]).done();
    assert_eq!(run.err, "");
    assert_eq!(clones(&lab).len(), 2);
    need!(try_tool("cp", &["--reflink=always", &image, &orphan]));
    // Without our mark it is not ours.
    let removed = json(&lab, &["untrack", "disk"]);
    assert_eq!(removed["clones"], json!(1), "{removed}");
    assert_eq!(clones(&lab).len(), 2);
    assert_eq!(json(&lab, &["--repo", &other, "untrack", "disk"])["clones"], json!(1));
}

#[test]
fn a_device_is_not_cloned_and_that_is_told_if_it_was_asked_for() {
    let lab = Lab::new();
    let disk = need!(Loop::of_noise(&lab.path("backing"), 4 * MIB, 1));
    let device = disk.device.as_str();
    let snapshot = |how: &str| lab.run(&["snapshot", device, "--name", "disk", "--track", how]);
    let run = snapshot("reflink").fails(1);
    let want = format!("{device} is a device: it cannot be cloned; use --track auto\n");
    assert!(run.err.contains(&want), "{}", run.err);
    assert!(!lab.has_repository());
    for how in ["auto", "none"] {
        snapshot(how).done();
    }
    lab.verify(2);
}

/// A watch, and what it prints.
struct Watch {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn a_watch_of_an_image_in_use_says_by_whom() {
    let lab = Lab::new();
    let (_device, _mount) = need!(mounted(&lab, XFS.0, XFS.1, 400));
    let image = begin(&lab);
    put(&image, MIB, &noise(2, MIB));
    let user = hold_open(&image);
    let who = format!("sleep (process {})", user.id());
    for (number, flag) in [(2, "--json"), (3, "--verbose")] {
        let mut command = lab.command(&["watch", &image, "--every", "1h", flag]);
        let mut child = spawn(&mut command).unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut watch = Watch { child, lines };
        let line = watch.lines.next().unwrap().unwrap();
        if number == 2 {
            let event: Value = serde_json::from_str(&line).unwrap();
            assert_eq!((&event["event"], &event["in_use_by"]), (&json!("snapshot"), &json!(who)));
            assert!(event["clone_seconds"].as_f64().unwrap() > 0.0, "{event}");
            assert_eq!(event["snapshot"]["in_use"], json!(true), "{event}");
        } else {
            assert!(line.contains("disk@3  1.00 MiB changed, "), "{line}");
            assert!(line.contains(", in use; next in "), "{line}");
        }
        let id = nix::unistd::Pid::from_raw(watch.child.id() as i32);
        nix::sys::signal::kill(id, Signal::SIGTERM).unwrap();
        assert_eq!(watch.child.wait().unwrap().code(), Some(0));
        assert_eq!(lab.numbers("disk").len(), number);
        put(&image, 3 * MIB, &noise(4, MIB));
    }
    drop(user);
    lab.verify(3);
}
