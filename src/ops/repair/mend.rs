//! Putting damaged files right: from a sound copy of the file, from the same snapshot in another
//! repository, or block by block from wherever blocks of equal digest are.

use crate::base::digest::{Digest, Hasher};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::{Context, Phase, WarningId};
use crate::base::free_space::check_free_space;
use crate::base::message::{Setting, Verb, message};
use crate::base::units::NamedBlocks;
use crate::chain::Fork;
use crate::codec::Compression;
use crate::delta::{Delta, Depth, Identity, Part, Written, scrub_part};
use crate::format::footer::FOOTER_BYTES;
use crate::merge::{self, Merged};
use crate::ops::repair::engine::{self, Wanted};
use crate::ops::repair::types::{MendSource, Mended, MendedBy};
use crate::ops::verify::engine::{Damaged, find_damage, verify_all};
use crate::repo::Repository;
use crate::repo::change::{commit_change, discard_unless_named};
use crate::repo::compact::{drop_from_manifest, with_file};
use crate::repo::files::{open_chain, open_delta, open_parent};
use crate::repo::garbage::collect_garbage;
use crate::repo::manifest::{self, Manifest, Snapshot, object_name};
use crate::repo::session::{self, Reader, Writer, write};
use std::collections::HashSet;
use std::sync::Arc;
use uuid::Uuid;

/// What is copied at a time.
const COPY_BYTES: u64 = 1 << 20;

/// What a file takes beside its blocks, at most.
const SPARE_BYTES: u64 = 1 << 20;

/// Takes the bytes of a file.
type Write<'a> = &'a mut dyn FnMut(&[u8]) -> Result<()>;

/// Looks for damage in the files of an image and puts right what it can. What is put right is proved,
/// by the digest of each block and by the image digest, before it takes the place of what is damaged.
///
/// # Errors
/// `Corrupt` if the manifest is damaged. Damage that stays is in the outcome.
pub fn run(
    repository: &Repository,
    name: &str,
    sources: &[MendSource],
    context: &Context,
) -> Result<Vec<Mended>> {
    repository.store.read_anew();
    let mut writer = write(repository, name, context)?;
    let mut outcomes = Vec::new();
    // Before anything is changed: what cannot be checked now may be sound.
    let mut ids = Vec::new();
    for snapshot in writer.manifest.stored() {
        if damage_of(repository, &writer.manifest, snapshot, context)?.is_some() {
            ids.push(snapshot.id);
        }
    }
    // Parents come before children: what a file is proved against is right by then.
    for id in ids {
        let Some(snapshot) = writer.manifest.stored().into_iter().find(|s| s.id == id).cloned()
        else {
            continue;
        };
        let what = format!("{name}@{}", snapshot.number);
        let Some(damage) = damage_of(repository, &writer.manifest, &snapshot, context)? else {
            continue;
        };
        let outcome = mend_file(repository, &mut writer, &snapshot, damage, sources, context);
        if let Err(e) = &outcome
            && e.kind() == ErrorKind::Interrupted
        {
            return outcome.map(|_| outcomes);
        }
        outcomes.push(Mended { snapshot: what, outcome });
    }
    // The damaged files are not named any more.
    writer.release_reader_lock();
    collect_garbage(repository, &mut writer.manifest, context)?;
    Ok(outcomes)
}

/// What is damaged in the file of a snapshot; none if nothing is.
fn damage_of(
    repository: &Repository,
    manifest: &Manifest,
    snapshot: &Snapshot,
    context: &Context,
) -> Result<Option<Damage>> {
    let delta = match open_delta(repository, manifest, snapshot) {
        Ok(delta) => Arc::new(delta),
        Err(e) if !e.is_damage() => return Err(unchecked(manifest, snapshot, e)),
        Err(e) => return Ok(Some(Damage::File(e))),
    };
    let bytes = snapshot.data_blocks.saturating_mul(u64::from(snapshot.block_bytes));
    let phase = context.begin(Phase::Verify, snapshot.file_bytes.saturating_add(bytes));
    let verified = verify_all(&delta, context);
    drop(phase);
    match verified {
        Ok(_) => Ok(None),
        Err(e) if !e.is_damage() => Err(unchecked(manifest, snapshot, e)),
        Err(first) => {
            let mut damaged = find_damage(&delta, context)?;
            if let Some(e) = damaged.unchecked.take() {
                return Err(unchecked(manifest, snapshot, e));
            }
            Ok(Some(Damage::Parts { delta, damaged, first }))
        }
    }
}

fn mend_file(
    repository: &Repository,
    writer: &mut Writer,
    snapshot: &Snapshot,
    damage: Damage,
    sources: &[MendSource],
    context: &Context,
) -> Result<MendedBy> {
    let place = writer.manifest.place_of(snapshot);
    // A sound file whose blocks are in a base image is not what is damaged.
    let is_elsewhere = matches!(&damage, Damage::Parts { delta, damaged, .. }
        if delta.base_image().is_some() && damaged.lost.pages.is_empty());
    for source in sources {
        let MendSource::Repository(other) = source else { continue };
        for reader in session::readers(other, context)? {
            let manifest = reader.manifest();
            let Some(theirs) = manifest.stored().into_iter().find(|s| s.id == snapshot.id) else {
                continue;
            };
            let is_same = theirs.footer_digest == snapshot.footer_digest
                && theirs.file_bytes == snapshot.file_bytes;
            if is_same && !is_elsewhere {
                let file = format!("{}/{}", manifest.name, theirs.file);
                let copied = copy_for(repository, writer, snapshot, other, &file, context);
                if let Some(mended) = passed(copied, &place, context)? {
                    return Ok(mended);
                }
            }
            let merged = merge_from(repository, writer, snapshot, other, &reader, context);
            if let Some(mended) = passed(merged, &place, context)? {
                return Ok(mended);
            }
        }
    }
    match damage {
        Damage::File(error) => Err(error),
        Damage::Parts { first, damaged, .. } if !damaged.lost.pages.is_empty() => Err(first),
        Damage::Parts { delta, damaged, .. } => {
            mend_blocks(repository, writer, snapshot, &delta, &damaged, sources, context)
        }
    }
}

/// Copies the file of a snapshot, and looks whether that has put it right.
fn copy_for(
    repository: &Repository,
    writer: &Writer,
    snapshot: &Snapshot,
    other: &Repository,
    file: &str,
    context: &Context,
) -> Result<MendedBy> {
    copy_file(repository, &writer.manifest.name, snapshot, other, file, context)?;
    let delta = open_delta(repository, &writer.manifest, snapshot)?;
    verify_all(&Arc::new(delta), context).map(|_| MendedBy::Copy)
}

/// Puts copies of the same files, byte for byte, in the place of those of a snapshot that are damaged or
/// missing.
pub(crate) fn copy_file(
    repository: &Repository,
    name: &str,
    snapshot: &Snapshot,
    other: &Repository,
    file: &str,
    context: &Context,
) -> Result<()> {
    let theirs = Delta::open(other.store.clone(), file, &other.caches)?;
    check_free_space(
        repository.store.free_space(),
        snapshot.file_bytes,
        &repository.location(),
        "a copy of the file",
    )?;
    let phase = context.begin(Phase::Copy, snapshot.file_bytes);
    let footer = theirs.footer();
    let whole = CopyOf {
        object: file,
        bytes: footer.file_bytes,
        footer_digest: snapshot.footer_digest,
        content_digest: footer.content_digest,
        hasher: theirs.hasher(),
    };
    copy_object(repository, &format!("{name}/{}", snapshot.file), other, &whole, context)?;
    repository.caches.forget(theirs.header().file_id);
    let table = theirs.table().into_iter().flat_map(|table| &table.parts);
    for (index, entry) in table.enumerate() {
        let own = format!("{name}/{}", entry.object_name());
        // Most of them are what they were.
        let opened = Part::open(repository.store.clone(), &own, &repository.caches);
        let geometry = theirs.geometry()?;
        let is_sound = opened.is_ok_and(|(part, _, digest)| {
            digest == entry.footer_digest
                && scrub_part(&part, geometry, Depth::Blocks, &Context::silent()).is_ok()
        });
        context.check()?;
        if is_sound {
            continue;
        }
        let part = theirs.part(index)?;
        let whole = CopyOf {
            object: part.name(),
            bytes: entry.file_bytes,
            footer_digest: entry.footer_digest,
            content_digest: part.content().content_digest,
            hasher: theirs.hasher(),
        };
        copy_object(repository, &own, other, &whole, context)?;
        repository.caches.forget(part.header().file_id);
    }
    drop(phase);
    Ok(())
}

/// A file that is copied, and how it is known to be the one that is meant.
struct CopyOf<'a> {
    object: &'a str,
    bytes: u64,
    footer_digest: Digest,
    content_digest: Digest,
    hasher: &'a Hasher,
}

fn copy_object(
    repository: &Repository,
    name: &str,
    other: &Repository,
    of: &CopyOf<'_>,
    context: &Context,
) -> Result<()> {
    let mut upload = repository.store.create(name)?;
    let (mut content, mut offset) = (of.hasher.stream(), 0);
    let content_end = of.bytes - FOOTER_BYTES as u64;
    let mut buffer = Vec::new();
    while offset < of.bytes {
        context.check()?;
        let end = if offset < content_end { content_end } else { of.bytes };
        buffer.resize(COPY_BYTES.min(end - offset) as usize, 0);
        context.read_limits().wait(buffer.len() as u64)?;
        other.store.read_at(of.object, offset, &mut buffer)?;
        // What names the file pins the footer, and the footer all other bytes.
        if offset < content_end {
            content.update(&buffer);
        } else if of.hasher.digest(&buffer) != of.footer_digest
            || content.digest() != of.content_digest
        {
            let place = other.store.location(of.object);
            return Err(Error::corrupt(format!("{place} is damaged, too")));
        }
        upload.write(&buffer)?;
        offset += buffer.len() as u64;
        context.advance(buffer.len() as u64);
    }
    upload.publish_over()
}

/// Makes the file anew from the same snapshot in another repository, where it may depend on other files.
fn merge_from(
    repository: &Repository,
    writer: &mut Writer,
    snapshot: &Snapshot,
    other: &Repository,
    reader: &Reader,
    context: &Context,
) -> Result<MendedBy> {
    let theirs = |id| reader.chain(other, id);
    let tip = theirs(snapshot.id)?;
    let parent = match &snapshot.base_of {
        Some(_) => open_parent(repository, &writer.manifest, snapshot)?,
        None => snapshot.parent.map(theirs).transpose()?,
    };
    if tip.image_digest() != snapshot.image_digest {
        return Err(Error::corrupt(format!("{} is another image", tip.tip().location())));
    }
    let compression = repository.compression();
    replace_file(repository, writer, snapshot, tip.tip(), context, |file_id, mut out| {
        let identity = Identity::of(tip.tip().footer());
        let fork = Fork::new(tip.clone(), parent)?;
        let plan = merge::Plan::of_one_file(fork, identity, file_id, compression);
        merge::merge(&plan, context, &mut out)
    })?;
    Ok(MendedBy::Snapshot)
}

/// Writes the file anew with blocks from elsewhere in place of those that are damaged.
fn mend_blocks(
    repository: &Repository,
    writer: &mut Writer,
    snapshot: &Snapshot,
    delta: &Arc<Delta>,
    damaged: &Damaged,
    sources: &[MendSource],
    context: &Context,
) -> Result<MendedBy> {
    if delta.base_image().is_some() {
        let what = "its blocks are in a base image, and no other copy of the snapshot was found";
        let name = &writer.manifest.name;
        let relink = Verb::Relink.of(name).asking(Setting::BaseImage);
        let hint = message!["put the original back, or set with ", relink, " where it is"];
        return Err(Error::new(ErrorKind::Unsupported, what).hint(hint));
    }
    let mut wanted = Wanted::of(delta, &damaged.lost.blocks)?;
    let blocks = wanted.missing();
    for own in writer.manifest.stored() {
        if let Ok(own) = open_delta(repository, &writer.manifest, own) {
            wanted.search(&Arc::new(own), context)?;
        }
    }
    // What the readers found stays as long as they live.
    let mut readers = Vec::new();
    for source in sources {
        match source {
            MendSource::Image(image) => match wanted.search_image(image, context) {
                Err(e) if e.kind() != ErrorKind::Interrupted => {
                    context.warn(WarningId::SourceUnusable, message![e, "; not used"]);
                }
                other => other?,
            },
            MendSource::Repository(other) => {
                for reader in session::readers(other, context)? {
                    for theirs in reader.manifest().stored() {
                        let manifest = reader.manifest();
                        let opened = open_delta(other, manifest, theirs);
                        if let Ok(theirs) = opened {
                            wanted.search(&Arc::new(theirs), context)?;
                        }
                    }
                    readers.push(reader);
                }
            }
        }
    }
    if wanted.missing() > 0 {
        let missing = wanted.missing();
        let mut lost = NamedBlocks::default();
        damaged.lost.blocks.iter().for_each(|range| lost.add(*range));
        let lost = lost.describe(snapshot.geometry()?);
        let what =
            format!("{missing} of {blocks} damaged blocks could not be found (damaged: {lost})");
        return Err(Error::corrupt(what).at(delta.location()));
    }
    let found = wanted.found(context);
    let compression: Compression = repository.compression();
    replace_file(repository, writer, snapshot, delta, context, |file_id, mut out| {
        let delta = delta.clone();
        let plan = engine::Plan { delta, found: &found, file_id, compression };
        let written: Written = engine::mend(&plan, context, &mut out)?;
        let (changed_blocks, changed_bytes) = (snapshot.changed_blocks, snapshot.changed_bytes);
        Ok(Merged { written, changed_blocks, changed_bytes })
    })?;
    Ok(MendedBy::Blocks(blocks))
}

/// Publishes a new file for a snapshot, proves it, and commits that it takes the place of the damaged
/// one.
fn replace_file(
    repository: &Repository,
    writer: &mut Writer,
    snapshot: &Snapshot,
    like: &Delta,
    context: &Context,
    make: impl FnOnce(Uuid, Write<'_>) -> Result<Merged>,
) -> Result<()> {
    let store = repository.store.as_ref();
    let name = writer.manifest.name.clone();
    let needed = like.footer().file_bytes.saturating_mul(2).saturating_add(SPARE_BYTES);
    check_free_space(
        repository.store.free_space(),
        needed,
        &repository.location(),
        "a new file for the snapshot",
    )?;
    let file_id = Uuid::new_v4();
    let file = object_name();
    let mut upload = store.create(&format!("{name}/{file}"))?;
    let made = make(file_id, &mut |bytes| upload.write(bytes))?;
    context.check()?;
    upload.publish()?;
    let change = |next: &mut Manifest| {
        let format = next.format().map(str::to_owned);
        let is_it = |s: &&mut Snapshot| s.id == snapshot.id && s.file == snapshot.file;
        let stored = next.snapshots.iter_mut().chain(&mut next.dropped);
        let gone = || manifest::changed_meanwhile(&name);
        let s = stored.into_iter().find(is_it).ok_or_else(gone)?;
        *s = with_file(s, &file, &made, s.base_of.clone().as_ref(), format.as_deref(), s.part_size);
        drop_from_manifest(next, &HashSet::new());
        Ok(())
    };
    let mut next = writer.manifest.clone();
    change(&mut next)?;
    let proved = prove_whole(repository, &next, snapshot, context);
    let committed = proved.and_then(|()| commit_change(repository, writer, &[&file], change));
    if let Err(error) = committed {
        discard_unless_named(repository, &name, [&*file])?;
        return Err(error);
    }
    Ok(())
}

/// Every block of the new file, and the image digest that it gives.
fn prove_whole(
    repository: &Repository,
    next: &Manifest,
    snapshot: &Snapshot,
    context: &Context,
) -> Result<()> {
    let chain = open_chain(repository, next, snapshot.id)?;
    let parent = open_parent(repository, next, snapshot)?;
    verify_all(chain.tip(), context)?;
    merge::prove(&Fork::new(chain, parent)?, context)
}

/// What is damaged in a file.
enum Damage {
    /// It is missing, or cannot be opened.
    File(Error),
    /// Parts of it; and what was met first.
    Parts { delta: Arc<Delta>, damaged: Damaged, first: Error },
}

/// Of what could not be checked nobody knows whether it is damaged.
fn unchecked(manifest: &Manifest, snapshot: &Snapshot, error: Error) -> Error {
    if error.kind() == ErrorKind::Interrupted {
        return error;
    }
    let place = format!("{}@{} could not be checked", manifest.name, snapshot.number);
    error.at(place).or_hint(
        "no file was repaired; if that one is lost for good, move it out of the folder first",
    )
}

/// True if no other way is worth a try.
pub(crate) fn is_final(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::LimitExceeded)
        || error.is_storage_full()
}

/// What an attempt gave; none if another way is worth a try.
fn passed(attempt: Result<MendedBy>, place: &str, context: &Context) -> Result<Option<MendedBy>> {
    match attempt {
        Ok(mended) => Ok(Some(mended)),
        Err(e) if is_final(&e) => Err(e),
        Err(e) => {
            context.note(message![format!("{place}: not repaired that way: "), e]);
            Ok(None)
        }
    }
}
