//! Snapshots of large images: several files, as one snapshot.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::mend::copy_folder;
use crate::naive_reader;
use crate::support::{DAMAGE, FAILED, KIB, Lab, disk, integer, no_fork, noise, spawn, string};
use serde_json::json;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

const CELL: usize = 64 * KIB;
const CELLS: usize = 16;

/// `vm.img` of 16 cells and a bit, all of it data but for cell 5, as a base in parts.
fn base() -> (Lab, Vec<u8>) {
    let lab = Lab::new();
    let mut image = noise(1, CELLS * CELL + 700);
    image[5 * CELL..6 * CELL].fill(0);
    lab.write("vm.img", &image);
    lab.done(&["snapshot", "vm.img", "--part-size", "64K", "--threads", "3"]);
    (lab, image)
}

/// As both readers have it.
fn holds(lab: &Lab, kept: &[(u64, &[u8])]) {
    lab.holds("vm", kept);
    for (number, bytes) in kept {
        let read = naive_reader::restore_from(&lab.path("repo/vm"), *number).unwrap();
        assert!(read == *bytes, "the second reader, {number}");
    }
}

/// O6, L1 to L4, G1 to G3: what the format says of them is what the second reader finds.
#[test]
fn a_large_image_is_stored_in_parts_and_a_small_one_is_not() {
    let (lab, image) = base();
    let parts = lab.parts("vm");
    // One for each cell with data; what is beyond the last line is a cell of its own.
    assert_eq!(parts[&1].len(), CELLS);
    holds(&lab, &[(1, &image)]);
    assert_eq!(lab.json(&["list", "vm"])[0]["kind"], "base");
    lab.write("small.img", &image[..CELL]);
    lab.done(&["snapshot", "small.img", "--part-size", "64K"]);
    assert_eq!(lab.parts("small").len(), 0);
    // The grid is that of the chain.
    let other = lab.fails(FAILED, &["snapshot", "vm.img", "--part-size", "128K"]);
    assert!(other.contains("has parts of 64K, not of 128K"), "{other}");
    lab.done(&["snapshot", "vm.img", "--part-size", "64K"]);
    for bad in ["0", "63K", "100K", "1K"] {
        lab.run(&["snapshot", "vm.img", "--part-size", bad]).misused();
    }
}

/// Lines of the grid and blocks lie where no hole begins or ends: data is found in the block in which a hole ends,
/// in the first, a middle and the last one of the image.
#[test]
fn data_that_begins_within_a_block_is_in_a_part() {
    let lab = Lab::new();
    // Blocks of 64 KiB, cells of four; the last block is short.
    let length = 21 * CELL - 12_000;
    let last = 20 * CELL + 30_000;
    let places =
        [[0, 9 * CELL, last], [CELL, 8 * CELL - 8192, 17 * CELL], [40_960, 14 * CELL, last]];
    let states = (0..).zip(places).map(|(round, starts)| {
        let mut image = vec![0; length];
        let calm = no_fork();
        let file = File::create(lab.path("vm.img")).unwrap();
        file.set_len(length as u64).unwrap();
        for start in starts {
            let data = noise(round, 5000);
            image[start..start + data.len()].copy_from_slice(&data);
            file.write_all_at(&data, start as u64).unwrap();
        }
        drop((file, calm));
        lab.done(&["snapshot", "vm.img", "--full", "--block-size", "64K", "--part-size", "256K"]);
        image
    });
    let states: Vec<Vec<u8>> = states.collect();
    let kept: Vec<(u64, &[u8])> = (1..).zip(states.iter().map(Vec::as_slice)).collect();
    holds(&lab, &kept);
}

#[test]
fn whatever_is_done_with_parts_gives_the_same_image() {
    let (lab, first) = base();
    let mut second = first.clone();
    second[3 * CELL + 100..9 * CELL].copy_from_slice(&noise(2, 6 * CELL - 100));
    let mut third = second[..11 * CELL + 17].to_vec();
    third[..9].copy_from_slice(b"different");
    let fourth = [&third[..], &noise(3, 7 * CELL)].concat();
    for image in [&second, &third, &fourth] {
        lab.write("vm.img", image);
        lab.done(&["snapshot", "vm.img"]);
    }
    let states = [first, second, third, fourth];
    let kept: Vec<(u64, &[u8])> = (1..).zip(states.iter().map(Vec::as_slice)).collect();
    // A large change is cut, too, and a small one is not.
    let parts = lab.parts("vm");
    assert!(parts[&2].len() > 2 && parts[&4].len() > 2 && !parts.contains_key(&3), "{parts:?}");
    holds(&lab, &kept);
    for (number, state) in &kept {
        lab.done(&["rollback", "vm", "--to", &format!("vm@{number}"), "--no-save"]);
        assert!(lab.read("vm.img") == *state, "{number}");
    }
    // One portable file, whatever the parts.
    lab.done(&["export", "vm@4", "-o", "full.delta"]);
    lab.done(&["export", "vm@2", "--since", "vm@4", "-o", "back.delta"]);
    lab.done(&["apply", "full.delta", "back.delta", "-o", "applied.img"]);
    assert!(lab.read("applied.img") == states[1]);
    lab.done(&["import", "full.delta", "--name", "copy", "--repo", &lab.at("other")]);
    lab.done(&["restore", "copy@4", "-o", "copied.img", "--repo", &lab.at("other")]);
    assert!(lab.read("copied.img") == states[3]);
    lab.done(&["flatten", "vm@3"]);
    holds(&lab, &kept);
    lab.done(&["delete", "vm@2"]);
    lab.done(&["prune", "vm", "--keep-last", "1", "--compact"]);
    holds(&lab, &kept[3..]);
}

/// A prune writes only those parts of a base in which something has changed.
#[test]
fn what_no_newer_file_touches_is_kept_as_it_is() {
    let (lab, mut image) = base();
    let before = lab.parts("vm")[&1].clone();
    for (round, at) in [(2, 7 * CELL), (3, 7 * CELL + 9000)] {
        image[at..at + 5000].copy_from_slice(&noise(round, 5000));
        lab.write("vm.img", &image);
        lab.done(&["snapshot", "vm.img"]);
    }
    let pruned = lab.json(&["prune", "vm", "--keep-last", "1", "--compact"]);
    let after = lab.parts("vm")[&3].clone();
    let kept = after.iter().filter(|part| before.contains(part)).count();
    assert_eq!((kept, after.len()), (before.len() - 1, before.len()));
    holds(&lab, &[(3, &image)]);
    let written = integer(&pruned[0]["merged"][0], "after_bytes");
    assert!(written < (2 * CELL) as u64, "{pruned}");
    // Where the image has grown since, the last part is one of those that change.
    image.extend(noise(9, 3 * CELL));
    lab.write("vm.img", &image);
    lab.done(&["snapshot", "vm.img"]);
    lab.done(&["prune", "vm", "--keep-last", "1", "--compact"]);
    holds(&lab, &[(4, &image)]);
}

/// The parts that are finished, as `list` tells, once there is an image.
fn finished(lab: &Lab) -> Option<u64> {
    let run = lab.run(&["list", "vm", "--json"]);
    let list = (run.code == Some(0)).then(|| run.json())?;
    let pending = list.as_array()?.iter().find(|s| s["kind"] == "pending")?;
    Some(integer(pending, "parts"))
}

/// Starts a base that is read slowly, and kills it once some parts of it are finished.
fn interrupt(lab: &Lab) -> u64 {
    let args = ["snapshot", "vm.img", "--part-size", "64K", "--limit-read", "1M", "--threads", "1"];
    let mut command = lab.command(&args);
    let mut child = spawn(command.stdout(Stdio::null()).stderr(Stdio::null()));
    let until = Instant::now() + Duration::from_secs(60);
    while finished(lab).unwrap_or(0) < 4 {
        assert!(Instant::now() < until, "no part was finished");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    finished(lab).unwrap()
}

#[test]
fn an_interrupted_base_goes_on_with_what_is_still_so() {
    let lab = Lab::new();
    let mut image = noise(1, 60 * CELL);
    lab.write("vm.img", &image);
    let parts = interrupt(&lab);
    assert!(parts >= 4);
    let told = lab.done(&["list", "vm"]);
    assert!(
        told.contains("1 is not finished: ") && told.contains(" finished parts, kept"),
        "{told}"
    );
    let pending =
        lab.stored("vm").into_iter().filter(|f| f.ends_with(".delta")).collect::<Vec<_>>();
    // No garbage, whoever comes by.
    lab.run(&["prune", "vm", "--keep-last", "1"]);
    lab.done(&["verify"]);
    // Nothing is believed without a look.
    image[2 * CELL + 5] ^= 1;
    lab.write("vm.img", &image);
    let taken = lab.json(&["snapshot", "vm.img", "--part-size", "64K"]);
    assert_eq!(integer(&taken, "number"), 1);
    let named = lab.parts("vm")[&1].clone();
    let kept = pending.iter().filter(|file| named.contains(file)).count() as u64;
    assert!(kept + 1 >= parts && kept < named.len() as u64, "{kept} of {parts}");
    assert_eq!(finished(&lab), None);
    lab.done(&["snapshot", "vm.img"]);
    holds(&lab, &[(1, &image), (2, &image)]);
}

#[test]
fn a_repair_finds_layers_and_their_parts_and_guesses_nothing() {
    let (lab, image) = base();
    let parts = lab.parts("vm")[&1].clone();
    lab.lose_manifests("vm");
    let repaired = lab.json(&["repair", "vm"]);
    assert_eq!(integer(&repaired, "snapshots"), 1, "{repaired}");
    holds(&lab, &[(1, &image)]);
    assert_eq!(lab.parts("vm")[&1], parts);
    // Without the layer file nobody knows what they are of.
    let layer = lab.delta("vm", 1);
    lab.write("vm.img", b"other");
    lab.done(&["snapshot", "vm.img", "--full"]);
    lab.lose_manifests("vm");
    lab.remove(&layer);
    let run = lab.run(&["repair", "vm", "--json"]);
    assert_eq!(run.code, Some(DAMAGE), "{}", run.err);
    let repaired = run.json();
    assert_eq!(integer(&repaired, "snapshots"), 1, "{repaired}");
    let left: Vec<&str> =
        repaired["unused"].as_array().unwrap().iter().map(|u| string(u, "file")).collect();
    let told = repaired.to_string();
    assert!(told.contains("that no file refers to"), "{told}");
    assert!(
        parts.iter().all(|part| left.iter().any(|file| file.contains(part.as_str()))),
        "{told}"
    );
    lab.done(&["snapshot", "vm.img"]);
    assert!(parts.iter().all(|part| lab.exists(&format!("repo/vm/{part}"))));
}

#[test]
fn a_damaged_or_missing_part_is_told_and_comes_back_from_a_copy() {
    let (lab, image) = base();
    copy_folder(&lab, "repo", "copy");
    let parts = lab.parts("vm")[&1].clone();
    lab.flip(&format!("repo/vm/{}", parts[3]), 5000);
    lab.remove(&format!("repo/vm/{}", parts[7]));
    let run = lab.run(&["verify", "vm", "--json"]);
    assert_eq!(run.code, Some(DAMAGE));
    let told = run.json().to_string();
    assert!(told.contains(&parts[7]) && told.contains(&parts[3]), "{told}");
    // What lies elsewhere can still be read: no other part is opened for it.
    let range = format!("{}+{}", 10 * CELL, 2 * CELL);
    lab.done(&["restore", "vm@1", "--range", &range, "-o", "some"]);
    assert!(lab.read("some") == image[10 * CELL..12 * CELL]);
    let missing = lab.run(&["restore", "vm@1", "-o", "all"]).failed(DAMAGE);
    assert!(missing.contains("vm@1") || missing.contains(&parts[3]), "{missing}");
    let repaired = lab.json(&["repair", "vm", "--from", &lab.at("copy")]);
    assert_eq!(repaired["files"][0]["by"], json!("copy"), "{repaired}");
    holds(&lab, &[(1, &image)]);
    // Without one, from what else has the blocks.
    lab.flip(&format!("repo/vm/{}", parts[3]), 5000);
    let repaired = lab.json(&["repair", "vm", "--from", "vm.img"]);
    assert_eq!(repaired["files"][0]["by"], json!("blocks"), "{repaired}");
    holds(&lab, &[(1, &image)]);
}

/// What a part is against is proved, whatever wrote it: its header, its range, its sums.
#[test]
fn a_part_of_another_snapshot_is_not_taken_for_one_of_this() {
    let (lab, image) = base();
    lab.write("vm.img", &disk(7, image.len()));
    lab.done(&["snapshot", "vm.img", "--full"]);
    let parts = lab.parts("vm");
    lab.copy(&format!("repo/vm/{}", parts[&2][4]), &format!("repo/vm/{}", parts[&1][4]));
    let refused = lab.run(&["restore", "vm@1", "-o", "out"]).failed(DAMAGE);
    assert!(refused.contains("it is not the part that"), "{refused}");
}
