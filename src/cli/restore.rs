//! `imgsnap restore`

use super::args::Restore;
use super::printer::Printer;
use super::{exit, output};
use imgsnap::base::error::{Error, ErrorKind, Result};
use imgsnap::base::free_space::free_space_at;
use imgsnap::base::progress::Context;
use imgsnap::base::units::NamedBlocks;
use imgsnap::chain::Chain;
use imgsnap::image::write::{InPlace, NewFile, Stream};
use imgsnap::image::{Intent, RawFile, Source};
use imgsnap::ops::restore::engine::{check_free_space_for, check_range, restore};
use imgsnap::{Repository, warn_if_unguarded};
use serde_json::json;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

pub fn run(
    repository: &Repository,
    verb: &Restore,
    printer: &Printer,
    context: &Context,
) -> Result<ExitCode> {
    let begun = Instant::now();
    let reader = repository.read(&verb.reference.name, context)?;
    let snapshot = reader.find(&verb.reference.at)?.clone();
    let chain = repository.chain(&reader, snapshot.id)?;
    let name = format!("{}@{}", verb.reference.name, snapshot.number);
    // Before a target of that length is made.
    let part = check_range(verb.range, snapshot.image_bytes)?;
    let bytes = part.bytes;
    let unread = chain.unread(part.blocks(chain.geometry().block_size), context)?;
    let chain = match unread.is_empty() {
        true => chain,
        false => accept(chain, &name, &unread, verb, context)?,
    };
    let to_stdout = verb.output == Path::new("-");
    if !to_stdout {
        repository.refuse_target(&verb.output)?;
    }
    let restored = if to_stdout {
        output::refuse_terminal("an image")?;
        let mut target = Stream::new(std::io::stdout().lock(), "stdout");
        restore(&chain, verb.range, &mut target, context)?
    } else if is_device(&verb.output) {
        if !verb.force {
            let what =
                format!("{} is a device: what is on it would be lost", verb.output.display());
            return Err(
                Error::new(ErrorKind::AlreadyExists, what).hint("use --force to write to it")
            );
        }
        let device = RawFile::open_to_write(&verb.output)?;
        warn_if_unguarded(&device, context);
        let mut target = InPlace::new(&device);
        target.check_free_space(bytes)?;
        let restored = restore(&chain, verb.range, &mut target, context)?;
        device.check_alone(Intent::Read)?;
        if device.image_bytes() > bytes {
            let rest = output::bytes(device.image_bytes() - bytes);
            printer.say(&format!("{} is larger: its last {rest} were not touched", device.name()));
        }
        restored
    } else {
        let place = verb.output.display().to_string();
        let mut target = NewFile::create(&verb.output, bytes, verb.force)?;
        check_free_space_for(&chain, verb.range, free_space_at(&verb.output), &place)?;
        let restored = restore(&chain, verb.range, &mut target, context)?;
        let image = &verb.reference.name;
        // While somebody reads, a writer clears nothing away.
        drop(reader);
        if let Err(e) = repository.note_restored(image, &verb.output, context) {
            context
                .progress()
                .warn(&format!("{e}; before a rollback, run \"imgsnap relink {image} {place}\""));
        }
        restored
    };
    let geometry = chain.geometry();
    let seconds = begun.elapsed().as_secs_f64();
    let proof = match restored.proved {
        true => "each block and the image digest checked",
        false => "each block checked",
    };
    let line = format!(
        "{name} -> {}  {} ({} data) in {}, {}; {proof}",
        output::shown(&verb.output),
        output::bytes(restored.bytes),
        output::bytes(restored.data_bytes),
        output::duration(seconds),
        output::rate(restored.data_bytes, seconds),
    );
    if to_stdout {
        // Stdout is the image.
        printer.say(&line);
    } else if printer.is_json() {
        printer.json(&json!({
            "name": verb.reference.name,
            "number": snapshot.number,
            "ref": name,
            "output": output::path(&verb.output),
            "image_bytes": snapshot.image_bytes,
            "restored_bytes": restored.bytes,
            "data_bytes": restored.data_bytes,
            "proved": restored.proved,
            "unread": output::ranges_json(&unread, geometry),
            "seconds": seconds,
        }))?;
    } else {
        printer.line(&line)?;
    }
    Ok(exit::DONE)
}

/// What was never read is not restored unless the user knows that.
fn accept(
    chain: Chain,
    name: &str,
    unread: &NamedBlocks,
    verb: &Restore,
    context: &Context,
) -> Result<Chain> {
    let what = unread.describe(chain.geometry());
    if !verb.accept_unread {
        let what = format!("{name}: {what} could not be read when it was taken");
        return Err(Error::corrupt(what).hint(
            "restore another snapshot, another --range, or this one with --accept-unread, which writes \
             zeros there",
        ));
    }
    context.progress().warn(&format!("{name}: zeros where its image could not be read: {what}"));
    Ok(chain.with_unread_as_zeros())
}

fn is_device(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device())
}
