//! Domains of a libvirt of their own, whose QEMU stands still and writes what a test says.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that fails says where"
)]

use crate::guest::Console;
use crate::kit::*;
use crate::server::Server;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Command;

/// libvirtd, and a lab whose files its machines may use.
pub struct Host {
    server: Server,
    pub lab: Lab,
}

/// What is on each disk of a domain.
pub struct Domain {
    pub name: String,
    formats: Vec<String>,
    pub contents: Vec<Vec<u8>>,
}

impl Host {
    /// Starts it.
    ///
    /// # Errors
    /// Why there is none here.
    pub fn start() -> Result<Self, String> {
        root()?;
        let server = Server::start("libvirt", &[]).ok_or("no libvirt here")?;
        let lab = Lab::new();
        std::fs::set_permissions(lab.path(""), PermissionsExt::from_mode(0o711)).unwrap();
        Ok(Self { server, lab })
    }

    pub fn uri(&self) -> &str {
        &self.server.env()["LIBVIRT_DEFAULT_URI"]
    }

    /// Kills libvirtd, and starts it again.
    pub fn restart(&self) {
        self.server.tell("restart", &["libvirtd"]);
    }

    pub fn try_virsh(&self, args: &[&str]) -> Result<String, String> {
        try_tool("virsh", &[&["-q", "-c", self.uri()], args].concat())
    }

    #[track_caller]
    pub fn virsh(&self, args: &[&str]) -> String {
        self.try_virsh(args).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Runs imgsnap with this libvirt.
    pub fn run(&self, args: &[&str]) -> Run {
        self.lab.run(&[args, &["--connect", self.uri()]].concat())
    }

    pub fn command(&self, args: &[&str]) -> Command {
        self.lab.command(&[args, &["--connect", self.uri()]].concat())
    }

    /// A snapshot of a domain: what `--json` says of each disk.
    #[track_caller]
    pub fn snapshot(&self, domain: &Domain, more: &[&str]) -> Vec<serde_json::Value> {
        let uri = format!("libvirt:{}", domain.name);
        let run = self.run(&[&["snapshot", &uri, "--json"], more].concat()).done();
        let lines = String::from_utf8(run.out).unwrap();
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Defines a domain with a disk of each format, as many MiB long, and starts it; it stands still.
    #[track_caller]
    pub fn domain(&self, name: &str, disks: &[(&str, u64)]) -> Domain {
        let mut xml = String::new();
        for (index, (format, mib)) in disks.iter().enumerate() {
            let path = self.disk(name, index);
            tool("qemu-img", &["create", "-q", "-f", format, &path, &format!("{mib}M")]);
            let target = target(index);
            xml.push_str(&format!(
                "<disk type='file' device='disk'><driver name='qemu' type='{format}' cache='writethrough'/>\
                 <source file='{path}'/><target dev='{target}' bus='virtio'/></disk>"
            ));
        }
        self.define(name, 32, &xml);
        self.start_domain(name);
        let contents = disks.iter().map(|(_, mib)| vec![0; (mib * MIB) as usize]).collect();
        let formats = disks.iter().map(|(format, _)| (*format).to_owned()).collect();
        Domain { name: name.to_owned(), formats, contents }
    }

    fn define(&self, name: &str, mebibytes: u64, devices: &str) {
        let xml = format!(
            "<domain type='qemu'><name>{name}</name><memory unit='MiB'>{mebibytes}</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features>\
             <cpu mode='maximum'/><devices>{devices}</devices></domain>"
        );
        let file = self.lab.path(&format!("{name}.xml"));
        std::fs::write(&file, xml).unwrap();
        self.virsh(&["define", &file]);
    }

    /// Defines a domain with a Linux, of which there is a disk in `guest`, and a guest agent.
    #[track_caller]
    pub fn guest(&self, name: &str, guest: &str) -> Console {
        let (from, disk) = (format!("{guest}/disk.img"), self.disk(name, 0));
        tool("qemu-img", &["convert", "-O", "qcow2", &from, &disk]);
        let sockets = self.lab.path("sockets");
        std::fs::create_dir(&sockets).unwrap();
        std::fs::set_permissions(&sockets, PermissionsExt::from_mode(0o777)).unwrap();
        let devices = format!(
            "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{disk}'/>\
             <target dev='vda' bus='virtio'/></disk>\
             <serial type='unix'><source mode='bind' path='{sockets}/serial'/></serial>\
             <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
        );
        self.define(name, 256, &devices);
        self.boot(name)
    }

    /// Starts such a domain, and waits until it is up.
    #[track_caller]
    pub fn boot(&self, name: &str) -> Console {
        self.start_domain(name);
        let console = Console::new(UnixStream::connect(self.lab.path("sockets/serial")).unwrap());
        self.virsh(&["resume", name]);
        console.waits_for("GUEST-UP", 0);
        console
    }

    pub fn disk(&self, name: &str, index: usize) -> String {
        self.lab.path(&format!("{name}-{index}.img"))
    }

    pub fn start_domain(&self, name: &str) {
        let start = ["start", name, "--paused"];
        match self.try_virsh(&start) {
            // A libvirtd that was started again may wait for ever for a machine that it knew.
            Err(why) if why.contains("state change lock") => {
                println!("{why}");
                self.restart();
                assert!(wait_until(|| self.try_virsh(&start).is_ok()), "{why}");
            }
            other => drop(other.unwrap_or_else(|why| panic!("{why}"))),
        }
    }

    /// Lets the machine write. What fails is not told here: it is seen in what its disk has.
    #[track_caller]
    pub fn write(&self, domain: &mut Domain, disk: usize, byte: u8, at: u64, bytes: u64) {
        let device = format!("virtio-disk{disk}/virtio-backend");
        let line = format!("qemu-io -d {device} \"write -P {byte} {at} {bytes}\"");
        self.virsh(&["qemu-monitor-command", &domain.name, "--hmp", &line]);
        domain.contents[disk][at as usize..(at + bytes) as usize].fill(byte);
    }

    /// Sees that the newest snapshot of each disk is what the machine has.
    #[track_caller]
    pub fn newest_is(&self, domain: &Domain, what: &str) {
        for (index, wanted) in domain.contents.iter().enumerate() {
            let name = format!("{}-{}@latest", domain.name, target(index));
            let restored = self.lab.run(&["restore", &name, "-o", "-"]).done().out;
            assert!(restored.len() == wanted.len(), "{what}: {name} has {} bytes", restored.len());
            let other = restored.iter().zip(wanted).position(|(a, b)| a != b);
            assert_eq!(other, None, "{what}: {name} differs");
        }
    }

    /// Our checkpoints of a domain.
    pub fn checkpoints(&self, domain: &Domain) -> Vec<String> {
        let all = self.virsh(&["checkpoint-list", &domain.name, "--name"]);
        let ours = all.lines().map(str::trim).filter(|name| name.starts_with("imgsnap-"));
        ours.map(str::to_owned).collect()
    }

    /// Sees that nothing of ours is left but the checkpoint for the next snapshot.
    #[track_caller]
    pub fn is_tidy(&self, domain: &Domain, what: &str) {
        if !self.virsh(&["domstate", &domain.name]).contains("shut off") {
            let job = self.virsh(&["domjobinfo", &domain.name]);
            assert!(job.contains("None"), "{what}: {job}");
        }
        let has_checkpoints = domain.formats.iter().any(|format| format == "qcow2");
        assert!(self.checkpoints(domain).len() <= usize::from(has_checkpoints), "{what}");
        let scratch = names_in(&self.scratch());
        assert!(scratch.is_empty(), "{what}: {scratch:?}");
    }

    /// The folder for scratch files.
    pub fn scratch(&self) -> String {
        let place = self.lab.path("scratch");
        if !std::path::Path::new(&place).exists() {
            std::fs::create_dir(&place).unwrap();
            std::fs::set_permissions(&place, PermissionsExt::from_mode(0o711)).unwrap();
        }
        place
    }

    /// The process of a machine.
    pub fn qemu(&self, domain: &Domain) -> i32 {
        let (guest, disk) = (format!("guest={},", domain.name), self.disk(&domain.name, 0));
        let is_it = |process: &std::fs::DirEntry| {
            let said = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            let said = String::from_utf8_lossy(&said).into_owned();
            said.contains(&guest) && said.contains(&disk)
        };
        let found = std::fs::read_dir("/proc").unwrap().flatten().find(is_it).unwrap();
        found.file_name().to_str().unwrap().parse().unwrap()
    }
}

pub fn target(index: usize) -> String {
    format!("vd{}", char::from(b'a' + index as u8))
}
