//! A second look at what is damaged in what came from another host: a byte of it may have been changed on the
//! way.

use crate::base::error::{ErrorKind, Result};
use crate::base::events::{Context, WarningId};
use crate::base::message::message;
use crate::ops::verify::known::Known;
use crate::ops::verify::types::Verified;
use crate::repo::Repository;

/// Verifies an image, and once more if something is damaged and may not be.
///
/// # Errors
/// Of `verify`.
pub(super) fn verified(
    repository: &Repository,
    name: &str,
    known: &mut Known,
    verified: &mut Verified,
    verify: impl Fn(&mut Known, &mut Verified) -> Result<()>,
    context: &Context,
) -> Result<()> {
    if repository.store.url().is_none() {
        return verify(known, verified);
    }
    let (mut known_again, mut again) = (known.clone(), verified.clone());
    let damaged = verified.damaged.len();
    verify(known, verified)?;
    if verified.damaged.len() == damaged {
        return Ok(());
    }
    context.note(format!("{name}: reading again, as something was damaged"));
    repository.store.read_anew();
    match verify(&mut known_again, &mut again) {
        Err(e) if e.kind() == ErrorKind::Interrupted => return Err(e),
        Err(e) => context.warn(
            WarningId::DamagedOnTheWay,
            message![format!("{name}: what is damaged could not be read again: "), e],
        ),
        Ok(()) => {
            if again.damaged.len() < verified.damaged.len() {
                let what = "data was damaged in transit, but not where it is stored";
                context.warn(WarningId::DamagedOnTheWay, format!("{name}: {what}"));
            }
            (*known, *verified) = (known_again, again);
        }
    }
    Ok(())
}
