//! `imgsnap remove`: what is removed, and that nothing is without an answer.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::support::{
    DONE, FAILED, INTERRUPTED, Lab, Started, alone_to_fork, integer, same, skipped, string,
    wait_until,
};
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

#[test]
fn remove_removes_an_image_with_all_its_snapshots_and_nothing_else() {
    let lab = Lab::new();
    lab.grow_history("db.img", 3);
    lab.grow_history("web.img", 2);
    let size: u64 = (1..=3).map(|n| lab.read(&lab.delta("db", n)).len() as u64).sum();
    let image = lab.read("db.img");
    let gone = lab.json(&["remove", "db", "--yes"]);
    assert_eq!((string(&gone, "name"), integer(&gone, "snapshots")), ("db", 3));
    assert_eq!(integer(&gone, "freed_bytes"), size);
    assert!(!lab.exists("repo/db"));
    same(&lab.read("db.img"), &image, "the live image");
    lab.fails(FAILED, &["list", "db"]);
    assert_eq!(lab.json(&["list", "web"]).as_array().unwrap().len(), 2);
    // Its name is free again, and the numbers begin anew.
    assert_eq!(integer(&lab.json(&["snapshot", "db.img"]), "number"), 1);
    let text = lab.done(&["remove", "db", "-y"]);
    assert!(text.starts_with("removed \"db\": 1 snapshot, "), "{text}");
}

#[test]
fn without_a_terminal_nothing_is_removed_unless_it_is_said() {
    let (lab, _) = Lab::with_snapshots(1);
    let before = lab.everything();
    for run in [lab.run(&["remove", "disk"]), lab.run_with_input(&["remove", "disk"], b"y\n")] {
        let said = run.misused();
        assert!(
            said.starts_with("imgsnap: error: cannot ask for confirmation without a terminal"),
            "{said}"
        );
        assert!(said.contains("use --yes"), "{said}");
        lab.ensure_untouched(&before, &said);
    }
}

#[test]
fn forget_says_what_to_use_instead_and_is_not_shown() {
    let (lab, _) = Lab::with_snapshots(1);
    let before = lab.everything();
    for args in [&["forget"][..], &["forget", "disk", "--yes"], &["forget", "--keep-last", "1"]] {
        let said = lab.run(args).misused();
        for verb in ["prune NAME", "remove NAME", "delete REF"] {
            assert!(said.contains(&format!("\"imgsnap {verb}\"")), "{said}");
        }
        lab.ensure_untouched(&before, &said);
    }
    lab.done(&["man", "pages"]);
    assert!(!lab.exists("pages/imgsnap-forget.1"));
    let help = lab.done(&["--help"]);
    assert!(!help.contains("forget"), "{help}");
}

#[test]
fn what_is_answered_on_a_terminal_is_done() {
    let (lab, _) = Lab::with_snapshots(2);
    let before = lab.everything();
    for (typed, code, said) in [
        ("\x03", INTERRUPTED, "interrupted; nothing was removed"),
        ("n\n", FAILED, "nothing was removed"),
        ("\n", FAILED, "nothing was removed"),
        ("\x04", FAILED, "nothing was removed"),
        ("y\n", DONE, "removed \"disk\": 2 snapshots, "),
    ] {
        let Some(mut terminal) = Terminal::new(&lab, "remove disk") else {
            return skipped("remove::what_is_answered_on_a_terminal_is_done", "no script");
        };
        terminal.shows("permanently remove \"disk\" and its 2 snapshots? [y/N] ");
        if code != DONE {
            lab.ensure_untouched(&before, "a question");
        }
        terminal.keys.write_all(typed.as_bytes()).unwrap();
        // The keys of a terminal end when it is closed: an answer, too.
        terminal.shows(said);
        assert_eq!(terminal.started.child.wait().unwrap().code(), Some(code), "{typed:?}");
        if code != DONE {
            lab.ensure_untouched(&before, typed);
        }
    }
    lab.fails(FAILED, &["list", "disk"]);
}

/// imgsnap on a terminal of its own, by way of script(1).
struct Terminal {
    started: Started,
    keys: std::process::ChildStdin,
    shown: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    /// None if there is no script.
    fn new(lab: &Lab, args: &str) -> Option<Self> {
        let has_script = {
            let _alone = alone_to_fork();
            Command::new("script").arg("--version").output().is_ok()
        };
        if !has_script {
            return None;
        }
        let command = lab.command(&[]);
        let mut script = Command::new("script");
        let typed = format!("\"$PROGRAM\" {args}");
        script.args(["-qec", &typed, "/dev/null"]).current_dir(lab.path(""));
        script.env("PROGRAM", command.get_program());
        for (name, value) in command.get_envs() {
            value.map(|value| script.env(name, value));
        }
        script.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut started = Started::with_input(&mut script);
        let (keys, mut out) =
            (started.child.stdin.take().unwrap(), started.child.stdout.take().unwrap());
        let shown = Arc::new(Mutex::new(Vec::new()));
        let into = shown.clone();
        std::thread::spawn(move || {
            let mut byte = [0];
            while out.read_exact(&mut byte).is_ok() {
                into.lock().unwrap().push(byte[0]);
            }
        });
        Some(Self { started, keys, shown })
    }

    #[track_caller]
    fn shows(&self, text: &str) {
        let shown = || String::from_utf8_lossy(&self.shown.lock().unwrap()).into_owned();
        assert!(wait_until(|| shown().contains(text)), "\"{text}\" is not in: {}", shown());
    }
}
