//! A base of a large image: several cells of its grid at once, each of which becomes a part. What is finished
//! stays, noted as pending, if the rest is interrupted; the next base compares it with the image and writes
//! only what is not there.
//!
//! ```text
//! cells with data -> workers: pending part still the same? keep it : scan the cell, write a part, publish it
//!                 -> in the order they are done: note them as pending -> all: the layer file
//! ```

use crate::base::error::{Result, best_effort};
use crate::base::events::{Context, Phase};
use crate::base::pipeline::spawn;
use crate::base::units::{BlockRange, ExtentKind, Geometry};
use crate::delta::{DeltaWriter, Part, write_layer_file};
use crate::format::header::PARTS;
use crate::format::{Content, Features, Header, PartEntry, PartFooter, PartTable, PartTerms};
use crate::image::Source;
use crate::ops::snapshot::engine::{Counted, Plan, Taken, TakenPart, compare_part, take_part};
use crate::repo::Repository;
use crate::repo::pending::{give_up_pending, note_part};
use crate::repo::session::Writer;
use crate::repo::uploads::Uploads;
use crate::scan::{Extents, Missed, Scanned};
use std::collections::BTreeMap;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use uuid::Uuid;

/// The most cells at once: each has a file and a stream of its own.
const MAX_AT_ONCE: usize = 4;
/// The most parts of a base; of a larger image several cells are one.
const MOST_PARTS: u64 = 4096;

/// The cells of an image in which there is data, several of a huge one together.
pub(crate) fn cells_with_data(
    source: &dyn Source,
    geometry: Geometry,
    cell_blocks: u64,
) -> Result<Vec<BlockRange>> {
    let count = geometry.block_count();
    let step = cell_blocks.saturating_mul(count.div_ceil(cell_blocks).div_ceil(MOST_PARTS).max(1));
    let (mut cells, mut at) = (Vec::new(), 0);
    let mut extents = Extents::new(source, geometry);
    while at < count {
        let (extent, kind) = extents.at(at)?;
        if kind == ExtentKind::Hole {
            at = extent.end();
            continue;
        }
        let first = at / step * step;
        cells.push(BlockRange::between(first, first.saturating_add(step)));
        at = first.saturating_add(step);
    }
    Ok(cells)
}

/// A cell that is done.
struct Done {
    /// None if all of it is zero.
    entry: Option<PartEntry>,
    /// Its file was written now.
    is_new: bool,
    terms: PartTerms,
    scanned: Scanned,
    counted: Counted,
}

/// A part that an interrupted snapshot has left.
struct Left {
    object: Uuid,
    part: Arc<Part>,
    footer: PartFooter,
    entry: PartEntry,
}

/// Takes a base of `source`, cell by cell, several at once. The layer file goes to `uploads`.
///
/// # Errors
/// As of [`take_part`], and of the commits in which parts are noted.
pub(crate) fn take_in_parts(
    repository: &Repository,
    writer: &mut Writer,
    plan: &Plan,
    source: &dyn Source,
    cells: &[BlockRange],
    context: &Context,
    uploads: &mut Uploads<'_>,
) -> Result<Taken> {
    let header = plan.header();
    let geometry = Geometry::new(header.block_size, source.image_bytes())?;
    let left = parts_left(repository, writer, plan, &header);
    let phase = context.begin(Phase::Scan, geometry.image_bytes);
    let at_once = context.all_threads().min(MAX_AT_ONCE).min(cells.len()).max(1);
    let shared = context.clone().shared_among(cells.len(), at_once);
    let (queue, (sender, receiver)) = (Mutex::new(cells.iter().copied()), channel());
    let name = writer.manifest.name.clone();
    let name = name.as_str();
    let mut done: BTreeMap<u64, Done> = BTreeMap::new();
    let work = |cell| {
        let part = shared.clone().part_of_phase(geometry.bytes_in(cell));
        let outcome = take_cell(repository, name, plan, source, cell, &left, &part);
        drop(part);
        shared.leave();
        outcome
    };
    let mut note = |cell: BlockRange, of: Done| {
        if let Some(entry) = of.entry.as_ref().filter(|_| of.is_new) {
            note_part(repository, writer, &plan.identity, &entry.object_name())?;
        }
        done.insert(cell.first, of);
        Ok(())
    };
    let taken = match at_once {
        1 => cells.iter().try_for_each(|&cell| note(cell, work(cell)?)),
        _ => std::thread::scope(|threads| -> Result<()> {
            for _ in 0..at_once {
                let (sender, queue, work) = (sender.clone(), &queue, &work);
                spawn(threads, move || {
                    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                    while let Some(cell) = next() {
                        let outcome = work(cell);
                        let is_failed = outcome.is_err();
                        if sender.send((cell, outcome)).is_err() || is_failed {
                            break;
                        }
                    }
                })?;
            }
            drop(sender);
            let mut failed = None;
            for (cell, outcome) in &receiver {
                if let Err(error) = outcome.and_then(|of| note(cell, of)) {
                    let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
                    queue.by_ref().for_each(drop);
                    failed.get_or_insert(error);
                }
            }
            failed.map_or(Ok(()), Err)
        }),
    };
    drop(phase);
    if let Err(error) = taken {
        if error.is_storage_full() {
            // What is left of it would be all that is in the way.
            best_effort(give_up_pending(repository, writer, plan.identity.snapshot_id));
        }
        return Err(error);
    }
    finish(plan, &header, geometry, done.into_values().collect(), uploads)
}

/// Sums up, and writes the layer file; of an image that is all zeros an empty delta file.
fn finish(
    plan: &Plan,
    header: &Header,
    geometry: Geometry,
    done: Vec<Done>,
    uploads: &mut Uploads<'_>,
) -> Result<Taken> {
    let hasher = crate::base::digest::Hasher::new(header.algorithm, header.key);
    let (mut difference, mut read_bytes) = (0u128, 0);
    let (mut counted, mut parts) = (Counted::default(), Vec::new());
    for of in done {
        difference = difference.wrapping_add(of.terms.difference);
        read_bytes += of.scanned.read_bytes;
        counted.add_all(of.counted);
        parts.extend(of.entry);
    }
    let image_digest = hasher.empty_image(geometry.image_bytes).plus(difference);
    let (identity, image_bytes) = (&plan.identity, geometry.image_bytes);
    let written = match parts.is_empty() {
        true => DeltaWriter::new(header, uploads).finish(identity, None, image_bytes, image_digest),
        false => {
            let header = Header { features: Features::incompatible(PARTS), ..header.clone() };
            let table = PartTable { cell_blocks: plan.cell_blocks.unwrap_or(1), parts };
            write_layer_file(&header, table, identity, None, image_bytes, image_digest, uploads)
        }
    }?;
    let terms = PartTerms { difference, before: Some(0) };
    let missed = Missed::default();
    let scanned = Scanned { image_digest, terms, read_bytes, named_bytes: None, missed };
    Ok(Taken { written, scanned, counted })
}

fn take_cell(
    repository: &Repository,
    name: &str,
    plan: &Plan,
    source: &dyn Source,
    cell: BlockRange,
    left: &BTreeMap<u64, Left>,
    context: &Context,
) -> Result<Done> {
    if let Some(Left { object, part, footer, entry }) = left.get(&cell.first)
        && footer.blocks == cell
    {
        if let Some((scanned, counted)) = compare_part(source, plan, part.clone(), footer, context)?
        {
            context.note(format!("{name}: the finished part {object}.delta is kept"));
            let terms = footer.terms;
            return Ok(Done { entry: Some(entry.clone()), is_new: false, terms, scanned, counted });
        }
        context.note(format!("{name}: the image has changed since the part {object}.delta"));
    }
    let object = Uuid::new_v4();
    let mut upload = repository.store.create(&format!("{name}/{object}.delta"))?;
    let taken = take_part(source, plan, cell, context, &mut |bytes: &[u8]| upload.write(bytes))?;
    let TakenPart { written, scanned, counted } = taken;
    let terms = written.footer.terms;
    let mut entry = None;
    if written.footer.counts.tables > 0 {
        upload.publish()?;
        entry = Some(PartEntry::of(object, &written.footer, written.footer_digest));
    }
    Ok(Done { entry, is_new: true, terms, scanned, counted })
}

/// The parts of the same snapshot that were finished before it was interrupted, by their first block. One
/// that cannot be opened is written anew.
fn parts_left(
    repository: &Repository,
    writer: &Writer,
    plan: &Plan,
    header: &Header,
) -> BTreeMap<u64, Left> {
    let mut left = BTreeMap::new();
    let is_it = |id: Uuid| id == plan.identity.snapshot_id;
    let pending = writer.manifest.pending.iter().filter(|pending| is_it(pending.id));
    for file in pending.flat_map(|pending| &pending.objects) {
        let path = format!("{}/{file}", writer.manifest.name);
        let opened = Part::open(repository.store.clone(), &path, &repository.caches);
        let object = file.strip_suffix(".delta").and_then(|id| Uuid::parse_str(id).ok());
        let (Ok((part, footer, digest)), Some(object)) = (opened, object) else { continue };
        let own = part.header();
        let is_like = own.content() == Content::Records
            && (own.image_id, own.block_size, own.algorithm, own.key)
                == (header.image_id, header.block_size, header.algorithm, header.key)
            && own.frame_blocks <= header.frame_blocks
            && footer.counts.tables > 0;
        if is_like {
            let entry = PartEntry::of(object, &footer, digest);
            left.insert(footer.blocks.first, Left { object, part: Arc::new(part), footer, entry });
        }
    }
    left
}

/// The header of one of some parts that were left.
pub(crate) fn header_of(
    repository: &Repository,
    image: &str,
    objects: &[String],
) -> Option<Header> {
    objects.iter().find_map(|file| {
        let path = format!("{image}/{file}");
        let opened = Part::open(repository.store.clone(), &path, &repository.caches);
        opened.ok().map(|(part, ..)| part.header().clone())
    })
}
