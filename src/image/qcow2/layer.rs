//! One file of a backing chain: what of the guest's disk it has, and where.

use super::header::Header;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::units::Extent;
use crate::image::{RawFile, Source};
use imago::file::File as ImagoFile;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, ShallowMapping};
use std::sync::{Mutex, PoisonError};
use zerocopy::FromBytes;
use zerocopy::byteorder::big_endian::U64;

/// A file of a chain.
pub(super) struct Layer {
    pub file: RawFile,
    /// Length of its disk.
    pub disk_bytes: u64,
    /// None of a raw file.
    tables: Option<Tables>,
    /// The extent of the file that was asked for last.
    last_extent: Mutex<Option<Extent>>,
}

/// The mapping of a qcow2 file.
struct Tables {
    cluster_bytes: u64,
    access: FormatAccess<ImagoFile>,
}

/// What a layer has of a run of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Run {
    /// Nothing: what is below counts.
    Below,
    Zeros,
    /// The bytes, from that byte of the file on.
    Stored(u64),
    Compressed,
}

/// Bits of an L1 entry that say where the L2 table is.
const L1_OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

impl Layer {
    /// A raw file.
    pub fn raw(file: RawFile) -> Self {
        let disk_bytes = file.image_bytes();
        Self { file, disk_bytes, tables: None, last_extent: Mutex::new(None) }
    }

    /// A qcow2 file with that header. No other file is opened.
    ///
    /// # Errors
    /// `Corrupt` if its tables are not all in the file.
    pub fn qcow2(file: RawFile, header: &Header) -> Result<Self> {
        check_l1(&file, header)?;
        let failed = |e| failed(&file, "open", 0, e);
        let storage = file.file().try_clone().and_then(ImagoFile::try_from).map_err(failed)?;
        let mut image: Qcow2<ImagoFile> = Qcow2::open_image(storage, false).map_err(failed)?;
        // Each file is opened by us: this one stands for itself alone.
        image.set_data_file(None);
        image.set_backing(None);
        let tables =
            Tables { cluster_bytes: header.cluster_bytes(), access: FormatAccess::new(image) };
        let disk_bytes = header.disk_bytes;
        Ok(Self { file, disk_bytes, tables: Some(tables), last_extent: Mutex::new(None) })
    }

    /// What there is at `offset` of its disk, for at most `most` bytes, all of which are of the disk; and for how
    /// many, at least one.
    ///
    /// # Errors
    /// `Corrupt` if it lies behind the end of the file.
    pub fn run_at(&self, offset: u64, most: u64) -> Result<(Run, u64)> {
        let Some(tables) = &self.tables else { return Ok((Run::Stored(offset), most)) };
        let found = tables.access.get_shallow_mapping(offset, most);
        let (mapping, bytes) = found.map_err(|e| failed(&self.file, "read", offset, e))?;
        let bytes = bytes.clamp(1, most);
        match mapping {
            ShallowMapping::Raw { offset: at, .. } => self.stored(tables, offset, at, bytes),
            ShallowMapping::Zero { explicit: true, .. } => Ok((Run::Zeros, bytes)),
            ShallowMapping::Special { .. } => Ok((Run::Compressed, bytes)),
            _ => Ok((Run::Below, bytes)),
        }
    }

    /// The last cluster of a file need not be whole: what is missing of it is zeros. A cluster of which nothing is
    /// there was lost.
    fn stored(&self, tables: &Tables, offset: u64, at: u64, bytes: u64) -> Result<(Run, u64)> {
        let (end, cluster) = (self.file.image_bytes(), tables.cluster_bytes);
        if at < end {
            return Ok((Run::Stored(at), bytes.min(end - at)));
        }
        let rest_of_cluster = cluster - at % cluster;
        if at - at % cluster < end {
            return Ok((Run::Zeros, bytes.min(rest_of_cluster)));
        }
        let what = format!("byte {offset} of its disk lies behind its end: it is cut off");
        Err(Error::corrupt(what).hint("take it from a copy").at(self.file.name()))
    }

    /// Reads what is compressed, all of `into`.
    pub fn read_compressed(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        let Some(tables) = &self.tables else { return Ok(()) };
        let read = tables.access.read(into, offset);
        read.map_err(|e| failed(&self.file, "read", offset, e))
    }

    /// Data or a hole of the file at byte `at` of it. Clusters may be preallocated.
    pub fn file_extent_at(&self, at: u64) -> Result<Extent> {
        let mut last = self.last_extent.lock().unwrap_or_else(PoisonError::into_inner);
        let has = |extent: &Extent| (extent.offset..extent.offset + extent.bytes).contains(&at);
        let extent = match last.filter(has) {
            Some(extent) => extent,
            None => self.file.extent_at(at)?,
        };
        *last = Some(extent);
        Ok(Extent { offset: at, bytes: extent.offset + extent.bytes - at, ..extent })
    }
}

/// A table that is cut off would be read as zeros.
fn check_l1(file: &RawFile, header: &Header) -> Result<()> {
    let mut bytes = Vec::new();
    if let Some(bad) =
        file.read_until_bad(header.l1_offset, 8 * header.l1_entries as usize, &mut bytes)?
    {
        return Err(bad);
    }
    let entries = <[U64]>::ref_from_bytes(&bytes).unwrap_or_default();
    let table_end = |entry: &U64| (entry.get() & L1_OFFSET).checked_add(header.cluster_bytes());
    let is_lost = |entry: &&U64| table_end(entry).is_none_or(|end| end > file.image_bytes());
    match entries.iter().filter(|entry| entry.get() & L1_OFFSET != 0).find(is_lost) {
        Some(entry) => {
            let at = entry.get() & L1_OFFSET;
            let what = format!("its L2 table at byte {at} lies behind its end: it is cut off");
            Err(Error::corrupt(what).hint("take it from a copy").at(file.name()))
        }
        None => Ok(()),
    }
}

/// What the system does not give is an error of the system; the rest is said of the bytes.
fn failed(file: &RawFile, what: &str, offset: u64, error: std::io::Error) -> Error {
    match error.raw_os_error() {
        Some(_) => Error::os(what, file.name(), error),
        None => {
            let what = format!("its tables are damaged at byte {offset} of its disk: {error}");
            Error::new(ErrorKind::Corrupt, what)
                .hint("look at it with \"qemu-img check\"")
                .at(file.name())
        }
    }
}
