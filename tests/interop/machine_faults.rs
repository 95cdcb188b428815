//! Each command that QEMU is given for a snapshot of a machine goes wrong, in each way: by somebody between us and
//! QEMU who refuses it, carries it out and says that it was refused, or hangs up, before it or after.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that fails says where")]

use crate::kit::*;
use crate::machine_kit::*;
use imgsnap::machine::Machine;
use imgsnap::{Context, Error};
use nix::cmsg_space;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, Shutdown, recvmsg, sendmsg, shutdown,
};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, IoSlice, IoSliceMut, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::spawn;

/// What becomes of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// It is refused.
    Refused,
    /// It is carried out, and called refused.
    Denied,
    /// The connection ends instead.
    Lost,
    /// It is carried out, and the connection ends before the answer.
    Unanswered,
}

#[derive(Default)]
struct Plan {
    /// Commands so far.
    count: usize,
    /// Which of them goes wrong, and how.
    fault: Option<(usize, Fault)>,
    /// What it was.
    hit: Option<String>,
}

type Shared = Arc<Mutex<Plan>>;

/// Somebody between us and QEMU: one connection after the other.
struct Between {
    socket: PathBuf,
    plan: Shared,
}

impl Between {
    fn start(lab: &Lab, qemu: &Path) -> Self {
        let socket = PathBuf::from(lab.path("between"));
        let listener = UnixListener::bind(&socket).unwrap();
        let plan = Shared::default();
        let (shared, qemu) = (plan.clone(), qemu.to_owned());
        // It ends with the process.
        spawn(move || {
            for client in listener.incoming() {
                let Ok(server) = UnixStream::connect(&qemu) else { continue };
                relay(client.unwrap(), server, &shared);
            }
        });
        Self { socket, plan }
    }

    /// Counts from the next command on.
    fn next(&self, fault: Option<(usize, Fault)>) {
        *self.plan.lock().unwrap() = Plan { count: 0, fault, hit: None };
    }
}

/// Takes commands from the client until one of both goes.
fn relay(client: UnixStream, server: UnixStream, plan: &Shared) {
    let to_client = Arc::new(Mutex::new(client.try_clone().unwrap()));
    // An answer that is not to arrive: its id.
    let denied: Arc<Mutex<Option<Value>>> = Arc::default();
    let answers = BufReader::new(server.try_clone().unwrap());
    let (back, swallowed, both) = (to_client.clone(), denied.clone(), client.try_clone().unwrap());
    let backward = spawn(move || {
        for line in answers.lines().map_while(Result::ok) {
            let message: Value = serde_json::from_str(&line).unwrap_or_default();
            let id = message.get("id").cloned();
            let mut swallow = swallowed.lock().unwrap();
            let mut said = format!("{line}\r\n");
            if id.is_some() && *swallow == id {
                *swallow = None;
                said = refusal(&id.unwrap_or_default());
            }
            let mut client = back.lock().unwrap_or_else(PoisonError::into_inner);
            if client.write_all(said.as_bytes()).is_err() {
                break;
            }
        }
        shutdown(both.as_raw_fd(), Shutdown::Both).ok();
    });
    let mut pending = Vec::new();
    'all: while let Some(files) = take(&client, &mut pending) {
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            let command: Value = serde_json::from_slice(&line).unwrap();
            let name = command["execute"].as_str().unwrap_or_default();
            let fault = {
                let mut plan = plan.lock().unwrap();
                let count = plan.count;
                plan.count += 1;
                let fault = plan.fault.filter(|(at, _)| *at == count).map(|(_, fault)| fault);
                if fault.is_some() {
                    plan.hit = Some(name.to_owned());
                }
                fault
            };
            match fault {
                Some(Fault::Refused) => {
                    let said = refusal(&command["id"]);
                    to_client.lock().unwrap().write_all(said.as_bytes()).ok();
                    continue;
                }
                Some(Fault::Lost) => break 'all,
                Some(Fault::Denied) => *denied.lock().unwrap() = Some(command["id"].clone()),
                Some(Fault::Unanswered) => {
                    // Nothing comes back any more; QEMU does it before it sees the end.
                    shutdown(client.as_raw_fd(), Shutdown::Both).ok();
                }
                None => {}
            }
            let rights = [ControlMessage::ScmRights(&files)];
            let rights = if files.is_empty() { &[] } else { rights.as_slice() };
            let (parts, flags) = ([IoSlice::new(&line)], MsgFlags::MSG_NOSIGNAL);
            let sent = sendmsg::<()>(server.as_raw_fd(), &parts, rights, flags, None);
            if sent.is_err() || fault == Some(Fault::Unanswered) {
                std::thread::sleep(std::time::Duration::from_millis(20));
                break 'all;
            }
        }
        files.into_iter().for_each(|file| nix::unistd::close(file).unwrap());
    }
    shutdown(client.as_raw_fd(), Shutdown::Both).ok();
    shutdown(server.as_raw_fd(), Shutdown::Both).ok();
    backward.join().unwrap();
}

fn refusal(id: &Value) -> String {
    let error = json!({ "class": "GenericError", "desc": "planned" });
    format!("{}\r\n", json!({ "id": id, "error": error }))
}

/// The next bytes, and the descriptors that came with them; none at the end.
fn take(from: &UnixStream, into: &mut Vec<u8>) -> Option<Vec<RawFd>> {
    let (mut bytes, mut space) = (vec![0; 64 << 10], cmsg_space!([RawFd; 4]));
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(from.as_raw_fd(), &mut parts, Some(&mut space), flags).ok()?;
    let files = message.cmsgs().ok()?.filter_map(|message| match message {
        ControlMessageOwned::ScmRights(files) => Some(files),
        _ => None,
    });
    let (files, count) = (files.flatten().collect(), message.bytes);
    into.extend_from_slice(&bytes[..count]);
    (count > 0).then_some(files)
}

/// One snapshot of all disks, as far as it comes. What was committed is noted.
fn attempt(
    vm: &mut Vm,
    lab: &Lab,
    images: &mut [Image],
    socket: &Path,
    context: &Context,
) -> Result<(), Error> {
    let mut machine = Machine::connect(socket, context)?;
    machine.recover(context)?;
    let disks = machine.disks()?;
    let members = members_of(disks, images);
    let mut fleece = machine.prepare(members.clone(), options(lab), context)?;
    vm.write(0, 1, 0, 512);
    fleece.insert(&mut || {}, &mut || {}, context)?;
    let at = vm.contents();
    vm.write(1, 1, CLUSTER, 512);
    let disks = fleece.export()?;
    for (index, disk) in disks.iter().enumerate() {
        is_right(&images[index], disk, &at[index]);
    }
    // One is given up.
    fleece.aborted(0, context);
    images[1].committed(&members[1], &at[1]);
    fleece.committed(1, context);
    fleece.finish(context).map(drop)
}

#[test]
fn whatever_command_goes_wrong_the_machine_goes_on_and_the_next_snapshot_is_right() {
    let lab = Lab::new();
    let mut vm = need!(Vm::start(&lab, 1, &[("raw", Bus::Drive), ("qcow2", Bus::Scsi)]));
    let mut images = Image::several(2);
    snapshot(&mut vm, &lab, &mut images, |_| {});
    let between = Between::start(&lab, &vm.socket);
    between.next(None);
    attempt(&mut vm, &lab, &mut images, &between.socket, &Context::silent()).unwrap();
    let commands = between.plan.lock().unwrap().count;
    assert!(commands > 40, "{commands}");
    let is_all = std::env::var("IMGSNAP_FAULTS").is_ok_and(|which| which == "all");
    let faults = [Fault::Refused, Fault::Denied, Fault::Lost, Fault::Unanswered];
    for at in 0..commands {
        for (turn, fault) in faults.into_iter().enumerate() {
            // Every third command in one of the ways.
            if !is_all && (at + 3 * turn) % 12 != 0 {
                continue;
            }
            let (context, warnings) = listening();
            between.next(Some((at, fault)));
            let outcome = attempt(&mut vm, &lab, &mut images, &between.socket, &context);
            let hit = between.plan.lock().unwrap().hit.clone();
            let warnings = warnings.lock().unwrap().clone();
            let what = format!("{fault:?} at {at}, {hit:?}: {outcome:?}, {warnings:?}");
            if let Err(error) = &outcome {
                let text = error.to_string();
                assert!(!text.contains('\n') && text.len() < 600, "{what}");
            }
            assert!(warnings.len() <= 3, "{what}");
            assert_eq!(vm.status(), "running", "{what}");
            if is_all {
                println!("{what}");
            }
            // What is left is told. Of a session that does not begin, or of one that takes away what another
            // one left, nothing is: that is done by the next.
            if warnings.is_empty() {
                vm.is_clean();
            }
            snapshot(&mut vm, &lab, &mut images, |_| {});
        }
    }
    vm.reads_back(0);
    vm.reads_back(1);
}
