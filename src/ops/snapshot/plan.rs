//! How a snapshot finds what changed: which tracker is asked, and the tables of what was stored since.
//!
//! ```text
//! tracker (clones, times, a list): hints since an earlier snapshot --\
//! tables from that snapshot to the parent ----------------------------+-> scope of the scan
//! a part that is rechecked -------------------------------------------/
//! ```

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::Context;
use crate::base::message::{Setting, message};
use crate::base::units::Geometry;
use crate::chain::{Chain, Fork};
use crate::image::{Disk, FileStat, LiveImage};
use crate::ops::snapshot::types::moment::Told;
use crate::ops::snapshot::types::{GivenChanges, SnapshotRequest};
use crate::repo::clones::clones_beside;
use crate::repo::files::open_chain;
use crate::repo::head::Head;
use crate::repo::manifest::{HintUse, Manifest, Snapshot};
use crate::repo::policy::SnapshotPolicy;
use crate::repo::{Repository, reference};
use crate::scan::{Hinted, Scanned, Scope};
use crate::tracking::{
    ChangeList, ChangeTracker, Consistency, Costs, FileTracker, HintKind, KnownChanges,
    ListTracker, PointInTime, Recheck, Recorded, Since, TimeSpent, Track, TrackerRecord,
    for_each_extent,
};
use uuid::Uuid;

/// What a request says, and the policy where it says nothing.
pub(crate) fn policy_of(request: &SnapshotRequest, policy: SnapshotPolicy) -> SnapshotPolicy {
    SnapshotPolicy {
        track: request.track.unwrap_or(policy.track),
        recheck: request.recheck.unwrap_or(policy.recheck),
        max_stall: request.max_stall.unwrap_or(policy.max_stall),
        limit_read: policy.limit_read,
    }
}

/// How it is found what changed.
pub(crate) struct ScanPlan {
    point: PointInTime,
    /// The chain of the snapshot since which hints tell; none if there are no hints.
    since: Option<Chain>,
    recheck: Recheck,
}

impl ScanPlan {
    /// All is read.
    pub fn whole() -> Self {
        let changes = KnownChanges::Unknown(None);
        let consistency = Consistency::Stopped;
        let (source, stall_seconds, maps_time) = (None, None, TimeSpent::default());
        let point = PointInTime { source, stall_seconds, consistency, changes, maps_time };
        Self { point, since: None, recheck: Recheck::Usual }
    }

    /// The point in time, and what is known of it.
    pub fn point(&self) -> &PointInTime {
        &self.point
    }

    /// Says that the file systems in the image were frozen at the point in time, if it was in use then.
    pub fn was_frozen(&mut self) {
        if self.point.consistency == Consistency::Crash {
            self.point.consistency = Consistency::Frozen;
        }
    }

    /// Why all is read, if it is and that is of interest.
    pub fn full_scan_reason(&self) -> Option<&str> {
        match &self.point.changes {
            KnownChanges::Unknown(why) => why.as_deref(),
            _ => None,
        }
    }

    /// Who knows what changed; none if all is read.
    pub fn kind(&self) -> Option<HintKind> {
        self.point.changes.hint().map(|(kind, _)| kind)
    }

    /// The scope of a scan against `parent`; `turn` selects the part of the unchanged blocks to recheck.
    pub fn scope(&self, parent: Option<&Chain>, image_bytes: u64, turn: u64) -> Result<Scope> {
        let Some(parent) = parent else { return Ok(Scope::Whole) };
        let hints = match &self.point.changes {
            KnownChanges::Unknown(_) => return Ok(Scope::Whole),
            KnownChanges::Unchanged(_) => None,
            KnownChanges::Hinted { hints, .. } => Some(hints(image_bytes)?),
        };
        let touched = match self.since.as_ref().filter(|since| id_of(since) != id_of(parent)) {
            Some(since) => Some(Fork::new(parent.clone(), Some(since.clone()))?.touched()),
            None => None,
        };
        let geometry = Geometry::new(parent.geometry().block_size, image_bytes)?;
        let recheck = self.recheck.blocks(geometry, turn);
        Ok(Scope::Hinted(Box::new(Hinted { hints, touched, recheck })))
    }

    /// What is noted of it in the manifest.
    pub fn hint_use(&self, geometry: Geometry, scanned: &Scanned) -> Option<HintUse> {
        let (kind, since) = self.point.changes.hint()?;
        Some(HintUse {
            kind,
            since,
            named_bytes: scanned.named_bytes.unwrap_or(0),
            recheck_blocks: self.recheck.block_count(geometry),
            missed_blocks: scanned.missed.blocks,
        })
    }
}

/// The snapshot at the tip of a chain.
fn id_of(chain: &Chain) -> Uuid {
    chain.tip().footer().snapshot_id
}

/// What is known when a snapshot begins, and what is asked for.
pub(crate) struct PlanInput<'a> {
    pub manifest: &'a Manifest,
    pub head: &'a Head,
    /// What identifies the content of the image now, if that is known.
    pub stat: Option<&'a FileStat>,
    pub request: &'a SnapshotRequest,
    pub policy: SnapshotPolicy,
}

/// Fixes the point in time of a snapshot against `against` (none for a base) and chooses how changes are
/// found. The caller reports the outcome to the returned tracker (`committed` or `aborted`).
///
/// # Errors
/// `Busy` if the image is in use and cannot be cloned, or not fast enough; `Unsupported` if tracking
/// is required but unavailable; `Mismatch` for a list since a snapshot that is not an ancestor.
pub(crate) fn plan_scan<'a>(
    repository: &'a Repository,
    live: &'a LiveImage,
    against: Option<&Chain>,
    search: &PlanInput<'_>,
    context: &Context,
) -> Result<(ScanPlan, Box<dyn ChangeTracker + 'a>)> {
    let PlanInput { manifest, head, request, policy, .. } = search;
    let told = request.moment.as_ref().and_then(|moment| moment.told.as_ref());
    let (listed, why_not_told) = match told {
        None => (listed(repository, live, against, search)?, None),
        Some(told) => match known_at(repository, manifest, against, told) {
            Ok(known) => (Some(known), None),
            Err(why) => (None, why),
        },
    };
    let (recorded, reference) = match recorded(repository, manifest, against) {
        Ok((recorded, chain)) => (Ok(recorded), Some(chain)),
        Err(why) => (Err(why), None),
    };
    let must_read = match against {
        None => Some(None),
        Some(chain) => forced_scan_reason(manifest, chain, request, context)?.map(Some),
    };
    let last_seen = head.snapshot.zip(head.stat.clone()).filter(|_| head.intent.is_none());
    let since = Since {
        parent: against.map(id_of),
        last_seen,
        recorded,
        costs: costs(manifest),
        must_read: must_read.is_some(),
    };
    let file = file_tracker(repository, manifest, live, search);
    // What was written since the list was made is in no list.
    let is_old = listed.is_some() && live.user.is_some();
    let mut chain = reference;
    let mut tracker: Box<dyn ChangeTracker + 'a> = match listed {
        Some((since, list, kind)) if !is_old && must_read.is_none() => {
            let before = since.geometry().image_bytes;
            let tracker = ListTracker::new(list, kind, id_of(&since), before, file);
            chain = Some(since);
            Box::new(tracker)
        }
        _ => Box::new(file),
    };
    let mut point = tracker.begin(since, context)?;
    if let Some(told) = told {
        point.consistency = told.consistency;
    } else if matches!(live.disk, Disk::Nbd(_) | Disk::Remote(_)) {
        point.consistency = Consistency::Unknown;
    } else if request.of.is_some() {
        // A snapshot of it was made while it was in use, for all that is known.
        point.consistency = Consistency::Crash;
    }
    if let KnownChanges::Unknown(why) = &mut point.changes {
        match must_read {
            Some(reason) => *why = reason,
            None if is_old => {
                let old =
                    "the image is in use, and may have been written to since the list was made";
                *why = Some(old.into());
            }
            None if why_not_told.is_some() => *why = why_not_told,
            None => {}
        }
    }
    let is_hinted = matches!(point.changes, KnownChanges::Hinted { .. });
    let since = chain.filter(|_| is_hinted);
    Ok((ScanPlan { point, since, recheck: policy.recheck }, tracker))
}

/// So many of the last snapshots tell how much will have changed.
const RECENT: usize = 3;

/// What snapshots took.
fn costs(manifest: &Manifest) -> Costs {
    let newest = manifest.snapshots.iter().rev();
    let clone_of = |s: &Snapshot| {
        let TrackerRecord::Clone(kept) = s.tracker.as_ref()?;
        for_each_extent(kept.seconds, kept.extents)
    };
    let maps_of = |s: &Snapshot| {
        let TrackerRecord::Clone(kept) = s.tracker.as_ref()?;
        for_each_extent(s.timings?.maps_seconds?, kept.extents)
    };
    let share = |s: &Snapshot| {
        let named_bytes = s.hint.map_or(0, |hint| hint.named_bytes);
        s.changed_bytes.max(named_bytes) as f64 / s.image_bytes.max(1) as f64
    };
    // One that was timed while the machine was busy is not for ever.
    let cheapest = |of: &dyn Fn(&Snapshot) -> Option<f64>| {
        newest.clone().filter_map(of).take(RECENT).min_by(f64::total_cmp)
    };
    let deltas = newest.clone().filter(|s| s.parent.is_some()).take(RECENT);
    Costs {
        clone: cheapest(&clone_of),
        maps: cheapest(&maps_of),
        changed_share: deltas.map(share).fold(0.0, f64::max),
    }
}

/// What tracks the live file of an image.
fn file_tracker<'a>(
    repository: &'a Repository,
    manifest: &Manifest,
    live: &'a LiveImage,
    search: &PlanInput<'_>,
) -> FileTracker<'a> {
    // A clone of a snapshot of the image would not be one of the image.
    let image = search.head.source.as_ref().filter(|_| search.request.of.is_none());
    let clones = clones_beside(repository, manifest, image.filter(|_| live.disk.raw().is_some()));
    let SnapshotPolicy { max_stall, .. } = search.policy;
    let track = if search.request.of.is_some() { Track::None } else { search.policy.track };
    FileTracker::new(live, search.stat.cloned(), clones, track, max_stall)
}

/// The list of the request, if it has one, and the chain since which it tells.
fn listed(
    repository: &Repository,
    live: &LiveImage,
    against: Option<&Chain>,
    search: &PlanInput<'_>,
) -> Result<Option<(Chain, ChangeList, HintKind)>> {
    let PlanInput { manifest, head, request, .. } = search;
    let Some(changed) = &request.changed else { return Ok(None) };
    let since = reference::find(manifest, head, &changed.since)?;
    let (list, kind) = match &changed.changes {
        GivenChanges::List(list) => (list.clone(), HintKind::List),
        GivenChanges::Bitmap(name) => (ChangeList::of(live.disk.bitmap(name)?), HintKind::Bitmap),
    };
    list.check_length(live.disk.source().image_bytes(), since.image_bytes)?;
    let (name, (told, setting)) = (&manifest.name, request.told_by());
    let Some(parent) = against else {
        let what = format!("a new base of \"{name}\" has no parent, so a {told} cannot be used");
        return Err(Error::new(ErrorKind::Mismatch, what).hint(message!["leave ", setting, " out"]));
    };
    let lineage = manifest.lineage(id_of(parent))?;
    if lineage.iter().all(|s| s.id != since.id) {
        let number = parent.tip().footer().number;
        let what = format!(
            "the {told} starts at {name}@{}, which is no ancestor of the parent {name}@{number}",
            since.number
        );
        return Err(Error::new(ErrorKind::Mismatch, what).hint(message![
            "choose an ancestor with ",
            Setting::Since,
            ", or leave ",
            setting,
            " out",
        ]));
    }
    Ok(Some((open_chain(repository, manifest, since.id)?, list, kind)))
}

/// What a machine tells of its disk, and the chain since which that is; otherwise why it is of no use.
fn known_at(
    repository: &Repository,
    manifest: &Manifest,
    against: Option<&Chain>,
    told: &Told,
) -> Result<(Chain, ChangeList, HintKind), Option<String>> {
    let (since, list) = told.changes.clone()?;
    let parent = against.ok_or(None)?;
    let chain = open_chain(repository, manifest, since).map_err(|e| {
        Some(format!(
            "cannot read the tables of the snapshot of its bitmap: {}",
            e.without_advice()
        ))
    })?;
    if !parent.is_comparable(&chain) {
        return Err(Some("its bitmap starts at a snapshot of another chain".into()));
    }
    Ok((chain, list, HintKind::Bitmap))
}

/// The newest record of a tracker that the manifest has, and the chain of its snapshot; if it is of no use
/// for a scan against `against`, why.
fn recorded(
    repository: &Repository,
    manifest: &Manifest,
    against: Option<&Chain>,
) -> Result<(Recorded, Chain), String> {
    let (newest, kept) = manifest
        .newest_clone()
        .ok_or_else(|| "there is no clone of an earlier snapshot".to_owned())?;
    let place = manifest.place_of(newest);
    let chain = open_chain(repository, manifest, newest.id).map_err(|e| {
        let why = e.without_advice();
        format!("cannot read the tables of {place}, of which there is a clone: {why}")
    })?;
    if against.is_some_and(|against| !against.is_comparable(&chain)) {
        return Err(format!("the only clone is of {place}, which belongs to another chain"));
    }
    let record = TrackerRecord::Clone(kept.clone());
    Ok((Recorded { id: newest.id, place, image_bytes: newest.image_bytes, record }, chain))
}

/// Why no hint is trusted until all of the image has been read, and a snapshot says so.
pub(crate) fn distrust_reason(manifest: &Manifest) -> Option<String> {
    let name = &manifest.name;
    let newest = manifest.next_number.saturating_sub(1);
    match manifest.stored().last() {
        Some(last) if last.number < newest => {
            Some(format!("{name}@{newest} is gone, and with it what its recheck found"))
        }
        Some(last) if last.missed_blocks() > 0 => {
            Some(format!("the hint of {name}@{newest} had missed changes"))
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
        return Ok(Some("as requested".into()));
    }
    if let Some(why) = distrust_reason(manifest) {
        return Ok(Some(why));
    }
    let name = &manifest.name;
    let unread = parent.unread(parent.geometry().blocks(), context)?;
    let number = parent.tip().footer().number;
    Ok((!unread.is_empty()).then(|| format!("parts of {name}@{number} are unread")))
}
