//! Which other files an image would have QEMU open, as far as that has to be known before QEMU is started.
//! Whoever had the disk could write anything into it; so a variant of which this is not certain is refused.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::message::{Setting, message};
use crate::base::uri::Shown;
use crate::image::ImageFormat;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// QEMU reads no more of a descriptor of a VMDK.
const MAX_DESCRIPTOR_BYTES: usize = (1 << 20) - 1;
/// Where the descriptor is in a VMDK of one file, and how much of it QEMU searches for a parent.
const EMBEDDED_OFFSET: u64 = 512;
const EMBEDDED_BYTES: usize = 20 * 512;
/// The most extents of one VMDK: VMware makes one of 2 GB each.
const MAX_EXTENTS: usize = 1024;

/// The other files of which `file`, at `path`, is made: extents of a VMDK, in the same folder. None for all
/// other formats, whose backing files are given by whoever starts QEMU.
///
/// # Errors
/// `Unsupported` if there are any and `backing_ok` is false, and for an image with a parent, or with extents
/// elsewhere; `Io` if it cannot be read.
pub fn check_references(
    file: &File,
    path: &Path,
    format: ImageFormat,
    backing_ok: bool,
) -> Result<Vec<PathBuf>> {
    let seen = Seen { file, path, format };
    let is_differencing = match format.qemu() {
        "vmdk" => return seen.vmdk(backing_ok),
        "vhdx" => seen.is_differencing_vhdx()?,
        "vpc" => seen.is_differencing_vhd()?,
        "vdi" => seen.is_differencing_vdi()?,
        _ => false,
    };
    if is_differencing {
        let what = format!("{} is a differencing {format} image", path.shown());
        return Err(Error::new(ErrorKind::Unsupported, format!("{what}, which QEMU cannot read"))
            .hint("merge it into its parent with the program that made it, and use that"));
    }
    Ok(Vec::new())
}

/// Fails if an extent of a VMDK refers to files of its own.
///
/// # Errors
/// `Unsupported`.
pub fn check_extent(file: &File, path: &Path) -> Result<()> {
    let seen = Seen { file, path, format: ImageFormat::of(file, 0) };
    if seen.read(0, 4)? == b"KDMV" && seen.has_descriptor_alone()? {
        return Err(seen.refused("has a descriptor but no data"));
    }
    Ok(())
}

/// Which of its two kinds of files a qcow2 refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Qcow2Needs {
    /// A backing file.
    pub backing: bool,
    /// An external data file.
    pub data_file: bool,
}

impl Qcow2Needs {
    /// Of an open file.
    ///
    /// # Errors
    /// `InvalidInput` if it is no qcow2 of version 2 or 3.
    pub fn of(file: &File, path: &Path) -> Result<Self> {
        const DATA_FILE: u8 = 1 << 2;
        let seen = Seen { file, path, format: ImageFormat::QCOW2 };
        let head = seen.read(0, 104)?;
        let is_version = |version| head.starts_with(&[b'Q', b'F', b'I', 0xfb, 0, 0, 0, version]);
        if head.len() < 72 || !(is_version(2) || is_version(3)) {
            let what = format!("{} is not a qcow2 image", path.shown());
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        let backing = head.get(8..16).is_some_and(|offset| offset.iter().any(|b| *b != 0));
        // The last byte of the incompatible bits, which version 2 does not have.
        let data_file = is_version(3) && head.get(79).is_some_and(|bits| bits & DATA_FILE != 0);
        Ok(Self { backing, data_file })
    }
}

/// A file that is examined.
struct Seen<'a> {
    file: &'a File,
    path: &'a Path,
    format: ImageFormat,
}

impl Seen<'_> {
    /// Bytes from an offset on: fewer where the file ends.
    fn read(&self, offset: u64, bytes: usize) -> Result<Vec<u8>> {
        let mut found = vec![0; bytes];
        let mut count = 0;
        // Beyond this there is no file, and no system call.
        while i64::try_from(offset).is_ok_and(|at| at.checked_add(bytes as i64).is_some()) {
            let rest = found.get_mut(count..).unwrap_or_default();
            match self.file.read_at(rest, offset + count as u64) {
                Ok(0) => break,
                Ok(now) => count += now,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::os_at("read", self.path.shown(), offset, e)),
            }
        }
        found.truncate(count);
        Ok(found)
    }

    fn refused(&self, why: &str) -> Error {
        let (place, format) = (self.path.shown(), self.format);
        let what = format!("{place} {why}: such {format} images are not supported");
        Error::new(ErrorKind::Unsupported, what).hint(format!(
            "if you trust its origin, convert it with \"qemu-img convert -f {} -O raw {place} \
             NEW.img\"",
            format.qemu()
        ))
    }

    fn vmdk(&self, backing_ok: bool) -> Result<Vec<PathBuf>> {
        let magic = self.read(0, 4)?;
        let is_one_file = magic == b"KDMV" || magic == b"COWD";
        let text = match is_one_file {
            true => self.read(EMBEDDED_OFFSET, EMBEDDED_BYTES)?,
            false => self.read(0, MAX_DESCRIPTOR_BYTES)?,
        };
        let is_parent = |at: &[u8]| at.starts_with(b"parentFileNameHint");
        let with_parent = (0..text.len()).any(|at| text.get(at..).is_some_and(is_parent));
        if with_parent || has_parent_id(&text) {
            return Err(self.refused("depends on a parent"));
        }
        if is_one_file {
            let has_none = magic == b"COWD" || !self.has_descriptor_alone()?;
            return if has_none {
                Ok(Vec::new())
            } else {
                Err(self.refused("has only a descriptor"))
            };
        }
        if !names_are_plain(&text) {
            return Err(self.refused("has extents that are not files in its folder"));
        }
        let names = extents(&text);
        if names.len() > MAX_EXTENTS {
            return Err(self.refused("has too many extents"));
        }
        if !backing_ok && let Some(first) = names.first() {
            let what = format!(
                "{} reads {} other files, {} first",
                self.path.shown(),
                names.len(),
                Path::new(first).shown()
            );
            return Err(Error::new(ErrorKind::Unsupported, what)
                .hint(message!["if you trust its origin, use ", Setting::BackingOk]));
        }
        let folder = crate::base::folder::parent(self.path);
        Ok(names.into_iter().map(|name| folder.join(name)).collect())
    }

    /// A VMDK without capacity has a descriptor, which names other files.
    fn has_descriptor_alone(&self) -> Result<bool> {
        Ok(self.read(12, 8)?.iter().all(|byte| *byte == 0))
    }

    fn is_differencing_vhd(&self) -> Result<bool> {
        let length = self.file.metadata().map_or(0, |meta| meta.len());
        for offset in [0, length.saturating_sub(512)] {
            let footer = self.read(offset, 64)?;
            let is_one = footer.starts_with(b"conectix");
            if is_one && footer.get(60..64) == Some(&[0, 0, 0, 4]) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn is_differencing_vdi(&self) -> Result<bool> {
        Ok(self.read(76, 4)? == [4, 0, 0, 0])
    }

    /// The flag is in a table that is found by way of another one, of which there are two.
    fn is_differencing_vhdx(&self) -> Result<bool> {
        const REGIONS: [u64; 2] = [192 << 10, 256 << 10];
        const TABLE_BYTES: usize = 64 << 10;
        const METADATA_REGION: [u8; 16] =
            *b"\x06\xa2\x7c\x8b\x90\x47\x9a\x4b\xb8\xfe\x57\x5f\x05\x0f\x88\x6e";
        const FILE_PARAMETERS: [u8; 16] =
            *b"\x37\x67\xa1\xca\x36\xfa\x43\x4d\xb3\xb6\x33\xf0\xaa\x44\xe7\x6b";
        const HAS_PARENT: u8 = 1 << 1;
        for regions in REGIONS {
            let table = self.read(regions, TABLE_BYTES)?;
            for region in entries_of(&table, 16, METADATA_REGION) {
                let metadata = number(region, 16, 8);
                let items = self.read(metadata, TABLE_BYTES)?;
                for item in entries_of(&items, 32, FILE_PARAMETERS) {
                    let at = metadata.saturating_add(number(item, 16, 4));
                    let parameters = self.read(at, 8)?;
                    if parameters.get(4).is_some_and(|flags| flags & HAS_PARENT != 0) {
                        return Ok(true);
                    }
                }
            }
        }
        Ok(false)
    }
}

/// The entries, of 32 bytes, of a table of VHDX behind its header that begin so.
fn entries_of(table: &[u8], header: usize, id: [u8; 16]) -> impl Iterator<Item = &[u8]> {
    let entries = table.get(header..).unwrap_or_default().chunks(32);
    entries.filter(move |entry| entry.starts_with(&id))
}

/// A number of up to 8 bytes, little-endian.
fn number(bytes: &[u8], at: usize, width: usize) -> u64 {
    let found = bytes.get(at..at + width).unwrap_or_default();
    found.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// True if a line says that there is a parent.
fn has_parent_id(text: &[u8]) -> bool {
    text.split(|byte| *byte == b'\n').any(|line| {
        let id = line.trim_ascii().strip_prefix(b"parentCID=");
        id.is_some_and(|id| !id.trim_ascii().eq_ignore_ascii_case(b"ffffffff"))
    })
}

/// True if nothing in quotes, however they are counted, can be a path or a URI: QEMU finds extents in another
/// way than we do. What we do not find is not there for QEMU.
fn names_are_plain(text: &[u8]) -> bool {
    let lines = text.split(|byte| matches!(byte, b'\n' | b'\r'));
    let mut quoted = lines.flat_map(|line| line.split(|byte| *byte == b'"').skip(1));
    quoted.all(|part| !part.iter().any(|byte| matches!(byte, b'/' | b':' | 0)))
}

/// The names of extents: `RW 4192256 SPARSE "disk-s001.vmdk"`, and others of that kind; each once.
fn extents(text: &[u8]) -> Vec<OsString> {
    const KINDS: [&[u8]; 5] = [b"FLAT", b"SPARSE", b"VMFS", b"VMFSSPARSE", b"SESPARSE"];
    let mut names = Vec::new();
    for line in text.split(|byte| matches!(byte, b'\n' | b'\r')) {
        let mut quoted = line.split(|byte| *byte == b'"');
        let words = quoted.next().unwrap_or_default();
        let mut words = words.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        let is_extent = words.next() == Some(b"RW")
            && words.next().is_some()
            && words.next().is_some_and(|kind| KINDS.contains(&kind));
        let name =
            quoted.next().filter(|name| is_extent && !name.starts_with(b".") && !name.is_empty());
        let name = name.map(|name| OsString::from_vec(name.to_vec()));
        if let Some(name) = name.filter(|name| !names.contains(name)) {
            names.push(name);
        }
        if names.len() > MAX_EXTENTS {
            break;
        }
    }
    names
}

#[cfg(test)]
#[path = "foreign_tests.rs"]
mod tests;
