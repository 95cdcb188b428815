//! What was tried, and what came of it.

use crate::fault::{Fault, Hit, What};
use crate::judge::Ending;
use crate::lab::Lab;
use crate::say;
use crate::verbs::Verb;
use std::collections::BTreeSet;
use std::io::Write;

/// What came of the faults of one verb.
pub struct Tally {
    verb: Verb,
    faults: u64,
    kills: u64,
    survived: u64,
    missed: u64,
    wrong: u64,
    errors: BTreeSet<String>,
}

impl Tally {
    pub fn new(verb: &Verb) -> Self {
        let (verb, errors) = (verb.clone(), BTreeSet::new());
        Self { verb, faults: 0, kills: 0, survived: 0, missed: 0, wrong: 0, errors }
    }

    /// This time the verb did not make that call.
    pub fn missed(&mut self) {
        self.missed += 1;
    }

    pub fn add(&mut self, lab: &Lab, fault: &Fault, hit: &Hit, verdict: Result<Ending, String>) {
        if fault.what == What::Kill {
            self.kills += 1;
        } else {
            self.faults += 1;
        }
        let root = lab.run().display().to_string();
        if let Some(output) = &hit.output {
            let err = String::from_utf8_lossy(&output.stderr).replace(&root, "");
            self.errors.extend(err.lines().map(anonymous));
        }
        match verdict {
            Ok(ending) => self.survived += u64::from(ending == Ending::Survived),
            Err(what) => {
                let (args, place) = (self.verb.args, hit.place.replace(&root, ""));
                let what = what.replace(&root, "");
                say(format!("wrong: imgsnap {args}: {fault}: {place}\n    {what}").trim_end());
                self.wrong += 1;
            }
        }
    }

    pub fn line(&self) -> String {
        let Self { faults, kills, survived, missed, wrong, .. } = self;
        let args = format!("{} ({:?})", self.verb.args, self.verb.place);
        format!(
            "{args:<70} faults {faults:>4}, survived {survived:>4}, kills {kills:>4}, \
             not reached {missed:>2}, wrong {wrong}"
        )
    }
}

/// Without what differs from run to run.
fn anonymous(line: &str) -> String {
    let mut words = Vec::new();
    for word in line.split_inclusive([' ', '/', '.', ',', ';', ':']) {
        let hex = word.chars().filter(char::is_ascii_hexdigit).count();
        words.push(if hex > 9 { "*" } else { word });
    }
    words.concat()
}

/// Says what was tried, and fails if anything is wrong.
pub fn conclude(tallies: Vec<Tally>, is_all: bool, seed: u64) {
    let sum = |of: fn(&Tally) -> u64| tallies.iter().map(of).sum::<u64>();
    let (faults, kills) = (sum(|t| t.faults), sum(|t| t.kills));
    let (survived, missed) = (sum(|t| t.survived), sum(|t| t.missed));
    let of = if is_all { "all".into() } else { format!("drawn with seed {seed}") };
    say(&format!(
        "{faults} faults ({survived} survived) and {kills} kills in {} verbs, {of}; {missed} not reached",
        tallies.len()
    ));
    if let Some(path) = std::env::var_os("IMGSNAP_FAULT_ERRORS") {
        let errors: BTreeSet<&String> = tallies.iter().flat_map(|t| &t.errors).collect();
        let mut file = std::fs::File::options().append(true).create(true).open(path).unwrap();
        errors.iter().for_each(|line| writeln!(file, "{line}").unwrap());
    }
    let wrong = sum(|t| t.wrong);
    assert_eq!(
        wrong, 0,
        "after so many of them, things were not as they should be; they are told above"
    );
    assert!(faults + kills > 0, "nothing was tried");
}
