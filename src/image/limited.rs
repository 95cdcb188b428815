//! A disk that is read no faster than is allowed.

use crate::base::error::{Error, Result};
use crate::base::events::Context;
use crate::base::read_limit::ReadLimits;
use crate::base::units::Extent;
use crate::image::{Source, Window};

/// A disk, read within the limits of a context. Without any, and for a disk whose own reads keep to them, it
/// is the disk itself.
pub struct Limited<'a> {
    source: &'a dyn Source,
    limits: ReadLimits,
}

impl<'a> Limited<'a> {
    /// A disk within the limits of a context.
    pub fn new(source: &'a dyn Source, context: &Context) -> Self {
        let is_limited = source.is_limited();
        let limits = if is_limited { ReadLimits::default() } else { context.read_limits().clone() };
        Self { source, limits }
    }
}

impl Source for Limited<'_> {
    fn image_bytes(&self) -> u64 {
        self.source.image_bytes()
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        self.source.extent_at(offset)
    }

    fn read<'b>(
        &'b self,
        offset: u64,
        bytes: usize,
        buffer: &'b mut Vec<u8>,
    ) -> Result<Window<'b>> {
        match self.limits.is_empty() {
            true => self.source.read(offset, bytes, buffer),
            false => self.read_copied(offset, bytes, buffer),
        }
    }

    /// By pieces, each of which is mapped and copied: what is mapped is read when it is touched, and what was
    /// not in the page cache before does not stay there.
    fn read_until_bad(
        &self,
        offset: u64,
        bytes: usize,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<Error>> {
        if self.limits.is_empty() {
            return self.source.read_until_bad(offset, bytes, buffer);
        }
        buffer.clear();
        let mut piece = Vec::new();
        while buffer.len() < bytes {
            let (have, at) = (buffer.len(), offset + buffer.len() as u64);
            let count = self.limits.piece(bytes - have)?;
            let window = self.source.read(at, count, &mut piece);
            let copied = window.and_then(|window| {
                buffer.extend_from_slice(window.bytes());
                window.check(self.source)
            });
            if copied.is_err() {
                // Plain reads tell which byte it is.
                buffer.truncate(have);
                let bad = self.source.read_until_bad(at, count, &mut piece)?;
                buffer.extend_from_slice(&piece);
                if bad.is_some() {
                    return Ok(bad);
                }
            }
        }
        Ok(None)
    }

    fn best_read_bytes(&self) -> u64 {
        self.source.best_read_bytes()
    }

    fn prefetch(&self, offset: u64, bytes: u64) {
        // It would be read at once.
        if self.limits.is_empty() {
            self.source.prefetch(offset, bytes);
        }
    }

    fn check(&self) -> Result<()> {
        self.source.check()
    }

    fn check_at_end(&self) -> Result<()> {
        self.source.check_at_end()
    }

    fn is_limited(&self) -> bool {
        true
    }

    fn name(&self) -> String {
        self.source.name()
    }
}
