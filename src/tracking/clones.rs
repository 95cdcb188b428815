//! Clones of images, kept in the folder `.imgsnap` beside them: each is what its image was at one
//! snapshot, by whose id it is called.
//!
//! A clone has no name until its snapshot is about to be published; killed before, it leaves nothing
//! behind. It is marked with the repository and image that it is of, so that nobody takes the clones of
//! another repository for garbage.
//!
//! The folder may be another user's, who can exchange it at any moment: it is held while something is made
//! in it, and has to be a folder of ours, or of whose folder it is in.

use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::folder::{self, Folder};
use crate::base::sys::{attribute, set_attribute, set_no_copy_on_write};
use crate::base::uri::Shown;
use crate::tracking::reflink::{clone_into, own_bytes};
use nix::fcntl::OFlag;
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, FsType, fstatfs};
use serde::{Deserialize, Serialize};
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Instant, UNIX_EPOCH};
use uuid::Uuid;

const FOLDER: &str = ".imgsnap";
/// Permissions by which others could exchange what is in a folder.
const OTHERS_WRITE: u32 = 0o022;
/// How often the folder is made again, should it go.
const MAKE_TRIES: usize = 3;
const OWNER: &CStr = c"user.imgsnap.owner";

/// The image that a clone is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The repository.
    pub repository: Uuid,
    /// The image in it.
    pub image: Uuid,
}

impl Owner {
    fn encode(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        let (repository, image) = bytes.split_at_mut(16);
        repository.copy_from_slice(self.repository.as_bytes());
        image.copy_from_slice(self.image.as_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (repository, image) = bytes.split_at_checked(16)?;
        let uuid = |bytes| Uuid::from_slice(bytes).ok();
        Some(Self { repository: uuid(repository)?, image: uuid(image)? })
    }
}

/// By what a clone is recognised as the one that was made, written to by nobody. Not the device: its
/// number changes from mount to mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneStat {
    /// Inode number.
    pub inode: u64,
    /// Length.
    pub bytes: u64,
    /// Time of birth, in nanoseconds since 1970, if the file system tells.
    pub born_ns: Option<u64>,
    /// Time of the last modification, in nanoseconds since 1970.
    pub mtime_ns: i64,
    /// Time of the last change of the inode, in nanoseconds since 1970. A write, a new name and a new
    /// mode all set it.
    pub ctime_ns: i64,
}

impl CloneStat {
    fn of(file: &File) -> io::Result<Self> {
        let meta = file.metadata()?;
        let born = meta.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let time = |s: i64, ns: i64| s.saturating_mul(1_000_000_000).saturating_add(ns);
        Ok(Self {
            inode: meta.ino(),
            bytes: meta.len(),
            born_ns: born.and_then(|born| u64::try_from(born.as_nanos()).ok()),
            mtime_ns: time(meta.mtime(), meta.mtime_nsec()),
            ctime_ns: time(meta.ctime(), meta.ctime_nsec()),
        })
    }
}

/// A clone that has no name yet.
pub struct NewClone {
    file: File,
    /// How long making it took: so long writers of the image waited.
    pub seconds: f64,
    /// How many extents it has, about.
    pub extents: u64,
}

impl NewClone {
    /// Clones an image that is open and has so many extents, about.
    ///
    /// # Errors
    /// `Unsupported` if the file system shares no extents, has no nameless files or no extended
    /// attributes.
    pub fn make(image: &File, path: &Path, extents: u64, owner: Owner) -> Result<Self> {
        let failed = |e| Error::os("make a clone of", path.shown(), e);
        if !has_physical_addresses(image) {
            return Err(cannot(path));
        }
        let to = Folder::of(path).and_then(|folder| folder.nameless());
        let to = to.map_err(|e| match e.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::EISDIR | libc::ENOENT) => cannot(path),
            Some(libc::EACCES | libc::EPERM | libc::EROFS) => {
                let what = format!("{}: its folder cannot be written to", path.shown());
                Error::new(ErrorKind::Unsupported, what)
                    .hint(format!("clones are kept in {}", CloneFolder::beside(path).path.shown()))
            }
            _ => failed(e),
        })?;
        // What is dirty is written out before, not while writers wait for the clone.
        image.sync_data().map_err(failed)?;
        let mut begun = Instant::now();
        let mut cloned = clone_into(image, &to);
        if cloned.as_ref().is_err_and(|e| e.kind() == ErrorKind::Unsupported)
            && set_no_copy_on_write(&to).is_ok()
        {
            // Images of machines on btrfs often are such files, and only such can be clones of them.
            begun = Instant::now();
            cloned = clone_into(image, &to);
        }
        cloned.map_err(|e| e.at(path.shown()))?;
        let seconds = begun.elapsed().as_secs_f64();
        set_attribute(&to, OWNER, &owner.encode()).map_err(|e| match e.raw_os_error() {
            Some(libc::EOPNOTSUPP) => cannot(path),
            _ => failed(e),
        })?;
        // From here on nobody can write to it, not even we.
        let file = File::open(format!("/proc/self/fd/{}", to.as_raw_fd())).map_err(failed)?;
        Ok(Self { file, seconds, extents })
    }

    /// The clone, open for reading.
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// Opens a clone of the image at `path` once more.
///
/// # Errors
/// `Io` if there is no descriptor left.
pub fn reopen(clone: &File, path: &Path) -> Result<File> {
    let failed = |e| Error::io(format!("cannot open the clone of {} again", path.shown()), e);
    clone.try_clone().map_err(failed)
}

/// True on file systems of which it is known that two extents with one address are one. Others clone, too,
/// but tell something else: SMB the offset in the file, bcachefs an address on one of several devices.
pub fn has_physical_addresses(file: &File) -> bool {
    /// From linux/magic.h; `nix` has it for one C library only.
    const XFS_SUPER_MAGIC: FsType = FsType(0x5846_5342);
    let kind = fstatfs(file).map(|stat| stat.filesystem_type());
    kind.is_ok_and(|kind| [XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC].contains(&kind))
}

fn cannot(path: &Path) -> Error {
    let what = format!("{}: the file system cannot keep a clone of it", path.shown());
    Error::new(ErrorKind::Unsupported, what)
}

/// The folder of clones beside an image.
pub struct CloneFolder {
    path: PathBuf,
}

/// A clone that was found in the folder.
pub struct FoundClone {
    /// The snapshot that it is of.
    pub id: Uuid,
    /// Where it is.
    pub path: PathBuf,
    /// Of which image; none if it has no mark.
    pub owner: Option<Owner>,
}

impl CloneFolder {
    /// True for a file that lies where clones are kept.
    pub fn holds(path: &Path) -> bool {
        path.parent().and_then(Path::file_name).is_some_and(|name| name == FOLDER)
    }

    /// That of an image. It need not exist.
    pub fn beside(image: &Path) -> Self {
        Self { path: folder::parent(image).join(FOLDER) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the clone of a snapshot is.
    pub fn path_of(&self, id: Uuid) -> PathBuf {
        self.path.join(id.to_string())
    }

    /// Gives a clone its name, durably.
    ///
    /// # Errors
    /// `Unsupported` if the folder is none, but a link or a file.
    pub fn keep(&self, clone: &NewClone, id: Uuid) -> Result<CloneStat> {
        let path = self.path_of(id);
        let failed = |e| Error::os("keep the clone", path.shown(), e);
        let above = Folder::of(&self.path).map_err(failed)?;
        let mut tries = MAKE_TRIES;
        let folder = loop {
            match above.make_folder(FOLDER, 0o700) {
                Ok(()) => above.sync().map_err(failed)?,
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(failed(e)),
            }
            tries -= 1;
            let linked = self.open_in(&above).and_then(|folder| {
                folder.link(&clone.file, id.to_string()).map_err(failed).map(|()| folder)
            });
            match linked {
                // Somebody removed the last clone of another image, and the folder with it.
                Err(e) if e.kind() == ErrorKind::NotFound && tries > 0 => {}
                other => break other?,
            }
        };
        let synced = clone.file.sync_all().and_then(|()| folder.sync());
        synced.and_then(|()| CloneStat::of(&clone.file)).map_err(failed)
    }

    /// Opens the folder, if it may be used.
    ///
    /// # Errors
    /// `Unsupported` if it is no folder, or one that neither we made nor whoever has the one above.
    fn open_in(&self, above: &Folder) -> Result<Folder> {
        let place = self.path.shown();
        let failed = |e| Error::os("open", &place, e);
        let folder = above.folder(FOLDER).map_err(|e| match e.raw_os_error() {
            Some(libc::ELOOP | libc::ENOTDIR) => {
                let what = format!("{place} is not a folder");
                Error::new(ErrorKind::Unsupported, what).hint("remove it")
            }
            _ => failed(e),
        })?;
        let (owned, parent) = (folder.owned().map_err(failed)?, above.owned().map_err(failed)?);
        let is_theirs = !folder::is_ours(owned.owner) && owned.owner != parent.owner;
        if is_theirs || owned.mode & OTHERS_WRITE != 0 {
            let what = format!("{place} belongs to another user, or others can change it");
            return Err(
                Error::new(ErrorKind::Unsupported, what).hint("no clone is kept in it; remove it")
            );
        }
        Ok(folder)
    }

    /// The same; none if it is not there.
    fn opened(&self) -> Result<Option<Folder>> {
        let failed = |e| Error::os("open", self.path.shown(), e);
        let above = match Folder::of(&self.path) {
            // None was made through a link; a device may be named through one.
            Err(e) if is_absent(&e) || e.raw_os_error() == Some(libc::ELOOP) => return Ok(None),
            other => other.map_err(failed)?,
        };
        match self.open_in(&above) {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Unsupported) => Ok(None),
            other => other.map(Some),
        }
    }

    /// Bytes that would be free without a clone that was found.
    pub fn own_bytes(&self, found: &FoundClone) -> Result<u64> {
        let Some(folder) = self.opened()? else { return Ok(0) };
        match open(&folder, &found.id.to_string()) {
            Ok(file) => own_bytes(&file).map_err(|e| e.at(found.path.shown())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(e) => Err(Error::os("open", found.path.shown(), e)),
        }
    }

    /// Opens the clone of a snapshot if it is the one that was made; otherwise says what is wrong.
    pub fn open(&self, id: Uuid, made: &CloneStat) -> Result<File, String> {
        let folder = self.opened().map_err(|e| e.without_advice())?;
        let folder = folder.ok_or_else(|| "is missing".to_owned())?;
        let file = open(&folder, &id.to_string()).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => "is missing".to_owned(),
            _ => format!("cannot be opened ({})", e.kind()),
        })?;
        match CloneStat::of(&file) {
            Ok(stat) if stat == *made => Ok(file),
            Ok(_) => Err("has changed".into()),
            Err(e) => Err(format!("cannot be read ({})", e.kind())),
        }
    }

    /// All that is in it and has the name of a clone, sorted.
    pub fn list(&self) -> Result<Vec<FoundClone>> {
        let failed = |e| Error::os("list", self.path.shown(), e);
        let Some(folder) = self.opened()? else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for entry in folder.entries().map_err(failed)? {
            let name = entry.name.to_str().unwrap_or_default();
            let Some(id) = Uuid::parse_str(name).ok().filter(|id| id.to_string() == name) else {
                continue;
            };
            let path = self.path.join(name);
            match open(&folder, name).and_then(|file| owner_of(&file)) {
                Ok(owner) => found.push(FoundClone { id, path, owner }),
                // Nobody knows whose it is.
                Err(e) if is_passing(&e) => {
                    return Err(Error::io(format!("cannot read the clone {}", path.shown()), e));
                }
                // What we may not open is not ours.
                Err(_) => {}
            }
        }
        found.sort_by_key(|clone| clone.id);
        Ok(found)
    }

    /// Removes the clone of a snapshot, and the folder if it was the last. It is no error if it is not
    /// there.
    pub fn remove(&self, id: Uuid) -> Result<()> {
        let path = self.path_of(id);
        let failed = |e| Error::os("remove the clone", path.shown(), e);
        let Some(folder) = self.opened()? else { return Ok(()) };
        match folder.remove(id.to_string()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => other.map_err(failed)?,
        }
        // Others are in it, or it is not ours to remove.
        best_effort(Folder::of(&self.path).and_then(|above| above.remove_folder(FOLDER)));
        Ok(())
    }
}

/// Of which image a clone is; none if it has no mark.
fn owner_of(file: &File) -> io::Result<Option<Owner>> {
    match attribute(file, OWNER) {
        Err(e) if is_passing(&e) => Err(e),
        mark => Ok(mark.ok().and_then(|bytes| Owner::decode(&bytes))),
    }
}

/// True for what says nothing of a file: it may be another time.
fn is_passing(error: &io::Error) -> bool {
    let codes = [libc::EIO, libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EINTR];
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

fn open(folder: &Folder, name: &str) -> io::Result<File> {
    folder.regular_file(name, OFlag::O_RDONLY, 0)
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
