//! `imgsnap diff`

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::support::{BLOCK, DAMAGE, FAILED, KIB, Lab, disk, integer, noise};
use serde_json::{Value, json};

/// 64 blocks of noise, and a second version in which blocks 0, 10, 11 and 63 differ.
fn two_versions() -> (Vec<u8>, Vec<u8>) {
    let before = noise(1, 64 * BLOCK);
    let mut after = before.clone();
    for at in [0, 10 * BLOCK + 7, 12 * BLOCK - 1, 64 * BLOCK - 1] {
        after[at] ^= 0x80;
    }
    (before, after)
}

fn extents() -> Value {
    json!([
        {"offset": 0, "bytes": 4096},
        {"offset": 40960, "bytes": 8192},
        {"offset": 258_048, "bytes": 4096},
    ])
}

fn two_snapshots() -> (Lab, Vec<u8>, Vec<u8>) {
    let lab = Lab::new();
    let (before, after) = two_versions();
    lab.write("disk.img", &before);
    lab.done(&["snapshot", "disk.img"]);
    lab.write("old.img", &before);
    lab.write("disk.img", &after);
    lab.done(&["snapshot", "disk.img"]);
    (lab, before, after)
}

#[test]
fn snapshots_and_images_in_any_pairing_differ_where_they_do() {
    let (lab, ..) = two_snapshots();
    // A base with another key, from which nothing can be told without reading.
    lab.done(&["snapshot", "disk.img", "--full"]);
    for (before, after, from_tables) in [
        ("disk@1", "disk@2", true),
        ("disk@2", "disk@1", true),
        ("disk@1", "disk.img", false),
        ("disk.img", "disk@1", false),
        ("old.img", "disk.img", false),
        ("old.img", "disk@latest", false),
        ("disk@1", "disk@3", false),
        ("disk@3", "disk@1", false),
    ] {
        let found = lab.json(&["diff", before, after]);
        let what = format!("{before} {after}: {found}");
        assert_eq!(integer(&found, "changed_bytes"), 4 * BLOCK as u64, "{what}");
        assert_eq!(integer(&found, "changed_blocks"), 4, "{what}");
        assert_eq!(integer(&found, "extent_count"), 3, "{what}");
        assert_eq!(found["extents"], extents(), "{what}");
        assert_eq!(found["from_tables"], json!(from_tables), "{what}");
        assert_eq!((&found["before"], &found["after"]), (&json!(before), &json!(after)));
        assert_eq!(integer(&found, "before_bytes"), 64 * BLOCK as u64, "{what}");
        assert_eq!(integer(&found, "block_bytes"), BLOCK as u64, "{what}");
    }
}

#[test]
fn equal_ones_are_identical() {
    let (lab, ..) = two_snapshots();
    lab.done(&["snapshot", "disk.img", "--full"]);
    for (before, after) in [
        ("disk@1", "disk@1"),
        ("disk@2", "disk.img"),
        ("disk@1", "old.img"),
        ("disk@2", "disk@3"),
        ("disk.img", "disk.img"),
    ] {
        let found = lab.json(&["diff", before, after]);
        assert_eq!((integer(&found, "changed_bytes"), &found["extents"]), (0, &json!([])));
        let text = lab.done(&["diff", before, after]);
        assert_eq!(text, format!("{before} -> {after}\n  identical  256 KiB compared\n"));
    }
}

#[test]
fn people_see_how_much_and_where() {
    let (lab, ..) = two_snapshots();
    let text = lab.done(&["diff", "disk@1", "disk@2"]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "disk@1 -> disk@2");
    assert_eq!(lines[1], "  changed    16.0 KiB, 4 blocks of 4.00 KiB (6.2 % of the image)");
    assert_eq!(lines[2], "  extents    3, 5.33 KiB on average");
    assert_eq!(lines[3], "  largest    8.00 KiB at 40.0 KiB");
    assert_eq!(lines[4], "  map        one character per 1.00 KiB");
    assert_eq!(lines[5], "  legend     · below 4 %  ░ 16 %  ▒ 36 %  ▓ 64 %  █ above");
    // 256 cells of a KiB in four rows: the first four, two blocks in the first row, the last four.
    let rows: Vec<&str> =
        lines[6..].iter().map(|l| l.trim_start_matches("  |").trim_end_matches('|')).collect();
    assert_eq!(rows.len(), 4, "{text}");
    let dark: Vec<usize> = rows
        .iter()
        .enumerate()
        .flat_map(|(row, cells)| {
            assert_eq!(cells.chars().count(), 64, "{text}");
            cells
                .chars()
                .enumerate()
                .filter(|(_, c)| *c != ' ')
                .map(move |(at, _)| row * 64 + at)
                .collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(dark, (0..4).chain(40..48).chain(252..256).collect::<Vec<_>>(), "{text}");
}

#[test]
fn two_images_are_compared_without_any_repository() {
    let lab = Lab::bare();
    let (before, after) = two_versions();
    lab.write("a.img", &before);
    lab.write("b.img", &after);
    assert_eq!(lab.json(&["diff", "a.img", "b.img"])["extents"], extents());
    assert!(!lab.exists("repo"));
}

#[test]
fn a_live_image_is_read_as_is_recorded_of_it_and_any_other_as_it_looks() {
    let (lab, _, mut after) = two_snapshots();
    after[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    lab.write("disk.img", &after);
    lab.write("copy.img", &after);
    std::os::unix::fs::symlink("disk.img", lab.path("link.img")).unwrap();
    for image in ["disk.img", "link.img"] {
        for args in [["diff", "disk@2", image], ["diff", image, "disk@2"]] {
            let run = lab.run(&[&args[..], &["--json"]].concat()).done();
            assert!(run.err.contains("is read as raw, as before"), "{args:?}: {}", run.err);
            assert_eq!(integer(&run.json(), "changed_blocks"), 1, "{args:?}");
        }
    }
    for (before, after) in [("disk@2", "copy.img"), ("old.img", "disk.img")] {
        let line = lab.run(&["diff", before, after]).failed(DAMAGE);
        assert!(line.contains("header is malformed"), "{line}");
        let found = lab.json(&["diff", before, after, "--format", "raw"]);
        assert_eq!(integer(&found, "before_bytes"), 64 * BLOCK as u64, "{found}");
    }
    let line = lab.run(&["diff", "old.img", "disk.img", "--format", "qcow2"]).failed(FAILED);
    assert!(line.contains("old.img is not a qcow2 image"), "{line}");
}

#[test]
fn what_is_beyond_the_end_of_the_shorter_one_is_zero() {
    let lab = Lab::new();
    let long = noise(4, 10 * BLOCK + 100);
    lab.write("disk.img", &long);
    lab.done(&["snapshot", "disk.img"]);
    lab.write("disk.img", &long[..4 * BLOCK + 1]);
    lab.done(&["snapshot", "disk.img"]);
    for (before, after) in [("disk@1", "disk@2"), ("disk@1", "disk.img")] {
        let found = lab.json(&["diff", before, after]);
        assert_eq!(integer(&found, "before_bytes"), long.len() as u64);
        assert_eq!(integer(&found, "after_bytes"), 4 * BLOCK as u64 + 1);
        let bytes = 6 * BLOCK as u64 + 100;
        assert_eq!(integer(&found, "changed_bytes"), bytes, "{before} {after}");
        assert_eq!(found["extents"], json!([{"offset": 4 * BLOCK, "bytes": bytes}]));
    }
    let text = lab.done(&["diff", "disk@1", "disk@2"]);
    assert!(text.contains("  image      40.1 KiB -> 16.0 KiB\n"), "{text}");
}

#[test]
fn images_of_different_lengths_are_not_called_identical() {
    let lab = Lab::new();
    let bytes = disk(3, 64 * KIB);
    lab.write("a.img", &bytes);
    lab.write("b.img", &[bytes, vec![0; 8192]].concat());
    let text = lab.done(&["diff", "a.img", "b.img"]);
    assert!(text.contains("  image      64.0 KiB -> 72.0 KiB"), "{text}");
    assert!(!text.contains("identical"), "{text}");
}

#[test]
fn larger_blocks_make_coarser_extents() {
    let lab = Lab::bare();
    lab.done(&["init", "--block-size", "64K"]);
    let (before, after) = two_versions();
    lab.write("disk.img", &before);
    lab.done(&["snapshot", "disk.img"]);
    lab.write("disk.img", &after);
    lab.done(&["snapshot", "disk.img"]);
    for other in ["disk@2", "disk.img"] {
        let found = lab.json(&["diff", "disk@1", other]);
        assert_eq!(integer(&found, "block_bytes"), 65536);
        let wanted = json!([{"offset": 0, "bytes": 65536}, {"offset": 196_608, "bytes": 65536}]);
        assert_eq!(found["extents"], wanted, "{other}");
    }
}

#[test]
fn what_cannot_be_compared_is_named() {
    let (lab, ..) = two_snapshots();
    for (before, after, said) in [
        ("disk@1", "disk@9", "there is no snapshot disk@9"),
        ("nowhere@1", "disk@1", "no image \"nowhere\" in the repository"),
        ("disk@1", "nowhere.img", "nowhere.img"),
        ("repo", "disk@1", "is a folder"),
    ] {
        let line = lab.fails(FAILED, &["diff", before, after]);
        assert!(line.contains(said), "{before} {after}: {line}");
    }
}

#[test]
fn damaged_tables_are_not_compared() {
    let (lab, ..) = two_snapshots();
    let base = lab.delta("disk", 1);
    // In the digests, which stand at the end, before the footer.
    lab.flip(&base, lab.read(&base).len() - 512 - 8);
    for other in ["disk@2", "old.img"] {
        let line = lab.fails(DAMAGE, &["diff", "disk@1", other]);
        assert!(line.contains("checksum") && line.contains(".delta"), "{line}");
    }
}
