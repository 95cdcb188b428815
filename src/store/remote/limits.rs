//! What is sent to a server, no faster than allowed, and told of.

use crate::base::error::Result;
use crate::base::transfer::Transfer;
use crate::store::{RangeUpload, Upload};

/// An upload that keeps to what is allowed.
pub(super) struct LimitedUpload {
    pub(super) upload: Box<dyn Upload>,
    pub(super) transfer: Transfer,
}

impl Upload for LimitedUpload {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.transfer.send(bytes.len() as u64)?;
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

/// The same of some pieces of an object.
pub(super) struct LimitedRange {
    pub(super) upload: Box<dyn RangeUpload>,
    pub(super) transfer: Transfer,
}

impl RangeUpload for LimitedRange {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.transfer.send(bytes.len() as u64)?;
        self.upload.write(bytes)
    }

    fn finish(self: Box<Self>) -> Result<Vec<String>> {
        self.upload.finish()
    }
}
