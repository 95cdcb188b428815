//! `imgsnap config`: what is shown, set and edited, what is refused, and repositories of older programs.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::config;
use crate::support::{BUSY, DAMAGE, FAILED, Lab, Run, integer, string};
use std::os::unix::fs::PermissionsExt;

/// Makes the repository one of an older program: all of its configuration is `repository.toml`.
fn make_old(lab: &Lab, more: &str) -> String {
    let text = format!("# mine\nversion = 1\n{}\n{more}", lab.configuration());
    for entry in std::fs::read_dir(lab.path("repo")).unwrap().flatten() {
        if entry.file_name().to_str().unwrap().starts_with("config.") {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    lab.write("repo/repository.toml", text.as_bytes());
    text
}

/// What a program from before numbered configurations does: it reads `version`, and refuses any but 1.
fn an_older_program_refuses(lab: &Lab) -> bool {
    let text = String::from_utf8(lab.read("repo/repository.toml")).unwrap();
    text.parse::<toml::Table>().unwrap()["version"].as_integer().unwrap() > 1
}

#[test]
fn what_is_set_is_shown_and_what_was_written_stays() {
    let lab = Lab::new();
    assert!(an_older_program_refuses(&lab));
    let mut text = lab.done(&["config", "show"]);
    assert_eq!(text, lab.configuration());
    text += "\n# keep this\n[prune] # and this\nkeep_last = 3   # and that\n";
    config::change(lab.path("repo"), |_| text.clone());
    for (key, value, old, new) in [
        ("prune.keep_last", "4", "keep_last = 3   #", "keep_last = 4   #"),
        ("prune.keep_daily", "unlimited", "that\n", "that\nkeep_daily = \"unlimited\"\n"),
        ("prune.keep_label", "[\"a-*\"]", "ted\"\n", "ted\"\nkeep_label = [\"a-*\"]\n"),
        ("new.block_size", "64K", "block_size = 4096", "block_size = 65536"),
        ("new.compression", "zstd:7", "\"lz4\"", "\"zstd:7\""),
        (
            "images.\"vm.1\".prune.keep_last",
            "3",
            "[\"a-*\"]\n",
            "[\"a-*\"]\n\n[images.\"vm.1\".prune]\nkeep_last = 3\n",
        ),
        (
            "images.vm.snapshot.track",
            "none",
            "keep_last = 3\n",
            "keep_last = 3\n\n[images.vm.snapshot]\ntrack = \"none\"\n",
        ),
    ] {
        assert!(text.contains(old), "{text}");
        text = text.replacen(old, new, 1);
        let before: u64 = lab.config_object().split_once('.').unwrap().1.parse().unwrap();
        let set = lab.json(&["config", "set", key, value]);
        assert_eq!(integer(&set, "number"), before + 1, "{key}");
        assert_eq!(lab.done(&["config", "show"]), text, "{key}");
        // The same once more is nothing.
        let said = lab.done(&["config", "set", key, value]);
        assert_eq!(said, "the configuration is unchanged\n", "{key}");
    }
    lab.done(&["config", "set", "images.vm", "--unset"]);
    lab.done(&["config", "set", "prune.keep_label", "--unset"]);
    lab.done(&["config", "set", "prune.keep_daily", "--unset"]);
    let gone = ["keep_label", "keep_daily", "track"];
    assert!(gone.iter().all(|key| !lab.configuration().contains(key)));
    let shown = lab.json(&["config", "show"]);
    assert_eq!(string(&shown, "text"), lab.configuration());
    assert_eq!(string(&shown, "place"), lab.at(&lab.config_object()));
    assert_eq!(integer(&shown, "number"), 12);
    // None was removed, and the rules hold.
    assert!((1..=12).all(|number| lab.exists(&format!("repo/config.{number:06}"))));
    lab.grow_history("disk.img", 6);
    assert_eq!(integer(&lab.json(&["prune", "disk"])[0], "dropped"), 2);
}

#[test]
fn what_makes_no_sense_is_not_set() {
    let (lab, _) = Lab::with_snapshots(1);
    lab.done(&["config", "set", "prune.keep_last", "3"]);
    let before = lab.everything();
    for (args, why) in [
        (&["prune.keep_lats", "7"][..], "[prune]: keep_lats: unknown key"),
        (&["prune.keep_last", "0"], "[prune]: keep_last: expected a positive integer"),
        (&["prune.keep_last", "-1"], "[prune]: keep_last: expected a positive integer"),
        (&["prune.keep_last", "soon"], "[prune]: keep_last: expected a positive integer"),
        (&["prun.keep_last", "7"], "prun: unknown table or key"),
        (&["new.block_size", "5000"], "[new]: block_size: block size 5000 is not a power of two"),
        (&["new.block_size", "5K"], "[new]: block_size: expected a number of bytes"),
        (&["new.digest", "md5"], "[new]: digest: "),
        (&["new.dogest", "xxh3"], "[new]: dogest: unknown key"),
        (&["new.digest", "--unset"], "[new]: digest: missing"),
        (&["images.vm.prune.keep_daily", "x"], "[images.\"vm\".prune]: keep_daily: "),
        (&["images.vm.track", "none"], "images.\"vm\": track: unknown key"),
        (&["images.\"a@1\".prune.keep_last", "1"], "[images]: invalid image name \"a@1\""),
        (&["snapshot.track", "on"], "[snapshot]: track: unknown tracking method \"on\""),
        (
            &["snapshot.recheck", "101"],
            "[snapshot]: recheck: invalid percentage: expected 0 to 100",
        ),
        (&["version", "2"], "version: expected 1"),
        (&["id", "18ddab2b-d2f6-4c59-b4d5-c5dfe82e7291"], "id: it identifies the repository"),
        (&["id", "--unset"], "id: it identifies the repository"),
        (&["prune", "7"], "prune is a table"),
        (&["prune.keep_last.x", "7"], "keep_last is not a table"),
        (&["a b", "7"], "invalid key \"a b\""),
        (&["prune.keep_daily", "--unset"], "prune.keep_daily is not set"),
    ] {
        let line = lab.fails(FAILED, &[&["config", "set"], args].concat());
        assert!(line.starts_with(why), "{args:?}: {line}");
        lab.ensure_untouched(&before, &line);
    }
    for args in [&["set", "prune.keep_last"][..], &["set", "a", "1", "--unset"], &["set"], &[]] {
        lab.run(&[&["config"], args].concat()).misused();
    }
}

/// `config set` refuses it; another program may have written it.
#[test]
fn a_wrong_value_for_new_bases_concerns_new_bases_alone() {
    let (lab, states) = Lab::with_snapshots(2);
    let text = lab.done(&["config", "show"]);
    for (right, wrong, why) in [
        ("4096", "\"x\"", "[new]: block_size: expected a number of bytes, such as 4096"),
        ("xxh3", "md5", "[new]: digest: unknown digest \"md5\""),
        ("digest", "dogest", "[new]: dogest: unknown key"),
    ] {
        lab.write("repo/config.000001", &config::sealed(&text.replace(right, wrong)));
        for args in
            [&["list"][..], &["show", "disk@1"], &["verify"], &["stats"], &["hash", "disk@1"]]
        {
            assert_eq!(lab.run(args).done().err, "", "{args:?}");
        }
        lab.restores("disk@1", &states[0]);
        lab.done(&["prune", "disk", "--keep-last", "2"]);
        let delta = lab.run(&["snapshot", "disk.img"]).done();
        assert!(
            delta.err.contains(why) && delta.err.contains("no base can be taken"),
            "{}",
            delta.err
        );
        let base = lab.run(&["snapshot", "disk.img", "--full"]);
        let line = base.err.lines().last().unwrap_or_default();
        assert!(base.code == Some(FAILED) && line.contains(why), "{}", base.err);
        lab.done(&["delete", "disk@latest"]);
    }
}

/// Runs `config edit` with a script that changes the file `$1`; what it leaves behind is in the folder `tmp`.
fn edit(lab: &Lab, script: &str) -> Run {
    let mut command = lab.command(&["config", "edit"]);
    command.env("EDITOR", format!("sh -c '{script}' editor")).env_remove("VISUAL");
    Run::of(command.env("TMPDIR", lab.path("tmp")))
}

/// The files that were kept, and the text of the last one.
fn kept(lab: &Lab) -> Vec<(String, String)> {
    let entries = std::fs::read_dir(lab.path("tmp")).unwrap().flatten();
    let text = |path: std::path::PathBuf| {
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        (path.to_str().unwrap().to_owned(), text)
    };
    entries.map(|entry| text(entry.path())).collect()
}

#[test]
fn an_editor_changes_the_configuration_and_nothing_that_was_typed_is_lost() {
    let lab = Lab::new();
    std::fs::create_dir(lab.path("tmp")).unwrap();
    let add = |text: &str| format!("printf \"{text}\\n\" >> \"$1\"");
    edit(&lab, &add("# a comment")).done();
    let text = lab.configuration();
    assert!(text.ends_with("\n# a comment\n"), "{text}");
    let run = edit(&lab, ":").done();
    assert_eq!(run.text(), "the configuration is unchanged\n");
    assert_eq!(lab.config_object(), "repo/config.000002");
    assert_eq!(kept(&lab), []);
    let race = format!("{}; \"$IMGSNAP\" config set prune.keep_last 9 > /dev/null", add("# late"));
    let imgsnap = env!("CARGO_BIN_EXE_imgsnap");
    for (script, code, why) in [
        (add("[prune"), FAILED, "line 10: unclosed table"),
        (add("[prune]\\nkeep_lats = 7"), FAILED, "[prune]: keep_lats: unknown key"),
        (add("[snapshot]\\nrecheck = 101"), FAILED, "[snapshot]: recheck: invalid percentage"),
        ("sed -i s/^id.*// \"$1\"".to_owned(), FAILED, "id: it identifies the repository"),
        (add("# typed") + "; exit 7", FAILED, "the editor ("),
        (race, BUSY, "another process changed the configuration of "),
    ] {
        let mut command = lab.command(&["config", "edit"]);
        command.env("VISUAL", format!("sh -c '{script}' editor")).env("EDITOR", "false");
        command.env("IMGSNAP", imgsnap).env("TMPDIR", lab.path("tmp"));
        let line = Run::of(&mut command).failed(code);
        assert!(line.starts_with(why), "{script}: {line}");
        let kept = kept(&lab);
        let [(file, typed)] = &kept[..] else { panic!("{script}: {kept:?}") };
        let told = format!("; nothing was changed; the edited text is in {file}");
        assert!(line.ends_with(&told), "{script}: {line}");
        assert_ne!(*typed, text, "{script}");
    }
    // The other one won, and it alone.
    assert_eq!(lab.config_object(), "repo/config.000003");
    assert!(lab.configuration().contains("keep_last = 9") && !lab.configuration().contains("late"));
    // Where nothing was typed nothing is kept.
    edit(&lab, "exit 1").failed(FAILED);
    assert_eq!(kept(&lab), []);
}

#[test]
fn ctrl_c_in_an_editor_is_for_the_editor() {
    let lab = Lab::new();
    let twice = "kill -INT $PPID; sleep 0.1; kill -INT $PPID; sleep 0.1; printf '# typed\\n' >>";
    let mut command = lab.command(&["config", "edit"]);
    Run::of(command.env("EDITOR", twice).env_remove("VISUAL")).done();
    assert!(lab.configuration().ends_with("# typed\n"), "{}", lab.configuration());
}

#[test]
fn what_an_older_program_wrote_holds_until_it_is_taken_over() {
    let (lab, states) = Lab::with_snapshots(3);
    let text = make_old(&lab, "[prune]\nkeep_last = 3\n");
    assert_eq!(lab.done(&["config", "show"]), text);
    assert_eq!(lab.json(&["config", "show"])["number"], serde_json::json!(null));
    lab.done(&["snapshot", "disk.img"]);
    assert_eq!(integer(&lab.json(&["prune", "disk"])[0], "dropped"), 1);
    assert!(!an_older_program_refuses(&lab), "who only writes snapshots changes nothing");
    // What is edited by hand counts.
    lab.write("repo/repository.toml", text.replace("keep_last = 3", "keep_lats = 3").as_bytes());
    let line = lab.fails(FAILED, &["prune", "disk"]);
    let place = lab.at("repo/repository.toml");
    let why = "[prune]: keep_lats: unknown key; correct it with \"imgsnap config edit\"";
    assert_eq!(line, format!("{place}: {why}"));
    // Nothing is changed as long as something else makes no sense.
    let line = lab.fails(FAILED, &["config", "set", "prune.keep_daily", "7"]);
    assert!(line.starts_with("[prune]: keep_lats: "), "{line}");
    std::fs::create_dir(lab.path("tmp")).unwrap();
    edit(&lab, "sed -i s/keep_lats/keep_last/ \"$1\"").done();
    assert_eq!(lab.config_object(), "repo/config.000001");
    assert_eq!(lab.configuration(), text);
    assert!(an_older_program_refuses(&lab));
    lab.restores("disk@3", &states[2]);
    lab.done(&["snapshot", "disk.img"]);
    lab.done(&["verify"]);
}

#[test]
fn a_take_over_that_was_interrupted_is_completed_by_the_next_change_or_a_repair() {
    for finish in [&["config", "set", "prune.keep_daily", "7"][..], &["repair"]] {
        let (lab, states) = Lab::with_snapshots(2);
        let old = make_old(&lab, "");
        lab.done(&["config", "set", "prune.keep_last", "1"]);
        // Killed before the marker was written.
        lab.write("repo/repository.toml", old.as_bytes());
        assert!(!an_older_program_refuses(&lab));
        assert!(lab.done(&["config", "show"]).contains("keep_last = 1"));
        lab.write("repo/repository.toml", format!("{old}\n[prune]\nkeep_lats = 9\n").as_bytes());
        assert_eq!(integer(&lab.json(&["prune", "disk", "--dry-run"])[0], "dropped"), 1);
        let run = lab.run(finish).done();
        assert_eq!(run.err, "", "{finish:?}");
        assert!(an_older_program_refuses(&lab), "{finish:?}");
        assert!(lab.configuration().contains("keep_last = 1"), "{finish:?}");
        lab.restores("disk@2", &states[1]);
    }
}

#[test]
fn a_text_that_is_no_toml_can_be_shown_and_put_right() {
    let (lab, states) = Lab::with_snapshots(1);
    let text = make_old(&lab, "[prune\n");
    let line = lab.fails(DAMAGE, &["list"]);
    assert!(line.contains("line 12: unclosed table"), "{line}");
    assert!(line.ends_with("; correct it with \"imgsnap config edit\""), "{line}");
    assert_eq!(lab.done(&["config", "show"]), text);
    let line = lab.fails(FAILED, &["config", "set", "prune.keep_last", "1"]);
    assert!(line.starts_with("the configuration is not valid TOML: "), "{line}");
    std::fs::create_dir(lab.path("tmp")).unwrap();
    edit(&lab, "sed -i \"s/^.prune/[prune]/\" \"$1\"").done();
    lab.restores("disk@1", &states[0]);
}

/// Each change is of what was read: of those that are reported as done none is lost.
#[test]
fn of_two_that_change_it_at_once_one_is_told_and_no_change_is_lost() {
    let lab = Lab::new();
    let keys = ["last", "hourly", "daily", "weekly", "monthly", "yearly"];
    let mut done = 0;
    for round in 1..=5 {
        let value = round.to_string();
        let runs: Vec<(String, Run)> = std::thread::scope(|scope| {
            let run = |key: &&str| {
                let key = format!("prune.keep_{key}");
                let run = lab.run(&["config", "set", &key, &value]);
                (key, run)
            };
            let threads: Vec<_> = keys.iter().map(|key| scope.spawn(move || run(key))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let text = lab.configuration();
        let mut winners = 0;
        for (key, run) in runs {
            if run.code == Some(0) {
                winners += 1;
                let set = format!("{} = {value}\n", key.trim_start_matches("prune."));
                assert!(text.contains(&set), "{key} was lost: {text}");
                continue;
            }
            let line = run.failed(BUSY);
            assert!(line.contains("meanwhile; run the command again"), "{line}");
        }
        assert!(winners > 0);
        done += winners;
        assert_eq!(lab.config_object(), format!("repo/config.{:06}", done + 1));
    }
    let left = std::fs::read_dir(lab.path("repo")).unwrap().count();
    assert_eq!(left, done + 2, "something is left behind");
}

#[test]
fn no_image_has_the_name_of_an_object_of_the_repository() {
    let lab = Lab::new();
    lab.write("disk.img", b"bytes");
    let before = lab.everything();
    for name in ["repository.toml", "config.000001", "config.000002", "config.1000000"] {
        let line = lab.fails(FAILED, &["snapshot", "disk.img", "--name", name]);
        assert!(line.contains("invalid image name"), "{line}");
        lab.ensure_untouched(&before, name);
    }
    lab.done(&["snapshot", "disk.img", "--name", "config.1"]);
    assert_eq!(lab.json(&["list"])[0]["name"], "config.1");
}
