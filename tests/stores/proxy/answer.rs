//! The way back: answers as they come, altered, or made here.

use super::life::Reader;
use super::message::{Body, Head};
use super::relay::{Entry, pass};
use super::{Fault, Shared};
use std::io::{self, Cursor, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// What becomes of the client's connection.
pub enum Next {
    /// It may make another request.
    Request,
    /// The same, but the connection to the server is of no use.
    Fresh,
    /// It is closed.
    Close,
    /// It is closed while something in it is unread.
    Reset,
}

/// Gives the answer that a fault wants in place of the server's.
pub fn tell(entry: &Entry, mut client: &TcpStream, method: &str, fault: Fault) -> io::Result<Next> {
    let status = match fault {
        Fault::Status(status) | Fault::StatusAfter(status) => status,
        _ => 200,
    };
    let (reason, code) = match status {
        200 => ("OK", "InternalError"),
        400 => ("Bad Request", "RequestTimeout"),
        403 => ("Forbidden", "AccessDenied"),
        404 => ("Not Found", "NoSuchKey"),
        408 => ("Request Timeout", "RequestTimeout"),
        409 => ("Conflict", "ConditionalRequestConflict"),
        412 => ("Precondition Failed", "PreconditionFailed"),
        429 => ("Too Many Requests", "TooManyRequests"),
        503 => ("Service Unavailable", "SlowDown"),
        _ => ("Internal Server Error", "InternalError"),
    };
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>The proxy made this.\
         </Message><RequestId>PROXY</RequestId></Error>"
    );
    let is_bare = matches!(status, 204 | 304);
    let mut answer = format!("HTTP/1.1 {status} {reason}\r\nContent-Type: application/xml\r\n");
    if !is_bare {
        answer += &format!("Content-Length: {}\r\n", text.len());
    }
    answer += "x-amz-request-id: PROXY\r\n\r\n";
    let body = if is_bare || method == "HEAD" { "" } else { &text };
    entry.status(status);
    entry.answered(body.len() as u64, true);
    client.write_all((answer + body).as_bytes())?;
    Ok(Next::Request)
}

/// Reads the server's answer, and gives the client what a fault makes of it.
pub fn pass_back(
    shared: &Shared,
    entry: &Entry,
    upstream: &mut Reader,
    mut client: &TcpStream,
    method: &str,
    fault: Fault,
) -> io::Result<Next> {
    let mut head = loop {
        let head = Head::read(upstream)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        if head.status()? >= 200 {
            break head;
        }
        client.write_all(&head.raw)?;
    };
    let mut body = head.body_of_answer(method)?;
    match fault {
        Fault::Unanswered | Fault::StatusAfter(_) | Fault::OkWithErrorAfter => {
            let closes = head.closes() || matches!(body, Body::ToEnd);
            body.read(upstream, |_| {})?;
            if fault == Fault::Unanswered {
                return Ok(Next::Reset);
            }
            shared.travel()?;
            tell(entry, client, method, fault)?;
            return Ok(if closes { Next::Fresh } else { Next::Request });
        }
        Fault::WrongETag if !head.replace("etag", "\"bad0bad0bad0bad0bad0bad0bad0bad0\"") => {
            entry.undone()
        }
        _ => {}
    }
    shared.travel()?;
    entry.status(head.status()?);
    if let Some(change) = Change::of(fault) {
        return change.pass(shared, entry, upstream, client, head, body);
    }
    let next = next_after(&head, &body);
    let note = |_: &[u8], bytes, is_last| entry.answered(bytes, is_last);
    pass(shared, upstream, &mut body, Some(client), &head.raw, note)?;
    Ok(next)
}

/// What follows an answer that is passed on to its end.
fn next_after(head: &Head, body: &Body) -> Next {
    if head.closes() || matches!(body, Body::ToEnd) { Next::Close } else { Next::Request }
}

/// What is to be changed in an answer's body.
struct Change {
    end: u64,
    // The connection ends there; or else the body does.
    is_cut: bool,
    flip: Option<u64>,
    stall: Option<Duration>,
}

impl Change {
    fn of(fault: Fault) -> Option<Self> {
        let none = Self { end: u64::MAX, is_cut: false, flip: None, stall: None };
        Some(match fault {
            Fault::CutBody(end) => Self { end, is_cut: true, ..none },
            Fault::ShortBody(end) => Self { end, ..none },
            Fault::FlipByte(at) => Self { flip: Some(at), ..none },
            Fault::Stall(long) => Self { stall: Some(long), ..none },
            _ => return None,
        })
    }

    fn pass(
        self,
        shared: &Shared,
        entry: &Entry,
        upstream: &mut Reader,
        mut client: &TcpStream,
        mut head: Head,
        mut body: Body,
    ) -> io::Result<Next> {
        let next = next_after(&head, &body);
        let is_chunked = matches!(body, Body::Chunks(_));
        // What does not say how long it is has to be read first.
        let mut whole = Vec::new();
        let (total, source): (u64, &mut dyn Read) = match body {
            Body::Length(length) => (length, upstream),
            _ => {
                body.read(upstream, |bytes| whole.extend_from_slice(bytes))?;
                (whole.len() as u64, &mut Cursor::new(whole))
            }
        };
        let end = self.end.min(total);
        let flip = self.flip.and_then(|at| at.checked_rem(total));
        let stall = self.stall.filter(|_| total > 0);
        let is_short = end < total;
        if !is_short && flip.is_none() && stall.is_none() {
            entry.undone();
        }
        if is_short && !self.is_cut {
            head.replace("content-length", &end.to_string());
        }
        entry.answered(0, end == 0);
        client.write_all(&head.raw)?;
        let (mut at, half) = (0, total / 2);
        let mut buffer = vec![0; 64 << 10];
        while at < end {
            if let Some(long) = stall
                && at == half
            {
                shared.life.sleep(long)?;
            }
            let upto = if stall.is_some() && at < half { half } else { end };
            let most = shared.piece().min(buffer.len()) as u64;
            let room = &mut buffer[..most.min(upto - at) as usize];
            let bytes = source.read(room)?;
            if bytes == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(flip) = flip.and_then(|flip| flip.checked_sub(at))
                && flip < bytes as u64
            {
                buffer[flip as usize] ^= 1;
            }
            at += bytes as u64;
            shared.pace(bytes)?;
            entry.answered(bytes as u64, at == end);
            match is_chunked {
                true => {
                    let start = format!("{bytes:x}\r\n");
                    client.write_all(&[start.as_bytes(), &buffer[..bytes], b"\r\n"].concat())?;
                }
                false => client.write_all(&buffer[..bytes])?,
            }
        }
        if is_short && self.is_cut {
            return Ok(Next::Close);
        }
        if is_chunked {
            client.write_all(b"0\r\n\r\n")?;
        }
        Ok(match next {
            // The rest is still to come there.
            Next::Request if is_short => Next::Fresh,
            next => next,
        })
    }
}
