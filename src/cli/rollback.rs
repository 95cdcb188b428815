//! `imgsnap rollback`

use super::args::Rollback;
use super::domains::machine_of;
use super::page::Page;
use super::printer::Printer;
use super::{exit, output, repo};
use imgsnap::base::error::Result;
use imgsnap::base::events::Context;
use imgsnap::tracking::HintKind;
use imgsnap::{At, Reference, Repository, RollbackOutcome, RollbackRequest};
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

pub fn run(
    repository: &Repository,
    verb: &Rollback,
    printer: &Printer,
    context: &Context,
) -> Result<ExitCode> {
    let begun = Instant::now();
    let (name, at) = target(repository, verb, context)?;
    let request = RollbackRequest::new(name, at)
        .save(!verb.no_save)
        .prove(verb.prove)
        .dry_run(verb.dry_run)
        .force_device(verb.force_device)
        .backing_ok(verb.backing_ok)
        .alone(verb.alone)
        .reset(verb.reset)
        .shutdown(verb.shutdown)
        .whole_machine(is_machine(&verb.image) && !verb.alone);
    let done = repository.rollback(&request, context)?;
    let seconds = begun.elapsed().as_secs_f64();
    for done in [&done].into_iter().chain(&done.others) {
        if printer.is_json() {
            printer.json(&json(done, seconds))?;
        } else {
            printer.page(&describe(done, verb.no_save, seconds))?;
        }
    }
    Ok(exit::DONE)
}

const NO_TARGET: &str = "missing snapshot: write NAME@WHICH, or use --to";

/// What clap cannot judge: there is a snapshot.
pub fn check(verb: &Rollback) -> std::result::Result<(), String> {
    let has_target = verb.to.is_some() || verb.image.as_encoded_bytes().contains(&b'@');
    if has_target { Ok(()) } else { Err(NO_TARGET.into()) }
}

/// The image, and the snapshot that it is to become.
fn target(repository: &Repository, verb: &Rollback, context: &Context) -> Result<(String, At)> {
    if let Some(to) = &verb.to {
        let name = repository.image_named(&verb.image, context)?;
        let at = repo::at_of(&name, to)?;
        return Ok((name, at));
    }
    let Some(text) = verb.image.to_str() else { return Err(exit::usage(NO_TARGET)) };
    if Path::new(text).exists() {
        return Err(exit::usage(format!("{text} is a file: give the snapshot with --to")));
    }
    let Reference { name, at } = text.parse()?;
    Ok((name, at))
}

/// True if a machine is named, and none of its disks.
fn is_machine(image: &OsStr) -> bool {
    machine_of(image).is_some_and(|machine| machine.disk.is_none())
}

fn json(done: &RollbackOutcome, seconds: f64) -> Value {
    let name = &done.name;
    json!({
        "name": name,
        "number": done.number,
        "ref": format!("{name}@{}", done.number),
        "image": done.image,
        "written_bytes": done.work.written_bytes,
        "read_bytes": done.work.read_bytes,
        "scanned": done.scanned,
        "hint": done.hint,
        "proved": done.proved,
        "saved": done.saved.map(|number| format!("{name}@{number}")),
        "resumed": done.resumed,
        "dry_run": done.dry_run,
        "seconds": seconds,
    })
}

fn describe(done: &RollbackOutcome, no_save: bool, seconds: f64) -> Page {
    let name = &done.name;
    let image = output::image(&done.image);
    let to = format!("{name}@{}", done.number);
    let written = output::bytes(done.work.written_bytes);
    let read = output::bytes(done.work.read_bytes);
    let found = if done.scanned {
        format!("by a scan of the image ({read} read)")
    } else if let Some(HintKind::Extents) = done.hint {
        format!("by comparing clones of the image, and from the tables ({read} read)")
    } else if done.image.machine().is_some() {
        "from the tables of the two snapshots alone".into()
    } else {
        "from the tables alone: the file is unchanged since the last snapshot or rollback".into()
    };
    let resumed = if done.resumed { ", finishing an interrupted rollback" } else { "" };
    if done.dry_run {
        let title = format!("{image} would be rolled back to {to}{resumed}");
        let title = format!("{title}  (dry run: nothing was changed)");
        let saved = match done.saved {
            Some(number) if done.resumed => {
                format!("nothing more: {name}@{number} is the state before")
            }
            None if done.resumed => "nothing".to_owned(),
            _ if no_save => "nothing (--no-save)".to_owned(),
            _ => "the present state, unless a snapshot holds it".to_owned(),
        };
        return Page::new(title).rows(&[("write", written), ("found", found), ("save", saved)]);
    }
    let saved = match done.saved {
        Some(number) => format!("the previous state, as {name}@{number}"),
        None if no_save => "nothing (--no-save)".into(),
        None => "nothing".into(),
    };
    let proved =
        if done.proved { "yes, by a full scan" } else { "not by a full scan (use --prove)" };
    Page::new(format!("rolled back {image} to {to}{resumed}")).rows(&[
        ("written", format!("{written} in {}", output::duration(seconds))),
        ("found", found),
        ("saved", saved),
        ("verified", proved.to_owned()),
    ])
}
