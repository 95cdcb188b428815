//! A store of a repository that has an owner. By which rules a commit counts there is the affair of whoever
//! commits and reads; the store carries who the owner is to them.

use super::forward::forward;
use super::sealed::Sealing;
use super::{Listed, LockGuard, LockKind, ReserveKept, Sharing, Store, Upload};
use crate::base::error::Result;
use crate::base::signing::{OwnerKey, OwnerSigner, Signature};
use jiff::Timestamp;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use uuid::Uuid;

/// What is known of the last commit that counted in a folder.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counted {
    /// Its number.
    pub sequence: u64,
    /// Digest of its bytes.
    pub digest: [u8; 32],
    /// Number of the last signed one that it follows, or its own.
    pub signed: u64,
}

/// Who owns a repository.
#[derive(Debug, Clone)]
pub struct Owner {
    /// Which repository.
    pub repository: Uuid,
    /// Whose signatures count.
    pub key: OwnerKey,
    /// The private key, on the owner's own host.
    pub signer: Option<Arc<OwnerSigner>>,
    counted: Arc<Mutex<HashMap<String, Counted>>>,
}

impl Owner {
    /// The owner of a repository.
    pub fn new(repository: Uuid, key: OwnerKey, signer: Option<Arc<OwnerSigner>>) -> Self {
        let signer = signer.filter(|signer| signer.key() == key);
        Self { repository, key, signer, counted: Arc::default() }
    }

    /// What counted last in a folder, as far as this process has looked: it need not be proved again.
    pub(crate) fn counted(&self, folder: &str) -> Option<Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner).get(folder).copied()
    }

    /// Remembers that.
    pub(crate) fn has_counted(&self, folder: &str, counted: Counted) {
        let mut known = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(folder.to_owned(), counted);
    }

    /// Signs fields, where the private key is.
    pub(crate) fn sign(&self, fields: &[&[u8]]) -> Option<Signature> {
        self.signer.as_ref().map(|signer| signer.sign(fields))
    }
}

/// A store, and whose signatures count in it.
pub(crate) struct OwnedStore {
    inner: Arc<dyn Store>,
    owner: Owner,
}

impl OwnedStore {
    pub(crate) fn new(inner: Arc<dyn Store>, owner: Owner) -> Self {
        Self { inner, owner }
    }
}

impl Store for OwnedStore {
    fn owner(&self) -> Option<&Owner> {
        Some(&self.owner)
    }

    forward! { inner:
        fn list(&self, folder: &str) -> Result<Vec<String>>;
        fn list_timed(&self, folder: &str) -> Result<Vec<Listed>>;
        fn list_all(&self) -> Result<BTreeMap<String, Vec<Listed>>>;
        fn list_from(&self, folder: &str, first: &str) -> Result<Vec<String>>;
        fn sharing(&self) -> Result<Sharing>;
        fn sealing(&self) -> Option<&Arc<Sealing>>;
        fn size(&self, name: &str) -> Result<u64>;
        fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> Result<()>;
        fn read_index(&self, name: &str, offset: u64, buffer: &mut [u8]) -> Result<()>;
        fn read_anew(&self);
        fn keep_index(&self, name: &str, offset: u64, bytes: &[u8]);
        fn read_whole(&self, name: &str, limit: u64) -> Result<Vec<u8>>;
        fn prefetch(&self, name: &str, offset: u64, bytes: u64);
        fn expect(&self, names: &[String]);
        fn create(&self, name: &str) -> Result<Box<dyn Upload>>;
        fn put_if_absent(&self, name: &str, bytes: &[u8]) -> Result<()>;
        fn pause(&self, attempt: u32);
        fn replace(&self, name: &str, bytes: &[u8]) -> Result<()>;
        fn remove(&self, name: &str) -> Result<()>;
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
