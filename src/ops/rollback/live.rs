//! The live image of a rollback: opened to be written, and seen to be what it should be.

use super::types::RollbackRequest;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::{Context, WarningId};
use crate::base::message::{Setting, Verb, message};
use crate::chain::Chain;
use crate::image::write::Medium;
use crate::image::{Disk, ImageFormat, ImageUri, RawFile, Source};
use crate::repo::head::Head;
use crate::repo::live_file::{refuse_link, refuse_other};
use crate::repo::live_format::{recorded_format, refuse_other_format};
use crate::repo::manifest::{Manifest, Snapshot};

/// Ends what was started to write. All is durable by then.
pub(super) fn close(disk: Disk, context: &Context) {
    if let Err(e) = disk.close() {
        context.warn(WarningId::ImageNotClosed, e);
    }
}

/// Opens the live image, and sees that it is what the last snapshot was taken of.
pub(super) fn open_live(
    manifest: &Manifest,
    head: &Head,
    place: &ImageUri,
    request: &RollbackRequest,
    target: &Snapshot,
    context: &Context,
) -> Result<Disk> {
    let Some(path) = place.file() else {
        return Disk::open_to_write(place, ImageFormat::RAW, request.read_by(), context);
    };
    refuse_link(&request.name, path)?;
    let file = RawFile::open_to_write(path).map_err(|e| match e.kind() {
        ErrorKind::NotFound => {
            let restore = Verb::Restore.of(format!("{}@{}", request.name, target.number));
            let mut restore = restore.with(Setting::Output, place);
            if let Some(format) = manifest.format().filter(|f| *f == ImageFormat::QCOW2.qemu()) {
                restore = restore.with(Setting::Format, format);
            }
            e.hint(message!["run ", restore, " to create it again"])
        }
        _ => e,
    })?;
    refuse_other(&request.name, head, &file, request.force_device, context)?;
    let looks = ImageFormat::of(file.file(), file.image_bytes());
    let format = recorded_format(manifest, looks, place)?;
    refuse_other_format(format, looks, place)?;
    Disk::within_to_write(file, format, request.read_by(), context)
}

/// QEMU counts in sectors: a disk of another length has up to 511 zeros behind it.
const SECTOR_BYTES: u64 = 512;

/// Bytes behind the end of the snapshot on a disk that has whole sectors, as that of a qcow2 has.
pub(super) fn padding_bytes(disk: &Disk, target: &Chain) -> u64 {
    let (have, want) = (disk.source().image_bytes(), target.geometry().image_bytes);
    let is_padded = disk.format() == ImageFormat::QCOW2 && have > want;
    if is_padded && have == want.next_multiple_of(SECTOR_BYTES) { have - want } else { 0 }
}

/// Fails if the disk can neither have the length of the snapshot nor be given it.
pub(super) fn check_length(disk: &Disk, medium: &dyn Medium, target: &Chain) -> Result<()> {
    let (have, want) = (disk.source().image_bytes(), target.geometry().image_bytes);
    let in_place = disk.in_place(medium)?;
    if in_place.has_fixed_length() && have - padding_bytes(disk, target) != want {
        let what = format!("{} has {have} bytes, but the snapshot has {want}", disk.name());
        let hint = match disk.format() == ImageFormat::QCOW2 {
            true => {
                "the disk in a qcow2 image keeps its length: take a snapshot of it, resize it with \
                     \"qemu-img resize\", and roll back"
            }
            false => "a device or export keeps its length: restore to another one",
        };
        return Err(Error::new(ErrorKind::Mismatch, what).hint(hint));
    }
    in_place.check_free_space(want)
}
