//! What the fuzzer begins with: small snapshots of every kind, and the fixtures of the project. Nothing of it
//! is kept in git: it is made when a target starts with an empty folder.

use crate::mend;
use crate::parts::{HEAD, Parts, TOML};
use crate::support::{ChainMaker, Recipe, text};
use imgsnap::base::digest::DigestAlgorithm;
use imgsnap::codec::Compression;
use std::path::{Path, PathBuf};

/// Everything is right after the mending.
const ALL: u8 = mend::CHECKSUMS | mend::LINKS | mend::DIGESTS;

/// Writes the seeds of a target into its corpus: the first folder that is an argument.
pub fn plant(make: impl Fn() -> Vec<Vec<u8>>) {
    let Some(corpus) = std::env::args().skip(1).map(PathBuf::from).find(|path| path.is_dir())
    else {
        return;
    };
    for (number, seed) in make().iter().enumerate() {
        let path = corpus.join(format!("seed-{number:03}"));
        if !path.exists() {
            std::fs::write(path, seed).expect("the corpus can be written to");
        }
    }
}

/// A base, a delta with data and zeros, one that shrinks, and one that grows.
pub fn images() -> Vec<Vec<u8>> {
    let mut first = text(5 * 4096 + 100, 1);
    first[3 * 4096..4 * 4096].fill(0);
    let mut second = first.clone();
    second[4096..8192].fill(0);
    second[9000..9100].fill(7);
    let third = second[..2 * 4096 + 900].to_vec();
    let mut fourth = third.clone();
    fourth.resize(6 * 4096, 9);
    vec![first, second, third, fourth]
}

/// Chains of files, base first, of all codecs and digests, as taken and as merged.
pub fn chains() -> Vec<Vec<Vec<u8>>> {
    let usual = Recipe { threads: 1, ..Recipe::default() };
    let recipes = [
        usual,
        Recipe { compression: Compression::Zstd(1), algorithm: DigestAlgorithm::Blake3, ..usual },
        Recipe { compression: Compression::Zstd(1), block_bytes: 65536, ..usual },
    ];
    let mut chains = Vec::new();
    for recipe in recipes {
        let mut maker = ChainMaker::new(recipe);
        images().iter().for_each(|image| drop(maker.snapshot(image)));
        chains.push(maker.files[..1].to_vec());
        chains.push(maker.files.clone());
        chains.push(vec![maker.files[0].clone(), maker.merged(3, Some(1))]);
        chains.push(vec![maker.merged(4, None)]);
    }
    chains
}

/// The chains as inputs, mended more and less.
pub fn of_chains() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for files in chains() {
        let files: Vec<&[u8]> = files.iter().map(Vec::as_slice).collect();
        for how in [0, mend::CHECKSUMS, mend::CHECKSUMS | mend::LINKS, ALL] {
            seeds.push(Parts::join(how, &files));
        }
    }
    for path in fixtures("format").into_iter().chain(fixtures("damaged")) {
        let bytes = read(&path);
        if bytes.len() < 16 << 10 {
            seeds.push(Parts::join(0, &[&bytes]));
            seeds.push(Parts::join(ALL, &[&bytes]));
        }
    }
    seeds
}

/// Repositories: what there is of each kind of file.
pub fn of_repositories() -> Vec<Vec<u8>> {
    let toml = [TOML, &read(&fixture("repos/0.1.0/repository.toml"))].concat();
    let pruning = [&toml, b"\n[prune]\nkeep_last = 1\ngarbage = 0\n".as_slice()].concat();
    let head = [HEAD, br#"{"snapshot":null,"stat":null,"intent":null}"#].concat();
    let mut seeds = Vec::new();
    for files in chains() {
        let files: Vec<&[u8]> = files.iter().map(Vec::as_slice).collect();
        for how in [0, ALL] {
            seeds.push(Parts::join(how, &files));
            seeds.push(Parts::join(how, &[&files[..], &[&head, &pruning]].concat()));
        }
    }
    let vm: Vec<_> = fixtures("repos/0.1.0/vm");
    let small: Vec<Vec<u8>> = vm.iter().map(|path| read(path)).filter(|b| !b.is_empty()).collect();
    let mut small: Vec<&[u8]> = small.iter().map(Vec::as_slice).collect();
    small.push(&toml);
    seeds.push(Parts::join(mend::CHECKSUMS, &small));
    seeds
}

pub fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_default()
}

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(name)
}

/// All files below a folder of the fixtures, sorted.
pub fn fixtures(name: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![fixture(name)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    files
}
