//! `imgsnap verify`

use super::printer::Printer;
use super::{exit, output};
use imgsnap::error::Result;
use imgsnap::progress::Context;
use imgsnap::repository::{Reference, Repository, VerifyScope};
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
    let seconds = begun.elapsed().as_secs_f64();
    if printer.is_json() {
        let damaged: Vec<_> = verified
            .damaged
            .iter()
            .map(|d| json!({"snapshot": d.snapshot, "message": d.message, "affects": d.affects}))
            .collect();
        printer.json(&json!({
            "snapshots": verified.snapshots,
            "blocks": verified.blocks,
            "stored_bytes": verified.stored_bytes,
            "damaged": damaged,
            "quick": quick,
            "seconds": seconds,
        }))?;
    } else {
        for damage in &verified.damaged {
            printer.line(&format!("DAMAGED  {}", damage.message))?;
            if let [_, ..] = damage.affects.as_slice() {
                printer.line(&format!("         may affect {}", damage.affects.join(", ")))?;
            }
        }
        let depth = if quick {
            "stored bytes checked, not each block (leave out --quick for that)".to_owned()
        } else {
            format!("{} and every image digest checked", output::plural(verified.blocks, "block"))
        };
        let verdict = match verified.damaged.len() as u64 {
            0 => "sound".to_owned(),
            n => format!("{} FOUND", output::plural(n, "damage").to_uppercase()),
        };
        printer.line(&format!(
            "{}, {} stored: {verdict}; {depth} in {}",
            output::plural(verified.snapshots, "snapshot"),
            output::bytes(verified.stored_bytes),
            output::duration(seconds)
        ))?;
    }
    Ok(if verified.damaged.is_empty() { exit::DONE } else { exit::damaged() })
}
