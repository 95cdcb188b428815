//! Images that QEMU reads or writes for us, as exports of a server that we start: `qemu-nbd` to read,
//! `qemu-storage-daemon` to write to a qcow2.
//!
//! The server listens on a socket in a private folder, and ends when we do, also when we are killed.

mod foreign;
mod image;
mod place;
mod process;

pub use foreign::check_references;
pub use image::QemuImage;
pub(crate) use place::PrivateFolder;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::Context;
use crate::base::message::{Action, Message, message};
use crate::base::uri::Shown;
use crate::image::nbd::{NbdPlace, NbdUri};
use image::Opened;
use nix::sys::signal::Signal;
use process::Process;
use serde_json::json;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The name of the export.
const EXPORT: &str = "disk";
/// As many connections as threads may read.
const CONNECTIONS: u32 = 16;
/// How long a server may take to be there.
const PATIENCE: Duration = Duration::from_secs(10);
/// And to answer.
const ANSWER: Duration = Duration::from_millis(500);
/// How often it is looked for.
const STEP: Duration = Duration::from_millis(5);
/// How much of a message is passed on, in characters.
const MOST_SAID: usize = 300;

/// An image as an export of a server of our own. Dropped, it ends the server.
pub struct QemuExport {
    uri: NbdUri,
    // Before the folder: what it listens on goes last.
    process: Process,
    server: Server,
    _place: PrivateFolder,
}

/// What is said of a server.
struct Server {
    program: &'static str,
    /// The image, as it is shown.
    image: String,
    /// What it calls things, and what they are called.
    names: Vec<(String, String)>,
}

impl QemuExport {
    /// Starts `qemu-nbd`, which reads an image.
    ///
    /// # Errors
    /// `Unsupported` if there is no such program, or for an image that refers to other files than are given;
    /// `Busy` if it is in use; `Io` if QEMU cannot open it; `Interrupted`.
    pub fn read(image: &QemuImage, context: &Context) -> Result<Self> {
        let place = PrivateFolder::create()?;
        let mut opened = Opened::new(&place);
        let node = format!("json:{}", opened.node(image, false)?);
        let mut command = Command::new("qemu-nbd");
        command.args(["--read-only", "--persistent"]);
        command.arg(format!("--shared={CONNECTIONS}")).arg(format!("--export-name={EXPORT}"));
        command.arg("--socket").arg(place.socket()).arg(&node);
        let (files, names) = opened.into_parts();
        let mut names = shown(names);
        // What it was given stands before what it says, and has the names in it, too.
        names.insert(0, (format!("Failed to blk_new_open '{node}': "), String::new()));
        let server = Server { program: "qemu-nbd", image: image.path.shown().to_string(), names };
        // Nothing can be lost by one that reads.
        let started = Process::start(command, files, Signal::SIGKILL);
        let process = started.map_err(|e| server.cannot_start(image, "read", e))?;
        Self::when_ready(process, server, place, context)
    }

    /// Starts `qemu-storage-daemon`, which writes to an image and discards what is zeroed. Its backing images
    /// are only read.
    ///
    /// # Errors
    /// As of [`QemuExport::read`].
    pub fn write(image: &QemuImage, context: &Context) -> Result<Self> {
        let place = PrivateFolder::create()?;
        let mut opened = Opened::new(&place);
        let mut node = opened.node(image, true)?;
        if let Some(node) = node.as_object_mut() {
            node.insert("node-name".to_owned(), EXPORT.into());
        }
        let address = json!({ "type": "unix", "path": place.socket().to_str() });
        let listen = json!({ "addr": address, "max-connections": CONNECTIONS });
        let export = json!({
            "type": "nbd", "id": EXPORT, "node-name": EXPORT, "name": EXPORT, "writable": true,
        });
        let node = node.to_string();
        let mut command = Command::new("qemu-storage-daemon");
        command.arg("--blockdev").arg(&node);
        command.arg("--nbd-server").arg(listen.to_string());
        command.arg("--export").arg(export.to_string());
        let (files, names) = opened.into_parts();
        let (program, mut names) = ("qemu-storage-daemon", shown(names));
        names.insert(0, (format!("--blockdev {node}: "), String::new()));
        let server = Server { program, image: image.path.shown().to_string(), names };
        // It writes its tables before it ends: after SIGKILL clusters would be lost to the file.
        let started = Process::start(command, files, Signal::SIGTERM);
        let process = started.map_err(|e| server.cannot_start(image, "write to", e))?;
        Self::when_ready(process, server, place, context)
    }

    fn when_ready(
        process: Process,
        server: Server,
        place: PrivateFolder,
        context: &Context,
    ) -> Result<Self> {
        let begun = Instant::now();
        context.check()?;
        while !answers(&place.socket()) {
            context.check()?;
            if process.is_over() {
                return Err(server.failed_to_open(&process));
            }
            if begun.elapsed() > PATIENCE {
                let (program, image) = (server.program, &server.image);
                let seconds = PATIENCE.as_secs();
                let what = format!("{program} does not serve {image} within {seconds} s");
                return Err(Error::new(ErrorKind::Unavailable, what).hint(message![Action::Retry]));
            }
            sleep(STEP);
        }
        let uri = NbdUri { place: NbdPlace::Unix(place.socket()), export: EXPORT.to_owned() };
        Ok(Self { uri, process, server, _place: place })
    }

    /// What it is found by, as long as this lives.
    pub fn uri(&self) -> &NbdUri {
        &self.uri
    }

    /// The image that it serves, as it is called in messages.
    pub fn image(&self) -> &str {
        &self.server.image
    }

    /// The process id of the server.
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// If the server has ended by itself: why. That says more than a connection that was lost.
    pub fn failure(&self) -> Option<Error> {
        self.process.is_over().then(|| {
            let Server { program, image, .. } = &self.server;
            let what = format!("{program} ended while it served {image}");
            let said = self.server.said(&self.process);
            Error::new(ErrorKind::Unavailable, format!("{what}: {said}"))
        })
    }

    /// Ends the server in good order. What was written is durable if its last client has flushed it.
    ///
    /// # Errors
    /// `Unavailable` if it had ended by itself, does not end, or ends with an error.
    pub fn finish(self) -> Result<()> {
        match self.failure() {
            Some(failure) => Err(failure),
            None => self.process.end(self.server.program).map_err(|e| e.at(&self.server.image)),
        }
    }
}

impl Server {
    fn cannot_start(&self, image: &QemuImage, what: &str, error: io::Error) -> Error {
        let (program, place, format) = (self.program, &self.image, image.format);
        if error.kind() != io::ErrorKind::NotFound {
            return Error::io(format!("cannot start {program}"), error);
        }
        let install = "install qemu-utils (Debian) or qemu-img (Fedora)";
        let hint = match what {
            "read" => format!(
                "{install}, or convert it with \"qemu-img convert -f {} -O raw {place} NEW.img\"",
                format.qemu()
            ),
            _ => install.to_owned(),
        };
        let what = format!("{program} is needed to {what} the {format} image {place}");
        Error::new(ErrorKind::Unsupported, what).hint(hint)
    }

    /// What it said last, in our words for things.
    fn said(&self, process: &Process) -> String {
        let said = process.said();
        let own = format!("{}: ", self.program);
        let lines = || said.lines().filter(|line| !line.trim().is_empty());
        let line = lines().rfind(|line| line.starts_with(&own)).or_else(|| lines().next_back());
        let mut line = match line {
            Some(line) => line.trim_start_matches(&own).to_owned(),
            None => process.status().map_or("no message".into(), |status| status.to_string()),
        };
        for (name, shown) in &self.names {
            line = line.replace(name, shown);
        }
        // Bytes of the image may be in it.
        let clean = line.chars().take(MOST_SAID);
        clean.map(|c| if c.is_control() { '?' } else { c }).collect()
    }

    fn failed_to_open(&self, process: &Process) -> Error {
        let (program, image) = (self.program, &self.image);
        let said = self.said(process);
        let all = process.said();
        let is_locked = all.contains("Failed to get ") && all.contains("\" lock");
        if is_locked || all.contains("Failed to lock ") {
            let hint: Message =
                message!["shut the virtual machine down, or close the file, and ", Action::Retry];
            return Error::new(ErrorKind::Busy, format!("{image} is in use: {said}")).hint(hint);
        }
        Error::new(ErrorKind::Io, format!("{program} cannot open {image}: {said}"))
    }
}

fn shown(names: Vec<(PathBuf, String)>) -> Vec<(String, String)> {
    names.into_iter().map(|(path, name)| (path.shown().to_string(), name)).collect()
}

/// True if a server speaks the protocol there; it is left in good order.
fn answers(socket: &Path) -> bool {
    // Fixed newstyle without zeros, and the option that ends it (NBD_OPT_ABORT).
    const GOODBYE: &[u8] = b"\0\0\0\x03IHAVEOPT\0\0\0\x02\0\0\0\0";
    let ask = || -> io::Result<bool> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(ANSWER))?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        stream.write_all(GOODBYE)?;
        let mut answer = [0; 20];
        stream.read_exact(&mut answer)?;
        Ok(greeting.starts_with(b"NBDMAGICIHAVEOPT"))
    };
    ask().unwrap_or(false)
}
