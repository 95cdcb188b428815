//! Throughput of the work that every verb rests on, over deterministic data.
//!
//! Absolute figures mean little on a shared machine: compare rows of one run. `ceiling` is the same image
//! mapped through the same windows, every cache line read and nothing computed.

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use imgsnap::codec::{self, Compression};
use imgsnap::digest::{DigestAlgorithm, DigestKey, Hasher, is_zero};
use imgsnap::progress::Context;
use imgsnap::repository::{At, Defaults, Repository, SnapshotRequest};
use imgsnap::restore::restore;
use imgsnap::source::{RawFile, Source};
use imgsnap::store::{LocalStore, OsDisk};
use imgsnap::target::Stream;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

const IMAGE_BYTES: u64 = 256 << 20;

/// Half text, half noise, in blocks.
fn block(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    let mut reader = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
    reader.fill(&mut bytes[..2048]);
    bytes[2048..].iter_mut().enumerate().for_each(|(i, b)| *b = b"the same words again "[i % 21]);
    bytes
}

fn nouns(c: &mut Criterion) {
    let blocks: Vec<u8> = (0..32).flat_map(block).collect();
    let mut group = c.benchmark_group("nouns");
    group.throughput(Throughput::Bytes(blocks.len() as u64));
    for algorithm in [DigestAlgorithm::Xxh3, DigestAlgorithm::Blake3] {
        let hasher = Hasher::new(algorithm, DigestKey([1; 32]));
        group.bench_function(format!("digest {algorithm} of 4 KiB blocks"), |b| {
            b.iter(|| {
                blocks.chunks(4096).map(|block| hasher.digest(block)).fold(0, |n, d| n ^ d.0[0])
            });
        });
    }
    let zeros = vec![0; blocks.len()];
    group.bench_function("zero test", |b| b.iter(|| zeros.chunks(4096).all(is_zero)));
    for compression in [Compression::Lz4, Compression::Zstd(1)] {
        let mut out = Vec::new();
        group.bench_function(format!("encode {compression} 128 KiB"), |b| {
            b.iter(|| codec::encode(compression, black_box(&blocks), &mut out).unwrap().1.len());
        });
        let (codec, payload) = codec::encode(compression, &blocks, &mut out).unwrap();
        group.bench_function(format!("decode {compression} 128 KiB"), |b| {
            b.iter(|| codec::decode(codec, payload.to_vec(), blocks.len()).unwrap());
        });
    }
    group.finish();
}

fn verbs(c: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("vm.img");
    let file = std::fs::File::create(&image).unwrap();
    for index in 0..IMAGE_BYTES / 4096 {
        file.write_all_at(&block(index), index * 4096).unwrap();
    }
    // An image that is open for writing is refused.
    drop(file);
    std::fs::create_dir(folder.path().join("repo")).unwrap();
    let disk = Arc::new(OsDisk::new(folder.path().join("repo")));
    let repository =
        Repository::init(Arc::new(LocalStore::new(disk)), Defaults::default()).unwrap();
    let context = Context::silent();
    let mut request = SnapshotRequest { image: image.clone(), ..SnapshotRequest::default() };
    repository.snapshot(&request, &context).unwrap();
    let mut group = c.benchmark_group("verbs");
    group.sample_size(10).throughput(Throughput::Bytes(IMAGE_BYTES));
    group.bench_function("ceiling: windows read and summed, one thread", |b| {
        let source = RawFile::open(&image).unwrap();
        let mut buffer = Vec::new();
        b.iter(|| {
            let mut sum = 0u64;
            for offset in (0..IMAGE_BYTES).step_by(2 << 20) {
                let window = source.read(offset, 2 << 20, &mut buffer).unwrap();
                sum += window.bytes().chunks(64).map(|line| u64::from(line[0])).sum::<u64>();
            }
            sum
        });
    });
    request.dry_run = true;
    request.full_scan = true;
    group.bench_function("snapshot of an unchanged image, scanned", |b| {
        b.iter(|| repository.snapshot(&request, &context).unwrap());
    });
    let reader = repository.read("vm", &context).unwrap();
    let chain = repository.chain(&reader, reader.find(&At::Latest).unwrap().id).unwrap();
    group.bench_function("restore to nowhere", |b| {
        b.iter(|| {
            restore(&chain, None, &mut Stream::new(std::io::sink(), "sink"), &context).unwrap()
        });
    });
    group.finish();
}

criterion_group!(benches, nouns, verbs);
criterion_main!(benches);
