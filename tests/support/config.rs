//! The configuration of a repository as its files have it, also where it makes no sense (FORMAT.md P1, P7).

#![allow(dead_code, clippy::unwrap_used, clippy::indexing_slicing)]

use std::path::Path;

/// The object that rules, of those whose names are given.
pub fn ruling(names: &[String]) -> String {
    let numbered = names.iter().filter(|name| name.starts_with("config.") && !name.contains('/'));
    numbered.max().cloned().unwrap_or_else(|| "repository.toml".into())
}

/// The text of an object.
pub fn text_of(name: &str, bytes: Vec<u8>) -> String {
    let text = String::from_utf8(bytes).unwrap();
    if name == "repository.toml" { text } else { text.split_once('\n').unwrap().1.to_owned() }
}

/// A text with its first line.
pub fn sealed(text: &str) -> Vec<u8> {
    let digest = xxhash_rust::xxh3::xxh3_128(text.as_bytes());
    format!("imgsnap-config 1 {digest:032x}\n{text}").into_bytes()
}

/// What is to be written so that `more` is added: the next number, or what an older program wrote.
pub fn extended(
    names: &[String],
    get: impl FnOnce(&str) -> Vec<u8>,
    more: &str,
) -> (String, Vec<u8>) {
    changed(names, get, |text| format!("{text}\n{more}"))
}

/// The same for any change of the text.
pub fn changed(
    names: &[String],
    get: impl FnOnce(&str) -> Vec<u8>,
    change: impl FnOnce(&str) -> String,
) -> (String, Vec<u8>) {
    let name = ruling(names);
    let text = change(&text_of(&name, get(&name)));
    match name.strip_prefix("config.") {
        None => (name, text.into_bytes()),
        Some(number) => {
            let next = number.parse::<u64>().unwrap() + 1;
            (format!("config.{next:06}"), sealed(&text))
        }
    }
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The text that rules in a folder.
pub fn text_in(folder: impl AsRef<Path>) -> String {
    let folder = folder.as_ref();
    let name = ruling(&names_in(folder));
    text_of(&name, std::fs::read(folder.join(&name)).unwrap())
}

/// Adds to the configuration in a folder. Returns the name of the object that rules then.
pub fn add(folder: impl AsRef<Path>, more: &str) -> String {
    change(folder, |text| format!("{text}\n{more}"))
}

/// Changes the configuration in a folder, at once. Returns the name of the object that rules then.
pub fn change(folder: impl AsRef<Path>, change: impl FnOnce(&str) -> String) -> String {
    let folder = folder.as_ref();
    let get = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let (name, bytes) = changed(&names_in(folder), get, change);
    let next = folder.join(".mine");
    std::fs::write(&next, bytes).unwrap();
    std::fs::rename(next, folder.join(&name)).unwrap();
    name
}
