//! The live files in the schedules: two hosts are processes of the machine that has them, the third one is
//! another machine, which may get a copy. What is half written must be in no snapshot, and nothing that a rollback
//! writes over may be lost.

use crate::desk::context;
use crate::known::Live;
use crate::random::Random;
use crate::schedules::{IMAGE_BYTES, IMAGES, Scene};
use crate::turns::Seat;
use imgsnap::image::write::Medium;
use imgsnap::repo::host::HostName;
use imgsnap::repo::manifest::Manifest;
use imgsnap::store::{Act, Fault, Host};
use imgsnap::{At, ErrorKind, Repository, RollbackRequest, SnapshotRequest, Track};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What the error of a rollback says whose host died.
pub const POWER: &str = "the power is gone";

/// Bytes that are written before others go on.
const PIECE_BYTES: usize = 2048;

/// A disk on which others may look while it is written to.
struct Disk {
    seat: Seat,
    /// So many pieces, and then the power is gone.
    pieces: AtomicU64,
}

impl Medium for Disk {
    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        for (piece, at) in bytes.chunks(PIECE_BYTES).zip((offset..).step_by(PIECE_BYTES)) {
            let is_lost = self.seat.ask(Act::Pause, "live file") == Fault::Lost;
            if is_lost || self.pieces.fetch_sub(1, Relaxed) == 0 {
                self.pieces.store(0, Relaxed);
                return Err(io::Error::other(POWER));
            }
            file.write_all_at(piece, at)?;
        }
        Ok(())
    }
}

/// The hosts 0 and 1 are processes of one machine.
pub fn machine_of(host: usize) -> usize {
    usize::from(host == 2)
}

impl Scene {
    /// Where the live file of an image is on the machine of a host.
    pub fn path(&self, host: usize, image: usize) -> PathBuf {
        self.folder.join(["one", "another"][machine_of(host)]).join(IMAGES[image])
    }

    /// Calls something with what is known of the live file.
    pub fn live<T>(&self, host: usize, image: usize, look: impl FnOnce(&mut Live) -> T) -> T {
        look(&mut self.known().live[machine_of(host)][image])
    }

    /// What the live file is; none while somebody rolls it back, who would be disturbed by a look at it.
    pub fn content(&self, host: usize, image: usize) -> Option<Vec<u8>> {
        let is_quiet = self.live(host, image, |live| live.rollbacks == 0);
        is_quiet.then(|| std::fs::read(self.path(host, image)).ok()).flatten()
    }

    /// The manifest that rules.
    fn ruling(&self, name: &str) -> Option<Manifest> {
        let manifest = format!("{name}/manifest.");
        let names = self.world.names();
        let last = names.iter().rev().find(|object| object.starts_with(&manifest))?;
        Manifest::decode(&self.world.bytes(last)?).ok()
    }

    pub fn roll_back(
        &self,
        repository: &Repository,
        host: usize,
        image: usize,
        random: &mut Random,
    ) {
        let (name, context, hour) = (IMAGES[image], context(), self.turns.hours());
        let Ok(listed) = repository.list(name, &context) else { return };
        let listed = listed.manifest.snapshots;
        let Some(to) = listed.get(random.below(listed.len() as u64) as usize) else { return };
        let request = RollbackRequest::new(name, At::Number(to.number));
        let request = request.save(random.below(4) > 0 && !self.is_meanwhile(host));
        let before = self.content(host, image);
        // Whoever says that a file is the image, whatever it holds, ends the rollback that he finds noted.
        let mut known = self.known();
        if known.relinks[image] > 0 {
            return;
        }
        let live = &mut known.live[machine_of(host)][image];
        let was = *live;
        (live.users, live.rollbacks, live.begun) =
            (live.users + 1, live.rollbacks + 1, live.begun + 1);
        live.is_doubtful = true;
        let nth = live.begun;
        drop(known);
        let pieces = if random.below(4) == 0 { random.below(4) } else { u64::MAX };
        let disk = Disk { seat: self.seat(host), pieces: pieces.into() };
        let rolled = repository.rollback_through(&disk, &request, &context);
        let (is_alone, is_linked) = self.live(host, image, |live| {
            (live.users, live.rollbacks) = (live.users - 1, live.rollbacks - 1);
            let is_alone = was.rollbacks == 0 && live.is_quiet_since(nth);
            live.is_doubtful = rolled.is_err() || live.rollbacks > 0;
            (is_alone, was.is_linked || live.is_linked)
        });
        let outcome = match rolled {
            Ok(outcome) => outcome,
            Err(e) => {
                self.check(host, "rollback", hour, &e);
                // Whoever takes snapshots by the clock does not know of it.
                if random.below(2) == 0 && !self.is_meanwhile(host) {
                    self.snapshot(repository, host, image, random);
                }
                return;
            }
        };
        // Of the successor of an image that was removed, or whose first snapshot failed, nobody may have told
        // yet where it is.
        let machine = ["one", "another"][machine_of(host)];
        let is_elsewhere = |of: HostName| of.machine != machine;
        let owner = self.ruling(name).and_then(|manifest| manifest.host);
        if !is_linked && owner.is_some_and(is_elsewhere) {
            self.fail(host, "what another machine has is rolled back");
        }
        let mut known = self.known();
        if !is_alone || known.removed.contains(name) {
            return;
        }
        let now = std::fs::read(self.path(host, image)).unwrap();
        if known.contents.get(&to.id).is_some_and(|target| *target != now) {
            self.fail(host, &format!("{name} is not what {name}@{} is", to.number));
        }
        let Some(before) = before.filter(|_| request.save) else { return };
        if outcome.resumed {
            if !was.is_doubtful {
                self.fail(host, "what was whole is not saved");
            }
            return;
        }
        if !known.whole.contains(&before) {
            self.fail(host, "what was half written is saved");
        }
        let Some(saved) = outcome.saved else { self.fail(host, "nothing is saved") };
        let listed = self.ruling(name).map(|manifest| manifest.snapshots).unwrap_or_default();
        let saved = listed.iter().find(|s| s.number == saved).map(|s| s.id);
        // Somebody may have dropped it since.
        if saved.is_some_and(|saved| !known.is_what_it_was(saved, &before)) {
            self.fail(host, "something else is saved");
        }
    }

    /// Says where the live file is: there, as before, or there, as another file.
    pub fn relink(&self, repository: &Repository, host: usize, image: usize, random: &mut Random) {
        let (path, hour) = (self.path(host, image), self.turns.hours());
        let mut known = self.known();
        let live = &mut known.live[machine_of(host)][image];
        let is_needed = live.is_doubtful || !path.exists();
        if is_needed && live.users > 0 {
            return;
        }
        live.users += 1;
        let begun = live.begun;
        if live.users == 1 && (is_needed || random.below(2) == 0) {
            known.whole.insert(make_anew(&path, random));
        }
        let is_first = known.relinks[image] == 0;
        known.relinks[image] += 1;
        known.relinked[image] += 1;
        let nth = known.relinked[image];
        drop(known);
        let linked = repository.relink(
            IMAGES[image],
            &path,
            Some(imgsnap::image::ImageFormat::RAW),
            &context(),
        );
        let mut known = self.known();
        known.relinks[image] -= 1;
        // It is no longer the other machine's.
        let is_only = is_first && nth == known.relinked[image];
        if linked.is_ok() && is_only {
            known.live[1 - machine_of(host)][image].is_linked = false;
        }
        let live = &mut known.live[machine_of(host)][image];
        live.users -= 1;
        // Without an answer it may be so all the same.
        live.is_linked |= linked.as_ref().err().is_none_or(|e| e.kind() != ErrorKind::Busy);
        if linked.is_ok() {
            live.is_doubtful &= !live.is_quiet_since(begun);
        }
        drop(known);
        if let Err(e) = linked {
            self.check(host, "relink", hour, &e);
        }
    }

    /// Whoever began a rollback can end it, whatever others did meanwhile, and then all goes on.
    pub fn finish_rollbacks(&self) {
        for (image, name) in IMAGES.iter().enumerate() {
            let Some(manifest) = self.ruling(name).filter(|manifest| !manifest.forgotten) else {
                continue;
            };
            let of_host = |machine: &HostName| if machine.machine == "one" { 0 } else { 2 };
            let host = manifest.host.as_ref().map_or(0, of_host);
            let (repository, path) = (self.alone(host), self.path(host, image));
            let Some(rollback) = manifest.rollback else {
                let is_whole = |now: Vec<u8>| self.known().whole.contains(&now);
                if std::fs::read(&path).is_ok_and(|now| !is_whole(now)) {
                    self.fail(host, &format!("nobody knows that {name} is half written"));
                }
                continue;
            };
            assert_eq!(of_host(&rollback.host), host, "schedule {}", self.seed);
            let failed = |e| -> ! { self.fail(host, &format!("{name} at the end: {e}")) };
            let listed = repository.list(name, &context()).unwrap().manifest.snapshots;
            let Some(target) = listed.iter().find(|s| s.id == rollback.target) else {
                self.fail(host, "where a rollback leads to is gone");
            };
            let request = RollbackRequest::new(*name, At::Number(target.number));
            let was = std::fs::read(&path).unwrap();
            let ended = repository.rollback(&request, &context());
            let (now, known) = (std::fs::read(&path).unwrap(), self.known());
            match ended {
                Ok(outcome) => {
                    let expected = known.contents.get(&target.id);
                    let is_right = expected.is_none_or(|expected| *expected == now);
                    // To one that is whole nothing was written.
                    let is_taken_right = outcome.resumed || known.whole.contains(&was);
                    assert!(is_taken_right && is_right, "schedule {}", self.seed);
                }
                // Another file is in its place.
                Err(e)
                    if e.to_string().contains("was not taken of") && known.whole.contains(&now) =>
                {
                    let linked = repository.relink(
                        name,
                        &path,
                        Some(imgsnap::image::ImageFormat::RAW),
                        &context(),
                    );
                    linked.unwrap_or_else(|e| failed(e));
                }
                Err(e) => failed(e),
            }
            drop(known);
            let request = SnapshotRequest::new(path.as_path()).name(Some((*name).into()));
            let request =
                request.track(Some(Track::None)).format(Some(imgsnap::image::ImageFormat::RAW));
            repository.snapshot(&request, &context()).unwrap_or_else(|e| failed(e));
        }
    }
}

/// Puts another file, which is whole, in the place of a live file.
pub fn make_anew(path: &Path, random: &mut Random) -> Vec<u8> {
    let (bytes, new) = (random.bytes(IMAGE_BYTES as usize), path.with_extension("new"));
    std::fs::write(&new, &bytes).unwrap();
    std::fs::rename(&new, path).unwrap();
    bytes
}

/// Writes a block, as a guest does. Gives what the file is then.
pub fn write_block(path: &Path, random: &mut Random) -> Vec<u8> {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&random.bytes(4096), 4096 * random.below(IMAGE_BYTES / 4096)).unwrap();
    std::fs::read(path).unwrap()
}
