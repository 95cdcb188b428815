//! The rollback of an image with all that its target was taken with.

use super::one::{LetGo, Subject};
use super::types::{RollbackOutcome, RollbackRequest};
use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::events::Context;
use crate::base::message::{Setting, message};
use crate::image::write::Medium;
use crate::repo::Repository;
use crate::repo::manifest::{self, Manifest, SnapshotPlace};
use crate::repo::reference::{self, At};
use crate::repo::session::{Writer, write};

/// An image that is to be rolled back, open for writing.
pub(super) struct Member {
    pub(super) writer: Writer,
    pub(super) request: RollbackRequest,
}

/// All members, the named image first.
pub(super) fn open_members(
    repository: &Repository,
    request: &RollbackRequest,
    context: &Context,
) -> Result<Vec<Member>> {
    let writer = write(repository, &request.name, context)?;
    let manifest = &writer.manifest;
    let target = reference::find(manifest, &writer.head, &request.to)?;
    let group = target.group.as_ref().filter(|group| !request.alone && group.members.len() > 1);
    let mut requests = Vec::new();
    for member in group.into_iter().flat_map(|group| &group.members) {
        if member.image == manifest.image_id {
            continue;
        }
        let image = image_of(repository, member);
        let number =
            image.as_ref().and_then(|image| image.by_id(member.snapshot)).map(|s| s.number);
        let (Some(image), Some(number)) = (image, number) else {
            return Err(incomplete(&manifest.place_of(target), member));
        };
        let to = At::Number(number);
        requests.push(RollbackRequest { name: image.name, to, ..request.clone() });
    }
    let to = At::Number(target.number);
    let mut members = vec![Member { writer, request: RollbackRequest { to, ..request.clone() } }];
    for request in requests {
        let writer = write(repository, &request.name, context)?;
        members.push(Member { writer, request });
    }
    Ok(members)
}

/// The image of a member, under whatever name it has now.
fn image_of(repository: &Repository, member: &SnapshotPlace) -> Option<Manifest> {
    let store = repository.store.as_ref();
    let is_it = |manifest: &Manifest| manifest.image_id == member.image;
    let load = |name: &String| manifest::load(store, name).ok().filter(is_it);
    // A manifest may name anything.
    let recorded = Some(&member.name).filter(|name| manifest::check_name(name).is_ok());
    recorded.and_then(load).or_else(|| repository.names().ok()?.iter().find_map(load))
}

fn incomplete(place: &str, member: &SnapshotPlace) -> Error {
    let name = member.name.escape_debug();
    let what = format!("the group of {place} is incomplete: \"{name}\" has no snapshot of it");
    Error::new(ErrorKind::Mismatch, what)
        .hint(message!["roll this image back without the others with ", Setting::Alone])
}

/// Rolls back several images, each step for all of them before the next. Gives the outcome of the first one,
/// with those of the others.
pub(super) fn roll_back(
    repository: &Repository,
    medium: &dyn Medium,
    members: Vec<(Member, Option<LetGo>)>,
    context: &Context,
) -> Result<RollbackOutcome> {
    let is_dry_run = members.iter().any(|(member, _)| member.request.dry_run);
    let mut subjects = Vec::new();
    for (Member { writer, request }, let_go) in members {
        subjects.push(Subject::open(repository, medium, writer, &request, let_go, context)?);
    }
    if is_dry_run {
        let tried: Result<Vec<_>> = subjects.into_iter().map(Subject::try_out).collect();
        return gathered(tried?);
    }
    subjects.iter_mut().try_for_each(Subject::save)?;
    subjects.iter_mut().try_for_each(Subject::rehearse)?;
    context.check()?;
    intend(&mut subjects)?;
    for index in 0..subjects.len() {
        let Some(subject) = subjects.get_mut(index) else { break };
        let Err((error, is_begun)) = subject.write() else { continue };
        if is_begun || index > 0 || !subject.is_first {
            return Err(subject.half_written(error));
        }
        // Nothing was written anywhere.
        take_back(&mut subjects);
        return Err(error);
    }
    let ended: Result<Vec<_>> = subjects.into_iter().map(Subject::end).collect();
    gathered(ended?)
}

/// Notes the intent of each. If one cannot be noted, none is there.
fn intend(subjects: &mut [Subject<'_>]) -> Result<()> {
    for index in 0..subjects.len() {
        let Some(subject) = subjects.get_mut(index) else { break };
        if let Err(error) = subject.intend() {
            take_back(subjects.get_mut(..index).unwrap_or_default());
            return Err(error);
        }
    }
    Ok(())
}

/// One that stays is as good as a rollback that was interrupted before it wrote anything.
fn take_back(subjects: &mut [Subject<'_>]) {
    subjects.iter_mut().for_each(|subject| best_effort(subject.take_back()));
}

fn gathered(outcomes: Vec<RollbackOutcome>) -> Result<RollbackOutcome> {
    let mut outcomes = outcomes.into_iter();
    let none = || Error::new(ErrorKind::Internal, "nothing was rolled back");
    let first = outcomes.next().ok_or_else(none)?;
    Ok(RollbackOutcome { others: outcomes.collect(), ..first })
}
