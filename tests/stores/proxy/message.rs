//! Heads of requests and answers, and where bodies end.

use super::life::Reader;
use std::io;

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// The first line and the headers, as they came.
pub struct Head {
    /// All of it, with the empty line.
    pub raw: Vec<u8>,
}

impl Head {
    /// Reads one; none if the connection ends before it.
    pub fn read(from: &mut Reader) -> io::Result<Option<Self>> {
        let mut seen = 0;
        loop {
            let bytes = from.filled();
            if let Some(at) = bytes[seen..].windows(4).position(|four| four == b"\r\n\r\n") {
                let raw = bytes[..seen + at + 4].to_vec();
                from.consume(raw.len());
                return Ok(Some(Self { raw }));
            }
            seen = bytes.len().saturating_sub(3);
            let is_empty = bytes.is_empty();
            if from.fill()? == 0 {
                return if is_empty { Ok(None) } else { Err(malformed("half a head")) };
            }
        }
    }

    fn lines(&self) -> impl Iterator<Item = &str> {
        self.raw.split(|&b| b == b'\n').map(|line| str::from_utf8(line).unwrap_or("").trim_end())
    }

    /// The words of the first line: `GET`, `/path`, `HTTP/1.1`; or `HTTP/1.1`, `200`, `OK`.
    pub fn words(&self) -> [&str; 3] {
        let mut words = self.lines().next().unwrap_or("").splitn(3, ' ');
        std::array::from_fn(|_| words.next().unwrap_or(""))
    }

    /// What a header says; its name in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let headers = self.lines().skip(1).filter_map(|line| line.split_once(':'));
        let mut found = headers.filter(|(n, _)| n.eq_ignore_ascii_case(name));
        found.next().map(|(_, value)| value.trim())
    }

    fn has(&self, name: &str, word: &str) -> bool {
        let words = self.header(name).unwrap_or("").split(',');
        words.map(str::trim).any(|w| w.eq_ignore_ascii_case(word))
    }

    /// Gives a header another value; false if it is not there.
    pub fn replace(&mut self, name: &str, value: &str) -> bool {
        let mut is_there = false;
        let mut raw = Vec::new();
        for line in self.raw.split_inclusive(|&b| b == b'\n') {
            let colon = line.iter().position(|&b| b == b':');
            match colon.map(|colon| &line[..colon]) {
                Some(n) if n.eq_ignore_ascii_case(name.as_bytes()) => {
                    raw.extend_from_slice(n);
                    raw.extend_from_slice(format!(": {value}\r\n").as_bytes());
                    is_there = true;
                }
                _ => raw.extend_from_slice(line),
            }
        }
        self.raw = raw;
        is_there
    }

    /// True if the client waits for `100 Continue`.
    pub fn waits(&self) -> bool {
        self.has("expect", "100-continue")
    }

    /// True if the connection ends after this message.
    pub fn closes(&self) -> bool {
        let is_old = self.words().contains(&"HTTP/1.0");
        self.has("connection", "close") || (is_old && !self.has("connection", "keep-alive"))
    }

    /// The status of an answer.
    pub fn status(&self) -> io::Result<u16> {
        self.words()[1].parse().map_err(|_| malformed("an answer without a status"))
    }

    fn length(&self) -> io::Result<Option<u64>> {
        let length = self.header("content-length").map(str::parse);
        length.transpose().map_err(|_| malformed("a length that is no number"))
    }

    /// The body that follows a request.
    pub fn body_of_request(&self) -> io::Result<Body> {
        match self.has("transfer-encoding", "chunked") {
            true => Ok(Body::Chunks(Chunk::Size(0))),
            false => Ok(Body::Length(self.length()?.unwrap_or(0))),
        }
    }

    /// The body that follows an answer.
    pub fn body_of_answer(&self, method: &str) -> io::Result<Body> {
        let has_none = method == "HEAD" || matches!(self.status()?, 100..200 | 204 | 304);
        let is_chunked = self.has("transfer-encoding", "chunked");
        Ok(match self.length()? {
            _ if has_none => Body::Length(0),
            _ if is_chunked => Body::Chunks(Chunk::Size(0)),
            Some(length) => Body::Length(length),
            None => Body::ToEnd,
        })
    }
}

/// What is still to come of a body, and how it is known.
#[derive(PartialEq, Eq)]
pub enum Body {
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunks(Chunk),
    /// What comes until the connection ends.
    ToEnd,
    /// Nothing.
    Over,
}

/// What comes next in a body of chunks.
#[derive(PartialEq, Eq)]
pub enum Chunk {
    /// More of the digits of a size.
    Size(u64),
    /// The rest of the line after a size.
    Line(u64),
    /// So many bytes of data.
    Data(u64),
    /// The line end after data.
    DataEnd,
    /// More of a line after the last chunk; true if it is not empty.
    Trailer(bool),
}

impl Body {
    /// True if nothing is to come.
    pub fn is_over(&self) -> bool {
        [Self::Over, Self::Length(0)].contains(self)
    }

    /// Goes on over these bytes as far as the body reaches: how many are of it. `content` gets the content.
    pub fn advance(&mut self, bytes: &[u8], mut content: impl FnMut(&[u8])) -> io::Result<usize> {
        let mut at = 0;
        while at < bytes.len() && !self.is_over() {
            let (rest, byte) = (&bytes[at..], bytes[at]);
            let upto = |left: u64| rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let mut used = 1;
            *self = match *self {
                Self::Over => break,
                Self::ToEnd => {
                    used = rest.len();
                    content(rest);
                    Self::ToEnd
                }
                Self::Length(left) => {
                    used = upto(left);
                    content(&rest[..used]);
                    Self::Length(left - used as u64)
                }
                Self::Chunks(Chunk::Data(left)) => {
                    used = upto(left);
                    content(&rest[..used]);
                    match left - used as u64 {
                        0 => Self::Chunks(Chunk::DataEnd),
                        left => Self::Chunks(Chunk::Data(left)),
                    }
                }
                Self::Chunks(ref chunk) => chunk.next(byte)?,
            };
            at += used;
        }
        Ok(at)
    }

    /// The connection has ended: an error if the body has not.
    pub fn end(&mut self) -> io::Result<()> {
        match self {
            Self::ToEnd => *self = Self::Over,
            body if body.is_over() => {}
            _ => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
        Ok(())
    }

    /// Reads all of it, and gives the content to `content`.
    pub fn read(&mut self, from: &mut Reader, mut content: impl FnMut(&[u8])) -> io::Result<()> {
        while !self.is_over() {
            if from.filled().is_empty() && from.fill()? == 0 {
                self.end()?;
            }
            let used = self.advance(from.filled(), &mut content)?;
            from.consume(used);
        }
        Ok(())
    }
}

impl Chunk {
    /// What comes after a byte that is not data.
    fn next(&self, byte: u8) -> io::Result<Body> {
        Ok(Body::Chunks(match (self, byte) {
            (Self::Size(0) | Self::Line(0), b'\n') => Self::Trailer(false),
            (&(Self::Size(size) | Self::Line(size)), b'\n') => Self::Data(size),
            (&Self::Size(size), b';' | b'\r' | b' ') => Self::Line(size),
            (&Self::Size(size), _) => {
                let digit = char::from(byte).to_digit(16).ok_or_else(|| malformed("a chunk"))?;
                let more = size.checked_mul(16).and_then(|size| size.checked_add(digit.into()));
                Self::Size(more.ok_or_else(|| malformed("a chunk that is too long"))?)
            }
            (&Self::Line(size), _) => Self::Line(size),
            (Self::DataEnd, b'\n') => Self::Size(0),
            (Self::DataEnd, b'\r') => Self::DataEnd,
            (Self::Trailer(false), b'\n') => return Ok(Body::Over),
            (Self::Trailer(_), b'\n') => Self::Trailer(false),
            (&Self::Trailer(is_full), b'\r') => Self::Trailer(is_full),
            (Self::Trailer(_), _) => Self::Trailer(true),
            (Self::Data(_) | Self::DataEnd, _) => return Err(malformed("a chunk without its end")),
        }))
    }
}
