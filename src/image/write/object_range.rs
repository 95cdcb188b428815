//! A range of an object on a server of which other hosts send the rest.

use crate::base::error::Result;
use crate::image::write::Target;
use crate::image::write::sent::SentStream;
use crate::store::RangeUpload;

/// A range that is being sent, in ascending order.
pub struct ObjectRange {
    stream: SentStream<dyn RangeUpload>,
    pieces: Vec<String>,
}

impl ObjectRange {
    /// Of an upload, called `name` in messages.
    pub fn new(upload: Box<dyn RangeUpload>, name: &str) -> Self {
        let stream = SentStream::new(upload, |upload, bytes| upload.write(bytes), name);
        Self { stream, pieces: Vec::new() }
    }

    /// What the server calls its pieces, once it is finished.
    pub fn into_pieces(self) -> Vec<String> {
        self.pieces
    }
}

impl Target for ObjectRange {
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
        if let Some(upload) = self.stream.take() {
            self.pieces = upload.finish()?;
        }
        Ok(())
    }

    fn name(&self) -> String {
        self.stream.name()
    }
}
