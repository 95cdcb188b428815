//! An object that is sealed while it is written.

use super::kept::Kept;
use super::object::Sealer;
use crate::base::error::Result;
use crate::store::Upload;
use std::sync::Arc;

pub(super) struct SealedUpload {
    upload: Box<dyn Upload>,
    sealer: Sealer,
    /// What is known of the object that this one may take the place of, and its name.
    kept: Option<(Arc<Kept>, String)>,
}

impl SealedUpload {
    /// Begins with the head.
    pub fn begin(
        mut upload: Box<dyn Upload>,
        sealer: Sealer,
        kept: Option<(Arc<Kept>, String)>,
        head: &[u8],
    ) -> Result<Box<dyn Upload>> {
        upload.write(head)?;
        Ok(Box::new(Self { upload, sealer, kept }))
    }

    fn end(self, publish: impl FnOnce(Box<dyn Upload>) -> Result<()>) -> Result<()> {
        let Self { mut upload, sealer, kept } = self;
        sealer.end(|chunk| upload.write(chunk))?;
        let published = publish(upload);
        // Somebody may have opened the one before since this one was begun.
        if let Some((kept, name)) = kept {
            kept.forget(&name);
        }
        published
    }
}

impl Upload for SealedUpload {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let Self { upload, sealer, .. } = self;
        sealer.add(bytes, |chunk| upload.write(chunk))
    }

    fn publish(self: Box<Self>) -> Result<()> {
        self.end(|upload| upload.publish())
    }

    fn publish_over(self: Box<Self>) -> Result<()> {
        self.end(|upload| upload.publish_over())
    }
}
