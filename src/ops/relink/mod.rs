//! The verb *relink*: where the live file of an image is now, or its base image.

pub mod types;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::{Context, Phase};
use crate::base::uri::Shown;
use crate::format::FrameLayout;
use crate::image::{ImageFormat, ImageUri, RawFile, Source};
use crate::ops::relink::types::{Relinked, RelinkedBase};
use crate::repo::Repository;
use crate::repo::change::commit_change;
use crate::repo::clones::remove_all_clones;
use crate::repo::files::open_chain;
use crate::repo::head::Head;
use crate::repo::inside::{refuse_base_image_or_warn, refuse_inside};
use crate::repo::live_file::{
    absolute, known_as, make_durable, name_of_source, refuse_itself, warn_if_unguarded,
};
use crate::repo::manifest::{self, Manifest, Snapshot};
use crate::repo::session::write;
use crate::scan::{BadMedium, Index, Scope, scan};
use std::path::Path;

/// Says where the live file of an image is now. What was known of it is forgotten, an
/// interrupted rollback included.
///
/// # Errors
/// `Unsupported` if it looks like another format than the recorded one, and none is given; `Mismatch` if it
/// is not of the one that is.
pub fn run(
    repository: &Repository,
    name: &str,
    image: &ImageUri,
    format: Option<ImageFormat>,
    context: &Context,
) -> Result<Relinked> {
    let image = known_as(image)?;
    let file = image.file();
    let opened = file.map(RawFile::open).transpose()?;
    file.map_or(Ok(()), |path| refuse_inside(repository, path))?;
    let live = opened.as_ref().and_then(RawFile::identity);
    let looks = opened.as_ref().map(|o| ImageFormat::of(o.file(), o.image_bytes()));
    drop(opened);
    let other = name_of_source(repository, &image, context)?;
    if let Some(other) = other.filter(|other| other != name) {
        let what = format!("{image} is already the live file of \"{other}\"");
        return Err(Error::new(ErrorKind::AlreadyExists, what)
            .hint("a rollback of one would overwrite the other; use another file"));
    }
    let mut writer = write(repository, name, context)?;
    let looks = looks.unwrap_or(ImageFormat::RAW);
    // A guest may have written that into the disk that it is; whoever names another one chose it.
    let is_it = writer.head.live.as_ref().zip(live.as_ref());
    let is_it = is_it.is_some_and(|(was, is)| was.difference(is).is_none());
    let known = writer.manifest.format().map(str::to_owned);
    let format = match format {
        Some(format) if !format.is_raw() && looks != format => {
            let what = format!("{image} is not a {format} image");
            return Err(Error::new(ErrorKind::Mismatch, what));
        }
        Some(format) => format.qemu().to_owned(),
        // Whatever looks raw is.
        None if looks.is_raw() => looks.qemu().to_owned(),
        None => match known.filter(|known| is_it || known == looks.qemu()) {
            Some(known) => known,
            None => return Err(looks.refusal_of_relink(&image)),
        },
    };
    if let Some(path) = file {
        let stored = writer.manifest.stored();
        let mut base_images = stored.iter().filter_map(|s| s.base_image.as_ref());
        base_images.try_for_each(|base_image| refuse_itself(base_image, path))?;
        // Nothing is written to it now, and a rollback asks again.
        refuse_base_image_or_warn(repository, path, context)?;
    }
    let before = writer.head.clone();
    let folder_of = |image: Option<&ImageUri>| image?.file()?.parent().map(Path::to_owned);
    if folder_of(before.source.as_ref()) != folder_of(Some(&image)) {
        // They lie beside the file that it was, perhaps on another file system, where nobody would
        // look for them any more.
        remove_all_clones(repository, &writer.manifest, &before, context);
    }
    // What the old head says of the old file cannot be true of the new one, which is another inode.
    writer.head = Head::at(image.clone());
    writer.head.snapshot = before.snapshot;
    writer.head.skipped = before.skipped;
    writer.head.live = live;
    let known = writer.manifest.rollback.clone();
    commit_change(repository, &mut writer, &[], |next| {
        // One that has begun since is not forgotten: what it writes to may be this file.
        if next.rollback != known {
            return Err(manifest::changed_meanwhile(&next.name));
        }
        next.source = Some(image.clone());
        next.format = Some(format.clone());
        next.host = Some(repository.host.host().clone());
        (next.live, next.rollback) = (None, None);
        Ok(())
    })?;
    writer.head.move_here(repository, &writer.manifest)?;
    Ok(Relinked { image })
}

/// Says where the base image of an image is now, after a proof that the file is what it was.
///
/// # Errors
/// `Mismatch` if the file is the base image of none of its snapshots, with how much of it differs.
pub fn base_image(
    repository: &Repository,
    name: &str,
    base_image: &Path,
    context: &Context,
) -> Result<RelinkedBase> {
    let path = absolute(base_image)?;
    let mut writer = write(repository, name, context)?;
    let mut next = writer.manifest.clone();
    if let Some(live) = writer.head.source.as_ref().and_then(ImageUri::file) {
        refuse_itself(&path, live)?;
    }
    let source = RawFile::open(&path)?;
    refuse_inside(repository, &path)?;
    warn_if_unguarded(&source, context);
    let (mut found, mut differing) = (Vec::new(), None);
    let manifest: &Manifest = &writer.manifest;
    for base in manifest.stored().into_iter().filter(|s| s.is_base()) {
        let chain = open_chain(repository, manifest, base.id)?;
        if chain.tip().header().layout() != FrameLayout::Absent {
            continue;
        }
        let mut changed = source.image_bytes().abs_diff(base.image_bytes);
        if changed == 0 {
            let size = u64::from(base.block_bytes);
            let phase = context.begin(Phase::Scan, base.image_bytes);
            let index = Index::Parent(&chain);
            let scanned =
                scan(&source, &index, Scope::Whole, BadMedium::Fail, context, |changes| {
                    changed += changes.block_count() * size;
                    Ok(())
                });
            drop(phase);
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
                path.shown()
            ),
        };
        return Err(Error::new(ErrorKind::Mismatch, what).hint("give the original"));
    }
    make_durable(&source)?;
    let is_found = |s: &Snapshot| found.iter().any(|(id, _)| *id == s.id);
    for snapshot in next.snapshots.iter_mut().chain(&mut next.dropped).filter(|s| is_found(s)) {
        snapshot.base_image = Some(path.clone());
    }
    manifest::commit(repository.store.as_ref(), &mut next)?;
    writer.manifest = next;
    let numbers = found.into_iter().map(|(_, number)| number).collect();
    Ok(RelinkedBase { base_image: path, numbers })
}
