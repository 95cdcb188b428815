//! A repository that is used at random while something goes wrong, and what must be in it.

use crate::kit::{Lab, Run};
use crate::random::Random;
use std::collections::BTreeMap;

/// So many turns do not all come out well by chance.
const MANY: u64 = 20;

/// A repository, and what each of its snapshots is.
pub struct World {
    pub lab: Lab,
    states: BTreeMap<u64, Vec<u8>>,
    failed: usize,
    turns: u64,
}

/// How many there are to be, by the environment; the seed too, which each failure names.
pub fn wanted(variable: &str, usual: u64) -> (u64, u64) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().unwrap());
    let seed = number("IMGSNAP_STORE_SEED").unwrap_or(20_261_128);
    (number(variable).unwrap_or(usual), seed)
}

impl World {
    /// With a first snapshot.
    pub fn new(lab: Lab) -> Self {
        let first = lab.read("disk.img");
        lab.done(&["snapshot", "disk.img"]);
        Self { lab, states: BTreeMap::from([(1, first)]), failed: 0, turns: 0 }
    }

    fn numbers(&self) -> Vec<u64> {
        let listed = self.lab.json(&["list", "disk"]);
        listed.as_array().unwrap().iter().map(|s| s["number"].as_u64().unwrap()).collect()
    }

    /// Does something, which `run` lets go wrong; when it returns, all is well again.
    pub fn turn(&mut self, random: &mut Random, run: &dyn Fn(&Lab, &[&str]) -> Run) {
        self.turns += 1;
        let numbers: Vec<u64> = self.states.keys().copied().collect();
        let any = numbers[random.below(numbers.len() as u64) as usize];
        let reference = format!("disk@{any}");
        match random.below(10) {
            0..=4 => {
                let bytes = self.lab.change(1000 + self.turns);
                let run = run(&self.lab, &["--json", "snapshot", "disk.img"]);
                let number = self.numbers().last().copied().unwrap();
                let is_new = !numbers.contains(&number);
                assert!(is_new || run.code != Some(0), "{run:?}");
                self.judge(&run, is_new.then_some((number, bytes)), None);
            }
            5 | 6 => {
                let args = ["restore", &reference, "-o", "out.img", "--force"];
                let run = run(&self.lab, &args);
                if run.code == Some(0) {
                    assert!(self.lab.read("out.img") == self.states[&any], "{reference}");
                }
                self.judge(&run, None, None);
            }
            7 if numbers.len() > 3 => {
                let run = run(&self.lab, &["delete", &reference]);
                self.judge(&run, None, Some(any));
            }
            8 => {
                let run = run(&self.lab, &["list"]);
                self.judge(&run, None, None);
            }
            _ => {
                let run = run(&self.lab, &["verify"]);
                // What was damaged on the way is read again, and sound then.
                self.judge(&run, None, None);
            }
        }
    }

    /// What is listed now is what was acknowledged, and what each snapshot is, it is still.
    fn judge(&mut self, run: &Run, may_be: Option<(u64, Vec<u8>)>, dropped: Option<u64>) {
        let errors = run.err.lines().filter(|line| line.contains("error: ")).count();
        match run.code {
            // None: it was killed.
            Some(0) | None => assert_eq!(errors, 0, "{run:?}"),
            Some(1 | 3 | 4) => assert_eq!(errors, 1, "{run:?}"),
            _ => panic!("{run:?}"),
        }
        self.failed += usize::from(run.code != Some(0));
        let numbers = self.numbers();
        if let Some((number, bytes)) = may_be {
            let is_there = numbers.contains(&number);
            assert!(is_there || run.code != Some(0), "{number} was acknowledged: {numbers:?}");
            if is_there {
                self.states.insert(number, bytes);
            }
        }
        if let Some(number) = dropped {
            let is_there = numbers.contains(&number);
            assert!(!is_there || run.code != Some(0), "{number} was dropped: {numbers:?}");
            if !is_there {
                self.states.remove(&number);
            }
        }
        let known: Vec<u64> = self.states.keys().copied().collect();
        assert_eq!(numbers, known, "{run:?}");
    }

    /// All snapshots are what they are to be; says what was done. Of many turns some fail, if nothing that
    /// goes wrong can be survived always.
    pub fn end(&self, what: &str, some_fail: bool) {
        assert!(!some_fail || self.turns < MANY || self.failed > 0, "{what}: nothing went wrong");
        assert!(self.lab.done(&["verify"]).contains("no damage found"));
        for (number, bytes) in &self.states {
            self.lab.ensure_is(&format!("disk@{number}"), bytes);
        }
        let (turns, failed, count) = (self.turns, self.failed, self.states.len());
        eprintln!("{what}: {turns} turns, {failed} verbs failed, {count} snapshots left");
    }
}
