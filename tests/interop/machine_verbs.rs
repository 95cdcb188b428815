//! Running machines, as a user has them: snapshots, what they go back to, and what is refused.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;
use crate::machine_kit::*;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::time::Duration;

const TWO: &[(&str, Bus)] = &[("raw", Bus::Drive), ("qcow2", Bus::Virtio)];
const NAMES: [&str; 2] = ["qmp-vd0", "qmp-vd1"];

/// A machine, and the URI by which it is known.
fn started(lab: &Lab) -> Result<(Vm, String), String> {
    let vm = Vm::start(lab, 4, TWO)?;
    Ok((vm, format!("qemu:{}", lab.path("qmp"))))
}

/// What is said of each disk.
#[track_caller]
fn snapshot(lab: &Lab, uri: &str, more: &[&str]) -> Vec<Value> {
    let run = lab.run(&[&["snapshot", uri, "--max-stall", "60s", "--json"], more].concat()).done();
    let lines = String::from_utf8(run.out).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The newest snapshots restore to what the disks are.
#[track_caller]
fn restores(lab: &Lab, vm: &Vm) {
    for (name, content) in NAMES.iter().zip(vm.contents()) {
        let restored = std::fs::read(lab.restore(&format!("{name}@latest"))).unwrap();
        assert!(restored == content, "{name}@latest is not what the disk was");
    }
}

#[test]
fn the_disks_of_a_machine_are_a_group_and_each_snapshot_after_the_first_is_read_by_bitmaps() {
    let lab = Lab::new();
    let (mut vm, uri) = need!(started(&lab));
    vm.write(0, 1, 0, MIB);
    vm.write(1, 2, 3 * MIB, MIB);
    for round in 0..4_u8 {
        let taken = snapshot(&lab, &uri, &[]);
        for (taken, name) in taken.iter().zip(NAMES) {
            assert_eq!((&taken["name"], &taken["consistency"]), (&name.into(), &"crash".into()));
            let hint = if round == 0 { Value::Null } else { "bitmap".into() };
            assert_eq!(taken["hint"]["kind"], hint, "{taken:#}");
        }
        let listed = lab.run(&["list", NAMES[0]]).done();
        let listed = String::from_utf8(listed.out).unwrap();
        assert!(listed.contains("(crash-consistent)"), "{listed}");
        restores(&lab, &vm);
        vm.is_clean();
        vm.write(0, 10 + round, u64::from(round) * CLUSTER + 512, 1024);
        vm.write(1, 20 + round, 2 * MIB + u64::from(round) * 4096, 4096);
    }
    // A disk alone, by any of its names, and under its name.
    assert_eq!(snapshot(&lab, &format!("{uri}/d1"), &[])[0]["name"], NAMES[1]);
    // Nothing is known of bitmaps that went with QEMU, and of those of others.
    let mut vm = vm.again(&lab, TWO, true);
    let taken = snapshot(&lab, &uri, &[]);
    assert!(taken.iter().all(|taken| taken["full_scan_reason"].is_string()), "{taken:#?}");
    restores(&lab, &vm);
    vm.is_clean();
    lab.verify(11);
}

#[test]
fn what_cannot_be_taken_is_told_in_a_line() {
    let lab = Lab::new();
    let (vm, uri) = need!(started(&lab));
    let gone = format!("qemu:{}", lab.path("gone"));
    lab.run(&["snapshot", &gone]).fails(1).says("gone");
    lab.run(&["snapshot", &format!("{uri}/vd9")]).fails(1).says("no disk \"vd9\"; it has vd0, vd1");
    lab.run(&["snapshot", &uri, "--format", "raw"]).fails(1).says("leave --format out");
    lab.run(&["snapshot", &uri, "--freeze", "agent"]).fails(1);
    let busy = vm.machine();
    lab.run(&["snapshot", &uri]).fails(4).says("another program");
    drop(busy);
    assert!(!lab.has_repository() || lab.numbers(NAMES[0]).is_empty());
    snapshot(&lab, &uri, &[]);
}

#[test]
fn commands_run_before_and_after() {
    let lab = Lab::new();
    let (_vm, uri) = need!(started(&lab));
    let said = lab.path("said");
    let say = |what: &str| {
        format!("echo {what} $IMGSNAP_GROUP $IMGSNAP_SNAPSHOT $IMGSNAP_RESULT >>{said}")
    };
    snapshot(&lab, &uri, &["--pre", &say("pre"), "--post", &say("post")]);
    let failing = ["snapshot", &uri, "--pre", "exit 3", "--post", &say("after")];
    lab.run(&failing).fails(1).says("exit 3");
    let said = std::fs::read_to_string(said).unwrap();
    assert_eq!(said, "pre qmp\npost qmp qmp-vd0@1 qmp-vd1@1 ok\nafter qmp failed\n");
    assert_eq!(lab.numbers(NAMES[0]), [1]);
    // What stands is told all the same.
    let run = lab.run(&["snapshot", &uri, "--post", "exit 4", "--max-stall", "60s"]);
    let out = String::from_utf8_lossy(&run.out).into_owned();
    assert!(out.contains("qmp-vd1@2"), "{out}");
    assert_eq!(run.code(), Some(1));
    run.says("after the snapshot: \"exit 4\" failed with exit code 4");
}

#[test]
fn a_bitmap_that_left_something_out_is_found_out_and_not_relied_on_again() {
    let lab = Lab::new();
    let (mut vm, uri) = need!(started(&lab));
    vm.write(0, 1, 0, 4 * MIB);
    snapshot(&lab, &uri, &[]);
    // Behind QEMU's back.
    put(&vm.disks[0].path, MIB, &[7; 4096]);
    let offset = usize::try_from(MIB).unwrap();
    vm.disks[0].content[offset..offset + 4096].fill(7);
    let run = lab.run(&["snapshot", &uri, "--max-stall", "60s", "--recheck", "100%"]).done();
    run.says("1 block that should have been unchanged had changed");
    let taken = snapshot(&lab, &uri, &[]);
    assert!(taken[0]["full_scan_reason"].as_str().unwrap().contains("missed changes"));
    assert_eq!(taken[1]["hint"]["kind"], "bitmap");
    assert_eq!(snapshot(&lab, &uri, &[])[0]["hint"]["kind"], "bitmap");
    restores(&lab, &vm);
}

#[test]
fn a_machine_goes_back_with_all_of_its_disks_and_goes_on() {
    let lab = Lab::new();
    let (mut vm, uri) = need!(started(&lab));
    vm.write(0, 1, 0, 2 * MIB);
    vm.write(1, 2, MIB, 2 * MIB);
    snapshot(&lab, &uri, &[]);
    let before = vm.contents();
    vm.write(0, 3, MIB, 2 * MIB);
    vm.write(1, 4, 0, 64 << 10);
    let last = vm.contents();
    let back = ["rollback", &uri, "--to", "@1"];
    lab.run(&back).fails(4).says("has its disks open").says("--reset");
    lab.run(&[&back[..], &["--reset"]].concat()).done();
    for (disk, content) in vm.disks.iter_mut().zip(&before) {
        disk.content.clone_from(content);
    }
    vm.reads_back(0);
    vm.reads_back(1);
    vm.is_clean();
    // The state before was saved, and what follows is an increment.
    for (name, content) in NAMES.iter().zip(&last) {
        assert!(std::fs::read(lab.restore(&format!("{name}@2"))).unwrap() == *content);
    }
    vm.write(1, 9, 3 * MIB, 512);
    let taken = snapshot(&lab, &uri, &[]);
    assert!(taken.iter().all(|taken| taken["hint"]["kind"] == "bitmap"), "{taken:#?}");
    restores(&lab, &vm);
}

#[test]
fn a_rollback_that_is_killed_leaves_the_machine_stopped_and_the_next_one_ends_it() {
    let lab = Lab::new();
    let (mut vm, uri) = need!(started(&lab));
    vm.write(0, 1, 0, 4 * MIB);
    vm.write(1, 2, 0, 4 * MIB);
    snapshot(&lab, &uri, &[]);
    let before = vm.contents();
    for (round, wait) in [0, 2, 5, 10, 20].into_iter().enumerate() {
        let value = u8::try_from(10 + round).unwrap();
        vm.write(0, value, 0, 4 * MIB);
        vm.write(1, value, 0, 4 * MIB);
        let back = ["--verbose", "rollback", &uri, "--to", "@1", "--reset"];
        let mut started = lab.start(&back);
        if started.waits_for("from now on the image may be only partly rolled back") {
            std::thread::sleep(Duration::from_millis(wait));
            started.signal(Signal::SIGKILL);
        }
        started.wait();
        let told = NAMES.map(|name| lab.run(&["list", name]).done().err);
        let [one, other] = told.map(|told| {
            assert_eq!(told.contains("was interrupted"), told.contains("--reset\""), "{told}");
            told.contains("was interrupted")
        });
        // All of them are to be written before the first one is, and are ended one after the other.
        assert!(other || !one, "only the first one is known to be half written");
        lab.run(&back).done();
        for (disk, content) in vm.disks.iter_mut().zip(&before) {
            disk.content.clone_from(content);
        }
        vm.reads_back(0);
        vm.reads_back(1);
        vm.is_clean();
    }
    snapshot(&lab, &uri, &[]);
    restores(&lab, &vm);
}

#[test]
fn a_watched_machine_may_be_started_anew() {
    let lab = Lab::new();
    let (vm, uri) = need!(started(&lab));
    let watch = ["watch", &uri, "--every", "1s", "--max-stall", "60s"];
    lab.run(&["init"]).done();
    let started = lab.start(&watch);
    let has = |count: usize| wait_until(|| lab.numbers(NAMES[0]).len() >= count);
    assert!(has(1));
    let mut vm = vm.again(&lab, TWO, true);
    vm.write(0, 5, 0, MIB);
    assert!(has(2), "no snapshot since it was started anew");
    started.signal(Signal::SIGINT);
    started.wait();
    restores(&lab, &vm);
}

/// The rollback of a machine, which is stopped and saves its state, slowly.
fn saving(lab: &Lab, vm: &mut Vm, uri: &str) -> Started {
    let back = ["--limit-read", "1M", "rollback", uri, "--to", "@1", "--reset"];
    let started = lab.start(&back);
    assert!(wait_until(|| vm.status() == "paused"), "it is not stopped");
    std::thread::sleep(Duration::from_millis(100));
    started
}

#[test]
fn a_rollback_that_ends_while_it_saves_lets_the_machine_go_on() {
    let lab = Lab::new();
    let (mut vm, uri) = need!(started(&lab));
    snapshot(&lab, &uri, &[]);
    vm.write(0, 1, 0, 4 * MIB);
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let started = saving(&lab, &mut vm, &uri);
        started.signal(signal);
        let run = started.wait();
        assert!(!run.err.contains("stopped"), "{}", run.err);
        assert!(wait_until(|| vm.status() == "running"), "{signal}: it is stopped for good");
    }
    snapshot(&lab, &uri, &[]);
    restores(&lab, &vm);
    vm.is_clean();
    // By its user, and it stays so.
    vm.query("stop", json!({}));
    lab.run(&["rollback", &uri, "--to", "@1", "--reset"]).done().says("stays so");
    assert_ne!(vm.status(), "running");
}

#[test]
fn a_machine_without_its_disks_is_left_to_the_rollback_of_all_of_them() {
    let lab = Lab::new();
    let (mut vm, uri) = need!(started(&lab));
    snapshot(&lab, &uri, &[]);
    let back = ["--verbose", "rollback", &uri, "--to", "@1", "--reset"];
    // It may have done all of it before it is killed.
    while vm.status() == "running" {
        vm.write(0, 1, 0, 4 * MIB);
        vm.write(1, 1, 0, 4 * MIB);
        let mut started = lab.start(&back);
        assert!(started.waits_for("from now on the image may be only partly rolled back"));
        started.signal(Signal::SIGKILL);
        started.wait();
    }
    lab.run(&["snapshot", &uri]).fails(4).says("its disks are not reattached").says("--reset");
    let alone = ["rollback", NAMES[0], "--to", "@1", "--reset", "--alone"];
    lab.run(&alone).done().says("stays stopped, since a rollback of its disk vd1 was interrupted");
    assert_ne!(vm.status(), "running");
    // What cannot be ended now is not ended by half.
    vm.serves_others(true);
    lab.run(&back).fails(4).says("stopped");
    assert_ne!(vm.status(), "running");
    vm.serves_others(false);
    lab.run(&["--verbose", "rollback", &uri, "--to", "@latest", "--reset"]).done();
    assert_eq!(vm.status(), "running");
    vm.disks.iter_mut().for_each(|disk| disk.content.fill(0));
    vm.reads_back(0);
    vm.reads_back(1);
    vm.is_clean();
}

#[test]
fn what_a_rollback_of_a_machine_needs_is_said_before_it_is_touched() {
    let lab = Lab::new();
    let (vm, uri) = need!(started(&lab));
    snapshot(&lab, &format!("{uri}/vd0"), &[]);
    snapshot(&lab, &uri, &[]);
    let run = lab.run(&["rollback", &uri, "--to", "@1", "--reset"]).fails(1);
    run.says("was not taken with the disk vd1 of the machine").says("rollback qmp-vd0 --to");
    lab.run(&["rollback", &uri, "--to", "@2", "--dry-run"]).fails(1).says("leave --dry-run out");
    lab.run(&["rollback", NAMES[0], "--to", "@1", "--reset"]).done();
    drop(vm);
    lab.run(&["rollback", NAMES[0], "--to", "@1"]).fails(1).says("start it first").says("relink");
}

#[test]
fn one_at_a_time_works_on_a_machine() {
    let lab = Lab::new();
    let other = [("-qmp", format!("unix:{},server=on,wait=off", lab.path("other")))];
    let more: Vec<&str> = other.iter().flat_map(|(a, b)| [*a, b.as_str()]).collect();
    let disk = need!(VmDisk::new(lab.path("disk0.raw"), "raw", 4));
    let vm = need!(Vm::start_with(&lab, &TWO[..1], vec![disk], &more));
    let machine = vm.machine();
    let uri = format!("qemu:{}", lab.path("other"));
    lab.run(&["snapshot", &uri]).fails(4).says("another QMP socket");
    drop(machine);
    lab.run(&["snapshot", &uri, "--max-stall", "60s"]).done();
}

#[test]
fn what_is_unchanged_needs_no_snapshot_to_be_known_by_a_bitmap() {
    let lab = Lab::new();
    let (vm, uri) = need!(started(&lab));
    snapshot(&lab, &uri, &[]);
    // Its bitmaps are gone, at least that of the raw disk.
    let mut vm = vm.again(&lab, TWO, true);
    let taken = snapshot(&lab, &uri, &["--skip-unchanged"]);
    assert!(taken.iter().all(|taken| taken["skipped"] == true), "{taken:#?}");
    vm.write(0, 1, MIB, 4096);
    vm.write(1, 2, MIB, 4096);
    let taken = snapshot(&lab, &uri, &["--skip-unchanged"]);
    assert!(taken.iter().all(|taken| taken["hint"]["kind"] == "bitmap"), "{taken:#?}");
    restores(&lab, &vm);
}

#[test]
fn whoever_lets_a_machine_go_on_that_is_rolled_back_loses_nothing() {
    let lab = Lab::new();
    let (mut vm, uri) = need!(started(&lab));
    snapshot(&lab, &uri, &[]);
    let zeros = vm.contents();
    vm.write(0, 1, 0, 4 * MIB);
    let started = saving(&lab, &mut vm, &uri);
    vm.query("cont", json!({}));
    vm.write(0, 9, 3 * MIB, MIB);
    vm.write(1, 9, 3 * MIB, MIB);
    let last = vm.contents();
    let run = started.wait();
    assert_eq!(run.code(), Some(0), "{}", run.err);
    for (disk, content) in vm.disks.iter_mut().zip(&zeros) {
        disk.content.clone_from(content);
    }
    vm.reads_back(0);
    vm.reads_back(1);
    vm.is_clean();
    for (name, content) in NAMES.iter().zip(&last) {
        let newest = std::fs::read(lab.restore(&format!("{name}@latest"))).unwrap();
        assert!(newest == *content, "what {name} was is not saved");
    }
}
