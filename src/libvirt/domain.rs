//! One domain: what it does, and what it consists of.

use super::definition::Definition;
use super::virsh::{Virsh, nonsense};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::Context;
use crate::image::{DomainName, MachineUri};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Where libvirt keeps a folder for each machine that runs, which QEMU may write to however it is confined.
const MACHINES: &str = "/var/lib/libvirt/qemu";

/// How long a guest may take to shut down.
const SHUTDOWN: Duration = Duration::from_secs(120);
/// How often it is asked, and looked after.
const ASK_AGAIN: Duration = Duration::from_secs(10);
const STEP: Duration = Duration::from_millis(200);

/// A domain of libvirt.
#[derive(Debug, Clone)]
pub struct Domain {
    pub(super) virsh: Virsh,
    name: DomainName,
    pub(super) uuid: String,
}

/// What a domain does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DomainState {
    /// It runs.
    Running,
    /// It has its disks open, and writes nothing.
    Paused,
    /// It is shut off.
    Off,
}

impl Domain {
    pub(super) fn new(virsh: Virsh, name: DomainName, uuid: Uuid) -> Self {
        Self { virsh, name, uuid: uuid.to_string() }
    }

    /// What it is called.
    pub fn name(&self) -> &DomainName {
        &self.name
    }

    /// All of its disks.
    pub fn uri(&self) -> MachineUri {
        MachineUri::domain(self.name.clone())
    }

    /// What it does now.
    ///
    /// # Errors
    /// Of libvirt.
    pub fn state(&self, context: &Context) -> Result<DomainState> {
        let said = self.virsh.ask(&["domstate", &self.uuid], context)?;
        Ok(match said.trim() {
            "running" | "idle" | "blocked" | "in shutdown" => DomainState::Running,
            "paused" | "pmsuspended" | "no state" => DomainState::Paused,
            "shut off" => DomainState::Off,
            // With or without a process that has the disks open.
            "crashed" => match self.id(context)? {
                Some(_) => DomainState::Paused,
                None => DomainState::Off,
            },
            _ => return Err(nonsense("domstate")),
        })
    }

    /// The number that it has while it runs.
    fn id(&self, context: &Context) -> Result<Option<u32>> {
        let said = self.virsh.ask(&["domid", &self.uuid], context)?;
        Ok(said.trim().parse().ok())
    }

    /// What it consists of: now, or, if it is shut off, when it is started.
    ///
    /// # Errors
    /// Of libvirt; `Corrupt` if that makes no sense.
    pub fn definition(&self, context: &Context) -> Result<Definition> {
        Definition::parse(&self.running_xml(context)?)
    }

    /// The XML of what it consists of now.
    ///
    /// # Errors
    /// Of libvirt.
    pub(super) fn running_xml(&self, context: &Context) -> Result<String> {
        self.virsh.ask(&["dumpxml", &self.uuid], context)
    }

    /// The XML by which it is defined. Passwords are not in it.
    ///
    /// # Errors
    /// Of libvirt.
    pub fn xml(&self, context: &Context) -> Result<String> {
        self.virsh.ask(&["dumpxml", &self.uuid, "--inactive"], context)
    }

    /// True if libvirt forgets it when it is shut off.
    ///
    /// # Errors
    /// Of libvirt.
    pub fn is_transient(&self, context: &Context) -> Result<bool> {
        let said = self.virsh.ask(&["dominfo", &self.uuid], context)?;
        let line = said.lines().find_map(|line| line.strip_prefix("Persistent:"));
        Ok(line.is_some_and(|rest| rest.trim() == "no"))
    }

    /// True if its memory is saved, and goes on with its disks as they are.
    ///
    /// # Errors
    /// Of libvirt.
    pub fn has_managed_save(&self, context: &Context) -> Result<bool> {
        let said = self.virsh.ask(&["dominfo", &self.uuid], context)?;
        let line = said.lines().find_map(|line| line.strip_prefix("Managed save:"));
        Ok(line.is_some_and(|rest| rest.trim() == "yes"))
    }

    /// How long its disks are, in bytes, by their targets.
    ///
    /// # Errors
    /// Of libvirt.
    pub fn lengths(&self, context: &Context) -> Result<BTreeMap<String, u64>> {
        let said = self.virsh.ask(&["domblkinfo", &self.uuid, "--all"], context)?;
        let length = |line: &str| {
            let mut words = line.split_whitespace();
            Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
        };
        Ok(said.lines().filter_map(length).collect())
    }

    /// Asks the guest to shut down, and waits until it has.
    ///
    /// # Errors
    /// `Busy` if it does not within two minutes; `Interrupted`; of libvirt.
    pub fn shut_down(&self, context: &Context) -> Result<()> {
        let begun = Instant::now();
        let mut asked: Option<Instant> = None;
        while self.state(context)? != DomainState::Off {
            context.check()?;
            if begun.elapsed() > SHUTDOWN {
                let seconds = SHUTDOWN.as_secs();
                let what = format!("did not shut down within {seconds} s");
                return Err(self
                    .refuse(ErrorKind::Busy, &what)
                    .hint("shut it down, or destroy it"));
            }
            // A guest that starts hears nothing yet.
            if asked.is_none_or(|asked| asked.elapsed() > ASK_AGAIN) {
                self.virsh.change(&["shutdown", &self.uuid])?;
                asked = Some(Instant::now());
            }
            sleep(STEP);
        }
        Ok(())
    }

    /// Starts it.
    ///
    /// # Errors
    /// Of libvirt.
    pub fn start(&self) -> Result<()> {
        self.virsh.change(&["start", &self.uuid]).map(drop)
    }

    /// A folder in which the QEMU of the domain may make a socket, if libvirt has its own for it.
    pub(super) fn folder(&self, context: &Context) -> Result<Option<PathBuf>> {
        let Some(id) = self.id(context)? else { return Ok(None) };
        let start = format!("domain-{id}-");
        let entries = std::fs::read_dir(MACHINES).into_iter().flatten().flatten();
        // Of this very domain: another libvirt may have a domain of that number.
        let name: String = self.name.name.chars().take(8).collect();
        let is_its = |path: &PathBuf| {
            let rest = path.file_name().and_then(|n| n.to_str()?.strip_prefix(&start));
            rest.is_some_and(|rest| rest.starts_with(&name)) && path.join("monitor.sock").exists()
        };
        Ok(entries.map(|entry| entry.path()).find(is_its))
    }

    /// What is wrong with it, as an error that names it.
    pub(super) fn refuse(&self, kind: ErrorKind, what: &str) -> Error {
        Error::new(kind, format!("{} {what}", self.uri()))
    }
}
