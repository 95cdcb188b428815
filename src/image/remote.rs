//! Images in object stores and in HDFS, read by ranges. Where the server names the content of an object, each
//! range is of that one or is refused; otherwise its length and time before and after tell.

use crate::base::error::Result;
use crate::base::transfer::Transfer;
use crate::base::units::{Extent, ExtentKind};
use crate::image::{FileStat, Source, Window};
use crate::store::RemoteFile;
use crate::store::{RemoteKind, RemoteUrl, Version};
use uuid::Uuid;

/// As many bytes as are best asked for at once.
const READ_BYTES: u64 = 8 << 20;

/// An image on a server.
pub struct RemoteImage(RemoteFile);

impl RemoteImage {
    /// Opens one.
    ///
    /// # Errors
    /// `NotFound`; those of the server.
    pub fn open(url: &RemoteUrl, transfer: &Transfer) -> Result<Self> {
        RemoteFile::open(url, transfer).map(Self)
    }

    /// What its content is called.
    pub fn version(&self) -> &Version {
        self.0.version()
    }

    /// What keeps it as it is while it is read, in a few words; none if nothing does.
    pub fn pinned(&self) -> Option<&'static str> {
        let url = self.0.url();
        let is_snapshot =
            url.kind == RemoteKind::Hdfs && url.path.split('/').any(|step| step == ".snapshot");
        match (&self.version().tag, is_snapshot) {
            (_, true) => Some("a snapshot of HDFS"),
            // Each read names it.
            (Some(tag), _) if !tag.starts_with("W/") => Some("its ETag"),
            _ => None,
        }
    }

    /// What its content is called, as far as that is sure: with a snapshot of HDFS, whatever that is called,
    /// the path, and the time of the file, which changes with each that is written.
    pub(crate) fn content_name(&self) -> Option<String> {
        let (url, version) = (self.0.url(), self.version());
        match &version.tag {
            Some(tag) if !tag.starts_with("W/") => Some(format!("{url}\n{tag}")),
            _ if url.kind == RemoteKind::Hdfs => {
                let mut steps: Vec<&str> = url.path.split('/').collect();
                if let Some(at) = steps.iter().position(|step| *step == ".snapshot") {
                    steps.drain(at..(at + 2).min(steps.len()));
                }
                Some(format!("{}\n{}", steps.join("/"), version.time))
            }
            _ => None,
        }
    }

    /// What identifies its content, if the server names it (FORMAT.md S1).
    pub fn stat(&self) -> Option<FileStat> {
        let version = self.0.version();
        let tag = version.tag.as_ref().filter(|tag| !tag.starts_with("W/"))?;
        let name = format!("{}\n{tag}", self.0.url());
        let digest = *blake3::hash(name.as_bytes()).as_bytes();
        let (id, _) = digest.split_first_chunk()?;
        Some(FileStat {
            device: 0,
            inode: 0,
            bytes: version.bytes,
            mtime_ns: i64::try_from(version.time.as_nanosecond()).ok()?,
            ctime_ns: 0,
            boot_id: Uuid::from_bytes(*id),
            filesystem: 0,
        })
    }
}

impl Source for RemoteImage {
    fn image_bytes(&self) -> u64 {
        self.0.version().bytes
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let bytes = self.image_bytes().saturating_sub(offset);
        Ok(Extent { offset, bytes, kind: ExtentKind::Data })
    }

    fn read<'a>(
        &'a self,
        offset: u64,
        bytes: usize,
        buffer: &'a mut Vec<u8>,
    ) -> Result<Window<'a>> {
        buffer.resize(bytes, 0);
        self.0.read_at(offset, buffer)?;
        Ok(Window::Copied(buffer))
    }

    fn best_read_bytes(&self) -> u64 {
        READ_BYTES
    }

    fn check(&self) -> Result<()> {
        // Each read is of what was opened, or all is looked at in the end.
        Ok(())
    }

    fn check_at_end(&self) -> Result<()> {
        self.0.check()
    }

    fn name(&self) -> String {
        self.0.url().to_string()
    }
}
