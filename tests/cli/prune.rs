//! `imgsnap prune`: what is kept and why, what becomes of the files, and that nothing that is kept
//! changes.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::support::{
    BLOCK, DAMAGE, FAILED, Lab, MIB, Random, change, integer, no_fork, noise, string,
};
use serde_json::{Value, json};

/// An image of 4 MiB of noise, and snapshots of it; between them that many blocks from `first(n)` on
/// change.
fn overwritten(count: usize, blocks: usize, first: impl Fn(usize) -> usize) -> (Lab, Vec<Vec<u8>>) {
    let lab = Lab::new();
    let mut bytes = noise(7, 4 * MIB);
    let mut states = Vec::new();
    for number in 1..=count {
        if number > 1 {
            let new = noise(number as u64, blocks * BLOCK);
            bytes[first(number) * BLOCK..][..new.len()].copy_from_slice(&new);
        }
        lab.write("disk.img", &bytes);
        lab.done(&["snapshot", "disk.img"]);
        states.push(bytes.clone());
    }
    (lab, states)
}

/// What one image was pruned to, from the one that `--json` gives.
#[track_caller]
fn pruned(lab: &Lab, args: &[&str]) -> Value {
    let all = lab.json(&[&["prune", "disk"], args].concat());
    let all = all.as_array().unwrap();
    assert_eq!(all.len(), 1);
    all[0].clone()
}

/// The numbers that were kept, and the reasons for each.
fn kept(pruned: &Value) -> Vec<(u64, Vec<&str>)> {
    let snapshots = pruned["snapshots"].as_array().unwrap().iter().filter(|s| s["kept"] == true);
    snapshots
        .map(|s| {
            let reasons = s["reasons"].as_array().unwrap();
            (integer(s, "number"), reasons.iter().map(|r| r.as_str().unwrap()).collect())
        })
        .collect()
}

/// Snapshots by number, out of all states.
fn of<'a>(states: &'a [Vec<u8>], numbers: &[usize]) -> Vec<(u64, &'a [u8])> {
    numbers.iter().map(|n| (*n as u64, states[n - 1].as_slice())).collect()
}

#[test]
fn keep_last_keeps_the_newest_and_nothing_else() {
    let (lab, states) = Lab::with_snapshots(6);
    let done = pruned(&lab, &["--keep-last", "2"]);
    assert_eq!((string(&done, "name"), &done["dry_run"]), ("disk", &json!(false)));
    assert_eq!((integer(&done, "kept"), integer(&done, "dropped")), (2, 4));
    assert_eq!(kept(&done), [(5, vec!["last"]), (6, vec!["last", "head"])]);
    lab.holds("disk", &of(&states, &[5, 6]));
    // Again, there is nothing to do.
    let files = lab.deltas("disk");
    let again = pruned(&lab, &["--keep-last", "2"]);
    assert_eq!((integer(&again, "kept"), integer(&again, "dropped")), (2, 0));
    assert_eq!(lab.deltas("disk"), files);
    // Life goes on, with numbers that nobody had.
    let taken = lab.json(&["snapshot", "disk.img"]);
    assert_eq!((integer(&taken, "number"), integer(&taken, "changed_blocks")), (7, 0));
}

#[test]
fn keep_label_keeps_what_fits_one_of_the_patterns() {
    let (lab, states) = Lab::with_snapshots(6);
    for (number, label) in [(1, "pre-update"), (2, "xpre-"), (4, "v7"), (5, "pre-")] {
        lab.done(&["label", &format!("disk@{number}"), label]);
    }
    let done = pruned(&lab, &["--keep-label", "pre-*", "--keep-label", "v[0-9]"]);
    let want = [
        (1, vec!["label pre-*"]),
        (4, vec!["label v[0-9]"]),
        (5, vec!["label pre-*"]),
        (6, vec!["head"]),
    ];
    assert_eq!(kept(&done), want);
    lab.holds("disk", &of(&states, &[1, 4, 5, 6]));
    lab.restores("disk@pre-update", &states[0]);
    let line = lab.fails(FAILED, &["show", "disk@xpre-"]);
    assert!(line.starts_with("no snapshot of \"disk\" has the label \"xpre-\""), "{line}");
    // What has a label is not dropped without a word.
    let text = lab.done(&["prune", "disk", "--keep-label", "v*", "--keep-last", "1"]);
    assert!(text.contains("\n  dropped  disk@1  pre-update\n"), "{text}");
    assert!(!text.contains("disk@4"), "{text}");
}

#[test]
fn rules_unite() {
    let (lab, states) = Lab::with_snapshots(5);
    lab.done(&["label", "disk@2", "gold"]);
    let done = pruned(&lab, &["--keep-last", "1", "--keep-label", "gold"]);
    assert_eq!(kept(&done), [(2, vec!["label gold"]), (5, vec!["last", "head"])]);
    lab.holds("disk", &of(&states, &[2, 5]));
}

#[test]
fn unlimited_and_long_periods_keep_all() {
    let (lab, states) = Lab::with_snapshots(3);
    for rule in [
        &["--keep-last", "unlimited"][..],
        &["--keep-last", "-1"],
        &["--keep-within", "1y6mo"],
        &["--keep-last", "99"],
    ] {
        assert_eq!(integer(&pruned(&lab, rule), "dropped"), 0, "{rule:?}");
    }
    lab.holds("disk", &of(&states, &[1, 2, 3]));
}

#[test]
fn what_is_kept_does_not_change_by_a_prune() {
    let (lab, _) = Lab::with_snapshots(6);
    lab.done(&["label", "disk@3", "gold"]);
    let before = lab.json(&["list"]);
    pruned(&lab, &["--keep-last", "2", "--keep-label", "gold", "--compact"]);
    let after = lab.json(&["list"]);
    let after = after.as_array().unwrap();
    assert_eq!(after.len(), 3);
    for now in after {
        let was = before.as_array().unwrap().iter().find(|s| s["number"] == now["number"]).unwrap();
        for name in ["ref", "id", "label", "time", "image_bytes", "image_digest", "head"] {
            assert_eq!(now[name], was[name], "{name} of {}", now["ref"]);
        }
    }
}

#[test]
fn a_dry_run_changes_nothing_and_names_the_reason_for_each() {
    let (lab, states) = Lab::with_snapshots(5);
    lab.done(&["label", "disk@2", "gold"]);
    let rules = ["--keep-last", "2", "--keep-label", "gold"];
    let before = lab.everything();
    let text = lab.done(&[&["prune", "disk", "--dry-run"], &rules[..]].concat());
    lab.ensure_untouched(&before, "a dry run");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "disk  3 snapshots kept, 2 dropped  (dry run: nothing was changed)");
    let heading: Vec<&str> = lines[1].split_whitespace().collect();
    assert_eq!(heading, ["#", "TIME", "FATE", "BECAUSE", "LABEL"]);
    for (line, (number, fate, reason)) in lines[2..].iter().zip([
        ("1", "drop", ""),
        ("2", "keep", "label gold"),
        ("3", "drop", ""),
        ("4", "keep", "last"),
        ("5", "keep", "last, head"),
    ]) {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!((words[0], words[3]), (number, fate), "{text}");
        let at = lines[1].find("BECAUSE").unwrap();
        let because = line.get(at..).unwrap_or_default();
        assert!(because.starts_with(reason), "{text}");
        assert_eq!(because.trim().is_empty(), reason.is_empty(), "{text}");
    }
    // It tells what then happens.
    let dry = pruned(&lab, &[&["--dry-run"], &rules[..]].concat());
    lab.ensure_untouched(&before, "a dry run");
    assert_eq!(dry["dry_run"], json!(true));
    let wet = pruned(&lab, &rules);
    for name in ["name", "kept", "dropped", "snapshots", "removed_files", "removed_bytes"] {
        assert_eq!(dry[name], wet[name], "{name}");
    }
    lab.holds("disk", &of(&states, &[2, 4, 5]));
}

#[test]
fn a_dry_run_plans_the_merges_that_are_then_made() {
    let (lab, _) = overwritten(5, 8, |_| 0);
    let rules = ["--keep-last", "1", "--compact"];
    let dry = pruned(&lab, &[&["--dry-run"], &rules[..]].concat());
    let wet = pruned(&lab, &rules);
    let planned = |pruned: &Value| -> Vec<(Value, Value, Value)> {
        let merged = pruned["merged"].as_array().unwrap();
        let part =
            |m: &Value| (m["number"].clone(), m["absorbed"].clone(), m["before_bytes"].clone());
        merged.iter().map(part).collect()
    };
    assert_eq!(planned(&dry), planned(&wet));
    assert_eq!(planned(&wet).len(), 1);
    assert_eq!((dry["held_files"].clone(), wet["held_files"].clone()), (json!(0), json!(0)));
}

#[test]
fn a_dry_run_says_about_how_much_would_be_freed() {
    let (lab, _) = overwritten(5, 8, |_| 0);
    let rules = ["--keep-last", "1", "--compact"];
    let dry = pruned(&lab, &[&["--dry-run"], &rules[..]].concat());
    let wet = pruned(&lab, &rules);
    let (about, freed) = (integer(&dry, "freed_bytes"), integer(&wet, "freed_bytes"));
    assert!(about.abs_diff(freed) < freed / 5, "about {about}, then {freed}");
}

#[test]
fn the_policy_in_the_configuration_holds_for_all_images_and_that_of_an_image_for_it_alone() {
    let lab = Lab::new();
    let mut states = Vec::new();
    for name in ["disk", "db", "web"] {
        states.push((name, lab.grow_history(&format!("{name}.img"), 5)));
    }
    lab.configure(
        "[prune]\nkeep_last = 3\n\n[images.db.prune]\nkeep_last = 1\n\n\
         [images.web.prune]\nkeep_label = [\"gold\"]\n",
    );
    lab.done(&["label", "web@2", "gold"]);
    let all = lab.json(&["prune", "--all"]);
    let names: Vec<&str> = all.as_array().unwrap().iter().map(|p| string(p, "name")).collect();
    assert_eq!(names, ["db", "disk", "web"]);
    for (name, states) in &states {
        let want: &[usize] = match *name {
            "disk" => &[3, 4, 5],
            "db" => &[5],
            _ => &[2, 5],
        };
        lab.holds(name, &of(states, want));
    }
    // Rules that are typed take the place of the policy.
    lab.done(&["prune", "disk", "--keep-last", "2"]);
    lab.holds("disk", &of(&states[0].1, &[4, 5]));
}

#[test]
fn without_any_rule_prune_is_refused() {
    let (lab, _) = Lab::with_snapshots(2);
    for text in ["", "[prune]\ngarbage = 1\n"] {
        lab.configure(text);
        for more in [&[][..], &["--dry-run"], &["--compact"]] {
            let line = lab.fails(FAILED, &[&["prune", "disk"], more].concat());
            assert!(line.starts_with("there are no retention rules for \"disk\"; "), "{line}");
            assert!(line.contains("--keep-") && line.contains("\"imgsnap config edit\""), "{line}");
        }
    }
}

#[test]
fn rules_that_keep_nothing_are_refused() {
    let (lab, _) = Lab::with_snapshots(3);
    for more in [&[][..], &["--dry-run"]] {
        let line = lab.fails(FAILED, &[&["prune", "disk", "--keep-label", "none*"], more].concat());
        assert!(line.starts_with("these rules keep none of the snapshots of \"disk\"; "), "{line}");
        assert!(line.contains("--keep-last 1") && line.contains("imgsnap remove disk"), "{line}");
    }
    // Of an image without snapshots there is nothing to lose.
    lab.done(&["delete", "disk@3"]);
    lab.done(&["delete", "disk@2"]);
    lab.done(&["delete", "disk@1"]);
    assert_eq!(integer(&pruned(&lab, &["--keep-label", "none*"]), "dropped"), 0);
}

#[test]
fn an_unknown_key_in_the_policy_is_refused_and_named_and_concerns_prune_alone() {
    let (lab, states) = Lab::with_snapshots(2);
    lab.configure("[prune]\nkeep_last = 1\nkeep_dialy = 7\n");
    for rules in [&[][..], &["--keep-last", "1"]] {
        let line = lab.fails(FAILED, &[&["prune", "disk"], rules].concat());
        assert!(line.contains("config.000002: [prune]: keep_dialy: unknown key"), "{line}");
    }
    assert_eq!(integer(&lab.json(&["snapshot", "disk.img"]), "number"), 3);
    lab.restores("disk@1", &states[0]);
    // What somebody wants to be gone goes all the same.
    lab.done(&["delete", "disk@1"]);
    lab.holds("disk", &[(2, &states[1]), (3, &states[1])]);
}

#[test]
fn of_all_images_a_damaged_one_does_not_keep_the_others_from_being_pruned() {
    let lab = Lab::new();
    let web = lab.grow_history("web.img", 3);
    lab.grow_history("db.img", 3);
    lab.flip(&lab.manifest("db"), 300);
    let damaged = lab.stored("db");
    let run = lab.run(&["prune", "--all", "--keep-last", "1", "--json"]);
    assert_eq!(run.code, Some(DAMAGE), "{}", run.err);
    assert!(
        run.err.starts_with("imgsnap: error: ") && run.err.contains("repair db"),
        "{}",
        run.err
    );
    let done = run.json();
    assert_eq!(done.as_array().unwrap().len(), 1);
    assert_eq!((string(&done[0], "name"), integer(&done[0], "dropped")), ("web", 2));
    lab.holds("web", &[(3, &web[2])]);
    let without_locks = |files: Vec<String>| -> Vec<String> {
        files.into_iter().filter(|f| !f.ends_with(".lock")).collect()
    };
    assert_eq!(without_locks(lab.stored("db")), without_locks(damaged));
}

#[test]
fn the_head_is_kept_even_if_no_rule_keeps_it() {
    let (lab, states) = Lab::with_snapshots(5);
    lab.done(&["rollback", "disk", "--to", "@2"]);
    let done = pruned(&lab, &["--keep-last", "1"]);
    assert_eq!(kept(&done), [(2, vec!["head"]), (5, vec!["last"])]);
    lab.holds("disk", &of(&states, &[2, 5]));
    // So the next snapshot of what is hardly changed is small.
    let mut bytes = states[1].clone();
    change(&mut bytes, 50, 2);
    lab.write("disk.img", &bytes);
    let taken = lab.json(&["snapshot", "disk.img"]);
    assert_eq!((integer(&taken, "parent_number"), integer(&taken, "changed_blocks")), (2, 2));
    lab.holds("disk", &[(2, &states[1]), (5, &states[4]), (6, &bytes)]);
}

#[test]
fn what_an_interrupted_rollback_needs_is_kept() {
    let (lab, states) = Lab::with_snapshots(6);
    let id = |number: usize| lab.json(&["list"])[number - 1]["id"].clone();
    let intent = json!({"target": id(2), "saved": id(4)});
    let head = json!({"snapshot": null, "stat": null, "intent": intent});
    lab.as_of_before("disk", head.to_string().as_bytes());
    let done = pruned(&lab, &["--keep-last", "1"]);
    let reason = || vec!["interrupted rollback"];
    assert_eq!(kept(&done), [(2, reason()), (4, reason()), (6, vec!["last"])]);
    lab.done(&["rollback", "disk", "--to", "disk@2"]);
    assert_eq!(lab.read("disk.img"), states[1]);
    lab.holds("disk", &of(&states, &[2, 4, 6]));
}

#[test]
fn a_branch_point_is_held_until_it_has_one_child() {
    let (lab, mut states) = Lab::with_snapshots(2);
    // @2 gets three children: @3, @4 and @5.
    for seed in 1..=3 {
        let mut bytes = states[1].clone();
        change(&mut bytes, 40 + seed, 3);
        lab.write("disk.img", &bytes);
        lab.done(&["snapshot", "disk.img", "--parent", "@2", "--label", &format!("b{seed}")]);
        states.push(bytes);
    }
    lab.done(&["snapshot", "disk.img", "--label", "b4"]);
    states.push(states[4].clone());
    let keep = |labels: &[&str]| {
        let mut args = vec!["--compact"];
        labels.iter().for_each(|label| args.extend(["--keep-label", label]));
        pruned(&lab, &args)
    };
    let done = keep(&["b1", "b2", "b3", "b4"]);
    assert_eq!(integer(&done, "dropped"), 2);
    assert_eq!(lab.dropped("disk"), [2], "@1 went into it");
    assert_eq!(integer(&done, "held_files"), 1);
    lab.holds("disk", &of(&states, &[3, 4, 5, 6]));
    let listed = lab.done(&["list", "disk"]);
    assert_eq!(listed.matches("(@2)").count(), 3, "{listed}");
    assert!(lab.done(&["show", "disk@3"]).contains("  parent     disk@2 (dropped)\n"));

    keep(&["b2", "b3", "b4"]);
    assert_eq!(lab.dropped("disk"), [2]);
    lab.holds("disk", &of(&states, &[4, 5, 6]));

    let done = keep(&["b2"]);
    // The head is kept; it rests on @5, which goes into it; @2 still has two children.
    assert_eq!(kept(&done), [(4, vec!["label b2"]), (6, vec!["head"])]);
    assert_eq!(lab.dropped("disk"), [2]);
    lab.holds("disk", &of(&states, &[4, 6]));

    lab.done(&["delete", "disk@4", "--compact"]);
    assert_eq!(lab.dropped("disk"), [0; 0]);
    assert_eq!(lab.deltas("disk").len(), 1);
    lab.holds("disk", &of(&states, &[6]));
}

#[test]
fn a_base_is_not_rewritten_for_little_garbage_but_it_is_with_compact() {
    // Each delta changes eight other blocks of 1024.
    let (lab, states) = overwritten(4, 8, |number| number * 10);
    let base = lab.delta("disk", 1);
    let bytes = lab.read(&base);
    let done = pruned(&lab, &["--keep-last", "1"]);
    assert_eq!((integer(&done, "dropped"), integer(&done, "held_files")), (3, 3));
    assert_eq!((done["merged"].clone(), integer(&done, "freed_bytes")), (json!([]), 0));
    assert!(integer(&done, "garbage_bytes") >= 24 * BLOCK as u64, "{done}");
    assert_eq!(lab.read(&base), bytes, "the base was written again");
    lab.holds("disk", &of(&states, &[4]));
    let text = lab.done(&["prune", "disk", "--keep-last", "1"]);
    assert!(text.contains("held     3 files of dropped snapshots"), "{text}");

    let done = pruned(&lab, &["--keep-last", "1", "--compact"]);
    assert_eq!((integer(&done, "held_files"), integer(&done, "garbage_bytes")), (0, 0));
    assert_eq!(done["merged"][0]["absorbed"], json!([3, 2, 1]));
    assert!(!lab.exists(&base));
    assert_eq!(lab.deltas("disk").len(), 1);
    let (before, after) =
        (integer(&done["merged"][0], "before_bytes"), integer(&done["merged"][0], "after_bytes"));
    assert_eq!(lab.read(&lab.delta("disk", 4)).len() as u64, after);
    assert_eq!(integer(&done, "freed_bytes"), before - after);
    lab.holds("disk", &of(&states, &[4]));
    assert_eq!(string(&lab.json(&["list"])[0], "kind"), "base");
}

#[test]
fn deltas_that_supersede_each_other_are_merged_without_the_base_below_them() {
    // Each delta overwrites the same two blocks.
    let (lab, states) = overwritten(5, 2, |_| 100);
    let base = lab.delta("disk", 1);
    let bytes = lab.read(&base);
    let done = pruned(&lab, &["--keep-last", "1"]);
    assert_eq!(done["merged"][0]["absorbed"], json!([4, 3, 2]));
    assert_eq!(integer(&done, "held_files"), 1);
    assert_eq!(lab.read(&base), bytes, "the base was written again");
    assert_eq!(lab.dropped("disk"), [1]);
    lab.holds("disk", &of(&states, &[5]));
    assert!(lab.done(&["list", "disk"]).contains("  (@1)  "));
}

#[test]
fn the_share_of_garbage_in_the_policy_decides_what_is_merged() {
    for (garbage, merges) in [("0", 1), ("0.1", 1), ("50", 0), ("100", 0)] {
        let (lab, states) = overwritten(3, 1, |number| number * 10);
        lab.configure(&format!("[prune]\ngarbage = {garbage}\n"));
        let done = pruned(&lab, &["--keep-last", "1"]);
        assert_eq!(done["merged"].as_array().unwrap().len(), merges, "{garbage}: {done}");
        lab.holds("disk", &of(&states, &[3]));
    }
}

#[test]
fn files_of_dropped_snapshots_are_gone_afterwards() {
    let (lab, states) = Lab::with_snapshots(3);
    // A second chain: nothing rests on the first one any more.
    lab.done(&["snapshot", "disk.img", "--full"]);
    let old: Vec<String> = (1..=3).map(|n| lab.delta("disk", n)).collect();
    let sizes: u64 = old.iter().map(|f| lab.read(f).len() as u64).sum();
    let done = pruned(&lab, &["--keep-last", "1"]);
    assert_eq!((integer(&done, "removed_files"), integer(&done, "removed_bytes")), (3, sizes));
    assert_eq!((integer(&done, "freed_bytes"), done["merged"].clone()), (sizes, json!([])));
    assert!(old.iter().all(|f| !lab.exists(f)));
    assert_eq!(lab.deltas("disk").len(), 1);
    lab.holds("disk", &[(4, &states[2])]);
    let text = lab.done(&["prune", "disk", "--keep-last", "1"]);
    assert_eq!(text, "disk  1 snapshot kept, 0 dropped\n");
}

#[test]
fn a_reader_at_work_keeps_its_files_and_the_next_writer_removes_them() {
    let (lab, states) = Lab::with_snapshots(5);
    let old: Vec<String> = (1..=5).map(|n| lab.delta("disk", n)).collect();
    let reader = lab.reader_of("disk");
    let done = pruned(&lab, &["--keep-last", "1", "--compact"]);
    assert_eq!(integer(&done, "dropped"), 4);
    assert!(old.iter().all(|f| lab.exists(f)), "a file was removed under a reader");
    assert_eq!(lab.numbers("disk"), [5]);
    lab.restores("disk@5", &states[4]);
    lab.done(&["label", "disk@5", "still-read"]);
    assert!(old.iter().all(|f| lab.exists(f)), "a file was removed under a reader");
    drop(reader);
    lab.done(&["label", "disk@5", "read"]);
    assert!(old.iter().all(|f| !lab.exists(f)), "{:?}", lab.stored("disk"));
    lab.holds("disk", &[(5, &states[4])]);
}

#[test]
fn prune_while_another_writer_works_is_told_that_it_is_busy() {
    let (lab, _) = Lab::with_snapshots(3);
    let writer = {
        let _calm = no_fork();
        std::fs::File::open(lab.path("repo/disk/write.lock")).unwrap()
    };
    writer.lock().unwrap();
    for args in
        [&["prune", "disk", "--keep-last", "1"][..], &["delete", "disk@1"], &["flatten", "disk@2"]]
    {
        let line = lab.fails(crate::support::BUSY, args);
        assert!(line.contains("another imgsnap is working on \"disk\""), "{line}");
    }
    // To plan, nobody has to wait.
    pruned(&lab, &["--keep-last", "1", "--dry-run"]);
}

#[test]
fn damage_in_what_would_be_merged_is_told_and_nothing_sound_is_lost() {
    let (lab, states) = overwritten(4, 8, |number| number * 20);
    let middle = lab.delta("disk", 2);
    lab.flip(&middle, 3 * BLOCK);
    lab.done(&["label", "disk@1", "gold"]);
    let run = lab.run(&["prune", "disk", "--keep-last", "1", "--keep-label", "gold", "--compact"]);
    let line = run.failed(DAMAGE);
    assert!(line.contains("frame at byte"), "{line}");
    // What was sound is sound; what was damaged is damaged, and not under a new checksum.
    lab.restores("disk@1", &states[0]);
    assert!(lab.exists(&middle), "the damaged file is gone");
    let line = lab.fails(DAMAGE, &["restore", "disk@4", "-o", "out"]);
    assert!(line.contains("frame at byte"), "{line}");
    assert_ne!(lab.run(&["verify", "disk", "--quick"]).code, Some(0));
    // Repaired by putting the bytes back, it goes on.
    lab.flip(&middle, 3 * BLOCK);
    pruned(&lab, &["--keep-last", "1", "--keep-label", "gold", "--compact"]);
    lab.holds("disk", &of(&states, &[1, 4]));
    assert_eq!(lab.deltas("disk").len(), 2);
}

#[test]
fn images_that_grow_and_shrink_are_kept_bit_for_bit() {
    let lab = Lab::new();
    let mut states = Vec::new();
    for (seed, blocks, rest) in
        [(1, 40, 0), (2, 10, 100), (3, 40, 7), (4, 3, 0), (5, 60, 4095), (6, 60, 1)]
    {
        let mut bytes = noise(seed, blocks * BLOCK + rest);
        // A part stays zeros, so that it must be told from what was there before.
        let middle = bytes.len() / 2;
        bytes[middle..].fill(0);
        lab.write("disk.img", &bytes);
        lab.done(&["snapshot", "disk.img"]);
        states.push(bytes);
    }
    for kept in [&[1, 3, 5, 6][..], &[1, 5, 6], &[1, 6]] {
        for number in 1..=6 {
            if !kept.contains(&number) && lab.numbers("disk").contains(&(number as u64)) {
                lab.done(&["label", &format!("disk@{number}"), "--remove"]);
            }
        }
        for number in kept {
            lab.done(&["label", &format!("disk@{number}"), &format!("keep-{number}")]);
        }
        pruned(&lab, &["--keep-label", "keep-*", "--compact"]);
        assert_eq!(lab.deltas("disk").len(), kept.len());
        lab.holds("disk", &of(&states, kept));
    }
}

/// A life in which everything happens, in an order that nobody thought of.
struct Life {
    lab: Lab,
    random: Random,
    image: Vec<u8>,
    known: Vec<(u64, Vec<u8>)>,
}

impl Life {
    fn change(&mut self) {
        let blocks = 1 + self.random.below(60) as usize;
        if self.random.below(3) == 0 {
            let rest = [0, 1, 2048][self.random.below(3) as usize];
            self.image.resize(blocks * BLOCK + rest, 0);
        }
        for _ in 0..self.random.below(4) {
            let at = self.random.below(self.image.len() as u64) as usize;
            let length =
                (1 + self.random.below(5 * BLOCK as u64) as usize).min(self.image.len() - at);
            let bytes = match self.random.below(3) {
                0 => vec![0; length],
                _ => noise(self.random.next(), length),
            };
            self.image[at..at + length].copy_from_slice(&bytes);
        }
        self.lab.write("disk.img", &self.image);
    }

    fn any(&mut self) -> u64 {
        self.known[self.random.below(self.known.len() as u64) as usize].0
    }

    fn snapshot(&mut self) {
        self.change();
        let parent = format!("@{}", self.any());
        let more: &[&str] = match self.random.below(6) {
            0 => &["--full"],
            1 => &["--differential"],
            2 | 3 => &["--parent", &parent],
            _ => &[],
        };
        // The base of the chain may be dropped: then there is nothing to differ from.
        let run = self.lab.run(&[&["snapshot", "disk.img", "--json"], more].concat());
        if more != ["--differential"] || run.code == Some(0) {
            let taken = run.done().json();
            self.known.push((integer(&taken, "number"), self.image.clone()));
        }
    }

    fn step(&mut self) -> String {
        let number = self.any();
        let reference = format!("disk@{number}");
        let compact: &[&str] = if self.random.below(2) == 0 { &["--compact"] } else { &[] };
        match self.random.below(10) {
            0..5 => {
                self.snapshot();
                "snapshot".into()
            }
            5 if self.known.len() > 1 => {
                self.lab.done(&[&["delete", &reference], compact].concat());
                self.known.retain(|(n, _)| *n != number);
                format!("delete {reference}")
            }
            6 => {
                self.lab.done(&["flatten", &reference]);
                format!("flatten {reference}")
            }
            7 => {
                self.lab.done(&["rollback", "disk", "--to", &reference, "--no-save"]);
                self.image = self.known.iter().find(|(n, _)| *n == number).unwrap().1.clone();
                format!("rollback {reference}")
            }
            _ => {
                let last = (1 + self.random.below(4)).to_string();
                let rules = ["--keep-last", &last];
                let done = pruned(&self.lab, &[&rules[..], compact].concat());
                let numbers: Vec<u64> = kept(&done).iter().map(|(n, _)| *n).collect();
                self.known.retain(|(n, _)| numbers.contains(n));
                format!("prune {rules:?} {compact:?}")
            }
        }
    }
}

#[test]
fn whatever_is_done_to_an_image_each_snapshot_that_is_listed_is_what_it_was() {
    for seed in 0..3 {
        let lab = Lab::new();
        let (random, image) = (Random(20_261_121 + seed), noise(seed, 40 * BLOCK));
        lab.write("disk.img", &image);
        lab.done(&["snapshot", "disk.img"]);
        let known = vec![(1, image.clone())];
        let mut life = Life { lab, random, image, known };
        let mut steps = Vec::new();
        for _ in 0..40 {
            let step = life.step();
            steps.push(step);
            let numbers: Vec<u64> = life.known.iter().map(|(n, _)| *n).collect();
            assert_eq!(life.lab.numbers("disk"), numbers, "{seed}: {steps:?}");
            for (number, bytes) in &life.known {
                let run = life.lab.run(&["restore", &format!("disk@{number}"), "-o", "-", "-q"]);
                assert!(run.done().out == *bytes, "{seed}: disk@{number}: {steps:?}");
            }
        }
        let known: Vec<(u64, &[u8])> = life.known.iter().map(|(n, b)| (*n, &b[..])).collect();
        life.lab.holds("disk", &known);
    }
}
