//! Which file or device the live image is: noted with each snapshot, so that a rollback writes to nothing
//! else that its path may lead to.

use super::Repository;
use super::session::Writer;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::folder::{Folder, is_ours};
use crate::base::progress::Context;
use crate::image::{LiveIdentity, RawFile};
use crate::manifest::{self, Manifest};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

impl Repository {
    /// Notes which file or device the image is, with a commit of its own if that is news.
    pub(super) fn note_live(
        &self,
        writer: &mut Writer,
        image: &RawFile,
        context: &Context,
    ) -> Result<()> {
        let live = live_of(&writer.manifest, image, context);
        if live == writer.manifest.live {
            return Ok(());
        }
        let mut next = Manifest { live, ..writer.manifest.clone() };
        manifest::commit(self.store.as_ref(), &mut next)?;
        writer.manifest = next;
        Ok(())
    }

    /// Notes that the live file of an image has been made anew at its place, if `path` is that. Otherwise a
    /// rollback would refuse it as a file that it does not know.
    pub fn note_restored(&self, name: &str, path: &Path, context: &Context) -> Result<()> {
        let Ok(path) = std::fs::canonicalize(path) else { return Ok(()) };
        if self.read(name, context)?.manifest().source.as_deref() != Some(&path) {
            return Ok(());
        }
        let file = std::fs::File::open(&path)
            .map_err(|e| Error::io(format!("cannot open {}", path.display()), e))?;
        let writer = self.write(name, context)?;
        let live = LiveIdentity::of(&file, 0);
        let mut next = Manifest { live, ..writer.manifest.clone() };
        manifest::commit(self.store.as_ref(), &mut next)
    }
}

/// What a snapshot of an image notes of it. A file that was replaced is the live file from now on; another
/// device is not, and neither is a file that others may have put there by a hard link: that takes a `relink`.
pub(super) fn live_of(
    manifest: &Manifest,
    image: &RawFile,
    context: &Context,
) -> Option<LiveIdentity> {
    let now = image.identity();
    let (Some(was), Some(is)) = (&manifest.live, &now) else {
        return now.or(manifest.live.clone());
    };
    let Some(difference) = was.difference(is) else { return now };
    if !image.is_device() && !may_be_another_file(image) {
        return now;
    }
    let (name, place) = (&manifest.name, image.path().display());
    context.progress().warn(&format!(
        "{place} is not what the last snapshot of \"{name}\" was taken of: {difference}; a rollback is \
         refused until \"imgsnap relink {name} {place}\""
    ));
    manifest.live.clone()
}

/// True for a file that has other names, in a folder in which somebody else can make one.
fn may_be_another_file(image: &RawFile) -> bool {
    let has_names = image.file().metadata().is_ok_and(|meta| meta.nlink() > 1);
    let folder = Folder::of(image.path()).and_then(|folder| folder.owned());
    has_names && folder.is_ok_and(|folder| !is_ours(folder.owner) || folder.mode & 0o022 != 0)
}

/// A live file is known by its real path. A link that is there now leads to something else.
pub(super) fn refuse_link(name: &str, path: &Path) -> Result<()> {
    // A device is known by the path that was given, which is a link, often.
    let is_device =
        |path: &Path| std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device());
    match std::fs::canonicalize(path) {
        Ok(real) if real != path && !is_device(path) => {
            let what = format!("{} leads to {} now", path.display(), real.display());
            Err(Error::new(ErrorKind::Mismatch, what).hint(format!(
                "if that is the live file of \"{name}\", run \"imgsnap relink {name} {}\"",
                real.display()
            )))
        }
        _ => Ok(()),
    }
}

/// Whatever the path leads to now, what is written to is what the last snapshot was taken of.
///
/// # Errors
/// `Mismatch` if it is another file, or another device and nobody insists.
pub(super) fn refuse_other(
    manifest: &Manifest,
    image: &RawFile,
    force_device: bool,
    context: &Context,
) -> Result<()> {
    let (name, place) = (&manifest.name, image.path().display());
    let (Some(was), Some(is)) = (&manifest.live, image.identity()) else { return Ok(()) };
    let Some(difference) = was.difference(&is) else { return Ok(()) };
    if image.is_device() && force_device {
        context.progress().warn(&format!("{place} is another device: {difference}; as you asked"));
        return Ok(());
    }
    let what =
        format!("{place} is not what the last snapshot of \"{name}\" was taken of: {difference}");
    let force = if image.is_device() { ", or --force-device" } else { "" };
    Err(Error::new(ErrorKind::Mismatch, what).hint(format!(
        "if it is to be written to all the same, use \"imgsnap relink {name} {place}\"{force}"
    )))
}
