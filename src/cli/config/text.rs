//! One change in a TOML text that leaves everything else as it is, comments included.

use imgsnap::base::error::{Error, ErrorKind, Result};
use imgsnap::base::message::{Message, Verb};
use imgsnap::base::units::{BlockSize, PartSize};
use toml_edit::{DocumentMut, Item, Key, Table, TableLike, Value};

/// The text with a key set to a value; without one, without the key.
pub fn with(text: &str, key: &str, value: Option<&str>) -> Result<String> {
    let mut document: DocumentMut = text.parse().map_err(|e: toml_edit::TomlError| {
        let what = e.message().lines().next().unwrap_or_default();
        Error::new(ErrorKind::InvalidInput, format!("the configuration is not valid TOML: {what}"))
            .hint(Message::from("correct it with ").then(Verb::Config.of("edit")))
    })?;
    let path = path(key)?;
    let Some((last, tables)) = path.split_last() else { return Err(not_a_key(key)) };
    match value {
        Some(value) => {
            set(table_in(document.as_table_mut(), tables)?, last, read(&path, value))?;
        }
        None => {
            let gone = find(document.as_table_mut(), tables).and_then(|t| t.remove(last));
            gone.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("{key} is not set")))?;
        }
    }
    let text = document.to_string();
    // A table that was made at the end has none.
    let end = if text.ends_with('\n') { "" } else { "\n" };
    Ok(text + end)
}

fn path(key: &str) -> Result<Vec<Key>> {
    Key::parse(key).map_err(|_| not_a_key(key))
}

fn not_a_key(key: &str) -> Error {
    let what = format!("invalid key \"{}\"", key.escape_debug());
    Error::new(ErrorKind::InvalidInput, what)
        .hint("write it like prune.keep_daily or images.\"db\".prune.keep_last")
}

fn read(path: &[Key], text: &str) -> Value {
    // A size is an integer there, and people write it with a unit.
    if path.iter().map(Key::get).eq(["new", "block_size"])
        && let Ok(size) = text.parse::<BlockSize>()
    {
        return i64::from(size.bytes()).into();
    }
    if path.iter().map(Key::get).eq(["new", "part_size"])
        && let Ok(size) = text.parse::<PartSize>()
        && let Ok(bytes) = i64::try_from(size.bytes())
    {
        return bytes.into();
    }
    text.parse().unwrap_or_else(|_| text.into())
}

/// The table at a path, which is made if it is missing.
fn table_in<'a>(top: &'a mut Table, path: &[Key]) -> Result<&'a mut dyn TableLike> {
    let mut table: &mut dyn TableLike = top;
    for key in path {
        let missing = || {
            // Its header is written only if it holds a value.
            let mut table = Table::new();
            table.set_implicit(true);
            Item::Table(table)
        };
        let item = table.entry_format(key).or_insert_with(missing);
        let is_no_table = || {
            let what = format!("{} is not a table", key.get().escape_debug());
            Error::new(ErrorKind::InvalidInput, what)
        };
        table = item.as_table_like_mut().ok_or_else(is_no_table)?;
    }
    Ok(table)
}

fn find<'a>(top: &'a mut Table, path: &[Key]) -> Option<&'a mut dyn TableLike> {
    let mut table: &mut dyn TableLike = top;
    for key in path {
        table = table.get_mut(key)?.as_table_like_mut()?;
    }
    Some(table)
}

fn set(table: &mut dyn TableLike, key: &Key, mut value: Value) -> Result<()> {
    match table.get_mut(key) {
        None => drop(table.insert(key, Item::Value(value))),
        Some(Item::Value(old)) => {
            // What is written behind it stays.
            *value.decor_mut() = old.decor().clone();
            *old = value;
        }
        Some(_) => {
            let what = format!("{} is a table", key.get().escape_debug());
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# mine\n\nid = \"x\"\n\n[prune] # rules\n# days\nkeep_daily = 7 # a week\n\n\
                        [new]\nblock_size = 4096\n# end\n";

    #[test]
    fn one_key_changes_and_all_else_stays() {
        for (key, value, old, new) in [
            ("prune.keep_daily", Some("9"), "keep_daily = 7 #", "keep_daily = 9 #"),
            ("prune.keep_daily", Some("unlimited"), "= 7 #", "= \"unlimited\" #"),
            ("new.block_size", Some("64K"), "= 4096", "= 65536"),
            ("prune.keep_daily", None, "# days\nkeep_daily = 7 # a week\n", ""),
            ("prune.keep_within", Some("30d"), "week\n", "week\nkeep_within = \"30d\"\n"),
            ("prune.garbage", Some("2.5"), "week\n", "week\ngarbage = 2.5\n"),
            (
                "prune.keep_label",
                Some("[\"a\", 'b']"),
                "week\n",
                "week\nkeep_label = [\"a\", 'b']\n",
            ),
            (
                "images.\"a.b\".snapshot.track",
                Some("none"),
                "4096\n",
                "4096\n\n[images.\"a.b\".snapshot]\ntrack = \"none\"\n",
            ),
        ] {
            assert!(TEXT.contains(old), "{old}");
            assert_eq!(with(TEXT, key, value).unwrap(), TEXT.replacen(old, new, 1), "{key}");
        }
    }

    #[test]
    fn what_is_no_key_or_not_set_is_refused() {
        for (key, value, why) in [
            ("", Some("1"), "invalid key \"\""),
            ("a..b", Some("1"), "invalid key \"a..b\""),
            ("prune", Some("1"), "prune is a table"),
            ("id.x", Some("1"), "id is not a table"),
            ("prune.keep_last", None, "prune.keep_last is not set"),
            ("images.vm.prune", None, "images.vm.prune is not set"),
        ] {
            let error = with(TEXT, key, value).unwrap_err().to_string();
            assert!(error.starts_with(why), "{error}");
        }
        assert_eq!(with(TEXT, "prune", None).unwrap().matches('[').count(), 1);
    }
}
