//! Where the objects of a repository lie: immutable objects that appear whole or not at all.
//!
//! Names are `IMAGE/object` or, at the top, `object`. The trait is what an object store can do as
//! well: put if absent, get a range, list, delete. [`LocalStore`] is an ordinary folder; below it
//! [`Disk`] is the seam through which every operation on the folder passes, so that tests can make
//! each of them fail or crash.

mod cached;
mod disk;
mod forward;
mod local;
mod memory;
mod owned;
mod place;
mod remote;
pub mod sealed;
pub(crate) mod ssh;
mod url;

pub use cached::{CachePlace, CachedStore};
pub use disk::{Disk, DiskFile, LockKind, OsDisk};
pub use local::LocalStore;
pub(crate) use local::{RESERVE, SHARED};
pub use memory::{Act, Fault, Host, MemoryStore, World};
pub use owned::Owner;
pub(crate) use owned::{Counted, OwnedStore};
pub use place::{Above, Location, StoreOptions, locate, make_folder, store_at};
#[cfg(all(feature = "objects", feature = "hdfs"))]
pub use remote::hosts_of;
pub use remote::{
    RemoteFile, RemoteStore, SharedObject, Version, create_remote, glob_remote, is_remote_there,
};
pub use url::{RemoteKind, RemoteUrl};

use crate::base::error::{Error, Result};
use jiff::Timestamp;
use sealed::Sealing;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Makes a folder a repository for programs that know no configuration in numbered objects: to them it is the
/// configuration, and of a version that they refuse.
pub(crate) const MARKER: &str = "repository.toml";

/// What keeps those apart who use a store at the same time (DESIGN.md, "One commit for every store").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// Locks, which end with their holder: what is dropped can be deleted at once.
    Locked,
    /// Put-if-absent alone. Who reads, or uploads, leaves a marker, and what is dropped stays for a while.
    Shared {
        /// How long it stays at least.
        grace: Duration,
        /// How long a marker counts.
        marker_life: Duration,
    },
}

impl Sharing {
    /// Of a folder or a bucket that several hosts may use.
    pub const SHARED: Self = Self::Shared {
        grace: Duration::from_secs(3 * 24 * 3600),
        marker_life: Duration::from_secs(14 * 24 * 3600),
    };

    /// How long what is dropped stays at least, where it stays.
    pub fn grace(self) -> Option<Duration> {
        match self {
            Self::Locked => None,
            Self::Shared { grace, .. } => Some(grace),
        }
    }

    /// True where there are locks.
    pub fn is_locked(self) -> bool {
        self == Self::Locked
    }
}

/// An object as a store lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name in its folder.
    pub name: String,
    /// When it was put, by the store's clock.
    pub time: Timestamp,
    /// Its length.
    pub bytes: u64,
}

/// How much of the space that is left is kept in reserve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReserveKept {
    /// None of it, unless there is far more.
    OfPlenty,
    /// What there is.
    OfTheRest,
}

/// Objects by name.
pub trait Store: Send + Sync {
    /// Names of the objects, or folders, in `folder` (empty for the top), without the path before
    /// them. A folder that does not exist is empty.
    fn list(&self, folder: &str) -> Result<Vec<String>>;

    /// The same with the time of each object, by the clock of the store, and its length.
    fn list_timed(&self, folder: &str) -> Result<Vec<Listed>>;

    /// All objects, by their folder (empty for the top). Folders without objects may be left out.
    fn list_all(&self) -> Result<BTreeMap<String, Vec<Listed>>> {
        let top = self.list_timed("")?;
        let mut all = BTreeMap::new();
        for folder in &top {
            // What is no folder, or none any more, is in the list of the top.
            if self.list(&folder.name)?.is_empty() {
                continue;
            }
            let objects = self.list_timed(&folder.name)?;
            if !objects.is_empty() {
                all.insert(folder.name.clone(), objects);
            }
        }
        all.insert(String::new(), top);
        Ok(all)
    }

    /// The names in a folder that are `first` or sort after it.
    ///
    /// # Errors
    /// As of [`Store::list`].
    fn list_from(&self, folder: &str, first: &str) -> Result<Vec<String>> {
        let mut names = self.list(folder)?;
        names.retain(|name| name.as_str() >= first);
        Ok(names)
    }

    /// What keeps those apart who use it.
    ///
    /// # Errors
    /// If that cannot be found out.
    fn sharing(&self) -> Result<Sharing>;

    /// The keys with which all is sealed; none where nothing is.
    fn sealing(&self) -> Option<&Arc<Sealing>> {
        None
    }

    /// Whose signatures count there; none if everybody's commits do.
    fn owner(&self) -> Option<&Owner> {
        None
    }

    /// Length of an object in bytes.
    fn size(&self, name: &str) -> Result<u64>;

    /// Fills `buffer` from `offset` on; it is an error if the object ends before.
    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> Result<()>;

    /// The same of what whoever opens the object next reads again: its ends, and its tables.
    ///
    /// # Errors
    /// As of [`Store::read_at`].
    fn read_index(&self, name: &str, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.read_at(name, offset, buffer)
    }

    /// From now on all is read where it is, and nothing that this host has of it is believed.
    fn read_anew(&self) {}

    /// Says that bytes which [`Store::read_index`] gave are proved to be what was written.
    fn keep_index(&self, _name: &str, _offset: u64, _bytes: &[u8]) {}

    /// Reads a small object whole.
    ///
    /// # Errors
    /// `Corrupt` if it is longer than `limit` bytes.
    fn read_whole(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        let size = self.size(name)?;
        if size > limit {
            let what = format!("{} has an impossible size of {size} bytes", self.location(name));
            return Err(Error::corrupt(what));
        }
        let mut bytes = vec![0; size as usize];
        self.read_at(name, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// Says that a part of an object will be read soon.
    fn prefetch(&self, _name: &str, _offset: u64, _bytes: u64) {}

    /// Says that objects will be opened soon, one after the other.
    fn expect(&self, _names: &[String]) {}

    /// Begins a new object. Nobody sees it before it is published.
    fn create(&self, name: &str) -> Result<Box<dyn Upload>>;

    /// Puts a small object. After an error other than `AlreadyExists` it may be there, now or later.
    ///
    /// # Errors
    /// `AlreadyExists` if there is an object of this name: it is not replaced.
    fn put_if_absent(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut upload = self.create(name)?;
        upload.write(bytes)?;
        upload.publish()
    }

    /// Waits before something is tried for the `attempt`th time.
    fn pause(&self, attempt: u32) {
        std::thread::sleep(Duration::from_millis(50 << attempt.min(7)));
    }

    /// Replaces a small object that is only a hint. Everything else is immutable.
    fn replace(&self, name: &str, bytes: &[u8]) -> Result<()>;

    /// Removes an object; it is no error if it does not exist.
    fn remove(&self, name: &str) -> Result<()>;

    /// Makes the removals in a folder durable: what is removed afterwards does not go before them.
    fn sync_dir(&self, folder: &str) -> Result<()>;

    /// Makes a folder, durably; it is no error if it exists.
    fn create_folder(&self, folder: &str) -> Result<()>;

    /// Removes a folder if nothing is in it; false if there is.
    fn remove_folder(&self, folder: &str) -> Result<bool>;

    /// Takes a lock. None if somebody else holds it.
    ///
    /// # Errors
    /// `Unsupported` if nothing can be locked here (read-only media).
    fn lock(&self, name: &str, kind: LockKind) -> Result<Option<LockGuard>>;

    /// Holds objects back: while the guard lives, [`Store::is_held`] says so of each. `lock` is the name of
    /// the lock that is taken for it.
    ///
    /// # Errors
    /// As of [`Store::lock`].
    fn hold(&self, lock: &str, objects: &[&str]) -> Result<Option<LockGuard>>;

    /// True if somebody holds an object back; without a name, any.
    ///
    /// # Errors
    /// If that cannot be found out.
    fn is_held(&self, lock: &str, object: Option<&str>) -> Result<bool>;

    /// Gives up what was begun to be uploaded into a folder before a time, and never completed, where that
    /// takes space and is listed nowhere; returns how many.
    ///
    /// # Errors
    /// If that is not allowed, or cannot be found out.
    fn abort_uploads(&self, _folder: &str, _before: Timestamp) -> Result<u64> {
        Ok(0)
    }

    /// How many bytes can still be written, if that is known.
    fn free_space(&self) -> Option<u64> {
        None
    }

    /// Keeps at least so many bytes of space from being used for what frees space when nothing is left
    /// otherwise: if there is far more, or, after what was kept has been used, as much of it as there is.
    ///
    /// # Errors
    /// If that many cannot be kept.
    fn keep_reserve(&self, _bytes: u64, _kept: ReserveKept) -> Result<()> {
        Ok(())
    }

    /// Gives back what was kept; false if nothing was.
    ///
    /// # Errors
    /// If it cannot be removed.
    fn release_reserve(&self) -> Result<bool> {
        Ok(false)
    }

    /// What to call an object in a message.
    fn location(&self, name: &str) -> String;

    /// Where it is, if other programs can see it there as a folder.
    fn local_path(&self) -> Option<&Path> {
        None
    }

    /// Where it is, if that is another host.
    fn url(&self) -> Option<&str> {
        None
    }
}

/// Holds a lock until it is dropped. A dead process holds none.
pub type LockGuard = Box<dyn Send + Sync>;

/// An object that is being written, front to back. Dropped without `publish`, nothing is left of
/// it.
pub trait Upload: Send {
    /// Adds bytes.
    fn write(&mut self, bytes: &[u8]) -> Result<()>;

    /// Adds bytes that are read again by whoever opens the object ([`Store::read_index`]).
    fn write_index(&mut self, bytes: &[u8]) -> Result<()> {
        self.write(bytes)
    }

    /// Makes the object durable and then visible.
    ///
    /// # Errors
    /// `AlreadyExists` if there is an object of this name: it is not replaced.
    fn publish(self: Box<Self>) -> Result<()>;

    /// The same in the place of an object that is damaged, if it is there: this one is what that was.
    fn publish_over(self: Box<Self>) -> Result<()>;
}

/// Some pieces of an object of which other hosts send others, written front to back.
pub trait RangeUpload: Send {
    /// Adds bytes.
    fn write(&mut self, bytes: &[u8]) -> Result<()>;

    /// Waits until all has arrived. Returns what the server calls each piece.
    fn finish(self: Box<Self>) -> Result<Vec<String>>;
}
