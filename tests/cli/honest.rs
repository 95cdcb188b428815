//! Lists that tell the truth, since any ancestor, of any history: each snapshot is what the image was.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::support::{BLOCK, KIB, Lab, Random, integer, noise, string};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// One thing that a machine may do to its disk.
fn disturb(bytes: &mut Vec<u8>, dice: &mut Random) {
    let at = dice.below(bytes.len() as u64) as usize;
    let length = (1 + dice.below(40_000) as usize).min(bytes.len() - at);
    match dice.below(8) {
        0 => bytes.resize((1 + dice.below(900)) as usize * KIB + dice.below(5000) as usize, 0),
        1 => bytes[at..at + length].fill(0),
        // The same bytes elsewhere.
        2 => bytes.copy_within(at..at + length, 0),
        _ => bytes[at..at + length].copy_from_slice(&noise(dice.next(), length)),
    }
}

/// In which grains two states differ, as far as both go.
fn dirty(before: &[u8], now: &[u8], grain: usize) -> Vec<(usize, usize)> {
    let both = before.len().min(now.len());
    let pieces = before[..both].chunks(grain).zip(now[..both].chunks(grain)).enumerate();
    pieces.filter(|(_, (a, b))| a != b).map(|(n, (a, _))| (n * grain, a.len())).collect()
}

/// A list of them in one of the formats, in some order, with something too much.
fn write_list(mut ranges: Vec<(usize, usize)>, image: usize, dice: &mut Random) -> String {
    let mut map = Vec::new();
    let mut at = 0;
    for &(offset, length) in &ranges {
        map.push(json!({"offset": at, "length": offset - at, "type": 0, "description": "clean"}));
        map.push(json!({"offset": offset, "length": length, "type": 1, "description": "dirty"}));
        at = offset + length;
    }
    let rest = image.saturating_sub(at);
    map.push(json!({"offset": at, "length": rest, "type": 0, "description": "clean"}));
    let too_much = dice.below(image as u64 + 5000) as usize;
    ranges.push((too_much, dice.below(9000) as usize));
    let swapped = dice.below(ranges.len() as u64) as usize;
    ranges.swap(0, swapped);
    match dice.below(3) {
        0 => Value::Array(map).to_string(),
        1 => {
            let entry =
                |(offset, length)| json!({"offset": offset, "length": length, "exists": "true"});
            Value::Array(ranges.into_iter().map(entry).collect()).to_string()
        }
        _ => ranges.iter().map(|(offset, length)| format!("0x{offset:x} {length}\n")).collect(),
    }
}

/// Takes snapshots by lists that tell the truth, and looks at all of them again and again.
fn history(seed: u64) {
    let lab = Lab::new();
    let mut dice = Random(seed);
    let mut bytes = noise(seed, 600 * KIB + 100);
    let mut states: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    lab.write("disk.img", &bytes);
    lab.done(&["snapshot", "disk.img"]);
    states.insert(1, bytes.clone());
    let mut by_ancestor = 0;
    let mut is_newest_gone = false;
    for round in 0..20 {
        for _ in 0..dice.below(4) {
            disturb(&mut bytes, &mut dice);
        }
        lab.write("disk.img", &bytes);
        let numbers: Vec<u64> = states.keys().copied().collect();
        let pick = |of: &[u64], dice: &mut Random| of[dice.below(of.len() as u64) as usize];
        let parent = match dice.below(3) {
            0 => pick(&numbers, &mut dice),
            _ => *numbers.last().unwrap(),
        };
        let shown = lab.json(&["show", &format!("disk@{parent}")]);
        let chain = shown["chain"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap());
        let chain: Vec<u64> = chain.filter(|number| states.contains_key(number)).collect();
        let since = pick(&chain, &mut dice);
        by_ancestor += u32::from(since != parent);
        let grain = [1, 512, BLOCK, 65_536][dice.below(4) as usize];
        let ranges = dirty(&states[&since], &bytes, grain);
        lab.write("list", write_list(ranges, bytes.len(), &mut dice).as_bytes());
        let (parent, since) = (format!("@{parent}"), format!("@{since}"));
        let recheck = ["0", "1%", "30%"][dice.below(3) as usize];
        let args = ["snapshot", "disk.img", "--changed", "list", "--recheck", recheck];
        let run =
            lab.run(&[&args[..], &["--parent", &parent, "--since", &since, "--json"]].concat());
        let run = run.done();
        let taken = run.json();
        let what = format!("seed {seed}, round {round}: {parent} {since}: {taken}");
        assert_eq!(run.err, "", "{what}");
        if is_newest_gone {
            let why = string(&taken, "full_scan_reason");
            assert!(why.contains(" is gone, and with it what its recheck found"), "{what}");
        } else {
            assert_eq!(string(&taken["hint"], "kind"), "list", "{what}");
            assert_eq!(integer(&taken["hint"], "missed_blocks"), 0, "{what}");
        }
        let number = integer(&taken, "number");
        states.insert(number, bytes.clone());
        lab.restores(&format!("disk@{number}"), &bytes);
        // Who reads all of it finds the same.
        let whole = lab.json(&["snapshot", "disk.img", "--full-scan", "--dry-run"]);
        assert_eq!(integer(&whole, "changed_blocks"), 0, "{what}");
        assert_eq!(whole["image_digest"], taken["image_digest"], "{what}");
        is_newest_gone = false;
        if dice.below(3) == 0 {
            let newest = number;
            let number = pick(&states.keys().copied().collect::<Vec<_>>(), &mut dice);
            match dice.below(3) {
                0 => lab.done(&["flatten", &format!("disk@{number}")]),
                _ => {
                    let rest: Vec<&str> =
                        if dice.below(2) == 0 { vec!["--compact"] } else { vec![] };
                    let reference = format!("disk@{number}");
                    lab.done(&[&["delete", &reference], &rest[..]].concat())
                }
            };
            states = lab.numbers("disk").into_iter().map(|n| (n, states[&n].clone())).collect();
            is_newest_gone = !states.contains_key(&newest);
            if states.is_empty() {
                break;
            }
        }
    }
    assert!(by_ancestor > 0, "seed {seed}: never since an ancestor");
    let kept: Vec<(u64, &[u8])> = states.iter().map(|(n, bytes)| (*n, bytes.as_slice())).collect();
    lab.holds("disk", &kept);
}

#[test]
fn by_a_list_that_tells_the_truth_each_snapshot_is_what_the_image_was() {
    let first = std::env::var("IMGSNAP_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    for seed in first..first + 5 {
        history(seed);
    }
}
