//! What the parser says: as one line, like every other error.

use super::args::Args;
use super::screen::Colours;
use super::{exit, printer};
use clap::CommandFactory;
use clap::error::{Error, ErrorKind};
use std::process::ExitCode;

/// Prints what was asked for, or what is wrong with what was typed.
pub fn tell(error: &Error) -> ExitCode {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    ) {
        let printed = error.print().is_ok();
        return if printed && !error.use_stderr() {
            exit::DONE
        } else {
            ExitCode::from(exit::USAGE)
        };
    }
    let typed: Vec<String> =
        std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let is_json = typed.iter().take_while(|word| *word != "--").any(|word| word == "--json");
    let is_plain = typed.iter().any(|word| word == "--color=never")
        || typed.windows(2).any(|pair| pair == ["--color", "never"]);
    let colours = if is_plain { Colours::Never } else { Colours::Auto };
    printer::wrong_usage(&message(error), &advice(error.kind(), &typed), is_json, colours);
    ExitCode::from(exit::USAGE)
}

/// The paragraphs before the usage, in one line.
fn message(error: &Error) -> String {
    let text = error.render().to_string();
    let (before, _) = text.split_once("\n\nUsage:").unwrap_or((&text, ""));
    let (before, _) = before.split_once("\n\nFor more information").unwrap_or((before, ""));
    let paragraphs: Vec<String> = before
        .trim_start_matches("error: ")
        .split("\n\n")
        .map(|paragraph| paragraph.split_whitespace().collect::<Vec<&str>>().join(" "))
        .filter(|paragraph| !paragraph.is_empty())
        .map(|paragraph| paragraph.trim_start_matches("tip: ").to_owned())
        .collect();
    paragraphs.join("; ")
}

/// Where it says what can be typed.
fn advice(kind: ErrorKind, typed: &[String]) -> String {
    let command = Args::command();
    let verb = typed.iter().find_map(|word| command.find_subcommand(word));
    match (verb.map(clap::Command::get_name), kind) {
        (Some("prune"), ErrorKind::MissingRequiredArgument) => {
            "give the name of an image, or --all for all images".to_owned()
        }
        (Some("init"), ErrorKind::UnknownArgument) => {
            "name the place with --repo, as in \"imgsnap --repo DIR init\"".to_owned()
        }
        (Some("restore"), ErrorKind::UnknownArgument) if !typed.iter().any(|word| word == "-o") => {
            "name the target with -o, as in \"imgsnap restore vm@latest -o vm.img\"".to_owned()
        }
        (Some(verb), _) => format!("see \"imgsnap {verb} --help\""),
        (None, _) => "see \"imgsnap --help\"".to_owned(),
    }
}
