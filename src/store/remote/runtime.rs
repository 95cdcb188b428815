//! The threads on which requests to servers are made.

use crate::base::error::{Error, Result};
use std::sync::OnceLock;
use tokio::runtime::{Builder, Runtime};

/// Enough for what encrypts and digests what is sent; requests that wait need none.
const THREADS: usize = 4;

/// The one of this process.
///
/// # Errors
/// If the system has no more threads.
pub(super) fn runtime() -> Result<&'static Runtime> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let made = Builder::new_multi_thread().worker_threads(THREADS).enable_all().build();
    let made = made.map_err(|e| Error::io("cannot start a thread", e))?;
    Ok(RUNTIME.get_or_init(|| made))
}
