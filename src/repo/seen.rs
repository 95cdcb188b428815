//! What this host has seen of a repository that is sealed, or has an owner (FORMAT.md S9): whoever keeps it
//! can show an older state of it, or to each host another one, and neither is used.
//!
//! ```text
//! STATE/REPOSITORY-ID/DIGEST.seen     the newest commit of an image, or the newest configuration
//! ```
//!
//! Of another one a warning is all ([`crate::repo::head`]): a copy of one may be used.

use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::message::{Setting, Verb, message};
use crate::repo::accepted::GONE;
use crate::repo::host::HostState;
use crate::repo::manifest::{self, Ancestor, Manifest, ManifestDigest};
use crate::repo::names::is_guarded;
use crate::store::Store;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

const ENDING: &str = ".seen";

#[derive(Serialize, Deserialize)]
struct Record {
    /// The host that wrote it.
    machine: String,
    /// For people.
    image: String,
    newest: Ancestor,
    /// A later one that was given up, since this one was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    given_up: Option<Ancestor>,
}

#[derive(Serialize, Deserialize)]
struct ConfigRecord {
    machine: String,
    number: u64,
    digest: ManifestDigest,
}

/// What to say of a record that is damaged.
fn unreadable(error: &Error) -> Error {
    let what =
        format!("what this host has seen of the repository cannot be read: {}", error.message());
    Error::new(ErrorKind::Mismatch, what).hint(message![
        "without that file, what is there now counts as seen; compare ",
        Verb::Heads.call(),
        " elsewhere first",
    ])
}

fn is_accepted(host: &HostState, image: &str, what: &str) -> bool {
    host.accepted().iter().any(|accepted| accepted.image == image && accepted.what == what)
}

fn accept(state: &str) -> crate::base::message::Message {
    message![
        "it may be an old copy, or newer snapshots may be withheld; to accept it, use ",
        Setting::AcceptOlder.to(state),
    ]
}

/// What a host has seen of the repository in a store.
pub(crate) struct Seen<'a> {
    pub(crate) store: &'a dyn Store,
    pub(crate) host: &'a HostState,
    pub(crate) repository: Uuid,
}

impl Seen<'_> {
    fn recorded(&self, name: &str) -> Result<Option<Record>> {
        let record: Option<Record> = match self.host.load_file(&self.file_of(name)) {
            // It is told as what this host does not know, and not as damage of the repository.
            Err(e) if e.is_damage() => {
                let is_given = self.host.accepted().iter().any(|a| a.image == name);
                return if is_given { Ok(None) } else { Err(unreadable(&e)) };
            }
            record => record?,
        };
        // That of a host that was copied is none.
        Ok(record.filter(|record| record.machine == self.host.host().machine))
    }

    /// The newest commit that was seen of an image.
    pub(crate) fn newest(&self, name: &str) -> Option<Ancestor> {
        self.recorded(name).ok().flatten().map(|record| record.newest)
    }

    fn file_of(&self, name: &str) -> String {
        // Hosts that share a folder have files of their own.
        let digest = blake3::hash(format!("{}\0{name}", self.host.host().machine).as_bytes());
        format!("{}/{}{ENDING}", self.repository, digest.to_hex().get(..32).unwrap_or_default())
    }

    /// Remembers a commit as the newest one, whatever was seen before.
    ///
    /// # Errors
    /// If that cannot be written: then the one before is what has to be followed.
    pub(crate) fn remember(&self, manifest: &Manifest) -> Result<()> {
        if !is_guarded(self.store) {
            return Ok(());
        }
        let given_up = self.recorded(&manifest.name).ok().flatten();
        self.remember_over(manifest, given_up.and_then(|record| record.given_up))
    }

    fn remember_over(&self, manifest: &Manifest, given_up: Option<Ancestor>) -> Result<()> {
        self.host.tidy_folder(&self.repository.to_string());
        let (true, Some(commit)) = (is_guarded(self.store), manifest.commit) else {
            return Ok(());
        };
        let newest = Ancestor { sequence: manifest.sequence, commit };
        let machine = self.host.host().machine.clone();
        let record = Record { machine, image: manifest.name.clone(), newest, given_up };
        self.host.save_file(&self.file_of(&manifest.name), &record)
    }

    /// Fails unless a manifest is the newest that this host has seen, or follows that. `also` is what the
    /// host knows of it otherwise. Gives why it cannot be remembered, if it cannot.
    ///
    /// # Errors
    /// `Mismatch` if it does not, or if that cannot be proved; `Busy` if somebody else of this host has
    /// committed since it was read.
    pub(crate) fn check(
        &self,
        manifest: &Manifest,
        also: Option<&Ancestor>,
    ) -> Result<Option<Error>> {
        if !is_guarded(self.store) {
            return Ok(None);
        }
        let recorded = self.recorded(&manifest.name)?;
        let given_up = recorded.as_ref().and_then(|record| record.given_up.as_ref());
        // What was given up is not asked for again.
        let floor = given_up.map_or(0, |given_up| given_up.sequence);
        let also = also.filter(|also| also.sequence > floor);
        let known = recorded.iter().map(|record| &record.newest).chain(also);
        let newest = known.max_by_key(|newest| newest.sequence);
        let Some(newest) = newest else {
            return Ok(self.remember(manifest).err());
        };
        let is_newest =
            manifest.sequence == newest.sequence && manifest.commit == Some(newest.commit);
        if is_newest || manifest.is_proved_to_follow(newest) {
            let is_known = recorded.as_ref().is_some_and(|record| record.newest == *newest);
            return Ok(if is_newest && is_known { None } else { self.remember(manifest).err() });
        }
        // Somebody else of this host has committed since it was read, and has remembered that.
        let rules = manifest::load_last(self.store, &manifest.name);
        if let Ok(rules) = rules
            && rules.sequence != manifest.sequence
            && (rules.is_proved_to_follow(newest) || rules.commit == Some(newest.commit))
        {
            return Err(manifest::changed_meanwhile(&manifest.name));
        }
        let commit = manifest.commit.map(|commit| commit.to_string()).unwrap_or_default();
        if is_accepted(self.host, &manifest.name, &commit) {
            return Ok(self.remember_over(manifest, Some(newest.clone())).err());
        }
        let state = format!("{}@{commit}", manifest.name);
        if manifest.sequence > newest.sequence && manifest.forgets(newest.sequence) {
            let what = format!(
                "\"{}\" has had {} commits since this host last read it, and no longer records whether \
                 they follow the one that this host has seen ({})",
                manifest.name,
                manifest.sequence - newest.sequence,
                newest.commit
            );
            return Err(Error::new(ErrorKind::Mismatch, what).hint(message![
                "compare ",
                Verb::Heads.call(),
                " with its output on a host that made them; if it agrees, use ",
                Setting::AcceptOlder.to(&state),
            ]));
        }
        let what = format!(
            "\"{}\" is in an older state, or was replaced: this host has seen commit {} ({}), \
             but {} does not follow it",
            manifest.name, newest.sequence, newest.commit, manifest.sequence
        );
        Err(Error::new(ErrorKind::Mismatch, what).hint(accept(&state)))
    }

    /// Fails if this host has seen an image that is not there now, nor was removed by anybody.
    ///
    /// # Errors
    /// `Mismatch`; `error` otherwise.
    pub(crate) fn or_vanished(&self, name: &str, error: Error) -> Error {
        if error.kind() != ErrorKind::NotFound || !is_guarded(self.store) {
            return error;
        }
        match self.check_gone(name) {
            Ok(()) => error,
            Err(vanished) => vanished,
        }
    }

    /// The same, where it is known that it is not listed.
    ///
    /// # Errors
    /// `Mismatch`.
    pub(crate) fn check_gone(&self, name: &str) -> Result<()> {
        let Some(record) = self.recorded(name)? else { return Ok(()) };
        // What was removed has a last manifest, which follows what was seen.
        match manifest::load_last(self.store, name) {
            Ok(last) => return self.check(&last, None).map(drop),
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            Err(_) => {}
        }
        if is_accepted(self.host, name, GONE) {
            let file = self.file_of(name);
            return self.host.remove_file(&self.repository.to_string(), &file);
        }
        let what = format!(
            "\"{name}\" has vanished: this host has seen commit {} ({}) of it, and nobody removed it",
            record.newest.sequence, record.newest.commit
        );
        Err(Error::new(ErrorKind::Mismatch, what).hint(accept(&format!("{name}@{GONE}"))))
    }

    /// Fails if an image has vanished that this host has seen, of those that are not among `names`.
    ///
    /// # Errors
    /// `Mismatch`.
    pub(crate) fn check_names(&self, names: &[String]) -> Result<()> {
        if !is_guarded(self.store) {
            return Ok(());
        }
        let folder = self.repository.to_string();
        for file in self.host.files(&folder, ENDING)? {
            let file = format!("{folder}/{file}");
            let record: Option<Record> = match self.host.load_file(&file) {
                // That of the configuration, or of an image that is asked for by its name.
                Err(e) if e.is_damage() => None,
                record => record?,
            };
            let is_ours = |record: &Record| record.machine == self.host.host().machine;
            if let Some(record) = record.filter(is_ours)
                && !names.contains(&record.image)
            {
                self.check_gone(&record.image)?;
            }
        }
        Ok(())
    }

    /// Fails unless a configuration is the newest that this host has seen, or a later one.
    ///
    /// # Errors
    /// `Mismatch`.
    pub(crate) fn check_config(&self, number: u64, text: &str) -> Result<()> {
        let file = self.file_of("");
        let digest = ManifestDigest::of(text.as_bytes());
        let machine = self.host.host().machine.clone();
        let record: Option<ConfigRecord> = match self.host.load_file(&file) {
            Err(e) if e.is_damage() && is_accepted(self.host, "", &number.to_string()) => None,
            Err(e) if e.is_damage() => {
                return Err(unreadable(&e).hint(accept(&format!("@{number}"))));
            }
            record => record?,
        };
        let seen = record.filter(|record| record.machine == machine);
        let is_known = seen.as_ref().is_some_and(|s| s.number == number && s.digest == digest);
        if is_known {
            return Ok(());
        }
        if let Some(seen) = seen.filter(|seen| seen.number >= number)
            && !is_accepted(self.host, "", &number.to_string())
        {
            let what = format!(
                "the configuration is in an older state, or was replaced: this host has seen \
                 number {}, but it is now {number}",
                seen.number
            );
            return Err(Error::new(ErrorKind::Mismatch, what).hint(accept(&format!("@{number}"))));
        }
        // Without it, the one before is what has to be followed.
        best_effort(self.host.save_file(&file, &ConfigRecord { machine, number, digest }));
        Ok(())
    }
}
