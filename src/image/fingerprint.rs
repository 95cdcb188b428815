//! What tells an image that stands still from one that was written to: its length, its times, and a few of
//! its bytes.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::units::ExtentKind;
use crate::image::{Disk, Source};
use serde::{Deserialize, Serialize};
use std::os::unix::fs::MetadataExt;

/// How many places are looked at.
const SAMPLES: u64 = 16;
/// Bytes at each.
const SAMPLE_BYTES: u64 = 4096;

/// An image as it was at one moment, as far as a quick look tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Its length.
    pub bytes: u64,
    /// Time of the last modification of its file, in nanoseconds since 1970; none of what is no file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtime_ns: Option<i64>,
    /// Time of the last change of the inode, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ctime_ns: Option<i64>,
    /// What a server calls its content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Some of its bytes.
    pub samples: Vec<ImageSample>,
}

/// 4096 bytes of an image, or fewer at its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSample {
    /// Where.
    pub offset: u64,
    /// BLAKE3 of them, 64 hexadecimal digits.
    pub digest: String,
}

impl Fingerprint {
    /// Of a disk as it is now, with samples from all over its data.
    ///
    /// # Errors
    /// Of the disk.
    pub fn of(disk: &Disk) -> Result<Self> {
        let source = disk.source();
        let bytes = source.image_bytes();
        let mut offsets: Vec<u64> = Vec::new();
        for index in 0..SAMPLES.min(bytes) {
            let at = (u128::from(bytes) * u128::from(index) / u128::from(SAMPLES)) as u64;
            let extent = source.extent_at(at)?;
            let is_hole = extent.kind == ExtentKind::Hole;
            offsets.push(if is_hole { extent.offset + extent.bytes } else { at });
        }
        offsets.retain(|offset| *offset < bytes);
        offsets.dedup();
        let samples: Result<Vec<ImageSample>> =
            offsets.into_iter().map(|offset| sample(source, offset)).collect();
        let (mtime_ns, ctime_ns) = times(disk);
        let tag = tag(disk).map(str::to_owned);
        Ok(Self { bytes, mtime_ns, ctime_ns, tag, samples: samples? })
    }

    /// Fails if a disk is not what it was; `with_samples`: by its bytes as well.
    ///
    /// # Errors
    /// `Mismatch` with what differs; of the disk.
    pub fn check(&self, disk: &Disk, with_samples: bool) -> Result<()> {
        let changed = |what: &str| {
            let what = format!("{} was modified since it was planned: {what}", disk.name());
            Err(Error::new(ErrorKind::Mismatch, what)
                .hint("make a new plan, of an image that nothing writes to"))
        };
        let source = disk.source();
        if source.image_bytes() != self.bytes {
            return changed("its length has changed");
        }
        if times(disk) != (self.mtime_ns, self.ctime_ns) {
            return changed("its times have changed");
        }
        if tag(disk) != self.tag.as_deref() {
            return changed("its ETag has changed");
        }
        for known in self.samples.iter().filter(|_| with_samples) {
            if sample(source, known.offset)? != *known {
                return changed(&format!("its bytes at {} have changed", known.offset));
            }
        }
        Ok(())
    }
}

impl Fingerprint {
    /// What tells the content of a disk on a server from any other, by this: of an object its ETag, of what
    /// is in HDFS its length and time, and of both the bytes that were looked at. None where that does not
    /// tell.
    pub fn version(&self, disk: &Disk) -> Option<String> {
        let Disk::Remote(image) = disk else { return None };
        let name = image.content_name()?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(name.as_bytes());
        hasher.update(&self.bytes.to_le_bytes());
        for sample in &self.samples {
            hasher.update(&sample.offset.to_le_bytes());
            hasher.update(sample.digest.as_bytes());
        }
        Some(hasher.finalize().to_hex().to_string())
    }
}

fn sample(source: &dyn Source, offset: u64) -> Result<ImageSample> {
    let bytes = SAMPLE_BYTES.min(source.image_bytes().saturating_sub(offset));
    let mut buffer = Vec::new();
    let window = source.read(offset, bytes as usize, &mut buffer)?;
    let digest = blake3::hash(window.bytes()).to_hex().to_string();
    Ok(ImageSample { offset, digest })
}

fn tag(disk: &Disk) -> Option<&str> {
    match disk {
        Disk::Remote(image) => image.version().tag.as_deref(),
        _ => None,
    }
}

/// Those of the file that it lies in.
fn times(disk: &Disk) -> (Option<i64>, Option<i64>) {
    if let Disk::Remote(image) = disk {
        return (i64::try_from(image.version().time.as_nanosecond()).ok(), None);
    }
    let file = disk.container().filter(|image| !image.is_device());
    let metadata = file.and_then(|image| image.file().metadata().ok());
    let ns = |seconds: i64, ns: i64| seconds.checked_mul(1_000_000_000)?.checked_add(ns);
    metadata.map_or((None, None), |of| {
        (ns(of.mtime(), of.mtime_nsec()), ns(of.ctime(), of.ctime_nsec()))
    })
}
