//! A guest's ext4 file system in an image, changed day by day.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;
use std::collections::BTreeMap;

/// The image, and what must be in the files in it.
struct Guest<'a> {
    lab: &'a Lab,
    image: String,
    files: BTreeMap<String, Vec<u8>>,
}

/// A day that was kept: a copy of the image, and the files in it.
type Day = (String, BTreeMap<String, Vec<u8>>);

impl<'a> Guest<'a> {
    fn new(lab: &'a Lab) -> Self {
        let folder = lab.path("root");
        std::fs::create_dir_all(format!("{folder}/etc")).unwrap();
        let files =
            [("/etc/motd", text(1, 700)), ("/a.bin", noise(2, MIB)), ("/b.txt", text(3, 300_000))];
        for (name, bytes) in &files {
            std::fs::write(format!("{folder}{name}"), bytes).unwrap();
        }
        let image = lab.path("guest.img");
        tool("mke2fs", &["-q", "-F", "-t", "ext4", "-d", &folder, &image, "32M"]);
        Self { lab, image, files: files.map(|(name, bytes)| (name.into(), bytes)).into() }
    }

    #[track_caller]
    fn debugfs(&self, command: &str) {
        let mut debugfs = tool_command("debugfs", &["-w", "-R", command, &self.image]).unwrap();
        let output = output(&mut debugfs).unwrap();
        // It ends with 0 whatever happens, but it tells.
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(err.lines().filter(|l| !l.starts_with("debugfs ")).count(), 0, "{err}");
    }

    fn write(&mut self, name: &str, bytes: Vec<u8>) {
        let outside = self.lab.path("to-write");
        std::fs::write(&outside, &bytes).unwrap();
        self.debugfs(&format!("write {outside} {name}"));
        self.files.insert(name.into(), bytes);
    }

    fn remove(&mut self, name: &str) {
        self.debugfs(&format!("rm {name}"));
        assert!(self.files.remove(name).is_some());
    }

    fn resize(&self, mebibytes: u64) {
        // It wants to see a check first; 1 is "errors corrected".
        let mut check = tool_command("e2fsck", &["-fp", &self.image]).unwrap();
        let check = output(&mut check).unwrap();
        assert!(matches!(check.status.code(), Some(0 | 1)), "{check:?}");
        tool("resize2fs", &[&self.image, &format!("{mebibytes}M")]);
        set_length(&self.image, mebibytes * MIB);
    }

    fn keep(&self, day: usize) -> Day {
        let kept = self.lab.path(&format!("day{day}.kept"));
        keep(&self.image, &kept);
        (kept, self.files.clone())
    }
}

/// Fails unless the image is what it was on that day, and a sound file system with that day's
/// files.
#[track_caller]
fn is_day(lab: &Lab, image: &str, (kept, files): &Day) {
    same(image, kept);
    tool("e2fsck", &["-fn", image]);
    for (name, bytes) in files {
        let outside = lab.path("dumped");
        std::fs::remove_file(&outside).ok();
        tool("debugfs", &["-R", &format!("dump {name} {outside}"), image]);
        assert!(std::fs::read(&outside).unwrap() == *bytes, "{name} in {image}");
    }
}

#[test]
fn each_day_of_a_guest_comes_back_by_restore_and_by_rollback() {
    need!(tools(&["mke2fs", "debugfs", "e2fsck", "resize2fs"]));
    let lab = Lab::new();
    let mut guest = Guest::new(&lab);
    let mut days = Vec::new();
    for day in 0..6 {
        match day {
            0 => {}
            1 => {
                guest.debugfs("mkdir /var");
                guest.write("/var/log", text(4, 200_000));
            }
            2 => guest.remove("/a.bin"),
            3 => {
                guest.remove("/b.txt");
                guest.write("/b.txt", text(5, 310_000));
                guest.write("/var/db", noise(6, 2 * MIB));
            }
            4 => {
                guest.resize(45);
                guest.write("/var/more", noise(7, 300_001));
            }
            _ => {
                guest.remove("/var/db");
                guest.resize(24);
            }
        }
        let taken = lab.run(&["snapshot", &guest.image, "--json"]).done().json();
        assert_eq!(taken["number"], day + 1);
        assert_eq!(taken["kind"], if day == 0 { "base" } else { "delta" });
        assert_eq!(taken["image_bytes"], length(&guest.image));
        days.push(guest.keep(day));
    }
    lab.verify(6);
    for (day, kept) in days.iter().enumerate() {
        let restored = lab.restore(&format!("guest@{}", day + 1));
        is_day(&lab, &restored, kept);
        let (used, all) = (allocated(&restored), length(&restored));
        assert!(used < all / 2, "{restored} is not sparse: {used} of {all}");
    }
    // In both directions, near and far, by the tables and by scans.
    for (day, prove) in
        [(4, false), (0, false), (5, true), (3, false), (1, true), (2, false), (5, false)]
    {
        let to = format!("guest@{}", day + 1);
        let mut args = vec!["rollback", &guest.image, "--to", &to, "--json"];
        args.extend(prove.then_some("--prove"));
        let done = lab.run(&args).done().json();
        is_day(&lab, &guest.image, &days[day]);
        assert_eq!(done["proved"], done["scanned"]);
        if prove || trusts_times(&guest.image) {
            assert_eq!(done["scanned"], prove, "{done}");
        }
        assert!(done["written_bytes"].as_u64().unwrap() > 0, "{done}");
        // It was a snapshot already.
        assert_eq!(lab.numbers("guest").len(), 6);
        assert!(done["saved"].is_string(), "{done}");
    }
    guest.files = days[5].1.clone();
    unsaved_changes(&lab, &mut guest, &days);
}

/// What no snapshot has is saved by a rollback, or lost if the user says so.
fn unsaved_changes(lab: &Lab, guest: &mut Guest, days: &[Day]) {
    guest.write("/unsaved", noise(8, 50_000));
    let unsaved = guest.keep(6);
    let done = lab.run(&["rollback", "guest", "--to", "@3", "--json"]).done().json();
    assert_eq!((&done["saved"], &done["scanned"]), (&"guest@7".into(), &true.into()));
    is_day(lab, &guest.image, &days[2]);
    is_day(lab, &lab.restore("guest@7"), &unsaved);

    guest.debugfs("mkdir /lost");
    let done = lab.run(&["rollback", "guest", "--to", "@7", "--no-save", "--json"]).done().json();
    assert_eq!((&done["saved"], &done["scanned"]), (&serde_json::Value::Null, &true.into()));
    is_day(lab, &guest.image, &unsaved);
    lab.verify(7);
    lab.is_tidy("guest");
}
