//! What surrounds a snapshot of a domain, and fails or is killed.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;
use crate::libvirt_kit::{Domain, Host};
use crate::random::Random;
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

/// What somebody does between two snapshots, or in the middle of one.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Turn {
    /// Nothing: the next is an increment.
    Quiet,
    /// imgsnap is killed after so many milliseconds.
    KillUs(u64),
    /// libvirtd is killed so many milliseconds after imgsnap has begun.
    KillLibvirtd(u64),
    /// QEMU is killed.
    KillQemu,
    /// ... or ended by libvirt.
    Destroy,
    /// The domain is undefined, and defined again.
    Undefine,
    /// Somebody takes a snapshot that makes libvirt write to another file.
    External,
    /// The disk becomes longer.
    Resize,
}

impl Turn {
    /// Each once, as the short test does it.
    const ALL: [Self; 12] = [
        Self::Quiet,
        Self::KillUs(140),
        Self::KillUs(300),
        Self::KillUs(460),
        Self::KillLibvirtd(250),
        Self::Destroy,
        Self::Undefine,
        Self::KillQemu,
        Self::Quiet,
        Self::External,
        Self::Resize,
        Self::Quiet,
    ];

    fn random(random: &mut Random) -> Self {
        match random.below(9) {
            0 => Self::Quiet,
            1..=3 => Self::KillUs(random.below(700)),
            4 => Self::KillLibvirtd(random.below(500)),
            5 => Self::KillQemu,
            6 => Self::Destroy,
            7 => [Self::Undefine, Self::Resize][random.below(2) as usize],
            _ => Self::External,
        }
    }

    /// True if the bitmap has gone with it, or may have: all is read.
    fn loses_bitmap(self) -> bool {
        [Self::KillQemu, Self::External, Self::Resize].contains(&self)
    }
}

/// `IMGSNAP_DOMAINS=20`: so many domains, with so many increments each.
fn domains() -> Option<u64> {
    std::env::var("IMGSNAP_DOMAINS").ok().map(|count| count.parse().unwrap())
}

#[test]
fn whoever_is_killed_and_whatever_others_do_an_increment_is_what_a_full_read_gives() {
    let host = need!(Host::start());
    let place = host.scratch();
    let seed = 20261129;
    let mut random = Random(seed);
    for number in 0..domains().unwrap_or(1) {
        let name = format!("web{number}");
        let mut vm = host.domain(&name, &[("qcow2", 16), ("raw", 4)]);
        let turns = match domains() {
            None => Turn::ALL.to_vec(),
            Some(count) => (0..count).map(|_| Turn::random(&mut random)).collect(),
        };
        host.write(&mut vm, 0, 1, 0, 4 * MIB);
        host.snapshot(&vm, &["--scratch-dir", &place]);
        let (mut hinted, mut overlays) = (0, 0);
        for (index, turn) in turns.iter().enumerate() {
            let what = format!("seed {seed}, {name}, turn {index}: {turn:?}");
            println!("{what}");
            done(&host, &mut vm, *turn, &mut overlays);
            for disk in 0..2 {
                let byte = (index % 200 + 2) as u8;
                host.write(&mut vm, disk, byte, random.below(3 * MIB / 512) * 512, 50_000);
            }
            let snapshot = format!("libvirt:{name}");
            let args = ["snapshot", &snapshot, "--json", "--scratch-dir", &place];
            let mut run = host.run(&args);
            // libvirt may lose a backup that it was about to begin: only a restart of the machine ends that.
            let is_stuck = run.err.contains("a backup that libvirtd lost track of");
            if is_stuck {
                println!("{what}: libvirt has lost a backup");
                done(&host, &mut vm, Turn::Destroy, &mut overlays);
                run = host.run(&args);
            }
            let run = run.done();
            host.newest_is(&vm, &what);
            host.is_tidy(&vm, &what);
            let first = run.out.split(|byte| *byte == b'\n').next().unwrap();
            let taken: serde_json::Value = serde_json::from_slice(first).unwrap();
            let has_hint = taken["hint"]["kind"] == "bitmap";
            assert!(has_hint || is_stuck || turn.loses_bitmap(), "{what}: {taken:#?}");
            hinted += usize::from(has_hint);
        }
        println!("{name}: {} increments, {hinted} by a checkpoint", turns.len());
        host.virsh(&["destroy", &name]);
    }
    host.lab.run(&["verify"]).done();
}

/// Does it. Afterwards the machine runs.
fn done(host: &Host, vm: &mut Domain, turn: Turn, overlays: &mut usize) {
    let (name, place) = (vm.name.clone(), host.scratch());
    let uri = format!("libvirt:{name}");
    let args = ["snapshot", &uri, "--json", "--scratch-dir", &place];
    let interrupted = |milliseconds: u64, interrupt: &dyn Fn(&Started)| {
        let run = Started::spawn(host.command(&args));
        std::thread::sleep(Duration::from_millis(milliseconds));
        interrupt(&run);
        run.wait();
    };
    let file = |overlays: usize| match overlays {
        0 => host.disk(&name, 0),
        more => host.lab.path(&format!("{name}-overlay-{more}.qcow2")),
    };
    match turn {
        Turn::Quiet => {}
        Turn::KillUs(after) => interrupted(after, &|run| run.signal(Signal::SIGKILL)),
        Turn::KillLibvirtd(after) => interrupted(after, &|_| host.restart()),
        Turn::KillQemu => {
            kill(Pid::from_raw(host.qemu(vm)), Signal::SIGKILL).unwrap();
            let is_off = || host.virsh(&["domstate", &name]).contains("shut off");
            assert!(wait_until(is_off));
            host.start_domain(&name);
        }
        Turn::Destroy => {
            host.virsh(&["destroy", &name]);
            host.start_domain(&name);
        }
        Turn::Undefine => {
            let xml = host.virsh(&["dumpxml", &name, "--inactive"]);
            std::fs::write(host.lab.path("again.xml"), xml).unwrap();
            host.virsh(&["destroy", &name]);
            host.virsh(&["undefine", &name, "--checkpoints-metadata"]);
            host.virsh(&["define", &host.lab.path("again.xml")]);
            host.start_domain(&name);
        }
        Turn::External => {
            *overlays += 1;
            let overlay = format!("vda,file={}", file(*overlays));
            let external = ["snapshot-create-as", &name, "--disk-only", "--diskspec", &overlay];
            let more = ["--diskspec", "vdb,snapshot=no", "--no-metadata"];
            host.virsh(&[&external[..], &more].concat());
        }
        Turn::Resize => {
            let bytes = vm.contents[0].len() + (1 << 20);
            vm.contents[0].resize(bytes, 0);
            // QEMU may still be ending a job whose end libvirtd did not see, as it was killed.
            let resize = ["blockresize", &name, "vda", &format!("{bytes}B")];
            assert!(
                wait_until(|| host.try_virsh(&resize).is_ok()),
                "{:?}",
                host.try_virsh(&resize)
            );
        }
    }
}
