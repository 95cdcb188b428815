//! The verb *config*: reads the configuration, and puts another one in its place.
//!
//! Neither opens the repository: a configuration that makes no sense can be read, and replaced.

pub mod types;

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::message::{Verb, message};
use crate::ops::config::types::Configuration;
use crate::repo::config::{Config, object};
use crate::store::Store;

/// Reads the configuration that rules.
pub fn read(store: &dyn Store) -> Result<Configuration> {
    let ruling = object::ruling(store)?;
    Ok(configuration(store, ruling.number, ruling.text))
}

/// Puts `text` in the place of the configuration that was read. One that is the same is not written; then
/// what an interrupted change left to do is done.
pub fn replace(store: &dyn Store, was: &Configuration, text: &str) -> Result<Configuration> {
    if text == was.text {
        was.number.map_or(Ok(()), |number| object::finish(store, number))?;
        return Ok(was.clone());
    }
    let id = Config::checked(text)?.id;
    // One that makes no sense has no id that could be kept.
    if Config::decode(&was.text).is_ok_and(|was| was.id != id) {
        let what = "it identifies the repository and cannot be changed";
        return Err(Error::new(ErrorKind::InvalidInput, what).at("id"));
    }
    let slots = Config::checked(text)?.slots().to_vec();
    let is_same = match Config::slots_in(&was.text) {
        Some(was) => slots == was,
        // It cannot be read at all: what opened the repository goes on to.
        None => store.sealing().and_then(|s| s.slot()).is_none_or(|slot| slots.contains(&slot)),
    };
    if !is_same {
        let what = "[keys] cannot be edited by hand";
        let hint = message!["change it with ", Verb::Key.call()];
        return Err(Error::new(ErrorKind::InvalidInput, what).hint(hint));
    }
    let owner = |text: &str| Config::decode(text).ok().and_then(|config| config.owner());
    if owner(&was.text) != owner(text) {
        let hint = message!["change it with ", Verb::Key.of("owner")];
        let what = "[owner] cannot be edited by hand";
        return Err(Error::new(ErrorKind::InvalidInput, what).hint(hint));
    }
    if read(store)? != *was {
        return Err(object::changed(store));
    }
    let number = object::commit(store, was.number, text)?;
    Ok(configuration(store, Some(number), text.to_owned()))
}

fn configuration(store: &dyn Store, number: Option<u64>, text: String) -> Configuration {
    let place = store.location(&object::file_of(number));
    Configuration { number, place, text }
}
