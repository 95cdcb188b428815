//! Serves a folder to a host that uses it by ssh: each request is checked, and carried out as if it were one
//! of a program of this host.

mod allowed;
mod session;
pub mod types;

use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::folder::resolve;
use crate::base::uri::Shown;
use crate::ops::serve::session::Session;
use crate::ops::serve::types::ServeRequest;
use crate::store::ssh::{
    Answer, Ask, Outgoing, PROTOCOL, Request, Told, read_message, write_message,
};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

/// How many requests are carried out at the same time that do not have to be in order.
const WORKERS: usize = 8;

/// Serves until the input ends.
///
/// # Errors
/// `InvalidInput` if what comes is not what a host says; `Io` if the output cannot be written to.
pub fn serve_store(
    request: &ServeRequest,
    mut input: impl Read,
    output: impl Write + Send,
) -> Result<()> {
    let output = Output(Mutex::new(output));
    let failed = |e| Error::io("cannot read the request", e);
    let Some((first, _)) = read_message::<Request>(&mut input).map_err(failed)? else {
        return Ok(());
    };
    let session = match begin(request, &first.ask) {
        Ok(session) => session,
        Err(e) => {
            output.answer(first.id, &Err(e), &[])?;
            return Ok(());
        }
    };
    output.answer(first.id, &Ok(Told::Done), &[])?;
    let session = &session;
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(2 * WORKERS);
        let work = Arc::new(Mutex::new(receiver));
        for _ in 0..WORKERS {
            let (work, output) = (work.clone(), &output);
            scope.spawn(move || carry_out(&work, session, output));
        }
        loop {
            let (Request { id, ask }, body) = match read_message(&mut input) {
                Ok(Some(message)) => message,
                // Whoever waits for what it held gets it, also if an answer to it is never read.
                Ok(None) => {
                    session.let_go();
                    return Ok(());
                }
                Err(e) => {
                    session.let_go();
                    return Err(failed(e));
                }
            };
            match ask {
                Ask::Ping => {}
                // One after the other, as they come.
                Ask::Write { upload } => {
                    if let Err(e) = session.write(upload, &body) {
                        output.answer(upload, &Err(e), &[])?;
                    }
                }
                Ask::Begin { .. } | Ask::Publish { .. } | Ask::Abort { .. } => {
                    output.answer(id, &session.upload(id, ask), &[])?;
                }
                // Whoever carries them out has ended only if all of them have.
                other => best_effort(sender.send((id, other, body))),
            }
        }
    })
}

/// Requests that can be carried out in any order: who asks waits for the answer.
fn carry_out(
    work: &Mutex<Receiver<(u64, Ask, Vec<u8>)>>,
    session: &Session,
    output: &Output<impl Write>,
) {
    loop {
        let next = work.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((id, ask, body)) = next else { return };
        let mut read = Vec::new();
        let told = session.told(id, ask, &body, &mut read);
        // The input ends as well where nobody listens.
        best_effort(output.answer(id, &told, &read));
    }
}

/// Where answers go, one at a time.
struct Output<W>(Mutex<W>);

impl<W: Write> Output<W> {
    fn answer(&self, id: u64, told: &Result<Told>, body: &[u8]) -> Result<()> {
        let told = match told {
            Ok(told) => Ok(told.clone()),
            Err(e) => Err(e.into()),
        };
        let body = if told.is_ok() { body } else { &[] };
        let mut output = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = Outgoing { head: &Answer { id, told }, body };
        write_message(&mut *output, &answer)
            .and_then(|()| output.flush())
            .map_err(|e| Error::io("cannot answer", e))
    }
}

fn begin(request: &ServeRequest, ask: &Ask) -> Result<Session> {
    let Ask::Hello { version, path } = ask else {
        return Err(Error::new(ErrorKind::InvalidInput, "no greeting"));
    };
    if *version != PROTOCOL {
        let what =
            format!("unsupported protocol version {version} (this program supports {PROTOCOL})");
        return Err(Error::new(ErrorKind::Unsupported, what)
            .hint("install the same version of imgsnap on both hosts"));
    }
    let asked = PathBuf::from(path);
    let path = match &request.path {
        Some(only) if !is_same(only, &asked) => {
            let what =
                format!("this key gives access to {} only, not to {}", only.shown(), asked.shown());
            return Err(Error::new(ErrorKind::Auth, what));
        }
        Some(only) => std::path::absolute(only).map_err(|e| Error::os("use", only.shown(), e))?,
        None => asked,
    };
    if path.exists() {
        resolve(&path)?;
    }
    Session::new(&path, request.append_only)
}

fn is_same(one: &Path, other: &Path) -> bool {
    let absolute = |path: &Path| std::path::absolute(path).ok();
    absolute(one).is_some_and(|one| Some(one.components().as_path()) == absolute(other).as_deref())
}
