//! Disks that are no raw files, from the command line: each kind is taken, changed as a guest would, taken again,
//! restored, rolled back and updated, and is what QEMU says.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;
use crate::nbd_fake::{Config, Fake, Wrong};
use nix::sys::signal::Signal;
use std::os::unix::net::UnixStream;

const BYTES: u64 = 4 * MIB;

/// Where a disk lies.
struct Kind {
    name: &'static str,
    /// What makes it of `raw.img`; `{}` is its path.
    make: &'static [&'static str],
    /// As `qemu-io` and `qemu-img` call it.
    format: &'static str,
    /// What is needed to read it.
    options: &'static [&'static str],
    /// It can be changed in place.
    is_written: bool,
}

const PLAIN: Kind = Kind {
    name: "disk.qcow2",
    make: &["convert", "-O", "qcow2", "raw.img", "{}"],
    format: "qcow2",
    options: &[],
    is_written: true,
};

const KINDS: [Kind; 10] = [
    PLAIN,
    Kind {
        name: "zlib.qcow2",
        make: &["convert", "-c", "-O", "qcow2", "-o", "cluster_size=4096", "raw.img", "{}"],
        ..PLAIN
    },
    Kind {
        name: "zstd.qcow2",
        make: &["convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd", "raw.img", "{}"],
        ..PLAIN
    },
    Kind {
        name: "extended.qcow2",
        make: &["convert", "-O", "qcow2", "-o", "extended_l2=on", "raw.img", "{}"],
        ..PLAIN
    },
    Kind {
        name: "over.qcow2",
        make: &["create", "-q", "-f", "qcow2", "-b", "raw.img", "-F", "raw", "{}"],
        options: &["--backing-ok"],
        ..PLAIN
    },
    Kind {
        name: "split.qcow2",
        make: &["convert", "-O", "qcow2", "-o", "data_file={}.data", "raw.img", "{}"],
        options: &["--backing-ok"],
        ..PLAIN
    },
    Kind {
        name: "disk.vhd",
        make: &["convert", "-O", "vpc", "-o", "force_size=on", "raw.img", "{}"],
        format: "vpc",
        options: &["--via-qemu"],
        is_written: false,
    },
    Kind {
        name: "disk.vmdk",
        make: &["convert", "-O", "vmdk", "raw.img", "{}"],
        format: "vmdk",
        options: &["--via-qemu"],
        is_written: false,
    },
    Kind {
        name: "disk.vdi",
        make: &["convert", "-O", "vdi", "raw.img", "{}"],
        format: "vdi",
        options: &["--via-qemu"],
        is_written: false,
    },
    Kind {
        name: "disk.vhdx",
        make: &["convert", "-O", "vhdx", "raw.img", "{}"],
        format: "vhdx",
        options: &["--via-qemu"],
        is_written: false,
    },
];

/// A raw image with data, and holes in it.
fn raw(lab: &Lab) -> String {
    let path = lab.path("raw.img");
    make(&path, BYTES);
    put(&path, 0, &noise(3, MIB));
    put(&path, 2 * MIB, &noise(4, 600_000));
    path
}

fn qemu_io(format: &str, place: &str, commands: &[&str]) {
    let mut args = vec!["-f", format];
    commands.iter().for_each(|command| args.extend(["-c", command]));
    args.push(place);
    tool("qemu-io", &args);
}

/// One line.
fn failed(run: Run) -> String {
    run.fails(1).err
}

fn same_disk(one: (&str, &str), other: (&str, &str)) {
    tool("qemu-img", &["compare", "-f", one.0, "-F", other.0, one.1, other.1]);
}

#[test]
fn each_kind_of_disk_is_taken_restored_and_rolled_back() {
    need!(tools(&["qemu-img", "qemu-io", "qemu-nbd", "qemu-storage-daemon"]));
    for kind in KINDS {
        let lab = Lab::new();
        let raw = raw(&lab);
        let disk = lab.path(kind.name);
        let make: Vec<String> = kind.make.iter().map(|a| a.replace("{}", &disk)).collect();
        let make: Vec<&str> = make.iter().map(String::as_str).collect();
        let made = output(tool_command("qemu-img", &make).unwrap().current_dir(lab.path("")));
        if !made.as_ref().is_ok_and(|made| made.status.success()) {
            skipped("each_kind_of_disk", &format!("this QEMU makes no {}", kind.name));
            continue;
        }
        let name = kind.name.split('.').next().unwrap();
        let snapshot = [&["snapshot", &disk, "--json"], kind.options].concat();
        if !kind.options.is_empty() {
            let line = failed(lab.run(&["snapshot", &disk]));
            assert!(line.contains(kind.options[0]), "{}: {line}", kind.name);
        }
        let first = lab.run(&snapshot).json();
        assert_eq!(first["image_bytes"], BYTES, "{}", kind.name);
        // The raw image is the same disk: nothing is stored.
        let path = lab.path("raw-1.img");
        lab.run(&["restore", &format!("{name}@1"), "-o", &path]).done();
        same_disk(("raw", &path), ("raw", &raw));
        let unchanged = lab.run(&snapshot).json();
        assert_eq!(unchanged["changed_bytes"], 0, "{}: {unchanged}", kind.name);
        qemu_io(kind.format, &disk, &["write -P 7 300k 64k", "write -z 2M 128k"]);
        let second = lab.run(&snapshot).json();
        assert_eq!(second["changed_bytes"], 192 << 10, "{}: {second}", kind.name);
        let path = lab.path("raw-3.img");
        lab.run(&["restore", &format!("{name}@3"), "-o", &path]).done();
        same_disk(("raw", &path), (kind.format, &disk));
        // What is recorded of it is known of its live file, and nothing of two images.
        let diff = |one: &str, options: &[&str]| {
            lab.run(&[&["diff", one, &disk, "--json"], options].concat())
        };
        let is_chain = kind.options == ["--backing-ok"];
        let recorded = if is_chain { kind.options } else { &[] };
        for (one, options, changed) in [
            (format!("{name}@1"), recorded, 192 << 10),
            (format!("{name}@3"), recorded, 0),
            (raw.clone(), kind.options, 192 << 10),
            (disk.clone(), kind.options, 0),
        ] {
            let found = diff(&one, options).json();
            assert_eq!(found["changed_bytes"], changed, "{one} {}: {found}", kind.name);
            assert_eq!(found["after_bytes"], BYTES, "{one} {}: {found}", kind.name);
        }
        if !kind.options.is_empty() {
            let line = failed(diff(&raw, &[]));
            assert!(line.contains(kind.options[0]), "{}: {line}", kind.name);
        }
        let back = [&["rollback", name, "--to", "@1", "--json"], kind.options].concat();
        if kind.is_written {
            let done = lab.run(&back).json();
            assert_eq!(done["written_bytes"], 192 << 10, "{}: {done}", kind.name);
            same_disk(("raw", &raw), (kind.format, &disk));
            tool("qemu-img", &["check", "-q", "-f", kind.format, &disk]);
        } else {
            let line = failed(lab.run(&["rollback", name, "--to", "@1"]));
            assert!(line.contains("cannot be changed in place"), "{line}");
        }
        // Converted, it is the next snapshot of the same disk.
        let converted = lab.path("converted.img");
        tool("qemu-img", &["convert", "-f", kind.format, "-O", "raw", &disk, &converted]);
        // Told of by its name, without a relink: nothing of it is a qcow2.
        let moved = lab.path("moved");
        std::fs::copy(&disk, &moved).unwrap();
        std::fs::write(&disk, std::fs::read(&converted).unwrap()).unwrap();
        let line = failed(lab.run(&["snapshot", &disk]));
        assert!(line.contains("--format raw"), "{line}");
        let line = failed(lab.run(&["rollback", name, "--to", "@1"]));
        assert!(line.contains("--format raw"), "{line}");
        std::fs::write(&disk, std::fs::read(&moved).unwrap()).unwrap();
        lab.run(&["relink", name, &converted]).done();
        let args = ["snapshot", &converted, "--name", name, "--json"];
        for _ in 0..2 {
            assert_eq!(lab.run(&args).json()["changed_bytes"], 0, "{}", kind.name);
        }
        // And back again, which has to be said: a guest can write any header into a raw disk.
        let line = failed(lab.run(&["relink", name, &disk]));
        assert!(line.contains(&format!("--format {}", kind.format)), "{line}");
        lab.run(&["relink", name, &disk, "--format", kind.format]).done();
        assert_eq!(lab.run(&snapshot).json()["changed_bytes"], 0, "{}", kind.name);
    }
}

/// An export that ends with it.
struct Export {
    process: Started,
    uri: String,
}

impl Export {
    fn of(lab: &Lab, format: &str, disk: &str, options: &[&str]) -> Self {
        let socket = lab.path("nbd.sock");
        std::fs::remove_file(&socket).ok();
        let own = ["-t", "-k", &socket, "-x", "vm", "-e", "4", "-f", format];
        let args = [&own[..], options, &[disk]].concat();
        let process = Started::spawn(tool_command("qemu-nbd", &args).unwrap());
        assert!(wait_until(|| UnixStream::connect(&socket).is_ok()), "qemu-nbd does not start");
        Self { process, uri: format!("nbd+unix:///vm?socket={socket}") }
    }

    fn end(self) {
        self.process.signal(Signal::SIGTERM);
        self.process.wait();
    }
}

#[test]
fn an_export_is_taken_with_its_bitmap_and_rolled_back() {
    need!(tools(&["qemu-img", "qemu-io", "qemu-nbd"]));
    let lab = Lab::new();
    let raw = raw(&lab);
    let disk = lab.path("disk.qcow2");
    tool("qemu-img", &["convert", "-O", "qcow2", &raw, &disk]);
    tool("qemu-img", &["bitmap", "--add", &disk, "since1"]);
    let export = Export::of(&lab, "qcow2", &disk, &[]);
    let uri = export.uri.clone();
    lab.run(&["snapshot", &uri]).done();
    qemu_io("raw", &uri, &["write -P 9 1M 100k", "flush"]);
    export.end();
    // What was written stands in the bitmap when the file is closed.
    let export = Export::of(&lab, "qcow2", &disk, &["-B", "since1"]);
    let args =
        ["snapshot", &uri, "--bitmap", "since1", "--since", "@1", "--recheck", "0", "--json"];
    let taken = lab.run(&args).json();
    assert_eq!(
        (&taken["hint"]["kind"], &taken["changed_bytes"]),
        (&"bitmap".into(), &(100 << 10).into())
    );
    assert_eq!(taken["hint"]["named_bytes"], 128 << 10, "{taken}");
    assert_eq!(taken["consistency"], "unknown");
    let line = failed(lab.run(&["snapshot", &uri, "--bitmap", "none", "--since", "@1"]));
    assert!(line.contains("none"), "{line}");
    let line = failed(lab.run(&["restore", "vm@1", "-o", &uri]));
    assert!(line.contains("--force"), "{line}");
    let line = failed(lab.run(&["restore", "vm@1", "-o", &uri, "--update"]));
    assert!(line.contains("rollback"), "{line}");
    for to in ["@1", "@2", "@1"] {
        let done = lab.run(&["rollback", "vm", "--to", to, "--json"]).json();
        assert_eq!(done["written_bytes"], 100 << 10, "{done}");
        assert_eq!(done["scanned"], true, "an export is always read");
    }
    let found = lab.run(&["diff", "vm@1", &uri, "--json"]).json();
    assert_eq!(found["changed_bytes"], 0, "{found}");
    export.end();
    same_disk(("raw", &raw), ("qcow2", &disk));
    let line = failed(lab.run(&["snapshot", &uri]));
    assert!(line.contains("cannot connect"), "{line}");
    // Offline, the file tells the same of its bitmap.
    qemu_io("qcow2", &disk, &["write -P 8 3M 64k"]);
    let args = ["snapshot", &disk, "--name", "file", "--json"];
    lab.run(&args).done();
    tool("qemu-img", &["bitmap", "--clear", &disk, "since1"]);
    qemu_io("qcow2", &disk, &["write -P 5 3M 64k"]);
    let more = ["--bitmap", "since1", "--since", "@1", "--recheck", "0"];
    let line = failed(lab.run(&[&args[..4], &more, &["--full"]].concat()));
    assert!(line.contains("so a bitmap cannot be used; leave --bitmap out"), "{line}");
    let taken = lab.run(&[&args[..], &more].concat()).json();
    assert_eq!(
        (&taken["read_bytes"], &taken["changed_bytes"]),
        (&(64 << 10).into(), &(64 << 10).into())
    );
}

#[test]
fn of_an_export_it_is_not_known_how_consistent_it_is_whatever_it_stands_for() {
    let lab = Lab::new();
    let image = lab.path("vm.img");
    make(&image, MIB);
    put(&image, 0, &noise(5, MIB));
    let fake = Fake::new(Config::default(), &noise(5, MIB));
    let taken = lab.run(&["snapshot", &fake.uri().to_string(), "--of", &image, "--json"]).json();
    assert_eq!((&taken["name"], &taken["consistency"]), (&"vm".into(), &"unknown".into()));
}

#[test]
fn a_server_that_cannot_flush_is_told_of_wherever_it_was_written_to() {
    let lab = Lab::new();
    // 4: it can.
    for flags in [1 | 4 | 64 | 256, 1 | 64 | 256] {
        let image = noise(5, MIB);
        let fake = Fake::new(Config { flags, ..Config::default() }, &image);
        let (uri, name) = (fake.uri().to_string(), format!("vm{flags}"));
        let reference = format!("{name}@1");
        let taken = lab.run(&["snapshot", &uri, "--name", &name]).done();
        assert!(!taken.err.contains("durable"), "nothing is written: {}", taken.err);
        let target = Fake::new(Config { flags, ..Config::default() }, &noise(6, MIB));
        let target = target.uri().to_string();
        let restore = ["restore", &reference, "-o", &target];
        for args in [
            &["rollback", &name, "--to", "@1"][..],
            &[&restore[..], &["--force"]].concat(),
            &[&restore[..], &["--update"]].concat(),
        ] {
            let err = lab.run(args).done().err;
            let place = if args[0] == "rollback" { &uri } else { &target };
            let told =
                format!("{place} does not support flush: what was written may not be durable");
            assert_eq!(err.contains(&told), flags & 4 == 0, "{args:?}: {err}");
        }
    }
}

#[test]
fn a_target_that_a_failed_restore_leaves_half_written_is_completed_by_the_same_command() {
    let lab = Lab::new();
    let image = lab.path("vm.img");
    make(&image, 8 * MIB);
    put(&image, 0, &noise(5, 8 * MIB));
    lab.run(&["snapshot", &image]).done();
    let delta = format!("{}/{}", lab.path("repo/vm"), lab.named("vm")[0]);
    let whole = std::fs::read(&delta).unwrap();
    let fake = Fake::new(Config::default(), &noise(6, 8 * MIB));
    let mut targets = vec![fake.uri().to_string()];
    let device = Loop::of_noise(&lab.path("device"), 8 * MIB, 7);
    match &device {
        Ok(device) => targets.push(device.device.clone()),
        Err(why) => skipped("a_target_that_is_half_written", why),
    }
    for target in &targets {
        for more in [&[][..], &["--range", "1048576+7340032"]] {
            let args = ["restore", "vm@1", "-o", target, "--force"];
            let args = [&args[..], more, &["--threads", "1"]].concat();
            // In the last of its frames.
            let mut damaged = whole.clone();
            damaged[whole.len() - (256 << 10)] ^= 1;
            std::fs::write(&delta, damaged).unwrap();
            let again = args[..args.len() - 2].join(" ");
            let told = format!("{target} is only partly written: run \"imgsnap {again}\" again");
            lab.run(&args).fails(3).says(&told);
            std::fs::write(&delta, &whole).unwrap();
            lab.run(&args).done();
        }
        // Nothing was written.
        let err = lab.run(&["restore", "vm@1", "-o", target]).fails(1).err;
        assert!(!err.contains("partly written"), "{err}");
    }
    let part = get(&image, MIB, 7 * MIB);
    assert!(fake.image().starts_with(&part));
    device.iter().for_each(|device| assert!(get(&device.device, 0, 7 * MIB) == part));
}

#[test]
fn a_snapshot_is_restored_to_each_kind_of_target() {
    need!(tools(&["qemu-img", "qemu-io", "qemu-nbd", "qemu-storage-daemon"]));
    let lab = Lab::new();
    let raw = raw(&lab);
    lab.run(&["snapshot", &raw, "--name", "vm"]).done();
    for (name, options, format) in [
        ("a.qcow2", &[][..], "qcow2"),
        ("b.img", &["--format", "qcow2"], "qcow2"),
        ("c.qcow2", &["--compress", "zlib"], "qcow2"),
        ("d.qcow2", &["--compress", "zstd"], "qcow2"),
        ("e.qcow2", &["--format", "raw"], "raw"),
        ("f.img", &[], "raw"),
    ] {
        let path = lab.path(name);
        lab.run(&[&["restore", "vm@1", "-o", &path], options].concat()).done();
        same_disk(("raw", &raw), (format, &path));
        if format == "qcow2" {
            tool("qemu-img", &["check", "-q", "-f", "qcow2", &path]);
        }
        // It is there already, and differs here and there.
        qemu_io(format, &path, &["write -P 7 1000k 64k", "write -P 6 3M 4k", "write -z 0 8k"]);
        let before = std::fs::metadata(&path).unwrap().len();
        let args = ["restore", "vm@1", "-o", &path, "--update", "--json"];
        let more: &[&str] = match name {
            "e.qcow2" => &["--format", "raw"],
            // Its name does not say so.
            "b.img" => &["--format", "qcow2"],
            _ => &[],
        };
        let done = lab.run(&[&args[..], more].concat()).json();
        // 1,000 KiB is within a block of data; what was data at its end, and zeros behind.
        assert_eq!(done["written_bytes"], 76 << 10, "{name}: {done}");
        same_disk(("raw", &raw), (format, &path));
        let grown = std::fs::metadata(&path).unwrap().len().saturating_sub(before);
        assert!(grown <= 256 << 10, "{name} has grown by {grown}");
    }
    // A raw disk whose guest wrote a header.
    let odd = lab.path("odd.img");
    make(&odd, BYTES);
    put(&odd, 0, b"QFI\xfb\0\0\0\x03");
    lab.run(&["restore", "vm@1", "-o", &odd, "--update"]).fails(1).says("--format raw");
    lab.run(&["restore", "vm@1", "-o", &odd, "--update", "--format", "raw", "--force"]).done();
    same_disk(("raw", &raw), ("raw", &odd));
    for args in [
        &["-o", "x.vmdk", "--format", "vmdk"][..],
        &["-o", "nbd://host/x", "--format", "qcow2"],
        &["-o", "s3://b/x"],
    ] {
        lab.run(&[&["restore", "vm@1"], args].concat()).fails(1);
        assert!(!std::path::Path::new(&lab.path("x.vmdk")).exists());
    }
    let small = lab.path("small.qcow2");
    tool("qemu-img", &["create", "-q", "-f", "qcow2", &small, "1M"]);
    let update = ["restore", "vm@1", "-o", &small, "--update", "--force", "--format", "qcow2"];
    let line = failed(lab.run(&update));
    assert!(line.contains("has 1048576 bytes") && line.contains("use a larger image"), "{line}");
    // Somebody reads it: QEMU does not write to it.
    let reader = Export::of(&lab, "qcow2", &small, &["-r"]);
    let line = lab.run(&update).fails(4).err;
    assert!(line.contains("small.qcow2 is in use") && !line.contains('{'), "{line}");
    reader.end();
    // An export that holds nothing of it.
    let disk = lab.path("empty.img");
    make(&disk, BYTES + MIB);
    let export = Export::of(&lab, "raw", &disk, &[]);
    let uri = export.uri.clone();
    let line = failed(lab.run(&["restore", "vm@1", "-o", &uri, "--update"]));
    assert!(line.contains("does not seem to hold"), "{line}");
    lab.run(&["restore", "vm@1", "-o", &uri, "--force"]).done().says("1.00 MiB were not changed");
    let done = lab.run(&["restore", "vm@1", "-o", &uri, "--update", "--json"]).json();
    assert_eq!(done["written_bytes"], 0, "{done}");
    qemu_io("raw", &uri, &["write -P 7 64k 64k"]);
    let done = lab.run(&["restore", "vm@1", "-o", &uri, "--update", "--json"]).json();
    assert_eq!(done["written_bytes"], 64 << 10, "{done}");
    export.end();
    same_disk(("raw", &raw), ("raw", &disk));
}

/// A qcow2 file of which a snapshot was taken, and the raw disk that is in it.
fn qcow2(lab: &Lab) -> (String, String) {
    let raw = raw(lab);
    let disk = lab.path("vm.qcow2");
    tool("qemu-img", &["convert", "-O", "qcow2", &raw, &disk]);
    (disk, raw)
}

#[test]
fn how_a_disk_lies_in_its_image_outlives_the_snapshots_that_told_so() {
    need!(tools(&["qemu-img", "qemu-io", "qemu-storage-daemon"]));
    let lab = Lab::new();
    let (disk, raw) = qcow2(&lab);
    // First as a raw image, then converted in place.
    let image = lab.path("vm.img");
    std::fs::copy(&raw, &image).unwrap();
    lab.run(&["snapshot", &image]).done();
    std::fs::copy(&disk, &image).unwrap();
    let taken = lab.run(&["snapshot", &image, "--format", "qcow2", "--json"]).json();
    assert_eq!(taken["changed_bytes"], 0, "{taken}");
    for _ in 0..2 {
        lab.run(&["snapshot", &image]).done();
    }
    lab.run(&["delete", "vm@2"]).done();
    lab.run(&["prune", "vm", "--keep-last", "1", "--compact"]).done();
    qemu_io("qcow2", &image, &["write -P 7 300k 64k"]);
    assert_eq!(lab.run(&["snapshot", &image, "--json"]).json()["changed_bytes"], 64 << 10);
    lab.run(&["flatten", "vm@latest"]).done();
    lab.run(&["rollback", "vm", "--to", "@4"]).done();
    same_disk(("raw", &raw), ("qcow2", &image));
    // All that told so is lost: then it is asked for.
    let folder = format!("{}/vm", lab.repo);
    for name in names_in(&folder).iter().filter(|name| name.starts_with("manifest")) {
        std::fs::remove_file(format!("{folder}/{name}")).unwrap();
    }
    lab.run(&["repair", "vm"]).done();
    for args in [&["snapshot", &image][..], &["rollback", "vm", "--to", "@4"]] {
        let line = failed(lab.run(args));
        assert!(line.contains("qcow2"), "{line}");
    }
    same_disk(("raw", &raw), ("qcow2", &image));
    lab.run(&["relink", "vm", &image, "--format", "qcow2"]).done();
    assert_eq!(lab.run(&["snapshot", &image, "--json"]).json()["changed_bytes"], 0);
}

#[test]
fn what_is_known_of_a_file_in_one_format_says_nothing_of_another() {
    need!(tools(&["qemu-img"]));
    let lab = Lab::new();
    let (disk, raw) = qcow2(&lab);
    lab.run(&["snapshot", &disk, "--format", "raw"]).done();
    lab.run(&["snapshot", &disk, "--format", "qcow2"]).done();
    same_disk(("raw", &lab.restore("vm@2")), ("raw", &raw));
    lab.run(&["snapshot", &disk, "--format", "raw"]).done();
    same(&lab.restore("vm@3"), &disk);
}

#[test]
fn a_restore_to_the_place_of_the_live_image_is_as_that_was() {
    need!(tools(&["qemu-img", "qemu-storage-daemon"]));
    let lab = Lab::new();
    let (disk, raw) = qcow2(&lab);
    let image = lab.path("lv.img");
    std::fs::copy(&disk, &image).unwrap();
    lab.run(&["snapshot", &image]).done();
    lab.run(&["restore", "lv@1", "-o", &image, "--force"]).done();
    same_disk(("raw", &raw), ("qcow2", &image));
    lab.run(&["rollback", "lv", "--to", "@1"]).done();
    std::fs::remove_file(&image).unwrap();
    lab.run(&["rollback", "lv", "--to", "@1"]).fails(1).says("--format qcow2");
    lab.run(&["restore", "lv@1", "-o", &image]).done();
    same_disk(("raw", &raw), ("qcow2", &image));
    let odd = lab.path("rw.qcow2");
    std::fs::copy(&raw, &odd).unwrap();
    lab.run(&["snapshot", &odd]).done();
    lab.run(&["restore", "rw@1", "-o", &odd, "--force"]).done();
    same(&raw, &odd);
}

#[test]
fn a_qcow2_is_written_with_the_care_that_a_raw_image_is() {
    need!(tools(&["qemu-img", "qemu-io", "qemu-storage-daemon"]));
    use std::os::unix::fs::{PermissionsExt, lchown, symlink};
    let lab = Lab::new();
    let (disk, _raw) = qcow2(&lab);
    std::fs::set_permissions(&disk, PermissionsExt::from_mode(0o640)).unwrap();
    lab.run(&["snapshot", &disk]).done();
    qemu_io("qcow2", &disk, &["write -P 7 300k 64k"]);
    lab.run(&["rollback", "vm", "--to", "@1"]).done();
    // What was saved before has its owner and mode.
    let saved = lab.run(&["show", "vm@2", "--json"]).json();
    assert_eq!(saved["attributes"]["mode"], "0640", "{saved}");
    // Another file in its place.
    let other = lab.path("other.qcow2");
    std::fs::copy(&disk, &other).unwrap();
    std::fs::rename(&other, &disk).unwrap();
    lab.run(&["rollback", "vm", "--to", "@2"]).fails(1).says("replaced by another file");
    lab.run(&["relink", "vm", &disk]).done();
    // A link that somebody else made.
    need!(root());
    let folder = lab.path("shared");
    std::fs::create_dir(&folder).unwrap();
    std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o1777)).unwrap();
    let link = format!("{folder}/l.qcow2");
    symlink(&disk, &link).unwrap();
    lchown(&link, Some(65534), Some(65534)).unwrap();
    let before = std::fs::read(&disk).unwrap();
    let args = ["restore", "vm@2", "-o", &link, "--update", "--format", "qcow2", "--force"];
    let code = lab.run(&args).code();
    assert!(code != Some(0) && std::fs::read(&disk).unwrap() == before, "{code:?}");
}

#[test]
fn a_qcow2_has_whole_sectors_and_keeps_its_length() {
    need!(tools(&["qemu-img", "qemu-storage-daemon"]));
    let lab = Lab::new();
    let image = lab.path("vm.img");
    make(&image, 1_000_001);
    put(&image, 0, &noise(3, 1_000_001));
    lab.run(&["snapshot", &image]).done();
    let disk = lab.path("vm.qcow2");
    lab.run(&["restore", "vm@1", "-o", &disk]).done();
    lab.run(&["relink", "vm", &disk, "--format", "qcow2"]).done();
    let taken = lab.run(&["snapshot", &disk, "--json"]).json();
    assert_eq!((&taken["number"], &taken["image_bytes"]), (&2.into(), &1_000_448.into()));
    for more in [&[][..], &["--prove"]] {
        lab.run(&[&["rollback", "vm", "--to", "@1"], more].concat()).done();
        let back = lab.path("back.img");
        tool("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", &disk, &back]);
        same_start(&image, &back, 1_000_001);
    }
    tool("qemu-img", &["resize", "-q", "-f", "qcow2", &disk, "2M"]);
    lab.run(&["rollback", "vm", "--to", "@2"]).fails(1).says("qemu-img resize");
    tool("qemu-img", &["resize", "-q", "--shrink", "-f", "qcow2", &disk, "1000448"]);
    lab.run(&["rollback", "vm", "--to", "@2"]).done();
}

/// Whatever a server does wrong, what is stored is what it has, or nothing is; and of a medium that is bad here and
/// there no more is left out than it refused.
#[test]
fn of_a_server_that_does_wrong_nothing_wrong_is_stored() {
    let lab = Lab::new();
    let image = noise(5, 256 * 1024);
    for (number, wrong) in crate::nbd::WRONGS.iter().enumerate() {
        // Whoever is silent is waited for; who says in good order that data is zeros is believed.
        let is_slow = matches!(wrong, Wrong::Stall | Wrong::StallInside | Wrong::Drip);
        if is_slow || matches!(wrong, Wrong::CutFromThen | Wrong::Status) {
            continue;
        }
        for (at, options) in [(3, &[][..]), (40 + number as u64, &["--skip-bad"])] {
            let what = format!("{wrong:?} at request {at}");
            let wrong_at = Some((*wrong, at));
            let config = Config { sizes: Some((512, 1024)), wrong: wrong_at, ..Config::default() };
            let fake = Fake::new(config, &image);
            let (uri, name) = (fake.uri().to_string(), format!("vm{number}-{at}"));
            let snapshot = [&["snapshot", &uri, "--name", &name, "--json"], options].concat();
            let run = lab.run(&snapshot);
            if run.code() != Some(0) {
                let lines = run.err.lines().filter(|line| line.contains("error:")).count();
                assert_eq!(lines, 1, "{what}: {}", run.err);
                lab.run(&["show", &format!("{name}@1")]).fails(1);
                continue;
            }
            let taken = run.json();
            let to = lab.path("restored");
            let back = ["restore", &format!("{name}@1"), "-o", &to, "--force", "--accept-unread"];
            lab.run(&back).done();
            let restored = std::fs::read(&to).unwrap();
            let unread = taken["unread_blocks"].as_u64().unwrap();
            assert!(unread <= 1, "{what}: {taken}");
            let differing = restored.chunks(4096).zip(image.chunks(4096)).filter(|(a, b)| a != b);
            let differing: Vec<&[u8]> = differing.map(|(restored, _)| restored).collect();
            assert_eq!(differing.len() as u64, unread, "{what}: {taken}");
            assert!(differing.concat().iter().all(|byte| *byte == 0), "{what}");
        }
    }
    lab.verify(lab.run(&["list", "--json"]).json().as_array().unwrap().len());
}

/// Killed while QEMU writes for us: QEMU ends in good order, and the same command again ends the work.
#[test]
fn a_rollback_of_a_qcow2_that_is_killed_is_completed_by_the_same_command() {
    need!(tools(&["qemu-img", "qemu-io", "qemu-storage-daemon"]));
    let lab = Lab::new();
    let (raw, disk) = (raw(&lab), lab.path("disk.qcow2"));
    tool("qemu-img", &["convert", "-O", "qcow2", &raw, &disk]);
    lab.run(&["snapshot", &disk]).done();
    let back = ["--verbose", "rollback", "disk", "--to", "@1", "--no-save"];
    for wait in [0, 1, 3, 10] {
        qemu_io("qcow2", &disk, &["write -P 7 0 4M"]);
        let mut started = lab.start(&back);
        if started.waits_for("from now on the image may be only partly rolled back") {
            std::thread::sleep(std::time::Duration::from_millis(wait));
            started.signal(Signal::SIGKILL);
        }
        started.wait();
        // QEMU lets go of the file when it has written its tables.
        let is_done = || lab.run(&back).code() != Some(4);
        assert!(wait_until(is_done), "QEMU never lets go of the file");
        lab.run(&back).done();
        same_disk(("raw", &raw), ("qcow2", &disk));
        tool("qemu-img", &["check", "-q", "-f", "qcow2", &disk]);
    }
    lab.verify(1);
}
