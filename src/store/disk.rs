//! The operations on a folder from which [`super::LocalStore`] is made: the seam for tests of
//! faults and crashes.
//!
//! Only what is said to be durable is: the bytes of a file after [`DiskFile::sync`], names after
//! [`Disk::sync_folder`].

use crate::writeback::Writeback;
use quick_cache::sync::Cache;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Who may hold a lock at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockKind {
    /// Any number of these.
    Shared,
    /// Only one, and no shared one.
    Exclusive,
}

/// A folder. Paths are relative to it.
pub trait Disk: Send + Sync {
    /// Names in a folder.
    fn list(&self, folder: &str) -> io::Result<Vec<String>>;
    /// Length of a file.
    fn size(&self, path: &str) -> io::Result<u64>;
    /// Fills `buffer` from `offset` on.
    fn read_at(&self, path: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// Begins to read what will be asked for soon, if that is to be had.
    fn prefetch(&self, _path: &str, _offset: u64, _bytes: u64) {}
    /// Makes a file that does not exist yet.
    fn create(&self, path: &str) -> io::Result<Box<dyn DiskFile>>;
    /// Renames a file, without replacing another one.
    fn rename_new(&self, from: &str, to: &str) -> io::Result<()>;
    /// Renames a file, replacing another one.
    fn rename_over(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &str) -> io::Result<()>;
    /// Makes a folder.
    fn create_folder(&self, folder: &str) -> io::Result<()>;
    /// Removes an empty folder.
    fn remove_folder(&self, folder: &str) -> io::Result<()>;
    /// Makes the names in a folder durable.
    fn sync_folder(&self, folder: &str) -> io::Result<()>;
    /// Tries to lock a file, which is made if it does not exist.
    fn lock(&self, path: &str, kind: LockKind) -> io::Result<Option<super::LockGuard>>;
    /// How many bytes can still be written, if that is known.
    fn room(&self) -> Option<u64> {
        None
    }
    /// What to call a path in a message.
    fn location(&self, path: &str) -> String;
}

/// A file that is being written.
pub trait DiskFile: Send {
    /// Adds bytes.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Makes all bytes durable.
    fn sync(&mut self) -> io::Result<()>;
}

/// A folder of the operating system.
pub struct OsDisk {
    root: PathBuf,
    /// Open delta files, so that a chain of a thousand works with few descriptors. Delta files are
    /// immutable, have names of their own, and are not unlinked while a reader holds the `reap` lock.
    /// Others, such as the head state, may be another file each time.
    open: Cache<String, Arc<File>>,
}

/// Of the 1024 that a process may have by default.
const OPEN_FILES: usize = 200;

impl OsDisk {
    /// The folder at `root`, which need not exist yet.
    pub fn new(root: PathBuf) -> Self {
        Self { root, open: Cache::new(OPEN_FILES) }
    }

    fn path(&self, path: &str) -> PathBuf {
        if path.is_empty() { self.root.clone() } else { self.root.join(path) }
    }

    fn opened(&self, path: &str) -> io::Result<Arc<File>> {
        let open = || {
            let mut options = OpenOptions::new();
            Ok(Arc::new(open_file(options.read(true), 0, &self.path(path))?))
        };
        if path.ends_with(".delta") { self.open.get_or_insert_with(path, open) } else { open() }
    }
}

/// Opens a regular file, and nothing else: a pipe that somebody put there would hold us up for ever.
fn open_file(options: &mut OpenOptions, flags: libc::c_int, path: &Path) -> io::Result<File> {
    let file = options.custom_flags(flags | libc::O_NONBLOCK).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(no_file()) }
}

fn no_file() -> io::Error {
    io::Error::new(io::ErrorKind::IsADirectory, "it is no regular file")
}

impl Disk for OsDisk {
    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(self.path(folder))? {
            // A name that is not UTF-8 is none of ours.
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    }

    fn size(&self, path: &str) -> io::Result<u64> {
        let meta = std::fs::metadata(self.path(path))?;
        if meta.is_file() { Ok(meta.len()) } else { Err(no_file()) }
    }

    fn read_at(&self, path: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.opened(path)?.read_exact_at(buffer, offset)
    }

    fn prefetch(&self, path: &str, offset: u64, bytes: u64) {
        use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
        let (offset, bytes) = (offset as i64, bytes as i64);
        let advice = PosixFadviseAdvice::POSIX_FADV_WILLNEED;
        if self.opened(path).is_ok_and(|f| posix_fadvise(f, offset, bytes, advice).is_err()) {
            // Only advice; the read tells what is wrong.
        }
    }

    fn create(&self, path: &str) -> io::Result<Box<dyn DiskFile>> {
        let file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(self.path(path))?;
        Ok(Box::new(OsFile::new(file)))
    }

    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
        let (old, new) = (self.path(from), self.path(to));
        match renameat2(AT_FDCWD, &old, AT_FDCWD, &new, RenameFlags::RENAME_NOREPLACE) {
            // A file system that cannot: a hard link does not replace either.
            Err(nix::Error::EINVAL | nix::Error::ENOSYS) => {
                std::fs::hard_link(&old, &new)?;
                std::fs::remove_file(&old)
            }
            other => other.map_err(io::Error::from),
        }
    }

    fn rename_over(&self, from: &str, to: &str) -> io::Result<()> {
        self.open.remove(to);
        std::fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.open.remove(path);
        std::fs::remove_file(self.path(path))
    }

    fn create_folder(&self, folder: &str) -> io::Result<()> {
        // Images are secrets: nobody else reads them.
        DirBuilder::new().mode(0o700).create(self.path(folder))
    }

    fn remove_folder(&self, folder: &str) -> io::Result<()> {
        std::fs::remove_dir(self.path(folder))
    }

    fn sync_folder(&self, folder: &str) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_DIRECTORY);
        options.open(self.path(folder))?.sync_all()
    }

    fn lock(&self, path: &str, kind: LockKind) -> io::Result<Option<super::LockGuard>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let identity = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
        loop {
            // What a link leads to is not ours to make.
            let file = open_file(&mut options, libc::O_NOFOLLOW, &self.path(path))?;
            let outcome = match kind {
                LockKind::Shared => file.try_lock_shared(),
                LockKind::Exclusive => file.try_lock(),
            };
            match outcome {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(e)) => return Err(e),
            }
            // The lock of a file that was removed in between is worth nothing.
            let here = std::fs::symlink_metadata(self.path(path)).map(identity);
            if here.ok() == Some(identity(file.metadata()?)) {
                return Ok(Some(Box::new(file)));
            }
        }
    }

    fn room(&self) -> Option<u64> {
        crate::room::room_in(&self.root).ok()
    }

    fn location(&self, path: &str) -> String {
        self.path(path).display().to_string()
    }
}

/// What is handed to the thread that writes: as much as frames are handed on in one piece.
const PIECE_BYTES: usize = 1 << 20;
/// Pieces that may wait for it.
const PIECES: usize = 4;

/// A file that is written by a thread of its own, once it is a long one: whoever makes the bytes digests
/// and checks them, which takes about as long as the kernel takes to copy them.
struct OsFile {
    /// Until the thread has it.
    file: Option<File>,
    piece: Vec<u8>,
    thread: Option<WriterThread>,
}

/// Where pieces are sent to, and what gives the file back.
type WriterThread = (SyncSender<Vec<u8>>, JoinHandle<io::Result<File>>);

impl OsFile {
    fn new(file: File) -> Self {
        Self { file: Some(file), piece: Vec::new(), thread: None }
    }

    /// Hands the piece on.
    fn pass(&mut self) -> io::Result<()> {
        if let Some(file) = self.file.take() {
            let (sender, receiver) = sync_channel(PIECES);
            let thread = std::thread::Builder::new().spawn(move || write_all(file, &receiver))?;
            self.thread = Some((sender, thread));
        }
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE_BYTES));
        match &self.thread {
            Some((sender, _)) if sender.send(piece).is_ok() => Ok(()),
            // It has stopped, and says why.
            _ => self.take_back().and(Err(io::Error::other("the file is not written any more"))),
        }
    }

    /// The file, when all that was handed on is written.
    fn take_back(&mut self) -> io::Result<()> {
        if let Some((sender, thread)) = self.thread.take() {
            drop(sender);
            let ended = thread.join();
            let failed = |_| io::Error::other("the thread that writes failed");
            self.file = Some(ended.map_err(failed)??);
        }
        Ok(())
    }
}

/// Writes pieces until nobody sends any more.
fn write_all(mut file: File, pieces: &Receiver<Vec<u8>>) -> io::Result<File> {
    let (mut bytes, mut writeback) = (0, Writeback::default());
    for piece in pieces {
        file.write_all(&piece)?;
        bytes += piece.len() as u64;
        writeback.advance(&file, bytes)?;
    }
    Ok(file)
}

impl DiskFile for OsFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = PIECE_BYTES - self.piece.len();
            let (now, later) = rest.split_at(rest.len().min(room));
            self.piece.extend_from_slice(now);
            rest = later;
            if self.piece.len() == PIECE_BYTES {
                self.pass()?;
            }
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.take_back()?;
        let gone = || io::Error::other("the file is not written any more");
        let file = self.file.as_mut().ok_or_else(gone)?;
        file.write_all(&self.piece)?;
        self.piece.clear();
        file.sync_all()
    }
}

impl Drop for OsFile {
    fn drop(&mut self) {
        if self.take_back().is_err() {
            // It was given up, for this reason or another.
        }
    }
}
