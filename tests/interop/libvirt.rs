//! Snapshots of domains of a real libvirt, against what their machines wrote.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;
use crate::libvirt_kit::{Domain, Host};
use std::os::unix::fs::PermissionsExt;

/// By what each disk says that it was found.
fn how(taken: &[serde_json::Value]) -> Vec<&str> {
    taken.iter().map(|taken| taken["hint"]["kind"].as_str().unwrap_or("none")).collect()
}

#[test]
fn what_a_domain_wrote_is_in_each_snapshot_and_its_checkpoint_finds_it() {
    let host = need!(Host::start());
    let scratch = host.scratch();
    let mut vm = host.domain("web", &[("qcow2", 24), ("raw", 8), ("qcow2", 24)]);
    let others = "<domaincheckpoint><name>others</name><disks><disk name='vda' checkpoint='bitmap'/>\
                  <disk name='vdb' checkpoint='no'/></disks></domaincheckpoint>";
    std::fs::write(host.lab.path("others.xml"), others).unwrap();
    host.virsh(&["checkpoint-create", "web", &host.lab.path("others.xml")]);
    let scratch_dir = ["--scratch-dir", &scratch];
    let next = |vm: &mut Domain, byte: u8, what: &str| {
        let at = u64::from(byte) * 131_072;
        for disk in 0..3 {
            host.write(vm, disk, byte, at, 100_000);
        }
        let taken = host.snapshot(vm, &scratch_dir);
        host.newest_is(vm, what);
        host.is_tidy(vm, what);
        taken
    };
    let taken = next(&mut vm, 1, "base");
    assert_eq!(how(&taken), ["none"; 3]);
    for byte in 2..4 {
        let taken = next(&mut vm, byte, "increment");
        assert_eq!(how(&taken), ["bitmap", "none", "bitmap"], "{taken:#?}");
        assert_eq!(taken[0]["consistency"], "crash");
        assert!(
            taken[1]["full_scan_reason"]
                .as_str()
                .unwrap()
                .contains("raw images cannot have checkpoints")
        );
    }
    // One disk, then all: what the others have is found by the checkpoint before.
    host.write(&mut vm, 0, 9, 3 * MIB, 70_000);
    host.write(&mut vm, 2, 9, 3 * MIB, 70_000);
    let run =
        host.run(&["snapshot", "libvirt:web/vda", "--json", "--scratch-dir", &scratch]).done();
    assert_eq!(run.json()["hint"]["kind"], "bitmap");
    assert_eq!(host.checkpoints(&vm).len(), 2);
    let taken = next(&mut vm, 4, "all again");
    assert_eq!(how(&taken), ["bitmap", "none", "bitmap"]);
    // Unchanged, and so left out: the checkpoint before goes on.
    let before = host.checkpoints(&vm);
    let taken = host.snapshot(&vm, &["--skip-unchanged", "--scratch-dir", &scratch]);
    assert!(taken.iter().all(|taken| taken["skipped"] == true), "{taken:#?}");
    assert_eq!(host.checkpoints(&vm), before);
    // Shut off: its files are read by the bitmaps in them.
    host.write(&mut vm, 0, 5, 5 * MIB, 70_000);
    host.write(&mut vm, 1, 5, 5 * MIB, 70_000);
    host.virsh(&["destroy", "web"]);
    let taken = host.snapshot(&vm, &[]);
    assert_eq!(how(&taken), ["bitmap", "none", "bitmap"], "{taken:#?}");
    assert_eq!(taken[0]["consistency"], "stopped");
    host.newest_is(&vm, "shut off");
    host.start_domain("web");
    let taken = next(&mut vm, 6, "started again");
    assert_eq!(how(&taken), ["bitmap", "none", "bitmap"], "{taken:#?}");
    // Forgotten by libvirt, with its checkpoints: the bitmap is there.
    host.virsh(&["destroy", "web"]);
    host.virsh(&["undefine", "web", "--checkpoints-metadata"]);
    host.virsh(&["define", &host.lab.path("web.xml")]);
    host.start_domain("web");
    let taken = next(&mut vm, 7, "defined again");
    assert_eq!(how(&taken), ["bitmap", "none", "bitmap"], "{taken:#?}");
    let all = host.virsh(&["checkpoint-list", "web", "--name"]);
    assert!(!all.contains("others"), "undefine has removed it");
    // Its disks change places, and the bitmaps have one name: that of the other disk says nothing. First libvirt
    // knows what the checkpoint was made of, then only the repository does.
    for is_forgotten in [false, true] {
        host.virsh(&["destroy", "web"]);
        let xml = host.virsh(&["dumpxml", "web", "--inactive"]);
        let (one, other) = (host.disk("web", 0), host.disk("web", 2));
        let xml = xml.replace(&one, "ONE").replace(&other, &one).replace("ONE", &other);
        std::fs::write(host.lab.path("web.xml"), xml).unwrap();
        if is_forgotten {
            host.virsh(&["undefine", "web", "--checkpoints-metadata"]);
        }
        host.virsh(&["define", &host.lab.path("web.xml")]);
        vm.contents.swap(0, 2);
        let taken = host.snapshot(&vm, &[]);
        assert_eq!(how(&taken), ["none"; 3], "shut off: {taken:#?}");
        host.newest_is(&vm, "disks exchanged, shut off");
        host.start_domain("web");
        let taken = next(&mut vm, if is_forgotten { 9 } else { 8 }, "disks exchanged");
        assert_eq!(how(&taken), ["none"; 3], "{taken:#?}");
    }
    host.lab.run(&["verify"]).done();
}

#[test]
fn several_domains_are_taken_one_line_each_and_one_that_fails_stops_no_other() {
    let host = need!(Host::start());
    for name in ["a1", "a2", "b1"] {
        host.domain(name, &[("qcow2", 4)]);
    }
    let scratch = host.scratch();
    let names = |run: &Run| {
        let text = String::from_utf8(run.out.clone()).unwrap();
        let json =
            text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        json.filter_map(|json| Some(json["ref"].as_str()?.to_owned())).collect::<Vec<_>>()
    };
    let run = host.run(&["snapshot", "libvirt:a*", "--json", "--scratch-dir", &scratch]).done();
    assert_eq!(names(&run), ["a1-vda@1", "a2-vda@1"]);
    let run = host.run(&["snapshot", "--all", "--json", "--scratch-dir", &scratch]).done();
    assert_eq!(names(&run), ["a1-vda@2", "a2-vda@2", "b1-vda@1"]);
    let run = host.run(&["snapshot", "--all", "--scratch-dir", &scratch]).done();
    let text = String::from_utf8(run.out).unwrap();
    assert_eq!(text.lines().count(), 3, "{text}");
    // Somebody else backs one of them up.
    let xml = "<domainbackup mode='pull'><server transport='unix' socket='SOCKET'/><disks>\
               <disk name='vda' backup='yes' type='file'><scratch file='SCRATCH'/></disk></disks>\
               </domainbackup>";
    let socket = host.lab.path("s/others.sock");
    std::fs::create_dir(host.lab.path("s")).unwrap();
    std::fs::set_permissions(host.lab.path("s"), PermissionsExt::from_mode(0o777)).unwrap();
    std::fs::write(
        host.lab.path("backup.xml"),
        xml.replace("SOCKET", &socket).replace("SCRATCH", &host.lab.path("s/x")),
    )
    .unwrap();
    host.virsh(&["backup-begin", "a2", &host.lab.path("backup.xml")]);
    let run = host.run(&["snapshot", "--all", "--json", "--scratch-dir", &scratch]);
    assert_eq!(run.code(), Some(4));
    assert_eq!(names(&run), ["a1-vda@4", "b1-vda@3"]);
    run.says(
        "libvirt:a2 is being backed up by another program; run the command again when that has ended",
    );
    assert!(host.virsh(&["domjobinfo", "a2"]).contains("Backup"));
    host.virsh(&["domjobabort", "a2"]);
    for (args, code, says) in [
        (&["snapshot", "libvirt:no"][..], 1, "libvirt has no domain \"no\"; it has a1, a2, b1"),
        (&["snapshot", "libvirt:x*"], 1, "no domain matches \"x*\""),
        (&["snapshot", "libvirt:a1/sda"], 1, "libvirt:a1 has no disk \"sda\"; it has vda"),
        (&["snapshot", "libvirt:"], 2, "missing domain name after 'libvirt:'"),
        (&["snapshot", "libvirt:a1", "--dry-run"], 1, "leave --dry-run out"),
    ] {
        let run = host.run(args);
        assert_eq!(run.code(), Some(code), "{args:?}: {}", run.err);
        run.says(says);
    }
    let away = ["snapshot", "libvirt:a1", "--connect", "qemu+ssh://nowhere.invalid/system"];
    host.lab.run(&away).fails(1);
}

#[test]
fn a_domain_is_rolled_back_while_it_is_off_and_made_anew_from_the_repository_alone() {
    let host = need!(Host::start());
    let scratch = host.scratch();
    let mut vm = host.domain("web", &[("qcow2", 16), ("raw", 4)]);
    let write = |vm: &mut Domain, byte: u8| {
        for disk in 0..2 {
            host.write(vm, disk, byte, u64::from(byte) * 300_000, 200_000);
        }
        host.snapshot(vm, &["--scratch-dir", &scratch])
    };
    write(&mut vm, 1);
    let first = vm.contents.clone();
    write(&mut vm, 2);
    let second = vm.contents.clone();
    // What runs is not touched, nor what has memory that goes on.
    let back = ["rollback", "libvirt:web", "--to", "@1"];
    let refused = |says: &str| {
        let run = host.run(&back);
        assert_eq!(run.code(), Some(4), "{}", run.err);
        run.says(says);
    };
    refused(
        "libvirt:web is running and has its disks open; shut it down, or have it shut down with \
         --shutdown",
    );
    host.virsh(&["managedsave", "web"]);
    refused("libvirt:web has saved memory, which belongs to the present state of its disks");
    host.run(&["snapshot", "libvirt:web"]).fails(4).says("libvirt:web has saved memory");
    host.virsh(&["managedsave-remove", "web"]);
    host.run(&back).done();
    vm.contents = first;
    host.start_domain("web");
    let taken = write(&mut vm, 3);
    host.newest_is(&vm, "rolled back");
    assert_eq!(
        taken[0]["hint"]["kind"], "bitmap",
        "the bitmap has what the rollback wrote: {taken:#?}"
    );
    // Its disks in a list, with what protects them.
    let run = host.run(&["list", "libvirt:"]).done();
    let text = String::from_utf8(run.out).unwrap();
    assert!(text.contains("web-vda@3") && text.contains("web-vdb@3"), "{text}");
    let run = host.run(&["list", "libvirt:w*", "--json"]).done();
    let listed = run.json();
    assert_eq!(
        (&listed["state"], &listed["disks"][0]["checkpoint"]),
        (&"paused".into(), &"sound".into())
    );
    host.domain("new", &[("raw", 1)]);
    let run = host.run(&["list", "libvirt:new", "--json"]).done();
    assert!(run.json()["disks"][0]["image"].is_null());
    // A machine beside it, on a host that has never seen it.
    let make = |name: &str| {
        let pool = host.lab.path("pool");
        std::fs::create_dir_all(&pool).unwrap();
        let snapshot = ["restore", "libvirt:web@2", "--define", name, "--pool", &pool];
        let mut command = host.command(&snapshot);
        command.env("IMGSNAP_STATE", host.lab.path("other-state"));
        Run::of(snapshot.join(" "), output(&mut command).unwrap())
    };
    make("copy").done();
    host.start_domain("copy");
    assert_ne!(host.virsh(&["domuuid", "copy"]), host.virsh(&["domuuid", "web"]));
    host.virsh(&["destroy", "copy"]);
    for (index, wanted) in second.iter().enumerate() {
        let ending = ["qcow2", "img"][index];
        let disk = host.lab.path(&format!("pool/copy-vd{}.{ending}", ["a", "b"][index]));
        let raw = host.lab.path("raw");
        tool("qemu-img", &["convert", "-O", "raw", &disk, &raw]);
        assert!(std::fs::read(&raw).unwrap() == *wanted, "{disk}");
    }
    let run = make("copy");
    assert_eq!(run.code(), Some(1));
    run.says("the domain \"copy\" already exists; choose another name");
    // The variables of its firmware go with it.
    let nvram = host.lab.path("vars.fd");
    std::fs::write(&nvram, "variables").unwrap();
    let xml = std::fs::read_to_string(host.lab.path("new.xml")).unwrap().replace(
        "hvm</type>",
        &format!(
            "hvm</type><loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader>\
             <nvram template='/usr/share/OVMF/OVMF_VARS.fd'>{nvram}</nvram>"
        ),
    );
    host.virsh(&["destroy", "new"]);
    std::fs::write(host.lab.path("new.xml"), xml).unwrap();
    host.virsh(&["undefine", "new"]);
    host.virsh(&["define", &host.lab.path("new.xml")]);
    host.run(&["snapshot", "libvirt:new"]).done();
    let pool = host.lab.path("pool");
    let made = ["restore", "libvirt:new@latest", "--define", "other", "--pool", &pool, "--same"];
    host.virsh(&["undefine", "new", "--keep-nvram"]);
    host.run(&made).done();
    assert_eq!(std::fs::read(format!("{pool}/other_VARS.fd")).unwrap(), b"variables");
    assert!(host.virsh(&["dumpxml", "other"]).contains(&format!("{pool}/other_VARS.fd")));
    host.lab.run(&["verify"]).done();
    host.run(&["restore", "libvirt:web@2", "-o", "x"]).fails(1).says("--define NAME --pool DIR");
}
