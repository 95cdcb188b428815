//! What workers read: an image that stays as it is, seen at the same place by all of them.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::Context;
use crate::base::uri::Shown;
use crate::image::{Disk, ImageUri, LiveImage, RawFile, ReadBy, pinned_by};
use crate::repo::work::PlannedImage;
use std::fs::File;
use std::path::Path;

/// Opens a file that stays as it is although somebody may have it open.
///
/// # Errors
/// If it cannot be opened.
pub(super) fn open_held(path: &Path) -> Result<RawFile> {
    let file = File::open(path).map_err(|e| Error::os("open", path.shown(), e))?;
    RawFile::unguarded(file, path)
}

/// Opens what a plan says is read, and proves that it is what was planned.
///
/// # Errors
/// `Mismatch` if it was written to since.
pub(super) fn open_planned(planned: &PlannedImage, context: &Context) -> Result<Disk> {
    let unknown = || {
        let what = format!("the plan of \"{}\" says not what is read", planned.name);
        Error::new(ErrorKind::Unsupported, what)
    };
    let image = planned.source.as_ref().ok_or_else(unknown)?;
    let live = match (image, &planned.held, &planned.pinned) {
        (ImageUri::File(path), Some(_), _) | (ImageUri::File(path), _, Some(_)) => {
            LiveImage::held(open_held(path)?)
        }
        (image, ..) => LiveImage::open(image, false, None, context)?,
    };
    let by = ReadBy { via_qemu: false, backing_ok: planned.backing_ok };
    let live = live.in_format(planned.format()?, by, context)?;
    planned.fingerprint.check(&live.disk, true)?;
    Ok(live.disk)
}

/// What keeps an image as it is, in a few words; none if nothing is known to.
pub(super) fn pin_of(disk: &Disk) -> Option<String> {
    let image = disk.container()?;
    if image.is_device() {
        return None;
    }
    pinned_by(image.file(), image.path()).map(str::to_owned)
}
