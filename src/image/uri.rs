//! What a user names an image by.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::uri::{Shown, Uri, file_uri};
use crate::image::MachineUri;
use crate::image::nbd::NbdUri;
use crate::store::{RemoteKind, RemoteUrl};
use serde::{Serialize, Serializer};
use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// An image: a path, or `file:///PATH`, of a file or a block device; an export of an NBD server; or a disk of
/// a machine that QEMU runs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageUri {
    /// A file or a block device.
    File(PathBuf),
    /// `nbd://` or `nbd+unix://`.
    Nbd(NbdUri),
    /// `qemu:SOCKET[/DISK]` or `libvirt:DOMAIN[/DISK]`.
    Machine(MachineUri),
    /// An object on a server: `s3://`, `gs://`, `az://` or `hdfs://`.
    Remote(RemoteUrl),
}

impl ImageUri {
    /// Reads what a user wrote.
    ///
    /// # Errors
    /// `Unsupported` for a scheme that this build does not read; `InvalidInput` for a malformed URI.
    pub fn parse(text: &Path) -> Result<Self> {
        let remote = text.to_str().map(RemoteUrl::parse).transpose()?.flatten();
        if let Some(url) = remote.filter(|url| url.kind != RemoteKind::Ssh) {
            return Ok(Self::Remote(url));
        }
        match Uri::parse(text)? {
            Uri::Path(path) => Ok(Self::File(path)),
            Uri::Other { scheme } if scheme.starts_with("nbd") => {
                let invalid = || {
                    let what = format!("invalid NBD URI \"{}\": not UTF-8", text.display());
                    Error::new(ErrorKind::InvalidInput, what)
                };
                text.to_str().ok_or_else(invalid)?.parse().map(Self::Nbd)
            }
            Uri::Other { scheme } if scheme == "qemu" => {
                let rest = text.as_os_str().as_bytes().get("qemu:".len()..).unwrap_or_default();
                MachineUri::parse(Path::new(OsStr::from_bytes(rest))).map(Self::Machine)
            }
            Uri::Other { scheme } if scheme == "libvirt" => {
                let rest = text.as_os_str().as_bytes().get("libvirt:".len()..).unwrap_or_default();
                MachineUri::parse_domain(OsStr::from_bytes(rest)).map(Self::Machine)
            }
            Uri::Other { scheme } => {
                let what =
                    format!("this build does not support {scheme} images: {}", text.display());
                Err(Error::new(ErrorKind::Unsupported, what)
                    .hint(format!("for a file of that name, write ./{}", text.display())))
            }
        }
    }

    /// Where the file or device is; none of what is neither.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Nbd(_) | Self::Machine(_) | Self::Remote(_) => None,
        }
    }

    /// The machine, and its disk, if it is one.
    pub fn machine(&self) -> Option<&MachineUri> {
        match self {
            Self::Machine(uri) => Some(uri),
            Self::File(_) | Self::Nbd(_) | Self::Remote(_) => None,
        }
    }

    /// How files hold it: as a URI.
    pub fn to_wire(&self) -> String {
        match self {
            Self::File(path) => file_uri(path),
            Self::Nbd(uri) => uri.to_string(),
            Self::Machine(uri) => uri.to_wire(),
            Self::Remote(url) => url.to_string(),
        }
    }

    /// What gives an image its name: the name of its file, export or machine. Empty if that has none.
    pub fn title(&self) -> Cow<'_, Path> {
        match self {
            Self::File(path) => path.into(),
            Self::Nbd(uri) => Path::new(&uri.export).into(),
            Self::Machine(uri) => uri.title().into(),
            Self::Remote(url) => {
                PathBuf::from(url.path.rsplit('/').next().unwrap_or_default()).into()
            }
        }
    }
}

impl Default for ImageUri {
    /// An empty path, which names no image.
    fn default() -> Self {
        Self::File(PathBuf::new())
    }
}

/// A path, whatever it looks like. A text has to be parsed: it may be a URI.
impl From<PathBuf> for ImageUri {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

impl From<&Path> for ImageUri {
    fn from(path: &Path) -> Self {
        Self::File(path.into())
    }
}

impl From<&PathBuf> for ImageUri {
    fn from(path: &PathBuf) -> Self {
        Self::File(path.into())
    }
}

impl FromStr for ImageUri {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        Self::parse(Path::new(text))
    }
}

impl fmt::Display for ImageUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.shown().fmt(f),
            Self::Nbd(uri) => uri.fmt(f),
            Self::Machine(uri) => uri.fmt(f),
            Self::Remote(url) => url.fmt(f),
        }
    }
}

impl Serialize for ImageUri {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// For readers of command lines, which have no UTF-8 for certain.
pub fn parse_image(text: OsString) -> Result<ImageUri> {
    ImageUri::parse(Path::new(&text))
}
