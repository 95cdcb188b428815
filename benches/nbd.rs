//! An unchanged image over NBD on a unix socket: `nbdcopy URI null:`, every window read, and the whole scan
//! against the snapshot before, by turns. Not by criterion: each turn reads all of a gigabyte, and the server is
//! another process.
//!
//! ```text
//! cargo bench -p imgsnap-benches --bench nbd        # IMGSNAP_NBD_MIB=2048 for two
//! ```

#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing)]

mod support;

use imgsnap::base::events::Context;
use imgsnap::base::pipeline::ordered_map;
use imgsnap::delta::Caches;
use imgsnap::image::Source;
use imgsnap::image::nbd::{NbdDisk, NbdOptions, NbdPlace, NbdUri};
use imgsnap::scan::{BadMedium, Index, Scope, scan};
use std::cell::RefCell;
use std::hint::black_box;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use support::chain::{ChainMaker, Content};
use support::{Image, Shape};

const TURNS: usize = 7;

/// A server that ends when it is dropped.
struct Server(Child);

impl Server {
    fn start(image: &Path, socket: &Path, clients: &str) -> Self {
        let mut command = Command::new("qemu-nbd");
        command.args(["-r", "-t", "-f", "raw", "-e", clients, "-k"]).arg(socket).arg(image);
        let child = command.stdout(Stdio::null()).spawn().expect("qemu-nbd is installed");
        while !socket.exists() {
            std::thread::sleep(Duration::from_millis(10));
        }
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn timed(work: impl FnOnce()) -> f64 {
    let begin = Instant::now();
    work();
    begin.elapsed().as_secs_f64()
}

fn median(seconds: &mut [f64]) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn read_all(disk: &NbdDisk, context: &Context) {
    let window = disk.best_read_bytes();
    let mut offsets = (0..disk.image_bytes()).step_by(window as usize);
    let read = |offset: u64| {
        let bytes = window.min(disk.image_bytes() - offset);
        BUFFER.with_borrow_mut(|buffer| {
            black_box(disk.read(offset, bytes as usize, buffer)?.bytes().len());
            Ok(())
        })
    };
    let threads = context.threads();
    ordered_map(threads, threads + 2, || Ok(offsets.next()), read, Ok).unwrap();
}

fn main() {
    imgsnap::share_heaps();
    let mib = std::env::var("IMGSNAP_NBD_MIB").map_or(1024, |mib| mib.parse::<u64>().unwrap());
    let context = Context::silent();
    let image = Image::new(Shape::Scattered, mib << 20);
    let maker = ChainMaker::new(&image, Content::Tables);
    let chain = maker.open(1, &Caches::default());
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = folder.path().join("vm.img");
    image.write(&path, 0..image.block_count());
    for clients in ["1", "8"] {
        let socket = folder.path().join(format!("nbd{clients}.sock"));
        let _server = Server::start(&path, &socket, clients);
        let uri = NbdUri { place: NbdPlace::Unix(socket), export: String::new() };
        let disk = || NbdDisk::open(&uri, NbdOptions::default(), &context).unwrap();
        let (mut copies, mut reads, mut scans) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..TURNS {
            copies.push(timed(|| {
                let done = Command::new("nbdcopy").arg(uri.to_string()).arg("null:").status();
                assert!(done.unwrap().success());
            }));
            reads.push(timed(|| read_all(&disk(), &context)));
            scans.push(timed(|| {
                let (disk, index) = (disk(), Index::Parent(&chain));
                let consume = |changes: &imgsnap::scan::Changes| {
                    assert!(changes.list.is_empty());
                    Ok(())
                };
                scan(&disk, &index, Scope::Whole, BadMedium::Fail, &context, consume).unwrap();
            }));
        }
        // Of each turn on its own: what else the machine does meanwhile is the same.
        let of_copies = |seconds: &[f64]| {
            median(
                &mut copies.iter().zip(seconds).map(|(copy, own)| copy / own).collect::<Vec<_>>(),
            )
        };
        let ratios = (of_copies(&reads), of_copies(&scans));
        let rate = |seconds: &mut [f64]| mib as f64 / 1024.0 / median(seconds);
        println!(
            "{clients} client(s): nbdcopy {:.2} GiB/s; reads {:.2} ({:.2} of it); scan {:.2} ({:.2})",
            rate(&mut copies),
            rate(&mut reads),
            ratios.0,
            rate(&mut scans),
            ratios.1
        );
    }
}
