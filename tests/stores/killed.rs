//! Processes are killed at whatever moment while a repository is used: this one, or one of the server's.
//!
//! By default some, `IMGSNAP_STORE_KILLS=N` N of each kind; the seed is printed by a failure.

use crate::kit::{Lab, Run, Server, is_thorough, s3, skipped};
use crate::proxy::{Asked, Fault, Proxy};
use crate::random::{Random, wait_until};
use crate::world::{World, wanted};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::cell::Cell;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

fn usual() -> u64 {
    if is_thorough() { 40 } else { 10 }
}

/// Requests of a verb, about.
const REQUESTS: u64 = 14;
/// How long a verb takes, about, in milliseconds.
const VERB_MS: u64 = 400;

fn spawn(lab: &Lab, args: &[&str]) -> Child {
    let mut command = lab.command_as("one", args);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// It may have gone by itself.
fn kill_if_there(pid: i32) {
    let _is_there = kill(Pid::from_raw(pid), Signal::SIGKILL);
}

fn wait(child: Child) -> Run {
    Run::of(&child.wait_with_output().unwrap())
}

#[test]
fn a_client_may_be_killed_at_any_request() {
    let Some((server, mut env)) = s3() else { return };
    let upstream = env["AWS_ENDPOINT_URL"].strip_prefix("http://").unwrap().parse().unwrap();
    let proxy = Proxy::start(upstream);
    env.insert("AWS_ENDPOINT_URL".into(), proxy.url());
    let mut world = World::new(server.lab("s3://imgsnap-test/r", &env));
    let (count, seed) = wanted("IMGSNAP_STORE_KILLS", usual());
    let mut random = Random(seed);
    for turn in 0..count {
        // What it asked for last arrives, or not.
        let (at, arrives) = (random.below(REQUESTS) as usize, random.below(2) == 0);
        eprintln!("seed {seed}, turn {turn}: killed at request {at}, which arrives: {arrives}");
        let run = |lab: &Lab, args: &[&str]| {
            proxy.clear();
            let client = Arc::new(AtomicI32::new(0));
            let pid = client.clone();
            proxy.set_rule(move |asked: &Asked<'_>| {
                if asked.number < at {
                    return Fault::None;
                }
                // It asks as soon as it is there.
                while pid.load(Ordering::SeqCst) == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
                // Others of its requests come here as well.
                kill_if_there(pid.load(Ordering::SeqCst));
                if arrives { Fault::None } else { Fault::ResetBefore }
            });
            let child = spawn(lab, args);
            client.store(i32::try_from(child.id()).unwrap(), Ordering::SeqCst);
            let run = wait(child);
            proxy.set_rule(|_| Fault::None);
            assert!(proxy.settle());
            run
        };
        world.turn(&mut random, &run);
    }
    world.end("a client of S3 killed", true);
}

/// Kills something a while after a verb has begun, and puts it right when it is over.
fn killed_meanwhile(
    lab: Lab,
    kill: &dyn Fn(&Child, u64),
    mend: &dyn Fn(),
    (what, some_fail): (&str, bool),
) {
    let mut world = World::new(lab);
    let (count, seed) = wanted("IMGSNAP_STORE_KILLS", usual());
    let mut random = Random(seed);
    for turn in 0..count {
        let (after, choice) = (random.below(VERB_MS), random.next());
        eprintln!("seed {seed}, turn {turn}: {what} after {after} ms");
        let run = |lab: &Lab, args: &[&str]| {
            let child = spawn(lab, args);
            std::thread::sleep(Duration::from_millis(after));
            kill(&child, choice);
            let run = wait(child);
            mend();
            run
        };
        world.turn(&mut random, &run);
    }
    world.end(what, some_fail);
}

#[test]
fn the_other_side_of_ssh_may_be_killed() {
    let lab = Lab::by_ssh("");
    // The program that stands in for ssh starts the server, by a shell.
    let kill_servers = |client: &Child, _: u64| {
        let mut all = children_of(i32::try_from(client.id()).unwrap());
        while let Some(process) = all.pop() {
            all.extend(children_of(process));
            kill_if_there(process);
        }
    };
    killed_meanwhile(lab, &kill_servers, &|| (), ("the server of ssh killed", true));
}

/// What a process has started, by whichever of its threads.
fn children_of(process: i32) -> Vec<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task"));
    let of = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("children")).ok();
    let children: String = tasks.into_iter().flatten().flatten().filter_map(of).collect();
    children.split_whitespace().map(|child| child.parse().unwrap()).collect()
}

/// True while a server that was started with that in its environment is there.
fn is_served(variable: &str) -> bool {
    std::fs::read_dir("/proc").unwrap().flatten().any(|process| {
        let has = |file: &str, text: &str| {
            let read = std::fs::read(process.path().join(file)).unwrap_or_default();
            read.split(|byte| *byte == 0).any(|part| part == text.as_bytes())
        };
        has("cmdline", "--stdio") && has("environ", variable)
    })
}

#[test]
fn a_client_of_ssh_may_be_killed() {
    let lab = Lab::by_ssh("");
    let kill_client = |client: &Child, _: u64| {
        kill_if_there(i32::try_from(client.id()).unwrap());
    };
    let state = format!("IMGSNAP_STATE={}", lab.at("state-one"));
    // Its server ends with it, when it has done what it is at, and lets go of what it holds.
    let wait = || assert!(wait_until(|| !is_served(&state)), "its server goes on");
    killed_meanwhile(lab, &kill_client, &wait, ("a client of ssh killed", true));
}

#[test]
fn a_gateway_may_be_killed() {
    if !is_thorough() {
        return skipped("a_gateway_may_be_killed", "only with all servers");
    }
    let Some((server, env)) = s3() else { return };
    let lab = server.lab("s3://imgsnap-test/r", &env);
    let kill = |_: &Child, _: u64| {
        server.tell("kill", &["rgw"]);
        // It comes back while it is asked again, or after it was given up.
        server.tell("restart", &["rgw"]);
    };
    killed_meanwhile(lab, &kill, &|| (), ("Ceph's gateway killed", false));
}

#[test]
fn nodes_of_hdfs_may_be_killed() {
    if !is_thorough() {
        return skipped("nodes_of_hdfs_may_be_killed", "only with all servers");
    }
    let Some(server) = Server::start("hdfs", &["3"]) else { return };
    server.tell("dfs", &["-mkdir", "-p", "/backup"]);
    let url = format!("{}/backup/r", server.env()["IMGSNAP_TEST_HDFS"]);
    let killed = Cell::new(None);
    let kill = |_: &Child, choice: u64| {
        let name = ["nn", "dn1", "dn2", "dn3"][choice as usize % 4];
        server.tell("kill", &[name]);
        match name {
            "nn" => server.tell("restart", &[name]),
            node => killed.set(Some(node)),
        }
    };
    let mend = || {
        if let Some(node) = killed.take() {
            server.tell("restart", &[node]);
        }
    };
    let what = ("a node of HDFS killed", false);
    killed_meanwhile(Lab::new(&url, server.env()), &kill, &mend, what);
}
