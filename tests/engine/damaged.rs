//! A catalogue of damaged files: one named file per class of failure, and the exact error that it
//! gives.
//!
//! The files are made from the golden chain "tiny" by the functions here (`IMGSNAP_BLESS=1`
//! writes those that are missing), and stay as they are.

use crate::support::{
    ChainMaker, MemorySource, Recipe, fixtures, is_blessing, naive_reader, open_chain,
    restore_chain, text,
};
use imgsnap::base::error::ErrorKind;
use imgsnap::base::events::Context;
use imgsnap::codec::Compression;
use imgsnap::ops::snapshot::engine::{Plan, take};
use imgsnap::scan::Scope;

type Edit = fn(&mut Vec<u8>);

/// Name, which of the golden files, what is done to it, the kind of the error, and what it says.
fn catalogue() -> Vec<(&'static str, usize, Edit, ErrorKind, &'static str)> {
    use ErrorKind::{Corrupt, Unsupported};
    vec![
        ("empty", 1, |f| f.clear(), Corrupt, "only 0 bytes: truncated, or not a delta file"),
        (
            "header-only",
            1,
            |f| f.truncate(256),
            Corrupt,
            "only 256 bytes: truncated, or not a delta file",
        ),
        (
            "other-file-type",
            1,
            |f| f[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03"),
            Corrupt,
            "not a delta file (its first bytes are not IMGSNAP)",
        ),
        (
            "later-version",
            1,
            |f| {
                f[8] = 2;
                mend(f)
            },
            Unsupported,
            "unsupported delta format version 2 (this program supports 1); it was written by a later \
             imgsnap; use that version",
        ),
        (
            "unknown-feature",
            1,
            |f| {
                f[16] = 4;
                mend(f)
            },
            Unsupported,
            "unknown feature bits 0x4; it was written by a later imgsnap; use that version",
        ),
        ("header-checksum", 1, |f| f[50] ^= 1, Corrupt, "header: checksum mismatch"),
        (
            "header-reserved",
            1,
            |f| {
                f[200] = 1;
                mend(f)
            },
            Corrupt,
            "header: reserved bytes are not zero",
        ),
        (
            "odd-block-size",
            1,
            |f| {
                f[72..76].copy_from_slice(&5000u32.to_le_bytes());
                mend(f)
            },
            Corrupt,
            "header: block size 5000 is not a power of two from 4K to 1M",
        ),
        (
            "no-blocks-in-frame",
            1,
            |f| {
                f[76] = 0;
                mend(f)
            },
            Corrupt,
            "header: invalid frame size of 0 blocks",
        ),
        (
            "huge-frame",
            1,
            |f| {
                f[78] = 1;
                mend(f)
            },
            Corrupt,
            "header: invalid frame size of 65552 blocks",
        ),
        (
            "unknown-digest",
            1,
            |f| {
                f[80] = 9;
                mend(f)
            },
            Unsupported,
            "unknown digest algorithm 9; it was written by a later imgsnap; use that version",
        ),
        (
            "cut-footer",
            1,
            |f| {
                let n = f.len() - 1;
                f.truncate(n)
            },
            Corrupt,
            "no valid footer: the file is truncated or damaged",
        ),
        (
            "footer-bit",
            1,
            |f| {
                let n = f.len() - 300;
                f[n] ^= 8
            },
            Corrupt,
            "no valid footer: the file is truncated or damaged",
        ),
        (
            "length-lies",
            1,
            |f| {
                let n = f.len() - 512;
                f[n + 8] ^= 1;
                mend(f)
            },
            Corrupt,
            "the footer belongs to a file of",
        ),
        (
            "empty-image",
            1,
            |f| {
                let n = f.len() - 512;
                f[n + 56..n + 64].fill(0);
                mend(f)
            },
            Corrupt,
            "footer: invalid image size of 0 bytes",
        ),
        (
            "endless-image",
            1,
            |f| {
                let n = f.len() - 512;
                f[n + 56..n + 64].fill(0xff);
                mend(f)
            },
            Corrupt,
            "footer: invalid image size of 18446744073709551615 bytes",
        ),
        (
            "number-zero",
            1,
            |f| {
                let n = f.len() - 512;
                f[n + 48] = 0;
                mend(f)
            },
            Corrupt,
            "footer: number or time is not valid",
        ),
        (
            "root-elsewhere",
            1,
            |f| {
                let n = f.len() - 512;
                f[n + 176] ^= 16;
                mend(f)
            },
            Corrupt,
            "footer: the root page is not the last record",
        ),
        (
            "label-not-text",
            1,
            |f| {
                let n = f.len() - 512;
                f[n + 208] = 0xff;
                mend(f)
            },
            Corrupt,
            "footer: the label is not valid",
        ),
        (
            "base-with-parent-digest",
            1,
            |f| {
                let n = f.len() - 512;
                f[n + 88] = 1;
                mend(f)
            },
            Corrupt,
            "footer: a base must not have a parent",
        ),
        ("frame-bit", 1, |f| f[300] ^= 1, Corrupt, "frame at byte 256: checksum mismatch"),
        (
            "frame-zeroed",
            1,
            |f| f[256..4000].fill(0),
            Corrupt,
            "frame at byte 256: expected a record",
        ),
        (
            "frame-moved",
            1,
            |f| {
                let moved = f[256..300].to_vec();
                f[272..316].copy_from_slice(&moved)
            },
            Corrupt,
            "frame at byte 256: checksum mismatch",
        ),
        (
            "page-bit",
            1,
            |f| {
                let n = f.len() - 520;
                f[n] ^= 1
            },
            Corrupt,
            "checksum mismatch",
        ),
        (
            "block-of-other-content",
            1,
            |f| {
                f[5000] ^= 1;
                mend(f);
                relink_frame(f)
            },
            Corrupt,
            "block 1 (byte 4096 of the image) is damaged",
        ),
        (
            "other-parent",
            2,
            |f| {
                let n = f.len() - 512;
                f[n + 32] ^= 1;
                mend(f)
            },
            Corrupt,
            "its parent is a different snapshot than disk:0.delta",
        ),
        (
            "other-image",
            2,
            |f| {
                f[56] ^= 1;
                mend(f)
            },
            Corrupt,
            "its parent belongs to a different image than disk:0.delta",
        ),
        (
            "other-key",
            2,
            |f| {
                f[84] ^= 1;
                mend(f)
            },
            Corrupt,
            "its parent has a different block size, digest or key than disk:0.delta",
        ),
        (
            "parent-changed",
            2,
            |f| {
                let n = f.len() - 512;
                f[n + 88] ^= 1;
                mend(f)
            },
            Corrupt,
            "its parent had different content than disk:0.delta",
        ),
        (
            "image-digest",
            2,
            |f| {
                let n = f.len() - 512;
                f[n + 72] ^= 1;
                mend(f)
            },
            Corrupt,
            "image digest mismatch; run verify() to see what is damaged",
        ),
        (
            "count-too-small",
            3,
            |f| set_count(f, 2),
            Corrupt,
            "page at byte 12560: the frames do not match the blocks of the runs",
        ),
        (
            "count-too-large",
            3,
            |f| set_count(f, 4),
            Corrupt,
            "page at byte 12560: the frames do not match the blocks of the runs",
        ),
        (
            "count-of-zero",
            3,
            |f| set_count(f, 0),
            Corrupt,
            "page at byte 12560: invalid frame of 0 blocks",
        ),
        (
            "count-above-frame-blocks",
            3,
            |f| {
                // As many as there are: only the header says that it is one too many.
                f[76] = 2;
                relink_page(f)
            },
            Corrupt,
            "page at byte 12560: invalid frame of 3 blocks",
        ),
        (
            "counts-not-announced",
            3,
            |f| {
                f[16] = 0;
                mend(f)
            },
            Corrupt,
            "page at byte 12560: the page is longer than its entries",
        ),
        (
            "more-frames-than-blocks",
            3,
            |f| {
                f[12560 + 16 + 20] = 4;
                relink_page(f)
            },
            Corrupt,
            "page at byte 12560: the number of frames does not fit the number of blocks",
        ),
        (
            "frame-of-other-count",
            3,
            |f| {
                f[256 + 10] = 2;
                relink_frame(f)
            },
            Corrupt,
            "frame at byte 256: the frame has 2 blocks, but its page says 3",
        ),
        (
            "base-image-with-frame",
            4,
            |f| {
                f[256 + 16 + 20] = 1;
                relink_page(f)
            },
            Corrupt,
            "page at byte 256: the number of frames does not fit the number of blocks",
        ),
        (
            "endless-counts",
            4,
            |f| {
                let end = f.len() - 512;
                f[end + 120..end + 128].fill(0xff);
                mend(f)
            },
            Corrupt,
            "footer: the counts exceed what the file can hold",
        ),
        (
            "base-image-with-counts",
            4,
            |f| {
                f[16] = 3;
                mend(f)
            },
            Corrupt,
            "header: frames in a file whose blocks are elsewhere",
        ),
        (
            "counts-and-base-image",
            3,
            |f| {
                f[16] = 3;
                mend(f)
            },
            Corrupt,
            "header: frames in a file whose blocks are elsewhere",
        ),
    ]
}

/// Sets the count of the only frame of a merged file.
fn set_count(file: &mut [u8], count: u8) {
    let page = root_of(file);
    let runs = u32::from_le_bytes(file[page + 32..page + 36].try_into().unwrap()) as usize;
    file[page + 16 + 32 + runs * 8 + 16] = count;
    relink_page(file);
}

fn root_of(file: &[u8]) -> usize {
    let at = file.len() - 512 + 176;
    u64::from_le_bytes(file[at..at + 8].try_into().unwrap()) as usize
}

/// Puts the checksums of header and footer right: the damage is what they cover.
fn mend(file: &mut [u8]) {
    let crc = crc32fast::hash(&file[..252]);
    file[252..256].copy_from_slice(&crc.to_le_bytes());
    let end = file.len() - 512;
    let crc = crc32fast::hash(&file[end..end + 508]);
    file[end + 508..].copy_from_slice(&crc.to_le_bytes());
}

/// The checksum of the record at `at`.
fn record_checksum(file: &[u8], at: usize) -> [u8; 4] {
    let length = u32::from_le_bytes(file[at + 4..at + 8].try_into().unwrap()) as usize;
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&file[40..56]);
    hasher.update(&(at as u64).to_le_bytes());
    hasher.update(&file[at..at + 12]);
    hasher.update(&file[at + 16..at + 16 + length]);
    hasher.finalize().to_le_bytes()
}

/// Puts the checksum of the first frame and of the page over it right.
fn relink_frame(file: &mut [u8]) {
    let frame = record_checksum(file, 256);
    file[268..272].copy_from_slice(&frame);
    let page = root_of(file);
    let runs = u32::from_le_bytes(file[page + 32..page + 36].try_into().unwrap()) as usize;
    let entry = page + 16 + 32 + runs * 8;
    file[entry + 12..entry + 16].copy_from_slice(&frame);
    relink_page(file);
}

/// Puts the checksum of the only page right.
fn relink_page(file: &mut [u8]) {
    let (footer, page) = (file.len() - 512, root_of(file));
    let root = record_checksum(file, page);
    file[page + 12..page + 16].copy_from_slice(&root);
    file[footer + 188..footer + 192].copy_from_slice(&root);
    mend(file);
}

/// 1: a base of three blocks, the last one partial; 2: a delta in which one changed; 3: both merged
/// into a base; 4: the first one as a base whose blocks are in a base image.
fn golden(number: usize) -> Vec<u8> {
    let path = fixtures().join(format!("format/v1/tiny/{number}.delta"));
    if is_blessing() && !path.exists() {
        let recipe = Recipe { compression: Compression::None, ..Recipe::default() };
        let mut maker = ChainMaker::new(recipe);
        let mut image = text(8292, 1);
        let file = match number {
            4 => by_reference(&maker, &image),
            _ => {
                maker.snapshot(&image);
                image[0] ^= 1;
                maker.snapshot(&image);
                if number == 3 { maker.merged(2, None) } else { maker.files[number - 1].clone() }
            }
        };
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, file).unwrap();
    }
    std::fs::read(path).unwrap()
}

fn by_reference(maker: &ChainMaker, image: &[u8]) -> Vec<u8> {
    let plan = Plan { is_by_reference: true, ..maker.plan() };
    let mut bytes = Vec::new();
    let taken = take(
        &MemorySource(image.to_vec()),
        &plan,
        Scope::Whole,
        &Context::silent(),
        &mut |piece: &[u8]| {
            bytes.extend_from_slice(piece);
            Ok(())
        },
    );
    assert!(taken.is_ok());
    bytes
}

/// The files below one of the golden ones.
fn below(number: usize) -> Vec<Vec<u8>> {
    if number == 2 { vec![golden(1)] } else { Vec::new() }
}

/// F2, H1 to H8, C2, C5, K1, K2, E1, E3, E4, E5, R1, D1, D3, N1, T3, T4, M6: what a reader refuses,
/// and how it says so.
#[test]
fn each_damaged_file_gives_its_error() {
    let folder = fixtures().join("damaged/v1");
    for (name, number, edit, kind, message) in catalogue() {
        let path = folder.join(format!("{name}.delta"));
        if is_blessing() && !path.exists() {
            std::fs::create_dir_all(&folder).unwrap();
            let mut file = golden(number);
            edit(&mut file);
            std::fs::write(&path, file).unwrap();
        }
        let mut files = below(number);
        files.push(std::fs::read(&path).unwrap());
        let error = open_chain(&files).and_then(|chain| restore_chain(&chain)).unwrap_err();
        assert_eq!(error.kind(), kind, "{name}: {error}");
        assert!(error.to_string().contains(message), "{name}: {error}");
        assert!(naive_reader::restore(&files).is_err(), "{name}: the second reader takes it");
    }
}

/// Without the damage they are read: it is the damage that gives the error.
#[test]
fn what_the_damaged_files_are_made_from_is_sound() {
    let image = text(8292, 1);
    let mut changed = image.clone();
    changed[0] ^= 1;
    for (number, image) in [(1, &image), (2, &changed), (3, &changed), (4, &image)] {
        let mut files = below(number);
        files.push(golden(number));
        let parsed = naive_reader::parse(&files[files.len() - 1]).unwrap();
        assert_eq!(parsed.incompatible, [0, 0, 1, 2][number - 1]);
        let place = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(place.path(), image).unwrap();
        let chain = crate::support::open_chain_on(&files, Some(place.path().to_owned())).unwrap();
        assert!(restore_chain(&chain).unwrap() == *image, "{number}");
        let images = std::collections::BTreeMap::from([(parsed.file_id, image.clone())]);
        assert!(naive_reader::restore_on(&files, &images).unwrap() == *image, "{number}");
    }
}

#[test]
fn every_file_of_the_catalogue_is_in_it() {
    let names: Vec<String> = catalogue().iter().map(|entry| format!("{}.delta", entry.0)).collect();
    for entry in std::fs::read_dir(fixtures().join("damaged/v1")).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        assert!(names.contains(&name), "{name} has no expected error");
    }
}

/// D2: the digest of each snapshot follows from its parent's and its own entries.
#[test]
fn a_wrong_image_digest_is_told_from_right_ones() {
    let damaged = std::fs::read(fixtures().join("damaged/v1/image-digest.delta")).unwrap();
    let context = imgsnap::base::events::Context::silent();
    for (tip, sound) in [(golden(2), [true, true]), (damaged, [false, true])] {
        let chain = open_chain(&[golden(1), tip]).unwrap();
        assert_eq!(imgsnap::ops::verify::engine::verify_digests(&chain, &context).unwrap(), sound);
    }
}
