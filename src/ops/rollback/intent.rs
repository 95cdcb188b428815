//! What is said of a rollback before the first byte is written, and after the last: in the manifest to
//! every host, in the host state to this one.
//!
//! ```text
//! note: nothing is written -> intent in the manifest -> note removed -> first byte ... last byte
//!   -> no intent
//! ```
//!
//! An intent may land long after it was told to have failed. Therefore the note: while it is there, an
//! intent means nothing.

use crate::base::error::{Error, Result};
use crate::base::events::Context;
use crate::base::message::{Setting, Verb, message};
use crate::image::{Disk, Intent, RawFile};
use crate::repo::Repository;
use crate::repo::change::commit_change;
use crate::repo::head::RollbackIntent;
use crate::repo::host::Unwritten;
use crate::repo::live_file::{record_head, record_live_file, warn_if_not_durable};
use crate::repo::manifest::{Manifest, Rollback, changed_meanwhile};
use crate::repo::session::Writer;
use uuid::Uuid;

/// True if a note is there that was told to have failed. Without one a rollback that has not begun to write
/// counts as half done.
pub(super) fn may_be_there(note: &Unwritten, error: &Error, context: &Context) -> Result<bool> {
    context.note(error);
    note.is_there()
}

/// Says in the manifest, to every host, that a rollback has begun, or that none is under way.
pub(super) fn record_intent(
    repository: &Repository,
    writer: &mut Writer,
    rollback: Option<Rollback>,
) -> Result<()> {
    let Manifest { rollback: before, host, source, .. } = writer.manifest.clone();
    let is_listed = |id: &Uuid| writer.manifest.by_id(*id).is_some();
    let saved = rollback.as_ref().and_then(|r| r.saved).filter(is_listed);
    commit_change(repository, writer, &[], |next| {
        // Others may have linked the image elsewhere, begun a rollback, or dropped either end of this one.
        let is_the_same = next.rollback == before && next.host == host && next.source == source;
        let has_target = rollback.as_ref().is_none_or(|r| next.by_id(r.target).is_some());
        let has_saved = saved.is_none_or(|id| next.by_id(id).is_some());
        if !is_the_same || !has_target || !has_saved {
            return Err(changed_meanwhile(&next.name));
        }
        next.rollback.clone_from(&rollback);
        Ok(())
    })?;
    writer.head.intent =
        rollback.map(|r| RollbackIntent { target: r.target, saved: r.saved, id: r.id });
    Ok(())
}

/// Records that the image equals the snapshot now. An intent left behind would mark the image as half
/// written, and changes made later would not be saved.
pub(super) fn end_rollback(
    repository: &Repository,
    writer: &mut Writer,
    id: Uuid,
    disk: &Disk,
    context: &Context,
) -> Result<()> {
    // What others write through is not seen in the times of a file.
    let stat = disk.raw().and_then(RawFile::stable_stat);
    disk.raw().map_or(Ok(()), |image| image.check_alone(Intent::Read))?;
    record_live_file(writer, disk, context);
    record_head(repository, writer, id, stat, context);
    record_intent(repository, writer, None).map_err(|e| {
        let what = format!(
            "{}: all was written, but the end of the rollback was not recorded",
            disk.name()
        );
        let again = Verb::Rollback.of(&writer.manifest.name).asking(Setting::To);
        e.at(what).or_hint(message!["run ", again, " again"])
    })?;
    warn_if_not_durable(disk, context);
    Ok(())
}
