//! Taking a snapshot: which parent, what changed, publish, commit, note the head.

pub(crate) mod around;
pub(crate) mod base_image;
pub(crate) mod base_of;
pub mod distinct;
pub(crate) mod domain;
pub mod engine;
pub(crate) mod find_base;
pub mod group;
pub mod jobs;
pub(crate) mod machine;
pub(crate) mod of_machine;
pub(crate) mod origin;
pub(crate) mod parts;
pub(crate) mod plan;
pub(crate) mod prepared;
pub mod several;
pub(crate) mod take;
pub mod types;

use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::events::Context;
use crate::base::message::{Setting, Verb, message};
use crate::base::uri::Shown;
use crate::image::Source;
use crate::image::{ImageUri, LiveImage};
use crate::ops::snapshot::find_base::find_base;
use crate::ops::snapshot::origin::check_origin;
use crate::ops::snapshot::plan::PlanInput;
use crate::ops::snapshot::prepared::{Prepared, prepare};
use crate::ops::snapshot::take::{check_some_was_read, policy_for, take_into, warn_of_policy};
use crate::ops::snapshot::types::{Moment, Outcome, SnapshotOutcome, SnapshotRequest};
use crate::repo::Repository;
use crate::repo::change::remove_unused_image;
use crate::repo::head::Head;
use crate::repo::inside::refuse_inside;
use crate::repo::live_file::{known_as, warn_if_unguarded};
use crate::repo::live_format::{in_format_of, is_read_as_before};
use crate::repo::manifest::{self, Manifest};
use crate::repo::pins;
use crate::repo::policy::SnapshotPolicy;
use crate::repo::reference::check_label;
use crate::repo::session::{Writer, read, refuse_damaged_head, write_or_create};
use crate::scan::Scope;
use crate::tracking::CloneFolder;
use crate::tracking::Track;
use std::time::Instant;
use uuid::Uuid;

/// Takes a snapshot.
pub fn run(
    repository: &Repository,
    request: &SnapshotRequest,
    context: &Context,
) -> Result<SnapshotOutcome> {
    let Named { read_from, image, name } = named(repository, request)?;
    let policy = policy_for(repository, &name, request);
    warn_of_policy(repository, &name, context);
    let context = &context.clone().with_read_limit(policy.limit_read);
    let live = open_live(&read_from, policy, request, context)?;
    if let Some(of) = &request.of {
        let Some(origin) = of.file() else {
            let what = format!("{of}: the origin of a snapshot must be a file or a device");
            return Err(Error::new(ErrorKind::Unsupported, what));
        };
        check_origin(&live, origin, request.force, context)?;
    }
    if request.dry_run {
        let (manifest, head) = match read(repository, &name, context) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                (Manifest::new(&name, Some(image.clone())), Head::at(image))
            }
            Err(e) => return Err(e),
            Ok(reader) => {
                check_source(reader.manifest(), reader.head(), &image)?;
                (reader.manifest().clone(), reader.head().clone())
            }
        };
        let live = with_format(live, &manifest, request, context)?;
        return try_snapshot(repository, manifest, &head, &live, request, context);
    }
    let (mut writer, is_new) = write_or_create(repository, &name, &image, context)?;
    let mut base_of = request.base_of.clone();
    let outcome = check_source(&writer.manifest, &writer.head, &image)
        .and_then(|()| with_format(live, &writer.manifest, request, context))
        .and_then(|live| {
            if base_of.is_none() {
                let source = live.disk.source();
                base_of = find_base(repository, &name, source, request, context)?;
            }
            let request = request.clone().base_of(base_of.clone());
            snapshot_into(repository, &mut writer, &live, &request, false, context)
        });
    if outcome.is_err() {
        // What was pinned for it is needed no more; while that stays, it tells that nothing depends on it.
        let is_released = base_of.is_none() || {
            let pinned = pins::PinnedFor::of(repository, &writer.manifest, context);
            pinned.and_then(|p| p.release(repository, &writer.manifest, context)).is_ok()
        };
        match is_new && is_released {
            // An image without snapshots stays behind; the next snapshot fills it.
            true => best_effort(remove_unused_image(repository, writer)),
            false => drop(writer),
        }
        if let Some(other) = &base_of {
            pins::release(repository, &other.name, context);
        }
    }
    outcome
}

/// What is known of a snapshot before it is read, for who lets others read it: `use_it` is given what
/// `open` has opened.
///
/// # Errors
/// As of [`run`], before anything is read; of `use_it`.
pub(crate) fn planned_snapshot<T>(
    repository: &Repository,
    request: &SnapshotRequest,
    open: impl FnOnce(&ImageUri) -> Result<LiveImage>,
    context: &Context,
    use_it: impl FnOnce(&mut Writer, &LiveImage, &Prepared, &ImageUri) -> Result<T>,
) -> Result<T> {
    let Named { read_from, image, name } = named(repository, request)?;
    let live = open(&read_from)?;
    let (mut writer, is_new) = write_or_create(repository, &name, &image, context)?;
    // One of its own: what was interrupted is not gone on with.
    let moment = Moment { id: Uuid::new_v4(), group: None, told: None };
    let request = SnapshotRequest { moment: Some(moment), ..request.clone() };
    let used = check_source(&writer.manifest, &writer.head, &image)
        .and_then(|()| refuse_damaged_head(&name, writer.head_was_damaged))
        .and_then(|()| with_format(live, &writer.manifest, &request, context))
        .and_then(|live| {
            let prepared = prepare(repository, &writer.manifest, &writer.head, &request)?;
            use_it(&mut writer, &live, &prepared, &read_from)
        });
    if used.is_err() && is_new {
        // An image without snapshots stays behind; the next one fills it.
        best_effort(remove_unused_image(repository, writer));
    }
    used
}

/// An image of which a snapshot is to be taken, as it is known.
struct Named {
    /// What is read.
    read_from: ImageUri,
    /// What it is a snapshot of.
    image: ImageUri,
    /// Its name in the repository.
    name: String,
}

/// What a request is of.
///
/// # Errors
/// `InvalidInput` for what cannot be an image, and for a name or a label that cannot be one.
fn named(repository: &Repository, request: &SnapshotRequest) -> Result<Named> {
    let read_from = known_as(&request.image)?;
    let image = request.of.as_ref().map_or_else(|| Ok(read_from.clone()), known_as)?;
    let name = request.image_name()?;
    manifest::check_name(&name)?;
    for path in [&read_from, &image].into_iter().filter_map(ImageUri::file) {
        if CloneFolder::holds(path) {
            let what = format!("{} is a clone that is kept to find changes", path.shown());
            return Err(Error::new(ErrorKind::InvalidInput, what).hint("use the image itself"));
        }
        refuse_inside(repository, path)?;
    }
    request.label.as_deref().map_or(Ok(()), check_label)?;
    Ok(Named { read_from, image, name })
}

/// Opens what is to be read.
fn open_live(
    read_from: &ImageUri,
    policy: SnapshotPolicy,
    request: &SnapshotRequest,
    context: &Context,
) -> Result<LiveImage> {
    let may_clone = policy.track != Track::None && request.of.is_none();
    let live = LiveImage::open(read_from, may_clone, request.bitmap(), context)?;
    if live.user.is_none() {
        live.disk.raw().into_iter().for_each(|raw| warn_if_unguarded(raw, context));
    }
    Ok(live)
}

/// Takes a snapshot of an open image into a repository that is open for writing. `is_saving`: before
/// a rollback, which wants it whatever is known of the image.
pub(crate) fn snapshot_into(
    repository: &Repository,
    writer: &mut Writer,
    live: &LiveImage,
    request: &SnapshotRequest,
    is_saving: bool,
    context: &Context,
) -> Result<SnapshotOutcome> {
    refuse_damaged_head(&writer.manifest.name, writer.head_was_damaged && !is_saving)?;
    match (&request.base_image, &request.base_of) {
        (_, Some(other)) => {
            base_of::snapshot_on_other(repository, writer, live, other, request, context)
        }
        (Some(base_image), None) => base_image::snapshot_on_base_image(
            repository, writer, live, base_image, request, context,
        ),
        (None, None) => take_into(repository, writer, live, request, is_saving, context),
    }
}

fn try_snapshot(
    repository: &Repository,
    manifest: Manifest,
    head: &Head,
    live: &LiveImage,
    request: &SnapshotRequest,
    context: &Context,
) -> Result<SnapshotOutcome> {
    let found = find_base(repository, &manifest.name, live.disk.source(), request, context)?;
    let request = &request.clone().base_of(request.base_of.clone().or(found));
    let planned = match &request.base_of {
        Some(other) => Some(base_of::planned(repository, &manifest, other, request, context)?),
        None => None,
    };
    let request = planned.as_ref().unwrap_or(request);
    let mut prepared = prepare(repository, &manifest, head, request)?;
    let policy = policy_for(repository, &manifest.name, request);
    let stat = live.stable_stat().filter(|_| is_read_as_before(&manifest, live));
    let begun = Instant::now();
    let search = PlanInput { manifest: &manifest, head, stat: stat.as_ref(), request, policy };
    let _tracker = prepared.begin(repository, live, &search, context)?;
    prepared.plan.cell_blocks = None;
    let mut take = |source: &dyn Source, scope: Scope| {
        prepared.take(source, scope, context, &mut |_: &[u8]| Ok(()))
    };
    let (taken, _) = prepared.scan_live_or_clone(live, false, context, &mut take)?;
    check_some_was_read(&live.disk, &taken)?;
    let snapshot = prepared.entry("", &taken, begun);
    let outcome = prepared.outcome(&manifest.name, snapshot, Outcome::DryRun, live);
    Ok(SnapshotOutcome { unread: taken.counted.unread, ..outcome })
}

fn check_source(manifest: &Manifest, head: &Head, image: &ImageUri) -> Result<()> {
    let name = &manifest.name;
    let relink = Verb::Relink.of(name).with(Setting::Image, image);
    match (&head.source, &head.elsewhere) {
        (Some(source), _) if source != image => {
            let what = format!("\"{name}\" is already the name of {source}");
            Err(Error::new(ErrorKind::AlreadyExists, what).hint(message![
                "give this image another name with ",
                Setting::Name,
                ", or, if the file was moved, run ",
                relink,
            ]))
        }
        (None, Some(host)) => {
            let place = manifest.source.as_ref().map_or("an image".into(), ToString::to_string);
            let what =
                format!("\"{name}\" is already the name of {place} on another host, {}", host.name);
            Err(Error::new(ErrorKind::AlreadyExists, what).hint(message![
                "give this image another name with ",
                Setting::Name,
                ", or, if it was moved to this host, run ",
                relink,
            ]))
        }
        (None, None) => {
            let what = format!("it is not known which file \"{name}\" refers to");
            Err(Error::new(ErrorKind::Mismatch, what).hint(message!["run ", relink, " first"]))
        }
        _ => Ok(()),
    }
}

/// The disk in an image of which a snapshot is to be taken.
///
/// # Errors
/// As of [`in_format_of`].
fn with_format(
    live: LiveImage,
    manifest: &Manifest,
    request: &SnapshotRequest,
    context: &Context,
) -> Result<LiveImage> {
    in_format_of(live, Some(manifest), request.format, request.read_by(), context)
}
