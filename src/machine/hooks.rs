//! Commands of the user's, before and after a snapshot.

use crate::base::error::{Error, ErrorKind, Result, best_effort};
use crate::base::events::Context;
use crate::base::uri::Shown;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::Duration;

/// How often it is asked whether a command has ended.
const STEP: Duration = Duration::from_millis(10);

/// What is run by `sh -c` before and after. Nothing here may come from a repository: whoever can write to
/// that could run what he likes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hooks {
    /// Run before anything is done. If it fails there is no snapshot.
    pub pre: Option<OsString>,
    /// Run in any case after `pre` was run, also if that failed.
    pub post: Option<OsString>,
}

/// Hooks of which `pre` was run. Dropped, `post` is run as after a failure.
#[derive(Debug)]
pub struct HooksBegun<'a> {
    post: Option<&'a OsStr>,
    environment: Vec<(&'static str, String)>,
}

impl Hooks {
    /// Runs `pre`. Commands find in their environment `IMGSNAP_IMAGES` (the names of the images, with spaces
    /// between), `IMGSNAP_IMAGE` (the first of them), and `IMGSNAP_GROUP` if they are one.
    ///
    /// # Errors
    /// `Io` if it ends with an exit code other than 0, or by a signal; `Interrupted`, when it has
    /// ended; of the system. `post` was run then.
    pub fn begin(
        &self,
        images: &[String],
        group: Option<&str>,
        context: &Context,
    ) -> Result<HooksBegun<'_>> {
        let mut environment = vec![
            ("IMGSNAP_IMAGE", images.first().cloned().unwrap_or_default()),
            ("IMGSNAP_IMAGES", images.join(" ")),
        ];
        environment.extend(group.map(|group| ("IMGSNAP_GROUP", group.to_owned())));
        let mut begun = HooksBegun { post: self.post.as_deref(), environment };
        let Some(pre) = &self.pre else { return Ok(begun) };
        let ran = run(pre, &begun.environment, Some(context)).and_then(|()| context.check());
        if let Err(error) = ran {
            // What went wrong first is what the user has to know.
            best_effort(begun.run_post(&[], false));
            return Err(error);
        }
        Ok(begun)
    }
}

impl HooksBegun<'_> {
    /// Runs `post`, which finds in its environment also `IMGSNAP_RESULT` (`ok` or `failed`) and, after a
    /// success, `IMGSNAP_SNAPSHOT`: the snapshots (`vm@3`), with spaces between.
    ///
    /// # Errors
    /// As of `pre`. The snapshots stand.
    pub fn end(mut self, snapshots: &[String], is_ok: bool) -> Result<()> {
        self.run_post(snapshots, is_ok)
    }

    fn run_post(&mut self, snapshots: &[String], is_ok: bool) -> Result<()> {
        let Some(post) = self.post.take() else { return Ok(()) };
        let result = if is_ok { "ok" } else { "failed" };
        self.environment.push(("IMGSNAP_RESULT", result.to_owned()));
        self.environment.push(("IMGSNAP_SNAPSHOT", snapshots.join(" ")));
        run(post, &self.environment, None)
    }
}

impl Drop for HooksBegun<'_> {
    fn drop(&mut self) {
        // There is an error already, of what came between.
        best_effort(self.run_post(&[], false));
    }
}

/// Runs a command to its end. What it prints goes to our stderr, since our results are on stdout. With a
/// context it is told to end (SIGTERM) when we are.
fn run(
    command: &OsStr,
    environment: &[(&'static str, String)],
    context: Option<&Context>,
) -> Result<()> {
    let shown = Path::new(command).shown().into_owned();
    let failed = |e: io::Error| Error::os("run", format!("\"{shown}\""), e);
    let stderr = io::stderr().as_fd().try_clone_to_owned().map_err(failed)?;
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(command).stdout(Stdio::from(stderr));
    shell.envs(environment.iter().map(|(name, value)| (name, value)));
    let mut child = shell.spawn().map_err(failed)?;
    let mut is_told = false;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            break status;
        }
        if !is_told && context.is_some_and(|context| context.check().is_err()) {
            is_told = true;
            // It may be over.
            best_effort(kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM));
        }
        sleep(STEP);
    };
    if is_told || status.success() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Io, format!("\"{shown}\" {}", how(status))))
}

fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("failed with exit code {code}"),
        (_, Some(signal)) => format!("was killed by signal {signal}"),
        _ => format!("failed: {status}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tempfile::TempDir;

    /// Hooks that note how they were called.
    fn hooks(place: &TempDir, pre: &str, post: &str) -> Hooks {
        let note = |name: &str, then: &str| {
            let values = "$IMGSNAP_IMAGE|$IMGSNAP_IMAGES|${IMGSNAP_GROUP-none}|\
                          ${IMGSNAP_RESULT-none}|$IMGSNAP_SNAPSHOT";
            let file = place.path().join("said");
            Some(format!("echo \"{name} {values}\" >>{}; {then}", file.to_str().unwrap()).into())
        };
        Hooks { pre: note("pre", pre), post: note("post", post) }
    }

    fn said(place: &TempDir) -> String {
        let file = place.path().join("said");
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        std::fs::remove_file(file).ok();
        text
    }

    #[test]
    fn commands_are_run_before_and_after_and_know_of_what() {
        let place = tempfile::tempdir().unwrap();
        let (hooks, context) = (hooks(&place, "true", "true"), Context::silent());
        let images = ["a".to_owned(), "b".to_owned()];
        let begun = hooks.begin(&images, Some("g"), &context).unwrap();
        assert_eq!(said(&place), "pre a|a b|g|none|\n");
        begun.end(&["a@1".to_owned(), "b@7".to_owned()], true).unwrap();
        assert_eq!(said(&place), "post a|a b|g|ok|a@1 b@7\n");
        drop(hooks.begin(&images[..1], None, &context).unwrap());
        assert_eq!(said(&place), "pre a|a|none|none|\npost a|a|none|failed|\n");
        let none = Hooks::default();
        none.begin(&images, None, &context).unwrap().end(&[], true).unwrap();
        assert_eq!(said(&place), "");
    }

    #[test]
    fn exit_codes_count() {
        let place = tempfile::tempdir().unwrap();
        let (images, context) = (["a".to_owned()], Context::silent());
        let failing = hooks(&place, "exit 3", "exit 4");
        let error = failing.begin(&images, None, &context).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.to_string().ends_with("exit 3\" failed with exit code 3"), "{error}");
        assert_eq!(said(&place), "pre a|a|none|none|\npost a|a|none|failed|\n");
        let failing = hooks(&place, "true", "kill -9 $$");
        let begun = failing.begin(&images, None, &context).unwrap();
        let error = begun.end(&["a@2".to_owned()], true).unwrap_err();
        assert!(error.to_string().ends_with("\" was killed by signal 9"), "{error}");
    }

    #[test]
    fn a_command_that_goes_on_is_ended_with_us_and_the_other_one_still_run() {
        let place = tempfile::tempdir().unwrap();
        let endless = hooks(&place, "exec sleep 1000", "true");
        let stop = Arc::new(AtomicBool::new(false));
        struct Nobody;
        impl crate::base::events::Observer for Nobody {
            fn observe(&self, _: crate::base::events::Event) {}
        }
        let context = Context::new(Arc::new(Nobody), stop.clone());
        let error = std::thread::scope(|scope| {
            let begun = scope.spawn(|| endless.begin(&[], None, &context).map(drop));
            while !place.path().join("said").exists() {
                sleep(STEP);
            }
            stop.store(true, Ordering::Relaxed);
            begun.join().unwrap().unwrap_err()
        });
        assert_eq!(error.kind(), ErrorKind::Interrupted);
        assert_eq!(
            said(&place),
            "pre |||none|none|\n".replace("|||", "||") + "post ||none|failed|\n"
        );
    }
}
