//! `imgsnap key`

pub mod args;
pub mod given;
mod owner;
mod terminal;
mod written;

use super::exit;
use super::printer::Printer;
use super::repo::{self, Where};
use args::Key;
use imgsnap::base::error::{Result, best_effort};
use imgsnap::base::events::Context;
use imgsnap::base::uri::Shown;
use imgsnap::{KeySlot, Repository};
use serde_json::json;
use std::path::Path;
use std::process::ExitCode;
use written::write_secret;

pub fn run(place: &Where, verb: &Key, printer: &Printer, context: &Context) -> Result<ExitCode> {
    let open = || repo::open_to_change(place, context);
    match verb {
        Key::List => list(&repo::open(place, context)?, printer)?,
        Key::Add { new } => {
            let repository = open()?;
            let slot = repository.add_key(&given::new(new)?)?;
            tell(&format!("added the key slot {slot}"), "added", &slot, printer)?;
        }
        Key::Change { new } => {
            let repository = open()?;
            let slot = repository.change_key(&given::new(new)?)?;
            let what = format!("the key slot {slot} replaces the one that was used");
            tell(&what, "added", &slot, printer)?;
        }
        Key::Remove { slot } => {
            let slot = open()?.remove_key(slot)?;
            tell(&format!("removed the key slot {slot}"), "removed", &slot, printer)?;
        }
        Key::Export { output } => export(&repo::open(place, context)?, output.as_deref(), printer)?,
        Key::Owner { verb } => return owner::run(place, verb.as_ref(), printer, context),
        Key::Import { recovery, new } => {
            let place = place.with_key_file(recovery);
            let slot = repo::open_to_change(&place, context)?.add_key(&given::new(new)?)?;
            tell(&format!("added the key slot {slot}"), "added", &slot, printer)?;
        }
    }
    if !matches!(verb, Key::List | Key::Export { .. } | Key::Import { .. }) {
        // So that this host has seen the configuration; a slot that was changed does not open it any more.
        best_effort(repo::open(place, context));
    }
    Ok(exit::DONE)
}

fn tell(what: &str, key: &str, slot: &impl ToString, printer: &Printer) -> Result<()> {
    match printer.is_json() {
        true => printer.json(&json!({ key: slot.to_string() })),
        false => printer.line(what),
    }
}

fn list(repository: &Repository, printer: &Printer) -> Result<()> {
    for slot in repository.key_slots()? {
        if printer.is_json() {
            printer.json(&json!(slot))?;
            continue;
        }
        let KeySlot { id, derivation, is_used, is_listed, .. } = &slot;
        let made_of = derivation.map_or_else(|| "missing, or damaged".into(), |d| d.to_string());
        let note = match (is_used, is_listed) {
            (true, _) => "  (in use)",
            (_, false) => "  (not listed, so it opens nothing)",
            _ => "",
        };
        printer.line(&format!("{id}  {made_of}{note}"))?;
    }
    Ok(())
}

fn export(repository: &Repository, output: Option<&Path>, printer: &Printer) -> Result<()> {
    let text = repository.recovery_text()?;
    let Some(path) = output else { return printer.bytes(text.as_bytes()) };
    write_secret(path, text.as_bytes())?;
    printer.line(&format!("wrote the recovery text to {}", path.shown()))
}
