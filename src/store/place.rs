//! Where a repository is, as a user names it: a path, or a URL.

use super::{LocalStore, OsDisk, Store};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::folder::{Folder, resolve};
use std::fs::File;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// The absolute path of a repository in a folder, which is named by a path or as `file:///PATH`.
///
/// # Errors
/// `Unsupported` for a URL of another kind; `InvalidInput` for one that cannot be read.
pub fn locate(place: &Path) -> Result<PathBuf> {
    let path = match place.to_str().and_then(scheme_of) {
        None => place.to_owned(),
        Some(("file", rest)) if rest.starts_with('/') => PathBuf::from(percent_decoded(rest)?),
        Some(("file", _)) => {
            let what = format!("{} names no absolute path", place.display());
            return Err(Error::new(ErrorKind::InvalidInput, what).hint("write file:///PATH"));
        }
        Some((scheme, _)) => {
            let what = format!("this build has no {scheme} repositories: {}", place.display());
            return Err(Error::new(ErrorKind::Unsupported, what)
                .hint(format!("name a folder; one that is called so is ./{}", place.display())));
        }
    };
    std::path::absolute(&path).map_err(|e| Error::io(format!("cannot use {}", path.display()), e))
}

/// The store in a folder, which need not exist. Nobody else's link leads to it.
///
/// # Errors
/// `InvalidInput` if another user's link does.
pub fn store_at(path: &Path) -> Result<Arc<dyn Store>> {
    if path.exists() {
        resolve(path)?;
    }
    Ok(Arc::new(LocalStore::new(Arc::new(OsDisk::new(path.into())))))
}

/// Makes a folder for a repository, durably, and those above it that are missing.
///
/// # Errors
/// `Io` if one cannot be made; `InvalidInput` for a path with `..` that leads through what is not there.
pub fn make_folder(path: &Path) -> Result<()> {
    let failed = |e| Error::io(format!("cannot make the repository {}", path.display()), e);
    // From the first folder that is there on, each in the one before it: whoever may write to that one
    // cannot lead us elsewhere.
    let there = path.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    let missing = path.strip_prefix(there).unwrap_or(Path::new(""));
    if missing.components().any(|part| part == Component::ParentDir) {
        let what = format!("cannot make the repository {}: it has \"..\" in it", path.display());
        return Err(Error::new(ErrorKind::InvalidInput, what).hint("name it without"));
    }
    // Whoever may make a folder in one that he may not read cannot sync that one, either.
    let synced = |synced: io::Result<()>| match synced {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        other => other.map_err(failed),
    };
    let mut folder = Folder::open(&resolve(there)?).map_err(failed)?;
    for name in missing {
        match folder.make_folder(name, 0o700) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(failed(e)),
            _ => synced(folder.sync())?,
        }
        folder = folder.folder(name).map_err(failed)?;
    }
    // Of one that was there: its name may not be durable yet.
    match path.parent() {
        Some(above) if missing.as_os_str().is_empty() => {
            synced(File::open(above).and_then(|above| above.sync_all()))
        }
        _ => Ok(()),
    }
}

/// The scheme of a URL, and what stands behind its `://`.
fn scheme_of(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = text.split_once("://")?;
    let is_one = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    is_one.then_some((scheme, rest))
}

fn percent_decoded(text: &str) -> Result<String> {
    let bad = || {
        let what = format!("{text:?} is no path of a URL: after '%' stand two hexadecimal digits");
        Error::new(ErrorKind::InvalidInput, what)
    };
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let digits = [rest.clone().next(), rest.clone().nth(1)];
        match (byte, digits) {
            (b'%', [Some(high), Some(low)]) => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                let (high, low) = digit(high).zip(digit(low)).ok_or_else(bad)?;
                bytes.push((high * 16 + low) as u8);
                rest.nth(1);
            }
            (b'%', _) => return Err(bad()),
            _ => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_is_a_path_or_a_url_of_a_file() {
        let located = |text: &str| locate(Path::new(text));
        for (text, path) in [
            ("/srv/r", "/srv/r"),
            ("file:///srv/r", "/srv/r"),
            ("file:///srv/a%20b%C3%A4", "/srv/a bä"),
            ("/srv/s3://x", "/srv/s3:/x"),
        ] {
            assert_eq!(located(text).unwrap(), Path::new(path), "{text}");
        }
        assert_eq!(located("r").unwrap(), std::env::current_dir().unwrap().join("r"));
        for (text, kind) in [
            ("s3://bucket/r", ErrorKind::Unsupported),
            ("hdfs://host:1/r", ErrorKind::Unsupported),
            ("file://host/r", ErrorKind::InvalidInput),
            ("file:///a%2", ErrorKind::InvalidInput),
            ("file:///a%zz", ErrorKind::InvalidInput),
            ("file:///a%ff", ErrorKind::InvalidInput),
        ] {
            assert_eq!(located(text).unwrap_err().kind(), kind, "{text}");
        }
    }
}
