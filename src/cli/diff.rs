//! `imgsnap diff`

use super::args::Format;
use super::page::Page;
use super::printer::Printer;
use super::repo::Where;
use super::{exit, output, repo};
use imgsnap::base::error::{ErrorKind, Result};
use imgsnap::base::events::Context;
use imgsnap::base::uri::Shown;
use imgsnap::image::{ImageUri, ReadBy};
use imgsnap::ops::diff::engine::MAP_REGIONS;
use imgsnap::{DiffImage, DiffSide, Difference, Reference, ops};
use serde_json::json;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

pub fn run(
    place: &Where,
    (before, after): (&OsStr, &OsStr),
    format: &Format,
    printer: &Printer,
    context: &Context,
) -> Result<ExitCode> {
    // Two images can be compared without any repository.
    let repository = match repo::open(place, context) {
        Ok(repository) => Some(repository),
        Err(e)
            if e.kind() == ErrorKind::NotFound
                && ![before, after].iter().any(|side| side.as_bytes().contains(&b'@')) =>
        {
            None
        }
        Err(e) => return Err(e),
    };
    let side = |text| side(repository.is_some(), text, format);
    let (one, other) = (side(before)?, side(after)?);
    let shown = |side| Path::new(side).shown();
    let (before, after) = (shown(before), shown(after));
    let difference = ops::diff::run(repository.as_ref(), &one, &other, context)?;
    if printer.is_json() {
        let extents: Vec<_> = difference
            .extents
            .iter()
            .map(|range| json!({"offset": range.offset, "bytes": range.bytes}))
            .collect();
        printer.json(&json!({
            "before": before,
            "after": after,
            "before_bytes": difference.image_bytes.0,
            "after_bytes": difference.image_bytes.1,
            "block_bytes": difference.block_size.bytes(),
            "changed_blocks": difference.changed_blocks,
            "changed_bytes": difference.changed_bytes,
            "extent_count": difference.extent_count,
            "extents": extents,
            "from_tables": difference.from_tables,
        }))?;
    } else {
        printer.page(&describe(&before, &after, &difference))?;
    }
    Ok(exit::DONE)
}

/// What exists as a file is an image.
fn side(has_repository: bool, text: &OsStr, format: &Format) -> Result<DiffSide> {
    let path = Path::new(text);
    match text.to_str().map(str::parse::<Reference>) {
        Some(Ok(reference)) if has_repository && !path.exists() => {
            Ok(DiffSide::Snapshot(reference))
        }
        _ => {
            let by = ReadBy { via_qemu: format.via_qemu, backing_ok: format.backing_ok };
            let image = DiffImage::new(ImageUri::parse(path)?).format(format.format).by(by);
            Ok(DiffSide::Image(image))
        }
    }
}

fn describe(before: &str, after: &str, d: &Difference) -> Page {
    let longer = d.image_bytes.0.max(d.image_bytes.1);
    let mut text = format!("{before} -> {after}");
    if d.image_bytes.0 != d.image_bytes.1 {
        let (from, to) = (output::bytes(d.image_bytes.0), output::bytes(d.image_bytes.1));
        text.push_str(&format!("\n  image      {from} -> {to}"));
    }
    if d.changed_blocks == 0 && d.image_bytes.0 != d.image_bytes.1 {
        let what = "only the length: the additional bytes are zero";
        return Page::new(format!("{text}\n  changed    {what}"));
    }
    if d.changed_blocks == 0 {
        return Page::new(format!("{text}\n  identical  {} compared", output::bytes(longer)));
    }
    text.push_str(&format!(
        "\n  changed    {}, {} of {} ({} of the image)\n  extents    {}, {} on average",
        output::bytes(d.changed_bytes),
        output::plural(d.changed_blocks, "block"),
        output::bytes(d.block_size.bytes().into()),
        output::percent(d.changed_bytes, longer),
        output::count(d.extent_count),
        output::bytes(d.changed_bytes / d.extent_count.max(1)),
    ));
    if let Some(largest) = d.extents.iter().max_by_key(|range| range.bytes) {
        let (bytes, offset) = (output::bytes(largest.bytes), output::bytes(largest.offset));
        text.push_str(&format!("\n  largest    {bytes} at {offset}"));
    }
    let region = longer.div_ceil(MAP_REGIONS as u64).max(1);
    let shares: Vec<f64> = d.map.iter().map(|bytes| *bytes as f64 / region as f64).collect();
    Page::new(format!("{text}\n  map        one character per {}", output::bytes(region)))
        .map(shares)
}
