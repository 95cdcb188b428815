//! A worker that somebody else has started: Hadoop streaming, Spark, or another scheduler (docs/fleets.md).
//!
//! Whoever starts it may go away, or be told that another one was faster; then it ends, and soon. An engine
//! that hears nothing for long takes a worker for dead, so one that asks for it is told how far it is.

use imgsnap::base::error::{Error, Result, best_effort};
use imgsnap::base::events::{Event, Observer};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use std::env;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long it may take to end in good order: an engine kills what has not ended 250 ms after it was told to.
const PATIENCE: Duration = Duration::from_millis(200);
const LOOK: Duration = Duration::from_millis(20);
/// An engine is told so often; the usual patience of Hadoop is ten minutes.
const TELL: Duration = Duration::from_secs(20);
/// What a process ends with that was told to end.
const STOPPED: i32 = 130;

/// Which attempt at a task this is.
const ATTEMPT: &str = "IMGSNAP_ATTEMPT";
/// The same under Hadoop.
const HADOOP_ATTEMPT: &str = "mapreduce_task_attempt_id";

/// How far the work is.
#[derive(Default)]
struct Progress {
    done_bytes: AtomicU64,
    all_bytes: AtomicU64,
}

/// What started this process, as far as it says.
pub struct Engine {
    is_hadoop: bool,
    progress: Arc<Progress>,
}

impl Engine {
    /// Begins to listen to whoever started this process: `stop` is set when it is to end, and soon after that
    /// it ends.
    ///
    /// # Errors
    /// If the system does not let it.
    pub fn begin(stop: &Arc<AtomicBool>, task: u32) -> Result<Self> {
        let is_hadoop = env::var_os(HADOOP_ATTEMPT).is_some();
        if is_hadoop || env::var_os(ATTEMPT).is_some() {
            let parent = nix::unistd::getppid();
            let failed = |e: nix::Error| {
                Error::io("cannot watch for the end of the parent process", e.into())
            };
            prctl::set_pdeathsig(Signal::SIGTERM).map_err(failed)?;
            // It may have ended before that was asked for.
            if nix::unistd::getppid() != parent {
                stop.store(true, Ordering::Relaxed);
            }
        }
        if !is_hangup_ignored() {
            let failed = |e| Error::io("cannot handle signals", e);
            signal_hook::flag::register(signal_hook::consts::SIGHUP, stop.clone())
                .map_err(failed)?;
        }
        let progress = Arc::new(Progress::default());
        let (stop, told) = (stop.clone(), is_hadoop.then(|| progress.clone()));
        let listen = move || listen(&stop, told.as_deref(), task);
        let failed = |e| Error::io("cannot start a thread", e);
        std::thread::Builder::new().spawn(listen).map_err(failed)?;
        Ok(Self { is_hadoop, progress })
    }

    /// Is told of the work, and tells it on.
    pub fn observer(&self, inner: Arc<dyn Observer>) -> Arc<dyn Observer> {
        Arc::new(Told { inner, progress: self.progress.clone() })
    }

    /// Tells an engine that counts what was done.
    pub fn count(&self, counters: &[(&str, u64)]) {
        if self.is_hadoop {
            for (name, count) in counters {
                report(&format!("counter:imgsnap,{name},{count}"));
            }
        }
    }
}

/// `nohup` and some engines ignore it before they start a process: then it stays ignored.
fn is_hangup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask & 1 << (Signal::SIGHUP as u32 - 1) != 0)
}

fn listen(stop: &AtomicBool, told: Option<&Progress>, task: u32) {
    let mut last = Instant::now();
    loop {
        if stop.load(Ordering::Relaxed) {
            std::thread::sleep(PATIENCE);
            // What was being uploaded has no final name.
            signal_hook::low_level::exit(STOPPED);
        }
        if let Some(progress) = told.filter(|_| last.elapsed() >= TELL) {
            let (done, all) = (&progress.done_bytes, &progress.all_bytes);
            let (done, all) = (done.load(Ordering::Relaxed), all.load(Ordering::Relaxed));
            report(&format!("status:task {task}: {} of {} MiB", done >> 20, all >> 20));
            last = Instant::now();
        }
        std::thread::sleep(LOOK);
    }
}

/// In one piece, so that nothing of others comes between.
fn report(what: &str) {
    best_effort(std::io::stderr().lock().write_all(format!("reporter:{what}\n").as_bytes()));
}

struct Told {
    inner: Arc<dyn Observer>,
    progress: Arc<Progress>,
}

impl Observer for Told {
    fn observe(&self, event: Event) {
        match &event {
            Event::Started { total_bytes, .. } => {
                self.progress.all_bytes.store(*total_bytes, Ordering::Relaxed);
                self.progress.done_bytes.store(0, Ordering::Relaxed);
            }
            Event::Advanced { bytes } => {
                self.progress.done_bytes.fetch_add(*bytes, Ordering::Relaxed);
            }
            _ => {}
        }
        self.inner.observe(event);
    }
}
