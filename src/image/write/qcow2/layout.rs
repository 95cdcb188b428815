//! The bytes of a qcow2 of version 3 (QEMU's docs/interop/qcow2.txt) as far as we write them.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::units::ByteRange;
use zerocopy::big_endian::{U32, U64};
use zerocopy::{Immutable, IntoBytes};

/// Clusters of most images are of 64 KiB, which is QEMU's default, too.
const CLUSTER_BITS: u32 = 16;
/// Beyond this length they are of 2 MiB, the largest there are: so that the L1 table, which is held in
/// memory here as in QEMU, stays small.
const MOST_BYTES_OF_SMALL_CLUSTERS: u64 = 64 << 40;
const LARGE_CLUSTER_BITS: u32 = 21;
/// QEMU takes no L1 table of more bytes.
const MAX_L1_BYTES: u64 = 32 << 20;
/// A length is a multiple of this for QEMU.
const SECTOR_BYTES: u64 = 512;

/// Host clusters may not be beyond: compressed ones of 2 MiB are not found there.
pub const MAX_HOST_BYTES: u64 = 1 << 49;
/// In an entry of an L1 or L2 table: nobody else uses the cluster (a refcount of 1).
pub const COPIED: u64 = 1 << 63;
/// In an entry of an L2 table: the cluster is compressed.
pub const COMPRESSED: u64 = 1 << 62;

/// What happens to who writes outside of the image, or a compressed cluster again.
pub fn fault() -> Error {
    Error::new(ErrorKind::Internal, "a cluster was written twice; this is a bug in imgsnap")
}

/// The sizes of an image and of what it is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Length of the disk in bytes, a multiple of 512.
    pub image_bytes: u64,
    /// Binary logarithm of the bytes of a cluster.
    pub cluster_bits: u32,
}

impl Layout {
    /// Of an image of `bytes` bytes.
    ///
    /// # Errors
    /// `LimitExceeded` beyond 2 EiB.
    pub fn of_image(bytes: u64) -> Result<Self> {
        let cluster_bits = match bytes {
            0..=MOST_BYTES_OF_SMALL_CLUSTERS => CLUSTER_BITS,
            _ => LARGE_CLUSTER_BITS,
        };
        let too_long = || {
            let what = format!("a qcow2 image cannot have {bytes} bytes");
            Error::new(ErrorKind::LimitExceeded, what).hint("the limit is 2 EiB; write a raw image")
        };
        let image_bytes = bytes.checked_next_multiple_of(SECTOR_BYTES).ok_or_else(too_long)?;
        let layout = Self { image_bytes, cluster_bits };
        let l1_bytes = layout.l1_entries() * size_of::<U64>() as u64;
        if l1_bytes > MAX_L1_BYTES { Err(too_long()) } else { Ok(layout) }
    }

    /// Length of a cluster in bytes.
    pub fn cluster_bytes(self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes of the disk in a cluster of it: fewer in the last one.
    pub fn bytes_in(self, cluster: u64) -> u64 {
        let start = cluster << self.cluster_bits;
        self.image_bytes.saturating_sub(start).min(self.cluster_bytes())
    }

    /// Entries of a table that has one cluster (L2).
    pub fn entries(self) -> u64 {
        self.cluster_bytes() / size_of::<U64>() as u64
    }

    /// L2 tables that the disk has at most; one at least.
    pub fn l1_entries(self) -> u64 {
        self.image_bytes.div_ceil(self.cluster_bytes() * self.entries()).max(1)
    }

    /// Host clusters whose refcounts, of 16 bits, are in one block.
    pub fn refcounts(self) -> u64 {
        self.cluster_bytes() / 2
    }

    /// The parts of a range of the disk by clusters: number of the cluster, and the part, which begins that
    /// many bytes behind its start.
    pub fn pieces(self, range: ByteRange) -> impl Iterator<Item = (u64, ByteRange)> {
        let end = range.offset + range.bytes;
        let mut at = range.offset;
        std::iter::from_fn(move || {
            let cluster = at >> self.cluster_bits;
            let offset = at - (cluster << self.cluster_bits);
            let bytes = (self.cluster_bytes() - offset).min(end - at);
            at += bytes;
            (bytes > 0).then_some((cluster, ByteRange { offset, bytes }))
        })
    }

    /// The entry of an L2 table for a compressed cluster, which is anywhere in the file.
    pub fn compressed_entry(self, host: ByteRange) -> u64 {
        let last = host.offset + host.bytes.max(1) - 1;
        // Besides the one in which it begins.
        let sectors = last / SECTOR_BYTES - host.offset / SECTOR_BYTES;
        COMPRESSED | sectors << (62 - (self.cluster_bits - 8)) | host.offset
    }
}

/// What an image begins with; of its cluster all other bytes are zeros, which say that nothing follows.
#[derive(Debug, IntoBytes, Immutable)]
#[repr(C)]
pub struct Header {
    magic: [u8; 4],
    version: U32,
    backing_offset: U64,
    backing_bytes: U32,
    cluster_bits: U32,
    image_bytes: U64,
    encryption: U32,
    l1_entries: U32,
    l1_offset: U64,
    refcount_table_offset: U64,
    refcount_table_clusters: U32,
    snapshots: U32,
    snapshots_offset: U64,
    incompatible: U64,
    compatible: U64,
    autoclear: U64,
    refcount_order: U32,
    header_bytes: U32,
    compression: u8,
    padding: [u8; 7],
}

const _: () = assert!(size_of::<Header>() == 112);

/// Where the tables are that a header names.
#[derive(Debug, Clone, Copy)]
pub struct Tables {
    /// Offset of the L1 table in the file.
    pub l1_offset: u64,
    /// The same of the table of refcount blocks.
    pub refcounts_offset: u64,
    /// And how many clusters that has.
    pub refcounts_clusters: u64,
}

impl Header {
    /// Of an image without backing file, snapshots and extensions. `compression` is the number of the
    /// algorithm, 0 for zlib.
    pub fn new(layout: Layout, tables: Tables, compression: u8) -> Self {
        /// The bit that keeps programs off that know of zlib alone.
        const COMPRESSION_BIT: u64 = 1 << 3;
        Self {
            magic: *b"QFI\xfb",
            version: 3.into(),
            backing_offset: 0.into(),
            backing_bytes: 0.into(),
            cluster_bits: layout.cluster_bits.into(),
            image_bytes: layout.image_bytes.into(),
            encryption: 0.into(),
            l1_entries: (layout.l1_entries() as u32).into(),
            l1_offset: tables.l1_offset.into(),
            refcount_table_offset: tables.refcounts_offset.into(),
            refcount_table_clusters: (tables.refcounts_clusters as u32).into(),
            snapshots: 0.into(),
            snapshots_offset: 0.into(),
            incompatible: if compression == 0 { 0 } else { COMPRESSION_BIT }.into(),
            compatible: 0.into(),
            autoclear: 0.into(),
            refcount_order: 4.into(),
            header_bytes: (size_of::<Self>() as u32).into(),
            compression,
            padding: [0; 7],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_from_the_length() {
        for (bytes, padded, bits, tables) in [
            (0, 0, 16, 1),
            (1, 512, 16, 1),
            (512 << 20, 512 << 20, 16, 1),
            ((512 << 20) + 1, (512 << 20) + 512, 16, 2),
            (64 << 40, 64 << 40, 16, 1 << 17),
            ((64 << 40) + 1, (64 << 40) + 512, 21, 129),
            (2 << 60, 2 << 60, 21, 1 << 22),
        ] {
            let layout = Layout::of_image(bytes).unwrap();
            assert_eq!((layout.image_bytes, layout.cluster_bits), (padded, bits));
            assert_eq!(layout.l1_entries(), tables);
        }
        for bytes in [(2 << 60) + 1, u64::MAX] {
            let error = Layout::of_image(bytes).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::LimitExceeded);
        }
    }

    #[test]
    fn a_range_falls_into_clusters() {
        let layout = Layout::of_image(1 << 30).unwrap();
        let range = ByteRange { offset: 65_000, bytes: 140_000 };
        let pieces: Vec<_> =
            layout.pieces(range).map(|(n, part)| (n, part.offset, part.bytes)).collect();
        assert_eq!(pieces, [(0, 65_000, 536), (1, 0, 65_536), (2, 0, 65_536), (3, 0, 8_392)]);
        assert_eq!(layout.pieces(ByteRange { offset: 5, bytes: 0 }).count(), 0);
    }
}
