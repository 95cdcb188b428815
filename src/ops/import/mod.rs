//! The verb *import*: takes in a delta file that comes from elsewhere.

pub mod types;

use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::events::{Context, Phase, WarningId};
use crate::base::message::{Setting, Verb, message};
use crate::chain::{Chain, Fork};
use crate::delta::{Delta, Depth, scrub};
use crate::format::footer::FOOTER_BYTES;
use crate::format::header::{HEADER_BYTES, MAGIC, refuse_foreign};
use crate::format::{Content, Footer, FrameLayout, Header};
use crate::merge;
use crate::ops::import::types::Imported;
use crate::ops::verify::engine::verify_runs;
use crate::repo::Repository;
use crate::repo::change::{commit_change, discard_unless_named, remove_unused_image};
use crate::repo::entry::entry;
use crate::repo::files::open_chain;
use crate::repo::manifest::{self, MAX_IMPORTED_NUMBER, Manifest, Snapshot, object_name};
use crate::repo::session::{Writer, read, write, write_new};
use std::io::Read;
use std::sync::Arc;
use uuid::Uuid;

/// The most unread blocks that an imported snapshot may have: 1 TiB of 4 KiB blocks.
const MAX_UNREAD_BLOCKS: u64 = 1 << 28;

/// Bytes that are read from a stream at a time.
const PIECE_BYTES: usize = 1 << 20;

/// Takes in a delta file that is read front to back from `input`, which `place` names. An image that
/// is not here yet is made, with the name `name`.
///
/// # Errors
/// `Mismatch` if it does not fit onto what is here; `Corrupt` if it is damaged. Then nothing is
/// changed.
pub fn run(
    repository: &Repository,
    input: &mut dyn Read,
    place: &str,
    name: Option<&str>,
    context: &Context,
) -> Result<Imported> {
    let mut start = [0; HEADER_BYTES];
    let mut first = Vec::new();
    let read = (&mut *input).take(MAGIC.len() as u64).read_to_end(&mut first);
    read.map_err(|e| Error::os("read", place, e))?;
    refuse_foreign(&first, place)?;
    fill(&mut first.chain(&mut *input), &mut start, place)?;
    let header = Header::decode(&start).map_err(|e| e.at(place))?;
    if header.content() == Content::Parts {
        let what = format!("{place}: its blocks are in separate part files");
        return Err(Error::new(ErrorKind::Unsupported, what).hint(message![
            "use ",
            Verb::Export.call(),
            " to create a file that contains them"
        ]));
    }
    if header.layout() == FrameLayout::Absent {
        let what = format!("{place}: its blocks are in a base image");
        return Err(Error::new(ErrorKind::Unsupported, what).hint(message![
            "use ",
            Verb::Export.call(),
            " to create a file that contains them"
        ]));
    }
    let (name, is_new_image) = name_for(repository, header.image_id, name, context)?;
    let mut writer = if is_new_image {
        write_new(repository, &name, header.image_id, context)?
    } else {
        write(repository, &name, context)?
    };
    if writer.manifest.image_id != header.image_id {
        // It was removed, and another one has its name since it was looked for.
        return Err(manifest::changed_meanwhile(&name));
    }
    let imported = import_into(repository, &mut writer, &header, &start, input, place, context);
    match imported {
        Ok((snapshot, is_new)) => Ok(Imported { name, snapshot, is_new, is_new_image }),
        Err(error) => {
            if is_new_image {
                // An image without snapshots stays behind; the next import fills it.
                best_effort(remove_unused_image(repository, writer));
            }
            Err(error)
        }
    }
}

/// The name of the image with an identity, and whether it is to be made.
fn name_for(
    repository: &Repository,
    image_id: Uuid,
    name: Option<&str>,
    context: &Context,
) -> Result<(String, bool)> {
    for known in repository.names()? {
        let reader = match read(repository, &known, context) {
            Ok(reader) => reader,
            // That another image is damaged, or just removed, is no reason to refuse this one.
            Err(e) if e.kind() == ErrorKind::Corrupt && name != Some(&known) => continue,
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        let is_it = reader.manifest().image_id == image_id;
        match name {
            Some(name) if is_it && name != known => {
                let what =
                    format!("the image is called \"{known}\" in this repository, not \"{name}\"");
                return Err(Error::new(ErrorKind::Mismatch, what)
                    .hint(message!["leave out ", Setting::Name]));
            }
            Some(name) if !is_it && name == known => {
                let what = format!("\"{name}\" is a different image");
                return Err(Error::new(ErrorKind::Mismatch, what)
                    .hint(message!["choose another name with ", Setting::Name]));
            }
            _ if is_it => return Ok((known, false)),
            _ => {}
        }
    }
    let unnamed = || {
        let what = "the image of this delta is not in the repository yet";
        Error::new(ErrorKind::NotFound, what).hint(message!["give it a name with ", Setting::Name])
    };
    let name = name.ok_or_else(unnamed)?;
    manifest::check_name(name)?;
    Ok((name.to_owned(), true))
}

fn import_into(
    repository: &Repository,
    writer: &mut Writer,
    header: &Header,
    start: &[u8],
    input: &mut dyn Read,
    place: &str,
    context: &Context,
) -> Result<(Snapshot, bool)> {
    let store = repository.store.as_ref();
    let name = writer.manifest.name.clone();
    let file = object_name();
    let path = format!("{name}/{file}");
    let mut upload = store.create(&path)?;
    upload.write(start)?;
    let footer =
        receive(input, place, start.len() as u64, context, &mut |bytes| upload.write(bytes))?;
    if let Some(known) = writer.manifest.by_id(footer.snapshot_id) {
        return match known.image_digest == footer.image_digest {
            true => Ok((known.clone(), false)),
            false => Err(refused(
                place,
                format!("{name}@{} has the same id, but other content", known.number),
            )),
        };
    }
    refuse_of_other(repository, &writer.manifest, &footer, place)?;
    check_place(&writer.manifest, &footer, place)?;
    upload.publish()?;
    let added = add(repository, writer, header, &file, place, context);
    if added.is_err() {
        discard_unless_named(repository, &name, [&*file])?;
    }
    Ok((added?, true))
}

/// Proves a published file and names it in the manifest.
fn add(
    repository: &Repository,
    writer: &mut Writer,
    header: &Header,
    file: &str,
    place: &str,
    context: &Context,
) -> Result<Snapshot> {
    let name = writer.manifest.name.clone();
    let delta =
        Delta::open(repository.store.clone(), &format!("{name}/{file}"), &repository.caches)?;
    let delta = Arc::new(delta);
    let parent = match delta.footer().parent {
        None => None,
        Some(lineage) => Some(open_chain(repository, &writer.manifest, lineage.parent_id)?),
    };
    let mut layers = vec![delta.clone()];
    layers.extend(parent.iter().flat_map(|chain| chain.layers().iter().cloned()));
    let counts = delta.footer().counts;
    if counts.unread_blocks > MAX_UNREAD_BLOCKS {
        let what = format!("{} blocks of it could not be read at the source", counts.unread_blocks);
        return Err(refused(place, what));
    }
    let work = counts.data_blocks.saturating_mul(header.block_size.bytes().into());
    let work = work.saturating_add(delta.footer().file_bytes);
    let phase = context.begin(Phase::Verify, work);
    let sound = prove_import(&delta, parent, context);
    drop(phase);
    sound.map_err(|e| match e.kind() {
        ErrorKind::Corrupt => e.at(place),
        _ => e,
    })?;
    let mut entry = entry(&delta, file.to_owned(), &layers)?;
    let snapshots = &writer.manifest.snapshots;
    let is_taken = |label: &String| snapshots.iter().any(|s| s.label.as_ref() == Some(label));
    let lost = match (&entry.label, &delta.footer().label) {
        (Some(label), _) if is_taken(label) => {
            Some((label.clone(), "another snapshot already has it"))
        }
        (None, Some(label)) => Some((label.clone(), "it is not a valid label")),
        _ => None,
    };
    if let Some((label, why)) = lost {
        let (number, label) = (entry.number, label.escape_debug());
        let what = format!("{name}@{number} is imported without its label \"{label}\": {why}");
        context.warn(WarningId::LabelDropped, what);
        entry.label = None;
    }
    commit_change(repository, writer, &[file], |next| {
        next.next_number = next.next_number.max(entry.number.saturating_add(1));
        next.snapshots.push(entry.clone());
        next.snapshots.sort_by_key(|s| s.number);
        Ok(entry.clone())
    })
}

fn prove_import(delta: &Arc<Delta>, parent: Option<Chain>, context: &Context) -> Result<()> {
    // The parent is of the same image; what that depends on may be of others.
    let chain = Chain::link_onto(vec![delta.clone()], parent.as_ref())?;
    scrub(delta, Depth::Blocks, context)?;
    let end_of = |chain: &Chain| chain.geometry().block_count();
    verify_runs(delta, parent.as_ref().map(end_of), context)?;
    merge::prove(&Fork::new(chain, parent)?, context)
}

/// Fails if a snapshot was taken against one of another image: in a file that is taken in nothing pins that.
fn refuse_of_other(
    repository: &Repository,
    manifest: &Manifest,
    footer: &Footer,
    place: &str,
) -> Result<()> {
    let Some(parent) = footer.parent.map(|parent| parent.parent_id) else { return Ok(()) };
    if manifest.stored().iter().any(|s| s.id == parent) {
        return Ok(());
    }
    for name in repository.names()?.into_iter().filter(|name| *name != manifest.name) {
        // That another image is damaged is no reason to say something else.
        let Ok(other) = manifest::load(repository.store.as_ref(), &name) else { continue };
        if let Some(below) = other.stored().into_iter().find(|s| s.id == parent) {
            let below = other.place_of(below);
            let what = format!("it starts from {below}, a snapshot of another image");
            return Err(refused(place, what).hint(message![
                "create a file that depends on no other with ",
                Verb::Export.call(),
                ", without ",
                Setting::Since
            ]));
        }
    }
    Ok(())
}

/// Fails if a snapshot has no place in an image.
fn check_place(manifest: &Manifest, footer: &Footer, place: &str) -> Result<()> {
    let name = &manifest.name;
    if footer.number >= MAX_IMPORTED_NUMBER {
        let what = format!("its number {} is too high", footer.number);
        return Err(refused(place, what));
    }
    let stored = manifest.stored();
    if let Some(parent) = footer.parent {
        let Some(parent) = stored.iter().find(|s| s.id == parent.parent_id) else {
            let what = format!(
                "it starts from the snapshot {}, which is not in the repository",
                parent.parent_id
            );
            return Err(refused(place, what).hint("import that one first"));
        };
        if parent.number >= footer.number {
            let what = format!(
                "it leads from {name}@{} back to {name}@{}, but a repository stores only deltas \
                 that lead forward",
                parent.number, footer.number
            );
            return Err(refused(place, what).hint(message!["use it with ", Verb::Apply.call()]));
        }
    }
    if manifest.pending.iter().any(|pending| pending.number == footer.number) {
        let what = format!("{name}@{} is being taken", footer.number);
        return Err(refused(place, what));
    }
    match stored.iter().find(|s| s.number == footer.number) {
        Some(other) if other.id == footer.snapshot_id => {
            Err(refused(place, format!("{name}@{} was dropped from this repository", other.number)))
        }
        Some(other) => Err(refused(
            place,
            format!("it has the number of {name}@{}, which is a different snapshot", other.number),
        )
        .hint("the histories of the image differ; import it into another repository")),
        None => Ok(()),
    }
}

fn refused(place: &str, what: String) -> Error {
    Error::new(ErrorKind::Mismatch, format!("{place}: {what}"))
}

fn fill(input: &mut dyn Read, buffer: &mut [u8], place: &str) -> Result<()> {
    input.read_exact(buffer).map_err(|e| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => {
            Error::corrupt(format!("{place}: too short for a delta file"))
        }
        _ => Error::os("read", place, e),
    })
}

/// Passes the rest of a file on and gives its footer, which is whole.
fn receive(
    input: &mut dyn Read,
    place: &str,
    before: u64,
    context: &Context,
    out: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<Footer> {
    let mut piece = vec![0; PIECE_BYTES];
    let (mut last, mut bytes) = (Vec::new(), before);
    loop {
        context.check()?;
        let count = match input.read(&mut piece) {
            Ok(count) => count,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Error::os("read", place, e)),
        };
        let now = piece.get(..count).unwrap_or_default();
        if now.is_empty() {
            break;
        }
        out(now)?;
        bytes += count as u64;
        // How much a pipe gives is known only now: whoever reads next waits for it.
        context.read_limits().wait(count as u64)?;
        context.read_limits().wait(0)?;
        last.extend_from_slice(now.get(count.saturating_sub(FOOTER_BYTES)..).unwrap_or_default());
        last.drain(..last.len().saturating_sub(FOOTER_BYTES));
    }
    let foot: &[u8; FOOTER_BYTES] = last.first_chunk().ok_or_else(|| {
        Error::corrupt(format!("{place}: only {bytes} bytes: truncated, or not a delta file"))
    })?;
    Footer::decode(foot, bytes, Content::Records).map_err(|e| e.at(place))
}
