//! The gate: which files belong to a disk, found by ourselves before anything else opens one of them.
//!
//! A header names files, and whoever had the disk wrote the header: a guest's disk that names `/etc/shadow` as its
//! backing file would have that in the next snapshot. So no file is opened that was not allowed; the format of each
//! is what the header says, and never guessed; and whatever is no file (`json:`, `nbd:`, `ssh:`) is refused.

use super::header::{Backing, HEAD_BYTES, Header};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::uri::Shown;
use crate::image::{RawFile, Source};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// As deep a chain is read.
pub const MAX_FILES: usize = 200;

/// A disk and the files below it, each of them open and held, the newest first.
pub struct BackingChain {
    /// At least one.
    pub files: Vec<ChainFile>,
}

/// A file of a chain.
pub struct ChainFile {
    /// The file.
    pub file: RawFile,
    /// Its header; none of a raw file.
    pub header: Option<Header>,
    /// Where its data is, if that is another file. Raw.
    pub data_file: Option<RawFile>,
}

impl BackingChain {
    /// Follows the names from a qcow2 file on. With `backing_ok`, files that its header names are opened.
    ///
    /// # Errors
    /// `Unsupported` for a file that names others if that is not allowed, and for a name or a format that is not
    /// taken; `Corrupt` for a loop; what the headers say ([`Header::decode`]); what opening a file says
    /// ([`RawFile::open`]).
    pub fn follow(file: RawFile, backing_ok: bool) -> Result<Self> {
        let mut files: Vec<ChainFile> = Vec::new();
        let mut next = Some(file);
        while let Some(file) = next.take() {
            let header = read_header(&file)?;
            if let Some((what, name)) = header.named_file().filter(|_| !backing_ok) {
                return Err(not_allowed(&file, what, name));
            }
            let data_file = match &header.data_file {
                Some(name) => Some(open(&file, name, "data file")?),
                None => None,
            };
            let backing = header.backing.clone();
            files.push(ChainFile { file, header: Some(header), data_file });
            let (Some(backing), Some(last)) = (backing, files.last()) else { continue };
            let is_raw = is_raw(&last.file, &backing)?;
            let below = open(&last.file, &backing.name, "backing file")?;
            check_chain(&files, &below)?;
            if is_raw {
                files.push(ChainFile { file: below, header: None, data_file: None });
            } else {
                next = Some(below);
            }
        }
        Ok(Self { files })
    }
}

fn read_header(file: &RawFile) -> Result<Header> {
    let bytes = file.image_bytes().min(HEAD_BYTES as u64) as usize;
    let mut head = Vec::new();
    if let Some(bad) = file.read_until_bad(0, bytes, &mut head)? {
        return Err(bad);
    }
    Header::decode(&head, file.image_bytes()).map_err(|e| e.at(file.name()))
}

/// The caller knows how it is allowed, and says so.
fn not_allowed(file: &RawFile, what: &str, name: &Path) -> Error {
    let what =
        format!("{} depends on a {what} that its header names: {}", file.name(), name.shown());
    Error::new(ErrorKind::Unsupported, what).hint(
        "whoever had the disk can have named any file of this host: allow it if you trust them",
    )
}

/// Whether a backing file is raw; otherwise it is qcow2.
fn is_raw(file: &RawFile, backing: &Backing) -> Result<bool> {
    let name = backing.name.shown();
    let refused = |what: String, hint: String| {
        Err(Error::new(ErrorKind::Unsupported, format!("{}: {what}", file.name())).hint(hint))
    };
    match backing.format.as_deref() {
        Some("raw") => Ok(true),
        Some("qcow2") => Ok(false),
        Some(other) => refused(
            format!("its backing file has the format \"{}\": {name}", other.escape_debug()),
            "raw and qcow2 can be read: convert it with \"qemu-img convert -O qcow2\"".to_owned(),
        ),
        // A guest that wrote to a raw file could make it look like any other, which names more files.
        None => refused(
            format!("it does not say which format its backing file has: {name}"),
            format!("say it with \"qemu-img rebase -u -b {name} -F FORMAT {}\"", file.name()),
        ),
    }
}

/// Opens what the header of a file names, and nothing but a file or a block device.
fn open(named_by: &RawFile, name: &Path, what: &str) -> Result<RawFile> {
    let bytes = name.as_os_str().as_bytes();
    let first = bytes.split(|byte| *byte == b'/').next().unwrap_or_default();
    if first.contains(&b':') {
        let what = format!("{}: its {what} is no path: {}", named_by.name(), name.shown());
        return Err(Error::new(ErrorKind::Unsupported, what).hint(
            "files and block devices are read; convert it with \"qemu-img convert -O qcow2\"",
        ));
    }
    let path = named_by.path().parent().unwrap_or(Path::new("")).join(name);
    RawFile::open(&path).map_err(|e| e.at(format!("{}: its {what}", named_by.name())))
}

/// Fails if a file stands in its own chain, or the chain has no end.
fn check_chain(files: &[ChainFile], below: &RawFile) -> Result<()> {
    let (Some(first), Some(new)) = (files.first(), identity(below)) else { return Ok(()) };
    if files.iter().any(|above| identity(&above.file) == Some(new)) {
        let what = format!("{} is its own backing file", below.name());
        return Err(Error::corrupt(what).hint("write the right one with \"qemu-img rebase -u\""));
    }
    if files.len() >= MAX_FILES {
        let what = format!("{} depends on more than {MAX_FILES} files", first.file.name());
        return Err(Error::new(ErrorKind::LimitExceeded, what)
            .hint("merge some of them with \"qemu-img commit\" or \"qemu-img rebase\""));
    }
    Ok(())
}

/// What is the same of a file or device under all its names.
fn identity(file: &RawFile) -> Option<(u64, u64, u64)> {
    let meta = file.file().metadata().ok()?;
    match file.is_device() {
        true => Some((0, 0, meta.rdev())),
        false => Some((meta.dev(), meta.ino(), 0)),
    }
}
