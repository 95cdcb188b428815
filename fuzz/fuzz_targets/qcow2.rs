//! Headers of qcow2 files, which name files and say where tables are: what is understood is within bounds.
#![no_main]

use imgsnap::image::qcow2::{HEAD_BYTES, Header};
use imgsnap_fuzz::meter;
use imgsnap_fuzz::seeds::plant;
use libfuzzer_sys::fuzz_target;
use std::os::unix::ffi::OsStrExt;

fuzz_target!(init: plant(seeds), |data: &[u8]| {
    let Some((length, head)) = data.split_first_chunk::<4>() else { return };
    let head = &head[..head.len().min(HEAD_BYTES)];
    let file_bytes = u64::from(u32::from_le_bytes(*length)).max(head.len() as u64);
    meter::within(data.len() * 8 + (64 << 10), || {
        let Ok(header) = Header::decode(head, file_bytes).map_err(imgsnap_fuzz::chains::refusal) else {
            return;
        };
        assert!((9..=21).contains(&header.cluster_bits));
        let tables = header.l1_entries << (2 * header.cluster_bits - 3);
        assert!(tables >= header.disk_bytes);
        // A disk without a byte has no table, and where that would be means nothing.
        let end = header.l1_offset.checked_add(8 * header.l1_entries);
        assert!(header.l1_entries == 0 || end.is_some_and(|end| end <= file_bytes));
        if let Some((_, name)) = header.named_file() {
            let name = name.as_os_str().as_bytes();
            assert!(!name.is_empty() && !name.contains(&0));
            assert!(head.windows(name.len()).any(|window| window == name));
        }
    });
});

/// Version 3, clusters of 64 KiB, a disk of 4 MiB with a backing file; the same of version 2, and without.
fn seeds() -> Vec<Vec<u8>> {
    let mut head = vec![0; 512];
    for (at, bytes) in [
        (0, &b"QFI\xfb\0\0\0\x03"[..]),
        (14, &[1, 0, 0, 0, 0, 4]),
        (23, &[16]),
        (29, &[0x40]),
        (39, &[1]),
        (45, &[3]),
        (99, &[4]),
        (103, &[112]),
        (112, b"\xe2\x79\x2a\xca\0\0\0\x03raw\0\0\0\0\0"),
        (128, b"\x23\x85\x28\x75\0\0\0\x18\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\x40\0\0\0\0\0\x01\0\0"),
        (160, b"\x68\x03\xf8\x57\0\0\0\x30\0\x07a feature"),
        (256, b"base"),
    ] {
        head[at..][..bytes.len()].copy_from_slice(bytes);
    }
    let with = |at: usize, byte: u8| {
        let mut head = head.clone();
        head[at] = byte;
        [&[0, 0, 4, 0], head.as_slice()].concat()
    };
    vec![with(0, b'Q'), with(7, 2), with(14, 0), with(79, 16), with(79, 0x80)]
}
