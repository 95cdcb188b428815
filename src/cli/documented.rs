//! A test of the pages that users read: the parser accepts every `imgsnap` command in them.
//!
//! In blocks called `sh` every command is checked, in all other blocks those after a prompt (`$ `), after
//! `ExecStart=` and in `command="..."` (authorized_keys), and in the text every code span that begins with
//! `imgsnap`. A span that only names a verb need not have its arguments.

use super::args::{Args, Command as Verb};
use super::manual;
use clap::error::ErrorKind;
use clap::{Command, FromArgMatches};
use std::path::Path;

/// The words of one command, as a shell would pass them.
type Words = Vec<String>;

/// A call of `imgsnap` in a page.
#[derive(Debug)]
struct Call {
    words: Words,
    /// True if the rest of the arguments comes from elsewhere: `xargs` adds them.
    is_open: bool,
    /// True if it is in a code span, which may name a verb without its arguments.
    is_span: bool,
}

/// Splits a script into its simple commands. Redirections and comments are dropped, expansions are kept.
fn split(script: &str) -> Vec<Words> {
    let (mut commands, mut words, mut word) = (Vec::new(), Words::new(), None::<String>);
    let mut is_target = false;
    let mut rest = script.chars().peekable();
    let end_word = |word: &mut Option<String>, words: &mut Words, is_target: &mut bool| {
        if let Some(word) = word.take()
            && !std::mem::take(is_target)
        {
            words.push(word);
        }
    };
    while let Some(c) = rest.next() {
        match c {
            '\'' | '"' => {
                let quoted = word.get_or_insert_default();
                while let Some(inner) = rest.next().filter(|inner| *inner != c) {
                    quoted.push(inner);
                }
            }
            '\\' => match rest.next() {
                Some('\n') | None => {}
                Some(escaped) => word.get_or_insert_default().push(escaped),
            },
            '#' if word.is_none() => while rest.next_if(|c| *c != '\n').is_some() {},
            '>' | '<' => {
                // The number before it is a descriptor, and what follows is a file.
                word.take_if(|word| word.bytes().all(|b| b.is_ascii_digit()));
                end_word(&mut word, &mut words, &mut is_target);
                while rest.next_if(|c| ['>', '<', '&'].contains(c)).is_some() {}
                is_target = true;
            }
            '\n' | '|' | '&' | ';' | '(' | ')' => {
                end_word(&mut word, &mut words, &mut is_target);
                commands.push(std::mem::take(&mut words));
            }
            c if c.is_whitespace() => end_word(&mut word, &mut words, &mut is_target),
            c => word.get_or_insert_default().push(c),
        }
    }
    end_word(&mut word, &mut words, &mut is_target);
    commands.push(words);
    commands.retain(|words| !words.is_empty());
    commands
}

/// The words from `imgsnap` on, if that is what a command runs.
fn call(words: &[String], is_span: bool) -> Option<Call> {
    let is_setting = |word: &str| word.split_once('=').is_some_and(|(name, _)| is_name(name));
    let start =
        words.iter().position(|word| !is_setting(word) && word != "do" && word != "then")?;
    let words = words.get(start..)?;
    let is_program = |word: &String| word == "imgsnap" || word.ends_with("/imgsnap");
    let runs_it = match words.first()?.as_str() {
        "sudo" | "ssh" | "xargs" => words.iter().position(is_program)?,
        _ if words.first().is_some_and(is_program) => 0,
        _ => return None,
    };
    let is_open = words.first().is_some_and(|word| word == "xargs");
    Some(Call { words: words.get(runs_it..)?.to_vec(), is_open, is_span })
}

fn is_name(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_uppercase() || b == b'_' || b.is_ascii_digit())
}

/// True if the words are verbs alone, as in `imgsnap key add`.
fn names_a_verb(words: &[String], command: &Command) -> bool {
    let mut verbs = words.iter().skip(1);
    verbs.try_fold(command, |at, word| at.find_subcommand(word)).is_some()
}

/// Why the parser refuses a command.
fn refusal(call: &Call) -> Option<String> {
    let command = manual::command();
    let error = match command.clone().try_get_matches_from(&call.words) {
        Ok(matches) => {
            let args = Args::from_arg_matches(&matches).map_err(|e| e.to_string());
            // Whether it can ask depends on the terminal, not on what is typed.
            let asks = matches!(&args, Ok(args) if matches!(args.command, Verb::Remove(_)));
            return args.and_then(|args| if asks { Ok(()) } else { super::check(&args) }).err();
        }
        Err(error) => error,
    };
    let is_missing = matches!(
        error.kind(),
        ErrorKind::MissingRequiredArgument
            | ErrorKind::MissingSubcommand
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    );
    let is_fine = match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => true,
        _ => is_missing && (call.is_open || call.is_span && names_a_verb(&call.words, &command)),
    };
    (!is_fine).then(|| error.to_string())
}

/// All calls in a page.
fn calls(page: &str) -> Vec<Call> {
    let (mut scripts, mut text) = (vec![], String::new());
    let mut block = None::<(&str, String)>;
    for line in page.lines() {
        match (&mut block, line.trim_start().strip_prefix("```")) {
            (None, Some(kind)) => block = Some((kind, String::new())),
            (Some(_), Some(_)) => scripts.extend(block.take().map(|(_, script)| (script, false))),
            (Some((kind, script)), None) => {
                let typed = match *kind {
                    "sh" => Some(line),
                    _ => after_mark(line),
                };
                script.extend(typed.into_iter().flat_map(|typed| [typed, "\n"]));
            }
            (None, None) => text.extend([line, " "]),
        }
    }
    let spans = text.split('`').skip(1).step_by(2);
    let whole = |span: &&str| !span.contains('…') && !span.contains("...");
    let is_call = |span: &&str| span.starts_with("imgsnap ") || span.starts_with("sudo imgsnap ");
    scripts.extend(spans.filter(is_call).filter(whole).map(|span| (span.to_owned(), true)));
    let calls = scripts.iter().flat_map(|(script, is_span)| {
        split(script).into_iter().filter_map(|words| call(&words, *is_span))
    });
    calls.collect()
}

/// What is run by a line of a transcript, of a unit, or of `authorized_keys`.
fn after_mark(line: &str) -> Option<&str> {
    let forced = || line.strip_prefix("command=\"").and_then(|line| line.split('"').next());
    line.strip_prefix("$ ").or_else(|| line.strip_prefix("ExecStart=")).or_else(forced)
}

/// Everything in docs, README.md, and the README of the packages.
fn pages() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let pages = docs.filter(|path| path.extension().is_some_and(|end| end == "md"));
    let others = ["README.md", "packaging/README.md"].map(|page| root.join(page));
    let read = |path: std::path::PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        (path.strip_prefix(root).unwrap().to_string_lossy().into_owned(), text)
    };
    pages.chain(others).map(read).collect()
}

/// The calls in a page that the parser refuses, and why.
fn refused(page: &str) -> Vec<String> {
    let calls = calls(page).into_iter();
    let refused = calls.filter_map(|call| {
        let why = refusal(&call)?;
        Some(format!("{}\n{why}", call.words.join(" ")))
    });
    refused.collect()
}

#[test]
fn the_parser_accepts_every_command_in_the_documentation() {
    let (mut wrong, mut count) = (Vec::new(), 0);
    for (name, page) in pages() {
        count += calls(&page).len();
        wrong.extend(refused(&page).into_iter().map(|what| format!("{name}: {what}")));
    }
    assert!(count > 200, "only {count} calls were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_page_is_refused_for_an_unknown_option_or_verb_wherever_it_stands() {
    let sound = "```sh\nA=b imgsnap -r x list >out 2>&1 # all\nlist | xargs -n 1 imgsnap part latest\n\
                 imgsnap export vm@1 -o - | ssh host imgsnap import - --name vm\n```\n\
                 ```console\n$ imgsnap plan vm.img --source-held \"it's \\\noff\"\nvm@1  a base\n```\n\
                 ```ini\nExecStart=/usr/bin/imgsnap prune --all\n```\n\
                 Both `imgsnap key add` and `imgsnap\nlist vm` are run.\n";
    assert_eq!(calls(sound).len(), 8, "{:?}", calls(sound));
    assert_eq!(refused(sound), Vec::<String>::new());
    for wrong in [
        "```sh\nimgsnap list --unknown\n```",
        "```sh\nA=b sudo imgsnap unknown\n```",
        "```sh\nimgsnap list | ssh host imgsnap unknown\n```",
        "```sh\nimgsnap list |\n    imgsnap unknown\n```",
        "```sh\nxargs -n 1 imgsnap part --unknown\n```",
        "```sh\nimgsnap restore\n```",
        "```console\n$ true && imgsnap list --last 0\n```",
        "```\ncommand=\"imgsnap serve store\",restrict\n```",
        "```ini\nExecStart=/usr/bin/imgsnap watch vm.img\n```",
        "It is `imgsnap unknown`.",
        "It is `imgsnap list\n--unknown`.",
        "It is `imgsnap restore --force`.",
    ] {
        assert_eq!(refused(wrong).len(), 1, "{wrong}");
    }
}
