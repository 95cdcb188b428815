//! `imgsnap init`

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::support::{FAILED, Lab, NOBODY, Run, integer, skipped, string};
use std::os::unix::fs::{PermissionsExt, chown};

#[test]
fn makes_a_repository_with_the_usual_parameters_and_says_so() {
    let lab = Lab::bare();
    let run = lab.run(&["init"]).done();
    let place = lab.at("repo");
    assert_eq!(run.text(), format!("created a repository in {place} (4K blocks, xxh3, lz4)\n"));
    assert_eq!(run.err, "");
    let config: toml::Table = lab.configuration().parse().unwrap();
    assert_eq!(config["new"]["block_size"].as_integer(), Some(4096));
    assert_eq!(config["new"]["digest"].as_str(), Some("xxh3"));
    assert_eq!(config["new"]["compression"].as_str(), Some("lz4"));
    assert_eq!(lab.done(&["list"]), format!("no images in {place} yet\n"));
    assert_eq!(lab.json(&["list"]), serde_json::json!([]));
}

#[test]
fn json_has_the_parameters() {
    let lab = Lab::bare();
    let made =
        lab.json(&["init", "--block-size", "64K", "--digest", "blake3", "--compression", "zstd:7"]);
    assert_eq!(string(&made, "repository"), lab.at("repo"));
    assert_eq!(integer(&made, "block_bytes"), 65536);
    assert_eq!(string(&made, "digest"), "blake3");
    assert_eq!(string(&made, "compression"), "zstd:7");
    let config = lab.configuration();
    assert!(config.contains(string(&made, "id")), "{config}");
}

#[test]
fn every_block_size_from_4k_to_1m_is_taken_and_used_and_restores() {
    let bytes = crate::support::disk(5, 1_100_000);
    for (text, block) in
        [("4K", 4096), ("8192", 8192), ("64KiB", 65536), ("256k", 262_144), ("1M", 1_048_576)]
    {
        let lab = Lab::bare();
        lab.write("disk.img", &bytes);
        lab.done(&["init", "--block-size", text]);
        assert_eq!(integer(&lab.json(&["snapshot", "disk.img"]), "block_bytes"), block);
        lab.restores("disk@1", &bytes);
    }
}

#[test]
fn every_digest_and_compression_is_taken_and_used_and_restores() {
    let bytes = crate::support::disk(6, 300_000);
    let mut sizes = Vec::new();
    for digest in ["xxh3", "blake3"] {
        for compression in ["lz4", "zstd", "zstd:19", "none"] {
            let lab = Lab::bare();
            lab.write("disk.img", &bytes);
            lab.done(&["init", "--digest", digest, "--compression", compression]);
            let taken = lab.json(&["snapshot", "disk.img"]);
            assert_eq!(string(&lab.json(&["show", "disk@1"]), "digest"), digest);
            lab.restores("disk@1", &bytes);
            sizes.push((compression, integer(&taken, "stored_bytes")));
        }
    }
    let size = |name| sizes.iter().find(|(c, _)| *c == name).unwrap().1;
    assert!(size("zstd:19") <= size("zstd") && size("zstd") < size("none"), "{sizes:?}");
    assert!(size("lz4") < size("none"), "{sizes:?}");
}

#[test]
fn a_bad_block_size_is_wrong_usage_and_makes_nothing() {
    for bad in [
        "0",
        "1",
        "2K",
        "2048",
        "5000",
        "12K",
        "2M",
        "1G",
        "-4K",
        "",
        "4X",
        "K",
        "99999999999999999999",
    ] {
        let lab = Lab::bare();
        let said = lab.run(&["init", &format!("--block-size={bad}")]).misused();
        assert!(said.contains("--block-size"), "{bad}: {said}");
        assert!(!lab.exists("repo"), "{bad}");
    }
    let said = Lab::bare().run(&["init", "--block-size", "5000"]).misused();
    assert!(said.contains("block size 5000 is not a power of two from 4K to 1M"), "{said}");
}

#[test]
fn a_bad_digest_or_compression_is_wrong_usage_and_makes_nothing() {
    for (option, bad) in [
        ("--digest", "md5"),
        ("--digest", ""),
        ("--compression", "gzip"),
        ("--compression", "zstd:"),
        ("--compression", "zstd:99"),
        ("--compression", "zstd:x"),
        ("--compression", "lz4:3"),
        ("--compression", ""),
    ] {
        let lab = Lab::bare();
        let said = lab.run(&["init", &format!("{option}={bad}")]).misused();
        assert!(said.contains(option), "{option} {bad}: {said}");
        assert!(!lab.exists("repo"), "{option} {bad}");
    }
}

#[test]
fn a_repository_that_is_there_is_left_alone() {
    let (lab, _) = Lab::with_snapshots(1);
    let line = lab.fails(FAILED, &["init", "--block-size", "64K"]);
    assert!(line.contains("is already a repository (new bases: 4K blocks, xxh3, lz4)"), "{line}");
    assert!(line.contains("choose another folder"), "{line}");
}

#[test]
fn a_folder_with_something_in_it_is_left_alone() {
    let lab = Lab::bare();
    std::fs::create_dir(lab.path("repo")).unwrap();
    lab.write("repo/thesis.txt", b"do not touch");
    let line = lab.fails(FAILED, &["init"]);
    assert!(
        line.contains("is not empty (it holds \"thesis.txt\"); choose an empty folder"),
        "{line}"
    );
}

#[test]
fn the_root_of_a_file_system_whose_lost_files_are_another_users_becomes_a_repository() {
    let lab = Lab::bare();
    std::fs::create_dir_all(lab.path("repo/lost+found")).unwrap();
    lab.write("disk.img", b"bytes");
    let Some(mut init) = lab.command_of_nobody(&["init"]) else {
        return skipped("init::the_root_of_a_file_system", "not root");
    };
    chown(lab.path("repo"), Some(NOBODY), None).unwrap();
    std::fs::set_permissions(lab.path("repo/lost+found"), PermissionsExt::from_mode(0o700))
        .unwrap();
    Run::of(&mut init).done();
    for args in [&["snapshot", "disk.img"][..], &["list"], &["verify"]] {
        Run::of(&mut lab.command_of_nobody(args).unwrap()).done();
    }
}

#[test]
fn a_repository_is_made_where_one_may_write_and_not_read() {
    let lab = Lab::bare();
    std::fs::create_dir(lab.path("drop")).unwrap();
    std::fs::set_permissions(lab.path("drop"), PermissionsExt::from_mode(0o1733)).unwrap();
    let Some(mut init) = lab.command_of_nobody(&["--repo", "drop/mine", "init"]) else {
        return skipped("init::a_repository_is_made_where_one_may_write", "not root");
    };
    Run::of(&mut init).done();
}

#[test]
fn a_way_up_from_a_folder_that_is_not_there_is_refused_before_anything_is_made() {
    let lab = Lab::bare();
    let line = lab.fails(FAILED, &["--repo", "sub/../repo", "init"]);
    assert!(line.contains("\"..\""), "{line}");
    assert!(!lab.exists("sub") && !lab.exists("repo"));
}

#[test]
fn a_file_in_the_place_of_the_repository_is_left_alone() {
    let lab = Lab::bare();
    lab.write("repo", b"a file");
    let line = lab.fails(FAILED, &["init"]);
    assert!(line.contains(&lab.at("repo")), "{line}");
}

#[test]
fn an_empty_folder_and_one_that_is_not_there_become_the_repository() {
    let lab = Lab::bare();
    std::fs::create_dir(lab.path("repo")).unwrap();
    lab.done(&["init"]);
    lab.done(&["init", "--repo", "a"]);
    assert!(lab.exists("repo/config.000001") && lab.exists("a/config.000001"));
}

#[test]
fn nobody_else_may_look_into_a_new_repository() {
    let lab = Lab::new();
    assert_eq!(lab.path("repo").metadata().unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn the_option_goes_before_the_variable() {
    let lab = Lab::bare();
    lab.done(&["init", "--repo", "other"]);
    assert!(lab.exists("other/config.000001"));
    assert!(!lab.exists("repo"));
    lab.done(&["init", "-r", "third"]);
    assert!(lab.exists("third/config.000001"));
}

#[test]
fn without_option_and_variable_the_data_folder_of_the_user_is_the_repository() {
    let lab = Lab::bare();
    for folder in ["home", "data"] {
        std::fs::create_dir(lab.path(folder)).unwrap();
        chown(lab.path(folder), Some(NOBODY), None).ok();
    }
    let command = lab.command_of_nobody(&["init"]);
    let Some(mut command) = command else {
        return skipped("init::without_option_and_variable", "no setpriv, or not root");
    };
    // An empty variable is as good as none.
    Run::of(command.env("IMGSNAP_REPO", "")).done();
    assert!(lab.exists("home/.local/share/imgsnap/config.000001"));
    let mut command = lab.command_of_nobody(&["init"]).unwrap();
    Run::of(command.env_remove("IMGSNAP_REPO").env("XDG_DATA_HOME", lab.path("data"))).done();
    assert!(lab.exists("data/imgsnap/config.000001"));
    let mut command = lab.command_of_nobody(&["init"]).unwrap();
    let line = Run::of(command.env_remove("IMGSNAP_REPO").env_remove("HOME")).failed(FAILED);
    assert!(line.ends_with("give one with --repo"), "{line}");
}

#[test]
fn a_repository_is_named_as_a_path_or_as_the_url_of_a_file() {
    let lab = Lab::bare();
    let url = format!("file://{}", lab.at("a%20b"));
    lab.done(&["--repo", &url, "init"]);
    assert!(std::path::Path::new(&lab.at("a b/config.000001")).is_file());
    for (url, says) in [
        ("sftp://host/r", "sftp repositories are not supported: sftp://host/r"),
        ("s3://key:secret@bucket/r", "it must not contain credentials"),
        ("file://r", "file://r does not name an absolute path"),
    ] {
        for verb in ["init", "list"] {
            let err = lab.fails(FAILED, &["--repo", url, verb]);
            assert!(err.contains(says), "{err}");
        }
    }
    let folders = std::fs::read_dir(lab.at(".")).unwrap();
    assert_eq!(folders.count(), 2, "a folder was made, besides that of the host state");
}
