//! What snapshots of the disks of a machine have in common, whoever runs it.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::Context;
use crate::base::message::{Setting, message};
use crate::image::nbd::{NbdDisk, NbdOptions};
use crate::image::{Disk, ImageUri, LiveImage, MachineUri};
use crate::machine::FleecedDisk;
use crate::ops::snapshot::group::{OpenWriter, is_group, open_writers};
use crate::ops::snapshot::take::warn_of_policy;
use crate::ops::snapshot::types::moment::{Moment, Told};
use crate::ops::snapshot::types::{SnapshotRequest, name_of};
use crate::ops::snapshot::{Named, named};
use crate::repo::Repository;
use crate::repo::manifest::Group;
use crate::tracking::{ChangeList, Consistency};

/// What is of a file.
pub(super) fn refuse_of_file(request: &SnapshotRequest) -> Result<()> {
    let given = [
        (request.base_image.is_some(), Setting::BaseImage),
        (request.base_of.is_some(), Setting::BaseOf),
        (request.find_base, Setting::FindBase),
        (request.of.is_some(), Setting::Of),
        (request.format.is_some(), Setting::Format),
        (request.via_qemu, Setting::ViaQemu),
        (request.bitmap().is_some(), Setting::Bitmap),
        (request.changed.is_some(), Setting::Changed),
        (request.dry_run, Setting::DryRun),
    ];
    let Some((_, setting)) = given.into_iter().find(|(is_given, _)| *is_given) else {
        return Ok(());
    };
    let what = "this option cannot be used for a machine";
    Err(Error::new(ErrorKind::InvalidInput, what).hint(message!["leave ", setting, " out"]))
}

/// The disks that are meant.
pub(super) fn chosen<T>(
    disks: Vec<T>,
    uri: &MachineUri,
    is_called: impl Fn(&T, &str) -> bool,
    name_of: impl Fn(&T) -> String,
) -> Result<Vec<T>> {
    let known: Vec<String> = disks.iter().map(name_of).collect();
    let chosen: Vec<T> = match &uri.disk {
        None => disks,
        Some(name) => disks.into_iter().filter(|disk| is_called(disk, name)).collect(),
    };
    if !chosen.is_empty() {
        return Ok(chosen);
    }
    let whole = uri.clone().whole();
    let error = |what| Error::new(ErrorKind::NotFound, what);
    Err(match (&uri.disk, known.is_empty()) {
        (Some(disk), false) => error(format!("{whole} has no disk \"{}\"", disk.escape_debug()))
            .hint(format!("it has {}", known.join(", "))),
        _ => error(format!("{whole} has no disk that can be written to")),
    })
}

/// One disk of the machine, by the name that it has in the repository.
fn request_of(
    repository: &Repository,
    uri: &MachineUri,
    disk: &str,
    request: &SnapshotRequest,
) -> Result<(Named, SnapshotRequest)> {
    let image = ImageUri::Machine(uri.with_disk(disk));
    let name = match (&request.name, &uri.disk) {
        (Some(name), None) => Some(format!("{name}-{}", disk.replace('/', "-"))),
        (name, _) => name.clone(),
    };
    let request = SnapshotRequest { image, name, ..request.clone() };
    Ok((named(repository, &request)?, request))
}

/// What is asked for of each disk, by name; who writes to each image; and what their group is called.
pub(super) type Opened = (Vec<(Named, SnapshotRequest)>, Vec<OpenWriter>, Option<String>);

/// Opens the images of all disks of a machine that are meant, for writing. `given` is the name of the
/// group, if somebody gave it one.
///
/// # Errors
/// As of [`open_writers`]; `InvalidInput` for what cannot be a name.
pub(super) fn open_images(
    repository: &Repository,
    given: Option<&str>,
    uri: &MachineUri,
    disks: &[String],
    request: &SnapshotRequest,
    context: &Context,
) -> Result<Opened> {
    let requests = disks.iter().map(|disk| request_of(repository, uri, disk, request));
    let requests = requests.collect::<Result<Vec<_>>>()?;
    let names: Vec<&Named> = requests.iter().map(|(named, _)| named).collect();
    names.iter().for_each(|named| warn_of_policy(repository, &named.name, context));
    let writers = open_writers(repository, &names, context)?;
    let group = group_name(given, request, uri, disks.len())?;
    Ok((requests, writers, group))
}

/// What the group of the disks is called, if they are one: as the user says, or as the machine. One disk is a
/// group of its own if somebody calls it one.
fn group_name(
    given: Option<&str>,
    request: &SnapshotRequest,
    uri: &MachineUri,
    disks: usize,
) -> Result<Option<String>> {
    let name = match given.map(str::to_owned).or_else(|| request.name.clone()) {
        Some(name) => name,
        None => name_of(&ImageUri::Machine(uri.clone().whole()))?,
    };
    Ok(Some(name).filter(|_| given.is_some() || disks > 1))
}

/// The disks as they were at the point in time.
pub(super) fn open_all(
    exported: Vec<FleecedDisk>,
    group: &Group,
    consistency: Consistency,
    requests: &[(Named, SnapshotRequest)],
    context: &Context,
) -> Result<Vec<(LiveImage, SnapshotRequest)>> {
    let mut opened = Vec::new();
    for ((disk, (named, request)), place) in exported.into_iter().zip(requests).zip(&group.members)
    {
        let bitmap = disk.since.as_ref().ok().map(|(_, name)| name.clone());
        let has_bitmap = bitmap.is_some();
        let name = Some(named.image.to_string());
        let options = NbdOptions { bitmap, name, ..NbdOptions::default() };
        let disk_now = NbdDisk::open(&disk.uri, options, context)?;
        let ranges = if has_bitmap { disk_now.bitmap_ranges()? } else { Vec::new() };
        let changes = disk.since.map(|(since, _)| (since, ChangeList::of(ranges)));
        let group = is_group(group).then(|| group.clone());
        let told = Some(Told { consistency, changes });
        let moment = Some(Moment { id: place.snapshot, group, told });
        let live = LiveImage::held(Disk::Nbd(disk_now));
        opened.push((live, SnapshotRequest { moment, ..request.clone() }));
    }
    Ok(opened)
}
