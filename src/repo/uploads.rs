//! Where the files of a snapshot go while it is read: each part is published as soon as it is whole, and the
//! last file, which is the delta file or names the parts, waits for the commit.

use crate::base::error::{Error, ErrorKind, Result};
use crate::delta::LayerOutput;
use crate::format::PartFooter;
use crate::repo::Repository;
use crate::repo::change::discard_unless_named;
use crate::store::Upload;
use uuid::Uuid;

/// The files of one layer.
pub(crate) struct Uploads<'a> {
    repository: &'a Repository,
    /// The image.
    name: String,
    /// Drawn for the file that is being written (C3).
    object: Uuid,
    /// None before its first bytes.
    upload: Option<Box<dyn Upload + 'a>>,
    published: Vec<String>,
}

impl<'a> Uploads<'a> {
    /// Into the folder of an image.
    pub(crate) fn new(repository: &'a Repository, name: &str) -> Self {
        let (upload, published) = (None, Vec::new());
        Self { repository, name: name.into(), object: Uuid::new_v4(), upload, published }
    }

    /// What the file that is being written is called.
    pub(crate) fn object(&self) -> String {
        format!("{}.delta", self.object)
    }

    fn upload(&mut self) -> Result<&mut Box<dyn Upload + 'a>> {
        Ok(match &mut self.upload {
            Some(upload) => upload,
            none => {
                let object = format!("{}/{}.delta", self.name, self.object);
                none.insert(self.repository.store.create(&object)?)
            }
        })
    }

    /// Publishes the last file. All of them are given, of which a manifest has to name each.
    ///
    /// # Errors
    /// Of the store.
    pub(crate) fn publish(mut self) -> Result<Vec<String>> {
        let nothing = || Error::new(ErrorKind::Internal, "a file of which nothing was written");
        let upload = self.upload.take().ok_or_else(nothing)?;
        upload.publish()?;
        self.published.push(self.object());
        Ok(self.published)
    }

    /// Removes what was published, and throws the rest away.
    ///
    /// # Errors
    /// Of the store; then a later writer does it.
    pub(crate) fn discard(self) -> Result<()> {
        let published = self.published.iter().map(String::as_str);
        discard_unless_named(self.repository, &self.name, published)
    }
}

impl LayerOutput for Uploads<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.upload()?.write(bytes)
    }

    fn write_index(&mut self, bytes: &[u8]) -> Result<()> {
        self.upload()?.write_index(bytes)
    }

    fn end_part(&mut self, _: &PartFooter) -> Result<Uuid> {
        let ended = std::mem::replace(&mut self.object, Uuid::new_v4());
        if let Some(upload) = self.upload.take() {
            upload.publish()?;
        }
        self.published.push(format!("{ended}.delta"));
        Ok(ended)
    }
}
