//! A disk in memory that fails or crashes at a chosen operation.
//!
//! The model of durability: the bytes of a file are durable up to its last sync, its name since the
//! last sync of its folder; everything else a crash loses. A folder's sync makes the creations,
//! renames and removals in it durable, in whatever order they were made.

use imgsnap::store::{Disk, DiskFile, LockGuard, LockKind};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex};

#[derive(Clone, Default)]
struct Content {
    live: Vec<u8>,
    durable: Vec<u8>,
}

type Inode = Arc<Mutex<Content>>;

#[derive(Default)]
struct State {
    live: BTreeMap<String, Inode>,
    durable: BTreeMap<String, Inode>,
    folders: BTreeSet<String>,
    durable_folders: BTreeSet<String>,
    operations: u64,
    /// From this operation on everything fails: the process is dead.
    crash_at: Option<u64>,
    /// This operation alone fails.
    fail_at: Option<u64>,
    locks: BTreeMap<String, (u32, bool)>,
    log: Vec<String>,
}

#[derive(Clone, Default)]
pub struct CrashDisk {
    state: Arc<Mutex<State>>,
}

fn folder_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

impl CrashDisk {
    /// Puts a durable file there.
    pub fn put(&self, path: &str, bytes: &[u8]) {
        let mut state = self.state.lock().unwrap();
        let content = Content { live: bytes.to_vec(), durable: bytes.to_vec() };
        let inode = Arc::new(Mutex::new(content));
        state.live.insert(path.into(), inode.clone());
        state.durable.insert(path.into(), inode);
    }

    pub fn get(&self, path: &str) -> Option<Vec<u8>> {
        let state = self.state.lock().unwrap();
        state.live.get(path).map(|inode| inode.lock().unwrap().live.clone())
    }

    pub fn files(&self) -> Vec<String> {
        self.state.lock().unwrap().live.keys().cloned().collect()
    }

    pub fn operations(&self) -> u64 {
        self.state.lock().unwrap().operations
    }

    /// What was done, for the message of a failing test.
    pub fn log(&self) -> Vec<String> {
        self.state.lock().unwrap().log.clone()
    }

    pub fn crash_at(&self, operation: u64) {
        let mut state = self.state.lock().unwrap();
        state.operations = 0;
        state.crash_at = Some(operation);
    }

    pub fn fail_at(&self, operation: u64) {
        let mut state = self.state.lock().unwrap();
        state.operations = 0;
        state.fail_at = Some(operation);
    }

    /// The disk as it was left, without faults to come: what a later process finds if the machine
    /// stayed up.
    pub fn survivor(&self) -> CrashDisk {
        let state = self.state.lock().unwrap();
        let copy = |files: &BTreeMap<String, Inode>| {
            let copy_of = |inode: &Inode| Arc::new(Mutex::new(inode.lock().unwrap().clone()));
            files.iter().map(|(path, inode)| (path.clone(), copy_of(inode))).collect()
        };
        let next = State {
            live: copy(&state.live),
            durable: copy(&state.durable),
            folders: state.folders.clone(),
            durable_folders: state.durable_folders.clone(),
            ..State::default()
        };
        CrashDisk { state: Arc::new(Mutex::new(next)) }
    }

    /// The disk after power was lost: what is durable, and of the rest whatever `keep` says. `keep`
    /// is asked for each name that differs between what is live and what is durable.
    pub fn after_power_loss(&self, keep: &mut dyn FnMut(&str) -> bool) -> CrashDisk {
        let state = self.state.lock().unwrap();
        let mut files: BTreeMap<String, Inode> = BTreeMap::new();
        let names: BTreeSet<&String> = state.live.keys().chain(state.durable.keys()).collect();
        for name in names {
            let (live, durable) = (state.live.get(name), state.durable.get(name));
            let same = match (live, durable) {
                (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                _ => false,
            };
            let chosen = if same || keep(name) { live } else { durable };
            if let Some(inode) = chosen {
                let content = inode.lock().unwrap();
                let bytes = if content.live != content.durable && keep(name) {
                    content.live.clone()
                } else {
                    content.durable.clone()
                };
                let content = Content { live: bytes.clone(), durable: bytes };
                files.insert(name.clone(), Arc::new(Mutex::new(content)));
            }
        }
        let next = State {
            live: files.clone(),
            durable: files,
            folders: state.durable_folders.clone(),
            durable_folders: state.durable_folders.clone(),
            ..State::default()
        };
        CrashDisk { state: Arc::new(Mutex::new(next)) }
    }

    fn step(&self, what: &str, path: &str) -> io::Result<std::sync::MutexGuard<'_, State>> {
        let mut state = self.state.lock().unwrap();
        step(&mut state, what, path)?;
        Ok(state)
    }
}

/// Counts a changing operation, and makes it fail if its time has come.
fn step(state: &mut State, what: &str, path: &str) -> io::Result<()> {
    state.operations += 1;
    let now = state.operations;
    state.log.push(format!("{now} {what} {path}"));
    if state.crash_at.is_some_and(|at| now >= at) || state.fail_at == Some(now) {
        return Err(io::Error::from_raw_os_error(5));
    }
    Ok(())
}

struct CrashFile {
    disk: CrashDisk,
    inode: Inode,
    path: String,
}

impl DiskFile for CrashFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.state.lock().unwrap();
        if let Err(error) = step(&mut state, "write", &self.path) {
            // A write that fails may have written a part.
            let half = bytes.len() / 2;
            self.inode.lock().unwrap().live.extend_from_slice(&bytes[..half]);
            return Err(error);
        }
        self.inode.lock().unwrap().live.extend_from_slice(bytes);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let _state = self.disk.step("sync", &self.path)?;
        let mut content = self.inode.lock().unwrap();
        content.durable = content.live.clone();
        Ok(())
    }
}

struct CrashLock {
    disk: CrashDisk,
    path: String,
    exclusive: bool,
}

impl Drop for CrashLock {
    fn drop(&mut self) {
        let mut state = self.disk.state.lock().unwrap();
        let entry = state.locks.entry(self.path.clone()).or_default();
        if self.exclusive {
            entry.1 = false;
        } else {
            entry.0 -= 1;
        }
    }
}

impl Disk for CrashDisk {
    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let state = self.state.lock().unwrap();
        if !folder.is_empty() && !state.folders.contains(folder) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let files = state.live.keys().filter(|path| folder_of(path) == folder);
        let folders =
            state.folders.iter().filter(|path| folder_of(path) == folder && !path.is_empty());
        let name = |path: &String| path.rsplit('/').next().unwrap().to_owned();
        Ok(files.chain(folders).map(name).collect())
    }

    fn size(&self, path: &str) -> io::Result<u64> {
        self.get(path).map(|bytes| bytes.len() as u64).ok_or(io::ErrorKind::NotFound.into())
    }

    fn read_at(&self, path: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let state = self.state.lock().unwrap();
        let inode = state.live.get(path).ok_or(io::ErrorKind::NotFound)?;
        let content = inode.lock().unwrap();
        let end = offset as usize + buffer.len();
        let bytes = content.live.get(offset as usize..end).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    fn create(&self, path: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.step("create", path)?;
        if state.live.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = Inode::default();
        state.live.insert(path.into(), inode.clone());
        Ok(Box::new(CrashFile { disk: self.clone(), inode, path: path.into() }))
    }

    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.step("rename", to)?;
        if state.live.contains_key(to) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = state.live.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.live.insert(to.into(), inode);
        Ok(())
    }

    fn rename_over(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.step("replace", to)?;
        let inode = state.live.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.live.insert(to.into(), inode);
        Ok(())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let mut state = self.step("remove", path)?;
        state.live.remove(path).map(|_| ()).ok_or(io::ErrorKind::NotFound.into())
    }

    fn create_folder(&self, folder: &str) -> io::Result<()> {
        let mut state = self.step("create folder", folder)?;
        if !state.folders.insert(folder.into()) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        Ok(())
    }

    fn remove_folder(&self, folder: &str) -> io::Result<()> {
        let mut state = self.step("remove folder", folder)?;
        state.folders.remove(folder);
        Ok(())
    }

    fn sync_folder(&self, folder: &str) -> io::Result<()> {
        let mut state = self.step("sync folder", folder)?;
        let state = &mut *state;
        state.durable.retain(|path, _| folder_of(path) != folder);
        for (path, inode) in state.live.iter().filter(|(path, _)| folder_of(path) == folder) {
            state.durable.insert(path.clone(), inode.clone());
        }
        state.durable_folders.retain(|path| folder_of(path) != folder);
        let here = state.folders.iter().filter(|path| folder_of(path) == folder);
        state.durable_folders.extend(here.cloned().collect::<Vec<_>>());
        Ok(())
    }

    fn lock(&self, path: &str, kind: LockKind) -> io::Result<Option<LockGuard>> {
        let mut state = self.state.lock().unwrap();
        state.live.entry(path.into()).or_default();
        let (shared, exclusive) = state.locks.entry(path.into()).or_default();
        let is_free = !*exclusive && (kind == LockKind::Shared || *shared == 0);
        if !is_free {
            return Ok(None);
        }
        match kind {
            LockKind::Shared => *shared += 1,
            LockKind::Exclusive => *exclusive = true,
        }
        let exclusive = kind == LockKind::Exclusive;
        Ok(Some(Box::new(CrashLock { disk: self.clone(), path: path.into(), exclusive })))
    }

    fn location(&self, path: &str) -> String {
        format!("disk:{path}")
    }
}
