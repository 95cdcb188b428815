//! What is believed of a live image, and what is not: times of whole seconds, and others who write
//! while a rollback is under way.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;
use nix::sys::signal::Signal;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

/// ext4 with small inodes keeps whole seconds: two writes can have one time.
#[test]
fn change_within_the_same_second_is_not_missed() {
    need!(root());
    need!(tools(&["mke2fs", "losetup", "mount"]));
    let mut lab = Lab::new();
    let file = lab.path("filesystem");
    make(&file, 32 * MIB);
    tool("mke2fs", &["-q", "-t", "ext4", "-I", "128", &file]);
    let device = need!(Loop::new(&[], &file));
    let _mount = need!(Mount::new(&[&device.device], &lab.path("mnt")));
    lab.repo = lab.path("mnt/repo");
    let image = lab.path("mnt/vm.img");
    make(&image, 4 * MIB);
    for round in 1..6 {
        put(&image, MIB, &noise(round, 4096));
        let number = lab.snapshot(&image);
        same(&image, &lab.restore(&format!("vm@{number}")));
    }
}

/// Without a lease (the image belongs to somebody else) the times have to tell.
#[test]
fn rollback_without_a_lease_notices_another_writer() {
    let lab = need!(Lab::of_nobody());
    let image = lab.path("vm.img");
    make(&image, 96 * MIB);
    put(&image, 0, &noise(1, 80 * MIB));
    std::fs::set_permissions(&image, PermissionsExt::from_mode(0o666)).unwrap();
    std::fs::set_permissions(lab.path("."), PermissionsExt::from_mode(0o777)).unwrap();
    assert_eq!(lab.snapshot(&image), 1);
    put(&image, 90 * MIB, &noise(2, MIB));
    assert_eq!(lab.snapshot(&image), 2);
    let first = lab.restore("vm@1");
    for no_save in [false, true] {
        let mut args = vec!["rollback", "vm", "--to", "@1", "--threads", "1"];
        args.extend(no_save.then_some("--no-save"));
        let rollback =
            need!(lab.start_held(&args, "lock 1", &image)).expect("it has no lock bytes");
        // At the beginning, which the scan may have passed already.
        put(&image, 0, b"somebody else was here");
        std::thread::sleep(Duration::from_millis(20));
        rollback.signal(Signal::SIGCONT);
        let rollback = rollback.wait();
        let mut begin = vec![0; 22];
        std::os::unix::fs::FileExt::read_exact_at(
            &std::fs::File::open(&image).unwrap(),
            &mut begin,
            0,
        )
        .unwrap();
        match rollback.code() {
            // Stopped before it had looked: then it saw the write as what was there before.
            Some(0) => same(&image, &first),
            code => {
                assert_eq!(code, Some(4), "{}", rollback.err);
                assert_eq!(begin, b"somebody else was here");
            }
        }
    }
    lab.run(&["rollback", "vm", "--to", "@1"]).done();
    same(&image, &first);
}
