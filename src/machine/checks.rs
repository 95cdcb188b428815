//! When the disks of a machine are better left alone.

use super::disks::{MachineDisk, text};
use super::session::Machine;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::message::{Action, message};
use serde_json::{Value, json};

/// QEMU before this version ends with an assertion, and the machine with it, when a client lets go of an
/// export of a disk that has a thread of its own.
const THREADED_EXPORTS: (u64, u64) = (9, 0);
/// States of a migration that is over, or was never begun.
const NOT_MIGRATING: [&str; 4] = ["none", "completed", "failed", "cancelled"];

impl Machine {
    /// Fails if others work on the disks of the machine, so that ours could not, or would spoil theirs.
    ///
    /// # Errors
    /// `Busy`; `Unsupported` for what QEMU cannot do in this version; `Unavailable`.
    pub(super) fn check_free(&mut self, disks: &[&MachineDisk]) -> Result<()> {
        let migration = self.execute("query-migrate", json!({}))?;
        let status = migration.get("status").and_then(Value::as_str).unwrap_or("none");
        if !NOT_MIGRATING.contains(&status) {
            return Err(busy("the machine is migrating".to_owned()));
        }
        let jobs = self.execute("query-block-jobs", json!({}))?;
        if let Some(job) = jobs.as_array().and_then(|jobs| jobs.first()) {
            let part = |part: &str| text(job, part).unwrap_or_default();
            let what =
                format!("a job ({}) is running on the disk {}", part("type"), part("device"));
            return Err(busy(what));
        }
        disks.iter().try_for_each(|disk| self.check_disk(disk))
    }

    fn check_disk(&mut self, disk: &MachineDisk) -> Result<()> {
        if self.has_unsafe_exports(disk)? {
            let (major, minor) = self.qmp.version();
            let what = format!(
                "the disk {} has a thread of its own (iothread), and QEMU {major}.{minor} crashes \
                 when such a disk is read from outside",
                disk.name
            );
            let hint = "use QEMU 9.0 or later, or remove the iothread from the disk";
            return Err(Error::new(ErrorKind::Unsupported, what).hint(hint));
        }
        // The backend where there is one, otherwise the node, also if that is hidden from all else.
        let drive = self.execute("qom-get", json!({ "path": disk.device, "property": "drive" }))?;
        let drive = drive.as_str().unwrap_or_default();
        if drive.starts_with('#') && drive != disk.node {
            return Err(busy(format!("the disk {} has a filter of another program", disk.name)));
        }
        Ok(())
    }

    /// True if the machine could end when a client lets go of an export of this disk.
    ///
    /// # Errors
    /// `Unavailable`; what QEMU refuses.
    pub(super) fn has_unsafe_exports(&mut self, disk: &MachineDisk) -> Result<bool> {
        if self.qmp.version() >= THREADED_EXPORTS {
            return Ok(false);
        }
        let threads = self.execute("query-iothreads", json!({}))?;
        if threads.as_array().is_some_and(Vec::is_empty) {
            return Ok(false);
        }
        if self.has_thread(&disk.device) {
            return Ok(true);
        }
        // That of a SCSI disk is of its controller, of which its bus is a part.
        let bus = json!({ "path": disk.device, "property": "parent_bus" });
        let bus = self.execute("qom-get", bus)?;
        let controller = bus.as_str().and_then(|bus| bus.rsplit_once('/'));
        Ok(controller.is_some_and(|(controller, _)| self.has_thread(controller)))
    }

    /// Most devices have none, and no such property.
    fn has_thread(&mut self, path: &str) -> bool {
        let thread = self.execute("qom-get", json!({ "path": path, "property": "iothread" }));
        thread.is_ok_and(|thread| thread.as_str().is_some_and(|name| !name.is_empty()))
    }
}

fn busy(what: String) -> Error {
    Error::new(ErrorKind::Busy, what)
        .hint(message!["wait until that has ended, and ", Action::Retry])
}
