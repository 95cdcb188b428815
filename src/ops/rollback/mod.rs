//! Rolling live images back: save their present state, note the intent, write, note the new head.
//!
//! ```text
//! save the present state -> intent (durable) -> write what differs, fsync -> head = target, no intent
//! ```
//!
//! Interrupted before the intent, nothing has happened. Interrupted after it, the image is
//! half written, and the intent records that: the next rollback does not save it, and scans all of it to
//! find what differs. An intent may also land long after its rollback was told to have failed; so the host
//! notes of each, until the first byte, that nothing is written, and then the next rollback saves the present
//! state as ever.
//!
//! Of a group each step is done for all members before the next: the intents of all are noted before the
//! first byte of any is written.

mod domain;
mod group;
mod intent;
mod live;
mod machine;
mod one;
mod plan;
pub mod types;

use crate::base::error::Result;
use crate::base::events::Context;
use crate::image::MachinePlace;
use crate::image::write::{Medium, OsMedium};
use crate::ops::rollback::group::{open_members, roll_back};
use crate::ops::rollback::types::{RollbackOutcome, RollbackRequest};
use crate::repo::Repository;

/// Rolls a live image back, and with it all that its target was taken with.
pub fn run(
    repository: &Repository,
    request: &RollbackRequest,
    context: &Context,
) -> Result<RollbackOutcome> {
    run_through(repository, &OsMedium, request, context)
}

/// Like [`run`], but writes to the image through `medium`; tests use it to simulate power loss.
pub fn run_through(
    repository: &Repository,
    medium: &dyn Medium,
    request: &RollbackRequest,
    context: &Context,
) -> Result<RollbackOutcome> {
    let members = open_members(repository, request, context)?;
    match machine::machine_of(&members)? {
        Some(MachinePlace::Qmp(socket)) => {
            machine::run(repository, medium, socket, members, context)
        }
        Some(MachinePlace::Domain(domain)) => {
            domain::run(repository, medium, &domain, members, context)
        }
        None => {
            let members = members.into_iter().map(|member| (member, None)).collect();
            roll_back(repository, medium, members, context)
        }
    }
}
