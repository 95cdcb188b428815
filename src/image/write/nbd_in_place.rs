//! An export of an NBD server that is changed where it lies.

use crate::base::error::{Error, ErrorKind, Result};
use crate::image::Source;
use crate::image::nbd::NbdDisk;
use crate::image::write::{InPlace, Target, ZEROS};

/// An export that was opened to be written. Writes are under way when the call returns; what fails is told by
/// a later one, at the latest by [`Target::finish`].
///
/// Of a server that cannot flush, what is finished is written, and not known to be durable
/// ([`NbdDisk::can_flush`]).
pub struct NbdInPlace<'a> {
    disk: &'a NbdDisk,
    /// What users know it as.
    kind: &'static str,
    is_begun: bool,
    written_bytes: u64,
}

impl<'a> NbdInPlace<'a> {
    /// Writes to an export that was opened to be written.
    pub fn new(disk: &'a NbdDisk) -> Self {
        Self { disk, kind: "export", is_begun: false, written_bytes: 0 }
    }

    /// The same where the export is our own, of an image file.
    pub fn of_image(disk: &'a NbdDisk) -> Self {
        Self { kind: "image", ..Self::new(disk) }
    }

    /// Has `change` put a few bytes into the unit of the server at `start`, which is read before.
    fn patch(&self, start: u64, change: impl FnOnce(&mut [u8])) -> Result<()> {
        let bytes = self.disk.alignment().min(self.disk.image_bytes() - start);
        let mut unit = Vec::new();
        self.disk.read_copied(start, bytes as usize, &mut unit)?;
        change(&mut unit);
        self.disk.write(start, &unit)
    }

    /// Calls one of two for each part of a range: `unit` for a part of one unit of the server, with where
    /// that begins, and `whole` for whole units.
    fn by_units(
        &self,
        offset: u64,
        bytes: u64,
        mut unit: impl FnMut(u64, u64, u64) -> Result<()>,
        mut whole: impl FnMut(u64, u64) -> Result<()>,
    ) -> Result<()> {
        let (align, end) = (self.disk.alignment(), offset + bytes);
        let first = offset.next_multiple_of(align).min(end);
        // The last unit may end where the export does.
        let last = if end == self.disk.image_bytes() { end } else { end / align * align };
        let last = last.max(first);
        if offset < first {
            unit(offset / align * align, offset, first)?;
        }
        if first < last {
            whole(first, last)?;
        }
        if last < end {
            unit(last / align * align, last, end)?;
        }
        Ok(())
    }
}

impl Target for NbdInPlace<'_> {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.is_begun = true;
        self.written_bytes += bytes.len() as u64;
        let part = |from: u64, to: u64| {
            bytes.get((from - offset) as usize..(to - offset) as usize).unwrap_or_default()
        };
        self.by_units(
            offset,
            bytes.len() as u64,
            |start, from, to| {
                self.patch(start, |unit| {
                    let place = unit.get_mut((from - start) as usize..(to - start) as usize);
                    place.unwrap_or_default().copy_from_slice(part(from, to));
                })
            },
            |from, to| self.disk.write(from, part(from, to)),
        )
    }

    fn zero(&mut self, offset: u64, bytes: u64) -> Result<()> {
        self.is_begun = true;
        self.written_bytes += bytes;
        self.by_units(
            offset,
            bytes,
            |start, from, to| {
                self.patch(start, |unit| {
                    let place = unit.get_mut((from - start) as usize..(to - start) as usize);
                    place.unwrap_or_default().fill(0);
                })
            },
            |from, to| match self.disk.can_zero() {
                true => self.disk.zero(from, to - from),
                false => (from..to).step_by(ZEROS.len()).try_for_each(|at| {
                    let zeros = ZEROS.get(..(to - at) as usize).unwrap_or(&ZEROS);
                    self.disk.write(at, zeros)
                }),
            },
        )
    }

    fn advance_watermark(&mut self, _: u64) -> Result<()> {
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        self.disk.flush()
    }

    fn name(&self) -> String {
        self.disk.name()
    }
}

impl InPlace for NbdInPlace<'_> {
    fn has_fixed_length(&self) -> bool {
        true
    }

    fn check_free_space(&self, bytes: u64) -> Result<()> {
        if self.disk.image_bytes() < bytes {
            let what = format!(
                "{} has {} bytes, but the image has {bytes}",
                self.disk.name(),
                self.disk.image_bytes()
            );
            let hint = format!("use a larger {}", self.kind);
            return Err(Error::new(ErrorKind::InvalidInput, what).hint(hint));
        }
        Ok(())
    }

    fn set_length(&mut self, _: u64) -> Result<()> {
        let what = format!("{}: its length cannot be changed", self.disk.name());
        Err(Error::new(ErrorKind::Unsupported, what))
    }

    fn is_begun(&self) -> bool {
        self.is_begun
    }

    fn written_bytes(&self) -> u64 {
        self.written_bytes
    }
}
