//! The gate: which files belong to a disk, found by ourselves before anything else opens one of them.
//!
//! A header names files, and whoever had the disk wrote the header: a guest's disk that names `/etc/shadow`
//! as its backing file would have that in the next snapshot. So no file is opened that was not allowed; the
//! format of each is what the header says, and never guessed; and whatever is no file (`json:`, `nbd:`,
//! `ssh:`) is refused.

use super::header::{Backing, HEAD_BYTES, Header};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::message::{Setting, message};
use crate::base::uri::Shown;
use crate::image::{RawFile, Source};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// As deep a chain is read.
pub const MAX_FILES: usize = 200;

/// A disk and the files below it, each of them open and held.
pub struct BackingChain {
    /// Of the disk.
    pub header: Header,
    /// The file that was named.
    pub top: ChainFile,
    /// What is below it, the newest first.
    pub below: Vec<ChainFile>,
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
    /// `Unsupported` for a file that names others if that is not allowed, and for a name or a format that is
    /// not taken; `Corrupt` for a loop; what the headers say ([`Header::decode`]); what opening a file says
    /// ([`RawFile::open`]).
    pub fn follow(file: RawFile, backing_ok: bool) -> Result<Self> {
        let header = read_header(&file)?;
        let top = ChainFile::qcow2(file, header.clone(), backing_ok)?;
        let mut chain = Self { header, top, below: Vec::new() };
        while let Some(next) = chain.next(backing_ok)? {
            chain.below.push(next);
        }
        Ok(chain)
    }

    /// What the last file names, if it names one.
    fn next(&self, backing_ok: bool) -> Result<Option<ChainFile>> {
        let last = self.below.last().unwrap_or(&self.top);
        let backing = last.header.as_ref().and_then(|header| header.backing.as_ref());
        let Some(backing) = backing else { return Ok(None) };
        let is_raw = is_raw(&last.file, backing)?;
        let file = open(&last.file, &backing.name, "backing file")?;
        self.check_next(&file)?;
        if is_raw {
            return Ok(Some(ChainFile { file, header: None, data_file: None }));
        }
        let header = read_header(&file)?;
        ChainFile::qcow2(file, header, backing_ok).map(Some)
    }

    /// Fails if a file stands in its own chain, or the chain has no end.
    fn check_next(&self, next: &RawFile) -> Result<()> {
        let mut files = std::iter::once(&self.top).chain(&self.below);
        let new = identity(next);
        if new.is_some() && files.any(|above| identity(&above.file) == new) {
            let what = format!("{} is its own backing file", next.name());
            return Err(Error::corrupt(what).hint("set the right one with \"qemu-img rebase -u\""));
        }
        if self.below.len() + 1 >= MAX_FILES {
            let what = format!("{} depends on more than {MAX_FILES} files", self.top.file.name());
            return Err(Error::new(ErrorKind::LimitExceeded, what)
                .hint("merge some of them with \"qemu-img commit\" or \"qemu-img rebase\""));
        }
        Ok(())
    }
}

impl ChainFile {
    fn qcow2(file: RawFile, header: Header, backing_ok: bool) -> Result<Self> {
        if let Some((what, name)) = header.named_file().filter(|_| !backing_ok) {
            return Err(not_allowed(&file, what, name));
        }
        let data_file = match &header.data_file {
            Some(name) => Some(open(&file, name, "data file")?),
            None => None,
        };
        Ok(Self { file, header: Some(header), data_file })
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
    Error::new(ErrorKind::Unsupported, what).hint(message![
        "an image can name any file of this host; if you trust its origin, use ",
        Setting::BackingOk,
    ])
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
            format!(
                "its backing file has the unsupported format \"{}\": {name}",
                other.escape_debug()
            ),
            "only raw and qcow2 are supported: convert it with \"qemu-img convert -O qcow2\""
                .to_owned(),
        ),
        // A guest that wrote to a raw file could make it look like any other, which names more files.
        None => refused(
            format!("it does not specify the format of its backing file: {name}"),
            format!("set it with \"qemu-img rebase -u -b {name} -F FORMAT {}\"", file.name()),
        ),
    }
}

/// Opens what the header of a file names, and nothing but a file or a block device.
fn open(named_by: &RawFile, name: &Path, what: &str) -> Result<RawFile> {
    let bytes = name.as_os_str().as_bytes();
    let first = bytes.split(|byte| *byte == b'/').next().unwrap_or_default();
    if first.contains(&b':') {
        let what = format!("{}: its {what} is not a path: {}", named_by.name(), name.shown());
        return Err(Error::new(ErrorKind::Unsupported, what).hint(
            "only files and block devices are supported; convert it with \"qemu-img convert -O qcow2\"",
        ));
    }
    let path = named_by.path().parent().unwrap_or(Path::new("")).join(name);
    RawFile::open(&path).map_err(|e| e.at(format!("{}: its {what}", named_by.name())))
}

/// What is the same of a file or device under all its names.
fn identity(file: &RawFile) -> Option<(u64, u64, u64)> {
    let meta = file.file().metadata().ok()?;
    match file.is_device() {
        true => Some((0, 0, meta.rdev())),
        false => Some((meta.dev(), meta.ino(), 0)),
    }
}
