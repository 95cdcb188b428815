//! Which domains there are.

use super::definition::Definition;
use super::domain::Domain;
use super::parts;
use super::virsh::{Virsh, nonsense};
use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::events::Context;
use crate::base::message::{Action, message};
use crate::image::DomainName;
use crate::image::qemu::PrivateFolder;
use uuid::Uuid;

/// A libvirt of this host, which runs machines by QEMU.
#[derive(Debug, Clone)]
pub struct Hypervisor {
    virsh: Virsh,
    connect: Option<String>,
}

impl Hypervisor {
    /// Connects to one: to the one of a URI, or to libvirt's default.
    ///
    /// # Errors
    /// `Unsupported` without `virsh`, for a hypervisor of another host, and for one that is not QEMU;
    /// `Unavailable` or `Auth` if it does not answer.
    pub fn connect(connect: Option<&str>, context: &Context) -> Result<Self> {
        let virsh = Virsh::new(connect);
        let said = virsh.ask(&["uri"], context)?;
        let uri = said.trim();
        let refuse = |what: String, hint: &'static str| {
            Err(Error::new(ErrorKind::Unsupported, what).hint(hint))
        };
        let (scheme, rest) = uri.split_once("://").unwrap_or((uri, ""));
        let host = rest.split(['/', '?']).next().unwrap_or_default();
        if !matches!(host, "" | "localhost") {
            let what = format!("{uri} is on another host, whose disks cannot be read from here");
            return refuse(what, "run imgsnap there, with a repository on a server");
        }
        if !matches!(scheme.split('+').next(), Some("qemu")) {
            let what = format!("{uri} does not run QEMU machines, whose dirty bitmaps are needed");
            return refuse(what, "snapshot the image files themselves");
        }
        Ok(Self { virsh, connect: connect.map(str::to_owned) })
    }

    /// True for the URI of the hypervisor that libvirt takes if none is named.
    pub fn is_default(connect: &str) -> bool {
        let default = Virsh::new(None).ask(&["uri"], &Context::silent());
        default.is_ok_and(|said| said.trim() == connect)
    }

    /// All domains, in the order of their names.
    ///
    /// # Errors
    /// As of [`Self::connect`].
    pub fn domains(&self, context: &Context) -> Result<Vec<(DomainName, Uuid)>> {
        let said = self.virsh.ask(&["list", "--all", "--uuid", "--name"], context)?;
        let mut domains = Vec::new();
        for line in said.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (uuid, name) = line.split_once(' ').unwrap_or((line, ""));
            let name = DomainName::new(name.trim_start(), self.connect.as_deref())?;
            let uuid = Uuid::try_parse(uuid).map_err(|_| nonsense("list"))?;
            domains.push((name, uuid));
        }
        domains.sort();
        Ok(domains)
    }

    /// The domain of a name. Afterwards it is known by its UUID: a name may look like an option, or a number.
    ///
    /// # Errors
    /// `NotFound` with those that there are.
    pub fn domain(&self, name: &str, context: &Context) -> Result<Domain> {
        let all = self.domains(context)?;
        if let Some((name, uuid)) = all.iter().find(|(known, _)| known.name == name) {
            return Ok(Domain::new(self.virsh.clone(), name.clone(), *uuid));
        }
        let what = format!("libvirt has no domain \"{}\"", name.escape_debug());
        let known: Vec<&str> = all.iter().map(|(known, _)| known.name.as_str()).collect();
        let hint = match known.as_slice() {
            [] => message!["there are no domains here: choose the hypervisor, and ", Action::Retry],
            known => message!["it has ", known.join(", ")],
        };
        Err(Error::new(ErrorKind::NotFound, what).hint(hint))
    }

    /// True if a domain has the UUID that stands in a definition.
    ///
    /// # Errors
    /// Of libvirt; `Corrupt` for what is no definition.
    pub fn has_uuid_of(&self, xml: &str, context: &Context) -> Result<bool> {
        let stored = Definition::text_in(xml, "uuid")?;
        let stored = stored.and_then(|uuid| Uuid::try_parse(uuid.trim()).ok());
        Ok(stored.is_some_and(|stored| {
            self.domains(context).is_ok_and(|all| all.iter().any(|(_, uuid)| *uuid == stored))
        }))
    }

    /// Defines a domain, with the state of its TPM: names of files, each in a folder (`tpm2:NAME`), and
    /// bytes.
    ///
    /// # Errors
    /// What libvirt refuses; of the operating system. Then nothing is left.
    pub fn define(&self, xml: &str, tpm: Vec<(String, Vec<u8>)>) -> Result<()> {
        let folder = PrivateFolder::create()?;
        let file = folder.file("domain.xml", xml.as_bytes())?;
        let failed = |what| Error::new(ErrorKind::Internal, what);
        let path = file.to_str().ok_or_else(|| failed("a path that is no UTF-8"))?;
        self.virsh.change(&["define", path])?;
        let name = Definition::text_in(xml, "name")?.unwrap_or_default();
        let all = self.domains(&Context::silent())?;
        let uuid = all.iter().find(|(known, _)| known.name == name);
        let uuid = uuid.map(|(_, uuid)| uuid.to_string()).ok_or_else(|| nonsense("define"))?;
        let placed = parts::place_tpm(&uuid, &tpm);
        if placed.is_err() {
            best_effort(self.virsh.change(&["undefine", &uuid, "--nvram"]));
        }
        placed
    }

    /// The domains that a pattern of a shell matches; one that is called so is meant alone.
    ///
    /// # Errors
    /// `InvalidInput` for a pattern that is none; `NotFound` if none matches.
    pub fn matching(&self, pattern: &str, context: &Context) -> Result<Vec<Domain>> {
        let all = self.domains(context)?;
        let of = |(name, uuid): (DomainName, Uuid)| Domain::new(self.virsh.clone(), name, uuid);
        if let Some(same) = all.iter().find(|(known, _)| known.name == pattern) {
            return Ok(vec![of(same.clone())]);
        }
        let matcher = glob::Pattern::new(pattern).map_err(|e| {
            Error::new(ErrorKind::InvalidInput, format!("invalid pattern \"{pattern}\": {}", e.msg))
        })?;
        let found = all.into_iter().filter(|(known, _)| matcher.matches(&known.name));
        let found: Vec<Domain> = found.map(of).collect();
        match found.is_empty() {
            false => Ok(found),
            true => {
                let what = format!("no domain matches \"{}\"", pattern.escape_debug());
                Err(Error::new(ErrorKind::NotFound, what))
            }
        }
    }
}
