//! `imgsnap show`

use super::list::{clone_of, clone_text, insert_group, needed_by, recheck_cycle, snapshot_json};
use super::page::Page;
use super::printer::Printer;
use super::{exit, output};
use imgsnap::base::error::Result;
use imgsnap::base::events::Context;
use imgsnap::image::FileAttributes;
use imgsnap::repo::group::{Member, Members};
use imgsnap::repo::manifest::{Manifest, Snapshot};
use imgsnap::tracking::{Consistency, HintKind};
use imgsnap::{Reference, Repository};
use std::process::ExitCode;

/// What is to be said of the state of an image.
fn state_text(consistency: Consistency) -> Option<&'static str> {
    match consistency {
        Consistency::Stopped => None,
        Consistency::Unknown => Some("unknown whether the image was written to meanwhile"),
        Consistency::Frozen => Some("taken while in use, with its file systems frozen"),
        _ => Some("taken while in use: crash-consistent, as after a power failure"),
    }
}

pub fn run(
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
    let stored: u64 = chain.layers().iter().map(|layer| layer.stored_bytes()).sum();
    let group = listing.group_of(s);
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
            insert_group(object, group);
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
        ("verified", proved),
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
    if let Some(target) = s.before_rollback {
        let target = manifest
            .by_id(target)
            .map_or("a snapshot that is gone".into(), |target| refs(&[target.number]));
        rows.insert(1, ("saved", format!("the state before a rollback to {target}")));
    }
    if s.protected {
        rows.insert(1, ("protected", "yes: it cannot be dropped".into()));
    }
    if !s.attachments.is_empty() {
        let names: Vec<&str> = s.attachments.iter().map(|part| part.name.as_str()).collect();
        rows.push(("with", names.join(", ")));
    }
    if let Some(group) = group {
        rows.insert(3, ("group", group_text(group)));
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
    printer.page(&Page::new(format!("{name}@{}", s.number)).rows(&rows))?;
    Ok(exit::DONE)
}

/// What was taken with it, and what of that is missing.
fn group_text(group: &Members) -> String {
    let places: Vec<String> = group.members.iter().map(Member::place).collect();
    let name = group.name.as_ref().map_or(String::new(), |name| format!("{name}: "));
    let apart = if group.is_apart { ", one after the other" } else { "" };
    let missing = group.missing().map_or(String::new(), |what| format!(" (incomplete: {what})"));
    format!("{name}{}{apart}{missing}", places.join(", "))
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
        let proved =
            if s.unread_blocks > 0 { "all but the unread blocks" } else { "the whole image" };
        return ("by reading the whole image".into(), proved.into());
    };
    let since = manifest.stored().into_iter().find(|other| other.id == hint.since);
    let since = since.map_or("a snapshot that no longer exists".into(), |other| {
        format!("{}@{}", manifest.name, other.number)
    });
    let named = output::bytes(hint.named_bytes);
    let how = match hint.kind {
        HintKind::Extents => {
            format!("by comparing clones of it and of {since}: {named} may have changed")
        }
        HintKind::List => format!("by a list of changes since {since}: {named} may have changed"),
        HintKind::Bitmap => format!("by a dirty bitmap since {since}: {named} may have changed"),
        HintKind::Times => format!("its file was not written to since {since}"),
    };
    let recheck = match recheck_cycle(s, &hint) {
        None => "none of what was reported unchanged".to_owned(),
        Some(cycle) => format!(
            "{} of what was reported unchanged, all of it within {}",
            output::bytes(hint.recheck_blocks.saturating_mul(s.block_bytes.into())),
            output::plural(cycle, "snapshot")
        ),
    };
    let missed = match hint.missed_blocks {
        0 => String::new(),
        blocks => format!("; {} had changed nevertheless", output::plural(blocks, "block")),
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
