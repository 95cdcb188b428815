//! Faults, and the two tools that make them: which calls a verb makes, and what may become of each.

use crate::lab::{Lab, spawn};
use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Error(&'static str),
    /// A read that finds the end of the file.
    End,
    /// Half of it is read or written, honestly.
    Short,
    /// SIGKILL before it.
    Kill,
}

/// One fault.
#[derive(Debug, Clone)]
pub struct Fault {
    pub by: Tool,
    pub call: String,
    /// The how many-th: in each thread for strace, of all threads for the shim.
    pub count: u32,
    pub what: What,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {} {} {:?}", self.by, self.call, self.count, self.what)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    Strace,
    Shim,
}

/// What may become of a call of strace's, besides the end of the process before it.
fn errors(call: &str) -> &'static [What] {
    use What::{End, Error};
    match call {
        "openat2" => {
            &[Error("EIO"), Error("EMFILE"), Error("ENOSPC"), Error("EACCES"), Error("ENOSYS")]
        }
        "openat" => &[Error("EIO"), Error("EMFILE"), Error("ENOSPC"), Error("EACCES")],
        "read" | "pread64" => &[Error("EIO"), Error("EINTR"), End],
        "write" | "pwrite64" => &[Error("EIO"), Error("ENOSPC"), Error("EINTR")],
        "fsync" | "fdatasync" => &[Error("EIO"), Error("ENOSPC")],
        "sync_file_range" => &[Error("EIO"), Error("ENOSPC"), Error("ENOSYS")],
        "renameat2" => &[Error("EIO"), Error("ENOSPC"), Error("EINVAL")],
        "rename" | "linkat" | "mkdir" | "mkdirat" => &[Error("EIO"), Error("ENOSPC")],
        "unlink" | "unlinkat" | "rmdir" | "getdents64" => &[Error("EIO")],
        "ftruncate" => &[Error("EIO"), Error("ENOSPC"), Error("EINTR")],
        "fallocate" => &[Error("EIO"), Error("ENOSPC"), Error("EOPNOTSUPP")],
        "copy_file_range" | "fsetxattr" => &[Error("EIO"), Error("ENOSPC"), Error("EOPNOTSUPP")],
        "fgetxattr" | "flistxattr" | "fremovexattr" => &[Error("EIO"), Error("ENODATA")],
        "ioctl" => &[Error("EIO"), Error("ENOTTY"), Error("EOPNOTSUPP"), Error("ENOSPC")],
        "lseek" => &[Error("EIO"), Error("EINVAL")],
        "flock" => &[Error("EWOULDBLOCK"), Error("ENOLCK")],
        "fcntl" => &[Error("EAGAIN"), Error("EINVAL"), Error("EIO")],
        "statx" | "newfstatat" | "fstat" | "readlink" => &[Error("EIO"), Error("EACCES")],
        "fstatfs" | "statfs" => &[Error("EIO"), Error("ENOSYS")],
        "fchmod" | "fchown" => &[Error("EPERM"), Error("EIO")],
        "getcwd" => &[Error("ENOENT")],
        "fadvise64" => &[Error("EIO")],
        "clone3" | "clone" => &[Error("EAGAIN")],
        _ => &[],
    }
}

/// Whatever has to do with files. The others say nothing new.
fn is_killed_before(call: &str) -> bool {
    call == "close" || !errors(call).is_empty()
}

/// The same of the shim's. Whatever changes something is killed as well.
fn shim_errors(call: &str) -> &'static [What] {
    use What::{End, Error, Kill, Short};
    match call {
        "open64" | "openat2" => &[Error("EIO"), Error("EINTR")],
        "read" => &[Error("EIO"), Error("EINTR"), End, Short],
        "pread64" => &[Error("EIO"), Error("EINTR"), End, Short],
        "write" => &[Error("EIO"), Error("ENOSPC"), Error("EINTR"), Short, Kill],
        "pwrite64" => &[Error("EIO"), Error("ENOSPC"), Error("EINTR"), Short, Kill],
        "fsync" => &[Error("EIO"), Error("EINTR"), Kill],
        "ftruncate64" | "fallocate" => &[Error("EIO"), Error("EINTR"), Kill],
        "sync_file_range" => &[Error("EIO"), Error("ENOSPC"), Kill],
        "rename" | "renameat2" | "linkat" | "unlink" | "unlinkat" | "mkdir" | "mkdirat" => {
            &[Error("EIO"), Kill]
        }
        "mmap64" => &[Error("ENOMEM"), Error("ENODEV")],
        "madvise" => &[Error("EFAULT"), Error("EINVAL")],
        "lseek64" => &[Error("EIO"), Error("EINVAL")],
        "flock" => &[Error("ENOLCK")],
        "pthread_create" => &[Error("EAGAIN")],
        other => panic!("the shim knows no {other}"),
    }
}

fn number(error: &str) -> i32 {
    match error {
        "EIO" => libc::EIO,
        "EINTR" => libc::EINTR,
        "ENOSPC" => libc::ENOSPC,
        "ENOMEM" => libc::ENOMEM,
        "ENODEV" => libc::ENODEV,
        "EFAULT" => libc::EFAULT,
        "EINVAL" => libc::EINVAL,
        "ENOLCK" => libc::ENOLCK,
        "EAGAIN" => libc::EAGAIN,
        other => panic!("the shim knows no {other}"),
    }
}

/// A verb, ready to run, by another program if one is given.
pub type Begin<'a> = &'a dyn Fn(Option<Command>) -> Command;

/// The tools that are here, and the program that the shim is.
#[derive(Debug, Clone)]
pub struct Tools {
    shim: PathBuf,
    pub has_strace: bool,
    pub has_shim: bool,
}

impl Tools {
    /// Looks for them, and says what is missing.
    pub fn new(folder: &Path) -> (Self, Vec<String>) {
        let mut missing = Vec::new();
        let mut strace = Command::new("strace");
        strace.args(["-f", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=openat", "true"]);
        let has_strace = match output(&mut strace) {
            Ok(done) if done.status.success() => true,
            Ok(done) => {
                let why = String::from_utf8_lossy(&done.stderr);
                missing.push(format!("strace: {}", why.lines().next().unwrap_or_default()));
                false
            }
            Err(e) => {
                missing.push(format!("strace: {e}"));
                false
            }
        };
        let shim = folder.join("shim.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults_syscalls/shim.c");
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-o"]).arg(&shim).arg(source).arg("-ldl");
        let has_shim = output(&mut cc).is_ok_and(|done| done.status.success());
        if !has_shim {
            missing.push(
                "cc: short reads and writes, and the calls of other threads, are left out".into(),
            );
        }
        (Self { shim, has_strace, has_shim }, missing)
    }

    /// All faults of a verb that strace can make.
    pub fn of_strace(&self, lab: &Lab, begin: Begin<'_>) -> Vec<Fault> {
        let log = lab.aside("strace.log");
        let mut outer = Command::new("strace");
        outer.args(["-f", "-q", "-y", "-o"]).arg(&log);
        let ended = run(&mut begin(Some(outer)));
        assert!(ended.is_some_and(|o| o.status.success()), "it fails without a fault");
        let mut found: BTreeMap<(String, u32), bool> = BTreeMap::new();
        for (call, count, line) in calls(&std::fs::read_to_string(&log).unwrap()) {
            // What std and libraries look at: once is enough.
            let is_aside = ["/usr/", "/proc", "/sys/", "/etc/"].iter().any(|p| line.contains(p));
            *found.entry((call, count)).or_insert(true) &= is_aside;
        }
        let mut faults = Vec::new();
        for ((call, count), is_aside) in found {
            let whats = errors(&call);
            let whats = if is_aside { &whats[..1.min(whats.len())] } else { whats };
            let kill = [What::Kill];
            let kill = if is_aside || !is_killed_before(&call) { [].as_slice() } else { &kill };
            for &what in whats.iter().chain(kill) {
                faults.push(Fault { by: Tool::Strace, call: call.clone(), count, what });
            }
        }
        faults
    }

    /// All that the shim can make.
    pub fn of_shim(&self, lab: &Lab, begin: Begin<'_>) -> Vec<Fault> {
        let counts = lab.aside("counts");
        std::fs::remove_file(&counts).ok();
        let mut command = begin(None);
        command.env("LD_PRELOAD", &self.shim).env("IMGSNAP_FAULT_COUNTS", &counts);
        assert!(
            run(&mut command).is_some_and(|o| o.status.success()),
            "it fails with the shim alone"
        );
        let mut faults = Vec::new();
        for line in std::fs::read_to_string(&counts).unwrap().lines() {
            let (call, count) = line.split_once(' ').unwrap();
            for count in 1..=count.parse().unwrap() {
                let of = |&what| Fault { by: Tool::Shim, call: call.into(), count, what };
                faults.extend(shim_errors(call).iter().map(of));
            }
        }
        faults
    }

    /// Runs a verb with a fault. Gives what it hit besides, none if the verb did not come so far, and fails
    /// if it does not end.
    pub fn inject(&self, lab: &Lab, begin: Begin<'_>, fault: &Fault) -> Option<Hit> {
        let log = lab.aside("hit");
        std::fs::remove_file(&log).ok();
        let mut command = match fault.by {
            Tool::Strace => {
                let mut outer = Command::new("strace");
                outer.args(["-f", "-q", "-y", "-o"]).arg(&log);
                // With it, it is four times as fast, and signals do not arrive.
                outer.args((fault.what != What::Kill).then_some("--seccomp-bpf"));
                outer.arg("-e").arg(format!("trace={}", fault.call));
                outer.arg("-e").arg(format!("inject={}", expression(fault)));
                begin(Some(outer))
            }
            Tool::Shim => {
                let what = match fault.what {
                    What::Error(error) => number(error).to_string(),
                    What::End => "end".into(),
                    What::Short => "short".into(),
                    What::Kill => "kill".into(),
                };
                let mut command = begin(None);
                command.env("IMGSNAP_FAULT", format!("{} {} {what}", fault.call, fault.count));
                command.env("LD_PRELOAD", &self.shim).env("IMGSNAP_FAULT_HIT", &log);
                command
            }
        };
        let output = run(&mut command);
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let is_killed = output.as_ref().is_some_and(|o| o.status.signal() == Some(libc::SIGKILL));
        let lines: Vec<&str> = match (fault.by, fault.what) {
            (Tool::Shim, _) => text.lines().collect(),
            (Tool::Strace, What::Kill) => {
                let mut calls = text.lines().filter(|l| l.contains('(') && !l.contains("+++"));
                calls.next_back().filter(|_| is_killed).into_iter().collect()
            }
            (Tool::Strace, _) => text.lines().filter(|l| l.contains("(INJECTED)")).collect(),
        };
        let hit = (!lines.is_empty() || output.is_none()).then(|| lines.join("; "));
        hit.map(|place| Hit { place, output })
    }
}

/// A fault that was made.
pub struct Hit {
    /// The call, as the tool wrote it down.
    pub place: String,
    /// None if it did not end.
    pub output: Option<Output>,
}

fn expression(fault: &Fault) -> String {
    let what = match fault.what {
        What::Error(error) => format!("error={error}"),
        What::End => "retval=0".into(),
        What::Kill => "signal=KILL".into(),
        What::Short => panic!("strace can only lie"),
    };
    format!("{}:{what}:when={}", fault.call, fault.count)
}

fn output(command: &mut Command) -> std::io::Result<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn()?.wait_with_output()
}

/// Runs it to its end; none if it has none. That is no limit of time for the work: it takes milliseconds.
pub fn run(command: &mut Command) -> Option<Output> {
    let mut child = spawn(command);
    let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let readers = [reader(out), reader(err)];
    let deadline = Instant::now() + Duration::from_secs(120);
    let mut pause = Duration::from_micros(500);
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break Some(status);
        }
        if Instant::now() > deadline {
            kill(&mut child);
            break None;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(5));
    };
    let [stdout, stderr] = readers.map(|reader| reader.join().unwrap());
    status.map(|status| Output { status, stdout, stderr })
}

fn reader(mut from: impl std::io::Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

/// With whatever it has started itself.
fn kill(child: &mut Child) {
    let id = child.id();
    let children =
        std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
    for id in children.split_whitespace() {
        let id = nix::unistd::Pid::from_raw(id.parse().unwrap());
        nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGKILL).ok();
    }
    child.kill().ok();
    child.wait().ok();
}

/// The calls that a log of strace tells of, in each thread: name, the how many-th, and the line. Not those by
/// which the program is loaded, nor, of other threads, those that cannot be told from them.
fn calls(log: &str) -> Vec<(String, u32, &str)> {
    let mut counts: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    let mut loading: Option<BTreeMap<&str, u32>> = None;
    let mut calls = Vec::new();
    for line in log.lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        let Some((call, _)) = rest.split_once('(') else { continue };
        if rest.starts_with(['<', '+', '-']) {
            continue;
        }
        if loading.is_none() && rest.starts_with("rt_sigaction(SIGINT") {
            // The first thing that it does itself.
            loading = Some(counts.iter().map(|((_, call), count)| (*call, *count)).collect());
        }
        let count = counts.entry((thread, call)).or_default();
        *count += 1;
        if loading.as_ref().is_some_and(|calls| *count > calls.get(call).copied().unwrap_or(0)) {
            calls.push((call.to_owned(), *count, rest));
        }
    }
    assert!(!calls.is_empty(), "strace tells of no calls");
    calls
}
