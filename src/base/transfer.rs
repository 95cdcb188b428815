//! What is sent to servers and fetched from them: how fast, who is told, and when it is to end.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::read_limit::{ReadLimits, ReadRate};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often it is looked, while somebody waits, whether the user wants to stop.
const TICK: Duration = Duration::from_millis(50);

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To a server.
    Up,
    /// From a server.
    Down,
}

/// Is told of bytes that go. Called from several threads.
pub type Told = Arc<dyn Fn(Way, u64) + Send + Sync>;

/// How all servers that a work needs are used; clones share the limits.
#[derive(Clone)]
pub struct Transfer {
    upload: ReadLimits,
    download: ReadLimits,
    told: Told,
    stop: Arc<AtomicBool>,
}

impl Default for Transfer {
    fn default() -> Self {
        Self::new(Arc::new(|_, _| ()), Arc::default())
    }
}

impl fmt::Debug for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { upload, download, .. } = self;
        let mut fields = f.debug_struct("Transfer");
        fields.field("upload", upload).field("download", download).finish_non_exhaustive()
    }
}

impl Transfer {
    /// As fast as it goes. Once `stop` is set, nothing is tried again.
    pub fn new(told: Told, stop: Arc<AtomicBool>) -> Self {
        let (upload, download) = Default::default();
        Self { upload, download, told, stop }
    }

    /// The same that sends and fetches no faster than that, where a rate is given.
    #[must_use]
    pub fn with_limits(mut self, upload: Option<ReadRate>, download: Option<ReadRate>) -> Self {
        for (limits, rate) in [(&mut self.upload, upload), (&mut self.download, download)] {
            if let Some(rate) = rate {
                *limits = std::mem::take(limits).and(rate, self.stop.clone());
            }
        }
        self
    }

    /// Waits until so many bytes may be sent, and says that they are.
    ///
    /// # Errors
    /// `Interrupted` if the user asked to stop while it waited.
    pub(crate) fn send(&self, bytes: u64) -> Result<()> {
        self.upload.wait(bytes)?;
        (self.told)(Way::Up, bytes);
        Ok(())
    }

    /// The same of what is fetched.
    ///
    /// # Errors
    /// As of [`Transfer::send`].
    pub(crate) fn fetch(&self, bytes: u64) -> Result<()> {
        self.download.wait(bytes)?;
        (self.told)(Way::Down, bytes);
        Ok(())
    }

    /// Waits before something is tried again.
    ///
    /// # Errors
    /// `Interrupted` if the user asked to stop.
    pub(crate) fn sleep(&self, wait: Duration) -> Result<()> {
        let end = Instant::now() + wait;
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::new(ErrorKind::Interrupted, "interrupted"));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(TICK));
        }
    }
}
