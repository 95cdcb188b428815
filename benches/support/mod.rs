//! What the benchmarks share: data that are the same every time, images of it that change as asked,
//! and how long a row is measured.
//!
//! Absolute figures mean little on a shared machine. Each group has its ceiling as a row of its
//! own: divide by it, within one run.

#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

pub mod chain;
#[path = "../../tests/support/random.rs"]
mod random;

pub use random::Random;

use criterion::Criterion;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub const BLOCK_BYTES: usize = 4096;
/// A run of 512 KiB.
const CLUSTER_BLOCKS: u64 = 128;
/// How much of an image changes, in percent.
pub const SHARES: [f64; 5] = [0.0, 0.1, 1.0, 10.0, 100.0];
pub const SHAPES: [Shape; 3] = [Shape::Scattered, Shape::Clustered, Shape::ZeroHeavy];

/// Ten short samples a row, memory handled as the program does it.
pub fn criterion() -> Criterion {
    imgsnap::share_heaps();
    Criterion::default()
        .without_plots()
        .sample_size(10)
        .nresamples(2000)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
}

/// Does not compress.
pub fn noise(bytes: usize) -> Vec<u8> {
    Random(1).bytes(bytes)
}

/// Words of a small vocabulary.
pub fn text(bytes: usize) -> Vec<u8> {
    let mut random = Random(2);
    let mut out = Vec::with_capacity(bytes + 16);
    while out.len() < bytes {
        out.extend_from_slice(format!("word{} ", random.below(2000)).as_bytes());
    }
    out.truncate(bytes);
    out
}

/// Blocks as an image has them, half noise and half text.
pub fn mixed(bytes: usize) -> Vec<u8> {
    Image::new(Shape::Scattered, bytes as u64).bytes()
}

/// Every cache line read, and as little done with it as can be.
pub fn sum_lines(bytes: &[u8]) -> u64 {
    let words = bytes.chunks(64).filter_map(<[u8]>::first_chunk::<8>);
    words.fold(0, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)))
}

/// Which blocks change, and what is in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Single blocks of 4 KiB.
    Scattered,
    /// Runs of 512 KiB.
    Clustered,
    /// Single blocks; nine of ten runs are zeros, written out. To change, zeros become data, and
    /// data zeros.
    ZeroHeavy,
}

/// A disk image, known by how often each of its blocks has changed.
#[derive(Clone)]
pub struct Image {
    shape: Shape,
    changes: Vec<u32>,
    text: Arc<Vec<u8>>,
}

impl Image {
    pub fn new(shape: Shape, bytes: u64) -> Self {
        let changes = vec![0; bytes as usize / BLOCK_BYTES];
        Self { shape, changes, text: Arc::new(text(1 << 16)) }
    }

    pub fn block_count(&self) -> u64 {
        self.changes.len() as u64
    }

    pub fn image_bytes(&self) -> u64 {
        self.block_count() * BLOCK_BYTES as u64
    }

    /// Changes a share of the blocks and gives their numbers, ascending. What a smaller share
    /// changes with the same seed is among them.
    pub fn change(&mut self, percent: f64, seed: u64) -> Vec<u64> {
        let run = if self.shape == Shape::Clustered { CLUSTER_BLOCKS } else { 1 };
        let count = self.block_count();
        let mut starts: Vec<u64> = (0..count).step_by(run as usize).collect();
        let mut random = Random(seed);
        for last in (1..starts.len()).rev() {
            starts.swap(last, random.below(last as u64 + 1) as usize);
        }
        let blocks = starts.iter().flat_map(|start| *start..(start + run).min(count));
        let wanted = (count as f64 * percent / 100.0).ceil() as usize;
        let mut blocks: Vec<u64> = blocks.take(wanted).collect();
        blocks.sort_unstable();
        blocks.iter().for_each(|block| self.changes[*block as usize] += 1);
        blocks
    }

    /// The bytes of a block; false if they are zeros.
    pub fn block(&self, number: u64, out: &mut [u8]) -> bool {
        let changes = u64::from(self.changes[number as usize]);
        if self.shape == Shape::ZeroHeavy {
            let is_zero = Random(number / CLUSTER_BLOCKS).below(10) < 9;
            if is_zero == changes.is_multiple_of(2) {
                out.fill(0);
                return false;
            }
        }
        let mut random = Random(number << 32 | changes);
        let (noise, text) = out.split_at_mut(BLOCK_BYTES / 2);
        noise.copy_from_slice(&random.bytes(noise.len()));
        let start = random.below((self.text.len() - text.len()) as u64) as usize;
        text.copy_from_slice(&self.text[start..start + text.len()]);
        true
    }

    /// All of it.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.image_bytes() as usize];
        for (number, block) in (0..).zip(bytes.chunks_mut(BLOCK_BYTES)) {
            self.block(number, block);
        }
        bytes
    }

    /// Writes some of its blocks to a file, and syncs it. Nobody has it open afterwards: an image
    /// that is being written is refused.
    pub fn write(&self, path: &Path, blocks: impl IntoIterator<Item = u64>) {
        let options = File::options().write(true).create(true).truncate(false).open(path);
        let file = options.unwrap();
        let mut bytes = [0; BLOCK_BYTES];
        for number in blocks {
            self.block(number, &mut bytes);
            file.write_all_at(&bytes, number * BLOCK_BYTES as u64).unwrap();
        }
        file.sync_all().unwrap();
    }
}
