//! Disks in qcow2 files that nobody writes to, read by ourselves.
//!
//! ```text
//! RawFile -> Header -> BackingChain (every file open, held and checked) -> Layer, Layer, ... -> Qcow2Image
//! ```
//!
//! A snapshot is of the guest's disk, as it is now: not of the container, and not of its internal snapshots.

mod backing;
mod bitmaps;
mod extensions;
mod header;
mod layer;
mod source;
mod tables;
#[cfg(test)]
mod tests;

pub use backing::{BackingChain, ChainFile, MAX_FILES};
pub use bitmaps::Bitmap;
pub use extensions::BitmapDirectory;
pub use header::{Backing, Compression, HEAD_BYTES, Header};
pub use source::Qcow2Image;
