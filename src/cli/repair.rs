//! `imgsnap repair`

use super::printer::Printer;
use super::repo::Where;
use super::{exit, output, repo, words};
use imgsnap::base::error::{ErrorKind, Result};
use imgsnap::base::events::Context;
use imgsnap::image::RawFile;
use imgsnap::repo::accepted::AcceptedState;
use imgsnap::store::{Location, locate};
use imgsnap::{ConfigOrigin, MendSource, Mended, MendedBy, Rebuilt, Repository, RestoredConfig};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

pub fn run(
    place: &Where,
    name: Option<&str>,
    from: &[PathBuf],
    printer: &Printer,
    context: &Context,
) -> Result<ExitCode> {
    let repository = &open(place, printer, context)?;
    let sources: Vec<MendSource> =
        from.iter().map(|path| source(place, path, context)).collect::<Result<_>>()?;
    let names = repo::names(repository, name)?;
    let (mut is_sound, mut failed) = (true, None);
    for each in &names {
        match of_image(repository, each, &sources, printer, context) {
            // It has just been removed.
            Err(e) if name.is_none() && e.kind() == ErrorKind::NotFound => {}
            // One that cannot be repaired now does not keep the others from it.
            Err(e) if names.len() > 1 && e.kind() != ErrorKind::Interrupted => {
                failed.get_or_insert(e.kind());
                printer.error(&e);
            }
            other => is_sound &= other?,
        }
    }
    Ok(match failed {
        Some(kind) => exit::code(kind),
        None if is_sound => exit::DONE,
        None => exit::damaged(),
    })
}

/// Opens it with its configuration, which is rebuilt if it is lost.
fn open(place: &Where, printer: &Printer, context: &Context) -> Result<Repository> {
    let store = place.store()?;
    // Nothing is changed in one that is not the one that is meant.
    match repo::open_to_change(place, context) {
        Ok(_) => {}
        Err(e) if e.is_damage() => {}
        Err(e) => return Err(e),
    }
    let Some(restored) = Repository::restore_config(&store)? else {
        return repo::open_to_change(place, context);
    };
    printer.warn(&tell_config(&restored));
    if store.sealing().is_some() {
        printer.warn(
            "it is no longer known which key slots had been removed: check \"imgsnap key list\", and remove \
             those that must not open the repository",
        );
    }
    // It is another one than this host has seen.
    let place = &place.accepting(AcceptedState::config(restored.number));
    // Its identity is lost, too.
    if restored.origin == ConfigOrigin::DeltaFiles {
        if let Err(e) = repo::accept(place) {
            printer.note(&words::error(&e));
        }
        return repo::open(place, context);
    }
    repo::open_to_change(place, context)
}

fn tell_config(restored: &RestoredConfig) -> String {
    let what = "the configuration was lost or damaged, and was rebuilt from";
    match restored.origin {
        ConfigOrigin::Earlier(number) => {
            format!("{what} configuration {number}; later changes are lost")
        }
        ConfigOrigin::OlderProgram => {
            format!("{what} repository.toml; later changes are lost")
        }
        _ => format!(
            "{what} the delta files ({}); its retention rules and other settings are lost",
            restored.defaults
        ),
    }
}

/// True if no damage is left.
fn of_image(
    repository: &Repository,
    name: &str,
    sources: &[MendSource],
    printer: &Printer,
    context: &Context,
) -> Result<bool> {
    let mut value = Map::from_iter([("name".into(), json!(name))]);
    if !sources.is_empty() {
        let brought = repository.fetch_missing(name, sources, context)?;
        for file in brought.iter().filter(|_| !printer.is_json()) {
            printer.line(&format!("{name}: recovered {file}"))?;
        }
        value.insert("brought_back".into(), json!(brought));
    }
    let mut is_sound = repair_manifest(repository, name, &mut value, printer, context)?;
    if !sources.is_empty() {
        let mended = repository.mend(name, sources, context)?;
        is_sound &= mended.iter().all(|file| file.outcome.is_ok());
        print(name, &mended, &mut value, printer)?;
    }
    if printer.is_json() {
        printer.json(&Value::Object(value))?;
    }
    Ok(is_sound)
}

/// A repository, or an image.
fn source(place: &Where, path: &Path, context: &Context) -> Result<MendSource> {
    if path.is_dir() || matches!(locate(path), Ok(Location::Remote(_))) {
        return Ok(MendSource::Repository(Arc::new(repo::open(&place.at(path), context)?)));
    }
    let image = match RawFile::open(path) {
        // What somebody writes meanwhile is no harm: each block is proved when it is taken.
        Err(e) if e.kind() == ErrorKind::Busy => RawFile::open_in_use(path)?,
        other => other?,
    };
    Ok(MendSource::Image(Arc::new(image)))
}

fn print(
    name: &str,
    mended: &[Mended],
    value: &mut Map<String, Value>,
    printer: &Printer,
) -> Result<()> {
    if printer.is_json() {
        let files: Vec<_> = mended
            .iter()
            .map(|file| {
                json!({
                    "snapshot": file.snapshot,
                    "mended": file.outcome.is_ok(),
                    "by": file.outcome.as_ref().ok().map(|by| match by {
                        MendedBy::Copy => "copy",
                        MendedBy::Snapshot => "snapshot",
                        MendedBy::Blocks(_) => "blocks",
                    }),
                    "message": file.outcome.as_ref().err().map(words::error),
                })
            })
            .collect();
        value.insert("files".into(), json!(files));
        return Ok(());
    }
    if mended.is_empty() {
        return printer.line(&format!("{name}: no file is damaged"));
    }
    for file in mended {
        let what = &file.snapshot;
        printer.line(&match &file.outcome {
            Ok(MendedBy::Copy) => format!("{what}  repaired: its file was copied"),
            Ok(MendedBy::Snapshot) => {
                format!("{what}  repaired: its file was rewritten from the same snapshot")
            }
            Ok(MendedBy::Blocks(blocks)) => {
                let blocks = output::plural(*blocks, "damaged block");
                format!("{what}  repaired: {blocks} recovered, its file was rewritten")
            }
            Err(error) => {
                let why = words::error(error);
                let why = why.strip_prefix(&format!("{what}: ")).unwrap_or(&why);
                format!("DAMAGED  {what} was not repaired: {why}")
            }
        })?;
    }
    if mended.iter().any(|file| file.outcome.is_err()) {
        printer.line(&format!("         \"imgsnap verify {name}\" shows what is lost"))?;
    }
    Ok(())
}

/// True if no file had to be left out, and none is missing.
fn repair_manifest(
    repository: &Repository,
    name: &str,
    value: &mut Map<String, Value>,
    printer: &Printer,
    context: &Context,
) -> Result<bool> {
    let repaired = repository.repair(name, context)?;
    let has_sources = value.contains_key("brought_back");
    let is_sound = match &repaired.rebuilt {
        Some(rebuilt) => tell_rebuilt(name, rebuilt, value, printer)?,
        None => {
            value.insert("rebuilt".into(), json!(false));
            if !repaired.unused.is_empty() {
                value.insert("still_unused".into(), json!(repaired.unused));
            }
            for file in repaired.unused.iter().filter(|_| !printer.is_json()) {
                printer.line(&format!("{name}: kept, but still not used: {file}"))?;
            }
            repaired.unused.is_empty()
        }
    };
    if !repaired.renumbered.is_empty() {
        let renumbered = &repaired.renumbered;
        for (old, new) in renumbered.iter().filter(|_| !printer.is_json()) {
            printer
                .line(&format!("{name}@{old} is now {name}@{new}: no higher number was left"))?;
        }
        let pairs = renumbered.iter().map(|(old, new)| json!({"old": old, "new": new}));
        value.insert("renumbered".into(), pairs.collect());
    }
    // With sources they are looked for in a moment, and told.
    if has_sources {
        return Ok(is_sound);
    }
    let missing: Vec<_> = repaired.missing.iter().chain(&repaired.base_images).collect();
    if !missing.is_empty() {
        let files = missing.iter();
        let files = files
            .map(|(snapshot, why)| json!({"snapshot": snapshot, "message": words::message(why)}));
        value.insert("missing".into(), files.collect());
    }
    if printer.is_json() {
        return Ok(is_sound && missing.is_empty());
    }
    for (_, why) in &missing {
        printer.line(&format!("DAMAGED  {}", words::message(why)))?;
    }
    if !repaired.missing.is_empty() {
        let how = format!("\"imgsnap repair {name} --from REPO\"");
        printer.line(&format!("{name}: the manifest is intact; recover its files with {how}"))?;
    } else if missing.is_empty()
        && repaired.rebuilt.is_none()
        && is_sound
        && repaired.renumbered.is_empty()
    {
        printer.line(&format!("{name}: the manifest is intact; nothing to repair"))?;
    }
    Ok(is_sound && missing.is_empty())
}

/// True if no file had to be left out.
fn tell_rebuilt(
    name: &str,
    rebuilt: &Rebuilt,
    value: &mut Map<String, Value>,
    printer: &Printer,
) -> Result<bool> {
    let Rebuilt { snapshots, unused, unlabelled, source, .. } = rebuilt;
    value.insert("rebuilt".into(), json!(true));
    if printer.is_json() {
        let files =
            unused.iter().map(|(file, why)| json!({"file": file, "reason": words::message(why)}));
        let labels =
            unlabelled.iter().map(|(number, label)| json!({"number": number, "label": label}));
        value.insert("snapshots".into(), json!(snapshots));
        value.insert("unused".into(), files.collect());
        value.insert("unlabelled".into(), labels.collect());
        value.insert("source".into(), json!(source));
        return Ok(unused.is_empty());
    }
    let what = output::plural(*snapshots, "snapshot");
    printer.line(&format!("{name}: rebuilt the manifest with {what}"))?;
    for (file, reason) in unused {
        printer.line(&format!("  kept, but not used: {file}: {}", words::message(reason)))?;
    }
    if !unused.is_empty() {
        let how = format!("\"imgsnap repair {name} --from REPO\"");
        printer.line(&format!("  repair or recover these files with {how}"))?;
    }
    for (number, label) in unlabelled {
        printer
            .line(&format!("  {name}@{number} lost its label: a later snapshot has \"{label}\""))?;
    }
    if source.is_none() {
        let hint = format!("\"imgsnap relink {name} IMAGE\"");
        printer.line(&format!("  the live file is no longer known; set it with {hint}"))?;
    }
    printer.line(&format!("  next, check it with \"imgsnap verify {name}\""))?;
    Ok(unused.is_empty())
}
