//! Puts right what would stop the fuzzer at the door: checksums, then what refers to what, then digests. The
//! program is the same as ever; it is the input that a careful enemy would have made.

use crate::support::open_chain;
use imgsnap::base::digest::{DigestAlgorithm, DigestKey, Hasher, ImageDigest};
use imgsnap::chain::digest_steps;
use imgsnap::codec::{self, Codec};
use imgsnap::format::footer::FOOTER_BYTES;
use imgsnap::format::header::HEADER_BYTES;
use imgsnap::format::record::RECORD_HEAD_BYTES;

/// Checksums of header, records and footer.
pub const CHECKSUMS: u8 = 1;
/// What refers to what: pages to frames, index pages to pages, the footer to all of them.
pub const LINKS: u8 = 2;
/// Digests of blocks, files and images, and what a child says of its parent.
pub const DIGESTS: u8 = 4;

/// The files of a chain, base first.
pub fn chain(files: &mut [Vec<u8>], how: u8) {
    let whole = |file: &[u8]| file.len() >= HEADER_BYTES + FOOTER_BYTES;
    if !files.iter().all(|file| whole(file)) {
        return;
    }
    let mut parent: Option<Vec<u8>> = None;
    for file in files.iter_mut() {
        if how & DIGESTS != 0 {
            parent.as_ref().inspect(|parent| follow(file, parent));
        }
        for _ in 0..2 {
            // Twice: a digest changes the page that it stands in.
            one(file, how);
        }
        parent = Some(file.clone());
    }
    if how & DIGESTS != 0 {
        image_digests(files, how);
    }
}

fn one(file: &mut [u8], how: u8) {
    let records = walk(file);
    if how & DIGESTS != 0 {
        block_digests(file, &records);
    }
    if how & LINKS != 0 {
        links(file, &records);
    }
    if how & DIGESTS != 0 {
        let end = file.len() - FOOTER_BYTES;
        let mut content = hasher(file).stream();
        content.update(&file[..end]);
        let digest = content.digest();
        file[end + 104..end + 120].copy_from_slice(&digest.0);
    }
    if how & CHECKSUMS != 0 {
        for record in &records {
            seal(file, record);
        }
        put_u32(file, 252, crc32fast::hash(&file[..252]));
        let end = file.len() - FOOTER_BYTES;
        let crc = crc32fast::hash(&file[end..end + 508]);
        put_u32(file, end + 508, crc);
    }
}

struct Record {
    at: usize,
    end: usize,
}

impl Record {
    fn payload(&self) -> std::ops::Range<usize> {
        self.at + RECORD_HEAD_BYTES..self.end
    }
}

/// As far as they can be followed.
fn walk(file: &[u8]) -> Vec<Record> {
    let (mut at, end) = (HEADER_BYTES, file.len() - FOOTER_BYTES);
    let mut records = Vec::new();
    while at + RECORD_HEAD_BYTES <= end {
        let next = at + RECORD_HEAD_BYTES + u32_at(file, at + 4) as usize;
        if next > end {
            break;
        }
        records.push(Record { at, end: next });
        at = next;
    }
    records
}

fn seal(file: &mut [u8], record: &Record) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&file[40..56]);
    crc.update(&(record.at as u64).to_le_bytes());
    crc.update(&file[record.at..record.at + 12]);
    crc.update(&file[record.payload()]);
    let crc = crc.finalize();
    put_u32(file, record.at + 12, crc);
    crc
}

/// A record as those above it name it.
struct Named {
    at: u64,
    bytes: u32,
    checksum: u32,
    bounds: (u64, u64),
    level: u32,
}

fn links(file: &mut [u8], records: &[Record]) {
    let (mut frames, mut orphans) = (Vec::new(), Vec::<Named>::new());
    let (mut counts, mut frame_bytes) = ([0u64; 3], 0u64);
    let mut blocks = [0u64; 3];
    let mut last = (0, 0, 0);
    for record in records {
        let bytes = (record.end - record.at) as u32;
        let payload = record.payload();
        let tag: [u8; 4] = file[record.at..record.at + 4].try_into().unwrap_or_default();
        let bounds = match &tag {
            b"FRAM" => {
                counts[0] += 1;
                frame_bytes += u64::from(bytes);
                let checksum = seal(file, record);
                frames.push((record.at as u64, bytes, checksum));
                continue;
            }
            b"TABL" if payload.len() >= 32 => {
                counts[1] += 1;
                count_runs(file, &payload, &mut blocks);
                let runs = u32_at(file, payload.start + 16) as usize;
                let place = payload.start.saturating_add(32).saturating_add(runs.saturating_mul(8));
                for (index, frame) in frames.drain(..).enumerate() {
                    let at = place.saturating_add(index * 16);
                    if at.saturating_add(16) <= payload.end {
                        put_place(file, at, frame);
                    }
                }
                (u64_at(file, payload.start), u64_at(file, payload.start + 8))
            }
            b"INDX" if payload.len() >= 8 => {
                counts[2] += 1;
                let level = u32_at(file, record.at + 8);
                let entries = (payload.len() - 8) / 32;
                let below = orphans.iter().position(|o| o.level + 1 == level).unwrap_or(0);
                for index in 0..entries.min(orphans.len() - below.min(orphans.len())) {
                    let child = &orphans[below];
                    if child.level + 1 != level {
                        break;
                    }
                    let at = payload.start + 8 + index * 32;
                    put_u64(file, at, child.bounds.0);
                    put_u64(file, at + 8, child.bounds.1);
                    put_place(file, at + 16, (child.at, child.bytes, child.checksum));
                    orphans.remove(below);
                }
                if entries == 0 {
                    continue;
                }
                let (first, last) = (payload.start + 8, payload.start + 8 + (entries - 1) * 32);
                (u64_at(file, first), u64_at(file, last + 8))
            }
            _ => continue,
        };
        let level = if &tag == b"INDX" { u32_at(file, record.at + 8) } else { 0 };
        let checksum = seal(file, record);
        orphans.push(Named { at: record.at as u64, bytes, checksum, bounds, level });
        last = (record.at as u64, bytes, checksum);
    }
    let end = file.len() - FOOTER_BYTES;
    let file_bytes = file.len() as u64;
    put_u64(file, end + 8, file_bytes);
    for (index, value) in
        [blocks[0], blocks[1], blocks[2], counts[0], frame_bytes, counts[1], counts[2]]
            .into_iter()
            .enumerate()
    {
        put_u64(file, end + 120 + index * 8, value);
    }
    put_place(file, end + 176, last);
}

fn count_runs(file: &[u8], payload: &std::ops::Range<usize>, blocks: &mut [u64; 3]) {
    let runs = u32_at(file, payload.start + 16) as usize;
    for index in 0..runs.min((payload.len() - 32) / 8) {
        let kind_count = u32_at(file, payload.start + 32 + index * 8 + 4);
        if let Some(sum) = blocks.get_mut((kind_count >> 30) as usize) {
            *sum += u64::from(kind_count & 0x3fff_ffff);
        }
    }
}

/// Of each page, those of the blocks in the frames before it, as far as they decode.
fn block_digests(file: &mut [u8], records: &[Record]) {
    let hasher = hasher(file);
    let size = u32_at(file, 72) as usize;
    if !(4096..=1 << 20).contains(&size) {
        return;
    }
    let mut digests = Vec::new();
    for record in records {
        let payload = record.payload();
        match &file[record.at..record.at + 4] {
            b"FRAM" => {
                let detail = u32_at(file, record.at + 8);
                let blocks = (detail >> 16) as usize;
                let Some(codec) = Codec::from_byte(detail as u8) else { continue };
                let mut raw = vec![0; blocks.min(256) * size];
                if codec::decode(codec, &file[payload], &mut raw).is_ok() {
                    digests.extend(raw.chunks(size).map(|block| hasher.digest(block)));
                }
            }
            b"TABL" => {
                for (index, digest) in digests.drain(..).rev().enumerate() {
                    let at = payload.end.saturating_sub((index + 1) * 16);
                    if at >= payload.start + 32 {
                        file[at..at + 16].copy_from_slice(&digest.0);
                    }
                }
            }
            _ => {}
        }
    }
}

/// What a child says of its parent.
fn follow(file: &mut [u8], parent: &[u8]) {
    let (end, above) = (file.len() - FOOTER_BYTES, parent.len() - FOOTER_BYTES);
    file[56..76].copy_from_slice(&parent[56..76]);
    file[80..116].copy_from_slice(&parent[80..116]);
    file[end + 32..end + 48].copy_from_slice(&parent[above + 16..above + 32]);
    file[end + 64..end + 72].copy_from_slice(&parent[above + 56..above + 64]);
    file[end + 88..end + 104].copy_from_slice(&parent[above + 72..above + 88]);
}

/// Those that the tables give.
fn image_digests(files: &mut [Vec<u8>], how: u8) {
    let Ok(chain) = open_chain(files) else { return };
    if crate::chains::unread_blocks(&chain).is_none() {
        return;
    }
    let Ok(mut steps) = digest_steps(&chain, &crate::context()) else { return };
    steps.reverse();
    let mut sum = 0u128;
    let mut parent: Option<Vec<u8>> = None;
    for (file, step) in files.iter_mut().zip(steps) {
        let end = file.len() - FOOTER_BYTES;
        sum = sum.wrapping_add(step);
        let size_term = hasher(file).size_term(u64_at(file, end + 56));
        let digest = ImageDigest(sum).plus(size_term);
        file[end + 72..end + 88].copy_from_slice(&digest.0.to_le_bytes());
        parent.as_ref().inspect(|parent| follow(file, parent));
        one(file, how);
        parent = Some(file.clone());
    }
}

/// The digest in the first line of a manifest.
pub fn manifest(bytes: &mut Vec<u8>) {
    let Some(end) = bytes.iter().position(|b| *b == b'\n') else { return };
    let Some(space) = bytes[..end].iter().rposition(|b| *b == b' ') else { return };
    let digest = format!("{:032x}", xxhash_rust::xxh3::xxh3_128(&bytes[end + 1..]));
    bytes.splice(space + 1..end, digest.into_bytes());
}

fn hasher(file: &[u8]) -> Hasher {
    let algorithm = match u32_at(file, 80) {
        2 => DigestAlgorithm::Blake3,
        _ => DigestAlgorithm::Xxh3,
    };
    let mut key = [0; 32];
    key.copy_from_slice(&file[84..116]);
    Hasher::new(algorithm, DigestKey(key))
}

fn put_place(file: &mut [u8], at: usize, (offset, bytes, checksum): (u64, u32, u32)) {
    put_u64(file, at, offset);
    put_u32(file, at + 8, bytes);
    put_u32(file, at + 12, checksum);
}

fn u32_at(file: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(file[at..at + 4].try_into().unwrap_or_default())
}

fn u64_at(file: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(file[at..at + 8].try_into().unwrap_or_default())
}

fn put_u32(file: &mut [u8], at: usize, value: u32) {
    file[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn put_u64(file: &mut [u8], at: usize, value: u64) {
    file[at..at + 8].copy_from_slice(&value.to_le_bytes());
}
