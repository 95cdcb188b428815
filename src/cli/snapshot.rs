//! `imgsnap snapshot`

use super::args::Snapshot as Verb;
use super::printer::Printer;
use super::repo::Where;
use super::{domains, exit, list, output, repo, words};
use imgsnap::base::error::{Error, ErrorKind, Result};
use imgsnap::base::events::Context;
use imgsnap::base::uri::Shown;
use imgsnap::image::ImageUri;
use imgsnap::store::glob_remote;
use imgsnap::tracking::{ChangeList, MAX_LIST_BYTES};
use imgsnap::tracking::{Consistency, HintKind};
use imgsnap::{
    At, ChangedSince, GivenChanges, Outcome, ParentChoice, Reference, Repository, SnapshotOutcome,
    SnapshotRequest, check_distinct, name_of,
};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

/// What clap cannot judge: of several images, each must be one of its own.
pub fn check(verb: &Verb) -> Result<(), String> {
    if verb.images.len() < 2 {
        return Ok(());
    }
    let of_one = [
        ("--name", verb.name.is_some()),
        ("--parent", verb.parent.is_some()),
        ("--changed", verb.changed.is_some()),
        ("--bitmap", verb.bitmap.is_some()),
        ("--of", verb.of.is_some()),
        ("--freeze", verb.group.is_none() && !verb.window.freeze.is_empty()),
    ];
    for (option, is_given) in of_one {
        if is_given {
            return Err(format!("{option} applies to one image only; snapshot it separately"));
        }
    }
    let of = |image: &ImageUri| SnapshotRequest::new(image.clone());
    let requests: Vec<_> = verb.images.iter().map(of).collect();
    check_distinct(&requests).map_err(|error| words::error(&error))
}

pub fn run(place: &Where, verb: &Verb, printer: &Printer, context: &Context) -> Result<ExitCode> {
    let is_brief = verb.images.iter().any(domains::is_pattern);
    let verb = &Verb { images: expanded(&verb.images, context)?, is_brief, ..verb.clone() };
    let repository = match repo::open_or_create(place, verb, printer, context)? {
        Ok(repository) => repository,
        Err(why) => return refuse_all(verb, why, printer),
    };
    repo::or_take_back(repository, printer, |repository| take(repository, verb, printer, context))
}

/// What the patterns among URLs and domains match: no shell expands those.
pub fn expanded(images: &[ImageUri], context: &Context) -> Result<Vec<ImageUri>> {
    let mut all = Vec::new();
    for image in images {
        match image {
            ImageUri::Remote(url) if url.path.contains(['*', '[']) => {
                let found = glob_remote(url, context.transfer())?;
                if found.is_empty() {
                    let what = format!("{url} matches nothing");
                    return Err(Error::new(ErrorKind::NotFound, what));
                }
                all.extend(found.into_iter().map(ImageUri::Remote));
            }
            domain if domains::is_pattern(domain) => {
                all.extend(domains::expanded(domain, context)?);
            }
            other => all.push(other.clone()),
        }
    }
    Ok(all)
}

fn take(
    repository: &Repository,
    verb: &Verb,
    printer: &Printer,
    context: &Context,
) -> Result<ExitCode> {
    let requests: Result<Vec<_>> = verb.images.iter().map(|image| request(image, verb)).collect();
    let requests = requests?;
    if verb.group.is_some() || requests.len() == 1 {
        let taken = repository.snapshot_group(verb.group.as_deref(), &requests, context)?;
        taken.iter().try_for_each(|taken| print(taken, verb, printer))?;
        return Ok(taken
            .iter()
            .find_map(|taken| post_failed(taken, printer))
            .unwrap_or(exit::DONE));
    }
    let mut tally = Tally::default();
    repository.snapshot_all(&requests, context, |request, result| match result {
        Ok(taken) => {
            tally.printed(print(&taken, verb, printer));
            tally.has_failed |= post_failed(&taken, printer).is_some();
        }
        Err(error) => tally.failed(&request.image, error, printer),
    })?;
    tally.end()
}

/// No image can be opened, so no repository was made.
fn refuse_all(verb: &Verb, why: Vec<Error>, printer: &Printer) -> Result<ExitCode> {
    let mut tally = Tally::default();
    for (image, error) in verb.images.iter().zip(why) {
        if verb.images.len() == 1 {
            // As any verb fails: the message names the image.
            return Err(error);
        }
        tally.failed(image, error, printer);
    }
    tally.end()
}

/// What became of several images.
#[derive(Default)]
struct Tally {
    first_failure: Option<ErrorKind>,
    interrupted: Option<Error>,
    unprinted: Option<Error>,
    /// A snapshot stands, and what was to follow failed.
    has_failed: bool,
}

impl Tally {
    fn failed(&mut self, image: &ImageUri, error: Error, printer: &Printer) {
        if error.kind() == ErrorKind::Interrupted {
            // Once for all is enough.
            self.interrupted = Some(error);
            return;
        }
        let kind = error.kind();
        // What is of a machine names it already.
        let named = image.machine().is_some() && error.message().contains(&image.to_string());
        printer.error(&if named { error } else { error.at(image) });
        self.first_failure.get_or_insert(kind);
    }

    /// That nobody reads what is printed does not stop the snapshots.
    fn printed(&mut self, outcome: Result<()>) {
        if let Err(error) = outcome {
            self.unprinted.get_or_insert(error);
        }
    }

    fn end(self) -> Result<ExitCode> {
        match (self.interrupted, self.first_failure, self.unprinted) {
            (Some(error), ..) | (None, None, Some(error)) => Err(error),
            (None, Some(first), _) => Ok(exit::code(first)),
            (None, None, None) if self.has_failed => Ok(exit::code(ErrorKind::Io)),
            (None, None, None) => Ok(exit::DONE),
        }
    }
}

/// Says that the command after a snapshot failed, and how that ends.
fn post_failed(taken: &SnapshotOutcome, printer: &Printer) -> Option<ExitCode> {
    let why = taken.post_error.as_ref()?;
    printer.error(&Error::new(ErrorKind::Io, why).at("after the snapshot"));
    Some(exit::code(ErrorKind::Io))
}

fn request(image: &ImageUri, verb: &Verb) -> Result<SnapshotRequest> {
    let parent = match &verb.parent {
        Some(text) => ParentChoice::Of(parent_of(text, image, verb)?),
        None if verb.full => ParentChoice::Full,
        None if verb.differential => ParentChoice::Differential,
        None => ParentChoice::Incremental,
    };
    let changes = match (&verb.changed, &verb.bitmap) {
        (Some(file), _) => Some(GivenChanges::List(read_list(file)?)),
        (None, bitmap) => bitmap.clone().map(GivenChanges::Bitmap),
    };
    let since = verb.since.as_deref().map(|since| parent_of(since, image, verb)).transpose()?;
    let changed = changes.zip(since).map(|(changes, since)| ChangedSince { changes, since });
    Ok(SnapshotRequest::new(image.clone())
        .name(verb.name.clone())
        .label(verb.label.clone())
        .parent(parent)
        .base_image(verb.base_image.clone())
        .base_of(verb.elsewhere.base_of.clone())
        .find_base(verb.elsewhere.find_base)
        .full_scan(verb.full_scan)
        .skip_unchanged(verb.skip_unchanged)
        .skip_bad(verb.skip_bad)
        .of(verb.of.clone())
        .force(verb.force)
        .format(verb.format.format)
        .via_qemu(verb.format.via_qemu)
        .backing_ok(verb.format.backing_ok)
        .block_size(verb.block_size)
        .part_size(verb.part_size)
        .compression(verb.compression)
        .dry_run(verb.dry_run)
        .track(verb.tracking.track)
        .recheck(verb.tracking.recheck)
        .max_stall(verb.tracking.max_stall)
        .changed(changed)
        .window(verb.window.request()))
}

/// A list of changes, in whichever format.
fn read_list(path: &Path) -> Result<ChangeList> {
    let failed = |e| Error::os("read", path.shown(), e);
    let mut bytes = Vec::new();
    let file: Box<dyn Read> = match path == Path::new("-") {
        true => Box::new(std::io::stdin().lock()),
        false => Box::new(File::open(path).map_err(failed)?),
    };
    file.take(MAX_LIST_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_LIST_BYTES {
        let what = format!("{} is too long for a list of changes", path.shown());
        return Err(Error::new(ErrorKind::LimitExceeded, what).hint("merge adjacent ranges"));
    }
    ChangeList::parse(&bytes).map_err(|e| e.at(path.shown()))
}

fn print(taken: &SnapshotOutcome, verb: &Verb, printer: &Printer) -> Result<()> {
    if printer.is_json() {
        let mut value = list::snapshot_json(&taken.name, &taken.snapshot, taken.parent_number);
        if let Some(object) = value.as_object_mut() {
            object.insert("dry_run".into(), (taken.outcome == Outcome::DryRun).into());
            object.insert("skipped".into(), (taken.outcome == Outcome::Skipped).into());
            object.insert("believed".into(), taken.unchanged_by_times.into());
            object.insert("full_scan_reason".into(), taken.full_scan_reason.clone().into());
            object.insert("clone_seconds".into(), taken.clone_seconds.into());
            object.insert("in_use_by".into(), taken.user.clone().into());
            object.insert("stopped_seconds".into(), taken.stopped_seconds.into());
            object.insert("post_error".into(), taken.post_error.clone().into());
            if let Ok(geometry) = taken.snapshot.geometry() {
                object.insert("unread".into(), output::ranges_json(&taken.unread, geometry));
            }
        }
        printer.json(&value)
    } else {
        printer.line(&if verb.is_brief { brief(taken) } else { describe(taken, verb) })
    }
}

/// `NAME@WHICH`, or `@WHICH`: of the image itself, in either case.
fn parent_of(text: &str, image: &ImageUri, verb: &Verb) -> Result<At> {
    if let Some(at) = text.strip_prefix('@') {
        return at.parse();
    }
    let reference: Reference = text.parse()?;
    let name = verb.name.clone().map_or_else(|| name_of(verb.of.as_ref().unwrap_or(image)), Ok)?;
    if reference.name != name {
        return Err(exit::usage(format!("{text} is a snapshot of another image")));
    }
    Ok(reference.at)
}

/// In one line, where there may be many.
fn brief(taken: &SnapshotOutcome) -> String {
    let s = &taken.snapshot;
    let name = format!("{}@{}", taken.name, s.number);
    if taken.outcome == Outcome::Skipped {
        return format!("{name}  unchanged, no snapshot was taken");
    }
    let (changed, stored) = (output::bytes(s.changed_bytes), output::bytes(s.file_bytes));
    let (image, took) = (output::bytes(s.image_bytes), output::duration(s.seconds.unwrap_or(0.0)));
    let what = match taken.parent_number {
        Some(number) => format!("{changed} of {image} changed since @{number}"),
        None => format!("{changed} of data in {image}"),
    };
    format!("{name}  {what}; {stored} stored in {took}")
}

fn describe(taken: &SnapshotOutcome, verb: &Verb) -> String {
    let (s, base_image) = (&taken.snapshot, verb.base_image.as_deref());
    let name = format!("{}@{}", taken.name, s.number);
    if taken.outcome == Outcome::Skipped {
        return format!("unchanged since {name}; no snapshot was taken");
    }
    let what = match taken.parent_number {
        None => match &s.base_of {
            Some(of) => format!("changes since {}", of.place()),
            None if verb.elsewhere.find_base => "a base: no similar image was found".to_owned(),
            None => "a base".to_owned(),
        },
        Some(number) if base_image.is_some() => {
            let file = base_image.map(output::file_name).unwrap_or_default();
            format!("changes since its base image {file}, which is {}@{number}", taken.name)
        }
        Some(number) => format!("changes since {}@{number}", taken.name),
    };
    let label = s.label.as_ref().map_or(String::new(), |label| format!("  \"{label}\""));
    let would =
        if taken.outcome == Outcome::DryRun { "  (dry run: nothing was stored)" } else { "" };
    let seconds = s.seconds.unwrap_or(0.0);
    let took = output::duration(seconds);
    let read = match s.read_bytes.unwrap_or(0) {
        0 if taken.unchanged_by_times => "not read".into(),
        0 => format!("nothing to read in {took}"),
        read => format!("{} read, {took}, {}", output::bytes(read), output::rate(read, seconds)),
    };
    let blocks = output::plural(s.changed_blocks, "block");
    // In a base nothing has changed yet.
    let (noun, of) = if s.is_base() { ("data", "the data") } else { ("changed", "what changed") };
    let rows = [
        ("image", output::bytes(s.image_bytes), read),
        (
            noun,
            output::bytes(s.changed_bytes),
            format!(
                "{blocks} of {}, {}",
                output::bytes(s.block_bytes.into()),
                output::percent(s.changed_bytes, s.image_bytes)
            ),
        ),
        (
            "stored",
            output::bytes(s.file_bytes),
            match s.changed_bytes {
                0 => String::new(),
                changed => format!("{} of {of}", output::percent(s.file_bytes, changed)),
            },
        ),
    ];
    let mut text = format!("{name}  {what}{label}{would}");
    let notes = notes(taken);
    let others = s.group.iter().map(|group| ("group", String::new(), group.describe()));
    for (noun, amount, rest) in rows.into_iter().chain(notes).chain(others) {
        text.push_str(format!("\n  {noun:<8} {amount:>9}   {rest}").trim_end());
    }
    text
}

/// How it was found what changed, and what state of the image it is.
fn notes(taken: &SnapshotOutcome) -> Vec<(&'static str, String, String)> {
    let mut notes = Vec::new();
    if let Some(hint) = taken.hint {
        let named = output::bytes(hint.named_bytes);
        let (amount, rest) = match hint.kind {
            HintKind::Extents => (named, "may have changed, according to two clones"),
            HintKind::List => (named, "may have changed, according to the list"),
            HintKind::Bitmap => (named, "may have changed, according to the bitmap"),
            HintKind::Times => (output::bytes(0), "the file was not written to since the parent"),
        };
        let read = taken.snapshot.read_bytes.unwrap_or(0).saturating_sub(hint.named_bytes);
        let rest = match read {
            0 => rest.to_owned(),
            more => format!("{rest}; {} of the rest was also read", output::bytes(more)),
        };
        notes.push(("tracked", amount, rest));
    } else if let Some(reason) = &taken.full_scan_reason {
        notes.push(("tracked", "no".into(), format!("the whole image was read: {reason}")));
    }
    if let Ok(geometry) = taken.snapshot.geometry()
        && !taken.unread.is_empty()
    {
        let bytes = taken.unread.count.saturating_mul(geometry.block_size.bytes().into());
        let rest = "could not be read; a restore needs --accept-unread";
        notes.push(("unread", output::bytes(bytes), rest.into()));
    }
    if let Some(user) = &taken.user {
        let waited = match (taken.clone_seconds, taken.stopped_seconds) {
            (Some(seconds), _) => {
                format!(", whose writes were held up for {}", output::seconds(seconds))
            }
            (None, Some(seconds)) => {
                format!(", which was stopped for {}", output::seconds(seconds))
            }
            (None, None) => String::new(),
        };
        let state = match taken.snapshot.consistency {
            Consistency::Frozen => "frozen",
            _ => "crash-consistent",
        };
        notes.push(("in use", String::new(), format!("by {user}{waited}; {state}")));
    }
    notes
}
