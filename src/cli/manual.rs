//! What the manual says of each verb beside its options: examples, exit codes, variables.

use super::args::Args;
use super::exit;
use clap::{Command, CommandFactory};
use clap_mangen::Man;
use imgsnap::base::error::{Error, Result};
use imgsnap::base::folder::{Folder, resolve};
use imgsnap::base::uri::Shown;
use imgsnap::refuse_inside_any;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

/// What is typed, of each verb, and what for.
pub const EXAMPLES: [(&str, [(&str, &str); 2]); 32] = [
    (
        "init",
        [
            ("imgsnap init --compression zstd:3", "make the repository of IMGSNAP_REPO"),
            ("imgsnap --repo s3://backup/vm init --encrypt", "make an encrypted one in S3"),
        ],
    ),
    (
        "snapshot",
        [
            ("imgsnap snapshot vm.img --label clean", "take a snapshot of an image file"),
            (
                "imgsnap snapshot libvirt:web --freeze agent",
                "take one of a running machine's disks",
            ),
        ],
    ),
    (
        "watch",
        [
            (
                "imgsnap watch vm.img --every 5min --keep-within 48h",
                "one each five minutes, for two days",
            ),
            ("imgsnap watch vm.img --every 1d --label nightly", "one a day, with a label"),
        ],
    ),
    (
        "plan",
        [
            (
                "imgsnap plan 's3://images/*.img' --json",
                "cut the snapshots of many images into tasks",
            ),
            ("imgsnap plan list", "show how far the plans are"),
        ],
    ),
    (
        "part",
        [
            ("imgsnap part latest 3", "do task 3 of the newest plan"),
            ("imgsnap part 7f3a 3 --json", "do it, and print its object and digest for programs"),
        ],
    ),
    (
        "join",
        [
            ("imgsnap join latest", "commit what the workers have made"),
            ("imgsnap join 7f3a --image vm", "commit one image of it"),
        ],
    ),
    (
        "serve",
        [
            (
                "imgsnap serve store --stdio --append-only --path /srv/vm1",
                "let a host only add snapshots",
            ),
            ("imgsnap serve store --stdio", "what ssh starts for ssh://HOST/PATH"),
        ],
    ),
    (
        "list",
        [
            ("imgsnap list", "list all images and snapshots"),
            ("imgsnap list vm --last 5", "list the five newest snapshots of vm"),
        ],
    ),
    (
        "heads",
        [
            ("imgsnap heads", "show the newest commit of each image"),
            ("imgsnap heads --json", "show it for programs"),
        ],
    ),
    (
        "show",
        [
            ("imgsnap show vm@latest", "show all that is known of the newest snapshot"),
            ("imgsnap show vm@latest~1", "of the one before"),
        ],
    ),
    (
        "diff",
        [
            ("imgsnap diff vm@1 vm@latest", "show what changed between two snapshots"),
            ("imgsnap diff vm@latest vm.img", "show what changed since the newest one"),
        ],
    ),
    (
        "restore",
        [
            ("imgsnap restore vm@latest -o vm.img", "restore the newest snapshot to a new file"),
            (
                "imgsnap restore vm@1h -o /dev/vg/vm --force",
                "restore what was an hour ago to a device",
            ),
        ],
    ),
    (
        "rollback",
        [
            ("imgsnap rollback vm --to vm@clean", "bring the live image back to a snapshot"),
            ("imgsnap rollback vm --to @latest --dry-run", "show what that would write"),
        ],
    ),
    (
        "hash",
        [
            (
                "imgsnap hash vm@latest",
                "print the SHA-256 of a snapshot's content, as sha256sum does",
            ),
            ("imgsnap hash vm@3 --algorithm blake3", "print its BLAKE3"),
        ],
    ),
    (
        "verify",
        [
            ("imgsnap verify", "check all of the repository"),
            ("imgsnap verify vm@latest --quick", "check the checksums of one snapshot"),
        ],
    ),
    (
        "stats",
        [
            ("imgsnap stats vm", "show what takes the space, and where the image changes"),
            (
                "imgsnap stats --metrics /var/lib/prometheus/node-exporter/imgsnap.prom",
                "for node_exporter",
            ),
        ],
    ),
    (
        "untrack",
        [
            ("imgsnap untrack vm", "remove the clone that tracks changes, and free its space"),
            ("imgsnap untrack vm --json", "and print how much was freed"),
        ],
    ),
    (
        "prune",
        [
            ("imgsnap prune vm --keep-daily 7 --keep-weekly 4 --keep-monthly 12", "keep by age"),
            ("imgsnap prune --all --dry-run", "show what the configured rules would drop, and why"),
        ],
    ),
    (
        "delete",
        [
            ("imgsnap delete vm@2", "delete a snapshot; those that depend on it stay"),
            ("imgsnap delete vm@2 vm@3 --compact", "delete two, and merge their files at once"),
        ],
    ),
    (
        "flatten",
        [
            ("imgsnap flatten vm@latest", "make the newest snapshot a base"),
            ("imgsnap flatten vm@monthly-11", "make a labelled one a base"),
        ],
    ),
    (
        "export",
        [
            ("imgsnap export vm@1 -o vm-1.delta", "write a self-contained delta file"),
            ("imgsnap export vm@2 --since @1 -o day.delta", "write only what changed since @1"),
        ],
    ),
    (
        "import",
        [
            ("imgsnap import day.delta", "add a snapshot from a delta file"),
            ("imgsnap import - --name vm", "add one from standard input"),
        ],
    ),
    (
        "apply",
        [
            ("imgsnap apply day.delta --base copy.img --in-place", "bring a copy up to date"),
            ("imgsnap apply vm-1.delta day.delta -o vm.img", "make an image from delta files"),
        ],
    ),
    (
        "label",
        [
            ("imgsnap label vm@2 before-upgrade", "give a snapshot a label"),
            ("imgsnap label vm@2 --remove", "remove its label"),
        ],
    ),
    (
        "protect",
        [
            ("imgsnap protect vm@clean", "keep a snapshot whatever the rules say"),
            ("imgsnap protect vm@clean --off", "let it be dropped again"),
        ],
    ),
    (
        "remove",
        [
            ("imgsnap remove vm", "remove an image with all its snapshots, after asking"),
            ("imgsnap remove vm --yes", "remove it without asking"),
        ],
    ),
    (
        "repair",
        [
            ("imgsnap repair vm", "rebuild a lost or damaged manifest"),
            (
                "imgsnap repair vm --from /backup/snapshots --from vm.img",
                "recover damaged blocks, too",
            ),
        ],
    ),
    (
        "key",
        [
            ("imgsnap key list", "show what opens the repository"),
            ("imgsnap key export", "print the recovery text, to be kept on paper"),
        ],
    ),
    (
        "requests",
        [
            ("imgsnap requests list", "show what hosts ask the owner to drop"),
            ("imgsnap requests confirm e4dc", "drop what a request asks for"),
        ],
    ),
    (
        "config",
        [
            ("imgsnap config show", "print the configuration"),
            ("imgsnap config set prune.keep_daily 7", "set one key"),
        ],
    ),
    (
        "relink",
        [
            ("imgsnap relink vm /new/place/vm.img", "record where the live image is now"),
            ("imgsnap relink vm --base-image /templates/golden.img", "or its base image"),
        ],
    ),
    (
        "bench",
        [
            ("imgsnap bench --size 8G", "measure every verb against the limits of this machine"),
            ("imgsnap bench --plot bench.svg", "and draw them"),
        ],
    ),
];

const EXIT_STATUS: [(&str, &str); 8] = [
    ("0", "Success."),
    ("1", "Failure; one line on standard error says what, where and what to do."),
    ("2", "Wrong usage of the command line."),
    ("3", "Damage was found."),
    ("4", "The image, the target or the repository is in use."),
    ("5", "A key is missing, or does not open the repository."),
    ("6", "part: no other attempt would do the task either."),
    ("130", "Interrupted by a signal."),
];

const ENVIRONMENT: [(&str, &str); 10] = [
    ("IMGSNAP_REPO", "The repository, unless --repo names it."),
    ("IMGSNAP_STATE", "Folder for what this host remembers."),
    ("IMGSNAP_CACHE", "Folder for the index of repositories on servers."),
    ("IMGSNAP_KEY_FILE", "Key file of an encrypted repository."),
    ("IMGSNAP_PASSWORD_FILE", "File with its passphrase."),
    ("IMGSNAP_PASSWORD", "Its passphrase."),
    ("IMGSNAP_OWNER_KEY_FILE", "File with the owner's private key."),
    ("IMGSNAP_SSH", "The ssh program, with options."),
    ("IMGSNAP_SSH_PROGRAM", "Path of imgsnap on the other host."),
    ("NO_COLOR, CLICOLOR_FORCE", "No colors; colors also where the output is no terminal."),
];

fn examples(verb: &str) -> Option<&'static [(&'static str, &'static str); 2]> {
    EXAMPLES.iter().find(|(of, _)| *of == verb).map(|(_, examples)| examples)
}

/// Global options that `-h` shows, too.
const USUAL: [&str; 4] = ["repo", "json", "quiet", "verbose"];

/// All that can be typed, with examples at the end of each verb's help.
pub fn command() -> Command {
    let command = Args::command().mut_args(|arg| {
        let is_rare = arg.is_global_set() && !USUAL.contains(&arg.get_id().as_str());
        arg.hide_short_help(is_rare)
    });
    EXAMPLES.iter().fold(command, |command, (verb, examples)| {
        let lines = examples.iter().map(|(typed, why)| format!("  {typed}\n      {why}"));
        let text = format!("Examples:\n{}", lines.collect::<Vec<String>>().join("\n"));
        command.mut_subcommand(verb, |verb| verb.after_help(text))
    })
}

/// Writes a page for each verb, over those that are there.
pub fn write(folder: &Path) -> Result<ExitCode> {
    let failed = |e| Error::os("write to", folder.shown(), e);
    refuse_inside_any(&folder.join("imgsnap.1"))?;
    std::fs::create_dir_all(folder).map_err(failed)?;
    let folder = Folder::open(&resolve(folder)?).map_err(failed)?;
    let mut command = Args::command().disable_help_subcommand(true);
    command.build();
    let verbs = command.get_subcommands().filter(|verb| !verb.is_hide_set());
    for page in verbs.chain([&command]) {
        let man = Man::new(page.clone());
        let mut text = Vec::new();
        man.render(&mut text).map_err(failed)?;
        sections(page.get_name(), &mut text).map_err(failed)?;
        folder.write(man.get_filename(), &text).map_err(failed)?;
    }
    Ok(exit::DONE)
}

/// What a page has beside the options.
fn sections(verb: &str, page: &mut Vec<u8>) -> std::io::Result<()> {
    let escaped = |text: &str| text.replace('\\', "\\\\").replace('-', "\\-");
    if let Some(examples) = examples(verb) {
        writeln!(page, ".SH EXAMPLES")?;
        for (typed, why) in examples {
            writeln!(page, ".TP\n\\fB{}\\fR\n{}", escaped(typed), escaped(why))?;
        }
    }
    for (title, rows) in [("EXIT STATUS", &EXIT_STATUS[..]), ("ENVIRONMENT", &ENVIRONMENT[..])] {
        writeln!(page, ".SH \"{title}\"")?;
        for (name, meaning) in rows {
            writeln!(page, ".TP\n\\fB{}\\fR\n{}", escaped(name), escaped(meaning))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_has_two_examples_that_can_be_typed() {
        let command = command();
        for verb in command.get_subcommands() {
            let name = verb.get_name();
            if ["help", "completions", "man"].contains(&name) {
                continue;
            }
            assert!(examples(name).is_some(), "{name} has no examples");
        }
        for (verb, examples) in EXAMPLES {
            for (typed, _) in examples {
                let words = typed.split(' ').map(|word| word.trim_matches('\''));
                let parsed = super::command().try_get_matches_from(words);
                let parsed = parsed.unwrap_or_else(|e| panic!("{typed}: {e}"));
                assert_eq!(parsed.subcommand_name(), Some(verb), "{typed}");
            }
        }
    }
}
