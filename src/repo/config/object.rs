//! Where the configuration stands: numbered objects that are committed as manifests are, and the marker
//! beside them (FORMAT.md P1, P7, P8).
//!
//! ```text
//! config.000001 ... config.000007   the highest number rules; none is ever replaced or removed
//! repository.toml                   the marker; in a repository of an older program, the configuration
//! ```

use crate::base::checked_text::{read_checked, to_checked};
use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::message::{Action, Message, Setting, Verb, message};
use crate::base::signing::{OwnerKey, Signature};
use crate::repo::config::owner::stated_in;
use crate::repo::manifest::temporary_of;
use crate::repo::names::names_in;
use crate::repo::signature::{Statement, only_owner, read_signed};
use crate::repo::top::{MARKER, config_file, config_number};
use crate::store::Store;
use crate::store::sealed::{is_sealed, key_of};
use serde::Deserialize;
use uuid::Uuid;

/// The version in the first line of a numbered object.
const VERSION: u32 = 1;
/// The same of one that the owner has signed.
const SIGNED_VERSION: u32 = 2;

/// The version in `repository.toml` that says that the configuration is elsewhere. Older programs know 1.
const MARKED: u32 = 2;

/// The same of one that is sealed, which programs that know 2 cannot read.
const MARKED_SEALED: u32 = 3;

/// A configuration longer than this is refused.
const MAX_BYTES: u64 = 1 << 20;

const MARKER_TEXT: &str = "\
# The configuration of this imgsnap repository is in config.NNNNNN, the one with the highest number.
# It is changed with imgsnap config. Programs that do not know this refuse the version below.
version = 2
";

const SEALED_MARKER_TEXT: &str = "\
# This imgsnap repository is encrypted, its configuration in config.NNNNNN as well.
# Programs that do not know this refuse the version below.
version = 3
";

/// What the marker of a repository in a store says.
fn marker_text(store: &dyn Store) -> &'static str {
    if store.sealing().is_some() { SEALED_MARKER_TEXT } else { MARKER_TEXT }
}

/// The text of the configuration that rules.
pub(crate) struct Ruling {
    /// Of the object; none if it is `repository.toml`.
    pub(crate) number: Option<u64>,
    pub(crate) text: String,
}

impl Ruling {
    /// The name of its object.
    pub(crate) fn file(&self) -> String {
        file_of(self.number)
    }
}

/// The name of the object with a number; without one, of what older programs wrote.
pub(crate) fn file_of(number: Option<u64>) -> String {
    number.map_or_else(|| MARKER.to_owned(), config_file)
}

/// The numbers that are taken, descending.
pub(crate) fn numbers(store: &dyn Store) -> Result<Vec<u64>> {
    let names = store.list("")?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| config_number(name)).collect();
    numbers.sort_by(|a, b| b.cmp(a));
    Ok(numbers)
}

/// Reads the text of the configuration that rules, whatever it says.
///
/// # Errors
/// `NotFound` if there is no repository; `Corrupt` if the configuration is lost or damaged: no older one
/// takes its place.
pub(crate) fn ruling(store: &dyn Store) -> Result<Ruling> {
    if let Some(ruling) = newest(store)? {
        return Ok(ruling);
    }
    if store.owner().is_some() {
        let what = format!("{} has no configuration signed by its owner", store.location(""));
        return Err(Error::corrupt(what).hint(repair()));
    }
    match read_unnumbered(store) {
        // Between two looks somebody may have made the repository, and put an image into it.
        Err(missing) if missing.is_damage() => newest(store)?.ok_or(missing),
        text => Ok(Ruling { number: None, text: text? }),
    }
}

fn newest(store: &dyn Store) -> Result<Option<Ruling>> {
    if let Some(owner) = store.owner() {
        let signed = newest_signed(store, owner.key, Damaged::MayCount)?;
        let own = signed.filter(|signed| signed.repository == owner.repository);
        return Ok(own.map(|signed| signed.ruling));
    }
    let Some(number) = numbers(store)?.first().copied() else { return Ok(None) };
    Ok(Some(Ruling { number: Some(number), text: read(store, number)? }))
}

/// The newest configuration that an owner has signed.
pub(crate) struct SignedRuling {
    pub(crate) ruling: Ruling,
    /// Of which repository it is.
    pub(crate) repository: Uuid,
    /// Who owns that by now: the owner that was asked for may have named another one.
    pub(crate) owner: OwnerKey,
}

/// What becomes of a configuration that is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Damaged {
    /// It may count: an error.
    MayCount,
    /// It is about to be followed by one of the owner.
    Skipped,
}

/// Reads the newest configuration that an owner has signed, or whom that one named; others are skipped, and
/// those beyond a number that is free (FORMAT.md V6).
///
/// # Errors
/// `Corrupt` if one is damaged that may count; of the store.
pub(crate) fn newest_signed(
    store: &dyn Store,
    key: OwnerKey,
    damaged: Damaged,
) -> Result<Option<SignedRuling>> {
    let mut numbers = numbers(store)?;
    numbers.reverse();
    let taken = numbers.windows(2).take_while(|two| matches!(two, [a, b] if a + 1 == *b)).count();
    for number in numbers.into_iter().take(taken + 1).rev() {
        let (text, signed) = match read_whole(store, number) {
            Err(e) if e.is_damage() && damaged == Damaged::Skipped => continue,
            read => read?,
        };
        let (Some((signer, signature)), Some((repository, table))) = (signed, stated_in(&text))
        else {
            continue;
        };
        let owner = table.owner_after(repository, key);
        let is_signed = || statement(number, &text).is_signed_by(repository, owner, &signature);
        if signer == owner && is_signed() {
            let ruling = Ruling { number: Some(number), text };
            return Ok(Some(SignedRuling { ruling, repository, owner }));
        }
    }
    Ok(None)
}

/// What the owner signs of a configuration.
fn statement(number: u64, text: &str) -> Statement<'_> {
    Statement { kind: "config", image: None, number, previous: None, text }
}

/// Reads the text of a numbered configuration.
pub(crate) fn read(store: &dyn Store, number: u64) -> Result<String> {
    read_whole(store, number).map(|(text, _)| text)
}

/// The same, and who signed it.
fn read_whole(store: &dyn Store, number: u64) -> Result<(String, Option<(OwnerKey, Signature)>)> {
    let file = config_file(number);
    let bytes = store.read_whole(&file, MAX_BYTES);
    let text = bytes.and_then(|bytes| {
        if store.sealing().is_none() && key_of(&bytes).is_some() {
            return Err(is_sealed(&store.location("")));
        }
        let read = || match read_checked("config", SIGNED_VERSION, &bytes)? {
            (SIGNED_VERSION, text) => {
                let (key, signature, text) = read_signed(text)?;
                Ok((text.to_owned(), Some((key, signature))))
            }
            (_, text) => Ok((text.to_owned(), None)),
        };
        read().map_err(|e: Error| e.at(store.location(&file)))
    });
    // Whoever edits it where it lies changes what its first line says of it.
    let by_hand = || message!["; change it with ", Verb::Config.of("edit"), ", not by hand"];
    text.map_err(|e| if e.is_damage() { e.hint(repair().then(by_hand())) } else { e })
}

/// Reads what an older program wrote.
pub(crate) fn read_unnumbered(store: &dyn Store) -> Result<String> {
    // What is not sealed is not believed where all is.
    if store.sealing().is_some() {
        return Err(none_in(store));
    }
    let bytes = match store.read_whole(MARKER, MAX_BYTES) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Err(none_in(store)),
        other => other?,
    };
    let text = std::str::from_utf8(&bytes).unwrap_or_default();
    // Nothing but comments is what is left of one that was cut off.
    let is_said = |line: &str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    if text.contains('\0') || !text.lines().any(is_said) {
        let lost = Error::corrupt("it is empty or not text").at(store.location(MARKER));
        return Err(lost.hint(repair()));
    }
    match version_in(text) {
        Some(MARKED) => Err(none_in(store)),
        Some(MARKED_SEALED) => Err(is_sealed(&store.location(""))),
        Some(later @ MARKED..) => {
            let what =
                format!("unsupported repository version {later} (supported: {MARKED_SEALED})");
            Err(Error::new(ErrorKind::Unsupported, what)
                .hint("it was created by a later imgsnap; use that version")
                .at(store.location(MARKER)))
        }
        _ => Ok(text.to_owned()),
    }
}

/// What to say where there is no configuration: with images beside it, it was lost.
fn none_in(store: &dyn Store) -> Error {
    let place = store.location("");
    match names_in(store) {
        Ok(names) if !names.is_empty() => {
            let what = format!("{place} has images, but its configuration is missing");
            return Error::corrupt(what).hint(repair());
        }
        // What is not answered now may be one. Where others let nobody look in is none of ours.
        Err(e) if e.is_unread() && !e.is_read_only() => return e,
        Ok(_) | Err(_) => {}
    }
    Error::new(ErrorKind::NotFound, format!("{place} is not a repository")).hint(message![
        "choose one with ",
        Setting::Repo,
        ", or create one with ",
        Verb::Init.call(),
    ])
}

fn repair() -> Message {
    message!["run ", Verb::Repair.call(), " to rebuild it"]
}

/// The version that a text names, if anything can be told of it.
pub(crate) fn version_in(text: &str) -> Option<u32> {
    #[derive(Deserialize)]
    struct VersionOnly {
        version: u32,
    }
    toml::from_str(text).ok().map(|VersionOnly { version }| version)
}

/// Writes the first configuration, which makes a folder with the marker a repository.
///
/// # Errors
/// `AlreadyExists` if somebody else did so at the same time.
pub(crate) fn begin(store: &dyn Store, text: &str) -> Result<()> {
    put(store, 1, text)
}

/// Writes the configuration that follows `number` (none: what an older program wrote), and makes older
/// programs refuse. Returns its number.
///
/// # Errors
/// `Busy` if somebody else changed it in the meantime. After any other error the change may stand.
pub(crate) fn commit(store: &dyn Store, number: Option<u64>, text: &str) -> Result<u64> {
    // Those that do not count have their numbers all the same.
    let taken = if store.owner().is_some() { numbers(store)? } else { Vec::new() };
    // One that counts may have come since: it is found after this list, or has the number that is free in it.
    if let Some(owner) = store.owner() {
        match newest_signed(store, owner.key, Damaged::MayCount) {
            Ok(Some(now)) if now.ruling.number != number => return Err(changed(store)),
            // It is what this one takes the place of.
            Err(e) if e.is_damage() => {}
            now => drop(now?),
        }
    }
    let from = number.or(taken.last().copied()).unwrap_or(0);
    let free = (from..u64::MAX).map(|last| last + 1).find(|n| !taken.contains(n));
    let Some(next) = free else {
        return Err(Error::corrupt("no number is left for another configuration"));
    };
    put(store, next, text).or_else(|e| match e.kind() {
        ErrorKind::AlreadyExists => Err(changed(store)),
        // Whoever was faster removed what was left to publish.
        ErrorKind::NotFound if numbers(store)?.first() >= Some(&next) => Err(changed(store)),
        _ => Err(e),
    })?;
    finish(store, next)?;
    Ok(next)
}

/// Does what a writer leaves to do who dies after he published `number`, or before he published another.
pub(crate) fn finish(store: &dyn Store, number: u64) -> Result<()> {
    mark(store)?;
    sweep(store, number);
    Ok(())
}

/// What to say to the one of two writers who is the second.
pub(crate) fn changed(store: &dyn Store) -> Error {
    let place = store.location("");
    let what = format!("another process changed the configuration of {place} meanwhile");
    Error::new(ErrorKind::Busy, what).hint(Action::Retry)
}

pub(crate) fn put(store: &dyn Store, number: u64, text: &str) -> Result<()> {
    let bytes = match store.owner() {
        Some(owner) => {
            let signed = statement(number, text).signed_text(owner);
            let signed = signed.ok_or_else(|| only_owner("change its configuration"))?;
            to_checked("config", SIGNED_VERSION, &signed)
        }
        None if stated_in(text).is_some() => {
            return Err(only_owner("change its configuration"));
        }
        None => to_checked("config", VERSION, text),
    };
    if bytes.len() as u64 > MAX_BYTES {
        let what = format!("the configuration is longer than {MAX_BYTES} bytes");
        return Err(Error::new(ErrorKind::LimitExceeded, what));
    }
    store.put_if_absent(&config_file(number), &bytes)
}

/// True if older programs refuse to open what is here.
pub(crate) fn is_marked(store: &dyn Store) -> Result<bool> {
    has_marker(store, |version| version >= MARKED)
}

fn has_marker(store: &dyn Store, is_right: impl Fn(u32) -> bool) -> Result<bool> {
    match store.read_whole(MARKER, MAX_BYTES) {
        Ok(bytes) => {
            Ok(std::str::from_utf8(&bytes).ok().and_then(version_in).is_some_and(is_right))
        }
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Corrupt) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Writes the marker into a folder that has nothing of that name.
///
/// # Errors
/// `AlreadyExists` if it has.
pub(crate) fn begin_marker(store: &dyn Store) -> Result<()> {
    store.put_if_absent(MARKER, marker_text(store).as_bytes())
}

/// Puts the marker in the place of what an older program wrote, of one that says another thing, or of
/// nothing.
pub(crate) fn mark(store: &dyn Store) -> Result<()> {
    let version = if store.sealing().is_some() { MARKED_SEALED } else { MARKED };
    if has_marker(store, |there| there == version)? {
        return Ok(());
    }
    let mut upload = store.create(MARKER)?;
    upload.write(marker_text(store).as_bytes())?;
    match upload.publish_over() {
        // Somebody else did the same, and then removed what was left to do.
        Err(e) if e.kind() == ErrorKind::NotFound && is_marked(store)? => Ok(()),
        other => other,
    }
}

/// Removes what writers that were killed left behind. Whoever still writes a configuration up to `number`
/// comes too late.
fn sweep(store: &dyn Store, number: u64) {
    let is_left = |name: &String| {
        let of = temporary_of(name);
        of == Some(MARKER) || of.and_then(config_number).is_some_and(|of| of <= number)
    };
    // The change stands; the next one removes what stays.
    for name in store.list("").unwrap_or_default().iter().filter(|name| is_left(name)) {
        best_effort(store.remove(name));
    }
}
