//! `imgsnap init`

use super::args::Init;
use super::printer::Printer;
use super::{exit, repo};
use imgsnap::Defaults;
use imgsnap::base::error::Result;
use serde_json::json;
use std::path::Path;
use std::process::ExitCode;

pub fn run(place: Option<&Path>, verb: &Init, printer: &Printer) -> Result<ExitCode> {
    let usual = Defaults::default();
    let defaults = Defaults {
        block_size: verb.block_size.unwrap_or(usual.block_size),
        digest: verb.digest.unwrap_or(usual.digest),
        compression: verb.compression.unwrap_or(usual.compression),
    };
    let repository = repo::create(place, defaults)?;
    if printer.is_json() {
        printer.json(&json!({
            "repository": repository.location(),
            "id": repository.id(),
            "block_bytes": defaults.block_size.bytes(),
            "digest": defaults.digest.to_string(),
            "compression": defaults.compression.to_string(),
        }))?;
    } else {
        printer.line(&format!("made a repository in {} ({defaults})", repository.location()))?;
    }
    Ok(exit::DONE)
}
