//! Clusters that are compressed: each is whole before it is, so those that are written in parts wait in
//! memory.

use super::layout::Layout;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::named::named;
use crate::base::pipeline::ordered_map;
use flate2::{Compress, FlushCompress, Status};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use zstd::bulk::Compressor;
use zstd::zstd_safe::compress_bound;

named! {
    /// How the clusters of a qcow2 are compressed: at the level that QEMU uses.
    pub enum ClusterCompression {
        /// Deflate, which every QEMU reads.
        Zlib = "zlib",
        /// zstd, which QEMU reads from 5.1 on.
        Zstd = "zstd",
    }
}

impl fmt::Display for ClusterCompression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ClusterCompression {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let named = Self::ALL.iter().find(|compression| compression.name() == text);
        named.copied().ok_or_else(|| {
            let what = format!("unknown qcow2 compression \"{text}\"");
            Error::new(ErrorKind::InvalidInput, what).hint("use zlib or zstd")
        })
    }
}

impl ClusterCompression {
    /// Its number in the header.
    pub fn number(self) -> u8 {
        match self {
            Self::Zlib => 0,
            Self::Zstd => 1,
        }
    }
}

/// Compresses one cluster after the other.
enum Encoder {
    Zlib(Compress),
    Zstd(Compressor<'static>),
}

impl Encoder {
    fn new(compression: ClusterCompression) -> Result<Self> {
        /// As QEMU has it.
        const ZSTD_LEVEL: i32 = 3;
        /// Readers hold no more than 4 KiB of what is decoded.
        const WINDOW_BITS: u8 = 12;
        let level = flate2::Compression::default();
        Ok(match compression {
            ClusterCompression::Zlib => {
                Self::Zlib(Compress::new_with_window_bits(level, false, WINDOW_BITS))
            }
            ClusterCompression::Zstd => {
                Self::Zstd(Compressor::new(ZSTD_LEVEL).map_err(|e| failed(&e))?)
            }
        })
    }

    /// The compressed cluster; none if it does not become smaller by 1/64.
    fn encode(&mut self, cluster: &[u8]) -> Result<Option<Vec<u8>>> {
        let most = cluster.len() - cluster.len() / 64;
        let out = match self {
            Self::Zlib(encoder) => {
                encoder.reset();
                let mut out = vec![0; most];
                let status = encoder.compress(cluster, &mut out, FlushCompress::Finish);
                if status.map_err(|e| failed(&e))? != Status::StreamEnd {
                    return Ok(None);
                }
                out.truncate(encoder.total_out() as usize);
                out
            }
            Self::Zstd(encoder) => {
                let mut out = vec![0; compress_bound(cluster.len())];
                let length = encoder.compress_to_buffer(cluster, &mut out);
                out.truncate(length.map_err(|e| failed(&e))?);
                out
            }
        };
        Ok((out.len() <= most).then_some(out))
    }
}

fn failed(error: &dyn fmt::Display) -> Error {
    Error::new(ErrorKind::Io, format!("compression failed: {error}"))
}

/// A whole cluster of the disk.
pub struct Cluster {
    /// Its number.
    pub number: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The same compressed, if that pays.
    pub packed: Option<Vec<u8>>,
}

struct Partial {
    bytes: Vec<u8>,
    written: u64,
}

/// Clusters that wait, and who compresses them.
pub struct Waiting {
    layout: Layout,
    compression: ClusterCompression,
    threads: usize,
    partial: BTreeMap<u64, Partial>,
    whole: Vec<Cluster>,
    /// Those that nobody uses now.
    encoders: Mutex<Vec<Encoder>>,
}

/// Of clusters that are written in parts.
const MOST_PARTIAL_BYTES: u64 = 24 << 20;
/// Of those that are compressed together.
const BATCH_BYTES: u64 = 4 << 20;

impl Waiting {
    /// Nothing waits. One thread compresses.
    pub fn new(layout: Layout, compression: ClusterCompression) -> Self {
        let (partial, whole, encoders) = Default::default();
        Self { layout, compression, threads: 1, partial, whole, encoders }
    }

    /// How many threads compress from now on.
    pub fn set_threads(&mut self, threads: usize) {
        self.threads = threads.max(1);
    }

    /// The number of the compression in the header.
    pub fn compression_number(&self) -> u8 {
        self.compression.number()
    }

    /// Takes bytes of a cluster, `offset` bytes behind its start.
    pub fn add(&mut self, number: u64, offset: u64, bytes: &[u8]) {
        let partial = self.partial.entry(number).or_insert_with(|| Partial {
            bytes: vec![0; self.layout.cluster_bytes() as usize],
            written: 0,
        });
        let place = partial.bytes.get_mut(offset as usize..).and_then(|b| b.get_mut(..bytes.len()));
        place.unwrap_or_default().copy_from_slice(bytes);
        partial.written += bytes.len() as u64;
        if partial.written >= self.layout.bytes_in(number) {
            self.take_whole(number);
        }
    }

    fn take_whole(&mut self, number: u64) {
        if let Some(Partial { bytes, .. }) = self.partial.remove(&number) {
            self.whole.push(Cluster { number, bytes, packed: None });
        }
    }

    /// Nothing more comes before byte `end` of the disk.
    pub fn close_before(&mut self, end: u64) {
        let clusters = end >> self.layout.cluster_bits;
        while let Some(&number) = self.partial.keys().next().filter(|first| **first < clusters) {
            self.take_whole(number);
        }
    }

    /// Nothing more comes.
    pub fn close_all(&mut self) {
        self.close_before(u64::MAX);
    }

    /// One that is to be written as it is, because too many are written in parts.
    pub fn give_up(&mut self) -> Option<Cluster> {
        let bytes = self.partial.len() as u64 * self.layout.cluster_bytes();
        if bytes <= MOST_PARTIAL_BYTES {
            return None;
        }
        // Writing ascends: the last one will wait the longest.
        let (number, Partial { bytes, .. }) = self.partial.pop_last()?;
        Some(Cluster { number, bytes, packed: None })
    }

    /// True if enough wait to be compressed together.
    pub fn is_ready(&self) -> bool {
        let batch = (BATCH_BYTES / self.layout.cluster_bytes()).max(self.threads as u64);
        self.whole.len() as u64 >= batch
    }

    /// Compresses those that are whole, and gives them to `consume` in the order in which they became so.
    ///
    /// # Errors
    /// Of `consume`, or if no thread can be started.
    pub fn compress(&mut self, consume: impl FnMut(Cluster) -> Result<()>) -> Result<()> {
        let count = self.whole.len();
        if count == 0 {
            return Ok(());
        }
        let mut clusters = std::mem::take(&mut self.whole).into_iter();
        ordered_map(
            self.threads.min(count),
            count,
            || Ok(clusters.next()),
            |cluster| self.encode(cluster),
            consume,
        )
    }

    fn encode(&self, mut cluster: Cluster) -> Result<Cluster> {
        let lock = || self.encoders.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = lock().pop();
        let mut encoder = kept.map_or_else(|| Encoder::new(self.compression), Ok)?;
        cluster.packed = encoder.encode(&cluster.bytes)?;
        lock().push(encoder);
        Ok(cluster)
    }
}
