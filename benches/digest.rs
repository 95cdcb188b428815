//! The digests of blocks, the test for zeros, and what a block adds to the image digest.
//!
//! The ceiling is every cache line of the same bytes read and summed. They fit the cache: it is the
//! functions that are measured, not the memory. Rates are those of the image, of a term too: one
//! for each 4 KiB.

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod support;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use imgsnap::base::digest::{Digest, DigestAlgorithm, DigestKey, Hasher, is_zero};
use std::hint::black_box;

const BYTES: usize = 256 << 10;

fn digest(c: &mut Criterion) {
    let data = support::mixed(BYTES);
    let zeros = vec![0; BYTES];
    let mut group = c.benchmark_group("digest");
    group.throughput(Throughput::Bytes(BYTES as u64));
    group.bench_function("ceiling: cache lines summed", |b| {
        b.iter(|| support::sum_lines(black_box(&data)));
    });
    for algorithm in [DigestAlgorithm::Xxh3, DigestAlgorithm::Blake3] {
        let hasher = Hasher::new(algorithm, DigestKey([1; 32]));
        for block_bytes in [4 << 10, 64 << 10] {
            group.bench_function(format!("{algorithm} of {} KiB", block_bytes >> 10), |b| {
                b.iter(|| {
                    for block in black_box(&data).chunks(block_bytes) {
                        black_box(hasher.digest(block));
                    }
                });
            });
        }
        let digests: Vec<Digest> = data.chunks(4096).map(|block| hasher.digest(block)).collect();
        group.bench_function(format!("{algorithm} term of the image digest"), |b| {
            b.iter(|| {
                let blocks = (0..).zip(black_box(&digests));
                blocks.fold(0u128, |sum, (n, digest)| sum.wrapping_add(hasher.term(n, *digest)))
            });
        });
    }
    for (name, bytes) in [("zeros", &zeros), ("data", &data)] {
        group.bench_function(format!("zero test of {name}"), |b| {
            b.iter(|| black_box(bytes).chunks(4096).filter(|block| is_zero(block)).count());
        });
    }
    group.finish();
}

criterion_group!(name = benches; config = support::criterion(); targets = digest);
criterion_main!(benches);
