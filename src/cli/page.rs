//! What is printed for people: lines, tables and maps, laid out for the screen that shows them.

use super::screen::{HEADING, Screen};
use std::borrow::Cow;
use textwrap::core::display_width;
use textwrap::{Options, WordSeparator, WordSplitter, wrap};

/// The last column of a table is broken into lines of at least so many columns; before that, others are
/// left out.
const LAST_COLUMNS: usize = 20;
/// A continued line stands below the value of a line such as `  stored   12.0 MiB`, if that begins no
/// further to the right.
const MAX_INDENT: usize = 20;

/// Lines, tables and maps, in their order.
#[derive(Debug, Default)]
pub struct Page(Vec<Piece>);

#[derive(Debug)]
enum Piece {
    Text(String),
    Table(Table),
    Map(Vec<f64>),
}

impl Page {
    /// Begins with lines.
    pub fn new(text: impl Into<String>) -> Self {
        Self::default().text(text)
    }

    /// Adds lines.
    pub fn text(mut self, text: impl Into<String>) -> Self {
        self.0.push(Piece::Text(text.into()));
        self
    }

    /// Adds lines with a label and a value each.
    pub fn rows<L: AsRef<str>>(self, rows: &[(L, String)]) -> Self {
        let width = rows.iter().map(|(label, _)| label.as_ref().len()).max().unwrap_or(0);
        let line = |(label, value): &(L, String)| format!("  {:<width$}  {value}", label.as_ref());
        match rows {
            [] => self,
            rows => self.text(rows.iter().map(line).collect::<Vec<String>>().join("\n")),
        }
    }

    /// Adds a table.
    pub fn table(mut self, table: Table) -> Self {
        self.0.push(Piece::Table(table));
        self
    }

    /// Adds a disk as rows of characters, and what they mean. `shares` are from 0 to 1.
    pub fn map(mut self, shares: Vec<f64>) -> Self {
        self.0.push(Piece::Map(shares));
        self
    }

    /// As the screen shows it, each line with its end.
    pub fn render(&self, screen: Screen) -> String {
        let mut text = String::new();
        let mut push = |line: &str| {
            text.push_str(line);
            text.push('\n');
        };
        for piece in &self.0 {
            match piece {
                Piece::Text(lines) => {
                    for line in lines.split('\n') {
                        let line = harmless(line);
                        wrapped(&line, screen.columns).iter().for_each(|line| push(line));
                    }
                }
                Piece::Table(table) => table.lines(screen).iter().for_each(|line| push(line)),
                Piece::Map(shares) => map(shares, screen).iter().for_each(|line| push(line)),
            }
        }
        if screen.is_utf8 { text } else { text.replace(" µs", " us") }
    }
}

/// A line as lines that fit.
fn wrapped(line: &str, columns: Option<usize>) -> Vec<Cow<'_, str>> {
    let Some(columns) = columns.filter(|columns| display_width(line) > *columns) else {
        return vec![line.into()];
    };
    let indent = hanging_indent(line);
    let (first, rest) = line.split_at_checked(indent).unwrap_or(("", line));
    let below = " ".repeat(indent.max(leading(line) + 2));
    let options = Options::new(columns)
        .initial_indent(first)
        .subsequent_indent(&below)
        .break_words(false)
        .word_separator(WordSeparator::AsciiSpace)
        .word_splitter(WordSplitter::NoHyphenation);
    let rest = kept_together(rest, columns.saturating_sub(below.len()));
    wrap(&rest, options).into_iter().map(|line| line.replace(GLUE, " ").into()).collect()
}

/// A message as lines that fit: a command in quotes stays whole.
pub fn message_lines(message: &str, columns: Option<usize>) -> Vec<String> {
    let Some(columns) = columns.filter(|columns| display_width(message) > *columns) else {
        return vec![message.to_owned()];
    };
    let pieces = message.split('"').enumerate().map(|(index, piece)| {
        match index % 2 == 1 && display_width(piece) <= columns / 2 {
            true => piece.replace(' ', &GLUE.to_string()),
            false => piece.to_owned(),
        }
    });
    let glued = pieces.collect::<Vec<String>>().join("\"");
    wrapped(&glued, Some(columns)).into_iter().map(Cow::into_owned).collect()
}

/// Stands for a space at which a line is not broken: a character that no text has.
const GLUE: char = '\u{fdd0}';

/// A number stays with its unit, and what stands between double spaces is one thing, unless it is long.
fn kept_together(text: &str, columns: usize) -> String {
    let things: Vec<&str> = text.split("  ").collect();
    let is_number = |word: &str| {
        let digits = word.trim_start_matches(['(', '<', '>']);
        digits.starts_with(|c: char| c.is_ascii_digit())
            && digits.ends_with(|c: char| c.is_ascii_digit())
            && digits.chars().all(|c| c.is_ascii_digit() || c == '.' || c == ',')
    };
    let with_units = |thing: &str| {
        let mut glued = String::new();
        for word in thing.split_inclusive(' ') {
            glued.push_str(word);
            if word.ends_with(' ') && is_number(word.trim_end()) {
                glued.pop();
                glued.push(GLUE);
            }
        }
        glued
    };
    let glued = |thing: &&str| match things.len() > 1 && display_width(thing) <= columns / 2 {
        true => thing.replace(' ', &GLUE.to_string()),
        false => with_units(thing),
    };
    things.iter().map(glued).collect::<Vec<String>>().join("  ")
}

/// Where the value of a line such as `  stored   12.0 MiB` begins; otherwise where its text does.
fn hanging_indent(line: &str) -> usize {
    let start = leading(line);
    let value = line.get(start..).and_then(|text| {
        let gap = text.find("  ")?;
        Some(start + gap + leading(text.get(gap..)?))
    });
    let is_label = |indent: &usize| {
        let label = line.get(..*indent);
        start > 0 && *indent <= MAX_INDENT && label.is_some_and(str::is_ascii)
    };
    value.filter(is_label).unwrap_or(start)
}

fn leading(line: &str) -> usize {
    line.chars().take_while(|c| *c == ' ').count()
}

/// Names, labels and paths come from files that others may have made: what would move the cursor of a
/// terminal, or more, is shown instead.
pub fn harmless(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { shown.extend(c.escape_debug()) } else { shown.push(c) }
    }
    shown.into()
}

/// Rows under headings, in columns as wide as they need to be.
#[derive(Debug, Clone)]
pub struct Table {
    columns: Vec<Column>,
    /// Headings of columns that may be left out, the first one first.
    least: &'static [&'static str],
}

#[derive(Debug, Clone)]
struct Column {
    heading: String,
    is_to_right: bool,
    cells: Vec<String>,
}

impl Column {
    fn width(&self) -> usize {
        let cells = self.cells.iter().map(|cell| display_width(cell));
        cells.chain([display_width(&self.heading)]).max().unwrap_or(0)
    }

    /// Two spaces and a cell.
    fn padded(&self, cell: &str, width: usize) -> String {
        let padding = " ".repeat(width.saturating_sub(display_width(cell)));
        match self.is_to_right {
            true => format!("  {padding}{cell}"),
            false => format!("  {cell}{padding}"),
        }
    }
}

impl Table {
    /// `>` before a heading: its column is aligned to the right.
    pub fn new<H: AsRef<str>>(headings: &[H], rows: &[Vec<String>]) -> Self {
        let column = |(index, heading): (usize, &H)| {
            let heading = heading.as_ref();
            let cell = |row: &Vec<String>| {
                row.get(index).map_or_else(String::new, |cell| harmless(cell).into_owned())
            };
            Column {
                heading: heading.trim_start_matches('>').to_owned(),
                is_to_right: heading.starts_with('>'),
                cells: rows.iter().map(cell).collect(),
            }
        };
        Self { columns: headings.iter().enumerate().map(column).collect(), least: &[] }
    }

    /// What may be left out where a terminal has no place for all: the first of them goes first.
    pub fn leaving_out(mut self, least: &'static [&'static str]) -> Self {
        self.least = least;
        self
    }

    /// Its lines, that with the headings first.
    pub fn lines(&self, screen: Screen) -> Vec<String> {
        let mut columns: Vec<&Column> = self.columns.iter().collect();
        let mut least = self.least.iter();
        while let (Some(width), Some((last, others))) = (screen.columns, columns.split_last()) {
            let least_width = match last.is_to_right {
                true => last.width(),
                false => last.width().min(LAST_COLUMNS),
            };
            if before(others) + 2 + least_width <= width {
                break;
            }
            let Some(heading) = least.next() else { break };
            columns.retain(|column| column.heading != *heading);
        }
        self.aligned(&columns, screen)
    }

    fn aligned(&self, columns: &[&Column], screen: Screen) -> Vec<String> {
        let Some((last, others)) = columns.split_last() else { return Vec::new() };
        let indent = before(others) + 2;
        let limit = screen.columns.map(|width| width.saturating_sub(indent).max(8));
        let line = |cell: &dyn Fn(&Column) -> String| {
            let before: String =
                others.iter().map(|column| column.padded(&cell(column), column.width())).collect();
            (before, cell(last))
        };
        let (before, heading) = line(&|column| column.heading.clone());
        let headings = format!("{before}{}", last.padded(&heading, last_width(last, limit)));
        let start = leading(&headings);
        let (spaces, headings) = headings.trim_end().split_at_checked(start).unwrap_or_default();
        let mut lines = vec![format!("{spaces}{}", screen.styled(HEADING, headings))];
        for row in 0..last.cells.len() {
            let (before, cell) = line(&|column| column.cells.get(row).cloned().unwrap_or_default());
            let pieces: Vec<String> = match limit {
                Some(limit) if !last.is_to_right => {
                    let options = Options::new(limit).word_splitter(WordSplitter::NoHyphenation);
                    wrap(&cell, options).into_iter().map(Cow::into_owned).collect()
                }
                _ => vec![cell],
            };
            for (index, piece) in pieces.iter().enumerate() {
                let piece = last.padded(piece, last_width(last, limit));
                let before = if index == 0 { before.clone() } else { " ".repeat(indent - 2) };
                lines.push(format!("{before}{piece}").trim_end().to_owned());
            }
        }
        lines
    }
}

/// Columns that are taken by some.
fn before(columns: &[&Column]) -> usize {
    columns.iter().map(|column| column.width() + 2).sum()
}

fn last_width(last: &Column, limit: Option<usize>) -> usize {
    last.width().min(limit.unwrap_or(usize::MAX))
}

/// A disk as rows of characters, darker where more changed, below what they mean.
fn map(shares: &[f64], screen: Screen) -> Vec<String> {
    let (legend, shades) = match screen.is_utf8 {
        true => ("· below 4 %  ░ 16 %  ▒ 36 %  ▓ 64 %  █ above", ['·', '░', '▒', '▓', '█']),
        false => (". below 4 %  : 16 %  + 36 %  # 64 %  @ above", ['.', ':', '+', '#', '@']),
    };
    let shade = |share: &f64| match *share {
        s if s <= 0.0 => ' ',
        s => *shades.get((s.sqrt() * 5.0) as usize).unwrap_or(&shades[4]),
    };
    let is_narrow = screen.columns.is_some_and(|columns| columns < 68);
    let mut lines: Vec<String> = wrapped(&format!("  legend     {legend}"), screen.columns)
        .into_iter()
        .map(Cow::into_owned)
        .collect();
    lines.extend(shares.chunks(if is_narrow { 32 } else { 64 }).map(|row| {
        let cells: String = row.iter().map(shade).collect();
        format!("  |{cells}|")
    }));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn screen(columns: impl Into<Option<usize>>) -> Screen {
        Screen { columns: columns.into(), has_colours: false, is_utf8: true }
    }

    #[test]
    fn what_a_terminal_would_obey_is_shown() {
        let page = Page::new("vm@1  größe\na\u{1b}[2Jb\rc\td\u{9b}31m\u{7f}");
        assert_eq!(
            page.render(screen(None)),
            "vm@1  größe\na\\u{1b}[2Jb\\rc\\td\\u{9b}31m\\u{7f}\n"
        );
        let table = Table::new(&["NAME"], &[vec!["a\u{1b}[2J\nb".into()]]);
        assert_eq!(table.lines(screen(None)), ["  NAME", "  a\\u{1b}[2J\\nb"]);
    }

    #[test]
    fn tables_are_aligned() {
        let rows =
            [["1", "x"], ["10", "größe"], ["2", "日本"]].map(|r| r.map(str::to_owned).to_vec());
        let table = Table::new(&[">#", "NAME"], &rows);
        assert_eq!(
            table.lines(screen(None)),
            ["   #  NAME", "   1  x", "  10  größe", "   2  日本"]
        );
        let to_right = Table::new(&["#", ">NAME"], &rows);
        assert_eq!(
            to_right.lines(screen(None))[1..],
            ["  1       x", "  10  größe", "  2    日本"]
        );
    }

    #[test]
    fn a_table_leaves_out_what_is_needed_least_then_breaks_its_last_column() {
        let row = ["1", "12 min ago", "base", "before the great upgrade (head)"];
        let table = Table::new(&[">#", "AGE", "FROM", "LABEL"], &[row.map(str::to_owned).to_vec()])
            .leaving_out(&["AGE", "FROM"]);
        for (columns, want) in [
            (
                None,
                &[
                    "  #  AGE         FROM  LABEL",
                    "  1  12 min ago  base  before the great upgrade (head)",
                ][..],
            ),
            (
                Some(54),
                &[
                    "  #  AGE         FROM  LABEL",
                    "  1  12 min ago  base  before the great upgrade (head)",
                ],
            ),
            (
                Some(50),
                &[
                    "  #  AGE         FROM  LABEL",
                    "  1  12 min ago  base  before the great upgrade",
                    "                       (head)",
                ],
            ),
            (
                Some(40),
                &["  #  FROM  LABEL", "  1  base  before the great upgrade", "           (head)"],
            ),
            (Some(27), &["  #  LABEL", "  1  before the great", "     upgrade (head)"]),
            (
                Some(10),
                &[
                    "  #  LABEL",
                    "  1  before",
                    "     the",
                    "     great",
                    "     upgrade",
                    "     (head)",
                ],
            ),
        ] {
            assert_eq!(table.lines(screen(columns)), want, "{columns:?}");
        }
    }

    #[test]
    fn long_lines_are_broken_below_their_value() {
        for (columns, want) in [
            (None, "  found    from the tables alone\n"),
            (Some(32), "  found    from the tables alone\n"),
            (Some(26), "  found    from the tables\n           alone\n"),
        ] {
            assert_eq!(Page::new("  found    from the tables alone").render(screen(columns)), want);
        }
        let message = "error: no image \"x\"; \"imgsnap list\" lists the images";
        assert_eq!(message_lines(message, None), [message]);
        assert_eq!(
            message_lines(message, Some(26)),
            ["error: no image \"x\";", "  \"imgsnap list\" lists the", "  images"]
        );
        let path = Page::new("vm  /a/path/that/is/longer/than/that  3 snapshots");
        assert_eq!(
            path.render(screen(Some(20))),
            "vm\n  /a/path/that/is/longer/than/that\n  3 snapshots\n"
        );
        // What stands between double spaces is one thing, and a number is never without its unit.
        for (line, want) in [
            ("vm  /tmp/vm.img  3 snapshots  (x)", "vm  /tmp/vm.img\n  3 snapshots  (x)\n"),
            (
                "  image  1.00 MiB  all read in 1.25 s",
                "  image  1.00 MiB\n         all read in\n         1.25 s\n",
            ),
            ("checked 1,024 blocks in 1.25 s now", "checked 1,024 blocks\n  in 1.25 s now\n"),
        ] {
            assert_eq!(Page::new(line).render(screen(Some(20))), want);
        }
    }

    #[test]
    fn maps_are_for_the_characters_and_the_width_of_a_terminal() {
        let shares: Vec<f64> = (0..64).map(|cell| f64::from(cell % 8) / 7.0).collect();
        let lines = |screen| Page::default().map(shares.clone()).render(screen);
        assert_eq!(lines(screen(80)).lines().count(), 2);
        assert!(lines(screen(80)).lines().all(|line| line.chars().count() <= 68));
        assert!(lines(screen(40)).lines().all(|line| line.chars().count() <= 40));
        let plain = lines(Screen { is_utf8: false, ..screen(80) });
        assert!(plain.is_ascii() && plain.contains("  | :+##@@@ "), "{plain}");
    }
}
