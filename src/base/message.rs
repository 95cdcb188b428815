//! Text for people in which what can be done stands as data, so that a command line, a web page and a program
//! each word it in their own way.

use crate::base::named::named;
use serde::{Serialize, Serializer};
use std::fmt;

named! {
    /// What can be called: the verbs of a repository.
    pub enum Verb {
        /// Make an image without a repository.
        Apply = "apply",
        /// Show or change the configuration.
        Config = "config",
        /// Drop a snapshot.
        Delete = "delete",
        /// Write a portable delta file.
        Export = "export",
        /// Make a snapshot a base.
        Flatten = "flatten",
        /// Show the newest commits.
        Heads = "heads",
        /// Make a repository.
        Init = "init",
        /// What opens an encrypted repository.
        Key = "key",
        /// Show what there is.
        List = "list",
        /// Let several workers take snapshots together.
        Plan = "plan",
        /// Keep a snapshot from being dropped.
        Protect = "protect",
        /// Say where a file is.
        Relink = "relink",
        /// Remove an image with all its snapshots.
        Remove = "remove",
        /// Rebuild what is lost.
        Repair = "repair",
        /// What hosts ask the owner to drop.
        Requests = "requests",
        /// Write a snapshot to a file.
        Restore = "restore",
        /// Put the live file back.
        Rollback = "rollback",
        /// Look for damage.
        Verify = "verify",
    }
}

named! {
    /// What can be set in a request.
    pub enum Setting {
        /// Use the repository that is there, too.
        Accept = "accept",
        /// Use a state that is older than what this host has seen.
        AcceptOlder = "accept_older",
        /// Take an incomplete snapshot.
        AcceptUnread = "accept_unread",
        /// Only the snapshot that is named, and not its group.
        Alone = "alone",
        /// Read the files that an image refers to.
        BackingOk = "backing_ok",
        /// The image that a chain of files begins from.
        Base = "base",
        /// The image whose blocks a base refers to.
        BaseImage = "base_image",
        /// The snapshot of another image that a chain begins from.
        BaseOf = "base_of",
        /// A dirty bitmap that tells what changed.
        Bitmap = "bitmap",
        /// The unit of comparison.
        BlockSize = "block_size",
        /// A list of changes.
        Changed = "changed",
        /// Where measurements are made.
        Dir = "dir",
        /// Change nothing.
        DryRun = "dry_run",
        /// Encrypt a repository.
        Encrypt = "encrypt",
        /// Look for a snapshot of another image that a chain begins from.
        FindBase = "find_base",
        /// Overwrite a target.
        Force = "force",
        /// Write to a device that is another one.
        ForceDevice = "force_device",
        /// What stands still at the point in time.
        Freeze = "freeze",
        /// Begin a new chain.
        Full = "full",
        /// The group that images are taken as.
        Group = "group",
        /// The live file.
        Image = "image",
        /// How the image is read.
        Format = "format",
        /// A file with what opens an encrypted repository.
        KeyFile = "key_file",
        /// Daily snapshots that are kept.
        KeepDaily = "keep_daily",
        /// The newest snapshots, which are kept.
        KeepLast = "keep_last",
        /// How long writers may be held up.
        MaxStall = "max_stall",
        /// The name of an image.
        Name = "name",
        /// Do not save before a rollback.
        NoSave = "no_save",
        /// The image that a snapshot is recorded of.
        Of = "of",
        /// Take protection back.
        Off = "off",
        /// Whose signatures count in a repository.
        OwnerKey = "owner_key",
        /// A file with the private key of the owner.
        OwnerKeyFile = "owner_key_file",
        /// Where the result goes.
        Output = "output",
        /// The snapshot that a snapshot is taken against.
        Parent = "parent",
        /// A file with a passphrase.
        PasswordFile = "password_file",
        /// On which grid images are cut into parts.
        PartSize = "part_size",
        /// Where the disks of a machine lie.
        Pool = "pool",
        /// Why a source stays as it is.
        SourceHeld = "source_held",
        /// The part that is meant.
        Range = "range",
        /// The repository.
        Repo = "repo",
        /// Reset a machine.
        Reset = "reset",
        /// Another disk that blocks are taken from.
        Seed = "seed",
        /// Length of an image.
        Size = "size",
        /// One host alone writes.
        SingleWriter = "single_writer",
        /// Shut a machine down.
        Shutdown = "shutdown",
        /// The snapshot since which a list or bitmap tells.
        Since = "since",
        /// Store what can be read.
        SkipBad = "skip_bad",
        /// The snapshot that is meant.
        To = "to",
        /// How it is found what changed.
        Track = "track",
        /// Take a stored definition of a machine as it is.
        TrustXml = "trust_xml",
        /// Write only what differs to a target that is there.
        Update = "update",
        /// Read an image through QEMU.
        ViaQemu = "via_qemu",
        /// Do what cannot be taken back, and do not ask.
        Yes = "yes",
    }
}

/// Something that a person or a program may do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Action {
    /// Call a verb.
    Call(Call),
    /// Set something in the request, to a value if it has one.
    Set(Setting, Option<String>),
    /// Make the same call again.
    Retry,
}

/// A call of a verb.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Call {
    /// The verb.
    pub verb: Verb,
    /// The image or snapshot that it is of, if that is known.
    pub subject: Option<String>,
    /// What to set; without a value where the caller has to give one.
    pub settings: Vec<(Setting, Option<String>)>,
}

impl Verb {
    /// A call without arguments.
    pub fn call(self) -> Call {
        Call { verb: self, subject: None, settings: Vec::new() }
    }

    /// A call of an image or snapshot.
    pub fn of(self, subject: impl fmt::Display) -> Call {
        Call { subject: Some(subject.to_string()), ..self.call() }
    }
}

impl Call {
    /// With a setting.
    #[must_use]
    pub fn with(mut self, setting: Setting, value: impl fmt::Display) -> Self {
        self.settings.push((setting, Some(value.to_string())));
        self
    }

    /// With a setting whose value the caller has to choose.
    #[must_use]
    pub fn asking(mut self, setting: Setting) -> Self {
        self.settings.push((setting, None));
        self
    }
}

impl Setting {
    /// Set, without a value.
    pub fn set(self) -> Action {
        Action::Set(self, None)
    }

    /// Set to a value.
    pub fn to(self, value: impl fmt::Display) -> Action {
        Action::Set(self, Some(value.to_string()))
    }
}

/// As a program would write it.
impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = |f: &mut fmt::Formatter<'_>, setting: &Setting, value: &Option<String>| {
            f.write_str(setting.name())?;
            match value.as_deref() {
                None | Some("") => Ok(()),
                Some(value) => write!(f, "={value}"),
            }
        };
        match self {
            Self::Set(setting, value) => set(f, setting, value),
            Self::Retry => f.write_str("try again"),
            Self::Call(call) => {
                write!(f, "{}(", call.verb.name())?;
                let mut comma = "";
                if let Some(subject) = &call.subject {
                    f.write_str(subject)?;
                    comma = ", ";
                }
                for (setting, value) in &call.settings {
                    f.write_str(comma)?;
                    set(f, setting, value)?;
                    comma = ", ";
                }
                f.write_str(")")
            }
        }
    }
}

/// A piece of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Action(Action),
}

/// Text for a person. `Display` words actions as a program would; [`Message::worded`] as a front end likes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Message(Vec<Piece>);

impl Message {
    /// The text, with actions worded by `word`.
    pub fn worded(&self, word: impl Fn(&Action) -> String) -> String {
        let piece = |piece: &Piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::Action(action) => word(action),
        };
        self.0.iter().map(piece).collect()
    }

    /// The actions that it names.
    pub fn actions(&self) -> impl Iterator<Item = &Action> {
        self.0.iter().filter_map(|piece| match piece {
            Piece::Text(_) => None,
            Piece::Action(action) => Some(action),
        })
    }

    /// Followed by another one.
    #[must_use]
    pub fn then(mut self, other: impl Into<Self>) -> Self {
        self.0.extend(other.into().0);
        self
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.worded(Action::to_string))
    }
}

impl Serialize for Message {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl From<&str> for Message {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl From<String> for Message {
    fn from(text: String) -> Self {
        Self(vec![Piece::Text(text)])
    }
}

impl From<Action> for Message {
    fn from(action: Action) -> Self {
        Self(vec![Piece::Action(action)])
    }
}

impl From<Call> for Message {
    fn from(call: Call) -> Self {
        Action::Call(call).into()
    }
}

impl From<Setting> for Message {
    fn from(setting: Setting) -> Self {
        setting.set().into()
    }
}

/// A message from texts, errors, calls and settings.
macro_rules! message {
    ($first:expr $(, $more:expr)* $(,)?) => {
        $crate::base::message::Message::from($first)$(.then($more))*
    };
}
pub(crate) use message;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::error::{Error, ErrorKind};

    #[test]
    fn each_front_end_words_what_can_be_done() {
        let call = Verb::Relink.of("vm").with(Setting::Image, "/x").asking(Setting::To);
        let advice = message!["first ", call, ", or use ", Setting::Track.to("auto")];
        let error = Error::new(ErrorKind::Mismatch, "another file").hint(advice);
        let said = "another file; first relink(vm, image=/x, to), or use track=auto";
        assert_eq!(error.to_string(), said);
        let message = message![&error, "; not used"];
        assert_eq!(message.to_string(), format!("{said}; not used"));
        let worded = message.worded(|action| match action {
            Action::Call(call) => format!("<{}>", call.verb.name()),
            Action::Set(setting, _) => format!("--{}", setting.name()),
            Action::Retry => unreachable!(),
        });
        assert_eq!(worded, "another file; first <relink>, or use --track; not used");
        assert_eq!(message.actions().count(), 2);
        assert_eq!(serde_json::to_value(&message).unwrap(), format!("{said}; not used"));
    }
}
