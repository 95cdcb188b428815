//! The verb *label*: gives a snapshot a name of its own, or takes it away.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::Context;
use crate::repo::Repository;
use crate::repo::change::change_snapshot;
use crate::repo::manifest::Snapshot;
use crate::repo::reference::{self, At, check_label};
use crate::repo::session::write;

/// Gives a snapshot a label, or takes it away.
pub fn run(
    repository: &Repository,
    name: &str,
    at: &At,
    label: Option<&str>,
    context: &Context,
) -> Result<Snapshot> {
    label.map_or(Ok(()), check_label)?;
    let mut writer = write(repository, name, context)?;
    let id = reference::find(&writer.manifest, &writer.head, at)?.id;
    let snapshots = &writer.manifest.snapshots;
    let taken = snapshots.iter().find(|s| s.id != id && s.label.as_deref() == label);
    if let (Some(taken), Some(label)) = (taken, label) {
        let what = format!("{name}@{} already has the label \"{label}\"", taken.number);
        return Err(Error::new(ErrorKind::AlreadyExists, what).hint("choose another label"));
    }
    change_snapshot(repository, &mut writer, id, |snapshot| {
        snapshot.label = label.map(str::to_owned)
    })
}
