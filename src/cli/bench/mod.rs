//! `imgsnap bench`: arguments to a request, and what was found to text, JSON, Markdown and SVG. Each
//! exporter is a function of the report alone.

pub mod args;
mod cells;
mod export;
mod json;
mod markdown;
mod plot;
#[cfg(test)]
mod sample;
mod table;

use super::printer::Printer;
use super::{exit, output};
use args::Bench;
use export::Export;
use imgsnap::base::error::Result;
use imgsnap::base::events::Context;
use imgsnap::bench;
use std::process::ExitCode;

pub fn run(verb: &Bench, printer: &Printer, context: &Context) -> Result<ExitCode> {
    // Before minutes are spent.
    let markdown = verb.export_markdown.as_deref().map(Export::new).transpose()?;
    let plot = verb.plot.as_deref().map(Export::new).transpose()?;
    let report = bench::run(&verb.request(context.threads()), context)?;
    // A file that cannot be written after all, or a reader who went away, does not take the rest.
    let printed = if printer.is_json() {
        printer.json(&json::render(&report))
    } else {
        printer.page(&table::render(&report))
    };
    let exported = markdown.map_or(Ok(()), |file| file.write(&markdown::render(&report)));
    let drawn = plot.map_or(Ok(()), |file| file.write(&plot::render(&report)?));
    printed.and(exported).and(drawn)?;
    Ok(exit::DONE)
}
