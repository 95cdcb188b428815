//! What we read of a qcow2 file is what QEMU reads.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]
#![allow(clippy::big_endian_bytes, reason = "qcow2 is big-endian")]

use crate::kit::*;
use crate::qcow2_images::*;
use crate::random::Random;
use imgsnap::ErrorKind;
use imgsnap::image::Source;
use std::os::unix::fs::symlink;

/// `IMGSNAP_ROUNDS=200` for more of them, `IMGSNAP_SEED` for others.
fn number(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).map_or(usual, |text| text.parse().unwrap())
}

#[test]
fn random_disks_are_what_qemu_img_converts_them_to() {
    need!(tools(QEMU));
    let (rounds, seed) = (number("IMGSNAP_ROUNDS", 40), number("IMGSNAP_SEED", 7000));
    for seed in seed..seed + rounds {
        let lab = Lab::new();
        let (path, history) = random_disk(&lab, seed);
        let raw = lab.path("converted");
        let convert = ["convert", "-t", "unsafe", "-f", "qcow2", "-O", "raw", &path, &raw];
        try_tool("qemu-img", &convert).unwrap_or_else(|e| panic!("{history}\n{e}"));
        let expected = std::fs::read(&raw).unwrap();
        let _open = no_fork();
        let image = open(&path, true).unwrap_or_else(|e| panic!("{history}\n{e}"));
        assert_eq!(image.image_bytes(), expected.len() as u64, "{history}");
        let mut random = Random(seed);
        for window in [1 << 20, random.below(200_000) + 1] {
            let read =
                read_all(&image, window, u64::MAX).unwrap_or_else(|e| panic!("{history}\n{e}"));
            let differs = read.iter().zip(&expected).position(|(a, b)| a != b);
            assert!(differs.is_none(), "{history}\nbyte {differs:?} differs");
            assert_eq!(read.len(), expected.len(), "{history}");
        }
        // Anywhere, across holes and clusters.
        let mut buffer = Vec::new();
        for _ in 0..50 {
            let at = random.below(image.image_bytes());
            let bytes = (random.below(700_000) + 1).min(image.image_bytes() - at) as usize;
            let window = image.read(at, bytes, &mut buffer).unwrap();
            assert_eq!(
                window.bytes(),
                &expected[at as usize..][..bytes],
                "{history}\n{at}+{bytes}"
            );
        }
    }
    println!("{rounds} disks from seed {seed} on");
}

#[test]
fn preallocated_clusters_that_nobody_wrote_to_are_holes() {
    need!(tools(QEMU));
    let lab = Lab::new();
    let path = lab.path("vm.qcow2");
    let options = ["-o", "preallocation=metadata"];
    tool("qemu-img", &[&["create", "-q", "-f", "qcow2"], &options[..], &[&path, "256M"]].concat());
    tool("qemu-io", &["-f", "qcow2", "-c", "write -P 5 100M 1M", &path]);
    let _open = no_fork();
    let image = open(&path, false).unwrap();
    let mut data = 0;
    let mut at = 0;
    while at < image.image_bytes() {
        let extent = image.extent_at(at).unwrap();
        data +=
            if extent.kind == imgsnap::base::units::ExtentKind::Data { extent.bytes } else { 0 };
        at += extent.bytes;
    }
    assert!((MIB..2 * MIB).contains(&data), "{data}");
}

#[test]
fn files_that_a_header_names_are_opened_only_if_that_is_allowed() {
    need!(tools(QEMU));
    let lab = Lab::new();
    let (path, base) = (lab.path("vm.qcow2"), lab.path("base.img"));
    make(&base, MIB);
    put(&base, 0, b"the base");
    let create = |backing: &str, format: &str| {
        std::fs::remove_file(&path).ok();
        let args = ["create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", format, &path, "1M"];
        tool("qemu-img", &args);
    };
    let refused = |backing_ok| {
        let _open = no_fork();
        open(&path, backing_ok).err().unwrap()
    };
    create("base.img", "raw");
    let error = refused(false);
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(
        error.to_string().contains("depends on a backing file that its header names: base.img; ")
    );
    let read = |path: &str| {
        let _open = no_fork();
        let image = open(path, true).unwrap();
        assert!(image.has_backing());
        read_all(&image, MIB, u64::MAX).unwrap()[..8].to_vec()
    };
    assert_eq!(read(&path), b"the base");
    // What it is called by says where the names in it lead.
    std::fs::create_dir(lab.path("links")).unwrap();
    symlink(&path, lab.path("links/vm.qcow2")).unwrap();
    make(&lab.path("links/base.img"), MIB);
    put(&lab.path("links/base.img"), 0, b"the link");
    assert_eq!(read(&lab.path("links/vm.qcow2")), b"the link");

    // Refused before they are looked for.
    create("gone.img", "raw");
    assert_eq!(refused(false).kind(), ErrorKind::Unsupported);
    let error = refused(true);
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(
        error.to_string().contains("vm.qcow2: its backing file: cannot open image "),
        "{error}"
    );
    for (backing, format, kind, text) in [
        (
            "nbd://host/x",
            "raw",
            ErrorKind::Unsupported,
            "its backing file is not a path: nbd://host/x; ",
        ),
        (
            "json:{\"driver\":\"null-co\"}",
            "raw",
            ErrorKind::Unsupported,
            "its backing file is not a path: json:",
        ),
        (
            "base.img",
            "vmdk",
            ErrorKind::Unsupported,
            "has the unsupported format \"vmdk\": base.img; only raw and qcow2 ",
        ),
        ("base.img", "qcow2", ErrorKind::InvalidInput, "base.img: it is not a qcow2 image"),
        ("vm.qcow2", "qcow2", ErrorKind::Corrupt, "vm.qcow2 is its own backing file; "),
        ("./vm.qcow2", "raw", ErrorKind::Corrupt, "vm.qcow2 is its own backing file; "),
        (
            "/dev/null",
            "raw",
            ErrorKind::InvalidInput,
            "/dev/null is neither a file nor a block device",
        ),
        ("links", "raw", ErrorKind::InvalidInput, "links is a folder"),
    ] {
        create(backing, format);
        let error = refused(true);
        assert!(error.to_string().contains(text), "{backing}: {error}");
        assert_eq!(error.kind(), kind, "{backing}: {error}");
    }
    // As programs leave it that let QEMU guess.
    create("base.img", "raw");
    let mut head = get(&path, 0, 4096);
    let at = head.windows(4).position(|w| w == [0xe2, 0x79, 0x2a, 0xca]).unwrap();
    head[at] = 0x11;
    put(&path, 0, &head);
    let error = refused(true);
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let text = "it does not specify the format of its backing file: base.img; set it with \"qemu-img rebase \
                -u -b base.img -F FORMAT ";
    assert!(error.to_string().contains(text), "{error}");
}

#[test]
fn a_chain_may_be_deep_and_not_endless() {
    need!(tools(QEMU));
    let lab = Lab::new();
    let path = |number: usize| lab.path(&format!("{number}.qcow2"));
    make(&lab.path("base"), MIB);
    put(&lab.path("base"), 700_000, b"the base");
    tool("qemu-img", &["create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", &path(0)]);
    // One that was made is all of them: each names the one before it.
    let first = std::fs::read(path(0)).unwrap();
    let at = first.windows(4).position(|w| w == b"base").unwrap();
    let format = first.windows(3).position(|w| w == b"raw").unwrap();
    for number in 1..imgsnap::image::qcow2::MAX_FILES {
        let mut file = first.clone();
        let name = format!("{}.qcow2", number - 1);
        file[at..][..name.len()].copy_from_slice(name.as_bytes());
        file[19] = name.len() as u8;
        file[format..][..5].copy_from_slice(b"qcow2");
        file[format - 1] = 5;
        std::fs::write(path(number), file).unwrap();
    }
    let deepest = imgsnap::image::qcow2::MAX_FILES - 2;
    let _open = no_fork();
    let image = open(&path(deepest), true).unwrap();
    assert_eq!(image.files().count(), imgsnap::image::qcow2::MAX_FILES);
    assert_eq!(&read_all(&image, MIB, u64::MAX).unwrap()[700_000..][..8], b"the base");
    let error = open(&path(deepest + 1), true).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::LimitExceeded);
    assert!(error.to_string().contains("depends on more than 200 files; merge some"), "{error}");
}

#[test]
fn a_disk_whose_data_is_in_another_file_is_read_if_that_is_allowed() {
    need!(tools(QEMU));
    let lab = Lab::new();
    let (path, data) = (lab.path("vm.qcow2"), lab.path("data.raw"));
    let (options, raw) = (format!("data_file={data}"), lab.path("converted"));
    tool("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &options, &path, "9M"]);
    let commands = ["-c", "write -P 3 0 300k", "-c", "write -P 4 5M 1M", "-c", "write -z 100k 64k"];
    tool("qemu-io", &[&["-f", "qcow2"], &commands[..], &[&path]].concat());
    tool("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", &path, &raw]);
    let expected = std::fs::read(&raw).unwrap();
    let guard = no_fork();
    let error = open(&path, false).err().unwrap();
    assert!(
        error.to_string().contains("depends on a data file that its header names: "),
        "{error}"
    );
    let image = open(&path, true).unwrap();
    assert!(image.has_backing());
    assert!(read_all(&image, MIB, u64::MAX).unwrap() == expected);
    // Whoever writes to it changes the disk.
    drop(guard);
    put(&data, 0, b"x");
    assert_eq!(image.check_at_end().unwrap_err().kind(), ErrorKind::Busy);
}

#[test]
fn a_file_that_is_cut_off_is_damaged() {
    need!(tools(QEMU));
    let lab = Lab::new();
    let path = lab.path("vm.qcow2");
    tool("qemu-img", &["create", "-q", "-f", "qcow2", &path, "64M"]);
    tool("qemu-io", &["-f", "qcow2", "-c", "write -P 5 0 8M", &path]);
    let whole = std::fs::metadata(&path).unwrap().len();
    for (bytes, is_read) in [(whole - 1000, true), (whole - (64 << 10), false), (4 << 16, false)] {
        // A child of another test that inherits it would be a writer.
        let _open = no_fork();
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(bytes).unwrap();
        drop(file);
        let read = open(&path, false).and_then(|image| read_all(&image, MIB, u64::MAX));
        match read {
            Ok(_) => assert!(is_read, "{bytes}"),
            Err(e) => {
                assert!(
                    !is_read && e.to_string().contains(" lies beyond its end: it is truncated; "),
                    "{e}"
                );
                assert_eq!(e.kind(), ErrorKind::Corrupt);
            }
        }
    }
}

#[test]
fn a_disk_that_ends_within_a_sector_ends_before_it() {
    need!(tools(QEMU));
    let lab = Lab::new();
    let (path, over) = (lab.path("vm.qcow2"), lab.path("over.qcow2"));
    let converted = lab.path("converted.img");
    for size in [MIB, MIB - 1, MIB - 511, MIB - 512, 65 << 10 | 1, 513, 512, 511, 1, 0] {
        tool("qemu-img", &["create", "-q", "-f", "qcow2", &path, "1M"]);
        tool("qemu-io", &["-f", "qcow2", "-c", "write -P 5 0 1M", &path]);
        put(&path, 24, &size.to_be_bytes());
        let backing = ["-b", &path, "-F", "qcow2", &over, "2M"];
        tool("qemu-img", &[&["create", "-q", "-f", "qcow2"][..], &backing].concat());
        for file in [&path, &over] {
            tool("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", file, &converted]);
            let wanted = std::fs::read(&converted).unwrap();
            let _open = no_fork();
            let read = open(file, true).and_then(|image| read_all(&image, MIB, u64::MAX));
            match wanted.is_empty() {
                false => assert!(read.unwrap() == wanted, "{file} of {size}"),
                true => assert!(read.unwrap_err().to_string().contains("a disk of 0 bytes")),
            }
        }
    }
}

#[test]
fn a_running_machine_has_its_disk_for_itself() {
    need!(tools(QEMU));
    let lab = Lab::new();
    let (path, base) = (lab.path("vm.qcow2"), lab.path("base.qcow2"));
    tool("qemu-img", &["create", "-q", "-f", "qcow2", &base, "4M"]);
    tool("qemu-img", &["create", "-q", "-f", "qcow2", "-b", &base, "-F", "qcow2", &path]);
    // Whoever writes to a backing file changes the disk, too.
    let guard = no_fork();
    let writer = std::fs::OpenOptions::new().write(true).open(&base).unwrap();
    let busy = open(&path, true).err().unwrap();
    assert_eq!(busy.kind(), ErrorKind::Busy, "{busy}");
    drop(writer);
    let image = open(&path, true).unwrap();
    image.check().unwrap();
    drop(guard);
    put(&base, 100, b"x");
    assert_eq!(image.check_at_end().unwrap_err().kind(), ErrorKind::Busy);
}

/// What a bitmap should say, from the writes that were made.
fn granules(writes: &[(u64, u64)], granularity: u64, disk: u64) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for granule in 0..disk.div_ceil(granularity) {
        let (start, end) = (granule * granularity, ((granule + 1) * granularity).min(disk));
        if writes.iter().any(|(at, bytes)| *at < end && at + bytes > start) {
            match ranges.last_mut() {
                Some(last) if last.1 == start => last.1 = end,
                _ => ranges.push((start, end)),
            }
        }
    }
    ranges
}

#[test]
fn persistent_bitmaps_say_what_was_written() {
    need!(tools(QEMU));
    let lab = Lab::new();
    let path = lab.path("vm.qcow2");
    let disk = 40 * MIB + 512;
    let mut random = Random(44);
    for (cluster, options) in
        [(512, ""), (4096, ""), (1 << 16, ""), (1 << 16, ",lazy_refcounts=on")]
    {
        std::fs::remove_file(&path).ok();
        let options = format!("cluster_size={cluster}{options}");
        tool(
            "qemu-img",
            &["create", "-q", "-f", "qcow2", "-o", &options, &path, &disk.to_string()],
        );
        let mut writes: Vec<(u64, u64)> = (0..12)
            .map(|_| (random.below(disk / 512 - 1000) * 512, (random.below(300) + 1) * 512))
            .collect();
        writes.push((disk - 512, 512));
        let commands: Vec<String> =
            writes.iter().map(|(at, n)| format!("write {at} {n}")).collect();
        for granularity in ["512", "4k", "64k", "2M"] {
            tool("qemu-img", &["bitmap", "--add", "-g", granularity, &path, granularity]);
        }
        tool("qemu-img", &["bitmap", "--add", "--disable", &path, "off"]);
        let args: Vec<&str> = commands.iter().flat_map(|command| ["-c", command]).collect();
        tool("qemu-io", &[&["-f", "qcow2"], &args[..], &[&path]].concat());
        {
            let _open = no_fork();
            let image = open(&path, false).unwrap();
            let found = image.bitmaps().unwrap();
            let told = |name: &str| found.iter().find(|bitmap| bitmap.name == name).unwrap();
            for (name, granularity) in
                [("512", 512), ("4k", 4096), ("64k", 1 << 16), ("2M", 2 << 20)]
            {
                assert_eq!(told(name).granularity, granularity);
                assert!(told(name).is_enabled && told(name).is_saved);
                let ranges = image.dirty_ranges(name).unwrap();
                let ranges: Vec<_> =
                    ranges.iter().map(|range| (range.offset, range.end())).collect();
                assert_eq!(ranges, granules(&writes, granularity, disk), "{cluster} {name}");
            }
            assert!(!told("off").is_enabled);
            let error = image.dirty_ranges("off").unwrap_err();
            assert!(error.to_string().contains("bitmap \"off\" is disabled: "), "{error}");
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert_eq!(image.dirty_ranges("none").unwrap_err().kind(), ErrorKind::NotFound);
        }
        // All of it, which takes no bits.
        tool("qemu-io", &["-f", "qcow2", "-c", &format!("write -z 0 {disk}"), &path]);
        let _open = no_fork();
        let ranges = open(&path, false).unwrap().dirty_ranges("4k").unwrap();
        assert_eq!(ranges.iter().map(|r| (r.offset, r.bytes)).collect::<Vec<_>>(), [(0, disk)]);
    }
}

#[test]
fn bitmaps_that_cannot_be_relied_on_are_not_used() {
    need!(tools(QEMU));
    let lab = Lab::new();
    let path = lab.path("vm.qcow2");
    let make = || {
        std::fs::remove_file(&path).ok();
        tool("qemu-img", &["create", "-q", "-f", "qcow2", &path, "4M"]);
        tool("qemu-img", &["bitmap", "--add", &path, "b"]);
        let bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(4).position(|w| w == [0x23, 0x85, 0x28, 0x75]).unwrap() as u64;
        let directory = u64::from_be_bytes(bytes[at as usize + 24..][..8].try_into().unwrap());
        (at, directory)
    };
    let dirty = || {
        let _open = no_fork();
        open(&path, false).unwrap().dirty_ranges("b")
    };
    make();
    assert_eq!(dirty().unwrap(), []);
    // Written by a program that does not know bitmaps: it clears the bit.
    make();
    put(&path, 95, &[0]);
    assert_eq!(dirty().unwrap_err().kind(), ErrorKind::NotFound);
    for (what, kind, text) in [
        (
            "not saved",
            ErrorKind::Unsupported,
            "was in use when its machine ended, and is incomplete",
        ),
        (
            "long",
            ErrorKind::Corrupt,
            "its bitmaps are malformed: the table does not match the length of the disk",
        ),
        (
            "outside",
            ErrorKind::Corrupt,
            "its bitmaps are malformed: they extend beyond the end of the file",
        ),
        ("many", ErrorKind::Corrupt, "its bitmaps are malformed: the directory is truncated"),
        ("coarse", ErrorKind::Corrupt, "its bitmaps are malformed: an entry of the directory"),
    ] {
        let (extension, directory) = make();
        match what {
            "not saved" => put(&path, directory + 15, &[3]),
            "long" => put(&path, directory + 11, &[2]),
            "outside" => put(&path, directory, &[0, 1]),
            "many" => put(&path, extension + 8, &[0, 1]),
            _ => put(&path, directory + 17, &[40]),
        }
        let error = dirty().unwrap_err();
        assert!(error.to_string().contains(text), "{what}: {error}");
        assert_eq!(error.kind(), kind, "{what}");
    }
}
