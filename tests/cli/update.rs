//! `imgsnap restore --update`, `--trust-target` and `--seed`

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::bad_input::hold_open;
use crate::support::{
    BLOCK, BUSY, DAMAGE, FAILED, KIB, Lab, MIB, Random, change, disk, integer, no_fork, noise,
    same, skipped, string, trusts_times,
};
use serde_json::{Value, json};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes of the blocks in which a file differs from what it is to be, where what it does not have is zeros.
fn differing(before: &[u8], wanted: &[u8]) -> u64 {
    let zeros = vec![0; BLOCK];
    let blocks = wanted.chunks(BLOCK).enumerate().filter(|(number, block)| {
        let was = before.get(number * BLOCK..).unwrap_or_default();
        let was = &was[..was.len().min(block.len())];
        was != &block[..was.len()] || block[was.len()..] != zeros[..block.len() - was.len()]
    });
    blocks.map(|(_, block)| block.len() as u64).sum()
}

fn update(lab: &Lab, reference: &str, target: &str, more: &[&str]) -> Value {
    lab.json(&[&["restore", reference, "-o", target, "--update"], more].concat())
}

#[test]
fn only_what_differs_is_written_and_all_of_it_is_proved() {
    let (lab, states) = Lab::with_snapshots(3);
    lab.done(&["restore", "disk@1", "-o", "out.img"]);
    let inode = lab.path("out.img").metadata().unwrap().ino();
    for (number, from) in [(3, 1), (3, 3), (2, 3)] {
        let wanted = &states[number - 1];
        let done = update(&lab, &format!("disk@{number}"), "out.img", &[]);
        same(&lab.read("out.img"), wanted, "the target");
        let differs = differing(&states[from - 1], wanted);
        assert_eq!(integer(&done, "written_bytes"), differs, "{done}");
        assert_eq!(integer(&done, "matched_bytes"), wanted.len() as u64 - differs);
        assert_eq!(integer(&done, "read_bytes"), wanted.len() as u64);
        assert_eq!(done["proved"], json!(true));
        assert_eq!((&done["trusted"], &done["not_trusted"]), (&Value::Null, &Value::Null));
        let samples = &done["samples"];
        assert!(integer(samples, "matched") * 2 >= integer(samples, "compared"), "{samples}");
    }
    assert_eq!(lab.path("out.img").metadata().unwrap().ino(), inode, "it is the same file");
    assert_eq!(differing(&states[1], &states[2]), 3 * BLOCK as u64);
    let text = lab.done(&["restore", "disk@3", "-o", "out.img", "--update"]);
    assert!(text.starts_with("disk@3 -> out.img  512 KiB in "), "{text}");
    for line in ["\n  written   12.0 KiB\n", "\n  matched   500 KiB\n", "\n  read      512 KiB\n"] {
        assert!(text.contains(line), "{text}");
    }
    assert!(text.ends_with("\n  verified  each block and the image digest\n"), "{text}");
}

#[test]
fn whatever_the_target_holds_it_is_the_snapshot_afterwards() {
    let mut random = Random(20_261_128);
    let lab = Lab::new();
    // The last block is not whole.
    let mut images = Vec::new();
    for (number, bytes) in [300_001, 600 * KIB + 5, 64 * KIB].into_iter().enumerate() {
        let name = format!("i{number}.img");
        images.push(disk(number as u64, bytes));
        lab.write(&name, &images[number]);
        lab.done(&["snapshot", &name]);
    }
    for round in 0..60 {
        let number = round % 3;
        let image = &images[number];
        let mut before = image.clone();
        match round / 3 % 8 {
            0 => {}
            1 => before.truncate(1 + random.below(image.len() as u64 - 1) as usize),
            2 => before.extend(noise(round as u64, 1 + random.below(100_000) as usize)),
            3 => before = noise(7, image.len()),
            4 => before.fill(0),
            5 => before.extend(vec![0; 3 * BLOCK]),
            _ => {
                for _ in 0..1 + random.below(9) {
                    let at = random.below(before.len() as u64) as usize;
                    let end = before.len().min(at + random.below(20_000) as usize);
                    match at % 2 {
                        0 => before[at..end].copy_from_slice(&noise(random.next(), end - at)),
                        _ => before[at..end].fill(0),
                    }
                }
            }
        }
        std::fs::remove_file(lab.path("target")).ok();
        lab.write("target", &before);
        let reference = format!("i{number}@1");
        let done = update(&lab, &reference, "target", &["--force"]);
        same(&lab.read("target"), image, &format!("round {round}"));
        assert_eq!(integer(&done, "written_bytes"), differing(&before, image), "round {round}");
        assert_eq!(done["proved"], json!(true), "round {round}");
        let again = update(&lab, &reference, "target", &[]);
        assert_eq!(integer(&again, "written_bytes"), 0, "round {round}");
    }
}

#[test]
fn holes_are_not_read_and_zeros_become_holes() {
    let lab = Lab::new();
    let mut bytes = vec![0; 4 * MIB];
    bytes[MIB..][..BLOCK].fill(1);
    bytes[3 * MIB..][..BLOCK].fill(2);
    lab.write("disk.img", &bytes);
    lab.done(&["snapshot", "disk.img"]);
    lab.write("full.img", &noise(1, 4 * MIB));
    update(&lab, "disk@1", "full.img", &["--force"]);
    same(&lab.read("full.img"), &bytes, "a full file");
    assert!(lab.allocated("full.img") <= 64 * KIB as u64, "{}", lab.allocated("full.img"));
    let done = update(&lab, "disk@1", "full.img", &[]);
    assert!(integer(&done, "read_bytes") <= 64 * KIB as u64, "{done}");
    assert_eq!(integer(&done, "written_bytes"), 0);
}

#[test]
fn what_does_not_seem_to_be_a_state_of_the_image_needs_force() {
    let lab = Lab::new();
    // All of its data lies together, at an odd place of a large disk.
    let (at, data) = (40 << 30, noise(3, 300 * BLOCK));
    let make = |name: &str, other: usize| {
        let _calm = no_fork();
        let file = File::create(lab.path(name)).unwrap();
        file.set_len(64 << 30).unwrap();
        let mut bytes = data.clone();
        bytes[..other * BLOCK].copy_from_slice(&noise(4, other * BLOCK));
        file.write_all_at(&bytes, at).unwrap();
    };
    make("disk.img", 0);
    lab.done(&["snapshot", "disk.img"]);
    for (other, is_alike) in [(0, true), (100, true), (200, false), (300, false)] {
        lab.exists("target").then(|| lab.remove("target"));
        make("target", other);
        let run = lab.run(&["restore", "disk@1", "-o", "target", "--update", "--json"]);
        if is_alike {
            let samples = run.done().json()["samples"].clone();
            assert!(integer(&samples, "compared") >= 32, "{samples}");
            continue;
        }
        let line = run.failed(FAILED);
        assert!(line.contains("target does not seem to hold a state of \"disk\": of "), "{line}");
        assert!(line.contains(" match disk@1; use --force "), "{line}");
        let done = update(&lab, "disk@1", "target", &["--force"]);
        assert_eq!(integer(&done, "written_bytes"), (other * BLOCK) as u64);
        assert_eq!(done["samples"], Value::Null);
    }
    // One that has no data is like nothing.
    let lab = Lab::new();
    lab.write("zeros.img", &vec![0; MIB]);
    lab.done(&["snapshot", "zeros.img"]);
    lab.write("target", &vec![0; MIB]);
    let line = lab.fails(FAILED, &["restore", "zeros@1", "-o", "target", "--update"]);
    assert!(line.contains("zeros@1 has no data to compare target with; use --force"), "{line}");
}

#[test]
fn what_must_not_be_updated_is_refused_and_left_as_it_was() {
    let (lab, _) = Lab::with_snapshots(2);
    lab.write("other.img", &disk(5, 512 * KIB));
    lab.write("clone.img", &disk(6, 512 * KIB));
    lab.done(&["snapshot", "clone.img", "--base-image", "other.img"]);
    lab.write("empty", b"");
    std::fs::create_dir(lab.path("folder")).unwrap();
    symlink("disk.img", lab.path("link")).unwrap();
    std::fs::hard_link(lab.path("disk.img"), lab.path("hard")).unwrap();
    let rollback = "live file of \"disk\"; use \"imgsnap rollback disk --to disk@2\"";
    for (target, what) in [
        ("missing", "leave --update out to restore to a new file"),
        ("empty", "empty is empty (0 bytes); leave --update out, and use --force"),
        ("folder", "a restore to a folder writes whole snapshots to new files"),
        ("disk.img", rollback),
        ("link", rollback),
        ("hard", rollback),
        ("clone.img", "live file of \"clone\"; use \"imgsnap rollback clone --to REF\""),
        ("other.img", "base image of clone@1"),
        ("repo/disk/write.lock", "inside the repository"),
    ] {
        for more in [&[][..], &["--force"]] {
            let args = [&["restore", "disk@2", "-o", target, "--update"], more].concat();
            let line = lab.fails(FAILED, &args);
            assert!(line.contains(what), "{target}: {line}");
        }
    }
    // Where the live file is this host knows without the manifest.
    for entry in std::fs::read_dir(lab.path("repo/clone")).unwrap() {
        let path = entry.unwrap().path();
        if path.to_str().unwrap().contains("/manifest.") {
            let bytes = std::fs::read(&path).unwrap();
            std::fs::write(&path, "damaged").unwrap();
            let run = lab.run(&["restore", "disk@2", "-o", "clone.img", "--update"]);
            assert_eq!(run.code, Some(FAILED), "{}", run.err);
            assert!(run.err.contains("live file of \"clone\""), "{}", run.err);
            std::fs::write(&path, bytes).unwrap();
        }
    }
    lab.write("out.img", &disk(8, 512 * KIB));
    for args in [
        &["--update", "--range", "0+4096", "-o", "out.img"][..],
        &["--trust-target", "-o", "out.img"],
    ] {
        lab.run(&[&["restore", "disk@2"], args].concat()).misused();
    }
    let line = lab.fails(FAILED, &["restore", "disk@2", "--update", "-o", "-"]);
    assert!(line.contains("only a file, a device or an export can be updated"), "{line}");
    lab.done(&["restore", "disk@2", "-o", "out.img", "--force"]);
    let user = hold_open(&lab, "out.img");
    let line = lab.fails(BUSY, &["restore", "disk@2", "-o", "out.img", "--update"]);
    assert!(line.contains("in use by sleep (process "), "{line}");
    drop(user);
    update(&lab, "disk@2", "out.img", &[]);
}

#[test]
fn one_that_fails_in_the_middle_says_so_and_is_completed_by_the_same_command() {
    let lab = Lab::new();
    let bytes = noise(1, 8 * MIB);
    lab.write("disk.img", &bytes);
    lab.done(&["snapshot", "disk.img"]);
    lab.write("target", &noise(2, 8 * MIB));
    let before = lab.read("target");
    let delta = lab.delta("disk", 1);
    // In the last of its frames.
    let at = lab.read(&delta).len() - 256 * KIB;
    lab.flip(&delta, at);
    let args = ["restore", "disk@1", "-o", "target", "--update", "--force", "--threads", "1"];
    let line = lab.run(&args).failed(DAMAGE);
    let again = "target is only partly written: run \"imgsnap restore disk@1 -o target --update --force\" again";
    assert!(line.contains(again), "{line}");
    let now = lab.read("target");
    assert!(now != before && now != bytes, "it is only partly written");
    lab.flip(&delta, at);
    let done = lab.json(&args);
    same(&lab.read("target"), &bytes, "the target");
    let written = integer(&done, "written_bytes");
    assert!(written < bytes.len() as u64, "what was written is not written again: {written}");
}

/// Rule S7.
#[test]
fn a_target_that_was_restored_and_is_unchanged_need_not_be_read() {
    let (lab, states) = Lab::with_snapshots(4);
    if !trusts_times(&lab.path("")) {
        return skipped("update::a_target_that_was_restored", "times are not trusted here");
    }
    let trust = |number: usize| {
        let done = update(&lab, &format!("disk@{number}"), "out.img", &["--trust-target"]);
        same(&lab.read("out.img"), &states[number - 1], "the target");
        done
    };
    #[track_caller]
    fn is_trusted(done: &Value, reference: &str) {
        assert_eq!((&done["trusted"], &done["not_trusted"]), (&json!(reference), &Value::Null));
        assert_eq!((&done["read_bytes"], &done["proved"]), (&json!(0), &json!(false)), "{done}");
    }
    #[track_caller]
    fn is_read(done: &Value, why: &str) {
        assert_eq!((&done["trusted"], &done["proved"]), (&Value::Null, &json!(true)), "{done}");
        assert!(string(done, "not_trusted").contains(why), "{done}");
        assert!(integer(done, "read_bytes") > 0);
    }
    let unchanged = "it may have changed since it was restored";
    // After a restore, and after an update that read it.
    lab.done(&["restore", "disk@1", "-o", "out.img"]);
    let done = trust(3);
    is_trusted(&done, "disk@1");
    assert_eq!(integer(&done, "written_bytes"), differing(&states[0], &states[2]));
    update(&lab, "disk@2", "out.img", &[]);
    is_trusted(&trust(4), "disk@2");
    is_trusted(&trust(4), "disk@4");
    let text = lab.done(&["restore", "disk@1", "-o", "out.img", "--update", "--trust-target"]);
    let what = "\n  read      nothing: the file was still disk@4, as this host restored it\n";
    assert!(text.contains(what), "{text}");
    assert!(text.ends_with("  verified  what was written; the rest was not read back\n"), "{text}");

    // Whatever was changed meanwhile is found.
    lab.write("out.img", &[&b"x"[..], &states[0][1..]].concat());
    is_read(&trust(1), unchanged);
    is_trusted(&trust(2), "disk@1");
    // A copy under its name is another file.
    lab.copy("out.img", "copy.img");
    lab.rename("copy.img", "out.img");
    is_read(&trust(3), unchanged);
    // A part is no snapshot.
    lab.done(&["restore", "disk@1", "-o", "part.img", "--range", "0+512K"]);
    lab.remove("part.img");
    lab.done(&["restore", "disk@1", "-o", "part.img", "--range", "0+256K"]);
    let args = ["restore", "disk@1", "-o", "part.img", "--update", "--trust-target", "--json"];
    is_read(&lab.run(&args).done().json(), unchanged);
    lab.write("foreign.img", &states[0]);
    let done = update(&lab, "disk@2", "foreign.img", &["--trust-target"]);
    is_read(&done, "this host has no record of restoring it");

    // A note of another machine is none; nor is one that is damaged, or of a snapshot that is gone.
    let note = note_of(&lab);
    for (change, why) in
        [("machine", "no record of restoring it"), ("snapshot", "has been dropped")]
    {
        let mut record: Value = serde_json::from_slice(&lab.read(&note)).unwrap();
        let was = string(&record, change).to_owned();
        let is = was.replace(|c: char| c.is_ascii_hexdigit(), "7").replacen("-7", "-4", 2);
        record[change] = is.into();
        lab.write(&note, record.to_string().as_bytes());
        is_read(&trust(4), why);
    }
    lab.write(&note, b"{");
    is_read(&trust(1), "restored: ");
    lab.done(&["delete", "disk@1"]);
    is_read(&trust(2), "the snapshot that it was restored from has been dropped");
    // Another chain has other digests.
    lab.done(&["snapshot", "disk.img", "--full"]);
    let done = update(&lab, "disk@5", "out.img", &["--trust-target"]);
    is_read(&done, "disk@2 belongs to another chain");
}

/// The note of `out.img`.
fn note_of(lab: &Lab) -> String {
    let path = std::fs::canonicalize(lab.path("out.img")).unwrap();
    let digest = blake3::hash(path.to_str().unwrap().as_bytes()).to_hex();
    let folders = std::fs::read_dir(lab.path("state")).unwrap();
    let folders = folders.map(|folder| folder.unwrap().file_name().into_string().unwrap());
    let mut files = folders.map(|folder| format!("state/{folder}/{}.restored", &digest[..32]));
    files.find(|file| lab.exists(file)).unwrap()
}

/// Rule S7: before the first byte is written, a file is not known to be a snapshot any more.
#[test]
fn a_target_that_is_half_written_is_not_trusted() {
    let lab = Lab::new();
    if !trusts_times(&lab.path("")) {
        return skipped("update::a_target_that_is_half_written", "times are not trusted here");
    }
    let mut bytes = noise(1, 4 * MIB);
    lab.write("disk.img", &bytes);
    lab.done(&["snapshot", "disk.img"]);
    bytes[MIB..].copy_from_slice(&noise(2, 3 * MIB));
    lab.write("disk.img", &bytes);
    lab.done(&["snapshot", "disk.img"]);
    lab.done(&["restore", "disk@1", "-o", "out.img"]);
    let (note, delta) = (note_of(&lab), lab.delta("disk", 2));
    let at = lab.read(&delta).len() - 256 * KIB;
    lab.flip(&delta, at);
    let args =
        ["restore", "disk@2", "-o", "out.img", "--update", "--trust-target", "--threads", "1"];
    lab.run(&args).failed(DAMAGE);
    assert!(!lab.exists(&note));
    lab.flip(&delta, at);
    let done = lab.json(&args);
    assert_eq!(string(&done, "not_trusted"), "this host has no record of restoring it");
    same(&lab.read("out.img"), &bytes, "the target");
}

/// Rule S7.
#[test]
fn of_many_notes_the_newest_hundred_are_kept() {
    let lab = Lab::new();
    if !trusts_times(&lab.path("")) {
        return skipped("update::of_many_notes", "times are not trusted here");
    }
    lab.write("disk.img", &noise(1, BLOCK));
    lab.done(&["snapshot", "disk.img"]);
    lab.done(&["restore", "disk@1", "-o", "out.img"]);
    let folder = note_of(&lab).rsplit_once('/').unwrap().0.to_owned();
    for number in 0..120 {
        lab.write(&format!("{folder}/{number:032x}.restored"), b"{}");
    }
    lab.done(&["restore", "disk@1", "-o", "other.img"]);
    lab.done(&["restore", "disk@1", "-o", "out.img", "--force"]);
    let entries = std::fs::read_dir(lab.path(&folder)).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(names.filter(|name| name.ends_with(".restored")).count(), 100);
    assert!(lab.exists(&note_of(&lab)));
}

#[test]
fn what_a_seed_has_is_not_decoded() {
    let lab = Lab::new();
    let mut bytes = noise(1, 2 * MIB);
    lab.write("old.img", &bytes);
    // A part of each frame, and a whole one.
    for at in (0..MIB).step_by(96 * KIB) {
        bytes[at..][..BLOCK].copy_from_slice(&noise(at as u64 + 5, BLOCK));
    }
    bytes[MIB..][..128 * KIB].copy_from_slice(&noise(9, 128 * KIB));
    bytes.truncate(2 * MIB - 1000);
    lab.write("disk.img", &bytes);
    lab.done(&["snapshot", "disk.img"]);
    let differs = differing(&lab.read("old.img"), &bytes);
    let args = ["restore", "disk@1", "-o", "out.img", "--seed", "old.img"];
    let done = lab.json(&args);
    same(&lab.read("out.img"), &bytes, "with a seed");
    // What is beyond the end of the image is zeros in it, and not in the seed.
    let from_seed = bytes.len() as u64 - differs;
    assert_eq!(integer(&done, "seed_bytes"), from_seed);
    assert_eq!(integer(&done, "data_bytes"), bytes.len() as u64);
    assert_eq!(done["proved"], json!(true));
    let text = lab.done(&[&args[..], &["--force"]].concat());
    assert!(text.ends_with(" image digest checked; 1.83 MiB from old.img\n"), "{text}");
    // In the order of the image, and a part.
    let piped = lab.run(&["restore", "disk@1", "-o", "-", "--seed", "old.img"]).done();
    same(&piped.out, &bytes, "by a pipe");
    let range = ["restore", "disk@1", "-o", "-", "--seed", "old.img", "--range", "5000+1500000"];
    same(&lab.run(&range).done().out, &bytes[5000..][..1_500_000], "a part");

    // Frames of which the seed has everything are not even read.
    let delta = lab.delta("disk", 1);
    lab.flip(&delta, 3 * MIB / 2);
    lab.run(&["restore", "disk@1", "-o", "no.img"]).failed(DAMAGE);
    lab.done(&[&args[..], &["--force"]].concat());
    same(&lab.read("out.img"), &bytes, "with a damaged repository");

    // Onto what is there.
    lab.write("target.img", &noise(3, 2 * MIB));
    let done = update(&lab, "disk@1", "target.img", &["--force", "--seed", "old.img"]);
    same(&lab.read("target.img"), &bytes, "an update with a seed");
    assert_eq!(integer(&done, "seed_bytes"), from_seed);
    let text =
        lab.done(&["restore", "disk@1", "-o", "target.img", "--update", "--seed", "old.img"]);
    assert!(text.contains("\n  seed      0 B from old.img\n"), "{text}");
}

#[test]
fn a_seed_that_cannot_be_one_is_refused_and_one_that_is_of_no_use_is_not() {
    let (lab, states) = Lab::with_snapshots(2);
    lab.done(&["restore", "disk@1", "-o", "out.img"]);
    std::fs::create_dir(lab.path("folder")).unwrap();
    nix::unistd::mkfifo(&lab.path("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for (seed, what) in [
        ("missing", "missing"),
        ("folder", "is neither a file nor a block device"),
        ("pipe", "is neither a file nor a block device"),
    ] {
        let line = lab.fails(FAILED, &["restore", "disk@2", "-o", "new.img", "--seed", seed]);
        assert!(line.contains(what), "{line}");
    }
    for more in ["--force", "--update"] {
        let args = ["restore", "disk@2", "-o", "out.img", "--seed", "out.img", more];
        let line = lab.fails(FAILED, &args);
        assert!(line.contains("out.img is the target") && line.contains("--update"), "{line}");
    }
    lab.write("empty", b"");
    lab.write("short", &states[0][..100_001]);
    lab.write("noise", &noise(4, 512 * KIB));
    // A machine that runs may have it.
    let _user = hold_open(&lab, "disk.img");
    for seed in ["empty", "short", "noise", "disk.img"] {
        let args = ["restore", "disk@2", "-o", "new.img", "--force", "--seed", seed];
        let done = lab.json(&args);
        same(&lab.read("new.img"), &states[1], seed);
        let helped = integer(&done, "seed_bytes") > 0;
        assert_eq!(helped, seed == "short" || seed == "disk.img", "{seed}");
    }
}

#[test]
fn a_seed_that_changes_meanwhile_does_no_harm() {
    let lab = Lab::new();
    let bytes = noise(1, 4 * MIB);
    lab.write("disk.img", &bytes);
    lab.done(&["snapshot", "disk.img"]);
    lab.write("seed.img", &bytes);
    lab.write("target.img", &noise(2, 4 * MIB));
    let seed = {
        let _calm = no_fork();
        File::options().write(true).open(lab.path("seed.img")).unwrap()
    };
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = Random(3);
            while !is_over.load(Ordering::Relaxed) {
                let at = random.below(4 * MIB as u64);
                let wrong = noise(random.next(), 3000);
                seed.write_all_at(&wrong, at).unwrap();
                let right = &bytes[at as usize..];
                seed.write_all_at(&right[..right.len().min(3000)], at).unwrap();
                match random.below(50) {
                    0 => seed.set_len(at + 1).unwrap(),
                    1 => seed.write_all_at(&bytes, 0).unwrap(),
                    _ => {}
                }
            }
        });
        for round in 0..8 {
            let done =
                lab.json(&["restore", "disk@1", "-o", "out.img", "-f", "--seed", "seed.img"]);
            same(&lab.read("out.img"), &bytes, &format!("round {round}: {done}"));
            assert_eq!(done["proved"], json!(true));
            lab.write("target.img", &noise(round, 4 * MIB));
            update(&lab, "disk@1", "target.img", &["--force", "--seed", "seed.img"]);
            same(&lab.read("target.img"), &bytes, &format!("round {round}"));
        }
        is_over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn history_goes_both_ways_onto_one_file() {
    let (lab, states) = Lab::with_snapshots(6);
    let mut now = states[5].clone();
    change(&mut now, 99, 3);
    lab.write("out.img", &now);
    for number in [1, 6, 3, 2, 5, 4] {
        let wanted = &states[number - 1];
        let done = update(&lab, &format!("disk@{number}"), "out.img", &[]);
        same(&lab.read("out.img"), wanted, "the target");
        assert_eq!(integer(&done, "written_bytes"), differing(&now, wanted));
        now.clone_from(wanted);
    }
}
