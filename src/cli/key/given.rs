//! What is given to open a repository: in a file, by a descriptor, by a command, in the environment, or
//! typed.

use super::args::{KeyOptions, NewKey};
use super::terminal;
use imgsnap::base::error::{Error, ErrorKind, Result};
use imgsnap::base::secret::Secret;
use imgsnap::base::signing::OwnerSigner;
use imgsnap::base::uri::Shown;
use imgsnap::store::sealed::{Credential, KeySource};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

/// No key, and no passphrase, is longer.
const MAX_BYTES: u64 = 64 << 10;

/// What the arguments and the environment say.
pub struct Given {
    options: KeyOptions,
    /// True if a passphrase that is typed is a new one, which is typed twice.
    is_new: bool,
    /// What was read: a descriptor is read once.
    read: Mutex<Option<Credential>>,
}

impl Given {
    pub fn new(options: KeyOptions, is_new: bool) -> Self {
        Self { options, is_new, read: Mutex::default() }
    }

    fn read(&self) -> Result<Option<Credential>> {
        let KeyOptions { key_file, password_file, password_fd, password_command } = &self.options;
        if let Some(file) = key_file {
            return key_file_of(file).map(Some);
        }
        if let Some(file) = password_file {
            return passphrase_in(file).map(Some);
        }
        if let Some(fd) = password_fd {
            let file = Path::new("/proc/self/fd").join(fd.to_string());
            return passphrase_in(&file).map(Some);
        }
        if let Some(command) = password_command {
            return printed_by(command).map(Some);
        }
        let variable = |name: &str| match std::env::var_os(name) {
            // It was meant to be something: what is made without it would not be encrypted.
            Some(value) if value.is_empty() => {
                Err(Error::new(ErrorKind::Key, format!("{name} is empty"))
                    .hint("set it, or unset it"))
            }
            value => Ok(value),
        };
        if let Some(file) = variable("IMGSNAP_KEY_FILE")? {
            return key_file_of(Path::new(&file)).map(Some);
        }
        if let Some(file) = variable("IMGSNAP_PASSWORD_FILE")? {
            return passphrase_in(Path::new(&file)).map(Some);
        }
        let typed = variable("IMGSNAP_PASSWORD")?.map(OsString::into_encoded_bytes);
        typed.map(|bytes| Secret::new(bytes).map(Credential::Passphrase)).transpose()
    }
}

impl KeySource for Given {
    fn given(&self) -> Result<Option<Credential>> {
        let mut read = self.read.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if read.is_none() {
            *read = self.read()?;
            if read.is_some() {
                keep_out_of_core_dumps();
            }
        }
        read.as_ref().map(Credential::copy).transpose()
    }

    fn ask(&self, place: &str) -> Result<Option<Credential>> {
        if !self.can_ask() {
            return Ok(None);
        }
        keep_out_of_core_dumps();
        let typed = match self.is_new {
            true => terminal::ask_new(&format!("new passphrase for {place}: "))?,
            false => terminal::ask(&format!("passphrase of {place}: "))?,
        };
        Ok(Some(Credential::Passphrase(typed)))
    }

    fn can_ask(&self) -> bool {
        terminal::is_there()
    }
}

/// A key file, and nothing that takes time or asks.
pub struct FileOnly(Option<PathBuf>);

impl FileOnly {
    /// The file, or that of the environment.
    pub fn new(file: Option<PathBuf>) -> Self {
        let named = std::env::var_os("IMGSNAP_KEY_FILE").filter(|file| !file.is_empty());
        Self(file.or_else(|| named.map(PathBuf::from)))
    }
}

impl KeySource for FileOnly {
    fn given(&self) -> Result<Option<Credential>> {
        keep_out_of_core_dumps();
        // A pipe would be waited for.
        let file = self.0.as_deref().filter(|path| path.is_file());
        file.map(key_file_of).transpose()
    }
}

/// What is to open a repository from now on.
pub fn new(new: &NewKey) -> Result<Credential> {
    match (&new.new_key_file, &new.new_password_file) {
        (Some(file), _) => key_file_of(file),
        (_, Some(file)) => passphrase_in(file),
        _ if terminal::is_there() => {
            terminal::ask_new("new passphrase: ").map(Credential::Passphrase)
        }
        _ => Err(Error::new(ErrorKind::InvalidInput, "there is no terminal to enter a passphrase")
            .hint("use --new-password-file or --new-key-file")),
    }
}

/// What a process leaves behind when it crashes has its keys in it.
fn keep_out_of_core_dumps() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_CORE) {
        imgsnap::base::error::best_effort(setrlimit(Resource::RLIMIT_CORE, 0, hard));
    }
}

fn read_all(path: &Path) -> Result<Secret> {
    let failed = |e| Error::os("read", path.shown(), e);
    read_from(File::open(path).map_err(failed)?, &path.shown())
}

fn read_from(from: impl Read, place: &str) -> Result<Secret> {
    // As long as it may become: nothing of it is left where it was shorter.
    let mut bytes = Vec::with_capacity(MAX_BYTES as usize + 2);
    let failed = |e| Error::os("read", place, e);
    from.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    let is_long = bytes.len() as u64 > MAX_BYTES;
    let secret = Secret::new(bytes)?;
    match is_long {
        true => Err(Error::new(
            ErrorKind::InvalidInput,
            format!("{place} is too long to be a key file"),
        )),
        false => Ok(secret),
    }
}

/// The private key of an owner.
///
/// # Errors
/// `Key` if the file has none.
pub fn owner_key_in(path: &Path) -> Result<OwnerSigner> {
    keep_out_of_core_dumps();
    OwnerSigner::read(&read_all(path)?).map_err(|e| e.at(path.shown()))
}

fn key_file_of(path: &Path) -> Result<Credential> {
    read_all(path).map(Credential::KeyFile)
}

/// The first line, without its end.
fn first_line(all: &Secret, place: &str) -> Result<Credential> {
    let line = all.bytes().split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.is_empty() {
        let what = format!("{place} has no passphrase in its first line");
        return Err(Error::new(ErrorKind::InvalidInput, what));
    }
    Secret::copy(line).map(Credential::Passphrase)
}

fn passphrase_in(path: &Path) -> Result<Credential> {
    first_line(&read_all(path)?, &path.shown())
}

fn printed_by(command: &str) -> Result<Credential> {
    let failed = |e| Error::io("cannot run the passphrase command", e);
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let printed =
        child.stdout.take().map(|out| read_from(out, "the output of the passphrase command"));
    let status = child.wait().map_err(failed)?;
    if !status.success() {
        let what = format!("the passphrase command failed ({status})");
        return Err(Error::new(ErrorKind::InvalidInput, what));
    }
    let nothing = || Error::new(ErrorKind::Internal, "the passphrase command has no output");
    first_line(&printed.ok_or_else(nothing)??, "the output of the passphrase command")
}
