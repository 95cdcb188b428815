//! `imgsnap prune`, `delete` and `flatten`

use super::args::{Keep, Prune};
use super::page::{Page, Table};
use super::printer::Printer;
use super::{exit, list, output, repo};
use imgsnap::base::error::{ErrorKind, Result};
use imgsnap::base::events::Context;
use imgsnap::repo::manifest::Snapshot;
use imgsnap::repo::retention::Rules;
use imgsnap::{At, Compaction, Deleted, PruneRequest, Pruned, Reference, Repository};
use serde_json::{Value, json};
use std::process::ExitCode;

pub fn run(
    repository: &Repository,
    verb: &Prune,
    printer: &Printer,
    context: &Context,
) -> Result<ExitCode> {
    let names = repo::names(repository, verb.name.as_deref())?;
    for stranger in repository.unknown_images_in_config()? {
        let what = format!("the configuration has rules for \"{}\"", stranger.escape_debug());
        printer.warn(&format!("{what}, but there is no such image"));
    }
    let rules = rules(&verb.keep);
    let request = PruneRequest::new()
        .rules((!rules.is_empty()).then_some(rules))
        .compact(verb.compact)
        .dry_run(verb.dry_run);
    let mut failed = None;
    for name in &names {
        match repository.prune(name, &request, context) {
            Ok(pruned) if printer.is_json() => printer.json(&to_json(&pruned, verb.dry_run))?,
            Ok(pruned) => {
                warn_of_free_space(&pruned.compaction, printer);
                warn_of_clock(&pruned, printer);
                tell_corrected(&pruned, printer);
                printer.page(&describe(&pruned, verb.dry_run))?;
            }
            // It has just been removed.
            Err(e) if verb.all && e.kind() == ErrorKind::NotFound => {}
            // One image that cannot be pruned does not keep the others from it.
            Err(e) if names.len() > 1 && e.kind() != ErrorKind::Interrupted => {
                failed.get_or_insert(e.kind());
                printer.error(&e);
            }
            Err(e) => return Err(e),
        }
    }
    Ok(failed.map_or(exit::DONE, exit::code))
}

pub fn rules(keep: &Keep) -> Rules {
    Rules {
        last: keep.keep_last,
        hourly: keep.keep_hourly,
        daily: keep.keep_daily,
        weekly: keep.keep_weekly,
        monthly: keep.keep_monthly,
        yearly: keep.keep_yearly,
        within: keep.keep_within,
        labels: keep.keep_label.clone(),
    }
}

pub fn warn_of_free_space(compaction: &Compaction, printer: &Printer) {
    for reason in &compaction.no_space {
        printer.warn(&format!("{reason}; the next prune tries again"));
    }
}

/// Rules by time dropped nothing: whoever waits for room should know why.
pub fn warn_of_clock(pruned: &Pruned, printer: &Printer) {
    if pruned.clock_in_doubt {
        printer.warn(&format!(
            "{}: the clock is or was wrong, so time-based rules drop nothing; set the clock, delete \
             snapshots with a wrong time, or use --keep-last",
            pruned.name
        ));
    }
}

/// Times that do not fit to the numbers were told by a clock that was wrong.
fn tell_corrected(pruned: &Pruned, printer: &Printer) {
    let told = pruned.corrected.first().filter(|_| !pruned.clock_in_doubt);
    let Some((first, time)) = told else { return };
    let name = &pruned.name;
    let more = match pruned.corrected.len() as u64 - 1 {
        0 => String::new(),
        more => format!(", and {} more likewise", output::count(more)),
    };
    printer.warn(&format!(
        "{name}@{first} has a time that does not fit its number (the clock was wrong); treated as \
         taken at {}{more}",
        output::time(*time)
    ));
}

fn compaction_json(compaction: &Compaction) -> Value {
    let merged: Vec<Value> = compaction
        .merged
        .iter()
        .map(|m| {
            json!({
                "number": m.number,
                "absorbed": m.absorbed,
                "before_bytes": m.before_bytes,
                "after_bytes": m.after_bytes,
                "kept_bytes": m.kept_bytes,
            })
        })
        .collect();
    json!({
        "removed_files": compaction.removed_files,
        "removed_bytes": compaction.removed_bytes,
        "merged": merged,
        "freed_bytes": compaction.freed_bytes,
        "to_free_bytes": compaction.to_free_bytes,
        "grace_seconds": compaction.grace_seconds,
        "garbage_bytes": compaction.garbage_bytes,
        "held_files": compaction.held_files,
        "no_room": compaction.no_space,
        "delayed": compaction.is_delayed,
    })
}

fn to_json(pruned: &Pruned, dry_run: bool) -> Value {
    let name = &pruned.name;
    let effective = |s: &Snapshot| {
        let corrected = pruned.corrected.iter().find(|(number, _)| *number == s.number);
        corrected.map_or(s.time, |(_, time)| *time)
    };
    let snapshots: Vec<Value> = pruned
        .decisions
        .iter()
        .map(|(s, keep)| {
            json!({
                "ref": format!("{name}@{}", s.number),
                "number": s.number,
                "id": s.id,
                "label": s.label,
                "time": s.time.to_string(),
                "effective_time": effective(s).to_string(),
                "kept": !keep.is_empty(),
                "reasons": keep,
            })
        })
        .collect();
    let kept = pruned.decisions.iter().filter(|(_, keep)| !keep.is_empty()).count();
    let mut value = json!({
        "name": name,
        "dry_run": dry_run,
        "clock_in_doubt": pruned.clock_in_doubt,
        "kept": kept,
        "dropped": if pruned.requested.is_some() { 0 } else { pruned.decisions.len() - kept },
        "snapshots": snapshots,
        "requested": pruned.requested,
    });
    if let (Some(object), Value::Object(more)) =
        (value.as_object_mut(), compaction_json(&pruned.compaction))
    {
        object.extend(more);
    }
    value
}

fn describe(pruned: &Pruned, dry_run: bool) -> Page {
    let kept = pruned.decisions.iter().filter(|(_, keep)| !keep.is_empty()).count() as u64;
    let dropped = pruned.decisions.len() as u64 - kept;
    if let Some(request) = pruned.requested {
        let dropped = output::plural(dropped, "snapshot");
        return Page::new(output::asked(&format!("drop {dropped} of {}", pruned.name), request));
    }
    let would = if dry_run { "  (dry run: nothing was changed)" } else { "" };
    let mut page = Page::new(format!(
        "{}  {} kept, {} dropped{would}",
        pruned.name,
        output::plural(kept, "snapshot"),
        output::count(dropped)
    ));
    if dry_run && !pruned.decisions.is_empty() {
        let row = |(s, keep): &(Snapshot, Vec<String>)| {
            let fate = if keep.is_empty() { "drop" } else { "keep" };
            let label = s.label.clone().unwrap_or_default();
            vec![s.number.to_string(), output::time(s.time), fate.into(), keep.join(", "), label]
        };
        let rows: Vec<Vec<String>> = pruned.decisions.iter().map(row).collect();
        let headings = [">#", "TIME", "FATE", "BECAUSE", "LABEL"];
        page = page.table(Table::new(&headings, &rows).leaving_out(&["TIME"]));
    }
    let named = if dry_run { Vec::new() } else { dropped_lines(pruned) };
    let lines = named.into_iter().chain(lines(&pruned.compaction, dry_run));
    lines.fold(page, |page, line| page.text(format!("  {line}")))
}

/// So many of those without a label are named.
const MOST_NAMED: usize = 12;

/// What rules dropped: first what has a label, one by one.
fn dropped_lines(pruned: &Pruned) -> Vec<String> {
    let labelled = dropped_with_labels(pruned);
    let mut lines: Vec<String> = labelled
        .map(|(s, label)| format!("dropped  {}@{}  {label}", pruned.name, s.number))
        .collect();
    let others = dropped(pruned).filter(|s| s.label.is_none());
    let others: Vec<String> = others.map(|s| format!("{}@{}", pruned.name, s.number)).collect();
    let named = others.iter().take(MOST_NAMED).cloned().collect::<Vec<String>>().join(", ");
    match others.len().saturating_sub(MOST_NAMED) as u64 {
        _ if others.is_empty() => {}
        0 => lines.push(format!("dropped  {named}")),
        more => lines.push(format!("dropped  {named} and {} more", output::count(more))),
    }
    lines
}

/// Snapshots that rules dropped, or would.
pub fn dropped(pruned: &Pruned) -> impl Iterator<Item = &Snapshot> {
    // Those that the owner was asked to drop are there.
    let dropped = pruned.decisions.iter().filter(|_| pruned.requested.is_none());
    dropped.filter(|(_, keep)| keep.is_empty()).map(|(s, _)| s)
}

/// Those of them that have a label.
pub fn dropped_with_labels(pruned: &Pruned) -> impl Iterator<Item = (&Snapshot, &str)> {
    dropped(pruned).filter_map(|s| s.label.as_deref().map(|label| (s, label)))
}

/// What became of the space, or would.
fn lines(compaction: &Compaction, dry_run: bool) -> Vec<String> {
    let mut lines = Vec::new();
    let about = if dry_run { "about " } else { "" };
    if compaction.removed_files > 0 {
        let files = output::plural(compaction.removed_files, "file");
        lines.push(format!("removed  {files}, {}", output::bytes(compaction.removed_bytes)));
    }
    if !compaction.merged.is_empty() {
        let files: u64 = compaction.merged.iter().map(|m| m.absorbed.len() as u64 + 1).sum();
        let before: u64 = compaction.merged.iter().map(|m| m.before_bytes).sum();
        let after: u64 = compaction.merged.iter().map(|m| m.after_bytes).sum();
        let kept: u64 = compaction.merged.iter().map(|m| m.kept_bytes).sum();
        let kept = match kept {
            0 => String::new(),
            bytes => format!("; {} in parts kept as they are", output::bytes(bytes)),
        };
        lines.push(format!(
            "merged   {} into {}, {} into {about}{}{kept}",
            output::plural(files, "file"),
            output::count(compaction.merged.len() as u64),
            output::bytes(before),
            output::bytes(after)
        ));
    }
    if compaction.freed_bytes > 0 {
        lines.push(format!("freed    {about}{}", output::bytes(compaction.freed_bytes)));
    }
    if compaction.to_free_bytes > 0 {
        lines.push(format!("to free  {}", to_free(compaction)));
    }
    if compaction.held_files > 0 {
        let garbage = match compaction.garbage_bytes {
            0 => String::new(),
            bytes => format!("; --compact frees about {}", output::bytes(bytes)),
        };
        let files = output::plural(compaction.held_files, "file");
        lines.push(format!("held     {files} of dropped snapshots that others depend on{garbage}"));
    }
    lines
}

/// What is freed later, and when.
fn to_free(compaction: &Compaction) -> String {
    let bytes = compaction.to_free_bytes;
    match compaction.grace_seconds {
        Some(grace) => freed_later(bytes, grace),
        None => format!("{}, when current readers have finished", output::bytes(bytes)),
    }
}

/// Bytes that are freed when no host can be reading them any more.
pub fn freed_later(bytes: u64, grace_seconds: u64) -> String {
    let days = grace_seconds.div_ceil(24 * 3600);
    let bytes = output::bytes(bytes);
    format!(
        "{bytes}, by a prune after {} (other hosts may still read it)",
        output::plural(days, "day")
    )
}

pub fn delete(
    repository: &Repository,
    references: &[Reference],
    alone: bool,
    compact: bool,
    printer: &Printer,
    context: &Context,
) -> Result<ExitCode> {
    // What is meant is what was meant before any of them went: @latest, or so many before it.
    let find = |of: &Reference| {
        let id = repository.read(&of.name, context)?.find(&of.at)?.id;
        Ok((of.name.clone(), At::Id(id)))
    };
    if let [one] = references {
        let deleted = delete_one(repository, (&one.name, &one.at), (alone, compact), context)?;
        deleted.iter().try_for_each(|deleted| say_deleted(deleted, printer))?;
        return Ok(exit::DONE);
    }
    let meant = references.iter().map(find).collect::<Result<Vec<(String, At)>>>()?;
    let mut failed = None;
    for (name, at) in meant {
        match delete_one(repository, (&name, &at), (alone, compact), context) {
            Ok(deleted) => deleted.iter().try_for_each(|deleted| say_deleted(deleted, printer))?,
            Err(e) if e.kind() == ErrorKind::Interrupted => return Err(e),
            // It went with its group.
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => {
                failed.get_or_insert(e.kind());
                printer.error(&e);
            }
        }
    }
    Ok(failed.map_or(exit::DONE, exit::code))
}

/// A snapshot, with its group unless it is meant alone.
fn delete_one(
    repository: &Repository,
    (name, at): (&str, &At),
    (alone, compact): (bool, bool),
    context: &Context,
) -> Result<Vec<Deleted>> {
    match alone {
        true => repository.delete(name, at, compact, context).map(|deleted| vec![deleted]),
        false => repository.delete_group(name, at, compact, context),
    }
}

pub fn say_deleted(deleted: &Deleted, printer: &Printer) -> Result<()> {
    let Deleted { name, snapshot, compaction, requested, .. } = deleted;
    if let (Some(request), false) = (requested, printer.is_json()) {
        return printer.line(&output::asked(&format!("drop {name}@{}", snapshot.number), *request));
    }
    warn_of_free_space(compaction, printer);
    if printer.is_json() {
        let mut value = json!({
            "name": name,
            "number": snapshot.number,
            "ref": format!("{name}@{}", snapshot.number),
            "requested": requested,
        });
        if let (Some(object), Value::Object(more)) =
            (value.as_object_mut(), compaction_json(compaction))
        {
            object.extend(more);
        }
        return printer.json(&value);
    }
    let freed = format!("{} freed", output::bytes(compaction.freed_bytes));
    let what = match (compaction.freed_bytes, compaction.to_free_bytes) {
        (_, 0) => freed,
        (0, _) => format!("to free {}", to_free(compaction)),
        _ => format!("{freed}, to free {}", to_free(compaction)),
    };
    printer.line(&format!("deleted {name}@{}: {what}", snapshot.number))?;
    if compaction.held_files > 0 {
        lines(compaction, false)
            .iter()
            .filter(|line| line.starts_with("held"))
            .try_for_each(|line| printer.line(&format!("  {line}")))?;
    }
    Ok(())
}

pub fn flatten(
    repository: &Repository,
    reference: &Reference,
    printer: &Printer,
    context: &Context,
) -> Result<ExitCode> {
    let name = &reference.name;
    let done = repository.flatten(name, &reference.at, context)?;
    let (before, after) = (&done.before, &done.after);
    if printer.is_json() {
        let mut value = list::snapshot_json(name, after, None);
        if let Some(object) = value.as_object_mut() {
            object.insert("freed_bytes".into(), done.freed_bytes.into());
        }
        printer.json(&value)?;
    } else if before == after {
        printer.line(&format!("{name}@{} is already a base", after.number))?;
    } else {
        let (now, freed) = (after.file_bytes, done.freed_bytes);
        let change = match now.checked_sub(freed) {
            Some(more) => format!("{} more", output::bytes(more)),
            None => format!("{} less", output::bytes(freed.saturating_sub(now))),
        };
        printer.line(&format!(
            "{name}@{} is now a base  {} in its file; the repository uses {change}",
            after.number,
            output::bytes(now)
        ))?;
    }
    Ok(exit::DONE)
}
