//! What one snapshot stores: cutting frames and pages, writing them, reading them back.
//!
//! ```text
//! entries -> Segmenter -> Piece -> (compression, by many threads) -> DeltaWriter -> bytes
//! bytes -> Delta (a layer) -> Part (a file) -> TableCursor -> entries; Part::frame -> blocks
//! ```

mod caches;
mod cursor;
mod layer;
mod pack;
mod part;
mod scrub;
mod segment;
mod walk;
mod writer;

pub use caches::{Caches, Traffic};
pub use cursor::{TableCursor, TablePrefetcher};
pub use layer::{Delta, DeltaFile, Missing, ReadGuard};
pub use pack::{BASE_FRAME_BYTES, DELTA_FRAME_BYTES, PieceSender, write_produced};
pub use part::{Part, PartContent};
pub use scrub::{Depth, scrub, scrub_part};
pub use segment::{PAGE_ITEMS, PAGE_SPAN, Piece, Segmenter};
pub use walk::PartCursor;
pub use writer::{
    DeltaWriter, EncodedFrames, Identity, LayerOutput, Written, WrittenPart, write_layer_file,
};
