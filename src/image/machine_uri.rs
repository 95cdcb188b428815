//! What names the disks of a machine: `qemu:SOCKET[/DISK]`, of one that QEMU runs, and
//! `libvirt:DOMAIN[/DISK]`, of one that libvirt manages.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::uri::{Shown, percent_decoded, percent_encoded};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// The forms in which files hold it begin so: a socket's path alone does not say where it ends.
pub const WIRE_PREFIX: &str = "qemu://";
const LIBVIRT_WIRE_PREFIX: &str = "libvirt://";
const DISK: &str = "?disk=";
const CONNECT: &str = "&connect=";
/// The longest name of a domain, or URI of a hypervisor, in bytes.
const MAX_NAME_BYTES: usize = 1024;

/// A machine, and one of its disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineUri {
    /// The machine.
    pub place: MachinePlace,
    /// The disk: of QEMU the id of its device, or the name of its block backend or node; of libvirt its
    /// target, as in `vda`; none means all.
    pub disk: Option<String>,
}

/// Where a machine is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachinePlace {
    /// By the socket of its QMP monitor: a path, absolute unless a user just wrote it.
    Qmp(PathBuf),
    /// By its name in libvirt.
    Domain(DomainName),
}

/// A domain of libvirt.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DomainName {
    /// The URI of the hypervisor, as in `qemu:///system`; none means libvirt's default.
    pub connect: Option<String>,
    /// Its name.
    pub name: String,
}

impl DomainName {
    /// A domain of a hypervisor.
    ///
    /// # Errors
    /// `InvalidInput` for what cannot be the name of a domain, or a URI.
    pub fn new(name: &str, connect: Option<&str>) -> Result<Self> {
        let is_bad = |text: &str| {
            text.is_empty() || text.len() > MAX_NAME_BYTES || text.contains(char::is_control)
        };
        if is_bad(name) || name.contains('/') {
            let what = format!("invalid domain name \"{}\"", name.escape_debug());
            return Err(Error::new(ErrorKind::InvalidInput, what)
                .hint("write libvirt:DOMAIN or libvirt:DOMAIN/DISK"));
        }
        if let Some(uri) = connect.filter(|uri| is_bad(uri) || uri.starts_with('-')) {
            let what = format!("invalid hypervisor URI \"{}\"", uri.escape_debug());
            return Err(
                Error::new(ErrorKind::InvalidInput, what).hint("write it like qemu:///system")
            );
        }
        Ok(Self { connect: connect.map(str::to_owned), name: name.to_owned() })
    }
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
            return Err(invalid("the name after '/' is missing"));
        }
        let is_socket = |path: &Path| path.metadata().is_ok_and(|m| m.file_type().is_socket());
        let whole = || Self::qmp(text.to_owned());
        let (Some(parent), Some(disk)) = (text.parent(), text.file_name()) else {
            return Ok(whole());
        };
        let is_folder = parent.as_os_str().is_empty() || parent.is_dir();
        if is_socket(text) || is_folder {
            return Ok(whole());
        }
        let disk = disk.to_str().ok_or_else(|| invalid("the disk's name is not UTF-8"))?;
        Ok(Self::qmp(parent.to_owned()).with_disk(disk))
    }

    fn from_wire(socket: &str, disk: &str) -> Result<Self> {
        let socket = PathBuf::from(OsString::from_vec(percent_decoded(socket.as_bytes())?));
        let disk = String::from_utf8(percent_decoded(disk.as_bytes())?).ok();
        match disk.filter(|disk| socket.is_absolute() && !disk.is_empty()) {
            Some(disk) => Ok(Self::qmp(socket).with_disk(&disk)),
            None => {
                let what = format!("invalid machine \"{WIRE_PREFIX}{}\"", socket.shown());
                Err(Error::new(ErrorKind::InvalidInput, what))
            }
        }
    }

    /// Reads what follows `libvirt:`.
    ///
    /// # Errors
    /// `InvalidInput` if it names no domain.
    pub fn parse_domain(text: &OsStr) -> Result<Self> {
        let text = text.to_str().ok_or_else(|| {
            let what = "the name of the domain is not UTF-8";
            Error::new(ErrorKind::InvalidInput, what)
        })?;
        if text.is_empty() {
            let what = "missing domain name after 'libvirt:'";
            return Err(Error::new(ErrorKind::InvalidInput, what)
                .hint("write libvirt:DOMAIN, libvirt:DOMAIN/DISK, or libvirt:* for all"));
        }
        if let Some((name, rest)) = text.strip_prefix("//").and_then(|rest| rest.split_once(DISK)) {
            let (disk, connect) = match rest.split_once(CONNECT) {
                Some((disk, connect)) => (disk, Some(decoded(connect)?)),
                None => (rest, None),
            };
            let domain = DomainName::new(&decoded(name)?, connect.as_deref())?;
            let domain = Self::domain(domain);
            return Ok(if disk.is_empty() { domain } else { domain.with_disk(&decoded(disk)?) });
        }
        let (name, disk) = match text.split_once('/') {
            Some((name, disk)) => (name, Some(disk)),
            None => (text, None),
        };
        let domain = Self::domain(DomainName::new(name, None)?);
        match disk {
            None => Ok(domain),
            Some(disk) if !disk.is_empty() && !disk.contains(['/', '\0']) => {
                Ok(domain.with_disk(disk))
            }
            Some(disk) => {
                let what = format!("{domain} has no disk \"{}\"", disk.escape_debug());
                Err(Error::new(ErrorKind::InvalidInput, what)
                    .hint("write libvirt:DOMAIN or libvirt:DOMAIN/DISK"))
            }
        }
    }

    /// All disks of a machine of QEMU.
    pub fn qmp(socket: PathBuf) -> Self {
        Self { place: MachinePlace::Qmp(socket), disk: None }
    }

    /// All disks of a domain.
    pub fn domain(domain: DomainName) -> Self {
        Self { place: MachinePlace::Domain(domain), disk: None }
    }

    /// How files hold it: `qemu://SOCKET?disk=DISK` or `libvirt://DOMAIN?disk=DISK[&connect=URI]`,
    /// percent-encoded.
    pub fn to_wire(&self) -> String {
        let disk = percent_encoded(self.disk.as_deref().unwrap_or_default().as_bytes());
        match &self.place {
            MachinePlace::Qmp(socket) => {
                let socket = percent_encoded(socket.as_os_str().as_bytes());
                format!("{WIRE_PREFIX}{socket}{DISK}{disk}")
            }
            MachinePlace::Domain(domain) => {
                let name = percent_encoded(domain.name.as_bytes());
                let connect = domain.connect.as_ref().map_or_else(String::new, |uri| {
                    format!("{CONNECT}{}", percent_encoded(uri.as_bytes()))
                });
                format!("{LIBVIRT_WIRE_PREFIX}{name}{DISK}{disk}{connect}")
            }
        }
    }

    /// One of its disks.
    #[must_use]
    pub fn with_disk(&self, disk: &str) -> Self {
        Self { place: self.place.clone(), disk: Some(disk.to_owned()) }
    }

    /// The same of a domain of this hypervisor, unless another one is named.
    ///
    /// # Errors
    /// `InvalidInput` for what is no URI of a hypervisor.
    pub fn connected_by(&self, connect: &str) -> Result<Self> {
        let place = match &self.place {
            MachinePlace::Domain(DomainName { connect: None, name }) => {
                MachinePlace::Domain(DomainName::new(name, Some(connect))?)
            }
            other => other.clone(),
        };
        Ok(Self { place, disk: self.disk.clone() })
    }

    /// All of its disks.
    #[must_use]
    pub fn whole(self) -> Self {
        Self { disk: None, ..self }
    }

    /// As it is known, whichever folder is the current one.
    ///
    /// # Errors
    /// Of the operating system.
    pub fn absolute(&self) -> Result<Self> {
        let MachinePlace::Qmp(socket) = &self.place else { return Ok(self.clone()) };
        let socket =
            std::path::absolute(socket).map_err(|e| Error::os("find", socket.shown(), e))?;
        Ok(Self { place: MachinePlace::Qmp(socket), disk: self.disk.clone() })
    }

    /// What gives its images their names: that of the domain, or of the socket without extension, and the
    /// disk.
    pub fn title(&self) -> PathBuf {
        let mut title = match &self.place {
            MachinePlace::Qmp(socket) => socket.file_stem().unwrap_or_default().to_owned(),
            MachinePlace::Domain(domain) => OsString::from(&domain.name),
        };
        if let Some(disk) = &self.disk {
            title.push("-");
            title.push(disk);
        }
        PathBuf::from(title)
    }
}

fn decoded(text: &str) -> Result<String> {
    String::from_utf8(percent_decoded(text.as_bytes())?)
        .map_err(|_| Error::new(ErrorKind::InvalidInput, "invalid machine: not UTF-8"))
}

impl fmt::Display for MachinePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Qmp(socket) => write!(f, "qemu:{}", socket.shown()),
            Self::Domain(domain) => write!(f, "libvirt:{}", domain.name),
        }
    }
}

impl fmt::Display for MachineUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.place, &self.disk) {
            // A path that is not UTF-8 is shown in another form.
            (MachinePlace::Qmp(socket), Some(_)) if socket.to_str().is_none() => {
                f.write_str(&self.to_wire())
            }
            (place, Some(disk)) => write!(f, "{place}/{disk}"),
            (place, None) => place.fmt(f),
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
        assert_eq!(whole, MachineUri::qmp(socket.clone()));
        let disk = parse(socket.join("vd0"));
        assert_eq!(disk, whole.with_disk("vd0"));
        assert_eq!(disk.title(), Path::new("vm-vd0"));
        assert_eq!(disk.to_string(), format!("qemu:{}/vd0", socket.shown()));
        for text in ["", "/run/", "/"] {
            assert!(MachineUri::parse(Path::new(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn what_files_hold_needs_no_socket() {
        for (socket, disk) in [("/gone/a b/vm.qmp", "vd0"), ("/x?disk=/y", "a/b%")] {
            let uri = MachineUri::qmp(socket.into()).with_disk(disk);
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

    #[test]
    fn a_domain_is_named_by_its_name_and_a_hypervisor() {
        let parse = |text: &str| MachineUri::parse_domain(OsStr::new(text));
        let disk = parse("web 1/vda").unwrap();
        assert_eq!(
            (disk.to_string().as_str(), disk.disk.as_deref()),
            ("libvirt:web 1/vda", Some("vda"))
        );
        assert_eq!(disk.title(), Path::new("web 1-vda"));
        let wire = disk.to_wire();
        assert_eq!(wire, "libvirt://web%201?disk=vda");
        assert_eq!(parse(&wire["libvirt:".len()..]).unwrap(), disk);
        let there = DomainName::new("a&b", Some("qemu+unix:///system?socket=/x&y")).unwrap();
        let there = MachineUri::domain(there).with_disk("sda");
        assert_eq!(parse(&there.to_wire()["libvirt:".len()..]).unwrap(), there);
        assert_ne!(parse("a&b/sda").unwrap(), there);
        for text in ["", "/vda", "web/", "web/vda/1", "a\nb", "//?disk=vda", "//"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(DomainName::new("a", Some("-x")).is_err());
    }
}
