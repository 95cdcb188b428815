//! Curves of a sweep: the bytes of the delta, and the times of the works and their ceilings, over
//! what varies. Both axes of numbers are logarithmic: a sweep spans powers of ten.

use super::super::cells;
use super::canvas::{
    Canvas, Drawn, FAINT_INK, GRID, HEAD, INK, MARGIN, WIDTH, label, sheet, with_prefix,
};
use imgsnap::bench::{Cache, Point, Report, Row, Sweep, Work};
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

const PANEL: i32 = 310;
/// Above the curves of a panel.
const TITLE: i32 = 36;
const NUMBERS: i32 = 70;
const AXIS: i32 = 44;
/// For the legend, to the right of the curves.
const LEGEND: i32 = 185;
const COLORS: [(Work, RGBColor); 4] = [
    (Work::Base, RGBColor(37, 99, 175)),
    (Work::Incremental, RGBColor(196, 84, 12)),
    (Work::Restore, RGBColor(13, 135, 125)),
    (Work::Scan, RGBColor(126, 60, 160)),
];
const CHANGED: RGBColor = RGBColor(130, 140, 155);

struct Panel {
    title: String,
    unit: &'static str,
    curves: Vec<Curve>,
}

struct Curve {
    name: String,
    color: RGBColor,
    is_dashed: bool,
    /// A value for each point, if it was measured.
    values: Vec<Option<f64>>,
}

pub fn draw(report: &Report, sweep: Sweep, text: &mut String) -> Drawn {
    let panels = panels(report, sweep);
    let height = HEAD + PANEL * panels.len() as i32 + MARGIN;
    let canvas = sheet(report, &format!("imgsnap bench, varied: {sweep}"), height, text)?;
    let labels: Vec<String> = report.points.iter().map(|p| p.setting.label(sweep)).collect();
    for (index, panel) in panels.iter().enumerate() {
        let top = HEAD + PANEL * index as i32;
        draw_panel(panel, top, height, sweep, &labels, &canvas)?;
    }
    canvas.present()?;
    Ok(())
}

fn panels(report: &Report, sweep: Sweep) -> Vec<Panel> {
    let each = |value: &dyn Fn(&Point) -> Option<f64>| -> Vec<Option<f64>> {
        report.points.iter().map(|p| value(p).filter(|v| v.is_finite() && *v > 0.0)).collect()
    };
    let bytes = |name: &str, color, is_dashed, of: fn(&Point) -> u64| Curve {
        name: name.into(),
        color,
        is_dashed,
        values: each(&|point| Some(of(point) as f64)),
    };
    let mut panels = vec![Panel {
        title: "Bytes of the delta (logarithmic)".into(),
        unit: "B",
        curves: vec![
            bytes("stored", RGBColor(196, 84, 12), false, |point| point.delta_bytes),
            bytes("changed blocks", CHANGED, true, |point| point.changed_bytes),
        ],
    }];
    for cache in cells::caches(report) {
        let mut curves = Vec::new();
        for (work, color) in COLORS {
            if work == Work::Scan && sweep != Sweep::Chain {
                continue;
            }
            let time = |of: fn(&Row) -> f64| each(&|p| cells::row(p, work, cache).map(of));
            let (seconds, ceiling) = (time(Row::seconds), time(Row::ceiling_seconds));
            let name = work.to_string();
            curves.push(Curve { name, color, is_dashed: false, values: seconds });
            let name = "its ceiling".into();
            curves.push(Curve { name, color, is_dashed: true, values: ceiling });
        }
        let from = if cache == Cache::Warm { "warm cache" } else { "cold" };
        panels.push(Panel { title: format!("Time, {from} (logarithmic)"), unit: "s", curves });
    }
    panels
}

fn draw_panel(
    panel: &Panel,
    top: i32,
    height: i32,
    sweep: Sweep,
    labels: &[String],
    canvas: &Canvas,
) -> Drawn {
    canvas.draw(&label(&panel.title, (MARGIN, top + 12), 16, INK, HPos::Left))?;
    let below = height - top - PANEL;
    let area = canvas.margin(top + TITLE, below, MARGIN, LEGEND + MARGIN);
    let values = || panel.curves.iter().flat_map(|curve| &curve.values).flatten().copied();
    let ticks = ticks(values().fold(f64::MAX, f64::min), values().fold(0.0, f64::max));
    let (low, high) =
        (ticks.first().copied().unwrap_or(1.0), ticks.last().copied().unwrap_or(10.0));
    let count = labels.len().max(1) as f64;
    let places: Vec<f64> = (0..labels.len()).map(|index| index as f64 + 0.5).collect();
    let mut chart = ChartBuilder::on(&area)
        .x_label_area_size(AXIS)
        .y_label_area_size(NUMBERS)
        .build_cartesian_2d(0.0..count, (low..high).log_scale().with_key_points(ticks))?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(0)
        .y_label_formatter(&|value| with_prefix(*value, panel.unit))
        .x_desc(sweep.to_string())
        .bold_line_style(GRID)
        .axis_style(FAINT_INK)
        .label_style(("sans-serif", 14).into_font().color(&FAINT_INK))
        .draw()?;
    for (place, text) in places.iter().zip(labels) {
        let (x, y) = chart.backend_coord(&(*place, low));
        canvas.draw(&label(text, (x, y + 14), 14, FAINT_INK, HPos::Center))?;
    }
    for (slot, curve) in panel.curves.iter().enumerate() {
        let values = places.iter().zip(&curve.values);
        let points: Vec<(f64, f64)> = values.filter_map(|(x, y)| Some((*x, (*y)?))).collect();
        let style = curve.color.stroke_width(2);
        let y = top + TITLE + 14 + slot as i32 * 20;
        let x = WIDTH as i32 - LEGEND;
        if curve.is_dashed {
            chart.draw_series(DashedLineSeries::new(points, 5, 5, style))?;
            for dash in [x, x + 10, x + 20] {
                canvas.draw(&PathElement::new([(dash, y), (dash + 5, y)], style))?;
            }
        } else {
            let dots = points.iter().map(|point| Circle::new(*point, 4, curve.color.filled()));
            chart.draw_series(dots)?;
            chart.draw_series(LineSeries::new(points, style))?;
            canvas.draw(&PathElement::new([(x, y), (x + 26, y)], style))?;
            canvas.draw(&Circle::new((x + 13, y), 4, curve.color.filled()))?;
        }
        canvas.draw(&label(&curve.name, (x + 38, y), 14, INK, HPos::Left))?;
    }
    Ok(())
}

/// 1, 2 and 5 times powers of ten, the first at most the least value and the last at least the
/// greatest; powers of ten alone if they are many.
fn ticks(least: f64, greatest: f64) -> Vec<f64> {
    const MOST: usize = 10;
    if !(least > 0.0 && greatest.is_finite() && least <= greatest) {
        return vec![1.0, 10.0];
    }
    let decade = |value: f64| value.log10().floor() as i32;
    let (first, last) = (decade(least), decade(greatest) + 1);
    let series = |factors: &[f64]| -> Vec<f64> {
        let decades = first..=last;
        let all: Vec<f64> =
            decades.flat_map(|n| factors.iter().map(move |f| f * 10f64.powi(n))).collect();
        let from = all.iter().rposition(|tick| *tick <= least).unwrap_or(0);
        let to = all.iter().position(|tick| *tick >= greatest).unwrap_or(all.len());
        // One value alone has a tick on either side.
        all.get(from..=to.max(from + 1)).map(<[f64]>::to_vec).unwrap_or(all)
    };
    let fine = series(&[1.0, 2.0, 5.0]);
    if fine.len() <= MOST { fine } else { series(&[1.0]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_enclose_what_is_drawn() {
        let close = |found: &[f64], wanted: &[f64]| {
            let pairs = || found.iter().zip(wanted);
            found.len() == wanted.len() && pairs().all(|(a, b)| (a / b - 1.0).abs() < 1e-9)
        };
        for (least, greatest, wanted) in [
            (0.24, 2.3, &[0.2, 0.5, 1.0, 2.0, 5.0][..]),
            (3.0, 3.0, &[2.0, 5.0]),
            (7.0, 8.0, &[5.0, 10.0]),
            (0.003, 4000.0, &[0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0, 10_000.0]),
            (f64::MAX, 0.0, &[1.0, 10.0]),
            (0.0, 1.0, &[1.0, 10.0]),
        ] {
            let found = ticks(least, greatest);
            assert!(close(&found, wanted), "{least} to {greatest}: {found:?}");
        }
        for exponent in -9..15 {
            for factor in [1.0, 2.0, 3.0, 5.0, 9.99] {
                let value = factor * 10f64.powi(exponent);
                let found = ticks(value, value * 1.5);
                assert!(found.len() >= 2, "{value}: {found:?}");
                assert!(found[0] <= value && *found.last().unwrap() >= value * 1.5, "{found:?}");
            }
        }
    }
}
