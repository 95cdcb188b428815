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

/// What a definition may have.
const TOP: [&str; 30] = [
    "name",
    "uuid",
    "genid",
    "title",
    "description",
    "metadata",
    "memory",
    "currentMemory",
    "maxMemory",
    "vcpu",
    "vcpus",
    "cpu",
    "os",
    "features",
    "clock",
    "on_poweroff",
    "on_reboot",
    "on_crash",
    "pm",
    "devices",
    "resource",
    "cputune",
    "iothreads",
    "iothreadids",
    "memtune",
    "perf",
    "sysinfo",
    "memoryBacking",
    "idmap",
    "seclabel",
];
/// ... of how it boots.
const OS: [&str; 8] = ["type", "loader", "nvram", "boot", "bootmenu", "bios", "smbios", "firmware"];
/// ... of its memory.
const MEMORY: [&str; 5] = ["hugepages", "nosharepages", "locked", "discard", "allocation"];
/// ... among its devices; of others it depends on their type.
const DEVICES: [&str; 14] = [
    "emulator",
    "disk",
    "controller",
    "video",
    "sound",
    "watchdog",
    "memballoon",
    "rng",
    "tpm",
    "panic",
    "hub",
    "vsock",
    "iommu",
    "memory",
];
/// ... of a network interface.
const INTERFACE: [&str; 13] = [
    "mac",
    "source",
    "model",
    "address",
    "boot",
    "link",
    "mtu",
    "filterref",
    "virtualport",
    "alias",
    "bandwidth",
    "vlan",
    "coalesce",
];
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
    /// `Corrupt` for what is no definition; `Auth` for what is not done without trust, all of it in one
    /// message.
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
        // QEMU is told the UUID here, too, and libvirt refuses two.
        let entries = root.descendants().filter(|node| {
            node.tag_name().name() == "entry" && node.attribute("name") == Some("uuid")
        });
        let is_new = self.uuid.is_some();
        edits.extend(entries.filter(|_| is_new).map(|node| (node.range(), String::new())));
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
                // libvirt makes them anew: where they lead is of the host.
                "serial" | "console" | "parallel" | "channel" => {
                    edits.push((device.range(), port(device)));
                }
                "vsock" => {
                    if let Some(cid) = child(device, "cid") {
                        edits.push((cid.range(), "<cid auto='yes'/>".to_owned()));
                    }
                }
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
        for once in ["name", "uuid", "os", "devices", "genid"] {
            let named = |node: &Node<'_, '_>| node.tag_name().name() == once;
            if root.children().filter(|node| node.is_element() && named(node)).count() > 1 {
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    format!("the stored definition of the machine has more than one <{once}>"),
                ));
            }
        }
        for node in root.descendants().filter(|node| node.is_element() && !is_replaced(node)) {
            distrusted.extend(distrust(node));
        }
        if !self.is_trusted && !distrusted.is_empty() {
            distrusted.dedup();
            let what = format!(
                "the stored definition of the machine refers to the host: {}",
                distrusted.join(", ")
            );
            return Err(Error::new(ErrorKind::Auth, what)
                .hint(message!["if you trust whoever stored it, use ", Setting::TrustXml]));
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
                left_out.push(format!("the medium in {shown}"));
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

/// What an element says that may lead to something of the host. Known is what is harmless: all else is not.
fn distrust(node: Node<'_, '_>) -> Option<String> {
    let names = path_of(node);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    // What libvirt keeps for other programs says nothing to it.
    if names.get(1) == Some(&"metadata") {
        return None;
    }
    let what = node.tag_name().name();
    if node.tag_name().namespace().is_some() {
        return Some(format!("<{what}> of another XML namespace"));
    }
    let is_known = match names.as_slice() {
        [_] => true,
        [_, top] => TOP.contains(top),
        [_, "os", part] => OS.contains(part),
        [_, "devices", device] => is_known_device(device, node),
        [_, "devices", "interface", part] => INTERFACE.contains(part),
        [_, "devices", "tpm", "backend", _] => false,
        [_, "sysinfo", "entry"] => false,
        [_, "memoryBacking", part] => MEMORY.contains(part),
        _ => true,
    };
    if !is_known {
        let kind = node.attribute("type").map_or(String::new(), |kind| format!(" {kind}"));
        return Some(format!("<{what}>{}", kind.escape_debug()));
    }
    // As libvirt reads it: comments in between are nothing.
    let text: String =
        node.children().filter_map(|part| part.text().filter(|_| part.is_text())).collect();
    let text = text.trim();
    if matches!(what, "emulator" | "loader" | "nvram") {
        return (!is_packaged(text)).then(|| format!("<{what}> {}", text.escape_debug()));
    }
    if what == "backend" && names.get(2) == Some(&"rng") {
        let is_random = text.is_empty() || RANDOM.contains(&text);
        return (!is_random).then(|| format!("<{what}> {}", text.escape_debug()));
    }
    let attributes = node.attributes().map(|attribute| attribute.value());
    let path = attributes.chain([text]).find(|text| text.starts_with('/'))?;
    Some(format!("<{what}> {}", path.escape_debug()))
}

/// The names of an element and of those around it, the outermost first.
fn path_of(node: Node<'_, '_>) -> Vec<String> {
    let mut names: Vec<String> = node
        .ancestors()
        .filter(Node::is_element)
        .map(|above| above.tag_name().name().to_owned())
        .collect();
    names.reverse();
    names
}

/// True for a device that is of the machine alone.
fn is_known_device(device: &str, node: Node<'_, '_>) -> bool {
    let kind = node.attribute("type").unwrap_or_default();
    match device {
        "interface" => matches!(kind, "network" | "bridge" | "user"),
        "input" => matches!(kind, "mouse" | "tablet" | "keyboard"),
        "graphics" => matches!(kind, "vnc" | "spice") && node.attribute("socket").is_none(),
        "audio" => matches!(kind, "none" | "spice"),
        "redirdev" => kind == "spicevmc",
        other => DEVICES.contains(&other),
    }
}

fn is_packaged(path: &str) -> bool {
    let is_clean = !Path::new(path).components().any(|part| part.as_os_str() == "..");
    is_clean && PACKAGED.iter().any(|start| path.starts_with(start))
}

/// A port of the machine, which leads to what libvirt chooses.
fn port(device: Node<'_, '_>) -> String {
    let what = device.tag_name().name();
    let Some(target) = child(device, "target") else { return String::new() };
    let name = target.attribute("name");
    let kind = match (what, name, device.attribute("type")) {
        ("channel", Some(_), Some("spicevmc")) => "spicevmc",
        ("channel", Some(_), _) => "unix",
        ("channel", None, _) => return String::new(),
        _ => "pty",
    };
    let document = device.document();
    let target = document.input_text().get(target.range()).unwrap_or_default();
    format!("<{what} type='{kind}'>{target}</{what}>")
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
            "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>web</name>\
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
        assert_eq!(left_out, ["the medium in sda"]);
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
            ("<hostdev mode='subsystem' type='pci'/>", "<hostdev> pci"),
            (
                "<filesystem type='mount'><source dir='/etc'/></filesystem>",
                "<filesystem> mount, <source> /etc",
            ),
            (
                "<interface type='ethernet'><script path='tmp/x'/></interface>",
                "<interface> ethernet, <script>",
            ),
            ("<interface type='network'><script path='x'/></interface>", "<script>"),
            ("<interface type='hostdev'/>", "<interface> hostdev"),
            ("<input type='evdev'><source dev='x'/></input>", "<input> evdev"),
            ("<smartcard mode='host'/>", "<smartcard>"),
            (
                "<tpm><backend type='emulator'><encryption secret='x'/></backend></tpm>",
                "<encryption>",
            ),
            ("<rng><backend model='random'>/etc/shadow</backend></rng>", "<backend> /etc/shadow"),
            ("<rng><backend model='random'>etc/shadow</backend></rng>", "<backend> etc/shadow"),
            ("<graphics type='spice' socket='x'/>", "<graphics> spice"),
            ("<x:disk xmlns:x='u'/>", "<disk> of another XML namespace"),
            ("<emulator>/tmp/qemu</emulator>", "<emulator> /tmp/qemu"),
            (
                "<emulator>/usr/share/qemu<!-- -->/../../x</emulator>",
                "<emulator> /usr/share/qemu/../../x",
            ),
        ] {
            let error = remake(false, false).of(&xml(devices)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Auth, "{devices}");
            assert!(error.to_string().contains(named), "{error}");
            assert!(remake(true, false).of(&xml(devices)).is_ok(), "{devices}");
        }
        for (with, named) in [
            (
                "<qemu:commandline><qemu:arg value='-x'/></qemu:commandline>",
                "<commandline> of another XML namespace",
            ),
            ("<sysinfo type='fwcfg'><entry name='x' file='etc/shadow'/></sysinfo>", "<entry>"),
            ("<launchSecurity type='sev'/>", "<launchSecurity>"),
            ("<memoryBacking><source type='file'/></memoryBacking>", "<source> file"),
        ] {
            let with = format!("{with}</domain>");
            let error = remake(false, false).of(&xml("").replace("</domain>", &with)).unwrap_err();
            assert!(error.to_string().contains(named), "{error}");
        }
        let kernel = xml("").replace("<os>", "<os><kernel>boot/x</kernel>");
        assert!(remake(false, false).of(&kernel).unwrap_err().to_string().contains("<kernel>"));
        let two = xml("").replace("</domain>", "<devices/></domain>");
        assert_eq!(remake(true, false).of(&two).unwrap_err().kind(), ErrorKind::Corrupt);
        // Where its ports lead is not taken over, so it need not be trusted.
        let port = "<serial type='file'><source path='etc/cron.d/x'/><target port='0'/></serial>";
        let (made, _) = remake(false, false).of(&xml(port)).unwrap();
        assert!(made.contains("<serial type='pty'><target port='0'/></serial>"), "{made}");
        assert!(!made.contains("cron") && !made.contains("channel/x"), "{made}");
        assert!(remake(true, true).of("<network/>").is_err());
    }
}
