//! A private folder, with the socket of a server and links to the files that it may open. Whoever is killed
//! leaves it to the next one, which clears it away.

use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::folder::{Folder, resolve};
use crate::base::uri::Shown;
use nix::fcntl::OFlag;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// How its name begins; random digits follow.
const NAME: &str = "imgsnap-nbd-";
const RANDOM: usize = 12;
/// Its mode.
const PRIVATE: u32 = 0o700;
/// The name of the socket: no link has one that begins so.
const SOCKET: &str = ".nbd";
/// The longest path of a socket that the kernel takes, in bytes.
const MAX_SOCKET_BYTES: usize = 107;
/// How often a name is tried.
const TRIES: usize = 16;

/// A folder that is ours, and of nobody else (0700).
pub struct PrivateFolder {
    parent: Folder,
    name: String,
    path: PathBuf,
    folder: Folder,
    /// Locked as long as we live.
    _lock: File,
}

impl PrivateFolder {
    /// Makes one where the user's other sockets are, or where temporary files are.
    ///
    /// # Errors
    /// Of the last of these places, if there is none that will do.
    pub fn create() -> Result<Self> {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let places = [runtime, Some(std::env::temp_dir()), Some("/tmp".into())];
        let mut outcome = Err(Error::new(ErrorKind::NotFound, "there is no temporary folder"));
        for place in places.into_iter().flatten().filter(|place| place.is_absolute()) {
            outcome = Self::create_in(&place);
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    /// Makes one in `parent`.
    ///
    /// # Errors
    /// Of the operating system; `LimitExceeded` if the path of its socket would be too long.
    pub fn create_in(parent: &Path) -> Result<Self> {
        Self::create_as(parent, NAME, PRIVATE)
    }

    /// The same with another beginning of its name, and a mode: another user may have to pass through it.
    ///
    /// # Errors
    /// As of [`Self::create_in`].
    pub fn create_as(parent: &Path, prefix: &str, mode: u32) -> Result<Self> {
        let place = parent.shown().to_string();
        let failed = |e| Error::os("create a folder in", &place, e);
        let parent = resolve(parent)?;
        let bytes = parent.as_os_str().len() + prefix.len() + RANDOM + SOCKET.len() + 2;
        // The names in it go to QEMU as JSON, too.
        if bytes > MAX_SOCKET_BYTES || parent.to_str().is_none() {
            let what =
                format!("the path of a socket in {place} would be too long, or is not UTF-8");
            return Err(Error::new(ErrorKind::LimitExceeded, what)
                .hint("set TMPDIR to a folder with a shorter path"));
        }
        let held = Folder::open(&parent).map_err(failed)?;
        clear_away(&held, prefix);
        for _ in 0..TRIES {
            let random = uuid::Uuid::new_v4().simple().to_string();
            let name = format!("{prefix}{}", random.get(..RANDOM).unwrap_or_default());
            held.make_folder(&name, mode).map_err(failed)?;
            let path = parent.join(&name);
            // Until it is locked, somebody may take it for one that was left.
            if let Some((folder, lock)) = lock(&held, &name).map_err(failed)? {
                return Ok(Self { parent: held, name, path, folder, _lock: lock });
            }
        }
        Err(failed(io::ErrorKind::ResourceBusy.into()))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a file in it, or makes it anew.
    ///
    /// # Errors
    /// Of the operating system.
    pub fn file(&self, name: &str, bytes: &[u8]) -> Result<PathBuf> {
        let path = self.path.join(name);
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC;
        let written = self.folder.file(name, flags, 0o600).and_then(|mut f| f.write_all(bytes));
        written.map_err(|e| Error::os("write", path.shown(), e))?;
        Ok(path)
    }

    /// True if whoever made the folder `path` is gone, or has removed it.
    pub fn is_abandoned(path: &Path) -> bool {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return false };
        match Folder::open(parent).and_then(|parent| Ok((lock(&parent, name)?, parent))) {
            Ok((Some(_), _)) => true,
            Ok((None, parent)) => {
                parent.owned_in(name).is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
            }
            Err(e) => e.kind() == io::ErrorKind::NotFound,
        }
    }

    /// Where the server listens.
    pub fn socket(&self) -> PathBuf {
        self.path.join(SOCKET)
    }

    /// Makes a link that leads to a file which is open, in this process and in each that inherits the
    /// descriptor: its path.
    ///
    /// # Errors
    /// Of the operating system.
    pub fn link(&self, name: &OsStr, file: &File) -> Result<PathBuf> {
        let path = self.path.join(name);
        let to = format!("/proc/self/fd/{}", file.as_raw_fd());
        let linked = std::os::unix::fs::symlink(to, &path);
        linked.map_err(|e| Error::os("create a link in", self.path.shown(), e))?;
        Ok(path)
    }
}

impl Drop for PrivateFolder {
    fn drop(&mut self) {
        remove(&self.parent, OsStr::new(&self.name), &self.folder);
    }
}

/// The folder, and its lock; none if somebody else has it, or it is gone.
fn lock(parent: &Folder, name: impl AsRef<Path>) -> io::Result<Option<(Folder, File)>> {
    let gone = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => Ok(None),
        _ => Err(e),
    };
    let folder = match parent.folder(&name) {
        Ok(folder) => folder,
        Err(e) => return gone(e),
    };
    let file = match folder.readable() {
        Ok(file) => file,
        Err(e) => return gone(e),
    };
    if file.try_lock().is_err() {
        return Ok(None);
    }
    let (now, then) = (parent.owned_in(&name), folder.owned()?);
    Ok(now.is_ok_and(|now| now.inode == then.inode).then_some((folder, file)))
}

/// Removes what those that were killed have left. Who lives holds a lock.
fn clear_away(parent: &Folder, prefix: &str) {
    let Ok(entries) = parent.entries() else { return };
    let is_one = |name: &OsStr| {
        let digits = name.as_bytes().strip_prefix(prefix.as_bytes());
        digits.is_some_and(|d| d.len() == RANDOM && d.iter().all(u8::is_ascii_hexdigit))
    };
    for entry in entries.into_iter().filter(|entry| is_one(&entry.name)) {
        let own = nix::unistd::geteuid().as_raw();
        if !parent.owned_in(&entry.name).is_ok_and(|owned| owned.owner == own) {
            continue;
        }
        if let Ok(Some((folder, _lock))) = lock(parent, &entry.name) {
            remove(parent, &entry.name, &folder);
        }
    }
}

/// What cannot be removed is in nobody's way.
fn remove(parent: &Folder, name: &OsStr, folder: &Folder) {
    for entry in folder.entries().unwrap_or_default() {
        if folder.remove(&entry.name).is_err() {
            // By descriptors, whatever others put there meanwhile.
            let Ok(open) = folder.readable() else { continue };
            let place = PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd()));
            best_effort(std::fs::remove_dir_all(place.join(&entry.name)));
        }
    }
    best_effort(parent.remove_folder(name));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn names(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn it_is_private_and_what_a_killed_one_left_is_cleared_away() {
        let temporary = tempfile::tempdir().unwrap();
        let left = temporary.path().join("imgsnap-nbd-0123456789ab");
        std::fs::create_dir(&left).unwrap();
        std::fs::write(left.join(".nbd"), "").unwrap();
        std::os::unix::fs::symlink("/etc", left.join("link")).unwrap();
        let others = ["imgsnap-nbd-01234567", "imgsnap-0123456789ab", "imgsnap-nbd-0123456789xy"];
        others.iter().for_each(|name| std::fs::create_dir(temporary.path().join(name)).unwrap());
        let one = PrivateFolder::create_in(temporary.path()).unwrap();
        let other = PrivateFolder::create_in(temporary.path()).unwrap();
        assert!(one.path.exists() && other.path.exists() && !left.exists());
        assert_eq!(one.path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(names(temporary.path()).len(), others.len() + 2);
        let file = tempfile::tempfile().unwrap();
        file.set_len(5).unwrap();
        let link = one.link(OsStr::new("x"), &file).unwrap();
        assert_eq!(link.metadata().unwrap().len(), 5);
        drop((one, other));
        assert_eq!(names(temporary.path()).len(), others.len());
    }

    #[test]
    fn a_place_whose_sockets_would_have_too_long_paths_is_not_taken() {
        let temporary = tempfile::tempdir().unwrap();
        let long = temporary.path().join("x".repeat(100));
        std::fs::create_dir(&long).unwrap();
        let error = PrivateFolder::create_in(&long).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::LimitExceeded);
        assert!(names(&long).is_empty());
    }
}
