//! The first 256 bytes of a delta file (FORMAT.md section 2.1).

use super::crc32;
use crate::base::digest::{DigestAlgorithm, DigestKey};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::units::BlockSize;
use uuid::Uuid;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Length of the header in bytes.
pub const HEADER_BYTES: usize = 256;
/// The first eight bytes of a delta file.
pub const MAGIC: [u8; 8] = *b"IMGSNAP\n";

/// Fails if a file given by the user does not begin like a delta file: that is a mistake, not damage.
///
/// # Errors
/// `InvalidInput`, with `place`.
pub fn refuse_foreign(first: &[u8], place: &str) -> Result<()> {
    // A truncated file is damaged, not foreign, if the bytes that it has are right.
    match first.starts_with(&MAGIC) || MAGIC.starts_with(first) {
        true => Ok(()),
        false => {
            let error = Error::new(ErrorKind::InvalidInput, format!("{place} is not a delta file"));
            Err(error.hint("use one that \"export\" wrote"))
        }
    }
}
/// The format version that this program writes.
pub const VERSION: u32 = 1;
/// Maximum length of a decoded frame in bytes, unless a single block is larger (FORMAT.md H7).
pub const MAX_FRAME_BYTES: u32 = 256 << 10;

/// The header as stored.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
#[expect(missing_docs, reason = "FORMAT.md section 2.1 documents each field")]
pub struct HeaderWire {
    pub magic: [u8; 8],
    pub version: U32,
    pub header_bytes: U32,
    pub incompatible: U64,
    pub read_compatible: U64,
    pub compatible: U64,
    pub file_id: [u8; 16],
    pub image_id: [u8; 16],
    pub block_bytes: U32,
    pub frame_blocks: U32,
    pub digest_algorithm: U32,
    pub key: [u8; 32],
    pub reserved: [u8; 136],
    pub checksum: U32,
}

const _: () = assert!(size_of::<HeaderWire>() == HEADER_BYTES);
const _: () = assert!(std::mem::offset_of!(HeaderWire, checksum) == HEADER_BYTES - 4);

/// Incompatible feature *frame counts*: pages give the number of blocks in each frame (FORMAT.md H3).
pub const FRAME_COUNTS: u64 = 1 << 0;
/// Incompatible feature *base image*: the blocks are in a base image, not in this file (FORMAT.md H3).
pub const BASE_IMAGE: u64 = 1 << 1;
/// Incompatible feature *parts*: the file names the part files that hold its entries (FORMAT.md H3).
pub const PARTS: u64 = 1 << 3;

/// The three sets of feature bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    /// A file with an unknown bit is refused.
    pub incompatible: u64,
    /// A file with an unknown bit can be read, but must not become the ancestor of a new snapshot.
    pub read_compatible: u64,
    /// Unknown bits are ignored.
    pub compatible: u64,
}

impl Features {
    /// Features with these incompatible bits and no others.
    pub fn incompatible(bits: u64) -> Self {
        Self { incompatible: bits, ..Self::default() }
    }
}

/// How the data blocks of a page are distributed over its frames (FORMAT.md T3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameLayout {
    /// Each frame has this many blocks, except the last one of a page, which may have fewer.
    Even(u32),
    /// The page gives the number of blocks in each frame, which is at most this.
    Counted(u32),
    /// There are no frames: the blocks are in a base image.
    Absent,
}

/// Where the entries of a snapshot are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// In records of the file.
    Records,
    /// In part files, which the file names and whose counts it sums up.
    Parts,
}

/// The header of a delta file, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Feature bits.
    pub features: Features,
    /// Id of this file.
    pub file_id: Uuid,
    /// Id of the image.
    pub image_id: Uuid,
    /// Block size of the chain.
    pub block_size: BlockSize,
    /// Maximum number of blocks in a frame of this file.
    pub frame_blocks: u32,
    /// Digest algorithm of the chain.
    pub algorithm: DigestAlgorithm,
    /// Digest key of the chain.
    pub key: DigestKey,
}

impl Header {
    /// Number of blocks that fit in a frame of `frame_bytes` bytes, at least 1.
    pub fn frame_blocks_for(block_size: BlockSize, frame_bytes: u32) -> u32 {
        (frame_bytes / block_size.bytes()).max(1)
    }

    /// How blocks are distributed over frames in this file.
    pub fn layout(&self) -> FrameLayout {
        match self.features.incompatible {
            bits if bits & BASE_IMAGE != 0 => FrameLayout::Absent,
            bits if bits & FRAME_COUNTS != 0 => FrameLayout::Counted(self.frame_blocks),
            _ => FrameLayout::Even(self.frame_blocks),
        }
    }

    /// Where the entries of the snapshot are.
    pub fn content(&self) -> Content {
        if self.features.incompatible & PARTS == 0 { Content::Records } else { Content::Parts }
    }

    /// Maximum length of a decoded frame in bytes.
    pub fn frame_memory(&self) -> u64 {
        u64::from(self.frame_blocks) * u64::from(self.block_size.bytes())
    }

    /// Encodes the header.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut wire = HeaderWire {
            magic: MAGIC,
            version: U32::new(VERSION),
            header_bytes: U32::new(HEADER_BYTES as u32),
            incompatible: U64::new(self.features.incompatible),
            read_compatible: U64::new(self.features.read_compatible),
            compatible: U64::new(self.features.compatible),
            file_id: self.file_id.into_bytes(),
            image_id: self.image_id.into_bytes(),
            block_bytes: U32::new(self.block_size.bytes()),
            frame_blocks: U32::new(self.frame_blocks),
            digest_algorithm: U32::new(match self.algorithm {
                DigestAlgorithm::Xxh3 => 1,
                DigestAlgorithm::Blake3 => 2,
            }),
            key: self.key.0,
            reserved: [0; 136],
            checksum: U32::ZERO,
        };
        let (covered, _) = wire.as_bytes().split_at(HEADER_BYTES - 4);
        wire.checksum = U32::new(crc32(covered));
        zerocopy::transmute!(wire)
    }

    /// Checks and decodes a header.
    ///
    /// # Errors
    /// `Corrupt` if the bytes are not a header, `Unsupported` if they are the header of a later version.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self> {
        let wire: &HeaderWire = zerocopy::transmute_ref!(bytes);
        if wire.magic != MAGIC {
            return Err(Error::corrupt("not a delta file (its first bytes are not IMGSNAP)"));
        }
        // Before the version is read: a damaged header must not be mistaken for a later version.
        let (covered, _) = bytes.split_at(HEADER_BYTES - 4);
        if wire.checksum.get() != crc32(covered) {
            return Err(Error::corrupt("header: checksum mismatch"));
        }
        if wire.version.get() < VERSION
            || (wire.version.get() == VERSION && wire.header_bytes.get() != HEADER_BYTES as u32)
        {
            return Err(Error::corrupt("header: its version is damaged"));
        }
        if wire.version.get() > VERSION {
            let what = format!(
                "unsupported delta format version {} (this program supports 1)",
                wire.version
            );
            return Err(later(what));
        }
        let features = Features {
            incompatible: wire.incompatible.get(),
            read_compatible: wire.read_compatible.get(),
            compatible: wire.compatible.get(),
        };
        let unknown = features.incompatible & !(FRAME_COUNTS | BASE_IMAGE | PARTS);
        if unknown != 0 {
            return Err(later(format!("unknown feature bits {unknown:#x}")));
        }
        match features.incompatible {
            bits if bits.count_ones() <= 1 => {}
            bits if bits == FRAME_COUNTS | BASE_IMAGE => {
                let what = "header: frames in a file whose blocks are elsewhere";
                return Err(Error::corrupt(what));
            }
            _ => return Err(Error::corrupt("header: a layer file with blocks of its own")),
        }
        if wire.reserved.iter().any(|&b| b != 0) {
            return Err(Error::corrupt("header: reserved bytes are not zero"));
        }
        let block_size = BlockSize::new(wire.block_bytes.get())
            .map_err(|e| Error::corrupt(format!("header: {e}")))?;
        let frame_blocks = wire.frame_blocks.get();
        let frame_bytes = u64::from(frame_blocks) * u64::from(block_size.bytes());
        if frame_blocks == 0 || (frame_blocks > 1 && frame_bytes > u64::from(MAX_FRAME_BYTES)) {
            return Err(Error::corrupt(format!(
                "header: invalid frame size of {frame_blocks} blocks"
            )));
        }
        let algorithm = match wire.digest_algorithm.get() {
            1 => DigestAlgorithm::Xxh3,
            2 => DigestAlgorithm::Blake3,
            other => return Err(later(format!("unknown digest algorithm {other}"))),
        };
        Ok(Self {
            features,
            file_id: Uuid::from_bytes(wire.file_id),
            image_id: Uuid::from_bytes(wire.image_id),
            block_size,
            frame_blocks,
            algorithm,
            key: DigestKey(wire.key),
        })
    }
}

fn later(what: String) -> Error {
    Error::new(ErrorKind::Unsupported, what)
        .hint("it was written by a later imgsnap; use that version")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_header_does_not_pass_for_one_of_a_later_version() {
        let header = Header {
            features: Features::default(),
            file_id: Uuid::new_v4(),
            image_id: Uuid::new_v4(),
            block_size: BlockSize::DEFAULT,
            frame_blocks: 16,
            algorithm: DigestAlgorithm::Xxh3,
            key: DigestKey([7; 32]),
        };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes).unwrap(), header);
        for bit in 0..HEADER_BYTES * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(&bad).unwrap_err().kind(), ErrorKind::Corrupt, "bit {bit}");
        }
        let mut later = bytes;
        later[8] = 2;
        let checksum = crc32(&later[..HEADER_BYTES - 4]);
        later[HEADER_BYTES - 4..].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(Header::decode(&later).unwrap_err().kind(), ErrorKind::Unsupported);
    }
}
