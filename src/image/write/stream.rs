//! A pipe: bytes in order, zeros written out.

use crate::base::error::{Error, ErrorKind, Result};
use crate::image::write::{Target, ZEROS};
use std::io::Write;

/// Writes an image to a stream.
pub struct Stream<W: Write> {
    out: W,
    name: String,
    offset: u64,
}

impl<W: Write> Stream<W> {
    /// Writes to `out`, which is called `name` in messages.
    pub fn new(out: W, name: &str) -> Self {
        Self { out, name: name.into(), offset: 0 }
    }

    /// Where the bytes go.
    pub fn inner(&mut self) -> &mut W {
        &mut self.out
    }

    fn emit(&mut self, bytes: &[u8]) -> Result<()> {
        self.offset += bytes.len() as u64;
        let name = &self.name;
        self.out.write_all(bytes).map_err(|e| Error::os("write to", name, e))
    }

    fn check(&self, offset: u64) -> Result<()> {
        if offset != self.offset {
            let what = format!("{} cannot go back to byte {offset}", self.name);
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
        Ok(())
    }
}

impl<W: Write> Target for Stream<W> {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.check(offset)?;
        self.emit(bytes)
    }

    fn zero(&mut self, offset: u64, bytes: u64) -> Result<()> {
        self.check(offset)?;
        let mut rest = bytes;
        while rest > 0 {
            let now = rest.min(ZEROS.len() as u64);
            self.emit(ZEROS.get(..now as usize).unwrap_or_default())?;
            rest -= now;
        }
        Ok(())
    }

    fn advance_watermark(&mut self, _: u64) -> Result<()> {
        Ok(())
    }

    fn is_sequential(&self) -> bool {
        true
    }

    fn finish(&mut self) -> Result<()> {
        let name = &self.name;
        self.out.flush().map_err(|e| Error::os("write to", name, e))
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}
