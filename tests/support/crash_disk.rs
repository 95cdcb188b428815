//! A disk in memory that fails, or loses its power, at a chosen operation; and the live image on it.
//!
//! Nothing happens on it but what is said here. What survives is chosen by `power.rs`.

use super::power::{Change, Contents, Lie, Survival};
use imgsnap::image::write::{Medium, OsMedium};
use imgsnap::store::{Disk, DiskFile, Listed, LockGuard, LockKind};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

#[derive(Default)]
struct State {
    now: Contents,
    operations: u64,
    /// From this operation on everything fails: the process is dead.
    crash_at: Option<u64>,
    /// This operation alone fails.
    fail_at: Option<u64>,
    /// Before this operation somebody else puts a file there.
    intruder: Option<(u64, String, Vec<u8>)>,
    /// What a sync that fails loses for ever.
    loses: Survival,
    locks: BTreeMap<String, (u32, bool)>,
    /// Locked bytes, by file: how many hold each.
    bytes: BTreeMap<(String, i64), u32>,
    has_no_byte_locks: bool,
    log: Vec<String>,
    /// What was there before each operation, if that is to be kept.
    moments: Option<Vec<Contents>>,
}

#[derive(Clone, Default)]
pub struct CrashDisk {
    state: Arc<Mutex<State>>,
}

pub fn folder_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

impl CrashDisk {
    /// From now on bytes of files cannot be locked, as on some file systems.
    pub fn refuse_byte_locks(&self) {
        self.state().has_no_byte_locks = true;
    }

    pub fn of(contents: Contents) -> Self {
        let state = State { now: contents, ..State::default() };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Puts a durable file there.
    pub fn put(&self, path: &str, bytes: &[u8]) {
        self.state().now.put(path, bytes);
    }

    pub fn get(&self, path: &str) -> Option<Vec<u8>> {
        self.state().now.file(path).map(|bytes| bytes.to_vec())
    }

    pub fn files(&self) -> Vec<String> {
        self.state().now.names.keys().cloned().collect()
    }

    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// What was done, for the message of a failing test.
    pub fn log(&self) -> Vec<String> {
        self.state().log.clone()
    }

    pub fn crash_at(&self, operation: u64) {
        let mut state = self.state();
        state.operations = 0;
        state.crash_at = Some(operation);
    }

    pub fn fail_at(&self, operation: u64) {
        let mut state = self.state();
        state.operations = 0;
        state.fail_at = Some(operation);
    }

    /// Before this operation somebody else puts a durable file there, unless there is one of that name.
    pub fn intrude_at(&self, operation: u64, path: &str, bytes: &[u8]) {
        let mut state = self.state();
        state.operations = 0;
        state.intruder = Some((operation, path.to_owned(), bytes.to_owned()));
    }

    /// This operation alone fails; should that be a sync, `loses` says what it loses: the bytes are read as they were
    /// written until the power goes, and no later sync makes them durable.
    pub fn fail_and_lose_at(&self, operation: u64, loses: Survival) {
        self.fail_at(operation);
        self.state().loses = loses;
    }

    /// From now on the moment before each operation is kept.
    pub fn record(&self) {
        self.state().moments = Some(Vec::new());
    }

    /// How many were kept; the last one is now.
    pub fn moments(&self) -> usize {
        self.state().moments.as_ref().map_or(0, Vec::len) + 1
    }

    /// What was there at one of them.
    pub fn moment(&self, index: usize) -> Contents {
        let state = self.state();
        let kept = state.moments.as_ref().and_then(|moments| moments.get(index));
        kept.unwrap_or(&state.now).clone()
    }

    pub fn now(&self) -> Contents {
        self.state().now.clone()
    }

    /// The disk as it was left, without faults to come: what a later process finds if the machine
    /// stayed up.
    pub fn survivor(&self) -> CrashDisk {
        Self::of(self.now())
    }

    /// The disk after power was lost.
    pub fn after_power_loss(&self, survival: Survival) -> CrashDisk {
        Self::of(self.now().after_power_loss(survival))
    }

    /// The live image is this, durably.
    pub fn put_image(&self, bytes: &[u8]) {
        self.state().now.image.put(bytes);
    }

    /// Somebody else writes to the live image, without a sync.
    pub fn write_image(&self, offset: usize, bytes: &[u8]) {
        self.state().now.image.write(offset, bytes);
    }

    pub fn image(&self) -> Arc<Vec<u8>> {
        self.state().now.image.live.clone()
    }

    /// From now on some syncs do nothing.
    pub fn lie(&self, lie: Lie) {
        self.state().now.lie = Some(lie);
    }

    fn step(&self, what: &str, path: &str) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        step(&mut state, what, path)?;
        Ok(state)
    }
}

/// Counts a changing operation, and makes it fail if its time has come.
fn step(state: &mut State, what: &str, path: &str) -> io::Result<()> {
    state.operations += 1;
    let now = state.operations;
    state.log.push(format!("{now} {what} {path}"));
    if let Some(moments) = &mut state.moments {
        moments.push(state.now.clone());
    }
    if let Some((_, path, bytes)) = state.intruder.take_if(|(at, ..)| *at == now)
        && state.now.file(&path).is_none()
    {
        state.now.put(&path, &bytes);
    }
    if state.crash_at.is_some_and(|at| now >= at) || state.fail_at == Some(now) {
        return Err(io::Error::from_raw_os_error(5));
    }
    Ok(())
}

/// True if the sync that has just been logged does nothing.
fn is_lie(state: &State) -> bool {
    let mut log = state.log.iter().rev().map(|line| line.split_once(' ').unwrap().1);
    let (line, before) = (log.next().unwrap_or_default(), log.next().unwrap_or_default());
    state.now.lie.is_some_and(|lie| lie(line, before))
}

struct CrashFile {
    disk: CrashDisk,
    inode: u64,
    path: String,
}

impl DiskFile for CrashFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        let done = step(&mut state, "write", &self.path);
        // A write that fails may have written a part.
        let count = if done.is_ok() { bytes.len() } else { bytes.len() / 2 };
        state.now.append(self.inode, &bytes[..count]);
        done
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.disk.state();
        let done = step(&mut state, "sync", &self.path);
        let (loses, is_alive) = (state.loses, state.crash_at.is_none());
        match done {
            Ok(()) if is_lie(&state) => {}
            Ok(()) => state.now.sync(self.inode),
            Err(_) if is_alive => state.now.lose(self.inode, loses),
            Err(_) => {}
        }
        done
    }
}

struct CrashLock {
    disk: CrashDisk,
    path: String,
    exclusive: bool,
}

impl Drop for CrashLock {
    fn drop(&mut self) {
        let mut state = self.disk.state();
        let entry = state.locks.entry(self.path.clone()).or_default();
        if self.exclusive {
            entry.1 = false;
        } else {
            entry.0 -= 1;
        }
    }
}

struct CrashBytes {
    disk: CrashDisk,
    path: String,
    bytes: Vec<i64>,
}

impl Drop for CrashBytes {
    fn drop(&mut self) {
        let mut state = self.disk.state();
        for byte in &self.bytes {
            *state.bytes.get_mut(&(self.path.clone(), *byte)).unwrap() -= 1;
        }
    }
}

impl Disk for CrashDisk {
    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let state = self.state();
        if !folder.is_empty() && !state.now.folders.contains(folder) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(state.now.list(folder))
    }

    fn list_timed(&self, folder: &str) -> io::Result<Vec<Listed>> {
        // It is asked only where there are no locks, and here there are.
        let time = jiff::Timestamp::UNIX_EPOCH;
        Ok(self.list(folder)?.into_iter().map(|name| Listed { name, time, bytes: 0 }).collect())
    }

    fn size(&self, path: &str) -> io::Result<u64> {
        let state = self.state();
        let bytes = state.now.file(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(bytes.len() as u64)
    }

    fn read_at(&self, path: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        let content = state.now.file(path).ok_or(io::ErrorKind::NotFound)?;
        let end = offset as usize + buffer.len();
        let bytes = content.get(offset as usize..end).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    fn create(&self, path: &str) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.step("create", path)?;
        if state.now.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = state.now.create(path);
        drop(state);
        Ok(Box::new(CrashFile { disk: self.clone(), inode, path: path.into() }))
    }

    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.step("rename", to)?;
        if state.now.names.contains_key(to) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.now.rename(from, to)
    }

    fn rename_over(&self, from: &str, to: &str) -> io::Result<()> {
        self.step("replace", to)?.now.rename(from, to)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let mut state = self.step("remove", path)?;
        if !state.now.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.now.change(Change::Remove(path.into()));
        Ok(())
    }

    fn create_folder(&self, folder: &str) -> io::Result<()> {
        let mut state = self.step("create folder", folder)?;
        if state.now.folders.contains(folder) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.now.change(Change::CreateFolder(folder.into()));
        Ok(())
    }

    fn remove_folder(&self, folder: &str) -> io::Result<()> {
        let mut state = self.step("remove folder", folder)?;
        if !state.now.list(folder).is_empty() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        state.now.change(Change::RemoveFolder(folder.into()));
        Ok(())
    }

    fn sync_folder(&self, folder: &str) -> io::Result<()> {
        let mut state = self.step("sync folder", folder)?;
        if !is_lie(&state) {
            state.now.sync_folder(folder);
        }
        Ok(())
    }

    fn lock(&self, path: &str, kind: LockKind) -> io::Result<Option<LockGuard>> {
        let mut state = self.state();
        if !state.now.names.contains_key(path) {
            state.now.create(path);
        }
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

    fn share_bytes(&self, path: &str, bytes: &[i64]) -> io::Result<Option<LockGuard>> {
        let mut state = self.state();
        if state.has_no_byte_locks {
            return Ok(None);
        }
        for byte in bytes {
            *state.bytes.entry((path.into(), *byte)).or_default() += 1;
        }
        Ok(Some(Box::new(CrashBytes {
            disk: self.clone(),
            path: path.into(),
            bytes: bytes.into(),
        })))
    }

    fn is_shared(&self, path: &str, byte: i64, count: i64) -> io::Result<bool> {
        let is_in = |(of, at): &(String, i64)| of == path && (count == 0 || *at == byte);
        Ok(self.state().bytes.iter().any(|(key, holders)| *holders > 0 && is_in(key)))
    }

    fn location(&self, path: &str) -> String {
        format!("disk:{path}")
    }
}

/// The live image is a file, and beside it is noted what of it the device has.
impl Medium for CrashDisk {
    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.state();
        let done = step(&mut state, "write to", "the image");
        let count = if done.is_ok() { bytes.len() } else { bytes.len() / 2 };
        state.now.image.write(offset as usize, &bytes[..count]);
        OsMedium.write(file, &bytes[..count], offset)?;
        done
    }

    fn punch(&self, file: &File, offset: u64, bytes: u64) -> io::Result<()> {
        let mut state = self.step("punch", "the image")?;
        state.now.image.write(offset as usize, &vec![0; bytes as usize]);
        OsMedium.punch(file, offset, bytes)
    }

    fn set_length(&self, file: &File, bytes: u64) -> io::Result<()> {
        self.step("set the length of", "the image")?.now.image.set_length(bytes as usize);
        OsMedium.set_length(file, bytes)
    }

    fn sync(&self, _: &File) -> io::Result<()> {
        let mut state = self.state();
        let done = step(&mut state, "sync", "the image");
        let (loses, is_alive) = (state.loses, state.crash_at.is_none());
        match done {
            Ok(()) if is_lie(&state) => {}
            Ok(()) => state.now.image.sync(),
            Err(_) if is_alive => state.now.image.lose(loses),
            Err(_) => {}
        }
        done
    }

    fn forget(&self, file: &File) {
        let mut state = self.state();
        if state.crash_at.is_none_or(|at| state.operations < at) {
            state.now.image.forget();
            let bytes = state.now.image.live.clone();
            OsMedium.write(file, &bytes, 0).unwrap();
        }
    }
}
