//! What a request is of: one image, several at one point in time, or the disks of a machine.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::Context;
use crate::base::message::{Setting, message};
use crate::image::MachinePlace;
use crate::ops::snapshot::around::hooked;
use crate::ops::snapshot::types::{SnapshotOutcome, SnapshotRequest};
use crate::ops::snapshot::{self, domain, group, machine};
use crate::repo::Repository;
use std::slice::from_ref;

/// Takes the snapshots that a request is of: one, or one of each disk of a machine.
///
/// # Errors
/// As of [`snapshot::run`]; then there is none, unless the message names those that stand.
pub fn all_of(
    repository: &Repository,
    request: &SnapshotRequest,
    context: &Context,
) -> Result<Vec<SnapshotOutcome>> {
    let (machine, name) = (request.image.machine(), request.image_name()?);
    let is_plain = machine.is_none() && request.window.freeze.is_empty();
    // Which disks a machine has is not asked before the command has run: that may start it.
    let group = machine.filter(|machine| machine.disk.is_none()).map(|_| name.clone());
    hooked(request, &[name], group.as_deref(), context, || match is_plain {
        true => snapshot::run(repository, request, context).map(|outcome| vec![outcome]),
        false => at_one_time(repository, None, from_ref(request), context),
    })
}

/// Takes the one snapshot that a request is of.
///
/// # Errors
/// As of [`all_of`]; `InvalidInput` for a machine of which no disk is named.
pub fn only(
    repository: &Repository,
    request: &SnapshotRequest,
    context: &Context,
) -> Result<SnapshotOutcome> {
    if let Some(machine) = request.image.machine().filter(|machine| machine.disk.is_none()) {
        let what = format!("{machine} is a machine: its disks are taken as a group");
        return Err(Error::new(ErrorKind::InvalidInput, what));
    }
    let taken = all_of(repository, request, context)?.pop();
    taken.ok_or_else(|| Error::new(ErrorKind::Internal, "there is no snapshot"))
}

/// Takes a snapshot of each image, all as they are at one point in time. What happens around that is as the
/// first request says.
///
/// # Errors
/// As of [`all_of`].
pub fn grouped(
    repository: &Repository,
    name: Option<&str>,
    requests: &[SnapshotRequest],
    context: &Context,
) -> Result<Vec<SnapshotOutcome>> {
    if let (None, [only]) = (name, requests) {
        return all_of(repository, only, context);
    }
    let names: Result<Vec<String>> = requests.iter().map(SnapshotRequest::image_name).collect();
    let Some(first) = requests.first() else {
        return Err(Error::new(ErrorKind::InvalidInput, "no image was given"));
    };
    hooked(first, &names?, name, context, || at_one_time(repository, name, requests, context))
}

fn at_one_time(
    repository: &Repository,
    name: Option<&str>,
    requests: &[SnapshotRequest],
    context: &Context,
) -> Result<Vec<SnapshotOutcome>> {
    let machine = requests.iter().find_map(|request| request.image.machine().zip(Some(request)));
    match (machine, requests) {
        (None, _) => group::run(repository, name, requests, context),
        (Some((uri, request)), [_]) => match &uri.place {
            MachinePlace::Qmp(socket) => {
                machine::run(repository, name, uri, socket, request, context)
            }
            MachinePlace::Domain(domain) => {
                domain::run(repository, name, uri, domain, request, context)
            }
        },
        (Some((uri, _)), _) => {
            let what = format!("{uri} cannot be in one group with other images");
            Err(Error::new(ErrorKind::InvalidInput, what).hint(message![
                "take it by itself, or leave ",
                Setting::Group,
                " out"
            ]))
        }
    }
}
