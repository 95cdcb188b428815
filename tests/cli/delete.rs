//! `imgsnap delete`, of any snapshot

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::support::{DAMAGE, FAILED, Lab, change, integer, string};
use serde_json::json;

/// With snapshots whose files are not merged for little garbage, as small files would be.
fn patient(count: usize) -> (Lab, Vec<Vec<u8>>) {
    let (lab, states) = Lab::with_snapshots(count);
    lab.configure("[prune]\ngarbage = 50\n");
    (lab, states)
}

#[test]
fn a_snapshot_in_the_middle_goes_and_those_on_it_stay_as_they_are() {
    for compact in [&[][..], &["--compact"]] {
        let (lab, states) = patient(4);
        let before = lab.json(&["show", "disk@3"]);
        let gone = lab.json(&[&["delete", "disk@2"], compact].concat());
        assert_eq!((string(&gone, "ref"), integer(&gone, "number")), ("disk@2", 2));
        lab.holds("disk", &[(1, &states[0]), (3, &states[2]), (4, &states[3])]);
        let after = lab.json(&["show", "disk@3"]);
        for name in ["id", "time", "label", "image_digest", "image_bytes"] {
            assert_eq!(after[name], before[name], "{name}");
        }
        let line = lab.fails(FAILED, &["show", "disk@2"]);
        assert!(line.starts_with("there is no snapshot disk@2"), "{line}");
        let is_held = compact.is_empty();
        assert_eq!(lab.dropped("disk"), if is_held { vec![2] } else { vec![] });
        assert_eq!(integer(&gone, "held_files"), u64::from(is_held));
        assert_eq!(integer(&after, "parent_number"), if is_held { 2 } else { 1 });
        assert_eq!(after["chain"], if is_held { json!([3, 2, 1]) } else { json!([3, 1]) });
        assert_eq!(lab.json(&["show", "disk@1"])["children"], json!([3]));
    }
}

#[test]
fn what_the_merge_of_a_deleted_one_frees_is_told() {
    let (lab, states) = patient(2);
    // The third one overwrites what the second one wrote.
    let mut bytes = states[0].clone();
    change(&mut bytes, 2, 3);
    bytes.iter_mut().zip(&states[0]).filter(|(new, old)| new != old).for_each(|(b, _)| *b ^= 0x77);
    lab.write("disk.img", &bytes);
    lab.done(&["snapshot", "disk.img"]);
    let size = lab.read(&lab.delta("disk", 2)).len() as u64;
    let gone = lab.json(&["delete", "disk@2"]);
    // All of it is superseded: that is worth a merge.
    assert_eq!(gone["merged"][0]["absorbed"], json!([2]));
    let freed = integer(&gone, "freed_bytes");
    assert!(freed.abs_diff(size) < 1000, "{freed} of {size}");
    lab.holds("disk", &[(1, &states[0]), (3, &bytes)]);
}

#[test]
fn the_base_goes_and_the_chain_on_it_stays() {
    for compact in [&[][..], &["--compact"]] {
        let (lab, states) = patient(3);
        lab.done(&[&["delete", "disk@1"], compact].concat());
        lab.holds("disk", &[(2, &states[1]), (3, &states[2])]);
        let kind = lab.json(&["show", "disk@2"])["kind"].clone();
        assert_eq!(kind, if compact.is_empty() { "delta" } else { "base" });
        let text = lab.done(&["list", "disk"]);
        assert_eq!(text.contains("(@1)"), compact.is_empty(), "{text}");
        // Nothing is lost for the next one.
        let taken = lab.json(&["snapshot", "disk.img", "--full-scan"]);
        assert_eq!((integer(&taken, "number"), integer(&taken, "changed_blocks")), (4, 0));
    }
}

#[test]
fn a_branch_point_goes_when_only_one_branch_is_left() {
    let (lab, states) = patient(2);
    let mut branch = states[0].clone();
    change(&mut branch, 60, 4);
    lab.write("disk.img", &branch);
    lab.done(&["snapshot", "disk.img", "--parent", "@1"]);
    let gone = lab.json(&["delete", "disk@1", "--compact"]);
    assert_eq!((integer(&gone, "held_files"), gone["merged"].clone()), (1, json!([])));
    lab.holds("disk", &[(2, &states[1]), (3, &branch)]);
    lab.done(&["delete", "disk@2", "--compact"]);
    assert_eq!(lab.dropped("disk"), [0; 0]);
    lab.holds("disk", &[(3, &branch)]);
    assert_eq!(lab.deltas("disk").len(), 1);
}

#[test]
fn the_head_goes_and_the_next_snapshot_reads_the_image() {
    let (lab, states) = Lab::with_snapshots(3);
    lab.done(&["rollback", "disk", "--to", "@2"]);
    lab.done(&["delete", "disk@head"]);
    lab.holds("disk", &[(1, &states[0]), (3, &states[2])]);
    let line = lab.fails(FAILED, &["show", "disk@head"]);
    assert!(line.starts_with("it is not known which snapshot the live image"), "{line}");
    let taken = lab.json(&["snapshot", "disk.img"]);
    assert_eq!((&taken["believed"], integer(&taken, "number")), (&json!(false), 4));
    lab.holds("disk", &[(1, &states[0]), (3, &states[2]), (4, &states[1])]);
}

#[test]
fn all_on_a_dropped_base_go_and_it_goes_with_the_last() {
    let (lab, _) = patient(3);
    lab.done(&["delete", "disk@1"]);
    lab.done(&["delete", "disk@2"]);
    assert!(!lab.deltas("disk").is_empty());
    let sizes: u64 =
        lab.deltas("disk").iter().map(|f| lab.read(&format!("repo/disk/{f}")).len() as u64).sum();
    let gone = lab.json(&["delete", "disk@3"]);
    assert_eq!(integer(&gone, "freed_bytes"), sizes);
    assert_eq!((lab.deltas("disk").len(), lab.numbers("disk")), (0, vec![]));
    assert_eq!(integer(&lab.json(&["snapshot", "disk.img"]), "number"), 4);
}

#[test]
fn the_target_of_an_interrupted_rollback_is_not_deleted() {
    let (lab, states) = Lab::with_snapshots(3);
    let id = lab.json(&["show", "disk@2"])["id"].clone();
    let head = json!({"snapshot": null, "stat": null, "intent": {"target": id, "saved": null}});
    lab.as_of_before("disk", head.to_string().as_bytes());
    // What an earlier program knew is moved, and nothing else is changed.
    lab.run(&["delete", "disk@2"]).failed(FAILED);
    let line = lab.fails(FAILED, &["delete", "disk@2"]);
    assert!(
        line.starts_with("a rollback of \"disk\" to disk@2 was interrupted; finish it"),
        "{line}"
    );
    // Others may go, and the rollback stays known.
    lab.done(&["delete", "disk@1"]);
    lab.done(&["delete", "disk@3"]);
    assert!(lab.run(&["list"]).done().err.contains("was interrupted"));
    lab.done(&["rollback", "disk", "--to", "disk@2"]);
    assert_eq!(lab.read("disk.img"), states[1]);
    lab.holds("disk", &[(2, &states[1])]);
}

#[test]
fn a_label_of_a_deleted_snapshot_and_its_number_are_free_and_not() {
    let (lab, states) = patient(3);
    lab.done(&["label", "disk@2", "gold"]);
    lab.done(&["delete", "disk@gold"]);
    assert_eq!(lab.dropped("disk"), [2]);
    lab.done(&["label", "disk@3", "gold"]);
    lab.restores("disk@gold", &states[2]);
    assert_eq!(integer(&lab.json(&["snapshot", "disk.img"]), "number"), 4);
}

#[test]
fn dropped_snapshots_cannot_be_named() {
    let (lab, _) = patient(3);
    lab.done(&["delete", "disk@2"]);
    assert_eq!(lab.dropped("disk"), [2], "its file is still there");
    for args in [
        &["show", "disk@2"][..],
        &["restore", "disk@2", "-o", "out"],
        &["rollback", "disk", "--to", "@2"],
        &["delete", "disk@2"],
        &["flatten", "disk@2"],
        &["export", "disk@2", "-o", "out"],
        &["export", "disk@3", "--since", "@2", "-o", "out"],
        &["snapshot", "disk.img", "--parent", "@2"],
        &["label", "disk@2", "back"],
        &["diff", "disk@2", "disk@3"],
        &["verify", "disk@2"],
    ] {
        let line = lab.fails(FAILED, args);
        assert!(line.contains("there is no snapshot disk@2"), "{args:?}: {line}");
    }
}

#[test]
fn damage_in_a_dropped_one_is_told_of_those_that_rest_on_it() {
    let (lab, states) = patient(4);
    lab.done(&["delete", "disk@2"]);
    let held = lab.catalogue("disk").into_iter().find(|(number, _)| *number == 2).unwrap().1;
    lab.flip(&format!("repo/disk/{held}"), 300);
    let verified = lab.run(&["verify", "--json"]);
    assert_eq!(verified.code, Some(crate::support::DAMAGE));
    let damage = &verified.json()["damaged"][0];
    assert_eq!(string(damage, "snapshot"), "disk@2 (dropped)");
    assert_eq!(damage["affects"], json!(["disk@3", "disk@4"]));
    lab.restores("disk@1", &states[0]);
}

#[test]
fn repair_knows_what_was_dropped_as_long_as_it_finds_a_manifest() {
    let (lab, states) = patient(4);
    lab.done(&["delete", "disk@2"]);
    // The one before the ruling one is from before the label.
    lab.done(&["label", "disk@1", "first"]);
    lab.flip(&lab.manifest("disk"), 300);
    lab.done(&["repair", "disk"]);
    lab.holds("disk", &[(1, &states[0]), (3, &states[2]), (4, &states[3])]);
    assert_eq!(lab.dropped("disk"), [2]);
    // Without any, those whose files are there come back: rather too many than too few.
    for file in lab.stored("disk").iter().filter(|f| f.starts_with("manifest.")) {
        lab.remove(&format!("repo/disk/{file}"));
    }
    lab.done(&["repair", "disk"]);
    lab.holds("disk", &(1..).zip(states.iter().map(Vec::as_slice)).collect::<Vec<_>>());
}

/// A file that cannot be used today may be whole again tomorrow, and rest on dropped ones.
#[test]
fn a_repair_keeps_dropped_ones_on_which_an_unusable_file_rests() {
    let (lab, states) = patient(5);
    lab.done(&["delete", "disk@2"]);
    lab.done(&["delete", "disk@3"]);
    assert_eq!(lab.dropped("disk"), [2, 3]);
    let file = lab.delta("disk", 4);
    lab.rename(&file, "elsewhere.delta");
    // The manifest before is still there.
    let damage_manifest = |label: &str| {
        lab.done(&["label", "disk@1", label]);
        lab.flip(&lab.manifest("disk"), 100);
    };
    damage_manifest("one");
    assert_eq!(lab.run(&["repair", "disk"]).code, Some(DAMAGE), "files are left out");
    assert_eq!(lab.numbers("disk"), [1]);
    // The next writer removes what is not named.
    damage_manifest("two");
    lab.rename("elsewhere.delta", &file);
    lab.done(&["repair", "disk"]);
    lab.restores("disk@4", &states[3]);
    lab.restores("disk@5", &states[4]);
}

/// It may have said that a snapshot is all that is left of the live image.
#[test]
fn nothing_is_dropped_while_the_head_state_is_damaged() {
    let (lab, states) = patient(3);
    lab.as_of_before("disk", b"{ no json");
    for args in [&["prune", "disk", "--keep-last", "1"][..], &["delete", "disk@2"]] {
        let line = lab.fails(FAILED, args);
        assert!(line.contains("head state of \"disk\" is damaged"), "{line}");
    }
    let dry = lab.run(&["prune", "disk", "--keep-last", "1", "--dry-run"]);
    assert_eq!(dry.code, Some(FAILED));
    lab.done(&["relink", "disk", "disk.img"]);
    lab.done(&["delete", "disk@2"]);
    lab.holds("disk", &[(1, &states[0]), (3, &states[2])]);
}

#[test]
fn what_waits_for_a_reader_is_said_to_wait() {
    let (lab, states) = patient(4);
    let reader = lab.reader_of("disk");
    let pruned = lab.json(&["prune", "disk", "--keep-last", "1", "--compact"]);
    assert_eq!(pruned[0]["delayed"], json!(true));
    assert_eq!(lab.deltas("disk").len(), 5);
    drop(reader);
    let pruned = lab.json(&["prune", "disk", "--keep-last", "1", "--compact"]);
    assert_eq!(pruned[0]["delayed"], json!(false));
    lab.is_tidy("disk");
    lab.holds("disk", &[(4, &states[3])]);
}

/// Those that no rule keeps may be the only sound ones.
#[test]
fn nothing_is_dropped_while_what_is_kept_rests_on_a_missing_file() {
    let (lab, states) = patient(5);
    let file = lab.delta("disk", 3);
    lab.rename(&file, "elsewhere.delta");
    for dry in [&["--dry-run"][..], &[]] {
        let args = [&["prune", "disk", "--keep-last", "2"], dry].concat();
        let line = lab.fails(3, &args);
        assert!(line.contains("disk@3: its file"), "{line}");
    }
    assert_eq!(lab.numbers("disk"), [1, 2, 3, 4, 5]);
    lab.restores("disk@2", &states[1]);
    lab.rename("elsewhere.delta", &file);
    lab.done(&["prune", "disk", "--keep-last", "2"]);
    lab.holds("disk", &[(4, &states[3]), (5, &states[4])]);
}

#[test]
fn a_table_of_rules_that_nobody_reads_is_named() {
    let (lab, _) = Lab::with_snapshots(3);
    for (text, said) in [
        ("[prun]\nkeep_last = 1\n", "prun: unknown table or key"),
        (
            "[prune]\nkeep_last = 1\n[image.\"disk\".prune]\nkeep_last = 9\n",
            "image: unknown table or key",
        ),
    ] {
        let (lab, _) = Lab::with_snapshots(3);
        lab.configure(text);
        let line = lab.fails(FAILED, &["prune", "disk"]);
        assert!(line.contains(said), "{line}");
        assert_eq!(lab.numbers("disk").len(), 3);
    }
    lab.configure("\n[images.dusk.prune]\nkeep_last = 9\n");
    let run = lab.run(&["prune", "disk", "--keep-last", "3"]).done();
    assert!(run.err.contains("there is no such image"), "{}", run.err);
}
