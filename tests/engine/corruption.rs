//! Each byte flipped, each length cut: an error or the right bytes; never wrong bytes, never a
//! panic.

use crate::support::{ChainMaker, Recipe, naive_reader, open_chain, restore_chain, text};
use imgsnap::base::digest::DigestAlgorithm;
use imgsnap::base::error::ErrorKind;
use imgsnap::codec::Compression;

/// A base, a delta with data and zero runs, and one that shrinks.
fn images() -> Vec<Vec<u8>> {
    let first = text(5 * 4096 + 100, 1);
    let mut second = first.clone();
    second[4096..8192].fill(0);
    second[9000..9100].fill(7);
    let third = second[..2 * 4096 + 900].to_vec();
    vec![first, second, third]
}

fn recipes() -> [Recipe; 3] {
    let usual = Recipe { threads: 1, ..Recipe::default() };
    let blake3 = DigestAlgorithm::Blake3;
    [
        usual,
        Recipe { compression: Compression::None, ..usual },
        Recipe { compression: Compression::Zstd(1), algorithm: blake3, ..usual },
    ]
}

/// Chains that give the last image: as taken; a base, and the two others merged; all of them merged.
/// Each with the number of files that a chain before it has, too.
fn chains(recipe: Recipe) -> [(Vec<Vec<u8>>, usize); 3] {
    let mut maker = ChainMaker::new(recipe);
    images().iter().for_each(|image| drop(maker.snapshot(image)));
    let merged = vec![maker.files[0].clone(), maker.merged(3, Some(1))];
    assert_eq!(merged[1][16], 1, "the feature of merged files");
    let full = vec![maker.merged(3, None)];
    [(maker.files, 0), (merged, 1), (full, 0)]
}

/// Where bytes are flipped: all of the header, of the tables and of the footer, and of the blocks every fourth;
/// with IMGSNAP_FLIPS=all each.
fn places(file: &[u8]) -> impl Iterator<Item = usize> {
    let all = std::env::var_os("IMGSNAP_FLIPS").is_some_and(|which| which == "all");
    let end = file.len();
    (0..end).filter(move |at| all || *at < 512 || at % 4 == 0 || end - at < 2048)
}

/// Opens and restores; a difference to the right bytes is the failure that must not be.
fn check(files: &[Vec<u8>], image: &[u8], what: &str) -> bool {
    match open_chain(files).and_then(|chain| restore_chain(&chain)) {
        Ok(bytes) => {
            assert!(bytes == image, "{what}: wrong bytes were restored");
            true
        }
        Err(error) => {
            let kind = error.kind();
            let expected = matches!(kind, ErrorKind::Corrupt | ErrorKind::Unsupported);
            assert!(expected, "{what}: {error} is of kind {kind:?}");
            assert!(!error.to_string().contains('\n'), "{what}: more than one line");
            false
        }
    }
}

#[test]
fn every_flipped_byte_gives_an_error_or_the_right_bytes() {
    for (files, known) in recipes().into_iter().flat_map(chains) {
        let image = images().pop().unwrap();
        let (mut survived, mut flips) = (0, 0);
        for (index, file) in files.iter().enumerate().skip(known) {
            for at in places(file) {
                for mask in [0x01, 0x80] {
                    let mut bad = files.clone();
                    bad[index][at] ^= mask;
                    flips += 1;
                    let what = format!("file {index} byte {at} mask {mask:#x}");
                    survived += u32::from(check(&bad, &image, &what));
                }
            }
        }
        // What is superseded is not read: damage there does not keep a snapshot from being
        // restored.
        assert!(survived < flips / 2, "{survived} of {flips} went unnoticed and did no harm");
    }
}

#[test]
fn every_flipped_byte_is_found_by_a_scrub() {
    let context = imgsnap::base::events::Context::silent().with_threads(1);
    for (files, known) in recipes().into_iter().flat_map(chains) {
        for (index, file) in files.iter().enumerate().skip(known) {
            for at in places(file) {
                let mut bad = files.clone();
                bad[index][at] ^= 0x10;
                let found = match open_chain(&bad) {
                    Err(_) => true,
                    Ok(chain) => chain.layers().iter().any(|delta| {
                        imgsnap::ops::verify::engine::verify_stored(delta, &context).is_err()
                    }),
                };
                assert!(found, "file {index} byte {at}");
            }
        }
    }
}

#[test]
fn every_truncation_is_an_error() {
    for (files, known) in recipes().into_iter().flat_map(chains) {
        let image = images().pop().unwrap();
        for (index, file) in files.iter().enumerate().skip(known) {
            for length in 0..file.len() {
                let mut bad = files.clone();
                bad[index].truncate(length);
                assert!(!check(&bad, &image, &format!("file {index} cut at {length}")), "{length}");
            }
            let mut bad = files.clone();
            bad[index].push(0);
            assert!(!check(&bad, &image, "a byte more"), "a byte more");
        }
    }
}

/// The same bytes with their checksums put right again: what a careful enemy, or a bug, would
/// write.
#[test]
fn flips_under_a_right_checksum_never_panic_and_never_give_wrong_bytes() {
    let image = images().pop().unwrap();
    for (files, known) in chains(recipes()[1]) {
        for (index, file) in files.iter().enumerate().skip(known) {
            for at in places(file) {
                for mask in [0x01, 0x40, 0xff] {
                    let mut bad = files.clone();
                    bad[index][at] ^= mask;
                    mend_checksums(&mut bad[index]);
                    let what = format!("file {index} byte {at} mask {mask:#x}");
                    if let Ok(bytes) = open_chain(&bad).and_then(|chain| restore_chain(&chain)) {
                        assert!(bytes == image, "{what}: wrong bytes");
                    }
                    // The second reader must not panic either; it may be stricter.
                    if let Ok(bytes) = naive_reader::restore(&bad) {
                        assert!(bytes == image, "{what}: wrong bytes of the second reader");
                    }
                }
            }
        }
    }
}

/// Puts the checksums of header, records and footer right, as far as the records can still be
/// followed.
fn mend_checksums(file: &mut [u8]) {
    let crc = crc32fast::hash(&file[..252]);
    file[252..256].copy_from_slice(&crc.to_le_bytes());
    let end = file.len() - 512;
    let mut at = 256;
    let mut last = None;
    while at + 16 <= end {
        let length = u32::from_le_bytes(file[at + 4..at + 8].try_into().unwrap()) as usize;
        if at + 16 + length > end {
            break;
        }
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&file[40..56]);
        hasher.update(&(at as u64).to_le_bytes());
        hasher.update(&file[at..at + 12]);
        hasher.update(&file[at + 16..at + 16 + length]);
        let crc = hasher.finalize();
        file[at + 12..at + 16].copy_from_slice(&crc.to_le_bytes());
        last = Some(crc);
        at += 16 + length;
    }
    if let Some(crc) = last {
        file[end + 188..end + 192].copy_from_slice(&crc.to_le_bytes());
    }
    let crc = crc32fast::hash(&file[end..end + 508]);
    file[end + 508..end + 512].copy_from_slice(&crc.to_le_bytes());
}

/// T5: a frame with fewer blocks than its page says is damage for every path through the data.
#[test]
fn a_frame_that_is_too_short_is_damage() {
    use imgsnap::base::digest::Hasher;
    use imgsnap::delta::{DeltaWriter, EncodedFrames, Piece, Segmenter};
    let maker = ChainMaker::new(recipes()[1]);
    let (_, file) = maker.try_snapshot(&images()[0]);
    let header = imgsnap::format::Header::decode(file[..256].try_into().unwrap()).unwrap();
    let hasher = Hasher::new(header.algorithm, header.key);
    let mut bytes = Vec::new();
    let mut out = |piece: &[u8]| {
        bytes.extend_from_slice(piece);
        Ok(())
    };
    let mut writer = DeltaWriter::new(&header, &mut out);
    let mut segmenter = Segmenter::new(header.block_size, header.frame_blocks);
    let mut digest = hasher.empty_image(4 * 4096);
    for block in 0..4 {
        // The digest of nothing, for blocks that are not there.
        let of_block = if block == 0 { hasher.digest(&[1; 4096]) } else { hasher.digest(&[]) };
        segmenter.data(block, of_block, &[1; 4096]);
        digest = digest.plus(hasher.term(block, of_block));
    }
    for piece in segmenter.finish() {
        match piece {
            Piece::Table(page) => writer.table(page).unwrap(),
            Piece::Copy { .. } | Piece::Cut(..) | Piece::Keep(_) => {
                unreachable!("nothing is copied here")
            }
            Piece::Frame { raw, .. } => {
                let mut frames = EncodedFrames::default();
                frames.push(imgsnap::codec::Codec::Stored, &raw[..4096], 1);
                writer.frames(frames).unwrap();
            }
        }
    }
    writer.finish(&maker.plan().identity, None, 4 * 4096, digest).unwrap();
    let chain = open_chain(&[bytes]).unwrap();
    assert_eq!(restore_chain(&chain).unwrap_err().kind(), ErrorKind::Corrupt);
    let context = imgsnap::base::events::Context::silent();
    assert!(imgsnap::ops::verify::engine::verify_stored(chain.tip(), &context).is_err());
    assert!(
        !imgsnap::ops::verify::engine::find_damage(chain.tip(), &context)
            .unwrap()
            .findings
            .is_empty()
    );
}

/// R2: what a frame says of its length is not believed beyond what the header allows. 64 GiB were asked for.
#[test]
fn a_frame_that_says_it_has_many_blocks_gets_no_memory_for_them() {
    let maker = ChainMaker::new(Recipe { block_bytes: 1 << 20, ..recipes()[0] });
    let (_, mut file) = maker.try_snapshot(&text(5000, 1));
    assert_eq!(&file[256..260], b"FRAM");
    file[256 + 10..256 + 12].fill(0xff);
    mend_checksums(&mut file);
    let chain = open_chain(&[file]).unwrap();
    let context = imgsnap::base::events::Context::silent().with_threads(1);
    let error = imgsnap::ops::verify::engine::verify_all(chain.tip(), &context).unwrap_err();
    assert!(
        error.to_string().contains("record at byte 256: invalid frame of 65535 blocks"),
        "{error}"
    );
}
