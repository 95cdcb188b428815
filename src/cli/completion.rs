//! What a shell offers while a command is typed: verbs, options, values, and the names of images and
//! snapshots of a repository in a local folder. Nothing is asked, and no server is waited for.

use super::key::given::FileOnly;
use super::printer::Printer;
use super::repo::{Where, open_folder};
use super::{exit, manual, output};
use clap::{Arg, Command};
use clap_complete::engine::{
    ArgValueCandidates, ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter,
};
use clap_complete::env::Shells;
use clap_complete::{CompleteEnv, Shell};
use imgsnap::Repository;
use imgsnap::base::error::{Error, ErrorKind, Result};
use imgsnap::base::events::Context;
use imgsnap::repo::manifest::Manifest;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Set by the script of a shell when it asks.
const VARIABLE: &str = "IMGSNAP_COMPLETE";
/// The newest snapshots of an image are offered, so many.
const MOST_SNAPSHOTS: usize = 200;
/// Of more images than that, only the newest snapshot is offered until one is named.
const MOST_IMAGES: usize = 4;

/// Answers a shell, if one asks.
pub fn answer() -> Option<ExitCode> {
    let asked = CompleteEnv::with_factory(|| offering(manual::command())).var(VARIABLE);
    match asked.try_complete(std::env::args_os(), std::env::current_dir().ok().as_deref()) {
        Ok(false) => None,
        Ok(true) => Some(exit::DONE),
        // Whoever is typing wants no message in between.
        Err(_) => Some(exit::FAILED),
    }
}

/// `imgsnap completions`: a script that has the program asked.
pub fn script(shell: Shell, printer: &Printer) -> Result<ExitCode> {
    let failed = |e| Error::io("cannot write the script", e);
    let shells = Shells::builtins();
    let shell = shells
        .completer(&shell.to_string())
        .ok_or_else(|| Error::new(ErrorKind::Unsupported, format!("no completion for {shell}")))?;
    let mut script = Vec::new();
    shell
        .write_registration(VARIABLE, "imgsnap", "imgsnap", "imgsnap", &mut script)
        .map_err(failed)?;
    if shell.is("bash") {
        // A snapshot is one word.
        script.extend_from_slice(b"COMP_WORDBREAKS=${COMP_WORDBREAKS//@/}\n");
    }
    printer.bytes(&script)?;
    Ok(exit::DONE)
}

/// The command with what can be given for each argument. Of the global options, only the usual ones are
/// offered before something of their names is typed.
fn offering(command: Command) -> Command {
    let is_usual = |arg: &Arg| ["repo", "json"].contains(&arg.get_id().as_str());
    let rarely = |arg: Arg| {
        let is_rare = arg.is_global_set() && !is_usual(&arg);
        arg.hide(is_rare)
    };
    command.mut_args(|arg| rarely(with_values(arg))).mut_subcommands(offering)
}

fn with_values(arg: Arg) -> Arg {
    let kind = arg.get_value_names().and_then(|names| names.first()).map(ToString::to_string);
    let values = |values: &'static [&'static str]| {
        ArgValueCandidates::new(|| values.iter().map(CompletionCandidate::new).collect())
    };
    match (arg.get_id().as_str(), kind.as_deref().unwrap_or_default()) {
        ("name", _) => arg.add(ArgValueCompleter::new(names)),
        ("plan", _) => arg.add(ArgValueCompleter::new(plans)),
        ("format", "FORMAT") => arg.add(values(&["raw", "qcow2", "vmdk", "vhdx", "vdi", "vhd"])),
        ("compression", _) => arg.add(values(&["lz4", "zstd", "none"])),
        ("digest", _) => arg.add(values(&["xxh3", "blake3"])),
        ("algorithm", _) => arg.add(values(&["sha256", "sha512", "blake3", "xxh3"])),
        ("track", _) => arg.add(values(&["auto", "reflink", "none"])),
        (_, "REF") => arg.add(ArgValueCompleter::new(references)),
        (_, "NAME|REF") => arg.add(ArgValueCompleter::new(names_and_references)),
        (_, "IMAGE|NAME") => arg.add(ArgValueCompleter::new(names_references_and_paths)),
        (_, "REF|IMAGE") => arg.add(ArgValueCompleter::new(references_and_paths)),
        _ => arg,
    }
}

type Candidates = Vec<CompletionCandidate>;

fn names(current: &OsStr) -> Candidates {
    let found = repository().and_then(|repository| repository.names());
    let begins = |name: &String| current.to_str().is_some_and(|typed| name.starts_with(typed));
    found.unwrap_or_default().into_iter().filter(begins).map(CompletionCandidate::new).collect()
}

fn plans(current: &OsStr) -> Candidates {
    let found = repository().and_then(|repository| repository.plans(&Context::silent()));
    let ids = found.unwrap_or_default().into_iter().map(|plan| plan.id().to_string());
    let begins = |id: &String| current.to_str().is_some_and(|typed| id.starts_with(typed));
    let all = std::iter::once("latest".to_owned()).chain(ids).filter(begins);
    all.map(CompletionCandidate::new).collect()
}

fn references(current: &OsStr) -> Candidates {
    current.to_str().and_then(|typed| find_references(typed).ok()).unwrap_or_default()
}

fn names_and_references(current: &OsStr) -> Candidates {
    names(current).into_iter().chain(references(current)).collect()
}

/// A name first: which of its snapshots is asked for once it has an `@`.
fn names_references_and_paths(current: &OsStr) -> Candidates {
    let is_reference = current.to_str().is_some_and(|typed| typed.contains('@'));
    let found = if is_reference { references(current) } else { names(current) };
    found.into_iter().chain(PathCompleter::any().complete(current)).collect()
}

fn references_and_paths(current: &OsStr) -> Candidates {
    references(current).into_iter().chain(PathCompleter::any().complete(current)).collect()
}

fn find_references(typed: &str) -> Result<Candidates> {
    let repository = repository()?;
    let mut images = repository.names()?;
    match typed.split_once('@') {
        Some((name, _)) => images.retain(|image| image == name),
        None => images.retain(|image| image.starts_with(typed)),
    }
    let is_named = images.len() <= MOST_IMAGES;
    let mut found = Vec::new();
    for image in images {
        match repository.read(&image, &Context::silent()) {
            Ok(reader) if is_named => found.extend(of_image(reader.manifest())),
            Ok(_) => found.push(CompletionCandidate::new(format!("{image}@latest"))),
            // A damaged one hides no other.
            Err(_) => {}
        }
    }
    found.retain(|candidate| candidate.get_value().to_str().is_some_and(|v| v.starts_with(typed)));
    Ok(found)
}

/// The snapshots of an image, the newest first, each by its number and by its label.
fn of_image(manifest: &Manifest) -> Candidates {
    let name = &manifest.name;
    let keyword = |word: &str, help: &str| {
        CompletionCandidate::new(format!("{name}@{word}")).help(Some(help.to_owned().into()))
    };
    let mut found = vec![keyword("latest", "the newest snapshot")];
    for s in manifest.snapshots.iter().rev().take(MOST_SNAPSHOTS) {
        let time = output::time(s.time);
        found.push(keyword(&s.number.to_string(), &time));
        found.extend(s.label.iter().map(|label| keyword(label, &time)));
    }
    found
}

/// The repository that the words before name, if it is in a local folder and needs no passphrase.
fn repository() -> Result<Repository> {
    let words: Vec<OsString> =
        std::env::args_os().skip_while(|word| word != "--").skip(1).collect();
    let key_file = value_of(&words, "--key-file", None);
    let place = Where::to_look(value_of(&words, "--repo", Some("-r")), FileOnly::new(key_file));
    open_folder(&place)
}

/// What is given for an option: `--repo PLACE`, `--repo=PLACE`, `-r PLACE` or `-rPLACE`.
fn value_of(words: &[OsString], long: &str, short: Option<&str>) -> Option<PathBuf> {
    let joined = format!("{long}=");
    words.iter().enumerate().find_map(|(index, word)| {
        let text = word.to_str()?;
        if text == long || Some(text) == short {
            // Bash makes three words of `--repo=PLACE`.
            let after = words.get(index + 1).filter(|word| *word != "=").or(words.get(index + 2));
            return after.map(|word| in_home(Path::new(word)));
        }
        let after = |start: &str| text.strip_prefix(start).filter(|value| !value.is_empty());
        after(&joined).or_else(|| after(short?)).map(|value| in_home(Path::new(value)))
    })
}

/// What the shell would make of `~/`.
fn in_home(path: &Path) -> PathBuf {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    match (path.strip_prefix("~"), home) {
        (Ok(inside), Some(home)) => home.join(inside),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_is_taken_from_the_words() {
        for (words, want) in [
            (&["imgsnap", "show"][..], None),
            (&["imgsnap", "--repo", "/a b", "show"], Some("/a b")),
            (&["imgsnap", "show", "--repo=x"], Some("x")),
            (&["imgsnap", "-r", "x"], Some("x")),
            (&["imgsnap", "-rx", "show"], Some("x")),
            (&["imgsnap", "--repo"], None),
            (&["imgsnap", "--repo", "=", "x", "show"], Some("x")),
        ] {
            let words: Vec<OsString> = words.iter().map(OsString::from).collect();
            let found = value_of(&words, "--repo", Some("-r"));
            assert_eq!(found, want.map(PathBuf::from), "{words:?}");
        }
    }
}
