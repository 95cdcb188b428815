//! `imgsnap snapshot --base-image` and `relink --base-image`: clones of an image that is there already

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::support::{BLOCK, DAMAGE, FAILED, Lab, MIB, change, integer, noise, same, string};
use serde_json::{Value, json};

/// `base.img`, and `clone.img`, which has other bytes in four of its 256 blocks; snapshots `clone@1`, the
/// base, and `clone@2`.
fn cloned() -> (Lab, Vec<u8>, Vec<u8>) {
    let lab = Lab::new();
    let base = noise(1, MIB);
    let mut clone = base.clone();
    change(&mut clone, 9, 4);
    lab.write("base.img", &base);
    lab.write("clone.img", &clone);
    lab.done(&["snapshot", "clone.img", "--base-image", "base.img"]);
    (lab, base, clone)
}

fn stored(lab: &Lab, name: &str) -> u64 {
    integer(&lab.json(&["stats", name])[0], "stored_bytes")
}

#[test]
fn a_clone_costs_a_table_and_a_delta() {
    let (lab, base, clone) = cloned();
    lab.holds("clone", &[(1, &base), (2, &clone)]);
    let list = lab.json(&["list", "clone"]);
    assert_eq!(string(&list[0], "base_image"), lab.at("base.img"));
    assert_eq!((string(&list[0], "kind"), &list[1]["base_image"]), ("base", &Value::Null));
    assert_eq!(integer(&list[1], "changed_blocks"), 4);
    assert_eq!(integer(&list[1], "parent_number"), 1);
    // 16 bytes for each block of the base, and the four blocks.
    assert!(stored(&lab, "clone") < 32 * BLOCK as u64 / 4 + 5 * BLOCK as u64, "{list}");
    let text = lab.done(&["list", "clone"]);
    assert!(text.contains("(in base.img)"), "{text}");
    let text = lab.done(&["show", "clone@1"]);
    let place = lab.at("base.img");
    assert!(
        text.contains(&format!("none: this is a base, whose blocks are in {place}\n")),
        "{text}"
    );
    assert_eq!(integer(&lab.json(&["stats", "clone"])[0], "raw_bytes"), 4 * BLOCK as u64);
}

#[test]
fn many_clones_share_one_base_and_go_their_own_ways() {
    let lab = Lab::new();
    let base = noise(1, MIB);
    lab.write("base.img", &base);
    let mut clones = Vec::new();
    for seed in 1..=4usize {
        let mut bytes = base.clone();
        bytes.resize(MIB + seed * 1000 - 2000, 0);
        change(&mut bytes, seed as u64, 3);
        let file = format!("vm{seed}.img");
        lab.write(&file, &bytes);
        lab.done(&["snapshot", &file, "--base-image", "base.img"]);
        let second = bytes.clone();
        change(&mut bytes, seed as u64 + 50, 3);
        lab.write(&file, &bytes);
        let taken = lab.json(&["snapshot", &file]);
        assert_eq!((integer(&taken, "number"), integer(&taken, "changed_blocks")), (3, 3));
        clones.push((second, bytes));
    }
    for (seed, (second, third)) in (1..).zip(&clones) {
        lab.holds(&format!("vm{seed}"), &[(1, &base), (2, second), (3, third)]);
        lab.done(&["rollback", &format!("vm{seed}"), "--to", "@1"]);
        same(&lab.read(&format!("vm{seed}.img")), &base, "rolled back");
    }
}

#[test]
fn a_missing_base_image_is_damage_and_named_with_its_blocks() {
    let (lab, base, clone) = cloned();
    lab.rename("base.img", "gone.img");
    let place = lab.at("base.img");
    for args in [
        &["restore", "clone@1", "-o", "out"][..],
        &["restore", "clone@2", "-o", "out"],
        &["restore", "clone@2", "-o", "-"],
        &["flatten", "clone@2"],
        &["export", "clone@2", "-o", "out"],
        &["rollback", "clone", "--to", "@1"],
    ] {
        let run = lab.run(args);
        let line = run.failed(DAMAGE);
        assert!(line.contains("clone@1") && line.contains(&place), "{args:?}: {line}");
        assert!(line.contains("256 blocks"), "{args:?}: {line}");
        assert!(line.contains("imgsnap relink clone --base-image IMAGE"), "{args:?}: {line}");
        assert!(!lab.exists("out"));
    }
    for quick in [&[][..], &["--quick"]] {
        let run = lab.run(&[&["verify", "--json"], quick].concat());
        assert_eq!(run.code, Some(DAMAGE), "{quick:?}: {}", run.err);
        let damage = &run.json()["damaged"][0];
        assert_eq!(string(damage, "snapshot"), "clone@1");
        assert_eq!(damage["affects"], json!(["clone@1", "clone@2"]));
        let message = string(damage, "message");
        assert!(message.contains(&place) && message.contains("256 blocks"), "{message}");
    }
    // To compare, its table is enough.
    same(&lab.read("clone.img"), &clone, "the clone");
    let taken = lab.json(&["snapshot", "clone.img", "--full-scan"]);
    assert_eq!(integer(&taken, "changed_blocks"), 0);
    assert_eq!(integer(&lab.json(&["diff", "clone@1", "clone@2"]), "changed_blocks"), 4);
    lab.done(&["export", "clone@2", "--since", "@1", "-o", "small.delta"]);
    // Back in its place, all is well.
    lab.rename("gone.img", "base.img");
    lab.holds("clone", &[(1, &base), (2, &clone), (3, &clone)]);
}

#[test]
fn a_changed_base_image_is_damage_and_its_blocks_are_named() {
    let (lab, base, clone) = cloned();
    let superseded = (0..256).find(|b| base[b * BLOCK..][..9] != clone[b * BLOCK..][..9]).unwrap();
    let blocks = [100, 101, 102, 200];
    for block in blocks.into_iter().chain([superseded]) {
        lab.flip("base.img", block * BLOCK + 7);
    }
    let place = lab.at("base.img");
    for reference in ["clone@1", "clone@2"] {
        let line = lab.fails(DAMAGE, &["restore", reference, "-o", "out"]);
        assert!(line.contains(&place) && line.contains("block"), "{line}");
        assert!(line.ends_with("the file was modified; put the original back"), "{line}");
    }
    let run = lab.run(&["verify", "--json"]);
    assert_eq!(run.code, Some(DAMAGE), "{}", run.err);
    let verified = run.json();
    let messages: Vec<&str> =
        verified["damaged"].as_array().unwrap().iter().map(|d| string(d, "message")).collect();
    for named in [
        "blocks 100 to 102 (3 from byte 409600 on)".to_owned(),
        "block 200 (byte 819200)".to_owned(),
        format!("block {superseded} (byte {})", superseded * BLOCK),
    ] {
        assert!(messages.iter().any(|m| m.contains(&named)), "no {named} in {messages:?}");
    }
    assert_eq!(messages.len(), 3, "{messages:?}");
    // What does not need them is there.
    let part = ["restore", "clone@2", "-o", "part", "--range", "0+256K"];
    lab.done(&part);
    same(&lab.read("part"), &clone[..256 << 10], "the part before");
    // The block that the clone has of its own is not missed.
    for block in blocks {
        lab.flip("base.img", block * BLOCK + 7);
    }
    lab.restores("clone@2", &clone);
    lab.fails(DAMAGE, &["restore", "clone@1", "-o", "out"]);
}

#[test]
fn a_base_image_of_another_length_is_found_by_a_quick_verify() {
    let (lab, base, clone) = cloned();
    for wrong in [&base[..MIB - 1], &[&base[..], &[0]].concat()] {
        lab.write("base.img", wrong);
        for quick in [&[][..], &["--quick"]] {
            let run = lab.run(&[&["verify", "--json"], quick].concat());
            assert_eq!(run.code, Some(DAMAGE), "{quick:?}: {}", run.err);
            let verified = run.json();
            let message = string(&verified["damaged"][0], "message").to_owned();
            assert!(message.contains(&format!("it has {} bytes", wrong.len())), "{message}");
        }
    }
    lab.write("base.img", &base);
    lab.holds("clone", &[(1, &base), (2, &clone)]);
}

#[test]
fn relink_to_a_moved_base_image_proves_it() {
    let (lab, base, clone) = cloned();
    lab.rename("base.img", "moved.img");
    let mut other = base.clone();
    other[5] ^= 1;
    other[9 * BLOCK] ^= 1;
    lab.write("other.img", &other);
    lab.write("short.img", &base[..MIB - BLOCK]);
    for (wrong, bytes) in [("other.img", 2 * BLOCK), ("short.img", BLOCK)] {
        let line = lab.fails(FAILED, &["relink", "clone", "--base-image", wrong]);
        assert!(line.contains("is not the base image of clone@1"), "{line}");
        assert!(line.contains(&format!("{bytes} bytes of it differ")), "{line}");
    }
    lab.fails(FAILED, &["relink", "clone", "--base-image", "nowhere.img"]);
    let linked = lab.json(&["relink", "clone", "--base-image", "moved.img"]);
    assert_eq!(string(&linked, "base_image"), lab.at("moved.img"));
    assert_eq!(linked["bases"], json!(["clone@1"]));
    lab.holds("clone", &[(1, &base), (2, &clone)]);
    let text = lab.done(&["relink", "clone", "--base-image", "moved.img"]);
    assert_eq!(text, format!("the base image of clone@1 is {} (verified)\n", lab.at("moved.img")));
    // Both files at once.
    lab.rename("clone.img", "vm.img");
    let linked = lab.json(&["relink", "clone", "vm.img", "--base-image", "moved.img"]);
    assert_eq!(string(&linked, "source"), lab.at("vm.img"));
    // An image without one has none.
    lab.grow_history("disk.img", 1);
    let line = lab.fails(FAILED, &["relink", "disk", "--base-image", "moved.img"]);
    assert!(line.starts_with("\"disk\" has no base image"), "{line}");
}

#[test]
fn flatten_makes_a_clone_independent_of_the_base_image() {
    for flattened in ["clone@1", "clone@2"] {
        let (lab, base, clone) = cloned();
        lab.done(&["flatten", flattened]);
        let list = lab.json(&["list", "clone"]);
        if flattened == "clone@1" {
            assert_eq!(list[0]["base_image"], Value::Null);
            lab.remove("base.img");
            lab.holds("clone", &[(1, &base), (2, &clone)]);
            continue;
        }
        lab.done(&["delete", "clone@1"]);
        lab.remove("base.img");
        lab.holds("clone", &[(2, &clone)]);
        assert_eq!((lab.dropped("clone"), lab.deltas("clone").len()), (vec![], 1));
        assert_eq!(integer(&lab.json(&["snapshot", "clone.img"]), "changed_blocks"), 0);
    }
}

#[test]
fn the_base_of_a_clone_is_held_when_it_is_dropped() {
    let (lab, _, clone) = cloned();
    let mut last = clone.clone();
    change(&mut last, 30, 4);
    lab.write("clone.img", &last);
    lab.done(&["snapshot", "clone.img"]);
    let gone = lab.json(&["delete", "clone@1", "--compact"]);
    assert_eq!((integer(&gone, "held_files"), lab.dropped("clone")), (1, vec![1]));
    lab.holds("clone", &[(2, &clone), (3, &last)]);
    // What lies between them is merged, and not the base.
    lab.done(&["prune", "clone", "--keep-last", "1", "--compact"]);
    assert_eq!((lab.dropped("clone"), lab.deltas("clone").len()), (vec![1], 2));
    lab.holds("clone", &[(3, &last)]);
    assert!(stored(&lab, "clone") < MIB as u64 / 10);
    // The dropped one is still told of when it is missing, and can be linked again.
    lab.rename("base.img", "moved.img");
    lab.fails(DAMAGE, &["restore", "clone@3", "-o", "out"]);
    lab.done(&["relink", "clone", "--base-image", "moved.img"]);
    lab.holds("clone", &[(3, &last)]);
    lab.done(&["flatten", "clone@3"]);
    lab.remove("moved.img");
    assert_eq!(lab.dropped("clone"), [0; 0]);
    lab.holds("clone", &[(3, &last)]);
}

#[test]
fn a_base_image_is_for_the_beginning_of_a_chain() {
    let (lab, states) = Lab::with_snapshots(2);
    lab.write("base.img", &states[0]);
    for more in [&[][..], &["--differential"], &["--parent", "@1"]] {
        let args = [&["snapshot", "disk.img", "--base-image", "base.img"], more].concat();
        let line = lab.fails(FAILED, &args);
        assert!(line.contains("\"disk\" already has snapshots, and thus a base"), "{line}");
        assert!(line.ends_with("start a new chain on the base image with --full"), "{line}");
    }
    let taken = lab.json(&["snapshot", "disk.img", "--base-image", "base.img", "--full"]);
    assert_eq!((integer(&taken, "number"), integer(&taken, "parent_number")), (4, 3));
    lab.holds("disk", &[(1, &states[0]), (2, &states[1]), (3, &states[0]), (4, &states[1])]);
}

#[test]
fn an_image_is_not_its_own_base() {
    let lab = Lab::new();
    lab.write("disk.img", &noise(1, MIB));
    let line = lab.fails(FAILED, &["snapshot", "disk.img", "--base-image", "disk.img"]);
    assert!(line.contains("cannot be its own base image"), "{line}");
    std::os::unix::fs::symlink("disk.img", lab.path("link.img")).unwrap();
    for path in [&lab.at("disk.img"), "link.img"] {
        lab.fails(FAILED, &["snapshot", "disk.img", "--base-image", path]);
    }
    assert_eq!(lab.json(&["list"]), json!([]));
}

#[test]
fn an_image_is_not_its_own_base_by_a_hard_link() {
    let lab = Lab::new();
    lab.write("disk.img", &noise(1, MIB));
    std::fs::hard_link(lab.path("disk.img"), lab.path("hard.img")).unwrap();
    lab.fails(FAILED, &["snapshot", "disk.img", "--base-image", "hard.img"]);
}

#[test]
fn a_base_image_that_cannot_be_read_is_refused_and_nothing_is_made() {
    let lab = Lab::new();
    lab.write("disk.img", &noise(1, MIB));
    lab.write("empty.img", b"");
    for (path, said) in
        [("nowhere.img", "nowhere.img"), ("repo", "is a folder"), ("empty.img", "is empty")]
    {
        let line = lab.fails(FAILED, &["snapshot", "disk.img", "--base-image", path]);
        assert!(line.contains(said), "{path}: {line}");
    }
    assert_eq!(lab.json(&["list"]), json!([]));
}

#[test]
fn a_clone_may_be_longer_or_shorter_than_its_base() {
    for (bytes, seed) in [(MIB + 5000, 1), (MIB - 5000, 2), (MIB / 3, 3), (3 * MIB, 4)] {
        let lab = Lab::new();
        let base = noise(1, MIB + 77);
        let mut clone = base.clone();
        clone.resize(bytes, 0);
        change(&mut clone, seed, 4);
        lab.write("base.img", &base);
        lab.write("clone.img", &clone);
        lab.done(&["snapshot", "clone.img", "--base-image", "base.img"]);
        lab.holds("clone", &[(1, &base), (2, &clone)]);
    }
}

#[test]
fn a_base_image_with_holes_and_zeros_needs_nothing_for_them() {
    let lab = Lab::new();
    let mut base = vec![0; MIB];
    base[40 * BLOCK..50 * BLOCK].copy_from_slice(&noise(1, 10 * BLOCK));
    lab.write("base.img", &base);
    let mut clone = base.clone();
    clone[42 * BLOCK..44 * BLOCK].fill(0);
    clone[200 * BLOCK] = 1;
    lab.write("clone.img", &clone);
    lab.done(&["snapshot", "clone.img", "--base-image", "base.img"]);
    lab.holds("clone", &[(1, &base), (2, &clone)]);
    // What was zero is not read from it: bytes that appear there change nothing.
    lab.flip("base.img", 100 * BLOCK);
    lab.restores("clone@2", &clone);
}

#[test]
fn a_clone_is_exported_with_the_blocks_of_its_base() {
    let (lab, base, clone) = cloned();
    let table = lab.delta("clone", 1);
    for args in [&["import", &table, "--name", "x"][..], &["apply", &table, "-o", "out"]] {
        let line = lab.fails(FAILED, args);
        assert!(line.contains("in a base image") && line.contains("imgsnap export"), "{line}");
    }
    lab.done(&["export", "clone@1", "-o", "1.delta"]);
    lab.done(&["export", "clone@2", "--since", "@1", "-o", "2.delta"]);
    lab.copy("base.img", "copy.img");
    lab.remove("base.img");
    lab.done(&["apply", "1.delta", "2.delta", "-o", "out"]);
    same(&lab.read("out"), &clone, "clone@2");
    lab.done(&["apply", "2.delta", "--base", "copy.img", "--in-place"]);
    same(&lab.read("copy.img"), &clone, "clone@2");
    let there = Lab::new();
    there.done(&["import", &lab.at("1.delta"), &lab.at("2.delta"), "--name", "clone"]);
    there.holds("clone", &[(1, &base), (2, &clone)]);
}

#[test]
fn repair_knows_where_the_base_image_is_or_asks_for_it() {
    let (lab, base, clone) = cloned();
    lab.done(&["label", "clone@2", "x"]);
    lab.flip(&lab.manifest("clone"), 300);
    lab.done(&["repair", "clone"]);
    lab.holds("clone", &[(1, &base), (2, &clone)]);
    for file in lab.stored("clone").iter().filter(|f| f.starts_with("manifest.")) {
        lab.remove(&format!("repo/clone/{file}"));
    }
    let how = "imgsnap relink clone --base-image IMAGE";
    for done in ["rebuilt the manifest", "DAMAGED  clone@1"] {
        let run = lab.run(&["repair", "clone"]);
        assert_eq!(run.code, Some(DAMAGE), "{}", run.err);
        let text = run.text();
        assert!(text.contains(done) && text.contains(how), "{text}");
        assert!(!text.contains("nothing to repair"), "{text}");
    }
    let line = lab.fails(DAMAGE, &["restore", "clone@2", "-o", "out"]);
    assert!(line.contains("the location of its base image"), "{line}");
    assert!(line.contains(how), "{line}");
    lab.done(&["relink", "clone", "--base-image", "base.img"]);
    lab.holds("clone", &[(1, &base), (2, &clone)]);
    assert!(lab.done(&["repair", "clone"]).contains("nothing to repair"));
    // Known, and not there.
    lab.rename("base.img", "gone.img");
    let run = lab.run(&["repair", "clone", "--json"]);
    assert_eq!(run.code, Some(DAMAGE), "{}", run.err);
    let missing = &run.json()["missing"][0];
    assert_eq!(string(missing, "snapshot"), "clone@1");
    assert!(string(missing, "message").contains(&lab.at("base.img")), "{missing}");
}

#[test]
fn a_base_whose_base_image_is_not_known_is_none_with_blocks_of_its_own() {
    let (lab, _, _) = cloned();
    for file in lab.stored("clone").iter().filter(|f| f.starts_with("manifest.")) {
        lab.remove(&format!("repo/clone/{file}"));
    }
    lab.run(&["repair", "clone"]);
    let raw = integer(&lab.json(&["stats", "clone"])[0], "raw_bytes");
    assert_eq!(raw, 4 * BLOCK as u64, "the blocks of the base are not in its file");
    // As with a base image that is known, its table is held, and nothing of it is read.
    let dropped = lab.json(&["prune", "clone", "--keep-last", "1", "--compact"]);
    assert_eq!(integer(&dropped[0], "held_files"), 1);
    lab.fails(DAMAGE, &["flatten", "clone@2"]);
}

#[test]
fn a_clone_that_is_its_base_is_a_snapshot_even_if_unchanged_ones_are_skipped() {
    let lab = Lab::new();
    let base = noise(1, MIB);
    lab.write("base.img", &base);
    lab.write("clone.img", &base);
    lab.done(&["snapshot", "clone.img", "--base-image", "base.img", "--skip-unchanged"]);
    // Whichever way it is told: what was named is there.
    lab.restores("clone@1", &base);
}

#[test]
fn a_refused_snapshot_on_a_base_image_leaves_nothing_behind() {
    let (lab, _, _) = cloned();
    lab.done(&["label", "clone@2", "gold"]);
    let args = ["snapshot", "clone.img", "--full", "--base-image", "base.img", "--label", "gold"];
    let line = lab.fails(FAILED, &args);
    assert!(line.contains("choose another label"), "{line}");
}

/// What the guest writes to it would be lost to every snapshot.
#[test]
fn the_live_image_does_not_become_its_own_base_by_relink() {
    let (lab, base, clone) = cloned();
    lab.write("clone.img", &base);
    std::fs::hard_link(lab.path("clone.img"), lab.path("hard.img")).unwrap();
    for path in ["clone.img", "hard.img"] {
        let line = lab.fails(FAILED, &["relink", "clone", "--base-image", path]);
        assert!(line.contains("cannot be its own base image"), "{line}");
    }
    let line = lab.fails(FAILED, &["relink", "clone", "base.img"]);
    assert!(line.contains("cannot be its own base image"), "{line}");
    lab.holds("clone", &[(1, &base), (2, &clone)]);
}
