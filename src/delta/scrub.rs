//! Reads one delta file front to back and checks every stored byte: the path that `verify --quick`
//! takes, and independent of the tree, which is read from the back.

use super::reader::{Delta, Page};
use crate::error::{Error, Result};
use crate::format::footer::FOOTER_BYTES;
use crate::format::header::HEADER_BYTES;
use crate::format::record::{RECORD_HEAD_BYTES, RecordHead};
use crate::format::{Counts, FrameRef, RecordKind};
use crate::progress::Context;

/// Checks the checksum of each record, that records follow each other and agree with the pages and
/// with the footer, and the digest of the whole file.
///
/// # Errors
/// `Corrupt` with the offset of the first record that is wrong.
pub fn scrub(delta: &Delta, context: &Context) -> Result<()> {
    let mut walk = Walk::new(delta);
    let end = delta.footer().file_bytes - FOOTER_BYTES as u64;
    let mut header = vec![0; HEADER_BYTES];
    delta.read_at(0, &mut header)?;
    let mut content = delta.hasher().stream();
    content.update(&header);
    let mut offset = HEADER_BYTES as u64;
    let mut payload = Vec::new();
    while offset < end {
        context.check()?;
        let place = |e: Error| e.at(format!("{}: record at byte {offset}", delta.location()));
        let mut head = [0; RECORD_HEAD_BYTES];
        if end - offset < RECORD_HEAD_BYTES as u64 {
            return Err(place(Error::corrupt("the records do not end at the footer")));
        }
        delta.read_at(offset, &mut head)?;
        content.update(&head);
        let head = RecordHead::decode(&head).map_err(place)?;
        if u64::from(head.record_bytes()) > end - offset {
            return Err(place(Error::corrupt("the record is longer than the file")));
        }
        payload.resize(head.payload_bytes as usize, 0);
        delta.read_at(offset + RECORD_HEAD_BYTES as u64, &mut payload)?;
        content.update(&payload);
        head.verify(delta.header().file_id, offset, &payload).map_err(place)?;
        walk.record(&head, &payload, offset).map_err(place)?;
        offset += u64::from(head.record_bytes());
        context.progress().advance(u64::from(head.record_bytes()));
    }
    if content.digest() != delta.footer().content_digest {
        return Err(Error::corrupt("the digest of the file differs").at(delta.location()));
    }
    walk.finish().map_err(|e| e.at(delta.location()))
}

struct Walk<'a> {
    delta: &'a Delta,
    counts: Counts,
    pending: Vec<FrameRef>,
    /// Blocks of each pending frame.
    blocks: Vec<u32>,
    end_block: u64,
}

impl<'a> Walk<'a> {
    fn new(delta: &'a Delta) -> Self {
        Self {
            delta,
            counts: Counts::default(),
            pending: Vec::new(),
            blocks: Vec::new(),
            end_block: 0,
        }
    }

    fn record(&mut self, head: &RecordHead, payload: &[u8], offset: u64) -> Result<()> {
        let (record_bytes, checksum) = (head.record_bytes(), head.checksum);
        if let RecordKind::Frame { block_count, .. } = head.kind {
            self.counts.frames += 1;
            self.counts.frame_bytes += u64::from(record_bytes);
            self.pending.push(FrameRef { offset, record_bytes, checksum });
            self.blocks.push(block_count.into());
            return Ok(());
        }
        match self.delta.decode_page(head.kind, payload, offset)? {
            Page::Index(..) => self.counts.indexes += 1,
            Page::Table(page) => {
                if page.frames != std::mem::take(&mut self.pending) {
                    return Err(Error::corrupt("the page names other frames than stand before it"));
                }
                let per_frame = self.delta.header().frame_blocks;
                let want = (0..).map(|index| page.blocks_in_frame(index, per_frame));
                let blocks = std::mem::take(&mut self.blocks);
                if blocks.iter().zip(want).any(|(have, want)| *have != want) {
                    return Err(Error::corrupt("frames hold other blocks than their page says"));
                }
                if page.bounds().first < self.end_block {
                    return Err(Error::corrupt("pages are not in order"));
                }
                self.end_block = page.bounds().end();
                self.counts.tables += 1;
                page.runs.iter().for_each(|run| self.counts.add_run(run));
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        if !self.pending.is_empty() || self.counts != self.delta.footer().counts {
            return Err(Error::corrupt("the records are not those that the footer counts"));
        }
        Ok(())
    }
}
