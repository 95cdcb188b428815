//! A repository that is used without locks (FORMAT.md P10): as on a network file system, on which `.shared` is put
//! first.

use crate::support::{FAILED, Lab, integer, noise};

/// A repository on which nobody relies on locks.
fn lab(snapshots: usize) -> (Lab, Vec<Vec<u8>>) {
    let (lab, states) = Lab::with_snapshots(snapshots);
    lab.write("repo/.shared", b"");
    (lab, states)
}

#[test]
fn what_is_dropped_stays_for_the_grace_period_and_that_is_said() {
    let (lab, states) = lab(4);
    let before = lab.deltas("disk");
    let line = lab.done(&["delete", "disk@2"]);
    assert!(line.contains("deleted disk@2: to free") && line.contains("after 3 days"), "{line}");
    let pruned = lab.json(&["prune", "disk", "--keep-last", "1", "--compact"]);
    let compaction = &pruned[0];
    assert_eq!(integer(compaction, "freed_bytes"), 0, "{pruned}");
    assert!(integer(compaction, "to_free_bytes") > 0, "{pruned}");
    assert_eq!(integer(compaction, "grace_seconds"), 3 * 24 * 3600, "{pruned}");
    assert!(integer(&lab.json(&["stats", "disk"])[0], "condemned_bytes") > 0);
    let after = lab.deltas("disk");
    assert!(before.iter().all(|file| after.contains(file)), "{before:?}, {after:?}");
    assert_eq!(lab.numbers("disk"), [4]);
    lab.restores("disk@4", &states[3]);
    lab.done(&["verify"]);
    assert!(lab.stored("disk").iter().all(|file| !file.starts_with("marker.")), "nobody is left");
}

/// Rule J16.
#[test]
fn an_image_that_was_removed_leaves_its_last_manifest_and_its_number() {
    let (lab, _) = lab(2);
    let line = lab.done(&["remove", "disk", "--yes"]);
    assert!(line.starts_with("removed \"disk\": 2 snapshots, to free"), "{line}");
    assert_eq!(lab.json(&["list"]), serde_json::json!([]));
    for args in [&["show", "disk@1"][..], &["restore", "disk@1", "-o", "out"], &["repair", "disk"]]
    {
        let line = lab.fails(FAILED, args);
        assert!(line.contains("no image \"disk\""), "{args:?}: {line}");
    }
    let last = lab.manifest("disk");
    // Another one of its name: its own numbers, and those of the manifests go on.
    let bytes = noise(9, 100_000);
    lab.write("disk.img", &bytes);
    assert_eq!(integer(&lab.json(&["snapshot", "disk.img"]), "number"), 1);
    assert!(lab.manifest("disk") > last, "{last}");
    assert_eq!(lab.numbers("disk"), [1]);
    lab.restores("disk@1", &bytes);
}

#[test]
fn a_reader_that_was_killed_leaves_a_marker_that_holds_what_is_dropped_later() {
    let (lab, states) = lab(3);
    // As a reader that read the first manifest, and is gone.
    lab.write("repo/disk/marker.000001.0123456789ab", b"");
    lab.done(&["delete", "disk@3"]);
    lab.done(&["delete", "disk@2"]);
    assert!(lab.stored("disk").contains(&"marker.000001.0123456789ab".to_owned()));
    assert_eq!(lab.numbers("disk"), [1]);
    lab.restores("disk@1", &states[0]);
}

#[test]
fn a_repository_with_nothing_but_that_file_can_be_made() {
    let lab = Lab::new();
    std::fs::create_dir(lab.path("new")).unwrap();
    lab.write("new/.shared", b"");
    lab.done(&["--repo", "new", "init"]);
    lab.write("disk.img", &noise(3, 50_000));
    lab.done(&["--repo", "new", "snapshot", "disk.img"]);
    lab.done(&["--repo", "new", "verify"]);
}
