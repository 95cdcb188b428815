//! `imgsnap watch`

use super::args::Watch;
use super::printer::Printer;
use super::repo::Where;
use super::{exit, list, output, prune, repo, snapshot, words};
use imgsnap::base::error::{Error, Result};
use imgsnap::base::events::Context;
use imgsnap::image::ImageUri;
use imgsnap::{
    Outcome, Pruned, Repository, SnapshotOutcome, SnapshotRequest, WatchRequest, Watched,
    check_distinct,
};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

/// What clap cannot judge: each image must be one of its own.
pub fn check(verb: &Watch) -> Result<(), String> {
    if verb.images.len() > 1 && verb.name.is_some() {
        return Err("--name applies to one image only; watch it separately".into());
    }
    let of = |image: &ImageUri| SnapshotRequest::new(image.clone());
    let requests: Vec<_> = verb.images.iter().map(of).collect();
    check_distinct(&requests).map_err(|error| words::error(&error))
}

pub fn run(place: &Where, verb: &Watch, printer: &Printer, context: &Context) -> Result<ExitCode> {
    let rules = prune::rules(&verb.keep);
    let images = snapshot::expanded(&verb.images, context)?;
    let of = |image: &ImageUri| {
        SnapshotRequest::new(image.clone())
            .name(verb.name.clone())
            .label(verb.label.clone())
            .skip_unchanged(true)
            .skip_bad(verb.skip_bad)
            .format(verb.format.format)
            .via_qemu(verb.format.via_qemu)
            .backing_ok(verb.format.backing_ok)
            .compression(verb.compression)
            .track(verb.tracking.track)
            .recheck(verb.tracking.recheck)
            .max_stall(verb.tracking.max_stall)
            .window(verb.window.request())
    };
    let request = WatchRequest::new(images.iter().map(of).collect(), verb.every)
        .rules((!rules.is_empty()).then_some(rules));
    // Nothing is made for what could never work.
    images.iter().try_for_each(ensure_there)?;
    request.images.iter().try_for_each(|of| of.image_name().map(drop))?;
    let repository = repo::open_or_make(place, verb.first_use, printer, context)?;
    repo::or_take_back(repository, printer, |repository| {
        watch(repository, &request, verb, printer, context)
    })
}

/// Fails for a file that does not exist. Later, it may only be away for a while, as what a link leads to may
/// be now.
fn ensure_there(image: &ImageUri) -> Result<()> {
    let Some(path) = image.file() else { return Ok(()) };
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Err(Error::os("open", output::shown(path), e))
        }
        _ => Ok(()),
    }
}

fn watch(
    repository: &Repository,
    request: &WatchRequest,
    verb: &Watch,
    printer: &Printer,
    context: &Context,
) -> Result<ExitCode> {
    let images = output::plural(request.images.len() as u64, "image");
    let every = jiff::SignedDuration::try_from(verb.every).unwrap_or_default();
    printer.say(&format!("watching {images}, every {every:#}"));
    let unprinted: Mutex<Option<Error>> = Mutex::new(None);
    repository.watch(request, context, |watched| {
        let mut unprinted = unprinted.lock().unwrap_or_else(PoisonError::into_inner);
        // A full disk does not stop the snapshots; whoever closed the pipe wants no more of them.
        if let Err(error) = print(&watched, printer) {
            if error.is_broken_pipe() {
                context.stop();
            }
            unprinted.get_or_insert(error);
        }
    })?;
    printer.say("stopped");
    match unprinted.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(exit::DONE),
    }
}

fn print(watched: &Watched, printer: &Printer) -> Result<()> {
    if let Some(Err(error)) = &watched.pruned {
        let why = words::error(error);
        printer.warn(&format!("{}: cannot prune: {why}", watched.name));
    }
    if let Some(why) = watched.result.as_ref().ok().and_then(|done| done.post_error.as_ref()) {
        printer.warn(&format!("{}: after the snapshot: {why}", watched.name));
    }
    if let Some(Ok(pruned)) = &watched.pruned {
        prune::warn_of_free_space(&pruned.compaction, printer);
        prune::warn_of_clock(pruned, printer);
    }
    if printer.is_json() {
        return printer.json(&to_json(watched));
    }
    let next = output::duration(watched.next_in.as_secs_f64());
    let now = output::time(Timestamp::now());
    match &watched.result {
        Ok(done) => printer.line(&format!("{now}  {}; next in {next}", describe(watched, done))),
        Err(error) => {
            let times = match watched.failures {
                1 => String::new(),
                times => format!(" (failed {times} times in a row)"),
            };
            let again = format!(
                "{now}  {}{times}: {}; retrying in {next}",
                watched.name,
                words::error(error)
            );
            printer.failure(&again);
            Ok(())
        }
    }
}

fn describe(watched: &Watched, done: &SnapshotOutcome) -> String {
    let s = &done.snapshot;
    let took = output::duration(watched.seconds);
    if done.outcome == Outcome::Skipped {
        return format!("{}@{}  unchanged, checked in {took}", done.name, s.number);
    }
    let dropped = match &watched.pruned {
        Some(Ok(pruned)) if pruned.requested.is_some() => ", asked the owner to drop some".into(),
        Some(Ok(pruned)) if dropped_by(pruned) > 0 => dropped_text(pruned, s.label.as_deref()),
        _ => String::new(),
    };
    let window = watched.rpo_seconds.map_or(String::new(), |seconds| {
        format!(", {} after the previous one", output::duration(seconds))
    });
    let in_use = if s.consistency.is_in_use() { ", in use" } else { "" };
    let what = if s.is_base() { "data" } else { "changed" };
    format!(
        "{}@{}  {} {what}, {} stored in {took}{window}{dropped}{in_use}",
        done.name,
        s.number,
        output::bytes(s.changed_bytes),
        output::bytes(s.file_bytes)
    )
}

/// How many, and those with a label that not every snapshot gets.
fn dropped_text(pruned: &Pruned, usual: Option<&str>) -> String {
    let unusual = prune::dropped_with_labels(pruned).filter(|(_, label)| Some(*label) != usual);
    let labels = unusual.map(|(s, label)| format!("@{} {label}", s.number)).collect::<Vec<_>>();
    match labels.as_slice() {
        [] => format!(", {} dropped", dropped_by(pruned)),
        some => format!(", {} dropped ({})", dropped_by(pruned), some.join(", ")),
    }
}

fn dropped_by(pruned: &Pruned) -> usize {
    prune::dropped(pruned).count()
}

fn to_json(watched: &Watched) -> Value {
    let (event, snapshot, error) = match &watched.result {
        Ok(done) => {
            let event = if done.outcome == Outcome::Skipped { "unchanged" } else { "snapshot" };
            let value = list::snapshot_json(&done.name, &done.snapshot, done.parent_number);
            (event, Some(value), None)
        }
        Err(error) => ("failed", None, Some(words::error(error))),
    };
    let done = watched.result.as_ref().ok();
    json!({
        "time": Timestamp::now().to_string(),
        "name": watched.name,
        "image": watched.image,
        "event": event,
        "snapshot": snapshot,
        "error": error,
        "seconds": watched.seconds,
        "clone_seconds": done.and_then(|done| done.clone_seconds),
        "in_use_by": done.and_then(|done| done.user.clone()),
        "post_error": done.and_then(|done| done.post_error.clone()),
        "full_scan_reason": done.and_then(|done| done.full_scan_reason.clone()),
        "age_seconds": watched.age_seconds,
        "rpo_seconds": watched.rpo_seconds,
        "dropped": watched.pruned.as_ref().and_then(|p| p.as_ref().ok()).map(dropped_by),
        "failures": watched.failures,
        "next_in_seconds": watched.next_in.as_secs_f64(),
    })
}
