//! What a disk holds, what of it is durable, and what may be left of the rest when the power goes.
//!
//! As little is promised as a file system may promise:
//!
//! - The bytes of a file are durable up to its last sync. Of what was written since, each sector of 512
//!   bytes is there, or is zeros, or is garbage, or is torn, whatever became of the others. The length may
//!   be ahead of the bytes. Bytes that are overwritten are the old ones, the new ones, or torn.
//! - Names are durable since the last sync of their folder; the sync of a file does nothing for its name.
//!   Each change since then (a creation, a rename, a removal) is made or not, whatever became of the
//!   others. A rename is one change, as POSIX has it for those who look, and as the journals of ext4 and
//!   XFS have it for those who come after: there is the old name or the new one, and the new one is the old
//!   file or the new one, never none.
//! - A folder that is gone takes with it what is in it.
//! - A sync of a file that fails loses for good what it had to write, though it is read as written until
//!   the power goes. (Names that could not be written stop a journal, and with it the file system.)

use super::crash_disk::folder_of;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

pub const SECTOR: usize = 512;

/// What is left of what is not durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Survival {
    #[default]
    Nothing,
    Everything,
    /// Anything, as the seed says.
    Any(u64),
}

impl Survival {
    /// One of 0..bound for one thing, the same each time.
    fn draw(self, thing: u64, part: u64, bound: u64) -> u64 {
        let seed = if let Self::Any(seed) = self { seed } else { 0 };
        let mixed = seed ^ thing.wrapping_mul(0xd6e8_feb8_6659_fd93) ^ part.rotate_left(40);
        super::Random(mixed).below(bound)
    }

    fn keeps(self, change: u64) -> bool {
        match self {
            Self::Nothing => false,
            Self::Everything => true,
            Self::Any(_) => self.draw(change, 1 << 20, 2) == 0,
        }
    }

    /// A sector whose bytes were `old` and are to be `new`, of one length.
    fn sector(
        self,
        thing: u64,
        index: u64,
        old: &[u8],
        new: &[u8],
        may_be_garbage: bool,
    ) -> Vec<u8> {
        match self {
            Self::Nothing => return old.to_vec(),
            Self::Everything => return new.to_vec(),
            Self::Any(_) => {}
        }
        // Often all of a file has one fate.
        let fate = match self.draw(thing, 2 << 20, 4) {
            0 => 0,
            1 => 1,
            _ => self.draw(thing, index, if may_be_garbage { 5 } else { 4 }),
        };
        let cut = self.draw(thing, index ^ 3 << 20, new.len() as u64 + 1) as usize;
        match fate {
            0 => new.to_vec(),
            1 => old.to_vec(),
            2 => [&new[..cut], &old[cut..]].concat(),
            3 => [&old[..cut], &new[cut..]].concat(),
            _ => super::Random(thing ^ index).bytes(new.len()),
        }
    }

    /// A length between that on the device and that which was asked for.
    fn length(self, thing: u64, device: usize, live: usize) -> usize {
        match self {
            Self::Nothing => device,
            Self::Everything => live,
            Self::Any(_) => match self.draw(thing, 4 << 20, 4) {
                0 => device,
                1 if live > device => {
                    device + self.draw(thing, 5 << 20, (live - device) as u64) as usize
                }
                _ => live,
            },
        }
    }
}

/// Each sector between two places of a file.
fn sectors(from: usize, to: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    (from / SECTOR..to.div_ceil(SECTOR))
        .map(move |index| (index as u64, from.max(index * SECTOR), to.min((index + 1) * SECTOR)))
}

/// A file that is written front to back. The device has its beginning.
#[derive(Clone, Default)]
struct Bytes {
    live: Arc<Vec<u8>>,
    device: Arc<Vec<u8>>,
}

impl Bytes {
    fn settle(&self, inode: u64, survival: Survival) -> Arc<Vec<u8>> {
        if self.device.len() == self.live.len() {
            return self.device.clone();
        }
        let length = survival.length(inode, self.device.len(), self.live.len());
        let mut bytes = self.device.to_vec();
        for (index, from, to) in sectors(bytes.len(), length) {
            let zeros = vec![0; to - from];
            bytes.extend(survival.sector(inode, index, &zeros, &self.live[from..to], true));
        }
        Arc::new(bytes)
    }
}

/// A change of names.
#[derive(Clone)]
pub enum Change {
    Create(String, u64),
    Rename(String, String, u64),
    Remove(String),
    CreateFolder(String),
    RemoveFolder(String),
}

impl Change {
    fn folder(&self) -> &str {
        match self {
            Self::Create(path, _) | Self::Rename(_, path, _) | Self::Remove(path) => {
                folder_of(path)
            }
            Self::CreateFolder(folder) | Self::RemoveFolder(folder) => folder_of(folder),
        }
    }

    fn apply(&self, names: &mut BTreeMap<String, u64>, folders: &mut BTreeSet<String>) {
        match self {
            Self::Create(path, inode) => {
                names.insert(path.clone(), *inode);
            }
            Self::Rename(from, to, inode) => {
                names.remove(from);
                names.insert(to.clone(), *inode);
            }
            Self::Remove(path) => {
                names.remove(path);
            }
            Self::CreateFolder(folder) => {
                folders.insert(folder.clone());
            }
            Self::RemoveFolder(folder) => {
                folders.remove(folder);
                names.retain(|path, _| folder_of(path) != folder);
            }
        }
    }
}

/// All that is on a disk.
#[derive(Clone, Default)]
pub struct Contents {
    inodes: BTreeMap<u64, Bytes>,
    pub names: BTreeMap<String, u64>,
    pub folders: BTreeSet<String>,
    durable_names: BTreeMap<String, u64>,
    durable_folders: BTreeSet<String>,
    /// Changes since the sync of their folder, each with a number.
    pending: Vec<(u64, Change)>,
    next: u64,
    pub image: Image,
    /// Syncs that are reported as done, and are not.
    pub lie: Option<Lie>,
}

/// Says of a sync, by its line in the log and the one before, that it does nothing.
pub type Lie = fn(&str, &str) -> bool;

impl Contents {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub fn put(&mut self, path: &str, bytes: &[u8]) {
        let inode = self.number();
        let bytes = Arc::new(bytes.to_vec());
        self.inodes.insert(inode, Bytes { live: bytes.clone(), device: bytes });
        self.names.insert(path.into(), inode);
        self.durable_names.insert(path.into(), inode);
        let folder = folder_of(path);
        if !folder.is_empty() {
            self.folders.insert(folder.into());
            self.durable_folders.insert(folder.into());
        }
    }

    pub fn file(&self, path: &str) -> Option<&Arc<Vec<u8>>> {
        self.names.get(path).and_then(|inode| self.inodes.get(inode)).map(|bytes| &bytes.live)
    }

    /// In the order in which they were made: names may be random.
    pub fn list(&self, folder: &str) -> Vec<String> {
        let is_here = |path: &String| !path.is_empty() && folder_of(path) == folder;
        let mut files: Vec<_> = self.names.iter().filter(|(path, _)| is_here(path)).collect();
        files.sort_by_key(|(_, inode)| **inode);
        let folders = self.folders.iter().filter(|path| is_here(path));
        let all = files.into_iter().map(|(path, _)| path).chain(folders);
        all.map(|path| path.rsplit('/').next().unwrap().to_owned()).collect()
    }

    pub fn change(&mut self, change: Change) {
        change.apply(&mut self.names, &mut self.folders);
        let number = self.number();
        self.pending.push((number, change));
    }

    pub fn create(&mut self, path: &str) -> u64 {
        let inode = self.number();
        self.inodes.insert(inode, Bytes::default());
        self.change(Change::Create(path.into(), inode));
        inode
    }

    pub fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let inode = *self.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        self.change(Change::Rename(from.into(), to.into(), inode));
        Ok(())
    }

    pub fn append(&mut self, inode: u64, bytes: &[u8]) {
        let file = self.inodes.get_mut(&inode).unwrap();
        Arc::make_mut(&mut file.live).extend_from_slice(bytes);
    }

    pub fn sync(&mut self, inode: u64) {
        let file = self.inodes.get_mut(&inode).unwrap();
        let done = file.device.len();
        if done == 0 {
            file.device = file.live.clone();
        } else {
            Arc::make_mut(&mut file.device).extend_from_slice(&file.live[done..]);
        }
    }

    /// A sync that fails.
    pub fn lose(&mut self, inode: u64, survival: Survival) {
        let file = self.inodes.get_mut(&inode).unwrap();
        let mut bytes = file.settle(inode, survival).to_vec();
        bytes.resize(file.live.len(), 0);
        file.device = Arc::new(bytes);
    }

    pub fn sync_folder(&mut self, folder: &str) {
        let (names, folders) = (&mut self.durable_names, &mut self.durable_folders);
        self.pending.retain(|(_, change)| {
            let is_here = change.folder() == folder;
            if is_here {
                change.apply(names, folders);
            }
            !is_here
        });
    }

    pub fn after_power_loss(mut self, survival: Survival) -> Self {
        let (mut names, mut folders) = (self.durable_names, self.durable_folders);
        for (_, change) in self.pending.iter().filter(|(number, _)| survival.keeps(*number)) {
            change.apply(&mut names, &mut folders);
        }
        names.retain(|path, _| !path.contains('/') || folders.contains(folder_of(path)));
        let kept: BTreeSet<u64> = names.values().copied().collect();
        self.inodes.retain(|inode, _| kept.contains(inode));
        for (inode, bytes) in &mut self.inodes {
            bytes.live = bytes.settle(*inode, survival);
            bytes.device = bytes.live.clone();
        }
        self.image.lose(survival);
        self.image.live = self.image.device.clone();
        Self {
            durable_names: names.clone(),
            durable_folders: folders.clone(),
            names,
            folders,
            pending: Vec::new(),
            ..self
        }
    }
}

/// The live image, which is overwritten where it lies.
#[derive(Clone, Default)]
pub struct Image {
    pub live: Arc<Vec<u8>>,
    /// What would be left if nothing of the rest were.
    pub device: Arc<Vec<u8>>,
    /// Sectors that a sync has to write.
    dirty: Arc<BTreeSet<u64>>,
}

impl Image {
    pub fn put(&mut self, bytes: &[u8]) {
        self.live = Arc::new(bytes.to_vec());
        self.device = self.live.clone();
        self.dirty = Arc::default();
    }

    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        let live = Arc::make_mut(&mut self.live);
        live.resize(live.len().max(end), 0);
        live[offset..end].copy_from_slice(bytes);
        Arc::make_mut(&mut self.dirty).extend(sectors(offset, end).map(|(index, ..)| index));
    }

    pub fn set_length(&mut self, bytes: usize) {
        Arc::make_mut(&mut self.live).resize(bytes, 0);
    }

    /// The device gets the dirty sectors, as `survival` says, and the length.
    fn settle(&mut self, survival: Survival) {
        let length = survival.length(0, self.device.len(), self.live.len());
        if self.dirty.is_empty() && length == self.device.len() {
            return;
        }
        let mut bytes = self.device.to_vec();
        let known = bytes.len();
        bytes.resize(length, 0);
        let end = length.min(self.live.len());
        for &index in self.dirty.iter() {
            let from = index as usize * SECTOR;
            let to = end.min(from + SECTOR);
            if from < to {
                let old = bytes[from..to].to_vec();
                let may_be_garbage = from >= known;
                let new = &self.live[from..to];
                let sector = survival.sector(0, index, &old, new, may_be_garbage);
                bytes[from..to].copy_from_slice(&sector);
            }
        }
        self.device = Arc::new(bytes);
    }

    pub fn sync(&mut self) {
        self.settle(Survival::Everything);
        self.dirty = Arc::default();
    }

    /// A sync that fails, or the power. The length is in the journal.
    pub fn lose(&mut self, survival: Survival) {
        self.settle(survival);
        self.dirty = Arc::default();
    }

    /// What is not dirty is read from the device.
    pub fn forget(&mut self) {
        let mut bytes = self.device.to_vec();
        bytes.resize(self.live.len(), 0);
        for &index in self.dirty.iter() {
            let from = (index as usize * SECTOR).min(bytes.len());
            let to = bytes.len().min(from + SECTOR);
            bytes[from..to].copy_from_slice(&self.live[from..to]);
        }
        self.live = Arc::new(bytes);
    }
}
