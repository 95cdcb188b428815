//! `repository.toml`: version, identity, the defaults for new bases, and the tables of the policies
//! (FORMAT.md P1).

use crate::base::digest::DigestAlgorithm;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::message::{Message, Setting, Verb, message};
use crate::base::units::BlockSize;
use crate::codec::Compression;
use crate::repo::names::{FILE, names_in};
use crate::repo::policy::{Policy, PruneTable, SnapshotPolicy, SnapshotTable, invalid, table_at};
use crate::store::{Store, read_small};
use serde::{Deserialize, Serialize};
use std::fmt;
use toml::{Table, Value};
use uuid::Uuid;

const VERSION: u32 = 1;

/// With what a new base is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Defaults {
    /// Unit of comparison.
    pub block_size: BlockSize,
    /// Digest of blocks.
    pub digest: DigestAlgorithm,
    /// Compression; of deltas, too.
    pub compression: Compression,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            block_size: BlockSize::DEFAULT,
            digest: DigestAlgorithm::default(),
            compression: Compression::default(),
        }
    }
}

impl fmt::Display for Defaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} blocks, {}, {}", self.block_size, self.digest, self.compression)
    }
}

pub(crate) struct Config {
    pub(crate) id: Uuid,
    defaults: Defaults,
    /// `[prune]`, `[snapshot]` and `[images]` as they stand: a mistake in them concerns these verbs
    /// alone, so they are examined only when they are asked for.
    prune: Option<Value>,
    snapshot: Option<Value>,
    images: Option<Value>,
    /// A name that is none of a table or key here.
    stranger: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Wire {
    version: u32,
    id: Option<Uuid>,
    new: Option<WireNew>,
    #[serde(skip_serializing)]
    prune: Option<Value>,
    #[serde(skip_serializing)]
    snapshot: Option<Value>,
    #[serde(skip_serializing)]
    images: Option<Value>,
    /// Tables that nobody reads: perhaps a slip of the pen.
    #[serde(flatten, skip_serializing)]
    others: Table,
}

#[derive(Serialize, Deserialize)]
struct WireNew {
    block_size: u32,
    digest: String,
    compression: String,
}

fn rebuild() -> Message {
    message!["run ", Verb::Repair.call(), " to rebuild it from the delta files"]
}

fn is_lost(bytes: &[u8]) -> bool {
    let text = std::str::from_utf8(bytes).unwrap_or_default();
    // Nothing but comments is what is left of one that was cut off.
    let is_said = |line: &str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    text.contains('\0') || !text.lines().any(is_said)
}

impl Config {
    pub(crate) fn new(defaults: Defaults) -> Self {
        Self::with_id(Uuid::new_v4(), defaults)
    }

    pub(crate) fn with_id(id: Uuid, defaults: Defaults) -> Self {
        Self { id, defaults, prune: None, snapshot: None, images: None, stranger: None }
    }

    pub(crate) fn defaults(&self) -> Defaults {
        self.defaults
    }

    pub(crate) fn encode(&self) -> Result<String> {
        let Defaults { block_size, digest, compression } = self.defaults;
        let new = WireNew {
            block_size: block_size.bytes(),
            digest: digest.to_string(),
            compression: compression.to_string(),
        };
        let wire = Wire {
            version: VERSION,
            id: Some(self.id),
            new: Some(new),
            prune: None,
            snapshot: None,
            images: None,
            others: Table::new(),
        };
        let body = toml::to_string(&wire).map_err(|e| {
            Error::new(ErrorKind::InvalidInput, format!("cannot write {FILE}: {e}"))
        })?;
        Ok(format!("# An imgsnap repository. [new] may be edited; it is for new bases.\n\n{body}"))
    }

    pub(crate) fn load(store: &dyn Store) -> Result<Self> {
        let bytes = match read_small(store, FILE, 1 << 20) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                if names_in(store).is_ok_and(|names| !names.is_empty()) {
                    return Err(Self::missing(store));
                }
                let what = format!("{} is not a repository", store.location(""));
                return Err(Error::new(ErrorKind::NotFound, what).hint(message![
                    "name one with ",
                    Setting::Repo,
                    ", or make one with ",
                    Verb::Init.call(),
                ]));
            }
            other => other?,
        };
        if is_lost(&bytes) {
            let lost = Error::corrupt("it is empty, or no text").at(store.location(FILE));
            return Err(lost.hint(rebuild()));
        }
        Self::decode(&bytes).map_err(|e| e.at(store.location(FILE)))
    }

    /// What to say where there are images, and no configuration.
    pub(crate) fn missing(store: &dyn Store) -> Error {
        let what = format!("{} is missing, and there are images beside it", store.location(FILE));
        Error::corrupt(what).hint(rebuild())
    }

    /// True if the file is missing, or holds nothing that a person could have written: what is left after a
    /// crash, or a slip.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(crate) fn is_lost(store: &dyn Store) -> Result<bool> {
        match read_small(store, FILE, 1 << 20) {
            Ok(bytes) => Ok(is_lost(&bytes)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(true),
            Err(e) => Err(e),
        }
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(bytes).map_err(|_| Error::corrupt("it is no text"))?;
        // A later version may have keys that this one cannot read: the version is examined first.
        #[derive(Deserialize)]
        struct VersionOnly {
            version: u32,
        }
        let first_line = |e: toml::de::Error| {
            Error::corrupt(e.message().lines().next().unwrap_or_default().to_owned()).hint(
                message!["correct it by hand, or move it away and run ", Verb::Repair.call(),],
            )
        };
        let VersionOnly { version } = toml::from_str(text).map_err(first_line)?;
        if version > VERSION {
            let what = format!("repository version {version}, this program knows {VERSION}");
            return Err(Error::new(ErrorKind::Unsupported, what)
                .hint("a later imgsnap made it; use that one"));
        }
        let wire: Wire = toml::from_str(text).map_err(first_line)?;
        let mut defaults = Defaults::default();
        if let Some(new) = wire.new {
            defaults = Defaults {
                block_size: BlockSize::new(new.block_size)?,
                digest: new.digest.parse()?,
                compression: new.compression.parse()?,
            };
        }
        let Wire { prune, snapshot, images, others, .. } = wire;
        let stranger = others.keys().next().cloned();
        let id = wire.id.unwrap_or_default();
        Ok(Self { id, defaults, prune, snapshot, images, stranger })
    }

    /// The images that have a table of their own.
    pub(crate) fn named_images(&self) -> Vec<String> {
        let images = self.images.as_ref().and_then(Value::as_table);
        images.map_or(Vec::new(), |images| images.keys().cloned().collect())
    }

    /// What `prune` keeps of an image.
    ///
    /// # Errors
    /// `InvalidInput` if `[prune]` or the table of this image is wrong.
    pub(crate) fn policy(&self, name: &str) -> Result<Policy> {
        let (own, common) = self.tables(name, "prune", self.prune.as_ref(), PruneTable::read)?;
        Ok(PruneTable::policy(own, common))
    }

    /// How snapshots of an image are taken.
    ///
    /// # Errors
    /// `InvalidInput` if `[snapshot]` or the table of this image is wrong.
    pub(crate) fn snapshot_policy(&self, name: &str) -> Result<SnapshotPolicy> {
        let read = SnapshotTable::read;
        let (own, common) = self.tables(name, "snapshot", self.snapshot.as_ref(), read)?;
        Ok(SnapshotTable::policy(own, common))
    }

    /// The table `key` of an image, and the one for all.
    fn tables<T>(
        &self,
        name: &str,
        key: &str,
        common: Option<&Value>,
        read: fn(&Table) -> Result<T>,
    ) -> Result<(Option<T>, Option<T>)> {
        let both = || {
            // A rule in a table that nobody reads would be one that is missing.
            if let Some(stranger) = self.stranger.as_ref().filter(|_| key == "prune") {
                return Err(invalid("there is no such table or key").at(stranger.escape_debug()));
            }
            let read = |value: Option<&Value>, place: &str| {
                let table = table_at(value, place)?;
                table.map(|table| read(table).map_err(|e| e.at(place))).transpose()
            };
            let common = read(common, &format!("[{key}]"))?;
            let images = table_at(self.images.as_ref(), "[images]")?;
            let place = format!("images.\"{name}\"");
            let image = table_at(images.and_then(|t| t.get(name)), &format!("[{place}]"))?;
            let is_known = |key: &str| matches!(key, "prune" | "snapshot");
            if let Some(key) = image.and_then(|table| table.keys().find(|key| !is_known(key))) {
                return Err(invalid("there is no such key").at(key.escape_debug()).at(&place));
            }
            let own = read(image.and_then(|t| t.get(key)), &format!("[{place}.{key}]"))?;
            Ok((own, common))
        };
        both().map_err(|e: Error| e.hint("correct it by hand"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::Repository;
    use crate::repo::retention::{Count, Rules};
    use crate::store::{LocalStore, OsDisk};
    use crate::tracking::Recheck;
    use crate::tracking::Track;
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn config_comes_back_and_bad_ones_are_refused() {
        let text = Config::new(Defaults::default()).encode().unwrap();
        assert_eq!(Config::decode(text.as_bytes()).unwrap().defaults(), Defaults::default());
        let later = Config::decode(b"version = 2\nnew = 7").err().unwrap();
        assert_eq!(later.kind(), ErrorKind::Unsupported);
        for bad in [&b""[..], b"version = \"x\"", b"version = 1\n[new]\nblock_size = 3", &[0xff]] {
            assert!(Config::decode(bad).is_err());
        }
        let odd = text.replace("4096", "5000");
        assert!(Config::decode(odd.as_bytes()).is_err());
    }

    fn with(policies: &str) -> Config {
        let text = Config::new(Defaults::default()).encode().unwrap();
        Config::decode(format!("{text}\n{policies}").as_bytes()).unwrap()
    }

    #[test]
    fn an_image_has_its_own_rules_or_the_common_ones() {
        let config = with(
            r#"[prune]
            keep_last = 7
            keep_hourly = 24
            keep_daily = "unlimited"
            keep_weekly = 1
            keep_monthly = 12
            keep_yearly = 3
            keep_within = "1y6m"
            keep_label = ["pre-*", "v[0-9]"]
            garbage = 2.5
            [images."vm".prune]
            keep_label = "gold"
            [images."db"]
            prune = { garbage = 100 }
            "#,
        );
        let common = Rules {
            last: Some(Count::Most(7)),
            hourly: Some(Count::Most(24)),
            daily: Some(Count::Unlimited),
            weekly: Some(Count::Most(1)),
            monthly: Some(Count::Most(12)),
            yearly: Some(Count::Most(3)),
            within: Some("1y6m".parse().unwrap()),
            labels: vec!["pre-*".parse().unwrap(), "v[0-9]".parse().unwrap()],
        };
        let policy = |name: &str| config.policy(name).unwrap();
        assert_eq!(policy("web"), Policy { rules: Some(common.clone()), garbage: 0.025 });
        let own = Rules { labels: vec!["gold".parse().unwrap()], ..Rules::default() };
        assert_eq!(policy("vm"), Policy { rules: Some(own), garbage: 0.025 });
        assert_eq!(policy("db"), Policy { rules: Some(common), garbage: 1.0 });
        assert_eq!(Policy::default(), Policy { rules: None, garbage: 0.05 });
        for none in ["", "[prune]", "[prune]\nkeep_label = []", "[images.web]"] {
            assert_eq!(with(none).policy("web").unwrap(), Policy::default(), "{none}");
        }
    }

    #[test]
    fn how_snapshots_are_taken_is_said_key_by_key() {
        let config = with(
            r#"[snapshot]
            track = "none"
            recheck = 2.5
            [images."vm".snapshot]
            track = "reflink"
            max_stall = "1m30s"
            "#,
        );
        let common = SnapshotPolicy {
            track: Track::None,
            recheck: Recheck::Share(0.025),
            ..SnapshotPolicy::default()
        };
        let policy = |name: &str| config.snapshot_policy(name).unwrap();
        assert_eq!(policy("db"), common);
        let max_stall = Duration::from_secs(90);
        assert_eq!(policy("vm"), SnapshotPolicy { track: Track::Reflink, max_stall, ..common });
        assert_eq!(with("").snapshot_policy("vm").unwrap(), SnapshotPolicy::default());
        for (text, why) in [
            ("track = \"on\"", "[snapshot]: track: \"on\" is no way to track"),
            ("track = 1", "[snapshot]: track: it is no string"),
            ("recheck = 101", "[snapshot]: recheck: it is no number from 0 to 100"),
            ("max_stall = \"soon\"", "[snapshot]: max_stall: \"soon\" is no length of time"),
            ("max_stal = \"1s\"", "[snapshot]: max_stal: there is no such key"),
        ] {
            let error = with(&format!("[snapshot]\n{text}")).snapshot_policy("vm").unwrap_err();
            assert!(error.to_string().starts_with(why), "{error}");
        }
    }

    #[test]
    fn a_mistake_in_the_rules_is_named_and_concerns_them_alone() {
        for (text, place) in [
            ("[prune]\nkeep_dialy = 7", "[prune]: keep_dialy: there is no such key"),
            ("[prune]\n\"a\\nb\" = 7", "[prune]: a\\nb: there is no such key"),
            (
                "[images.vm.prune]\ngarbige = 7",
                "[images.\"vm\".prune]: garbige: there is no such key",
            ),
            ("[prune]\nkeep_last = 0", "[prune]: keep_last: it is neither an integer from 1"),
            ("[prune]\nkeep_last = -1", "[prune]: keep_last: it is neither an integer from 1"),
            ("[prune]\nkeep_last = \"7\"", "[prune]: keep_last: it is neither an integer from 1"),
            ("[prune]\nkeep_daily = 1.5", "[prune]: keep_daily: it is neither an integer from 1"),
            ("[prune]\nkeep_within = 30", "[prune]: keep_within: it is no string"),
            ("[prune]\nkeep_within = \"30\"", "[prune]: keep_within: \"30\" is not a period"),
            ("[prune]\nkeep_label = [7]", "[prune]: keep_label: it is no string"),
            ("[prune]\nkeep_label = \"[\"", "[prune]: keep_label: \"[\" is not a pattern"),
            ("[prune]\ngarbage = 101", "[prune]: garbage: it is no number from 0 to 100"),
            ("[prune]\ngarbage = nan", "[prune]: garbage: it is no number from 0 to 100"),
            ("[prune]\ngarbage = -0.5", "[prune]: garbage: it is no number from 0 to 100"),
            ("[prune]\ngarbage = \"5\"", "[prune]: garbage: it is no number from 0 to 100"),
            ("[[prune]]\nkeep_last = 7", "[prune]: it is no table"),
            ("[images.vm]\nkeep_last = 7", "images.\"vm\": keep_last: there is no such key"),
            ("[prun]\nkeep_last = 7", "prun: there is no such table or key"),
            ("[[images]]", "[images]: it is no table"),
            ("[images]\nvm = 7", "[images.\"vm\"]: it is no table"),
            ("[images.vm]\nprune = 7", "[images.\"vm\".prune]: it is no table"),
        ] {
            let config = with(text);
            assert_eq!(config.defaults(), Defaults::default());
            let error = config.policy("vm").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            let line = error.to_string();
            assert!(line.starts_with(place), "{line}");
            assert!(line.ends_with("; correct it by hand") && !line.contains('\n'), "{line}");
        }
        // What is wrong with one image does not keep another one from being pruned.
        let config = with("[prune]\nkeep_last = 1\n[images.vm.prune]\nkeep_lats = 2");
        assert!(config.policy("vm").is_err());
        assert!(config.policy("web").unwrap().rules.is_some());
    }

    #[test]
    fn a_repository_with_a_mistake_in_the_rules_opens_and_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let store = || Arc::new(LocalStore::new(Arc::new(OsDisk::new(folder.path().into()))));
        Repository::init_in(store(), Defaults::default()).unwrap();
        let file = folder.path().join(FILE);
        let text = std::fs::read_to_string(&file).unwrap() + "\n[prune]\nkeep_lats = 7\n";
        std::fs::write(&file, text).unwrap();
        let repository = Repository::open_in(store()).unwrap();
        assert!(repository.names().unwrap().is_empty());
        let line = repository.policy("vm").unwrap_err().to_string();
        let why = "[prune]: keep_lats: there is no such key; correct it by hand";
        assert_eq!(line, format!("{}: {why}", file.display()));
    }
}
