//! The small nouns: block sizes, ranges of blocks, extents of bytes, and the geometry of an image.
//!
//! All arithmetic between bytes and blocks stands here.

use crate::base::error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The longest image, in bytes: 2^62 (FORMAT.md C5).
pub const MAX_IMAGE_BYTES: u64 = 1 << 62;

/// The unit of comparison: a power of two from 4 KiB to 1 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct BlockSize(u32);

impl BlockSize {
    /// The smallest block, in bytes: the unit in which guest file systems write.
    pub const MIN: u32 = 4096;
    /// The largest block, in bytes.
    pub const MAX: u32 = 1 << 20;
    /// 4 KiB.
    pub const DEFAULT: Self = Self(4096);

    /// Checks `bytes` against the limits.
    pub fn new(bytes: u32) -> Result<Self> {
        if bytes.is_power_of_two() && (Self::MIN..=Self::MAX).contains(&bytes) {
            return Ok(Self(bytes));
        }
        Err(Error::new(
            ErrorKind::InvalidInput,
            format!("block size {bytes} is not a power of two from 4K to 1M"),
        ))
    }

    /// In bytes.
    pub fn bytes(self) -> u32 {
        self.0
    }

    /// In bytes, for lengths in memory.
    pub fn in_memory(self) -> usize {
        self.0 as usize
    }

    /// Blocks needed for `bytes`.
    pub fn count(self, bytes: u64) -> u64 {
        bytes.div_ceil(u64::from(self.0))
    }
}

impl fmt::Display for BlockSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 1 << 20 {
            write!(f, "{}K", self.0 >> 10)
        } else {
            write!(f, "{}M", self.0 >> 20)
        }
    }
}

impl FromStr for BlockSize {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        Self::new(u32::try_from(parse_bytes(text)?).unwrap_or(u32::MAX))
    }
}

/// On which grid large images are cut into parts: a power of two from 4 KiB to 2^62 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct PartSize(u64);

impl PartSize {
    /// 8 GiB.
    pub const USUAL: Self = Self(8 << 30);
    /// The smallest, in bytes.
    const MIN: u64 = BlockSize::MIN as u64;

    /// Checks `bytes` against the limits.
    pub fn new(bytes: u64) -> Result<Self> {
        if bytes.is_power_of_two() && (Self::MIN..=MAX_IMAGE_BYTES).contains(&bytes) {
            return Ok(Self(bytes));
        }
        let what = format!("part size {bytes} is not a power of two of at least 4K");
        Err(Error::new(ErrorKind::InvalidInput, what))
    }

    /// In bytes of the image.
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// In blocks; at least one, if those are larger.
    pub fn blocks(self, block_size: BlockSize) -> u64 {
        (self.0 / u64::from(block_size.bytes())).max(1)
    }
}

impl fmt::Display for PartSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes >= 1 << 30 => write!(f, "{}G", bytes >> 30),
            bytes if bytes >= 1 << 20 => write!(f, "{}M", bytes >> 20),
            bytes => write!(f, "{}K", bytes >> 10),
        }
    }
}

impl FromStr for PartSize {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        Self::new(parse_bytes(text)?)
    }
}

impl TryFrom<u64> for PartSize {
    type Error = Error;
    fn try_from(bytes: u64) -> Result<Self> {
        Self::new(bytes)
    }
}

impl From<PartSize> for u64 {
    fn from(size: PartSize) -> Self {
        size.0
    }
}

/// Parses a number of bytes with an optional binary suffix: `4096`, `4K`, `64KiB`, `1.5G`.
pub fn parse_bytes(text: &str) -> Result<u64> {
    let bad = || {
        let what = format!("invalid size \"{text}\"");
        Error::new(ErrorKind::InvalidInput, what).hint("write it like 4096, 64K, 10M or 1G")
    };
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (digits, suffix) = text.split_at(split);
    let suffix = suffix.trim().to_ascii_uppercase();
    let shift = match suffix.trim_end_matches("IB").trim_end_matches('B') {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        "P" => 50,
        _ => return Err(bad()),
    };
    if let Ok(whole) = digits.parse::<u64>() {
        return whole.checked_mul(1 << shift).filter(|&v| v <= MAX_IMAGE_BYTES).ok_or_else(bad);
    }
    let value = digits.parse::<f64>().map_err(|_| bad())? * (1u64 << shift) as f64;
    if shift > 0 && value <= MAX_IMAGE_BYTES as f64 { Ok(value as u64) } else { Err(bad()) }
}

/// A run of blocks: `first` to `first + count - 1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct BlockRange {
    /// The first block.
    pub first: u64,
    /// How many.
    pub count: u64,
}

impl BlockRange {
    /// From `first` up to, and without, `end`.
    pub fn between(first: u64, end: u64) -> Self {
        Self { first, count: end.saturating_sub(first) }
    }

    /// One past the last block.
    pub fn end(self) -> u64 {
        self.first.saturating_add(self.count)
    }
}

/// A run of bytes: `offset` to `offset + bytes - 1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ByteRange {
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub bytes: u64,
}

impl ByteRange {
    /// From `offset` up to, and without, `end`.
    pub fn between(offset: u64, end: u64) -> Self {
        Self { offset, bytes: end.saturating_sub(offset) }
    }

    /// One past the last byte.
    pub fn end(self) -> u64 {
        self.offset.saturating_add(self.bytes)
    }

    /// The blocks that it touches.
    pub fn blocks(self, block_size: BlockSize) -> BlockRange {
        let size = u64::from(block_size.bytes());
        BlockRange::between(self.offset / size, self.end().div_ceil(size))
    }
}

/// Ranges of blocks in ascending order, up to a limit, and the total number of blocks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct NamedBlocks {
    /// The first ranges, neighbours joined.
    pub ranges: Vec<BlockRange>,
    /// How many blocks, those beyond the named ranges included.
    pub count: u64,
}

impl NamedBlocks {
    /// As many ranges are named.
    const MAX_RANGES: usize = 1000;
    /// And as many of them in a message.
    const MAX_NAMED: usize = 8;

    /// Adds a range that is not before the last one.
    pub fn add(&mut self, range: BlockRange) {
        self.count = self.count.saturating_add(range.count);
        match self.ranges.last_mut() {
            Some(last) if last.end() == range.first => last.count += range.count,
            _ if range.count > 0 => {
                self.ranges.push(range);
                self.ranges.truncate(Self::MAX_RANGES);
            }
            _ => {}
        }
    }

    /// Adds those of another one, which come after its own.
    pub fn append(&mut self, other: Self) {
        let unnamed = other.count - other.ranges.iter().map(|range| range.count).sum::<u64>();
        other.ranges.into_iter().for_each(|range| self.add(range));
        self.count = self.count.saturating_add(unnamed);
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// `3 blocks: bytes 4096+8192, 65536+4096` (offset and length, as `--range` takes them).
    pub fn describe(&self, geometry: Geometry) -> String {
        let told = self.ranges.iter().take(Self::MAX_NAMED);
        let told: Vec<String> = told
            .map(|r| format!("{}+{}", geometry.offset(r.first), geometry.bytes_in(*r)))
            .collect();
        let more = if self.ranges.len() > Self::MAX_NAMED { " and more" } else { "" };
        let noun = if self.count == 1 { "block" } else { "blocks" };
        format!("{} {noun}: bytes {}{more}", self.count, told.join(", "))
    }
}

/// What an extent of a source holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExtentKind {
    /// Bytes that have to be read.
    Data,
    /// Zeros, known without reading.
    Hole,
}

/// A run of bytes of one kind. The extents of a source are ascending and contiguous.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Extent {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its length in bytes, never 0.
    pub bytes: u64,
    /// Data or hole.
    pub kind: ExtentKind,
}

/// Block size and length of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Geometry {
    /// The unit of comparison.
    pub block_size: BlockSize,
    /// Length of the image in bytes.
    pub image_bytes: u64,
}

impl Geometry {
    /// Checks the length against the limits of the format.
    pub fn new(block_size: BlockSize, image_bytes: u64) -> Result<Self> {
        if image_bytes == 0 {
            return Err(Error::new(ErrorKind::InvalidInput, "the image is empty (0 bytes)"));
        }
        if image_bytes > MAX_IMAGE_BYTES {
            return Err(Error::new(
                ErrorKind::LimitExceeded,
                "the image is longer than 2^62 bytes",
            ));
        }
        Ok(Self { block_size, image_bytes })
    }

    /// Number of blocks, the last one perhaps partial.
    pub fn block_count(self) -> u64 {
        self.block_size.count(self.image_bytes)
    }

    /// All of its blocks.
    pub fn blocks(self) -> BlockRange {
        BlockRange { first: 0, count: self.block_count() }
    }

    /// Where a block begins, in bytes.
    pub fn offset(self, block: u64) -> u64 {
        block.saturating_mul(u64::from(self.block_size.bytes()))
    }

    /// Bytes of the image in a range of blocks (the last block may be partial, or beyond the end).
    pub fn bytes_in(self, range: BlockRange) -> u64 {
        let end = self.offset(range.end()).min(self.image_bytes);
        end.saturating_sub(self.offset(range.first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_parsed_with_binary_suffixes() {
        for (text, bytes) in
            [("4096", 4096), ("4K", 4096), ("64KiB", 65536), ("1.5M", 3 << 19), ("2tb", 2 << 40)]
        {
            assert_eq!(parse_bytes(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "K", "1.5", "-1", "4X", "9999999P", "1e3", "NaN"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn block_size_is_a_power_of_two_within_limits() {
        for text in ["4K", "64K", "1M"] {
            assert_eq!(text.parse::<BlockSize>().unwrap().to_string(), text);
        }
        for text in ["0", "2K", "5000", "2M", "16G"] {
            assert!(text.parse::<BlockSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn last_block_may_be_partial() {
        let geometry = Geometry::new(BlockSize::DEFAULT, 10_000).unwrap();
        assert_eq!(geometry.block_count(), 3);
        assert_eq!(geometry.bytes_in(BlockRange { first: 1, count: 2 }), 10_000 - 4096);
        assert_eq!(geometry.bytes_in(BlockRange { first: 3, count: 9 }), 0);
    }
}
