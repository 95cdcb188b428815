//! A raw image that the blocks of a base are read from when they are needed (FORMAT.md M6).

use crate::base::error::{Error, Result};
use crate::base::message::{Setting, Verb, message};
use crate::base::read_limit::ReadLimits;
use crate::base::units::BlockRange;
use crate::base::uri::Shown;
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// Where the blocks of a base are. The file is opened when the first one is wanted: to compare with
/// the base, its table is enough.
pub struct BaseImage {
    /// The snapshot whose blocks are in it: `NAME@N`.
    snapshot: String,
    /// How many of them.
    block_count: u64,
    /// None if it is not known any more.
    path: Option<PathBuf>,
    limits: ReadLimits,
    file: Mutex<Option<Arc<File>>>,
}

impl BaseImage {
    /// The image at `path`, with `block_count` blocks of the snapshot `NAME@N`.
    pub fn new(snapshot: &str, block_count: u64, path: Option<PathBuf>) -> Self {
        let (limits, file) = (ReadLimits::default(), Mutex::new(None));
        Self { snapshot: snapshot.into(), block_count, path, limits, file }
    }

    /// The same, read no faster than that.
    pub fn reading_within(mut self, limits: ReadLimits) -> Self {
        self.limits = limits;
        self
    }

    /// What to call it in a message.
    pub fn location(&self) -> String {
        let path = self.path.as_ref().map_or("(unknown)".into(), |p| p.shown().to_string());
        format!("{}: base image {path}", self.snapshot)
    }

    /// What to say of blocks that are not what they were.
    pub fn changed(&self, blocks: BlockRange, offset: u64) -> Error {
        let (first, last) = (blocks.first, blocks.end() - 1);
        let what = match blocks.count {
            1 => format!("block {first} (byte {offset}) has changed"),
            count => {
                format!("blocks {first} to {last} ({count} from byte {offset} on) have changed")
            }
        };
        Error::corrupt(format!("{}: {what}", self.location()))
            .hint("the file was modified; put the original back")
    }

    /// Fails unless it is there with so many bytes, which are not examined.
    pub fn check_size(&self, bytes: u64) -> Result<()> {
        let file = self.file()?;
        let failed = |e| Error::os("access", self.location(), e);
        let mut file = file.as_ref();
        let have = file.seek(SeekFrom::End(0)).map_err(failed)?;
        if have != bytes {
            let what = format!("{}: it has {have} bytes instead of {bytes}", self.location());
            return Err(Error::corrupt(what).hint("the file was modified; put the original back"));
        }
        Ok(())
    }

    /// Fills `buffer` from `offset` on; what lies beyond the end is zero. The caller proves what it
    /// gets: anybody can have written to the file.
    ///
    /// # Errors
    /// `Corrupt` if the file is not there: what depends on it is lost until it is back.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let file = self.file()?;
        let mut rest = buffer;
        let mut offset = offset;
        while !rest.is_empty() {
            let count = self.limits.piece(rest.len())?;
            match file.read_at(rest.get_mut(..count).unwrap_or_default(), offset) {
                Ok(0) => break,
                Ok(count) => {
                    rest = rest.get_mut(count..).unwrap_or_default();
                    offset += count as u64;
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => {
                    let what = format!("{}: cannot read at byte {offset}", self.location());
                    return Err(Error::io(what, e).at_offset(offset));
                }
            }
        }
        rest.fill(0);
        Ok(())
    }

    fn file(&self) -> Result<Arc<File>> {
        let mut open = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &*open {
            return Ok(file.clone());
        }
        let name = self.snapshot.split('@').next().unwrap_or_default();
        let relink = Verb::Relink.of(name).asking(Setting::BaseImage);
        let hint = message!["set its location with ", relink];
        let Some(path) = &self.path else {
            let what = format!(
                "{}: the location of its base image, which holds its {} blocks, is unknown",
                self.snapshot, self.block_count
            );
            return Err(Error::corrupt(what).hint(hint));
        };
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let file = Arc::new(opened.map_err(|e| {
            let what = format!(
                "cannot open {}, which holds its {} blocks",
                self.location(),
                self.block_count,
            );
            match e.kind() {
                // It is not there, which is a loss until it is back.
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => {
                    Error::corrupt(format!("{what}: {}", e.kind()))
                        .hint(message!["put it back, or ", hint])
                }
                _ => Error::io(what, e),
            }
        })?);
        *open = Some(file.clone());
        Ok(file)
    }
}
