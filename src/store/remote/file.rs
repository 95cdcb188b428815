//! Files and objects on servers that are no part of a repository: disk images.

use super::connect::connect;
use super::limits::LimitedUpload;
use super::requests::{Requests, Version, retried};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::message::Action;
use crate::base::transfer::Transfer;
use crate::store::url::{RemoteKind, RemoteUrl};
use crate::store::{Listed, Upload};
use std::sync::Arc;

/// An object on a server, as it was when it was opened.
pub struct RemoteFile {
    requests: Arc<dyn Requests>,
    url: RemoteUrl,
    name: String,
    version: Version,
    transfer: Transfer,
}

/// The folder that a file is in, and its name there.
pub(super) fn split(url: &RemoteUrl) -> Result<(RemoteUrl, String)> {
    let (folder, name) = url.path.rsplit_once('/').unwrap_or(("", &url.path));
    if name.is_empty() || url.kind == RemoteKind::Ssh {
        let what = match url.kind {
            RemoteKind::Ssh => format!("{url}: images on other hosts cannot be read over ssh"),
            _ => format!("{url} does not name a file"),
        };
        return Err(Error::new(ErrorKind::Unsupported, what));
    }
    Ok((RemoteUrl { path: folder.to_owned(), ..url.clone() }, name.to_owned()))
}

impl RemoteFile {
    /// Opens an object.
    ///
    /// # Errors
    /// `NotFound`; those of the server.
    pub fn open(url: &RemoteUrl, transfer: &Transfer) -> Result<Self> {
        let (folder, name) = split(url)?;
        let requests = connect(&folder)?;
        let version = retried(requests.as_ref(), transfer, |server| server.version(&name))?;
        Ok(Self { requests, url: url.clone(), name, version, transfer: transfer.clone() })
    }

    /// Where it is.
    pub fn url(&self) -> &RemoteUrl {
        &self.url
    }

    /// What its content is called.
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// Fills a buffer from `offset` on.
    ///
    /// # Errors
    /// `Mismatch` if it is another one by now; those of the server.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.transfer.fetch(buffer.len() as u64)?;
        let read = retried(self.requests.as_ref(), &self.transfer, |server| {
            server.read_version(&self.name, &self.version, offset, buffer)
        });
        match read {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => Err(self.changed()),
            other => other,
        }
    }

    /// Fails if it is another one by now.
    ///
    /// # Errors
    /// `Mismatch`; those of the server.
    pub fn check(&self) -> Result<()> {
        let version = |server: &dyn Requests| server.version(&self.name);
        match retried(self.requests.as_ref(), &self.transfer, version) {
            Ok(version) if version == self.version => Ok(()),
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
            _ => Err(self.changed()),
        }
    }

    fn changed(&self) -> Error {
        let what = format!("{} was changed while it was being read", self.url);
        Error::new(ErrorKind::Busy, what).hint(Action::Retry)
    }
}

/// Begins an object that is written front to back.
///
/// # Errors
/// Those of the server.
pub fn create_remote(url: &RemoteUrl, transfer: &Transfer) -> Result<Box<dyn Upload>> {
    let (folder, name) = split(url)?;
    let requests = connect(&folder)?;
    let upload = retried(requests.as_ref(), transfer, |server| server.upload(&name))?;
    Ok(Box::new(LimitedUpload { upload, transfer: transfer.clone() }))
}

/// True if there is an object of that name.
///
/// # Errors
/// Those of the server.
pub fn is_remote_there(url: &RemoteUrl, transfer: &Transfer) -> Result<bool> {
    let (folder, name) = split(url)?;
    let requests = connect(&folder)?;
    match retried(requests.as_ref(), transfer, |server| server.version(&name)) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        other => other.map(|_| true),
    }
}

/// The objects whose names, the last steps of the path, match a pattern as shells have it; sorted.
///
/// # Errors
/// `InvalidInput` for a pattern that is none; those of the server.
pub fn glob_remote(url: &RemoteUrl, transfer: &Transfer) -> Result<Vec<RemoteUrl>> {
    let (folder, pattern) = split(url)?;
    let invalid = |e| Error::new(ErrorKind::InvalidInput, format!("{url}: {e}"));
    let pattern = glob::Pattern::new(&pattern).map_err(invalid)?;
    let requests = connect(&folder)?;
    let listed = retried(requests.as_ref(), transfer, |server| server.list(""))?;
    let matches = |object: &Listed| pattern.matches(&object.name);
    let mut names: Vec<String> = listed.into_iter().filter(matches).map(|o| o.name).collect();
    names.sort();
    let slash = if folder.path.is_empty() { "" } else { "/" };
    let path = |name: String| format!("{}{slash}{name}", folder.path);
    Ok(names.into_iter().map(|name| RemoteUrl { path: path(name), ..folder.clone() }).collect())
}
