//! What the XML of a domain says of it.

use crate::base::error::{Error, ErrorKind, Result};
use roxmltree::{Document, Node};
use std::path::PathBuf;

/// The longest definition that is read, in bytes.
const MAX_BYTES: usize = 4 << 20;
/// What the port of the guest agent is called.
const AGENT_PORT: &str = "org.qemu.guest_agent.0";

/// A domain, as its XML has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    /// The disks that can be written to and read by a backup, in its order.
    pub disks: Vec<DomainDisk>,
    /// What else keeps data that no snapshot has: "the file system \"share\"".
    pub uncovered: Vec<String>,
    /// It has a port for a guest agent.
    pub has_agent: bool,
    /// Where the variables of its firmware are.
    pub nvram: Option<PathBuf>,
    /// It has an emulated TPM.
    pub has_tpm: bool,
}

/// A disk of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainDisk {
    /// Its target, by which libvirt knows it: "vda".
    pub target: String,
    /// The format of its image: "qcow2".
    pub format: String,
    /// The file or device, if it is one of this host.
    pub path: Option<PathBuf>,
    /// What it is read from, and what that is based on: by which its image is known again.
    pub sources: Vec<String>,
}

impl DomainDisk {
    /// True if its image can hold a dirty bitmap that outlasts the machine, without which there is no
    /// checkpoint.
    pub fn has_checkpoints(&self) -> bool {
        self.format == "qcow2"
    }
}

impl Definition {
    /// What stands in an element of a definition: its name, say.
    ///
    /// # Errors
    /// `Corrupt` for what is no definition of a domain.
    pub fn text_in(xml: &str, element: &str) -> Result<Option<String>> {
        let document = parse(xml)?;
        let found = child(document.root_element(), element);
        Ok(found.and_then(|found| found.text()).map(str::to_owned))
    }

    /// Reads it.
    ///
    /// # Errors
    /// `Corrupt` for what is no definition of a domain.
    pub fn parse(xml: &str) -> Result<Self> {
        Self::of(parse(xml)?.root_element())
    }

    /// The same of an element.
    pub(super) fn of(root: Node<'_, '_>) -> Result<Self> {
        let Some(devices) = child(root, "devices") else {
            return Err(invalid("it has no devices"));
        };
        let (mut disks, mut uncovered) = (Vec::new(), Vec::new());
        let mut has_agent = false;
        for device in devices.children().filter(Node::is_element) {
            match device.tag_name().name() {
                "disk" => disk(device, &mut disks, &mut uncovered),
                "filesystem" => {
                    let name = attribute(device, "target", "dir").unwrap_or("?");
                    uncovered.push(format!("the shared folder \"{}\"", name.escape_debug()));
                }
                "hostdev" => {
                    let kind = device.attribute("type").unwrap_or("?");
                    uncovered.push(format!("a {} host device", kind.escape_debug()));
                }
                "channel" => {
                    has_agent |= attribute(device, "target", "name") == Some(AGENT_PORT);
                }
                _ => {}
            }
        }
        let nvram = child(root, "os").and_then(|os| child(os, "nvram")?.text());
        let nvram = nvram.map(|path| PathBuf::from(path.trim())).filter(|path| path.is_absolute());
        let tpm = child(devices, "tpm").and_then(|tpm| attribute(tpm, "backend", "type"));
        let has_tpm = tpm == Some("emulator");
        Ok(Self { disks, uncovered, has_agent, nvram, has_tpm })
    }
}

/// The elements of a definition.
///
/// # Errors
/// `Corrupt` for what is no definition of a domain.
pub(super) fn parse(xml: &str) -> Result<Document<'_>> {
    if xml.len() > MAX_BYTES {
        return Err(invalid("it is too long"));
    }
    let document = Document::parse(xml).map_err(|e| invalid(&e.to_string()))?;
    match document.root_element().tag_name().name() {
        "domain" => Ok(document),
        other => Err(invalid(&format!("its root element is \"{}\"", other.escape_debug()))),
    }
}

fn invalid(why: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("the definition of the domain is damaged: {why}"))
}

/// A text as the value of an attribute in XML.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '\'' => out.push_str("&apos;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

/// The first child of that name.
pub(super) fn child<'a, 'b>(node: Node<'a, 'b>, name: &str) -> Option<Node<'a, 'b>> {
    node.children().find(|child| child.is_element() && child.tag_name().name() == name)
}

/// An attribute of the first child of that name.
pub(super) fn attribute<'a>(node: Node<'a, '_>, element: &str, name: &str) -> Option<&'a str> {
    child(node, element)?.attribute(name)
}

fn disk(device: Node<'_, '_>, disks: &mut Vec<DomainDisk>, uncovered: &mut Vec<String>) {
    let target = attribute(device, "target", "dev").unwrap_or("?").to_owned();
    let kind = device.attribute("type").unwrap_or("file");
    let why = match device.attribute("device").unwrap_or("disk") {
        // What is inserted into them is not theirs.
        "cdrom" | "floppy" => return,
        "lun" => Some("it is a host device"),
        _ if child(device, "readonly").is_some() => return,
        _ if child(device, "transient").is_some() => Some("its writes are discarded"),
        _ if matches!(kind, "vhostuser" | "vhostvdpa" | "nvme" | "dir") => {
            Some("it cannot be backed up")
        }
        _ => None,
    };
    if let Some(why) = why {
        return uncovered.push(format!("the disk {} ({why})", target.escape_debug()));
    }
    let Some(source) = child(device, "source") else { return };
    let path = match kind {
        "file" => source.attribute("file"),
        "block" => source.attribute("dev"),
        _ => None,
    };
    // libvirt's default.
    let format = attribute(device, "driver", "type").unwrap_or("raw").to_owned();
    let path = path.map(PathBuf::from);
    disks.push(DomainDisk { target, format, path, sources: sources(device) });
}

/// What a disk is read from, the first of its chain first.
fn sources(device: Node<'_, '_>) -> Vec<String> {
    let mut found = Vec::new();
    let mut layer = Some(device);
    while let Some(node) = layer {
        if let Some(source) = child(node, "source") {
            let said = ["file", "dev", "dir", "protocol", "name", "pool", "volume"];
            let said = said.iter().filter_map(|name| source.attribute(*name));
            found.push(said.collect::<Vec<_>>().join(":"));
        }
        layer = child(node, "backingStore");
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const XML: &str = "<domain type='kvm'><name>web</name>
        <os><nvram template='/t'>/nvram/web_VARS.fd</nvram></os>
        <devices>
        <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/a &amp; b.qcow2'/>
          <backingStore type='file'><format type='raw'/><source file='/base'/></backingStore>
          <target dev='vda' bus='virtio'/></disk>
        <disk type='block' device='disk'><driver type='raw'/><source dev='/dev/vg/x'/>
          <target dev='vdb'/></disk>
        <disk type='network' device='disk'><driver type='raw'/><source protocol='rbd' name='p/i'/>
          <target dev='vdc'/></disk>
        <disk type='file' device='cdrom'><source file='/cd.iso'/><target dev='sda'/><readonly/></disk>
        <disk type='file' device='disk'><source file='/ro'/><target dev='vdd'/><readonly/></disk>
        <disk type='block' device='lun'><source dev='/dev/sdx'/><target dev='sdb'/></disk>
        <disk type='file' device='disk'><source file='/t'/><target dev='vde'/><transient/></disk>
        <filesystem type='mount'><source dir='/srv'/><target dir='share'/></filesystem>
        <hostdev mode='subsystem' type='pci'/>
        <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
        <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>
        </devices></domain>";

    #[test]
    fn a_definition_tells_what_a_snapshot_has_and_what_not() {
        let found = Definition::parse(XML).unwrap();
        let disk = |target: &str, format: &str, path: Option<&str>, sources: &[&str]| DomainDisk {
            target: target.into(),
            format: format.into(),
            path: path.map(Into::into),
            sources: sources.iter().map(|source| (*source).into()).collect(),
        };
        let disks = [
            disk("vda", "qcow2", Some("/a & b.qcow2"), &["/a & b.qcow2", "/base"]),
            disk("vdb", "raw", Some("/dev/vg/x"), &["/dev/vg/x"]),
            disk("vdc", "raw", None, &["rbd:p/i"]),
        ];
        assert_eq!(found.disks, disks);
        assert_eq!(found.disks.iter().filter(|disk| disk.has_checkpoints()).count(), 1);
        let uncovered = [
            "the disk sdb (it is a host device)",
            "the disk vde (its writes are discarded)",
            "the shared folder \"share\"",
            "a pci host device",
        ];
        assert_eq!(found.uncovered, uncovered);
        assert!(found.has_agent && found.has_tpm);
        assert_eq!(found.nvram, Some("/nvram/web_VARS.fd".into()));
    }

    #[test]
    fn what_is_no_definition_is_refused() {
        let bomb = "<!DOCTYPE d [<!ENTITY a 'aaaa'>]><domain><devices>&a;</devices></domain>";
        for xml in ["", "<domain>", "<network/>", "<domain/>", bomb] {
            assert_eq!(Definition::parse(xml).unwrap_err().kind(), ErrorKind::Corrupt, "{xml}");
        }
    }
}
