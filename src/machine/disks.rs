//! The disks of a machine, as QEMU tells of them.

use super::names::Names;
use super::session::{ALL_NODES, Machine};
use crate::base::error::Result;
use crate::base::units::MAX_IMAGE_BYTES;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// The longest name or path that is taken from QEMU, in bytes.
const MAX_NAME_BYTES: usize = 1024;
/// Where devices are that have an id.
const PERIPHERAL: &str = "/machine/peripheral/";
/// Devices whose medium is no disk: drives of media that can be changed, and the memory of firmware.
const NO_DISKS: [&str; 5] = ["floppy", "ide-cd", "scsi-cd", "cfi.pflash01", "cfi.pflash02"];

/// A disk of a machine: a device with a medium that it can write to, and that is neither a CD-ROM nor a
/// floppy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineDisk {
    /// What it is called: the id of its device, or the name of its block backend, or its node name. Each
    /// disk of a machine is called otherwise.
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

/// A device that has a medium, whatever that is.
pub struct Drive {
    /// The device, as QOM names it: an absolute path.
    pub device: String,
    /// Its id, if it has one.
    id: Option<String>,
    /// The name of its block backend, which may be empty.
    pub backend: String,
    /// The node that it uses.
    pub node: String,
}

impl Machine {
    /// The disks of the machine, in the order in which QEMU has them. A disk in whose place a killed run left
    /// something of ours is told as if that were not there.
    ///
    /// # Errors
    /// `Unavailable`; `Io` if QEMU's answer makes no sense.
    pub fn disks(&mut self) -> Result<Vec<MachineDisk>> {
        let drives = self.drives()?;
        let nodes = self.nodes()?;
        let (mut disks, mut taken) = (Vec::new(), BTreeSet::new());
        for drive in drives {
            // What stands in the place of a disk has a name that leads back to it.
            let is = |wanted: &dyn Fn(&str) -> bool| {
                nodes.iter().find(|node| text(node, "node-name").is_some_and(|name| wanted(&name)))
            };
            let behind = is(&|name| Names::of(name).stand_in(&drive.node));
            let Some(node) = behind.or_else(|| is(&|name| name == drive.node)) else { continue };
            let kind =
                self.execute("qom-get", json!({ "path": drive.device, "property": "type" }))?;
            let is_disk = !NO_DISKS.iter().any(|other| kind == *other);
            if !is_disk || node.get("ro").and_then(Value::as_bool).unwrap_or(true) {
                continue;
            }
            let disk = self.disk(drive, node, &taken)?;
            taken.insert(disk.name.clone());
            disks.push(disk);
        }
        Ok(disks)
    }

    fn disk(&self, drive: Drive, node: &Value, taken: &BTreeSet<String>) -> Result<MachineDisk> {
        let nonsense = || self.nonsense(ALL_NODES);
        let name = text(node, "node-name").ok_or_else(nonsense)?;
        let bytes = node.pointer("/image/virtual-size").and_then(Value::as_u64);
        let bytes = bytes.filter(|bytes| *bytes <= MAX_IMAGE_BYTES).ok_or_else(nonsense)?;
        // What QEMU made up is called otherwise the next time.
        let own = Some(name.clone()).filter(|name| !name.starts_with('#'));
        let backend = Some(drive.backend).filter(|backend| !backend.is_empty());
        let mut called: Vec<String> = [drive.id, backend, own].into_iter().flatten().collect();
        called.dedup();
        let place = called.iter().position(|name| !taken.contains(name));
        let first = place.map(|place| called.remove(place));
        Ok(MachineDisk {
            name: first.unwrap_or_else(|| name.clone()),
            aliases: called,
            device: drive.device,
            node: name,
            format: text(node, "drv").ok_or_else(nonsense)?,
            bytes,
            file: text(node, "file").filter(|file| !file.is_empty()),
            bitmaps: bitmaps(node),
        })
    }

    /// All devices that have a medium.
    ///
    /// # Errors
    /// `Unavailable`; `Io` if QEMU's answer makes no sense.
    pub(super) fn drives(&mut self) -> Result<Vec<Drive>> {
        let answer = self.execute("query-block", json!({}))?;
        let all = answer.as_array().ok_or_else(|| self.nonsense("query-block"))?;
        Ok(all.iter().filter_map(drive).collect())
    }

    /// All nodes that have a name, as QEMU tells of them.
    ///
    /// # Errors
    /// `Unavailable`; `Io` if QEMU's answer makes no sense.
    pub(super) fn nodes(&mut self) -> Result<Vec<Value>> {
        // Without what lies below each of them, which may be long.
        match self.execute(ALL_NODES, json!({ "flat": true }))? {
            Value::Array(nodes) => Ok(nodes),
            _ => Err(self.nonsense(ALL_NODES)),
        }
    }
}

/// A text that can be a name or a path.
pub fn text(value: &Value, part: &str) -> Option<String> {
    let text = value.get(part)?.as_str()?;
    let is_plain = text.len() <= MAX_NAME_BYTES && !text.chars().any(char::is_control);
    is_plain.then(|| text.to_owned())
}

fn drive(value: &Value) -> Option<Drive> {
    let device = text(value, "qdev").filter(|device| !device.is_empty())?;
    let node = text(value.get("inserted")?, "node-name")?;
    // A device with an id is told by that; of one that has a part for its medium, the path of the part.
    let (device, id) = match device.strip_prefix(PERIPHERAL) {
        Some(rest) => {
            let id = rest.split('/').next().map(str::to_owned);
            (device, id)
        }
        None if device.starts_with('/') => (device, None),
        None => (format!("{PERIPHERAL}{device}"), Some(device)),
    };
    let backend = text(value, "device").unwrap_or_default();
    Some(Drive { device, id, backend, node })
}

/// The dirty bitmaps of a node.
pub fn bitmaps(node: &Value) -> Vec<DirtyBitmap> {
    let bitmaps = node.get("dirty-bitmaps").and_then(Value::as_array);
    bitmaps.into_iter().flatten().filter_map(bitmap).collect()
}

/// None for one without a name: it belongs to a job or a filter.
fn bitmap(value: &Value) -> Option<DirtyBitmap> {
    let flag = |part: &str| value.get(part).and_then(Value::as_bool).unwrap_or_default();
    let number = |part: &str| value.get(part).and_then(Value::as_u64);
    Some(DirtyBitmap {
        name: text(value, "name").filter(|name| !name.is_empty())?,
        recording: flag("recording"),
        busy: flag("busy"),
        persistent: flag("persistent"),
        inconsistent: flag("inconsistent"),
        granularity: number("granularity").unwrap_or(u64::MAX),
        count: number("count").unwrap_or_default(),
    })
}
