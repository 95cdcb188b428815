//! The real code under random schedules of a store without locks: three hosts, of which two see the live images
//! and the third only the repository, snapshot, restore, delete, prune, merge, label, forget and begin anew,
//! while requests are lost, delayed and carried out twice, hosts sleep and die, and days pass.
//!
//! `IMGSNAP_SCHEDULES` says how many, `IMGSNAP_SCHEDULES_FROM` from which on; `IMGSNAP_SCHEDULE` runs one of them,
//! and tells it turn by turn.

use crate::random::Random;
use crate::turns::{Alone, Before, Seat, Sleeper, Trouble, Turns};
use imgsnap::image::write::Stream;
use imgsnap::repo::host::HostState;
use imgsnap::repo::retention::{Count, Rules};
use imgsnap::store::{MemoryStore, Sharing, World};
use imgsnap::tracking::Recheck;
use imgsnap::{
    At, Context, Defaults, ErrorKind, Outcome, PruneRequest, Repository, RestoreRequest,
    RestoreTarget, SnapshotRequest, Track, VerifyScope,
};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

const HOSTS: usize = 3;
const IMAGES: [&str; 2] = ["a", "b"];
const IMAGE_BYTES: u64 = 3 * 4096;
const DAY: Duration = Duration::from_secs(24 * 3600);
const GRACE: Duration = Duration::from_secs(3 * 24 * 3600);
const MARKER_HOURS: u64 = 14 * 24;
const SHARING: Sharing =
    Sharing::Shared { grace: GRACE, marker_life: Duration::from_secs(MARKER_HOURS * 3600) };

/// What is known of the snapshots, by id.
#[derive(Default)]
struct Known {
    /// What they hold.
    contents: HashMap<uuid::Uuid, Vec<u8>>,
    /// Those that must be there at the end, with their image; none of an image that somebody forgot.
    kept: HashMap<uuid::Uuid, &'static str>,
    forgotten: BTreeSet<&'static str>,
    /// Of which image each is.
    images: HashMap<uuid::Uuid, &'static str>,
    /// Somebody asked for them to be deleted, and was told that they are.
    to_delete: HashSet<uuid::Uuid>,
    gone: HashSet<uuid::Uuid>,
    protected: HashSet<uuid::Uuid>,
    /// Labels of which somebody was told that they are not given, because others were faster.
    refused: HashSet<String>,
    /// Who takes a snapshot of which image.
    busy: [usize; 2],
}

impl Known {
    /// Who was told that others were faster has changed nothing, and will not (C2).
    fn refuse(&mut self, label: Option<String>, error: &imgsnap::Error) {
        if error.kind() == ErrorKind::Busy {
            self.refused.extend(label);
        }
    }
}

struct Scene {
    seed: u64,
    folder: PathBuf,
    turns: Arc<Turns>,
    /// Who sleeps for long, while the others go on without new snapshots.
    sleeper: Option<usize>,
    world: World,
    /// What the machines remember.
    states: World,
    known: Mutex<Known>,
}

/// What a machine knows of the live images: the hosts 0 and 1 are processes of one, 2 is another.
fn machine(states: &World, host: usize) -> HostState {
    let store = MemoryStore::new(states.clone(), Arc::new(Alone), SHARING);
    HostState::in_store(Arc::new(store), if host == 2 { "another" } else { "one" })
}

impl Scene {
    fn path(&self, image: usize) -> PathBuf {
        self.folder.join(IMAGES[image])
    }

    fn fail(&self, host: usize, what: &str) -> ! {
        panic!("schedule {}: host {host}: {what}; {:#?}", self.seed, self.world.names())
    }

    /// Whatever happens, nothing is damaged, nobody has made a mistake, and what a marker holds stays. `begun` is
    /// the hour.
    fn check(&self, host: usize, verb: &str, begun: u64, error: &imgsnap::Error) {
        use ErrorKind::{AlreadyExists, Busy, InvalidInput, NotFound, Unavailable};
        if error.kind() == ErrorKind::Mismatch && error.to_string().contains("protected") {
            return;
        }
        if !matches!(error.kind(), AlreadyExists | Busy | InvalidInput | NotFound | Unavailable) {
            self.fail(host, &format!("{verb}: {:?}: {error}", error.kind()));
        }
        let line = error.to_string();
        let is_gone = line.contains("while it was read") || line.contains(".delta does not exist");
        if is_gone && self.turns.hours() - begun < MARKER_HOURS {
            self.fail(host, &format!("{verb} is disturbed: {line}"));
        }
    }

    fn snapshot(&self, repository: &Repository, host: usize, image: usize, random: &mut Random) {
        let mut known = self.known.lock().unwrap();
        known.busy[image] += 1;
        if known.busy[image] == 1 {
            let block = random.bytes(4096);
            let file = std::fs::OpenOptions::new().write(true).open(self.path(image)).unwrap();
            file.write_all_at(&block, 4096 * random.below(IMAGE_BYTES / 4096)).unwrap();
        }
        let content = std::fs::read(self.path(image)).unwrap();
        drop(known);
        let label = (random.below(3) == 0).then(|| format!("keep-{:016x}", random.next()));
        let request = SnapshotRequest::new(self.path(image).as_path())
            .name(Some(IMAGES[image].into()))
            .label(label.clone())
            .track(Some(Track::None))
            .recheck(Some(Recheck::Share(0.0)))
            .skip_unchanged(random.below(4) == 0)
            .is_raw(true);
        let begun = self.turns.hours();
        let taken = repository.snapshot(&request, &context());
        let mut known = self.known.lock().unwrap();
        known.busy[image] -= 1;
        match taken {
            Ok(outcome) => {
                let id = outcome.snapshot.id;
                known.images.insert(id, IMAGES[image]);
                let before = known.contents.insert(id, content.clone());
                assert!(before.is_none_or(|before| before == content), "{}", self.seed);
                if outcome.outcome == Outcome::Taken && label.is_some() {
                    known.kept.insert(id, IMAGES[image]);
                }
            }
            Err(e) => {
                known.refuse(label, &e);
                drop(known);
                self.check(host, "snapshot", begun, &e)
            }
        }
    }

    fn restore(&self, repository: &Repository, host: usize, image: usize, random: &mut Random) {
        let (context, begun) = (context(), self.turns.hours());
        let listed = match repository.list(IMAGES[image], &context) {
            Ok(listed) => listed.manifest.snapshots,
            Err(e) => return self.check(host, "list", begun, &e),
        };
        if listed.is_empty() {
            return;
        }
        let snapshot = &listed[random.below(listed.len() as u64) as usize];
        let mut bytes = Vec::new();
        let mut stream = Stream::new(&mut bytes, "memory");
        let request = RestoreRequest::new(IMAGES[image]).at(At::Number(snapshot.number));
        let target = RestoreTarget::Target(&mut stream);
        match repository.restore(&request, target, &context) {
            Ok(outcome) => {
                let known = self.known.lock().unwrap();
                // It may have been forgotten, and another one been given its number.
                let expected = known.contents.get(&outcome.snapshot.id);
                if expected.is_some_and(|expected| *expected != bytes) {
                    drop(known);
                    self.fail(host, &format!("{}@{} is wrong", IMAGES[image], snapshot.number));
                }
            }
            Err(e) => self.check(host, "restore", begun, &e),
        }
    }

    /// Drops any snapshot but those with a label.
    fn delete(&self, repository: &Repository, host: usize, image: usize, random: &mut Random) {
        let (context, begun) = (context(), self.turns.hours());
        let Ok(listed) = repository.list(IMAGES[image], &context) else { return };
        let free: Vec<(uuid::Uuid, u64)> = listed
            .manifest
            .snapshots
            .iter()
            .filter(|s| s.label.is_none())
            .map(|s| (s.id, s.number))
            .collect();
        if free.is_empty() {
            return;
        }
        let (id, number) = free[random.below(free.len() as u64) as usize];
        let mut known = self.known.lock().unwrap();
        known.to_delete.insert(id);
        let is_protected = known.protected.contains(&id);
        drop(known);
        let compact = random.below(2) == 0;
        let deleted = repository.delete(IMAGES[image], &At::Number(number), compact, &context);
        match deleted {
            // Another image may have its name and number by now.
            Ok(deleted) if deleted.snapshot.id == id && is_protected => {
                self.fail(host, "what was protected is deleted")
            }
            Ok(deleted) => {
                self.known.lock().unwrap().gone.insert(deleted.snapshot.id);
            }
            Err(e) => self.check(host, "delete", begun, &e),
        }
    }

    /// Labels a snapshot, so that no rule drops it, or protects it.
    fn keep(&self, repository: &Repository, host: usize, image: usize, random: &mut Random) {
        let (name, context, begun) = (IMAGES[image], context(), self.turns.hours());
        let Ok(listed) = repository.list(name, &context) else { return };
        let listed = listed.manifest.snapshots;
        let Some(number) = listed.get(random.below(8) as usize).map(|s| s.number) else { return };
        let (at, label) = (At::Number(number), format!("keep-{:016x}", random.next()));
        let is_protecting = random.below(2) == 0;
        let kept = match is_protecting {
            true => repository.protect(name, &at, true, &context),
            false => repository.label(name, &at, Some(&label), &context),
        };
        match kept {
            Ok(kept) => {
                let mut known = self.known.lock().unwrap();
                known.kept.insert(kept.id, name);
                if is_protecting {
                    known.protected.insert(kept.id);
                }
            }
            Err(e) => {
                self.known.lock().unwrap().refuse((!is_protecting).then_some(label), &e);
                self.check(host, "label", begun, &e)
            }
        }
    }

    fn forget(&self, repository: &Repository, host: usize, name: &'static str) {
        let mut known = self.known.lock().unwrap();
        // Before: a snapshot that is taken meanwhile may be forgotten, too.
        known.forgotten.insert(name);
        let of_image = |id: &&uuid::Uuid| known.images.get(id) == Some(&name);
        let there: Vec<uuid::Uuid> = known.contents.keys().filter(of_image).copied().collect();
        drop(known);
        let begun = self.turns.hours();
        match repository.forget(name, &context()) {
            Ok(_) => self.known.lock().unwrap().gone.extend(there),
            Err(e) => self.check(host, "forget", begun, &e),
        }
    }

    fn run(&self, host: usize) {
        // Also if it panics: the others must not wait for it.
        let _end = End { turns: &self.turns, host };
        let seat = Arc::new(Seat { turns: self.turns.clone(), host });
        let mut random = Random(self.seed.wrapping_mul(31).wrapping_add(host as u64));
        let store = Arc::new(MemoryStore::new(self.world.clone(), seat, SHARING));
        if let Ok(repository) = Repository::open_in(store, machine(&self.states, host)) {
            let is_alone = self.sleeper == Some(host);
            let steps = if is_alone || self.sleeper.is_none() { 2 } else { 5 } + random.below(3);
            for _ in 0..steps {
                self.step(&repository, host, &mut random);
                if self.turns.is_dead(host) {
                    break;
                }
            }
        }
    }

    fn step(&self, repository: &Repository, host: usize, random: &mut Random) {
        let (context, begun) = (context(), self.turns.hours());
        let image = random.below(8) as usize / 6;
        let name = IMAGES[image];
        // A snapshot would take its number from one whose host sleeps, and a commit that nothing else hinders is
        // what the rules are for.
        let is_meanwhile = self.sleeper.is_some_and(|sleeper| sleeper != host);
        let verbs = match is_meanwhile {
            true if random.below(3) == 0 => 3,
            true if random.below(2) == 0 => return self.keep(repository, host, image, random),
            true => 10,
            false if host == 2 => 10,
            false => 16,
        };
        let outcome = match random.below(verbs) {
            0 => repository.prune(name, &rules(1 + random.below(2)), &context).map(drop),
            1 | 2 => return self.delete(repository, host, image, random),
            3 => {
                let scope = VerifyScope::Image(name.into());
                match repository.verify(&scope, false, &context) {
                    Ok(verified) if !verified.damaged.is_empty() => {
                        self.fail(host, &format!("verify: {verified:?}"))
                    }
                    other => other.map(drop),
                }
            }
            4 if random.below(6) == 0 => return self.forget(repository, host, name),
            5 if random.below(4) == 0 => repository.repair(name, &context).map(drop),
            5 => repository.flatten(name, &At::Latest, &context).map(drop),
            8 | 9 => return self.keep(repository, host, image, random),
            4 | 6 | 7 => return self.restore(repository, host, image, random),
            _ => return self.snapshot(repository, host, image, random),
        };
        if let Err(e) = outcome {
            self.check(host, "a verb", begun, &e);
        }
    }

    /// All that was on its way has arrived, and nobody else is there.
    fn end(&self) {
        while self.world.late_requests() > 0 {
            self.world.land(0);
        }
        let store = MemoryStore::new(self.world.clone(), Arc::new(Alone), SHARING);
        let host = machine(&self.states, 2);
        let repository = Repository::open_in(Arc::new(store), host).unwrap();
        let context = context();
        let known = self.known.lock().unwrap();
        // Who has an image can remove what is left of others that were forgotten.
        let one = SnapshotRequest::new(self.path(0).as_path()).name(Some("one".into()));
        repository.snapshot(&one.track(Some(Track::None)).is_raw(true), &context).unwrap();
        for _ in 0..3 {
            self.world.pass(20 * DAY);
            repository.prune("one", &rules(2), &context).unwrap();
        }
        let objects = self.world.names();
        for name in
            IMAGES.iter().filter(|name| !repository.names().unwrap().contains(&(**name).into()))
        {
            let mut left =
                objects.iter().filter_map(|object| object.strip_prefix(&format!("{name}/")));
            let is_last = |file: &str| file.starts_with("manifest.");
            assert!(
                left.clone().count() <= 1 && left.all(is_last),
                "schedule {}: {name}",
                self.seed
            );
        }
        for name in repository.names().unwrap() {
            for _ in 0..3 {
                self.world.pass(20 * DAY);
                repository.prune(&name, &rules(2), &context).unwrap();
            }
            let manifest = repository.list(&name, &context).unwrap().manifest;
            let objects = self.world.names();
            let prefix = format!("{name}/");
            let there: BTreeSet<&str> =
                objects.iter().filter_map(|object| object.strip_prefix(&prefix)).collect();
            let stored = manifest.snapshots.iter().chain(&manifest.dropped);
            let ruling = format!("manifest.{:06}", manifest.sequence);
            let named: BTreeSet<&str> =
                stored.map(|s| s.file.as_str()).chain([ruling.as_str()]).collect();
            assert_eq!(there, named, "schedule {}: {name}", self.seed);
            for snapshot in &manifest.snapshots {
                let at = At::Number(snapshot.number);
                let mut bytes = Vec::new();
                let mut stream = Stream::new(&mut bytes, "memory");
                let request = RestoreRequest::new(name.as_str()).at(at);
                let target = RestoreTarget::Target(&mut stream);
                repository.restore(&request, target, &context).unwrap();
                // One of which it was not known whether it was taken.
                let Some(expected) = known.contents.get(&snapshot.id) else { continue };
                assert!(*expected == bytes, "schedule {}: {name}@{}", self.seed, snapshot.number);
            }
        }
        let names = repository.names().unwrap();
        let list = |name: &String| repository.list(name, &context).unwrap().manifest.snapshots;
        let listed: BTreeMap<uuid::Uuid, Option<String>> =
            names.iter().flat_map(list).map(|s| (s.id, s.label)).collect();
        let is_refused = |label: &String| known.refused.contains(label);
        assert!(!listed.values().flatten().any(is_refused), "schedule {}", self.seed);
        assert!(listed.keys().all(|id| !known.gone.contains(id)), "schedule {}", self.seed);
        let is_wanted = |id: &uuid::Uuid, image: &str| {
            !known.to_delete.contains(id) && !known.forgotten.contains(image)
        };
        for (id, image) in known.kept.iter().filter(|(id, image)| is_wanted(id, image)) {
            assert!(listed.contains_key(id), "schedule {}: of {image}, {id} is lost", self.seed);
        }
    }
}

struct End<'a> {
    turns: &'a Turns,
    host: usize,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.turns.end(self.host);
    }
}

/// To make one asks the system how many processors there are, which takes longer than most of what follows.
static CONTEXT: LazyLock<Context> = LazyLock::new(|| Context::silent().with_threads(1));

fn context() -> Context {
    CONTEXT.clone()
}

fn rules(last: u64) -> PruneRequest {
    let rules = Rules {
        last: Some(Count::Most(last)),
        labels: vec!["keep-*".parse().unwrap()],
        ..Rules::default()
    };
    PruneRequest::new().rules(Some(rules)).compact(true)
}

/// How much goes wrong: nothing but turns, or more and more.
fn trouble(random: &mut Random) -> Trouble {
    let draw = |random: &mut Random, most: u64| match random.below(3) {
        0 => 0,
        _ => random.below(most),
    };
    let faults = draw(random, 150);
    let (sleeps, deaths, days) = (draw(random, 100), draw(random, 15), draw(random, 80));
    let sleeper = (random.below(3) == 0).then(|| Sleeper {
        host: random.below(HOSTS as u64) as usize,
        before: Before::ALL[random.below(Before::ALL.len() as u64) as usize],
        skipped: random.below(4),
        hours: 24 * [4, 10, 20, 40][random.below(4) as usize],
    });
    Trouble { faults, sleeps, deaths, days, sleeper }
}

/// Gives the number of turns.
fn run(seed: u64, folder: &Path) -> u64 {
    let mut random = Random(seed.wrapping_mul(0x5851_f42d_4c95_7f2d));
    let world = World::default();
    let (order, trouble) = (random.next(), trouble(&mut random));
    let sleeper = trouble.sleeper.map(|sleeper| sleeper.host);
    let turns = Turns::new(HOSTS, order, trouble, world.clone(), GRACE);
    let (folder, states, known) = (folder.to_owned(), World::default(), Mutex::default());
    let scene = Scene { seed, folder, turns, sleeper, world, states, known };
    let alone = Arc::new(MemoryStore::new(scene.world.clone(), Arc::new(Alone), SHARING));
    let host = machine(&scene.states, 0);
    let repository = Repository::init_in(alone, Defaults::default(), host).unwrap();
    for image in 0..IMAGES.len() {
        std::fs::write(scene.path(image), random.bytes(IMAGE_BYTES as usize)).unwrap();
        for _ in 0..random.below(if scene.sleeper.is_some() { 4 } else { 3 }) {
            scene.snapshot(&repository, 0, image, &mut random);
        }
    }
    std::thread::scope(|scope| {
        for host in 0..HOSTS {
            let scene = &scene;
            scope.spawn(move || scene.run(host));
        }
    });
    if let Some(wrong) = scene.turns.wrong() {
        panic!("schedule {seed}: {wrong}");
    }
    scene.end();
    scene.turns.turns()
}

#[test]
fn the_real_code_loses_nothing_whatever_the_schedule() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (first, count) = match number("IMGSNAP_SCHEDULE") {
        Some(seed) => (seed, 1),
        None => {
            let first = number("IMGSNAP_SCHEDULES_FROM").unwrap_or(0);
            (first, number("IMGSNAP_SCHEDULES").unwrap_or(1500))
        }
    };
    let shm = Path::new("/dev/shm");
    let base = if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() };
    let (next, turns) = (AtomicU64::new(first), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().unwrap().get() {
            scope.spawn(|| {
                let folder = tempfile::tempdir_in(&base).unwrap();
                loop {
                    let seed = next.fetch_add(1, Relaxed);
                    if seed >= first + count {
                        break;
                    }
                    let ran = std::panic::catch_unwind(|| run(seed, folder.path()));
                    let failed = |_| next.store(u64::MAX / 2, Relaxed);
                    turns.fetch_add(ran.map_err(failed).unwrap(), Relaxed);
                }
            });
        }
    });
    println!("{count} schedules, {} turns", turns.into_inner());
}
