//! Bytes that nobody else is to see: zeroed when they are not needed any more, and kept out of swap and core
//! dumps where the system allows it.

use crate::base::error::{Error, Result, best_effort};
use memmap2::{Advice, MmapMut};
use std::fmt;
use zeroize::Zeroize;

/// Secret bytes. They are in no message and no log: `Debug` says nothing of them.
pub struct Secret {
    /// Pages of their own, so that these can be locked.
    pages: MmapMut,
    bytes: usize,
}

impl Secret {
    /// Takes bytes over; where they were they are zeroed.
    ///
    /// # Errors
    /// `Io` if there is no memory for it.
    pub fn new(mut from: Vec<u8>) -> Result<Self> {
        let secret = Self::copy(&from);
        from.zeroize();
        secret
    }

    /// Copies bytes.
    ///
    /// # Errors
    /// As of [`Secret::new`].
    pub fn copy(from: &[u8]) -> Result<Self> {
        let failed = |e| Error::io("cannot allocate memory for a key", e);
        let mut pages = MmapMut::map_anon(from.len().max(1)).map_err(failed)?;
        // A user may lock little, or nothing at all.
        best_effort(pages.lock());
        best_effort(pages.advise(Advice::DontDump));
        if let Some(to) = pages.get_mut(..from.len()) {
            to.copy_from_slice(from);
        }
        Ok(Self { pages, bytes: from.len() })
    }

    /// Random bytes.
    ///
    /// # Errors
    /// `Io` if the system gives none.
    pub fn random(count: usize) -> Result<Self> {
        let mut bytes = vec![0; count];
        fill_random(&mut bytes)?;
        Self::new(bytes)
    }

    /// What they are.
    pub fn bytes(&self) -> &[u8] {
        self.pages.get(..self.bytes).unwrap_or_default()
    }

    /// The same, to be filled.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.pages.get_mut(..self.bytes).unwrap_or_default()
    }
}

/// Fills a buffer with random bytes of the system.
///
/// # Errors
/// `Io` if it gives none.
pub fn fill_random(buffer: &mut [u8]) -> Result<()> {
    let failed =
        |e: getrandom::Error| Error::io("cannot get random numbers", std::io::Error::other(e));
    getrandom::fill(buffer).map_err(failed)
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.pages.zeroize();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}
