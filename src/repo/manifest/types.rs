//! What a manifest says: the image, its snapshots, and which commit it is.

use crate::base::digest::{Digest, ImageDigest};
use crate::base::error::{Error, Result};
use crate::base::units::{BlockSize, Geometry, PartSize};
use crate::image::{FileAttributes, ImageUri, LiveIdentity};
use crate::repo::host::HostName;
use crate::repo::manifest::commit::{Ancestor, Condemned, ManifestDigest, Read, Standing};
use crate::repo::manifest::files::is_of_plan;
use crate::repo::manifest::related::{Attachment, BaseOf, Group, Pending, Pin};
use crate::repo::manifest::wire::{self, or_none};

use crate::tracking::{Consistency, HintKind, KeptClone, TrackerRecord};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::PathBuf;
use uuid::Uuid;

/// Snapshots are counted one by one: one each second for a hundred years does not come to this. Numbers
/// beyond it are not taken in, because those after them would come to an end.
pub(crate) const MAX_IMPORTED_NUMBER: u64 = 1 << 32;

/// A manifest larger than this cannot be right (a snapshot takes about 700 bytes).
pub const MAX_MANIFEST_BYTES: u64 = 256 << 20;

/// What lives of an image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Number of the commit.
    pub sequence: u64,
    /// Name of the image.
    pub name: String,
    /// Identity of the image.
    #[serde(deserialize_with = "wire::id")]
    pub image_id: Uuid,
    /// Where the live image is on its host, for people.
    #[serde(with = "wire::image")]
    pub source: Option<ImageUri>,
    /// How the disk lies in the live image, as `qemu-img` calls it; if that is missing, as the newest base
    /// says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// The host that it is on; none if that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostName>,
    /// A rollback that has begun: no host takes a snapshot of what is half written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<Rollback>,
    /// In versions 1 and 2: identity of the live file or device when last seen.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "or_none")]
    pub live: Option<LiveIdentity>,
    /// The number of the next snapshot.
    pub next_number: u64,
    /// What a program must know that reads it; a later one may have more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<String>,
    /// Which commit it is; none before it is one, and in versions 1 and 2.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "wire::some_id")]
    pub commit: Option<Uuid>,
    /// Digest of the manifest that it follows, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "wire::some")]
    pub previous: Option<ManifestDigest>,
    /// Commits that it follows, ascending: the last ones, and of those before fewer and fewer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ancestors: Vec<Ancestor>,
    /// Objects that are named no more, and may still be there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub condemned: Vec<Condemned>,
    /// Of what was condemned by manifests up to that number some is deleted, and not in `condemned` any more.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub swept: u64,
    /// Ascending by number.
    pub snapshots: Vec<Snapshot>,
    /// Snapshots that are gone for the user, but whose files others depend on. Ascending by number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dropped: Vec<Snapshot>,
    /// Snapshots that are not finished. Another one gets neither their numbers nor their objects.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending: Vec<Pending>,
    /// Delta files that a repair could not use. They are not removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<String>,
    /// Those among them that could not be used: the next repair tries them again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unused: Vec<String>,
    /// The image is gone; another one of its name goes on with its numbers.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forgotten: bool,
    /// What it was read from.
    #[serde(skip)]
    pub(crate) read: Option<Read>,
    /// By what it counts, where there is an owner.
    #[serde(skip)]
    pub(crate) standing: Option<Standing>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A rollback that has begun, and not ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rollback {
    /// Its identity; none if an earlier program began it.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "wire::some_id")]
    pub id: Option<Uuid>,
    /// Where.
    pub host: HostName,
    /// Where to.
    #[serde(deserialize_with = "wire::id")]
    pub target: Uuid,
    /// The snapshot that holds the state before, if one was taken.
    #[serde(deserialize_with = "wire::id_or_null")]
    pub saved: Option<Uuid>,
    /// What is written to.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "or_none")]
    pub live: Option<LiveIdentity>,
}

/// One snapshot, as the manifest knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its number, from 1.
    pub number: u64,
    /// Its identity.
    #[serde(deserialize_with = "wire::id")]
    pub id: Uuid,
    /// Its parent in this image; none in a base, and where a chain begins from another image.
    #[serde(deserialize_with = "wire::id_or_null")]
    pub parent: Option<Uuid>,
    /// What the chain begins from, if that is a snapshot of another image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_of: Option<BaseOf>,
    /// Its label.
    #[serde(deserialize_with = "wire::present")]
    pub label: Option<String>,
    /// When it was taken.
    pub time: Timestamp,
    /// Name of its delta file.
    pub file: String,
    /// Names of its parts, if the delta file is one that names parts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<String>,
    /// In what begins a chain: on which grid its snapshots are cut into parts; otherwise the usual one.
    #[serde(default, rename = "part_bytes", skip_serializing_if = "Option::is_none")]
    pub part_size: Option<PartSize>,
    /// Length of its delta file, and of its parts.
    pub file_bytes: u64,
    /// Digest of its footer.
    pub footer_digest: Digest,
    /// Block size of its chain.
    pub block_bytes: u32,
    /// Length of the image.
    pub image_bytes: u64,
    /// Digest of the image.
    pub image_digest: ImageDigest,
    /// Blocks in data runs.
    pub data_blocks: u64,
    /// Blocks in zero runs.
    pub zero_blocks: u64,
    /// Blocks in unread runs.
    pub unread_blocks: u64,
    /// Blocks of the image that have a run.
    pub changed_blocks: u64,
    /// Bytes of the image in them.
    pub changed_bytes: u64,
    /// Bytes of frames.
    pub frame_bytes: u64,
    /// Bytes read to take it.
    #[serde(deserialize_with = "wire::present")]
    pub read_bytes: Option<u64>,
    /// How long that took.
    #[serde(deserialize_with = "wire::present")]
    pub seconds: Option<f64>,
    /// The file that its blocks are in, if they are not in its delta file.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "wire::path")]
    pub base_image: Option<PathBuf>,
    /// In what begins a chain: how the disk lay in the image, as `qemu-img` calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// Why the image stayed as it was while others read it, as who planned that said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<String>,
    /// What tells the content of the image on its server from another one, if workers took it there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_version: Option<String>,
    /// The snapshot that was about to be rolled back to when this one saved the state before.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "or_none")]
    pub before_rollback: Option<Uuid>,
    /// Nothing drops it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub protected: bool,
    /// What depends on it elsewhere, while which nothing drops it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pins: Vec<Pin>,
    /// Snapshots of other images that were taken with it.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "or_none")]
    pub group: Option<Group>,
    /// What belongs to it and is not of the image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<Attachment>,
    /// What the image was: stopped, or as after a power failure then. Earlier programs wrote `in_use`.
    #[serde(
        default,
        alias = "in_use",
        skip_serializing_if = "Consistency::is_stopped",
        deserialize_with = "wire::consistency"
    )]
    pub consistency: Consistency,
    /// Owner, mode and extended attributes of the image file; none of a device, or if they are not known.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "or_none")]
    pub attributes: Option<FileAttributes>,
    /// The hint that limited the scan; none after a full scan.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "or_none")]
    pub hint: Option<HintUse>,
    /// From what the next snapshot learns what has changed. Earlier programs wrote `kept_clone`.
    #[serde(
        default,
        alias = "kept_clone",
        skip_serializing_if = "Option::is_none",
        deserialize_with = "wire::tracker"
    )]
    pub tracker: Option<TrackerRecord>,
    /// What took how long.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "or_none")]
    pub timings: Option<Timings>,
}

/// What took how long when a snapshot was taken, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Timings {
    /// Until it was known what may have changed: clones, maps of extents.
    pub tracking_seconds: f64,
    /// Reading, comparing and writing what had changed.
    pub scan_seconds: f64,
    /// The part of it in which the maps of clones were compared, if they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maps_seconds: Option<f64>,
}

/// What a hint said, and how far it was right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HintUse {
    /// What it was.
    pub kind: HintKind,
    /// The snapshot since which it told what may have changed.
    pub since: Uuid,
    /// Bytes of the image that may have changed.
    pub named_bytes: u64,
    /// Blocks that each snapshot rechecks.
    pub recheck_blocks: u64,
    /// Blocks among them that had changed.
    pub missed_blocks: u64,
}

impl Snapshot {
    /// True if it depends on no other snapshot.
    pub fn is_base(&self) -> bool {
        self.parent.is_none() && self.base_of.is_none()
    }

    /// What its footer names as its parent.
    pub fn parent_in_footer(&self) -> Option<Uuid> {
        self.parent.or(self.base_of.as_ref().map(|of| of.snapshot))
    }

    /// Names of its delta file and of its parts.
    pub fn files(&self) -> impl Iterator<Item = &String> {
        std::iter::once(&self.file).chain(&self.parts)
    }

    /// True if its blocks are in a base image, even if it is not known where that is.
    pub fn is_by_reference(&self) -> bool {
        self.base_image.is_some() || (self.data_blocks > 0 && self.frame_bytes == 0)
    }

    /// Block size, and length of the image.
    ///
    /// # Errors
    /// If they are beyond the limits of the format.
    pub fn geometry(&self) -> Result<Geometry> {
        Geometry::new(BlockSize::new(self.block_bytes)?, self.image_bytes)
    }

    /// The clone of the image that was kept.
    pub fn kept_clone(&self) -> Option<&KeptClone> {
        self.tracker.as_ref().map(|TrackerRecord::Clone(kept)| kept)
    }

    /// Changed blocks that the hint had not named.
    pub fn missed_blocks(&self) -> u64 {
        self.hint.map_or(0, |hint| hint.missed_blocks)
    }
}

impl Manifest {
    /// An image without snapshots.
    pub fn new(name: &str, source: Option<ImageUri>) -> Self {
        Self {
            sequence: 0,
            name: name.into(),
            image_id: Uuid::new_v4(),
            source,
            format: None,
            host: None,
            rollback: None,
            live: None,
            next_number: 1,
            needs: Vec::new(),
            commit: None,
            previous: None,
            ancestors: Vec::new(),
            condemned: Vec::new(),
            swept: 0,
            snapshots: Vec::new(),
            dropped: Vec::new(),
            pending: Vec::new(),
            kept: Vec::new(),
            unused: Vec::new(),
            forgotten: false,
            read: None,
            standing: None,
        }
    }

    /// What to call a snapshot of the image: `NAME@N`.
    pub fn place_of(&self, snapshot: &Snapshot) -> String {
        format!("{}@{}", self.name, snapshot.number)
    }

    /// True if nobody has taken a snapshot of the image, nor takes one in parts.
    pub(crate) fn is_unused(&self) -> bool {
        self.snapshots.is_empty() && self.dropped.is_empty() && self.pending.is_empty()
    }

    /// The snapshot with an id, unless it is dropped.
    pub fn by_id(&self, id: Uuid) -> Option<&Snapshot> {
        self.snapshots.iter().find(|s| s.id == id)
    }

    /// The newest snapshot that has a clone, dropped or not.
    pub(crate) fn newest_clone(&self) -> Option<(&Snapshot, &KeptClone)> {
        let stored = self.stored();
        stored.into_iter().rev().find_map(|s| s.kept_clone().map(|kept| (s, kept)))
    }

    /// All snapshots that have a file, dropped or not, ascending by number.
    pub fn stored(&self) -> Vec<&Snapshot> {
        let mut all: Vec<&Snapshot> = self.snapshots.iter().chain(&self.dropped).collect();
        all.sort_by_key(|s| s.number);
        all
    }

    /// What its chains begin from in other images.
    pub fn bases_elsewhere(&self) -> impl Iterator<Item = &BaseOf> {
        self.snapshots.iter().chain(&self.dropped).filter_map(|s| s.base_of.as_ref())
    }

    /// True if the snapshot with an id is dropped.
    pub fn is_dropped(&self, id: Uuid) -> bool {
        self.dropped.iter().any(|s| s.id == id)
    }

    /// Why a snapshot must not be dropped, in a word or two; none if it may.
    pub fn keeps(&self, snapshot: &Snapshot) -> Option<String> {
        if snapshot.protected {
            return Some("protected".into());
        }
        if let Some(pin) = snapshot.pins.first() {
            return Some(format!("needed by \"{}\"", pin.name.escape_debug()));
        }
        let is_parent = |pending: &Pending| pending.parent == Some(snapshot.id);
        let pending = self.pending.iter().find(|pending| is_parent(pending))?;
        Some(match pending.plan.filter(|_| pending.is_only_kept()) {
            Some(plan) => format!("needed by plan {plan}"),
            None => format!("needed by number {}, which is being taken", pending.number),
        })
    }

    /// The parent of a snapshot, dropped or not.
    pub fn stored_parent_of(&self, snapshot: &Snapshot) -> Option<&Snapshot> {
        let id = snapshot.parent?;
        let listed = last_before(&self.snapshots, snapshot.number, id);
        listed.or_else(|| last_before(&self.dropped, snapshot.number, id))
    }

    /// The nearest ancestor of a snapshot that is not dropped.
    pub fn parent_of(&self, snapshot: &Snapshot) -> Option<&Snapshot> {
        let mut next = snapshot.parent;
        while let Some(id) = next {
            if let Some(parent) = self.by_id(id) {
                return Some(parent);
            }
            next = self.dropped.iter().find(|s| s.id == id).and_then(|s| s.parent);
        }
        None
    }

    /// How the disk lies in the live image, as `qemu-img` calls it; none if that is not known any more.
    pub fn format(&self) -> Option<&str> {
        self.format.as_deref().or(self.format_of_base())
    }

    /// How it lay there when the newest chain began.
    pub(super) fn format_of_base(&self) -> Option<&str> {
        self.stored().into_iter().rev().find_map(|s| s.format.as_deref())
    }

    /// True for a part that a worker made by a plan which is not over.
    pub(crate) fn is_planned(&self, file: &str) -> bool {
        let mut plans = self.pending.iter().filter_map(|pending| pending.plan);
        plans.any(|plan| is_of_plan(file, plan))
    }

    /// On which grid the chain of a snapshot is cut into parts, if not on the usual one.
    pub(crate) fn part_size_of(&self, id: Uuid) -> Option<PartSize> {
        self.lineage(id).ok()?.last()?.part_size
    }

    /// The snapshot with the highest number.
    pub fn latest(&self) -> Option<&Snapshot> {
        self.snapshots.last()
    }

    /// The chain of a snapshot, from it back to its base, dropped ones included.
    ///
    /// # Errors
    /// `Corrupt` if a parent is missing.
    pub fn lineage(&self, id: Uuid) -> Result<Vec<&Snapshot>> {
        let by_id: HashMap<Uuid, &Snapshot> =
            self.stored().into_iter().map(|s| (s.id, s)).collect();
        let mut chain = Vec::new();
        let mut next = Some(id);
        while let Some(id) = next {
            let Some(snapshot) = by_id.get(&id).filter(|_| chain.len() < by_id.len()) else {
                let what = format!("{}: the parent {id} of a snapshot is missing", self.name);
                return Err(Error::corrupt(what));
            };
            chain.push(*snapshot);
            next = snapshot.parent;
        }
        Ok(chain)
    }

    /// Snapshots that are not dropped and have `id` as their nearest ancestor that is not.
    pub fn children(&self, id: Uuid) -> impl Iterator<Item = &Snapshot> {
        self.snapshots.iter().filter(move |s| self.parent_of(s).is_some_and(|p| p.id == id))
    }
}

/// The snapshot with an id, which has a lower number than that, and is near it for the most part: not each of
/// many looks through all.
fn last_before(all: &[Snapshot], number: u64, id: Uuid) -> Option<&Snapshot> {
    let before = all.get(..all.partition_point(|s| s.number < number))?;
    before.iter().rfind(|s| s.id == id)
}
