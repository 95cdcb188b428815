//! `imgsnap stats`

use super::page::{Page, Table};
use super::printer::Printer;
use super::{exit, list, output, repo};
use imgsnap::base::error::{ErrorKind, Result};
use imgsnap::base::events::Context;
use imgsnap::repo::manifest::Snapshot;
use imgsnap::{CloneUse, Repository, Stats};
use serde_json::{Value, json};
use std::process::ExitCode;

/// Days, and regions, that are shown; JSON has all.
const MAX_DAYS: usize = 14;
const MAX_REGIONS: usize = 5;

pub fn run(
    repository: &Repository,
    name: Option<&str>,
    printer: &Printer,
    context: &Context,
) -> Result<ExitCode> {
    let names = repo::names(repository, name)?;
    let (mut all, mut failed) = (Vec::new(), None);
    let is_all = name.is_none();
    for name in &names {
        match repository.stats(name, context) {
            Ok(stats) => {
                list::warn_of_clones(name, &stats.clones, printer);
                all.push(stats);
            }
            // It has just been removed.
            Err(e) if is_all && e.kind() == ErrorKind::NotFound => {}
            // One damaged image does not hide the others.
            Err(e) if names.len() > 1 && e.kind() != ErrorKind::Interrupted => {
                failed.get_or_insert(e.kind());
                printer.error(&e);
            }
            Err(e) => return Err(e),
        }
    }
    if printer.is_json() {
        all.iter().try_for_each(|stats| printer.json(&to_json(stats)))?;
    } else if let (Some(_), [stats]) = (name, all.as_slice()) {
        printer.page(&describe(stats))?;
    } else if names.is_empty() {
        printer.line(&format!("no images in {} yet", repository.location()))?;
    } else {
        printer.page(&overview(&all))?;
    }
    Ok(failed.map_or(exit::DONE, exit::code))
}

fn to_json(stats: &Stats) -> Value {
    let name = &stats.manifest.name;
    let snapshots: Vec<Value> = stats
        .costs
        .iter()
        .map(|cost| {
            let s = &cost.snapshot;
            json!({
                "ref": format!("{name}@{}", s.number),
                "number": s.number,
                "time": s.time.to_string(),
                "label": s.label,
                "changed_bytes": s.changed_bytes,
                "stored_bytes": s.file_bytes,
                "frees_bytes": cost.frees_bytes,
            })
        })
        .collect();
    let days: Vec<Value> = stats
        .days
        .iter()
        .map(|day| {
            json!({
                "date": day.date.to_string(),
                "snapshots": day.snapshots,
                "changed_bytes": day.changed_bytes,
                "stored_bytes": day.stored_bytes,
            })
        })
        .collect();
    json!({
        "name": name,
        "snapshots": snapshots,
        "stored_bytes": stats.stored_bytes(),
        "dropped_files": stats.manifest.dropped.len(),
        "dropped_bytes": stats.dropped_bytes,
        "garbage_bytes": stats.garbage_bytes,
        "condemned_bytes": stats.condemned_bytes,
        "raw_bytes": stats.raw_bytes(),
        "frame_bytes": stats.frame_bytes(),
        "days": days,
        "cell_bytes": stats.cell_bytes,
        "heat": stats.heat,
        "clone_bytes": stats.clones.reference.as_ref().map_or(0, |clone| clone.own_bytes),
        "orphaned_clones": stats.clones.orphans.iter().map(clone_json).collect::<Vec<_>>(),
        "foreign_clones": stats.clones.foreign.iter().map(clone_json).collect::<Vec<_>>(),
    })
}

fn clone_json(clone: &CloneUse) -> Value {
    json!({"path": output::path(&clone.path), "bytes": clone.own_bytes})
}

fn overview(all: &[Stats]) -> Page {
    let row = |stats: &Stats| {
        let latest = stats.manifest.latest();
        vec![
            stats.manifest.name.clone(),
            output::count(stats.manifest.snapshots.len() as u64),
            latest.map_or("-".into(), |s| output::bytes(s.image_bytes)),
            output::bytes(stats.stored_bytes()),
            output::percent(stats.frame_bytes(), stats.raw_bytes()),
            output::bytes(stats.dropped_bytes),
            output::bytes(stats.garbage_bytes),
            latest.map_or("-".into(), |s| output::age(s.time)),
        ]
    };
    let rows: Vec<Vec<String>> = all.iter().map(row).collect();
    let headings = [
        "NAME",
        ">SNAPSHOTS",
        ">IMAGE",
        ">STORED",
        ">COMPRESSED",
        ">DROPPED",
        ">GARBAGE",
        "NEWEST",
    ];
    let stored: u64 = all.iter().map(Stats::stored_bytes).sum();
    let title =
        format!("{}, {} stored", output::plural(all.len() as u64, "image"), output::bytes(stored));
    let least = &["DROPPED", "COMPRESSED", "GARBAGE", "IMAGE", "NEWEST", "SNAPSHOTS"];
    Page::new(title).table(Table::new(&headings, &rows).leaving_out(least))
}

fn describe(stats: &Stats) -> Page {
    let manifest = &stats.manifest;
    // Sparse images may be longer together than any disk.
    let images = manifest.snapshots.iter().map(|s| s.image_bytes).fold(0, u64::saturating_add);
    let title = format!(
        "{}  {}, {} stored for {} of images",
        manifest.name,
        output::plural(manifest.snapshots.len() as u64, "snapshot"),
        output::bytes(stats.stored_bytes()),
        output::bytes(images)
    );
    let compressed = format!(
        "{} into {} ({})",
        output::bytes(stats.raw_bytes()),
        output::bytes(stats.frame_bytes()),
        output::percent(stats.frame_bytes(), stats.raw_bytes())
    );
    let dropped = match manifest.dropped.len() as u64 {
        0 => "none".to_owned(),
        files => format!(
            "{}, {}, that others depend on",
            output::plural(files, "snapshot"),
            output::bytes(stats.dropped_bytes)
        ),
    };
    let garbage = format!("about {}, not freed yet", output::bytes(stats.garbage_bytes));
    let clone = stats.clones.reference.as_ref().map_or("none".to_owned(), list::clone_text);
    let foreign = &stats.clones.foreign;
    let bytes = foreign.iter().map(|clone| clone.own_bytes).sum();
    let count = output::plural(foreign.len() as u64, "clone");
    let others = format!("{count} of other repositories beside it, {}", output::bytes(bytes));
    let mut rows = vec![
        ("compressed", compressed),
        ("dropped", dropped),
        ("garbage", garbage),
        ("clone", clone),
    ];
    let condemned =
        format!("{} of dropped files that may still be read", output::bytes(stats.condemned_bytes));
    rows.extend((stats.condemned_bytes > 0).then_some(("to free", condemned)));
    rows.extend((!foreign.is_empty()).then_some(("others", others)));
    let page = Page::new(title).rows(&rows);
    if manifest.snapshots.is_empty() {
        return page;
    }
    let page = page.text("\nsnapshots, and the space that dropping each would free");
    let page = page.table(snapshots(stats)).text("\ngrowth by day");
    let page = days(page, stats);
    match stats.heat.iter().any(|bytes| *bytes > 0) {
        true => regions(page.text("\nwhere the image changes"), stats),
        false => page,
    }
}

fn snapshots(stats: &Stats) -> Table {
    let row = |cost: &imgsnap::Cost| {
        let s = &cost.snapshot;
        vec![
            s.number.to_string(),
            output::time(s.time),
            output::bytes(s.changed_bytes),
            output::bytes(s.file_bytes),
            output::bytes(cost.frees_bytes),
            notes_of(s),
        ]
    };
    let rows: Vec<Vec<String>> = stats.costs.iter().map(row).collect();
    let headings = [">#", "TIME", ">CHANGED", ">STORED", ">FREES", "LABEL"];
    Table::new(&headings, &rows).leaving_out(&["CHANGED", "STORED", "TIME"])
}

/// Its label, and on what it depends in other images.
fn notes_of(s: &Snapshot) -> String {
    let below = s.base_of.as_ref().map(|of| format!("(depends on {})", of.place()));
    let notes: Vec<String> = s.label.iter().cloned().chain(below).collect();
    notes.join(" ")
}

fn days(page: Page, stats: &Stats) -> Page {
    let row = |day: &imgsnap::Day| {
        vec![
            day.date.to_string(),
            output::count(day.snapshots),
            output::bytes(day.changed_bytes),
            output::bytes(day.stored_bytes),
        ]
    };
    let skipped = stats.days.len().saturating_sub(MAX_DAYS);
    let rows: Vec<Vec<String>> = stats.days.iter().skip(skipped).map(row).collect();
    let table = Table::new(&["DAY", ">SNAPSHOTS", ">CHANGED", ">STORED"], &rows);
    let page = page.table(table.leaving_out(&["SNAPSHOTS"]));
    match skipped {
        0 => page,
        days => page.text(format!("  ({} before: see --json)", output::plural(days as u64, "day"))),
    }
}

fn regions(page: Page, stats: &Stats) -> Page {
    let most = stats.heat.iter().max().copied().unwrap_or(0).max(1);
    let shares: Vec<f64> = stats.heat.iter().map(|bytes| *bytes as f64 / most as f64).collect();
    let mut hottest: Vec<(u64, u64)> =
        (0..).zip(&stats.heat).map(|(index, bytes)| (*bytes, index)).collect();
    hottest.sort_by_key(|(bytes, index)| (std::cmp::Reverse(*bytes), *index));
    let total = stats.heat.iter().copied().fold(0, u64::saturating_add);
    let rows: Vec<Vec<String>> = hottest
        .iter()
        .take(MAX_REGIONS)
        .filter(|(bytes, _)| *bytes > 0)
        .map(|(bytes, index)| {
            vec![
                output::bytes(index * stats.cell_bytes),
                output::bytes(*bytes),
                output::percent(*bytes, total),
            ]
        })
        .collect();
    page.text(format!("  map        one character per {}", output::bytes(stats.cell_bytes)))
        .map(shares)
        .text("  most changed:")
        .table(Table::new(&[">AT", ">CHANGED", ">OF ALL"], &rows))
}
