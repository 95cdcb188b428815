//! The bytes of a delta file, as specified by FORMAT.md: decoders from bytes to checked types, and encoders
//! back. No I/O.
//!
//! ```text
//! header | FRAM FRAM .. TABL | FRAM .. TABL | .. INDX .. | footer
//! ```
//!
//! All input is treated as hostile: a decoder checks every length and count before it calculates with it or
//! allocates memory for it, and never panics. Each module keeps a stored structure, its decoder and its
//! encoder side by side.

pub mod footer;
pub mod header;
pub mod index;
pub mod part;
pub mod record;
pub mod table;

pub use footer::{Counts, Footer, Lineage, RootRef};
pub use header::{Content, Features, FrameLayout, Header};
pub use index::{ChildRef, IndexPage};
pub use part::{PartEntry, PartFooter, PartTable, PartTerms};
pub use record::{RecordHead, RecordKind};
pub use table::{FrameRef, Run, RunKind, TablePage};

use crate::base::error::{Error, Result};
use zerocopy::FromBytes;

/// One past the highest block that a table can name (FORMAT.md T1).
pub const MAX_BLOCKS: u64 = 1 << 50;

/// The CRC-32 of `bytes` (FORMAT.md K1).
fn crc32(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// Takes `count` items of type `T` from the front of `bytes` and leaves the rest in `bytes`.
fn take<'a, T>(bytes: &mut &'a [u8], count: usize, what: &str) -> Result<&'a [T]>
where
    T: zerocopy::FromBytes + zerocopy::KnownLayout + zerocopy::Immutable + zerocopy::Unaligned,
{
    let whole = *bytes;
    let (items, rest) = <[T]>::ref_from_prefix_with_elems(whole, count)
        .map_err(|_| Error::corrupt(format!("the page ends within its {what}")))?;
    *bytes = rest;
    Ok(items)
}

/// Takes one structure from the front of `bytes`.
fn take_one<'a, T>(bytes: &mut &'a [u8], what: &str) -> Result<&'a T>
where
    T: zerocopy::FromBytes + zerocopy::KnownLayout + zerocopy::Immutable + zerocopy::Unaligned,
{
    let whole = *bytes;
    let (item, rest) = T::ref_from_prefix(whole)
        .map_err(|_| Error::corrupt(format!("the page ends within its {what}")))?;
    *bytes = rest;
    Ok(item)
}
