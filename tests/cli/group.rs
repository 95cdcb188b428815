//! Consistency groups: what takes all of one, what one alone, and what is said when one is missing

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::support::{DAMAGE, FAILED, KIB, Lab, change, disk, integer, same, string};
use serde_json::{Value, json};

/// Images `a` and `b` with `count` snapshots of both at once; and `c` with one of its own. Gives the states of
/// `a` and `b`.
fn lab(count: u64) -> (Lab, Vec<[Vec<u8>; 2]>) {
    let lab = Lab::new();
    let mut both = [disk(1, 128 * KIB), disk(2, 256 * KIB)];
    let mut states = Vec::new();
    for round in 1..=count {
        both.iter_mut().for_each(|bytes| drop(change(bytes, round, 2)));
        lab.write("a.img", &both[0]);
        lab.write("b.img", &both[1]);
        lab.done(&["snapshot", "--group", "nightly", "a.img", "b.img"]);
        states.push(both.clone());
    }
    lab.write("c.img", &disk(3, 64 * KIB));
    lab.done(&["snapshot", "c.img"]);
    (lab, states)
}

/// The numbers of `a` and of `b`.
fn numbers(lab: &Lab) -> [Vec<u64>; 2] {
    [lab.numbers("a"), lab.numbers("b")]
}

fn objects(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn refs(objects: &[Value]) -> Vec<&str> {
    objects.iter().map(|object| string(object, "ref")).collect()
}

#[test]
fn list_and_show_tell_what_belongs_together_and_what_is_missing() {
    let (lab, _) = lab(2);
    lab.done(&["delete", "b@1", "--alone"]);
    let list = lab.done(&["list", "a"]);
    assert!(list.contains("(group nightly, incomplete)\n"), "{list}");
    assert!(list.contains("(group nightly) (head)"), "{list}");
    assert!(!lab.done(&["list", "c"]).contains("group"));
    for (reference, said) in [
        ("a@1", Some("group      nightly: a@1, b (incomplete: b is missing)\n")),
        ("a@2", Some("group      nightly: a@2, b@2\n")),
        ("b@2", Some("group      nightly: a@2, b@2\n")),
        ("c@1", None),
    ] {
        let text = lab.done(&["show", reference]);
        match said {
            Some(said) => assert!(text.contains(said), "{text}"),
            None => assert!(!text.contains("\n  group "), "{text}"),
        }
    }
    let whole = lab.json(&["show", "a@2"]);
    assert_eq!(whole["incomplete"], false);
    let group = &whole["group"];
    assert_eq!((&group["name"], &group["apart"]), (&json!("nightly"), &json!(false)));
    let members = group["members"].as_array().unwrap();
    assert_eq!(refs(members), ["a@2", "b@2"]);
    assert_eq!(members[0]["id"], whole["id"]);
    let part = lab.json(&["list", "a"]);
    assert_eq!(part[0]["incomplete"], true);
    let missing = &part[0]["group"]["members"][1];
    assert_eq!((&missing["name"], &missing["number"]), (&json!("b"), &Value::Null));
    assert_eq!(part[1]["group"], *group);
    assert_eq!(lab.json(&["show", "c@1"])["group"], Value::Null);
    // Gone with its image.
    lab.done(&["remove", "b", "--yes"]);
    assert!(lab.done(&["show", "a@2"]).contains("b (incomplete: the image b was removed)"));
}

#[test]
fn delete_and_protect_take_all_of_a_group_or_one_alone() {
    let all = [vec![1, 2, 3], vec![1, 2, 3]];
    for (args, want) in [
        (&["delete", "a@2"][..], [vec![1, 3], vec![1, 3]]),
        (&["delete", "b@2"], [vec![1, 3], vec![1, 3]]),
        (&["delete", "a@latest", "--compact"], [vec![1, 2], vec![1, 2]]),
        (&["delete", "a@2", "--alone"], [vec![1, 3], vec![1, 2, 3]]),
        (&["delete", "c@1"], all.clone()),
    ] {
        let (lab, states) = lab(3);
        assert_eq!(numbers(&lab), all);
        lab.done(args);
        assert_eq!(numbers(&lab), want, "{args:?}");
        for (name, image) in ["a", "b"].into_iter().zip(0..) {
            let kept: Vec<(u64, &[u8])> = want[image]
                .iter()
                .map(|number| (*number, &states[*number as usize - 1][image][..]))
                .collect();
            lab.holds(name, &kept);
        }
    }
    let (lab, _) = lab(2);
    let is_protected = |reference: &str| lab.json(&["show", reference])["protected"] == true;
    // The named one goes last, so that the same command completes what was interrupted.
    for (args, said) in [
        (&["protect", "a@1"][..], "b@1 is protected\na@1 is protected\n"),
        (&["protect", "b@1", "--off", "--alone"], "b@1 is no longer protected\n"),
        (&["protect", "a@1"], "b@1 is protected\na@1 is protected\n"),
    ] {
        assert_eq!(lab.done(args), said);
    }
    for args in [["delete", "a@1"], ["delete", "b@1"]] {
        let line = lab.fails(FAILED, &args);
        assert!(line.contains("nothing of the group was deleted: a@1 is protected"), "{line}");
    }
    // One that may not go keeps the other one.
    lab.done(&["protect", "a@1", "--off", "--alone"]);
    let line = lab.fails(FAILED, &["delete", "a@1"]);
    assert!(line.contains("b@1 is protected"), "{line}");
    assert_eq!(numbers(&lab), [[1, 2], [1, 2]]);
    let off = objects(&lab.done(&["--json", "protect", "a@1", "--off"]));
    assert_eq!(refs(&off), ["b@1", "a@1"]);
    assert!(!is_protected("a@1") && !is_protected("b@1"));
    let deleted = objects(&lab.done(&["--json", "delete", "a@1"]));
    assert_eq!(refs(&deleted), ["b@1", "a@1"]);
    assert!(deleted.iter().all(|one| one["freed_bytes"].is_u64()));
}

#[test]
fn what_was_left_half_deleted_is_completed() {
    let (lab, _) = lab(2);
    // As after a kill between the two commits.
    lab.done(&["delete", "b@1", "--alone"]);
    assert_eq!(lab.done(&["delete", "a@1"]).lines().count(), 1);
    assert_eq!(numbers(&lab), [[2], [2]]);
}

#[test]
fn what_keeps_one_keeps_all() {
    let kept: &[(&[&[&str]], &str)] = &[
        (&[], "drop"),
        (&[&["protect", "b@1", "--alone"]], "kept with b@1"),
        (&[&["label", "b@1", "keep"]], "kept with b@1"),
        // Refused, so it is still there.
        (&[&["protect", "b@1", "--alone"], &["delete", "b@1", "--alone"]], "kept with b@1"),
        // By the rules, as the newest that is left.
        (&[&["delete", "b@2", "--alone"], &["delete", "b@3", "--alone"]], "kept with b@1"),
        (&[&["label", "b@1", "keep"], &["delete", "b@1", "--alone"]], "drop"),
    ];
    for (commands, said) in kept {
        let (lab, _) = lab(3);
        for command in *commands {
            lab.run(command);
        }
        let plan = lab.json(&["prune", "a", "--keep-last", "1", "--dry-run"]);
        let first = &plan[0]["snapshots"][0];
        let reasons = first["reasons"].as_array().unwrap();
        match *said {
            "drop" => assert_eq!(first["kept"], false, "{commands:?}"),
            said => assert_eq!(reasons, &[json!(said)], "{commands:?}"),
        }
        lab.done(&["prune", "a", "--keep-last", "1"]);
        let want: &[u64] = if *said == "drop" { &[3] } else { &[1, 3] };
        assert_eq!(lab.numbers("a"), want, "{commands:?}");
    }
}

#[test]
fn the_rules_of_each_image_count_for_its_group() {
    let (lab, _) = lab(3);
    lab.configure("\n[prune]\nkeep_last = 1\n\n[images.b.prune]\nkeep_last = 2\n");
    lab.done(&["prune", "a"]);
    assert_eq!(numbers(&lab), [vec![2, 3], vec![1, 2, 3]]);
    lab.done(&["prune", "b"]);
    assert_eq!(numbers(&lab), [[2, 3], [2, 3]]);
    // Rules that are given are those of all.
    lab.done(&["prune", "a", "--keep-last", "1"]);
    assert_eq!(numbers(&lab), [vec![3], vec![2, 3]]);
}

#[test]
fn what_cannot_be_read_may_be_protected() {
    let (lab, _) = lab(2);
    lab.write(&lab.manifest("b"), b"{");
    let line = lab.fails(DAMAGE, &["delete", "a@1"]);
    assert!(line.contains("\"b\", which is of the same group, cannot be read"), "{line}");
    assert!(line.contains("--alone"), "{line}");
    let plan = lab.json(&["prune", "a", "--keep-last", "1", "--dry-run"]);
    let reasons = &plan[0]["snapshots"][0]["reasons"];
    assert_eq!(*reasons, json!(["kept with b, which cannot be read"]));
    assert!(lab.done(&["show", "a@1"]).contains("(incomplete: b cannot be read)"));
    lab.done(&["delete", "a@1", "--alone"]);
    assert_eq!(lab.numbers("a"), [2]);
}

#[test]
fn remove_takes_one_image_and_says_what_is_incomplete() {
    let (lab, states) = lab(2);
    let gone = lab.json(&["remove", "b", "--yes"]);
    let groups = gone["incomplete_groups"].as_array().unwrap();
    assert_eq!(groups.len(), 2);
    assert_eq!(groups[0]["members"][0]["ref"], "a@1");
    assert_eq!(groups[0]["members"][1]["number"], Value::Null);
    lab.restores("a@2", &states[1][0]);
    // Nothing of them is left elsewhere.
    assert!(!lab.done(&["remove", "a", "--yes"]).contains("incomplete"));
    lab.write("d.img", &disk(4, 64 * KIB));
    lab.done(&["snapshot", "--group", "g", "c.img", "d.img"]);
    let said = lab.done(&["remove", "d", "--yes"]);
    assert!(said.ends_with("\n  now incomplete: group g (c@2 left)\n"), "{said}");
}

#[test]
fn a_folder_gets_all_of_a_group() {
    let (lab, states) = lab(2);
    std::fs::create_dir(lab.path("there")).unwrap();
    for (reference, out, more, files) in [
        ("a@1", "there", &[][..], &["a.img", "b.img"][..]),
        ("b@1", "new/", &[], &["a.img", "b.img"]),
        ("b@1", "q/", &["--format", "qcow2"], &["a.qcow2", "b.qcow2"]),
        ("c@1", "alone/", &[], &["c.img"]),
    ] {
        let args = [&["--json", "restore", reference, "-o", out][..], more].concat();
        let done = objects(&lab.done(&args));
        let outputs: Vec<&str> = done.iter().map(|one| string(one, "output")).collect();
        let want: Vec<String> =
            files.iter().map(|file| format!("{}/{file}", out.trim_end_matches('/'))).collect();
        assert_eq!(outputs, want);
        assert!(done.iter().all(|one| integer(one, "restored_bytes") > 0));
        let mut found: Vec<String> = std::fs::read_dir(lab.path(out))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        found.sort();
        assert_eq!(found, files, "{reference} {out}");
    }
    for folder in ["there", "new"] {
        same(&lab.read(&format!("{folder}/a.img")), &states[0][0], folder);
        same(&lab.read(&format!("{folder}/b.img")), &states[0][1], folder);
    }
    // One that is there is in the way of all.
    lab.remove("there/a.img");
    let line = lab.fails(FAILED, &["restore", "a@2", "-o", "there"]);
    assert!(line.contains("there/b.img exists"), "{line}");
    lab.done(&["restore", "a@2", "-o", "there", "--force"]);
    same(&lab.read("there/b.img"), &states[1][1], "replaced");
    for more in [&["--range", "0+4K"][..], &["--update"]] {
        let line = lab.fails(FAILED, &[&["restore", "a@2", "-o", "there"][..], more].concat());
        assert!(line.contains(&format!("leave {} out", more[0])), "{line}");
    }
    lab.fails(FAILED, &["restore", "a@2", "-o", "repo/"]);
    lab.fails(FAILED, &["restore", "a@2", "-o", "a.img/"]);
    lab.fails(FAILED, &["restore", "a@2", "-o", "missing/deep/"]);
}

#[test]
fn a_file_gets_one_and_it_is_said_what_the_others_are() {
    let (lab, states) = lab(1);
    let note = "a@1 was taken with b@1: \"imgsnap restore a@1 -o DIR/\" restores all of them";
    let run = lab.run(&["restore", "a@1", "-o", "one.img"]).done();
    assert!(run.err.contains(note), "{}", run.err);
    same(&lab.read("one.img"), &states[0][0], "one.img");
    for args in [
        &["restore", "a@1", "-o", "part.img", "--range", "0+4K"][..],
        &["restore", "a@1", "-o", "one.img", "--update"],
        &["restore", "c@1", "-o", "c1.img"],
    ] {
        let run = lab.run(args).done();
        assert!(!run.err.contains("was taken with"), "{args:?}: {}", run.err);
    }
    lab.done(&["delete", "b@1", "--alone"]);
    let run = lab.run(&["restore", "a@1", "-o", "left/"]).done();
    assert!(run.err.contains("the group is incomplete: b is missing"), "{}", run.err);
    same(&lab.read("left/a.img"), &states[0][0], "left");
}

#[test]
fn a_rollback_takes_all_of_a_group_or_one_alone_and_is_refused_while_one_is_missing() {
    let (lab, states) = lab(2);
    let is = |image: &str| std::fs::read(lab.path(image)).unwrap();
    lab.done(&["rollback", "b", "--to", "@1", "--alone"]);
    assert!(is("a.img") == states[1][0] && is("b.img") == states[0][1]);
    // What is back already is written to no more; what both were before is saved.
    let text = lab.done(&["rollback", "a", "--to", "@1"]);
    assert!(text.contains("a.img to a@1") && text.contains("b.img to b@1"), "{text}");
    assert!(is("a.img") == states[0][0] && is("b.img") == states[0][1]);
    // A dry run is one of all.
    let tried: Vec<Value> =
        objects(&lab.done(&["rollback", "b", "--to", "@2", "--dry-run", "--json"]));
    assert_eq!(refs(&tried), ["b@2", "a@2"]);
    lab.done(&["delete", "b@2", "--alone"]);
    let line = lab.fails(FAILED, &["rollback", "a", "--to", "@2"]);
    assert!(line.contains("\"b\" has no snapshot of it; ") && line.contains("--alone"), "{line}");
    assert!(is("a.img") == states[0][0], "it was written to");
    lab.done(&["rollback", "a", "--to", "@2", "--alone"]);
    assert!(is("a.img") == states[1][0] && is("b.img") == states[0][1]);
}
