//! Random reads of 4 KiB of a repository on a server, by the length of the chain: of its first snapshot, and of its last one.
//!
//! benches/stores/chain.sh makes the repository, and sets `IMGSNAP_REPO` and `IMGSNAP_CACHE`. Without them there is nothing to measure.

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout)]

#[path = "../tests/support/random.rs"]
mod random;

use imgsnap::image::Source;
use imgsnap::repo::host::HostState;
use imgsnap::store::{CachePlace, StoreOptions, locate};
use imgsnap::{At, Context, Repository};
use random::Random;
use std::path::Path;
use std::time::Instant;

const READ_BYTES: u64 = 4096;
const READS: u64 = 4000;
const ROUNDS: u64 = 5;

fn main() {
    let (Some(place), Some(cache)) =
        (std::env::var_os("IMGSNAP_REPO"), std::env::var_os("IMGSNAP_CACHE"))
    else {
        println!("skipped: IMGSNAP_REPO and IMGSNAP_CACHE are not set (benches/stores/chain.sh)");
        return;
    };
    let cache = CachePlace { folder: cache.into(), most_bytes: 4 << 30 };
    let options = StoreOptions { cache: Some(cache), ..StoreOptions::default() };
    let context = Context::silent();
    let open = |at: &At| {
        let store = locate(Path::new(&place)).unwrap().store(&options).unwrap();
        let repository = Repository::open_in(store, HostState::of_this_host()).unwrap();
        repository.view("disk", at, &context).unwrap()
    };
    for round in 1..=ROUNDS {
        for (name, at) in [("first", At::Number(1)), ("last", At::Latest)] {
            let begun = Instant::now();
            let view = open(&at);
            let opened = begun.elapsed();
            let places = view.image_bytes() / READ_BYTES;
            let (mut random, mut buffer) = (Random(round), Vec::new());
            // The first half finds the index of most places.
            for part in ["first reads", "later reads"] {
                let begun = Instant::now();
                for _ in 0..READS / 2 {
                    let offset = random.below(places) * READ_BYTES;
                    view.read(offset, READ_BYTES as usize, &mut buffer).unwrap();
                }
                let each = begun.elapsed().as_secs_f64() / (READS / 2) as f64;
                let layers = view.chain().layers().len();
                println!(
                    "round {round}: {name}, {layers} layers: opened in {:.0} ms, {part} {:.3} ms each",
                    opened.as_secs_f64() * 1e3,
                    each * 1e3
                );
            }
        }
    }
}
