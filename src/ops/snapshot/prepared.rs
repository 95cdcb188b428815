//! A snapshot that is about to be taken: its parent, its name, and what becomes of it in the manifest.

use crate::base::digest::DigestKey;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::Context;
use crate::base::message::{Setting, Verb, message};
use crate::base::units::{BlockRange, BlockSize, Geometry, NamedBlocks, PartSize};
use crate::chain::Chain;
use crate::delta::{Identity, LayerOutput};
use crate::format::footer::MAX_NUMBER;
use crate::image::{LiveImage, RawFile, Source};
use crate::ops::snapshot::engine::{ChainParameters, Parent, Plan, Taken, take};
use crate::ops::snapshot::parts::{cells_with_data, header_of};
use crate::ops::snapshot::plan::{PlanInput, ScanPlan, plan_scan};
use crate::ops::snapshot::types::{Outcome, ParentChoice, SnapshotOutcome, SnapshotRequest};
use crate::repo::entry::part_names;
use crate::repo::files::{MAX_IMAGES, open_base, open_chain};
use crate::repo::head::Head;
use crate::repo::manifest::{BaseOf, Group, Manifest, Snapshot};
use crate::repo::pending::interrupted_base;
use crate::repo::{Repository, reference};
use crate::scan::{BadMedium, Scope};
use crate::tracking::{ChangeTracker, HintKind, reopen};
use jiff::Timestamp;
use std::time::Instant;
use uuid::Uuid;

/// Finds the parent and draws the identity of a snapshot.
///
/// # Errors
/// `Mismatch` while the image is half written; `AlreadyExists` if the label is taken.
pub(crate) fn prepare(
    repository: &Repository,
    manifest: &Manifest,
    head: &Head,
    request: &SnapshotRequest,
) -> Result<Prepared> {
    refuse_half_written(manifest, head)?;
    refuse_last_number(manifest)?;
    if let Some(label) = &request.label
        && manifest.snapshots.iter().any(|s| s.label.as_ref() == Some(label))
    {
        let what =
            format!("\"{}\" already has a snapshot with the label \"{label}\"", manifest.name);
        return Err(Error::new(ErrorKind::AlreadyExists, what).hint("choose another label"));
    }
    let base_of = request.pinned.clone();
    let parent_id = match &base_of {
        None => choose_parent(manifest, head, &request.parent)?,
        Some(_) => None,
    };
    let tip = match (parent_id, &base_of) {
        (Some(id), _) => Some(open_chain(repository, manifest, id)?),
        (None, Some(of)) => {
            let chain = open_base(repository, of)?;
            refuse_too_deep(of, &chain)?;
            Some(chain)
        }
        (None, None) => None,
    };
    let parent = match tip {
        Some(chain) => {
            refuse_other_block_size(&manifest.name, &chain, request.block_size)?;
            Parent::Tip(chain)
        }
        None => {
            let defaults = repository.defaults()?;
            Parent::None(ChainParameters {
                block_size: block_size_of(manifest, request, defaults.block_size),
                algorithm: defaults.digest,
                key: DigestKey::random()?,
            })
        }
    };
    let (parent, resumed) = resume(repository, manifest, request, parent);
    let block_size = parent.parameters().block_size;
    let usual = repository.defaults().unwrap_or_default().part_size;
    let part_size = part_size_of(manifest, &parent, request, usual)?;
    let now = Timestamp::now();
    let plan = Plan {
        parent,
        identity: Identity {
            snapshot_id: match (&request.moment, &resumed) {
                (Some(moment), _) => moment.id,
                (None, Some((id, _))) => *id,
                (None, None) => Uuid::new_v4(),
            },
            number: resumed.map_or(manifest.next_number, |(_, number)| number),
            label: request.label.clone(),
            time_seconds: now.as_second(),
            time_nanoseconds: u32::try_from(now.subsec_nanosecond()).unwrap_or(0),
        },
        file_id: Uuid::new_v4(),
        image_id: manifest.image_id,
        compression: request.compression.unwrap_or_else(|| repository.compression()),
        is_by_reference: false,
        bad_medium: if request.skip_bad { BadMedium::Skip } else { BadMedium::Fail },
        cell_blocks: Some(part_size.blocks(block_size)),
    };
    let parent_number = parent_id.and_then(|id| manifest.by_id(id)).map(|s| s.number);
    let turn = manifest.next_number.wrapping_add(head.skipped);
    let scan_plan = ScanPlan::whole();
    Ok(Prepared {
        plan,
        parent_id,
        parent_number,
        base_of,
        time: now,
        turn,
        scan_plan,
        format: None,
        before_rollback: request.before_rollback,
        group: request.moment.as_ref().and_then(|moment| moment.group.clone()),
        part_size: Some(part_size).filter(|size| *size != PartSize::USUAL),
    })
}

/// A base that was interrupted goes on under its id and number, and with its key, without which no part of it
/// could be used. Whether any can is found when the image is read.
fn resume(
    repository: &Repository,
    manifest: &Manifest,
    request: &SnapshotRequest,
    parent: Parent,
) -> (Parent, Option<(Uuid, u64)>) {
    let Parent::None(parameters) = parent else { return (parent, None) };
    let pending = interrupted_base(manifest).filter(|_| request.moment.is_none());
    let found = pending.and_then(|pending| {
        let header = header_of(repository, &manifest.name, &pending.objects)?;
        let is_like = (header.image_id, header.block_size, header.algorithm)
            == (manifest.image_id, parameters.block_size, parameters.algorithm);
        // What was taken since has a higher number.
        let is_newest = manifest.stored().last().is_none_or(|s| s.number < pending.number);
        let number = if is_newest { pending.number } else { manifest.next_number };
        is_like.then_some((header.key, (pending.id, number)))
    });
    match found {
        Some((key, it)) => (Parent::None(ChainParameters { key, ..parameters }), Some(it)),
        None => (Parent::None(parameters), None),
    }
}

/// On which grid a snapshot is cut: that of its chain.
fn part_size_of(
    manifest: &Manifest,
    parent: &Parent,
    request: &SnapshotRequest,
    usual: PartSize,
) -> Result<PartSize> {
    let Parent::Tip(chain) = parent else {
        let newest = manifest.stored().into_iter().rev().find_map(|s| s.part_size);
        return Ok(request.part_size.or(newest).unwrap_or(usual));
    };
    let block_bytes = u64::from(chain.geometry().block_size.bytes());
    let cut = chain.layers().iter().find_map(|layer| Some(layer.table()?.cell_blocks));
    let cut = cut.and_then(|blocks| PartSize::new(blocks.saturating_mul(block_bytes)).ok());
    let root = chain.layers().last().map(|base| base.footer().snapshot_id);
    let base = manifest.stored().into_iter().find(|s| Some(s.id) == root);
    let has = cut.or(base.and_then(|base| base.part_size)).unwrap_or(PartSize::USUAL);
    let Some(wanted) = request.part_size.filter(|wanted| *wanted != has) else { return Ok(has) };
    let name = &manifest.name;
    let what = format!("the chain of \"{name}\" has parts of {has}, not of {wanted}");
    Err(Error::new(ErrorKind::InvalidInput, what).hint(message![
        "start a new one with ",
        Setting::Full,
        ", or leave ",
        Setting::PartSize,
        " out",
    ]))
}

/// What nothing could open is not taken.
fn refuse_too_deep(of: &BaseOf, below: &Chain) -> Result<()> {
    if below.images() < MAX_IMAGES {
        return Ok(());
    }
    let what = format!(
        "the chain of {} already leads through {MAX_IMAGES} images, the maximum",
        of.place()
    );
    Err(Error::new(ErrorKind::LimitExceeded, what).hint(message![
        "run ",
        Verb::Flatten.of(of.place()),
        " first, or leave ",
        Setting::BaseOf,
        " out"
    ]))
}

/// A snapshot that is about to be taken.
pub(crate) struct Prepared {
    pub(crate) plan: Plan,
    pub(crate) parent_id: Option<Uuid>,
    parent_number: Option<u64>,
    /// The snapshot of another image that it is taken against.
    base_of: Option<BaseOf>,
    time: Timestamp,
    /// Selects the part of the unchanged blocks that this snapshot rechecks.
    turn: u64,
    pub(crate) scan_plan: ScanPlan,
    /// How the disk lies in the image, if it begins a chain.
    format: Option<String>,
    /// The snapshot that the image is about to be rolled back to.
    before_rollback: Option<Uuid>,
    /// What is taken with it.
    group: Option<Group>,
    /// On which grid it is cut, if not on the usual one.
    part_size: Option<PartSize>,
}

impl Prepared {
    /// Says that not all of its group was taken at one point in time.
    pub(crate) fn was_apart(&mut self) {
        self.group.iter_mut().for_each(|group| group.is_apart = true);
    }

    /// The chain of the parent.
    pub(crate) fn against(&self) -> Option<&Chain> {
        match &self.plan.parent {
            Parent::None(_) => None,
            Parent::Tip(chain) => Some(chain),
        }
    }

    /// Fixes the point in time, and finds out how it is found what changed.
    ///
    /// # Errors
    /// As [`plan_scan`].
    pub(crate) fn begin<'a>(
        &mut self,
        repository: &'a Repository,
        live: &'a LiveImage,
        search: &PlanInput<'_>,
        context: &Context,
    ) -> Result<Box<dyn ChangeTracker + 'a>> {
        let (scan_plan, tracker) = plan_scan(repository, live, self.against(), search, context)?;
        self.time = Timestamp::now();
        self.plan.identity.time_seconds = self.time.as_second();
        let nanoseconds = u32::try_from(self.time.subsec_nanosecond());
        self.plan.identity.time_nanoseconds = nanoseconds.unwrap_or(0);
        let how = match (&self.plan.parent, scan_plan.kind(), scan_plan.full_scan_reason()) {
            (Parent::None(_), ..) => "storing the whole image".to_owned(),
            (_, Some(HintKind::Times), _) => {
                "its file is unchanged since the head was noted".to_owned()
            }
            (_, Some(HintKind::Extents), _) => "reading what two clones do not share".to_owned(),
            (_, Some(HintKind::List), _) => "reading what the list names".to_owned(),
            (_, Some(HintKind::Bitmap), _) => "reading what the bitmap names".to_owned(),
            (Parent::Tip(_), None, Some(why)) => format!("reading the whole image: {why}"),
            (Parent::Tip(chain), None, None) => {
                format!("scanning against the tables of a chain of {}", chain.layers().len())
            }
        };
        let (name, number) = (&search.manifest.name, self.plan.identity.number);
        context.note(format!("{name}@{number}: {how}"));
        self.scan_plan = scan_plan;
        // What begins a chain says so.
        self.format = self.parent_id.is_none().then(|| live.disk.format().qemu().to_owned());
        Ok(tracker)
    }

    /// On which grid it is cut.
    pub(crate) fn part_size(&self) -> Result<PartSize> {
        let block_bytes = u64::from(self.plan.parent.parameters().block_size.bytes());
        PartSize::new(self.plan.cell_blocks.unwrap_or(1).saturating_mul(block_bytes))
    }

    /// The cells of a base in which there is data, each of which becomes a part; none of what is not cut so.
    pub(crate) fn cells(&self, source: &dyn Source) -> Result<Vec<BlockRange>> {
        let (Parent::None(parameters), Some(cell_blocks)) =
            (&self.plan.parent, self.plan.cell_blocks)
        else {
            return Ok(Vec::new());
        };
        let geometry = Geometry::new(parameters.block_size, source.image_bytes())?;
        match geometry.block_count() > cell_blocks {
            true => cells_with_data(source, geometry, cell_blocks),
            false => Ok(Vec::new()),
        }
    }

    pub(crate) fn take(
        &self,
        source: &dyn Source,
        scope: Scope,
        context: &Context,
        out: &mut dyn LayerOutput,
    ) -> Result<Taken> {
        take(source, &self.plan, scope, context, out)
    }

    /// Reads the live image as long as nobody else writes to it, because it is in memory more often than
    /// its clone; otherwise the clone. True if that was it. `take` begins anew if it is called again.
    pub(crate) fn scan_live_or_clone<T>(
        &self,
        live: &LiveImage,
        may_release: bool,
        context: &Context,
        take: &mut dyn FnMut(&dyn Source, Scope) -> Result<T>,
    ) -> Result<(T, bool)> {
        let point = self.scan_plan.point();
        let clone_of = |image: &RawFile| {
            let clone = point.source.as_ref();
            clone.map(|file| RawFile::unguarded(reopen(file, image.path())?, image.path()))
        };
        let clone = live.disk.raw().and_then(clone_of).transpose()?;
        let mut take_of = |source: &dyn Source| {
            let scope = self.scan_plan.scope(self.against(), source.image_bytes(), self.turn)?;
            take(source, scope)
        };
        let (Some(image), Some(clone)) = (live.disk.raw(), clone) else {
            return Ok((take_of(live.disk.source())?, false));
        };
        if live.user.is_none() && image.is_guarded() {
            match take_of(image) {
                Err(busy) if busy.kind() == ErrorKind::Busy && may_release => {
                    // Whoever wants the image has it at once.
                    image.release();
                    context.note(format!("{}: its clone is read instead", busy.message()));
                }
                other => return Ok((other?, false)),
            }
        }
        let taken = take_of(&clone)?;
        // Nobody else reads it.
        clone.forget();
        Ok((taken, true))
    }

    /// What the manifest says of it, whose file is `object`.
    pub(crate) fn entry(&self, object: &str, taken: &Taken, begun: Instant) -> Snapshot {
        let footer = &taken.written.footer;
        let block_size = match &self.plan.parent {
            Parent::None(parameters) => parameters.block_size,
            Parent::Tip(chain) => chain.geometry().block_size,
        };
        let geometry = Geometry { block_size, image_bytes: footer.image_bytes };
        Snapshot {
            number: footer.number,
            id: footer.snapshot_id,
            parent: self.parent_id,
            base_of: self.base_of.clone(),
            label: footer.label.clone(),
            time: self.time,
            file: object.to_owned(),
            parts: part_names(taken.written.table.as_ref()),
            part_size: self.part_size.filter(|_| self.parent_id.is_none()),
            file_bytes: taken.written.stored_bytes(),
            footer_digest: taken.written.footer_digest,
            block_bytes: block_size.bytes(),
            image_bytes: footer.image_bytes,
            image_digest: footer.image_digest,
            data_blocks: footer.counts.data_blocks,
            zero_blocks: footer.counts.zero_blocks,
            unread_blocks: footer.counts.unread_blocks,
            changed_blocks: taken.counted.changed_blocks,
            changed_bytes: taken.counted.changed_bytes,
            frame_bytes: footer.counts.frame_bytes,
            read_bytes: Some(taken.scanned.read_bytes),
            seconds: Some(begun.elapsed().as_secs_f64()),
            base_image: None,
            format: self.format.clone(),
            held: None,
            source_version: None,
            before_rollback: self.before_rollback,
            protected: false,
            pins: Vec::new(),
            group: self.group.clone(),
            attachments: Vec::new(),
            consistency: self.scan_plan.point().consistency,
            attributes: None,
            hint: self.scan_plan.hint_use(geometry, &taken.scanned),
            tracker: None,
            timings: None,
        }
    }

    pub(crate) fn outcome(
        &self,
        name: &str,
        snapshot: Snapshot,
        outcome: Outcome,
        live: &LiveImage,
    ) -> SnapshotOutcome {
        let full_scan_reason = self.scan_plan.full_scan_reason().map(str::to_owned);
        SnapshotOutcome {
            name: name.into(),
            outcome,
            unchanged_by_times: self.scan_plan.kind() == Some(HintKind::Times),
            parent_number: self.parent_number,
            hint: snapshot.hint,
            read_bytes: snapshot.read_bytes.unwrap_or(0),
            full_scan_reason: full_scan_reason.filter(|_| self.parent_number.is_some()),
            clone_seconds: self.scan_plan.point().stall_seconds,
            stopped_seconds: None,
            user: live.user.clone(),
            unread: NamedBlocks::default(),
            post_error: None,
            snapshot,
        }
    }
}

/// The unit of comparison of a new chain: as the image had it.
pub(crate) fn block_size_of(
    manifest: &Manifest,
    request: &SnapshotRequest,
    usual: BlockSize,
) -> BlockSize {
    let newest = manifest.stored().last().and_then(|s| BlockSize::new(s.block_bytes).ok());
    request.block_size.or(newest).unwrap_or(usual)
}

/// A chain has one unit of comparison.
fn refuse_other_block_size(name: &str, chain: &Chain, wanted: Option<BlockSize>) -> Result<()> {
    let has = chain.geometry().block_size;
    let Some(wanted) = wanted.filter(|wanted| *wanted != has) else { return Ok(()) };
    let what = format!("the chain of \"{name}\" has blocks of {has}, not of {wanted}");
    Err(Error::new(ErrorKind::InvalidInput, what).hint(message![
        "start a new one with ",
        Setting::Full,
        ", or leave ",
        Setting::BlockSize,
        " out",
    ]))
}

/// While a rollback has begun and not ended, the image is half written, and nobody wants to keep that.
fn refuse_half_written(manifest: &Manifest, head: &Head) -> Result<()> {
    let Some(intent) = head.intent else { return Ok(()) };
    let name = &manifest.name;
    let target = manifest.by_id(intent.target).map_or("?".into(), |s| s.number.to_string());
    let what = format!("a rollback of \"{name}\" to {name}@{target} was interrupted");
    let finish = head.finishing(name, &format!("{name}@{target}"));
    let relink = Verb::Relink.of(name).asking(Setting::Image);
    Err(Error::new(ErrorKind::Mismatch, what).hint(message![
        "finish it with ",
        finish,
        ", or run ",
        relink,
        " if the image has been replaced since",
    ]))
}

/// Numbers are never used twice, and after the last one there is none.
fn refuse_last_number(manifest: &Manifest) -> Result<()> {
    if manifest.next_number < MAX_NUMBER {
        return Ok(());
    }
    let name = &manifest.name;
    let what = format!("no number is left for a snapshot of \"{name}\"");
    let repair = Verb::Repair.of(name);
    Err(Error::new(ErrorKind::LimitExceeded, what)
        .hint(message![repair, " gives imported snapshots lower numbers"]))
}

fn choose_parent(manifest: &Manifest, head: &Head, choice: &ParentChoice) -> Result<Option<Uuid>> {
    let current = || {
        let head = head.snapshot.and_then(|id| manifest.by_id(id));
        head.or(manifest.latest()).map(|s| s.id)
    };
    match choice {
        ParentChoice::Incremental => Ok(current()),
        ParentChoice::Full => Ok(None),
        ParentChoice::Of(at) => Ok(Some(reference::find(manifest, head, at)?.id)),
        ParentChoice::Differential => match current() {
            Some(id) => {
                let lineage = manifest.lineage(id)?;
                Ok(lineage.iter().rev().find(|s| !manifest.is_dropped(s.id)).map(|s| s.id))
            }
            None => Ok(None),
        },
    }
}
