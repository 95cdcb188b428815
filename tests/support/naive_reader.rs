//! A second reader of imgsnap's files, written from FORMAT.md alone.
//!
//! It uses nothing of the crate `imgsnap` and was written without a look at it: where the two
//! disagree, the program or the page is wrong. It is simple and slow, holds everything in memory,
//! and checks every rule. An error begins with the id of the rule that is broken; a rule of a table
//! that has no id of its own goes under the nearest one. It must not panic, whatever the bytes are.

#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

const HEADER: usize = 256;
const FOOTER: usize = 512;
const RECORD: usize = 16;
/// The features of H3.
const FRAME_COUNTS: u64 = 1;
const BASE_IMAGE: u64 = 2;
const PARTS: u64 = 8;
/// `restore` holds the image in memory, and refuses larger ones.
const LIMIT: u64 = 1 << 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Data,
    Zero,
    Unread,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub first: u64,
    pub count: u64,
    pub kind: Kind,
}

impl Run {
    /// One past the last block. `parse` has checked that it is at most 2^50.
    pub fn end(&self) -> u64 {
        self.first + self.count
    }
}

/// One record as the walk from byte 256 finds it.
#[derive(Clone, Debug)]
pub struct Record {
    pub offset: u64,
    /// Record header included.
    pub bytes: u32,
    pub checksum: u32,
    pub body: Body,
}

#[derive(Clone, Debug)]
pub enum Body {
    Frame { codec: u8, blocks: Vec<Vec<u8>> },
    Table(Table),
    Index { level: u32, entries: Vec<Child> },
}

#[derive(Clone, Debug)]
pub struct Table {
    pub first_block: u64,
    pub end_block: u64,
    pub runs: Vec<Run>,
    pub frames: Vec<FrameEntry>,
    /// How many blocks each frame holds, whether the page says so or not.
    pub counts: Vec<u64>,
    pub digests: Vec<[u8; 16]>,
}

#[derive(Clone, Copy, Debug)]
pub struct FrameEntry {
    pub offset: u64,
    pub record_bytes: u32,
    pub checksum: u32,
}

#[derive(Clone, Copy, Debug)]
pub struct Child {
    pub first_block: u64,
    pub end_block: u64,
    pub offset: u64,
    pub record_bytes: u32,
    pub checksum: u32,
}

#[derive(Clone, Debug)]
pub struct Delta {
    // The header.
    pub incompatible: u64,
    pub read_compatible: u64,
    pub compatible: u64,
    pub file_id: [u8; 16],
    pub image_id: [u8; 16],
    pub block_bytes: u32,
    pub frame_blocks: u32,
    pub digest_algorithm: u32,
    pub key: [u8; 32],
    // The footer.
    pub file_bytes: u64,
    pub snapshot_id: [u8; 16],
    pub parent_id: [u8; 16],
    pub number: u64,
    pub image_bytes: u64,
    pub parent_image_bytes: u64,
    pub image_digest: u128,
    pub parent_image_digest: u128,
    pub content_digest: [u8; 16],
    pub data_blocks: u64,
    pub zero_blocks: u64,
    pub unread_blocks: u64,
    pub frame_count: u64,
    pub frame_bytes: u64,
    pub table_count: u64,
    pub index_count: u64,
    pub root_offset: u64,
    pub root_bytes: u32,
    pub root_checksum: u32,
    pub time_seconds: i64,
    pub time_nanoseconds: u32,
    pub label: Option<String>,
    // The records.
    /// Every record, in the order of the file.
    pub records: Vec<Record>,
    /// The runs of all pages, in ascending order.
    pub runs: Vec<Run>,
    /// The data blocks, decoded; none where they are in a base image.
    pub blocks: BTreeMap<u64, Vec<u8>>,
    /// Their digests as the pages have them.
    pub digests: BTreeMap<u64, [u8; 16]>,
    hash: Keyed,
}

impl Delta {
    pub fn is_base(&self) -> bool {
        self.parent_id == [0; 16]
    }

    /// M6: whether the blocks are in another file.
    pub fn has_base_image(&self) -> bool {
        self.incompatible & BASE_IMAGE != 0
    }

    pub fn block_count(&self) -> u64 {
        self.image_bytes.div_ceil(u64::from(self.block_bytes))
    }

    pub fn parent_block_count(&self) -> u64 {
        self.parent_image_bytes.div_ceil(u64::from(self.block_bytes))
    }

    /// `H` of the chain that the file belongs to.
    pub fn h(&self, bytes: &[u8]) -> [u8; 16] {
        self.hash.h(bytes)
    }
}

// -------------------------------------------------------------------------------------------------
// Section 1

/// The function `H` of section 1.1.
#[derive(Clone, Debug)]
struct Keyed {
    algorithm: u32,
    key: [u8; 32],
    secret: [u8; 192],
}

impl Keyed {
    fn new(algorithm: u32, key: [u8; 32]) -> Keyed {
        let mut secret = [0; 192];
        let mut hasher = blake3::Hasher::new_derive_key("imgsnap format 1 xxh3 secret");
        hasher.update(&key);
        hasher.finalize_xof().fill(&mut secret);
        Keyed { algorithm, key, secret }
    }

    fn h(&self, bytes: &[u8]) -> [u8; 16] {
        if self.algorithm == 1 {
            xxhash_rust::xxh3::xxh3_128_with_secret(bytes, &self.secret).to_le_bytes()
        } else {
            let mut first = [0; 16];
            first.copy_from_slice(&blake3::keyed_hash(&self.key, bytes).as_bytes()[..16]);
            first
        }
    }

    /// D2
    fn term(&self, block: u64, digest: [u8; 16]) -> u128 {
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&block.to_le_bytes());
        bytes[8..].copy_from_slice(&digest);
        u128::from_le_bytes(self.h(&bytes))
    }
}

fn ensure(holds: bool, message: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(message()) }
}

/// `count` bytes from `at` on; an error if there are not so many.
fn slice(bytes: &[u8], at: usize, count: usize) -> Result<&[u8], String> {
    at.checked_add(count)
        .and_then(|end| bytes.get(at..end))
        .ok_or_else(|| format!("F3: {count} bytes at {at} are not within {} bytes", bytes.len()))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], String> {
    let mut result = [0; N];
    result.copy_from_slice(slice(bytes, at, N)?);
    Ok(result)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, String> {
    Ok(u32::from_le_bytes(array(bytes, at)?))
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64, String> {
    Ok(u64::from_le_bytes(array(bytes, at)?))
}

fn u128_at(bytes: &[u8], at: usize) -> Result<u128, String> {
    Ok(u128::from_le_bytes(array(bytes, at)?))
}

fn index(value: u64) -> Result<usize, String> {
    usize::try_from(value).map_err(|_| format!("LIMIT: {value} is too much for this machine"))
}

fn all_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

fn sum(values: impl Iterator<Item = u64>) -> Result<u64, String> {
    let mut total: u64 = 0;
    for value in values {
        total = total.checked_add(value).ok_or("E2: the counts overflow")?;
    }
    Ok(total)
}

/// Whether `block` is padded as C4 says in an image of `image_bytes`.
fn padded(number: u64, block: &[u8], image_bytes: u64) -> bool {
    let begin = u128::from(number) * block.len() as u128;
    let within = u128::from(image_bytes).saturating_sub(begin).min(block.len() as u128) as usize;
    all_zero(&block[within..])
}

// -------------------------------------------------------------------------------------------------
// Sections 2 to 4

/// Parses one delta file, and checks every rule of sections 1 to 4 that it alone can show.
pub fn parse(file: &[u8]) -> Result<Delta, String> {
    ensure(file.len() >= HEADER + FOOTER, || format!("F2: only {} bytes", file.len()))?;
    let footer = &file[file.len() - FOOTER..];
    let delta = parse_file(file, footer)?;
    ensure(delta.incompatible & PARTS == 0, || "L1: its parts are not here".to_owned())?;
    check_runs(&delta)?;
    check_content(&delta, file)?;
    Ok(delta)
}

/// Last, because everything else that is wrong makes this wrong too.
fn check_content(delta: &Delta, file: &[u8]) -> Result<(), String> {
    ensure(delta.h(&file[..file.len() - FOOTER]) == delta.content_digest, || {
        "E2: content_digest is not that of the bytes before the footer".to_owned()
    })
}

/// A file of records with a footer that may be made from that of a part.
fn parse_file(file: &[u8], footer: &[u8]) -> Result<Delta, String> {
    ensure(file.len() >= HEADER + FOOTER, || format!("F2: only {} bytes", file.len()))?;
    let footer_offset = file.len() - FOOTER;
    let mut delta = header_and_footer(&file[..HEADER], footer)?;
    ensure(delta.file_bytes == file.len() as u64, || {
        format!("F2: file_bytes is {}, the length {}", delta.file_bytes, file.len())
    })?;

    // Once forward, record by record.
    let mut at = HEADER;
    while at < footer_offset {
        let record = read_record(&file[..footer_offset], at, &delta)?;
        at += record.bytes as usize;
        delta.records.push(record);
    }
    check_frames(&delta)?;
    check_counts_of_records(&delta)?;
    let forward: BTreeSet<u64> = offsets(&delta.records, |body| matches!(body, Body::Table(_)));
    let forward_index = offsets(&delta.records, |body| matches!(body, Body::Index { .. }));

    // Once from the root down, without what the first walk found.
    let mut found = Found::default();
    if delta.root_offset == 0 {
        ensure(delta.root_bytes == 0 && delta.root_checksum == 0, || {
            "E1: there is no root, but root_bytes or root_checksum".to_owned()
        })?;
        ensure(delta.records.is_empty(), || "E1: records, but no root".to_owned())?;
    } else {
        let last = delta.records.last().ok_or("E1: a root, but no records")?;
        ensure(delta.root_offset == last.offset, || {
            format!("E1: the root is at {}, the last record at {}", delta.root_offset, last.offset)
        })?;
        ensure(matches!(last.body, Body::Table(_)) == (delta.table_count == 1), || {
            format!("E1: {} tables, but the root is not of that kind", delta.table_count)
        })?;
        let root = Place {
            offset: delta.root_offset,
            record_bytes: delta.root_bytes,
            checksum: delta.root_checksum,
            rule: "E1",
        };
        descend(&file[..footer_offset], &root, None, &delta, &mut found)?;
    }
    let down: BTreeSet<u64> = found.tables.iter().map(|(offset, _)| *offset).collect();
    ensure(down == forward && down.len() == found.tables.len(), || {
        format!("I2: pages in the file {forward:?}, below the root {down:?}")
    })?;
    ensure(found.indexes == forward_index, || {
        format!("I2: index pages in the file {forward_index:?}, below the root {:?}", found.indexes)
    })?;

    let frames: BTreeMap<u64, &[Vec<u8>]> = delta
        .records
        .iter()
        .filter_map(|record| match &record.body {
            Body::Frame { blocks, .. } => Some((record.offset, blocks.as_slice())),
            _ => None,
        })
        .collect();
    let (mut runs, mut blocks, mut digests) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
    for (_, table) in &found.tables {
        let mut contents = Vec::new();
        for entry in &table.frames {
            contents.extend(frames.get(&entry.offset).copied().ok_or("T5: no such frame")?);
        }
        let data = table.runs.iter().filter(|run| run.kind == Kind::Data);
        let numbers: Vec<u64> = data.flat_map(|run| run.first..run.end()).collect();
        ensure(numbers.len() == table.digests.len(), || {
            format!("T2: {} data blocks, {} digests", numbers.len(), table.digests.len())
        })?;
        digests.extend(numbers.iter().copied().zip(table.digests.iter().copied()));
        let in_frames = if delta.has_base_image() { 0 } else { numbers.len() };
        ensure(contents.len() == in_frames, || {
            format!("T3: {} data blocks, {} in frames", numbers.len(), contents.len())
        })?;
        for ((number, content), digest) in numbers.into_iter().zip(contents).zip(&table.digests) {
            ensure(delta.h(content) == *digest, || format!("D1: the digest of block {number}"))?;
            ensure(padded(number, content, delta.image_bytes), || {
                format!("C4: block {number} is not padded with zeros")
            })?;
            blocks.insert(number, content.clone());
        }
        runs.extend(table.runs.iter().copied());
    }
    (delta.runs, delta.blocks, delta.digests) = (runs, blocks, digests);
    Ok(delta)
}

/// Parses the files of a snapshot; `read` gives the bytes of a part.
pub fn parse_layer(
    file: &[u8],
    read: &mut dyn FnMut(&str) -> Result<Vec<u8>, String>,
) -> Result<Delta, String> {
    ensure(file.len() >= HEADER + FOOTER, || format!("F2: only {} bytes", file.len()))?;
    let footer_offset = file.len() - FOOTER;
    let footer = &file[footer_offset..];
    let mut layer = header_and_footer(&file[..HEADER], footer)?;
    if layer.incompatible & PARTS == 0 {
        return parse(file);
    }
    ensure(layer.file_bytes == file.len() as u64, || "F2: file_bytes of a layer file".to_owned())?;
    check_content(&layer, file)?;
    // L1: one record.
    let payload = index(u64::from(u32_at(file, HEADER + 4)?))?;
    ensure(file[HEADER..HEADER + 4] == *b"PART" && u32_at(file, HEADER + 8)? == 0, || {
        "R4: no PART record".to_owned()
    })?;
    ensure(HEADER + RECORD + payload == footer_offset, || "L1: more than one record".to_owned())?;
    let checksum = u32_at(file, HEADER + 12)?;
    let bytes = slice(file, HEADER + RECORD, payload)?;
    let mut crc = crc32fast::Hasher::new();
    crc.update(&layer.file_id);
    crc.update(&(HEADER as u64).to_le_bytes());
    crc.update(slice(file, HEADER, 12)?);
    crc.update(bytes);
    ensure(crc.finalize() == checksum, || "K2: the PART record".to_owned())?;
    let root = (layer.root_offset, u64::from(layer.root_bytes), layer.root_checksum);
    ensure(root == (HEADER as u64, (RECORD + payload) as u64, checksum), || {
        "L1: the root is not the PART record".to_owned()
    })?;
    let (count, cell) = (u64::from(u32_at(bytes, 0)?), u64_at(bytes, 8)?);
    ensure((1..=8192).contains(&count) && u32_at(bytes, 4)? == 0, || format!("L2: {count} parts"))?;
    ensure((1..=1 << 50).contains(&cell), || format!("L2: cell_blocks is {cell}"))?;
    ensure(payload as u64 == 16 + count * 128, || "L2: the length of the table".to_owned())?;
    let (mut last, mut terms, mut sums) = (0, 0_u128, [0_u64; 7]);
    for entry in bytes[16..].chunks(128) {
        let part = read_part(entry, &layer, footer, read)?;
        let (first, end) = (u64_at(entry, 16)?, u64_at(entry, 24)?);
        let on_grid = first % cell == 0 && (end % cell == 0 || end == 1 << 50);
        ensure(first >= last && first < end && end <= 1 << 50 && on_grid, || {
            format!("L2: a part from {first} to {end}")
        })?;
        last = end;
        terms = terms.wrapping_add(u128_at(entry, 56)?);
        for (at, total) in sums.iter_mut().enumerate() {
            *total = sum([*total, u64_at(entry, 72 + 8 * at)?].into_iter())?;
        }
        layer.runs.extend(part.runs);
        layer.blocks.extend(part.blocks);
        layer.digests.extend(part.digests);
    }
    let said = [
        layer.data_blocks,
        layer.zero_blocks,
        layer.unread_blocks,
        layer.frame_count,
        layer.frame_bytes,
        layer.table_count,
        layer.index_count,
    ];
    ensure(said == sums, || format!("L1: the footer counts {said:?}, the parts {sums:?}"))?;
    let size = |bytes: u64| layer.hash.term(u64::MAX, u128::from(bytes).to_le_bytes());
    let before = match layer.is_base() {
        true => 0,
        false => layer.parent_image_digest.wrapping_sub(size(layer.parent_image_bytes)),
    };
    let after = before.wrapping_add(terms).wrapping_add(size(layer.image_bytes));
    ensure(after == layer.image_digest, || "L4: the image digest of the layer".to_owned())?;
    check_runs(&layer)?;
    Ok(layer)
}

/// G1 to G3, L3: the part that an entry names.
fn read_part(
    entry: &[u8],
    layer: &Delta,
    footer: &[u8],
    read: &mut dyn FnMut(&str) -> Result<Vec<u8>, String>,
) -> Result<Delta, String> {
    let hex: String = entry[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    let [a, b, c, d, e] = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    let file = read(&format!("{a}-{b}-{c}-{d}-{e}.delta"))?;
    ensure(file.len() >= HEADER + FOOTER, || format!("F2: only {} bytes", file.len()))?;
    let own = &file[file.len() - FOOTER..];
    ensure(own[..8] == *b"TRAPGMI\n", || "G1: the magic of the part footer".to_owned())?;
    ensure(crc32fast::hash(&own[..508]) == u32_at(own, 508)?, || {
        "K1: the checksum of the part footer".to_owned()
    })?;
    ensure(all_zero(&own[156..508]), || "C2: reserved bytes of the part footer".to_owned())?;
    ensure(layer.h(own) == entry[40..56], || "L3: another footer_digest".to_owned())?;
    let is_same = own[8..16] == entry[32..40]
        && own[16..32] == entry[16..32]
        && own[32..48] == entry[56..72]
        && own[80..136] == entry[72..128];
    ensure(is_same, || "L3: the footer of the part is not what its entry says".to_owned())?;
    ensure(u64_at(entry, 32)? <= 1 << 50 && u64_at(entry, 112)? > 0, || {
        "L3: a part without tables, or too long".to_owned()
    })?;
    let has_before = u32_at(own, 152)?;
    ensure(has_before == 1 || (has_before == 0 && all_zero(&own[48..64])), || {
        format!("G3: has_before is {has_before}")
    })?;
    // What it has in common with a footer, in the places where that has it.
    let mut like = footer.to_vec();
    like[8..16].copy_from_slice(&own[8..16]);
    like[104..120].copy_from_slice(&own[64..80]);
    like[120..192].copy_from_slice(&own[80..152]);
    let crc = crc32fast::hash(&like[..508]);
    like[508..].copy_from_slice(&crc.to_le_bytes());
    let part = parse_file(&file, &like)?;
    check_content(&part, &file)?;
    ensure(part.incompatible & (PARTS | BASE_IMAGE) == 0, || "G1: its features".to_owned())?;
    let is_like = part.image_id == layer.image_id
        && part.block_bytes == layer.block_bytes
        && part.digest_algorithm == layer.digest_algorithm
        && part.key == layer.key
        && part.frame_blocks <= layer.frame_blocks;
    ensure(is_like, || "L3: the header of a part".to_owned())?;
    let (first, end) = (u64_at(own, 16)?, u64_at(own, 24)?);
    ensure(part.runs.iter().all(|run| run.first >= first && run.end() <= end), || {
        "G2: a run beyond the range of its part".to_owned()
    })?;
    Ok(part)
}

fn header_and_footer(header: &[u8], footer: &[u8]) -> Result<Delta, String> {
    ensure(header[..8] == *b"IMGSNAP\n", || "H1: the magic of the header".to_owned())?;
    ensure(crc32fast::hash(&header[..252]) == u32_at(header, 252)?, || {
        "K1: the checksum of the header".to_owned()
    })?;
    let (version, header_bytes) = (u32_at(header, 8)?, u32_at(header, 12)?);
    ensure(version == 1 && header_bytes == 256, || {
        format!("H2: version {version} with a header of {header_bytes} bytes is not supported")
    })?;
    ensure(footer[..8] == *b"PANSGMI\n", || "F2: the magic of the footer".to_owned())?;
    ensure(crc32fast::hash(&footer[..508]) == u32_at(footer, 508)?, || {
        "K1: the checksum of the footer".to_owned()
    })?;

    let algorithm = u32_at(header, 80)?;
    let key = array(header, 84)?;
    let label_bytes = u32_at(footer, 204)?;
    let delta = Delta {
        incompatible: u64_at(header, 16)?,
        read_compatible: u64_at(header, 24)?,
        compatible: u64_at(header, 32)?,
        file_id: array(header, 40)?,
        image_id: array(header, 56)?,
        block_bytes: u32_at(header, 72)?,
        frame_blocks: u32_at(header, 76)?,
        digest_algorithm: algorithm,
        key,
        file_bytes: u64_at(footer, 8)?,
        snapshot_id: array(footer, 16)?,
        parent_id: array(footer, 32)?,
        number: u64_at(footer, 48)?,
        image_bytes: u64_at(footer, 56)?,
        parent_image_bytes: u64_at(footer, 64)?,
        image_digest: u128_at(footer, 72)?,
        parent_image_digest: u128_at(footer, 88)?,
        content_digest: array(footer, 104)?,
        data_blocks: u64_at(footer, 120)?,
        zero_blocks: u64_at(footer, 128)?,
        unread_blocks: u64_at(footer, 136)?,
        frame_count: u64_at(footer, 144)?,
        frame_bytes: u64_at(footer, 152)?,
        table_count: u64_at(footer, 160)?,
        index_count: u64_at(footer, 168)?,
        root_offset: u64_at(footer, 176)?,
        root_bytes: u32_at(footer, 184)?,
        root_checksum: u32_at(footer, 188)?,
        time_seconds: i64::from_le_bytes(array(footer, 192)?),
        time_nanoseconds: u32_at(footer, 200)?,
        label: label(label_bytes, &footer[208..336])?,
        records: Vec::new(),
        runs: Vec::new(),
        blocks: BTreeMap::new(),
        digests: BTreeMap::new(),
        hash: Keyed::new(algorithm, key),
    };

    let unknown = delta.incompatible & !(FRAME_COUNTS | BASE_IMAGE | PARTS);
    ensure(unknown == 0, || format!("H3: unknown incompatible features {unknown:#x}"))?;
    ensure(delta.incompatible.count_ones() <= 1, || {
        "H3: features that exclude each other".to_owned()
    })?;
    ensure(all_zero(&header[116..252]), || "C2: reserved bytes of the header".to_owned())?;
    ensure(all_zero(&footer[336..508]), || "C2: reserved bytes of the footer".to_owned())?;
    let (block_bytes, frame_blocks) = (delta.block_bytes, delta.frame_blocks);
    ensure(block_bytes.is_power_of_two() && (4096..=1048576).contains(&block_bytes), || {
        format!("H6: block_bytes is {block_bytes}")
    })?;
    let frame_size = u64::from(frame_blocks) * u64::from(block_bytes);
    ensure(frame_blocks == 1 || (frame_blocks > 1 && frame_size <= 262144), || {
        format!("H7: frame_blocks is {frame_blocks}, with blocks of {block_bytes} bytes")
    })?;
    ensure(algorithm == 1 || algorithm == 2, || {
        format!("H8: digest_algorithm {algorithm} is not one of section 1.1")
    })?;

    ensure(delta.snapshot_id != [0; 16], || "C3: snapshot_id is nil".to_owned())?;
    let sizes = 1..=1_u64 << 62;
    ensure(sizes.contains(&delta.image_bytes), || {
        format!("C5: image_bytes is {}", delta.image_bytes)
    })?;
    ensure((1..1 << 48).contains(&delta.number), || format!("E3: number is {}", delta.number))?;
    ensure(delta.time_nanoseconds < 1_000_000_000, || {
        format!("E3: time_nanoseconds is {}", delta.time_nanoseconds)
    })?;
    ensure(delta.is_base() || !delta.has_base_image(), || {
        "M6: a base image under a file that is not a base".to_owned()
    })?;
    if delta.is_base() {
        let nothing = delta.parent_image_bytes == 0 && delta.parent_image_digest == 0;
        ensure(nothing, || "E4: a base with a size or digest of its parent".to_owned())?;
        ensure(delta.zero_blocks == 0, || "E4: a base with zero_blocks".to_owned())?;
    } else {
        ensure(sizes.contains(&delta.parent_image_bytes), || {
            format!("C5: parent_image_bytes is {}", delta.parent_image_bytes)
        })?;
    }
    Ok(delta)
}

fn label(bytes: u32, field: &[u8]) -> Result<Option<String>, String> {
    ensure(bytes as usize <= field.len(), || format!("E5: label_bytes is {bytes}"))?;
    let (text, rest) = field.split_at(bytes as usize);
    ensure(all_zero(rest), || "E5: the label is not filled up with zeros".to_owned())?;
    let text = std::str::from_utf8(text).map_err(|error| format!("E5: the label: {error}"))?;
    ensure(!text.chars().any(char::is_control), || {
        "E5: the label has a control character".to_owned()
    })?;
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

/// The record at offset `at`; `area` is the file up to the footer.
fn read_record(area: &[u8], at: usize, delta: &Delta) -> Result<Record, String> {
    let head = slice(area, at, RECORD)?;
    let (payload_bytes, detail) = (u32_at(head, 4)?, u32_at(head, 8)?);
    let checksum = u32_at(head, 12)?;
    ensure((1..=1310720).contains(&payload_bytes), || {
        format!("R1: payload_bytes of the record at {at} is {payload_bytes}")
    })?;
    let payload = slice(area, at + RECORD, payload_bytes as usize)?;

    let mut crc = crc32fast::Hasher::new();
    crc.update(&delta.file_id);
    crc.update(&(at as u64).to_le_bytes());
    crc.update(&head[..12]);
    crc.update(payload);
    ensure(crc.finalize() == checksum, || format!("K2: the checksum of the record at {at}"))?;

    let body = match &head[..4] {
        b"FRAM" => read_frame(payload, detail, delta),
        b"TABL" => {
            ensure(detail == 0, || format!("R3: detail is {detail}"))?;
            read_table(payload, delta).map(Body::Table)
        }
        b"INDX" => {
            ensure((1..=15).contains(&detail), || format!("R4: level {detail}"))?;
            Ok(Body::Index { level: detail, entries: read_index(payload)? })
        }
        tag => Err(format!("R1: the tag {tag:?} is not known")),
    };
    let body = body.map_err(|error| format!("{error} (record at {at})"))?;
    Ok(Record { offset: at as u64, bytes: payload_bytes + RECORD as u32, checksum, body })
}

/// Section 3.2
fn read_frame(payload: &[u8], detail: u32, delta: &Delta) -> Result<Body, String> {
    let codec = (detail & 0xFF) as u8;
    let count = detail >> 16;
    ensure((detail >> 8) & 0xFF == 0, || format!("R2: detail is {detail:#x}"))?;
    ensure(1 <= count && count <= delta.frame_blocks, || {
        format!("R2: {count} blocks, frame_blocks is {}", delta.frame_blocks)
    })?;
    let block_bytes = delta.block_bytes as usize;
    // H7 keeps this at a mebibyte or less.
    let size = count as usize * block_bytes;
    let decoded = match codec {
        0 => payload.to_vec(),
        1 => {
            let mut decoded = vec![0; size];
            let written = lz4_flex::block::decompress_into(payload, &mut decoded)
                .map_err(|error| format!("R5: LZ4: {error}"))?;
            decoded.truncate(written);
            decoded
        }
        2 => {
            ensure(payload.starts_with(&[0x28, 0xB5, 0x2F, 0xFD]), || {
                "R5: this is not a zstd frame".to_owned()
            })?;
            let first = zstd::zstd_safe::find_frame_compressed_size(payload);
            ensure(first == Ok(payload.len()), || "R5: not exactly one zstd frame".to_owned())?;
            zstd::bulk::decompress(payload, size).map_err(|error| format!("R5: zstd: {error}"))?
        }
        _ => return Err(format!("R2: codec {codec} is not known")),
    };
    ensure(decoded.len() == size, || format!("R5: {} bytes, not {size}", decoded.len()))?;
    let blocks: Vec<Vec<u8>> = decoded.chunks(block_bytes).map(<[u8]>::to_vec).collect();
    ensure(!blocks.iter().any(|block| all_zero(block)), || "R6: a zero block".to_owned())?;
    Ok(Body::Frame { codec, blocks })
}

/// Section 3.3, except T5
fn read_table(payload: &[u8], delta: &Delta) -> Result<Table, String> {
    ensure(payload.len() >= 32, || format!("T1: a page of {} bytes", payload.len()))?;
    let (first_block, end_block) = (u64_at(payload, 0)?, u64_at(payload, 8)?);
    let run_count = u32_at(payload, 16)?;
    let frame_count = u32_at(payload, 20)?;
    let data_count = u32_at(payload, 24)?;
    ensure(u32_at(payload, 28)? == 0, || "C2: a reserved field of a page".to_owned())?;
    ensure((1..=4096).contains(&run_count), || format!("T1: run_count is {run_count}"))?;
    ensure(data_count <= 4096, || format!("T2: data_count is {data_count}"))?;
    let has_counts = delta.incompatible & FRAME_COUNTS != 0;
    let fits = match delta.incompatible {
        _ if delta.has_base_image() => frame_count == 0,
        // As many as there are counts, of which each is at least 1.
        _ if has_counts => frame_count <= data_count,
        _ => frame_count == data_count.div_ceil(delta.frame_blocks),
    };
    ensure(fits, || format!("T4: {frame_count} frames for {data_count} data blocks"))?;
    let (run_count, frame_count) = (run_count as usize, frame_count as usize);
    let data_count = data_count as usize;
    let frames_at = 32 + 8 * run_count;
    let counts_at = frames_at + 16 * frame_count;
    let digests_at = counts_at + if has_counts { 2 * frame_count } else { 0 };
    let end = digests_at + 16 * data_count;
    ensure(payload.len() == end, || format!("T1: {} bytes, not {end}", payload.len()))?;

    ensure(first_block < end_block && end_block <= 1 << 50, || {
        format!("T1: the page is of the blocks {first_block} to {end_block}")
    })?;
    let mut runs: Vec<Run> = Vec::new();
    for at in (32..frames_at).step_by(8) {
        let (start, kind_count) = (u64::from(u32_at(payload, at)?), u32_at(payload, at + 4)?);
        let kind = match kind_count >> 30 {
            0 => Kind::Data,
            1 => Kind::Zero,
            2 => Kind::Unread,
            _ => return Err("T1: a run of kind 3".to_owned()),
        };
        let count = u64::from(kind_count & ((1 << 30) - 1));
        ensure(count >= 1, || "T1: a run of no blocks".to_owned())?;
        // No overflow: first_block is below 2^50.
        let run = Run { first: first_block + start, count, kind };
        match runs.last() {
            None => ensure(start == 0, || format!("T1: the first run starts at {start}"))?,
            Some(before) => ensure(before.end() <= run.first, || {
                format!("T1: run {before:?} is not before {run:?}")
            })?,
        }
        runs.push(run);
    }
    ensure(runs.last().map(Run::end) == Some(end_block), || {
        format!("T1: the last run does not end at {end_block}")
    })?;
    let data = runs.iter().filter(|run| run.kind == Kind::Data);
    let data = sum(data.map(|run| run.count))?;
    ensure(data == data_count as u64, || {
        format!("T2: data_count is {data_count}, the data runs have {data} blocks")
    })?;

    let mut frames = Vec::new();
    for at in (frames_at..counts_at).step_by(16) {
        frames.push(FrameEntry {
            offset: u64_at(payload, at)?,
            record_bytes: u32_at(payload, at + 8)?,
            checksum: u32_at(payload, at + 12)?,
        });
    }
    let most = u64::from(delta.frame_blocks);
    let counts: Vec<u64> = if has_counts {
        let counts = (counts_at..digests_at).step_by(2);
        let counts = counts.map(|at| Ok(u16::from_le_bytes(array(payload, at)?).into()));
        counts.collect::<Result<_, String>>()?
    } else {
        let before = |frame: usize| frame as u64 * most;
        (0..frame_count).map(|frame| most.min(data - before(frame).min(data))).collect()
    };
    for count in &counts {
        ensure((1..=most).contains(count), || format!("T3: {count} blocks in a frame"))?;
    }
    let counted = sum(counts.iter().copied())?;
    ensure(counted == data || delta.has_base_image(), || {
        format!("T3: {counted} blocks in the frames of a page of {data} data blocks")
    })?;
    let mut digests = Vec::new();
    for at in (digests_at..end).step_by(16) {
        digests.push(array(payload, at)?);
    }
    Ok(Table { first_block, end_block, runs, frames, counts, digests })
}

/// Section 3.4, except what needs the children
fn read_index(payload: &[u8]) -> Result<Vec<Child>, String> {
    ensure(payload.len() >= 8, || format!("I1: an index page of {} bytes", payload.len()))?;
    let entry_count = u32_at(payload, 0)?;
    ensure(u32_at(payload, 4)? == 0, || "C2: a reserved field of an index page".to_owned())?;
    ensure((1..=4096).contains(&entry_count), || format!("I1: entry_count is {entry_count}"))?;
    let end = 8 + 32 * entry_count as usize;
    ensure(payload.len() == end, || format!("I1: {} bytes, not {end}", payload.len()))?;
    let mut entries: Vec<Child> = Vec::new();
    for at in (8..end).step_by(32) {
        let child = Child {
            first_block: u64_at(payload, at)?,
            end_block: u64_at(payload, at + 8)?,
            offset: u64_at(payload, at + 16)?,
            record_bytes: u32_at(payload, at + 24)?,
            checksum: u32_at(payload, at + 28)?,
        };
        let after = entries.last().is_none_or(|before| before.end_block <= child.first_block);
        ensure(after && child.first_block < child.end_block, || {
            format!("I1: the entry of the blocks {} to {}", child.first_block, child.end_block)
        })?;
        entries.push(child);
    }
    Ok(entries)
}

fn offsets(records: &[Record], wanted: impl Fn(&Body) -> bool) -> BTreeSet<u64> {
    records.iter().filter(|record| wanted(&record.body)).map(|record| record.offset).collect()
}

/// T3 and T5: before each page stand its frames, and no frame stands anywhere else.
fn check_frames(delta: &Delta) -> Result<(), String> {
    let mut pending: Vec<(&Record, usize)> = Vec::new();
    for record in &delta.records {
        match &record.body {
            Body::Frame { blocks, .. } => pending.push((record, blocks.len())),
            Body::Index { .. } => ensure(pending.is_empty(), || {
                format!("T5: frames before the index page at {}", record.offset)
            })?,
            Body::Table(table) => {
                ensure(table.frames.len() == pending.len(), || {
                    format!("T5: {} frames before the page at {}", pending.len(), record.offset)
                })?;
                let entries = table.frames.iter().zip(&table.counts);
                for ((entry, share), (frame, blocks)) in entries.zip(&pending) {
                    let same = entry.offset == frame.offset
                        && entry.record_bytes == frame.bytes
                        && entry.checksum == frame.checksum;
                    ensure(same, || {
                        format!("T5: {entry:?}, but the frame is at {}", frame.offset)
                    })?;
                    ensure(*blocks as u64 == *share, || {
                        format!("T3: {blocks} blocks, not {share}, at {}", frame.offset)
                    })?;
                }
                pending.clear();
            }
        }
    }
    ensure(pending.is_empty(), || "T5: frames after the last page".to_owned())
}

/// E2, as far as it counts records
fn check_counts_of_records(delta: &Delta) -> Result<(), String> {
    let (mut frames, mut frame_bytes, mut tables, mut indexes) = (0, 0, 0, 0);
    for record in &delta.records {
        match record.body {
            Body::Frame { .. } => {
                frames += 1;
                frame_bytes += u64::from(record.bytes);
            }
            Body::Table(_) => tables += 1,
            Body::Index { .. } => indexes += 1,
        }
    }
    for (name, footer, counted) in [
        ("frame_count", delta.frame_count, frames),
        ("frame_bytes", delta.frame_bytes, frame_bytes),
        ("table_count", delta.table_count, tables),
        ("index_count", delta.index_count, indexes),
    ] {
        ensure(footer == counted, || format!("E2: {name} is {footer}, counted {counted}"))?;
    }
    Ok(())
}

/// Who points to a record, and with what.
struct Place {
    offset: u64,
    record_bytes: u32,
    checksum: u32,
    rule: &'static str,
}

#[derive(Default)]
struct Found {
    /// The pages with their offsets, in the order of their blocks.
    tables: Vec<(u64, Table)>,
    indexes: BTreeSet<u64>,
}

/// Reads the record at `place` and everything below it. `parent` is the level of the INDX record
/// that points to it and the bounds that it gives. The bounds are checked first, so that no record
/// is visited twice.
fn descend(
    area: &[u8],
    place: &Place,
    parent: Option<(u32, u64, u64)>,
    delta: &Delta,
    found: &mut Found,
) -> Result<(), String> {
    let (at, rule) = (place.offset, place.rule);
    ensure(at >= HEADER as u64, || format!("{rule}: a record at {at}"))?;
    let record = read_record(area, index(at)?, delta)?;
    ensure(record.bytes == place.record_bytes && record.checksum == place.checksum, || {
        format!("{rule}: the record at {at} has other record_bytes or another checksum")
    })?;
    let (level, first, end) = match &record.body {
        Body::Frame { .. } => return Err(format!("{rule}: the record at {at} is a frame")),
        Body::Table(table) => (0, table.first_block, table.end_block),
        Body::Index { level, entries } => match (entries.first(), entries.last()) {
            (Some(first), Some(last)) => (*level, first.first_block, last.end_block),
            _ => return Err("I1: no entries".to_owned()),
        },
    };
    if let Some((parent_level, parent_first, parent_end)) = parent {
        ensure(level + 1 == parent_level, || {
            format!("R4: level {level} at {at} under level {parent_level}")
        })?;
        ensure(first == parent_first && end == parent_end, || {
            format!(
                "I2: the record at {at} is of {first} to {end}, not {parent_first} to {parent_end}"
            )
        })?;
    }
    match record.body {
        Body::Table(table) => found.tables.push((at, table)),
        Body::Index { entries, .. } => {
            found.indexes.insert(at);
            for child in entries {
                ensure(child.offset < at, || {
                    format!("I2: the child at {} of the record at {at}", child.offset)
                })?;
                let place = Place {
                    offset: child.offset,
                    record_bytes: child.record_bytes,
                    checksum: child.checksum,
                    rule: "I2",
                };
                let bounds = (level, child.first_block, child.end_block);
                descend(area, &place, Some(bounds), delta, found)?;
            }
        }
        Body::Frame { .. } => {}
    }
    Ok(())
}

/// E2, as far as it counts blocks, and section 4
fn check_runs(delta: &Delta) -> Result<(), String> {
    for pair in delta.runs.windows(2) {
        ensure(pair[0].end() <= pair[1].first, || format!("I1: {:?} and {:?}", pair[0], pair[1]))?;
    }
    for (name, kind, footer) in [
        ("data_blocks", Kind::Data, delta.data_blocks),
        ("zero_blocks", Kind::Zero, delta.zero_blocks),
        ("unread_blocks", Kind::Unread, delta.unread_blocks),
    ] {
        let runs = delta.runs.iter().filter(|run| run.kind == kind);
        let counted = sum(runs.map(|run| run.count))?;
        ensure(!delta.is_base() || kind != Kind::Zero || counted == 0, || {
            "M2: a base has a zero run".to_owned()
        })?;
        ensure(footer == counted, || format!("E2: {name} is {footer}, counted {counted}"))?;
    }

    // M5: in ascending order, so that `covered` grows from the block count to the parent's.
    let (count, parent_count) = (delta.block_count(), delta.parent_block_count());
    let mut covered = count;
    for run in delta.runs.iter().filter(|run| run.end() > count) {
        ensure(run.kind == Kind::Zero && run.end() <= parent_count, || {
            format!("M5: {run:?} in an image of {count} blocks, {parent_count} before")
        })?;
        ensure(run.first <= covered, || format!("M5: blocks {covered} to {}", run.first))?;
        covered = run.end();
    }
    ensure(covered >= parent_count, || {
        format!("M5: no zero run from {covered} to {parent_count}, where the image was shortened")
    })
}

// -------------------------------------------------------------------------------------------------
// Section 5

/// What a chain has of a block that is not zero.
enum Content {
    Block(Vec<u8>),
    Unread,
    /// M6: the base image does not have it any more. Its digest is known.
    Lost([u8; 16]),
}

/// The image at the last of `files`, which are a chain, base first. The image digest of every
/// snapshot in it is computed anew from all its blocks.
pub fn restore(files: &[Vec<u8>]) -> Result<Vec<u8>, String> {
    restore_on(files, &BTreeMap::new())
}

/// The same where the base may have its blocks in a base image: the bytes of each, by the `file_id`
/// of the file.
pub fn restore_on(
    files: &[Vec<u8>],
    base_images: &BTreeMap<[u8; 16], Vec<u8>>,
) -> Result<Vec<u8>, String> {
    let deltas: Result<Vec<Delta>, String> = files.iter().map(|file| parse(file)).collect();
    restore_across(deltas?, base_images, &BTreeSet::new())
}

/// The same where the chains of some snapshots begin from another image: their ids.
fn restore_across(
    layers: Vec<Delta>,
    base_images: &BTreeMap<[u8; 16], Vec<u8>>,
    roots: &BTreeSet<[u8; 16]>,
) -> Result<Vec<u8>, String> {
    let mut deltas: Vec<Delta> = Vec::new();
    // The blocks that are not zero.
    let mut blocks: BTreeMap<u64, Content> = BTreeMap::new();
    for delta in layers {
        ensure(delta.image_bytes <= LIMIT, || {
            format!("LIMIT: an image of {} bytes", delta.image_bytes)
        })?;
        match deltas.last() {
            None => ensure(delta.is_base(), || "N2: the first file is not a base".to_owned())?,
            Some(parent) => check_child(parent, &delta, roots.contains(&delta.snapshot_id))?,
        }
        for run in &delta.runs {
            let old: Vec<u64> =
                blocks.range(run.first..run.end()).map(|(number, _)| *number).collect();
            for number in old {
                blocks.remove(&number);
            }
            // M5 has shown that these are within the image.
            if run.kind == Kind::Unread {
                blocks.extend((run.first..run.end()).map(|number| (number, Content::Unread)));
            }
        }
        for (number, block) in &delta.blocks {
            blocks.insert(*number, Content::Block(block.clone()));
        }
        if delta.has_base_image() {
            let image = base_images.get(&delta.file_id);
            for (number, digest) in &delta.digests {
                let content = match image {
                    Some(image) => in_base_image(&delta, image, *number, *digest)?,
                    None => Content::Lost(*digest),
                };
                blocks.insert(*number, content);
            }
        }
        check_image(&delta, &blocks)?;
        deltas.push(delta);
    }

    let tip = deltas.last().ok_or("N2: a chain of no files")?;
    let block_bytes = u64::from(tip.block_bytes);
    let mut image = vec![0; index(tip.block_count() * block_bytes)?];
    for (number, content) in blocks {
        let block = match content {
            Content::Block(block) => block,
            Content::Unread => return Err(format!("M4: block {number} could not be read")),
            Content::Lost(_) => return Err(format!("M6: block {number} is not in the base image")),
        };
        let at = index(number * block_bytes)?;
        let place = image.get_mut(at..at + block.len()).ok_or("M5: a block beyond the image")?;
        place.copy_from_slice(&block);
    }
    image.truncate(index(tip.image_bytes)?);
    Ok(image)
}

/// M6: a block of a base image, if it is still what it was.
fn in_base_image(
    delta: &Delta,
    image: &[u8],
    number: u64,
    digest: [u8; 16],
) -> Result<Content, String> {
    let mut block = vec![0; delta.block_bytes as usize];
    // Below 2^70: a block number is below 2^50.
    let at = u128::from(number) * u128::from(delta.block_bytes);
    let at = usize::try_from(at).unwrap_or(usize::MAX).min(image.len());
    let have = image.get(at..).unwrap_or_default();
    let have = have.get(..block.len()).unwrap_or(have);
    block[..have.len()].copy_from_slice(have);
    if delta.h(&block) != digest {
        return Ok(Content::Lost(digest));
    }
    ensure(!all_zero(&block), || format!("D4: block {number} is all zero, but has a digest"))?;
    Ok(Content::Block(block))
}

/// N1 and H8
fn check_child(parent: &Delta, child: &Delta, is_root: bool) -> Result<(), String> {
    ensure(child.parent_id == parent.snapshot_id, || {
        format!("N1: the parent_id of number {} is of another snapshot", child.number)
    })?;
    let is_same = child.image_id == parent.image_id;
    ensure(is_same != is_root, || "N1: another image_id, or not another one".to_owned())?;
    ensure(child.parent_image_digest == parent.image_digest, || {
        "N1: another parent_image_digest".to_owned()
    })?;
    ensure(child.parent_image_bytes == parent.image_bytes, || {
        "N1: another parent_image_bytes".to_owned()
    })?;
    let same = child.block_bytes == parent.block_bytes
        && child.digest_algorithm == parent.digest_algorithm
        && child.key == parent.key;
    ensure(same, || "H8: another block_bytes, digest_algorithm or key".to_owned())
}

/// C4, C5 and D3
fn check_image(delta: &Delta, blocks: &BTreeMap<u64, Content>) -> Result<(), String> {
    let size = u128::from(delta.image_bytes).to_le_bytes();
    let mut digest = delta.hash.term(u64::MAX, size);
    for (number, block) in blocks {
        ensure(*number < delta.block_count(), || {
            format!("M5: block {number} is not zero, but beyond the end of the image")
        })?;
        let block_digest = match block {
            Content::Unread => [0xFF; 16],
            Content::Lost(digest) => *digest,
            Content::Block(block) => {
                ensure(padded(*number, block, delta.image_bytes), || {
                    format!("C4: block {number} is not zero beyond the end of the image")
                })?;
                delta.h(block)
            }
        };
        digest = digest.wrapping_add(delta.hash.term(*number, block_digest));
    }
    ensure(digest == delta.image_digest, || {
        format!("D3: the image digest of number {} is {digest:032x} as a number", delta.number)
    })
}

// -------------------------------------------------------------------------------------------------
// Section 6

/// Checks that the pages and records of a snapshot that was taken are cut as imgsnap cuts them.
pub fn check_layout(file: &[u8]) -> Result<(), String> {
    let delta = parse(file)?;
    ensure(delta.incompatible & FRAME_COUNTS == 0, || "O5: this was merged".to_owned())?;
    let frame_blocks = frame_blocks_of(&delta);
    ensure(u64::from(delta.frame_blocks) == frame_blocks, || {
        format!("O4: frame_blocks is {}, not {frame_blocks}", delta.frame_blocks)
    })?;

    // O1 and O2: what the pages should be, from the joined runs.
    let pages = pages_of(&delta);
    check_joined(&pages)?;
    let expected = cut(&join(&delta.runs));
    ensure(pages.len() == expected.len(), || {
        format!("O2: {} pages, not {}", pages.len(), expected.len())
    })?;
    for (page, runs) in pages.iter().zip(&expected) {
        ensure(page.runs == *runs, || {
            format!("O2: the page of block {} is cut in another way", page.first_block)
        })?;
    }

    check_order(&delta)
}

/// O4
fn frame_blocks_of(delta: &Delta) -> u64 {
    let size = if delta.is_base() { 65536 } else { 131072 };
    (size / u64::from(delta.block_bytes)).max(1)
}

/// The pages, in the order of the file.
fn pages_of(delta: &Delta) -> Vec<&Table> {
    let records = delta.records.iter();
    records
        .filter_map(|record| match &record.body {
            Body::Table(table) => Some(table),
            _ => None,
        })
        .collect()
}

/// O1, as far as it is about what stands beside each other
fn check_joined(pages: &[&Table]) -> Result<(), String> {
    for pair in pages.windows(2) {
        ensure(pair[0].end_block <= pair[1].first_block, || {
            format!("O1: the page of block {} is not in order", pair[1].first_block)
        })?;
    }
    for run in pages.iter().flat_map(|page| page.runs.windows(2)) {
        let apart = run[0].kind != run[1].kind || run[0].end() != run[1].first;
        ensure(apart || run[0].count == MOST, || {
            format!("O1: {:?} and {:?} are not joined", run[0], run[1])
        })?;
    }
    Ok(())
}

/// O3: the order of the records. T5 has placed the frames already.
fn check_order(delta: &Delta) -> Result<(), String> {
    let mut records = delta.records.iter().filter(|r| !matches!(r.body, Body::Frame { .. }));
    let mut levels: Vec<Vec<u64>> = vec![Vec::new(); 17];
    for _ in pages_of(delta) {
        let record = records.next().ok_or("O3: a page is missing")?;
        ensure(matches!(record.body, Body::Table(_)), || {
            format!("O3: no page at {}", record.offset)
        })?;
        levels[0].push(record.offset);
        for level in 0..15 {
            if levels[level].len() == 256 {
                close(&mut levels, level, records.next())?;
            }
        }
    }
    for level in 0..15 {
        let left: usize = levels.iter().map(Vec::len).sum();
        if left > 1 && !levels[level].is_empty() {
            close(&mut levels, level, records.next())?;
        }
    }
    ensure(records.next().is_none(), || "O3: more index pages than there should be".to_owned())
}

/// The next record must be the INDX record of `levels[level]`.
fn close(levels: &mut [Vec<u64>], level: usize, record: Option<&Record>) -> Result<(), String> {
    let record = record.ok_or("O3: an index page is missing")?;
    let Body::Index { level: actual, entries } = &record.body else {
        return Err(format!("O3: no index page at {}", record.offset));
    };
    let children: Vec<u64> = entries.iter().map(|child| child.offset).collect();
    ensure(*actual as usize == level + 1 && children == levels[level], || {
        format!("O3: the index page at {} is not that of level {}", record.offset, level + 1)
    })?;
    levels[level].clear();
    levels[level + 1].push(record.offset);
    Ok(())
}

/// The most blocks of a run.
const MOST: u64 = (1 << 30) - 1;

fn join(runs: &[Run]) -> Vec<Run> {
    let mut joined: Vec<Run> = Vec::new();
    for run in runs {
        match joined.last_mut() {
            Some(last) if last.kind == run.kind && last.end() == run.first => {
                last.count += run.count
            }
            _ => joined.push(*run),
        }
    }
    joined
}

/// O2. The 1024th run of a page is taken whole: the page is closed when the run is complete.
fn cut(joined: &[Run]) -> Vec<Vec<Run>> {
    let mut pages = Vec::new();
    let mut page: Vec<Run> = Vec::new();
    let mut data = 0;
    for run in joined {
        let (mut first, mut left) = (run.first, run.count);
        while left > 0 {
            let far = page.first().is_some_and(|begin| first - begin.first >= 1 << 32);
            if far || page.len() == 1024 || data == 1024 {
                pages.push(std::mem::take(&mut page));
                data = 0;
            }
            let mut count = left.min(MOST);
            if run.kind == Kind::Data {
                count = count.min(1024 - data);
                data += count;
            }
            page.push(Run { first, count, kind: run.kind });
            first += count;
            left -= count;
        }
    }
    if !page.is_empty() {
        pages.push(page);
    }
    pages
}

/// Checks that a merged file is cut as O5 says, of a small number of runs between the blocks of a frame.
/// `sources` are the files that it was merged from, and perhaps others below them, base first.
pub fn check_merged_layout(file: &[u8], sources: &[Vec<u8>]) -> Result<(), String> {
    let delta = parse(file)?;
    ensure(delta.incompatible == FRAME_COUNTS, || "O5: there are no frame counts".to_owned())?;
    let frame_blocks = frame_blocks_of(&delta);
    let mut most = frame_blocks + frame_blocks / 2;
    let mut homes: BTreeMap<u64, Home> = BTreeMap::new();
    for (source, bytes) in sources.iter().enumerate() {
        let source_delta = parse(bytes)?;
        most = most.max(source_delta.frame_blocks.into());
        add_homes(source, &source_delta, &mut homes);
    }
    ensure(u64::from(delta.frame_blocks) == most, || {
        format!("O5: frame_blocks is {}, not {most}", delta.frame_blocks)
    })?;

    let pages = pages_of(&delta);
    check_joined(&pages)?;
    let mut cutter = Cutter { frame_blocks, ..Cutter::default() };
    for part in parts_of(&join(&delta.runs), &homes)? {
        cutter.take(&part);
    }
    cutter.close_page();
    ensure(pages.len() == cutter.pages.len(), || {
        format!("O5: {} pages, not {}", pages.len(), cutter.pages.len())
    })?;
    for (page, expected) in pages.iter().zip(&cutter.pages) {
        ensure(page.runs == expected.runs, || {
            format!("O5: the page of block {} is cut in another way", page.first_block)
        })?;
        let counts: Vec<u64> = expected.frames.iter().map(|(count, _)| *count).collect();
        ensure(page.counts == counts, || {
            let (first, counted) = (page.first_block, &page.counts);
            format!("O5: the frames of the page of block {first} have {counted:?}, not {counts:?}")
        })?;
        for (entry, (_, home)) in page.frames.iter().zip(&expected.frames) {
            let Some(home) = home else { continue };
            let payload = |bytes: &[u8], at: u64, count: u32| {
                // What the records say was checked by `parse`. The codec, the blocks, the payload.
                let record = slice(bytes, index(at)?, count as usize)?;
                Ok::<_, String>([slice(record, 4, 8)?, &record[RECORD..]].concat())
            };
            let copied = payload(file, entry.offset, entry.record_bytes)?;
            let original = payload(&sources[home.source], home.frame, home.record_bytes)?;
            ensure(copied == original, || {
                format!("O5: the frame at {} is not the one that it was", entry.offset)
            })?;
        }
    }
    check_order(&delta)
}

/// Where a data block was.
#[derive(Clone, Copy, Debug)]
struct Home {
    source: usize,
    /// Offset and length of the record of its frame.
    frame: u64,
    record_bytes: u32,
    /// Which block of the frame it is, of how many.
    place: u64,
    count: u64,
}

/// M3: what a file has takes the place of what older ones have.
fn add_homes(source: usize, delta: &Delta, homes: &mut BTreeMap<u64, Home>) {
    for page in pages_of(delta) {
        let frames = page.frames.iter().zip(&page.counts);
        let mut places = frames.flat_map(|(frame, count)| {
            let home = Home {
                source,
                frame: frame.offset,
                record_bytes: frame.record_bytes,
                place: 0,
                count: *count,
            };
            (0..*count).map(move |place| Home { place, ..home })
        });
        for run in &page.runs {
            let old: Vec<u64> =
                homes.range(run.first..run.end()).map(|(block, _)| *block).collect();
            for block in old {
                homes.remove(&block);
            }
            if run.kind == Kind::Data {
                // Those of a base image are in no frame.
                homes.extend((run.first..run.end()).zip(&mut places));
            }
        }
    }
}

/// What the merged file is made of: a frame that lives on as a whole, with the runs between its
/// blocks, or else a block or run alone.
#[derive(Debug)]
struct Part {
    /// Data runs have one block here.
    runs: Vec<Run>,
    whole: Option<Home>,
}

fn parts_of(joined: &[Run], homes: &BTreeMap<u64, Home>) -> Result<Vec<Part>, String> {
    let mut pieces: Vec<Run> = Vec::new();
    for run in joined {
        let most = if run.kind == Kind::Data { 1 } else { MOST };
        let (mut first, end) = (run.first, run.end());
        while first < end {
            let count = most.min(end - first);
            pieces.push(Run { first, count, kind: run.kind });
            first += count;
        }
    }
    let mut parts = Vec::new();
    let mut rest = pieces.as_slice();
    while let Some(piece) = rest.first() {
        let home = homes.get(&piece.first).filter(|_| piece.kind == Kind::Data);
        let whole = home.and_then(|home| Some((*home, whole_frame(rest, home, homes)?)));
        let (whole, count) = match whole {
            Some((home, count)) => (Some(home), count),
            None => (None, 1),
        };
        let (runs, after) = rest.split_at(count);
        parts.push(Part { runs: runs.to_vec(), whole });
        rest = after;
    }
    Ok(parts)
}

/// How many pieces the frame takes whose first block is the first of them, if it is whole.
fn whole_frame(pieces: &[Run], home: &Home, homes: &BTreeMap<u64, Home>) -> Option<usize> {
    let mut next = 0;
    for (at, piece) in pieces.iter().enumerate() {
        if piece.kind != Kind::Data {
            continue;
        }
        let here = homes.get(&piece.first)?;
        if (here.source, here.frame, here.place) != (home.source, home.frame, next) {
            return None;
        }
        next += 1;
        if next == home.count {
            return Some(at + 1);
        }
    }
    None
}

/// Cuts frames and pages as O5 says.
#[derive(Default)]
struct Cutter {
    /// F
    frame_blocks: u64,
    page: Cut,
    /// Data blocks since the last frame.
    pending: u64,
    pages: Vec<Cut>,
}

#[derive(Default)]
struct Cut {
    runs: Vec<Run>,
    data: u64,
    /// How many blocks each has, and where it is copied from.
    frames: Vec<(u64, Option<Home>)>,
}

impl Cutter {
    fn take(&mut self, part: &Part) {
        let few = self.pending > 0 && 4 * self.pending < self.frame_blocks;
        match part.whole {
            Some(home) if 2 * home.count >= self.frame_blocks && !few => {
                self.pack(self.pending);
                if self.page.data + home.count > 1024 {
                    self.close_page();
                }
                self.close_unless_fits(&part.runs[0]);
                for run in &part.runs {
                    self.add(*run);
                }
                self.page.frames.push((home.count, Some(home)));
            }
            _ => {
                for run in &part.runs {
                    if run.kind == Kind::Data && self.page.data == 1024 {
                        self.close_page();
                    }
                    self.close_unless_fits(run);
                    self.add(*run);
                    self.pending += if run.kind == Kind::Data { 1 } else { 0 };
                    while self.pending >= self.frame_blocks + self.frame_blocks / 2 {
                        self.pack(self.frame_blocks);
                    }
                }
            }
        }
    }

    fn pack(&mut self, count: u64) {
        if count > 0 {
            self.page.frames.push((count, None));
            self.pending -= count;
        }
    }

    fn joins(&self, run: &Run) -> bool {
        let last = self.page.runs.last();
        last.is_some_and(|last| {
            last.kind == run.kind && last.end() == run.first && last.count + run.count <= MOST
        })
    }

    /// O2, of the runs
    fn close_unless_fits(&mut self, run: &Run) {
        let far = self.page.runs.first().is_some_and(|begin| run.first - begin.first >= 1 << 32);
        if far || (self.page.runs.len() >= 1024 && !self.joins(run)) {
            self.close_page();
        }
    }

    fn add(&mut self, run: Run) {
        self.page.data += if run.kind == Kind::Data { 1 } else { 0 };
        let joins = self.joins(&run);
        match self.page.runs.last_mut() {
            Some(last) if joins => last.count += run.count,
            _ => self.page.runs.push(run),
        }
    }

    fn close_page(&mut self) {
        self.pack(self.pending);
        if !self.page.runs.is_empty() {
            self.pages.push(std::mem::take(&mut self.page));
        }
    }
}

// -------------------------------------------------------------------------------------------------
// Sections 7 and 8

#[derive(Clone, Debug)]
pub struct Manifest {
    pub sequence: u64,
    pub name: String,
    pub image_id: String,
    pub next_number: u64,
    /// Ascending by number.
    pub snapshots: Vec<Snapshot>,
    /// Those that are gone, but whose files others rest on. Ascending by number.
    pub dropped: Vec<Snapshot>,
    /// Everything that it holds.
    pub json: Value,
}

impl Manifest {
    /// All snapshots that have a file.
    fn stored(&self) -> impl Iterator<Item = &Snapshot> {
        self.snapshots.iter().chain(&self.dropped)
    }
}

#[derive(Clone, Debug)]
pub struct Snapshot {
    pub number: u64,
    pub id: String,
    pub parent: Option<String>,
    pub file: String,
    /// Where its blocks are, if they are not in its file.
    pub base_image: Option<PathBuf>,
    /// Everything that the manifest says of it.
    pub json: Value,
}

/// The manifest that rules in the folder REPO/NAME.
pub fn read_manifest(folder: &Path) -> Result<Manifest, String> {
    let mut highest = None;
    for entry in std::fs::read_dir(folder).map_err(|error| format!("P4: {folder:?}: {error}"))? {
        let entry = entry.map_err(|error| format!("P4: {folder:?}: {error}"))?;
        let name = entry.file_name();
        let digits = name.to_str().and_then(|name| name.strip_prefix("manifest."));
        let Some(sequence) = digits.and_then(|digits| digits.parse::<u64>().ok()) else {
            continue;
        };
        // J1: this alone is how the number is written.
        if name.to_str() == Some(format!("manifest.{sequence:06}").as_str()) {
            highest = highest.max(Some(sequence));
        }
    }
    let highest = highest.ok_or_else(|| format!("P4: there is no manifest in {folder:?}"))?;
    let path = folder.join(format!("manifest.{highest:06}"));
    let bytes = std::fs::read(&path).map_err(|error| format!("P4: {path:?}: {error}"))?;
    let manifest = parse_manifest(&bytes)?;
    ensure(manifest.sequence == highest, || {
        format!("J3: sequence is {}, in {path:?}", manifest.sequence)
    })?;
    if let Some(name) = folder.file_name() {
        ensure(name.to_str() == Some(manifest.name.as_str()), || {
            format!("J3: name is {:?}, in the folder {name:?}", manifest.name)
        })?;
    }
    Ok(manifest)
}

/// J5
const KNOWN_NEEDS: [&str; 9] = [
    "protected",
    "forgotten",
    "rollback",
    "pins",
    "attachments",
    "pending",
    "base_of",
    "format",
    "parts",
];

/// The rules of section 8 that the bytes alone can show
pub fn parse_manifest(bytes: &[u8]) -> Result<Manifest, String> {
    let line = bytes.iter().position(|byte| *byte == b'\n').ok_or("J2: no first line")?;
    let (first, rest) = (&bytes[..line], &bytes[line + 1..]);
    let first = std::str::from_utf8(first).map_err(|error| format!("J2: first line: {error}"))?;
    let words: Vec<&str> = first.split(' ').collect();
    ensure(words.first() == Some(&"imgsnap-manifest") && words.len() >= 2, || {
        format!("J2: the first line is {first:?}")
    })?;
    ensure(["1", "2", "3", "4"].contains(&words[1]), || {
        format!("J5: version {:?} is not supported", words[1])
    })?;
    let digest = format!("{:032x}", xxhash_rust::xxh3::xxh3_128(rest));
    ensure(words[2..] == [digest.as_str()], || format!("J2: {first:?}, but it is {digest}"))?;
    // One that an owner has signed says so first; whether that is true only who knows the owner can tell.
    let signed = words[1] == "4";
    let rest = match rest.iter().position(|byte| *byte == b'\n').filter(|_| signed) {
        Some(end) => &rest[end + 1..],
        None => rest,
    };
    let is_commit = signed || words[1] == "3";

    let json: Value = serde_json::from_slice(rest).map_err(|error| format!("J3: {error}"))?;
    let next_number = number_of(&json, "next_number")?;
    let image_id = text_of(&json, "image_id")?;
    uuid(&image_id)?;
    let name = text_of(&json, "name")?;
    check_name(&name)?;
    let is_export = |source: &String| {
        ["nbd://", "nbd+unix://", "qemu:///"].iter().any(|s| source.starts_with(s))
    };
    if let Some(source) = optional_text_of(&json, "source")?.filter(|source| !is_export(source)) {
        path_of(&source).map_err(|error| format!("J3: source: {error}"))?;
    }
    let has_dropped = json.get("dropped").is_some();
    ensure(is_commit || has_dropped == (words[1] == "2"), || {
        format!("J2: version {}, and the key dropped: {has_dropped}", words[1])
    })?;
    let needs = json.get("needs").and_then(Value::as_array);
    let needs: Vec<&str> = needs.into_iter().flatten().filter_map(Value::as_str).collect();
    ensure(!is_commit || needs.iter().all(|need| KNOWN_NEEDS.contains(need)), || {
        format!("J5: {needs:?} is not known")
    })?;
    let snapshots = read_snapshots(&json, "snapshots")?;
    let dropped = if has_dropped { read_snapshots(&json, "dropped")? } else { Vec::new() };
    ensure(!has_dropped || !dropped.is_empty(), || "J3: dropped is empty".to_owned())?;
    if let Some(kept) = json.get("kept") {
        let names = kept.as_array().is_some_and(|names| names.iter().all(Value::is_string));
        ensure(names, || format!("J3: kept is {kept}"))?;
    }

    let (mut numbers, mut parents) = (BTreeMap::new(), BTreeSet::new());
    let (mut labels, mut files) = (BTreeSet::new(), BTreeSet::new());
    let mut all: Vec<&Snapshot> = snapshots.iter().chain(&dropped).collect();
    all.sort_by_key(|snapshot| snapshot.number);
    for pair in all.windows(2) {
        ensure(pair[0].number != pair[1].number, || {
            format!("J4: number {} twice", pair[0].number)
        })?;
    }
    for snapshot in &all {
        let number = snapshot.number;
        ensure(number >= 1 && number < next_number, || {
            format!("J4: number {number}, next_number is {next_number}")
        })?;
        ensure(numbers.insert(uuid(&snapshot.id)?, number).is_none(), || {
            format!("J4: id {} twice", snapshot.id)
        })?;
        if let Some(label) = optional_text_of(&snapshot.json, "label")? {
            ensure(labels.insert(label.clone()), || format!("J4: label {label:?} twice"))?;
        }
        ensure(files.insert(name_of(&snapshot.file)?), || {
            format!("J4: file {:?} twice", snapshot.file)
        })?;
        if let Some(parent) = &snapshot.parent {
            // In ascending order: those that stand there have lower numbers.
            ensure(numbers.contains_key(&uuid(parent)?) && *parent != snapshot.id, || {
                format!("J4: the parent {parent} of number {number}")
            })?;
            parents.insert(uuid(parent)?);
        }
    }
    for snapshot in &dropped {
        ensure(optional_text_of(&snapshot.json, "label")?.is_none(), || {
            format!("J4: number {} is dropped and has a label", snapshot.number)
        })?;
        ensure(parents.contains(&uuid(&snapshot.id)?), || {
            format!("J3: number {} is dropped, and nothing rests on it", snapshot.number)
        })?;
    }
    let is_protected = |s: &Snapshot| s.json.get("protected") == Some(&Value::Bool(true));
    ensure(!dropped.iter().any(is_protected), || "J13: a dropped snapshot is protected".into())?;
    let sequence = number_of(&json, "sequence")?;
    if is_commit {
        check_relations(&json, &snapshots, &dropped, next_number)?;
        check_commit(&json, sequence, &all)?;
    }
    Ok(Manifest { sequence, name, image_id, next_number, snapshots, dropped, json })
}

fn list_of(json: &Value, key: &str) -> Vec<Value> {
    json.get(key).and_then(Value::as_array).cloned().unwrap_or_default()
}

/// J18 to J22
fn check_relations(
    json: &Value,
    snapshots: &[Snapshot],
    dropped: &[Snapshot],
    next_number: u64,
) -> Result<(), String> {
    let mut needed = BTreeSet::new();
    let mut objects: BTreeSet<String> =
        snapshots.iter().chain(dropped).map(|s| s.file.clone()).collect();
    for snapshot in dropped {
        let is_bare =
            snapshot.json.get("pins").is_none() && snapshot.json.get("attachments").is_none();
        ensure(is_bare, || format!("J18, J20: {} is dropped", snapshot.number))?;
    }
    for snapshot in snapshots.iter().chain(dropped) {
        for pin in list_of(&snapshot.json, "pins") {
            uuid(&text_of(&pin, "id")?)?;
            uuid(&text_of(&pin, "image")?)?;
            text_of(&pin, "name")?;
            needed.insert("pins");
        }
        if let Some(of) = snapshot.json.get("base_of") {
            let image = text_of(of, "image")?;
            uuid(&text_of(of, "snapshot")?)?;
            check_name(&text_of(of, "name")?)?;
            ensure(uuid(&image)? != uuid(&text_of(json, "image_id")?)?, || {
                format!("J22: {} is based on its own image", snapshot.number)
            })?;
            let is_root = snapshot.parent.is_none() && snapshot.base_image.is_none();
            ensure(is_root, || format!("J22: {} is no base", snapshot.number))?;
            let pin = format!("{}.pin", text_of(of, "pin")?);
            uuid(&text_of(of, "pin")?)?;
            let condemned = list_of(json, "condemned");
            ensure(!condemned.iter().any(|one| one["object"] == *pin), || {
                format!("J11, J18: {pin} is condemned, and named")
            })?;
            needed.insert("base_of");
        }
        if let Some(group) = snapshot.json.get("group") {
            uuid(&text_of(group, "id")?)?;
            for member in list_of(group, "members") {
                uuid(&text_of(&member, "image")?)?;
                uuid(&text_of(&member, "snapshot")?)?;
            }
        }
        let mut names = BTreeSet::new();
        for attachment in list_of(&snapshot.json, "attachments") {
            let (name, object) = (text_of(&attachment, "name")?, text_of(&attachment, "object")?);
            let is_bad = name.is_empty()
                || name.len() > 255
                || name.starts_with('.')
                || name.contains(|c: char| c == '/' || c.is_control());
            ensure(!is_bad && names.insert(name.clone()), || format!("J20: the name {name:?}"))?;
            uuid(object.strip_suffix(".attachment").ok_or("J20: the name of the object")?)?;
            number_of(&attachment, "bytes")?;
            ensure(text_of(&attachment, "digest")?.len() == 64, || "J20: the digest".into())?;
            ensure(objects.insert(object), || format!("J20: the object of {name:?} twice"))?;
            needed.insert("attachments");
        }
    }
    let mut taken: BTreeSet<u64> = snapshots.iter().chain(dropped).map(|s| s.number).collect();
    for pending in list_of(json, "pending") {
        uuid(&text_of(&pending, "id")?)?;
        let number = number_of(&pending, "number")?;
        let parent = optional_text_of(&pending, "parent")?;
        let is_only_kept = number == 0
            && parent.is_some()
            && pending.get("plan").is_some()
            && list_of(&pending, "objects").is_empty();
        let is_free = number >= 1 && number < next_number && taken.insert(number);
        ensure(is_only_kept || is_free, || format!("J21: the number {number}"))?;
        let has_parent = parent.is_none_or(|id| snapshots.iter().any(|s| s.id == id));
        ensure(has_parent, || format!("J21: the parent of {number}"))?;
        for object in list_of(&pending, "objects") {
            let object = object.as_str().unwrap_or_default().to_owned();
            ensure(object.ends_with(".delta"), || format!("J21: the object {object:?}"))?;
            ensure(objects.insert(object.clone()), || format!("J21: {object} twice"))?;
        }
        text_of(&pending, "expires")?;
        needed.insert("pending");
    }
    // J8: the newest one that says how its disk lay there.
    let mut all: Vec<&Snapshot> = snapshots.iter().chain(dropped).collect();
    all.sort_by_key(|s| s.number);
    let of_base = all.iter().rev().find_map(|s| s.json.get("format").and_then(Value::as_str));
    let live = json.get("format").and_then(Value::as_str);
    if live.is_some_and(|live| live != of_base.unwrap_or("raw")) {
        needed.insert("format");
    }
    let needs = list_of(json, "needs");
    let is_told = |need: &&str| needs.contains(&(*need).into());
    ensure(needed.iter().all(is_told), || format!("J5: {needs:?} lacks some of {needed:?}"))
}

/// J10 to J12
fn check_commit(json: &Value, sequence: u64, stored: &[&Snapshot]) -> Result<(), String> {
    let of = |key: &str| json.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    uuid(&text_of(json, "commit").map_err(|_| "J10: there is no commit")?)?;
    if json.get("previous").is_some() {
        let previous = text_of(json, "previous")?;
        let is_digest = previous.len() == 64 && previous.bytes().all(|b| b.is_ascii_hexdigit());
        ensure(is_digest, || format!("J10: previous is {previous:?}"))?;
    }
    let mut last = 0;
    for ancestor in of("ancestors") {
        uuid(&text_of(&ancestor, "commit")?)?;
        let of = number_of(&ancestor, "sequence")?;
        ensure(last < of && of < sequence, || format!("J10: the ancestor {of}, after {last}"))?;
        last = of;
    }
    let kept = of("kept");
    for condemned in of("condemned") {
        let (object, since) = (text_of(&condemned, "object")?, number_of(&condemned, "sequence")?);
        ensure((1..=sequence).contains(&since), || format!("J11: condemned by {since}"))?;
        let is_attached = |s: &&Snapshot| {
            list_of(&s.json, "attachments").iter().any(|one| one["object"] == *object)
        };
        // The first eight bytes of both ids.
        let is_planned = |one: &Value| {
            let plan = optional_text_of(one, "plan").ok().flatten();
            plan.is_some_and(|plan| plan.get(..18) == object.get(..18))
        };
        let is_pending = of("pending")
            .iter()
            .any(|one| list_of(one, "objects").contains(&object.clone().into()) || is_planned(one));
        let is_named = stored.iter().any(|s| s.file == object || is_attached(s))
            || is_pending
            || kept.contains(&object.clone().into());
        ensure(!is_named, || format!("J11: {object} is condemned, and named"))?;
    }
    let swept = json.get("swept").map_or(Ok(0), |_| number_of(json, "swept"))?;
    ensure(swept <= sequence, || format!("J12: swept is {swept}"))
}

/// An array of snapshots, each with what it alone can show.
fn read_snapshots(json: &Value, key: &str) -> Result<Vec<Snapshot>, String> {
    let entries = json.get(key).and_then(Value::as_array);
    let mut snapshots: Vec<Snapshot> = Vec::new();
    for entry in entries.ok_or_else(|| format!("J3: {key} is not an array"))? {
        check_keys(entry)?;
        let base_image = match entry.get("base_image") {
            None => None,
            Some(_) => Some(path_of(&text_of(entry, "base_image")?)?),
        };
        let snapshot = Snapshot {
            number: number_of(entry, "number")?,
            id: text_of(entry, "id")?,
            parent: optional_text_of(entry, "parent")?,
            file: text_of(entry, "file")?,
            base_image,
            json: entry.clone(),
        };
        if let Some(before) = snapshots.last() {
            ensure(before.number <= snapshot.number, || {
                format!("J3: number {} after {}", snapshot.number, before.number)
            })?;
        }
        snapshots.push(snapshot);
    }
    Ok(snapshots)
}

/// The keys of a snapshot that nothing else here looks at
fn check_keys(entry: &Value) -> Result<(), String> {
    for key in [
        "file_bytes",
        "block_bytes",
        "image_bytes",
        "data_blocks",
        "zero_blocks",
        "unread_blocks",
        "changed_blocks",
        "changed_bytes",
        "frame_bytes",
    ] {
        number_of(entry, key)?;
    }
    for key in ["footer_digest", "image_digest"] {
        hex(&text_of(entry, key)?)?;
    }
    text_of(entry, "time")?;
    optional_text_of(entry, "label")?;
    for key in ["read_bytes", "seconds"] {
        let number_or_null =
            entry.get(key).is_some_and(|value| value.is_number() || value.is_null());
        ensure(number_or_null, || format!("J3: {key} is not a number or null"))?;
    }
    Ok(())
}

/// P2
fn check_name(name: &str) -> Result<(), String> {
    let forbidden = |c: char| c.is_control() || c.is_whitespace() || c == '/' || c == '@';
    let fine = (1..=128).contains(&name.len())
        && !name.contains(forbidden)
        && !name.starts_with(['.', '-']);
    ensure(fine, || format!("P2: the name {name:?}"))
}

fn number_of(json: &Value, key: &str) -> Result<u64, String> {
    let number = json.get(key).and_then(Value::as_u64);
    number.ok_or_else(|| format!("J3: {key} is not a number"))
}

fn text_of(json: &Value, key: &str) -> Result<String, String> {
    let text = json.get(key).and_then(Value::as_str);
    text.map(str::to_owned).ok_or_else(|| format!("J3: {key} is not a string"))
}

fn optional_text_of(json: &Value, key: &str) -> Result<Option<String>, String> {
    match json.get(key) {
        Some(Value::Null) => Ok(None),
        _ => text_of(json, key).map(Some),
    }
}

/// A path: a URI, or, as earlier programs wrote it, the path itself
fn path_of(text: &str) -> Result<PathBuf, String> {
    if text.starts_with('/') {
        return Ok(PathBuf::from(text));
    }
    let bad = || format!("C6: {text:?} is no path");
    let encoded = text.strip_prefix("file://").filter(|path| path.starts_with('/'));
    let mut bytes = encoded.ok_or_else(bad)?.bytes();
    let mut path = Vec::new();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            path.push(byte);
            continue;
        }
        let digits = [bytes.next().ok_or_else(bad)?, bytes.next().ok_or_else(bad)?];
        let digits = std::str::from_utf8(&digits).map_err(|_| bad())?.to_owned();
        path.push(u8::from_str_radix(&digits, 16).map_err(|_| bad())?);
    }
    Ok(PathBuf::from(std::ffi::OsString::from_vec(path)))
}

/// Sixteen bytes from 32 hexadecimal digits, in this order
fn hex(text: &str) -> Result<[u8; 16], String> {
    let fine = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    ensure(fine, || format!("J3: {text:?} is not 32 hexadecimal digits"))?;
    let mut bytes = [0; 16];
    for (at, byte) in bytes.iter_mut().enumerate() {
        let digits = text.get(2 * at..2 * at + 2).unwrap_or_default();
        *byte = u8::from_str_radix(digits, 16).map_err(|error| format!("J3: {error}"))?;
    }
    Ok(bytes)
}

/// C3
fn uuid(text: &str) -> Result<[u8; 16], String> {
    let parts: Vec<usize> = text.split('-').map(str::len).collect();
    ensure(parts == [8, 4, 4, 4, 12], || format!("C3: {text:?} is not a UUID"))?;
    hex(&text.replace('-', "")).map_err(|_| format!("C3: {text:?} is not a UUID"))
}

/// The UUID in the name of a delta file, see section 7
fn name_of(name: &str) -> Result<[u8; 16], String> {
    let stem = name.strip_suffix(".delta");
    stem.and_then(|stem| uuid(stem).ok()).ok_or_else(|| format!("J3: file is {name:?}"))
}

/// The image of snapshot `number` in the folder REPO/NAME. What is in a base image is read from it, and what the
/// chain begins from in another image from there (J22).
pub fn restore_from(folder: &Path, number: u64) -> Result<Vec<u8>, String> {
    let mut chain = Whole::default();
    chain.add(folder, number)?;
    restore_across(chain.layers, &chain.base_images, &chain.roots)
}

/// The files of a chain, base first, of however many images.
#[derive(Default)]
struct Whole {
    layers: Vec<Delta>,
    base_images: BTreeMap<[u8; 16], Vec<u8>>,
    roots: BTreeSet<[u8; 16]>,
}

impl Whole {
    fn add(&mut self, folder: &Path, number: u64) -> Result<(), String> {
        let manifest = read_manifest(folder)?;
        for snapshot in lineage(&manifest, number)? {
            if let Some(of) = snapshot.json.get("base_of") {
                ensure(self.roots.insert(uuid(&snapshot.id)?), || "J22: a circle".to_owned())?;
                self.add_below(folder, &snapshot.id, of)?;
            }
            let layer = read_snapshot(folder, &manifest, snapshot)?;
            // One that cannot be read gives no blocks, and that is an error only if one is needed.
            let image = snapshot.base_image.as_ref().and_then(|path| std::fs::read(path).ok());
            if let Some(bytes) = image {
                self.base_images.insert(layer.file_id, bytes);
            }
            self.layers.push(layer);
        }
        Ok(())
    }

    /// J18, J22
    fn add_below(&mut self, folder: &Path, root: &str, of: &Value) -> Result<(), String> {
        let repository = folder.parent().ok_or("P4: no folder above")?;
        let other = repository.join(text_of(of, "name")?);
        let manifest = read_manifest(&other)?;
        ensure(manifest.image_id == text_of(of, "image")?, || {
            format!("J22: {} is another image", manifest.name)
        })?;
        let (id, pin) = (text_of(of, "snapshot")?, text_of(of, "pin")?);
        let snapshot = manifest.snapshots.iter().find(|s| s.id == id);
        let snapshot = snapshot.ok_or_else(|| format!("J22: {root} depends on {id}"))?;
        let is_pinned = list_of(&snapshot.json, "pins").iter().any(|one| one["id"] == *pin);
        ensure(is_pinned, || format!("J18: {id} is not pinned"))?;
        self.add(&other, snapshot.number)
    }
}

/// The snapshot with a number and its ancestors, dropped ones included; base first.
fn lineage(manifest: &Manifest, number: u64) -> Result<Vec<&Snapshot>, String> {
    let tip = manifest.snapshots.iter().find(|snapshot| snapshot.number == number);
    let mut chain = vec![tip.ok_or_else(|| format!("P4: there is no snapshot {number}"))?];
    while let Some(parent) = chain.last().and_then(|snapshot| snapshot.parent.as_ref()) {
        ensure(chain.len() < manifest.stored().count(), || {
            format!("N2: the chain of number {number} goes round in a circle")
        })?;
        let id = uuid(parent)?;
        let found = manifest.stored().find(|other| uuid(&other.id) == Ok(id));
        chain.push(found.ok_or_else(|| format!("N2: the parent {parent} is missing"))?);
    }
    chain.reverse();
    Ok(chain)
}

/// The files of a snapshot, held against what the manifest says of it.
fn read_snapshot(folder: &Path, manifest: &Manifest, snapshot: &Snapshot) -> Result<Delta, String> {
    let mut parts = Vec::new();
    let mut bytes = 0;
    let mut read = |name: &str| {
        let path = folder.join(name);
        let file = std::fs::read(&path).map_err(|error| format!("P4: {path:?}: {error}"))?;
        bytes += file.len() as u64;
        if name != snapshot.file {
            parts.push(Value::from(name));
        }
        Ok(file)
    };
    let file = read(&snapshot.file)?;
    let delta = parse_layer(&file, &mut read)?;
    ensure(list_of(&snapshot.json, "parts") == parts, || "J3: its parts are others".to_owned())?;
    check_snapshot(manifest, snapshot, &file, &delta, bytes)
        .map_err(|error| format!("{error} (number {})", snapshot.number))?;
    Ok(delta)
}

/// Holds what the manifest says of a snapshot against its files.
fn check_snapshot(
    manifest: &Manifest,
    snapshot: &Snapshot,
    file: &[u8],
    delta: &Delta,
    bytes: u64,
) -> Result<(), String> {
    let json = &snapshot.json;
    let file_bytes = number_of(json, "file_bytes")?;
    ensure(file_bytes == bytes, || format!("J3: file_bytes is {file_bytes}, the length {bytes}"))?;
    ensure(uuid(&manifest.image_id)? == delta.image_id, || "J3: another image_id".to_owned())?;
    ensure(uuid(&snapshot.id)? == delta.snapshot_id, || "J3: another snapshot_id".to_owned())?;
    let parent = match (&snapshot.parent, json.get("base_of")) {
        (None, None) => [0; 16],
        (None, Some(of)) => uuid(&text_of(of, "snapshot")?)?,
        (Some(parent), _) => uuid(parent)?,
    };
    ensure(parent == delta.parent_id, || "J3: another parent_id".to_owned())?;
    ensure(snapshot.base_image.is_none() || delta.has_base_image(), || {
        "J3: a base_image, but its blocks are in its file".to_owned()
    })?;
    let (mut changed_blocks, mut changed_bytes) = (0, 0);
    for run in &delta.runs {
        let end = run.end().min(delta.block_count());
        changed_blocks += end.saturating_sub(run.first);
        let block_bytes = u64::from(delta.block_bytes);
        // Below 2^50 blocks of at most 2^20 bytes.
        let bytes = delta.image_bytes.min(end.saturating_mul(block_bytes));
        changed_bytes += bytes.saturating_sub(run.first.saturating_mul(block_bytes));
    }
    for (key, value) in [
        ("number", delta.number),
        ("block_bytes", u64::from(delta.block_bytes)),
        ("image_bytes", delta.image_bytes),
        ("data_blocks", delta.data_blocks),
        ("zero_blocks", delta.zero_blocks),
        ("unread_blocks", delta.unread_blocks),
        ("frame_bytes", delta.frame_bytes),
        ("changed_blocks", changed_blocks),
        ("changed_bytes", changed_bytes),
    ] {
        let said = number_of(json, key)?;
        ensure(said == value, || format!("J3: {key} is {said}, in the file {value}"))?;
    }
    let footer = file.len().checked_sub(FOOTER).map(|at| &file[at..]).unwrap_or_default();
    ensure(hex(&text_of(json, "footer_digest")?)? == delta.h(footer), || {
        "J3: footer_digest is not that of the file".to_owned()
    })?;
    ensure(hex(&text_of(json, "image_digest")?)? == delta.image_digest.to_le_bytes(), || {
        "J3: image_digest is not that of the file".to_owned()
    })
}
