//! An image that becomes shorter while it is read: never SIGBUS, never a snapshot of a mixture.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;
use nix::sys::signal::Signal;
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const BYTES: u64 = 48 * MIB;

fn image_of(lab: &Lab) -> String {
    let image = lab.path("vm.img");
    make(&image, BYTES);
    put(&image, 0, &text(1, BYTES));
    std::fs::set_permissions(&image, PermissionsExt::from_mode(0o644)).unwrap();
    image
}

/// At any moment: before a window is mapped, while it is hashed (where SIGBUS comes), after the last one.
#[test]
fn image_truncated_by_somebody_who_has_it_open_is_not_stored() {
    // Who has no lease cannot hold others off.
    let lab = need!(Lab::of_nobody());
    // Hashing with BLAKE3 takes its time: a third of all rounds ends in a window that is mapped.
    lab.run(&["init", "--digest", "blake3"]).done();
    let image = image_of(&lab);
    let full = lab.path("full");
    keep(&image, &full);
    lab.run(&["snapshot", &image]).done();
    let file = File::options().write(true).open(&image).unwrap();
    let bytes = get(&full, 0, BYTES);
    let (mut random, mut found, mut listed) = (Random(4), 0, 1);
    for round in 0..24 {
        file.set_len(BYTES).unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        let threads = pick(&mut random, &["1", "2", "4"]);
        let cut = pick(&mut random, &[BYTES - 1, BYTES / 2, 4096, 0]);
        let mut snapshot = lab.start(&["snapshot", &image, "--full-scan", "--threads", threads]);
        assert!(snapshot.stop_when_it_locks("OFDLCK", &image), "it holds no lock bytes");
        snapshot.signal(Signal::SIGCONT);
        std::thread::sleep(Duration::from_micros(random.below(60_000)));
        file.set_len(cut).unwrap();
        let snapshot = snapshot.wait();
        match snapshot.code() {
            Some(0) => {
                listed += 1;
                same(&lab.restore("vm@latest"), &full);
            }
            Some(code) => {
                found += 1;
                assert!(code == 1 || code == 4, "{code}: {}", snapshot.err);
                snapshot.fails(code).says(&image);
            }
            None => panic!("round {round}: {}: {}", snapshot.status, snapshot.err),
        }
        assert_eq!(lab.numbers("vm").len(), listed);
    }
    assert!(found >= 8, "it was done before in {} rounds of 24", 24 - found);
    lab.verify(listed);
}

#[test]
fn image_that_is_truncated_all_the_time_is_not_stored() {
    let lab = need!(Lab::of_nobody());
    let image = image_of(&lab);
    let file = File::options().write(true).open(&image).unwrap();
    let piece = noise(2, 8 * MIB);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = Random(9);
            while !stop.load(Ordering::Relaxed) {
                file.set_len(random.below(BYTES)).unwrap();
                file.set_len(BYTES).unwrap();
                file.write_all_at(&piece, random.below(BYTES - 8 * MIB)).unwrap();
            }
        });
        let runs: Vec<Run> =
            (0..6).map(|_| lab.run(&["snapshot", &image, "--threads", "4"])).collect();
        stop.store(true, Ordering::Relaxed);
        for run in runs {
            let code = run.code().unwrap_or_else(|| panic!("{}: {}", run.status, run.err));
            assert!(code == 1 || code == 4, "{code}: {}", run.err);
            run.fails(code).says(&image);
        }
    });
    assert!(lab.numbers("vm").is_empty());
    file.set_len(BYTES).unwrap();
    assert_eq!(lab.run(&["snapshot", &image, "--json"]).done().json()["kind"], "base");
    lab.verify(1);
    same(&lab.restore("vm@latest"), &image);
    lab.is_tidy("vm");
}

#[test]
fn lease_holds_others_off_and_the_snapshot_gives_way() {
    let lab = Lab::new();
    let image = image_of(&lab);
    let before = lab.path("before");
    keep(&image, &before);
    let mut snapshot =
        lab.start(&["snapshot", &image, "--compression", "zstd:15", "--threads", "1"]);
    if !snapshot.stop_when_it_locks("LEASE", &image) {
        let test = "truncated::lease_holds_others_off_and_the_snapshot_gives_way";
        return skipped(test, "no leases in the temporary folder");
    }
    // Who does not want to wait is told so at once, and the snapshot learns of it.
    let mut impatient = File::options();
    impatient.write(true).custom_flags(libc::O_NONBLOCK);
    let refused = {
        let _calm = no_fork();
        impatient.open(&image).unwrap_err()
    };
    assert_eq!(refused.raw_os_error(), Some(libc::EAGAIN), "{refused}");
    std::thread::scope(|scope| {
        let patient = scope.spawn(|| nix::unistd::truncate(image.as_str(), 4096));
        std::thread::sleep(Duration::from_millis(200));
        assert!(!patient.is_finished(), "it does not wait");
        assert_eq!(length(&image), BYTES);
        snapshot.signal(Signal::SIGCONT);
        snapshot.wait().fails(4).says(&image);
        patient.join().unwrap().unwrap();
    });
    assert_eq!((length(&image), lab.numbers("vm")), (4096, vec![]));
    lab.snapshot(&image);
    same(&lab.restore("vm@latest"), &image);
    lab.is_tidy("vm");
}
