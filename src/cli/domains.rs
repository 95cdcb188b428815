//! Machines of libvirt, as the command line names them.

use super::args::{Args, Command};
use super::page::{Page, Table};
use super::printer::Printer;
use super::{exit, output};
use imgsnap::base::error::{Error, ErrorKind, Result};
use imgsnap::base::events::Context;
use imgsnap::base::uri::Shown;
use imgsnap::image::{ImageUri, MachinePlace, MachineUri};
use imgsnap::libvirt::{CheckpointState, Domain, DomainState, Hypervisor};
use imgsnap::{DefineRequest, ListedDisk, Repository};
use serde_json::{Value, json};
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

/// Every domain that there is.
const ALL: &str = "libvirt:*";

/// Puts all domains where they are meant, and lets all that name a domain mean that of `--connect`.
pub fn connect(args: &mut Args) -> Result<()> {
    if let Command::Snapshot(verb) = &mut args.command
        && verb.all
    {
        verb.images.push(ALL.parse()?);
    }
    let Some(connect) = args.connect.clone() else { return Ok(()) };
    // The same one by another name is not another one.
    if Hypervisor::is_default(&connect) {
        args.connect = None;
        return Ok(());
    }
    let of = |image: &mut ImageUri| -> Result<()> {
        if let ImageUri::Machine(uri) = image {
            *uri = uri.connected_by(&connect)?;
        }
        Ok(())
    };
    match &mut args.command {
        Command::Snapshot(verb) => verb.images.iter_mut().try_for_each(of),
        Command::Watch(verb) => verb.images.iter_mut().try_for_each(of),
        Command::Relink { image, .. } => image.iter_mut().try_for_each(of),
        Command::Rollback(verb) => {
            if let Some(uri) = machine_of(&verb.image) {
                verb.image = OsString::from(uri.connected_by(&connect)?.to_wire());
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The machine that a word names.
pub fn machine_of(word: &OsStr) -> Option<MachineUri> {
    ImageUri::parse(Path::new(word)).ok()?.machine().cloned()
}

/// True for a pattern that several domains may match.
pub fn is_pattern(image: &ImageUri) -> bool {
    let place = image.machine().map(|machine| &machine.place);
    matches!(place, Some(MachinePlace::Domain(domain)) if domain.name.contains(['*', '?', '[']))
}

/// The domains that a pattern matches.
pub fn expanded(image: &ImageUri, context: &Context) -> Result<Vec<ImageUri>> {
    let Some(MachineUri { place: MachinePlace::Domain(domain), disk }) = image.machine() else {
        return Ok(vec![image.clone()]);
    };
    let hypervisor = Hypervisor::connect(domain.connect.as_deref(), context)?;
    let found = hypervisor.matching(&domain.name, context)?;
    let uri = |domain: &Domain| MachineUri { disk: disk.clone(), ..domain.uri() };
    Ok(found.iter().map(|domain| ImageUri::Machine(uri(domain))).collect())
}

/// The pattern of `libvirt:[PATTERN]`.
pub fn pattern_of(word: &str) -> Option<&str> {
    word.strip_prefix("libvirt:").map(|pattern| if pattern.is_empty() { "*" } else { pattern })
}

/// `imgsnap list libvirt:`
pub fn list(
    repository: &Repository,
    pattern: &str,
    connect: Option<&str>,
    printer: &Printer,
    context: &Context,
) -> Result<ExitCode> {
    let mut rows = Vec::new();
    for listing in repository.list_domains(pattern, connect, context)? {
        if printer.is_json() {
            let value = serde_json::to_value(&listing);
            printer.json(&value.map_err(|e| Error::new(ErrorKind::Internal, e.to_string()))?)?;
            continue;
        }
        let state = match listing.state {
            DomainState::Running => "running",
            DomainState::Paused => "paused",
            DomainState::Off => "shut off",
        };
        for (index, disk) in listing.disks.iter().enumerate() {
            let (name, state) = if index == 0 { (listing.name.as_str(), state) } else { ("", "") };
            rows.push(row(name, state, disk));
        }
        let others = listing.uncovered.iter().map(|what| {
            ["", "", "", "", "", &format!("not in snapshots: {what}")].map(str::to_owned).to_vec()
        });
        rows.extend(others);
    }
    if !rows.is_empty() {
        let head = ["DOMAIN", "STATE", "DISK", "NEWEST", "AGE", ""];
        let table = Table::new(&head, &rows).leaving_out(&["AGE", "STATE"]);
        printer.page(&Page::default().table(table))?;
    }
    Ok(exit::DONE)
}

fn row(name: &str, state: &str, disk: &ListedDisk) -> Vec<String> {
    let (newest, age) = match (&disk.image, &disk.newest) {
        (Some(image), Some((number, time))) => (format!("{image}@{number}"), output::age(*time)),
        _ => ("none".to_owned(), String::new()),
    };
    let note = match &disk.checkpoint {
        CheckpointState::Missing(why) => format!("next snapshot reads the whole disk: {why}"),
        CheckpointState::Sound | CheckpointState::NotNeeded => String::new(),
    };
    vec![name.to_owned(), state.to_owned(), disk.target.clone(), newest, age, note]
}

/// `imgsnap restore libvirt:DOMAIN@WHICH --define NAME`
pub fn define(
    repository: &Repository,
    request: &DefineRequest,
    printer: &Printer,
    context: &Context,
) -> Result<ExitCode> {
    let made = repository.define(request, context)?;
    if printer.is_json() {
        let disks: Vec<Value> = made
            .disks
            .iter()
            .map(|disk| {
                let place = format!("{}@{}", disk.name, disk.outcome.snapshot.number);
                json!({ "ref": place, "path": output::path(&disk.path) })
            })
            .collect();
        printer.json(&json!({ "name": made.name, "disks": disks, "left_out": made.left_out }))?;
        return Ok(exit::DONE);
    }
    let mut text = format!("defined {}", made.name);
    for disk in &made.disks {
        let place = format!("{}@{}", disk.name, disk.outcome.snapshot.number);
        text.push_str(&format!("\n  disk     {place} -> {}", disk.path.shown()));
    }
    for what in &made.left_out {
        text.push_str(&format!("\n  left out {what}"));
    }
    printer.line(&text)?;
    Ok(exit::DONE)
}
