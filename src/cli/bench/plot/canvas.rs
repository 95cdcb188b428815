//! The sheet that bars and curves are drawn on.

use super::super::cells;
use imgsnap::bench::Report;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

pub(super) const WIDTH: u32 = 900;

/// Title, settings, machine.
pub(super) const HEAD: i32 = 74;
pub(super) const MARGIN: i32 = 20;

/// Characters in a line of small text.
pub(super) const LINE_CHARS: usize = 135;
pub(super) const INK: RGBColor = RGBColor(31, 41, 55);
pub(super) const FAINT_INK: RGBColor = RGBColor(90, 99, 112);
pub(super) const GRID: RGBColor = RGBColor(225, 228, 233);

pub(super) type Canvas<'a> = DrawingArea<SVGBackend<'a>, Shift>;

pub(super) type Drawn<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A white sheet with the title and what was measured.
pub(super) fn sheet<'a>(
    report: &Report,
    title: &str,
    height: i32,
    text: &'a mut String,
) -> Drawn<Canvas<'a>> {
    let canvas = SVGBackend::with_string(text, (WIDTH, height.unsigned_abs())).into_drawing_area();
    canvas.fill(&WHITE)?;
    canvas.draw(&label(title, (MARGIN, 22), 20, INK, HPos::Left))?;
    let settings = format!("{}; {}", cells::image(report), cells::settings(report));
    for (line, y) in [(settings, 44), (cells::machine(report).join(", "), 60)] {
        canvas.draw(&label(&shortened(&line), (MARGIN, y), 14, FAINT_INK, HPos::Left))?;
    }
    Ok(canvas)
}

/// Text at a place in pixels, in the middle of its line.
pub(super) fn label<'a>(
    text: &str,
    at: (i32, i32),
    size: u32,
    color: RGBColor,
    side: HPos,
) -> Text<'a, (i32, i32), String> {
    let style = ("sans-serif", size).into_font().color(&color);
    Text::new(text.to_owned(), at, style.pos(Pos::new(side, VPos::Center)))
}

pub(super) fn shortened(line: &str) -> String {
    if line.chars().count() <= LINE_CHARS {
        return line.to_owned();
    }
    line.chars().take(LINE_CHARS - 1).chain(['…']).collect()
}

/// A number of something with a decimal prefix: `20 kB`, `5 ms`.
pub(super) fn with_prefix(value: f64, unit: &str) -> String {
    const PREFIXES: [(f64, &str); 7] =
        [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ")];
    let fitting = PREFIXES.into_iter().find(|(factor, _)| value >= factor * 0.999_999);
    let (factor, prefix) = fitting.unwrap_or((1e-9, "n"));
    // Of 1, 2 and 5 times a power of ten, nothing stands behind the point.
    format!("{:.0} {prefix}{unit}", value / factor)
}
