//! The rollback of one live image, step by step.

use super::intent::{end_rollback, may_be_there, record_intent};
use super::live::{check_length, close, open_live, padding_bytes};
use super::plan::{DiffPlan, dry_run_all, plan_diff, rollback_policy};
use super::types::{RollbackOutcome, RollbackRequest};
use crate::base::error::{Error, Result};
use crate::base::events::{Context, WarningId};
use crate::base::free_space::free_space_at;
use crate::base::message::{Setting, Verb, message};
use crate::base::uri::Shown;
use crate::chain::Chain;
use crate::image::nbd::{NbdDisk, NbdOptions, NbdUri};
use crate::image::write::Medium;
use crate::image::{Disk, ImageFormat, ImageUri, LiveImage, Prefix, RawFile};
use crate::ops::snapshot::snapshot_into;
use crate::ops::snapshot::take::warn_of_policy;
use crate::ops::snapshot::types::{SnapshotOutcome, SnapshotRequest};
use crate::repo::clones::{clones_beside, remove_all_clones};
use crate::repo::files::open_chain;
use crate::repo::garbage::collect_garbage;
use crate::repo::head::Head;
use crate::repo::host::Unwritten;
use crate::repo::inside::{refuse_base_image, refuse_base_image_or_warn, refuse_inside};
use crate::repo::live_file::{is_unchanged_since, source_of, warn_if_unguarded};
use crate::repo::manifest::{Manifest, Rollback, Snapshot};
use crate::repo::session::Writer;
use crate::repo::{Repository, reference};
use crate::tracking::Track;
use crate::view::update::{Updated, dry_run, execute, prove};
use std::path::PathBuf;
use uuid::Uuid;

/// What should be left, besides what is written, when clones are kept during a rollback: file systems
/// allocate in larger pieces than they are asked for.
const SPARE_BYTES: u64 = 16 << 20;

/// A disk that a machine has let go of.
#[derive(Debug, Clone)]
pub(super) enum LetGo {
    /// It is exported.
    Export {
        /// Where it is written to.
        uri: NbdUri,
        /// The snapshot that it equals, if that is known.
        equals: Option<Uuid>,
    },
    /// The machine is shut off.
    File {
        /// The file or device.
        path: PathBuf,
        /// How the disk lies in it.
        format: ImageFormat,
    },
}

impl LetGo {
    fn equals(&self) -> Option<Uuid> {
        match self {
            Self::Export { equals, .. } => *equals,
            Self::File { .. } => None,
        }
    }
}

/// A live image that is being rolled back.
pub(super) struct Subject<'a> {
    repository: &'a Repository,
    medium: &'a dyn Medium,
    request: RollbackRequest,
    let_go: Option<LetGo>,
    context: Context,
    pub(super) writer: Writer,
    pub(super) target: Snapshot,
    place: ImageUri,
    /// As they were when the image was opened.
    opened_by: (Manifest, Head),
    live: LiveImage,
    chain: Chain,
    /// An interrupted one is finished.
    resumed: bool,
    trust_hints: bool,
    /// The snapshot that the image equals, if that is known.
    known: Option<Uuid>,
    plan: DiffPlan,
    /// No rollback was under way.
    pub(super) is_first: bool,
    /// That nothing is written yet, as this host has noted it.
    note: Option<Unwritten>,
    outcome: RollbackOutcome,
}

impl<'a> Subject<'a> {
    /// Opens the live image, and sees that it can be rolled back.
    pub(super) fn open(
        repository: &'a Repository,
        medium: &'a dyn Medium,
        mut writer: Writer,
        request: &RollbackRequest,
        let_go: Option<LetGo>,
        context: &Context,
    ) -> Result<Self> {
        let request = request.clone();
        let target = reference::find(&writer.manifest, &writer.head, &request.to)?.clone();
        let place = source_of(&request.name, &writer.head)?.to_owned();
        warn_of_policy(repository, &request.name, context);
        let limit = rollback_policy(repository, &request.name).limit_read;
        let context = context.clone().with_read_limit(limit);
        if let Some(path) = place.file() {
            refuse_inside(repository, path)?;
            match request.save {
                // What is saved first is lost to nobody.
                true => refuse_base_image_or_warn(repository, path, &context)?,
                false => refuse_base_image(repository, path)?,
            }
        }
        let opened_by = (writer.manifest.clone(), writer.head.clone());
        let open = || open_disk(&opened_by, &place, &request, &target, let_go.as_ref(), &context);
        let mut disk = open()?;
        let resumed = writer.head.is_half_written(repository, writer.manifest.image_id)?;
        let suspicious = writer.head.intent.is_some() || writer.head_was_damaged;
        if suspicious {
            disk.container().into_iter().for_each(|file| forget_cached(file, medium, &context));
            drop(disk);
            disk = open()?;
        }
        disk.raw().into_iter().for_each(|file| warn_if_unguarded(file, &context));
        let live = LiveImage::held(disk);
        let chain = open_chain(repository, &writer.manifest, target.id)?;
        check_length(&live.disk, medium, &chain)?;
        if writer.head_was_damaged {
            let what = "the head state was damaged; the image will be scanned";
            context.warn(WarningId::HeadDamaged, what);
        }
        let trust_hints = !request.prove && !suspicious;
        let is_unchanged_since =
            trust_hints && is_unchanged_since(&writer.head, live.stable_stat().as_ref());
        let current = writer.head.snapshot.filter(|id| writer.manifest.by_id(*id).is_some());
        let known = if is_unchanged_since { current } else { None };
        let equals = let_go.as_ref().and_then(LetGo::equals);
        let equals = equals.filter(|id| trust_hints && writer.manifest.by_id(*id).is_some());
        // Of an interrupted one: what it had saved.
        let intended = writer.head.intent.filter(|_| resumed).and_then(|intent| intent.saved);
        let intended = intended.and_then(|id| writer.manifest.by_id(id));
        let outcome = RollbackOutcome {
            name: request.name.clone(),
            number: target.number,
            image: place.clone(),
            work: Updated::default(),
            scanned: false,
            hint: None,
            proved: false,
            saved: intended.map(|s| s.number),
            dry_run: request.dry_run,
            resumed,
            others: Vec::new(),
        };
        if !resumed && !request.dry_run {
            // An intent that is there all the same landed late, or its host died before the first byte. It
            // stays in the manifest until this one takes its place: what is known here may be wrong.
            writer.head.intent = None;
        }
        let is_first = writer.manifest.rollback.is_none();
        let (known, plan) = (known.or(equals), DiffPlan::whole());
        Ok(Self {
            repository,
            medium,
            request,
            let_go,
            context,
            writer,
            target,
            place,
            opened_by,
            live,
            chain,
            resumed,
            trust_hints,
            known,
            plan,
            is_first,
            note: None,
            outcome,
        })
    }

    fn disk(&self) -> &Disk {
        &self.live.disk
    }

    fn plan_by(&self, known: Option<Uuid>) -> Result<DiffPlan> {
        plan_diff(
            self.repository,
            &self.writer,
            known,
            &self.live,
            &self.chain,
            self.trust_hints,
            &self.context,
        )
    }

    /// What would be written.
    pub(super) fn try_out(mut self) -> Result<RollbackOutcome> {
        let plan = self.plan_by(self.known)?;
        let (plan, work) = dry_run_all(self.disk(), &self.chain, plan, &self.context)?;
        self.outcome.work = work;
        self.outcome.scanned = plan.is_scan();
        self.outcome.hint = plan.hint;
        Ok(self.outcome)
    }

    /// Saves the present state, if that is wanted and there is one.
    pub(super) fn save(&mut self) -> Result<()> {
        if !self.request.save || self.resumed {
            return Ok(());
        }
        if self.known.is_none() {
            let mut saved = self.save_by(self.trust_hints)?;
            self.outcome.work.read_bytes += saved.read_bytes;
            if saved.hint.is_some_and(|hint| hint.missed_blocks > 0) {
                // What was known is wrong: what is overwritten must be in a snapshot that read all.
                saved = self.save_by(false)?;
                self.outcome.work.read_bytes += saved.read_bytes;
            }
            self.outcome.scanned = saved.hint.is_none();
            self.outcome.hint = saved.hint.map(|hint| hint.kind);
            self.known = Some(saved.snapshot.id);
        }
        let known = self.known.and_then(|id| self.writer.manifest.by_id(id));
        self.outcome.saved = known.map(|s| s.number);
        Ok(())
    }

    fn save_by(&mut self, trust_hints: bool) -> Result<SnapshotOutcome> {
        let name = &self.writer.manifest.name;
        let request = SnapshotRequest {
            full_scan: !trust_hints,
            skip_unchanged: true,
            before_rollback: Some(self.target.id),
            track: Some(rollback_policy(self.repository, name).track),
            ..SnapshotRequest::default()
        };
        let place = self.live.disk.name();
        let (repository, writer, live) = (self.repository, &mut self.writer, &self.live);
        snapshot_into(repository, writer, live, &request, true, &self.context).map_err(|e| {
            let is_image = e.is_bad_medium() && e.message().contains(&place);
            let hint = message![
                "take a snapshot with ",
                Setting::SkipBad,
                ", then roll back with ",
                Setting::NoSave,
                ", which writes over bad sectors",
            ];
            if is_image { e.hint(hint) } else { e }
        })
    }

    /// Finds what differs, and rehearses it: damage in the repository must show while the image is still
    /// whole.
    pub(super) fn rehearse(&mut self) -> Result<()> {
        let mut plan = self.plan_by(self.known)?;
        let mut needed_bytes = None;
        if !self.resumed {
            let (rehearsed, found) = dry_run_all(self.disk(), &self.chain, plan, &self.context)?;
            plan = rehearsed;
            self.outcome.work.read_bytes += found.read_bytes;
            needed_bytes = Some(found.written_bytes);
        }
        if !has_free_space(self.disk(), needed_bytes) {
            self.context.note("little free space: removing the clones of the image first");
            let (manifest, head) = (&self.writer.manifest, &self.writer.head);
            remove_all_clones(self.repository, manifest, head, &self.context);
            if plan.hint.is_some() {
                // There is one without a name, too, until nobody has it open.
                plan = DiffPlan::whole();
                let source = self.disk().source();
                let found = dry_run(source, &self.chain, &plan.source(), &self.context)?;
                self.outcome.work.read_bytes += found.read_bytes;
            }
        }
        self.outcome.scanned |= plan.is_scan();
        self.outcome.hint = self.outcome.hint.or(plan.hint);
        self.plan = plan;
        Ok(())
    }

    /// Says in the manifest that from now on the image may be half written, and to this host that it is not
    /// yet.
    ///
    /// # Errors
    /// Then nothing was written, and no intent of this rollback is there.
    pub(super) fn intend(&mut self) -> Result<()> {
        let (repository, manifest) = (self.repository, &self.writer.manifest);
        let saved = self.outcome.saved;
        let saved = saved.and_then(|n| manifest.snapshots.iter().find(|s| s.number == n));
        let before = self.writer.head.intent.and_then(|intent| intent.saved);
        let saved = saved.map(|s| s.id).or(before);
        let id = Uuid::new_v4();
        let (host, target) = (repository.host.host().clone(), self.target.id);
        let live = self.live.disk.identity();
        let rollback = Rollback { id: Some(id), host, target, saved, live };
        let note = repository.host.unwritten(repository.id(), manifest.image_id, id);
        // Before the intent, which may land long after this was told to have failed.
        let is_noted = match self.resumed {
            true => false,
            false => {
                note.put().map_or_else(|e| may_be_there(&note, &e, &self.context), |()| Ok(true))?
            }
        };
        record_intent(repository, &mut self.writer, Some(rollback))?;
        self.note = is_noted.then_some(note);
        Ok(())
    }

    /// Says to this host, too, that from now on the image may be half written.
    ///
    /// # Errors
    /// Then nothing was written.
    pub(super) fn begin_to_write(&mut self) -> Result<()> {
        let Some(note) = self.note.take() else { return Ok(()) };
        // Otherwise the next one would save a mixture.
        note.remove().map_err(|e| e.hint("nothing was written"))
    }

    /// Nothing was written: nothing happened.
    pub(super) fn take_back(&mut self) -> Result<()> {
        match self.is_first {
            true => record_intent(self.repository, &mut self.writer, None),
            false => Ok(()),
        }
    }

    /// Writes what differs.
    ///
    /// # Errors
    /// With whether anything was written.
    pub(super) fn write(&mut self) -> Result<(), (Error, bool)> {
        self.context
            .note("the rollback is recorded; from now on the image may be only partly rolled back");
        let (live, chain) = (&self.live.disk, &self.chain);
        let mut disk = live.in_place(self.medium).map_err(|e| (e, false))?;
        let padding = padding_bytes(live, chain);
        let padded = match padding {
            0 => Ok(()),
            bytes => disk.zero(chain.geometry().image_bytes, bytes),
        };
        let disk_of = Prefix::new(live.source(), live.source().image_bytes() - padding);
        let source = self.plan.source();
        let work =
            padded.and_then(|()| execute(&disk_of, disk.as_mut(), chain, &source, &self.context));
        match work {
            Ok(work) => {
                self.outcome.work.written_bytes = work.written_bytes;
                self.outcome.work.read_bytes += work.read_bytes;
                Ok(())
            }
            Err(error) => Err((error, disk.is_begun())),
        }
    }

    /// The error of an image that is half written.
    pub(super) fn half_written(&self, error: Error) -> Error {
        let name = &self.writer.manifest.name;
        let saved = self.outcome.saved;
        let saved = saved.map_or(String::new(), |n| format!(" (the previous state is {name}@{n})"));
        let to = format!("{name}@{}", self.target.number);
        let mut again = Verb::Rollback.of(name).with(Setting::To, to);
        let RollbackRequest { alone, reset, shutdown, .. } = self.request;
        let given =
            [(alone, Setting::Alone), (reset, Setting::Reset), (shutdown, Setting::Shutdown)];
        for (_, setting) in given.iter().filter(|s| s.0) {
            again = again.with(*setting, "");
        }
        error.hint(message![
            format!("the image is only partly rolled back{saved}: run "),
            again,
            " again"
        ])
    }

    /// All was written: proves that if it is wanted, says so, and tidies up.
    pub(super) fn end(self) -> Result<RollbackOutcome> {
        let Self { repository, medium, request, mut writer, mut outcome, context, .. } = self;
        let (live, plan, chain) = (self.live, self.plan, self.chain);
        let (place, target, let_go) = (self.place, self.target, self.let_go);
        if request.prove {
            // What is read to prove it comes from the disk, not from memory.
            live.disk.container().into_iter().for_each(|file| medium.forget(file.file()));
            // The file may have another length than when it was opened.
            drop(plan);
            drop(live);
            let disk =
                open_disk(&self.opened_by, &place, &request, &target, let_go.as_ref(), &context)?;
            let bytes = disk.source().image_bytes() - padding_bytes(&disk, &chain);
            prove(&Prefix::new(disk.source(), bytes), &chain, &context)
                .map_err(|e| e.hint("all was written, but not verified; run the rollback again"))?;
            end_rollback(repository, &mut writer, target.id, &disk, &context)?;
            close(disk, &context);
        } else {
            end_rollback(repository, &mut writer, target.id, &live.disk, &context)?;
            drop(plan);
            close(live.disk, &context);
        }
        // What one that was interrupted had saved may have left a clone that nobody needs.
        let is_tracked = rollback_policy(repository, &request.name).track != Track::None;
        let needed = writer.manifest.newest_clone().filter(|_| is_tracked).map(|(s, _)| s.id);
        clones_beside(repository, &writer.manifest, Some(&outcome.image)).tidy(needed, &context);
        // It has committed twice and more.
        writer.release_reader_lock();
        if let Err(e) = collect_garbage(repository, &mut writer.manifest, &context) {
            context.note(e);
        }
        outcome.proved = outcome.scanned || request.prove;
        Ok(outcome)
    }
}

fn open_disk(
    (manifest, head): &(Manifest, Head),
    place: &ImageUri,
    request: &RollbackRequest,
    target: &Snapshot,
    let_go: Option<&LetGo>,
    context: &Context,
) -> Result<Disk> {
    match let_go {
        None => open_live(manifest, head, place, request, target, context),
        Some(LetGo::Export { uri, .. }) => {
            let name = Some(place.to_string());
            let options = NbdOptions { writable: true, name, ..NbdOptions::default() };
            NbdDisk::open(uri, options, context).map(Disk::Nbd)
        }
        Some(LetGo::File { path, format }) => {
            let file = RawFile::open_to_write(path)?;
            Disk::within_to_write(file, *format, request.read_by(), context)
        }
    }
}

/// True if there is free space to write so much anew: what the image shares with a clone is not overwritten.
/// How much is needed is not known of an interrupted rollback, perhaps interrupted by just that.
fn has_free_space(disk: &Disk, needed_bytes: Option<u64>) -> bool {
    let file = disk.raw().filter(|image| !image.is_device());
    let free_bytes = file.and_then(|image| free_space_at(image.path()));
    free_bytes.is_none_or(|free_bytes| {
        needed_bytes.is_some_and(|needed| free_bytes / 2 >= needed.saturating_add(SPARE_BYTES))
    })
}

/// A sync that failed has lost what it had to write, and memory still has it: nothing would seem to differ.
/// What the device has is what counts.
fn forget_cached(image: &RawFile, medium: &dyn Medium, context: &Context) {
    if let Err(e) = medium.sync(image.file()) {
        context.note(format!("cannot sync {}: {e}", image.path().shown()));
    }
    medium.forget(image.file());
}
