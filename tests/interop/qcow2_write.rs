//! A qcow2 that is written is what QEMU reads: random sparse images against the same raw file.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;
use imgsnap::image::write::{ClusterCompression, NewQcow2, Target};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const TIB: u64 = 1 << 40;
const COMPRESSIONS: [Option<ClusterCompression>; 3] =
    [None, Some(ClusterCompression::Zlib), Some(ClusterCompression::Zstd)];

/// Writes the same to a qcow2 and to a raw file.
struct Pair {
    target: NewQcow2,
    raw: File,
    raw_path: String,
    path: String,
}

impl Pair {
    fn new(lab: &Lab, bytes: u64, compression: Option<ClusterCompression>) -> Self {
        let (path, raw_path) = (lab.path("new.qcow2"), lab.path("same.img"));
        make(&raw_path, bytes);
        let _calm = no_fork();
        let target = NewQcow2::create(Path::new(&path), bytes, true, compression).unwrap();
        let raw = File::options().write(true).open(&raw_path).unwrap();
        Self { target: target.with_threads(2), raw, raw_path, path }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.target.write(offset, bytes).unwrap();
        self.raw.write_all_at(bytes, offset).unwrap();
    }

    /// Finishes it. It is sound, and the same.
    #[track_caller]
    fn check(mut self) -> serde_json::Value {
        self.target.finish().unwrap();
        drop((self.target, self.raw));
        let checked = tool("qemu-img", &["check", "--output=json", "-f", "qcow2", &self.path]);
        let checked: serde_json::Value = serde_json::from_str(&checked).unwrap();
        assert_eq!(checked["check-errors"], 0, "{checked}");
        for kind in ["leaks", "corruptions"] {
            assert!(checked[kind].is_null(), "{checked}");
        }
        tool("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &self.raw_path, &self.path]);
        let info = tool("qemu-img", &["info", "--output=json", "-f", "qcow2", &self.path]);
        serde_json::from_str(&info).unwrap()
    }
}

/// As a restore writes: blocks that follow each other in one piece, mostly ascending, each once.
fn write_random(pair: &mut Pair, random: &mut Random, bytes: u64, most_bytes: u64) {
    let block = 4096 << random.below(9);
    let blocks = bytes.div_ceil(block);
    // Islands, so that clusters are written whole, in parts and in several parts.
    let mut wanted = std::collections::BTreeSet::new();
    let mut left = 1 + random.below(most_bytes / block);
    while left > 0 {
        let first = random.below(blocks);
        let count = (1 + random.below(40)).min(left).min(blocks - first);
        left -= count;
        wanted.extend(first..first + count);
    }
    let mut wanted: Vec<u64> = wanted.into_iter().collect();
    let swaps = random.below(4) * wanted.len() as u64 / 8;
    for _ in 0..swaps {
        let one = usize::try_from(random.below(wanted.len() as u64)).unwrap();
        let other = (one + usize::try_from(random.below(50)).unwrap()).min(wanted.len() - 1);
        wanted.swap(one, other);
    }
    let mut at = 0;
    while at < wanted.len() {
        let most = 1 + usize::try_from(random.below(20)).unwrap();
        let run = (at..wanted.len().min(at + most))
            .take_while(|i| wanted[*i] == wanted[at] + (i - at) as u64)
            .count();
        let offset = wanted[at] * block;
        let length = (run as u64 * block).min(bytes - offset);
        let data = match random.below(3) {
            0 => noise(random.next(), length),
            1 => text(random.next(), length),
            _ => vec![7; usize::try_from(length).unwrap()],
        };
        pair.write(offset, &data);
        at += run;
        let lowest = wanted[at..].iter().min().map_or(bytes, |block_index| block_index * block);
        if random.below(3) == 0 {
            pair.target.zero(lowest, 0).unwrap();
            pair.target.advance_watermark(lowest).unwrap();
        }
    }
}

#[test]
fn random_images_are_sound_and_the_same() {
    need!(tools(&["qemu-img"]));
    let lab = Lab::new();
    let mut random = Random(20_261_128);
    let rounds = std::env::var("IMGSNAP_ROUNDS").map_or(10, |text| text.parse().unwrap());
    for round in 0..rounds {
        for compression in COMPRESSIONS {
            let lengths = [
                random.below(MIB) + 1,
                40 * MIB + random.below(MIB),
                random.below(9 * TIB),
                3 * TIB,
            ];
            let bytes = pick(&mut random, &lengths);
            let seed = random.next();
            println!("round {round}: {bytes} bytes, {compression:?}, seed {seed}");
            let mut pair = Pair::new(&lab, bytes, compression);
            write_random(&mut pair, &mut Random(seed), bytes, 6 * MIB);
            assert_eq!(pair.target.image_bytes(), bytes.next_multiple_of(512));
            let info = pair.check();
            assert_eq!(info["virtual-size"], bytes.next_multiple_of(512));
            assert_eq!(info["cluster-size"], 65536);
            let special = &info["format-specific"]["data"];
            let kind = compression.map_or("zlib", ClusterCompression::name);
            assert_eq!(special["compat"], "1.1");
            assert_eq!(special["compression-type"], kind);
            assert_eq!(special["lazy-refcounts"], false);
            assert_eq!(special["refcount-bits"], 16);
            assert_eq!(special["corrupt"], false);
            assert!(info["backing-filename"].is_null());
        }
    }
}

/// What lies at the edges: nothing at all, one byte, whole and broken clusters and tables.
#[test]
fn images_of_every_length_are_sound_and_the_same() {
    need!(tools(&["qemu-img"]));
    let lab = Lab::new();
    let cluster = 64 << 10;
    let table = 512 * MIB;
    for compression in COMPRESSIONS {
        for bytes in [0, 1, 511, 512, cluster - 1, cluster, cluster + 1, table, table + 1] {
            let mut pair = Pair::new(&lab, bytes, compression);
            pair.write(0, &text(bytes, bytes.min(5000)));
            if bytes > 2 * cluster {
                pair.write(cluster, &text(bytes, 5000));
                pair.write(bytes - 5000, &text(bytes, 5000));
            }
            pair.check();
        }
    }
}

/// All of it, as a base is restored: compressed ones are smaller.
#[test]
fn a_full_image_is_smaller_if_it_is_compressed() {
    need!(tools(&["qemu-img"]));
    let lab = Lab::new();
    let bytes = 40 * MIB + 4096;
    let data =
        [text(1, bytes / 2), noise(2, bytes / 4), vec![9; 10 * MIB as usize + 1024]].concat();
    let mut sizes = Vec::new();
    for compression in COMPRESSIONS {
        let mut pair = Pair::new(&lab, bytes, compression);
        // Frames of 128 KiB, which do not begin where clusters do.
        for (index, piece) in data.chunks(128 << 10).enumerate() {
            let (one, other) = piece.split_at(piece.len().min(20 << 10));
            let offset = (index as u64) << 17;
            pair.write(offset, one);
            pair.write(offset + one.len() as u64, other);
            pair.target.advance_watermark(offset).unwrap();
        }
        pair.check();
        sizes.push(length(&lab.path("new.qcow2")));
    }
    assert!(sizes[0] > bytes && sizes[0] < bytes + MIB, "{sizes:?}");
    assert!(sizes[1] < bytes * 2 / 3 && sizes[2] < bytes * 2 / 3, "{sizes:?}");
}

/// More clusters wait for their rest than memory is for: some are written as they are.
#[test]
fn clusters_that_wait_too_long_are_not_compressed() {
    need!(tools(&["qemu-img"]));
    let lab = Lab::new();
    let bytes = 64 * MIB;
    for compression in COMPRESSIONS {
        let mut pair = Pair::new(&lab, bytes, compression);
        for part in [2, 0, 3, 1] {
            for cluster in 0..1024 {
                let seed = cluster * 4 + part;
                pair.write(cluster * 65536 + part * 16384, &text(seed, 16384));
            }
        }
        pair.check();
    }
}

/// Tables that have no memory any more are read again.
#[test]
fn images_with_many_tables_are_sound_and_the_same() {
    need!(tools(&["qemu-img"]));
    let lab = Lab::new();
    for (compression, bytes) in [(COMPRESSIONS[0], TIB), (COMPRESSIONS[2], TIB)] {
        let mut pair = Pair::new(&lab, bytes, compression);
        // Each of 300 tables, and there is place for 256, twice.
        for round in 0..2u64 {
            for table in 0..300 {
                let offset = table * 512 * MIB + round * MIB;
                pair.write(offset, &noise(offset, 4096));
            }
        }
        pair.check();
    }
}

/// Its clusters are larger; a file system may not have a raw file that long.
#[test]
fn an_image_of_a_hundred_tebibytes_is_sound() {
    need!(tools(&["qemu-img", "qemu-io"]));
    let lab = Lab::new();
    for compression in COMPRESSIONS {
        let path = lab.path("huge.qcow2");
        let bytes = 100 * TIB + 1;
        let mut target = NewQcow2::create(Path::new(&path), bytes, true, compression).unwrap();
        let places = [0, 4096, 50 * TIB, 100 * TIB - 4096];
        for (byte, offset) in (1..).zip(places) {
            target.write(offset, &[byte; 4096]).unwrap();
        }
        target.finish().unwrap();
        drop(target);
        tool("qemu-img", &["check", "-f", "qcow2", &path]);
        for (byte, offset) in (1..).zip(places) {
            let read = format!("read -P {byte} {offset} 4096");
            let out = tool("qemu-io", &["-r", "-f", "qcow2", "-c", &read, &path]);
            assert!(!out.contains("failed"), "{out}");
        }
        let read = format!("read -P 0 {} 4096", 99 * TIB);
        let out = tool("qemu-io", &["-r", "-f", "qcow2", "-c", &read, &path]);
        assert!(!out.contains("failed"), "{out}");
    }
}

/// More host clusters than one block of refcounts has.
#[test]
fn a_file_with_several_blocks_of_refcounts_is_sound() {
    need!(tools(&["qemu-img"]));
    let lab = Lab::new();
    let mut pair = Pair::new(&lab, 16 << 30, None);
    // Of each cluster a block alone: 2.2 GiB of clusters, which take 140 MiB of the disk.
    for cluster in (0..36_000u64).rev() {
        let byte = u8::try_from(cluster % 251).unwrap();
        pair.write(cluster * 65536, &[byte + 1; 4096]);
    }
    pair.check();
}

#[test]
fn nothing_is_left_of_one_that_is_not_finished() {
    let lab = Lab::new();
    let folder = lab.path("out");
    std::fs::create_dir(&folder).unwrap();
    let path = format!("{folder}/new.qcow2");
    for compression in COMPRESSIONS {
        let mut target = NewQcow2::create(Path::new(&path), MIB, false, compression).unwrap();
        target.write(0, &[1; 70_000]).unwrap();
        // Outside of the image.
        target.write(MIB - 1, &[1; 2]).unwrap_err();
        target.write(u64::MAX, &[1; 2]).unwrap_err();
        drop(target);
        assert!(names_in(&folder).is_empty(), "{:?}", names_in(&folder));
    }
    std::fs::write(&path, "other").unwrap();
    assert!(NewQcow2::create(Path::new(&path), MIB, false, None).is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"other");
}
