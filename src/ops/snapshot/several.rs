//! Snapshots of several images at once. They share the threads and the memory that one would have.

use crate::base::error::Result;
use crate::base::events::{Context, Phase};
use crate::base::pipeline::ordered_map;
use crate::image::ImageUri;
use crate::ops::snapshot::distinct::{check_distinct, is_device};
use crate::ops::snapshot::jobs::all_of;
use crate::ops::snapshot::types::{SnapshotOutcome, SnapshotRequest};
use crate::repo::Repository;
use std::fs::File;
use std::io::{Seek, SeekFrom};

/// Images that are worked on at a time. Each has at least two of everything that is in flight: four
/// stay within the memory that is promised (docs/guarantees.md, "Guarantees"), and more would only take
/// turns.
const AT_ONCE: u64 = 4;

/// Takes a snapshot of each image, some at a time. What became of each, and of each disk of a machine, is
/// given to `each`, in the order of the requests; one that fails does not stop the others. After an
/// interrupt, each request that was not processed fails with `Interrupted`.
///
/// # Errors
/// `InvalidInput` if two requests are of the same image or name; then nothing was done.
pub fn run(
    repository: &Repository,
    requests: &[SnapshotRequest],
    context: &Context,
    mut each: impl FnMut(&SnapshotRequest, Result<SnapshotOutcome>),
) -> Result<()> {
    check_distinct(requests)?;
    let at_once = at_once(repository, requests, context);
    let shared = context.clone().shared_among(requests.len(), at_once);
    let sizes: Vec<u64> = requests.iter().map(|request| bytes_of(&request.image)).collect();
    let mut jobs = requests.iter().zip(sizes.iter().copied());
    let phase = context.begin(Phase::Scan, sizes.iter().sum());
    let outcome = ordered_map(
        at_once,
        // Results are small: none that waits for an earlier one keeps the next image from beginning.
        requests.len(),
        move || Ok(jobs.next()),
        |(request, bytes)| {
            let context = shared.clone().part_of_phase(bytes);
            let result = context.check().and_then(|()| all_of(repository, request, &context));
            context.leave();
            Ok((request, result))
        },
        |(request, result)| {
            match result {
                Ok(taken) => taken.into_iter().for_each(|taken| each(request, Ok(taken))),
                Err(error) => each(request, Err(error)),
            }
            Ok(())
        },
    );
    drop(phase);
    outcome
}

/// Not more than there are threads: each needs one. Nor more than may compress at once (only blocks
/// can be larger than the frames that are usual).
pub(crate) fn at_once(
    repository: &Repository,
    requests: &[SnapshotRequest],
    context: &Context,
) -> usize {
    let defaults = repository.defaults().unwrap_or_default();
    let compressing = requests.iter().map(|request| {
        let block_bytes = request.block_size.unwrap_or(defaults.block_size).bytes().into();
        let compression = request.compression.unwrap_or(defaults.compression);
        compression.most_threads(block_bytes)
    });
    let most = compressing.min().unwrap_or(1).min(context.threads());
    (context.share_of(AT_ONCE) as usize).min(most).min(requests.len()).max(1)
}

/// Length of an image, for the progress alone: 0 if it cannot be found.
fn bytes_of(image: &ImageUri) -> u64 {
    let Some(path) = image.file() else { return 0 };
    let end = |mut device: File| device.seek(SeekFrom::End(0));
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_file() => meta.len(),
        Ok(meta) if is_device(&meta) => File::open(path).and_then(end).unwrap_or(0),
        _ => 0,
    }
}
