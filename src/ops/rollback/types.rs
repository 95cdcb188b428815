//! Where an image is to be rolled back to, and what became of it.

use crate::base::setters::setters;
use crate::image::{ImageUri, ReadBy};
use crate::repo::reference::At;
use crate::tracking::HintKind;
use crate::view::update::Updated;
use serde::Serialize;

/// A rollback that a user wants.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RollbackRequest {
    /// Name of the image.
    pub name: String,
    /// Where to.
    pub to: At,
    /// Take a snapshot of the present state first.
    pub save: bool,
    /// Trust no hints: find what differs by a full scan, and verify the whole image at the end.
    pub prove: bool,
    /// Change nothing, only tell.
    pub dry_run: bool,
    /// Write to the device even if it is not the one of the last snapshot.
    pub force_device: bool,
    /// Read the files that the image refers to: who wrote its header chose them.
    pub backing_ok: bool,
    /// Only this image, not what the snapshot was taken with.
    pub alone: bool,
    /// Of a machine: reset it, and write to its disks.
    pub reset: bool,
    /// Of a machine of libvirt: shut it down before, and start it again.
    pub shutdown: bool,
    /// Of a machine: fail unless it is rolled back with all of its disks.
    pub whole_machine: bool,
}

impl RollbackRequest {
    /// Of the image `name` to a snapshot; the present state is saved first.
    pub fn new(name: impl Into<String>, to: At) -> Self {
        let (save, name) = (true, name.into());
        let (prove, dry_run, force_device, backing_ok) = (false, false, false, false);
        let (alone, reset, shutdown, whole_machine) = (false, false, false, false);
        Self {
            name,
            to,
            save,
            prove,
            dry_run,
            force_device,
            backing_ok,
            alone,
            reset,
            shutdown,
            whole_machine,
        }
    }

    setters! {
        /// Take a snapshot of the present state first.
        save: bool,
        /// Believe nothing: find what differs by a scan, and read everything again at the end.
        prove: bool,
        /// Change nothing, only tell.
        dry_run: bool,
        /// Write to the device even if it is not the one of the last snapshot.
        force_device: bool,
        /// Read the files that the image refers to: who wrote its header chose them.
        backing_ok: bool,
        /// Only this image, not what the snapshot was taken with.
        alone: bool,
        /// Of a machine: reset it, and write to its disks.
        reset: bool,
        /// Of a machine of libvirt: shut it down before, and start it again.
        shutdown: bool,
        /// Of a machine: fail unless it is rolled back with all of its disks.
        whole_machine: bool,
    }

    /// How its disk may be read.
    pub(crate) fn read_by(&self) -> ReadBy {
        ReadBy { via_qemu: true, backing_ok: self.backing_ok }
    }
}

/// What a rollback did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RollbackOutcome {
    /// Name of the image.
    pub name: String,
    /// Number of the snapshot that the image equals now.
    pub number: u64,
    /// The image.
    pub image: ImageUri,
    /// Bytes written, and read to find them.
    pub work: Updated,
    /// True if the image was read in full to find what differs.
    pub scanned: bool,
    /// Who else told where it may differ.
    pub hint: Option<HintKind>,
    /// True if it is proved, by reading, that the image equals the snapshot.
    pub proved: bool,
    /// The snapshot that holds the state before; none if it was not to be saved.
    pub saved: Option<u64>,
    /// True if nothing was changed.
    pub dry_run: bool,
    /// True if this finished an interrupted rollback.
    pub resumed: bool,
    /// What became of the images that the snapshot was taken with.
    pub others: Vec<RollbackOutcome>,
}
