//! The rollback of the disks of a machine that libvirt manages: of its image files, while it is shut off.
//!
//! A machine with saved memory is not touched: that memory belongs to the disks as they are.

use super::group::{Member, roll_back};
use super::machine::{check, check_whole, is_under_way};
use super::one::LetGo;
use super::types::{RollbackOutcome, RollbackRequest};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::{Context, WarningId};
use crate::base::message::{Action, Setting, message};
use crate::image::DomainName;
use crate::image::write::Medium;
use crate::libvirt::{Domain, DomainDisk, DomainState, Hypervisor};
use crate::repo::Repository;
use crate::repo::live_file::source_of;

/// Rolls the disks of a domain back.
///
/// # Errors
/// `Busy` if it runs and is not to be shut down, or does not shut down; `Mismatch` if a disk has another
/// length, or is left out; as of any rollback.
pub(super) fn run(
    repository: &Repository,
    medium: &dyn Medium,
    place: &DomainName,
    members: Vec<Member>,
    context: &Context,
) -> Result<RollbackOutcome> {
    let hypervisor = Hypervisor::connect(place.connect.as_deref(), context)?;
    let domain = hypervisor.domain(&place.name, context)?;
    let uri = domain.uri();
    let is_all = |wanted: fn(&RollbackRequest) -> bool| members.iter().all(|m| wanted(&m.request));
    let is_dry_run = !is_all(|request| !request.dry_run);
    let is_running = domain.state(context)? != DomainState::Off;
    if is_running && (is_dry_run || !is_all(|request| request.shutdown)) {
        let what = format!("{uri} is running and has its disks open");
        return Err(Error::new(ErrorKind::Busy, what)
            .hint(message!["shut it down, or have it shut down with ", Setting::Shutdown]));
    }
    if domain.has_managed_save(context)? {
        let what =
            format!("{uri} has saved memory, which belongs to the present state of its disks");
        return Err(Error::new(ErrorKind::Busy, what).hint(message![
            "start it, or discard the memory (virsh managedsave-remove), and ",
            Action::Retry
        ]));
    }
    let all = domain.definition(context)?.disks;
    let disks = disks_of(&domain, &members, &all)?;
    if is_all(|request| request.whole_machine) {
        let is_missing = |disk: &&DomainDisk| !disks.contains(disk);
        let missing = all.iter().filter(is_missing).map(|disk| disk.target.as_str());
        check_whole(&members, &missing.collect::<Vec<_>>())?;
    }
    if is_running && domain.is_transient(context)? {
        let what = format!("{uri} is transient: libvirt forgets it when it is shut off");
        return Err(Error::new(ErrorKind::Unsupported, what)
            .hint("define it (virsh dumpxml, virsh define), and run the command again"));
    }
    let lengths = domain.lengths(context)?;
    let mut let_go = Vec::new();
    for (member, disk) in members.into_iter().zip(disks) {
        let Some(path) = disk.path else {
            let what = format!("{} is on a server", uri.with_disk(&disk.target));
            return Err(Error::new(ErrorKind::Unsupported, what)
                .hint("restore the snapshot to a file, and write that there"));
        };
        let bytes = lengths.get(&disk.target).copied().unwrap_or_default();
        check(repository, &member, &disk.target, bytes)?;
        let_go.push((member, Some(LetGo::File { path, format: disk.format.parse()? })));
    }
    let names: Vec<String> = let_go.iter().map(|(member, _)| member.request.name.clone()).collect();
    if is_running {
        domain.recover(context)?;
        if let Err(error) = domain.shut_down(context) {
            let what = format!("{uri} was asked to shut down, and may still do so");
            context.warn(WarningId::MachineStopped, what);
            return Err(error);
        }
        let now = domain.definition(context)?.disks;
        let same = |disk: &DomainDisk| {
            all.iter().any(|then| then.target == disk.target && then.path == disk.path)
        };
        if now.len() != all.len() || !now.iter().all(same) {
            let what = format!(
                "{uri} has other disks now that it is shut off: its definition was changed"
            );
            return Err(Error::new(ErrorKind::Mismatch, what)
                .hint("run the command again, now that it is shut off"));
        }
    }
    let outcome = roll_back(repository, medium, let_go, context);
    if outcome.is_err() && is_under_way(repository, &names) {
        return outcome.map_err(|error| error.at(format!("{uri} is shut off and must stay so")));
    }
    if is_running && let Err(error) = domain.start() {
        let why = error.without_advice();
        let what = format!("{uri} was shut down, but cannot be started again: {why}");
        context.warn(WarningId::MachineStopped, what);
    }
    outcome
}

/// The disks of the members, in their order.
fn disks_of(domain: &Domain, members: &[Member], all: &[DomainDisk]) -> Result<Vec<DomainDisk>> {
    let mut found = Vec::new();
    for Member { writer, request } in members {
        let place = source_of(&request.name, &writer.head)?;
        let name = place.machine().and_then(|machine| machine.disk.as_deref()).unwrap_or_default();
        let Some(disk) = all.iter().find(|disk| disk.target == name) else {
            let what = format!("{} no longer has a disk \"{}\"", domain.uri(), name.escape_debug());
            return Err(Error::new(ErrorKind::NotFound, what)
                .hint("restore the snapshot to a file, and attach that to the machine"));
        };
        found.push(disk.clone());
    }
    Ok(found)
}
