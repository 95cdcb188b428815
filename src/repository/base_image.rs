//! Bases whose blocks stay in an image that is there already: twenty clones of one template cost
//! twenty deltas, and twenty tables.

use super::session::Writer;
use super::snapshot::{absolute, check_format, warn_if_unguarded};
use super::tracking::{Live, Way};
use super::{At, ParentChoice, Repository, SnapshotOutcome, SnapshotRequest};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::progress::Context;
use crate::format::FrameLayout;
use crate::image::{RawFile, Source};
use crate::manifest::{self, Manifest, Snapshot};
use crate::scan::{BadMedium, Index, Scope, scan};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

impl Repository {
    /// Takes a snapshot of a clone, and of the base image that it is a clone of: one commit for both.
    pub(super) fn snapshot_on_base_image(
        &self,
        writer: &mut Writer,
        live: &Live,
        base_image: &Path,
        request: &SnapshotRequest,
        context: &Context,
    ) -> Result<SnapshotOutcome> {
        let before = writer.manifest.clone();
        let base = self.stage_base_image(writer, &live.image, base_image, request, context)?;
        writer.manifest.next_number = base.number.saturating_add(1);
        writer.manifest.snapshots.push(base.clone());
        let request = SnapshotRequest {
            parent: ParentChoice::Of(At::Number(base.number)),
            base_image: None,
            // There is no snapshot of it yet, even if it is what its base is.
            skip_unchanged: false,
            ..request.clone()
        };
        let outcome = self.snapshot_into(writer, live, &request, false, context);
        if outcome.is_err() {
            self.discard_unless_named(&before.name, &base.file)?;
            writer.manifest = before;
        }
        outcome
    }

    /// Publishes the table of a base image. No manifest names it yet.
    fn stage_base_image(
        &self,
        writer: &Writer,
        image: &RawFile,
        path: &Path,
        request: &SnapshotRequest,
        context: &Context,
    ) -> Result<Snapshot> {
        let path = absolute(path)?;
        let base_image = RawFile::open(&path)?;
        self.refuse_inside(&path)?;
        refuse_itself(&path, image.path())?;
        check_format(&writer.manifest, &base_image, request, context)?;
        let name = writer.manifest.name.clone();
        if !writer.manifest.snapshots.is_empty() && request.parent != ParentChoice::Full {
            let what = format!("\"{name}\" has snapshots already, and so a base");
            return Err(Error::new(ErrorKind::InvalidInput, what)
                .hint("begin a new chain on the base image with --full"));
        }
        if request.changed.is_some() {
            let what = format!("{} begins a chain: no list tells since when", path.display());
            return Err(Error::new(ErrorKind::InvalidInput, what).hint("leave --changed out"));
        }
        // What would be refused later leaves nothing behind.
        self.prepare(
            &writer.manifest,
            &writer.head,
            &SnapshotRequest { parent: ParentChoice::Full, ..request.clone() },
        )?;
        let begun = Instant::now();
        warn_if_unguarded(&base_image, context);
        let request = SnapshotRequest {
            parent: ParentChoice::Full,
            label: None,
            compression: request.compression,
            ..SnapshotRequest::default()
        };
        let mut prepared = self.prepare(&writer.manifest, &writer.head, &request)?;
        prepared.plan.is_by_reference = true;
        let place = path.display();
        context.progress().note(&format!("{name}: the table of {place}; its blocks stay there"));
        let mut upload = self.store.create(&format!("{name}/{}.delta", prepared.plan.file_id))?;
        let taken =
            prepared.take(&base_image, Scope::Whole, context, &mut |bytes| upload.write(bytes))?;
        if taken.written.footer.counts.unread_blocks > 0 {
            let what = format!("{place} cannot be read as a whole, so it can be no base image");
            return Err(Error::new(ErrorKind::Io, what));
        }
        context.check()?;
        make_durable(&base_image)?;
        upload.publish()?;
        Ok(Snapshot { base_image: Some(path), ..prepared.entry(&taken, &Way::whole(), begun) })
    }

    /// Says where the base image of an image is now, after a proof that the file is what it was. Gives
    /// the path and the numbers of the snapshots that are bases by reference to it.
    ///
    /// # Errors
    /// `Mismatch` if the file is the base image of none of its snapshots, with how much of it differs.
    pub fn relink_base_image(
        &self,
        name: &str,
        base_image: &Path,
        context: &Context,
    ) -> Result<(PathBuf, Vec<u64>)> {
        let path = absolute(base_image)?;
        let mut writer = self.write(name, context)?;
        let mut next = writer.manifest.clone();
        if let Some(live) = &writer.manifest.source {
            refuse_itself(&path, live)?;
        }
        let source = RawFile::open(&path)?;
        self.refuse_inside(&path)?;
        warn_if_unguarded(&source, context);
        let (mut found, mut differing) = (Vec::new(), None);
        let manifest: &Manifest = &writer.manifest;
        for base in manifest.stored().into_iter().filter(|s| s.parent.is_none()) {
            let chain = self.open_chain(manifest, base.id)?;
            if chain.tip().header().layout() != FrameLayout::Absent {
                continue;
            }
            let mut changed = source.image_bytes().abs_diff(base.image_bytes);
            if changed == 0 {
                let size = u64::from(base.block_bytes);
                context.progress().begin("scan", base.image_bytes);
                let index = Index::Parent(&chain);
                let scanned =
                    scan(&source, &index, Scope::Whole, BadMedium::Fail, context, |changes| {
                        changed += changes.block_count() * size;
                        Ok(())
                    });
                context.progress().end();
                scanned?;
            }
            match changed {
                0 => found.push((base.id, base.number)),
                bytes => differing = differing.max(Some((bytes, base.number))),
            }
        }
        if found.is_empty() {
            let what = match differing {
                None => format!("\"{name}\" has no base image"),
                Some((bytes, number)) => format!(
                    "{} is not the base image of {name}@{number}: {bytes} bytes of it differ",
                    path.display()
                ),
            };
            return Err(Error::new(ErrorKind::Mismatch, what).hint("name the original"));
        }
        make_durable(&source)?;
        let is_found = |s: &Snapshot| found.iter().any(|(id, _)| *id == s.id);
        for snapshot in next.snapshots.iter_mut().chain(&mut next.dropped).filter(|s| is_found(s)) {
            snapshot.base_image = Some(path.clone());
        }
        manifest::commit(self.store.as_ref(), &mut next)?;
        writer.manifest = next;
        Ok((path, found.into_iter().map(|(_, number)| number).collect()))
    }
}

/// The blocks are nowhere else: what was written to the base image a moment ago must not go with the power,
/// nor its name.
fn make_durable(base_image: &RawFile) -> Result<()> {
    let path = base_image.path();
    let failed = |e| Error::io(format!("cannot sync {}", path.display()), e);
    base_image.file().sync_all().map_err(failed)?;
    let Some(folder) = path.parent().filter(|_| !base_image.is_device()) else { return Ok(()) };
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        // Who may only pass through it has not made it there just now.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        other => other.map_err(failed),
    }
}

/// What is written to the live image would be lost to every snapshot.
///
/// # Errors
/// `InvalidInput` if both are one file, under whatever path.
pub(super) fn refuse_itself(base_image: &Path, live: &Path) -> Result<()> {
    let identity = |path: &Path| std::fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    let is_same = identity(base_image).is_some() && identity(base_image) == identity(live);
    if is_same || base_image == live {
        let what = format!("{} cannot be its own base image", live.display());
        return Err(Error::new(ErrorKind::InvalidInput, what));
    }
    Ok(())
}
