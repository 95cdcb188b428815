//! Progress, warnings and cancellation of a running operation.

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::message::Message;
use crate::base::named::named;
use crate::base::read_limit::{ReadLimits, ReadRate};
use crate::base::transfer::{Transfer, Way};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

named! {
    /// What is being done.
    pub enum Phase {
        /// The first file of a chain is written.
        Apply = "apply",
        /// An image is checked against a digest.
        Check = "check",
        /// Two snapshots, or a snapshot and an image.
        Compare = "compare",
        /// Bytes are copied.
        Copy = "copy",
        /// An image is copied, to measure with.
        CopyImage = "copy image",
        /// An image is made, to measure with.
        MakeImage = "make image",
        /// Damaged bytes are replaced.
        Mend = "mend",
        /// Several delta files become one.
        Merge = "merge",
        /// A snapshot is written out.
        Restore = "restore",
        /// An image is put back.
        RollBack = "roll back",
        /// What changed is found out.
        Scan = "scan",
        /// Lost blocks are looked for.
        Search = "search",
        /// Stored bytes are checked.
        Verify = "verify",
    }
}

named! {
    /// What a warning is of.
    pub enum WarningId {
        /// An extended attribute of the image file is not remembered.
        AttributesNotNoted = "attributes-not-noted",
        /// A restored file has not got all that its image file had.
        AttributesNotRestored = "attributes-not-restored",
        /// It is not known whether a file is the base image of some image.
        BaseImagesUnknown = "base-images-unknown",
        /// A plan, or what it is of, is damaged.
        PlanUnreadable = "plan-unreadable",
        /// What is not needed any more is removed later.
        CleanupDelayed = "cleanup-delayed",
        /// No clone could be kept.
        CloneNotKept = "clone-not-kept",
        /// No clone could be made.
        CloneNotMade = "clone-not-made",
        /// A clone that nobody needs could not be removed.
        CloneStays = "clone-stays",
        /// Which clones there are could not be found out.
        ClonesUnknown = "clones-unknown",
        /// A delta begins a chain of its own.
        ExportUnrelated = "export-unrelated",
        /// A folder of the repository could not be removed.
        FolderStays = "folder-stays",
        /// What was known of the live image is damaged.
        HeadDamaged = "head-damaged",
        /// The process that thaws, or lets a machine go on, was killed.
        GuardLost = "guard-lost",
        /// Images of a group were not taken at one point in time.
        GroupApart = "group-apart",
        /// A command that was to run after a snapshot failed.
        HookFailed = "hook-failed",
        /// What is known of the live image could not be noted.
        HeadNotNoted = "head-not-noted",
        /// The repository is older than what this host has seen of it.
        TurnedBack = "turned-back",
        /// A snapshot lost its label.
        LabelDropped = "label-dropped",
        /// It is not noted that a file is the live image.
        LiveFileNotNoted = "live-file-not-noted",
        /// The content of an image looks like a format that it does not have.
        LooksForeign = "looks-foreign",
        /// QEMU did not end in good order after an image was written; all of it is durable.
        ImageNotClosed = "image-not-closed",
        /// What was made in QEMU for a snapshot could not be taken away; the next one does it.
        MachineNotCleared = "machine-not-cleared",
        /// A machine was stopped before its disks were rolled back, and is not started.
        MachineStopped = "machine-stopped",
        /// What was damaged in what came from another host was not at a second look.
        DamagedOnTheWay = "damaged-on-the-way",
        /// Blocks had changed that no hint named.
        MissedChanges = "missed-changes",
        /// Who opens the image meanwhile cannot be seen.
        NoLease = "no-lease",
        /// Nothing could be locked.
        NoLock = "no-lock",
        /// What was written may be lost if the server fails: it cannot flush.
        NotDurable = "not-durable",
        /// Something of a machine is in no snapshot.
        NotCovered = "not-covered",
        /// It is not known on which hosts an image lies.
        HostsUnknown = "hosts-unknown",
        /// Nothing of an image counts, so its owner did not sign it.
        NotSigned = "not-signed",
        /// What was to be frozen was not, at the point in time.
        NotFrozen = "not-frozen",
        /// A file or device is not the one that it was.
        OtherImage = "other-image",
        /// This host has used other repositories where this one is.
        OtherRepository = "other-repository",
        /// A snapshot is not kept any more for an image that is not there.
        PinReleased = "pin-released",
        /// It is not known which repositories this host has used there.
        PlaceUnknown = "place-unknown",
        /// The policy in the configuration is invalid.
        PolicyInvalid = "policy-invalid",
        /// There is little free space for what a machine overwrites while its disks are read.
        ScratchScarce = "scratch-scarce",
        /// Another repository, or an image, was not used.
        SourceUnusable = "source-unusable",
        /// What was frozen may still be.
        StillFrozen = "still-frozen",
        /// Blocks could not be read from the image.
        UnreadBlocks = "unread-blocks",
        /// Who has the image open cannot be seen.
        UsersUnseen = "users-unseen",
    }
}

/// What work tells of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A phase begins; `total_bytes` are to be covered.
    Started {
        /// Which.
        phase: Phase,
        /// How much work it is.
        total_bytes: u64,
    },
    /// So many more bytes of the phase are covered.
    Advanced {
        /// How many.
        bytes: u64,
    },
    /// The phase is over.
    Ended,
    /// So many more bytes are sent to a server.
    Sent {
        /// How many.
        bytes: u64,
    },
    /// So many more bytes are fetched from a server.
    Fetched {
        /// How many.
        bytes: u64,
    },
    /// Something that the user should know, though the work goes on.
    Warning {
        /// What it is of.
        id: WarningId,
        /// What to say.
        message: Message,
    },
    /// A step worth a line to somebody who wants to see what happens.
    Note {
        /// What to say.
        message: Message,
    },
}

/// Is told what happens. Called from several threads.
pub trait Observer: Send + Sync {
    /// Something happened.
    fn observe(&self, event: Event);

    /// False if nobody is told: what is said once must not be said to such a one.
    fn is_heard(&self) -> bool {
        true
    }
}

/// Passed to every verb: the observer, the stop flag, the number of threads.
#[derive(Clone)]
pub struct Context {
    observer: Arc<dyn Observer>,
    stop: Arc<AtomicBool>,
    threads: usize,
    sharing: Arc<Sharing>,
    read_limits: ReadLimits,
    transfer: Transfer,
    lock_wait: Duration,
}

/// Operations that run concurrently and share threads and memory.
struct Sharing {
    /// Operations not finished yet, including those not started.
    left: AtomicUsize,
    at_once: usize,
}

impl Sharing {
    fn new(works: usize, at_once: usize) -> Arc<Self> {
        Arc::new(Self { left: AtomicUsize::new(works), at_once })
    }
}

/// More threads than this add memory and no speed: two to four saturate a memory channel.
const MAX_THREADS: usize = 16;

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("threads", &self.threads).finish_non_exhaustive()
    }
}

impl Context {
    /// `stop` may be set at any time, also by a signal handler.
    pub fn new(observer: Arc<dyn Observer>, stop: Arc<AtomicBool>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let (sharing, read_limits) = (Sharing::new(1, 1), ReadLimits::default());
        let heard = observer.clone();
        let told = move |way, bytes| {
            heard.observe(match way {
                Way::Up => Event::Sent { bytes },
                Way::Down => Event::Fetched { bytes },
            });
        };
        let transfer = Transfer::new(Arc::new(told), stop.clone());
        let (threads, lock_wait) = (cores.min(MAX_THREADS), Duration::ZERO);
        Self { observer, stop, threads, sharing, read_limits, transfer, lock_wait }
    }

    /// True if somebody is told what happens.
    pub(crate) fn is_heard(&self) -> bool {
        self.observer.is_heard()
    }

    /// Tells nobody and never stops.
    pub fn silent() -> Self {
        Self::new(Arc::new(Silent), Arc::new(AtomicBool::new(false)))
    }

    /// The same with another number of threads, 1 to 16.
    #[must_use]
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads.clamp(1, MAX_THREADS);
        self
    }

    /// The same that waits so long for another program that works on an image, instead of failing at once, in
    /// repositories that are opened for it ([`Repository::reading_within`]).
    ///
    /// [`Repository::reading_within`]: crate::Repository::reading_within
    #[must_use]
    pub fn with_lock_wait(mut self, wait: Duration) -> Self {
        self.lock_wait = wait;
        self
    }

    /// How long another program is waited for.
    pub(crate) fn lock_wait(&self) -> Duration {
        self.lock_wait
    }

    /// Asks all that goes on with it to stop, as a signal does.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// The same that reads images, and repositories that are opened for it
    /// ([`Repository::reading_within`]), no faster than that, if it is given. It can have several limits.
    ///
    /// [`Repository::reading_within`]: crate::Repository::reading_within
    #[must_use]
    pub fn with_read_limit(mut self, rate: Option<ReadRate>) -> Self {
        if let Some(rate) = rate {
            self.read_limits = self.read_limits.and(rate, self.stop.clone());
        }
        self
    }

    /// How fast may be read.
    pub fn read_limits(&self) -> &ReadLimits {
        &self.read_limits
    }

    /// The same that sends to servers, and fetches from them, no faster than that, where a rate is given.
    #[must_use]
    pub fn with_transfer_limits(
        mut self,
        upload: Option<ReadRate>,
        download: Option<ReadRate>,
    ) -> Self {
        self.transfer = self.transfer.with_limits(upload, download);
        self
    }

    /// How servers are used: for images there, and for stores that are opened for this work.
    pub fn transfer(&self) -> &Transfer {
        &self.transfer
    }

    /// The same for `works` works of which `at_once` go on at the same time: each has a part of the
    /// threads and of the memory. When fewer are left the parts become larger, and never smaller.
    #[must_use]
    pub fn shared_among(mut self, works: usize, at_once: usize) -> Self {
        self.sharing = Sharing::new(works, at_once);
        self
    }

    /// One of the works that share has ended: the others have its part.
    pub fn leave(&self) {
        self.sharing.left.fetch_sub(1, Ordering::Relaxed);
    }

    /// The same for a work that is `bytes` bytes of the phase that has begun, and begins none itself.
    #[must_use]
    pub fn part_of_phase(mut self, bytes: u64) -> Self {
        self.observer = Arc::new(Part { whole: self.observer, rest: AtomicU64::new(bytes) });
        self
    }

    /// The part that this work has of something there is only once, at least 1. With time it may
    /// become more.
    pub fn share_of(&self, whole: u64) -> u64 {
        let left = self.sharing.left.load(Ordering::Relaxed);
        (whole / left.clamp(1, self.sharing.at_once.max(1)) as u64).max(1)
    }

    /// How many threads this work has: its share of them all.
    pub fn threads(&self) -> usize {
        self.share_of(self.threads as u64) as usize
    }

    /// How many threads all works that share have together.
    pub fn all_threads(&self) -> usize {
        self.threads
    }

    /// How many items of up to `item_bytes` bytes may be under way at once: enough for the threads,
    /// within a budget, so that memory does not grow with them.
    pub fn in_flight(&self, item_bytes: u64) -> usize {
        const BUDGET_BYTES: u64 = 14 << 20;
        self.in_flight_of(BUDGET_BYTES, item_bytes)
    }

    /// The same with another budget, of which this work has its share.
    pub fn in_flight_of(&self, budget_bytes: u64, item_bytes: u64) -> usize {
        let fit = self.share_of(budget_bytes) / item_bytes.max(1);
        (fit.max(2) as usize).min(self.threads() + 2)
    }

    /// A phase begins; `total_bytes` are to be covered. It ends when the guard is dropped.
    #[must_use]
    pub fn begin(&self, phase: Phase, total_bytes: u64) -> PhaseGuard<'_> {
        self.observer.observe(Event::Started { phase, total_bytes });
        PhaseGuard(self)
    }

    /// So many more bytes are covered.
    pub fn advance(&self, bytes: u64) {
        self.observer.observe(Event::Advanced { bytes });
    }

    /// Something that the user should know, though the work goes on.
    pub fn warn(&self, id: WarningId, message: impl Into<Message>) {
        self.observer.observe(Event::Warning { id, message: message.into() });
    }

    /// A step worth a line to somebody who wants to see what happens.
    pub fn note(&self, message: impl Into<Message>) {
        self.observer.observe(Event::Note { message: message.into() });
    }

    /// An error of kind `Interrupted` once the user asked to stop.
    pub fn check(&self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Interrupted, "interrupted"));
        }
        Ok(())
    }
}

/// A phase that goes on.
#[derive(Debug)]
pub struct PhaseGuard<'a>(&'a Context);

impl Drop for PhaseGuard<'_> {
    fn drop(&mut self) {
        self.0.observer.observe(Event::Ended);
    }
}

/// A part of a phase. What a work did not cover, because it failed or had nothing to do, counts as
/// covered when it is over: otherwise the whole would never be.
struct Part {
    whole: Arc<dyn Observer>,
    rest: AtomicU64,
}

impl Observer for Part {
    fn observe(&self, event: Event) {
        match event {
            Event::Started { .. } | Event::Ended => {}
            Event::Advanced { bytes } => {
                let less = |rest: u64| Some(rest.saturating_sub(bytes));
                let order = Ordering::Relaxed;
                let rest = self.rest.fetch_update(order, order, less).unwrap_or_default();
                self.whole.observe(Event::Advanced { bytes: bytes.min(rest) });
            }
            event => self.whole.observe(event),
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.whole.observe(Event::Advanced { bytes: *self.rest.get_mut() });
    }
}

struct Silent;

impl Observer for Silent {
    fn observe(&self, _: Event) {}

    fn is_heard(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_and_memory_are_divided_among_those_that_are_left() {
        let alone = Context::silent().with_threads(16);
        assert_eq!((alone.threads(), alone.in_flight(1 << 20)), (16, 14));
        let shared = alone.clone().shared_among(6, 4);
        let mut parts = Vec::new();
        for left in (0..=6).rev() {
            assert_eq!(shared.all_threads(), 16);
            parts.push((left, shared.threads(), shared.in_flight(1 << 20)));
            if left > 0 {
                shared.clone().leave();
            }
        }
        let wanted =
            [(6, 4, 3), (5, 4, 3), (4, 4, 3), (3, 5, 4), (2, 8, 7), (1, 16, 14), (0, 16, 14)];
        assert_eq!(parts, wanted);
        assert_eq!(alone.threads(), 16, "who shares takes nothing from who does not");
    }

    #[test]
    fn all_shares_together_are_not_more_than_there_is() {
        for threads in 1..=16 {
            for at_once in 1..=threads.min(4) {
                let shared = Context::silent().with_threads(threads).shared_among(9, at_once);
                assert!(shared.threads() * at_once <= threads, "{threads} {at_once}");
                assert!(shared.share_of(24 << 20) * at_once as u64 <= 24 << 20);
                // Two at least: with one, nothing would be made while it is used up.
                assert_eq!(shared.in_flight(u64::MAX), 2);
            }
        }
    }

    #[derive(Default)]
    struct Count(AtomicU64);

    impl Observer for Count {
        fn observe(&self, event: Event) {
            let Event::Advanced { bytes } = event else { panic!("a part begins and ends nothing") };
            self.0.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    #[test]
    fn parts_of_a_phase_cover_it_whatever_becomes_of_them() {
        let count = Arc::new(Count::default());
        let whole = Context::new(count.clone(), Arc::default());
        for advances in [&[][..], &[30], &[30, 70], &[30, 70, 10], &[200]] {
            count.0.store(0, Ordering::Relaxed);
            let part = whole.clone().part_of_phase(100);
            let phase = part.begin(Phase::Scan, 100);
            advances.iter().for_each(|bytes| part.advance(*bytes));
            drop(phase);
            drop(part);
            assert_eq!(count.0.load(Ordering::Relaxed), 100, "{advances:?}");
        }
    }
}
