//! The few requests that a server of objects answers, and how they are made again.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::transfer::Transfer;
use crate::store::{Listed, RangeUpload, Upload};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;

/// Whether a put may replace what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutMode {
    /// It is an error if there is an object of that name.
    IfAbsent,
    /// Whatever is there is replaced.
    Over,
}

/// What a server of objects is asked. Names are relative to the repository, with one `/` at most.
///
/// An error of kind `Unavailable` may pass; after one a change may have been carried out, or be carried out
/// later.
pub trait Requests: Send + Sync {
    /// The objects in a folder (empty for the top), and the folders in it. The time of a folder is any.
    fn list(&self, folder: &str) -> Result<Vec<Listed>>;

    /// The names in a folder that are `first` or sort after it.
    fn list_from(&self, folder: &str, first: &str) -> Result<Vec<String>> {
        let names = self.list(folder)?.into_iter().map(|object| object.name);
        Ok(names.filter(|name| name.as_str() >= first).collect())
    }

    /// All objects, by folder (empty for the top).
    fn list_all(&self) -> Result<BTreeMap<String, Vec<Listed>>>;

    /// Length of an object in bytes.
    fn size(&self, name: &str) -> Result<u64>;

    /// What the content of an object is called.
    fn version(&self, name: &str) -> Result<Version>;

    /// Fills `buffer` from `offset` on with bytes of that content. `AlreadyExists` if it is known to be
    /// another one by now.
    fn read_version(
        &self,
        name: &str,
        version: &Version,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<()>;

    /// Fills `buffer` from `offset` on. `Corrupt` if the object ends before.
    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> Result<()>;

    /// A small object whole. `Corrupt` if it is longer than `limit` bytes.
    fn read_whole(&self, name: &str, limit: u64) -> Result<Vec<u8>>;

    /// Puts a small object, which appears whole.
    fn put(&self, name: &str, bytes: &[u8], mode: PutMode) -> Result<()>;

    /// Begins an object of any length.
    fn upload(&self, name: &str) -> Result<Box<dyn Upload>>;

    /// Removes an object; it is no error if there is none.
    fn remove(&self, name: &str) -> Result<()>;

    /// Makes a folder, where there are such things.
    fn create_folder(&self, _folder: &str) -> Result<()> {
        Ok(())
    }

    /// Removes an empty folder, where there are such things; false if something is in it.
    fn remove_folder(&self, folder: &str) -> Result<bool> {
        Ok(self.list(folder)?.is_empty())
    }

    /// Gives up what was begun to be uploaded into a folder before a time, and never completed; returns how
    /// many.
    fn abort_uploads(&self, _folder: &str, _before: Timestamp) -> Result<u64> {
        Ok(0)
    }

    /// Begins an object that several hosts send, each some of its pieces. Returns the id of the upload.
    fn begin_shared(&self, name: &str) -> Result<String> {
        Err(not_shared(name))
    }

    /// Sends pieces of such an object, from the one with the number `first` on (0 is that at its beginning).
    fn send_shared(
        &self,
        name: &str,
        _id: &str,
        _piece_bytes: usize,
        _first: usize,
    ) -> Result<Box<dyn RangeUpload>> {
        Err(not_shared(name))
    }

    /// Puts it together of all its pieces. No error if that was done before, and it has that length.
    fn complete_shared(
        &self,
        name: &str,
        _id: &str,
        _pieces: &[String],
        _bytes: u64,
    ) -> Result<()> {
        Err(not_shared(name))
    }

    /// Gives it up; no error if it is over.
    fn abort_shared(&self, name: &str, _id: &str) -> Result<()> {
        Err(not_shared(name))
    }

    /// How often a request is made at most that fails for a reason that may pass.
    fn attempts(&self) -> u32;
}

/// What a server says of the content of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// Its length.
    pub bytes: u64,
    /// When it was written, by the clock of the server.
    pub time: Timestamp,
    /// What names this content alone, if the server names it: then no byte of another one is read.
    pub tag: Option<String>,
}

pub(super) fn not_shared(place: &str) -> Error {
    let what = format!("several hosts cannot write {place} at once: only S3 supports that");
    Error::new(ErrorKind::Unsupported, what).hint("restore it on one host")
}

/// True for the name of an object that was never given before (C3).
#[cfg(any(feature = "objects", feature = "hdfs"))]
pub(super) fn is_unique(name: &str) -> bool {
    name.ends_with(".delta") || name.ends_with(".attachment")
}

/// How long to wait before another attempt: twice as long each time, up to ten seconds, and by chance down to
/// half of it, so that many that failed at once do not come back at once.
pub(super) fn pause(attempt: u32) -> Duration {
    let longest = Duration::from_millis((100 << attempt.min(7)).min(10_000));
    let mut chance = [0; 4];
    // Without chance it is half of it.
    let chance = match getrandom::fill(&mut chance) {
        Ok(()) => f64::from(u32::from_le_bytes(chance)) / f64::from(u32::MAX),
        Err(_) => 0.0,
    };
    longest.mul_f64(0.5 + chance / 2.0)
}

/// Makes a request until there is an answer, or one error too many, or the user wants to stop.
pub(super) fn retried<T>(
    requests: &dyn Requests,
    transfer: &Transfer,
    mut request: impl FnMut(&dyn Requests) -> Result<T>,
) -> Result<T> {
    let mut attempt = 0;
    loop {
        match request(requests) {
            Err(e) if e.kind() == ErrorKind::Unavailable && attempt + 1 < requests.attempts() => {
                transfer.sleep(pause(attempt))?;
                attempt += 1;
            }
            other => return other,
        }
    }
}
