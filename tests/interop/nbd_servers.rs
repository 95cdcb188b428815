//! The NBD client against servers as there are: qemu-nbd, and nbdkit with filters that make it slow, restricted or
//! faulty.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;
use crate::nbd::{image, options, read_all, writable};
use crate::random::Random;
use imgsnap::base::error::ErrorKind;
use imgsnap::base::events::Context;
use imgsnap::base::units::ExtentKind;
use imgsnap::image::Source;
use imgsnap::image::nbd::{NbdDisk, NbdOptions, NbdPlace, NbdUri};
use imgsnap::image::write::{NbdInPlace, Target};
use imgsnap::tracking::{ChangeHints, ChangeList};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// A server that runs.
struct Server {
    process: Started,
    uri: NbdUri,
}

impl Server {
    fn start(tool: &str, args: &[&str], place: NbdPlace) -> Self {
        let mut process = Started::spawn(tool_command(tool, args).unwrap());
        let answers = || match &place {
            NbdPlace::Unix(path) => UnixStream::connect(path).is_ok(),
            NbdPlace::Tcp { host, port } => TcpStream::connect((host.as_str(), *port)).is_ok(),
        };
        let is_up = wait_until(|| process.is_over() || answers());
        assert!(is_up && !process.is_over(), "{tool} {args:?} does not start");
        Self { process, uri: NbdUri { place, export: String::new() } }
    }

    fn unix(tool: &str, lab: &Lab, options: &[&str], what: &[&str]) -> Self {
        let socket = lab.path("nbd.sock");
        std::fs::remove_file(&socket).ok();
        let own: &[&str] = match tool {
            "qemu-nbd" => &["-t", "-k", &socket],
            _ => &["-f", "-U", &socket],
        };
        Self::start(tool, &[own, options, what].concat(), NbdPlace::Unix(socket.clone().into()))
    }

    fn open(&self, options: NbdOptions) -> NbdDisk {
        NbdDisk::open(&self.uri, options, &Context::silent().with_threads(3)).unwrap()
    }
}

fn patient() -> NbdOptions {
    NbdOptions { stall: Duration::from_secs(60), ..options() }
}

/// An image in a file, and its bytes.
fn file(lab: &Lab, pages: usize) -> (String, Vec<u8>) {
    let (path, bytes) = (lab.path("vm.img"), image(pages));
    make(&path, bytes.len() as u64);
    for (at, page) in (0..).step_by(4096).zip(bytes.chunks(4096)) {
        if page.iter().any(|byte| *byte != 0) {
            let _calm = no_fork();
            use std::os::unix::fs::FileExt;
            std::fs::File::options()
                .write(true)
                .open(&path)
                .unwrap()
                .write_all_at(page, at)
                .unwrap();
        }
    }
    (path, bytes)
}

fn hole_bytes(disk: &NbdDisk) -> u64 {
    let (mut at, mut holes) = (0, 0);
    while at < disk.image_bytes() {
        let extent = disk.extent_at(at).unwrap();
        holes += if extent.kind == ExtentKind::Hole { extent.bytes } else { 0 };
        at += extent.bytes;
    }
    holes
}

#[test]
fn qemu_nbd_is_read_with_one_client_and_with_several() {
    need!(tools(&["qemu-nbd"]));
    let lab = Lab::new();
    let (path, bytes) = file(&lab, 700);
    for clients in ["1", "8"] {
        let server = Server::unix("qemu-nbd", &lab, &["-r", "-f", "raw", "-e", clients], &[&path]);
        let disk = server.open(patient());
        assert_eq!(disk.image_bytes(), bytes.len() as u64);
        assert!(read_all(&disk).unwrap() == bytes);
        assert!(hole_bytes(&disk) >= 4096, "{}", hole_bytes(&disk));
        let error = NbdDisk::open(&server.uri, writable(), &Context::silent());
        // The first of `-e 1` is connected still.
        let kinds = [ErrorKind::Auth, ErrorKind::Unavailable];
        assert!(kinds.contains(&error.err().unwrap().kind()));
    }
}

#[test]
fn qemu_nbd_is_read_over_tcp() {
    need!(tools(&["qemu-nbd"]));
    let lab = Lab::new();
    let (path, bytes) = file(&lab, 300);
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let args =
        ["-t", "-r", "-f", "raw", "-e", "4", "-b", "127.0.0.1", "-p", &port.to_string(), &path];
    // A name with several addresses, of which one answers.
    let place = NbdPlace::Tcp { host: "localhost".into(), port };
    let server = Server::start("qemu-nbd", &args, place);
    assert!(read_all(&server.open(patient())).unwrap() == bytes);
}

#[test]
fn dirty_bitmap_of_qemu_names_what_was_written() {
    need!(tools(&["qemu-nbd", "qemu-img", "qemu-io"]));
    let lab = Lab::new();
    let disk = lab.path("vm.qcow2");
    tool("qemu-img", &["create", "-q", "-f", "qcow2", &disk, "64M"]);
    tool("qemu-io", &["-f", "qcow2", "-c", "write -P 1 0 4M", &disk]);
    tool("qemu-img", &["bitmap", "--add", "-g", "65536", &disk, "b0"]);
    for write in ["write -P 7 1M 4096", "write -P 8 2M 128k", "write -P 9 40M 1", "write -z 3M 64k"]
    {
        tool("qemu-io", &["-f", "qcow2", "-c", write, &disk]);
    }
    let server = Server::unix("qemu-nbd", &lab, &["-r", "-f", "qcow2", "-B", "b0"], &[&disk]);
    let of = |bitmap: &str| NbdOptions { bitmap: Some(bitmap.into()), ..patient() };
    let opened = server.open(of("b0"));
    let mut changes = opened.bitmap_ranges().map(ChangeList::of).unwrap();
    let mut found = Vec::new();
    while let Some(range) = changes.next_range().unwrap() {
        found.push((range.offset, range.bytes));
    }
    let page = 64 << 10;
    assert_eq!(found, [(MIB, page), (2 * MIB, 2 * page), (3 * MIB, page), (40 * MIB, page)]);
    let mut wanted = vec![0; 64 << 20];
    wanted[..4 << 20].fill(1);
    wanted[1 << 20..][..4096].fill(7);
    wanted[2 << 20..][..128 << 10].fill(8);
    wanted[3 << 20..][..64 << 10].fill(0);
    wanted[40 << 20] = 9;
    assert!(read_all(&opened).unwrap() == wanted);
    drop(opened);
    let error = NbdDisk::open(&server.uri, of("other"), &Context::silent()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}

#[test]
fn nbdkit_is_read_through_each_filter() {
    need!(tools(&["nbdkit"]));
    let lab = Lab::new();
    let (path, bytes) = file(&lab, 300);
    let what = format!("file={path}");
    let filters: &[&[&str]] = &[
        &[],
        &["--filter=noextents"],
        &["--filter=multi-conn", "multi-conn-mode=disable"],
        &["--filter=noparallel", "serialize=connections"],
        &["--filter=delay", "delay-read=2ms", "delay-extents=5ms"],
        &["--filter=rate", "rate=80M"],
        &[
            "--filter=blocksize-policy",
            "blocksize-minimum=512",
            "blocksize-preferred=4096",
            "blocksize-maximum=64k",
            "blocksize-error-policy=error",
        ],
        &[
            "--filter=retry-request",
            "retry-request-delay=1",
            "--filter=error",
            "error-pread-rate=2%",
        ],
        &["--filter=error", "error=EIO", "error-extents-rate=100%"],
    ];
    for filters in filters {
        let (options, parameters): (Vec<&str>, Vec<&str>) =
            filters.iter().partition(|word| word.starts_with("--"));
        let rest = [&["file", &what], parameters.as_slice()].concat();
        let server = Server::unix("nbdkit", &lab, &[&["-r"], options.as_slice()].concat(), &rest);
        let disk = server.open(patient());
        assert!(read_all(&disk).unwrap() == bytes, "{filters:?}");
    }
    // Without structured replies there is no block status, either.
    let server = Server::unix("nbdkit", &lab, &["-r", "--no-sr"], &["file", &what]);
    let disk = server.open(patient());
    assert!(read_all(&disk).unwrap() == bytes);
    assert_eq!(hole_bytes(&disk), 0);
}

#[test]
fn errors_of_nbdkit_are_what_it_says() {
    need!(tools(&["nbdkit"]));
    let lab = Lab::new();
    let (path, bytes) = file(&lab, 300);
    let what = format!("file={path}");
    for (error, rate, is_bad) in [
        ("EIO", "100%", true),
        ("EIO", "30%", true),
        ("ENOMEM", "100%", false),
        ("EPERM", "100%", false),
    ] {
        let parameters = [format!("error-pread={error}"), format!("error-pread-rate={rate}")];
        let rest = ["file", &what, &parameters[0], &parameters[1]];
        let server = Server::unix("nbdkit", &lab, &["-r", "--filter=error"], &rest);
        let disk = server.open(patient());
        match read_all(&disk) {
            // It was read again.
            Ok(read) => assert!(rate != "100%" && read == bytes),
            Err(error) => {
                assert_eq!(error.is_bad_medium(), is_bad, "{error}");
                assert!(error.offset().is_some() && !error.to_string().contains('\n'), "{error}");
            }
        }
    }
}

/// Random writes and zeros, as a model has them, too.
fn write_randomly(disk: &NbdDisk, wanted: &mut [u8], turns: u64) {
    let mut target = NbdInPlace::new(disk);
    let mut random = Random(turns);
    for turn in 0..turns {
        let start = random.below(wanted.len() as u64) as usize;
        let bytes = 1 + random.below((wanted.len() - start).min(300_000) as u64) as usize;
        let range = &mut wanted[start..start + bytes];
        if turn % 2 == 0 {
            range.copy_from_slice(&random.bytes(bytes));
            target.write(start as u64, range).unwrap();
        } else {
            range.fill(0);
            target.zero(start as u64, bytes as u64).unwrap();
        }
    }
    target.finish().unwrap();
}

#[test]
fn what_is_written_is_in_the_file_behind_the_server() {
    need!(tools(&["nbdkit", "qemu-nbd", "qemu-img"]));
    let lab = Lab::new();
    let (path, bytes) = file(&lab, 400);
    // The file ends within a sector's neighbours of QEMU only where it is raw and a multiple of 512.
    let raw = format!("file={path}");
    let nbdkit: &[&[&str]] = &[
        &[],
        &["--filter=nozero"],
        &["--filter=nozero", "zeromode=notrim"],
        &[
            "--filter=blocksize-policy",
            "blocksize-minimum=512",
            "blocksize-maximum=64k",
            "blocksize-error-policy=error",
        ],
    ];
    for filters in nbdkit {
        put(&path, 0, &bytes);
        let (options, parameters): (Vec<&str>, Vec<&str>) =
            filters.iter().partition(|word| word.starts_with("--"));
        let rest = [&["file", &raw], parameters.as_slice()].concat();
        let server = Server::unix("nbdkit", &lab, &options, &rest);
        let mut wanted = bytes.clone();
        write_randomly(&server.open(NbdOptions { writable: true, ..patient() }), &mut wanted, 60);
        assert!(get(&path, 0, wanted.len() as u64) == wanted, "{filters:?}");
    }
    let disk = lab.path("vm.qcow2");
    for format in ["raw", "qcow2"] {
        put(&path, 0, &bytes);
        tool("qemu-img", &["convert", "-f", "raw", "-O", format, &path, &disk]);
        let mut server = Server::unix("qemu-nbd", &lab, &["-f", format], &[&disk]);
        let mut wanted = bytes.clone();
        write_randomly(&server.open(NbdOptions { writable: true, ..patient() }), &mut wanted, 60);
        // Flushed: nothing is lost.
        server.process.signal(nix::sys::signal::Signal::SIGKILL);
        assert!(wait_until(|| server.process.is_over()));
        tool("qemu-img", &["convert", "-f", format, "-O", "raw", &disk, &path]);
        assert!(get(&path, 0, wanted.len() as u64) == wanted, "{format}");
    }
}

#[test]
fn a_server_that_comes_back_is_read_on_and_written_to_no_more() {
    need!(tools(&["nbdkit"]));
    let lab = Lab::new();
    let (path, bytes) = file(&lab, 300);
    let what = format!("file={path}");
    let start = || Server::unix("nbdkit", &lab, &[], &["file", &what]);
    let kill = |mut server: Server| {
        server.process.signal(nix::sys::signal::Signal::SIGKILL);
        assert!(wait_until(|| server.process.is_over()));
    };
    let server = start();
    let reader = server.open(patient());
    let writer = server.open(NbdOptions { writable: true, ..patient() });
    let idle = server.open(NbdOptions { writable: true, ..patient() });
    assert!(read_all(&reader).unwrap() == bytes);
    let mut target = NbdInPlace::new(&writer);
    target.write(8192, &[5; 4096]).unwrap();
    writer.read_copied(8192, 1, &mut Vec::new()).map(|_| ()).unwrap();
    kill(server);
    let error = reader.read_copied(0, 100_000, &mut Vec::new()).map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let server = start();
    let mut wanted = bytes.clone();
    wanted[8192..12_288].fill(5);
    assert!(read_all(&reader).unwrap() == wanted);
    // What was not flushed may be lost, and is not known to be there.
    for _ in 0..2 {
        let error = target.finish().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(error.to_string().contains("may be lost"), "{error}");
    }
    // Nothing was written by this one.
    assert!(read_all(&idle).unwrap() == wanted);
    kill(server);
    set_length(&path, bytes.len() as u64 - 4096);
    let _server = start();
    let error = read_all(&idle).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
}
