//! Consistency groups: snapshots of several images at one point in time (FORMAT.md J19), and what is left of
//! them.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::events::Context;
use crate::base::message::{Setting, message};
use crate::repo::Repository;
use crate::repo::manifest::{self, Manifest, Snapshot, SnapshotPlace};
use crate::repo::reference::{At, check_label};
use crate::repo::session::read;
use serde::Serialize;
use std::collections::{BTreeMap, HashSet};
use uuid::Uuid;

/// Refuses what cannot be the name of a group.
///
/// # Errors
/// `InvalidInput`.
pub(crate) fn check_group_name(name: &str) -> Result<()> {
    // It is shown where labels are.
    check_label(name).map_err(|_| {
        let what = format!("invalid group name \"{}\"", name.escape_debug());
        Error::new(ErrorKind::InvalidInput, what).hint("choose another name")
    })
}

/// A group, and which of its snapshots there are now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Members {
    /// Identity of the group.
    pub id: Uuid,
    /// What people call it.
    pub name: Option<String>,
    /// They were taken one after the other.
    pub is_apart: bool,
    /// Each of them, at most one of an image.
    pub members: Vec<Member>,
}

/// A snapshot of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Member {
    /// Identity of its image.
    pub image: Uuid,
    /// Name of the image: as it is now, if it is there.
    pub name: String,
    /// Identity of the snapshot.
    pub snapshot: Uuid,
    /// What became of it.
    pub state: MemberState,
}

/// What became of a snapshot of a group, as far as that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum MemberState {
    /// It is there, with this number.
    Listed(u64),
    /// It was dropped; others depend on what is stored of it.
    Dropped,
    /// It did not come about, or was dropped.
    Missing,
    /// There is no such image.
    NoImage,
    /// The manifest of its image cannot be read.
    Unreadable,
}

impl Member {
    /// Its number, if it is listed.
    pub fn number(&self) -> Option<u64> {
        match self.state {
            MemberState::Listed(number) => Some(number),
            _ => None,
        }
    }

    /// What to call it: `NAME@N`; the name of its image if it is not listed.
    pub fn place(&self) -> String {
        self.number().map_or(self.name.clone(), |number| format!("{}@{number}", self.name))
    }

    fn missing(&self) -> Option<String> {
        let name = &self.name;
        match self.state {
            MemberState::Listed(_) => None,
            MemberState::Dropped => Some(format!("that of {name} was dropped")),
            MemberState::Missing => Some(format!("{name} is missing")),
            MemberState::NoImage => Some(format!("the image {name} was removed")),
            MemberState::Unreadable => Some(format!("{name} cannot be read")),
        }
    }
}

impl Members {
    /// True if one is missing.
    pub fn is_incomplete(&self) -> bool {
        self.members.iter().any(|member| member.number().is_none())
    }

    /// What is missing, in a line; none if nothing is.
    pub fn missing(&self) -> Option<String> {
        let missing: Vec<String> = self.members.iter().filter_map(Member::missing).collect();
        (!missing.is_empty()).then(|| missing.join(", "))
    }

    /// Those that are listed, but for that of one image.
    pub fn others(&self, image: Uuid) -> impl Iterator<Item = &Member> {
        let is_other = move |member: &&Member| member.image != image && member.number().is_some();
        self.members.iter().filter(is_other)
    }

    /// The same once an image is gone.
    pub(crate) fn without(mut self, image: Uuid) -> Self {
        let of_image = self.members.iter_mut().filter(|member| member.image == image);
        of_image.for_each(|member| member.state = MemberState::NoImage);
        self
    }

    /// Fails if an image cannot be read: what it says of its snapshot may forbid what is done to all.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(crate) fn check_readable(&self) -> Result<()> {
        let is_unreadable = |member: &&Member| member.state == MemberState::Unreadable;
        let Some(member) = self.members.iter().find(is_unreadable) else { return Ok(()) };
        let what = format!("\"{}\", which is of the same group, cannot be read", member.name);
        Err(Error::corrupt(what).hint(message![
            "repair it, or use ",
            Setting::Alone,
            " for this snapshot alone"
        ]))
    }
}

/// The images of a repository, each of which is read when it is asked for, and once.
pub(crate) struct Images<'a> {
    repository: &'a Repository,
    context: &'a Context,
    loaded: BTreeMap<String, Result<Manifest, MemberState>>,
    has_all: bool,
}

impl<'a> Images<'a> {
    pub fn of(repository: &'a Repository, context: &'a Context) -> Self {
        Self { repository, context, loaded: BTreeMap::new(), has_all: false }
    }

    /// Reads an image, unless it was. One that cannot be read is told of.
    fn load(&mut self, name: &str) {
        if self.loaded.contains_key(name) || manifest::check_name(name).is_err() {
            return;
        }
        let loaded = manifest::load(self.repository.store.as_ref(), name);
        let loaded = loaded.map_err(|e| match e.kind() {
            ErrorKind::NotFound => MemberState::NoImage,
            _ => {
                self.context.note(message![e, "; what it has of groups is not known"]);
                MemberState::Unreadable
            }
        });
        self.loaded.insert(name.to_owned(), loaded);
    }

    /// The image with an identity, which was called `name`.
    ///
    /// # Errors
    /// What became of its snapshot, if the image is not to be had.
    fn find(&mut self, image: Uuid, name: &str) -> Result<&Manifest, MemberState> {
        self.load(name);
        if self.known(image).is_none() && !self.has_all {
            self.has_all = true;
            match self.repository.names() {
                Ok(names) => names.iter().for_each(|name| self.load(name)),
                Err(e) => self.context.note(e),
            }
        }
        let missing = match self.loaded.get(name) {
            Some(Err(missing)) => *missing,
            _ => MemberState::NoImage,
        };
        self.known(image).ok_or(missing)
    }

    /// One that was read for a group.
    pub fn known(&self, image: Uuid) -> Option<&Manifest> {
        self.loaded.values().flatten().find(|known| known.image_id == image)
    }

    /// What became of the group of a snapshot; none if it has none.
    pub fn members_of(&mut self, own: &Manifest, snapshot: &Snapshot) -> Option<Members> {
        let group = snapshot.group.as_ref()?;
        // A list that leaves it out, or has an image twice, is not ours.
        let itself =
            SnapshotPlace { image: own.image_id, name: own.name.clone(), snapshot: snapshot.id };
        let has_itself = group.members.iter().any(|place| place.snapshot == snapshot.id);
        let mut seen = HashSet::new();
        let places = (!has_itself).then_some(&itself).into_iter().chain(&group.members);
        let places = places.filter(|place| {
            let is_itself = place.snapshot == snapshot.id;
            (is_itself || place.image != own.image_id) && seen.insert(place.image)
        });
        let members = places.map(|place| self.member(own, place)).collect();
        let name = group.name.as_ref().map(|name| name.escape_debug().to_string());
        Some(Members { id: group.id, name, is_apart: group.is_apart, members })
    }

    fn member(&mut self, own: &Manifest, place: &SnapshotPlace) -> Member {
        let found = match place.image == own.image_id {
            true => Ok(own),
            false => self.find(place.image, &place.name),
        };
        let (name, state) = match found {
            Ok(image) => (image.name.clone(), state_in(image, place.snapshot)),
            // Whatever is written there.
            Err(missing) => (place.name.escape_debug().to_string(), missing),
        };
        Member { image: place.image, name, snapshot: place.snapshot, state }
    }
}

fn state_in(image: &Manifest, snapshot: Uuid) -> MemberState {
    match image.by_id(snapshot) {
        Some(listed) => MemberState::Listed(listed.number),
        None if image.is_dropped(snapshot) => MemberState::Dropped,
        None => MemberState::Missing,
    }
}

/// What became of the group of a snapshot; none if it has none. Each other image is read once, and only if
/// there is a group.
pub(crate) fn members_of(
    repository: &Repository,
    own: &Manifest,
    snapshot: &Snapshot,
    context: &Context,
) -> Option<Members> {
    Images::of(repository, context).members_of(own, snapshot)
}

/// A snapshot with which something is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// Name of its image.
    pub name: String,
    /// Its identity.
    pub id: Uuid,
    /// True for the one that the user named.
    pub is_named: bool,
    /// False if it is gone, and its image is not.
    pub is_listed: bool,
}

/// The snapshot that is meant and those of its group whose images are there, by the names of the images: the
/// order in which they are opened, so that nobody waits for who waits for him.
///
/// # Errors
/// `NotFound` if there is no such snapshot; `Corrupt` if the image of another one cannot be read.
pub(crate) fn targets(
    repository: &Repository,
    name: &str,
    at: &At,
    context: &Context,
) -> Result<Vec<Target>> {
    // Whoever opens it to write tells what is wrong with it.
    let reader = read(repository, name, &Context::silent())?;
    let (image, snapshot) = (reader.manifest(), reader.find(at)?);
    let group = members_of(repository, image, snapshot, context);
    group.as_ref().map_or(Ok(()), Members::check_readable)?;
    let is_other =
        |member: &&Member| member.image != image.image_id && member.state != MemberState::NoImage;
    let other = |member: &Member| Target {
        name: member.name.clone(),
        id: member.snapshot,
        is_named: false,
        is_listed: member.number().is_some(),
    };
    let others = group.iter().flat_map(|group| &group.members).filter(is_other).map(other);
    let named = Target { name: name.to_owned(), id: snapshot.id, is_named: true, is_listed: true };
    let mut targets: Vec<Target> = others.chain([named]).collect();
    targets.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(targets)
}

/// The order of the commits: who is killed between two gives the same command again, which is of the one that
/// is the last.
pub(crate) fn named_last<T>(mut all: Vec<T>, is_named: impl Fn(&T) -> bool) -> Vec<T> {
    all.sort_by_key(is_named);
    all
}

/// The error of one, where others are done.
pub(crate) fn half_done(error: Error, done: &[String], what: &str) -> Error {
    if done.is_empty() {
        return error;
    }
    error.at(format!("{} {what}, the rest of the group is not", done.join(", ")))
}
