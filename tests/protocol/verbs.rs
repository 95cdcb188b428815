//! The verbs that a repository without live files has, and what must not become of them, in the schedules.

use crate::desk::context;
use crate::live::{POWER, machine_of, write_block};
use crate::random::Random;
use crate::schedules::{IMAGES, MARKER_HOURS, Scene};
use imgsnap::image::write::Stream;
use imgsnap::tracking::Recheck;
use imgsnap::{
    At, ErrorKind, Outcome, ParentChoice, Reference, Repository, RestoreRequest, RestoreTarget,
    SnapshotRequest, Track,
};
use uuid::Uuid;

/// What is refused for a reason that is no mistake of anybody.
const REFUSALS: [&str; 5] = [
    "protected",
    "is needed by",
    "was interrupted",
    "it is not known which file",
    "was not taken of",
];

impl Scene {
    /// Whatever happens, nothing is damaged, nobody has made a mistake, and what a marker holds stays. `begun` is
    /// the hour.
    pub fn check(&self, host: usize, verb: &str, begun: u64, error: &imgsnap::Error) {
        use ErrorKind::{AlreadyExists, Busy, InvalidInput, NotFound, Unavailable};
        let line = error.to_string();
        let is_refusal = |why: &&str| line.contains(*why);
        if error.kind() == ErrorKind::Mismatch && REFUSALS.iter().any(is_refusal) {
            return;
        }
        if error.kind() == ErrorKind::Io && line.contains(POWER) {
            return;
        }
        if !matches!(error.kind(), AlreadyExists | Busy | InvalidInput | NotFound | Unavailable) {
            self.fail(host, &format!("{verb}: {:?}: {line}", error.kind()));
        }
        let is_gone =
            line.contains("while it was being read") || line.contains(".delta does not exist");
        if is_gone && self.turns.hours() - begun < MARKER_HOURS {
            self.fail(host, &format!("{verb} is disturbed: {line}"));
        }
    }

    pub fn snapshot(
        &self,
        repository: &Repository,
        host: usize,
        image: usize,
        random: &mut Random,
    ) {
        let path = self.path(host, image);
        let mut known = self.known();
        let live = &mut known.live[machine_of(host)][image];
        live.users += 1;
        let begun = live.begun;
        if live.users == 1 && !live.is_doubtful && path.exists() {
            known.whole.insert(write_block(&path, random));
        }
        drop(known);
        let content = self.content(host, image);
        let label = (random.below(3) == 0).then(|| format!("keep-{:016x}", random.next()));
        let request = SnapshotRequest::new(path.as_path())
            .name(Some(IMAGES[image].into()))
            .label(label.clone())
            .track(Some(Track::None))
            .recheck(Some(Recheck::Share(0.0)))
            .skip_unchanged(random.below(4) == 0)
            .format(Some(imgsnap::image::ImageFormat::RAW));
        // Now and then it begins anew from the other image.
        let request = match random.below(8) {
            0 => {
                let other = Reference { name: IMAGES[1 - image].into(), at: At::Latest };
                request.parent(ParentChoice::Full).base_of(Some(other))
            }
            _ => request,
        };
        let hour = self.turns.hours();
        let taken = repository.snapshot(&request, &context());
        let is_new = taken.as_ref().is_ok_and(|taken| taken.outcome == Outcome::Taken);
        self.live(host, image, |live| {
            live.users -= 1;
            // What was on its way to say otherwise comes too late.
            live.is_doubtful &= !(is_new && live.is_quiet_since(begun));
        });
        let mut known = self.known();
        // The first snapshot of another image says where it is, also without an answer.
        known.live[machine_of(host)][image].is_linked |= known.removed.contains(IMAGES[image]);
        match taken {
            Ok(outcome) => {
                let id = outcome.snapshot.id;
                known.images.insert(id, IMAGES[image]);
                known.told.push(outcome.snapshot.file.clone());
                if content.as_ref().is_some_and(|content| !known.whole.contains(content)) {
                    self.fail(host, "what is half written is in a snapshot");
                }
                if content.is_some_and(|content| !known.is_what_it_was(id, &content)) {
                    self.fail(host, "something else is in the snapshot");
                }
                if is_new && label.is_some() {
                    known.kept.insert(id, IMAGES[image]);
                }
            }
            Err(e) => {
                known.refuse(label, &e);
                drop(known);
                self.check(host, "snapshot", hour, &e)
            }
        }
    }

    pub fn restore(&self, repository: &Repository, host: usize, image: usize, random: &mut Random) {
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
                let known = self.known();
                // It may have been removed, and another one been given its number.
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
    pub fn delete(&self, repository: &Repository, host: usize, image: usize, random: &mut Random) {
        let (context, begun) = (context(), self.turns.hours());
        let Ok(listed) = repository.list(IMAGES[image], &context) else { return };
        let free: Vec<(Uuid, u64)> = listed
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
        let mut known = self.known();
        known.to_delete.insert(id);
        let is_protected = known.protected.contains(&id);
        drop(known);
        let compact = random.below(2) == 0;
        let deleted = repository.delete(IMAGES[image], &At::Number(number), compact, &context);
        match deleted {
            // Another image may have its name and number by now.
            Ok(deleted)
                if deleted.snapshot.id == id
                    && is_protected
                    && !self.known().unprotected.contains(&id) =>
            {
                self.fail(host, "what was protected is deleted")
            }
            // By that number it may be another one, which was imported meanwhile.
            Ok(deleted) => {
                let mut known = self.known();
                known.to_delete.insert(deleted.snapshot.id);
                known.gone.insert(deleted.snapshot.id);
            }
            Err(e) => self.check(host, "delete", begun, &e),
        }
    }

    /// Labels a snapshot, so that no rule drops it, or protects it, or takes that back.
    pub fn keep(&self, repository: &Repository, host: usize, image: usize, random: &mut Random) {
        let (name, context, begun) = (IMAGES[image], context(), self.turns.hours());
        let Ok(listed) = repository.list(name, &context) else { return };
        let listed = listed.manifest.snapshots;
        let Some(snapshot) = listed.get(random.below(8) as usize) else { return };
        let (at, label) = (At::Number(snapshot.number), format!("keep-{:016x}", random.next()));
        let is_protecting = random.below(2) == 0;
        let is_on = random.below(4) > 0;
        if is_protecting && !is_on {
            self.known().unprotected.insert(snapshot.id);
        }
        let kept = match is_protecting {
            true => repository.protect(name, &at, is_on, &context),
            false => repository.label(name, &at, Some(&label), &context),
        };
        match kept {
            // Another image may have its name and number by now.
            Ok(kept) if is_protecting && !is_on => {
                self.known().unprotected.insert(kept.id);
            }
            Ok(kept) => {
                let mut known = self.known();
                if is_protecting {
                    known.protected.insert(kept.id);
                }
                known.kept.insert(kept.id, name);
            }
            Err(e) => {
                self.known().refuse((!is_protecting).then_some(label), &e);
                self.check(host, "label", begun, &e)
            }
        }
    }

    pub fn remove(&self, repository: &Repository, host: usize, image: usize) {
        let name = IMAGES[image];
        let mut known = self.known();
        // Nobody wants to be left with half of a live file, and of nothing else.
        if known.live.iter().any(|of| of[image].is_doubtful) {
            return;
        }
        // Before: a snapshot that is taken meanwhile may be removed, too.
        known.removed.insert(name);
        let of_image = |id: &&Uuid| known.images.get(id) == Some(&name);
        let there: Vec<Uuid> = known.contents.keys().filter(of_image).copied().collect();
        drop(known);
        let begun = self.turns.hours();
        match repository.remove(name, &context()) {
            Ok(_) => self.known().gone.extend(there),
            Err(e) => self.check(host, "remove", begun, &e),
        }
    }
}
