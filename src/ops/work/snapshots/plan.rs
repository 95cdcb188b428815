//! Plans snapshots: which ranges there are to do, the largest first.

use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::events::{Context, WarningId};
use crate::base::message::{Setting, message};
use crate::base::units::Geometry;
use crate::image::{Fingerprint, ImageUri, LiveImage, ReadBy};
use crate::ops::snapshot::engine::{ChainParameters, Parent};
use crate::ops::snapshot::planned_snapshot;
use crate::ops::snapshot::types::SnapshotRequest;
use crate::ops::work::manage::give_up;
use crate::ops::work::snapshots::source::{make_clone, open_held, pin_of, remove_clone};
use crate::ops::work::tasks::{cut, new_plan, number_tasks};
use crate::ops::work::types::{PlanRequest, Planned};
use crate::repo::Repository;
use crate::repo::change::commit_change;
use crate::repo::clones::clones_beside;
use crate::repo::manifest::{self, Manifest, Pending};
use crate::repo::work::{PlannedImage, PlannedTask, Work, WorkPlan, to_hex};
#[cfg(not(all(feature = "objects", feature = "hdfs")))]
use crate::store::RemoteUrl;
use std::ops::Range;
use uuid::Uuid;

/// Plans a snapshot of each image. One that cannot be planned holds up no other.
///
/// # Errors
/// If the plan cannot be put into the repository.
pub fn run(repository: &Repository, request: &PlanRequest, context: &Context) -> Result<Planned> {
    let (mut made, mut images) = (new_plan(Work::Images(Vec::new())), Vec::new());
    let (mut unchanged, mut failed) = (Vec::new(), Vec::new());
    for image in &request.images {
        let planned =
            context.check().and_then(|()| plan_image(repository, image, request, &made, context));
        match planned {
            Ok(Planning::Made(planned)) => images.push(*planned),
            Ok(Planning::Unchanged(name, number)) => unchanged.push((name, number)),
            Err(e) if e.kind() == ErrorKind::Interrupted => {
                made.work = Work::Images(images);
                // We were asked to stop, and this is still to be done.
                best_effort(give_up(repository, &made, &Context::silent()));
                return Err(e);
            }
            Err(e) => failed.push((image.image.to_string(), e)),
        }
    }
    number_tasks(images.iter_mut().flat_map(|image| &mut image.tasks));
    if images.is_empty() {
        return Ok(Planned { plan: None, unchanged, failed });
    }
    if let Some(webhdfs) = &request.webhdfs {
        images.iter_mut().for_each(|image| find_hosts(webhdfs, image, context));
    }
    made.work = Work::Images(images);
    if let Err(error) = made.put(repository.store.as_ref()) {
        best_effort(give_up(repository, &made, context));
        return Err(error);
    }
    Ok(Planned { plan: Some(made), unchanged, failed })
}

/// What became of an image.
enum Planning {
    Made(Box<PlannedImage>),
    /// It is what the snapshot with that number has.
    Unchanged(String, u64),
}

/// Asks where the image of each task lies. Without an answer they go anywhere.
fn find_hosts(webhdfs: &str, image: &mut PlannedImage, context: &Context) {
    let (bytes, block_bytes) = (image.fingerprint.bytes, u64::from(image.block_bytes));
    let offset = |block: u64| block.saturating_mul(block_bytes).min(bytes);
    let range = |task: &PlannedTask| offset(task.first_block)..offset(task.end_block);
    let ranges: Vec<Range<u64>> = image.tasks.iter().map(range).collect();
    let found = match &image.source {
        Some(ImageUri::Remote(url)) => hosts(webhdfs, url, &ranges),
        _ => return,
    };
    match found {
        Ok(hosts) => {
            let numbers = image.tasks.iter().map(|task| task.task);
            image.hosts = numbers.zip(hosts).filter(|(_, hosts)| !hosts.is_empty()).collect();
        }
        Err(e) => context.warn(
            WarningId::HostsUnknown,
            message![format!("it is not known on which hosts \"{}\" is: ", image.name), e],
        ),
    }
}

#[cfg(all(feature = "objects", feature = "hdfs"))]
use crate::store::hosts_of as hosts;

#[cfg(not(all(feature = "objects", feature = "hdfs")))]
fn hosts(_: &str, url: &RemoteUrl, _: &[Range<u64>]) -> Result<Vec<Vec<String>>> {
    let what = format!("this build cannot ask on which hosts {url} is");
    Err(Error::new(ErrorKind::Unsupported, what))
}

/// Bytes a second that a snapshot was read with.
fn read_rate(manifest: &Manifest, parent: Option<Uuid>) -> Option<u64> {
    let before = parent.and_then(|id| manifest.by_id(id)).or(manifest.latest())?;
    let (bytes, seconds) = (before.read_bytes? as f64, before.seconds?);
    (seconds > 0.0).then_some((bytes / seconds) as u64).filter(|rate| *rate > 0)
}

fn plan_image(
    repository: &Repository,
    request: &SnapshotRequest,
    whole: &PlanRequest,
    plan: &WorkPlan,
    context: &Context,
) -> Result<Planning> {
    let held = whole.source_held.clone();
    let opened = |image: &crate::image::ImageUri| match (image.file(), &held) {
        (Some(path), Some(_)) => open_held(path).map(LiveImage::held),
        _ => LiveImage::open(image, true, None, context),
    };
    planned_snapshot(repository, request, opened, context, |writer, live, prepared, image| {
        let name = writer.manifest.name.clone();
        let engine = &prepared.plan;
        let (mut pinned, mut clone) = (pin_of(&live.disk), None);
        if pinned.is_none() && held.is_none() {
            let clones = clones_beside(repository, &writer.manifest, Some(image));
            match make_clone(&clones, live, engine.identity.snapshot_id) {
                Ok(made) => clone = Some(made),
                Err(e) if e.kind() == ErrorKind::Unsupported => return Err(nothing_keeps(live)),
                Err(e) => return Err(e),
            }
            pinned = Some("a clone of it".to_owned());
        }
        let (clone, stat) = clone.unzip();
        let by = ReadBy { via_qemu: false, backing_ok: request.backing_ok };
        let cloned =
            clone.map(|clone| LiveImage::held(clone).in_format(live.disk.format(), by, context));
        let cloned = cloned.transpose()?;
        let disk = cloned.as_ref().map_or(&live.disk, |cloned| &cloned.disk);
        let (parent, before) = match &engine.parent {
            Parent::None(_) => (None, 0),
            Parent::Tip(chain) => (prepared.parent_id, chain.geometry().block_count()),
        };
        let fingerprint = Fingerprint::of(disk)?;
        let source_version = fingerprint.version(disk);
        let of_parent = prepared.parent_id.and_then(|id| writer.manifest.by_id(id));
        if let Some(same) = of_parent
            .filter(|parent| source_version.is_some() && parent.source_version == source_version)
            && request.label.is_none()
        {
            return Ok(Planning::Unchanged(name, same.number));
        }
        let ChainParameters { block_size, algorithm, key } = engine.parent.parameters();
        let source = disk.source();
        let geometry = Geometry::new(block_size, source.image_bytes())?;
        let cell_blocks = engine.cell_blocks.unwrap_or(u64::MAX);
        let planned = PlannedImage {
            name,
            image_id: writer.manifest.image_id,
            snapshot: engine.identity.snapshot_id,
            number: engine.identity.number,
            parent,
            label: engine.identity.label.clone(),
            source: Some(image.clone()),
            format: disk.format().qemu().to_owned(),
            backing_ok: request.backing_ok,
            fingerprint,
            pinned,
            clone: stat,
            in_use: live.user.is_some(),
            held: held.clone(),
            source_version,
            hosts: Vec::new(),
            read_rate: read_rate(&writer.manifest, parent),
            block_bytes: block_size.bytes(),
            digest: algorithm.to_string(),
            key: to_hex(&key.0),
            compression: engine.compression.to_string(),
            part_bytes: prepared.part_size()?,
            tasks: cut(source, geometry, cell_blocks, before)?,
        };
        let pending = Pending {
            id: planned.snapshot,
            number: planned.number,
            parent,
            objects: Vec::new(),
            expires: plan.expires,
            plan: Some(plan.plan),
        };
        let committed = commit_change(repository, writer, &[], |next| {
            let is_there = |id| next.snapshots.iter().any(|s| s.id == id);
            if next.next_number > pending.number || !parent.is_none_or(is_there) {
                return Err(manifest::changed_meanwhile(&next.name));
            }
            next.next_number = pending.number.saturating_add(1);
            next.pending.push(pending.clone());
            Ok(())
        });
        if committed.is_err() {
            remove_clone(&planned);
        }
        committed.map(|()| Planning::Made(Box::new(planned)))
    })
}

fn nothing_keeps(live: &LiveImage) -> Error {
    let what = match &live.user {
        Some(user) => {
            format!("{} is open for writing by {user}, and cannot be cloned", live.disk.name())
        }
        None => format!("nothing keeps {} unchanged while it is read in parts", live.disk.name()),
    };
    Error::new(ErrorKind::InvalidInput, what).hint(message![
        "use a read-only snapshot of its file system, or say why nobody writes to it with ",
        Setting::SourceHeld,
    ])
}
