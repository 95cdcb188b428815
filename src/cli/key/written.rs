//! Files with keys.

use imgsnap::base::error::{Error, Result};
use imgsnap::base::uri::Shown;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Writes a new file that nobody else may read.
pub fn write_secret(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = |e| Error::os("write", path.shown(), e);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)
}
