//! Formats of image files, told by their magic. A guest can write any of them into a raw disk, so this is
//! asked once, before the first snapshot of an image, and never decides anything later.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::message::{Setting, message};
use crate::base::uri::Shown;
use crate::image::Source;
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::str::FromStr;

/// How the guest's disk lies in the file, device or export of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageFormat {
    /// As people call it.
    name: &'static str,
    /// As `qemu-img` and a manifest call it.
    qemu: &'static str,
}

/// Name, name in `qemu-img`, offset, magic.
const MAGICS: [(&str, &str, usize, &[u8]); 12] = [
    ("qcow2", "qcow2", 0, b"QFI\xfb\0\0\0\x02"),
    ("qcow2", "qcow2", 0, b"QFI\xfb\0\0\0\x03"),
    ("qcow", "qcow", 0, b"QFI\xfb\0\0\0\x01"),
    ("QED", "qed", 0, b"QED\0"),
    ("VMDK", "vmdk", 0, b"KDMV"),
    ("VMDK", "vmdk", 0, b"COWD"),
    ("VMDK", "vmdk", 0, b"# Disk DescriptorFile"),
    ("VHDX", "vhdx", 0, b"vhdxfile"),
    ("VDI", "vdi", 64, &[0x7f, 0x10, 0xda, 0xbe]),
    ("VHD", "vpc", 0, b"conectix"),
    ("Parallels", "parallels", 0, b"WithoutFreeSpace"),
    ("Parallels", "parallels", 0, b"WithouFreSpacExt"),
];
/// The first bytes, in which all of these are.
const HEAD_BYTES: usize = 512;
/// A VHD of fixed size is a raw disk with this much behind it, which begins with the magic, too.
const VHD_FOOTER_BYTES: u64 = 512;
/// What `qemu-nbd` reads for us.
const THROUGH_QEMU: [&str; 4] = ["vmdk", "vhdx", "vdi", "vpc"];

impl ImageFormat {
    /// The bytes of the file are those of the disk.
    pub const RAW: Self = Self { name: "raw", qemu: "raw" };
    /// Read natively.
    pub const QCOW2: Self = Self { name: "qcow2", qemu: "qcow2" };

    /// The format that a file of `bytes` bytes seems to have; raw if nothing tells, or if it cannot be read:
    /// whoever goes on to read it is told.
    pub fn of(file: &File, bytes: u64) -> Self {
        Self::found(bytes, |offset, buffer| file.read_at(buffer, offset).ok())
    }

    /// The same of what a disk begins with.
    pub fn within(disk: &dyn Source) -> Self {
        let bytes = disk.image_bytes();
        Self::found(bytes, |offset, buffer| {
            let mut own = Vec::new();
            let count = (bytes - offset).min(buffer.len() as u64) as usize;
            let window = disk.read(offset, count, &mut own).ok()?;
            buffer.get_mut(..count)?.copy_from_slice(window.bytes());
            Some(count)
        })
    }

    /// `read` fills a buffer from an offset on, as far as there is something.
    fn found(bytes: u64, read: impl Fn(u64, &mut [u8]) -> Option<usize>) -> Self {
        let mut head = [0; HEAD_BYTES];
        let Some(count) = read(0, &mut head) else { return Self::RAW };
        let head = head.get(..count).unwrap_or_default();
        let has = |offset: usize, magic: &[u8]| {
            head.get(offset..).is_some_and(|rest| rest.starts_with(magic))
        };
        let known = MAGICS.iter().find(|(.., offset, magic)| has(*offset, magic));
        if let Some(&(name, qemu, ..)) = known {
            return Self { name, qemu };
        }
        let mut foot = [0; 8];
        let Some(at) = bytes.checked_sub(VHD_FOOTER_BYTES) else { return Self::RAW };
        let is_fixed_vhd = read(at, &mut foot) == Some(foot.len()) && &foot == b"conectix";
        if is_fixed_vhd { Self { name: "VHD", qemu: "vpc" } } else { Self::RAW }
    }

    /// True if a file of that name is called a qcow2 image.
    pub fn is_qcow2_by_name(path: &Path) -> bool {
        path.extension().is_some_and(|e| e.eq_ignore_ascii_case(Self::QCOW2.qemu))
    }

    /// That which a manifest calls so; none if this program does not know it.
    pub fn recorded(name: &str) -> Option<Self> {
        let all = MAGICS.iter().map(|&(name, qemu, ..)| Self { name, qemu });
        all.chain([Self::RAW]).find(|format| format.qemu == name)
    }

    /// True if the bytes of the file are those of the disk.
    pub fn is_raw(self) -> bool {
        self == Self::RAW
    }

    /// What to call it in a message.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// As `qemu-img` calls it, and a manifest.
    pub fn qemu(self) -> &'static str {
        self.qemu
    }

    /// True if an image of it cannot be in several files, unless its header says so.
    pub fn is_one_file(self) -> bool {
        self.qemu != "vmdk"
    }

    /// True for a format that QEMU reads for us.
    pub fn is_read_through_qemu(self) -> bool {
        THROUGH_QEMU.contains(&self.qemu)
    }

    /// Why it is not linked although nobody said that it is one.
    pub fn refusal_of_relink(self, place: &impl fmt::Display) -> Error {
        let what = format!("{place} looks like a {} image", self.name);
        Error::new(ErrorKind::Unsupported, what).hint(message![
            "confirm that with ",
            Setting::Format.to(self.qemu),
            ", or, if it really is a raw disk, use ",
            Setting::Format.to("raw"),
        ])
    }

    /// Why an image of it is not taken as it is.
    pub fn refusal(self, place: &impl fmt::Display) -> Error {
        let (name, qemu) = (self.name, self.qemu);
        let what = format!("{place} looks like a {name} image, not a raw image");
        let convert =
            format!("convert it with \"qemu-img convert -f {qemu} -O raw {place} NEW.img\"");
        let through = match self.is_read_through_qemu() {
            true => message![", read it through qemu-nbd with ", Setting::ViaQemu],
            false => message![""],
        };
        let hint = message![convert, through, ", or, if it really is a raw disk, use "];
        Error::new(ErrorKind::Unsupported, what).hint(hint.then(Setting::Format.to("raw")))
    }
}

impl FromStr for ImageFormat {
    type Err = Error;

    /// As a user names it: `raw`, `qcow2`, `vmdk`, `vhdx`, `vdi`, `vhd`.
    fn from_str(text: &str) -> Result<Self> {
        let name = if text == "vhd" { "vpc" } else { text };
        let known = Self::recorded(name);
        known
            .filter(|f| *f == Self::RAW || *f == Self::QCOW2 || f.is_read_through_qemu())
            .ok_or_else(|| {
                let what = format!("unknown image format \"{}\"", text.escape_debug());
                Error::new(ErrorKind::InvalidInput, what)
                    .hint("use raw, qcow2, vmdk, vhdx, vdi or vhd")
            })
    }
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// Fails if a file whose bytes are to be taken as those of a disk looks like another format.
///
/// # Errors
/// `Unsupported`, with the command that converts it.
pub fn refuse_foreign(file: &File, path: &Path, bytes: u64) -> Result<()> {
    let format = ImageFormat::of(file, bytes);
    if format.is_raw() { Ok(()) } else { Err(format.refusal(&path.shown())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn name_of(bytes: &[u8]) -> &'static str {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        ImageFormat::of(&file, bytes.len() as u64).name()
    }

    #[test]
    fn each_format_is_told_by_its_magic() {
        for (name, qemu, offset, magic) in MAGICS {
            let mut bytes = vec![0; 4096];
            bytes[offset..][..magic.len()].copy_from_slice(magic);
            assert_eq!(name_of(&bytes), name);
            assert_eq!(ImageFormat::recorded(qemu).unwrap().name(), name);
            // At another place, or cut off, it is nothing.
            bytes.insert(0, 0);
            assert_eq!(name_of(&bytes), "raw", "{name}");
            assert_eq!(name_of(&magic[..magic.len() - 1]), "raw", "{name}");
        }
        let mut fixed = vec![7; 4096];
        fixed[4096 - 512..][..8].copy_from_slice(b"conectix");
        assert_eq!(name_of(&fixed), "VHD");
        for raw in [&[][..], b"\0", &[0; 600], b"LUKS\xba\xbe", &[0xeb; 512]] {
            assert_eq!(name_of(raw), "raw");
        }
        for (text, name) in [("raw", "raw"), ("qcow2", "qcow2"), ("vhd", "VHD"), ("vpc", "VHD")] {
            assert_eq!(text.parse::<ImageFormat>().unwrap().name(), name);
        }
        for text in ["", "RAW", "qed", "luks"] {
            assert!(text.parse::<ImageFormat>().is_err(), "{text}");
        }
    }
}
