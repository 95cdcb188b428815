//! Formats of images that are not raw, told by their magic. A guest can write any of them into a raw disk,
//! so this is asked once, before the first snapshot of an image, and never decides anything later.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::message::{Setting, message};
use crate::base::uri::Shown;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A format other than raw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForeignFormat {
    /// As people call it.
    name: &'static str,
    /// As `qemu-img` calls it.
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

impl ForeignFormat {
    /// The format that a file of `bytes` bytes seems to have; none if it is raw, or cannot be read: whoever
    /// goes on to read it is told.
    pub fn of(file: &File, bytes: u64) -> Option<Self> {
        let mut head = [0; HEAD_BYTES];
        let count = file.read_at(&mut head, 0).ok()?;
        let head = head.get(..count).unwrap_or_default();
        let has = |offset: usize, magic: &[u8]| {
            head.get(offset..).is_some_and(|rest| rest.starts_with(magic))
        };
        let known = MAGICS.iter().find(|(.., offset, magic)| has(*offset, magic));
        if let Some(&(name, qemu, ..)) = known {
            return Some(Self { name, qemu });
        }
        let mut foot = [0; 8];
        let at = bytes.checked_sub(VHD_FOOTER_BYTES)?;
        let is_fixed_vhd =
            file.read_at(&mut foot, at).is_ok_and(|n| n == 8) && &foot == b"conectix";
        is_fixed_vhd.then_some(Self { name: "VHD", qemu: "vpc" })
    }

    /// What to call it in a message.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// Why an image that has it is not taken.
    pub fn refusal(self, path: &Path) -> Error {
        let (name, qemu) = (self.name, self.qemu);
        let place = path.shown();
        let what = format!("{place} looks like a {name} image, and only raw images can be read");
        Error::new(ErrorKind::Unsupported, what).hint(message![
            format!("convert it with \"qemu-img convert -f {qemu} -O raw {place} NEW.img\", or, "),
            "if it is a raw disk all the same, use ",
            Setting::Format.to("raw"),
        ])
    }
}

/// Fails if a file that nobody has taken a snapshot of yet is no raw image.
///
/// # Errors
/// `Unsupported`, with the command that converts it.
pub fn refuse_foreign(file: &File, path: &Path, bytes: u64) -> Result<()> {
    ForeignFormat::of(file, bytes).map_or(Ok(()), |format| Err(format.refusal(path)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn name_of(bytes: &[u8]) -> Option<&'static str> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        ForeignFormat::of(&file, bytes.len() as u64).map(ForeignFormat::name)
    }

    #[test]
    fn each_format_is_told_by_its_magic() {
        for (name, _, offset, magic) in MAGICS {
            let mut bytes = vec![0; 4096];
            bytes[offset..][..magic.len()].copy_from_slice(magic);
            assert_eq!(name_of(&bytes), Some(name));
            // At another place, or cut off, it is nothing.
            bytes.insert(0, 0);
            assert_eq!(name_of(&bytes), None, "{name}");
            assert_eq!(name_of(&magic[..magic.len() - 1]), None, "{name}");
        }
        let mut fixed = vec![7; 4096];
        fixed[4096 - 512..][..8].copy_from_slice(b"conectix");
        assert_eq!(name_of(&fixed), Some("VHD"));
        for raw in [&[][..], b"\0", &[0; 600], b"LUKS\xba\xbe", &[0xeb; 512]] {
            assert_eq!(name_of(raw), None);
        }
    }
}
