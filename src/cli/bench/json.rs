//! The result for programs: everything, with the unit in each name.

use super::cells;
use imgsnap::bench::{Point, Report, Row, Sweep, Work};
use serde_json::{Value, json};

/// One object.
pub fn render(report: &Report) -> Value {
    let machine = &report.machine;
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "machine": {
            "processor": machine.processor,
            "cores": machine.cores,
            "memory_bytes": machine.memory_bytes,
            "kernel": machine.kernel,
            "filesystem": machine.filesystem,
        },
        "settings": {
            "image": report.image,
            "image_bytes": report.image_bytes,
            "compression": report.compression.to_string(),
            "runs": cells::runs(report),
            "sweep": report.sweep.map(sweep_name),
        },
        "points": report.points.iter().map(point).collect::<Vec<_>>(),
    })
}

fn point(point: &Point) -> Value {
    let setting = &point.setting;
    json!({
        "settings": {
            "block_bytes": setting.block_size.bytes(),
            "change_fraction": setting.change,
            "threads": setting.threads,
            "chain_deltas": setting.chain,
        },
        "changed_bytes": point.changed_bytes,
        "base_bytes": point.base_bytes,
        "delta_bytes": point.delta_bytes,
        "rows": point.rows.iter().map(row).collect::<Vec<_>>(),
    })
}

fn row(row: &Row) -> Value {
    json!({
        "work": work_name(row.work),
        "cache": row.cache.to_string(),
        "covered_bytes": row.covered_bytes,
        "read_bytes": row.read_bytes,
        "written_bytes": row.written_bytes,
        "decoded_bytes": row.decoded_bytes,
        "peak_bytes": row.peak_bytes,
        "seconds": row.seconds(),
        "ceiling_seconds": row.ceiling_seconds(),
        "fraction": row.fraction(),
        "covered_bytes_per_second": row.covered_rate(),
        "written_bytes_per_second": row.written_rate(),
        "samples_seconds": row.samples.iter().map(|s| s.seconds).collect::<Vec<_>>(),
        "samples_ceiling_seconds":
            row.samples.iter().map(|s| s.ceiling_seconds).collect::<Vec<_>>(),
        "ceiling": row.work.ceiling(),
    })
}

/// As it is typed.
fn sweep_name(sweep: Sweep) -> &'static str {
    match sweep {
        Sweep::BlockSize => "block-size",
        Sweep::Change => "change",
        Sweep::Threads => "threads",
        Sweep::Chain => "chain",
    }
}

fn work_name(work: Work) -> &'static str {
    match work {
        Work::Base => "base",
        Work::Unchanged => "unchanged",
        Work::Scan => "scan",
        Work::Incremental => "incremental",
        Work::Restore => "restore",
        Work::Verify => "verify",
        Work::Range => "range",
        Work::Rollback => "rollback",
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;
    use std::collections::BTreeSet;

    /// Numbers that count something.
    const UNITLESS: [&str; 4] = ["cores", "runs", "threads", "fraction"];

    fn ensure_units(value: &Value, name: &str) {
        let has_unit = ["bytes", "seconds", "second", "deltas", "fraction"]
            .iter()
            .any(|unit| name.ends_with(&format!("_{unit}")) || name == *unit);
        match value {
            Value::Number(_) => assert!(has_unit || UNITLESS.contains(&name), "{name} of what?"),
            Value::Array(values) => values.iter().for_each(|value| ensure_units(value, name)),
            Value::Object(fields) => fields.iter().for_each(|(name, v)| ensure_units(v, name)),
            _ => {}
        }
    }

    #[test]
    fn every_number_has_its_unit_in_its_name() {
        for report in [sample::report(true), sample::sweep(Sweep::Change)] {
            ensure_units(&render(&report), "");
        }
    }

    #[test]
    fn everything_that_was_found_is_there() {
        let value = render(&sample::report(true));
        let point = &value["points"][0];
        let rows = point["rows"].as_array().unwrap();
        let key = |row: &Value| (row["work"].to_string(), row["cache"].to_string());
        let keys: BTreeSet<_> = rows.iter().map(key).collect();
        assert_eq!((rows.len(), keys.len()), (16, 16));
        assert_eq!(rows[0]["samples_seconds"], json!([2.0, 8.0, 1.8]));
        assert_eq!(rows[0]["samples_ceiling_seconds"].as_array().unwrap().len(), 3);
        assert_eq!((&rows[0]["fraction"], &rows[0]["seconds"]), (&json!(0.75), &json!(2.0)));
        assert_eq!(rows[4]["peak_bytes"], Value::Null);
        assert_eq!(point["settings"]["block_bytes"], 4096);
        assert_eq!(point["delta_bytes"], 25_769_803);
        assert_eq!(value["machine"]["memory_bytes"], 7_950u64 << 20);
        assert_eq!(value["settings"]["sweep"], Value::Null);
        let value = render(&sample::sweep(Sweep::BlockSize));
        assert_eq!(value["settings"]["sweep"], "block-size");
        assert_eq!(value["points"][2]["settings"]["block_bytes"], 65536);
    }
}
