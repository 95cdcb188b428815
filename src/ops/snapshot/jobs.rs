//! What a request is of: one image, several at one point in time, or the disks of a machine.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::Context;
use crate::base::message::{Setting, message};
use crate::ops::snapshot::types::{GroupOutcome, SnapshotOutcome, SnapshotRequest};
use crate::ops::snapshot::{self, group, machine};
use crate::repo::Repository;

/// Takes the snapshots that a request is of: one, or one of each disk of a machine.
///
/// # Errors
/// As of [`snapshot::run`]; then there is none, unless the message names those that stand.
pub fn all_of(
    repository: &Repository,
    request: &SnapshotRequest,
    context: &Context,
) -> Result<Vec<SnapshotOutcome>> {
    match request.image.machine() {
        Some(uri) => {
            machine::run(repository, None, uri, request, context).map(|outcome| outcome.members)
        }
        None => snapshot::run(repository, request, context).map(|outcome| vec![outcome]),
    }
}

/// Takes a snapshot of each image, all as they are at one point in time.
///
/// # Errors
/// As of [`all_of`].
pub fn grouped(
    repository: &Repository,
    name: Option<&str>,
    requests: &[SnapshotRequest],
    context: &Context,
) -> Result<GroupOutcome> {
    let machine = requests.iter().find_map(|request| request.image.machine().zip(Some(request)));
    match (machine, requests) {
        (None, _) => group::run(repository, name, requests, context),
        (Some((uri, request)), [_]) => machine::run(repository, name, uri, request, context),
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
