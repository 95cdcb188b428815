//! What stdout and stderr can show: columns, colours, characters.

use anstream::stream::RawStream;
use anstream::{AutoStream, ColorChoice};
use anstyle::AnsiColor;
pub use anstyle::Style;
use clap::ValueEnum;
use std::os::fd::AsFd;
use terminal_size::terminal_size_of;

/// Of errors.
pub const ERROR: Style = AnsiColor::Red.on_default().bold();
/// Of warnings.
pub const WARNING: Style = AnsiColor::Yellow.on_default().bold();
/// Of the headings of a table.
pub const HEADING: Style = Style::new().bold();

/// When there are colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Colours {
    /// On a terminal, unless the environment says otherwise (`NO_COLOR`, `CLICOLOR_FORCE`, `TERM`).
    #[default]
    Auto,
    /// Also in a file or a pipe.
    Always,
    /// Not at all.
    Never,
}

/// What a stream can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Screen {
    /// Its width, if it is a terminal.
    pub columns: Option<usize>,
    /// Text may have colours.
    pub has_colours: bool,
    /// Characters beyond ASCII can be shown: anywhere but on a terminal whose locale is another.
    pub is_utf8: bool,
}

impl Screen {
    /// Of stdout or stderr.
    pub fn of(stream: &(impl RawStream + AsFd), colours: Colours) -> Self {
        let is_terminal = stream.is_terminal();
        let size = is_terminal.then(|| terminal_size_of(stream)).flatten();
        let has_colours = match colours {
            Colours::Auto => AutoStream::choice(stream) != ColorChoice::Never,
            Colours::Always => true,
            Colours::Never => false,
        };
        Self {
            columns: size.map(|(width, _)| width.0.into()).filter(|columns| *columns > 0),
            has_colours,
            is_utf8: !is_terminal || has_utf8_locale(|name| std::env::var(name).ok()),
        }
    }

    /// Text in a style.
    pub fn styled(self, style: Style, text: &str) -> String {
        if self.has_colours { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }
}

/// What locale(7) says: the first of three that is set decides.
fn has_utf8_locale(variable: impl Fn(&str) -> Option<String>) -> bool {
    let named = |name: &&str| variable(name).filter(|value| !value.is_empty());
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(named);
    // Where none is set, programs of today assume what nearly every terminal shows.
    locale.is_none_or(|locale| {
        let locale = locale.to_ascii_lowercase();
        locale.ends_with("utf-8") || locale.ends_with("utf8") || locale.contains("utf-8@")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_locale_says_what_characters_there_are() {
        for (set, is_utf8) in [
            (&[][..], true),
            (&[("LANG", "de_DE.UTF-8")], true),
            (&[("LANG", "de_DE.utf8")], true),
            (&[("LANG", "de_DE.UTF-8@euro")], true),
            (&[("LANG", "C")], false),
            (&[("LANG", "de_DE.ISO-8859-1")], false),
            (&[("LC_ALL", "C"), ("LANG", "C.UTF-8")], false),
            (&[("LC_ALL", ""), ("LC_CTYPE", "C.UTF-8"), ("LANG", "C")], true),
        ] {
            let value = |name: &str| {
                let found = set.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| (*value).to_owned())
            };
            assert_eq!(has_utf8_locale(value), is_utf8, "{set:?}");
        }
    }

    #[test]
    fn styles_are_for_who_shows_them() {
        let plain = Screen::default();
        assert_eq!(plain.styled(ERROR, "error:"), "error:");
        let coloured = Screen { has_colours: true, ..plain };
        assert_eq!(coloured.styled(HEADING, "TIME"), "\u{1b}[1mTIME\u{1b}[0m");
    }
}
