//! The image that is measured: made from a seed, always the same, and changed in ways that can be
//! repeated.

use super::ceiling::data_of;
use super::request::Pattern;
use crate::base::error::{Error, Result};
use crate::base::events::{Context, Phase};
use crate::base::pipeline::ordered_map;
use crate::base::uri::Shown;
use crate::image::{RawFile, Source};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Guests write in units of 4 KiB, whatever the block size of the snapshot.
pub const UNIT_BYTES: u64 = 4096;
const PIECE_BYTES: u64 = 1 << 20;
const UNITS_PER_PIECE: u64 = PIECE_BYTES / UNIT_BYTES;
/// Units of a cluster: 512 KiB.
const CLUSTER_UNITS: u64 = 128;
const TOKEN_BYTES: usize = 24;

/// How an image is made and changed. The same plan gives the same bytes.
#[derive(Debug, Clone)]
pub struct ImagePlan {
    /// Length, a multiple of 4 KiB.
    pub image_bytes: u64,
    /// The share that LZ4 saves, about.
    pub compressible: f64,
    /// What is written, and what changes.
    pub pattern: Pattern,
    /// Another number, another image.
    pub seed: u64,
}

/// What a unit becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fill {
    Data,
    Zeros,
}

/// SplitMix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators" (2014).
struct Random(u64);

impl Random {
    fn of(parts: [u64; 3]) -> Self {
        let mut random = Self(0x1234_5678_9abc_def0);
        for part in parts {
            random.0 ^= part;
            random.0 = random.next();
        }
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// True with a probability.
    fn is_within(&mut self, share: f64) -> bool {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64 <= share
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for piece in bytes.chunks_mut(8) {
            let word = self.next().to_le_bytes();
            piece.iter_mut().zip(word).for_each(|(to, from)| *to = from);
        }
    }
}

impl ImagePlan {
    /// Makes the image at `path`, which does not exist, and syncs it.
    pub fn make(&self, path: &Path, context: &Context) -> Result<()> {
        let piece_bytes = |piece| PIECE_BYTES.min(self.image_bytes - piece * PIECE_BYTES);
        let pieces = (0..self.image_bytes.div_ceil(PIECE_BYTES))
            .filter(|piece| self.is_written(*piece))
            .map(|piece| (piece * PIECE_BYTES, piece_bytes(piece)));
        write_image(path, self.image_bytes, Phase::MakeImage, pieces, context, |offset, bytes| {
            let mut piece = vec![0; bytes as usize];
            for (unit, bytes) in (offset / UNIT_BYTES..).zip(piece.chunks_mut(4096)) {
                self.unit(unit, 0, bytes);
            }
            Ok(piece)
        })
    }

    /// Changes a share of the units, those of round `round` (from 1 on), and syncs.
    pub fn change(&self, path: &Path, round: u64, share: f64, context: &Context) -> Result<()> {
        let file = File::options().write(true).open(path).map_err(|e| failed("open", path, e))?;
        let mut unit_bytes = [0; UNIT_BYTES as usize];
        for unit in 0..self.image_bytes / UNIT_BYTES {
            if unit.is_multiple_of(UNITS_PER_PIECE) {
                context.check()?;
            }
            match self.fill(unit, round, share) {
                None => continue,
                Some(Fill::Data) => self.unit(unit, round, &mut unit_bytes),
                Some(Fill::Zeros) => unit_bytes.fill(0),
            }
            let written = file.write_all_at(&unit_bytes, unit * UNIT_BYTES);
            written.map_err(|e| failed("write", path, e))?;
        }
        file.sync_all().map_err(|e| failed("sync", path, e))
    }

    /// True if a unit is among those of a round.
    pub fn changes(&self, unit: u64, round: u64, share: f64) -> bool {
        self.fill(unit, round, share).is_some()
    }

    /// A guest has written some of its disk only.
    fn is_written(&self, piece: u64) -> bool {
        self.pattern != Pattern::Vm || Random::of([self.seed, 1, piece]).is_within(0.6)
    }

    /// What a unit becomes in a round, if it changes.
    fn fill(&self, unit: u64, round: u64, share: f64) -> Option<Fill> {
        let is_chosen = |kind: u64, number: u64, share: f64| {
            Random::of([self.seed ^ (kind << 56), round, number]).is_within(share)
        };
        match self.pattern {
            Pattern::Random => is_chosen(2, unit, share).then_some(Fill::Data),
            Pattern::Clustered => is_chosen(3, unit / CLUSTER_UNITS, share).then_some(Fill::Data),
            Pattern::Vm => {
                let count = self.image_bytes / UNIT_BYTES;
                let log = (count as f64 * share / 4.0) as u64;
                let log_first = round.wrapping_mul(log) % count.saturating_sub(log).max(1);
                if (log_first..log_first + log).contains(&unit) {
                    return Some(Fill::Data);
                }
                if !self.is_written(unit / UNITS_PER_PIECE) {
                    return None;
                }
                // Of what is written: 60 % of the image.
                let (files, records) = (share * 0.5 / 0.6, share * 0.25 / 0.6);
                let cluster = unit / CLUSTER_UNITS;
                if is_chosen(4, cluster, files) {
                    let is_freed = is_chosen(5, cluster, 0.125);
                    return Some(if is_freed { Fill::Zeros } else { Fill::Data });
                }
                is_chosen(6, unit, records).then_some(Fill::Data)
            }
        }
    }

    /// The bytes of a unit as it is written in a round: tokens of a small vocabulary among noise.
    fn unit(&self, unit: u64, round: u64, bytes: &mut [u8]) {
        let mut random = Random::of([self.seed, unit, round]);
        // A match costs LZ4 three to four bytes.
        let share = (self.compressible * 24.0 / 20.5).min(1.0);
        for token in bytes.chunks_mut(TOKEN_BYTES) {
            if random.is_within(share) {
                let word = random.next() % 64;
                Random(self.seed ^ word).fill(token);
            } else {
                random.fill(token);
            }
        }
    }
}

/// Copies the data of the user's image to a file of our own, sparse, and syncs it.
pub fn copy(image: &RawFile, path: &Path, context: &Context) -> Result<()> {
    let pieces = data_of(image, PIECE_BYTES)?.into_iter();
    write_image(path, image.image_bytes(), Phase::CopyImage, pieces, context, |offset, bytes| {
        let mut buffer = Vec::new();
        let window = image.read(offset, bytes as usize, &mut buffer)?;
        let bytes = window.bytes().to_vec();
        window.check(image)?;
        Ok(bytes)
    })?;
    image.check()
}

/// Makes a file of `image_bytes` bytes whose pieces (offset and length) are what `fill` gives for
/// them, and syncs it.
fn write_image(
    path: &Path,
    image_bytes: u64,
    phase: Phase,
    mut pieces: impl Iterator<Item = (u64, u64)> + Send,
    context: &Context,
    fill: impl Fn(u64, u64) -> Result<Vec<u8>> + Sync,
) -> Result<()> {
    let file = File::create_new(path).map_err(|e| failed("create", path, e))?;
    file.set_len(image_bytes).map_err(|e| failed("set the length of", path, e))?;
    let phase = context.begin(phase, image_bytes);
    let outcome = ordered_map(
        context.threads(),
        context.in_flight(PIECE_BYTES),
        || context.check().map(|()| pieces.next()),
        |(offset, bytes)| Ok((offset, fill(offset, bytes)?)),
        |(offset, bytes)| {
            context.advance(bytes.len() as u64);
            file.write_all_at(&bytes, offset).map_err(|e| failed("write", path, e))
        },
    );
    drop(phase);
    outcome?;
    file.sync_all().map_err(|e| failed("sync", path, e))
}

fn failed(what: &str, path: &Path, error: std::io::Error) -> Error {
    Error::os(what, path.shown(), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(pattern: Pattern, compressible: f64) -> ImagePlan {
        ImagePlan { image_bytes: 32 << 20, compressible, pattern, seed: 7 }
    }

    #[test]
    fn the_same_plan_makes_the_same_image_and_changes_the_asked_share() {
        let folder = tempfile::tempdir().unwrap();
        let context = Context::silent();
        for pattern in [Pattern::Random, Pattern::Clustered, Pattern::Vm] {
            let plan = plan(pattern, 0.5);
            let path = |name: &str| folder.path().join(format!("{name}-{pattern:?}"));
            plan.make(&path("a"), &context).unwrap();
            plan.make(&path("b"), &context.clone().with_threads(1)).unwrap();
            let before = std::fs::read(path("a")).unwrap();
            assert!(before == std::fs::read(path("b")).unwrap());
            plan.change(&path("a"), 1, 0.1, &context).unwrap();
            plan.change(&path("b"), 1, 0.1, &context).unwrap();
            let after = std::fs::read(path("a")).unwrap();
            assert!(after == std::fs::read(path("b")).unwrap());
            let pairs = before.chunks(4096).zip(after.chunks(4096));
            let changed = pairs.filter(|(a, b)| a != b).count() as f64 / 8192.0;
            assert!((0.04..0.2).contains(&changed), "{pattern:?}: {changed}");
        }
    }

    #[test]
    fn images_are_as_compressible_as_asked() {
        for compressible in [0.0, 0.25, 0.5, 0.75] {
            let plan = plan(Pattern::Random, compressible);
            let mut bytes = vec![0; 1 << 20];
            (0..).zip(bytes.chunks_mut(4096)).for_each(|(unit, bytes)| plan.unit(unit, 0, bytes));
            let saved: f64 = bytes
                .chunks(65536)
                .map(|frame| 1.0 - lz4_flex::compress(frame).len() as f64 / 65536.0)
                .sum::<f64>()
                / 16.0;
            assert!((saved - compressible).abs() < 0.08, "{compressible}: {saved}");
        }
    }
}
