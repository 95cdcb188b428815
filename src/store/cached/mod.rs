//! A store on another host, with what this host has of it: the index of objects on a disk, and in memory what
//! is about to be read.
//!
//! Only delta files are kept, which are never changed under a name: manifests and whatever else may be
//! followed by another one are asked for each time.

mod ahead;
mod disk;

use super::forward::forward;
use super::sealed::Sealing;
use super::{Listed, LockGuard, LockKind, ReserveKept, Sharing, Store, Upload};
use crate::base::error::Result;
use ahead::{Ahead, SMALL_BYTES};
use disk::DiskCache;
use jiff::Timestamp;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where the index of objects is kept, and how much of it.
#[derive(Debug, Clone)]
pub struct CachePlace {
    /// The folder, which is made.
    pub folder: PathBuf,
    /// Of all repositories together.
    pub most_bytes: u64,
}

/// A store, and what this host has of it.
pub struct CachedStore {
    inner: Arc<dyn Store>,
    known: Arc<Known>,
    /// No number of a manifest is ever given twice: so it is where there are no locks (C10).
    has_numbers: bool,
    all_names: Mutex<AllNames>,
}

/// The names of all objects, which one request tells as well as those at the top.
#[derive(Default)]
enum AllNames {
    /// Nobody will ask for them.
    #[default]
    NotNeeded,
    /// After those at the top somebody will.
    Needed,
    /// They were told with those at the top.
    Here(BTreeMap<String, Vec<Listed>>),
}

/// What is known of its objects.
struct Known {
    /// Nothing that was kept is believed.
    is_anew: AtomicBool,
    ahead: Ahead,
    disk: Option<DiskCache>,
    /// Of delta files that were listed.
    sizes: Mutex<HashMap<String, u64>>,
    /// Small objects that are never other ones under their names.
    whole: quick_cache::sync::Cache<String, Arc<Vec<u8>>>,
}

/// True for an object that is never another one under its name.
fn is_kept(name: &str) -> bool {
    name.ends_with(".delta")
}

/// True for a manifest: one that follows has another number.
fn is_manifest(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or_default();
    let number = file.strip_prefix("manifest.");
    number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// What is fetched of both ends of an object that is to be opened, and of how many.
const HEAD_BYTES: u64 = 4 << 10;
const TAIL_BYTES: u64 = 16 << 10;
const EXPECTED: usize = 2000;
/// Of so many bytes together whole objects are fetched: one request is better than two.
const EXPECTED_BYTES: u64 = 24 << 20;

/// How many of them are kept while a program runs, and how long one may be.
const WHOLE: usize = 64;
const WHOLE_BYTES: usize = 1 << 20;

impl CachedStore {
    /// What this host has of a store, in which no number of a manifest is given twice, perhaps. A cache that
    /// cannot be used is not.
    pub fn new(inner: Arc<dyn Store>, place: Option<&CachePlace>, has_numbers: bool) -> Self {
        let url = inner.url().unwrap_or_default().to_owned();
        let key = inner.sealing().map(|sealing| sealing.cache_key()).transpose();
        let disk = place.zip(key.ok()).and_then(|(place, key)| {
            DiskCache::open(&place.folder, &url, place.most_bytes, key).ok()
        });
        let whole = quick_cache::sync::Cache::new(WHOLE);
        let known = Known {
            is_anew: AtomicBool::new(false),
            ahead: Ahead::new(inner.clone()),
            disk,
            sizes: Mutex::default(),
            whole,
        };
        Self { inner, known: Arc::new(known), has_numbers, all_names: Mutex::default() }
    }

    /// The same for whoever lists all objects soon after those at the top.
    #[must_use]
    pub fn listing_all(mut self) -> Self {
        self.all_names = Mutex::new(AllNames::Needed);
        self
    }

    fn all_names(&self) -> MutexGuard<'_, AllNames> {
        self.all_names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is at the top, if all names are needed soon.
    fn top_of_all(&self) -> Result<Option<Vec<String>>> {
        if !matches!(*self.all_names(), AllNames::Needed) {
            return Ok(None);
        }
        let all = self.list_all()?;
        let folders = all.keys().filter(|folder| !folder.is_empty());
        let top = all.get("").into_iter().flatten().map(|object| &object.name);
        let names = folders.chain(top).cloned().collect();
        *self.all_names() = AllNames::Here(all);
        Ok(Some(names))
    }
}

impl Known {
    fn is_anew(&self) -> bool {
        self.is_anew.load(Ordering::Relaxed)
    }

    fn sizes(&self) -> MutexGuard<'_, HashMap<String, u64>> {
        self.sizes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, folder: &str, listed: &[Listed]) {
        let mut sizes = self.sizes();
        for object in listed.iter().filter(|object| is_kept(&object.name)) {
            sizes.insert(format!("{folder}/{}", object.name), object.bytes);
        }
    }

    fn forget(&self, name: &str) {
        self.sizes().remove(name);
        self.whole.remove(name);
        self.ahead.forget(name);
        if let Some(disk) = &self.disk {
            disk.forget(name);
        }
    }
}

impl Store for CachedStore {
    fn list(&self, folder: &str) -> Result<Vec<String>> {
        match folder.is_empty().then(|| self.top_of_all()).transpose()?.flatten() {
            Some(names) => Ok(names),
            None if folder.is_empty() => self.inner.list(folder),
            // How long objects are comes with their names.
            None => Ok(self.list_timed(folder)?.into_iter().map(|object| object.name).collect()),
        }
    }

    fn list_timed(&self, folder: &str) -> Result<Vec<Listed>> {
        let listed = self.inner.list_timed(folder)?;
        self.known.remember(folder, &listed);
        Ok(listed)
    }

    fn list_all(&self) -> Result<BTreeMap<String, Vec<Listed>>> {
        // Once: later ones are others.
        if let AllNames::Here(all) = std::mem::take(&mut *self.all_names()) {
            return Ok(all);
        }
        let all = self.inner.list_all()?;
        all.iter().for_each(|(folder, listed)| self.known.remember(folder, listed));
        Ok(all)
    }

    fn size(&self, name: &str) -> Result<u64> {
        if let Some(bytes) = self.known.sizes().get(name).copied() {
            return Ok(bytes);
        }
        let bytes = self.inner.size(name)?;
        if is_kept(name) {
            self.known.sizes().insert(name.to_owned(), bytes);
        }
        Ok(bytes)
    }

    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> Result<()> {
        match is_kept(name) {
            true => self.known.ahead.read(name, self.size(name)?, offset, buffer),
            false => self.inner.read_at(name, offset, buffer),
        }
    }

    fn read_index(&self, name: &str, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let Some(disk) = self.known.disk.as_ref().filter(|_| is_kept(name)) else {
            return self.read_at(name, offset, buffer);
        };
        if !self.known.is_anew() && disk.read(name, offset, buffer) {
            return Ok(());
        }
        self.known.ahead.read_scattered(name, self.size(name)?, offset, buffer)
    }

    fn read_anew(&self) {
        self.known.is_anew.store(true, Ordering::Relaxed);
        self.known.ahead.forget_all();
    }

    fn keep_index(&self, name: &str, offset: u64, bytes: &[u8]) {
        if let Some(disk) = self.known.disk.as_ref().filter(|_| is_kept(name))
            && !disk.has(name, offset, bytes.len() as u64)
        {
            disk.add(name, offset, bytes);
        }
    }

    fn read_whole(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        if !is_manifest(name) || !self.has_numbers || self.known.is_anew() {
            return self.inner.read_whole(name, limit);
        }
        if let Some(bytes) = self.known.whole.get(name).filter(|b| b.len() as u64 <= limit) {
            return Ok(bytes.to_vec());
        }
        let bytes = self.inner.read_whole(name, limit)?;
        if bytes.len() <= WHOLE_BYTES {
            self.known.whole.insert(name.to_owned(), Arc::new(bytes.clone()));
        }
        Ok(bytes)
    }

    fn prefetch(&self, name: &str, offset: u64, bytes: u64) {
        let has = |disk: &DiskCache| !self.known.is_anew() && disk.has(name, offset, bytes);
        if is_kept(name) && !self.known.disk.as_ref().is_some_and(has) {
            match self.known.sizes().get(name).copied() {
                Some(all) if all <= SMALL_BYTES => self.known.ahead.prefetch(name, 0, all),
                Some(all) if offset + bytes > all => {}
                _ => self.known.ahead.prefetch(name, offset, bytes),
            }
        }
    }

    fn expect(&self, names: &[String]) {
        let names = names.get(..EXPECTED).unwrap_or(names);
        let share = EXPECTED_BYTES / names.len().max(1) as u64;
        let whole_bytes = share.clamp(HEAD_BYTES + TAIL_BYTES, SMALL_BYTES);
        for name in names {
            // Of what was not listed nobody knows where its end is.
            let Some(bytes) = self.known.sizes().get(name).copied() else { continue };
            let is_here = |offset| {
                let disk = self.known.disk.as_ref().filter(|_| !self.known.is_anew());
                disk.is_some_and(|disk| disk.has(name, offset, 1))
            };
            let (has_head, has_tail) = (is_here(0), is_here(bytes.saturating_sub(1)));
            let end = bytes.saturating_sub(TAIL_BYTES);
            if bytes <= whole_bytes && !(has_head && has_tail) {
                self.known.ahead.prefetch(name, 0, bytes);
                continue;
            }
            if !has_head {
                self.known.ahead.prefetch(name, 0, HEAD_BYTES.min(bytes));
            }
            if !has_tail {
                self.known.ahead.prefetch(name, end, bytes - end);
            }
        }
    }

    fn create(&self, name: &str) -> Result<Box<dyn Upload>> {
        let upload = self.inner.create(name)?;
        if !is_kept(name) {
            self.known.forget(name);
            return Ok(upload);
        }
        let known = Some(self.known.clone());
        Ok(Box::new(CachedUpload { upload: Some(upload), name: name.into(), bytes: 0, known }))
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.known.forget(name);
        self.inner.replace(name, bytes)
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.known.forget(name);
        self.inner.remove(name)
    }

    forward! { inner:
        fn list_from(&self, folder: &str, first: &str) -> Result<Vec<String>>;
        fn sharing(&self) -> Result<Sharing>;
        fn sealing(&self) -> Option<&Arc<Sealing>>;
        fn put_if_absent(&self, name: &str, bytes: &[u8]) -> Result<()>;
        fn pause(&self, attempt: u32);
        fn sync_dir(&self, folder: &str) -> Result<()>;
        fn create_folder(&self, folder: &str) -> Result<()>;
        fn remove_folder(&self, folder: &str) -> Result<bool>;
        fn lock(&self, name: &str, kind: LockKind) -> Result<Option<LockGuard>>;
        fn hold(&self, lock: &str, objects: &[&str]) -> Result<Option<LockGuard>>;
        fn is_held(&self, lock: &str, object: Option<&str>) -> Result<bool>;
        fn abort_uploads(&self, folder: &str, before: Timestamp) -> Result<u64>;
        fn free_space(&self) -> Option<u64>;
        fn keep_reserve(&self, bytes: u64, kept: ReserveKept) -> Result<()>;
        fn release_reserve(&self) -> Result<bool>;
        fn location(&self, name: &str) -> String;
        fn local_path(&self) -> Option<&Path>;
        fn url(&self) -> Option<&str>;
    }
}

/// An upload whose index is kept.
struct CachedUpload {
    /// None once it is published.
    upload: Option<Box<dyn Upload>>,
    name: String,
    bytes: u64,
    /// None once it is published.
    known: Option<Arc<Known>>,
}

impl CachedUpload {
    fn end(mut self, publish: impl FnOnce(Box<dyn Upload>) -> Result<()>) -> Result<()> {
        let Some(upload) = self.upload.take() else { return Ok(()) };
        publish(upload)?;
        self.known = None;
        Ok(())
    }
}

impl Upload for CachedUpload {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes += bytes.len() as u64;
        self.upload.as_mut().map_or(Ok(()), |upload| upload.write(bytes))
    }

    fn write_index(&mut self, bytes: &[u8]) -> Result<()> {
        if let Some(disk) = self.known.as_ref().and_then(|known| known.disk.as_ref()) {
            disk.add(&self.name, self.bytes, bytes);
        }
        self.write(bytes)
    }

    fn publish(self: Box<Self>) -> Result<()> {
        self.end(|upload| upload.publish())
    }

    fn publish_over(self: Box<Self>) -> Result<()> {
        // What was there is not to be known any more.
        if let Some(known) = &self.known {
            known.forget(&self.name);
        }
        self.end(|upload| upload.publish_over())
    }
}

impl Drop for CachedUpload {
    fn drop(&mut self) {
        // It is not there, or nobody knows.
        if let Some(known) = self.known.take() {
            known.forget(&self.name);
        }
    }
}
