//! A folder by its descriptor. Whoever can write to a folder can exchange what is in it at any moment, also
//! between two calls of ours: so what is made, renamed or removed is named below a folder that is held, and
//! no link is followed on the way.
//!
//! [`resolve`] is for a path that a user gives, in which links are usual: it follows those that we or root
//! made, and refuses those of others.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::sys::{Onto, rename_in};
use crate::base::uri::Shown;
use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag};
use nix::fcntl::{openat, openat2};
use nix::sys::stat::{Mode, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// How often a path is tried that somebody changes meanwhile.
const TRIES: usize = 16;
/// Links that are followed in one path, as the kernel has it.
const MAX_LINKS: usize = 40;

/// A folder that is held.
#[derive(Debug)]
pub struct Folder {
    /// Opened with O_PATH: it need not be readable.
    fd: OwnedFd,
}

/// A name in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name.
    pub name: OsString,
    /// Its inode, as the folder has it: of a mount point, the one below.
    pub inode: u64,
    /// True for a folder, false for anything else, none if the file system does not tell.
    pub is_folder: Option<bool>,
}

/// Whose a file is, and which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owned {
    /// Device number of its file system.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// User id of its owner.
    pub owner: u32,
    /// Id of its group.
    pub group: u32,
    /// Permissions, and those bits above them.
    pub mode: u32,
    /// How many names it has. A folder without another one in it has two, where the file system counts them.
    pub links: u64,
}

impl Folder {
    /// Opens a folder. No part of `path` may be a link.
    ///
    /// # Errors
    /// `ELOOP` if one is.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        Ok(Self { fd: open_at(AT_FDCWD, path, flags, Mode::empty(), false)? })
    }

    /// Opens the folder that a file is in; without one in its path, the working directory.
    pub fn of(path: &Path) -> io::Result<Self> {
        Self::open(parent(path))
    }

    /// Opens a folder in it.
    pub fn folder(&self, name: impl AsRef<Path>) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        Ok(Self { fd: self.open_below(name.as_ref(), flags, Mode::empty())? })
    }

    /// Opens, or makes, a file in it or below; it is no link.
    pub fn file(&self, name: impl AsRef<Path>, flags: OFlag, mode: u32) -> io::Result<File> {
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        Ok(self.open_below(name.as_ref(), flags, Mode::from_bits_truncate(mode))?.into())
    }

    /// The same, of a regular file alone: a pipe would hold us up for ever.
    pub fn regular_file(
        &self,
        name: impl AsRef<Path>,
        flags: OFlag,
        mode: u32,
    ) -> io::Result<File> {
        let file = self.file(name, flags, mode)?;
        if file.metadata()?.is_file() { Ok(file) } else { Err(no_regular_file()) }
    }

    fn open_below(&self, name: &Path, flags: OFlag, mode: Mode) -> io::Result<OwnedFd> {
        open_at(&self.fd, name, flags, mode, true)
    }

    /// Makes a file without a name in it (O_TMPFILE), which can be given one later.
    pub fn nameless(&self) -> io::Result<File> {
        let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
        Ok(openat(&self.fd, ".", flags, Mode::S_IRUSR | Mode::S_IWUSR)?.into())
    }

    /// Gives a file without a name one in it. Nothing is replaced.
    pub fn link(&self, file: &File, name: impl AsRef<Path>) -> io::Result<()> {
        let from = format!("/proc/self/fd/{}", file.as_raw_fd());
        let flags = AtFlags::AT_SYMLINK_FOLLOW;
        Ok(linkat(AT_FDCWD, from.as_str(), &self.fd, name.as_ref(), flags)?)
    }

    /// Renames a file in it, replacing another one.
    pub fn rename_over(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
        let (from, to) = (from.as_ref(), to.as_ref());
        Ok(rename_in(&self.fd, from, to, Onto::Anything)?)
    }

    /// Renames a file in it, without replacing another one.
    pub fn rename_new(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> io::Result<()> {
        let (from, to) = (from.as_ref(), to.as_ref());
        match rename_in(&self.fd, from, to, Onto::Nothing) {
            // A file system that cannot: a hard link does not replace either.
            Err(Errno::EINVAL | Errno::ENOSYS) => {
                linkat(&self.fd, from, &self.fd, to, AtFlags::empty())?;
                self.remove(from)
            }
            other => Ok(other?),
        }
    }

    /// Removes a name that is no folder.
    pub fn remove(&self, name: impl AsRef<Path>) -> io::Result<()> {
        Ok(unlinkat(&self.fd, name.as_ref(), UnlinkatFlags::NoRemoveDir)?)
    }

    /// Makes a folder in it.
    pub fn make_folder(&self, name: impl AsRef<Path>, mode: u32) -> io::Result<()> {
        Ok(mkdirat(&self.fd, name.as_ref(), Mode::from_bits_truncate(mode))?)
    }

    /// Removes an empty folder in it.
    pub fn remove_folder(&self, name: impl AsRef<Path>) -> io::Result<()> {
        Ok(unlinkat(&self.fd, name.as_ref(), UnlinkatFlags::RemoveDir)?)
    }

    /// What is in it, in no order.
    pub fn entries(&self) -> io::Result<Vec<Entry>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut entries = Vec::new();
        for entry in Dir::openat(&self.fd, ".", flags, Mode::empty())?.iter() {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes()).to_owned();
            if name != "." && name != ".." {
                let is_folder = entry.file_type().map(|kind| kind == Type::Directory);
                entries.push(Entry { name, inode: entry.ino(), is_folder });
            }
        }
        Ok(entries)
    }

    /// Makes the names in it durable.
    pub fn sync(&self) -> io::Result<()> {
        self.readable()?.sync_all()
    }

    /// The folder opened as a file is, to be synced later.
    pub fn readable(&self) -> io::Result<File> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(openat(&self.fd, ".", flags, Mode::empty())?.into())
    }

    /// Writes a small file in it, in the place of one that is there, or none; it is no link.
    pub fn write(&self, name: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT;
        let mut file = self.regular_file(name, flags, 0o644)?;
        file.set_len(0)?;
        io::Write::write_all(&mut file, bytes)
    }

    /// Which folder it is, and whose.
    pub fn owned(&self) -> io::Result<Owned> {
        Ok(owned(&fstat(&self.fd)?))
    }

    /// Which file a name in it is of, and whose; a link is one itself.
    pub fn owned_in(&self, name: impl AsRef<Path>) -> io::Result<Owned> {
        Ok(owned(&fstatat(&self.fd, name.as_ref(), AtFlags::AT_SYMLINK_NOFOLLOW)?))
    }

    /// When a file in it was last written, renamed or changed otherwise, by the clock of its file system, and
    /// its length.
    pub fn time_and_size(&self, name: impl AsRef<Path>) -> io::Result<(jiff::Timestamp, u64)> {
        let stat = fstatat(&self.fd, name.as_ref(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let time = |seconds, nanoseconds: i64| {
            jiff::Timestamp::new(seconds, nanoseconds as i32).unwrap_or_default()
        };
        // Not every file system counts a rename as a change.
        let changed = time(stat.st_ctime, stat.st_ctime_nsec);
        Ok((time(stat.st_mtime, stat.st_mtime_nsec).max(changed), stat.st_size.max(0) as u64))
    }

    /// What file system it is on, as linux/magic.h has it.
    pub fn filesystem(&self) -> io::Result<i64> {
        Ok(nix::sys::statfs::fstatfs(&self.fd)?.filesystem_type().0 as i64)
    }

    /// Length of a regular file in it or below.
    pub fn size(&self, name: &str) -> io::Result<u64> {
        let meta = self.regular_file(name, OFlag::O_RDONLY, 0)?.metadata()?;
        Ok(meta.len())
    }
}

fn owned(stat: &nix::sys::stat::FileStat) -> Owned {
    let mode = stat.st_mode & 0o7777;
    let (owner, group) = (stat.st_uid, stat.st_gid);
    let links = stat.st_nlink;
    Owned { device: stat.st_dev, inode: stat.st_ino, owner, group, mode, links }
}

/// What is wrong with a folder, a link or a pipe where a file should be.
pub fn no_regular_file() -> io::Error {
    io::Error::new(io::ErrorKind::IsADirectory, "it is not a regular file")
}

/// The folder of a file, as a path.
pub fn parent(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Opens a path in which nothing is a link, and which does not lead out of `dir` if it is to stay below.
fn open_at(
    dir: impl std::os::fd::AsFd,
    path: &Path,
    flags: OFlag,
    mode: Mode,
    is_below: bool,
) -> io::Result<OwnedFd> {
    let flags = flags | OFlag::O_CLOEXEC;
    let below = if is_below { ResolveFlag::RESOLVE_BENEATH } else { ResolveFlag::empty() };
    let mode = if flags.contains(OFlag::O_CREAT) { mode } else { Mode::empty() };
    let how = OpenHow::new().flags(flags).mode(mode);
    let how = how.resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | below);
    for _ in 0..TRIES {
        match openat2(&dir, path, how) {
            // Somebody renamed something on the way.
            Err(Errno::EAGAIN) if is_below => {}
            // Before Linux 5.6, or a filter that does not know it.
            Err(Errno::ENOSYS | Errno::EPERM) => return walk_to(dir, path, flags, mode),
            other => return Ok(other?),
        }
    }
    Err(Errno::EAGAIN.into())
}

/// The same, one part of the path after the other.
fn walk_to(
    dir: impl std::os::fd::AsFd,
    path: &Path,
    flags: OFlag,
    mode: Mode,
) -> io::Result<OwnedFd> {
    let step = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut parts = path.components().peekable();
    let mut at: Option<OwnedFd> = None;
    while let Some(part) = parts.next() {
        let name = match part {
            Component::ParentDir => return Err(io::ErrorKind::InvalidInput.into()),
            other => other.as_os_str(),
        };
        let is_last = parts.peek().is_none();
        let flags = if is_last { flags | OFlag::O_NOFOLLOW } else { step };
        at = Some(match &at {
            None => openat(&dir, name, flags, mode)?,
            Some(at) => openat(at, name, flags, mode)?,
        });
    }
    at.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// The path without links to what `path` leads to, which must exist. Links that others made are not
/// followed: they could lead elsewhere at any moment.
///
/// # Errors
/// `Mismatch` for such a link.
pub fn resolve(path: &Path) -> Result<PathBuf> {
    resolve_for(path, &format!("cannot find {}", path.shown()))
}

fn resolve_for(path: &Path, what: &str) -> Result<PathBuf> {
    let failed = |e| Error::io(what, e);
    let absolute = std::path::absolute(path).map_err(failed)?;
    let mut rest: Vec<OsString> =
        absolute.components().rev().map(|part| part.as_os_str().to_owned()).collect();
    let (mut real, mut links) = (PathBuf::new(), 0);
    while let Some(part) = rest.pop() {
        if part == ".." {
            real.pop();
            continue;
        }
        real.push(&part);
        let meta = std::fs::symlink_metadata(&real).map_err(failed)?;
        if !meta.is_symlink() {
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(failed(Errno::ELOOP.into()));
        }
        if !is_ours(meta.uid()) {
            let what = format!("{} is a symbolic link of another user", real.shown());
            return Err(
                Error::new(ErrorKind::Mismatch, what).hint("use the path that it points to")
            );
        }
        let target = std::fs::read_link(&real).map_err(failed)?;
        real.pop();
        let parts = target.components().rev().filter(|part| *part != Component::CurDir);
        rest.extend(parts.map(|part| part.as_os_str().to_owned()));
    }
    Ok(real)
}

/// The same for a file that need not exist in a folder that does.
pub fn resolve_new(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| {
        Error::new(ErrorKind::InvalidInput, format!("{} is not a file name", path.shown()))
    })?;
    let what = format!("cannot find the folder of {}", path.shown());
    Ok(resolve_for(parent(path), &what)?.join(name))
}

/// True for ourselves, root, and who called root by sudo: none of them is a stranger.
pub fn is_ours(owner: u32) -> bool {
    owner == 0
        || owner == nix::unistd::geteuid().as_raw()
        || Some(owner) == invoker()
        || (owner == NOBODY && !has_all_users())
}

/// Whom the kernel names where it has no name: in a container that knows some users only.
const NOBODY: u32 = 65_534;

/// True if each user has a number here.
fn has_all_users() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Who called root by sudo.
fn invoker() -> Option<u32> {
    let id = std::env::var("SUDO_UID").ok()?.parse().ok()?;
    nix::unistd::geteuid().is_root().then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn no_link_is_followed_below_a_folder_nor_on_the_way_to_it() {
        let temporary = tempfile::tempdir().unwrap();
        let root = std::fs::canonicalize(temporary.path()).unwrap();
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::write(root.join("a/b/file"), "x").unwrap();
        symlink(root.join("a"), root.join("link")).unwrap();
        symlink("file", root.join("a/b/to-file")).unwrap();
        let refused = |e: io::Error| assert_eq!(e.raw_os_error(), Some(libc::ELOOP), "{e}");
        let folder = Folder::open(&root).unwrap();
        let read = OFlag::O_RDONLY;
        assert!(folder.file("a/b/file", read, 0).is_ok());
        assert_eq!(folder.size("a/b/file").unwrap(), 1);
        refused(Folder::open(&root.join("link/b")).unwrap_err());
        refused(folder.folder("link").unwrap_err());
        refused(folder.file("link/b/file", read, 0).unwrap_err());
        refused(folder.file("a/b/to-file", read, 0).unwrap_err());
        let made = OFlag::O_CREAT | OFlag::O_WRONLY;
        refused(folder.file("a/b/to-file", made, 0o600).unwrap_err());
        assert!(folder.file("../x", made, 0o600).is_err() && folder.file("/x", read, 0).is_err());
        // Without openat2.
        let walk = |path: &str| walk_to(&folder.fd, Path::new(path), read, Mode::empty());
        assert!(walk("a/b/file").is_ok());
        for path in ["link/b/file", "a/b/to-file", "a/../a/b/file"] {
            assert!(walk(path).is_err(), "{path}");
        }
        let from_root = |path: &Path| walk_to(AT_FDCWD, path, read, Mode::empty());
        assert!(from_root(&root.join("a/b/file")).is_ok());
        assert!(from_root(&root.join("link/b/file")).is_err());
    }

    #[test]
    fn a_path_is_resolved_as_the_kernel_does_it() {
        let temporary = tempfile::tempdir().unwrap();
        let root = std::fs::canonicalize(temporary.path()).unwrap();
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::write(root.join("a/b/file"), "x").unwrap();
        symlink("a/./b", root.join("relative")).unwrap();
        symlink(root.join("relative/../b"), root.join("absolute")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        for path in ["a/b/file", "relative/file", "absolute/file", "absolute/../b/file"] {
            let path = root.join(path);
            assert_eq!(resolve(&path).unwrap(), std::fs::canonicalize(&path).unwrap());
        }
        assert_eq!(resolve_new(&root.join("relative/new")).unwrap(), root.join("a/b/new"));
        assert!(resolve(&root.join("loop")).is_err() && resolve(&root.join("missing")).is_err());
    }
}
