//! The verb *restore*: a snapshot, or a part of it, as a file, on a device, or to whatever takes bytes.

pub mod group;
pub mod types;

mod task;
mod update;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::{Context, WarningId};
use crate::base::folder::resolve_new;
use crate::base::free_space::free_space_at;
use crate::base::message::{Setting, Verb, message};
use crate::base::units::{ByteRange, NamedBlocks};
use crate::base::uri::Shown;
use crate::chain::Chain;
use crate::image::nbd::NbdUri;
use crate::image::write::{InPlace, NewFile, NewQcow2, OsMedium, RawInPlace, Target};
use crate::image::{
    Disk, FileAttributes, ImageFormat, ImageUri, Intent, RawFile, ReadBy, Source, Unguarded,
};
use crate::repo::Repository;
use crate::repo::group::members_of;
use crate::repo::inside::{is_same, refuse_target};
use crate::repo::live_file::{record_restored_file, warn_if_not_durable, warn_if_unguarded};
use crate::repo::manifest::Snapshot;
use crate::repo::session::{Reader, read};
use crate::view::{Restored, Seed, check_free_space_for, check_range, restore_seeded};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use task::{Done, Task};
use types::{RestoreOutcome, RestoreRequest, RestoreTarget};

/// Restores.
///
/// # Errors
/// `Corrupt` if a block or the image is not what its digest says, or was never read; then a new file does not
/// appear, and a device holds a part. Of an update see [`RestoreRequest::update`].
pub fn run(
    repository: &Repository,
    request: &RestoreRequest,
    target: RestoreTarget<'_>,
    context: &Context,
) -> Result<RestoreOutcome> {
    check_request(request, &target)?;
    Opened::of(repository, request, context)?.restore(repository, request, target, context)
}

/// A snapshot that can be restored: what is stored of it is held.
struct Opened {
    reader: Reader,
    snapshot: Snapshot,
    chain: Chain,
    /// The part that is meant.
    part: ByteRange,
    unread: NamedBlocks,
}

impl Opened {
    fn of(repository: &Repository, request: &RestoreRequest, context: &Context) -> Result<Self> {
        let reader = read(repository, &request.name, context)?;
        reader.manifest().check_at_least(request.at_least)?;
        let snapshot = reader.find(&request.at)?.clone();
        let chain = reader.chain(repository, snapshot.id)?;
        // Before a target of that length is made.
        let part = check_range(request.range, snapshot.image_bytes)?;
        let unread = chain.unread(part.blocks(chain.geometry().block_size), context)?;
        let chain = match unread.is_empty() {
            true => chain,
            false => accept(chain, snapshot.number, &unread, request, context)?,
        };
        Ok(Self { reader, snapshot, chain, part, unread })
    }

    fn restore(
        self,
        repository: &Repository,
        request: &RestoreRequest,
        target: RestoreTarget<'_>,
        context: &Context,
    ) -> Result<RestoreOutcome> {
        let Self { reader, snapshot, chain, part, unread } = self;
        let group = members_of(repository, reader.manifest(), &snapshot, context);
        let seed = request.seed.as_deref().map(|seed| open_seed(seed, &target)).transpose()?;
        let seed = seed.as_ref().map(|disk| Seed::new(disk, context));
        let task = Task {
            repository,
            request,
            image_id: reader.manifest().image_id,
            snapshot: &snapshot,
            chain: &chain,
            has_unread: !unread.is_empty(),
            live_format: live_format(&reader, &target),
            seed: seed.as_ref(),
        };
        let done = match target {
            RestoreTarget::Path(path) if request.update => {
                task.update(&path.into(), reader, context)?
            }
            RestoreTarget::Nbd(uri) if request.update => {
                task.update(&ImageUri::Nbd(uri.clone()), reader, context)?
            }
            target => {
                drop(reader);
                task.write(target, part.bytes, context)?
            }
        };
        let Done { restored, untouched_bytes, update } = done;
        Ok(RestoreOutcome { snapshot, restored, unread, untouched_bytes, update, group })
    }
}

const ONLY_QCOW2: &str = "only a new qcow2 image can be compressed";

/// Fails for what does not go together.
fn check_request(request: &RestoreRequest, target: &RestoreTarget<'_>) -> Result<()> {
    let is_disk = !matches!(target, RestoreTarget::Target(_));
    let is_file = matches!(target, RestoreTarget::Path(path) if !is_device(path));
    if let Some(format) = request.format.filter(|f| !f.is_raw() && *f != ImageFormat::QCOW2) {
        let what = format!("a {format} image cannot be written");
        return Err(Error::new(ErrorKind::Unsupported, what)
            .hint("restore to a raw or qcow2 image, and convert that"));
    }
    let is_qcow2 = request.format == Some(ImageFormat::QCOW2);
    let is_compressed = request.cluster_compression.is_some();
    let what = match request.update {
        true if !is_disk => "only a file, a device or an export can be updated",
        _ if is_qcow2 && !is_file => "only a file can be a qcow2 image",
        is_update if is_compressed && (is_update || !is_file) => ONLY_QCOW2,
        true if request.range.is_some() => "a part of an image cannot be updated, only all of it",
        false if request.trust_target => "only the target of an update can be trusted",
        _ => return Ok(()),
    };
    Err(Error::new(ErrorKind::InvalidInput, what))
}

/// Opens what blocks are taken from. Each is proved, so nobody is held off.
fn open_seed(seed: &Path, target: &RestoreTarget<'_>) -> Result<Unguarded> {
    let file = Unguarded::open(seed)?;
    if let RestoreTarget::Path(target) = target
        && let (Ok(one), Ok(other)) = (std::fs::metadata(seed), std::fs::metadata(target))
        && is_same(&one, &other)
    {
        let what = format!("{} is the target, and cannot be its own seed", seed.shown());
        return Err(Error::new(ErrorKind::InvalidInput, what).hint(message![
            "use ",
            Setting::Update,
            " instead of ",
            Setting::Seed,
            " to write only what differs"
        ]));
    }
    Ok(file)
}

impl Task<'_> {
    /// Writes all `bytes` bytes of it.
    fn write(&self, target: RestoreTarget<'_>, bytes: u64, context: &Context) -> Result<Done> {
        let mut untouched_bytes = 0;
        let restored = match target {
            RestoreTarget::Target(target) => self.copy_to(target, context)?,
            RestoreTarget::Nbd(uri) => {
                let (restored, export_bytes) = self.to_export(uri, bytes, context)?;
                untouched_bytes = export_bytes.saturating_sub(bytes);
                restored
            }
            RestoreTarget::Path(path) => {
                refuse_target(self.repository, path)?;
                if is_device(path) {
                    let (restored, device_bytes) = self.to_device(path, bytes, context)?;
                    untouched_bytes = device_bytes.saturating_sub(bytes);
                    restored
                } else {
                    self.to_file(path, bytes, context)?
                }
            }
        };
        Ok(Done { restored, untouched_bytes, update: None })
    }

    fn copy_to(&self, target: &mut dyn Target, context: &Context) -> Result<Restored> {
        restore_seeded(self.chain, self.request.range, self.seed, target, context)
    }

    /// How the disk is to lie in a new file.
    fn new_format(&self, path: &Path) -> ImageFormat {
        let usual = match ImageFormat::is_qcow2_by_name(path) {
            true => ImageFormat::QCOW2,
            false => ImageFormat::RAW,
        };
        self.request.format.or(self.live_format).unwrap_or(usual)
    }

    /// Onto a disk that is there.
    fn copy_over(&self, disk: &mut dyn InPlace, bytes: u64, context: &Context) -> Result<Restored> {
        disk.check_free_space(bytes)?;
        self.copy_to(disk, context).map_err(|e| self.half_written(disk, ImageFormat::RAW, e))
    }

    /// A new file, or one in its place.
    fn to_file(&self, path: &Path, bytes: u64, context: &Context) -> Result<Restored> {
        let Self { repository, request, snapshot, .. } = self;
        let place = path.shown().to_string();
        // A part of an image is a file of its own.
        let attributes = snapshot.attributes.clone().filter(|_| request.range.is_none());
        if self.new_format(path) == ImageFormat::QCOW2 {
            return self.to_qcow2(path, bytes, attributes, context);
        }
        if request.cluster_compression.is_some() {
            return Err(Error::new(ErrorKind::InvalidInput, ONLY_QCOW2));
        }
        let target = NewFile::create(path, bytes, request.force)?;
        let mut target = target.with_attributes(attributes).held();
        check_free_space_for(self.chain, request.range, free_space_at(path), &place)?;
        let restored = self.copy_to(&mut target, context)?;
        warn_of_attributes(&place, target.not_given(), context);
        let stable = if restored.proved { target.stable() } else { None };
        // Who opens it from here on need not wait.
        drop(target);
        if let Some((file, stat)) = stable {
            self.note_restored(path, file, stat, context);
        }
        self.note_live_file(repository, path, context);
        Ok(restored)
    }

    fn to_qcow2(
        &self,
        path: &Path,
        bytes: u64,
        attributes: Option<FileAttributes>,
        context: &Context,
    ) -> Result<Restored> {
        let Self { repository, request, .. } = self;
        let place = path.shown().to_string();
        let target = NewQcow2::create(path, bytes, request.force, request.cluster_compression)?;
        let target = target.with_threads(context.threads());
        let mut target = target.with_attributes(attributes);
        check_free_space_for(self.chain, request.range, free_space_at(path), &place)?;
        let restored = self.copy_to(&mut target, context)?;
        warn_of_attributes(&place, target.not_given(), context);
        if target.image_bytes() != bytes {
            let more = target.image_bytes() - bytes;
            context.note(format!(
                "{place} consists of whole sectors: {more} zeros were added at its end"
            ));
        }
        drop(target);
        self.note_live_file(repository, path, context);
        Ok(restored)
    }

    /// If that is where the live file was, it is that.
    fn note_live_file(&self, repository: &Repository, path: &Path, context: &Context) {
        let name = &self.request.name;
        if let Err(e) = record_restored_file(repository, name, path, context) {
            let relink = Verb::Relink.of(name).with(Setting::Image, path.shown());
            let what = message![e, "; before a rollback, run ", relink];
            context.warn(WarningId::LiveFileNotNoted, what);
        }
    }

    /// What is on a disk that is there is lost only if somebody says so.
    fn refuse_unforced(&self, what: String) -> Result<()> {
        if self.request.force {
            return Ok(());
        }
        let what = format!("{what}: its contents would be lost");
        Err(Error::new(ErrorKind::AlreadyExists, what).hint(message![
            "use ",
            Setting::Force,
            " to write to it"
        ]))
    }

    /// An export, which has its length.
    fn to_export(&self, uri: &NbdUri, bytes: u64, context: &Context) -> Result<(Restored, u64)> {
        let image = ImageUri::Nbd(uri.clone());
        self.refuse_unforced(format!("{uri} is an export"))?;
        let disk = Disk::open_to_write(&image, ImageFormat::RAW, ReadBy::default(), context)?;
        let mut target = disk.in_place(&OsMedium)?;
        let restored = self.copy_over(target.as_mut(), bytes, context)?;
        drop(target);
        warn_if_not_durable(&disk, context);
        Ok((restored, disk.source().image_bytes()))
    }

    /// Also returns the length of the device.
    fn to_device(&self, path: &Path, bytes: u64, context: &Context) -> Result<(Restored, u64)> {
        self.refuse_unforced(format!("{} is a device", path.shown()))?;
        let device = RawFile::open_to_write(path)?;
        warn_if_unguarded(&device, context);
        let mut target = RawInPlace::new(&device);
        let restored = self.copy_over(&mut target, bytes, context)?;
        device
            .check_alone(Intent::Read)
            .map_err(|e| self.half_written(&target, ImageFormat::RAW, e))?;
        Ok((restored, device.image_bytes()))
    }
}

fn warn_of_attributes(place: &str, not_given: Option<String>, context: &Context) {
    if let Some(missing) = not_given {
        let what = format!("{place} could not be given {missing}");
        context.warn(WarningId::AttributesNotRestored, what);
    }
}

/// What was never read is not restored unless the user knows that.
fn accept(
    chain: Chain,
    number: u64,
    unread: &NamedBlocks,
    request: &RestoreRequest,
    context: &Context,
) -> Result<Chain> {
    let (name, what) = (&request.name, unread.describe(chain.geometry()));
    if !request.accept_unread {
        let what = format!("{name}@{number}: {what} could not be read when it was taken");
        return Err(Error::corrupt(what).hint(message![
            "restore another snapshot, another ",
            Setting::Range,
            ", or this one with ",
            Setting::AcceptUnread,
            ", which writes zeros there",
        ]));
    }
    context.warn(
        WarningId::UnreadBlocks,
        format!("{name}@{number}: zeros were written where the image is unread: {what}"),
    );
    Ok(chain.with_unread_as_zeros())
}

/// How the disk lies in the live image, if its place is the target.
fn live_format(reader: &Reader, target: &RestoreTarget<'_>) -> Option<ImageFormat> {
    let RestoreTarget::Path(path) = target else { return None };
    let live = reader.head().source.as_ref()?.file()?;
    let is_it = resolve_new(path).is_ok_and(|path| path == live);
    reader.manifest().format().filter(|_| is_it).and_then(ImageFormat::recorded)
}

fn is_device(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device())
}
