//! Bytes that go to a server: an upload as something that a stream can write to.

use crate::base::error::{Error, Result};
use std::io::{self, Write};

/// An upload; none once it has ended.
pub(super) struct Sent<U: ?Sized> {
    upload: Option<Box<U>>,
    send: fn(&mut U, &[u8]) -> Result<()>,
    /// Why it failed: more than a stream can say.
    failure: Option<Error>,
}

impl<U: ?Sized> Sent<U> {
    /// An upload, and how bytes are added to it.
    pub fn new(upload: Box<U>, send: fn(&mut U, &[u8]) -> Result<()>) -> Self {
        Self { upload: Some(upload), send, failure: None }
    }

    /// The upload, to be ended.
    pub fn take(&mut self) -> Option<Box<U>> {
        self.upload.take()
    }

    /// What the server said, in the place of what the stream did.
    pub fn told(&mut self, error: Error) -> Error {
        self.failure.take().unwrap_or(error)
    }
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
