//! `imgsnap init`

use super::args::Init;
use super::printer::Printer;
use super::repo::Where;
use super::{exit, repo};
use imgsnap::base::error::Result;
use imgsnap::{Defaults, Repository};
use serde_json::json;
use std::process::ExitCode;

pub fn run(place: &Where, verb: &Init, printer: &Printer) -> Result<ExitCode> {
    if verb.accept {
        let repository = repo::accept(place)?;
        let what = format!(
            "this host now also uses the repository {} in {}",
            repository.id(),
            repository.location()
        );
        return tell(&repository, &what, printer);
    }
    let usual = Defaults::default();
    let defaults = Defaults {
        block_size: verb.block_size.unwrap_or(usual.block_size),
        digest: verb.digest.unwrap_or(usual.digest),
        compression: verb.compression.unwrap_or(usual.compression),
        part_size: verb.part_size.unwrap_or(usual.part_size),
    };
    let repository = match verb.single_writer {
        true => repo::create_single(place, defaults)?,
        false => repo::create(place, defaults)?,
    };
    let kind = if repository.is_sealed() { "an encrypted repository" } else { "a repository" };
    let what = format!("created {kind} in {} ({defaults})", repository.location());
    tell(&repository, &what, printer)
}

fn tell(repository: &Repository, what: &str, printer: &Printer) -> Result<ExitCode> {
    // What it is used with is told by whoever takes a base.
    let defaults = repository.defaults().ok();
    if printer.is_json() {
        printer.json(&json!({
            "repository": repository.location(),
            "id": repository.id(),
            "block_bytes": defaults.map(|d| d.block_size.bytes()),
            "digest": defaults.map(|d| d.digest.to_string()),
            "compression": defaults.map(|d| d.compression.to_string()),
            "part_bytes": defaults.map(|d| d.part_size.bytes()),
        }))?;
    } else {
        printer.line(what)?;
    }
    Ok(exit::DONE)
}
