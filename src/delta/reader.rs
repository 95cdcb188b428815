//! Opens a delta file and reads its records, each checked against its checksum and its place.

use crate::base::digest::{Digest, Hasher};
use crate::base::error::{Error, Result};
use crate::base::read_limit::ReadLimits;
use crate::base::units::Geometry;
use crate::codec::{self, Codec};
use crate::format::footer::FOOTER_BYTES;
use crate::format::header::HEADER_BYTES;
use crate::format::record::RECORD_HEAD_BYTES;
use crate::format::{
    ChildRef, Footer, FrameLayout, FrameRef, Header, IndexPage, RecordHead, RecordKind, RootRef,
    TablePage,
};
use crate::image::BaseImage;
use crate::store::{LockGuard, Store};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use uuid::Uuid;

/// Decoded frames and pages, each within a fixed budget, shared by all files that are open.
#[derive(Clone)]
pub struct Caches {
    pages: Arc<WeighedCache<Page>>,
    frames: Arc<WeighedCache<Arc<Vec<u8>>>>,
    traffic: Arc<Counters>,
    limits: ReadLimits,
}

/// What went through open files so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Bytes read from files.
    pub read_bytes: u64,
    /// Bytes that frames were decoded to.
    pub decoded_bytes: u64,
}

#[derive(Default)]
struct Counters {
    read_bytes: AtomicU64,
    decoded_bytes: AtomicU64,
}

impl Caches {
    /// The same for files that are read no faster than that.
    #[must_use]
    pub fn reading_within(mut self, limits: ReadLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Lets go of what is known of a file, which was damaged and is not any more.
    pub fn forget(&self, file_id: Uuid) {
        self.pages.retain(|(id, _), _| *id != file_id);
        self.frames.retain(|(id, _), _| *id != file_id);
    }

    /// What went through the files that share these caches.
    pub fn traffic(&self) -> Traffic {
        Traffic {
            read_bytes: self.traffic.read_bytes.load(Ordering::Relaxed),
            decoded_bytes: self.traffic.decoded_bytes.load(Ordering::Relaxed),
        }
    }
}

/// By file and offset.
type WeighedCache<T> = Cache<(Uuid, u64), T, Weigh>;

const PAGE_BUDGET_BYTES: u64 = 8 << 20;
const FRAME_BUDGET_BYTES: u64 = 16 << 20;

impl Default for Caches {
    fn default() -> Self {
        Self {
            pages: Arc::new(Cache::with_weighter(500, PAGE_BUDGET_BYTES, Weigh)),
            frames: Arc::new(Cache::with_weighter(200, FRAME_BUDGET_BYTES, Weigh)),
            traffic: Arc::default(),
            limits: ReadLimits::default(),
        }
    }
}

/// A page of the tree.
#[derive(Clone)]
pub(super) enum Page {
    Table(Arc<TablePage>),
    Index(Arc<IndexPage>, u32),
}

#[derive(Clone)]
struct Weigh;

impl Weighter<(Uuid, u64), Page> for Weigh {
    fn weight(&self, _: &(Uuid, u64), page: &Page) -> u64 {
        match page {
            Page::Table(page) => page.memory_bytes(),
            Page::Index(page, _) => (page.children.len() * size_of::<ChildRef>()) as u64,
        }
    }
}

impl Weighter<(Uuid, u64), Arc<Vec<u8>>> for Weigh {
    fn weight(&self, _: &(Uuid, u64), frame: &Arc<Vec<u8>>) -> u64 {
        frame.len() as u64
    }
}

/// Keeps files from being removed for as long as it lives.
pub struct ReadGuard {
    /// The image.
    pub image: String,
    /// The manifest that named the files.
    pub sequence: u64,
    /// Their names.
    pub files: Vec<String>,
    _lock: LockGuard,
}

impl ReadGuard {
    /// Of files of an image that a manifest names, and what locks them.
    pub fn new(image: &str, sequence: u64, files: Vec<String>, lock: LockGuard) -> Self {
        Self { image: image.into(), sequence, files, _lock: lock }
    }
}

impl fmt::Debug for ReadGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { image, sequence, files, .. } = self;
        let mut fields = f.debug_struct("ReadGuard");
        fields.field("image", image).field("sequence", sequence).field("files", files);
        fields.finish_non_exhaustive()
    }
}

/// An open delta file. Its header and footer are valid; each record is checked when it is read.
pub struct Delta {
    store: Arc<dyn Store>,
    name: String,
    header: Header,
    footer: Footer,
    footer_digest: Digest,
    hasher: Hasher,
    caches: Caches,
    base_image: Option<BaseImage>,
    /// Keeps this file from being removed, and all others of its chain.
    guard: Option<Arc<ReadGuard>>,
}

impl Delta {
    /// Opens the file `name`.
    ///
    /// # Errors
    /// `Corrupt` if it is not a whole delta file, `Unsupported` if it is one of a later version.
    pub fn open(store: Arc<dyn Store>, name: &str, caches: &Caches) -> Result<Self> {
        let place = store.location(name);
        let size = store.size(name)?;
        if size < (HEADER_BYTES + FOOTER_BYTES) as u64 {
            let what = format!("{place}: only {size} bytes: truncated, or not a delta file");
            return Err(Error::corrupt(what));
        }
        let mut head = [0; HEADER_BYTES];
        caches.limits.wait((HEADER_BYTES + FOOTER_BYTES) as u64)?;
        store.read_at(name, 0, &mut head)?;
        let header = Header::decode(&head).map_err(|e| e.at(&place))?;
        let mut foot = [0; FOOTER_BYTES];
        store.read_at(name, size - FOOTER_BYTES as u64, &mut foot)?;
        let footer = Footer::decode(&foot, size).map_err(|e| e.at(&place))?;
        if header.layout() == FrameLayout::Absent && footer.parent.is_some() {
            let what = "a snapshot in a base image that is no base";
            return Err(Error::corrupt(what).at(&place));
        }
        let hasher = Hasher::new(header.algorithm, header.key);
        Ok(Self {
            store,
            name: name.into(),
            footer_digest: hasher.digest(&foot),
            base_image: (header.layout() == FrameLayout::Absent)
                .then(|| BaseImage::new(&place, footer.counts.data_blocks, None)),
            header,
            footer,
            hasher,
            caches: caches.clone(),
            guard: None,
        })
    }

    /// Says where the blocks of the snapshot `NAME@N` are, if they are not in this file.
    pub fn set_base_image(&mut self, snapshot: &str, path: Option<PathBuf>) {
        if self.base_image.is_some() {
            let block_count = self.footer.counts.data_blocks;
            let base_image = BaseImage::new(snapshot, block_count, path);
            self.base_image = Some(base_image.reading_within(self.caches.limits.clone()));
        }
    }

    /// Keeps what holds files back for as long as this one is open.
    pub fn set_guard(&mut self, guard: Arc<ReadGuard>) {
        self.guard = Some(guard);
    }

    /// What holds this file back, if anything does.
    pub fn guard(&self) -> Option<&Arc<ReadGuard>> {
        self.guard.as_ref()
    }

    /// Where the blocks are, if not in this file.
    pub fn base_image(&self) -> Option<&BaseImage> {
        self.base_image.as_ref()
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The footer.
    pub fn footer(&self) -> &Footer {
        &self.footer
    }

    /// Block size of its chain, and length of the image.
    ///
    /// # Errors
    /// If they are beyond the limits of the format.
    pub fn geometry(&self) -> Result<Geometry> {
        Geometry::new(self.header.block_size, self.footer.image_bytes)
    }

    /// The digest of the footer, by which the manifest knows the file.
    pub fn footer_digest(&self) -> Digest {
        self.footer_digest
    }

    /// The keyed function of its chain.
    pub fn hasher(&self) -> &Hasher {
        &self.hasher
    }

    /// What it is called in its store.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What to call it in a message.
    pub fn location(&self) -> String {
        self.store.location(&self.name)
    }

    /// Fills `buffer` from a place of the file.
    pub(super) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let read_bytes = buffer.len() as u64;
        self.caches.traffic.read_bytes.fetch_add(read_bytes, Ordering::Relaxed);
        let (mut rest, mut offset) = (buffer, offset);
        loop {
            let count = self.caches.limits.piece(rest.len())?;
            let (now, later) = rest.split_at_mut(count);
            self.store.read_at(&self.name, offset, now)?;
            if later.is_empty() {
                return Ok(());
            }
            (rest, offset) = (later, offset + count as u64);
        }
    }

    /// The decoded blocks of a frame that holds `blocks` of them, one after the other; from the
    /// cache if they are there.
    pub fn frame(&self, place: FrameRef, blocks: u32) -> Result<Arc<Vec<u8>>> {
        self.caches
            .frames
            .get_or_insert_with(&(self.header.file_id, place.offset), || {
                let mut raw = vec![0; blocks as usize * self.header.block_size.in_memory()];
                self.read_frame(place, &mut raw, &mut Vec::new())?;
                Ok(Arc::new(raw))
            })
            .map_err(|e: Error| {
                e.at(self.record_place("frame", place.offset)).at_offset(place.offset)
            })
    }

    /// The same, for whoever needs it only once: into `raw`, which is as long as the blocks, by way of
    /// `record`, whose memory is used again. It is not put into the cache.
    pub fn frame_into(&self, place: FrameRef, raw: &mut [u8], record: &mut Vec<u8>) -> Result<()> {
        self.read_frame(place, raw, record)
            .map_err(|e| e.at(self.record_place("frame", place.offset)).at_offset(place.offset))
    }

    /// Reads bytes of a frame whose `frame_bytes` decoded bytes are stored as they are, from `skipped` on,
    /// and nothing else of it. Its checksum is not checked: the digests of its blocks have to prove them.
    /// False, and nothing is read, if its record is shorter, so that it must be decoded, or if the file is
    /// not on this host, so that it is better read as a whole and kept.
    pub fn stored_into(
        &self,
        place: FrameRef,
        frame_bytes: usize,
        skipped: usize,
        into: &mut [u8],
    ) -> Result<bool> {
        let is_stored = place.record_bytes as usize == RECORD_HEAD_BYTES + frame_bytes
            && self.base_image.is_none()
            && self.store.local_path().is_some();
        if is_stored {
            let skipped = (RECORD_HEAD_BYTES + skipped) as u64;
            self.read_at(place.offset.saturating_add(skipped), into)?;
        }
        Ok(is_stored)
    }

    fn read_frame(&self, place: FrameRef, raw: &mut [u8], record: &mut Vec<u8>) -> Result<()> {
        let head = self.read_record(place, record)?;
        let RecordKind::Frame { codec, block_count } = head.kind else {
            return Err(Error::corrupt("no frame where one should be"));
        };
        let blocks = raw.len() / self.header.block_size.in_memory();
        if usize::from(block_count) != blocks {
            let what = format!("a frame of {block_count} blocks, its page says {blocks}");
            return Err(Error::corrupt(what));
        }
        self.count_decoded(raw.len());
        codec::decode(codec, payload_of(record), raw)
    }

    /// Reads the records of frames that lie side by side into `records`, which has their length, and
    /// checks them. Returns how each is encoded, how many blocks it has, and the length of its payload.
    ///
    /// # Errors
    /// `Corrupt` if one is not the frame that its page names.
    pub(super) fn copy_frames(
        &self,
        row: &[(FrameRef, u16)],
        records: &mut [u8],
    ) -> Result<Vec<(Codec, u16, usize)>> {
        let Some((first, _)) = row.first() else { return Ok(Vec::new()) };
        let records_end = self.footer.file_bytes - FOOTER_BYTES as u64;
        if first.offset.saturating_add(records.len() as u64) > records_end {
            return Err(Error::corrupt("a record beyond the end of the file").at(self.location()));
        }
        self.read_at(first.offset, records)?;
        let mut rest: &[u8] = records;
        let mut found = Vec::with_capacity(row.len());
        for &(place, block_count) in row {
            let at =
                |e: Error| e.at(self.record_place("frame", place.offset)).at_offset(place.offset);
            let short = || at(Error::corrupt("a short record"));
            let (record, after) =
                rest.split_at_checked(place.record_bytes as usize).ok_or_else(short)?;
            rest = after;
            let head = RecordHead::decode(record.first_chunk().ok_or_else(short)?).map_err(at)?;
            head.verify(self.header.file_id, place.offset, payload_of(record)).map_err(at)?;
            match head.kind {
                RecordKind::Frame { codec, block_count: have }
                    if have == block_count
                        && head.checksum == place.checksum
                        && head.record_bytes() == place.record_bytes =>
                {
                    found.push((codec, block_count, head.payload_bytes as usize));
                }
                _ => return Err(at(Error::corrupt("not the frame that its page names"))),
            }
        }
        Ok(found)
    }

    pub(super) fn count_decoded(&self, bytes: usize) {
        self.caches.traffic.decoded_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// The root page; none if the file has no entries.
    pub(super) fn root(&self) -> Result<Option<Page>> {
        let Some(RootRef { offset, record_bytes, checksum }) = self.footer.root else {
            return Ok(None);
        };
        self.page(FrameRef { offset, record_bytes, checksum }).map(Some)
    }

    /// A child of an index page of level `parent_level`.
    pub(super) fn child(&self, child: &ChildRef, parent_level: u32) -> Result<Page> {
        let ChildRef { blocks, offset, record_bytes, checksum } = *child;
        let page = self.page(FrameRef { offset, record_bytes, checksum })?;
        let (bounds, level) = match &page {
            Page::Table(page) => (page.bounds(), 0),
            Page::Index(page, level) => (page.bounds(), *level),
        };
        if bounds != blocks || level + 1 != parent_level {
            let what = "the page is not the one that its index page names";
            return Err(Error::corrupt(what).at(self.record_place("page", offset)));
        }
        Ok(page)
    }

    /// Says that a child will be read soon.
    pub(super) fn prefetch(&self, child: &ChildRef) {
        // What is asked for is read at once.
        let is_limited = !self.caches.limits.is_empty();
        if !is_limited && self.caches.pages.peek(&(self.header.file_id, child.offset)).is_none() {
            self.store.prefetch(&self.name, child.offset, child.record_bytes.into());
        }
    }

    fn page(&self, place: FrameRef) -> Result<Page> {
        let read = || {
            let mut record = Vec::new();
            let head = self.read_record(place, &mut record)?;
            self.decode_page(head.kind, payload_of(&record), place.offset)
        };
        self.caches.pages.get_or_insert_with(&(self.header.file_id, place.offset), read).map_err(
            |e: Error| e.at(self.record_place("page", place.offset)).at_offset(place.offset),
        )
    }

    pub(super) fn decode_page(&self, kind: RecordKind, payload: &[u8], at: u64) -> Result<Page> {
        match kind {
            RecordKind::Table => {
                let page = TablePage::decode(payload, at, self.header.layout())?;
                Ok(Page::Table(Arc::new(page)))
            }
            RecordKind::Index { level } => {
                Ok(Page::Index(Arc::new(IndexPage::decode(payload, at)?), level))
            }
            RecordKind::Frame { .. } => Err(Error::corrupt("a frame where a page should be")),
        }
    }

    /// Reads a record, header and payload, into `record` and checks it.
    fn read_record(&self, place: FrameRef, record: &mut Vec<u8>) -> Result<RecordHead> {
        let head = self.load_record(place, record)?;
        head.verify(self.header.file_id, place.offset, payload_of(record))?;
        if head.checksum != place.checksum {
            return Err(Error::corrupt("not the record that its page names"));
        }
        Ok(head)
    }

    /// Reads a record, header and payload, without verifying its checksum; for benchmarks that measure
    /// reading alone.
    ///
    /// # Errors
    /// `Corrupt` if there is no record of that length at that place.
    pub fn load_record(&self, place: FrameRef, record: &mut Vec<u8>) -> Result<RecordHead> {
        let end = place.offset.checked_add(place.record_bytes.into());
        let records_end = self.footer.file_bytes - FOOTER_BYTES as u64;
        let length = (place.record_bytes as usize).checked_sub(RECORD_HEAD_BYTES);
        let (Some(length), true) = (length, end.is_some_and(|e| e <= records_end)) else {
            return Err(Error::corrupt("a record beyond the end of the file"));
        };
        if length > crate::format::record::MAX_PAYLOAD_BYTES as usize {
            return Err(Error::corrupt(format!("a record of {length} bytes")));
        }
        record.resize(RECORD_HEAD_BYTES + length, 0);
        self.read_at(place.offset, record)?;
        let head = record.first_chunk().ok_or_else(|| Error::corrupt("a short record"))?;
        RecordHead::decode(head)
    }

    fn record_place(&self, what: &str, offset: u64) -> String {
        format!("{}: {what} at byte {offset}", self.location())
    }
}

/// What stands behind the header of a record.
fn payload_of(record: &[u8]) -> &[u8] {
    record.get(RECORD_HEAD_BYTES..).unwrap_or_default()
}
