//! Which commit a manifest is, which ones it follows, and what it names no more (FORMAT.md J10 to J12; the
//! protocol stands in DESIGN.md, "One commit for every store").

use crate::base::error::{Error, ErrorKind, Result};
use crate::image::ImageFormat;
use crate::repo::manifest::commit::{Ancestor, Condemned, ManifestDigest, Read};
use crate::repo::manifest::related::{is_pin_object, pin_object};
use crate::repo::manifest::types::{Manifest, Snapshot};
use jiff::Timestamp;
use std::collections::{BTreeSet, HashSet};
use uuid::Uuid;

/// What a program must know that reads a manifest with a protected snapshot: another one would drop it.
const PROTECTED: &str = "protected";
/// ... of an image that was removed: another one would list it.
const FORGOTTEN: &str = "forgotten";
/// ... of an image that is being rolled back: another one would take a snapshot of it.
const ROLLBACK: &str = "rollback";
/// ... with a snapshot on which something elsewhere depends: another one would drop it.
const PINS: &str = "pins";
/// ... with a snapshot that is not finished: another one would take its number, and what is there of it.
const PENDING: &str = "pending";
/// ... with attachments: another one would take them for garbage.
const ATTACHMENTS: &str = "attachments";
/// ... of an image whose format is not what its base says: another one would read it otherwise.
const FORMAT: &str = "format";
/// ... with a chain that begins from another image: another one would take it for a base.
const BASE_OF: &str = "base_of";
/// ... with a snapshot in parts: another one would take them for garbage.
const PARTS: &str = "parts";
const KNOWN_NEEDS: [&str; 9] =
    [PROTECTED, FORGOTTEN, ROLLBACK, PINS, PENDING, ATTACHMENTS, FORMAT, BASE_OF, PARTS];

/// So many of the last commits are all named as ancestors.
const RECENT: u64 = 256;

impl Manifest {
    /// Remembers that these are its bytes in the store.
    pub(crate) fn is_read_from(&mut self, bytes: &[u8]) {
        let objects = self.names();
        let (digest, bytes) = (ManifestDigest::of(bytes), bytes.len() as u64);
        self.read = Some(Read { digest, bytes, objects });
    }

    /// Objects that it names, whatever for.
    pub(crate) fn objects(&self) -> impl Iterator<Item = &str> {
        let stored = self.snapshots.iter().chain(&self.dropped).flat_map(Snapshot::files);
        let attachments = self.snapshots.iter().flat_map(|s| &s.attachments).map(|a| &a.object);
        let pending = self.pending.iter().flat_map(|pending| &pending.objects);
        stored.chain(attachments).chain(pending).chain(&self.kept).map(String::as_str)
    }

    /// The same with the pins that were made for it in other images (C9).
    fn names(&self) -> BTreeSet<String> {
        let pins = self.bases_elsewhere().map(|of| pin_object(of.pin));
        self.objects().map(str::to_owned).chain(pins).collect()
    }

    /// True for an object that it, or one before it, names no more.
    pub(crate) fn is_condemned(&self, object: &str) -> bool {
        self.condemned.iter().any(|condemned| condemned.object == object)
    }

    /// Goes on from an earlier manifest of the image, where what came after it is lost: what that condemned,
    /// and deleted, nobody knows.
    pub(crate) fn follow(&mut self, earlier: Option<&Self>) {
        self.swept = self.sequence;
        if let Some(earlier) = earlier {
            self.ancestors = earlier.all_ancestors();
            self.condemned = earlier.condemned.clone();
            self.read = earlier.read.clone();
            self.standing = earlier.standing;
        }
    }

    /// Condemns an object that nobody names, with the next commit.
    pub(crate) fn disown(&mut self, object: &str) {
        if let Some(read) = &mut self.read {
            read.objects.insert(object.to_owned());
        }
    }

    /// True if the next commit will condemn what nobody names.
    pub(crate) fn has_disowned(&self) -> bool {
        let named = self.names();
        self.read.as_ref().is_some_and(|read| !read.objects.is_subset(&named))
    }

    /// The first image of its name after one that was removed: it goes on with its numbers.
    pub(crate) fn succeeding(self, forgotten: &Self) -> Self {
        Self {
            sequence: forgotten.sequence,
            ancestors: forgotten.all_ancestors(),
            condemned: forgotten.condemned.clone(),
            swept: forgotten.swept,
            read: forgotten.read.clone(),
            standing: forgotten.standing,
            ..self
        }
    }

    /// Makes it follow a commit of which nothing but its number and id is known, unless it is a later one.
    pub(crate) fn follow_seen(&mut self, newest: Ancestor) {
        if newest.sequence >= self.sequence {
            self.ancestors.retain(|ancestor| ancestor.sequence < newest.sequence);
            self.sequence = newest.sequence;
            self.swept = self.sequence;
            self.ancestors.push(newest);
        }
    }

    /// Forgets condemned objects that are not in the folder any more.
    pub(crate) fn sweep(&mut self, present: &HashSet<&str>) {
        let is_gone = |condemned: &Condemned| !present.contains(condemned.object.as_str());
        let gone = self.condemned.iter().filter(|condemned| is_gone(condemned));
        self.swept = gone.map(|condemned| condemned.sequence).fold(self.swept, u64::max);
        self.condemned.retain(|condemned| !is_gone(condemned));
    }

    /// Gives up what was to be finished by now; `now` is what the clock of the store says.
    pub(crate) fn expire_pending(&mut self, now: Timestamp) {
        self.pending.retain(|pending| pending.expires > now);
    }

    /// False if a commit is known not to be this one, nor before it.
    pub(crate) fn is_or_follows(&self, commit: &Ancestor) -> bool {
        let known = self.all_ancestors();
        match known.iter().find(|known| known.sequence == commit.sequence) {
            Some(known) => known.commit == commit.commit,
            // Of those before, few are remembered.
            None => self.sequence > commit.sequence,
        }
    }

    /// True if it names no commit of that number any more, nor one that follows it nearby.
    pub(crate) fn forgets(&self, sequence: u64) -> bool {
        !self.ancestors.iter().any(|ancestor| ancestor.sequence == sequence)
    }

    /// Fails unless it is a commit, or is known to follow it.
    ///
    /// # Errors
    /// `Mismatch`.
    pub(crate) fn check_at_least(&self, commit: Option<Uuid>) -> Result<()> {
        let Some(wanted) = commit else { return Ok(()) };
        if self.all_ancestors().iter().any(|known| known.commit == wanted) {
            return Ok(());
        }
        let what =
            format!("\"{}\" is not known to be at commit {wanted} or a later one", self.name);
        Err(Error::new(ErrorKind::Mismatch, what))
    }

    /// True if it names a commit among those that it follows.
    pub(crate) fn is_proved_to_follow(&self, commit: &Ancestor) -> bool {
        self.ancestors.contains(commit)
    }

    /// Its ancestors, and itself.
    pub(super) fn all_ancestors(&self) -> Vec<Ancestor> {
        let own = self.commit.map(|commit| Ancestor { sequence: self.sequence, commit });
        self.ancestors.iter().cloned().chain(own).collect()
    }

    /// Makes it the one that follows the commit that it was read from.
    pub(super) fn succeed(&mut self) -> Result<()> {
        let last =
            || Error::corrupt(format!("{}: no number is left for another commit", self.name));
        let sequence = self.last_number().checked_add(1).ok_or_else(last)?;
        self.ancestors = self.all_ancestors();
        self.ancestors.retain(|ancestor| is_remembered(ancestor.sequence, sequence));
        self.commit = Some(Uuid::new_v4());
        self.sequence = sequence;
        self.needs = self.needs_of_content();
        let before = self.read.take();
        self.previous = before.as_ref().map(|before| before.digest);
        let named = self.names();
        // A repair may need again what was condemned: in a folder that is safe while it holds the lock, and
        // where there is none it takes nothing of that kind.
        self.condemned.retain(|condemned| !named.contains(&condemned.object));
        let known: HashSet<String> = self.condemned.iter().map(|c| c.object.clone()).collect();
        let objects = before.map(|before| before.objects).unwrap_or_default();
        // What the files begin from that a repair could not use is not known: no pin is given up.
        let is_unknown = |object: &String| !self.unused.is_empty() && is_pin_object(object);
        let is_new = |object: &String| {
            !named.contains(object) && !known.contains(object) && !is_unknown(object)
        };
        let dropped = objects.into_iter().filter(is_new);
        self.condemned.extend(dropped.map(|object| Condemned { object, sequence }));
        Ok(())
    }

    fn needs_of_content(&self) -> Vec<String> {
        let has = |what: fn(&Snapshot) -> bool| self.snapshots.iter().any(what);
        let needs = [
            (has(|s| s.protected), PROTECTED),
            (self.forgotten, FORGOTTEN),
            (self.rollback.is_some(), ROLLBACK),
            (has(|s| !s.pins.is_empty()), PINS),
            (!self.pending.is_empty(), PENDING),
            (has(|s| !s.attachments.is_empty()), ATTACHMENTS),
            (self.is_format_news(), FORMAT),
            (self.bases_elsewhere().next().is_some(), BASE_OF),
            (self.stored().iter().any(|s| !s.parts.is_empty()), PARTS),
        ];
        let needed = needs.into_iter().filter(|(is_needed, _)| *is_needed);
        needed.map(|(_, need)| need.to_owned()).collect()
    }

    /// True if the live image is read otherwise than its base says: as raw, where that says nothing.
    fn is_format_news(&self) -> bool {
        let before = self.format_of_base().unwrap_or(ImageFormat::RAW.qemu());
        self.format.as_deref().is_some_and(|format| format != before)
    }

    /// Keys of version 3 mean nothing in an earlier one.
    pub(super) fn forget_commit(&mut self) {
        (self.commit, self.previous, self.swept, self.forgotten) = (None, None, 0, false);
        (self.host, self.rollback) = (None, None);
        self.needs.clear();
        self.ancestors.clear();
        self.condemned.clear();
        self.pending.clear();
        for snapshot in self.snapshots.iter_mut().chain(&mut self.dropped) {
            (snapshot.group, snapshot.protected) = (None, false);
            snapshot.pins.clear();
            snapshot.base_of = None;
            snapshot.attachments.clear();
            snapshot.parts.clear();
        }
    }

    /// What is wrong with the keys of version 3.
    pub(super) fn find_wrong_in_commit(&self) -> Option<&'static str> {
        let numbers = || self.ancestors.iter().map(|ancestor| ancestor.sequence);
        let is_before = |sequence: u64| (1..self.sequence).contains(&sequence);
        if !numbers().is_sorted_by(|a, b| a < b) || !numbers().all(is_before) {
            return Some("the ancestors are out of order");
        }
        let condemned = |c: &Condemned| (1..=self.sequence).contains(&c.sequence);
        if self.forgotten && !self.stored().is_empty() {
            return Some("it was removed, but has snapshots");
        }
        if !self.condemned.iter().all(condemned) || self.swept > self.sequence {
            return Some("something is condemned by a later manifest");
        }
        let named = self.names();
        let is_both = self.condemned.iter().any(|c| named.contains(c.object.as_str()));
        is_both.then_some("something is condemned, and named")
    }

    /// Fails if it needs what this program does not know.
    pub(super) fn check_needs(&self) -> Result<()> {
        match self.needs.iter().find(|need| !KNOWN_NEEDS.contains(&need.as_str())) {
            None => Ok(()),
            Some(need) => {
                let what =
                    format!("the manifest needs {need:?}, which this program does not support");
                Err(Error::new(ErrorKind::Unsupported, what)
                    .hint("it was written by a later imgsnap; use that version"))
            }
        }
    }
}

/// True if a manifest names an ancestor of that number: the last ones all, of those before four for each
/// power of two. Whoever is not named once, is not named later.
fn is_remembered(ancestor: u64, sequence: u64) -> bool {
    let back = sequence.saturating_sub(ancestor);
    back <= RECENT || ancestor.is_multiple_of(back.next_power_of_two() / 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ancestors_are_remembered_sparsely_and_never_again_once_forgotten() {
        let mut known: Vec<u64> = Vec::new();
        for sequence in 1..3000 {
            let all: Vec<u64> = (1..sequence).filter(|a| is_remembered(*a, sequence)).collect();
            assert!(all.iter().all(|a| *a + 1 == sequence || known.contains(a)), "{sequence}");
            assert!(all.len() as u64 <= RECENT + 4 * 9, "{sequence}: {}", all.len());
            known = all;
        }
        assert!(known.iter().any(|a| *a < 1100), "{known:?}");
    }

    #[test]
    fn what_is_named_no_more_is_condemned_until_it_is_gone() {
        let mut manifest =
            Manifest { kept: vec!["a".into(), "b".into()], ..Manifest::new("vm", None) };
        manifest.succeed().unwrap();
        manifest.is_read_from(b"1");
        let first = manifest.commit.unwrap();
        manifest.kept = vec!["b".into()];
        manifest.succeed().unwrap();
        assert_eq!(manifest.previous, Some(ManifestDigest::of(b"1")));
        assert_eq!(manifest.ancestors, [Ancestor { sequence: 1, commit: first }]);
        assert_eq!(manifest.condemned, [Condemned { object: "a".into(), sequence: 2 }]);
        manifest.sweep(&HashSet::from(["a"]));
        assert!(manifest.is_condemned("a") && manifest.swept == 0);
        manifest.sweep(&HashSet::from(["b"]));
        assert!(!manifest.is_condemned("a") && manifest.swept == 2);
    }
}
