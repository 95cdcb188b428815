//! `imgsnap snapshot`

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::support::{
    BLOCK, FAILED, INTERRUPTED, KIB, Lab, MIB, Started, change, disk, integer, noise, skipped,
    string, trusts_times, wait_until,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::process::Stdio;
use std::time::SystemTime;

/// The names that the issue promises, of a snapshot in JSON.
pub const NAMES: [&str; 11] = [
    "name",
    "number",
    "id",
    "parent",
    "kind",
    "image_bytes",
    "read_bytes",
    "changed_blocks",
    "changed_bytes",
    "stored_bytes",
    "seconds",
];

/// At 1 MiB a second it would take a minute: it is interrupted in time only if it waits.
#[test]
fn a_limited_snapshot_waits_and_ctrl_c_ends_the_wait() {
    let lab = Lab::new();
    lab.write("disk.img", &noise(1, 64 * MIB));
    for limit in [&["--limit-read", "1MiB/s"][..], &[]] {
        let mut command = lab.command(&[&["snapshot", "disk.img"], limit].concat());
        let mut started = Started::new(command.stdout(Stdio::null()).stderr(Stdio::null()));
        assert!(wait_until(|| lab.exists("repo/disk")));
        kill(Pid::from_raw(started.child.id() as i32), Signal::SIGINT).unwrap();
        assert_eq!(started.child.wait().unwrap().code(), Some(INTERRUPTED), "{limit:?}");
        // Then in the configuration.
        lab.done(&["config", "set", "images.disk.snapshot.limit_read", "1M"]);
    }
    let line = lab.fails(FAILED, &["config", "set", "snapshot.limit_read", "10K"]);
    assert!(line.contains("limit_read: a limit of 10240 bytes per second is too low"), "{line}");
}

#[test]
fn first_use_makes_the_repository_and_says_so_in_one_line() {
    let lab = Lab::bare();
    lab.write("disk.img", &disk(1, 64 * KIB));
    let run = lab.run(&["snapshot", "disk.img"]).done();
    let place = lab.at("repo");
    assert_eq!(
        run.err,
        format!("imgsnap: created a repository in {place} (4K blocks, xxh3, lz4)\n")
    );
    assert!(run.text().starts_with("disk@1  a base\n"), "{}", run.text());
    // Only the first time, and never on stdout.
    assert_eq!(lab.run(&["snapshot", "disk.img"]).done().err, "");
}

#[test]
fn a_dry_run_makes_no_repository() {
    let lab = Lab::bare();
    lab.write("disk.img", &disk(1, 64 * KIB));
    let line = lab.fails(FAILED, &["snapshot", "disk.img", "--dry-run"]);
    assert!(line.contains("is not a repository; choose one with --repo"), "{line}");
}

#[test]
fn a_base_counts_the_blocks_that_are_not_zero() {
    let lab = Lab::new();
    let mut bytes = vec![0; 100 * BLOCK + 5];
    for block in [0, 1, 50] {
        bytes[block * BLOCK] = 1;
    }
    // The cut last block counts with the bytes that it has.
    *bytes.last_mut().unwrap() = 1;
    lab.write("disk.img", &bytes);
    let taken = lab.json(&["snapshot", "disk.img"]);
    for name in NAMES {
        assert!(taken.get(name).is_some(), "{name} is missing: {taken}");
    }
    assert_eq!(string(&taken, "name"), "disk");
    assert_eq!(string(&taken, "ref"), "disk@1");
    assert_eq!(integer(&taken, "number"), 1);
    assert_eq!(string(&taken, "kind"), "base");
    assert_eq!(taken["parent"], Value::Null);
    assert_eq!(string(&taken, "id").len(), 36);
    assert_eq!(integer(&taken, "image_bytes"), bytes.len() as u64);
    assert_eq!(integer(&taken, "changed_blocks"), 4);
    assert_eq!(integer(&taken, "changed_bytes"), 3 * BLOCK as u64 + 5);
    assert!(integer(&taken, "read_bytes") <= bytes.len() as u64, "{taken}");
    assert!(taken["seconds"].as_f64().unwrap() > 0.0, "{taken}");
    assert_eq!(integer(&taken, "stored_bytes"), lab.read(&lab.delta("disk", 1)).len() as u64);
    lab.restores("disk@1", &bytes);
}

#[test]
fn a_delta_counts_and_stores_what_changed_and_nothing_else() {
    let (lab, states) = Lab::with_snapshots(1);
    let mut bytes = states[0].clone();
    let changed = change(&mut bytes, 9, 4);
    // One block becomes zero: it changed, too, but needs no room.
    let zeroed = (0..).find(|b| !changed.contains(b) && bytes[b * BLOCK] != 0).unwrap();
    bytes[zeroed * BLOCK..][..BLOCK].fill(0);
    lab.write("disk.img", &bytes);
    let taken = lab.json(&["snapshot", "disk.img"]);
    let base = lab.json(&["show", "disk@1"]);
    assert_eq!(string(&taken, "kind"), "delta");
    assert_eq!(taken["parent"], base["id"]);
    assert_eq!(integer(&taken, "parent_number"), 1);
    assert_eq!(integer(&taken, "changed_blocks"), 5);
    assert_eq!(integer(&taken, "changed_bytes"), 5 * BLOCK as u64);
    assert_eq!(integer(&taken, "data_blocks"), 4);
    assert_eq!(integer(&taken, "zero_blocks"), 1);
    let stored = integer(&taken, "stored_bytes");
    assert!((4 * BLOCK as u64..4 * BLOCK as u64 + 2048).contains(&stored), "{taken}");
    lab.restores("disk@2", &bytes);
    lab.restores("disk@1", &states[0]);
}

#[test]
fn people_read_what_was_taken_in_aligned_lines() {
    let (lab, states) = Lab::with_snapshots(1);
    let mut bytes = states[0].clone();
    change(&mut bytes, 3, 2);
    lab.write("disk.img", &bytes);
    let text = lab.done(&["snapshot", "disk.img", "--label", "monday"]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "disk@2  changes since disk@1  \"monday\"");
    assert!(lines[1].starts_with("  image      512 KiB   "), "{text}");
    assert!(lines[1].contains(" read, ") && lines[1].ends_with("iB/s"), "{text}");
    assert_eq!(lines[2], "  changed   8.00 KiB   2 blocks of 4.00 KiB, 1.6 %");
    assert!(
        lines[3].starts_with("  stored    ") && lines[3].ends_with(" % of what changed"),
        "{text}"
    );
    assert_eq!(lines.len(), 4, "{text}");
}

#[test]
fn the_name_is_that_of_the_file_without_extension_or_the_one_given() {
    let lab = Lab::new();
    for (file, name) in [
        ("web.qcow.img", "web.qcow"),
        ("plain", "plain"),
        ("my disk@home.raw", "my-disk-home"),
        ("größe.img", "größe"),
    ] {
        lab.write(file, &disk(1, 20 * KIB));
        assert_eq!(string(&lab.json(&["snapshot", file]), "name"), name);
    }
    lab.write("other.img", &disk(2, 20 * KIB));
    assert_eq!(string(&lab.json(&["snapshot", "other.img", "-n", "mine"]), "name"), "mine");
    // A second time under its own name is another image: nothing forbids it.
    assert_eq!(integer(&lab.json(&["snapshot", "other.img"]), "number"), 1);
}

#[test]
fn a_name_that_cannot_be_one_is_refused_with_the_way_out() {
    let lab = Lab::new();
    lab.write(".hidden", &disk(1, 20 * KIB));
    lab.write("disk.img", &disk(1, 20 * KIB));
    let line = lab.fails(FAILED, &["snapshot", ".hidden"]);
    assert!(line.contains("invalid image name \".hidden\"; choose one with --name"), "{line}");
    let long = "x".repeat(129);
    for name in ["", "..", "a/b", "../x", "a b", "a@b", ".x", "a\tb", &long] {
        let line = lab.fails(FAILED, &["snapshot", "disk.img", &format!("--name={name}")]);
        assert!(line.contains("invalid image name"), "{name}: {line}");
    }
}

#[test]
fn full_makes_a_base_that_rests_on_nothing() {
    let (lab, states) = Lab::with_snapshots(2);
    let taken = lab.json(&["snapshot", "disk.img", "--full"]);
    assert_eq!((integer(&taken, "number"), string(&taken, "kind")), (3, "base"));
    assert_eq!(taken["parent"], Value::Null);
    // Everything else may go, and it still restores.
    lab.done(&["delete", "disk@2"]);
    lab.done(&["delete", "disk@1"]);
    lab.restores("disk@3", &states[1]);
}

#[test]
fn differential_rests_on_the_base_of_the_chain() {
    let (lab, states) = Lab::with_snapshots(3);
    let taken = lab.json(&["snapshot", "disk.img", "--differential"]);
    assert_eq!((integer(&taken, "number"), integer(&taken, "parent_number")), (4, 1));
    assert_eq!(integer(&taken, "changed_blocks"), 6);
    lab.restores("disk@4", &states[2]);
    // Of the newest chain: a new base takes its place.
    lab.done(&["snapshot", "disk.img", "--full"]);
    lab.done(&["snapshot", "disk.img"]);
    let taken = lab.json(&["snapshot", "disk.img", "--differential"]);
    assert_eq!((integer(&taken, "number"), integer(&taken, "parent_number")), (7, 5));
    lab.restores("disk@7", &states[2]);
}

#[test]
fn differential_of_a_new_image_is_a_base() {
    let lab = Lab::new();
    lab.write("disk.img", &disk(1, 64 * KIB));
    assert_eq!(string(&lab.json(&["snapshot", "disk.img", "--differential"]), "kind"), "base");
}

#[test]
fn parent_takes_any_snapshot_by_any_reference() {
    let (lab, states) = Lab::with_snapshots(3);
    lab.done(&["label", "disk@1", "first"]);
    for (reference, parent) in
        [("disk@2", 2), ("@1", 1), ("disk@first", 1), ("@first", 1), ("@latest", 7), ("@head", 8)]
    {
        let taken = lab.json(&["snapshot", "disk.img", "--parent", reference]);
        assert_eq!(integer(&taken, "parent_number"), parent, "{reference}");
        lab.restores(&format!("disk@{}", integer(&taken, "number")), &states[2]);
    }
    let line = lab.fails(FAILED, &["snapshot", "disk.img", "--parent", "@99"]);
    assert!(line.contains("there is no snapshot disk@99"), "{line}");
    let line = lab.fails(FAILED, &["snapshot", "disk.img", "--parent", "web@1"]);
    assert!(line.contains("web@1 is a snapshot of another image"), "{line}");
    lab.fails(FAILED, &["snapshot", "disk.img", "--parent", "1"]);
    lab.fails(FAILED, &["snapshot", "disk.img", "--parent", "@"]);
}

#[test]
fn a_parent_by_name_is_found_for_a_file_whose_name_has_spaces() {
    let lab = Lab::new();
    lab.write("my disk.img", &disk(1, 64 * KIB));
    lab.done(&["snapshot", "my disk.img"]);
    let taken = lab.json(&["snapshot", "my disk.img", "--parent", "my-disk@1"]);
    assert_eq!(integer(&taken, "parent_number"), 1);
}

#[test]
fn after_a_rollback_the_next_snapshot_rests_on_where_it_went() {
    let (lab, states) = Lab::with_snapshots(3);
    lab.done(&["rollback", "disk", "--to", "@1"]);
    let mut bytes = states[0].clone();
    change(&mut bytes, 77, 2);
    lab.write("disk.img", &bytes);
    let taken = lab.json(&["snapshot", "disk.img"]);
    assert_eq!((integer(&taken, "number"), integer(&taken, "parent_number")), (4, 1));
    assert_eq!(integer(&taken, "changed_blocks"), 2);
    lab.restores("disk@4", &bytes);
    lab.restores("disk@3", &states[2]);
}

#[test]
fn skip_unchanged_makes_no_snapshot_of_what_there_is() {
    let (lab, states) = Lab::with_snapshots(2);
    for full_scan in [false, true] {
        let args = ["snapshot", "disk.img", "--skip-unchanged", "--full-scan"];
        let args = &args[..if full_scan { 4 } else { 3 }];
        let deltas = || lab.stored("disk").iter().filter(|f| f.ends_with(".delta")).count();
        let taken = lab.json(args);
        assert_eq!((integer(&taken, "number"), &taken["skipped"]), (2, &json!(true)));
        assert_eq!(deltas(), 2);
        let text = lab.done(args);
        assert_eq!(text, "unchanged since disk@2; no snapshot was taken\n");
    }
    assert_eq!(lab.json(&["list"]).as_array().unwrap().len(), 2);
    let mut bytes = states[1].clone();
    bytes[17] ^= 1;
    lab.write("disk.img", &bytes);
    let taken = lab.json(&["snapshot", "disk.img", "--skip-unchanged"]);
    assert_eq!((integer(&taken, "number"), &taken["skipped"]), (3, &json!(false)));
    assert_eq!(integer(&taken, "changed_blocks"), 1);
    lab.restores("disk@3", &bytes);
}

#[test]
fn skip_unchanged_takes_what_only_became_longer() {
    let (lab, states) = Lab::with_snapshots(1);
    let mut bytes = states[0].clone();
    bytes.push(0);
    lab.write("disk.img", &bytes);
    let taken = lab.json(&["snapshot", "disk.img", "--skip-unchanged"]);
    assert_eq!(integer(&taken, "number"), 2);
    lab.restores("disk@2", &bytes);
}

#[test]
fn an_unchanged_image_costs_next_to_nothing() {
    let (lab, states) = Lab::with_snapshots(1);
    for full_scan in [true, false] {
        let args = ["snapshot", "disk.img", "--full-scan"];
        let taken = lab.json(&args[..if full_scan { 3 } else { 2 }]);
        assert_eq!(integer(&taken, "changed_blocks"), 0);
        assert_eq!(integer(&taken, "changed_bytes"), 0);
        assert_eq!(integer(&taken, "stored_bytes"), 768, "a header and a footer");
        lab.restores(string(&taken, "ref"), &states[0]);
    }
}

#[test]
fn an_unchanged_file_is_not_read_unless_a_full_scan_is_asked_for() {
    let (lab, _) = Lab::with_snapshots(1);
    if !trusts_times(&lab.path("disk.img")) {
        let why = "times are not believed on this file system";
        return skipped("snapshot::an_unchanged_file_is_not_read", why);
    }
    let taken = lab.json(&["snapshot", "disk.img"]);
    assert_eq!(taken["believed"], json!(true));
    assert_eq!(integer(&taken, "read_bytes"), 8192, "the share that is looked at all the same");
    let taken = lab.json(&["snapshot", "disk.img", "--recheck", "0"]);
    assert_eq!((&taken["believed"], integer(&taken, "read_bytes")), (&json!(true), 0));
    let taken = lab.json(&["snapshot", "disk.img", "--full-scan"]);
    assert_eq!(taken["believed"], json!(false));
    assert!(integer(&taken, "read_bytes") > 0, "{taken}");
    let text = lab.done(&["snapshot", "disk.img"]);
    assert!(text.contains("the file was not written to since the parent"), "{text}");
}

#[test]
fn a_change_is_found_though_length_and_time_of_the_file_are_the_old_ones() {
    let (lab, states) = Lab::with_snapshots(1);
    let path = lab.path("disk.img");
    let old: SystemTime = path.metadata().unwrap().modified().unwrap();
    let mut bytes = states[0].clone();
    bytes[5000] ^= 1;
    lab.write("disk.img", &bytes);
    {
        let _calm = crate::support::no_fork();
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
    }
    assert_eq!(integer(&lab.json(&["snapshot", "disk.img"]), "changed_blocks"), 1);
    lab.restores("disk@2", &bytes);
}

#[test]
fn a_dry_run_tells_what_would_be_and_changes_nothing() {
    let (lab, states) = Lab::with_snapshots(2);
    let mut bytes = states[1].clone();
    change(&mut bytes, 50, 3);
    lab.write("disk.img", &bytes);
    lab.write("new.img", &bytes);
    let before = lab.everything();
    let told = lab.json(&["snapshot", "disk.img", "--dry-run"]);
    let new = lab.json(&["snapshot", "new.img", "--dry-run"]);
    let text = lab.done(&["snapshot", "disk.img", "--dry-run"]);
    lab.ensure_untouched(&before, "a dry run");
    assert_eq!(told["dry_run"], json!(true));
    assert!(
        text.starts_with("disk@3  changes since disk@2  (dry run: nothing was stored)"),
        "{text}"
    );
    assert_eq!((string(&new, "ref"), string(&new, "kind")), ("new@1", "base"));
    let taken = lab.json(&["snapshot", "disk.img"]);
    assert_eq!(taken["dry_run"], json!(false));
    for name in [
        "name",
        "number",
        "parent",
        "kind",
        "image_bytes",
        "changed_blocks",
        "changed_bytes",
        "stored_bytes",
        "image_digest",
    ] {
        assert_eq!(told[name], taken[name], "{name}");
    }
    // What would fail fails in a dry run, too.
    lab.done(&["label", "disk@1", "taken"]);
    lab.fails(FAILED, &["snapshot", "disk.img", "--dry-run", "--label", "taken"]);
    lab.fails(FAILED, &["snapshot", "disk.img", "--dry-run", "--parent", "@99"]);
    lab.fails(FAILED, &["snapshot", "new.img", "--dry-run", "--name", "disk"]);
}

#[test]
fn compression_is_chosen_for_each_snapshot() {
    let lab = Lab::new();
    let text: Vec<u8> = b"all work and no play makes a dull disk. ".repeat(10_000);
    lab.write("disk.img", &text);
    let mut sizes = Vec::new();
    for compression in ["none", "lz4", "zstd", "zstd:19"] {
        let args = ["snapshot", "disk.img", "--full", "--compression", compression];
        let taken = lab.json(&args);
        lab.restores(string(&taken, "ref"), &text);
        sizes.push(integer(&taken, "stored_bytes"));
    }
    assert!(sizes[0] > text.len() as u64, "{sizes:?}");
    assert!(sizes[1..].iter().all(|s| *s < text.len() as u64 / 10), "{sizes:?}");
    // Of one chain, each file may have another.
    let mut bytes = text;
    for (number, compression) in ["none", "zstd:3", "lz4"].into_iter().enumerate() {
        bytes[number * 100_000] ^= 0xff;
        lab.write("disk.img", &bytes);
        let taken = lab.json(&["snapshot", "disk.img", "--compression", compression]);
        assert_eq!(integer(&taken, "changed_blocks"), 1);
        lab.restores(string(&taken, "ref"), &bytes);
    }
}

#[test]
fn the_number_of_threads_changes_nothing_but_the_time() {
    let lab = Lab::new();
    lab.write("disk.img", &disk(3, 2 * MIB));
    let results = ["1", "2", "16"].map(|threads| {
        let taken = lab.json(&["snapshot", "disk.img", "--full", "--threads", threads]);
        (integer(&taken, "stored_bytes"), integer(&taken, "changed_blocks"))
    });
    assert_eq!(results[0], results[1]);
    assert_eq!(results[0], results[2]);
}

/// Lengths that go up, down and up again, most of them no multiple of a block.
const LENGTHS: [usize; 13] = [
    10_000, 10_001, 4096, 4095, 1, 4097, 500_000, 123_457, 500_000, 262_144, 262_143, 262_145,
    500_000,
];

#[test]
fn an_image_that_grows_and_shrinks_restores_bit_for_bit_at_each_snapshot() {
    for (block_size, grown_with_zeros) in
        [("4K", true), ("4K", false), ("64K", true), ("64K", false)]
    {
        let lab = Lab::bare();
        lab.done(&["init", "--block-size", block_size]);
        let mut bytes = Vec::new();
        let mut states = Vec::new();
        for (number, length) in LENGTHS.into_iter().enumerate() {
            let grown = length.saturating_sub(bytes.len());
            bytes.truncate(length);
            bytes.extend(if grown_with_zeros && number > 0 {
                vec![0; grown]
            } else {
                noise(number as u64, grown)
            });
            bytes[0] = number as u8 + 1;
            lab.write("disk.img", &bytes);
            let taken = lab.json(&["snapshot", "disk.img"]);
            assert_eq!(integer(&taken, "image_bytes"), length as u64);
            states.push(bytes.clone());
        }
        for (number, state) in states.iter().enumerate() {
            lab.restores(&format!("disk@{}", number + 1), state);
        }
        assert_eq!(lab.json(&["verify"])["damaged"], json!([]));
        // On any other one as the parent as well.
        for parent in [1, 4, 7] {
            let taken = lab.json(&["snapshot", "disk.img", "--parent", &format!("@{parent}")]);
            lab.restores(string(&taken, "ref"), &bytes);
        }
    }
}

#[test]
fn what_was_beyond_a_shorter_end_does_not_come_back() {
    let (lab, states) = Lab::with_snapshots(1);
    let long = states[0].len();
    let mut bytes = states[0].clone();
    bytes.truncate(100_001);
    lab.write("disk.img", &bytes);
    lab.done(&["snapshot", "disk.img"]);
    bytes.resize(long, 0);
    lab.write("disk.img", &bytes);
    let taken = lab.json(&["snapshot", "disk.img"]);
    assert_eq!(integer(&taken, "parent_number"), 2);
    lab.restores("disk@3", &bytes);
    lab.restores("disk@1", &states[0]);
}

#[test]
fn an_image_of_zeros_is_a_snapshot_without_blocks() {
    let lab = Lab::new();
    lab.write("disk.img", &vec![0; MIB + 1]);
    let taken = lab.json(&["snapshot", "disk.img"]);
    assert_eq!((integer(&taken, "changed_blocks"), integer(&taken, "stored_bytes")), (0, 768));
    lab.restores("disk@1", &vec![0; MIB + 1]);
}

#[test]
fn an_image_is_never_changed_by_a_snapshot() {
    let (lab, states) = Lab::with_snapshots(1);
    let before = lab.path("disk.img").metadata().unwrap();
    for option in ["--full", "--differential", "--full-scan", "--skip-unchanged", "--dry-run"] {
        lab.done(&["snapshot", "disk.img", option]);
    }
    let after = lab.path("disk.img").metadata().unwrap();
    assert_eq!(lab.read("disk.img"), states[0]);
    assert_eq!(after.modified().unwrap(), before.modified().unwrap());
    assert_eq!(after.permissions(), before.permissions());
}

#[test]
fn snapshots_through_a_link_are_of_the_file_that_it_points_to() {
    let (lab, _) = Lab::with_snapshots(1);
    std::os::unix::fs::symlink(lab.path("disk.img"), lab.path("link")).unwrap();
    let taken = lab.json(&["snapshot", "link", "--name", "disk"]);
    assert_eq!((integer(&taken, "number"), integer(&taken, "changed_blocks")), (2, 0));
}

#[test]
fn numbers_are_never_used_twice() {
    let (lab, _) = Lab::with_snapshots(3);
    lab.done(&["delete", "disk@3"]);
    assert_eq!(integer(&lab.json(&["snapshot", "disk.img"]), "number"), 4);
}

#[test]
fn a_snapshot_that_was_skipped_has_the_parent_that_it_had() {
    let (lab, _) = Lab::with_snapshots(2);
    let taken = lab.json(&["snapshot", "disk.img", "--skip-unchanged"]);
    assert_eq!((&taken["skipped"], integer(&taken, "number")), (&json!(true), 2), "{taken}");
    assert_eq!(integer(&taken, "parent_number"), 1, "{taken}");
}

#[test]
fn each_image_has_a_block_size_of_its_own_from_its_base_on() {
    let lab = Lab::bare();
    for (name, size, blocks) in [("a", "4K", 256), ("b", "64K", 16), ("c", "1M", 1)] {
        let image = format!("{name}.img");
        lab.write(&image, &noise(3, MIB));
        lab.done(&["snapshot", &image, "--block-size", size]);
        lab.write(&image, &noise(4, MIB));
        // It is that of the chain, whether it is said or not.
        for more in [&[][..], &["--block-size", size]] {
            let taken = lab.json(&[&["snapshot", &image, "--parent", "@1"], more].concat());
            assert_eq!(integer(&taken, "changed_blocks"), blocks, "{taken}");
        }
        lab.restores(&format!("{name}@2"), &noise(4, MIB));
        let other = if size == "8K" { "16K" } else { "8K" };
        let line = lab.fails(FAILED, &["snapshot", &image, "--block-size", other]);
        let said = format!("the chain of \"{name}\" has blocks of {size}, not of {other}");
        assert!(line.contains(&said) && line.contains("--full"), "{line}");
        let taken = lab.json(&["snapshot", &image, "--full", "--block-size", other]);
        assert_eq!(integer(&taken, "changed_blocks"), 128, "{taken}");
    }
    assert_eq!(lab.json(&["verify"])["damaged"], serde_json::json!([]));
    lab.run(&["snapshot", "a.img", "--block-size", "3K"]).misused();
}
