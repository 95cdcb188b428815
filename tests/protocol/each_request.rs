//! Each request that each verb makes of a store without locks goes wrong, in each way: the counterpart of
//! `tests/engine/faults.rs` and `tests/engine/power_loss`, which do that to a folder.
//!
//! A verb runs undisturbed first, and its requests are counted, those of the repository and those of what the host
//! keeps. Then it runs once for each fault of each of them, and afterwards, from a host to which nothing happens:
//!
//! - what was there before is there, or what the verb was to make of it, and each snapshot restores;
//! - who was told that it is done finds it done, and was given what an undisturbed run gives;
//! - an error is of the kind of the fault, and says of which object or image it is;
//! - what lands late changes nothing that was acknowledged;
//! - the verb runs again, as it would have otherwise;
//! - after three times twenty days, with a prune each, exactly what is named is left.
//!
//! A part of the faults is run; all of them with `IMGSNAP_FAULTS=all`. `IMGSNAP_VERB` names one verb of the table.

use crate::desk::{Desk, Seen, context, digest, held};
use crate::each_verb::{Effect, VERBS, Verb};
use crate::faulty::{Objects, Plan, Request, Wrong};
use imgsnap::store::{Act, Fault, World};
use imgsnap::{Error, ErrorKind};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// One in so many faults is run, unless all are.
const SAMPLE: u64 = 7;

/// When what is late lands.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Lands {
    Soon,
    /// After somebody has collected at once.
    Between,
    /// After somebody has collected, twenty days later.
    Later,
}

#[derive(Debug, Clone, Copy)]
struct Case {
    at: usize,
    wrong: Wrong,
    lands: Lands,
    /// The host comes back without what it kept.
    forgets: bool,
}

/// All that may become of a request.
fn cases(at: usize, request: &Request) -> Vec<Case> {
    use Fault::{Late, Lost, Twice, Unanswered};
    let case = |wrong, lands, forgets| Case { at, wrong, lands, forgets };
    let soon = |wrong| case(wrong, Lands::Soon, false);
    let mut cases = vec![
        soon(Wrong::Once(Lost)),
        soon(Wrong::Outage),
        soon(Wrong::Refused),
        soon(Wrong::Gone(Lost)),
        case(Wrong::Gone(Lost), Lands::Later, true),
    ];
    match request.act {
        Act::Read if request.is_bytes => cases.extend([Wrong::Flipped, Wrong::Short].map(soon)),
        Act::Read | Act::Pause => {}
        Act::Put | Act::Remove => {
            cases.extend([Wrong::Once(Unanswered), Wrong::Gone(Unanswered)].map(soon));
            cases.push(case(Wrong::Gone(Unanswered), Lands::Later, true));
            for lands in [Lands::Soon, Lands::Between, Lands::Later] {
                let late = [Wrong::Once(Late), Wrong::Once(Twice), Wrong::Gone(Late)];
                cases.extend(late.map(|wrong| case(wrong, lands, false)));
            }
        }
    }
    cases
}

/// What a run gives, and what is seen then.
type Run = (Result<String, ErrorKind>, Seen);

/// A verb, what is there before, and what becomes of it undisturbed.
struct Scene<'a> {
    verb: &'a Verb,
    folder: tempfile::TempDir,
    world: Objects,
    states: Objects,
    /// The live image before, and after an undisturbed run.
    live: Vec<u8>,
    written: Vec<u8>,
    before: Seen,
    /// Objects that nobody may remove yet, because they were not condemned before.
    held: Vec<String>,
    requests: Vec<Request>,
    /// Of the first run, and of a second one; and the same where the host has forgotten what it kept.
    first: [Run; 2],
    second: [Run; 2],
}

impl<'a> Scene<'a> {
    fn new(verb: &'a Verb) -> Self {
        let shm = Path::new("/dev/shm");
        let base = if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() };
        let folder = tempfile::tempdir_in(base).unwrap();
        let desk = Desk::sound(folder.path(), &World::default(), &World::default());
        (verb.setup)(&desk);
        let live = std::fs::read(folder.path().join("a")).unwrap_or_default();
        let (world, states) = (Objects::of(&desk.store.world), Objects::of(&desk.states));
        let (before, held) = (desk.seen().unwrap(), held(&desk.store.world));
        let plan = Plan::new(0, Wrong::Nothing);
        let counted = Desk::new(folder.path(), world.world(), states.world(), &plan);
        (verb.act)(&counted).unwrap();
        let requests = plan.requests();
        let written = std::fs::read(folder.path().join("a")).unwrap_or_default();
        let runs = [false, true].map(|forgets| {
            let run = |world: &World, states: &World| {
                let desk = Desk::sound(folder.path(), world, states);
                ((verb.act)(&desk).map_err(|e| e.kind()), desk.seen().unwrap())
            };
            let kept = |states: World| if forgets { World::default() } else { states };
            std::fs::write(folder.path().join("a"), &live).unwrap();
            let first = run(&world.world(), &kept(states.world()));
            std::fs::write(folder.path().join("a"), &live).unwrap();
            let (world, states) = (world.world(), states.world());
            run(&world, &states).0.unwrap();
            (first, run(&world, &kept(states)))
        });
        let [(first, second), (forgotten, again)] = runs;
        let (first, second) = ([first, forgotten], [second, again]);
        Self { verb, folder, world, states, live, written, before, held, requests, first, second }
    }

    fn live(&self) -> Vec<u8> {
        std::fs::read(self.folder.path().join("a")).unwrap_or_default()
    }

    /// A manifest that a repair reads twice, and not to its end, is damaged to it, and what only that one knew is
    /// lost (`tests/cli/repairable.rs`).
    fn is_damage(&self, case: Case) -> bool {
        let is_manifest = self.requests[case.at].name.contains("/manifest.");
        self.verb.effect == Effect::LeftOut && case.wrong == Wrong::Short && is_manifest
    }

    /// True if a verb survives it.
    fn is_put_again(&self, case: Case) -> bool {
        let Request { act, name, .. } = &self.requests[case.at];
        let is_repeated = name.contains("/manifest.") || name.contains("/marker.");
        *act == Act::Put && is_repeated && matches!(case.wrong, Wrong::Once(_))
    }

    /// True for what may be there after a failure: all that the verb does, or nothing, or what it may leave to a
    /// second run.
    fn is_possible(&self, now: &Seen) -> bool {
        let is_end = |end: &Seen| match self.verb.effect {
            Effect::Whole => end == now,
            Effect::LeftOut => end.has_all_of(now),
            Effect::Saving | Effect::RestLater => end == now || end.contents() == now.contents(),
        };
        is_end(&self.before) || is_end(&self.first[0].1)
    }

    /// True for what is seen as it should be.
    fn is_same(&self, now: &Seen, expected: &Seen) -> bool {
        now == expected
            || match self.verb.effect {
                Effect::Whole | Effect::LeftOut => false,
                Effect::RestLater => now.contents() == expected.contents(),
                Effect::Saving => now.is_twice(expected),
            }
    }

    /// True if a second run ends as one should that finds what was there before.
    fn is_as_usual(
        &self,
        is_ok: &Result<(), ErrorKind>,
        now: &Seen,
        case: Case,
        was: &Seen,
    ) -> bool {
        let forgets = usize::from(case.forgets);
        let is_like = |run: &Run| {
            let is_same_end = is_ok.as_ref().err() == run.0.as_ref().err();
            is_same_end && self.is_same(now, &run.1)
        };
        match self.verb.effect {
            // From a stage it may go on in either way; and what the host does not know it saves again.
            Effect::Saving | Effect::LeftOut => self.first.iter().chain(&self.second).any(is_like),
            _ if self.is_same(was, &self.first[0].1) => is_like(&self.second[forgets]),
            _ => is_like(&self.first[forgets]),
        }
    }

    fn run(&self, case: Case) -> Result<(), String> {
        if self.live() != self.live {
            std::fs::write(self.folder.path().join("a"), &self.live).unwrap();
        }
        let (world, mut states) = (self.world.world(), self.states.world());
        let plan = Plan::new(case.at, case.wrong);
        let desk = Desk::new(self.folder.path(), world.clone(), states.clone(), &plan);
        let outcome = (self.verb.act)(&desk);
        drop(desk);
        if case.forgets {
            states = World::default();
        }
        let sound = Desk::sound(self.folder.path(), &world, &states);
        let seen = |when: &str| sound.seen().map_err(|e| format!("{when}: {e}"));
        // A commit, or a marker, is put again until it is known to be there (C2).
        if outcome.is_err() && self.is_put_again(case) {
            return Err(format!("it is not put again: {outcome:?}"));
        }
        let (given, after) = &self.first[0];
        let now = seen("afterwards")?;
        match &outcome {
            Ok(done) if Ok(done) != given.as_ref() => {
                return Err(format!("it gave {done}, and not {given:?}"));
            }
            Ok(_) if !self.is_same(&now, after) => return Err(format!("it is not done: {now:#?}")),
            Ok(_) => {}
            Err(e) if !self.is_possible(&now) => return Err(format!("{e}: {now:#?}")),
            Err(e) => self.check_error(e, case.wrong, &now)?,
        }
        let is_whole = [&self.live, &self.written].contains(&&self.live());
        if !is_whole && !now.is_mixture() {
            return Err("the live image was written to, and nothing says so".into());
        }
        // What was seen once stays, but for the intent of a rollback that was told to have failed: until that is run
        // again, or the image is relinked, nobody takes a snapshot, although nothing was written.
        let may_begin = self.verb.effect == Effect::Saving && outcome.is_err();
        let was_done = !may_begin && self.is_same(&now, after);
        match case.lands {
            Lands::Soon => {}
            Lands::Between => sound.collect(),
            Lands::Later => sound.wait_and_collect(),
        }
        land(&world, &states);
        let now = seen("when all has landed")?;
        if !self.is_possible(&now) || was_done && !self.is_same(&now, after) {
            return Err(format!("when all has landed: {outcome:?}: {now:#?}"));
        }
        let (was, again) = (now, (self.verb.act)(&sound));
        let now = seen("after the second run")?;
        let is_ok = again.as_ref().map(drop).map_err(Error::kind);
        if !self.is_as_usual(&is_ok, &now, case, &was) {
            return Err(format!("again: {again:?}: {was:#?}, then {now:#?}"));
        }
        let there = world.names();
        let gone = self.held.iter().find(|object| !there.contains(object));
        match gone.filter(|_| case.lands != Lands::Later) {
            Some(gone) => Err(format!("{gone} is removed at once")),
            None => self.check_left(&sound, &now),
        }
    }

    /// After weeks, in which somebody prunes now and then, exactly what is named is left.
    fn check_left(&self, sound: &Desk, now: &Seen) -> Result<(), String> {
        (0..3).for_each(|_| sound.wait_and_collect());
        let then = sound.seen().map_err(|e| format!("in the end: {e}"))?;
        if !self.is_same(&then, now) {
            return Err(format!("in the end: {then:#?}"));
        }
        let repository = sound.open().unwrap();
        let (mut named, mut pins, mut needed) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for name in repository.names().unwrap() {
            let manifest = repository.list(&name, &context()).unwrap().manifest;
            let stored = manifest.snapshots.iter().chain(&manifest.dropped);
            named.extend(stored.flat_map(|s| s.files()).map(|file| format!("{name}/{file}")));
            named.extend(manifest.kept.iter().map(|file| format!("{name}/{file}")));
            named.insert(format!("{name}/manifest.{:06}", manifest.sequence));
            pins.extend(manifest.snapshots.iter().flat_map(|s| &s.pins).map(|pin| pin.id));
            needed.extend(manifest.bases_elsewhere().map(|of| of.pin));
        }
        if pins != needed {
            return Err(format!("pinned: {pins:?}, needed: {needed:?}"));
        }
        let names = sound.store.world.names();
        let is_config = |name: &&String| name.starts_with("config.") || *name == "repository.toml";
        let left: BTreeSet<String> = names.iter().filter(|n| !is_config(n)).cloned().collect();
        let is_last = |name: &&String| {
            let image = name.split_once("/manifest.").map(|(image, _)| format!("{image}/"));
            image.is_some_and(|image| left.iter().filter(|n| n.starts_with(&image)).count() == 1)
        };
        let wrong: Vec<&String> =
            left.symmetric_difference(&named).filter(|name| !is_last(name)).collect();
        if wrong.is_empty() { Ok(()) } else { Err(format!("left, or missing: {wrong:?}")) }
    }

    fn check_error(&self, error: &Error, wrong: Wrong, now: &Seen) -> Result<(), String> {
        let (kind, line) = (error.kind(), error.to_string());
        let is_fitting = match wrong {
            // Its own manifest, which is there: who rules cannot be told.
            Wrong::Short if line.contains("it is not known whether") => true,
            // What this host has kept has no checksum, and the byte in its middle may be one of the path of the
            // image: that is another path then, which is refused.
            Wrong::Flipped if line.contains("\"a\" is already the name of ") => {
                kind == ErrorKind::AlreadyExists
            }
            // ... or which inode it had.
            Wrong::Flipped if line.contains("the last snapshot of \"a\" was not taken of ") => {
                kind == ErrorKind::Mismatch
            }
            Wrong::Flipped if line.contains("cannot find ") => kind == ErrorKind::NotFound,
            // The byte may be the one that says which version a manifest has: what a later program writes is not
            // known, nor where its checksum lies.
            Wrong::Flipped if line.contains("it was written by a later imgsnap") => {
                kind == ErrorKind::Unsupported
            }
            Wrong::Flipped | Wrong::Short => kind == ErrorKind::Corrupt,
            Wrong::Refused => matches!(kind, ErrorKind::Io | ErrorKind::Unavailable),
            _ => kind == ErrorKind::Unavailable,
        };
        let is_placed = ["memory:", "\"a\"", "a@", "a: "].iter().any(|place| line.contains(place));
        if !is_fitting || !is_placed || line.contains('\n') {
            return Err(format!("{kind:?}: {line}"));
        }
        let is_prune = self.verb.name.starts_with("prune");
        if is_prune && line.contains("nothing was dropped") && *now != self.before {
            return Err(format!("something was: {line}"));
        }
        Ok(())
    }
}

/// All that is on its way arrives.
fn land(world: &World, states: &World) {
    for store in [world, states] {
        while store.late_requests() > 0 {
            store.land(0);
        }
    }
}

#[test]
fn each_request_of_each_verb_may_go_wrong() {
    let is_all = std::env::var("IMGSNAP_FAULTS").is_ok_and(|faults| faults == "all");
    let only = std::env::var("IMGSNAP_VERB").ok();
    let is_meant = |verb: &&Verb| only.as_deref().is_none_or(|only| verb.name.contains(only));
    let verbs: Vec<&Verb> = VERBS.iter().filter(is_meant).collect();
    let (next, requests, faults) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let wrong: Mutex<Vec<String>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().unwrap().get() {
            scope.spawn(|| {
                while let Some(verb) = verbs.get(next.fetch_add(1, Relaxed)) {
                    let scene = Scene::new(verb);
                    requests.fetch_add(scene.requests.len(), Relaxed);
                    let all = scene.requests.iter().enumerate().flat_map(|(at, r)| cases(at, r));
                    let is_run = |case: &Case| {
                        let drawn = digest(format!("{case:?} {}", verb.name).as_bytes());
                        !scene.is_damage(*case) && (is_all || drawn.is_multiple_of(SAMPLE))
                    };
                    for case in all.filter(is_run) {
                        faults.fetch_add(1, Relaxed);
                        let ran = catch_unwind(AssertUnwindSafe(|| scene.run(case)));
                        if let Err(what) = ran.unwrap_or_else(|_| Err("a panic".into())) {
                            let request = &scene.requests[case.at];
                            let what = format!("{}: {case:?}: {request:?}: {what}", verb.name);
                            wrong.lock().unwrap().push(what);
                        }
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    let (requests, faults) = (requests.into_inner(), faults.into_inner());
    println!("{} verbs, {requests} requests, {faults} faults", verbs.len());
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
}
