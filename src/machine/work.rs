//! What is made in a machine for a point in time of some disks, and how it goes again: whatever fails, all of
//! it is taken back, and the machine goes on.

use super::disks::{self, MachineDisk};
use super::flush::Flusher;
use super::names::{self, Names};
use super::scratch::{Scratch, ScratchFolder};
use super::server::NbdServer;
use super::session::{Machine, RunState};
use super::types::{FleeceOptions, FleecedDisk, Member};
use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::events::{Context, WarningId};
use crate::base::message::Action;
use crate::base::uri::Shown;
use crate::image::Source;
use crate::image::nbd::{NbdDisk, NbdOptions};
use serde_json::json;
use std::time::Duration;
use uuid::Uuid;

/// How long a probe of a snapshot may take.
const PROBE_STALL: Duration = Duration::from_secs(2);
const PROBE_PAUSE: Duration = Duration::from_millis(10);
/// What is read for it.
const PROBE_BYTES: usize = 512;

/// What is made for one disk.
pub struct Part {
    /// The disk, and what is wanted of it.
    pub member: Member,
    /// What is made is called so.
    pub names: Names,
    /// Which bitmap tells what changed.
    pub since: Result<(Uuid, String), Option<String>>,
    scratch: Option<Scratch>,
    /// All was taken away, or tried to.
    is_closed: bool,
}

/// The state of it all.
pub struct Work {
    /// The machine.
    pub machine: Machine,
    /// In the order of the members.
    pub parts: Vec<Part>,
    /// How it is done.
    pub options: FleeceOptions,
    /// By what all disks are flushed; only if the machine will be stopped.
    pub flusher: Option<Flusher>,
    server: Option<NbdServer>,
    /// That the machine is gone was told.
    is_loss_told: bool,
}

impl Work {
    /// Makes everything ready.
    ///
    /// # Errors
    /// As of [`Machine::prepare`].
    pub fn begin(
        mut machine: Machine,
        members: Vec<Member>,
        options: FleeceOptions,
        context: &Context,
    ) -> Result<Self> {
        context.check()?;
        let all = machine.disks()?;
        let members = checked(members, &all)?;
        let own: Vec<&MachineDisk> = members.iter().map(|member| &member.disk).collect();
        let state = machine.run_state()?;
        machine.check_free(&own)?;
        let bytes = own.iter().fold(0, |bytes: u64, disk| bytes.saturating_add(disk.bytes));
        let folder = ScratchFolder::open(&options.scratch_dir, bytes, context)?;
        let will_stop = state == RunState::Running && options.may_stop && members.len() > 1;
        let part = |member: Member| {
            let names = Names::of(&member.disk.node);
            Part { member, names, since: Err(None), scratch: None, is_closed: false }
        };
        let parts = members.into_iter().map(part).collect();
        let (flusher, server) = (None, None);
        let mut work = Self { machine, parts, options, flusher, server, is_loss_told: false };
        let ready = work.make_ready(&folder, context).and_then(|()| match will_stop {
            true => work.flush_all(&all, context),
            false => Ok(()),
        });
        match ready {
            Ok(()) => Ok(work),
            Err(error) => {
                work.end(context);
                Err(error)
            }
        }
    }

    fn make_ready(&mut self, folder: &ScratchFolder, context: &Context) -> Result<()> {
        for part in &mut self.parts {
            context.check()?;
            let Member { disk, image, known, snapshot, wants_bitmap } = &part.member;
            if *wants_bitmap {
                let bitmaps = &disk.bitmaps;
                let since = self.machine.settle_bitmaps(&disk.node, bitmaps, *image, known)?;
                part.since = since.map_err(Some);
                self.machine.begin_bitmap(disk, &names::bitmap(*image, *snapshot))?;
            }
        }
        for part in &mut self.parts {
            context.check()?;
            let scratch = folder.file(part.member.disk.bytes)?;
            let names = &part.names;
            let opaque = json!({ "opaque": names.scratch() });
            let set = self.machine.give("add-fd", opaque, scratch.descriptor())?;
            part.scratch = Some(scratch);
            let set = set.get("fdset-id").and_then(serde_json::Value::as_u64);
            let set = set.ok_or_else(|| self.machine.nonsense("add-fd"))?;
            let node = json!({
                "driver": "raw", "node-name": names.scratch(),
                "file": { "driver": "file", "filename": format!("/dev/fdset/{set}") },
            });
            self.machine.change("blockdev-add", node)?;
            // The node has a descriptor of its own now.
            self.machine.change("remove-fd", json!({ "fdset-id": set }))?;
        }
        for part in &self.parts {
            let names = &part.names;
            let filter = json!({
                "driver": "copy-before-write", "node-name": names.filter(),
                "file": part.member.disk.node, "target": names.scratch(),
                "on-cbw-error": "break-snapshot", "cbw-timeout": self.timeout(),
            });
            self.machine.change("blockdev-add", filter)?;
        }
        // By the nodes that are there the next run sees that it is ours.
        self.server = Some(NbdServer::start(&mut self.machine)?);
        Ok(())
    }

    /// In seconds; to QEMU none is for ever.
    fn timeout(&self) -> u64 {
        let timeout = self.options.cbw_timeout;
        (timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0)).max(1)
    }

    /// Writes out what all disks of the machine have not written yet, so that it need not stand still for
    /// that.
    fn flush_all(&mut self, all: &[MachineDisk], context: &Context) -> Result<()> {
        let Some(server) = &self.server else { return Ok(()) };
        let mut disks = Vec::new();
        for disk in all {
            if !self.machine.has_unsafe_exports(disk)? {
                disks.push(disk.clone());
            }
        }
        let flusher = Flusher::begin(&mut self.machine, server, &disks, context)?;
        let flushed = flusher.flush();
        self.flusher = Some(flusher);
        flushed.map(drop)
    }

    /// Makes the disks readable.
    ///
    /// # Errors
    /// `Unavailable`; what QEMU refuses.
    pub fn export(&mut self, context: &Context) -> Result<Vec<FleecedDisk>> {
        let mut disks = Vec::new();
        for index in 0..self.parts.len() {
            context.check()?;
            disks.extend(self.export_part(index)?);
        }
        Ok(disks)
    }

    fn export_part(&mut self, index: usize) -> Result<Option<FleecedDisk>> {
        let Some(server) = &self.server else { return Ok(None) };
        let Some(part) = self.parts.get_mut(index) else { return Ok(None) };
        let (snapshot, name) = (part.names.snapshot(), part.names.export());
        let node = json!({
            "driver": "snapshot-access", "node-name": snapshot, "file": part.names.filter(),
        });
        self.machine.change("blockdev-add", node)?;
        let node = part.member.disk.node.as_str();
        let bitmap = part.since.as_ref().ok().map(|(_, bitmap)| (node, bitmap.as_str()));
        match self.machine.export(&name, &snapshot, bitmap) {
            // Without the bitmap it is read all the same.
            Err(error) if bitmap.is_some() && error.kind() == ErrorKind::Io => {
                self.machine.export(&name, &snapshot, None)?;
                part.since = Err(Some(error.without_advice()));
            }
            other => other?,
        }
        Ok(Some(FleecedDisk { uri: server.uri(&name), since: part.since.clone() }))
    }

    /// What the bitmap of a member has recorded counts since another snapshot, which the disk equalled at the
    /// point in time; nothing if a bitmap did that before.
    pub fn adopt(&mut self, index: usize, equal: Uuid, context: &Context) {
        let Some(part) = self.parts.get(index).filter(|part| part.since.is_err()) else { return };
        let Member { disk, image, snapshot, wants_bitmap: true, .. } = &part.member else { return };
        let (new, adopted) = (names::bitmap(*image, *snapshot), names::bitmap(*image, equal));
        if let Err(error) = self.machine.replace_bitmap(disk, &new, &adopted) {
            // Then the next one reads all of it, too.
            context.note(error);
        }
    }

    /// Takes away what was made for a member, once. If its snapshot stands the bitmap of that goes on,
    /// otherwise the one before, with all that was written meanwhile.
    pub fn close(&mut self, index: usize, is_committed: bool, context: &Context) {
        let Some(part) = self.parts.get_mut(index).filter(|part| !part.is_closed) else { return };
        part.is_closed = true;
        let (member, names) = (part.member.clone(), part.names.clone());
        if self.parts.iter().all(|part| part.is_closed) {
            // As long as there is a node, the next run sees that the server is ours.
            self.stop_server(context);
        }
        let known: Vec<Uuid> =
            is_committed.then_some(member.snapshot).into_iter().chain(member.known).collect();
        let (mut cleared, mut settled) = (Ok(()), Ok(()));
        // Once more, if the connection is lost on the way.
        for _ in 0..2 {
            self.machine.reconnect();
            cleared = self.machine.clear(Some(&names));
            if member.wants_bitmap {
                settled = self.machine.settle_now(&member.disk.node, member.image, &known);
            }
            if !self.machine.is_lost() {
                break;
            }
        }
        // It stays as long as the node that writes to it.
        if let Some(part) = self.parts.get_mut(index)
            && cleared.is_ok()
        {
            part.scratch = None;
        }
        if let Err(error) = cleared.and(settled) {
            self.tell(&error, context);
        }
    }

    /// Takes away what is left. Afterwards the machine is as if nothing had been.
    pub fn end(&mut self, context: &Context) {
        self.machine.reconnect();
        if let Some(flusher) = self.flusher.take() {
            self.take(|machine| flusher.end(machine), context);
        }
        for index in 0..self.parts.len() {
            self.close(index, false, context);
        }
        self.machine.reconnect();
    }

    fn stop_server(&mut self, context: &Context) {
        let Some(server) = self.server.take() else { return };
        self.machine.reconnect();
        let ended = self.machine.end_exports(&names::is_read_export).map(drop);
        let stopped = ended.and(server.stop(&mut self.machine));
        self.machine.reconnect();
        match stopped {
            Err(error) if error.kind() == ErrorKind::Unavailable && !self.machine.is_lost() => {
                // The connection was lost: QEMU may have stopped it all the same.
                best_effort(self.machine.end_exports(&names::is_read_export));
                best_effort(self.machine.change("nbd-server-stop", json!({})));
            }
            Err(error) => self.tell(&error, context),
            Ok(()) => {}
        }
    }

    fn take(&mut self, work: impl FnOnce(&mut Machine) -> Result<()>, context: &Context) {
        if let Err(error) = work(&mut self.machine) {
            self.tell(&error, context);
        }
    }

    /// Says what could not be put in order; that the machine is gone once.
    fn tell(&mut self, error: &Error, context: &Context) {
        let is_lost = self.machine.is_lost();
        if is_lost && std::mem::replace(&mut self.is_loss_told, true) {
            return;
        }
        let place = self.machine.path().shown();
        let message = match is_lost {
            true => format!(
                "the machine at {place} has ended, or its QMP connection was lost: what was created in \
                 it for the snapshot could not be removed; the next snapshot removes it"
            ),
            false => format!(
                "not everything created in the machine at {place} for the snapshot could be \
                 removed: {}; the next snapshot tries again",
                error.without_advice()
            ),
        };
        context.warn(WarningId::MachineNotCleared, message);
    }

    /// Why a member cannot be read any more, if that is so.
    pub fn scratch_error(&self, index: usize) -> Option<Error> {
        let part = self.parts.get(index)?;
        let (server, scratch) = (self.server.as_ref()?, part.scratch.as_ref()?);
        let options =
            NbdOptions { stall: PROBE_STALL, pause: PROBE_PAUSE, ..NbdOptions::default() };
        let uri = server.uri(&part.names.export());
        let disk = NbdDisk::open(&uri, options, &Context::silent()).ok()?;
        // Once something could not be kept QEMU refuses every read.
        let error = disk.read_copied(0, PROBE_BYTES, &mut Vec::new()).err()?;
        let is_refused = error.kind() == ErrorKind::Io && !error.is_bad_medium();
        is_refused.then(|| scratch.error(self.timeout()))
    }
}

/// The members, with their disks as they are now.
fn checked(mut members: Vec<Member>, all: &[MachineDisk]) -> Result<Vec<Member>> {
    if members.is_empty() {
        return Err(Error::new(ErrorKind::InvalidInput, "no disk of the machine was selected"));
    }
    let mut nodes: Vec<String> = Vec::new();
    for member in &mut members {
        let disk = &member.disk;
        let same = |other: &&MachineDisk| other.node == disk.node && other.device == disk.device;
        let Some(now) = all.iter().find(same).filter(|now| now.bytes == disk.bytes) else {
            let what = format!("the disk {} of the machine has changed", disk.name);
            return Err(Error::new(ErrorKind::Busy, what).hint(Action::Retry));
        };
        if nodes.contains(&now.node) {
            let what = format!("the disk {} of the machine is given twice", disk.name);
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        nodes.push(now.node.clone());
        member.disk = now.clone();
    }
    Ok(members)
}

impl Machine {
    /// Brings the bitmaps of a node in order as they are now, if it is still there.
    fn settle_now(&mut self, node: &str, image: Uuid, known: &[Uuid]) -> Result<()> {
        let nodes = self.nodes()?;
        let found =
            nodes.iter().find(|other| disks::text(other, "node-name").as_deref() == Some(node));
        match found {
            Some(found) => {
                self.settle_bitmaps(node, &disks::bitmaps(found), image, known).map(drop)
            }
            None => Ok(()),
        }
    }
}
