//! A guest that writes, in a domain of a real libvirt: frozen by its agent, and made anew beside itself.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::guest::{self, judge};
use crate::kit::*;
use crate::libvirt_kit::Host;
use nix::sys::signal::Signal;
use std::time::Duration;

/// So many files it keeps.
const KEEP: u64 = 600;

#[test]
fn a_guest_is_frozen_by_its_agent_whoever_is_killed_and_a_copy_boots_beside_it() {
    let host = need!(Host::start());
    let disk = need!(guest::built());
    let mut console = host.guest("web", &disk);
    let scratch = host.scratch();
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
    let pool = host.lab.path("pool");
    std::fs::create_dir(&pool).unwrap();
    let make = ["restore", "libvirt:web@latest", "--define", "copy", "--pool", &pool];
    host.run(&make).done();
    host.virsh(&["start", "copy"]);
    let ping = ["qemu-agent-command", "copy", r#"{"execute":"guest-ping"}"#];
    assert!(wait_until(|| host.try_virsh(&ping).is_ok()), "it does not come up");
    let from = console.count();
    console.waits_for("WROTE ", from);
    // Shut down and started again for a rollback.
    host.virsh(&["destroy", "copy"]);
    let back = ["rollback", "libvirt:web", "--to", "@1", "--shutdown"];
    let run = Started::spawn(host.command(&back));
    // This guest does not hear the button for the power.
    std::thread::sleep(Duration::from_secs(1));
    console.run("poweroff -f");
    run.wait().done();
    assert!(host.virsh(&["domstate", "web"]).contains("running"));
    // Without its agent it is taken all the same, and that is said.
    let run = host.run(&args).done();
    assert_eq!(run.json()["consistency"], "crash");
    run.says("not frozen, as after a power cut");
}
