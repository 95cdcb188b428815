//! The decoders of the delta file's structures: what decodes encodes to the same bytes, and no length in it
//! makes them take more memory than a small multiple of the input.
#![no_main]

use imgsnap::format::footer::FOOTER_BYTES;
use imgsnap::format::header::HEADER_BYTES;
use imgsnap::format::record::RECORD_HEAD_BYTES;
use imgsnap::format::{
    Content, Footer, FrameLayout, Header, IndexPage, PartFooter, PartTable, RecordHead, TablePage,
};
use imgsnap_fuzz::seeds::{fixtures, plant, read};
use imgsnap_fuzz::{chains, meter};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: plant(seeds), |data: &[u8]| {
    let Some((&what, bytes)) = data.split_first() else { return };
    meter::within(bytes.len() * 8 + (64 << 10), || decode(what, bytes));
});

fn decode(what: u8, bytes: &[u8]) {
    let mended = what & 0x80 != 0;
    match what & 7 {
        0 => fixed::<HEADER_BYTES>(bytes, mended, |b| {
            Header::decode(b).map(|header| header.encode())
        }),
        1 => fixed::<FOOTER_BYTES>(bytes, mended, |b| {
            let file_bytes = u64::from_le_bytes(b[8..16].try_into().unwrap());
            let content = if bytes.len() % 2 == 0 { Content::Records } else { Content::Parts };
            Footer::decode(b, file_bytes, content).map(|footer| footer.encode())
        }),
        7 if what & 8 == 0 => fixed::<FOOTER_BYTES>(bytes, mended, |b| {
            let file_bytes = u64::from_le_bytes(b[8..16].try_into().unwrap());
            PartFooter::decode(b, file_bytes).map(|footer| footer.encode())
        }),
        7 => page(bytes, |payload, _| PartTable::decode(payload).map(|table| table.encode())),
        2 => fixed::<RECORD_HEAD_BYTES>(bytes, false, |b| {
            RecordHead::decode(b).map(|head| head.encode())
        }),
        3 => page(bytes, |payload, at| IndexPage::decode(payload, at).map(|page| page.encode())),
        kind => {
            let layout = match kind {
                4 => FrameLayout::Even(1 + u32::from(what >> 3)),
                5 => FrameLayout::Counted(1 + u32::from(what >> 3)),
                _ => FrameLayout::Absent,
            };
            page(bytes, |payload, at| {
                let page = TablePage::decode(payload, at, layout)?;
                for ordinal in 0..page.digests.len() as u32 {
                    let (_, ordinals) = page.frame_of(ordinal);
                    assert!(ordinals.contains(&ordinal), "a block in no frame");
                }
                assert!(page.bounds().count > 0);
                Ok(page.encode(layout))
            });
        }
    }
}

/// A structure of fixed length, whose checksum is put right if that is asked for.
fn fixed<const N: usize>(
    bytes: &[u8],
    mended: bool,
    decode: impl Fn(&[u8; N]) -> imgsnap::base::error::Result<[u8; N]>,
) {
    let mut whole = [0; N];
    whole.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    if mended {
        let crc = crc32fast::hash(&whole[..N - 4]);
        whole[N - 4..].copy_from_slice(&crc.to_le_bytes());
    }
    match decode(&whole) {
        Ok(encoded) => assert!(encoded == whole, "it encodes to other bytes"),
        Err(error) => drop(chains::refusal(error)),
    }
}

/// A page that stands where the first eight bytes say.
fn page(bytes: &[u8], decode: impl Fn(&[u8], u64) -> imgsnap::base::error::Result<Vec<u8>>) {
    let Some((at, payload)) = bytes.split_first_chunk() else { return };
    match decode(payload, u64::from_le_bytes(*at)) {
        Ok(encoded) => assert!(encoded == payload, "it encodes to other bytes"),
        Err(error) => drop(chains::refusal(error)),
    }
}

/// The structures in the fixtures.
fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for path in fixtures("format").into_iter().chain(fixtures("parts")) {
        let file = read(&path);
        let is_delta = file.starts_with(b"IMGSNAP");
        if !is_delta || file.len() < HEADER_BYTES + FOOTER_BYTES || file.len() > 20_000 {
            continue;
        }
        seeds.push([&[0x80], &file[..HEADER_BYTES]].concat());
        let footer = &file[file.len() - FOOTER_BYTES..];
        let kind = if footer.starts_with(b"TRAP") { 0x87 } else { 0x81 };
        seeds.push([&[kind], footer].concat());
        let mut at = HEADER_BYTES;
        while at + RECORD_HEAD_BYTES < file.len() - FOOTER_BYTES {
            let head: &[u8; RECORD_HEAD_BYTES] = file[at..].first_chunk().unwrap();
            let Ok(decoded) = RecordHead::decode(head) else { break };
            let payload = &file[at + RECORD_HEAD_BYTES..][..decoded.payload_bytes as usize];
            seeds.push([&[2], head.as_slice()].concat());
            let place = (at as u64).to_le_bytes();
            let counted = if file[16] & 1 != 0 { 5 } else { 4 | (15 << 3) };
            match &head[..4] {
                b"TABL" => seeds.push([&[counted], place.as_slice(), payload].concat()),
                b"INDX" => seeds.push([&[3], place.as_slice(), payload].concat()),
                b"PART" => seeds.push([&[15], place.as_slice(), payload].concat()),
                _ => {}
            }
            at += decoded.record_bytes() as usize;
        }
    }
    seeds
}
