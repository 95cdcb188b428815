//! What a file begins from whose parent is a snapshot of another image.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::{Context, WarningId};
use crate::base::message::message;
use crate::chain::Chain;
use crate::delta::Delta;
use crate::repo::Repository;
use crate::repo::files::open_base;
use crate::repo::manifest::{self, BaseOf, Manifest, Pin, pin_object};
use uuid::Uuid;

/// Finds it as `old` knew it, or among what the other images list now. Its pin is nil if it is not known.
///
/// # Errors
/// If it cannot be known now whether there is one.
pub(crate) fn base_elsewhere(
    repository: &Repository,
    old: Option<&Manifest>,
    image: &Manifest,
    delta: &Delta,
    context: &Context,
) -> Result<Option<(BaseOf, Chain)>> {
    let Some(parent) = delta.footer().parent.map(|p| p.parent_id) else { return Ok(None) };
    let id = delta.footer().snapshot_id;
    let known = old.and_then(|old| old.stored().into_iter().find(|s| s.id == id));
    let known = known.and_then(|s| s.base_of.clone()).filter(|of| of.snapshot == parent);
    let found = match known {
        Some(of) => Some(of),
        None => search(repository, image, parent, context)?,
    };
    let Some(of) = found else { return Ok(None) };
    match open_base(repository, &of) {
        Ok(chain) => Ok(Some((of, chain))),
        Err(e) if is_undecided(&e) => Err(e),
        Err(e) => {
            context.warn(WarningId::SourceUnusable, message![e, "; repair that image first"]);
            Ok(None)
        }
    }
}

fn is_undecided(error: &Error) -> bool {
    error.is_unread() || error.kind() == ErrorKind::Interrupted
}

/// Also among what is dropped there: whoever dropped it may not have known what depends on it.
fn search(
    repository: &Repository,
    image: &Manifest,
    parent: Uuid,
    context: &Context,
) -> Result<Option<BaseOf>> {
    for name in repository.names()?.into_iter().filter(|name| *name != image.name) {
        let other = match manifest::load(repository.store.as_ref(), &name) {
            Ok(other) => other,
            Err(e) if is_undecided(&e) => return Err(e),
            Err(e) => {
                let what = "; what this image depends on was not searched there";
                context.warn(WarningId::SourceUnusable, message![e, what]);
                continue;
            }
        };
        if let Some(snapshot) = other.stored().into_iter().find(|s| s.id == parent) {
            let is_own = |pin: &&Pin| {
                pin.image == image.image_id && !image.is_condemned(&pin_object(pin.id))
            };
            let pin = snapshot.pins.iter().find(is_own).map(|pin| pin.id);
            return Ok(Some(BaseOf {
                image: other.image_id,
                name,
                snapshot: parent,
                number: snapshot.number,
                pin: pin.unwrap_or_default(),
            }));
        }
    }
    Ok(None)
}
