//! Plans: what several workers do together, a task each (FORMAT.md section 11).
//!
//! ```text
//!          snapshots                           a restore                      a verification
//! plan     pending snapshots, which pin        the same, which pins the       the files that are stored
//!          their parents                       snapshot; a temporary file
//! part     a part file, of which the plan is   a range of that file; what     a report of which files are
//!          the owner                           its digests add up to          sound
//! join     the layer file, and a commit        the file gets its name         the rest of a verification
//! ```

use crate::base::checked_text::{read_checked, to_checked};
use crate::base::digest::{DigestAlgorithm, DigestKey};
use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::message::{Setting, Verb, message};
use crate::base::units::{BlockRange, BlockSize, Geometry, PartSize};
use crate::codec::Compression;
use crate::format::MAX_BLOCKS;
use crate::image::write::MadeFile;
use crate::image::{Fingerprint, ImageFormat, ImageUri};
use crate::repo::attempts::Attempt;
use crate::repo::manifest::{ImageFile, MAX_MANIFEST_BYTES, check_name, temporary_of, wire};
use crate::repo::top::{attempt_of, plan_file, plan_id};
use crate::store::{Listed, Store};
use crate::tracking::CloneStat;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::path::PathBuf;
use uuid::Uuid;

/// The version that is written, and the only one that is known.
const VERSION: u32 = 1;
/// The longest piece that a server takes.
const MAX_PIECE: u64 = 5 << 30;
/// Nobody puts one for so long.
const OLD: SignedDuration = SignedDuration::from_mins(10);

/// What is to be done by several workers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkPlan {
    /// Its identity.
    #[serde(deserialize_with = "wire::id")]
    pub plan: Uuid,
    /// When it was made.
    pub time: Timestamp,
    /// From when on what was made of it is garbage.
    pub expires: Timestamp,
    /// What it is.
    #[serde(flatten)]
    pub work: Work,
}

/// What a plan is of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Work {
    /// Snapshots are taken: one of each of these images.
    Images(Vec<PlannedImage>),
    /// A snapshot is restored to a new file.
    Restore(Box<PlannedRestore>),
    /// What is stored is verified.
    Verify(PlannedVerify),
}

/// A snapshot that is to be restored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlannedRestore {
    /// The name of the image.
    pub image: String,
    /// Its identity.
    #[serde(deserialize_with = "wire::id")]
    pub image_id: Uuid,
    /// The snapshot.
    #[serde(deserialize_with = "wire::id")]
    pub snapshot: Uuid,
    /// Its number.
    pub number: u64,
    /// What keeps it meanwhile, among what is pending.
    #[serde(deserialize_with = "wire::id")]
    pub pin: Uuid,
    /// The file that is to be: each worker sees its folder there.
    #[serde(with = "crate::repo::manifest::path")]
    pub target: Option<PathBuf>,
    /// What it is called in that folder until it is whole.
    pub temporary: String,
    /// Which file it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made: Option<MadeFile>,
    /// The object that is to be, if it is no file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<PlannedObject>,
    /// Length of the image.
    pub image_bytes: u64,
    /// Its block size.
    pub block_bytes: u32,
    /// The largest first.
    pub tasks: Vec<PlannedTask>,
}

/// An object on a server that is to be restored: pieces of one length but the last, from the beginning on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedObject {
    /// Where it is to be.
    pub url: String,
    /// What its server calls the upload.
    pub upload: String,
    /// Blocks in a piece.
    pub piece_blocks: u64,
}

/// What is to be verified.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlannedVerify {
    /// The image, if it is not all of the repository.
    pub image: Option<String>,
    /// The largest first.
    pub tasks: Vec<VerifyTask>,
}

/// Files that one worker verifies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyTask {
    /// Its number in the plan.
    pub task: u32,
    /// The files.
    pub files: Vec<PlannedFile>,
    /// Their length, as far as it is known.
    pub stored_bytes: u64,
}

/// A file that is verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedFile {
    /// The image that it is of.
    pub image: String,
    /// A snapshot that needs it.
    #[serde(deserialize_with = "wire::id")]
    pub snapshot: Uuid,
    /// Its name in the folder of the image.
    pub file: String,
}

/// A snapshot that is to be taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlannedImage {
    /// The name of the image.
    pub name: String,
    /// Its identity.
    #[serde(deserialize_with = "wire::id")]
    pub image_id: Uuid,
    /// The identity that the snapshot will have.
    #[serde(deserialize_with = "wire::id")]
    pub snapshot: Uuid,
    /// And its number.
    pub number: u64,
    /// What it is against; none of a base.
    #[serde(deserialize_with = "wire::id_or_null")]
    pub parent: Option<Uuid>,
    /// Its label.
    pub label: Option<String>,
    /// What is read: each worker sees it there.
    #[serde(with = "wire::image")]
    pub source: Option<ImageUri>,
    /// How the disk lies in it, as `qemu-img` calls it.
    pub format: String,
    /// The files that it refers to may be read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub backing_ok: bool,
    /// What it was when it was planned.
    pub fingerprint: Fingerprint,
    /// What keeps it as it is, as far as that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned: Option<String>,
    /// The clone of it that is read, called by the id of the snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clone: Option<CloneStat>,
    /// Somebody had it open for writing when it was cloned.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_use: bool,
    /// Why it stays as it is, as who made the plan said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<String>,
    /// What tells its content on its server from another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_version: Option<String>,
    /// By task, the hosts that hold most of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<(u32, Vec<String>)>,
    /// Bytes a second that the snapshot before was read with, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_rate: Option<u64>,
    /// Block size of the chain.
    pub block_bytes: u32,
    /// Digest of the chain.
    pub digest: String,
    /// Its key, 64 hexadecimal digits.
    pub key: String,
    /// How parts are compressed.
    pub compression: String,
    /// The grid.
    pub part_bytes: PartSize,
    /// The largest first.
    pub tasks: Vec<PlannedTask>,
}

/// What one worker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedTask {
    /// Its number in the plan.
    pub task: u32,
    /// First block of its range.
    pub first_block: u64,
    /// One past the last one.
    pub end_block: u64,
    /// Bytes of the image in it that are no hole.
    pub data_bytes: u64,
}

impl PlannedRestore {
    /// Of the image.
    ///
    /// # Errors
    /// `InvalidInput` if no image can have it.
    pub(crate) fn geometry(&self) -> Result<Geometry> {
        Geometry::new(BlockSize::new(self.block_bytes)?, self.image_bytes)
    }
}

impl PlannedTask {
    /// Its range.
    pub fn blocks(&self) -> BlockRange {
        BlockRange::between(self.first_block, self.end_block)
    }
}

impl PlannedImage {
    /// What the chain is made with.
    ///
    /// # Errors
    /// `Corrupt` if it says what nothing can be.
    pub(crate) fn parameters(
        &self,
    ) -> Result<(BlockSize, DigestAlgorithm, DigestKey, Compression)> {
        let bad = |e: Error| Error::corrupt(format!("the plan of \"{}\": {e}", self.name));
        let key = hex(&self.key).ok_or_else(|| bad(Error::corrupt("no key")))?;
        Ok((
            BlockSize::new(self.block_bytes).map_err(bad)?,
            self.digest.parse().map_err(bad)?,
            DigestKey(key),
            self.compression.parse().map_err(bad)?,
        ))
    }

    /// How the disk lies in what is read.
    ///
    /// # Errors
    /// `Unsupported` for what this program does not know.
    pub(crate) fn format(&self) -> Result<ImageFormat> {
        self.format.parse()
    }
}

/// 64 hexadecimal digits.
pub(crate) fn to_hex(bytes: &[u8; 32]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(bytes)
}

impl WorkPlan {
    /// The numbers of all tasks.
    pub fn tasks(&self) -> Vec<u32> {
        match &self.work {
            Work::Images(images) => {
                images.iter().flat_map(|image| &image.tasks).map(|task| task.task).collect()
            }
            Work::Restore(restore) => restore.tasks.iter().map(|task| task.task).collect(),
            Work::Verify(verify) => verify.tasks.iter().map(|task| task.task).collect(),
        }
    }

    /// Snapshots that are taken; none if that is not what it is of.
    pub fn images(&self) -> &[PlannedImage] {
        match &self.work {
            Work::Images(images) => images,
            _ => &[],
        }
    }

    /// Fails for one that has expired: what was made of it may be gone.
    pub(crate) fn refuse_expired(&self) -> Result<()> {
        if self.expires > Timestamp::now() {
            return Ok(());
        }
        let what = format!("plan {} has expired", self.plan);
        let drop = Verb::Plan.of(format!("drop {}", self.plan));
        Err(Error::new(ErrorKind::NotFound, what).hint(message!["drop it with ", drop]))
    }

    pub(crate) fn no_task(&self, number: u32) -> Error {
        let what = format!("plan {} has no task {number}", self.plan);
        Error::new(ErrorKind::NotFound, what)
    }

    /// Puts it into the repository.
    pub(crate) fn put(&self, store: &dyn Store) -> Result<()> {
        let body = serde_json::to_string_pretty(self).map_err(|e| {
            Error::new(ErrorKind::InvalidInput, format!("cannot write the plan: {e}"))
        })?;
        let text = to_checked("plan", VERSION, &format!("{body}\n"));
        if text.len() as u64 > MAX_MANIFEST_BYTES {
            let what = format!("a plan of {} tasks is too long", self.tasks().len());
            return Err(Error::new(ErrorKind::LimitExceeded, what).hint(message![
                "plan fewer images at once, or larger parts with ",
                Setting::PartSize
            ]));
        }
        store.put_if_absent(&plan_file(self.plan), &text)?;
        remove_leftovers(store);
        Ok(())
    }

    /// Reads the one with that id.
    ///
    /// # Errors
    /// `NotFound` if there is none: it is over.
    pub fn load(store: &dyn Store, plan: Uuid) -> Result<Self> {
        let file = plan_file(plan);
        let place = store.location(&file);
        let bytes = match store.read_whole(&file, MAX_MANIFEST_BYTES) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let what =
                    format!("there is no plan {plan}: it was joined or dropped, or never made");
                return Err(Error::new(ErrorKind::NotFound, what));
            }
            other => other?,
        };
        let (_, text) = read_checked("plan", VERSION, &bytes).map_err(|e| e.at(&place))?;
        let read: Self = serde_json::from_str(text)
            .map_err(|e| Error::corrupt(format!("the plan is not valid: {e}")).at(&place))?;
        read.check(plan).map_err(|e| e.at(&place))?;
        Ok(read)
    }

    /// Who calculates with it relies on this.
    fn check(&self, plan: Uuid) -> Result<()> {
        let bad = |what: &str| Err(Error::corrupt(format!("the plan is not valid: {what}")));
        if self.plan != plan {
            return bad("it belongs to another plan");
        }
        for image in self.images() {
            check_name(&image.name)?;
            image.parameters()?;
            check_ranges(&image.tasks)?;
        }
        if let Work::Restore(restore) = &self.work {
            check_name(&restore.image)?;
            Geometry::new(BlockSize::new(restore.block_bytes)?, restore.image_bytes)?;
            check_ranges(&restore.tasks)?;
            let is_file = restore.made.is_some();
            if restore.temporary != temporary_of_restore(self.plan)
                || is_file == restore.object.is_some()
            {
                return bad("the temporary file");
            }
            if let Some(object) = &restore.object {
                let blocks = object.piece_blocks;
                let is_cut = |task: &PlannedTask| task.first_block.checked_rem(blocks) == Some(0);
                let bytes = blocks.checked_mul(restore.block_bytes.into());
                if !restore.tasks.iter().all(is_cut) || bytes.is_none_or(|b| b > MAX_PIECE) {
                    return bad("the pieces");
                }
            }
        }
        if let Work::Verify(verify) = &self.work {
            verify.image.as_deref().map_or(Ok(()), check_name)?;
            let files = verify.tasks.iter().flat_map(|task| &task.files);
            files.clone().try_for_each(|of| check_name(&of.image))?;
            if !files.clone().all(|of| ImageFile::is_delta(&of.file)) {
                return bad("the name of a file");
            }
        }
        let mut numbers = HashSet::new();
        match self.tasks().into_iter().all(|task| numbers.insert(task)) {
            true => Ok(()),
            false => bad("a task occurs twice"),
        }
    }

    /// The ids of all plans in the repository.
    pub fn list(store: &dyn Store) -> Result<Vec<Uuid>> {
        let mut plans: Vec<Uuid> =
            store.list("")?.iter().filter_map(|name| plan_id(name)).collect();
        plans.sort();
        Ok(plans)
    }

    /// The one that is meant by the beginning of its id, or the newest: `latest`.
    ///
    /// # Errors
    /// `NotFound` if there is none; `InvalidInput` if there are several.
    pub fn find(store: &dyn Store, beginning: &str) -> Result<Self> {
        let plain = beginning.strip_prefix("plan-").unwrap_or(beginning);
        let mut found = Self::list(store)?;
        if plain == "latest" {
            // One of them may be joined just now, or damaged.
            let plans = found.iter().filter_map(|plan| Self::load(store, *plan).ok());
            if let Some(newest) = plans.max_by_key(|plan| plan.time) {
                return Ok(newest);
            }
        }
        found.retain(|plan| plan.to_string().starts_with(plain));
        match found.as_slice() {
            [plan] if !plain.is_empty() => Self::load(store, *plan),
            [] => {
                let what = format!("there is no plan {}", beginning.escape_debug());
                Err(Error::new(ErrorKind::NotFound, what).hint(message![
                    "it may have been joined or dropped; ",
                    Verb::Plan.of("list"),
                    " lists the plans"
                ]))
            }
            _ => {
                let what = format!("several plans begin with \"{}\"", beginning.escape_debug());
                Err(Error::new(ErrorKind::InvalidInput, what))
            }
        }
    }

    /// Takes it out of the repository, with what was told of its tasks; it is no error if it is not there.
    pub(crate) fn remove(store: &dyn Store, plan: Uuid) -> Result<()> {
        store.remove(&plan_file(plan))?;
        store.sync_dir("")?;
        Attempt::remove_all(store, plan)
    }
}

/// What a file that is restored by that plan is called until it is whole.
pub(crate) fn temporary_of_restore(plan: Uuid) -> String {
    format!(".imgsnap-{plan}.restore")
}

/// Removes what is left of plans and reports that were being put by somebody who was killed, and reports of
/// plans that are over. Whoever is still at it is done within minutes.
fn remove_leftovers(store: &dyn Store) {
    let old = Timestamp::now().saturating_sub(OLD).unwrap_or_default();
    let listed = store.list_timed("").unwrap_or_default();
    let plans: HashSet<Uuid> = listed.iter().filter_map(|listed| plan_id(&listed.name)).collect();
    let is_left = |listed: &&Listed| {
        let is_left = match temporary_of(&listed.name) {
            Some(of) => plan_id(of).or(attempt_plan(of)).is_some(),
            None => attempt_plan(&listed.name).is_some_and(|plan| !plans.contains(&plan)),
        };
        is_left && listed.time < old
    };
    for left in listed.iter().filter(is_left) {
        best_effort(store.remove(&left.name));
    }
}

fn attempt_plan(file: &str) -> Option<Uuid> {
    attempt_of(file).map(|(plan, _)| plan)
}

/// Fails for ranges that overlap, or are none.
fn check_ranges(tasks: &[PlannedTask]) -> Result<()> {
    let mut ranges: Vec<BlockRange> = tasks.iter().map(PlannedTask::blocks).collect();
    ranges.sort_by_key(|range| range.first);
    let is_wrong = |t: &PlannedTask| t.first_block >= t.end_block || t.end_block > MAX_BLOCKS;
    let overlaps = ranges.windows(2).any(|pair| match pair {
        [one, next] => one.end() > next.first,
        _ => false,
    });
    match overlaps || tasks.iter().any(is_wrong) {
        true => Err(Error::corrupt("the plan is not valid: its ranges overlap, or are none")),
        false => Ok(()),
    }
}
