//! `imgsnap delete`, `label`, `remove`, `repair` and `relink`

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::support::{BUSY, DAMAGE, DONE, FAILED, Lab, change, disk, integer, same, string};
use serde_json::{Value, json};

fn numbers(lab: &Lab) -> Vec<u64> {
    lab.json(&["list"]).as_array().unwrap().iter().map(|s| integer(s, "number")).collect()
}

#[test]
fn delete_removes_a_leaf_and_frees_its_file() {
    let (lab, states) = Lab::with_snapshots(3);
    let delta = lab.delta("disk", 3);
    let size = lab.read(&delta).len() as u64;
    let gone = lab.json(&["delete", "disk@3"]);
    assert_eq!((string(&gone, "name"), integer(&gone, "number")), ("disk", 3));
    assert_eq!((string(&gone, "ref"), integer(&gone, "freed_bytes")), ("disk@3", size));
    assert!(!lab.exists(&delta));
    assert_eq!(numbers(&lab), [1, 2]);
    let text = lab.done(&["delete", "disk@latest"]);
    assert!(text.starts_with("deleted disk@2: ") && text.ends_with(" KiB freed\n"), "{text}");
    lab.restores("disk@1", &states[0]);
    assert_eq!(lab.json(&["verify"])["damaged"], json!([]));
}

#[test]
fn the_last_snapshot_can_be_deleted_and_the_image_goes_on() {
    let (lab, states) = Lab::with_snapshots(1);
    lab.done(&["delete", "disk@1"]);
    assert_eq!(numbers(&lab), [0; 0]);
    let line = lab.fails(FAILED, &["show", "disk@latest"]);
    assert!(line.starts_with("\"disk\" has no snapshots"), "{line}");
    let taken = lab.json(&["snapshot", "disk.img"]);
    assert_eq!((integer(&taken, "number"), string(&taken, "kind")), (2, "base"));
    lab.restores("disk@2", &states[0]);
}

#[test]
fn what_rested_on_the_deleted_head_rests_on_the_newest() {
    let (lab, states) = Lab::with_snapshots(3);
    lab.done(&["delete", "disk@3"]);
    let taken = lab.json(&["snapshot", "disk.img"]);
    assert_eq!(integer(&taken, "parent_number"), 2);
    assert_eq!(integer(&taken, "changed_blocks"), 3, "it was scanned");
    lab.restores("disk@4", &states[2]);
}

#[test]
fn what_is_protected_is_dropped_by_nothing() {
    let (lab, states) = Lab::with_snapshots(4);
    assert_eq!(lab.done(&["protect", "disk@2"]), "disk@2 is protected\n");
    lab.done(&["protect", "disk@2"]);
    assert!(lab.done(&["list"]).contains("(protected)"));
    assert!(lab.done(&["show", "disk@2"]).contains("yes: it cannot be dropped"));
    for args in [&["delete", "disk@2"][..], &["remove", "disk", "--yes"]] {
        let line = lab.fails(FAILED, args);
        let hint = "disk@2 is protected; \"imgsnap protect disk@2 --off\" removes the protection";
        assert!(line.contains(hint), "{line}");
    }
    let prune = ["prune", "disk", "--keep-last", "1", "--compact"];
    let told = lab.done(&[&prune[..], &["--dry-run"]].concat());
    assert!(told.contains("protected"), "{told}");
    lab.done(&prune);
    assert_eq!(numbers(&lab), [2, 4]);
    lab.restores("disk@2", &states[1]);
    let listed = lab.json(&["list"]);
    assert_eq!((&listed[0]["protected"], &listed[1]["protected"]), (&json!(true), &json!(false)));
    assert_eq!(lab.json(&["protect", "disk@2", "--off"])["protected"], json!(false));
    lab.done(&["delete", "disk@2"]);
    assert_eq!(numbers(&lab), [4]);
}

#[test]
fn a_label_is_given_moved_and_taken_away() {
    let (lab, states) = Lab::with_snapshots(2);
    assert_eq!(lab.done(&["label", "disk@1", "good"]), "disk@1 is labelled \"good\"\n");
    lab.restores("disk@good", &states[0]);
    assert_eq!(string(&lab.json(&["list"])[0], "label"), "good");
    // Another one in its place, and the same one again.
    let said = lab.done(&["label", "disk@good", "better"]);
    assert_eq!(said, "disk@1 is labelled \"better\" (previously \"good\")\n");
    assert_eq!(lab.done(&["label", "disk@1"]), "disk@1 is labelled \"better\"\n");
    lab.done(&["label", "disk@better", "better"]);
    lab.fails(FAILED, &["show", "disk@good"]);
    let said = lab.done(&["label", "disk@better", "--remove"]);
    assert_eq!(said, "disk@1 has no label (previously \"better\")\n");
    assert_eq!(lab.done(&["label", "disk@1"]), "disk@1 has no label\n");
    assert_eq!(lab.json(&["list"])[0]["label"], Value::Null);
    let labelled = lab.json(&["label", "disk@2", "better"]);
    assert_eq!((string(&labelled, "ref"), string(&labelled, "label")), ("disk@2", "better"));
    // At once, with the snapshot.
    assert_eq!(string(&lab.json(&["snapshot", "disk.img", "-l", "v1.2"]), "label"), "v1.2");
    lab.restores("disk@v1.2", &states[1]);
}

#[test]
fn json_of_a_label_is_the_snapshot_as_it_is_listed() {
    let (lab, _) = Lab::with_snapshots(2);
    let labelled = lab.json(&["label", "disk@2", "new"]);
    let listed = &lab.json(&["list"])[1];
    for (name, value) in labelled.as_object().unwrap() {
        assert_eq!(&listed[name], value, "{name}");
    }
}

#[test]
fn a_label_is_taken_once_only() {
    let (lab, _) = Lab::with_snapshots(2);
    lab.done(&["label", "disk@1", "good"]);
    let line = lab.fails(FAILED, &["label", "disk@2", "good"]);
    assert_eq!(line, "disk@1 already has the label \"good\"; choose another label");
    let line = lab.fails(FAILED, &["snapshot", "disk.img", "--label", "good"]);
    assert!(
        line.contains(
            "\"disk\" already has a snapshot with the label \"good\"; choose another label"
        ),
        "{line}"
    );
    // Of another image it may be the same.
    lab.write("web.img", &disk(1, 100_000));
    lab.done(&["snapshot", "web.img", "--label", "good"]);
}

#[test]
fn repair_rebuilds_a_manifest_that_was_deleted_or_damaged() {
    for loss in ["deleted", "flipped", "flipped in the first line", "cut", "emptied"] {
        let (lab, states) = Lab::with_snapshots(3);
        lab.done(&["snapshot", "disk.img", "--parent", "@1", "--label", "branch"]);
        let listed = lab.json(&["list"]);
        let manifest = lab.manifest("disk");
        let bytes = lab.read(&manifest);
        match loss {
            "deleted" => {
                for file in lab.stored("disk").iter().filter(|f| f.starts_with("manifest.")) {
                    lab.remove(&format!("repo/disk/{file}"));
                }
            }
            "flipped" => lab.flip(&manifest, bytes.len() / 2),
            "flipped in the first line" => lab.flip(&manifest, 30),
            "cut" => lab.write(&manifest, &bytes[..bytes.len() - 1]),
            _ => lab.write(&manifest, b""),
        }
        let line = lab.fails(DAMAGE, &["list", "disk"]);
        assert!(line.contains("run \"imgsnap repair disk\""), "{loss}: {line}");
        lab.fails(DAMAGE, &["snapshot", "disk.img"]);
        lab.fails(DAMAGE, &["restore", "disk@1", "-o", "out"]);
        lab.fails(DAMAGE, &["rollback", "disk", "--to", "@1"]);
        let repaired = lab.json(&["repair", "disk"]);
        assert_eq!(repaired["rebuilt"], json!(true), "{loss}");
        assert_eq!(integer(&repaired, "snapshots"), 4, "{loss}");
        assert_eq!(repaired["unused"], json!([]), "{loss}");
        let again = lab.json(&["list"]);
        for (old, new) in listed.as_array().unwrap().iter().zip(again.as_array().unwrap()) {
            for name in [
                "ref",
                "id",
                "parent",
                "parent_number",
                "kind",
                "label",
                "time",
                "image_bytes",
                "image_digest",
                "changed_blocks",
                "changed_bytes",
                "stored_bytes",
            ] {
                assert_eq!(new[name], old[name], "{loss}: {name}");
            }
        }
        for (number, state) in (1..).zip(&states) {
            lab.restores(&format!("disk@{number}"), state);
        }
        lab.restores("disk@branch", &states[2]);
        assert_eq!(lab.json(&["verify"])["damaged"], json!([]), "{loss}");
        // Life goes on, after a relink if the live file is not known any more.
        if repaired["source"].is_null() {
            lab.done(&["relink", "disk", "disk.img"]);
        }
        assert_eq!(integer(&lab.json(&["snapshot", "disk.img"]), "number"), 5, "{loss}");
    }
}

#[test]
fn repair_leaves_a_sound_manifest_alone() {
    let lab = Lab::new();
    lab.grow_history("db.img", 1);
    lab.grow_history("web.img", 1);
    let before = lab.everything();
    let text = lab.done(&["repair"]);
    let sound = |name| format!("{name}: the manifest is intact; nothing to repair\n");
    assert_eq!(text, format!("{}{}", sound("db"), sound("web")));
    assert_eq!(lab.json(&["repair", "db"]), json!({"name": "db", "rebuilt": false}));
    lab.ensure_untouched(&before, "repair");
    // Without a name, all that need it.
    lab.flip(&lab.manifest("web"), 300);
    let text = lab.done(&["repair"]);
    assert!(
        text.starts_with(&format!("{}web: rebuilt the manifest with 1 snapshot\n", sound("db"))),
        "{text}"
    );
    assert!(text.ends_with("  next, check it with \"imgsnap verify web\"\n"), "{text}");
}

#[test]
fn repair_uses_what_it_can_and_keeps_and_names_the_rest() {
    let (lab, states) = Lab::with_snapshots(3);
    let lost = lab.delta("disk", 2);
    let orphan = lab.delta("disk", 3);
    lab.flip(&lost, 100);
    for file in lab.stored("disk").iter().filter(|f| f.starts_with("manifest.")) {
        lab.remove(&format!("repo/disk/{file}"));
    }
    let run = lab.run(&["repair", "disk", "--json"]);
    assert_eq!(run.code, Some(DAMAGE), "{}", run.err);
    let repaired = run.json();
    assert_eq!(integer(&repaired, "snapshots"), 1);
    assert_eq!(repaired["source"], Value::Null);
    let unused = repaired["unused"].as_array().unwrap();
    assert_eq!(unused.len(), 2, "{repaired}");
    for file in unused {
        assert!([&lost, &orphan].iter().any(|f| f.ends_with(string(file, "file"))), "{repaired}");
        assert!(!string(file, "reason").is_empty());
    }
    lab.restores("disk@1", &states[0]);
    // Still kept when somebody writes later; and its number is not given to another one.
    lab.done(&["relink", "disk", "disk.img"]);
    lab.done(&["snapshot", "disk.img"]);
    lab.done(&["label", "disk@1", "survivor"]);
    assert!(lab.exists(&lost) && lab.exists(&orphan));
}

#[test]
fn repair_without_a_usable_file_changes_nothing() {
    let (lab, _) = Lab::with_snapshots(1);
    lab.flip(&lab.delta("disk", 1), 100);
    for file in lab.stored("disk").iter().filter(|f| f.starts_with("manifest.")) {
        lab.remove(&format!("repo/disk/{file}"));
    }
    let line = lab.fails(DAMAGE, &["repair", "disk"]);
    assert!(line.starts_with("disk: no delta file can be read; put the files"), "{line}");
}

#[test]
fn relink_says_where_the_live_file_is_now() {
    let (lab, states) = Lab::with_snapshots(2);
    std::fs::create_dir(lab.path("elsewhere")).unwrap();
    lab.rename("disk.img", "elsewhere/disk.img");
    let line = lab.fails(FAILED, &["snapshot", "elsewhere/disk.img"]);
    assert!(
        line.contains(&format!("imgsnap relink disk {}", lab.at("elsewhere/disk.img"))),
        "{line}"
    );
    let linked = lab.json(&["relink", "disk", "elsewhere/disk.img"]);
    assert_eq!(string(&linked, "name"), "disk");
    assert_eq!(string(&linked, "source"), lab.at("elsewhere/disk.img"));
    assert_eq!(integer(&lab.json(&["snapshot", "elsewhere/disk.img"]), "parent_number"), 2);
    lab.done(&["rollback", "elsewhere/disk.img", "--to", "@1"]);
    same(&lab.read("elsewhere/disk.img"), &states[0], "disk@1");
    let text = lab.done(&["relink", "disk", "elsewhere/disk.img"]);
    assert_eq!(text, format!("the live file of \"disk\" is {}\n", lab.at("elsewhere/disk.img")));
}

#[test]
fn a_relinked_file_is_not_believed_to_be_what_the_old_one_was() {
    let (lab, states) = Lab::with_snapshots(2);
    let mut bytes = states[1].clone();
    change(&mut bytes, 90, 2);
    lab.write("copy.img", &bytes);
    lab.done(&["relink", "disk", "copy.img"]);
    let done = lab.json(&["rollback", "disk", "--to", "@1"]);
    assert_eq!((string(&done, "saved"), &done["scanned"]), ("disk@3", &json!(true)));
    same(&lab.read("copy.img"), &states[0], "disk@1");
    same(&lab.read("disk.img"), &states[1], "the old file");
    lab.restores("disk@3", &bytes);
}

#[test]
fn relink_to_what_is_no_image_is_refused() {
    let (lab, _) = Lab::with_snapshots(1);
    lab.write("empty.img", b"");
    for (image, said) in
        [("nowhere.img", "nowhere.img"), ("repo", "is a folder"), ("empty.img", "is empty")]
    {
        let line = lab.fails(FAILED, &["relink", "disk", image]);
        assert!(line.contains(said), "{image}: {line}");
    }
}

#[test]
fn an_image_that_is_removed_meanwhile_is_no_trouble_for_the_others() {
    let (lab, _) = Lab::with_snapshots(1);
    lab.write("other.img", &disk(9, 64 << 10));
    std::thread::scope(|threads| {
        let other = threads.spawn(|| {
            for _ in 0..20 {
                lab.done(&["snapshot", "other.img"]);
                // Somebody may be reading it.
                let code = lab.run(&["remove", "other", "--yes"]).code;
                assert!([Some(DONE), Some(BUSY)].contains(&code), "{code:?}");
            }
        });
        while !other.is_finished() {
            lab.done(&["relink", "disk", "disk.img"]);
            lab.done(&["list"]);
            lab.done(&["stats"]);
        }
        other.join().unwrap();
    });
}
