//! Which file or device the live image is: noted with each snapshot, so that a rollback writes to nothing
//! else that its path may lead to.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::{Context, WarningId};
use crate::base::folder::{Folder, is_ours, resolve};
use crate::base::message::{Setting, Verb, message};
use crate::base::uri::Shown;
use crate::image::{Disk, FileStat, ImageUri, LiveIdentity, RawFile, loop_file};
use crate::repo::Repository;
use crate::repo::head::{Head, sources_without_manifest};
use crate::repo::inside::is_same;
use crate::repo::session::{Writer, look, read, write};
use std::ffi::OsStr;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Where the live image is on this host.
///
/// # Errors
/// `NotFound` if that is not known: a manifest alone leads nobody to write anywhere.
pub(crate) fn source_of<'a>(name: &str, head: &'a Head) -> Result<&'a ImageUri> {
    let unknown = || {
        let what = match &head.elsewhere {
            Some(host) => format!("the live file of \"{name}\" is on another host, {}", host.name),
            None => format!("it is not known where the live file of \"{name}\" is"),
        };
        let relink = Verb::Relink.of(name).asking(Setting::Image);
        Error::new(ErrorKind::NotFound, what).hint(message!["run ", relink, " first"])
    };
    head.source.as_ref().ok_or_else(unknown)
}

/// Remembers which file or device the image is. True if that is news, which is kept with the head.
pub(crate) fn record_live_file(writer: &mut Writer, disk: &Disk, context: &Context) -> bool {
    let live = live_of(&writer.manifest.name, &writer.head, disk, context);
    let is_news = live != writer.head.live;
    writer.head.live = live;
    is_news
}

/// The same of a file or device that is not opened to be read.
pub(crate) fn record_live_file_at(writer: &mut Writer, path: &Path, context: &Context) -> bool {
    let mut options = OpenOptions::new();
    let opened = options.read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let Some(file) = opened.ok() else { return false };
    let bytes = (&file).seek(SeekFrom::End(0)).unwrap_or(0);
    let now = LiveIdentity::of(&file, bytes);
    let place = path.shown().to_string();
    let is_new = || is_replaced(&file, path);
    let live = decided(&writer.manifest.name, &writer.head, now, &place, is_new, context);
    let is_news = live != writer.head.live;
    writer.head.live = live;
    is_news
}

/// Notes that the live file of an image has been made anew at its place, if `path` is that. Otherwise a
/// rollback would refuse it as a file that it does not know.
pub(crate) fn record_restored_file(
    repository: &Repository,
    name: &str,
    path: &Path,
    context: &Context,
) -> Result<()> {
    let Ok(path) = std::fs::canonicalize(path) else { return Ok(()) };
    let reader = read(repository, name, context)?;
    if reader.head().source.as_ref().and_then(ImageUri::file) != Some(&path) {
        return Ok(());
    }
    drop(reader);
    let file = File::open(&path).map_err(|e| Error::os("open", path.shown(), e))?;
    let mut writer = write(repository, name, context)?;
    writer.head.live = LiveIdentity::of(&file, 0);
    writer.head.save(repository, &writer.manifest)
}

/// What a snapshot of an image notes of it. A file that was replaced is the live file from now on; another
/// device is not, and neither is a file that others may have put there by a hard link: that takes a `relink`.
pub(crate) fn live_of(
    name: &str,
    head: &Head,
    disk: &Disk,
    context: &Context,
) -> Option<LiveIdentity> {
    let is_new = || disk.container().is_some_and(|file| is_replaced(file.file(), file.path()));
    decided(name, head, disk.identity(), &disk.name(), is_new, context)
}

/// The identity that counts from now on. `is_new` tells whether what is there now took the place of what was.
fn decided(
    name: &str,
    head: &Head,
    now: Option<LiveIdentity>,
    place: &str,
    is_new: impl Fn() -> bool,
    context: &Context,
) -> Option<LiveIdentity> {
    let (Some(was), Some(is)) = (&head.live, &now) else {
        return now.or(head.live.clone());
    };
    let Some(difference) = was.difference(is) else { return now };
    if is_new() {
        return now;
    }
    let what = format!("the last snapshot of \"{name}\" was not taken of {place}: {difference}");
    let relink = Verb::Relink.of(name).with(Setting::Image, place);
    context.warn(
        WarningId::OtherImage,
        message![what, "; rollbacks are refused until you run ", relink],
    );
    head.live.clone()
}

/// True for a file, unless it has other names, in a folder in which somebody else can make one.
fn is_replaced(file: &File, path: &Path) -> bool {
    let Ok(meta) = file.metadata() else { return false };
    let folder = Folder::of(path).and_then(|folder| folder.owned());
    let is_shared = folder.is_ok_and(|folder| !is_ours(folder.owner) || folder.mode & 0o022 != 0);
    meta.is_file() && !(meta.nlink() > 1 && is_shared)
}

/// A live file is known by its real path. A link that is there now leads to something else.
pub(crate) fn refuse_link(name: &str, path: &Path) -> Result<()> {
    // A device is known by the path that was given, which is a link, often.
    let is_device =
        |path: &Path| std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device());
    match std::fs::canonicalize(path) {
        Ok(real) if real != path && !is_device(path) => {
            let what = format!("{} now leads to {}", path.shown(), real.shown());
            Err(Error::new(ErrorKind::Mismatch, what).hint(message![
                format!("if that is the live file of \"{name}\", run "),
                Verb::Relink.of(name).with(Setting::Image, real.shown()),
            ]))
        }
        _ => Ok(()),
    }
}

/// Whatever the path leads to now, what is written to is what the last snapshot was taken of.
///
/// # Errors
/// `Mismatch` if it is another file, or another device and nobody insists.
pub(crate) fn refuse_other(
    name: &str,
    head: &Head,
    image: &RawFile,
    force_device: bool,
    context: &Context,
) -> Result<()> {
    let place = image.path().shown();
    let (Some(was), Some(is)) = (&head.live, image.identity()) else { return Ok(()) };
    let Some(difference) = was.difference(&is) else { return Ok(()) };
    if image.is_device() && force_device {
        let what = format!("{place} is a different device: {difference}; used as requested");
        context.warn(WarningId::OtherImage, what);
        return Ok(());
    }
    let what = format!("the last snapshot of \"{name}\" was not taken of {place}: {difference}");
    let relink = Verb::Relink.of(name).with(Setting::Image, place);
    let advice = message!["to write to it anyway, use ", relink];
    Err(Error::new(ErrorKind::Mismatch, what).hint(match image.is_device() {
        true => advice.then(", or ").then(Setting::ForceDevice),
        false => advice,
    }))
}

/// The snapshot stands already: failing to note the head only costs a scan.
pub(crate) fn record_head(
    repository: &Repository,
    writer: &mut Writer,
    id: Uuid,
    stat: Option<FileStat>,
    context: &Context,
) {
    writer.head = writer.head.equal_to(id, stat);
    keep_head(repository, writer, context);
}

/// Keeps what is known of the live image, or warns.
pub(crate) fn keep_head(repository: &Repository, writer: &mut Writer, context: &Context) {
    let kept = match writer.head.is_to_be_moved() {
        true => writer.head.move_here(repository, &writer.manifest),
        false => writer.head.save(repository, &writer.manifest),
    };
    if let Err(e) = kept {
        let what = message![e, "; the next rollback will have to scan the image"];
        context.warn(WarningId::HeadNotNoted, what);
    }
}

/// Who does not own a file cannot ask the kernel whether others write to it, and who is not root cannot see
/// who has a device open.
pub(crate) fn warn_if_unguarded(image: &RawFile, context: &Context) {
    if !image.sees_all_users() {
        let what = format!(
            "{}: cannot check who else has it open (not root, or in a container); nobody must \
             write to it",
            image.path().shown()
        );
        context.warn(WarningId::UsersUnseen, what);
    }
    if !image.is_guarded() {
        let what = format!(
            "{}: cannot get a lease (another owner, or the file system), so a program that has it \
             open for writing is noticed only by the file's times",
            image.path().shown()
        );
        context.warn(WarningId::NoLease, what);
    }
}

/// Where nothing can be flushed, what was written is with the server, and nothing more is known.
pub(crate) fn warn_if_not_durable(disk: &Disk, context: &Context) {
    if !disk.can_flush() {
        let place = disk.name();
        let what = format!("{place} does not support flush: what was written may not be durable");
        context.warn(WarningId::NotDurable, what);
    }
}

/// True if an image file with this stable stat is, byte for byte, what it was when the head was noted
/// (DESIGN.md, "When the head is trusted").
pub(crate) fn is_unchanged_since(head: &Head, stat: Option<&FileStat>) -> bool {
    head.intent.is_none() && stat.is_some() && head.stat.as_ref() == stat
}

/// The path by which an image is known: of a file the real one; of a device the one that was given,
/// because what it points to may be another one after the next boot.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf> {
    let failed = |e| Error::os("open image", path.shown(), e);
    std::fs::metadata(path).map_err(failed)?;
    let real = resolve(path)?;
    if real.is_file() { Ok(real) } else { std::path::absolute(path).map_err(failed) }
}

/// The same of whatever names an image.
pub(crate) fn known_as(image: &ImageUri) -> Result<ImageUri> {
    match image {
        ImageUri::File(path) => absolute(path).map(ImageUri::File),
        ImageUri::Nbd(_) | ImageUri::Remote(_) => Ok(image.clone()),
        ImageUri::Machine(uri) => uri.absolute().map(ImageUri::Machine),
    }
}

/// The blocks are nowhere else: what was written to the base image a moment ago must not go with the power,
/// nor its name.
pub(crate) fn make_durable(base_image: &RawFile) -> Result<()> {
    let path = base_image.path();
    let failed = |e| Error::os("sync", path.shown(), e);
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
pub(crate) fn refuse_itself(base_image: &Path, live: &Path) -> Result<()> {
    let identity = |path: &Path| std::fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    let is_same = identity(base_image).is_some() && identity(base_image) == identity(live);
    if is_same || base_image == live {
        let what = format!("{} cannot be its own base image", live.shown());
        return Err(Error::new(ErrorKind::InvalidInput, what));
    }
    Ok(())
}

/// The image that a user means: by name, or by the path or URI of its live file.
pub fn image_named(repository: &Repository, image: &OsStr, context: &Context) -> Result<String> {
    if let Some(name) = image.to_str().filter(|name| !name.contains('/'))
        && repository.names()?.iter().any(|known| known == name)
    {
        return Ok(name.into());
    }
    let file = ImageUri::parse(Path::new(image))?;
    if file.file().is_some_and(|path| !path.exists()) {
        let what = format!("\"{file}\" is neither an image in the repository nor a file");
        return Err(Error::new(ErrorKind::NotFound, what)
            .hint(message![Verb::List.call(), " lists the images"]));
    }
    let known = known_as(&file)?;
    // Of a machine as a whole, any of its disks.
    let is_it = |source: &ImageUri| match (known.machine(), source.machine()) {
        (Some(known), Some(source)) if known.disk.is_none() => known.place == source.place,
        _ => *source == known,
    };
    image_with_source(repository, is_it, context)?.ok_or_else(|| {
        let what = format!("{file} is not the live file of an image in the repository");
        Error::new(ErrorKind::NotFound, what).hint(message![
            "give the name of the image, or run ",
            Verb::Relink.call().asking(Setting::Name).asking(Setting::Image),
            " if it was moved",
        ])
    })
}

/// A result in the place of a live image is never meant.
///
/// # Errors
/// `InvalidInput` if `target` is the live file of an image.
pub fn refuse_live_file(repository: &Repository, target: &Path, context: &Context) -> Result<()> {
    let Ok(path) = std::fs::canonicalize(target) else { return Ok(()) };
    match name_of_source(repository, &path.into(), context)? {
        None => Ok(()),
        Some(name) => {
            let what = format!("{} is the live file of \"{name}\"", target.shown());
            Err(Error::new(ErrorKind::InvalidInput, what).hint("choose another name"))
        }
    }
}

/// True if both lead to one file, device or export, under whatever name.
pub(crate) fn is_same_image(one: &ImageUri, other: &ImageUri) -> bool {
    let meta = |image: &ImageUri| image.file().and_then(|path| std::fs::metadata(path).ok());
    one == other || meta(one).zip(meta(other)).is_some_and(|(one, other)| is_same(&one, &other))
}

/// The image whose live file or device a path leads to, under whatever name.
pub(crate) fn live_image_at(
    repository: &Repository,
    path: &Path,
    context: &Context,
) -> Result<Option<String>> {
    let (Ok(real), Ok(meta)) = (absolute(path), std::fs::metadata(path)) else { return Ok(None) };
    // What is written to a loop device is written to the file under it.
    let is_device = meta.file_type().is_block_device();
    let under = is_device.then(|| loop_file(meta.rdev())).flatten();
    let under = under.and_then(|file| std::fs::metadata(file).ok());
    let is_it = |live: &ImageUri| {
        let Some(live) = live.file() else { return false };
        let is_one = |other: Metadata| {
            [Some(&meta), under.as_ref()].into_iter().flatten().any(|m| is_same(&other, m))
        };
        live == real || std::fs::metadata(live).is_ok_and(is_one)
    };
    if let Some(name) = image_with_source(repository, is_it, context)? {
        return Ok(Some(name));
    }
    // Of an image whose manifest cannot be read this host may know where it is.
    for name in repository.names()? {
        let is_damaged = look(repository, &name, context).is_err_and(|e| e.is_damage());
        if is_damaged && sources_without_manifest(repository, &name)?.iter().any(&is_it) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// The image whose live file, device or export that is.
pub fn name_of_source(
    repository: &Repository,
    image: &ImageUri,
    context: &Context,
) -> Result<Option<String>> {
    image_with_source(repository, |source| source == image, context)
}

fn image_with_source(
    repository: &Repository,
    is_it: impl Fn(&ImageUri) -> bool,
    context: &Context,
) -> Result<Option<String>> {
    for name in repository.names()? {
        match look(repository, &name, context) {
            Ok((_, head)) if head.source.as_ref().is_some_and(&is_it) => {
                return Ok(Some(name));
            }
            // That another image is damaged, or just removed, is no reason to refuse this one.
            Err(e) if !matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::NotFound) => {
                return Err(e);
            }
            _ => {}
        }
    }
    Ok(None)
}
