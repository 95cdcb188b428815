//! What an image should be: its bytes, in pieces that states share.

use crate::random::Random;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub const PIECE: u64 = 64 << 10;
const PIECE_BYTES: usize = PIECE as usize;

/// Bytes that were held against a state, by all workers.
pub static COMPARED: AtomicU64 = AtomicU64::new(0);

/// The bytes of an image. A piece that is missing is all zeros; behind the end there are only zeros.
#[derive(Clone, Default)]
pub struct State {
    pub bytes: u64,
    pieces: Vec<Option<Arc<[u8]>>>,
}

impl State {
    pub fn zeros(bytes: u64) -> Self {
        let count = usize::try_from(bytes.div_ceil(PIECE)).unwrap();
        Self { bytes, pieces: vec![None; count] }
    }

    pub fn resize(&mut self, bytes: u64) {
        if bytes < self.bytes {
            let end = self.bytes.min(bytes.next_multiple_of(PIECE));
            self.write(bytes, &vec![0; usize::try_from(end - bytes).unwrap()]);
        }
        self.bytes = bytes;
        self.pieces.resize(usize::try_from(bytes.div_ceil(PIECE)).unwrap(), None);
    }

    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let start = (at % PIECE) as usize;
            let (now, later) = rest.split_at(rest.len().min(PIECE_BYTES - start));
            let piece = &mut self.pieces[(at / PIECE) as usize];
            let mut whole = match piece {
                Some(old) => old.to_vec(),
                None => vec![0; PIECE_BYTES],
            };
            whole[start..start + now.len()].copy_from_slice(now);
            let is_zero = whole.iter().all(|byte| *byte == 0);
            *piece = if is_zero { None } else { Some(whole.into()) };
            (at, rest) = (at + now.len() as u64, later);
        }
    }

    pub fn read(&self, offset: u64, bytes: u64) -> Vec<u8> {
        let mut out = Vec::new();
        let (mut at, end) = (offset, (offset + bytes).min(self.bytes));
        while at < end {
            let start = (at % PIECE) as usize;
            let count = ((end - at) as usize).min(PIECE_BYTES - start);
            match &self.pieces[(at / PIECE) as usize] {
                Some(piece) => out.extend_from_slice(&piece[start..start + count]),
                None => out.resize(out.len() + count, 0),
            }
            at += count as u64;
        }
        out
    }

    pub fn is(&self, other: &Self) -> bool {
        let same = |one: &Option<Arc<[u8]>>, two: &Option<Arc<[u8]>>| match (one, two) {
            (Some(one), Some(two)) => Arc::ptr_eq(one, two) || one == two,
            (one, two) => one.is_none() && two.is_none(),
        };
        let mut pieces = self.pieces.iter().zip(&other.pieces);
        self.bytes == other.bytes && pieces.all(|(one, two)| same(one, two))
    }

    /// Ranges of whole pieces in which this one may differ from an earlier one, within its length.
    pub fn differences(&self, before: &Self) -> Vec<(u64, u64)> {
        let differs = |at: u64| {
            let whole = |state: &Self| state.read(at, PIECE);
            whole(self) != whole(before)
        };
        let starts = (0..self.bytes).step_by(PIECE_BYTES).filter(|at| differs(*at));
        starts.map(|at| (at, PIECE.min(self.bytes - at))).collect()
    }

    /// Where something else comes than this state has, if anywhere: a length, or bytes.
    pub fn first_difference(&self, found: &mut impl Read) -> Option<String> {
        let mut buffer = vec![0; PIECE_BYTES];
        let zeros = vec![0; PIECE_BYTES];
        for (index, piece) in self.pieces.iter().enumerate() {
            let at = index as u64 * PIECE;
            let length = PIECE.min(self.bytes - at) as usize;
            let count = fill(found, &mut buffer[..length]);
            COMPARED.fetch_add(count as u64, Ordering::Relaxed);
            let wanted = &piece.as_deref().unwrap_or(&zeros)[..length];
            if let Some(place) = (0..count).find(|n| buffer[*n] != wanted[*n]) {
                let (found, wanted) = (buffer[place], wanted[place]);
                let place = at + place as u64;
                return Some(format!("byte {place} is {found:#x}, not {wanted:#x}"));
            }
            if count < length {
                return Some(format!("it ends at {}, not {}", at + count as u64, self.bytes));
            }
        }
        let rest = fill(found, &mut buffer[..1]);
        (rest > 0).then(|| format!("it goes on behind {}", self.bytes))
    }

    /// Makes the file what this is, from nothing.
    pub fn make(&self, file: &File) {
        use std::os::unix::fs::FileExt;
        file.set_len(0).unwrap();
        file.set_len(self.bytes).unwrap();
        for (index, piece) in self.pieces.iter().enumerate() {
            let at = index as u64 * PIECE;
            if let Some(piece) = piece {
                let length = PIECE.min(self.bytes - at) as usize;
                file.write_all_at(&piece[..length], at).unwrap();
            }
        }
    }
}

fn fill(from: &mut impl Read, buffer: &mut [u8]) -> usize {
    let mut count = 0;
    while count < buffer.len() {
        match from.read(&mut buffer[count..]) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => panic!("cannot read what was restored: {e}"),
        }
    }
    count
}

/// Text, which compresses, or noise, which does not.
pub fn some_bytes(random: &mut Random, bytes: u64) -> Vec<u8> {
    let mut made = random.bytes(usize::try_from(bytes).unwrap());
    if random.below(3) > 0 {
        made.iter_mut().for_each(|byte| *byte = b"etaoin shrdlu\n"[usize::from(*byte) % 14]);
    }
    made
}
