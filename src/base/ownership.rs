//! Whose a file is that is made in a folder: it goes by the folder. So root may work in a folder of somebody
//! else, and one member of a group after the other in theirs, and what they leave behind is no obstacle.
//!
//! Only what was made a moment ago is ever given away, by its descriptor: a file that was there may have
//! another name, elsewhere, and be of somebody else's.

use crate::base::error::best_effort;
use crate::base::folder::{Folder, Owned};
use nix::fcntl::OFlag;
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};

const GROUP_WRITES: u32 = 0o020;
/// The bit of a folder that passes its group on.
const SET_GROUP: u32 = 0o2000;

/// Makes a file in a folder, for whoever may write to the folder: with its owner and group, as far as the
/// caller may give them, and mode 0600, or 0660 in a folder to which its group may write.
///
/// # Errors
/// `AlreadyExists` if there is something of that name.
pub fn create_file(folder: &Folder, name: &str, access: OFlag) -> io::Result<File> {
    let flags = access | OFlag::O_CREAT | OFlag::O_EXCL;
    let file = folder.file(name, flags, 0o600)?;
    match give(&file, &folder.owned()?, 0o660) {
        Ok(()) => Ok(file),
        Err(e) => {
            // Whoever comes next clears it away.
            best_effort(folder.remove(name));
            Err(e)
        }
    }
}

/// Makes a folder in a folder in the same way: mode 0700 or 0770.
///
/// # Errors
/// `AlreadyExists` if there is something of that name.
pub fn create_folder(above: &Folder, name: &str) -> io::Result<()> {
    above.make_folder(name, 0o700)?;
    let given = give_folder(above, name);
    if given.is_err() {
        // One that is not empty stays: somebody else is at work there.
        best_effort(above.remove_folder(name));
    }
    given
}

fn give_folder(above: &Folder, name: &str) -> io::Result<()> {
    let made = above.folder(name)?;
    // Somebody may have put another one in its place: one that holds something is not ours to give away.
    if !made.entries()?.is_empty() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    give(&made.readable()?, &above.owned()?, 0o770)
}

/// Gives away what was made in a folder a moment ago, for its owner alone.
fn give(made: &File, folder: &Owned, shared_mode: u32) -> io::Result<()> {
    let is_root = nix::unistd::geteuid().is_root();
    let owner = is_root.then_some(folder.owner);
    set_owner(made, owner, Some(folder.group))?;
    let meta = made.metadata()?;
    // Another group than the folder's was promised nothing.
    if folder.mode & GROUP_WRITES != 0 && meta.gid() == folder.group {
        let passed_on = meta.mode() & SET_GROUP;
        match made.set_permissions(Permissions::from_mode(shared_mode | passed_on)) {
            // A file system that gives all its files one mode.
            Err(e) if is_refused(&e) => {}
            other => return other,
        }
    }
    Ok(())
}

/// Gives a file an owner and a group, where they are to be changed. False if one of them is not to be had:
/// the caller may not give it away, there is no such user here, or the file system knows none.
///
/// # Errors
/// Others than that.
pub fn set_owner(file: &File, owner: Option<u32>, group: Option<u32>) -> io::Result<bool> {
    let meta = file.metadata()?;
    let owner = owner.filter(|owner| *owner != meta.uid());
    let group = group.filter(|group| *group != meta.gid());
    if owner.is_none() && group.is_none() {
        return Ok(true);
    }
    match fchown(file, owner, group) {
        Ok(()) => Ok(true),
        Err(e) if is_refused(&e) => Ok(false),
        Err(e) => Err(e),
    }
}

fn is_refused(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EPERM | libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS)
    )
}

/// Opens a file in a folder, to read and to write it, and makes it if it is not there.
///
/// # Errors
/// `ELOOP` for a link: what it leads to is not ours to make.
pub fn open_or_create(folder: &Folder, name: &str) -> io::Result<File> {
    loop {
        match folder.regular_file(name, OFlag::O_RDWR, 0) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            opened => return opened,
        }
        match create_file(folder, name, OFlag::O_RDWR) {
            // Somebody else was first.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made,
        }
    }
}
