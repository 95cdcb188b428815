//! A new object on a server, which appears whole or not at all.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::message::{Setting, message};
use crate::base::transfer::Transfer;
use crate::image::write::Target;
use crate::image::write::stream::Stream;
use crate::store::{RemoteUrl, Upload, create_remote, is_remote_there};
use std::io::{self, Write};

/// An object that is being written.
pub struct NewObject {
    stream: Stream<Uploaded>,
    url: RemoteUrl,
    transfer: Transfer,
}

fn exists(url: &RemoteUrl) -> Error {
    let what = format!("{url} exists");
    Error::new(ErrorKind::AlreadyExists, what).hint(message![
        "use ",
        Setting::Force,
        " to replace it"
    ])
}

/// What is sent; none once it is there.
struct Uploaded {
    upload: Option<Box<dyn Upload>>,
    /// Why it failed: more than a stream can say.
    failure: Option<Error>,
    may_replace: bool,
}

impl Write for Uploaded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.upload.as_mut().map_or(Ok(()), |upload| upload.write(bytes));
        written.map(|()| bytes.len()).map_err(|e| {
            self.failure = Some(e);
            io::Error::other("the upload has failed")
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
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
        let upload = Some(create_remote(url, transfer)?);
        let uploaded = Uploaded { upload, failure: None, may_replace };
        let stream = Stream::new(uploaded, &url.to_string());
        Ok(Self { stream, url: url.clone(), transfer: transfer.clone() })
    }

    fn told<T>(&mut self, outcome: Result<T>) -> Result<T> {
        outcome.map_err(|e| self.stream.inner().failure.take().unwrap_or(e))
    }
}

impl Target for NewObject {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let written = self.stream.write(offset, bytes);
        self.told(written)
    }

    fn zero(&mut self, offset: u64, bytes: u64) -> Result<()> {
        let written = self.stream.zero(offset, bytes);
        self.told(written)
    }

    fn advance_watermark(&mut self, _: u64) -> Result<()> {
        Ok(())
    }

    fn is_sequential(&self) -> bool {
        true
    }

    fn finish(&mut self) -> Result<()> {
        let uploaded = self.stream.inner();
        let Some(upload) = uploaded.upload.take() else { return Ok(()) };
        // Not every server looks itself when the parts of an object are put together.
        if !uploaded.may_replace && is_remote_there(&self.url, &self.transfer)? {
            return Err(exists(&self.url));
        }
        if uploaded.may_replace { upload.publish_over() } else { upload.publish() }
    }

    fn name(&self) -> String {
        self.stream.name()
    }
}
