//! The trait of change trackers, and what they are given and give.
//!
//! ```text
//! begin (the point in time) -> scan -> prepare (record, durable) -> manifest commit -> committed
//!                                                                        \-> aborted
//! killed anywhere: recover, by the next snapshot
//! ```

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::Context;
use crate::image::FileStat;
use crate::tracking::{ChangeHints, Costs, KeptClone, TimeSpent};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::str::FromStr;
use uuid::Uuid;

/// Knows what changed in an image since an earlier snapshot, and keeps what it takes to know it at the next
/// one. Hints are never trusted alone: each scan rechecks a part of the blocks they do not name.
pub trait ChangeTracker {
    /// Fixes the point in time of the snapshot, and finds out what changed since an earlier one.
    ///
    /// # Errors
    /// `Busy` if the image is in use and cannot be cloned, or not fast enough; `Unsupported` if tracking is
    /// required but unavailable.
    fn begin(&mut self, since: Since, context: &Context) -> Result<PointInTime>;

    /// Makes durable what the next snapshot needs to know what changed since snapshot `id`, and gives what
    /// the manifest is to record of it; none if nothing is kept. Before the commit, so that what a manifest
    /// names is there.
    fn prepare(&mut self, id: Uuid, context: &Context) -> Option<TrackerRecord>;

    /// The commit stands. `recorded`: the newest snapshot in the manifest that has a record.
    fn committed(&mut self, recorded: Option<Uuid>, context: &Context) {
        self.recover(recorded, context);
    }

    /// The commit failed, or nothing was to be committed; `recorded` as before.
    fn aborted(&mut self, recorded: Option<Uuid>, context: &Context) {
        self.recover(recorded, context);
    }

    /// Removes what no snapshot needs, that of killed processes included; `recorded` as before. What fails is
    /// told, and left to the next snapshot.
    fn recover(&mut self, recorded: Option<Uuid>, context: &Context);
}

/// What is known of earlier snapshots when one begins.
pub struct Since {
    /// What the image is compared with; none for a base.
    pub parent: Option<Uuid>,
    /// The snapshot that the image last equalled, and what its file looked like then.
    pub last_seen: Option<(Uuid, FileStat)>,
    /// The newest record; if it is of no use, why.
    pub recorded: Result<Recorded, String>,
    /// What it took before.
    pub costs: Costs,
    /// All of the image is read, whatever is known.
    pub must_read: bool,
}

/// A snapshot that the manifest has a record of.
pub struct Recorded {
    /// The snapshot.
    pub id: Uuid,
    /// What to call it in a message.
    pub place: String,
    /// Length of the image.
    pub image_bytes: u64,
    /// The record.
    pub record: TrackerRecord,
}

/// What the manifest records of a tracker at a snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum TrackerRecord {
    /// A clone of the image.
    Clone(KeptClone),
}

/// The image at the point in time of a snapshot, and what changed in it.
pub struct PointInTime {
    /// The image as it was then, if that is another file than the image itself.
    pub source: Option<File>,
    /// How long writers of the image were held up, in seconds, if they were.
    pub stall_seconds: Option<f64>,
    /// What the image was at that moment.
    pub consistency: Consistency,
    /// What changed.
    pub changes: KnownChanges,
    /// How long it took to compare the maps of clones.
    pub maps_time: TimeSpent,
}

/// What an image is that is read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Consistency {
    /// Nobody had it open for writing.
    #[default]
    Stopped,
    /// It was in use: it is what it would have been after a power failure then.
    Crash,
    /// It was in use, and the file systems in it were frozen.
    Frozen,
    /// Whether somebody wrote to it is not known: an export.
    Unknown,
}

impl Consistency {
    /// True if nobody had it open for writing.
    pub fn is_stopped(&self) -> bool {
        *self == Self::Stopped
    }

    /// True if somebody had.
    pub fn is_in_use(&self) -> bool {
        !matches!(self, Self::Stopped | Self::Unknown)
    }
}

/// What a tracker knows of changes.
pub enum KnownChanges {
    /// Nothing; why, if that is of interest.
    Unknown(Option<String>),
    /// Nothing changed since this snapshot.
    Unchanged(Uuid),
    /// What changed since a snapshot is in hints.
    Hinted {
        /// The snapshot.
        since: Uuid,
        /// Who tells.
        kind: HintKind,
        /// Makes the hints, for an image of so many bytes; more than once, because a scan may begin again.
        hints: HintFactory,
    },
}

/// Makes hints for an image of so many bytes.
pub type HintFactory = Box<dyn Fn(u64) -> Result<Box<dyn ChangeHints>>>;

impl KnownChanges {
    /// Who tells what changed, and since which snapshot; none if nobody does.
    pub fn hint(&self) -> Option<(HintKind, Uuid)> {
        match self {
            Self::Unknown(_) => None,
            Self::Unchanged(since) => Some((HintKind::Times, *since)),
            Self::Hinted { since, kind, .. } => Some((*kind, *since)),
        }
    }
}

/// Who knows what changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HintKind {
    /// The file system: extents that two clones share.
    Extents,
    /// A list that somebody gave.
    List,
    /// A dirty bitmap that a server or an image file keeps.
    Bitmap,
    /// The times of the file: nobody wrote to it.
    Times,
}

/// How it is found, without reading, what changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Track {
    /// By clones of the image, where its file system can make them and that is worth while.
    #[default]
    Auto,
    /// By clones of the image, or not at all.
    Reflink,
    /// Not at all.
    None,
}

impl FromStr for Track {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "reflink" => Ok(Self::Reflink),
            "none" => Ok(Self::None),
            _ => {
                let what = format!("unknown tracking method \"{}\"", text.escape_debug());
                Err(Error::new(ErrorKind::InvalidInput, what).hint("use auto, reflink or none"))
            }
        }
    }
}
