//! A snapshot as a readable disk: each block from its newest owner, checked against its digest
//! before anybody sees it.

mod batch;
mod decode;
mod regions;
mod restore;
mod sample;
mod seed;
pub mod update;
mod write;

pub use batch::{BATCH_BYTES, Batch, BatchBuilder, Order, Part};
pub use decode::{Decoded, decode_batch};
pub use restore::{
    Restored, check_free_space_for, check_free_space_for_all, check_range, prove, restore,
    restore_blocks, restore_seeded,
};
pub use sample::{Samples, sample};
pub use seed::Seed;
pub use write::write_decoded;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::units::{BlockRange, Extent, ExtentKind, Geometry};
use crate::chain::{Chain, SpanWalk, State};
use crate::image::{Source, Window};
use decode::Decoder;
use regions::{Found, Regions};
use std::fmt;
use std::sync::{Mutex, PoisonError};

/// A part of a chain's image, batch by batch.
pub struct Batches {
    walk: SpanWalk,
    builder: BatchBuilder,
    end: u64,
}

impl Batches {
    /// The blocks from `first` up to `end`.
    pub fn new(chain: &Chain, first: u64, end: u64, order: Order) -> Self {
        let mut walk = chain.walk_to(end);
        walk.seek(first);
        let builder = BatchBuilder::of(chain, order);
        Self { walk, builder, end }
    }

    /// The next batch; none at the end.
    pub fn next_batch(&mut self) -> Result<Option<Batch>> {
        let Self { walk, builder, end } = self;
        builder.next_fed(|builder| {
            let Some(span) = walk.next(*end)? else { return Ok(false) };
            builder.add(walk.chunk(), span).map(|()| true)
        })
    }
}

/// A snapshot that can be read.
pub struct SnapshotView {
    regions: Regions,
    /// For the extents, which may be longer than any region: they are asked for in ascending order, mostly.
    walk: Mutex<Option<SpanWalk>>,
}

impl SnapshotView {
    /// The snapshot at the tip of `chain`.
    pub fn new(chain: Chain) -> Self {
        Self { regions: Regions::new(chain), walk: Mutex::new(None) }
    }

    /// Its chain.
    pub fn chain(&self) -> &Chain {
        self.regions.chain()
    }

    /// Takes the walk of the last call if it is not beyond `block`: it does not begin anew each time.
    fn walk_at(&self, block: u64) -> SpanWalk {
        let mut kept = self.walk.lock().unwrap_or_else(PoisonError::into_inner);
        let mut walk = match kept.take() {
            Some(walk) if walk.position() <= block => walk,
            _ => self.chain().walk(),
        };
        walk.seek(block);
        walk
    }

    fn geometry(&self) -> Geometry {
        self.chain().geometry()
    }
}

impl fmt::Debug for SnapshotView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotView").field("name", &self.name()).finish_non_exhaustive()
    }
}

impl Source for SnapshotView {
    fn image_bytes(&self) -> u64 {
        self.geometry().image_bytes
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let geometry = self.geometry();
        let first = offset / u64::from(geometry.block_size.bytes());
        let count = geometry.block_count();
        let mut walk = self.walk_at(first);
        let mut kind = None;
        let mut end = first;
        while let Some(span) = walk.next(count)? {
            let is = match span.state {
                State::Zero => ExtentKind::Hole,
                _ => ExtentKind::Data,
            };
            if *kind.get_or_insert(is) != is {
                walk.rewind(span.blocks.first);
                break;
            }
            end = span.blocks.end();
        }
        *self.walk.lock().unwrap_or_else(PoisonError::into_inner) = Some(walk);
        let end = geometry.offset(end).min(geometry.image_bytes);
        let kind = kind.unwrap_or(ExtentKind::Hole);
        Ok(Extent { offset, bytes: end.saturating_sub(offset), kind })
    }

    fn read<'a>(
        &'a self,
        offset: u64,
        bytes: usize,
        buffer: &'a mut Vec<u8>,
    ) -> Result<Window<'a>> {
        let geometry = self.geometry();
        let size = u64::from(geometry.block_size.bytes());
        let end = offset.saturating_add(bytes as u64);
        if end > geometry.image_bytes {
            let what = format!("byte {end} is beyond the end of the snapshot");
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        let first = offset / size;
        let mut decoder = Decoder::new(geometry, std::mem::take(buffer));
        let blocks = BlockRange::between(first, end.div_ceil(size));
        let read = self.regions.find(blocks, |blocks, found| match found {
            Found::Unread if !self.chain().has_unread_as_zeros() => {
                Err(batch::unread(geometry, blocks))
            }
            Found::Zero | Found::Unread => {
                decoder.zeros(blocks.count);
                Ok(())
            }
            Found::Stored(piece) => decoder.few(piece),
        });
        *buffer = decoder.into_bytes();
        read.map_err(|e| e.at(self.name()))?;
        let start = (offset - geometry.offset(first)) as usize;
        let short = || Error::corrupt("fewer bytes were decoded than the blocks have");
        Ok(Window::Copied(buffer.get(start..start + bytes).ok_or_else(short)?))
    }

    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn is_limited(&self) -> bool {
        true
    }

    fn name(&self) -> String {
        self.chain().tip().location()
    }
}
