//! A soak: several workers run random verbs on random images in one repository, for as long as they are
//! told, with kills, injected faults and damage, and hold everything against a plain model of bytes.
//!
//! ```text
//! cargo test --test soak                      about 20 s, as `cargo test` does
//! just soak 30m [--seed N] [--workers N]      as long as you like, in release mode
//! ```
//!
//! Each worker decides by a stream of numbers of its own, which the seed gives, so a seed leads to the same
//! steps as far as the others let it. Each command is in `soak.log`. At the first thing that is wrong it
//! says the seed and the last commands, and keeps its folder.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod command;
#[path = "../support/config.rs"]
mod config;
mod damage;
mod disk;
mod fault;
mod image;
#[path = "../support/inside.rs"]
mod inside;
#[path = "../support/json_lines.rs"]
#[allow(dead_code, reason = "for another test program")]
mod json_lines;
mod keep;
mod owner;
#[path = "../support/random.rs"]
mod random;
mod rollback;
mod state;
mod stranger;
mod travel;
mod worker;
mod world;

use clap::Parser;
use imgsnap::base::duration::parse_duration;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use worker::Worker;
use world::World;

/// Random verbs on random images, with kills and faults, held against a model.
#[derive(Parser)]
struct Args {
    /// How long, as in 30m [default: 15s]
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration)]
    time: Option<Duration>,
    /// Where the numbers begin [default: with --for another one each time, otherwise 1]
    #[arg(long)]
    seed: Option<u64>,
    /// How many work at the same time
    #[arg(long, default_value_t = 3)]
    workers: u64,
    /// Where to work [default: a temporary folder]
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Of images and repository, in a loop device: xfs, btrfs, ext4, or none
    #[arg(long, default_value = "xfs")]
    filesystem: String,
    /// What libtest takes, too: names of tests, and how they are to be run
    #[arg(hide = true)]
    names: Vec<String>,
    #[arg(long, hide = true)]
    list: bool,
    #[arg(long, hide = true)]
    nocapture: bool,
    #[arg(long, hide = true)]
    exact: bool,
    #[arg(short, long, hide = true)]
    quiet: bool,
    #[arg(long, hide = true)]
    ignored: bool,
    #[arg(long, hide = true)]
    include_ignored: bool,
    #[arg(long, hide = true)]
    test_threads: Option<usize>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let is_meant = args.names.is_empty() || args.names.iter().any(|name| "soak".contains(name));
    if args.list || args.ignored || !is_meant {
        return ExitCode::SUCCESS;
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = if args.time.is_some() { now.as_secs() % 1_000_000 } else { 1 };
    let seed = args.seed.unwrap_or(seed);
    let time = args.time.unwrap_or(Duration::from_secs(15));
    println!("soak: seed {seed}, {} workers, {:?}", args.workers, time);
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, stop.clone()).unwrap();
    }
    let folder = match &args.folder {
        Some(folder) => {
            std::fs::create_dir_all(folder).unwrap();
            tempfile::Builder::new().prefix("soak-").tempdir_in(folder).unwrap()
        }
        None => tempfile::Builder::new().prefix("imgsnap-soak-").tempdir().unwrap(),
    };
    let world = World::new(folder.path(), &args.filesystem, seed, stop.clone());
    let end = Instant::now() + time;
    let is_over = AtomicBool::new(false);
    let is_well = std::thread::scope(|threads| {
        threads.spawn(|| world.watch(&is_over));
        let work = |number| {
            let worker = Worker::new(&world, number, seed);
            move || worker.run(end)
        };
        let all: Vec<_> = (0..args.workers).map(|number| threads.spawn(work(number))).collect();
        let ended: Vec<bool> = all.into_iter().map(|thread| thread.join().is_ok()).collect();
        is_over.store(true, Ordering::Relaxed);
        ended.iter().all(|is_well| *is_well)
    });
    println!("{}", world.summary());
    let was_stopped = stop.load(Ordering::Relaxed);
    let left = if is_well && !was_stopped { world.left_over() } else { Vec::new() };
    if !left.is_empty() {
        println!("soak: left behind: {left:?}");
    } else if is_well {
        return ExitCode::SUCCESS;
    }
    println!("\nsoak: FAILED; again with: --seed {seed} --workers {}", args.workers);
    println!("{}", world.last_commands());
    let was_mounted = world.is_mounted();
    drop(world);
    let kept = folder.keep();
    println!("soak: kept {}", kept.display());
    if was_mounted {
        println!("soak: mount {}/filesystem to see images and repository", kept.display());
    }
    stop.store(true, Ordering::Relaxed);
    ExitCode::FAILURE
}
