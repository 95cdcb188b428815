//! Decompression: to exactly the length that is asked for, and into no more memory; what is encoded comes
//! back.
#![no_main]

use imgsnap::codec::{self, Codec, Compression};
use imgsnap_fuzz::meter;
use imgsnap_fuzz::seeds::plant;
use imgsnap_fuzz::support::text;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: plant(seeds), |data: &[u8]| {
    let [which, length, payload @ ..] = data else { return };
    let mut raw = vec![0; usize::from(*length) * 1024];
    let Some(codec) = Codec::from_byte(which % 4) else { return back(*which, payload) };
    // The contexts of the codecs are of a fixed size.
    meter::within(1 << 20, || {
        let decoded = codec::decode(codec, payload, &mut raw);
        decoded.map_err(imgsnap_fuzz::chains::refusal).is_ok()
    });
});

/// What is encoded decodes to itself.
fn back(which: u8, raw: &[u8]) {
    let compression = match which / 4 % 3 {
        0 => Compression::None,
        1 => Compression::Lz4,
        _ => Compression::Zstd(1),
    };
    let mut out = Vec::new();
    let (codec, payload) = codec::encode(compression, raw, &mut out).expect("everything encodes");
    let mut decoded = vec![1; raw.len()];
    codec::decode(codec, payload, &mut decoded).expect("what was encoded decodes");
    assert!(decoded == raw, "other bytes came back");
}

fn seeds() -> Vec<Vec<u8>> {
    let raw = text(4096, 3);
    let mut seeds = vec![[&[3, 0], &raw[..500]].concat()];
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd(1)] {
        let mut out = Vec::new();
        let (codec, payload) = codec::encode(compression, &raw, &mut out).expect("text encodes");
        seeds.push([&[codec as u8, 4], payload].concat());
    }
    seeds
}
