//! What all histories share: a place for the live image, base images, snapshots that come from elsewhere.

use crate::support::crash_disk::CrashDisk;
use crate::support::inside::opened;
use crate::support::{Random, text};
use imgsnap::base::events::Context;
use imgsnap::base::units::PartSize;
use imgsnap::repo::host::HostState;
use imgsnap::store::{LocalStore, Store};
use imgsnap::{At, Defaults, ExportRequest, Repository, SnapshotRequest};
use std::path::PathBuf;
use std::sync::Arc;

pub type Bytes = Arc<Vec<u8>>;

pub const BLOCK: usize = 4096;
/// The longest image.
pub const MOST_BYTES: usize = 7 * BLOCK;

/// A delta file of another repository.
pub struct Delivery {
    pub file: Vec<u8>,
    pub number: u64,
    pub content: Bytes,
}

pub struct World {
    folder: tempfile::TempDir,
    pub templates: Vec<Bytes>,
    pub deliveries: Vec<Delivery>,
}

pub fn context() -> Context {
    Context::silent().with_threads(1)
}

pub fn repository_on(disk: &CrashDisk) -> imgsnap::base::error::Result<Repository> {
    let store: Arc<dyn Store> = Arc::new(LocalStore::new(Arc::new(disk.clone())));
    Repository::open_in(opened(store.clone())?, HostState::in_store(store, "host"))
}

/// What the folder of an image is called on the disk.
pub fn folder_on(disk: &CrashDisk, name: &str) -> String {
    let store = opened(Arc::new(LocalStore::new(Arc::new(disk.clone())))).unwrap();
    let location = store.location(&format!("{name}/file"));
    location.strip_prefix("disk:").unwrap().strip_suffix("/file").unwrap().to_owned()
}

pub fn init(disk: &CrashDisk, in_parts: bool) -> imgsnap::base::error::Result<()> {
    let store: Arc<dyn Store> = Arc::new(LocalStore::new(Arc::new(disk.clone())));
    let host = HostState::in_store(store.clone(), "host");
    let part_size = if in_parts { PartSize::new(8192)? } else { PartSize::USUAL };
    let defaults = Defaults { part_size, ..Defaults::default() };
    Repository::init_in(opened(store)?, defaults, host).map(|_| ())
}

/// Some content of an image: text, noise and zeros.
pub fn content(random: &mut Random, bytes: usize) -> Vec<u8> {
    let mut image = Vec::with_capacity(bytes + BLOCK);
    while image.len() < bytes {
        match random.below(3) {
            0 => image.extend(random.bytes(BLOCK)),
            1 => image.extend(text(BLOCK, random.next())),
            _ => image.resize(image.len() + BLOCK, 0),
        }
    }
    image.truncate(bytes);
    image
}

impl World {
    pub fn new() -> Self {
        // In memory, if that is to be had: it is written for each history.
        let memory = tempfile::Builder::new().prefix("imgsnap-power-").tempdir_in("/dev/shm");
        let folder = memory.or_else(|_| tempfile::tempdir()).unwrap();
        let mut random = Random(3);
        let templates =
            [3 * BLOCK, 5 * BLOCK - 100].map(|bytes| Arc::new(content(&mut random, bytes)));
        let mut world = Self { folder, templates: templates.into(), deliveries: Vec::new() };
        for index in 0..world.templates.len() {
            std::fs::write(world.template(index), &*world.templates[index]).unwrap();
        }
        world.deliveries = world.deliver(&mut random);
        std::fs::write(world.image(0), [0]).unwrap();
        std::fs::hard_link(world.image(0), world.image(1)).unwrap();
        world
    }

    /// One of the two names of the live image.
    pub fn image(&self, name: usize) -> PathBuf {
        self.folder.path().join(["vm.img", "moved.img"][name])
    }

    pub fn template(&self, index: usize) -> PathBuf {
        self.folder.path().join(format!("template-{index}"))
    }

    /// The live image is what it is on the disk.
    pub fn show(&self, disk: &CrashDisk) {
        std::fs::write(self.image(0), &*disk.image()).unwrap();
    }

    /// Nobody has changed the live image but through the disk.
    pub fn is_shown(&self, disk: &CrashDisk) -> bool {
        std::fs::read(self.image(0)).unwrap() == *disk.image()
    }

    /// A full one, and two that follow it.
    fn deliver(&self, random: &mut Random) -> Vec<Delivery> {
        let disk = CrashDisk::default();
        init(&disk, false).unwrap();
        let repository = repository_on(&disk).unwrap();
        let image = self.folder.path().join("origin.img");
        let mut bytes = content(random, 4 * BLOCK);
        let mut deliveries = Vec::new();
        for number in 1..=3u64 {
            bytes[number as usize * 3000..][..900].fill(number as u8);
            std::fs::write(&image, &bytes).unwrap();
            let request = SnapshotRequest::new(image.clone());
            repository.snapshot(&request, &context()).unwrap();
            let since = (number > 1).then_some(At::Number(number - 1));
            let request = ExportRequest::new("origin", At::Number(number)).since(since);
            let mut file = Vec::new();
            let mut out = |piece: &[u8]| {
                file.extend_from_slice(piece);
                Ok(())
            };
            repository.export(&request, &context(), &mut out).unwrap();
            deliveries.push(Delivery { file, number, content: Arc::new(bytes.clone()) });
        }
        deliveries
    }
}
