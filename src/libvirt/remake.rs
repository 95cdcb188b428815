//! Another definition from one that was stored: of a machine with another name, other disks, and an identity
//! of its own. What was stored may come from anybody, and libvirt does as root what it says: whatever leads
//! to files, programs or devices of the host is refused, unless the user answers for it.

use super::definition::{attribute, child, escaped, parse};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::message::{Setting, message};
use roxmltree::Node;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// A machine that is made anew.
#[derive(Debug, Clone)]
pub struct Remake {
    /// Its name.
    pub name: String,
    /// Its UUID; none leaves it as it was, and its MAC addresses.
    pub uuid: Option<Uuid>,
    /// Its disks, by their targets: where each is, and its format.
    pub disks: BTreeMap<String, (PathBuf, String)>,
    /// Where the variables of its firmware are, if they were stored.
    pub nvram: Option<PathBuf>,
    /// The user answers for what it says.
    pub is_trusted: bool,
}

/// The namespace of what QEMU is told past libvirt.
const QEMU: &str = "http://libvirt.org/schemas/domain/qemu/1.0";
/// Where programs and files of QEMU's packages are: what is there the host has put there.
const PACKAGED: [&str; 8] = [
    "/usr/bin/qemu-system-",
    "/usr/bin/kvm",
    "/usr/libexec/qemu-kvm",
    "/usr/share/OVMF/",
    "/usr/share/AAVMF/",
    "/usr/share/edk2",
    "/usr/share/qemu",
    "/usr/share/seabios/",
];
/// Sources of entropy.
const RANDOM: [&str; 3] = ["/dev/urandom", "/dev/random", "/dev/hwrng"];

impl Remake {
    /// The new definition, and what the machine had that it has not: "the CD in sda".
    ///
    /// # Errors
    /// `Corrupt` for what is no definition; `Mismatch` if it has a disk that is not among the new ones;
    /// `Auth` for what is not done without trust, all of it in one message.
    pub fn of(&self, xml: &str) -> Result<(String, Vec<String>)> {
        let document = parse(xml)?;
        let root = document.root_element();
        let mut edits: Vec<(Range<usize>, String)> = Vec::new();
        let (mut distrusted, mut left_out) = (Vec::new(), Vec::new());
        let name = child(root, "name").ok_or_else(|| no("name"))?;
        edits.push((name.range(), format!("<name>{}</name>", escaped(&self.name))));
        if let Some(uuid) = self.uuid {
            if let Some(old) = child(root, "uuid") {
                edits.push((old.range(), format!("<uuid>{uuid}</uuid>")));
            }
            // QEMU tells Windows by it that it was copied.
            if let Some(old) = child(root, "genid") {
                edits.push((old.range(), format!("<genid>{}</genid>", Uuid::new_v4())));
            }
        }
        // Labels name the old one.
        let labels = root.children().filter(|node| node.tag_name().name() == "seclabel");
        edits.extend(labels.map(|node| (node.range(), String::new())));
        if let Some(os) = child(root, "os")
            && let Some(nvram) = child(os, "nvram")
        {
            match &self.nvram {
                Some(path) => edits.push((nvram.range(), element("nvram", path))),
                // It is made from the template of the firmware.
                None => edits.push((nvram.range(), String::new())),
            }
        }
        let devices = child(root, "devices").ok_or_else(|| no("devices"))?;
        for device in devices.children().filter(Node::is_element) {
            match device.tag_name().name() {
                "disk" => self.disk(device, &mut edits, &mut left_out)?,
                "interface" if self.uuid.is_some() => {
                    if let Some(mac) = child(device, "mac") {
                        edits.push((mac.range(), String::new()));
                    }
                }
                _ => {}
            }
        }
        let is_replaced = |node: &Node<'_, '_>| {
            let range = node.range();
            edits.iter().any(|(edit, _)| edit.start <= range.start && range.end <= edit.end)
        };
        for node in root.descendants().filter(|node| node.is_element() && !is_replaced(node)) {
            distrusted.extend(distrust(node));
        }
        if !self.is_trusted && !distrusted.is_empty() {
            distrusted.dedup();
            let what = format!(
                "the stored definition of the machine reaches into the host: {}",
                distrusted.join(", ")
            );
            return Err(Error::new(ErrorKind::Auth, what)
                .hint(message!["if you know who stored it, use ", Setting::TrustXml]));
        }
        Ok((edited(xml, edits), left_out))
    }

    /// A disk gets its new file; a CD is taken out.
    fn disk(
        &self,
        device: Node<'_, '_>,
        edits: &mut Vec<(Range<usize>, String)>,
        left_out: &mut Vec<String>,
    ) -> Result<()> {
        let target = attribute(device, "target", "dev").unwrap_or("?");
        let source = child(device, "source");
        let shown = target.escape_debug();
        if matches!(device.attribute("device"), Some("cdrom" | "floppy")) {
            if let Some(source) = source {
                edits.push((source.range(), String::new()));
                left_out.push(format!("what is inserted in {shown}"));
            }
            return Ok(());
        }
        let Some((path, format)) = self.disks.get(target) else {
            if source.is_none() {
                return Ok(());
            }
            left_out.push(format!("the disk {shown}"));
            edits.push((device.range(), String::new()));
            return Ok(());
        };
        // As a file, whatever it was; libvirt finds its chain itself.
        let mut text = String::from("<disk type='file' device='disk'>");
        text.push_str(&format!("<driver name='qemu' type='{}'/>", escaped(format)));
        text.push_str(&format!("<source file='{}'/>", escaped(&path.to_string_lossy())));
        let kept = ["target", "boot", "address", "serial", "wwn", "iotune", "alias"];
        let document = device.document();
        for part in device.children().filter(|part| kept.contains(&part.tag_name().name())) {
            text.push_str(document.input_text().get(part.range()).unwrap_or_default());
        }
        text.push_str("</disk>");
        edits.push((device.range(), text));
        Ok(())
    }
}

/// What an element says that leads to something of the host.
fn distrust(node: Node<'_, '_>) -> Option<String> {
    let name = node.tag_name();
    let what = name.name();
    if name.namespace() == Some(QEMU) {
        return Some(format!("<qemu:{what}>"));
    }
    // What libvirt keeps for other programs says nothing to it.
    if node.ancestors().any(|above| above.tag_name().name() == "metadata") {
        return None;
    }
    match what {
        "hostdev" | "filesystem" | "shmem" => return Some(format!("<{what}>")),
        "backend" if node.attribute("type") == Some("passthrough") => {
            return Some("a TPM of the host".to_owned());
        }
        _ => {}
    }
    let texts = node.attributes().map(|attribute| attribute.value().to_owned());
    let text = node.children().filter(Node::is_text).filter_map(|text| text.text());
    let mut texts = texts.chain(text.map(|text| text.trim().to_owned()));
    let path = texts.find(|text| text.starts_with('/') && !is_harmless(node, text))?;
    Some(format!("<{what}> {}", path.escape_debug()))
}

/// True for a path that libvirt makes itself, or that a package of the host has put there.
fn is_harmless(node: Node<'_, '_>, path: &str) -> bool {
    let clean = !Path::new(path).components().any(|part| part.as_os_str() == "..");
    let begins = |starts: &[&str]| starts.iter().any(|start| path.starts_with(start));
    let what = node.tag_name().name();
    clean
        && match what {
            "emulator" | "loader" | "nvram" => begins(&PACKAGED),
            "backend" => RANDOM.contains(&path),
            "source" => {
                let above = node.parent().map(|above| above.tag_name().name());
                let is_port = matches!(above, Some("channel" | "serial" | "console"));
                is_port && begins(&["/var/lib/libvirt/qemu/", "/run/libvirt/qemu/", "/dev/pts/"])
            }
            _ => false,
        }
}

fn no(element: &str) -> Error {
    let what = format!("the stored definition of the machine has no {element}");
    Error::new(ErrorKind::Corrupt, what)
}

fn element(name: &str, path: &Path) -> String {
    format!("<{name}>{}</{name}>", escaped(&path.to_string_lossy()))
}

/// A text in which ranges that do not overlap are replaced.
fn edited(text: &str, mut edits: Vec<(Range<usize>, String)>) -> String {
    edits.sort_by_key(|(range, _)| range.start);
    let (mut out, mut at) = (String::new(), 0);
    for (range, new) in edits {
        out.push_str(text.get(at..range.start).unwrap_or_default());
        out.push_str(&new);
        at = range.end;
    }
    out.push_str(text.get(at..).unwrap_or_default());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libvirt::Definition;

    fn xml(devices: &str) -> String {
        format!(
            "<domain type='kvm' xmlns:qemu='{QEMU}'><name>web</name>\
             <uuid>0d5d6bf5-e035-4ecf-b540-c14b6cac2b1a</uuid>\
             <os><type>hvm</type><loader readonly='yes'>/usr/share/OVMF/OVMF_CODE.fd</loader>\
             <nvram template='/usr/share/OVMF/OVMF_VARS.fd'>/var/lib/libvirt/qemu/nvram/web.fd</nvram></os>\
             <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>\
             <disk type='block' device='disk'><driver type='raw'/><source dev='/dev/vg/web'/>\
             <target dev='vda' bus='virtio'/><boot order='1'/></disk>\
             <disk type='file' device='cdrom'><source file='/iso'/><target dev='sda'/><readonly/></disk>\
             <interface type='network'><mac address='52:54:00:00:00:01'/>\
             <source network='default'/></interface>\
             <channel type='unix'><source mode='bind' path='/var/lib/libvirt/qemu/channel/x'/>\
             <target type='virtio' name='org.qemu.guest_agent.0'/></channel>\
             <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>\
             {devices}</devices></domain>"
        )
    }

    fn remake(is_trusted: bool, is_same: bool) -> Remake {
        let disk = ("vda".to_owned(), (PathBuf::from("/pool/it's.qcow2"), "qcow2".to_owned()));
        Remake {
            name: "web<2>".into(),
            uuid: (!is_same).then(|| Uuid::from_u128(7)),
            disks: BTreeMap::from([disk]),
            nvram: Some("/pool/web2.fd".into()),
            is_trusted,
        }
    }

    #[test]
    fn it_has_a_name_disks_and_an_identity_of_its_own() {
        let (made, left_out) = remake(false, false).of(&xml("")).unwrap();
        assert_eq!(left_out, ["what is inserted in sda"]);
        let definition = Definition::parse(&made).unwrap();
        assert_eq!(definition.disks.len(), 1);
        assert_eq!(definition.disks[0].path, Some("/pool/it's.qcow2".into()));
        assert_eq!(definition.nvram, Some("/pool/web2.fd".into()));
        for gone in ["/dev/vg/web", "52:54", "0d5d6bf5", "/iso", "nvram/web.fd"] {
            assert!(!made.contains(gone), "{gone}: {made}");
        }
        let kept = [
            "<name>web&lt;2></name>",
            "<boot order='1'/>",
            "network='default'",
            "0000-000000000007",
        ];
        for part in kept {
            assert!(made.contains(part), "{part}: {made}");
        }
        let (same, _) = remake(false, true).of(&xml("")).unwrap();
        assert!(same.contains("52:54:00:00:00:01") && same.contains("0d5d6bf5"));
    }

    #[test]
    fn what_reaches_into_the_host_is_refused() {
        for (devices, named) in [
            ("<hostdev mode='subsystem'/>", "<hostdev>"),
            (
                "<filesystem type='mount'><source dir='/etc'/></filesystem>",
                "<filesystem>, <source> /etc",
            ),
            (
                "<serial type='file'><source path='/etc/cron.d/x'/></serial>",
                "<source> /etc/cron.d/x",
            ),
            ("<interface type='ethernet'><script path='/tmp/x'/></interface>", "<script> /tmp/x"),
            ("<tpm><backend type='passthrough'/></tpm>", "a TPM of the host"),
            ("<rng><backend model='random'>/etc/shadow</backend></rng>", "<backend> /etc/shadow"),
            (
                "<channel type='unix'><source path='/var/lib/libvirt/qemu/../../x'/></channel>",
                "<source> /var/lib/libvirt/qemu/../../x",
            ),
            ("<emulator>/tmp/qemu</emulator>", "<emulator> /tmp/qemu"),
        ] {
            let error = remake(false, false).of(&xml(devices)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Auth, "{devices}");
            assert!(error.to_string().contains(named), "{error}");
            assert!(remake(true, false).of(&xml(devices)).is_ok(), "{devices}");
        }
        let with = "<qemu:commandline><qemu:arg value='-x'/></qemu:commandline></domain>";
        let error = remake(false, false).of(&xml("").replace("</domain>", with)).unwrap_err();
        assert!(error.to_string().contains("<qemu:commandline>, <qemu:arg>"), "{error}");
        assert!(remake(true, true).of("<network/>").is_err());
    }
}
