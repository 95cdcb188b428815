//! The 16-byte header of each record (FORMAT.md section 3.1), and the checksum that ties a record to its
//! offset and file.

use crate::base::error::{Error, Result};
use crate::codec::Codec;
use uuid::Uuid;
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Length of a record header in bytes.
pub const RECORD_HEAD_BYTES: usize = 16;
/// Maximum length of a payload in bytes (FORMAT.md R1).
pub const MAX_PAYLOAD_BYTES: u32 = 1280 << 10;
/// The highest level of an index page (FORMAT.md R4).
pub const MAX_LEVEL: u32 = 15;

/// A record header as stored.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
#[expect(missing_docs, reason = "FORMAT.md section 3.1 documents each field")]
pub struct RecordWire {
    pub tag: [u8; 4],
    pub payload_bytes: U32,
    pub detail: U32,
    pub checksum: U32,
}

const _: () = assert!(size_of::<RecordWire>() == RECORD_HEAD_BYTES);

/// The kind of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordKind {
    /// Encoded blocks.
    Frame {
        /// The encoding.
        codec: Codec,
        /// Number of blocks, at least 1.
        block_count: u16,
    },
    /// A table page.
    Table,
    /// An index page over table pages (level 1) or over other index pages.
    Index {
        /// 1 to [`MAX_LEVEL`].
        level: u32,
    },
    /// The table of the parts of a layer.
    Parts,
}

/// A record header, checked except for the checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHead {
    /// The kind of the record.
    pub kind: RecordKind,
    /// Length of its payload in bytes.
    pub payload_bytes: u32,
    /// CRC-32 over file id, offset, header and payload (FORMAT.md K2).
    pub checksum: u32,
}

impl RecordHead {
    /// The header for a payload at `offset` in a file, checksum included.
    pub fn seal(kind: RecordKind, file_id: Uuid, offset: u64, payload: &[u8]) -> Self {
        let mut head = Self { kind, payload_bytes: payload.len() as u32, checksum: 0 };
        head.checksum = head.checksum_over(file_id, offset, payload);
        head
    }

    /// Length of header and payload in bytes.
    pub fn record_bytes(&self) -> u32 {
        self.payload_bytes + RECORD_HEAD_BYTES as u32
    }

    /// Encodes the header.
    pub fn encode(&self) -> [u8; RECORD_HEAD_BYTES] {
        let (tag, detail) = match self.kind {
            RecordKind::Frame { codec, block_count } => {
                (*b"FRAM", u32::from(codec as u8) | u32::from(block_count) << 16)
            }
            RecordKind::Table => (*b"TABL", 0),
            RecordKind::Index { level } => (*b"INDX", level),
            RecordKind::Parts => (*b"PART", 0),
        };
        zerocopy::transmute!(RecordWire {
            tag,
            payload_bytes: U32::new(self.payload_bytes),
            detail: U32::new(detail),
            checksum: U32::new(self.checksum),
        })
    }

    /// Checks and decodes a record header.
    pub fn decode(bytes: &[u8; RECORD_HEAD_BYTES]) -> Result<Self> {
        let wire: &RecordWire = zerocopy::transmute_ref!(bytes);
        let detail = wire.detail.get();
        let kind = match &wire.tag {
            b"FRAM" => {
                let [codec, zero, ..] = detail.to_le_bytes();
                let block_count = (detail >> 16) as u16;
                let codec = Codec::from_byte(codec)
                    .ok_or_else(|| Error::corrupt(format!("unknown codec {codec}")))?;
                if zero != 0 || block_count == 0 {
                    return Err(Error::corrupt("frame header is not valid"));
                }
                RecordKind::Frame { codec, block_count }
            }
            b"TABL" if detail == 0 => RecordKind::Table,
            b"PART" if detail == 0 => RecordKind::Parts,
            b"INDX" if (1..=MAX_LEVEL).contains(&detail) => RecordKind::Index { level: detail },
            _ => return Err(Error::corrupt("expected a record")),
        };
        let payload_bytes = wire.payload_bytes.get();
        if payload_bytes == 0 || payload_bytes > MAX_PAYLOAD_BYTES {
            return Err(Error::corrupt(format!("invalid record length {payload_bytes}")));
        }
        Ok(Self { kind, payload_bytes, checksum: wire.checksum.get() })
    }

    /// Checks that the checksum is that of `payload` at `offset` in this file.
    pub fn verify(&self, file_id: Uuid, offset: u64, payload: &[u8]) -> Result<()> {
        if payload.len() != self.payload_bytes as usize
            || self.checksum != self.checksum_over(file_id, offset, payload)
        {
            return Err(Error::corrupt("checksum mismatch"));
        }
        Ok(())
    }

    fn checksum_over(&self, file_id: Uuid, offset: u64, payload: &[u8]) -> u32 {
        let encoded = self.encode();
        let (covered, _) = encoded.split_at(RECORD_HEAD_BYTES - 4);
        let mut crc = crc32fast::Hasher::new();
        crc.update(file_id.as_bytes());
        crc.update(&offset.to_le_bytes());
        crc.update(covered);
        crc.update(payload);
        crc.finalize()
    }
}
