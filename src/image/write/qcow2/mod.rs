//! A new qcow2 file: version 3, refcounts of 16 bits, no backing file, no snapshots, no bitmaps.
//!
//! A cluster of the disk gets its place in the file when it is first written, so the file has them in the
//! order of the writing; what is never written, or zeros, gets none. The tables are written when all is
//! there.
//!
//! Memory: 16 KiB for each TiB of the disk (L1), 16 MiB of L2 tables, and one block of refcounts. Compressing
//! takes up to 24 MiB of clusters that are written in parts, and 4 MiB, or one cluster for each thread, that
//! are compressed together.

mod compress;
mod host;
mod layout;
mod mapping;

pub use compress::ClusterCompression;

use crate::base::error::Result;
use crate::base::units::ByteRange;
use crate::image::FileAttributes;
use crate::image::write::{NewFile, Target};
use compress::{Cluster, Waiting};
use host::HostFile;
use layout::{COMPRESSED, COPIED, Header, Layout, Tables, fault};
use mapping::Mapping;
use std::path::Path;
use zerocopy::IntoBytes;

/// A qcow2 that does not exist under its name yet: see [`NewFile`].
pub struct NewQcow2 {
    host: HostFile,
    tables: Clusters,
    waiting: Option<Waiting>,
}

/// Where the clusters are, and what they are.
struct Clusters {
    layout: Layout,
    mapping: Mapping,
}

impl NewQcow2 {
    /// Makes an image of `bytes` zeros that will be called `path`. A qcow2 has whole sectors: the disk is
    /// longer by up to 511 zeros if `bytes` is no multiple of 512 ([`NewQcow2::image_bytes`]).
    ///
    /// Clusters are of 64 KiB, and of 2 MiB beyond 64 TiB.
    ///
    /// # Errors
    /// As of [`NewFile::create`]; `LimitExceeded` beyond 2 EiB.
    pub fn create(
        path: &Path,
        bytes: u64,
        replace: bool,
        compression: Option<ClusterCompression>,
    ) -> Result<Self> {
        let layout = Layout::of_image(bytes)?;
        let file = NewFile::create(path, 0, replace)?;
        let tables = Clusters { layout, mapping: Mapping::new(layout) };
        let waiting = compression.map(|compression| Waiting::new(layout, compression));
        Ok(Self { host: HostFile::new(file, layout), tables, waiting })
    }

    /// The same with so many threads that compress.
    #[must_use]
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.waiting.iter_mut().for_each(|waiting| waiting.set_threads(threads));
        self
    }

    /// As [`NewFile::with_attributes`].
    #[must_use]
    pub fn with_attributes(self, attributes: Option<FileAttributes>) -> Self {
        Self { host: self.host.with_attributes(attributes), ..self }
    }

    /// As [`NewFile::not_given`].
    pub fn not_given(&self) -> Option<String> {
        self.host.file().not_given()
    }

    /// Length of the disk in bytes: what was asked for, and up to 511 more.
    pub fn image_bytes(&self) -> u64 {
        self.tables.layout.image_bytes
    }

    /// Compresses and writes what waits for it.
    fn write_waiting(&mut self) -> Result<()> {
        let (host, tables) = (&mut self.host, &mut self.tables);
        let Some(waiting) = &mut self.waiting else { return Ok(()) };
        waiting.compress(|cluster| tables.write_whole(host, cluster))
    }
}

impl Clusters {
    /// Writes a piece of a disk that is not compressed, neighbours in one go.
    fn write(&mut self, host: &mut HostFile, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut rest = bytes;
        // Where in the file what is left of it begins, and how many bytes have their place.
        let (mut start, mut placed) = (0, 0);
        for (number, part) in self.layout.pieces(ByteRange { offset, bytes: bytes.len() as u64 }) {
            let at = self.place(host, number)? + part.offset;
            if placed > 0 && at != start + placed {
                let (now, then) = rest.split_at_checked(placed as usize).ok_or_else(fault)?;
                host.write(start, now)?;
                (rest, placed) = (then, 0);
            }
            start = if placed == 0 { at } else { start };
            placed += part.bytes;
        }
        if rest.is_empty() { Ok(()) } else { host.write(start, rest) }
    }

    /// Where a cluster is in the file; it gets a place if it has none.
    fn place(&mut self, host: &mut HostFile, number: u64) -> Result<u64> {
        let entry = self.mapping.entry(number, host)?;
        match entry.get() {
            0 => {
                let offset = host.allocate(1)?;
                entry.set(offset | COPIED);
                Ok(offset)
            }
            placed if placed & COMPRESSED != 0 => Err(fault()),
            placed => Ok(placed & !COPIED),
        }
    }

    /// True if a cluster has a place in the file.
    fn is_placed(&mut self, host: &mut HostFile, number: u64) -> Result<bool> {
        Ok(self.mapping.entry(number, host)?.get() != 0)
    }

    /// Writes a whole cluster that has no place yet.
    fn write_whole(&mut self, host: &mut HostFile, cluster: Cluster) -> Result<()> {
        let entry = self.mapping.entry(cluster.number, host)?;
        if entry.get() != 0 {
            return Err(fault());
        }
        let bytes = cluster.packed.as_deref().unwrap_or(&cluster.bytes);
        let offset = match &cluster.packed {
            Some(packed) => host.pack(packed.len() as u64)?,
            None => host.allocate(1)?,
        };
        let place = ByteRange { offset, bytes: bytes.len() as u64 };
        entry.set(match &cluster.packed {
            Some(_) => self.layout.compressed_entry(place),
            None => offset | COPIED,
        });
        host.write(offset, bytes)
    }
}

impl Target for NewQcow2 {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let end = offset.checked_add(bytes.len() as u64);
        end.filter(|end| *end <= self.image_bytes()).ok_or_else(fault)?;
        let (host, tables) = (&mut self.host, &mut self.tables);
        let Some(waiting) = &mut self.waiting else { return tables.write(host, offset, bytes) };
        let mut rest = bytes;
        for (number, part) in tables.layout.pieces(ByteRange { offset, bytes: bytes.len() as u64 })
        {
            let (now, then) = rest.split_at_checked(part.bytes as usize).ok_or_else(fault)?;
            rest = then;
            // One that was given up before.
            if tables.is_placed(host, number)? {
                let offset = (number << tables.layout.cluster_bits) + part.offset;
                tables.write(host, offset, now)?;
                continue;
            }
            waiting.add(number, part.offset, now);
            if let Some(cluster) = waiting.give_up() {
                tables.write_whole(host, cluster)?;
            }
            if waiting.is_ready() {
                waiting.compress(|cluster| tables.write_whole(host, cluster))?;
            }
        }
        Ok(())
    }

    fn zero(&mut self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    fn advance_watermark(&mut self, offset: u64) -> Result<()> {
        self.waiting.iter_mut().for_each(|waiting| waiting.close_before(offset));
        if self.waiting.as_ref().is_some_and(Waiting::is_ready) {
            self.write_waiting()?;
        }
        self.host.push()
    }

    fn finish(&mut self) -> Result<()> {
        self.waiting.iter_mut().for_each(Waiting::close_all);
        self.write_waiting()?;
        let l1_offset = self.tables.mapping.finish(&mut self.host)?;
        let (refcounts_offset, refcounts_clusters) = self.host.finish_refcounts()?;
        let compression = self.waiting.as_ref().map_or(0, Waiting::compression_number);
        let tables = Tables { l1_offset, refcounts_offset, refcounts_clusters };
        let header = Header::new(self.tables.layout, tables, compression);
        self.host.write(0, header.as_bytes())?;
        self.host.finish()
    }

    fn name(&self) -> String {
        self.host.file().name()
    }
}
