//! The disks of a machine, as QEMU tells of them.

use super::session::Machine;
use crate::base::error::{Error, ErrorKind, Result};

/// A disk of a machine: a device with a medium that it can write to, and that is neither a CD-ROM nor a
/// floppy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineDisk {
    /// What it is called: the id of its device, or the name of its block backend, or its node name.
    pub name: String,
    /// What else it may be called.
    pub aliases: Vec<String>,
    /// The device, as QOM names it: an absolute path.
    pub device: String,
    /// The node that is the disk.
    pub node: String,
    /// The driver of that node: "raw", "qcow2".
    pub format: String,
    /// Its length.
    pub bytes: u64,
    /// The file in which it lies, as QEMU names it.
    pub file: Option<String>,
    /// Its dirty bitmaps, whoever made them.
    pub bitmaps: Vec<DirtyBitmap>,
}

impl MachineDisk {
    /// True if it can be called that.
    pub fn is_called(&self, name: &str) -> bool {
        self.name == name || self.aliases.iter().any(|alias| alias == name)
    }
}

/// A dirty bitmap of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirtyBitmap {
    /// Its name.
    pub name: String,
    /// Writes are noted in it.
    pub recording: bool,
    /// Somebody uses it, so it cannot be changed.
    pub busy: bool,
    /// It is stored in the image when QEMU ends.
    pub persistent: bool,
    /// It was not stored when QEMU ended: what it says means nothing.
    pub inconsistent: bool,
    /// A bit of it is of so many bytes.
    pub granularity: u64,
    /// So many bytes are dirty.
    pub count: u64,
}

impl Machine {
    /// The disks of the machine, in the order in which QEMU has them.
    ///
    /// # Errors
    /// `Unavailable`.
    pub fn disks(&mut self) -> Result<Vec<MachineDisk>> {
        Err(Error::new(ErrorKind::Internal, "not there yet"))
    }
}
