//! One command of `virsh`, from its start to its end.

use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::events::Context;
use crate::base::message::{Action, message};
use crate::base::sys::bind_child;
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread::{ScopedJoinHandle, scope, sleep};
use std::time::{Duration, Instant};

/// How long an answer may take that only tells something.
const ANSWER: Duration = Duration::from_secs(30);
/// How long something may take that is done.
const CHANGE: Duration = Duration::from_secs(180);
/// How often it is asked whether a command has ended.
const STEP: Duration = Duration::from_millis(1);
/// The most that an answer may have, in bytes. The XML of a machine is some kilobytes.
const MOST_BYTES: u64 = 16 << 20;
/// The program.
const PROGRAM: &str = "virsh";
/// How a message of it begins.
const MARK: &str = "error: ";

/// A hypervisor that is asked by `virsh`.
#[derive(Debug, Clone)]
pub struct Virsh {
    connect: Option<String>,
}

impl Virsh {
    /// With the URI of the hypervisor; otherwise the one that libvirt would choose.
    pub fn new(connect: Option<&str>) -> Self {
        Self { connect: connect.map(str::to_owned) }
    }

    /// Asks something, and gives what it says.
    ///
    /// # Errors
    /// `Unsupported` if there is no `virsh`; `Unavailable` if no libvirt answers, `Auth` if it denies that;
    /// `Interrupted`; `Io` with what it refuses.
    pub fn ask(&self, arguments: &[&str], context: &Context) -> Result<String> {
        self.run(arguments, ANSWER, Some(context))
    }

    /// Lets something be done, to its end.
    ///
    /// # Errors
    /// As of [`Self::ask`].
    pub fn change(&self, arguments: &[&str]) -> Result<String> {
        self.run(arguments, CHANGE, None)
    }

    /// The same within a time, with what it tells of what was done.
    ///
    /// # Errors
    /// As of [`Self::ask`].
    pub fn change_within(&self, arguments: &[&str], limit: Duration) -> Result<String> {
        self.run_by(self.talkative(), arguments, limit, None)
    }

    /// The command line before the words of a command.
    pub fn talkative(&self) -> Command {
        let mut command = Command::new(PROGRAM);
        if let Some(uri) = &self.connect {
            command.args(["-c", uri]);
        }
        // What it says is read by a program.
        command.env("LC_ALL", "C").env_remove("LANGUAGE").env_remove("VIRSH_DEBUG");
        command.current_dir("/").stdin(Stdio::null());
        command
    }

    fn run(
        &self,
        arguments: &[&str],
        limit: Duration,
        context: Option<&Context>,
    ) -> Result<String> {
        let mut command = self.talkative();
        command.arg("-q");
        self.run_by(command, arguments, limit, context)
    }

    fn run_by(
        &self,
        mut command: Command,
        arguments: &[&str],
        limit: Duration,
        context: Option<&Context>,
    ) -> Result<String> {
        let verb = arguments.first().copied().unwrap_or_default();
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Ctrl-C is for us, who see to it that nothing is left half done.
        command.process_group(0);
        bind_child(&mut command, Vec::new(), libc::SIGKILL);
        let mut child = command.spawn().map_err(|e| not_started(command.get_program(), e))?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let (ended, out, err) = scope(|scope| {
            let out = out.map(|pipe| scope.spawn(|| all_of(pipe)));
            let err = err.map(|pipe| scope.spawn(|| all_of(pipe)));
            let ended = await_end(&mut child, limit, context);
            (ended, taken(out), taken(err))
        });
        let failed =
            |e: io::Error| Error::io(format!("cannot read the output of \"virsh {verb}\""), e);
        let (is_ok, out, err) = (ended?, out.map_err(failed)?, err.map_err(failed)?);
        match is_ok {
            Some(true) => Ok(out),
            Some(false) => Err(refused(verb, &err)),
            None => {
                let seconds = limit.as_secs();
                let what = format!("\"virsh {verb}\" has not ended after {seconds} s");
                Err(Error::new(ErrorKind::Unavailable, what)
                    .hint("check that libvirt and the virtual machine run"))
            }
        }
    }
}

/// True if it ended well; none if it did not end, and was ended by us.
fn await_end(
    child: &mut Child,
    limit: Duration,
    context: Option<&Context>,
) -> Result<Option<bool>> {
    let begun = Instant::now();
    let failed = |e| Error::io("cannot wait for virsh", e);
    loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            return Ok(Some(status.success()));
        }
        let stopped = context.map_or(Ok(()), Context::check);
        if stopped.is_err() || begun.elapsed() > limit {
            best_effort(child.kill());
            child.wait().map_err(failed)?;
            return stopped.map(|()| None);
        }
        sleep(STEP);
    }
}

fn all_of(pipe: impl Read) -> io::Result<String> {
    let mut bytes = Vec::new();
    let mut pipe = pipe.take(MOST_BYTES);
    pipe.read_to_end(&mut bytes)?;
    // Whatever follows is read by nobody, and it must not wait for us.
    io::copy(pipe.get_mut(), &mut io::sink())?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn taken(thread: Option<ScopedJoinHandle<'_, io::Result<String>>>) -> io::Result<String> {
    let gone = || Err(io::Error::other("a thread of ours has ended"));
    thread.map_or(Ok(String::new()), |thread| thread.join().unwrap_or_else(|_| gone()))
}

fn not_started(program: &OsStr, error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::NotFound {
        let what = "virsh, which is needed to use libvirt, is not installed";
        return Error::new(ErrorKind::Unsupported, what).hint("install it (libvirt-clients)");
    }
    Error::os("start", program.to_string_lossy(), error)
}

/// An answer that makes no sense.
pub(super) fn nonsense(verb: &str) -> Error {
    let what = format!("unexpected output of \"virsh {verb}\"");
    Error::new(ErrorKind::Io, what).hint("check its version")
}

/// What `virsh` says when it ends with an error, in one line.
fn refused(verb: &str, said: &str) -> Error {
    let lines = said.lines().filter_map(|line| line.trim().strip_prefix(MARK));
    let said: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
    let said = match said.as_slice() {
        [] => "no message".to_owned(),
        said => said.join(": "),
    };
    let said = said.escape_debug().to_string().replace("\\'", "'").replace("\\\"", "\"");
    if !said.starts_with("failed to connect to the hypervisor") {
        return Error::new(ErrorKind::Io, format!("\"virsh {verb}\" failed: {said}"));
    }
    let what = format!("libvirt does not answer: {said}");
    let is_denied = ["authentication", "access denied", "Permission denied"];
    match is_denied.iter().any(|word| said.contains(word)) {
        true => Error::new(ErrorKind::Auth, what)
            .hint("run as root, or as a member of the group libvirt"),
        false => Error::new(ErrorKind::Unavailable, what)
            .hint(message!["start libvirtd, or choose the hypervisor, and ", Action::Retry]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_virsh_says_becomes_one_line_of_a_kind() {
        let cases = [
            (
                "error: failed to get domain 'x'\n",
                ErrorKind::Io,
                "\"virsh v\" failed: failed to get domain 'x'",
            ),
            (
                "\nerror: a\nerror: b: \u{1b}[1m\n\n",
                ErrorKind::Io,
                "\"virsh v\" failed: a: b: \\u{1b}[1m",
            ),
            ("", ErrorKind::Io, "\"virsh v\" failed: no message"),
            (
                "error: failed to connect to the hypervisor\nerror: Failed to connect socket to '/x': \
                 No such file or directory\n",
                ErrorKind::Unavailable,
                "libvirt does not answer: failed to connect to the hypervisor: Failed to connect \
                 socket to '/x': No such file or directory; start libvirtd, or choose the hypervisor, \
                 and try again",
            ),
            (
                "error: failed to connect to the hypervisor\nerror: Failed to connect socket to '/x': \
                 Permission denied\n",
                ErrorKind::Auth,
                "libvirt does not answer: failed to connect to the hypervisor: Failed to connect \
                 socket to '/x': Permission denied; run as root, or as a member of the group libvirt",
            ),
        ];
        for (said, kind, line) in cases {
            let error = refused("v", said);
            assert_eq!((error.kind(), error.to_string().as_str()), (kind, line));
        }
    }
}
