//! What QEMU is told of an image: all files that it may open, by descriptors, and all formats. It probes
//! nothing, and follows no name that stands in an image.

use super::foreign::{Qcow2Needs, check_extent, check_references};
use super::place::PrivateFolder;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::setters::setters;
use crate::base::uri::Shown;
use crate::image::ImageFormat;
use nix::fcntl::OFlag;
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An image, with all files that it is made of.
#[derive(Debug, Clone)]
pub struct QemuImage {
    /// Where it is.
    pub path: PathBuf,
    /// It, if it is open already: then its path is not opened again.
    pub opened: Option<Arc<File>>,
    /// How QEMU reads it.
    pub format: ImageFormat,
    /// The external data file of a qcow2, which is raw.
    pub data_file: Option<Box<QemuImage>>,
    /// The image that a qcow2 is based on. What its header names is not opened.
    pub backing: Option<Box<QemuImage>>,
    /// True if extents of a VMDK, in its own folder, may be read.
    pub backing_ok: bool,
}

impl QemuImage {
    /// An image that is one file.
    pub fn new(path: impl Into<PathBuf>, format: ImageFormat) -> Self {
        Self {
            path: path.into(),
            opened: None,
            format,
            data_file: None,
            backing: None,
            backing_ok: false,
        }
    }

    setters! {
        /// The same, open already. Nobody may hold QEMU's locks by it.
        opened: Option<Arc<File>>,
        /// The same with an external data file.
        data_file: Option<Box<QemuImage>>,
        /// The same on a backing image.
        backing: Option<Box<QemuImage>>,
        /// The same whose extents may be read.
        backing_ok: bool,
    }

    fn file(&self) -> Result<File> {
        match &self.opened {
            Some(file) => file.try_clone().map_err(|e| Error::os("open", self.path.shown(), e)),
            None => open(&self.path),
        }
    }

    fn check_needs(&self, file: &File) -> Result<()> {
        let needs = match self.format == ImageFormat::QCOW2 {
            true => Qcow2Needs::of(file, &self.path)?,
            false => Qcow2Needs { backing: false, data_file: false },
        };
        let given =
            Qcow2Needs { backing: self.backing.is_some(), data_file: self.data_file.is_some() };
        let place = self.path.shown();
        let refused = |kind, what: String| Err(Error::new(kind, format!("{place} {what}")));
        for (needs, given, name) in [
            (needs.backing, given.backing, "a backing file"),
            (needs.data_file, given.data_file, "an external data file"),
        ] {
            match (needs, given) {
                (true, false) => {
                    let what = format!("depends on {name}, which was not given");
                    return refused(ErrorKind::Unsupported, what);
                }
                (false, true) => {
                    return refused(ErrorKind::Mismatch, format!("does not depend on {name}"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The files that QEMU is given.
pub struct Opened<'a> {
    place: &'a PrivateFolder,
    /// What it inherits.
    files: Vec<File>,
    /// Under which names it knows them, and what they are called.
    names: Vec<(PathBuf, String)>,
}

impl<'a> Opened<'a> {
    /// None yet; their names will be in `place`.
    pub fn new(place: &'a PrivateFolder) -> Self {
        Self { place, files: Vec::new(), names: Vec::new() }
    }

    /// The files, which have to be inherited, and the names that QEMU has for them, with what they are
    /// called.
    pub fn into_parts(self) -> (Vec<File>, Vec<(PathBuf, String)>) {
        (self.files, self.names)
    }

    /// Opens what an image is made of, and describes it as QEMU's `BlockdevOptions`.
    ///
    /// # Errors
    /// If a file cannot be opened, or the image refers to others than were given.
    pub fn node(&mut self, image: &QemuImage, writable: bool) -> Result<Value> {
        let read_only = !writable;
        let file = image.file()?;
        image.check_needs(&file)?;
        let extents = check_references(&file, &image.path, image.format, image.backing_ok)?;
        let mut node = json!({
            "driver": image.format.qemu(),
            "read-only": read_only,
            "file": self.add(file, &image.path, None, writable)?,
        });
        for path in extents {
            let file = open(&path)?;
            check_extent(&file, &path)?;
            self.add(file, &path, path.file_name(), false)?;
        }
        let mut set = |key: &str, value| {
            if let Some(node) = node.as_object_mut() {
                node.insert(key.to_owned(), value);
            }
        };
        if writable {
            set("discard", "unmap".into());
            set("detect-zeroes", "unmap".into());
        }
        if matches!(image.format.qemu(), "qcow2" | "vmdk") {
            // Without it QEMU opens what the header names.
            set(
                "backing",
                match &image.backing {
                    Some(backing) => self.node(backing, false)?,
                    None => Value::Null,
                },
            );
        }
        if let Some(data) = &image.data_file {
            set("data-file", self.add(data.file()?, &data.path, None, writable)?);
        }
        Ok(node)
    }

    /// QEMU finds a file by a link to our descriptor of it: it is the one that we examined, whatever becomes
    /// of its name.
    fn add(
        &mut self,
        file: File,
        path: &Path,
        name: Option<&OsStr>,
        writable: bool,
    ) -> Result<Value> {
        let number = format!(".{}", self.files.len());
        let link = self.place.link(name.unwrap_or(OsStr::new(&number)), &file)?;
        let is_device = file.metadata().is_ok_and(|meta| meta.file_type().is_block_device());
        let mut node = json!({
            "driver": if is_device { "host_device" } else { "file" },
            "filename": link.to_str(),
            "read-only": !writable,
        });
        if let Some(node) = node.as_object_mut().filter(|_| writable) {
            node.insert("discard".to_owned(), "unmap".into());
            node.insert("locking".to_owned(), "on".into());
        }
        self.files.push(file);
        self.names.push((link, path.shown().to_string()));
        Ok(node)
    }
}

/// Opens a file or a device; a pipe would hold us up for ever.
fn open(path: &Path) -> Result<File> {
    let flags = OFlag::O_NONBLOCK.bits();
    let opened = File::options().read(true).custom_flags(flags).open(path);
    let file = opened.map_err(|e| Error::os("open", path.shown(), e))?;
    let kind = file.metadata().map_err(|e| Error::os("open", path.shown(), e))?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        let what = format!("{} is neither a file nor a block device", path.shown());
        return Err(Error::new(ErrorKind::InvalidInput, what));
    }
    Ok(file)
}
