//! `imgsnap stats`

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::support::{BLOCK, DAMAGE, KIB, Lab, MIB, change, integer, noise, string};
use serde_json::{Value, json};

fn stats(lab: &Lab, name: &str) -> Value {
    let all = lab.json(&["stats", name]);
    assert_eq!(all.as_array().unwrap().len(), 1);
    all[0].clone()
}

/// Bytes of the delta files of an image, as the disk has them.
fn on_disk(lab: &Lab, name: &str) -> u64 {
    let files = lab.deltas(name);
    files.iter().map(|f| lab.read(&format!("repo/{name}/{f}")).len() as u64).sum()
}

fn sum(list: &Value, name: &str) -> u64 {
    list.as_array().unwrap().iter().map(|entry| integer(entry, name)).sum()
}

#[test]
fn the_numbers_add_up_to_the_files_on_disk() {
    let (lab, _) = Lab::with_snapshots(5);
    lab.configure("[prune]\ngarbage = 50\n");
    let check = |dropped_files: u64| {
        let stats = stats(&lab, "disk");
        assert_eq!(integer(&stats, "stored_bytes"), on_disk(&lab, "disk"));
        let own = sum(&stats["snapshots"], "stored_bytes");
        assert_eq!(own + integer(&stats, "dropped_bytes"), integer(&stats, "stored_bytes"));
        assert_eq!(integer(&stats, "dropped_files"), dropped_files);
        assert_eq!(integer(&stats, "dropped_bytes") > 0, dropped_files > 0);
        let listed = lab.json(&["list", "disk"]);
        let snapshots = stats["snapshots"].as_array().unwrap();
        assert_eq!(snapshots.len(), listed.as_array().unwrap().len());
        for (cost, listed) in snapshots.iter().zip(listed.as_array().unwrap()) {
            for name in ["ref", "number", "time", "label", "changed_bytes", "stored_bytes"] {
                assert_eq!(cost[name], listed[name], "{name}");
            }
        }
        for name in ["snapshots", "changed_bytes", "stored_bytes"] {
            let by_day = sum(&stats["days"], name);
            let all = match name {
                "snapshots" => snapshots.len() as u64,
                name => sum(&stats["snapshots"], name),
            };
            assert_eq!(by_day, all, "{name}");
        }
        assert_eq!(integer(&stats, "raw_bytes") % BLOCK as u64, 0);
        assert!(integer(&stats, "frame_bytes") < integer(&stats, "stored_bytes"));
        stats
    };
    let before = check(0);
    assert_eq!(integer(&before, "garbage_bytes"), 0);
    lab.done(&["delete", "disk@3"]);
    lab.done(&["delete", "disk@1"]);
    let after = check(2);
    assert!(integer(&after, "garbage_bytes") > 0, "{after}");
    lab.done(&["prune", "disk", "--keep-last", "1", "--compact"]);
    let pruned = check(0);
    assert_eq!(integer(&pruned, "garbage_bytes"), 0);
}

#[test]
fn json_has_these_keys_and_whole_numbers() {
    let (lab, _) = Lab::with_snapshots(2);
    let stats = stats(&lab, "disk");
    let keys = |value: &Value| -> Vec<String> {
        let mut keys: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
        keys.sort();
        keys
    };
    let all = [
        "cell_bytes",
        "clone_bytes",
        "condemned_bytes",
        "days",
        "dropped_bytes",
        "dropped_files",
        "foreign_clones",
        "frame_bytes",
        "garbage_bytes",
        "heat",
        "name",
        "orphaned_clones",
        "raw_bytes",
        "snapshots",
        "stored_bytes",
    ];
    assert_eq!(keys(&stats), all);
    let of_one = ["changed_bytes", "frees_bytes", "label", "number", "ref", "stored_bytes", "time"];
    assert_eq!(keys(&stats["snapshots"][0]), of_one);
    let of_day = ["changed_bytes", "date", "snapshots", "stored_bytes"];
    assert_eq!(keys(&stats["days"][0]), of_day);
    assert!(stats["heat"].as_array().unwrap().iter().all(Value::is_u64));
    let time = string(&stats["snapshots"][0], "time");
    assert_eq!(string(&stats["days"][0], "date"), &time[..10], "in UTC, as the tests are");
}

#[test]
fn heat_is_at_the_cell_that_changed() {
    let lab = Lab::new();
    let mut bytes = noise(1, 4 * MIB);
    lab.write("disk.img", &bytes);
    lab.done(&["snapshot", "disk.img"]);
    // A base is no change.
    let cells = |stats: &Value| -> Vec<(u64, u64)> {
        let heat = stats["heat"].as_array().unwrap().iter().map(|h| h.as_u64().unwrap());
        (0..).zip(heat).filter(|(_, bytes)| *bytes > 0).collect()
    };
    let first = stats(&lab, "disk");
    assert_eq!((cells(&first), integer(&first, "cell_bytes")), (vec![], 16 * KIB as u64));
    assert_eq!(first["heat"].as_array().unwrap().len(), 256);
    // Block 401 twice, one that becomes zero, and a run over the border of two cells.
    for round in 0..2u8 {
        bytes[401 * BLOCK] ^= 1 + round;
        lab.write("disk.img", &bytes);
        lab.done(&["snapshot", "disk.img"]);
    }
    bytes[8 * BLOCK..9 * BLOCK].fill(0);
    bytes[1022 * BLOCK..1024 * BLOCK].fill(3);
    bytes[27 * BLOCK..29 * BLOCK].fill(4);
    lab.write("disk.img", &bytes);
    lab.done(&["snapshot", "disk.img"]);
    let block = BLOCK as u64;
    let want = [(2, block), (6, block), (7, block), (100, 2 * block), (255, 2 * block)];
    let now = stats(&lab, "disk");
    assert_eq!(cells(&now), want);
    let changed: u64 =
        now["snapshots"].as_array().unwrap()[1..].iter().map(|s| integer(s, "changed_bytes")).sum();
    assert_eq!(sum_of(&now["heat"]), changed);
    let text = lab.done(&["stats", "disk"]);
    let hottest = text.split("most changed:\n").nth(1).unwrap().lines().nth(1).unwrap();
    let words: Vec<&str> = hottest.split_whitespace().collect();
    assert_eq!(words, ["1.56", "MiB", "8.00", "KiB", "28.6", "%"], "{text}");
}

fn sum_of(list: &Value) -> u64 {
    list.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum()
}

#[test]
fn heat_outlives_a_shrink_and_ends_at_the_longest_image() {
    let lab = Lab::new();
    for (seed, blocks) in [(1, 20), (2, 5), (3, 12)] {
        lab.write("disk.img", &noise(seed, blocks * BLOCK + 10));
        lab.done(&["snapshot", "disk.img"]);
    }
    let stats = stats(&lab, "disk");
    let heat: Vec<u64> =
        stats["heat"].as_array().unwrap().iter().map(|h| h.as_u64().unwrap()).collect();
    assert_eq!((heat.len(), integer(&stats, "cell_bytes")), (21, BLOCK as u64));
    assert!(heat[..5].iter().all(|h| *h == 2 * BLOCK as u64), "{heat:?}");
    assert_eq!(heat[5], 10 + BLOCK as u64);
    assert!(heat[6..12].iter().all(|h| *h == BLOCK as u64), "{heat:?}");
    assert_eq!((heat[12], heat[13..].iter().sum::<u64>()), (10, 0));
}

#[test]
fn frees_is_what_a_delete_then_frees() {
    let (lab, states) = Lab::with_snapshots(3);
    lab.configure("[prune]\ngarbage = 50\n");
    let frees = |number: u64| {
        let stats = stats(&lab, "disk");
        let costs = stats["snapshots"].as_array().unwrap();
        integer(costs.iter().find(|s| s["number"] == number).unwrap(), "frees_bytes")
    };
    // A leaf frees its file.
    assert_eq!(frees(3), lab.read(&lab.delta("disk", 3)).len() as u64);
    // One with a child frees what the child overwrote, and no more: here next to nothing.
    assert!(frees(2) < 2000, "{}", frees(2));
    // A branch point frees nothing.
    let mut branch = states[0].clone();
    change(&mut branch, 60, 3);
    lab.write("disk.img", &branch);
    lab.done(&["snapshot", "disk.img", "--parent", "@1"]);
    assert_eq!(frees(1), 0);
    // The last on dropped ones frees them, too.
    lab.done(&["delete", "disk@2"]);
    let before = on_disk(&lab, "disk");
    let about = frees(3);
    let gone = lab.json(&["delete", "disk@3"]);
    assert_eq!(integer(&gone, "freed_bytes"), about);
    assert_eq!(on_disk(&lab, "disk"), before - about);
}

#[test]
fn frees_of_one_that_is_overwritten_is_about_what_the_merge_frees() {
    let lab = Lab::new();
    let mut bytes = noise(1, MIB);
    for seed in 1..=3 {
        if seed > 1 {
            bytes[40 * BLOCK..80 * BLOCK].copy_from_slice(&noise(seed, 40 * BLOCK));
        }
        lab.write("disk.img", &bytes);
        lab.done(&["snapshot", "disk.img"]);
    }
    let about = integer(&stats(&lab, "disk")["snapshots"][1], "frees_bytes");
    let freed = integer(&lab.json(&["delete", "disk@2", "--compact"]), "freed_bytes");
    assert!(about.abs_diff(freed) < freed / 20, "about {about}, then {freed}");
}

#[test]
fn people_see_an_overview_of_all_images_or_the_details_of_one() {
    let lab = Lab::new();
    assert!(lab.done(&["stats"]).starts_with("no images in "));
    assert_eq!(lab.json(&["stats"]), json!([]));
    lab.grow_history("web.img", 1);
    lab.grow_history("db.img", 2);
    let text = lab.done(&["stats"]);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("2 images, ") && lines[0].ends_with(" KiB stored"), "{text}");
    let words: Vec<&str> = lines[1].split_whitespace().collect();
    let headings =
        ["NAME", "SNAPSHOTS", "IMAGE", "STORED", "COMPRESSED", "DROPPED", "GARBAGE", "NEWEST"];
    assert_eq!(words, headings);
    assert!(lines[2].trim_start().starts_with("db ") && lines[3].trim_start().starts_with("web "));
    assert_eq!(lines.len(), 4, "{text}");
    let names = |value: &Value| -> Vec<String> {
        value.as_array().unwrap().iter().map(|s| string(s, "name").to_owned()).collect()
    };
    assert_eq!(names(&lab.json(&["stats"])), ["db", "web"]);

    let text = lab.done(&["stats", "db"]);
    assert!(text.starts_with("db  2 snapshots, "), "{text}");
    for part in [
        "\n  compressed  ",
        "\n  dropped     none\n",
        "\n  garbage     about 0 B, not freed yet\n",
        "\n\nsnapshots, and the space that dropping each would free\n",
        "\n\ngrowth by day\n",
        "\n\nwhere the image changes\n",
    ] {
        assert!(text.contains(part), "no {part:?} in:\n{text}");
    }
    // Of one that never changed there is no map.
    assert!(!lab.done(&["stats", "web"]).contains("where the image changes"));
}

#[test]
fn an_image_without_snapshots_has_stats() {
    let (lab, _) = Lab::with_snapshots(1);
    lab.done(&["delete", "disk@1"]);
    let stats = stats(&lab, "disk");
    assert_eq!((integer(&stats, "stored_bytes"), &stats["heat"]), (0, &json!([])));
    assert!(lab.done(&["stats", "disk"]).starts_with("disk  0 snapshots, 0 B stored"));
    assert!(lab.done(&["stats"]).contains("disk"));
}

#[test]
fn a_damaged_image_does_not_hide_the_others() {
    let lab = Lab::new();
    lab.grow_history("db.img", 1);
    lab.grow_history("web.img", 1);
    lab.flip(&lab.manifest("db"), 300);
    let run = lab.run(&["stats", "--json"]);
    assert_eq!(run.code, Some(DAMAGE), "{}", run.err);
    assert_eq!(string(&run.json()[0], "name"), "web");
    assert!(run.err.contains("imgsnap repair db"), "{}", run.err);
    lab.fails(DAMAGE, &["stats", "db"]);
}
