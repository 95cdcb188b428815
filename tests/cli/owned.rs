//! Repositories with an owner: what other hosts can do, what they have to ask for, and what somebody cannot do
//! who may write whatever he likes and has not the owner key.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::support::{DAMAGE, FAILED, KEY, KIB, Lab, Run, change, disk, noise};
use imgsnap::repo::manifest::{
    Ancestor, Condemned, Manifest, ManifestDigest, Pending, Snapshot, sequence_of,
};
use serde_json::json;
use uuid::Uuid;

/// A repository with an owner, and a host without the key.
struct Owned {
    lab: Lab,
    key: String,
    /// The image at each snapshot.
    states: Vec<Vec<u8>>,
}

impl Owned {
    fn new() -> Self {
        let lab = Lab::bare();
        lab.done(&["init"]);
        let made = lab.json(&["key", "owner", "create", &lab.at("owner.key")]);
        let key = made["owner"].as_str().unwrap().to_owned();
        let mut owned = Self { lab, key, states: Vec::new() };
        owned.lab.write("disk.img", &disk(3, 256 * KIB));
        owned.host(&["--owner-key", &owned.key, "snapshot", "disk.img"]).done();
        owned.states.push(owned.lab.read("disk.img"));
        owned.take();
        owned.take();
        owned
    }

    /// One more snapshot, by the host.
    fn take(&mut self) {
        let mut bytes = self.lab.read("disk.img");
        change(&mut bytes, self.states.len() as u64, 3);
        self.lab.write("disk.img", &bytes);
        self.host(&["snapshot", "disk.img"]).done();
        self.states.push(bytes);
    }

    fn host(&self, args: &[&str]) -> Run {
        self.on("host", args)
    }

    fn on(&self, name: &str, args: &[&str]) -> Run {
        let mut command = self.lab.command(args);
        command.env("IMGSNAP_MACHINE_ID", name);
        command.env("IMGSNAP_STATE", self.lab.path(&format!("state-{name}")));
        Run::of(&mut command)
    }

    fn owner(&self, args: &[&str]) -> Run {
        let mut command = self.lab.command(args);
        Run::of(command.env("IMGSNAP_OWNER_KEY_FILE", self.lab.path("owner.key")))
    }

    /// The numbers of the snapshots, as both hosts see them.
    fn numbers(&self) -> Vec<u64> {
        let numbers = |run: Run| {
            let listed = run.done().json();
            let snapshots = listed.as_array().unwrap().iter();
            snapshots.map(|s| s["number"].as_u64().unwrap()).collect::<Vec<u64>>()
        };
        let by_host = numbers(self.host(&["--json", "list", "disk"]));
        assert_eq!(by_host, numbers(self.owner(&["--json", "list", "disk"])));
        by_host
    }

    /// The manifests that are there, by number, with their bytes.
    fn manifests(&self) -> Vec<(u64, Vec<u8>)> {
        let files = self.lab.stored("disk").into_iter();
        let mut all: Vec<(u64, Vec<u8>)> = files
            .filter_map(|file| {
                Some((sequence_of(&file)?, self.lab.read(&format!("repo/disk/{file}"))))
            })
            .collect();
        all.sort();
        all
    }

    fn put(&self, number: u64, bytes: &[u8]) {
        self.lab.write(&format!("repo/disk/manifest.{number:06}"), bytes);
    }

    fn drop_lines(&self) -> Vec<String> {
        let listed = self.owner(&["requests", "list"]).done().text();
        listed.lines().skip(1).map(str::to_owned).collect()
    }
}

/// Rules V4, V7.
#[test]
fn a_host_without_the_key_adds_and_asks_for_the_rest() {
    let owned = Owned::new();
    for (args, what) in [
        (&["label", "disk@1", "x"][..], "drop or change disk@1"),
        (&["protect", "disk@1"], "protect disk@1"),
        (&["flatten", "disk@2"], "drop or change disk@2"),
        (&["key", "owner", "sign"], "sign"),
        (&["key", "owner", "change", "other.key"], "name a new one"),
    ] {
        let line = owned.host(args).failed(FAILED);
        assert!(line.contains("owner") && line.contains(what), "{args:?}: {line}");
        assert!(line.contains("--owner-key-file"), "{args:?}: {line}");
    }
    // What it does not need the owner for.
    owned.host(&["rollback", "disk", "--to", "@2"]).done();
    assert_eq!(owned.lab.read("disk.img"), owned.states[1]);
    owned.host(&["verify"]).done();
    assert_eq!(owned.numbers(), [1, 2, 3]);
    let asked = owned.host(&["delete", "disk@3"]).done().text();
    assert!(asked.starts_with("asked the owner to drop disk@3; "), "{asked}");
    assert_eq!(owned.host(&["delete", "disk@3"]).done().text(), asked, "asked for once");
    let pruned = owned.host(&["--json", "prune", "disk", "--keep-last", "1"]).done().json();
    let pruned = &pruned[0];
    assert!(pruned["requested"].is_string(), "{pruned}");
    owned.host(&["remove", "disk", "--yes"]).done();
    assert_eq!(owned.drop_lines().len(), 3);
    assert_eq!(owned.numbers(), [1, 2, 3], "nothing is dropped that is asked for");
    let confirm = asked.trim().rsplit(' ').next().unwrap();
    owned.host(&["requests", "confirm", confirm]).failed(FAILED);
    let done = owned.owner(&["requests", "confirm", confirm]).done().text();
    assert!(done.starts_with("deleted disk@3"), "{done}");
    assert_eq!(owned.numbers(), [1, 2]);
    let reject = pruned["requested"].as_str().unwrap();
    owned.owner(&["requests", "reject", reject]).done();
    let left = owned.drop_lines();
    assert!(left.len() == 1 && left[0].contains("remove disk"), "{left:?}");
    // What was dropped is dropped, and the host goes on.
    let mut owned = owned;
    owned.take();
    owned.lab.write("out.img", b"");
    owned.host(&["restore", "disk@latest", "-o", &owned.lab.at("out.img"), "--force"]).done();
    assert_eq!(owned.lab.read("out.img"), *owned.states.last().unwrap());
}

/// Rule V7.
#[test]
fn forged_times_do_not_make_the_owner_drop_what_they_choose() {
    for (what, time) in
        [("in the future", "2099-01-01T00:00:00Z"), ("before", "2001-01-01T00:00:00Z")]
    {
        let owned = Owned::new();
        owned.host(&["delete", "disk@1"]).done();
        // Whoever can add can add a snapshot that was never taken.
        let (number, bytes) = owned.manifests().pop().unwrap();
        let mut forged = follow(number, &bytes);
        let mut last = forged.snapshots.last().unwrap().clone();
        (last.number, last.id, last.time) = (4, Uuid::new_v4(), time.parse().unwrap());
        (last.file, last.parent) = (format!("{}.delta", last.id), Some(forged.snapshots[2].id));
        forged.next_number = 5;
        forged.snapshots.push(last);
        owned.put(number + 1, &forged.encode().unwrap());
        let id = owned.drop_lines()[0].split_whitespace().next().unwrap().to_owned();
        let line = owned.owner(&["requests", "confirm", &id]).failed(FAILED);
        assert!(line.contains("disk@4 was taken at") && line.contains(what), "{line}");
        assert_eq!(owned.drop_lines().len(), 1, "the request is still there");
    }
}

/// What follows a manifest, as whoever has read FORMAT.md writes it.
fn follow(number: u64, bytes: &[u8]) -> Manifest {
    let mut next = Manifest::decode(bytes).unwrap();
    next.ancestors.push(Ancestor { sequence: number, commit: next.commit.unwrap() });
    next.previous = Some(ManifestDigest::of(bytes));
    (next.sequence, next.commit) = (number + 1, Some(Uuid::new_v4()));
    next
}

/// Rules V2, V3, V4, V5, whoever writes what he likes.
#[test]
fn what_a_thief_puts_does_not_count() {
    type Forge = fn(&mut Manifest);
    let forgeries: [(&str, Forge); 14] = [
        ("drops all", |m| m.snapshots.clear()),
        ("drops one", |m| drop(m.snapshots.pop())),
        ("moves one to the dropped", |m| {
            let last = m.snapshots.pop().unwrap();
            m.dropped.push(last);
        }),
        ("condemns", |m| {
            let object = format!("{}.delta", Uuid::new_v4());
            m.condemned.push(Condemned { object, sequence: m.sequence });
        }),
        ("says that it was swept", |m| m.swept = m.sequence),
        ("labels", |m| m.snapshots[0].label = Some("forged".into())),
        ("protects", |m| {
            m.snapshots[0].protected = true;
            m.needs.push("protected".into());
        }),
        ("names another file", |m| m.snapshots[0].file = m.snapshots[1].file.clone() + ".delta"),
        ("removes the image", |m| {
            m.snapshots.clear();
            m.forgotten = true;
            m.needs.push("forgotten".into());
        }),
        ("is a different image", |m| m.image_id = Uuid::new_v4()),
        ("uses up the numbers", |m| m.next_number = u64::MAX - 1),
        ("follows nothing", |m| m.previous = None),
        ("is read otherwise", |m| {
            m.format = Some("qcow2".into());
            m.needs.push("format".into());
        }),
        ("needs what nobody knows", |m| m.needs.push("tomorrow".into())),
    ];
    let mut owned = Owned::new();
    for (what, forge) in forgeries {
        let (number, bytes) = owned.manifests().pop().unwrap();
        let mut forged = follow(number, &bytes);
        forge(&mut forged);
        owned.put(number + 1, &forged.encode().unwrap());
        let all: Vec<u64> = (1..=owned.states.len() as u64).collect();
        assert_eq!(owned.numbers(), all, "{what}");
        // The number stays taken, and everybody goes on.
        owned.take();
        let (last, _) = owned.manifests().pop().unwrap();
        assert_eq!(last, number + 2, "{what}");
    }
    // One that only adds counts; what it adds is not there, and nothing else suffers.
    let all: Vec<u64> = (1..=owned.states.len() as u64).collect();
    let signed = owned.owner(&["--json", "key", "owner", "sign"]).done().json();
    assert_eq!((&signed["name"], &signed["is_new"]), (&json!("disk"), &json!(true)));
    owned.host(&["verify"]).done();
    // Signed ones, which he has kept, under other numbers; and a number far ahead.
    let kept = owned.manifests();
    let (number, bytes) = kept.last().unwrap();
    owned.put(number + 1, &kept[0].1);
    owned.put(number + 2, bytes);
    owned.put(number + 1000, bytes);
    owned.put(u64::MAX, bytes);
    assert_eq!(owned.numbers(), all);
    owned.take();
    owned.owner(&["protect", "disk@2"]).done();
    let all: Vec<u64> = (1..=owned.states.len() as u64).collect();
    owned.owner(&["delete", "disk@1"]).done();
    assert_eq!(owned.numbers(), all[1..]);
    // Each as it was.
    for number in &all[1..] {
        let out = owned.lab.at("out.img");
        owned.host(&["restore", &format!("disk@{number}"), "-o", &out, "--force"]).done();
        assert!(owned.lab.read("out.img") == owned.states[*number as usize - 1], "{number}");
    }
}

/// Rules V3, V5.
#[test]
fn a_removed_image_does_not_come_back_by_what_its_owner_has_signed_once() {
    let owned = Owned::new();
    owned.owner(&["key", "owner", "sign"]).done();
    let kept = owned.manifests();
    owned.owner(&["remove", "disk", "--yes"]).done();
    for (number, bytes) in &kept {
        let file = format!("repo/disk/manifest.{number:06}");
        if !owned.lab.exists(&file) {
            owned.put(*number, bytes);
        }
    }
    let (last, bytes) = kept.last().unwrap();
    owned.put(last + 2, bytes);
    let line = owned.host(&["list", "disk"]).failed(FAILED);
    assert!(line.contains("no image \"disk\""), "{line}");
    // Another one of its name may be begun.
    owned.host(&["snapshot", "disk.img"]).done();
    assert_eq!(owned.numbers(), [1]);
}

/// Rules V1, V6, S10.
#[test]
fn the_owner_is_who_a_host_was_told_and_not_who_the_store_says() {
    let owned = Owned::new();
    let other = {
        let public: [u8; 32] = std::array::from_fn(|index| index as u8);
        let digits = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
        digits(&public) + &digits(&blake3::hash(&public).as_bytes()[..4])
    };
    let other = other.as_str();
    // A host that was told nothing.
    let line = owned.on("new", &["list"]).failed(KEY);
    assert!(line.contains("has an owner") && line.contains(&owned.key), "{line}");
    let line = owned.on("new", &["--owner-key", other, "list"]).failed(FAILED);
    assert!(line.contains("nothing there is signed by the owner 0001"), "{line}");
    owned.on("new", &["--owner-key", &owned.key, "list"]).done();
    owned.on("new", &["list"]).done();
    let line = owned.on("new", &["--owner-key", other, "list"]).failed(KEY);
    assert!(line.contains("is given, and"), "{line}");
    // Whoever can write the configuration makes nobody believe in another owner, nor in none.
    let config = owned.lab.read("repo/config.000002");
    let text = String::from_utf8(config.clone()).unwrap();
    let body = text.splitn(3, '\n').nth(2).unwrap();
    let without = body.split("[owner]").next().unwrap();
    for (number, text) in [(3, without.to_owned()), (4, body.replace(&owned.key, other))] {
        let digest = xxhash_rust::xxh3::xxh3_128(text.as_bytes());
        let name = format!("repo/config.{number:06}");
        owned.lab.write(&name, format!("imgsnap-config 1 {digest:032x}\n{text}").as_bytes());
        assert!(owned.host(&["key", "owner"]).done().text().starts_with(&owned.key));
        assert_eq!(owned.numbers(), [1, 2, 3]);
    }
    let line = owned.host(&["key", "owner", "create", "mine.key"]).failed(FAILED);
    assert!(line.contains("has an owner"), "{line}");
    // The owner names another one: whoever knew the old one follows.
    owned.owner(&["key", "owner", "change", &owned.lab.at("next.key")]).done();
    assert!(owned.lab.exists("repo/config.000005"), "those that do not count have their numbers");
    let now = owned.host(&["key", "owner"]).done().text();
    assert!(!now.contains(&owned.key), "{now}");
    assert_eq!(owned.host(&["list", "disk"]).done().text().lines().count(), 5);
    let line = owned.owner(&["label", "disk@1", "x"]).failed(KEY);
    assert!(line.contains("is given, and"), "{line}");
    let next = owned.lab.at("next.key");
    owned.owner(&["--owner-key-file", &next, "label", "disk@1", "x"]).done();
    // Where nothing of that owner is there any more, nothing is believed.
    owned.lab.write("repo/config.000005", &config);
    owned.host(&["list"]).failed(FAILED);
}

/// Rule Z8, of a repository that is encrypted as well.
#[test]
fn a_recovery_text_says_who_the_owner_is() {
    let lab = Lab::bare();
    lab.write("key", &noise(5, 32));
    lab.write("disk.img", &disk(3, 64 * KIB));
    let key = ["--key-file", &lab.at("key")];
    let run = |args: &[&str]| lab.run(&[&key, args].concat());
    run(&["--owner-key-file", &lab.at("owner.key"), "init", "--encrypt"]).failed(FAILED);
    run(&["init", "--encrypt"]).done();
    run(&["key", "owner", "create", &lab.at("owner.key")]).done();
    run(&["snapshot", "disk.img"]).done();
    let owner = run(&["key", "owner"]).done().text();
    run(&["key", "export", "-o", &lab.at("text")]).done();
    let text = String::from_utf8(lab.read("text")).unwrap();
    assert!(text.contains(&format!("owner: {}", owner.trim())), "{text}");
    let on_new = |args: &[&str]| {
        let mut command = lab.command(&[&["--key-file", &lab.at("text")], args].concat());
        command.env("IMGSNAP_MACHINE_ID", "new").env("IMGSNAP_STATE", lab.path("state-new"));
        Run::of(&mut command)
    };
    assert_eq!(on_new(&["key", "owner"]).done().text(), owner);
    let other = text.replace("owner: ", "owner: 0");
    lab.write("text", other.as_bytes());
    on_new(&["list"]).failed(KEY);
    // From the first moment on.
    lab.write("again.key", &lab.read("owner.key"));
    let repo = ["--repo", &lab.at("other")];
    lab.done(&[&repo, &["--owner-key-file", &lab.at("again.key"), "init"][..]].concat());
    assert_eq!(lab.done(&[&repo, &["key", "owner"][..]].concat()), owner);
}

/// What is checked is what was written, of whatever kind.
fn checked(what: &str, version: u32, body: &str) -> Vec<u8> {
    let digest = xxhash_rust::xxh3::xxh3_128(body.as_bytes());
    format!("imgsnap-{what} {version} {digest:032x}\n{body}").into_bytes()
}

/// Rules V1, V6, S9, S10.
#[test]
fn a_host_that_was_told_of_an_owner_forgets_him_by_nothing_that_the_store_does() {
    let owned = Owned::new();
    owned.on("reader", &["--owner-key", &owned.key, "list"]).done();
    // Another repository in its place, of which nobody is said to be the owner.
    let id = Uuid::new_v4();
    let new = "[new]\nblock_size = 4096\ndigest = \"xxh3\"\ncompression = \"lz4\"\n";
    owned.lab.write("repo/config.000003", &checked("config", 1, &format!("id = \"{id}\"\n{new}")));
    assert!(owned.on("reader", &["key", "owner"]).done().text().starts_with(&owned.key));
    assert_eq!(owned.numbers(), [1, 2, 3]);
    // No configuration at all but that of an older program, of the same id.
    let config = owned.lab.read("repo/config.000002");
    let text = String::from_utf8(config).unwrap();
    let id = text.lines().find(|line| line.starts_with("id = ")).unwrap().to_owned();
    for number in 1..4 {
        owned.lab.remove(&format!("repo/config.{number:06}"));
    }
    owned.lab.write("repo/repository.toml", format!("version = 1\n{id}\n{new}").as_bytes());
    for run in [owned.host(&["list"]), owned.on("reader", &["list"]), owned.owner(&["list"])] {
        let line = run.failed(FAILED);
        assert!(line.contains("signed by the owner"), "{line}");
    }
    // Older ones, signed as they are.
    let owned = Owned::new();
    owned.owner(&["label", "disk@1", "x"]).done();
    owned.host(&["list", "disk"]).done();
    let (last, _) = owned.manifests().pop().unwrap();
    owned.lab.remove(&format!("repo/disk/manifest.{last:06}"));
    for line in
        [owned.host(&["list", "disk"]).failed(FAILED), owned.owner(&["list"]).failed(FAILED)]
    {
        assert!(
            line.contains("is in an older state") || line.contains("nothing in it is signed"),
            "{line}"
        );
    }
}

/// Rules V3, V4, V5: what the owner puts right, and what not.
#[test]
fn the_owner_repairs_what_a_thief_has_put_and_signs_none_of_it() {
    let owned = Owned::new();
    owned.owner(&["protect", "disk@2"]).done();
    let (number, bytes) = owned.manifests().pop().unwrap();
    let mut forged = follow(number, &bytes);
    let gone = forged.snapshots.split_off(1);
    forged.dropped = gone.into_iter().map(|s| Snapshot { protected: false, ..s }).collect();
    forged.needs.clear();
    owned.put(number + 1, &forged.encode().unwrap());
    owned.put(number + 2, b"garbage");
    owned.put(u64::MAX, b"garbage");
    let line = owned.host(&["list", "disk"]).failed(DAMAGE);
    assert!(line.contains("imgsnap repair disk"), "{line}");
    owned.host(&["repair", "disk"]).failed(FAILED);
    owned.owner(&["repair", "disk"]).done();
    assert_eq!(owned.numbers(), [1, 2, 3]);
    let shown = owned.host(&["--json", "show", "disk@2"]).done().json();
    assert_eq!(shown["protected"], json!(true), "{shown}");
    // What is said to be pending, for ever.
    let (number, bytes) = owned.manifests().into_iter().rev().find(|(n, _)| *n < u64::MAX).unwrap();
    let mut forged = follow(number, &bytes);
    let pending = |id| Pending {
        id,
        number: 0,
        parent: Some(forged.snapshots[0].id),
        objects: Vec::new(),
        expires: "9999-01-01T00:00:00Z".parse().unwrap(),
        plan: Some(Uuid::new_v4()),
    };
    forged.pending = vec![pending(Uuid::new_v4())];
    forged.needs.push("pending".into());
    owned.put(number + 1, &forged.encode().unwrap());
    owned.owner(&["delete", "disk@1"]).failed(FAILED);
    owned.owner(&["repair", "disk"]).done();
    owned.owner(&["delete", "disk@1"]).done();
    assert_eq!(owned.numbers(), [2, 3]);
    // An image of which nothing is signed is not signed, either.
    std::fs::create_dir(owned.lab.path("repo/other")).unwrap();
    owned.lab.write("repo/other/manifest.000007", &bytes);
    let said = owned.owner(&["key", "owner", "sign"]).done();
    assert!(said.err.contains("not signed: ") && said.err.contains("other"), "{}", said.err);
    owned.lab.remove("repo/other/manifest.000007");
    // Over what does not count, too, the owner signs.
    let (number, bytes) = owned.manifests().into_iter().rev().find(|(n, _)| *n < u64::MAX).unwrap();
    let mut forged = follow(number, &bytes);
    forged.snapshots.clear();
    owned.put(number + 1, &forged.encode().unwrap());
    owned.owner(&["key", "owner", "sign"]).done();
    assert!(owned.lab.exists(&format!("repo/disk/manifest.{:06}", number + 2)));
    // A configuration that is damaged: the last one that counts goes on, whoever looks from where.
    owned.owner(&["config", "set", "prune.keep_last", "7"]).done();
    owned.lab.write("repo/config.000004", b"garbage");
    owned.lab.write("repo/config.000099", b"garbage");
    owned.host(&["list"]).failed(DAMAGE);
    owned.host(&["repair"]).failed(FAILED);
    std::os::unix::fs::symlink(owned.lab.path("repo"), owned.lab.path("other")).unwrap();
    let mut elsewhere = owned.lab.command(&["--repo", &owned.lab.at("other"), "repair"]);
    elsewhere.env("IMGSNAP_OWNER_KEY_FILE", owned.lab.path("owner.key"));
    elsewhere.env("IMGSNAP_STATE", owned.lab.path("state-elsewhere"));
    Run::of(elsewhere.env("IMGSNAP_MACHINE_ID", "elsewhere")).done();
    assert_eq!(owned.numbers(), [2, 3]);
    assert!(owned.host(&["config", "show"]).done().text().contains("keep_last = 7"));
    assert!(owned.host(&["key", "owner"]).done().text().starts_with(&owned.key));
}

/// Rule V7.
#[test]
fn a_request_is_for_what_it_says() {
    let owned = Owned::new();
    let ids: Vec<String> = (1..4)
        .map(|number| {
            let shown = owned.host(&["--json", "show", &format!("disk@{number}")]).done().json();
            shown["id"].as_str().unwrap().to_owned()
        })
        .collect();
    let (_, bytes) = owned.manifests().pop().unwrap();
    let image_id = Manifest::decode(&bytes).unwrap().image_id;
    let ask = |image: &str, number: u64, id: &str| {
        let host = json!({"machine": "0".repeat(32), "name": "h\u{1b}[2J\n00000000  drop all"});
        let snapshots = json!([{"number": number, "id": id}]);
        let time = "2026-01-01T00:00:00Z";
        let body = json!({"image": image, "image_id": image_id, "host": host, "time": time,
            "snapshots": snapshots});
        let bytes = checked("request", 1, &format!("{body:#}\n"));
        let digest = blake3::hash(&bytes);
        let id = uuid::Builder::from_custom_bytes(digest.as_bytes()[..16].try_into().unwrap());
        let id = id.into_uuid().to_string();
        owned.lab.write(&format!("repo/request.{id}"), &bytes);
        id
    };
    let confused = ask("disk", 1, &ids[2]);
    let line = owned.owner(&["requests", "confirm", &confused]).failed(FAILED);
    assert!(line.contains("with the id of another snapshot"), "{line}");
    // Names that would make lines of their own.
    ask("disk\n00000000  x", 1, &ids[0]);
    assert_eq!(owned.drop_lines().len(), 2);
    // One in whose place another one was put since it was looked at.
    let right = ask("disk", 1, &ids[0]);
    let other = ask("disk", 3, &ids[2]);
    owned.lab.copy(&format!("repo/request.{other}"), &format!("repo/request.{right}"));
    let line = owned.owner(&["requests", "confirm", &right]).failed(DAMAGE);
    assert!(line.contains("the request has changed"), "{line}");
    owned.owner(&["requests", "confirm", &other[..4]]).failed(FAILED);
    // A whole image goes only if somebody says so.
    owned.host(&["remove", "disk", "--yes"]).done();
    let remove = owned.drop_lines().into_iter().find(|line| line.contains("remove disk")).unwrap();
    let remove = remove.split_whitespace().next().unwrap().to_owned();
    let line = owned.owner(&["requests", "confirm", &remove]).failed(FAILED);
    assert!(line.contains("--yes"), "{line}");
    assert_eq!(owned.numbers(), [1, 2, 3]);
    owned.owner(&["requests", "confirm", &remove, "--yes"]).done();
    owned.host(&["list", "disk"]).failed(FAILED);
}

/// Rules V1, V6.
#[test]
fn a_key_that_is_mistaken_or_was_owner_before_is_refused_and_not_said_again() {
    let owned = Owned::new();
    let text = String::from_utf8(owned.lab.read("owner.key")).unwrap();
    let private = text.lines().find_map(|line| line.strip_prefix("private: ")).unwrap();
    for given in [private, text.as_str(), &owned.key[..64]] {
        let run = owned.host(&["--owner-key", given, "list"]);
        let line = run.failed(FAILED);
        assert!(!line.contains(private) && line.contains("72 hexadecimal digits"), "{line}");
    }
    let next = owned.lab.at("next.key");
    owned.owner(&["key", "owner", "change", &next]).done();
    owned.host(&["list"]).done();
    let back = ["--owner-key-file", &next, "key", "owner", "change", &owned.lab.at("owner.key")];
    let line = owned.owner(&back).failed(FAILED);
    assert!(line.contains("has been an owner of the repository before"), "{line}");
    // What was interrupted is finished by the same command.
    owned.owner(&["--owner-key-file", &next, "key", "owner", "create", &next]).done();
}
