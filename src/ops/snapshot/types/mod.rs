//! What a snapshot is asked for with, and what became of it.

pub(crate) mod moment;
mod window;

pub use window::Window;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::message::{Setting, message};
use crate::base::setters::setters;
use crate::base::units::{BlockSize, NamedBlocks, PartSize};
use crate::codec::Compression;
use crate::image::{ImageFormat, ImageUri, ReadBy};
use crate::repo::manifest::{self, BaseOf, HintUse, Snapshot};
use crate::repo::reference::{At, Reference};
use crate::tracking::Track;
use crate::tracking::{ChangeList, Recheck};
pub(crate) use moment::Moment;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;
use uuid::Uuid;

/// Against what a snapshot is taken.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ParentChoice {
    /// The snapshot that the live image last equalled, else the newest.
    #[default]
    Incremental,
    /// Nothing: a new base.
    Full,
    /// The base of the chain.
    Differential,
    /// A certain snapshot.
    Of(At),
}

/// A snapshot that a user wants.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct SnapshotRequest {
    /// The image file or device.
    pub image: ImageUri,
    /// What is read is a snapshot of this file or device, which is what is recorded: the image.
    pub of: Option<ImageUri>,
    /// Take it as a snapshot of that without a proof.
    pub force: bool,
    /// Name of the image; otherwise its file name without extension.
    pub name: Option<String>,
    /// A label.
    pub label: Option<String>,
    /// Against what.
    pub parent: ParentChoice,
    /// The image is a clone of this one, which becomes its base and stays where it is.
    pub base_image: Option<PathBuf>,
    /// Read the image even if it is known to be unchanged.
    pub full_scan: bool,
    /// Publish nothing if the image is unchanged.
    pub skip_unchanged: bool,
    /// Blocks that the medium of the image does not give are unread in the snapshot; otherwise there is
    /// none.
    pub skip_bad: bool,
    /// How the disk lies in the image; otherwise as it was recorded, and at the first snapshot by its magic.
    pub format: Option<ImageFormat>,
    /// Read a format through QEMU that is not read natively.
    pub via_qemu: bool,
    /// Read the files that the image refers to: who wrote its header chose them.
    pub backing_ok: bool,
    /// Unit of comparison of a new base; otherwise the repository's.
    pub block_size: Option<BlockSize>,
    /// On which grid a new base is cut into parts; otherwise as the one before, or on that of 8 GiB.
    pub part_size: Option<PartSize>,
    /// Otherwise the repository's.
    pub compression: Option<Compression>,
    /// Change nothing, only tell.
    pub dry_run: bool,
    /// How it is found what changed; otherwise as the policy says.
    pub track: Option<Track>,
    /// How much of what is assumed to be unchanged is rechecked; otherwise as the policy says.
    pub recheck: Option<Recheck>,
    /// How long whoever writes to the image may be held up; otherwise as the policy says.
    pub max_stall: Option<Duration>,
    /// What changed since an earlier snapshot, as somebody else knows.
    pub changed: Option<ChangedSince>,
    /// The chain begins from this snapshot of another image in the repository.
    pub base_of: Option<Reference>,
    /// ... or from one that holds at least half of the image, if there is one.
    pub find_base: bool,
    /// What happens around the point in time.
    pub window: Window,
    /// It saves the state before a rollback to this snapshot of the image.
    pub(crate) before_rollback: Option<Uuid>,
    /// The same, once it is pinned.
    pub(crate) pinned: Option<BaseOf>,
    /// What is known of it as one of several.
    pub(crate) moment: Option<Moment>,
    /// What goes with it and is not of the image: names and bytes.
    pub(crate) attachments: Vec<(String, Vec<u8>)>,
}

impl SnapshotRequest {
    /// Name of the image in the repository: the one that is given, or that of its file.
    ///
    /// # Errors
    /// `InvalidInput` if that is no name of an image.
    pub fn image_name(&self) -> Result<String> {
        let given = |name: String| manifest::check_name(&name).map(|()| name);
        self.name.clone().map_or_else(|| name_of(self.of.as_ref().unwrap_or(&self.image)), given)
    }

    /// The dirty bitmap that tells what changed.
    pub(crate) fn bitmap(&self) -> Option<&str> {
        match &self.changed.as_ref()?.changes {
            GivenChanges::Bitmap(name) => Some(name),
            GivenChanges::List(_) => None,
        }
    }

    /// What tells what changed, and what it was given by.
    pub(crate) fn told_by(&self) -> (&'static str, Setting) {
        match self.bitmap() {
            Some(_) => ("bitmap", Setting::Bitmap),
            None => ("list", Setting::Changed),
        }
    }

    /// How its disk may be read.
    pub(crate) fn read_by(&self) -> ReadBy {
        ReadBy { via_qemu: self.via_qemu, backing_ok: self.backing_ok }
    }

    /// Of an image file or device, as a user would want it who says nothing more.
    pub fn new(image: impl Into<ImageUri>) -> Self {
        Self { image: image.into(), ..Self::default() }
    }

    setters! {
        /// What is read is a snapshot of this file or device, which is what is recorded: the image.
        of: Option<ImageUri>,
        /// Take it as a snapshot of that without a proof.
        force: bool,
        /// Name of the image; otherwise its file name without extension.
        name: Option<String>,
        /// A label.
        label: Option<String>,
        /// Against what.
        parent: ParentChoice,
        /// The image is a clone of this one, which becomes its base and stays where it is.
        base_image: Option<PathBuf>,
        /// Read the image even if it is known to be unchanged.
        full_scan: bool,
        /// Publish nothing if the image is unchanged.
        skip_unchanged: bool,
        /// Blocks that the medium of the image does not give are unread in the snapshot; otherwise there is
        /// none.
        skip_bad: bool,
        /// How the disk lies in the image; otherwise as it was recorded, and at the first snapshot by its
        /// magic.
        format: Option<ImageFormat>,
        /// Read a format through QEMU that is not read natively.
        via_qemu: bool,
        /// Read the files that the image refers to: who wrote its header chose them.
        backing_ok: bool,
        /// Unit of comparison of a new base; otherwise the repository's.
        block_size: Option<BlockSize>,
        /// On which grid a new base is cut into parts; otherwise as the one before, or on that of 8 GiB.
        part_size: Option<PartSize>,
        /// Otherwise the repository's.
        compression: Option<Compression>,
        /// Change nothing, only tell.
        dry_run: bool,
        /// How it is found what changed; otherwise as the policy says.
        track: Option<Track>,
        /// How much of what is assumed to be unchanged is rechecked; otherwise as the policy says.
        recheck: Option<Recheck>,
        /// How long whoever writes to the image may be held up; otherwise as the policy says.
        max_stall: Option<Duration>,
        /// What changed since an earlier snapshot, as somebody else knows.
        changed: Option<ChangedSince>,
        /// The chain begins from this snapshot of another image in the repository.
        base_of: Option<Reference>,
        /// ... or from one that holds at least half of the image, if there is one.
        find_base: bool,
        /// What happens around the point in time.
        window: Window,
    }
}

/// The name of an image: its file name without extension, or that of its export.
///
/// # Errors
/// `InvalidInput` if that is no name of an image.
pub fn name_of(image: &ImageUri) -> Result<String> {
    let path = image.title();
    let stem = match image.machine() {
        Some(_) => Some(path.as_os_str()),
        None => path.file_stem(),
    };
    let refused = |what: String| {
        Error::new(ErrorKind::InvalidInput, what).hint(message!["choose one with ", Setting::Name])
    };
    if image.file().is_none() && stem.is_none() {
        return Err(refused(format!("cannot derive a name for the image from {image}")));
    }
    let no_text = || {
        refused(format!(
            "cannot derive a name for the image: the file name of {image} is not UTF-8"
        ))
    };
    let stem = stem.unwrap_or_default().to_str().ok_or_else(no_text)?;
    let is_replaced = |c: char| c.is_whitespace() || "@/".contains(c);
    let stem: String = stem.chars().map(|c| if is_replaced(c) { '-' } else { c }).collect();
    manifest::check_name(&stem).map(|()| stem)
}

/// What changed, and since which snapshot.
#[derive(Debug, Clone)]
pub struct ChangedSince {
    /// What may have changed.
    pub changes: GivenChanges,
    /// Since when: the parent or an ancestor of it.
    pub since: At,
}

/// Who knows what changed.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum GivenChanges {
    /// A list.
    List(ChangeList),
    /// A dirty bitmap of this name, which the server of the image keeps, or the image file.
    Bitmap(String),
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It was published.
    Taken,
    /// The image was unchanged, and nothing was published; the snapshot given is the one it equals.
    Skipped,
    /// It was only tried.
    DryRun,
}

/// A snapshot that was taken, or not.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct SnapshotOutcome {
    /// Name of the image.
    pub name: String,
    /// The snapshot.
    pub snapshot: Snapshot,
    /// What became of it.
    pub outcome: Outcome,
    /// True if the image was known to be unchanged.
    pub unchanged_by_times: bool,
    /// Number of the parent.
    pub parent_number: Option<u64>,
    /// The hint that this scan used; present even if the snapshot was skipped.
    pub hint: Option<HintUse>,
    /// Bytes that this scan read.
    pub read_bytes: u64,
    /// Why all of the image was read although it has a parent, if that is of interest.
    pub full_scan_reason: Option<String>,
    /// How long the image was held up to clone it; none if it was not.
    pub clone_seconds: Option<f64>,
    /// How long the machine was stopped that the image is a disk of, if it was.
    pub stopped_seconds: Option<f64>,
    /// Who had the image open for writing: then it was taken as it was at one moment.
    pub user: Option<String>,
    /// What the medium of the image did not give.
    pub unread: NamedBlocks,
    /// What went wrong with the command that was to run afterwards; of several images the first one says it.
    pub post_error: Option<String>,
}
