//! The verb *snapshot*: scan a source, write the delta file of what changed.
//!
//! ```text
//! scan (threads) -> Segmenter -> channel -> compression (threads) -> DeltaWriter
//! ```
//!
//! The file is the same, byte for byte, however many threads made it.

use crate::chain::Chain;
use crate::codec::{self, Compression};
use crate::delta::{DeltaWriter, EncodedFrames, Identity, Piece, Segmenter, Written};
use crate::digest::{DigestAlgorithm, DigestKey, Hasher};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{Features, Header, RunKind, TablePage};
use crate::pipeline::{Allowance, growing_map};
use crate::progress::Context;
use crate::scan::{Change, Changes, Index, Scanned, scan};
use crate::source::Source;
use crate::units::{BlockRange, BlockSize, Geometry};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use uuid::Uuid;

/// Decoded bytes of a frame in a base: cheap scattered reads.
pub const BASE_FRAME_BYTES: u32 = 64 << 10;
/// And in a delta: smaller files.
const DELTA_FRAME_BYTES: u32 = 128 << 10;
/// What a new chain is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainParameters {
    /// Unit of comparison.
    pub block_size: BlockSize,
    /// Digest of blocks.
    pub algorithm: DigestAlgorithm,
    /// Its key.
    pub key: DigestKey,
}

/// What a snapshot is taken against.
#[derive(Clone)]
pub enum Parent {
    /// Nothing: it becomes a base.
    None(ChainParameters),
    /// The tip of a chain.
    Tip(Chain),
}

/// A snapshot that is to be taken.
pub struct Plan {
    /// Against what.
    pub parent: Parent,
    /// Its name, number and time.
    pub identity: Identity,
    /// Identity of the file.
    pub file_id: Uuid,
    /// Identity of the image.
    pub image_id: Uuid,
    /// How to compress.
    pub compression: Compression,
}

/// A snapshot that was taken.
#[derive(Debug, Clone, PartialEq)]
pub struct Taken {
    /// Footer of the file, and its digest.
    pub written: Written,
    /// What the scan found.
    pub scanned: Scanned,
    /// Blocks of the image that have a run in the file.
    pub changed_blocks: u64,
    /// Bytes of the image in them.
    pub changed_bytes: u64,
}

impl Taken {
    /// True if the image is what it was at the parent, its length included.
    pub fn is_unchanged(&self) -> bool {
        let footer = &self.written.footer;
        footer.parent.is_some_and(|p| p.image_bytes == footer.image_bytes) && footer.root.is_none()
    }
}

impl Plan {
    fn header(&self) -> Header {
        let (frame_bytes, parameters) = match &self.parent {
            Parent::None(parameters) => (BASE_FRAME_BYTES, *parameters),
            Parent::Tip(chain) => (
                DELTA_FRAME_BYTES,
                ChainParameters {
                    block_size: chain.geometry().block_size,
                    algorithm: chain.hasher().algorithm(),
                    key: chain.hasher().key(),
                },
            ),
        };
        let ChainParameters { block_size, algorithm, key } = parameters;
        Header {
            features: Features::default(),
            file_id: self.file_id,
            image_id: self.image_id,
            block_size,
            frame_blocks: Header::frame_blocks_for(block_size, frame_bytes),
            algorithm,
            key,
        }
    }
}

/// Takes a snapshot of `source` and writes its delta file to `out`.
///
/// # Errors
/// Of the source, of `out`; `Corrupt` if the parent's index is damaged. Then `out` holds no
/// snapshot.
pub fn take(
    source: &dyn Source,
    plan: &Plan,
    context: &Context,
    out: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<Taken> {
    let header = plan.header();
    let geometry = Geometry::new(header.block_size, source.image_bytes())?;
    let hasher = Hasher::new(header.algorithm, header.key);
    let (index, lineage) = match &plan.parent {
        Parent::None(_) => (Index::Nothing(&hasher, header.block_size), None),
        Parent::Tip(chain) => {
            chain.check_extendable()?;
            (Index::Parent(chain), Some(chain.as_parent()))
        }
    };
    context.progress().begin("scan", geometry.image_bytes);
    let (sender, receiver) = sync_channel(context.in_flight(group_memory(&header)));
    let outcome = std::thread::scope(|scope| {
        let scanner = scope.spawn(|| scan_into(source, &index, geometry, &header, context, sender));
        let written = write_pieces(&header, plan.compression, context, receiver, out);
        let scanned = scanner.join().unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Io, "the scan failed; this is a fault of imgsnap"))
        });
        // If writing failed, the scan only found that nobody listens any more.
        let writer = written?;
        let (scanned, counted) = scanned?;
        Ok((writer, scanned, counted))
    });
    context.progress().end();
    let (writer, scanned, counted) = outcome?;
    let written =
        writer.finish(&plan.identity, lineage, geometry.image_bytes, scanned.image_digest)?;
    let (changed_blocks, changed_bytes) = counted;
    Ok(Taken { written, scanned, changed_blocks, changed_bytes })
}

/// Scans and cuts, and sends the pieces. Gives what was found, and changed blocks and bytes.
fn scan_into(
    source: &dyn Source,
    index: &Index<'_>,
    geometry: Geometry,
    header: &Header,
    context: &Context,
    sender: SyncSender<Vec<Piece>>,
) -> Result<(Scanned, (u64, u64))> {
    let mut segmenter = Segmenter::new(header.block_size, header.frame_blocks);
    let (mut changed_blocks, mut changed_bytes) = (0, 0);
    let send = |group| {
        let gone = |_| Error::new(ErrorKind::Interrupted, "the delta cannot be written");
        sender.send(group).map_err(gone)
    };
    let (mut group, mut group_bytes) = (Vec::new(), 0);
    let scanned = scan(source, index, context, |changes: &Changes| {
        let mut blocks = changes.bytes.chunks_exact(header.block_size.in_memory());
        for change in &changes.list {
            let range = match *change {
                Change::Data(block, digest) => {
                    segmenter.data(block, digest, blocks.next().unwrap_or_default());
                    BlockRange { first: block, count: 1 }
                }
                Change::Zero(range) => {
                    segmenter.run(RunKind::Zero, range);
                    range
                }
            };
            changed_blocks += range.end().min(geometry.block_count()).saturating_sub(range.first);
            changed_bytes += geometry.bytes_in(range);
            for piece in segmenter.pieces() {
                group_bytes += piece.raw_bytes();
                group.push(piece);
            }
            if group_bytes >= GROUP_BYTES {
                group_bytes = 0;
                send(std::mem::take(&mut group))?;
            }
        }
        Ok(())
    })?;
    group.extend(segmenter.finish());
    send(group)?;
    Ok((scanned, (changed_blocks, changed_bytes)))
}

/// Frames that one thread compresses in a row: to hand over each one costs a tenth of the work.
const GROUP_BYTES: u64 = 1 << 20;

/// The most that the raw frames of a group take, in bytes.
fn group_memory(header: &Header) -> u64 {
    GROUP_BYTES + header.frame_memory()
}

/// What is to be written next.
enum Ready {
    Frames(EncodedFrames),
    Table(TablePage),
}

/// Compresses a group of pieces, in their order.
fn encode(compression: Compression, group: Vec<Piece>) -> Result<Vec<Ready>> {
    let (mut ready, mut frames, mut out) = (Vec::new(), EncodedFrames::default(), Vec::new());
    for piece in group {
        match piece {
            Piece::Frame { raw, block_count } => {
                let (codec, payload) = codec::encode(compression, &raw, &mut out)?;
                frames.push(codec, payload, block_count);
            }
            Piece::Table(page) => {
                ready.push(Ready::Frames(std::mem::take(&mut frames)));
                ready.push(Ready::Table(page));
            }
        }
    }
    ready.push(Ready::Frames(frames));
    Ok(ready)
}

fn write_pieces<'a>(
    header: &Header,
    compression: Compression,
    context: &Context,
    receiver: Receiver<Vec<Piece>>,
    out: &'a mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<DeltaWriter<'a>> {
    let mut writer = DeltaWriter::new(header, out)?;
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
                Ready::Table(page) => writer.table(page),
            })
        },
    )?;
    Ok(writer)
}

/// Writes the delta file of a snapshot whose image is known to be what it was at the tip of
/// `chain`.
pub fn take_unchanged(
    chain: &Chain,
    plan: &Plan,
    out: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<Taken> {
    chain.check_extendable()?;
    let image_digest = chain.image_digest();
    let image_bytes = chain.geometry().image_bytes;
    let writer = DeltaWriter::new(&plan.header(), out)?;
    let parent = Some(chain.as_parent());
    let written = writer.finish(&plan.identity, parent, image_bytes, image_digest)?;
    let scanned = Scanned { image_digest, read_bytes: 0 };
    Ok(Taken { written, scanned, changed_blocks: 0, changed_bytes: 0 })
}
