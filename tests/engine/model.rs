//! Random histories of write, resize, snapshot, restore, rollback and delete, held against plain
//! byte vectors.

use crate::support::{ChainMaker, Random, Recipe, naive_reader, text};
use imgsnap::base::digest::DigestAlgorithm;
use imgsnap::base::events::Context;
use imgsnap::base::units::{BlockSize, ByteRange, PartSize};
use imgsnap::chain::Chain;
use imgsnap::codec::Compression;
use imgsnap::delta::{Caches, Delta};
use imgsnap::image::write::{NewFile, Stream};
use imgsnap::repo::host::HostState;
use imgsnap::repo::retention::{Count, Rules};
use imgsnap::store::{LocalStore, OsDisk, Store};
use imgsnap::view::restore;
use imgsnap::{
    At, Defaults, Outcome, ParentChoice, PruneRequest, Repository, RollbackRequest,
    SnapshotRequest, VerifyScope,
};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Debug, Clone)]
enum Step {
    Write { at: u16, blocks: u8, seed: u8 },
    Zero { at: u16, blocks: u8 },
    Punch { at: u16, blocks: u8 },
    Resize { bytes: u32 },
    Snapshot { how: u8, which: u8 },
    Clone { at: u16, blocks: u8 },
    Rollback { which: u8, save: bool, prove: bool },
    Delete { which: u8, compact: bool },
    Prune { last: u8, compact: bool },
    Flatten { which: u8 },
    Range { which: u8, offset: u16, bytes: u16 },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (any::<u16>(), 0..6u8, any::<u8>()).prop_map(|(at, blocks, seed)| Step::Write { at, blocks, seed }),
        2 => (any::<u16>(), 0..9u8).prop_map(|(at, blocks)| Step::Zero { at, blocks }),
        1 => (any::<u16>(), 1..9u8).prop_map(|(at, blocks)| Step::Punch { at, blocks }),
        2 => (1..200_000u32).prop_map(|bytes| Step::Resize { bytes }),
        6 => (any::<u8>(), any::<u8>()).prop_map(|(how, which)| Step::Snapshot { how, which }),
        1 => (any::<u16>(), 0..4u8).prop_map(|(at, blocks)| Step::Clone { at, blocks }),
        3 => (any::<u8>(), any::<bool>(), any::<bool>()).prop_map(|(which, save, prove)| Step::Rollback { which, save, prove }),
        2 => (any::<u8>(), any::<bool>()).prop_map(|(which, compact)| Step::Delete { which, compact }),
        1 => (1..5u8, any::<bool>()).prop_map(|(last, compact)| Step::Prune { last, compact }),
        1 => any::<u8>().prop_map(|which| Step::Flatten { which }),
        1 => (any::<u8>(), any::<u16>(), any::<u16>()).prop_map(|(which, offset, bytes)| Step::Range { which, offset, bytes }),
        1 => Just(Step::Reopen),
    ]
}

/// The real thing beside the model of it.
struct Bench {
    folder: tempfile::TempDir,
    repository: Repository,
    context: Context,
    /// The live image.
    live: Vec<u8>,
    /// What each snapshot must give.
    snapshots: BTreeMap<u64, Vec<u8>>,
    parents: BTreeMap<u64, Option<u64>>,
    head: Option<u64>,
    /// How many base images were made.
    templates: u64,
    /// The grid of new bases; none if they are one file.
    part_size: Option<PartSize>,
}

impl Bench {
    fn new(defaults: Defaults) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("repo")).unwrap();
        let repository =
            Repository::init_in(Self::store(&folder), defaults, Self::host(&folder)).unwrap();
        let live = crate::support::text(40_000, 1);
        std::fs::write(folder.path().join("vm.img"), &live).unwrap();
        let context = Context::silent().with_threads(2);
        Self {
            folder,
            repository,
            context,
            live,
            snapshots: BTreeMap::new(),
            parents: BTreeMap::new(),
            head: None,
            templates: 0,
            part_size: None,
        }
    }

    /// The same whose snapshots are cut into parts of 64 KiB.
    fn in_parts(self) -> Self {
        Self { part_size: Some(PartSize::new(64 << 10).unwrap()), ..self }
    }

    fn host(folder: &tempfile::TempDir) -> HostState {
        HostState::in_folder(&folder.path().join("state"))
    }

    fn store(folder: &tempfile::TempDir) -> Arc<LocalStore> {
        Arc::new(LocalStore::new(Arc::new(OsDisk::new(folder.path().join("repo")))))
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("vm.img")
    }

    fn write(&mut self, at: u16, bytes: &[u8]) {
        let start = at as usize * 16 % self.live.len();
        let end = (start + bytes.len()).min(self.live.len());
        self.live[start..end].copy_from_slice(&bytes[..end - start]);
        let file = std::fs::OpenOptions::new().write(true).open(self.image()).unwrap();
        file.write_all_at(&bytes[..end - start], start as u64).unwrap();
    }

    fn pick(&self, which: u8) -> Option<u64> {
        let numbers: Vec<u64> = self.snapshots.keys().copied().collect();
        (!numbers.is_empty()).then(|| numbers[which as usize % numbers.len()])
    }

    fn current(&self) -> Option<u64> {
        self.head.filter(|n| self.snapshots.contains_key(n)).or(self
            .snapshots
            .keys()
            .last()
            .copied())
    }

    fn snapshot(&mut self, how: u8, which: u8) {
        let parent = match how % 8 {
            0 => ParentChoice::Full,
            1 => ParentChoice::Differential,
            2 => self
                .pick(which)
                .map_or(ParentChoice::Incremental, |n| ParentChoice::Of(At::Number(n))),
            _ => ParentChoice::Incremental,
        };
        let expected_parent = match &parent {
            ParentChoice::Full => None,
            ParentChoice::Incremental => self.current(),
            ParentChoice::Of(At::Number(n)) => Some(*n),
            _ => {
                let mut base = self.current();
                while let Some(next) = base.and_then(|n| self.parents[&n]) {
                    base = Some(next);
                }
                base
            }
        };
        let request = SnapshotRequest::new(self.image())
            .parent(parent)
            .part_size(self.part_size)
            .skip_unchanged(how >= 200)
            .full_scan(how.is_multiple_of(3))
            .compression(
                [None, Some(Compression::None), Some(Compression::Zstd(1))][how as usize % 3],
            );
        let taken = self.repository.snapshot(&request, &self.context).unwrap();
        let number = taken.snapshot.number;
        if taken.outcome == Outcome::Skipped {
            assert!(self.snapshots[&number] == self.live, "skipped though it changed");
        } else {
            assert!(!self.snapshots.contains_key(&number), "a number was used twice");
            assert_eq!(taken.parent_number, expected_parent);
            self.snapshots.insert(number, self.live.clone());
            self.parents.insert(number, expected_parent);
        }
        self.head = Some(number);
    }

    /// A snapshot whose base stays in a base image, from which the image differs in some places.
    fn snapshot_of_clone(&mut self, at: u16, blocks: u8) {
        let mut template = self.live.clone();
        let start = at as usize * 16 % template.len();
        let end = (start + blocks as usize * 4096).min(template.len());
        template[start..end].iter_mut().for_each(|byte| *byte ^= 0x55);
        let base_image = self.folder.path().join(format!("template-{}.img", self.templates));
        self.templates += 1;
        std::fs::write(&base_image, &template).unwrap();
        let request = SnapshotRequest::new(self.image())
            .parent(ParentChoice::Full)
            .part_size(self.part_size)
            .base_image(Some(base_image));
        let taken = self.repository.snapshot(&request, &self.context).unwrap();
        let number = taken.snapshot.number;
        let base = number - 1;
        assert_eq!(taken.parent_number, Some(base));
        self.snapshots.insert(base, template);
        self.parents.insert(base, None);
        self.snapshots.insert(number, self.live.clone());
        self.parents.insert(number, Some(base));
        self.head = Some(number);
    }

    fn rollback(&mut self, number: u64, save: bool, prove: bool) {
        let to = At::Number(number);
        let request = RollbackRequest::new("vm", to).save(save).prove(prove);
        let done = self.repository.rollback(&request, &self.context).unwrap();
        if let Some(saved) = done.saved {
            let before = self.live.clone();
            if let Some(known) = self.snapshots.get(&saved) {
                assert!(*known == before, "the state before is not {saved}");
            } else {
                self.parents.insert(saved, self.current());
                self.snapshots.insert(saved, before);
            }
        }
        assert_eq!(done.saved.is_some(), save);
        self.live = self.snapshots[&number].clone();
        assert!(std::fs::read(self.image()).unwrap() == self.live, "rolled back to something else");
        self.head = Some(number);
    }

    fn delete(&mut self, number: u64, compact: bool) {
        let at = At::Number(number);
        self.repository.delete("vm", &at, compact, &self.context).unwrap();
        self.forget(number);
    }

    /// What rested on a snapshot that is gone rests on its parent.
    fn forget(&mut self, number: u64) {
        self.snapshots.remove(&number);
        let above = self.parents.remove(&number).flatten();
        self.parents.values_mut().filter(|p| **p == Some(number)).for_each(|p| *p = above);
    }

    fn prune(&mut self, last: u64, compact: bool) {
        if self.snapshots.is_empty() {
            return;
        }
        let rules = Rules { last: Some(Count::Most(last)), ..Rules::default() };
        let request = PruneRequest::new().rules(Some(rules)).compact(compact);
        let pruned = self.repository.prune("vm", &request, &self.context).unwrap();
        if compact {
            let left = pruned.compaction.garbage_bytes;
            assert_eq!(left, 0, "garbage is left though everything was to be merged");
        }
        let newest: Vec<u64> = self.snapshots.keys().rev().take(last as usize).copied().collect();
        let numbers: Vec<u64> = self.snapshots.keys().copied().collect();
        for number in numbers {
            if !newest.contains(&number) && self.head != Some(number) {
                self.forget(number);
            }
        }
    }

    fn read(&self, number: u64, range: Option<ByteRange>) -> Vec<u8> {
        let reader = self.repository.read("vm", &self.context).unwrap();
        let id = reader.find(&At::Number(number)).unwrap().id;
        let chain = self.repository.chain(&reader, id).unwrap();
        let mut out = Vec::new();
        restore(&chain, range, &mut Stream::new(&mut out, "memory"), &self.context).unwrap();
        out
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Write { at, blocks, seed } => {
                let bytes = crate::support::Random(seed.into()).bytes(1 + blocks as usize * 4000);
                self.write(at, &bytes);
            }
            Step::Zero { at, blocks } => self.write(at, &vec![0; 1 + blocks as usize * 4096]),
            Step::Punch { at, blocks } => self.punch(at, blocks),
            Step::Resize { bytes } => {
                self.live.resize(bytes as usize, 0);
                let file = std::fs::OpenOptions::new().write(true).open(self.image()).unwrap();
                file.set_len(bytes.into()).unwrap();
            }
            Step::Snapshot { how, which } => self.snapshot(how, which),
            Step::Clone { at, blocks } => self.snapshot_of_clone(at, blocks),
            Step::Rollback { which, save, prove } => {
                if let Some(number) = self.pick(which) {
                    self.rollback(number, save, prove);
                }
            }
            Step::Delete { which, compact } => {
                if let Some(number) = self.pick(which) {
                    self.delete(number, compact);
                }
            }
            Step::Prune { last, compact } => self.prune(last.into(), compact),
            Step::Flatten { which } => {
                if let Some(number) = self.pick(which) {
                    self.repository.flatten("vm", &At::Number(number), &self.context).unwrap();
                    self.parents.insert(number, None);
                }
            }
            Step::Range { which, offset, bytes } => {
                if let Some(number) = self.pick(which) {
                    let image = &self.snapshots[&number];
                    let offset = offset as usize % image.len();
                    let bytes = (bytes as usize % (image.len() - offset)).max(1);
                    let range = ByteRange { offset: offset as u64, bytes: bytes as u64 };
                    assert!(self.read(number, Some(range)) == image[offset..offset + bytes]);
                }
            }
            Step::Reopen => {
                self.repository =
                    Repository::open_in(Self::store(&self.folder), Self::host(&self.folder))
                        .unwrap()
            }
        }
    }

    fn punch(&mut self, at: u16, blocks: u8) {
        use nix::fcntl::{FallocateFlags, fallocate};
        let start = at as usize * 16 % self.live.len();
        let end = (start + blocks as usize * 4096).min(self.live.len());
        self.live[start..end].fill(0);
        let file = std::fs::OpenOptions::new().write(true).open(self.image()).unwrap();
        let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&file, mode, start as i64, (end - start) as i64).unwrap();
    }

    /// Everything restores, verifies, and is the same to the second reader.
    fn check(&self) {
        for (number, image) in &self.snapshots {
            assert!(self.read(*number, None) == *image, "snapshot {number} gives other bytes");
            let folder = self.folder.path().join("repo/vm");
            let second = naive_reader::restore_from(&folder, *number).unwrap();
            assert!(second == *image, "second reader, {number}");
        }
        let verified = self.repository.verify(&VerifyScope::All, false, &self.context).unwrap();
        assert!(verified.damaged.is_empty(), "{:?}", verified.damaged);
        assert_eq!(verified.snapshots, self.snapshots.len() as u64);
    }
}

fn defaults(block_bytes: u32, digest: DigestAlgorithm) -> Defaults {
    Defaults { block_size: BlockSize::new(block_bytes).unwrap(), digest, ..Defaults::default() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_history_restores_as_it_was(
        steps in proptest::collection::vec(step(), 1..25),
        block_shift in 0..3u32,
        blake3 in any::<bool>(),
        in_parts in any::<bool>(),
    ) {
        let digest = if blake3 { DigestAlgorithm::Blake3 } else { DigestAlgorithm::Xxh3 };
        let mut bench = Bench::new(defaults(4096 << (block_shift * 2), digest));
        if in_parts {
            bench = bench.in_parts();
        }
        for step in &steps {
            bench.run(step);
        }
        if !bench.snapshots.is_empty() {
            bench.check();
        }
    }
}

/// 10 GiB, 5, 10 in small: what was cut off does not come back (FORMAT.md M5).
#[test]
fn bytes_beyond_a_cut_do_not_come_back_when_the_image_grows_again() {
    let wide = [400_000, 90_000, 400_000, 1, 81_920, 400_001];
    for (mut bench, sizes) in [
        (Bench::new(Defaults::default()), wide.map(|bytes| bytes / 10)),
        (Bench::new(Defaults::default()).in_parts(), wide),
    ] {
        for (seed, bytes) in (0..).zip(sizes) {
            bench.run(&Step::Resize { bytes: bytes.max(1) });
            bench.run(&Step::Write { at: 0, blocks: 20, seed });
            bench.snapshot(3, 0);
        }
        bench.check();
        for number in [1, 3, 2, 6, 4, 1] {
            bench.rollback(number, false, false);
        }
        bench.check();
        bench.prune(1, true);
        bench.check();
    }
}

/// Two chains have two keys: their digests cannot be compared, and a rollback across them must not
/// try.
#[test]
fn rollback_across_chains_scans() {
    let mut bench = Bench::new(Defaults::default());
    bench.snapshot(3, 0);
    bench.run(&Step::Write { at: 7, blocks: 3, seed: 1 });
    bench.snapshot(8, 0);
    assert_eq!(bench.parents[&2], None);
    bench.rollback(1, true, false);
    bench.rollback(2, true, false);
    bench.check();
}

/// Frames of deltas hold blocks from all over the image: in the order of the image, 200 of them are
/// in use at a time, more than the cache has room for.
#[test]
fn restoring_a_long_chain_decodes_each_frame_once_and_verify_sums_up_each_image() {
    const DELTAS: u64 = 200;
    const CHANGES: u64 = 64;
    let mut maker = ChainMaker::new(Recipe::default());
    let mut image = text(8 << 20, 1);
    let mut random = Random(9);
    maker.snapshot(&image);
    for _ in 0..DELTAS {
        for _ in 0..CHANGES {
            let at = random.below(2048) as usize * 4096;
            image[at..at + 4096].copy_from_slice(&text(4096, random.below(1 << 40)));
        }
        maker.snapshot(&image);
    }
    let store: Arc<dyn Store> = Arc::new(LocalStore::new(maker.disk.clone()));
    let caches = Caches::default();
    let open = |number: usize| {
        Arc::new(Delta::open(store.clone(), &format!("vm/{number}.delta"), &caches).unwrap())
    };
    let chain = Chain::link((0..maker.files.len()).rev().map(open).collect()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("restored");
    let mut target = NewFile::create(&path, image.len() as u64, false).unwrap();
    let context = Context::silent();
    assert!(restore(&chain, None, &mut target, &context).unwrap().proved);
    assert!(std::fs::read(&path).unwrap() == image);
    let frames = (8 << 20) + DELTAS * CHANGES * 4096;
    let decoded = caches.traffic().decoded_bytes;
    assert!(decoded <= frames, "{decoded} bytes decoded of frames of {frames}");
    assert_eq!(
        imgsnap::ops::verify::engine::verify_digests(&chain, &context).unwrap(),
        vec![true; 201]
    );
}
