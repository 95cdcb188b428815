//! The first line of a text that is committed: what it is, in which version, and a checksum of the rest
//! (FORMAT.md J2).

use crate::base::error::{Error, ErrorKind, Result};

/// A text with its first line. `what` is one word.
pub(crate) fn to_checked(what: &str, version: u32, body: &str) -> Vec<u8> {
    let digest = xxhash_rust::xxh3::xxh3_128(body.as_bytes());
    format!("imgsnap-{what} {version} {digest:032x}\n{body}").into_bytes()
}

/// The version, and the text without its first line.
///
/// # Errors
/// `Corrupt`, or `Unsupported` for a version later than `known`.
pub(crate) fn read_checked<'a>(what: &str, known: u32, bytes: &'a [u8]) -> Result<(u32, &'a str)> {
    let damaged = || Error::corrupt(format!("the {} is damaged", long(what)));
    let end = bytes.iter().position(|&b| b == b'\n').ok_or_else(damaged)?;
    let (line, body) = bytes.split_at(end);
    let line = std::str::from_utf8(line).map_err(|_| damaged())?;
    let rest = line.strip_prefix("imgsnap-").and_then(|rest| rest.strip_prefix(what));
    let rest = rest.and_then(|rest| rest.strip_prefix(' ')).ok_or_else(damaged)?;
    let (version, digest) = rest.split_once(' ').ok_or_else(damaged)?;
    // As it is written: no sign, no zeros before it.
    let is_number = version.bytes().all(|b| b.is_ascii_digit()) && !version.starts_with('0');
    if !is_number || version.is_empty() {
        return Err(damaged());
    }
    let Some(version) = version.parse::<u32>().ok().filter(|v| *v <= known) else {
        let what =
            format!("unsupported {} version {version} (this program supports {known})", long(what));
        return Err(Error::new(ErrorKind::Unsupported, what)
            .hint("it was written by a later imgsnap; use that version"));
    };
    let body = body.split_first().map_or(body, |(_, rest)| rest);
    if digest != format!("{:032x}", xxhash_rust::xxh3::xxh3_128(body)) {
        return Err(damaged());
    }
    Ok((version, std::str::from_utf8(body).map_err(|_| damaged())?))
}

/// The word in a sentence.
fn long(what: &str) -> &str {
    match what {
        "config" => "configuration",
        "key" => "key slot",
        other => other,
    }
}
