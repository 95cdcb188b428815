//! Random histories of every verb, in which the power goes again and again: at any operation, with any part
//! of what was not synced gone. Then everything that was reported as done is there, bit for bit; the verb
//! that was interrupted has happened or not; the next one leaves nothing behind; and the history goes on
//! from what is left.
//!
//! `IMGSNAP_HISTORIES` says how many (one is a sequence of verbs, ended by a loss of power, and looked at),
//! `IMGSNAP_SEED` where they begin. (FORMAT.md P3, P4, S1, S2)

mod model;
mod named;
mod needed;
mod verbs;
mod world;

use self::model::{Seen, Visible, assert_same, assert_tidy, look};
use self::verbs::Verb;
use self::world::{BLOCK, Bytes, MOST_BYTES, World};
use crate::support::Random;
use crate::support::crash_disk::CrashDisk;
use crate::support::power::{Contents, Image, Lie, Survival};
use imgsnap::base::error::ErrorKind;
use std::collections::BTreeMap;

/// Verbs in a row before everything begins anew.
const VERBS: u64 = 40;
/// Losses of power that are tried in each verb.
const CUTS: u64 = 3;

fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |text| text.parse().unwrap())
}

/// Says where it was if it fails.
#[derive(Default)]
struct Place {
    seed: u64,
    verbs: Vec<String>,
    at: String,
    log: Vec<String>,
    is_expected: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.is_expected {
            let lines = self.verbs.join("\n  ");
            println!("IMGSNAP_SEED={} IMGSNAP_HISTORIES=1\n  {lines}\n  {}", self.seed, self.at);
            println!("  {}", self.log.join("\n  "));
        }
    }
}

/// What was done so far.
#[derive(Default)]
struct Count {
    histories: u64,
    cuts_in_recovery: u64,
    verbs: BTreeMap<String, u64>,
}

/// A verb that was done, and what it was done to.
struct Done<'a> {
    verb: &'a Verb,
    before: &'a Seen,
    /// The live image before.
    image: Image,
    after: Visible,
    /// Where a rollback leads to.
    target: Option<Bytes>,
}

/// What a verb that was killed, or failed, left without a sync: as long as no other writer has opened the
/// image, the power may take it back.
#[derive(Default)]
struct Loose {
    visible: Vec<Visible>,
    name: Option<String>,
    is_repair: bool,
}

struct Line<'a> {
    world: &'a World,
    random: Random,
    place: Place,
    disk: CrashDisk,
    seen: Seen,
    /// What each number has ever stood for: a repair may bring back what was deleted.
    ever: BTreeMap<(String, u64), Vec<Bytes>>,
    /// The state is what a loss of power left.
    is_left: bool,
    loose: Option<Loose>,
    /// There are, or were, bases by reference.
    has_templates: bool,
    /// The live image when no rollback had begun.
    whole: Image,
}

impl<'a> Line<'a> {
    fn new(world: &'a World, seed: u64, lie: Option<Lie>) -> Self {
        let mut random = Random(seed);
        let mut place = Place::default();
        (place.seed, place.is_expected) = (seed, lie.is_some());
        let disk = CrashDisk::default();
        if let Some(lie) = lie {
            disk.lie(lie);
        }
        let bytes = 1 + random.below(MOST_BYTES as u64) as usize;
        disk.put_image(&world::content(&mut random, bytes));
        let seen = look(&disk, None).unwrap();
        let (ever, whole) = (BTreeMap::new(), disk.now().image);
        Self {
            world,
            random,
            place,
            disk,
            seen,
            ever,
            is_left: false,
            loose: None,
            has_templates: false,
            whole,
        }
    }

    fn remember(&mut self, visible: &Visible) {
        for (name, kept) in visible {
            for (number, kept) in kept {
                let known = self.ever.entry((name.clone(), *number)).or_default();
                if !known.contains(&kept.bytes) {
                    known.push(kept.bytes.clone());
                }
            }
        }
    }

    fn survival(&mut self) -> Survival {
        match self.random.below(8) {
            0 => Survival::Nothing,
            1 => Survival::Everything,
            _ => Survival::Any(self.random.next()),
        }
    }

    /// The guest writes to its image, with a sync or without.
    fn write_image(&mut self) {
        let image = self.disk.image();
        if self.random.below(6) == 0 {
            let mut bytes = image.to_vec();
            bytes.resize(1 + self.random.below(MOST_BYTES as u64) as usize, 0);
            self.disk.put_image(&bytes);
            return;
        }
        for _ in 0..self.random.below(4) {
            let offset = self.random.below(image.len() as u64) as usize;
            let most = (image.len() - offset).min(2 * BLOCK) as u64;
            let bytes = 1 + self.random.below(most) as usize;
            let bytes = world::content(&mut self.random, bytes);
            self.disk.write_image(offset, &bytes);
        }
        if self.random.below(2) == 0 {
            let bytes = self.disk.image();
            self.disk.put_image(&bytes);
        }
    }

    /// A byte of the ruling manifest changes on the medium.
    fn damage(&mut self, name: &str) {
        let files = self.disk.files();
        let start = format!("{}/manifest.", world::folder_on(&self.disk, name));
        let ruling = files.iter().rfind(|file| file.starts_with(&start)).unwrap();
        let mut bytes = self.disk.get(ruling).unwrap();
        let at = self.random.below(bytes.len() as u64) as usize;
        let bit = 1 << self.random.below(8);
        // Another digit in the place of the version is that of a later program, which nobody repairs.
        let is_version = bytes[..at] == *b"imgsnap-manifest ";
        bytes[at] ^= if is_version { 0x40 } else { bit };
        self.disk.put(ruling, &bytes);
        self.seen.damaged.insert(name.into());
    }

    /// One more verb, and losses of power in it.
    fn step(&mut self, count: &mut Count) {
        if self.random.below(3) > 0 && self.seen.intent.is_none() {
            self.write_image();
        }
        if self.seen.intent.is_none() {
            self.whole = self.disk.now().image;
        }
        let verb = self.choose();
        if let Verb::Repair { name } = &verb
            && !self.seen.damaged.contains(name)
        {
            self.damage(name);
        }
        self.place.verbs.push(format!("{verb:?}"));
        self.place.at = "done".into();
        let kind = format!("{verb:?}");
        let kind = kind.split([' ', '{']).next().unwrap().to_owned();
        *count.verbs.entry(kind).or_default() += 1;

        let disk = self.disk.survivor();
        let image = disk.now().image;
        disk.record();
        self.world.show(&disk);
        let before = self.seen.clone();
        let after = verb.run(self.world, &disk, &before);
        self.place.log = disk.log();
        let after = after.unwrap_or_else(|e| panic!("{e}"));
        assert!(self.world.is_shown(&disk), "the live image was changed behind our back");
        let is_kept = matches!(verb, Verb::Rollback { .. }) || disk.image() == image.live;
        assert!(is_kept, "the live image was written to");
        self.remember(&after);
        let target = match verb {
            Verb::Rollback { number, .. } => Some(after["vm"][&number].bytes.clone()),
            _ => None,
        };
        let done = Done { verb: &verb, before: &before, image, after, target };
        let loose = Loose {
            visible: vec![done.before.visible.clone(), done.after.clone()],
            name: verb.name().map(str::to_owned),
            is_repair: matches!(verb, Verb::Repair { .. }),
        };

        let mut left = Vec::new();
        for _ in 0..CUTS {
            // Often at the end: that is what must stay.
            let past = self.random.below(disk.moments() as u64 * 5 / 4 + 1) as usize;
            let moment = past.min(disk.moments() - 1);
            let survival = self.survival();
            self.place.at = format!("power lost before operation {}, {survival:?}", moment + 1);
            let is_done = moment + 1 == disk.moments();
            let contents = disk.moment(moment).after_power_loss(survival);
            left.push(self.check(&done, contents, is_done));
            count.histories += 1;
            count.cuts_in_recovery += u64::from(self.is_left);
        }
        self.is_left = false;
        let mut next = None;
        match self.random.below(8) {
            0..5 => {
                (self.disk, self.seen) =
                    left.swap_remove(self.random.below(left.len() as u64) as usize);
                self.is_left = true;
            }
            5 => {
                // Only the process is killed.
                let moment = self.random.below(disk.moments() as u64) as usize;
                self.place.at = format!("killed before operation {}", moment + 1);
                let is_done = moment + 1 == disk.moments();
                (self.disk, self.seen) = self.check(&done, disk.moment(moment), is_done);
                next = Some(loose);
            }
            6 => {
                let operation = 1 + self.random.below(disk.operations());
                let loses = self.survival();
                self.place.at = format!("failed at operation {operation}, {loses:?}");
                let failing = self.disk.survivor();
                failing.fail_and_lose_at(operation, loses);
                self.world.show(&failing);
                let outcome = verb.run(self.world, &failing, &before);
                let is_done = outcome.is_ok();
                (self.disk, self.seen) = self.check(&done, failing.now(), is_done);
                next = Some(loose);
            }
            _ => {
                self.place.at = "went on".into();
                (self.disk, self.seen) = self.check(&done, disk.now(), true);
            }
        }
        if matches!(verb, Verb::Init { .. }) && next.take().is_some() {
            // Who sees that it failed does not go on as if it had not.
            self.disk = self.disk.after_power_loss(Survival::Everything);
        }
        if let (Some(next), Some(before)) = (&mut next, self.loose.take()) {
            // Killed before its first sync, it has made nothing durable either.
            next.visible.extend(before.visible);
            next.is_repair |= before.is_repair;
        }
        self.loose = next;
        let visible = self.seen.visible.clone();
        self.remember(&visible);
    }

    /// The next verb; after one that was killed or failed, of the same image, which makes it durable.
    fn choose(&mut self) -> Verb {
        for tries in 0.. {
            if tries == 100 {
                // There is none. Long after, all is on the device.
                self.disk = self.disk.after_power_loss(Survival::Everything);
                self.loose = None;
            }
            let verb = Verb::choose(&self.seen, &mut self.random);
            let name = self.loose.as_ref().and_then(|loose| loose.name.as_deref());
            let is_there = |name: &str| self.seen.next_numbers.contains_key(name);
            // What a repair finds of a base by reference it cannot read: where the image is, the manifest
            // that is damaged has said.
            let is_repair = |name: &str| matches!(&verb, Verb::Repair { name: of } if of == name);
            let is_hopeless = self.has_templates && is_repair("vm");
            let is_next = name.is_none_or(|name| !is_there(name) || verb.name() == Some(name));
            if is_next && (!is_hopeless || !self.seen.damaged.is_empty()) {
                self.has_templates |= matches!(verb, Verb::OnBaseImage { .. });
                return verb;
            }
        }
        unreachable!()
    }

    /// Looks at what is left, lets another verb clear up on a copy, and gives what was left.
    fn check(&mut self, done: &Done<'_>, contents: Contents, is_done: bool) -> (CrashDisk, Seen) {
        let disk = CrashDisk::of(contents);
        let mut seen = look(&disk, None).unwrap_or_else(|e| panic!("{e}"));
        let (before, after) = (&done.before.visible, &done.after);
        if let Verb::Repair { name } = done.verb {
            let is_damaged = seen.damaged.contains(name);
            assert!(!is_damaged || !is_done, "repaired, and damaged");
            match before.get(name) {
                Some(kept) if is_damaged => {
                    // The next repair finds them.
                    seen.visible.insert(name.clone(), kept.clone());
                }
                _ => self.assert_repaired(&seen.visible, before, name),
            }
        } else if let (Some(loose), Some(name)) = (&self.loose, seen.damaged.first().cloned()) {
            let is_lost = loose.is_repair && !is_done && loose.name.as_ref() == Some(&name);
            assert!(is_lost, "{name} is damaged");
            let kept = loose.visible[0].get(&name).cloned();
            seen.visible.extend(kept.map(|kept| (name, kept)));
        } else {
            assert!(seen.damaged.is_empty(), "{:?} are damaged", seen.damaged);
            let mut wanted = vec![after];
            if !is_done {
                let loose = self.loose.iter().flat_map(|loose| &loose.visible);
                wanted.extend(loose.chain([before]));
            }
            assert_same(&seen.visible, &wanted, "after");
        }
        assert!(!seen.is_void || !is_done && (done.before.is_void || self.loose.is_some()));
        let removed = if let Verb::Remove { name } = done.verb { Some(name) } else { None };
        let is_back = |name: &String| seen.next_numbers.contains_key(name);
        assert!(!is_done || !removed.is_some_and(is_back), "removed, and there");
        self.check_image(done, &disk, &seen, is_done);
        self.recover(&disk.survivor(), &seen);
        (disk, seen)
    }

    /// All that was listed is there, and nothing that never was.
    fn assert_repaired(&self, now: &Visible, before: &Visible, name: &str) {
        let empty = BTreeMap::new();
        let of = now.get(name).unwrap_or(&empty);
        for (number, kept) in before.get(name).unwrap_or(&empty) {
            let found = of.get(number).is_some_and(|now| now.bytes == kept.bytes);
            assert!(found, "{name}@{number} is lost by a repair");
        }
        for (number, kept) in of {
            let known = self.ever.get(&(name.to_owned(), *number));
            assert!(known.is_some_and(|known| known.contains(&kept.bytes)), "{name}@{number}");
        }
        let others = |visible: &Visible| {
            let mut others = visible.clone();
            others.remove(name);
            others
        };
        assert_same(&others(now), &[&others(before)], "the others");
    }

    /// The live image, and what is known of a rollback.
    fn check_image(&self, done: &Done<'_>, disk: &CrashDisk, seen: &Seen, is_done: bool) {
        let now = disk.image();
        let before = done.before;
        if let Some(target) = &done.target {
            let is_target = now == *target;
            match seen.intent {
                None if is_done => assert!(is_target, "rolled back, and not what it was"),
                None => {
                    // A relink that was killed said that a mixture is the image.
                    let is_before = before.intent.is_none() && is_of(&now, &done.image);
                    let is_whole = is_target || is_before || is_of(&now, &self.whole);
                    assert!(is_whole, "a mixture that nobody knows of");
                }
                Some(_) if is_done => panic!("the intent of a rollback that was done"),
                Some(intent) => {
                    let Verb::Rollback { number, save, .. } = done.verb else { return };
                    // That of one before, whose end was not durable, may come back.
                    if before.intent.is_none() && self.loose.is_none() {
                        assert_eq!(intent.target, Some(*number));
                        let saved = intent.saved.map(|number| seen.bytes("vm", number));
                        let wanted = save.then_some(&done.image.live);
                        assert!(saved.as_ref() == wanted, "the state before is not saved");
                    }
                }
            }
            return;
        }
        let may_clear = match done.verb {
            Verb::Relink { .. } => true,
            Verb::Remove { name } => name == "vm",
            // What it is about is not listed.
            _ => seen.damaged.contains("vm") || before.damaged.contains("vm"),
        };
        let is_known = |seen: &Seen| seen.intent.is_some();
        if !may_clear && is_known(seen) != is_known(before) {
            // It was not durable yet, and so nothing was written; or its end was not.
            assert!(self.loose.is_some() && !is_done, "the intent is lost, or comes from nowhere");
            assert!(is_known(seen) || is_of(&now, &self.whole), "a mixture that nobody knows of");
        }
    }

    /// The next verb completes what was begun, and clears up.
    fn recover(&mut self, disk: &CrashDisk, seen: &Seen) {
        self.world.show(disk);
        let verb = self.next_verb(seen);
        let name = verb.name().map(str::to_owned);
        let at = format!("{}, then {verb:?}", self.place.at);
        let before = std::mem::replace(&mut self.place.at, at);
        if seen.intent.is_some() && seen.source.is_some() {
            self.assert_refused(disk, seen);
        }
        let is_mixture = seen.intent.is_some() && !is_of(&disk.image(), &self.whole);
        let after = verb.run(self.world, disk, seen).unwrap_or_else(|e| panic!("{e}"));
        if let Verb::Rollback { .. } = verb {
            let count = |visible: &Visible| visible.get("vm").map_or(0, BTreeMap::len);
            assert!(!is_mixture || count(&after) == count(&seen.visible), "a mixture is saved");
        }
        let now = look(disk, Some(&after)).unwrap_or_else(|e| panic!("{e}"));
        match &verb {
            Verb::Repair { name } => self.assert_repaired(&now.visible, &seen.visible, name),
            _ => assert_same(&now.visible, &[&after], "then"),
        }
        if let Verb::Rollback { number, .. } = verb {
            // Also if the power goes then.
            let lost = disk.after_power_loss(self.survival());
            let target = &now.visible["vm"][&number].bytes;
            assert!(lost.image() == *target, "rolled back again, and not what it was");
            assert!(now.intent.is_none());
        }
        // A repair is the one that removes nothing.
        if let Some(name) = name.filter(|_| !matches!(verb, Verb::Repair { .. })) {
            assert_tidy(disk, &name);
        }
        self.place.at = before;
    }

    fn next_verb(&mut self, seen: &Seen) -> Verb {
        let may_roll_back = seen.source.is_some() && seen.damaged.is_empty();
        if seen.intent.is_some() && may_roll_back {
            return Verb::rollback(&seen.numbers("vm"), &mut self.random);
        }
        let is_vm = seen.next_numbers.contains_key("vm") && seen.source.is_some();
        if seen.is_void || !seen.damaged.is_empty() || is_vm && self.random.below(4) == 0 {
            return Verb::choose(seen, &mut self.random);
        }
        let names = seen.names();
        match names.first() {
            Some(_) => {
                let name = names[self.random.below(names.len() as u64) as usize].clone();
                let number = verbs::any(&seen.numbers(&name), &mut self.random);
                let label = seen.visible[&name][&number].label.clone();
                Verb::Label { name, number, label }
            }
            None => Verb::choose(seen, &mut self.random),
        }
    }

    /// Nobody takes a mixture for an image.
    fn assert_refused(&mut self, disk: &CrashDisk, seen: &Seen) {
        let verb = Verb::Snapshot { how: 23, parent: None, label: None };
        let refused = verb.run(self.world, disk, seen);
        assert_eq!(refused.map_err(|e| e.kind()).err(), Some(ErrorKind::Mismatch));
    }
}

/// True if each byte is what it was before, on the device or in memory.
fn is_of(now: &[u8], before: &Image) -> bool {
    let (live, device) = (&before.live, &before.device);
    let is_byte = |at: usize, byte: u8| live[at] == byte || device.get(at) == Some(&byte);
    now.len() == live.len() && now.iter().enumerate().all(|(at, byte)| is_byte(at, *byte))
}

#[test]
fn whatever_is_lost_with_the_power_all_that_was_done_is_there_and_the_work_goes_on() {
    let world = World::new();
    let (histories, mut seed) = (setting("IMGSNAP_HISTORIES", 3000), setting("IMGSNAP_SEED", 1));
    let begun = std::time::Instant::now();
    let mut count = Count::default();
    let mut told = 0;
    while count.histories < histories {
        let mut line = Line::new(&world, seed, None);
        for _ in 0..VERBS {
            line.step(&mut count);
        }
        seed += 1;
        if count.histories / 10_000 > told {
            told = count.histories / 10_000;
            println!("{} histories in {:.0?}", count.histories, begun.elapsed());
        }
    }
    println!(
        "{} histories, {} of them in a recovery, in {:.1?}; verbs: {:?}",
        count.histories,
        count.cuts_in_recovery,
        begun.elapsed(),
        count.verbs
    );
}
