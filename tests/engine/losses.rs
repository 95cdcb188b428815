//! What `verify` calls lost is what cannot be restored, of every snapshot, wherever the damage is.

use crate::support::{Random, text};
use imgsnap::base::events::Context;
use imgsnap::base::units::ByteRange;
use imgsnap::image::write::Stream;
use imgsnap::repo::host::HostState;
use imgsnap::store::{LocalStore, OsDisk};
use imgsnap::view::restore;
use imgsnap::{
    At, DamageKind, Defaults, ParentChoice, Repository, SnapshotRequest, Verified, VerifyScope,
};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const BLOCK: u64 = 4096;

/// 1 <- 2 <- 3 <- 5, and 4 on 2: blocks are written over, zeroed, cut off and added again.
struct Lab {
    folder: tempfile::TempDir,
    /// What each snapshot is, from number 1 on.
    images: Vec<Vec<u8>>,
}

fn context() -> Context {
    Context::silent().with_threads(1)
}

impl Lab {
    fn new(blocks: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("repo")).unwrap();
        Repository::init_in(store(folder.path()), Defaults::default(), host(folder.path()))
            .unwrap();
        let mut lab = Self { folder, images: Vec::new() };
        let mut image = text((blocks * BLOCK) as usize - 100, 1);
        let mut numbers = Random(5);
        for number in 1..=5 {
            if number > 1 {
                for _ in 0..blocks / 6 {
                    let at = (numbers.below(blocks - 1) * BLOCK) as usize;
                    let end = (at + BLOCK as usize).min(image.len());
                    let bytes = numbers.bytes(end.saturating_sub(at));
                    let is_zero = numbers.below(4) == 0;
                    image[at.min(end)..end].copy_from_slice(&bytes);
                    image[at.min(end)..end].iter_mut().for_each(|b| {
                        if is_zero {
                            *b = 0
                        }
                    });
                }
            }
            if number == 3 {
                image.truncate(image.len() * 3 / 4);
            }
            if number == 5 {
                image.resize((blocks * BLOCK) as usize, 7);
            }
            let parent = match number {
                4 => ParentChoice::Of(At::Number(2)),
                5 => ParentChoice::Of(At::Number(3)),
                _ => ParentChoice::Incremental,
            };
            std::fs::write(lab.image(), &image).unwrap();
            let request = SnapshotRequest::new(lab.image()).parent(parent).full_scan(true);
            lab.open().snapshot(&request, &context()).unwrap();
            lab.images.push(image.clone());
        }
        lab
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("vm.img")
    }

    fn open(&self) -> Repository {
        Repository::open_in(store(self.folder.path()), host(self.folder.path())).unwrap()
    }

    fn delta(&self, number: u64) -> PathBuf {
        let manifest = self.open().list("vm", &context()).unwrap().manifest;
        let file = &manifest.snapshots[number as usize - 1].file;
        self.folder.path().join("repo/vm").join(file)
    }

    fn verify(&self) -> Verified {
        self.open().verify(&VerifyScope::All, false, &context()).unwrap()
    }

    /// The blocks of a snapshot that cannot be restored; none if nothing of it can.
    fn unrestorable(&self, number: u64) -> Option<BTreeSet<u64>> {
        let repository = self.open();
        let reader = repository.read("vm", &context()).unwrap();
        let id = reader.find(&At::Number(number)).unwrap().id;
        let chain = repository.chain(&reader, id).ok()?;
        let image = &self.images[number as usize - 1];
        let mut lost = BTreeSet::new();
        for block in 0..(image.len() as u64).div_ceil(BLOCK) {
            let offset = block * BLOCK;
            let bytes = BLOCK.min(image.len() as u64 - offset);
            let mut out = Vec::new();
            let range = Some(ByteRange { offset, bytes });
            match restore(&chain, range, &mut Stream::new(&mut out, "memory"), &context()) {
                Ok(_) => assert!(out == image[offset as usize..][..bytes as usize], "wrong bytes"),
                Err(_) => assert!(lost.insert(block)),
            }
        }
        Some(lost)
    }

    /// Holds what is told against what can be done.
    fn check(&self, verified: &Verified, what: &str) {
        assert!(!verified.damaged.is_empty(), "{what}: not found");
        for number in 1..=5u64 {
            let name = format!("vm@{number}");
            let told = verified.lost.iter().find(|loss| loss.snapshot == name);
            assert_ne!(told.is_some(), verified.whole.contains(&name), "{what}: {name}");
            let told = match told {
                None => Some(BTreeSet::new()),
                Some(loss) => loss.blocks.as_ref().map(|blocks| {
                    let told = blocks.ranges.iter().flat_map(|r| r.first..r.end());
                    let told: BTreeSet<u64> = told.collect();
                    assert_eq!(told.len() as u64, blocks.count, "{what}: {name}");
                    told
                }),
            };
            let found = self.unrestorable(number);
            if verified.damaged.iter().all(|damage| damage.kind != DamageKind::Table) {
                assert!(told == found, "{what}: {name}");
                continue;
            }
            // What a page covers is lost but for what newer pages hide, if they hide all of it.
            let (told, found) = (told.unwrap_or_default(), found.unwrap_or_default());
            assert!(
                found.is_subset(&told) && (told.len() - found.len()) * 8 <= told.len(),
                "{what}: {name}"
            );
        }
    }
}

fn host(folder: &Path) -> HostState {
    HostState::in_folder(&folder.join("state"))
}

fn store(folder: &Path) -> Arc<LocalStore> {
    Arc::new(LocalStore::new(Arc::new(OsDisk::new(folder.join("repo")))))
}

#[test]
fn what_is_lost_is_exactly_what_cannot_be_restored() {
    let lab = Lab::new(60);
    let mut numbers = Random(9);
    let mut kinds = BTreeSet::new();
    for round in 0..40 {
        let number = 1 + round % 5;
        let delta = lab.delta(number);
        let sound = std::fs::read(&delta).unwrap();
        let mut bytes = sound.clone();
        // Anywhere; then in the page, which stands before the footer.
        let at = match round % 4 {
            // In the header or the footer.
            3 if round % 8 == 3 => numbers.below(256) as usize,
            3 => bytes.len() - 1 - numbers.below(512) as usize,
            0 => numbers.below(bytes.len() as u64) as usize,
            1 => bytes.len() - 513 - numbers.below(200) as usize,
            _ => 256 + numbers.below(bytes.len() as u64 - 1024) as usize,
        };
        bytes[at] ^= 1 << numbers.below(8);
        std::fs::write(&delta, &bytes).unwrap();
        let verified = lab.verify();
        kinds.extend(verified.damaged.iter().map(|damage| damage.kind.name()));
        assert!(verified.damaged.iter().all(|d| d.snapshot == format!("vm@{number}")));
        lab.check(&verified, &format!("byte {at} of vm@{number}"));
        std::fs::write(&delta, &sound).unwrap();
    }
    assert!(["blocks", "table", "file"].iter().all(|kind| kinds.contains(kind)), "{kinds:?}");
    assert_eq!(lab.verify().damaged, []);
}

/// Several pages, so that the rest of the tree is passed; and damage in two files at once.
#[test]
fn a_lost_page_loses_its_blocks_and_no_others() {
    let lab = Lab::new(3000);
    let mut numbers = Random(11);
    for round in 0..2 {
        let mut sound = Vec::new();
        for number in [1, 3] {
            let delta = lab.delta(number);
            let bytes = std::fs::read(&delta).unwrap();
            let mut damaged = bytes.clone();
            let pages: Vec<usize> =
                (0..bytes.len() - 4).filter(|at| &bytes[*at..at + 4] == b"TABL").collect();
            assert!(number != 1 || pages.len() > 2, "{} pages", pages.len());
            damaged[pages[numbers.below(pages.len() as u64) as usize] + 40] ^= 1;
            std::fs::write(&delta, &damaged).unwrap();
            sound.push((delta, bytes));
        }
        let verified = lab.verify();
        assert!(verified.damaged.iter().any(|d| d.kind == DamageKind::Table));
        lab.check(&verified, &format!("round {round}"));
        for (delta, bytes) in sound {
            std::fs::write(delta, bytes).unwrap();
        }
    }
}

#[test]
fn a_missing_file_loses_all_that_rests_on_it_and_nothing_else() {
    let lab = Lab::new(30);
    std::fs::remove_file(lab.delta(3)).unwrap();
    let verified = lab.verify();
    assert_eq!(verified.damaged.len(), 1);
    assert_eq!(verified.damaged[0].kind, DamageKind::File);
    assert_eq!(verified.whole, ["vm@1", "vm@2", "vm@4"]);
    lab.check(&verified, "vm@3 is missing");
}
