//! What is to be restored, found and checked, and what becomes of it.

use super::types::{RestoreRequest, UpdateOutcome};
use crate::base::error::Error;
use crate::base::events::Context;
use crate::base::message::{Setting, Verb, message};
use crate::chain::Chain;
use crate::image::write::InPlace;
use crate::image::{FileStat, ImageFormat, LiveIdentity};
use crate::repo::Repository;
use crate::repo::manifest::Snapshot;
use crate::repo::restored::RestoredNote;
use crate::view::{Restored, Seed};
use std::path::Path;
use uuid::Uuid;

/// A snapshot that is to be written somewhere.
pub(super) struct Task<'a> {
    pub repository: &'a Repository,
    pub request: &'a RestoreRequest,
    pub image_id: Uuid,
    pub snapshot: &'a Snapshot,
    pub chain: &'a Chain,
    /// True if the chain has blocks that were never read; they are zeros.
    pub has_unread: bool,
    /// How the disk is to lie in the target, if that is the place of the live image.
    pub live_format: Option<ImageFormat>,
    pub seed: Option<&'a Seed<'a>>,
}

/// What was done.
pub(super) struct Done {
    pub restored: Restored,
    /// Bytes at the end of a longer device.
    pub untouched_bytes: u64,
    pub update: Option<UpdateOutcome>,
}

impl Task<'_> {
    /// The snapshot, as users name it.
    pub fn reference(&self) -> String {
        self.reference_to(self.snapshot)
    }

    /// Notes that a file is the snapshot: what that spares is worth no failure, and no warning.
    pub fn note_restored(
        &self,
        path: &Path,
        file: LiveIdentity,
        stat: FileStat,
        context: &Context,
    ) {
        // It is not told what its blocks are that were never read.
        if self.has_unread {
            return;
        }
        let noted = RestoredNote::of(self.repository, path)
            .and_then(|note| note.put(self.image_id, self.snapshot.id, file, stat));
        if let Err(e) = noted {
            context.note(e);
        }
    }

    /// An error that says so if anything was written to a target that was there.
    pub fn half_written(&self, disk: &dyn InPlace, format: ImageFormat, error: Error) -> Error {
        if !disk.is_begun() {
            return error;
        }
        let request = self.request;
        let mut again = Verb::Restore.of(self.reference()).with(Setting::Output, disk.name());
        for (setting, is_set) in [
            (Setting::Update, request.update),
            (Setting::Force, request.force),
            (Setting::AcceptUnread, request.accept_unread),
            (Setting::BackingOk, request.backing_ok),
        ] {
            if is_set {
                again = again.with(setting, "");
            }
        }
        if let Some(range) = request.range {
            again = again.with(Setting::Range, format!("{}+{}", range.offset, range.bytes));
        }
        // What it looks like now is no guide.
        let found = Some(format).filter(|format| request.update && !format.is_raw());
        if let Some(format) = request.format.or(found) {
            again = again.with(Setting::Format, format.qemu());
        }
        error.hint(message![
            format!("{} is only partly written: run ", disk.name()),
            again,
            " again to complete it"
        ])
    }

    /// Another snapshot of the same image, as users name it.
    pub fn reference_to(&self, snapshot: &Snapshot) -> String {
        format!("{}@{}", self.request.name, snapshot.number)
    }
}
