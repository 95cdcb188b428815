//! How the command line words what the library says can be done: as commands and options.

use imgsnap::Error;
use imgsnap::base::message::{Action, Message, Setting};
use std::str::FromStr;

/// A message, with commands and options in it.
pub fn message(message: &Message) -> String {
    message.worded(action)
}

/// What went wrong, and what to type about it.
pub fn error(error: &Error) -> String {
    message(&error.into())
}

/// Reads an argument.
pub fn parsed<T: FromStr<Err = Error>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|e| error(&e))
}

fn action(action: &Action) -> String {
    match action {
        Action::Set(setting, value) => option(*setting, value.as_deref()),
        Action::Retry => "run the command again".to_owned(),
        Action::Call(call) => {
            let mut words = vec!["imgsnap".to_owned(), call.verb.name().to_owned()];
            words.extend(call.subject.clone());
            for (setting, value) in &call.settings {
                // What has no value is for the user to fill in.
                let value = value.as_deref().or(Some(placeholder(*setting)));
                words.push(option(*setting, value));
            }
            format!("\"{}\"", words.join(" "))
        }
        other => other.to_string(),
    }
}

fn option(setting: Setting, value: Option<&str>) -> String {
    let name = match setting {
        // Both are arguments by their place.
        Setting::Image | Setting::Name if value.is_some() => String::new(),
        Setting::Output => "-o".to_owned(),
        other => format!("--{}", other.name().replace('_', "-")),
    };
    [name.as_str(), value.unwrap_or_default()].join(" ").trim().to_owned()
}

fn placeholder(setting: Setting) -> &'static str {
    match setting {
        Setting::Name => "NAME",
        Setting::To => "REF",
        _ => "IMAGE",
    }
}

#[cfg(test)]
mod tests {
    use super::super::args::Args;
    use super::*;
    use clap::CommandFactory;
    use imgsnap::base::message::Verb;

    #[test]
    fn calls_and_settings_are_what_can_be_typed() {
        let relink = Verb::Relink.of("vm").with(Setting::Image, "/x");
        for (message, typed) in [
            (relink.into(), "\"imgsnap relink vm /x\""),
            (
                Verb::Relink.of("vm").asking(Setting::BaseImage).into(),
                "\"imgsnap relink vm --base-image IMAGE\"",
            ),
            (
                Verb::Relink.call().asking(Setting::Name).asking(Setting::Image).into(),
                "\"imgsnap relink NAME IMAGE\"",
            ),
            (
                Verb::Rollback.of("vm").asking(Setting::To).into(),
                "\"imgsnap rollback vm --to REF\"",
            ),
            (
                Verb::Restore.of("vm@1").with(Setting::Output, "/y").into(),
                "\"imgsnap restore vm@1 -o /y\"",
            ),
            (Message::from(Setting::Name), "--name"),
            (Setting::Track.to("auto").into(), "--track auto"),
            (Setting::SkipBad.into(), "--skip-bad"),
            (Action::Retry.into(), "run the command again"),
        ] {
            assert_eq!(super::message(&message), typed);
        }
    }

    #[test]
    fn every_verb_and_setting_has_a_command_and_an_option() {
        let command = Args::command();
        for verb in Verb::ALL {
            assert!(command.find_subcommand(verb.name()).is_some(), "{}", verb.name());
        }
        let options: Vec<String> = command
            .get_subcommands()
            .chain([&command])
            .flat_map(|verb| verb.get_arguments())
            .filter_map(|argument| argument.get_long().map(str::to_owned))
            .collect();
        for setting in Setting::ALL.iter().filter(|setting| **setting != Setting::Image) {
            let long = setting.name().replace('_', "-");
            assert!(options.contains(&long), "--{long}");
        }
    }
}
