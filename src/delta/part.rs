//! An open file with frames and tables: all of a layer, or its part over a range of blocks. Each record is
//! checked against its checksum and its place.

use super::caches::{Caches, Page};
use crate::base::digest::{Digest, Hasher};
use crate::base::error::{Error, Result};
use crate::base::units::BlockRange;
use crate::codec::{self, Codec};
use crate::format::footer::FOOTER_BYTES;
use crate::format::header::HEADER_BYTES;
use crate::format::record::RECORD_HEAD_BYTES;
use crate::format::{
    ChildRef, Content, Counts, FrameLayout, FrameRef, Header, IndexPage, MAX_BLOCKS, PartFooter,
    RecordHead, RecordKind, RootRef, TablePage,
};
use crate::store::Store;
use std::sync::Arc;

/// What is in a file, by its footer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartContent {
    /// Which blocks: no run goes beyond.
    pub blocks: BlockRange,
    /// Length of the file.
    pub file_bytes: u64,
    /// Digest of the file before the footer.
    pub content_digest: Digest,
    /// How many of what.
    pub counts: Counts,
    /// The root page; none if it has no entries.
    pub root: Option<RootRef>,
}

impl PartContent {
    /// Of a part file.
    pub fn of(footer: &PartFooter) -> Self {
        Self {
            blocks: footer.blocks,
            file_bytes: footer.file_bytes,
            content_digest: footer.content_digest,
            counts: footer.counts,
            root: footer.root,
        }
    }
}

/// An open file with records.
pub struct Part {
    store: Arc<dyn Store>,
    name: String,
    header: Header,
    content: PartContent,
    hasher: Hasher,
    caches: Caches,
}

/// A header and the bytes of a footer, whatever it is of.
pub(super) struct Ends {
    pub(super) header: Header,
    pub(super) foot: [u8; FOOTER_BYTES],
    pub(super) file_bytes: u64,
}

/// Reads both ends of a file.
pub(super) fn read_ends(store: &dyn Store, name: &str, caches: &Caches) -> Result<Ends> {
    let place = store.location(name);
    let size = store.size(name)?;
    if size < (HEADER_BYTES + FOOTER_BYTES) as u64 {
        let what = format!("{place}: only {size} bytes: truncated, or not a delta file");
        return Err(Error::corrupt(what));
    }
    let mut head = [0; HEADER_BYTES];
    caches.limits.wait((HEADER_BYTES + FOOTER_BYTES) as u64)?;
    store.read_index(name, 0, &mut head)?;
    let header = Header::decode(&head).map_err(|e| e.at(&place))?;
    store.keep_index(name, 0, &head);
    let mut foot = [0; FOOTER_BYTES];
    store.read_index(name, size - FOOTER_BYTES as u64, &mut foot)?;
    Ok(Ends { header, foot, file_bytes: size })
}

impl Part {
    /// Of a file whose ends were read and checked.
    pub(super) fn new(
        store: Arc<dyn Store>,
        name: String,
        header: Header,
        content: PartContent,
        caches: Caches,
    ) -> Self {
        let hasher = Hasher::new(header.algorithm, header.key);
        Self { store, name, header, content, hasher, caches }
    }

    /// Opens the part file `name`, whatever layer it is of. Returns its footer, and the digest of that, too.
    ///
    /// # Errors
    /// `Corrupt` if it is not a whole part file, `Unsupported` if it is one of a later version.
    pub fn open(
        store: Arc<dyn Store>,
        name: &str,
        caches: &Caches,
    ) -> Result<(Self, PartFooter, Digest)> {
        let Ends { header, foot, file_bytes } = read_ends(store.as_ref(), name, caches)?;
        let place = store.location(name);
        let footer = PartFooter::decode(&foot, file_bytes).map_err(|e| e.at(&place))?;
        store.keep_index(name, file_bytes - FOOTER_BYTES as u64, &foot);
        if header.content() == Content::Parts || header.layout() == FrameLayout::Absent {
            return Err(Error::corrupt("the part has no frames of its own").at(&place));
        }
        let content = PartContent::of(&footer);
        let part = Self::new(store, name.into(), header, content, caches.clone());
        let footer_digest = part.hasher.digest(&foot);
        Ok((part, footer, footer_digest))
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// What is in it.
    pub fn content(&self) -> &PartContent {
        &self.content
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

    pub(super) fn count_decoded(&self, bytes: usize) {
        self.caches.count_decoded(bytes);
    }

    /// Fails if a page has blocks that the part has not.
    pub(super) fn check_within(&self, page: &TablePage) -> Result<()> {
        let (bounds, blocks) = (page.bounds(), self.content.blocks);
        let is_within = bounds.first >= blocks.first && bounds.end() <= blocks.end();
        match is_within || blocks == ALL_BLOCKS {
            true => Ok(()),
            false => Err(Error::corrupt("a table extends beyond its part").at(self.location())),
        }
    }

    /// Fills `buffer` from a place of the file.
    pub(super) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.caches.count_read(buffer.len());
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
            return Err(Error::corrupt("expected a frame"));
        };
        let blocks = raw.len() / self.header.block_size.in_memory();
        if usize::from(block_count) != blocks {
            let what = format!("the frame has {block_count} blocks, but its page says {blocks}");
            return Err(Error::corrupt(what));
        }
        self.caches.count_decoded(raw.len());
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
        let records_end = self.content.file_bytes - FOOTER_BYTES as u64;
        if first.offset.saturating_add(records.len() as u64) > records_end {
            return Err(
                Error::corrupt("a record extends beyond the end of the file").at(self.location())
            );
        }
        self.read_at(first.offset, records)?;
        let mut rest: &[u8] = records;
        let mut found = Vec::with_capacity(row.len());
        for &(place, block_count) in row {
            let at =
                |e: Error| e.at(self.record_place("frame", place.offset)).at_offset(place.offset);
            let short = || at(Error::corrupt("the record is too short"));
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
                _ => return Err(at(Error::corrupt("the frame does not match its page"))),
            }
        }
        Ok(found)
    }

    /// The root page; none if the file has no entries.
    pub(super) fn root(&self) -> Result<Option<Page>> {
        let Some(RootRef { offset, record_bytes, checksum }) = self.content.root else {
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
            let what = "the page does not match its index page";
            return Err(Error::corrupt(what).at(self.record_place("page", offset)));
        }
        Ok(page)
    }

    /// Says that a child will be read soon.
    pub(super) fn prefetch(&self, child: &ChildRef) {
        // What is asked for is read at once.
        let is_limited = !self.caches.limits.is_empty();
        let most_bytes = RECORD_HEAD_BYTES as u32 + crate::format::record::MAX_PAYLOAD_BYTES;
        let is_limited = is_limited || child.record_bytes > most_bytes;
        if !is_limited && self.caches.pages.peek(&(self.header.file_id, child.offset)).is_none() {
            self.store.prefetch(&self.name, child.offset, child.record_bytes.into());
        }
    }

    fn page(&self, place: FrameRef) -> Result<Page> {
        let read = || {
            let mut record = Vec::new();
            let head = self.read_page(place, &mut record)?;
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
            RecordKind::Frame { .. } | RecordKind::Parts => Err(Error::corrupt("expected a page")),
        }
    }

    /// Reads the record of a page, header and payload, into `record` and checks it.
    fn read_page(&self, place: FrameRef, record: &mut Vec<u8>) -> Result<RecordHead> {
        self.make_room(place, record)?;
        self.caches.count_read(record.len());
        self.caches.limits.wait(record.len() as u64)?;
        self.store.read_index(&self.name, place.offset, record)?;
        let head = self.checked(place, record)?;
        self.store.keep_index(&self.name, place.offset, record);
        Ok(head)
    }

    /// Reads a record, header and payload, into `record` and checks it.
    fn read_record(&self, place: FrameRef, record: &mut Vec<u8>) -> Result<RecordHead> {
        self.load_record(place, record)?;
        self.checked(place, record)
    }

    fn checked(&self, place: FrameRef, record: &[u8]) -> Result<RecordHead> {
        let head = record.first_chunk().ok_or_else(|| Error::corrupt("the record is too short"))?;
        let head = RecordHead::decode(head)?;
        head.verify(self.header.file_id, place.offset, payload_of(record))?;
        if head.checksum != place.checksum {
            return Err(Error::corrupt("the record does not match its page"));
        }
        Ok(head)
    }

    /// Reads a record, header and payload, without verifying its checksum; for benchmarks that measure
    /// reading alone.
    ///
    /// # Errors
    /// `Corrupt` if there is no record of that length at that place.
    pub fn load_record(&self, place: FrameRef, record: &mut Vec<u8>) -> Result<RecordHead> {
        self.make_room(place, record)?;
        self.read_at(place.offset, record)?;
        let head = record.first_chunk().ok_or_else(|| Error::corrupt("the record is too short"))?;
        RecordHead::decode(head)
    }

    /// Gives `record` the length of a record, which lies within the file.
    fn make_room(&self, place: FrameRef, record: &mut Vec<u8>) -> Result<()> {
        let end = place.offset.checked_add(place.record_bytes.into());
        let records_end = self.content.file_bytes - FOOTER_BYTES as u64;
        let length = (place.record_bytes as usize).checked_sub(RECORD_HEAD_BYTES);
        let (Some(length), true) = (length, end.is_some_and(|e| e <= records_end)) else {
            return Err(Error::corrupt("a record extends beyond the end of the file"));
        };
        if length > crate::format::record::MAX_PAYLOAD_BYTES as usize {
            return Err(Error::corrupt(format!("invalid record length {length}")));
        }
        record.resize(RECORD_HEAD_BYTES + length, 0);
        Ok(())
    }

    fn record_place(&self, what: &str, offset: u64) -> String {
        format!("{}: {what} at byte {offset}", self.location())
    }
}

/// What stands behind the header of a record.
fn payload_of(record: &[u8]) -> &[u8] {
    record.get(RECORD_HEAD_BYTES..).unwrap_or_default()
}

/// The range of a file that is all of its layer.
pub(super) const ALL_BLOCKS: BlockRange = BlockRange { first: 0, count: MAX_BLOCKS };
