//! The rollback of the disks of a machine that QEMU runs.
//!
//! ```text
//! stop -> present state saved, by bitmaps -> reset -> disks taken from their devices, exported
//!   -> rolled back as any image -> disks given back -> cont
//! ```
//!
//! The machine stays stopped from before its state is saved until the last byte is written, so nothing is
//! lost in between, and the differences are those of two tables. Whoever is killed leaves it stopped: the
//! next rollback goes on from there.

use super::group::{Member, roll_back};
use super::one::LetGo;
use super::types::RollbackOutcome;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::{Context, WarningId};
use crate::base::message::{Action, Setting, message};
use crate::image::MachineUri;
use crate::image::write::Medium;
use crate::machine::{Machine, MachineDisk, RunState};
use crate::ops::snapshot::machine::save_disks;
use crate::repo::Repository;
use crate::repo::files::open_chain;
use crate::repo::live_file::source_of;
use crate::repo::{manifest, reference};
use std::path::PathBuf;
use uuid::Uuid;

/// The machine that all of the images are disks of; none if none of them is one.
///
/// # Errors
/// `InvalidInput` if that is so of some of them only, or if they are of several machines.
pub(super) fn machine_of(members: &[Member]) -> Result<Option<PathBuf>> {
    let mut sockets = Vec::new();
    for Member { writer, request } in members {
        let place = source_of(&request.name, &writer.head)?;
        sockets.push(place.machine().map(|machine| machine.socket.clone()));
    }
    match sockets.first().cloned() {
        Some(first) if sockets.iter().all(|socket| *socket == first) => Ok(first),
        _ => {
            let what = "the images of the group are not all of one machine any more";
            Err(Error::new(ErrorKind::InvalidInput, what)
                .hint(message!["roll them back one by one, with ", Setting::Alone]))
        }
    }
}

/// Rolls the disks of a machine back, which is reset.
pub(super) fn run(
    repository: &Repository,
    medium: &dyn Medium,
    socket: PathBuf,
    mut members: Vec<Member>,
    context: &Context,
) -> Result<RollbackOutcome> {
    let uri = MachineUri { socket, disk: None };
    if members.iter().any(|member| !member.request.reset) {
        let what = format!("{uri} has its disks open");
        return Err(Error::new(ErrorKind::Busy, what).hint(message![
            "shut it down and roll its image files back, or let it be reset with ",
            Setting::Reset
        ]));
    }
    let mut machine = Machine::connect(&uri.socket, context)?;
    machine.recover(context)?;
    let disks = disks_of(&mut machine, &uri, &members)?;
    for (member, disk) in members.iter().zip(&disks) {
        check(repository, member, disk)?;
    }
    let is_resumed = machine.is_detached()?;
    if is_resumed {
        context.note(format!("{uri}: an interrupted rollback had left it stopped"));
    }
    let before = machine.stop()?;
    // What a run has stopped that was killed goes on, too.
    let goes_on = is_resumed || before == RunState::Running;
    if !goes_on {
        let what =
            format!("{uri} was stopped before, and stays so: \"cont\" in its monitor starts it");
        context.warn(WarningId::MachineStopped, what);
    }
    let is_half_written = members.iter().any(|member| member.writer.head.intent.is_some());
    let names: Vec<String> = members.iter().map(|member| member.request.name.clone()).collect();
    let is_saved = members.iter().all(|member| member.request.save);
    let mut equal: Vec<Option<Uuid>> = vec![None; members.len()];
    let machine = match is_saved && !is_half_written && !is_resumed {
        true => {
            let mut writers: Vec<_> = members.iter_mut().map(|member| &mut member.writer).collect();
            let saved = save_disks(repository, machine, &mut writers, &disks, context);
            let (machine, ids) = saved.map_err(|error| or_go_on(&uri, goes_on, error, context))?;
            equal = ids.into_iter().map(Some).collect();
            machine
        }
        false => machine,
    };
    let detached =
        machine.detach(disks, context).map_err(|error| or_go_on(&uri, goes_on, error, context))?;
    let let_go = |(index, (member, equals)): (usize, (Member, Option<Uuid>))| {
        (member, detached.uri(index).map(|uri| LetGo { uri, equals }))
    };
    let members = members.into_iter().zip(equal).enumerate().map(let_go).collect();
    let outcome = roll_back(repository, medium, members, context);
    if outcome.is_err() && is_under_way(repository, &names) {
        let what = "the machine stays stopped until the rollback is done";
        return outcome.map_err(|error| error.or_hint(what));
    }
    match (outcome, detached.attach(goes_on)) {
        (Ok(outcome), Ok(_)) => Ok(outcome),
        (Ok(_), Err(error)) => {
            let what = format!("{uri}: all was written, but its disks cannot be given back");
            Err(error.at(what))
        }
        (Err(error), attached) => {
            if let Err(also) = attached {
                context.warn(WarningId::MachineNotCleared, also);
            }
            Err(error)
        }
    }
}

/// The disks of the members, in their order.
fn disks_of(
    machine: &mut Machine,
    uri: &MachineUri,
    members: &[Member],
) -> Result<Vec<MachineDisk>> {
    let disks = machine.disks()?;
    let mut found = Vec::new();
    for Member { writer, request } in members {
        let place = source_of(&request.name, &writer.head)?;
        let name = place.machine().and_then(|machine| machine.disk.as_deref()).unwrap_or_default();
        let Some(disk) = disks.iter().find(|disk| disk.is_called(name)) else {
            let what = format!("{uri} has no disk \"{}\" any more", name.escape_debug());
            return Err(Error::new(ErrorKind::NotFound, what)
                .hint("restore the snapshot to a file, and give that to the machine"));
        };
        found.push(disk.clone());
    }
    Ok(found)
}

/// What would fail later is told while the machine runs.
fn check(repository: &Repository, member: &Member, disk: &MachineDisk) -> Result<()> {
    let (manifest, head) = (&member.writer.manifest, &member.writer.head);
    let target = reference::find(manifest, head, &member.request.to)?;
    open_chain(repository, manifest, target.id)?;
    if target.image_bytes == disk.bytes {
        return Ok(());
    }
    let place = manifest.place_of(target);
    let what = format!(
        "the disk \"{}\" has {} bytes, {place} has {}",
        disk.name, disk.bytes, target.image_bytes
    );
    Err(Error::new(ErrorKind::Mismatch, what)
        .hint("a disk of a machine keeps its length: restore to a file"))
}

/// True if an image is, or may be, half written.
fn is_under_way(repository: &Repository, names: &[String]) -> bool {
    let store = repository.store.as_ref();
    let is_whole = |name: &String| manifest::load(store, name).is_ok_and(|m| m.rollback.is_none());
    !names.iter().all(is_whole)
}

/// Never without its disks.
fn resume_whole(mut machine: Machine) -> Result<()> {
    match machine.is_detached()? {
        true => Err(Error::new(ErrorKind::Io, "the machine has not got its disks back")),
        false => machine.resume(),
    }
}

/// Nothing was written: the machine goes on as before, if it ran.
fn or_go_on(uri: &MachineUri, goes_on: bool, error: Error, context: &Context) -> Error {
    let resumed = match goes_on {
        true => Machine::connect(&uri.socket, context).and_then(resume_whole),
        false => Ok(()),
    };
    match resumed {
        Ok(()) => error,
        Err(_) => error.or_hint(message![
            "the machine is stopped; when that is put right, ",
            Action::Retry,
            ", which starts it"
        ]),
    }
}
