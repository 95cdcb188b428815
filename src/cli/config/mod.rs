//! `imgsnap config`

pub mod args;
mod editor;
mod text;

use super::printer::Printer;
use super::repo::Where;
use super::{exit, repo};
use args::Config;
use editor::Edited;
use imgsnap::base::duration::{Period, parse_duration};
use imgsnap::base::error::{ErrorKind, Result, best_effort};
use imgsnap::base::events::Context;
use imgsnap::{Configuration, Repository};
use serde_json::json;
use std::io::IsTerminal;
use std::process::ExitCode;

pub fn run(place: &Where, verb: &Config, printer: &Printer, context: &Context) -> Result<ExitCode> {
    let store = place.store()?;
    let was = Repository::configuration(store.as_ref())
        .map_err(|e| repo::or_missing(store.as_ref(), e))?;
    // One that makes no sense has no identity, and is to be corrected.
    let opened = match verb {
        // With a warning if it is another one than before.
        Config::Show => repo::open(place, context),
        _ => repo::open_to_change(place, context),
    };
    if let Some(e) =
        opened.err().filter(|e| matches!(e.kind(), ErrorKind::Mismatch | ErrorKind::Key))
    {
        return Err(e);
    }
    let replace = |text: &str| Repository::replace_configuration(store.as_ref(), &was, text);
    match verb {
        Config::Show => show(&was, printer)?,
        Config::Edit => {
            let now = match Edited::from(&was.text)? {
                Some(edited) => {
                    let outcome = replace(&edited.text);
                    edited.end(outcome)?
                }
                None => was.clone(),
            };
            tell(&was, &now, printer)?;
        }
        Config::Set { key, value, .. } => {
            refuse_ambiguous(key, value.as_deref())?;
            let now = replace(&text::with(&was.text, key, value.as_deref())?)?;
            tell(&was, &now, printer)?;
        }
    }
    if !matches!(verb, Config::Show) {
        // So that this host has seen it.
        best_effort(repo::open(place, context));
    }
    Ok(exit::DONE)
}

/// A bare `m` is read in a configuration as earlier programs meant it, and is not written any more.
fn refuse_ambiguous(key: &str, value: Option<&str>) -> Result<()> {
    match (key.rsplit('.').next(), value) {
        (Some("keep_within"), Some(value)) => value.parse::<Period>().map(drop),
        (Some("max_stall"), Some(value)) => parse_duration(value).map(drop),
        _ => Ok(()),
    }
}

fn show(configuration: &Configuration, printer: &Printer) -> Result<()> {
    let Configuration { number, place, text, .. } = configuration;
    if printer.is_json() {
        return printer.json(&json!({"number": number, "place": place, "text": text}));
    }
    let is_harmless = |c: char| matches!(c, '\n' | '\r' | '\t') || !c.is_control();
    // As it stands, but for what would take over a terminal.
    if std::io::stdout().is_terminal() && !text.chars().all(is_harmless) {
        return printer.line(text.trim_end());
    }
    printer.bytes(text.as_bytes())
}

fn tell(was: &Configuration, now: &Configuration, printer: &Printer) -> Result<()> {
    let is_changed = was != now;
    if printer.is_json() {
        let (number, place) = (now.number, &now.place);
        return printer.json(&json!({"number": number, "place": place, "changed": is_changed}));
    }
    if !is_changed {
        return printer.line("the configuration is unchanged");
    }
    printer.line(&format!("saved the configuration in {}", now.place))
}
