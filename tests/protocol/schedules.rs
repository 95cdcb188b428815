//! The real code under random schedules of a store without locks: three hosts, of which two see the live images
//! and the third only the repository, snapshot, restore, delete, prune, merge, label, remove and begin anew, and
//! more rarely roll back, say where a live file is, export, import, and change the configuration, while requests
//! are lost, delayed and carried out twice, hosts sleep and die, and days pass.
//!
//! What they do is in `verbs.rs`, `live.rs` and `travel.rs`, what they were told in `known.rs`.
//!
//! `IMGSNAP_SCHEDULES` says how many, `IMGSNAP_SCHEDULES_FROM` from which on; `IMGSNAP_SCHEDULE` runs one of them,
//! and tells it turn by turn.

use crate::desk::{context, restored};
use crate::known::Known;
use crate::live::{machine_of, make_anew};
use crate::random::Random;
use crate::turns::{Alone, Before, Seat, Sleeper, Trouble, Turns};
use imgsnap::base::units::PartSize;
use imgsnap::repo::host::HostState;
use imgsnap::repo::manifest::Snapshot;
use imgsnap::repo::retention::{Count, Rules};
use imgsnap::store::{Host, MemoryStore, Sharing, World};
use imgsnap::{At, Defaults, PruneRequest, Repository, SnapshotRequest, Track, VerifyScope};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use uuid::Uuid;

const HOSTS: usize = 3;
pub const IMAGES: [&str; 2] = ["a", "b"];
pub const IMAGE_BYTES: u64 = 3 * 4096;
const DAY: Duration = Duration::from_secs(24 * 3600);
const GRACE: Duration = Duration::from_secs(3 * 24 * 3600);
pub const MARKER_HOURS: u64 = 14 * 24;
const SHARING: Sharing =
    Sharing::Shared { grace: GRACE, marker_life: Duration::from_secs(MARKER_HOURS * 3600) };

pub struct Scene {
    pub seed: u64,
    pub folder: PathBuf,
    pub turns: Arc<Turns>,
    /// Who sleeps for long, while the others go on without new snapshots.
    sleeper: Option<usize>,
    pub world: World,
    /// What the machines remember.
    states: World,
    known: Mutex<Known>,
}

impl Scene {
    pub fn known(&self) -> MutexGuard<'_, Known> {
        // Who panicked tells why.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn seat(&self, host: usize) -> Seat {
        Seat { turns: self.turns.clone(), host }
    }

    pub fn store(&self, host: Arc<dyn Host>) -> MemoryStore {
        MemoryStore::new(self.world.clone(), host, SHARING)
    }

    /// What a machine knows of the live images.
    fn machine(&self, host: usize) -> HostState {
        let store = MemoryStore::new(self.states.clone(), Arc::new(Alone), SHARING);
        HostState::in_store(Arc::new(store), ["one", "another"][machine_of(host)])
    }

    /// The repository, to a host that nobody disturbs.
    pub fn alone(&self, host: usize) -> Repository {
        Repository::open_in(Arc::new(self.store(Arc::new(Alone))), self.machine(host)).unwrap()
    }

    /// A snapshot would take its number from one whose host sleeps, and a commit that nothing else hinders is what
    /// the rules are for.
    pub fn is_meanwhile(&self, host: usize) -> bool {
        self.sleeper.is_some_and(|sleeper| sleeper != host)
    }

    pub fn fail(&self, host: usize, what: &str) -> ! {
        panic!("schedule {}: host {host}: {what}; {:#?}", self.seed, self.world.names())
    }

    fn run(&self, host: usize) {
        // Also if it panics: the others must not wait for it.
        let _end = End { turns: &self.turns, host };
        let mut random = Random(self.seed.wrapping_mul(31).wrapping_add(host as u64));
        let store = Arc::new(self.store(Arc::new(self.seat(host))));
        if let Ok(repository) = Repository::open_in(store, self.machine(host)) {
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
        if random.below(5) == 0 {
            return self.rarer_step(repository, host, image, random);
        }
        let is_meanwhile = self.is_meanwhile(host);
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
            4 if random.below(6) == 0 => return self.remove(repository, host, image),
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

    /// One turn in five: the races are between the others, most of all.
    fn rarer_step(&self, repository: &Repository, host: usize, image: usize, random: &mut Random) {
        let verbs = if self.is_meanwhile(host) { 6 } else { 10 };
        match random.below(verbs) {
            0..3 => self.roll_back(repository, host, image, random),
            3 => self.relink(repository, host, image, random),
            4 => self.configure(host, random),
            5 => self.export(repository, host, image, random),
            6 | 7 => self.import(repository, host, random),
            8 => self.roll_back(repository, host, image, random),
            _ => self.snapshot(repository, host, image, random),
        }
    }

    /// All that was on its way has arrived, and nobody else is there.
    fn end(&self) {
        while self.world.late_requests() > 0 {
            self.world.land(0);
        }
        self.check_configuration();
        self.finish_rollbacks();
        let (repository, context, known) = (self.alone(2), context(), self.known());
        // Who has an image can remove what is left of others that were removed.
        let one = SnapshotRequest::new(self.path(0, 0).as_path()).name(Some("one".into()));
        repository
            .snapshot(
                &one.track(Some(Track::None)).format(Some(imgsnap::image::ImageFormat::RAW)),
                &context,
            )
            .unwrap();
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
            let named: BTreeSet<&str> = stored
                .flat_map(Snapshot::files)
                .map(String::as_str)
                .chain([ruling.as_str()])
                .collect();
            assert_eq!(there, named, "schedule {}: {name}", self.seed);
            for snapshot in &manifest.snapshots {
                let bytes = restored(&repository, &name, snapshot.number).unwrap();
                // Of some it is not known whether they were taken; "one" may be of what is half written.
                let is_right = match known.contents.get(&snapshot.id) {
                    Some(expected) => *expected == bytes,
                    None => name == "one" || known.whole.contains(&bytes),
                };
                assert!(is_right, "schedule {}: {name}@{}", self.seed, snapshot.number);
            }
        }
        let is_true = known.told.iter().all(|file| self.turns.has_ruled(file));
        assert!(is_true, "schedule {}: what was acknowledged is lost", self.seed);
        let names = repository.names().unwrap();
        let list = |name: &String| repository.list(name, &context).unwrap().manifest.snapshots;
        let listed: BTreeMap<Uuid, Snapshot> =
            names.iter().flat_map(list).map(|s| (s.id, s)).collect();
        let is_refused = |label: &String| known.refused.contains(label);
        let mut labels = listed.values().filter_map(|s| s.label.as_ref());
        assert!(!labels.any(is_refused), "schedule {}", self.seed);
        let is_gone = |id: &Uuid| known.gone.contains(id) && !known.imported.contains(id);
        assert!(!listed.keys().any(is_gone), "schedule {}", self.seed);
        let is_wanted = |id: &Uuid, image: &str| {
            let is_given_up = known.to_delete.contains(id) || known.unprotected.contains(id);
            !is_given_up && !known.removed.contains(image)
        };
        for (id, image) in known.kept.iter().filter(|(id, image)| is_wanted(id, image)) {
            let there = listed.get(id).map(|s| s.protected || !known.protected.contains(id));
            assert_eq!(there, Some(true), "schedule {}: of {image}, {id} is lost", self.seed);
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
    let alone = Arc::new(scene.store(Arc::new(Alone)));
    // Half of them with images in parts of a block.
    let part_size =
        if seed.is_multiple_of(2) { PartSize::USUAL } else { PartSize::new(4096).unwrap() };
    let defaults = Defaults { part_size, ..Defaults::default() };
    let repository = Repository::init_in(alone, defaults, scene.machine(0)).unwrap();
    for host in [0, 2] {
        let folder = scene.path(host, 0).parent().unwrap().to_owned();
        let _of_the_one_before = std::fs::remove_dir_all(&folder);
        std::fs::create_dir(&folder).unwrap();
    }
    for image in 0..IMAGES.len() {
        let whole = make_anew(&scene.path(0, image), &mut random);
        scene.known().whole.insert(whole);
        scene.live(0, image, |live| live.is_linked = true);
        for _ in 0..random.below(if scene.sleeper.is_some() { 4 } else { 3 }) {
            scene.snapshot(&repository, 0, image, &mut random);
        }
        scene.export(&repository, 0, image, &mut random);
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
            (first, number("IMGSNAP_SCHEDULES").unwrap_or(1000))
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
