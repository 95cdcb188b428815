//! An object on a server that several hosts send, each some of its pieces.

use super::connect::connect;
use super::file::split;
use super::limits::LimitedRange;
use super::requests::{Requests, retried};
use crate::base::error::{ErrorKind, Result};
use crate::base::transfer::Transfer;
use crate::store::RangeUpload;
use crate::store::url::RemoteUrl;
use std::sync::Arc;

/// Where it is. All hosts know its upload by an id.
pub struct SharedObject {
    requests: Arc<dyn Requests>,
    name: String,
    transfer: Transfer,
}

impl SharedObject {
    /// The one that a URL names. Nothing is asked yet.
    ///
    /// # Errors
    /// `Unsupported` if it names no object; `InvalidInput` if the configuration of its server is wrong.
    pub fn at(url: &RemoteUrl, transfer: &Transfer) -> Result<Self> {
        let (folder, name) = split(url)?;
        Ok(Self { requests: connect(&folder)?, name, transfer: transfer.clone() })
    }

    fn ask<T>(&self, request: impl FnMut(&dyn Requests) -> Result<T>) -> Result<T> {
        retried(self.requests.as_ref(), &self.transfer, request)
    }

    /// Begins its upload; returns the id.
    ///
    /// # Errors
    /// `Unsupported` if it has to be one host; those of the server.
    pub fn begin(&self) -> Result<String> {
        self.ask(|server| server.begin_shared(&self.name))
    }

    /// Sends pieces of so many bytes from the one with the number `first` on.
    ///
    /// # Errors
    /// As of [`Self::begin`].
    pub fn send(&self, id: &str, piece_bytes: usize, first: usize) -> Result<Box<dyn RangeUpload>> {
        let upload = self.requests.send_shared(&self.name, id, piece_bytes, first)?;
        Ok(Box::new(LimitedRange { upload, transfer: self.transfer.clone() }))
    }

    /// Puts it together of all its pieces. No error if that was done before, and it has that length.
    ///
    /// # Errors
    /// `NotFound` if the upload was given up; those of the server.
    pub fn complete(&self, id: &str, pieces: &[String], bytes: u64) -> Result<()> {
        self.ask(|server| server.complete_shared(&self.name, id, pieces, bytes))
    }

    /// Gives the upload up; no error if it is over.
    ///
    /// # Errors
    /// Those of the server.
    pub fn abort(&self, id: &str) -> Result<()> {
        self.ask(|server| server.abort_shared(&self.name, id))
    }

    /// Its length, if it is there as a whole.
    ///
    /// # Errors
    /// Those of the server.
    pub fn bytes(&self) -> Result<Option<u64>> {
        match self.ask(|server| server.version(&self.name)) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            other => other.map(|version| Some(version.bytes)),
        }
    }
}
