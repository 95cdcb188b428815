//! Images and repositories on other file systems.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;

/// True if the file has a hole there.
fn is_hole(path: &str, offset: u64) -> bool {
    !data_extents(path).iter().any(|&(at, bytes)| (at..at + bytes).contains(&offset))
}

fn everyday_use(lab: &mut Lab) {
    lab.repo = lab.path("mnt/repo");
    let image = lab.path("mnt/vm.img");
    // Its last block is not a whole one.
    make(&image, 16 * MIB + 1234);
    put(&image, 3 * MIB + 100, &noise(1, MIB));
    put(&image, 16 * MIB + 1000, &noise(2, 234));
    assert_eq!(lab.snapshot(&image), 1);
    put(&image, 3 * MIB, &[0; 1 << 19]);
    put(&image, 8 * MIB, &text(3, 2 * MIB));
    assert_eq!(lab.snapshot(&image), 2);
    set_length(&image, 5 * MIB + 1);
    assert_eq!(lab.snapshot(&image), 3);
    lab.verify(3);

    let kept: Vec<String> = (1..4)
        .map(|number| {
            let restored = lab.restore(&format!("vm@{number}"));
            for offset in [0, 6 * MIB, 12 * MIB] {
                assert!(offset >= length(&restored) || is_hole(&restored, offset), "{restored}");
            }
            assert!(!is_hole(&restored, 4 * MIB), "{restored}");
            // On the file system itself, too.
            let here = lab.path(&format!("mnt/vm@{number}"));
            lab.run(&["restore", &format!("vm@{number}"), "-o", &here]).done();
            same(&here, &restored);
            assert!(is_hole(&here, 0), "{here}");
            assert!(allocated(&here) < 5 * MIB, "{here}");
            std::fs::remove_file(&here).unwrap();
            restored
        })
        .collect();
    same(&image, &kept[2]);
    for (number, prove) in [(2, false), (1, false), (3, true), (1, false), (2, true), (1, true)] {
        let to = format!("@{number}");
        let mut args = vec!["rollback", &image, "--to", &to, "--json"];
        args.extend(prove.then_some("--prove"));
        let done = lab.run(&args).done().json();
        same(&image, &kept[number - 1]);
        assert_eq!(done["scanned"], prove || !trusts_times(&image), "{done}");
    }
    // What became zero takes no room again.
    assert!(is_hole(&image, 8 * MIB), "the rollback left no hole");
    assert!(allocated(&image) < 2 * MIB);
    assert_eq!(lab.numbers("vm"), [1, 2, 3]);

    lab.run(&["delete", "vm@3"]).done();
    lab.verify(2);
    lab.is_tidy("vm");
}

#[test]
fn everyday_use_on_xfs() {
    let mut lab = Lab::new();
    let _mounted = need!(mounted(&lab, "mkfs.xfs", &["-q", "-m", "reflink=1"], 400));
    everyday_use(&mut lab);
}

#[test]
fn everyday_use_on_btrfs() {
    let mut lab = Lab::new();
    let _mounted = need!(mounted(&lab, "mkfs.btrfs", &["-q"], 256));
    everyday_use(&mut lab);
}

/// Its blocks are smaller than ours.
#[test]
fn everyday_use_on_ext4_with_small_blocks() {
    let mut lab = Lab::new();
    let args = ["-q", "-F", "-t", "ext4", "-b", "1024"];
    let _mounted = need!(mounted(&lab, "mke2fs", &args, 64));
    everyday_use(&mut lab);
}

/// It has no renameat2 without replacing that a file system could lack, but neither holes nor times
/// to believe.
#[test]
fn everyday_use_on_tmpfs() {
    let mut lab = Lab::new();
    let _mount = need!(Mount::tmpfs(&lab.path("mnt"), "size=64m"));
    assert!(!trusts_times(&lab.path("mnt")));
    everyday_use(&mut lab);
}
