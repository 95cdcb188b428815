//! The operations on a folder from which [`super::LocalStore`] is made: the seam for tests of
//! faults and crashes.
//!
//! Only what is said to be durable is: the bytes of a file after [`DiskFile::sync`], names after
//! [`Disk::sync_folder`].

use crate::base::byte_lock::{Held, holder, share_byte, unlock_bytes};
use crate::base::error::{ErrorKind, best_effort};
use crate::base::folder::{Entry, Folder, resolve};
use crate::base::ownership::{create_file, create_folder, open_or_create};
use crate::base::uri::Shown;
use crate::base::writeback::Writeback;
use nix::fcntl::OFlag;
use quick_cache::sync::Cache;
use std::ffi::{OsStr, OsString};
use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, LazyLock, OnceLock};
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
    /// The same with the time at which each was written last, by the clock of the file system, and its
    /// length.
    fn list_timed(&self, folder: &str) -> io::Result<Vec<super::Listed>>;
    /// True if locks keep all apart who can use the folder: it is of this host alone, and they work.
    fn has_locks(&self) -> io::Result<bool> {
        Ok(true)
    }
    /// Length of a file.
    fn size(&self, path: &str) -> io::Result<u64>;
    /// Fills `buffer` from `offset` on.
    fn read_at(&self, path: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// Starts reading ahead what will be read soon, where supported.
    fn prefetch(&self, _path: &str, _offset: u64, _bytes: u64) {}
    /// Makes a file that does not exist yet.
    fn create(&self, path: &str) -> io::Result<Box<dyn DiskFile>>;
    /// Renames a file within its folder, without replacing another one.
    fn rename_new(&self, from: &str, to: &str) -> io::Result<()>;
    /// Renames a file within its folder, replacing another one.
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
    /// Locks bytes of a file, shared, which is made if it does not exist. None where they cannot be locked.
    fn share_bytes(&self, path: &str, bytes: &[i64]) -> io::Result<Option<super::LockGuard>>;
    /// True if one of `count` bytes of a file from `byte` on is locked so; 0 for all that follow.
    fn is_shared(&self, path: &str, byte: i64, count: i64) -> io::Result<bool>;
    /// How many bytes can still be written, if that is known.
    fn free_space(&self) -> Option<u64> {
        None
    }
    /// What to call a path in a message.
    fn location(&self, path: &str) -> String;
    /// Where it is, if other programs can see it there.
    fn local_path(&self) -> Option<&Path> {
        None
    }
}

/// A file that is being written.
pub trait DiskFile: Send {
    /// Adds bytes.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Makes all bytes durable.
    fn sync(&mut self) -> io::Result<()>;
}

/// A folder of the operating system. Every operation begins at its path, in which nothing may be a link (so
/// the disk under it can go and come back between two of them), and goes on by descriptors.
pub struct OsDisk {
    root: PathBuf,
    /// What [`OsDisk::ONLY`] is called there.
    only: OsString,
    /// The same without links, once it is there.
    real: OnceLock<PathBuf>,
    /// Tells its files from those of others in [`OPEN`].
    id: u64,
    has_locks: OnceLock<bool>,
}

/// File systems of this host alone, whose locks end with their holder, from linux/magic.h: ext, XFS, btrfs,
/// F2FS, tmpfs.
const LOCAL_FILESYSTEMS: [i64; 5] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0x0102_1994];

/// Open delta files of all disks, so that a chain of a thousand works with few descriptors. Delta files are
/// immutable, have names of their own, and are not unlinked while they are read. Others, such as the head
/// state, may be another file each time.
static OPEN: LazyLock<Cache<(u64, String), Arc<File>>> =
    LazyLock::new(|| Cache::new(most_open_files(soft_limit())));
static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// Of the 1024 that a process may have by default.
const OPEN_FILES: u64 = 200;

/// Where fewer than that may be open at all, some are left for everything else.
fn most_open_files(limit: u64) -> usize {
    (limit / 4).clamp(4, OPEN_FILES) as usize
}

fn soft_limit() -> u64 {
    use nix::sys::resource::{Resource, getrlimit};
    getrlimit(Resource::RLIMIT_NOFILE).map_or(OPEN_FILES * 4, |(soft, _)| soft)
}

impl OsDisk {
    /// The folder at `root`, which need not exist yet.
    pub fn new(root: PathBuf) -> Self {
        Self::of_file(root, Self::ONLY.into())
    }

    /// How the file of [`OsDisk::of_file`] is called in paths.
    pub const ONLY: &str = "only.delta";

    /// One delta file in a folder, whose name need not be UTF-8: it is read as [`OsDisk::ONLY`].
    pub fn of_file(root: PathBuf, only: OsString) -> Self {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        Self { root, only, real: OnceLock::new(), id, has_locks: OnceLock::new() }
    }

    fn path(&self, path: &str) -> PathBuf {
        if path.is_empty() { self.root.clone() } else { self.root.join(self.real_name(path)) }
    }

    fn real_name<'a>(&'a self, path: &'a str) -> &'a OsStr {
        if path == Self::ONLY { &self.only } else { OsStr::new(path) }
    }

    fn folder(&self, folder: &str) -> io::Result<Folder> {
        let real = match self.real.get() {
            Some(real) => real,
            None => {
                let real = resolve(&self.root).map_err(|e| match e.kind() {
                    ErrorKind::NotFound => io::ErrorKind::NotFound.into(),
                    _ => io::Error::other(e.to_string()),
                })?;
                self.real.get_or_init(|| real)
            }
        };
        let root = Folder::open(real)?;
        if folder.is_empty() { Ok(root) } else { root.folder(folder) }
    }

    /// The folder that a file is in, and its name there.
    fn place<'a>(&self, path: &'a str) -> io::Result<(Folder, &'a str)> {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.folder(folder)?, name))
    }

    fn opened(&self, path: &str) -> io::Result<Arc<File>> {
        let open = || {
            let opened = self.folder("")?.regular_file(self.real_name(path), OFlag::O_RDONLY, 0);
            Ok::<_, io::Error>(Arc::new(opened?))
        };
        if !path.ends_with(".delta") {
            return open();
        }
        let key = (self.id, path.to_owned());
        with_fewer_open(|| OPEN.get_or_insert_with(&key, open))
    }

    fn lock_file(&self, path: &str) -> io::Result<File> {
        let (folder, name) = self.place(path)?;
        with_fewer_open(|| open_or_create(&folder, name))
    }

    fn close(&self, path: &str) {
        OPEN.remove(&(self.id, path.to_owned()));
    }
}

impl Drop for OsDisk {
    fn drop(&mut self) {
        OPEN.retain(|(id, _), _| *id != self.id);
    }
}

impl Disk for OsDisk {
    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let entries = self.folder(folder)?.entries()?;
        // A name that is not UTF-8 is none of ours.
        Ok(entries.into_iter().filter_map(|entry| entry.name.into_string().ok()).collect())
    }

    fn list_timed(&self, folder: &str) -> io::Result<Vec<super::Listed>> {
        let folder = self.folder(folder)?;
        let listed = |entry: Entry| {
            let name = entry.name.into_string().ok()?;
            match folder.time_and_size(&name) {
                Ok((time, bytes)) => Some(Ok(super::Listed { name, time, bytes })),
                // It has just been removed.
                Err(e) if e.kind() == io::ErrorKind::NotFound => None,
                Err(e) => Some(Err(e)),
            }
        };
        folder.entries()?.into_iter().filter_map(listed).collect()
    }

    fn has_locks(&self) -> io::Result<bool> {
        if let Some(known) = self.has_locks.get() {
            return Ok(*known);
        }
        let magic = self.folder("")?.filesystem()?;
        Ok(*self.has_locks.get_or_init(|| LOCAL_FILESYSTEMS.contains(&magic)))
    }

    fn size(&self, path: &str) -> io::Result<u64> {
        Ok(self.opened(path)?.metadata()?.len())
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
        let (folder, name) = self.place(path)?;
        Ok(Box::new(OsFile::new(create_file(&folder, name, OFlag::O_WRONLY)?)))
    }

    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        let (folder, from) = self.place(from)?;
        folder.rename_new(from, name_in(to))
    }

    fn rename_over(&self, from: &str, to: &str) -> io::Result<()> {
        self.close(to);
        let (folder, from) = self.place(from)?;
        folder.rename_over(from, name_in(to))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.close(path);
        let (folder, name) = self.place(path)?;
        folder.remove(name)
    }

    fn create_folder(&self, folder: &str) -> io::Result<()> {
        let (above, name) = self.place(folder)?;
        create_folder(&above, name)
    }

    fn remove_folder(&self, folder: &str) -> io::Result<()> {
        let (above, name) = self.place(folder)?;
        above.remove_folder(name)
    }

    fn sync_folder(&self, folder: &str) -> io::Result<()> {
        self.folder(folder)?.sync()
    }

    fn lock(&self, path: &str, kind: LockKind) -> io::Result<Option<super::LockGuard>> {
        let (folder, name) = self.place(path)?;
        loop {
            let file = open_or_create(&folder, name)?;
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
            let here = folder.owned_in(name).map(|here| (here.device, here.inode));
            let meta = file.metadata()?;
            if here.ok() == Some((meta.dev(), meta.ino())) {
                return Ok(Some(Box::new(file)));
            }
        }
    }

    fn share_bytes(&self, path: &str, bytes: &[i64]) -> io::Result<Option<super::LockGuard>> {
        let locks = ByteLocks(self.lock_file(path)?);
        // Whatever is wrong with a byte: the whole file can be locked instead.
        let is_locked = bytes.iter().all(|byte| share_byte(&locks.0, *byte).is_ok());
        Ok(is_locked.then(|| Box::new(locks) as super::LockGuard))
    }

    fn is_shared(&self, path: &str, byte: i64, count: i64) -> io::Result<bool> {
        match holder(&self.lock_file(path)?, byte, count) {
            // Where flock is made of such locks (NFS, SMB), an exclusive one is the caller's own.
            Ok(held) => Ok(held == Some(Held::Shared)),
            // Then nobody could lock one.
            Err(e) if is_without_locks(&e) => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn free_space(&self) -> Option<u64> {
        crate::base::free_space::free_space_in(&self.root).ok()
    }

    fn location(&self, path: &str) -> String {
        self.path(path).shown().to_string()
    }

    fn local_path(&self) -> Option<&Path> {
        Some(&self.root)
    }
}

/// Opens a file; if others have taken all descriptors that were left, after the delta files are closed.
fn with_fewer_open<T>(open: impl Fn() -> io::Result<T>) -> io::Result<T> {
    match open() {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
            OPEN.clear();
            open()
        }
        other => other,
    }
}

/// Locks of bytes. Not every file system lets go of them when the file is closed.
struct ByteLocks(File);

impl Drop for ByteLocks {
    fn drop(&mut self) {
        unlock_bytes(&self.0, 0, 0);
    }
}

fn is_without_locks(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::ENOLCK | libc::EOPNOTSUPP | libc::ENOSYS)
    )
}

fn name_in(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
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
        // It was given up, for this reason or another.
        best_effort(self.take_back());
    }
}
