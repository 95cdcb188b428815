//! From pieces to a file: frames are encoded by many threads, and written in their order.

use super::segment::Piece;
use super::writer::{DeltaWriter, EncodedFrames, LayerOutput};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::Context;
use crate::base::pipeline::{Allowance, growing_map, spawn};
use crate::base::units::BlockRange;
use crate::codec::{self, Compression};
use crate::format::{Header, PartEntry, PartTerms, TablePage};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Decoded bytes of a frame in a base: cheap scattered reads.
pub const BASE_FRAME_BYTES: u32 = 64 << 10;
/// And in a delta: smaller files.
pub const DELTA_FRAME_BYTES: u32 = 128 << 10;
/// Frames that one thread encodes in a row, in decoded bytes: to hand over each one costs a tenth of
/// the work.
const GROUP_BYTES: u64 = 1 << 20;

/// The most that the raw frames of a group take, in bytes.
fn group_memory(header: &Header) -> u64 {
    GROUP_BYTES + header.frame_memory()
}

/// What is to be written next.
enum Ready {
    Frames(EncodedFrames),
    Table(TablePage),
    Cut(BlockRange, PartTerms),
    Keep(PartEntry),
}

/// Takes the pieces of a file, in their order, from whoever makes them.
pub struct PieceSender {
    sender: SyncSender<Vec<Piece>>,
    group: Vec<Piece>,
    group_bytes: u64,
}

impl PieceSender {
    /// Takes pieces, and passes them on in groups of about 1 MiB.
    ///
    /// # Errors
    /// `Interrupted` if the file cannot be written any more.
    pub fn send(&mut self, pieces: impl IntoIterator<Item = Piece>) -> Result<()> {
        for piece in pieces {
            self.group_bytes += piece.memory_bytes();
            self.group.push(piece);
            if self.group_bytes >= GROUP_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Passes on what has been taken.
    fn flush(&mut self) -> Result<()> {
        self.group_bytes = 0;
        let group = std::mem::take(&mut self.group);
        let gone = |_| Error::new(ErrorKind::Interrupted, "the delta cannot be written");
        self.sender.send(group).map_err(gone)
    }
}

/// Writes a file that is begun with `header`, of the pieces that `produce` makes in a thread of its own;
/// `written` receives block counts. Returns the writer, still without footer, and the result of `produce`.
///
/// # Errors
/// Of `out`, of `produce`; `Corrupt` if a frame that is to be copied is damaged.
pub fn write_produced<'a, T: Send>(
    header: &Header,
    compression: Compression,
    context: &Context,
    out: &'a mut dyn LayerOutput,
    written: &mut dyn FnMut(u64),
    produce: impl FnOnce(&mut PieceSender) -> Result<T> + Send,
) -> Result<(DeltaWriter<'a>, T)> {
    let (sender, receiver) = sync_channel(context.in_flight(group_memory(header)));
    std::thread::scope(|threads| {
        let producer = spawn(threads, move || {
            let mut pieces = PieceSender { sender, group: Vec::new(), group_bytes: 0 };
            let produced = produce(&mut pieces)?;
            pieces.flush()?;
            Ok(produced)
        })?;
        let writer = write_pieces(header, compression, context, receiver, out, written);
        let produced = producer.join().unwrap_or_else(|_| {
            let what = "a thread that wrote a delta failed; this is a bug in imgsnap";
            Err(Error::new(ErrorKind::Io, what))
        });
        // If writing failed, the producer only found that nobody listens any more.
        Ok((writer?, produced?))
    })
}

/// Writes what comes from `receiver`, until nobody sends any more.
fn write_pieces<'a>(
    header: &Header,
    compression: Compression,
    context: &Context,
    receiver: Receiver<Vec<Piece>>,
    out: &'a mut dyn LayerOutput,
    written: &mut dyn FnMut(u64),
) -> Result<DeltaWriter<'a>> {
    let mut writer = DeltaWriter::new(header, out);
    let most_threads = compression.most_threads(header.frame_memory()) as u64;
    growing_map(
        || Allowance {
            threads: context.threads().min(context.share_of(most_threads) as usize),
            in_flight: context.in_flight(2 * group_memory(header)),
        },
        move || Ok(receiver.recv().ok()),
        |group| encode(compression, group),
        |group| {
            group.into_iter().try_for_each(|ready| match ready {
                Ready::Frames(frames) => writer.frames(frames),
                Ready::Table(page) => {
                    written(page.digests.len() as u64);
                    writer.table(page)
                }
                Ready::Cut(blocks, terms) => {
                    writer.cut(blocks, terms);
                    Ok(())
                }
                Ready::Keep(part) => writer.keep(part),
            })
        },
    )?;
    Ok(writer)
}

/// Encodes a group of pieces, in their order.
fn encode(compression: Compression, group: Vec<Piece>) -> Result<Vec<Ready>> {
    let (mut ready, mut frames, mut out) = (Vec::new(), EncodedFrames::default(), Vec::new());
    let mut pieces = group.into_iter().peekable();
    while let Some(piece) = pieces.next() {
        match piece {
            Piece::Frame { raw, block_count } => {
                let (codec, payload) = codec::encode(compression, &raw, &mut out)?;
                frames.push(codec, payload, block_count);
            }
            Piece::Copy { part, place, block_count } => {
                // What lies side by side is read at once, to where it is written from.
                let mut row = vec![(place, block_count)];
                let mut end = place.offset + u64::from(place.record_bytes);
                let follows = |next: &Piece, end: u64| match next {
                    Piece::Copy { part: of, place, .. } => {
                        place.offset == end && Arc::ptr_eq(of, &part)
                    }
                    _ => false,
                };
                while let Some(Piece::Copy { place, block_count, .. }) =
                    pieces.next_if(|next| follows(next, end))
                {
                    end += u64::from(place.record_bytes);
                    row.push((place, block_count));
                }
                frames.push_copies(&part, &row)?;
            }
            Piece::Table(page) => {
                ready.push(Ready::Frames(std::mem::take(&mut frames)));
                ready.push(Ready::Table(page));
            }
            Piece::Cut(blocks, terms) => {
                ready.push(Ready::Frames(std::mem::take(&mut frames)));
                ready.push(Ready::Cut(blocks, terms));
            }
            Piece::Keep(part) => {
                ready.push(Ready::Frames(std::mem::take(&mut frames)));
                ready.push(Ready::Keep(part));
            }
        }
    }
    ready.push(Ready::Frames(frames));
    Ok(ready)
}
