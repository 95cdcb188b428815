//! A scope of its own for processes that are to outlive the service in which we run: when systemd ends a
//! service, it ends everything in the service's control group.

use crate::base::events::Context;
use nix::unistd::geteuid;
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// There if systemd is the first process (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";
/// How long systemd may take.
const PATIENCE: Duration = Duration::from_secs(3);
const STEP: Duration = Duration::from_millis(2);

/// Asks systemd to take processes out of the unit in which we run, and into a scope. Where there is no
/// systemd nothing happens; where it refuses, that is noted, and they go on where they are.
pub fn leave_unit(ids: &[i32], context: &Context) {
    leave_unit_by("busctl", Path::new(BOOTED), ids, context);
}

fn leave_unit_by(program: &str, booted: &Path, ids: &[i32], context: &Context) {
    let (Some(first), true) = (ids.first(), booted.exists()) else { return };
    let mut busctl = Command::new(program);
    if !geteuid().is_root() {
        // An own manager has a user's units, and busctl knows where it is.
        busctl.arg("--user");
    }
    busctl.args(["call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1"]);
    busctl.args(["org.freedesktop.systemd1.Manager", "StartTransientUnit", "ssa(sv)a(sa(sv))"]);
    let count = ids.len().to_string();
    busctl.args([&format!("imgsnap-guard-{first}.scope"), "fail", "3", "PIDs", "au", &count]);
    busctl.args(ids.iter().map(i32::to_string));
    busctl.args(["Description", "s", "imgsnap: thaws if imgsnap cannot"]);
    busctl.args(["CollectMode", "s", "inactive-or-failed", "0"]);
    busctl.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let ended = busctl.spawn().and_then(|mut child| {
        let ended = await_end(&mut child);
        if ended.is_err() {
            child.kill()?;
            child.wait()?;
        }
        ended
    });
    if let Err(why) = ended {
        let what = "systemd will end the process that thaws together with this service";
        context.note(format!("{what}: {program}: {why}"));
    }
}

fn await_end(child: &mut Child) -> io::Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        match child.try_wait()? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(io::Error::other(status.to_string())),
            None => sleep(STEP),
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::events::{Event, Observer};
    use std::os::unix::fs::PermissionsExt;
    use std::sync::{Arc, Mutex};

    #[derive(Default)]
    struct Notes(Mutex<Vec<String>>);

    impl Observer for Notes {
        fn observe(&self, event: Event) {
            let Event::Note { message } = event else { return };
            self.0.lock().unwrap().push(message.to_string());
        }
    }

    #[test]
    fn systemd_is_asked_where_it_runs_and_a_refusal_is_noted() {
        let place = tempfile::tempdir().unwrap();
        let (program, said) = (place.path().join("busctl"), place.path().join("said"));
        let script = format!("#!/bin/sh\necho \"$@\" >{0}.new; mv {0}.new {0}\n", said.display());
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        let notes = Arc::new(Notes::default());
        let context = Context::new(notes.clone(), Arc::default());
        let program = program.to_str().unwrap();
        leave_unit_by(program, &place.path().join("no"), &[7], &context);
        leave_unit_by(program, place.path(), &[], &context);
        assert!(!said.exists(), "nothing to do");
        leave_unit_by(program, place.path(), &[7, 8], &context);
        let said = std::fs::read_to_string(said).unwrap();
        let end = "StartTransientUnit ssa(sv)a(sa(sv)) imgsnap-guard-7.scope fail 3 PIDs au 2 7 8 \
                   Description s imgsnap: thaws if imgsnap cannot CollectMode s inactive-or-failed 0\n";
        assert!(said.ends_with(end), "{said}");
        assert!(notes.0.lock().unwrap().is_empty());
        for (program, why) in [("false", "exit status: 1"), ("/nonexistent", "No such file")] {
            leave_unit_by(program, place.path(), &[7], &context);
            let said = notes.0.lock().unwrap().pop().unwrap();
            assert!(said.contains(why), "{said}");
        }
    }
}
