//! The recovery text (FORMAT.md Z8): all that is needed to read a repository, on a sheet of paper.

use super::keys::{KEY_BYTES, MasterKey};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::secret::Secret;
use crate::base::signing::OwnerKey;
use uuid::Uuid;
use zeroize::{Zeroize, Zeroizing};

const TITLE: &str = "imgsnap recovery key 1";
/// Digits of the master key in a group.
const GROUP: usize = 8;

/// What the text says.
pub(super) struct Recovery {
    pub(super) repository: Uuid,
    pub(super) master: MasterKey,
    /// Who owns it, if somebody does.
    pub(super) owner: Option<OwnerKey>,
}

/// True for what looks like one.
pub(super) fn is_recovery(given: &Secret) -> bool {
    given.bytes().trim_ascii_start().starts_with(TITLE.as_bytes())
}

fn check_of(repository: Uuid, master: &[u8], owner: Option<OwnerKey>) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("imgsnap recovery text");
    hasher.update(repository.as_bytes());
    hasher.update(master);
    hasher.update(owner.map(|owner| owner.to_string()).unwrap_or_default().as_bytes());
    let check = hasher.finalize().to_hex();
    check.get(..16).unwrap_or_default().to_owned()
}

/// The text.
pub(super) fn to_text(
    repository: Uuid,
    master: &MasterKey,
    owner: Option<OwnerKey>,
) -> Zeroizing<String> {
    let mut digits = data_encoding::HEXLOWER.encode(master.bytes());
    // As long as it becomes: nothing of it is left where it was shorter.
    let mut text = Zeroizing::new(String::with_capacity(512));
    text.push_str(&format!("{TITLE}\nrepository: {repository}\nmaster key:"));
    for group in digits.as_bytes().chunks(GROUP) {
        text.push(' ');
        group.iter().for_each(|digit| text.push(char::from(*digit)));
    }
    digits.zeroize();
    if let Some(owner) = owner {
        text.push_str(&format!("\nowner: {owner}"));
    }
    text.push_str(&format!("\ncheck: {}\n", check_of(repository, master.bytes(), owner)));
    text
}

/// Reads it.
///
/// # Errors
/// `Key` if it was not copied as it is.
pub(super) fn read(given: &Secret) -> Result<Recovery> {
    let wrong = || {
        Error::new(ErrorKind::Key, "the recovery text was not copied correctly")
            .hint("compare it with the original, digit by digit")
    };
    let text = std::str::from_utf8(given.bytes()).map_err(|_| wrong())?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'));
        line.map(str::trim).ok_or_else(wrong)
    };
    let repository = Uuid::parse_str(field("repository")?).map_err(|_| wrong())?;
    let mut digits = field("master key")?.as_bytes().to_vec();
    digits.retain(|digit| !digit.is_ascii_whitespace());
    let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(&digits);
    digits.zeroize();
    let bytes = Zeroizing::new(bytes.map_err(|_| wrong())?);
    let has_owner = text.lines().any(|line| line.trim().starts_with("owner:"));
    let owner = has_owner.then(|| field("owner")?.to_ascii_lowercase().parse());
    let owner = owner.transpose().map_err(|_: Error| wrong())?;
    if bytes.len() != KEY_BYTES
        || !field("check")?.eq_ignore_ascii_case(&check_of(repository, &bytes, owner))
    {
        return Err(wrong());
    }
    Ok(Recovery { repository, master: MasterKey::of(Secret::copy(&bytes)?)?, owner })
}
