//! What a review of tracking found: lists of images in use, holes, clones that are left over, repairs, and
//! numbers that are too large.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;
use crate::tracked::{clone_of, clones, is_by_extents, is_whole, take, track, tracked, xfs};
use crate::tracked_rollback::configure;
use crate::tracking_output::hold_open;
use nix::fcntl::{FallocateFlags, fallocate};
use serde_json::{Value, json};
use std::fs::File;

const BLOCK: u64 = 4096;
const PIECE: u64 = 64 << 10;

/// Two changes, and a list of the first one.
fn change_and_list(lab: &Lab, image: &str) -> String {
    let listed = MIB + 50 * BLOCK;
    put(image, listed, &noise(20, BLOCK));
    put(image, MIB + 90 * BLOCK, &noise(21, BLOCK));
    let list = lab.path("list");
    std::fs::write(&list, format!("{listed} {BLOCK}\n")).unwrap();
    list
}

#[test]
fn of_an_image_in_use_the_extents_tell_what_a_list_may_be_too_old_for() {
    let (lab, _guards, image) = need!(xfs());
    track(&lab, &image);
    let list = change_and_list(&lab, &image);
    let _user = hold_open(&image);
    let args = [&tracked(&image, "0")[..], &["--changed", &list, "--since", "@3"]].concat();
    let taken = lab.run(&args).done().json();
    is_by_extents(&taken);
    assert_eq!((&taken["in_use"], &taken["changed_blocks"]), (&json!(true), &json!(2)), "{taken}");
    same(&image, &lab.restore("vm@4"));
}

#[test]
fn an_image_in_use_without_a_clone_is_read_in_full_although_there_is_a_list() {
    let (lab, _guards, image) = need!(xfs());
    track(&lab, &image);
    lab.run(&["untrack", "vm"]).done();
    let list = change_and_list(&lab, &image);
    let _user = hold_open(&image);
    let args = [&tracked(&image, "0")[..], &["--changed", &list, "--since", "@3"]].concat();
    let taken = lab.run(&args).done().json();
    is_whole(&taken, "in use, and may have been written to since the list was made");
    assert_eq!((&taken["in_use"], &taken["changed_blocks"]), (&json!(true), &json!(2)), "{taken}");
    same(&image, &lab.restore("vm@4"));
}

fn punch(image: &str, at: u64, bytes: u64) {
    let _calm = no_fork();
    let file = File::options().write(true).open(image).unwrap();
    let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, mode, at as i64, bytes as i64).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn small_holes_that_are_new_are_stored_and_not_read() {
    let (lab, _guards, image) = need!(xfs());
    set_length(&image, 16 * MIB);
    put(&image, 0, &noise(1, 16 * MIB));
    take(&lab, &image);
    // Every other piece, then the rest.
    for (number, first) in [(2, 0), (3, 1)] {
        for piece in (first..16 * MIB / PIECE).step_by(2) {
            punch(&image, piece * PIECE, PIECE);
        }
        let (taken, err) = take(&lab, &image);
        is_by_extents(&taken);
        assert_eq!((taken["number"].as_u64(), err.as_str()), (Some(number), ""));
        assert_eq!(taken["changed_bytes"], 8 * MIB, "{taken}");
        assert!(taken["read_bytes"].as_u64().unwrap() <= PIECE, "{taken}");
    }
    // And back again: what has data is read, and what lies between is not.
    for piece in (0..16 * MIB / PIECE).step_by(2) {
        put(&image, piece * PIECE, &noise(piece, PIECE));
    }
    let (taken, _) = take(&lab, &image);
    assert_eq!(
        (&taken["hint"]["kind"], &taken["changed_bytes"]),
        (&"extents".into(), &json!(8 * MIB))
    );
    assert_eq!(taken["read_bytes"], 8 * MIB, "{taken}");
}

/// A second image beside the first, both tracked; the second is removed, and its clone is left over.
/// Gives the name of that.
#[track_caller]
fn leave_clone(lab: &Lab, image: &str) -> String {
    take(lab, image);
    let first = clones(lab);
    let second = lab.path("mnt/second.img");
    keep(image, &second);
    take(lab, &second);
    let left: Vec<String> = clones(lab).into_iter().filter(|name| !first.contains(name)).collect();
    assert_eq!(left.len(), 1);
    let (path, aside) = (lab.path(&format!("mnt/.imgsnap/{}", left[0])), lab.path("mnt/aside"));
    std::fs::hard_link(&path, &aside).unwrap();
    lab.run(&["remove", "second", "--yes"]).done();
    assert_eq!(clones(lab), first);
    std::fs::rename(&aside, &path).unwrap();
    left[0].clone()
}

#[test]
fn the_clone_of_a_removed_image_is_removed_by_untrack() {
    let (lab, _guards, image) = need!(xfs());
    leave_clone(&lab, &image);
    assert_eq!(clones(&lab).len(), 2);
    assert_eq!(lab.run(&["untrack", "vm", "--json"]).done().json()["clones"], 2);
    assert_eq!(clones(&lab), [""; 0]);
    assert!(!std::fs::exists(lab.path("mnt/.imgsnap")).unwrap());
}

#[test]
fn the_clone_of_a_removed_image_is_removed_by_the_next_snapshot() {
    let (lab, _guards, image) = need!(xfs());
    let left = leave_clone(&lab, &image);
    let stats = lab.run(&["stats", "vm", "--json"]).done().json();
    let orphans = stats[0]["orphaned_clones"].as_array().unwrap();
    assert_eq!(orphans.len(), 1, "{stats}");
    assert!(orphans[0]["path"].as_str().unwrap().ends_with(&left), "{stats}");
    put(&image, MIB, &noise(5, BLOCK));
    let (taken, err) = take(&lab, &image);
    is_by_extents(&taken);
    assert_eq!(err, "");
    assert!(clone_of(&lab).ends_with(taken["id"].as_str().unwrap()));
}

#[test]
fn while_an_image_cannot_be_read_no_clone_is_taken_for_left_over() {
    let (lab, _guards, image) = need!(xfs());
    let third = lab.path("mnt/third.img");
    keep(&image, &third);
    take(&lab, &third);
    let left = leave_clone(&lab, &image);
    assert_eq!(clones(&lab).len(), 3);
    // The left-over one might be of the image whose manifest says nothing.
    let manifest = lab.stored("third").into_iter().rfind(|f| f.starts_with("manifest.")).unwrap();
    let manifest = format!("{}/third/{manifest}", lab.repo);
    let good = std::fs::read(&manifest).unwrap();
    std::fs::write(&manifest, b"").unwrap();
    let stats = lab.run(&["stats", "vm", "--json"]).done().json();
    assert_eq!(stats[0]["orphaned_clones"], json!([]), "{stats}");
    put(&image, MIB, &noise(5, BLOCK));
    take(&lab, &image);
    assert_eq!(clones(&lab).len(), 3);
    assert_eq!(lab.run(&["untrack", "vm", "--json"]).done().json()["clones"], 1);
    assert_eq!(clones(&lab).len(), 2);
    assert!(clones(&lab).contains(&left));
    std::fs::write(&manifest, good).unwrap();
    // Now it is clear which is which.
    take(&lab, &image);
    assert_eq!(clones(&lab).len(), 2);
    assert!(!clones(&lab).contains(&left));
    put(&third, 0, &noise(6, BLOCK));
    is_by_extents(&take(&lab, &third).0);
}

#[test]
fn an_image_that_is_not_tracked_any_more_loses_its_clone_with_the_next_snapshot() {
    for more in [&[][..], &["--skip-unchanged"]] {
        let (lab, _guards, image) = need!(xfs());
        track(&lab, &image);
        configure(&lab, "track = \"none\"");
        if more.is_empty() {
            put(&image, MIB, &noise(5, BLOCK));
        }
        let args = [&["snapshot", &image, "--json"], more].concat();
        let run = lab.run(&args).done();
        assert_eq!((&run.json()["skipped"], run.err.as_str()), (&json!(!more.is_empty()), ""));
        assert_eq!(clones(&lab), [""; 0], "{more:?}");
        same(&image, &lab.restore("vm@latest"));
        // Who has it tracked again begins anew.
        put(&image, MIB, &noise(6, BLOCK));
        is_whole(&take(&lab, &image).0, "the clone of vm@3 is missing");
        put(&image, MIB, &noise(7, BLOCK));
        is_by_extents(&take(&lab, &image).0);
    }
}

#[test]
fn the_clone_that_a_killed_snapshot_left_is_removed_by_one_that_finds_nothing_new() {
    let (lab, _guards, image) = need!(xfs());
    track(&lab, &image);
    let ours = clone_of(&lab);
    let orphan = lab.path("mnt/.imgsnap/00000000-0000-4000-8000-000000000000");
    need!(try_tool("cp", &["--reflink=always", "--preserve=xattr,mode", &ours, &orphan]));
    assert_eq!(clones(&lab).len(), 2);
    let args = [&tracked(&image, "0")[..], &["--skip-unchanged"]].concat();
    let run = lab.run(&args).done();
    assert_eq!((&run.json()["skipped"], run.err.as_str()), (&json!(true), ""));
    assert_eq!(clone_of(&lab), ours);
    put(&image, MIB, &noise(5, BLOCK));
    is_by_extents(&take(&lab, &image).0);
}

/// Where the ruling manifest of an image is, and what stands in it.
fn manifest(lab: &Lab, name: &str) -> (String, Value) {
    let ruling = lab.stored(name).into_iter().rfind(|f| f.starts_with("manifest.")).unwrap();
    let path = format!("{}/{name}/{ruling}", lab.repo);
    let text = std::fs::read_to_string(&path).unwrap();
    let value = serde_json::from_str(text.split_once('\n').unwrap().1).unwrap();
    (path, value)
}

#[test]
fn a_repair_keeps_what_the_older_manifest_knew_of_hints_and_clones() {
    let (lab, _guards, image) = need!(xfs());
    take(&lab, &image);
    let user = hold_open(&image);
    put(&image, MIB, &noise(2, BLOCK));
    take(&lab, &image);
    drop(user);
    put(&image, MIB, &noise(3, BLOCK));
    take(&lab, &image);
    let (_, before) = manifest(&lab, "vm");
    // The newest manifest knows no snapshot more than the one before it.
    lab.run(&["label", "vm@1", "first"]).done();
    let (newest, _) = manifest(&lab, "vm");
    std::fs::write(&newest, b"").unwrap();
    let repaired = lab.run(&["repair", "vm", "--json"]).done().json();
    assert_eq!((&repaired["rebuilt"], &repaired["unused"]), (&json!(true), &json!([])));
    let (_, after) = manifest(&lab, "vm");
    for number in 0..3 {
        let [old, new] = [&before, &after].map(|of| &of["snapshots"][number]);
        for key in ["id", "consistency", "hint", "tracker"] {
            assert_eq!(old.get(key), new.get(key), "{key} of {number}");
        }
    }
    let third = &after["snapshots"][2];
    assert!(third["tracker"].is_object() && third["hint"].is_object(), "{third}");
    assert_eq!(after["snapshots"][1]["consistency"], "crash");
    // Nothing has to be read to go on.
    put(&image, MIB, &noise(4, BLOCK));
    let (taken, err) = take(&lab, &image);
    is_by_extents(&taken);
    assert_eq!((&taken["changed_blocks"], err.as_str()), (&json!(1), ""));
    assert!(clone_of(&lab).ends_with(taken["id"].as_str().unwrap()));
}

/// The head state says that it was skipped so often that one more is too many.
fn skip_too_often(lab: &Lab) {
    let first = |folder: &std::path::Path| {
        std::fs::read_dir(folder).unwrap().next().unwrap().unwrap().path()
    };
    let head = first(&first(lab.path("state").as_ref()));
    let mut value: Value = serde_json::from_slice(&std::fs::read(&head).unwrap()).unwrap();
    value["skipped"] = u64::MAX.into();
    std::fs::write(&head, value.to_string()).unwrap();
}

/// An image with a snapshot by a list; gives the image and that list.
#[track_caller]
fn listed(lab: &Lab) -> (String, String) {
    let image = lab.path("vm.img");
    make(&image, 2 * MIB);
    put(&image, MIB, &noise(1, MIB));
    lab.snapshot(&image);
    let list = change_and_list(lab, &image);
    by_list(lab, &image, &list, &[]);
    (image, list)
}

#[track_caller]
fn by_list(lab: &Lab, image: &str, list: &str, more: &[&str]) -> Value {
    let args = ["snapshot", image, "--changed", list, "--since", "@latest", "--json"];
    lab.run(&[&args, more].concat()).done().json()
}

fn seal(path: &str, manifest: &Value) {
    let body = format!("{manifest:#}\n");
    let digest = xxhash_rust::xxh3::xxh3_128(body.as_bytes());
    std::fs::write(path, format!("imgsnap-manifest 3 {digest:032x}\n{body}")).unwrap();
}

#[test]
fn numbers_in_a_manifest_that_are_too_large_are_shown_as_well_as_can_be() {
    let lab = Lab::new();
    let (image, list) = listed(&lab);
    let (path, mut value) = manifest(&lab, "vm");
    let hint = &mut value["snapshots"][1]["hint"];
    assert_eq!(hint["kind"], "list");
    (hint["recheck_blocks"], hint["named_bytes"]) = ((1u64 << 62).into(), u64::MAX.into());
    seal(&path, &value);
    let text = String::from_utf8(lab.run(&["show", "vm@2"]).done().out).unwrap();
    assert!(
        text.contains("of what was reported unchanged, all of it within 1 snapshot\n"),
        "{text}"
    );
    let shown = lab.run(&["show", "vm@2", "--json"]).done().json();
    assert_eq!(shown["hint"]["recheck_blocks"], json!(1u64 << 62), "{shown}");
    assert_eq!(shown["hint"]["recheck_cycle"], 1, "{shown}");
    lab.run(&["list", "vm"]).done();
    by_list(&lab, &image, &list, &[]);
    assert_eq!(lab.snapshot(&image), 4);
    same(&image, &lab.restore("vm@4"));
}

#[test]
fn a_snapshot_bears_a_head_that_says_it_was_skipped_too_often() {
    let lab = Lab::new();
    let (image, list) = listed(&lab);
    for (more, skipped) in
        [(&["--dry-run"][..], false), (&["--skip-unchanged"], true), (&[], false)]
    {
        skip_too_often(&lab);
        let taken = by_list(&lab, &image, &list, more);
        assert_eq!(taken["skipped"], skipped, "{taken}");
    }
    skip_too_often(&lab);
    let number = lab.snapshot(&image);
    same(&image, &lab.restore(&format!("vm@{number}")));
}

#[test]
fn a_rollback_bears_a_head_that_says_it_was_skipped_too_often() {
    let lab = Lab::new();
    let (image, _) = listed(&lab);
    let second = lab.restore("vm@2");
    // The times are not believed, so that it is looked for what changed.
    for how in ["--dry-run", "--no-save"] {
        skip_too_often(&lab);
        tool("touch", &["-d", "2020-01-01", &image]);
        lab.run(&["rollback", "vm", "--to", "@2", how]).done();
    }
    same(&second, &image);
}

#[test]
fn without_a_number_for_the_one_after_it_no_snapshot_is_taken() {
    let lab = Lab::new();
    let (image, _) = listed(&lab);
    let (path, mut value) = manifest(&lab, "vm");
    value["next_number"] = u64::MAX.into();
    seal(&path, &value);
    for _ in 0..2 {
        lab.run(&["snapshot", &image]).fails(1).says("no number is left for a snapshot");
        assert_eq!(lab.numbers("vm"), [1, 2]);
    }
    lab.run(&["repair", "vm"]).done();
    lab.verify(2);
}
