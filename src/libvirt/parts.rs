//! What a machine consists of besides its disks: its definition, the variables of its firmware, and the state
//! of its TPM, as they go with a snapshot.

use super::definition::Definition;
use super::domain::Domain;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::{Context, WarningId};
use crate::base::uri::Shown;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What the definition is called.
pub const XML: &str = "domain.xml";
/// ... as it was while the machine ran, which may be another one.
pub const RUNNING: &str = "running.xml";
/// What the variables of the firmware are called.
pub const NVRAM: &str = "nvram";
/// ... each file of the TPM, its folder, and its name.
pub const TPM: &str = "tpm:";
/// The longest part, in bytes.
const MAX_BYTES: u64 = 64 << 20;
/// Where libvirt keeps the TPM of a domain, below a folder of its UUID.
const TPMS: &str = "/var/lib/libvirt/swtpm";

impl Domain {
    /// What goes with a snapshot of it: names and bytes. What cannot be read is told.
    ///
    /// # Errors
    /// Of libvirt.
    pub fn parts(
        &self,
        definition: &Definition,
        is_running: bool,
        context: &Context,
    ) -> Result<Vec<(String, Vec<u8>)>> {
        let mut parts = vec![(XML.to_owned(), self.xml(context)?.into_bytes())];
        if is_running {
            parts.push((RUNNING.to_owned(), self.running_xml(context)?.into_bytes()));
        }
        let missing = |what: &str, place: &Path, error: io::Error| {
            let place = place.shown();
            let what = format!("{}: not in the snapshot: {what}: {place}: {error}", self.uri());
            context.warn(WarningId::NotCovered, what);
        };
        if let Some(nvram) = &definition.nvram {
            match contents(nvram) {
                Ok(bytes) => parts.push((NVRAM.to_owned(), bytes)),
                // Made from its template when the machine is started first.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => missing("the variables of its firmware", nvram, e),
            }
        }
        if definition.has_tpm {
            let folder = self.tpm();
            match tpm_files(&folder) {
                Ok(files) => parts.extend(files),
                Err(e) => missing("the state of its TPM", &folder, e),
            }
        }
        Ok(parts)
    }

    /// Where the state of its TPM is.
    fn tpm(&self) -> PathBuf {
        Path::new(TPMS).join(&self.uuid)
    }
}

/// Puts the state of a TPM where the domain of that UUID looks for it: `FOLDER:FILE`, and bytes. libvirt
/// gives it to the user of the TPM when the machine is started.
///
/// # Errors
/// `Corrupt` for names that lead elsewhere; of the operating system.
pub(super) fn place_tpm(uuid: &str, files: &[(String, Vec<u8>)]) -> Result<()> {
    let all = Path::new(TPMS).join(uuid);
    if !files.is_empty() && all.exists() {
        let what = format!("{} already contains the state of a TPM", all.shown());
        return Err(Error::new(ErrorKind::AlreadyExists, what).hint("move it away"));
    }
    for (name, bytes) in files {
        let (folder, file) = name.split_once(':').unwrap_or_default();
        let is_name =
            |name: &str| !name.is_empty() && !name.starts_with('.') && !name.contains('/');
        if !is_name(folder) || !is_name(file) {
            let what = format!("\"{}\" is not a TPM file", name.escape_debug());
            return Err(Error::corrupt(what));
        }
        let place = Path::new(TPMS).join(uuid).join(folder);
        let failed = |e| Error::os("write the state of the TPM in", place.shown(), e);
        std::fs::create_dir_all(&place).map_err(failed)?;
        let mut new = OpenOptions::new();
        let new = new.write(true).create_new(true).mode(0o600).open(place.join(file));
        new.and_then(|mut file| file.write_all(bytes)).map_err(failed)?;
    }
    Ok(())
}

fn contents(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > MAX_BYTES {
        true => Err(io::ErrorKind::FileTooLarge.into()),
        false => Ok(bytes),
    }
}

/// `tpm:FOLDER:FILE`, of each file in each folder: there is one folder for each version of the standard.
fn tpm_files(place: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for folder in std::fs::read_dir(place)? {
        let folder = folder?;
        if !folder.file_type()?.is_dir() {
            continue;
        }
        for file in std::fs::read_dir(folder.path())? {
            let file = file?;
            let names = (folder.file_name().into_string(), file.file_name().into_string());
            let (Ok(folder), Ok(name)) = names else { continue };
            // A lock is of nobody but who holds it.
            if file.file_type()?.is_file() && !name.starts_with('.') {
                files.push((format!("{TPM}{folder}:{name}"), contents(&file.path())?));
            }
        }
    }
    files.sort();
    Ok(files)
}
