//! Stores on servers: what is the same of all of them, above the few requests that a server answers.
//!
//! ```text
//! CachedStore -> RemoteStore (asks again, keeps to a rate) -> Requests: object (S3, GCS, Azure) | hdfs
//! ```

#[cfg(all(feature = "objects", feature = "hdfs"))]
mod blocks;
mod connect;
mod file;
#[cfg(feature = "hdfs")]
mod hdfs;
mod limits;
#[cfg(feature = "objects")]
mod object;
mod requests;
#[cfg(any(feature = "objects", feature = "hdfs"))]
mod runtime;
mod shared;

#[cfg(all(feature = "objects", feature = "hdfs"))]
pub use blocks::hosts_of;
pub use file::{RemoteFile, create_remote, glob_remote, is_remote_there};
pub use requests::Version;
pub use shared::SharedObject;

use super::url::RemoteUrl;
use super::{Listed, LockGuard, LockKind, Sharing, Store, Upload};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::transfer::Transfer;
use connect::connect;
use jiff::Timestamp;
use limits::LimitedUpload;
use requests::{PutMode, Requests, pause, retried};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A repository on a server.
pub struct RemoteStore {
    requests: Arc<dyn Requests>,
    url: String,
    transfer: Transfer,
}

impl RemoteStore {
    /// The one that a URL names. Nothing is asked yet.
    ///
    /// # Errors
    /// `Unsupported` if this build knows none of its kind; `InvalidInput` if its configuration is wrong.
    pub fn open(url: &RemoteUrl, transfer: Transfer) -> Result<Self> {
        Ok(Self { requests: connect(url)?, url: url.to_string(), transfer })
    }

    /// Asks until there is an answer, or one error too many.
    fn ask<T>(&self, request: impl FnMut(&dyn Requests) -> Result<T>) -> Result<T> {
        retried(self.requests.as_ref(), &self.transfer, request)
    }
}

impl Store for RemoteStore {
    fn list(&self, folder: &str) -> Result<Vec<String>> {
        Ok(self.list_timed(folder)?.into_iter().map(|object| object.name).collect())
    }

    fn list_from(&self, folder: &str, first: &str) -> Result<Vec<String>> {
        self.ask(|server| server.list_from(folder, first))
    }

    fn list_timed(&self, folder: &str) -> Result<Vec<Listed>> {
        self.ask(|server| server.list(folder))
    }

    fn list_all(&self) -> Result<BTreeMap<String, Vec<Listed>>> {
        self.ask(|server| server.list_all())
    }

    fn sharing(&self) -> Result<Sharing> {
        Ok(Sharing::SHARED)
    }

    fn size(&self, name: &str) -> Result<u64> {
        self.ask(|server| server.size(name))
    }

    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.transfer.fetch(buffer.len() as u64)?;
        self.ask(|server| server.read_at(name, offset, buffer))
    }

    fn read_whole(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        self.ask(|server| server.read_whole(name, limit))
    }

    fn create(&self, name: &str) -> Result<Box<dyn Upload>> {
        let upload = self.ask(|server| server.upload(name))?;
        Ok(Box::new(LimitedUpload { upload, transfer: self.transfer.clone() }))
    }

    fn put_if_absent(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.transfer.send(bytes.len() as u64)?;
        let put = self.ask(|server| server.put(name, bytes, PutMode::IfAbsent));
        match put {
            // An attempt without an answer may have been carried out, and a conflict be that of two puts of
            // which neither stands: what is there tells.
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                match self.read_whole(name, bytes.len() as u64) {
                    Ok(there) if there == bytes => Ok(()),
                    Err(missing) if missing.kind() == ErrorKind::NotFound => {
                        let what = format!("{}: no answer to a put", self.location(name));
                        Err(Error::new(ErrorKind::Unavailable, what))
                    }
                    _ => Err(e),
                }
            }
            other => other,
        }
    }

    fn pause(&self, attempt: u32) {
        // Also when the user wants to stop: what became of a commit is found out.
        std::thread::sleep(pause(attempt));
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.transfer.send(bytes.len() as u64)?;
        self.ask(|server| server.put(name, bytes, PutMode::Over))
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.ask(|server| server.remove(name))
    }

    fn sync_dir(&self, _folder: &str) -> Result<()> {
        // What a server has answered is durable.
        Ok(())
    }

    fn create_folder(&self, folder: &str) -> Result<()> {
        self.ask(|server| server.create_folder(folder))
    }

    fn remove_folder(&self, folder: &str) -> Result<bool> {
        self.ask(|server| server.remove_folder(folder))
    }

    fn lock(&self, _name: &str, _kind: LockKind) -> Result<Option<LockGuard>> {
        // There are none: nobody is kept out.
        Ok(Some(Box::new(())))
    }

    fn hold(&self, lock: &str, _objects: &[&str]) -> Result<Option<LockGuard>> {
        self.lock(lock, LockKind::Shared)
    }

    fn is_held(&self, _lock: &str, _object: Option<&str>) -> Result<bool> {
        Ok(false)
    }

    fn abort_uploads(&self, folder: &str, before: Timestamp) -> Result<u64> {
        self.ask(|server| server.abort_uploads(folder, before))
    }

    fn location(&self, name: &str) -> String {
        let slash = if name.is_empty() { "" } else { "/" };
        format!("{}{slash}{name}", self.url)
    }

    fn url(&self) -> Option<&str> {
        Some(&self.url)
    }
}
