//! Where two clones of an image may differ, held against their bytes, on file systems with shared
//! extents.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;
use imgsnap::tracking::{ChangeHints, MapDifferences, TimeSpent, clone_into, extent_count};
use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::File;

const BLOCK: u64 = 4096;

/// Numbers that are the same every time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % end
    }
}

fn open(path: &str) -> File {
    File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

/// One thing that a machine, or its host, may do to an image.
fn change(image: &File, path: &str, dice: &mut Dice, round: u64) {
    let length = image.metadata().unwrap().len();
    let at = dice.below(length);
    let bytes = (1 + dice.below(60_000)).min(length - at).max(1);
    match dice.below(12) {
        0 => image.set_len(1 + dice.below(6 * MIB)).unwrap(),
        1 => {
            let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(image, mode, at as i64, bytes as i64).unwrap();
        }
        2 => {
            let mode = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(image, mode, at as i64, bytes as i64).unwrap();
        }
        3 => fallocate(image, FallocateFlags::FALLOC_FL_KEEP_SIZE, at as i64, 200_000).unwrap(),
        4 => {
            // Shared within the file, where the file system can.
            let from = dice.below(length) / BLOCK * BLOCK;
            let to = at / BLOCK * BLOCK;
            let bytes = (8 * BLOCK).min(length - from);
            let command = format!("reflink {path} {from} {to} {bytes}");
            // Refused where the ranges overlap or do not fit: then nothing changes.
            if try_tool("xfs_io", &["-c", &command, path]).is_err() {}
        }
        5 => put(path, at, &vec![0; bytes as usize]),
        _ => put(path, at, &noise(round * 31 + at, bytes)),
    }
    if dice.below(4) == 0 {
        image.sync_all().unwrap();
    }
}

/// Every block in which the clones differ is in a range that is named. Gives blocks named, and blocks
/// that differ.
fn held_against_their_bytes(older: &str, newer: &str) -> (u64, u64) {
    let mut differences =
        MapDifferences::new(open(older), open(newer), TimeSpent::default()).unwrap();
    let mut ranges = Vec::new();
    let mut last = 0;
    while let Some(range) = differences.next_range().unwrap() {
        let (start, end) = (range.offset, range.end());
        assert!(start < end, "an empty range");
        last = end.max(last);
        ranges.push((start, end));
    }
    let (old, new) = (std::fs::read(older).unwrap(), std::fs::read(newer).unwrap());
    let longest = old.len().max(new.len());
    let block = |bytes: &[u8], at: usize| {
        let mut block = vec![0; BLOCK as usize];
        let have = bytes.get(at..bytes.len().min(at + BLOCK as usize)).unwrap_or_default();
        block[..have.len()].copy_from_slice(have);
        block
    };
    let (mut named, mut differ) = (0, 0);
    for at in (0..longest).step_by(BLOCK as usize) {
        let (start, end) = (at as u64, at as u64 + BLOCK);
        let is_named = ranges.iter().any(|&(s, e)| s < end && e > start);
        let differs = block(&old, at) != block(&new, at);
        assert!(is_named || !differs, "block at {at} differs and is not named: {ranges:?}");
        named += u64::from(is_named);
        differ += u64::from(differs);
    }
    (named, differ)
}

fn histories(lab: &Lab, seed: u64) {
    let rounds = std::env::var("IMGSNAP_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(40);
    let path = lab.path("mnt/vm.img");
    let image = open(&path);
    image.set_len(4 * MIB).unwrap();
    put(&path, MIB, &noise(1, 2 * MIB));
    let mut dice = Dice(seed);
    let clone = |name: &str| {
        let to = lab.path(&format!("mnt/{name}"));
        clone_into(&image, &open(&to)).unwrap();
        to
    };
    let mut older = clone("clone.0");
    let (mut named, mut differ) = (0, 0);
    for round in 1..=rounds {
        for _ in 0..dice.below(6) {
            change(&image, &path, &mut dice, round);
        }
        let newer = clone(&format!("clone.{round}"));
        let (n, d) = held_against_their_bytes(&older, &newer);
        named += n;
        differ += d;
        std::fs::remove_file(&older).unwrap();
        older = newer;
    }
    assert!(differ > rounds, "nothing changed");
    assert!(named < 3 * differ, "{named} blocks named, {differ} differ");
    assert!(extent_count(&image).unwrap() > 0);
}

#[test]
fn no_change_on_xfs_is_missed() {
    let lab = Lab::new();
    let (_device, _mount) = need!(mounted(&lab, "mkfs.xfs", &["-q", "-m", "reflink=1"], 400));
    histories(&lab, 1);
}

#[test]
fn no_change_on_btrfs_is_missed() {
    let lab = Lab::new();
    let (_device, _mount) = need!(mounted(&lab, "mkfs.btrfs", &["-q"], 400));
    histories(&lab, 2);
}

#[test]
fn no_change_on_btrfs_without_copy_on_write_is_missed() {
    need!(tools(&["chattr"]));
    let lab = Lab::new();
    let (_device, _mount) = need!(mounted(&lab, "mkfs.btrfs", &["-q"], 400));
    // Every new file has the attribute then, as in the pools of libvirt.
    tool("chattr", &["+C", &lab.path("mnt")]);
    histories(&lab, 3);
}

#[test]
fn a_file_system_that_cannot_clone_is_told_apart() {
    let lab = Lab::new();
    let (_device, _mount) = need!(mounted(&lab, "mkfs.ext4", &["-q"], 64));
    let (from, to) = (open(&lab.path("mnt/a")), open(&lab.path("mnt/b")));
    from.set_len(MIB).unwrap();
    let error = clone_into(&from, &to).unwrap_err();
    assert_eq!(error.kind(), imgsnap::base::error::ErrorKind::Unsupported);
}
