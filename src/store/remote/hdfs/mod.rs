//! HDFS: an object is written under a temporary name and renamed, which replaces nothing.
//!
//! A file is in one block if it is not longer than [`BLOCK_BYTES`]: while a block is written, the loss of a
//! DataNode is survived, but a new block that is given to one that has just died fails. The first one is
//! tried again under another name.

mod errors;

use super::requests::{PutMode, Requests, Version, is_unique};

use super::runtime::runtime;
use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::store::url::RemoteUrl;
use crate::store::{Listed, Upload};
use errors::SafeMode;
use hdfs_native::client::FileStatus;
use hdfs_native::file::{FileReader, FileWriter};
use hdfs_native::{Client, ClientBuilder, HdfsError, WriteOptions};
use jiff::Timestamp;
use quick_cache::sync::Cache;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// Length of the blocks of files. A NameNode takes what is a multiple of 512 bytes.
const BLOCK_BYTES: u64 = 1 << 30;
/// What is kept of a file until it is known that its first block can be written.
const FIRST_BYTES: usize = 4 << 20;
/// How long it is tried to begin a file: a DataNode that has died is given out for ten minutes by default.
const PATIENCE: Duration = Duration::from_secs(11 * 60);
const PAUSE: Duration = Duration::from_millis(500);
/// How many files are kept open for reading: it takes a request to open one.
const OPEN_FILES: usize = 256;

type Answer<T> = std::result::Result<T, HdfsError>;

/// A folder in HDFS.
pub(super) struct Hdfs {
    folder: Arc<Folder>,
    /// The same, for what is not begun again: it waits for another NameNode as it is configured.
    uploads: Arc<Folder>,
}

struct Folder {
    client: Client,
    /// Absolute, without a slash at its end.
    path: String,
    url: String,
    readers: Arc<Cache<String, Arc<FileReader>>>,
    safe_mode: Arc<SafeMode>,
}

impl Hdfs {
    /// Of a URL; `HADOOP_CONF_DIR` names the folder of the configuration.
    ///
    /// # Errors
    /// `InvalidInput` if the configuration cannot be used.
    pub fn new(url: &RemoteUrl) -> Result<Self> {
        // Who asks again is above: a client that does so as well, and 15 times, takes hours to give up.
        let few = [("dfs.client.failover.max.attempts", "3")];
        let readers = Arc::new(Cache::new(OPEN_FILES));
        let safe_mode = Arc::new(SafeMode::default());
        let folder = |config: &[(&str, &str)]| {
            let mut builder = ClientBuilder::new()
                .with_io_runtime(runtime()?.handle().clone())
                .with_config(config.iter().copied());
            if !url.host.is_empty() {
                let port = url.port.map(|port| format!(":{port}")).unwrap_or_default();
                builder = builder.with_url(format!("hdfs://{}{port}", url.host));
            }
            let client = builder.build().map_err(|e| {
                let what = format!("{url}: {e}");
                Error::new(ErrorKind::InvalidInput, what)
                    .hint("check HADOOP_CONF_DIR, and core-site.xml in it")
            })?;
            let (path, url) = (format!("/{}", url.path), url.to_string());
            let (readers, safe_mode) = (readers.clone(), safe_mode.clone());
            Ok(Arc::new(Folder { client, path, url, readers, safe_mode }))
        };
        Ok(Self { folder: folder(&few)?, uploads: folder(&[])? })
    }
}

impl Folder {
    fn path(&self, name: &str) -> String {
        let slash = if name.is_empty() { "" } else { "/" };
        format!("{}{slash}{name}", self.path)
    }

    fn error(&self, doing: &str, name: &str, error: HdfsError) -> Error {
        let slash = if name.is_empty() { "" } else { "/" };
        let place = format!("{}{slash}{name}", self.url);
        self.safe_mode.error(doing, &place, error)
    }

    fn reader(&self, name: &str) -> Result<Arc<FileReader>> {
        self.readers.get_or_insert_with(name, || {
            let opened = wait(self.client.read(&self.path(name)));
            opened.map(Arc::new).map_err(|e| self.error("open", name, e))
        })
    }

    fn status(&self, name: &str) -> Answer<FileStatus> {
        wait(self.client.get_file_info(&self.path(name)))
    }

    /// A name for a file that is being written, as in a folder of this host.
    fn temporary(name: &str) -> String {
        let (folder, file) = name.rsplit_once('/').unwrap_or(("", name));
        let slash = if folder.is_empty() { "" } else { "/" };
        let random = uuid::Uuid::new_v4().simple().to_string();
        format!("{folder}{slash}.{file}.{}.tmp", random.get(..12).unwrap_or_default())
    }

    /// Gives a file that was written its name.
    fn publish(&self, temporary: &str, name: &str, bytes: u64, mode: PutMode) -> Result<()> {
        let (from, to) = (self.path(temporary), self.path(name));
        let renamed = wait(self.client.rename(&from, &to, mode == PutMode::Over));
        self.readers.remove(name);
        let Err(error) = renamed else { return Ok(()) };
        // The answer may have been lost, and the request been made again.
        let is_there = || self.status(name).is_ok_and(|file| file.length as u64 == bytes);
        let is_gone = || matches!(self.status(temporary), Err(HdfsError::FileNotFound(_)));
        if !matches!(error, HdfsError::AlreadyExists(_)) && is_gone() && is_there() {
            // Whether it is this one, what is in it tells; a name that was never given before tells as well.
            if is_unique(name) || mode == PutMode::Over {
                return Ok(());
            }
            let what = format!("{}/{name}: no answer to a rename", self.url);
            return Err(Error::new(ErrorKind::Unavailable, what));
        }
        // Whoever collects garbage finds it.
        best_effort(wait(self.client.delete(&from, false)));
        Err(self.error("write", name, error))
    }

    /// Begins a file with these bytes. Its name is another one at each attempt.
    fn begin(&self, name: &str, bytes: &[u8]) -> Result<(String, FileWriter)> {
        let begun = Instant::now();
        let options =
            WriteOptions::default().block_size(BLOCK_BYTES).permission(0o600).create_parent(false);
        // The client waits for ever where a DataNode cannot reach the next one.
        let mut limit = SHORTEST;
        loop {
            let temporary = Self::temporary(name);
            let path = self.path(&temporary);
            let written = wait_for(limit, async {
                let mut writer = self.client.create(&path, &options).await?;
                // What is not flushed is not answered for.
                if !bytes.is_empty() {
                    writer.write_bytes(bytes.to_vec().into()).await?;
                    writer.hsync().await?;
                }
                Ok(writer)
            });
            let error = match written {
                Ok(writer) => return Ok((temporary, writer)),
                Err(e) => e,
            };
            best_effort(wait(self.client.delete(&path, false)));
            let is_of_data =
                matches!(error, HdfsError::IOError(_) | HdfsError::DataTransferError(_));
            if !is_of_data || begun.elapsed() > PATIENCE || self.status("").is_err() {
                return Err(self.error("write", name, error));
            }
            if matches!(&error, HdfsError::IOError(e) if e.kind() == io::ErrorKind::TimedOut) {
                // It may only be slow.
                limit = LONGEST.min(limit * 2);
            }
            std::thread::sleep(PAUSE);
        }
    }
}

impl Requests for Hdfs {
    fn list(&self, folder: &str) -> Result<Vec<Listed>> {
        let path = self.folder.path(folder);
        match wait(self.folder.client.list_status(&path, false)) {
            Err(HdfsError::FileNotFound(_)) => Ok(Vec::new()),
            Err(e) => Err(self.folder.error("list", folder, e)),
            // What is listed of a file is that file.
            Ok(found) => Ok(found.iter().filter(|s| s.path != path).filter_map(listed).collect()),
        }
    }

    fn list_all(&self) -> Result<BTreeMap<String, Vec<Listed>>> {
        let found = match wait(self.folder.client.list_status(&self.folder.path, true)) {
            Err(HdfsError::FileNotFound(_)) => match self.folder.status("") {
                Err(HdfsError::FileNotFound(_)) => return Ok(BTreeMap::new()),
                // A folder in it went while it was listed.
                _ => {
                    let what = format!("{} changes while it is listed", self.folder.url);
                    return Err(Error::new(ErrorKind::Unavailable, what));
                }
            },
            other => other.map_err(|e| self.folder.error("list", "", e))?,
        };
        let mut folders: BTreeMap<String, Vec<Listed>> = BTreeMap::new();
        for status in found.iter().filter(|status| !status.isdir) {
            let below =
                status.path.strip_prefix(&self.folder.path).and_then(|p| p.strip_prefix('/'));
            let Some(below) = below else { continue };
            let folder = below.rsplit_once('/').map_or("", |(folder, _)| folder);
            folders.entry(folder.to_owned()).or_default().extend(listed(status));
        }
        Ok(folders)
    }

    fn size(&self, name: &str) -> Result<u64> {
        let status = self.folder.status(name).map_err(|e| self.folder.error("open", name, e))?;
        Ok(status.length as u64)
    }

    fn version(&self, name: &str) -> Result<Version> {
        let status = self.folder.status(name).map_err(|e| self.folder.error("open", name, e))?;
        let time = listed(&status).map_or(Timestamp::UNIX_EPOCH, |listed| listed.time);
        Ok(Version { bytes: status.length as u64, time, tag: None })
    }

    fn read_version(
        &self,
        name: &str,
        _version: &Version,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<()> {
        // The blocks of the file that was opened; whoever reads looks in the end.
        self.read_at(name, offset, buffer)
    }

    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let reader = self.folder.reader(name)?;
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > reader.file_length() as u64) {
            let what = format!("{}/{name} ends before byte {offset}", self.folder.url);
            return Err(Error::corrupt(what));
        }
        let read = wait(reader.read_range(offset as usize, buffer.len()));
        let read = read.map_err(|e| {
            // Its blocks may be elsewhere now.
            self.folder.readers.remove(name);
            self.folder.error("read", name, e)
        })?;
        if read.len() != buffer.len() {
            let what =
                format!("cannot read {}/{name}: unexpected length of the answer", self.folder.url);
            return Err(Error::new(ErrorKind::Unavailable, what));
        }
        buffer.copy_from_slice(&read);
        Ok(())
    }

    fn read_whole(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        // It may have been replaced.
        self.folder.readers.remove(name);
        let bytes = self.folder.reader(name)?.file_length() as u64;
        if bytes > limit {
            let what =
                format!("{}/{name} has an impossible size of {bytes} bytes", self.folder.url);
            return Err(Error::corrupt(what));
        }
        let mut whole = vec![0; bytes as usize];
        self.read_at(name, 0, &mut whole)?;
        Ok(whole)
    }

    fn put(&self, name: &str, bytes: &[u8], mode: PutMode) -> Result<()> {
        let (temporary, writer) = self.folder.begin(name, bytes)?;
        close(&self.folder, name, writer)?;
        self.folder.publish(&temporary, name, bytes.len() as u64, mode)
    }

    fn upload(&self, name: &str) -> Result<Box<dyn Upload>> {
        Ok(Box::new(HdfsUpload {
            folder: self.uploads.clone(),
            name: name.to_owned(),
            first: Vec::new(),
            file: None,
            bytes: 0,
        }))
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.folder.readers.remove(name);
        match wait(self.folder.client.delete(&self.folder.path(name), false)) {
            Ok(_) | Err(HdfsError::FileNotFound(_)) => Ok(()),
            Err(e) => Err(self.folder.error("remove", name, e)),
        }
    }

    fn create_folder(&self, folder: &str) -> Result<()> {
        let made = wait(self.folder.client.mkdirs(&self.folder.path(folder), 0o700, false));
        made.map_err(|e| self.folder.error("create the folder", folder, e))
    }

    fn remove_folder(&self, folder: &str) -> Result<bool> {
        if !self.list(folder)?.is_empty() {
            return Ok(false);
        }
        match wait(self.folder.client.delete(&self.folder.path(folder), false)) {
            Ok(_) | Err(HdfsError::FileNotFound(_)) => Ok(true),
            // Somebody came meanwhile.
            Err(HdfsError::RPCError(class, _)) if class.contains("PathIsNotEmptyDirectory") => {
                Ok(false)
            }
            Err(e) => Err(self.folder.error("remove the folder", folder, e)),
        }
    }

    fn attempts(&self) -> u32 {
        // A NameNode that is started again is waited for: about a minute.
        14
    }
}

/// How long a request may take: a NameNode may be there and never answer.
const LONGEST: Duration = Duration::from_secs(120);

/// How long it may take at first to begin a file.
const SHORTEST: Duration = Duration::from_secs(5);

/// Waits for an answer.
fn wait<T>(request: impl Future<Output = Answer<T>>) -> Answer<T> {
    wait_for(LONGEST, request)
}

fn wait_for<T>(limit: Duration, request: impl Future<Output = Answer<T>>) -> Answer<T> {
    let runtime = runtime().map_err(|e| HdfsError::OperationFailed(e.to_string()))?;
    let late = |_| HdfsError::IOError(io::ErrorKind::TimedOut.into());
    runtime.block_on(async { timeout(limit, request).await }).map_err(late)?
}

fn listed(status: &FileStatus) -> Option<Listed> {
    let name = status.path.rsplit('/').next()?.to_owned();
    let time = Timestamp::from_millisecond(i64::try_from(status.modification_time).ok()?).ok()?;
    Some(Listed { name, time, bytes: status.length as u64 })
}

/// Makes a file durable and ends it.
fn close(folder: &Folder, name: &str, mut writer: FileWriter) -> Result<()> {
    let closed = wait(async {
        writer.hsync().await?;
        writer.close().await
    });
    closed.map_err(|e| folder.error("write", name, e))
}

struct HdfsUpload {
    folder: Arc<Folder>,
    name: String,
    /// The first bytes, until it is begun.
    first: Vec<u8>,
    /// Its temporary name.
    file: Option<(String, FileWriter)>,
    bytes: u64,
}

impl HdfsUpload {
    fn begin(&mut self) -> Result<()> {
        let begun = self.folder.begin(&self.name, &self.first)?;
        self.bytes = self.first.len() as u64;
        self.first = Vec::new();
        self.file = Some(begun);
        Ok(())
    }

    fn finish(mut self, mode: PutMode) -> Result<()> {
        if self.file.is_none() {
            self.begin()?;
        }
        let Some((temporary, writer)) = self.file.take() else { return Ok(()) };
        if let Err(e) = close(&self.folder, &self.name, writer) {
            let path = self.folder.path(&temporary);
            best_effort(wait(self.folder.client.delete(&path, false)));
            return Err(e);
        }
        self.folder.publish(&temporary, &self.name, self.bytes, mode)
    }

    /// Writes what is within one block.
    fn write_within(&mut self, bytes: &[u8]) -> Result<()> {
        let Some((_, writer)) = &mut self.file else { return Ok(()) };
        let is_end = (self.bytes + bytes.len() as u64).is_multiple_of(BLOCK_BYTES);
        let written = wait(async {
            writer.write_bytes(bytes.to_vec().into()).await?;
            // Only the last block can be made durable later.
            if is_end { writer.hsync().await } else { Ok(()) }
        });
        written.map_err(|e| self.folder.error("write", &self.name, e))?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

impl Upload for HdfsUpload {
    fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        if self.file.is_none() {
            let left = FIRST_BYTES.saturating_sub(self.first.len());
            let (now, later) = bytes.split_at(bytes.len().min(left));
            self.first.extend_from_slice(now);
            bytes = later;
            if self.first.len() < FIRST_BYTES {
                return Ok(());
            }
            self.begin()?;
        }
        while !bytes.is_empty() {
            let left = BLOCK_BYTES - self.bytes % BLOCK_BYTES;
            let (now, later) = bytes.split_at(bytes.len().min(left as usize));
            self.write_within(now)?;
            bytes = later;
        }
        Ok(())
    }

    fn publish(self: Box<Self>) -> Result<()> {
        self.finish(PutMode::IfAbsent)
    }

    fn publish_over(self: Box<Self>) -> Result<()> {
        self.finish(PutMode::Over)
    }
}

impl Drop for HdfsUpload {
    fn drop(&mut self) {
        if let Some((temporary, _)) = self.file.take() {
            // Otherwise whoever collects garbage finds it.
            let path = self.folder.path(&temporary);
            best_effort(wait(self.folder.client.delete(&path, false)));
        }
    }
}
