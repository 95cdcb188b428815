//! Windows and leases on real files.

use crate::base::sys::*;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

#[test]
fn truncation_under_a_window_poisons_it_and_does_not_kill() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[7; 1 << 16]).unwrap();
    let window = MappedWindow::new(&file, 0, 1 << 16).unwrap();
    assert!(window.bytes().iter().all(|&b| b == 7));
    assert!(!window.is_poisoned());
    file.set_len(4096).unwrap();
    assert_eq!(window.bytes()[20_000], 0);
    assert!(window.is_poisoned());
    drop(window);
    assert!(MappedWindow::new(&file, 0, 1 << 16).is_err(), "beyond the end");
    let window = MappedWindow::new(&file, 0, 4096).unwrap();
    assert_eq!((window.bytes()[4095], window.is_poisoned()), (7, false));
}

#[test]
fn windows_may_begin_anywhere_and_slots_come_back() {
    let mut file = tempfile::tempfile().unwrap();
    let bytes: Vec<u8> = (0..20_000u32).map(|i| i as u8).collect();
    file.write_all(&bytes).unwrap();
    for offset in 0..200 {
        let window = MappedWindow::new(&file, offset, 10_000).unwrap();
        assert_eq!(window.bytes(), &bytes[offset as usize..][..10_000]);
    }
}

#[test]
fn a_read_lease_is_refused_while_somebody_writes() {
    let named = tempfile::NamedTempFile::new().unwrap();
    let reader = File::open(named.path()).unwrap();
    match take_lease(&reader, Lease::Read) {
        Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => {}
        other => println!("skipped: no leases here: {other:?}"),
    }
}

/// Neither descriptors nor windows: a file that it held could stay locked or leased after our end.
#[test]
fn a_guard_holds_no_file_of_ours() {
    let mut named = tempfile::NamedTempFile::new().unwrap();
    named.write_all(&[7; 1 << 16]).unwrap();
    let window = MappedWindow::new(named.as_file(), 0, 1 << 16).unwrap();
    let ((mut control, theirs), (socket, _peer)) =
        (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
    let duty = guard::Duty::Send {
        socket: socket.into(),
        text: b"text".into(),
        answer: b"answer".into(),
        repeats: false,
    };
    let id = guard::fork_guard(theirs.into(), duty, Duration::from_secs(3600)).unwrap();
    let mut byte = [0];
    control.read_exact(&mut byte).unwrap();
    assert_eq!(byte, [guard::READY]);
    let path = named.path().to_str().unwrap();
    let read = |id: &str| std::fs::read_to_string(format!("/proc/{id}/maps")).unwrap();
    assert!(read("self").contains(path), "it is mapped here");
    assert!(!read(&id.to_string()).contains(path), "it holds the file");
    assert_eq!(std::fs::read_dir(format!("/proc/{id}/fd")).unwrap().count(), 2);
    assert!(window.bytes().iter().all(|&b| b == 7));
    control.write_all(&[guard::END]).unwrap();
    assert_eq!(control.read(&mut byte).unwrap(), 0);
    nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(id), None).unwrap();
}
