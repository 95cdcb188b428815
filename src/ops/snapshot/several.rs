//! Snapshots of several images at once. They share the threads and the memory that one would have.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::{Context, Phase};
use crate::base::pipeline::ordered_map;
use crate::image::ImageUri;
use crate::ops::snapshot;
use crate::ops::snapshot::types::{SnapshotOutcome, SnapshotRequest};
use crate::repo::Repository;
use std::fs::{File, Metadata};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// Images that are worked on at a time. Each has at least two of everything that is in flight: four
/// stay within the memory that is promised (README.md, "Guarantees"), and more would only take turns.
const AT_ONCE: u64 = 4;

/// Takes a snapshot of each image, some at a time. What became of each is given to `each`, in the
/// order of the requests; one that fails does not stop the others. After an interrupt, each request that
/// was not processed fails with `Interrupted`.
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
            let result =
                context.check().and_then(|()| snapshot::run(repository, request, &context));
            context.leave();
            Ok((request, result))
        },
        |(request, result)| {
            each(request, result);
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
    let defaults = repository.defaults();
    let block_bytes = u64::from(defaults.block_size.bytes());
    let compressing = requests.iter().map(|request| {
        let compression = request.compression.unwrap_or(defaults.compression);
        compression.most_threads(block_bytes)
    });
    let most = compressing.min().unwrap_or(1).min(context.threads());
    (context.share_of(AT_ONCE) as usize).min(most).min(requests.len()).max(1)
}

/// Refuses requests of which two are of the same image, or have the same name in the repository.
///
/// # Errors
/// `InvalidInput` that says which.
pub fn check_distinct(requests: &[SnapshotRequest]) -> Result<()> {
    // What cannot be found or named fails by itself later.
    let name = |request: &SnapshotRequest| request.image_name().ok();
    let known: Vec<_> =
        requests.iter().map(|r| (&r.image, r.image.file().and_then(identity), name(r))).collect();
    for (index, (image, identity, name)) in known.iter().enumerate() {
        for (other, other_identity, other_name) in known.iter().take(index) {
            let refuse = |what| Err(Error::new(ErrorKind::InvalidInput, what));
            let is_same_file = identity.is_some() && identity == other_identity;
            if is_same_file || (image == other && image.file().is_none()) {
                return refuse(if image.to_string() == other.to_string() {
                    format!("{image} is given twice")
                } else {
                    format!("{other} and {image} are the same image")
                });
            }
            if let Some(name) = name
                && Some(name) == other_name.as_ref()
            {
                return refuse(format!("the name of {other} and of {image} would be \"{name}\""));
            }
        }
    }
    Ok(())
}

/// The same for all paths that lead to a file or device.
fn identity(path: &Path) -> Option<(bool, u64, u64)> {
    let meta = std::fs::metadata(path).ok()?;
    if is_device(&meta) {
        return Some((true, meta.rdev(), 0));
    }
    Some((false, meta.dev(), meta.ino()))
}

fn is_device(meta: &Metadata) -> bool {
    meta.file_type().is_block_device()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(requests: &[SnapshotRequest]) -> String {
        check_distinct(requests).map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn the_same_image_or_name_twice_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let request = |name: &str| SnapshotRequest { image: at(name).into(), ..Default::default() };
        for name in ["a.img", "b.img"] {
            std::fs::write(at(name), name).unwrap();
        }
        std::fs::create_dir(at("more")).unwrap();
        std::fs::write(at("more/a.raw"), "another").unwrap();
        std::os::unix::fs::symlink(at("a.img"), at("symbolic")).unwrap();
        std::fs::hard_link(at("a.img"), at("hard")).unwrap();
        let three = |third| [request("b.img"), request("a.img"), request(third)];
        assert_eq!(refused(&three("a.img")), format!("{} is given twice", at("a.img").display()));
        for link in ["symbolic", "hard"] {
            assert!(refused(&three(link)).ends_with("are the same image"), "{link}");
        }
        assert!(refused(&three("more/a.raw")).ends_with("a.raw would be \"a\""));
        assert_eq!(refused(&three("missing")), "");
        let mut named = three("more/a.raw");
        named[2].name = Some("c".into());
        assert_eq!(refused(&named), "");
        named[2].name = Some("b".into());
        assert!(refused(&named).ends_with("would be \"b\""));
        // What has no name fails by itself.
        assert_eq!(refused(&[request(".x"), request(".y")]), "");
        assert!(!refused(&[request("gone"), request("gone")]).is_empty());
    }
}
