//! The scan of an image of 256 MiB, all in the page cache, against the snapshot that was taken
//! before a share of it changed. What changed is found, copied and digested, and dropped.
//!
//! The ceiling is every cache line read and summed, through the same windows, by as many threads.

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod support;

use criterion::{
    BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main,
};
use imgsnap::base::events::Context;
use imgsnap::base::pipeline::ordered_map;
use imgsnap::chain::Chain;
use imgsnap::delta::Caches;
use imgsnap::image::{RawFile, Source};
use imgsnap::scan::{BadMedium, Change, Changes, Index, Scope, scan, window_bytes};
use std::hint::black_box;
use support::chain::{ChainMaker, Content};
use support::{Image, SHAPES, SHARES};

const IMAGE_BYTES: u64 = 256 << 20;

fn sum_windows(source: &RawFile, context: &Context) {
    let threads = context.threads();
    let window = window_bytes(threads);
    let mut offsets = (0..IMAGE_BYTES).step_by(window as usize);
    let sum = |offset| {
        let mut buffer = Vec::new();
        let window = source.read(offset, window as usize, &mut buffer)?;
        black_box(support::sum_lines(window.bytes()));
        Ok(())
    };
    ordered_map(threads, threads + 2, || Ok(offsets.next()), sum, Ok).unwrap();
}

/// Blocks that a scan finds changed.
fn count_changes(source: &RawFile, chain: &Chain, context: &Context) -> u64 {
    let mut count = 0;
    let consume = |changes: &Changes| {
        count += changes.list.iter().map(blocks_of).sum::<u64>();
        Ok(())
    };
    scan(source, &Index::Parent(chain), Scope::Whole, BadMedium::Fail, context, consume).unwrap();
    count
}

fn blocks_of(change: &Change) -> u64 {
    change.blocks().count
}

fn scans(c: &mut Criterion) {
    let all = Context::silent();
    let contexts = [("1 thread", all.clone().with_threads(1)), ("all threads", all)];
    for shape in SHAPES {
        let before = Image::new(shape, IMAGE_BYTES);
        let maker = ChainMaker::new(&before, Content::Tables);
        let chain = maker.open(1, &Caches::default());
        let path = maker.folder().join("vm.img");
        before.write(&path, 0..before.block_count());
        let mut group = c.benchmark_group(format!("scan {shape:?}"));
        group.throughput(Throughput::Bytes(IMAGE_BYTES)).sampling_mode(SamplingMode::Flat);
        let source = RawFile::open(&path).unwrap();
        for (threads, context) in &contexts {
            group.bench_function(BenchmarkId::new("ceiling: windows summed", threads), |b| {
                b.iter(|| sum_windows(&source, context));
            });
        }
        drop(source);
        for percent in SHARES {
            let mut after = before.clone();
            // What a smaller share changed is in the file already.
            let changed = after.change(percent, 1);
            after.write(&path, changed.iter().copied());
            let source = RawFile::open(&path).unwrap();
            assert_eq!(count_changes(&source, &chain, &contexts[0].1), changed.len() as u64);
            for (threads, context) in &contexts {
                let id = BenchmarkId::new(format!("{percent} % changed"), threads);
                group.bench_function(id, |b| {
                    b.iter(|| {
                        scan(
                            &source,
                            &Index::Parent(&chain),
                            Scope::Whole,
                            BadMedium::Fail,
                            context,
                            |_| Ok(()),
                        )
                        .unwrap()
                    });
                });
            }
        }
        group.finish();
    }
}

criterion_group!(name = benches; config = support::criterion(); targets = scans);
criterion_main!(benches);
