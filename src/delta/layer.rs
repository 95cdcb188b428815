//! What a snapshot stores: one delta file, or a layer file and the parts that it names, each of which is
//! opened when a block of its range is first needed.

use super::caches::Caches;
use super::part::{ALL_BLOCKS, Ends, Part, PartContent, read_ends};
use crate::base::digest::{Digest, Hasher};
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::units::{BlockRange, Geometry};
use crate::format::footer::FOOTER_BYTES;
use crate::format::header::HEADER_BYTES;
use crate::format::part::PART_MAGIC;
use crate::format::record::RECORD_HEAD_BYTES;
use crate::format::{
    Content, Footer, FrameLayout, Header, Lineage, PartEntry, PartTable, RecordHead, RecordKind,
};
use crate::image::BaseImage;
use crate::store::{LockGuard, Store};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

/// Keeps files from being removed for as long as it lives.
pub struct ReadGuard {
    /// The image.
    pub image: String,
    /// The manifest that named the files.
    pub sequence: u64,
    /// Their names.
    pub files: Vec<String>,
    _lock: LockGuard,
}

impl ReadGuard {
    /// Of files of an image that a manifest names, and what locks them.
    pub fn new(image: &str, sequence: u64, files: Vec<String>, lock: LockGuard) -> Self {
        Self { image: image.into(), sequence, files, _lock: lock }
    }
}

impl fmt::Debug for ReadGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { image, sequence, files, .. } = self;
        let mut fields = f.debug_struct("ReadGuard");
        fields.field("image", image).field("sequence", sequence).field("files", files);
        fields.finish_non_exhaustive()
    }
}

/// What to say of a part that is missing: the manifest may have been changed since it was read.
pub type Missing = Arc<dyn Fn(&str) -> Error + Send + Sync>;

/// The open layer of a snapshot. Header and footer are valid; each record is checked when it is read.
pub struct Delta {
    store: Arc<dyn Store>,
    name: String,
    header: Header,
    footer: Footer,
    footer_digest: Digest,
    hasher: Hasher,
    caches: Caches,
    parts: Vec<Slot>,
    /// None of one that is one file.
    table: Option<PartTable>,
    base_image: Option<BaseImage>,
    /// Keeps its files from being removed, and all others of its chain.
    guard: Option<Arc<ReadGuard>>,
    missing: Option<Missing>,
}

/// A part that may not be open yet.
struct Slot {
    blocks: BlockRange,
    part: OnceLock<Arc<Part>>,
}

/// A delta file by its name alone: what it is, its footer says.
pub enum DeltaFile {
    /// That of a snapshot.
    Layer(Box<Delta>),
    /// A part, of whatever snapshot.
    Part(Box<Part>),
}

impl DeltaFile {
    /// Opens the file `name`.
    ///
    /// # Errors
    /// As of [`Delta::open`].
    pub fn open(store: Arc<dyn Store>, name: &str, caches: &Caches) -> Result<Self> {
        let Ends { foot, .. } = read_ends(store.as_ref(), name, caches)?;
        match foot.starts_with(&PART_MAGIC) {
            true => Part::open(store, name, caches).map(|(part, ..)| Self::Part(Box::new(part))),
            false => Delta::open(store, name, caches).map(|delta| Self::Layer(Box::new(delta))),
        }
    }
}

impl Delta {
    /// Opens the file `name`: of one part, or with the table of several.
    ///
    /// # Errors
    /// `Corrupt` if it is not a whole delta file or layer file, `Unsupported` if it is one of a later
    /// version.
    pub fn open(store: Arc<dyn Store>, name: &str, caches: &Caches) -> Result<Self> {
        let place = store.location(name);
        let Ends { header, foot, file_bytes } = read_ends(store.as_ref(), name, caches)?;
        let footer =
            Footer::decode(&foot, file_bytes, header.content()).map_err(|e| e.at(&place))?;
        store.keep_index(name, file_bytes - FOOTER_BYTES as u64, &foot);
        if header.layout() == FrameLayout::Absent && footer.parent.is_some() {
            let what = "a snapshot in a base image is not a base";
            return Err(Error::corrupt(what).at(&place));
        }
        let hasher = Hasher::new(header.algorithm, header.key);
        let table = match header.content() {
            Content::Records => None,
            Content::Parts => {
                let table = read_table(store.as_ref(), name, &header, &footer, &hasher);
                Some(table.map_err(|e| e.at(&place))?)
            }
        };
        let parts = match &table {
            Some(table) => {
                let slot = |entry: &PartEntry| Slot { blocks: entry.blocks, part: OnceLock::new() };
                table.parts.iter().map(slot).collect()
            }
            None => {
                let content = PartContent {
                    blocks: ALL_BLOCKS,
                    file_bytes,
                    content_digest: footer.content_digest,
                    counts: footer.counts,
                    root: footer.root,
                };
                let part =
                    Part::new(store.clone(), name.into(), header.clone(), content, caches.clone());
                vec![Slot { blocks: ALL_BLOCKS, part: OnceLock::from(Arc::new(part)) }]
            }
        };
        Ok(Self {
            name: name.into(),
            footer_digest: hasher.digest(&foot),
            base_image: (header.layout() == FrameLayout::Absent)
                .then(|| BaseImage::new(&place, footer.counts.data_blocks, None)),
            store,
            header,
            footer,
            hasher,
            caches: caches.clone(),
            parts,
            table,
            guard: None,
            missing: None,
        })
    }

    /// Says where the blocks of the snapshot `NAME@N` are, if they are not in this file.
    pub fn set_base_image(&mut self, snapshot: &str, path: Option<PathBuf>) {
        if self.base_image.is_some() {
            let block_count = self.footer.counts.data_blocks;
            let base_image = BaseImage::new(snapshot, block_count, path);
            self.base_image = Some(base_image.reading_within(self.caches.limits.clone()));
        }
    }

    /// Keeps what holds files back for as long as this one is open.
    pub fn set_guard(&mut self, guard: Arc<ReadGuard>) {
        self.guard = Some(guard);
    }

    /// Says what a part that is missing means; otherwise it is damage.
    pub fn set_missing(&mut self, missing: Missing) {
        self.missing = Some(missing);
    }

    /// What holds this file back, if anything does.
    pub fn guard(&self) -> Option<&Arc<ReadGuard>> {
        self.guard.as_ref()
    }

    /// Where the blocks are, if not in this file.
    pub fn base_image(&self) -> Option<&BaseImage> {
        self.base_image.as_ref()
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The footer. What it counts is in all of its parts.
    pub fn footer(&self) -> &Footer {
        &self.footer
    }

    /// Bytes of all of its files.
    pub fn stored_bytes(&self) -> u64 {
        self.footer.file_bytes + self.table.as_ref().map_or(0, PartTable::part_bytes)
    }

    /// Its parts; none if it is one file.
    pub fn table(&self) -> Option<&PartTable> {
        self.table.as_ref()
    }

    /// How many files its entries are in.
    pub fn part_count(&self) -> usize {
        self.parts.len()
    }

    /// Which blocks may be in a part.
    pub(super) fn range_of(&self, index: usize) -> Option<BlockRange> {
        self.parts.get(index).map(|slot| slot.blocks)
    }

    /// The first part, from `index` on, whose range ends after a block.
    pub(super) fn part_at(&self, index: usize, block: u64) -> usize {
        let rest = self.parts.get(index..).unwrap_or_default();
        index + rest.partition_point(|slot| slot.blocks.end() <= block)
    }

    /// A part, which is opened if it is not yet.
    ///
    /// # Errors
    /// `Corrupt` if it is missing, damaged or another one.
    pub fn part(&self, index: usize) -> Result<&Arc<Part>> {
        let none = || Error::corrupt("not a valid part").at(self.location());
        let slot = self.parts.get(index).ok_or_else(none)?;
        if let Some(part) = slot.part.get() {
            return Ok(part);
        }
        let table = self.table.as_ref().ok_or_else(none)?;
        let opened = Arc::new(self.open_part(table.parts.get(index).ok_or_else(none)?)?);
        Ok(slot.part.get_or_init(|| opened))
    }

    fn open_part(&self, entry: &PartEntry) -> Result<Part> {
        let name = beside(&self.name, &entry.object_name());
        let opened = Part::open(self.store.clone(), &name, &self.caches);
        let (part, footer, footer_digest) = opened.map_err(|e| match &self.missing {
            Some(missing) if e.kind() == ErrorKind::NotFound => {
                missing(&self.store.location(&name))
            }
            None if e.kind() == ErrorKind::NotFound => {
                let what = format!("its part {} is missing", self.store.location(&name));
                Error::corrupt(what).at(self.location()).hint("put the file back")
            }
            _ => e,
        })?;
        let (own, whole) = (part.header(), &self.header);
        let is_it = footer_digest == entry.footer_digest
            && PartEntry::of(entry.object, &footer, footer_digest) == *entry
            && (own.image_id, own.block_size, own.algorithm, own.key)
                == (whole.image_id, whole.block_size, whole.algorithm, whole.key)
            && own.frame_blocks <= whole.frame_blocks;
        if !is_it {
            let what = format!("it is not the part that {} refers to", self.location());
            return Err(Error::corrupt(what).at(part.location()));
        }
        Ok(part)
    }

    /// Block size of its chain, and length of the image.
    ///
    /// # Errors
    /// If they are beyond the limits of the format.
    pub fn geometry(&self) -> Result<Geometry> {
        Geometry::new(self.header.block_size, self.footer.image_bytes)
    }

    /// The digest of the footer, by which the manifest knows the file.
    pub fn footer_digest(&self) -> Digest {
        self.footer_digest
    }

    /// The keyed function of its chain.
    pub fn hasher(&self) -> &Hasher {
        &self.hasher
    }

    /// What it is called in its store.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What to call it in a message.
    pub fn location(&self) -> String {
        self.store.location(&self.name)
    }
}

/// An object in the folder of another one.
fn beside(name: &str, object: &str) -> String {
    name.rsplit_once('/')
        .map_or_else(|| object.to_owned(), |(folder, _)| format!("{folder}/{object}"))
}

/// Reads and proves all of a layer file: its table of parts must give what its footer says.
fn read_table(
    store: &dyn Store,
    name: &str,
    header: &Header,
    footer: &Footer,
    hasher: &Hasher,
) -> Result<PartTable> {
    let root = footer.root.filter(|root| root.offset == HEADER_BYTES as u64);
    let root = root.ok_or_else(|| Error::corrupt("unexpected records in a layer file"))?;
    let record_bytes = root.record_bytes as usize;
    if record_bytes > RECORD_HEAD_BYTES + crate::format::record::MAX_PAYLOAD_BYTES as usize {
        return Err(Error::corrupt(format!("invalid record length {record_bytes}")));
    }
    let mut bytes = vec![0; HEADER_BYTES + record_bytes];
    store.read_index(name, 0, &mut bytes)?;
    let (_, record) = bytes.split_at(HEADER_BYTES);
    let head = record.first_chunk().ok_or_else(|| Error::corrupt("the record is too short"))?;
    let head = RecordHead::decode(head)?;
    let payload = record.get(RECORD_HEAD_BYTES..).unwrap_or_default();
    head.verify(header.file_id, root.offset, payload)?;
    if head.kind != RecordKind::Parts || head.checksum != root.checksum {
        return Err(Error::corrupt("the table of parts is missing"));
    }
    let mut content = hasher.stream();
    content.update(&bytes);
    let table = PartTable::decode(payload)?;
    let parent = footer.parent.unwrap_or(Lineage::NONE);
    let before = match footer.parent {
        Some(_) => parent.image_digest.minus(hasher.size_term(parent.image_bytes)),
        None => parent.image_digest,
    };
    let after = before.plus(table.term_difference()).plus(hasher.size_term(footer.image_bytes));
    let geometry = Geometry::new(header.block_size, footer.image_bytes)?;
    let is_sound = table.counts() == footer.counts
        && footer.counts.data_blocks <= geometry.block_count()
        && content.digest() == footer.content_digest
        && after == footer.image_digest
        && footer.file_bytes == (HEADER_BYTES + record_bytes + FOOTER_BYTES) as u64;
    match is_sound {
        true => {
            store.keep_index(name, 0, &bytes);
            Ok(table)
        }
        false => Err(Error::corrupt("its table of parts does not match its footer")),
    }
}
