//! Variants of each format, also hostile ones.

use super::*;
use std::io::Write;

fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// The names of extents, or what is said.
fn check(format: &str, bytes: &[u8], backing_ok: bool) -> Result<Vec<String>, String> {
    let format = ImageFormat::recorded(format).unwrap();
    let found = check_references(&file_of(bytes), Path::new("/vm/x"), format, backing_ok);
    let name = |path: PathBuf| path.to_str().unwrap().to_owned();
    found.map(|paths| paths.into_iter().map(name).collect()).map_err(|e| {
        assert_eq!(e.kind(), ErrorKind::Unsupported, "{e}");
        e.to_string()
    })
}

fn descriptor(extents: &str) -> Vec<u8> {
    let head = "# Disk DescriptorFile\nversion=1\nCID=4fd89c8e\nparentCID=ffffffff\n\
                createType=\"twoGbMaxExtentSparse\"\n\n# Extent description\n";
    let tail = "\n# The Disk Data Base\nddb.adapterType = \"ide\"\n";
    [head, extents, tail].concat().into_bytes()
}

fn sparse_vmdk(capacity: u64, embedded: &str) -> Vec<u8> {
    let mut bytes = vec![0; 64 << 10];
    bytes[..4].copy_from_slice(b"KDMV");
    bytes[12..20].copy_from_slice(&capacity.to_le_bytes());
    bytes[512..][..embedded.len()].copy_from_slice(embedded.as_bytes());
    bytes
}

#[test]
fn extents_of_a_vmdk_are_found_and_need_leave() {
    let text =
        descriptor("RW 4194304 SPARSE \"x-s001.vmdk\"\nRW 10 FLAT \"x-f.vmdk\" 0\nRW 5 ZERO\n");
    assert_eq!(check("vmdk", &text, true).unwrap(), ["/vm/x-s001.vmdk", "/vm/x-f.vmdk"]);
    let said = check("vmdk", &text, false).unwrap_err();
    assert!(
        said.starts_with("/vm/x reads 2 other files, x-s001.vmdk first; if you trust"),
        "{said}"
    );
    for none in ["", "# RW 1 FLAT \"a\" 0\n", "RDONLY 1 FLAT \"a\" 0\n", "RW 1 FLAT \".0\" 0\n"] {
        assert!(check("vmdk", &descriptor(none), false).unwrap().is_empty(), "{none}");
    }
}

#[test]
fn what_could_lead_elsewhere_is_refused() {
    for extents in [
        "RW 10 FLAT \"/etc/shadow\" 0",
        "RW 10 FLAT \"../x\" 0",
        "RW 10 FLAT \"nbd:host:1\" 0",
        "RW\n10\nFLAT\n\"/etc/shadow\" 0",
        "x=\"\" RW 10 FLAT \"/etc/shadow\" 0",
        "x=\"\nRW 10 FLAT \"/etc/shadow\" 0",
        "RW 10 FLAT \"json:{}\" 0",
    ] {
        let said = check("vmdk", &descriptor(extents), true).unwrap_err();
        assert!(
            said.contains("has extents that are not files in its folder")
                && said.contains("qemu-img convert -f vmdk")
        );
    }
    let many: String = (0..2000).map(|n| format!("RW 1 FLAT \"{n}\" 0\n")).collect();
    assert!(check("vmdk", &descriptor(&many), true).unwrap_err().contains("too many extents"));
}

#[test]
fn parents_are_refused() {
    let hint = "parentFileNameHint=\"base.vmdk\"\n";
    let id = "parentCID=12345678\n";
    for parent in [hint, id] {
        assert!(check("vmdk", &descriptor(parent), true).unwrap_err().contains("on a parent"));
        let one_file = sparse_vmdk(2048, &format!("# Disk DescriptorFile\n{parent}"));
        assert!(check("vmdk", &one_file, true).unwrap_err().contains("depends on a parent"));
    }
    let alone = sparse_vmdk(2048, "# Disk DescriptorFile\nparentCID=ffffffff\n");
    assert!(check("vmdk", &alone, false).unwrap().is_empty());
    let without = sparse_vmdk(0, "# Disk DescriptorFile\nRW 10 FLAT \"/etc/shadow\" 0\n");
    assert!(check("vmdk", &without, true).unwrap_err().contains("has only a descriptor"));
    assert!(check_extent(&file_of(&without), Path::new("/vm/x-s001.vmdk")).is_err());
    check_extent(&file_of(&alone), Path::new("/vm/x-s001.vmdk")).unwrap();
}

fn vhdx(flags: u8, regions: usize) -> Vec<u8> {
    let mut bytes = vec![0; 2 << 20];
    bytes[..8].copy_from_slice(b"vhdxfile");
    bytes[regions..][..4].copy_from_slice(b"regi");
    let region = &mut bytes[regions + 16 + 32..];
    region[..16]
        .copy_from_slice(b"\x06\xa2\x7c\x8b\x90\x47\x9a\x4b\xb8\xfe\x57\x5f\x05\x0f\x88\x6e");
    region[16..24].copy_from_slice(&(1u64 << 20).to_le_bytes());
    let item = &mut bytes[(1 << 20) + 32..];
    item[..16].copy_from_slice(b"\x37\x67\xa1\xca\x36\xfa\x43\x4d\xb3\xb6\x33\xf0\xaa\x44\xe7\x6b");
    item[16..20].copy_from_slice(&(64u32 << 10).to_le_bytes());
    bytes[(1 << 20) + (64 << 10) + 4] = flags;
    bytes
}

#[test]
fn differencing_images_are_refused() {
    let vhd = |kind: u8, at: usize| {
        let mut bytes = vec![0; 4096];
        bytes[at..][..8].copy_from_slice(b"conectix");
        bytes[at + 63] = kind;
        bytes
    };
    let vdi = |kind: u8| {
        let mut bytes = vec![0; 512];
        bytes[76] = kind;
        bytes
    };
    for (format, bytes, is_differencing) in [
        ("vpc", vhd(3, 0), false),
        ("vpc", vhd(2, 4096 - 512), false),
        ("vpc", vhd(4, 0), true),
        ("vpc", vhd(4, 4096 - 512), true),
        ("vdi", vdi(1), false),
        ("vdi", vdi(4), true),
        ("vhdx", vhdx(1, 192 << 10), false),
        ("vhdx", vhdx(2, 192 << 10), true),
        ("vhdx", vhdx(3, 256 << 10), true),
        ("raw", vhd(4, 0), false),
    ] {
        let found = check(format, &bytes, true);
        assert_eq!(found.is_err(), is_differencing, "{format}: {found:?}");
        assert!(found.is_ok() || found.unwrap_err().contains("merge it into its parent"));
    }
}

#[test]
fn what_a_qcow2_needs_is_in_its_header() {
    let header = |version: u8, backing: u8, bits: u8| {
        let mut bytes = vec![0; 104];
        bytes[..8].copy_from_slice(&[b'Q', b'F', b'I', 0xfb, 0, 0, 0, version]);
        (bytes[15], bytes[79]) = (backing, bits);
        bytes
    };
    for (bytes, backing, data_file) in [
        (header(2, 0, 4), false, false),
        (header(3, 0, 0), false, false),
        (header(3, 200, 0x1f), true, true),
        (header(3, 0, 4), false, true),
    ] {
        let needs = Qcow2Needs::of(&file_of(&bytes), Path::new("x")).unwrap();
        assert_eq!(needs, Qcow2Needs { backing, data_file });
    }
    for bytes in [header(4, 0, 0), header(3, 0, 0)[..50].to_vec(), vec![]] {
        assert!(Qcow2Needs::of(&file_of(&bytes), Path::new("x")).is_err());
    }
}

/// Nothing panics, and nothing leads elsewhere, whatever is in the file.
#[test]
fn hostile_bytes_are_harmless() {
    let text = descriptor("RW 4194304 SPARSE \"x-s001.vmdk\"\nRW 10 FLAT \"x-f.vmdk\" 0\n");
    let seeds = [
        ("vmdk", text),
        ("vmdk", sparse_vmdk(9, "parentCID=ffffffff")),
        ("vhdx", vhdx(0, 192 << 10)),
    ];
    for (format, bytes) in seeds {
        let format = ImageFormat::recorded(format).unwrap();
        let interesting: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
        for round in 0..300u64 {
            let random = *blake3::hash(&round.to_le_bytes()).as_bytes();
            let mut changed = bytes.clone();
            for pair in random.chunks(8).take(1 + round as usize % 4) {
                let at = usize::from(u16::from_le_bytes([pair[0], pair[1]]));
                let near = interesting[at % interesting.len()];
                changed[near] = if pair[3] & 1 == 0 {
                    b"\"/:\n\0\xff R"[usize::from(pair[2] % 8)]
                } else {
                    pair[2]
                };
            }
            changed.truncate(
                changed.len().saturating_sub(usize::from(random[31]) * (round as usize % 2)),
            );
            let found = check_references(&file_of(&changed), Path::new("/vm/x"), format, true);
            for path in found.unwrap_or_default() {
                assert_eq!(path.parent(), Some(Path::new("/vm")), "{path:?}");
            }
        }
    }
}
