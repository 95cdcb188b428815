//! Where text goes: results to stdout, everything else to stderr; quiet, verbose, JSON and bars in
//! one value.

use super::page::{Page, harmless, message_lines};
use super::screen::{Colours, ERROR, Screen, Style, WARNING};
use super::{exit, output, words};
use imgsnap::base::error::{Error, Result, best_effort};
use imgsnap::base::events::{Event, Observer, Phase};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use serde_json::json;
use std::io::{IsTerminal, Write, stderr, stdout};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Bytes that are told of.
const WORTH_TELLING: u64 = 1 << 20;

/// How the user wants to be told.
pub struct Told {
    /// Results for programs.
    pub json: bool,
    /// Warnings and errors only.
    pub quiet: bool,
    /// Results for people are not printed.
    pub silent: bool,
    /// Each step.
    pub verbose: bool,
    /// When there are colours.
    pub colours: Colours,
    /// Stdout is read by a program that may draw a bar of its own.
    pub is_piped: bool,
}

/// Prints what is to be told.
pub struct Printer {
    told: Told,
    /// What stdout shows.
    screen: Screen,
    bars: Arc<Bars>,
}

impl Printer {
    /// For stdout and stderr as they are.
    pub fn new(told: Told) -> Self {
        let bars = Arc::new(Bars {
            quiet: told.quiet,
            is_piped: told.is_piped,
            verbose: told.verbose,
            screen: Screen::of(&stderr(), told.colours),
            bar: Mutex::new(ProgressBar::hidden()),
            sent: AtomicU64::new(0),
            fetched: AtomicU64::new(0),
        });
        let screen = Screen::of(&stdout(), told.colours);
        Self { told, screen, bars }
    }

    /// True if results are to be JSON.
    pub fn is_json(&self) -> bool {
        self.told.json
    }

    /// Is told of its work by the library.
    pub fn observer(&self) -> Arc<dyn Observer> {
        self.bars.clone()
    }

    /// A result for people.
    pub fn line(&self, text: &str) -> Result<()> {
        self.page(&Page::new(text))
    }

    /// A result for people that has tables.
    pub fn page(&self, page: &Page) -> Result<()> {
        if self.told.silent {
            return Ok(());
        }
        self.bytes(page.render(self.screen).as_bytes())
    }

    /// A result for programs.
    pub fn json(&self, value: &serde_json::Value) -> Result<()> {
        self.bytes(format!("{value}\n").as_bytes())
    }

    /// A result as it is.
    pub fn bytes(&self, bytes: &[u8]) -> Result<()> {
        let written = self.bars.bar().suspend(|| {
            let mut out = stdout().lock();
            out.write_all(bytes).and_then(|()| out.flush())
        });
        written.map_err(|e| Error::io("cannot write to stdout", e))
    }

    /// Something that happened by the way.
    pub fn say(&self, text: &str) {
        if !self.told.quiet {
            self.tell(text);
        }
    }

    /// The same, also to who wants quiet.
    pub fn tell(&self, text: &str) {
        self.bars.print(None, text);
    }

    /// Something that the user should know, though the work goes on.
    pub fn warn(&self, text: &str) {
        self.bars.warn(text);
    }

    /// A step worth a line to somebody who wants to see what happens.
    pub fn note(&self, text: &str) {
        self.bars.note(text);
    }

    /// What went wrong, and is tried again.
    pub fn failure(&self, text: &str) {
        self.bars.print(Some(("error:", ERROR)), text);
    }

    /// An error, for people and for programs.
    pub fn error(&self, error: &Error) {
        self.error_with(error, exit::number(error.kind()));
    }

    /// The same where it means another exit code.
    pub fn error_with(&self, error: &Error, exit_code: u8) {
        self.failure(&words::error(error));
        if self.told.json {
            let advice = error.advice().map(words::message);
            let value = json!({"error": {
                "kind": error.kind().name(),
                "message": error.without_advice(),
                "advice": advice,
                "exit_code": exit_code,
            }});
            best_effort(self.json(&value));
        }
    }
}

/// What is wrong with what was typed: there is no printer yet.
pub fn wrong_usage(message: &str, advice: &str, is_json: bool, colours: Colours) {
    let screen = Screen::of(&stderr(), colours);
    to_stderr(screen, Some(("error:", ERROR)), &format!("{message}; {advice}"));
    if is_json {
        let told = json!({"error": {
            "kind": "usage",
            "message": message,
            "advice": advice,
            "exit_code": exit::USAGE,
        }});
        best_effort(writeln!(stdout().lock(), "{told}"));
    }
}

/// A message, and the word before it that has a style.
fn to_stderr(screen: Screen, word: Option<(&str, Style)>, message: &str) {
    let before = word.map_or(String::new(), |(word, _)| format!("{word} "));
    let line = format!("imgsnap: {before}{}", harmless(message));
    let mut text = message_lines(&line, screen.columns).join("\n");
    text.push('\n');
    if let Some((word, style)) = word {
        text = text.replacen(word, &screen.styled(style, word), 1);
    }
    // In one piece: others write there, too. If it fails, there is nobody left to tell.
    best_effort(stderr().lock().write_all(text.as_bytes()));
}

struct Bars {
    quiet: bool,
    is_piped: bool,
    verbose: bool,
    /// What stderr shows.
    screen: Screen,
    bar: Mutex<ProgressBar>,
    sent: AtomicU64,
    fetched: AtomicU64,
}

impl Bars {
    fn bar(&self) -> ProgressBar {
        self.bar.lock().map_or_else(|_| ProgressBar::hidden(), |bar| bar.clone())
    }

    fn set(&self, bar: ProgressBar) {
        if let Ok(mut current) = self.bar.lock() {
            *current = bar;
        }
    }
}

impl Observer for Bars {
    fn observe(&self, event: Event) {
        match event {
            Event::Started { phase, total_bytes } => self.begin(phase, total_bytes),
            Event::Advanced { bytes } => self.bar().inc(bytes),
            Event::Sent { bytes } => self.transferred(&self.sent, bytes, "sent"),
            Event::Fetched { bytes } => self.transferred(&self.fetched, bytes, "fetched"),
            Event::Ended => {
                self.bar().finish_and_clear();
                self.set(ProgressBar::hidden());
            }
            Event::Warning { message, .. } => self.warn(&words::message(&message)),
            Event::Note { message } => self.note(&words::message(&message)),
            // A later library tells more than this program knows of.
            _ => {}
        }
    }
}

impl Bars {
    fn begin(&self, phase: Phase, total_bytes: u64) {
        if self.quiet || self.is_piped || !stderr().is_terminal() {
            return;
        }
        let style = bar_style(self.screen.columns);
        let target = ProgressDrawTarget::stderr_with_hz(10);
        let bar = ProgressBar::with_draw_target(Some(total_bytes), target);
        bar.set_style(style);
        bar.set_prefix(phase.name());
        self.sent.store(0, Ordering::Relaxed);
        self.fetched.store(0, Ordering::Relaxed);
        self.set(bar);
    }

    /// Bytes of a server; what went before a phase is not of it.
    fn transferred(&self, count: &AtomicU64, bytes: u64, way: &str) {
        let all = count.fetch_add(bytes, Ordering::Relaxed) + bytes;
        // A manifest is not worth a word.
        if all >= WORTH_TELLING {
            self.bar().set_message(format!(", {} {way}", output::bytes(all)));
        }
    }

    fn warn(&self, message: &str) {
        self.print(Some(("warning:", WARNING)), message);
    }

    /// A line above the bar.
    fn print(&self, word: Option<(&str, Style)>, message: &str) {
        self.bar().suspend(|| to_stderr(self.screen, word, message));
    }

    fn note(&self, message: &str) {
        if self.verbose {
            self.print(None, message);
        }
    }
}

/// A bar, and beside it what fits.
fn bar_style(columns: Option<usize>) -> ProgressStyle {
    let template = match columns.unwrap_or(80) {
        0..50 => "{prefix:>9} {percent:>3} %  {eta} left",
        50..72 => "{prefix:>9} [{wide_bar}] {percent:>3} %  {eta} left",
        _ => "{prefix:>9} [{wide_bar}] {percent:>3} %  {rate}  {eta} left{msg}",
    };
    let rate = |state: &ProgressState, to: &mut dyn std::fmt::Write| {
        best_effort(write!(to, "{}/s", output::bytes(state.per_sec() as u64)));
    };
    let left = |state: &ProgressState, to: &mut dyn std::fmt::Write| match state.pos() {
        // Nothing is known yet.
        0 => best_effort(write!(to, "-")),
        _ => best_effort(write!(to, "{}", output::time_left(state.eta().as_secs()))),
    };
    let style = ProgressStyle::with_template(template);
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    style.with_key("rate", rate).with_key("eta", left).progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use indicatif::{InMemoryTerm, TermLike};

    #[test]
    fn progress_fits_on_one_line() {
        for columns in [40, 50, 72, 80, 120] {
            let term = InMemoryTerm::new(3, columns);
            let target = ProgressDrawTarget::term_like(Box::new(term.clone()));
            let bar = ProgressBar::with_draw_target(Some(100 << 30), target);
            bar.set_style(bar_style(Some(term.width().into())));
            bar.set_prefix("comparing");
            bar.set_message(", 1023 MiB fetched");
            bar.inc(99 << 30);
            bar.force_draw();
            let shown = term.contents();
            assert!(shown.starts_with("comparing ") && !shown.contains('\n'), "{columns}: {shown}");
            assert!(shown.contains(" 99 %  "), "{columns}: {shown}");
            assert_eq!(shown.contains('['), columns >= 50, "{shown}");
        }
    }
}
