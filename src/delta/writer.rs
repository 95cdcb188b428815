//! Writes a delta file front to back: bytes go out as they come, memory is the depth of the index.

use super::reader::Delta;
use crate::base::digest::{Digest, Hasher, ImageDigest, StreamHasher};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::units::BlockRange;
use crate::codec::Codec;
use crate::format::footer::FOOTER_BYTES;
use crate::format::record::{MAX_LEVEL, RECORD_HEAD_BYTES};
use crate::format::{
    ChildRef, Counts, Footer, FrameLayout, FrameRef, Header, IndexPage, Lineage, RecordHead,
    RecordKind, RootRef, TablePage,
};
use uuid::Uuid;

/// Entries of a level before it is written as an index page.
const INDEX_FANOUT: usize = 256;

/// Frames of one segment, ready to be written: one behind the other, with room for their headers,
/// so that they are handed on in one piece.
#[derive(Default)]
pub struct EncodedFrames {
    bytes: Vec<u8>,
    /// How each is encoded, how many blocks it holds, and the length of its payload.
    frames: Vec<(Codec, u16, usize)>,
}

impl EncodedFrames {
    /// Adds a frame of `block_count` blocks.
    pub fn push(&mut self, codec: Codec, payload: &[u8], block_count: u16) {
        self.bytes.extend_from_slice(&[0; RECORD_HEAD_BYTES]);
        self.bytes.extend_from_slice(payload);
        self.frames.push((codec, block_count, payload.len()));
    }

    /// Adds frames of another file as they are, which lie side by side there: where each is, and how
    /// many blocks it has.
    ///
    /// # Errors
    /// `Corrupt` if a checksum differs: nothing damaged gets a new one.
    pub fn push_copies(&mut self, delta: &Delta, row: &[(FrameRef, u16)]) -> Result<()> {
        let start = self.bytes.len();
        let length: usize = row.iter().map(|(place, _)| place.record_bytes as usize).sum();
        self.bytes.resize(start + length, 0);
        let records = self.bytes.get_mut(start..).unwrap_or_default();
        for (codec, block_count, payload_bytes) in delta.copy_frames(row, records)? {
            self.frames.push((codec, block_count, payload_bytes));
        }
        Ok(())
    }
}

/// What a snapshot is called: everything in its footer that does not come from the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its id.
    pub snapshot_id: Uuid,
    /// Its number.
    pub number: u64,
    /// Its label.
    pub label: Option<String>,
    /// When it was taken: seconds since 1970 UTC.
    pub time_seconds: i64,
    /// And nanoseconds.
    pub time_nanoseconds: u32,
}

impl Identity {
    /// That of a snapshot whose file is written anew.
    pub fn of(footer: &Footer) -> Self {
        Self {
            snapshot_id: footer.snapshot_id,
            number: footer.number,
            label: footer.label.clone(),
            time_seconds: footer.time_seconds,
            time_nanoseconds: footer.time_nanoseconds,
        }
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The footer.
    pub footer: Footer,
    /// Its digest.
    pub footer_digest: Digest,
}

/// Writes one delta file to `out`.
pub struct DeltaWriter<'a> {
    out: &'a mut dyn FnMut(&[u8]) -> Result<()>,
    hasher: Hasher,
    content: StreamHasher,
    file_id: Uuid,
    offset: u64,
    layout: FrameLayout,
    /// The frames of the current segment, and one past the ordinal of the last block of each.
    pending: Vec<FrameRef>,
    pending_ends: Vec<u32>,
    levels: Vec<Vec<ChildRef>>,
    counts: Counts,
}

impl<'a> DeltaWriter<'a> {
    /// Begins a file.
    pub fn new(header: &Header, out: &'a mut dyn FnMut(&[u8]) -> Result<()>) -> Result<Self> {
        let hasher = Hasher::new(header.algorithm, header.key);
        let mut writer = Self {
            content: hasher.stream(),
            hasher,
            out,
            file_id: header.file_id,
            offset: 0,
            layout: header.layout(),
            pending: Vec::new(),
            pending_ends: Vec::new(),
            levels: Vec::new(),
            counts: Counts::default(),
        };
        writer.emit(&header.encode())?;
        Ok(writer)
    }

    /// Adds frames of the current segment.
    pub fn frames(&mut self, frames: EncodedFrames) -> Result<()> {
        let EncodedFrames { mut bytes, frames } = frames;
        let (mut rest, mut offset) = (bytes.as_mut_slice(), self.offset);
        for (codec, block_count, payload_bytes) in frames {
            let (head, after) = rest.split_at_mut(RECORD_HEAD_BYTES);
            let (payload, after) = after.split_at_mut(payload_bytes);
            let kind = RecordKind::Frame { codec, block_count };
            let sealed = RecordHead::seal(kind, self.file_id, offset, payload);
            head.copy_from_slice(&sealed.encode());
            let record_bytes = sealed.record_bytes();
            self.pending.push(FrameRef { offset, record_bytes, checksum: sealed.checksum });
            let before = self.pending_ends.last().copied().unwrap_or(0);
            self.pending_ends.push(before + u32::from(block_count));
            self.counts.frames += 1;
            self.counts.frame_bytes += u64::from(record_bytes);
            offset += u64::from(record_bytes);
            rest = after;
        }
        self.emit(&bytes)
    }

    /// Ends the current segment with its page.
    pub fn table(&mut self, mut page: TablePage) -> Result<()> {
        page.frames = std::mem::take(&mut self.pending);
        page.ends = std::mem::take(&mut self.pending_ends);
        page.runs.iter().for_each(|run| self.counts.add_run(run));
        let place = self.record(RecordKind::Table, &page.encode(self.layout))?;
        self.counts.tables += 1;
        self.child(0, page.bounds(), place)
    }

    /// Ends the file.
    pub fn finish(
        mut self,
        identity: &Identity,
        parent: Option<Lineage>,
        image_bytes: u64,
        image_digest: ImageDigest,
    ) -> Result<Written> {
        let root = self.close_levels()?;
        let footer = Footer {
            file_bytes: self.offset + FOOTER_BYTES as u64,
            snapshot_id: identity.snapshot_id,
            parent,
            number: identity.number,
            image_bytes,
            image_digest,
            content_digest: self.content.digest(),
            counts: self.counts,
            root,
            time_seconds: identity.time_seconds,
            time_nanoseconds: identity.time_nanoseconds,
            label: identity.label.clone(),
        };
        let bytes = footer.encode();
        let footer_digest = self.hasher.digest(&bytes);
        (self.out)(&bytes)?;
        Ok(Written { footer, footer_digest })
    }

    fn emit(&mut self, bytes: &[u8]) -> Result<()> {
        self.content.update(bytes);
        self.offset += bytes.len() as u64;
        (self.out)(bytes)
    }

    fn record(&mut self, kind: RecordKind, payload: &[u8]) -> Result<FrameRef> {
        let offset = self.offset;
        let head = RecordHead::seal(kind, self.file_id, offset, payload);
        self.emit(&head.encode())?;
        self.emit(payload)?;
        Ok(FrameRef { offset, record_bytes: head.record_bytes(), checksum: head.checksum })
    }

    fn child(&mut self, level: usize, blocks: BlockRange, place: FrameRef) -> Result<()> {
        if self.levels.len() <= level {
            self.levels.resize_with(level + 1, Vec::new);
        }
        let FrameRef { offset, record_bytes, checksum } = place;
        let Some(entries) = self.levels.get_mut(level) else { return Ok(()) };
        entries.push(ChildRef { blocks, offset, record_bytes, checksum });
        if entries.len() == INDEX_FANOUT { self.close_level(level) } else { Ok(()) }
    }

    /// Writes the entries of a level as a page, which becomes an entry of the level above.
    fn close_level(&mut self, level: usize) -> Result<()> {
        if level as u32 + 1 > MAX_LEVEL {
            return Err(Error::new(ErrorKind::LimitExceeded, "the index of the delta is too deep"));
        }
        let children = self.levels.get_mut(level).map(std::mem::take).unwrap_or_default();
        let page = IndexPage { children };
        let place = self.record(RecordKind::Index { level: level as u32 + 1 }, &page.encode())?;
        self.counts.indexes += 1;
        self.child(level + 1, page.bounds(), place)
    }

    fn close_levels(&mut self) -> Result<Option<RootRef>> {
        let mut level = 0;
        while let Some(entries) = self.levels.get(level) {
            let is_top = level + 1 == self.levels.len();
            match entries.as_slice() {
                [] => {}
                [root] if is_top => {
                    let ChildRef { offset, record_bytes, checksum, .. } = *root;
                    return Ok(Some(RootRef { offset, record_bytes, checksum }));
                }
                _ => self.close_level(level)?,
            }
            level += 1;
        }
        Ok(None)
    }
}
