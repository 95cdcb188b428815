//! FORMAT.md held against the program: its tables against the structures, its rules against the
//! tests, its golden files against writer, reader and second reader.

use crate::support::naive_reader::{self, Body, Kind};
use crate::support::{
    ChainMaker, MemorySource, Recipe, fixtures, is_blessing, merge_chain, open_chain,
    open_chain_on, restore_chain, text,
};
use imgsnap::base::digest::{Digest, DigestAlgorithm};
use imgsnap::base::events::Context;
use imgsnap::base::units::{BlockRange, BlockSize};
use imgsnap::codec::Compression;
use imgsnap::delta::{DeltaWriter, Piece, Segmenter};
use imgsnap::format::footer::FooterWire;
use imgsnap::format::header::HeaderWire;
use imgsnap::format::index::{ChildWire, IndexWire};
use imgsnap::format::part::{PartFooterWire, PartWire, PartsWire};
use imgsnap::format::record::RecordWire;
use imgsnap::format::table::{FrameWire, RunWire, TableWire};
use imgsnap::format::{Content, Footer, Header, IndexPage, RunKind, TablePage};
use imgsnap::ops::snapshot::engine::{Plan, take};
use imgsnap::scan::Scope;
use std::collections::BTreeMap;
use std::mem::offset_of;

const SPECIFICATION: &str = include_str!("../../FORMAT.md");

/// Length of a structure, and name, offset and length of each of its fields.
type Layout = (usize, Vec<(String, usize, usize)>);

/// Name and offset of each field, and the length of the structure, of every table in FORMAT.md.
fn tables() -> BTreeMap<String, Layout> {
    let mut tables = BTreeMap::new();
    let mut current: Option<String> = None;
    for line in SPECIFICATION.lines() {
        if line.starts_with('#') {
            current = None;
            if let Some((_, rest)) = line.split_once('`')
                && let Some((name, length)) = rest.split_once("`, ")
            {
                let length = length.strip_suffix(" bytes").unwrap().parse().unwrap();
                tables.insert(name.to_owned(), (length, Vec::new()));
                current = Some(name.to_owned());
            }
        }
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        if let (Some(name), [_, offset, size, field, ..]) = (&current, cells.as_slice())
            && let (Ok(offset), Ok(size)) = (offset.parse(), size.parse())
        {
            tables.get_mut(name).unwrap().1.push(((*field).to_owned(), offset, size));
        }
    }
    tables
}

macro_rules! layout {
    ($tables:ident, $wire:ident: $($field:ident),+) => {{
        let (length, fields) = $tables.remove(stringify!($wire)).expect(stringify!($wire));
        assert_eq!(length, size_of::<$wire>(), stringify!($wire));
        let ours = [$((stringify!($field).to_owned(), offset_of!($wire, $field))),+];
        let theirs: Vec<_> = fields.iter().map(|(name, offset, _)| (name.clone(), *offset)).collect();
        assert_eq!(theirs, ours, stringify!($wire));
        let mut end = 0;
        for (name, offset, size) in fields {
            assert_eq!(offset, end, "{} of {} follows a gap", name, stringify!($wire));
            end = offset + size;
        }
        assert_eq!(end, length, "the fields of {} fill it", stringify!($wire));
    }};
}

#[test]
fn tables_of_the_specification_are_the_structures_of_the_program() {
    let mut tables = tables();
    layout!(tables, HeaderWire: magic, version, header_bytes, incompatible, read_compatible, compatible,
        file_id, image_id, block_bytes, frame_blocks, digest_algorithm, key, reserved, checksum);
    layout!(tables, FooterWire: magic, file_bytes, snapshot_id, parent_id, number, image_bytes,
        parent_image_bytes, image_digest, parent_image_digest, content_digest, data_blocks, zero_blocks,
        unread_blocks, frame_count, frame_bytes, table_count, index_count, root_offset, root_bytes,
        root_checksum, time_seconds, time_nanoseconds, label_bytes, label, reserved, checksum);
    layout!(tables, RecordWire: tag, payload_bytes, detail, checksum);
    layout!(tables, TableWire: first_block, end_block, run_count, frame_count, data_count, reserved);
    layout!(tables, RunWire: start, kind_count);
    layout!(tables, FrameWire: offset, record_bytes, checksum);
    layout!(tables, IndexWire: entry_count, reserved);
    layout!(tables, ChildWire: first_block, end_block, offset, record_bytes, checksum);
    layout!(tables, PartFooterWire: magic, file_bytes, first_block, end_block, term_difference, before_terms,
        content_digest, counts, root_offset, root_bytes, root_checksum, has_before, reserved, checksum);
    layout!(tables, PartsWire: part_count, reserved, cell_blocks);
    layout!(tables, PartWire: object, first_block, end_block, file_bytes, footer_digest, term_difference,
        counts);
    assert!(tables.is_empty(), "not compared: {:?}", tables.keys());
}

#[test]
fn every_rule_of_the_specification_is_cited_by_a_test() {
    let mut sources = String::new();
    let mut folders = vec![std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else if entry.path().extension().is_some_and(|e| e == "rs") {
                sources.push_str(&std::fs::read_to_string(entry.path()).unwrap());
            }
        }
    }
    let rules: Vec<&str> = SPECIFICATION
        .split("- **")
        .skip(1)
        .filter_map(|rest| rest.split_once("**").map(|(id, _)| id))
        .collect();
    assert!(rules.len() > 50, "{rules:?}");
    let is_cited = |rule: &str| {
        sources.match_indices(rule).any(|(at, _)| {
            let before = sources[..at].chars().next_back();
            let after = sources[at + rule.len()..].chars().next();
            !before.is_some_and(char::is_alphanumeric) && !after.is_some_and(char::is_alphanumeric)
        })
    };
    let missing: Vec<_> = rules.iter().filter(|rule| !is_cited(rule)).collect();
    assert!(missing.is_empty(), "rules that no test cites: {missing:?}");
}

/// Images that grow, shrink, grow again, lose blocks to zero, and are no multiple of the block
/// size.
fn history() -> Vec<Vec<u8>> {
    let mut first = text(10 * 4096 + 123, 1);
    first[4096..3 * 4096].fill(0);
    let mut grown = first.clone();
    grown.resize(14 * 4096, 0);
    grown[5 * 4096..6 * 4096].fill(0);
    grown[12 * 4096..13 * 4096 + 77].copy_from_slice(&text(4096 + 77, 2));
    grown[4096..4100].copy_from_slice(b"back");
    let shrunk = grown[..6 * 4096 + 1000].to_vec();
    let mut regrown = shrunk.clone();
    regrown.resize(15 * 4096 + 1, 0);
    regrown[15 * 4096] = 9;
    vec![first, grown, shrunk, regrown.clone(), regrown]
}

fn make(recipe: Recipe) -> ChainMaker {
    let mut maker = ChainMaker::new(recipe);
    for image in history() {
        maker.snapshot(&image);
    }
    maker
}

/// A delta with every kind of run.
fn with_unread(maker: &ChainMaker) -> Vec<u8> {
    let chain = maker.chain().unwrap();
    let header = Header { file_id: ChainMaker::id(0xf0, 9), ..chain.tip().header().clone() };
    let hasher = chain.hasher().clone();
    let mut bytes = Vec::new();
    let mut out = |piece: &[u8]| {
        bytes.extend_from_slice(piece);
        Ok(())
    };
    let mut writer = DeltaWriter::new(&header, &mut out);
    let mut segmenter = Segmenter::new(header.block_size, header.frame_blocks);
    let block = text(4096, 7);
    segmenter.data(0, hasher.digest(&block), &block);
    segmenter.run(RunKind::Unread, BlockRange { first: 2, count: 2 });
    segmenter.run(RunKind::Zero, BlockRange { first: 4, count: 1 });
    let mut digest = chain.image_digest();
    let mut walk = chain.walk();
    while let Some(span) = walk.next(5).unwrap() {
        for (block, old) in (span.blocks.first..).zip(walk.chunk().digests(span)) {
            if block != 1 {
                digest = digest.minus(hasher.term(block, *old));
            }
        }
    }
    digest = digest.plus(hasher.term(0, hasher.digest(&block)));
    digest = digest.plus(hasher.term(2, Digest::UNREAD)).plus(hasher.term(3, Digest::UNREAD));
    for piece in segmenter.finish() {
        match piece {
            Piece::Table(page) => writer.table(page).unwrap(),
            Piece::Copy { .. } | Piece::Cut(..) | Piece::Keep(_) => {
                unreachable!("nothing is copied here")
            }
            Piece::Frame { raw, block_count } => {
                let mut frames = imgsnap::delta::EncodedFrames::default();
                frames.push(imgsnap::codec::Codec::Stored, &raw, block_count);
                writer.frames(frames).unwrap();
            }
        }
    }
    let identity = maker.plan().identity;
    let image_bytes = chain.geometry().image_bytes;
    writer.finish(&identity, Some(chain.as_parent()), image_bytes, digest).unwrap();
    bytes
}

/// The golden chains: folder, recipe, and whether the writer must give the same bytes for ever (not
/// where a compressor of another crate has its say).
fn golden() -> Vec<(&'static str, Recipe, bool)> {
    let stored = Recipe { compression: Compression::None, ..Recipe::default() };
    let blake3 = DigestAlgorithm::Blake3;
    vec![
        ("stored", stored, true),
        ("lz4", Recipe::default(), false),
        (
            "zstd-blake3",
            Recipe { compression: Compression::Zstd(3), algorithm: blake3, ..stored },
            false,
        ),
        ("blocks-64k", Recipe { block_bytes: 65536, ..Recipe::default() }, false),
    ]
}

/// C4, C5, D1, D2, D3, D4, F1, F3, M1, M3, M5, N1, N2: the second reader checks each of them as it
/// restores.
#[test]
fn golden_chains_are_read_by_both_readers_and_written_again() {
    for (name, recipe, is_exact) in golden() {
        let folder = fixtures().join("format/v1").join(name);
        let maker = make(recipe);
        if is_blessing() && !folder.exists() {
            std::fs::create_dir_all(&folder).unwrap();
            for (index, file) in maker.files.iter().enumerate() {
                std::fs::write(folder.join(format!("{}.delta", index + 1)), file).unwrap();
            }
        }
        let golden: Vec<Vec<u8>> =
            (1..=5).map(|n| std::fs::read(folder.join(format!("{n}.delta"))).unwrap()).collect();
        for (index, image) in history().iter().enumerate() {
            let files = &golden[..=index];
            assert!(
                restore_chain(&open_chain(files).unwrap()).unwrap() == *image,
                "{name} {index}"
            );
            assert!(naive_reader::restore(files).unwrap() == *image, "{name} {index}");
            if is_exact {
                assert!(maker.files[index] == golden[index], "{name}: the writer changed");
            }
        }
    }
}

/// K1, K2, H1, H2, F2, R2, R3, R4, T2, I2: decoding and encoding are inverse to each other.
#[test]
fn decoded_structures_encode_to_the_same_bytes() {
    for (name, recipe, _) in golden() {
        let mut files = make(recipe).files;
        files.extend(merged_files(1).1.into_values());
        files.push(by_reference(1).files.remove(0));
        for file in &files {
            let header = Header::decode(file[..256].try_into().unwrap()).unwrap();
            assert_eq!(header.encode(), file[..256], "{name}");
            let footer = Footer::decode(
                file[file.len() - 512..].try_into().unwrap(),
                file.len() as u64,
                Content::Records,
            );
            assert_eq!(footer.unwrap().encode(), file[file.len() - 512..], "{name}");
            for record in naive_reader::parse(file).unwrap().records {
                let start = record.offset as usize + 16;
                let payload = &file[start..record.offset as usize + record.bytes as usize];
                match record.body {
                    Body::Table(_) => {
                        let page = TablePage::decode(payload, record.offset, header.layout());
                        assert_eq!(page.unwrap().encode(header.layout()), payload);
                    }
                    Body::Index { .. } => {
                        assert_eq!(
                            IndexPage::decode(payload, record.offset).unwrap().encode(),
                            payload
                        );
                    }
                    Body::Frame { .. } => {}
                }
            }
        }
    }
}

/// O1, O2, O3, O4: the layout of section 6, also where pages and index levels run over.
#[test]
fn the_writer_cuts_as_the_specification_says() {
    for (_, recipe, _) in golden() {
        for file in &make(recipe).files {
            naive_reader::check_layout(file).unwrap();
        }
    }
    let base = ChainMaker::new(Recipe::default());
    let mut scattered = vec![0; 4096 * 9000];
    let mut numbers = crate::support::Random(5);
    for block in (0..9000).filter(|b| b % 3 != 0) {
        scattered[block * 4096..block * 4096 + 8].copy_from_slice(&numbers.next().to_le_bytes());
    }
    let (_, file) = base.try_snapshot(&scattered);
    naive_reader::check_layout(&file).unwrap();
    let parsed = naive_reader::parse(&file).unwrap();
    assert_eq!(parsed.runs.iter().filter(|run| run.kind == Kind::Data).count(), 3000);
}

/// O3 and I1: exactly 256 pages, one more, and an index of two levels; found again by both readers.
#[test]
fn an_index_of_several_levels_is_read_back() {
    for pages in [255u64, 256, 257, 256 * 256 / 64 + 1] {
        let maker = make(Recipe::default());
        let chain = maker.chain().unwrap();
        let header = chain.tip().header().clone();
        let mut bytes = Vec::new();
        let mut out = |piece: &[u8]| {
            bytes.extend_from_slice(piece);
            Ok(())
        };
        let mut writer = DeltaWriter::new(&header, &mut out);
        let mut segmenter = Segmenter::new(header.block_size, header.frame_blocks);
        for run in 0..pages * 1024 {
            segmenter.run(RunKind::Unread, BlockRange { first: run * 2, count: 1 });
        }
        for piece in segmenter.finish() {
            let Piece::Table(page) = piece else { panic!("no frames here") };
            writer.table(page).unwrap();
        }
        let mut identity = maker.plan().identity;
        identity.label = None;
        let digest = chain.image_digest();
        let image_bytes = pages * 2048 * 4096;
        writer.finish(&identity, Some(chain.as_parent()), image_bytes, digest).unwrap();
        let parsed = naive_reader::parse(&bytes).unwrap();
        assert_eq!(parsed.runs.len() as u64, pages * 1024);
        naive_reader::check_layout(&bytes).unwrap();
        let mut files = maker.files.clone();
        files.push(bytes);
        let chain = open_chain(&files).unwrap();
        let mut walk = chain.walk();
        for run in [0, 1, 1023, 1024, pages * 512, pages * 1024 - 1] {
            walk.seek(run * 2);
            let span = walk.next(run * 2 + 1).unwrap().unwrap();
            assert!(matches!(span.state, imgsnap::chain::State::Unread), "{pages} {run}");
        }
    }
}

/// M4: an unread block is no zero, and not the parent's; it is a candidate when the next snapshot
/// is taken.
#[test]
fn unread_blocks_are_never_given_and_always_taken_again() {
    let mut maker = make(Recipe { compression: Compression::None, ..Recipe::default() });
    let bytes = with_unread(&maker);
    let image = history().pop().unwrap();
    naive_reader::check_layout(&bytes).unwrap();
    maker.add(bytes);
    let error = restore_chain(&maker.chain().unwrap()).unwrap_err().to_string();
    assert!(error.contains("8192 bytes at 8192 could not be read"), "{error}");
    let error = naive_reader::restore(&maker.files).unwrap_err();
    assert!(error.starts_with("M4"), "{error}");
    maker.snapshot(&image);
    assert!(restore_chain(&maker.chain().unwrap()).unwrap() == image);
    assert!(naive_reader::restore(&maker.files).unwrap() == image);
}

/// M2, E1, E2, E3, E4, E5, F1, H8: what the footers of a chain say.
#[test]
fn footers_say_what_is_in_the_file() {
    let maker = make(Recipe::default());
    let images = history();
    let deltas: Vec<_> =
        maker.files.iter().map(|file| naive_reader::parse(file).unwrap()).collect();
    assert!(deltas[0].is_base() && deltas[0].runs.iter().all(|run| run.kind == Kind::Data));
    for (index, (delta, image)) in deltas.iter().zip(&images).enumerate() {
        assert_eq!(delta.number, index as u64 + 1);
        assert_eq!(delta.image_bytes, image.len() as u64);
        let count =
            |kind| delta.runs.iter().filter(|r| r.kind == kind).map(|r| r.count).sum::<u64>();
        assert_eq!(delta.data_blocks, count(Kind::Data));
        assert_eq!(delta.zero_blocks, count(Kind::Zero));
    }
    // The shrunk one zeroes blocks 7 to 13, the unchanged one is header and footer alone.
    let last = deltas[2].runs.last().unwrap();
    assert_eq!((last.first, last.count, last.kind), (7, 7, Kind::Zero));
    assert_eq!((maker.files[4].len(), deltas[4].root_offset), (768, 0));
}

/// F1: the file is a function of image, parent and names, whatever the number of threads.
#[test]
fn the_file_is_the_same_however_many_threads_make_it() {
    let mut images = history();
    let mut large = text(9 << 20, 3);
    large[1 << 20..2 << 20].fill(0);
    images.push(large.clone());
    for block in (0..2300).step_by(7) {
        large[block * 4096] ^= 1;
    }
    images.push(large);
    let make = |threads| {
        let mut maker = ChainMaker::new(Recipe { threads, ..Recipe::default() });
        images.iter().for_each(|image| drop(maker.snapshot(image)));
        maker.files
    };
    let one = make(1);
    for threads in [2, 3, 8, 16] {
        assert!(make(threads) == one, "{threads} threads");
    }
    assert!(naive_reader::restore(&one).unwrap() == *images.last().unwrap());
}

/// H6, H7: block sizes, and how many of them a frame holds.
#[test]
fn frames_hold_what_the_block_size_allows() {
    for (block_bytes, frame_bytes, blocks) in
        [(4096, 65536, 16), (4096, 131_072, 32), (65536, 65536, 1), (1 << 20, 131_072, 1)]
    {
        let block_size = BlockSize::new(block_bytes).unwrap();
        assert_eq!(Header::frame_blocks_for(block_size, frame_bytes), blocks);
    }
}

/// Sets feature bits of a file, and its checksum.
fn with_features(file: &[u8], at: usize, bits: u8) -> Vec<u8> {
    let mut file = file.to_vec();
    file[at] |= bits;
    let crc = crc32fast::hash(&file[..252]);
    file[252..256].copy_from_slice(&crc.to_le_bytes());
    // The content digest covers the header, but a read does not compute it (E2).
    file
}

/// H4: readable, but nothing is built on it. H5: as if it were not there.
#[test]
fn unknown_compatible_features_are_read_and_only_some_are_built_on() {
    let image = history().remove(0);
    let file = make(Recipe::default()).files.remove(0);
    for (at, may_extend) in [(24, false), (32, true)] {
        let chain = open_chain(&[with_features(&file, at, 2)]).unwrap();
        assert!(restore_chain(&chain).unwrap() == image);
        assert_eq!(chain.check_extendable().is_ok(), may_extend, "byte {at}");
    }
}

/// C1 (least significant byte first) and D5 (the key is no secret: it stands in the header).
#[test]
fn integers_are_little_endian_and_the_key_stands_in_the_header() {
    let file = make(Recipe::default()).files.remove(0);
    assert_eq!(file[8..12], [1, 0, 0, 0]);
    assert_eq!(file[72..76], [0, 0x10, 0, 0]);
    assert_eq!(file[84..116], [0x5a; 32]);
    let length = u64::from_le_bytes(file[file.len() - 504..][..8].try_into().unwrap());
    assert_eq!(length, file.len() as u64);
}

// -------------------------------------------------------------------------------------------------
// Merged files and base images

/// As `history`, but large enough for frames that live on as a whole.
fn long_history() -> Vec<Vec<u8>> {
    let mut first = text(30 * 4096 + 123, 1);
    first[3 * 4096..5 * 4096].fill(0);
    // A frame of 17 blocks, with a gap.
    let mut second = first.clone();
    second.resize(34 * 4096, 0);
    second[10 * 4096..26 * 4096].copy_from_slice(&text(16 * 4096, 2));
    second[27 * 4096..28 * 4096].copy_from_slice(&text(4096, 3));
    // Blocks here and there, and zeros, also in the gap.
    let mut third = second.clone();
    third[7 * 4096..8 * 4096].fill(0);
    third[26 * 4096..27 * 4096].fill(0);
    third[28 * 4096] ^= 1;
    third[29 * 4096..30 * 4096].copy_from_slice(&text(4096, 4));
    third[32 * 4096..33 * 4096].copy_from_slice(&text(4096, 5));
    let shrunk = third[..28 * 4096 + 1000].to_vec();
    let mut regrown = shrunk.clone();
    regrown.resize(33 * 4096 + 1, 0);
    regrown[33 * 4096] = 9;
    vec![first, second, third, shrunk, regrown]
}

/// Snapshots 1 to 5 are of `long_history`, 6 has blocks that could not be read, 7 is as 5 again.
fn long_chain(threads: usize) -> ChainMaker {
    let recipe = Recipe { compression: Compression::None, threads, ..Recipe::default() };
    let mut maker = ChainMaker::new(recipe);
    long_history().iter().for_each(|image| drop(maker.snapshot(image)));
    maker.add(with_unread(&maker));
    maker.snapshot(&long_history()[4]);
    maker
}

/// The chain, and files that take the place of some of it: by name.
fn merged_files(threads: usize) -> (ChainMaker, BTreeMap<String, Vec<u8>>) {
    let maker = long_chain(threads);
    let mut files = BTreeMap::new();
    files.insert("1".to_owned(), maker.files[0].clone());
    files.insert("4-as-taken".to_owned(), maker.files[3].clone());
    for (number, parent) in
        [(3, 1), (4, 3), (5, 3), (6, 3), (6, 4), (7, 6), (7, 3), (7, 5), (1, 3), (2, 5)]
    {
        files.insert(format!("{number}-on-{parent}"), maker.merged(number, Some(parent)));
    }
    for number in [3, 6] {
        files.insert(format!("{number}-full"), maker.merged(number, None));
    }
    (maker, files)
}

/// O5, M1 to M5, N1, T3, T4, T5: merged files are the same for ever, whatever the number of threads,
/// and give the same snapshots to both readers.
#[test]
fn merged_chains_are_read_by_both_readers_and_written_again() {
    let folder = fixtures().join("format/v1/merged");
    let (maker, files) = merged_files(1);
    if is_blessing() && !folder.exists() {
        std::fs::create_dir_all(&folder).unwrap();
        for (name, file) in &files {
            std::fs::write(folder.join(format!("{name}.delta")), file).unwrap();
        }
    }
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), files.len());
    let golden = |name: &str| std::fs::read(folder.join(format!("{name}.delta"))).unwrap();
    for threads in [1, 2, 7] {
        for (name, file) in merged_files(threads).1 {
            assert!(golden(&name) == file, "{name}, {threads} threads: the writer changed");
        }
    }
    let images = long_history();
    for (chain, image) in [
        (&["1", "3-on-1"][..], Some(2)),
        (&["1", "3-on-1", "4-as-taken"], Some(3)),
        (&["1", "3-on-1", "4-on-3"], Some(3)),
        (&["1", "3-on-1", "5-on-3"], Some(4)),
        (&["1", "3-on-1", "5-on-3", "7-on-5"], Some(4)),
        (&["1", "3-on-1", "4-as-taken", "6-on-4"], None),
        (&["1", "3-on-1", "4-on-3", "6-on-4", "7-on-6"], Some(4)),
        (&["1", "3-on-1", "6-on-3"], None),
        (&["1", "3-on-1", "7-on-3"], Some(4)),
        (&["3-full"], Some(2)),
        (&["3-full", "1-on-3"], Some(0)),
        (&["3-full", "5-on-3", "2-on-5"], Some(1)),
        (&["3-full", "7-on-3"], Some(4)),
        (&["6-full"], None),
        (&["6-full", "7-on-6"], Some(4)),
    ] {
        let files: Vec<Vec<u8>> = chain.iter().map(|name| golden(name)).collect();
        let (ours, theirs) = (
            open_chain(&files).and_then(|chain| restore_chain(&chain)),
            naive_reader::restore(&files),
        );
        match image {
            Some(index) => {
                assert!(ours.unwrap() == images[index], "{chain:?}");
                assert!(theirs.unwrap() == images[index], "{chain:?}, second reader");
            }
            None => {
                let error = ours.unwrap_err().to_string();
                assert!(error.contains("8192 bytes at 8192 could not be read"), "{error}");
                assert!(theirs.unwrap_err().starts_with("M4"), "{chain:?}");
            }
        }
    }
    for (name, file) in files.iter().filter(|(name, _)| *name != "1" && *name != "4-as-taken") {
        let newest = name[..1].parse().unwrap();
        // Against a later snapshot its files may be read, too.
        let sources = maker.files[..newest].to_vec();
        naive_reader::check_merged_layout(file, &sources).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

/// Number of blocks of each frame of a file, and whether a source has it, byte for byte.
fn frames_of(file: &[u8], sources: &[Vec<u8>]) -> Vec<(usize, bool)> {
    let frames = |file: &[u8]| -> Vec<Vec<Vec<u8>>> {
        let records = naive_reader::parse(file).unwrap().records.into_iter();
        let blocks = records.filter_map(|record| match record.body {
            Body::Frame { blocks, .. } => Some(blocks),
            _ => None,
        });
        blocks.collect()
    };
    let known: Vec<_> = sources.iter().flat_map(|file| frames(file)).collect();
    frames(file).iter().map(|blocks| (blocks.len(), known.contains(blocks))).collect()
}

/// O5, O4: what is copied, and what is packed.
#[test]
fn frames_that_live_on_as_a_whole_are_copied_and_others_packed() {
    let (maker, files) = merged_files(1);
    let merged = naive_reader::parse(&files["3-on-1"]).unwrap();
    assert_eq!((merged.incompatible, merged.frame_blocks), (1, 48));
    let frames = |name: &str| frames_of(&files[name], &maker.files);
    // Three blocks are too few to be copied; packed, they are what they were.
    assert_eq!(frames("3-on-1"), [(17, true), (3, true)]);
    // A full one has smaller frames, but those that it copies may be larger. The seven blocks before
    // the one that is copied are enough for a frame.
    let full = naive_reader::parse(&files["3-full"]).unwrap();
    assert_eq!((full.incompatible, full.frame_blocks, full.is_base()), (1, 32, true));
    assert_eq!(frames("3-full"), [(7, false), (17, true), (4, false)]);
    let kinds = |name: &str| {
        let runs = naive_reader::parse(&files[name]).unwrap().runs;
        [Kind::Data, Kind::Zero, Kind::Unread].map(|kind| runs.iter().any(|run| run.kind == kind))
    };
    assert_eq!(kinds("3-on-1"), [true, true, false]);
    assert_eq!(kinds("6-on-3"), [true, true, true]);
    assert_eq!(kinds("6-full"), [true, false, true]);
    // Nothing changed: header and footer alone.
    assert_eq!(files["7-on-5"].len(), 768);
}

/// O2: the 1025th run closes a page, but not a block that joins the 1024th.
#[test]
fn a_block_that_joins_the_last_run_of_a_full_page_is_in_it() {
    let mut maker = ChainMaker::new(Recipe::default());
    let mut image = text(3000 * 4096, 1);
    maker.snapshot(&image);
    for even in (0..2046).step_by(2) {
        image[even * 4096..(even + 1) * 4096].fill(0);
    }
    image[2046 * 4096] ^= 1;
    maker.snapshot(&image);
    image[2047 * 4096] ^= 1;
    maker.snapshot(&image);
    let merged = maker.merged(3, Some(1));
    naive_reader::check_merged_layout(&merged, &maker.files[1..]).unwrap();
    assert_eq!(naive_reader::parse(&merged).unwrap().runs.len(), 1024);
    let tables = merged.windows(4).filter(|four| four == b"TABL").count();
    assert_eq!(tables, 1);
}

/// M6: only a base has its blocks in a base image.
#[test]
fn a_delta_in_a_base_image_is_refused() {
    let mut maker = ChainMaker::new(Recipe::default());
    let mut image = text(10 * 4096, 1);
    maker.snapshot(&image);
    image[0] ^= 1;
    let plan = Plan { is_by_reference: true, ..maker.plan() };
    let mut bytes = Vec::new();
    let source = crate::support::MemorySource(image);
    take(&source, &plan, Scope::Whole, &Context::silent(), &mut |piece: &[u8]| {
        bytes.extend_from_slice(piece);
        Ok(())
    })
    .unwrap();
    let error = open_chain(&[maker.files[0].clone(), bytes.clone()]).err().unwrap();
    assert!(error.to_string().contains("a snapshot in a base image is not a base"), "{error}");
    assert!(naive_reader::parse(&bytes).is_err());
}

/// O2, O3, O5: many pages, index pages, frames of many files; at every number of threads.
#[test]
fn large_merged_files_are_cut_as_the_specification_says() {
    let recipe = Recipe { threads: 1, ..Recipe::default() };
    let mut maker = ChainMaker::new(recipe);
    let mut numbers = crate::support::Random(11);
    let blocks = 6000;
    let mut image = vec![0; blocks * 4096];
    let put = |image: &mut Vec<u8>, block: usize, number: u64| {
        image[block * 4096..block * 4096 + 8].copy_from_slice(&number.to_le_bytes());
    };
    for block in (0..blocks).filter(|block| block % 5 != 0) {
        put(&mut image, block, numbers.next() | 1);
    }
    maker.snapshot(&image);
    for snapshot in 0..7 {
        // Whole stretches, and blocks here and there.
        for _ in 0..12 {
            let from = numbers.below(blocks as u64 - 100) as usize;
            for block in from..from + numbers.below(100) as usize {
                let number = if numbers.below(12) == 0 { 0 } else { numbers.next() | 1 };
                put(&mut image, block, number);
            }
        }
        for _ in 0..[10, 1500][snapshot % 2] {
            let number = if numbers.below(4) == 0 { 0 } else { numbers.next() | 1 };
            put(&mut image, numbers.below(blocks as u64) as usize, number);
        }
        maker.snapshot(&image);
    }
    let mut copied = 0;
    for (number, parent) in
        [(8, None), (8, Some(1)), (8, Some(4)), (5, Some(2)), (2, Some(7)), (4, None), (7, Some(6))]
    {
        let file = maker.merged(number, parent);
        let sources = &maker.files[..number];
        naive_reader::check_merged_layout(&file, sources)
            .unwrap_or_else(|e| panic!("{number} on {parent:?}: {e}"));
        copied += frames_of(&file, sources).iter().filter(|(_, copied)| *copied).count();
        for threads in [2, 7] {
            let recipe = Recipe { threads, ..recipe };
            let chain = |number: usize| open_chain(&maker.files[..number]).unwrap();
            let id = ChainMaker::id(0xe0, number * 16 + parent.unwrap_or(0));
            let again = merge_chain(chain(number), parent.map(chain), id, recipe);
            assert!(again == file, "{number} on {parent:?}, {threads} threads");
        }
    }
    assert!(copied > 50, "{copied} frames were copied");
    let full = maker.merged(8, None);
    assert!(naive_reader::restore(&[full]).unwrap() == image);
}

/// Bases in a base image, and one snapshot on top of it.
fn by_reference(threads: usize) -> ChainMaker {
    let recipe = Recipe { compression: Compression::None, threads, ..Recipe::default() };
    let mut maker = ChainMaker::new(recipe);
    let mut image = history().remove(0);
    let plan = Plan { is_by_reference: true, ..maker.plan() };
    let context = Context::silent().with_threads(threads);
    let mut bytes = Vec::new();
    let source = MemorySource(image.clone());
    let taken = take(&source, &plan, Scope::Whole, &context, &mut |piece: &[u8]| {
        bytes.extend_from_slice(piece);
        Ok(())
    });
    assert_eq!(taken.unwrap().written.footer.counts.frames, 0);
    maker.add(bytes);
    image[6 * 4096..7 * 4096].copy_from_slice(&text(4096, 7));
    image.truncate(9 * 4096 + 5);
    maker.snapshot(&image);
    maker
}

/// M6, T4, O1 to O3: a base without blocks, what is taken on top of it, and that made full.
#[test]
fn bases_in_a_base_image_are_read_by_both_readers_and_written_again() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("base.img");
    let base = history().remove(0);
    std::fs::write(&path, &base).unwrap();
    let full_of = |files: &[Vec<u8>], threads| {
        let chain = open_chain_on(files, Some(path.clone())).unwrap();
        let recipe = Recipe { compression: Compression::None, threads, ..Recipe::default() };
        merge_chain(chain, None, ChainMaker::id(0xe0, 32), recipe)
    };
    let folder = fixtures().join("format/v1/base-image");
    if is_blessing() && !folder.exists() {
        std::fs::create_dir_all(&folder).unwrap();
        let files = by_reference(1).files;
        std::fs::write(folder.join("1.delta"), &files[0]).unwrap();
        std::fs::write(folder.join("2.delta"), &files[1]).unwrap();
        std::fs::write(folder.join("2-full.delta"), full_of(&files, 1)).unwrap();
    }
    let golden = |name: &str| std::fs::read(folder.join(format!("{name}.delta"))).unwrap();
    let files = vec![golden("1"), golden("2")];
    for threads in [1, 2, 7] {
        assert!(by_reference(threads).files == files, "{threads} threads: the writer changed");
        assert!(full_of(&files, threads) == golden("2-full"), "{threads} threads");
    }
    naive_reader::check_layout(&files[0]).unwrap();
    naive_reader::check_merged_layout(&golden("2-full"), &files).unwrap();
    let parsed = naive_reader::parse(&files[0]).unwrap();
    assert_eq!((parsed.incompatible, parsed.frame_count, parsed.data_blocks), (2, 0, 9));

    let mut tip = base.clone();
    tip[6 * 4096..7 * 4096].copy_from_slice(&text(4096, 7));
    tip.truncate(9 * 4096 + 5);
    let both = |files: &[Vec<u8>], bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let images = BTreeMap::from([(parsed.file_id, bytes.to_vec())]);
        let ours = open_chain_on(files, Some(path.clone())).and_then(|c| restore_chain(&c));
        (ours.map_err(|e| e.to_string()), naive_reader::restore_on(files, &images))
    };
    for (files, image) in [(&files[..1], &base), (&files[..], &tip)] {
        let (ours, theirs) = both(files, &base);
        assert!(ours.unwrap() == *image && theirs.unwrap() == *image);
    }
    assert!(restore_chain(&open_chain(&[golden("2-full")]).unwrap()).unwrap() == tip);
    assert!(naive_reader::restore(&[golden("2-full")]).unwrap() == tip);

    // What a newer file has is not missed in the base image; what it does not have is.
    let mut other = base.clone();
    other[6 * 4096 + 1] ^= 1;
    let (ours, theirs) = both(&files, &other);
    assert!(ours.unwrap() == tip && theirs.unwrap() == tip);
    let (ours, theirs) = both(&files[..1], &other);
    let error = ours.unwrap_err();
    assert!(error.contains("block 6 (byte 24576) has changed"), "{error}");
    assert!(theirs.unwrap_err().starts_with("M6: block 6"));
    // A shorter one has not the blocks at its end, a longer one not the last, which is cut.
    for (length, from) in [(9 * 4096 + 4, 9), (10 * 4096 + 200, 10)] {
        let mut other = base.clone();
        other.resize(length, 1);
        let (ours, theirs) = both(&files[..1], &other);
        assert!(ours.unwrap_err().contains(&format!("block {from} ")), "{length}");
        assert!(theirs.unwrap_err().starts_with(&format!("M6: block {from} ")), "{length}");
    }
    let error = restore_chain(&open_chain(&files).unwrap()).unwrap_err().to_string();
    assert!(error.contains("the location of its base image, which holds its "), "{error}");
    assert!(naive_reader::restore(&files).unwrap_err().starts_with("M6"));
}

/// H3: three features are known, but not together.
#[test]
fn incompatible_features_are_known_or_refused() {
    use imgsnap::base::error::ErrorKind;
    let file = make(Recipe::default()).files.remove(0);
    for bits in 1..=u8::MAX {
        let changed = with_features(&file, 16, bits);
        let header = Header::decode(changed[..256].try_into().unwrap());
        let kind = header.as_ref().err().map(imgsnap::base::error::Error::kind);
        let expected = match bits {
            1 | 2 | 8 => None,
            3 | 9 | 10 | 11 => Some(ErrorKind::Corrupt),
            _ => Some(ErrorKind::Unsupported),
        };
        assert_eq!(kind, expected, "{bits:#x}");
        let second = naive_reader::parse(&changed).unwrap_err();
        assert_eq!(second.starts_with("H3"), kind.is_some(), "{bits:#x}: {second}");
    }
}
