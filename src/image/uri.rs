//! What a user names an image by.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::uri::{Shown, Uri};
use serde::{Serialize, Serializer};
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// An image: a path, or `file:///PATH`, of a file or a block device.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageUri {
    /// A file or a block device.
    File(PathBuf),
}

impl ImageUri {
    /// Reads what a user wrote.
    ///
    /// # Errors
    /// `Unsupported` for a scheme that this build does not read; `InvalidInput` for a malformed URI.
    pub fn parse(text: &Path) -> Result<Self> {
        match Uri::parse(text)? {
            Uri::Path(path) => Ok(Self::File(path)),
            Uri::Other { scheme } => {
                let what = format!("this build reads no {scheme} images: {}", text.display());
                Err(Error::new(ErrorKind::Unsupported, what)
                    .hint(format!("a file that is called so is ./{}", text.display())))
            }
        }
    }

    /// Where the file or device is.
    pub fn path(&self) -> &Path {
        match self {
            Self::File(path) => path,
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
        self.path().shown().fmt(f)
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
