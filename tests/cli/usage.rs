//! What can be typed, what cannot, and what the program says of itself.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::support::{DONE, FAILED, KIB, Lab, Run, USAGE, disk, no_fork, noise};
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

const VERBS: [&str; 28] = [
    "init",
    "snapshot",
    "watch",
    "list",
    "heads",
    "show",
    "diff",
    "restore",
    "rollback",
    "verify",
    "stats",
    "untrack",
    "prune",
    "delete",
    "flatten",
    "export",
    "import",
    "apply",
    "label",
    "remove",
    "repair",
    "key",
    "requests",
    "config",
    "relink",
    "bench",
    "completions",
    "man",
];

#[test]
fn help_is_exactly_this() {
    insta::assert_snapshot!(Lab::bare().done(&["--help"]), @r#"
    Block-level incremental snapshots of disk images.

    A snapshot is written NAME@NUMBER, NAME@latest, NAME@head (the one that the live image last
    equalled), NAME@LABEL or NAME@TIME, such as vm@2026-11-20 (the newest one at or before that time).

    Usage: imgsnap [OPTIONS] <COMMAND>

    Commands:
      init         Create a repository
      snapshot     Take snapshots of image files, block devices or virtual machines [alias: backup]
      watch        Take snapshots of images at regular intervals until interrupted
      list         List images and their snapshots [alias: ls]
      heads        Show the newest commit of each image, for comparison with other hosts
      show         Show the details of a snapshot
      diff         Show how much two snapshots or images differ, and where
      restore      Write a snapshot, or part of it, to a file, a device or stdout
      rollback     Return the live image to a snapshot in place, writing only what differs
      hash         Print a digest of a snapshot's content, for comparison with the digest of an image
                   file
      verify       Check that every snapshot can be restored [alias: check]
      stats        Show the space used by snapshots, the growth by day, and where images change
      untrack      Remove the clones used to find changes; the next snapshot reads the whole image
      prune        Drop the snapshots that no retention rule keeps, and free their space
      delete       Delete a snapshot and the others of its group; snapshots that depend on them stay
                   intact [alias: rm]
      flatten      Turn a snapshot into a base, which depends on no other, without reading the image
      export       Export a snapshot to one delta file: all of it, or what changed since another
                   snapshot
      import       Import delta files into the repository, which can then continue their chain
      apply        Build an image from delta files and the image that they start from, without a
                   repository
      label        Show, set or remove the label of a snapshot
      protect      Protect a snapshot and the others of its group from prune, delete, remove and watch
      remove       Remove an image and all its snapshots from the repository
      repair       Rebuild a lost or damaged manifest; with --from, also repair damaged files
      key          Show or change the keys of an encrypted repository
      requests     Show, confirm or reject the requests of hosts to drop snapshots
      config       Show or change the configuration: retention rules, snapshot settings, defaults of new
                   bases
      relink       Set where the live file of an image, or its base image, is now
      plan         Split snapshots, a restore or a verification into tasks for several workers
      part         Run one task of a plan: store, restore or verify its part
      join         Combine the finished tasks of a plan into its result
      serve        Serve a repository to other hosts
      bench        Benchmark each operation against the limits of this machine
      completions  Print a shell completion script
      man          Write manual pages
      help         Print this message or the help of the given subcommand(s)

    Options:
      -h, --help
              Print help (see a summary with '-h')

      -V, --version
              Print version

    Global options:
      -r, --repo <DIR|URL>
              Repository [default: IMGSNAP_REPO, or else the user's data folder]

          --json
              Print results and errors as JSON, one object a line

      -q, --quiet
              Print warnings and errors only; commands that show something still print it

      -v, --verbose
              Print each step

          --color <WHEN>
              Use colors: auto, always or never [default: auto, as NO_COLOR and CLICOLOR_FORCE say]

          --lock-wait <TIME>
              Wait this long for another imgsnap to finish with the image, such as 30s [default: fail at
              once]

          --threads <N>
              Number of threads [default: one per core, at most 16]

          --limit-read <RATE>
              Limit reads of images and the repository, in bytes per second, such as 100M or 1.5GiB/s

          --limit-upload <RATE>
              Limit uploads to servers, in bytes per second

          --limit-download <RATE>
              Limit downloads from servers, in bytes per second

          --cache-dir <DIR>
              Folder for the cached index of repositories on servers [default: IMGSNAP_CACHE, or else
              the user's cache folder]

          --cache-size <SIZE>
              Maximum size of the cache [default: 4G]

          --no-cache
              Do not use the cache

          --connect <URI>
              Hypervisor that libvirt:DOMAIN refers to, such as qemu:///session [default: libvirt's]

          --accept-older <STATE>
              Accept IMAGE@COMMIT, or configuration @NUMBER, of an encrypted repository although this
              host has seen a newer one

          --key-file <FILE>
              Key file of an encrypted repository: 32 bytes, 64 hexadecimal digits, or a recovery text
              [default: IMGSNAP_KEY_FILE]

          --password-file <FILE>
              File whose first line is the passphrase of an encrypted repository [default:
              IMGSNAP_PASSWORD_FILE, or else the passphrase in IMGSNAP_PASSWORD]

          --password-fd <FD>
              Read the passphrase from a file descriptor

          --password-command <CMD>
              Run a command that prints the passphrase

          --owner-key <KEY>
              Public key of the owner, as received from the owner; snapshots are dropped only with its
              signature

          --owner-key-file <FILE>
              File with the owner's private key, on the owner's host [default: IMGSNAP_OWNER_KEY_FILE]
    "#);
}

#[test]
fn every_verb_explains_itself() {
    let lab = Lab::bare();
    let overview = lab.done(&["-h"]);
    for verb in VERBS {
        let help = lab.done(&[verb, "--help"]);
        assert!(help.contains(&format!("Usage: imgsnap {verb}")), "{help}");
        // The first line is the one of the overview, where long ones are broken.
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let line = words(&format!("{verb} {}", help.lines().next().unwrap()));
        assert!(words(&overview).contains(&line), "\"{line}\" is not in {overview}");
        assert!(help.contains("--json") && help.contains("--repo"), "{help}");
        assert_eq!(lab.done(&["help", verb]), help);
    }
}

#[test]
fn version_is_that_of_the_package() {
    let lab = Lab::bare();
    assert_eq!(lab.done(&["--version"]), concat!("imgsnap ", env!("CARGO_PKG_VERSION"), "\n"));
    assert_eq!(lab.done(&["-V"]), lab.done(&["--version"]));
}

#[test]
fn no_arguments_give_the_help_as_wrong_usage() {
    let lab = Lab::bare();
    let said = lab.run(&[]).misused();
    assert!(said.contains("Usage: imgsnap [OPTIONS] <COMMAND>"), "{said}");
}

#[test]
fn wrong_usage_exits_2_and_touches_nothing() {
    let (lab, _) = Lab::with_snapshots(2);
    let before = lab.everything();
    // What is typed, and what of it the answer must name.
    for (args, named) in [
        (&["frobnicate"][..], "frobnicate"),
        (&["snapshot"], "<IMAGE>"),
        (&["snapshot", "disk.img", "--nonsense"], "--nonsense"),
        (&["snapshot", "disk.img", "--full", "--differential"], "--differential"),
        (&["snapshot", "disk.img", "--full", "--parent", "@1"], "--parent"),
        (&["snapshot", "disk.img", "--differential", "--parent", "@1"], "--parent"),
        (&["snapshot", "disk.img", "--compression", "gzip"], "gzip"),
        (&["snapshot", "disk.img", "--compression", "zstd:99"], "zstd:99"),
        (&["snapshot", "disk.img", "disk.img"], "disk.img is given twice"),
        (&["snapshot", "disk.img", "more.img", "--name", "x"], "--name applies to one image only"),
        (
            &["snapshot", "disk.img", "more.img", "--parent", "@1"],
            "--parent applies to one image only",
        ),
        (&["list", "disk", "more"], "more"),
        (&["list", "--quiet", "--verbose"], "--verbose"),
        (&["list", "--threads", "0"], "--threads"),
        (&["list", "--threads", "17"], "--threads"),
        (&["list", "--threads", "many"], "many"),
        (&["snapshot", "disk.img", "--limit-read", "0"], "is too low; use at least 1M"),
        (&["verify", "--limit-read", "1023K/s"], "use at least 1M"),
        (&["verify", "--limit-read", "fast"], "write it like 100M or 1.5GiB/s"),
        (&["show"], "<REF>"),
        (&["show", "disk"], "does not name a snapshot"),
        (&["show", "disk@"], "missing snapshot after"),
        (&["show", "@1"], "@1"),
        (&["show", "disk@2026-13-01"], "2026-13-01"),
        (&["show", "disk@99999999999999999999"], "99999999999999999999"),
        (&["diff", "disk@1"], "<REF|IMAGE>"),
        (&["restore", "disk@1"], "--output"),
        (&["restore", "-o", "x"], "<REF>"),
        (&["restore", "disk", "-o", "x"], "does not name a snapshot"),
        (&["restore", "disk@1", "-o", "x", "--range", "1M"], "OFFSET+LENGTH"),
        (&["restore", "disk@1", "-o", "x", "--range", "+1"], "OFFSET+LENGTH"),
        (&["restore", "disk@1", "-o", "x", "--range", "1x+1"], "OFFSET+LENGTH"),
        (&["restore", "disk@1", "-o", "x", "--range", "1+0"], "0 bytes"),
        (&["rollback", "disk"], "--to"),
        (&["rollback", "--to", "@1"], "<IMAGE|NAME>"),
        (&["delete", "disk"], "does not name a snapshot"),
        (&["flatten"], "<REF>"),
        (&["flatten", "disk"], "does not name a snapshot"),
        (&["prune"], "or --all for all images"),
        (&["prune", "disk", "--all", "--keep-last", "1"], "--all"),
        (&["prune", "disk", "--keep-last", "0"], "keeps nothing; leave the rule out"),
        (&["prune", "disk", "--keep-daily", "-2"], "is not a count"),
        (&["prune", "disk", "--keep-weekly", "few"], "is not a count"),
        (&["prune", "disk", "--keep-within", "30"], "invalid duration"),
        (&["prune", "disk", "--keep-label", "["], "invalid label pattern"),
        (&["prune", "disk", "--keep-forever"], "--keep-forever"),
        (&["export", "disk@1"], "--output"),
        (&["export", "-o", "x"], "<REF>"),
        (&["export", "disk", "-o", "x"], "does not name a snapshot"),
        (&["import"], "<FILE|->"),
        (&["apply"], "<DELTA>"),
        (&["apply", "x.delta"], "--output"),
        (&["apply", "x.delta", "--in-place"], "--base"),
        (&["apply", "x.delta", "--in-place", "--base", "disk.img", "-o", "y"], "--output"),
        (&["snapshot", "disk.img", "--base-image", "copy.img", "--dry-run"], "--dry-run"),
        (&["stats", "disk", "more"], "more"),
        (&["label"], "<REF>"),
        (&["remove"], "<NAME>"),
        (&["relink", "disk"], "<IMAGE>"),
        (&["completions", "cmd"], "cmd"),
        (&["man"], "<DIR>"),
    ] {
        let said = lab.run(args).misused();
        assert!(said.contains(named), "{args:?}: \"{named}\" is not in: {said}");
        lab.ensure_untouched(&before, &args.join(" "));
    }
}

#[test]
fn general_options_stand_before_or_after_the_verb() {
    let (lab, _) = Lab::with_snapshots(1);
    let after = lab.done(&["list", "--json", "--threads", "1"]);
    assert_eq!(lab.done(&["--json", "--threads", "16", "list"]), after);
    assert!(after.starts_with('{'), "{after}");
}

#[test]
fn quiet_says_nothing_but_the_result_and_verbose_more() {
    let lab = Lab::bare();
    lab.write("disk.img", &[7; 8192]);
    lab.done(&["init"]);
    let quiet = lab.run(&["snapshot", "disk.img", "--quiet"]).done();
    assert_eq!((quiet.err.as_str(), quiet.text().as_str()), ("", ""));
    // What was asked for is shown all the same.
    assert!(lab.done(&["list", "-q"]).contains("1 snapshot"));
    // A restore to stdout has its line on stderr, and none if it is to be quiet.
    let told = lab.run(&["restore", "disk@1", "-o", "-"]).done();
    assert_eq!(told.err.lines().count(), 1, "{}", told.err);
    assert!(told.err.starts_with("imgsnap: disk@1 -> -  8.00 KiB"), "{}", told.err);
    assert_eq!(lab.run(&["restore", "disk@1", "-o", "-", "-q"]).done().err, "");
    // A repair that finds damage says what it found, if it is asked to.
    lab.flip(&lab.manifest("disk"), 200);
    let damaged = lab.read(&lab.manifest("disk"));
    assert_eq!(lab.run(&["repair", "disk"]).done().err, "");
    lab.write(&lab.manifest("disk"), &damaged);
    let more = lab.run(&["repair", "disk", "--verbose"]).done();
    assert!(more.err.contains("the manifest is damaged"), "{}", more.err);
}

#[test]
fn no_progress_bar_is_drawn_where_there_is_no_terminal() {
    let (lab, _) = Lab::with_snapshots(1);
    for args in [
        &["snapshot", "disk.img", "--full-scan"][..],
        &["verify"],
        &["restore", "disk@1", "-o", "out"],
        &["diff", "disk@1", "disk.img"],
        &["rollback", "disk", "--to", "@1", "--prove"],
    ] {
        assert_eq!(lab.run(args).done().err, "", "{args:?}");
    }
}

/// What is offered for the last of these words, by the way that a shell asks.
fn offered(lab: &Lab, words: &[&str]) -> Vec<String> {
    let mut command = lab.command(&[&["--", "imgsnap"], words].concat());
    // Whoever types has used nothing yet, so nothing is remembered.
    command.env("IMGSNAP_STATE", lab.path("state-of-completion"));
    command.env("IMGSNAP_COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", words.len().to_string());
    Run::of(&mut command).done().text().lines().map(str::to_owned).collect()
}

#[test]
fn completions_are_verbs_options_values_and_names() {
    let (lab, _) = Lab::with_snapshots(2);
    lab.done(&["label", "disk@1", "fresh"]);
    lab.write("web.img", &disk(1, 64 * KIB));
    lab.done(&["snapshot", "web.img"]);
    for verb in VERBS {
        assert_eq!(offered(&lab, &[verb]).first().map(String::as_str), Some(verb));
    }
    assert_eq!(offered(&lab, &["forg"]), [""; 0]);
    let of_disk = ["disk@latest", "disk@2", "disk@1", "disk@fresh"];
    for (words, want) in [
        (&["list", ""][..], &["disk", "web", "--last"][..]),
        (&["show", "d"], &of_disk),
        (&["show", "disk@"], &of_disk),
        (&["delete", "disk@1", "disk@f"], &["disk@fresh"]),
        (&["verify", "w"], &["web", "web@latest", "web@1"]),
        (&["rollback", "d"], &["disk", "disk.img"]),
        (&["rollback", "disk@f"], &["disk@fresh"]),
        (&["diff", "web@1", "w"], &["web@latest", "web@1", "web.img"]),
        (&["snapshot", "--track", ""], &["auto", "reflink", "none"]),
        (&["snapshot", "disk.img", "--skip-u"], &["--skip-unchanged"]),
        // Global options are offered by name.
        (&["show", "--lock"], &["--lock-wait"]),
        (&["--repo", "nowhere", "show", "d"], &[]),
        (&["--repo=s3://bucket/x", "show", "d"], &[]),
    ] {
        let found = offered(&lab, words);
        let found: Vec<&str> = found.iter().map(String::as_str).take(want.len().max(1)).collect();
        assert_eq!(found, want, "{words:?}");
    }
    // Nobody is asked for a passphrase, and none is needed where there is a key file.
    lab.write("key", &noise(7, 32));
    lab.set_mode("key", 0o600);
    let (key, sealed) = (lab.at("key"), lab.at("sealed"));
    let in_sealed = ["--repo", &sealed, "--key-file", &key];
    lab.done(&[&in_sealed[..], &["init", "--encrypt"]].concat());
    lab.done(&[&in_sealed[..], &["snapshot", "web.img"]].concat());
    assert_eq!(offered(&lab, &["--repo", &sealed, "list", "w"]), [""; 0]);
    assert_eq!(offered(&lab, &[&in_sealed[..], &["list", "w"]].concat()), ["web"]);
    assert_eq!(offered(&lab, &[&in_sealed[..], &["show", "web@1"]].concat()), ["web@1"]);
    assert!(!lab.exists("state-of-completion"));
}

#[test]
fn completions_are_scripts_that_shells_accept() {
    let lab = Lab::bare();
    let program = Path::new(env!("CARGO_BIN_EXE_imgsnap")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
    let ask_bash = ". ./bash && complete -p imgsnap && COMP_WORDS=(imgsnap roll) COMP_CWORD=1 && \
                    _clap_complete_imgsnap imgsnap roll imgsnap && echo \"${COMPREPLY[@]}\"";
    for (shell, args) in [
        ("bash", &["--norc", "-c", ask_bash][..]),
        ("zsh", &["-n", "./zsh"]),
        ("fish", &["--no-execute", "./fish"]),
        ("elvish", &[]),
        ("powershell", &[]),
    ] {
        lab.write(shell, lab.done(&["completions", shell]).as_bytes());
        assert!(!lab.exists("repo"), "completions need no repository");
        let is_there = std::env::split_paths(&path).any(|folder| folder.join(shell).exists());
        if args.is_empty() || !is_there {
            continue;
        }
        let mut command = Command::new(shell);
        command.args(args).env("PATH", &path).current_dir(lab.path(""));
        let run = Run::of(&mut command);
        assert_eq!(run.code, Some(DONE), "{shell}: {}", run.err);
        if shell == "bash" {
            assert_eq!(run.text().lines().last(), Some("rollback"), "{}", run.text());
        }
    }
}

#[test]
fn man_writes_a_page_for_the_program_and_for_each_verb() {
    let lab = Lab::bare();
    assert_eq!(lab.done(&["man", "new/pages"]), "");
    for verb in VERBS {
        let page = String::from_utf8(lab.read(&format!("new/pages/imgsnap-{verb}.1"))).unwrap();
        assert!(page.contains(".TH"), "{verb}: {page}");
        assert!(page.contains(".SH SYNOPSIS"), "{verb}: {page}");
    }
    let page = String::from_utf8(lab.read("new/pages/imgsnap.1")).unwrap();
    for words in [".TH", "imgsnap", "NAME@latest", "rollback"] {
        assert!(page.contains(words), "{words}: {page}");
    }
    assert!(!lab.exists("repo"), "man needs no repository");
}

#[test]
fn man_into_a_file_is_refused() {
    let lab = Lab::bare();
    lab.write("file", b"mine");
    let line = lab.fails(FAILED, &["man", "file"]);
    assert!(line.contains("cannot write to file"), "{line}");
}

#[test]
fn a_result_that_cannot_be_written_is_a_failure() {
    let (lab, _) = Lab::with_snapshots(1);
    for args in [
        &["list"][..],
        &["list", "--json"],
        &["completions", "bash"],
        &["verify"],
        &["stats"],
        &["prune", "disk", "--keep-last", "1", "--dry-run"],
        &["export", "disk@1", "-o", "-"],
    ] {
        let full = {
            let _calm = no_fork();
            File::options().write(true).open("/dev/full").unwrap()
        };
        let mut command = lab.command(args);
        command.stdin(Stdio::null()).stdout(full).stderr(Stdio::piped());
        let child = crate::support::spawn(&mut command);
        let run = Run::ended(&command, child.wait_with_output().unwrap());
        let line = run.failed(FAILED);
        assert!(line.contains("cannot write to stdout"), "{line}");
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error_to_complain_of() {
    let (lab, _) = Lab::with_snapshots(1);
    lab.done(&["export", "disk@1", "-o", "full.delta"]);
    for args in [
        &["restore", "disk@1", "-o", "-"][..],
        &["export", "disk@1", "-o", "-"],
        &["apply", "full.delta", "-o", "-"],
        &["stats", "disk"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = lab.command(args);
        command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped());
        let child = crate::support::spawn(&mut command);
        let run = Run::ended(&command, child.wait_with_output().unwrap());
        assert_eq!((run.code, run.err.as_str()), (Some(FAILED), ""), "{args:?}");
        assert_ne!(run.code, Some(USAGE));
    }
}
