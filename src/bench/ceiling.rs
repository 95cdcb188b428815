//! What the machine can do at most: the bytes of a piece of work through the same number of
//! threads, with as little done on them as can be.

use crate::base::error::{Error, Result};
use crate::base::events::Context;
use crate::base::pipeline::ordered_map;
use crate::base::units::ExtentKind;
use crate::base::uri::Shown;
use crate::codec::{self, Compression};
use crate::delta::{Delta, Part, TableCursor};
use crate::format::record::RECORD_HEAD_BYTES;
use crate::format::{FrameRef, RecordKind};
use crate::image::write::{NewFile, Target};
use crate::image::{RawFile, Source};
use crate::scan::window_bytes;
use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// Bytes of an image, ascending: offset and length.
pub type Pieces = Vec<(u64, u64)>;

/// The data of an image, in pieces of at most `piece_bytes` that end at multiples of it.
pub fn data_of(image: &dyn Source, piece_bytes: u64) -> Result<Pieces> {
    let (mut pieces, mut position) = (Pieces::new(), 0);
    while position < image.image_bytes() {
        let extent = image.extent_at(position)?;
        let end = extent.offset + extent.bytes;
        while position < end {
            let cut = (position / piece_bytes + 1) * piece_bytes;
            let next = end.min(cut);
            if extent.kind == ExtentKind::Data {
                pieces.push((position, next - position));
            }
            position = next;
        }
    }
    Ok(pieces)
}

/// Runs `work` for groups of items on the threads of `context`.
fn on_threads<T: Sync>(
    items: &[T],
    group: usize,
    context: &Context,
    work: impl Fn(&[T]) -> Result<()> + Sync,
) -> Result<()> {
    let mut groups = items.chunks(group);
    let threads = context.threads();
    let produce = || context.check().map(|()| groups.next());
    ordered_map(threads, threads + 2, produce, work, Ok)
}

/// Every cache line of the image read and summed, mapped in the windows of the scan.
pub fn read_mapped(path: &Path, context: &Context) -> Result<()> {
    let image = RawFile::open(path)?;
    let pieces = data_of(&image, window_bytes(context.threads()))?;
    on_threads(&pieces, 1, context, |group| {
        let mut buffer = Vec::new();
        for &(offset, bytes) in group {
            let window = image.read(offset, bytes as usize, &mut buffer)?;
            let words = window.bytes().chunks(64).filter_map(<[u8]>::first_chunk::<8>);
            black_box(words.fold(0u64, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word))));
        }
        Ok(())
    })
}

/// The data of the image compressed in frames, from memory to memory.
pub fn compress(
    path: &Path,
    compression: Compression,
    frame_bytes: u64,
    context: &Context,
) -> Result<()> {
    let image = RawFile::open(path)?;
    let window = window_bytes(context.threads());
    let pieces = data_of(&image, window)?;
    on_threads(&pieces, 1, context, |group| {
        let (mut buffer, mut out) = (Vec::new(), Vec::new());
        for &(offset, bytes) in group {
            let window = image.read(offset, bytes as usize, &mut buffer)?;
            for frame in window.bytes().chunks(frame_bytes as usize) {
                black_box(codec::encode(compression, frame, &mut out)?);
            }
        }
        Ok(())
    })
}

/// Every frame of the files decoded, and every block of it digested: nothing compared.
pub fn decode(deltas: &[Arc<Delta>], context: &Context) -> Result<()> {
    for delta in deltas {
        let size = delta.header().block_size.in_memory();
        on_threads(&frames_of(delta)?, 16, context, |group| {
            let (mut raw, mut record) = (Vec::new(), Vec::new());
            for (part, place) in group {
                let head = part.load_record(*place, &mut record)?;
                let RecordKind::Frame { codec, block_count } = head.kind else { continue };
                raw.resize(usize::from(block_count) * size, 0);
                let payload = record.get(RECORD_HEAD_BYTES..).unwrap_or_default();
                codec::decode(codec, payload, &mut raw)?;
                raw.chunks(size).for_each(|block| {
                    black_box(delta.hasher().digest(block));
                });
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn frames_of(delta: &Arc<Delta>) -> Result<Vec<(Arc<Part>, FrameRef)>> {
    let mut cursor = TableCursor::new(delta.clone());
    let mut frames = Vec::new();
    cursor.seek(0)?;
    while let Some((part, page)) = cursor.page() {
        frames.extend(page.frames.iter().map(|frame| (part.clone(), *frame)));
        let end = page.bounds().end();
        cursor.seek(end)?;
    }
    Ok(frames)
}

/// The pieces written to a new file of `bytes` bytes, and synced.
pub fn write_new(path: &Path, bytes: u64, pieces: &Pieces) -> Result<()> {
    let mut target = NewFile::create(path, bytes, false)?;
    let noise = noise(pieces);
    for &(offset, bytes) in pieces {
        target.write(offset, noise.get(..bytes as usize).unwrap_or_default())?;
        target.advance_watermark(offset + bytes)?;
    }
    target.finish()
}

/// The pieces written over those of a file, and synced.
pub fn write_over(path: &Path, pieces: &Pieces) -> Result<()> {
    let failed = |e| Error::os("write", path.shown(), e);
    let file = File::options().write(true).open(path).map_err(failed)?;
    let noise = noise(pieces);
    for &(offset, bytes) in pieces {
        let bytes = noise.get(..bytes as usize).unwrap_or_default();
        file.write_all_at(bytes, offset).map_err(failed)?;
    }
    file.sync_all().map_err(failed)
}

/// The pieces read one after the other.
pub fn read_pieces(path: &Path, pieces: &Pieces) -> Result<()> {
    let failed = |e| Error::os("read", path.shown(), e);
    let file = File::open(path).map_err(failed)?;
    let mut buffer = noise(pieces);
    for &(offset, bytes) in pieces {
        let into = buffer.get_mut(..bytes as usize).unwrap_or_default();
        file.read_exact_at(into, offset).map_err(failed)?;
    }
    Ok(())
}

/// Bytes that no device makes smaller, as long as the longest piece.
fn noise(pieces: &Pieces) -> Vec<u8> {
    let longest = pieces.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0);
    let mut bytes = vec![0; longest as usize];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}
