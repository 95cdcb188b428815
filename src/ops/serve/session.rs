//! One host that uses the folder, from its first request to its last one: its uploads, and its locks, which
//! go when it goes.

use super::allowed::{self, Object};
use crate::base::error::{Error, ErrorKind, Result};
use crate::repo::manifest::{
    self, ImageFile, MAX_MANIFEST_BYTES, Manifest, ManifestDigest, check_adds_only,
};
use crate::repo::names::images_in;
use crate::store::sealed::{is_sealed_name, key_of};
use crate::store::ssh::{Ask, MAX_BODY_BYTES, Told, WireListed};
use crate::store::{Above, LockGuard, LockKind, ReserveKept, Store, Upload, make_folder, store_at};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(super) struct Session {
    path: PathBuf,
    store: Arc<dyn Store>,
    append_only: bool,
    uploads: Mutex<HashMap<u64, Begun>>,
    locks: Mutex<HashMap<u64, LockGuard>>,
    /// Markers that this host has put, which it may remove.
    markers: Mutex<HashSet<String>>,
    /// One manifest at a time is compared with what rules.
    commit: Mutex<()>,
}

/// How many one host has at the same time; what they have in memory together is a manifest at most.
const MOST_UPLOADS: usize = 8;

/// An upload that has begun.
struct Begun {
    name: String,
    to: Sink,
}

enum Sink {
    Store(Box<dyn Upload>),
    /// What has to be checked before it is there.
    Memory(Vec<u8>),
    /// It has failed, and the host was told.
    Nothing,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn add_only(what: &str) -> Error {
    let what = format!("{what}: this key may only add to the repository");
    Error::new(ErrorKind::Auth, what)
}

impl Session {
    pub fn new(path: &Path, append_only: bool) -> Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            store: store_at(path)?,
            append_only,
            uploads: Mutex::default(),
            locks: Mutex::default(),
            markers: Mutex::default(),
            commit: Mutex::default(),
        })
    }

    /// Lets go of all locks, and gives all uploads up.
    pub fn let_go(&self) {
        lock(&self.uploads).clear();
        lock(&self.locks).clear();
    }

    /// The folder is made when something is put into it.
    fn make(&self) -> Result<()> {
        match self.path.is_dir() {
            true => Ok(()),
            false => make_folder(&self.path, Above::MustExist).map(drop),
        }
    }

    /// Checks that an object may be put; one that replaces another may be another one.
    fn may_put(&self, name: &str, over: bool) -> Result<()> {
        let object = allowed::object(name)?;
        // They are made by who takes the lock, or writes.
        if let Object::Of(_, ImageFile::Lock | ImageFile::Temporary) = object {
            return Err(Error::new(ErrorKind::Auth, format!("{name} must not be uploaded")));
        }
        let is_denied = over || matches!(object, Object::Config | Object::Of(_, ImageFile::Head));
        if self.append_only && is_denied {
            return Err(add_only(name));
        }
        Ok(())
    }

    fn may_remove(&self, name: &str) -> Result<()> {
        allowed::object(name)?;
        if self.append_only && !lock(&self.markers).contains(name) {
            return Err(add_only(&format!("cannot remove {name}")));
        }
        Ok(())
    }

    /// Puts a manifest of a host that may only add, if it does.
    fn put_checked(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let Object::Of(image, ImageFile::Manifest(sequence)) = allowed::object(name)? else {
            return self.store.put_if_absent(name, bytes);
        };
        let _one = lock(&self.commit);
        if key_of(bytes).is_some() {
            self.check_next(image, sequence)?;
            return self.store.put_if_absent(name, bytes);
        }
        let next = Manifest::decode(bytes)?;
        if next.name != image || next.sequence != sequence {
            return Err(Error::new(ErrorKind::Auth, format!("{name}: another manifest")));
        }
        let ruling = match manifest::load_last(self.store.as_ref(), image) {
            Err(e) if e.kind() == ErrorKind::NotFound => None,
            other => Some(other?),
        };
        let digest = ruling.as_ref().map(|ruling| {
            let file = format!("{image}/{}", manifest::file_name(ruling.sequence));
            let bytes = self.store.read_whole(&file, MAX_MANIFEST_BYTES)?;
            Ok::<_, Error>(ManifestDigest::of(&bytes))
        });
        let ruling = match (&ruling, digest) {
            (Some(ruling), Some(digest)) => Some((ruling, digest?)),
            _ => None,
        };
        check_adds_only(ruling, &next)?;
        self.store.put_if_absent(name, bytes)
    }

    /// What is sealed cannot be judged here: it must have the next number, and follow what is sealed as well.
    fn check_next(&self, image: &str, sequence: u64) -> Result<()> {
        let ruling = manifest::ruling(self.store.as_ref(), image)?;
        if sequence != ruling.unwrap_or(0).saturating_add(1) {
            return Err(manifest::changed_meanwhile(image));
        }
        let Some(ruling) = ruling else { return Ok(()) };
        let file = format!("{image}/{}", manifest::file_name(ruling));
        let bytes = self.store.read_whole(&file, 2 * MAX_MANIFEST_BYTES)?;
        match key_of(&bytes) {
            Some(_) => Ok(()),
            None => Err(add_only(&format!("{image}: its current manifest is not encrypted"))),
        }
    }

    fn put(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.may_put(name, false)?;
        self.make()?;
        match self.append_only {
            true => self.put_checked(name, bytes)?,
            false => self.store.put_if_absent(name, bytes)?,
        }
        if let Object::Of(_, ImageFile::Marker(_)) = allowed::object(name)? {
            lock(&self.markers).insert(name.to_owned());
        }
        Ok(())
    }

    /// Begins, ends or gives up an upload.
    pub fn upload(&self, id: u64, ask: Ask) -> Result<Told> {
        match ask {
            Ask::Begin { name } => {
                self.may_put(&name, false)?;
                self.make()?;
                let is_checked = self.append_only
                    && matches!(allowed::object(&name)?, Object::Of(_, ImageFile::Manifest(_)));
                let to = match is_checked {
                    true => Sink::Memory(Vec::new()),
                    false => Sink::Store(self.store.create(&name)?),
                };
                let mut uploads = lock(&self.uploads);
                if uploads.len() >= MOST_UPLOADS {
                    return Err(Error::new(ErrorKind::LimitExceeded, "too many uploads at once"));
                }
                uploads.insert(id, Begun { name, to });
            }
            Ask::Publish { upload, over } => {
                let begun = lock(&self.uploads).remove(&upload).ok_or_else(unknown)?;
                self.may_put(&begun.name, over)?;
                match begun.to {
                    Sink::Store(upload) if over => upload.publish_over()?,
                    Sink::Store(upload) => upload.publish()?,
                    Sink::Memory(bytes) => self.put_checked(&begun.name, &bytes)?,
                    Sink::Nothing => return Err(unknown()),
                }
            }
            Ask::Abort { upload } => drop(lock(&self.uploads).remove(&upload)),
            _ => return Err(unknown()),
        }
        Ok(Told::Done)
    }

    /// Adds bytes to an upload. After an error nothing more is added.
    pub fn write(&self, upload: u64, bytes: &[u8]) -> Result<()> {
        let mut uploads = lock(&self.uploads);
        let begun = uploads.get_mut(&upload).ok_or_else(unknown)?;
        let written = match &mut begun.to {
            Sink::Store(upload) => upload.write(bytes),
            Sink::Memory(all)
                if (all.len() + bytes.len()) as u64 <= MAX_MANIFEST_BYTES / MOST_UPLOADS as u64 =>
            {
                all.extend_from_slice(bytes);
                Ok(())
            }
            Sink::Memory(_) => {
                Err(Error::new(ErrorKind::LimitExceeded, "the manifest is too long"))
            }
            Sink::Nothing => return Ok(()),
        };
        if written.is_err() {
            begun.to = Sink::Nothing;
        }
        written
    }

    /// What a request is answered with, and what was read.
    pub fn told(&self, id: u64, ask: Ask, body: &[u8], read: &mut Vec<u8>) -> Result<Told> {
        let store = self.store.as_ref();
        match ask {
            Ask::List { folder, timed } => {
                allowed::folder(&folder)?;
                let listed = match timed {
                    true => match store.list_timed(&folder) {
                        Err(e) if e.kind() == ErrorKind::NotFound => Vec::new(),
                        other => other?.into_iter().map(WireListed::from).collect(),
                    },
                    false => store.list(&folder)?.into_iter().map(WireListed::named).collect(),
                };
                Ok(Told::Listed(listed))
            }
            Ask::ListAll => {
                let mut all = BTreeMap::new();
                // As they are looked at here.
                let mut names = images_in(store)?;
                // Which images those are that are sealed the host knows.
                names.extend(store.list("")?.into_iter().filter(|name| is_sealed_name(name)));
                names.sort();
                names.dedup();
                for name in names {
                    let listed = match store.list_timed(&name) {
                        Err(e) if e.kind() == ErrorKind::NotFound => continue,
                        other => other?,
                    };
                    all.insert(name, listed.into_iter().map(WireListed::from).collect());
                }
                Ok(Told::All(all))
            }
            Ask::Sharing => store.sharing().map(Told::from),
            Ask::Size { name } => {
                allowed::object(&name)?;
                store.size(&name).map(Told::Number)
            }
            Ask::Read { name, offset, bytes } => {
                allowed::object(&name)?;
                read.resize(check_length(bytes)?, 0);
                store.read_at(&name, offset, read).map(|()| Told::Done)
            }
            Ask::ReadWhole { name, limit } => {
                allowed::object(&name)?;
                let bytes = store.size(&name)?;
                if bytes > limit.min(MAX_BODY_BYTES as u64) {
                    return Ok(Told::Number(bytes));
                }
                *read = store.read_whole(&name, limit)?;
                Ok(Told::Done)
            }
            Ask::Put { name } => self.put(&name, body).map(|()| Told::Done),
            Ask::Replace { name } => {
                self.may_put(&name, true)?;
                self.make()?;
                store.replace(&name, body).map(|()| Told::Done)
            }
            Ask::Remove { name } => {
                self.may_remove(&name)?;
                store.remove(&name).map(|()| Told::Done)
            }
            Ask::SyncDir { folder } => {
                allowed::folder(&folder)?;
                if folder.is_empty() {
                    self.make()?;
                }
                store.sync_dir(&folder).map(|()| Told::Done)
            }
            Ask::CreateFolder { folder } => {
                allowed::folder(&folder)?;
                self.make()?;
                if !folder.is_empty() {
                    store.create_folder(&folder)?;
                }
                Ok(Told::Done)
            }
            Ask::RemoveFolder { folder } => {
                allowed::folder(&folder)?;
                if self.append_only || folder.is_empty() {
                    return Err(add_only(&format!("cannot remove {folder}")));
                }
                store.remove_folder(&folder).map(Told::Is)
            }
            Ask::Lock { name, exclusive } => {
                allowed::lock(&name)?;
                let kind = if exclusive { LockKind::Exclusive } else { LockKind::Shared };
                Ok(self.keep(id, store.lock(&name, kind)?))
            }
            Ask::Hold { lock, objects } => {
                allowed::lock(&lock)?;
                let objects: Vec<&str> = objects.iter().map(String::as_str).collect();
                Ok(self.keep(id, store.hold(&lock, &objects)?))
            }
            Ask::IsHeld { lock, object } => {
                allowed::lock(&lock)?;
                store.is_held(&lock, object.as_deref()).map(Told::Is)
            }
            Ask::Unlock { held } => {
                drop(lock(&self.locks).remove(&held));
                Ok(Told::Done)
            }
            Ask::FreeSpace => Ok(Told::Perhaps(store.free_space())),
            Ask::KeepReserve { bytes, of_the_rest } => {
                let of = if of_the_rest { ReserveKept::OfTheRest } else { ReserveKept::OfPlenty };
                store.keep_reserve(bytes, of).map(|()| Told::Done)
            }
            Ask::ReleaseReserve if self.append_only => Ok(Told::Is(false)),
            Ask::ReleaseReserve => store.release_reserve().map(Told::Is),
            Ask::Hello { .. }
            | Ask::Ping
            | Ask::Begin { .. }
            | Ask::Write { .. }
            | Ask::Publish { .. }
            | Ask::Abort { .. } => Err(unknown()),
        }
    }

    fn keep(&self, id: u64, taken: Option<LockGuard>) -> Told {
        let is_taken = taken.is_some();
        if let Some(guard) = taken {
            lock(&self.locks).insert(id, guard);
        }
        Told::Is(is_taken)
    }
}

/// Fails if so much is asked at once that no host asks it.
fn check_length(bytes: u64) -> Result<usize> {
    match usize::try_from(bytes) {
        Ok(bytes) if bytes <= MAX_BODY_BYTES => Ok(bytes),
        _ => Err(Error::new(ErrorKind::LimitExceeded, format!("{bytes} bytes at once"))),
    }
}

fn unknown() -> Error {
    Error::new(ErrorKind::InvalidInput, "unexpected request")
}
