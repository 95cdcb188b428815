//! Frames compressed and decompressed, of the length that they have in a base (64 KiB) and in a
//! delta (128 KiB).
//!
//! The ceiling is a frame copied. Both ways the memory that is written to is there already. Rates
//! are those of the decoded bytes.

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod support;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use imgsnap::codec::{self, Compression};
use std::hint::black_box;

const COMPRESSIONS: [Compression; 4] =
    [Compression::Lz4, Compression::Zstd(1), Compression::Zstd(3), Compression::None];

/// Runs `row` for each length of a frame, compression and kind of data.
fn rows(c: &mut Criterion, verb: &str, row: impl Fn(&mut criterion::Bencher, Compression, &[u8])) {
    for kib in [64, 128] {
        let mut group = c.benchmark_group(format!("{verb} {kib} KiB"));
        group.throughput(Throughput::Bytes(kib << 10));
        let bytes = (kib << 10) as usize;
        let frames = [
            ("text", support::text(bytes)),
            ("mixed", support::mixed(bytes)),
            ("noise", support::noise(bytes)),
        ];
        group.bench_function("ceiling: copied", |b| {
            let mut out = frames[0].1.clone();
            b.iter(|| black_box(&mut out).copy_from_slice(black_box(&frames[0].1)));
        });
        for compression in COMPRESSIONS {
            for (kind, frame) in &frames {
                // What is stored as it is does not depend on what it is.
                if compression != Compression::None || *kind == "mixed" {
                    let id = BenchmarkId::new(compression.to_string(), kind);
                    group.bench_function(id, |b| row(b, compression, frame));
                }
            }
        }
        group.finish();
    }
}

fn encode(c: &mut Criterion) {
    rows(c, "encode", |b, compression, frame| {
        let mut out = Vec::new();
        b.iter(|| codec::encode(compression, black_box(frame), &mut out).unwrap().1.len());
    });
}

fn decode(c: &mut Criterion) {
    rows(c, "decode", |b, compression, frame| {
        let (mut out, mut raw) = (Vec::new(), vec![0; frame.len()]);
        let (codec, payload) = codec::encode(compression, frame, &mut out).unwrap();
        b.iter(|| codec::decode(codec, black_box(payload), black_box(&mut raw)).unwrap());
    });
}

criterion_group!(name = benches; config = support::criterion(); targets = encode, decode);
criterion_main!(benches);
