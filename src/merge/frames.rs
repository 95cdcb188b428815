//! Finds the frames of which every block lives on, one behind the other: they are copied as they are.
//!
//! ```text
//! differences   D5 D6 D7 | D9 D2 D3 | Z | D4 ...      data of frame 1, data of frame 2 with a zero between
//! tokens        Whole(frame 1)  Loose(D9)  Whole(frame 2: D2 D3 Z D4)
//! ```

use crate::base::units::BlockRange;
use crate::chain::{Difference, State};
use crate::delta::{PAGE_SPAN, Part};
use crate::format::{FrameRef, TablePage};
use std::sync::Arc;

/// Entries within one frame; one that is cut into more pieces is packed again.
const MAX_ENTRIES: usize = 512;

/// A frame of a file, all of whose blocks live.
pub(super) struct WholeFrame {
    pub(super) part: Arc<Part>,
    pub(super) place: FrameRef,
    /// Its blocks, and runs without data that are between them.
    pub(super) entries: Vec<Difference>,
    pub(super) block_count: u32,
}

/// What the merged file is made of, in the order of the blocks.
pub(super) enum Token {
    Whole(WholeFrame),
    /// Data blocks whose frame does not live on as a whole, or runs without data.
    Loose(Difference),
}

/// Takes differences in ascending order and gives tokens.
#[derive(Default)]
pub(super) struct FrameFinder {
    /// The beginning of a frame that may turn out to be whole.
    held: Option<Held>,
}

struct Held {
    page: Arc<TablePage>,
    part: Arc<Part>,
    frame: u32,
    /// The ordinal that has to come next, and one past the last one of the frame.
    next: u32,
    end: u32,
    entries: Vec<Difference>,
}

impl FrameFinder {
    /// Takes the next difference; tokens go to `out`.
    pub(super) fn take(&mut self, difference: Difference, out: &mut Vec<Token>) {
        let State::Data { page, ordinal } = difference.span.state else {
            match &mut self.held {
                Some(held) if held.entries.len() < MAX_ENTRIES => held.entries.push(difference),
                _ => {
                    self.finish(out);
                    out.push(Token::Loose(difference));
                }
            }
            return;
        };
        let Some(of) = difference.chunk.page(page) else { return };
        let (file, page) = (&of.part, &of.page);
        let (mut blocks, mut ordinal) = (difference.span.blocks, ordinal);
        while blocks.count > 0 {
            let (frame, ordinals) = page.frame_of(ordinal);
            let count = blocks.count.min(u64::from(ordinals.end.saturating_sub(ordinal)).max(1));
            let part = BlockRange { first: blocks.first, count };
            let Some(span) = difference.span.within(part) else { return };
            let chunk = difference.chunk.clone();
            self.part(file, page, frame, ordinal, ordinals, Difference { span, chunk }, out);
            ordinal += count as u32;
            blocks = BlockRange::between(part.end(), blocks.end());
        }
    }

    /// Takes blocks that are within one frame.
    #[expect(clippy::too_many_arguments, reason = "the place of the blocks, in its parts")]
    fn part(
        &mut self,
        file: &Arc<Part>,
        page: &Arc<TablePage>,
        frame: u32,
        ordinal: u32,
        ordinals: std::ops::Range<u32>,
        part: Difference,
        out: &mut Vec<Token>,
    ) {
        let next = ordinal + part.span.blocks.count as u32;
        let goes_on = |held: &Held| {
            Arc::ptr_eq(&held.page, page)
                && (held.frame, held.next) == (frame, ordinal)
                && held.entries.len() < MAX_ENTRIES
                && held.entries.first().is_some_and(|first| {
                    part.span.blocks.first - first.span.blocks.first < PAGE_SPAN
                })
        };
        if let Some(held) = self.held.as_mut().filter(|held| goes_on(held)) {
            held.entries.push(part);
            held.next = next;
        } else {
            self.finish(out);
            if ordinal != ordinals.start || page.frames.is_empty() {
                out.push(Token::Loose(part));
                return;
            }
            self.held = Some(Held {
                page: page.clone(),
                part: file.clone(),
                frame,
                next,
                end: ordinals.end,
                entries: vec![part],
            });
        }
        if self.held.as_ref().is_some_and(|held| held.next == held.end)
            && let Some(held) = self.held.take()
        {
            let place = held.page.frames.get(held.frame as usize).copied();
            let block_count = held.page.ordinals_of(held.frame).len() as u32;
            match place {
                Some(place) => out.push(Token::Whole(WholeFrame {
                    part: held.part,
                    place,
                    entries: held.entries,
                    block_count,
                })),
                None => out.extend(held.entries.into_iter().map(Token::Loose)),
            }
        }
    }

    /// Gives what is held as loose: its frame is not whole.
    pub(super) fn finish(&mut self, out: &mut Vec<Token>) {
        let entries = self.held.take().map(|held| held.entries).unwrap_or_default();
        out.extend(entries.into_iter().map(Token::Loose));
    }
}
