//! The verb *snapshot*: scan a source, write the delta file of what changed.
//!
//! ```text
//! scan (threads) -> Segmenter -> channel -> compression (threads) -> DeltaWriter
//! ```
//!
//! The file is the same, byte for byte, however many threads made it.

use crate::base::digest::{DigestAlgorithm, DigestKey, Hasher};
use crate::base::error::Result;
use crate::base::events::{Context, Phase};
use crate::base::units::{BlockSize, Geometry, NamedBlocks};
use crate::chain::Chain;
use crate::codec::Compression;
use crate::delta::{
    BASE_FRAME_BYTES, DELTA_FRAME_BYTES, Identity, PieceSender, Segmenter, Written, write_produced,
};
use crate::format::header::BASE_IMAGE;
use crate::format::{Features, FrameLayout, Header, RunKind};
use crate::image::Source;
use crate::scan::{BadMedium, Change, Changes, Index, Scanned, Scope, scan};
use uuid::Uuid;

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
    /// Store no blocks: the source is a base image, which stays where it is. Only of a base.
    pub is_by_reference: bool,
    /// What becomes of blocks that the medium of the source does not give.
    pub bad_medium: BadMedium,
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
    /// Blocks that the medium did not give.
    pub unread: NamedBlocks,
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
        let bits = if self.is_by_reference { BASE_IMAGE } else { 0 };
        Header {
            features: Features::incompatible(bits),
            file_id: self.file_id,
            image_id: self.image_id,
            block_size,
            frame_blocks: Header::frame_blocks_for(block_size, frame_bytes),
            algorithm,
            key,
        }
    }
}

/// Takes a snapshot of `source`, as much of it as `scope` says, and writes its delta file to `out`.
///
/// # Errors
/// Of the source, of `out`; `Corrupt` if the parent's index is damaged. Then `out` holds no
/// snapshot.
pub fn take(
    source: &dyn Source,
    plan: &Plan,
    scope: Scope,
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
    let phase = context.begin(Phase::Scan, geometry.image_bytes);
    let produce = |pieces: &mut PieceSender| {
        scan_into(source, &index, scope, plan.bad_medium, &header, context, pieces)
    };
    let outcome = write_produced(&header, plan.compression, context, out, &mut |_| {}, produce);
    drop(phase);
    let (writer, (scanned, counted)) = outcome?;
    let written =
        writer.finish(&plan.identity, lineage, geometry.image_bytes, scanned.image_digest)?;
    let Counted { changed_blocks, changed_bytes, unread } = counted;
    Ok(Taken { written, scanned, changed_blocks, changed_bytes, unread })
}

/// Scans, cuts, and hands over the pieces. Returns what was found, and what was passed on.
fn scan_into(
    source: &dyn Source,
    index: &Index<'_>,
    scope: Scope,
    bad_medium: BadMedium,
    header: &Header,
    context: &Context,
    pieces: &mut PieceSender,
) -> Result<(Scanned, Counted)> {
    let geometry = Geometry::new(header.block_size, source.image_bytes())?;
    let mut segmenter = match header.layout() {
        FrameLayout::Absent => Segmenter::of_tables(header.block_size),
        _ => Segmenter::new(header.block_size, header.frame_blocks),
    };
    let mut counted = Counted::default();
    let scanned = scan(source, index, scope, bad_medium, context, |changes: &Changes| {
        let mut blocks = changes.bytes.chunks_exact(header.block_size.in_memory());
        for change in &changes.list {
            match *change {
                Change::Data(block, digest) => {
                    segmenter.data(block, digest, blocks.next().unwrap_or_default());
                }
                Change::Zero(range) => segmenter.run(RunKind::Zero, range),
                Change::Unread(range) => {
                    segmenter.run(RunKind::Unread, range);
                    counted.unread.add(range);
                }
            }
            let range = change.blocks();
            counted.changed_blocks +=
                range.end().min(geometry.block_count()).saturating_sub(range.first);
            counted.changed_bytes += geometry.bytes_in(range);
            pieces.send(segmenter.pieces())?;
        }
        Ok(())
    })?;
    pieces.send(segmenter.finish())?;
    Ok((scanned, counted))
}

/// What was passed on.
#[derive(Default)]
struct Counted {
    changed_blocks: u64,
    changed_bytes: u64,
    unread: NamedBlocks,
}
