//! Flushes the disks of a machine while it goes on. To stop a machine is to flush all its disks, and what
//! they have not written yet is what it stands still for.

use super::disks::MachineDisk;
use super::names::Names;
use super::server::NbdServer;
use super::session::Machine;
use crate::base::error::Result;
use crate::base::events::Context;
use crate::image::nbd::{NbdDisk, NbdOptions};
use std::time::{Duration, Instant};

/// Exports of the disks themselves. They are read-only, but can be flushed.
pub struct Flusher {
    names: Vec<String>,
    disks: Vec<NbdDisk>,
}

impl Flusher {
    /// Exports disks, for which `server` runs.
    ///
    /// # Errors
    /// `Unavailable`; what QEMU refuses. Then no export is left.
    pub fn begin(
        machine: &mut Machine,
        server: &NbdServer,
        disks: &[MachineDisk],
        context: &Context,
    ) -> Result<Self> {
        let mut flusher = Self { names: Vec::new(), disks: Vec::new() };
        for disk in disks {
            let name = Names::of(&disk.node).flush();
            let called = format!("the disk {} of the machine", disk.name);
            let options = NbdOptions { name: Some(called), ..NbdOptions::default() };
            let opened = machine.export(&name, &disk.node, None).and_then(|()| {
                flusher.names.push(name.clone());
                NbdDisk::open(&server.uri(&name), options, context)
            });
            match opened {
                Ok(disk) => flusher.disks.push(disk),
                Err(error) => {
                    // What matters is told; what is left goes with all else.
                    crate::base::error::best_effort(flusher.end(machine));
                    return Err(error);
                }
            }
        }
        Ok(flusher)
    }

    /// Flushes all of them, one after the other, and tells how long it took.
    ///
    /// # Errors
    /// `Io` if a disk cannot be flushed; `Unavailable`; `Interrupted`.
    pub fn flush(&self) -> Result<Duration> {
        let begun = Instant::now();
        self.disks.iter().try_for_each(NbdDisk::flush)?;
        Ok(begun.elapsed())
    }

    /// Ends the exports.
    ///
    /// # Errors
    /// `Unavailable`; what QEMU refuses.
    pub fn end(self, machine: &mut Machine) -> Result<()> {
        drop(self.disks);
        machine.end_exports(&|id| self.names.iter().any(|name| name == id)).map(drop)
    }
}
