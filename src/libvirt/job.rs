//! The job that a domain has under way: at most one, whoever began it.

use super::definition::child;
use super::domain::{Domain, DomainState};
use super::names;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::Context;
use crate::base::message::{Action, message};
use crate::image::qemu::PrivateFolder;
use roxmltree::Document;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long a job may take to end that was told to.
const PATIENCE: Duration = Duration::from_secs(20);
/// What libvirt (9.0) says of a backup that it had begun and not noted down when it was killed. No QEMU job
/// is left, and nothing ends it, not even another start of libvirtd.
const STUCK: &str = "backup job data missing";
/// How often it is asked whether it has.
const STEP: Duration = Duration::from_millis(20);

impl Domain {
    /// Ends a backup that a killed run of ours has left. True if there was one.
    ///
    /// # Errors
    /// `Busy` if something else is under way: a backup of somebody else, or of ours that lives, or a
    /// migration.
    pub fn recover(&self, context: &Context) -> Result<bool> {
        let Some(operation) = self.operation(context)? else { return Ok(false) };
        let busy = |what: String| {
            let hint = message![Action::Retry, " when that has ended"];
            Err(self.refuse(ErrorKind::Busy, &what).hint(hint))
        };
        if operation != "Backup" {
            return busy(format!("is running a job (\"{}\")", operation.escape_debug()));
        }
        match self.left_by() {
            Some(folder) if PrivateFolder::is_abandoned(&folder) => {}
            Some(_) => return busy("is already being backed up by imgsnap".to_owned()),
            None => {
                return match self.operation(context)? {
                    None => Ok(false),
                    Some(_) => busy("is being backed up by another program".to_owned()),
                };
            }
        }
        self.abort_job()?;
        Ok(true)
    }

    /// What it does besides running, as libvirt calls it.
    pub(super) fn operation(&self, context: &Context) -> Result<Option<String>> {
        let said = match self.virsh.ask(&["domjobinfo", &self.uuid], context) {
            // It was shut off meanwhile.
            Err(_) if self.state(context)? == DomainState::Off => return Ok(None),
            Err(error) if error.message().contains(STUCK) => {
                let what = "has a backup that libvirtd lost track of when it was killed at its start: \
                            libvirt refuses further jobs until the machine is shut down";
                return Err(self
                    .refuse(ErrorKind::Busy, what)
                    .hint("shut the machine down, and start it again"));
            }
            other => other?,
        };
        let of = |name: &str| {
            let line = said.lines().find_map(|line| line.strip_prefix(name));
            line.map(|rest| rest.trim().to_owned())
        };
        match of("Job type:").as_deref() {
            None | Some("None") => Ok(None),
            Some(kind) => Ok(Some(of("Operation:").unwrap_or_else(|| kind.to_owned()))),
        }
    }

    /// Ends a backup that writes to this folder, if it is under way.
    pub(super) fn abort_own(&self, folder: &Path) -> Result<()> {
        match self.operation(&Context::silent())? {
            Some(operation) if operation == "Backup" => match self.left_by() {
                Some(found) if found == folder => self.abort_job(),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// The folder of a backup of ours, by where it writes.
    fn left_by(&self) -> Option<PathBuf> {
        let said = self.virsh.change(&["backup-dumpxml", &self.uuid]).ok()?;
        let document = Document::parse(&said).ok()?;
        let disks = child(document.root_element(), "disks")?;
        let files = disks.children().filter_map(|disk| child(disk, "scratch")?.attribute("file"));
        let mut folders = files.map(|file| PathBuf::from(file).parent().map(PathBuf::from));
        let folder = folders.next()??;
        let is_ours = folder.file_name()?.to_str()?.starts_with(names::FOLDER);
        // All of them: somebody may use the name of one.
        (is_ours && folders.all(|other| other.as_ref() == Some(&folder))).then_some(folder)
    }

    /// Ends the backup that is under way, and waits until it has ended. The checkpoint that was made with it
    /// stays.
    pub(super) fn abort_job(&self) -> Result<()> {
        let begun = Instant::now();
        // What is put in order is put in order although we are told to end.
        let context = &Context::silent();
        let mut aborted = self.virsh.change(&["domjobabort", &self.uuid]).map(drop);
        loop {
            match self.operation(context) {
                Ok(None) => return Ok(()),
                Ok(Some(operation)) if operation != "Backup" => return Ok(()),
                Err(error) if begun.elapsed() > PATIENCE => return Err(error),
                Ok(Some(_)) if begun.elapsed() > PATIENCE => {
                    let gone = || Error::new(ErrorKind::Unavailable, "its backup does not end");
                    return Err(aborted.err().unwrap_or_else(gone).at(self.uri()));
                }
                // libvirt may be starting again.
                Err(_) => sleep(STEP * 10),
                Ok(Some(_)) => sleep(STEP),
            }
            if aborted.is_err() {
                aborted = self.virsh.change(&["domjobabort", &self.uuid]).map(drop);
            }
        }
    }
}
