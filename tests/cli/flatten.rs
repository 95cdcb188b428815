//! `imgsnap flatten`

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::support::{Lab, change, integer, string};
use serde_json::json;

#[test]
fn a_delta_becomes_a_base_and_all_others_stay_as_they_are() {
    let (lab, states) = Lab::with_snapshots(4);
    let before = lab.json(&["list"]);
    let image = lab.read("disk.img");
    // The image is not needed for it.
    lab.remove("disk.img");
    let done = lab.json(&["flatten", "disk@3"]);
    assert_eq!((string(&done, "ref"), string(&done, "kind")), ("disk@3", "base"));
    assert_eq!(integer(&done, "stored_bytes"), lab.read(&lab.delta("disk", 3)).len() as u64);
    let after = lab.json(&["list"]);
    for (old, new) in before.as_array().unwrap().iter().zip(after.as_array().unwrap()) {
        for name in ["ref", "id", "label", "time", "image_bytes", "image_digest", "head"] {
            assert_eq!(new[name], old[name], "{name} of {}", old["ref"]);
        }
    }
    assert_eq!(lab.json(&["show", "disk@4"])["chain"], json!([4, 3]));
    let kept: Vec<(u64, &[u8])> = (1..).zip(states.iter().map(Vec::as_slice)).collect();
    lab.holds("disk", &kept);
    // What it rested on can go without it.
    lab.done(&["delete", "disk@1"]);
    lab.done(&["delete", "disk@2"]);
    assert_eq!((lab.dropped("disk"), lab.deltas("disk").len()), (vec![], 2));
    lab.holds("disk", &kept[2..]);
    lab.write("disk.img", &image);
    assert_eq!(integer(&lab.json(&["snapshot", "disk.img"]), "parent_number"), 4);
}

#[test]
fn a_base_is_left_alone() {
    let (lab, _) = Lab::with_snapshots(2);
    let before = lab.everything();
    assert_eq!(lab.done(&["flatten", "disk@1"]), "disk@1 is already a base\n");
    assert_eq!(integer(&lab.json(&["flatten", "disk@1"]), "freed_bytes"), 0);
    lab.ensure_untouched(&before, "flatten of a base");
}

#[test]
fn one_on_a_dropped_parent_frees_what_nobody_else_rests_on() {
    let (lab, states) = Lab::with_snapshots(3);
    lab.configure("[prune]\ngarbage = 50\n");
    lab.done(&["delete", "disk@2"]);
    lab.done(&["delete", "disk@1"]);
    let held: u64 =
        lab.deltas("disk").iter().map(|f| lab.read(&format!("repo/disk/{f}")).len() as u64).sum();
    assert!(!lab.dropped("disk").is_empty());
    let done = lab.json(&["flatten", "disk@3"]);
    assert_eq!(integer(&done, "freed_bytes"), held);
    assert_eq!((lab.dropped("disk"), lab.deltas("disk").len()), (vec![], 1));
    lab.holds("disk", &[(3, &states[2])]);
}

#[test]
fn one_of_two_on_a_dropped_parent_leaves_it_to_the_other() {
    let (lab, states) = Lab::with_snapshots(2);
    lab.configure("[prune]\ngarbage = 50\n");
    let mut branch = states[0].clone();
    change(&mut branch, 60, 4);
    lab.write("disk.img", &branch);
    lab.done(&["snapshot", "disk.img", "--parent", "@1"]);
    lab.done(&["delete", "disk@1"]);
    lab.done(&["flatten", "disk@2"]);
    assert_eq!(lab.dropped("disk"), [1]);
    lab.holds("disk", &[(2, &states[1]), (3, &branch)]);
    lab.done(&["flatten", "disk@3"]);
    assert_eq!(lab.dropped("disk"), [0; 0]);
    lab.holds("disk", &[(2, &states[1]), (3, &branch)]);
}

#[test]
fn chains_on_a_flattened_one_go_on() {
    let (lab, states) = Lab::with_snapshots(3);
    lab.done(&["flatten", "disk@2"]);
    let mut branch = states[1].clone();
    change(&mut branch, 70, 3);
    lab.write("disk.img", &branch);
    let taken = lab.json(&["snapshot", "disk.img", "--parent", "@2"]);
    assert_eq!((integer(&taken, "parent_number"), integer(&taken, "changed_blocks")), (2, 3));
    // Equal digests still mean equal blocks on both sides of it.
    let differ = lab.json(&["diff", "disk@1", "disk@4"]);
    assert_eq!(integer(&differ, "changed_blocks"), 6, "{differ}");
    lab.done(&["flatten", "disk@4"]);
    lab.done(&["prune", "disk", "--keep-last", "2", "--compact"]);
    lab.holds("disk", &[(3, &states[2]), (4, &branch)]);
}

#[test]
fn it_says_what_became_of_the_file() {
    let (lab, _) = Lab::with_snapshots(2);
    let text = lab.done(&["flatten", "disk@2"]);
    assert!(text.starts_with("disk@2 is now a base  "), "{text}");
    assert!(text.contains(" in its file; the repository uses "), "{text}");
    assert!(text.ends_with(" more\n"), "{text}");
}

#[test]
fn a_shrunk_and_regrown_image_gets_no_old_bytes() {
    let lab = Lab::new();
    let mut states = Vec::new();
    for (byte, blocks) in [(1, 10), (2, 5), (0, 10)] {
        let mut bytes = states.last().cloned().unwrap_or_else(Vec::new);
        bytes.resize(blocks * 4096, byte);
        lab.write("disk.img", &bytes);
        lab.done(&["snapshot", "disk.img"]);
        states.push(bytes);
    }
    for number in [2, 3] {
        lab.done(&["flatten", &format!("disk@{number}")]);
    }
    lab.holds("disk", &[(1, &states[0]), (2, &states[1]), (3, &states[2])]);
}

#[test]
fn a_reader_at_work_keeps_the_old_file_and_the_next_writer_removes_it() {
    let (lab, states) = Lab::with_snapshots(2);
    let old = lab.delta("disk", 2);
    let reader = lab.reader_of("disk");
    lab.done(&["flatten", "disk@2"]);
    assert!(lab.exists(&old));
    drop(reader);
    lab.done(&["label", "disk@2", "next"]);
    assert!(!lab.exists(&old));
    lab.holds("disk", &[(1, &states[0]), (2, &states[1])]);
}
