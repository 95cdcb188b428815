//! `imgsnap label`, `protect`, `relink` and `untrack`

use super::printer::Printer;
use super::{exit, list, output};
use imgsnap::base::error::Result;
use imgsnap::base::events::Context;
use imgsnap::image::{ImageFormat, ImageUri};
use imgsnap::repo::manifest::Snapshot;
use imgsnap::{Reference, Repository};
use serde_json::json;
use std::path::Path;
use std::process::ExitCode;

pub fn label(
    repository: &Repository,
    reference: &Reference,
    label: Option<&str>,
    printer: &Printer,
    context: &Context,
) -> Result<ExitCode> {
    let name = &reference.name;
    let before = repository.read(name, context)?.find(&reference.at)?.label.clone();
    let snapshot = repository.label(name, &reference.at, label, context)?;
    let what = label_text(label, before.as_deref());
    say_changed(repository, name, &snapshot, &what, printer, context)
}

fn label_text(label: Option<&str>, before: Option<&str>) -> String {
    match (label, before) {
        (Some(label), Some(before)) if label != before => {
            format!("is labelled \"{label}\" (previously \"{before}\")")
        }
        (Some(label), _) => format!("is labelled \"{label}\""),
        (None, Some(before)) => format!("has no label (previously \"{before}\")"),
        (None, None) => "has no label".into(),
    }
}

pub fn show_label(
    repository: &Repository,
    reference: &Reference,
    printer: &Printer,
    context: &Context,
) -> Result<ExitCode> {
    let name = &reference.name;
    let snapshot = repository.read(name, context)?.find(&reference.at)?.clone();
    let what = label_text(snapshot.label.as_deref(), None);
    say_changed(repository, name, &snapshot, &what, printer, context)
}

pub fn protect(
    repository: &Repository,
    reference: &Reference,
    alone: bool,
    protect: bool,
    printer: &Printer,
    context: &Context,
) -> Result<ExitCode> {
    let name = &reference.name;
    let what = if protect { "is protected" } else { "is no longer protected" };
    if alone {
        let snapshot = repository.protect(name, &reference.at, protect, context)?;
        return say_changed(repository, name, &snapshot, what, printer, context);
    }
    for done in repository.protect_group(name, &reference.at, protect, context)? {
        say_changed(repository, &done.name, &done.snapshot, what, printer, context)?;
    }
    Ok(exit::DONE)
}

/// What a snapshot is now.
fn say_changed(
    repository: &Repository,
    name: &str,
    snapshot: &Snapshot,
    what: &str,
    printer: &Printer,
    context: &Context,
) -> Result<ExitCode> {
    if printer.is_json() {
        let manifest = repository.list(name, context)?.manifest;
        let parent = manifest.stored_parent_of(snapshot).map(|p| p.number);
        printer.json(&list::snapshot_json(name, snapshot, parent))?;
    } else {
        printer.line(&format!("{name}@{} {what}", snapshot.number))?;
    }
    Ok(exit::DONE)
}

pub fn untrack(
    repository: &Repository,
    name: &str,
    printer: &Printer,
    context: &Context,
) -> Result<ExitCode> {
    let removed = repository.untrack(name, context)?;
    let freed: u64 = removed.iter().map(|clone| clone.own_bytes).sum();
    if printer.is_json() {
        printer.json(&json!({"name": name, "clones": removed.len(), "freed_bytes": freed}))?;
    } else if removed.is_empty() {
        printer.line(&format!("\"{name}\" has no clones"))?;
    } else {
        let what = output::plural(removed.len() as u64, "clone");
        let freed = output::bytes(freed);
        printer.line(&format!(
            "removed {what} of \"{name}\", {freed} freed; the next snapshot reads the whole image"
        ))?;
    }
    Ok(exit::DONE)
}

pub fn relink(
    repository: &Repository,
    name: &str,
    (image, format): (Option<&ImageUri>, Option<ImageFormat>),
    base_image: Option<&Path>,
    printer: &Printer,
    context: &Context,
) -> Result<ExitCode> {
    let mut value = json!({"name": name});
    // What has to be proved comes first.
    if let Some(base_image) = base_image {
        let done = repository.relink_base_image(name, base_image, context)?;
        let (path, numbers) = (done.base_image, done.numbers);
        let refs: Vec<String> = numbers.iter().map(|n| format!("{name}@{n}")).collect();
        if !printer.is_json() {
            let refs = refs.join(", ");
            printer.line(&format!(
                "the base image of {refs} is {} (verified)",
                output::shown(&path)
            ))?;
        } else if let Some(object) = value.as_object_mut() {
            object.insert("base_image".into(), output::path(&path));
            object.insert("bases".into(), json!(refs));
        }
    }
    if let Some(image) = image {
        let image = repository.relink(name, image.clone(), format, context)?.image;
        if !printer.is_json() {
            printer.line(&format!("the live file of \"{name}\" is {}", output::image(&image)))?;
        } else if let Some(object) = value.as_object_mut() {
            object.insert("source".into(), json!(image));
        }
    }
    if printer.is_json() {
        printer.json(&value)?;
    }
    Ok(exit::DONE)
}
