//! An object that is sealed while it is written.

use super::object::Sealer;
use crate::base::error::Result;
use crate::store::Upload;

pub(super) struct SealedUpload {
    upload: Box<dyn Upload>,
    sealer: Sealer,
}

impl SealedUpload {
    /// Begins with the head.
    pub fn begin(
        mut upload: Box<dyn Upload>,
        sealer: Sealer,
        head: &[u8],
    ) -> Result<Box<dyn Upload>> {
        upload.write(head)?;
        Ok(Box::new(Self { upload, sealer }))
    }

    fn end(self, publish: impl FnOnce(Box<dyn Upload>) -> Result<()>) -> Result<()> {
        let Self { mut upload, sealer } = self;
        sealer.end(|chunk| upload.write(chunk))?;
        publish(upload)
    }
}

impl Upload for SealedUpload {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let Self { upload, sealer } = self;
        sealer.add(bytes, |chunk| upload.write(chunk))
    }

    fn publish(self: Box<Self>) -> Result<()> {
        self.end(|upload| upload.publish())
    }

    fn publish_over(self: Box<Self>) -> Result<()> {
        self.end(|upload| upload.publish_over())
    }
}
