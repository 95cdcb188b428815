//! What is known of the live image (FORMAT.md section 9): which snapshot it last equalled, and
//! whether a rollback was begun and not ended. A hint: nothing is lost without it.

use crate::base::error::{Error, ErrorKind, Result};
use crate::image::FileStat;
use crate::store::{Store, read_small};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The head state of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// The snapshot that the live image last equalled.
    pub snapshot: Option<Uuid>,
    /// What the image file looked like then; none if that is not to be trusted.
    pub stat: Option<FileStat>,
    /// A rollback has begun: until it ends, the image is half written.
    pub intent: Option<RollbackIntent>,
    /// How often the image was found unchanged and no snapshot was made: each time another part of it was
    /// read again (FORMAT.md J6).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub skipped: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// A rollback that has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RollbackIntent {
    /// Where to.
    pub target: Uuid,
    /// The snapshot that holds the state before, if one was taken.
    pub saved: Option<Uuid>,
}

fn file(name: &str) -> String {
    format!("{name}/head.json")
}

impl Head {
    /// Reads the head state of an image; empty if there is none.
    ///
    /// A damaged one counts as none, but for `true`: it might have held the intent of a rollback.
    ///
    /// # Errors
    /// If it is there but cannot be read.
    pub fn load(store: &dyn Store, name: &str) -> Result<(Self, bool)> {
        match read_small(store, &file(name), 1 << 20) {
            Ok(bytes) => {
                let head = serde_json::from_slice(&bytes);
                Ok(head.map_or((Self::default(), true), |head| (head, false)))
            }
            Err(e) if e.kind() == ErrorKind::NotFound => Ok((Self::default(), false)),
            Err(e) if e.kind() == ErrorKind::Corrupt => Ok((Self::default(), true)),
            Err(e) => Err(e),
        }
    }

    /// Removes the head state, durably. Needs no free space.
    pub fn forget(store: &dyn Store, name: &str) -> Result<()> {
        store.remove(&file(name))?;
        store.sync_dir(name)
    }

    /// Writes the head state, durably.
    pub fn save(&self, store: &dyn Store, name: &str) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(self).map_err(|e| {
            Error::new(ErrorKind::InvalidInput, format!("cannot write the head state: {e}"))
        })?;
        store.replace(&file(name), &bytes)
    }
}
