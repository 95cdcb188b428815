//! An export as a disk.

use super::connection::Connection;
use super::extents::{Extents, merged};
use super::handshake::Export;
use super::pieces::{Outcome, Piece, cut};
use super::pool::Pool;
use super::protocol::{STATE_DIRTY, STATE_ZERO, export};
use super::reading::Status;
use super::wire::{Fault, Peer};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::Context;
use crate::base::message::{Action, message};
use crate::base::units::{ByteRange, Extent, ExtentKind};
use crate::image::nbd::NbdUri;
use crate::image::{Source, Window};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The longest read that is asked for in one request, and in several at once: what comes stays in the
/// processor's cache until it is used.
const READ_BYTES: u64 = 256 << 10;
const READS_BYTES: u64 = 1 << 20;
/// The longest write.
const WRITE_BYTES: u64 = 1 << 20;
/// The longest range of zeros: a server that has to write them is not silent for long.
const ZERO_BYTES: u64 = 16 << 20;
/// Of so much block status is asked for at once.
const STATUS_BYTES: u64 = 1 << 30;
/// Near a bad place others are likely.
const NEAR_BYTES: u64 = 1 << 20;
/// A place on a medium is told as exactly as that.
const SECTOR_BYTES: u64 = 512;

/// How an export is opened.
#[derive(Debug, Clone)]
pub struct NbdOptions {
    /// To change it.
    pub writable: bool,
    /// A dirty bitmap of QEMU by which [`NbdDisk::bitmap_ranges`] goes.
    pub bitmap: Option<String>,
    /// How long the server may be silent while something is asked of it.
    pub stall: Duration,
    /// What to call it in messages; otherwise its URI.
    pub name: Option<String>,
    /// How long it is waited before a lost connection is made again; the next times four times as long.
    pub pause: Duration,
}

impl Default for NbdOptions {
    fn default() -> Self {
        let (stall, pause) = (Duration::from_secs(30), Duration::from_millis(200));
        Self { writable: false, bitmap: None, stall, name: None, pause }
    }
}

/// An export of an NBD server. It can be used from many threads.
pub struct NbdDisk {
    peer: Arc<Peer>,
    pool: Pool,
    extents: Mutex<Extents>,
    /// Where the last bad place is that was found.
    bad_at: AtomicU64,
}

impl NbdDisk {
    /// Connects to an export.
    ///
    /// # Errors
    /// `NotFound` if there is no such socket, export or bitmap; `Unavailable` if no server answers; `Auth`
    /// for one that is to be written to and is read-only, or that the server denies; `Unsupported` for a
    /// server that asks for TLS or is too old; `InvalidInput` for an export of 0 bytes.
    pub fn open(uri: &NbdUri, options: NbdOptions, context: &Context) -> Result<Self> {
        let NbdOptions { writable, bitmap, stall, name, pause } = options;
        let name = name.unwrap_or_else(|| uri.to_string());
        let (uri, context) = (uri.clone(), context.clone());
        let peer = Arc::new(Peer { uri, name, context, stall });
        let pool = Pool::open(peer.clone(), bitmap, writable, pause)?;
        if writable && pool.export.has(export::READ_ONLY) {
            let what = format!("{} is exported read-only", peer.name);
            return Err(Error::new(ErrorKind::Auth, what).hint("export it writable"));
        }
        let (extents, bad_at) = (Mutex::default(), AtomicU64::new(u64::MAX));
        Ok(Self { peer, pool, extents, bad_at })
    }

    /// True if what is written can be made durable. Of a server that cannot flush nothing more is known than
    /// that it has taken it.
    pub fn can_flush(&self) -> bool {
        self.export().has(export::CAN_FLUSH)
    }

    pub(crate) fn can_zero(&self) -> bool {
        self.export().has(export::CAN_ZERO)
    }

    /// What changed, as the dirty bitmap has it that the disk was opened with.
    ///
    /// # Errors
    /// `InvalidInput` if it was opened without; `Io` if the server cannot tell.
    pub fn bitmap_ranges(&self) -> Result<Vec<ByteRange>> {
        let image_bytes = self.image_bytes();
        let (mut ranges, mut gap, mut at) = (Vec::new(), 0, 0);
        while at < image_bytes {
            let bytes = STATUS_BYTES.min(image_bytes - at);
            let extents = match self.status(at, bytes, |export| export.bitmap)? {
                Status::Extents(extents) => extents,
                Status::Failed(error) => {
                    return Err(self.failed("read the dirty bitmap of", at, error));
                }
            };
            for (bytes, flags) in extents {
                let end = at.saturating_add(bytes).min(image_bytes);
                if flags & STATE_DIRTY != 0 && at < end {
                    ranges.push(ByteRange::between(at, end));
                }
                at = end;
            }
            merged(&mut ranges, &mut gap);
        }
        Ok(ranges)
    }

    pub(crate) fn export(&self) -> &Export {
        &self.pool.export
    }

    /// Requests begin and end at multiples of this, except at the end of the export.
    pub(crate) fn alignment(&self) -> u64 {
        u64::from(self.export().minimum)
    }

    /// The longest request of up to `bytes` bytes that the server takes.
    fn longest(&self, bytes: u64) -> u64 {
        let longest = bytes.min(u64::from(self.export().maximum));
        longest / self.alignment() * self.alignment()
    }

    fn failed(&self, what: &str, at: u64, error: i32) -> Error {
        Error::os_at(what, &self.peer.name, at, io::Error::from_raw_os_error(error))
    }

    /// Extents from `offset` on. They go on beyond the range, or end in it, as the server likes.
    fn status(
        &self,
        offset: u64,
        bytes: u64,
        context: fn(&Export) -> Option<u32>,
    ) -> Result<Status> {
        let none = || {
            let what = format!("{} was not opened with it", self.peer.name);
            Fault::from(Error::new(ErrorKind::InvalidInput, what))
        };
        self.pool.with(|connection| {
            let context = context(&connection.export).ok_or_else(none)?;
            connection.block_status(offset, bytes as u32, context)
        })
    }

    /// Asks from `offset` on, and keeps what the server says. If that is nothing, it is data.
    fn learn(&self, extents: &mut Extents, offset: u64) -> Result<()> {
        let start = offset / self.alignment() * self.alignment();
        let bytes = STATUS_BYTES.min(self.image_bytes() - start);
        extents.begin(start);
        match self.status(start, bytes, |export| export.allocation)? {
            Status::Extents(found) => {
                for (bytes, flags) in found {
                    extents.push(bytes, flags & STATE_ZERO != 0, self.image_bytes());
                }
            }
            Status::Failed(_) => extents.push(bytes, false, self.image_bytes()),
        }
        Ok(())
    }

    /// Reads some bytes; what the server says if it does not give them, by the number of an error.
    fn read_range(&self, offset: u64, out: &mut [u8]) -> Result<Option<i32>> {
        let (end, align) = (offset + out.len() as u64, self.alignment());
        let whole = offset / align * align..end.next_multiple_of(align).min(self.image_bytes());
        if whole != (offset..end) {
            let mut all = vec![0; (whole.end - whole.start) as usize];
            let failed = self.read_range(whole.start, &mut all)?;
            let mine = all.get((offset - whole.start) as usize..).unwrap_or_default();
            out.copy_from_slice(mine.get(..out.len()).unwrap_or_default());
            return Ok(failed);
        }
        let mut pieces = cut(whole, self.longest(READ_BYTES));
        self.pool.with(|connection| connection.read(offset, out, &mut pieces))?;
        Ok(pieces.iter().find_map(|piece: &Piece| match piece.outcome {
            Outcome::Failed(error) => Some(error),
            _ => None,
        }))
    }

    /// Begins to write bytes at multiples of the alignment; what fails is told by this or a later call.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let most = self.longest(WRITE_BYTES) as usize;
        self.change(|connection| {
            (0..)
                .step_by(most)
                .zip(bytes.chunks(most))
                .try_for_each(|(done, bytes)| connection.write(offset + done, bytes))
        })
    }

    /// The same with zeros, which may become a hole. Only of a server that can.
    pub(crate) fn zero(&self, offset: u64, bytes: u64) -> Result<()> {
        let most = self.longest(ZERO_BYTES);
        self.change(|connection| {
            (0..bytes)
                .step_by(most as usize)
                .try_for_each(|done| connection.zero(offset + done, most.min(bytes - done) as u32))
        })
    }

    /// Waits for all that is written, and makes it durable.
    pub(crate) fn flush(&self) -> Result<()> {
        let can_flush = self.can_flush();
        let error = self.change(|connection| match can_flush {
            true => connection.flush(),
            false => connection.finish_writes().map(|()| None),
        })?;
        if let Some(error) = error {
            let error = io::Error::from_raw_os_error(error);
            let hint = message!["check the disk of the server, and ", Action::Retry];
            return Err(Error::os("flush", &self.peer.name, error).or_hint(hint));
        }
        self.pool.is_unflushed.store(false, Ordering::Relaxed);
        Ok(())
    }

    fn change<T>(&self, mut work: impl FnMut(&mut Connection) -> Result<T, Fault>) -> Result<T> {
        self.known().clear();
        self.pool.with(|connection| {
            // From here on another connection will not do.
            self.pool.is_unflushed.store(true, Ordering::Relaxed);
            let done = work(connection)?;
            match connection.failed_write {
                Some((at, error)) => Err(self.failed("write", at, error).into()),
                None => Ok(done),
            }
        })
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Extents> {
        self.extents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source for NbdDisk {
    fn image_bytes(&self) -> u64 {
        self.export().bytes
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        if self.export().allocation.is_none() {
            let bytes = self.image_bytes() - offset;
            return Ok(Extent { offset, bytes, kind: ExtentKind::Data });
        }
        let mut known = self.known();
        if let Some(extent) = known.at(offset) {
            return Ok(extent);
        }
        self.learn(&mut known, offset)?;
        // What a server does not tell of is data.
        Ok(known.at(offset).unwrap_or_else(|| {
            let end = (offset / self.alignment() + 1) * self.alignment();
            let bytes = end.min(self.image_bytes()) - offset;
            Extent { offset, bytes, kind: ExtentKind::Data }
        }))
    }

    fn read<'a>(
        &'a self,
        offset: u64,
        bytes: usize,
        buffer: &'a mut Vec<u8>,
    ) -> Result<Window<'a>> {
        self.read_copied(offset, bytes, buffer)
    }

    /// Reads all at once. If the server reports an error of its medium, the place is found by reading less
    /// and less; and near such a place a read begins small.
    fn read_until_bad(
        &self,
        offset: u64,
        bytes: usize,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<Error>> {
        match buffer.capacity() < bytes {
            // Of memory that the system gives as zeros.
            true => *buffer = vec![0; bytes],
            false => buffer.resize(bytes, 0),
        }
        let unit = self.alignment().max(SECTOR_BYTES) as usize;
        let bad_at = self.bad_at.load(Ordering::Relaxed);
        let is_near = bad_at < offset && offset - bad_at <= NEAR_BYTES;
        let mut step = if is_near { unit } else { bytes };
        let mut have = 0;
        while let Some(rest) = buffer.get_mut(have..).filter(|rest| !rest.is_empty()) {
            let at = offset + have as u64;
            let now = step.min(rest.len());
            match self.read_range(at, rest.get_mut(..now).unwrap_or_default())? {
                None => {
                    have += now;
                    step = step.saturating_mul(2);
                }
                Some(error) => {
                    let error = self.failed("read", at, error);
                    if !error.is_bad_medium() {
                        return Err(error);
                    }
                    if now <= unit {
                        buffer.truncate(have);
                        self.bad_at.store(at, Ordering::Relaxed);
                        return Ok(Some(error));
                    }
                    step = (now / 2).next_multiple_of(unit);
                }
            }
        }
        Ok(None)
    }

    fn best_read_bytes(&self) -> u64 {
        READS_BYTES
    }

    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn name(&self) -> String {
        self.peer.name.clone()
    }
}
