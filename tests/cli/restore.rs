//! `imgsnap restore`

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::support::{
    BLOCK, BUSY, FAILED, INTERRUPTED, KIB, Lab, MIB, Run, disk, integer, noise, same, spawn,
    string, wait_until,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;

#[test]
fn every_snapshot_is_a_file_again_bit_for_bit() {
    let (lab, states) = Lab::with_snapshots(5);
    for (number, state) in (1..).zip(&states) {
        let reference = format!("disk@{number}");
        let out = format!("out-{number}.img");
        let done = lab.json(&["restore", &reference, "-o", &out]);
        same(&lab.read(&out), state, &reference);
        assert_eq!(string(&done, "ref"), reference);
        assert_eq!((string(&done, "name"), integer(&done, "number")), ("disk", number));
        assert_eq!(string(&done, "output"), out);
        assert_eq!(integer(&done, "image_bytes"), state.len() as u64);
        assert_eq!(integer(&done, "restored_bytes"), state.len() as u64);
        let data = state.chunks(BLOCK).filter(|b| b.iter().any(|b| *b != 0)).count() * BLOCK;
        assert_eq!(integer(&done, "data_bytes"), data as u64);
        assert_eq!(done["proved"], json!(true));
    }
}

#[test]
fn people_read_what_was_restored_and_checked() {
    let (lab, _) = Lab::with_snapshots(1);
    let text = lab.done(&["restore", "disk@1", "-o", "out.img"]);
    assert!(text.starts_with("disk@1 -> out.img  512 KiB ("), "{text}");
    assert!(text.ends_with("/s; each block and the image digest checked\n"), "{text}");
}

#[test]
fn a_new_file_has_holes_where_the_image_is_zero() {
    let lab = Lab::new();
    let mut bytes = vec![0; 2 * MIB];
    for at in [0, MIB, 2 * MIB - 1] {
        bytes[at] = 1;
    }
    lab.write("disk.img", &bytes);
    lab.done(&["snapshot", "disk.img"]);
    lab.done(&["restore", "disk@1", "-o", "out.img"]);
    same(&lab.read("out.img"), &bytes, "disk@1");
    assert!(lab.allocated("disk.img") >= 2 * MIB as u64, "the image itself has no holes");
    assert!(lab.allocated("out.img") <= 64 * KIB as u64, "{}", lab.allocated("out.img"));
    // Also if it takes the place of a file without holes.
    lab.write("full.img", &noise(1, 2 * MIB));
    lab.done(&["restore", "disk@1", "-o", "full.img", "--force"]);
    same(&lab.read("full.img"), &bytes, "disk@1");
    assert!(lab.allocated("full.img") <= 64 * KIB as u64, "{}", lab.allocated("full.img"));
}

#[test]
fn force_replaces_a_file_of_any_length() {
    let (lab, states) = Lab::with_snapshots(1);
    for length in [1, 511 * KIB, MIB] {
        lab.write("out.img", &noise(8, length));
        lab.fails(FAILED, &["restore", "disk@1", "-o", "out.img"]);
        lab.done(&["restore", "disk@1", "-o", "out.img", "--force"]);
        same(&lab.read("out.img"), &states[0], "disk@1");
    }
    lab.done(&["restore", "disk@1", "-o", "new.img", "--force"]);
    same(&lab.read("new.img"), &states[0], "force on a new file");
}

#[test]
fn force_replaces_what_a_link_points_to() {
    let (lab, states) = Lab::with_snapshots(1);
    lab.write("there.img", b"old");
    std::os::unix::fs::symlink("there.img", lab.path("link")).unwrap();
    lab.fails(FAILED, &["restore", "disk@1", "-o", "link"]);
    lab.done(&["restore", "disk@1", "-o", "link", "--force"]);
    assert!(lab.path("link").symlink_metadata().unwrap().is_symlink());
    same(&lab.read("there.img"), &states[0], "disk@1");
}

#[test]
fn stdout_is_the_image_and_nothing_else() {
    let (lab, states) = Lab::with_snapshots(3);
    for args in
        [&["restore", "disk@2", "-o", "-"][..], &["restore", "disk@2", "--output=-", "--json"]]
    {
        let run = lab.run(args).done();
        same(&run.out, &states[1], "disk@2");
        assert!(run.err.starts_with("imgsnap: disk@2 -> -  512 KiB"), "{}", run.err);
    }
    assert!(!lab.exists("-"));
}

#[test]
fn a_range_at_any_offset_is_that_part() {
    let lab = Lab::new();
    let bytes = disk(9, 300_001);
    lab.write("disk.img", &bytes);
    lab.done(&["snapshot", "disk.img"]);
    let end = bytes.len();
    for (offset, length) in [
        (0, 1),
        (1, 1),
        (4095, 2),
        (4097, 8191),
        (12_345, 100_000),
        (32 * KIB - 1, 32 * KIB + 2),
        (end - 1, 1),
        (end - 5000, 5000),
        (0, end),
    ] {
        let range = format!("{offset}+{length}");
        let run = lab.run(&["restore", "disk@1", "-o", "-", "--range", &range]).done();
        same(&run.out, &bytes[offset..][..length], &range);
        let args = ["restore", "disk@1", "-o", "part", "--force", "--range", &range];
        let done = lab.json(&args);
        same(&lab.read("part"), &bytes[offset..][..length], &range);
        assert_eq!(integer(&done, "restored_bytes"), length as u64);
        // Only of the whole image is there a digest.
        assert_eq!(done["proved"], json!(length == end), "{range}");
    }
    let run = lab.run(&["restore", "disk@1", "-o", "-", "--range", "64K+0.5KiB"]).done();
    same(&run.out, &bytes[64 * KIB..][..512], "64K+0.5KiB");
}

#[test]
fn a_range_beyond_the_end_is_refused_before_anything_is_made() {
    let (lab, _) = Lab::with_snapshots(1);
    for range in ["524288+1", "524287+2", "0+524289", "1T+1", "4E+1", "4096P+4096P", "524287+4096P"]
    {
        if range.contains('E') {
            // No such unit.
            lab.run(&["restore", "disk@1", "-o", "out", "--range", range]).misused();
            continue;
        }
        for out in ["out", "-"] {
            let line = lab.fails(FAILED, &["restore", "disk@1", "-o", out, "--range", range]);
            assert!(
                line.contains("is not within the image; it has 524288 bytes"),
                "{range}: {line}"
            );
        }
    }
}

#[test]
fn only_a_new_qcow2_is_compressed() {
    let (lab, _) = Lab::with_snapshots(1);
    for more in [
        &["-o", "new.raw"][..],
        &["-o", "new.qcow2", "--format", "raw"],
        &["-o", "-"],
        &["-o", "nbd+unix:///vm?socket=/none", "--force"],
    ] {
        let args = [&["restore", "disk@1", "--compress", "zstd"], more].concat();
        let line = lab.fails(FAILED, &args);
        assert!(line.contains("only a new qcow2 image can be compressed"), "{more:?}: {line}");
    }
    lab.done(&["restore", "disk@1", "--compress", "zstd", "-o", "new.img", "--format", "qcow2"]);
    assert!(lab.read("new.img").starts_with(b"QFI\xfb"));
}

#[test]
fn a_target_that_exists_is_left_alone() {
    let (lab, _) = Lab::with_snapshots(1);
    lab.write("mine", b"not yours");
    std::fs::create_dir(lab.path("folder")).unwrap();
    std::os::unix::fs::symlink("nowhere", lab.path("dangling")).unwrap();
    for target in ["mine", "disk.img", "dangling"] {
        let line = lab.fails(FAILED, &["restore", "disk@1", "-o", target]);
        assert!(
            line.contains(&format!("{target} exists; choose another name, or use --force")),
            "{line}"
        );
    }
    // Into a folder it goes under the name of its image.
    lab.write("folder/disk.img", b"not yours");
    let line = lab.fails(FAILED, &["restore", "disk@1", "-o", "folder"]);
    assert!(
        line.contains("folder/disk.img exists; choose another folder, or use --force"),
        "{line}"
    );
    lab.fails(FAILED, &["restore", "disk@1", "-o", "no/such/folder/out"]);
}

#[test]
fn a_target_that_somebody_has_open_is_left_alone_even_by_force() {
    let (lab, _) = Lab::with_snapshots(1);
    lab.write("out.img", b"in use");
    let user = crate::bad_input::hold_open(&lab, "out.img");
    let line = lab.fails(BUSY, &["restore", "disk@1", "-o", "out.img", "--force"]);
    assert!(line.contains("in use by sleep (process "), "{line}");
    drop(user);
    lab.done(&["restore", "disk@1", "-o", "out.img", "--force"]);
}

#[test]
fn the_live_image_may_be_replaced_and_is_looked_at_again_then() {
    let (lab, states) = Lab::with_snapshots(2);
    let inode = lab.path("disk.img").metadata().unwrap().ino();
    lab.done(&["restore", "disk@1", "-o", "disk.img", "--force"]);
    assert_ne!(lab.path("disk.img").metadata().unwrap().ino(), inode);
    let taken = lab.json(&["snapshot", "disk.img"]);
    assert_eq!(integer(&taken, "changed_blocks"), 3);
    lab.restores("disk@3", &states[0]);
}

/// Starts a restore into a pipe that nobody empties, and waits until it is full.
fn blocked_on_a_pipe(lab: &Lab, signals: &[Signal]) -> (Run, Vec<u8>) {
    let mut command = lab.command(&["restore", "disk@1", "-o", "-", "--threads", "1"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(&mut command);
    let id = child.id();
    let mut pipe = child.stdout.take().unwrap();
    let waits = || {
        std::fs::read_dir(format!("/proc/{id}/task")).unwrap().flatten().any(|task| {
            let at = std::fs::read_to_string(task.path().join("wchan")).unwrap_or_default();
            at.contains("pipe_w")
        })
    };
    let can_see = std::fs::read_to_string("/proc/self/wchan").is_ok_and(|w| !w.is_empty());
    if !can_see || !wait_until(waits) {
        // Not told what it waits for: by now it does.
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    assert!(child.try_wait().unwrap().is_none(), "it should wait for the pipe to be emptied");
    let id = Pid::from_raw(i32::try_from(id).unwrap());
    for signal in signals {
        kill(id, *signal).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    // With one signal it ends as soon as the pipe lets it go on; with two, at once.
    let mut begin = Vec::new();
    if signals.len() == 1 {
        pipe.read_to_end(&mut begin).unwrap();
    } else {
        assert!(wait_until(|| child.try_wait().unwrap().is_some()), "the second signal ends it");
    }
    drop(pipe);
    (Run::ended(&command, child.wait_with_output().unwrap()), begin)
}

#[test]
fn ctrl_c_stops_a_restore_into_a_full_pipe_and_exits_130() {
    let lab = Lab::new();
    // More than is on its way at a time.
    let bytes = noise(2, 8 * MIB);
    lab.write("disk.img", &bytes);
    lab.done(&["snapshot", "disk.img"]);
    let before = lab.everything();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // A batch that is being written ends first; then nothing more comes.
        let (run, begin) = blocked_on_a_pipe(&lab, &[signal]);
        run.failed(INTERRUPTED);
        assert!(begin.len() < bytes.len(), "it went on to the end");
        same(&begin, &bytes[..begin.len()], "what came before");
        let (run, _) = blocked_on_a_pipe(&lab, &[signal, signal]);
        assert_eq!((run.code, run.err.as_str()), (Some(INTERRUPTED), ""));
    }
    lab.ensure_untouched(&before, "an interrupted restore");
}
