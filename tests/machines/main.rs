//! Real guests: QEMU (under TCG) with a Linux in it that writes, while imgsnap takes snapshots of it, is
//! killed, and rolls it back. What comes out is held against what must be there.
//!
//! ```text
//! just machines                          all scenarios
//! just machines killed --count 20        one of them
//! IMGSNAP_QEMU=/opt/qemu10/bin/qemu-system-x86_64 IMGSNAP_QEMU_DATA=/opt/qemu10/share/qemu just machines
//! ```
//!
//! `cargo test` alone runs none of them.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

#[path = "../interop/bytes.rs"]
#[allow(dead_code, reason = "for another test program")]
mod bytes;
mod figures;
#[path = "../support/guest/mod.rs"]
mod guest;
#[path = "../support/json_lines.rs"]
#[allow(dead_code, reason = "for another test program")]
mod json_lines;
mod judges;
mod killed;
#[path = "../interop/kit.rs"]
#[allow(dead_code, unused_imports, unused_macros, reason = "for another test program")]
mod kit;
mod numbered;
mod qmpbackup;
#[path = "../support/random.rs"]
mod random;
mod rig;
mod rollback;
mod scratch;
mod watch;

use clap::Parser;
use rig::Rig;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

/// Why a scenario could not be played, if it could not.
type Played = Result<(), String>;

type Scenario = (&'static str, fn(&Rig) -> Played);

const SCENARIOS: [Scenario; 8] = [
    ("judges", judges::run),
    ("numbered", numbered::run),
    ("killed", killed::run),
    ("scratch", scratch::run),
    ("watch", watch::run),
    ("rollback", rollback::run),
    ("figures", figures::run),
    ("qmpbackup", qmpbackup::run),
];

/// Real guests under QEMU.
#[derive(Parser)]
struct Args {
    /// Which scenarios [default: all]
    names: Vec<String>,
    /// How often something is killed
    #[arg(long, default_value_t = 100)]
    count: u64,
    /// The disk of the figures, in GiB; it and its snapshots take about three times as much
    #[arg(long, default_value_t = 8)]
    gib: u64,
    /// Where the random numbers begin [default: another one each time]
    #[arg(long)]
    seed: Option<u64>,
    /// Play them; otherwise, as `cargo test` does, nothing is done
    #[arg(long)]
    run: bool,
    /// List them
    #[arg(long)]
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
    if !args.run {
        return ExitCode::SUCCESS;
    }
    if args.list {
        SCENARIOS.iter().for_each(|(name, _)| println!("{name}"));
        return ExitCode::SUCCESS;
    }
    if let Some(unknown) = args.names.iter().find(|name| SCENARIOS.iter().all(|(n, _)| n != name)) {
        eprintln!("machines: there is no scenario {unknown}; see --list");
        return ExitCode::FAILURE;
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = args.seed.unwrap_or(now.as_secs() % 1_000_000);
    let rig = match Rig::new(seed, args.count, args.gib) {
        Ok(rig) => rig,
        Err(why) => {
            eprintln!("skipped: machines: {why}");
            return ExitCode::SUCCESS;
        }
    };
    println!("machines: {}, seed {seed}", rig.qemu);
    let is_meant = |name: &str| args.names.is_empty() || args.names.iter().any(|n| n == name);
    let mut failed = Vec::new();
    for (name, scenario) in SCENARIOS.iter().filter(|(name, _)| is_meant(name)) {
        println!("\n{name}");
        let begun = Instant::now();
        let how = match catch_unwind(AssertUnwindSafe(|| scenario(&rig))) {
            Ok(Ok(())) => "done".to_owned(),
            Ok(Err(why)) => format!("skipped: {why}"),
            Err(_) => {
                failed.push(*name);
                format!("FAILED; again with: {name} --seed {seed} --count {}", args.count)
            }
        };
        println!("{name}: {how} ({:.0} s)", begun.elapsed().as_secs_f64());
    }
    match failed.as_slice() {
        [] => ExitCode::SUCCESS,
        _ => {
            println!("\nmachines: failed: {}", failed.join(", "));
            ExitCode::FAILURE
        }
    }
}
