//! The verb *export*: a snapshot as one self-contained delta file.

use crate::base::error::Result;
use crate::base::progress::Context;
use crate::chain::Fork;
use crate::delta::{Identity, Written};
use crate::merge::{Plan, merge};
use crate::ops::snapshot::engine::{self, Parent};
use crate::repo::Repository;
use crate::repo::files::open_chain;
use crate::repo::session::Reader;
use crate::scan::{BadMedium, Scope};
use crate::view::SnapshotView;
use uuid::Uuid;

/// Writes one delta file of a snapshot to `out`: against another one, which may be a later one, or a
/// full one. `out` gets it front to back.
///
/// # Errors
/// `Corrupt` if something that is needed is damaged. Then `out` holds no whole file.
pub fn run(
    repository: &Repository,
    reader: &Reader,
    id: Uuid,
    since: Option<Uuid>,
    context: &Context,
    out: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<Written> {
    let chain = |id| open_chain(repository, reader.manifest(), id);
    let tip = chain(id)?;
    let parent = since.map(chain).transpose()?;
    let footer = tip.tip().footer().clone();
    let identity = Identity {
        snapshot_id: footer.snapshot_id,
        number: footer.number,
        // As it is called today.
        label: reader.manifest().by_id(id).and_then(|s| s.label.clone()),
        time_seconds: footer.time_seconds,
        time_nanoseconds: footer.time_nanoseconds,
    };
    let (file_id, compression) = (Uuid::new_v4(), repository.defaults().compression);
    match parent {
        // Two bases have two keys: what differs is found by reading the one as if it were an image.
        Some(parent) if !parent.is_comparable(&tip) => {
            context.progress().warn(
                "the two snapshots rest on two bases: the delta is a snapshot of its own, and those \
                 that are exported later do not follow it",
            );
            // Under another key it has another image digest, so it must not be taken for the same.
            let identity = Identity { snapshot_id: Uuid::new_v4(), ..identity };
            let image_id = reader.manifest().image_id;
            let plan = engine::Plan {
                parent: Parent::Tip(parent),
                identity,
                file_id,
                image_id,
                compression,
                is_by_reference: false,
                bad_medium: BadMedium::Fail,
            };
            let taken = engine::take(&SnapshotView::new(tip), &plan, Scope::Whole, context, out)?;
            Ok(taken.written)
        }
        parent => {
            let fork = Fork::new(tip, parent)?;
            let plan = Plan { fork, identity, file_id, compression };
            Ok(merge(&plan, context, out)?.written)
        }
    }
}
