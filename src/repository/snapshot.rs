//! Taking a snapshot: which parent, is the image believed unchanged, publish, commit, note the
//! head.

use super::session::Writer;
use super::{At, Repository, check_label, reference};
use crate::codec::Compression;
use crate::delta::Identity;
use crate::digest::DigestKey;
use crate::error::{Error, ErrorKind, Result};
use crate::head::Head;
use crate::manifest::{self, Manifest, Snapshot};
use crate::progress::Context;
use crate::snapshot::{ChainParameters, Parent, Plan, Taken, take, take_unchanged};
use crate::source::{FileStat, RawFile};
use jiff::Timestamp;
use std::path::{Path, PathBuf};
use std::time::Instant;
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
    /// Otherwise the repository's.
    pub compression: Option<Compression>,
    /// Change nothing, only tell.
    pub dry_run: bool,
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
    /// True if the image was believed to be unchanged and not read.
    pub believed: bool,
    /// Number of the parent.
    pub parent_number: Option<u64>,
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
        request.label.as_deref().map_or(Ok(()), check_label)?;
        let image = RawFile::open(&path)?;
        warn_if_unguarded(&image, context);
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
            return self.try_snapshot(manifest, &head, &image, request, context);
        }
        let (mut writer, is_new) = self.write_or_create(&name, &path, context)?;
        let outcome = check_source(writer.manifest.clone(), &path)
            .and_then(|_| self.snapshot_into(&mut writer, &image, request, false, context));
        if outcome.is_err() && is_new && self.remove_image(writer).is_err() {
            // An image without snapshots stays behind; the next snapshot fills it.
        }
        outcome
    }

    fn try_snapshot(
        &self,
        manifest: Manifest,
        head: &Head,
        image: &RawFile,
        request: &SnapshotRequest,
        context: &Context,
    ) -> Result<SnapshotOutcome> {
        let prepared = self.prepare(&manifest, head, image, request)?;
        prepared.tell(&manifest, context);
        let begun = Instant::now();
        let taken = prepared.take(image, context, &mut |_| Ok(()))?;
        let snapshot = prepared.entry(&taken, begun);
        Ok(prepared.outcome(&manifest.name, snapshot, Outcome::DryRun))
    }

    /// Takes a snapshot of an open image into a repository that is open for writing. `is_saving`: before
    /// a rollback, which wants it whatever is known of the image.
    pub(super) fn snapshot_into(
        &self,
        writer: &mut Writer,
        image: &RawFile,
        request: &SnapshotRequest,
        is_saving: bool,
        context: &Context,
    ) -> Result<SnapshotOutcome> {
        let store = self.store.as_ref();
        let name = writer.manifest.name.clone();
        Self::refuse_damaged_head(&name, writer.head_was_damaged && !is_saving)?;
        if let Some(base_image) = &request.base_image {
            return self.snapshot_on_base_image(writer, image, base_image, request, context);
        }
        let begun = Instant::now();
        let stat = image.settled_stat();
        let prepared = self.prepare(&writer.manifest, &writer.head, image, request)?;
        prepared.tell(&writer.manifest, context);
        let mut upload = store.create(&format!("{name}/{}.delta", prepared.plan.file_id))?;
        let taken = prepared.take(image, context, &mut |bytes| upload.write(bytes))?;
        // Only what was the same before and after the scan is believed later.
        let stat = stat.filter(|stat| FileStat::of(image.file()).as_ref() == Some(stat));
        if request.skip_unchanged && taken.is_unchanged() {
            drop(upload);
            let parent = prepared.parent_id.and_then(|id| writer.manifest.by_id(id)).cloned();
            if let Some(parent) = parent {
                self.note_head(writer, parent.id, stat, context);
                return Ok(prepared.outcome(&name, parent, Outcome::Skipped));
            }
            return Err(Error::corrupt(format!("{name}: the parent is gone")));
        }
        context.check()?;
        upload.publish()?;
        let snapshot = prepared.entry(&taken, begun);
        self.commit_snapshot(writer, &snapshot)?;
        self.note_head(writer, snapshot.id, stat, context);
        Ok(prepared.outcome(&name, snapshot, Outcome::Taken))
    }

    fn commit_snapshot(&self, writer: &mut Writer, snapshot: &Snapshot) -> Result<()> {
        let mut next = writer.manifest.clone();
        next.snapshots.push(snapshot.clone());
        next.next_number = snapshot.number + 1;
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
        writer.head = Head { snapshot: Some(id), stat, intent: None };
        if let Err(e) = writer.head.save(self.store.as_ref(), &writer.manifest.name) {
            context.progress().warn(&format!("{e}; the next rollback will have to scan"));
        }
    }

    pub(super) fn prepare(
        &self,
        manifest: &Manifest,
        head: &Head,
        image: &RawFile,
        request: &SnapshotRequest,
    ) -> Result<Prepared> {
        refuse_mixture(manifest, head)?;
        if let Some(label) = &request.label
            && manifest.snapshots.iter().any(|s| s.label.as_ref() == Some(label))
        {
            let what = format!("\"{}\" has a snapshot with the label \"{label}\"", manifest.name);
            return Err(Error::new(ErrorKind::AlreadyExists, what).hint("choose another label"));
        }
        let parent_id = choose_parent(manifest, head, &request.parent)?;
        let parent = match parent_id {
            Some(id) => Parent::Tip(self.open_chain(manifest, id)?),
            None => {
                let defaults = self.defaults();
                Parent::None(ChainParameters {
                    block_size: defaults.block_size,
                    algorithm: defaults.digest,
                    key: DigestKey::random()?,
                })
            }
        };
        let believed = !request.full_scan
            && parent_id.is_some()
            && parent_id == head.snapshot
            && is_believed(head, image);
        let now = Timestamp::now();
        let plan = Plan {
            parent,
            identity: Identity {
                snapshot_id: Uuid::new_v4(),
                number: manifest.next_number,
                label: request.label.clone(),
                time_seconds: now.as_second(),
                time_nanoseconds: u32::try_from(now.subsec_nanosecond()).unwrap_or(0),
            },
            file_id: Uuid::new_v4(),
            image_id: manifest.image_id,
            compression: request.compression.unwrap_or(self.defaults().compression),
            is_by_reference: false,
        };
        let parent_number = parent_id.and_then(|id| manifest.by_id(id)).map(|s| s.number);
        Ok(Prepared { plan, believed, parent_id, parent_number, time: now })
    }
}

/// A snapshot that is about to be taken.
pub(super) struct Prepared {
    pub(super) plan: Plan,
    believed: bool,
    parent_id: Option<Uuid>,
    parent_number: Option<u64>,
    time: Timestamp,
}

impl Prepared {
    pub(super) fn take(
        &self,
        image: &RawFile,
        context: &Context,
        out: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<Taken> {
        match &self.plan.parent {
            Parent::Tip(chain) if self.believed => take_unchanged(chain, &self.plan, out),
            _ => take(image, &self.plan, context, out),
        }
    }

    /// For somebody who wants to see what happens.
    fn tell(&self, manifest: &Manifest, context: &Context) {
        let how = match (&self.plan.parent, self.believed) {
            (Parent::None(_), _) => "all of it is stored".to_owned(),
            (Parent::Tip(_), true) => "its file is unchanged since the head was noted".to_owned(),
            (Parent::Tip(chain), false) => {
                let files = chain.layers().len();
                format!("scanned against the tables of a chain of {files}")
            }
        };
        let (name, number) = (&manifest.name, self.plan.identity.number);
        context.progress().note(&format!("{name}@{number}: {how}"));
    }

    pub(super) fn entry(&self, taken: &Taken, begun: Instant) -> Snapshot {
        let footer = &taken.written.footer;
        let block_size = match &self.plan.parent {
            Parent::None(parameters) => parameters.block_size,
            Parent::Tip(chain) => chain.geometry().block_size,
        };
        Snapshot {
            number: footer.number,
            id: footer.snapshot_id,
            parent: footer.parent.map(|p| p.parent_id),
            label: footer.label.clone(),
            time: self.time,
            file: format!("{}.delta", self.plan.file_id),
            file_bytes: footer.file_bytes,
            footer_digest: taken.written.footer_digest,
            block_bytes: block_size.bytes(),
            image_bytes: footer.image_bytes,
            image_digest: footer.image_digest,
            data_blocks: footer.counts.data_blocks,
            zero_blocks: footer.counts.zero_blocks,
            unread_blocks: footer.counts.unread_blocks,
            changed_blocks: taken.changed_blocks,
            changed_bytes: taken.changed_bytes,
            frame_bytes: footer.counts.frame_bytes,
            read_bytes: Some(taken.scanned.read_bytes),
            seconds: Some(begun.elapsed().as_secs_f64()),
            base_image: None,
        }
    }

    fn outcome(&self, name: &str, snapshot: Snapshot, outcome: Outcome) -> SnapshotOutcome {
        let (believed, parent_number) = (self.believed, self.parent_number);
        SnapshotOutcome { name: name.into(), snapshot, outcome, believed, parent_number }
    }
}

/// Who does not own a file cannot ask the kernel whether others write to it.
pub(super) fn warn_if_unguarded(image: &RawFile, context: &Context) {
    if !image.is_guarded() {
        context.progress().warn(&format!(
            "{}: no lease is to be had (another owner, or the file system), so a program that has it \
             open for writing is noticed only by the file's times",
            image.path().display()
        ));
    }
}

/// True if the image file is, byte for byte, what it was when the head was noted (DESIGN.md, "When
/// the head is believed").
pub(super) fn is_believed(head: &Head, image: &RawFile) -> bool {
    head.intent.is_none() && head.stat.is_some() && head.stat == image.settled_stat()
}

/// While a rollback has begun and not ended, the image is a mixture that nobody wants to keep.
fn refuse_mixture(manifest: &Manifest, head: &Head) -> Result<()> {
    let Some(intent) = head.intent else { return Ok(()) };
    let name = &manifest.name;
    let target = manifest.by_id(intent.target).map_or("?".into(), |s| s.number.to_string());
    let what = format!("a rollback of \"{name}\" to {name}@{target} was interrupted");
    Err(Error::new(ErrorKind::Mismatch, what).hint(format!(
        "finish it with \"imgsnap rollback {name} --to {name}@{target}\", or run \"imgsnap relink {name} \
         IMAGE\" if the image has been replaced since"
    )))
}

fn choose_parent(manifest: &Manifest, head: &Head, choice: &ParentChoice) -> Result<Option<Uuid>> {
    let current = || {
        let head = head.snapshot.and_then(|id| manifest.by_id(id));
        head.or(manifest.latest()).map(|s| s.id)
    };
    match choice {
        ParentChoice::Incremental => Ok(current()),
        ParentChoice::Full => Ok(None),
        ParentChoice::Of(at) => Ok(Some(reference::find(manifest, head, at)?.id)),
        ParentChoice::Differential => match current() {
            Some(id) => {
                let lineage = manifest.lineage(id)?;
                Ok(lineage.iter().rev().find(|s| !manifest.is_dropped(s.id)).map(|s| s.id))
            }
            None => Ok(None),
        },
    }
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
    let real = std::fs::canonicalize(path).map_err(failed)?;
    if real.is_file() { Ok(real) } else { std::path::absolute(path).map_err(failed) }
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
