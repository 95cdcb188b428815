//! A guest that writes, in a domain of a real libvirt: frozen by its agent, and made anew beside itself.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::guest::{self, Console, judge};
use crate::kit::*;
use crate::libvirt_kit::Host;
use nix::sys::signal::Signal;
use std::fs::File;
use std::time::Duration;

/// So many files it keeps.
const KEEP: u64 = 600;

/// What it has on its disk before that.
const MARKER: &str = "it-is-web";

/// Makes a machine from the newest snapshot, starts it, and reads what it has on its disk.
fn boots_to_its_marker(host: &Host) {
    let pool = host.lab.path("pool");
    std::fs::create_dir(&pool).unwrap();
    host.run(&["restore", "libvirt:web@latest", "--define", "copy", "--pool", &pool]).done();
    host.start_domain("copy");
    let terminal = host.virsh(&["ttyconsole", "copy"]);
    let terminal = File::options().read(true).write(true).open(terminal.trim()).unwrap();
    let mut console = Console::new(terminal);
    host.virsh(&["resume", "copy"]);
    console.waits_for("GUEST-UP", 0);
    console.run("read -r line </marker && echo \"MARKER: $line\"");
    console.waits_for(&format!("MARKER: {MARKER}"), 0);
    host.virsh(&["destroy", "copy"]);
}

#[test]
fn a_guest_is_frozen_by_its_agent_whoever_is_killed_and_a_copy_boots_beside_it() {
    let host = need!(Host::start());
    let disk = need!(guest::built());
    let mut console = host.guest("web", &disk);
    let scratch = host.scratch();
    console.run(&format!("echo {MARKER} >/marker; sync"));
    console.run(&format!("work files /data {KEEP} 100"));
    console.waits_for("WROTE ", 0);
    let args =
        ["snapshot", "libvirt:web", "--freeze", "agent", "--json", "--scratch-dir", &scratch];
    // The agent comes up a little later than the guest.
    let ping = ["qemu-agent-command", "web", r#"{"execute":"guest-ping"}"#];
    assert!(wait_until(|| host.try_virsh(&ping).is_ok()));
    for (freeze, consistency) in [(false, "crash"), (true, "frozen"), (true, "frozen")] {
        let more: &[&str] = if freeze { &["--freeze", "agent"] } else { &[] };
        let before = console.last("WROTE ");
        let run = host.run(&[&args[..2], &args[4..], more].concat()).done();
        let after = console.last("WROTE ");
        assert_eq!(run.json()["consistency"], consistency, "{}", run.err);
        let restored = host.lab.restore("web-vda@latest");
        let held = judge::system(&restored, KEEP).unwrap_or_else(|why| panic!("{why}"));
        assert_eq!(held.was_replayed, !freeze);
        assert!((before..=after + 1).contains(&held.last), "{held:?}, {before} to {after}");
        std::fs::remove_file(&restored).unwrap();
    }
    // Killed in the middle, nothing stays frozen.
    let is_thawed = || {
        let status = ["qemu-agent-command", "web", r#"{"execute":"guest-fsfreeze-status"}"#];
        host.try_virsh(&status).is_ok_and(|said| said.contains("thawed"))
    };
    for pause in [200, 300, 400] {
        let run = Started::spawn(host.command(&args));
        std::thread::sleep(Duration::from_millis(pause));
        run.signal(Signal::SIGKILL);
        run.wait();
        assert!(wait_until(is_thawed), "frozen for ever");
        let from = console.count();
        console.waits_for("WROTE ", from);
    }
    host.run(&args).done();
    assert_eq!(console.complaints(), Vec::<String>::new());
    // Beside the old one, and on a host that never saw it, by the repository alone.
    boots_to_its_marker(&host);
    let from = console.count();
    console.waits_for("WROTE ", from);
    let mut other = need!(Host::start());
    other.lab.repo.clone_from(&host.lab.repo);
    boots_to_its_marker(&other);
    // Shut down and started again for a rollback.
    let back = ["rollback", "libvirt:web", "--to", "@1", "--shutdown"];
    let run = Started::spawn(host.command(&back));
    // This guest does not hear the button for the power.
    std::thread::sleep(Duration::from_secs(1));
    console.run("poweroff -f");
    run.wait().done();
    assert!(host.virsh(&["domstate", "web"]).contains("running"));
    // Its agent may not be there yet: it is taken all the same, and that is said.
    let run = host.run(&args).done();
    match run.json()["consistency"].as_str() {
        Some("frozen") => {}
        other => {
            assert_eq!(other, Some("crash"));
            run.says("not frozen, so crash-consistent only");
        }
    }
}
