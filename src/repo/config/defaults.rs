//! The table `[new]`: with what a new base is made (FORMAT.md P1).

use crate::base::digest::DigestAlgorithm;
use crate::base::error::{Error, Result};
use crate::base::units::{BlockSize, PartSize};
use crate::codec::Compression;
use crate::repo::policy::{invalid, text};
use std::fmt;
use toml::{Table, Value};

/// With what a new base is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Defaults {
    /// Unit of comparison.
    pub block_size: BlockSize,
    /// Digest of blocks.
    pub digest: DigestAlgorithm,
    /// Compression; of deltas, too.
    pub compression: Compression,
    /// On which grid images are cut into parts; smaller ones are one file.
    pub part_size: PartSize,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            block_size: BlockSize::DEFAULT,
            digest: DigestAlgorithm::default(),
            compression: Compression::default(),
            part_size: PartSize::USUAL,
        }
    }
}

impl fmt::Display for Defaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} blocks, {}, {}", self.block_size, self.digest, self.compression)?;
        match self.part_size {
            PartSize::USUAL => Ok(()),
            size => write!(f, ", {size} parts"),
        }
    }
}

impl Defaults {
    /// Reads the table.
    ///
    /// # Errors
    /// `InvalidInput`, with the key.
    pub(super) fn read(table: &Table) -> Result<Self> {
        let known = ["block_size", "digest", "compression", "part_size"];
        if let Some(key) = table.keys().find(|key| !known.contains(&key.as_str())) {
            return Err(invalid("unknown key").at(key.escape_debug()));
        }
        let at = |key: &'static str| move |e: Error| e.at(key);
        let part_size = table.get("part_size").map(|value| PartSize::new(bytes(value)?));
        Ok(Self {
            block_size: given(table, "block_size")
                .and_then(|value| BlockSize::new(u32::try_from(bytes(value)?).unwrap_or(u32::MAX)))
                .map_err(at("block_size"))?,
            digest: given(table, "digest")
                .and_then(|value| text(value)?.parse())
                .map_err(at("digest"))?,
            compression: given(table, "compression")
                .and_then(|value| text(value)?.parse())
                .map_err(at("compression"))?,
            part_size: part_size.unwrap_or(Ok(PartSize::USUAL)).map_err(at("part_size"))?,
        })
    }

    /// The compression alone, whatever else the table has.
    pub(super) fn compression_in(table: &Table) -> Option<Compression> {
        table.get("compression")?.as_str()?.parse().ok()
    }

    /// The table that says so.
    pub(super) fn table(&self) -> Table {
        let Self { block_size, digest, compression, part_size } = self;
        let mut table = Table::new();
        let mut set = |key: &str, value: Value| table.insert(key.to_owned(), value);
        set("block_size", Value::Integer(block_size.bytes().into()));
        set("digest", Value::String(digest.to_string()));
        set("compression", Value::String(compression.to_string()));
        if let Some(bytes) =
            i64::try_from(part_size.bytes()).ok().filter(|_| *part_size != PartSize::USUAL)
        {
            set("part_size", Value::Integer(bytes));
        }
        table
    }
}

fn given<'a>(table: &'a Table, key: &str) -> Result<&'a Value> {
    table.get(key).ok_or_else(|| invalid("missing"))
}

fn bytes(value: &Value) -> Result<u64> {
    let bytes = value.as_integer().and_then(|bytes| u64::try_from(bytes).ok());
    bytes.ok_or_else(|| invalid("expected a number of bytes, such as 4096"))
}
