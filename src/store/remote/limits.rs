//! How fast may be sent to a server, and fetched from it.

use crate::base::error::Result;
use crate::base::read_limit::ReadLimits;
use crate::store::Upload;

/// How fast may be sent and fetched.
#[derive(Clone, Default)]
pub struct TransferLimits {
    /// To the server.
    pub upload: ReadLimits,
    /// From it.
    pub download: ReadLimits,
}

/// An upload that is no faster than allowed.
pub(super) struct LimitedUpload {
    pub(super) upload: Box<dyn Upload>,
    pub(super) limits: ReadLimits,
}

impl Upload for LimitedUpload {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.limits.wait(bytes.len() as u64)?;
        self.upload.write(bytes)
    }

    fn write_index(&mut self, bytes: &[u8]) -> Result<()> {
        self.write(bytes)
    }

    fn publish(self: Box<Self>) -> Result<()> {
        self.upload.publish()
    }

    fn publish_over(self: Box<Self>) -> Result<()> {
        self.upload.publish_over()
    }
}
