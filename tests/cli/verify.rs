//! `imgsnap verify`

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::support::{DAMAGE, FAILED, Lab, integer, string};
use serde_json::{Value, json};

/// Runs verify, which must find damage, and gives what it printed.
#[track_caller]
fn damage(lab: &Lab, args: &[&str]) -> Value {
    let before = lab.everything();
    let run = lab.run(&[&["verify", "--json"], args].concat());
    assert_eq!(run.code, Some(DAMAGE), "{}{}", run.text(), run.err);
    assert_eq!(run.err, "", "damage is a result");
    lab.ensure_untouched(&before, "verify");
    run.json()
}

#[test]
fn sound_snapshots_are_counted_and_all_their_blocks_looked_at() {
    let (lab, states) = Lab::with_snapshots(3);
    let found = lab.json(&["verify"]);
    assert_eq!(found["damaged"], json!([]));
    assert_eq!(integer(&found, "snapshots"), 3);
    let data = states[0].chunks(4096).filter(|b| b.iter().any(|b| *b != 0)).count() as u64;
    assert_eq!(integer(&found, "blocks"), data + 3 + 3);
    let stored: u64 = (1..=3).map(|n| lab.read(&lab.delta("disk", n)).len() as u64).sum();
    assert_eq!(integer(&found, "stored_bytes"), stored);
    assert_eq!(found["quick"], json!(false));
    let quick = lab.json(&["verify", "--quick"]);
    assert_eq!((integer(&quick, "snapshots"), integer(&quick, "blocks")), (3, 0));
    assert_eq!((&quick["damaged"], &quick["quick"]), (&json!([]), &json!(true)));
}

#[test]
fn people_read_one_line_about_what_is_sound() {
    let (lab, _) = Lab::with_snapshots(2);
    let text = lab.done(&["verify"]);
    assert!(text.starts_with("2 snapshots, ") && text.lines().count() == 1, "{text}");
    assert!(
        text.contains(" stored: no damage found; ")
            && text.contains("blocks and every image digest checked in"),
        "{text}"
    );
    let text = lab.done(&["verify", "--quick"]);
    assert!(
        text.contains(
            "no damage found; checksums of stored bytes checked (omit --quick to check each block)"
        ),
        "{text}"
    );
}

#[test]
fn all_one_image_or_one_snapshot_with_what_it_rests_on_is_verified() {
    let lab = Lab::new();
    lab.grow_history("db.img", 3);
    lab.grow_history("web.img", 1);
    for (what, snapshots) in
        [("db", 3), ("web", 1), ("db@1", 1), ("db@2", 2), ("db@latest", 3), ("db@head", 3)]
    {
        assert_eq!(integer(&lab.json(&["verify", what]), "snapshots"), snapshots, "{what}");
    }
    assert_eq!(integer(&lab.json(&["verify"]), "snapshots"), 4);
    lab.done(&["snapshot", "db.img", "--full"]);
    assert_eq!(integer(&lab.json(&["verify", "db@4"]), "snapshots"), 1);
}

#[test]
fn an_empty_repository_is_sound() {
    let found = Lab::new().json(&["verify"]);
    assert_eq!((integer(&found, "snapshots"), &found["damaged"]), (0, &json!([])));
}

#[test]
fn a_flipped_byte_names_the_snapshot_and_all_that_rest_on_it() {
    // 1 <- 2 <- 3, and 4 on 1.
    let (lab, _) = Lab::with_snapshots(3);
    lab.done(&["snapshot", "disk.img", "--parent", "@1"]);
    for (number, affected) in [
        (1, vec!["disk@1", "disk@2", "disk@3", "disk@4"]),
        (2, vec!["disk@2", "disk@3"]),
        (3, vec!["disk@3"]),
        (4, vec!["disk@4"]),
    ] {
        let delta = lab.delta("disk", number);
        let sound = lab.read(&delta);
        for at in [3, 100, 256, 700, sound.len() / 2, sound.len() - 400, sound.len() - 1] {
            lab.flip(&delta, at);
            for args in [&[][..], &["--quick"], &["disk"], &["disk@latest", "--quick"]] {
                if args.contains(&"disk@latest") && ![1, 4].contains(&number) {
                    continue;
                }
                let found = damage(&lab, args);
                let list = found["damaged"].as_array().unwrap();
                assert!(!list.is_empty(), "byte {at} of disk@{number} {args:?}");
                for damage in list {
                    let what = format!("byte {at} of disk@{number} {args:?}: {damage}");
                    assert_eq!(string(damage, "snapshot"), format!("disk@{number}"), "{what}");
                    assert_eq!(damage["affects"], json!(affected), "{what}");
                    assert!(string(damage, "message").contains(".delta"), "{what}");
                    assert_eq!(string(damage, "message").lines().count(), 1, "{what}");
                }
            }
            lab.write(&delta, &sound);
        }
    }
    assert_eq!(lab.json(&["verify"])["damaged"], json!([]));
}

#[test]
fn a_flipped_byte_in_a_table_names_the_snapshot_whose_table_it_is() {
    let (lab, _) = Lab::with_snapshots(3);
    let delta = lab.delta("disk", 1);
    // In the digests, which stand before the footer.
    lab.flip(&delta, lab.read(&delta).len() - 512 - 48);
    let found = damage(&lab, &[]);
    for damage in found["damaged"].as_array().unwrap() {
        assert!(string(damage, "message").contains(&lab.at(&delta)), "{found}");
        assert_eq!(string(damage, "snapshot"), "disk@1", "{found}");
        assert_eq!(damage["affects"], json!(["disk@1", "disk@2", "disk@3"]), "{found}");
    }
}

#[test]
fn people_read_what_is_damaged_and_what_that_affects() {
    let (lab, _) = Lab::with_snapshots(3);
    lab.flip(&lab.delta("disk", 2), 700);
    let run = lab.run(&["verify"]);
    assert_eq!(run.code, Some(DAMAGE));
    let text = run.text();
    assert!(text.lines().any(|l| l.starts_with("DAMAGED  ") && l.contains(".delta")), "{text}");
    assert!(text.lines().any(|l| l.starts_with("LOST     disk@2  ")), "{text}");
    assert!(text.lines().any(|l| l.starts_with("intact   disk@1")), "{text}");
    let quick = lab.run(&["verify", "--quick"]).text();
    assert!(quick.lines().any(|l| l == "         may affect disk@2, disk@3"), "{quick}");
    let last = text.lines().last().unwrap();
    assert!(last.starts_with("3 snapshots, ") && last.contains("FOUND"), "{text}");
    assert!(!text.contains("sound"), "{text}");
}

#[test]
fn damage_in_two_snapshots_is_found_in_both() {
    let (lab, _) = Lab::with_snapshots(3);
    for number in [1, 3] {
        lab.flip(&lab.delta("disk", number), 700);
    }
    let found = damage(&lab, &[]);
    let named: Vec<&str> =
        found["damaged"].as_array().unwrap().iter().map(|d| string(d, "snapshot")).collect();
    assert!(
        named.contains(&"disk@1") && named.contains(&"disk@3") && !named.contains(&"disk@2"),
        "{found}"
    );
}

#[test]
fn a_snapshot_that_does_not_rest_on_the_damage_is_sound() {
    let (lab, _) = Lab::with_snapshots(3);
    lab.flip(&lab.delta("disk", 3), 700);
    assert_eq!(lab.json(&["verify", "disk@2"])["damaged"], json!([]));
    assert_eq!(integer(&damage(&lab, &["disk@3"]), "snapshots"), 3);
}

#[test]
fn a_damaged_manifest_is_damage_of_the_whole_image() {
    let lab = Lab::new();
    lab.grow_history("db.img", 2);
    lab.grow_history("web.img", 2);
    lab.flip(&lab.manifest("db"), 300);
    let found = damage(&lab, &[]);
    assert_eq!(integer(&found, "snapshots"), 2, "the other image is verified");
    let list = found["damaged"].as_array().unwrap();
    assert_eq!(list.len(), 1);
    assert_eq!(string(&list[0], "snapshot"), "db");
    assert!(string(&list[0], "message").contains("imgsnap repair db"), "{found}");
    assert_eq!(lab.json(&["verify", "web"])["damaged"], json!([]));
}

#[test]
fn what_is_not_there_cannot_be_verified() {
    let (lab, _) = Lab::with_snapshots(1);
    for (what, said) in [
        ("web", "no image \"web\""),
        ("web@1", "no image \"web\""),
        ("disk@7", "there is no snapshot disk@7"),
        ("disk@", "missing snapshot after '@'"),
    ] {
        let line = lab.fails(FAILED, &["verify", what]);
        assert!(line.starts_with(said), "{what}: {line}");
    }
}
