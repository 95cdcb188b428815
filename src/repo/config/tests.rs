//! What a configuration says, and what of it is refused.

use super::*;
use crate::base::uri::Shown;
use crate::repo::Repository;
use crate::repo::retention::{Count, Rules};
use crate::store::{LocalStore, OsDisk};
use crate::tracking::Recheck;
use crate::tracking::Track;
use std::sync::Arc;
use std::time::Duration;

#[test]
fn config_comes_back_and_bad_ones_are_refused() {
    let text = Config::new(Defaults::default()).encode().unwrap();
    assert_eq!(Config::decode(&text).unwrap().defaults().unwrap(), Defaults::default());
    // What an older program wrote is taken over as it is.
    assert!(Config::checked(&format!("version = 1\n{text}")).is_ok());
    for (bad, why) in [
        ("version = 2", "version: expected 1"),
        ("\n\nversion = \"x\"", "line 3: invalid type"),
        ("a = 1\n[new\n", "line 2: "),
    ] {
        let error = Config::decode(bad).err().unwrap().to_string();
        assert!(error.starts_with(why), "{bad}: {error}");
    }
    // Whoever makes no base does not need them, and a right one counts beside a wrong one.
    let wrong = text.replace("4096", "5000").replace("lz4", "none");
    assert_eq!(Config::decode(&wrong).unwrap().compression(), Compression::None);
    for (bad, why) in [
        ("new = 7", "[new]: expected a table"),
        (&text.replace("4096", "\"x\""), "[new]: block_size: expected a number of bytes"),
        (&text.replace("4096", "5000"), "[new]: block_size: block size 5000 is not"),
        (&text.replace("xxh3", "md5"), "[new]: digest: "),
        (&text.replace("lz4", "gzip"), "[new]: compression: "),
    ] {
        for error in [Config::decode(bad).unwrap().defaults().err(), Config::checked(bad).err()] {
            let error = error.unwrap().to_string();
            assert!(error.starts_with(why), "{bad}: {error}");
        }
    }
}

#[test]
fn what_is_to_be_written_is_checked_in_all_tables() {
    let text = Config::new(Defaults::default()).encode().unwrap();
    for (more, why) in [
        ("digset = 1", "[new]: digset: unknown key"),
        ("[prun]", "prun: unknown table or key"),
        ("[prune]\nkeep_last = 0", "[prune]: keep_last: expected a positive integer"),
        ("[snapshot]\nrecheck = 101", "[snapshot]: recheck: invalid percentage"),
        ("[images.vm.prune]\nkeep = 1", "[images.\"vm\".prune]: keep: unknown key"),
        ("[images.vm.snapshot]\ntrack = 1", "[images.\"vm\".snapshot]: track: expected a string"),
        ("[images.vm]\nx = 1", "images.\"vm\": x: unknown key"),
        ("[images.\"vm@1\".prune]", "[images]: invalid image name \"vm@1\""),
        ("images = 7", "[new]: images: unknown key"),
        ("[[images]]", "[images]: expected a table"),
        ("[prune", "line 9: unclosed table"),
    ] {
        let error = Config::checked(&format!("{text}{more}\n")).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().starts_with(why), "{more}: {error}");
    }
    assert!(Config::checked(&format!("{text}[prune]\n[images.vm.prune]\n")).is_ok());
}

#[test]
fn the_ruling_one_is_the_highest_and_none_takes_the_place_of_one_that_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalStore::new(Arc::new(OsDisk::new(folder.path().into())));
    let kind = || object::ruling(&store).err().map(|e| e.kind());
    assert_eq!(kind(), Some(ErrorKind::NotFound));
    for number in 1..=3 {
        let text = format!("# {number}\n");
        assert_eq!(
            object::commit(&store, (number > 1).then(|| number - 1), &text).unwrap(),
            number
        );
        let ruling = object::ruling(&store).unwrap();
        assert_eq!((ruling.number, ruling.text), (Some(number), text));
    }
    // Whoever read the second one comes too late.
    assert_eq!(object::commit(&store, Some(2), "").unwrap_err().kind(), ErrorKind::Busy);
    let file = folder.path().join("config.000003");
    let good = std::fs::read(&file).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x04;
        std::fs::write(&file, bad).unwrap();
        // Another version in the first line cannot be told from a later one.
        let is =
            if at == "imgsnap-config ".len() { ErrorKind::Unsupported } else { ErrorKind::Corrupt };
        assert_eq!(kind(), Some(is), "byte {at}");
        std::fs::write(&file, &good[..at]).unwrap();
        assert_eq!(kind(), Some(ErrorKind::Corrupt), "cut at {at}");
    }
    let later = String::from_utf8(good.clone()).unwrap().replace("config 1 ", "config 3 ");
    std::fs::write(&file, later).unwrap();
    assert_eq!(kind(), Some(ErrorKind::Unsupported));
    std::fs::write(&file, good).unwrap();
    assert!(object::put(&store, 4, &"#".repeat(1 << 20)).is_err());
    assert_eq!(object::ruling(&store).unwrap().number, Some(3));
}

#[test]
fn what_an_older_program_wrote_rules_while_there_is_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalStore::new(Arc::new(OsDisk::new(folder.path().into())));
    for (text, is) in [
        ("version = 1\n", None),
        ("", Some(ErrorKind::Corrupt)),
        ("# a comment\n", Some(ErrorKind::Corrupt)),
        ("a = 1\n", Some(ErrorKind::Corrupt)),
        // Without images it is what an init left behind.
        ("version = 2\n", Some(ErrorKind::NotFound)),
        ("version = 3\nnew = 7\n", Some(ErrorKind::Key)),
        ("version = 4\nnew = 7\n", Some(ErrorKind::Unsupported)),
    ] {
        std::fs::write(folder.path().join("repository.toml"), text).unwrap();
        assert_eq!(Config::load(&store).err().map(|e| e.kind()), is, "{text}");
    }
}

fn with(policies: &str) -> Config {
    let text = Config::new(Defaults::default()).encode().unwrap();
    Config::decode(&format!("{text}\n{policies}")).unwrap()
}

#[test]
fn an_image_has_its_own_rules_or_the_common_ones() {
    let config = with(
        r#"[prune]
        keep_last = 7
        keep_hourly = 24
        keep_daily = "unlimited"
        keep_weekly = 1
        keep_monthly = 12
        keep_yearly = 3
        keep_within = "1y6m"
        keep_label = ["pre-*", "v[0-9]"]
        garbage = 2.5
        [images."vm".prune]
        keep_label = "gold"
        [images."db"]
        prune = { garbage = 100 }
        "#,
    );
    let common = Rules {
        last: Some(Count::Most(7)),
        hourly: Some(Count::Most(24)),
        daily: Some(Count::Unlimited),
        weekly: Some(Count::Most(1)),
        monthly: Some(Count::Most(12)),
        yearly: Some(Count::Most(3)),
        within: Some("1y6mo".parse().unwrap()),
        labels: vec!["pre-*".parse().unwrap(), "v[0-9]".parse().unwrap()],
    };
    let policy = |name: &str| config.policy(name).unwrap();
    assert_eq!(policy("web"), Policy { rules: Some(common.clone()), garbage: 0.025 });
    let own = Rules { labels: vec!["gold".parse().unwrap()], ..Rules::default() };
    assert_eq!(policy("vm"), Policy { rules: Some(own), garbage: 0.025 });
    assert_eq!(policy("db"), Policy { rules: Some(common), garbage: 1.0 });
    assert_eq!(Policy::default(), Policy { rules: None, garbage: 0.05 });
    for none in ["", "[prune]", "[prune]\nkeep_label = []", "[images.web]"] {
        assert_eq!(with(none).policy("web").unwrap(), Policy::default(), "{none}");
    }
}

#[test]
fn how_snapshots_are_taken_is_said_key_by_key() {
    let config = with(
        r#"[snapshot]
        track = "none"
        recheck = 2.5
        [images."vm".snapshot]
        track = "reflink"
        max_stall = "1m30s"
        "#,
    );
    let common = SnapshotPolicy {
        track: Track::None,
        recheck: Recheck::Share(0.025),
        ..SnapshotPolicy::default()
    };
    let policy = |name: &str| config.snapshot_policy(name).unwrap();
    assert_eq!(policy("db"), common);
    let max_stall = Duration::from_secs(90);
    assert_eq!(policy("vm"), SnapshotPolicy { track: Track::Reflink, max_stall, ..common });
    assert_eq!(with("").snapshot_policy("vm").unwrap(), SnapshotPolicy::default());
    for (text, why) in [
        ("track = \"on\"", "[snapshot]: track: unknown tracking method \"on\""),
        ("track = 1", "[snapshot]: track: expected a string"),
        ("recheck = 101", "[snapshot]: recheck: invalid percentage: expected 0 to 100"),
        ("max_stall = \"soon\"", "[snapshot]: max_stall: invalid duration \"soon\""),
        ("max_stal = \"1s\"", "[snapshot]: max_stal: unknown key"),
    ] {
        let error = with(&format!("[snapshot]\n{text}")).snapshot_policy("vm").unwrap_err();
        assert!(error.to_string().starts_with(why), "{error}");
    }
}

#[test]
fn how_long_what_is_dropped_stays_is_from_a_day_to_a_year() {
    let grace =
        |text: &str| with(text).grace().map(|grace| grace.map(|grace| grace.as_secs() / 86400));
    for (text, days) in [("", None), ("[store]", None), ("[store]\ngrace = \"7d\"", Some(7))] {
        assert_eq!(grace(text).unwrap(), days, "{text}");
    }
    for text in
        ["grace = \"0d\"", "grace = \"366d\"", "grace = \"12h\"", "grace = 3", "grac = \"3d\""]
    {
        let error = grace(&format!("[store]\n{text}")).unwrap_err();
        assert!(error.to_string().starts_with("[store]: grac"), "{error}");
    }
    assert!(grace("[[store]]").is_err());
}

#[test]
fn a_mistake_in_the_rules_is_named_and_concerns_them_alone() {
    for (text, place) in [
        ("[prune]\nkeep_dialy = 7", "[prune]: keep_dialy: unknown key"),
        ("[prune]\n\"a\\nb\" = 7", "[prune]: a\\nb: unknown key"),
        ("[images.vm.prune]\ngarbige = 7", "[images.\"vm\".prune]: garbige: unknown key"),
        ("[prune]\nkeep_last = 0", "[prune]: keep_last: expected a positive integer"),
        ("[prune]\nkeep_last = -1", "[prune]: keep_last: expected a positive integer"),
        ("[prune]\nkeep_last = \"7\"", "[prune]: keep_last: expected a positive integer"),
        ("[prune]\nkeep_daily = 1.5", "[prune]: keep_daily: expected a positive integer"),
        ("[prune]\nkeep_within = 30", "[prune]: keep_within: expected a string"),
        ("[prune]\nkeep_within = \"30\"", "[prune]: keep_within: invalid duration \"30\""),
        ("[prune]\nkeep_label = [7]", "[prune]: keep_label: expected a string"),
        ("[prune]\nkeep_label = \"[\"", "[prune]: keep_label: invalid label pattern \"[\""),
        ("[prune]\ngarbage = 101", "[prune]: garbage: invalid percentage: expected 0 to 100"),
        ("[prune]\ngarbage = nan", "[prune]: garbage: invalid percentage: expected 0 to 100"),
        ("[prune]\ngarbage = -0.5", "[prune]: garbage: invalid percentage: expected 0 to 100"),
        ("[prune]\ngarbage = \"5\"", "[prune]: garbage: invalid percentage: expected 0 to 100"),
        ("[[prune]]\nkeep_last = 7", "[prune]: expected a table"),
        ("[images.vm]\nkeep_last = 7", "images.\"vm\": keep_last: unknown key"),
        ("[prun]\nkeep_last = 7", "prun: unknown table or key"),
        ("[[images]]", "[images]: expected a table"),
        ("[images]\nvm = 7", "[images.\"vm\"]: expected a table"),
        ("[images.vm]\nprune = 7", "[images.\"vm\".prune]: expected a table"),
    ] {
        let config = with(text);
        assert_eq!(config.defaults().unwrap(), Defaults::default());
        let error = config.policy("vm").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        let line = error.to_string();
        assert!(line.starts_with(place), "{line}");
        assert!(line.ends_with("; correct it with config(edit)") && !line.contains('\n'), "{line}");
    }
    // What is wrong with one image does not keep another one from being pruned.
    let config = with("[prune]\nkeep_last = 1\n[images.vm.prune]\nkeep_lats = 2");
    assert!(config.policy("vm").is_err());
    assert!(config.policy("web").unwrap().rules.is_some());
}

#[test]
fn a_repository_with_a_mistake_in_the_rules_opens_and_names_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let store = || Arc::new(LocalStore::new(Arc::new(OsDisk::new(folder.path().into()))));
    let host = || crate::repo::host::HostState::in_folder(&folder.path().join(".state"));
    Repository::init_in(store(), Defaults::default(), host()).unwrap();
    let ruling = object::ruling(store().as_ref()).unwrap();
    let text = ruling.text + "\n[prune]\nkeep_lats = 7\n";
    object::commit(store().as_ref(), ruling.number, &text).unwrap();
    let repository = Repository::open_in(store(), host()).unwrap();
    assert!(repository.names().unwrap().is_empty());
    let line = repository.policy("vm").unwrap_err().to_string();
    let why = "[prune]: keep_lats: unknown key; correct it with config(edit)";
    let file = folder.path().join("config.000002");
    assert_eq!(line, format!("{}: {why}", file.shown()));
}
