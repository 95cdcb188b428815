//! What every verb that opens a repository does in the same way.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::support::{FAILED, Lab, Run};

/// A lab with two snapshots of `disk.img`, a copy of it, and nothing in the way of an output.
fn lab() -> Lab {
    let (lab, _) = Lab::with_snapshots(2);
    lab.copy("disk.img", "copy.img");
    lab
}

fn with_repo<'a>(repo: &'a str, args: &[&'a str]) -> Vec<&'a str> {
    [&["--repo", repo], args].concat()
}

fn missing_repository(args: &[&str]) {
    let lab = lab();
    let line = lab.fails(FAILED, &with_repo("nowhere", args));
    let place = lab.at("nowhere");
    assert!(
        line.starts_with(&format!("{place} is not a repository; name one with --repo")),
        "{line}"
    );
    assert!(line.ends_with("or make one with \"imgsnap init\""), "{line}");
    // By the variable it is the same.
    let mut command = lab.command(args);
    assert_eq!(lab.fails_as(FAILED, command.env("IMGSNAP_REPO", &place)), line);
}

fn foreign_folder(args: &[&str]) {
    let lab = lab();
    std::fs::create_dir(lab.path("photos")).unwrap();
    lab.write("photos/cat.jpg", b"a cat");
    let line = lab.fails(FAILED, &with_repo("photos", args));
    assert!(line.starts_with(&format!("{} is not a repository", lab.at("photos"))), "{line}");
}

fn file_as_repository(args: &[&str]) {
    let lab = lab();
    let line = lab.fails(FAILED, &with_repo("copy.img", args));
    assert!(line.contains("copy.img"), "{line}");
}

fn newer_repository(args: &[&str]) {
    let lab = lab();
    let config = String::from_utf8(lab.read("repo/repository.toml")).unwrap();
    let newer = config.replace("version = 1", "version = 2");
    assert_ne!(newer, config);
    lab.write("repo/repository.toml", newer.as_bytes());
    let line = lab.fails(FAILED, args);
    assert!(
        line.contains("repository version 2, this program knows 1; a later imgsnap made it"),
        "{line}"
    );
    assert!(line.contains("repository.toml"), "{line}");
}

fn damaged_configuration(args: &[&str]) {
    let lab = lab();
    for bad in [
        "",
        "no toml at all = = =",
        "version = \"one\"",
        "version = 1\n[new]\nblock_size = 5000\ndigest = \"xxh3\"\ncompression = \"lz4\"\n",
    ] {
        lab.write("repo/repository.toml", bad.as_bytes());
        let before = lab.everything();
        let run = lab.run(args);
        let code = run.code.unwrap();
        assert!([1, 3].contains(&code), "{bad}: {code}");
        let line = run.failed(code);
        assert!(line.contains("repository.toml: "), "{bad}: {line}");
        lab.ensure_untouched(&before, &line);
    }
}

fn json(args: &[&str]) {
    let value = lab().json(args);
    assert!(value.is_object() || value.is_array(), "{value}");
    // No byte count is anything but a whole number.
    let mut values = vec![&value];
    let mut counts = 0;
    while let Some(value) = values.pop() {
        match value {
            serde_json::Value::Array(inner) => values.extend(inner),
            serde_json::Value::Object(inner) => {
                for (name, value) in inner {
                    if name == "bytes" || name.ends_with("_bytes") || name.ends_with("_blocks") {
                        assert!(value.is_u64(), "{name}: {value}");
                        counts += 1;
                    }
                    assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{name}");
                    values.push(value);
                }
            }
            _ => {}
        }
    }
    let has_none = ["repair", "relink"].contains(&args[0]);
    assert_eq!(counts == 0, has_none, "{value}");
}

fn says_nothing_on_stderr(args: &[&str]) {
    for more in [&[][..], &["--quiet"], &["--json"]] {
        let run: Run = lab().run(&[args, more].concat()).done();
        assert_eq!(run.err, "", "{args:?} {more:?}");
        assert!(run.text().ends_with('\n'), "{args:?} {more:?}: {:?}", run.text());
    }
}

/// Makes the tests of a verb: the arguments with which it works.
macro_rules! every_verb {
    ($($verb:ident: $args:expr;)*) => { $(
        mod $verb {
            #[test]
            fn refuses_a_place_without_repository() { super::missing_repository($args); }
            #[test]
            fn refuses_a_folder_of_something_else() { super::foreign_folder($args); }
            #[test]
            fn refuses_a_file_in_place_of_the_repository() { super::file_as_repository($args); }
            #[test]
            fn refuses_a_repository_of_a_later_version() { super::newer_repository($args); }
            #[test]
            fn refuses_a_repository_with_a_damaged_configuration() { super::damaged_configuration($args); }
            #[test]
            fn prints_json_with_whole_byte_counts() { super::json($args); }
            #[test]
            fn keeps_stderr_free_of_results() { super::says_nothing_on_stderr($args); }
        }
    )* };
}

every_verb! {
    list: &["list"];
    show: &["show", "disk@1"];
    diff: &["diff", "disk@1", "disk@2"];
    restore: &["restore", "disk@1", "-o", "out.img"];
    rollback: &["rollback", "disk", "--to", "@1"];
    verify: &["verify"];
    delete: &["delete", "disk@2"];
    label: &["label", "disk@1", "new"];
    forget: &["forget", "disk", "--yes"];
    repair: &["repair"];
    relink: &["relink", "disk", "copy.img"];
}

/// `snapshot` makes a repository where there is none, and is otherwise like the others.
mod snapshot {
    const ARGS: &[&str] = &["snapshot", "disk.img"];

    #[test]
    fn refuses_a_folder_of_something_else() {
        super::foreign_folder(ARGS);
    }

    #[test]
    fn refuses_a_file_in_place_of_the_repository() {
        super::file_as_repository(ARGS);
    }

    #[test]
    fn refuses_a_repository_of_a_later_version() {
        super::newer_repository(ARGS);
    }

    #[test]
    fn refuses_a_repository_with_a_damaged_configuration() {
        super::damaged_configuration(ARGS);
    }

    #[test]
    fn prints_json_with_whole_byte_counts() {
        super::json(ARGS);
    }

    #[test]
    fn keeps_stderr_free_of_results() {
        super::says_nothing_on_stderr(ARGS);
    }
}

/// Makes the tests of a verb that names an image or a snapshot.
macro_rules! every_verb_with_a_name {
    ($($verb:ident: $image:expr, $snapshot:expr;)*) => {
        mod unknown { $(
            #[test]
            fn $verb() {
                let lab = super::lab();
                let (image, snapshot): (&[&str], Option<&[&str]>) = ($image, $snapshot);
                let line = lab.fails(super::FAILED, image);
                assert!(line.contains("\"web\""), "{line}");
                assert!(line.contains("\"imgsnap list\" shows what there is"), "{line}");
                if let Some(snapshot) = snapshot {
                    let line = lab.fails(super::FAILED, snapshot);
                    assert!(line.starts_with("there is no snapshot disk@7; "), "{line}");
                    assert!(line.ends_with("\"imgsnap list disk\" shows what there is"), "{line}");
                }
            }
        )* }
    };
}

every_verb_with_a_name! {
    list: &["list", "web"], None;
    show: &["show", "web@1"], Some(&["show", "disk@7"]);
    diff: &["diff", "web@1", "disk@1"], Some(&["diff", "disk@1", "disk@7"]);
    restore: &["restore", "web@1", "-o", "out"], Some(&["restore", "disk@7", "-o", "out"]);
    rollback: &["rollback", "web", "--to", "@1"], Some(&["rollback", "disk", "--to", "@7"]);
    verify: &["verify", "web"], Some(&["verify", "disk@7"]);
    delete: &["delete", "web@1"], Some(&["delete", "disk@7"]);
    label: &["label", "web@1", "new"], Some(&["label", "disk@7", "new"]);
    forget: &["forget", "web", "--yes"], None;
    repair: &["repair", "web"], None;
    relink: &["relink", "web", "copy.img"], None;
}

#[test]
fn a_reference_that_leads_out_of_the_repository_is_wrong_usage() {
    let lab = lab();
    let before = lab.everything();
    for name in ["../outside", "..", ".", "", "/etc", "disk/../disk"] {
        let reference = format!("{name}@1");
        for args in
            [&["delete", &reference][..], &["label", &reference, "x"], &["show", &reference]]
        {
            let said = lab.run(args).misused();
            assert!(said.contains("cannot be the name of an image"), "{said}");
        }
    }
    lab.ensure_untouched(&before, "a reference that leads out");
}

#[test]
fn a_name_that_leads_out_of_the_repository_is_refused_and_nothing_is_made_there() {
    let lab = lab();
    std::fs::create_dir(lab.path("outside")).unwrap();
    lab.write("outside/mine", b"mine");
    for name in ["../outside", "disk/../../outside", &lab.at("outside")] {
        for args in [
            &["list", name][..],
            &["forget", name, "--yes"],
            &["repair", name],
            &["relink", name, "copy.img"],
            &["verify", name],
        ] {
            lab.fails(FAILED, args);
            let files: Vec<_> = std::fs::read_dir(lab.path("outside")).unwrap().collect();
            assert_eq!(files.len(), 1, "{args:?}: {files:?}");
        }
    }
}

#[test]
fn a_name_that_is_no_name_is_not_called_damage() {
    let lab = lab();
    for name in ["disk/../disk", "disk/.", "./disk", "..", ".", ""] {
        for args in [&["list", name][..], &["forget", name, "--yes"], &["verify", name]] {
            lab.fails(FAILED, args);
        }
    }
}
