//! An NBD server that answers rightly, until it answers wrongly. Written from the protocol (doc/proto.md), not
//! from the client.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::big_endian_bytes,
    reason = "a server that fails hangs up, which the client tells; the protocol is big-endian"
)]

use imgsnap::image::nbd::{NbdPlace, NbdUri};
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    // The connection.
    Cut,
    CutInside,
    CutFromThen,
    ShortenedThenCut,
    Stall,
    StallInside,
    Drip,
    // What is said of an error.
    Error(u32),
    ErrorAt(u32),
    SimpleError(u32),
    LongError,
    EndlessErrors,
    UnknownErrorChunk,
    // Replies.
    Magic,
    Cookie,
    CookieBefore,
    UnknownChunk,
    NothingWithoutEnd,
    Early,
    Twice,
    Overlap,
    Outside,
    Before,
    Longer,
    Empty,
    LongHole,
    SimpleData,
    Status,
    // Block status.
    NoExtents,
    ZeroExtent,
    OtherContext,
    ContextTwice,
    OddStatus,
    HugeStatus,
    BeyondEnd,
    TinyExtent,
}

/// How the server is.
#[derive(Clone)]
pub struct Config {
    pub structured: bool,
    pub go: bool,
    pub fixed: bool,
    pub contexts: bool,
    pub sizes: Option<(u32, u32)>,
    /// Read-only 2, flush 4, write zeroes 64, several connections 256.
    pub flags: u16,
    /// Reads are answered in chunks, last one first.
    pub shuffled: bool,
    /// Bytes that cannot be read.
    pub bad: Vec<std::ops::Range<u64>>,
    /// Each connection is cut at its so manieth request.
    pub cut_every: u64,
    /// Connections after so many are never answered.
    pub clients: u64,
    /// At which request, over all connections.
    pub wrong: Option<(Wrong, u64)>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            structured: true,
            go: true,
            fixed: true,
            contexts: true,
            sizes: None,
            flags: 1 | 4 | 64 | 256,
            shuffled: false,
            bad: Vec::new(),
            cut_every: u64::MAX,
            clients: u64::MAX,
            wrong: None,
        }
    }
}

struct Shared {
    config: Config,
    image: Mutex<Vec<u8>>,
    requests: AtomicU64,
    connections: AtomicU64,
    is_short: AtomicBool,
    is_cut: AtomicBool,
    ends: AtomicBool,
}

/// A server on a socket in a folder of its own.
pub struct Fake {
    shared: Arc<Shared>,
    folder: TempDir,
}

impl Fake {
    pub fn new(config: Config, image: &[u8]) -> Self {
        let folder = tempfile::Builder::new().prefix("imgsnap-nbd-").tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("s")).unwrap();
        let shared = Arc::new(Shared {
            config,
            image: Mutex::new(image.to_vec()),
            requests: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            is_short: AtomicBool::new(false),
            is_cut: AtomicBool::new(false),
            ends: AtomicBool::new(false),
        });
        let server = shared.clone();
        std::thread::spawn(move || {
            let mut queue = Vec::new();
            for stream in listener.incoming() {
                if server.ends.load(Ordering::SeqCst) {
                    return;
                }
                let (server, stream) = (server.clone(), stream.unwrap());
                let number = server.connections.fetch_add(1, Ordering::SeqCst);
                if number >= server.config.clients {
                    // Kept, and left alone.
                    queue.push(stream);
                    continue;
                }
                // What it says of its end is that the client hung up.
                std::thread::spawn(move || {
                    Client { server: &server, stream, dirty: false }.serve().ok()
                });
            }
        });
        Self { shared, folder }
    }

    pub fn uri(&self) -> NbdUri {
        NbdUri { place: NbdPlace::Unix(self.folder.path().join("s")), export: "disk".into() }
    }

    pub fn image(&self) -> Vec<u8> {
        self.shared.image.lock().unwrap().clone()
    }

    /// How often a client came.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::SeqCst)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::SeqCst);
        // Wakes who accepts.
        UnixStream::connect(self.folder.path().join("s")).ok();
    }
}

struct Client<'a> {
    server: &'a Shared,
    stream: UnixStream,
    /// Asked for the bitmap.
    dirty: bool,
}

struct Request {
    command: u16,
    cookie: u64,
    offset: u64,
    bytes: u32,
}

fn hang_up<T>() -> io::Result<T> {
    Err(io::ErrorKind::ConnectionAborted.into())
}

impl Client<'_> {
    fn number<const N: usize>(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.stream.read_exact(&mut bytes[8 - N..])?;
        Ok(u64::from_be_bytes(bytes))
    }

    fn say(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        self.stream.write_all(&parts.concat())
    }

    fn bytes(&self) -> u64 {
        let bytes = self.server.image.lock().unwrap().len() as u64;
        if self.server.is_short.load(Ordering::SeqCst) { bytes - 512 } else { bytes }
    }

    fn serve(&mut self) -> io::Result<()> {
        if self.server.is_cut.load(Ordering::SeqCst) {
            return hang_up();
        }
        let config = self.server.config.clone();
        self.say(&[b"NBDMAGICIHAVEOPT", &u16::from(config.fixed).to_be_bytes()])?;
        self.number::<4>()?;
        loop {
            let (_, option, length) =
                (self.number::<8>()?, self.number::<4>()?, self.number::<4>()?);
            let mut data = vec![0; length as usize];
            self.stream.read_exact(&mut data)?;
            let export = [&self.bytes().to_be_bytes()[..], &config.flags.to_be_bytes()].concat();
            match option {
                1 if data == b"disk" => {
                    self.say(&[&export, &[0; 124]])?;
                    return self.transmit();
                }
                1 => return hang_up(),
                8 if config.structured => self.reply(option, 1, &[])?,
                10 if config.contexts => {
                    self.reply(option, 4, b"\0\0\0\x2abase:allocation")?;
                    self.dirty = data.ends_with(b"qemu:dirty-bitmap:b0");
                    if self.dirty {
                        self.reply(option, 4, b"\0\0\0\x2bqemu:dirty-bitmap:b0")?;
                    }
                    self.reply(option, 1, &[])?;
                }
                7 if config.go && data.get(4..8) == Some(b"disk") => {
                    self.reply(option, 3, &[&[0, 0][..], &export].concat())?;
                    if let Some((minimum, maximum)) = config.sizes {
                        let sizes = [minimum, minimum.max(4096), maximum].map(u32::to_be_bytes);
                        self.reply(option, 3, &[&[0, 3][..], &sizes.concat()].concat())?;
                    }
                    self.reply(option, 1, &[])?;
                    return self.transmit();
                }
                7 if config.go => self.reply(option, 1 << 31 | 6, b"no such export")?,
                _ => self.reply(option, 1 << 31 | 1, &[])?,
            }
        }
    }

    fn reply(&mut self, option: u64, kind: u32, data: &[u8]) -> io::Result<()> {
        let magic = 0x0003_e889_0455_65a9_u64.to_be_bytes();
        let (option, length) = ((option as u32).to_be_bytes(), (data.len() as u32).to_be_bytes());
        self.say(&[&magic, &option, &kind.to_be_bytes(), &length, data])
    }

    fn simple(&mut self, cookie: u64, error: u32, data: &[u8]) -> io::Result<()> {
        self.say(&[
            &0x6744_6698u32.to_be_bytes(),
            &error.to_be_bytes(),
            &cookie.to_be_bytes(),
            data,
        ])
    }

    fn chunk(&mut self, cookie: u64, done: bool, kind: u16, data: &[u8]) -> io::Result<()> {
        let (flags, length) = (u16::from(done).to_be_bytes(), (data.len() as u32).to_be_bytes());
        let head = [&0x668e_33efu32.to_be_bytes()[..], &flags, &kind.to_be_bytes()].concat();
        self.say(&[&head, &cookie.to_be_bytes(), &length, data])
    }

    fn data(&mut self, cookie: u64, done: bool, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.chunk(cookie, done, 1, &[&at.to_be_bytes(), bytes].concat())
    }

    fn done(&mut self, cookie: u64) -> io::Result<()> {
        match self.server.config.structured {
            true => self.chunk(cookie, true, 0, &[]),
            false => self.simple(cookie, 0, &[]),
        }
    }

    fn error(&mut self, cookie: u64, error: u32) -> io::Result<()> {
        match self.server.config.structured {
            true => {
                self.chunk(cookie, true, 0x8001, &[&error.to_be_bytes()[..], b"\0\x02no"].concat())
            }
            false => self.simple(cookie, error, &[]),
        }
    }

    fn transmit(&mut self) -> io::Result<()> {
        for mine in 1.. {
            let (_, _, command) =
                (self.number::<4>()?, self.number::<2>()?, self.number::<2>()? as u16);
            let (cookie, offset) = (self.number::<8>()?, self.number::<8>()?);
            let request = Request { command, cookie, offset, bytes: self.number::<4>()? as u32 };
            let mut data = vec![0; if command == 1 { request.bytes as usize } else { 0 }];
            self.stream.read_exact(&mut data)?;
            if command == 2 {
                return Ok(());
            }
            let is_cut = self.server.is_cut.load(Ordering::SeqCst);
            if is_cut || mine == self.server.config.cut_every {
                return hang_up();
            }
            let number = self.server.requests.fetch_add(1, Ordering::SeqCst) + 1;
            match self.server.config.wrong {
                Some((wrong, at)) if at == number => self.answer_wrongly(wrong, &request)?,
                _ => self.answer(&request, &data)?,
            }
        }
        Ok(())
    }

    fn answer(&mut self, request: &Request, data: &[u8]) -> io::Result<()> {
        let Request { command, cookie, offset, bytes } = *request;
        let (start, end) = (offset as usize, (offset + u64::from(bytes)) as usize);
        let (minimum, maximum) = self.server.config.sizes.unwrap_or((1, u32::MAX));
        let is_aligned = offset % u64::from(minimum) == 0
            && (bytes % minimum == 0 || end as u64 == self.bytes())
            && (bytes <= maximum || matches!(command, 6 | 7));
        if !is_aligned || end as u64 > self.bytes() {
            return self.error(cookie, 22);
        }
        let is_bad = |range: &std::ops::Range<u64>| range.start < end as u64 && offset < range.end;
        if command == 0 && self.server.config.bad.iter().any(is_bad) {
            return self.error(cookie, 5);
        }
        match command {
            0 => {
                let bytes = self.server.image.lock().unwrap()[start..end].to_vec();
                self.answer_read(cookie, offset, &bytes)
            }
            1 => {
                self.server.image.lock().unwrap()[start..end].copy_from_slice(data);
                self.done(cookie)
            }
            3 => self.done(cookie),
            6 => {
                self.server.image.lock().unwrap()[start..end].fill(0);
                self.done(cookie)
            }
            7 => {
                let extents = self.extents(start, end);
                let allocation = [b"\0\0\0\x2a", extents.as_slice()].concat();
                self.chunk(cookie, !self.dirty, 5, &allocation)?;
                if !self.dirty {
                    return Ok(());
                }
                // Every other page is dirty.
                let dirty = |at: usize| [4096 - at as u32 % 4096, (at / 4096 % 2) as u32];
                let (mut at, mut map) = (start, b"\0\0\0\x2b".to_vec());
                while at < end {
                    let [length, flags] = dirty(at);
                    map.extend([length, flags].map(u32::to_be_bytes).concat());
                    at += length as usize;
                }
                self.chunk(cookie, true, 5, &map)
            }
            _ => self.error(cookie, 22),
        }
    }

    fn answer_read(&mut self, cookie: u64, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let config = &self.server.config;
        if !config.structured {
            return self.simple(cookie, 0, bytes);
        }
        if !config.shuffled || bytes.len() < 4 {
            return self.data(cookie, true, offset, bytes);
        }
        // By pieces of odd lengths, the last one first, zeros as holes, and the end on its own.
        let mut chunks: Vec<(u64, &[u8])> =
            (offset..).step_by(1111).zip(bytes.chunks(1111)).collect();
        chunks.reverse();
        for (at, bytes) in chunks {
            if bytes.iter().all(|byte| *byte == 0) {
                let hole = [&at.to_be_bytes()[..], &(bytes.len() as u32).to_be_bytes()].concat();
                self.chunk(cookie, false, 2, &hole)?;
            } else {
                self.data(cookie, false, at, bytes)?;
            }
        }
        self.chunk(cookie, true, 0, &[])
    }

    /// Pages of zeros are zeros (and every other a hole, too); a hole is not always zeros.
    fn extents(&self, start: usize, end: usize) -> Vec<u8> {
        let image = self.server.image.lock().unwrap();
        let mut extents = Vec::new();
        let mut at = start;
        while at < end {
            let next = (at / 4096 * 4096 + 4096).min(end);
            let is_zero = image[at..next].iter().all(|byte| *byte == 0);
            let flags = u32::from((at / 4096).is_multiple_of(2)) | u32::from(is_zero) << 1;
            extents.extend([(next - at) as u32, flags].map(u32::to_be_bytes).concat());
            at = next;
        }
        extents
    }

    fn stall(&self) -> io::Result<()> {
        while !self.server.ends.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(10));
        }
        hang_up()
    }

    fn answer_wrongly(&mut self, wrong: Wrong, request: &Request) -> io::Result<()> {
        let Request { command, cookie, offset, bytes } = *request;
        let junk = vec![0xee; bytes.min(1 << 21) as usize];
        let half = junk.len() / 2;
        let head = |bytes: u32, data: &[u8]| [&bytes.to_be_bytes()[..], data].concat();
        let status = |extents: &[u32]| {
            let id = 0x2au32;
            [id].iter().chain(extents).flat_map(|number| number.to_be_bytes()).collect::<Vec<u8>>()
        };
        match wrong {
            Wrong::Cut => hang_up(),
            Wrong::CutInside => {
                let data =
                    [&0x668e_33efu32.to_be_bytes()[..], &[0, 1, 0, 1], &cookie.to_be_bytes()]
                        .concat();
                self.say(&[
                    &data,
                    &(bytes + 8).to_be_bytes(),
                    &offset.to_be_bytes(),
                    &junk[..half],
                ])?;
                hang_up()
            }
            Wrong::CutFromThen => {
                self.server.is_cut.store(true, Ordering::SeqCst);
                hang_up()
            }
            Wrong::ShortenedThenCut => {
                self.server.is_short.store(true, Ordering::SeqCst);
                hang_up()
            }
            Wrong::Stall => self.stall(),
            Wrong::StallInside => {
                self.say(&[&0x668e_33efu32.to_be_bytes(), &[0, 1, 0]])?;
                self.stall()
            }
            Wrong::Drip => {
                let head = [&0x668e_33efu32.to_be_bytes()[..], &[0, 1, 0, 1]].concat();
                let rest = [&cookie.to_be_bytes()[..], &(bytes + 8).to_be_bytes()].concat();
                self.say(&[&head, &rest, &offset.to_be_bytes()])?;
                while !self.server.ends.load(Ordering::SeqCst) {
                    self.say(&[&[0xee]])?;
                    std::thread::sleep(Duration::from_millis(20));
                }
                hang_up()
            }
            Wrong::Error(error) => self.error(cookie, error),
            Wrong::ErrorAt(error) => {
                let data = [&head(error, b"\0\0")[..], &(offset + 1).to_be_bytes()].concat();
                self.chunk(cookie, false, 0x8002, &data)?;
                self.chunk(cookie, true, 0, &[])
            }
            Wrong::SimpleError(error) => self.simple(cookie, error, &[]),
            Wrong::LongError => self.chunk(cookie, true, 0x8001, &head(5, &[b'x'; 1 << 20])),
            Wrong::EndlessErrors => loop {
                self.chunk(cookie, false, 0x8001, &head(5, b"\0\0"))?;
            },
            Wrong::UnknownErrorChunk => self.chunk(cookie, true, 0x8777, &head(5, b"\0\0")),
            Wrong::Magic => self.say(&[&[0x13; 28]]),
            Wrong::Cookie => self.chunk(cookie ^ 0xffff_0000, true, 0, &[]),
            Wrong::CookieBefore => self.chunk(cookie - 1, true, 0, &[]),
            Wrong::UnknownChunk => self.chunk(cookie, true, 77, &junk[..half]),
            Wrong::NothingWithoutEnd => self.chunk(cookie, false, 0, &[]),
            Wrong::Early => {
                self.data(cookie, false, offset, &junk[..half])?;
                self.chunk(cookie, true, 0, &[])
            }
            Wrong::Twice => {
                self.data(cookie, false, offset, &junk)?;
                self.data(cookie, true, offset, &junk)
            }
            Wrong::Overlap => {
                self.data(cookie, false, offset, &junk[..half + 1])?;
                self.data(cookie, true, offset + half as u64, &junk[half..])
            }
            Wrong::Outside => self.data(cookie, true, offset + 1, &junk),
            Wrong::Before => self.data(cookie, true, offset.wrapping_sub(1), &junk),
            Wrong::Longer => {
                self.chunk(cookie, true, 1, &[&offset.to_be_bytes()[..], &junk, b"more"].concat())
            }
            Wrong::Empty => self.data(cookie, true, offset, &[]),
            Wrong::LongHole => {
                let hole = [&offset.to_be_bytes()[..], &u32::MAX.to_be_bytes()].concat();
                self.chunk(cookie, true, 2, &hole)
            }
            Wrong::SimpleData => self.simple(cookie, 0, &junk),
            Wrong::Status => self.chunk(cookie, true, 5, &status(&[4096, 2])),
            Wrong::NoExtents if command == 7 => self.chunk(cookie, true, 5, &status(&[])),
            Wrong::ZeroExtent => self.chunk(cookie, true, 5, &status(&[0, 2, 4096, 2])),
            Wrong::OtherContext => {
                let data = [99, 4096, 2].map(u32::to_be_bytes).concat();
                self.chunk(cookie, true, 5, &data)
            }
            Wrong::ContextTwice => {
                self.chunk(cookie, false, 5, &status(&[4096, 2]))?;
                self.chunk(cookie, true, 5, &status(&[4096, 0]))
            }
            Wrong::OddStatus => self.chunk(cookie, true, 5, &status(&[4096, 2, 1])),
            Wrong::HugeStatus => {
                let length = u32::MAX - 3;
                let data =
                    [&0x668e_33efu32.to_be_bytes()[..], &[0, 1, 0, 5], &cookie.to_be_bytes()]
                        .concat();
                self.say(&[&data, &length.to_be_bytes(), &status(&[4096, 2])])
            }
            Wrong::BeyondEnd if command == 7 => {
                self.chunk(cookie, true, 5, &status(&[u32::MAX, 0]))
            }
            Wrong::TinyExtent if command == 7 => self.chunk(cookie, true, 5, &status(&[1, 0])),
            Wrong::NoExtents | Wrong::BeyondEnd | Wrong::TinyExtent => self.answer(request, &[]),
        }
    }
}
