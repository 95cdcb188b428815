//! The result as a picture (SVG): bars of the works beside their ceilings, or in a sweep curves.
//!
//! Text is placed by anchors alone, never by its width: that depends on whoever shows the picture.

mod bars;
mod canvas;
mod curves;

use imgsnap::base::error::{Error, ErrorKind, Result};
use imgsnap::bench::Report;

/// The whole file.
pub fn render(report: &Report) -> Result<String> {
    let mut text = String::new();
    let drawn = match report.sweep {
        Some(sweep) => curves::draw(report, sweep, &mut text),
        None => bars::draw(report, &mut text),
    };
    // Nothing is written but a string; this is a mistake in what was asked of the plotter.
    drawn.map_err(|e| Error::new(ErrorKind::Unsupported, format!("cannot draw the plot: {e}")))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::canvas::with_prefix;
    use super::*;
    use imgsnap::bench::{Sweep, Work};

    /// Fails unless tags are closed in order and nothing stands raw that must be escaped.
    fn ensure_well_formed(text: &str) {
        let mut open = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find('<') {
            ensure_escaped(&rest[..at]);
            let end = rest[at..].find('>').expect("a tag without an end") + at;
            let tag = &rest[at + 1..end];
            assert!(!tag.contains('<'), "a tag in a tag: {tag}");
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name), "closed out of order");
            } else {
                assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
                tag.split('"').for_each(ensure_escaped);
                let name = tag.split(' ').next().unwrap();
                open.extend((!tag.ends_with('/')).then_some(name));
            }
            rest = &rest[end + 1..];
        }
        ensure_escaped(rest);
        assert!(open.is_empty(), "not closed: {open:?}");
    }

    fn ensure_escaped(text: &str) {
        assert!(!text.contains(['<', '>']), "{text}");
        assert!(!text.contains(|c: char| c.is_control() && !c.is_whitespace()), "{text:?}");
        for (at, _) in text.match_indices('&') {
            let known = ["&lt;", "&gt;", "&amp;", "&quot;", "&apos;"];
            assert!(known.iter().any(|entity| text[at..].starts_with(entity)), "{text}");
        }
    }

    fn keep(name: &str, text: &str) {
        // To be looked at: IMGSNAP_PLOTS=/tmp/plots cargo test
        if let Some(folder) = std::env::var_os("IMGSNAP_PLOTS") {
            std::fs::write(std::path::Path::new(&folder).join(name), text).unwrap();
        }
    }

    #[test]
    fn bars_name_every_work_and_its_fraction() {
        for cold in [false, true] {
            let text = render(&sample::report(cold)).unwrap();
            keep(if cold { "cold.svg" } else { "warm.svg" }, &text);
            ensure_well_formed(&text);
            for work in Work::ALL {
                assert!(text.contains(&format!("\n{work}")), "{work}");
            }
            let fractions = text.matches("(0.75)").count();
            assert_eq!(fractions, Work::ALL.len() * if cold { 2 } else { 1 });
            assert!(text.contains("EPYC | Turin") && text.contains("#FFFFFF"), "{text}");
        }
    }

    #[test]
    fn curves_have_every_point_of_the_sweep_under_them() {
        for (sweep, labels) in [
            (Sweep::BlockSize, ["4K", "16K", "64K"]),
            (Sweep::Change, ["0.1 %", "1 %", "10 %"]),
            (Sweep::Threads, ["1", "2", "4"]),
            (Sweep::Chain, ["1", "10", "100"]),
        ] {
            let text = render(&sample::sweep(sweep)).unwrap();
            keep(&format!("{sweep}.svg").replace(' ', "-"), &text);
            ensure_well_formed(&text);
            for label in labels {
                assert!(text.matches(&format!("\n{label}\n")).count() >= 2, "{label}: {text}");
            }
            for work in [Work::Base, Work::Incremental, Work::Restore] {
                assert!(text.contains(&format!("\n{work}\n")), "{work}");
            }
            assert_eq!(text.contains(&format!("\n{}\n", Work::Scan)), sweep == Sweep::Chain);
        }
    }

    #[test]
    fn any_name_of_an_image_and_any_number_can_be_drawn() {
        let mut reports = vec![sample::report(true), sample::sweep(Sweep::Change)];
        for report in &mut reports {
            report.image = format!("<a & \"b\">\u{7}{}", "x".repeat(300));
            for (index, row) in report.points.iter_mut().flat_map(|p| &mut p.rows).enumerate() {
                let seconds = [0.0, f64::NAN, f64::INFINITY, 1e-9, 1e9][index % 5];
                row.samples.iter_mut().for_each(|s| s.seconds = seconds);
            }
            ensure_well_formed(&render(report).unwrap());
            report.points.iter_mut().for_each(|point| {
                point.rows.truncate(1);
                (point.delta_bytes, point.changed_bytes) = (0, 0);
            });
            ensure_well_formed(&render(report).unwrap());
            report.points.iter_mut().for_each(|point| point.rows.clear());
            ensure_well_formed(&render(report).unwrap());
        }
    }

    #[test]
    fn numbers_have_the_prefix_that_keeps_them_short() {
        for (value, text) in
            [(0.005, "5 ms"), (1.0, "1 s"), (20.0, "20 s"), (5e5, "500 ks"), (2e-6, "2 µs")]
        {
            assert_eq!(with_prefix(value, "s"), text);
        }
        assert_eq!((with_prefix(2e9, "B"), with_prefix(1e3, "B")), ("2 GB".into(), "1 kB".into()));
    }
}
