//! All that the program prints, as a terminal of 40, 80 and 120 columns shows it, with and without colors and
//! UTF-8, and as a pipe gets it: `fixtures/output`. With `IMGSNAP_BLESS` set, it is written there.
//!
//! The clock is ours, so that times, ages and durations are the same in every run; ids are replaced by others of
//! the same length.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::support::{build_shim, disk, has_cc, no_fork, noise, skipped, spawn, trusts_times};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use regex::Regex;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::File;
use std::io::Read;
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// Page, hours since the beginning, command. What does not begin with `imgsnap` is a step of the shell that
/// prints nothing.
#[rustfmt::skip]
const STEPS: &[(&str, u64, &str)] = &[
    ("first-use", 0, "imgsnap list"),
    ("first-use", 0, "imgsnap init"),
    ("first-use", 0, "imgsnap init"),
    ("first-use", 0, "imgsnap list"),
    ("first-use", 0, "imgsnap stats"),
    ("", 0, "imgsnap config set prune.keep_last 3"),
    // Whatever the file system can do.
    ("", 0, "imgsnap config set snapshot.track none"),
    ("snapshot", 1, "imgsnap snapshot vm.img --label fresh --dry-run"),
    ("snapshot", 1, "imgsnap snapshot vm.img --label fresh"),
    ("snapshot", 2, "imgsnap snapshot vm.img --skip-unchanged"),
    ("", 0, "printf changed | dd of=vm.img bs=1 seek=100000 conv=notrunc 2> /dev/null"),
    ("", 0, "printf changed | dd of=vm.img bs=1 seek=700000 conv=notrunc 2> /dev/null"),
    ("snapshot", 25, "imgsnap snapshot vm.img"),
    ("", 0, "printf twice | dd of=vm.img bs=1 seek=200000 conv=notrunc 2> /dev/null"),
    ("snapshot", 49, "imgsnap backup vm.img data.img --group nightly"),
    ("snapshot", 49, "imgsnap snapshot missing.img"),
    ("snapshot", 49, "imgsnap snapshot repo"),
    ("snapshot", 49, "imgsnap snapshot vm.img --json --dry-run"),
    ("list", 73, "imgsnap list"),
    ("list", 73, "imgsnap ls vm --last 1"),
    ("list", 73, "imgsnap list missing"),
    ("list", 73, "imgsnap heads"),
    ("list", 73, "imgsnap list data --json"),
    ("show", 73, "imgsnap show vm@fresh"),
    ("show", 73, "imgsnap show vm@latest"),
    ("show", 73, "imgsnap show vm@latest~1"),
    ("show", 73, "imgsnap show vm@9"),
    ("show", 73, "imgsnap show @2"),
    ("label", 73, "imgsnap label vm@2"),
    ("label", 73, "imgsnap label vm@2 'before the great upgrade of the database'"),
    ("label", 73, "imgsnap label vm@2 upgrade"),
    ("label", 73, "imgsnap label vm@2"),
    ("label", 73, "imgsnap label vm@2 --remove"),
    ("label", 73, "imgsnap label vm@1 3"),
    ("label", 73, "imgsnap protect vm@1"),
    ("label", 73, "imgsnap delete vm@1"),
    ("label", 73, "imgsnap protect vm@1 --off"),
    ("diff", 73, "imgsnap diff vm@1 vm@2"),
    ("diff", 73, "imgsnap diff vm@1 data@1"),
    ("diff", 73, "imgsnap diff vm@latest vm.img"),
    ("restore", 73, "imgsnap restore vm@1 -o out.img"),
    ("restore", 73, "imgsnap restore vm@1 -o out.img"),
    ("restore", 73, "imgsnap restore vm@2 -o out.img --update"),
    ("restore", 73, "imgsnap restore vm -o other.img"),
    ("restore", 73, "imgsnap hash vm@1"),
    ("rollback", 73, "imgsnap rollback vm --to @1 --dry-run"),
    ("", 0, "printf unsaved | dd of=vm.img bs=1 seek=300000 conv=notrunc 2> /dev/null"),
    ("rollback", 74, "imgsnap rollback vm --to @1"),
    ("rollback", 75, "imgsnap rollback vm --to @2 --no-save"),
    ("rollback", 75, "imgsnap list vm"),
    ("rollback", 75, "imgsnap restore vm@latest -o left.img"),
    ("rollback", 75, "imgsnap rollback vm@2 --dry-run"),
    ("rollback", 75, "imgsnap rollback vm"),
    ("verify", 75, "imgsnap verify"),
    ("verify", 75, "imgsnap verify vm --quick"),
    ("stats", 75, "imgsnap stats"),
    ("stats", 75, "imgsnap stats vm"),
    ("prune", 75, "imgsnap prune"),
    ("prune", 75, "imgsnap prune vm --keep-daily 2 --dry-run"),
    ("prune", 75, "imgsnap prune vm --keep-last 2 --keep-weekly 1"),
    ("prune", 75, "imgsnap prune --all"),
    ("prune", 75, "imgsnap delete vm@4"),
    ("prune", 75, "imgsnap rm vm"),
    ("prune", 75, "imgsnap flatten vm@latest"),
    ("travel", 75, "imgsnap export data@1 -o data.delta"),
    ("travel", 75, "imgsnap import data.delta --name copy"),
    ("", 75, "imgsnap --repo other init --quiet"),
    ("travel", 75, "imgsnap --repo other import data.delta --name copy"),
    ("travel", 75, "imgsnap apply data.delta -o applied.img"),
    ("travel", 75, "imgsnap apply vm.img -o other.img"),
    ("plan", 75, "imgsnap plan list"),
    ("plan", 75, "imgsnap plan data.img --name parts --full --part-size 256K --source-held offline"),
    ("plan", 75, "imgsnap plan list"),
    ("plan", 75, "imgsnap part latest 0"),
    ("plan", 75, "imgsnap plan show latest"),
    ("plan", 75, "imgsnap join latest"),
    ("plan", 75, "imgsnap part latest 1"),
    ("", 75, "imgsnap part latest 2"),
    ("", 75, "imgsnap part latest 3"),
    ("", 75, "imgsnap part latest 4"),
    ("plan", 75, "imgsnap join latest"),
    ("config", 75, "imgsnap config show"),
    ("config", 75, "imgsnap config set prune.keep_daily 7"),
    ("config", 75, "imgsnap config set prune.keep_dayly 7"),
    ("config", 75, "imgsnap config set prune.keep_within 3m"),
    ("manage", 75, "imgsnap untrack data"),
    ("manage", 75, "mv data.img moved.img"),
    ("manage", 75, "imgsnap relink data moved.img"),
    ("manage", 75, "imgsnap remove data"),
    ("manage", 75, "imgsnap remove data --yes"),
    ("manage", 75, "imgsnap remove data --yes"),
    ("watch", 76, "imgsnap watch vm.img --every 1h --keep-last 1"),
    ("watch", 76, "imgsnap watch missing.img --every 1h"),
    ("", 77, "for f in repo/vm/*.delta; do printf X | dd of=$f bs=1 seek=700 conv=notrunc 2> /dev/null; done"),
    ("damage", 77, "imgsnap verify"),
    ("damage", 77, "imgsnap restore vm@latest -o lost.img"),
    ("damage", 77, "imgsnap repair vm"),
    ("damage", 77, "imgsnap repair vm --from vm.img"),
    ("damage", 77, "imgsnap list vm"),
    ("damage", 77, "imgsnap remove vm --yes"),
    ("key", 77, "imgsnap --repo sealed init --encrypt"),
    ("key", 77, "imgsnap --repo sealed --key-file key init --encrypt"),
    ("key", 77, "imgsnap --repo sealed --key-file key key list"),
    ("key", 77, "imgsnap --repo sealed list"),
    ("", 77, "head -c 32 /dev/zero | tr '\\0' k > new-key; chmod 600 new-key"),
    ("key", 77, "imgsnap --repo sealed --key-file key key add --new-key-file new-key"),
    ("key", 77, "imgsnap requests list"),
    ("", 77, "imgsnap --repo owned snapshot moved.img --quiet --name vm"),
    ("", 77, "imgsnap --repo owned snapshot moved.img --quiet --name vm --full"),
    ("owner", 77, "imgsnap --repo owned key owner create owner.key"),
    ("owner", 77, "imgsnap --repo owned key owner"),
    ("owner", 77, "imgsnap --repo owned delete vm@1"),
    ("owner", 77, "imgsnap --repo owned prune vm --keep-last 1"),
    ("owner", 77, "imgsnap --repo owned requests confirm 1234"),
    ("usage", 77, "imgsnap lst"),
    ("usage", 77, "imgsnap list --jsn"),
    ("usage", 77, "imgsnap restore"),
    ("usage", 77, "imgsnap restore vm@1 out.img"),
    ("usage", 77, "imgsnap init ./r"),
    ("usage", 77, "imgsnap snapshot vm.img --recheck 200%"),
    ("usage", 77, "imgsnap watch vm.img --every 5m"),
    ("usage", 77, "imgsnap lst --json"),
    ("usage", 77, "imgsnap serve store"),
    ("usage", 77, "imgsnap --version"),
    ("help", 77, "imgsnap --help"),
    ("help", 77, "imgsnap prune -h"),
];

/// Where the output goes.
struct Stream {
    name: &'static str,
    /// Of a terminal.
    columns: Option<u16>,
    environment: &'static [(&'static str, &'static str)],
}

const PLAIN: &[(&str, &str)] = &[("NO_COLOR", "1"), ("LC_ALL", "C.UTF-8")];

const STREAMS: [Stream; 6] = [
    Stream { name: "120 columns", columns: Some(120), environment: PLAIN },
    Stream { name: "80 columns", columns: Some(80), environment: PLAIN },
    Stream { name: "40 columns", columns: Some(40), environment: PLAIN },
    Stream { name: "80 columns, colors", columns: Some(80), environment: &[("LC_ALL", "C.UTF-8")] },
    Stream {
        name: "80 columns, no UTF-8",
        columns: Some(80),
        environment: &[("NO_COLOR", "1"), ("LC_ALL", "C")],
    },
    Stream { name: "pipe", columns: None, environment: &[("LC_ALL", "C.UTF-8")] },
];

/// A folder with images, in which the steps are taken.
struct Stage<'a> {
    folder: TempDir,
    clock: &'a Path,
    stream: &'a Stream,
}

impl<'a> Stage<'a> {
    /// At a path that has the same length everywhere: lines are broken by it.
    fn new(clock: &'a Path, stream: &'a Stream) -> Self {
        let mut folder = tempfile::Builder::new();
        let folder = folder.prefix("imgsnap-output-").rand_bytes(6).tempdir_in("/tmp").unwrap();
        let _calm = no_fork();
        for (name, bytes) in [
            ("vm.img", [disk(1, 1 << 20), vec![0; 3 << 20]].concat()),
            ("data.img", noise(2, 1 << 20)),
            ("key", noise(3, 32)),
        ] {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
        let key = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(folder.path().join("key"), key).unwrap();
        Self { folder, clock, stream }
    }

    fn command(&self, hours: u64, line: &str) -> Command {
        let mut command = Command::new("sh");
        let program = Path::new(env!("CARGO_BIN_EXE_imgsnap")).parent().unwrap();
        let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
        // Far beyond the times of the files: those are not ours.
        let clock = (4_102_444_800 + hours * 3600).to_string();
        let exec = if line.starts_with("imgsnap") { "exec " } else { "" };
        command.args(["-c", &format!("{exec}{line}")]).current_dir(self.folder.path());
        command.env_clear().env("PATH", path).env("TZ", "UTC").env("TERM", "xterm-256color");
        command
            .env("HOME", self.folder.path())
            .env("IMGSNAP_REPO", self.folder.path().join("repo"));
        command.env("IMGSNAP_STATE", self.folder.path().join("state"));
        command.env("LD_PRELOAD", self.clock).env("IMGSNAP_CLOCK", clock);
        command.envs(self.stream.environment.iter().copied()).stdin(Stdio::null());
        command
    }

    /// What a command prints, as it is shown.
    fn output(&self, hours: u64, line: &str) -> String {
        // No other program inherits them: there is an end only once nobody can write.
        let calm = no_fork();
        let (from, to) = match self.stream.columns {
            Some(columns) => {
                let size = Winsize { ws_row: 50, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
                let pty = openpty(&size, None).unwrap();
                (pty.master, pty.slave)
            }
            None => nix::unistd::pipe().unwrap(),
        };
        for end in [&from, &to] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
        }
        drop(calm);
        let mut command = self.command(hours, line);
        command.stdout(to.try_clone().unwrap()).stderr(to);
        let mut child = spawn(&mut command);
        drop(command);
        let bytes = read_all(from, child.id(), line.contains("imgsnap watch vm.img"));
        child.wait().unwrap();
        self.redacted(&match self.stream.columns {
            Some(columns) => shown(&bytes, columns),
            None => String::from_utf8(bytes).unwrap(),
        })
    }

    /// What differs from run to run, by something of the same length.
    fn redacted(&self, text: &str) -> String {
        let random = self.folder.path().to_str().unwrap().rsplit('-').next().unwrap();
        let mut text = text.replace(random, "XXXXXX");
        for pattern in [
            r"\b[0-9a-f]{72}\b",
            r"\b[0-9a-f]{64}\b",
            r"\b[0-9a-f]{32}\b",
            r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b",
            r"\b[0-9a-f]{8}\b",
        ] {
            let digit = |c: char| if c.is_ascii_hexdigit() { 'x' } else { c };
            let same_length =
                |found: &regex::Captures<'_>| found[0].chars().map(digit).collect::<String>();
            text = Regex::new(pattern).unwrap().replace_all(&text, same_length).into_owned();
        }
        Regex::new(r#"seconds":[0-9][^,}]*"#)
            .unwrap()
            .replace_all(&text, r#"seconds":0"#)
            .into_owned()
    }
}

/// All that is written until the last writer is gone.
fn read_all(from: OwnedFd, child: u32, is_endless: bool) -> Vec<u8> {
    let (mut from, mut bytes, mut buffer) = (File::from(from), Vec::new(), [0; 4096]);
    let mut is_to_end = is_endless;
    loop {
        match from.read(&mut buffer) {
            // So ends a terminal.
            Ok(0) | Err(_) => return bytes,
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
        }
        if is_to_end && String::from_utf8_lossy(&bytes).contains("next in") {
            // A second signal would end it at once.
            is_to_end = false;
            kill(Pid::from_raw(child.try_into().unwrap()), Signal::SIGINT).unwrap();
        }
    }
}

/// The lines of a terminal at the end; those that it broke itself as one. Styles are in angle brackets.
fn shown(bytes: &[u8], columns: u16) -> String {
    let mut terminal =
        vt100::Parser::new(NonZero::new(400).unwrap(), NonZero::new(columns).unwrap(), 0);
    terminal.process(bytes);
    let screen = terminal.screen();
    let mut text = String::new();
    for row in 0..400 {
        let mut style = String::new();
        for column in 0..columns {
            let Some(cell) = screen.cell(row, column) else { continue };
            let now = match (cell.bold(), cell.fgcolor()) {
                (false, vt100::Color::Default) => String::new(),
                (_, vt100::Color::Default) => "<bold>".to_owned(),
                (_, colour) => format!("<bold {colour:?}>"),
            };
            if now != style {
                text.push_str(if now.is_empty() { "<>" } else { &now });
                style = now;
            }
            match cell.contents() {
                "" => text.push(' '),
                contents => text.push_str(contents),
            }
        }
        if !style.is_empty() {
            text.push_str("<>");
        }
        if !screen.row_wrapped(row) {
            text.truncate(text.trim_end_matches(' ').len());
            text.push('\n');
        }
    }
    format!("{}\n", text.trim_end_matches('\n'))
}

/// True if a terminal does not break the line. Longer may be what is for programs, errors, the text of the
/// configuration, and a word.
fn fits(line: &str, columns: usize) -> bool {
    let line = Regex::new("<[a-z]+( Idx[^>]*)?>|<>").unwrap().replace_all(line, "");
    let is_long_by_nature = ["{", "# ", "id = "].iter().any(|start| line.starts_with(start));
    line.chars().count() <= columns || is_long_by_nature || line.split_whitespace().count() <= 2
}

/// Pages of what is printed there.
fn pages(clock: &Path, stream: &Stream) -> Vec<(&'static str, &'static str, String)> {
    let stage = Stage::new(clock, stream);
    let mut outputs = Vec::new();
    for (page, hours, line) in STEPS {
        let output = stage.output(*hours, line);
        if let Some(columns) = stream.columns {
            let broken = output.lines().find(|line| !fits(line, columns.into()));
            assert_eq!(broken, None, "{line}, {}", stream.name);
        }
        if !page.is_empty() && line.starts_with("imgsnap") {
            outputs.push((*page, *line, output));
        } else if !line.starts_with("imgsnap") {
            assert_eq!(output.trim(), "", "{line}");
        }
    }
    outputs
}

#[test]
fn all_output_is_exactly_this() {
    let folder = tempfile::tempdir().unwrap();
    let clock = folder.path().join("clock.so");
    if !has_cc("golden") {
        return;
    }
    assert!(build_shim("clock.c", &clock));
    if !trusts_times(Path::new("/tmp")) {
        return skipped("golden", "the times of files in /tmp are not trusted, which is then told");
    }
    let all: Vec<Vec<_>> = std::thread::scope(|scope| {
        let runs = STREAMS.each_ref().map(|stream| scope.spawn(|| pages(&clock, stream)));
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    let mut texts: BTreeMap<&str, String> = BTreeMap::new();
    for (index, (page, line, _)) in all[0].iter().enumerate() {
        let text = texts.entry(page).or_default();
        writeln!(text, "$ {line}").unwrap();
        // What is the same in several places stands once.
        let mut seen: Vec<(&str, Vec<&str>)> = Vec::new();
        for (stream, outputs) in STREAMS.iter().zip(&all) {
            let output = outputs[index].2.as_str();
            match seen.iter_mut().find(|(known, _)| *known == output) {
                Some((_, names)) => names.push(stream.name),
                None => seen.push((output, vec![stream.name])),
            }
        }
        for (output, names) in seen {
            writeln!(text, "--- {}\n{output}", names.join("; ")).unwrap();
        }
    }
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/output");
    let is_blessing = std::env::var_os("IMGSNAP_BLESS").is_some();
    if is_blessing {
        std::fs::remove_dir_all(&fixtures).ok();
        std::fs::create_dir_all(&fixtures).unwrap();
    }
    for (page, text) in texts {
        let path = fixtures.join(format!("{page}.txt"));
        if is_blessing {
            std::fs::write(&path, &text).unwrap();
        }
        let golden = std::fs::read_to_string(&path).unwrap_or_default();
        let differing = text.lines().zip(golden.lines()).find(|(is, was)| is != was);
        assert!(text == golden, "{}: {differing:?}; all of it:\n{text}", path.display());
    }
}
