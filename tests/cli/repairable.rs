//! Every state that a legal history can reach can be repaired: random histories of every verb, from which any
//! manifests are lost, and the configuration with them.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::support::{
    DAMAGE, FAILED, KIB, Lab, Random, ReaderAtWork, disk, integer, noise, spawn, string,
};
use serde_json::json;
use std::collections::{BTreeMap, HashSet};

const HISTORIES: u64 = 25;
const STEPS: u64 = 14;
const BLOCKS: u64 = 24;
const LABELS: [&str; 3] = ["gold", "blue", "red"];

/// A history of one image, and what each of its snapshots was.
struct History {
    lab: Lab,
    random: Random,
    bytes: Vec<u8>,
    /// By id: numbers may come again elsewhere.
    states: BTreeMap<String, Vec<u8>>,
    reader: Option<ReaderAtWork>,
    log: Vec<String>,
}

impl History {
    fn new(seed: u64) -> Self {
        let lab = Lab::new();
        let bytes = disk(seed, BLOCKS as usize * 4 * KIB);
        lab.write("disk.img", &bytes);
        lab.done(&["snapshot", "disk.img"]);
        let mut history = Self {
            lab,
            random: Random(seed),
            bytes,
            states: BTreeMap::new(),
            reader: None,
            log: vec![format!("seed {seed}")],
        };
        history.learn();
        history
    }

    /// Notes what the newest snapshots are.
    fn learn(&mut self) {
        for snapshot in self.listed() {
            let id = string(&snapshot, "id").to_owned();
            self.states.entry(id).or_insert_with(|| self.bytes.clone());
        }
    }

    fn listed(&self) -> Vec<serde_json::Value> {
        self.lab.json(&["list", "disk"]).as_array().unwrap().clone()
    }

    fn any(&mut self) -> String {
        let numbers = self.lab.numbers("disk");
        let at = self.random.below(numbers.len() as u64) as usize;
        format!("disk@{}", numbers[at])
    }

    fn label(&mut self) -> &'static str {
        LABELS[self.random.below(3) as usize]
    }

    fn run(&mut self, args: &[&str]) -> bool {
        self.log.push(args.join(" "));
        let run = self.lab.run(args);
        // A label may be taken, the last snapshot may not be dropped: told, and nothing is done.
        assert!(matches!(run.code, Some(0 | FAILED)), "{:#?}: {}", self.log, run.err);
        run.code == Some(0)
    }

    fn snapshot(&mut self, more: &[&str]) {
        for _ in 0..1 + self.random.below(3) {
            let at = self.random.below(BLOCKS) as usize * 4 * KIB;
            let new = match self.random.below(4) {
                0 => vec![0; 4 * KIB],
                _ => noise(self.random.0, 4 * KIB),
            };
            self.bytes[at..][..4 * KIB].copy_from_slice(&new);
        }
        self.lab.write("disk.img", &self.bytes.clone());
        self.run(&[&["snapshot", "disk.img"], more].concat());
        self.learn();
    }

    fn step(&mut self) {
        // Who reads keeps files and manifests that nobody needs.
        if self.random.below(4) == 0 {
            self.reader =
                if self.reader.is_some() { None } else { Some(self.lab.reader_of("disk")) };
            self.log.push(format!("reader: {}", self.reader.is_some()));
        }
        let (one, label) = (self.any(), self.label());
        match self.random.below(13) {
            0..=2 => self.snapshot(&[]),
            3 => self.snapshot(&["--label", label]),
            4 => self.snapshot(&["--full"]),
            5 => self.snapshot(&["--differential"]),
            6 => drop(self.run(&["label", &one, label])),
            7 => drop(self.run(&["label", &one])),
            8 if self.lab.numbers("disk").len() > 2 => drop(self.run(&["delete", &one])),
            9 => drop(self.run(&["prune", "disk", "--keep-last", "3", "--compact"])),
            10 => drop(self.run(&["flatten", &one])),
            11 if self.run(&["rollback", "disk", "--to", &one]) => {
                self.learn();
                self.bytes = self.lab.read("disk.img");
            }
            12 if self.lab.numbers("disk").len() > 2 => {
                // It goes, and comes back.
                let line = self.run(&["export", &one, "-o", "one.delta", "--force"]);
                if line && self.run(&["delete", &one]) {
                    self.run(&["import", "one.delta"]);
                }
            }
            _ => {}
        }
    }

    /// Loses some manifests, at least one; gives whether the ruling one is among them.
    fn lose(&mut self) -> bool {
        let files = self.lab.stored("disk");
        let manifests: Vec<&String> = files.iter().filter(|f| f.starts_with("manifest.")).collect();
        let chosen = 1 + self.random.below((1 << manifests.len()) - 1);
        let mut is_lost = false;
        for (bit, file) in manifests.iter().enumerate().filter(|(bit, _)| chosen >> bit & 1 == 1) {
            let path = format!("repo/disk/{file}");
            // Some are gone, some are damaged.
            match self.random.below(3) {
                0 => self.lab.write(&path, b"damaged"),
                _ => self.lab.remove(&path),
            }
            is_lost |= bit + 1 == manifests.len();
            self.log.push(format!("lost: {file}"));
        }
        if self.random.below(3) == 0 {
            let object = self.lab.config_object();
            self.lab.write(&object, b"");
            self.log.push(format!("lost: {object}"));
        }
        is_lost
    }

    fn check(&mut self) {
        let listed = self.listed();
        let before: HashSet<String> = listed.iter().map(|s| string(s, "id").to_owned()).collect();
        let is_lost = self.lose();
        let run = self.lab.run(&["repair"]);
        let text = format!("{:#?}: {}{}", self.log, run.text(), run.err);
        // What the last manifest that is left names may be gone since: that is told.
        assert!(matches!(run.code, Some(0 | DAMAGE)), "{text}");
        assert!(is_lost || run.code == Some(0), "{text}");
        let mut after = HashSet::new();
        let mut labels = HashSet::new();
        for snapshot in self.listed() {
            let (id, number) = (string(&snapshot, "id"), integer(&snapshot, "number"));
            let out = format!("{number}.out");
            let restored = self.lab.run(&["restore", &format!("disk@{number}"), "-o", &out]);
            if restored.code == Some(0) {
                let want = self.states.get(id).unwrap_or_else(|| panic!("who is {id}: {text}"));
                assert!(&self.lab.read(&out) == want, "disk@{number}: {text}");
                self.lab.remove(&out);
                after.insert(id.to_owned());
            } else {
                assert!(!before.contains(id), "disk@{number} is lost: {}: {text}", restored.err);
            }
            if let Some(label) = snapshot["label"].as_str() {
                assert!(labels.insert(label.to_owned()), "{label} occurs twice: {text}");
            }
        }
        let lost: Vec<&serde_json::Value> =
            listed.iter().filter(|s| !after.contains(string(s, "id"))).collect();
        assert!(before.is_subset(&after), "lost: {lost:#?} {text}");
        // And it goes on.
        let again = self.lab.run(&["repair"]);
        assert!(matches!(again.code, Some(0 | DAMAGE)), "{text}");
        self.lab.done(&["relink", "disk", "disk.img"]);
        self.bytes[0] ^= 1;
        self.snapshot(&[]);
        let newest = format!("disk@{}", self.lab.numbers("disk").last().unwrap());
        self.lab.restores(&newest, &self.bytes);
    }
}

#[test]
fn whatever_manifests_are_lost_of_whatever_history_all_content_restores() {
    let only: Option<u64> = std::env::var("IMGSNAP_SEED").ok().map(|seed| seed.parse().unwrap());
    let count = std::env::var("IMGSNAP_HISTORIES").map_or(HISTORIES, |n| n.parse().unwrap());
    for seed in only.map_or(1..=count, |seed| seed..=seed) {
        let mut history = History::new(seed);
        for _ in 0..2 {
            for _ in 0..history.random.below(STEPS) {
                history.step();
            }
            history.check();
        }
    }
}

#[test]
fn a_label_that_moved_stands_once_after_a_repair() {
    let (lab, states) = Lab::with_snapshots(2);
    lab.done(&["snapshot", "disk.img", "--full", "--label", "gold"]);
    lab.done(&["label", "disk@3", "--remove"]);
    lab.done(&["snapshot", "disk.img", "--full", "--label", "gold"]);
    lab.lose_manifests("disk");
    let text = lab.done(&["repair", "disk"]);
    assert!(text.contains("disk@3 lost its label: a later snapshot has \"gold\""), "{text}");
    lab.restores("disk@gold", &states[1]);
    assert_eq!(lab.json(&["show", "disk@gold"])["number"], 4);
    let copies = [(1, &*states[0]), (2, &*states[1]), (3, &*states[1]), (4, &*states[1])];
    lab.holds("disk", &copies);
}

#[test]
fn a_lost_configuration_is_made_anew_from_the_delta_files() {
    let lab = Lab::bare();
    let options = ["--block-size", "64K", "--digest", "blake3", "--compression", "zstd:7"];
    let made = lab.json(&[&["init"], &options[..]].concat());
    let bytes = disk(1, 1024 * KIB);
    lab.write("disk.img", &bytes);
    lab.done(&["snapshot", "disk.img"]);
    let from_files = "rebuilt from the delta files (64K blocks, blake3, zstd:1)";
    let all = |lab: &Lab| {
        let entries = std::fs::read_dir(lab.path("repo")).unwrap().flatten();
        entries
            .filter(|e| e.path().is_file())
            .for_each(|e| std::fs::remove_file(e.path()).unwrap());
    };
    let objects = |lab: &Lab| {
        let entries = std::fs::read_dir(lab.path("repo")).unwrap().flatten();
        let objects = entries.filter(|e| e.file_name().to_str().unwrap().starts_with("config."));
        objects.for_each(|e| std::fs::remove_file(e.path()).unwrap());
    };
    // What of the configuration is lost, how, and what the repair has to go by. Numbers go on.
    type Lose<'a> = &'a dyn Fn(&Lab);
    let cases: [(Lose, &str, u64); 8] = [
        (&|lab| lab.write("repo/config.000001", b""), from_files, 2),
        (&|lab| lab.write("repo/config.000002", &[0; 180]), "rebuilt from configuration 1;", 3),
        (&|lab| lab.write("repo/config.000003", b"x\n"), "rebuilt from configuration 1;", 4),
        (
            &|lab| lab.write("repo/config.000099", b"imgsnap-config 1 0"),
            "from configuration 4;",
            100,
        ),
        (&|lab| objects(lab), from_files, 1),
        (&|lab| all(lab), from_files, 1),
        (
            &|lab| {
                all(lab);
                lab.write("repo/repository.toml", b"# cut off\n");
            },
            from_files,
            1,
        ),
        (
            &|lab| {
                let text = format!("version = 1\n{}", lab.configuration());
                lab.write("repo/repository.toml", text.as_bytes());
                lab.write("repo/config.000001", b"");
            },
            "rebuilt from repository.toml;",
            2,
        ),
    ];
    for (case, (lose, told, number)) in cases.into_iter().enumerate() {
        if case == 1 {
            // The first one can be read again, as a repair found it.
            lab.write("repo/config.000001", &lab.read("repo/config.000002"));
        }
        lose(&lab);
        for args in [&["list"][..], &["snapshot", "disk.img"], &["restore", "disk@1", "-o", "x"]] {
            let line = lab.fails(DAMAGE, args);
            assert!(line.contains("\"imgsnap repair\""), "{case}: {line}");
        }
        // No other repository is made in its place.
        let line = lab.fails(DAMAGE, &["init"]);
        assert!(line.contains("\"imgsnap repair\""), "{case}: {line}");
        let run = lab.run(&["repair"]).done();
        assert!(run.err.contains(told), "{case}: {}", run.err);
        assert_eq!(lab.config_object(), format!("repo/config.{number:06}"), "{case}");
        assert!(lab.read("repo/repository.toml").ends_with(b"\nversion = 2\n"), "{case}");
        assert_eq!(lab.run(&["repair"]).done().err, "");
        lab.restores("disk@1", &bytes);
        let config = lab.configuration();
        assert!(config.contains("block_size = 65536") && config.contains("blake3"), "{config}");
        assert_ne!(made["id"], json!(null));
    }
    lab.done(&["snapshot", "disk.img", "--full"]);
    // A marker that is missing comes back.
    lab.remove("repo/repository.toml");
    assert_eq!(lab.run(&["repair"]).done().err, "");
    assert!(lab.exists("repo/repository.toml"));
    // What somebody wrote there, and cannot be read, is for him to correct.
    lab.configure("[prune\n");
    let line = lab.fails(DAMAGE, &["repair"]);
    assert!(line.contains("correct it with \"imgsnap config edit\""), "{line}");
}

#[test]
fn a_repair_names_the_file_that_is_missing() {
    let (lab, states) = Lab::with_snapshots(3);
    std::fs::create_dir(lab.path("copy")).unwrap();
    let mut copy = std::process::Command::new("cp");
    copy.args(["-r", "repo/.", "copy"]).current_dir(lab.path("."));
    assert!(spawn(&mut copy).wait().unwrap().success());
    let delta = lab.delta("disk", 2);
    lab.remove(&delta);
    let before = lab.everything();
    let run = lab.run(&["repair", "disk"]);
    assert_eq!(run.code, Some(DAMAGE), "{}", run.err);
    let line = format!("DAMAGED  disk@2: its file {} is missing", lab.at(&delta));
    assert!(
        run.text().contains(&line) && !run.text().contains("nothing to repair"),
        "{}",
        run.text()
    );
    lab.ensure_untouched(&before, "repair");
    let run = lab.run(&["repair", "disk", "--json"]);
    assert_eq!((run.code, &run.json()["missing"][0]["snapshot"]), (Some(DAMAGE), &json!("disk@2")));
    lab.done(&["repair", "disk", "--from", "copy"]);
    lab.done(&["repair", "disk"]);
    lab.holds("disk", &[(1, &states[0]), (2, &states[1]), (3, &states[2])]);
}

#[test]
fn what_is_known_to_be_lost_is_told_each_time() {
    let (lab, _) = Lab::with_snapshots(2);
    let base = lab.delta("disk", 1);
    lab.lose_manifests("disk");
    lab.remove(&base);
    for _ in 0..2 {
        let run = lab.run(&["repair", "disk"]);
        assert_eq!(run.code, Some(DAMAGE), "{}{}", run.text(), run.err);
        assert!(run.text().contains("not used: "), "{}", run.text());
        assert!(!run.text().contains("nothing to repair"), "{}", run.text());
    }
}

#[test]
fn of_a_lost_manifest_all_that_a_copy_has_comes_back() {
    let (lab, states) = Lab::with_snapshots(3);
    let mut copy = std::process::Command::new("cp");
    copy.args(["-r", "repo", "copy"]).current_dir(lab.path("."));
    assert!(spawn(&mut copy).wait().unwrap().success());
    // The newest, on which nothing rests.
    let newest = lab.delta("disk", 3);
    lab.lose_manifests("disk");
    lab.remove(&newest);
    lab.done(&["repair", "disk", "--from", "copy"]);
    lab.holds("disk", &[(1, &states[0]), (2, &states[1]), (3, &states[2])]);
}

#[test]
fn of_a_lost_manifest_the_own_history_comes_before_that_of_a_copy_that_went_on() {
    let (lab, mut states) = Lab::with_snapshots(3);
    let mut copy = std::process::Command::new("cp");
    copy.args(["-r", "repo", "copy"]).current_dir(lab.path("."));
    assert!(spawn(&mut copy).wait().unwrap().success());
    for seed in [50, 51] {
        lab.write("disk.img", &noise(seed, 64 * KIB));
        lab.done(&["snapshot", "disk.img", "--repo", "copy"]);
    }
    states.push(noise(52, 64 * KIB));
    lab.write("disk.img", &states[3]);
    lab.done(&["snapshot", "disk.img"]);
    let before = lab.deltas("disk");
    lab.lose_manifests("disk");
    lab.done(&["repair", "disk", "--from", "copy"]);
    let all: Vec<_> = (1..).zip(&states).map(|(n, state)| (n, state.as_slice())).collect();
    lab.holds("disk", &all);
    assert_eq!(lab.deltas("disk"), before, "what is here is not brought again");
}

#[test]
fn an_image_that_cannot_be_repaired_now_keeps_no_other_from_it() {
    let (lab, _) = Lab::with_snapshots(1);
    let states = lab.grow_history("web.img", 1);
    let delta = lab.delta("disk", 1);
    lab.lose_manifests("web");
    // What is no file cannot be read, and is no damage.
    lab.rename(&delta, "away");
    std::fs::create_dir(lab.path(&delta)).unwrap();
    let run = lab.run(&["repair"]);
    assert_eq!(run.code, Some(FAILED), "{}{}", run.text(), run.err);
    assert!(run.text().contains("web: rebuilt the manifest"), "{}", run.text());
    lab.restores("web@1", &states[0]);
}
