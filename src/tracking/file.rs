//! What is known of an image file without reading it: by its times, that nothing changed; by two clones of
//! it, what changed (DESIGN.md, "What is known without reading").
//!
//! ```text
//! image -> clone now --\
//!                       extents that differ -> hints
//! clone of an earlier snapshot -/
//! ```

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::{Context, WarningId};
use crate::base::message::{Action, Setting, message};
use crate::base::sys;
use crate::base::uri::Shown;
use crate::image::{FileStat, LiveImage, RawFile, Source};
use crate::tracking::{
    ChangeHints, ChangeTracker, Consistency, HintKind, KeptClone, KeptClones, KnownChanges,
    MapDifferences, NewClone, PointInTime, Recorded, Since, Track, TrackerRecord, extent_count,
    has_physical_addresses, reopen,
};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
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

/// Tracks an image file, or a device, by its times and by clones.
pub struct FileTracker<'a> {
    live: &'a LiveImage,
    /// What identifies the content of the image now, if that is known.
    stat: Option<FileStat>,
    clones: KeptClones<'a>,
    track: Track,
    max_stall: Duration,
    clone: Option<NewClone>,
}

impl<'a> FileTracker<'a> {
    /// Of an open image with its clones. `stat` identifies its content, if that is known; writers of it may
    /// be held up for `max_stall`.
    pub fn new(
        live: &'a LiveImage,
        stat: Option<FileStat>,
        clones: KeptClones<'a>,
        track: Track,
        max_stall: Duration,
    ) -> Self {
        Self { live, stat, clones, track, max_stall, clone: None }
    }

    /// Opens the clone of an earlier snapshot, if it serves; otherwise says why not.
    fn open_recorded(&self, recorded: Result<Recorded, String>) -> Result<(Uuid, File), String> {
        let Recorded { id, place, image_bytes, record } = recorded?;
        let TrackerRecord::Clone(kept) = record;
        let opened = self.clones.open(id, &kept);
        let file = opened.map_err(|why| format!("the clone of {place} {why}"))?;
        if kept.stat.bytes != image_bytes {
            return Err(format!("the clone of {place} has another length"));
        }
        Ok((id, file))
    }

    /// Clones the image if that can be done, and is worth it or necessary. Otherwise why not, if that is of
    /// interest.
    fn clone_now(
        &self,
        last: Option<&KeptClone>,
        context: &Context,
    ) -> Result<Result<NewClone, Option<String>>> {
        let image = &self.live.image;
        let place = image.path().shown();
        let is_forced = self.track == Track::Reflink;
        if image.is_device() || self.track == Track::None {
            let what = format!("{place} is a device: it cannot be cloned");
            return match is_forced {
                true => Err(Error::new(ErrorKind::Unsupported, what)
                    .hint(message!["use ", Setting::Track.to("auto")])),
                false => Ok(Err(None)),
            };
        }
        let cloned = extent_count(image.file()).and_then(|count| {
            let seconds = count as f64 * clone_rate(last);
            match &self.live.user {
                Some(user) => check_stall(image, user, count, seconds, self.max_stall)?,
                None if is_forced => {}
                None if !is_clone_cheap(image, seconds + count as f64 * MAPS_SECONDS) => {
                    let why = format!("it has {count} extents, and that is as fast as to clone it");
                    return Ok(Err(Some(why)));
                }
                None => {}
            }
            self.clones.make(image.file(), image.path(), count).map(Ok)
        });
        let error = match cloned {
            Ok(clone) => return Ok(clone),
            Err(e) if e.kind() == ErrorKind::Busy => return Err(e),
            Err(e) => e,
        };
        if let Some(user) = &self.live.user {
            let what = format!("{place} is open for writing by {user}, and no clone can be made");
            return Err(Error::new(ErrorKind::Busy, what).hint(message![
                error,
                "; keep it on XFS or btrfs, where it can be cloned while it is in use; or shut the virtual \
                 machine down, or close the file, and ",
                Action::Retry,
            ]));
        }
        if is_forced {
            return Err(
                error.or_hint(message!["XFS and btrfs can; or use ", Setting::Track.to("auto")])
            );
        }
        match error.kind() {
            ErrorKind::Unsupported => context.note(message!["not tracked: ", &error]),
            _ => {
                let what = message![&error, "; nothing is known of what changes then"];
                context.warn(WarningId::CloneNotMade, what);
            }
        }
        // Elsewhere nobody expects one.
        let is_expected = has_physical_addresses(image.file());
        Ok(Err(is_expected.then(|| format!("no clone could be made ({})", error.message()))))
    }
}

impl ChangeTracker for FileTracker<'_> {
    fn begin(&mut self, since: Since, context: &Context) -> Result<PointInTime> {
        let reference = self.open_recorded(since.recorded);
        let unchanged_since = since.parent.filter(|parent| {
            let last_seen = since.last_seen.as_ref();
            last_seen.is_some_and(|(id, stat)| id == parent && self.stat.as_ref() == Some(stat))
        });
        // A clone of what did not change since the last one is that one.
        let is_known = unchanged_since.is_some() && reference.is_ok();
        let is_needed = self.live.user.is_some() || since.must_read || !is_known;
        let last = since.last_clone.as_ref();
        let clone = if is_needed { self.clone_now(last, context)? } else { Err(None) };
        let (clone, why_none) = match clone {
            Ok(clone) => (Some(clone), None),
            Err(why) => (None, why),
        };
        let stall_seconds = clone.as_ref().map(|clone| clone.seconds);
        let mut source = match &clone {
            Some(clone) => Some(reopen(clone.file(), self.live.image.path())?),
            None => None,
        };
        let changes = match (unchanged_since, &clone, reference) {
            _ if since.must_read => KnownChanges::Unknown(None),
            (Some(parent), _, reference) => {
                // An earlier one that is the same.
                let same = reference.ok().filter(|(id, _)| *id == parent).map(|(_, file)| file);
                source = source.or(same);
                KnownChanges::Unchanged(parent)
            }
            (_, Some(clone), Ok((id, older))) => {
                let newer = reopen(clone.file(), self.live.image.path())?;
                let what =
                    format!("cannot open a clone of {} again", self.live.image.path().shown());
                let hints = move |_| {
                    let failed = |e| Error::io(what.as_str(), e);
                    let older = older.try_clone().map_err(failed)?;
                    let newer = newer.try_clone().map_err(failed)?;
                    Ok(Box::new(MapDifferences::new(older, newer)?) as Box<dyn ChangeHints>)
                };
                KnownChanges::Hinted { since: id, kind: HintKind::Extents, hints: Box::new(hints) }
            }
            (_, Some(_), Err(why)) => KnownChanges::Unknown(Some(why)),
            (_, None, _) => KnownChanges::Unknown(why_none),
        };
        self.clone = clone;
        let consistency = match self.live.user {
            Some(_) => Consistency::Crash,
            None => Consistency::Stopped,
        };
        Ok(PointInTime { source, stall_seconds, consistency, changes })
    }

    fn prepare(&mut self, id: Uuid, context: &Context) -> Option<TrackerRecord> {
        match self.clones.keep(self.clone.as_ref()?, id) {
            Ok(kept) => Some(TrackerRecord::Clone(kept)),
            // Without one, the next snapshot reads more: no reason to have none.
            Err(e) => {
                let what = message![e, "; the next snapshot may have to read all of the image"];
                context.warn(WarningId::CloneNotKept, what);
                None
            }
        }
    }

    fn recover(&mut self, recorded: Option<Uuid>, context: &Context) {
        self.clones.tidy(recorded.filter(|_| self.track != Track::None), context);
    }
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
    let path = image.path().shown();
    let what = format!(
        "{path} is in use by {user} and has {count} extents: to clone it would hold up its writes for \
         about {} ms",
        (seconds * 1e3).ceil()
    );
    let enough = match seconds {
        s if s < 1.0 => format!("{}ms", (2e3 * s).ceil()),
        s => format!("{}s", s.ceil()),
    };
    Err(Error::new(ErrorKind::Busy, what).hint(message![
        "allow that with ",
        Setting::MaxStall.to(enough),
        ", or shut the virtual machine down and defragment the image",
    ]))
}

/// What a clone costs for each extent, in seconds: what the last one did, if it had enough of them to
/// tell.
fn clone_rate(last: Option<&KeptClone>) -> f64 {
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
