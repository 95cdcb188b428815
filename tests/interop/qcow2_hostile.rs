//! qcow2 files as an enemy may write them: whatever stands in header and tables, we read something or refuse, and
//! come to an end.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]
#![allow(clippy::big_endian_bytes, reason = "qcow2 is big-endian")]

use crate::kit::*;
use crate::qcow2_images::*;
use crate::random::Random;
use imgsnap::image::qcow2::Qcow2Image;
use std::os::unix::fs::FileExt;

/// A disk with all that a file can have in it: clusters of each kind, a snapshot, bitmaps, a backing file.
fn rich_disk(lab: &Lab, number: u64) -> String {
    let (path, base) = (lab.path(&format!("{number}.qcow2")), lab.path(&format!("{number}.base")));
    let cluster = [512, 4096, 65536, 4096, 16384][number as usize];
    make(&base, MIB);
    put(&base, 0, &noise(number, 200_000));
    let options =
        format!("cluster_size={cluster},compat={}", if number == 3 { "0.10" } else { "1.1" });
    let more = if number == 4 { ",extended_l2=on,compression_type=zstd" } else { "" };
    let options = options + more;
    let create = ["create", "-q", "-f", "qcow2", "-o", &options];
    if number.is_multiple_of(2) {
        tool("qemu-img", &[&create[..], &["-b", &base, "-F", "raw", &path, "2M"]].concat());
    } else {
        tool("qemu-img", &[&create[..], &[&path, "2M"]].concat());
    }
    let run = |commands: &[&str]| {
        let commands: Vec<&str> = commands.iter().flat_map(|command| ["-c", command]).collect();
        try_tool("qemu-io", &[&["-f", "qcow2"], &commands[..], &[&path]].concat()).ok();
    };
    let compressed = format!("write -c -P 9 1M {cluster}");
    run(&["write -P 7 100k 300k", &compressed]);
    tool("qemu-img", &["snapshot", "-c", "s", &path]);
    if number != 3 {
        tool("qemu-img", &["bitmap", "--add", "-g", "512", &path, "b"]);
        tool("qemu-img", &["bitmap", "--add", "-g", "64k", &path, "c"]);
    }
    run(&["write -P 8 200k 100k", "write -z 1200k 200k", "discard 100k 64k"]);
    path
}

/// Where tables are, and the header as often as all of them together.
fn places(bytes: &[u8]) -> Vec<u64> {
    let number = |at: usize| u64::from_be_bytes(bytes[at..][..8].try_into().unwrap());
    let mut places = vec![number(40), number(48), number(64)];
    let l1 = number(40) as usize;
    places.extend((0..4).map(|n| number(l1 + 8 * n) & 0x00ff_ffff_ffff_fe00));
    places.push(number(number(48) as usize));
    let directory = bytes.windows(4).position(|w| w == [0x23, 0x85, 0x28, 0x75]);
    if let Some(at) = directory {
        let directory = number(at + 8 + 16);
        places.extend([directory, number(directory as usize)]);
    }
    places.retain(|at| *at > 0 && *at + 512 <= bytes.len() as u64);
    let headers = places.len();
    places.extend(std::iter::repeat_n(0, headers));
    places
}

const WORDS: [u64; 12] = [
    0,
    1,
    511,
    1 << 16,
    1 << 31,
    1 << 32,
    1 << 62,
    (1 << 62) | (1 << 20),
    1 << 63,
    u64::MAX,
    u64::MAX / 2,
    0x00ff_ffff_ffff_fe00,
];

/// Some places changed: any bytes, numbers at the edge, places that exist.
fn mutate(random: &mut Random, places: &[u64], bytes: &mut [u8]) {
    for _ in 0..=random.below(3) {
        let place = places[random.below(places.len() as u64) as usize];
        let within = [16, 112, 512][random.below(3) as usize];
        let at = (place + random.below(within)) as usize;
        match random.below(4) {
            0 => bytes[at] = random.next() as u8,
            1 => bytes[at] ^= 1 << random.below(8),
            2 => {
                let word =
                    WORDS[random.below(WORDS.len() as u64) as usize].wrapping_add(random.below(2));
                bytes[at & !3..][..8].copy_from_slice(&word.to_be_bytes());
            }
            _ => {
                // A table that is another one, or itself, or the header.
                let word = places[random.below(places.len() as u64) as usize] | (1 << 63);
                bytes[at & !7..][..8].copy_from_slice(&word.to_be_bytes());
            }
        }
    }
}

fn use_it(image: &Qcow2Image) -> imgsnap::Result<()> {
    read_all(image, 300_000, 16 << 20)?;
    for bitmap in image.bitmaps()? {
        let Ok(ranges) = image.dirty_ranges(&bitmap.name) else { continue };
        assert!(ranges.windows(2).all(|pair| pair[0].end() < pair[1].offset));
    }
    Ok(())
}

/// The most memory that this process ever had, in KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The files in the lab that this process has open.
fn open_files(lab: &Lab) -> Vec<String> {
    let folder = lab.path("");
    let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let files = links.filter_map(|link| std::fs::read_link(link.path()).ok());
    let files = files.map(|file| file.to_str().unwrap().to_owned());
    files.filter(|file| file.starts_with(&folder)).collect()
}

/// `IMGSNAP_ROUNDS=10000` for more of them, `IMGSNAP_SEED` for others.
#[test]
fn changed_headers_and_tables_are_read_or_refused() {
    need!(tools(QEMU));
    let number = |variable: &str, usual: u64| {
        std::env::var(variable).map_or(usual, |text| text.parse().unwrap())
    };
    let (rounds, seed) = (number("IMGSNAP_ROUNDS", 800), number("IMGSNAP_SEED", 90));
    let lab = Lab::new();
    let disks: Vec<(String, Vec<u8>)> = (0..5)
        .map(|number| {
            let path = rich_disk(&lab, number);
            let bytes = std::fs::read(&path).unwrap();
            (path, bytes)
        })
        .collect();
    let before = peak();
    let (mut read, mut refused) = (0, 0);
    for round in 0..rounds {
        let mut random = Random(seed + round);
        let (path, whole) = &disks[random.below(5) as usize];
        let mut bytes = whole.clone();
        mutate(&mut random, &places(whole), &mut bytes);
        let _open = no_fork();
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        drop(file);
        // Not allowed to open another file, it opens none, whatever the header says.
        if let Ok(image) = open(path, false) {
            use_it(&image).ok();
            assert_eq!(open_files(&lab), std::slice::from_ref(path), "round {round}");
            drop(image);
        }
        match open(path, true).and_then(|image| use_it(&image)) {
            Ok(()) => read += 1,
            Err(e) => {
                let text = e.to_string();
                assert!(!text.contains('\n') && text.len() < 2000, "round {round}: {text}");
                assert_ne!(e.kind(), imgsnap::ErrorKind::Internal, "round {round}: {text}");
                refused += 1;
            }
        }
    }
    println!("{rounds} files: {read} read, {refused} refused, {} KiB", peak() - before);
    assert!(read > rounds / 20 && refused > rounds / 20, "{read} read, {refused} refused");
    assert!(peak() - before < 512 << 10, "{} KiB", peak() - before);
}
