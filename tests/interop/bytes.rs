//! Bytes and files: noise, holes, comparisons. No image is open here while another thread starts a process.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::no_fork;
pub use crate::random::Random;
use nix::unistd::{Whence, lseek64};
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};

/// Bytes that do not compress.
pub fn noise(seed: u64, bytes: u64) -> Vec<u8> {
    Random(seed).bytes(usize::try_from(bytes).unwrap())
}

/// One of them.
pub fn pick<T: Copy>(random: &mut Random, of: &[T]) -> T {
    of[usize::try_from(random.below(of.len() as u64)).unwrap()]
}

/// Bytes that compress, slowly.
pub fn text(seed: u64, bytes: u64) -> Vec<u8> {
    noise(seed, bytes).into_iter().map(|b| b"etaoin shrdlu\n"[usize::from(b) % 14]).collect()
}

/// A new file that is one hole.
pub fn make(path: &str, bytes: u64) {
    let _calm = no_fork();
    File::create(path).unwrap().set_len(bytes).unwrap();
}

pub fn set_length(path: &str, bytes: u64) {
    let _calm = no_fork();
    File::options().write(true).open(path).unwrap().set_len(bytes).unwrap();
}

pub fn put(path: &str, offset: u64, bytes: &[u8]) {
    let _calm = no_fork();
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(bytes, offset).unwrap();
    file.sync_all().unwrap();
}

pub fn get(path: &str, offset: u64, bytes: u64) -> Vec<u8> {
    let _calm = no_fork();
    let mut buffer = vec![0; usize::try_from(bytes).unwrap()];
    File::open(path).unwrap().read_exact_at(&mut buffer, offset).unwrap();
    buffer
}

/// Where a file has data, as the file system tells.
pub fn data_extents(path: &str) -> Vec<(u64, u64)> {
    let _calm = no_fork();
    let file = File::open(path).unwrap();
    let mut extents = Vec::new();
    let mut at = 0;
    while let Ok(data) = lseek64(&file, at, Whence::SeekData) {
        at = lseek64(&file, data, Whence::SeekHole).unwrap();
        extents.push((data as u64, (at - data) as u64));
    }
    extents
}

/// The length of a file or device.
pub fn length(path: &str) -> u64 {
    let _calm = no_fork();
    File::open(path).unwrap().seek(SeekFrom::End(0)).unwrap()
}

/// Bytes that a file takes up on its disk.
pub fn allocated(path: &str) -> u64 {
    std::fs::metadata(path).unwrap().blocks() * 512
}

/// A copy that is kept, with holes where there are zeros.
pub fn keep(from: &str, to: &str) {
    make(to, length(from));
    for (offset, piece) in pieces(from, length(from)) {
        if piece.iter().any(|&b| b != 0) {
            let _calm = no_fork();
            File::options().write(true).open(to).unwrap().write_all_at(&piece, offset).unwrap();
        }
    }
}

fn pieces(path: &str, bytes: u64) -> impl Iterator<Item = (u64, Vec<u8>)> {
    const PIECE: u64 = 64 << 10;
    let offsets = (0..bytes).step_by(usize::try_from(PIECE).unwrap());
    offsets.map(move |offset| (offset, get(path, offset, PIECE.min(bytes - offset))))
}

/// Fails unless both have the same length and bytes.
#[track_caller]
pub fn same(one: &str, other: &str) {
    assert_eq!(length(one), length(other), "the lengths of {one} and {other}");
    same_start(one, other, length(one));
}

/// Fails unless both begin with the same bytes.
#[track_caller]
pub fn same_start(one: &str, other: &str, bytes: u64) {
    for ((offset, a), (_, b)) in pieces(one, bytes).zip(pieces(other, bytes)) {
        if let Some(at) = a.iter().zip(&b).position(|(a, b)| a != b) {
            panic!("{one} and {other} differ at byte {}", offset + at as u64);
        }
    }
}

/// True if the times of files are believed there: then a rollback needs no scan.
pub fn trusts_times(path: &str) -> bool {
    let kind = nix::sys::statfs::statfs(path).unwrap().filesystem_type().0;
    [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010].contains(&kind)
}
