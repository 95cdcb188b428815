//! Bars: how much of the image each work covers in a second, and what its ceiling would.

use super::super::{cells, output};
use super::canvas::{Canvas, Drawn, FAINT_INK, GRID, HEAD, INK, MARGIN, label, sheet};
use imgsnap::bench::{Cache, Report, Row};
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

const WARM: RGBColor = RGBColor(37, 99, 175);
const COLD: RGBColor = RGBColor(13, 135, 125);
const CEILING: RGBColor = RGBColor(178, 187, 200);
const LEGEND: i32 = 26;
const ROW: i32 = 42;
const AXIS: i32 = 46;
/// For the names of the works.
const NAMES: i32 = 205;
/// The longest bar leaves room for its numbers.
const ROOM: f64 = 1.18;

pub fn draw(report: &Report, text: &mut String) -> Drawn {
    let rows: Vec<&Row> = report.points.iter().flat_map(|point| &point.rows).collect();
    let bars = ROW * rows.len().max(1) as i32;
    let title = "imgsnap bench: each operation, and (the fraction) of its ceiling that it reaches";
    let canvas = sheet(report, title, HEAD + LEGEND + bars + AXIS + MARGIN, text)?;
    legend(report, &canvas)?;
    let plot = canvas.margin(HEAD + LEGEND, MARGIN, NAMES, MARGIN);
    let longest = rows.iter().flat_map(|row| rates(row)).fold(0.0, f64::max);
    let longest = if longest > 0.0 { longest } else { 1.0 };
    let count = rows.len().max(1) as f64;
    let mut chart = ChartBuilder::on(&plot)
        .x_label_area_size(AXIS)
        .build_cartesian_2d(0.0..longest * ROOM, count..0.0)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(0)
        .x_labels(8)
        .x_max_light_lines(0)
        .x_label_formatter(&|rate| if *rate < 1e-12 { "0".into() } else { short(*rate) })
        .x_desc("GB/s of the image covered")
        .bold_line_style(GRID)
        .axis_style(FAINT_INK)
        .label_style(("sans-serif", 14).into_font().color(&FAINT_INK))
        .draw()?;
    for (index, row) in rows.into_iter().enumerate() {
        let top = index as f64;
        let [work, ceiling] = rates(row);
        let color = if row.cache == Cache::Warm { WARM } else { COLD };
        let texts = [
            format!("{} ({})", output::digits(work), cells::fraction(row.fraction())),
            output::digits(ceiling),
        ];
        let bars = [(work, color, 0.12), (ceiling, CEILING, 0.50)];
        for ((rate, color, offset), text) in bars.into_iter().zip(texts) {
            let (from, to) = (top + offset, top + offset + 0.36);
            chart.draw_series([Rectangle::new([(0.0, from), (rate, to)], color.filled())])?;
            let (x, y) = chart.backend_coord(&(rate, (from + to) / 2.0));
            let ink = if color == CEILING { FAINT_INK } else { INK };
            canvas.draw(&label(&text, (x + 6, y), 14, ink, HPos::Left))?;
        }
        let (x, y) = chart.backend_coord(&(0.0, top + 0.5));
        let name = match row.cache {
            Cache::Warm => row.work.to_string(),
            Cache::Cold => format!("{}, cold", row.work),
        };
        canvas.draw(&label(&name, (x - 10, y), 15, INK, HPos::Right))?;
    }
    canvas.present()?;
    Ok(())
}

/// GB/s of the work and of its ceiling; nothing that cannot be drawn.
fn rates(row: &Row) -> [f64; 2] {
    [row.seconds(), row.ceiling_seconds()].map(|seconds| {
        let rate = row.covered_bytes as f64 / seconds.max(1e-9) / 1e9;
        if rate.is_finite() { rate } else { 0.0 }
    })
}

fn short(rate: f64) -> String {
    format!("{}", (rate * 1e6).round() / 1e6)
}

fn legend(report: &Report, canvas: &Canvas) -> Drawn {
    let mut entries = vec![("work, warm cache", WARM)];
    entries.extend(cells::caches(report).contains(&Cache::Cold).then_some(("work, cold", COLD)));
    entries.push(("its ceiling", CEILING));
    for (slot, (name, color)) in entries.into_iter().enumerate() {
        let (x, y) = (NAMES + slot as i32 * 150, HEAD + LEGEND / 2);
        let swatch = [(x, y - 5), (x + 14, y + 5)];
        canvas.draw(&Rectangle::new(swatch, color.filled()))?;
        canvas.draw(&label(name, (x + 20, y), 14, INK, HPos::Left))?;
    }
    Ok(())
}
