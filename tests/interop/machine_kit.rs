//! A machine in QEMU without an operating system: it is there in less than a second, and a second monitor makes
//! its disks do what a guest would. The program is `qemu-system-x86_64`, or what IMGSNAP_QEMU names, with the data
//! that IMGSNAP_QEMU_DATA names.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;
use imgsnap::image::Source;
use imgsnap::image::nbd::{NbdDisk, NbdOptions, NbdUri};
use imgsnap::machine::{
    Fleece, FleeceOptions, FleecedDisk, Machine, MachineDisk, Member, Qmp, RunState, bitmap_name,
};
use imgsnap::{Context, Error, Event, Observer};
use nix::sys::signal::Signal;
use nix::sys::socket::sockopt::PeerCredentials;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use uuid::Uuid;

/// A bit of a bitmap is of so many bytes.
pub const CLUSTER: u64 = 64 << 10;

/// How a disk is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bus {
    /// virtio-blk with `-drive`, whose node has no name of its own.
    Drive,
    /// virtio-blk.
    Virtio,
    /// virtio-blk with a thread of its own.
    Threaded,
    /// A SCSI disk.
    Scsi,
    /// An IDE disk.
    Ide,
}

/// A disk of a machine.
pub struct VmDisk {
    /// The file in which it lies.
    pub path: String,
    /// What is on it: the guest is we.
    pub content: Vec<u8>,
    /// Its device, as QOM names it.
    device: String,
}

/// A machine that runs, ended by force at the end.
pub struct Vm {
    process: Started,
    /// The path of the QMP socket that is ours.
    pub socket: PathBuf,
    /// The monitor by which we are its guest.
    guest: Qmp,
    pub disks: Vec<VmDisk>,
}

/// The version of QEMU, or why there is none.
pub fn qemu_version() -> Result<(u64, u64), String> {
    let output = output(qemu()?.arg("--version")).map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let numbers = text.split("version ").nth(1).unwrap_or_default();
    let mut numbers = numbers.split(['.', ' ']).filter_map(|number| number.parse().ok());
    numbers.next().zip(numbers.next()).ok_or(format!("QEMU says {text}"))
}

fn qemu() -> Result<Command, String> {
    let mut command = match std::env::var_os("IMGSNAP_QEMU") {
        Some(program) => Command::new(program),
        None => tool_command("qemu-system-x86_64", &[])?,
    };
    if let Some(data) = std::env::var_os("IMGSNAP_QEMU_DATA") {
        command.arg("-L").arg(data);
    }
    Ok(command)
}

impl VmDisk {
    /// An empty one.
    pub fn new(path: String, format: &str, mebibytes: u64) -> Result<Self, String> {
        match format {
            "raw" => make(&path, mebibytes * MIB),
            _ => {
                let size = format!("{mebibytes}M");
                try_tool("qemu-img", &["create", "-q", "-f", format, &path, &size])?;
            }
        }
        let content = vec![0; usize::try_from(mebibytes * MIB).unwrap()];
        Ok(Self { path, content, device: String::new() })
    }
}

impl Vm {
    /// Starts one with new disks of that many MiB: format and bus.
    pub fn start(lab: &Lab, mebibytes: u64, disks: &[(&str, Bus)]) -> Result<Self, String> {
        let mut made = Vec::new();
        for (index, (format, _)) in disks.iter().enumerate() {
            made.push(VmDisk::new(lab.path(&format!("disk{index}.{format}")), format, mebibytes)?);
        }
        Self::start_with(lab, disks, made, &[])
    }

    /// Starts one with disks that are there, and more arguments. Their ids are `vd0` and so on.
    pub fn start_with(
        lab: &Lab,
        disks: &[(&str, Bus)],
        mut made: Vec<VmDisk>,
        more: &[&str],
    ) -> Result<Self, String> {
        let mut command = qemu()?;
        // What it can do decides what is tried.
        qemu_version()?;
        let (socket, guest) = (lab.path("qmp"), lab.path("guest"));
        let both = [&socket, &guest];
        both.iter().for_each(|path| drop(std::fs::remove_file(path)));
        // A processor that halts at once: it takes no time from others.
        let (firmware, mut halt) = (lab.path("halt.bin"), vec![0; 64 << 10]);
        halt[0xfff0..0xfff4].copy_from_slice(b"\xfa\xf4\xeb\xfd");
        make(&firmware, 64 << 10);
        put(&firmware, 0, &halt);
        command.args(["-accel", "tcg", "-m", "32", "-nodefaults", "-display", "none"]);
        command.arg("-bios").arg(&firmware);
        command.args(["-device", "virtio-scsi-pci,id=scsi", "-device", "ich9-ahci,id=ahci"]);
        for path in both {
            command.arg("-qmp").arg(format!("unix:{path},server=on,wait=off"));
        }
        for (index, ((format, bus), disk)) in disks.iter().zip(&mut made).enumerate() {
            let (id, node, path) = (format!("vd{index}"), format!("d{index}"), &disk.path);
            let part = if matches!(bus, Bus::Scsi | Bus::Ide) { "" } else { "/virtio-backend" };
            disk.device = format!("/machine/peripheral/{id}{part}");
            let (option, drive) = match bus {
                Bus::Drive => ("-drive", format!("if=none,id={node},format={format},file={path}")),
                _ => {
                    let file = format!("file.driver=file,file.filename={path}");
                    ("-blockdev", format!("driver={format},node-name={node},{file}"))
                }
            };
            command.arg(option).arg(drive);
            let device = match bus {
                Bus::Drive | Bus::Virtio => "virtio-blk".to_owned(),
                Bus::Threaded => {
                    command.arg("-object").arg(format!("iothread,id=thread{index}"));
                    format!("virtio-blk,iothread=thread{index}")
                }
                Bus::Scsi => "scsi-hd".to_owned(),
                Bus::Ide => format!("ide-hd,bus=ahci.{index}"),
            };
            command.arg("-device").arg(format!("{device},id={id},drive={node}"));
        }
        command.args(more);
        let mut process = Started::spawn(command);
        let mut connected = None;
        wait_until(|| {
            connected = Qmp::connect(guest.as_ref()).ok();
            connected.is_some() || process.is_over()
        });
        match connected {
            Some(guest) => Ok(Self { process, socket: socket.into(), guest, disks: made }),
            None => panic!("QEMU does not start: {}", process.wait().err),
        }
    }

    /// Ends it by force and starts it again with the same disks; or lets it end by itself.
    pub fn again(self, lab: &Lab, disks: &[(&str, Bus)], is_killed: bool) -> Self {
        let Self { process, mut guest, disks: made, .. } = self;
        match is_killed {
            true => process.signal(Signal::SIGKILL),
            false => drop(guest.execute("quit", json!({}))),
        }
        process.wait();
        Self::start_with(lab, disks, made, &[]).unwrap()
    }

    pub fn kill(&self) {
        self.process.signal(Signal::SIGKILL);
    }

    /// Waits until it has ended.
    pub fn ends(&self) {
        assert!(wait_until(|| matches!(state_of(self.process.id()), None | Some('Z'))));
    }

    /// What is on its disks.
    pub fn contents(&self) -> Vec<Vec<u8>> {
        self.disks.iter().map(|disk| disk.content.clone()).collect()
    }

    pub fn machine(&self) -> Machine {
        Machine::connect(&self.socket, &Context::silent()).unwrap()
    }

    /// Asks it by the guest's monitor.
    #[track_caller]
    pub fn query(&mut self, command: &str, arguments: Value) -> Value {
        self.guest.execute(command, arguments).unwrap_or_else(|e| panic!("{e}"))
    }

    /// The guest does something with a disk: a command of qemu-io.
    #[track_caller]
    pub fn io(&mut self, disk: usize, command: &str) -> String {
        let line = format!("qemu-io -d {} \"{command}\"", self.disks[disk].device);
        let said = self.query("human-monitor-command", json!({ "command-line": line }));
        said.as_str().unwrap().to_owned()
    }

    /// The guest writes, which must succeed.
    #[track_caller]
    pub fn write(&mut self, disk: usize, value: u8, offset: u64, bytes: u64) {
        let said = self.io(disk, &format!("write -P {value} {offset} {bytes}"));
        assert!(said.is_empty() || said.contains("wrote"), "{said}");
        let range = usize::try_from(offset).unwrap()..usize::try_from(offset + bytes).unwrap();
        self.disks[disk].content[range].fill(value);
    }

    /// The guest reads what it wrote.
    #[track_caller]
    pub fn reads_back(&mut self, disk: usize) {
        let content = self.disks[disk].content.clone();
        // What it says goes into a pipe that nobody empties: in as few commands as there are values.
        let mut at = 0;
        for run in content.chunk_by(|one, other| one == other) {
            let said = self.io(disk, &format!("read -P {} {at} {}", run[0], run.len()));
            assert!(!said.contains("failed"), "disk {disk} at {at}: {said}");
            at += run.len();
        }
    }

    /// Names of the bitmaps of a disk, and whether they record.
    pub fn bitmaps(&mut self, disk: &MachineDisk) -> Vec<(String, bool)> {
        let nodes = self.query("query-named-block-nodes", json!({ "flat": true }));
        let is = |node: &&Value| node["node-name"] == disk.node.as_str();
        let node = nodes.as_array().unwrap().iter().find(is).unwrap();
        let bitmaps = node["dirty-bitmaps"].as_array().cloned().unwrap_or_default();
        let bitmap = |value: &Value| {
            let recording = value["recording"].as_bool().unwrap();
            Some((value.get("name")?.as_str()?.to_owned(), recording))
        };
        let mut bitmaps: Vec<_> = bitmaps.iter().filter_map(bitmap).collect();
        bitmaps.sort();
        bitmaps
    }

    /// Nothing of ours is in it but bitmaps; and it runs.
    #[track_caller]
    pub fn is_clean(&mut self) {
        let nodes = self.query("query-named-block-nodes", json!({ "flat": true })).to_string();
        let exports = self.query("query-block-exports", json!({})).to_string();
        let files = self.query("query-fdsets", json!({})).to_string();
        assert_eq!((exports.as_str(), files.as_str()), ("[]", "[]"));
        assert!(!nodes.contains("\"imgsnap-c-") && !nodes.contains("\"imgsnap-t-"), "{nodes}");
        assert!(!nodes.contains("\"imgsnap-s-"), "{nodes}");
        let block = self.query("query-block", json!({})).to_string();
        assert!(!block.contains("imgsnap-c-"), "{block}");
        // Nobody could start one otherwise.
        let path = self.socket.with_extension("nbd");
        let address = json!({ "type": "unix", "data": { "path": path } });
        self.query("nbd-server-start", json!({ "addr": address }));
        self.query("nbd-server-stop", json!({}));
        assert_eq!(self.status(), "running");
    }

    /// Its NBD server exports something of somebody else, or no more.
    pub fn serves_others(&mut self, does: bool) {
        if !does {
            self.query("nbd-server-stop", json!({}));
            return drop(self.query("blockdev-del", json!({ "node-name": "others" })));
        }
        let path = self.socket.with_file_name("others");
        let address = json!({ "type": "unix", "data": { "path": path } });
        self.query("nbd-server-start", json!({ "addr": address }));
        let node = json!({ "driver": "null-co", "node-name": "others", "size": 512 });
        self.query("blockdev-add", node);
        let export = json!({ "type": "nbd", "id": "others", "node-name": "others" });
        self.query("block-export-add", export);
    }

    pub fn status(&mut self) -> String {
        self.query("query-status", json!({}))["status"].as_str().unwrap().to_owned()
    }
}

/// What a repository knows of a disk.
pub struct Image {
    id: Uuid,
    /// Newest first.
    known: Vec<Uuid>,
    contents: HashMap<Uuid, Vec<u8>>,
}

impl Image {
    pub fn several(count: usize) -> Vec<Self> {
        let new = || Self { id: Uuid::new_v4(), known: Vec::new(), contents: HashMap::new() };
        std::iter::repeat_with(new).take(count).collect()
    }

    /// A snapshot of it stands.
    pub fn committed(&mut self, member: &Member, content: &[u8]) {
        self.known.insert(0, member.snapshot);
        self.contents.insert(member.snapshot, content.to_owned());
    }
}

pub fn options(lab: &Lab) -> FleeceOptions {
    let scratch_dir = Path::new(&lab.path("scratch")).to_owned();
    std::fs::create_dir_all(&scratch_dir).unwrap();
    // Nothing here is to fail because the machine is busy.
    let (cbw_timeout, max_stall) = (Duration::from_secs(60), Duration::from_secs(60));
    FleeceOptions { scratch_dir, cbw_timeout, max_stall, may_stop: true }
}

/// Members for all disks of a machine, as they are now.
pub fn members(machine: &mut Machine, images: &[Image]) -> Vec<Member> {
    members_of(machine.disks().unwrap(), images)
}

pub fn members_of(disks: Vec<MachineDisk>, images: &[Image]) -> Vec<Member> {
    assert_eq!(disks.len(), images.len(), "{disks:#?}");
    let member = |(image, disk): (&Image, MachineDisk)| Member {
        disk,
        image: image.id,
        known: image.known.clone(),
        snapshot: Uuid::new_v4(),
        wants_bitmap: true,
    };
    images.iter().zip(disks).map(member).collect()
}

pub fn prepare(vm: &Vm, lab: &Lab, images: &[Image]) -> (Fleece, Vec<Member>) {
    let context = Context::silent();
    let mut machine = vm.machine();
    machine.recover(&context).unwrap();
    let members = members(&mut machine, images);
    let fleece = machine.prepare(members.clone(), options(lab), &context);
    (fleece.unwrap_or_else(|e| panic!("{e}")), members)
}

#[track_caller]
pub fn insert(fleece: &mut Fleece) {
    let inserted = fleece.insert(&mut || Ok(()), &mut || {}, &Context::silent());
    let inserted = inserted.unwrap_or_else(|e| panic!("{e}"));
    assert!(inserted.at_one_time && inserted.state == RunState::Running, "{inserted:?}");
}

/// Who had it was killed: its descriptors are closed, and nothing else happens.
pub fn killed(fleece: Fleece) {
    let socket = fleece.socket();
    nix::sys::socket::shutdown(socket.as_raw_fd(), nix::sys::socket::Shutdown::Both).unwrap();
    let machine = nix::sys::socket::getsockopt(&socket, PeerCredentials).unwrap().pid();
    std::mem::forget(fleece);
    // What locks the machine is closed, too.
    let folder = PathBuf::from(format!("/proc/{machine}"));
    for fd in names_in("/proc/self/fd") {
        if std::fs::read_link(format!("/proc/self/fd/{fd}")).is_ok_and(|place| place == folder) {
            nix::unistd::close(fd.parse::<i32>().unwrap()).unwrap();
        }
    }
}

/// What an export has is `content`, and what a bitmap leaves out has not changed since its snapshot. Gives the
/// bytes that the bitmap calls dirty; none without one.
#[track_caller]
pub fn is_right(image: &Image, disk: &FleecedDisk, content: &[u8]) -> Option<u64> {
    let bitmap = disk.since.as_ref().ok().map(|(_, name)| name.as_str());
    let (read, dirty) = read(&disk.uri, bitmap).unwrap_or_else(|e| panic!("{e}"));
    assert!(read == content, "the export is not what the disk was");
    let (since, _) = disk.since.as_ref().ok()?;
    let mut patched = image.contents[since].clone();
    for (offset, bytes) in &dirty {
        let range = usize::try_from(*offset).unwrap()..usize::try_from(offset + bytes).unwrap();
        patched[range.clone()].copy_from_slice(&read[range]);
    }
    assert!(patched == content, "the bitmap leaves something out");
    Some(dirty.iter().map(|(_, bytes)| bytes).sum())
}

/// A snapshot of all disks: `during` is what the guest does while they are read. Gives the bytes that the
/// bitmaps call dirty, or why there was none.
#[track_caller]
pub fn snapshot(
    vm: &mut Vm,
    lab: &Lab,
    images: &mut [Image],
    during: impl FnOnce(&mut Vm),
) -> Vec<Result<u64, String>> {
    snapshot_beside(vm, lab, images, during, &[])
}

/// The same where the first disk has bitmaps of others.
#[track_caller]
pub fn snapshot_beside(
    vm: &mut Vm,
    lab: &Lab,
    images: &mut [Image],
    during: impl FnOnce(&mut Vm),
    others: &[(String, bool)],
) -> Vec<Result<u64, String>> {
    let (mut fleece, members) = prepare(vm, lab, images);
    insert(&mut fleece);
    let at = vm.contents();
    let disks = fleece.export().unwrap_or_else(|e| panic!("{e}"));
    during(vm);
    let mut told = Vec::new();
    for (index, disk) in disks.iter().enumerate() {
        let dirty = is_right(&images[index], disk, &at[index]);
        let why = disk.since.as_ref().err().cloned().flatten().unwrap_or_default();
        told.push(dirty.ok_or(why));
    }
    let (context, warnings) = listening();
    for (index, (image, member)) in images.iter_mut().zip(&members).enumerate() {
        fleece.committed(index, &context);
        image.committed(member, &at[index]);
    }
    drop(fleece.finish(&context).unwrap());
    assert!(warnings.lock().unwrap().is_empty(), "{warnings:?}");
    vm.is_clean();
    for (index, (image, member)) in images.iter().zip(&members).enumerate() {
        let mut bitmaps = vm.bitmaps(&member.disk);
        bitmaps.retain(|bitmap| index > 0 || !others.contains(bitmap));
        assert_eq!(bitmaps, [(bitmap_name(image.id, member.snapshot), true)]);
    }
    told
}

/// Warnings that were given.
#[derive(Default)]
pub struct Heard(Arc<Mutex<Vec<String>>>);

impl Observer for Heard {
    fn observe(&self, event: Event) {
        if let Event::Warning { message, .. } = event {
            self.0.lock().unwrap().push(message.to_string());
        }
    }
}

pub fn listening() -> (Context, Arc<Mutex<Vec<String>>>) {
    let heard = Heard::default();
    let warnings = heard.0.clone();
    (Context::new(Arc::new(heard), Arc::new(AtomicBool::new(false))), warnings)
}

/// A client of an export.
pub fn connected(uri: &NbdUri) -> NbdDisk {
    NbdDisk::open(uri, NbdOptions::default(), &Context::silent()).unwrap_or_else(|e| panic!("{e}"))
}

/// Whether all of an export can be read.
pub fn try_read(uri: &NbdUri) -> Result<(), Error> {
    read(uri, None).map(drop)
}

/// Offsets and lengths.
type Ranges = Vec<(u64, u64)>;

/// All bytes of an export; and what a bitmap calls dirty.
fn read(uri: &NbdUri, bitmap: Option<&str>) -> Result<(Vec<u8>, Ranges), Error> {
    let pause = Duration::from_millis(10);
    let bitmap = bitmap.map(str::to_owned);
    let options = NbdOptions { bitmap, pause, ..NbdOptions::default() };
    let disk = NbdDisk::open(uri, options.clone(), &Context::silent())?;
    let (mut all, mut buffer) = (Vec::new(), Vec::new());
    while (all.len() as u64) < disk.image_bytes() {
        let bytes = MIB.min(disk.image_bytes() - all.len() as u64);
        let bytes = usize::try_from(bytes).unwrap();
        all.extend_from_slice(disk.read(all.len() as u64, bytes, &mut buffer)?.bytes());
    }
    let ranges = if options.bitmap.is_some() { disk.bitmap_ranges()? } else { Vec::new() };
    Ok((all, ranges.iter().map(|range| (range.offset, range.bytes)).collect()))
}
