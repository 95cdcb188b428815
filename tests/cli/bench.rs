//! `imgsnap bench`

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::support::{
    FAILED, INTERRUPTED, Lab, MIB, Run, Started, integer, skipped, string, wait_until,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::process::{Output, Stdio};

/// As in the table, and in JSON.
const WORKS: [(&str, &str); 8] = [
    ("base snapshot", "base"),
    ("unchanged snapshot", "unchanged"),
    ("scan of changes", "scan"),
    ("incremental snapshot", "incremental"),
    ("restore", "restore"),
    ("verify", "verify"),
    ("scattered reads", "range"),
    ("rollback", "rollback"),
];

/// The quickest run that there is; everything that it makes is made in `scratch`.
const QUICK: [&str; 7] = ["bench", "--size", "16M", "--runs", "1", "--dir", "scratch"];

/// A lab with an empty folder for the scratch folders.
fn lab() -> Lab {
    let lab = Lab::bare();
    std::fs::create_dir(lab.path("scratch")).unwrap();
    lab
}

fn quick<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&QUICK[..], more].concat()
}

#[track_caller]
fn ensure_tidy(lab: &Lab) {
    let left: Vec<_> = std::fs::read_dir(lab.path("scratch")).unwrap().flatten().collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    assert!(!lab.exists("repo"), "the user's repository is none of its business");
}

/// The rows of a point.
fn rows(value: &Value, point: usize) -> &Vec<Value> {
    value["points"][point]["rows"].as_array().unwrap()
}

#[test]
fn help_is_exactly_this() {
    insta::assert_snapshot!(Lab::bare().done(&["bench", "-h"]), @r#"
    Benchmark each operation against the limits of this machine

    Usage: imgsnap bench [OPTIONS]

    Options:
          --size <SIZE>                Size of the image to create, at least 16M [default: 4G]
          --block-size <SIZE>          Block size, a power of two from 4K to 1M [default: 4K]
          --change <PERCENT>           Share of the image that changes between two snapshots [default:
                                       1%]
          --pattern <PATTERN>          Pattern of changed blocks [default: random] [possible values:
                                       random, clustered, vm]
          --compressible <PERCENT>     Approximate reduction of the created image by LZ4 [default: 50%]
          --compression <COMPRESSION>  Compression: lz4, zstd[:LEVEL] or none [default: lz4]
          --dir <DIR>                  Folder in which to create the scratch folder [default: the folder
                                       for temporary files]
          --image <FILE>               Use a copy of this image instead
          --runs <N>                   Number of runs of each operation and of its ceiling [default: 3]
          --cold                       Also measure with a cold page cache, reading from the device
          --sweep <WHAT>               Repeat the benchmark, varying this setting [possible values:
                                       block-size, change, threads, chain]
          --chain <N>                  Number of deltas after the base, including the measured snapshot
                                       [default: 1]
          --export-markdown <FILE>     Also write the result to a Markdown file
          --plot <FILE.svg>            Also plot the result to an SVG file
      -h, --help                       Print help (see more with '--help')

    Global options:
      -r, --repo <DIR|URL>  Repository [default: IMGSNAP_REPO, or else the user's data folder]
          --json            Print results and errors as JSON, one object a line
      -q, --quiet           Print warnings and errors only; commands that show something still print it
      -v, --verbose         Print each step

    Examples:
      imgsnap bench --size 8G
          measure every verb against the limits of this machine
      imgsnap bench --plot bench.svg
          and draw them
    "#);
}

#[test]
fn a_bad_value_is_wrong_usage_and_one_line_says_why() {
    let lab = lab();
    let before = lab.everything();
    // What is typed, and what the first line of the answer must name.
    for (args, named) in [
        (&["--size", "1M"][..], "invalid value '1M' for '--size <SIZE>': must be at least 16M"),
        (&["--size", "16777217"], "must be a multiple of 4K"),
        (&["--size", "big"], "write it like 4096, 64K, 10M or 1G"),
        (&["--block-size", "5000"], "not a power of two from 4K to 1M"),
        (&["--change", "0.01"], "\"0.01\" has no percent sign; write it like 1%"),
        (&["--change", "1"], "\"1\" has no percent sign; write it like 1%"),
        (&["--change", "one%"], "invalid percentage \"one%\"; write it like 1%"),
        (&["--change=-1%"], "invalid percentage \"-1%\""),
        (&["--change", "0%"], "must be more than 0%"),
        (&["--change", "101%"], "invalid percentage: expected 0 to 100"),
        (&["--compressible", "0.5"], "\"0.5\" has no percent sign; write it like 1%"),
        (&["--compressible", "100.5%"], "invalid percentage: expected 0 to 100"),
        (&["--pattern", "spiral"], "invalid value 'spiral' for '--pattern <PATTERN>'"),
        (&["--compression", "gzip"], "unknown compression \"gzip\""),
        (&["--compression", "zstd:99"], "zstd:99"),
        (&["--runs", "0"], "invalid value '0' for '--runs <N>'"),
        (&["--runs", "101"], "invalid number \"101\": expected 1 to 100"),
        (&["--runs", "some"], "invalid number \"some\": expected 1 to 100"),
        (&["--chain", "0"], "invalid number \"0\": expected 1 to 1000"),
        (&["--chain", "1001"], "invalid number \"1001\": expected 1 to 1000"),
        (&["--threads", "0"], "invalid number \"0\": expected 1 to 16"),
        (&["--sweep", "sizes"], "invalid value 'sizes' for '--sweep <WHAT>'"),
        (&["--sweep", "block-size", "--block-size", "4K"], "already varies --block-size"),
        (&["--sweep", "change", "--change", "1%"], "already varies --change"),
        (&["--sweep", "chain", "--chain", "2"], "already varies --chain"),
        (&["--image", "x", "--size", "16M"], "'--size <SIZE>'"),
        (&["--image", "x", "--compressible", "1%"], "'--compressible <PERCENT>'"),
        (&["--plot", "plot.png"], "only SVG is supported: the file name must end with .svg"),
        (&["--plot", "svg"], "only SVG is supported: the file name must end with .svg"),
        (&["--plot"], "'--plot <FILE.svg>'"),
        (&["disk.img"], "disk.img"),
    ] {
        let said = lab.run(&[&["bench", "--dir", "scratch"], args].concat()).misused();
        let line = said.lines().next().unwrap();
        assert!(line.starts_with("imgsnap: error: "), "{args:?}: {said}");
        assert!(line.contains(named), "{args:?}: \"{named}\" is not in: {line}");
        assert!(said.contains("--help"), "{args:?}: {said}");
        lab.ensure_untouched(&before, &args.join(" "));
    }
}

#[test]
fn a_file_that_could_not_be_written_is_refused_before_the_run() {
    let lab = lab();
    lab.write("file", b"mine");
    std::fs::create_dir(lab.path("folder.svg")).unwrap();
    for (option, path, named) in [
        ("--export-markdown", "nowhere/a.md", "cannot write nowhere/a.md: No such file"),
        ("--export-markdown", "file/a.md", "Not a directory"),
        ("--export-markdown", "scratch", "scratch is not a regular file"),
        ("--plot", "nowhere/a.svg", "cannot write nowhere/a.svg: No such file"),
        ("--plot", "folder.svg", "folder.svg is not a regular file"),
    ] {
        // Otherwise it would take hours.
        let args = ["bench", "--size", "1G", "--runs", "100", "--dir", "scratch", option, path];
        let line = lab.fails(FAILED, &args);
        assert!(line.contains(named), "{line}");
    }
    ensure_tidy(&lab);
}

#[test]
fn a_folder_that_is_not_the_users_is_refused_before_the_run() {
    const TEST: &str = "a_folder_that_is_not_the_users_is_refused_before_the_run";
    let lab = lab();
    std::fs::set_permissions(lab.path("scratch"), PermissionsExt::from_mode(0o777)).unwrap();
    let args = quick(&["--export-markdown", "a.md"]);
    match lab.command_of_nobody(&args) {
        Some(mut command) => {
            let line = lab.fails_as(FAILED, &mut command);
            let wanted = "cannot write a.md: Permission denied; check its owner and mode";
            assert_eq!(line, wanted);
        }
        None => skipped(TEST, "needs root and setpriv"),
    }
}

#[test]
fn every_work_is_measured_and_nothing_is_left_behind() {
    let lab = lab();
    let run = lab.run(&quick(&[])).done();
    assert_eq!(run.err, "");
    let text = run.text();
    for (work, _) in WORKS {
        assert!(text.contains(&format!("\n  {work} ")), "{work} is not in: {text}");
    }
    for words in ["16.0 MiB", "4K blocks", "1 % changed", "lz4", "1 run", "FRACTION"] {
        assert!(text.contains(words), "{words} is not in: {text}");
    }
    assert!(!text.contains("CACHE"), "{text}");
    for line in text.lines().filter(|line| !line.starts_with("  image ")) {
        assert!(line.chars().count() <= 100, "{line}");
    }
    ensure_tidy(&lab);
}

#[test]
fn quiet_has_the_result_all_the_same() {
    let lab = lab();
    let run = lab.run(&quick(&["--quiet"])).done();
    assert_eq!(run.err, "");
    assert!(run.text().contains("incremental snapshot"), "{}", run.text());
}

#[test]
fn json_has_every_work_with_its_fraction() {
    let lab = lab();
    let found = lab.json(&quick(&["--threads", "1", "--change", "2%", "--pattern", "vm"]));
    assert_eq!(integer(&found["settings"], "image_bytes"), 16 << 20);
    assert_eq!(integer(&found["settings"], "runs"), 1);
    assert_eq!(string(&found["settings"], "compression"), "lz4");
    assert!(
        integer(&found["machine"], "cores") > 0 && integer(&found["machine"], "memory_bytes") > 0
    );
    let point = &found["points"][0];
    assert_eq!(integer(&point["settings"], "threads"), 1);
    assert_eq!(point["settings"]["change_fraction"], 0.02);
    assert_eq!(integer(&point["settings"], "block_bytes"), 4096);
    assert!(integer(point, "changed_bytes") > 0 && integer(point, "delta_bytes") > 0);
    assert!(integer(point, "base_bytes") > integer(point, "delta_bytes"));
    let rows = rows(&found, 0);
    let works: Vec<&str> = rows.iter().map(|row| string(row, "work")).collect();
    assert_eq!(works, WORKS.map(|(_, work)| work));
    for row in rows {
        assert_eq!(string(row, "cache"), "warm");
        assert!(row["fraction"].as_f64().unwrap() > 0.0, "{row}");
        assert!(row["seconds"].as_f64().unwrap() > 0.0, "{row}");
        assert_eq!(row["samples_seconds"].as_array().unwrap().len(), 1, "{row}");
        assert!(integer(row, "covered_bytes") > 0, "{row}");
    }
    ensure_tidy(&lab);
}

#[test]
fn cold_has_rows_of_its_own() {
    let lab = lab();
    let found = lab.json(&quick(&["--cold"]));
    let rows = rows(&found, 0);
    for cache in ["warm", "cold"] {
        let count = rows.iter().filter(|row| row["cache"] == cache).count();
        assert!(count > 0 && count <= WORKS.len(), "{cache}: {found}");
    }
    assert!(rows.iter().all(|row| row["fraction"].as_f64().unwrap() > 0.0), "{found}");
    let text = lab.done(&quick(&["--cold"]));
    assert!(text.contains("CACHE") && text.contains(" cold "), "{text}");
    ensure_tidy(&lab);
}

#[test]
fn markdown_and_plot_are_written_beside_the_result() {
    let lab = lab();
    lab.write("result.md", b"of yesterday");
    let files = ["--export-markdown", "result.md", "--plot", "result.SVG"];
    let text = lab.done(&quick(&files));
    let markdown = String::from_utf8(lab.read("result.md")).unwrap();
    let plot = String::from_utf8(lab.read("result.SVG")).unwrap();
    assert!(plot.starts_with("<svg ") && plot.trim_end().ends_with("</svg>"), "{plot}");
    for (work, _) in WORKS {
        assert!(text.contains(work) && plot.contains(work), "{work}: {text} {plot}");
        assert!(markdown.contains(&format!("| {work} |")), "{work}: {markdown}");
    }
    assert!(!markdown.contains("yesterday"), "{markdown}");
    let names: Vec<_> = std::fs::read_dir(lab.path("")).unwrap().flatten().collect();
    assert_eq!(names.len(), 3, "the scratch folder and two files: {names:?}");
    ensure_tidy(&lab);
}

#[test]
fn a_sweep_has_a_row_for_each_point() {
    let lab = lab();
    let found = lab.json(&quick(&["--sweep", "threads", "--threads", "2"]));
    assert_eq!(string(&found["settings"], "sweep"), "threads");
    let points = found["points"].as_array().unwrap();
    let threads: Vec<u64> = points.iter().map(|p| integer(&p["settings"], "threads")).collect();
    assert_eq!(threads, [1, 2]);
    let files = ["--export-markdown", "result.md", "--plot", "result.svg"];
    let text = lab.done(&[&quick(&["--sweep", "block-size"])[..], &files].concat());
    assert!(text.contains("BLOCK SIZE") && text.contains("varied: block size"), "{text}");
    let markdown = String::from_utf8(lab.read("result.md")).unwrap();
    let plot = String::from_utf8(lab.read("result.svg")).unwrap();
    for label in ["4K", "16K", "64K", "256K", "1M"] {
        assert!(text.lines().any(|line| line.trim_start().starts_with(label)), "{label}: {text}");
        assert!(markdown.contains(&format!("| {label} |")), "{label}: {markdown}");
        assert!(plot.contains(&format!("\n{label}\n")), "{label}: {plot}");
    }
    ensure_tidy(&lab);
}

#[test]
fn the_users_image_is_copied_and_not_touched() {
    let lab = lab();
    lab.write("disk.img", &crate::support::disk(8, 16 * MIB));
    let before = (lab.read("disk.img"), lab.path("disk.img").metadata().unwrap());
    let args = ["bench", "--image", "disk.img", "--runs", "1", "--dir", "scratch"];
    let found = lab.json(&args);
    assert_eq!(integer(&found["settings"], "image_bytes"), (16 * MIB) as u64);
    assert!(string(&found["settings"], "image").contains("disk.img"), "{found}");
    let after = (lab.read("disk.img"), lab.path("disk.img").metadata().unwrap());
    crate::support::same(&after.0, &before.0, "the user's image");
    assert_eq!(after.1.modified().unwrap(), before.1.modified().unwrap());
    assert_eq!(after.1.len(), before.1.len());
    ensure_tidy(&lab);
}

#[test]
fn an_image_or_a_folder_that_is_not_there_is_named() {
    let lab = lab();
    let args = ["bench", "--image", "missing.img", "--runs", "1", "--dir", "scratch"];
    let line = lab.fails(FAILED, &args);
    assert!(line.contains("missing.img"), "{line}");
    let line = lab.fails(FAILED, &["bench", "--size", "16M", "--runs", "1", "--dir", "nowhere"]);
    assert!(line.contains("nowhere"), "{line}");
}

#[test]
fn too_little_room_is_refused_at_once_with_what_is_needed() {
    let lab = lab();
    let line = lab.fails(FAILED, &["bench", "--size", "4000T", "--dir", "scratch"]);
    let has_amount = ["PiB", "TiB", "bytes"].iter().any(|unit| line.contains(unit));
    assert!(has_amount && line.contains(|c: char| c.is_ascii_digit()), "{line}");
    ensure_tidy(&lab);
}

#[test]
fn interrupted_it_leaves_nothing_behind() {
    let lab = lab();
    let args = ["bench", "--size", "64M", "--runs", "100", "--dir", "scratch"];
    let mut command = lab.command(&args);
    let mut started = Started::new(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
    let has_begun = || std::fs::read_dir(lab.path("scratch")).unwrap().count() > 0;
    assert!(wait_until(has_begun), "no scratch folder");
    kill(Pid::from_raw(started.child.id() as i32), Signal::SIGINT).unwrap();
    let has_ended = || started.child.try_wait().unwrap().is_some();
    assert!(wait_until(has_ended), "it goes on");
    let mut stderr = Vec::new();
    started.child.stderr.take().unwrap().read_to_end(&mut stderr).unwrap();
    let status = started.child.wait().unwrap();
    let run = Run::ended(&command, Output { status, stdout: Vec::new(), stderr });
    assert_eq!(run.failed(INTERRUPTED), "interrupted");
    ensure_tidy(&lab);
}
