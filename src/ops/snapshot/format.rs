//! How the disk lies in an image: found at its first snapshot, recorded, and never guessed again, because a
//! guest can write any header into a raw disk.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::{Context, WarningId};
use crate::base::message::{Setting, message};
use crate::image::{ImageFormat, LiveImage, ReadBy, Source};
use crate::ops::snapshot::types::SnapshotRequest;
use crate::repo::manifest::Manifest;

/// The disk in an image of which a snapshot is to be taken.
///
/// # Errors
/// As of [`in_format_of`].
pub(crate) fn with_format(
    live: LiveImage,
    manifest: &Manifest,
    request: &SnapshotRequest,
    context: &Context,
) -> Result<LiveImage> {
    in_format_of(live, Some(manifest), request.format, request.read_by(), context)
}

/// The disk in an image that is open: in the format that was asked for, or else as is recorded in the
/// manifest, or else as its magic says.
///
/// # Errors
/// `Unsupported` for a format that is not read, or for a first snapshot of what looks like one; `Mismatch` if
/// the image has not the format that was asked for or is recorded; `Busy` if it is in use and cannot be
/// cloned as it is.
pub(crate) fn in_format_of(
    live: LiveImage,
    manifest: Option<&Manifest>,
    format: Option<ImageFormat>,
    by: ReadBy,
    context: &Context,
) -> Result<LiveImage> {
    let looks = match live.disk.container() {
        Some(file) => ImageFormat::of(file.file(), file.image_bytes()),
        None => ImageFormat::within(live.disk.source()),
    };
    let manifest = manifest.filter(|manifest| !manifest.stored().is_empty());
    let asked = format;
    let format = match (asked, manifest) {
        (Some(format), _) => format,
        (None, None) => looks,
        (None, Some(manifest)) => recorded_format(manifest)?,
    };
    let place = live.disk.name();
    if format.is_raw() {
        if !looks.is_raw() && manifest.is_some() {
            let what = format!(
                "{place} looks like a {looks} image now; it is taken as raw, as it was before"
            );
            context.warn(WarningId::LooksForeign, what);
        }
        return Ok(live);
    }
    if looks != format && asked.is_some() {
        let what = format!("{place} is no {format} image");
        let hint = message!["it looks like ", Setting::Format.to(looks.qemu())];
        return Err(Error::new(ErrorKind::Mismatch, what).hint(hint));
    }
    if looks != format {
        let what = format!("{place} is recorded as a {format} image, and is none");
        let hint = message!["if it was converted, say so with ", Setting::Format.to(looks.qemu())];
        return Err(Error::new(ErrorKind::Mismatch, what).hint(hint));
    }
    // It was said at the first.
    let via_qemu = by.via_qemu || manifest.is_some_and(|m| m.format() == format.qemu());
    live.in_format(format, ReadBy { via_qemu, ..by }, context)
}

/// How the disk lay in the image at its newest snapshot.
///
/// # Errors
/// `Unsupported` for a format that this program does not know.
pub(crate) fn recorded_format(manifest: &Manifest) -> Result<ImageFormat> {
    let recorded = manifest.format();
    ImageFormat::recorded(recorded).ok_or_else(|| {
        let (name, format) = (&manifest.name, recorded.escape_debug());
        let what = format!("\"{name}\" is read as a {format} image");
        let hint = "a later imgsnap began it; use that one";
        Error::new(ErrorKind::Unsupported, what).hint(hint)
    })
}
