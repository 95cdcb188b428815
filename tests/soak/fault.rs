//! What is done to a command: signals at random moments, calls that fail, limits.

use crate::random::Random;
use nix::sys::signal::Signal;
use std::path::Path;
use std::process::Command;

#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    None,
    /// After such a part, in thousandths, of the longest run of that verb so far.
    Signal(Signal, u64),
    /// A call that fails, or in which the process dies.
    Inject {
        call: &'static str,
        how: String,
    },
    /// No file gets longer than that many bytes. True: by an error, not by a signal.
    FileSize(u64, bool),
    /// That many open files.
    Descriptors(u64),
}

/// Calls, and up to which one of them in a thread it is worth to fail. The loader's own come first: what
/// fails before the program has begun says nothing about it.
const CALLS: [(&str, u64, u64); 27] = [
    ("fsync", 1, 10),
    ("fsync", 1, 10),
    ("write", 1, 8),
    ("write", 1, 8),
    ("pwrite64", 1, 12),
    ("pread64", 4, 22),
    ("read", 6, 28),
    ("openat", 5, 44),
    ("renameat2", 1, 3),
    ("renameat2", 1, 3),
    ("openat2", 1, 30),
    ("openat2", 1, 60),
    ("unlinkat", 1, 3),
    ("unlinkat", 1, 3),
    ("ftruncate", 1, 1),
    ("fallocate", 1, 4),
    ("flock", 1, 4),
    ("fcntl", 1, 46),
    ("ioctl", 1, 5),
    ("lseek", 1, 8),
    ("statx", 1, 54),
    ("getdents64", 1, 8),
    ("linkat", 1, 1),
    ("mkdirat", 1, 1),
    ("fstat", 1, 20),
    ("madvise", 1, 2),
    ("fsetxattr", 1, 1),
];

const ERRORS: [&str; 6] = ["EIO", "EIO", "ENOSPC", "EINTR", "EACCES", "EINVAL"];

/// The tools that faults need.
#[derive(Clone, Copy)]
pub struct Tools {
    pub strace: bool,
    pub prlimit: bool,
}

impl Tools {
    pub fn find() -> Self {
        let works = |name: &str, args: &[&str]| {
            let done = Command::new(name).args(args).output();
            done.is_ok_and(|done| done.status.success())
        };
        let traced = ["-f", "-o", "/dev/null", "-e", "trace=fsync", "true"];
        let limited = ["--nofile=64", "env", "--ignore-signal=XFSZ", "true"];
        Self { strace: works("strace", &traced), prlimit: works("prlimit", &limited) }
    }
}

impl Fault {
    /// None in about half of the steps.
    pub fn some(random: &mut Random, tools: Tools) -> Self {
        let (kind, more, number) = (random.below(100), random.below(100), random.next());
        match kind {
            0..30 => {
                let signal = match more {
                    0..70 => Signal::SIGKILL,
                    70..85 => Signal::SIGTERM,
                    _ => Signal::SIGINT,
                };
                Self::Signal(signal, number % 1250)
            }
            30..52 if tools.strace => {
                let (call, first, last) = CALLS[(number % CALLS.len() as u64) as usize];
                let mut of = Random(number);
                let when = first + of.below(last - first + 1);
                let error = ERRORS[of.below(ERRORS.len() as u64) as usize];
                let how = match more {
                    0..35 => format!("signal=KILL:when={when}"),
                    // From then on, as of a disk that has failed. Interrupted for ever is nothing.
                    35..50 if error != "EINTR" => format!("error={error}:when={when}+"),
                    _ => format!("error={error}:when={when}"),
                };
                Self::Inject { call, how }
            }
            52..55 if tools.prlimit => Self::FileSize(1 << (8 + number % 16), more < 50),
            55..57 if tools.prlimit => Self::Descriptors(4 + number % 40),
            _ => Self::None,
        }
    }

    /// Where a live image is written, which is a small part of a rollback.
    pub fn in_writing(random: &mut Random, tools: Tools) -> Self {
        let (call, number) = (random.below(4), random.next());
        if !tools.strace {
            return Self::Signal(Signal::SIGKILL, 400 + number % 600);
        }
        let (call, last) =
            [("pwrite64", 12), ("pwrite64", 3), ("fallocate", 3), ("fsync", 12)][call as usize];
        let when = 1 + number % last;
        let how = if number & 1 << 20 == 0 { "signal=KILL" } else { "error=EIO" };
        Self::Inject { call, how: format!("{how}:when={when}") }
    }

    /// The command that runs `program` under this fault.
    pub fn command(&self, program: &Path) -> Command {
        let around = |name: &str, args: &[String]| {
            let mut command = Command::new(name);
            command.args(args).arg(program);
            command
        };
        match self {
            Self::None | Self::Signal(..) => Command::new(program),
            Self::Inject { call, how } => {
                let quiet = ["-f", "-qqq", "-o", "/dev/null", "-e"];
                let mut args: Vec<String> = quiet.map(String::from).to_vec();
                args.push(format!("trace={call}"));
                args.extend(["-e".into(), format!("inject={call}:{how}")]);
                around("strace", &args)
            }
            Self::FileSize(bytes, is_error) => {
                let mut args = vec![format!("--fsize={bytes}"), "env".into()];
                args.extend(is_error.then(|| "--ignore-signal=XFSZ".into()));
                around("prlimit", &args)
            }
            Self::Descriptors(count) => around("prlimit", &[format!("--nofile={count}")]),
        }
    }

    /// True if the process may end by that signal.
    pub fn may_end_by(&self, signal: i32) -> bool {
        match self {
            Self::Signal(sent, _) => *sent as i32 == signal,
            Self::Inject { how, .. } => how.starts_with("signal") && signal == libc::SIGKILL,
            Self::FileSize(_, is_error) => !is_error && signal == libc::SIGXFSZ,
            Self::None | Self::Descriptors(_) => false,
        }
    }

    /// True if even the line that says what is wrong may be lost.
    pub fn may_silence(&self) -> bool {
        let call = match self {
            Self::Inject { call, .. } => call,
            Self::FileSize(..) => "write",
            _ => "none",
        };
        call == "write"
    }

    pub fn describe(&self) -> String {
        match self {
            Self::None => String::new(),
            Self::Signal(signal, part) => format!(" [{signal} at {part}/1000]"),
            Self::Inject { call, how } => format!(" [{call}:{how}]"),
            Self::FileSize(bytes, is_error) => {
                format!(" [fsize {bytes}{}]", if *is_error { ", error" } else { "" })
            }
            Self::Descriptors(count) => format!(" [nofile {count}]"),
        }
    }
}
