//! `imgsnap snapshot` of several images at once

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::bad_input::hold_open;
use crate::support::{
    BUSY, FAILED, INTERRUPTED, KIB, Lab, MIB, Run, Started, USAGE, change, disk, integer, noise,
    string, wait_until,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::io::Read;
use std::process::{Output, Stdio};

const IMAGES: [&str; 3] = ["c.img", "a.img", "b.img"];

/// A lab with three images of different lengths; gives what they are.
fn lab() -> (Lab, Vec<Vec<u8>>) {
    let lab = Lab::new();
    let states = write_all(&lab, 1);
    (lab, states)
}

fn write_all(lab: &Lab, seed: u64) -> Vec<Vec<u8>> {
    let states: Vec<_> = (0..3).map(|n| disk(seed + n, (300 * KIB) << (2 * n))).collect();
    IMAGES.iter().zip(&states).for_each(|(image, bytes)| lab.write(image, bytes));
    states
}

fn snapshot<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["snapshot"], &IMAGES[..], more].concat()
}

/// One object on each line.
#[track_caller]
fn objects(run: &Run) -> Vec<Value> {
    run.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn refs(objects: &[Value]) -> Vec<&str> {
    objects.iter().map(|object| string(object, "ref")).collect()
}

#[test]
fn several_at_once_give_the_same_as_one_by_one() {
    let (together, mut states) = lab();
    let (apart, _) = lab();
    for round in 1..=3 {
        if round > 1 {
            for (image, bytes) in IMAGES.iter().zip(&mut states) {
                change(bytes, round, 5);
                together.write(image, bytes);
                apart.write(image, bytes);
            }
        }
        let threads = ["1", "2", "16"][round as usize - 1];
        let run = together.run(&snapshot(&["--json", "--threads", threads])).done();
        let taken = objects(&run);
        assert_eq!(refs(&taken), ["c", "a", "b"].map(|name| format!("{name}@{round}")));
        for ((image, bytes), taken) in IMAGES.iter().zip(&states).zip(&taken) {
            let alone = apart.json(&["snapshot", image]);
            for field in ["kind", "image_bytes", "changed_blocks", "changed_bytes", "stored_bytes"]
            {
                assert_eq!(alone[field], taken[field], "{image} {field}");
            }
            together.restores(string(taken, "ref"), bytes);
            apart.restores(string(taken, "ref"), bytes);
        }
    }
    assert_eq!(together.json(&["verify"])["damaged"], json!([]));
}

#[test]
fn first_use_makes_the_repository_once() {
    let lab = Lab::bare();
    write_all(&lab, 1);
    // The first that is named cannot be opened.
    let run = lab.run(&snapshot(&["missing.img"]));
    assert_eq!(run.code, Some(FAILED));
    let made = run.err.lines().filter(|line| line.contains("created a repository")).count();
    assert_eq!((made, run.err.lines().count()), (1, 2), "{}", run.err);
    assert_eq!(lab.json(&["list"]).as_array().unwrap().len(), 3);
}

#[test]
fn without_an_image_that_opens_no_repository_is_made() {
    let lab = Lab::bare();
    lab.write("empty.img", b"");
    let before = lab.everything();
    let run = lab.run(&["snapshot", "missing.img", "empty.img"]);
    assert_eq!((run.code, run.text().as_str()), (Some(FAILED), ""));
    let lines: Vec<_> = run.err.lines().collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].starts_with("imgsnap: error: missing.img: cannot open image"), "{lines:?}");
    assert!(lines[1].starts_with("imgsnap: error: empty.img: empty.img is empty"), "{lines:?}");
    lab.ensure_untouched(&before, "no image");
}

#[test]
fn results_come_in_the_order_of_the_arguments_for_people_too() {
    let (lab, _) = lab();
    let text = lab.done(&snapshot(&["--label", "monday"]));
    let heads: Vec<_> = text.lines().filter(|line| !line.starts_with(' ')).collect();
    assert_eq!(heads, ["c", "a", "b"].map(|name| format!("{name}@1  a base  \"monday\"")));
    assert_eq!(text.lines().count(), 12, "{text}");
}

#[test]
fn more_than_are_worked_on_at_a_time_are_all_taken() {
    let lab = Lab::new();
    let names: Vec<String> = (0..13).map(|n| format!("disk-{n}.img")).collect();
    for (seed, name) in names.iter().enumerate() {
        lab.write(name, &disk(seed as u64, (20 + 100 * (seed * 7 % 13)) * KIB));
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for threads in ["1", "3", "16"] {
        let args = [&["snapshot", "--json", "--full", "--threads", threads], &names[..]].concat();
        let taken = objects(&lab.run(&args).done());
        let order: Vec<_> = taken.iter().map(|t| format!("{}.img", string(t, "name"))).collect();
        assert_eq!(order, names);
    }
    assert_eq!(lab.json(&["verify"])["damaged"], json!([]));
}

#[test]
fn one_that_fails_does_not_stop_the_others() {
    let (lab, states) = lab();
    std::fs::create_dir(lab.path("folder.img")).unwrap();
    let args = ["snapshot", "--json", "c.img", "gone.img", "a.img", "folder.img", "b.img"];
    let run = lab.run(&args);
    assert_eq!(run.code, Some(FAILED));
    let taken: Vec<_> =
        objects(&run).into_iter().filter(|one| one.get("error").is_none()).collect();
    assert_eq!(refs(&taken), ["c@1", "a@1", "b@1"]);
    let lines: Vec<_> = run.err.lines().collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    let said = "imgsnap: error: gone.img: cannot open image gone.img: No such file or directory";
    assert_eq!(lines[0], said);
    assert!(lines[1].starts_with("imgsnap: error: folder.img: "), "{lines:?}");
    for (name, bytes) in ["c@1", "a@1", "b@1"].iter().zip(&states) {
        lab.restores(name, bytes);
    }
    assert!(!lab.exists("repo/gone") && !lab.exists("repo/folder"));
}

#[test]
fn the_exit_code_is_that_of_the_first_failure() {
    let (lab, _) = lab();
    let _user = hold_open(&lab, "a.img");
    assert_eq!(lab.run(&["snapshot", "c.img", "a.img", "gone.img"]).code, Some(BUSY));
    assert_eq!(lab.run(&["snapshot", "c.img", "gone.img", "a.img"]).code, Some(FAILED));
    assert_eq!(integer(&lab.json(&["show", "c@2"]), "changed_blocks"), 0);
}

#[test]
fn what_is_of_one_image_is_refused_with_several() {
    let (lab, _) = lab();
    lab.done(&["snapshot", "c.img"]);
    std::fs::create_dir(lab.path("more")).unwrap();
    lab.write("more/c.raw", &disk(9, 64 * KIB));
    std::os::unix::fs::symlink(lab.path("c.img"), lab.path("link")).unwrap();
    let before = lab.everything();
    for (args, said) in [
        (&["c.img", "a.img", "--name", "x"][..], "--name applies to one image only"),
        (&["c.img", "a.img", "--parent", "@1"], "--parent applies to one image only"),
        (&["c.img", "a.img", "c.img"], "c.img is given twice"),
        (&["c.img", "a.img", "./c.img"], "c.img and ./c.img are the same image"),
        (&["a.img", "c.img", "link"], "c.img and link are the same image"),
        (&["more/c.raw", "c.img"], "the name of more/c.raw and of c.img would be \"c\""),
        (&["gone.img", "c.img", "gone.img"], "the name of gone.img and of gone.img would be"),
    ] {
        let run = lab.run(&[&["snapshot"], args].concat());
        assert_eq!(run.code, Some(USAGE), "{args:?}: {}", run.err);
        let message = run.misused();
        assert!(message.contains(said), "{args:?}: {message}");
        lab.ensure_untouched(&before, said);
    }
}

#[test]
fn options_are_of_each_image() {
    let (lab, states) = lab();
    lab.done(&snapshot(&[]));
    let taken = |more: &[&str]| {
        let more = [more, &["--json"]].concat();
        objects(&lab.run(&snapshot(&more)).done())
    };
    let all = |objects: &[Value], field: &str, wanted: Value| {
        objects.iter().for_each(|object| assert_eq!(object[field], wanted, "{object}"));
    };
    all(&taken(&["--skip-unchanged"]), "skipped", json!(true));
    all(&taken(&["--full-scan"]), "believed", json!(false));
    all(&taken(&["--differential"]), "parent_number", json!(1));
    all(&taken(&["--full", "--label", "x"]), "label", json!("x"));
    // A label that one of them has already is a failure of this one.
    lab.done(&["label", "a@4", "--remove"]);
    let run = lab.run(&snapshot(&["--label", "x"]));
    assert_eq!((run.code, run.err.lines().count()), (Some(FAILED), 2), "{}", run.err);
    assert!(run.text().starts_with("a@5  "), "{}", run.text());
    let before = lab.everything();
    let dry = taken(&["--dry-run", "--compression", "zstd:3", "--full"]);
    all(&dry, "dry_run", json!(true));
    lab.ensure_untouched(&before, "a dry run");
    for (name, bytes) in ["c@4", "a@5", "b@4"].iter().zip(&states) {
        lab.restores(name, bytes);
    }
}

#[test]
fn a_dry_run_makes_no_repository() {
    let lab = Lab::bare();
    write_all(&lab, 1);
    let line = lab.fails(FAILED, &snapshot(&["--dry-run"]));
    assert!(line.contains("is not a repository; choose one with --repo"), "{line}");
}

#[test]
fn a_reader_that_went_away_does_not_stop_the_snapshots() {
    let (lab, _) = lab();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let args = snapshot(&[]);
    let mut command = lab.command(&args);
    command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped());
    let child = crate::support::spawn(&mut command);
    let run = Run::ended(&command, child.wait_with_output().unwrap());
    assert_eq!((run.code, run.err.as_str()), (Some(FAILED), ""));
    assert_eq!(lab.json(&["list"]).as_array().unwrap().len(), 3);
}

#[test]
fn ctrl_c_stops_all_and_leaves_each_as_it_was() {
    let lab = Lab::new();
    // The first has a snapshot already. All take long enough to be met at work.
    lab.write("c.img", &disk(1, 64 * KIB));
    lab.done(&["snapshot", "c.img"]);
    for (seed, image) in IMAGES.iter().enumerate() {
        lab.write(image, &noise(seed as u64, 32 * MIB));
    }
    let before = lab.everything();
    for (signal, threads) in [(Signal::SIGINT, "1"), (Signal::SIGTERM, "2"), (Signal::SIGINT, "16")]
    {
        let args = snapshot(&["--compression", "zstd:19", "--threads", threads]);
        let mut command = lab.command(&args);
        let mut started = Started::new(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
        let at_work = threads.parse().unwrap();
        let is_temporary = |name: &String| name.ends_with(".tmp");
        let begun = |image: &&str| {
            let name = image.trim_end_matches(".img");
            lab.exists(&format!("repo/{name}")) && lab.stored(name).iter().any(is_temporary)
        };
        let have_begun = || IMAGES.iter().take(at_work).all(begun);
        assert!(wait_until(have_begun), "{threads}: not all have begun");
        kill(Pid::from_raw(started.child.id() as i32), signal).unwrap();
        let has_ended = || started.child.try_wait().unwrap().is_some();
        assert!(wait_until(has_ended), "it goes on");
        let mut stderr = Vec::new();
        started.child.stderr.take().unwrap().read_to_end(&mut stderr).unwrap();
        let status = started.child.wait().unwrap();
        let run = Run::ended(&command, Output { status, stdout: Vec::new(), stderr });
        assert_eq!(run.failed(INTERRUPTED), "interrupted");
        lab.ensure_untouched(&before, "an interrupted snapshot");
    }
}
