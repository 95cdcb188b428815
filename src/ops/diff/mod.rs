//! The verb *diff*: how much two disks differ, and where.

pub mod engine;
pub mod types;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::Context;
use crate::image::{ImageUri, LiveImage};
use crate::ops::diff::engine::{Difference, Side, diff};
use crate::ops::diff::types::DiffSide;
use crate::repo::Repository;
use crate::repo::live_file::is_same_image;
use crate::repo::live_format::in_format_of;
use crate::repo::manifest::Manifest;
use crate::repo::session::read;

/// Compares two disks. Two images need no repository.
///
/// # Errors
/// `NotFound` if there is no such snapshot, or no repository for it; `Corrupt` if one is damaged;
/// `Unsupported` for an image in a format that may not be read; `Mismatch` for one that has not the format
/// that is recorded.
pub fn run(
    repository: Option<&Repository>,
    before: &DiffSide,
    after: &DiffSide,
    context: &Context,
) -> Result<Difference> {
    let one = open(repository, before, after, context)?;
    diff(one, open(repository, after, before, context)?, context)
}

fn open(
    repository: Option<&Repository>,
    side: &DiffSide,
    other: &DiffSide,
    context: &Context,
) -> Result<Side> {
    match side {
        DiffSide::Image(side) => {
            let manifest = manifest_of(repository, &side.image, other, context)?;
            let live = LiveImage::open(&side.image, false, None, context)?;
            let live = in_format_of(live, manifest.as_ref(), side.format, side.by, context)?;
            Ok(Side::Image(live.disk.into_source()))
        }
        DiffSide::Snapshot(reference) => {
            let nowhere = || Error::new(ErrorKind::NotFound, "a snapshot without a repository");
            let repository = repository.ok_or_else(nowhere)?;
            let reader = read(repository, &reference.name, context)?;
            Ok(Side::Snapshot(reader.chain(repository, reader.find(&reference.at)?.id)?))
        }
    }
}

/// What is recorded of an image, if `other` is a snapshot of it.
fn manifest_of(
    repository: Option<&Repository>,
    image: &ImageUri,
    other: &DiffSide,
    context: &Context,
) -> Result<Option<Manifest>> {
    let (Some(repository), DiffSide::Snapshot(reference)) = (repository, other) else {
        return Ok(None);
    };
    let reader = read(repository, &reference.name, context)?;
    let source = reader.head().source.as_ref();
    let is_of_it = source.is_some_and(|source| is_same_image(source, image));
    Ok(is_of_it.then(|| reader.manifest().clone()))
}
