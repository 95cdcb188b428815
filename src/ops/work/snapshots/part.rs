//! Makes one part of a plan. Whoever does it twice, or as another does it, does no harm: each attempt has a
//! name of its own, and one of them is taken.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::{Context, Phase};
use crate::base::units::BlockSize;
use crate::delta::{Identity, Part};
use crate::format::{Content, PartFooter};
use crate::ops::snapshot::engine::{ChainParameters, Parent, Plan, TakenPart, take_part};
use crate::ops::work::snapshots::source::open_planned;
use crate::ops::work::types::PartMade;
use crate::repo::Repository;
use crate::repo::manifest::{Manifest, is_of_plan, part_object};
use crate::repo::session::read;
use crate::repo::work::{PlannedImage, PlannedTask, WorkPlan};
use crate::scan::BadMedium;
use std::collections::BTreeMap;
use std::sync::Arc;
use uuid::Uuid;

/// Makes the part of a task, unless it is there.
///
/// # Errors
/// `NotFound` if the plan is over; `Mismatch` if the image is not what was planned; of image and store.
pub fn run(
    repository: &Repository,
    plan: &WorkPlan,
    number: u32,
    context: &Context,
) -> Result<PartMade> {
    let of = |image: &'_ PlannedImage| image.tasks.iter().find(|t| t.task == number).copied();
    let found = plan.images().iter().find_map(|image| Some((image, of(image)?)));
    let (planned, task) = found.ok_or_else(|| plan.no_task(number))?;
    // What it reads of the repository stays meanwhile.
    let reader = read(repository, &planned.name, context)?;
    refuse_over(reader.manifest(), planned, plan.plan)?;
    let found = parts_of(repository, planned, plan.plan, context)?;
    if let Some(part) = found.get(&task.first_block).filter(|part| is_it(part, task)) {
        return Ok(part.made(planned, task, None));
    }
    let (block_size, algorithm, key, compression) = planned.parameters()?;
    let parent = match planned.parent {
        Some(id) => Parent::Tip(reader.chain(repository, id)?),
        None => Parent::None(ChainParameters { block_size, algorithm, key }),
    };
    let disk = open_planned(planned, context)?;
    let engine = Plan {
        parent,
        identity: identity(planned),
        file_id: Uuid::new_v4(),
        image_id: planned.image_id,
        compression,
        is_by_reference: false,
        bad_medium: BadMedium::Fail,
        cell_blocks: None,
    };
    let object = part_object(plan.plan);
    let mut upload = repository.store.create(&format!("{}/{object}.delta", planned.name))?;
    let phase = context.begin(Phase::Scan, task.data_bytes);
    let mut write = |bytes: &[u8]| upload.write(bytes);
    let taken = take_part(disk.source(), &engine, task.blocks(), context, &mut write);
    drop(phase);
    let TakenPart { written, scanned, .. } = taken?;
    planned.fingerprint.check(&disk, false)?;
    upload.publish()?;
    Ok(PartMade {
        name: planned.name.clone(),
        task,
        object: format!("{object}.delta"),
        file_bytes: written.footer.file_bytes,
        footer_digest: written.footer_digest,
        data_blocks: written.footer.counts.data_blocks,
        changed_bytes: changed_bytes(planned, &written.footer),
        read_bytes: Some(scanned.read_bytes),
    })
}

/// Bytes of the image of which a part says something.
fn changed_bytes(planned: &PlannedImage, footer: &PartFooter) -> u64 {
    let counts = &footer.counts;
    (counts.data_blocks + counts.zero_blocks).saturating_mul(planned.block_bytes.into())
}

/// What the snapshot will be called.
pub(super) fn identity(planned: &PlannedImage) -> Identity {
    Identity {
        snapshot_id: planned.snapshot,
        number: planned.number,
        label: planned.label.clone(),
        time_seconds: 0,
        time_nanoseconds: 0,
    }
}

/// Fails if a planned snapshot is not pending any more.
pub(in crate::ops::work) fn refuse_over(
    manifest: &Manifest,
    planned: &PlannedImage,
    plan: Uuid,
) -> Result<()> {
    let is_it = |p: &&crate::repo::manifest::Pending| {
        p.id == planned.snapshot && p.plan == Some(plan) && manifest.image_id == planned.image_id
    };
    match manifest.pending.iter().find(is_it) {
        Some(_) => Ok(()),
        None => {
            let name = &planned.name;
            let what = format!(
                "plan {plan} is over for \"{name}\": it was joined, dropped, or has expired"
            );
            Err(Error::new(ErrorKind::NotFound, what))
        }
    }
}

/// A part that a worker has made.
pub(in crate::ops::work) struct FoundPart {
    pub(super) object: Uuid,
    pub(super) part: Arc<Part>,
    pub(super) footer: PartFooter,
    pub(super) footer_digest: crate::base::digest::Digest,
}

impl FoundPart {
    fn made(&self, planned: &PlannedImage, task: PlannedTask, read_bytes: Option<u64>) -> PartMade {
        PartMade {
            name: planned.name.clone(),
            task,
            object: format!("{}.delta", self.object),
            file_bytes: self.footer.file_bytes,
            footer_digest: self.footer_digest,
            data_blocks: self.footer.counts.data_blocks,
            changed_bytes: changed_bytes(planned, &self.footer),
            read_bytes,
        }
    }
}

pub(in crate::ops::work) fn is_it(part: &FoundPart, task: PlannedTask) -> bool {
    part.footer.blocks == task.blocks()
}

/// The parts of a planned snapshot that are there, by their first block; one of each range.
///
/// # Errors
/// If the store does not say.
pub(in crate::ops::work) fn parts_of(
    repository: &Repository,
    planned: &PlannedImage,
    plan: Uuid,
    context: &Context,
) -> Result<BTreeMap<u64, FoundPart>> {
    let (block_size, algorithm, key, _) = planned.parameters()?;
    let mut found = BTreeMap::new();
    let files = repository.store.list(&planned.name)?;
    for file in files.iter().filter(|file| is_of_plan(file, plan)) {
        let path = format!("{}/{file}", planned.name);
        let (part, footer, footer_digest) =
            match Part::open(repository.store.clone(), &path, &repository.caches) {
                Err(e) if e.is_unread() => return Err(e),
                // Another attempt may be whole.
                Err(e) => {
                    context.note(format!("{path} is ignored: {e}"));
                    continue;
                }
                Ok(opened) => opened,
            };
        let own = part.header();
        let wanted: (Uuid, BlockSize, _, _) = (planned.image_id, block_size, algorithm, key);
        let is_like = own.content() == Content::Records
            && (own.image_id, own.block_size, own.algorithm, own.key) == wanted;
        let object = file.strip_suffix(".delta").and_then(|id| Uuid::parse_str(id).ok());
        if let Some(object) = object.filter(|_| is_like) {
            let part = Arc::new(part);
            found.insert(footer.blocks.first, FoundPart { object, part, footer, footer_digest });
        }
    }
    Ok(found)
}
