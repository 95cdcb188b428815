//! Benchmarks of the verbs, each against the ceiling of the machine, measured in the same run.
//!
//! ```text
//! ImagePlan -> image file in a scratch folder -> rounds of (work, ceiling) -> Report
//! ```
//!
//! A machine is noisy, and shared: a run of the work and a run of its ceiling follow each other, so
//! that the same noise hits both, and what is reported is the fraction of the two.

mod ceiling;
mod image;
mod meter;
mod report;
mod request;
mod rounds;
mod scratch;

pub use report::{Cache, Machine, Point, Report, Row, Sample, Setting, Sweep, Work, median};
pub use request::{Pattern, Request};

use crate::base::error::Result;
use crate::base::events::Context;
use crate::base::units::BlockSize;
use crate::base::uri::Shown;
use crate::image::{RawFile, Source};
use image::ImagePlan;
use rounds::Rounds;
use scratch::Scratch;
use std::path::PathBuf;

/// Measures, and leaves nothing behind.
///
/// # Errors
/// `LimitExceeded` if there is too little free space; whatever the verbs fail with.
pub fn run(request: &Request, context: &Context) -> Result<Report> {
    let source = request.image.as_deref().map(RawFile::open).transpose()?;
    let image_bytes = source.as_ref().map_or(request.image_bytes, Source::image_bytes);
    let plan = ImagePlan {
        image_bytes,
        compressible: request.compressible,
        pattern: request.pattern,
        seed: SEED,
    };
    let scratch = Scratch::new(&request.folder, needed_bytes(request, image_bytes))?;
    let image = scratch.file("image");
    match &source {
        Some(source) => image::copy(source, &image, context)?,
        None => plan.make(&image, context)?,
    }
    let mut points = Vec::new();
    for setting in settings(request) {
        let rounds = Rounds::new(request, setting, &scratch, &plan, image.clone(), context)?;
        points.push(rounds.run()?);
    }
    let name = |path: &PathBuf| path.shown().to_string();
    Ok(Report {
        machine: meter::machine(&request.folder),
        image_bytes,
        image: request.image.as_ref().map_or_else(|| made(request), name),
        compression: request.compression,
        sweep: request.sweep,
        points,
    })
}

/// The same image each time, on every machine.
const SEED: u64 = 20_261_121;

fn made(request: &Request) -> String {
    let pattern = match request.pattern {
        Pattern::Random => "random",
        Pattern::Clustered => "clustered",
        Pattern::Vm => "vm",
    };
    format!("made, {:.0} % compressible, {pattern} changes", request.compressible * 100.0)
}

/// The settings of the points, one after the other.
fn settings(request: &Request) -> Vec<Setting> {
    let of = request.setting;
    let block_size =
        |bytes| BlockSize::new(bytes).ok().map(|block_size| Setting { block_size, ..of });
    match request.sweep {
        None => vec![of],
        Some(Sweep::BlockSize) => [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20]
            .into_iter()
            .filter_map(block_size)
            .collect(),
        Some(Sweep::Change) => {
            [0.001, 0.01, 0.1, 1.0].into_iter().map(|change| Setting { change, ..of }).collect()
        }
        Some(Sweep::Threads) => {
            let powers = std::iter::successors(Some(1), |n| Some(n * 2));
            let mut threads: Vec<usize> = powers.take_while(|n| *n < of.threads).collect();
            threads.push(of.threads);
            threads.into_iter().map(|threads| Setting { threads, ..of }).collect()
        }
        Some(Sweep::Chain) => {
            [1, 10, 100, 1000].into_iter().map(|chain| Setting { chain, ..of }).collect()
        }
    }
}

/// The image, its base, a restored copy with its ceiling, and all deltas.
fn needed_bytes(request: &Request, image_bytes: u64) -> u64 {
    let deltas = |setting: &Setting| setting.change * setting.chain as f64;
    let most = settings(request).iter().map(deltas).fold(0.0, f64::max);
    // A block larger than 4 KiB is stored whole for a change of 4 KiB.
    let largest = settings(request).iter().map(|s| s.block_size.bytes() / 4096).max().unwrap_or(1);
    let bases = if request.cold { 2.0 } else { 1.0 };
    let images = 3.0 + bases + (most * f64::from(largest)).min(request.setting.chain as f64 + most);
    (image_bytes as f64 * images * 1.01) as u64 + (64 << 20)
}
