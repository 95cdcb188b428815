//! Disks that are taken from a machine, so that they can be put back to an earlier state.
//!
//! ```text
//! stop -> system_reset -> each device gets an empty disk -> the disks are exported, writable
//!                                    -> written -> the devices get their disks again -> cont
//! ```
//!
//! The machine stays stopped meanwhile, and is reset before: a guest whose memory belongs to another state
//! of its disk never goes on. What stands in the place of a disk has a name by which the next run finds that
//! (`Machine::is_detached`). The disk's own node is what is written through, so the metadata of a qcow2 stays
//! QEMU's, and its bitmaps record what is written.
//!
//! # Who goes on, and when
//!
//! A machine that ran is marked before it is stopped, by a node that nothing uses, and the mark goes after
//! it goes on. So whoever finds a mark knows that the machine is to go on, and one that its user had stopped
//! has none. Until the first disk is taken away a guard lets the machine go on if we are killed: nothing of
//! its disks has changed. From there on it stays stopped, until the rollback is run again; whoever is killed
//! after the disks are back leaves the mark, by which the next run of any kind lets it go on
//! (`Machine::wake`).

use super::disks::{Drive, MachineDisk, bitmaps, text};
use super::guard::{Guard, Undo};
use super::names::{self, Names};
use super::server::NbdServer;
use super::session::{Machine, RunState};
use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::events::{Context, WarningId};
use crate::image::nbd::NbdUri;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How long a reset may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A machine that is stopped. Dropped, it is left as it is, and nobody guards it any more.
pub struct Stopped {
    machine: Machine,
    /// Lets it go on if we are killed; none if it was stopped before.
    guard: Option<Guard>,
}

/// A machine that is stopped, and whose disks are exported to be written to. Dropped, it is left as it is.
pub struct Detached {
    machine: Machine,
    server: NbdServer,
    disks: Vec<MachineDisk>,
}

impl Machine {
    /// True if some of its devices have an empty disk, since a run that put the disks back was killed.
    ///
    /// # Errors
    /// `Unavailable`; `Io` if QEMU's answer makes no sense.
    pub fn is_detached(&mut self) -> Result<bool> {
        Ok(self.drives()?.iter().any(|drive| names::is_null(&drive.node)))
    }

    /// The disks in whose place there is an empty one.
    ///
    /// # Errors
    /// As of [`Machine::is_detached`].
    pub fn detached(&mut self) -> Result<Vec<MachineDisk>> {
        let devices: BTreeSet<String> = {
            let is_away = |drive: &Drive| names::is_null(&drive.node);
            self.drives()?.into_iter().filter(is_away).map(|drive| drive.device).collect()
        };
        let mut disks = self.disks()?;
        disks.retain(|disk| devices.contains(&disk.device));
        Ok(disks)
    }

    /// True if it is to go on: it ran when we stopped it.
    ///
    /// # Errors
    /// `Unavailable`; `Io` if QEMU's answer makes no sense.
    pub fn is_to_go_on(&mut self) -> Result<bool> {
        Ok(self.node_names()?.contains(names::STOPPED))
    }

    /// Lets a machine go on that we have stopped, if it has all of its disks. True if it was stopped.
    ///
    /// # Errors
    /// `Unavailable`; what QEMU refuses.
    pub fn wake(&mut self) -> Result<bool> {
        if !self.is_to_go_on()? || self.is_detached()? {
            return Ok(false);
        }
        // After a reset it is as before its start.
        let is_stopped = self.run_state()? != RunState::Running;
        if is_stopped {
            self.change("cont", json!({}))?;
        }
        self.change("blockdev-del", json!({ "node-name": names::STOPPED }))?;
        Ok(is_stopped)
    }

    /// Stops the machine, if it runs. Until a disk is taken away it goes on when we are killed.
    ///
    /// # Errors
    /// `Busy` while it migrates; `Unavailable`; of the operating system. [`Machine::wake`] lets it go on.
    pub fn stop(mut self, context: &Context) -> Result<Stopped> {
        let is_marked = self.is_to_go_on()?;
        let is_running = self.run_state()? == RunState::Running;
        if !is_running && (!is_marked || self.is_detached()?) {
            return Ok(Stopped { machine: self, guard: None });
        }
        let socket = self.socket().try_clone_to_owned();
        let socket = socket.map_err(|e| Error::io("cannot duplicate a descriptor", e))?;
        // However long it takes: nobody wants it to go on meanwhile.
        let guard = Guard::start(Duration::MAX, vec![Undo::Continue(socket)], context)?;
        if !is_marked {
            let mark = json!({
                "driver": "null-co", "node-name": names::STOPPED, "size": 0, "read-zeroes": true,
            });
            self.change("blockdev-add", mark)?;
        }
        guard.arm(0)?;
        self.change("stop", json!({}))?;
        Ok(Stopped { machine: self, guard: Some(guard) })
    }
}

impl Stopped {
    /// The machine, and the guard that lets it go on when we are killed.
    pub fn apart(self) -> (Machine, Option<Guard>) {
        (self.machine, self.guard)
    }
}

impl Machine {
    /// Resets a machine that is stopped, takes disks from it, and exports them to be written to. Goes on
    /// with what a killed run has begun. `guard` is ended when it must not go on any more.
    ///
    /// # Errors
    /// `Busy` if its NBD server is in use; `Unavailable`; what QEMU refuses. Then the devices have their
    /// disks, if they had them before, unless `Unavailable`; and the machine is stopped.
    pub fn detach(
        mut self,
        disks: Vec<MachineDisk>,
        guard: Option<Guard>,
        context: &Context,
    ) -> Result<Detached> {
        context.check()?;
        // Then they may be a mixture already.
        let was_detached = self.is_detached()?;
        self.end_write_exports()?;
        self.reset()?;
        let begun = self.take_away(&disks, guard).and_then(|()| self.serve(&disks));
        match begun {
            Ok(server) => Ok(Detached { machine: self, server, disks }),
            Err(error) if was_detached => Err(error),
            Err(error) => {
                best_effort(self.end_write_exports());
                best_effort(self.give_back(&disks));
                Err(error)
            }
        }
    }

    /// After it the machine is as when it was switched on, and still stopped.
    fn reset(&mut self) -> Result<()> {
        self.qmp.take_events();
        self.change("system_reset", json!({}))?;
        let deadline = Instant::now() + PATIENCE;
        while let Some(event) = self.qmp.next_event(deadline)? {
            if event.name == "RESET" {
                return Ok(());
            }
        }
        let what = format!("the machine was not reset within {} s", PATIENCE.as_secs());
        Err(Error::new(ErrorKind::Unavailable, what))
    }

    fn take_away(&mut self, disks: &[MachineDisk], mut guard: Option<Guard>) -> Result<()> {
        for disk in disks {
            let names = Names::of(&disk.node);
            let nodes = self.node_names()?;
            // What belongs to no monitor would go with its device.
            if !nodes.contains(&names.keeper()) {
                let keeper = json!({
                    "driver": "raw", "node-name": names.keeper(), "read-only": true, "file": disk.node,
                });
                self.change("blockdev-add", keeper)?;
            }
            if !nodes.contains(&names.null()) {
                let null = json!({
                    "driver": "null-co", "node-name": names.null(), "size": disk.bytes,
                    "read-zeroes": true,
                });
                self.change("blockdev-add", null)?;
            }
            // From here on it may not go on any more when we are killed.
            guard.take().map(Guard::end);
            self.switch(&disk.device, &names.null())?;
        }
        Ok(())
    }

    /// Takes away what a run has left that was killed before it took a disk away, or after that was back.
    ///
    /// # Errors
    /// `Unavailable`; what QEMU refuses.
    pub(super) fn remove_unused_nulls(&mut self) -> Result<()> {
        let in_use: BTreeSet<String> = self.drives()?.into_iter().map(|drive| drive.node).collect();
        for name in self.node_names()? {
            if names::null_of_keeper(&name).is_some_and(|null| !in_use.contains(&null))
                || (names::is_null(&name) && !in_use.contains(&name))
            {
                self.change("blockdev-del", json!({ "node-name": name }))?;
            }
        }
        Ok(())
    }

    /// Lets a device use a node, unless it does: QEMU 7.2 ends with an assertion then.
    fn switch(&mut self, device: &str, node: &str) -> Result<()> {
        let is_it = self.drives()?.iter().any(|drive| drive.device == device && drive.node == node);
        if is_it { Ok(()) } else { self.use_node(device, node) }
    }

    fn serve(&mut self, disks: &[MachineDisk]) -> Result<NbdServer> {
        let server = NbdServer::start(self)?;
        for disk in disks {
            let name = Names::of(&disk.node).written();
            let export = json!({
                "type": "nbd", "id": name, "name": name, "node-name": disk.node, "writable": true,
            });
            if let Err(error) = self.change("block-export-add", export) {
                best_effort(server.stop(self));
                return Err(error);
            }
        }
        Ok(server)
    }

    /// Those of a killed run, and its server.
    fn end_write_exports(&mut self) -> Result<()> {
        let had_exports = self.end_exports(&names::is_write_export)?;
        // It is started when the devices have let go of their disks. What others export was exported by
        // another server.
        let is_others = self.exports()?.iter().any(|export| export.is_nbd);
        if (had_exports || self.is_detached()?) && !is_others {
            best_effort(self.change("nbd-server-stop", json!({})));
        }
        Ok(())
    }

    /// Gives the devices their disks.
    fn give_back(&mut self, disks: &[MachineDisk]) -> Result<()> {
        for disk in disks {
            let names = Names::of(&disk.node);
            self.switch(&disk.device, &disk.node)?;
            let nodes = self.node_names()?;
            for name in [names.null(), names.keeper()].iter().filter(|name| nodes.contains(*name)) {
                self.change("blockdev-del", json!({ "node-name": name }))?;
            }
        }
        Ok(())
    }
}

impl Detached {
    /// Where a disk is written to, in the order in which they were named.
    pub fn uri(&self, disk: usize) -> Option<NbdUri> {
        let disk = self.disks.get(disk)?;
        Some(self.server.uri(&Names::of(&disk.node).written()))
    }

    /// True if nothing was written to a disk since a bitmap on it was begun. No device uses the disk any
    /// more, so it stays so.
    ///
    /// # Errors
    /// `Unavailable`; `Io` if QEMU's answer makes no sense.
    pub fn is_clean_since(&mut self, disk: usize, bitmap: &str) -> Result<bool> {
        let Some(node) = self.disks.get(disk).map(|disk| disk.node.clone()) else {
            return Ok(false);
        };
        let nodes = self.machine.nodes()?;
        let is_it = |other: &&Value| text(other, "node-name").as_ref() == Some(&node);
        let all = nodes.iter().find(is_it).map(bitmaps).unwrap_or_default();
        Ok(all.iter().any(|b| b.name == bitmap && b.recording && !b.inconsistent && b.count == 0))
    }

    /// True if QEMU has ended, or is not to be reached.
    pub fn is_gone(&mut self) -> bool {
        self.machine.run_state().is_err() && self.machine.is_lost()
    }

    /// Gives the devices their disks. The machine goes on if it is to, and has all of its disks. If somebody
    /// has let it go on without them, it is reset once more.
    ///
    /// # Errors
    /// `Unavailable`; what QEMU refuses. Then it is stopped.
    pub fn attach(mut self, context: &Context) -> Result<Machine> {
        if self.machine.run_state()? == RunState::Running {
            let what = "the machine was resumed without its disks; it was reset once more";
            context.warn(WarningId::MachineStopped, what);
            self.machine.change("stop", json!({}))?;
            self.machine.reset()?;
        }
        self.machine.end_write_exports_of(self.server)?;
        self.machine.give_back(&self.disks)?;
        self.machine.wake()?;
        Ok(self.machine)
    }
}

impl Machine {
    fn end_write_exports_of(&mut self, server: NbdServer) -> Result<()> {
        self.end_exports(&names::is_write_export)?;
        server.stop(self)
    }
}
