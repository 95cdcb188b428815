//! `imgsnap remove`

use super::args::{Args, Remove};
use super::printer::Printer;
use super::prune::freed_later;
use super::{exit, list, output};
use clap::CommandFactory;
use clap::error::{ContextKind, ContextValue};
use imgsnap::base::error::{Error, ErrorKind, Result};
use imgsnap::base::events::Context;
use imgsnap::{Member, Members, Removed, Repository};
use serde_json::json;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// Says what there is instead of `forget`: `remove` was called so before, and elsewhere it is the word for
/// applying rules. Other errors stay as they are.
pub fn not_forget(error: clap::Error) -> clap::Error {
    let typed = error.get(ContextKind::InvalidSubcommand);
    if !matches!(typed, Some(ContextValue::String(typed)) if typed == "forget") {
        return error;
    }
    let what = "there is no command \"forget\"; use \"imgsnap prune NAME\" to apply the rules, \
                \"imgsnap remove NAME\" to remove an image with all its snapshots, \
                or \"imgsnap delete REF\" to remove one snapshot";
    Args::command().error(error.kind(), what)
}

/// Fails where it would have to ask and cannot.
pub fn check(verb: &Remove) -> Result<(), String> {
    if verb.yes || (std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
        return Ok(());
    }
    let what =
        "cannot ask for confirmation without a terminal; to remove the image anyway, use --yes";
    Err(what.into())
}

pub fn run(
    repository: &Repository,
    verb: &Remove,
    printer: &Printer,
    context: &Context,
) -> Result<ExitCode> {
    let name = verb.name.as_str();
    let listed = repository.list(name, context)?.manifest;
    if !verb.yes {
        let count = listed.snapshots.len() as u64;
        let what = output::plural(count, "snapshot");
        let question = format!("permanently remove \"{name}\" and its {what}? [y/N] ");
        if !confirm(&question, context)? {
            printer.say("nothing was removed");
            return Ok(exit::FAILED);
        }
    }
    say_removed(name, &repository.remove(name, context)?, printer)?;
    Ok(exit::DONE)
}

pub fn say_removed(name: &str, done: &Removed, printer: &Printer) -> Result<()> {
    if let (Some(request), false) = (done.requested, printer.is_json()) {
        return printer.line(&output::asked(&format!("remove {name}"), request));
    }
    let (snapshots, freed) = (done.snapshots, done.freed_bytes);
    if printer.is_json() {
        let grace = done.grace_seconds;
        let groups: Vec<_> = done.incomplete.iter().map(list::group_json).collect();
        let (now, later) = if grace.is_none() { (freed, 0) } else { (0, freed) };
        printer.json(&json!({"name": name, "snapshots": snapshots, "freed_bytes": now,
            "to_free_bytes": later, "grace_seconds": grace, "incomplete_groups": groups,
            "requested": done.requested}))?;
    } else {
        let what = output::plural(snapshots, "snapshot");
        let freed = match done.grace_seconds {
            None => format!("{} freed", output::bytes(freed)),
            Some(grace) => format!("to free {}", freed_later(freed, grace)),
        };
        printer.line(&format!("removed \"{name}\": {what}, {freed}"))?;
        if !done.incomplete.is_empty() {
            printer.line(&format!("  now incomplete: {}", incomplete(&done.incomplete)))?;
        }
    }
    Ok(())
}

/// How many groups are named.
const SHOWN_GROUPS: usize = 4;

/// The groups that it was in, and what is left of them.
fn incomplete(groups: &[Members]) -> String {
    let shown = groups.iter().take(SHOWN_GROUPS).map(|group| {
        let left = group.members.iter().filter(|member| member.number().is_some());
        let places: Vec<String> = left.map(Member::place).collect();
        let name = group.name.as_ref().map_or(String::new(), |name| format!(" {name}"));
        format!("group{name} ({} left)", places.join(", "))
    });
    let shown: Vec<String> = shown.collect();
    match groups.len().saturating_sub(SHOWN_GROUPS) as u64 {
        0 => shown.join(", "),
        more => format!("{}, and {} more", shown.join(", "), output::count(more)),
    }
}

/// Asks on the terminal. A read there goes on after a signal, so another thread does it, and ends with
/// the process.
fn confirm(question: &str, context: &Context) -> Result<bool> {
    let failed = |e| Error::io("cannot ask for confirmation", e);
    let say = |text: &str| {
        let mut err = std::io::stderr().lock();
        err.write_all(text.as_bytes()).and_then(|()| err.flush()).map_err(failed)
    };
    say(question)?;
    let (sender, answered) = channel();
    let read = move || {
        let mut answer = String::new();
        sender.send(std::io::stdin().read_line(&mut answer).map(|_| answer))
    };
    std::thread::Builder::new().spawn(read).map_err(failed)?;
    loop {
        let answer = answered.recv_timeout(Duration::from_millis(20));
        if context.check().is_err() {
            say("\n")?;
            return Err(Error::new(ErrorKind::Interrupted, "interrupted; nothing was removed"));
        }
        match answer {
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(false),
            Ok(answer) => return Ok(matches!(answer.map_err(failed)?.trim(), "y" | "Y" | "yes")),
        }
    }
}
