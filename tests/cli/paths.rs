//! Paths that are not UTF-8, and names as long as a file system takes them, with every verb.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::support::{DONE, FAILED, Lab, Run, change, disk, same};
use crate::watcher::{Watcher, is_of};
use nix::sys::signal::Signal;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

const BYTES: usize = 300_000;

/// A folder `odd-\xff` and files in it. In arguments `?` stands for the byte.
struct Odd {
    lab: Lab,
}

impl Odd {
    fn new() -> Self {
        let odd = Self { lab: Lab::bare() };
        std::fs::create_dir(odd.path("odd-?")).unwrap();
        odd.write("odd-?/a-?.img", &disk(7, BYTES));
        odd
    }

    fn path(&self, name: &str) -> PathBuf {
        self.lab.path("").join(OsStr::from_bytes(&bytes(name)))
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    /// What JSON and messages call it.
    fn uri(&self, name: &str) -> String {
        format!("file://{}", self.lab.at(&name.replace("?", "%FF")))
    }

    fn run(&self, args: &[&str]) -> Run {
        let mut command = self.lab.command(&[]);
        command.env("IMGSNAP_REPO", self.path("repo-?"));
        Run::of(command.args(args.iter().map(|arg| OsStr::from_bytes(&bytes(arg)).to_owned())))
    }
}

fn bytes(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (index, part) in name.split("?").enumerate() {
        bytes.extend_from_slice(if index > 0 { b"\xff" } else { b"" });
        bytes.extend_from_slice(part.as_bytes());
    }
    bytes
}

/// A call, and where in its JSON which file is named, if any is.
type Step<'a> = (&'a [&'a str], &'a str, &'a str);

impl Odd {
    fn follow(&self, steps: &[Step<'_>]) {
        for (args, at, of) in steps {
            // Also what is not looked into here is text.
            let text = self.run(&[args, &["--json"][..]].concat()).done().text();
            if !of.is_empty() {
                let value: serde_json::Value = serde_json::from_str(&text).unwrap();
                assert_eq!(value.pointer(at), Some(&self.uri(of).into()), "{args:?}: {value}");
            }
        }
    }
}

#[test]
fn every_verb_takes_paths_that_are_not_utf_8() {
    let odd = Odd::new();
    let first = odd.read("odd-?/a-?.img");
    let mut second = first.clone();
    change(&mut second, 1, 3);
    let snapshot = ["snapshot", "odd-?/a-?.img", "--name", "a"];
    odd.follow(&[
        (&["init"], "/repository", "repo-?"),
        (&snapshot, "", ""),
        (&["list"], "", ""),
        (&["show", "a@1"], "", ""),
        (&["config", "set", "images.a.prune.keep_last", "9"], "/place", "repo-?/config.000002"),
        (&["restore", "a@1", "-o", "odd-?/out-?"], "/output", "odd-?/out-?"),
        (&["restore", "a@1", "-o", "odd-?/out-?", "--force"], "/output", "odd-?/out-?"),
        (
            &["restore", "a@1", "-o", "odd-?/out-?", "--update", "--seed", "odd-?/a-?.img"],
            "/output",
            "odd-?/out-?",
        ),
        (&["restore", "a@1", "-o", "odd-?/out-?", "--update", "--trust-target"], "", ""),
        (&["restore", "a@1", "-o", "p-?", "--range", "4K+4K"], "/output", "p-?"),
        (&["export", "a@1", "-o", "full-?"], "/output", "full-?"),
        (&["apply", "full-?", "-o", "applied-?"], "/deltas/0", "full-?"),
        (&["apply", "full-?", "-o", "applied-?", "--force"], "/output", "applied-?"),
        (&["diff", "a@1", "odd-?/a-?.img"], "/after", "odd-?/a-?.img"),
        (&["diff", "odd-?/out-?", "applied-?"], "/before", "odd-?/out-?"),
    ]);
    odd.write("odd-?/a-?.img", &second);
    odd.write("list-?", b"0 300000\n");
    odd.follow(&[
        (&snapshot, "", ""),
        (&[&snapshot[..], &["--changed", "list-?", "--since", "@2"]].concat(), "", ""),
        (&["export", "a@2", "--since", "@1", "-o", "day-?"], "/output", "day-?"),
        (&["apply", "day-?", "--base", "applied-?", "--in-place"], "/base", "applied-?"),
        (&["rollback", "odd-?/a-?.img", "--to", "@1"], "/image", "odd-?/a-?.img"),
        (&["rollback", "a", "--to", "@2"], "/image", "odd-?/a-?.img"),
        (&["import", "day-?", "full-?", "--repo", "other-?", "--name", "b"], "", ""),
        (&["verify"], "", ""),
        (&["repair", "a", "--from", "odd-?/out-?", "--from", "other-?"], "", ""),
        (&["relink", "a", "odd-?/out-?"], "/source", "odd-?/out-?"),
        (&["snapshot", "odd-?/a-?.img", "-n", "c", "--base-image", "applied-?"], "", ""),
        (&["show", "c@1"], "/base_image", "applied-?"),
        (&["relink", "c", "--base-image", "applied-?"], "/base_image", "applied-?"),
        (&["stats", "a"], "", ""),
        (&["prune", "--all", "--keep-last", "2"], "", ""),
        (&["flatten", "a@2"], "", ""),
        (&["delete", "a@2"], "", ""),
        (&["untrack", "a"], "", ""),
        (&["remove", "a", "--yes"], "", ""),
        (&["bench", "--dir", "odd-?", "--size", "16M", "--runs", "1"], "", ""),
    ]);
    same(&odd.read("odd-?/a-?.img"), &second, "rolled back");
    same(&odd.read("odd-?/out-?"), &first, "restored");
    same(&odd.read("applied-?"), &second, "applied");
    same(&odd.read("p-?"), &first[4096..8192], "a part");
    odd.run(&["man", "man-?"]).done();
    assert!(odd.path("man-?/imgsnap.1").exists());
}

#[test]
fn messages_name_such_a_path_by_its_uri_and_the_uri_can_be_typed() {
    let odd = Odd::new();
    let image = odd.uri("odd-?/a-?.img");
    let line = odd.run(&["snapshot", "odd-?/a-?.img"]).failed(FAILED);
    let why = "is not UTF-8; choose one with --name";
    assert_eq!(line, format!("cannot derive a name for the image: the file name of {image} {why}"));
    let line = odd.run(&["watch", "odd-?/a-?.img", "--every", "1s"]).failed(FAILED);
    assert!(line.ends_with(why), "{line}");
    assert!(!odd.path("repo-?").exists(), "a repository was made for nothing");
    odd.run(&["snapshot", &image, "--name", "a"]).done();
    let text = odd.run(&["rollback", &image, "--to", "@1"]).done().text();
    assert!(text.starts_with(&format!("rolled back {image} to a@1\n")), "{text}");
    assert!(odd.run(&["list"]).done().text().starts_with(&format!("a  {image}  1 snapshot, ")));
    let text = odd.run(&["diff", "a@1", &image]).done().text();
    assert!(text.starts_with(&format!("a@1 -> {image}\n  identical")), "{text}");
    let line = odd.run(&["restore", "a@1", "-o", "odd-?/a-?.img"]).failed(FAILED);
    assert!(line.starts_with(&image), "{line}");
    odd.write("moved-?", &disk(8, BYTES));
    let line = odd.run(&["snapshot", "moved-?", "--name", "a"]).failed(FAILED);
    let moved = odd.uri("moved-?");
    let relink = format!("run \"imgsnap relink a {moved}\"");
    assert!(
        line.contains(&format!("\"a\" is already the name of {image}")) && line.ends_with(&relink),
        "{line}"
    );
    odd.run(&["relink", "a", &moved]).done();
    odd.run(&["--repo", &odd.uri("repo-?"), "verify"]).done();
}

#[test]
fn a_watch_of_such_an_image_has_a_name() {
    let odd = Odd::new();
    let image = odd.uri("odd-?/a-?.img");
    let watch = Watcher::start(&odd.lab, &[&image, "--name", "vm", "--every", "1h", "--json"]);
    watch.event(0, |event| is_of(event, "vm", "snapshot"));
    assert_eq!(watch.stop(Signal::SIGINT).code, Some(DONE));
    odd.lab.restores("vm@1", &disk(7, BYTES));
    let more = ["watch", &image, "more.img", "--name", "vm", "--every", "1h"];
    assert!(odd.lab.run(&more).misused().contains("--name applies to one image only"));
}

/// What is derived from a name is not longer than the name may be.
#[test]
fn names_of_255_bytes_work() {
    let lab = Lab::bare();
    let name = |first: &str| format!("{first}{}", "n".repeat(254));
    let (image, out, full, applied) = (name("i"), name("o"), name("f"), name("a"));
    let bytes = disk(7, BYTES);
    lab.write(&image, &bytes);
    // Of what cannot work nothing is begun, not even the repository.
    let line = lab.fails(FAILED, &["snapshot", &image]);
    assert!(line.contains("choose one with --name: up to 128"), "{line}");
    let line = lab.fails(FAILED, &["watch", &image, "--every", "1s"]);
    assert!(line.contains("choose one with --name: up to 128"), "{line}");
    let line = lab.fails(FAILED, &["snapshot", &image, "--name", &"v".repeat(129)]);
    assert!(line.contains("choose one with --name: up to 128"), "{line}");
    for vm in ["vm".to_owned(), "v".repeat(128)] {
        let at = |which: &str| format!("{vm}@{which}");
        lab.write(&image, &bytes);
        lab.done(&["snapshot", &image, "--name", &vm]);
        lab.write(&image, &disk(8, BYTES));
        lab.done(&["rollback", &vm, "--to", "@1"]);
        same(&lab.read(&image), &bytes, "rolled back");
        for force in [false, true] {
            let more: &[&str] = if force { &["--force"] } else { &[] };
            lab.done(&[&["restore", &at("1"), "-o", &out], more].concat());
            lab.done(&[&["export", &at("1"), "-o", &full], more].concat());
            lab.done(&[&["apply", &full, "-o", &applied], more].concat());
        }
        same(&lab.read(&out), &bytes, "restored");
        same(&lab.read(&applied), &bytes, "applied");
        for file in [&out, &full, &applied] {
            lab.remove(file);
        }
        lab.done(&["remove", &vm, "--yes"]);
    }
    let longer = name("oo");
    lab.done(&["snapshot", &image, "--name", "vm"]);
    for verb in ["restore", "export"] {
        let line = lab.fails(FAILED, &[verb, "vm@1", "-o", &longer]);
        assert!(line.ends_with("File name too long; choose a shorter name"), "{line}");
    }
    let (markdown, plot) = (format!("{}.md", "m".repeat(252)), format!("{}.svg", "p".repeat(251)));
    let bench = ["bench", "--dir", ".", "--size", "16M", "--runs", "1"];
    lab.done(&[&bench[..], &["--export-markdown", &markdown, "--plot", &plot]].concat());
    assert!(lab.exists(&markdown) && lab.exists(&plot));
}
