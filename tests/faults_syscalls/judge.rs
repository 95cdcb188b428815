//! What may be seen after a fault.
//!
//! - Every snapshot that was listed is there, unless the verb removes it, and all that are there give back
//!   the bytes that they should, proved twice: by a restore, and by a verify.
//! - No other file has changed. The image that a rollback writes is what it was, what it shall be, or a
//!   mixture block by block, and then the repository says so.
//! - What says that it is done is done. What failed says so in one line, with a place; what was killed says
//!   nothing.
//! - The verb, run again, gets done what it was to do, unless that is done; afterwards nothing is left
//!   behind.

use crate::fault::{Fault, Hit, What, run};
use crate::lab::Lab;
use crate::verbs::{Stdout, Verb};
use crate::world::{Bytes, Image, World, clones, litter, look, meaning};
use std::collections::BTreeSet;
use std::process::Output;

/// What a verb does where nothing fails.
pub struct Done {
    before: World,
    after: World,
    stdout: Vec<u8>,
    clones: usize,
    /// What it leaves behind by intent: `repair` keeps what it cannot use.
    kept: Vec<String>,
}

/// How a try ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ending {
    Survived,
    Failed,
    Killed,
}

type Verdict<T> = Result<T, String>;

impl Done {
    /// Runs the verb without a fault.
    #[track_caller]
    pub fn of(lab: &Lab, verb: &Verb) -> Self {
        verb.begin(lab);
        let before = look(lab).unwrap();
        let output = run(&mut verb.command(lab, None)).unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "imgsnap {}: {}: {err}", verb.args, output.status);
        assert!(!err.contains("warning"), "imgsnap {}: {err}", verb.args);
        let after = look(lab).unwrap();
        let kept = litter(lab);
        assert!(kept.is_empty() || verb.args.contains("repair"), "imgsnap {}: {kept:?}", verb.args);
        let clones = clones(lab).len();
        let stdout = stdout_of(lab, verb, &output).unwrap();
        Self { before, after, stdout, clones, kept }
    }
}

/// What stdout got, or means.
fn stdout_of(lab: &Lab, verb: &Verb, output: &Output) -> Verdict<Vec<u8>> {
    match verb.stdout {
        Stdout::Text => Ok(Vec::new()),
        Stdout::Image => Ok(output.stdout.clone()),
        Stdout::Delta => {
            let file = lab.aside("out.delta");
            std::fs::write(&file, &output.stdout).unwrap();
            meaning(lab, &file).ok_or_else(|| "stdout is no delta".into())
        }
    }
}

/// Judges what became of a verb with a fault, and runs it again.
pub fn judge(lab: &Lab, verb: &Verb, done: &Done, fault: &Fault, hit: &Hit) -> Verdict<Ending> {
    let output = hit.output.as_ref().ok_or("it does not end")?;
    let err = String::from_utf8_lossy(&output.stderr);
    let ending = match output.status.code() {
        Some(0) => Ending::Survived,
        Some(1 | 3 | 4) => Ending::Failed,
        None if fault.what == What::Kill => Ending::Killed,
        _ => return Err(format!("{}: {err}", output.status)),
    };
    says_what_is_wrong(verb, ending, &err, hit)?;
    let mut now = look(lab).map_err(|e| format!("the repository: {e}"))?;
    if ending == Ending::Killed {
        // Cleared away by the next run, as in the repository.
        now.files.retain(|name, _| !(name.starts_with('.') && name.ends_with(".tmp")));
    }
    let is_mixed = is_between(verb, done, &now)?;
    if ending == Ending::Failed
        && is_mixed
        && !err.contains("partly rolled back")
        && !err.contains("partly written")
    {
        return Err(format!("the image is a mixture, and nobody says so: {err}"));
    }
    if ending == Ending::Survived {
        let saves = verb.args.starts_with("rollback");
        let seen = if saves { without_added(now.clone(), done) } else { now.clone() };
        is_done(&seen, &done.after)?;
        if stdout_of(lab, verb, output)? != done.stdout {
            return Err("stdout is not what it should be".into());
        }
    } else if verb.stdout == Stdout::Image && !done.stdout.starts_with(&output.stdout) {
        return Err("wrong bytes went to stdout".into());
    }
    let is_clone_told = err.contains("/.imgsnap");
    again(lab, verb, done, &now, is_clone_told)?;
    Ok(ending)
}

/// One line for one error; nothing but warnings and notes beside it.
fn says_what_is_wrong(verb: &Verb, ending: Ending, err: &str, hit: &Hit) -> Verdict<()> {
    let is_mute = ["(1<", "(2<", "<... write"].iter().any(|what| hit.place.contains(what));
    let errors: Vec<&str> = err.lines().filter(|l| l.starts_with("imgsnap: error: ")).collect();
    // What cannot be read is told among the others, on stdout by `verify`, as a warning by `list`.
    let tells_of_many = ["verify", "list", "join"].iter().any(|name| verb.args.starts_with(name));
    // Each image by itself.
    let images = verb.args.split(' ').filter(|arg| arg.ends_with(".img")).count();
    let of_many = if verb.args.starts_with("snapshot ") { images.max(1) } else { 1 };
    let is_fine = match ending {
        Ending::Survived => errors.is_empty(),
        Ending::Failed => (1..=of_many).contains(&errors.len()) || tells_of_many,
        Ending::Killed => errors.len() <= 1,
    };
    if !is_fine && !is_mute {
        return Err(format!("{} errors are told: {err}", errors.len()));
    }
    let others = err.lines().find(|l| !l.starts_with("imgsnap: "));
    if others.is_some() && !is_mute {
        return Err(format!("it says: {err}"));
    }
    for line in errors {
        let mut places =
            verb.args.split(' ').chain(["/", "\"", " std", " thread", " clone of the image"]);
        let names_a_place = places.any(|place| line.contains(place));
        let is_raw =
            line.contains("os error") || line.contains("panicked") || line.contains("INJECTED");
        if !names_a_place || is_raw {
            return Err(format!("it is not clear: {line}"));
        }
    }
    Ok(())
}

/// Fails unless all is as it was, or as it shall be, or on the way. True if an image is a mixture.
fn is_between(verb: &Verb, done: &Done, now: &World) -> Verdict<bool> {
    let (before, after) = (&done.before, &done.after);
    for (folder, images) in &before.repositories {
        for (name, image) in images {
            let of =
                |world: &World| world.repositories.get(folder).and_then(|r| r.get(name)).cloned();
            let (now, after) = (of(now), of(after));
            let what = format!("{folder}: {name}");
            match (image, &now, &after) {
                (_, None, None) => {}
                (_, None, Some(_)) => return Err(format!("{what} is gone")),
                (None, Some(None), _) => {}
                (Some(_), Some(None), _) => return Err(format!("{what} has no manifest")),
                (_, Some(Some(now)), after) => {
                    let after = after.as_ref().and_then(Option::as_ref);
                    keeps_snapshots(image.as_ref(), now, after, &what)?;
                }
            }
        }
    }
    // A rollback that does not know whether the image is a mixture saves it.
    let saved = verb.target.and_then(|target| before.files.get(target));
    for (folder, images) in &now.repositories {
        for (name, now) in images {
            let of =
                |world: &World| world.repositories.get(folder).and_then(|r| r.get(name)).cloned();
            let known: Vec<Image> =
                [of(before), of(after)].into_iter().flatten().flatten().collect();
            let what = format!("{folder}: {name}");
            match now {
                Some(now) => is_one_of(now, &known, saved, &what)?,
                None if known.is_empty() => return Err(format!("{what} has no manifest")),
                None => {}
            }
        }
    }
    files_are_between(verb, done, now)
}

fn keeps_snapshots(
    before: Option<&Image>,
    now: &Image,
    after: Option<&Image>,
    what: &str,
) -> Verdict<()> {
    for number in before.iter().flat_map(|image| image.snapshots.keys()) {
        let stays = after.is_some_and(|image| image.snapshots.contains_key(number));
        if stays && !now.snapshots.contains_key(number) {
            return Err(format!("{what}@{number} is lost"));
        }
    }
    Ok(())
}

/// Every snapshot is one of those before or after, and has its bytes.
fn is_one_of(now: &Image, known: &[Image], saved: Option<&Bytes>, what: &str) -> Verdict<()> {
    for (number, snapshot) in &now.snapshots {
        let mut alike = known.iter().filter_map(|image| image.snapshots.get(number));
        if !alike.any(|other| other == snapshot) && saved != Some(&snapshot.1) {
            return Err(format!("{what}@{number} is not what it should be"));
        }
    }
    // An image without a snapshot has no source yet.
    let is_source = |source| known.iter().any(|image| image.source == source);
    if !now.snapshots.is_empty() && !is_source(now.source.clone()) {
        return Err(format!("{what} comes from {:?}", now.source));
    }
    Ok(())
}

fn files_are_between(verb: &Verb, done: &Done, now: &World) -> Verdict<bool> {
    let worlds = [&done.before.files, &done.after.files, &now.files];
    let names: BTreeSet<&String> = worlds.iter().flat_map(|files| files.keys()).collect();
    let mut is_mixed = false;
    for name in names {
        let [before, after, now_bytes] = worlds.map(|files| files.get(name));
        if now_bytes == before || now_bytes == after {
            continue;
        }
        let (Some(now_bytes), true) = (now_bytes, verb.target == Some(name.as_str())) else {
            let what =
                if before.or(after).is_none() { "is left behind" } else { "has other bytes" };
            return Err(format!("{name} {what}"));
        };
        is_mixture(now_bytes, before, after).map_err(|at| format!("{name} at {at} is neither"))?;
        let mut images = now.repositories.values().flat_map(|images| images.values().flatten());
        if verb.args.starts_with("rollback") && !images.any(|image| image.has_intent) {
            return Err(format!("{name} is a mixture, and the repository does not say so"));
        }
        is_mixed = true;
    }
    Ok(is_mixed)
}

/// Every 512 bytes are from the one or the other; beyond the end of one there are zeros. Fails with the
/// offset of those that are not.
fn is_mixture(now: &Bytes, before: Option<&Bytes>, after: Option<&Bytes>) -> Result<(), usize> {
    let padded = |bytes: Option<&Bytes>, at: usize, length: usize| {
        let mut piece =
            bytes.and_then(|b| b.get(at..b.len().min(at + length))).unwrap_or_default().to_vec();
        piece.resize(length, 0);
        piece
    };
    for (index, piece) in now.chunks(512).enumerate() {
        let at = index * 512;
        let of = |bytes| padded(bytes, at, piece.len());
        if piece != of(before) && piece != of(after) {
            return Err(at);
        }
    }
    Ok(())
}

/// All is as after a run without a fault. What became of a damaged head state is not told.
fn is_done(now: &World, after: &World) -> Verdict<()> {
    for (name, bytes) in &after.files {
        if now.files.get(name) != Some(bytes) {
            return Err(format!("it is not done: {name} is not what it should be"));
        }
    }
    if let Some(name) = now.files.keys().find(|name| !after.files.contains_key(*name)) {
        return Err(format!("it is not done: {name} is there"));
    }
    if now.repositories != after.repositories {
        let (now, after) = (outline(now), outline(after));
        return Err(format!("it is not done: {now} instead of {after}"));
    }
    Ok(())
}

/// The repositories in a few words: the numbers of the snapshots, and what else is not content.
fn outline(world: &World) -> String {
    let mut words = Vec::new();
    for (folder, images) in &world.repositories {
        for (name, image) in images {
            let of = |image: &Image| {
                let numbers: Vec<_> =
                    image.snapshots.iter().map(|(n, (label, _))| (n, label)).collect();
                format!(
                    "{numbers:?} {:?} {:?} {}",
                    image.source, image.base_images, image.has_intent
                )
            };
            words.push(format!("{folder}/{name}: {}", image.as_ref().map_or("none".into(), of)));
        }
    }
    words.join(", ")
}

/// A second run, in which nothing fails.
fn again(lab: &Lab, verb: &Verb, done: &Done, first: &World, is_clone_told: bool) -> Verdict<()> {
    let was_done = first.repositories == done.after.repositories && first.files == done.after.files;
    let output = run(&mut verb.command(lab, None)).ok_or("run again, it does not end")?;
    let err = String::from_utf8_lossy(&output.stderr);
    let now = look(lab).map_err(|e| format!("run again: the repository: {e}"))?;
    match output.status.code() {
        Some(0) => {}
        Some(1) if was_done => {}
        _ => return Err(format!("run again: {}: {err}", output.status)),
    }
    let now = if verb.adds() { without_added(now, done) } else { now };
    is_done(&now, &done.after).map_err(|e| format!("run again: {e}"))?;
    if verb.args.starts_with("repair") && !litter(lab).is_empty() {
        // It finds the manifest sound and changes nothing: the next writer clears up.
        lab.done("label vm@1 gold");
        lab.done("label web@1 gold");
    }
    let mut litter = litter(lab);
    litter.retain(|what| !done.kept.contains(what));
    if !litter.is_empty() {
        return Err(format!("run again: left behind: {litter:?}"));
    }
    let clones = clones(lab).len();
    // Fewer are no loss: a rollback that goes on may need their room. Of more the first run has told.
    if clones > done.clones && !is_clone_told {
        return Err(format!("run again: {clones} clones instead of {}: {err}", done.clones));
    }
    Ok(())
}

/// A snapshot that was taken, but not told of, is taken again: of the same image.
fn without_added(mut now: World, Done { before, after, .. }: &Done) -> World {
    let live: Vec<&Bytes> = before.files.values().chain(after.files.values()).collect();
    for (folder, images) in &mut now.repositories {
        for (name, image) in images {
            let known =
                after.repositories.get(folder).and_then(|images| images.get(name)?.as_ref());
            let (Some(image), Some(known)) = (image, known) else { continue };
            image.base_images.truncate(known.base_images.len());
            image.snapshots.retain(|number, (_, bytes)| {
                let is_live = live.contains(&&*bytes);
                known.snapshots.contains_key(number) || !is_live
            });
        }
    }
    now
}
