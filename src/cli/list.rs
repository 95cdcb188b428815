//! `imgsnap list`, and snapshots as JSON

use super::page::{Page, Table};
use super::printer::Printer;
use super::{exit, output, repo, words};
use imgsnap::base::error::{ErrorKind, Result};
use imgsnap::base::events::Context;
use imgsnap::image::FileAttributes;
use imgsnap::repo::group::Members;
use imgsnap::repo::manifest::{BaseOf, HintUse, Manifest, Pending, Snapshot};
use imgsnap::tracking::{Consistency, cycle};
use imgsnap::{CloneUse, Clones, Listing, Repository};
use serde_json::{Map, Value, json};
use std::process::ExitCode;

/// The newest commit of each image.
pub fn heads(repository: &Repository, printer: &Printer, context: &Context) -> Result<ExitCode> {
    for name in repository.names()? {
        let listing = repository.list(&name, context)?;
        let Manifest { sequence, commit, .. } = &listing.manifest;
        let commit = commit.map(|commit| commit.to_string());
        match printer.is_json() {
            true => {
                printer.json(&json!({ "image": name, "number": sequence, "commit": commit }))?
            }
            false => printer
                .line(&format!("{name}@{}  number {sequence}", commit.as_deref().unwrap_or("?")))?,
        }
    }
    Ok(exit::DONE)
}

/// A snapshot for programs: the same everywhere.
pub fn snapshot_json(name: &str, s: &Snapshot, parent_number: Option<u64>) -> Value {
    json!({
        "name": name,
        "number": s.number,
        "ref": format!("{name}@{}", s.number),
        "id": s.id,
        "parent": s.parent,
        "parent_number": parent_number,
        "kind": if s.is_base() { "base" } else { "delta" },
        "base_of": s.base_of.as_ref().map(base_of_json),
        "base_image": s.base_image.as_deref().map(output::path),
        "in_use": s.consistency.is_in_use(),
        "format": s.format,
        "consistency": s.consistency,
        "held": s.held,
        "before_rollback": s.before_rollback,
        "protected": s.protected,
        "attributes": s.attributes.as_ref().map(attributes_json),
        "hint": s.hint.map(|hint| hint_json(s, &hint)),
        "clone_seconds": s.kept_clone().map(|clone| clone.seconds),
        "tracking_seconds": s.timings.map(|timings| timings.tracking_seconds),
        "scan_seconds": s.timings.map(|timings| timings.scan_seconds),
        "label": s.label,
        "time": s.time.to_string(),
        "image_bytes": s.image_bytes,
        "image_digest": s.image_digest.to_hex(),
        "block_bytes": s.block_bytes,
        "read_bytes": s.read_bytes,
        "changed_blocks": s.changed_blocks,
        "changed_bytes": s.changed_bytes,
        "data_blocks": s.data_blocks,
        "zero_blocks": s.zero_blocks,
        "unread_blocks": s.unread_blocks,
        "stored_bytes": s.file_bytes,
        "seconds": s.seconds,
    })
}

fn base_of_json(of: &BaseOf) -> Value {
    json!({ "ref": of.place(), "image": of.image, "id": of.snapshot })
}

/// Values of extended attributes are for restore alone.
fn attributes_json(attributes: &FileAttributes) -> Value {
    let FileAttributes { uid, gid, mode, xattrs } = attributes;
    let names: Vec<&String> = xattrs.keys().collect();
    json!({ "uid": uid, "gid": gid, "mode": format!("{mode:04o}"), "xattrs": names })
}

fn hint_json(s: &Snapshot, hint: &HintUse) -> Value {
    json!({
        "kind": hint.kind,
        "since": hint.since,
        "named_bytes": hint.named_bytes,
        "recheck_blocks": hint.recheck_blocks,
        "recheck_cycle": recheck_cycle(s, hint),
        "missed_blocks": hint.missed_blocks,
    })
}

/// After how many snapshots all of the image has been read again; none if never.
pub fn recheck_cycle(s: &Snapshot, hint: &HintUse) -> Option<u64> {
    cycle(s.image_bytes.div_ceil(u64::from(s.block_bytes).max(1)), hint.recheck_blocks)
}

pub fn list(
    repository: &Repository,
    name: Option<&str>,
    last: Option<u64>,
    printer: &Printer,
    context: &Context,
) -> Result<ExitCode> {
    let last = last.and_then(|last| usize::try_from(last).ok()).unwrap_or(usize::MAX);
    let names = repo::names(repository, name)?;
    let mut damage = None;
    if names.is_empty() && !printer.is_json() {
        printer.line(&format!("no images in {} yet", repository.location()))?;
    }
    let is_all = name.is_none();
    for (index, name) in names.iter().enumerate() {
        let listing = match repository.list(name, context) {
            Ok(listing) => listing,
            // It has just been removed.
            Err(e) if is_all && e.kind() == ErrorKind::NotFound => continue,
            // One damaged image does not hide the others.
            Err(e) if names.len() > 1 => {
                printer.error(&e);
                damage = Some(exit::code(e.kind()));
                continue;
            }
            Err(e) => return Err(e),
        };
        warn_of_half_written(&listing, printer);
        warn_of_clones(name, &listing.clones, printer);
        if printer.is_json() {
            let manifest = &listing.manifest;
            let skipped = manifest.snapshots.len().saturating_sub(last);
            for (s, group) in manifest.snapshots.iter().zip(&listing.groups).skip(skipped) {
                let parent = manifest.stored_parent_of(s).map(|p| p.number);
                let mut value = snapshot_json(name, s, parent);
                if let Some(object) = value.as_object_mut() {
                    object.insert("head".into(), (listing.head.snapshot == Some(s.id)).into());
                    let clone = clone_of(&listing, s);
                    object.insert("clone_bytes".into(), clone.map_or(0, |c| c.own_bytes).into());
                    insert_group(object, group.as_ref());
                }
                printer.json(&value)?;
            }
            let taken = manifest.pending.iter().filter(|pending| !pending.is_only_kept());
            for pending in taken {
                printer.json(&pending_json(name, pending))?;
            }
        } else {
            let page = if index == 0 { Page::default() } else { Page::new("") };
            printer.page(&describe(page, &listing, last))?;
        }
    }
    Ok(damage.unwrap_or(exit::DONE))
}

/// Adds what became of the group of a snapshot.
pub fn insert_group(object: &mut Map<String, Value>, group: Option<&Members>) {
    object.insert("group".into(), group.map_or(Value::Null, group_json));
    object.insert("incomplete".into(), group.is_some_and(Members::is_incomplete).into());
}

/// A group for programs.
pub fn group_json(group: &Members) -> Value {
    let members = group.members.iter().map(|member| {
        let place = member.number().map(|_| member.place());
        json!({
            "name": member.name,
            "number": member.number(),
            "ref": place,
            "image": member.image,
            "id": member.snapshot,
        })
    });
    json!({
        "id": group.id,
        "name": group.name,
        "apart": group.is_apart,
        "members": members.collect::<Vec<_>>(),
    })
}

/// The clone of a snapshot that the next one is compared with.
pub fn clone_of<'a>(listing: &'a Listing, s: &Snapshot) -> Option<&'a CloneUse> {
    listing.clones.reference.as_ref().filter(|clone| clone.number == Some(s.number))
}

fn warn_of_half_written(listing: &Listing, printer: &Printer) {
    let manifest = &listing.manifest;
    if let Some(intent) = listing.head.intent {
        let name = &manifest.name;
        let target = manifest.by_id(intent.target).map_or("?".into(), |s| s.number.to_string());
        let place = format!("{name}@{target}");
        let finish = words::message(&listing.head.finishing(name, &place).into());
        printer.warn(&format!(
            "a rollback of \"{name}\" to {place} was interrupted: its live image is only partly rolled back; \
             finish it with {finish}"
        ));
    }
}

/// Clones that take room and are of no use.
pub fn warn_of_clones(name: &str, clones: &Clones, printer: &Printer) {
    for orphan in &clones.orphans {
        let (path, bytes) = (output::shown(&orphan.path), output::bytes(orphan.own_bytes));
        printer.warn(&format!(
            "{path} is a clone that no snapshot needs and occupies {bytes}; the next snapshot of \"{name}\" \
             or \"imgsnap untrack {name}\" removes it"
        ));
    }
    if !clones.foreign.is_empty() {
        let bytes = clones.foreign.iter().map(|clone| clone.own_bytes).sum();
        let first = clones.foreign.first().map(|clone| output::shown(&clone.path));
        printer.note(&format!(
            "{} of other repositories beside \"{name}\", {} (such as {})",
            output::plural(clones.foreign.len() as u64, "clone"),
            output::bytes(bytes),
            first.unwrap_or_default()
        ));
    }
}

fn describe(page: Page, listing: &Listing, last: usize) -> Page {
    let manifest = &listing.manifest;
    let stored: u64 = manifest.stored().iter().map(|s| s.file_bytes).sum();
    let dropped: u64 = manifest.dropped.iter().map(|s| s.file_bytes).sum();
    let held = match dropped {
        0 => String::new(),
        bytes => format!(" ({} of dropped snapshots)", output::bytes(bytes)),
    };
    let clone = listing.clones.reference.as_ref().map_or(String::new(), |clone| {
        format!(", {} used by its clone", output::bytes(clone.own_bytes))
    });
    let source = match (&listing.head.source, &manifest.source, &listing.head.elsewhere) {
        (Some(image), ..) => output::image(image),
        (None, Some(image), Some(host)) => format!("{}:{}", host.name, output::image(image)),
        _ => "(live file unknown)".into(),
    };
    let title = format!(
        "{}  {source}  {}, {} stored{held}{clone}",
        manifest.name,
        output::plural(manifest.snapshots.len() as u64, "snapshot"),
        output::bytes(stored)
    );
    let page = page.text(format!("{title}{}", pending_lines(manifest)));
    if manifest.snapshots.is_empty() {
        return page;
    }
    let rows: Vec<Vec<String>> = manifest
        .snapshots
        .iter()
        .zip(&listing.groups)
        .skip(manifest.snapshots.len().saturating_sub(last))
        .map(|(s, group)| row(listing, s, group.as_ref()))
        .collect();
    let headings =
        [">#", "TIME", "AGE", "FROM", ">IMAGE", ">CHANGED", ">STORED", ">RATIO", "LABEL"];
    let least = &["AGE", "RATIO", "IMAGE", "FROM", "CHANGED", "STORED"];
    page.table(Table::new(&headings, &rows).leaving_out(least))
}

/// A snapshot that is not finished, for programs.
fn pending_json(name: &str, pending: &Pending) -> Value {
    json!({
        "name": name,
        "number": pending.number,
        "id": pending.id,
        "kind": "pending",
        "parts": pending.objects.len(),
        "plan": pending.plan,
        "expires": pending.expires.to_string(),
    })
}

/// Snapshots that are not finished, a line for each.
fn pending_lines(manifest: &Manifest) -> String {
    let line = |pending: &Pending| {
        let until = output::time(pending.expires);
        let parts = match pending.plan {
            None => output::plural(pending.objects.len() as u64, "finished part"),
            Some(plan) if pending.is_only_kept() => {
                let kept = manifest.snapshots.iter().find(|s| Some(s.id) == pending.parent);
                let number = kept.map_or(0, |kept| kept.number);
                return format!(
                    "\n  {number} is being restored by plan {plan}; kept until {until}"
                );
            }
            Some(plan) => format!("being taken by plan {plan}"),
        };
        format!("\n  {} is not finished: {parts}, kept until {until}", pending.number)
    };
    manifest.pending.iter().map(line).collect()
}

/// The images whose chains begin from a snapshot.
pub fn needed_by(s: &Snapshot) -> Option<String> {
    let mut names: Vec<&str> = s.pins.iter().map(|pin| pin.name.as_str()).collect();
    names.dedup();
    match names.as_slice() {
        [] => None,
        [name] => Some((*name).to_owned()),
        [name, others @ ..] => Some(format!("{name} and {} more", others.len())),
    }
}

/// The mark of a snapshot that was taken with others.
fn group_mark(group: &Members) -> String {
    let name = group.name.as_ref().map_or(String::new(), |name| format!(" {name}"));
    let incomplete = if group.is_incomplete() { ", incomplete" } else { "" };
    format!("(group{name}{incomplete})")
}

fn row(listing: &Listing, s: &Snapshot, group: Option<&Members>) -> Vec<String> {
    let manifest = &listing.manifest;
    let parent = manifest.stored_parent_of(s);
    let from = |p: &Snapshot| match manifest.is_dropped(p.id) {
        true => format!("(@{})", p.number),
        false => format!("@{}", p.number),
    };
    let is_head = listing.head.snapshot == Some(s.id);
    let mut notes: Vec<String> = s.label.iter().cloned().collect();
    notes.extend(s.base_image.as_ref().map(|path| format!("(in {})", output::file_name(path))));
    notes.extend(needed_by(s).map(|names| format!("(needed by {names})")));
    notes.extend(group.map(group_mark));
    notes.extend(match s.consistency {
        Consistency::Crash => Some("(crash-consistent)".to_owned()),
        Consistency::Frozen => Some("(frozen)".to_owned()),
        _ => None,
    });
    notes.extend(s.before_rollback.map(|target| match manifest.by_id(target) {
        Some(target) => format!("(before rollback to @{})", target.number),
        None => "(before rollback)".to_owned(),
    }));
    notes.extend(s.protected.then(|| "(protected)".to_owned()));
    notes.extend(is_head.then(|| "(head)".to_owned()));
    notes.extend((s.unread_blocks > 0).then(|| "(incomplete: unread blocks)".to_owned()));
    vec![
        s.number.to_string(),
        output::time(s.time),
        output::age(s.time),
        parent.map_or_else(|| s.base_of.as_ref().map_or("base".into(), BaseOf::place), from),
        output::bytes(s.image_bytes),
        output::bytes(s.changed_bytes),
        output::bytes(s.file_bytes),
        output::percent(s.file_bytes, s.changed_bytes),
        notes.join(" "),
    ]
}

/// What the clone of an image takes, and what for.
pub fn clone_text(clone: &CloneUse) -> String {
    format!("{} beside the image, used to find changes", output::bytes(clone.own_bytes))
}
