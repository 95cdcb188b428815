//! A snapshot and the others of its group, each to a file in a folder.

use super::types::{RestoreRequest, RestoreTarget, RestoredGroup, RestoredMember};
use super::{Opened, check_request};
use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::events::Context;
use crate::base::folder::parent;
use crate::base::free_space::free_space_in;
use crate::base::message::{Setting, message};
use crate::base::uri::Shown;
use crate::image::ImageFormat;
use crate::repo::Repository;
use crate::repo::group::{Members, half_done, members_of};
use crate::repo::inside::refuse_target;
use crate::repo::manifest::changed_meanwhile;
use crate::repo::reference::At;
use crate::repo::session::read;
use crate::view::check_free_space_for_all;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// A snapshot that can be restored, and where it goes.
struct Planned {
    request: RestoreRequest,
    path: PathBuf,
    opened: Opened,
}

/// Restores a snapshot and what is there of its group; alone, if it has none. The folder may be new.
///
/// # Errors
/// As of [`super::run`]. Unless all can be written nothing is; of what fails later, the message says which
/// files are there.
pub fn run(
    repository: &Repository,
    request: &RestoreRequest,
    folder: &Path,
    context: &Context,
) -> Result<RestoredGroup> {
    refuse_single(request)?;
    let is_new = check_folder(repository, folder)?;
    let (targets, group) = targets(repository, request, context)?;
    let mut planned = Vec::new();
    for (name, number, id) in targets {
        let request =
            RestoreRequest { name: name.clone(), at: At::Number(number), ..request.clone() };
        let path = file_in(folder, &request);
        check_request(&request, &RestoreTarget::Path(&path))?;
        check_target(repository, &request, &path, is_new)?;
        let opened = Opened::of(repository, &request, context)?;
        if opened.snapshot.id != id {
            return Err(changed_meanwhile(&name));
        }
        planned.push(Planned { request, path, opened });
    }
    let chains: Vec<_> = planned.iter().map(|planned| &planned.opened.chain).collect();
    let there = if is_new { parent(folder) } else { folder };
    check_free_space_for_all(&chains, free_space_in(there).ok(), folder.shown().as_ref())?;
    if is_new {
        std::fs::create_dir(folder).map_err(|e| Error::os("create", folder.shown(), e))?;
    }
    let mut members: Vec<RestoredMember> = Vec::new();
    for Planned { request, path, opened } in planned {
        match opened.restore(repository, &request, RestoreTarget::Path(&path), context) {
            Ok(outcome) => members.push(RestoredMember { name: request.name, path, outcome }),
            Err(e) => {
                if is_new && members.is_empty() {
                    best_effort(std::fs::remove_dir(folder));
                }
                let shown = |done: &RestoredMember| done.path.shown().to_string();
                let done: Vec<String> = members.iter().map(shown).collect();
                return Err(half_done(e, &done, "restored"));
            }
        }
    }
    Ok(RestoredGroup { members, group })
}

fn refuse_single(request: &RestoreRequest) -> Result<()> {
    let given = [(request.range.is_some(), Setting::Range), (request.update, Setting::Update)];
    let Some((_, setting)) = given.into_iter().find(|(is_given, _)| *is_given) else {
        return Ok(());
    };
    let what = "a restore to a folder writes whole snapshots to new files";
    Err(Error::new(ErrorKind::InvalidInput, what).hint(message![
        "give a file with ",
        Setting::Output,
        ", or leave ",
        setting,
        " out"
    ]))
}

/// True if the folder is to be made.
fn check_folder(repository: &Repository, folder: &Path) -> Result<bool> {
    match std::fs::metadata(folder) {
        Ok(meta) if meta.is_dir() => Ok(false),
        Ok(_) => {
            let what = format!("{} is not a folder", folder.shown());
            Err(Error::new(ErrorKind::InvalidInput, what))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            refuse_target(repository, folder)?;
            Ok(true)
        }
        Err(e) => Err(Error::os("access", folder.shown(), e)),
    }
}

/// Name of the image, number and identity of a snapshot.
type Target = (String, u64, Uuid);

/// What is to be restored, by the names; and the group.
fn targets(
    repository: &Repository,
    request: &RestoreRequest,
    context: &Context,
) -> Result<(Vec<Target>, Option<Members>)> {
    let reader = read(repository, &request.name, context)?;
    let (image, snapshot) = (reader.manifest(), reader.find(&request.at)?);
    let group = members_of(repository, image, snapshot, context);
    let others = group.iter().flat_map(|group| group.others(image.image_id));
    let others = others.filter_map(|member| {
        member.number().map(|number| (member.name.clone(), number, member.snapshot))
    });
    let named = (request.name.clone(), snapshot.number, snapshot.id);
    let mut targets: Vec<_> = others.chain([named]).collect();
    targets.sort();
    Ok((targets, group))
}

fn file_in(folder: &Path, request: &RestoreRequest) -> PathBuf {
    let is_qcow2 = request.format == Some(ImageFormat::QCOW2);
    folder.join(format!("{}.{}", request.name, if is_qcow2 { "qcow2" } else { "img" }))
}

fn check_target(
    repository: &Repository,
    request: &RestoreRequest,
    path: &Path,
    is_new: bool,
) -> Result<()> {
    if is_new {
        return Ok(());
    }
    refuse_target(repository, path)?;
    if request.force || std::fs::symlink_metadata(path).is_err() {
        return Ok(());
    }
    let what = format!("{} exists", path.shown());
    Err(Error::new(ErrorKind::AlreadyExists, what).hint(message![
        "choose another folder, or use ",
        Setting::Force,
        " to replace what is there"
    ]))
}
