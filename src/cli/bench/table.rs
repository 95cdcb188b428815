//! The result as a terminal shows it, in 100 columns.

use super::super::page::{Page, Table};
use super::cells;
use imgsnap::bench::{Report, Work};

/// All of it.
pub fn render(report: &Report) -> Page {
    let [processor, system] = cells::machine(report);
    let head = [
        format!("  image     {}", cells::image(report)),
        format!("  settings  {}", cells::settings(report)),
        format!("  machine   {processor}"),
        format!("            {system}\n"),
    ];
    let (table, legend, works) = match report.sweep {
        Some(sweep) => {
            let works = &[Work::Incremental][..];
            (cells::points(report, sweep), cells::points_legend(sweep), works)
        }
        None => (cells::works(report), vec![cells::WORKS_LEGEND], &Work::ALL[..]),
    };
    let ceilings = cells::ceilings(report, works);
    let ceilings: Vec<_> = ceilings.into_iter().map(|(w, c)| vec![w, c.to_owned()]).collect();
    let legend: Vec<String> = legend.iter().map(|line| format!("\n  {line}")).collect();
    Page::new(head.join("\n"))
        .table(Table::new(&table.headings, &table.rows))
        .text("")
        .table(Table::new(&["CEILING OF", "IS THE TIME OF"], &ceilings))
        .text(legend.concat())
}

#[cfg(test)]
mod tests {
    use super::super::super::screen::Screen;
    use super::super::sample;
    use super::*;
    use imgsnap::bench::{Cache, Sweep};

    const SWEEPS: [Sweep; 4] = [Sweep::BlockSize, Sweep::Change, Sweep::Threads, Sweep::Chain];

    fn text(report: &Report) -> String {
        render(report).render(Screen { is_utf8: true, ..Screen::default() })
    }

    /// Without what stands below the table.
    fn upper(report: &Report) -> String {
        let text = text(report);
        let (upper, lower) = text.split_once("\n\n  CEILING OF").unwrap();
        assert!(lower.contains(Work::Incremental.ceiling()), "{lower}");
        assert_eq!(lower.contains(Work::Verify.ceiling()), report.sweep.is_none(), "{lower}");
        assert!(lower.contains("FRACTION: "), "{lower}");
        upper.to_owned()
    }

    #[test]
    fn one_point_is_exactly_this() {
        insta::assert_snapshot!(upper(&sample::report(false)), @r#"
        image     4.00 GiB, random changes, compressible by 50 %
        settings  4K blocks, 1 % changed, chain of 1 delta, 2 threads, lz4, 3 runs
        machine   EPYC | Turin, 2 cores
                  7.76 GiB of memory, Linux 6.18.5, ext4

        WORK                     TIME  GB/s      READ   WRITTEN  MB/s      PEAK  CEILING  FRACTION
        base snapshot          2.00 s  2.15  4.00 GiB  1.25 GiB   671  64.0 MiB   1.71 s      0.75
        unchanged snapshot     300 ms  14.3  4.00 GiB  4.00 KiB  0.01  30.0 MiB   256 ms      0.75
        scan of changes        320 ms  13.4  4.00 GiB         -     -         -   274 ms      0.75
        incremental snapshot   400 ms  10.7  4.00 GiB  24.6 MiB  64.4  37.0 MiB   342 ms      0.75
        restore                1.20 s  3.58  1.25 GiB  4.00 GiB  3579  85.0 MiB   1.03 s      0.75
        verify                 1.00 s  5.37  1.25 GiB         -     -  61.0 MiB   855 ms      0.75
        scattered reads       52.0 ms  1.29  64.0 MiB         -     -  20.0 MiB  44.5 ms      0.75
        rollback              41.0 ms  1.05  24.6 MiB  41.0 MiB  1048  29.0 MiB  35.1 ms      0.75
        "#);
    }

    #[test]
    fn a_sweep_is_exactly_this() {
        insta::assert_snapshot!(upper(&sample::sweep(Sweep::Chain)), @r#"
        image     4.00 GiB, random changes, compressible by 50 %
        settings  4K blocks, 1 % changed, 2 threads, lz4, 3 runs, varied: deltas in the chain
        machine   EPYC | Turin, 2 cores
                  7.76 GiB of memory, Linux 6.18.5, ext4

        DELTAS   DELTA  FRACTION    STORED   RATIO    BASE  BASE SIZE  RESTORE    SCAN  TIMES
             1  400 ms      0.75  24.6 MiB  60.0 %  2.00 s   1.25 GiB   1.20 s  320 ms   1.00
            10  800 ms      0.75  24.6 MiB  60.0 %  4.00 s   1.25 GiB   2.40 s  640 ms   2.00
           100  1.20 s      0.75  24.6 MiB  60.0 %  6.00 s   1.25 GiB   3.60 s  960 ms   3.00
        "#);
    }

    #[test]
    fn it_fits_in_100_columns_with_wide_numbers() {
        let mut reports = vec![sample::report(false)];
        reports.extend(SWEEPS.map(sample::sweep));
        for (seconds, written_bytes) in [(0.001_23, 9 << 20), (1234.5, 99 << 30)] {
            for report in &mut reports {
                widen(report, seconds, written_bytes);
                for line in text(report).lines() {
                    assert!(line.chars().count() <= 100, "{}: {line}", line.chars().count());
                }
            }
        }
    }

    /// Cold rows too, and numbers with as many digits as they can have.
    fn widen(report: &mut Report, seconds: f64, written_bytes: u64) {
        for point in &mut report.points {
            point.rows.retain(|row| row.cache == Cache::Warm);
            let mut cold = point.rows.clone();
            cold.iter_mut().for_each(|row| row.cache = Cache::Cold);
            point.rows.extend(cold);
            (point.base_bytes, point.delta_bytes) = (99 << 30, 99 << 30);
            for row in &mut point.rows {
                (row.read_bytes, row.written_bytes) = (99 << 30, written_bytes);
                row.peak_bytes = Some(5 << 28);
                for sample in &mut row.samples {
                    (sample.seconds, sample.ceiling_seconds) = (seconds, seconds * 0.98);
                }
            }
        }
    }

    #[test]
    fn columns_stand_under_their_headings() {
        let text = text(&sample::report(true));
        let lines: Vec<&str> = text.lines().collect();
        let top = lines.iter().position(|line| line.trim_start().starts_with("WORK")).unwrap();
        let end = lines[top].find("FRACTION").unwrap() + "FRACTION".len();
        let cache = lines[top].find("CACHE").unwrap();
        let rows = &lines[top + 1..top + 1 + 2 * Work::ALL.len()];
        for (index, row) in rows.iter().enumerate() {
            assert_eq!(row.chars().count(), end, "{row}");
            assert!(row.ends_with("    0.75"), "{row}");
            assert!(row[cache..].starts_with(["warm ", "cold "][index % 2]), "{row}");
        }
        for (work, pair) in Work::ALL.iter().zip(rows.chunks(2)) {
            let name = format!("  {work} ");
            assert!(pair.iter().all(|row| row.starts_with(&name)), "{work}: {pair:?}");
        }
    }
}
