//! A new object on a server, which appears whole or not at all.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::message::{Setting, message};
use crate::base::transfer::Transfer;
use crate::image::write::Target;
use crate::image::write::sent::SentStream;
use crate::store::{RemoteUrl, Upload, create_remote, is_remote_there};

/// An object that is being written.
pub struct NewObject {
    stream: SentStream<dyn Upload>,
    url: RemoteUrl,
    transfer: Transfer,
    may_replace: bool,
}

fn exists(url: &RemoteUrl) -> Error {
    let what = format!("{url} exists");
    Error::new(ErrorKind::AlreadyExists, what).hint(message![
        "use ",
        Setting::Force,
        " to replace it"
    ])
}

impl NewObject {
    /// Begins one.
    ///
    /// # Errors
    /// `AlreadyExists` if it is there, unless it may be replaced; those of the server.
    pub fn create(url: &RemoteUrl, transfer: &Transfer, may_replace: bool) -> Result<Self> {
        if !may_replace && is_remote_there(url, transfer)? {
            return Err(exists(url));
        }
        let upload = create_remote(url, transfer)?;
        let stream = SentStream::new(upload, |upload, bytes| upload.write(bytes), &url.to_string());
        Ok(Self { stream, url: url.clone(), transfer: transfer.clone(), may_replace })
    }
}

impl Target for NewObject {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.stream.write(offset, bytes)
    }

    fn zero(&mut self, offset: u64, bytes: u64) -> Result<()> {
        self.stream.zero(offset, bytes)
    }

    fn advance_watermark(&mut self, _: u64) -> Result<()> {
        Ok(())
    }

    fn is_sequential(&self) -> bool {
        true
    }

    fn finish(&mut self) -> Result<()> {
        let Some(upload) = self.stream.take() else { return Ok(()) };
        // Not every server looks itself when the parts of an object are put together.
        if !self.may_replace && is_remote_there(&self.url, &self.transfer)? {
            return Err(exists(&self.url));
        }
        if self.may_replace { upload.publish_over() } else { upload.publish() }
    }

    fn name(&self) -> String {
        self.stream.name()
    }
}
