//! The verb *export*: a snapshot as one self-contained delta file.

pub mod types;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::{Context, WarningId};
use crate::chain::Fork;
use crate::delta::Identity;
use crate::merge::{Plan, merge};
use crate::ops::export::types::{ExportOutcome, ExportRequest};
use crate::ops::snapshot::engine::{self, Parent};
use crate::repo::Repository;
use crate::repo::session::read;
use crate::scan::{BadMedium, Scope};
use crate::view::SnapshotView;
use uuid::Uuid;

/// Writes one delta file of a snapshot to `out`, front to back: against another one, which may be a later
/// one, or a full one.
///
/// # Errors
/// `Corrupt` if something that is needed is damaged. Then `out` holds no whole file.
pub fn run(
    repository: &Repository,
    request: &ExportRequest,
    context: &Context,
    mut out: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<ExportOutcome> {
    let reader = read(repository, &request.name, context)?;
    let snapshot = reader.find(&request.at)?.clone();
    let since = request.since.as_ref().map(|at| reader.find(at).cloned()).transpose()?;
    if since.as_ref().is_some_and(|since| since.id == snapshot.id) {
        let what = "a snapshot cannot be exported relative to itself";
        return Err(Error::new(ErrorKind::InvalidInput, what));
    }
    let tip = reader.chain(repository, snapshot.id)?;
    let parent = since.as_ref().map(|since| reader.chain(repository, since.id)).transpose()?;
    let image_id = reader.manifest().image_id;
    drop(reader);
    let footer = tip.tip().footer().clone();
    let identity = Identity {
        snapshot_id: footer.snapshot_id,
        number: footer.number,
        // As it is called today.
        label: snapshot.label.clone(),
        time_seconds: footer.time_seconds,
        time_nanoseconds: footer.time_nanoseconds,
    };
    let (file_id, compression) = (Uuid::new_v4(), repository.compression());
    let written = match parent {
        // Two bases have two keys: what differs is found by reading the one as if it were an image.
        Some(parent) if !parent.is_comparable(&tip) => {
            context.warn(
                WarningId::ExportUnrelated,
                "the two snapshots depend on different bases: the delta starts a chain of its own, \
                 which later exports do not continue",
            );
            // Under another key it has another image digest, so it must not be taken for the same.
            let identity = Identity { snapshot_id: Uuid::new_v4(), ..identity };
            let plan = engine::Plan {
                parent: Parent::Tip(parent),
                identity,
                file_id,
                image_id,
                compression,
                is_by_reference: false,
                bad_medium: BadMedium::Fail,
                cell_blocks: None,
            };
            let taken =
                engine::take(&SnapshotView::new(tip), &plan, Scope::Whole, context, &mut out)?;
            taken.written
        }
        parent => {
            let fork = Fork::new(tip, parent)?;
            let plan = Plan::of_one_file(fork, identity, file_id, compression);
            merge(&plan, context, &mut out)?.written
        }
    };
    Ok(ExportOutcome { snapshot, since, file_bytes: written.footer.file_bytes })
}
