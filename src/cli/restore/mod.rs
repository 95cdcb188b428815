//! `imgsnap restore`

pub mod args;

use super::page::Page;
use super::printer::Printer;
use super::{exit, output};
use args::Restore;
use imgsnap::At;
use imgsnap::base::error::{Error, ErrorKind, Result};
use imgsnap::base::events::Context;
use imgsnap::base::uri::Shown;
use imgsnap::image::ImageUri;
use imgsnap::image::write::{NewObject, Stream};
use imgsnap::{
    Member, Members, Repository, RestoreOutcome, RestoreRequest, RestoreTarget, UpdateOutcome,
};
use serde_json::{Value, json};
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
        .accept_unread(verb.accept_unread)
        .update(verb.update)
        .trust_target(verb.trust_target)
        .seed(verb.seed.clone())
        .format(verb.format)
        .cluster_compression(verb.compress)
        .backing_ok(verb.backing_ok)
        .at_least(verb.at_least);
    let to_stdout = verb.output == Path::new("-");
    let outcome = if to_stdout {
        output::refuse_terminal("an image")?;
        let mut target = Stream::new(std::io::stdout().lock(), "stdout");
        repository.restore(&request, RestoreTarget::Target(&mut target), context)?
    } else {
        match ImageUri::parse(&verb.output)? {
            ImageUri::Nbd(uri) => {
                repository.restore(&request, RestoreTarget::Nbd(&uri), context)?
            }
            ImageUri::File(path) if is_folder(verb, &path) => {
                return into_folder(repository, &request, verb, &path, printer, context);
            }
            ImageUri::File(path) => {
                repository.restore(&request, RestoreTarget::Path(&path), context)?
            }
            ImageUri::Remote(url) => {
                let mut target = NewObject::create(&url, context.transfer(), verb.force)?;
                repository.restore(&request, RestoreTarget::Target(&mut target), context)?
            }
            other => {
                let what = format!("cannot write to {other}");
                return Err(Error::new(ErrorKind::Unsupported, what));
            }
        }
    };
    note_others(&request, verb, &outcome, printer);
    warn_of_rollback(&request, &outcome, printer);
    if outcome.untouched_bytes > 0 {
        let (place, rest) = (verb.output.shown(), output::bytes(outcome.untouched_bytes));
        printer.say(&format!("{place} is larger than the image: its last {rest} were not changed"));
    }
    let name = format!("{}@{}", request.name, outcome.snapshot.number);
    let seconds = begun.elapsed().as_secs_f64();
    let line = || describe(&name, &verb.output, verb, &outcome, seconds);
    if to_stdout {
        // Stdout is the image.
        printer.say(&line());
    } else if printer.is_json() {
        printer.json(&json(&request.name, &verb.output, &outcome, seconds)?)?;
    } else if let Some(update) = &outcome.update {
        printer.page(&describe_update(&name, verb, &outcome, update, seconds))?;
    } else {
        printer.line(&line())?;
    }
    Ok(exit::DONE)
}

/// True if each image is to be a file of its own there.
fn is_folder(verb: &Restore, path: &Path) -> bool {
    verb.output.as_os_str().as_encoded_bytes().ends_with(b"/") || path.is_dir()
}

/// All of a group.
fn into_folder(
    repository: &Repository,
    request: &RestoreRequest,
    verb: &Restore,
    folder: &Path,
    printer: &Printer,
    context: &Context,
) -> Result<ExitCode> {
    let begun = Instant::now();
    let done = repository.restore_group(request, folder, context)?;
    if let Some(missing) = done.group.as_ref().and_then(Members::missing) {
        printer.warn(&format!("the group is incomplete: {missing}"));
    }
    let seconds = begun.elapsed().as_secs_f64();
    for member in &done.members {
        let (name, path, outcome) = (&member.name, &member.path, &member.outcome);
        if *name == request.name {
            warn_of_rollback(request, outcome, printer);
        }
        if printer.is_json() {
            printer.json(&json(name, path, outcome, seconds)?)?;
        } else {
            let place = format!("{name}@{}", outcome.snapshot.number);
            printer.line(&describe(&place, path, verb, outcome, seconds))?;
        }
    }
    Ok(exit::DONE)
}

/// The newest snapshot may be what somebody wanted to leave.
fn warn_of_rollback(request: &RestoreRequest, outcome: &RestoreOutcome, printer: &Printer) {
    let is_exact = matches!(request.at, At::Number(_) | At::Id(_) | At::Label(_) | At::Head);
    if outcome.snapshot.before_rollback.is_some() && !is_exact {
        let (name, number) = (&request.name, outcome.snapshot.number);
        printer.warn(&format!(
            "{name}@{number} was saved before a rollback; \"imgsnap list {name}\" shows the others"
        ));
    }
}

/// A file of one disk is not all of a machine.
fn note_others(
    request: &RestoreRequest,
    verb: &Restore,
    outcome: &RestoreOutcome,
    printer: &Printer,
) {
    let Some(group) = &outcome.group else { return };
    if verb.range.is_some() || verb.update {
        return;
    }
    let place = format!("{}@{}", request.name, outcome.snapshot.number);
    let is_other = |member: &&Member| member.snapshot != outcome.snapshot.id;
    let others = group.members.iter().filter(|member| member.number().is_some()).filter(is_other);
    let others: Vec<String> = others.map(Member::place).collect();
    if !others.is_empty() {
        printer.say(&format!(
            "{place} was taken with {}: \"imgsnap restore {place} -o DIR/\" restores all of them",
            others.join(", ")
        ));
    }
}

fn json(name: &str, path: &Path, outcome: &RestoreOutcome, seconds: f64) -> Result<Value> {
    let (snapshot, restored) = (&outcome.snapshot, outcome.restored);
    let mut json = json!({
        "name": name,
        "number": snapshot.number,
        "ref": format!("{name}@{}", snapshot.number),
        "output": output::path(path),
        "image_bytes": snapshot.image_bytes,
        "restored_bytes": restored.bytes,
        "data_bytes": restored.data_bytes,
        "seed_bytes": restored.seed_bytes,
        "proved": restored.proved,
        "unread": output::ranges_json(&outcome.unread, snapshot.geometry()?),
        "seconds": seconds,
    });
    if let (Some(update), Value::Object(json)) = (&outcome.update, &mut json) {
        json.extend([
            ("written_bytes".into(), update.written_bytes.into()),
            ("matched_bytes".into(), update.matched_bytes.into()),
            ("read_bytes".into(), update.read_bytes.into()),
            ("samples".into(), json!(update.samples)),
            ("trusted".into(), json!(update.trusted.map(|n| format!("{name}@{n}")))),
            ("not_trusted".into(), json!(update.not_trusted)),
        ]);
    }
    Ok(json)
}

fn describe(
    name: &str,
    path: &Path,
    verb: &Restore,
    outcome: &RestoreOutcome,
    seconds: f64,
) -> String {
    let restored = outcome.restored;
    let proof = match restored.proved {
        true => "each block and the image digest checked",
        false => "each block checked",
    };
    let from_seed = match &verb.seed {
        Some(seed) => {
            format!("; {} from {}", output::bytes(restored.seed_bytes), output::shown(seed))
        }
        None => String::new(),
    };
    format!(
        "{name} -> {}  {} ({} data) in {}, {}; {proof}{from_seed}",
        output::shown(path),
        output::bytes(restored.bytes),
        output::bytes(restored.data_bytes),
        output::duration(seconds),
        output::rate(restored.data_bytes, seconds),
    )
}

fn describe_update(
    name: &str,
    verb: &Restore,
    outcome: &RestoreOutcome,
    update: &UpdateOutcome,
    seconds: f64,
) -> Page {
    let (restored, bytes) = (outcome.restored, output::bytes);
    let place = output::shown(&verb.output);
    let read = match (update.trusted, &update.not_trusted) {
        (Some(number), _) => format!(
            "nothing: the file was still {}@{number}, as this host restored it",
            verb.reference.name
        ),
        (None, Some(why)) => format!("{} (not trusted: {why})", bytes(update.read_bytes)),
        (None, None) => bytes(update.read_bytes),
    };
    let proved = match restored.proved {
        true => "each block and the image digest",
        false => "what was written; the rest was not read back",
    };
    let took = output::duration(seconds);
    let mut rows = vec![
        ("written", bytes(update.written_bytes)),
        ("matched", bytes(update.matched_bytes)),
        ("read", read),
    ];
    if let Some(seed) = &verb.seed {
        let from = output::shown(seed);
        rows.push(("seed", format!("{} from {from}", bytes(restored.seed_bytes))));
    }
    rows.push(("verified", proved.to_owned()));
    Page::new(format!("{name} -> {place}  {} in {took}", bytes(restored.bytes))).rows(&rows)
}
