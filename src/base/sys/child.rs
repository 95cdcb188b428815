//! What a child process does between fork and exec.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Gives a program that will be started `files`, under the numbers that they have here, and lets the kernel
/// send it `signal` when the thread that starts it ends, in whatever way: so that thread has to live as long
/// as the program.
pub fn bind_child(command: &mut Command, files: Vec<File>, signal: libc::c_int) {
    let parent = std::process::id();
    let bind = move || {
        // SAFETY: numbers only.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal as libc::c_ulong) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // It ended before that: nobody would tell.
        if std::os::unix::process::parent_id() != parent {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        for file in &files {
            // SAFETY: this command takes an integer; the descriptor is open as long as `files` live.
            if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFD, 0) } == -1 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec it makes system calls that are safe there (prctl, getppid, fcntl), reads
    // what it was given before, and neither allocates nor takes a lock: the errors are numbers.
    unsafe {
        command.pre_exec(bind);
    }
}
