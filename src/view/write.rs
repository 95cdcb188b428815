//! Decoded blocks to a target: the last step of restore, rollback and apply.

use crate::base::error::{Error, Result};
use crate::base::units::{ByteRange, Geometry};
use crate::image::write::Target;
use crate::view::{Decoded, Part};

/// Writes a decoded batch, neighbours in one piece, cut to `part`. Returns the number of data bytes.
pub fn write_decoded(
    decoded: &Decoded,
    geometry: Geometry,
    part: ByteRange,
    target: &mut dyn Target,
) -> Result<u64> {
    let size = geometry.block_size.in_memory();
    let (mut data, mut written) = (decoded.bytes.as_slice(), 0);
    let mut parts = decoded.parts.iter().peekable();
    while let Some(first) = parts.next() {
        let mut blocks = first.blocks;
        let kind = first.is_data();
        let follows = |next: &Part, end: u64| next.is_data() == kind && next.blocks.first == end;
        while let Some(next) = parts.next_if(|next| follows(next, blocks.end())) {
            blocks.count += next.blocks.count;
        }
        // The part of these blocks that was asked for.
        let start = geometry.offset(blocks.first).max(part.offset);
        let end = geometry.offset(blocks.end()).min(part.offset + part.bytes);
        let bytes = end.saturating_sub(start);
        if kind {
            let (now, rest) = data.split_at((blocks.count as usize * size).min(data.len()));
            data = rest;
            let skip = (start - geometry.offset(blocks.first)) as usize;
            let short = || Error::corrupt("fewer bytes were decoded than the blocks have");
            let now = now.get(skip..skip + bytes as usize).ok_or_else(short)?;
            written += bytes;
            if !now.is_empty() {
                target.write(start - part.offset, now)?;
            }
        } else if bytes > 0 {
            target.zero(start - part.offset, bytes)?;
        }
    }
    Ok(written)
}
