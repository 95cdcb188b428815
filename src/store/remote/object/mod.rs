//! Object stores: S3 and what speaks its protocol, Google Cloud Storage, Azure Blob Storage.

mod abandoned;
mod bucket;
mod connect;
mod errors;
mod pieces;
mod profile;
mod upload;

use super::requests::{PutMode, Requests, Version, not_shared};
use super::runtime::runtime;
use crate::base::error::{Error, ErrorKind, Result};
use crate::store::url::RemoteUrl;
use crate::store::{Listed, RangeUpload, Upload};
use bucket::{Bucket, mode_of};
use errors::{failed, said};
use futures_util::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use object_store::aws::AmazonS3;
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, GetResult, ObjectMeta, ObjectStore, ObjectStoreExt, PutOptions,
};
use pieces::SharedUpload;
use std::collections::BTreeMap;
use std::sync::Arc;
use upload::ObjectUpload;

/// A prefix in a bucket or container.
pub(super) struct Objects {
    bucket: Bucket,
    /// The same, if it is S3.
    s3: Option<Arc<AmazonS3>>,
    url: String,
}

impl Objects {
    /// Of a URL.
    ///
    /// # Errors
    /// `InvalidInput` if what the environment says cannot be used.
    pub fn new(url: &RemoteUrl) -> Result<Self> {
        let (store, s3) = connect::connect(url)?;
        let invalid = |e| Error::new(ErrorKind::InvalidInput, format!("{url}: {e}"));
        let prefix = Path::parse(&url.path).map_err(invalid)?;
        Ok(Self { bucket: Bucket { store, prefix }, s3, url: url.to_string() })
    }

    fn key(&self, name: &str) -> Result<Path> {
        let invalid = |e| Error::new(ErrorKind::InvalidInput, format!("{}/{name}: {e}", self.url));
        let name = Path::parse(name).map_err(invalid)?;
        Ok(self.bucket.prefix.parts().chain(name.parts()).collect())
    }

    fn error(&self, doing: &str, name: &str, error: object_store::Error) -> Error {
        let slash = if name.is_empty() { "" } else { "/" };
        failed(doing, &format!("{}{slash}{name}", self.url), error)
    }

    /// The name of an object below a prefix, and what is known of it.
    fn listed(prefix: &Path, meta: &ObjectMeta) -> Option<(String, Listed)> {
        let parts: Vec<String> =
            meta.location.prefix_match(prefix)?.map(|part| part.as_ref().to_owned()).collect();
        let (name, folder) = parts.split_last()?;
        let listed = Listed { name: name.clone(), time: Self::time(meta)?, bytes: meta.size };
        Some((folder.join("/"), listed))
    }

    fn time(meta: &ObjectMeta) -> Option<Timestamp> {
        Timestamp::from_nanosecond(meta.last_modified.timestamp_nanos_opt()?.into()).ok()
    }

    fn shared(&self, name: &str) -> Result<SharedUpload> {
        let s3 = self.s3.clone().ok_or_else(|| not_shared(&self.url))?;
        let (bucket, key) = (self.bucket.clone(), self.key(name)?);
        Ok(SharedUpload { s3, bucket, key, place: format!("{}/{name}", self.url) })
    }

    fn get(&self, name: &str, options: GetOptions) -> Result<GetResult> {
        let key = self.key(name)?;
        let got = runtime()?.block_on(self.bucket.store.get_opts(&key, options));
        got.map_err(|e| self.error("read", name, e))
    }

    /// Fills a buffer with what a server sends, from the beginning of its answer on.
    fn fill(&self, name: &str, got: GetResult, buffer: &mut [u8]) -> Result<()> {
        let filled = runtime()?.block_on(async {
            let mut pieces = got.into_stream();
            let mut rest = buffer;
            while let Some(piece) = pieces.next().await {
                let piece = piece.map_err(|e| self.error("read", name, e))?;
                let Some((now, later)) = rest.split_at_mut_checked(piece.len()) else {
                    return Ok(None);
                };
                now.copy_from_slice(&piece);
                rest = later;
            }
            Ok(Some(rest.len()))
        })?;
        // A server that sends more or less than it has announced may do better another time.
        match filled {
            Some(0) => Ok(()),
            _ => {
                let what =
                    format!("cannot read {}/{name}: unexpected length of the answer", self.url);
                Err(Error::new(ErrorKind::Unavailable, what))
            }
        }
    }
}

impl Requests for Objects {
    fn list(&self, folder: &str) -> Result<Vec<Listed>> {
        let key = self.key(folder)?;
        let listed = runtime()?.block_on(self.bucket.store.list_with_delimiter(Some(&key)));
        let listed = listed.map_err(|e| self.error("list", folder, e))?;
        let folders = listed.common_prefixes.iter().filter_map(|path| {
            let name = path.filename()?.to_owned();
            Some(Listed { name, time: Timestamp::UNIX_EPOCH, bytes: 0 })
        });
        let objects = listed.objects.iter().filter_map(|meta| {
            let (below, listed) = Self::listed(&key, meta)?;
            below.is_empty().then_some(listed)
        });
        Ok(folders.chain(objects).collect())
    }

    fn list_from(&self, folder: &str, first: &str) -> Result<Vec<String>> {
        // Servers list what sorts after a name, and a name after each shorter one that it begins with.
        let mut before = first.to_owned();
        let _last = before.pop();
        let (key, after) = (self.key(folder)?, self.key(&format!("{folder}/{before}"))?);
        let listed = self.bucket.store.list_with_offset(Some(&key), &after);
        let found: Vec<ObjectMeta> =
            runtime()?.block_on(listed.try_collect()).map_err(|e| self.error("list", folder, e))?;
        let own = found.iter().filter_map(|meta| Self::listed(&key, meta));
        let own = own.filter(|(below, listed)| below.is_empty() && listed.name.as_str() >= first);
        Ok(own.map(|(_, listed)| listed.name).collect())
    }

    fn list_all(&self) -> Result<BTreeMap<String, Vec<Listed>>> {
        let prefix = &self.bucket.prefix;
        let listed = self.bucket.store.list(Some(prefix));
        let mut folders: BTreeMap<String, Vec<Listed>> = BTreeMap::new();
        let found: Vec<ObjectMeta> =
            runtime()?.block_on(listed.try_collect()).map_err(|e| self.error("list", "", e))?;
        for (folder, listed) in found.iter().filter_map(|meta| Self::listed(prefix, meta)) {
            folders.entry(folder).or_default().push(listed);
        }
        Ok(folders)
    }

    fn size(&self, name: &str) -> Result<u64> {
        let key = self.key(name)?;
        let head = runtime()?.block_on(self.bucket.store.head(&key));
        head.map(|meta| meta.size).map_err(|e| self.error("open", name, e))
    }

    fn version(&self, name: &str) -> Result<Version> {
        let key = self.key(name)?;
        let head = runtime()?.block_on(self.bucket.store.head(&key));
        let head = head.map_err(|e| self.error("open", name, e))?;
        let time = Self::time(&head).unwrap_or(Timestamp::UNIX_EPOCH);
        Ok(Version { bytes: head.size, time, tag: head.e_tag })
    }

    fn read_version(
        &self,
        name: &str,
        version: &Version,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<()> {
        if buffer.is_empty() {
            return Ok(());
        }
        let range = Some(GetRange::Bounded(offset..offset.saturating_add(buffer.len() as u64)));
        // A weak one matches nothing.
        let if_match = version.tag.clone().filter(|tag| !tag.starts_with("W/"));
        let got = self.get(name, GetOptions { range, if_match, ..GetOptions::default() })?;
        // Not every server heeds what is asked.
        if got.meta.size != version.bytes || got.meta.e_tag != version.tag {
            let what = format!("{}/{name} has changed", self.url);
            return Err(Error::new(ErrorKind::AlreadyExists, what));
        }
        self.fill(name, got, buffer)
    }

    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> Result<()> {
        if buffer.is_empty() {
            return Ok(());
        }
        let range = offset..offset.saturating_add(buffer.len() as u64);
        let range = Some(GetRange::Bounded(range.clone()));
        let got = self.get(name, GetOptions { range, ..GetOptions::default() });
        let got = match got {
            // The server says only that there are no such bytes.
            Err(e) if e.kind() != ErrorKind::NotFound => match self.size(name) {
                Ok(size) if size < offset.saturating_add(buffer.len() as u64) => {
                    return Err(ends_before(&self.url, name, offset));
                }
                _ => return Err(e),
            },
            other => other?,
        };
        if got.meta.size < offset.saturating_add(buffer.len() as u64) {
            return Err(ends_before(&self.url, name, offset));
        }
        self.fill(name, got, buffer)
    }

    fn read_whole(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        let got = self.get(name, GetOptions::default())?;
        if got.meta.size > limit {
            let bytes = got.meta.size;
            let what = format!("{}/{name} has an impossible size of {bytes} bytes", self.url);
            return Err(Error::corrupt(what));
        }
        let mut bytes = vec![0; got.meta.size as usize];
        self.fill(name, got, &mut bytes)?;
        Ok(bytes)
    }

    fn put(&self, name: &str, bytes: &[u8], mode: PutMode) -> Result<()> {
        let key = self.key(name)?;
        let options = PutOptions::from(mode_of(mode));
        let put = self.bucket.store.put_opts(&key, bytes.to_vec().into(), options);
        runtime()?.block_on(put).map(drop).map_err(|e| self.error("write", name, e))
    }

    fn upload(&self, name: &str) -> Result<Box<dyn Upload>> {
        let place = format!("{}/{name}", self.url);
        Ok(Box::new(ObjectUpload::new(self.bucket.clone(), self.key(name)?, place)))
    }

    fn remove(&self, name: &str) -> Result<()> {
        let key = self.key(name)?;
        match runtime()?.block_on(self.bucket.store.delete(&key)) {
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            // A policy forbids it, for now: so Azure answers.
            Err(object_store::Error::AlreadyExists { source, .. }) => {
                let what = format!("cannot remove {}/{name}: {}", self.url, said(source.as_ref()));
                Err(Error::new(ErrorKind::Auth, what))
            }
            other => other.map_err(|e| self.error("remove", name, e)),
        }
    }

    fn abort_uploads(&self, folder: &str, before: Timestamp) -> Result<u64> {
        let Some(s3) = &self.s3 else { return Ok(0) };
        let key = self.key(folder)?;
        runtime()?.block_on(abandoned::abort(s3, &key, before, &self.url))
    }

    fn begin_shared(&self, name: &str) -> Result<String> {
        self.shared(name)?.begin()
    }

    fn send_shared(
        &self,
        name: &str,
        id: &str,
        piece_bytes: usize,
        first: usize,
    ) -> Result<Box<dyn RangeUpload>> {
        Ok(self.shared(name)?.send(id, piece_bytes, first))
    }

    fn complete_shared(&self, name: &str, id: &str, pieces: &[String], bytes: u64) -> Result<()> {
        self.shared(name)?.complete(id, pieces.to_vec(), bytes)
    }

    fn abort_shared(&self, name: &str, id: &str) -> Result<()> {
        self.shared(name)?.abort(id)
    }

    fn attempts(&self) -> u32 {
        // The client tries again itself, but for what it does not know to be safe.
        2
    }
}

fn ends_before(url: &str, name: &str, offset: u64) -> Error {
    Error::corrupt(format!("{url}/{name} ends before byte {offset}"))
}
