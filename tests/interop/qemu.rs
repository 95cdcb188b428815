//! QEMU and imgsnap keep out of each other's way: by leases, and where there are none by QEMU's
//! lock bytes.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;
use nix::sys::signal::Signal;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

/// A storage daemon that holds an image, as a running virtual machine does.
struct Daemon {
    process: Started,
    socket: String,
}

impl Daemon {
    fn new(lab: &Lab, image: &str, writable: bool, locking: &str) -> Self {
        let socket = lab.path("nbd.sock");
        std::fs::remove_file(&socket).ok();
        let read_only = if writable { "off" } else { "on" };
        let on = if writable { "on" } else { "off" };
        let command = tool_command(
            "qemu-storage-daemon",
            &[
                "--blockdev",
                &format!(
                    "driver=file,node-name=disk,filename={image},read-only={read_only},locking={locking}"
                ),
                "--nbd-server",
                &format!("addr.type=unix,addr.path={socket}"),
                "--export",
                &format!("type=nbd,id=export,node-name=disk,name=disk,writable={on}"),
            ],
        );
        let mut process = Started::spawn(command.unwrap());
        let is_up = wait_until(|| process.is_over() || get_allocation(&socket).is_ok());
        assert!(is_up && !process.is_over(), "qemu-storage-daemon does not start");
        Self { process, socket }
    }

    /// Writes as the guest does.
    fn write(&self, byte: u8, offset: u64, bytes: u64) {
        let command = format!("write -P {byte} {offset} {bytes}");
        let place = url(&self.socket);
        tool("qemu-io", &["-f", "raw", "-c", &command, "-c", "flush", &place]);
    }

    fn end(self) {
        self.process.signal(Signal::SIGTERM);
        self.process.wait();
    }
}

/// Asks the server something that only one that is up can answer.
fn get_allocation(socket: &str) -> Result<String, String> {
    if !std::path::Path::new(socket).exists() {
        return Err("no socket".into());
    }
    try_tool("qemu-img", &["info", "-f", "raw", &url(socket)])
}

fn url(socket: &str) -> String {
    format!("nbd+unix:///disk?socket={socket}")
}

fn image_of(lab: &Lab) -> String {
    let image = lab.path("vm.img");
    make(&image, 4 * MIB);
    put(&image, MIB, &noise(1, MIB));
    image
}

fn running_machine_is_refused(lab: &Lab, locking: &str) {
    let image = image_of(lab);
    assert_eq!(lab.snapshot(&image), 1);
    let daemon = Daemon::new(lab, &image, true, locking);
    daemon.write(0x5a, 2 * MIB, 100 << 10);
    let while_running = lab.path("running");
    keep(&image, &while_running);
    lab.run(&["snapshot", &image]).fails(4).says(&image);
    lab.run(&["snapshot", &image, "--full", "--name", "other"]).fails(4).says(&image);
    lab.run(&["rollback", &image, "--to", "@1"]).fails(4).says(&image);
    lab.run(&["rollback", &image, "--to", "@1", "--no-save", "--prove"]).fails(4).says(&image);
    lab.run(&["restore", "vm@1", "-o", &image, "--force"]).fails(4).says(&image);
    same(&image, &while_running);
    assert_eq!((lab.numbers("vm"), lab.numbers("other")), (vec![1], vec![]));
    daemon.write(0x5b, 3 * MIB, 4096);
    daemon.end();

    assert_eq!(lab.snapshot(&image), 2);
    let restored = lab.restore("vm@2");
    same(&restored, &image);
    assert_eq!(get(&restored, 2 * MIB, 100 << 10), vec![0x5a; 100 << 10]);
    assert_eq!(get(&restored, 3 * MIB, 4096), vec![0x5b; 4096]);
    lab.run(&["rollback", &image, "--to", "@1"]).done();
    same(&image, &lab.restore("vm@1"));
}

const QEMU: &[&str] = &["qemu-storage-daemon", "qemu-img", "qemu-io"];

#[test]
fn image_of_a_running_machine_is_refused() {
    need!(tools(QEMU));
    running_machine_is_refused(&Lab::new(), "auto");
}

/// The lease finds it without any lock of QEMU's.
#[test]
fn image_of_a_running_machine_without_locks_is_refused() {
    need!(tools(QEMU));
    running_machine_is_refused(&Lab::new(), "off");
}

/// The lock bytes find it without any lease, which only the owner of a file can have.
#[test]
fn image_of_a_running_machine_is_refused_where_there_is_no_lease() {
    need!(tools(QEMU));
    let lab = need!(Lab::of_nobody());
    let image = image_of(&lab);
    std::fs::set_permissions(&image, PermissionsExt::from_mode(0o666)).unwrap();
    assert_eq!(lab.snapshot(&image), 1);
    let daemon = Daemon::new(&lab, &image, true, "auto");
    lab.run(&["snapshot", &image]).fails(4).says(&image);
    lab.run(&["rollback", &image, "--to", "@1", "--prove"]).fails(4).says(&image);
    assert_eq!(lab.numbers("vm"), [1]);
    daemon.end();
    // A guest that only reads does not hinder a snapshot, but a rollback.
    let daemon = Daemon::new(&lab, &image, false, "auto");
    assert_eq!(lab.snapshot(&image), 2);
    lab.run(&["rollback", &image, "--to", "@1", "--prove"]).fails(4).says(&image);
    daemon.end();
    lab.run(&["rollback", &image, "--to", "@1", "--prove"]).done();
}

#[test]
fn image_that_qemu_only_reads_can_be_snapshotted_and_not_rolled_back() {
    need!(tools(QEMU));
    let lab = Lab::new();
    let image = image_of(&lab);
    lab.snapshot(&image);
    put(&image, 0, b"changed");
    let before = lab.path("before");
    keep(&image, &before);
    let daemon = Daemon::new(&lab, &image, false, "auto");
    assert_eq!(lab.snapshot(&image), 2);
    same(&lab.restore("vm@2"), &before);
    lab.run(&["rollback", &image, "--to", "@1"]).fails(4).says(&image);
    same(&image, &before);
    daemon.end();
}

/// Text that takes its time to compress.
fn slow_image(lab: &Lab) -> String {
    let image = lab.path("vm.img");
    make(&image, 64 * MIB);
    put(&image, 20 * MIB, &text(7, 24 * MIB));
    image
}

const WRITE: &[&str] = &["-f", "raw", "-c", "write -P 0x77 40M 1M"];

#[test]
fn machine_that_starts_during_a_snapshot_waits_or_the_snapshot_ends() {
    need!(tools(QEMU));
    let lab = Lab::new();
    let image = slow_image(&lab);
    let before = lab.path("before");
    keep(&image, &before);
    lab.run(&["init"]).done();
    let args = ["snapshot", &image, "--compression", "zstd:15", "--threads", "1"];
    let Some(snapshot) = need!(lab.start_held(&args, "lease 1", &image)) else {
        return skipped(
            "qemu::machine_that_starts_during_a_snapshot_waits_or_the_snapshot_ends",
            "no leases in the temporary folder",
        );
    };
    let mut machine =
        Started::spawn(tool_command("qemu-io", &[WRITE, &[&image]].concat()).unwrap());
    // The kernel holds it off for as long as the snapshot has not let go.
    std::thread::sleep(Duration::from_millis(500));
    same(&image, &before);
    let has_given_up = machine.is_over();
    snapshot.signal(Signal::SIGCONT);
    let snapshot = snapshot.wait();
    let machine = machine.wait();
    assert_eq!(machine.code(), Some(i32::from(has_given_up)), "{}", machine.err);
    match snapshot.code() {
        // Either it noticed, and nothing was published ...
        Some(4) => {
            snapshot.fails(4).says(&image);
            assert!(lab.numbers("vm").is_empty());
        }
        // ... or nothing had been written when it was done.
        _ => {
            snapshot.done();
            same(&lab.restore("vm@1"), &before);
        }
    }
    if !has_given_up {
        assert_eq!(get(&image, 40 * MIB, MIB), vec![0x77; 1 << 20]);
    }
    lab.snapshot(&image);
    same(&lab.restore("vm@latest"), &image);
    lab.is_tidy("vm");
}

#[test]
fn machine_does_not_start_during_a_snapshot_where_there_is_no_lease() {
    need!(tools(QEMU));
    let lab = need!(Lab::of_nobody());
    let image = slow_image(&lab);
    std::fs::set_permissions(&image, PermissionsExt::from_mode(0o644)).unwrap();
    let before = lab.path("before");
    keep(&image, &before);
    lab.run(&["init"]).done();
    let args = ["snapshot", &image, "--compression", "zstd:15", "--threads", "1"];
    // Before it reads it takes all of its lock bytes.
    let snapshot = need!(lab.start_held(&args, "map 1", &image)).expect("it maps nothing");
    let machine = Started::spawn(tool_command("qemu-io", &[WRITE, &[&image]].concat()).unwrap());
    let machine = machine.wait();
    assert_eq!(machine.code(), Some(1), "{}", machine.err);
    assert!(machine.err.contains("lock"), "{}", machine.err);
    // Somebody who only reads is welcome.
    tool("qemu-io", &["-r", "-f", "raw", "-c", "read 0 4k", &image]);
    snapshot.signal(Signal::SIGCONT);
    snapshot.wait().done();
    same(&image, &before);
    same(&lab.restore("vm@1"), &before);
}

#[test]
fn image_that_came_from_qcow2_goes_back_identical() {
    need!(tools(QEMU));
    let lab = Lab::new();
    let (qcow2, image) = (lab.path("vm.qcow2"), lab.path("vm.img"));
    tool("qemu-img", &["create", "-q", "-f", "qcow2", &qcow2, "48M"]);
    for day in 1..4_u64 {
        let write = format!("write -P {} {}M 1500k", day * 17, day * 5);
        let zero = format!("write -z {}M 700k", day * 5 - 4);
        tool("qemu-io", &["-f", "qcow2", "-c", &write, "-c", &zero, &qcow2]);
        tool("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", &qcow2, &image]);
        assert_eq!(lab.snapshot(&image), day);
        std::fs::copy(&qcow2, lab.path(&format!("{day}.qcow2"))).unwrap();
    }
    for day in 1..4 {
        let (kept, restored) =
            (lab.path(&format!("{day}.qcow2")), lab.restore(&format!("vm@{day}")));
        tool("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", &kept, &restored]);
        lab.run(&["rollback", &image, "--to", &format!("@{day}")]).done();
        tool("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", &kept, &image]);
    }
    let other = lab.path("2.qcow2");
    let compared = try_tool("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", &other, &image]);
    assert!(compared.is_err(), "the days differ");
}
