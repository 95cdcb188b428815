//! The verb *define*: a machine from a snapshot, with its disks, its definition, the variables of its
//! firmware and the state of its TPM.
//!
//! ```text
//! images of the domain -> snapshot with a definition, its group -> new definition, judged
//!   -> disks restored -> firmware, TPM -> libvirt defines it
//! ```
//!
//! What fails leaves nothing: the files that were made are removed again.

pub mod types;

use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::events::Context;
use crate::base::message::{Setting, Verb, message};
use crate::base::uri::Shown;
use crate::image::{DomainName, ImageFormat, ImageUri, MachinePlace};
use crate::libvirt::{Definition, Hypervisor, NVRAM, Remake, TPM, XML};
use crate::ops::define::types::{DefineRequest, Defined};
use crate::ops::restore;
use crate::ops::restore::types::{RestoreRequest, RestoreTarget, RestoredMember};
use crate::repo::Repository;
use crate::repo::group::members_of;
use crate::repo::inside::refuse_target;
use crate::repo::manifest::{Attachment, Manifest, Snapshot};
use crate::repo::reference::{self, At};
use crate::repo::session::{Reader, read};
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use uuid::Uuid;

/// A disk that is restored.
struct PlannedDisk {
    /// Its image, and the number of the snapshot.
    image: String,
    number: u64,
    target: String,
    format: ImageFormat,
    path: PathBuf,
}

/// What is stored of a machine at one point in time.
struct Stored {
    /// Image, number of its snapshot, and target, of each disk.
    disks: Vec<(String, u64, String)>,
    /// Names and bytes.
    parts: Vec<(String, Vec<u8>)>,
}

/// Makes a machine.
///
/// # Errors
/// `NotFound` without a snapshot that has a definition; `AlreadyExists` if there is a machine or a file of
/// that name; `Mismatch` if a disk of the group is missing; `Auth` for a definition that reaches into the
/// host; as of a restore; of libvirt.
pub fn run(repository: &Repository, request: &DefineRequest, context: &Context) -> Result<Defined> {
    let name = DomainName::new(&request.name, request.connect.as_deref())?;
    let hypervisor = Hypervisor::connect(request.connect.as_deref(), context)?;
    if hypervisor.domains(context)?.iter().any(|(known, _)| known.name == name.name) {
        let what = format!("the domain \"{}\" already exists", name.name);
        return Err(Error::new(ErrorKind::AlreadyExists, what).hint("choose another name"));
    }
    let pool = std::path::absolute(&request.pool)
        .map_err(|e| Error::os("find", request.pool.shown(), e))?;
    let stored = stored(repository, request, context)?;
    let xml = stored.text(XML)?;
    if request.same && hypervisor.has_uuid_of(&xml, context)? {
        let what = "a domain with the UUID of the stored one already exists";
        return Err(
            Error::new(ErrorKind::AlreadyExists, what).hint("give the new one a UUID of its own")
        );
    }
    let disks = planned(repository, request, &stored, &Definition::parse(&xml)?, &pool)?;
    let nvram =
        stored.part(NVRAM).map(|bytes| (pool.join(format!("{}_VARS.fd", name.name)), bytes));
    if let Some((path, _)) = &nvram {
        check_new(repository, path)?;
    }
    let remake = Remake {
        name: name.name.clone(),
        uuid: (!request.same).then(Uuid::new_v4),
        disks: disks
            .iter()
            .map(|disk| (disk.target.clone(), (disk.path.clone(), disk.format.qemu().to_owned())))
            .collect::<BTreeMap<_, _>>(),
        nvram: nvram.as_ref().map(|(path, _)| path.clone()),
        is_trusted: request.trust_xml,
    };
    let (made, left_out) = remake.of(&xml)?;
    let mut restored: Vec<RestoredMember> = Vec::new();
    let mut files: Vec<PathBuf> = Vec::new();
    let make = || -> Result<()> {
        for disk in disks {
            let of = RestoreRequest::new(disk.image.clone())
                .at(At::Number(disk.number))
                .format(Some(disk.format))
                .accept_unread(request.accept_unread);
            let target = RestoreTarget::Path(&disk.path);
            let outcome = restore::run(repository, &of, target, context)?;
            files.push(disk.path.clone());
            restored.push(RestoredMember { name: disk.image, path: disk.path, outcome });
        }
        if let Some((path, bytes)) = &nvram {
            let failed = |e| Error::os("write", path.shown(), e);
            let mut new = OpenOptions::new();
            let mut file =
                new.write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
            files.push(path.clone());
            file.write_all(bytes).map_err(failed)?;
        }
        let tpm = stored
            .parts
            .iter()
            .filter_map(|(name, bytes)| Some((name.strip_prefix(TPM)?.to_owned(), bytes.clone())));
        hypervisor.define(&made, tpm.collect())
    };
    if let Err(error) = make() {
        files.iter().for_each(|file| best_effort(std::fs::remove_file(file)));
        return Err(error);
    }
    Ok(Defined { name: name.name, disks: restored, left_out })
}

impl Stored {
    fn part(&self, name: &str) -> Option<&[u8]> {
        self.parts.iter().find(|(known, _)| known == name).map(|(_, bytes)| bytes.as_slice())
    }

    fn text(&self, name: &str) -> Result<String> {
        let text = self.part(name).and_then(|bytes| String::from_utf8(bytes.to_vec()).ok());
        text.ok_or_else(|| Error::corrupt("the stored definition of the machine is not text"))
    }
}

/// The snapshot that is meant, with all that was taken with it.
fn stored(repository: &Repository, request: &DefineRequest, context: &Context) -> Result<Stored> {
    let domain = request.domain.escape_debug();
    let mut found: Vec<(String, Reader, Snapshot)> = Vec::new();
    let mut missing = None;
    let mut unreadable = None;
    for name in repository.names()? {
        let reader = match read(repository, &name, context) {
            Ok(reader) => reader,
            // What is wrong with another image is told only if this is what is missing.
            Err(e) if matches!(e.kind(), ErrorKind::Corrupt | ErrorKind::NotFound) => {
                unreadable = Some(e);
                continue;
            }
            Err(e) => return Err(e),
        };
        if target_in(reader.manifest(), &request.domain).is_none() {
            continue;
        }
        // One disk of those that are taken together has the parts of the machine.
        let is_whole = |s: &&Snapshot| s.attachments.iter().any(|part| part.name == XML);
        let manifest = reader.manifest();
        let snapshots: Vec<_> = manifest.snapshots.iter().filter(is_whole).cloned().collect();
        if snapshots.is_empty() {
            continue;
        }
        let whole = Manifest { snapshots, ..manifest.clone() };
        match reference::find(&whole, reader.head(), &request.at).cloned() {
            Ok(snapshot) => found.push((name, reader, snapshot)),
            Err(error) => missing = Some(error),
        }
    }
    let is_by_time = matches!(request.at, At::Latest | At::Time(_) | At::Ago { .. });
    if found.len() > 1 && !is_by_time {
        let places = found.iter().map(|(_, reader, s)| reader.manifest().place_of(s));
        let places = places.collect::<Vec<_>>().join(", ");
        let what = format!("several snapshots of the domain \"{domain}\" match: {places}");
        return Err(Error::new(ErrorKind::InvalidInput, what)
            .hint("give its time, as in libvirt:DOMAIN@2026-11-20T10:30"));
    }
    // Which disk came first, and so has the parts, may have changed.
    let Some((name, reader, snapshot)) = found.into_iter().max_by_key(|(.., s)| s.time) else {
        let what = format!("there is no snapshot of the whole domain \"{domain}\"");
        let none = || {
            Error::new(ErrorKind::NotFound, what)
                .hint(message![Verb::List.call(), " lists the snapshots"])
        };
        return Err(missing.or(unreadable).unwrap_or_else(none));
    };
    let manifest = reader.manifest();
    let store = repository.store.as_ref();
    let of = |part: &Attachment| Ok((part.name.clone(), part.read(store, &name)?));
    let parts = snapshot.attachments.iter().map(of).collect::<Result<Vec<_>>>()?;
    let group = members_of(repository, manifest, &snapshot, context);
    if let Some(missing) = group.as_ref().and_then(|group| group.missing()) {
        let what =
            format!("the group of {} is incomplete: {missing}", manifest.place_of(&snapshot));
        return Err(Error::new(ErrorKind::Mismatch, what)
            .hint(message!["choose another snapshot, or run ", Verb::Restore.call()]));
    }
    let mut taken = vec![(name.clone(), snapshot.number)];
    let others = group.iter().flat_map(|group| group.others(manifest.image_id));
    taken.extend(others.filter_map(|other| Some((other.name.clone(), other.number()?))));
    let mut disks = Vec::new();
    for (image, number) in taken {
        let reader = read(repository, &image, context)?;
        let Some(target) = target_in(reader.manifest(), &request.domain) else {
            let what =
                format!("\"{image}\" is no longer known as a disk of the domain \"{domain}\"");
            return Err(Error::new(ErrorKind::Mismatch, what)
                .hint(message!["restore the disks one by one with ", Verb::Restore.call()]));
        };
        disks.push((image, number, target));
    }
    Ok(Stored { disks, parts })
}

/// The target of the disk that an image is, if it is one of a domain, on whichever host.
fn target_in(manifest: &Manifest, domain: &str) -> Option<String> {
    let machine = manifest.source.as_ref().and_then(ImageUri::machine)?;
    match &machine.place {
        MachinePlace::Domain(place) if place.name == domain => machine.disk.clone(),
        _ => None,
    }
}

/// Where each disk goes: as qcow2 what was one, and raw otherwise.
fn planned(
    repository: &Repository,
    request: &DefineRequest,
    stored: &Stored,
    definition: &Definition,
    pool: &std::path::Path,
) -> Result<Vec<PlannedDisk>> {
    let mut disks = Vec::new();
    for (image, number, target) in &stored.disks {
        let Some(known) = definition.disks.iter().find(|disk| disk.target == *target) else {
            let what = format!("the stored definition of the machine has no disk {target}");
            return Err(Error::new(ErrorKind::Mismatch, what).hint(message![
                "it was attached only for a while: choose another snapshot, or run ",
                Verb::Restore.of(image)
            ]));
        };
        let is_raw = known.format == ImageFormat::RAW.qemu();
        let (format, ending) = match is_raw {
            true => (ImageFormat::RAW, "img"),
            false => (ImageFormat::QCOW2, "qcow2"),
        };
        let path = pool.join(format!("{}-{target}.{ending}", request.name));
        check_new(repository, &path)?;
        let (image, number, target) = (image.clone(), *number, target.clone());
        disks.push(PlannedDisk { image, number, target, format, path });
    }
    Ok(disks)
}

fn check_new(repository: &Repository, path: &std::path::Path) -> Result<()> {
    refuse_target(repository, path)?;
    if std::fs::symlink_metadata(path).is_err() {
        return Ok(());
    }
    let what = format!("{} exists", path.shown());
    Err(Error::new(ErrorKind::AlreadyExists, what)
        .hint(message!["choose another name, or another folder with ", Setting::Pool]))
}
