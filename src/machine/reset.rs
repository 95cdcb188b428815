//! Disks that are taken from a machine, so that they can be put back to an earlier state.
//!
//! ```text
//! stop -> system_reset -> each device gets an empty disk -> the disks are exported, writable
//!                                    -> written -> the devices get their disks again -> cont
//! ```
//!
//! The machine stays stopped meanwhile, and is reset before: a guest whose memory belongs to another state
//! of its disk never goes on. Whoever is killed leaves it stopped, and what stands in the place of a disk
//! has a name by which the next run finds that (`Machine::is_detached`). The disk's own node is what is
//! written through, so the metadata of a qcow2 stays QEMU's, and its bitmaps record what is written.

use super::disks::MachineDisk;
use super::names::{self, Names};
use super::server::NbdServer;
use super::session::{Machine, RunState};
use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::events::Context;
use crate::image::nbd::NbdUri;
use serde_json::json;
use std::time::{Duration, Instant};

/// How long a reset may take.
const PATIENCE: Duration = Duration::from_secs(10);

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

    /// Stops the machine, if it runs. What it did before.
    ///
    /// # Errors
    /// `Busy` while it migrates; `Unavailable`.
    pub fn stop(&mut self) -> Result<RunState> {
        let state = self.run_state()?;
        if state == RunState::Running {
            self.change("stop", json!({}))?;
        }
        Ok(state)
    }

    /// Lets the machine go on.
    ///
    /// # Errors
    /// `Unavailable`; what QEMU refuses.
    pub fn resume(&mut self) -> Result<()> {
        self.change("cont", json!({})).map(drop)
    }

    /// Resets a machine that is stopped, takes disks from it, and exports them to be written to. Goes on
    /// with what a killed run has begun.
    ///
    /// # Errors
    /// `Busy` if its NBD server is in use; `Unavailable`; what QEMU refuses. Then the devices have their
    /// disks, unless `Unavailable`, and the machine is stopped.
    pub fn detach(mut self, disks: Vec<MachineDisk>, context: &Context) -> Result<Detached> {
        context.check()?;
        self.end_write_exports()?;
        self.reset()?;
        let begun = self.take_away(&disks).and_then(|()| self.serve(&disks));
        match begun {
            Ok(server) => Ok(Detached { machine: self, server, disks }),
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

    fn take_away(&mut self, disks: &[MachineDisk]) -> Result<()> {
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
            self.switch(&disk.device, &names.null())?;
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

    /// Gives the devices their disks, and starts the machine if `goes_on`.
    ///
    /// # Errors
    /// `Unavailable`; what QEMU refuses. Then it is stopped.
    pub fn attach(mut self, goes_on: bool) -> Result<Machine> {
        self.machine.end_write_exports_of(self.server)?;
        self.machine.give_back(&self.disks)?;
        if goes_on {
            self.machine.resume()?;
        }
        Ok(self.machine)
    }
}

impl Machine {
    fn end_write_exports_of(&mut self, server: NbdServer) -> Result<()> {
        self.end_exports(&names::is_write_export)?;
        server.stop(self)
    }
}
