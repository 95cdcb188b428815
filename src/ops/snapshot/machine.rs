//! Snapshots of the disks of a machine that QEMU runs, all at one point in time, while it goes on.
//!
//! ```text
//! disks -> writers, by name -> ids drawn -> Machine::prepare -> freeze -> point in time -> thaw
//!   -> each disk is read over NBD, by its bitmap -> each is committed -> bitmaps before are removed
//! ```

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::{Context, WarningId};
use crate::base::message::{Setting, Verb, message};
use crate::image::{ImageUri, MachineUri};
use crate::machine::{
    FleeceOptions, Freeze, Inserted, Machine, MachineDisk, Member, RunState, find_agent,
};
use crate::ops::snapshot::around::{AgentOf, SCRATCH_DIR, open_window, thaw};
use crate::ops::snapshot::group::{Became, borrowed, draw, finish, give_up};
use crate::ops::snapshot::of_machine::{chosen, open_all, open_images, refuse_of_file};
use crate::ops::snapshot::take::{Begun, begin, policy_for};
use crate::ops::snapshot::types::{SnapshotOutcome, SnapshotRequest, Window};
use crate::ops::snapshot::{Named, check_source};
use crate::repo::Repository;
use crate::repo::group::check_group_name;
use crate::repo::live_file::source_of;
use crate::repo::manifest::{Group, SnapshotPlace};
use crate::repo::session::Writer;
use crate::tracking::Consistency;
use std::path::{Path, PathBuf};
use std::time::Duration;
use uuid::Uuid;

/// How long a write of the guest may wait until what it overwrites is saved.
const SCRATCH_PATIENCE: Duration = Duration::from_secs(2);

/// Takes a snapshot of the disks of a machine: of all that can be written to, or of the one that is named.
///
/// # Errors
/// `NotFound` if there is no such machine or disk; as of [`super::group::run`].
pub(super) fn run(
    repository: &Repository,
    name: Option<&str>,
    uri: &MachineUri,
    socket: &Path,
    request: &SnapshotRequest,
    context: &Context,
) -> Result<Vec<SnapshotOutcome>> {
    refuse_of_file(request)?;
    let uri = uri.absolute()?;
    name.map_or(Ok(()), check_group_name)?;
    let mut machine = Machine::connect(socket, context)?;
    if machine.is_detached()? {
        let what = format!("a rollback of {uri} was interrupted, and its disks are not reattached");
        let again = Verb::Rollback.of(uri.clone().whole()).asking(Setting::To);
        return Err(Error::new(ErrorKind::Busy, what).hint(message![
            "run ",
            again.with(Setting::Reset, ""),
            ", which starts it"
        ]));
    }
    match machine.wake() {
        Ok(false) => {}
        Ok(true) => context.note(format!("{uri}: an interrupted rollback had stopped it; resumed")),
        Err(e) => context.warn(WarningId::MachineNotCleared, e),
    }
    if machine.recover(context)? {
        context.note(format!("{uri}: removed what an earlier run had left"));
    }
    let is_called = |disk: &MachineDisk, name: &str| disk.is_called(name);
    let disks = chosen(machine.disks()?, &uri, is_called, |disk| disk.name.clone())?;
    let targets: Vec<String> = disks.iter().map(|disk| disk.name.clone()).collect();
    let (requests, mut writers, group_name) =
        open_images(repository, name, &uri, &targets, request, context)?;
    let mut refs = borrowed(&mut writers);
    let taken =
        take(repository, machine, group_name.as_deref(), &mut refs, disks, &requests, context);
    if taken.is_err() {
        give_up(repository, writers);
    }
    let Taken { outcomes: mut members, inserted, machine } = taken?;
    if let Err(e) = machine {
        // What stands stands.
        context.warn(WarningId::MachineNotCleared, e);
    }
    let stopped_seconds = (!inserted.stall.is_zero()).then_some(inserted.stall.as_secs_f64());
    for member in &mut members {
        member.stopped_seconds = stopped_seconds;
        member.user = (inserted.state != RunState::Off).then(|| "QEMU".to_owned());
    }
    Ok(members)
}

/// From the point in time to the commits.
fn take(
    repository: &Repository,
    mut machine: Machine,
    name: Option<&str>,
    writers: &mut [&mut Writer],
    disks: Vec<MachineDisk>,
    requests: &[(Named, SnapshotRequest)],
    context: &Context,
) -> Result<Taken> {
    for ((named, _), writer) in requests.iter().zip(writers.iter()) {
        check_source(&writer.manifest, &writer.head, &named.image)?;
    }
    let mut group = draw(name, writers);
    let members = members(writers, &group, disks);
    let policies: Vec<_> =
        requests.iter().map(|(named, r)| policy_for(repository, &named.name, r)).collect();
    let max_stall = policies.iter().map(|policy| policy.max_stall).min().unwrap_or_default();
    let around = requests.first().map(|(_, r)| r.window.clone()).unwrap_or_default();
    let options = FleeceOptions {
        scratch_dir: around.scratch_dir.clone().unwrap_or_else(|| SCRATCH_DIR.into()),
        cbw_timeout: SCRATCH_PATIENCE,
        max_stall,
        may_stop: !around.one_by_one,
    };
    let images: Vec<&ImageUri> = requests.iter().map(|(named, _)| &named.image).collect();
    let agent = find_agent_for(&mut machine, &around)?.map_or(AgentOf::Nobody, AgentOf::Socket);
    let monitor = machine.socket().try_clone_to_owned();
    let monitor = monitor.map_err(|e| Error::io("cannot duplicate a descriptor", e))?;
    let mut fleece = machine.prepare(members, options, context)?;
    let mut window = open_window(repository, &around, &images, agent, Some(monitor), context)?;
    window.freeze(context)?;
    let inserted =
        fleece.insert(&mut || window.before_stop(), &mut || window.after_cont(), context);
    let frozen = thaw(window, &around, &images, context);
    let inserted = inserted?;
    group.is_apart = !inserted.at_one_time;
    let consistency = match inserted.state {
        RunState::Off => Consistency::Stopped,
        _ if frozen.iter().all(|frozen| *frozen) => Consistency::Frozen,
        RunState::Running | RunState::Paused => Consistency::Crash,
    };
    let limits = policies.iter().filter_map(|policy| policy.limit_read);
    let lowest = limits.min_by_key(|limit| limit.bytes());
    let context = &context.clone().with_read_limit(lowest);
    let exported = fleece.export();
    let lives = exported.and_then(|disks| open_all(disks, &group, consistency, requests, context));
    let taken = lives.and_then(|lives| {
        let begun: Result<Vec<Begun<'_>>> = writers
            .iter()
            .zip(&lives)
            .map(|(writer, (live, r))| begin(repository, writer, live, r, context))
            .collect();
        let mut all = Vec::new();
        let mut note = |index, became| all.push((index, became));
        let taken = finish(repository, writers, begun?, context, &mut note);
        for (index, became) in all {
            match became {
                Became::Committed => fleece.committed(index, context),
                Became::LeftOut(equal) => fleece.left_out(index, equal, context),
            }
        }
        taken
    });
    let taken = taken.map_err(|error| {
        let why = (0..requests.len()).find_map(|member| fleece.scratch_error(member));
        why.unwrap_or(error)
    });
    let ended = fleece.finish(context);
    Ok(Taken { outcomes: taken?, inserted, machine: ended })
}

/// Snapshots that stand, and what became of the machine.
struct Taken {
    outcomes: Vec<SnapshotOutcome>,
    inserted: Inserted,
    machine: Result<Machine>,
}

/// Saves the present state of disks of a machine that is stopped. Gives the machine back, and the snapshots
/// that the disks equal.
///
/// # Errors
/// As of [`run`].
pub(crate) fn save_disks(
    repository: &Repository,
    machine: Machine,
    writers: &mut [&mut Writer],
    disks: &[MachineDisk],
    targets: &[Uuid],
    context: &Context,
) -> Result<(Machine, Vec<Uuid>)> {
    let mut requests = Vec::new();
    for (writer, target) in writers.iter().zip(targets) {
        let name = writer.manifest.name.clone();
        let image = source_of(&name, &writer.head)?.clone();
        let mut request = SnapshotRequest::new(image.clone()).skip_unchanged(true);
        request.before_rollback = Some(*target);
        requests.push((Named { read_from: image.clone(), image, name }, request));
    }
    let disks = disks.to_vec();
    let taken = take(repository, machine, None, writers, disks.clone(), &requests, context)?;
    let has_missed = |taken: &SnapshotOutcome| taken.hint.is_some_and(|h| h.missed_blocks > 0);
    if !taken.outcomes.iter().any(has_missed) {
        return Ok((taken.machine?, taken.outcomes.iter().map(|o| o.snapshot.id).collect()));
    }
    // What was known is wrong: what is overwritten must be in a snapshot that read all.
    requests.iter_mut().for_each(|(_, request)| request.full_scan = true);
    let taken = take(repository, taken.machine?, None, writers, disks, &requests, context)?;
    Ok((taken.machine?, taken.outcomes.iter().map(|o| o.snapshot.id).collect()))
}

/// The socket of the guest agent, if that is to freeze and nobody says where it is.
fn find_agent_for(machine: &mut Machine, window: &Window) -> Result<Option<PathBuf>> {
    match window.freeze.contains(&Freeze::Agent(None)) {
        true => find_agent(&mut |command, arguments| machine.execute(command, arguments)).map(Some),
        false => Ok(None),
    }
}

/// What the machine is to know of each disk.
fn members(writers: &[&mut Writer], group: &Group, disks: Vec<MachineDisk>) -> Vec<Member> {
    let of = |((disk, writer), place): ((MachineDisk, &&mut Writer), &SnapshotPlace)| {
        let manifest = &writer.manifest;
        let known = manifest.stored().into_iter().rev().map(|s| s.id).collect();
        Member {
            disk,
            image: manifest.image_id,
            known,
            snapshot: place.snapshot,
            wants_bitmap: true,
        }
    };
    disks.into_iter().zip(writers).zip(&group.members).map(of).collect()
}
