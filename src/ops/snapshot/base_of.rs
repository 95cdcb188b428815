//! Chains that begin from a snapshot of another image: twenty machines made from one template cost twenty
//! deltas.
//!
//! First the snapshot is pinned there, then what depends on it is committed here (C9). Whoever dies in
//! between leaves a pin that nobody names, which is taken away later (`repo/pins.rs`).

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::{Context, WarningId};
use crate::base::message::{Setting, message};
use crate::image::LiveImage;
use crate::ops::snapshot::prepared::prepare;
use crate::ops::snapshot::take::take_into;
use crate::ops::snapshot::types::{ParentChoice, SnapshotOutcome, SnapshotRequest};
use crate::repo::Repository;
use crate::repo::head::Head;
use crate::repo::manifest::Manifest;
use crate::repo::pins::{pin, unpinned};
use crate::repo::reference::Reference;
use crate::repo::session::Writer;

/// Takes a snapshot whose chain begins from another image.
pub(crate) fn snapshot_on_other(
    repository: &Repository,
    writer: &mut Writer,
    live: &LiveImage,
    other: &Reference,
    request: &SnapshotRequest,
    context: &Context,
) -> Result<SnapshotOutcome> {
    // What would be refused later pins nothing.
    let planned = planned(repository, &writer.manifest, other, request, context)?;
    check(repository, &writer.manifest, &writer.head, &planned)?;
    let pinned = match pin(repository, other, &writer.manifest, context) {
        // It was not asked for by name: a base of its own costs space alone.
        Err(e) if request.find_base && e.kind() == ErrorKind::Busy => {
            context.warn(WarningId::SourceUnusable, message![e, "; taking a base instead"]);
            return take_into(repository, writer, live, request, false, context);
        }
        pinned => pinned?,
    };
    let request = SnapshotRequest { pinned: Some(pinned), ..planned };
    take_into(repository, writer, live, &request, false, context)
}

/// The same request, against what the other image has, which is not pinned.
///
/// # Errors
/// `InvalidInput` if the image has a chain already, and is not to begin another one.
pub(crate) fn planned(
    repository: &Repository,
    manifest: &Manifest,
    other: &Reference,
    request: &SnapshotRequest,
    context: &Context,
) -> Result<SnapshotRequest> {
    let name = &manifest.name;
    let refuse = |what| Error::new(ErrorKind::InvalidInput, what);
    let of = unpinned(repository, other, context)?;
    let place = of.place();
    if other.name == *name {
        let what = format!("{place} is a snapshot of \"{name}\" itself");
        return Err(refuse(what).hint(message!["select it with ", Setting::Parent]));
    }
    if request.base_image.is_some() {
        let what = "a chain starts at either a base image or a snapshot of another image";
        return Err(refuse(what.into()).hint(message![
            "leave ",
            Setting::BaseImage,
            " or ",
            Setting::BaseOf,
            " out"
        ]));
    }
    let begins_anew = match request.parent {
        ParentChoice::Full => true,
        ParentChoice::Incremental => manifest.snapshots.is_empty(),
        _ => false,
    };
    if !begins_anew {
        let what = format!("\"{name}\" already has snapshots, and thus a base");
        return Err(refuse(what).hint(message!["start another chain with ", Setting::Full]));
    }
    if request.changed.is_some() {
        let (told, setting) = request.told_by();
        let what = format!("{place} belongs to another image, so a {told} cannot be used with it");
        return Err(refuse(what).hint(message!["leave ", setting, " out"]));
    }
    Ok(SnapshotRequest {
        parent: ParentChoice::Full,
        base_of: None,
        find_base: false,
        pinned: Some(of),
        // There is no snapshot of it yet, even if it is what the other one is.
        skip_unchanged: false,
        ..request.clone()
    })
}

fn check(
    repository: &Repository,
    manifest: &Manifest,
    head: &Head,
    request: &SnapshotRequest,
) -> Result<()> {
    prepare(repository, manifest, head, request).map(drop)
}
