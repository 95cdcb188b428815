//! The rollback of the disks of a machine that QEMU runs.
//!
//! ```text
//! stop -> present state saved, by bitmaps -> reset -> disks taken from their devices, exported
//!   -> rolled back as any image -> disks given back -> cont
//! ```
//!
//! The machine stays stopped from before its state is saved until the last byte is written, so nothing is
//! lost in between, and the differences are those of two tables. If we are killed before its disks are taken
//! from it, it goes on; if we are killed later, it stays stopped, and the next rollback goes on from there.

use super::group::{Member, roll_back};
use super::one::LetGo;
use super::types::{RollbackOutcome, RollbackRequest};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::{Context, WarningId};
use crate::base::message::{Setting, Verb, message};
use crate::image::write::Medium;
use crate::image::{MachinePlace, MachineUri};
use crate::machine::{Machine, MachineDisk, RunState, bitmap_name};
use crate::ops::snapshot::machine::save_disks;
use crate::repo::Repository;
use crate::repo::files::open_chain;
use crate::repo::live_file::source_of;
use crate::repo::{manifest, reference};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// The machine that all of the images are disks of; none if none of them is one.
///
/// # Errors
/// `InvalidInput` if that is so of some of them only, or if they are of several machines.
pub(super) fn machine_of(members: &[Member]) -> Result<Option<MachinePlace>> {
    let mut places = Vec::new();
    for Member { writer, request } in members {
        let place = source_of(&request.name, &writer.head)?;
        places.push(place.machine().map(|machine| machine.place.clone()));
    }
    match places.first().cloned() {
        Some(first) if places.iter().all(|place| *place == first) => Ok(first),
        _ => {
            let what = "the images of the group no longer all belong to one machine";
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
    let uri = MachineUri::qmp(socket.clone());
    let names: Vec<String> = members.iter().map(|member| member.request.name.clone()).collect();
    let is_all = |wanted: fn(&RollbackRequest) -> bool| members.iter().all(|m| wanted(&m.request));
    if !is_all(|request| !request.dry_run) {
        let what = "a dry run is not possible: what differs is known only after a machine is reset";
        return Err(Error::new(ErrorKind::InvalidInput, what).hint(message![
            "leave ",
            Setting::DryRun,
            " out"
        ]));
    }
    let mut machine = Machine::connect(&socket, context).map_err(|e| is_off(e, &names))?;
    if !is_all(|request| request.reset) {
        let what = format!("{uri} has its disks open");
        return Err(Error::new(ErrorKind::Busy, what).hint(message![
            "have it reset with ",
            Setting::Reset,
            ", or shut it down and roll its image files back"
        ]));
    }
    machine.recover(context)?;
    let disks = disks_of(&mut machine, &uri, &members)?;
    for (member, disk) in members.iter().zip(&disks) {
        check(repository, member, &disk.name, disk.bytes)?;
    }
    if members.iter().all(|member| member.request.whole_machine) {
        let all = machine.disks()?;
        let is_missing = |disk: &&MachineDisk| disks.iter().all(|member| member.node != disk.node);
        let missing = all.iter().filter(is_missing).map(|disk| disk.name.as_str());
        check_whole(&members, &missing.collect::<Vec<_>>())?;
    }
    let detached = machine.detached()?;
    let is_resumed = !detached.is_empty();
    if is_resumed {
        context.note(format!("{uri}: an interrupted rollback had left it stopped"));
    }
    let stopped = machine.stop(context).map_err(|error| or_go_on(&uri, &socket, error))?;
    let (machine, guard) = stopped.apart();
    let is_half_written = members.iter().any(|member| member.writer.head.intent.is_some());
    let is_saved = members.iter().all(|member| member.request.save);
    let mut equal: Vec<Option<Uuid>> = vec![None; members.len()];
    let machine = match is_saved && !is_half_written && !is_resumed {
        true => {
            let target = |Member { writer, request }: &Member| {
                reference::find(&writer.manifest, &writer.head, &request.to).map(|s| s.id)
            };
            let targets = members.iter().map(target).collect::<Result<Vec<Uuid>>>();
            let mut writers: Vec<_> = members.iter_mut().map(|member| &mut member.writer).collect();
            let saved = targets.and_then(|targets| {
                save_disks(repository, machine, &mut writers, &disks, &targets, context)
            });
            match saved {
                Ok((machine, ids)) => {
                    equal = ids.into_iter().map(Some).collect();
                    machine
                }
                Err(error) => {
                    drop(guard);
                    return Err(or_go_on(&uri, &socket, error));
                }
            }
        }
        false => machine,
    };
    let mut detached =
        machine.detach(disks, guard, context).map_err(|error| or_go_on(&uri, &socket, error))?;
    for (index, (equal, member)) in equal.iter_mut().zip(&members).enumerate() {
        // Whoever let it go on meanwhile has made it another one: it is saved once more.
        let image = member.writer.manifest.image_id;
        if let Some(bitmap) = equal.map(|snapshot| bitmap_name(image, snapshot))
            && !detached.is_clean_since(index, &bitmap).unwrap_or(false)
        {
            context.note(format!("{uri}: something was written to a disk after it was saved"));
            *equal = None;
        }
    }
    let let_go = |(index, (member, equals)): (usize, (Member, Option<Uuid>))| {
        (member, detached.uri(index).map(|uri| LetGo::Export { uri, equals }))
    };
    let members = members.into_iter().zip(equal).enumerate().map(let_go).collect();
    let outcome = roll_back(repository, medium, members, context);
    // What another run has begun may be known to another repository alone.
    if outcome.is_err() && (is_resumed || is_under_way(repository, &names)) {
        let what = match detached.is_gone() {
            true => format!("{uri} has ended; start it with -S, and roll back again"),
            false => format!("{uri} stays stopped"),
        };
        return outcome.map_err(|error| error.at(what));
    }
    match (outcome, detached.attach(context)) {
        (Ok(outcome), Ok(mut machine)) => {
            let away = machine.detached().unwrap_or_default();
            let away: Vec<String> = away.into_iter().map(|disk| disk.name).collect();
            if !away.is_empty() {
                let what = format!(
                    "{uri} stays stopped, since a rollback of its disk {} was interrupted: roll that \
                     back, too, or restart the machine",
                    away.join(", ")
                );
                context.warn(WarningId::MachineStopped, what);
            } else if machine.run_state().is_ok_and(|state| state != RunState::Running) {
                let what = format!(
                    "{uri} was stopped before, and stays so: \"cont\" in its monitor starts it"
                );
                context.warn(WarningId::MachineStopped, what);
            }
            Ok(outcome)
        }
        (Ok(_), Err(error)) => {
            let what = format!("{uri}: all was written, but its disks cannot be reattached");
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

/// There is no machine to ask.
fn is_off(error: Error, names: &[String]) -> Error {
    let relink = match names {
        [name] => Verb::Relink.of(name),
        _ => Verb::Relink.call().asking(Setting::Name),
    };
    let relink = relink.asking(Setting::Image);
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::Unavailable => error.hint(message![
            "start it first (QEMU with -S will do), or set where its image file is with ",
            relink,
            " and roll that back while the machine is off",
        ]),
        _ => error,
    }
}

/// Fails if disks of the machine are not rolled back.
///
/// # Errors
/// `Mismatch` with those that are not.
pub(super) fn check_whole(members: &[Member], missing: &[&str]) -> Result<()> {
    let Some(first) = members.first().filter(|_| !missing.is_empty()) else { return Ok(()) };
    let name = &first.request.name;
    let what = format!(
        "the snapshot of \"{name}\" was not taken with the disk {} of the machine",
        missing.join(", ")
    );
    Err(Error::new(ErrorKind::Mismatch, what).hint(message![
        "choose a snapshot of all its disks, or roll this disk back by the name of its image: ",
        Verb::Rollback.of(name).asking(Setting::To).with(Setting::Reset, ""),
    ]))
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
            let what = format!("{uri} no longer has a disk \"{}\"", name.escape_debug());
            return Err(Error::new(ErrorKind::NotFound, what)
                .hint("restore the snapshot to a file, and attach that to the machine"));
        };
        found.push(disk.clone());
    }
    Ok(found)
}

/// What would fail later is told while the machine runs.
pub(super) fn check(
    repository: &Repository,
    member: &Member,
    disk: &str,
    bytes: u64,
) -> Result<()> {
    let (manifest, head) = (&member.writer.manifest, &member.writer.head);
    let target = reference::find(manifest, head, &member.request.to)?;
    open_chain(repository, manifest, target.id)?;
    if target.image_bytes == bytes {
        return Ok(());
    }
    let place = manifest.place_of(target);
    let what =
        format!("the disk \"{disk}\" has {bytes} bytes, but {place} has {}", target.image_bytes);
    Err(Error::new(ErrorKind::Mismatch, what)
        .hint("a disk of a machine keeps its length: restore to a file"))
}

/// True if an image is, or may be, half written.
pub(super) fn is_under_way(repository: &Repository, names: &[String]) -> bool {
    let store = repository.store.as_ref();
    let is_whole = |name: &String| manifest::load(store, name).is_ok_and(|m| m.rollback.is_none());
    !names.iter().all(is_whole)
}

/// Nothing was written: the machine goes on as before, if it ran. Also when we are told to end.
fn or_go_on(uri: &MachineUri, socket: &Path, error: Error) -> Error {
    let awake = Machine::connect(socket, &Context::silent()).and_then(|mut machine| {
        machine.wake()?;
        machine.is_to_go_on()
    });
    match awake {
        Ok(false) => error,
        Ok(true) | Err(_) => error
            .at(format!("{uri} is stopped, or may be, until the next snapshot or rollback of it")),
    }
}
