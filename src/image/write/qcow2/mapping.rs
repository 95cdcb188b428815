//! Where each cluster of the disk is in the file: the L1 table and those L2 tables that are in use. Others
//! are in the file, and are read again when they are needed.

use super::host::HostFile;
use super::layout::{COPIED, Layout, fault};
use crate::base::error::Result;
use std::collections::BTreeMap;
use zerocopy::big_endian::U64;
use zerocopy::{FromZeros, IntoBytes};

/// L2 tables in memory: 256 of clusters of 64 KiB, over 128 GiB of the disk.
const MOST_OPEN_BYTES: u64 = 16 << 20;

/// The tables of an image.
pub struct Mapping {
    layout: Layout,
    /// Where each L2 table is in the file; 0 for none.
    l1: Vec<u64>,
    open: BTreeMap<u64, Box<[U64]>>,
}

impl Mapping {
    /// Of an image in which nothing is allocated.
    pub fn new(layout: Layout) -> Self {
        let l1 = vec![0; layout.l1_entries() as usize];
        Self { layout, l1, open: BTreeMap::new() }
    }

    /// The L2 entry of a cluster of the disk, to be read and set.
    ///
    /// # Errors
    /// Of the file, to which another table may have to give way.
    pub fn entry<'a>(&'a mut self, cluster: u64, host: &mut HostFile) -> Result<&'a mut U64> {
        let (table, at) = (cluster / self.layout.entries(), cluster % self.layout.entries());
        if !self.open.contains_key(&table) {
            let most = MOST_OPEN_BYTES / self.layout.cluster_bytes();
            while self.open.len() as u64 >= most.max(1) {
                // Writing ascends: the first one is hardly needed again.
                self.close_first(host)?;
            }
            let opened = self.load(table, host)?;
            self.open.insert(table, opened);
        }
        let entries = self.open.get_mut(&table).and_then(|table| table.get_mut(at as usize));
        entries.ok_or_else(fault)
    }

    fn load(&self, table: u64, host: &HostFile) -> Result<Box<[U64]>> {
        let mut entries = vec![U64::new_zeroed(); self.layout.entries() as usize];
        match self.l1.get(table as usize) {
            None | Some(0) => {}
            Some(&offset) => host.read(offset, entries.as_mut_bytes())?,
        }
        Ok(entries.into())
    }

    /// Writes the first open table to the file.
    fn close_first(&mut self, host: &mut HostFile) -> Result<()> {
        let Some((table, entries)) = self.open.pop_first() else { return Ok(()) };
        let place = self.l1.get_mut(table as usize).ok_or_else(fault)?;
        if *place == 0 {
            *place = host.allocate(1)?;
        }
        host.write(*place, entries.as_bytes())
    }

    /// Writes all tables, and gives the offset of the L1 table.
    ///
    /// # Errors
    /// Of the file.
    pub fn finish(&mut self, host: &mut HostFile) -> Result<u64> {
        while !self.open.is_empty() {
            self.close_first(host)?;
        }
        let used = |offset: &u64| U64::new(if *offset == 0 { 0 } else { *offset | COPIED });
        let l1: Vec<U64> = self.l1.iter().map(used).collect();
        let clusters = (l1.as_bytes().len() as u64).div_ceil(self.layout.cluster_bytes());
        let offset = host.allocate(clusters)?;
        host.write(offset, l1.as_bytes())?;
        Ok(offset)
    }
}
