//! kill -9 at random moments: nothing that was reported as done is lost, what was not is done or
//! undone.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const IMAGE_BYTES: u64 = 16 * MIB + 1000;
const PIECE: u64 = 64 << 10;
const ROUNDS: u64 = 32;
const VERBS: [&str; 6] = ["snapshot", "rollback", "delete", "flatten", "prune", "restore"];

/// The bytes of an image; states share the pieces that are equal.
#[derive(Clone, PartialEq)]
struct State(Vec<Arc<Vec<u8>>>);

impl State {
    fn zeros() -> Self {
        let pieces = (0..IMAGE_BYTES).step_by(1 << 16);
        let bytes = |offset| usize::try_from(PIECE.min(IMAGE_BYTES - offset)).unwrap();
        Self(pieces.map(|offset| Arc::new(vec![0; bytes(offset)])).collect())
    }

    fn is(&self, bytes: &[u8]) -> bool {
        let mut pieces = bytes.chunks(1 << 16);
        bytes.len() as u64 == IMAGE_BYTES && self.0.iter().all(|p| pieces.next() == Some(p))
    }
}

struct Trial {
    lab: Lab,
    image: String,
    random: Random,
    /// What the image is now.
    state: State,
    /// What the snapshots hold.
    known: BTreeMap<u64, State>,
    /// How long a command takes, to choose the moment by.
    slowest: BTreeMap<&'static str, Duration>,
    kills: u64,
}

/// What became of a command.
enum Ended {
    Done(Run),
    Killed,
}

impl Trial {
    fn new(seed: u64) -> Self {
        let lab = Lab::new();
        let image = lab.path("vm.img");
        make(&image, IMAGE_BYTES);
        if seed % 2 == 1 {
            lab.run(&["init", "--part-size", "1M"]).done();
        }
        let (known, slowest) = (BTreeMap::new(), BTreeMap::new());
        let state = State::zeros();
        Self { lab, image, random: Random(seed), state, known, slowest, kills: 0 }
    }

    /// Writes here and there, as a guest does.
    fn change(&mut self, times: u64) {
        for _ in 0..times {
            let index = self.random.below(self.state.0.len() as u64);
            let piece = &mut self.state.0[usize::try_from(index).unwrap()];
            let start = self.random.below(piece.len() as u64);
            let length = 1 + self.random.below(piece.len() as u64 - start);
            let bytes = match self.random.below(4) {
                0 => vec![0; usize::try_from(length).unwrap()],
                1 => text(self.random.next(), length),
                _ => noise(self.random.next(), length),
            };
            put(&self.image, index * PIECE + start, &bytes);
            let start = usize::try_from(start).unwrap();
            Arc::make_mut(piece)[start..start + bytes.len()].copy_from_slice(&bytes);
        }
    }

    /// Runs a command and kills it at a random moment, if it takes that long.
    fn run(&mut self, args: &[&str]) -> Ended {
        let verb = VERBS.into_iter().find(|v| *v == args[0]).unwrap();
        let slowest = self.slowest.get(verb).copied().unwrap_or(Duration::from_millis(30));
        let micros = u64::try_from(slowest.as_micros()).unwrap();
        let moment = Duration::from_micros(self.random.below(micros * 5 / 4));
        let begun = Instant::now();
        let mut run = self.lab.start(args);
        while begun.elapsed() < moment && !run.is_over() {
            std::thread::sleep(Duration::from_micros(200));
        }
        if !run.is_over() {
            run.signal(Signal::SIGKILL);
        }
        let run = run.wait();
        if run.is_killed() {
            self.kills += 1;
            return Ended::Killed;
        }
        self.slowest.insert(verb, slowest.max(begun.elapsed().min(slowest * 2)));
        Ended::Done(run)
    }

    fn image_is(&self, state: &State) -> bool {
        length(&self.image) == IMAGE_BYTES && state.is(&get(&self.image, 0, IMAGE_BYTES))
    }

    #[track_caller]
    fn restores(&self, number: u64, state: &State) {
        let restored = self.lab.run(&["restore", &format!("vm@{number}"), "-o", "-"]).done();
        assert!(state.is(&restored.out), "vm@{number} is not what it was");
    }

    /// Compares what is listed with what is known. `new` is what the last command may have added,
    /// `gone` what it may have removed.
    #[track_caller]
    fn reconcile(&mut self, new: Option<&State>, gone: impl IntoIterator<Item = u64>) {
        let gone: Vec<u64> = gone.into_iter().collect();
        let listed = self.lab.numbers("vm");
        for number in self.known.keys().copied().collect::<Vec<_>>() {
            if !listed.contains(&number) {
                assert!(gone.contains(&number), "vm@{number} was reported as done, and is lost");
                self.known.remove(&number);
            }
        }
        let added: Vec<u64> =
            listed.iter().copied().filter(|n| !self.known.contains_key(n)).collect();
        assert!(added.len() <= usize::from(new.is_some()), "nobody made {added:?}");
        if let (Some(number), Some(state)) = (added.first(), new) {
            self.restores(*number, state);
            self.known.insert(*number, state.clone());
        }
        self.lab.verify(listed.len());
    }

    /// True if a rollback was begun and not ended.
    fn is_mixture(&self) -> bool {
        self.lab.run(&["list"]).done().err.contains("was interrupted")
    }

    fn any_known(&mut self) -> u64 {
        let numbers: Vec<u64> = self.known.keys().copied().collect();
        pick(&mut self.random, &numbers)
    }

    fn snapshot(&mut self) {
        let state = self.state.clone();
        match self.run(&["snapshot", &self.image.clone(), "--json"]) {
            Ended::Done(run) => {
                let number = run.done().json()["number"].as_u64().unwrap();
                assert!(self.known.insert(number, state).is_none());
                self.reconcile(None, None);
            }
            Ended::Killed => self.reconcile(Some(&state), None),
        }
        assert!(self.image_is(&self.state));
    }

    fn delete(&mut self) {
        let number = self.any_known();
        match self.run(&["delete", &format!("vm@{number}")]) {
            Ended::Done(run) => {
                run.done();
                assert!(!self.lab.numbers("vm").contains(&number));
                self.reconcile(None, Some(number));
            }
            Ended::Killed => self.reconcile(None, Some(number)),
        }
        assert!(self.image_is(&self.state));
    }

    fn rollback(&mut self) {
        let before = self.state.clone();
        let mut is_interrupted = false;
        // Killed in the middle, it is run again, sometimes to another snapshot, until it gets
        // through.
        for attempt in 0.. {
            let number = self.any_known();
            let target = self.known[&number].clone();
            let to = format!("vm@{number}");
            let save = self.random.below(3) > 0;
            let mut args = vec!["rollback", "vm", "--to", &to, "--json"];
            args.extend((!save).then_some("--no-save"));
            args.extend((self.random.below(3) == 0).then_some("--prove"));
            // Killed between the intent and the first byte, it is noted as interrupted, and saves all the same.
            let is_whole = self.image_is(&before);
            let ended =
                if attempt < 3 { self.run(&args) } else { Ended::Done(self.lab.run(&args)) };
            // What is saved is what was there before, and only if that was no mixture.
            self.reconcile(Some(&before).filter(|_| save && is_whole), None);
            if let Ended::Done(run) = ended {
                let resumed = run.done().json()["resumed"].as_bool().unwrap();
                assert!(resumed || is_whole, "a mixture was taken for what was there before");
                assert!(!resumed || is_interrupted, "nothing was interrupted");
                assert!(self.image_is(&target), "the image is not {to}");
                assert!(!self.is_mixture());
                self.state = target;
                return;
            }
            if self.is_mixture() {
                is_interrupted = true;
                let refused = self.lab.run(&["snapshot", &self.image]).fails(1);
                refused.says("was interrupted");
                self.reconcile(None, None);
            } else if self.image_is(&target) {
                // It got through, and had no time to tell; or there was nothing to do.
                self.state = target;
                return;
            } else {
                assert!(
                    !is_interrupted && self.image_is(&before),
                    "a mixture that nobody knows of"
                );
            }
        }
    }
}

#[test]
fn killed_at_random_moments_it_loses_nothing_that_was_done() {
    let mut trial = Trial::new(20_261_120);
    trial.change(60);
    let first = trial.lab.snapshot(&trial.image);
    trial.known.insert(first, trial.state.clone());
    for round in 0..ROUNDS {
        let times = 1 + trial.random.below(12);
        trial.change(times);
        match trial.random.below(8) {
            0..4 => trial.snapshot(),
            4..7 => trial.rollback(),
            // Some must be left to roll back to.
            _ if trial.known.len() < 3 => trial.snapshot(),
            _ => trial.delete(),
        }
        for _ in 0..2 {
            let number = trial.any_known();
            trial.restores(number, &trial.known[&number]);
        }
        // The next command that is done cleans up.
        let label = format!("round-{round}");
        let number = trial.any_known();
        trial.lab.run(&["label", &format!("vm@{number}"), &label]).done();
        trial.lab.is_tidy("vm");
    }
    for (number, state) in &trial.known {
        trial.restores(*number, state);
    }
    assert!(trial.kills >= ROUNDS / 4, "only {} of {ROUNDS} were killed", trial.kills);
}

#[test]
fn killed_in_its_first_snapshot_it_works_the_next_time() {
    let mut trial = Trial::new(7);
    trial.change(40);
    let image = trial.image.clone();
    for round in 0..16 {
        // A repository that does not exist yet.
        trial.lab.repo = trial.lab.path(&format!("repo{round}"));
        trial.known.clear();
        // In one file, or in parts, of which some may be finished.
        let size = if round % 2 == 0 { "8G" } else { "1M" };
        let args = ["snapshot", &image, "--part-size", size];
        let ended = trial.run(&args);
        if matches!(ended, Ended::Killed) {
            let again = trial.lab.run(&[&args[..], &["--json"]].concat());
            let number = again.done().json()["number"].as_u64().unwrap();
            trial.known.insert(number, trial.state.clone());
        } else {
            trial.known.insert(1, trial.state.clone());
        }
        let state = trial.state.clone();
        trial.reconcile(Some(&state), None);
        trial.lab.run(&["label", "vm@latest", "label"]).done();
        trial.lab.is_tidy("vm");
    }
    assert!(trial.kills >= 4, "only {} of 16 were killed", trial.kills);
}

/// How often the verbs that write files anew are killed; `IMGSNAP_KILLS` says otherwise.
fn kills() -> u64 {
    std::env::var("IMGSNAP_KILLS").map_or(12, |text| text.parse().unwrap())
}

impl Trial {
    /// Runs `prune --compact`, `delete` or `flatten`, and kills it if it takes long enough. Whatever came of
    /// it, all that is listed is what it was, and the next writer clears up.
    fn rewrite(&mut self) {
        let number = self.any_known();
        let reference = format!("vm@{number}");
        let last = (1 + self.random.below(4)).to_string();
        let (args, gone): (Vec<&str>, Vec<u64>) = match self.random.below(5) {
            0 => (vec!["delete", &reference], vec![number]),
            1 => (vec!["delete", &reference, "--compact"], vec![number]),
            2 => (vec!["flatten", &reference], vec![]),
            _ => {
                let kept = last.parse().unwrap();
                let gone = self.known.keys().rev().skip(kept).copied().collect();
                (vec!["prune", "vm", "--keep-last", &last, "--compact"], gone)
            }
        };
        if let Ended::Done(run) = self.run(&args) {
            run.done();
        }
        self.reconcile(None, gone);
        for (number, state) in &self.known {
            self.restores(*number, state);
        }
        // The next writer: it takes a label away that may not be there.
        let reference = format!("vm@{}", self.any_known());
        self.lab.run(&["label", &reference, "--remove"]).done();
        self.lab.is_tidy("vm");
    }
}

#[test]
fn killed_while_it_writes_files_anew_it_keeps_what_is_listed() {
    let rounds = kills();
    let mut trial = Trial::new(20_261_121);
    trial.change(60);
    let image = trial.image.clone();
    let mut tries = 0;
    while trial.kills < rounds {
        tries += 1;
        assert!(tries < rounds * 20, "only {} of {tries} were killed", trial.kills);
        while trial.known.len() < 6 {
            let times = 1 + trial.random.below(20);
            trial.change(times);
            let parent = match trial.known.is_empty() {
                true => None,
                false => Some(format!("@{}", trial.any_known())),
            };
            let mut args = vec!["snapshot", &image, "--json"];
            if let Some(parent) = parent.as_deref().filter(|_| tries % 3 == 0) {
                args.extend(["--parent", parent]);
            }
            let taken = trial.lab.run(&args).done().json();
            trial.known.insert(taken["number"].as_u64().unwrap(), trial.state.clone());
        }
        trial.rewrite();
        assert!(trial.image_is(&trial.state));
    }
}

/// Nothing of the target is saved: the same update, run again, goes by what it finds there, whatever this host
/// knew of the file before.
#[test]
fn killed_while_it_updates_a_target_it_is_run_again_and_completes_it() {
    let rounds = kills();
    let mut trial = Trial::new(20_261_128);
    let image = trial.image.clone();
    for _ in 0..4 {
        trial.change(60);
        let number = trial.lab.snapshot(&image);
        trial.known.insert(number, trial.state.clone());
    }
    let target = trial.lab.path("target");
    trial.lab.run(&["restore", "vm@1", "-o", &target]).done();
    let mut tries = 0;
    while trial.kills < rounds {
        tries += 1;
        assert!(tries < rounds * 20, "only {} of {tries} were killed", trial.kills);
        if trial.random.below(4) == 0 {
            let other = trial.random.next();
            put(&target, other % IMAGE_BYTES, &text(other, 70_000));
        }
        let number = trial.any_known();
        let reference = format!("vm@{number}");
        let mut args = vec!["restore", &reference, "-o", &target, "--update", "--force"];
        args.extend((trial.random.below(2) == 0).then_some("--trust-target"));
        let mut attempt = 0;
        loop {
            attempt += 1;
            let ended =
                if attempt < 4 { trial.run(&args) } else { Ended::Done(trial.lab.run(&args)) };
            if let Ended::Done(run) = ended {
                run.done();
                break;
            }
        }
        let state = &trial.known[&number];
        assert!(state.is(&get(&target, 0, length(&target))), "it is not {reference}");
        assert!(trial.image_is(&trial.state));
    }
    trial.lab.is_tidy("vm");
}

/// Ctrl-C: all is put away at once, not by the next command.
#[test]
fn interrupted_by_the_user_it_leaves_all_as_it_was() {
    let lab = Lab::new();
    let image = lab.path("vm.img");
    make(&image, 32 * MIB);
    put(&image, 0, &text(1, 24 * MIB));
    let slow = ["snapshot", &image, "--compression", "zstd:15", "--threads", "1"];
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        interrupt(&lab, &slow, &image, signal).fails(130);
        assert!(!Path::new(&lab.repo).exists(), "the repository, which nothing came into");
    }
    lab.run(&["init"]).done();
    interrupt(&lab, &slow, &image, Signal::SIGINT).fails(130);
    assert!(lab.numbers("vm").is_empty());
    assert!(!names_in(&lab.repo).contains(&"vm".into()), "{:?}", names_in(&lab.repo));
    lab.snapshot(&image);
    let first = lab.path("first");
    keep(&image, &first);
    put(&image, 0, &text(2, 24 * MIB));
    let second = lab.path("second");
    keep(&image, &second);
    interrupt(&lab, &slow, &image, Signal::SIGINT).fails(130);
    assert_eq!(lab.numbers("vm"), [1]);
    lab.is_tidy("vm");

    // A rollback is interrupted while it saves: nothing has happened.
    interrupt(&lab, &["rollback", "vm", "--to", "@1", "--threads", "1"], &image, Signal::SIGINT)
        .fails(130);
    same(&image, &second);
    assert_eq!(lab.numbers("vm"), [1]);
    lab.is_tidy("vm");
    assert_eq!(lab.run(&["list"]).done().err, "");
    lab.verify(1);
}

/// Stops it as soon as it holds the image, and lets it go on with a signal.
fn interrupt(lab: &Lab, args: &[&str], image: &str, signal: Signal) -> Run {
    let held = lab.start_held(args, "lock 1", image).unwrap();
    let run = held.unwrap_or_else(|| panic!("{args:?} has no lock bytes"));
    run.signal(signal);
    run.signal(Signal::SIGCONT);
    run.wait()
}
