//! `imgsnap snapshot --base-of` and `--find-base`: chains that begin from another image's snapshot

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::support::{
    BLOCK, DAMAGE, FAILED, Lab, MIB, USAGE, change, integer, noise, same, string,
};
use serde_json::{Value, json};

/// Three snapshots of `template`, and `clone` with two: the first has other bytes in four blocks of `template@2`.
struct Cloned {
    lab: Lab,
    template: Vec<Vec<u8>>,
    clone: Vec<Vec<u8>>,
}

impl Cloned {
    fn new() -> Self {
        let lab = Lab::new();
        let mut bytes = noise(1, MIB);
        let mut template = Vec::new();
        for seed in 0..3 {
            change(&mut bytes, seed + 1, 5);
            lab.write("template.img", &bytes);
            lab.done(&["snapshot", "template.img"]);
            template.push(bytes.clone());
        }
        let mut bytes = template[1].clone();
        let mut clone = Vec::new();
        for args in [&["--base-of", "template@2"][..], &[]] {
            change(&mut bytes, 20 + args.len() as u64, 4);
            lab.write("clone.img", &bytes);
            lab.done(&[&["snapshot", "clone.img"], args].concat());
            clone.push(bytes.clone());
        }
        Self { lab, template, clone }
    }

    /// Both restore to what they were.
    fn holds(&self) {
        self.holds_template();
        self.holds_image("clone", &self.clone);
    }

    fn holds_template(&self) {
        self.holds_image("template", &self.template);
    }

    fn holds_image(&self, name: &str, states: &[Vec<u8>]) {
        let list = self.lab.json(&["list", name]);
        let listed = list.as_array().unwrap().iter().map(|s| integer(s, "number"));
        let listed: Vec<_> = listed.map(|at| (at, &states[at as usize - 1][..])).collect();
        self.lab.holds(name, &listed);
    }

    /// Which images need a snapshot of the template.
    fn needed_by(&self, number: u64) -> Vec<String> {
        let text = self.lab.done(&["show", &format!("template@{number}")]);
        let line = text.lines().find_map(|line| line.trim().strip_prefix("needed by"));
        let names = line.unwrap().trim();
        if names == "no other image" { Vec::new() } else { vec![names.to_owned()] }
    }
}

#[test]
fn a_clone_costs_a_delta() {
    let cloned = Cloned::new();
    cloned.holds();
    let lab = &cloned.lab;
    let list = lab.json(&["list", "clone"]);
    assert_eq!((string(&list[0], "kind"), &list[0]["parent"]), ("delta", &Value::Null));
    assert_eq!((integer(&list[0], "number"), integer(&list[0], "changed_blocks")), (1, 4));
    assert_eq!(string(&list[0]["base_of"], "ref"), "template@2");
    assert_eq!(list[1]["base_of"], Value::Null);
    assert!(integer(&list[0], "stored_bytes") < 6 * BLOCK as u64, "{list}");
    let text = lab.done(&["list"]);
    assert!(text.contains("  template@2  ") && text.contains("(needed by clone)"), "{text}");
    let text = lab.done(&["show", "clone@1"]);
    assert!(text.contains("template@2, of another image"), "{text}");
    assert_eq!(cloned.needed_by(2), ["clone"]);
    assert!(cloned.needed_by(1).is_empty());
    let text = lab.done(&["stats", "clone"]);
    assert!(text.contains("(depends on template@2)"), "{text}");
}

#[test]
fn the_template_keeps_what_is_needed() {
    let cloned = Cloned::new();
    let lab = &cloned.lab;
    let line = lab.fails(FAILED, &["delete", "template@2"]);
    assert!(line.contains("template@2 is needed by \"clone\""), "{line}");
    assert!(line.contains("\"imgsnap flatten clone@NUMBER\""), "{line}");
    assert!(lab.fails(FAILED, &["remove", "template", "--yes"]).contains("is needed by"));
    let pruned = lab.json(&["prune", "template", "--keep-last", "1", "--compact"]);
    assert!(pruned.to_string().contains("needed by \\\"clone\\\""), "{pruned}");
    let list = lab.json(&["list", "template"]);
    let numbers: Vec<u64> = list.as_array().unwrap().iter().map(|s| integer(s, "number")).collect();
    assert_eq!(numbers, [2, 3]);
    cloned.holds();
    // Who does not need it any more says so at once.
    lab.done(&["flatten", "clone@1"]);
    assert!(cloned.needed_by(2).is_empty());
    assert_eq!(lab.json(&["list", "clone"])[0]["base_of"], Value::Null);
    cloned.holds();
    lab.done(&["remove", "template", "--yes"]);
    lab.holds("clone", &[(1, &cloned.clone[0]), (2, &cloned.clone[1])]);
}

#[test]
fn the_last_snapshot_that_needs_it_lets_it_go() {
    for args in [
        &["delete", "clone@2"][..],
        &["remove", "clone", "--yes"],
        &["flatten", "clone@2"],
        &["prune", "clone", "--keep-last", "1", "--compact"],
    ] {
        let cloned = Cloned::new();
        if args[0] == "delete" || args[0] == "flatten" {
            cloned.lab.done(&["delete", "clone@1", "--compact"]);
            assert_eq!(cloned.needed_by(2), ["clone"], "{args:?}");
        }
        cloned.lab.done(args);
        let needed = if args[0] == "prune" { &["clone"][..] } else { &[] };
        assert_eq!(cloned.needed_by(2), needed, "{args:?}");
        cloned.holds_template();
    }
}

#[test]
fn every_verb_reads_on_in_the_other_image() {
    let cloned = Cloned::new();
    let (lab, states) = (&cloned.lab, &cloned.clone);
    lab.done(&["export", "clone@2", "-o", "full.delta"]);
    lab.done(&["export", "clone@2", "--since", "@1", "-o", "small.delta"]);
    lab.done(&["apply", "full.delta", "-o", "applied.img"]);
    same(&lab.read("applied.img"), &states[1], "what was exported");
    lab.done(&["delete", "clone@2", "--compact"]);
    lab.done(&["import", "small.delta"]);
    lab.holds("clone", &[(1, &states[0]), (2, &states[1])]);
    let diff = lab.json(&["diff", "template@2", "clone@1"]);
    assert_eq!(integer(&diff, "changed_blocks"), 4, "{diff}");
    lab.done(&["rollback", "clone", "--to", "@1"]);
    same(&lab.read("clone.img"), &states[0], "rolled back");
    let verified = lab.json(&["verify", "clone"]);
    // Its own two (three with the one that the rollback saved, if it did), and the two below.
    assert!(integer(&verified, "snapshots") >= 4, "{verified}");
    // A file that is taken in elsewhere needs nothing there.
    let other = Lab::new();
    other.write("full.delta", &lab.read("full.delta"));
    other.done(&["import", "full.delta", "--name", "clone"]);
    other.holds("clone", &[(2, &states[1])]);
}

#[test]
fn a_chain_begins_once() {
    let cloned = Cloned::new();
    let lab = &cloned.lab;
    for (args, line) in [
        (&["clone.img", "--base-of", "template@3"][..], "already has snapshots, and thus a base"),
        (&["clone.img", "--base-of", "clone@1", "--full"], "is a snapshot of \"clone\" itself"),
        (&["clone.img", "--base-of", "template@9", "--full"], "no snapshot template@9"),
        (&["clone.img", "--base-of", "nobody@1", "--full"], "no image \"nobody\""),
    ] {
        let said = lab.fails(FAILED, &[&["snapshot"], args].concat());
        assert!(said.contains(line), "{args:?}: {said}");
    }
    for other in [&["--base-image", "template.img"][..], &["--differential"], &["--find-base"]] {
        let args = [&["snapshot", "clone.img", "--base-of", "template@3"], other].concat();
        assert_eq!(lab.run(&args).code, Some(USAGE), "{other:?}");
    }
    let tried =
        lab.json(&["snapshot", "clone.img", "--full", "--base-of", "template@3", "--dry-run"]);
    assert_eq!(string(&tried["base_of"], "ref"), "template@3");
    assert!(cloned.needed_by(3).is_empty());
    let text = lab.done(&["snapshot", "clone.img", "--full", "--base-of", "template@3"]);
    assert!(text.starts_with("clone@3  changes since template@3\n"), "{text}");
    assert_eq!(cloned.needed_by(3), ["clone"]);
}

#[test]
fn many_clones_are_taken_at_once() {
    let cloned = Cloned::new();
    let lab = &cloned.lab;
    let mut args = vec!["snapshot", "--base-of", "template@latest"];
    let names: Vec<String> = (1..=6).map(|number| format!("vm{number}.img")).collect();
    for (seed, name) in (100..).zip(&names) {
        let mut bytes = cloned.template[2].clone();
        change(&mut bytes, seed, 3);
        lab.write(name, &bytes);
        args.push(name);
    }
    lab.done(&args);
    for name in &names {
        let image = name.strip_suffix(".img").unwrap();
        assert_eq!(integer(&lab.json(&["list", image])[0], "changed_blocks"), 3);
        lab.holds(image, &[(1, &lab.read(name))]);
    }
    assert_eq!(cloned.needed_by(3).len(), 1);
}

/// An increment of 2 % on a template costs what it costs on a snapshot of its own.
#[test]
fn what_differs_is_what_it_costs() {
    let lab = Lab::new();
    let template = noise(7, 4 * MIB);
    let mut clone = template.clone();
    change(&mut clone, 8, 20);
    lab.write("template.img", &template);
    lab.done(&["snapshot", "template.img"]);
    lab.write("clone.img", &clone);
    let based = lab.json(&["snapshot", "clone.img", "--base-of", "template@1"]);
    lab.write("template.img", &clone);
    let plain = lab.json(&["snapshot", "template.img"]);
    assert_eq!(integer(&based, "changed_blocks"), 20);
    let (based, plain) = (integer(&based, "stored_bytes"), integer(&plain, "stored_bytes"));
    assert!(based * 10 <= plain * 11, "{based} {plain}");
}

#[test]
fn the_template_is_found() {
    let cloned = Cloned::new();
    let lab = &cloned.lab;
    lab.write("noise.img", &noise(77, MIB));
    let text = lab.done(&["snapshot", "noise.img", "--find-base"]);
    assert!(text.starts_with("noise@1  a base: no similar image was found\n"), "{text}");
    let mut bytes = cloned.template[2].clone();
    change(&mut bytes, 99, 30);
    lab.write("found.img", &bytes);
    let text = lab.done(&["snapshot", "found.img", "--find-base"]);
    assert!(text.starts_with("found@1  changes since template@3\n"), "{text}");
    lab.holds("found", &[(1, &bytes)]);
    // From then on it is one of any other.
    change(&mut bytes, 98, 2);
    lab.write("found.img", &bytes);
    let text = lab.done(&["snapshot", "found.img", "--find-base"]);
    assert!(text.starts_with("found@2  changes since found@1\n"), "{text}");
    // Nothing to compare.
    lab.write("empty.img", &vec![0; MIB]);
    let text = lab.done(&["snapshot", "empty.img", "--find-base"]);
    assert!(text.starts_with("empty@1  a base"), "{text}");
}

/// Of those that have as much the one whose chain is the shortest, whatever they are called.
#[test]
fn the_template_is_found_rather_than_its_clones() {
    let lab = Lab::new();
    let mut bytes = noise(5, MIB);
    lab.write("template.img", &bytes);
    lab.done(&["snapshot", "template.img"]);
    for name in ["a", "b"] {
        lab.write(&format!("{name}.img"), &bytes);
        let text = lab.done(&["snapshot", &format!("{name}.img"), "--find-base"]);
        let first = format!("{name}@1  changes since template@1\n");
        assert!(text.starts_with(&first), "{text}");
        change(&mut bytes, 3, 1);
    }
}

/// Nothing would pin what a file that is taken in begins from.
#[test]
fn a_file_that_begins_from_another_image_is_not_taken_in() {
    let cloned = Cloned::new();
    let lab = &cloned.lab;
    let file = lab.json(&["show", "clone@1"])["file"].as_str().unwrap().to_owned();
    std::fs::copy(&file, lab.path("raw.delta")).unwrap();
    lab.done(&["remove", "clone", "--yes"]);
    let line = lab.fails(FAILED, &["import", "raw.delta", "--name", "clone"]);
    assert!(line.contains("it starts from template@2, a snapshot of another image"), "{line}");
    assert!(line.contains("export") && line.contains("--since"), "{line}");
}

/// An old copy of its folder.
#[test]
fn a_template_that_is_turned_back_keeps_what_is_needed() {
    let lab = Lab::new();
    let mut bytes = noise(6, MIB);
    lab.write("template.img", &bytes);
    lab.done(&["snapshot", "template.img"]);
    let folder = lab.path("repo").join("template");
    let manifests = || -> Vec<_> {
        let entries = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        let is_manifest = |path: &std::path::PathBuf| path.to_str().unwrap().contains("/manifest.");
        entries.filter(is_manifest).collect()
    };
    let old: Vec<_> =
        manifests().into_iter().map(|path| (std::fs::read(&path).unwrap(), path)).collect();
    change(&mut bytes, 7, 3);
    lab.write("clone.img", &bytes);
    lab.done(&["snapshot", "clone.img", "--base-of", "template@1"]);
    manifests().into_iter().for_each(|path| std::fs::remove_file(path).unwrap());
    old.into_iter().for_each(|(bytes, path)| std::fs::write(path, bytes).unwrap());
    let run = lab.run(&["verify"]);
    assert_eq!(run.code, Some(DAMAGE), "{}", run.err);
    assert!(run.text().contains("\"imgsnap repair template\""), "{}", run.text());
    let run = lab.run(&["delete", "template@1"]);
    assert_eq!(run.code, Some(FAILED), "{}", run.err);
    assert!(run.err.contains("is in an older state"), "{}", run.err);
    assert!(run.err.contains("template@1 is needed by \"clone\""), "{}", run.err);
    lab.holds("clone", &[(1, &bytes)]);
}

#[test]
fn a_damaged_template_is_damage_of_the_clone() {
    let cloned = Cloned::new();
    let lab = &cloned.lab;
    let file = lab.json(&["show", "template@1"])["file"].as_str().unwrap().to_owned();
    std::fs::remove_file(&file).unwrap();
    let line = lab.fails(DAMAGE, &["restore", "clone@2", "-o", "out.img"]);
    assert!(
        line.contains("clone@1 depends on template@2") && line.contains("template@1"),
        "{line}"
    );
    let run = lab.run(&["verify", "clone", "--json"]);
    assert_eq!(run.code, Some(DAMAGE), "{}", run.err);
    let damage = &run.json()["damaged"][0];
    assert_eq!(string(damage, "snapshot"), "template@1");
    assert!(damage["affects"].as_array().unwrap().contains(&json!("clone")), "{damage}");
}
