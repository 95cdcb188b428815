//! Compares two disks: by their tables where both are of one chain, otherwise by reading them.

use crate::base::error::Result;
use crate::base::events::{Context, Phase};
use crate::base::pipeline::ordered_map;
use crate::base::units::{BlockRange, BlockSize, ByteRange, Geometry};
use crate::chain::{Chain, Comparison};
use crate::image::{Limited, Source, Window};
use crate::scan::{BadMedium, Change, Index, Scope, scan};
use crate::view::SnapshotView;
use serde::Serialize;

/// What is compared.
pub enum Side {
    /// A snapshot.
    Snapshot(Chain),
    /// An image.
    Image(Box<dyn Source + Send>),
}

/// Regions of the map of a disk.
pub const MAP_REGIONS: usize = 256;

/// Where two disks differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Difference {
    /// Unit of the comparison.
    pub block_size: BlockSize,
    /// Lengths of the two.
    pub image_bytes: (u64, u64),
    /// Bytes in blocks that differ, of the longer one.
    pub changed_bytes: u64,
    /// Blocks that differ.
    pub changed_blocks: u64,
    /// Runs of such blocks. Only the first million are kept.
    pub extents: Vec<ByteRange>,
    /// How many there are.
    pub extent_count: u64,
    /// Changed bytes in each of [`MAP_REGIONS`] equal parts of the longer disk.
    pub map: Vec<u64>,
    /// True if only tables were compared.
    pub from_tables: bool,
    last_end: u64,
}

const MAX_EXTENTS: u64 = 1_000_000;
/// Bytes that are compared at a time where both sides have to be read.
const STEP_BYTES: u64 = 2 << 20;

impl Difference {
    fn new(geometry: Geometry, image_bytes: (u64, u64)) -> (Self, Geometry) {
        let difference = Self {
            block_size: geometry.block_size,
            image_bytes,
            changed_bytes: 0,
            changed_blocks: 0,
            extents: Vec::new(),
            extent_count: 0,
            map: vec![0; MAP_REGIONS],
            from_tables: false,
            last_end: 0,
        };
        (difference, geometry)
    }

    /// Adds blocks, in ascending order.
    fn add(&mut self, geometry: Geometry, blocks: BlockRange) {
        let (offset, bytes) = (geometry.offset(blocks.first), geometry.bytes_in(blocks));
        if bytes == 0 {
            return;
        }
        self.changed_blocks += blocks.count;
        self.changed_bytes += bytes;
        let is_next = self.extent_count > 0 && self.last_end == offset;
        self.last_end = offset + bytes;
        self.extent_count += u64::from(!is_next);
        if self.extent_count <= MAX_EXTENTS {
            match self.extents.last_mut() {
                Some(last) if is_next => last.bytes += bytes,
                _ => self.extents.push(ByteRange { offset, bytes }),
            }
        }
        self.mark(geometry, offset, bytes);
    }

    fn mark(&mut self, geometry: Geometry, offset: u64, bytes: u64) {
        let region_bytes = geometry.image_bytes.div_ceil(MAP_REGIONS as u64).max(1);
        let (mut at, end) = (offset, offset + bytes);
        while at < end {
            let region = at / region_bytes;
            let stop = ((region + 1) * region_bytes).min(end);
            if let Some(sum) = self.map.get_mut(region as usize) {
                *sum += stop - at;
            }
            at = stop;
        }
    }
}

/// Compares two disks: from tables where that can be, by digests where one is a snapshot, else byte
/// by byte.
pub fn diff(before: Side, after: Side, context: &Context) -> Result<Difference> {
    match (before, after) {
        (Side::Snapshot(one), Side::Snapshot(other)) if one.is_comparable(&other) => {
            by_tables(&one, &other, context)
        }
        (Side::Snapshot(one), Side::Snapshot(other)) => {
            by_digest(&one, &SnapshotView::new(other), false, context)
        }
        (Side::Snapshot(one), Side::Image(other)) => {
            by_digest(&one, other.as_ref(), false, context)
        }
        (Side::Image(one), Side::Snapshot(other)) => by_digest(&other, one.as_ref(), true, context),
        (Side::Image(one), Side::Image(other)) => by_bytes(one.as_ref(), other.as_ref(), context),
    }
}

fn by_tables(one: &Chain, other: &Chain, context: &Context) -> Result<Difference> {
    let sizes = (one.geometry().image_bytes, other.geometry().image_bytes);
    let longer = Geometry::new(one.geometry().block_size, sizes.0.max(sizes.1))?;
    let (mut difference, geometry) = Difference::new(longer, sizes);
    difference.from_tables = true;
    let mut comparison = Comparison::new(one, other);
    while let Some((_, different)) = comparison.step()? {
        context.check()?;
        for span in different.spans {
            difference.add(geometry, span.blocks);
        }
    }
    Ok(difference)
}

/// `swapped`: the snapshot is the second one.
fn by_digest(
    snapshot: &Chain,
    source: &dyn Source,
    swapped: bool,
    context: &Context,
) -> Result<Difference> {
    let sizes = (snapshot.geometry().image_bytes, source.image_bytes());
    let longer = Geometry::new(snapshot.geometry().block_size, sizes.0.max(sizes.1))?;
    let ordered = if swapped { (sizes.1, sizes.0) } else { sizes };
    let (mut difference, geometry) = Difference::new(longer, ordered);
    let source_end = geometry.block_size.count(source.image_bytes());
    let mut walk = snapshot.walk();
    let phase = context.begin(Phase::Compare, source.image_bytes());
    let outcome =
        scan(source, &Index::Parent(snapshot), Scope::Whole, BadMedium::Fail, context, |changes| {
            for change in &changes.list {
                match *change {
                    Change::Data(block, _) => {
                        difference.add(geometry, BlockRange { first: block, count: 1 });
                    }
                    Change::Zero(range) | Change::Unread(range) if range.end() <= source_end => {
                        difference.add(geometry, range);
                    }
                    // Beyond the end of the shorter one a scan gives everything; only data differs.
                    Change::Zero(range) | Change::Unread(range) => {
                        walk.seek(range.first);
                        while let Some(span) = walk.next(range.end())? {
                            if !matches!(span.state, crate::chain::State::Zero) {
                                difference.add(geometry, span.blocks);
                            }
                        }
                    }
                }
            }
            Ok(())
        });
    drop(phase);
    outcome?;
    Ok(difference)
}

fn by_bytes(one: &dyn Source, other: &dyn Source, context: &Context) -> Result<Difference> {
    let (one, other) = (&Limited::new(one, context), &Limited::new(other, context));
    let sizes = (one.image_bytes(), other.image_bytes());
    let longer = Geometry::new(BlockSize::DEFAULT, sizes.0.max(sizes.1))?;
    let (mut difference, geometry) = Difference::new(longer, sizes);
    let size = geometry.block_size.in_memory();
    let mut at = 0;
    let phase = context.begin(Phase::Compare, geometry.image_bytes);
    let outcome = ordered_map(
        context.threads(),
        context.in_flight(2 * STEP_BYTES),
        || {
            context.check()?;
            let start = skip_common_hole(one, other, at)?;
            let end = (start + STEP_BYTES).min(geometry.image_bytes);
            context.advance(end - at);
            at = end;
            Ok((start < end).then_some((start, end)))
        },
        |(start, end)| {
            let (mut a, mut b) = (Vec::new(), Vec::new());
            let a = read_padded(one, start, end, &mut a)?;
            let b = read_padded(other, start, end, &mut b)?;
            let pairs = a.chunks(size).zip(b.chunks(size));
            let different = pairs.enumerate().filter(|(_, (x, y))| x != y);
            let first = start / size as u64;
            Ok(different.map(|(index, _)| first + index as u64).collect::<Vec<_>>())
        },
        |blocks| {
            for block in blocks {
                difference.add(geometry, BlockRange { first: block, count: 1 });
            }
            Ok(())
        },
    );
    drop(phase);
    outcome?;
    one.check_at_end()?;
    other.check_at_end()?;
    Ok(difference)
}

/// The next block from `at` on where one of the two has data; the end of the longer one if none
/// has.
fn skip_common_hole(one: &dyn Source, other: &dyn Source, at: u64) -> Result<u64> {
    let hole_end = |source: &dyn Source, at: u64| -> Result<Option<u64>> {
        if at >= source.image_bytes() {
            return Ok(Some(u64::MAX));
        }
        let extent = source.extent_at(at)?;
        let is_last = extent.offset + extent.bytes >= source.image_bytes();
        Ok(match extent.kind {
            crate::base::units::ExtentKind::Data => None,
            crate::base::units::ExtentKind::Hole if is_last => Some(u64::MAX),
            crate::base::units::ExtentKind::Hole => Some(extent.offset + extent.bytes),
        })
    };
    let longest = one.image_bytes().max(other.image_bytes());
    let mut at = at;
    while at < longest {
        match (hole_end(one, at)?, hole_end(other, at)?) {
            (Some(a), Some(b)) => at = a.min(b).min(longest),
            _ => break,
        }
    }
    let size = u64::from(BlockSize::DEFAULT.bytes());
    Ok(if at >= longest { longest } else { at / size * size })
}

/// The bytes from `start` to `end`, with zeros beyond the end of the source.
fn read_padded<'a>(
    source: &'a dyn Source,
    start: u64,
    end: u64,
    buffer: &'a mut Vec<u8>,
) -> Result<Vec<u8>> {
    let have = source.image_bytes().clamp(start, end) - start;
    let mut bytes = Vec::with_capacity((end - start) as usize);
    if have > 0 {
        let window: Window<'a> = source.read(start, have as usize, buffer)?;
        bytes.extend_from_slice(window.bytes());
        window.check(source)?;
    }
    bytes.resize((end - start) as usize, 0);
    Ok(bytes)
}
