//! The verb *apply*: delta files, and the image that they begin from, to the image that they give. It needs
//! no repository, and writes into none.

pub mod engine;
pub mod types;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::Context;
use crate::base::free_space::free_space_at;
use crate::base::message::{Setting, message};
use crate::base::uri::Shown;
use crate::image::write::NewFile;
use crate::image::{RawFile, Source};
use crate::ops::apply::engine::Patch;
use crate::ops::apply::types::{Applied, ApplyRequest, ApplyTarget};
use crate::repo::Repository;
use crate::repo::inside::{refuse_inside_any, refuse_target};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Makes an image of delta files. With a repository, nothing that it needs is overwritten.
///
/// # Errors
/// `Mismatch` if the files do not follow each other, or the image is not what they begin from; `Corrupt` if
/// one is damaged. Then a new file does not appear.
pub fn run(
    repository: Option<&Repository>,
    request: &ApplyRequest,
    target: ApplyTarget<'_>,
    context: &Context,
) -> Result<Applied> {
    let patch = Patch::open(&request.deltas, context)?;
    let refuse = |path: &Path| match repository {
        Some(repository) => refuse_target(repository, path),
        None => refuse_inside_any(path),
    };
    let base = || request.base.as_ref().map(|base| RawFile::open(base)).transpose();
    match target {
        ApplyTarget::InPlace => {
            let Some(base) = &request.base else {
                let what = "no image to change was given";
                return Err(Error::new(ErrorKind::InvalidInput, what)
                    .hint(message!["give one with ", Setting::Base]));
            };
            refuse(base)?;
            patch.write_in_place(&RawFile::open_to_write(base)?, context)
        }
        ApplyTarget::Path(path) => {
            refuse(path)?;
            let base = base()?;
            let base_bytes = base.as_ref().map_or(0, allocated_bytes);
            let mut target = NewFile::create(path, patch.image_bytes(), request.force)?;
            let place = path.shown().to_string();
            patch.check_free_space(base_bytes, free_space_at(path), &place)?;
            patch.write(base.as_ref(), &mut target, context)
        }
        ApplyTarget::Target(target) => patch.write(base()?.as_ref(), target, context),
    }
}

/// Bytes of an image that are no holes.
fn allocated_bytes(image: &RawFile) -> u64 {
    let blocks = image.file().metadata().map_or(u64::MAX / 512, |meta| meta.blocks());
    if image.is_device() { image.image_bytes() } else { blocks * 512 }
}
