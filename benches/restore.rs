//! An image of 128 MiB restored by all threads: from a base, from a base that is mostly zeros, and
//! from chains of 100 in each layer of which 0.1 % of the blocks changed.
//!
//! To a stream (ascending) that throws the bytes away; the ceiling is the same bytes copied once,
//! by one thread: to throw them away costs nothing. And to a new file (frame by frame), synced; the
//! ceiling is the same bytes written to such a file. To remove the file is not measured.

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod support;

use criterion::{Bencher, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use imgsnap::base::events::Context;
use imgsnap::chain::Chain;
use imgsnap::delta::Caches;
use imgsnap::image::write::{NewFile, Stream, Target};
use imgsnap::view::restore;
use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};
use support::chain::{ChainMaker, Content};
use support::{Image, Shape};

const IMAGE_BYTES: u64 = 128 << 20;
const PIECE_BYTES: usize = 1 << 20;

/// The base is the first in the chain.
struct Case {
    name: &'static str,
    maker: ChainMaker,
    layers: usize,
}

impl Case {
    fn new(name: &'static str, shape: Shape, layers: usize) -> Self {
        let mut image = Image::new(shape, IMAGE_BYTES);
        let mut maker = ChainMaker::new(&image, Content::All);
        maker.grow(&mut image, layers - 1, 0.1, 1);
        Self { name, maker, layers }
    }

    /// Nothing of it is in the caches of the process.
    fn open(&self) -> Chain {
        self.maker.open(self.layers, &Caches::default())
    }
}

/// Measures what `work` does to a new file.
fn to_file(b: &mut Bencher, folder: &Path, mut work: impl FnMut(&mut NewFile)) {
    let path = folder.join("restored.img");
    let mut once = |_| {
        let start = Instant::now();
        let mut target = NewFile::create(&path, IMAGE_BYTES, false).unwrap();
        work(&mut target);
        drop(target);
        let taken = start.elapsed();
        std::fs::remove_file(&path).unwrap();
        taken
    };
    b.iter_custom(|times| (0..times).map(&mut once).sum::<Duration>());
}

fn restores(c: &mut Criterion) {
    let cases = [
        Case::new("base", Shape::Scattered, 1),
        Case::new("base, zero-heavy", Shape::ZeroHeavy, 1),
        Case::new("chain of 100, scattered", Shape::Scattered, 100),
        Case::new("chain of 100, clustered", Shape::Clustered, 100),
    ];
    let context = Context::silent();
    let image = support::mixed(IMAGE_BYTES as usize);
    let folder = tempfile::tempdir().unwrap();

    let mut group = c.benchmark_group("restore to a stream");
    group.throughput(Throughput::Bytes(IMAGE_BYTES)).sampling_mode(SamplingMode::Flat);
    group.bench_function("ceiling: copied", |b| {
        let mut buffer = vec![0; PIECE_BYTES];
        b.iter(|| {
            let pieces = image.chunks(PIECE_BYTES);
            pieces.for_each(|piece| black_box(&mut buffer).copy_from_slice(piece));
        });
    });
    for case in &cases {
        let chain = case.open();
        group.bench_function(case.name, |b| {
            b.iter(|| {
                let mut target = Stream::new(std::io::sink(), "sink");
                restore(&chain, None, &mut target, &context).unwrap()
            });
        });
    }
    group.finish();

    let mut group = c.benchmark_group("restore to a new file");
    group.throughput(Throughput::Bytes(IMAGE_BYTES)).sampling_mode(SamplingMode::Flat);
    group.bench_function("ceiling: written", |b| {
        to_file(b, folder.path(), |target| {
            for (offset, piece) in (0..).step_by(PIECE_BYTES).zip(image.chunks(PIECE_BYTES)) {
                target.write(offset, piece).unwrap();
                target.advance_watermark(offset + piece.len() as u64).unwrap();
            }
            target.finish().unwrap();
        });
    });
    for case in &cases {
        let chain = case.open();
        group.bench_function(case.name, |b| {
            to_file(b, folder.path(), |target| {
                restore(&chain, None, target, &context).unwrap();
            });
        });
    }
    group.finish();
}

criterion_group!(name = benches; config = support::criterion(); targets = restores);
criterion_main!(benches);
