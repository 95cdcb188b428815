//! Writes the files of a layer front to back, one after the other: bytes go out as they come, memory is the
//! depth of the index.
//!
//! ```text
//! segments ..                     one delta file
//! segments .. cut segments .. end     part file, part file, layer file
//! ```

use super::part::Part;
use crate::base::digest::{Digest, Hasher, ImageDigest, StreamHasher};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::units::BlockRange;
use crate::codec::Codec;
use crate::format::footer::FOOTER_BYTES;
use crate::format::header::{HEADER_BYTES, PARTS};
use crate::format::part::MAX_PARTS;
use crate::format::record::{MAX_LEVEL, RECORD_HEAD_BYTES};
use crate::format::{
    ChildRef, Counts, Features, Footer, FrameRef, Header, IndexPage, Lineage, PartEntry,
    PartFooter, PartTable, PartTerms, RecordHead, RecordKind, RootRef, TablePage,
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
    pub fn push_copies(&mut self, part: &Part, row: &[(FrameRef, u16)]) -> Result<()> {
        let start = self.bytes.len();
        let length: usize = row.iter().map(|(place, _)| place.record_bytes as usize).sum();
        self.bytes.resize(start + length, 0);
        let records = self.bytes.get_mut(start..).unwrap_or_default();
        for (codec, block_count, payload_bytes) in part.copy_frames(row, records)? {
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
    /// Its parts; none if it is one file.
    pub table: Option<PartTable>,
}

impl Written {
    /// Bytes of all files.
    pub fn stored_bytes(&self) -> u64 {
        self.footer.file_bytes + self.table.as_ref().map_or(0, PartTable::part_bytes)
    }
}

/// A part file that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenPart {
    /// The footer.
    pub footer: PartFooter,
    /// Its digest.
    pub footer_digest: Digest,
}

/// The layer file of parts that were written before.
///
/// # Errors
/// Of `out`.
pub fn write_layer_file(
    header: &Header,
    table: PartTable,
    identity: &Identity,
    parent: Option<Lineage>,
    image_bytes: u64,
    image_digest: ImageDigest,
    out: &mut dyn LayerOutput,
) -> Result<Written> {
    let mut writer = DeltaWriter::new(header, out).on_grid(table.cell_blocks);
    writer.parts = table.parts;
    writer.finish(identity, parent, image_bytes, image_digest)
}

/// Takes the files of a layer, one after the other. A closure takes one file.
pub trait LayerOutput {
    /// Bytes of the current file; those after [`LayerOutput::end_part`] begin another.
    fn write(&mut self, bytes: &[u8]) -> Result<()>;

    /// The same of what is read again by whoever opens the file: its ends, and its tables.
    fn write_index(&mut self, bytes: &[u8]) -> Result<()> {
        self.write(bytes)
    }

    /// The current file is a whole part. Gives what names its object.
    fn end_part(&mut self, footer: &PartFooter) -> Result<Uuid>;
}

impl<F: FnMut(&[u8]) -> Result<()>> LayerOutput for F {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self(bytes)
    }

    fn end_part(&mut self, _: &PartFooter) -> Result<Uuid> {
        Err(Error::new(ErrorKind::Internal, "a part was written instead of one file"))
    }
}

/// What a file has so far.
struct FileState {
    content: StreamHasher,
    offset: u64,
    levels: Vec<Vec<ChildRef>>,
    counts: Counts,
}

impl FileState {
    fn new(hasher: &Hasher) -> Self {
        Self { content: hasher.stream(), offset: 0, levels: Vec::new(), counts: Counts::default() }
    }
}

/// Writes the files of a layer to `out`.
pub struct DeltaWriter<'a> {
    out: &'a mut dyn LayerOutput,
    header: Header,
    hasher: Hasher,
    file: FileState,
    /// The frames of the current segment, and one past the ordinal of the last block of each.
    pending: Vec<FrameRef>,
    pending_ends: Vec<u32>,
    parts: Vec<PartEntry>,
    cell_blocks: u64,
    /// The part that ends before the next segment, if one comes.
    cut: Option<(BlockRange, PartTerms)>,
}

impl<'a> DeltaWriter<'a> {
    /// Begins a file.
    pub fn new(header: &Header, out: &'a mut dyn LayerOutput) -> Self {
        let hasher = Hasher::new(header.algorithm, header.key);
        let file = FileState::new(&hasher);
        Self {
            out,
            header: header.clone(),
            hasher,
            file,
            pending: Vec::new(),
            pending_ends: Vec::new(),
            parts: Vec::new(),
            cell_blocks: 0,
            cut: None,
        }
    }

    /// Parts are cut on a grid of so many blocks.
    #[must_use]
    pub fn on_grid(self, cell_blocks: u64) -> Self {
        Self { cell_blocks, ..self }
    }

    /// Adds frames of the current segment.
    pub fn frames(&mut self, frames: EncodedFrames) -> Result<()> {
        let EncodedFrames { mut bytes, frames } = frames;
        if bytes.is_empty() {
            return Ok(());
        }
        self.end_cut()?;
        self.write_header()?;
        let (mut rest, mut offset) = (bytes.as_mut_slice(), self.file.offset);
        for (codec, block_count, payload_bytes) in frames {
            let (head, after) = rest.split_at_mut(RECORD_HEAD_BYTES);
            let (payload, after) = after.split_at_mut(payload_bytes);
            let kind = RecordKind::Frame { codec, block_count };
            let sealed = RecordHead::seal(kind, self.header.file_id, offset, payload);
            head.copy_from_slice(&sealed.encode());
            let record_bytes = sealed.record_bytes();
            self.pending.push(FrameRef { offset, record_bytes, checksum: sealed.checksum });
            let before = self.pending_ends.last().copied().unwrap_or(0);
            self.pending_ends.push(before + u32::from(block_count));
            self.file.counts.frames += 1;
            self.file.counts.frame_bytes += u64::from(record_bytes);
            offset += u64::from(record_bytes);
            rest = after;
        }
        self.emit(&bytes)
    }

    /// Ends the current segment with its page.
    pub fn table(&mut self, mut page: TablePage) -> Result<()> {
        self.end_cut()?;
        page.frames = std::mem::take(&mut self.pending);
        page.ends = std::mem::take(&mut self.pending_ends);
        page.runs.iter().for_each(|run| self.file.counts.add_run(run));
        let place = self.record(RecordKind::Table, &page.encode(self.header.layout()))?;
        self.file.counts.tables += 1;
        self.child(0, page.bounds(), place)
    }

    /// The segments up to here are of a part over `blocks`; what follows is of another one. Nothing comes
    /// of it if nothing follows, or there are no segments.
    ///
    /// # Errors
    /// Of `out`.
    pub fn cut(&mut self, blocks: BlockRange, terms: PartTerms) {
        // One that still waits is of a range after which there was nothing: they are one.
        self.cut = Some(match self.cut.take() {
            None => (blocks, terms),
            Some((before, of_before)) => (
                BlockRange::between(before.first, blocks.end()),
                PartTerms {
                    difference: of_before.difference.wrapping_add(terms.difference),
                    before: of_before.before.zip(terms.before).map(|(a, b)| a.wrapping_add(b)),
                },
            ),
        });
    }

    /// Adds a part of another layer, behind what was cut.
    ///
    /// # Errors
    /// Of `out`.
    pub fn keep(&mut self, part: PartEntry) -> Result<()> {
        if self.file.counts.tables > 0 {
            let lost = || Error::new(ErrorKind::Internal, "entries that no part ends");
            let (blocks, terms) = self.cut.take().ok_or_else(lost)?;
            self.end_part(blocks, terms)?;
        }
        self.cut = None;
        self.parts.push(part);
        Ok(())
    }

    /// Ends the part that waited for what follows it.
    fn end_cut(&mut self) -> Result<()> {
        // The last part has all that is left.
        if self.parts.len() + 1 >= MAX_PARTS {
            return Ok(());
        }
        match self.cut.take() {
            Some((blocks, terms)) if self.file.counts.tables > 0 => self.end_part(blocks, terms),
            _ => Ok(()),
        }
    }

    /// Ends the current file as a part, and begins another.
    fn end_part(&mut self, blocks: BlockRange, terms: PartTerms) -> Result<()> {
        let WrittenPart { footer, footer_digest } = self.write_part_footer(blocks, terms)?;
        let object = self.out.end_part(&footer)?;
        self.parts.push(PartEntry::of(object, &footer, footer_digest));
        self.file = FileState::new(&self.hasher);
        self.header.file_id = Uuid::new_v4();
        Ok(())
    }

    fn write_part_footer(&mut self, blocks: BlockRange, terms: PartTerms) -> Result<WrittenPart> {
        let root = self.close_levels()?;
        self.write_header()?;
        let footer = PartFooter {
            file_bytes: self.file.offset + FOOTER_BYTES as u64,
            blocks,
            terms,
            content_digest: self.file.content.digest(),
            counts: self.file.counts,
            root,
        };
        let bytes = footer.encode();
        self.out.write_index(&bytes)?;
        Ok(WrittenPart { footer, footer_digest: self.hasher.digest(&bytes) })
    }

    /// Ends the file as a part over `blocks` alone, of no layer yet.
    ///
    /// # Errors
    /// Of `out`.
    pub fn finish_part(mut self, blocks: BlockRange, terms: PartTerms) -> Result<WrittenPart> {
        self.write_part_footer(blocks, terms)
    }

    /// Ends the layer. Of what is in parts the last one ends with the last [`DeltaWriter::cut`].
    pub fn finish(
        mut self,
        identity: &Identity,
        parent: Option<Lineage>,
        image_bytes: u64,
        image_digest: ImageDigest,
    ) -> Result<Written> {
        let (table, root) = match self.parts.is_empty() {
            true => (None, self.close_levels()?),
            false => {
                let table = self.end_parts()?;
                let root = self.write_table(&table)?;
                (Some(table), Some(root))
            }
        };
        let counts = table.as_ref().map_or(self.file.counts, PartTable::counts);
        self.write_header()?;
        let footer = Footer {
            file_bytes: self.file.offset + FOOTER_BYTES as u64,
            snapshot_id: identity.snapshot_id,
            parent,
            number: identity.number,
            image_bytes,
            image_digest,
            content_digest: self.file.content.digest(),
            counts,
            root,
            time_seconds: identity.time_seconds,
            time_nanoseconds: identity.time_nanoseconds,
            label: identity.label.clone(),
        };
        let bytes = footer.encode();
        let footer_digest = self.hasher.digest(&bytes);
        self.out.write_index(&bytes)?;
        Ok(Written { footer, footer_digest, table })
    }

    /// Ends the last part.
    fn end_parts(&mut self) -> Result<PartTable> {
        let lost = || Error::new(ErrorKind::Internal, "entries behind the last part");
        if self.file.counts.tables > 0 {
            let (blocks, terms) = self.cut.take().ok_or_else(lost)?;
            self.end_part(blocks, terms)?;
        }
        let parts = std::mem::take(&mut self.parts);
        Ok(PartTable { cell_blocks: self.cell_blocks, parts })
    }

    /// The file that begins is the one that names the parts.
    fn write_table(&mut self, table: &PartTable) -> Result<RootRef> {
        self.header.features = Features::incompatible(PARTS);
        let FrameRef { offset, record_bytes, checksum } =
            self.record(RecordKind::Parts, &table.encode())?;
        Ok(RootRef { offset, record_bytes, checksum })
    }

    /// Of a file of which nothing is written yet.
    fn write_header(&mut self) -> Result<()> {
        if self.file.offset > 0 {
            return Ok(());
        }
        let header = self.header.encode();
        self.file.content.update(&header);
        self.file.offset = HEADER_BYTES as u64;
        self.out.write_index(&header)
    }

    fn emit(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.content.update(bytes);
        self.file.offset += bytes.len() as u64;
        self.out.write(bytes)
    }

    fn record(&mut self, kind: RecordKind, payload: &[u8]) -> Result<FrameRef> {
        self.write_header()?;
        let offset = self.file.offset;
        let head = RecordHead::seal(kind, self.header.file_id, offset, payload);
        for bytes in [&head.encode()[..], payload] {
            self.file.content.update(bytes);
            self.file.offset += bytes.len() as u64;
            self.out.write_index(bytes)?;
        }
        Ok(FrameRef { offset, record_bytes: head.record_bytes(), checksum: head.checksum })
    }

    fn child(&mut self, level: usize, blocks: BlockRange, place: FrameRef) -> Result<()> {
        if self.file.levels.len() <= level {
            self.file.levels.resize_with(level + 1, Vec::new);
        }
        let FrameRef { offset, record_bytes, checksum } = place;
        let Some(entries) = self.file.levels.get_mut(level) else { return Ok(()) };
        entries.push(ChildRef { blocks, offset, record_bytes, checksum });
        if entries.len() == INDEX_FANOUT { self.close_level(level) } else { Ok(()) }
    }

    /// Writes the entries of a level as a page, which becomes an entry of the level above.
    fn close_level(&mut self, level: usize) -> Result<()> {
        if level as u32 + 1 > MAX_LEVEL {
            return Err(Error::new(ErrorKind::LimitExceeded, "the index of the delta is too deep"));
        }
        let children = self.file.levels.get_mut(level).map(std::mem::take).unwrap_or_default();
        let page = IndexPage { children };
        let place = self.record(RecordKind::Index { level: level as u32 + 1 }, &page.encode())?;
        self.file.counts.indexes += 1;
        self.child(level + 1, page.bounds(), place)
    }

    fn close_levels(&mut self) -> Result<Option<RootRef>> {
        let mut level = 0;
        while let Some(entries) = self.file.levels.get(level) {
            let is_top = level + 1 == self.file.levels.len();
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
