//! The verb *snapshot*: scan a source, write the delta file of what changed.
//!
//! ```text
//! scan (threads) -> Segmenter -> channel -> compression (threads) -> DeltaWriter
//! ```
//!
//! The file is the same, byte for byte, however many threads made it.

mod cutter;
mod part_runs;

use crate::base::digest::{DigestAlgorithm, DigestKey, Hasher};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::{Context, Phase};
use crate::base::units::{BlockRange, BlockSize, Geometry, NamedBlocks};
use crate::chain::Chain;
use crate::codec::Compression;
use crate::delta::{
    BASE_FRAME_BYTES, DELTA_FRAME_BYTES, Identity, LayerOutput, Part, PieceSender, Segmenter,
    Written, WrittenPart, write_produced,
};
use crate::format::header::BASE_IMAGE;
use crate::format::{Features, FrameLayout, Header, Lineage, PartFooter, RunKind};
use crate::image::Source;
use crate::scan::{BadMedium, Change, Changes, Index, Scanned, Scope, scan, scan_on_grid};
use cutter::Cutter;
use part_runs::PartRuns;
use std::sync::Arc;
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

impl Parent {
    /// What the chain is made with.
    pub fn parameters(&self) -> ChainParameters {
        match self {
            Self::None(parameters) => *parameters,
            Self::Tip(chain) => ChainParameters {
                block_size: chain.geometry().block_size,
                algorithm: chain.hasher().algorithm(),
                key: chain.hasher().key(),
            },
        }
    }
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
    /// On which grid, in blocks, it may be cut into parts; none if it is one file in any case.
    pub cell_blocks: Option<u64>,
}

/// A snapshot that was taken.
#[derive(Debug, Clone, PartialEq)]
pub struct Taken {
    /// Footer of the file, and its digest.
    pub written: Written,
    /// What the scan found.
    pub scanned: Scanned,
    /// What has a run.
    pub counted: Counted,
}

/// A part of a snapshot that was taken.
#[derive(Debug, Clone, PartialEq)]
pub struct TakenPart {
    /// Footer of the file, and its digest.
    pub written: WrittenPart,
    /// What the scan found.
    pub scanned: Scanned,
    /// What has a run.
    pub counted: Counted,
}

/// What has a run in the files of a snapshot.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Counted {
    /// Blocks of the image.
    pub changed_blocks: u64,
    /// Bytes of the image in them.
    pub changed_bytes: u64,
    /// Blocks that the medium did not give.
    pub unread: NamedBlocks,
}

impl Counted {
    fn add(&mut self, change: &Change, geometry: Geometry) {
        let range = change.blocks();
        self.changed_blocks += range.end().min(geometry.block_count()).saturating_sub(range.first);
        self.changed_bytes += geometry.bytes_in(range);
        if let Change::Unread(range) = change {
            self.unread.add(*range);
        }
    }

    /// Adds what another range has, which comes after it.
    pub fn add_all(&mut self, other: Self) {
        self.changed_blocks += other.changed_blocks;
        self.changed_bytes += other.changed_bytes;
        self.unread.append(other.unread);
    }
}

impl Taken {
    /// True if the image is what it was at the parent, its length included.
    pub fn is_unchanged(&self) -> bool {
        let footer = &self.written.footer;
        footer.parent.is_some_and(|p| p.image_bytes == footer.image_bytes) && footer.root.is_none()
    }
}

impl Plan {
    /// The header of its files.
    pub(crate) fn header(&self) -> Header {
        let frame_bytes = match &self.parent {
            Parent::None(_) => BASE_FRAME_BYTES,
            Parent::Tip(_) => DELTA_FRAME_BYTES,
        };
        let parameters = self.parent.parameters();
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
    out: &mut dyn LayerOutput,
) -> Result<Taken> {
    let header = plan.header();
    let geometry = Geometry::new(header.block_size, source.image_bytes())?;
    let hasher = Hasher::new(header.algorithm, header.key);
    let index = index_of(plan, &hasher)?;
    let lineage = lineage_of(plan);
    let phase = context.begin(Phase::Scan, geometry.image_bytes);
    let cell_blocks = plan.cell_blocks.filter(|cell| geometry.block_count() > *cell);
    let produce = |pieces: &mut PieceSender| {
        scan_into(source, &index, scope, cell_blocks, plan.bad_medium, &header, context, pieces)
    };
    let outcome = write_produced(&header, plan.compression, context, out, &mut |_| {}, produce);
    drop(phase);
    let (writer, (scanned, counted)) = outcome?;
    let writer = writer.on_grid(cell_blocks.unwrap_or(0));
    let written =
        writer.finish(&plan.identity, lineage, geometry.image_bytes, scanned.image_digest)?;
    Ok(Taken { written, scanned, counted })
}

/// Takes what a snapshot has of the blocks in `range`, and writes it as a part file to `out`.
///
/// # Errors
/// As of [`take`].
pub fn take_part(
    source: &dyn Source,
    plan: &Plan,
    range: BlockRange,
    context: &Context,
    out: &mut dyn LayerOutput,
) -> Result<TakenPart> {
    let header = Header { file_id: Uuid::new_v4(), ..plan.header() };
    let hasher = Hasher::new(header.algorithm, header.key);
    let index = index_of(plan, &hasher)?;
    let scope = Scope::Range(range);
    let produce = |pieces: &mut PieceSender| {
        scan_into(source, &index, scope, None, plan.bad_medium, &header, context, pieces)
    };
    let outcome = write_produced(&header, plan.compression, context, out, &mut |_| {}, produce);
    let (writer, (scanned, counted)) = outcome?;
    let written = writer.finish_part(range, scanned.terms)?;
    Ok(TakenPart { written, scanned, counted })
}

/// Holds the blocks in the range of a part against it. None if they are not what it has.
///
/// # Errors
/// Of the source; `Corrupt` if the part is damaged.
pub fn compare_part(
    source: &dyn Source,
    plan: &Plan,
    part: Arc<Part>,
    footer: &PartFooter,
    context: &Context,
) -> Result<Option<(Scanned, Counted)>> {
    let header = plan.header();
    let geometry = Geometry::new(header.block_size, source.image_bytes())?;
    let hasher = Hasher::new(header.algorithm, header.key);
    let index = index_of(plan, &hasher)?;
    let mut known = PartRuns::new(part)?;
    let mut counted = Counted::default();
    let scope = Scope::Range(footer.blocks);
    // What differs ends the comparison.
    let differs = || Error::new(ErrorKind::Mismatch, "the image is not what the part has");
    let scanned = scan(source, &index, scope, plan.bad_medium, context, |changes: &Changes| {
        for change in &changes.list {
            counted.add(change, geometry);
            if !known.take(change)? {
                return Err(differs());
            }
        }
        Ok(())
    });
    match scanned {
        Err(e) if e.kind() == ErrorKind::Mismatch => Ok(None),
        Ok(scanned) if !known.is_at_end() || scanned.terms != footer.terms => Ok(None),
        scanned => Ok(Some((scanned?, counted))),
    }
}

fn index_of<'a>(plan: &'a Plan, hasher: &'a Hasher) -> Result<Index<'a>> {
    Ok(match &plan.parent {
        Parent::None(parameters) => Index::Nothing(hasher, parameters.block_size),
        Parent::Tip(chain) => {
            chain.check_extendable()?;
            Index::Parent(chain)
        }
    })
}

pub(crate) fn lineage_of(plan: &Plan) -> Option<Lineage> {
    match &plan.parent {
        Parent::None(_) => None,
        Parent::Tip(chain) => Some(chain.as_parent()),
    }
}

/// Scans, cuts, and hands over the pieces. Returns what was found, and what was passed on.
#[expect(clippy::too_many_arguments, reason = "what a scan needs, and where it goes")]
fn scan_into(
    source: &dyn Source,
    index: &Index<'_>,
    scope: Scope,
    cell_blocks: Option<u64>,
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
    let mut cutter = cell_blocks.map(Cutter::new);
    let cut = |changes: &Changes, segmenter: &mut Segmenter, cutter: &mut Option<Cutter>| {
        if let Some((range, terms)) = cutter.as_mut().and_then(|cutter| cutter.window(changes)) {
            segmenter.cut(range, terms);
        }
    };
    let scanned =
        scan_on_grid(source, index, scope, cell_blocks, bad_medium, context, |changes| {
            cut(changes, &mut segmenter, &mut cutter);
            let mut blocks = changes.bytes.chunks_exact(header.block_size.in_memory());
            for change in &changes.list {
                match *change {
                    Change::Data(block, digest) => {
                        segmenter.data(block, digest, blocks.next().unwrap_or_default());
                    }
                    Change::Zero(range) => segmenter.run(RunKind::Zero, range),
                    Change::Unread(range) => segmenter.run(RunKind::Unread, range),
                }
                counted.add(change, geometry);
                pieces.send(segmenter.pieces())?;
            }
            Ok(())
        })?;
    if let Some((range, terms)) = cutter.and_then(Cutter::finish) {
        segmenter.cut(range, terms);
    }
    pieces.send(segmenter.finish())?;
    Ok((scanned, counted))
}
