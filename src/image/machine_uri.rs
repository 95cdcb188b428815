//! What names the disks of a machine that QEMU runs: `qemu:SOCKET[/DISK]`.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::uri::{Shown, percent_decoded, percent_encoded};
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// The form in which files hold it begins so: a socket's path alone does not say where it ends.
pub const WIRE_PREFIX: &str = "qemu://";
const DISK: &str = "?disk=";

/// A machine, by the socket of its QMP monitor, and one of its disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineUri {
    /// The socket. Absolute, unless a user just wrote it.
    pub socket: PathBuf,
    /// The disk: the id of its device, or the name of its block backend or node; none means all.
    pub disk: Option<String>,
}

impl MachineUri {
    /// Reads what follows `qemu:`. Whether its last part is a disk is told by where the socket is: if the
    /// whole path is a socket, or what is before its last part a folder, it is none.
    ///
    /// # Errors
    /// `InvalidInput` if it is not a path, or if the disk's name is not UTF-8.
    pub fn parse(text: &Path) -> Result<Self> {
        let bytes = text.as_os_str().as_bytes();
        if let Some(rest) = bytes.strip_prefix(b"//").and_then(|rest| str::from_utf8(rest).ok())
            && let Some((socket, disk)) = rest.split_once(DISK)
        {
            return Self::from_wire(socket, disk);
        }
        let invalid = |why: &str| {
            let what = format!("invalid machine \"qemu:{}\": {why}", text.shown());
            Error::new(ErrorKind::InvalidInput, what).hint("write qemu:SOCKET or qemu:SOCKET/DISK")
        };
        if bytes.is_empty() || bytes.ends_with(b"/") || bytes.contains(&0) {
            return Err(invalid("it ends without a name"));
        }
        let is_socket = |path: &Path| path.metadata().is_ok_and(|m| m.file_type().is_socket());
        let whole = || Self { socket: text.to_owned(), disk: None };
        let (Some(parent), Some(disk)) = (text.parent(), text.file_name()) else {
            return Ok(whole());
        };
        let is_folder = parent.as_os_str().is_empty() || parent.is_dir();
        if is_socket(text) || is_folder {
            return Ok(whole());
        }
        let disk = disk.to_str().ok_or_else(|| invalid("the disk's name is not UTF-8"))?;
        Ok(Self { socket: parent.to_owned(), disk: Some(disk.to_owned()) })
    }

    fn from_wire(socket: &str, disk: &str) -> Result<Self> {
        let socket = PathBuf::from(OsString::from_vec(percent_decoded(socket.as_bytes())?));
        let disk = String::from_utf8(percent_decoded(disk.as_bytes())?).ok();
        match disk.filter(|disk| socket.is_absolute() && !disk.is_empty()) {
            Some(disk) => Ok(Self { socket, disk: Some(disk) }),
            None => {
                let what = format!("invalid machine \"{WIRE_PREFIX}{}\"", socket.shown());
                Err(Error::new(ErrorKind::InvalidInput, what))
            }
        }
    }

    /// How files hold it: `qemu://SOCKET?disk=DISK`, percent-encoded.
    pub fn to_wire(&self) -> String {
        let disk = percent_encoded(self.disk.as_deref().unwrap_or_default().as_bytes());
        format!("{WIRE_PREFIX}{}{DISK}{disk}", percent_encoded(self.socket.as_os_str().as_bytes()))
    }

    /// One of its disks.
    #[must_use]
    pub fn with_disk(&self, disk: &str) -> Self {
        Self { socket: self.socket.clone(), disk: Some(disk.to_owned()) }
    }

    /// All of its disks.
    #[must_use]
    pub fn whole(self) -> Self {
        Self { disk: None, ..self }
    }

    /// What gives its images their names: that of the socket without extension, and the disk.
    pub fn title(&self) -> PathBuf {
        let mut title = self.socket.file_stem().unwrap_or_default().to_owned();
        if let Some(disk) = &self.disk {
            title.push("-");
            title.push(disk);
        }
        PathBuf::from(title)
    }
}

impl fmt::Display for MachineUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let socket = self.socket.shown();
        match &self.disk {
            // A path that is not UTF-8 is shown in another form.
            Some(_) if self.socket.to_str().is_none() => f.write_str(&self.to_wire()),
            Some(disk) => write!(f, "qemu:{socket}/{disk}"),
            None => write!(f, "qemu:{socket}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn the_socket_tells_where_its_path_ends() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("vm.qmp");
        let parse = |path: PathBuf| MachineUri::parse(&path).unwrap();
        // Without a socket: below a folder that is there, it is the socket that is missing.
        assert_eq!(parse(socket.clone()).disk, None);
        let _listener = UnixListener::bind(&socket).unwrap();
        let whole = parse(socket.clone());
        assert_eq!((whole.disk.as_ref(), &whole.socket), (None, &socket));
        let disk = parse(socket.join("vd0"));
        assert_eq!((disk.disk.as_deref(), &disk.socket), (Some("vd0"), &socket));
        assert_eq!(disk.title(), Path::new("vm-vd0"));
        assert_eq!(disk.to_string(), format!("qemu:{}/vd0", socket.shown()));
        for text in ["", "/run/", "/"] {
            assert!(MachineUri::parse(Path::new(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn what_files_hold_needs_no_socket() {
        for (socket, disk) in [("/gone/a b/vm.qmp", "vd0"), ("/x?disk=/y", "a/b%")] {
            let uri = MachineUri { socket: socket.into(), disk: Some(disk.into()) };
            let wire = uri.to_wire();
            assert_eq!(
                MachineUri::parse(Path::new(&wire["qemu:".len()..])).unwrap(),
                uri,
                "{wire}"
            );
        }
        assert!(MachineUri::parse(Path::new("//relative?disk=x")).is_err());
        assert!(MachineUri::parse(Path::new("///run/x?disk=")).is_err());
    }
}
