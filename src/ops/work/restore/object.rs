//! A restore to an object on a server: one upload, of which each worker sends some pieces.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::Context;
use crate::base::units::Geometry;
use crate::chain::Chain;
use crate::image::write::ObjectRange;
use crate::repo::attempts::{Outcome, SentRange};
use crate::repo::work::{PlannedObject, PlannedRestore, PlannedTask};
use crate::store::{RemoteUrl, SharedObject};
use crate::view::restore_blocks;
use std::collections::BTreeMap;

/// Servers take no pieces below 5 MiB; longer ones are fewer requests, and more memory.
const SHORTEST_PIECE: u64 = 8 << 20;
/// Where a task is at least as long.
const USUAL_PIECE: u64 = 16 << 20;
/// The most pieces of an upload.
const MOST_PIECES: u64 = 10_000;

/// How many blocks a piece of an image has whose tasks have so many.
pub(super) fn piece_blocks(geometry: Geometry, task_blocks: u64) -> u64 {
    let usual = geometry.offset(task_blocks).clamp(SHORTEST_PIECE, USUAL_PIECE);
    let bytes = usual.max(geometry.image_bytes.div_ceil(MOST_PIECES));
    bytes.div_ceil(u64::from(geometry.block_size.bytes()))
}

/// Begins the upload.
pub(super) fn begin(
    url: &RemoteUrl,
    geometry: Geometry,
    piece_blocks: u64,
    context: &Context,
) -> Result<PlannedObject> {
    if geometry.image_bytes == 0 {
        let what = format!("{url}: an empty image cannot be split into tasks");
        return Err(Error::new(ErrorKind::Unsupported, what).hint("restore it on one host"));
    }
    let object = SharedObject::at(url, context.transfer())?;
    refuse_there(&object, &url.to_string())?;
    Ok(PlannedObject { url: url.to_string(), upload: object.begin()?, piece_blocks })
}

fn refuse_there(object: &SharedObject, url: &str) -> Result<()> {
    match object.bytes()? {
        None => Ok(()),
        Some(_) => {
            let error = Error::new(ErrorKind::AlreadyExists, format!("{url} exists"));
            Err(error.hint("choose another name"))
        }
    }
}

fn at(planned: &PlannedObject, context: &Context) -> Result<SharedObject> {
    let url = RemoteUrl::parse(&planned.url)?.ok_or_else(|| {
        Error::corrupt(format!("the plan is of {}, which is no URL", planned.url.escape_debug()))
    })?;
    SharedObject::at(&url, context.transfer())
}

/// Sends the range of a task. Returns what is to be told of it, and how much data it has.
pub(super) fn send(
    chain: &Chain,
    planned: &PlannedObject,
    task: &PlannedTask,
    context: &Context,
) -> Result<(Outcome, u64)> {
    let piece_bytes = chain.geometry().offset(planned.piece_blocks);
    let too_long = |_| Error::corrupt("the plan is not valid: the pieces");
    let first = task.first_block.checked_div(planned.piece_blocks).unwrap_or(0);
    let (piece_bytes, first) = (
        usize::try_from(piece_bytes).map_err(too_long)?,
        usize::try_from(first).map_err(too_long)?,
    );
    let upload = at(planned, context)?.send(&planned.upload, piece_bytes, first)?;
    let mut range = ObjectRange::new(upload, &planned.url);
    let (terms, data_bytes) = restore_blocks(chain, task.blocks(), &mut range, context)?;
    let pieces = range.into_pieces();
    Ok((Outcome::Sent(SentRange { terms, pieces }), data_bytes))
}

/// What the pieces are called, from the beginning of the object on.
pub(super) fn all_pieces(
    planned: &PlannedRestore,
    sent: &BTreeMap<u32, SentRange>,
) -> Result<Vec<String>> {
    let mut tasks: Vec<&PlannedTask> = planned.tasks.iter().collect();
    tasks.sort_by_key(|task| task.first_block);
    let of = |task: &&PlannedTask| sent.get(&task.task).map(|range| range.pieces.as_slice());
    let pieces: Vec<String> = tasks.iter().filter_map(of).flatten().cloned().collect();
    let geometry = planned.geometry()?;
    let piece_blocks = planned.object.as_ref().map_or(0, |object| object.piece_blocks);
    match geometry.block_count().div_ceil(piece_blocks.max(1)) == pieces.len() as u64 {
        true => Ok(pieces),
        false => {
            Err(Error::corrupt("the workers have not sent all pieces").hint("make a new plan"))
        }
    }
}

/// True if there is an object of that length.
pub(super) fn is_there(
    planned: &PlannedObject,
    image_bytes: u64,
    context: &Context,
) -> Result<bool> {
    Ok(at(planned, context)?.bytes()? == Some(image_bytes))
}

/// Puts the object together, unless that was done before.
pub(super) fn complete(
    planned: &PlannedObject,
    pieces: &[String],
    image_bytes: u64,
    was_begun: bool,
    context: &Context,
) -> Result<()> {
    let object = at(planned, context)?;
    if !was_begun {
        refuse_there(&object, &planned.url)?;
    }
    object.complete(&planned.upload, pieces, image_bytes)
}

/// Gives the upload up.
pub(super) fn give_up(planned: &PlannedObject, context: &Context) -> Result<()> {
    at(planned, context)?.abort(&planned.upload)
}
