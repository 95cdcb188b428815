//! What every exporter for people says, however it is laid out: settings, machine, tables as
//! headings and cells, and what the ceilings are.

use super::output;
use imgsnap::bench::{Cache, Point, Report, Row, Sweep, Work};

/// A table that is not laid out yet; `>` before a heading: to the right.
pub struct Table {
    pub headings: Vec<&'static str>,
    pub rows: Vec<Vec<String>>,
}

/// What the image was.
pub fn image(report: &Report) -> String {
    format!("{}, {}", output::bytes(report.image_bytes), one_line(&report.image))
}

/// With what it was measured; in a sweep without what varies.
pub fn settings(report: &Report) -> String {
    let mut parts = Vec::new();
    if let Some(Point { setting, .. }) = report.points.first() {
        for (sweep, text) in [
            (Sweep::BlockSize, format!("{} blocks", setting.block_size)),
            (Sweep::Change, format!("{} changed", output::share(setting.change))),
            (Sweep::Chain, format!("chain of {}", output::plural(setting.chain as u64, "delta"))),
            (Sweep::Threads, output::plural(setting.threads as u64, "thread")),
        ] {
            parts.extend((report.sweep != Some(sweep)).then_some(text));
        }
    }
    parts.push(report.compression.to_string());
    parts.push(output::plural(runs(report) as u64, "run"));
    parts.extend(report.sweep.map(|sweep| format!("varied: {sweep}")));
    parts.join(", ")
}

/// On what it was measured: the processor, and the rest.
pub fn machine(report: &Report) -> [String; 2] {
    let machine = &report.machine;
    let cores = output::plural(machine.cores as u64, "core");
    let memory = output::bytes(machine.memory_bytes);
    [
        format!("{}, {cores}", one_line(&machine.processor)),
        one_line(&format!("{memory} of memory, {}, {}", machine.kernel, machine.filesystem)),
    ]
}

/// Paths and names of devices may hold anything.
fn one_line(text: &str) -> String {
    text.replace(char::is_control, "?")
}

/// How often each work was run.
pub fn runs(report: &Report) -> usize {
    let rows = report.points.iter().flat_map(|point| &point.rows);
    rows.map(|row| row.samples.len()).max().unwrap_or(0)
}

/// From where: warm, and cold if that was measured too.
pub fn caches(report: &Report) -> Vec<Cache> {
    let has = |cache: &Cache| {
        report.points.iter().flat_map(|point| &point.rows).any(|row| row.cache == *cache)
    };
    [Cache::Warm, Cache::Cold].into_iter().filter(has).collect()
}

/// A work at a point.
pub fn row(point: &Point, work: Work, cache: Cache) -> Option<&Row> {
    point.rows.iter().find(|row| row.work == work && row.cache == cache)
}

/// What the cells of [`works`] are.
pub const WORKS_LEGEND: &str = "GB/s: of the image covered. MB/s: of what is written. \
    FRACTION: CEILING / TIME, the runs' median.";

/// Every work; in a sweep, of every point.
pub fn works(report: &Report) -> Table {
    let has_cold = caches(report).contains(&Cache::Cold);
    let mut headings: Vec<&str> = report.sweep.map(heading).into_iter().collect();
    headings.push("WORK");
    headings.extend(has_cold.then_some("CACHE"));
    headings.extend([">TIME", ">GB/s", ">READ", ">WRITTEN", ">MB/s"]);
    headings.extend([">PEAK", ">CEILING", ">FRACTION"]);
    let mut rows = Vec::new();
    for point in &report.points {
        for row in &point.rows {
            let mut cells: Vec<String> =
                report.sweep.map(|sweep| point.setting.label(sweep)).into_iter().collect();
            cells.push(row.work.to_string());
            cells.extend(has_cold.then(|| row.cache.to_string()));
            let is_written = row.written_bytes > 0;
            cells.extend([
                output::seconds(row.seconds()),
                output::digits(row.covered_rate() / 1e9),
                amount((row.read_bytes > 0).then_some(row.read_bytes)),
                amount(is_written.then_some(row.written_bytes)),
                or_dash(is_written.then(|| output::digits(row.written_rate() / 1e6))),
                amount(row.peak_bytes),
                output::seconds(row.ceiling_seconds()),
                fraction(row.fraction()),
            ]);
            rows.push(cells);
        }
    }
    Table { headings, rows }
}

/// What the cells of [`points`] are.
pub fn points_legend(sweep: Sweep) -> Vec<&'static str> {
    let mut lines = vec![
        "DELTA, FRACTION: time of the incremental snapshot, and the fraction of its ceiling.",
        "STORED, RATIO: bytes of its file, and their share of the changed bytes.",
        "BASE, BASE SIZE: time of the first snapshot, and bytes of its file. RESTORE: time.",
    ];
    let of_chain = "SCAN, TIMES: time of a scan, and its ratio to that of the first row.";
    lines.extend((sweep == Sweep::Chain).then_some(of_chain));
    lines
}

/// The points of a sweep, one a row for each cache.
pub fn points(report: &Report, sweep: Sweep) -> Table {
    let caches = caches(report);
    let has_cold = caches.contains(&Cache::Cold);
    let is_chain = sweep == Sweep::Chain;
    let mut headings = vec![heading(sweep)];
    headings.extend(has_cold.then_some("CACHE"));
    headings.extend([">DELTA", ">FRACTION", ">STORED", ">RATIO"]);
    headings.extend([">BASE", ">BASE SIZE", ">RESTORE"]);
    headings.extend(is_chain.then_some([">SCAN", ">TIMES"]).into_iter().flatten());
    let mut rows = Vec::new();
    for point in &report.points {
        for &cache in &caches {
            let time =
                |work| or_dash(row(point, work, cache).map(|r| output::seconds(r.seconds())));
            let snapshot = row(point, Work::Incremental, cache);
            let mut cells = vec![point.setting.label(sweep)];
            cells.extend(has_cold.then(|| cache.to_string()));
            cells.extend([
                time(Work::Incremental),
                or_dash(snapshot.map(|row| fraction(row.fraction()))),
                output::bytes(point.delta_bytes),
                output::percent(point.delta_bytes, point.changed_bytes),
                time(Work::Base),
                output::bytes(point.base_bytes),
                time(Work::Restore),
            ]);
            if is_chain {
                let scan = |point| row(point, Work::Scan, cache).map(Row::seconds);
                let first = report.points.first().and_then(scan);
                let times = scan(point).zip(first).map(|(s, first)| s / first.max(1e-9));
                cells.extend([time(Work::Scan), or_dash(times.map(output::digits))]);
            }
            rows.push(cells);
        }
    }
    Table { headings, rows }
}

/// The works that were run, put together where they are held against the same.
pub fn ceilings(report: &Report, works: &[Work]) -> Vec<(String, &'static str)> {
    let mut found: Vec<(String, &str)> = Vec::new();
    for work in works {
        let is_run = report.points.iter().flat_map(|point| &point.rows).any(|r| r.work == *work);
        let same = found.iter_mut().find(|(_, ceiling)| *ceiling == work.ceiling());
        match same {
            _ if !is_run => {}
            Some((works, _)) => works.push_str(&format!(", {work}")),
            None => found.push((work.to_string(), work.ceiling())),
        }
    }
    found
}

fn heading(sweep: Sweep) -> &'static str {
    match sweep {
        Sweep::BlockSize => ">BLOCK SIZE",
        Sweep::Change => ">CHANGE",
        Sweep::Threads => ">THREADS",
        Sweep::Chain => ">DELTAS",
    }
}

/// Of the ceiling: two digits, as noise allows no more.
pub fn fraction(fraction: f64) -> String {
    format!("{fraction:.2}")
}

fn amount(bytes: Option<u64>) -> String {
    or_dash(bytes.map(output::bytes))
}

fn or_dash(cell: Option<String>) -> String {
    cell.unwrap_or_else(|| "-".into())
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn settings_name_all_but_what_varies() {
        for (sweep, text) in [
            (None, "4K blocks, 1 % changed, chain of 1 delta, 2 threads, lz4, 3 runs"),
            (
                Some(Sweep::BlockSize),
                "1 % changed, chain of 1 delta, 2 threads, lz4, 3 runs, varied: block size",
            ),
            (
                Some(Sweep::Chain),
                "4K blocks, 1 % changed, 2 threads, lz4, 3 runs, varied: deltas in the chain",
            ),
        ] {
            let report = sweep.map_or_else(|| sample::report(false), sample::sweep);
            assert_eq!(settings(&report), text);
        }
    }

    #[test]
    fn machine_and_image_are_one_line_whatever_they_are_called() {
        let mut report = sample::report(false);
        let machine = machine(&report);
        let text = ["EPYC | Turin, 2 cores", "7.76 GiB of memory, Linux 6.18.5, ext4"];
        assert_eq!(machine, text);
        report.image = "a\nb\u{1b}.img".into();
        assert_eq!(image(&report), "4.00 GiB, a?b?.img");
    }

    #[test]
    fn a_row_says_what_the_work_did_and_what_fraction_it_reached() {
        let table = works(&sample::report(false));
        assert_eq!(table.rows.len(), Work::ALL.len());
        let base = table.rows.first().unwrap();
        // 4 GiB in 2 s; 1.25 GiB written; the fractions of the runs are 0.75, 0.5 and 0.95.
        let cells = ["base snapshot", "2.00 s", "2.15", "4.00 GiB", "1.25 GiB", "671"];
        assert_eq!(base.get(..6).unwrap(), cells);
        assert_eq!(base.get(6..).unwrap(), ["64.0 MiB", "1.71 s", "0.75"]);
        let scan = table.rows.get(2).unwrap();
        assert_eq!((scan[4].as_str(), scan[5].as_str(), scan[6].as_str()), ("-", "-", "-"));
    }

    #[test]
    fn cold_rows_have_a_column_of_their_own() {
        let table = works(&sample::report(true));
        assert_eq!(table.headings.get(1), Some(&"CACHE"));
        let caches: Vec<&str> = table.rows.iter().map(|row| row[1].as_str()).collect();
        assert_eq!(caches.iter().filter(|c| **c == "cold").count(), Work::ALL.len());
        assert!(!works(&sample::report(false)).headings.contains(&"CACHE"));
    }

    #[test]
    fn a_sweep_has_a_row_a_point_and_a_chain_its_scans() {
        let table = points(&sample::sweep(Sweep::BlockSize), Sweep::BlockSize);
        let varied: Vec<&str> = table.rows.iter().map(|row| row[0].as_str()).collect();
        assert_eq!(varied, ["4K", "16K", "64K"]);
        assert!(!table.headings.contains(&">SCAN"));
        let cells = ["4K", "400 ms", "0.75", "24.6 MiB", "60.0 %", "2.00 s", "1.25 GiB", "1.20 s"];
        assert_eq!(table.rows[0], cells);
        let table = points(&sample::sweep(Sweep::Chain), Sweep::Chain);
        assert!(table.headings.ends_with(&[">SCAN", ">TIMES"]));
        let times: Vec<&str> = table.rows.iter().map(|row| row.last().unwrap().as_str()).collect();
        assert_eq!(times, ["1.00", "2.00", "3.00"]);
    }

    #[test]
    fn what_was_not_measured_is_a_dash() {
        let mut report = sample::sweep(Sweep::Chain);
        report.points[0].rows.clear();
        let table = points(&report, Sweep::Chain);
        for row in &table.rows {
            assert_eq!(row.len(), table.headings.len());
        }
        assert_eq!((table.rows[0][1].as_str(), table.rows[1].last().unwrap().as_str()), ("-", "-"));
    }

    #[test]
    fn works_with_the_same_ceiling_are_named_together() {
        let ceilings = ceilings(&sample::report(true), &Work::ALL);
        assert_eq!(
            ceilings[1],
            ("unchanged snapshot, scan of changes".into(), Work::Scan.ceiling())
        );
        let works: Vec<&str> = ceilings.iter().flat_map(|(works, _)| works.split(", ")).collect();
        assert_eq!(works.len(), Work::ALL.len());
    }
}
