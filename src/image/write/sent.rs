//! Bytes that go to a server: an upload as something that a stream can write to.

use crate::base::error::{Error, Result};
use crate::image::write::Target;
use crate::image::write::stream::Stream;
use std::io::{self, Write};

/// A stream into an upload, which fails as its server does.
pub(super) struct SentStream<U: ?Sized>(Stream<Sent<U>>);

impl<U: ?Sized> SentStream<U> {
    /// To an upload, called `name` in messages; and how bytes are added to it.
    pub fn new(upload: Box<U>, send: fn(&mut U, &[u8]) -> Result<()>, name: &str) -> Self {
        Self(Stream::new(Sent { upload: Some(upload), send, failure: None }, name))
    }

    /// As of [`Target::write`].
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let written = self.0.write(offset, bytes);
        written.map_err(|e| self.told(e))
    }

    /// As of [`Target::zero`].
    pub fn zero(&mut self, offset: u64, bytes: u64) -> Result<()> {
        let written = self.0.zero(offset, bytes);
        written.map_err(|e| self.told(e))
    }

    /// The upload, to be ended.
    pub fn take(&mut self) -> Option<Box<U>> {
        self.0.inner().upload.take()
    }

    pub fn name(&self) -> String {
        self.0.name()
    }

    /// What the server said, in the place of what the stream did.
    fn told(&mut self, error: Error) -> Error {
        self.0.inner().failure.take().unwrap_or(error)
    }
}

/// An upload; none once it has ended.
struct Sent<U: ?Sized> {
    upload: Option<Box<U>>,
    send: fn(&mut U, &[u8]) -> Result<()>,
    /// Why it failed: more than a stream can say.
    failure: Option<Error>,
}

impl<U: ?Sized> Write for Sent<U> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.upload.as_mut().map_or(Ok(()), |upload| (self.send)(upload, bytes));
        written.map(|()| bytes.len()).map_err(|e| {
            self.failure = Some(e);
            io::Error::other("the upload has failed")
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
