//! An image with what is known of its snapshots, and the one who changes it.

use crate::command::{Ended, pick};
use crate::image::Image;
use crate::state::State;
use crate::worker::Worker;
use nix::sys::signal::Signal;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

/// So many are kept, or a soak would need the more time for each step the longer it runs.
const MOST: usize = 9;

pub struct Known {
    pub state: Arc<State>,
    /// One of these; more than one after a command that was killed.
    pub labels: Vec<Option<String>>,
}

pub struct Owned {
    pub image: Image,
    pub known: BTreeMap<u64, Known>,
    /// What was ever stored under a number: a repair may find it again.
    pub past: BTreeMap<u64, Vec<Arc<State>>>,
    /// What snapshots that were killed may have stored: a repair may find that, too.
    pub tried: Vec<Arc<State>>,
    /// Base images, which must stay.
    pub templates: Vec<PathBuf>,
}

impl Owned {
    pub fn new(worker: &mut Worker<'_>, name: &str) -> Self {
        let image = Image::new(worker.world, name, &mut worker.random);
        worker.world.tell(name, |public| public.is_vague = true);
        let (known, past) = (BTreeMap::new(), BTreeMap::new());
        Self { image, known, past, tried: Vec::new(), templates: Vec::new() }
    }

    pub fn name(&self) -> String {
        self.image.name.clone()
    }

    pub fn reference(&self, number: u64) -> String {
        format!("{}@{number}", self.image.name)
    }

    pub fn some_known(&self, worker: &mut Worker<'_>) -> u64 {
        let numbers: Vec<u64> = self.known.keys().copied().collect();
        pick(&mut worker.random, &numbers)
    }

    pub fn remember(&mut self, number: u64, state: Arc<State>, label: Option<String>) {
        let past = self.past.entry(number).or_default();
        if !past.iter().any(|known| known.is(&state)) {
            past.push(state.clone());
        }
        self.known.insert(number, Known { state, labels: vec![label] });
    }

    /// Others hear that these may go.
    pub fn leaving(&self, worker: &Worker<'_>, numbers: &BTreeSet<u64>) {
        worker.world.tell(&self.image.name, |public| public.leaving.clone_from(numbers));
    }

    pub fn publish(&self, worker: &Worker<'_>) {
        worker.world.tell(&self.image.name, |public| {
            let state = |known: &Known| known.state.clone();
            public.known = self.known.iter().map(|(n, known)| (*n, state(known))).collect();
            public.leaving.clear();
            public.is_vague = self.known.is_empty();
        });
    }

    /// What is listed, with labels; none if there is no such image.
    #[track_caller]
    pub fn listed(&self, worker: &mut Worker<'_>) -> BTreeMap<u64, Option<String>> {
        let run = worker.run_clean(&["list", &self.name(), "--json"]);
        if run.code == Some(1) && run.err.contains("no image") {
            return BTreeMap::new();
        }
        let list = run.done().json();
        let entry = |s: &Value| {
            let label = s["label"].as_str().map(str::to_owned);
            (s["number"].as_u64().unwrap(), label)
        };
        let finished = list.as_array().unwrap().iter().filter(|s| s["kind"] != "pending");
        finished.map(entry).collect()
    }

    /// Holds what is listed against what is known. `add` is what may have come, at most one snapshot of
    /// each; `go` may have gone. Gives what has come.
    #[track_caller]
    pub fn reconcile(
        &mut self,
        worker: &mut Worker<'_>,
        add: &[(Arc<State>, Option<String>)],
        go: &BTreeSet<u64>,
    ) -> Vec<u64> {
        let listed = self.listed(worker);
        for number in self.known.keys().copied().collect::<Vec<_>>() {
            if !listed.contains_key(&number) {
                assert!(go.contains(&number), "{} is lost", self.reference(number));
                self.known.remove(&number);
            }
        }
        let mut added = Vec::new();
        for (number, label) in listed {
            if let Some(known) = self.known.get_mut(&number) {
                let labels = &known.labels;
                assert!(labels.contains(&label), "@{number} has {label:?}, not of {labels:?}");
                known.labels = vec![label];
                continue;
            }
            let reference = self.reference(number);
            let differs =
                |worker: &mut Worker<'_>, state: &State| self.gives(worker, number, state);
            let found = add.iter().find(|(state, _)| differs(worker, state).is_none());
            let (state, _) = found.unwrap_or_else(|| panic!("{reference}: nobody made it"));
            let of_label = label.is_none() || add.iter().any(|(_, new)| *new == label);
            assert!(of_label, "{reference} has the label {label:?}");
            self.remember(number, state.clone(), label);
            added.push(number);
        }
        self.tried.extend(add.iter().map(|(state, _)| state.clone()));
        self.tried.drain(..self.tried.len().saturating_sub(16));
        assert!(added.len() <= add.len(), "{}: nobody made all of {added:?}", self.name());
        self.publish(worker);
        added
    }

    /// How a snapshot differs from what it should give, if it does.
    #[track_caller]
    pub fn gives(&self, worker: &mut Worker<'_>, number: u64, state: &State) -> Option<String> {
        let run = worker.run_clean(&["restore", &self.reference(number), "-o", "-"]).done();
        worker.world.count("checked snapshots", 1);
        state.first_difference(&mut run.out.as_slice())
    }

    #[track_caller]
    pub fn restores(&self, worker: &mut Worker<'_>, number: u64) {
        let difference = self.gives(worker, number, &self.known[&number].state);
        assert_eq!(difference, None, "{} is not what it was", self.reference(number));
    }
}

impl Worker<'_> {
    /// One step: the image changes, and something is done.
    pub fn step(&mut self, owned: &mut Owned) {
        if self.random.below(4) > 0 {
            owned.image.change(self.world, &mut self.random);
        }
        let kind = self.random.below(100);
        if owned.known.len() < 2 {
            self.snapshot(owned);
        } else if owned.known.len() > MOST {
            self.prune(owned);
        } else {
            match kind {
                0..34 => self.snapshot(owned),
                34..46 => self.rollback(owned),
                46..56 => self.restore(owned),
                56..63 => self.delete(owned),
                63..67 => self.prune(owned),
                67..72 => self.flatten(owned),
                72..76 => self.label(owned),
                76..80 => self.duel(owned),
                80..84 => self.travel(owned),
                84..91 => self.damage(owned),
                91..94 => self.full_disk(owned),
                94 => self.remove(owned),
                95 => self.watch(owned),
                96 => self.relink(owned),
                97 => self.untrack(owned),
                98 => self.configure(),
                _ => self.look(owned),
            }
        }
        if self.random.below(4) == 0 {
            owned.image.is_as_it_was(self.world);
        }
    }

    fn snapshot(&mut self, owned: &mut Owned) {
        let mut args = vec!["snapshot".to_owned(), owned.image.path(), "--json".into()];
        let state = Arc::new(owned.image.state.clone());
        let mut add = Vec::new();
        let mut template = None;
        let mut list = None;
        match self.random.below(20) {
            _ if owned.known.is_empty() => {}
            0..2 => args.push("--full".into()),
            2..4 => args.push("--differential".into()),
            4..6 => args.extend(["--parent".into(), format!("@{}", owned.some_known(self))]),
            6..8 => {
                let number = owned.some_known(self);
                list = Some(self.list_of_changes(owned, number));
                let at = format!("@{number}");
                args.extend(["--parent".into(), at.clone(), "--since".into(), at]);
                args.extend(["--changed".into(), list.clone().unwrap()]);
            }
            8 => {
                let (path, state) = self.make_template(owned);
                let base_image = ["--base-image".into(), path.to_str().unwrap().into()];
                args.extend(["--full".into()].into_iter().chain(base_image));
                add.push((state, None));
                template = Some(path);
            }
            _ => {}
        }
        let label = (self.random.below(5) == 0).then(|| {
            self.serial += 1;
            format!("l{}-{}", self.number, self.serial)
        });
        args.extend(label.iter().flat_map(|label| ["--label".into(), label.clone()]));
        let can_skip = template.is_none() && !args.contains(&"--full".into());
        if can_skip && self.random.below(5) == 0 {
            args.push("--skip-unchanged".into());
        }
        if template.is_none() && self.random.below(25) == 0 {
            args.push("--dry-run".into());
        }
        self.ways_to_read(&mut args);
        add.push((state.clone(), label.clone()));
        let is_dry = args.contains(&"--dry-run".into());
        let run = self.try_run(&args.iter().map(String::as_str).collect::<Vec<_>>());
        list.into_iter().for_each(|list| std::fs::remove_file(list).unwrap());
        if !run.done_unless_faulted() {
            let may = if is_dry { [].as_slice() } else { &add };
            owned.reconcile(self, may, &BTreeSet::new());
            // Its table may lie there though no manifest names it: a repair takes it in, and tells that it does not
            // know where the template is.
            owned.templates.extend(template);
            return;
        }
        let done = run.json();
        let number = done["number"].as_u64().unwrap();
        if is_dry {
            assert!(!owned.known.contains_key(&number), "{done}");
        } else if done["skipped"] == true {
            let is_same = owned.known[&number].state.is(&state);
            assert!(is_same, "skipped though it had changed: {done}");
        } else {
            assert!(!owned.known.contains_key(&number), "a number was used twice: {done}");
            assert!(done["hint"]["missed_blocks"].as_u64().unwrap_or(0) == 0, "a miss: {done}");
            owned.remember(number, state, label);
            if let Some(path) = template {
                owned.remember(number - 1, add[0].0.clone(), None);
                owned.templates.push(path);
            }
            if run.had_no_fault() {
                self.has_few_clones(owned);
            }
        }
        owned.reconcile(self, &[], &BTreeSet::new());
        if self.random.below(3) == 0 && !is_dry {
            owned.restores(self, number);
        }
    }

    /// All images of this worker in one command: what becomes of one is of no matter to the others.
    pub fn snapshot_all(&mut self, images: &mut [Owned]) {
        let paths: Vec<String> = images.iter().map(|owned| owned.image.path()).collect();
        let mut args = vec!["snapshot"];
        args.extend(paths.iter().map(String::as_str));
        let run = self.try_run(&args);
        let is_done = run.done_unless_faulted();
        for owned in images {
            let state = Arc::new(owned.image.state.clone());
            let added = owned.reconcile(self, &[(state, None)], &BTreeSet::new());
            assert!(!is_done || added.len() == 1, "{}: not of {}", run.what, owned.name());
        }
    }

    fn ways_to_read(&mut self, args: &mut Vec<String>) {
        let mut give = |option: &str, values: &[&str]| {
            if self.random.below(3) == 0 {
                args.extend([option.into(), pick(&mut self.random, values).into()]);
            }
        };
        let ways: &[&str] = if self.world.has_clones {
            &["auto", "none", "reflink", "reflink"]
        } else {
            &["auto", "none"]
        };
        give("--track", ways);
        give("--compression", &["none", "lz4", "zstd", "zstd:1", "zstd:9"]);
        give("--recheck", &["0%", "1%", "50%", "100%"]);
        if self.random.below(8) == 0 && !args.contains(&"--changed".into()) {
            args.push("--full-scan".into());
        }
    }

    /// A list of what differs from a snapshot, and a little more.
    fn list_of_changes(&mut self, owned: &Owned, since: u64) -> String {
        let state = &owned.image.state;
        let mut ranges = state.differences(&owned.known[&since].state);
        ranges.push((self.random.below(state.bytes), 1));
        ranges.sort_unstable();
        let lines: Vec<String> =
            ranges.iter().map(|(offset, bytes)| format!("{offset} {bytes}\n")).collect();
        let path = self.new_path("changes");
        self.world.write(&path, lines.concat());
        path
    }

    /// A file of which the image is a clone, with some changes.
    fn make_template(&mut self, owned: &Owned) -> (PathBuf, Arc<State>) {
        let mut state = owned.image.state.clone();
        for _ in 0..self.random.below(4) {
            let at = self.random.below(state.bytes);
            let bytes = 1 + self.random.below((state.bytes - at).min(300_000));
            state.write(at, &self.random.bytes(usize::try_from(bytes).unwrap()));
        }
        self.serial += 1;
        let path = self.world.place.join(format!("{}-template-{}.img", owned.name(), self.serial));
        let _turn = self.world.turn();
        let _calm = self.world.no_fork();
        state.make(&std::fs::File::create(&path).unwrap());
        (path, Arc::new(state))
    }

    /// Beside the image there is one clone at most: others go at the end of a snapshot.
    #[track_caller]
    fn has_few_clones(&self, owned: &Owned) {
        let folder = owned.image.folder.join(".imgsnap");
        let clones: Vec<_> = std::fs::read_dir(folder).into_iter().flatten().collect();
        assert!(clones.len() <= 1, "{clones:?}");
    }

    fn restore(&mut self, owned: &mut Owned) {
        let number = owned.some_known(self);
        let reference = owned.reference(number);
        let state = owned.known[&number].state.clone();
        match self.random.below(4) {
            0 => {
                let offset = self.random.below(state.bytes);
                let bytes = 1 + self.random.below(state.bytes - offset);
                let range = format!("{offset}+{bytes}");
                let run = self.try_run(&["restore", &reference, "-o", "-", "--range", &range]);
                if run.done_unless_faulted() {
                    let is_it = run.out == state.read(offset, bytes);
                    assert!(is_it, "{reference}: {range} is something else");
                }
            }
            1 => {
                let run = self.try_run(&["restore", &reference, "-o", "-"]);
                if run.done_unless_faulted() {
                    assert_eq!(
                        state.first_difference(&mut run.out.as_slice()),
                        None,
                        "{}",
                        run.what
                    );
                }
            }
            which => {
                let path = self.new_path("restored");
                let is_there = which == 3;
                if is_there {
                    self.world.write(&path, b"precious");
                }
                let mut args = vec!["restore", &reference, "-o", &path];
                args.extend(is_there.then_some("--force"));
                let run = self.try_run(&args);
                self.holds_all_or_nothing(&run, &path, is_there, &state);
            }
        }
    }

    /// A file that was to be written is whole, or not there, or what it was.
    #[track_caller]
    pub fn holds_all_or_nothing(
        &mut self,
        run: &Ended,
        path: &str,
        was_there: bool,
        state: &State,
    ) {
        let is_done = run.done_unless_faulted();
        let found = std::fs::read(path).ok();
        let difference = |bytes: Vec<u8>| state.first_difference(&mut bytes.as_slice());
        match found {
            None => assert!(!is_done && !was_there, "{}: it is not there", run.what),
            Some(bytes) if !is_done && was_there && bytes == b"precious" => {}
            Some(bytes) => assert_eq!(difference(bytes), None, "{}", run.what),
        }
        std::fs::remove_file(path).ok();
        self.clear_hidden(run);
    }

    /// Killed between two names a command leaves a hidden file, and nothing else does.
    #[track_caller]
    pub fn clear_hidden(&mut self, run: &Ended) {
        for entry in std::fs::read_dir(&self.folder).unwrap().map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap();
            if name.starts_with('.') {
                let is_excused = run.code.is_none() || !run.had_no_fault();
                assert!(is_excused, "{} left {name}", run.what);
                self.world.count("hidden files", 1);
                std::fs::remove_file(entry.path()).unwrap();
            }
        }
    }

    fn watch(&mut self, owned: &mut Owned) {
        let path = owned.image.path();
        let signal = pick(&mut self.random, &[Signal::SIGTERM, Signal::SIGINT, Signal::SIGKILL]);
        let millis = 100 + self.random.below(1500);
        let args = ["watch", &path, "--every", "1s", "--quiet"];
        let run = self.run_for_a_while(&args, signal, millis);
        let is_ended = run.code.is_none() || run.code == Some(0);
        assert!(is_ended, "{}: {:?}: {}", run.what, run.code, run.err);
        let state = Arc::new(owned.image.state.clone());
        owned.reconcile(self, &[(state, None)], &BTreeSet::new());
    }

    fn relink(&mut self, owned: &mut Owned) {
        let name = owned.name();
        let is_moved = self.random.below(2) == 0;
        if is_moved {
            self.serial += 1;
            let to = owned.image.folder.join(format!("moved-{}.img", self.serial));
            std::fs::rename(&owned.image.path, &to).unwrap();
            owned.image.path = to;
        }
        let path = owned.image.path();
        let run = self.try_run(&["relink", &name, &path]);
        if !run.done_unless_faulted() {
            self.run_clean(&["relink", &name, &path]).done();
        }
        if is_moved {
            // Snapshots go by the name of the file.
            let back = owned.image.folder.join(format!("{name}.img"));
            std::fs::rename(&owned.image.path, &back).unwrap();
            owned.image.path = back;
            self.run_clean(&["relink", &name, &owned.image.path()]).done();
        }
        owned.reconcile(self, &[], &BTreeSet::new());
    }

    fn untrack(&mut self, owned: &mut Owned) {
        self.try_run(&["untrack", &owned.name()]).done_unless_faulted();
        owned.reconcile(self, &[], &BTreeSet::new());
    }

    /// What only looks.
    fn look(&mut self, owned: &mut Owned) {
        let one = owned.some_known(self);
        let other = owned.some_known(self);
        let (name, one_at, other_at) = (owned.name(), owned.reference(one), owned.reference(other));
        let path = owned.image.path();
        let args: &[&str] = match self.random.below(7) {
            0 => &["verify", &name, "--json"],
            1 => &["verify", &one_at, "--quick"],
            2 => &["show", &one_at],
            3 => &["stats", &name],
            4 => &["diff", &one_at, &path, "--json"],
            5 => &["list", &name],
            _ => &["diff", &one_at, &other_at, "--json"],
        };
        let run = self.try_run(args);
        if run.done_unless_faulted() && args[0] == "diff" {
            let states = [&owned.known[&one].state, &owned.known[&other].state];
            let second = if args[2] == path { &owned.image.state } else { states[1].as_ref() };
            let changed = run.json()["changed_bytes"].as_u64().unwrap();
            if states[0].bytes == second.bytes {
                assert_eq!(changed == 0, states[0].is(second), "{}", run.what);
            }
        }
    }
}
