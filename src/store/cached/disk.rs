//! The index of objects on a disk of this host: a file for each object, with what was read of its index, or
//! written. Whoever deletes it loses nothing but time.
//!
//! ```text
//! b"imgsnap cache 1\n"
//! u64 offset | u64 length | u64 checksum | bytes        again and again
//!
//! b"imgsnap cache 2\n"                                   of a repository that is sealed
//! u64 offset | u64 length | salt of 32 bytes | bytes, sealed | tag of 16 bytes
//! ```
//!
//! All numbers are little endian. The checksum is salted with the name of the object, which was never given
//! before: what is of another object, or of another place, is not taken for it. So it is with what is sealed,
//! by AES-256-GCM with a key of the salt, over the name, the offset and the length (FORMAT.md Z9).

use crate::base::error::best_effort;
use crate::base::secret::fill_random;
use crate::store::sealed::CacheKey;
use std::collections::{BTreeMap, HashMap};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use xxhash_rust::xxh3::Xxh3;

const MAGIC_BYTES: usize = 16;
/// Where what proves a record begins in it: after its offset and length.
const PLACE_BYTES: usize = 16;
const CHECKSUM_BYTES: usize = 8;
const SALT_BYTES: usize = 32;
const TAG_BYTES: usize = 16;
/// No page of an index is longer.
const MAX_RECORD_BYTES: u64 = 64 << 20;
/// A file that was used is known as that for so long.
const TOUCH: Duration = Duration::from_secs(3600);
const SUFFIX: &str = ".delta.index";

/// So many files are open at the same time.
const MOST_OPEN: usize = 256;

/// The cache of one repository.
pub(super) struct DiskCache {
    folder: PathBuf,
    most_bytes: u64,
    key: Option<Arc<CacheKey>>,
    files: Mutex<HashMap<String, Option<Arc<CacheFile>>>>,
    is_swept: Mutex<bool>,
}

/// What is kept of one object.
struct CacheFile {
    file: File,
    proof: Proof,
    /// Where records are: by their first byte in the object, their length, and where they are in the file.
    records: Mutex<BTreeMap<u64, (u64, u64)>>,
}

/// By what a record is known to be what was written.
struct Proof {
    object: String,
    /// None for a checksum.
    key: Option<Arc<CacheKey>>,
}

impl Proof {
    fn magic(&self) -> &'static [u8; MAGIC_BYTES] {
        if self.key.is_some() { b"imgsnap cache 2\n" } else { b"imgsnap cache 1\n" }
    }

    /// Bytes before those of a record.
    fn head_bytes(&self) -> usize {
        PLACE_BYTES + if self.key.is_some() { SALT_BYTES } else { CHECKSUM_BYTES }
    }

    /// Bytes of a record of that length.
    fn record_bytes(&self, length: u64) -> u64 {
        let tag = if self.key.is_some() { TAG_BYTES } else { 0 };
        length + (self.head_bytes() + tag) as u64
    }

    fn checksum(&self, place: &[u8], bytes: &[u8]) -> u64 {
        let mut hasher = Xxh3::with_seed(xxhash_rust::xxh3::xxh3_64(self.object.as_bytes()));
        hasher.update(place);
        hasher.update(bytes);
        hasher.digest()
    }

    /// The record of bytes that are at `offset` in the object.
    fn record(&self, offset: u64, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let length = bytes.len() as u64;
        let place = [offset.to_le_bytes(), length.to_le_bytes()].concat();
        let mut record = Vec::with_capacity(self.record_bytes(length) as usize);
        record.extend_from_slice(&place);
        let Some(key) = &self.key else {
            record.extend_from_slice(&self.checksum(&place, bytes).to_le_bytes());
            record.extend_from_slice(bytes);
            return Ok(record);
        };
        let mut salt = [0; SALT_BYTES];
        fill_random(&mut salt).map_err(io::Error::other)?;
        record.extend_from_slice(&salt);
        let sealed = key.seal_record(&salt, &[self.object.as_bytes(), &place], bytes);
        record.extend_from_slice(&sealed.map_err(io::Error::other)?);
        Ok(record)
    }

    /// The bytes of a record that was read; none if it is not what was written.
    fn open(&self, record: &mut Vec<u8>, offset: u64) -> Option<Vec<u8>> {
        let body = record.split_off(self.head_bytes().min(record.len()));
        let (place, proof) = record.split_at_checked(PLACE_BYTES)?;
        if number(place, 0) != Some(offset) {
            return None;
        }
        match &self.key {
            None => (number(proof, 0)? == self.checksum(place, &body)).then_some(body),
            Some(key) => key.open_record(proof, &[self.object.as_bytes(), place], body),
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..at + 8)?.first_chunk()?))
}

impl CacheFile {
    fn open(path: &Path, proof: Proof, is_new: bool) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).append(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let mut file = options.create_new(is_new).open(path)?;
        if is_new {
            file.write_all(proof.magic())?;
        }
        let bytes = file.metadata()?.len();
        let mut magic = [0; MAGIC_BYTES];
        file.read_exact_at(&mut magic, 0)?;
        let invalid = || io::Error::from(io::ErrorKind::InvalidData);
        if magic != *proof.magic() {
            return Err(invalid());
        }
        let mut records = BTreeMap::new();
        let mut at = MAGIC_BYTES as u64;
        while at < bytes {
            let mut head = [0; PLACE_BYTES];
            file.read_exact_at(&mut head, at)?;
            let (Some(offset), Some(length)) = (number(&head, 0), number(&head, 8)) else { break };
            if length > MAX_RECORD_BYTES || at + proof.record_bytes(length) > bytes {
                return Err(invalid());
            }
            records.insert(offset, (length, at));
            at += proof.record_bytes(length);
        }
        Ok(Self { file, proof, records: Mutex::new(records) })
    }

    /// Fills a buffer; false if that is not all here. An error if the file is damaged.
    fn read(&self, mut offset: u64, buffer: &mut [u8]) -> io::Result<bool> {
        let mut rest = buffer;
        while !rest.is_empty() {
            let record = lock(&self.records).range(..=offset).next_back().map(|(o, r)| (*o, *r));
            let Some((first, (length, at))) = record.filter(|(o, (l, _))| offset < o + l) else {
                return Ok(false);
            };
            let mut record = vec![0; self.proof.record_bytes(length) as usize];
            self.file.read_exact_at(&mut record, at)?;
            let opened = self.proof.open(&mut record, first);
            let bytes = opened.ok_or(io::ErrorKind::InvalidData)?;
            let found = bytes.get((offset - first) as usize..).unwrap_or_default();
            let count = found.len().min(rest.len());
            let (now, later) = rest.split_at_mut(count);
            now.copy_from_slice(found.get(..count).unwrap_or_default());
            (rest, offset) = (later, offset + count as u64);
        }
        Ok(true)
    }

    fn add(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let record = self.proof.record(offset, bytes)?;
        let mut records = lock(&self.records);
        // In one piece, at the end: others may add as well. Where it came to lie tells its own end.
        (&self.file).write_all(&record)?;
        let end = nix::unistd::lseek(&self.file, 0, nix::unistd::Whence::SeekCur)?;
        let at = u64::try_from(end).unwrap_or_default().saturating_sub(record.len() as u64);
        records.insert(offset, (bytes.len() as u64, at));
        Ok(())
    }
}

impl DiskCache {
    /// In a folder, which is made, of at most so many bytes with all others in the folder above.
    ///
    /// # Errors
    /// If it cannot be made, or is somebody else's.
    pub fn open(
        above: &Path,
        repository: &str,
        most_bytes: u64,
        key: Option<CacheKey>,
    ) -> io::Result<Self> {
        let digest = blake3::hash(repository.as_bytes()).to_hex();
        let folder = above.join(digest.get(..32).unwrap_or_default());
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let owner = nix::unistd::geteuid().as_raw();
        for path in [above, &folder] {
            let meta = std::fs::metadata(path)?;
            if meta.uid() != owner || meta.mode() & 0o022 != 0 {
                return Err(io::Error::new(
                    io::ErrorKind::PermissionDenied,
                    "others may write there",
                ));
            }
        }
        let (files, is_swept) = (Mutex::default(), Mutex::default());
        Ok(Self { folder, most_bytes, key: key.map(Arc::new), files, is_swept })
    }

    fn path(&self, object: &str) -> Option<PathBuf> {
        let file = object.rsplit('/').next()?;
        Some(self.folder.join(format!("{}{SUFFIX}", file.strip_suffix(".delta")?)))
    }

    /// What is kept of an object, if anything is, or is to be.
    fn file(&self, object: &str, is_to_be: bool) -> Option<Arc<CacheFile>> {
        let mut files = lock(&self.files);
        match files.get(object) {
            Some(Some(file)) => return Some(file.clone()),
            Some(None) if !is_to_be => return None,
            _ => {}
        }
        let path = self.path(object)?;
        let proof = || Proof { object: object.to_owned(), key: self.key.clone() };
        let opened = match CacheFile::open(&path, proof(), false) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && is_to_be => {
                CacheFile::open(&path, proof(), true)
            }
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
                ) =>
            {
                best_effort(std::fs::remove_file(&path));
                Err(e)
            }
            Ok(file) => {
                let modified = file.file.metadata().and_then(|meta| meta.modified());
                let is_old = modified.is_ok_and(|t| t.elapsed().is_ok_and(|age| age > TOUCH));
                if is_old {
                    // Otherwise it goes earlier than others.
                    best_effort(file.file.set_modified(SystemTime::now()));
                }
                Ok(file)
            }
            other => other,
        };
        let opened = opened.ok().map(Arc::new);
        // Each has a descriptor, of which there are not many.
        if files.len() >= MOST_OPEN {
            files.clear();
        }
        files.insert(object.to_owned(), opened.clone());
        opened
    }

    /// Fills a buffer with bytes of an object; false if they are not here.
    pub fn read(&self, object: &str, offset: u64, buffer: &mut [u8]) -> bool {
        let Some(file) = self.file(object, false) else { return false };
        file.read(offset, buffer).unwrap_or_else(|_| {
            self.forget(object);
            false
        })
    }

    /// True if bytes of an object are here.
    pub fn has(&self, object: &str, offset: u64, bytes: u64) -> bool {
        let Some(file) = self.file(object, false) else { return false };
        let records = lock(&file.records);
        let (mut at, end) = (offset, offset.saturating_add(bytes));
        while at < end {
            let record = records.range(..=at).next_back();
            match record.map(|(first, (length, _))| first + length).filter(|until| *until > at) {
                Some(until) => at = until,
                None => return false,
            }
        }
        true
    }

    /// Keeps bytes of an object. What cannot be kept is read again.
    pub fn add(&self, object: &str, offset: u64, bytes: &[u8]) {
        self.sweep();
        let Some(file) = self.file(object, true) else { return };
        if file.add(offset, bytes).is_err() {
            self.forget(object);
        }
    }

    /// Lets go of what is kept of an object.
    pub fn forget(&self, object: &str) {
        lock(&self.files).insert(object.to_owned(), None);
        if let Some(path) = self.path(object) {
            best_effort(std::fs::remove_file(path));
        }
    }

    /// Once: removes what was not used for longest, of all repositories, while there is too much.
    fn sweep(&self) {
        let mut is_swept = lock(&self.is_swept);
        let Some(above) = self.folder.parent().filter(|_| !*is_swept) else { return };
        *is_swept = true;
        let mut files = Vec::new();
        for folder in std::fs::read_dir(above).into_iter().flatten().flatten() {
            // Others may keep theirs beside it.
            let name = folder.file_name();
            let is_ours = name.len() == 32 && name.as_bytes().iter().all(u8::is_ascii_hexdigit);
            if !(is_ours && folder.file_type().is_ok_and(|of| of.is_dir())) {
                continue;
            }
            for file in std::fs::read_dir(folder.path()).into_iter().flatten().flatten() {
                let is_ours = file.file_name().to_str().is_some_and(|name| name.ends_with(SUFFIX));
                if let (true, Ok(meta)) = (is_ours, file.metadata()) {
                    files.push((meta.modified().ok(), meta.len(), file.path()));
                }
            }
        }
        files.sort();
        let mut left: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, bytes, path) in files {
            if left <= self.most_bytes {
                break;
            }
            best_effort(std::fs::remove_file(path));
            left = left.saturating_sub(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_cache(above: &Path, most_bytes: u64) -> DiskCache {
        DiskCache::open(above, "s3://b/r", most_bytes, None).unwrap()
    }

    const OBJECT: &str = "vm/18ddab2b-d2f6-4c59-b4d5-c5dfe82e7291.delta";

    fn read(cache: &DiskCache, offset: u64, bytes: usize) -> Option<Vec<u8>> {
        let mut buffer = vec![0; bytes];
        cache.read(OBJECT, offset, &mut buffer).then_some(buffer)
    }

    #[test]
    fn what_is_kept_is_given_back_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let open = || open_cache(&folder.path().join("cache"), 1 << 20);
        let cache = open();
        assert_eq!(read(&cache, 0, 4), None);
        cache.add(OBJECT, 100, b"abcdef");
        cache.add(OBJECT, 106, b"ghi");
        for cache in [cache, open()] {
            assert_eq!(read(&cache, 102, 6), Some(b"cdefgh".to_vec()));
            for (offset, bytes) in [(99, 2), (105, 5), (200, 1)] {
                assert_eq!(read(&cache, offset, bytes), None, "{offset}");
            }
        }
        // Of another object, or changed, it is not taken.
        let file = open().path(OBJECT).unwrap();
        let good = std::fs::read(&file).unwrap();
        for at in MAGIC_BYTES..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&file, bad).unwrap();
            let cache = open();
            for (offset, right) in [(100, &b"abcdef"[..]), (106, b"ghi")] {
                let found = read(&cache, offset, right.len());
                assert!(found.is_none_or(|found| found == right), "byte {at}");
            }
        }
        let other = "vm/28ddab2b-d2f6-4c59-b4d5-c5dfe82e7291.delta";
        std::fs::write(open().path(other).unwrap(), &good).unwrap();
        assert!(!open().read(other, 100, &mut [0; 6]));
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let folder = tempfile::tempdir().unwrap();
        let above = folder.path().join("cache");
        let objects: Vec<String> =
            (0..8).map(|n| OBJECT.replace("18ddab2b", &format!("{n}8ddab2b"))).collect();
        for (age, object) in objects.iter().enumerate() {
            let cache = open_cache(&above, u64::MAX);
            cache.add(object, 0, &[7; 1000]);
            let file = File::options().write(true).open(cache.path(object).unwrap()).unwrap();
            let time = SystemTime::now() - Duration::from_secs(60 * (100 - age as u64));
            file.set_modified(time).unwrap();
        }
        let cache = open_cache(&above, 4000);
        cache.add(&objects[7], 1000, b"more");
        let left: Vec<bool> = objects.iter().map(|o| cache.path(o).unwrap().exists()).collect();
        assert_eq!(left, [false, false, false, false, false, true, true, true]);
    }
}
