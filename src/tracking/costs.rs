//! Whether to clone an image that nobody uses, or to read all of it: by what that took before, and by a look
//! at how fast the image is read now.
//!
//! ```text
//! clone and maps (seconds for each extent, of earlier snapshots), what will have changed (as before) --\
//! reading (seconds for each byte, by a probe) -----------------------------------------------------------> ?
//! ```

use crate::base::digest::{DigestAlgorithm, DigestKey, Hasher};
use crate::base::error::{ErrorKind, Result};
use crate::base::events::Context;
use crate::base::pipeline::ordered_map;
use crate::image::{RawFile, Source};
use nix::unistd::{Whence, lseek64};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What a clone costs for each extent of the image, in seconds, until one was timed (DESIGN.md, "Change
/// tracking").
const CLONE_SECONDS: f64 = 12e-6;

/// And to compare the maps of two clones.
const MAPS_SECONDS: f64 = 3e-6;

/// From so many extents on the time that they took tells what one costs.
const MIN_TIMED_EXTENTS: u64 = 1000;

/// What nobody notices, in seconds.
const NEGLIGIBLE_SECONDS: f64 = 0.01;

/// No machine reads and digests an image faster than that, in bytes a second for each thread: what is cheap
/// beside that needs no probe.
const TOP_SPEED: f64 = 20e9;

/// The probe reads so many pieces, spread over the image, or fewer if they take long.
const PIECES: u64 = 32;
const PIECE_BYTES: u64 = 512 << 10;
const BLOCK_BYTES: usize = 4096;
const LONG: Duration = Duration::from_millis(20);

/// What snapshots of an image took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Costs {
    /// Seconds of a clone for each extent, if one was timed.
    pub clone: Option<f64>,
    /// And of the maps of two clones, for each extent of the newer one.
    pub maps: Option<f64>,
    /// What has changed at most in each of the last ones, as a share of the image.
    pub changed_share: f64,
}

impl Costs {
    /// What a clone of so many extents takes, in seconds.
    pub fn clone_seconds(&self, extents: u64) -> f64 {
        extents as f64 * for_each(self.clone, CLONE_SECONDS)
    }

    /// True if a clone, its map and what has changed cost less than all of the image, as far as can be told.
    ///
    /// # Errors
    /// `Interrupted`.
    pub fn is_clone_cheaper(
        &self,
        image: &RawFile,
        extents: u64,
        context: &Context,
    ) -> Result<bool> {
        let maps = extents as f64 * for_each(self.maps, MAPS_SECONDS);
        let cost = self.clone_seconds(extents) + maps;
        if cost <= NEGLIGIBLE_SECONDS {
            return Ok(true);
        }
        let Ok(meta) = image.file().metadata() else { return Ok(false) };
        let data = image.image_bytes().min(meta.blocks().saturating_mul(512)) as f64;
        // What has changed is read in either case.
        let spared = data * (1.0 - self.changed_share.clamp(0.0, 1.0));
        if cost <= spared / (TOP_SPEED * context.threads() as f64) {
            return Ok(true);
        }
        let limit = context.read_limits().rate();
        if limit.is_some_and(|rate| cost <= spared / rate as f64) {
            return Ok(true);
        }
        match probe(image, context) {
            Ok(seconds) => {
                let read = spared * seconds;
                context.note(format!(
                    "cloning and its map may take {cost:.2} s, reading the whole image {read:.2} s"
                ));
                Ok(cost <= read)
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => Err(e),
            // Who reads all of it is told.
            Err(_) => Ok(false),
        }
    }
}

/// How long something took in all, which is done in parts, by any thread.
#[derive(Debug, Clone, Default)]
pub struct TimeSpent(Arc<AtomicU64>);

impl TimeSpent {
    /// Does a part of it.
    pub fn on<T>(&self, work: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let done = work();
        let nanoseconds = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.0.fetch_add(nanoseconds, Ordering::Relaxed);
        done
    }

    /// Seconds; none if nothing was done.
    pub fn seconds(&self) -> Option<f64> {
        let nanoseconds = self.0.load(Ordering::Relaxed);
        (nanoseconds > 0).then_some(nanoseconds as f64 / 1e9)
    }
}

/// Seconds for each extent: those that were timed, within reason.
fn for_each(timed: Option<f64>, usual: f64) -> f64 {
    timed.unwrap_or(usual).clamp(usual / 6.0, usual * 50.0)
}

/// What so many extents took, for each of them; none if they were too few to tell.
pub fn for_each_extent(seconds: f64, extents: u64) -> Option<f64> {
    (extents >= MIN_TIMED_EXTENTS).then(|| seconds / extents as f64)
}

/// How long a byte of the image takes to be read now, in seconds, by all threads together.
fn probe(image: &RawFile, context: &Context) -> Result<f64> {
    let bytes = image.image_bytes();
    let hasher = Hasher::new(DigestAlgorithm::Xxh3, DigestKey([0; 32]));
    let threads = context.threads().min(PIECES as usize / 4).max(1);
    let begun = Instant::now();
    let mut places = (0..PIECES).map(|piece| bytes / PIECES * piece);
    let mut timed = Vec::new();
    ordered_map(
        threads,
        2 * threads,
        || {
            context.check()?;
            Ok(places.next().filter(|_| begun.elapsed() < LONG))
        },
        |place| {
            context.read_limits().wait(PIECE_BYTES)?;
            let begun = Instant::now();
            let Some(offset) = data_from(image, place) else { return Ok(None) };
            let bytes = PIECE_BYTES.min(bytes - offset);
            let mut buffer = Vec::new();
            let window = image.read(offset, bytes as usize, &mut buffer)?;
            window.bytes().chunks(BLOCK_BYTES).for_each(|block| {
                std::hint::black_box(hasher.digest(block));
            });
            window.check(image)?;
            drop(window);
            Ok(Some((begun.elapsed().as_secs_f64(), bytes)))
        },
        |piece| {
            timed.extend(piece);
            Ok(())
        },
    )?;
    // The first piece of a thread also starts it; a scan has thousands of them.
    let warm = if timed.len() > 2 * threads { threads } else { 0 };
    let pieces = timed.into_iter().skip(warm);
    let (seconds, bytes) =
        pieces.fold((0.0, 0), |(all, sum), (one, bytes)| (all + one, sum + bytes));
    // Nothing but holes: all of it is read in no time.
    Ok(if bytes == 0 { 0.0 } else { seconds / bytes as f64 / threads as f64 })
}

/// Where the first data from `place` on are. Not how far they go: to find the next hole, the file system
/// looks at all extents up to it.
fn data_from(image: &RawFile, place: u64) -> Option<u64> {
    let found = lseek64(image.file(), place as i64, Whence::SeekData);
    match found {
        Ok(offset) => Some(offset as u64).filter(|offset| *offset < image.image_bytes()),
        // No data from here on.
        Err(nix::Error::ENXIO) => None,
        Err(_) => Some(place),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_goes_by_what_was_timed_and_by_what_will_have_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        std::fs::write(&path, vec![7; 16 << 20]).unwrap();
        let image = RawFile::open(&path).unwrap();
        let is_cheaper = |costs: Costs, extents| {
            costs.is_clone_cheaper(&image, extents, &Context::silent()).unwrap()
        };
        // To read 16 MiB takes from a millisecond to a second; the first estimates are 15 us an extent.
        for (extents, cheaper) in [(1, true), (100, true), (1_000_000, false)] {
            assert_eq!(is_cheaper(Costs::default(), extents), cheaper, "{extents}");
        }
        // Cheap ones were timed, and expensive ones; too few of them tell nothing.
        let timed = for_each_extent;
        let costs = |timed| Costs { clone: timed, maps: timed, changed_share: 0.0 };
        assert!(costs(timed(0.001, 2000)).clone_seconds(1000) < 0.004);
        assert!(costs(timed(1.0, 2000)).clone_seconds(1000) > 0.4);
        let untold = costs(timed(1.0, 999)).clone_seconds(1000);
        assert!((untold - Costs::default().clone_seconds(1000)).abs() < 1e-9);
        assert!(!is_cheaper(costs(timed(1000.0, 1_000_000)), 1_000_000));
        // Whoever may read only so fast has more to gain: 16 s.
        let slow = Context::silent().with_read_limit(Some("1M".parse().unwrap()));
        assert!(Costs::default().is_clone_cheaper(&image, 100_000, &slow).unwrap());
        // All of it is read in either case.
        assert!(!is_cheaper(Costs { changed_share: 1.0, ..Costs::default() }, 10_000));
    }
}
