//! Disks of a domain as they were at one point in time: a backup of libvirt's in pull mode, with which QEMU
//! serves them over NBD until it is ended, and a checkpoint that is made in the same moment.

use super::checkpoints::{KnownSnapshot, Since};
use super::definition::{DomainDisk, escaped};
use super::domain::Domain;
use super::names;
use super::scratch::Scratch;
use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::events::{Context, WarningId};
use crate::base::uri::Shown;
use crate::image::nbd::{NbdPlace, NbdUri};
use crate::machine::FleecedDisk;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;
use uuid::Uuid;

/// How often it is looked at how much of the scratch files is used.
const STEP: Duration = Duration::from_millis(10);
/// The folder in which QEMU makes its socket: anybody may, and nobody finds the names in it.
const SOCKETS: &str = "s";
const SOCKETS_MODE: u32 = 0o1733;
/// The longest path of a socket that the kernel takes, in bytes.
const MAX_SOCKET_BYTES: usize = 107;
/// So many digits make a name that nobody guesses.
const RANDOM: usize = 16;

/// A disk of which a snapshot is taken.
#[derive(Debug, Clone)]
pub struct BackupDisk {
    /// The disk.
    pub disk: DomainDisk,
    /// Its snapshots that can be relied on, the newest first.
    pub known: Vec<KnownSnapshot>,
}

/// What a disk was read from at a snapshot, by its target, as the repository has it.
pub type SourceAt<'a> = dyn Fn(&str, Uuid) -> Option<String> + 'a;

/// What becomes of the checkpoint that was made with a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// All snapshots stand: those before are needed no more.
    Committed,
    /// Some of them stand: it is needed, and so are those before.
    Partly,
    /// None stands: it goes.
    Aborted,
}

/// A backup. Dropped, it is ended, and its checkpoint goes.
pub struct Backup {
    domain: Domain,
    parts: Vec<Part>,
    /// Whose checkpoints are ours.
    images: Vec<Uuid>,
    /// The one that is made; none if no disk can be in one.
    checkpoint: Option<String>,
    socket: PathBuf,
    scratch: Arc<Scratch>,
    /// libvirt was asked to begin.
    is_begun: bool,
    watch: Option<Watch>,
    context: Context,
}

struct Part {
    disk: DomainDisk,
    /// The snapshot and the checkpoint since which a bitmap tells.
    since: Since,
}

/// Who looks at the scratch files.
struct Watch {
    thread: Option<JoinHandle<()>>,
    is_over: Arc<AtomicBool>,
    /// The backup was ended.
    has_acted: Arc<AtomicBool>,
}

impl Domain {
    /// Makes everything ready for a backup, and begins nothing. `scratch_dir` is a folder, `images` are those
    /// of the disks in the repository, `checkpoint` is the name of the new checkpoint. `source_at` is asked
    /// where libvirt does not know any more what it was made of.
    ///
    /// # Errors
    /// `LimitExceeded` without free space; of libvirt and of the operating system.
    pub fn prepare(
        &self,
        disks: Vec<BackupDisk>,
        images: Vec<Uuid>,
        scratch_dir: &Path,
        checkpoint: &str,
        source_at: &SourceAt<'_>,
        context: &Context,
    ) -> Result<Backup> {
        let lengths = self.lengths(context)?;
        let bytes_of = |disk: &BackupDisk| {
            let target = &disk.disk.target;
            lengths.get(target).copied().ok_or_else(|| {
                self.refuse(ErrorKind::NotFound, &format!("reports no size for its disk {target}"))
            })
        };
        let bytes = disks.iter().map(bytes_of).collect::<Result<Vec<u64>>>()?;
        let scratch = Scratch::create(scratch_dir, &bytes, context)?;
        let since = self.since(&disks, &scratch, source_at, context)?;
        let socket = self.socket(&scratch, context)?;
        let has_checkpoint = disks.iter().any(|disk| disk.disk.has_checkpoints());
        let parts = disks.into_iter().zip(since);
        let parts = parts.map(|(disk, since)| Part { disk: disk.disk, since });
        Ok(Backup {
            domain: self.clone(),
            parts: parts.collect(),
            images,
            checkpoint: has_checkpoint.then(|| checkpoint.to_owned()),
            socket,
            scratch: Arc::new(scratch),
            is_begun: false,
            watch: None,
            context: context.clone(),
        })
    }

    /// Since when each disk can tell what changed.
    fn since(
        &self,
        disks: &[BackupDisk],
        scratch: &Scratch,
        source_at: &SourceAt<'_>,
        context: &Context,
    ) -> Result<Vec<Since>> {
        let mut present: BTreeSet<String> = self.checkpoints(context)?.into_iter().collect();
        let mut checked = BTreeMap::new();
        let mut all = Vec::new();
        for BackupDisk { disk, known } in disks {
            if !disk.has_checkpoints() {
                let format = disk.format.escape_debug();
                all.push(Err(Some(format!("{format} images cannot have checkpoints"))));
                continue;
            }
            if !known.iter().any(|known| present.contains(&known.checkpoint)) {
                let targets: Vec<&str> = disks
                    .iter()
                    .filter(|disk| disk.disk.has_checkpoints())
                    .map(|disk| disk.disk.target.as_str())
                    .collect();
                present.extend(self.adopt(
                    &targets,
                    &disk.target,
                    known,
                    scratch.folder(),
                    context,
                ));
            }
            let source_at = |snapshot| source_at(&disk.target, snapshot);
            all.push(self.newest_since(disk, known, &source_at, &present, &mut checked, context));
        }
        Ok(all)
    }

    /// Where QEMU is to listen: where it may, however it is confined, or where anybody may.
    fn socket(&self, scratch: &Scratch, context: &Context) -> Result<PathBuf> {
        let random = Uuid::new_v4().simple().to_string();
        let random = random.get(..RANDOM).unwrap_or_default();
        if let Some(folder) = self.folder(context)? {
            return Ok(folder.join(format!("imgsnap-{random}")));
        }
        let folder = scratch.folder().path().join(SOCKETS);
        if folder.as_os_str().len() + 1 + RANDOM > MAX_SOCKET_BYTES {
            let what = format!("the path of a socket in {} would be too long", folder.shown());
            return Err(Error::new(ErrorKind::LimitExceeded, what)
                .hint("use a folder for scratch files with a shorter path"));
        }
        let failed = |e| Error::os("create a folder for a socket as", folder.shown(), e);
        std::fs::create_dir(&folder).map_err(failed)?;
        let mode = std::fs::Permissions::from_mode(SOCKETS_MODE);
        std::fs::set_permissions(&folder, mode).map_err(failed)?;
        Ok(folder.join(random))
    }
}

impl Backup {
    /// The point in time. A checkpoint of which the bitmaps turn out to be of no use is not used: then all of
    /// the disks is read.
    ///
    /// # Errors
    /// What libvirt refuses.
    pub fn begin(&mut self) -> Result<()> {
        self.is_begun = true;
        let mut begun = self.ask_to_begin();
        let has_since = self.parts.iter().any(|part| part.since.is_ok());
        if let (Err(error), true) = (&begun, has_since)
            && error.kind() == ErrorKind::Io
        {
            let why = format!("its checkpoint cannot be used: {}", error.without_advice());
            for part in &mut self.parts {
                if part.since.is_ok() {
                    part.since = Err(Some(why.clone()));
                }
            }
            begun = self.ask_to_begin();
        }
        begun?;
        self.watch();
        Ok(())
    }

    fn ask_to_begin(&self) -> Result<()> {
        let backup = self.scratch.folder().file("backup.xml", self.backup_xml().as_bytes())?;
        let mut arguments =
            vec!["backup-begin", &self.domain.uuid, text(&backup)?, "--reuse-external"];
        let checkpoint = match &self.checkpoint {
            None => None,
            Some(name) => {
                let xml = self.checkpoint_xml(name);
                Some(self.scratch.folder().file("checkpoint.xml", xml.as_bytes())?)
            }
        };
        if let Some(checkpoint) = &checkpoint {
            arguments.extend(["--checkpointxml", text(checkpoint)?]);
        }
        self.domain.virsh.change(&arguments).map(drop)
    }

    fn backup_xml(&self) -> String {
        let socket = escaped(&self.socket.to_string_lossy());
        let mut xml = format!(
            "<domainbackup mode='pull'><server transport='unix' socket='{socket}'/><disks>"
        );
        for (index, part) in self.parts.iter().enumerate() {
            let target = escaped(&part.disk.target);
            let how = match &part.since {
                Ok((_, checkpoint)) => format!(
                    "backupmode='incremental' incremental='{checkpoint}' exportbitmap='{}'",
                    names::BITMAP
                ),
                Err(_) => "backupmode='full'".to_owned(),
            };
            let scratch = self.scratch.path(index).unwrap_or(Path::new("")).to_string_lossy();
            best_effort(write!(
                xml,
                "<disk name='{target}' backup='yes' type='file' {how} exportname='{target}'>\
                 <driver type='qcow2'/><scratch file='{}'/></disk>",
                escaped(&scratch)
            ));
        }
        xml.push_str("</disks></domainbackup>");
        xml
    }

    /// Disks that are not named would be in it if they can.
    fn checkpoint_xml(&self, name: &str) -> String {
        let mut xml = format!("<domaincheckpoint><name>{name}</name><disks>");
        for part in &self.parts {
            let how = if part.disk.has_checkpoints() { "bitmap" } else { "no" };
            let target = escaped(&part.disk.target);
            best_effort(write!(xml, "<disk name='{target}' checkpoint='{how}'/>"));
        }
        xml.push_str("</disks></domaincheckpoint>");
        xml
    }

    fn watch(&mut self) {
        if !self.scratch.is_to_watch() {
            return;
        }
        let (is_over, has_acted) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let watch = Watch { thread: None, is_over: is_over.clone(), has_acted: has_acted.clone() };
        let (domain, scratch) = (self.domain.clone(), self.scratch.clone());
        let thread = spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                if scratch.is_short() {
                    has_acted.store(true, Ordering::Relaxed);
                    // Whoever ends the backup tells what became of it.
                    return best_effort(domain.abort_job());
                }
                sleep(STEP);
            }
        });
        self.watch = Some(Watch { thread: Some(thread), ..watch });
    }

    /// Where each disk is read, in the order of the disks, with the name of its bitmap.
    pub fn disks(&self) -> Vec<FleecedDisk> {
        let of = |part: &Part| {
            let place = NbdPlace::Unix(self.socket.clone());
            let uri = NbdUri { place, export: part.disk.target.clone() };
            let since = part.since.clone().map(|(id, _)| (id, names::BITMAP.to_owned()));
            FleecedDisk { uri, since }
        };
        self.parts.iter().map(of).collect()
    }

    /// Why nothing can be read any more, if the scratch files were used up.
    pub fn error(&self) -> Option<Error> {
        let watch = self.watch.as_ref()?;
        watch.has_acted.load(Ordering::Relaxed).then(|| self.scratch.error())
    }

    /// Ends it. What cannot be put in order is a warning; the next run does it.
    pub fn end(mut self, ending: Ending) {
        self.end_as(ending);
    }

    fn end_as(&mut self, ending: Ending) {
        if let Some(mut watch) = self.watch.take() {
            watch.is_over.store(true, Ordering::Relaxed);
            watch.thread.take().map(JoinHandle::join);
        }
        if !std::mem::take(&mut self.is_begun) {
            return;
        }
        let ended = self.domain.abort_own(self.scratch.folder().path());
        let gone = match (&self.checkpoint, ending) {
            (Some(new), Ending::Committed) => {
                let targets: Vec<String> =
                    self.parts.iter().map(|part| part.disk.target.clone()).collect();
                self.domain.prune_checkpoints(&self.images, &targets, new, &self.context);
                Ok(())
            }
            (Some(new), Ending::Aborted) => self.domain.delete_checkpoint(new),
            (Some(_), Ending::Partly) | (None, _) => Ok(()),
        };
        if let Err(error) = ended.and(gone) {
            let what = format!(
                "{}: not everything created for the snapshot could be removed: {}; the next snapshot removes \
                 it",
                self.domain.uri(),
                error.without_advice()
            );
            self.context.warn(WarningId::MachineNotCleared, what);
        }
    }
}

impl Drop for Backup {
    fn drop(&mut self) {
        self.end_as(Ending::Aborted);
    }
}

fn text(path: &Path) -> Result<&str> {
    let what = || Error::new(ErrorKind::Internal, "a path that is no UTF-8");
    path.to_str().ok_or_else(what)
}
