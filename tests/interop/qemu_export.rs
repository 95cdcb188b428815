//! Images that QEMU reads and writes for us: each format, what is refused before QEMU is started, and servers
//! that end with us.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;
use imgsnap::image::ImageFormat;
use imgsnap::image::qemu::{QemuExport, QemuImage};
use imgsnap::{Context, Error, ErrorKind};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

const READING: &[&str] = &["qemu-img", "qemu-nbd"];
const WRITING: &[&str] = &["qemu-img", "qemu-io", "qemu-storage-daemon"];

fn format(name: &str) -> ImageFormat {
    name.parse().unwrap()
}

fn image(path: impl AsRef<Path>, name: &str) -> QemuImage {
    QemuImage::new(path.as_ref(), format(name))
}

fn read(image: &QemuImage) -> Result<QemuExport, Error> {
    let _alone = forking();
    QemuExport::read(image, &Context::silent())
}

fn write(image: &QemuImage) -> Result<QemuExport, Error> {
    let _alone = forking();
    QemuExport::write(image, &Context::silent())
}

/// A raw disk with data, text and holes.
fn raw_disk(lab: &Lab, bytes: u64) -> String {
    let raw = lab.path("disk.img");
    make(&raw, bytes);
    put(&raw, 0, &text(1, MIB));
    put(&raw, 3 * MIB, &noise(2, MIB + 4096));
    put(&raw, bytes - 8192, &noise(3, 8192));
    raw
}

#[track_caller]
fn is_same(raw: &str, export: &QemuExport) {
    tool("qemu-img", &["compare", "-f", "raw", "-F", "raw", raw, &export.uri().to_string()]);
}

#[test]
fn each_format_is_read() {
    need!(tools(READING));
    let lab = Lab::new();
    let raw = raw_disk(&lab, 8 * MIB);
    for (name, options) in [
        ("vmdk", "subformat=monolithicSparse"),
        ("vmdk", "subformat=monolithicFlat"),
        ("vmdk", "subformat=streamOptimized"),
        ("vmdk", "subformat=twoGbMaxExtentFlat"),
        ("vhdx", "subformat=dynamic"),
        ("vhdx", "subformat=fixed"),
        ("vdi", "static=off"),
        ("vpc", "subformat=dynamic,force_size=on"),
        ("vpc", "subformat=fixed,force_size=on"),
        ("qcow2", "compression_type=zstd"),
        ("qcow2", "extended_l2=on"),
        ("qcow2", "compat=0.10"),
    ] {
        let path = lab.path(&format!("disk.{name}"));
        tool("qemu-img", &["convert", "-O", name, "-o", options, &raw, &path]);
        let export = read(&image(&path, name).backing_ok(true)).unwrap_or_else(|e| panic!("{e}"));
        is_same(&raw, &export);
        export.finish().unwrap_or_else(|e| panic!("{options}: {e}"));
    }
    // In several extents.
    let raw = raw_disk(&lab, 5 << 30);
    let path = lab.path("split.vmdk");
    tool(
        "qemu-img",
        &["convert", "-O", "vmdk", "-o", "subformat=twoGbMaxExtentSparse", &raw, &path],
    );
    assert!(Path::new(&lab.path("split-s003.vmdk")).exists());
    let error = read(&image(&path, "vmdk")).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("3 other files, split-s001.vmdk first"), "{error}");
    let export = read(&image(&path, "vmdk").backing_ok(true)).unwrap();
    is_same(&raw, &export);
    // Also by another client, on several connections.
    if tools(&["nbdcopy"]).is_ok() {
        let copy = lab.path("copy.img");
        tool("nbdcopy", &[&export.uri().to_string(), &copy]);
        tool("qemu-img", &["compare", "-f", "raw", "-F", "raw", &raw, &copy]);
    }
    export.finish().unwrap();
}

#[test]
fn a_chain_is_read_as_it_is_given_and_not_as_it_says() {
    need!(tools(READING));
    need!(tools(&["qemu-io"]));
    let lab = Lab::new();
    let raw = raw_disk(&lab, 8 * MIB);
    let (base, top, data) = (lab.path("base.qcow2"), lab.path("top.qcow2"), lab.path("data.raw"));
    tool("qemu-img", &["convert", "-O", "qcow2", &raw, &base]);
    tool("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &base, &top]);
    tool("qemu-io", &["-f", "qcow2", "-c", "write -P 7 2M 100k", &top]);
    let both = lab.path("both.img");
    tool("qemu-img", &["convert", "-O", "raw", &top, &both]);
    // The name in the header leads to another file by now.
    let moved = lab.path("moved.qcow2");
    std::fs::rename(&base, &moved).unwrap();
    std::fs::write(&base, "something else").unwrap();
    let chain = image(&top, "qcow2").backing(Box::new(image(&moved, "qcow2")));
    let export = read(&chain).unwrap();
    is_same(&both, &export);
    export.finish().unwrap();

    let error = read(&image(&top, "qcow2")).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    let error = read(&image(&moved, "qcow2").backing(Box::new(image(&base, "raw")))).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");

    let split = lab.path("split.qcow2");
    let options = format!("data_file={data},data_file_raw=on");
    tool("qemu-img", &["convert", "-O", "qcow2", "-o", &options, &raw, &split]);
    let error = read(&image(&split, "qcow2")).err().unwrap();
    assert!(error.to_string().contains("depends on an external data file"), "{error}");
    let export = read(&image(&split, "qcow2").data_file(Box::new(image(&data, "raw")))).unwrap();
    is_same(&raw, &export);
}

#[test]
fn paths_are_paths_whatever_they_look_like() {
    need!(tools(READING));
    let lab = Lab::new();
    let raw = raw_disk(&lab, 8 * MIB);
    let made = lab.path("disk.vmdk");
    tool("qemu-img", &["convert", "-O", "vmdk", &raw, &made]);
    let names: [&[u8]; 8] = [
        b"-rf",
        b"--socket=x",
        b"a,b=c,,d",
        b"nbd:localhost:1",
        b"json:{}",
        b"a \"b\" \\ %20\n",
        b"\xff\xfe",
        b"fdset",
    ];
    for name in names {
        let path = Path::new(&made).with_file_name(OsStr::from_bytes(name));
        std::fs::rename(&made, &path).unwrap();
        let export = read(&image(&path, "vmdk")).unwrap_or_else(|e| panic!("{e}"));
        is_same(&raw, &export);
        export.finish().unwrap();
        std::fs::rename(&path, &made).unwrap();
    }
}

#[test]
fn what_is_no_image_or_refers_to_others_is_refused_with_one_line() {
    need!(tools(READING));
    let lab = Lab::new();
    let (parent, child) = (lab.path("parent.vmdk"), lab.path("child.vmdk"));
    tool("qemu-img", &["create", "-q", "-f", "vmdk", &parent, "4M"]);
    tool("qemu-img", &["create", "-q", "-f", "vmdk", "-F", "vmdk", "-b", &parent, &child]);
    let garbage = lab.path("garbage");
    put_new(&garbage, &noise(1, 1 << 20));
    let hostile = lab.path("hostile.vmdk");
    put_new(&hostile, b"# Disk DescriptorFile\nCID=1\nRW 10 FLAT \"/etc/passwd\" 0\n");
    for (path, name, kind, says) in [
        (&child, "vmdk", ErrorKind::Unsupported, "depends on a parent"),
        (&hostile, "vmdk", ErrorKind::Unsupported, "has extents that are not files in its folder"),
        (&garbage, "vhdx", ErrorKind::Io, "qemu-nbd cannot open"),
        (&garbage, "qcow2", ErrorKind::InvalidInput, "is not a qcow2 image"),
        (&lab.path("none"), "vmdk", ErrorKind::NotFound, "cannot open"),
        (&lab.path("."), "vmdk", ErrorKind::InvalidInput, "neither a file nor a block device"),
    ] {
        let error = read(&image(path, name).backing_ok(true)).err().unwrap();
        let said = error.to_string();
        assert_eq!(error.kind(), kind, "{said}");
        assert!(said.contains(says) && !said.contains('\n'), "{said}");
        assert!(!said.contains("imgsnap-nbd-") && !said.contains("json"), "{said}");
    }
}

fn put_new(path: &str, bytes: &[u8]) {
    make(path, 0);
    put(path, 0, bytes);
}

#[test]
fn a_qcow2_is_written_and_its_backing_file_is_not() {
    need!(tools(WRITING));
    let lab = Lab::new();
    let raw = raw_disk(&lab, 8 * MIB);
    let (base, top) = (lab.path("base.qcow2"), lab.path("top,1.qcow2"));
    tool("qemu-img", &["convert", "-O", "qcow2", &raw, &base]);
    tool("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &base, &top]);
    let before = std::fs::read(&base).unwrap();
    let chain = image(&top, "qcow2").backing(Box::new(image(&base, "qcow2")));
    let export = write(&chain).unwrap_or_else(|e| panic!("{e}"));
    let uri = export.uri().to_string();
    // One who reads does not get it now, and another one who writes neither.
    for error in [read(&chain).err().unwrap(), write(&chain).err().unwrap()] {
        assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
        assert!(error.to_string().contains("is in use: Failed to get "), "{error}");
        assert!(!error.to_string().contains('{'), "{error}");
    }
    tool(
        "qemu-io",
        &["-f", "raw", "-c", "write -P 9 1M 2M", "-c", "write -z -u 3M 1M", "-c", "flush", &uri],
    );
    export.finish().unwrap();
    assert_eq!(std::fs::read(&base).unwrap(), before);
    put(&raw, MIB, &vec![9; 2 << 20]);
    put(&raw, 3 * MIB, &vec![0; 1 << 20]);
    tool("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &raw, &top]);
    tool("qemu-img", &["check", "-f", "qcow2", &top]);

    // What is zeroed gives its clusters back.
    let alone = lab.path("alone.qcow2");
    tool("qemu-img", &["convert", "-O", "qcow2", &raw, &alone]);
    let export = write(&image(&alone, "qcow2")).unwrap();
    let uri = export.uri().to_string();
    let used = allocated(&alone);
    tool(
        "qemu-io",
        &["-f", "raw", "-c", "write -z -u 0 8M", "-c", "write -P 0 0 1M", "-c", "flush", &uri],
    );
    export.finish().unwrap();
    assert!(allocated(&alone) < used / 2, "{used} bytes, and then {}", allocated(&alone));
    tool("qemu-img", &["check", "-f", "qcow2", &alone]);
}

#[test]
fn it_lives_as_long_as_its_owner_whichever_thread_started_it() {
    need!(tools(READING));
    let lab = Lab::new();
    let raw = raw_disk(&lab, 8 * MIB);
    let path = lab.path("disk.vdi");
    tool("qemu-img", &["convert", "-O", "vdi", &raw, &path]);
    let of_thread = image(&path, "vdi");
    let export = std::thread::spawn(move || read(&of_thread).unwrap()).join().unwrap();
    is_same(&raw, &export);
    let id = export.process_id();
    drop(export);
    assert!(!Path::new(&format!("/proc/{id}")).exists(), "it is ended, and its end was taken");

    // It ends by itself: what it said last, or how it ended, is known.
    let export = read(&image(&path, "vdi")).unwrap();
    assert!(export.failure().is_none());
    kill(Pid::from_raw(i32::try_from(export.process_id()).unwrap()), Signal::SIGKILL).unwrap();
    assert!(wait_until(|| export.failure().is_some()));
    let error = export.finish().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("qemu-nbd ended while it served"), "{error}");

    let stopped = Context::new(Arc::new(Nobody), Arc::new(AtomicBool::new(true)));
    let _alone = forking();
    let error = QemuExport::read(&image(&path, "vdi"), &stopped).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Interrupted);
}

struct Nobody;

impl imgsnap::Observer for Nobody {
    fn observe(&self, _: imgsnap::Event) {}
}

/// What the tests below start as a process of its own. It says what came of it in a file.
#[test]
fn helper() {
    let Some(mode) = std::env::var_os("IMGSNAP_EXPORT") else { return };
    let path = std::env::var("IMGSNAP_EXPORT_IMAGE").unwrap();
    let context = Context::silent();
    let started = match mode.to_str().unwrap() {
        "write" => QemuExport::write(&image(&path, "qcow2"), &context),
        _ => QemuExport::read(&image(&path, "qcow2"), &context),
    };
    let said = match &started {
        Ok(export) => format!("{} {}", export.process_id(), export.uri()),
        Err(error) => error.to_string(),
    };
    let told = format!("{path}.said");
    std::fs::write(format!("{told}.new"), said).unwrap();
    std::fs::rename(format!("{told}.new"), told).unwrap();
    while started.is_ok() && mode != "once" {
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}

/// Runs it, and gives what it said.
fn start_helper(
    lab: &Lab,
    mode: &str,
    path: &str,
    change: impl Fn(&mut Command),
) -> (Started, String) {
    let told = format!("{path}.said");
    std::fs::remove_file(&told).ok();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "qemu_export::helper"]);
    command.env("IMGSNAP_EXPORT", mode).env("IMGSNAP_EXPORT_IMAGE", path);
    command.env_remove("XDG_RUNTIME_DIR").env("TMPDIR", lab.path("tmp"));
    change(&mut command);
    let mut started = Started::spawn(command);
    assert!(wait_until(|| Path::new(&told).exists() || started.is_over()));
    (started, std::fs::read_to_string(&told).unwrap())
}

#[test]
fn killed_we_leave_no_server_and_what_we_leave_is_cleared_away() {
    need!(tools(READING));
    need!(tools(WRITING));
    let lab = Lab::new();
    std::fs::create_dir(lab.path("tmp")).unwrap();
    let path = lab.path("vm.qcow2");
    tool("qemu-img", &["create", "-q", "-f", "qcow2", &path, "64M"]);
    for mode in ["read", "write"] {
        let (helper, said) = start_helper(&lab, mode, &path, |_| {});
        let (id, uri) = said.split_once(' ').unwrap_or_else(|| panic!("{said}"));
        let id: u32 = id.parse().unwrap();
        if mode == "write" {
            // Not flushed.
            tool("qemu-io", &["-f", "raw", "-c", "write -P 5 1M 20M", uri]);
        }
        assert!(matches!(state_of(id), Some('S' | 'R' | 'D')));
        helper.signal(Signal::SIGKILL);
        assert!(helper.wait().is_killed());
        // Whoever inherits it may take its end late.
        let is_gone = || matches!(state_of(id), None | Some('Z' | 'X'));
        assert!(wait_until(is_gone), "{mode}: the server lives on");
        assert_eq!(names_in(&lab.path("tmp")).len(), 1);
        // The next one is not disturbed, and clears up.
        let (helper, said) = start_helper(&lab, "once", &path, |_| {});
        helper.wait();
        assert!(said.contains("nbd+unix://"), "{said}");
        assert!(names_in(&lab.path("tmp")).is_empty(), "{:?}", names_in(&lab.path("tmp")));
        tool("qemu-img", &["check", "-f", "qcow2", &path]);
    }
    let out = tool("qemu-io", &["-r", "-f", "qcow2", "-c", "read -P 5 1M 20M", &path]);
    assert!(!out.contains("failed"), "{out}");
}

#[test]
fn a_missing_program_is_named_with_what_to_install() {
    need!(tools(&["qemu-img"]));
    let lab = Lab::new();
    std::fs::create_dir(lab.path("tmp")).unwrap();
    let path = lab.path("vm.qcow2");
    tool("qemu-img", &["create", "-q", "-f", "qcow2", &path, "1M"]);
    for (mode, says) in [
        ("once", "qemu-nbd is needed to read the qcow2 image"),
        ("write", "qemu-storage-daemon is needed to write to the qcow2 image"),
    ] {
        let (helper, said) = start_helper(&lab, mode, &path, |command| {
            command.env("PATH", "/nonexistent");
        });
        helper.wait();
        assert!(said.starts_with(says) && said.contains("install qemu-utils"), "{said}");
        assert!(names_in(&lab.path("tmp")).is_empty());
    }
}
