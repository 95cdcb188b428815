//! Layers of several files: what they hold is what one file would, whoever wrote them and however many at once;
//! and whatever is wrong with one of them is found.

use crate::support::crash_disk::CrashDisk;
use crate::support::{
    MemorySource, Random, fixtures, is_blessing, naive_reader, restore_chain, text,
};
use imgsnap::base::digest::{DigestAlgorithm, DigestKey, ImageDigest};
use imgsnap::base::error::ErrorKind;
use imgsnap::base::units::{BlockRange, BlockSize, PartSize};
use imgsnap::chain::Chain;
use imgsnap::codec::Compression;
use imgsnap::delta::{Caches, Delta, Identity, LayerOutput, TableCursor, write_layer_file};
use imgsnap::format::header::PARTS;
use imgsnap::format::part::part_name;
use imgsnap::format::{
    Features, Header, MAX_BLOCKS, PartEntry, PartFooter, PartTable, Run, RunKind,
};
use imgsnap::ops::snapshot::engine::{ChainParameters, Parent, Plan, take, take_part};
use imgsnap::repo::host::HostState;
use imgsnap::repo::retention::{Count, Rules};
use imgsnap::scan::{BadMedium, Scope};
use imgsnap::store::{LocalStore, OsDisk, Store};
use imgsnap::{
    At, Context, Defaults, PruneRequest, Repository, Result, SnapshotRequest, VerifyScope,
};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use uuid::Uuid;

const CELL: u64 = 4;
const BLOCK: usize = 4096;

/// Files of a layer, in memory; the last one is the layer file, or all of it.
#[derive(Default)]
struct Files {
    parts: BTreeMap<String, Vec<u8>>,
    last: Vec<u8>,
}

impl LayerOutput for Files {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.last.extend_from_slice(bytes);
        Ok(())
    }

    fn end_part(&mut self, _: &PartFooter) -> Result<Uuid> {
        let object = Uuid::from_u128(0x0a00 + self.parts.len() as u128);
        self.parts.insert(part_name(object), std::mem::take(&mut self.last));
        Ok(object)
    }
}

/// How a layer is written.
#[derive(Debug, Clone, Copy, PartialEq)]
enum How {
    OneFile,
    /// One after the other, as far as there is enough for a part.
    Cut,
    /// Each cell by itself, the last one first.
    Cells,
}

/// A chain in memory, with the same ids whoever writes it.
struct Maker {
    store: Arc<dyn Store>,
    disk: Arc<CrashDisk>,
    layers: Vec<Arc<Delta>>,
    parameters: ChainParameters,
    threads: usize,
}

impl Maker {
    fn new(threads: usize) -> Self {
        let disk = Arc::new(CrashDisk::default());
        let parameters = ChainParameters {
            block_size: BlockSize::DEFAULT,
            algorithm: DigestAlgorithm::Xxh3,
            key: DigestKey([0x5a; 32]),
        };
        let store = Arc::new(LocalStore::new(disk.clone()));
        Self { store, disk, layers: Vec::new(), parameters, threads }
    }

    fn chain(&self) -> Option<Chain> {
        (!self.layers.is_empty()).then(|| Chain::link(self.layers.clone()).unwrap())
    }

    fn plan(&self) -> Plan {
        let number = self.layers.len() as u64 + 1;
        Plan {
            parent: self.chain().map_or(Parent::None(self.parameters), Parent::Tip),
            identity: Identity {
                snapshot_id: Uuid::from_u128(0x100 + u128::from(number)),
                number,
                label: None,
                time_seconds: 1_790_000_000,
                time_nanoseconds: 0,
            },
            file_id: Uuid::from_u128(0x200 + u128::from(number)),
            image_id: Uuid::from_u128(0x300),
            compression: Compression::Lz4,
            is_by_reference: false,
            bad_medium: BadMedium::Fail,
            cell_blocks: Some(CELL),
        }
    }

    /// The files of the next snapshot.
    fn files(&self, image: &[u8], how: How) -> Files {
        let context = Context::silent().with_threads(self.threads);
        let source = MemorySource(image.to_vec());
        let mut files = Files::default();
        let plan = Plan { cell_blocks: (how == How::Cut).then_some(CELL), ..self.plan() };
        if how != How::Cells {
            take(&source, &plan, Scope::Whole, &context, &mut files).unwrap();
            return files;
        }
        let before = self.chain().map_or(0, |chain| chain.geometry().block_count());
        let end = (image.len().div_ceil(BLOCK) as u64).max(before);
        let cells: Vec<u64> = (0..end.div_ceil(CELL)).rev().collect();
        let (mut parts, mut difference, mut proof) = (Vec::new(), 0u128, 0u128);
        let mut header = None;
        for cell in cells {
            let end = if (cell + 1) * CELL >= end { MAX_BLOCKS } else { (cell + 1) * CELL };
            let range = BlockRange::between(cell * CELL, end);
            let mut one = Files::default();
            let taken = take_part(&source, &plan, range, &context, &mut one).unwrap();
            let footer = taken.written.footer;
            difference = difference.wrapping_add(footer.terms.difference);
            proof = proof.wrapping_add(footer.terms.before.unwrap());
            if footer.counts.tables > 0 {
                let object = Uuid::from_u128(0xb00 + u128::from(cell));
                parts.insert(0, PartEntry::of(object, &footer, taken.written.footer_digest));
                header = Some(Header::decode(one.last[..256].try_into().unwrap()).unwrap());
                files.parts.insert(part_name(object), one.last);
            }
        }
        let hasher =
            imgsnap::base::digest::Hasher::new(self.parameters.algorithm, self.parameters.key);
        let size = |bytes: u64| hasher.size_term(bytes);
        let chain = self.chain();
        let terms = chain.as_ref().map_or(ImageDigest(0), |chain| {
            chain.image_digest().minus(size(chain.geometry().image_bytes))
        });
        // What the parts were compared with is all of the parent.
        assert_eq!(terms.0, proof);
        let digest = terms.plus(difference).plus(size(image.len() as u64));
        let header = Header {
            features: Features::incompatible(PARTS),
            file_id: plan.file_id,
            ..header.expect("something has changed")
        };
        let table = PartTable { cell_blocks: CELL, parts };
        let (identity, lineage) = (&plan.identity, chain.as_ref().map(Chain::as_parent));
        let bytes = image.len() as u64;
        write_layer_file(&header, table, identity, lineage, bytes, digest, &mut files).unwrap();
        files
    }

    fn open(&self, files: &Files) -> Result<Arc<Delta>> {
        let name = format!("{}.delta", self.layers.len());
        files.parts.iter().for_each(|(name, bytes)| self.disk.put(name, bytes));
        self.disk.put(&name, &files.last);
        Delta::open(self.store.clone(), &name, &Caches::default()).map(Arc::new)
    }

    fn add(&mut self, image: &[u8], how: How) -> Files {
        let files = self.files(image, how);
        self.layers.insert(0, self.open(&files).unwrap());
        files
    }
}

/// Runs of a layer, neighbours of one kind joined, with what digests they have.
fn runs(delta: &Arc<Delta>) -> Vec<(RunKind, BlockRange, Vec<[u8; 16]>)> {
    let mut cursor = TableCursor::new(delta.clone());
    cursor.seek(0).unwrap();
    let mut all: Vec<(RunKind, BlockRange, Vec<[u8; 16]>)> = Vec::new();
    while let Some((page, Run { blocks, kind, ordinal })) = cursor.run() {
        let count = if kind == RunKind::Data { blocks.count as usize } else { 0 };
        let digests = page.digests[ordinal as usize..ordinal as usize + count].iter();
        let digests: Vec<[u8; 16]> = digests.map(|digest| digest.0).collect();
        match all.last_mut().filter(|last| last.0 == kind && last.1.end() == blocks.first) {
            Some(last) => {
                last.1.count += blocks.count;
                last.2.extend(digests);
            }
            None => all.push((kind, blocks, digests)),
        }
        cursor.advance().unwrap();
    }
    all
}

/// Images that grow and shrink across lines of the grid, with holes and ends within blocks.
fn history(seed: u64) -> Vec<Vec<u8>> {
    let mut random = Random(seed);
    let mut image = text(30 * BLOCK + 11, seed);
    let mut history = vec![image.clone()];
    for blocks in [30, 17, 16, 33, 5, 40] {
        image.resize(blocks * BLOCK + random.below(2) as usize * 777, 0);
        for _ in 0..4 {
            let at = random.below(image.len() as u64) as usize;
            let end = (at + random.below(9 * BLOCK as u64) as usize).min(image.len());
            match random.below(3) {
                0 => image[at..end].fill(0),
                _ => image[at..end].copy_from_slice(&text(end - at, random.next())),
            }
        }
        // So that each has something.
        image[0] ^= 1;
        history.push(image.clone());
    }
    history
}

/// O6: files depend on who wrote them, and what they mean does not.
#[test]
fn whoever_writes_a_layer_it_has_the_same_runs_and_the_same_digest() {
    for seed in 0..12 {
        let mut told = Vec::new();
        for how in [How::OneFile, How::Cut, How::Cells] {
            for threads in [1, 3] {
                let mut maker = Maker::new(threads);
                let mut each = Vec::new();
                for image in history(seed) {
                    maker.add(&image, how);
                    let chain = maker.chain().unwrap();
                    assert!(restore_chain(&chain).unwrap() == image, "{seed} {how:?}");
                    let tip = &maker.layers[0];
                    if how == How::Cells {
                        assert!(tip.table().is_some());
                    }
                    each.push((chain.image_digest(), tip.footer().counts.data_blocks, runs(tip)));
                }
                told.push(each);
            }
        }
        for other in &told[1..] {
            assert!(*other == told[0], "{seed}");
        }
    }
}

/// L1 to L4, G1 to G3: what is wrong with a layer of parts, and how that is said.
#[test]
fn each_fault_of_a_layer_is_found_by_both_readers() {
    let image = text(11 * BLOCK + 9, 1);
    let maker = Maker::new(1);
    let whole = maker.files(&image, How::Cells);
    let names: Vec<String> = whole.parts.keys().cloned().collect();
    type Edit = fn(&mut Files, &[String]);
    let cases: [(&str, Edit, &str, &str); 16] = [
        ("part missing", |f, n| drop(f.parts.remove(&n[1])), "is missing", "P4"),
        ("part of another place", |f, n| swap(f, n), "it is not the part that", "L3"),
        ("no part footer", |f, n| flip(f, &n[0], -511), "no valid part footer", "G1"),
        ("cut part", |f, n| f.parts.get_mut(&n[0]).unwrap().truncate(900), "no valid part", "G1"),
        ("a block of it", |f, n| flip(f, &n[2], 280), "checksum mismatch", "K2"),
        ("other terms", |f, n| put(f, &n[0], -480, &[1; 16]), "it is not the part that", "L3"),
        ("other range", |f, n| put(f, &n[0], -496, &[9]), "invalid part from block 9", "L3"),
        ("flag of its own", |f, n| put(f, &n[0], -360, &[2]), "terms before it", "L3"),
        ("part reserved", |f, n| put(f, &n[0], -300, &[1]), "reserved bytes", "C2"),
        ("too many parts", |f, _| table(f, 0, &[9]), "the page ends", "L2"),
        ("no parts", |f, _| table(f, 0, &[0]), "invalid table of 0 parts", "L2"),
        ("no grid", |f, _| table(f, 8, &[0]), "invalid part grid of 0 blocks", "L2"),
        ("other grid", |f, _| table(f, 8, &[3]), "not on their grid", "L2"),
        ("overlap", |f, _| table(f, 16 + 24, &[8]), "not in order", "L3"),
        ("other digest", |f, _| table(f, 16 + 56, &[1; 16]), "does not match its footer", "L3"),
        ("other count", |f, _| table(f, 16 + 72, &[1]), "does not match its footer", "L3"),
    ];
    for (what, edit, ours, theirs) in cases {
        let mut files = Files { parts: whole.parts.clone(), last: whole.last.clone() };
        edit(&mut files, &names);
        let maker = Maker::new(1);
        let error = maker
            .open(&files)
            .and_then(|delta| restore_chain(&Chain::link(vec![delta])?))
            .err()
            .unwrap_or_else(|| panic!("{what}: taken"));
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
        assert!(error.to_string().contains(ours), "{what}: {error}");
        let second = naive_reader::parse_layer(&files.last, &mut |name| {
            files.parts.get(name).cloned().ok_or_else(|| format!("P4: {name} is not there"))
        });
        let second = second.err().unwrap_or_else(|| panic!("{what}: taken by the second reader"));
        assert!(second.starts_with(theirs), "{what}: {second}");
    }
}

fn at(bytes: &[u8], place: isize) -> usize {
    if place < 0 { bytes.len() - place.unsigned_abs() } else { place.unsigned_abs() }
}

fn flip(files: &mut Files, name: &str, place: isize) {
    let bytes = files.parts.get_mut(name).unwrap();
    let at = at(bytes, place);
    bytes[at] ^= 0x55;
}

/// Puts bytes into a part, and its footer right.
fn put(files: &mut Files, name: &str, place: isize, new: &[u8]) {
    let bytes = files.parts.get_mut(name).unwrap();
    let at = at(bytes, place);
    bytes[at..at + new.len()].copy_from_slice(new);
    mend(bytes);
}

fn mend(file: &mut [u8]) {
    let end = file.len();
    let crc = crc32fast::hash(&file[end - 512..end - 4]);
    file[end - 4..].copy_from_slice(&crc.to_le_bytes());
}

fn swap(files: &mut Files, names: &[String]) {
    let (one, other) = (files.parts[&names[0]].clone(), files.parts[&names[1]].clone());
    files.parts.insert(names[0].clone(), other);
    files.parts.insert(names[1].clone(), one);
}

/// Puts bytes into the table of the layer file, and its checksums and digest right.
fn table(files: &mut Files, place: usize, new: &[u8]) {
    let file = &mut files.last;
    let at = 256 + 16 + place;
    file[at..at + new.len()].copy_from_slice(new);
    let end = file.len() - 512;
    let mut crc = crc32fast::Hasher::new();
    crc.update(&file[40..56]);
    crc.update(&256u64.to_le_bytes());
    crc.update(&file[256..268]);
    crc.update(&file[272..end]);
    let crc = crc.finalize().to_le_bytes();
    file[268..272].copy_from_slice(&crc);
    file[end + 188..end + 192].copy_from_slice(&crc);
    let hasher = imgsnap::base::digest::Hasher::new(DigestAlgorithm::Xxh3, DigestKey([0x5a; 32]));
    let digest = hasher.digest(&file[..end]).0;
    file[end + 104..end + 120].copy_from_slice(&digest);
    mend(file);
}

/// Each byte of all of its files.
#[test]
fn a_flipped_byte_of_a_layer_gives_an_error_or_the_right_bytes() {
    let image = text(2 * CELL as usize * BLOCK + 9, 1);
    let whole = Maker::new(1).files(&image, How::Cells);
    let names: Vec<Option<String>> = whole.parts.keys().cloned().map(Some).chain([None]).collect();
    for name in names {
        let mut files = Files { parts: whole.parts.clone(), last: whole.last.clone() };
        let length = name.as_ref().map_or(whole.last.len(), |name| whole.parts[name].len());
        for byte in (0..length).filter(|at| *at < 300 || at % 3 == 0 || length - at < 520) {
            let bytes = match &name {
                Some(name) => files.parts.get_mut(name).unwrap(),
                None => &mut files.last,
            };
            bytes[byte] ^= 0x41;
            let maker = Maker::new(1);
            let opened = maker.open(&files);
            match opened.and_then(|delta| restore_chain(&Chain::link(vec![delta])?)) {
                Ok(restored) => assert!(restored == image, "{name:?} {byte}: wrong bytes"),
                Err(error) => {
                    let kinds = [ErrorKind::Corrupt, ErrorKind::Unsupported];
                    assert!(kinds.contains(&error.kind()), "{name:?} {byte}: {error}");
                }
            }
            let bytes = match &name {
                Some(name) => files.parts.get_mut(name).unwrap(),
                None => &mut files.last,
            };
            bytes[byte] ^= 0x41;
        }
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(std::result::Result::unwrap) {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        match entry.file_type().unwrap().is_dir() {
            true => copy(&from, &to),
            false => drop(std::fs::copy(&from, &to).unwrap()),
        }
    }
}

/// The states of the golden repository, of which the second is dropped.
fn golden_states() -> [Vec<u8>; 3] {
    let first = text(200_000, 1);
    let mut second = first.clone();
    second[66_000..140_000].copy_from_slice(&text(74_000, 2));
    let mut third = second[..150_001].to_vec();
    third[7] ^= 1;
    [first, second, third]
}

fn open(repo: &Path) -> Repository {
    let store: Arc<dyn Store> = Arc::new(LocalStore::new(Arc::new(OsDisk::new(repo.to_owned()))));
    let host = HostState::in_folder(&repo.join("../state"));
    match store.list("").unwrap().is_empty() {
        true => Repository::init_in(store, Defaults::default(), host).unwrap(),
        false => Repository::open_in(store, host).unwrap(),
    }
}

fn take_states(folder: &Path, repo: &Path, states: &[Vec<u8>]) {
    let (repository, context) = (open(repo), Context::silent());
    for state in states {
        std::fs::write(folder.join("vm.img"), state).unwrap();
        let request = SnapshotRequest::new(folder.join("vm.img"))
            .part_size(Some(PartSize::new(64 << 10).unwrap()));
        repository.snapshot(&request, &context).unwrap();
    }
}

/// A repository with layers of parts reads as ever, and goes on.
#[test]
fn the_golden_repository_reads_as_ever_and_goes_on() {
    let golden = fixtures().join("parts/1");
    let folder = tempfile::tempdir().unwrap();
    let repo = folder.path().join("repo");
    let states = golden_states();
    if is_blessing() && !golden.exists() {
        std::fs::create_dir(&repo).unwrap();
        take_states(folder.path(), &repo, &states);
        open(&repo).delete("vm", &At::Number(2), false, &Context::silent()).unwrap();
        std::fs::remove_file(repo.join(".reserve")).unwrap();
        copy(&repo, &golden);
        std::fs::remove_dir_all(&repo).unwrap();
    }
    copy(&golden, &repo);
    let read = |number| naive_reader::restore_from(&repo.join("vm"), number);
    assert!(read(1).unwrap() == states[0] && read(3).unwrap() == states[2]);
    let context = Context::silent();
    let verified = open(&repo).verify(&VerifyScope::All, false, &context).unwrap();
    assert!(verified.damaged.is_empty() && verified.snapshots == 2, "{:?}", verified.damaged);
    let rules = Rules { last: Some(Count::Most(1)), ..Rules::default() };
    let request = PruneRequest::new().rules(Some(rules)).compact(true);
    open(&repo).prune("vm", &request, &context).unwrap();
    assert!(naive_reader::restore_from(&repo.join("vm"), 3).unwrap() == states[2]);
}
