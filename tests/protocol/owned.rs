//! The rules of a repository that has an owner, as a model of their own that is explored to its end: an owner
//! who takes snapshots, drops, removes and collects, a host without the key that takes some, and a thief without
//! it who puts whatever a store lets him put: manifests that drop or condemn everything, signed ones that he has
//! kept, under their own numbers and under others, and numbers far ahead (FORMAT.md V3, V4, V5).

use crate::explore::{Model, explore};
use std::collections::BTreeMap;

/// A set of snapshots, each by the task that takes it.
type Snapshots = u8;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Manifest {
    id: u8,
    /// The number that the owner signed; none if somebody else made it.
    signed: Option<u8>,
    /// The one that counted when it was made; 0 for none.
    previous: u8,
    snapshots: Snapshots,
    condemned: Snapshots,
}

/// A mistake that is planted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mistake {
    /// Whatever has the highest number rules.
    AllCount,
    /// What only adds counts, whatever it follows.
    PreviousIgnored,
    /// Numbers may have gaps.
    GapsCount,
    /// The number is not signed.
    NumberUnsigned,
    /// What a manifest condemns counts, whoever made it.
    CondemnedByAnybody,
    /// All manifests before the one that rules are collected, as they are where everybody's count.
    SinceSignedCollected,
    /// The next number is the one after the last manifest that counts.
    SkippedReused,
    /// An image that is removed leaves no manifest.
    NoTombstone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum At {
    Think,
    Put(u8, Manifest),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    manifests: BTreeMap<u8, Manifest>,
    data: Snapshots,
    /// Whose data was there once.
    uploaded: Snapshots,
    /// Taken, told to be so, and not dropped by the owner.
    acknowledged: Snapshots,
    /// Signed manifests that the thief has seen, at their numbers.
    seen: BTreeMap<u8, Manifest>,
    owner: (usize, At),
    host: (usize, At),
    /// What the thief may still do.
    puts: u8,
    next_id: u8,
}

/// What the owner does, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Task {
    Take,
    DropAll,
    Remove,
    Collect,
}

struct Owned {
    owner: &'static [Task],
    /// How many snapshots the other host takes.
    takes: usize,
    puts: u8,
    mistake: Option<Mistake>,
}

/// What counts, and the last number that is taken.
struct Ruling {
    manifest: Manifest,
    number: u8,
    /// Of the last signed one.
    signed: u8,
    last: u8,
}

/// Numbers end there.
const FAR: u8 = 40;
/// Nobody needs to make so many manifests.
const STUCK: u8 = 16;

impl Owned {
    fn is(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    fn ruling(&self, manifests: &BTreeMap<u8, Manifest>) -> Option<Ruling> {
        let is_signed = |number: u8, m: &Manifest| match m.signed {
            Some(signed) => signed == number || self.is(Mistake::NumberUnsigned),
            None => self.is(Mistake::AllCount),
        };
        let anchor = manifests.iter().rev().find(|(number, m)| is_signed(**number, m));
        let (mut number, mut counts) = match anchor {
            Some((number, manifest)) => (*number, *manifest),
            None => return None,
        };
        let (signed, mut at) = (number, number);
        let mut gaps = manifests.range(number + 1..);
        loop {
            let next = match self.is(Mistake::GapsCount) {
                true => gaps.next().map(|(number, m)| (*number, m)),
                false => manifests.get(&(at + 1)).map(|m| (at + 1, m)),
            };
            let Some((next, manifest)) = next else { break };
            at = next;
            let follows = manifest.previous == counts.id || self.is(Mistake::PreviousIgnored);
            let keeps = counts.snapshots & !manifest.snapshots == 0
                || manifest.previous != counts.id && self.is(Mistake::PreviousIgnored);
            let condemns = manifest.condemned != counts.condemned
                && !self.is(Mistake::CondemnedByAnybody)
                && !self.is(Mistake::PreviousIgnored);
            if follows && keeps && !condemns {
                (number, counts) = (at, *manifest);
            }
        }
        Some(Ruling { manifest: counts, number, signed, last: at })
    }

    /// Somebody reads what rules, and makes what follows it.
    fn next(&self, state: &mut State, signs: bool, snapshots: Snapshots) -> At {
        let ruling = self.ruling(&state.manifests);
        let number = ruling.as_ref().map_or(1, |ruling| match self.is(Mistake::SkippedReused) {
            true => ruling.number + 1,
            false => ruling.last + 1,
        });
        let before = ruling.map(|ruling| ruling.manifest);
        state.next_id += 1;
        let dropped = before.map_or(0, |before| before.snapshots & !snapshots);
        let condemned = before.map_or(0, |before| before.condemned) | dropped;
        let previous = before.map_or(0, |before| before.id);
        let signed = signs.then_some(number);
        At::Put(number, Manifest { id: state.next_id, signed, previous, snapshots, condemned })
    }

    /// True if what a host put counts.
    fn has_won(&self, state: &State, put: &Manifest) -> bool {
        self.ruling(&state.manifests).is_some_and(|ruling| ruling.manifest.id == put.id)
    }

    fn counts(&self, state: &State) -> Snapshots {
        self.ruling(&state.manifests).map_or(0, |ruling| ruling.manifest.snapshots)
    }

    fn owner_steps(&self, state: &State, out: &mut Vec<(String, State)>) {
        let (index, at) = state.owner;
        let Some(task) = self.owner.get(index) else { return };
        let mut next = state.clone();
        let step = format!("the owner: {task:?} {at:?}");
        match (task, at) {
            (Task::Collect, _) => {
                let Some(ruling) = self.ruling(&state.manifests) else { return };
                let needed = match self.is(Mistake::SinceSignedCollected) {
                    true => ruling.number,
                    false => ruling.signed.min(ruling.number),
                };
                next.manifests.retain(|number, _| *number >= needed);
                next.data &= !ruling.manifest.condemned;
                next.owner = (index + 1, At::Think);
            }
            (Task::Take, At::Think) => {
                let taken = 1 << index;
                (next.data, next.uploaded) = (next.data | taken, next.uploaded | taken);
                let all = self.counts(state) | taken;
                next.owner.1 = self.next(&mut next, true, all);
            }
            (Task::DropAll | Task::Remove, At::Think) => {
                next.owner.1 = self.next(&mut next, true, 0);
            }
            (_, At::Put(number, manifest)) => {
                let is_free = !next.manifests.contains_key(&number);
                if is_free {
                    next.manifests.insert(number, manifest);
                    next.seen.insert(number, manifest);
                }
                next.owner = match is_free && self.has_won(&next, &manifest) {
                    true => {
                        next.acknowledged = match task {
                            Task::Take => next.acknowledged | manifest.snapshots & next.data,
                            _ => next.acknowledged & !manifest.condemned,
                        };
                        if *task == Task::Remove && self.is(Mistake::NoTombstone) {
                            next.manifests.clear();
                            next.data = 0;
                        }
                        (index + 1, At::Think)
                    }
                    false => (index, At::Think),
                };
            }
        }
        out.push((step, next));
    }

    fn host_steps(&self, state: &State, out: &mut Vec<(String, State)>) {
        let (index, at) = state.host;
        if index == self.takes {
            return;
        }
        let mut next = state.clone();
        match at {
            At::Think => {
                let taken = 1 << (self.owner.len() + index);
                (next.data, next.uploaded) = (next.data | taken, next.uploaded | taken);
                let all = self.counts(state) | taken;
                next.host.1 = self.next(&mut next, false, all);
            }
            At::Put(number, manifest) => {
                let is_free = !next.manifests.contains_key(&number);
                if is_free {
                    next.manifests.insert(number, manifest);
                }
                let has_won = is_free && self.has_won(&next, &manifest);
                if has_won {
                    next.acknowledged |= manifest.snapshots & next.data & !manifest.condemned;
                }
                next.host = (index + usize::from(has_won), At::Think);
            }
        }
        out.push((format!("the host: {at:?}"), next));
    }

    /// Whatever a store lets him put.
    fn thief_steps(&self, state: &State, out: &mut Vec<(String, State)>) {
        if state.puts == 0 {
            return;
        }
        let ruling = self.ruling(&state.manifests);
        let last = ruling.as_ref().map_or(0, |ruling| ruling.last);
        let before = ruling.map(|ruling| ruling.manifest);
        let id = state.next_id + 1;
        let mut made = Vec::new();
        for previous in [before.map_or(0, |before| before.id), 0, 99] {
            for snapshots in [0, before.map_or(0, |before| before.snapshots)] {
                for condemned in [0, before.map_or(0, |b| b.condemned), Snapshots::MAX] {
                    made.push(Manifest { id, signed: None, previous, snapshots, condemned });
                }
            }
        }
        let seen = state.seen.values().copied();
        let again = seen.flat_map(|m| [(last + 1, m), (m.signed.unwrap_or(1), m), (FAR - 1, m)]);
        let new = made.into_iter().flat_map(|m| [(last + 1, m), (1, m), (FAR - 1, m)]);
        for (number, manifest) in again.chain(new) {
            if state.manifests.contains_key(&number) {
                continue;
            }
            let mut next = state.clone();
            next.puts -= 1;
            next.next_id = id;
            next.manifests.insert(number, manifest);
            out.push((format!("the thief: {number} {manifest:?}"), next));
        }
    }
}

impl Model for Owned {
    type State = State;
    type Step = String;

    fn first(&self) -> State {
        // An image that is there, and signed. The name of another one is free to whoever comes first.
        let (snapshots, condemned) = (0, 0);
        let first = Manifest { id: 1, signed: Some(1), previous: 0, snapshots, condemned };
        State {
            manifests: BTreeMap::from([(1, first)]),
            data: 0,
            uploaded: 0,
            acknowledged: 0,
            seen: BTreeMap::from([(1, first)]),
            owner: (0, At::Think),
            host: (0, At::Think),
            puts: self.puts,
            next_id: 1,
        }
    }

    fn steps(&self, state: &State) -> Vec<(String, State)> {
        let mut out = Vec::new();
        // A host that begins anew again and again is stuck.
        if state.next_id < STUCK {
            self.owner_steps(state, &mut out);
            self.host_steps(state, &mut out);
            self.thief_steps(state, &mut out);
        }
        out
    }

    fn check(&self, state: &State) -> Result<(), String> {
        let counts = self.counts(state);
        if state.acknowledged & !counts != 0 {
            return Err(format!("{:b} was taken, and does not count any more", state.acknowledged));
        }
        if state.acknowledged & !state.data != 0 {
            return Err(format!("{:b} was taken, and is gone", state.acknowledged));
        }
        let is_back = counts & !state.data & state.uploaded;
        if is_back != 0 && state.puts < self.puts {
            return Err(format!("{is_back:b} counts again, and is gone"));
        }
        Ok(())
    }

    fn check_end(&self, state: &State) -> Result<(), String> {
        let is_done = state.owner.0 == self.owner.len() && state.host.0 == self.takes;
        if is_done { Ok(()) } else { Err("somebody can do nothing any more".into()) }
    }
}

const SCENARIOS: [(&[Task], usize); 4] = [
    (&[Task::Take, Task::DropAll, Task::Collect], 1),
    (&[Task::Take, Task::Take, Task::Collect], 1),
    (&[Task::Take, Task::Remove, Task::Collect], 0),
    (&[Task::Collect, Task::Collect], 2),
];

fn scenario((owner, takes): (&'static [Task], usize), mistake: Option<Mistake>) -> Owned {
    Owned { owner, takes, puts: 2, mistake }
}

const MAX_STATES: usize = 20_000_000;

#[test]
fn who_has_not_the_owner_key_drops_and_blocks_nothing() {
    for of in SCENARIOS {
        let explored = explore(&scenario(of, None), MAX_STATES);
        let explored = explored.unwrap_or_else(|found| panic!("{:?}: {found:#?}", of.0));
        println!("{:?}, {} by the host: {explored:?}", of.0, of.1);
        assert!(explored.ends > 0);
    }
}

#[test]
fn each_mistake_about_the_owner_is_found() {
    let stuck = "can do nothing any more";
    // Where it is found first.
    for (mistake, index, what) in [
        (Mistake::AllCount, 0, "does not count any more"),
        (Mistake::PreviousIgnored, 0, "does not count any more"),
        (Mistake::GapsCount, 0, "does not count any more"),
        (Mistake::NumberUnsigned, 0, "does not count any more"),
        (Mistake::CondemnedByAnybody, 0, "is gone"),
        (Mistake::SinceSignedCollected, 3, "does not count any more"),
        (Mistake::SkippedReused, 3, stuck),
        (Mistake::NoTombstone, 2, "counts again, and is gone"),
    ] {
        let explored = explore(&scenario(SCENARIOS[index], Some(mistake)), MAX_STATES);
        let found = explored.err().unwrap_or_else(|| panic!("{mistake:?} is not found"));
        assert!(found.what.contains(what), "{mistake:?}: {found:#?}");
    }
}
