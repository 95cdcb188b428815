//! Consistency groups: snapshots of several images at one point in time (FORMAT.md J19).

use crate::base::error::{Error, ErrorKind, Result};
use crate::repo::reference::check_label;

/// Refuses what cannot be the name of a group.
///
/// # Errors
/// `InvalidInput`.
pub(crate) fn check_group_name(name: &str) -> Result<()> {
    // It is shown where labels are.
    check_label(name).map_err(|_| {
        let what = format!("\"{}\" cannot be the name of a group", name.escape_debug());
        Error::new(ErrorKind::InvalidInput, what).hint("choose another one")
    })
}
