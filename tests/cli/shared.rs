//! What every verb that opens a repository does in the same way.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::config;
use crate::support::{FAILED, Lab, Run};

/// A lab with two snapshots of `disk.img`, a copy of it, an export of the first one, and nothing in the
/// way of an output.
fn lab() -> Lab {
    let (lab, _) = Lab::with_snapshots(2);
    lab.copy("disk.img", "copy.img");
    lab.done(&["export", "disk@1", "-o", "exported.delta"]);
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
        line.starts_with(&format!("{place} is not a repository; choose one with --repo")),
        "{line}"
    );
    assert!(line.ends_with("or create one with \"imgsnap init\""), "{line}");
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
    let object = String::from_utf8(lab.read("repo/config.000001")).unwrap();
    lab.write("repo/config.000001", object.replace("config 1 ", "config 3 ").as_bytes());
    let line = lab.fails(FAILED, args);
    let what =
        "configuration version 3 (this program supports 2); it was written by a later imgsnap";
    assert!(line.contains("config.000001: ") && line.contains(what), "{line}");
    // As a program from before this one says it of what is written now.
    lab.remove("repo/config.000001");
    lab.write("repo/repository.toml", b"version = 4\n");
    let line = lab.fails(FAILED, args);
    let what = "unsupported repository version 4 (supported: 3); it was created by a later imgsnap";
    assert!(line.contains("repository.toml: ") && line.contains(what), "{line}");
}

fn damaged_configuration(args: &[&str]) {
    let lab = lab();
    let good = lab.read("repo/config.000001");
    let refused = |place: &str, bad: &str| {
        let before = lab.everything();
        let run = lab.run(args);
        let code = run.code.unwrap();
        assert!([1, 3].contains(&code), "{bad}: {code}");
        let line = run.failed(code);
        assert!(line.contains(&format!("{place}: ")), "{bad}: {line}");
        lab.ensure_untouched(&before, &line);
    };
    // What is damaged can be rebuilt; what somebody wrote there cannot.
    if args[0] != "repair" {
        for bad in [&b""[..], &good[..100], &good.to_ascii_uppercase()] {
            lab.write("repo/config.000001", bad);
            refused("config.000001", &String::from_utf8_lossy(bad));
        }
    }
    let bad = ["no toml at all = = =", "version = \"one\""];
    for bad in bad {
        lab.write("repo/config.000001", &config::sealed(bad));
        refused("config.000001", bad);
    }
    // As an older program would read it.
    lab.remove("repo/config.000001");
    for bad in bad {
        lab.write("repo/repository.toml", bad.as_bytes());
        refused("repository.toml", bad);
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
    let shows = ["list", "show", "diff", "stats", "heads", "config"].contains(&args[0]);
    for (more, prints) in [(&[][..], true), (&["--quiet"], shows), (&["--json"], true)] {
        let run: Run = lab().run(&[args, more].concat()).done();
        assert_eq!(run.err, "", "{args:?} {more:?}");
        assert_eq!(run.text().ends_with('\n'), prints, "{args:?} {more:?}: {:?}", run.text());
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
    stats: &["stats", "disk"];
    stats_of_all: &["stats"];
    prune: &["prune", "disk", "--keep-last", "1", "--compact"];
    prune_dry: &["prune", "--all", "--keep-last", "1", "--dry-run"];
    delete: &["delete", "disk@2"];
    delete_base: &["delete", "disk@1", "--compact"];
    flatten: &["flatten", "disk@2"];
    export: &["export", "disk@2", "--since", "@1", "-o", "out.delta", "--force"];
    label: &["label", "disk@1", "new"];
    remove: &["remove", "disk", "--yes"];
    repair: &["repair"];
    relink: &["relink", "disk", "copy.img"];
    untrack: &["untrack", "disk"];
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

/// `import` makes a repository where there is none, too.
mod import {
    use crate::support::Run;

    /// Imports an export of `disk.img` into a repository: the one of the lab has it already.
    fn with_file(test: fn(&[&str])) {
        test(&["import", "exported.delta"]);
    }

    #[test]
    fn refuses_a_folder_of_something_else() {
        with_file(super::foreign_folder);
    }

    #[test]
    fn refuses_a_file_in_place_of_the_repository() {
        with_file(super::file_as_repository);
    }

    #[test]
    fn refuses_a_repository_of_a_later_version() {
        with_file(super::newer_repository);
    }

    #[test]
    fn refuses_a_repository_with_a_damaged_configuration() {
        with_file(super::damaged_configuration);
    }

    #[test]
    fn prints_json_with_whole_byte_counts() {
        with_file(super::json);
    }

    #[test]
    fn keeps_stderr_free_of_results() {
        with_file(super::says_nothing_on_stderr);
    }

    #[test]
    fn tells_of_the_repository_that_it_makes() {
        let lab = super::lab();
        let args = ["--repo", "new", "import", "exported.delta", "--name", "disk"];
        let run: Run = lab.run(&args).done();
        assert_eq!(run.err.lines().count(), 1, "{}", run.err);
        assert!(run.err.starts_with("imgsnap: created a repository in "), "{}", run.err);
    }
}

/// `apply` knows of no repository.
mod apply {
    const ARGS: &[&str] = &["apply", "exported.delta", "-o", "out.img"];

    #[test]
    fn needs_no_repository_and_looks_at_none() {
        let lab = super::lab();
        lab.write("repo/config.000001", b"no toml at all = = =");
        lab.done(ARGS);
        let lab = super::lab();
        lab.done(&super::with_repo("nowhere", ARGS));
        assert!(!lab.exists("nowhere"));
    }

    #[test]
    fn prints_json_with_whole_byte_counts() {
        super::json(ARGS);
    }

    #[test]
    fn keeps_stderr_free_of_results() {
        super::says_nothing_on_stderr(&[ARGS, &["--force"]].concat());
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
                assert!(line.contains("\"imgsnap list\" lists the images"), "{line}");
                if let Some(snapshot) = snapshot {
                    let line = lab.fails(super::FAILED, snapshot);
                    assert!(line.starts_with("there is no snapshot disk@7; "), "{line}");
                    assert!(line.ends_with("\"imgsnap list disk\" lists its snapshots"), "{line}");
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
    stats: &["stats", "web"], None;
    prune: &["prune", "web", "--keep-last", "1"], None;
    prune_dry: &["prune", "web", "--keep-last", "1", "--dry-run"], None;
    delete: &["delete", "web@1"], Some(&["delete", "disk@7"]);
    flatten: &["flatten", "web@1"], Some(&["flatten", "disk@7"]);
    export: &["export", "web@1", "-o", "out"], Some(&["export", "disk@7", "-o", "out"]);
    export_since: &["export", "web@1", "--since", "@2", "-o", "out"],
        Some(&["export", "disk@1", "--since", "@7", "-o", "out"]);
    label: &["label", "web@1", "new"], Some(&["label", "disk@7", "new"]);
    remove: &["remove", "web", "--yes"], None;
    repair: &["repair", "web"], None;
    relink: &["relink", "web", "copy.img"], None;
    untrack: &["untrack", "web"], None;
    relink_base_image: &["relink", "web", "--base-image", "copy.img"], None;
}

#[test]
fn a_reference_that_leads_out_of_the_repository_is_wrong_usage() {
    let lab = lab();
    let before = lab.everything();
    for name in ["../outside", "..", ".", "", "/etc", "disk/../disk"] {
        let reference = format!("{name}@1");
        for args in [
            &["delete", &reference][..],
            &["label", &reference, "x"],
            &["show", &reference],
            &["flatten", &reference],
            &["export", &reference, "-o", "out"],
        ] {
            let said = lab.run(args).misused();
            let why = if name.is_empty() { "missing image name" } else { "invalid image name" };
            assert!(said.contains(why), "{said}");
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
            &["remove", name, "--yes"],
            &["repair", name],
            &["relink", name, "copy.img"],
            &["verify", name],
            &["stats", name],
            &["prune", name, "--keep-last", "1"],
            &["relink", name, "--base-image", "copy.img"],
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
        for args in [
            &["list", name][..],
            &["remove", name, "--yes"],
            &["verify", name],
            &["stats", name],
            &["untrack", name],
            &["prune", name, "--keep-last", "1"],
        ] {
            lab.fails(FAILED, args);
        }
    }
}
