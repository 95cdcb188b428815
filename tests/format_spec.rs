//! FORMAT.md held against the program: its tables against the structures, its rules against the
//! tests, its golden files against writer, reader and second reader.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod support;

use imgsnap::codec::Compression;
use imgsnap::delta::{DeltaWriter, Piece, Segmenter};
use imgsnap::digest::{Digest, DigestAlgorithm};
use imgsnap::format::footer::FooterWire;
use imgsnap::format::header::HeaderWire;
use imgsnap::format::index::{ChildWire, IndexWire};
use imgsnap::format::record::RecordWire;
use imgsnap::format::table::{FrameWire, RunWire, TableWire};
use imgsnap::format::{Footer, Header, IndexPage, RunKind, TablePage};
use imgsnap::units::{BlockRange, BlockSize};
use std::collections::BTreeMap;
use std::mem::offset_of;
use support::naive_reader::{self, Body, Kind};
use support::{ChainMaker, Recipe, fixtures, is_blessing, open_chain, restore_chain, text};

const SPECIFICATION: &str = include_str!("../FORMAT.md");

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
    let mut writer = DeltaWriter::new(&header, &mut out).unwrap();
    let mut segmenter = Segmenter::new(header.block_size, header.frame_blocks);
    let block = text(4096, 7);
    segmenter.data(0, hasher.digest(&block), &block);
    segmenter.run(RunKind::Unread, BlockRange { first: 2, count: 2 });
    segmenter.run(RunKind::Zero, BlockRange { first: 4, count: 1 });
    let mut digest = chain.image_digest();
    let mut walk = chain.walk();
    while let Some(span) = walk.next(5).unwrap() {
        for (block, old) in (span.blocks.first..).zip(walk.stretch().digests(span)) {
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
        for file in &make(recipe).files {
            let header = Header::decode(file[..256].try_into().unwrap()).unwrap();
            assert_eq!(header.encode(), file[..256], "{name}");
            let footer =
                Footer::decode(file[file.len() - 512..].try_into().unwrap(), file.len() as u64);
            assert_eq!(footer.unwrap().encode(), file[file.len() - 512..], "{name}");
            for record in naive_reader::parse(file).unwrap().records {
                let start = record.offset as usize + 16;
                let payload = &file[start..record.offset as usize + record.bytes as usize];
                match record.body {
                    Body::Table(_) => {
                        let page = TablePage::decode(payload, record.offset, header.frame_blocks);
                        assert_eq!(page.unwrap().encode(), payload);
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
    let mut numbers = support::Random(5);
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
        let mut writer = DeltaWriter::new(&header, &mut out).unwrap();
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
