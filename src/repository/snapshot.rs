//! Taking a snapshot: which parent, is the image believed unchanged, publish, commit, note the
//! head.

use super::live_file::live_of;
use super::prepared::Out;
use super::session::Writer;
use super::tracking::{Live, Search, Way, policy_of, why_doubted};
use super::{At, Repository, SnapshotPolicy, Track, check_label};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::folder::resolve;
use crate::base::progress::Context;
use crate::base::units::NamedBlocks;
use crate::codec::Compression;
use crate::head::Head;
use crate::image::{FileStat, ForeignFormat, RawFile, Source};
use crate::manifest::{self, HintKind, HintUse, KeptClone, Manifest, RAW, Snapshot};
use crate::scan::Missed;
use crate::snapshot::Taken;
use crate::tracking::{ChangeList, CloneFolder, Recheck};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Against what a snapshot is taken.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
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
pub struct SnapshotRequest {
    /// The image file or device.
    pub image: PathBuf,
    /// Name of the image; otherwise its file name without extension.
    pub name: Option<String>,
    /// A label.
    pub label: Option<String>,
    /// Against what.
    pub parent: ParentChoice,
    /// The image is a clone of this one, which becomes its base and stays where it is.
    pub base_image: Option<PathBuf>,
    /// Read the image even if it is believed to be unchanged.
    pub full_scan: bool,
    /// Publish nothing if the image is unchanged.
    pub skip_unchanged: bool,
    /// Blocks that the medium of the image does not give are unread in the snapshot; otherwise there is
    /// none.
    pub skip_bad: bool,
    /// The first snapshot is of a raw image, whatever it looks like.
    pub is_raw: bool,
    /// Otherwise the repository's.
    pub compression: Option<Compression>,
    /// Change nothing, only tell.
    pub dry_run: bool,
    /// How it is found what changed; otherwise as the policy says.
    pub track: Option<Track>,
    /// How much of what is called unchanged is looked at all the same; otherwise as the policy says.
    pub recheck: Option<Recheck>,
    /// How long whoever writes to the image may be held up; otherwise as the policy says.
    pub max_stall: Option<Duration>,
    /// What changed since an earlier snapshot, as somebody else knows.
    pub changed: Option<ChangedSince>,
}

/// A list of changes, and the snapshot since which they were made.
#[derive(Debug, Clone)]
pub struct ChangedSince {
    /// What may have changed.
    pub list: ChangeList,
    /// Since when: the parent or an ancestor of it.
    pub since: At,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was published.
    Taken,
    /// The image was unchanged, and nothing was published; the snapshot given is the one it equals.
    Skipped,
    /// It was only tried.
    DryRun,
}

/// A snapshot that was taken, or not.
#[derive(Debug, Clone)]
pub struct SnapshotOutcome {
    /// Name of the image.
    pub name: String,
    /// The snapshot.
    pub snapshot: Snapshot,
    /// What became of it.
    pub outcome: Outcome,
    /// True if the image was believed to be unchanged.
    pub believed: bool,
    /// Number of the parent.
    pub parent_number: Option<u64>,
    /// What told where it may have changed, of this scan, also if its snapshot was skipped.
    pub hint: Option<HintUse>,
    /// Bytes that this scan read.
    pub read_bytes: u64,
    /// Why all of the image was read although it has a parent, if that is of interest.
    pub full_scan_reason: Option<String>,
    /// How long the image was held up to clone it; none if it was not.
    pub clone_seconds: Option<f64>,
    /// Who had the image open for writing: then it was taken as it was at one moment.
    pub user: Option<String>,
    /// What the medium of the image did not give.
    pub unread: NamedBlocks,
}

impl Repository {
    /// Takes a snapshot.
    pub fn snapshot(
        &self,
        request: &SnapshotRequest,
        context: &Context,
    ) -> Result<SnapshotOutcome> {
        let path = absolute(&request.image)?;
        let name = match &request.name {
            Some(name) => name.clone(),
            None => name_of(&request.image)?,
        };
        manifest::check_name(&name)?;
        if CloneFolder::holds(&path) {
            let what = format!("{} is a clone that is kept to find changes", path.display());
            return Err(Error::new(ErrorKind::InvalidInput, what).hint("name the image itself"));
        }
        request.label.as_deref().map_or(Ok(()), check_label)?;
        self.warn_of_policy(&name, context);
        let policy = self.policy_for(&name, request);
        let live = Live::open(&path, policy.track != Track::None)?;
        self.refuse_inside(&path)?;
        if live.user.is_none() {
            warn_if_unguarded(&live.image, context);
        }
        if request.dry_run {
            let (manifest, head) = match self.read(&name, context) {
                Err(e) if e.kind() == ErrorKind::NotFound => {
                    (Manifest::new(&name, Some(path)), Head::default())
                }
                Err(e) => return Err(e),
                Ok(reader) => {
                    (check_source(reader.manifest().clone(), &path)?, reader.head().clone())
                }
            };
            return self.try_snapshot(manifest, &head, &live, request, context);
        }
        let (mut writer, is_new) = self.write_or_create(&name, &path, context)?;
        let outcome = check_source(writer.manifest.clone(), &path)
            .and_then(|_| self.snapshot_into(&mut writer, &live, request, false, context));
        if outcome.is_err() && is_new && self.remove_image(writer).is_err() {
            // An image without snapshots stays behind; the next snapshot fills it.
        }
        outcome
    }

    /// How a snapshot is taken. A slip in repository.toml must not be the end of all snapshots.
    pub(super) fn policy_for(&self, name: &str, request: &SnapshotRequest) -> SnapshotPolicy {
        policy_of(request, self.snapshot_policy(name).unwrap_or_default())
    }

    /// Tells of such a slip, once for each verb.
    pub(super) fn warn_of_policy(&self, name: &str, context: &Context) {
        if let Err(e) = self.snapshot_policy(name) {
            context.progress().warn(&format!("{e}; until then the usual settings hold"));
        }
    }

    fn try_snapshot(
        &self,
        manifest: Manifest,
        head: &Head,
        live: &Live,
        request: &SnapshotRequest,
        context: &Context,
    ) -> Result<SnapshotOutcome> {
        check_format(&manifest, &live.image, request, context)?;
        let mut prepared = self.prepare(&manifest, head, request)?;
        let policy = self.policy_for(&manifest.name, request);
        let against = prepared.against().cloned();
        let against = against.as_ref();
        let stat = live.settled_stat();
        let stat = stat.as_ref();
        let search = Search { manifest: &manifest, head, live, stat, against, request, policy };
        let way = self.find_way(&search, context)?;
        prepared.begin(&manifest, &way, context);
        let begun = Instant::now();
        let (taken, _) = prepared.take_from(live, &way, false, context, &mut |_| Ok(()))?;
        check_some_was_read(&live.image, &taken)?;
        let snapshot = prepared.entry(&taken, &way, begun);
        let outcome = prepared.outcome(&manifest.name, snapshot, Outcome::DryRun, live, &way);
        Ok(SnapshotOutcome { unread: taken.unread, ..outcome })
    }

    /// Takes a snapshot of an open image into a repository that is open for writing. `is_saving`: before
    /// a rollback, which wants it whatever is known of the image.
    pub(super) fn snapshot_into(
        &self,
        writer: &mut Writer,
        live: &Live,
        request: &SnapshotRequest,
        is_saving: bool,
        context: &Context,
    ) -> Result<SnapshotOutcome> {
        let store = self.store.as_ref();
        let name = writer.manifest.name.clone();
        Self::refuse_damaged_head(&name, writer.head_was_damaged && !is_saving)?;
        check_format(&writer.manifest, &live.image, request, context)?;
        if let Some(base_image) = &request.base_image {
            return self.snapshot_on_base_image(writer, live, base_image, request, context);
        }
        let begun = Instant::now();
        let stat = live.settled_stat();
        let mut prepared = self.prepare(&writer.manifest, &writer.head, request)?;
        let policy = self.policy_for(&name, request);
        let against = prepared.against().cloned();
        let (manifest, head) = (&writer.manifest, &writer.head);
        let (before, of) = (stat.as_ref(), against.as_ref());
        let search = Search { manifest, head, live, stat: before, against: of, request, policy };
        let way = self.find_way(&search, context)?;
        prepared.begin(manifest, &way, context);
        let is_doubted = against.is_some() && why_doubted(manifest).is_some();
        let file = format!("{name}/{}.delta", prepared.plan.file_id);
        let mut upload = store.create(&file)?;
        let mut out = |event: Out<'_>| match event {
            Out::Bytes(bytes) => upload.write(bytes),
            Out::Again => {
                upload = store.create(&file)?;
                Ok(())
            }
        };
        let taken = prepared.take_from(live, &way, !is_saving, context, &mut out)?;
        let (taken, is_of_clone) = taken;
        check_some_was_read(&live.image, &taken)?;
        // Only what was the same before and after the scan is believed later.
        let is_same = |stat: &FileStat| FileStat::of(live.image.file()).as_ref() == Some(stat);
        // A list may have left something out, and so may what has been found to. What could not be read is
        // tried again.
        let is_exact = way.kind() != Some(HintKind::List)
            && taken.scanned.missed.blocks == 0
            && taken.unread.is_empty();
        let stat = stat.filter(|stat| !is_of_clone && is_exact && is_same(stat));
        // After a miss the proof that all is well is worth a snapshot, or all would be read each time.
        if request.skip_unchanged && taken.is_unchanged() && !is_doubted {
            drop(upload);
            let parent = prepared.parent_id.and_then(|id| writer.manifest.by_id(id)).cloned();
            if let Some(parent) = parent {
                writer.head.skipped = writer.head.skipped.wrapping_add(1);
                self.note_live(writer, &live.image, context)?;
                self.note_head(writer, parent.id, stat, context);
                self.clean_clones(&writer.manifest, policy.track != Track::None, context);
                let found = prepared.entry(&taken, &way, begun);
                let outcome = Outcome::Skipped;
                let skipped = prepared.outcome(&name, found, outcome, live, &way);
                let parent_number = writer.manifest.stored_parent_of(&parent).map(|s| s.number);
                return Ok(SnapshotOutcome { snapshot: parent, parent_number, ..skipped });
            }
            return Err(Error::corrupt(format!("{name}: the parent is gone")));
        }
        context.check()?;
        let mut snapshot = prepared.entry(&taken, &way, begun);
        snapshot.in_use = live.user.is_some();
        // Before anything is published: what the manifest names must be there.
        snapshot.kept_clone = keep_clone(live, &way, snapshot.id, context);
        let published = upload
            .publish()
            .and_then(|()| self.commit_snapshot(writer, &snapshot, &live.image, context));
        let is_tracked = policy.track != Track::None;
        if published.is_err() && snapshot.kept_clone.is_some() {
            self.clean_clones(&writer.manifest, is_tracked, context);
        }
        published?;
        self.note_head(writer, snapshot.id, stat, context);
        self.clean_clones(&writer.manifest, is_tracked, context);
        warn_of_missed(&name, &snapshot, taken.scanned.missed, context);
        warn_of_unread(&name, &snapshot, &taken.unread, context);
        let outcome = prepared.outcome(&name, snapshot, Outcome::Taken, live, &way);
        Ok(SnapshotOutcome { unread: taken.unread, ..outcome })
    }

    fn commit_snapshot(
        &self,
        writer: &mut Writer,
        snapshot: &Snapshot,
        image: &RawFile,
        context: &Context,
    ) -> Result<()> {
        let mut next = writer.manifest.clone();
        next.live = live_of(&next, image, context);
        next.snapshots.push(snapshot.clone());
        next.next_number = snapshot.number.saturating_add(1);
        self.commit_file(writer, next, &snapshot.file)
    }

    /// The snapshot stands already: failing to note the head only costs a scan.
    pub(super) fn note_head(
        &self,
        writer: &mut Writer,
        id: Uuid,
        stat: Option<FileStat>,
        context: &Context,
    ) {
        let skipped = writer.head.skipped;
        writer.head = Head { snapshot: Some(id), stat, intent: None, skipped };
        if let Err(e) = writer.head.save(self.store.as_ref(), &writer.manifest.name) {
            context.progress().warn(&format!("{e}; the next rollback will have to scan"));
        }
    }
}

/// The first snapshot decides how an image is read, and nothing changes that later: a guest can write any
/// header into its disk.
///
/// # Errors
/// `Unsupported` for a first snapshot of an image that does not look raw, or if a later version reads it in
/// another way.
pub(super) fn check_format(
    manifest: &Manifest,
    image: &RawFile,
    request: &SnapshotRequest,
    context: &Context,
) -> Result<()> {
    let format = manifest.format();
    if format != RAW {
        let what = format!("\"{}\" is read as a {} image", manifest.name, format.escape_debug());
        return Err(
            Error::new(ErrorKind::Unsupported, what).hint("a later imgsnap began it; use that one")
        );
    }
    let Some(looks) = ForeignFormat::of(image.file(), image.image_bytes()) else { return Ok(()) };
    let is_first = manifest.stored().is_empty();
    if is_first && !request.is_raw {
        return Err(looks.refusal(image.path()));
    }
    if !is_first {
        context.progress().warn(&format!(
            "{} looks like a {} image now; it is taken as raw, as it was before",
            image.path().display(),
            looks.name()
        ));
    }
    Ok(())
}

/// Gives the clone its name. Without one, the next snapshot reads more: no reason to have none.
///
/// Not after a list: it may have left something out, which is in the clone and not in the snapshot, and
/// would be taken for known from then on. The clone of an earlier snapshot stays, and serves.
fn keep_clone(live: &Live, way: &Way, id: Uuid, context: &Context) -> Option<KeptClone> {
    let clone = way.clone.as_ref().filter(|_| way.kind() != Some(HintKind::List))?;
    match CloneFolder::beside(live.image.path()).keep(clone, id) {
        Ok(stat) => Some(KeptClone { stat, seconds: clone.seconds, extents: clone.extents }),
        Err(e) => {
            context
                .progress()
                .warn(&format!("{e}; the next snapshot may have to read all of the image"));
            None
        }
    }
}

/// A disk that gives nothing at all is no disk with bad sectors.
fn check_some_was_read(image: &RawFile, taken: &Taken) -> Result<()> {
    if taken.scanned.read_bytes == 0 && !taken.unread.is_empty() {
        let what = format!("nothing of {} that was looked at can be read", image.path().display());
        return Err(Error::new(ErrorKind::Io, what).hint("check its disk, and its cables"));
    }
    Ok(())
}

fn warn_of_unread(name: &str, snapshot: &Snapshot, unread: &NamedBlocks, context: &Context) {
    if let Ok(geometry) = snapshot.geometry()
        && !unread.is_empty()
    {
        let number = snapshot.number;
        context.progress().warn(&format!(
            "{name}@{number} is incomplete, because its image could not be read as a whole: {}; the next \
             snapshot reads all of it again",
            unread.describe(geometry)
        ));
    }
}

fn warn_of_missed(name: &str, snapshot: &Snapshot, missed: Missed, context: &Context) {
    let Some(first) = missed.first else { return };
    let (blocks, number) = (missed.blocks, snapshot.number);
    let at = first * u64::from(snapshot.block_bytes);
    let what = if blocks == 1 { "1 block" } else { &format!("{blocks} blocks") };
    context.progress().warn(&format!(
        "{name}@{number}: {what} that should have been unchanged had changed (first at byte {at}); \
         stored all the same, and the next snapshot reads all of the image"
    ));
}

/// Who does not own a file cannot ask the kernel whether others write to it, and who is not root cannot see
/// who has a device open.
pub fn warn_if_unguarded(image: &RawFile, context: &Context) {
    if !image.sees_all_users() {
        context.progress().warn(&format!(
            "{}: who else has it open cannot be seen from here (not root, or in a container); nobody must \
             write to it",
            image.path().display()
        ));
    }
    if !image.is_guarded() {
        context.progress().warn(&format!(
            "{}: no lease is to be had (another owner, or the file system), so a program that has it \
             open for writing is noticed only by the file's times",
            image.path().display()
        ));
    }
}

/// True if an image file with this settled stat is, byte for byte, what it was when the head was noted
/// (DESIGN.md, "When the head is believed").
pub(super) fn is_believed(head: &Head, stat: Option<&FileStat>) -> bool {
    head.intent.is_none() && stat.is_some() && head.stat.as_ref() == stat
}

/// The name of an image: its file name without extension.
///
/// # Errors
/// `InvalidInput` if that is no name of an image.
pub fn name_of(path: &Path) -> Result<String> {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let stem: String =
        stem.chars().map(|c| if c.is_whitespace() || c == '@' { '-' } else { c }).collect();
    manifest::check_name(&stem).map(|()| stem)
}

/// The path by which an image is known: of a file the real one; of a device the one that was given,
/// because what it points to may be another one after the next boot.
pub(super) fn absolute(path: &Path) -> Result<PathBuf> {
    let failed = |e| Error::io(format!("cannot open image {}", path.display()), e);
    std::fs::metadata(path).map_err(failed)?;
    let real = resolve(path)?;
    let path = if real.is_file() { real } else { std::path::absolute(path).map_err(failed)? };
    if path.to_str().is_none() {
        let what = format!("the path {} is no UTF-8", path.display());
        return Err(Error::new(ErrorKind::Unsupported, what).hint(
            "an image is known by its path: give it a name, and its folders, that can be written",
        ));
    }
    Ok(path)
}

fn check_source(manifest: Manifest, path: &Path) -> Result<Manifest> {
    match &manifest.source {
        Some(source) if source != path => {
            let name = &manifest.name;
            let what = format!("\"{name}\" is the name of {}", source.display());
            Err(Error::new(ErrorKind::AlreadyExists, what).hint(format!(
                "give this image another one with --name, or, if the file was moved, run \"imgsnap relink \
                 {name} {}\"",
                path.display()
            )))
        }
        None => {
            let name = &manifest.name;
            let what = format!("it is not known which file \"{name}\" is the name of");
            let hint = format!("run \"imgsnap relink {name} {}\" first", path.display());
            Err(Error::new(ErrorKind::Mismatch, what).hint(hint))
        }
        _ => Ok(manifest),
    }
}
