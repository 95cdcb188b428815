//! The small verbs: label, forget, relink.

use super::base_image::refuse_itself;
use super::snapshot::absolute;
use super::{At, Repository, check_label, reference};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::progress::Context;
use crate::head::Head;
use crate::image::{ForeignFormat, RawFile, Source};
use crate::manifest::{self, Snapshot};
use std::path::{Path, PathBuf};

impl Repository {
    /// Gives a snapshot a label, or takes it away.
    pub fn label(
        &self,
        name: &str,
        at: &At,
        label: Option<&str>,
        context: &Context,
    ) -> Result<Snapshot> {
        label.map_or(Ok(()), check_label)?;
        let writer = self.write(name, context)?;
        let id = reference::find(&writer.manifest, &writer.head, at)?.id;
        let mut next = writer.manifest.clone();
        let taken = next.snapshots.iter().find(|s| s.id != id && s.label.as_deref() == label);
        if let (Some(taken), Some(label)) = (taken, label) {
            let what = format!("{name}@{} has the label \"{label}\"", taken.number);
            return Err(Error::new(ErrorKind::AlreadyExists, what).hint("choose another label"));
        }
        for snapshot in next.snapshots.iter_mut().filter(|s| s.id == id) {
            snapshot.label = label.map(str::to_owned);
        }
        manifest::commit(self.store.as_ref(), &mut next)?;
        let changed = next.by_id(id).cloned();
        changed.ok_or_else(|| Error::corrupt(format!("{name}: the snapshot is gone")))
    }

    /// Removes an image with all its snapshots. Gives their number and the bytes of their files.
    pub fn forget(&self, name: &str, context: &Context) -> Result<(u64, u64)> {
        let writer = self.write(name, context)?;
        let snapshots = &writer.manifest.snapshots;
        let freed = (snapshots.len() as u64, snapshots.iter().map(|s| s.file_bytes).sum());
        // First: of an image that is gone, nobody would know them.
        self.forget_clones(&writer.manifest, context);
        if !self.remove_image(writer)? {
            let place = self.store.location(name);
            context.progress().warn(&format!(
                "{place} stays: there is something in it, or mounted on it, that imgsnap has not put there"
            ));
        }
        Ok(freed)
    }

    /// Says where the live file of an image is now. What was known of it is forgotten, an
    /// interrupted rollback included.
    ///
    /// # Errors
    /// `Unsupported` if it looks like no raw image, unless `is_raw`.
    pub fn relink(
        &self,
        name: &str,
        image: &Path,
        is_raw: bool,
        context: &Context,
    ) -> Result<PathBuf> {
        let path = absolute(image)?;
        let opened = RawFile::open(&path)?;
        self.refuse_inside(&path)?;
        let live = opened.identity();
        let looks = ForeignFormat::of(opened.file(), opened.image_bytes());
        drop(opened);
        if let Some(other) = self.name_of_source(&path, context)?.filter(|other| other != name) {
            let what = format!("{} is the live file of \"{other}\"", path.display());
            return Err(Error::new(ErrorKind::AlreadyExists, what)
                .hint("a rollback of one would destroy the other; name another file"));
        }
        let writer = self.write(name, context)?;
        // A guest may have written that into the disk that it is; whoever names another one chose it.
        let is_it = writer.manifest.live.as_ref().zip(live.as_ref());
        let is_it = is_it.is_some_and(|(was, is)| was.difference(is).is_none());
        if let Some(looks) = looks.filter(|_| !is_raw && !is_it) {
            return Err(looks.refusal(&path));
        }
        let stored = writer.manifest.stored();
        stored
            .iter()
            .filter_map(|s| s.base_image.as_ref())
            .try_for_each(|b| refuse_itself(b, &path))?;
        match self.refuse_base_image(&path) {
            // Another image is damaged. Nothing is written to this one, and a rollback asks again.
            Err(e) if e.is_damage() => context.progress().warn(&e.to_string()),
            other => other?,
        }
        let before = writer.manifest.clone();
        let mut next = before.clone();
        next.source = Some(path.clone());
        next.live = live;
        if before.source.as_deref().and_then(Path::parent) != path.parent() {
            // They lie beside the file that it was, perhaps on another file system, where nobody would
            // look for them any more.
            self.forget_clones(&before, context);
        }
        manifest::commit(self.store.as_ref(), &mut next)?;
        // After the commit: an intent must not be forgotten if that failed. What the old head says of
        // the old file cannot be true of the new one, which is another inode.
        let head = Head { stat: None, intent: None, ..writer.head.clone() };
        head.save(self.store.as_ref(), name)?;
        Ok(path)
    }
}
