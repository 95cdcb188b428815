//! The index of an image of 1 GiB, merged from the tables of its chain: a base, and layers in each
//! of which 0.1 % of the blocks changed, scattered. And two branches compared.
//!
//! The chain is opened anew before each run, so that its pages are read and checked, from the page
//! cache of the system. The ceiling is that for the base alone: its pages read, no run looked at.

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod support;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use imgsnap::chain::{Chain, Comparison};
use imgsnap::delta::{Caches, TableCursor};
use support::chain::{ChainMaker, Content};
use support::{Image, Shape};

const IMAGE_BYTES: u64 = 1 << 30;
const PERCENT: f64 = 0.1;
/// The stretch for a window of 8 MiB.
const STRETCH_BLOCKS: u64 = 2048;

fn read_pages(chain: &Chain) -> usize {
    let mut cursor = TableCursor::new(chain.tip().clone());
    let (mut digests, mut block) = (0, 0);
    loop {
        cursor.seek(block).unwrap();
        let Some((page, _)) = cursor.run() else { return digests };
        digests += page.digests.len();
        block = page.bounds().end();
    }
}

fn merge_all(chain: &Chain) -> usize {
    let count = chain.geometry().block_count();
    let mut cursor = chain.cursor();
    let mut spans = 0;
    while cursor.position() < count {
        let end = count.min(cursor.position() + STRETCH_BLOCKS);
        spans += cursor.chunk(end, usize::MAX).unwrap().spans.len();
    }
    spans
}

fn compare(before: &Chain, after: &Chain) -> usize {
    let mut comparison = Comparison::new(before, after);
    let mut spans = 0;
    while let Some((_, stretch)) = comparison.step().unwrap() {
        spans += stretch.spans.len();
    }
    spans
}

fn merges(c: &mut Criterion) {
    let mut image = Image::new(Shape::Scattered, IMAGE_BYTES);
    let mut maker = ChainMaker::new(&image, Content::Tables);
    let mut forks = Vec::new();
    let mut layers = 1;
    for fork in [5, 50] {
        maker.grow(&mut image, fork - layers, PERCENT, layers as u64);
        layers = fork;
        let (mut image, mut branch) = (image.clone(), maker.clone());
        branch.grow(&mut image, fork, PERCENT, 1000);
        forks.push((fork, branch));
    }
    maker.grow(&mut image, 100 - layers, PERCENT, layers as u64);

    let mut group = c.benchmark_group("merge");
    group.throughput(Throughput::Elements(image.block_count()));
    let open = |layers| maker.open(layers, &Caches::default());
    group.bench_function("ceiling: pages of the base read", |b| {
        b.iter_batched_ref(|| open(1), |chain| read_pages(chain), BatchSize::PerIteration);
    });
    for layers in [1, 10, 100] {
        group.bench_function(BenchmarkId::new("chain of", layers), |b| {
            b.iter_batched_ref(|| open(layers), |chain| merge_all(chain), BatchSize::PerIteration);
        });
    }
    for (fork, branch) in &forks {
        let layers = 2 * fork;
        let open = || {
            let caches = Caches::default();
            (maker.open(layers, &caches), branch.open(layers, &caches))
        };
        let id = BenchmarkId::new("branches from the middle of", layers);
        group.bench_function(id, |b| {
            b.iter_batched_ref(open, |(one, other)| compare(one, other), BatchSize::PerIteration);
        });
    }
    group.finish();
}

criterion_group!(name = benches; config = support::criterion(); targets = merges);
criterion_main!(benches);
