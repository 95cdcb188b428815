//! `imgsnap snapshot`

use super::args::Snapshot as Verb;
use super::printer::Printer;
use super::{exit, list, output, usage};
use imgsnap::error::Result;
use imgsnap::progress::Context;
use imgsnap::repository::{
    At, Outcome, ParentChoice, Reference, Repository, SnapshotOutcome, SnapshotRequest, name_of,
};
use std::process::ExitCode;

pub fn run(
    repository: &Repository,
    verb: &Verb,
    printer: &Printer,
    context: &Context,
) -> Result<ExitCode> {
    let parent = match &verb.parent {
        Some(text) => ParentChoice::Of(parent_of(text, verb)?),
        None if verb.full => ParentChoice::Full,
        None if verb.differential => ParentChoice::Differential,
        None => ParentChoice::Incremental,
    };
    let request = SnapshotRequest {
        image: verb.image.clone(),
        name: verb.name.clone(),
        label: verb.label.clone(),
        parent,
        full_scan: verb.full_scan,
        skip_unchanged: verb.skip_unchanged,
        compression: verb.compression,
        dry_run: verb.dry_run,
    };
    let taken = repository.snapshot(&request, context)?;
    if printer.is_json() {
        let mut value = list::snapshot_json(&taken.name, &taken.snapshot, taken.parent_number);
        if let Some(object) = value.as_object_mut() {
            object.insert("dry_run".into(), (taken.outcome == Outcome::DryRun).into());
            object.insert("skipped".into(), (taken.outcome == Outcome::Skipped).into());
            object.insert("believed".into(), taken.believed.into());
        }
        printer.json(&value)?;
    } else {
        printer.line(&describe(&taken))?;
    }
    Ok(exit::DONE)
}

/// `NAME@WHICH`, or `@WHICH`: of the image itself, in either case.
fn parent_of(text: &str, verb: &Verb) -> Result<At> {
    if let Some(at) = text.strip_prefix('@') {
        return at.parse();
    }
    let reference: Reference = text.parse()?;
    let name = verb.name.clone().map_or_else(|| name_of(&verb.image), Ok)?;
    if reference.name != name {
        return Err(usage(format!("{text} is a snapshot of another image")));
    }
    Ok(reference.at)
}

fn describe(taken: &SnapshotOutcome) -> String {
    let s = &taken.snapshot;
    let name = format!("{}@{}", taken.name, s.number);
    if taken.outcome == Outcome::Skipped {
        return format!("{name} is what the image still is; no snapshot was made");
    }
    let what = match taken.parent_number {
        None => "a base".to_owned(),
        Some(number) => format!("changes since {}@{number}", taken.name),
    };
    let label = s.label.as_ref().map_or(String::new(), |label| format!("  \"{label}\""));
    let would =
        if taken.outcome == Outcome::DryRun { "  (dry run: nothing was stored)" } else { "" };
    let seconds = s.seconds.unwrap_or(0.0);
    let took = output::duration(seconds);
    let read = match s.read_bytes.unwrap_or(0) {
        _ if taken.believed => format!(
            "not read: its file is unchanged since {}@{}",
            taken.name,
            taken.parent_number.unwrap_or(0)
        ),
        0 => format!("nothing to read in {took}"),
        read => format!("{} read, {took}, {}", output::bytes(read), output::rate(read, seconds)),
    };
    let blocks = output::plural(s.changed_blocks, "block");
    let rows = [
        ("image", output::bytes(s.image_bytes), read),
        (
            "changed",
            output::bytes(s.changed_bytes),
            format!(
                "{blocks} of {}, {}",
                output::bytes(s.block_bytes.into()),
                output::percent(s.changed_bytes, s.image_bytes)
            ),
        ),
        (
            "stored",
            output::bytes(s.file_bytes),
            match s.changed_bytes {
                0 => String::new(),
                changed => format!("{} of what changed", output::percent(s.file_bytes, changed)),
            },
        ),
    ];
    let mut text = format!("{name}  {what}{label}{would}");
    for (noun, amount, rest) in rows {
        text.push_str(format!("\n  {noun:<8} {amount:>9}   {rest}").trim_end());
    }
    text
}
