//! An object that several hosts send, each some of its pieces, which are all of one length but the last.

use super::super::runtime::runtime;
use super::bucket::Bucket;
use super::errors::failed;
use super::upload::ObjectUpload;
use crate::base::error::{Error, ErrorKind, Result};
use crate::store::RangeUpload;
use async_trait::async_trait;
use object_store::aws::AmazonS3;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStoreExt, PutPayload, PutResult, UploadPart};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The upload, which all of them know by its id.
#[derive(Clone)]
pub(super) struct SharedUpload {
    pub s3: Arc<AmazonS3>,
    pub bucket: Bucket,
    pub key: Path,
    /// What to call it in a message.
    pub place: String,
}

impl SharedUpload {
    fn error(&self, error: object_store::Error) -> Error {
        failed("write", &self.place, error)
    }

    /// Begins it; returns its id.
    pub fn begin(&self) -> Result<String> {
        runtime()?.block_on(self.s3.create_multipart(&self.key)).map_err(|e| self.error(e))
    }

    /// Sends pieces from that one on, the first of an object being 0.
    pub fn send(&self, id: &str, piece_bytes: usize, first: usize) -> Box<dyn RangeUpload> {
        let sent = Arc::new(Mutex::new(BTreeMap::new()));
        let pieces = Pieces {
            s3: Arc::clone(&self.s3),
            key: self.key.clone(),
            id: id.to_owned(),
            next: first,
            sent: Arc::clone(&sent),
        };
        let (bucket, key, place) = (self.bucket.clone(), self.key.clone(), self.place.clone());
        let upload = ObjectUpload::of_pieces(bucket, key, place, Box::new(pieces), piece_bytes);
        Box::new(RangeOfPieces { upload, sent })
    }

    /// Puts it together; no error if that was done before and it has that length.
    pub fn complete(&self, id: &str, pieces: Vec<String>, bytes: u64) -> Result<()> {
        let pieces = pieces.into_iter().map(|content_id| PartId { content_id }).collect();
        let id = id.to_owned();
        match runtime()?.block_on(self.s3.complete_multipart(&self.key, &id, pieces)) {
            Err(object_store::Error::NotFound { .. }) => {
                let head = runtime()?.block_on(self.bucket.store.head(&self.key));
                if head.is_ok_and(|there| there.size == bytes) {
                    return Ok(());
                }
                let what = format!("{}: its upload was aborted", self.place);
                Err(Error::new(ErrorKind::NotFound, what).hint("make a new plan"))
            }
            other => other.map(drop).map_err(|e| self.error(e)),
        }
    }

    /// Gives it up; no error if it is over.
    pub fn abort(&self, id: &str) -> Result<()> {
        match runtime()?.block_on(self.s3.abort_multipart(&self.key, &id.to_owned())) {
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            other => other.map_err(|e| failed("abort the upload of", &self.place, e)),
        }
    }
}

/// What a server calls the pieces that it has, by their number.
type Sent = Arc<Mutex<BTreeMap<usize, String>>>;

fn locked(sent: &Sent) -> MutexGuard<'_, BTreeMap<usize, String>> {
    sent.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As much of the upload as one host sends: neither completed nor given up by it.
#[derive(Debug)]
struct Pieces {
    s3: Arc<AmazonS3>,
    key: Path,
    id: String,
    next: usize,
    sent: Sent,
}

#[async_trait]
impl MultipartUpload for Pieces {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (s3, key, id) = (Arc::clone(&self.s3), self.key.clone(), self.id.clone());
        let (number, sent) = (self.next, Arc::clone(&self.sent));
        self.next += 1;
        Box::pin(async move {
            let part = s3.put_part(&key, &id, number, data).await?;
            locked(&sent).insert(number, part.content_id);
            Ok(())
        })
    }

    async fn complete(&mut self) -> object_store::Result<PutResult> {
        Ok(PutResult { e_tag: None, version: None, extensions: Default::default() })
    }

    async fn abort(&mut self) -> object_store::Result<()> {
        Ok(())
    }
}

struct RangeOfPieces {
    upload: ObjectUpload,
    sent: Sent,
}

impl RangeUpload for RangeOfPieces {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        crate::store::Upload::write(&mut self.upload, bytes)
    }

    fn finish(self: Box<Self>) -> Result<Vec<String>> {
        self.upload.finish_pieces()?;
        Ok(std::mem::take(&mut *locked(&self.sent)).into_values().collect())
    }
}
