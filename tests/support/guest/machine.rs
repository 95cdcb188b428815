//! QEMU with the guest in it, ended with the test.

use super::console::Console;
use super::qmp::Qmp;
use super::ticks::Ticks;
use crate::kit::{forking, tool, tool_command, tools};
use crate::random::wait_until;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::fs::File;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The QEMU that is tried: `IMGSNAP_QEMU`, with the data of `IMGSNAP_QEMU_DATA`.
pub struct Program {
    name: String,
    data: Option<String>,
}

impl Program {
    /// # Errors
    /// Which one is missing.
    pub fn find() -> Result<Self, String> {
        let name = std::env::var("IMGSNAP_QEMU").unwrap_or("qemu-system-x86_64".to_owned());
        if name.contains('/') {
            File::open(&name).map_err(|e| format!("{name}: {e}"))?;
        } else {
            tools(&[&name])?;
        }
        Ok(Self { name, data: std::env::var("IMGSNAP_QEMU_DATA").ok() })
    }

    /// What it calls itself.
    pub fn version(&self) -> String {
        let said = crate::kit::output(Command::new(&self.name).arg("--version")).unwrap();
        String::from_utf8_lossy(&said.stdout).lines().next().unwrap_or_default().to_owned()
    }
}

/// A disk of a machine: the device `vd0`, `vd1` ... by its place.
#[derive(Clone)]
pub struct Disk {
    pub path: String,
    pub format: String,
}

/// A machine that is not started yet, or again.
#[derive(Clone)]
pub struct Machine {
    folder: String,
    /// Of its socket, and so of its images.
    pub stem: String,
    pub disks: Vec<Disk>,
    /// Where its kernel is, if it does not boot by its own disk, which takes longer.
    kernel: Option<String>,
    /// What is written goes elsewhere, and is thrown away.
    is_thrown_away: bool,
}

impl Machine {
    /// One with sockets in that folder, and without a disk.
    pub fn new(folder: &str, stem: &str) -> Self {
        let (folder, stem) = (folder.to_owned(), stem.to_owned());
        Self { folder, stem, disks: Vec::new(), kernel: None, is_thrown_away: false }
    }

    /// With a copy of the guest's disk, a raw file, as its first one.
    pub fn of_guest(folder: &str, stem: &str, guest: &str) -> Self {
        let machine = Self::new(folder, stem);
        let disk = machine.path("vd0");
        tool("cp", &["--sparse=always", &format!("{guest}/disk.img"), &disk]);
        machine.disk(&disk, "raw").kernel(guest)
    }

    fn path(&self, what: &str) -> String {
        format!("{}/{}.{what}", self.folder, self.stem)
    }

    /// Boots by the kernel in that folder.
    pub fn kernel(mut self, guest: &str) -> Self {
        self.kernel = Some(guest.to_owned());
        self
    }

    /// Boots by itself.
    pub fn own_boot(mut self) -> Self {
        self.kernel = None;
        self
    }

    pub fn thrown_away(mut self) -> Self {
        self.is_thrown_away = true;
        self
    }

    /// With one more disk, which exists.
    pub fn disk(mut self, path: &str, format: &str) -> Self {
        self.disks.push(Disk { path: path.to_owned(), format: format.to_owned() });
        self
    }

    /// With one more disk, a new and empty one.
    pub fn new_disk(self, bytes: u64, format: &str) -> Self {
        let path = self.path(&format!("vd{}", self.disks.len()));
        tool("qemu-img", &["create", "-q", "-f", format, &path, &bytes.to_string()]);
        self.disk(&path, format)
    }

    /// What the program under test is told: the machine's socket.
    pub fn socket(&self) -> String {
        self.path("qmp")
    }

    /// The socket of its guest agent.
    pub fn agent(&self) -> String {
        self.path("agent")
    }

    /// The machine, as the program under test calls it.
    pub fn uri(&self) -> String {
        format!("qemu:{}", self.socket())
    }

    /// The image of a disk.
    pub fn image(&self, disk: usize) -> String {
        format!("{}-vd{disk}", self.stem)
    }

    /// What a disk holds, as a raw file, while the machine is stopped: QEMU has flushed then.
    #[track_caller]
    pub fn read_disk(&self, disk: usize, to: &str) {
        let Disk { path, format } = &self.disks[disk];
        tool("qemu-img", &["convert", "-U", "-f", format, "-O", "raw", path, to]);
    }

    /// Starts it, and waits until the guest is up.
    #[track_caller]
    pub fn boot(&self) -> Guest {
        let guest = self.start();
        guest.console.waits_for("GUEST-UP", 0);
        guest
    }

    /// Starts it.
    #[track_caller]
    pub fn start(&self) -> Guest {
        let program = Program::find().unwrap();
        // Ends with the thread that starts it, however that ends.
        let mut command = tool_command("setpriv", &["--pdeathsig", "KILL"]).unwrap();
        command.arg(&program.name);
        if let Some(data) = &program.data {
            command.args(["-L", data]);
        }
        command.args(
            "-accel tcg -cpu max -m 256 -nodefaults -no-user-config -display none".split(' '),
        );
        if let Some(kernel) = &self.kernel {
            command.args(["-kernel", &format!("{kernel}/vmlinuz")]);
            command.args(["-initrd", &format!("{kernel}/initrd.gz")]);
            command.args(["-append", "console=ttyS0 quiet panic=5"]);
        }
        if self.is_thrown_away {
            command.arg("-snapshot");
        }
        for (number, Disk { path, format }) in self.disks.iter().enumerate() {
            let what = format!("driver={format},node-name=node{number},discard=unmap");
            match self.is_thrown_away {
                true => command
                    .arg("-drive")
                    .arg(format!("if=none,id=node{number},format={format},file={path}")),
                false => command.arg("-blockdev").arg(format!(
                    "{what},file.driver=file,file.filename={path},file.discard=unmap"
                )),
            };
            command.args(["-device", &format!("virtio-blk-pci,id=vd{number},drive=node{number}")]);
        }
        let listen = |what| {
            let path = self.path(what);
            std::fs::remove_file(&path).ok();
            (UnixListener::bind(&path).unwrap(), path)
        };
        let ((console, to_console), (ticks, to_ticks)) = (listen("console"), listen("ticks"));
        let monitor = self.path("monitor");
        for (id, what) in [("console", to_console), ("ticks", to_ticks)] {
            command.args(["-chardev", &format!("socket,id={id},path={what}")]);
        }
        let agent = self.agent();
        command.args(["-chardev", &format!("socket,id=agent,path={agent},server=on,wait=off")]);
        command.args(["-serial", "chardev:console", "-device", "virtio-serial-pci"]);
        let ports = [("agent", "org.qemu.guest_agent.0"), ("ticks", "imgsnap.ticks")];
        for (id, name) in ports {
            command.args(["-device", &format!("virtserialport,chardev={id},name={name}")]);
        }
        for socket in [self.socket(), monitor.clone()] {
            std::fs::remove_file(&socket).ok();
            command.args(["-qmp", &format!("unix:{socket},server=on,wait=off")]);
        }
        let log = self.path("log");
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut process = {
            let _alone = forking();
            command.stderr(File::create(&log).unwrap()).spawn().unwrap()
        };
        let console = Console::new(accept(&mut process, &console, &log));
        let ticks = Ticks::new(accept(&mut process, &ticks, &log));
        let qmp = Qmp::connect(&monitor);
        Guest { process, console, ticks, qmp, machine: self.clone() }
    }
}

/// What QEMU connects to that socket, unless it ends.
#[track_caller]
fn accept(process: &mut Child, listener: &UnixListener, log: &str) -> UnixStream {
    listener.set_nonblocking(true).unwrap();
    let mut stream = None;
    wait_until(|| {
        stream = listener.accept().ok();
        stream.is_some() || process.try_wait().unwrap().is_some()
    });
    let said = || std::fs::read_to_string(log).unwrap();
    let (stream, _) = stream.unwrap_or_else(|| panic!("QEMU does not start: {}", said()));
    stream.set_nonblocking(false).unwrap();
    stream
}

/// A machine that runs.
pub struct Guest {
    process: Child,
    pub console: Console,
    pub ticks: Ticks,
    pub qmp: Qmp,
    pub machine: Machine,
}

impl Guest {
    pub fn id(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.process.id()).unwrap())
    }

    /// Has the guest write numbered files for ever, of which it keeps that many.
    #[track_caller]
    pub fn writes_files(&mut self, keep: u64, pause: Duration) {
        let from = self.console.count();
        self.console.run(&format!("work files /data {keep} {}", pause.as_millis()));
        self.console.waits_for("WROTE ", from);
    }

    /// ... and count on its second and third disk in turn.
    #[track_caller]
    pub fn counts(&mut self, pause: Duration) {
        let from = self.console.count();
        self.console.run(&format!("work counter /dev/vdb /dev/vdc {}", pause.as_millis()));
        self.console.waits_for("COUNTED ", from);
    }

    /// ... and write 4 KiB for ever into the first so many bytes of a device, and tell of each.
    #[track_caller]
    pub fn measures(&mut self, device: &str, bytes: u64) {
        let from = self.console.count();
        self.console.run(&format!("work latency {device} {bytes} $(port imgsnap.ticks)"));
        self.console.waits_for("LATENCY ", from);
    }

    /// The file that it has written last.
    pub fn written(&self) -> u64 {
        self.console.last("WROTE ")
    }

    /// It writes more than it had: what is written at the moment, from beginning to end.
    ///
    /// # Errors
    /// If not within that time.
    pub fn goes_on(&self, patience: Duration) -> Result<(), String> {
        let from = self.console.count();
        let first = self.console.find("WROTE ", from, patience)?;
        self.console.find("WROTE ", first + 1, patience).map(drop)
    }

    /// Nobody can say that it was not well.
    #[track_caller]
    pub fn is_well(&mut self) {
        assert_eq!(self.console.complaints(), Vec::<String>::new());
        assert_eq!(self.process.try_wait().unwrap(), None, "QEMU has ended");
    }

    pub fn signal(&self, signal: Signal) {
        nix::sys::signal::kill(self.id(), signal).unwrap();
    }

    /// Ends it as a power failure does.
    pub fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Waits for its end.
    pub fn wait(mut self) {
        self.process.wait().unwrap();
    }

    /// True if one of its files is there.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.machine.path("log")).unwrap_or_default()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
        for what in ["console", "ticks", "agent", "monitor", "qmp"] {
            std::fs::remove_file(Path::new(&self.machine.path(what))).ok();
        }
    }
}
