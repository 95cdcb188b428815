//! Another disk that may have the same blocks at the same places: what it has need not be fetched and
//! decoded.

use crate::base::events::Context;
use crate::base::units::{BlockRange, Geometry};
use crate::image::{Limited, Source};

/// A disk that blocks are taken from, each only if its digest is the one that is wanted. It may change at any
/// time, and what cannot be read is not there.
pub struct Seed<'a> {
    source: Limited<'a>,
}

impl<'a> Seed<'a> {
    /// A disk, read within the limits of a context.
    pub fn new(source: &'a dyn Source, context: &Context) -> Self {
        Self { source: Limited::new(source, context) }
    }

    /// Copies what it has at some blocks of an image into `buffer`: whole blocks, with zeros beyond the end
    /// of the image, at most as many as are wanted.
    pub(super) fn copy(&self, geometry: Geometry, blocks: BlockRange, buffer: &mut Vec<u8>) {
        let offset = geometry.offset(blocks.first);
        let has = self.source.image_bytes().saturating_sub(offset);
        let bytes = geometry.bytes_in(blocks).min(has) as usize;
        // It only does not help.
        if bytes == 0 || self.source.read_until_bad(offset, bytes, buffer).is_err() {
            buffer.clear();
        }
        buffer.resize(buffer.len().next_multiple_of(geometry.block_size.in_memory()), 0);
    }
}
