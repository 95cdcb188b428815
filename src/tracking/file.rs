//! What is known of an image file without reading it: by its times, that nothing changed; by two clones of
//! it, what changed (DESIGN.md, "Change tracking").
//!
//! ```text
//! image -> clone now --\
//!                       extents that differ -> hints
//! clone of an earlier snapshot -/
//! ```

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::{Context, WarningId};
use crate::base::free_space::filesystem_type;
use crate::base::message::{Action, Setting, message};
use crate::base::uri::Shown;
use crate::image::{FileStat, LiveImage, RawFile};
use crate::tracking::{
    ChangeHints, ChangeTracker, Consistency, Costs, HintKind, KeptClones, KnownChanges,
    MapDifferences, NewClone, PointInTime, Recorded, Since, TimeSpent, Track, TrackerRecord,
    extent_count, has_physical_addresses, reopen,
};
use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;
use uuid::Uuid;

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

    /// Where the image is, for messages.
    fn path(&self) -> PathBuf {
        self.live.disk.container().map_or_else(PathBuf::new, |file| file.path().to_owned())
    }

    /// Opens the clone of an earlier snapshot, if it serves; otherwise says why not.
    fn open_recorded(&self, recorded: Result<Recorded, String>) -> Result<(Uuid, File), String> {
        let Recorded { id, place, image_bytes, record } = recorded?;
        let TrackerRecord::Clone(kept) = record;
        let opened = self.clones.open(id, &kept);
        let file = opened.map_err(|why| format!("the clone of {place} {why}"))?;
        if kept.stat.bytes != image_bytes {
            return Err(format!("the clone of {place} has a different length"));
        }
        Ok((id, file))
    }

    /// Clones the image if that can be done, and is worth it or necessary. Otherwise why not, if that is of
    /// interest.
    fn clone_now(
        &self,
        costs: Costs,
        context: &Context,
    ) -> Result<Result<NewClone, Option<String>>> {
        let is_forced = self.track == Track::Reflink;
        let raw = self.live.disk.raw().filter(|image| !image.is_device());
        let Some(image) = raw.filter(|_| self.track != Track::None) else {
            let place = self.live.disk.name();
            let is_device = self.live.disk.raw().is_some_and(RawFile::is_device);
            let kind = if is_device { "a device" } else { "not a raw file" };
            let what = format!("{place} is {kind}: it cannot be cloned");
            return match is_forced {
                true => Err(Error::new(ErrorKind::Unsupported, what)
                    .hint(message!["use ", Setting::Track.to("auto")])),
                false => Ok(Err(None)),
            };
        };
        let place = image.path().shown();
        let cloned = extent_count(image.file()).and_then(|count| {
            match &self.live.user {
                Some(user) => {
                    let seconds = costs.clone_seconds(count);
                    check_stall(image, user, count, seconds, self.max_stall)?;
                }
                None if is_forced => {}
                None if !costs.is_clone_cheaper(image, count, context)? => {
                    let why =
                        format!("it has {count} extents, so reading it is as fast as cloning it");
                    return Ok(Err(Some(why)));
                }
                None => {}
            }
            self.clones.make(image.file(), image.path(), count).map(Ok)
        });
        let error = match cloned {
            Ok(clone) => return Ok(clone),
            Err(e) if matches!(e.kind(), ErrorKind::Busy | ErrorKind::Interrupted) => {
                return Err(e);
            }
            Err(e) => e,
        };
        if let Some(user) = &self.live.user {
            let what = format!("{place} is in use by {user}");
            if error.kind() != ErrorKind::Unsupported {
                let what = format!("{what} and could not be cloned: {}", error.without_advice());
                let retry = message![how_to_end(user), ", and ", Action::Retry];
                return Err(Error::new(ErrorKind::Busy, what).hint(retry));
            }
            let type_name = filesystem_type(image.path());
            let type_name = type_name.as_deref().unwrap_or("its file system");
            return Err(Error::new(
                ErrorKind::Busy,
                format!("{what} and {type_name} cannot clone it"),
            )
            .hint(format!(
                "{}, take a snapshot of its machine (libvirt:DOMAIN or qemu:SOCKET), or keep the \
                     image on XFS or btrfs",
                how_to_end(user)
            )));
        }
        if is_forced {
            return Err(error.or_hint(message![
                "keep the image on XFS or btrfs, or use ",
                Setting::Track.to("auto")
            ]));
        }
        match error.kind() {
            ErrorKind::Unsupported => context.note(message!["not tracked: ", &error]),
            _ => {
                let what = message![&error, "; the next snapshot may have to read the whole image"];
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
        let clone = if is_needed { self.clone_now(since.costs, context)? } else { Err(None) };
        let (clone, why_none) = match clone {
            Ok(clone) => (Some(clone), None),
            Err(why) => (None, why),
        };
        let stall_seconds = clone.as_ref().map(|clone| clone.seconds);
        let mut source = match &clone {
            Some(clone) => Some(reopen(clone.file(), &self.path())?),
            None => None,
        };
        let maps_time = TimeSpent::default();
        let changes = match (unchanged_since, &clone, reference) {
            _ if since.must_read => KnownChanges::Unknown(None),
            (Some(parent), _, reference) => {
                // An earlier one that is the same.
                let same = reference.ok().filter(|(id, _)| *id == parent).map(|(_, file)| file);
                source = source.or(same);
                KnownChanges::Unchanged(parent)
            }
            (_, Some(clone), Ok((id, older))) => {
                let newer = reopen(clone.file(), &self.path())?;
                let what = format!("cannot open a clone of {} again", self.live.disk.name());
                let spent = maps_time.clone();
                let hints = move |_| {
                    let failed = |e| Error::io(what.as_str(), e);
                    let older = older.try_clone().map_err(failed)?;
                    let newer = newer.try_clone().map_err(failed)?;
                    Ok(Box::new(MapDifferences::new(older, newer, spent.clone())?)
                        as Box<dyn ChangeHints>)
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
        Ok(PointInTime { source, stall_seconds, consistency, changes, maps_time })
    }

    fn prepare(&mut self, id: Uuid, context: &Context) -> Option<TrackerRecord> {
        match self.clones.keep(self.clone.as_ref()?, id) {
            Ok(kept) => Some(TrackerRecord::Clone(kept)),
            // Without one, the next snapshot reads more: no reason to have none.
            Err(e) => {
                let what = message![e, "; the next snapshot may have to read the whole image"];
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
        "{path} is in use by {user} and has {count} extents: cloning it would hold up writes for \
         about {} ms",
        (seconds * 1e3).ceil()
    );
    let enough = match seconds {
        s if s < 1.0 => format!("{}ms", (2e3 * s).ceil()),
        s => format!("{}s", s.ceil()),
    };
    Err(Error::new(ErrorKind::Busy, what).hint(message![
        "allow this with ",
        Setting::MaxStall.to(enough),
        ", or shut the virtual machine down and defragment the image",
    ]))
}
/// What ends the use of an image: whoever has no process of ours to show may be a mount.
fn how_to_end(user: &str) -> String {
    match user.ends_with(')') {
        true => format!("shut {user} down"),
        false => "unmount it, or shut down what uses it".to_owned(),
    }
}
