//! How the disk lies in an image: found at its first snapshot, recorded, and never guessed again, because a
//! guest can write any header into a raw disk.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::{Context, WarningId};
use crate::base::message::{Setting, Verb, message};
use crate::image::{ImageFormat, LiveImage, ReadBy, Source};
use crate::repo::manifest::Manifest;
use std::fmt::Display;

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
    let place = live.disk.name();
    let asked = format;
    let format = match (asked, manifest) {
        (Some(format), _) => format,
        (None, None) => looks,
        (None, Some(manifest)) => recorded_format(manifest, looks, &place)?,
    };
    if format.is_raw() {
        if !looks.is_raw() && manifest.is_some() {
            let how = if asked.is_some() { "requested" } else { "before" };
            let what =
                format!("{place} now looks like a {looks} image; it is read as raw, as {how}");
            context.warn(WarningId::LooksForeign, what);
        }
        return Ok(live);
    }
    if looks != format && asked.is_some() {
        let what = format!("{place} is not a {format} image");
        let hint = message!["it looks like ", Setting::Format.to(looks.qemu())];
        return Err(Error::new(ErrorKind::Mismatch, what).hint(hint));
    }
    refuse_other_format(format, looks, &place)?;
    // It was said at the first.
    let via_qemu = by.via_qemu || manifest.is_some_and(|m| m.format() == Some(format.qemu()));
    live.in_format(format, ReadBy { via_qemu, ..by }, context)
}

/// True if an image is read as it was at its last snapshot.
pub(crate) fn is_read_as_before(manifest: &Manifest, live: &LiveImage) -> bool {
    manifest.format().is_none_or(|format| format == live.disk.format().qemu())
}

/// How the disk lies in the live image, which `looks` so; nothing else than a raw one can look raw.
///
/// # Errors
/// `Unsupported` for a format that this program does not know; `Mismatch` if none is recorded, and it does
/// not look raw.
pub(crate) fn recorded_format(
    manifest: &Manifest,
    looks: ImageFormat,
    place: &impl Display,
) -> Result<ImageFormat> {
    let name = &manifest.name;
    let Some(recorded) = manifest.format() else {
        if looks.is_raw() {
            return Ok(looks);
        }
        let what = format!("the format of {place}, the image of \"{name}\", is no longer known");
        return Err(Error::new(ErrorKind::Mismatch, what).hint(message![
            format!("it looks like a {looks} image: run "),
            Verb::Relink.of(name).with(Setting::Image, place).with(Setting::Format, looks.qemu()),
            ", or, if it is a raw disk, with ",
            Setting::Format.to("raw"),
        ]));
    };
    ImageFormat::recorded(recorded).ok_or_else(|| {
        let format = recorded.escape_debug();
        let what = format!("\"{name}\" is read as a {format} image");
        let hint = "it was written by a later imgsnap; use that version";
        Error::new(ErrorKind::Unsupported, what).hint(hint)
    })
}

/// Fails if an image that is to be read in a format does not look like it.
///
/// # Errors
/// `Mismatch`.
pub(crate) fn refuse_other_format(
    format: ImageFormat,
    looks: ImageFormat,
    place: &impl Display,
) -> Result<()> {
    if format.is_raw() || looks == format {
        return Ok(());
    }
    let what = format!("{place} is recorded as a {format} image, but is not one");
    Err(Error::new(ErrorKind::Mismatch, what).hint(message![
        "if it was converted, take a snapshot of it with ",
        Setting::Format.to(looks.qemu()),
    ]))
}
