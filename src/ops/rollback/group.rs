//! The rollback of an image with all that its target was taken with.

use super::one::{LetGo, Subject};
use super::types::{RollbackOutcome, RollbackRequest};
use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::events::Context;
use crate::base::message::{Setting, message};
use crate::image::write::Medium;
use crate::repo::Repository;
use crate::repo::group::{self, Members, members_of};
use crate::repo::manifest::changed_meanwhile;
use crate::repo::reference::At;
use crate::repo::session::{Writer, read, write};

/// An image that is to be rolled back, open for writing.
pub(super) struct Member {
    pub(super) writer: Writer,
    pub(super) request: RollbackRequest,
}

/// All members, the named image first. They are opened in the order of their names: two rollbacks of one
/// group do not wait for each other.
pub(super) fn open_members(
    repository: &Repository,
    request: &RollbackRequest,
    context: &Context,
) -> Result<Vec<Member>> {
    // Whoever opens it to write tells what is wrong with it.
    let reader = read(repository, &request.name, &Context::silent())?;
    let own = reader.manifest();
    // The present state may have been saved since the same command was given: it is not what is meant.
    let begun = own.rollback.as_ref().filter(|_| request.to == At::Latest);
    let target = match begun.and_then(|rollback| own.by_id(rollback.target)) {
        Some(target) => target,
        None => reader.find(&request.to)?,
    };
    let group = match request.alone {
        true => None,
        false => members_of(repository, own, target, context),
    };
    group.as_ref().map_or(Ok(()), Members::check_readable)?;
    let mut all = vec![(request.name.clone(), target.id)];
    for member in group.into_iter().flat_map(|group| group.members) {
        if member.image == own.image_id {
            continue;
        }
        if member.number().is_none() {
            return Err(incomplete(&own.place_of(target), &member));
        }
        all.push((member.name, member.snapshot));
    }
    drop(reader);
    all.sort();
    let mut opened = Vec::new();
    for (name, snapshot) in all {
        let writer = write(repository, &name, context)?;
        let number = writer.manifest.by_id(snapshot).map(|snapshot| snapshot.number);
        let to = At::Number(number.ok_or_else(|| changed_meanwhile(&name))?);
        opened.push(Member { writer, request: RollbackRequest { name, to, ..request.clone() } });
    }
    opened.sort_by_key(|member| member.request.name != request.name);
    Ok(opened)
}

fn incomplete(place: &str, member: &group::Member) -> Error {
    let what =
        format!("the group of {place} is incomplete: \"{}\" has no snapshot of it", member.name);
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

/// Notes the intent of each. If one cannot be noted, none is there. Not before all are there does this host
/// take back that nothing is written.
fn intend(subjects: &mut [Subject<'_>]) -> Result<()> {
    for index in 0..subjects.len() {
        let Some(subject) = subjects.get_mut(index) else { break };
        if let Err(error) = subject.intend() {
            take_back(subjects.get_mut(..index).unwrap_or_default());
            return Err(error);
        }
    }
    let begun = subjects.iter_mut().try_for_each(Subject::begin_to_write);
    begun.inspect_err(|_| take_back(subjects))
}

/// One that stays is as good as a rollback that was interrupted before it wrote anything.
fn take_back(subjects: &mut [Subject<'_>]) {
    subjects.iter_mut().for_each(|subject| best_effort(subject.take_back()));
}

fn gathered(outcomes: Vec<RollbackOutcome>) -> Result<RollbackOutcome> {
    let mut outcomes = outcomes.into_iter();
    let none = || Error::new(ErrorKind::Internal, "no image was rolled back");
    let first = outcomes.next().ok_or_else(none)?;
    Ok(RollbackOutcome { others: outcomes.collect(), ..first })
}
