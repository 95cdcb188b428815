//! The file that a qcow2 is: clusters of it are given out in ascending order, and counted.
//!
//! ```text
//! header | refcounts 0 | ... | refcounts 1 | ... | refcounts 2 | ...
//!         of these 32768 clusters,          of these,           and so on
//! ```
//!
//! The first cluster of each group holds the refcounts of the group (of the first one the second, behind the
//! header). So they need no memory but for the group in which clusters are given out.

use super::layout::{Layout, MAX_HOST_BYTES};
use crate::base::error::{Error, ErrorKind, Result};
use crate::image::FileAttributes;
use crate::image::write::{NewFile, Target};
use std::os::unix::fs::FileExt;
use zerocopy::IntoBytes;
use zerocopy::big_endian::{U16, U64};

/// The file, and which clusters of it are in use.
pub struct HostFile {
    file: NewFile,
    layout: Layout,
    /// The first cluster that nobody was given yet.
    next: u64,
    /// Of the group that the one before it is in.
    refcounts: Vec<U16>,
    /// Where the last compressed cluster ends; 0 if nothing can go there.
    packed_end: u64,
}

impl HostFile {
    /// In a file that is empty.
    pub fn new(file: NewFile, layout: Layout) -> Self {
        let mut refcounts = vec![U16::ZERO; layout.refcounts() as usize];
        // The header, and these.
        refcounts.iter_mut().take(2).for_each(|count| *count = 1.into());
        Self { file, layout, next: 2, refcounts, packed_end: 0 }
    }

    /// Gives out `count` clusters in a row, fewer than a group has: offset of the first one. They read as
    /// zeros until they are written.
    ///
    /// # Errors
    /// `LimitExceeded` if the file would become too long; or its refcounts could not be written.
    pub fn allocate(&mut self, count: u64) -> Result<u64> {
        let group = self.layout.refcounts();
        if self.next.is_multiple_of(group) || self.next % group + count > group {
            self.write_refcounts()?;
            self.refcounts.fill(U16::ZERO);
            self.next = self.next.next_multiple_of(group);
            self.count(self.next, 1);
            self.next += 1;
            self.packed_end = 0;
        }
        let first = self.next;
        if (first + count) << self.layout.cluster_bits > MAX_HOST_BYTES {
            let what = format!("{} would exceed 512 TiB", self.file.name());
            return Err(Error::new(ErrorKind::LimitExceeded, what).hint("write a raw image"));
        }
        self.count(first, count);
        self.next += count;
        Ok(first << self.layout.cluster_bits)
    }

    /// Gives out a place for a compressed cluster, of fewer bytes than a cluster: its offset.
    ///
    /// # Errors
    /// As of [`HostFile::allocate`].
    pub fn pack(&mut self, bytes: u64) -> Result<u64> {
        let (group, cluster_bytes) = (self.layout.refcounts(), self.layout.cluster_bytes());
        let end = self.packed_end.next_multiple_of(cluster_bytes);
        let free = end - self.packed_end;
        let is_last = end == self.next << self.layout.cluster_bits;
        let can_grow = is_last && !self.next.is_multiple_of(group);
        let last = self.packed_end >> self.layout.cluster_bits;
        let is_full = free == 0 || self.refcount(last) == u16::MAX;
        if is_full || (bytes > free && !can_grow) {
            let offset = self.allocate(1)?;
            self.packed_end = offset + bytes;
            return Ok(offset);
        }
        self.count(last, 1);
        if bytes > free {
            self.allocate(1)?;
        }
        let offset = self.packed_end;
        self.packed_end += bytes;
        Ok(offset)
    }

    fn refcount(&self, cluster: u64) -> u16 {
        let at = cluster % self.layout.refcounts();
        self.refcounts.get(at as usize).map_or(0, |count| count.get())
    }

    /// Each of some clusters of this group has one user more.
    fn count(&mut self, first: u64, clusters: u64) {
        let at = (first % self.layout.refcounts()) as usize;
        let counts = self.refcounts.iter_mut().skip(at).take(clusters as usize);
        counts.for_each(|count| *count += 1);
    }

    /// How many groups there are.
    fn groups(&self) -> u64 {
        self.next.div_ceil(self.layout.refcounts())
    }

    /// Where the refcounts of a group are.
    fn refcounts_offset(&self, group: u64) -> u64 {
        let cluster = if group == 0 { 1 } else { group * self.layout.refcounts() };
        cluster << self.layout.cluster_bits
    }

    fn write_refcounts(&mut self) -> Result<()> {
        let offset = self.refcounts_offset(self.groups() - 1);
        self.file.write(offset, self.refcounts.as_bytes())
    }

    /// Writes the table of the refcounts and gives the file its length: offset of the table, and how many
    /// clusters it has. Nothing may be given out afterwards.
    ///
    /// # Errors
    /// As of [`HostFile::allocate`].
    pub fn finish_refcounts(&mut self) -> Result<(u64, u64)> {
        // The table itself may begin one more.
        let most = (self.groups() + 1) * size_of::<U64>() as u64;
        let clusters = most.div_ceil(self.layout.cluster_bytes());
        let offset = self.allocate(clusters)?;
        let blocks = (0..self.groups()).map(|group| U64::new(self.refcounts_offset(group)));
        let table: Vec<U64> = blocks.collect();
        self.file.write(offset, table.as_bytes())?;
        self.write_refcounts()?;
        self.file.set_length(self.next << self.layout.cluster_bits)?;
        Ok((offset, clusters))
    }

    /// Writes bytes to clusters that were given out.
    ///
    /// # Errors
    /// Of the file system.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file.write(offset, bytes)
    }

    /// Reads bytes that were written.
    ///
    /// # Errors
    /// Of the file system.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        let read = self.file.file().read_exact_at(bytes, offset);
        read.map_err(|e| Error::os("read", self.file.name(), e))
    }

    /// What was written goes to the device.
    ///
    /// # Errors
    /// Of the device.
    pub fn push(&mut self) -> Result<()> {
        self.file.advance_watermark(self.next << self.layout.cluster_bits)
    }

    /// The file itself.
    pub fn file(&self) -> &NewFile {
        &self.file
    }

    /// Syncs the file and gives it its name.
    ///
    /// # Errors
    /// As of [`NewFile`].
    pub fn finish(&mut self) -> Result<()> {
        self.file.finish()
    }

    /// As [`NewFile::with_attributes`].
    #[must_use]
    pub fn with_attributes(self, attributes: Option<FileAttributes>) -> Self {
        Self { file: self.file.with_attributes(attributes), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use zerocopy::FromBytes;

    /// With the smallest clusters there are, of which a group has 256: whatever is given out, in whatever
    /// order, is counted as often as it is in use.
    #[test]
    fn refcounts_are_those_of_what_was_given_out() {
        let folder = tempfile::tempdir().unwrap();
        for round in 0..40u64 {
            // Each one anew: another test may be forking, and have the last one open for a moment.
            let path = folder.path().join(round.to_string());
            let layout = Layout { image_bytes: 1 << 20, cluster_bits: 9 };
            let mut host = HostFile::new(NewFile::create(&path, 0, true).unwrap(), layout);
            let mut uses: BTreeMap<u64, u16> = [(0, 1), (1, 1)].into();
            let mut packed = 0;
            let digest =
                |index: u64| *blake3::hash(&(round << 32 | index).to_le_bytes()).as_bytes();
            for index in 0..300 + round * 20 {
                let [kind, low, high, ..] = digest(index);
                let used = match u64::from(kind) % (2 + round % 5) {
                    0 => {
                        let count = 1 + u64::from(low) % 3;
                        let offset = host.allocate(count).unwrap();
                        assert!(
                            offset.is_multiple_of(512) && offset / 512 / 256 * 256 != offset / 512
                        );
                        offset..offset + count * 512
                    }
                    _ => {
                        let bytes = 1 + (u64::from(low) + u64::from(high)) % 511;
                        let offset = host.pack(bytes).unwrap();
                        assert!(offset >= packed, "it goes on where the last one ended, or later");
                        packed = offset + bytes;
                        offset..packed
                    }
                };
                for cluster in used.start / 512..used.end.div_ceil(512) {
                    *uses.entry(cluster).or_default() += 1;
                }
            }
            let (offset, clusters) = host.finish_refcounts().unwrap();
            (offset / 512..offset / 512 + clusters)
                .for_each(|c| assert!(uses.insert(c, 1).is_none()));
            host.finish().unwrap();
            let bytes = std::fs::read(&path).unwrap();
            let table =
                bytes.get(offset as usize..).unwrap().chunks(8).take(host.groups() as usize);
            for (group, entry) in table.enumerate() {
                let place = U64::read_from_bytes(entry).unwrap().get();
                uses.insert(place / 512, 1);
                assert_eq!(place, host.refcounts_offset(group as u64));
            }
            for cluster in 0..bytes.len() as u64 / 512 {
                let place = host.refcounts_offset(cluster / 256) + cluster % 256 * 2;
                let count = bytes.get(place as usize..place as usize + 2).unwrap();
                let count = U16::read_from_bytes(count).unwrap().get();
                assert_eq!(count, uses.get(&cluster).copied().unwrap_or(0), "{round}: {cluster}");
            }
        }
    }

    #[test]
    fn a_cluster_has_no_more_users_than_can_be_counted() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout { image_bytes: 1 << 20, cluster_bits: 21 };
        let file = NewFile::create(&folder.path().join("host"), 0, false).unwrap();
        let mut host = HostFile::new(file, layout);
        let first = host.pack(4).unwrap();
        for index in 1..u64::from(u16::MAX) {
            assert_eq!(host.pack(4).unwrap(), first + index * 4);
        }
        assert_eq!(host.pack(4).unwrap(), first + (1 << 21));
    }
}
