//! The store of another host.

use super::connection::Connection;
use super::wire::{Ask, MAX_BODY_BYTES, PROTOCOL, Told, is_of_the_rest};
use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::transfer::Transfer;
use crate::store::url::RemoteUrl;
use crate::store::{Listed, LockGuard, LockKind, ReserveKept, Sharing, Store, Upload};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// What is sent at once of an upload.
const PIECE_BYTES: usize = 256 << 10;

/// A repository of another host.
pub struct SshStore {
    url: RemoteUrl,
    place: String,
    transfer: Transfer,
    /// Made when it is first needed.
    connection: Mutex<Option<Arc<Connection>>>,
}

impl SshStore {
    /// The one that a URL names. Nothing is asked yet.
    pub fn new(url: &RemoteUrl, transfer: Transfer) -> Self {
        let (url, place) = (url.clone(), url.to_string());
        Self { url, place, transfer, connection: Mutex::default() }
    }

    fn connection(&self) -> Result<Arc<Connection>> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = &*connection {
            // Whoever holds a lock of one that is lost must not go on as if he held it still.
            if !made.is_lost() || Arc::strong_count(made) > 1 {
                return Ok(made.clone());
            }
        }
        let made = Arc::new(Connection::open(&self.url)?);
        let path = format!("/{}", self.url.path);
        made.ask(Ask::Hello { version: PROTOCOL, path }, &[])?;
        *connection = Some(made.clone());
        Ok(made)
    }

    fn ask(&self, ask: Ask) -> Result<Told> {
        let (_, told, _) = self.connection()?.ask(ask, &[])?;
        Ok(told)
    }

    fn list_folder(&self, folder: &str, timed: bool) -> Result<Vec<Listed>> {
        match self.ask(Ask::List { folder: folder.into(), timed })? {
            Told::Listed(listed) => Ok(listed.into_iter().map(Listed::from).collect()),
            other => Err(self.odd(&other)),
        }
    }

    fn put(&self, ask: Ask, bytes: &[u8]) -> Result<()> {
        self.transfer.send(bytes.len() as u64)?;
        if bytes.len() > MAX_BODY_BYTES {
            let what = format!("{}: an object of {} bytes is too large", self.place, bytes.len());
            return Err(Error::new(ErrorKind::LimitExceeded, what));
        }
        self.connection()?.ask(ask, bytes).map(drop)
    }

    fn take(&self, ask: Ask) -> Result<Option<LockGuard>> {
        let connection = self.connection()?;
        let (held, told, _) = connection.ask(ask, &[])?;
        match told {
            Told::Is(true) => Ok(Some(Box::new(HeldThere { connection, held }))),
            Told::Is(false) => Ok(None),
            other => Err(self.odd(&other)),
        }
    }

    /// What to say of an answer to another question.
    fn odd(&self, told: &Told) -> Error {
        let what = format!("{}: unexpected answer: {told:?}", self.place);
        Error::new(ErrorKind::Unsupported, what)
            .hint("check that both hosts have the same imgsnap version")
    }
}

impl Store for SshStore {
    fn list(&self, folder: &str) -> Result<Vec<String>> {
        Ok(self.list_folder(folder, false)?.into_iter().map(|object| object.name).collect())
    }

    fn list_timed(&self, folder: &str) -> Result<Vec<Listed>> {
        self.list_folder(folder, true)
    }

    fn list_all(&self) -> Result<BTreeMap<String, Vec<Listed>>> {
        match self.ask(Ask::ListAll)? {
            Told::All(all) => {
                let of = |objects: Vec<_>| objects.into_iter().map(Listed::from).collect();
                Ok(all.into_iter().map(|(folder, objects)| (folder, of(objects))).collect())
            }
            other => Err(self.odd(&other)),
        }
    }

    fn sharing(&self) -> Result<Sharing> {
        let told = self.ask(Ask::Sharing)?;
        told.clone().sharing().ok_or_else(|| self.odd(&told))
    }

    fn size(&self, name: &str) -> Result<u64> {
        match self.ask(Ask::Size { name: name.into() })? {
            Told::Number(bytes) => Ok(bytes),
            other => Err(self.odd(&other)),
        }
    }

    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.transfer.fetch(buffer.len() as u64)?;
        let connection = self.connection()?;
        let mut offset = offset;
        for piece in buffer.chunks_mut(MAX_BODY_BYTES) {
            let bytes = piece.len() as u64;
            let (_, told, body) =
                connection.ask(Ask::Read { name: name.into(), offset, bytes }, &[])?;
            if body.len() != piece.len() {
                return Err(self.odd(&told));
            }
            piece.copy_from_slice(&body);
            offset = offset.saturating_add(bytes);
        }
        Ok(())
    }

    fn read_whole(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        let ask = Ask::ReadWhole { name: name.into(), limit };
        let (_, told, mut whole) = self.connection()?.ask(ask, &[])?;
        match told {
            Told::Done => Ok(whole),
            // What is longer than a message is read in pieces.
            Told::Number(bytes) if bytes <= limit => {
                whole.resize(bytes as usize, 0);
                self.read_at(name, 0, &mut whole)?;
                Ok(whole)
            }
            other => Err(self.odd(&other)),
        }
    }

    fn create(&self, name: &str) -> Result<Box<dyn Upload>> {
        let connection = self.connection()?;
        let (upload, _, _) = connection.ask(Ask::Begin { name: name.into() }, &[])?;
        let (transfer, piece) = (self.transfer.clone(), Vec::with_capacity(PIECE_BYTES));
        Ok(Box::new(SshUpload { connection, upload, piece, transfer, is_open: true }))
    }

    fn put_if_absent(&self, name: &str, bytes: &[u8]) -> Result<()> {
        if bytes.len() > MAX_BODY_BYTES {
            let mut upload = self.create(name)?;
            upload.write(bytes)?;
            return upload.publish();
        }
        self.put(Ask::Put { name: name.into() }, bytes)
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.put(Ask::Replace { name: name.into() }, bytes)
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.ask(Ask::Remove { name: name.into() }).map(drop)
    }

    fn sync_dir(&self, folder: &str) -> Result<()> {
        self.ask(Ask::SyncDir { folder: folder.into() }).map(drop)
    }

    fn create_folder(&self, folder: &str) -> Result<()> {
        self.ask(Ask::CreateFolder { folder: folder.into() }).map(drop)
    }

    fn remove_folder(&self, folder: &str) -> Result<bool> {
        match self.ask(Ask::RemoveFolder { folder: folder.into() })? {
            Told::Is(is) => Ok(is),
            other => Err(self.odd(&other)),
        }
    }

    fn lock(&self, name: &str, kind: LockKind) -> Result<Option<LockGuard>> {
        self.take(Ask::Lock { name: name.into(), exclusive: kind == LockKind::Exclusive })
    }

    fn hold(&self, lock: &str, objects: &[&str]) -> Result<Option<LockGuard>> {
        let objects = objects.iter().map(|object| (*object).to_owned()).collect();
        self.take(Ask::Hold { lock: lock.into(), objects })
    }

    fn is_held(&self, lock: &str, object: Option<&str>) -> Result<bool> {
        let ask = Ask::IsHeld { lock: lock.into(), object: object.map(str::to_owned) };
        match self.ask(ask)? {
            Told::Is(is) => Ok(is),
            other => Err(self.odd(&other)),
        }
    }

    fn free_space(&self) -> Option<u64> {
        match self.ask(Ask::FreeSpace) {
            Ok(Told::Perhaps(bytes)) => bytes,
            _ => None,
        }
    }

    fn keep_reserve(&self, bytes: u64, kept: ReserveKept) -> Result<()> {
        self.ask(Ask::KeepReserve { bytes, of_the_rest: is_of_the_rest(kept) }).map(drop)
    }

    fn release_reserve(&self) -> Result<bool> {
        match self.ask(Ask::ReleaseReserve)? {
            Told::Is(is) => Ok(is),
            other => Err(self.odd(&other)),
        }
    }

    fn location(&self, name: &str) -> String {
        let slash = if name.is_empty() { "" } else { "/" };
        format!("{}{slash}{name}", self.place)
    }

    fn url(&self) -> Option<&str> {
        Some(&self.place)
    }
}

/// A lock that the other host holds for this one.
struct HeldThere {
    connection: Arc<Connection>,
    held: u64,
}

impl Drop for HeldThere {
    fn drop(&mut self) {
        // The end of the connection ends it, too. Whoever goes on needs it to be gone.
        best_effort(self.connection.ask(Ask::Unlock { held: self.held }, &[]));
    }
}

struct SshUpload {
    connection: Arc<Connection>,
    upload: u64,
    piece: Vec<u8>,
    transfer: Transfer,
    is_open: bool,
}

impl SshUpload {
    fn send(&mut self) -> Result<()> {
        if let Some(failure) = self.connection.failure(self.upload) {
            return Err(failure);
        }
        self.transfer.send(self.piece.len() as u64)?;
        self.connection.say(Ask::Write { upload: self.upload }, &self.piece)?;
        self.piece.clear();
        Ok(())
    }

    fn finish(mut self, over: bool) -> Result<()> {
        if !self.piece.is_empty() {
            self.send()?;
        }
        self.is_open = false;
        let published = self.connection.ask(Ask::Publish { upload: self.upload, over }, &[]);
        // Why it failed came before.
        match self.connection.failure(self.upload) {
            Some(failure) => Err(failure),
            None => published.map(drop),
        }
    }
}

impl Upload for SshUpload {
    fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(PIECE_BYTES - self.piece.len()));
            self.piece.extend_from_slice(now);
            bytes = later;
            if self.piece.len() == PIECE_BYTES {
                self.send()?;
            }
        }
        Ok(())
    }

    fn publish(self: Box<Self>) -> Result<()> {
        self.finish(false)
    }

    fn publish_over(self: Box<Self>) -> Result<()> {
        self.finish(true)
    }
}

impl Drop for SshUpload {
    fn drop(&mut self) {
        if self.is_open && !self.connection.is_lost() {
            best_effort(self.connection.ask(Ask::Abort { upload: self.upload }, &[]));
        }
    }
}
