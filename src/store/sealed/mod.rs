//! A store whose objects are sealed: whoever has them reads nothing in them, and cannot change one, or put it
//! in the place of another, without that being noticed (FORMAT.md section 13).
//!
//! It is a decorator: what lies above it does not know, and what lies below it does not, either.

mod kept;
mod keys;
mod names;
mod object;
mod open;
mod recovery;
mod sealing;
mod slots;
#[cfg(test)]
mod tests;
mod upload;

pub use keys::{CacheKey, KeyId};
pub(crate) use names::is_sealed_name;
pub(crate) use object::key_of;
pub(crate) use open::is_sealed;
pub use open::{KeyRing, KeySource};
pub use sealing::Sealing;
pub(crate) use sealing::{remove_slot, slots_in};
pub(crate) use slots::is_slot;
pub use slots::{Credential, Derivation, SlotId};

use super::forward::forward;
use super::{Listed, LockGuard, LockKind, MARKER, ReserveKept, Sharing, Store, Upload};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::message::Action;
use jiff::Timestamp;
use kept::{Kept, Opened};
use object::{
    CHUNK_BYTES, HEAD_BYTES, Object, Refusal, SEALED_CHUNK_BYTES, Sealer, chunk_offset, open_whole,
    seal_whole, sealed_bytes,
};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use upload::SealedUpload;
use zerocopy::IntoBytes;

/// A store of which all is sealed but the marker of the repository and the key slots.
pub struct SealedStore {
    inner: Arc<dyn Store>,
    sealing: Arc<Sealing>,
    kept: Arc<Kept>,
}

static NEXT_NUMBER: AtomicU64 = AtomicU64::new(0);

/// Whoever reads more than that reads on, and needs no chunk twice.
const SMALL_BYTES: usize = 2 * CHUNK_BYTES;
/// No object is read whole that is longer than what its reader allows, and so much more.
const WHOLE_SLACK: u64 = 4096;

thread_local! {
    /// What was read and is to be opened: a thread reads again and again.
    static SEALED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// True for what is in the store as it is.
fn is_plain(name: &str) -> bool {
    name == MARKER || is_slot(name)
}

/// True for an object whose key is kept.
fn is_kept(name: &str) -> bool {
    name.ends_with(".delta")
}

impl SealedStore {
    /// What a store has, opened with the keys.
    pub(super) fn new(inner: Arc<dyn Store>, sealing: Arc<Sealing>) -> Self {
        Self { inner, sealing, kept: Arc::new(Kept::new()) }
    }

    fn folder(&self, folder: &str) -> String {
        if folder.is_empty() { String::new() } else { self.sealing.names.seal(folder) }
    }

    /// What an object is called in the store.
    fn name(&self, name: &str) -> String {
        match name.split_once('/') {
            Some((image, file)) => format!("{}/{file}", self.sealing.names.seal(image)),
            None => name.to_owned(),
        }
    }

    /// What a folder, or an object, at the top is called. What is none of ours is called as it is.
    fn top_name(&self, name: String) -> String {
        self.sealing.names.open(&name).unwrap_or(name)
    }

    /// What is told of an object as if it were not sealed.
    fn listed(&self, folder: &str, object: Listed) -> Listed {
        let Listed { name, time, bytes: sealed } = object;
        let plain = if is_plain(&name) { None } else { object::bytes_of(sealed) };
        let name = if folder.is_empty() { self.top_name(name) } else { name };
        if is_kept(&name) {
            self.kept.sizes().insert(format!("{folder}/{name}"), sealed);
        }
        Listed { name, time, bytes: plain.unwrap_or(sealed) }
    }

    fn refused(&self, name: &str, refusal: Refusal) -> Error {
        if let (Refusal::OtherKey(_), Some(_)) = (refusal, &self.sealing.new_slot) {
            return made_meanwhile(&self.location(""));
        }
        refusal.error().at(self.location(name))
    }

    fn sealed_size(&self, name: &str) -> Result<u64> {
        if let Some(bytes) = self.kept.sizes().get(name).copied() {
            return Ok(bytes);
        }
        let bytes = self.inner.size(&self.name(name))?;
        if is_kept(name) {
            self.kept.sizes().insert(name.to_owned(), bytes);
        }
        Ok(bytes)
    }

    /// The key of an object. Its first chunk comes along: it is what is read first.
    fn opened(&self, name: &str) -> Result<Arc<Opened>> {
        match is_kept(name) {
            true => self.kept.objects.get_or_insert_with(name, || self.open(name)),
            false => self.open(name),
        }
    }

    fn open(&self, name: &str) -> Result<Arc<Opened>> {
        let sealed = self.sealed_size(name)?;
        let mut bytes = vec![0; sealed.min((HEAD_BYTES + SEALED_CHUNK_BYTES) as u64) as usize];
        self.inner.read_at(&self.name(name), 0, &mut bytes)?;
        let Sealing { master, key_id, .. } = self.sealing.as_ref();
        let identity = self.sealing.identity(name);
        let object = Object::open(master, *key_id, &identity, &bytes, sealed)
            .map_err(|refusal| self.refused(name, refusal))?;
        let opened = Opened { object, number: NEXT_NUMBER.fetch_add(1, Ordering::Relaxed) };
        self.open_kept(name, &opened, 0, bytes.get(HEAD_BYTES..).unwrap_or_default())?;
        Ok(Arc::new(opened))
    }

    /// Opens a chunk and keeps it.
    fn open_kept(
        &self,
        name: &str,
        opened: &Opened,
        chunk: u64,
        sealed: &[u8],
    ) -> Result<Arc<Vec<u8>>> {
        let mut bytes = vec![0; opened.object.chunk_bytes(chunk)];
        opened
            .object
            .open_chunk(chunk, sealed, &mut bytes)
            .map_err(|refusal| self.refused(name, refusal).at_offset(chunk_offset(chunk)))?;
        let bytes = Arc::new(bytes);
        self.kept.chunks.insert((opened.number, chunk), bytes.clone());
        Ok(bytes)
    }

    /// Fills a buffer from the chunks that it lies in.
    fn read(&self, name: &str, opened: &Opened, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let object = &opened.object;
        let end = offset.checked_add(buffer.len() as u64).filter(|end| *end <= object.bytes);
        let Some(end) = end.filter(|_| !buffer.is_empty()) else {
            let what =
                format!("{} ends before byte {offset} + {}", self.location(name), buffer.len());
            return if buffer.is_empty() { Ok(()) } else { Err(Error::corrupt(what)) };
        };
        let (first, last) = (offset / CHUNK_BYTES as u64, (end - 1) / CHUNK_BYTES as u64);
        let is_small = buffer.len() <= SMALL_BYTES;
        let kept = |chunk| self.kept.chunks.get(&(opened.number, chunk));
        let mut rest = buffer;
        let mut at = offset;
        let mut next = first;
        // What is kept of the beginning is taken as it is.
        while let Some(bytes) = (next <= last).then(|| kept(next)).flatten() {
            rest = copy(&bytes, &mut at, rest);
            next += 1;
        }
        if next > last {
            return Ok(());
        }
        let sealed_end = chunk_offset(last) + (object.chunk_bytes(last) + object::TAG_BYTES) as u64;
        let begin = chunk_offset(next);
        SEALED.with_borrow_mut(|sealed| {
            let count = (sealed_end - begin) as usize;
            if sealed.len() < count {
                sealed.resize(count, 0);
            }
            let sealed = sealed.get_mut(..count).unwrap_or_default();
            self.inner.read_at(&self.name(name), begin, sealed)?;
            for (chunk, sealed) in (next..=last).zip(sealed.chunks(SEALED_CHUNK_BYTES)) {
                let bytes = object.chunk_bytes(chunk);
                let is_whole = at == chunk * CHUNK_BYTES as u64 && rest.len() >= bytes;
                if is_whole && !is_small {
                    let (now, later) = std::mem::take(&mut rest).split_at_mut(bytes);
                    object.open_chunk(chunk, sealed, now).map_err(|refusal| {
                        self.refused(name, refusal).at_offset(chunk_offset(chunk))
                    })?;
                    rest = later;
                    at += bytes as u64;
                } else {
                    let bytes = self.open_kept(name, opened, chunk, sealed)?;
                    rest = copy(&bytes, &mut at, std::mem::take(&mut rest));
                }
            }
            Ok(())
        })
    }

    fn seal(&self, name: &str, bytes: &[u8]) -> Result<Vec<u8>> {
        let Sealing { master, key_id, .. } = self.sealing.as_ref();
        seal_whole(master, *key_id, &self.sealing.identity(name), bytes)
    }
}

/// Copies what a chunk has from `at` on, and gives what is left of the buffer.
fn copy<'a>(chunk: &[u8], at: &mut u64, buffer: &'a mut [u8]) -> &'a mut [u8] {
    let within = (*at % CHUNK_BYTES as u64) as usize;
    let found = chunk.get(within..).unwrap_or_default();
    let count = found.len().min(buffer.len());
    let (now, later) = buffer.split_at_mut(count);
    now.copy_from_slice(found.get(..count).unwrap_or_default());
    *at += count as u64;
    later
}

impl Store for SealedStore {
    fn list(&self, folder: &str) -> Result<Vec<String>> {
        let names = self.inner.list(&self.folder(folder))?;
        if !folder.is_empty() {
            return Ok(names);
        }
        let names: BTreeSet<String> = names.into_iter().map(|name| self.top_name(name)).collect();
        Ok(names.into_iter().collect())
    }

    fn list_from(&self, folder: &str, first: &str) -> Result<Vec<String>> {
        match folder.is_empty() {
            // They are sealed in another order.
            true => {
                let names = self.list(folder)?;
                Ok(names.into_iter().filter(|name| name.as_str() >= first).collect())
            }
            false => self.inner.list_from(&self.folder(folder), first),
        }
    }

    fn list_timed(&self, folder: &str) -> Result<Vec<Listed>> {
        let listed = self.inner.list_timed(&self.folder(folder))?;
        Ok(listed.into_iter().map(|object| self.listed(folder, object)).collect())
    }

    fn list_all(&self) -> Result<BTreeMap<String, Vec<Listed>>> {
        let all = self.inner.list_all()?.into_iter().map(|(folder, objects)| {
            let folder = if folder.is_empty() { folder } else { self.top_name(folder) };
            let objects = objects.into_iter().map(|object| self.listed(&folder, object)).collect();
            (folder, objects)
        });
        Ok(all.collect())
    }

    fn sealing(&self) -> Option<&Arc<Sealing>> {
        Some(&self.sealing)
    }

    fn size(&self, name: &str) -> Result<u64> {
        if is_plain(name) {
            return self.inner.size(name);
        }
        let changed = || self.refused(name, Refusal::NotSealed);
        object::bytes_of(self.sealed_size(name)?).ok_or_else(changed)
    }

    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> Result<()> {
        if is_plain(name) {
            return self.inner.read_at(name, offset, buffer);
        }
        let read = |buffer: &mut [u8]| {
            let opened = self.opened(name)?;
            self.read(name, &opened, offset, buffer)
        };
        match read(buffer) {
            // It may have been mended since its key was kept: then it has another one.
            Err(e) if e.is_damage() && is_kept(name) => {
                self.kept.forget(name);
                read(buffer)
            }
            other => other,
        }
    }

    fn read_anew(&self) {
        self.kept.objects.clear();
        self.kept.chunks.clear();
        self.kept.sizes().clear();
        self.inner.read_anew();
    }

    fn read_whole(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        if is_plain(name) {
            return self.inner.read_whole(name, limit);
        }
        let sealed = self.inner.read_whole(&self.name(name), sealed_bytes(limit) + WHOLE_SLACK)?;
        let Sealing { master, key_id, .. } = self.sealing.as_ref();
        let bytes = open_whole(master, *key_id, &self.sealing.identity(name), &sealed)
            .map_err(|refusal| self.refused(name, refusal))?;
        if bytes.len() as u64 > limit {
            let what =
                format!("{} has {} bytes, an impossible size", self.location(name), bytes.len());
            return Err(Error::corrupt(what));
        }
        Ok(bytes)
    }

    fn prefetch(&self, name: &str, offset: u64, bytes: u64) {
        let (first, last) = (offset / CHUNK_BYTES as u64, (offset + bytes) / CHUNK_BYTES as u64);
        let begin = chunk_offset(first);
        self.inner.prefetch(&self.name(name), begin, chunk_offset(last + 1) - begin);
    }

    fn expect(&self, names: &[String]) {
        let names: Vec<String> = names.iter().map(|name| self.name(name)).collect();
        self.inner.expect(&names);
    }

    fn create(&self, name: &str) -> Result<Box<dyn Upload>> {
        let upload = self.inner.create(&self.name(name))?;
        if is_plain(name) {
            return Ok(upload);
        }
        self.kept.forget(name);
        let Sealing { master, key_id, .. } = self.sealing.as_ref();
        let (sealer, head) = Sealer::new(master, *key_id, &self.sealing.identity(name))?;
        let kept = is_kept(name).then(|| (self.kept.clone(), name.to_owned()));
        SealedUpload::begin(upload, sealer, kept, head.as_bytes())
    }

    fn put_if_absent(&self, name: &str, bytes: &[u8]) -> Result<()> {
        match is_plain(name) {
            true => self.inner.put_if_absent(name, bytes),
            false => self.inner.put_if_absent(&self.name(name), &self.seal(name, bytes)?),
        }
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.kept.forget(name);
        self.inner.replace(&self.name(name), &self.seal(name, bytes)?)
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.kept.forget(name);
        self.inner.remove(&self.name(name))
    }

    fn sync_dir(&self, folder: &str) -> Result<()> {
        self.inner.sync_dir(&self.folder(folder))
    }

    fn create_folder(&self, folder: &str) -> Result<()> {
        self.inner.create_folder(&self.folder(folder))
    }

    fn remove_folder(&self, folder: &str) -> Result<bool> {
        self.inner.remove_folder(&self.folder(folder))
    }

    fn lock(&self, name: &str, kind: LockKind) -> Result<Option<LockGuard>> {
        self.inner.lock(&self.name(name), kind)
    }

    fn hold(&self, lock: &str, objects: &[&str]) -> Result<Option<LockGuard>> {
        self.inner.hold(&self.name(lock), objects)
    }

    fn is_held(&self, lock: &str, object: Option<&str>) -> Result<bool> {
        self.inner.is_held(&self.name(lock), object)
    }

    fn abort_uploads(&self, folder: &str, before: Timestamp) -> Result<u64> {
        self.inner.abort_uploads(&self.folder(folder), before)
    }

    fn location(&self, name: &str) -> String {
        self.inner.location(&self.name(name))
    }

    forward! { inner:
        fn sharing(&self) -> Result<Sharing>;
        fn pause(&self, attempt: u32);
        fn free_space(&self) -> Option<u64>;
        fn keep_reserve(&self, bytes: u64, kept: ReserveKept) -> Result<()>;
        fn release_reserve(&self) -> Result<bool>;
        fn local_path(&self) -> Option<&Path>;
        fn url(&self) -> Option<&str>;
    }
}

/// What to say to the second of two who make a repository at the same time, each with a key of its own.
fn made_meanwhile(place: &str) -> Error {
    let what = format!("another process created the repository {place} meanwhile");
    Error::new(ErrorKind::Busy, what).hint(Action::Retry)
}

/// Why a store cannot be opened with keys, or without them.
fn key_error(what: String) -> Error {
    Error::new(ErrorKind::Key, what)
}
