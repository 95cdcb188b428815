//! What a user names a place by: a path, or a URI.

use crate::base::error::{Error, ErrorKind, Result};
use serde::Serializer;
use std::borrow::Cow;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// A place that a user named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Uri {
    /// A path, or `file:///PATH`.
    Path(PathBuf),
    /// A URI of another scheme.
    Other {
        /// The scheme, as it was written.
        scheme: String,
    },
}

/// Schemes behind which no `//` follows.
const SHORT_SCHEMES: [&str; 2] = ["qemu", "libvirt"];

impl Uri {
    /// Reads a path or a URI. What looks like a URI is one; a file of that name is `./NAME`.
    ///
    /// # Errors
    /// `InvalidInput` for a URI of a file that cannot be read.
    pub fn parse(text: &Path) -> Result<Self> {
        match scheme_of(text.as_os_str().as_bytes()) {
            None => Ok(Self::Path(text.to_owned())),
            Some(("file", [b'/', ..])) => {
                let rest = text.as_os_str().as_bytes().get("file://".len()..).unwrap_or_default();
                let path = percent_decoded(rest)?;
                Ok(Self::Path(PathBuf::from(OsString::from_vec(path))))
            }
            Some(("file", _)) => {
                let what = format!("{} does not name an absolute path", text.display());
                Err(Error::new(ErrorKind::InvalidInput, what).hint("write file:///PATH"))
            }
            Some((scheme, _)) => Ok(Self::Other { scheme: scheme.to_owned() }),
        }
    }
}

/// A path as a URI: `file:///PATH`, with percent signs for all but letters, digits and `-._~/`.
pub fn file_uri(path: &Path) -> String {
    format!("file://{}", percent_encoded(path.as_os_str().as_bytes()))
}

/// Bytes as a part of a URI: percent signs for all but letters, digits and `-._~/`.
pub fn percent_encoded(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                text.push(char::from(*byte));
            }
            other => text.push_str(&format!("%{other:02X}")),
        }
    }
    text
}

/// How messages and `--json` name a path: as it is, or, if it is not UTF-8, by its URI (FORMAT.md C6), which
/// can be typed where an image or a repository is named.
pub trait Shown {
    /// The path as text.
    fn shown(&self) -> Cow<'_, str>;
}

impl Shown for Path {
    fn shown(&self) -> Cow<'_, str> {
        match self.to_str() {
            Some(text) => text.into(),
            None => file_uri(&std::path::absolute(self).unwrap_or_else(|_| self.to_owned())).into(),
        }
    }
}

/// For serde: a path as [`Shown`] has it.
pub fn shown_path<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&path.shown())
}

/// The scheme of a URI, and what follows its `://`, or its `:` if nothing else does.
fn scheme_of(text: &[u8]) -> Option<(&str, &[u8])> {
    let end = text.iter().position(|byte| *byte == b':')?;
    let (scheme, rest) = (text.get(..end)?, text.get(end + 1..)?);
    let scheme = str::from_utf8(scheme).ok()?;
    let is_one = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    match rest {
        [b'/', b'/', rest @ ..] if is_one => Some((scheme, rest)),
        rest if SHORT_SCHEMES.contains(&scheme) => Some((scheme, rest)),
        _ => None,
    }
}

/// The bytes that a part of a URI stands for.
///
/// # Errors
/// `InvalidInput`.
pub fn percent_decoded(text: &[u8]) -> Result<Vec<u8>> {
    let bad = || {
        let text = String::from_utf8_lossy(text);
        let what = format!("invalid URI part {text:?}: '%' must precede two hexadecimal digits");
        Error::new(ErrorKind::InvalidInput, what)
    };
    let mut bytes = Vec::new();
    let mut rest = text.iter();
    while let Some(byte) = rest.next() {
        if *byte != b'%' {
            bytes.push(*byte);
            continue;
        }
        let mut digit =
            || rest.next().and_then(|digit| char::from(*digit).to_digit(16)).ok_or_else(bad);
        bytes.push((digit()? * 16 + digit()?) as u8);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_path_or_a_uri() {
        let path = |path: &[u8]| Uri::Path(PathBuf::from(OsString::from_vec(path.to_vec())));
        let other = |scheme: &str| Uri::Other { scheme: scheme.into() };
        let parsed = |text: &str| Uri::parse(Path::new(text));
        for (text, uri) in [
            ("/srv/r", path(b"/srv/r")),
            ("vm.img", path(b"vm.img")),
            ("a:b.img", path(b"a:b.img")),
            ("./s3://x", path(b"./s3://x")),
            ("/srv/s3://x", path(b"/srv/s3://x")),
            ("./qemu:vm", path(b"./qemu:vm")),
            ("file:///srv/a%20b%C3%A4", path("/srv/a b\u{e4}".as_bytes())),
            ("file:///a%fF", path(b"/a\xff")),
            ("s3://bucket/r", other("s3")),
            ("nbd+unix:///vm?socket=/s", other("nbd+unix")),
            ("qemu:/run/vm.sock", other("qemu")),
            ("libvirt:vm/vda", other("libvirt")),
        ] {
            assert_eq!(parsed(text).unwrap(), uri, "{text}");
            if let Uri::Path(path) = uri.clone()
                && path.is_absolute()
            {
                let shown = path.to_str().map_or_else(|| file_uri(&path), str::to_owned);
                assert_eq!(path.shown(), shown);
                assert_eq!(Uri::parse(Path::new(&file_uri(&path))).unwrap(), uri);
            }
        }
        for text in ["file://host/r", "file:///a%2", "file:///a%zz"] {
            assert_eq!(parsed(text).unwrap_err().kind(), ErrorKind::InvalidInput, "{text}");
        }
    }
}
