//! What several kinds of test share: images in memory, snapshots with fixed ids, a disk that
//! crashes.

#![allow(
    dead_code,
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

pub mod config;
pub mod crash_disk;
pub mod inside;
pub mod naive_reader;
pub mod power;
pub mod random;

pub use random::Random;

use imgsnap::base::digest::{DigestAlgorithm, DigestKey};
use imgsnap::base::error::Result;
use imgsnap::base::events::Context;
use imgsnap::base::units::{BlockSize, Extent, ExtentKind};
use imgsnap::chain::{Chain, Fork};
use imgsnap::codec::Compression;
use imgsnap::delta::{Caches, Delta, Identity};
use imgsnap::image::{Source, Window};
use imgsnap::merge;
use imgsnap::ops::snapshot::engine::{ChainParameters, Parent, Plan, Taken, take};
use imgsnap::scan::{BadMedium, Scope};
use imgsnap::store::{LocalStore, Store};
use std::path::PathBuf;
use std::sync::Arc;
use uuid::Uuid;

/// An image in memory. Whole zero pages are holes.
pub struct MemorySource(pub Vec<u8>);

impl Source for MemorySource {
    fn image_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        const PAGE: usize = 4096;
        let is_hole = |at: usize| {
            self.0[at..(at / PAGE * PAGE + PAGE).min(self.0.len())].iter().all(|&b| b == 0)
        };
        let start = offset as usize;
        let hole = is_hole(start);
        let mut end = start;
        while end < self.0.len() && is_hole(end) == hole {
            end = (end / PAGE + 1) * PAGE;
        }
        let bytes = end.min(self.0.len()) as u64 - offset;
        let kind = if hole { ExtentKind::Hole } else { ExtentKind::Data };
        Ok(Extent { offset, bytes, kind })
    }

    fn read<'a>(
        &'a self,
        offset: u64,
        bytes: usize,
        buffer: &'a mut Vec<u8>,
    ) -> Result<Window<'a>> {
        buffer.clear();
        buffer.extend_from_slice(&self.0[offset as usize..][..bytes]);
        Ok(Window::Copied(buffer))
    }

    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn name(&self) -> String {
        "memory".into()
    }
}

/// Words of text: compressible, and no two blocks alike.
pub fn text(length: usize, seed: u64) -> Vec<u8> {
    let mut numbers = Random(seed);
    let mut out = Vec::with_capacity(length + 16);
    while out.len() < length {
        out.extend_from_slice(format!("word{} ", numbers.below(500)).as_bytes());
    }
    out.truncate(length);
    out
}

/// How the snapshots of a chain are made.
#[derive(Clone, Copy)]
pub struct Recipe {
    pub block_bytes: u32,
    pub algorithm: DigestAlgorithm,
    pub compression: Compression,
    pub threads: usize,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            block_bytes: 4096,
            algorithm: DigestAlgorithm::Xxh3,
            compression: Compression::Lz4,
            threads: 2,
        }
    }
}

/// A chain of snapshots of images in memory, with ids that are the same every time.
pub struct ChainMaker {
    pub recipe: Recipe,
    pub disk: Arc<crash_disk::CrashDisk>,
    pub files: Vec<Vec<u8>>,
    store: Arc<dyn Store>,
    tips: Vec<Arc<Delta>>,
}

impl ChainMaker {
    pub fn new(recipe: Recipe) -> Self {
        let disk = Arc::new(crash_disk::CrashDisk::default());
        let store: Arc<dyn Store> = Arc::new(LocalStore::new(disk.clone()));
        store.create_folder("vm").unwrap();
        Self { recipe, disk, files: Vec::new(), store, tips: Vec::new() }
    }

    pub fn id(kind: u8, number: usize) -> Uuid {
        let mut bytes = [kind; 16];
        bytes[15] = number as u8;
        Uuid::from_bytes(bytes)
    }

    pub fn plan(&self) -> Plan {
        let number = self.files.len() + 1;
        let parent = match self.chain() {
            Some(chain) => Parent::Tip(chain),
            None => Parent::None(ChainParameters {
                block_size: BlockSize::new(self.recipe.block_bytes).unwrap(),
                algorithm: self.recipe.algorithm,
                key: DigestKey([0x5a; 32]),
            }),
        };
        Plan {
            parent,
            identity: Identity {
                snapshot_id: Self::id(0xa0, number),
                number: number as u64,
                label: (number == 1).then(|| "golden".to_owned()),
                time_seconds: 1_760_000_000 + number as i64,
                time_nanoseconds: 5,
            },
            file_id: Self::id(0xf0, number),
            cell_blocks: None,
            image_id: Self::id(0x10, 1),
            compression: self.recipe.compression,
            is_by_reference: false,
            bad_medium: BadMedium::Fail,
        }
    }

    /// Takes a snapshot and adds it to the chain.
    pub fn snapshot(&mut self, image: &[u8]) -> Taken {
        let (taken, bytes) = self.try_snapshot(image);
        self.add(bytes);
        taken
    }

    /// Takes a snapshot and gives its file.
    pub fn try_snapshot(&self, image: &[u8]) -> (Taken, Vec<u8>) {
        let context = Context::silent().with_threads(self.recipe.threads);
        let mut bytes = Vec::new();
        let source = MemorySource(image.to_vec());
        let taken = take(&source, &self.plan(), Scope::Whole, &context, &mut |piece: &[u8]| {
            bytes.extend_from_slice(piece);
            Ok(())
        });
        (taken.unwrap(), bytes)
    }

    /// Adds a file to the chain as it is.
    pub fn add(&mut self, bytes: Vec<u8>) {
        let name = format!("vm/{}.delta", self.files.len());
        self.disk.put(&name, &bytes);
        self.files.push(bytes);
        let delta = Delta::open(self.store.clone(), &name, &Caches::default()).unwrap();
        self.tips.insert(0, Arc::new(delta));
    }

    pub fn chain(&self) -> Option<Chain> {
        (!self.tips.is_empty()).then(|| self.chain_at(self.files.len()))
    }

    /// The chain of the snapshot with a number.
    pub fn chain_at(&self, number: usize) -> Chain {
        Chain::link(self.tips[self.files.len() - number..].to_vec()).unwrap()
    }

    /// The file of a snapshot against another one, or a full one.
    pub fn merged(&self, number: usize, parent: Option<usize>) -> Vec<u8> {
        let parent_chain = parent.map(|number| self.chain_at(number));
        let id = Self::id(0xe0, number * 16 + parent.unwrap_or(0));
        merge_chain(self.chain_at(number), parent_chain, id, self.recipe)
    }
}

/// Merges the files of `tip` into one against `parent`, with the identity of a file that is given.
pub fn merge_chain(tip: Chain, parent: Option<Chain>, file_id: Uuid, recipe: Recipe) -> Vec<u8> {
    let footer = tip.tip().footer().clone();
    let plan = merge::Plan {
        fork: Fork::new(tip, parent).unwrap(),
        identity: Identity::of(&footer),
        file_id,
        compression: recipe.compression,
        cell_blocks: None,
        kept: Vec::new(),
    };
    let context = Context::silent().with_threads(recipe.threads);
    let mut bytes = Vec::new();
    let merged = merge::merge(&plan, &context, &mut |piece: &[u8]| {
        bytes.extend_from_slice(piece);
        Ok(())
    });
    assert_eq!(merged.unwrap().written.footer.file_bytes, bytes.len() as u64);
    bytes
}

/// Opens a chain of files, base first, that are held in memory.
pub fn open_chain(files: &[Vec<u8>]) -> Result<Chain> {
    open_chain_on(files, None)
}

/// The same where the blocks of the base are in a base image.
pub fn open_chain_on(files: &[Vec<u8>], base_image: Option<PathBuf>) -> Result<Chain> {
    let disk = Arc::new(crash_disk::CrashDisk::default());
    let store: Arc<dyn Store> = Arc::new(LocalStore::new(disk.clone()));
    let mut layers = Vec::new();
    let caches = Caches::default();
    for (index, bytes) in files.iter().enumerate() {
        let name = format!("{index}.delta");
        disk.put(&name, bytes);
        let mut delta = Delta::open(store.clone(), &name, &caches)?;
        delta.set_base_image("vm@1", base_image.clone());
        layers.insert(0, Arc::new(delta));
    }
    Chain::link(layers)
}

/// Restores the tip of a chain into memory.
pub fn restore_chain(chain: &Chain) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    if chain.geometry().image_bytes > 64 << 20 {
        return Err(imgsnap::base::error::Error::corrupt(
            "an image too long for the memory of a test",
        ));
    }
    let mut target = imgsnap::image::write::Stream::new(&mut out, "memory");
    imgsnap::view::restore(chain, None, &mut target, &Context::silent().with_threads(1))?;
    Ok(out)
}

pub fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// True if the fixtures are to be written instead of compared. A released version's never are.
pub fn is_blessing() -> bool {
    std::env::var_os("IMGSNAP_BLESS").is_some()
}
