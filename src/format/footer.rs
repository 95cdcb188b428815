//! The last 512 bytes of a delta file (FORMAT.md section 2.2), without which it is not a snapshot.

use super::header::{Content, HEADER_BYTES};
use super::table::{Run, RunKind};
use super::{MAX_BLOCKS, crc32};
use crate::base::digest::{Digest, ImageDigest};
use crate::base::error::{Error, Result};
use crate::base::units::MAX_IMAGE_BYTES;
use uuid::Uuid;
use zerocopy::little_endian::{I64, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Length of the footer in bytes.
pub const FOOTER_BYTES: usize = 512;
/// The first eight bytes of the footer.
pub const FOOTER_MAGIC: [u8; 8] = *b"PANSGMI\n";
/// One past the highest snapshot number.
pub const MAX_NUMBER: u64 = 1 << 48;
/// Maximum length of a label in bytes.
pub const MAX_LABEL_BYTES: usize = 128;

/// The footer as stored.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(missing_docs, reason = "FORMAT.md section 2.2 documents each field")]
pub struct FooterWire {
    pub magic: [u8; 8],
    pub file_bytes: U64,
    pub snapshot_id: [u8; 16],
    pub parent_id: [u8; 16],
    pub number: U64,
    pub image_bytes: U64,
    pub parent_image_bytes: U64,
    pub image_digest: [u8; 16],
    pub parent_image_digest: [u8; 16],
    pub content_digest: Digest,
    pub data_blocks: U64,
    pub zero_blocks: U64,
    pub unread_blocks: U64,
    pub frame_count: U64,
    pub frame_bytes: U64,
    pub table_count: U64,
    pub index_count: U64,
    pub root_offset: U64,
    pub root_bytes: U32,
    pub root_checksum: U32,
    pub time_seconds: I64,
    pub time_nanoseconds: U32,
    pub label_bytes: U32,
    pub label: [u8; MAX_LABEL_BYTES],
    pub reserved: [u8; 172],
    pub checksum: U32,
}

const _: () = assert!(size_of::<FooterWire>() == FOOTER_BYTES);
const _: () = assert!(std::mem::offset_of!(FooterWire, checksum) == FOOTER_BYTES - 4);

/// The parent of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lineage {
    /// The parent snapshot.
    pub parent_id: Uuid,
    /// Length of the image at the parent.
    pub image_bytes: u64,
    /// Image digest at the parent.
    pub image_digest: ImageDigest,
}

impl Lineage {
    /// The stored form of a base, which has no parent.
    pub const NONE: Self =
        Self { parent_id: Uuid::nil(), image_bytes: 0, image_digest: ImageDigest(0) };
}

/// Numbers of blocks, records and bytes in a delta file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Blocks in data runs.
    pub data_blocks: u64,
    /// Blocks in zero runs.
    pub zero_blocks: u64,
    /// Blocks in unread runs.
    pub unread_blocks: u64,
    /// FRAM records.
    pub frames: u64,
    /// Total length of the FRAM records in bytes.
    pub frame_bytes: u64,
    /// TABL records.
    pub tables: u64,
    /// INDX records.
    pub indexes: u64,
}

impl Counts {
    /// Adds the blocks of a run.
    pub fn add_run(&mut self, run: &Run) {
        let counter = match run.kind {
            RunKind::Data => &mut self.data_blocks,
            RunKind::Zero => &mut self.zero_blocks,
            RunKind::Unread => &mut self.unread_blocks,
        };
        *counter += run.blocks.count;
    }

    /// Adds the counts of another file.
    pub fn add(&mut self, other: &Self) {
        self.data_blocks += other.data_blocks;
        self.zero_blocks += other.zero_blocks;
        self.unread_blocks += other.unread_blocks;
        self.frames += other.frames;
        self.frame_bytes += other.frame_bytes;
        self.tables += other.tables;
        self.indexes += other.indexes;
    }
}

/// Location of the root page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootRef {
    /// Offset of its record.
    pub offset: u64,
    /// Length of its record.
    pub record_bytes: u32,
    /// Checksum in its record header.
    pub checksum: u32,
}

/// The footer of a delta file, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footer {
    /// Length of the whole file.
    pub file_bytes: u64,
    /// Id of the snapshot.
    pub snapshot_id: Uuid,
    /// The parent; `None` in a base.
    pub parent: Option<Lineage>,
    /// Number of the snapshot in its image, from 1.
    pub number: u64,
    /// Length of the image.
    pub image_bytes: u64,
    /// Digest of the image.
    pub image_digest: ImageDigest,
    /// Digest of the file before the footer.
    pub content_digest: Digest,
    /// What the file holds.
    pub counts: Counts,
    /// The root page; `None` if the file has no entries.
    pub root: Option<RootRef>,
    /// When the snapshot was taken: seconds since 1970-01-01T00:00:00Z.
    pub time_seconds: i64,
    /// Nanoseconds to be added to `time_seconds`.
    pub time_nanoseconds: u32,
    /// The label with which it was taken.
    pub label: Option<String>,
}

impl Footer {
    /// Encodes the footer. The label must have at most [`MAX_LABEL_BYTES`] bytes.
    pub fn encode(&self) -> [u8; FOOTER_BYTES] {
        let parent = self.parent.unwrap_or(Lineage::NONE);
        let root = self.root.unwrap_or(RootRef { offset: 0, record_bytes: 0, checksum: 0 });
        let text = self.label.as_deref().unwrap_or_default().as_bytes();
        let mut label = [0; MAX_LABEL_BYTES];
        label.iter_mut().zip(text).for_each(|(to, from)| *to = *from);
        let mut wire = FooterWire {
            magic: FOOTER_MAGIC,
            file_bytes: U64::new(self.file_bytes),
            snapshot_id: self.snapshot_id.into_bytes(),
            parent_id: parent.parent_id.into_bytes(),
            number: U64::new(self.number),
            image_bytes: U64::new(self.image_bytes),
            parent_image_bytes: U64::new(parent.image_bytes),
            image_digest: self.image_digest.0.to_le_bytes(),
            parent_image_digest: parent.image_digest.0.to_le_bytes(),
            content_digest: self.content_digest,
            data_blocks: U64::new(self.counts.data_blocks),
            zero_blocks: U64::new(self.counts.zero_blocks),
            unread_blocks: U64::new(self.counts.unread_blocks),
            frame_count: U64::new(self.counts.frames),
            frame_bytes: U64::new(self.counts.frame_bytes),
            table_count: U64::new(self.counts.tables),
            index_count: U64::new(self.counts.indexes),
            root_offset: U64::new(root.offset),
            root_bytes: U32::new(root.record_bytes),
            root_checksum: U32::new(root.checksum),
            time_seconds: I64::new(self.time_seconds),
            time_nanoseconds: U32::new(self.time_nanoseconds),
            label_bytes: U32::new(text.len().min(MAX_LABEL_BYTES) as u32),
            label,
            reserved: [0; 172],
            checksum: U32::ZERO,
        };
        let (covered, _) = wire.as_bytes().split_at(FOOTER_BYTES - 4);
        wire.checksum = U32::new(crc32(covered));
        zerocopy::transmute!(wire)
    }

    /// Checks and decodes the footer of a file of `file_bytes` bytes. The counts of a layer file are not
    /// checked here: they are compared with the table of parts when that is read.
    pub fn decode(bytes: &[u8; FOOTER_BYTES], file_bytes: u64, content: Content) -> Result<Self> {
        let wire: &FooterWire = zerocopy::transmute_ref!(bytes);
        let (covered, _) = bytes.split_at(FOOTER_BYTES - 4);
        if wire.magic != FOOTER_MAGIC || wire.checksum.get() != crc32(covered) {
            return Err(Error::corrupt("no valid footer: the file is truncated or damaged"));
        }
        if wire.file_bytes.get() != file_bytes {
            let what = format!("the footer belongs to a file of {} bytes", wire.file_bytes);
            return Err(Error::corrupt(what));
        }
        if wire.reserved.iter().any(|&b| b != 0) {
            return Err(Error::corrupt("footer: reserved bytes are not zero"));
        }
        let image_bytes = wire.image_bytes.get();
        if image_bytes == 0 || image_bytes > MAX_IMAGE_BYTES {
            return Err(Error::corrupt(format!(
                "footer: invalid image size of {image_bytes} bytes"
            )));
        }
        let number = wire.number.get();
        if number == 0 || number >= MAX_NUMBER || wire.time_nanoseconds.get() >= 1_000_000_000 {
            return Err(Error::corrupt("footer: number or time is not valid"));
        }
        Ok(Self {
            file_bytes,
            snapshot_id: Uuid::from_bytes(wire.snapshot_id),
            parent: decode_parent(wire)?,
            number: wire.number.get(),
            image_bytes,
            image_digest: ImageDigest(u128::from_le_bytes(wire.image_digest)),
            content_digest: wire.content_digest,
            counts: decode_counts(wire, file_bytes, content)?,
            root: decode_root(wire, file_bytes)?,
            time_seconds: wire.time_seconds.get(),
            time_nanoseconds: wire.time_nanoseconds.get(),
            label: decode_label(wire)?,
        })
    }
}

fn decode_parent(wire: &FooterWire) -> Result<Option<Lineage>> {
    let parent_id = Uuid::from_bytes(wire.parent_id);
    let image_bytes = wire.parent_image_bytes.get();
    let image_digest = ImageDigest(u128::from_le_bytes(wire.parent_image_digest));
    if parent_id.is_nil() {
        if image_bytes != 0 || image_digest.0 != 0 || wire.zero_blocks.get() != 0 {
            return Err(Error::corrupt("footer: a base must not have a parent"));
        }
        return Ok(None);
    }
    if image_bytes == 0 || image_bytes > MAX_IMAGE_BYTES {
        return Err(Error::corrupt(format!("footer: invalid parent size of {image_bytes} bytes")));
    }
    Ok(Some(Lineage { parent_id, image_bytes, image_digest }))
}

/// The counts are used in calculations before any record is read, so they are refused if they exceed what a
/// file of this length can hold.
fn decode_counts(wire: &FooterWire, file_bytes: u64, content: Content) -> Result<Counts> {
    let counts = Counts {
        data_blocks: wire.data_blocks.get(),
        zero_blocks: wire.zero_blocks.get(),
        unread_blocks: wire.unread_blocks.get(),
        frames: wire.frame_count.get(),
        frame_bytes: wire.frame_bytes.get(),
        tables: wire.table_count.get(),
        indexes: wire.index_count.get(),
    };
    match content {
        Content::Records => check_counts(counts, file_bytes),
        Content::Parts => Ok(counts),
    }
}

/// Refuses counts that exceed what a file of `file_bytes` bytes can hold.
pub(super) fn check_counts(counts: Counts, file_bytes: u64) -> Result<Counts> {
    let records = [counts.frames, counts.frame_bytes, counts.tables, counts.indexes];
    let fits = counts.data_blocks <= file_bytes / size_of::<Digest>() as u64
        && records.iter().all(|count| *count <= file_bytes)
        && counts.zero_blocks.max(counts.unread_blocks) <= MAX_BLOCKS;
    if fits {
        Ok(counts)
    } else {
        Err(Error::corrupt("footer: the counts exceed what the file can hold"))
    }
}

fn decode_root(wire: &FooterWire, file_bytes: u64) -> Result<Option<RootRef>> {
    let root = RootRef {
        offset: wire.root_offset.get(),
        record_bytes: wire.root_bytes.get(),
        checksum: wire.root_checksum.get(),
    };
    decode_root_of(root, wire.table_count.get() == 0, file_bytes)
}

/// The root of a file of `file_bytes` bytes; `None` if it has no records.
pub(super) fn decode_root_of(
    root: RootRef,
    is_empty: bool,
    file_bytes: u64,
) -> Result<Option<RootRef>> {
    let RootRef { offset, record_bytes, checksum } = root;
    let records_end = file_bytes.saturating_sub(FOOTER_BYTES as u64);
    if is_empty && offset == 0 && record_bytes == 0 && checksum == 0 {
        if records_end != HEADER_BYTES as u64 {
            return Err(Error::corrupt("footer: there are records, but no root page"));
        }
        return Ok(None);
    }
    // The root must be the last record. This also ties the footer to the length of the file.
    let ends = offset.checked_add(record_bytes.into());
    if is_empty || offset < HEADER_BYTES as u64 || ends != Some(records_end) {
        return Err(Error::corrupt("footer: the root page is not the last record"));
    }
    Ok(Some(root))
}

fn decode_label(wire: &FooterWire) -> Result<Option<String>> {
    let bad = || Error::corrupt("footer: the label is not valid");
    let length = wire.label_bytes.get() as usize;
    let text = wire.label.get(..length).ok_or_else(bad)?;
    let rest = wire.label.get(length..).ok_or_else(bad)?;
    let text = std::str::from_utf8(text).map_err(|_| bad())?;
    if rest.iter().any(|&b| b != 0) || text.chars().any(char::is_control) {
        return Err(bad());
    }
    Ok((!text.is_empty()).then(|| text.to_owned()))
}
