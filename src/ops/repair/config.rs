//! Rebuilding a configuration that is lost or damaged.
//!
//! ```text
//! a numbered one that is sound    -> the highest of them is written again
//! what an older program wrote     -> it is taken over
//! neither                         -> what new bases are made with is what the newest one was made with
//! ```

use crate::base::error::{ErrorKind, Result};
use crate::codec::{Codec, Compression};
use crate::delta::{Caches, Delta, DeltaFile, Part};
use crate::format::header::HEADER_BYTES;
use crate::format::{RecordHead, RecordKind};
use crate::ops::repair::types::{ConfigOrigin, RestoredConfig};
use crate::repo::config::object::Damaged;
use crate::repo::config::{Config, Defaults, object};
use crate::repo::manifest::{self, ImageFile};
use crate::repo::names::names_in;
use crate::store::Store;
use crate::store::sealed::slots_in;
use crate::tracking::CloneFolder;
use std::sync::Arc;
use uuid::Uuid;

/// Frames that are examined to see how they are compressed: what does not compress is stored.
const MAX_PROBED_FRAMES: usize = 64;

/// Rebuilds the configuration if it is lost or damaged, or holds nothing that a person could have written.
/// None if it is sound; then what an interrupted change left to do is done.
///
/// # Errors
/// `NotFound` if there is no repository; `Corrupt` if somebody wrote something into it that makes no sense.
pub fn restore_config(store: &Arc<dyn Store>) -> Result<Option<RestoredConfig>> {
    let all = store;
    let store = all.as_ref();
    match object::ruling(store) {
        Ok(ruling) => {
            ruling.number.map_or(Ok(()), |number| object::finish(store, number))?;
            return Ok(None);
        }
        // Whatever cannot be read now, or was written by a later version, is not lost.
        Err(e) if !e.is_damage() => return Err(e),
        Err(_) => {}
    }
    let numbers = object::numbers(store)?;
    let sound = match store.owner() {
        Some(owner) => object::newest_signed(store, owner.key, Damaged::Skipped)?.map(|signed| {
            let number = signed.ruling.number.unwrap_or(0);
            (signed.ruling.text, ConfigOrigin::Earlier(number))
        }),
        None => last_sound(store, &numbers)?,
    };
    let (text, origin) = match sound {
        Some(sound) => sound,
        None => (rebuilt(all)?.encode()?, ConfigOrigin::DeltaFiles),
    };
    let last = numbers.first().copied().filter(|_| store.owner().is_none());
    let number = object::commit(store, last, &text)?;
    let defaults = Config::load(store)?.defaults().unwrap_or_default();
    Ok(Some(RestoredConfig { number, origin, defaults }))
}

/// The text of the last configuration that can be read.
fn last_sound(store: &dyn Store, numbers: &[u64]) -> Result<Option<(String, ConfigOrigin)>> {
    let sound = |text: Result<String>| match text {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.is_damage() || e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    };
    for number in numbers {
        if let Some(text) = sound(object::read(store, *number))? {
            return Ok(Some((text, ConfigOrigin::Earlier(*number))));
        }
    }
    let text = sound(object::read_unnumbered(store))?;
    Ok(text.map(|text| (text, ConfigOrigin::OlderProgram)))
}

/// What new bases are made with, by the files that there are; without any, as usual.
fn rebuilt(store: &Arc<dyn Store>) -> Result<Config> {
    let names = names_in(store.as_ref())?;
    let caches = Caches::default();
    let mut newest: Option<Delta> = None;
    for name in &names {
        for file in store.list(name)?.into_iter().filter(|file| ImageFile::is_delta(file)) {
            let file = format!("{name}/{file}");
            let delta = match DeltaFile::open(store.clone(), &file, &caches) {
                Ok(DeltaFile::Layer(delta)) => *delta,
                Ok(DeltaFile::Part(_)) => continue,
                Err(e) if e.is_unread() => return Err(e),
                Err(_) => continue,
            };
            let is_newer = newest
                .as_ref()
                .is_none_or(|newest| newest.footer().time_seconds < delta.footer().time_seconds);
            if is_newer {
                newest = Some(delta);
            }
        }
    }
    let mut defaults = Defaults::default();
    if let Some(delta) = &newest {
        defaults.block_size = delta.header().block_size;
        defaults.digest = delta.header().algorithm;
        let compression = delta.part(0).ok().and_then(|part| compression_of(store.as_ref(), part));
        defaults.compression = compression.unwrap_or_default();
    }
    let owned = |config: Config| match store.owner() {
        Some(owner) => config.owned_by(owner.key),
        None => config,
    };
    if let Some(sealing) = store.sealing() {
        // Which of them were removed nobody knows any more.
        let usable = slots_in(store.as_ref())?.into_iter().filter(|(_, of)| of.is_some());
        let slots = usable.map(|(id, _)| id).collect();
        return Ok(owned(Config::new(defaults).sealed_with(sealing, slots)));
    }
    let id = store.owner().map(|owner| owner.repository);
    let id = id.or_else(|| known_id(store.as_ref(), &names)).unwrap_or_else(Uuid::new_v4);
    Ok(owned(Config::with_id(id, defaults)))
}

/// How the frames of a file are compressed; none if that cannot be told.
fn compression_of(store: &dyn Store, part: &Part) -> Option<Compression> {
    let mut at = HEADER_BYTES as u64;
    for _ in 0..MAX_PROBED_FRAMES {
        let mut head = [0; crate::format::record::RECORD_HEAD_BYTES];
        store.read_at(part.name(), at, &mut head).ok()?;
        let head = RecordHead::decode(&head).ok()?;
        match head.kind {
            RecordKind::Frame { codec: Codec::Lz4, .. } => return "lz4".parse().ok(),
            // The level stands nowhere.
            RecordKind::Frame { codec: Codec::Zstd, .. } => return "zstd".parse().ok(),
            _ => at += u64::from(head.record_bytes()),
        }
    }
    None
}

/// The id that the clones of its images are marked with.
fn known_id(store: &dyn Store, names: &[String]) -> Option<Uuid> {
    let known = |name: &String| {
        let manifest = manifest::load(store, name).ok()?;
        let clones = CloneFolder::beside(manifest.source.as_ref()?.file()?).list().ok()?;
        let owners = clones.into_iter().filter_map(|clone| clone.owner);
        owners.filter(|owner| owner.image == manifest.image_id).map(|o| o.repository).next()
    };
    names.iter().find_map(known)
}
