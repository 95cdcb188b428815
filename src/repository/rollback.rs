//! Rolling a live image back: save its present state, note the intent, write, note the new head.
//!
//! ```text
//! save the present state -> intent (durable) -> write what differs, fsync -> head = target, no intent
//! ```
//!
//! Interrupted before the intent, nothing has happened. Interrupted after it, the image is a
//! mixture, and the intent says so: the next rollback does not save it, and finds what differs by a
//! scan.

use super::snapshot::{absolute, is_believed, warn_if_unguarded};
use super::{At, Repository, SnapshotRequest, reference};
use crate::chain::Chain;
use crate::error::{Error, ErrorKind, Result};
use crate::head::{Head, RollbackIntent};
use crate::manifest::{self, Snapshot};
use crate::progress::Context;
use crate::rollback::{Basis, RolledBack, execute, prove, rehearse};
use crate::source::{RawFile, Source};
use crate::target::InPlace;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// A rollback that a user wants.
#[derive(Debug, Clone)]
pub struct RollbackRequest {
    /// Name of the image.
    pub name: String,
    /// Where to.
    pub to: At,
    /// Take a snapshot of the present state first.
    pub save: bool,
    /// Believe nothing: find what differs by a scan, and read everything again at the end.
    pub prove: bool,
    /// Change nothing, only tell.
    pub dry_run: bool,
}

/// What a rollback did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RollbackOutcome {
    /// Number of the snapshot that the image equals now.
    pub number: u64,
    /// The image.
    pub image: PathBuf,
    /// Bytes written, and read to find them.
    pub work: RolledBack,
    /// True if the image was read in full to find what differs.
    pub scanned: bool,
    /// True if it is proved, by reading, that the image equals the snapshot.
    pub proved: bool,
    /// The snapshot that holds the state before; none if it was not to be saved.
    pub saved: Option<u64>,
    /// True if nothing was changed.
    pub dry_run: bool,
    /// True if this finished an interrupted rollback.
    pub resumed: bool,
}

impl Repository {
    /// The image that a user means: by name, or by the path of its live file.
    pub fn image_named(&self, image: &str, context: &Context) -> Result<String> {
        if !image.contains('/') && self.names()?.iter().any(|name| name == image) {
            return Ok(image.into());
        }
        if !Path::new(image).exists() {
            let what = format!("\"{image}\" is neither an image in the repository nor a file");
            return Err(
                Error::new(ErrorKind::NotFound, what).hint("\"imgsnap list\" shows what there is")
            );
        }
        self.name_of_source(&absolute(Path::new(image))?, context)?.ok_or_else(|| {
            let what = format!("{image} is not the live file of an image in the repository");
            Error::new(ErrorKind::NotFound, what)
                .hint("name the image, or run \"imgsnap relink NAME IMAGE\" if it was moved")
        })
    }

    /// Rolls a live image back.
    pub fn rollback(
        &self,
        request: &RollbackRequest,
        context: &Context,
    ) -> Result<RollbackOutcome> {
        let mut writer = self.write(&request.name, context)?;
        let target = reference::find(&writer.manifest, &writer.head, &request.to)?.clone();
        let path = writer.manifest.source.clone().ok_or_else(|| {
            let what = format!("it is not known where the live file of \"{}\" is", request.name);
            let hint = format!("run \"imgsnap relink {} IMAGE\" first", request.name);
            Error::new(ErrorKind::NotFound, what).hint(hint)
        })?;
        let image = RawFile::open_to_write(&path).map_err(|e| match e.kind() {
            ErrorKind::NotFound => e.hint(format!(
                "run \"imgsnap restore {}@{} -o {}\" to make it anew",
                request.name,
                target.number,
                path.display()
            )),
            _ => e,
        })?;
        warn_if_unguarded(&image, context);
        let chain = self.open_chain(&writer.manifest, target.id)?;
        check_device(&image, &chain)?;
        let resumed = writer.head.intent.is_some();
        let suspicious = resumed || writer.head_was_damaged;
        if writer.head_was_damaged {
            context.progress().warn("the head state was damaged; the image will be scanned");
        }
        let is_believed = !request.prove && !suspicious && is_believed(&writer.head, &image);
        let current = writer.head.snapshot.filter(|id| writer.manifest.by_id(*id).is_some());
        let mut known = if is_believed { current } else { None };
        // Of an interrupted one: what it had saved.
        let intended = writer.head.intent.and_then(|intent| intent.saved);
        let intended = intended.and_then(|id| writer.manifest.by_id(id));
        let mut outcome = RollbackOutcome {
            number: target.number,
            image: path,
            work: RolledBack::default(),
            scanned: false,
            proved: false,
            saved: intended.map(|s| s.number),
            dry_run: request.dry_run,
            resumed,
        };
        if request.dry_run {
            let basis = self.basis(&writer.manifest, known, &chain)?;
            outcome.work = rehearse(&image, &chain, &basis.as_basis(), context)?;
            outcome.scanned = basis.is_scan();
            return Ok(outcome);
        }
        if request.save && !resumed {
            if known.is_none() {
                let saved = self.save(&mut writer, &image, context)?;
                outcome.scanned = true;
                outcome.work.read_bytes += saved.1;
                known = Some(saved.0);
            }
            outcome.saved = known.and_then(|id| writer.manifest.by_id(id)).map(|s| s.number);
        }
        let basis = self.basis(&writer.manifest, known, &chain)?;
        outcome.scanned |= basis.is_scan();
        if !resumed {
            // Damage in the repository must show while the image is still whole.
            let found = rehearse(&image, &chain, &basis.as_basis(), context)?;
            outcome.work.read_bytes += found.read_bytes;
        }
        let saved =
            outcome.saved.and_then(|n| writer.manifest.snapshots.iter().find(|s| s.number == n));
        let saved = saved.map(|s| s.id);
        let step = Step { image: &image, target: &target, chain: &chain, basis: &basis, saved };
        let work = self.write_image(&mut writer, &step, context)?;
        outcome.work.written_bytes = work.written_bytes;
        outcome.work.read_bytes += work.read_bytes;
        if request.prove {
            drop_cache(&image);
            // The file may have another length than when it was opened.
            drop(image);
            let image = RawFile::open_to_write(&outcome.image)?;
            prove(&image, &chain, context).map_err(|e| {
                e.hint("all was written, but it is not proved; run the rollback again")
            })?;
            self.end_rollback(&mut writer, target.id, &image, context)?;
        } else {
            self.end_rollback(&mut writer, target.id, &image, context)?;
        }
        outcome.proved = outcome.scanned || request.prove;
        Ok(outcome)
    }

    /// From the intent to the last byte.
    fn write_image(
        &self,
        writer: &mut super::session::Writer,
        step: &Step<'_>,
        context: &Context,
    ) -> Result<RolledBack> {
        let Step { image, target, chain, basis, saved } = *step;
        let before = writer.head.clone();
        self.intend(writer, &target.id, saved)?;
        context.progress().note("the intent is noted; from here on the image is a mixture");
        let mut disk = InPlace::new(image);
        let work = execute(image, &mut disk, chain, &basis.as_basis(), context);
        let error = match work {
            Ok(work) => return Ok(work),
            Err(error) => error,
        };
        let name = &writer.manifest.name;
        if !disk.is_begun() && before.intent.is_none() {
            // Nothing was written: nothing happened.
            before.save(self.store.as_ref(), name)?;
            writer.head = before;
            return Err(error);
        }
        let saved = writer.head.intent.and_then(|intent| intent.saved);
        let saved = saved.and_then(|id| writer.manifest.by_id(id));
        let saved =
            saved.map_or(String::new(), |s| format!(" (the state before is {name}@{})", s.number));
        Err(error.hint(format!(
            "the image is a mixture now{saved}: run \"imgsnap rollback {name} --to {name}@{}\" again",
            target.number
        )))
    }

    /// Notes that the image is the snapshot now. An intent that stays would be taken for a mixture, and
    /// later work for something that need not be saved.
    fn end_rollback(
        &self,
        writer: &mut super::session::Writer,
        id: Uuid,
        image: &RawFile,
        context: &Context,
    ) -> Result<()> {
        let stat = image.settled_stat();
        image.check()?;
        let name = writer.manifest.name.clone();
        let store = self.store.as_ref();
        writer.head = Head { snapshot: Some(id), stat, intent: None };
        let Err(error) = writer.head.save(store, &name) else { return Ok(()) };
        context.progress().warn(&format!("{error}; what is known of the image is forgotten"));
        Head::forget(store, &name)
    }

    /// Saves the present state; gives the snapshot that holds it, and how much was read.
    fn save(
        &self,
        writer: &mut super::session::Writer,
        image: &RawFile,
        context: &Context,
    ) -> Result<(Uuid, u64)> {
        let request =
            SnapshotRequest { full_scan: true, skip_unchanged: true, ..SnapshotRequest::default() };
        let saved = self.snapshot_into(writer, image, &request, true, context)?;
        let read = saved.snapshot.read_bytes.unwrap_or(0);
        Ok((saved.snapshot.id, read))
    }

    /// From what the differences to `target` are found, if the image is known to equal `known`.
    fn basis(
        &self,
        manifest: &manifest::Manifest,
        known: Option<Uuid>,
        target: &Chain,
    ) -> Result<OwnedBasis> {
        let Some(id) = known else { return Ok(OwnedBasis(None)) };
        let chain = self.open_chain(manifest, id)?;
        Ok(OwnedBasis(chain.is_comparable(target).then_some(chain)))
    }

    fn intend(
        &self,
        writer: &mut super::session::Writer,
        target: &Uuid,
        saved: Option<Uuid>,
    ) -> Result<()> {
        let before = writer.head.intent.and_then(|intent| intent.saved);
        writer.head = Head {
            snapshot: writer.head.snapshot,
            stat: None,
            intent: Some(RollbackIntent { target: *target, saved: saved.or(before) }),
        };
        writer.head.save(self.store.as_ref(), &writer.manifest.name)
    }
}

/// What is to be written, and where.
struct Step<'a> {
    image: &'a RawFile,
    target: &'a Snapshot,
    chain: &'a Chain,
    basis: &'a OwnedBasis,
    saved: Option<Uuid>,
}

struct OwnedBasis(Option<Chain>);

impl OwnedBasis {
    fn as_basis(&self) -> Basis<'_> {
        self.0.as_ref().map_or(Basis::Scan, Basis::Tables)
    }

    fn is_scan(&self) -> bool {
        self.0.is_none()
    }
}

fn check_device(image: &RawFile, target: &Chain) -> Result<()> {
    let (have, want) = (image.image_bytes(), target.geometry().image_bytes);
    if image.is_device() && have != want {
        let what = format!("{} has {have} bytes, the snapshot {want}", image.path().display());
        return Err(Error::new(ErrorKind::Mismatch, what)
            .hint("a device keeps its length: restore to another one"));
    }
    Ok(())
}

/// What is read to prove it comes from the disk, not from memory.
fn drop_cache(image: &RawFile) {
    use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
    if posix_fadvise(image.file(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).is_err() {
        // Only advice.
    }
}
