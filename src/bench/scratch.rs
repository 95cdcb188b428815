//! The scratch folder of a benchmark: large, and gone afterwards, also after Ctrl-C.

use crate::base::error::{Error, Result, best_effort};
use crate::base::free_space::{check_free_space, free_space_in};
use crate::base::message::{Setting, message};
use crate::base::uri::Shown;
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const PREFIX: &str = "imgsnap-bench-";
const LOCK: &str = "lock";

/// A folder that is removed with all that is in it.
pub struct Scratch {
    path: PathBuf,
    /// Held as long as we live: a folder whose lock is free was left by a run that was killed.
    _lock: File,
}

impl Scratch {
    /// Makes one in `folder`, after removing what killed runs left there.
    ///
    /// # Errors
    /// `LimitExceeded` if there is less free space than `needed_bytes`.
    pub fn new(folder: &Path, needed_bytes: u64) -> Result<Self> {
        let failed = |what: &str, e| Error::os(what, folder.shown(), e);
        for entry in std::fs::read_dir(folder).map_err(|e| failed("read", e))?.flatten() {
            let is_ours = entry.file_name().to_str().is_some_and(|n| n.starts_with(PREFIX));
            if is_ours && is_abandoned(&entry.path()) {
                std::fs::remove_dir_all(entry.path()).map_err(|e| failed("clean", e))?;
            }
        }
        let free_bytes = free_space_in(folder).map_err(|e| failed("ask", e))?;
        let place = folder.shown().to_string();
        check_free_space(Some(free_bytes), needed_bytes, &place, "the benchmark").map_err(|e| {
            e.hint(message![
                "choose another folder with ",
                Setting::Dir,
                ", or a smaller image with ",
                Setting::Size,
            ])
        })?;
        let name = uuid::Uuid::new_v4().simple().to_string();
        let path = folder.join(format!("{PREFIX}{}", name.get(..12).unwrap_or_default()));
        DirBuilder::new().mode(0o700).create(&path).map_err(|e| failed("create a folder in", e))?;
        let lock = File::create_new(path.join(LOCK)).and_then(|lock| lock.lock().map(|()| lock));
        let lock = lock.map_err(|e| {
            // Nobody else knows of it yet.
            std::fs::remove_dir_all(&path).err();
            failed("lock a file in", e)
        })?;
        Ok(Self { path, _lock: lock })
    }

    /// A name in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // The next run removes it.
        best_effort(std::fs::remove_dir_all(&self.path));
    }
}

/// True if we made it, in a run that is dead. One whose lock is not there yet is being made, and what
/// somebody else put there under this name is left to him.
fn is_abandoned(folder: &Path) -> bool {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let us = nix::unistd::geteuid().as_raw();
    let is_ours = |lock: &File| lock.metadata().is_ok_and(|m| m.is_file() && m.uid() == us);
    options.open(folder.join(LOCK)).is_ok_and(|lock| is_ours(&lock) && lock.try_lock().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::ErrorKind;

    #[test]
    fn it_goes_with_all_that_is_in_it_and_takes_what_killed_runs_left() {
        let folder = tempfile::tempdir().unwrap();
        let left = folder.path().join("imgsnap-bench-dead");
        std::fs::create_dir(&left).unwrap();
        std::fs::write(left.join(LOCK), "").unwrap();
        std::fs::write(folder.path().join("other"), "").unwrap();
        let first = Scratch::new(folder.path(), 1).unwrap();
        assert!(!left.exists());
        std::fs::write(first.file("x"), "x").unwrap();
        let second = Scratch::new(folder.path(), 1).unwrap();
        assert!(first.file("x").exists(), "the first still lives");
        drop((first, second));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn too_little_room_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = Scratch::new(folder.path(), 1 << 60).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::LimitExceeded);
        assert!(error.to_string().contains("1152921504606846976 bytes"), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
