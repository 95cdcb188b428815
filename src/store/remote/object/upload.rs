//! An object that is sent in parts, several at a time, while it is still being written.
//!
//! ```text
//! write -> [ part ] -> at most 4 on their way        whoever writes waits for one of them to arrive
//! ```
//!
//! An object of one part is put whole.

use super::super::runtime::runtime;
use super::bucket::{Bucket, mode_of};
use super::errors::failed;
use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::store::Upload;
use crate::store::remote::requests::{PutMode, is_unique};
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStoreExt, PutOptions};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Length of the first parts.
const PART_BYTES: usize = 8 << 20;
/// How many are on their way at most.
const AT_ONCE: usize = 4;
/// After so many parts they are twice as long: no server takes more than 10000.
const PARTS_OF_A_LENGTH: usize = 1000;
/// As often as that: an object of 4 TiB can be sent.
const MOST_DOUBLED: usize = 7;
/// How long an upload that was given up may take to be removed from the server.
const ABORT: Duration = Duration::from_secs(5);

pub(super) struct ObjectUpload {
    bucket: Bucket,
    key: Path,
    /// What to call it in a message.
    place: String,
    /// What is not on its way yet.
    buffer: Vec<u8>,
    /// From the second part on.
    multipart: Option<Box<dyn MultipartUpload>>,
    /// How long each piece is where others send some of them, too.
    piece_bytes: Option<usize>,
    on_their_way: JoinSet<object_store::Result<()>>,
    part_count: usize,
    sent_bytes: u64,
}

impl ObjectUpload {
    pub fn new(bucket: Bucket, key: Path, place: String) -> Self {
        Self {
            bucket,
            key,
            place,
            buffer: Vec::new(),
            multipart: None,
            piece_bytes: None,
            on_their_way: JoinSet::new(),
            part_count: 0,
            sent_bytes: 0,
        }
    }

    /// Pieces, all so long but the last one of the object, of an upload that others send pieces of, too.
    pub fn of_pieces(
        bucket: Bucket,
        key: Path,
        place: String,
        pieces: Box<dyn MultipartUpload>,
        piece_bytes: usize,
    ) -> Self {
        let mut upload = Self::new(bucket, key, place);
        upload.multipart = Some(pieces);
        upload.piece_bytes = Some(piece_bytes);
        upload
    }

    fn part_bytes(&self) -> usize {
        let doubled = (self.part_count / PARTS_OF_A_LENGTH).min(MOST_DOUBLED);
        self.piece_bytes.unwrap_or(PART_BYTES << doubled)
    }

    /// Waits until all that was written has arrived.
    pub fn finish_pieces(mut self) -> Result<()> {
        if !self.buffer.is_empty() {
            self.send_part()?;
        }
        self.wait_for(1)
    }

    fn error(&self, error: object_store::Error) -> Error {
        failed("write", &self.place, error)
    }

    /// Waits until fewer than so many parts are on their way.
    fn wait_for(&mut self, fewer_than: usize) -> Result<()> {
        while self.on_their_way.len() >= fewer_than.max(1) {
            let arrived = runtime()?.block_on(self.on_their_way.join_next());
            match arrived {
                Some(Ok(arrived)) => arrived.map_err(|e| self.error(e))?,
                Some(Err(e)) => {
                    let what = format!("{}: a part was not sent: {e}", self.place);
                    return Err(Error::new(ErrorKind::Internal, what));
                }
                None => break,
            }
        }
        Ok(())
    }

    fn send_part(&mut self) -> Result<()> {
        if self.multipart.is_none() {
            let begun = runtime()?.block_on(self.bucket.store.put_multipart(&self.key));
            self.multipart = Some(begun.map_err(|e| self.error(e))?);
        }
        // Fewer of long ones, for the sake of memory.
        self.wait_for((AT_ONCE * PART_BYTES / self.part_bytes()).max(1))?;
        let part = std::mem::take(&mut self.buffer);
        self.sent_bytes += part.len() as u64;
        if let Some(multipart) = &mut self.multipart {
            self.on_their_way.spawn_on(multipart.put_part(part.into()), runtime()?.handle());
            self.part_count += 1;
        }
        Ok(())
    }

    fn finish(mut self, mode: PutMode) -> Result<()> {
        if self.multipart.is_none() {
            let bytes = std::mem::take(&mut self.buffer);
            // What has a name that was never given before (C3) can be sent again whatever became of it.
            let mode = if is_unique(self.key.as_ref()) { PutMode::Over } else { mode };
            let options = PutOptions::from(mode_of(mode));
            let put = self.bucket.store.put_opts(&self.key, bytes.into(), options);
            return runtime()?.block_on(put).map(drop).map_err(|e| self.error(e));
        }
        if !self.buffer.is_empty() {
            self.send_part()?;
        }
        self.wait_for(1)?;
        // The name was never given before (C3): that there is nothing yet need not be asked.
        if let Some(multipart) = &mut self.multipart {
            match runtime()?.block_on(multipart.complete()) {
                // It may have been completed by a request to which there was no answer.
                Err(object_store::Error::NotFound { .. }) => {
                    let head = runtime()?.block_on(self.bucket.store.head(&self.key));
                    if !head.is_ok_and(|there| there.size == self.sent_bytes) {
                        let what =
                            format!("{}: its upload was aborted by another process", self.place);
                        return Err(Error::new(ErrorKind::Unavailable, what));
                    }
                }
                other => drop(other.map_err(|e| failed("write", &self.place, e))?),
            }
        }
        self.multipart = None;
        Ok(())
    }
}

impl Upload for ObjectUpload {
    fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let part_bytes = self.part_bytes();
            if self.buffer.capacity() == 0 && self.part_count > 0 {
                self.buffer.reserve_exact(part_bytes);
            }
            let left = part_bytes.saturating_sub(self.buffer.len());
            let (now, later) = bytes.split_at(bytes.len().min(left));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() >= part_bytes {
                self.send_part()?;
            }
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

impl Drop for ObjectUpload {
    fn drop(&mut self) {
        self.on_their_way.abort_all();
        if let (Some(multipart), Ok(runtime)) = (&mut self.multipart, runtime()) {
            // Otherwise whoever collects garbage finds it.
            best_effort(runtime.block_on(async { timeout(ABORT, multipart.abort()).await }));
        }
    }
}
