//! Files for what was found: looked at before a run that takes minutes, and written at once or not
//! at all.

use imgsnap::base::error::{Error, ErrorKind, Result, best_effort};
use imgsnap::base::folder::resolve;
use imgsnap::base::uri::Shown;
use imgsnap::refuse_inside_any;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::io::{self, ErrorKind as IoKind, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A file that will be written, or replaced.
pub struct Export {
    path: PathBuf,
    temporary: PathBuf,
    permissions: Option<Permissions>,
}

impl Export {
    /// Fails if the file could not be written.
    pub fn new(path: &Path) -> Result<Self> {
        // A link stays a link: what it points to is replaced.
        refuse_inside_any(path)?;
        let path = if path.exists() { resolve(path)? } else { path.to_owned() };
        let place = path.shown();
        let permissions = match std::fs::metadata(&path) {
            Ok(meta) if meta.is_file() => Some(meta.permissions()),
            Ok(_) => {
                return Err(Error::new(
                    ErrorKind::InvalidInput,
                    format!("{place} is not a regular file"),
                ));
            }
            Err(e) if e.kind() == IoKind::NotFound => None,
            Err(e) => return Err(Error::os("write", place, e)),
        };
        let Some(name) = path.file_name() else {
            let what = format!("{place} is not a file name");
            return Err(Error::new(ErrorKind::InvalidInput, what));
        };
        let mut hidden = OsString::from(".");
        // With all of a long name it would be too long.
        hidden.push(OsStr::from_bytes(name.as_bytes().get(..100).unwrap_or(name.as_bytes())));
        hidden.push(format!(".{}.tmp", std::process::id()));
        let export = Self { temporary: path.with_file_name(hidden), path, permissions };
        // Whether the folder takes a file is known for certain only by making one.
        let tried = export.create().and_then(|_| std::fs::remove_file(&export.temporary));
        tried.map_err(|e| export.failed(e))?;
        Ok(export)
    }

    /// Writes it, atomically.
    pub fn write(&self, text: &str) -> Result<()> {
        let written = self.create().and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            if let Some(permissions) = &self.permissions {
                file.set_permissions(permissions.clone())?;
            }
            file.sync_all()?;
            std::fs::rename(&self.temporary, &self.path)
        });
        written.map_err(|e| {
            // It was not there yet; or it stays behind, hidden.
            best_effort(std::fs::remove_file(&self.temporary));
            self.failed(e)
        })
    }

    fn create(&self) -> io::Result<File> {
        File::options().write(true).create_new(true).open(&self.temporary)
    }

    fn failed(&self, error: io::Error) -> Error {
        Error::os("write", self.path.shown(), error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn names_in(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_look_leaves_nothing_and_writing_replaces() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.md");
        let export = Export::new(&path).unwrap();
        assert!(names_in(folder.path()).is_empty());
        export.write("one").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one");
        std::fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("a.md", &link).unwrap();
        Export::new(&link).unwrap().write("two").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o640);
        assert!(link.is_symlink());
        assert_eq!(names_in(folder.path()).len(), 2);
    }

    #[test]
    fn what_cannot_be_written_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("file"), "").unwrap();
        for (path, named) in [
            (at("nowhere/a.md"), "nowhere/a.md: No such file or directory"),
            (at("file/a.md"), "Not a directory"),
            (folder.path().to_owned(), "is not a regular file"),
            ("/dev/null".into(), "/dev/null is not a regular file"),
            ("/".into(), "/ is not a regular file"),
            ("".into(), "is not a file name"),
        ] {
            let error = Export::new(&path).err().unwrap().to_string();
            assert!(error.contains(named), "{error}");
        }
        assert_eq!(names_in(folder.path()), ["file"]);
    }

    #[test]
    fn a_failure_leaves_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.md");
        let export = Export::new(&path).unwrap();
        // In the way of the rename.
        std::fs::create_dir(&path).unwrap();
        assert!(export.write("text").unwrap_err().to_string().contains("cannot write"));
        assert_eq!(names_in(folder.path()), ["a.md"]);
    }
}
