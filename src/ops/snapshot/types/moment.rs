//! What is known of a snapshot whose point in time is that of others, or was fixed by somebody else.

use crate::repo::manifest::Group;
use crate::tracking::{ChangeList, Consistency};
use uuid::Uuid;

/// The point in time of a snapshot, as far as it is not its own.
#[derive(Debug, Clone)]
pub(crate) struct Moment {
    /// Identity of the snapshot.
    pub(crate) id: Uuid,
    /// All that are taken with it.
    pub(crate) group: Option<Group>,
    /// What was read there; none if nothing is, and the image itself is read.
    pub(crate) told: Option<Told>,
}

/// What a machine tells of one of its disks.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    /// What the disk was at that moment.
    pub(crate) consistency: Consistency,
    /// What was written to it since a snapshot; otherwise why that is not known, if it is of interest.
    pub(crate) changes: Result<(Uuid, ChangeList), Option<String>>,
}
