//! The beginning of a disk.

use crate::base::error::{Error, Result};
use crate::base::units::Extent;
use crate::image::{Source, Window};

/// A disk without what it has beyond some length.
pub struct Prefix<'a> {
    source: &'a dyn Source,
    image_bytes: u64,
}

impl<'a> Prefix<'a> {
    /// The first `bytes` bytes of a disk, or all of one that is shorter.
    pub fn new(source: &'a dyn Source, bytes: u64) -> Self {
        Self { source, image_bytes: source.image_bytes().min(bytes) }
    }
}

impl Source for Prefix<'_> {
    fn image_bytes(&self) -> u64 {
        self.image_bytes
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let extent = self.source.extent_at(offset)?;
        let bytes = extent.bytes.min(self.image_bytes.saturating_sub(extent.offset));
        Ok(Extent { bytes, ..extent })
    }

    fn read<'b>(
        &'b self,
        offset: u64,
        bytes: usize,
        buffer: &'b mut Vec<u8>,
    ) -> Result<Window<'b>> {
        self.source.read(offset, bytes, buffer)
    }

    fn read_until_bad(
        &self,
        offset: u64,
        bytes: usize,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<Error>> {
        self.source.read_until_bad(offset, bytes, buffer)
    }

    fn prefetch(&self, offset: u64, bytes: u64) {
        self.source.prefetch(offset, bytes);
    }

    fn check(&self) -> Result<()> {
        self.source.check()
    }

    fn check_at_end(&self) -> Result<()> {
        self.source.check_at_end()
    }

    fn is_limited(&self) -> bool {
        self.source.is_limited()
    }

    fn name(&self) -> String {
        self.source.name()
    }
}
