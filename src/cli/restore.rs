//! `imgsnap restore`

use super::args::Restore;
use super::printer::Printer;
use super::{exit, output};
use imgsnap::base::error::Result;
use imgsnap::base::events::Context;
use imgsnap::base::uri::Shown;
use imgsnap::image::write::Stream;
use imgsnap::{Repository, RestoreRequest, RestoreTarget};
use serde_json::json;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

pub fn run(
    repository: &Repository,
    verb: &Restore,
    printer: &Printer,
    context: &Context,
) -> Result<ExitCode> {
    let begun = Instant::now();
    let request = RestoreRequest::new(verb.reference.name.clone())
        .at(verb.reference.at.clone())
        .range(verb.range)
        .force(verb.force)
        .accept_unread(verb.accept_unread);
    let to_stdout = verb.output == Path::new("-");
    let outcome = if to_stdout {
        output::refuse_terminal("an image")?;
        let mut target = Stream::new(std::io::stdout().lock(), "stdout");
        repository.restore(&request, RestoreTarget::Target(&mut target), context)?
    } else {
        repository.restore(&request, RestoreTarget::Path(&verb.output), context)?
    };
    if outcome.untouched_bytes > 0 {
        let (place, rest) = (verb.output.shown(), output::bytes(outcome.untouched_bytes));
        printer.say(&format!("{place} is larger: its last {rest} were not touched"));
    }
    let (snapshot, restored) = (&outcome.snapshot, outcome.restored);
    let name = format!("{}@{}", request.name, snapshot.number);
    let seconds = begun.elapsed().as_secs_f64();
    let proof = match restored.proved {
        true => "each block and the image digest checked",
        false => "each block checked",
    };
    let line = format!(
        "{name} -> {}  {} ({} data) in {}, {}; {proof}",
        output::shown(&verb.output),
        output::bytes(restored.bytes),
        output::bytes(restored.data_bytes),
        output::duration(seconds),
        output::rate(restored.data_bytes, seconds),
    );
    if to_stdout {
        // Stdout is the image.
        printer.say(&line);
    } else if printer.is_json() {
        printer.json(&json!({
            "name": request.name,
            "number": snapshot.number,
            "ref": name,
            "output": output::path(&verb.output),
            "image_bytes": snapshot.image_bytes,
            "restored_bytes": restored.bytes,
            "data_bytes": restored.data_bytes,
            "proved": restored.proved,
            "unread": output::ranges_json(&outcome.unread, snapshot.geometry()?),
            "seconds": seconds,
        }))?;
    } else {
        printer.line(&line)?;
    }
    Ok(exit::DONE)
}
