//! Where text goes: results to stdout, everything else to stderr; quiet, verbose, JSON and bars in
//! one value.

use super::{exit, output, words};
use imgsnap::base::error::{Error, Result, best_effort};
use imgsnap::base::events::{Event, Observer, Phase};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use std::borrow::Cow;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Bytes that are told of.
const WORTH_TELLING: u64 = 1 << 20;

/// How the user wants to be told.
pub struct Printer {
    json: bool,
    quiet: bool,
    /// Results for people are not printed.
    silent: bool,
    bars: Arc<Bars>,
}

impl Printer {
    /// `silent`: of the results for people, none.
    pub fn new(json: bool, (quiet, silent): (bool, bool), verbose: bool) -> Self {
        let bars = Arc::new(Bars {
            quiet,
            verbose,
            bar: Mutex::new(ProgressBar::hidden()),
            sent: AtomicU64::new(0),
            fetched: AtomicU64::new(0),
        });
        Self { json, quiet, silent, bars }
    }

    /// True if results are to be JSON.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Is told of its work by the library.
    pub fn observer(&self) -> Arc<dyn Observer> {
        self.bars.clone()
    }

    /// A result for people.
    pub fn line(&self, text: &str) -> Result<()> {
        if self.silent {
            return Ok(());
        }
        self.bytes(format!("{}\n", harmless(text, true)).as_bytes())
    }

    /// A result for programs.
    pub fn json(&self, value: &serde_json::Value) -> Result<()> {
        self.bytes(format!("{value}\n").as_bytes())
    }

    /// A result as it is.
    pub fn bytes(&self, bytes: &[u8]) -> Result<()> {
        let written = self.bars.bar().suspend(|| {
            let mut out = std::io::stdout().lock();
            out.write_all(bytes).and_then(|()| out.flush())
        });
        written.map_err(|e| Error::io("cannot write to stdout", e))
    }

    /// Something that happened by the way.
    pub fn say(&self, text: &str) {
        if !self.quiet {
            self.tell(text);
        }
    }

    /// The same, also to who wants quiet.
    pub fn tell(&self, text: &str) {
        self.bars.bar().suspend(|| to_stderr(&format!("imgsnap: {text}")));
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
        self.bars.bar().suspend(|| to_stderr(&format!("imgsnap: error: {text}")));
    }

    /// An error, for people and for programs.
    pub fn error(&self, error: &Error) {
        self.error_with(error, exit::number(error.kind()));
    }

    /// The same where it means another exit code.
    pub fn error_with(&self, error: &Error, exit_code: u8) {
        self.failure(&words::error(error));
        if self.json {
            let advice = error.advice().map(words::message);
            let told = json!({"error": {
                "kind": error.kind().name(),
                "message": error.without_advice(),
                "advice": advice,
                "exit_code": exit_code,
            }});
            best_effort(self.json(&told));
        }
    }
}

/// Names, labels and paths come from files that others may have made: what would move the cursor of a
/// terminal, or more, is shown instead.
fn harmless(text: &str, has_lines: bool) -> Cow<'_, str> {
    let is_bad = |c: char| c.is_control() && !(has_lines && c == '\n');
    if !text.contains(is_bad) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_bad(c) { shown.extend(c.escape_debug()) } else { shown.push(c) }
    }
    shown.into()
}

/// What is wrong with what was typed: there is no printer yet.
pub fn wrong_usage(message: &str, advice: &str, is_json: bool) {
    to_stderr(&format!("imgsnap: error: {message}; {advice}"));
    if is_json {
        let told = json!({"error": {
            "kind": "usage",
            "message": message,
            "advice": advice,
            "exit_code": exit::USAGE,
        }});
        best_effort(writeln!(std::io::stdout().lock(), "{told}"));
    }
}

fn to_stderr(line: &str) {
    // There is nobody left to tell.
    best_effort(writeln!(std::io::stderr().lock(), "{}", harmless(line, false)));
}

struct Bars {
    quiet: bool,
    verbose: bool,
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
        if self.quiet || !std::io::stderr().is_terminal() {
            return;
        }
        let template =
            "{prefix:>9} [{wide_bar}] {percent:>3} %  {binary_bytes_per_sec}  {eta} left{msg}";
        let style = ProgressStyle::with_template(template)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> ");
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
        self.bar().suspend(|| to_stderr(&format!("imgsnap: warning: {message}")));
    }

    fn note(&self, message: &str) {
        if self.verbose {
            self.bar().suspend(|| to_stderr(&format!("imgsnap: {message}")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::harmless;

    #[test]
    fn what_a_terminal_would_obey_is_shown() {
        assert_eq!(harmless("vm@1  größe\n", true), "vm@1  größe\n");
        assert_eq!(harmless("a\u{1b}[2Jb\rc\td\ne", true), r"a\u{1b}[2Jb\rc\td".to_owned() + "\ne");
        assert_eq!(harmless("\u{9b}31m\n\u{7f}", false), r"\u{9b}31m\n\u{7f}");
    }
}
