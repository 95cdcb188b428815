//! The verb *restore*: a snapshot, or a part of it, as a file, on a device, or to whatever takes bytes.

pub mod types;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::{Context, WarningId};
use crate::base::free_space::free_space_at;
use crate::base::message::{Setting, Verb, message};
use crate::base::units::NamedBlocks;
use crate::base::uri::Shown;
use crate::chain::Chain;
use crate::image::write::{InPlace, NewFile, RawInPlace};
use crate::image::{Intent, RawFile, Source};
use crate::repo::Repository;
use crate::repo::inside::refuse_target;
use crate::repo::live_file::{record_restored_file, warn_if_unguarded};
use crate::repo::session::read;
use crate::view::{Restored, check_free_space_for, check_range, restore};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use types::{RestoreOutcome, RestoreRequest, RestoreTarget};

/// Restores.
///
/// # Errors
/// `Corrupt` if a block or the image is not what its digest says, or was never read; then a new file does not
/// appear, and a device holds a part.
pub fn run(
    repository: &Repository,
    request: &RestoreRequest,
    target: RestoreTarget<'_>,
    context: &Context,
) -> Result<RestoreOutcome> {
    let reader = read(repository, &request.name, context)?;
    let snapshot = reader.find(&request.at)?.clone();
    let chain = reader.chain(repository, snapshot.id)?;
    drop(reader);
    // Before a target of that length is made.
    let part = check_range(request.range, snapshot.image_bytes)?;
    let unread = chain.unread(part.blocks(chain.geometry().block_size), context)?;
    let chain = match unread.is_empty() {
        true => chain,
        false => accept(chain, snapshot.number, &unread, request, context)?,
    };
    let mut untouched_bytes = 0;
    let restored = match target {
        RestoreTarget::Target(target) => restore(&chain, request.range, target, context)?,
        RestoreTarget::Path(path) if is_device(path) => {
            refuse_target(repository, path)?;
            let (restored, device_bytes) = to_device(&chain, path, request, part.bytes, context)?;
            untouched_bytes = device_bytes.saturating_sub(part.bytes);
            restored
        }
        RestoreTarget::Path(path) => {
            refuse_target(repository, path)?;
            let place = path.shown().to_string();
            // A part of an image is a file of its own.
            let attributes = snapshot.attributes.clone().filter(|_| request.range.is_none());
            let target = NewFile::create(path, part.bytes, request.force)?;
            let mut target = target.with_attributes(attributes);
            check_free_space_for(&chain, request.range, free_space_at(path), &place)?;
            let restored = restore(&chain, request.range, &mut target, context)?;
            if let Some(missing) = target.not_given() {
                let what = format!("{place} could not be given {missing}");
                context.warn(WarningId::AttributesNotRestored, what);
            }
            let name = &request.name;
            if let Err(e) = record_restored_file(repository, name, path, context) {
                let relink = Verb::Relink.of(name).with(Setting::Image, place);
                let what = message![e, "; before a rollback, run ", relink];
                context.warn(WarningId::LiveFileNotNoted, what);
            }
            restored
        }
    };
    Ok(RestoreOutcome { snapshot, restored, unread, untouched_bytes })
}

/// Also returns the length of the device.
fn to_device(
    chain: &Chain,
    path: &Path,
    request: &RestoreRequest,
    bytes: u64,
    context: &Context,
) -> Result<(Restored, u64)> {
    if !request.force {
        let what = format!("{} is a device: what is on it would be lost", path.shown());
        return Err(Error::new(ErrorKind::AlreadyExists, what).hint(message![
            "use ",
            Setting::Force,
            " to write to it"
        ]));
    }
    let device = RawFile::open_to_write(path)?;
    warn_if_unguarded(&device, context);
    let mut target = RawInPlace::new(&device);
    target.check_free_space(bytes)?;
    let restored = restore(chain, request.range, &mut target, context)?;
    device.check_alone(Intent::Read)?;
    Ok((restored, device.image_bytes()))
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
        format!("{name}@{number}: zeros where its image could not be read: {what}"),
    );
    Ok(chain.with_unread_as_zeros())
}

fn is_device(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device())
}
