//! Encrypted repositories: who can open one, what is in it to be read, and what is noticed if somebody
//! changes it, or shows an older state of it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::support::{DAMAGE, FAILED, KEY, KIB, Lab, Run, change, disk, noise};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const PASSPHRASE: &str = "marked-passphrase-Zq7";

/// With a key file, whose repository opens with it.
struct Sealed {
    lab: Lab,
    key_file: String,
}

impl Sealed {
    fn new() -> Self {
        let lab = Lab::bare();
        lab.write("key", &noise(5, 32));
        let key_file = lab.at("key");
        let sealed = Self { lab, key_file };
        sealed.done(&["init", "--encrypt"]);
        sealed
    }

    /// Two images with two snapshots each.
    fn with_snapshots() -> (Self, Vec<Vec<u8>>) {
        let sealed = Self::new();
        let mut states = Vec::new();
        for image in ["marked-one", "marked-two"] {
            let mut bytes = disk(image.len() as u64, 512 * KIB);
            for turn in 0..2 {
                change(&mut bytes, turn, 5);
                sealed.lab.write(&format!("{image}.img"), &bytes);
                let label = format!("marked-label-{turn}");
                sealed.done(&["snapshot", &format!("{image}.img"), "--label", &label]);
                states.push(bytes.clone());
            }
        }
        (sealed, states)
    }

    fn run(&self, args: &[&str]) -> Run {
        Run::of(self.lab.command(args).env("IMGSNAP_KEY_FILE", &self.key_file))
    }

    /// The same on another host.
    fn run_on(&self, host: &str, args: &[&str]) -> Run {
        let mut command = self.lab.command(args);
        command.env("IMGSNAP_KEY_FILE", &self.key_file).env("IMGSNAP_MACHINE_ID", host);
        Run::of(command.env("IMGSNAP_STATE", self.lab.path(&format!("state-{host}"))))
    }

    fn done(&self, args: &[&str]) -> String {
        self.run(args).done().text()
    }

    fn fails(&self, code: i32, args: &[&str]) -> String {
        self.run(args).failed(code)
    }

    /// The files of the repository but for locks, by what they are called in it.
    fn files(&self) -> BTreeMap<String, PathBuf> {
        files_in(&self.lab.path("repo"))
    }

    /// A copy of the repository.
    fn keep(&self, name: &str) {
        copy_all(&self.lab.path("repo"), &self.lab.path(name));
    }

    /// Puts a copy in the place of the repository.
    fn show(&self, name: &str) {
        std::fs::remove_dir_all(self.lab.path("repo")).unwrap();
        copy_all(&self.lab.path(name), &self.lab.path("repo"));
    }
}

fn files_in(folder: &Path) -> BTreeMap<String, PathBuf> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(at) = folders.pop() {
        for entry in std::fs::read_dir(at).unwrap().map(Result::unwrap) {
            let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
            if path.is_dir() {
                folders.push(path);
            } else if !name.ends_with(".lock") && !name.starts_with('.') {
                let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                files.insert(name, path);
            }
        }
    }
    files
}

fn copy_all(from: &Path, to: &Path) {
    for (name, path) in files_in(from) {
        let to = to.join(name);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(path, to).unwrap();
    }
}

#[test]
fn it_opens_with_its_passphrase_however_that_is_given_and_with_nothing_else() {
    let lab = Lab::bare();
    lab.write("pass", format!("{PASSPHRASE}\nanother line\n").as_bytes());
    lab.write("wrong", b"marked-wrong\n");
    lab.write("disk.img", &noise(1, 64 * KIB));
    let file = ["--password-file", &lab.at("pass")];
    let with = |options: &[&str], verb: &[&str]| lab.run(&[options, verb].concat());
    with(&file, &["init", "--encrypt"]).done();
    with(&file, &["snapshot", "disk.img"]).done();
    let command = format!("cat {}", lab.at("pass"));
    for given in [
        with(&file, &["list"]),
        with(&["--password-command", &command], &["list"]),
        Run::of(lab.command(&["list"]).env("IMGSNAP_PASSWORD", PASSPHRASE)),
        Run::of(lab.command(&["list"]).env("IMGSNAP_PASSWORD_FILE", lab.path("pass"))),
        lab.run_with_input(&["--password-fd", "0", "list"], format!("{PASSPHRASE}\n").as_bytes()),
    ] {
        assert!(given.done().text().contains("disk"));
    }
    let none = lab.fails(KEY, &["list"]);
    assert!(none.contains("is encrypted, but no key was given"), "{none}");
    lab.write("other-key", &noise(9, 32));
    let key_file = ["--key-file", &lab.at("other-key")];
    for wrong in [&["--password-file", &lab.at("wrong")][..], &key_file] {
        let said = with(wrong, &["list"]).failed(KEY);
        assert!(
            said.contains("does not open any key slot") && !said.contains("marked-wrong"),
            "{said}"
        );
    }
    // A slot that was altered opens nothing, and that is all that is said.
    let slot = files_in(&lab.path("repo")).into_keys().find(|n| n.starts_with("key.")).unwrap();
    let text = String::from_utf8(lab.read(&format!("repo/{slot}"))).unwrap();
    lab.write(&format!("repo/{slot}"), text.replace("\"passes\": 3", "\"passes\": 4").as_bytes());
    let said = with(&file, &["list"]).failed(KEY);
    assert!(said.contains("(0 tried, and 1 cannot be read)"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

/// Z7, Z8.
#[test]
fn slots_come_and_go_and_the_recovery_text_opens_it_without_any() {
    let (sealed, states) = Sealed::with_snapshots();
    let lab = &sealed.lab;
    lab.write("pass", PASSPHRASE.as_bytes());
    lab.write("pass-2", b"another one");
    let with_pass = ["--password-file", &lab.at("pass")];
    let with_second = ["--password-file", &lab.at("pass-2")];
    sealed.done(&["key", "add", "--new-password-file", &lab.at("pass")]);
    assert_eq!(sealed.done(&["key", "list"]).lines().count(), 2);
    lab.done(&[&with_pass[..], &["list"]].concat());
    lab.done(
        &[&with_pass[..], &["key", "change", "--new-password-file", &lab.at("pass-2")]].concat(),
    );
    lab.fails(KEY, &[&with_pass[..], &["list"]].concat());
    lab.done(&[&with_second[..], &["verify"]].concat());
    // What somebody brings back that was removed opens nothing.
    sealed.keep("before");
    let slots = sealed.done(&["key", "list"]);
    let other = slots.lines().find(|line| line.contains("Argon2id")).unwrap();
    let other = other.split(' ').next().unwrap();
    sealed.done(&["key", "remove", &other[..8]]);
    let removed = format!("repo/key.{other}");
    assert!(!lab.exists(&removed));
    lab.copy(&format!("before/key.{other}"), &removed);
    let said = lab.fails(KEY, &[&with_second[..], &["list"]].concat());
    assert!(said.contains("was removed"), "{said}");
    assert!(sealed.done(&["key", "list"]).contains("it opens nothing"));
    lab.remove(&removed);
    let own = sealed.done(&["key", "list"]);
    let last = sealed.fails(FAILED, &["key", "remove", own.split(' ').next().unwrap()]);
    assert!(last.contains("last key slot"), "{last}");
    // Neither slots, nor the marker, nor the configuration.
    sealed.done(&["key", "export", "-o", "recovery"]);
    for name in sealed.files().into_keys().filter(|name| !name.contains('/')) {
        lab.remove(&format!("repo/{name}"));
    }
    let with_text = ["--key-file", &lab.at("recovery")];
    lab.done(&[&with_text[..], &["repair"]].concat());
    lab.done(&[&with_text[..], &["restore", "marked-two@2", "-o", "restored"]].concat());
    assert_eq!(lab.read("restored"), states[3]);
    lab.done(&["key", "import", &lab.at("recovery"), "--new-password-file", &lab.at("pass")]);
    lab.done(&[&with_pass[..], &["verify"]].concat());
    let text = String::from_utf8(lab.read("recovery")).unwrap();
    lab.write("copied", text.replace("check: ", "check: 0").as_bytes());
    let wrong = lab.fails(KEY, &["--key-file", &lab.at("copied"), "list"]);
    assert!(wrong.contains("not copied correctly"), "{wrong}");
}

#[test]
fn nothing_of_an_image_can_be_read_in_it_and_no_key_anywhere() {
    let (sealed, _) = Sealed::with_snapshots();
    let lab = &sealed.lab;
    let pass = lab.at("pass");
    lab.write("pass", PASSPHRASE.as_bytes());
    sealed.done(&["key", "add", "--new-password-file", &pass]);
    let mut said = Vec::new();
    for verb in [
        &["snapshot", "marked-one.img", "-v"][..],
        &["plan", "marked-two.img", "--tasks", "2", "--json"],
        &["list", "--json"],
        &["verify", "-v"],
        &["key", "list", "--json"],
        &["restore", "marked-one@9", "-o", "x"],
    ] {
        let run = Run::of(lab.command(verb).env("IMGSNAP_PASSWORD", PASSPHRASE));
        said.extend([run.out.clone(), run.err.clone().into_bytes()].concat());
    }
    let master = sealed.done(&["key", "export"]);
    let master: String =
        master.lines().find_map(|line| line.strip_prefix("master key: ")).unwrap().replace(' ', "");
    let has = |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|w| w == text.as_bytes());
    let folder = lab.path("").to_str().unwrap().to_owned();
    // A block as it lies in both images, which nothing makes shorter.
    let block = &lab.read("marked-one.img")[..];
    let block = block.chunks(4096).find(|block| block.iter().filter(|b| **b == 0).count() < 64);
    for (name, path) in sealed.files() {
        let stored = std::fs::read(path).unwrap();
        assert!(!name.contains("marked"), "{name}");
        for text in ["marked", &folder, "manifest\"", "image_digest", "xxh3", "snapshots"] {
            assert!(!has(&stored, text), "{name} has {text}");
        }
        let block = &block.unwrap()[..32];
        assert!(!stored.windows(32).any(|window| window == block), "{name} has a block");
    }
    for (name, path) in files_in(&lab.path("")) {
        if name != "pass" && name != "key" {
            said.extend(std::fs::read(path).unwrap());
        }
    }
    let key: String = noise(5, 32).iter().map(|byte| format!("{byte:02x}")).collect();
    for secret in [PASSPHRASE, &master, &key] {
        assert!(!has(&said, secret), "{secret} is somewhere");
    }
    assert!(!said.windows(32).any(|window| window == noise(5, 32)), "the key file is somewhere");
}

#[test]
fn whatever_is_changed_in_it_is_refused_and_no_wrong_byte_is_restored() {
    let (sealed, states) = Sealed::with_snapshots();
    let lab = &sealed.lab;
    sealed.keep("sound");
    let names: Vec<String> = sealed.files().into_keys().collect();
    let check = |what: &str| {
        let mut refused = 0;
        for (index, reference) in ["marked-one@2", "marked-two@2"].iter().enumerate() {
            let run = sealed.run(&["restore", reference, "-o", "out", "--force"]);
            match run.code {
                Some(0) => assert_eq!(lab.read("out"), states[index * 2 + 1], "{what}"),
                Some(DAMAGE | FAILED | KEY) => refused += 1,
                code => panic!("{what}: {code:?}: {}", run.err),
            }
        }
        // A quarter of what is tried lies where the newest snapshots need it not.
        let verified = sealed.run(&["verify"]);
        assert!(refused == 0 || verified.code != Some(0), "{what}");
        refused
    };
    assert_eq!(check("as it is"), 0);
    let mut refused = 0;
    for name in &names {
        let file = format!("repo/{name}");
        let sound = lab.read(&file);
        for at in [0, 9, 20, 40, 70, 100, sound.len() / 2, sound.len() - 1] {
            lab.flip(&file, at.min(sound.len() - 1));
            refused += check(&format!("{name}, byte {at}"));
            lab.write(&file, &sound);
        }
        for left in [0, 50, 96, sound.len() - 1] {
            lab.write(&file, &sound[..left]);
            refused += check(&format!("{name}, cut at {left}"));
        }
        lab.write(&file, &[sound.clone(), vec![0; 16]].concat());
        refused += check(&format!("{name}, longer"));
        lab.write(&file, &sound);
    }
    // One in the place of another: of the same kind, and of others.
    for (one, other) in names.iter().flat_map(|one| names.iter().map(move |other| (one, other))) {
        if one < other {
            let (one, other) = (format!("repo/{one}"), format!("repo/{other}"));
            let (first, second) = (lab.read(&one), lab.read(&other));
            lab.write(&one, &second);
            lab.write(&other, &first);
            refused += check(&format!("{one} and {other}"));
            lab.write(&one, &first);
            lab.write(&other, &second);
        }
    }
    assert!(refused > 100, "{refused}");
    assert_eq!(check("as it was"), 0);
}

#[test]
fn an_older_state_is_refused_until_it_is_accepted() {
    let (sealed, states) = Sealed::with_snapshots();
    let lab = &sealed.lab;
    sealed.keep("older");
    let mut bytes = states[1].clone();
    change(&mut bytes, 77, 3);
    lab.write("marked-one.img", &bytes);
    sealed.done(&["snapshot", "marked-one.img"]);
    let newest = sealed.done(&["heads"]);
    sealed.keep("newer");
    sealed.show("older");
    for verb in [
        &["list", "marked-one"][..],
        &["restore", "marked-one@1", "-o", "x"],
        &["snapshot", "marked-one.img"],
        &["delete", "marked-one@1"],
        &["prune", "marked-one", "--keep-last", "1"],
        &["remove", "marked-one", "--yes"],
        &["export", "marked-one@1", "-o", "x.delta"],
    ] {
        let said = sealed.fails(FAILED, verb);
        assert!(said.contains("is in an older state"), "{verb:?}: {said}");
    }
    // The other image is as it was.
    sealed.done(&["list", "marked-two"]);
    let said = sealed.fails(FAILED, &["list", "marked-one"]);
    let state = said.split("--accept-older ").nth(1).unwrap().trim();
    let wrong = format!("marked-one@{}", "18ddab2b-d2f6-4c59-b4d5-c5dfe82e7291");
    sealed.fails(FAILED, &["list", "marked-one", "--accept-older", &wrong]);
    sealed.done(&["list", "marked-one", "--accept-older", state]);
    sealed.done(&["list", "marked-one"]);
    // What was given up follows it, and is seen again.
    sealed.show("newer");
    sealed.done(&["list"]);
    // A host that never saw it can be told what it has to have.
    let commit = |of: &str, name: &str| {
        let line = of.lines().find(|line| line.starts_with(name)).unwrap();
        line.split(['@', ' ']).nth(1).unwrap().to_owned()
    };
    let at_least = commit(&newest, "marked-one");
    let elsewhere = |args: &[&str]| sealed.run_on("another", args);
    let restore = ["restore", "marked-one@1", "-o", "y", "--force", "--at-least", &at_least];
    elsewhere(&restore).done();
    std::fs::remove_dir_all(lab.path("state-another")).unwrap();
    sealed.show("older");
    let said = elsewhere(&restore).failed(FAILED);
    assert!(said.contains("is not known to be at commit"), "{said}");
    // The configuration.
    sealed.show("newer");
    sealed.done(&["config", "set", "prune.keep_last", "3"]);
    sealed.show("newer");
    let said = sealed.fails(FAILED, &["list"]);
    assert!(said.contains("the configuration is in an older state"), "{said}");
    sealed.done(&["list", "--accept-older", "@1"]);
    sealed.done(&["list"]);
}

#[test]
fn an_image_that_vanishes_is_missed_and_one_that_was_removed_is_not() {
    let (sealed, _) = Sealed::with_snapshots();
    let lab = &sealed.lab;
    sealed.done(&["list"]);
    sealed.done(&["remove", "marked-one", "--yes"]);
    assert!(!sealed.done(&["list"]).contains("marked-one"));
    let gone = sealed.fails(FAILED, &["list", "marked-one"]);
    assert!(gone.contains("no image"), "{gone}");
    sealed.done(&["snapshot", "marked-one.img"]);
    sealed.done(&["verify"]);
    let folders = files_in(&lab.path("repo"));
    let folder = folders.keys().find_map(|name| name.split_once('/')).unwrap().0.to_owned();
    lab.rename(&format!("repo/{folder}"), "away");
    let said = sealed.fails(FAILED, &["list"]);
    assert!(said.contains("has vanished"), "{said}");
    let state = said.split("--accept-older ").nth(1).unwrap().trim();
    let name = state.split('@').next().unwrap();
    let said = sealed.fails(FAILED, &["snapshot", &format!("{name}.img")]);
    assert!(said.contains("has vanished"), "{said}");
    sealed.done(&["list", "--accept-older", state]);
    sealed.done(&["snapshot", &format!("{name}.img")]);
}

/// Z1, Z7: what is plain is not believed, nor made into what is.
#[test]
fn a_plain_configuration_that_somebody_put_there_does_not_rule() {
    let (sealed, states) = Sealed::with_snapshots();
    let lab = &sealed.lab;
    let slots = sealed.done(&["key", "list"]);
    let slot = slots.split(' ').next().unwrap();
    let own = sealed.done(&["config", "show"]);
    let id = own.lines().find(|line| line.starts_with("id = ")).unwrap();
    let forged =
        format!("version = 1\n{id}\n[prune]\nkeep_last = 1\n[keys]\nslots = [\"{slot}\"]\n");
    let plain =
        [b"imgsnap-config 1 00000000000000000000000000000000\n", forged.as_bytes()].concat();
    for (name, bytes) in [("repository.toml", forged.as_bytes()), ("config.000007", &plain)] {
        sealed.keep("sound");
        lab.write(&format!("repo/{name}"), bytes);
        if name == "repository.toml" {
            lab.flip("repo/config.000001", 100);
        }
        let run = sealed.run(&["list"]);
        assert_ne!(run.code, Some(0), "{name}");
        sealed.run(&["repair"]);
        let shown = sealed.run(&["config", "show"]);
        assert!(!String::from_utf8_lossy(&shown.out).contains("keep_last"), "{name}");
        sealed.done(&["restore", "marked-one@2", "-o", "out", "--force"]);
        assert_eq!(lab.read("out"), states[1], "{name}");
        sealed.show("sound");
        // What the repair made was seen since.
        std::fs::remove_dir_all(lab.path("state")).unwrap();
        std::fs::remove_dir_all(lab.path("sound")).unwrap();
    }
}

/// S9: what is refused is not cleared up by what it says, either; a commit of a verb that keeps nothing else on
/// this host is remembered as well.
#[test]
fn what_an_older_manifest_does_not_name_is_not_removed() {
    let (sealed, states) = Sealed::with_snapshots();
    let lab = &sealed.lab;
    sealed.keep("older");
    let mut bytes = states[1].clone();
    change(&mut bytes, 77, 3);
    lab.write("marked-one.img", &bytes);
    sealed.done(&["snapshot", "marked-one.img"]);
    let older = files_in(&lab.path("older"));
    let new: Vec<String> =
        sealed.files().into_keys().filter(|name| !older.contains_key(name)).collect();
    let (manifests, deltas): (Vec<&String>, Vec<&String>) =
        new.iter().partition(|name| name.contains("/manifest."));
    assert!(!manifests.is_empty() && deltas.len() == 1, "{new:?}");
    sealed.keep("newer");
    for name in &manifests {
        lab.remove(&format!("repo/{name}"));
    }
    for (name, path) in &older {
        std::fs::copy(path, lab.path(&format!("repo/{name}"))).unwrap();
    }
    for verb in [&["snapshot", "marked-one.img"][..], &["prune", "marked-one", "--keep-last", "1"]]
    {
        assert!(sealed.fails(FAILED, verb).contains("is in an older state"), "{verb:?}");
    }
    assert!(lab.exists(&format!("repo/{}", deltas[0])), "it is gone");
    sealed.show("newer");
    sealed.done(&["verify"]);
    sealed.done(&["label", "marked-one@1", "another"]);
    sealed.show("newer");
    assert!(sealed.fails(FAILED, &["list", "marked-one"]).contains("is in an older state"));
}

/// Z6: a slot that cannot be read opens nothing, so it is not the one that stays.
#[test]
fn the_last_slot_that_opens_it_is_not_removed() {
    let (sealed, _) = Sealed::with_snapshots();
    let lab = &sealed.lab;
    lab.write("pass", PASSPHRASE.as_bytes());
    let own = sealed.done(&["key", "list"]).split(' ').next().unwrap().to_owned();
    let added = sealed.done(&["key", "add", "--new-password-file", &lab.at("pass")]);
    let added = added.trim().rsplit(' ').next().unwrap();
    lab.remove(&format!("repo/key.{added}"));
    let said = sealed.fails(FAILED, &["key", "remove", &own]);
    assert!(said.contains("last key slot cannot be removed"), "{said}");
    sealed.done(&["verify"]);
    // A text of 32 characters is a passphrase.
    lab.write("typed", b"correct horse battery staple abc");
    let said = sealed.fails(KEY, &["key", "add", "--new-key-file", &lab.at("typed")]);
    assert!(said.contains("instead of random bytes"), "{said}");
}

#[test]
fn two_hosts_that_are_shown_different_histories_refuse_each_others() {
    let (sealed, _) = Sealed::with_snapshots();
    let host = |host: &str, args: &[&str]| sealed.run_on(host, args);
    for name in ["a", "b"] {
        host(name, &["list"]).done();
    }
    sealed.keep("common");
    let mut heads = Vec::new();
    for name in ["a", "b"] {
        sealed.show("common");
        host(name, &["label", "marked-one@1", &format!("by-{name}")]).done();
        heads.push(host(name, &["heads"]).done().text());
        sealed.keep(&format!("for-{name}"));
    }
    // Until then only what both say can be compared.
    assert_ne!(heads[0], heads[1]);
    for (name, shown) in [("a", "for-b"), ("b", "for-a")] {
        sealed.show(shown);
        let said = host(name, &["list", "marked-one"]).failed(FAILED);
        assert!(said.contains("does not follow it"), "{said}");
    }
}

#[test]
fn a_plain_repository_in_its_place_is_refused_with_and_without_a_key() {
    let (sealed, _) = Sealed::with_snapshots();
    let lab = &sealed.lab;
    lab.rename("repo", "sealed");
    let mut elsewhere = lab.command(&["init"]);
    Run::of(elsewhere.env("IMGSNAP_STATE", lab.path("other-state"))).done();
    let said = sealed.fails(KEY, &["list"]);
    assert!(said.contains("is not encrypted, but a key was given"), "{said}");
    for verb in [&["list"][..], &["snapshot", "marked-one.img"], &["verify"]] {
        let said = lab.fails(KEY, verb);
        assert!(said.contains("has used the encrypted repository"), "{verb:?}: {said}");
    }
    lab.done(&["init", "--accept"]);
    lab.done(&["snapshot", "marked-one.img"]);
    // Nor is another one that the same key opens.
    let (second, _) = Sealed::with_snapshots();
    let elsewhere = second.lab.path("state");
    second.lab.rename("repo", "first");
    let mut other = second.lab.command(&["init", "--encrypt"]);
    other.env("IMGSNAP_KEY_FILE", &second.key_file).env("IMGSNAP_STATE", elsewhere.join("2"));
    Run::of(&mut other).done();
    let said = second.fails(KEY, &["list"]);
    assert!(said.contains("has used the encrypted repository"), "{said}");
}

#[test]
fn snapshots_move_between_repositories_with_different_keys() {
    let (sealed, states) = Sealed::with_snapshots();
    let lab = &sealed.lab;
    sealed.done(&["export", "marked-one@2", "-o", "moved.delta"]);
    lab.write("second", &noise(6, 32));
    let second = lab.at("second");
    let other = ["--repo", &lab.at("other"), "--key-file", &second];
    lab.done(&[&other[..], &["init", "--encrypt"]].concat());
    lab.done(&[&other[..], &["import", "moved.delta", "--name", "moved"]].concat());
    lab.done(&[&other[..], &["restore", "moved@latest", "-o", "moved"]].concat());
    assert_eq!(lab.read("moved"), states[1]);
    // Nothing is sealed with the first key.
    lab.fails(KEY, &["--repo", &lab.at("other"), "--key-file", &sealed.key_file, "list"]);
}
