//! Loop devices: images that are mounted, and block devices as source and target.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;

#[test]
fn mounted_image_is_refused_until_it_is_unmounted() {
    need!(tools(&["mke2fs", "e2fsck", "losetup", "mount"]));
    let lab = Lab::new();
    let image = lab.path("guest.img");
    tool("mke2fs", &["-q", "-F", "-t", "ext4", &image, "16M"]);
    assert_eq!(lab.snapshot(&image), 1);
    let before = lab.path("before");
    keep(&image, &before);

    let device = need!(Loop::new(&[], &image));
    let mount = need!(Mount::new(&[&device.device], &lab.path("mnt")));
    std::fs::write(lab.path("mnt/new"), noise(1, 100_000)).unwrap();
    for args in [
        &["snapshot", &image][..],
        &["snapshot", &image, "--dry-run"],
        &["snapshot", &image, "--name", "other"],
        &["rollback", &image, "--to", "@1"],
        &["restore", "guest@1", "-o", &image, "--force"],
        // The device itself is in use, too.
        &["snapshot", &device.device, "--name", "device"],
        &["restore", "guest@1", "-o", &device.device, "--force"],
    ] {
        let named = args.iter().rfind(|a| a.starts_with('/')).unwrap();
        lab.run(args).fails(4).says(named);
    }
    assert_eq!(lab.numbers("guest"), [1]);
    assert_eq!(lab.numbers("other").len() + lab.numbers("device").len(), 0);
    mount.unmount();
    // Attached, it could still be written to at any time.
    lab.run(&["snapshot", &image]).fails(4).says(&image);
    device.detach();

    tool("e2fsck", &["-fn", &image]);
    assert_eq!(lab.snapshot(&image), 2);
    same(&lab.restore("guest@2"), &image);
    lab.run(&["rollback", &image, "--to", "@1"]).done();
    same(&image, &before);
    lab.verify(2);
}

#[test]
fn image_that_others_only_read_can_be_snapshotted_and_not_rolled_back() {
    need!(tools(&["losetup"]));
    let lab = Lab::new();
    let image = lab.path("vm.img");
    make(&image, MIB);
    put(&image, 5000, &noise(1, 70_000));
    lab.snapshot(&image);
    let _device = need!(Loop::new(&["-r"], &image));
    put_shared(&image);
    assert_eq!(lab.snapshot(&image), 2);
    same(&lab.restore("vm@2"), &image);
    lab.run(&["rollback", &image, "--to", "@1"]).fails(4).says(&image);
    same(&lab.restore("vm@2"), &image);
}

#[test]
fn loop_device_over_a_live_file_is_not_updated() {
    need!(tools(&["losetup"]));
    let lab = Lab::new();
    let image = lab.path("vm.img");
    make(&image, MIB);
    put(&image, 5000, &noise(1, 70_000));
    lab.snapshot(&image);
    put(&image, 9000, &noise(2, 70_000));
    let device = need!(Loop::new(&[], &image));
    let kept = lab.path("kept");
    keep(&image, &kept);
    let run = lab.run(&["restore", "vm@1", "-o", &device.device, "--update"]);
    run.fails(1).says("is the live file of \"vm\"");
    same(&kept, &image);
}

/// Changes it while others have it open.
fn put_shared(image: &str) {
    put(image, 0, b"changed");
}

/// Its length is a multiple of the sector, not of the block.
const DEVICE_BYTES: u64 = 8 * MIB + 3 * 512;

#[test]
fn device_is_snapshotted_rolled_back_and_restored() {
    need!(tools(&["losetup"]));
    let lab = Lab::new();
    let file = lab.path("disk");
    make(&file, DEVICE_BYTES);
    put(&file, 2 * MIB, &noise(1, MIB + 777));
    put(&file, DEVICE_BYTES - 600, &noise(2, 600));
    let device = need!(Loop::new(&[], &file));
    let name = device.device.trim_start_matches("/dev/");
    let kept: Vec<String> = (0..3).map(|n| lab.path(&format!("kept{n}"))).collect();

    // By default the name is that of the device.
    let taken = lab.run(&["snapshot", &device.device, "--json"]).done().json();
    assert_eq!((&taken["name"], &taken["image_bytes"]), (&name.into(), &DEVICE_BYTES.into()));
    assert_eq!(lab.numbers(name), [1]);
    let snapshot = |kept: &str| {
        keep(&device.device, kept);
        lab.run(&["snapshot", &device.device, "--name", "disk", "--json"]).done().json()
    };
    // Another name for the same device is another image.
    assert_eq!(snapshot(&kept[0])["kind"], "base");
    put(&device.device, 2 * MIB + 4096, &[0; 300_000]);
    put(&device.device, 6 * MIB, &text(3, 50_000));
    let changed = snapshot(&kept[1])["changed_bytes"].as_u64().unwrap();
    assert!((350_000..400_000).contains(&changed), "{changed}");
    put(&device.device, 0, &noise(4, DEVICE_BYTES));
    snapshot(&kept[2]);
    lab.verify(4);

    // Times of devices prove nothing: it scans.
    for (number, prove) in [(1, false), (3, true), (2, false)] {
        let to = format!("@{number}");
        let mut args = vec!["rollback", "disk", "--to", &to, "--json"];
        args.extend(prove.then_some("--prove"));
        let done = lab.run(&args).done().json();
        assert_eq!((&done["scanned"], &done["proved"]), (&true.into(), &true.into()), "{done}");
        same(&device.device, &kept[number - 1]);
    }
    assert_eq!(lab.numbers("disk"), [1, 2, 3]);

    let target = need!(Loop::of_noise(&lab.path("target"), DEVICE_BYTES, 5));
    let before = lab.path("before");
    keep(&target.device, &before);
    lab.run(&["restore", "disk@1", "-o", &target.device]).fails(1).says("--force");
    same(&target.device, &before);
    // Each of them over the one before: zeros must be made, not assumed.
    for number in [1, 3, 2] {
        let reference = format!("disk@{number}");
        let args = ["restore", &reference, "-o", &target.device, "--force", "--json"];
        assert_eq!(lab.run(&args).done().json()["proved"], true);
        same(&target.device, &kept[number - 1]);
        same(&lab.path("target"), &kept[number - 1]);
    }
    // Only what differs.
    for (number, force) in [(1, false), (3, true), (2, true)] {
        let (reference, before) = (format!("disk@{number}"), lab.path("before-update"));
        keep(&target.device, &before);
        let mut args = vec!["restore", &reference, "-o", &target.device, "--update", "--json"];
        if force {
            let unlike = lab.run(&args).fails(1);
            unlike.says("does not seem to hold a state of \"disk\"").says("--force");
            same(&target.device, &before);
            args.push("--force");
        }
        let done = lab.run(&args).done().json();
        same(&target.device, &kept[number - 1]);
        assert_eq!((&done["proved"], &done["read_bytes"]), (&true.into(), &DEVICE_BYTES.into()));
        let written = done["written_bytes"].as_u64().unwrap();
        assert!(force || written < MIB, "{written}");
        args.push("--trust-target");
        let again = lab.run(&args).done().json();
        assert_eq!(again["written_bytes"], 0, "{again}");
        assert_eq!(again["not_trusted"], "it is a device, or not a raw file");
    }
    lab.run(&["restore", "disk@2", "-o", &device.device, "--update"])
        .fails(1)
        .says("rollback disk");
}

#[test]
fn device_of_another_length_is_filled_in_part_or_refused() {
    need!(tools(&["losetup"]));
    let lab = Lab::new();
    let image = lab.path("vm.img");
    make(&image, 3 * MIB);
    put(&image, MIB, &noise(1, 100_000));
    lab.snapshot(&image);

    let larger = need!(Loop::of_noise(&lab.path("larger"), 4 * MIB, 2));
    let tail = get(&larger.device, 3 * MIB, MIB);
    let run = lab.run(&["restore", "vm@1", "-o", &larger.device, "--force"]).done();
    run.says("1.00 MiB were not changed");
    let update = ["restore", "vm@1", "-o", &larger.device, "--update", "--json"];
    put(&larger.device, MIB, &text(7, 5000));
    let done = lab.run(&update).done().says("1.00 MiB were not changed").json();
    assert_eq!((&done["read_bytes"], &done["written_bytes"]), (&(3 * MIB).into(), &8192.into()));
    same_start(&larger.device, &image, 3 * MIB);
    assert!(get(&larger.device, 3 * MIB, MIB) == tail);

    let smaller = need!(Loop::of_noise(&lab.path("smaller"), 3 * MIB - 512, 3));
    let before = lab.path("before");
    keep(&smaller.device, &before);
    let run = lab.run(&["restore", "vm@1", "-o", &smaller.device, "--force"]).fails(1);
    run.says(&smaller.device);
    same(&smaller.device, &before);

    // A part of it has its place there, at the beginning.
    lab.run(&["restore", "vm@1", "-o", &smaller.device, "--force", "--range", "1M+64K"]).done();
    assert!(get(&smaller.device, 0, 64 << 10) == get(&image, MIB, 64 << 10));
    assert!(get(&smaller.device, 64 << 10, MIB) == get(&before, 64 << 10, MIB));
}

#[test]
fn zeros_of_any_length_reach_a_device() {
    need!(tools(&["losetup"]));
    let lab = Lab::new();
    // The ends are not on a sector of the device: holes cannot be punched there.
    for (count, (bytes, args)) in
        [(1_000_001, &[][..]), (MIB + 512, &["-b", "4096"]), (600, &[])].into_iter().enumerate()
    {
        let image = lab.path(&format!("odd{count}.img"));
        make(&image, bytes);
        put(&image, 0, &noise(1, 100));
        lab.snapshot(&image);
        let file = lab.path("device");
        make(&file, 2 * MIB);
        put(&file, 0, &noise(2, 2 * MIB));
        let device = need!(Loop::new(args, &file));
        let tail = get(&device.device, bytes, 2 * MIB - bytes);
        let reference = format!("odd{count}@1");
        let restored = lab.run(&["restore", &reference, "-o", &device.device, "--force"]);
        restored.done();
        same_start(&device.device, &image, bytes);
        assert!(get(&device.device, bytes, 2 * MIB - bytes) == tail, "what lies behind the image");
    }
}

#[test]
fn mounted_device_is_no_target() {
    need!(tools(&["mke2fs", "e2fsck", "losetup", "mount"]));
    let lab = Lab::new();
    let image = lab.path("vm.img");
    make(&image, MIB);
    put(&image, 0, &noise(1, MIB));
    lab.snapshot(&image);
    let file = lab.path("mounted");
    tool("mke2fs", &["-q", "-F", "-t", "ext4", &file, "16M"]);
    let device = need!(Loop::new(&[], &file));
    let mount = need!(Mount::new(&["-o", "ro", &device.device], &lab.path("mnt")));
    let before = lab.path("before");
    keep(&device.device, &before);
    lab.run(&["restore", "vm@1", "-o", &device.device, "--force"]).fails(4).says(&device.device);
    same(&device.device, &before);
    mount.unmount();
    tool("e2fsck", &["-fn", &device.device]);
    lab.run(&["restore", "vm@1", "-o", &device.device, "--force"]).done();
    same_start(&device.device, &image, MIB);
}

/// A process that has a file or device open, for writing or only to read, and does nothing.
fn holder(path: &str, how: &str) -> Started {
    let script = format!("exec 7{how}\"$1\"; echo ready >&2; exec sleep 1000");
    let mut command = tool_command("bash", &["-c", &script, "bash", path]).unwrap();
    command.stdin(std::process::Stdio::null());
    let mut started = Started::spawn(command);
    assert!(started.waits_for("ready"), "no holder");
    started
}

#[test]
fn a_device_that_somebody_has_open_is_refused_with_his_name() {
    need!(tools(&["losetup", "bash"]));
    let lab = Lab::new();
    let device = need!(Loop::of_noise(&lab.path("disk"), 4 * MIB, 1));
    let image = lab.path("vm.img");
    make(&image, 4 * MIB);
    lab.snapshot(&image);
    lab.run(&["snapshot", &device.device, "--name", "disk"]).done();
    let before = lab.path("before");
    keep(&device.device, &before);
    make(&lab.path("parts"), 4 * MIB);
    // Whoever writes to the device, to the file under it, or to a device that is made of it.
    let over = need!(Loop::new(&[], &device.device));
    let over_name = over.device.clone();
    let snapshot = &["snapshot", &device.device, "--name", "disk"];
    lab.run(snapshot).fails(4).says(&over_name);
    over.detach();
    // Another device on the same file, which the kernel holds, and no process.
    let beside = need!(Loop::new(&[], &lab.path("disk")));
    for args in [&snapshot[..], &["rollback", "disk", "--to", "@1"]] {
        lab.run(args).fails(4).says(&beside.device);
    }
    beside.detach();
    // One of another part of it is in nobody's way.
    let [ours, theirs] = [&["--sizelimit", "2M"][..], &["-o", "2M"]];
    let first = need!(Loop::new(ours, &lab.path("parts")));
    let second = need!(Loop::new(theirs, &lab.path("parts")));
    lab.run(&["snapshot", &first.device, "--name", "part"]).done();
    lab.run(&["rollback", "part", "--to", "@1"]).done();
    for part in [first, second] {
        part.detach();
    }
    for (path, how) in [(device.device.clone(), "<>"), (lab.path("disk"), "<>")] {
        let user = holder(&path, how);
        for args in [
            &snapshot[..],
            &["rollback", "disk", "--to", "@1"],
            &["restore", "vm@1", "-o", &device.device, "--force"],
        ] {
            let run = lab.run(args).fails(4).says(&device.device);
            run.says(&format!("(process {})", user.id()));
        }
        drop(user);
    }
    // Whoever only reads is no trouble for a snapshot, and is for what would change under him.
    let user = holder(&device.device, "<");
    lab.run(snapshot).done();
    lab.run(&["rollback", "disk", "--to", "@1"]).fails(4).says("in use by");
    drop(user);
    same(&device.device, &before);
    lab.run(&["rollback", "disk", "--to", "@1"]).done();
    // Unless he is who started us, and keeps others off.
    let rollback = lab.command(&["rollback", "disk", "--to", "@1"]);
    let script = "exec 7<\"$0\"; \"$@\"; exit $?";
    let mut command = tool_command("bash", &["-c", script, &device.device]).unwrap();
    command.arg(rollback.get_program()).args(rollback.get_args());
    for (name, value) in rollback.get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    Started::spawn(command).wait().done();
}

#[test]
fn a_device_that_is_written_to_while_it_is_read_gives_no_snapshot() {
    need!(tools(&["losetup"]));
    let lab = Lab::new();
    let device = need!(Loop::of_noise(&lab.path("disk"), 32 * MIB, 1));
    lab.run(&["snapshot", &device.device, "--name", "disk"]).done();
    // Whoever came after the first look and is gone before the last: the kernel counts what he wrote.
    for through in [device.device.clone(), lab.path("disk")] {
        let name = ["snapshot", &device.device, "--name", "disk", "--verbose"];
        let mut started = lab.start(&name);
        assert!(started.stop_when_it_says("scanning against"), "it was not to be stopped");
        put(&through, MIB, &noise(7, 4096));
        started.signal(nix::sys::signal::Signal::SIGCONT);
        // Not all of a line may have been taken away.
        let run = started.wait();
        assert_eq!(run.code(), Some(4), "{}", run.err);
        run.says("was written to while it was being read");
    }
    assert_eq!(lab.numbers("disk"), [1]);
    lab.run(&["snapshot", &device.device, "--name", "disk"]).done();
}

#[test]
fn who_cannot_see_the_users_of_a_device_is_warned() {
    need!(tools(&["losetup"]));
    let lab = need!(Lab::of_nobody());
    let device = need!(Loop::of_noise(&lab.path("disk"), MIB, 1));
    std::os::unix::fs::chown(&device.device, Some(65_534), None).unwrap();
    let run = lab.run(&["snapshot", &device.device, "--name", "disk"]);
    std::os::unix::fs::chown(&device.device, Some(0), None).unwrap();
    run.done().says("cannot check who else has it open");
}

/// Rule J7.
#[test]
fn another_disk_under_the_same_path_is_not_rolled_back() {
    need!(tools(&["losetup"]));
    let lab = Lab::new();
    let device = need!(Loop::of_noise(&lab.path("one"), MIB, 1));
    let path = device.device.clone();
    let snapshot = &["snapshot", &path, "--name", "disk"];
    lab.run(snapshot).done();
    put(&path, 0, &noise(2, 100_000));
    lab.run(snapshot).done();
    device.detach();
    let other = lab.path("two");
    make(&other, MIB);
    put(&other, 0, &noise(3, MIB));
    let before = lab.path("before");
    keep(&other, &before);
    // The same node, another file.
    need!(try_tool("losetup", &[&path, &other]));
    let device = Loop { device: path.clone() };
    let rollback = ["rollback", "disk", "--to", "@1"];
    for more in [&[][..], &["--no-save"], &["--dry-run"]] {
        let run = lab.run(&[&rollback[..], more].concat()).fails(1);
        run.says("the file of its loop device was").says("--force-device");
    }
    same(&path, &before);
    let run = lab.run(&[&rollback[..], &["--force-device"]].concat()).done();
    run.says("is a different device");
    device.detach();
    // A snapshot of it is taken, and does not make it the one that is rolled back.
    need!(try_tool("losetup", &[&path, &other]));
    let device = Loop { device: path.clone() };
    let of = ["snapshot", &before, "--name", "disk", "--of", &path, "--force"];
    for snapshot in [snapshot, &of[..]] {
        lab.run(snapshot).done().says("rollbacks are refused until you run");
        lab.run(&rollback).fails(1).says("the file of its loop device was");
    }
    device.detach();
    // A file that was renamed is the same.
    let renamed = lab.path("three");
    std::fs::rename(lab.path("one"), &renamed).unwrap();
    need!(try_tool("losetup", &[&path, &renamed]));
    let device = Loop { device: path.clone() };
    lab.run(&rollback).done();
    device.detach();
    std::fs::rename(&renamed, lab.path("one")).unwrap();
    // It itself again is no other one: what a guest does to its partition table is no matter.
    need!(try_tool("losetup", &[&path, &lab.path("one")]));
    let device = Loop { device: path.clone() };
    lab.run(snapshot).done();
    put(&path, 440, &[1, 2, 3, 4]);
    put(&path, 510, &[0x55, 0xaa]);
    lab.run(&rollback).done();
    device.detach();
}

#[test]
fn a_part_of_a_device_is_known_and_watched_as_the_whole_is() {
    need!(tools(&["losetup", "addpart", "delpart"]));
    let lab = Lab::new();
    let device = need!(Loop::of_noise(&lab.path("one"), 4 * MIB, 1));
    let (path, part) = (device.device.clone(), format!("{}p1", device.device));
    need!(try_tool("addpart", &[&path, "1", "2048", "4096"]));
    let _undo = Undo(path.clone());
    if !std::path::Path::new(&part).exists() {
        return skipped("devices::a_part_of_a_device", "no node is made for a partition");
    }
    lab.run(&["snapshot", &part, "--name", "part"]).done();
    for (held, how) in [(lab.path("one"), "<>"), (path.clone(), "<>")] {
        let user = holder(&held, how);
        lab.run(&["snapshot", &part, "--name", "part"]).fails(4).says("(process ");
        drop(user);
    }
    try_tool("delpart", &[&path, "1"]).unwrap();
    device.detach();
    let other = lab.path("two");
    make(&other, 4 * MIB);
    put(&other, 0, &noise(3, 4 * MIB));
    need!(try_tool("losetup", &[&path, &other]));
    let device = Loop { device: path.clone() };
    need!(try_tool("addpart", &[&path, "1", "2048", "4096"]));
    lab.run(&["rollback", "part", "--to", "@1"]).fails(1).says("the file of its loop device");
    try_tool("delpart", &[&path, "1"]).unwrap();
    device.detach();
}

/// Removes the partition of a device, should it be left.
struct Undo(String);

impl Drop for Undo {
    fn drop(&mut self) {
        try_tool("delpart", &[&self.0, "1"]).ok();
    }
}
