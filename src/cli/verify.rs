//! `imgsnap verify`

use super::printer::Printer;
use super::{exit, output, words};
use imgsnap::base::error::{Error, ErrorKind, Result};
use imgsnap::base::events::Context;
use imgsnap::{Reference, Repository, Verified, VerifyScope};
use serde_json::json;
use std::process::ExitCode;
use std::time::Instant;

pub fn run(
    repository: &Repository,
    what: Option<&str>,
    quick: bool,
    printer: &Printer,
    context: &Context,
) -> Result<ExitCode> {
    let begun = Instant::now();
    let scope = match what {
        None => VerifyScope::All,
        Some(text) if text.contains('@') => {
            let reference: Reference = text.parse()?;
            VerifyScope::Snapshot(reference.name, reference.at)
        }
        Some(name) => VerifyScope::Image(name.into()),
    };
    let verified = repository.verify(&scope, quick, context)?;
    report(&verified, quick, begun.elapsed().as_secs_f64(), printer)
}

/// Tells what was found, and gives the exit code.
pub fn report(
    verified: &Verified,
    quick: bool,
    seconds: f64,
    printer: &Printer,
) -> Result<ExitCode> {
    if printer.is_json() {
        let damaged: Vec<_> = verified
            .damaged
            .iter()
            .map(|d| {
                json!({
                    "kind": d.kind.name(),
                    "snapshot": d.snapshot,
                    "message": words::message(&d.message),
                    "affects": d.affects,
                })
            })
            .collect();
        let unchecked: Vec<_> = verified
            .unchecked
            .iter()
            .map(|u| json!({"snapshot": u.snapshot, "message": words::message(&u.message)}))
            .collect();
        let lost: Vec<_> = verified
            .lost
            .iter()
            .map(|loss| {
                let blocks = loss.blocks.as_ref();
                json!({
                    "snapshot": loss.snapshot,
                    "all": blocks.is_none(),
                    "blocks": blocks.map(|blocks| blocks.count),
                    "ranges": blocks.map(|blocks| output::ranges_json(blocks, loss.geometry)),
                })
            })
            .collect();
        printer.json(&json!({
            "snapshots": verified.snapshots,
            "blocks": verified.blocks,
            "stored_bytes": verified.stored_bytes,
            "damaged": damaged,
            "unchecked": unchecked,
            "lost": (!quick).then_some(lost),
            "whole": verified.whole,
            "quick": quick,
            "seconds": seconds,
        }))?;
    } else {
        print_damage(verified, quick, printer)?;
        let depth = if quick {
            "checksums of stored bytes checked (omit --quick to check each block)".to_owned()
        } else {
            let blocks = output::plural(verified.blocks, "block");
            match verified.damaged.is_empty() && verified.unchecked.is_empty() {
                true => format!("{blocks} and every image digest checked"),
                false => format!("{blocks} checked"),
            }
        };
        let verdict = match (verified.damaged.len() as u64, verified.unchecked.len() as u64) {
            (0, 0) => "no damage found".to_owned(),
            (0, n) => format!("no damage found, but {} NOT CHECKED", output::count(n)),
            (n, 0) => format!("{} FOUND", output::plural(n, "damage").to_uppercase()),
            (n, more) => format!(
                "{} FOUND, and {} NOT CHECKED",
                output::plural(n, "damage").to_uppercase(),
                output::count(more)
            ),
        };
        printer.line(&format!(
            "{}, {} stored: {verdict}; {depth} in {}",
            output::plural(verified.snapshots, "snapshot"),
            output::bytes(verified.stored_bytes),
            output::duration(seconds)
        ))?;
    }
    match (verified.damaged.is_empty(), verified.unchecked.as_slice()) {
        (false, _) => Ok(exit::damaged()),
        (true, []) => Ok(exit::DONE),
        (true, [first, others @ ..]) => {
            let more = match others.len() as u64 {
                0 => String::new(),
                more => format!(" (and {} more)", output::count(more)),
            };
            let what = format!(
                "{}{more} could not be checked: {}",
                first.snapshot,
                words::message(&first.message)
            );
            Err(Error::new(ErrorKind::Io, what))
        }
    }
}

/// Findings of one file that are printed; JSON has all.
const MAX_PRINTED: usize = 20;

/// What is damaged; then what that means for whom, which is what counts.
fn print_damage(verified: &Verified, quick: bool, printer: &Printer) -> Result<()> {
    for of_file in verified.damaged.chunk_by(|a, b| a.snapshot == b.snapshot) {
        for damage in of_file.iter().take(MAX_PRINTED) {
            let what = words::message(&damage.message);
            let of = match what.starts_with(&damage.snapshot) {
                true => String::new(),
                false => format!("{}  ", damage.snapshot),
            };
            printer.line(&format!("DAMAGED  {of}{what}"))?;
        }
        let more = of_file.len().saturating_sub(MAX_PRINTED) as u64;
        if more > 0 {
            printer.line(&format!("         and {}", output::plural(more, "more place")))?;
        }
        let Some(damage) = of_file.first().filter(|d| quick && !d.affects.is_empty()) else {
            continue;
        };
        printer.line(&format!("         may affect {}", damage.affects.join(", ")))?;
    }
    for unchecked in verified.unchecked.iter().take(MAX_PRINTED) {
        let (snapshot, why) = (&unchecked.snapshot, words::message(&unchecked.message));
        printer.line(&format!("UNKNOWN  {snapshot}  could not be checked: {why}"))?;
    }
    let more = verified.unchecked.len().saturating_sub(MAX_PRINTED) as u64;
    if more > 0 {
        printer.line(&format!("         and {} more", output::count(more)))?;
    }
    for loss in &verified.lost {
        let what = match &loss.blocks {
            None => "nothing of it can be restored".into(),
            Some(blocks) => blocks.describe(loss.geometry),
        };
        printer.line(&format!("LOST     {}  {what}", loss.snapshot))?;
    }
    if !verified.whole.is_empty() {
        printer.line(&format!("intact   {}", verified.whole.join(", ")))?;
    }
    let names = verified.lost.iter().filter_map(|loss| loss.snapshot.split('@').next());
    let mut names: Vec<&str> = names.collect();
    names.dedup();
    for name in names {
        let how = format!("imgsnap repair {name} --from REPO|IMAGE");
        printer.line(&format!("to recover what is lost from elsewhere, run \"{how}\""))?;
    }
    Ok(())
}
