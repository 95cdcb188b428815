//! Running machines: their disks at one point in time, the bitmaps that tell what was written since, and what
//! is left when something fails or is ended.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;
use crate::machine_kit::*;
use imgsnap::machine::{Machine, MachineDisk, RunState, bitmap_name};
use imgsnap::{Context, ErrorKind};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use uuid::Uuid;

/// All that a machine can have, on both formats.
fn kinds() -> Vec<(&'static str, Bus)> {
    let mut kinds =
        vec![("raw", Bus::Drive), ("qcow2", Bus::Scsi), ("raw", Bus::Ide), ("qcow2", Bus::Virtio)];
    if qemu_version().is_ok_and(|version| version >= (9, 0)) {
        kinds.push(("raw", Bus::Threaded));
    }
    kinds
}

/// Counts how often it is called.
fn count(calls: &mut i32) -> impl FnMut() -> imgsnap::Result<()> {
    || {
        *calls += 1;
        Ok(())
    }
}

const TWO: &[(&str, Bus)] = &[("raw", Bus::Drive), ("qcow2", Bus::Scsi)];

#[test]
fn disks_at_one_time_are_read_while_the_guest_overwrites_them_and_bitmaps_tell_what_it_wrote() {
    let lab = Lab::new();
    let kinds = kinds();
    let mut vm = need!(Vm::start(&lab, 4, &kinds));
    let mut images = Image::several(kinds.len());
    for disk in 0..kinds.len() {
        vm.write(disk, 1, 0, 2 * MIB);
        vm.write(disk, 2, 3 * MIB, CLUSTER);
    }
    let overwrite = |vm: &mut Vm| {
        for disk in 0..vm.disks.len() {
            vm.write(disk, 9, 0, MIB);
            vm.write(disk, 8, 3 * MIB + 4096, 8192);
            vm.write(disk, 7, 2 * MIB + 512, 512);
        }
    };
    let told = snapshot(&mut vm, &lab, &mut images, overwrite);
    for why in told {
        assert!(why.unwrap_err().contains("no bitmap"));
    }
    // 16 clusters, one, and one: what was written while the disks were read belongs to the next one.
    let told = snapshot(&mut vm, &lab, &mut images, |_| {});
    assert!(told.iter().all(|told| *told == Ok(18 * CLUSTER)), "{told:?}");
    let told = snapshot(&mut vm, &lab, &mut images, overwrite);
    assert!(told.iter().all(|told| *told == Ok(0)), "{told:?}");
    vm.write(1, 5, 2 * MIB + CLUSTER, CLUSTER);
    let told = snapshot(&mut vm, &lab, &mut images, |_| {});
    assert_eq!(told[..2], [Ok(18 * CLUSTER), Ok(19 * CLUSTER)]);
    (0..kinds.len()).for_each(|disk| vm.reads_back(disk));
}

#[test]
fn what_is_given_up_or_killed_at_any_stage_leaves_nothing_and_the_next_one_has_all() {
    let lab = Lab::new();
    let mut vm = need!(Vm::start(&lab, 2, TWO));
    let mut images = Image::several(2);
    snapshot(&mut vm, &lab, &mut images, |_| {});
    for is_killed in [false, true] {
        // Ready, at the point in time, exported, while a client is connected, and with the first one committed.
        for stage in 0..5 {
            vm.write(0, stage, u64::from(stage) * CLUSTER, 512);
            let (mut fleece, members) = prepare(&vm, &lab, &images);
            if stage >= 1 {
                insert(&mut fleece);
            }
            let at = vm.contents();
            vm.write(1, stage, u64::from(stage) * 2 * CLUSTER, 512);
            let disks = if stage >= 2 { fleece.export().unwrap() } else { Vec::new() };
            let client = (stage >= 3).then(|| connected(&disks[1].uri));
            if stage == 4 {
                is_right(&images[0], &disks[0], &at[0]);
                images[0].committed(&members[0], &at[0]);
                // Killed before this could be told, or not.
                if !is_killed {
                    fleece.committed(0, &Context::silent());
                    fleece.committed(0, &Context::silent());
                }
            }
            if is_killed {
                killed(fleece);
                assert_eq!(vm.status(), "running");
            } else {
                fleece.aborted(1, &Context::silent());
                fleece.aborted(1, &Context::silent());
                fleece.aborted(7, &Context::silent());
                drop(fleece);
                vm.is_clean();
            }
            drop(client);
            let told = snapshot(&mut vm, &lab, &mut images, |_| {});
            let first = if stage == 4 { 0 } else { CLUSTER };
            assert_eq!(told, [Ok(first), Ok(CLUSTER)], "stage {stage}, killed: {is_killed}");
        }
    }
    // Several in a row, in all of which something is written.
    for round in 0..3 {
        let (mut fleece, _) = prepare(&vm, &lab, &images);
        vm.write(0, 50, round * CLUSTER, 512);
        insert(&mut fleece);
        vm.write(0, 51, (10 + round) * CLUSTER, 512);
        killed(fleece);
    }
    let told = snapshot(&mut vm, &lab, &mut images, |_| {});
    assert_eq!(told, [Ok(6 * CLUSTER), Ok(0)]);
}

#[test]
fn a_machine_that_ends_in_the_middle_is_told_once() {
    for stage in 0..4 {
        let lab = Lab::new();
        let vm = need!(Vm::start(&lab, 1, TWO));
        let images = Image::several(2);
        let (mut fleece, _) = prepare(&vm, &lab, &images);
        let (context, warnings) = listening();
        let mut disks = Vec::new();
        if stage >= 1 {
            insert(&mut fleece);
        }
        if stage >= 2 {
            disks = fleece.export().unwrap();
        }
        vm.kill();
        vm.ends();
        match stage {
            0 => {
                let ends = fleece.insert(&mut || Ok(()), &mut || {}, &context);
                assert_eq!(ends.unwrap_err().kind(), ErrorKind::Unavailable);
            }
            1 => assert_eq!(fleece.export().unwrap_err().kind(), ErrorKind::Unavailable),
            _ => assert_eq!(try_read(&disks[0].uri).unwrap_err().kind(), ErrorKind::Unavailable),
        }
        assert!(fleece.scratch_error(0).is_none());
        if stage == 3 {
            fleece.committed(0, &context);
        }
        fleece.aborted(1, &context);
        let finished = fleece.finish(&context).map(drop);
        assert_eq!(finished.unwrap_err().kind(), ErrorKind::Unavailable);
        let warnings = warnings.lock().unwrap();
        // What failed in `export` is told by the context of the beginning.
        let told = if stage == 1 { 0 } else { 1 };
        assert_eq!(warnings.len(), told, "{stage}: {warnings:?}");
        assert!(warnings.iter().all(|text| text.contains("has ended")), "{warnings:?}");
    }
}

#[test]
fn a_full_scratch_folder_costs_the_snapshot_and_never_a_write() {
    need!(root());
    let lab = Lab::new();
    let mut vm = need!(Vm::start(&lab, 32, TWO));
    let mut images = Image::several(2);
    // Zeros take no space there.
    vm.write(0, 1, 0, 32 * MIB);
    snapshot(&mut vm, &lab, &mut images, |_| {});
    vm.write(1, 3, 0, MIB);
    let mount = need!(Mount::tmpfs(&lab.path("scratch"), "size=20m"));
    {
        let (mut fleece, members) = prepare(&vm, &lab, &images);
        insert(&mut fleece);
        let at = vm.contents();
        let disks = fleece.export().unwrap();
        assert!(fleece.scratch_error(0).is_none() && fleece.scratch_error(1).is_none());
        for piece in 0..32 {
            vm.write(0, 7, piece * MIB, MIB);
        }
        let error = try_read(&disks[0].uri).unwrap_err();
        assert!(error.kind() == ErrorKind::Io && !error.is_bad_medium(), "{error}");
        let error = fleece.scratch_error(0).unwrap();
        assert!(error.is_storage_full(), "{error}");
        // The other one has not been written to.
        assert_eq!(is_right(&images[1], &disks[1], &at[1]), Some(MIB));
        assert!(fleece.scratch_error(1).is_none());
        fleece.aborted(0, &Context::silent());
        images[1].committed(&members[1], &at[1]);
        fleece.committed(1, &Context::silent());
        drop(fleece.finish(&Context::silent()).unwrap());
    }
    vm.is_clean();
    vm.reads_back(0);
    // Nothing is left there; but with still less it does not begin.
    mount.unmount();
    let mount = Mount::tmpfs(&lab.path("scratch"), "size=15m").unwrap();
    let mut machine = vm.machine();
    let all = members(&mut machine, &images);
    let error = machine.prepare(all, options(&lab), &Context::silent()).err().unwrap();
    assert!(error.is_storage_full(), "{error}");
    mount.unmount();
    vm.is_clean();
    let told = snapshot(&mut vm, &lab, &mut images, |_| {});
    assert_eq!(told, [Ok(32 * MIB), Ok(0)]);
}

#[test]
fn what_is_not_ours_is_left_alone_and_keeps_us_out() {
    let lab = Lab::new();
    let mut vm = need!(Vm::start(&lab, 1, &[("raw", Bus::Virtio), ("qcow2", Bus::Scsi)]));
    let mut images = Image::several(2);
    let other = bitmap_name(Uuid::new_v4(), Uuid::new_v4());
    for name in ["backup0", other.as_str()] {
        vm.query("block-dirty-bitmap-add", json!({ "node": "d0", "name": name }));
    }
    let (fleece, members) = prepare(&vm, &lab, &images);
    // As long as we are there nobody else is served.
    let busy = Machine::connect(&vm.socket, &Context::silent()).err().unwrap();
    assert_eq!(busy.kind(), ErrorKind::Busy, "{busy}");
    drop(fleece);
    let own = vec![("backup0".to_owned(), true), (other, true)];
    assert_eq!(vm.bitmaps(&members[0].disk), own);
    let refused = |vm: &Vm, says: &str| {
        let mut machine = vm.machine();
        machine.recover(&Context::silent()).unwrap();
        let all = self::members(&mut machine, &images);
        let error = machine.prepare(all, options(&lab), &Context::silent()).err().unwrap();
        assert!(error.kind() == ErrorKind::Busy && error.to_string().contains(says), "{error}");
    };
    // A server of somebody else, before it exports something, and after.
    let address = json!({ "type": "unix", "data": { "path": lab.path("nbd") } });
    vm.query("nbd-server-start", json!({ "addr": address }));
    refused(&vm, "the NBD server of the machine is in use");
    let export = json!({ "type": "nbd", "id": "theirs", "node-name": "d0" });
    vm.query("block-export-add", export);
    refused(&vm, "the NBD server of the machine is in use");
    assert!(vm.query("query-block-exports", json!({})).to_string().contains("theirs"));
    vm.query("nbd-server-stop", json!({}));
    // A job.
    let null = json!({ "driver": "null-co", "node-name": "null", "size": MIB });
    vm.query("blockdev-add", null);
    let job = json!({ "job-id": "copy", "device": "d1", "target": "null", "sync": "full" });
    vm.query("blockdev-mirror", job);
    refused(&vm, "a job (mirror)");
    vm.query("block-job-cancel", json!({ "device": "copy", "force": true }));
    assert!(wait_until(|| vm.query("query-block-jobs", json!({})) == json!([])));
    // A disk that is another one by now; and one that is named twice.
    let mut machine = vm.machine();
    let mut all = self::members(&mut machine, &images);
    all[0].disk.bytes += 1;
    let error = machine.prepare(all, options(&lab), &Context::silent()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    let mut machine = vm.machine();
    let mut all = self::members(&mut machine, &images);
    all.push(all[0].clone());
    let error = machine.prepare(all, options(&lab), &Context::silent()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    // Who was asked to stop begins nothing.
    let stop = Context::new(Arc::new(Heard::default()), Arc::new(AtomicBool::new(true)));
    let mut machine = vm.machine();
    let all = self::members(&mut machine, &images);
    let error = machine.prepare(all, options(&lab), &stop).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Interrupted, "{error}");
    vm.is_clean();
    assert_eq!(vm.bitmaps(&members[0].disk), own);
    snapshot_beside(&mut vm, &lab, &mut images, |_| {}, &own);
}

#[test]
fn a_bitmap_outlives_a_machine_that_ends_in_good_order_and_no_other() {
    let lab = Lab::new();
    let mut vm = need!(Vm::start(&lab, 1, TWO));
    let mut images = Image::several(2);
    snapshot(&mut vm, &lab, &mut images, |_| {});
    vm.write(0, 1, 0, 512);
    vm.write(1, 1, 0, 512);
    let mut vm = vm.again(&lab, TWO, false);
    vm.write(1, 1, 3 * CLUSTER, 512);
    let told = snapshot(&mut vm, &lab, &mut images, |_| {});
    assert!(told[0].clone().unwrap_err().contains("restarted"), "{told:?}");
    assert_eq!(told[1], Ok(2 * CLUSTER));
    // What was given up after the point in time is stored, too: both bitmaps.
    let (mut fleece, _) = prepare(&vm, &lab, &images);
    insert(&mut fleece);
    vm.write(1, 2, 5 * CLUSTER, 512);
    killed(fleece);
    let mut vm = vm.again(&lab, TWO, false);
    vm.write(1, 2, 7 * CLUSTER, 512);
    let told = snapshot(&mut vm, &lab, &mut images, |_| {});
    assert_eq!(told[1], Ok(2 * CLUSTER));
    // What was stored once is not right any more after a crash.
    let vm = vm.again(&lab, TWO, false);
    let mut vm = vm.again(&lab, TWO, true);
    let told = snapshot(&mut vm, &lab, &mut images, |_| {});
    let says = [told[0].clone().unwrap_err(), told[1].clone().unwrap_err()];
    assert!(says[0].contains("restarted") && says[1].contains("crashed"), "{told:?}");
    vm.write(1, 3, 0, 512);
    let told = snapshot(&mut vm, &lab, &mut images, |_| {});
    assert_eq!(told, [Ok(0), Ok(CLUSTER)]);
}

#[test]
fn a_machine_is_stopped_only_if_it_has_to_be_and_may_be_and_does_what_it_did() {
    let lab = Lab::new();
    let mut vm = need!(Vm::start(&lab, 1, TWO));
    let images = Image::several(2);
    let context = Context::silent();
    // Whether the machine runs, how many disks, whether it may be stopped; whether it is, and one point in time.
    for (runs, disks, may_stop, is_stopped, at_one_time) in [
        (true, 2, true, true, true),
        (true, 2, false, false, false),
        (true, 1, true, false, true),
        (false, 2, true, false, true),
        (false, 2, false, false, true),
    ] {
        vm.query(if runs { "cont" } else { "stop" }, json!({}));
        let mut machine = vm.machine();
        let mut all = members(&mut machine, &images);
        all.truncate(disks);
        let options = imgsnap::machine::FleeceOptions { may_stop, ..options(&lab) };
        let mut fleece = machine.prepare(all, options, &context).unwrap();
        let (mut before, mut after) = (0, 0);
        let inserted =
            fleece.insert(&mut count(&mut before), &mut || after += 1, &context).unwrap();
        let count = i32::from(is_stopped);
        assert_eq!((before, after, inserted.at_one_time), (count, count, at_one_time));
        assert_eq!(inserted.stall > Duration::ZERO, is_stopped);
        assert_eq!(inserted.state == RunState::Running, runs);
        fleece.export().unwrap();
        let mut machine = fleece.finish(&context).unwrap();
        assert_eq!(machine.run_state().unwrap() == RunState::Running, runs);
        assert_eq!(vm.status() == "running", runs);
    }
    vm.query("cont", json!({}));
    // What it would stand still for too long for is not begun.
    let mut machine = vm.machine();
    let all = members(&mut machine, &images);
    let options = imgsnap::machine::FleeceOptions { max_stall: Duration::ZERO, ..options(&lab) };
    let mut fleece = machine.prepare(all, options, &context).unwrap();
    let mut calls = 0;
    let error = fleece.insert(&mut count(&mut calls), &mut || (), &context).unwrap_err();
    assert!(error.kind() == ErrorKind::Busy && error.to_string().contains("the limit is 0 s"));
    assert_eq!(calls, 0, "{error}");
    drop(fleece);
    vm.is_clean();
}

#[test]
fn a_disk_that_is_unplugged_meanwhile_is_read_to_its_end() {
    let lab = Lab::new();
    let mut vm = need!(Vm::start(&lab, 1, &[("raw", Bus::Scsi), ("qcow2", Bus::Scsi)]));
    let images = Image::several(2);
    let (mut fleece, _) = prepare(&vm, &lab, &images);
    insert(&mut fleece);
    let at = vm.contents();
    let disks = fleece.export().unwrap();
    vm.query("device_del", json!({ "id": "vd0" }));
    assert!(wait_until(|| !vm.query("query-block", json!({})).to_string().contains("vd0")));
    is_right(&images[0], &disks[0], &at[0]);
    is_right(&images[1], &disks[1], &at[1]);
    let (context, warnings) = listening();
    fleece.committed(0, &context);
    fleece.committed(1, &context);
    let mut machine = fleece.finish(&context).unwrap();
    assert!(warnings.lock().unwrap().is_empty());
    assert_eq!(machine.disks().unwrap().len(), 1);
    vm.is_clean();
}

#[test]
fn disks_are_called_by_what_the_user_knows_of_them() {
    let lab = Lab::new();
    let names = ["a", "b", "c", "d", "e", "f"].map(|name| lab.path(name));
    names.iter().for_each(|path| make(path, MIB));
    let drive = |index: usize, more: &str| format!("file={},format=raw,{more}", names[index]);
    let node = |index: usize, name: &str| {
        format!("driver=raw,node-name={name},file.driver=file,file.filename={}", names[index])
    };
    let more = [
        "-drive",
        &drive(0, "if=ide"),
        "-drive",
        &drive(1, "if=none,id=two"),
        "-device",
        "virtio-blk,drive=two",
        "-blockdev",
        &node(2, "node3"),
        "-device",
        "scsi-hd,drive=node3",
        "-blockdev",
        &format!("{},read-only=on", node(3, "ro")),
        "-device",
        "virtio-blk,drive=ro,id=frozen",
        "-drive",
        &drive(4, "if=floppy"),
        "-drive",
        &drive(5, "if=none,id=cd,readonly=on"),
        "-device",
        "scsi-cd,drive=cd",
        "-device",
        "ide-cd,bus=ahci.0",
        "-blockdev",
        "driver=null-co,node-name=unused,size=1048576",
    ];
    let vm = need!(Vm::start_with(&lab, &[], Vec::new(), &more));
    let disks = vm.machine().disks().unwrap();
    let names_of = |disk: &MachineDisk| (disk.name.clone(), disk.aliases.clone());
    let mut called: Vec<_> = disks.iter().map(names_of).collect();
    called.sort();
    let wanted = ["ide0-hd0", "node3", "two"].map(|name| (name.to_owned(), Vec::new()));
    assert_eq!(called, wanted);
    assert!(disks.iter().all(|disk| disk.bytes == MIB && disk.format == "raw"));
    let two = disks.iter().find(|disk| disk.is_called("two")).unwrap();
    assert_eq!(two.file.as_deref(), Some(names[1].as_str()));
}

#[test]
fn a_disk_with_a_thread_is_not_exported_where_that_would_end_the_machine() {
    let version = need!(qemu_version());
    if version >= (9, 0) {
        return skipped("a_disk_with_a_thread", "this QEMU can do it");
    }
    let lab = Lab::new();
    let mut vm = need!(Vm::start(&lab, 1, &[("raw", Bus::Threaded), ("raw", Bus::Scsi)]));
    let images = Image::several(2);
    let mut machine = vm.machine();
    let mut all = members(&mut machine, &images);
    let error = machine.prepare(all.clone(), options(&lab), &Context::silent()).err().unwrap();
    assert!(error.kind() == ErrorKind::Unsupported && error.to_string().contains("vd0"), "{error}");
    vm.is_clean();
    // The others can be read.
    all.remove(0);
    let mut fleece = vm.machine().prepare(all, options(&lab), &Context::silent()).unwrap();
    insert(&mut fleece);
    let disks = fleece.export().unwrap();
    is_right(&images[1], &disks[0], &vm.contents()[1]);
    drop(fleece);
    vm.is_clean();
}
