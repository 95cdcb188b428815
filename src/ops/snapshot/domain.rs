//! Snapshots of the disks of a machine that libvirt manages, all at one point in time.
//!
//! ```text
//! runs:     disks -> writers, by name -> ids drawn -> Domain::prepare -> freeze -> backup begins -> thaw
//!             -> each disk is read over NBD, by its checkpoint -> each is committed -> backup ends,
//!             checkpoints before are removed
//! shut off: its image files are read, by the bitmaps that the checkpoints left in them
//! ```

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::{Context, WarningId};
use crate::base::message::{Action, message};
use crate::image::{DomainName, ImageFormat, ImageUri, LiveImage, MachineUri};
use crate::libvirt::{
    Backup, BackupDisk, Definition, Domain, DomainAgent, DomainDisk, DomainState, Ending,
    Hypervisor, KnownSnapshot, RUNNING, XML,
};
use crate::machine::Freeze;
use crate::ops::snapshot::around::{AgentOf, SCRATCH_DIR, open_window, thaw};
use crate::ops::snapshot::group::{self, Became, borrowed, draw, finish, give_up, is_group};
use crate::ops::snapshot::of_machine::{chosen, open_all, open_images, refuse_of_file};
use crate::ops::snapshot::take::{Begun, begin, policy_for};
use crate::ops::snapshot::types::{
    ChangedSince, GivenChanges, ParentChoice, SnapshotOutcome, SnapshotRequest, Window,
};
use crate::ops::snapshot::{Named, check_source, with_format};
use crate::repo::Repository;
use crate::repo::checkpoints::known;
use crate::repo::group::check_group_name;
use crate::repo::manifest::Group;
use crate::repo::reference::At;
use crate::repo::session::Writer;
use crate::tracking::Consistency;
use uuid::Uuid;

/// So many of the last snapshots of a disk are looked for among the bitmaps of its file.
const LAST: usize = 16;

/// Takes a snapshot of the disks of a domain: of all that can be written to, or of the one that is named.
///
/// # Errors
/// `NotFound` if there is no such domain or disk; `Busy` while it has another job, and for one with saved
/// memory; as of [`super::group::run`].
pub(super) fn run(
    repository: &Repository,
    name: Option<&str>,
    uri: &MachineUri,
    place: &DomainName,
    request: &SnapshotRequest,
    context: &Context,
) -> Result<Vec<SnapshotOutcome>> {
    refuse_of_file(request)?;
    name.map_or(Ok(()), check_group_name)?;
    let hypervisor = Hypervisor::connect(place.connect.as_deref(), context)?;
    let domain = hypervisor.domain(&place.name, context)?;
    let state = domain.state(context)?;
    check_ready(&domain, state, context)?;
    let definition = domain.definition(context)?;
    warn_of_uncovered(uri, &definition, context);
    let is_called = |disk: &DomainDisk, name: &str| disk.target == name;
    let disks = chosen(definition.disks.clone(), uri, is_called, |disk| disk.target.clone())?;
    let targets: Vec<String> = disks.iter().map(|disk| disk.target.clone()).collect();
    let (requests, mut writers, group_name) =
        open_images(repository, name, uri, &targets, request, context)?;
    let is_whole = uri.disk.is_none();
    let machine = Machine { domain, definition, disks, requests, is_whole };
    let mut refs = borrowed(&mut writers);
    let taken = match state {
        DomainState::Off => machine.take_off(repository, group_name.as_deref(), &mut refs, context),
        DomainState::Running | DomainState::Paused => {
            machine.take(repository, group_name.as_deref(), &mut refs, state, context)
        }
    };
    if taken.is_err() {
        give_up(repository, writers);
    }
    taken
}

/// Fails if the disks are not those of a machine that can be started as it is, or are read by somebody else.
fn check_ready(domain: &Domain, state: DomainState, context: &Context) -> Result<()> {
    if state == DomainState::Off {
        if domain.has_managed_save(context)? {
            let what = format!(
                "{} has saved memory that belongs to its disks: without it, they are no consistent \
                 state",
                domain.uri()
            );
            return Err(Error::new(ErrorKind::Busy, what).hint(message![
                "start it, or discard the memory (virsh managedsave-remove), and ",
                Action::Retry
            ]));
        }
        return Ok(());
    }
    if domain.recover(context)? {
        context.note(format!("{}: a backup left by an earlier run was ended", domain.uri()));
    }
    Ok(())
}

/// Says what is in no snapshot of the domain.
fn warn_of_uncovered(uri: &MachineUri, definition: &Definition, context: &Context) {
    if uri.disk.is_none() && !definition.uncovered.is_empty() {
        let what = format!("{uri}: not in the snapshot: {}", definition.uncovered.join(", "));
        context.warn(WarningId::NotCovered, what);
    }
}

/// A domain of which snapshots are taken: of these disks, by these requests.
struct Machine {
    domain: Domain,
    definition: Definition,
    disks: Vec<DomainDisk>,
    requests: Vec<(Named, SnapshotRequest)>,
    /// All of its disks.
    is_whole: bool,
}

impl Machine {
    /// From the point in time to the commits, while it runs.
    fn take(
        self,
        repository: &Repository,
        name: Option<&str>,
        writers: &mut [&mut Writer],
        state: DomainState,
        context: &Context,
    ) -> Result<Vec<SnapshotOutcome>> {
        let requests = &self.requests;
        for ((named, _), writer) in requests.iter().zip(writers.iter()) {
            check_source(&writer.manifest, &writer.head, &named.image)?;
        }
        let group = draw(name, writers);
        let around = requests.first().map(|(_, r)| r.window.clone()).unwrap_or_default();
        let mut backup = self.prepare(repository, &group, writers, &around, context)?;
        let is_frozen = self.point_in_time(repository, &mut backup, around, context)?;
        let parts = self.parts(true, context)?;
        let consistency = match state {
            _ if is_frozen => Consistency::Frozen,
            DomainState::Paused | DomainState::Running | DomainState::Off => Consistency::Crash,
        };
        let policies = requests.iter().map(|(named, r)| policy_for(repository, &named.name, r));
        let lowest = policies.filter_map(|p| p.limit_read).min_by_key(|limit| limit.bytes());
        let context = &context.clone().with_read_limit(lowest);
        let mut became = Vec::new();
        let lives = open_all(backup.disks(), &group, consistency, requests, context);
        let lives = lives.map(|lives| attached(lives, parts));
        let taken = lives.and_then(|lives| {
            let begun: Result<Vec<Begun<'_>>> = writers
                .iter()
                .zip(&lives)
                .map(|(writer, (live, r))| begin(repository, writer, live, r, context))
                .collect();
            finish(repository, writers, begun?, context, &mut |_, what| became.push(what))
        });
        let taken = taken.map_err(|error| backup.error().unwrap_or(error));
        let committed = became.iter().filter(|became| **became == Became::Committed).count();
        backup.end(match committed {
            0 => Ending::Aborted,
            all if all == requests.len() && taken.is_ok() => Ending::Committed,
            _ => Ending::Partly,
        });
        let mut taken = taken?;
        taken.iter_mut().for_each(|taken| taken.user = Some("QEMU".to_owned()));
        Ok(taken)
    }

    /// What goes with a snapshot of all of it.
    fn parts(&self, is_running: bool, context: &Context) -> Result<Vec<(String, Vec<u8>)>> {
        match self.is_whole {
            true => self.domain.parts(&self.definition, is_running, context),
            false => Ok(Vec::new()),
        }
    }

    fn prepare(
        &self,
        repository: &Repository,
        group: &Group,
        writers: &[&mut Writer],
        around: &Window,
        context: &Context,
    ) -> Result<Backup> {
        let of = |(disk, writer): (&DomainDisk, &&mut Writer)| BackupDisk {
            disk: disk.clone(),
            known: known(&writer.manifest),
        };
        let disks = self.disks.iter().zip(writers).map(of).collect();
        let images: Vec<Uuid> = writers.iter().map(|writer| writer.manifest.image_id).collect();
        let scratch_dir = around.scratch_dir.clone().unwrap_or_else(|| SCRATCH_DIR.into());
        let first = group.members.first().map(|member| (member.image, member.snapshot));
        let (image, alone) = first.unwrap_or_default();
        let id = if is_group(group) { group.id } else { alone };
        let checkpoint = KnownSnapshot::new(id, image, id).checkpoint;
        let source_at =
            |target: &str, snapshot| stored_source(repository, writers, target, snapshot);
        self.domain.prepare(disks, images, &scratch_dir, &checkpoint, &source_at, context)
    }

    /// The point in time, in a window in which the machine is frozen if that is wanted. True if it was.
    fn point_in_time(
        &self,
        repository: &Repository,
        backup: &mut Backup,
        mut around: Window,
        context: &Context,
    ) -> Result<bool> {
        let images: Vec<&ImageUri> = self.requests.iter().map(|(named, _)| &named.image).collect();
        let is_agent_alone = around.freeze == [Freeze::Agent(None)];
        let not_frozen = |why: String| {
            let what =
                format!("{}: not frozen, so crash-consistent only: {why}", self.domain.uri());
            context.warn(WarningId::NotFrozen, what);
        };
        if is_agent_alone && !self.definition.has_agent {
            not_frozen("it has no port for a guest agent".to_owned());
            around.freeze.clear();
        }
        let agent = match around.freeze.contains(&Freeze::Agent(None)) {
            true => AgentOf::Own(Box::new(DomainAgent::new(&self.domain, context)?)),
            false => AgentOf::Nobody,
        };
        let mut window = open_window(repository, &around, &images, agent, None, context)?;
        match window.freeze(context) {
            // A machine without its agent is better kept so than not at all.
            Err(error) if is_agent_alone && error.kind() == ErrorKind::Io => {
                not_frozen(error.without_advice().to_string());
                return backup.begin().map(|()| false);
            }
            other => other?,
        }
        let begun = backup.begin();
        let frozen = thaw(window, &around, &images, context);
        begun.map(|()| frozen.iter().all(|frozen| *frozen))
    }

    /// Of the image files, while it is shut off.
    fn take_off(
        self,
        repository: &Repository,
        name: Option<&str>,
        writers: &mut [&mut Writer],
        context: &Context,
    ) -> Result<Vec<SnapshotOutcome>> {
        let mut opened = Vec::new();
        let parts = self.parts(false, context)?;
        for ((disk, (named, request)), writer) in
            self.disks.iter().zip(self.requests).zip(writers.iter())
        {
            let Some(path) = &disk.path else {
                let what = format!("{} is on a server, and the machine is shut off", named.image);
                return Err(Error::new(ErrorKind::Unsupported, what).hint("start the machine"));
            };
            let format: ImageFormat = disk.format.parse()?;
            let mut request = SnapshotRequest { format: Some(format), ..request };
            // Nobody in it is to be frozen.
            request.window.freeze.retain(|freeze| *freeze != Freeze::Agent(None));
            let file = ImageUri::File(path.clone());
            let open = || LiveImage::open(&file, false, None, context);
            if disk.has_checkpoints() && !request.full_scan {
                let live = with_format(open()?, &writer.manifest, &request, &Context::silent())?;
                let source_at = |snapshot| {
                    stored_source(repository, writers, &disk.target, snapshot)
                        .filter(|source| disk.sources.first() == Some(source))
                };
                request.changed = bitmap_of(&live, writer, &request, &source_at)?;
            }
            opened.push((Named { read_from: file.clone(), ..named }, open()?, request));
        }
        if let Some((_, _, first)) = opened.first_mut() {
            first.attachments = parts;
        }
        let images: Vec<ImageUri> = opened.iter().map(|(named, ..)| named.image.clone()).collect();
        group::take(repository, name, writers, opened, &images, context)
    }
}

/// What a disk was read from at a snapshot, by the definition that went with that.
fn stored_source(
    repository: &Repository,
    writers: &[&mut Writer],
    target: &str,
    snapshot: Uuid,
) -> Option<String> {
    let of =
        |id: Uuid| writers.iter().find_map(|writer| Some((writer, writer.manifest.by_id(id)?)));
    let (_, taken) = of(snapshot)?;
    // With the first disk of its group.
    let first = taken.group.as_ref().and_then(|group| group.members.first());
    let (writer, with) = of(first.map_or(snapshot, |first| first.snapshot))?;
    let named = |name| with.attachments.iter().find(|part| part.name == name);
    let part = named(RUNNING).or_else(|| named(XML))?;
    let bytes = part.read(repository.store.as_ref(), &writer.manifest.name).ok()?;
    let definition = Definition::parse(str::from_utf8(&bytes).ok()?).ok()?;
    let disk = definition.disks.into_iter().find(|disk| disk.target == target)?;
    disk.sources.into_iter().next()
}

/// The parts of the machine go with its first disk.
fn attached(
    mut lives: Vec<(LiveImage, SnapshotRequest)>,
    parts: Vec<(String, Vec<u8>)>,
) -> Vec<(LiveImage, SnapshotRequest)> {
    if let Some((_, first)) = lives.first_mut() {
        first.attachments = parts;
    }
    lives
}

/// The bitmap in the file of an image that tells what changed since one of the last snapshots before.
fn bitmap_of(
    live: &LiveImage,
    writer: &Writer,
    request: &SnapshotRequest,
    source_at: &dyn Fn(Uuid) -> Option<String>,
) -> Result<Option<ChangedSince>> {
    let (manifest, head) = (&writer.manifest, &writer.head);
    let parent = head.snapshot.and_then(|id| manifest.by_id(id)).or(manifest.latest());
    let Some(parent) = parent.filter(|_| request.parent == ParentChoice::Incremental) else {
        return Ok(None);
    };
    let before: Vec<Uuid> = manifest.lineage(parent.id)?.iter().map(|s| s.id).collect();
    let mut last = known(manifest).into_iter().take(LAST);
    Ok(last.find_map(|known| {
        let number = manifest.by_id(known.snapshot).filter(|s| before.contains(&s.id))?.number;
        live.disk.bitmap(&known.checkpoint).ok()?;
        source_at(known.snapshot)?;
        let changes = GivenChanges::Bitmap(known.checkpoint);
        Some(ChangedSince { changes, since: At::Number(number) })
    }))
}
