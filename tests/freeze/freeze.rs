//! What is frozen is thawed, and what is stopped goes on, whoever is killed, and when.
//!
//! The process that freezes is this test program, started again with `IMGSNAP_FREEZE` set: `helper`.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;
use imgsnap::machine::{Freeze, FreezeOutcome, GuardState, Window};
use imgsnap::{Context, ErrorKind};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Longer than a test may take: nothing is undone because of it.
const NEVER: Duration = Duration::from_secs(3600);
/// Long enough to freeze within it on a busy machine.
const SOON: Duration = Duration::from_secs(3);

fn ext4(lab: &Lab) -> Result<(Loop, Mount), String> {
    root()?;
    tools(&["fsfreeze"])?;
    mounted(lab, "mke2fs", &["-q", "-F", "-t", "ext4"], 24)
}

/// Another file system, on a loop device over a file in the first one.
fn stacked(lab: &Lab) -> Result<(Loop, Mount), String> {
    let file = lab.path("mnt/upper");
    make(&file, 8 * MIB);
    try_tool("mke2fs", &["-q", "-F", "-t", "ext4", &file])?;
    let device = Loop::new(&[], &file)?;
    let mount = Mount::new(&[&device.device], &lab.path("upper"))?;
    Ok((device, mount))
}

fn mounts(paths: &[&str]) -> Vec<Freeze> {
    paths.iter().map(|path| Freeze::Mount(path.into())).collect()
}

/// Opens a window, which starts processes.
fn open(freezes: &[Freeze], limit: Duration) -> imgsnap::Result<Window> {
    let _alone = forking();
    Window::open(freezes, None, None, limit, &[], &Context::silent())
}

fn frozen(freezes: &[Freeze], limit: Duration) -> Window {
    let mut window = open(freezes, limit).unwrap();
    window.freeze(&Context::silent()).unwrap();
    window
}

/// A program that writes to a file system.
fn writer(mount: &str) -> Started {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("echo {0} >{mount}/{0}", "written")]);
    Started::spawn(command)
}

/// It waits in the kernel.
#[track_caller]
fn is_held(writer: &Started) {
    assert!(wait_until(|| state_of(writer.id()) == Some('D')), "{:?}", state_of(writer.id()));
}

#[track_caller]
fn gets_through(mut writer: Started) {
    assert!(wait_until(|| writer.is_over()), "the file system is frozen");
    assert_eq!(writer.wait().status.code(), Some(0));
}

#[track_caller]
fn can_be_written(mount: &str) {
    gets_through(writer(mount));
}

/// Processes that guard, and have `path` open.
fn guards_of(path: &str) -> Vec<u32> {
    let ids = names_in("/proc").into_iter().filter_map(|name| name.parse().ok());
    let is_guard = |id: &u32| {
        let name = std::fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
        let entries = std::fs::read_dir(format!("/proc/{id}/fd")).into_iter().flatten().flatten();
        let mut files = entries.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        name.trim() == "imgsnap-guard" && files.any(|file| file == Path::new(path))
    };
    ids.filter(is_guard).collect()
}

#[track_caller]
fn are_gone(guards: &[u32]) {
    let is_gone = |id: &u32| matches!(state_of(*id), None | Some('Z' | 'X'));
    assert!(wait_until(|| guards.iter().all(is_gone)), "a guard lives on");
}

fn kill_it(id: u32) {
    kill(Pid::from_raw(i32::try_from(id).unwrap()), Signal::SIGKILL).unwrap();
}

/// Not a test of its own: what is killed. It does what `IMGSNAP_FREEZE` says to the file systems in
/// `IMGSNAP_FREEZE_MOUNTS`, or the socket in `IMGSNAP_FREEZE_SOCKET`.
#[test]
fn helper() {
    let Ok(mode) = std::env::var("IMGSNAP_FREEZE") else { return };
    let text = |name: &str| std::env::var(name).unwrap_or_default();
    let (context, said) = (Context::silent(), text("IMGSNAP_FREEZE_SAYS"));
    let mut all = String::new();
    let mut say = |what: &str| {
        all += what;
        std::fs::write(format!("{said}.new"), &all).unwrap();
        std::fs::rename(format!("{said}.new"), &said).unwrap();
    };
    let named = text("IMGSNAP_FREEZE_MOUNTS");
    let freezes: Vec<Freeze> =
        named.split(':').filter(|m| !m.is_empty()).map(|m| Freeze::Mount(m.into())).collect();
    let milliseconds = text("IMGSNAP_FREEZE_LIMIT").parse().map_or(NEVER, Duration::from_millis);
    let mut turns = 0;
    loop {
        let (mut machine, mut agent) = (None, None);
        match mode.as_str() {
            "machine" => {
                let socket = UnixStream::connect(text("IMGSNAP_FREEZE_SOCKET")).unwrap();
                machine = Some(OwnedFd::from(socket));
            }
            "agent" => agent = Some(Freeze::Agent(Some(text("IMGSNAP_FREEZE_SOCKET").into()))),
            _ => {}
        }
        let freezes: Vec<Freeze> = freezes.iter().cloned().chain(agent).collect();
        let opened = Window::open(&freezes, None, machine, milliseconds, &[], &context);
        let mut window = match opened {
            Ok(window) => window,
            Err(error) => return say(&error.to_string()),
        };
        say("opened");
        if mode == "turns" {
            let mount = named.split(':').next().unwrap();
            std::fs::write(format!("{mount}/dirty"), noise(turns, MIB)).unwrap();
        }
        window.freeze(&context).unwrap();
        window.before_stop().unwrap();
        say("frozen");
        if mode != "turns" {
            loop {
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        window.after_cont();
        assert!(window.thaw().frozen);
        turns += 1;
    }
}

struct Helper {
    process: Started,
    says: String,
}

impl Helper {
    fn start(lab: &Lab, mode: &str, change: impl Fn(&mut Command)) -> Self {
        let says = lab.path("said");
        std::fs::remove_file(&says).ok();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "freeze::helper", "--nocapture"]);
        command.env("IMGSNAP_FREEZE", mode).env("IMGSNAP_FREEZE_SAYS", &says);
        command.env("IMGSNAP_FREEZE_MOUNTS", lab.path("mnt"));
        change(&mut command);
        Self { process: Started::spawn(command), says }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.says).unwrap_or_default()
    }

    #[track_caller]
    fn says(&mut self, text: &str) {
        let is_said = wait_until(|| self.said().contains(text) || self.process.is_over());
        assert!(is_said && self.said().contains(text), "it says: {}", self.said());
    }

    fn kill(self) {
        self.process.signal(Signal::SIGKILL);
        assert!(self.process.wait().is_killed());
    }
}

fn reason(outcome: &FreezeOutcome) -> String {
    outcome.why_not.as_ref().unwrap().to_string()
}

#[test]
fn a_file_system_stands_still_between_freeze_and_thaw() {
    let lab = Lab::new();
    let _mounted = need!(ext4(&lab));
    let mount = lab.path("mnt");
    let window = frozen(&mounts(&[&mount]), NEVER);
    let guards = guards_of(&mount);
    assert_eq!(guards.len(), 1);
    // It has what it needs, and nothing else of ours: no lock, no lease, no pipe.
    assert_eq!(names_in(&format!("/proc/{}/fd", guards[0])).len(), 2);
    assert_eq!(std::fs::read_link(format!("/proc/{}/cwd", guards[0])).unwrap(), Path::new("/"));
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        kill(Pid::from_raw(i32::try_from(guards[0]).unwrap()), signal).unwrap();
    }
    let writer = writer(&mount);
    is_held(&writer);
    let outcome = window.thaw();
    assert!(outcome.frozen && outcome.why_not.is_none() && outcome.stuck.is_none());
    assert_eq!(outcome.guard, GuardState::Waiting);
    gets_through(writer);
    assert_eq!(state_of(guards[0]), None, "its end is taken");
    // Again, and dropped.
    drop(frozen(&mounts(&[&mount]), NEVER));
    can_be_written(&mount);
    assert!(guards_of(&mount).is_empty());
}

#[test]
fn after_the_limit_the_guard_thaws_and_nothing_is_called_frozen() {
    let lab = Lab::new();
    let _mounted = need!(ext4(&lab));
    let mount = lab.path("mnt");
    let window = frozen(&mounts(&[&mount]), SOON);
    can_be_written(&mount);
    assert!(wait_until(|| window.guard() == GuardState::Acted));
    let outcome = window.thaw();
    assert!(!outcome.frozen && outcome.stuck.is_none());
    assert_eq!(outcome.guard, GuardState::Acted);
    let why = reason(&outcome);
    assert!(why.contains("ended after 3 s, before the snapshot was ready"), "{why}");
    // Also if we are stopped.
    let limit = |command: &mut Command| {
        command.env("IMGSNAP_FREEZE_LIMIT", "5000");
    };
    let mut helper = Helper::start(&lab, "mounts", limit);
    helper.says("frozen");
    helper.process.signal(Signal::SIGSTOP);
    can_be_written(&mount);
    let guards = guards_of(&mount);
    helper.kill();
    are_gone(&guards);
}

/// At whatever moment: the file system can be written afterwards, and no guard lives on.
#[test]
fn whenever_we_are_killed_the_file_system_is_thawed() {
    let lab = Lab::new();
    let _mounted = need!(ext4(&lab));
    let mount = lab.path("mnt");
    let kills = std::env::var("IMGSNAP_KILLS").map_or(20, |text| text.parse().unwrap());
    let mut random = Random(std::process::id().into());
    for _ in 0..kills {
        let mut helper = Helper::start(&lab, "turns", |_| {});
        helper.says("opened");
        std::thread::sleep(Duration::from_micros(random.below(60_000)));
        helper.kill();
        can_be_written(&mount);
        assert!(wait_until(|| guards_of(&mount).is_empty()), "a guard lives on");
    }
    // And while it is frozen for certain.
    let mut helper = Helper::start(&lab, "mounts", |_| {});
    helper.says("frozen");
    let writer = writer(&mount);
    is_held(&writer);
    helper.kill();
    gets_through(writer);
}

/// A freeze that waits for a device, for as long as that takes, with a limit that passes meanwhile, and
/// without: what is frozen in the end is thawed, although we are dead then.
#[test]
fn killed_in_the_middle_of_a_freeze_that_takes_long_it_is_thawed() {
    let lab = Lab::new();
    let _lower = need!(ext4(&lab));
    let _upper = need!(stacked(&lab));
    let (lower, upper) = (lab.path("mnt"), lab.path("upper"));
    for limit in ["300", "3600000"] {
        std::fs::write(format!("{upper}/dirty"), noise(1, MIB)).unwrap();
        // What has to be waited for is dropped after what it waits for.
        let (mut helper, writer);
        let held = frozen(&mounts(&[&lower]), NEVER);
        helper = Helper::start(&lab, "mounts", |command| {
            command.env("IMGSNAP_FREEZE_MOUNTS", &upper).env("IMGSNAP_FREEZE_LIMIT", limit);
        });
        helper.says("opened");
        let threads_of = format!("/proc/{}/task", helper.process.id());
        let is_in_kernel = || {
            let mut threads = names_in(&threads_of).into_iter();
            let stack = |id: String| std::fs::read_to_string(format!("{threads_of}/{id}/stack"));
            threads.any(|id| stack(id).is_ok_and(|stack| stack.contains("freeze_super")))
        };
        assert!(wait_until(is_in_kernel), "it does not wait for its device");
        let guards = guards_of(&upper);
        assert_eq!(guards.len(), 1);
        // It is held up, unless the freeze still waits for one who writes out what is dirty.
        writer = self::writer(&upper);
        helper.process.signal(Signal::SIGKILL);
        // It has not ended, nor has what guards: it may be that the limit has passed.
        std::thread::sleep(Duration::from_secs(1));
        assert!(!helper.process.is_over());
        assert!(!matches!(state_of(guards[0]), None | Some('Z' | 'X')));
        drop(held);
        gets_through(writer);
        assert!(helper.process.wait().is_killed());
        are_gone(&guards);
        can_be_written(&upper);
    }
}

/// The upper one first, whatever the order in which they are named; thawed the other way round.
#[test]
fn a_file_system_that_lies_on_another_one_is_frozen_before_it() {
    let lab = Lab::new();
    let _lower = need!(ext4(&lab));
    let _upper = need!(stacked(&lab));
    let (lower, upper) = (lab.path("mnt"), lab.path("upper"));
    for named in [[&lower, &upper], [&upper, &lower]] {
        std::fs::write(format!("{upper}/dirty"), noise(1, MIB)).unwrap();
        let window = frozen(&mounts(&named.map(String::as_str)), NEVER);
        let writers = [writer(&lower), writer(&upper)];
        writers.iter().for_each(is_held);
        assert!(window.thaw().frozen);
        writers.into_iter().for_each(gets_through);
        // A guard for each: they wait for each other in the kernel, and get through.
        let window = frozen(&mounts(&named.map(String::as_str)), SOON);
        can_be_written(&upper);
        can_be_written(&lower);
        assert!(!window.thaw().frozen);
    }
}

#[test]
fn a_guard_that_is_killed_is_noticed_and_we_thaw() {
    let lab = Lab::new();
    let _mounted = need!(ext4(&lab));
    let mount = lab.path("mnt");
    let window = frozen(&mounts(&[&mount]), NEVER);
    guards_of(&mount).into_iter().for_each(kill_it);
    assert!(wait_until(|| window.guard() == GuardState::Lost));
    let writer = writer(&mount);
    is_held(&writer);
    let outcome = window.thaw();
    // It stood until we thawed it.
    assert!(outcome.frozen && outcome.stuck.is_none());
    assert_eq!(outcome.guard, GuardState::Lost);
    gets_through(writer);
    // Without one nothing is frozen.
    let mut window = open(&mounts(&[&mount]), NEVER).unwrap();
    let guards = guards_of(&mount);
    guards.iter().copied().for_each(kill_it);
    assert!(wait_until(|| window.guard() == GuardState::Lost));
    let error = window.freeze(&Context::silent()).unwrap_err();
    assert!(error.to_string().contains("the process that thaws was killed"), "{error}");
    can_be_written(&mount);
    drop(window);
    assert_eq!(state_of(guards[0]), None, "its end is taken");
}

#[test]
fn what_somebody_else_has_frozen_is_left_to_him() {
    let lab = Lab::new();
    let _mounted = need!(ext4(&lab));
    let mount = lab.path("mnt");
    let held = frozen(&mounts(&[&mount]), NEVER);
    let mut window = open(&mounts(&[&mount]), NEVER).unwrap();
    let error = window.freeze(&Context::silent()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.to_string().contains("is already frozen by another program"), "{error}");
    let writer = writer(&mount);
    is_held(&writer);
    drop(window);
    is_held(&writer);
    drop(held);
    gets_through(writer);
    // And the other way round.
    let window = frozen(&mounts(&[&mount]), NEVER);
    tool("fsfreeze", &["-u", &mount]);
    let outcome = window.thaw();
    assert!(!outcome.frozen);
    assert!(reason(&outcome).contains("was thawed before the snapshot was ready"));
}

#[test]
fn what_is_written_to_meanwhile_may_not_lie_on_it() {
    let lab = Lab::new();
    let _lower = need!(ext4(&lab));
    let _upper = need!(stacked(&lab));
    let mount = lab.path("mnt");
    let refused = |forbidden: &str| {
        let _alone = forking();
        let forbidden = [PathBuf::from(lab.path("elsewhere")), forbidden.into()];
        let (freezes, context) = (mounts(&[&mount]), Context::silent());
        Window::open(&freezes, None, None, NEVER, &forbidden, &context).map(drop)
    };
    std::fs::write(lab.path("mnt/vm.img"), b"image").unwrap();
    std::os::unix::fs::symlink(lab.path("mnt/repo"), lab.path("link")).unwrap();
    std::os::unix::fs::symlink(&mount, lab.path("way")).unwrap();
    let paths = ["mnt/vm.img", "mnt", "mnt/repo/is/not/there", "way/repo", "upper/repo"];
    for path in paths.map(|path| lab.path(path)) {
        let error = refused(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains(&format!("{path} is on it")), "{error}");
    }
    refused(&lab.path("other")).unwrap();
    let error = open(&mounts(&[&lab.path("mnt/lost+found")]), NEVER).map(drop).unwrap_err();
    assert!(error.to_string().contains("is not a mount point"), "{error}");
    // What goes wrong would have to be said there.
    let log = File::create(lab.path("mnt/log")).unwrap();
    let mut helper = Command::new(std::env::current_exe().unwrap());
    helper.args(["--exact", "freeze::helper", "--nocapture"]).env("IMGSNAP_FREEZE", "mounts");
    helper.env("IMGSNAP_FREEZE_SAYS", lab.path("said")).env("IMGSNAP_FREEZE_MOUNTS", &mount);
    let status = {
        let _alone = forking();
        helper.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).status().unwrap()
    };
    assert!(status.success());
    let said = std::fs::read_to_string(lab.path("said")).unwrap();
    assert!(said.contains("what standard error is written to is on it"), "{said}");
}

/// Subvolumes have device numbers of their own, and are frozen together.
#[test]
fn a_subvolume_is_the_file_system_that_it_is_of() {
    let lab = Lab::new();
    need!(root());
    let _mounted = need!(mounted(&lab, "mkfs.btrfs", &["-q"], 128));
    need!(tools(&["btrfs"]));
    let mount = lab.path("mnt");
    for name in ["a", "b"] {
        tool("btrfs", &["subvolume", "create", &format!("{mount}/{name}")]);
    }
    let error = open(&mounts(&[&lab.path("mnt/a")]), NEVER).map(drop).unwrap_err();
    assert!(error.to_string().contains("is not a mount point"), "{error}");
    let forbidden = [PathBuf::from(lab.path("mnt/b/repo"))];
    let error = {
        let _alone = forking();
        let freezes = mounts(&[&mount]);
        Window::open(&freezes, None, None, NEVER, &forbidden, &Context::silent())
            .map(drop)
            .unwrap_err()
    };
    assert!(error.to_string().contains("mnt/b/repo is on it"), "{error}");
    assert!(frozen(&mounts(&[&mount]), NEVER).thaw().frozen);
}

#[test]
fn a_kind_that_cannot_be_frozen_is_named() {
    let lab = Lab::new();
    let _mount = need!(Mount::tmpfs(&lab.path("mnt"), "size=1m"));
    let mut window = open(&mounts(&[&lab.path("mnt")]), NEVER).unwrap();
    let error = window.freeze(&Context::silent()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("file systems of this type cannot be frozen"), "{error}");
}

/// What a monitor or an agent sees.
struct Server {
    listener: UnixListener,
    path: String,
}

impl Server {
    fn new(lab: &Lab) -> Self {
        let path = lab.path("socket");
        std::fs::remove_file(&path).ok();
        Self { listener: UnixListener::bind(&path).unwrap(), path }
    }

    /// Starts who connects to it, and gives the connection.
    fn helper(&self, lab: &Lab, mode: &str) -> (Helper, UnixStream) {
        let helper = Helper::start(lab, mode, |command| {
            command.env("IMGSNAP_FREEZE_SOCKET", &self.path).env("IMGSNAP_FREEZE_MOUNTS", "");
        });
        let (stream, _) = self.listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        (helper, stream)
    }
}

fn rest(mut stream: &UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

/// True if there is nothing to read, and it is not at its end.
fn is_open(mut stream: &UnixStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let outcome = stream.read(&mut [0; 8]);
    stream.set_nonblocking(false).unwrap();
    outcome.is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock)
}

const CONTINUE: &[u8] = b"\xff{\"execute\":\"cont\"}\n\
    {\"execute\":\"blockdev-del\",\"arguments\":{\"node-name\":\"imgsnap-m-stopped\"},\
    \"id\":\"imgsnap-guard\"}\n";

#[test]
fn killed_we_let_the_machine_go_on_and_wait_until_it_has() {
    let lab = Lab::new();
    let server = Server::new(&lab);
    let (mut helper, stream) = server.helper(&lab, "machine");
    helper.says("frozen");
    assert!(is_open(&stream), "nothing is sent as long as we live");
    helper.kill();
    let mut line = vec![0; CONTINUE.len()];
    (&stream).read_exact(&mut line).unwrap();
    assert_eq!(line, CONTINUE);
    // What QEMU says meanwhile is not the answer, whatever it is, and however it is cut.
    let filler = format!("{{\"event\": \"{}\"}}\n", "x".repeat(9000));
    for piece in
        [filler.as_str(), "{\"return\": {}, \"id\": 17}\r\n{\"return\": {}, \"id\": \"imgsnap-"]
    {
        (&stream).write_all(piece.as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        assert!(is_open(&stream), "it does not wait");
    }
    (&stream).write_all(b"guard\"}\r\n").unwrap();
    assert_eq!(rest(&stream), b"");
    // Without an answer it ends some time: it does not hold the monitor for ever.
    let (mut helper, stream) = server.helper(&lab, "machine");
    helper.says("frozen");
    helper.kill();
    assert_eq!(rest(&stream), CONTINUE);
}

#[test]
fn a_machine_that_was_not_stopped_is_left_alone() {
    let lab = Lab::new();
    let (own, theirs) = UnixStream::pair().unwrap();
    let open = |socket: UnixStream, limit| {
        let _alone = forking();
        Window::open(&[], None, Some(socket.into()), limit, &[], &Context::silent()).unwrap()
    };
    let window = open(own.try_clone().unwrap(), NEVER);
    window.before_stop().unwrap();
    window.after_cont();
    let outcome = window.thaw();
    assert!(!outcome.frozen && outcome.why_not.is_none());
    assert_eq!(outcome.guard, GuardState::Waiting);
    assert!(is_open(&theirs));
    // Beyond the limit it goes on, and we read the answer: the guard does not.
    let window = open(own.try_clone().unwrap(), SOON);
    window.before_stop().unwrap();
    let mut line = vec![0; CONTINUE.len()];
    (&theirs).read_exact(&mut line).unwrap();
    (&theirs).write_all(b"answer\n").unwrap();
    assert!(wait_until(|| window.guard() == GuardState::Acted));
    let mut answer = String::new();
    BufReader::new(&own).read_line(&mut answer).unwrap();
    assert_eq!((line.as_slice(), answer.as_str()), (CONTINUE, "answer\n"));
    assert!(window.before_stop().is_err(), "nobody would let it go on");
    window.after_cont();
    assert_eq!(window.thaw().guard, GuardState::Acted);
    drop(own);
    assert_eq!(rest(&theirs), b"", "it was sent once");
    // Killed before it was stopped.
    let server = Server::new(&lab);
    let (mut helper, stream) = server.helper(&lab, "machine");
    helper.says("opened");
    helper.kill();
    let said = rest(&stream);
    assert!(said.is_empty() || said == CONTINUE, "it may have been armed in this moment");
}

/// The requests in what an agent is sent, by name.
fn requests(bytes: &[u8]) -> Vec<String> {
    let lines = bytes.split(|byte| [b'\n', 0xff].contains(byte)).filter(|line| !line.is_empty());
    let parsed = lines.map(|line| serde_json::from_slice::<serde_json::Value>(line).unwrap());
    parsed.map(|request| request["execute"].as_str().unwrap().to_owned()).collect()
}

/// Answers as an agent does, until it has frozen: what it was not asked yet stays in the stream.
fn freezes(stream: &UnixStream) {
    let mut lines = BufReader::with_capacity(1, stream);
    loop {
        let mut line = Vec::new();
        lines.read_until(b'\n', &mut line).unwrap();
        let line = line.rsplit(|byte| *byte == 0xff).next().unwrap();
        let request: serde_json::Value = serde_json::from_slice(line).unwrap();
        let answer = match request["execute"].as_str().unwrap() {
            "guest-sync-delimited" => {
                let id = format!("{{\"return\": {}}}\n", request["arguments"]["id"]);
                [b"\xff".as_slice(), id.as_bytes()].concat()
            }
            "guest-fsfreeze-status" => b"{\"return\": \"thawed\"}\n".to_vec(),
            _ => b"{\"return\": 2}\n".to_vec(),
        };
        let mut stream = *lines.get_ref();
        stream.write_all(&answer).unwrap();
        if request["execute"] == "guest-fsfreeze-freeze" {
            return;
        }
    }
}

#[test]
fn killed_we_thaw_the_machine_by_its_agent_and_ask_until_it_has() {
    let lab = Lab::new();
    let server = Server::new(&lab);
    let (mut helper, stream) = server.helper(&lab, "agent");
    freezes(&stream);
    helper.says("frozen");
    assert!(is_open(&stream));
    helper.kill();
    // It is asked again: an agent may have been started again.
    let mut lines = BufReader::new(&stream).split(b'\n').map(Result::unwrap);
    let mut asked: Vec<Vec<u8>> = lines.by_ref().take(4).collect();
    asked.iter_mut().for_each(|line| assert_eq!(line.remove(0), 0xff));
    let names = ["guest-fsfreeze-thaw", "guest-sync-delimited"].repeat(2);
    assert_eq!(requests(&asked.join(&b'\n')), names);
    let sync: serde_json::Value = serde_json::from_slice(&asked[3]).unwrap();
    let answer = format!("{{\"return\": 2}}\n{{\"return\": {}}}\n", sync["arguments"]["id"]);
    (&stream).write_all(answer.as_bytes()).unwrap();
    assert_eq!(lines.filter(|line| !line.is_empty()).count() % 2, 0, "whole requests, and the end");
}

#[test]
fn what_the_agent_has_frozen_is_thawed_and_counts_only_if_it_stood() {
    for (status, count, is_frozen) in
        [("frozen", 2, true), ("thawed", 2, false), ("frozen", 0, false)]
    {
        let lab = Lab::new();
        let server = Server::new(&lab);
        let path = PathBuf::from(&server.path);
        let served = std::thread::spawn(move || {
            let (stream, _) = server.listener.accept().unwrap();
            freezes(&stream);
            let mut lines = BufReader::new(&stream);
            let mut line = String::new();
            lines.read_line(&mut line).unwrap();
            assert!(line.contains("guest-fsfreeze-status"), "{line}");
            writeln!(&stream, "{{\"return\": \"{status}\"}}").unwrap();
            line.clear();
            lines.read_line(&mut line).unwrap();
            assert!(line.contains("guest-fsfreeze-thaw"), "{line}");
            writeln!(&stream, "{{\"return\": {count}}}").unwrap();
            assert_eq!(lines.read_line(&mut line).unwrap(), 0);
        });
        let window = frozen(&[Freeze::Agent(Some(path))], NEVER);
        let outcome = window.thaw();
        served.join().unwrap();
        assert_eq!(outcome.frozen, is_frozen, "{outcome:?}");
        assert!(outcome.stuck.is_none());
    }
}
