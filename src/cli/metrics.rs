//! `imgsnap stats --metrics`: what monitoring needs, as node_exporter's textfile collector reads it.

use super::printer::Printer;
use super::{exit, words};
use imgsnap::base::error::{Error, ErrorKind, Result, best_effort};
use imgsnap::base::events::Context;
use imgsnap::base::folder::{Folder, resolve_new};
use imgsnap::base::uri::Shown;
use imgsnap::repo::manifest::Snapshot;
use imgsnap::{Listing, Repository, refuse_inside_any};
use jiff::Timestamp;
use nix::fcntl::OFlag;
use serde_json::json;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

/// One metric: its name, what it is, and of which images it has which value.
struct Metric {
    name: &'static str,
    help: &'static str,
    samples: Vec<(String, f64)>,
}

/// What is told of an image: a name, a text, and the value, if there is one.
type Of = (&'static str, &'static str, fn(&Image) -> Option<f64>);

struct Image {
    /// None if its manifest cannot be read.
    listing: Option<Listing>,
    now: Timestamp,
}

impl Image {
    fn newest(&self) -> Option<&Snapshot> {
        self.listing.as_ref()?.manifest.latest()
    }

    /// Seconds between two times; the clock may have been put back.
    fn seconds(from: Timestamp, to: Timestamp) -> f64 {
        to.duration_since(from).as_secs_f64().max(0.0)
    }

    fn lag(&self) -> Option<f64> {
        match self.listing.as_ref()?.manifest.snapshots.as_slice() {
            [.., before, newest] => Some(Self::seconds(before.time, newest.time)),
            _ => None,
        }
    }

    fn findings(&self) -> f64 {
        let Some(listing) = &self.listing else { return 1.0 };
        let unread = listing.manifest.snapshots.iter().filter(|s| s.unread_blocks > 0).count();
        (unread + usize::from(listing.head.intent.is_some())) as f64
    }
}

const OF_IMAGES: [Of; 11] = [
    ("imgsnap_last_success_timestamp_seconds", "When the newest snapshot was taken.", |image| {
        Some(image.newest()?.time.as_millisecond() as f64 / 1000.0)
    }),
    ("imgsnap_age_seconds", "Age of the newest snapshot when this was written.", |image| {
        Some(Image::seconds(image.newest()?.time, image.now))
    }),
    ("imgsnap_lag_seconds", "Time between the two newest snapshots.", Image::lag),
    ("imgsnap_duration_seconds", "How long the newest snapshot took.", |image| {
        image.newest()?.seconds
    }),
    ("imgsnap_image_bytes", "Length of the image in the newest snapshot.", |image| {
        Some(image.newest()?.image_bytes as f64)
    }),
    ("imgsnap_read_bytes", "Bytes of the image read for the newest snapshot.", |image| {
        Some(image.newest()?.read_bytes? as f64)
    }),
    ("imgsnap_changed_bytes", "Bytes changed in the newest snapshot.", |image| {
        Some(image.newest()?.changed_bytes as f64)
    }),
    ("imgsnap_stored_bytes", "Bytes stored by the newest snapshot.", |image| {
        Some(image.newest()?.file_bytes as f64)
    }),
    ("imgsnap_snapshots", "Number of snapshots.", |image| {
        Some(image.listing.as_ref()?.manifest.snapshots.len() as f64)
    }),
    ("imgsnap_repository_stored_bytes", "Bytes stored by all snapshots.", |image| {
        let manifest = &image.listing.as_ref()?.manifest;
        Some(manifest.stored().iter().map(|s| s.file_bytes).sum::<u64>() as f64)
    }),
    (
        "imgsnap_findings",
        "Snapshots with unread blocks, an interrupted rollback, or a manifest that cannot be read.",
        |image| Some(image.findings()),
    ),
];

pub fn run(
    repository: &Repository,
    file: &Path,
    printer: &Printer,
    context: &Context,
) -> Result<ExitCode> {
    let now = Timestamp::now();
    let mut images = Vec::new();
    let mut failed = None;
    for name in repository.names()? {
        let listing = match repository.list(&name, context) {
            Ok(listing) => Some(listing),
            // It has just been removed.
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            Err(e) if e.kind() == ErrorKind::Interrupted => return Err(e),
            Err(e) => {
                printer.failure(&words::error(&e));
                failed.get_or_insert(e.kind());
                None
            }
        };
        images.push((name, Image { listing, now }));
    }
    let of = |(name, help, value): Of| {
        let samples = images.iter().filter_map(|(image, known)| {
            Some((format!("{{image=\"{}\"}}", escaped(image)), value(known)?))
        });
        Metric { name, help, samples: samples.collect() }
    };
    let mut metrics: Vec<Metric> = OF_IMAGES.into_iter().map(of).collect();
    metrics.extend(repository.free_space().map(|bytes| Metric {
        name: "imgsnap_free_bytes",
        help: "Free space for the repository.",
        samples: vec![(String::new(), bytes as f64)],
    }));
    put(file, &text(&metrics))?;
    if printer.is_json() {
        printer.json(&json!({"metrics": file.shown(), "images": images.len()}))?;
    }
    Ok(failed.map_or(exit::DONE, exit::code))
}

/// A label's value, as the format wants it.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn text(metrics: &[Metric]) -> String {
    let mut text = String::new();
    for Metric { name, help, samples } in metrics.iter().filter(|metric| !metric.samples.is_empty())
    {
        // Writing to a string does not fail.
        best_effort(write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n"));
        for (labels, value) in samples {
            best_effort(writeln!(text, "{name}{labels} {value}"));
        }
    }
    text.push_str("# EOF\n");
    text
}

/// Writes a file whole: whoever collects reads the old one or the new one.
fn put(file: &Path, text: &str) -> Result<()> {
    let failed = |e| Error::os("write", file.shown(), e);
    refuse_inside_any(file)?;
    let file = &resolve_new(file)?;
    let folder = Folder::of(file).map_err(failed)?;
    let name = file.file_name().unwrap_or_default();
    // Collectors read what ends with .prom.
    let temporary = format!(".imgsnap-metrics-{}.tmp", std::process::id());
    let written = || {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
        // Who collects is another user.
        let mut made = folder.file(&temporary, flags, 0o644)?;
        made.write_all(text.as_bytes())?;
        made.sync_all()?;
        folder.rename_over(&temporary, name)?;
        folder.sync()
    };
    written().map_err(|e| {
        best_effort(folder.remove(&temporary));
        failed(e)
    })
}
