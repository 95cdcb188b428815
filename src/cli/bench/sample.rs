//! Reports made by hand, for the tests of the exporters.

use imgsnap::base::units::BlockSize;
use imgsnap::bench::{Cache, Machine, Point, Report, Row, Sample, Setting, Sweep, Work};
use imgsnap::codec::Compression;

const GIB: u64 = 1 << 30;

/// One setting, each work once; with `cold` twice.
pub fn report(cold: bool) -> Report {
    let mut rows: Vec<Row> = Vec::new();
    for work in Work::ALL {
        rows.push(row(work, Cache::Warm, 1.0));
        rows.extend(cold.then(|| row(work, Cache::Cold, 2.5)));
    }
    Report {
        machine: Machine {
            processor: "EPYC | Turin".into(),
            cores: 2,
            memory_bytes: 7_950 << 20,
            kernel: "Linux 6.18.5".into(),
            filesystem: "ext4".into(),
        },
        image_bytes: 4 * GIB,
        image: "random changes, compressible by 50 %".into(),
        compression: Compression::Lz4,
        sweep: None,
        points: vec![Point {
            setting: Setting { block_size: BlockSize::DEFAULT, change: 0.01, threads: 2, chain: 1 },
            changed_bytes: 42_949_672,
            base_bytes: 5 * GIB / 4,
            delta_bytes: 25_769_803,
            rows,
        }],
    }
}

/// Three points, the works slower from one to the next.
pub fn sweep(sweep: Sweep) -> Report {
    let mut report = report(false);
    let first = report.points.remove(0);
    report.sweep = Some(sweep);
    for step in 0..3u32 {
        let mut point = first.clone();
        point.setting.block_size = BlockSize::new(4096 << (2 * step)).unwrap();
        point.setting.change = 0.001 * f64::from(10u32.pow(step));
        point.setting.threads = 1 << step;
        point.setting.chain = 10usize.pow(step);
        if matches!(sweep, Sweep::BlockSize | Sweep::Change) {
            point.changed_bytes <<= 3 * step;
            point.delta_bytes <<= 3 * step;
        }
        for sample in point.rows.iter_mut().flat_map(|row| &mut row.samples) {
            sample.seconds *= f64::from(step + 1);
            sample.ceiling_seconds *= f64::from(step + 1);
        }
        report.points.push(point);
    }
    // Only what varies differs.
    let usual = Setting { block_size: BlockSize::DEFAULT, change: 0.01, threads: 2, chain: 1 };
    for Setting { block_size, change, threads, chain } in
        report.points.iter_mut().map(|point| &mut point.setting)
    {
        *block_size = if sweep == Sweep::BlockSize { *block_size } else { usual.block_size };
        *change = if sweep == Sweep::Change { *change } else { usual.change };
        *threads = if sweep == Sweep::Threads { *threads } else { usual.threads };
        *chain = if sweep == Sweep::Chain { *chain } else { usual.chain };
    }
    report
}

fn row(work: Work, cache: Cache, slower: f64) -> Row {
    let (covered, read, written, peak, seconds) = match work {
        Work::Base => (4 * GIB, 4 * GIB, 5 * GIB / 4, Some(64 << 20), 2.0),
        Work::Unchanged => (4 * GIB, 4 * GIB, 4096, Some(30 << 20), 0.3),
        Work::Scan => (4 * GIB, 4 * GIB, 0, None, 0.32),
        Work::Incremental => (4 * GIB, 4 * GIB, 25_769_803, Some(37 << 20), 0.4),
        Work::Restore => (4 * GIB, 5 * GIB / 4, 4 * GIB, Some(85 << 20), 1.2),
        Work::Verify => (5 * GIB, 5 * GIB / 4, 0, Some(61 << 20), 1.0),
        Work::Range => (64 << 20, 64 << 20, 0, Some(20 << 20), 0.052),
        Work::Rollback => (42_949_672, 25_769_803, 42_949_672, Some(29 << 20), 0.041),
    };
    // The middle time is that of the first; the middle fraction, 0.75, is not that of the middles.
    let sample = |times: f64, fraction: f64| {
        let seconds = seconds * slower * times;
        Sample { seconds, ceiling_seconds: seconds * fraction }
    };
    Row {
        work,
        cache,
        covered_bytes: covered,
        read_bytes: read,
        written_bytes: written,
        decoded_bytes: 0,
        peak_bytes: peak,
        samples: vec![sample(1.0, 0.75), sample(4.0, 0.5), sample(0.9, 0.95)],
    }
}
