//! Random histories of images that are tracked by clones, on real XFS and btrfs: what a snapshot stores is
//! what a full scan finds, whatever was done to the image, its clones, the snapshots and the file system.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;
use imgsnap::base::events::Context;
use imgsnap::base::units::BlockSize;
use imgsnap::repo::host::HostState;
use imgsnap::repo::retention::{Count, Rules};
use imgsnap::store::{LocalStore, OsDisk};
use imgsnap::tracking::HintKind;
use imgsnap::tracking::Recheck;
use imgsnap::{
    At, Defaults, Outcome, ParentChoice, PruneRequest, Repository, RollbackRequest,
    SnapshotRequest, Track,
};
use nix::fcntl::{FallocateFlags, fallocate};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_128;

const BLOCK: u64 = 4096;
const MOST: u64 = 6 * MIB;

/// How many rounds of a history; `IMGSNAP_ROUNDS` says otherwise, and `IMGSNAP_SEED` which history.
fn number_from(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).map_or(usual, |text| text.parse().unwrap())
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Xfs,
    Btrfs,
}

/// A repository of the image, and what its snapshots must hold.
struct Keeper {
    folder: String,
    repository: Repository,
    known: BTreeMap<u64, u128>,
}

impl Keeper {
    fn new(folder: String, block_bytes: u32) -> Self {
        let block_size = BlockSize::new(block_bytes).unwrap();
        std::fs::create_dir(&folder).unwrap();
        let defaults = Defaults { block_size, ..Defaults::default() };
        drop(Repository::init_in(store(&folder), defaults, host(&folder)).unwrap());
        // A rollback takes no options: it must find everything without a recheck, too.
        crate::config::add(&folder, "[snapshot]\ntrack = \"reflink\"\nrecheck = 0\n");
        let repository = Repository::open_in(store(&folder), host(&folder)).unwrap();
        Self { folder, repository, known: BTreeMap::new() }
    }

    fn any(&self, random: &mut Random) -> u64 {
        pick(random, &self.known.keys().copied().collect::<Vec<_>>())
    }
}

fn host(folder: &str) -> HostState {
    HostState::in_folder(Path::new(&format!("{folder}-state")))
}

fn store(folder: &str) -> Arc<LocalStore> {
    Arc::new(LocalStore::new(Arc::new(OsDisk::new(folder.into()))))
}

/// What was done, to see that it was not too little.
#[derive(Debug, Default)]
struct Tally {
    snapshots: u64,
    by_extents: u64,
    by_times: u64,
    whole: u64,
    rollbacks: u64,
    rollbacks_by_extents: u64,
    image_bytes: u64,
    read_bytes: u64,
    moved: u64,
    restored: u64,
}

struct Trial {
    // Undone in this order.
    mount: Option<Mount>,
    device: Loop,
    lab: Lab,
    kind: Kind,
    image: String,
    random: Random,
    keepers: Vec<Keeper>,
    context: Context,
    tally: Tally,
}

impl Trial {
    fn new(kind: Kind, seed: u64) -> Result<Self, String> {
        let lab = Lab::new();
        let (mkfs, args): (_, &[&str]) = match kind {
            Kind::Xfs => ("mkfs.xfs", &["-q", "-m", "reflink=1"]),
            Kind::Btrfs => ("mkfs.btrfs", &["-q"]),
        };
        let (device, mount) = mounted(&lab, mkfs, args, 400)?;
        let image = lab.path("mnt/vm.img");
        make(&image, 4 * MIB);
        put(&image, MIB, &noise(1, 2 * MIB));
        let keepers = [("repo", 4096), ("repo64", 65536)]
            .map(|(name, block_bytes)| Keeper::new(lab.path(name), block_bytes));
        let context = Context::silent().with_threads(2);
        Ok(Self {
            lab,
            kind,
            device,
            mount: Some(mount),
            image,
            random: Random(seed),
            keepers: keepers.into(),
            context,
            tally: Tally::default(),
        })
    }

    fn hash(&self) -> u128 {
        let _calm = no_fork();
        xxh3_128(&std::fs::read(&self.image).unwrap())
    }

    /// A range within the image, of a size of many magnitudes.
    fn range(&mut self) -> (u64, u64) {
        let length = length(&self.image);
        let at = self.random.below(length);
        let most = 1 << (4 + self.random.below(14));
        (at, (1 + self.random.below(most)).min(length - at))
    }

    /// One thing that a machine, or its host, may do to an image.
    fn change(&mut self) {
        let (at, bytes) = self.range();
        let seed = self.random.next();
        let (start, length) = (at as i64, bytes as i64);
        let keep_size = FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match self.random.below(24) {
            0 => set_length(&self.image, 1 + self.random.below(MOST)),
            1 => set_length(&self.image, BLOCK * (1 + self.random.below(MOST / BLOCK))),
            2 if self.random.below(2) == 0 => {
                set_length(&self.image, 1 + self.random.below(4000));
            }
            3..5 => self.allocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE | keep_size, start, length),
            5 => self.allocate(FallocateFlags::FALLOC_FL_ZERO_RANGE | keep_size, start, length),
            6 if at < 5 * MIB => {
                self.allocate(FallocateFlags::FALLOC_FL_ZERO_RANGE, start, length + 100_000);
            }
            7 => self.allocate(keep_size, start, length + 300_000),
            8 if at < 5 * MIB => {
                self.allocate(FallocateFlags::empty(), start, length + 300_000);
            }
            9..11 => self.share_within(at / BLOCK * BLOCK),
            11 => self.write_mapped(at, bytes),
            12..14 => self.write_direct(at / BLOCK * BLOCK, seed),
            14 => self.write(at, &vec![0; bytes as usize]),
            15 => self.write(at, &text(seed, bytes)),
            _ => self.write(at, &noise(seed, bytes)),
        }
    }

    fn open(&self, flags: i32) -> File {
        File::options().read(true).write(true).custom_flags(flags).open(&self.image).unwrap()
    }

    fn allocate(&mut self, mode: FallocateFlags, start: i64, length: i64) {
        let _calm = no_fork();
        fallocate(self.open(0), mode, start, length).unwrap();
    }

    fn write(&mut self, at: u64, bytes: &[u8]) {
        let _calm = no_fork();
        let file = self.open(0);
        file.write_all_at(bytes, at).unwrap();
        if self.random.below(4) == 0 {
            file.sync_all().unwrap();
        }
    }

    /// Shares extents within the file: a copy of whole blocks is one where the file system can.
    fn share_within(&mut self, to: u64) {
        let length = length(&self.image);
        let from = self.random.below(length) / BLOCK * BLOCK;
        let bytes = BLOCK * (1 + self.random.below(16));
        if from.abs_diff(to) < bytes || from + bytes > length {
            return;
        }
        let _calm = no_fork();
        let (mut source, mut target) = (self.open(0), self.open(0));
        source.seek(SeekFrom::Start(from)).unwrap();
        target.seek(SeekFrom::Start(to)).unwrap();
        // By copy_file_range(2), which shares whole blocks.
        let copied = std::io::copy(&mut source.take(bytes), &mut target).unwrap();
        assert_eq!(copied, bytes);
    }

    fn write_mapped(&mut self, at: u64, bytes: u64) {
        let (page, value) = (at / BLOCK * BLOCK, self.random.below(256));
        let map = format!("mmap -w {page} {}", at + bytes - page);
        let write = format!("mwrite -S {value} {at} {bytes}");
        let args = ["-c", &map, "-c", &write, &self.image];
        if try_tool("xfs_io", &args).is_err() {
            self.write(at, &vec![value as u8; bytes as usize]);
        }
    }

    fn write_direct(&mut self, at: u64, seed: u64) {
        let bytes = (BLOCK * (1 + self.random.below(8))) as usize;
        let mut buffer = vec![0; bytes + BLOCK as usize];
        let start = buffer.as_ptr().align_offset(BLOCK as usize);
        buffer[start..start + bytes].copy_from_slice(&noise(seed, bytes as u64));
        let _calm = no_fork();
        let file = self.open(libc::O_DIRECT);
        file.write_all_at(&buffer[start..start + bytes], at).unwrap();
    }

    /// What changes no byte: the file system moves extents of the image or its clones, the image becomes
    /// another file, the file system is mounted anew.
    fn move_it(&mut self) {
        let mut files = vec![self.image.clone()];
        files.extend(self.clones());
        let file = match self.random.below(3) {
            0 => {
                pick(&mut self.random, &files.iter().map(String::as_str).collect::<Vec<_>>()).into()
            }
            _ => self.image.clone(),
        };
        let mnt = self.lab.path("mnt");
        let moved = match (self.random.below(8), self.kind) {
            (0, _) => {
                let new = self.lab.path("mnt/new.img");
                make(&new, 0);
                if self.random.below(2) == 0 {
                    // Of btrfs: a file that is written in place, as images often are. Others have no such.
                    try_tool("chattr", &["+C", &new]).ok();
                }
                std::fs::copy(&self.image, &new).unwrap();
                std::fs::rename(&new, &self.image).unwrap();
                true
            }
            (1, _) => {
                self.mount.take().unwrap().unmount();
                self.mount = Some(Mount::new(&[&self.device.device], &mnt).unwrap());
                true
            }
            (2, _) => try_tool("cp", &["--reflink=always", &file, &format!("{mnt}/other")]).is_ok(),
            (_, Kind::Xfs) => try_tool("xfs_fsr", &["-v", &file]).is_ok(),
            (3, Kind::Btrfs) => try_tool("btrfs", &["balance", "start", "-dlimit=2", &mnt]).is_ok(),
            (4, Kind::Btrfs) => try_tool("btrfs", &["balance", "start", "-mlimit=1", &mnt]).is_ok(),
            (5, Kind::Btrfs) => {
                try_tool("btrfs", &["filesystem", "defragment", "-czlib", &file]).is_ok()
            }
            (_, Kind::Btrfs) => {
                try_tool("btrfs", &["filesystem", "defragment", "-t", "1M", &file]).is_ok()
            }
        };
        self.tally.moved += u64::from(moved);
    }

    /// The same while a snapshot is taken: extents of clones, or of all files, move meanwhile.
    fn moving(&mut self) -> Option<Started> {
        let clones = self.clones();
        let mut defragment = vec!["filesystem", "defragment", "-czlib"];
        defragment.extend(clones.iter().map(String::as_str));
        let balance = ["balance", "start", "--full-balance", &self.lab.path("mnt")];
        let command = match self.kind {
            Kind::Xfs => tool_command("xfs_fsr", &["-v", clones.first()?]),
            Kind::Btrfs if self.random.below(2) == 0 => tool_command("btrfs", &defragment),
            Kind::Btrfs => tool_command("btrfs", &balance),
        };
        Some(Started::spawn(command.unwrap()))
    }

    fn clones(&self) -> Vec<String> {
        let folder = self.lab.path("mnt/.imgsnap");
        let names = std::fs::exists(&folder).unwrap().then(|| names_in(&folder));
        names.unwrap_or_default().into_iter().map(|name| format!("{folder}/{name}")).collect()
    }

    fn snapshot(&mut self, which: usize) {
        let hash = self.hash();
        let keeper = &mut self.keepers[which];
        let random = &mut self.random;
        let is_first = keeper.known.is_empty();
        let parent = match random.below(12) {
            0 if !is_first => ParentChoice::Differential,
            1 if !is_first => ParentChoice::Of(At::Number(keeper.any(random))),
            2 if random.below(4) == 0 => ParentChoice::Full,
            _ => ParentChoice::Incremental,
        };
        let track = if random.below(14) == 0 { Track::None } else { Track::Reflink };
        let request = SnapshotRequest::new(Path::new(&self.image))
            .parent(parent)
            .track(Some(track))
            .recheck(Some(Recheck::Share(0.0)))
            .skip_unchanged(random.below(8) == 0)
            .dry_run(random.below(20) == 0);
        let _calm = no_fork();
        let taken = keeper.repository.snapshot(&request, &self.context).unwrap();
        let number = taken.snapshot.number;
        assert_eq!(taken.user, None);
        match taken.outcome {
            Outcome::DryRun => return,
            Outcome::Skipped => {
                assert_eq!(keeper.known[&number], hash, "it was no unchanged image")
            }
            Outcome::Taken => assert_eq!(keeper.known.insert(number, hash), None),
        }
        let truth = SnapshotRequest::new(Path::new(&self.image))
            .parent(ParentChoice::Of(At::Number(number)))
            .track(Some(Track::None))
            .full_scan(true)
            .dry_run(true);
        let truth = keeper.repository.snapshot(&truth, &self.context).unwrap().snapshot;
        let found = (truth.changed_blocks, truth.image_bytes, truth.image_digest);
        let stored = &taken.snapshot;
        assert_eq!(found, (0, stored.image_bytes, stored.image_digest), "{taken:?}");
        self.tally.snapshots += 1;
        if let Some(hint) = taken.hint {
            assert_eq!(hint.missed_blocks, 0, "{taken:?}");
            self.tally.image_bytes += stored.image_bytes;
            self.tally.read_bytes += stored.read_bytes.unwrap();
            let is_by_extents = hint.kind == HintKind::Extents;
            self.tally.by_extents += u64::from(is_by_extents);
            self.tally.by_times += u64::from(!is_by_extents);
        } else {
            self.tally.whole += 1;
        }
        let kept = self.clones();
        assert!(kept.len() <= self.keepers.len(), "clones pile up: {kept:?}");
    }

    fn rollback(&mut self, which: usize) {
        let before = self.hash();
        let keeper = &mut self.keepers[which];
        let (number, save) = (keeper.any(&mut self.random), self.random.below(3) > 0);
        let request = RollbackRequest::new("vm", At::Number(number))
            .save(save)
            .prove(self.random.below(8) == 0);
        let done = {
            let _calm = no_fork();
            keeper.repository.rollback(&request, &self.context).unwrap()
        };
        assert_eq!(done.saved.is_some(), save);
        if let Some(saved) = done.saved {
            let known = *keeper.known.entry(saved).or_insert(before);
            assert_eq!(known, before, "vm@{saved} is not what was there before the rollback");
        }
        self.tally.rollbacks += 1;
        self.tally.rollbacks_by_extents += u64::from(done.hint == Some(HintKind::Extents));
        let target = self.keepers[which].known[&number];
        assert_eq!(self.hash(), target, "it is not vm@{number} after {done:?}");
    }

    fn drop_some(&mut self, which: usize) {
        let keeper = &mut self.keepers[which];
        if keeper.known.len() < 3 {
            return;
        }
        let (number, compact) = (keeper.any(&mut self.random), self.random.below(2) == 0);
        let _calm = no_fork();
        if self.random.below(3) > 0 {
            let at = At::Number(number);
            keeper.repository.delete("vm", &at, compact, &self.context).unwrap();
            assert!(keeper.known.remove(&number).is_some());
            return;
        }
        let last = Some(Count::Most(1 + self.random.below(4)));
        let rules = Some(Rules { last, ..Rules::default() });
        let request = PruneRequest::new().rules(rules).compact(compact);
        let pruned = keeper.repository.prune("vm", &request, &self.context).unwrap();
        for (snapshot, _) in pruned.decisions.iter().filter(|(_, reasons)| reasons.is_empty()) {
            assert!(keeper.known.remove(&snapshot.number).is_some());
        }
    }

    /// Byte for byte, by the binary.
    fn restores(&mut self, which: usize) {
        let keeper = &self.keepers[which];
        let number = keeper.any(&mut self.random);
        self.lab.repo.clone_from(&keeper.folder);
        let restored = self.lab.restore(&format!("vm@{number}"));
        let hash = xxh3_128(&std::fs::read(&restored).unwrap());
        assert_eq!(hash, keeper.known[&number], "vm@{number} is not what was taken");
        self.tally.restored += 1;
    }

    fn round(&mut self) {
        let which = usize::try_from(self.random.below(2)).unwrap();
        for _ in 0..self.random.below(7) {
            self.change();
        }
        let has_snapshots = !self.keepers[which].known.is_empty();
        match self.random.below(24) {
            0..4 if has_snapshots => self.rollback(which),
            4..6 => self.drop_some(which),
            6 if has_snapshots => {
                let removed = self.keepers[which].repository.untrack("vm", &self.context).unwrap();
                assert!(removed.len() <= 1, "{removed:?}");
            }
            7..9 => self.move_it(),
            9 => {
                let folder = &self.keepers[which].folder;
                let repository = Repository::open_in(store(folder), host(folder));
                self.keepers[which].repository = repository.unwrap();
            }
            _ => {}
        }
        if self.random.below(3) == 0 {
            self.change();
        }
        let moving = (self.random.below(16) == 0).then(|| self.moving()).flatten();
        self.snapshot(which);
        self.tally.moved += u64::from(moving.is_some());
        moving.map(Started::wait);
    }
}

fn histories(kind: Kind) -> Result<(), String> {
    let (rounds, seed) = (number_from("IMGSNAP_ROUNDS", 15), number_from("IMGSNAP_SEED", 1));
    let mut trial = Trial::new(kind, seed)?;
    for round in 1..=rounds {
        trial.round();
        if round % 20 == 0 {
            trial.restores(0);
            trial.restores(1);
        }
    }
    let tally = &trial.tally;
    // Not by a macro: those are captured.
    writeln!(std::io::stderr().lock(), "{rounds} rounds from {seed}: {tally:?}").unwrap();
    assert!(3 * (tally.by_extents + tally.by_times) > 2 * tally.snapshots, "{tally:?}");
    assert!(3 * tally.by_extents > rounds, "{tally:?}");
    assert!(3 * tally.read_bytes < tally.image_bytes, "{tally:?}");
    assert!(rounds < 20 || tally.restored > 0);
    Ok(())
}

#[test]
fn a_tracked_history_on_xfs_is_what_full_scans_find() {
    need!(tools(&["xfs_fsr"]));
    need!(histories(Kind::Xfs));
}

#[test]
fn a_tracked_history_on_btrfs_is_what_full_scans_find() {
    need!(tools(&["btrfs"]));
    need!(histories(Kind::Btrfs));
}
