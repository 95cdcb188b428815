//! The verb *diff*: how much two disks differ, and where.

pub mod engine;
pub mod types;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::Context;
use crate::image::LiveImage;
use crate::ops::diff::engine::{Difference, Side, diff};
use crate::ops::diff::types::DiffSide;
use crate::repo::Repository;
use crate::repo::session::read;

/// Compares two disks. Two images need no repository.
///
/// # Errors
/// `NotFound` if there is no such snapshot, or no repository for it; `Corrupt` if one is damaged.
pub fn run(
    repository: Option<&Repository>,
    before: &DiffSide,
    after: &DiffSide,
    context: &Context,
) -> Result<Difference> {
    let before = open(repository, before, context)?;
    diff(before, open(repository, after, context)?, context)
}

fn open(repository: Option<&Repository>, side: &DiffSide, context: &Context) -> Result<Side> {
    match side {
        DiffSide::Image(image) => {
            let live = LiveImage::open(image, false, None, context)?;
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
