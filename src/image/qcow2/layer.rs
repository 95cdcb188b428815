//! One file of a backing chain: what of the guest's disk it has, and where.

use super::backing::ChainFile;
use super::header::Compression;
use super::tables::{Run, Tables, cut_off, damaged};
use crate::base::error::{Error, Result};
use crate::base::units::Extent;
use crate::image::{RawFile, Source};
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};
use std::io::Read;
use std::sync::{Mutex, PoisonError};

/// A file of a chain.
pub(super) struct Layer {
    pub file: RawFile,
    /// Where the data is, if not in the file itself.
    pub data_file: Option<RawFile>,
    /// Length of its disk.
    pub disk_bytes: u64,
    /// None of a raw file.
    qcow2: Option<(Tables, Compression)>,
    /// The extent of the data that was asked for last.
    last_extent: Mutex<Option<Extent>>,
}

impl Layer {
    /// One of `files` files.
    ///
    /// # Errors
    /// `Corrupt` if its tables are not all in the file.
    pub fn new(chain_file: ChainFile, files: usize) -> Result<Self> {
        let ChainFile { file, header, data_file } = chain_file;
        let disk_bytes = header.as_ref().map_or(file.image_bytes(), |header| header.disk_bytes);
        let qcow2 = match &header {
            Some(header) => Some((Tables::read(&file, header, files)?, header.compression)),
            None => None,
        };
        Ok(Self { file, data_file, disk_bytes, qcow2, last_extent: Mutex::new(None) })
    }

    /// Where the data is.
    pub fn data(&self) -> &RawFile {
        self.data_file.as_ref().unwrap_or(&self.file)
    }

    /// What there is at `offset` of its disk, for at most `most` bytes, all of which are of the disk; and for
    /// how many, at least one.
    ///
    /// # Errors
    /// `Corrupt` if it lies behind the end of the file.
    pub fn run_at(&self, offset: u64, most: u64) -> Result<(Run, u64)> {
        let Some((tables, _)) = &self.qcow2 else { return Ok((Run::Stored(offset), most)) };
        let (run, bytes) = tables.run_at(&self.file, offset, most)?;
        let (Run::Stored(at), end) = (run, self.data().image_bytes()) else {
            return Ok((run, bytes));
        };
        if at < end {
            return Ok((run, bytes.min(end - at)));
        }
        // The last cluster of a file need not be whole: what is missing of it is zeros. A cluster of which
        // nothing is there was lost.
        let within = at % tables.cluster_bytes();
        if at - within < end {
            return Ok((Run::Zeros, bytes.min(tables.cluster_bytes() - within)));
        }
        Err(cut_off(self.data(), format!("byte {offset} of its disk")))
    }

    /// Unpacks what there is of a disk at `offset`, from a cluster that is in at most `packed` bytes from
    /// `at` on. All of `into` is within the cluster.
    pub fn unpack(&self, at: u64, packed: u64, offset: u64, into: &mut [u8]) -> Result<()> {
        let Some((tables, compression)) = &self.qcow2 else { return Ok(()) };
        let packed = packed.min(self.file.image_bytes().saturating_sub(at));
        let mut bytes = vec![0; packed as usize];
        if let (_, Some(bad)) = self.file.read_into(at, &mut bytes)? {
            return Err(bad);
        }
        let cluster_bytes = tables.cluster_bytes() as usize;
        let start = (offset % tables.cluster_bytes()) as usize;
        let mut cluster = Vec::new();
        let (whole, is_part) = match into.len() == cluster_bytes {
            true => (&mut *into, false),
            false => {
                cluster.resize(cluster_bytes, 0);
                (cluster.as_mut_slice(), true)
            }
        };
        if !unpack_cluster(*compression, &bytes, whole) {
            return Err(self.not_unpacked(offset));
        }
        if is_part {
            into.copy_from_slice(cluster.get(start..start + into.len()).unwrap_or_default());
        }
        Ok(())
    }

    fn not_unpacked(&self, offset: u64) -> Error {
        damaged(&self.file, format!("the compressed cluster at byte {offset} of its disk"))
    }

    /// Data or a hole of the file at byte `at` of the data. Clusters may be preallocated.
    pub fn data_extent_at(&self, at: u64) -> Result<Extent> {
        let mut last = self.last_extent.lock().unwrap_or_else(PoisonError::into_inner);
        let has = |extent: &Extent| (extent.offset..extent.offset + extent.bytes).contains(&at);
        let extent = match last.filter(has) {
            Some(extent) => extent,
            None => self.data().extent_at(at)?,
        };
        *last = Some(extent);
        Ok(Extent { offset: at, bytes: extent.offset + extent.bytes - at, ..extent })
    }
}

/// Log2 of the bytes that a frame may refer back to, and so of the memory that it takes. No cluster has more
/// than 2^21.
const MAX_ZSTD_WINDOW: u32 = 23;

/// Fills a cluster; false if these bytes are not enough for one. More of them may follow, which are
/// another's.
fn unpack_cluster(compression: Compression, bytes: &[u8], cluster: &mut [u8]) -> bool {
    match compression {
        Compression::Deflate => {
            let flags = inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
            let mut decoder = DecompressorOxide::new();
            decompress(&mut decoder, bytes, cluster, 0, flags).2 == cluster.len()
        }
        Compression::Zstd => unpack_zstd(bytes, cluster).is_ok(),
    }
}

fn unpack_zstd(bytes: &[u8], cluster: &mut [u8]) -> std::io::Result<()> {
    let mut decoder = zstd::Decoder::with_buffer(bytes)?.single_frame();
    decoder.window_log_max(MAX_ZSTD_WINDOW)?;
    decoder.read_exact(cluster)
}
