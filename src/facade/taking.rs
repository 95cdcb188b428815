//! The verbs that read live images, or write to them.

use crate::base::error::Result;
use crate::base::events::Context;
use crate::image::write::Medium;
use crate::ops;
use crate::ops::define::types::{DefineRequest, Defined};
use crate::ops::rollback::types::{RollbackOutcome, RollbackRequest};
use crate::ops::snapshot::types::{SnapshotOutcome, SnapshotRequest};
use crate::ops::watch::types::{WatchRequest, Watched};
use crate::repo::Repository;

impl Repository {
    /// Takes a snapshot.
    ///
    /// # Errors
    /// `Busy` if somebody writes to the image and it cannot be cloned, or works on it in the repository;
    /// `Unsupported` for a first snapshot of what does not look like a raw image. Then nothing is published.
    pub fn snapshot(
        &self,
        request: &SnapshotRequest,
        context: &Context,
    ) -> Result<SnapshotOutcome> {
        ops::snapshot::jobs::only(self, request, context)
    }

    /// Takes a snapshot of each image, some at a time. What became of each is given to `each`, in the
    /// order of the requests; one that fails does not stop the others. After an interrupt, each request
    /// that was not processed fails with `Interrupted`.
    ///
    /// # Errors
    /// `InvalidInput` if two requests are of the same image or name; then nothing was done.
    pub fn snapshot_all(
        &self,
        requests: &[SnapshotRequest],
        context: &Context,
        each: impl FnMut(&SnapshotRequest, Result<SnapshotOutcome>),
    ) -> Result<()> {
        ops::snapshot::several::run(self, requests, context, each)
    }

    /// Takes a snapshot of each image, all as they are at one point in time: a group, which may have a name.
    ///
    /// # Errors
    /// As of [`Repository::snapshot`]; then there is no snapshot of any, unless the message names those that
    /// stand.
    pub fn snapshot_group(
        &self,
        name: Option<&str>,
        requests: &[SnapshotRequest],
        context: &Context,
    ) -> Result<Vec<SnapshotOutcome>> {
        ops::snapshot::jobs::grouped(self, name, requests, context)
    }

    /// Takes snapshots until the context says to stop, and tells `each` of every turn.
    ///
    /// # Errors
    /// `InvalidInput` if two requests are of the same image or name. Nothing else ends it.
    pub fn watch(
        &self,
        request: &WatchRequest,
        context: &Context,
        each: impl Fn(Watched) + Sync,
    ) -> Result<()> {
        ops::watch::run(self, request, context, each)
    }

    /// Makes a machine of libvirt from a snapshot of one.
    ///
    /// # Errors
    /// `AlreadyExists` for a name that is taken; `Auth` for a stored definition that reaches into the
    /// host; as of a restore. Then nothing is left of it.
    pub fn define(&self, request: &DefineRequest, context: &Context) -> Result<Defined> {
        ops::define::run(self, request, context)
    }

    /// Rolls a live image back.
    ///
    /// # Errors
    /// `Mismatch` if the live file is not what the last snapshot was taken of. Once writing has begun, the
    /// image is half written until the same rollback has been run again, and the error says so.
    pub fn rollback(
        &self,
        request: &RollbackRequest,
        context: &Context,
    ) -> Result<RollbackOutcome> {
        ops::rollback::run(self, request, context)
    }

    /// The same by other means of changing the image than the operating system's own.
    ///
    /// # Errors
    /// As of [`Repository::rollback`].
    pub fn rollback_through(
        &self,
        medium: &dyn Medium,
        request: &RollbackRequest,
        context: &Context,
    ) -> Result<RollbackOutcome> {
        ops::rollback::run_through(self, medium, request, context)
    }
}
