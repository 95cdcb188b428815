//! Snapshots of several images at one point in time: a consistency group.
//!
//! ```text
//! writers, by name -> ids drawn -> every point in time, in one window -> each is read -> each is committed
//! ```
//!
//! Nothing is committed before all are read, so what fails while they are read leaves nothing. The commits
//! follow each other at once; whoever is killed between two leaves a group that is listed as incomplete.

use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::events::{Context, WarningId};
use crate::base::message::{Setting, message};
use crate::image::{ImageUri, LiveImage};
use crate::ops::snapshot::around::{AgentOf, open_window, thaw};
use crate::ops::snapshot::distinct::check_distinct;
use crate::ops::snapshot::take::{Begun, begin, policy_for, warn_of_policy};
use crate::ops::snapshot::types::moment::Moment;
use crate::ops::snapshot::types::{SnapshotOutcome, SnapshotRequest};
use crate::ops::snapshot::{Named, check_source, named, open_live, with_format};
use crate::repo::Repository;
use crate::repo::change::remove_unused_image;
use crate::repo::group::check_group_name;
use crate::repo::manifest::{Group, SnapshotPlace};
use crate::repo::session::{Writer, write_or_create};
use uuid::Uuid;

/// Takes a snapshot of each image, all as they are at one point in time.
///
/// # Errors
/// As of [`super::run`]; then there is no snapshot of any, unless the message says which there are.
pub fn run(
    repository: &Repository,
    name: Option<&str>,
    requests: &[SnapshotRequest],
    context: &Context,
) -> Result<Vec<SnapshotOutcome>> {
    name.map_or(Ok(()), check_group_name)?;
    check_distinct(requests)?;
    requests.iter().try_for_each(refuse_single)?;
    let mut opened = Vec::new();
    for request in requests {
        let named = named(repository, request)?;
        let policy = policy_for(repository, &named.name, request);
        warn_of_policy(repository, &named.name, context);
        let context = context.clone().with_read_limit(policy.limit_read);
        let live = open_live(&named.read_from, policy, request, &context)?;
        opened.push((named, live, request.clone()));
    }
    let members = opened.iter().map(|(named, ..)| named).collect::<Vec<_>>();
    let images: Vec<ImageUri> = members.iter().map(|named| named.image.clone()).collect();
    let mut writers = open_writers(repository, &members, context)?;
    let taken = take(repository, name, &mut borrowed(&mut writers), opened, &images, context);
    if taken.is_err() {
        give_up(repository, writers);
    }
    taken
}

pub(super) fn take(
    repository: &Repository,
    name: Option<&str>,
    writers: &mut [&mut Writer],
    opened: Vec<(Named, LiveImage, SnapshotRequest)>,
    images: &[ImageUri],
    context: &Context,
) -> Result<Vec<SnapshotOutcome>> {
    let group = draw(name, writers);
    let mut lives = Vec::new();
    for (((named, live, request), writer), member) in
        opened.into_iter().zip(writers.iter()).zip(&group.members)
    {
        check_source(&writer.manifest, &writer.head, &named.image)?;
        let live = with_format(live, &writer.manifest, &request, context)?;
        let group = is_group(&group).then(|| group.clone());
        let moment = Some(Moment { id: member.snapshot, group, told: None });
        lives.push((live, SnapshotRequest { moment, ..request }));
    }
    let begun = begin_all(repository, writers, &lives, images, context)?;
    finish(repository, writers, begun, context, &mut |_, _| {})
}

/// The writers, to be changed by several in turn.
pub(super) fn borrowed(opened: &mut [OpenWriter]) -> Vec<&mut Writer> {
    opened.iter_mut().map(|opened| &mut opened.writer).collect()
}

/// What is of one image alone.
fn refuse_single(request: &SnapshotRequest) -> Result<()> {
    let given = [
        (request.base_image.is_some(), Setting::BaseImage),
        (request.base_of.is_some(), Setting::BaseOf),
        (request.find_base, Setting::FindBase),
        (request.of.is_some(), Setting::Of),
        (request.dry_run, Setting::DryRun),
    ];
    match given.into_iter().find(|(is_given, _)| *is_given) {
        None => Ok(()),
        Some((_, setting)) => {
            let what = "this option cannot be used for a group";
            Err(Error::new(ErrorKind::InvalidInput, what).hint(message![
                "leave ",
                setting,
                " out, or take them one by one"
            ]))
        }
    }
}

/// An image that is open for writing.
pub(super) struct OpenWriter {
    writer: Writer,
    is_new: bool,
}

/// Opens all images for writing, in the order of their names: two groups do not wait for each other.
pub(super) fn open_writers(
    repository: &Repository,
    members: &[&Named],
    context: &Context,
) -> Result<Vec<OpenWriter>> {
    let mut order: Vec<usize> = (0..members.len()).collect();
    order.sort_by_key(|index| members.get(*index).map(|named| &named.name));
    let mut opened: Vec<(usize, OpenWriter)> = Vec::new();
    for index in order {
        let Some(named) = members.get(index) else { continue };
        match write_or_create(repository, &named.name, &named.image, context) {
            Ok((writer, is_new)) => opened.push((index, OpenWriter { writer, is_new })),
            Err(error) => {
                give_up(repository, opened.into_iter().map(|(_, opened)| opened).collect());
                return Err(error.at(&named.name));
            }
        }
    }
    opened.sort_by_key(|(index, _)| *index);
    Ok(opened.into_iter().map(|(_, opened)| opened).collect())
}

/// Draws the identity of a group, and of the snapshots in it.
pub(super) fn draw(name: Option<&str>, writers: &[&mut Writer]) -> Group {
    let member = |writer: &&mut Writer| SnapshotPlace {
        image: writer.manifest.image_id,
        name: writer.manifest.name.clone(),
        snapshot: Uuid::new_v4(),
    };
    let members = writers.iter().map(member).collect();
    Group { id: Uuid::new_v4(), name: name.map(str::to_owned), members, is_apart: false }
}

/// Fixes the point in time of each, while what is to be frozen is.
fn begin_all<'a>(
    repository: &'a Repository,
    writers: &[&mut Writer],
    lives: &'a [(LiveImage, SnapshotRequest)],
    images: &[ImageUri],
    context: &Context,
) -> Result<Vec<Begun<'a>>> {
    let request = lives.first().map(|(_, request)| request.window.clone()).unwrap_or_default();
    let images: Vec<&ImageUri> = images.iter().collect();
    let mut window = open_window(repository, &request, &images, AgentOf::Nobody, None, context)?;
    window.freeze(context)?;
    let both = writers.iter().zip(lives);
    let begun: Result<Vec<_>> =
        both.map(|(writer, (live, of))| begin(repository, writer, live, of, context)).collect();
    let frozen = thaw(window, &request, &images, context);
    let mut begun = begun?;
    begun.iter_mut().zip(&frozen).filter(|(_, frozen)| **frozen).for_each(|(b, _)| b.was_frozen());
    // What nobody writes to is the same at every point in time; so is one image more.
    let moves =
        lives.iter().zip(&frozen).filter(|((live, _), frozen)| live.user.is_some() && !**frozen);
    if moves.count() > 1 {
        begun.iter_mut().for_each(Begun::was_apart);
        let what = "images of the group were written to, but taken one after another";
        context.warn(WarningId::GroupApart, message![what, "; freeze them with ", Setting::Freeze]);
    }
    Ok(begun)
}

/// True for what is recorded as a group: several images, or one that has a name as one.
pub(super) fn is_group(group: &Group) -> bool {
    group.name.is_some() || group.members.len() > 1
}

/// What became of a member that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Became {
    /// Its snapshot stands.
    Committed,
    /// It equals this snapshot, and none was taken.
    LeftOut(Uuid),
}

/// Reads each, then commits each; `done` is told what became of which.
pub(super) fn finish<'a>(
    repository: &'a Repository,
    writers: &mut [&mut Writer],
    begun: Vec<Begun<'a>>,
    context: &Context,
    done: &mut dyn FnMut(usize, Became),
) -> Result<Vec<SnapshotOutcome>> {
    let mut read = Vec::new();
    for (begun, writer) in begun.into_iter().zip(writers.iter_mut()) {
        read.push(begun.read(repository, writer, false, context)?);
    }
    let is_left_out = read.iter().all(|read| read.is_left_out());
    // From here on it is done to the end, or the group would be incomplete.
    context.check()?;
    let mut outcomes: Vec<SnapshotOutcome> = Vec::new();
    for (index, (read, writer)) in read.into_iter().zip(writers).enumerate() {
        let outcome = match is_left_out {
            true => read.leave_out(repository, writer, context),
            false => read.commit(repository, writer, context),
        };
        match outcome {
            Ok(outcome) => {
                let became = match is_left_out {
                    true => Became::LeftOut(outcome.snapshot.id),
                    false => Became::Committed,
                };
                done(index, became);
                outcomes.push(outcome);
            }
            Err(error) => return Err(half_done(error, &outcomes, is_left_out)),
        }
    }
    Ok(outcomes)
}

/// The error of one, when others stand.
fn half_done(error: Error, outcomes: &[SnapshotOutcome], is_left_out: bool) -> Error {
    if outcomes.is_empty() || is_left_out {
        return error;
    }
    let place = |done: &SnapshotOutcome| format!("{}@{}", done.name, done.snapshot.number);
    let places: Vec<_> = outcomes.iter().map(place).collect();
    let which = if places.len() == 1 { "is kept" } else { "are kept" };
    error.or_hint(format!("{} {which}, and the group is incomplete", places.join(", ")))
}

/// Takes back what was made for snapshots that did not come about.
pub(super) fn give_up(repository: &Repository, writers: Vec<OpenWriter>) {
    for OpenWriter { writer, is_new } in writers {
        // An image without snapshots stays behind if that fails; the next snapshot fills it.
        if is_new && writer.manifest.is_unused() {
            best_effort(remove_unused_image(repository, writer));
        }
    }
}
