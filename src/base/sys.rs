//! What the operating system offers only behind `unsafe`, each behind a safe function: the one module
//! of this program in which `unsafe` stands.
//!
//! # The contract of a mapped window
//!
//! The bytes of a [`MappedWindow`] are those of a file that other processes can write and truncate
//! at any time. Therefore:
//!
//! - A write by somebody else while we read gives *some* bytes. Nothing may be concluded from two
//!   reads of the same place; whoever stores a block copies it first and looks only at the copy.
//! - A truncation would raise SIGBUS at the next access. The handler installed here puts zeros under the
//!   window and marks it *poisoned*; [`MappedWindow::is_poisoned`] must be asked after the last access, and
//!   what was read from a poisoned window thrown away. Any other SIGBUS goes to the handler before ours.
//!
//! A window is populated when it is made (MADV_POPULATE_READ), so that a page which cannot be read is
//! an error with an offset; unless all of it is in the page cache. Then its pages are mapped as they
//! are touched, sixteen at a fault, which is a third faster (DESIGN.md, "Speed"); should one be gone
//! by then and not be readable, the handler poisons the window, as above.
//!
//! The Rust memory model does not know bytes that change underfoot. As in every program that maps
//! files, we rely on the compiler reading each byte at most a few times and never inventing a
//! value: the digest of a racing read is some number, and is used for nothing but "look closer".

mod attributes;
mod child;
mod freeze;
pub mod guard;
mod rename;

pub use attributes::{attribute, attribute_names, remove_attribute, set_attribute};
pub use child::bind_child;
pub use freeze::{freeze_file_system, thaw_file_system};
pub use rename::{Onto, rename_in};

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering, fence};

/// A read-only window on a file, unmapped when it is dropped.
pub struct MappedWindow {
    map: memmap2::Mmap,
    slot: &'static Slot,
}

/// A registered window: the SIGBUS handler helps only within these.
struct Slot {
    start: AtomicUsize,
    end: AtomicUsize,
    /// One more with each window, so that the handler sees when start and end are of two of them.
    uses: AtomicUsize,
    poisoned: AtomicBool,
}

const FREE: usize = 0;
const CLAIMED: usize = 1;

/// Two windows for each of the most threads that work, and room to spare.
static SLOTS: [Slot; 64] = [const {
    Slot {
        start: AtomicUsize::new(FREE),
        end: AtomicUsize::new(0),
        uses: AtomicUsize::new(0),
        poisoned: AtomicBool::new(false),
    }
}; 64];

impl MappedWindow {
    /// Maps `bytes` bytes of `file` from `offset` on, and reads in (MADV_POPULATE_READ) what is not in
    /// the page cache.
    ///
    /// # Errors
    /// `InvalidInput` if the kernel has no MADV_POPULATE_READ (before 5.14): read instead.
    /// Otherwise a page could not be read: the file is shorter, or its device failed; a plain
    /// read tells where.
    pub fn new(file: &File, offset: u64, bytes: usize) -> io::Result<Self> {
        let meta = file.metadata()?;
        if meta.is_file() && meta.len() < offset.saturating_add(bytes as u64) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        install_guard();
        let slot = SLOTS
            .iter()
            .find(|s| {
                let claim = (Ordering::AcqRel, Ordering::Relaxed);
                s.start.compare_exchange(FREE, CLAIMED, claim.0, claim.1).is_ok()
            })
            .ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        // SAFETY: we cannot keep others from changing the file; the module's contract covers that. The bytes
        // are only read, as `u8`, of which every value is valid; a truncation becomes zeros by the guard,
        // which stands already. The map is of this value alone, so no slice of it lives longer.
        let map = unsafe { memmap2::MmapOptions::new().offset(offset).len(bytes).map(file) };
        let map = map.inspect_err(|_| slot.start.store(FREE, Ordering::Release))?;
        // Declared after the map: the slot is free before the map goes.
        let free = FreeOnDrop(slot);
        // It holds the file, and with it our lease and locks: a guard that outlives us must not have it.
        map.advise(memmap2::Advice::DontFork)?;
        let start = map.as_ptr() as usize;
        slot.uses.fetch_add(1, Ordering::AcqRel);
        slot.poisoned.store(false, Ordering::Relaxed);
        slot.end.store(start + map.len(), Ordering::Release);
        slot.start.store(start, Ordering::Release);
        if !is_cached(file, offset, bytes) {
            map.advise(memmap2::Advice::PopulateRead)?;
        }
        std::mem::forget(free);
        Ok(Self { map, slot })
    }

    /// The bytes, under the module's contract.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// True if the file was truncated under the window; then its bytes mean nothing.
    pub fn is_poisoned(&self) -> bool {
        // The bytes are read before it is asked: without the fence a plain read might be moved behind.
        fence(Ordering::SeqCst);
        self.slot.poisoned.load(Ordering::Acquire)
    }
}

impl Drop for MappedWindow {
    fn drop(&mut self) {
        // Before the map goes: an address must not look registered when something else is mapped
        // there.
        self.slot.start.store(FREE, Ordering::Release);
    }
}

struct FreeOnDrop(&'static Slot);

impl Drop for FreeOnDrop {
    fn drop(&mut self) {
        self.0.start.store(FREE, Ordering::Release);
    }
}

static GUARD: Once = Once::new();
/// The handler before ours. Written once before ours is installed, never freed.
static PREVIOUS: AtomicPtr<libc::sigaction> = AtomicPtr::new(std::ptr::null_mut());
/// Asked before: a signal handler must not call `sysconf`.
static PAGE_BYTES: AtomicUsize = AtomicUsize::new(0);

fn install_guard() {
    GUARD.call_once(|| {
        PAGE_BYTES.store(page_bytes(), Ordering::Release);
        // SAFETY: all-zero bytes are a valid `sigaction`; the pointers are valid for the calls, and
        // `previous`, which is leaked, for ever. The handler has the signature that SA_SIGINFO asks for, and
        // only does what one may: atomics, and system calls (mmap, sigaction, raise). errno may change, but
        // what is interrupted is an access to memory, and never a look at errno after a call that failed.
        unsafe {
            let previous: *mut libc::sigaction = Box::into_raw(Box::new(std::mem::zeroed()));
            libc::sigaction(libc::SIGBUS, std::ptr::null(), previous);
            PREVIOUS.store(previous, Ordering::Release);
            let mut ours: libc::sigaction = std::mem::zeroed();
            ours.sa_sigaction = on_sigbus as *const () as usize;
            ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigaction(libc::SIGBUS, &ours, std::ptr::null_mut());
        }
    });
}

/// Runs on the thread that touched the page, on its own signal stack, while others go on.
extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid `siginfo_t`, which lives until we return. Unless the
    // SIGBUS is the kernel's own, its address is some number, which is not used.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    // Not positive: somebody sent it, and there is no address.
    let is_of_kernel = code > 0;
    for slot in SLOTS.iter().filter(|_| is_of_kernel) {
        let uses = slot.uses.load(Ordering::Acquire);
        let start = slot.start.load(Ordering::Acquire);
        let end = slot.end.load(Ordering::Acquire);
        // The slot may have been given to other windows meanwhile: then it is not that of the one that was
        // touched, which stays as it is.
        let is_same = slot.start.load(Ordering::Acquire) == start
            && slot.uses.load(Ordering::Acquire) == uses;
        if is_same && start > CLAIMED && (start..end).contains(&address) {
            slot.poisoned.store(true, Ordering::Release);
            let base = start & !(PAGE_BYTES.load(Ordering::Acquire) - 1);
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
            // SAFETY: MAP_FIXED replaces whatever is there, so all of it must be ours: [base, end) is one
            // window, because start and end are of one use of the slot, and it is mapped as long as we are
            // here, because whoever touched it borrows it. A reader may see it become zeros (module's
            // contract); its owner unmaps them like the file. Two threads that fault at once do it twice.
            let zeros =
                unsafe { libc::mmap(base as *mut _, end - base, libc::PROT_READ, flags, -1, 0) };
            if zeros != libc::MAP_FAILED {
                return;
            }
        }
    }
    // Not ours: put the previous handler back and return, so that the access faults again under it. One
    // that was sent does not come again by itself.
    // SAFETY: `PREVIOUS` was set before this handler was, to a `sigaction` that is never freed and not
    // written again; `raise` takes a number. The signal is blocked until we return.
    unsafe {
        libc::sigaction(signal, PREVIOUS.load(Ordering::Acquire), std::ptr::null_mut());
        if !is_of_kernel {
            libc::raise(signal);
        }
    }
}

/// Begins to write the dirty pages of a range of a file to its device, and does not wait.
///
/// # Errors
/// Of the device. Once reported here, the kernel does not report it at the next fsync.
pub fn begin_writeback(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    sync_range(file, offset, bytes, libc::SYNC_FILE_RANGE_WRITE)
}

/// Waits until the pages of a range of a file are written to its device. Not a sync: neither what
/// the device holds back nor the file's metadata is made durable.
///
/// # Errors
/// Of the device. Once reported here, the kernel does not report it at the next fsync.
pub fn await_writeback(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    sync_range(file, offset, bytes, flags)
}

fn sync_range(file: &File, offset: u64, bytes: u64, flags: libc::c_uint) -> io::Result<()> {
    let (offset, bytes) = (offset as i64, bytes as i64);
    // SAFETY: numbers only, a descriptor that is open while `file` is borrowed among them.
    let result = unsafe { libc::sync_file_range(file.as_fd().as_raw_fd(), offset, bytes, flags) };
    let error = io::Error::last_os_error();
    // Where unsupported, the fsync does all of the work.
    let is_missing =
        matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL | libc::ESPIPE));
    if result == 0 || is_missing { Ok(()) } else { Err(error) }
}

fn page_bytes() -> usize {
    // SAFETY: a number in, a number out; Linux knows this one, so it is no -1.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}

/// Lets all threads share two heaps of the C library instead of one each: buffers are made by one thread
/// and freed by another here, and each heap keeps what was once freed in it. And lets them keep some
/// megabytes of what is freed: to get it again costs a fault for each page.
///
/// For programs, at their start; a library must not decide this for others.
pub fn share_heaps() {
    #[cfg(target_env = "gnu")]
    // SAFETY: numbers only; what is not known is refused without effect. The heap is locked meanwhile.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 << 20);
    }
}

/// What a lease forbids to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// Nobody opens the file for writing.
    Read,
    /// Nobody else opens the file.
    Write,
}

/// Takes a lease on a file (`F_SETLEASE`); it goes when the file is closed.
///
/// # Errors
/// `EAGAIN` if somebody has the file open in a way that the lease would forbid. `EACCES`, `EINVAL`,
/// `ENOTSUP`: this user or file system cannot have leases.
pub fn take_lease(file: &File, lease: Lease) -> io::Result<()> {
    // The kernel announces a lease break with SIGIO, whose default is to end the process.
    static IGNORE_SIGIO: Once = Once::new();
    IGNORE_SIGIO.call_once(|| {
        // SAFETY: SIG_IGN is a valid disposition of any signal but two, and no handler of ours.
        unsafe {
            libc::signal(libc::SIGIO, libc::SIG_IGN);
        }
    });
    let kind = match lease {
        Lease::Read => libc::F_RDLCK,
        Lease::Write => libc::F_WRLCK,
    };
    // SAFETY: this command takes an integer; the descriptor is open as long as `file` is borrowed.
    let result = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_SETLEASE, kind) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Gives a lease back. Without one nothing happens.
pub fn release_lease(file: &File) {
    // SAFETY: this command takes an integer; the descriptor is open as long as `file` is borrowed.
    unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) };
}

/// True if the lease still stands: nobody waits for the file and it was not taken from us.
pub fn holds_lease(file: &File, lease: Lease) -> bool {
    let kind = match lease {
        Lease::Read => libc::F_RDLCK,
        Lease::Write => libc::F_WRLCK,
    };
    // SAFETY: this command takes no argument; the descriptor is open as long as `file` is borrowed.
    unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_GETLEASE) == kind }
}

/// True if all pages of a range of a file are in the page cache, as far as the kernel tells.
fn is_cached(file: &File, offset: u64, bytes: usize) -> bool {
    let page = page_bytes() as u64;
    let first = offset / page;
    let pages = (offset + bytes as u64).div_ceil(page) - first;
    cached_pages(file, first * page, pages * page).is_some_and(|cached| cached >= pages)
}

/// The kernel's `struct cachestat_range`.
#[repr(C)]
struct CacheRange {
    offset: u64,
    bytes: u64,
}

/// The kernel's `struct cachestat`.
#[repr(C)]
#[derive(Default)]
struct CacheStat {
    cached: u64,
    /// Dirty, in writeback, evicted, recently evicted.
    others: [u64; 4],
}

/// How many pages of a range of a file are in the page cache; none if the kernel cannot tell
/// (before 6.5).
pub fn cached_pages(file: &File, offset: u64, bytes: u64) -> Option<u64> {
    /// The same number on every architecture that Rust runs on.
    const SYS_CACHESTAT: libc::c_long = 451;
    let range = CacheRange { offset, bytes };
    let mut stat = CacheStat::default();
    let fd = libc::c_long::from(file.as_fd().as_raw_fd());
    // SAFETY: arguments of a register's width; both structures are laid out as the kernel's, which reads one
    // and writes the other, and live through the call.
    let result = unsafe {
        libc::syscall(SYS_CACHESTAT, fd, &raw const range, &raw mut stat, 0 as libc::c_long)
    };
    (result == 0).then_some(stat.cached)
}

/// Makes `to`, an empty file on the same file system, share all extents of `from` (FICLONE): one moment
/// of it, whoever writes meanwhile.
///
/// # Errors
/// `EOPNOTSUPP` and others where the file system cannot.
pub fn clone_file(from: &File, to: &File) -> io::Result<()> {
    let (from, to) = (libc::c_long::from(from.as_fd().as_raw_fd()), to.as_fd().as_raw_fd());
    // SAFETY: this request takes a number of a register's width and no pointer; both descriptors are open
    // while the files are borrowed.
    let result = unsafe { libc::ioctl(to, libc::FICLONE, from) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Tells btrfs not to copy an empty file on write. Other file systems may refuse.
///
/// # Errors
/// Of the file system.
pub fn set_no_copy_on_write(file: &File) -> io::Result<()> {
    /// From linux/fs.h: `FS_IOC_GETFLAGS`, `FS_IOC_SETFLAGS`, `FS_NOCOW_FL`.
    const GET: libc::Ioctl = 0x8008_6601_u32 as libc::Ioctl;
    const SET: libc::Ioctl = 0x4008_6602_u32 as libc::Ioctl;
    const NO_COW: libc::c_int = 0x0080_0000;
    let fd = file.as_fd().as_raw_fd();
    // The kernel reads and writes an `int`. The numbers speak of a `long`, and FUSE goes by them.
    let mut flags: [libc::c_int; 2] = [0; 2];
    // SAFETY: a pointer to eight bytes that live through both calls; the kernel touches four or all of them.
    let result = unsafe {
        match libc::ioctl(fd, GET, &raw mut flags) {
            0 => {
                flags[0] |= NO_COW;
                libc::ioctl(fd, SET, &raw const flags)
            }
            failed => failed,
        }
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// One extent of a file, as its file system tells (the kernel's `struct fiemap_extent`).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FileExtent {
    /// Where it is in the file, in bytes.
    pub logical: u64,
    /// Where it is on the file system's device, or in its own address space.
    pub physical: u64,
    /// How long it is.
    pub bytes: u64,
    reserved64: [u64; 2],
    /// `FIEMAP_EXTENT_*`.
    pub flags: u32,
    reserved: [u32; 3],
}

const _: () = assert!(size_of::<FileExtent>() == 56 && size_of::<ExtentCount>() == 32);
const _: () = assert!(std::mem::offset_of!(ExtentRequest, extents) == size_of::<ExtentCount>());
const _: () = assert!(size_of::<FileAttributes>() == 28 && size_of::<CacheStat>() == 40);

/// The kernel's `struct fiemap` without extents.
#[repr(C)]
#[derive(Default)]
struct ExtentCount {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
}

/// The same with what it fills.
#[repr(C)]
struct ExtentRequest {
    head: ExtentCount,
    extents: [FileExtent; EXTENTS_AT_ONCE],
}

/// `FS_IOC_FIEMAP`: `_IOWR('f', 11, struct fiemap)`, whose size is that without extents.
const FIEMAP: libc::Ioctl = 0xC020_660B_u32 as libc::Ioctl;

/// Extents that are asked for at a time.
const EXTENTS_AT_ONCE: usize = 4096;

/// The extents of a file from `start` on, ascending, at most [`EXTENTS_AT_ONCE`]; fewer only if there are
/// no more. The first one may begin before `start`. What was not written to the file system yet may be
/// missing: ask only of a file that nobody writes to, and that is synced.
///
/// # Errors
/// `EOPNOTSUPP` where the file system cannot tell.
pub fn file_extents(file: &File, start: u64) -> io::Result<Vec<FileExtent>> {
    let (length, extent_count) = (u64::MAX - start, EXTENTS_AT_ONCE as u32);
    let mut request = Box::new(ExtentRequest {
        head: ExtentCount { start, length, extent_count, ..ExtentCount::default() },
        extents: [FileExtent::default(); EXTENTS_AT_ONCE],
    });
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: the structure is laid out as the kernel's, with room for as many extents as it says, and lives
    // through the call; whatever the kernel writes are numbers.
    let result = unsafe { libc::ioctl(fd, FIEMAP, &raw mut *request) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let count = request.head.mapped_extents as usize;
    Ok(request.extents.get(..count).unwrap_or_default().to_vec())
}

/// The kernel's `struct fsxattr`.
#[repr(C)]
#[derive(Default)]
struct FileAttributes {
    flags: u32,
    extent_hint: u32,
    extent_count: u32,
    project: u32,
    clone_hint: u32,
    reserved: [u8; 8],
}

/// `FS_IOC_FSGETXATTR`: `_IOR('X', 31, struct fsxattr)`.
const GET_ATTRIBUTES: libc::Ioctl = 0x801C_581F_u32 as libc::Ioctl;

/// How many extents a file has. XFS knows the number; others have to count.
///
/// # Errors
/// As [`file_extents`].
pub fn count_file_extents(file: &File) -> io::Result<u64> {
    let mut known = FileAttributes::default();
    // SAFETY: the structure is laid out as the kernel's and lives through the call.
    let result = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), GET_ATTRIBUTES, &raw mut known) };
    if result == 0 && known.extent_count > 0 {
        return Ok(known.extent_count.into());
    }
    // No room is offered: nothing is filled in.
    let mut request = ExtentCount { length: u64::MAX, ..ExtentCount::default() };
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: the same; the kernel, which is offered room for no extents, writes none behind it.
    let result = unsafe { libc::ioctl(fd, FIEMAP, &raw mut request) };
    if result == 0 { Ok(request.mapped_extents.into()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests;
