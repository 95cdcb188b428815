//! The command line. One file per verb; each turns arguments into a call of the library and its
//! result into text or JSON.

mod admin;
mod args;
mod bench;
mod completion;
mod config;
mod diff;
#[cfg(test)]
mod documented;
mod domains;
mod elsewhere;
mod exit;
mod hash;
mod init;
mod key;
mod list;
mod manual;
mod metrics;
mod output;
mod page;
mod printer;
mod prune;
mod remove;
mod repair;
mod repo;
mod requests;
mod restore;
mod rollback;
mod screen;
mod serve;
mod show;
mod snapshot;
mod stats;
mod travel;
mod trust;
mod usage;
mod verify;
mod watch;
mod words;
mod work;

use args::{Args, Command};
use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches};
use imgsnap::base::error::{Error, Result};
use imgsnap::base::events::Context;
use printer::{Printer, Told};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Parses, runs, reports; the only place that decides on the exit code.
pub fn run() -> ExitCode {
    if let Some(code) = completion::answer() {
        return code;
    }
    imgsnap::base::free_space::raise_open_files();
    let parsed = manual::command().try_get_matches();
    let mut args = match parsed.and_then(|matches| Args::from_arg_matches(&matches)) {
        Ok(args) => args,
        Err(e) => return usage::tell(&remove::not_forget(e)),
    };
    let checked = check(&args);
    let checked = checked.and_then(|()| domains::connect(&mut args).map_err(|e| words::error(&e)));
    if let Err(message) = checked {
        return usage::tell(&Args::command().error(ErrorKind::ArgumentConflict, message));
    }
    let silent = args.quiet && !shows(&args.command);
    let Args { json, quiet, verbose, color: colours, .. } = args;
    let is_piped = matches!(&args.command, Command::Export(verb) if verb.output.as_os_str() == "-");
    let printer = Printer::new(Told { json, quiet, silent, verbose, colours, is_piped });
    let outcome = stop_flag(&args.command).and_then(|stop| dispatch(&args, &printer, stop));
    let outcome = outcome.map_err(|e| with_advice(&args.command, e));
    match outcome {
        Ok(code) => code,
        // Whoever reads our output has seen enough.
        Err(e) if e.is_broken_pipe() => exit::FAILED,
        Err(e) => {
            printer.error(&e);
            exit::code(e.kind())
        }
    }
}

/// What clap cannot judge.
fn check(args: &Args) -> Result<(), String> {
    match &args.command {
        Command::Bench(verb) => verb.check(),
        Command::Snapshot(verb) => snapshot::check(verb),
        Command::Watch(verb) => watch::check(verb),
        Command::Remove(verb) => remove::check(verb),
        Command::Rollback(verb) => rollback::check(verb),
        Command::Plan(verb) => work::check(verb),
        _ => Ok(()),
    }
}

/// Set by the first Ctrl-C or SIGTERM; a second one ends the process at once.
fn stop_flag(command: &Command) -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    // An editor makes its own use of Ctrl-C, and would be left behind with the text.
    let is_editing = matches!(command, Command::Config { verb: config::args::Config::Edit });
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        let failed = |e| Error::io("cannot handle signals", e);
        if !(is_editing && signal == signal_hook::consts::SIGINT) {
            signal_hook::flag::register_conditional_shutdown(signal, 130, stop.clone())
                .map_err(failed)?;
        }
        signal_hook::flag::register(signal, stop.clone()).map_err(failed)?;
    }
    // Its default is to end the process in the middle of a write. Handled, the write fails with EFBIG.
    let too_long = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(libc::SIGXFSZ, too_long)
        .map_err(|e| Error::io("cannot handle signals", e))?;
    Ok(stop)
}

fn is_one_file(verb: &args::Snapshot) -> bool {
    matches!(verb.images.as_slice(), [image] if image.file().is_some())
}

/// What a command knows of an error, beside what the library says.
fn with_advice(command: &Command, error: Error) -> Error {
    let (name, reads) = match command {
        Command::Restore(verb) => (Some(&verb.reference.name), false),
        Command::Export(verb) => (Some(&verb.reference.name), false),
        Command::Flatten { reference } => (Some(&reference.name), false),
        Command::Hash { reference, .. } => (Some(&reference.name), true),
        Command::List { .. } | Command::Show { .. } | Command::Diff { .. } => (None, true),
        Command::Verify { .. } | Command::Stats { .. } | Command::Heads => (None, true),
        _ => (None, false),
    };
    match name {
        _ if error.is_damage() && matches!(command, Command::Snapshot(_)) => error.or_hint(
            "if the repository is damaged (\"imgsnap verify\"), --full takes a base that does not need it",
        ),
        Some(name) if error.is_damage() => {
            let from = format!("\"imgsnap repair {name} --from REPO|IMAGE\"");
            error.or_hint(format!("run \"imgsnap verify {name}\", then {from}"))
        }
        _ if error.kind() == imgsnap::base::error::ErrorKind::Interrupted => match command {
            _ if reads => error.or_hint("nothing was changed"),
            // Of several images or disks, some may have been stored.
            Command::Snapshot(verb) if is_one_file(verb) => error.or_hint("no snapshot was taken"),
            Command::Export(verb) if verb.output.as_os_str() != "-" => {
                error.or_hint("no file was written")
            }
            _ => error,
        },
        _ => error,
    }
}

fn dispatch(args: &Args, printer: &Printer, stop: Arc<AtomicBool>) -> Result<ExitCode> {
    let engine = match &args.command {
        Command::Part { task, .. } => Some(work::Engine::begin(&stop, *task)?),
        _ => None,
    };
    let observer = printer.observer();
    let observer = engine.as_ref().map_or(observer.clone(), |engine| engine.observer(observer));
    let mut context = Context::new(observer, stop)
        .with_read_limit(args.limit_read)
        .with_transfer_limits(args.limit_upload, args.limit_download);
    if let Some(wait) = args.lock_wait {
        context = context.with_lock_wait(wait);
    }
    if let Some(threads) = args.threads {
        context = context.with_threads(threads);
    }
    let place = &repo::Where::new(args, &context)?;
    if uses_repository(&args.command) {
        repo::warn_of_others(place, printer);
    }
    let open = || repo::open(place, &context);
    let open_to_change = || repo::open_to_change(place, &context);
    let open_for = |is_to_change| if is_to_change { open_to_change() } else { open() };
    match &args.command {
        Command::Init(verb) => init::run(place, verb, printer),
        Command::Snapshot(verb) => snapshot::run(place, verb, printer, &context),
        Command::Plan(verb) => work::plan(&open_to_change()?, verb, printer, &context),
        Command::Part { plan, task } => {
            work::part(&open_to_change, (plan, *task), engine.as_ref(), printer, &context)
        }
        Command::Join { plan, image } => {
            work::join(&open_to_change()?, plan, image.as_deref(), printer, &context)
        }
        Command::Serve { verb } => serve::run(verb),
        Command::List { name, last } => match name.as_deref().and_then(domains::pattern_of) {
            Some(pattern) => {
                domains::list(&open()?, pattern, args.connect.as_deref(), printer, &context)
            }
            None => list::list(&open()?, name.as_deref(), *last, printer, &context),
        },
        Command::Heads => list::heads(&open()?, printer, &context),
        Command::Show { reference } => show::run(&open()?, reference, printer, &context),
        Command::Diff { before, after, format } => {
            diff::run(place, (before, after), format, printer, &context)
        }
        Command::Restore(verb) => match verb.defined(args.connect.as_deref())? {
            Some(request) => domains::define(&open()?, &request, printer, &context),
            None => restore::run(&open()?, verb, printer, &context),
        },
        Command::Rollback(verb) => {
            rollback::run(&open_for(!verb.dry_run)?, verb, printer, &context)
        }
        Command::Verify { what, quick } => {
            verify::run(&open()?, what.as_deref(), *quick, printer, &context)
        }
        Command::Prune(verb) => prune::run(&open_for(!verb.dry_run)?, verb, printer, &context),
        Command::Delete { references, alone, compact } => {
            prune::delete(&open_to_change()?, references, *alone, *compact, printer, &context)
        }
        Command::Hash { reference, algorithm } => {
            hash::run(&open()?, reference, *algorithm, printer, &context)
        }
        Command::Flatten { reference } => {
            prune::flatten(&open_to_change()?, reference, printer, &context)
        }
        Command::Watch(verb) => watch::run(place, verb, printer, &context),
        Command::Untrack { name } => admin::untrack(&open_to_change()?, name, printer, &context),
        Command::Stats { metrics: Some(file), .. } => {
            metrics::run(&open()?, file, printer, &context)
        }
        Command::Stats { name, .. } => stats::run(&open()?, name.as_deref(), printer, &context),
        Command::Export(verb) => travel::export(&open()?, verb, printer, &context),
        Command::Import { files, name, first_use } => {
            travel::import(place, files, name.as_deref(), *first_use, printer, &context)
        }
        Command::Apply(verb) => travel::apply(place, verb, printer, &context),
        Command::Label { reference, label: None, remove: false } => {
            admin::show_label(&open()?, reference, printer, &context)
        }
        Command::Label { reference, label, .. } => {
            admin::label(&open_to_change()?, reference, label.as_deref(), printer, &context)
        }
        Command::Protect { reference, alone, off } => {
            admin::protect(&open_to_change()?, reference, *alone, !off, printer, &context)
        }
        Command::Remove(verb) => remove::run(&open_to_change()?, verb, printer, &context),
        Command::Repair { name, from } => {
            repair::run(place, name.as_deref(), from, printer, &context)
        }
        Command::Key { verb } => key::run(place, verb, printer, &context),
        Command::Requests { verb } => requests::run(place, verb, printer, &context),
        Command::Config { verb } => config::run(place, verb, printer, &context),
        Command::Relink { name, image, base_image, format } => {
            let (image, base_image) = ((image.as_ref(), *format), base_image.as_deref());
            admin::relink(&open_to_change()?, name, image, base_image, printer, &context)
        }
        Command::Bench(verb) => bench::run(verb, printer, &context),
        Command::Completions { shell } => completion::script(*shell, printer),
        Command::Man { folder } => manual::write(folder),
    }
}

/// True for verbs whose result is what was asked for, also by who wants no word more.
fn shows(command: &Command) -> bool {
    use Command::{
        Bench, Completions, Config, Diff, Hash, Heads, Key, List, Man, Plan, Requests, Serve, Show,
        Stats,
    };
    match command {
        Plan(plan) => plan.verb.is_some(),
        List { .. } | Heads | Show { .. } | Diff { .. } | Stats { .. } | Hash { .. } => true,
        Config { .. } | Key { .. } | Requests { .. } | Serve { .. } => true,
        Bench(_) | Completions { .. } | Man { .. } => true,
        _ => false,
    }
}

fn uses_repository(command: &Command) -> bool {
    use Command::{Apply, Bench, Completions, Man, Serve};
    !matches!(command, Apply(_) | Bench(_) | Completions { .. } | Man { .. } | Serve { .. })
}
