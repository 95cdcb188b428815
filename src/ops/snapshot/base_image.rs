//! Bases whose blocks stay in an image that is there already: twenty clones of one template cost
//! twenty deltas, and twenty tables.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::Context;
use crate::base::message::{Setting, message};
use crate::base::uri::Shown;
use crate::image::{Disk, ImageFormat, LiveImage, RawFile, Source, refuse_foreign};
use crate::ops::snapshot::prepared::prepare;
use crate::ops::snapshot::take::take_into;
use crate::ops::snapshot::types::{Moment, ParentChoice, SnapshotOutcome, SnapshotRequest};
use crate::repo::Repository;
use crate::repo::change::discard_unless_named;
use crate::repo::inside::refuse_inside;
use crate::repo::live_file::{absolute, make_durable, refuse_itself, warn_if_unguarded};
use crate::repo::manifest::Snapshot;
use crate::repo::manifest::object_name;
use crate::repo::reference::At;
use crate::repo::session::Writer;
use crate::scan::Scope;
use std::path::Path;
use std::time::Instant;
use uuid::Uuid;

/// Takes a snapshot of a clone, and of the base image that it is a clone of: one commit for both.
pub(crate) fn snapshot_on_base_image(
    repository: &Repository,
    writer: &mut Writer,
    live: &LiveImage,
    base_image: &Path,
    request: &SnapshotRequest,
    context: &Context,
) -> Result<SnapshotOutcome> {
    let before = writer.manifest.clone();
    let base = stage_base_image(repository, writer, &live.disk, base_image, request, context)?;
    writer.manifest.next_number = base.number.saturating_add(1);
    writer.manifest.snapshots.push(base.clone());
    let request = SnapshotRequest {
        parent: ParentChoice::Of(At::Number(base.number)),
        base_image: None,
        // There is no snapshot of it yet, even if it is what its base is.
        skip_unchanged: false,
        ..request.clone()
    };
    let outcome = take_into(repository, writer, live, &request, false, context);
    if outcome.is_err() {
        discard_unless_named(repository, &before.name, base.files().map(String::as_str))?;
        writer.manifest = before;
    }
    outcome
}

/// Publishes the table of a base image. No manifest names it yet.
fn stage_base_image(
    repository: &Repository,
    writer: &Writer,
    disk: &Disk,
    path: &Path,
    request: &SnapshotRequest,
    context: &Context,
) -> Result<Snapshot> {
    let path = absolute(path)?;
    let base_image = RawFile::open(&path)?;
    refuse_inside(repository, &path)?;
    disk.container().map_or(Ok(()), |live| refuse_itself(&path, live.path()))?;
    if request.format.is_none_or(|format| !format.is_raw()) {
        refuse_foreign(base_image.file(), &path, base_image.image_bytes())?;
    }
    let name = writer.manifest.name.clone();
    if !writer.manifest.snapshots.is_empty() && request.parent != ParentChoice::Full {
        let what = format!("\"{name}\" already has snapshots, and thus a base");
        return Err(Error::new(ErrorKind::InvalidInput, what)
            .hint(message!["start a new chain on the base image with ", Setting::Full]));
    }
    if request.changed.is_some() {
        let (told, setting) = request.told_by();
        let what = format!("{} starts a chain, so a {told} cannot be used with it", path.shown());
        return Err(
            Error::new(ErrorKind::InvalidInput, what).hint(message!["leave ", setting, " out"])
        );
    }
    // What would be refused later leaves nothing behind.
    prepare(
        repository,
        &writer.manifest,
        &writer.head,
        &SnapshotRequest { parent: ParentChoice::Full, ..request.clone() },
    )?;
    let begun = Instant::now();
    warn_if_unguarded(&base_image, context);
    let request = SnapshotRequest {
        parent: ParentChoice::Full,
        label: None,
        // One of its own: no base that was interrupted is gone on with.
        moment: Some(Moment { id: Uuid::new_v4(), group: None, told: None }),
        block_size: request.block_size,
        part_size: request.part_size,
        compression: request.compression,
        ..SnapshotRequest::default()
    };
    let mut prepared = prepare(repository, &writer.manifest, &writer.head, &request)?;
    prepared.plan.is_by_reference = true;
    let place = path.shown();
    context.note(format!("{name}: the table of {place}; its blocks stay there"));
    prepared.plan.cell_blocks = None;
    let object = object_name();
    let mut upload = repository.store.create(&format!("{name}/{object}"))?;
    let taken = prepared
        .take(&base_image, Scope::Whole, context, &mut |bytes: &[u8]| upload.write(bytes))?;
    if taken.written.footer.counts.unread_blocks > 0 {
        let what = format!("{place} cannot be read completely, so it cannot be a base image");
        return Err(Error::new(ErrorKind::Io, what));
    }
    context.check()?;
    make_durable(&base_image)?;
    upload.publish()?;
    let format = Some(ImageFormat::RAW.qemu().to_owned());
    Ok(Snapshot { base_image: Some(path), format, ..prepared.entry(&object, &taken, begun) })
}
