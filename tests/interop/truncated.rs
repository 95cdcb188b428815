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

/// Before a window is mapped, and while windows are, in which SIGBUS comes then.
#[test]
fn image_truncated_by_somebody_who_has_it_open_is_not_stored() {
    // Who has no lease cannot hold others off.
    let lab = need!(Lab::of_nobody());
    let image = image_of(&lab);
    let full = lab.path("full");
    keep(&image, &full);
    lab.run(&["snapshot", &image]).done();
    let file = File::options().write(true).open(&image).unwrap();
    let bytes = get(&full, 0, BYTES);
    for threads in ["1", "2", "4"] {
        for at in ["lock 1", "map 1", "map 3", "map 5"] {
            for cut in [BYTES - 1, BYTES / 2, 4096, 0] {
                file.set_len(BYTES).unwrap();
                file.write_all_at(&bytes, 0).unwrap();
                let args = ["snapshot", &image, "--full-scan", "--threads", threads];
                let held = need!(lab.start_held(&args, at, &image));
                let snapshot = held.unwrap_or_else(|| panic!("it ended before {at}"));
                file.set_len(cut).unwrap();
                snapshot.signal(Signal::SIGCONT);
                let snapshot = snapshot.wait();
                let code = snapshot.code().unwrap_or_else(|| {
                    panic!("{at}, {cut}: {}: {}", snapshot.status, snapshot.err)
                });
                assert!(code == 1 || code == 4, "{at}, {cut}: {code}: {}", snapshot.err);
                snapshot.fails(code).says(&image);
                assert_eq!(lab.numbers("vm"), [1]);
            }
        }
    }
    lab.verify(1);
    same(&lab.restore("vm@latest"), &full);
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
    assert!(!lab.has_repository());
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
    // Without it the image would be opened twice, and held the first time.
    lab.run(&["init"]).done();
    let slow = ["snapshot", &image, "--compression", "zstd:15", "--threads", "1"];
    let Some(snapshot) = need!(lab.start_held(&slow, "lease 1", &image)) else {
        let test = "truncated::lease_holds_others_off_and_the_snapshot_gives_way";
        return skipped(test, "no leases in the temporary folder");
    };
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
