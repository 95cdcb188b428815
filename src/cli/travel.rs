//! `imgsnap export`, `import` and `apply`

use super::args::{Apply, Export, FirstUse};
use super::printer::Printer;
use super::repo::Where;
use super::{exit, list, output, repo};
use imgsnap::base::error::{Error, Result};
use imgsnap::base::events::Context;
use imgsnap::base::uri::Shown;
use imgsnap::delta::Caches;
use imgsnap::image::write::{NewFile, Stream, Target};
use imgsnap::ops::apply::engine::open_file;
use imgsnap::{
    Applied, ApplyRequest, ApplyTarget, ExportRequest, Imported, Reader, Repository, ops,
};
use serde_json::json;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

pub fn export(
    repository: &Repository,
    verb: &Export,
    printer: &Printer,
    context: &Context,
) -> Result<ExitCode> {
    let begun = Instant::now();
    let name = &verb.reference.name;
    let since = verb.since.as_ref().map(|text| repo::at_of(name, text)).transpose()?;
    // Before anything is made where it goes.
    let reader = repository.read(name, context)?;
    for at in [Some(&verb.reference.at), since.as_ref()].into_iter().flatten() {
        reader.find(at)?;
    }
    drop(reader);
    let request = ExportRequest::new(name.clone(), verb.reference.at.clone()).since(since);
    let is_stdout = verb.output == Path::new("-");
    let done = if is_stdout {
        output::refuse_terminal("a delta")?;
        let mut out = std::io::stdout().lock();
        let failed = |e| Error::io("cannot write to stdout", e);
        let write = &mut |bytes: &[u8]| out.write_all(bytes).map_err(failed);
        let done = repository.export(&request, context, write)?;
        out.flush().map_err(failed)?;
        done
    } else {
        repository.refuse_target(&verb.output)?;
        repository.refuse_live_file(&verb.output, context)?;
        // It appears whole or not at all.
        let mut target = NewFile::create(&verb.output, 0, verb.force)?;
        let mut offset = 0;
        let done = repository.export(&request, context, &mut |bytes| {
            target.write(offset, bytes)?;
            offset += bytes.len() as u64;
            target.advance_watermark(offset)
        })?;
        target.finish()?;
        done
    };
    let (snapshot, since, bytes) = (done.snapshot, done.since, done.file_bytes);
    let seconds = begun.elapsed().as_secs_f64();
    let against =
        since.as_ref().map_or("all of it".to_owned(), |s| format!("since {name}@{}", s.number));
    let line = format!(
        "{name}@{} ({against}) -> {}  {} in {}",
        snapshot.number,
        output::shown(&verb.output),
        output::bytes(bytes),
        output::duration(seconds)
    );
    if is_stdout {
        // Stdout is the delta.
        printer.say(&line);
    } else if printer.is_json() {
        printer.json(&json!({
            "name": name,
            "number": snapshot.number,
            "ref": format!("{name}@{}", snapshot.number),
            "since": since.map(|s| format!("{name}@{}", s.number)),
            "output": output::path(&verb.output),
            "stored_bytes": bytes,
            "image_digest": snapshot.image_digest.to_hex(),
            "seconds": seconds,
        }))?;
    } else {
        printer.line(&line)?;
    }
    Ok(exit::DONE)
}

pub fn import(
    place: &Where,
    files: &[PathBuf],
    name: Option<&str>,
    first_use: FirstUse,
    printer: &Printer,
    context: &Context,
) -> Result<ExitCode> {
    // Before a repository is made for files that are none.
    let files = in_order(files)?;
    let repository = repo::open_or_make(place, first_use, printer, context)?;
    repo::or_take_back(repository, printer, |repository| {
        import_all(repository, &files, name, printer, context)
    })
}

fn import_all(
    repository: &Repository,
    files: &[PathBuf],
    name: Option<&str>,
    printer: &Printer,
    context: &Context,
) -> Result<ExitCode> {
    for file in files {
        let begun = Instant::now();
        let imported = if file == Path::new("-") {
            repository.import(&mut std::io::stdin().lock(), "stdin", name, context)?
        } else {
            let failed = |e| Error::os("open", file.shown(), e);
            let mut input: Box<dyn Read> = Box::new(File::open(file).map_err(failed)?);
            repository.import(&mut input, &file.shown(), name, context)?
        };
        tell_import(repository, &imported, begun.elapsed().as_secs_f64(), printer, context)?;
    }
    Ok(exit::DONE)
}

fn tell_import(
    repository: &Repository,
    imported: &Imported,
    seconds: f64,
    printer: &Printer,
    context: &Context,
) -> Result<()> {
    let (name, snapshot) = (&imported.name, &imported.snapshot);
    if printer.is_json() {
        let reader: Reader = repository.read(name, context)?;
        let parent = reader.manifest().stored_parent_of(snapshot).map(|p| p.number);
        let mut value = list::snapshot_json(name, snapshot, parent);
        if let Some(object) = value.as_object_mut() {
            object.insert("imported".into(), imported.is_new.into());
            object.insert("seconds".into(), seconds.into());
        }
        return printer.json(&value);
    }
    if !imported.is_new {
        return printer.line(&format!("{name}@{} is already in the repository", snapshot.number));
    }
    let label = snapshot.label.as_ref().map_or(String::new(), |label| format!("  \"{label}\""));
    printer.line(&format!(
        "{name}@{}{label}  {} imported and verified in {}",
        snapshot.number,
        output::bytes(snapshot.file_bytes),
        output::duration(seconds)
    ))
}

/// The files from the oldest snapshot to the newest, so that a pattern of the shell will do.
fn in_order(files: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let caches = Caches::default();
    let mut numbered = Vec::new();
    for file in files {
        // A pipe can be read only once.
        let failed = |e| Error::os("open", file.shown(), e);
        let is_file = file != Path::new("-") && std::fs::metadata(file).map_err(failed)?.is_file();
        let number = match is_file {
            true => open_file(file, &caches)?.footer().number,
            false => 0,
        };
        numbered.push((number, file.clone()));
    }
    numbered.sort_by_key(|(number, _)| *number);
    Ok(numbered.into_iter().map(|(_, file)| file).collect())
}

pub fn apply(
    place: &Where,
    verb: &Apply,
    printer: &Printer,
    context: &Context,
) -> Result<ExitCode> {
    let begun = Instant::now();
    // It needs none, and writes into none.
    let repository = repo::open(place, context).ok();
    let deltas = verb.deltas.clone();
    let request = ApplyRequest::new(deltas).base(verb.base.clone()).force(verb.force);
    let run = |target| ops::apply::run(repository.as_ref(), &request, target, context);
    let (done, to) = match (&verb.output, &verb.base) {
        (None, Some(base)) => (run(ApplyTarget::InPlace)?, base),
        (None, None) => return Err(exit::usage("--in-place changes the image that --base names")),
        (Some(output), _) if output == Path::new("-") => {
            output::refuse_terminal("an image")?;
            let mut target = Stream::new(std::io::stdout().lock(), "stdout");
            (run(ApplyTarget::Target(&mut target))?, output)
        }
        (Some(output), _) => (run(ApplyTarget::Path(output))?, output),
    };
    tell_apply(verb, &done, to, begun.elapsed().as_secs_f64(), printer)
}

fn tell_apply(
    verb: &Apply,
    done: &Applied,
    to: &Path,
    seconds: f64,
    printer: &Printer,
) -> Result<ExitCode> {
    let line = format!(
        "{} -> {}  {} written in {}; the image of snapshot {}, image digest verified",
        output::plural(verb.deltas.len() as u64, "delta"),
        output::shown(to),
        output::bytes(done.written_bytes),
        output::duration(seconds),
        done.number
    );
    if to == Path::new("-") {
        // Stdout is the image.
        printer.say(&line);
    } else if printer.is_json() {
        printer.json(&json!({
            "number": done.number,
            "deltas": verb.deltas.iter().map(|delta| output::path(delta)).collect::<Vec<_>>(),
            "base": verb.base.as_deref().map(output::path),
            "output": output::path(to),
            "in_place": verb.in_place,
            "image_bytes": done.image_bytes,
            "image_digest": done.image_digest.to_hex(),
            "written_bytes": done.written_bytes,
            "seconds": seconds,
        }))?;
    } else {
        printer.line(&line)?;
    }
    Ok(exit::DONE)
}
