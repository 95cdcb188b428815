//! A disk of 15 TiB with next to nothing on it; and one that is full, in little memory.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;
use std::fs::File;

const MEMORY: u64 = 128 * MIB + OWN;
/// What the code of a program that was not optimised takes more of it: that is resident, too.
const OWN: u64 = if cfg!(debug_assertions) { 24 * MIB } else { 0 };
const TIB: u64 = 1 << 40;

/// Runs imgsnap, which must succeed, and gives its peak resident memory in bytes: by time(1) where
/// that is, else by looking all the time.
#[track_caller]
fn peak(lab: &Lab, args: &[&str]) -> u64 {
    let command = lab.command(args);
    if tools(&["time"]).is_ok() {
        let out = lab.path("time");
        let mut time = tool_command("time", &["-o", &out, "-f", "%M"]).unwrap();
        time.arg(command.get_program()).args(command.get_args()).env("IMGSNAP_REPO", &lab.repo);
        let output = output(&mut time).unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        return std::fs::read_to_string(out).unwrap().trim().parse::<u64>().unwrap() << 10;
    }
    let mut run = lab.start(args);
    let status = format!("/proc/{}/status", run.id());
    let mut highest = 0;
    while !run.is_over() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        let kibibytes = line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok());
        highest = highest.max(kibibytes.unwrap_or(0) << 10);
    }
    run.wait().done();
    assert!(highest > 0);
    highest
}

#[track_caller]
fn is_modest(lab: &Lab, args: &[&str]) {
    let peak = peak(lab, args);
    // The program itself takes that much: otherwise something else was measured.
    assert!(peak > MIB, "{args:?}: {peak} bytes");
    assert!(peak < MEMORY, "{args:?}: {} MiB", peak / MIB);
}

#[test]
fn disk_of_15_tib_takes_little_memory_and_stays_sparse() {
    let lab = Lab::new();
    let image = lab.path("huge.img");
    let bytes = 15 * TIB;
    if File::create(&image).unwrap().set_len(bytes).is_err() {
        return need!(Err("no files of 15 TiB in the temporary folder".to_owned()));
    }
    // In the first block, in the middle, across a round number, in the last block.
    let places =
        [(0, 4096), (3 * TIB + 12_288, 2 * MIB), (8 * TIB - 8192, MIB), (bytes - 4096, 4096)];
    for (seed, (offset, length)) in places.into_iter().enumerate() {
        put(&image, offset, &noise(seed as u64, length));
    }
    if data_extents(&image).iter().map(|e| e.1).sum::<u64>() > 16 * MIB {
        return need!(Err("no sparse files in the temporary folder".to_owned()));
    }
    is_modest(&lab, &["snapshot", &image]);
    let listed = lab.run(&["list", "--json"]).done().json();
    assert_eq!(listed[0]["changed_bytes"], 3 * MIB + 8192);
    assert_eq!(listed[0]["image_bytes"], bytes);
    put(&image, 5 * TIB, &noise(7, 10_000));
    is_modest(&lab, &["snapshot", &image]);
    is_modest(&lab, &["verify"]);
    is_modest(&lab, &["diff", "huge@1", &image]);

    let restored = lab.path("restored");
    is_modest(&lab, &["restore", "huge@1", "-o", &restored]);
    assert_eq!(length(&restored), bytes);
    for (offset, length) in places {
        assert!(get(&restored, offset, length) == get(&image, offset, length), "at {offset}");
        let range = format!("{offset}+{length}");
        let part = lab.run(&["restore", "huge@2", "-o", "-", "--range", &range]).done();
        assert!(part.out == get(&image, offset, length), "range {range}");
    }
    let extents = data_extents(&restored);
    let inside = |(at, length): &(u64, u64)| {
        places.iter().any(|(first, bytes)| at >= first && at + length <= first + bytes)
    };
    assert!(extents.iter().all(inside), "{extents:?}");
    assert!(allocated(&restored) < 4 * MIB, "{} bytes", allocated(&restored));
    assert_eq!(data_extents(&lab.restore("huge@2")), data_extents(&image));

    is_modest(&lab, &["rollback", &image, "--to", "huge@1", "--prove"]);
    assert_eq!(get(&image, 5 * TIB, 12_288), vec![0; 12_288]);
    assert_eq!(data_extents(&image), extents);
}

#[test]
fn full_disk_takes_little_memory() {
    let lab = Lab::new();
    let image = lab.path("full.img");
    let bytes = 160 * MIB;
    make(&image, bytes);
    let piece = noise(1, 16 * MIB);
    for offset in (0..bytes).step_by(16 << 20) {
        put(&image, offset, &piece);
        put(&image, offset, &offset.to_le_bytes());
    }
    is_modest(&lab, &["snapshot", &image]);
    is_modest(&lab, &["verify"]);
    let restored = lab.path("restored");
    is_modest(&lab, &["restore", "full@1", "-o", &restored]);
    same(&restored, &image);
    make(&image, bytes);
    is_modest(&lab, &["rollback", "full", "--to", "full@1"]);
    same(&restored, &image);
}

/// What takes most is compression: each thread has tables of its own.
#[test]
fn four_images_at_once_take_little_memory_whatever_compresses_them() {
    let lab = Lab::new();
    let images: Vec<String> = (0..4).map(|number| lab.path(&format!("{number}.img"))).collect();
    for (seed, image) in images.iter().enumerate() {
        make(image, 10 * MIB);
        put(image, 0, &text(seed as u64, 10 * MIB));
    }
    for (block, compression) in [("64K", "zstd:12"), ("256K", "zstd:12"), ("256K", "zstd:19")] {
        let repo = lab.path(&format!("repo-{block}-{compression}"));
        lab.run(&["--repo", &repo, "init", "--block-size", block]).done();
        let mut args =
            vec!["--repo", &repo, "--threads", "16", "snapshot", "--compression", compression];
        args.extend(images.iter().map(String::as_str));
        is_modest(&lab, &args);
    }
}

/// The more so if there are a million runs of zeros where the image was (FORMAT.md M5).
#[test]
fn an_image_of_4_eib_that_is_cut_to_5_bytes_takes_little_memory() {
    let lab = Lab::new();
    let _mount = need!(Mount::tmpfs(&lab.path("mnt"), "size=64m"));
    let image = lab.path("mnt/vm.img");
    need!(File::create(&image).unwrap().set_len(4 << 60).map_err(|e| e.to_string()));
    is_modest(&lab, &["snapshot", &image]);
    std::fs::write(&image, "hello").unwrap();
    is_modest(&lab, &["--threads", "16", "snapshot", &image]);
    is_modest(&lab, &["verify"]);
    assert_eq!(lab.run(&["restore", "vm@2", "-o", "-"]).done().out, b"hello");
}
