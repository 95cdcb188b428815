//! What became of the tasks of a plan, where no part file tells: an object at the top for each attempt that
//! has ended (FORMAT.md W6).

use crate::base::checked_text::{read_checked, to_checked};
use crate::base::digest::ImageDigest;
use crate::base::error::{Error, ErrorKind, Result};
use crate::repo::top::{attempt_file, attempt_of};
use crate::store::Store;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The version that is written, and the only one that is known.
const VERSION: u32 = 1;
/// A report larger than that cannot be right.
const MAX_BYTES: u64 = 4 << 20;
/// Longer messages are cut.
const MAX_MESSAGE_CHARS: usize = 1000;

/// An attempt at a task, which has ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// The task.
    pub task: u32,
    /// When it ended.
    pub time: Timestamp,
    /// The host that tried, for people.
    pub host: String,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of an attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Outcome {
    /// Nothing: why.
    Failed(String),
    /// The range is written, durably: what its blocks add to the image digest.
    Restored(#[serde(with = "terms")] ImageDigest),
    /// The range is on its server.
    Sent(SentRange),
    /// These files are sound.
    Verified(Vec<SoundFile>),
    /// The restored file is about to get its name.
    Named,
}

/// A range of an object on a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentRange {
    /// What its blocks add to the image digest.
    #[serde(with = "terms")]
    pub terms: ImageDigest,
    /// What the server calls each of its pieces, in their order.
    pub pieces: Vec<String>,
}

/// A file that is what was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SoundFile {
    /// The image that it is of.
    pub image: String,
    /// Its name in the folder of the image.
    pub file: String,
    /// Blocks that were held against their digests.
    pub blocks: u64,
}

mod terms {
    use super::{Error, ImageDigest};
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub fn serialize<S: Serializer>(digest: &ImageDigest, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format!("{:032x}", digest.0))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<ImageDigest, D::Error> {
        let text = String::deserialize(from)?;
        let is_hex = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let digits = u128::from_str_radix(&text, 16).ok().filter(|_| is_hex);
        let wrong = || de::Error::custom(Error::corrupt("no digest"));
        digits.map(ImageDigest).ok_or_else(wrong)
    }
}

impl Attempt {
    /// Which ended now.
    pub(crate) fn new(task: u32, host: &str, outcome: Outcome) -> Self {
        let outcome = match outcome {
            Outcome::Failed(why) => Outcome::Failed(why.chars().take(MAX_MESSAGE_CHARS).collect()),
            other => other,
        };
        Self { task, time: Timestamp::now(), host: host.to_owned(), outcome }
    }

    /// Tells it, durably.
    pub(crate) fn put(&self, store: &dyn Store, plan: Uuid) -> Result<()> {
        let body = serde_json::to_string_pretty(self).map_err(|e| {
            Error::new(ErrorKind::InvalidInput, format!("cannot write the report: {e}"))
        })?;
        let file = attempt_file(plan, self.task, Uuid::new_v4());
        let text = to_checked("attempt", VERSION, &format!("{body}\n"));
        if text.len() as u64 > MAX_BYTES {
            let what = format!("the report on task {} is too long", self.task);
            return Err(Error::new(ErrorKind::LimitExceeded, what));
        }
        store.put_if_absent(&file, &text)
    }

    /// Those at the tasks of a plan, ascending by time. One that is damaged tells nothing: its task is not
    /// done.
    ///
    /// # Errors
    /// If the store does not say.
    pub(crate) fn all(store: &dyn Store, plan: Uuid) -> Result<Vec<Self>> {
        let mut all = Vec::new();
        for (file, task) in files(store, plan)? {
            let read = match store.read_whole(&file, MAX_BYTES) {
                Err(e) if e.is_unread() => return Err(e),
                Err(_) => continue,
                Ok(bytes) => read_checked("attempt", VERSION, &bytes)
                    .ok()
                    .and_then(|(_, text)| serde_json::from_str::<Self>(text).ok()),
            };
            all.extend(read.filter(|attempt| attempt.task == task));
        }
        all.sort_by_key(|attempt| attempt.time);
        Ok(all)
    }

    /// Forgets all of a plan.
    pub(crate) fn remove_all(store: &dyn Store, plan: Uuid) -> Result<()> {
        let files = files(store, plan)?;
        files.iter().try_for_each(|(file, _)| store.remove(file))?;
        if files.is_empty() { Ok(()) } else { store.sync_dir("") }
    }
}

fn files(store: &dyn Store, plan: Uuid) -> Result<Vec<(String, u32)>> {
    let of = |file: String| {
        let (of, task) = attempt_of(&file)?;
        (of == plan).then_some((file, task))
    };
    Ok(store.list("")?.into_iter().filter_map(of).collect())
}
