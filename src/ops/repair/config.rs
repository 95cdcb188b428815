//! Rebuilding `repository.toml` from the delta files: what new bases are made with is what the newest one was
//! made with.

use crate::base::error::{ErrorKind, Result};
use crate::codec::{Codec, Compression};
use crate::delta::{Caches, Delta};
use crate::format::header::HEADER_BYTES;
use crate::format::{RecordHead, RecordKind};
use crate::repo::config::{Config, Defaults};
use crate::repo::manifest::{self, ImageFile};
use crate::repo::names::{self, names_in};
use crate::store::Store;
use crate::tracking::CloneFolder;
use std::sync::Arc;
use uuid::Uuid;

/// Frames that are examined to see how they are compressed: what does not compress is stored.
const MAX_PROBED_FRAMES: usize = 64;

/// Makes `repository.toml` anew if it is lost, or holds nothing that a person could have written. The
/// rules of `prune` and the settings that stood in it are lost. None if it is there.
///
/// # Errors
/// `NotFound` if there is no image either.
pub fn restore_config(store: &Arc<dyn Store>) -> Result<Option<Defaults>> {
    if !Config::is_lost(store.as_ref())? {
        return Ok(None);
    }
    let names = names_in(store.as_ref())?;
    if names.is_empty() {
        return match Config::load(store.as_ref()) {
            // What is empty and alone is of an init that was cut off.
            Err(e) if e.kind() == ErrorKind::Corrupt => {
                write_config(store.as_ref(), Config::new(Defaults::default())).map(Some)
            }
            other => other.map(|_| None),
        };
    }
    let caches = Caches::default();
    let mut newest: Option<Delta> = None;
    for name in &names {
        for file in store.list(name)?.into_iter().filter(|file| ImageFile::is_delta(file)) {
            let delta = match Delta::open(store.clone(), &format!("{name}/{file}"), &caches) {
                Ok(delta) => delta,
                Err(e) if e.kind() == ErrorKind::Io => return Err(e),
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
        defaults.compression = compression_of(store.as_ref(), delta).unwrap_or_default();
    }
    let id = known_id(store.as_ref(), &names).unwrap_or_else(Uuid::new_v4);
    write_config(store.as_ref(), Config::with_id(id, defaults)).map(Some)
}

fn write_config(store: &dyn Store, config: Config) -> Result<Defaults> {
    let mut upload = store.create(names::FILE)?;
    upload.write(config.encode()?.as_bytes())?;
    upload.publish_over()?;
    Ok(config.defaults())
}

/// How the frames of a file are compressed; none if that cannot be told.
fn compression_of(store: &dyn Store, delta: &Delta) -> Option<Compression> {
    let mut at = HEADER_BYTES as u64;
    for _ in 0..MAX_PROBED_FRAMES {
        let mut head = [0; crate::format::record::RECORD_HEAD_BYTES];
        store.read_at(delta.name(), at, &mut head).ok()?;
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
        let clones = CloneFolder::beside(manifest.source.as_deref()?).list().ok()?;
        let owners = clones.into_iter().filter_map(|clone| clone.owner);
        owners.filter(|owner| owner.image == manifest.image_id).map(|o| o.repository).next()
    };
    names.iter().find_map(known)
}
