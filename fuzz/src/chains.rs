//! What holds for every chain of files, whatever is in them.

use crate::context;
use crate::support::naive_reader;
use imgsnap::base::error::{Error, ErrorKind, Result};
use imgsnap::chain::{Chain, Fork};
use imgsnap::codec::Compression;
use imgsnap::delta::{Caches, Delta, Identity, TableCursor};
use imgsnap::format::{FrameLayout, RunKind};
use imgsnap::image::write::{Stream, Target};
use imgsnap::merge::{self, layer_use};
use imgsnap::ops::diff::engine::{Difference, Side, diff};
use imgsnap::ops::verify::engine::{
    find_damage, verify_all, verify_digests, verify_runs, verify_stored,
};
use imgsnap::view::restore;
use uuid::Uuid;

/// Longer images are not held in memory.
pub const MOST_BYTES: u64 = 4 << 20;
/// A block that could not be read costs a digest, and a run of 8 bytes names up to 2^30 of them.
const MAX_UNREAD_BLOCKS: u64 = 1 << 16;
/// What the program may take for a chain: its windows and budgets are fixed, the rest follows its input.
const FIXED_BYTES: usize = 96 << 20;
const TIMES: usize = 16;

/// Bytes that the program may take for so many bytes of input.
pub fn allowance(input: usize) -> usize {
    FIXED_BYTES + input * TIMES
}

/// How many blocks of a chain could not be read, as the tables say; none if there are too many to look at
/// each, or a table is damaged.
pub fn unread_blocks(chain: &Chain) -> Option<u64> {
    let mut sum = 0;
    for delta in chain.layers().iter() {
        let mut cursor = TableCursor::new(delta.clone());
        cursor.seek(0).ok()?;
        while let Some((_, run)) = cursor.run() {
            sum += if run.kind == RunKind::Unread { run.blocks.count } else { 0 };
            if sum > MAX_UNREAD_BLOCKS {
                return None;
            }
            cursor.advance().ok()?;
        }
    }
    Some(sum)
}

/// An image in memory that is written in any order.
pub struct Memory(pub Vec<u8>);

impl Memory {
    pub fn new(bytes: u64) -> Self {
        Self(vec![0; bytes as usize])
    }
}

impl Target for Memory {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.0[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn zero(&mut self, offset: u64, bytes: u64) -> Result<()> {
        self.0[offset as usize..][..bytes as usize].fill(0);
        Ok(())
    }

    fn advance_watermark(&mut self, _: u64) -> Result<()> {
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }

    fn name(&self) -> String {
        "memory".into()
    }
}

/// A target that keeps nothing, for images of any length.
pub struct Nowhere;

impl Target for Nowhere {
    fn write(&mut self, _: u64, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn zero(&mut self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    fn advance_watermark(&mut self, _: u64) -> Result<()> {
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }

    fn name(&self) -> String {
        "nowhere".into()
    }
}

/// The image at the tip: front to back and frame by frame give the same.
pub fn bytes_of(chain: &Chain) -> Result<Vec<u8>> {
    let image_bytes = chain.geometry().image_bytes;
    if image_bytes > MOST_BYTES {
        restore(chain, None, &mut Nowhere, &context())?;
        return Err(Error::new(ErrorKind::LimitExceeded, "too long for the memory"));
    }
    let mut in_order = Vec::new();
    let one = restore(chain, None, &mut Stream::new(&mut in_order, "memory"), &context());
    let mut by_frame = Memory::new(image_bytes);
    let other = restore(chain, None, &mut by_frame, &context());
    match (one, other) {
        (Ok(one), Ok(other)) => {
            assert_eq!(one, other);
            assert!(one.proved);
            assert!(in_order == by_frame.0, "two orders, two images");
            Ok(in_order)
        }
        (Err(one), Err(_)) => Err(refusal(one)),
        (one, other) => panic!("one order fails: {one:?}, {other:?}"),
    }
}

/// What the program says of bytes that are wrong: that they are, in one line, and nothing of faults.
pub fn refusal(error: Error) -> Error {
    let known = [ErrorKind::Corrupt, ErrorKind::Unsupported, ErrorKind::Mismatch];
    let more = [ErrorKind::LimitExceeded, ErrorKind::InvalidInput, ErrorKind::NotFound];
    assert!(known.contains(&error.kind()) || more.contains(&error.kind()), "{error:?}");
    assert!(!error.to_string().contains('\n'), "more than one line: {error}");
    error
}

/// True if every byte, block, rule and digest of a chain is right, as far as the program can tell.
fn is_sound(chain: &Chain) -> bool {
    let mut ends: Vec<Option<u64>> = Vec::new();
    for delta in chain.layers().iter() {
        ends.push(delta.footer().parent.map(|p| delta.header().block_size.count(p.image_bytes)));
    }
    let files = chain.layers().iter().zip(ends).all(|(delta, end)| {
        let stored = verify_stored(delta, &context()).map_err(refusal).is_ok();
        let all = verify_all(delta, &context()).map_err(refusal).is_ok();
        assert!(stored || !all, "sound in all blocks, but not as it is stored");
        if !all {
            find_damage(delta, &context()).map(drop).map_err(refusal).ok();
        }
        all && verify_runs(delta, end, &context()).map_err(refusal).is_ok()
    });
    let digests = verify_digests(chain, &context()).map_err(refusal);
    files && digests.is_ok_and(|digests| digests.iter().all(|is_right| *is_right))
}

/// Everything that can be asked of a chain, base first.
pub fn check(files: &[Vec<u8>], chain: &Chain) {
    if unread_blocks(chain).is_none() {
        return;
    }
    let image = bytes_of(chain);
    let sound = is_sound(chain);
    let image_bytes = chain.geometry().image_bytes;
    let is_elsewhere = chain.layers().iter().any(|d| d.header().layout() == FrameLayout::Absent);
    let has_unread = chain.layers().iter().any(|d| d.footer().counts.unread_blocks > 0);
    let all_short = chain.layers().iter().all(|d| d.footer().image_bytes <= MOST_BYTES);
    if all_short && !is_elsewhere {
        // The second reader checks all of every file; a restore only what it needs.
        match (naive_reader::restore(files), sound, &image) {
            (Ok(want), true, Ok(have)) => assert!(want == *have, "two readers, two images"),
            (Ok(_), _, _) => panic!("refused, but it is sound: {image:?}"),
            (Err(why), true, Ok(_)) => panic!("taken for sound, but {why}"),
            (Err(why), true, Err(_)) => assert!(has_unread, "taken for sound, but {why}"),
            (Err(_), false, _) => {}
        }
    }
    layer_use(chain.layers(), &context()).map(drop).map_err(refusal).ok();
    let ancestors = chain.layers().len();
    for below in 1..=ancestors {
        let parent = Chain::link(chain.layers()[below..].to_vec()).ok();
        // Without a parent: all of it.
        let must = sound && !is_elsewhere && !has_unread && chain.check_extendable().is_ok();
        merged(chain, parent, image.as_ref().ok(), must);
    }
    if let Ok(parent) = Chain::link(chain.layers()[1.min(ancestors - 1)..].to_vec()) {
        compared(&parent, chain, sound, image.as_ref().ok());
    }
    assert!(image_bytes > 0);
}

/// Merges the files down to a parent; what comes out is the same snapshot.
fn merged(chain: &Chain, parent: Option<Chain>, image: Option<&Vec<u8>>, must: bool) {
    let footer = chain.tip().footer().clone();
    let layers = parent.as_ref().map(|parent| parent.layers().to_vec()).unwrap_or_default();
    let Ok(fork) = Fork::new(chain.clone(), parent) else { return };
    let plan = merge::Plan {
        fork,
        identity: Identity::of(&footer),
        file_id: Uuid::from_bytes([0xee; 16]),
        compression: Compression::Lz4,
        cell_blocks: None,
        kept: Vec::new(),
    };
    let mut bytes = Vec::new();
    let outcome = merge::merge(&plan, &context(), &mut |piece: &[u8]| {
        bytes.extend_from_slice(piece);
        Ok(())
    });
    if let Err(error) = outcome {
        let error = refusal(error);
        assert!(!must, "a sound chain cannot be merged: {error}");
        return;
    }
    let disk = std::sync::Arc::new(crate::support::crash_disk::CrashDisk::default());
    disk.put("merged.delta", &bytes);
    let store = std::sync::Arc::new(imgsnap::store::LocalStore::new(disk));
    let delta = Delta::open(store, "merged.delta", &Caches::default());
    let delta = delta.expect("what was merged can be opened");
    let mut all = vec![std::sync::Arc::new(delta)];
    all.extend(layers);
    let again = Chain::link(all).expect("what was merged fits");
    if must {
        assert!(image == bytes_of(&again).ok().as_ref(), "merged, and another image");
        assert!(is_sound(&again), "merged, and not sound any more");
    }
}

/// Compares two snapshots by their tables; where both are sound that is where their bytes differ.
fn compared(before: &Chain, after: &Chain, sound: bool, image: Option<&Vec<u8>>) {
    let sides = (Side::Snapshot(before.clone()), Side::Snapshot(after.clone()));
    let Ok(found) = diff(sides.0, sides.1, &context()).map_err(refusal) else { return };
    let (Some(image), true) = (image, sound) else { return };
    let Ok(old) = bytes_of(before) else { return };
    let size = u64::from(found.block_size.bytes());
    let longer = old.len().max(image.len()) as u64;
    let block = |bytes: &[u8], at: u64| {
        let start = (at as usize).min(bytes.len());
        let end = ((at + size) as usize).min(bytes.len());
        let mut block = bytes[start..end].to_vec();
        block.resize(size as usize, 0);
        block
    };
    let named =
        |at: u64| found.extents.iter().any(|range| (range.offset..range.end()).contains(&at));
    for at in (0..longer).step_by(size as usize) {
        assert_eq!(block(&old, at) != block(image, at), named(at), "byte {at} of {found:?}");
    }
    let sum =
        |difference: &Difference| difference.extents.iter().map(|range| range.bytes).sum::<u64>();
    assert_eq!(sum(&found), found.changed_bytes);
}
