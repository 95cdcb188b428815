//! Windows and leases on real files.

use crate::base::sys::*;
use std::io::Write;

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
