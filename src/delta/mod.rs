//! One snapshot's file: cutting frames and pages, writing them, reading them back.
//!
//! ```text
//! entries -> Segmenter -> Piece -> (compression, by many threads) -> DeltaWriter -> bytes
//! bytes -> Delta -> TableCursor -> entries; Delta::frame -> blocks
//! ```

mod cursor;
mod pack;
mod reader;
mod scrub;
mod segment;
mod writer;

pub use cursor::{TableCursor, TablePrefetcher};
pub use pack::{BASE_FRAME_BYTES, DELTA_FRAME_BYTES, PieceSender, write_produced};
pub use reader::{Caches, Delta, ReadGuard, Traffic};
pub use scrub::{Depth, scrub};
pub use segment::{PAGE_ITEMS, PAGE_SPAN, Piece, Segmenter};
pub use writer::{DeltaWriter, EncodedFrames, Identity, Written};
