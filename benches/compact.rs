//! The files of a chain merged into one: an image of 256 MiB, a base, and layers in each of which 1 % of
//! the blocks changed, scattered or in a few runs. Into memory, without a device.
//!
//! The ceiling is that of a copy: the output file, read by frames' worth and checksummed, so much as no
//! merge can do without.

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod support;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use imgsnap::base::events::Context;
use imgsnap::chain::{Chain, Fork};
use imgsnap::codec::Compression;
use imgsnap::delta::{Caches, Identity};
use imgsnap::merge::{Plan, merge};
use support::chain::{ChainMaker, Content};
use support::{Image, Shape};
use uuid::Uuid;

const IMAGE_BYTES: u64 = 256 << 20;
const LAYERS: usize = 10;

/// The snapshot in one file; of the layers alone if there is a parent.
fn merged(tip: &Chain, parent: Option<&Chain>, out: &mut Vec<u8>) -> usize {
    let plan = Plan {
        fork: Fork::new(tip.clone(), parent.cloned()).unwrap(),
        identity: Identity {
            snapshot_id: tip.tip().footer().snapshot_id,
            number: tip.tip().footer().number,
            label: None,
            time_seconds: 0,
            time_nanoseconds: 0,
        },
        file_id: Uuid::from_u128(7),
        compression: Compression::Lz4,
        cell_blocks: None,
        kept: Vec::new(),
    };
    out.clear();
    merge(&plan, &Context::silent(), &mut |bytes: &[u8]| {
        out.extend_from_slice(bytes);
        Ok(())
    })
    .unwrap();
    out.len()
}

fn copied(file: &[u8], out: &mut Vec<u8>) -> u32 {
    out.clear();
    let mut sum = 0;
    for piece in file.chunks(64 << 10) {
        sum ^= crc32fast::hash(piece);
        out.extend_from_slice(piece);
    }
    sum
}

fn compactions(c: &mut Criterion) {
    let mut group = c.benchmark_group("compact");
    for shape in [Shape::Scattered, Shape::Clustered] {
        let mut image = Image::new(shape, IMAGE_BYTES);
        let mut maker = ChainMaker::new(&image, Content::All);
        maker.grow(&mut image, LAYERS, 1.0, 1);
        let caches = Caches::default();
        let (tip, base) = (maker.open(LAYERS + 1, &caches), maker.open(1, &caches));
        let mut out = Vec::new();
        for (what, parent) in [("base and layers", None), ("layers", Some(&base))] {
            let bytes = merged(&tip, parent, &mut out);
            group.throughput(Throughput::Bytes(bytes as u64));
            group.bench_function(BenchmarkId::new(what, format!("{shape:?}")), |b| {
                b.iter(|| merged(&tip, parent, &mut out));
            });
            let file = out.clone();
            let id = BenchmarkId::new(format!("ceiling: {what} copied"), format!("{shape:?}"));
            group.bench_function(id, |b| b.iter(|| copied(&file, &mut out)));
        }
    }
    group.finish();
}

criterion_group!(name = benches; config = support::criterion(); targets = compactions);
criterion_main!(benches);
