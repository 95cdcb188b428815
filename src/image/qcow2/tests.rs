//! What is said of headers: one table.

use super::header::{Compression, Header};
use crate::base::error::ErrorKind::{self, Corrupt, InvalidInput, Unsupported};

const FILE_BYTES: u64 = 4 << 16;

/// Version 3, clusters of 64 KiB, a disk of 4 MiB, its L1 table in the fourth cluster, no extensions.
fn head() -> Vec<u8> {
    let mut head = vec![0; 1 << 16];
    for (at, bytes) in [
        (0, &b"QFI\xfb\0\0\0\x03"[..]),
        (23, &[16]),
        (29, &[0x40]),
        (39, &[1]),
        (45, &[3]),
        (53, &[1]),
        (59, &[1]),
        (99, &[4]),
        (103, &[112]),
    ] {
        head[at..][..bytes.len()].copy_from_slice(bytes);
    }
    head
}

fn with(changes: &[(usize, &[u8])]) -> Vec<u8> {
    let mut head = head();
    changes.iter().for_each(|(at, bytes)| head[*at..][..bytes.len()].copy_from_slice(bytes));
    head
}

const FORMAT: &[u8] = b"\xe2\x79\x2a\xca\0\0\0\x03raw\0\0\0\0\0";
const DATA_FILE: &[u8] = b"\x44\x41\x54\x41\0\0\0\x04data\0\0\0\0";
const FEATURES: &[u8] = b"\x68\x03\xf8\x57\0\0\0\x30\0\x07new \x1b[31m";
const BITMAPS: &[u8] =
    b"\x23\x85\x28\x75\0\0\0\x18\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\x40\0\0\0\0\0\x01\0\0";
const TWO_BITMAPS: &[u8] = b"\x23\x85\x28\x75\0\0\0\x08\0\0\0\x02\0\0\0\0";
const LOOK: &str = "; check it with \"qemu-img check\", or use a copy of it";
const CONVERT: &str = "; convert it with \"qemu-img convert -O qcow2\"";

/// What is changed in the header, the kind of the error, and its text; `HEADER` and so on are filled in.
type Case = (&'static [(usize, &'static [u8])], ErrorKind, &'static str);

const REFUSED: &[Case] = &[
    (&[(0, b"RAW!")], InvalidInput, "it is not a qcow2 image"),
    (&[(7, &[1])], Unsupported, "unsupported qcow2 version 1 (2 and 3 are supported)"),
    (&[(7, &[4])], Unsupported, "unsupported qcow2 version 4 (2 and 3 are supported)"),
    (&[(23, &[8])], Corrupt, "HEADER clusters of 2^8 bytesLOOK"),
    (&[(23, &[22])], Corrupt, "HEADER clusters of 2^22 bytesLOOK"),
    (&[(23, &[255])], Corrupt, "HEADER clusters of 2^255 bytesLOOK"),
    (&[(35, &[1])], Unsupported, "it is encrypted (AES)KEY"),
    (&[(35, &[2])], Unsupported, "it is encrypted (LUKS)KEY"),
    (&[(35, &[9])], Corrupt, "HEADER encryption of type 9LOOK"),
    (
        &[(79, &[2])],
        Corrupt,
        "it is marked as corrupt; repair it with \"qemu-img check -r all\", on a copy first",
    ),
    (&[(77, &[1])], Unsupported, "it needs an unknown feature: bit 16MADE"),
    (
        &[(79, &[0x80]), (112, FEATURES)],
        Unsupported,
        "it needs an unknown feature: bit 7 (new \\u{1b}[31m)MADE",
    ),
    (&[(79, &[16]), (23, &[13])], Corrupt, "HEADER subclusters of clusters of 2^13 bytesLOOK"),
    (&[(79, &[8]), (104, &[2])], Unsupported, "its compression type 2 is unknownCONVERT"),
    (&[(104, &[1])], Corrupt, "HEADER inconsistent compression fieldsLOOK"),
    (&[(79, &[8])], Corrupt, "HEADER inconsistent compression fieldsLOOK"),
    (&[(79, &[4])], Unsupported, "its data is in another file, which it does not nameCONVERT"),
    (&[(24, &[1])], Corrupt, "HEADER an L1 table of 1 entries for 72057594042122240 bytesLOOK"),
    (&[(36, &[1])], Corrupt, "HEADER an L1 table of 16777217 entries for 4194304 bytesLOOK"),
    (&[(39, &[0])], Corrupt, "HEADER an L1 table of 0 entries for 4194304 bytesLOOK"),
    (&[(40, &[255])], Corrupt, "HEADER an L1 table at byte 18374686479671820288 of 262144LOOK"),
    (&[(45, &[4])], Corrupt, "HEADER an L1 table at byte 262144 of 262144LOOK"),
    (&[(46, &[1])], Corrupt, "HEADER an L1 table at byte 196864 of 262144LOOK"),
    (&[(99, &[7])], Corrupt, "HEADER refcounts of 2^7 bitsLOOK"),
    (&[(103, &[105])], Corrupt, "HEADER it is 105 bytes longLOOK"),
    (&[(103, &[96])], Corrupt, "HEADER it is 96 bytes longLOOK"),
    (&[(100, &[255])], Corrupt, "HEADER it is 4278190192 bytes longLOOK"),
    (&[(112, &[1, 1, 1, 1, 255])], Corrupt, "HEADER an extension extends beyond its endLOOK"),
    (&[(112, FORMAT), (128, FORMAT)], Corrupt, "HEADER duplicate extensionLOOK"),
    (&[(112, BITMAPS), (144, BITMAPS)], Corrupt, "HEADER duplicate extensionLOOK"),
    (&[(112, TWO_BITMAPS)], Corrupt, "HEADER where its bitmaps areLOOK"),
    (&[(15, &[200]), (18, &[4])], Corrupt, "HEADER the name of its backing fileLOOK"),
    (&[(8, &[255]), (19, &[4])], Corrupt, "HEADER the name of its backing fileLOOK"),
    (&[(15, &[60]), (19, &[4])], Corrupt, "HEADER the name of its backing fileLOOK"),
    (&[(15, &[200]), (19, &[4])], Corrupt, "HEADER the name of its backing fileLOOK"),
];

#[test]
fn what_cannot_be_read_is_refused_in_one_clear_line() {
    for (changes, kind, text) in REFUSED {
        let key = "; export it with qemu-nbd, which needs the key, and use that export";
        let made = "; convert it with the \"qemu-img convert\" of the version that made it";
        let text = text.replace("HEADER", "its header is malformed:").replace("LOOK", LOOK);
        let text = text.replace("CONVERT", CONVERT).replace("KEY", key).replace("MADE", made);
        let error = Header::decode(&with(changes), FILE_BYTES).expect_err(&text);
        assert_eq!((error.kind(), error.to_string()), (*kind, text));
    }
}

#[test]
fn what_a_header_says_is_understood() {
    let decode = |changes: &[(usize, &[u8])]| Header::decode(&with(changes), FILE_BYTES).unwrap();
    let plain = decode(&[]);
    assert_eq!((plain.cluster_bytes(), plain.disk_bytes), (1 << 16, 4 << 20));
    assert_eq!((plain.l1_offset, plain.l1_entries), (3 << 16, 1));
    assert_eq!((plain.named_file(), plain.bitmaps), (None, None));
    assert_eq!((plain.has_subclusters, plain.compression), (false, Compression::Deflate));
    // Refcounts that may be wrong do not matter to who reads; what follows, may be anything.
    assert_eq!(decode(&[(79, &[1]), (87, &[255]), (95, &[0xfe])]), plain);
    assert_eq!(decode(&[(112, b"\x12\x34\x56\x78\0\0\0\x05hello")]), plain);
    // Version 2 ends before the features.
    assert_eq!(decode(&[(7, &[2]), (72, &[0; 40])]), plain);

    let zstd = decode(&[(79, &[8]), (104, &[1])]);
    assert_eq!((zstd.has_subclusters, zstd.compression), (false, Compression::Zstd));
    assert!(decode(&[(79, &[16])]).has_subclusters);
    let data_file = decode(&[(79, &[4]), (112, DATA_FILE)]);
    assert_eq!(data_file.named_file(), Some(("data file", "data".as_ref())));
    // Without the bit it is not one.
    assert_eq!(decode(&[(112, DATA_FILE)]).named_file(), None);

    let backing: &[(usize, &[u8])] = &[(15, &[200]), (19, &[4]), (200, b"base"), (112, FORMAT)];
    let backed = decode(backing);
    assert_eq!(backed.named_file(), Some(("backing file", "base".as_ref())));
    assert_eq!(backed.backing.unwrap().format.as_deref(), Some("raw"));
    // Without an end of the extensions they end where the name begins, and may not reach into it.
    let old = decode(&[(7, &[2]), (15, &[72]), (19, &[4]), (72, b"base"), (76, &[0; 36])]);
    assert_eq!(old.backing.unwrap().format, None);
    assert_eq!(decode(&[(15, &[200]), (19, &[0])]).backing, None);

    let directory =
        |changes: &[(usize, &[u8])]| decode(changes).bitmaps.map(|d| (d.count, d.offset));
    assert_eq!(directory(&[(95, &[1]), (112, BITMAPS)]), Some((2, 1 << 16)));
    // Written by who did not know them; not closed.
    assert_eq!(directory(&[(112, BITMAPS)]), None);
    assert_eq!(directory(&[(95, &[1]), (79, &[1]), (112, BITMAPS)]), None);
}

#[test]
fn a_header_that_ends_early_is_refused() {
    let head = head();
    for end in 0..112 {
        assert!(Header::decode(&head[..end], FILE_BYTES).is_err(), "{end}");
    }
    assert!(Header::decode(&head[..112], FILE_BYTES).is_ok());
}
