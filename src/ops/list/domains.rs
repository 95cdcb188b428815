//! The domains of libvirt against the snapshots in a repository: what is protected, and what is not.

use crate::base::error::Result;
use crate::base::events::Context;
use crate::image::{ImageUri, MachinePlace};
use crate::libvirt::{CheckpointState, Domain, DomainState, Hypervisor, KnownSnapshot};
use crate::ops::list::types::{DomainListing, ListedDisk};
use crate::repo::Repository;
use crate::repo::checkpoints::known;
use crate::repo::manifest::Manifest;
use crate::repo::session::look;
use std::collections::BTreeMap;

/// Each domain that a pattern matches.
///
/// # Errors
/// `NotFound` if none does; of libvirt. An image that cannot be read has no snapshots here; `list` tells why.
pub fn run(
    repository: &Repository,
    pattern: &str,
    connect: Option<&str>,
    context: &Context,
) -> Result<Vec<DomainListing>> {
    let hypervisor = Hypervisor::connect(connect, context)?;
    let domains = hypervisor.matching(pattern, context)?;
    let mut images: BTreeMap<(String, String), Manifest> = BTreeMap::new();
    for name in repository.names()? {
        let Ok((manifest, head)) = look(repository, &name, &Context::silent()) else { continue };
        let machine = head.source.as_ref().and_then(ImageUri::machine);
        let Some(machine) = machine else { continue };
        let MachinePlace::Domain(place) = &machine.place else { continue };
        let Some(disk) = &machine.disk else { continue };
        images.insert((place.name.clone(), disk.clone()), manifest);
    }
    let mut listed = Vec::new();
    for domain in domains {
        context.check()?;
        listed.push(of(&domain, &images, context)?);
    }
    Ok(listed)
}

fn of(
    domain: &Domain,
    images: &BTreeMap<(String, String), Manifest>,
    context: &Context,
) -> Result<DomainListing> {
    let name = &domain.name().name;
    let state = domain.state(context)?;
    let definition = domain.definition(context)?;
    let mut disks = Vec::new();
    for disk in &definition.disks {
        let manifest = images.get(&(name.clone(), disk.target.clone()));
        let newest = manifest.and_then(|manifest| manifest.snapshots.iter().max_by_key(|s| s.time));
        let is_live = state != DomainState::Off;
        let known: Vec<KnownSnapshot> = manifest.map(known).unwrap_or_default();
        let checkpoint = match newest.is_some() && disk.has_checkpoints() && is_live {
            true => domain.checkpoint_of(disk, &known, context)?,
            false => CheckpointState::NotNeeded,
        };
        disks.push(ListedDisk {
            target: disk.target.clone(),
            format: disk.format.clone(),
            image: manifest.map(|manifest| manifest.name.clone()),
            snapshots: manifest.map_or(0, |manifest| manifest.snapshots.len()),
            newest: newest.map(|snapshot| (snapshot.number, snapshot.time)),
            checkpoint,
        });
    }
    let uncovered = definition.uncovered;
    Ok(DomainListing { name: name.clone(), state, disks, uncovered })
}
