//! `serve`.

use super::args::Serve;
use super::exit;
use imgsnap::base::error::{Error, Result};
use imgsnap::{ServeRequest, serve_store};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, BufReader, Read, Stdin};
use std::os::fd::AsFd;
use std::process::ExitCode;

/// A host says every 20 seconds that it is there; the locks of one that does not are given up.
const SILENCE_MILLISECONDS: i32 = 120_000;

pub fn run(verb: &Serve) -> Result<ExitCode> {
    let Serve::Store { append_only, path, .. } = verb;
    let request = ServeRequest::new().append_only(*append_only).path(path.clone());
    let failed = |e| Error::io("cannot use the standard output", e);
    // Unbuffered: whatever is printed by mistake goes elsewhere.
    let output = std::fs::File::from(io::stdout().as_fd().try_clone_to_owned().map_err(failed)?);
    serve_store(&request, BufReader::with_capacity(256 << 10, Timely(io::stdin())), output)?;
    Ok(exit::DONE)
}

/// What a host says, as long as it says something.
struct Timely(Stdin);

impl Read for Timely {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut input = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        if poll(
            &mut input,
            PollTimeout::try_from(SILENCE_MILLISECONDS).unwrap_or(PollTimeout::NONE),
        )? == 0
        {
            let why = "the client stopped responding";
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
        // Not by way of its buffer, which a poll does not see.
        Ok(nix::unistd::read(self.0.as_fd(), buffer)?)
    }
}
