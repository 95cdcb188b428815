//! The result as a section of a Markdown file, for GitHub.

use super::cells::{self, Table};
use imgsnap::bench::{Report, Work};

/// All of it, ending with a line break.
pub fn render(report: &Report) -> String {
    let mut parts = vec![format!(
        "imgsnap {} on {}. Image: {}. Settings: {}.",
        env!("CARGO_PKG_VERSION"),
        escape(&cells::machine(report).join(", ")),
        escape(&cells::image(report)),
        escape(&cells::settings(report)),
    )];
    if let Some(sweep) = report.sweep {
        parts.push(table(&cells::points(report, sweep)));
        parts.push(cells::points_legend(sweep).join("\n"));
    }
    parts.push(table(&cells::works(report)));
    parts.push(cells::WORKS_LEGEND.to_owned());
    parts.push("The ceiling, run in turn with the work:".to_owned());
    let ceilings = cells::ceilings(report, &Work::ALL);
    let ceilings: Vec<_> = ceilings.iter().map(|(works, is)| format!("- {works}: {is}")).collect();
    parts.push(ceilings.join("\n"));
    format!("{}\n", parts.join("\n\n"))
}

fn table(table: &Table) -> String {
    let line = |cells: Vec<String>| format!("| {} |", cells.join(" | "));
    let names = table.headings.iter().map(|h| escape(h.trim_start_matches('>')));
    let sides = table.headings.iter().map(|h| if h.starts_with('>') { "---:" } else { "---" });
    let mut lines = vec![line(names.collect()), line(sides.map(str::to_owned).collect())];
    lines.extend(table.rows.iter().map(|row| line(row.iter().map(|c| escape(c)).collect())));
    lines.join("\n")
}

/// Takes the meaning from what would end a cell, or begin something.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        if r"\|`*_<>[]&~#".contains(c) {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use imgsnap::bench::Sweep;

    /// Cells of a line of a table, as GitHub counts them.
    fn columns(line: &str) -> usize {
        line.replace("\\\\", "").replace("\\|", "").matches('|').count() - 1
    }

    /// The tables of a text, as their lines.
    fn tables(text: &str) -> Vec<Vec<&str>> {
        let is_table = |part: &&str| part.starts_with('|');
        text.split("\n\n").filter(is_table).map(|part| part.lines().collect()).collect()
    }

    #[test]
    fn every_row_has_as_many_columns_as_the_headings() {
        let mut reports = vec![(sample::report(false), 1), (sample::report(true), 1)];
        let sweeps = [Sweep::BlockSize, Sweep::Change, Sweep::Threads, Sweep::Chain];
        reports.extend(sweeps.map(|sweep| (sample::sweep(sweep), 2)));
        for (report, count) in reports {
            let text = render(&report);
            let tables = tables(&text);
            assert_eq!(tables.len(), count, "{text}");
            for lines in tables {
                assert!(lines[1].starts_with("| ---"), "{text}");
                for line in &lines {
                    assert_eq!(columns(line), columns(lines[0]), "{line}");
                }
            }
            for work in Work::ALL {
                assert!(text.contains(&format!("| {work} |")), "{work}: {text}");
            }
        }
    }

    #[test]
    fn numbers_stand_to_the_right_and_ceilings_below() {
        let text = render(&sample::report(false));
        let lines = tables(&text).remove(0);
        assert!(lines[0].starts_with("| WORK | TIME | GB/s |"), "{text}");
        assert!(lines[1].starts_with("| --- | ---: | ---: |"), "{text}");
        assert!(lines[2].starts_with("| base snapshot | 2.00 s | 2.15 |"), "{text}");
        assert!(lines[2].ends_with("| 1.71 s | 0.75 |"), "{text}");
        let last = format!("- rollback: {}\n", Work::Rollback.ceiling());
        assert!(text.ends_with(&last), "{text}");
        assert!(!text.contains("# "), "it has a title: {text}");
    }

    #[test]
    fn what_markdown_would_take_for_its_own_is_escaped() {
        let mut report = sample::report(false);
        report.image = r"a|b\`<i>_*.img".into();
        let text = render(&report);
        assert!(text.contains(r"a\|b\\\`\<i\>\_\*.img"), "{text}");
        assert!(text.contains(r"EPYC \| Turin"), "{text}");
        assert_eq!(columns(&format!("| {} | x |", escape(&report.image))), 2);
    }
}
