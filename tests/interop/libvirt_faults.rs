//! What surrounds a snapshot of a domain, and fails or is killed.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;
use crate::libvirt_kit::Host;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

#[test]
fn a_scratch_file_that_is_used_up_costs_the_snapshot_and_never_a_write() {
    need!(root());
    // Before libvirt is there, or it does not see it.
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o711)).unwrap();
    let place = folder.path().join("scratch").to_str().unwrap().to_owned();
    std::fs::create_dir(&place).unwrap();
    let _full = need!(Mount::tmpfs(&place, "size=160m,mode=711"));
    let host = need!(Host::start());
    let mut vm = host.domain("web", &[("qcow2", 512)]);
    for at in 0..8 {
        host.write(&mut vm, 0, 1, at * 32 * MIB, 32 * MIB);
    }
    let slow = ["snapshot", "libvirt:web", "--scratch-dir", &place, "--limit-read", "24M"];
    let mut run = Started::spawn(host.command(&slow));
    let begun = || host.virsh(&["domjobinfo", "web"]).contains("Backup");
    let is_there = wait_until(|| run.is_over() || begun());
    if !is_there || run.is_over() {
        panic!("it ended early: {}", run.wait().err);
    }
    // What is overwritten is more than there is space for.
    for at in 0..8 {
        host.write(&mut vm, 0, 2, at * 32 * MIB, 32 * MIB);
    }
    let run = run.wait().fails(1);
    run.says("is used up: the machine overwrote")
        .says("free some space there, or use another folder");
    host.is_tidy(&vm, "after a full scratch file");
    assert!(!host.lab.has_repository(), "nothing is left of it");
    host.snapshot(&vm, &["--scratch-dir", &host.scratch()]);
    host.newest_is(&vm, "after a full scratch file");
}

#[test]
fn whoever_is_killed_and_whatever_others_do_an_increment_is_what_a_full_read_gives() {
    let host = need!(Host::start());
    let place = host.scratch();
    let mut vm = host.domain("web", &[("qcow2", 16), ("raw", 4)]);
    host.write(&mut vm, 0, 1, 0, 4 * MIB);
    let args = ["snapshot", "libvirt:web", "--json", "--scratch-dir", &place];
    let mut turn = 1_u8;
    let mut check = |vm: &mut crate::libvirt_kit::Domain, what: &str| {
        turn += 1;
        for disk in 0..2 {
            host.write(vm, disk, turn, u64::from(turn) * 100_000, 50_000);
        }
        let taken = host.snapshot(vm, &["--scratch-dir", &place]);
        host.newest_is(vm, what);
        host.is_tidy(vm, what);
        taken[0]["hint"]["kind"] == "bitmap"
    };
    assert!(!check(&mut vm, "base") && check(&mut vm, "increment"));
    // We are killed, at whatever moment.
    for pause in [60, 120, 180, 240, 300, 360, 420, 480, 540, 600] {
        let run = Started::spawn(host.command(&args));
        std::thread::sleep(Duration::from_millis(pause));
        run.signal(Signal::SIGKILL);
        run.wait();
        assert!(check(&mut vm, &format!("killed after {pause} ms")));
    }
    // libvirtd is killed, in the middle and before.
    let run = Started::spawn(host.command(&args));
    std::thread::sleep(Duration::from_millis(250));
    host.restart();
    run.wait();
    assert!(check(&mut vm, "libvirtd killed"));
    // QEMU is killed: its bitmaps are gone, and all is read.
    kill(Pid::from_raw(host.qemu(&vm)), Signal::SIGKILL).unwrap();
    assert!(wait_until(|| host.virsh(&["domstate", "web"]).contains("shut off")));
    host.start_domain("web");
    assert!(!check(&mut vm, "QEMU killed") && check(&mut vm, "the next"));
    // Somebody takes a snapshot of another kind, and resizes the disk.
    let overlay = format!("vda,file={}", host.lab.path("overlay.qcow2"));
    let external = ["snapshot-create-as", "web", "--disk-only", "--diskspec", &overlay];
    host.virsh(&[&external[..], &["--diskspec", "vdb,snapshot=no", "--no-metadata"]].concat());
    check(&mut vm, "an external snapshot");
    host.virsh(&["blockresize", "web", "vda", "20M"]);
    vm.contents[0].resize(20 << 20, 0);
    check(&mut vm, "a longer disk");
    assert!(check(&mut vm, "the last"));
    host.lab.run(&["verify"]).done();
}
