//! Reads of a snapshot of 128 MiB, at scattered places of it, or of 8 MiB of it, and one after the other: of a base, and of a
//! chain of 100 in each layer of which 0.1 % of the blocks changed, scattered.
//!
//! The ceiling is the same read of a file that holds the image. All is in the page cache.

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod support;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use imgsnap::delta::Caches;
use imgsnap::image::Source;
use imgsnap::view::SnapshotView;
use std::fs::File;
use std::os::unix::fs::FileExt;
use support::chain::{ChainMaker, Content};
use support::{Image, Random, Shape};

const IMAGE_BYTES: u64 = 128 << 20;

fn reads(c: &mut Criterion) {
    let mut image = Image::new(Shape::Scattered, IMAGE_BYTES);
    let mut maker = ChainMaker::new(&image, Content::All);
    maker.grow(&mut image, 99, 0.1, 1);
    let path = maker.folder().join("vm.img");
    image.write(&path, 0..image.block_count());
    let file = File::open(&path).unwrap();

    let mut group = c.benchmark_group("view");
    for kib in [4, 64, 1024] {
        let bytes = kib << 10;
        group.throughput(Throughput::Bytes(bytes));
        let places = IMAGE_BYTES / bytes;
        let mut random = Random(7);
        let scattered = (0..4096).map(|_| random.below(places) * bytes).collect::<Vec<_>>();
        let sequential = (0..places).map(|place| place * bytes).collect();
        let near = scattered.iter().map(|offset| offset % (8 << 20)).collect();
        for (pattern, offsets) in
            [("scattered", scattered), ("scattered in 8 MiB", near), ("sequential", sequential)]
        {
            let row = format!("{kib} KiB, {pattern}");
            group.bench_function(BenchmarkId::new(&row, "ceiling: file"), |b| {
                let mut buffer = vec![0; bytes as usize];
                let mut offsets = offsets.iter().cycle();
                b.iter(|| file.read_exact_at(&mut buffer, *offsets.next().unwrap()).unwrap());
            });
            for layers in [1, 100] {
                let view = SnapshotView::new(maker.open(layers, &Caches::default()));
                group.bench_function(BenchmarkId::new(&row, format!("chain of {layers}")), |b| {
                    let mut buffer = Vec::new();
                    let mut offsets = offsets.iter().cycle();
                    b.iter(|| {
                        let offset = *offsets.next().unwrap();
                        view.read(offset, bytes as usize, &mut buffer).unwrap().bytes().len()
                    });
                });
            }
        }
    }
    group.finish();
}

criterion_group!(name = benches; config = support::criterion(); targets = reads);
criterion_main!(benches);
