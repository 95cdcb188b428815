//! Takes a snapshot of an open image into a repository that is open for writing: scan, publish, commit, note
//! the head.

use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::events::{Context, WarningId};
use crate::base::message::message;
use crate::base::units::NamedBlocks;
use crate::base::uri::Shown;
use crate::image::{Disk, FileAttributes, FileStat, ImageUri, LiveImage, Source};
use crate::ops::snapshot::engine::Taken;
use crate::ops::snapshot::parts::take_in_parts;
use crate::ops::snapshot::plan::{PlanInput, distrust_reason, policy_of};
use crate::ops::snapshot::prepared::{Prepared, prepare};
use crate::ops::snapshot::types::{Outcome, SnapshotOutcome, SnapshotRequest};
use crate::repo::Repository;
use crate::repo::change::commit_change;
use crate::repo::garbage::collect_garbage;
use crate::repo::live_file::{keep_head, record_head, record_live_file, record_live_file_at};
use crate::repo::live_format::is_read_as_before;
use crate::repo::manifest::{
    Attachment, Manifest, ManifestDigest, Pending, Snapshot, Timings, changed_meanwhile, pin_object,
};
use crate::repo::policy::SnapshotPolicy;
use crate::repo::session::Writer;
use crate::repo::uploads::Uploads;
use crate::scan::{Missed, Scope};
use crate::tracking::{ChangeTracker, HintKind};
use std::time::Instant;
use uuid::Uuid;

/// Takes a snapshot of an open image into a repository that is open for writing. `is_saving`: before
/// a rollback, which wants it whatever is known of the image.
pub(crate) fn take_into(
    repository: &Repository,
    writer: &mut Writer,
    live: &LiveImage,
    request: &SnapshotRequest,
    is_saving: bool,
    context: &Context,
) -> Result<SnapshotOutcome> {
    let begun = begin(repository, writer, live, request, context)?;
    let read = begun.read(repository, writer, is_saving, context)?;
    if !read.is_left_out() {
        context.check()?;
    }
    match read.is_left_out() {
        true => read.leave_out(repository, writer, context),
        false => read.commit(repository, writer, context),
    }
}

/// A snapshot whose point in time is over: what is read is as it was then.
pub(crate) struct Begun<'a> {
    live: &'a LiveImage,
    request: &'a SnapshotRequest,
    begun: Instant,
    stat: Option<FileStat>,
    prepared: Prepared,
    tracker: Box<dyn ChangeTracker + 'a>,
    tracking_seconds: f64,
    is_doubted: bool,
}

/// Fixes the point in time of a snapshot, and finds out how it is found what changed.
///
/// # Errors
/// As of [`prepare`] and [`Prepared::begin`].
pub(crate) fn begin<'a>(
    repository: &'a Repository,
    writer: &Writer,
    live: &'a LiveImage,
    request: &'a SnapshotRequest,
    context: &Context,
) -> Result<Begun<'a>> {
    let begun = Instant::now();
    // Nothing is known of an image whose snapshot is read.
    let stat = live.stable_stat().filter(|_| request.of.is_none());
    let (manifest, head) = (&writer.manifest, &writer.head);
    let mut prepared = prepare(repository, manifest, head, request)?;
    let policy = policy_for(repository, &manifest.name, request);
    // By which format it was read tells what it is: in another one it is another disk.
    let known = stat.as_ref().filter(|_| is_read_as_before(manifest, live));
    let search = PlanInput { manifest, head, stat: known, request, policy };
    let tracker = prepared.begin(repository, live, &search, context)?;
    let tracking_seconds = begun.elapsed().as_secs_f64();
    let is_doubted = prepared.against().is_some() && distrust_reason(manifest).is_some();
    Ok(Begun { live, request, begun, stat, prepared, tracker, tracking_seconds, is_doubted })
}

impl<'a> Begun<'a> {
    /// Says that the file systems in the image were frozen when it was in use.
    pub(crate) fn was_frozen(&mut self) {
        self.prepared.scan_plan.was_frozen();
    }

    /// Says that not all of its group was taken at one point in time.
    pub(crate) fn was_apart(&mut self) {
        self.prepared.was_apart();
    }

    /// Reads what may have changed. Parts of it are published, and the last file is written and is not.
    ///
    /// # Errors
    /// Of the image and of the store; then the tracker has nothing to keep.
    pub(crate) fn read(
        self,
        repository: &'a Repository,
        writer: &mut Writer,
        is_saving: bool,
        context: &Context,
    ) -> Result<ReadSnapshot<'a>> {
        let (prepared, live) = (&self.prepared, self.live);
        let name = writer.manifest.name.clone();
        let mut uploads = Uploads::new(repository, &name);
        let mut take = |source: &dyn Source, scope: Scope| {
            let before = std::mem::replace(&mut uploads, Uploads::new(repository, &name));
            before.discard()?;
            let cells = prepared.cells(source)?;
            match cells.as_slice() {
                // An interruption would leave nothing of it that is whole.
                [] | [_] => prepared.take(source, scope, context, &mut uploads),
                cells => {
                    let plan = &prepared.plan;
                    take_in_parts(repository, writer, plan, source, cells, context, &mut uploads)
                }
            }
        };
        let scanned = prepared.scan_live_or_clone(live, !is_saving, context, &mut take);
        let scanned = match scanned {
            Ok(scanned) => scanned,
            Err(error) => {
                best_effort(uploads.discard());
                return Err(error);
            }
        };
        let scan_seconds = self.begun.elapsed().as_secs_f64() - self.tracking_seconds;
        let (taken, is_of_clone) = scanned;
        check_some_was_read(&live.disk, &taken)?;
        // Only what was the same before and after the scan is trusted later.
        let is_same = |stat: &FileStat| live.disk.stat_now().as_ref() == Some(stat);
        // A list may have left something out, and so may what has been found to. What could not be read is
        // tried again.
        let kind = self.prepared.scan_plan.kind();
        let is_given = [HintKind::List, HintKind::Bitmap].map(Some).contains(&kind);
        let is_exact =
            !is_given && taken.scanned.missed.blocks == 0 && taken.counted.unread.is_empty();
        let stat = self.stat.clone().filter(|stat| !is_of_clone && is_exact && is_same(stat));
        Ok(ReadSnapshot { begun: self, uploads, taken, stat, scan_seconds })
    }
}

/// A snapshot that was read and is not published yet.
pub(crate) struct ReadSnapshot<'a> {
    begun: Begun<'a>,
    uploads: Uploads<'a>,
    taken: Taken,
    stat: Option<FileStat>,
    scan_seconds: f64,
}

impl ReadSnapshot<'_> {
    /// True if the image is what its parent is, and nobody wants a snapshot of that.
    pub(crate) fn is_left_out(&self) -> bool {
        // After a miss the proof that all is well is worth a snapshot, or all would be read each time.
        self.begun.request.skip_unchanged && self.taken.is_unchanged() && !self.begun.is_doubted
    }

    /// Publishes nothing, and remembers that the image equals the parent.
    pub(crate) fn leave_out(
        self,
        repository: &Repository,
        writer: &mut Writer,
        context: &Context,
    ) -> Result<SnapshotOutcome> {
        let Self { begun: Begun { live, request, begun, prepared, mut tracker, .. }, .. } = self;
        best_effort(self.uploads.discard());
        let name = writer.manifest.name.clone();
        let parent = prepared.parent_id.and_then(|id| writer.manifest.by_id(id)).cloned();
        let Some(parent) = parent else {
            return Err(Error::corrupt(format!("{name}: the parent is gone")));
        };
        writer.head.skipped = writer.head.skipped.wrapping_add(1);
        note_live_file(writer, live, request, context);
        note_head(repository, writer, parent.id, self.stat, request, context);
        tracker.aborted(recorded(&writer.manifest), context);
        let found = prepared.entry("", &self.taken, begun);
        let skipped = prepared.outcome(&name, found, Outcome::Skipped, live);
        let parent_number = writer.manifest.stored_parent_of(&parent).map(|s| s.number);
        Ok(SnapshotOutcome { snapshot: parent, parent_number, ..skipped })
    }

    /// Publishes it, commits, and notes the head.
    ///
    /// # Errors
    /// Of the store; `Busy` if others changed the image so that it does not fit any more.
    pub(crate) fn commit(
        self,
        repository: &Repository,
        writer: &mut Writer,
        context: &Context,
    ) -> Result<SnapshotOutcome> {
        let Self { begun, uploads, taken, stat, scan_seconds } = self;
        let Begun { live, request, begun, prepared, mut tracker, tracking_seconds, .. } = begun;
        let name = writer.manifest.name.clone();
        let mut snapshot = prepared.entry(&uploads.object(), &taken, begun);
        let maps_seconds = prepared.scan_plan.point().maps_time.seconds();
        snapshot.timings = Some(Timings { tracking_seconds, scan_seconds, maps_seconds });
        snapshot.attributes = attributes_of(&live.disk, context);
        // Before anything is published: what the manifest names must be there.
        snapshot.tracker = tracker.prepare(snapshot.id, context);
        if note_live_file(writer, live, request, context) {
            // Before the snapshot is there: without it a rollback would not know another file.
            keep_head(repository, writer, context);
        }
        let had_pending = !writer.manifest.pending.is_empty();
        let attached = attach(repository, &name, &request.attachments);
        let published = attached.and_then(|attachments| {
            snapshot.attachments = attachments;
            uploads.publish()?;
            commit_snapshot(repository, writer, &snapshot, live)
        });
        if published.is_err() && snapshot.tracker.is_some() {
            tracker.aborted(recorded(&writer.manifest), context);
        }
        published?;
        if had_pending || !snapshot.parts.is_empty() {
            // Each finished part was a commit, and the manifests of those are needed no more; nor
            // are parts of what was interrupted that were not taken.
            writer.release_reader_lock();
            if let Err(error) = collect_garbage(repository, &mut writer.manifest, context) {
                context.warn(
                    WarningId::CleanupDelayed,
                    message![error, "; the next snapshot tries again"],
                );
            }
        }
        note_head(repository, writer, snapshot.id, stat, request, context);
        tracker.committed(recorded(&writer.manifest), context);
        warn_of_missed(&name, &snapshot, taken.scanned.missed, context);
        warn_of_unread(&name, &snapshot, &taken.counted.unread, context);
        let outcome = prepared.outcome(&name, snapshot, Outcome::Taken, live);
        Ok(SnapshotOutcome { unread: taken.counted.unread, ..outcome })
    }
}

/// The newest snapshot of which the manifest has a tracker's record.
fn recorded(manifest: &Manifest) -> Option<Uuid> {
    manifest.newest_clone().map(|(snapshot, _)| snapshot.id)
}

/// Puts what goes with a snapshot beside its files.
fn attach(
    repository: &Repository,
    name: &str,
    attachments: &[(String, Vec<u8>)],
) -> Result<Vec<Attachment>> {
    let put = |(title, bytes): &(String, Vec<u8>)| {
        let object = format!("{}.attachment", Uuid::new_v4());
        repository.store.put_if_absent(&format!("{name}/{object}"), bytes)?;
        let (bytes, digest) = (bytes.len() as u64, ManifestDigest::of(bytes));
        Ok(Attachment { name: title.clone(), object, bytes, digest })
    };
    attachments.iter().map(put).collect()
}

fn commit_snapshot(
    repository: &Repository,
    writer: &mut Writer,
    snapshot: &Snapshot,
    live: &LiveImage,
) -> Result<()> {
    let number = snapshot.number.saturating_add(1);
    // The file has the number: another snapshot of another host may have it by then.
    let expected = writer.manifest.next_number;
    let source = writer.head.source.clone();
    let Manifest { host, source: linked, .. } = writer.manifest.clone();
    let is_half_written = writer.manifest.rollback.is_some();
    let attached = snapshot.attachments.iter().map(|attachment| &attachment.object);
    let files: Vec<&str> = snapshot.files().chain(attached).map(String::as_str).collect();
    commit_change(repository, writer, &files, |next| {
        // It may have its number already, and what was interrupted before it is of no more use.
        let is_its = |pending: &Pending| pending.id == snapshot.id;
        let is_reserved = next.pending.iter().any(|p| is_its(p) && p.number == snapshot.number);
        next.pending.retain(|p| {
            let is_of_base = snapshot.is_base() && p.parent.is_none() && p.plan.is_none();
            !(is_its(p) || is_of_base)
        });
        let has_parent = snapshot.parent.is_none_or(|id| next.stored().iter().any(|s| s.id == id));
        // Linked elsewhere since, this file is the image no more.
        let is_linked = next.host == host && next.source == linked;
        let is_as_it_was = next.rollback.is_some() == is_half_written;
        // Condemned meanwhile, the pin of what it is based on is gone, or will be (C9).
        let is_pinned =
            snapshot.base_of.as_ref().is_none_or(|of| !next.is_condemned(&pin_object(of.pin)));
        let has_number = is_reserved || next.next_number == expected;
        if !is_pinned || !has_number || !has_parent || !is_linked || !is_as_it_was {
            return Err(changed_meanwhile(&next.name));
        }
        if next.host.is_none() {
            next.host = Some(repository.host.host().clone());
            next.source.clone_from(&source);
        }
        next.live = None;
        next.format = Some(live.disk.format().qemu().to_owned());
        next.snapshots.push(snapshot.clone());
        next.next_number = next.next_number.max(number);
        Ok(())
    })
}

/// Remembers which file or device the image is. True if that is news.
fn note_live_file(
    writer: &mut Writer,
    live: &LiveImage,
    request: &SnapshotRequest,
    context: &Context,
) -> bool {
    match request.of.as_ref().and_then(ImageUri::file) {
        None => record_live_file(writer, &live.disk, context),
        Some(origin) => record_live_file_at(writer, origin, context),
    }
}

/// Notes that the image equals a snapshot. One whose snapshot was read has changed since: of that nothing is
/// known, and the next snapshot goes on from the newest.
fn note_head(
    repository: &Repository,
    writer: &mut Writer,
    id: Uuid,
    stat: Option<FileStat>,
    request: &SnapshotRequest,
    context: &Context,
) {
    if request.of.is_none() {
        return record_head(repository, writer, id, stat, context);
    }
    (writer.head.snapshot, writer.head.stat) = (None, None);
    keep_head(repository, writer, context);
}

/// Of the live file, also where its clone was read.
fn attributes_of(disk: &Disk, context: &Context) -> Option<FileAttributes> {
    let image = disk.container()?;
    let mut attributes = FileAttributes::of(image.file())?;
    let left_out = attributes.limit();
    if !left_out.is_empty() {
        let (place, names) = (image.path().shown(), left_out.join(", "));
        let what = format!("{place}: its extended attributes are too large to be remembered");
        context.warn(WarningId::AttributesNotNoted, format!("{what}: {names}"));
    }
    Some(attributes)
}

/// A disk that gives nothing at all is no disk with bad sectors.
pub(crate) fn check_some_was_read(disk: &Disk, taken: &Taken) -> Result<()> {
    if taken.scanned.read_bytes == 0 && !taken.counted.unread.is_empty() {
        let what = format!("no block of {} that was tried can be read", disk.name());
        return Err(Error::new(ErrorKind::Io, what).hint("check its disk, and its cables"));
    }
    Ok(())
}

fn warn_of_unread(name: &str, snapshot: &Snapshot, unread: &NamedBlocks, context: &Context) {
    if let Ok(geometry) = snapshot.geometry()
        && !unread.is_empty()
    {
        let number = snapshot.number;
        let what = format!(
            "{name}@{number} is incomplete, because its image could not be read as a whole: {}; the next \
             snapshot reads the whole image again",
            unread.describe(geometry)
        );
        context.warn(WarningId::UnreadBlocks, what);
    }
}

fn warn_of_missed(name: &str, snapshot: &Snapshot, missed: Missed, context: &Context) {
    let Some(first) = missed.first else { return };
    let (blocks, number) = (missed.blocks, snapshot.number);
    let at = first * u64::from(snapshot.block_bytes);
    let what = if blocks == 1 { "1 block" } else { &format!("{blocks} blocks") };
    let what = format!(
        "{name}@{number}: {what} that should have been unchanged had changed (first at byte {at}); \
         stored nevertheless; the next snapshot reads the whole image"
    );
    context.warn(WarningId::MissedChanges, what);
}

/// How a snapshot is taken. A slip in the configuration must not be the end of all snapshots.
pub(crate) fn policy_for(
    repository: &Repository,
    name: &str,
    request: &SnapshotRequest,
) -> SnapshotPolicy {
    policy_of(request, repository.snapshot_policy(name).unwrap_or_default())
}

/// Tells of such a slip, once for each verb.
pub(crate) fn warn_of_policy(repository: &Repository, name: &str, context: &Context) {
    if let Err(e) = repository.defaults() {
        context.warn(WarningId::PolicyInvalid, message![e, "; until then, no base can be taken"]);
    }
    if let Err(e) = repository.snapshot_policy(name) {
        context.warn(
            WarningId::PolicyInvalid,
            message![e, "; until then, the default settings apply"],
        );
    }
}
