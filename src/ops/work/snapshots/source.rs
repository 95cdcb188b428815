//! What workers read: an image that stays as it is, seen at the same place by all of them.

use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::events::Context;
use crate::base::uri::Shown;
use crate::image::{Disk, ImageUri, LiveImage, RawFile, ReadBy, pinned_by};
use crate::repo::work::PlannedImage;
use crate::tracking::{CloneFolder, CloneStat, KeptClones, reopen};
use std::fs::File;
use std::path::Path;
use uuid::Uuid;

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
        let what = format!("the plan of \"{}\" does not say what to read", planned.name);
        Error::new(ErrorKind::Unsupported, what)
    };
    let image = planned.source.as_ref().ok_or_else(unknown)?;
    let live = match (image, &planned.held, &planned.pinned) {
        (ImageUri::File(path), _, Some(_)) if planned.clone.is_some() => {
            LiveImage::held(open_clone(planned, path)?)
        }
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

/// Opens the clone that was made for a plan.
fn open_clone(planned: &PlannedImage, path: &Path) -> Result<RawFile> {
    let gone = |why: String| {
        let what = format!("the clone of {} that was planned {why}", path.shown());
        Error::new(ErrorKind::Mismatch, what).hint("make a new plan")
    };
    if !path.exists() {
        let what = format!("there is no image {} on this host", path.shown());
        return Err(Error::new(ErrorKind::NotFound, what));
    }
    let Some(made) = &planned.clone else { return Err(gone("is not known".into())) };
    let opened = CloneFolder::beside(path).open(planned.snapshot, made).map_err(gone)?;
    RawFile::unguarded(opened, path)
}

/// Clones an image, and keeps the clone as that of the planned snapshot.
///
/// # Errors
/// `Unsupported` where nothing can be cloned.
pub(super) fn make_clone(
    clones: &KeptClones<'_>,
    live: &LiveImage,
    snapshot: Uuid,
) -> Result<(RawFile, CloneStat)> {
    let container = live.disk.container().filter(|image| !image.is_device());
    let no_file = || {
        let what = format!("{} is not a file that can be cloned", live.disk.name());
        Error::new(ErrorKind::Unsupported, what)
    };
    let image = container.ok_or_else(no_file)?;
    let made = clones.make(image.file(), image.path(), 0)?;
    let stat = clones.keep(&made, snapshot)?.stat;
    let file = reopen(made.file(), image.path())?;
    Ok((RawFile::unguarded(file, image.path())?, stat))
}

/// Removes the clone of a plan that is over. If that fails the next snapshot of the image does it.
pub(in crate::ops::work) fn remove_clone(planned: &PlannedImage) {
    let path = planned.source.as_ref().and_then(ImageUri::file);
    if let (Some(path), Some(_)) = (path, &planned.clone) {
        best_effort(CloneFolder::beside(path).remove(planned.snapshot));
    }
}

/// What keeps an image as it is, in a few words; none if nothing is known to.
pub(super) fn pin_of(disk: &Disk) -> Option<String> {
    let pinned = match disk {
        Disk::Remote(image) => image.pinned(),
        disk => {
            let image = disk.container().filter(|image| !image.is_device())?;
            pinned_by(image.file(), image.path())
        }
    };
    pinned.map(str::to_owned)
}
