//! `imgsnap list` and `imgsnap show`

use super::printer::Printer;
use super::{exit, output, repo};
use imgsnap::base::error::{ErrorKind, Result};
use imgsnap::base::events::Context;
use imgsnap::image::FileAttributes;
use imgsnap::repo::manifest::{BaseOf, HintUse, Manifest, Snapshot};
use imgsnap::tracking::{Consistency, HintKind, cycle};
use imgsnap::{CloneUse, Clones, Listing, Reference, Repository};
use serde_json::{Value, json};
use std::process::ExitCode;

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
fn recheck_cycle(s: &Snapshot, hint: &HintUse) -> Option<u64> {
    cycle(s.image_bytes.div_ceil(u64::from(s.block_bytes).max(1)), hint.recheck_blocks)
}

pub fn list(
    repository: &Repository,
    name: Option<&str>,
    printer: &Printer,
    context: &Context,
) -> Result<ExitCode> {
    let names = repo::names(repository, name)?;
    let mut values = Vec::new();
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
            for s in &manifest.snapshots {
                let parent = manifest.stored_parent_of(s).map(|p| p.number);
                let mut value = snapshot_json(name, s, parent);
                if let Some(object) = value.as_object_mut() {
                    object.insert("head".into(), (listing.head.snapshot == Some(s.id)).into());
                    let clone = clone_of(&listing, s);
                    object.insert("clone_bytes".into(), clone.map_or(0, |c| c.own_bytes).into());
                }
                values.push(value);
            }
        } else {
            let gap = if index == 0 { "" } else { "\n" };
            printer.line(&format!("{gap}{}", describe(&listing)))?;
        }
    }
    if printer.is_json() {
        printer.json(&Value::Array(values))?;
    }
    Ok(damage.unwrap_or(exit::DONE))
}

/// The clone of a snapshot that the next one is compared with.
fn clone_of<'a>(listing: &'a Listing, s: &Snapshot) -> Option<&'a CloneUse> {
    listing.clones.reference.as_ref().filter(|clone| clone.number == Some(s.number))
}

fn warn_of_half_written(listing: &Listing, printer: &Printer) {
    let manifest = &listing.manifest;
    if let Some(intent) = listing.head.intent {
        let name = &manifest.name;
        let target = manifest.by_id(intent.target).map_or("?".into(), |s| s.number.to_string());
        printer.warn(&format!(
            "a rollback of \"{name}\" to {name}@{target} was interrupted: its live image is a mixture; \
             finish it with \"imgsnap rollback {name} --to {name}@{target}\""
        ));
    }
}

/// Clones that take room and are of no use.
pub fn warn_of_clones(name: &str, clones: &Clones, printer: &Printer) {
    for orphan in &clones.orphans {
        let (path, bytes) = (output::shown(&orphan.path), output::bytes(orphan.own_bytes));
        printer.warn(&format!(
            "{path} is a clone that no snapshot needs, and takes {bytes}; the next snapshot of \"{name}\" \
             removes it, or \"imgsnap untrack {name}\""
        ));
    }
    if !clones.foreign.is_empty() {
        let bytes = clones.foreign.iter().map(|clone| clone.own_bytes).sum();
        let first = clones.foreign.first().map(|clone| output::shown(&clone.path));
        printer.note(&format!(
            "{} beside \"{name}\" of other repositories, {} (such as {})",
            output::plural(clones.foreign.len() as u64, "clone"),
            output::bytes(bytes),
            first.unwrap_or_default()
        ));
    }
}

fn describe(listing: &Listing) -> String {
    let manifest = &listing.manifest;
    let stored: u64 = manifest.stored().iter().map(|s| s.file_bytes).sum();
    let dropped: u64 = manifest.dropped.iter().map(|s| s.file_bytes).sum();
    let held = match dropped {
        0 => String::new(),
        bytes => format!(" ({} of dropped ones)", output::bytes(bytes)),
    };
    let clone = listing.clones.reference.as_ref().map_or(String::new(), |clone| {
        format!(", {} held by its clone", output::bytes(clone.own_bytes))
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
    if manifest.snapshots.is_empty() {
        return title;
    }
    let rows: Vec<Vec<String>> = manifest.snapshots.iter().map(|s| row(listing, s)).collect();
    let headings =
        [">#", "TIME", "AGE", "FROM", ">IMAGE", ">CHANGED", ">STORED", ">RATIO", "LABEL"];
    format!("{title}\n{}", output::table(&headings, &rows))
}

/// The images whose chains begin from a snapshot.
fn needed_by(s: &Snapshot) -> Option<String> {
    let mut names: Vec<&str> = s.pins.iter().map(|pin| pin.name.as_str()).collect();
    names.dedup();
    match names.as_slice() {
        [] => None,
        [name] => Some((*name).to_owned()),
        [name, others @ ..] => Some(format!("{name} and {} more", others.len())),
    }
}

fn row(listing: &Listing, s: &Snapshot) -> Vec<String> {
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

/// What is to be said of the state of an image.
fn state_text(consistency: Consistency) -> Option<&'static str> {
    match consistency {
        Consistency::Stopped => None,
        Consistency::Unknown => Some("whether somebody wrote to it meanwhile is not known"),
        Consistency::Frozen => Some("in use when it was taken, and its file systems were frozen"),
        _ => Some("in use when it was taken: as after a power failure (crash-consistent)"),
    }
}

pub fn show(
    repository: &Repository,
    reference: &Reference,
    printer: &Printer,
    context: &Context,
) -> Result<ExitCode> {
    let listing = repository.list(&reference.name, context)?;
    let reader = repository.read(&reference.name, context)?;
    let s = reader.find(&reference.at)?;
    let manifest = &listing.manifest;
    let chain = repository.chain(&reader, s.id)?;
    let ancestors = reader.manifest().lineage(s.id)?;
    let stored: u64 = chain.layers().iter().map(|layer| layer.footer().file_bytes).sum();
    let name = &reference.name;
    let parent = manifest.stored_parent_of(s);
    let children: Vec<u64> = manifest.children(s.id).map(|c| c.number).collect();
    let is_head = listing.head.snapshot == Some(s.id);
    let clone = clone_of(&listing, s);
    let counts = chain.tip().footer().counts;
    let unread = chain.unread(chain.geometry().blocks(), context)?;
    if printer.is_json() {
        let mut value = snapshot_json(name, s, parent.map(|p| p.number));
        if let Some(object) = value.as_object_mut() {
            object.insert("head".into(), is_head.into());
            object.insert("clone_bytes".into(), clone.map_or(0, |c| c.own_bytes).into());
            object.insert("file".into(), chain.tip().location().into());
            object.insert("digest".into(), chain.hasher().algorithm().to_string().into());
            object.insert("frames".into(), counts.frames.into());
            object.insert("frame_bytes".into(), counts.frame_bytes.into());
            object.insert("chain".into(), ancestors.iter().map(|a| a.number).collect());
            object.insert("chain_bytes".into(), stored.into());
            object.insert("children".into(), children.into());
            object.insert("unread".into(), output::ranges_json(&unread, chain.geometry()));
        }
        printer.json(&value)?;
        return Ok(exit::DONE);
    }
    let refs = |numbers: &[u64]| match numbers {
        [] => "none".to_owned(),
        some => some.iter().map(|n| format!("{name}@{n}")).collect::<Vec<_>>().join(", "),
    };
    let block_bytes = u64::from(s.block_bytes);
    let (found, proved) = found_text(manifest, s);
    let mut rows: Vec<(&str, String)> = vec![
        ("label", s.label.clone().unwrap_or("none".into())),
        ("time", format!("{}, {}", output::time(s.time), output::age(s.time))),
        ("parent", parent_text(manifest, s, parent, &refs)),
        ("found", found),
        ("proved", proved),
        ("children", refs(&children)),
        ("needed by", needed_by(s).unwrap_or("no other image".into())),
        (
            "head",
            if is_head { "yes: the live image last equalled this snapshot" } else { "no" }.into(),
        ),
        (
            "image",
            format!("{} ({} bytes)", output::bytes(s.image_bytes), output::count(s.image_bytes)),
        ),
        (
            "changed",
            format!(
                "{} in {} of {} ({} stored, {} became zero)",
                output::bytes(s.changed_bytes),
                output::plural(s.changed_blocks, "block"),
                output::bytes(block_bytes),
                output::count(s.data_blocks),
                output::count(s.zero_blocks)
            ),
        ),
        (
            "stored",
            format!(
                "{} ({} of what changed) in {}",
                output::bytes(s.file_bytes),
                output::percent(s.file_bytes, s.changed_bytes),
                output::plural(counts.frames, "frame")
            ),
        ),
        (
            "chain",
            format!(
                "{}, {} in all",
                output::plural(chain.layers().len() as u64, "file"),
                output::bytes(stored)
            ),
        ),
        ("digest", format!("{}, image {}", chain.hasher().algorithm(), s.image_digest.to_hex())),
        ("id", s.id.to_string()),
        ("file", chain.tip().location()),
    ];
    if let Some(attributes) = &s.attributes {
        rows.insert(8, ("file mode", attributes_text(attributes)));
    }
    if s.protected {
        rows.insert(1, ("protected", "yes: nothing drops it".into()));
    }
    if !unread.is_empty() {
        let what = unread.describe(chain.geometry());
        rows.insert(3, ("unread", format!("{what}: could not be read when it was taken")));
    }
    if let Some(state) = state_text(s.consistency) {
        rows.insert(3, ("state", state.into()));
    }
    let before = manifest.stored().into_iter().rev().filter(|other| other.number <= s.number);
    if let Some(format) = before.filter_map(|s| s.format.as_deref()).next().filter(|f| *f != "raw")
    {
        rows.insert(3, ("format", format!("the disk in a {format} image")));
    }
    rows.extend(clone.map(|clone| ("clone", clone_text(clone))));
    let mut text = format!("{name}@{}", s.number);
    for (noun, value) in rows {
        text.push_str(&format!("\n  {noun:<9} {value}"));
    }
    printer.line(&text)?;
    Ok(exit::DONE)
}

/// What the clone of an image takes, and what for.
pub fn clone_text(clone: &CloneUse) -> String {
    format!("{} beside the image, to find what changes", output::bytes(clone.own_bytes))
}

fn attributes_text(attributes: &FileAttributes) -> String {
    let FileAttributes { uid, gid, mode, xattrs } = attributes;
    let more = match xattrs.len() as u64 {
        0 => String::new(),
        count => format!(", {}", output::plural(count, "extended attribute")),
    };
    format!("{mode:04o}, user {uid}, group {gid}{more}")
}

/// Who told what may have changed, and how much of the rest was looked at.
fn found_text(manifest: &Manifest, s: &Snapshot) -> (String, String) {
    let Some(hint) = s.hint else {
        let proved = if s.unread_blocks > 0 { "all but what is unread" } else { "all of it" };
        return ("by reading all of it".into(), proved.into());
    };
    let since = manifest.stored().into_iter().find(|other| other.id == hint.since);
    let since = since.map_or("a snapshot that is gone".into(), |other| {
        format!("{}@{}", manifest.name, other.number)
    });
    let named = output::bytes(hint.named_bytes);
    let how = match hint.kind {
        HintKind::Extents => format!("by clones of it and of {since}: {named} may have changed"),
        HintKind::List => format!("by a list since {since}: {named} may have changed"),
        HintKind::Bitmap => format!("by a bitmap since {since}: {named} may have changed"),
        HintKind::Times => format!("its file was not written to since {since}"),
    };
    let recheck = match recheck_cycle(s, &hint) {
        None => "nothing of what is called unchanged".to_owned(),
        Some(cycle) => format!(
            "{} of what is called unchanged, all of it in {}",
            output::bytes(hint.recheck_blocks.saturating_mul(s.block_bytes.into())),
            output::plural(cycle, "snapshot")
        ),
    };
    let missed = match hint.missed_blocks {
        0 => String::new(),
        blocks => format!("; {} had changed all the same", output::plural(blocks, "block")),
    };
    (how, format!("{recheck}{missed}"))
}

fn parent_text(
    manifest: &Manifest,
    s: &Snapshot,
    parent: Option<&Snapshot>,
    refs: &dyn Fn(&[u64]) -> String,
) -> String {
    if let Some(of) = &s.base_of {
        return format!("{}, of another image", of.place());
    }
    match (parent, &s.base_image) {
        (Some(parent), _) if manifest.is_dropped(parent.id) => {
            format!("{} (dropped)", refs(&[parent.number]))
        }
        (Some(parent), _) => refs(&[parent.number]),
        (None, Some(path)) => {
            format!("none: this is a base, whose blocks are in {}", output::shown(path))
        }
        (None, None) => "none: this is a base".into(),
    }
}
