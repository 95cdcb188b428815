//! How a snapshot finds what changed: the image that is open or in use, the clone that is made of it,
//! and what is known since which earlier snapshot.
//!
//! ```text
//! image -> clone now --\
//!                       extents that differ ---\
//! clone of an earlier snapshot                  what is looked at -> scan
//! tables from that snapshot to the parent -----/
//! ```

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::progress::Context;
use crate::base::sys;
use crate::base::units::Geometry;
use crate::chain::{Chain, Fork};
use crate::image::{FileStat, RawFile, Source};
use crate::ops::snapshot::types::SnapshotRequest;
use crate::repo::files::open_chain;
use crate::repo::head::Head;
use crate::repo::live_file::is_unchanged_since;
use crate::repo::manifest::{HintKind, HintUse, Manifest};
use crate::repo::policy::{SnapshotPolicy, Track};
use crate::repo::{Repository, reference};
use crate::scan::{Hinted, Scanned, Scope};
use crate::tracking::{
    ChangeHints, ChangeList, CloneFolder, MapDifferences, NewClone, Owner, Recheck, extent_count,
    tells_places,
};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;
use uuid::Uuid;

/// What a clone costs for each extent of the image, in seconds (DESIGN.md, "What is known without
/// reading").
const CLONE_SECONDS: f64 = 6e-6;

/// From so many on the time of a clone tells what one costs.
const MIN_TIMED_EXTENTS: u64 = 1000;

/// And to compare the maps of two clones.
const MAPS_SECONDS: f64 = 3e-6;

/// How fast images are read, in bytes a second: from the disk, from memory.
const DISK_SPEED: f64 = 2.5e9;
const MEMORY_SPEED: f64 = 20e9;

/// Which part of the time to read the image a clone and its map may take: where all has changed it
/// comes on top.
const MAX_CLONE_COST_SHARE: f64 = 0.2;

/// What nobody notices, in seconds.
const NEGLIGIBLE_SECONDS: f64 = 0.01;

/// An image that a snapshot is to be taken of.
pub(crate) struct Live {
    pub image: RawFile,
    /// Who has it open for writing. Then it is not held, and must not be read.
    pub user: Option<String>,
}

impl Live {
    /// Opens an image; one that is in use only if it may be cloned.
    pub fn open(path: &Path, may_clone: bool) -> Result<Self> {
        let busy = match RawFile::open_real(path) {
            Err(e) if e.kind() == ErrorKind::Busy && may_clone => e,
            other => return other.map(Self::held),
        };
        let Ok(image) = RawFile::open_in_use(path) else { return Err(busy) };
        let user = image.user().unwrap_or_else(|| "another program".into());
        Ok(Self { image, user: Some(user) })
    }

    /// An image that is open and held.
    pub fn held(image: RawFile) -> Self {
        Self { image, user: None }
    }

    /// What identifies its content, if that can be believed: not while others write.
    pub fn settled_stat(&self) -> Option<FileStat> {
        if self.user.is_none() { self.image.settled_stat() } else { None }
    }
}

/// What a request says, and the policy where it says nothing.
pub(crate) fn policy_of(request: &SnapshotRequest, policy: SnapshotPolicy) -> SnapshotPolicy {
    SnapshotPolicy {
        track: request.track.unwrap_or(policy.track),
        recheck: request.recheck.unwrap_or(policy.recheck),
        max_stall: request.max_stall.unwrap_or(policy.max_stall),
    }
}

/// How it is found what changed.
pub(crate) struct ScanPlan {
    /// What the image was at one moment.
    pub clone: Option<NewClone>,
    /// If none was made because nothing changed: an earlier one that is the same.
    pub standby: Option<File>,
    basis: Basis,
    recheck: Recheck,
}

enum Basis {
    /// All is read; why, if that is of interest.
    Whole(Option<String>),
    /// Nothing changed since the parent.
    Unchanged(Uuid),
    /// Two clones tell.
    Extents(Reference),
    /// A list tells.
    List { since: Chain, list: ChangeList },
}

/// A clone of an earlier snapshot.
struct Reference {
    chain: Chain,
    file: File,
}

/// The snapshot at the tip of a chain.
fn id_of(chain: &Chain) -> Uuid {
    chain.tip().footer().snapshot_id
}

impl ScanPlan {
    /// All is read.
    pub fn whole() -> Self {
        Self { clone: None, standby: None, basis: Basis::Whole(None), recheck: Recheck::Usual }
    }

    /// Why all is read, if it is and that is of interest.
    pub fn full_scan_reason(&self) -> Option<&str> {
        match &self.basis {
            Basis::Whole(why) => why.as_deref(),
            _ => None,
        }
    }

    /// What a scan against `parent` is to look at; `turn` says which part of what is taken for unchanged.
    pub fn scope(&self, parent: Option<&Chain>, image_bytes: u64, turn: u64) -> Result<Scope> {
        let Some(parent) = parent else { return Ok(Scope::Whole) };
        let (hints, since): (Option<Box<dyn ChangeHints>>, Option<&Chain>) = match &self.basis {
            Basis::Whole(_) => return Ok(Scope::Whole),
            Basis::Unchanged(_) => (None, None),
            Basis::Extents(reference) => {
                let place = reference.chain.tip().location();
                let failed = |e| Error::io(format!("{place}: cannot open its clone again"), e);
                let newer = self.clone.as_ref().map(|clone| clone.file().try_clone());
                let newer = newer.transpose().map_err(failed)?.ok_or_else(no_clone)?;
                let older = reference.file.try_clone().map_err(failed)?;
                (Some(Box::new(MapDifferences::new(older, newer)?)), Some(&reference.chain))
            }
            Basis::List { since, list } => {
                // What was not there then, or only in part, is in no list.
                let before = since.geometry().image_bytes;
                let list = list.clone();
                let list = if before == image_bytes {
                    list
                } else {
                    list.and_from(before.min(image_bytes))
                };
                (Some(Box::new(list)), Some(since))
            }
        };
        let touched = match since.filter(|since| id_of(since) != id_of(parent)) {
            Some(since) => Some(Fork::new(parent.clone(), Some(since.clone()))?.touched()),
            None => None,
        };
        let geometry = Geometry::new(parent.geometry().block_size, image_bytes)?;
        let recheck = self.recheck.blocks(geometry, turn);
        Ok(Scope::Hinted(Box::new(Hinted { hints, touched, recheck })))
    }

    /// What is noted of it in the manifest.
    pub fn hint_use(&self, geometry: Geometry, scanned: &Scanned) -> Option<HintUse> {
        let since = match &self.basis {
            Basis::Whole(_) => return None,
            Basis::Unchanged(id) => *id,
            Basis::Extents(reference) => id_of(&reference.chain),
            Basis::List { since, .. } => id_of(since),
        };
        Some(HintUse {
            kind: self.kind()?,
            since,
            named_bytes: scanned.named_bytes.unwrap_or(0),
            recheck_blocks: self.recheck.block_count(geometry),
            missed_blocks: scanned.missed.blocks,
        })
    }

    /// Who knows what changed; none if all is read.
    pub fn kind(&self) -> Option<HintKind> {
        match &self.basis {
            Basis::Whole(_) => None,
            Basis::Unchanged(_) => Some(HintKind::Times),
            Basis::Extents(_) => Some(HintKind::Extents),
            Basis::List { .. } => Some(HintKind::List),
        }
    }
}

fn no_clone() -> Error {
    Error::new(ErrorKind::InvalidInput, "there is no clone of the image as it is")
}

/// What a plan is made for.
pub(crate) struct Search<'a> {
    pub manifest: &'a Manifest,
    pub head: &'a Head,
    pub live: &'a Live,
    /// What identifies the content of the image now, if that is known.
    pub stat: Option<&'a FileStat>,
    /// What the image will be compared with; none for a base.
    pub against: Option<&'a Chain>,
    pub request: &'a SnapshotRequest,
    pub policy: SnapshotPolicy,
}

/// Finds out how it is found what changed, and clones the image if that is part of it.
///
/// # Errors
/// `Busy` if the image is in use and cannot be cloned, or not fast enough; `Unsupported` if tracking
/// is asked for and not to be had; `Mismatch` for a list since a snapshot that is no ancestor.
pub(crate) fn plan_scan(
    repository: &Repository,
    search: &Search<'_>,
    context: &Context,
) -> Result<ScanPlan> {
    let Search { manifest, live, against, request, policy, .. } = search;
    let recheck = policy.recheck;
    let (list, is_old) = match listed(repository, search)? {
        // What was written since the list was made is in no list.
        Some(_) if live.user.is_some() => (None, true),
        list => (list, false),
    };
    let reference = reference(repository, manifest, &live.image, *against);
    let believed = against.filter(|chain| is_known(search, chain));
    let has_to_read = match against {
        None => Some(None),
        Some(chain) => forced_scan_reason(manifest, chain, request, context)?.map(Some),
    };
    // A clone of what did not change since the last one is that one.
    // Nor is one kept after a list.
    let is_known = list.is_some() || (believed.is_some() && reference.is_ok());
    let is_needed = live.user.is_some() || has_to_read.is_some() || !is_known;
    let clone = if is_needed { clone_of(repository, search, context)? } else { Err(None) };
    let (clone, why_none) = match clone {
        Ok(clone) => (Some(clone), None),
        Err(why) => (None, why),
    };
    let mut standby = None;
    let basis = match (has_to_read, list, believed, &clone, reference) {
        (Some(why), ..) => Basis::Whole(why),
        (_, Some(list), ..) => list,
        (_, _, Some(chain), _, reference) => {
            let same = reference.ok().filter(|found| id_of(&found.chain) == id_of(chain));
            standby = same.map(|found| found.file);
            Basis::Unchanged(id_of(chain))
        }
        (_, _, _, Some(_), Ok(reference)) => Basis::Extents(reference),
        (_, _, _, Some(_), Err(_)) if is_old => {
            let why = "the image is in use, and may have been written to since the list was made";
            Basis::Whole(Some(why.into()))
        }
        (_, _, _, Some(_), Err(why)) => Basis::Whole(Some(why)),
        (_, _, _, None, _) => Basis::Whole(why_none),
    };
    Ok(ScanPlan { clone, standby, basis, recheck })
}

/// The list of the request, if it has one.
fn listed(repository: &Repository, search: &Search<'_>) -> Result<Option<Basis>> {
    let Search { manifest, head, against, request, .. } = search;
    let Some(changed) = &request.changed else { return Ok(None) };
    let since = reference::find(manifest, head, &changed.since)?;
    changed.list.check_length(search.live.image.image_bytes(), since.image_bytes)?;
    let name = &manifest.name;
    let Some(parent) = against else {
        let what = format!("a new base of \"{name}\" rests on no snapshot: no list goes with it");
        return Err(Error::new(ErrorKind::Mismatch, what).hint("leave --changed out"));
    };
    let lineage = manifest.lineage(id_of(parent))?;
    if lineage.iter().all(|s| s.id != since.id) {
        let number = parent.tip().footer().number;
        let what = format!(
            "{name}@{} is no ancestor of the parent {name}@{number}: the list says nothing of it",
            since.number
        );
        return Err(Error::new(ErrorKind::Mismatch, what)
            .hint("name an ancestor with --changed-since, or leave --changed out"));
    }
    let since = open_chain(repository, manifest, since.id)?;
    Ok(Some(Basis::List { since, list: changed.list.clone() }))
}

/// The newest clone that a snapshot names, if it serves; otherwise why not.
fn reference(
    repository: &Repository,
    manifest: &Manifest,
    image: &RawFile,
    against: Option<&Chain>,
) -> Result<Reference, String> {
    let (newest, kept) = manifest
        .newest_clone()
        .ok_or_else(|| "there is no clone of an earlier snapshot".to_owned())?;
    let place = format!("{}@{}", manifest.name, newest.number);
    let folder = CloneFolder::beside(image.path());
    let file =
        folder.open(newest.id, &kept.stat).map_err(|why| format!("the clone of {place} {why}"))?;
    if kept.stat.bytes != newest.image_bytes {
        return Err(format!("the clone of {place} has another length"));
    }
    let chain = open_chain(repository, manifest, newest.id)
        .map_err(|e| format!("the tables of {place}, of which there is a clone, fail: {e}"))?;
    match against {
        Some(against) if !against.is_comparable(&chain) => {
            Err(format!("there is a clone of {place} only, whose chain is another one"))
        }
        _ => Ok(Reference { chain, file }),
    }
}

/// Clones the image if that can be done, and is worth it or necessary. Otherwise why not, if that is
/// of interest.
fn clone_of(
    repository: &Repository,
    search: &Search<'_>,
    context: &Context,
) -> Result<Result<NewClone, Option<String>>> {
    let Search { manifest, live, policy, .. } = search;
    let (image, track) = (&live.image, policy.track);
    let place = image.path().display();
    let is_forced = track == Track::Reflink;
    if image.is_device() || track == Track::None {
        let what = format!("{place} is a device: it cannot be cloned");
        return match is_forced {
            true => Err(Error::new(ErrorKind::Unsupported, what).hint("use --track auto")),
            false => Ok(Err(None)),
        };
    }
    let owner = Owner { repository: repository.id(), image: manifest.image_id };
    let cloned = extent_count(image.file()).and_then(|count| {
        let rate = clone_rate(manifest);
        let seconds = count as f64 * rate;
        match &live.user {
            Some(user) => check_stall(image, user, count, seconds, policy.max_stall)?,
            None if is_forced => {}
            None if !is_clone_cheap(image, seconds + count as f64 * MAPS_SECONDS) => {
                let why = format!("it has {count} extents, and that is as fast as to clone it");
                return Ok(Err(Some(why)));
            }
            None => {}
        }
        NewClone::make(image.file(), image.path(), count, owner).map(Ok)
    });
    let error = match cloned {
        Ok(clone) => return Ok(clone),
        Err(e) if e.kind() == ErrorKind::Busy => return Err(e),
        Err(e) => e,
    };
    if let Some(user) = &live.user {
        let what = format!("{place} is open for writing by {user}, and no clone can be made");
        return Err(Error::new(ErrorKind::Busy, what).hint(format!(
            "{error}; keep it on XFS or btrfs, where it can be cloned while it is in use; or shut the \
             virtual machine down, or close the file, and run the command again"
        )));
    }
    if is_forced {
        return Err(error.or_hint("XFS and btrfs can; or use --track auto"));
    }
    match error.kind() {
        ErrorKind::Unsupported => context.progress().note(&format!("not tracked: {error}")),
        _ => context.progress().warn(&format!("{error}; nothing is known of what changes then")),
    }
    // Elsewhere nobody expects one.
    let is_expected = tells_places(image.file());
    Ok(Err(is_expected.then(|| format!("no clone could be made ({})", error.message()))))
}

/// True if the image is what it was at the tip of `chain`, by its times.
fn is_known(search: &Search<'_>, chain: &Chain) -> bool {
    let Search { head, stat, request, .. } = search;
    !request.full_scan && head.snapshot == Some(id_of(chain)) && is_unchanged_since(head, *stat)
}

/// Why nothing is believed until all of the image has been read, and a snapshot says so.
pub(crate) fn distrust_reason(manifest: &Manifest) -> Option<String> {
    let name = &manifest.name;
    let newest = manifest.next_number.saturating_sub(1);
    match manifest.stored().last() {
        Some(last) if last.number < newest => {
            Some(format!("it is not known any more what {name}@{newest} had found out"))
        }
        Some(last) if last.missed_blocks() > 0 => {
            Some(format!("what was known at {name}@{newest} had missed changes"))
        }
        _ => None,
    }
}

/// Why all of the image has to be read, whatever is known.
fn forced_scan_reason(
    manifest: &Manifest,
    parent: &Chain,
    request: &SnapshotRequest,
    context: &Context,
) -> Result<Option<String>> {
    if request.full_scan {
        return Ok(Some("as you asked".into()));
    }
    if let Some(why) = distrust_reason(manifest) {
        return Ok(Some(why));
    }
    let name = &manifest.name;
    let unread = parent.unread(parent.geometry().blocks(), context)?;
    let number = parent.tip().footer().number;
    Ok((!unread.is_empty()).then(|| format!("parts of {name}@{number} were never read")))
}

/// Fails if whoever writes to the image would be held up for too long.
fn check_stall(
    image: &RawFile,
    user: &str,
    count: u64,
    seconds: f64,
    most: Duration,
) -> Result<()> {
    if seconds <= most.as_secs_f64() {
        return Ok(());
    }
    let path = image.path().display();
    let what = format!(
        "{path} is in use by {user} and has {count} extents: to clone it would hold up its writes for \
         about {} ms",
        (seconds * 1e3).ceil()
    );
    let enough = match seconds {
        s if s < 1.0 => format!("{}ms", (2e3 * s).ceil()),
        s => format!("{}s", s.ceil()),
    };
    Err(Error::new(ErrorKind::Busy, what).hint(format!(
        "allow that with --max-stall {enough}, or shut the virtual machine down and defragment the image"
    )))
}

/// What a clone costs for each extent, in seconds: what the last one did, if it had enough of them to
/// tell.
fn clone_rate(manifest: &Manifest) -> f64 {
    let last = manifest.newest_clone().map(|(_, kept)| kept);
    let last = last.filter(|kept| kept.extents >= MIN_TIMED_EXTENTS);
    let rate = last.map_or(CLONE_SECONDS, |kept| kept.seconds / kept.extents as f64);
    rate.clamp(CLONE_SECONDS / 2.0, CLONE_SECONDS * 50.0)
}

/// True if what a clone and its map cost, in seconds, is little beside reading the image.
fn is_clone_cheap(image: &RawFile, cost: f64) -> bool {
    if cost <= NEGLIGIBLE_SECONDS {
        return true;
    }
    let Ok(meta) = image.file().metadata() else { return false };
    let data = image.image_bytes().min(meta.blocks().saturating_mul(512)) as f64;
    let cached = sys::cached_pages(image.file(), 0, image.image_bytes()).unwrap_or(0);
    let cached = (cached as f64 * 4096.0).min(data);
    let reading = cached / MEMORY_SPEED + (data - cached) / DISK_SPEED;
    cost <= MAX_CLONE_COST_SHARE * reading
}
